"""Shared fixtures: one small trunk, checkpoint and bundle per test run, also when several workers run it."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.half_stages import write_single
from tests.kit import random_checkpoint, sensor_checkpoint
from tests.samples_kit import ACTIONS, InMemory, scene
from tests.trunks import head_shape, save_trunk
from trunkline.calibration.int8.compress import CompressOptions
from trunkline.calibration.int8.outcome import Budget
from trunkline.calibration.samples.draw import DrawOptions
from trunkline.calibration.samples.synthetic import windows
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.export import build
from trunkline.exporter.options import ExportOptions, HalfOptions, Int8Options
from trunkline.exporter.trunk import Trunk, load_trunk
from trunkline.runtime import Ensemble, load

WITH_HALF = ExportOptions(half=HalfOptions(0.01))
#: Random heads: what matters is the path, not how good the decisions are.
LOOSE_BUDGET = Budget(max_score_change=0.5, min_agreement=0.2)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing a test remembers reaches the user's cache directory."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that all workers of this run share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


def made_once(target: Path, make: Callable[[], None]) -> Path:
    """``target``, made by whichever worker comes first; the others wait for it."""
    lock = target.with_suffix(".lock")
    try:
        lock.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 600
        while not (lock / "done").exists():
            if (lock / "failed").exists() or time.monotonic() > deadline:
                pytest.fail(f"another worker could not make {target}")
            time.sleep(0.1)
        return target
    try:
        make()
    except BaseException:
        (lock / "failed").touch()
        raise
    (lock / "done").touch()
    return target


@pytest.fixture(scope="session")
def trunk_folder(shared: Path) -> Path:
    """A trunk that open_clip loads as ``local-dir:FOLDER``: test_vit, 160 px, 100 patches, width 64."""
    return made_once(shared / "trunk", lambda: (save_trunk(shared / "trunk"), None)[1])


@pytest.fixture(scope="session")
def trunk(trunk_folder: Path) -> Trunk:
    """Do not cast or change it: it is shared."""
    return load_trunk(f"local-dir:{trunk_folder}")


@pytest.fixture(scope="session")
def checkpoint(trunk_folder: Path) -> Checkpoint:
    """Three members on :func:`trunk`."""
    return random_checkpoint(3, head_shape(), f"local-dir:{trunk_folder}")


@pytest.fixture(scope="session")
def bundle(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    """A bundle of :func:`checkpoint`. Never write into it; copy it with ``shutil.copytree``."""
    return made_once(shared / "bundle", lambda: (build(checkpoint, trunk, shared / "bundle"), None)[1])


@pytest.fixture(scope="session")
def half_bundle(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    """A bundle of :func:`checkpoint` with the ``trt`` variant beside the ``cpu`` one. Never write into it."""
    target = shared / "with_half"
    return made_once(target, lambda: (build(checkpoint, trunk, target, options=WITH_HALF), None)[1])


@pytest.fixture(scope="session")
def half_int8_bundle(shared: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    """A bundle of :func:`checkpoint` with int8 in both variants. Never write into it."""
    target = shared / "half_int8"
    samples = InMemory([scene(index) for index in range(24)], histories=windows(np.random.default_rng(1), 6, ACTIONS))
    compress = CompressOptions(LOOSE_BUDGET)
    int8 = Int8Options(samples, draw=DrawOptions(calibrate=10, judge=6, prove=8), compress=compress)
    options = ExportOptions(int8=int8, half=HalfOptions(0.01, int8=True))
    return made_once(target, lambda: (build(checkpoint, trunk, target, options=options), None)[1])


@pytest.fixture(scope="session")
def sensor_bundle(shared: Path, trunk: Trunk) -> Path:
    """A bundle of two members, one with a sensor, in both variants. Never write into it."""
    target, felt = shared / "sensor_both_variants", sensor_checkpoint(head_shape(), "gated", None)
    return made_once(target, lambda: (build(felt, trunk, target, options=WITH_HALF), None)[1])


@pytest.fixture(scope="session")
def ensemble(bundle: Path) -> Iterator[Ensemble]:
    """The bundle, loaded. Call ``forget()`` first where a test counts what is computed."""
    with load(bundle) as loaded:
        yield loaded


@pytest.fixture(scope="session")
def single_stages(shared: Path, bundle: Path, trunk: Trunk, checkpoint: Checkpoint) -> Path:
    """``<stage>/single.onnx``: the bundle's stages at the opset of the ``trt`` variant, float32. Never write there."""
    folder = shared / "single_stages"
    return made_once(folder, lambda: write_single(folder, bundle, trunk, checkpoint))
