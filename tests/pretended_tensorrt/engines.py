"""Engines of whole bundles, built once for all tests of a run where any process finds them; and odd ones."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest

from tests.bundles import copied, edit_manifest
from tests.cuda_kit import installed
from tests.pretended_tensorrt.fixtures import SETTINGS, put
from tests.pretended_tensorrt.library import OLDEST
from tests.pretended_tensorrt.world import World
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines.cache import FOLDER_VARIABLE, EngineCache
from trunkline.runtime.engines.settings import Rows
from trunkline.targets.building.network import TensorRtBuilder
from trunkline.targets.building.run import Target, build

#: As many rows as tests give a stage, and what lies below and above them.
PROFILE = (Rows("B", 1, 1, 8), Rows("I", 1, 2, 16), Rows("N", 1, 4, 64), Rows("Q", 3, 8, 64))
TARGET = Target("pretended", replace(SETTINGS, profile=PROFILE))
#: Half precision moves scores of these small trunks by a few thousandths.
GATE = 0.01


@dataclass(frozen=True)
class Built:
    """A folder with bundles, and engines of all their stages."""

    root: Path

    @property
    def engines(self) -> Path:
        return self.root / "engines"

    @property
    def half(self) -> Path:
        return self.root / "half"

    @property
    def sensor(self) -> Path:
        return self.root / "sensor"

    def make(self, half: Path, sensor: Path) -> None:
        """Builds them with the TensorRT that is there."""
        self.root.mkdir()
        for bundle, target in ((half, self.half), (sensor, self.sensor)):
            edit_manifest(copied(bundle, target), lambda manifest: manifest["parity"]["gates"].update(trt=GATE))
            build(Bundle(target), TensorRtBuilder(), TARGET, cache=EngineCache(self.engines))

    def use(self, patch: pytest.MonkeyPatch) -> None:
        """Lets back ends find the engines, in this process and in those that it starts."""
        patch.setenv(FOLDER_VARIABLE, str(self.engines))


def pretend(libcuda: Path, patch: pytest.MonkeyPatch, version: str = OLDEST) -> World:
    """Puts driver and TensorRT in the place of real ones; in a fresh process, for the rest of it."""
    world = World(installed(libcuda, patch))
    put(version, world, patch)
    return world


def compatible_plan(files: StageFiles, trt: ModuleType, *, with_code: bool) -> bytes:
    """A version-compatible plan of a small stage, as TensorRT makes it unless it is told to leave its runtime out."""
    builder = api.new_builder(trt)
    network = api.new_network(trt, builder)
    _parser, problems = api.parse(trt, network, files.graph, str(files.folder / "stage.onnx"))
    assert problems == []
    config = api.new_config(trt, builder, workspace_bytes=1, optimization_level=1)
    config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if not with_code:
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    api.add_profile(builder, config, {"x": ((1, 6), (2, 6), (16, 6))})
    return api.build(builder, network, config)
