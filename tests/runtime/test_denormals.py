"""Denormal numbers are zero while a back end of the processor computes, and not a moment longer."""

from __future__ import annotations

import platform
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx import helper

from tests.kit import FORM, random_member, with_sensor
from tests.sensor_kit import TracedEncoder
from tests.small_stages import written
from trunkline.calibration.samples.synthetic import stream
from trunkline.runtime.backends import Session, named, names
from trunkline.runtime.backends.denormals import flushed
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage, TensorSpec
from trunkline.runtime.sensor.window import SensorWindow

#: Nothing is switched elsewhere, and nothing that is slow has been measured there.
pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="x86 under Linux only: see the module"
)

ROWS, K = 4096, 1024  # enough for a library to share it out among its threads
TINY = np.float32(1e-40)


def counts_as_zero() -> bool:
    """In this thread."""
    return bool((np.full(64, TINY) * np.float32(1) == 0).all())


@pytest.fixture(params=names("cpu"))
def multiply(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[float, int], Session]:
    """Opens a stage that multiplies by a number, in so many threads."""
    backend = named(request.param)
    if (missing := backend.available()) is not None:
        pytest.skip(missing.reason)
    ports = TensorSpec("x", "float32", ("N", K)), TensorSpec("y", "float32", ("N", K))

    def opened(factor: float, threads: int) -> Session:
        node = helper.make_node("Mul", ["x", "w"], ["y"])
        stage = Stage(ports[:1], ports[1:], {})
        files = written(tmp_path, "odd", stage, [node], {"w": np.full((1, K), factor, np.float32)})
        return backend.open_stage(replace(files, threads=threads))

    return opened


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("factor", "number"), [(1.0, 1e-40), (1e-40, 1.0), (1e-20, 1e-20)], ids=["input", "weight", "result"]
)
def test_they_are_zero_in_every_thread_of_the_library(
    multiply: Callable[[float, int], Session], factor: float, number: float, threads: int, rows: int
) -> None:
    session = multiply(factor, threads)
    x = np.full((rows, K), number, np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(session.run({"x": x})["y"], 0)
    np.testing.assert_array_equal(in_a_new_thread(lambda: session.run({"x": x})["y"]), 0)


def in_a_new_thread(action: Callable[[], object]) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(action()))
    thread.start()
    thread.join()
    return found[0]


def test_numbers_that_are_not_denormal_stay(multiply: Callable[[float, int], Session]) -> None:
    """The smallest that is none, too."""
    x = np.full((2, K), np.finfo(np.float32).tiny, np.float32)
    np.testing.assert_array_equal(multiply(1.0, 1).run({"x": x})["y"], x)


def test_the_calling_thread_is_as_it_was(multiply: Callable[[float, int], Session]) -> None:
    """After opening, running and failing; a caller who wants them to be zero keeps that, too."""
    session = multiply(1.0, 2)
    assert not counts_as_zero()
    session.run({"x": np.zeros((1, K), np.float32)})
    assert not counts_as_zero()
    with pytest.raises(BackendError):
        session.run({"x": np.zeros((1, K + 1), np.float32)})
    assert not counts_as_zero()
    with flushed():
        multiply(1.0, 2).run({"x": np.zeros((1, K), np.float32)})
        assert counts_as_zero()
    assert not counts_as_zero()


def test_only_the_calling_thread_is_switched() -> None:
    with flushed():
        assert counts_as_zero()
        inherited = in_a_new_thread(counts_as_zero)  # as the threads that libraries start
    assert inherited
    assert not in_a_new_thread(counts_as_zero)


def test_it_is_switched_back_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), flushed():
        _ = 1 // 0
    assert not counts_as_zero()


@pytest.mark.parametrize("backend", names("cpu"))
def test_features_are_pytorchs(tmp_path: Path, backend: str) -> None:
    """Of windows that end in denormals or hold nothing else, through weights of which some are denormal."""
    if (missing := named(backend).available()) is not None:
        pytest.skip(missing.reason)
    form = replace(FORM, samples=130, steps=130)
    member = random_member(with_sensor(channels=3), form=form)
    for state in member.components.values():
        for value in state.values():
            if value.ndim >= 2:
                value[..., 0] *= 1e-39
    rows = stream(np.random.default_rng(0), 130, 3)
    fading = rows * np.logspace(0, -44, 130, dtype=np.float32)[:, None]
    with TracedEncoder(member, tmp_path, backend) as encoder:
        weights = encoder.reference.state_dict().values()
        assert any(((value != 0) & (value.abs() < 1e-38)).any() for value in weights if value.is_floating_point())
        for samples in (rows, fading, rows * np.float32(1e-39)):
            found = encoder.features(SensorWindow(samples, form.rate_hz))
            np.testing.assert_allclose(found, encoder.expected(samples), atol=1e-5)
    assert torch.tensor(1e-40) * 1 != 0
