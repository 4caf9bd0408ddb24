"""Fixtures of everything that runs on the pretended TensorRT; a folder's ``conftest.py`` takes them over."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.cuda_kit import FakeCuda, compiled_cuda, cuda, leaky_cuda
from tests.pretended_tensorrt import library as pretended
from tests.pretended_tensorrt.library import NEWEST, VERSIONS
from tests.pretended_tensorrt.world import World
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines.settings import BuildSettings, Rows

__all__ = ["compiled_cuda", "cuda", "install", "leaky_cuda", "trt", "trt_of_every_version", "world"]

ROWS = (Rows("B", 1, 1, 2), Rows("I", 1, 2, 8), Rows("N", 1, 4, 16), Rows("Q", 1, 4, 64))
SETTINGS = BuildSettings(workspace_bytes=64 << 20, optimization_level=2, profile=ROWS)

Install = Callable[..., ModuleType]


def put(version: str, world: World, patch: pytest.MonkeyPatch, kind: str = "full") -> ModuleType:
    """Puts a version of the pretended library in the place of both modules' names; the other one is not there."""
    module = pretended.library(version, world, kind)
    for name in ("tensorrt", "tensorrt_lean"):
        patch.setitem(sys.modules, name, module if module.__name__ == name else None)
    return module


@pytest.fixture
def world(cuda: FakeCuda) -> World:
    return World(cuda)


@pytest.fixture
def install(world: World, monkeypatch: pytest.MonkeyPatch) -> Install:
    """As :func:`put`, for this test."""
    return lambda version, kind="full": put(version, world, monkeypatch, kind)


@pytest.fixture
def trt(install: Install) -> ModuleType:
    return install(NEWEST)


@pytest.fixture(params=VERSIONS)
def trt_of_every_version(request: pytest.FixtureRequest, install: Install) -> ModuleType:
    return install(request.param)


def stage_files(bundle: Path, name: str) -> StageFiles:
    """A stage's ``trt`` variant."""
    opened = Bundle(bundle)
    stage = opened.manifest.stages[name]
    variant = stage.variants["trt"]
    digest = opened.manifest.files[variant.weights].sha256 if variant.weights else None
    graph = bundle / variant.graph
    return StageFiles(name, stage, graph.read_bytes(), graph.parent.resolve(), weights_digest=digest)
