"""A pretended GPU with its TensorRT, and an empty cache of engines."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pretended_tensorrt.fixtures import compiled_cuda, cuda, install, leaky_cuda, trt, world
from trunkline.runtime.engines.cache import EngineCache

__all__ = ["compiled_cuda", "cuda", "install", "leaky_cuda", "trt", "world"]


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")
