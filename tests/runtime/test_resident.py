"""What stays on the device: patches never visit the host, and everything else does so once.

The device is pretended (tests/bound_backend.py): real sessions on the processor, whose copies to the host are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from tests import bound_backend
from tests.bundles import frame, windows
from tests.kit import FORM
from trunkline.calibration.samples.synthetic import stream
from trunkline.runtime import CacheLimits, Ensemble
from trunkline.runtime.backends import Backend, StageFiles
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError
from trunkline.runtime.graph import PartCache
from trunkline.runtime.sensor.window import SensorWindow

BACKEND = cast(Backend, bound_backend)


@pytest.fixture
def copied() -> list[str]:
    """Names of stages whose outputs were copied to the host since the test began."""
    bound_backend.copied.clear()
    return bound_backend.copied


@pytest.fixture
def resident(half_bundle: Path) -> Iterator[Ensemble]:
    with Ensemble(Bundle(half_bundle), BACKEND) as ensemble:
        ensemble.open_stages()
        yield ensemble


def only_on_the_host(files: StageFiles) -> SimpleNamespace:
    """A session of the same back end that leaves nothing where it was computed."""
    session = bound_backend.open_stage(files)
    return SimpleNamespace(run=session.run, close=session.close)


def test_a_frame_costs_the_copies_that_a_decision_is_made_of(resident: Ensemble, copied: list[str]) -> None:
    copied.clear()  # opening a stage runs it once
    resident.score(frame(0), "go", windows(4))
    assert copied == ["context", "action"]
    resident.score(frame(1), "go", windows(4))
    assert copied[2:] == ["context", "action"]  # the second is known, and is on the device
    assert {name: counts.runs for name, counts in resident.counts().items()} == {
        **{"vision": 2, "text": 1},
        **{"context": 2, "action": 1},
    }


def test_features_of_a_frame_stay_until_somebody_looks(resident: Ensemble, copied: list[str]) -> None:
    copied.clear()
    seen = resident.encode_frame(frame())
    assert copied == []
    ahead = resident.score(seen, "go", windows(4))
    assert copied == ["context", "action"]
    direct = resident.score(frame(), "go", windows(4))
    np.testing.assert_array_equal(ahead.member_scores, direct.member_scores)
    patches = seen.values
    assert (patches.shape, patches.dtype, patches.flags.writeable) == ((1, 100, 64), np.float32, False)
    assert seen.values is patches
    assert copied.count("vision") == 1


def test_instructions_are_cut_apart_on_the_host_once(resident: Ensemble, copied: list[str]) -> None:
    copied.clear()
    resident.score(frame(0), ["go", "stop", "wait"], windows(4))
    assert copied == ["text", "context", "action"]
    resident.score(frame(1), ["stop", "go"], windows(4))
    assert copied[3:] == ["context", "action"]


def test_the_same_scores_as_from_host_to_host(resident: Ensemble, half_bundle: Path) -> None:
    found = [resident.score(frame(seed), ["go", "stop"], windows(4, seed)).member_scores for seed in range(3)]
    with Ensemble(Bundle(half_bundle), SimpleNamespace(VARIANT="trt", open_stage=only_on_the_host)) as other:
        expected = [other.score(frame(seed), ["go", "stop"], windows(4, seed)).member_scores for seed in range(3)]
    np.testing.assert_array_equal(found, expected)


def test_what_is_kept_is_not_written_again(resident: Ensemble) -> None:
    """Each run binds outputs of its own."""
    seen = [resident.encode_frame(frame(seed)) for seed in range(3)]
    first = [resident.score(each, "go", windows(4)).scores for each in seen]
    resident.forget()
    again = [resident.score(frame(seed), "go", windows(4)).scores for seed in range(3)]
    np.testing.assert_array_equal(first, again)


def test_features_outlive_the_ensemble(half_bundle: Path) -> None:
    """They hold the session whose memory they are in."""
    with Ensemble(Bundle(half_bundle), BACKEND) as ensemble:
        seen, again = ensemble.encode_frame(frame()), ensemble.encode_frame(frame())
        expected = seen.values.copy()
    del ensemble
    np.testing.assert_array_equal(again.values, expected)


def test_a_cache_counts_them_as_what_they_hold() -> None:
    part = SimpleNamespace(nbytes=300)
    cache = PartCache(CacheLimits(entries=100, bytes=700))
    cache.put(range(3), [part] * 3)  # type: ignore[list-item]
    assert (len(cache), cache.bytes) == (2, 600)


def test_a_sensor(sensor_bundle: Path, copied: list[str]) -> None:
    """Steps are put together on the host, features stay."""
    rows = stream(np.random.default_rng(), 100, 6)
    with Ensemble(Bundle(sensor_bundle), BACKEND) as ensemble:
        ensemble.open_stages()
        copied.clear()
        felt = ensemble.encode_sensor(SensorWindow(rows[:50], FORM.rate_hz, stream=3, position=0))
        assert copied == ["steps"]
        decision = ensemble.score(ensemble.encode_frame(frame()), "go", windows(3), sensor=felt)
        assert copied == ["steps", "context", "action"]
        direct = ensemble.score(frame(), "go", windows(3), sensor=SensorWindow(rows[:50], FORM.rate_hz))
    np.testing.assert_array_equal(decision.scores, direct.scores)


def test_a_wrong_shape_is_noticed_on_the_device(half_bundle: Path) -> None:
    class Wrong(bound_backend.Session):
        def run_resident(self, inputs: object) -> dict[str, bound_backend.OrtResident]:
            found = super().run_resident(inputs)
            for each in found.values():
                each.shape = (1, *each.shape)
            return found

    def open_stage(files: StageFiles) -> Wrong:
        return Wrong(files, bound_backend.PLACEMENT)

    with (
        Ensemble(Bundle(half_bundle), SimpleNamespace(VARIANT="trt", open_stage=open_stage)) as ensemble,
        pytest.raises(BackendError, match="another shape than it promises"),
    ):
        ensemble.score(frame(), "go", windows(2))
