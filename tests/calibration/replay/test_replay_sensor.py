"""A bundle with a sensor: what it decided on a sliding stream is recorded, decided again, and promoted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.bundles import frame, windows
from tests.conftest import made_once
from tests.kit import sensor_checkpoint
from tests.trunks import head_shape
from trunkline.calibration.replay import promote, replay
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.calibration.samples.dataset_samples import DatasetSamples
from trunkline.exporter.export import build
from trunkline.exporter.trunk import Trunk
from trunkline.runtime import Ensemble, load
from trunkline.runtime.replay import Recorder, ReplayLog, Seen, header_of
from trunkline.runtime.sensor.window import SensorWindow, encoder_rows


@pytest.fixture(scope="module")
def sensing(shared: Path, trunk: Trunk) -> Iterator[Ensemble]:
    path, checkpoint = shared / "replay_sensor", sensor_checkpoint(head_shape(), "concat", None)
    with load(made_once(path, lambda: (build(checkpoint, trunk, path), None)[1])) as loaded:
        yield loaded


def test_decisions_on_a_sliding_stream(tmp_path: Path, sensing: Ensemble) -> None:
    """The recorded ensemble reused steps of the window before; the replayed one computes each window in full."""
    entry = sensing.bundle.manifest.sensor
    assert entry is not None
    form, hop = entry.form, entry.stride
    random = np.random.default_rng()
    stream = random.standard_normal((form.samples + 12 * hop, form.channels)).astype(np.float32)
    period_ns = int(1e9 / form.rate_hz)
    stamps = np.arange(len(stream)) * period_ns
    seen_windows: list[SensorWindow | None] = []
    with Recorder(tmp_path / "log", header_of(sensing.bundle)) as recording:
        recording.sensor(stamps[: form.samples // 2], stream[: form.samples // 2])
        recording.sensor(stamps[form.samples // 2 : form.samples], stream[form.samples // 2 : form.samples])
        for index in range(12):
            end = form.samples + index * hop
            if index:
                recording.sensor(stamps[end - hop : end], stream[end - hop : end])
            begin = end - form.samples
            window = None
            if index != 5:  # absence is a state of its own
                rows = stream[begin:end]
                window = SensorWindow(rows, form.rate_hz, int(stamps[end - 1]), stream=1, position=begin)
            decision = sensing.score(frame(index), "put it down", windows(4, index), sensor=window)
            recording.decision(
                Seen("put it down", windows(4, index), image=frame(index), window=window), decision, index
            )
            seen_windows.append(window)
    assert ReplayLog(tmp_path / "log").summary().records["WindowRows"] == 0
    sensing.forget()
    report = replay(ReplayLog(tmp_path / "log"), sensing)
    assert (report.replayed, dict(report.skipped), report.moved) == (12, {}, ())
    assert report.comparison is not None
    assert report.comparison.max_score_change < 1e-5

    promotion = promote(ReplayLog(tmp_path / "log"), tmp_path / "samples")
    dataset = read_dataset(promotion.path)
    samples = DatasetSamples(dataset, pool=4)
    assert len(samples) == 12
    for index, window in enumerate(seen_windows):
        sample = samples[index]
        assert (sample.sensor is None) == (window is None)
        if sample.sensor is not None and window is not None:
            read = sample.sensor.open()
            np.testing.assert_array_equal(encoder_rows(read, form), encoder_rows(window, form))


def test_another_stream_moves_the_scores(tmp_path: Path, sensing: Ensemble) -> None:
    entry = sensing.bundle.manifest.sensor
    assert entry is not None
    random = np.random.default_rng()
    shape = (entry.form.samples, entry.form.channels)
    with Recorder(tmp_path / "log", header_of(sensing.bundle)) as recording:
        for index in range(3):
            felt, other = (random.standard_normal(shape).astype(np.float32) for _ in range(2))
            decision = sensing.score(frame(0), "put it down", windows(4), sensor=SensorWindow(felt, entry.form.rate_hz))
            seen = Seen("put it down", windows(4), image=frame(0), window=SensorWindow(other * 3, entry.form.rate_hz))
            recording.decision(seen, decision, index)
    report = replay(ReplayLog(tmp_path / "log"), sensing)
    assert report.comparison is not None
    assert report.comparison.max_score_change > 1e-4
