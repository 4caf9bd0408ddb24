"""Recordings of both forms are told apart by their keys, and whatever does not fit together is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.windows_kit import CHANNELS, raw, samples_of, save, stamps_of, stream, windowed
from trunkline.calibration.windows.rates import overlap_rate_hz, require_rate, stamps_rate_hz
from trunkline.calibration.windows.recording import RawRecording, WindowedRecording, open_recording
from trunkline.runtime.errors import DatasetError


def opened(tmp_path: Path, arrays: dict[str, Any], name: str = "sensor_data.npz", **options: bool) -> Any:
    return open_recording(save(tmp_path / name, arrays, **options))


def refused(tmp_path: Path, arrays: dict[str, Any], *words: str) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        opened(tmp_path, arrays)
    missing = [word for word in (*words, "sensor_data.npz") if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_a_raw_recording(tmp_path: Path, compressed: bool) -> None:
    arrays = raw()
    recording = opened(tmp_path, arrays, "sensor_data.npz", compressed=compressed)
    assert isinstance(recording, RawRecording)
    assert (len(recording), recording.channels) == (400, CHANNELS)
    np.testing.assert_array_equal(recording.stamps, arrays["timestamps"])
    for start, stop in ((0, 400), (3, 4), (17, 233), (5, 5)):
        found = recording.samples(start, stop)
        np.testing.assert_array_equal(found, samples_of(arrays)[start:stop])
        assert found.dtype == np.float32
    recording.check()


@pytest.mark.parametrize("compressed", [False, True], ids=["stored", "compressed"])
def test_a_recording_of_windows(tmp_path: Path, compressed: bool) -> None:
    arrays = windowed()
    recording = opened(tmp_path, arrays, "sensor_data_17.npz", compressed=compressed)
    assert isinstance(recording, WindowedRecording)
    assert (len(recording), recording.samples_per_window, recording.channels) == (12, 40, CHANNELS)
    for index in range(12):
        np.testing.assert_array_equal(recording.window(index), arrays["data"][index])
    assert recording.window(0).flags.aligned
    recording.check()


@pytest.mark.parametrize("channels", [1, 2, 1026])
def test_any_number_of_channels(tmp_path: Path, channels: int) -> None:
    rows = stream(4, channels=channels)
    arrays = raw(4, forces=rows[:, 0], alines=rows[:, 1:])
    if channels == 1:
        refused(tmp_path, arrays, "alines is empty: (4, 0)")
        return
    np.testing.assert_array_equal(opened(tmp_path, arrays).samples(0, 4), rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alines": None}, ["keys 'timestamps', 'send_timestamps', 'forces'"]),
        ({"data": np.zeros((400, 4, 5), np.float32)}, ["both alines and data"]),
        ({"forces": None}, ["no forces"]),
        ({"timestamps": None, "forces": None}, ["no timestamps", "no forces"]),
        ({"timestamps": stamps_of(400).astype(np.float32)}, ["timestamps is float32 (400,) instead of float64"]),
        ({"timestamps": stamps_of(400).astype(">f8")}, ["timestamps is >f8"]),
        (
            {"forces": np.zeros(400), "alines": np.zeros((400, 4), np.float16)},
            ["forces is float64", "alines is float16"],
        ),
        ({"forces": np.zeros((400, 1), np.float32)}, ["forces is float32 (400, 1) instead of float32 with 1"]),
        ({"alines": np.zeros((399, 4), np.float32)}, ["lengths differ: 400 timestamps, 400 forces, 399 alines"]),
        ({"forces": np.zeros(0, np.float32)}, ["forces is empty: (0,)"]),
        ({"forces": np.array(["a"] * 400)}, ["forces is <U1"]),
        ({"alines": np.array([[None]] * 400)}, ["alines", "object"]),
    ],
)
def test_what_does_not_fit_together(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    refused(tmp_path, raw(**changes), *words)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"timestamps": None}, "no timestamps"),
        ({"timestamps": stamps_of(11)}, "lengths differ: 11 timestamps, 12 data"),
        ({"data": np.zeros((12, 40), np.float32)}, "data is float32 (12, 40) instead of float32 with 3"),
        ({"data": np.zeros((12, 0, 5), np.float32)}, "data is empty"),
        ({"data": np.zeros((12, 40, 5))}, "data is float64"),
        ({"timestamps": stamps_of(12)[::-1]}, "before the one before it"),
    ],
)
def test_windows_that_do_not_fit_together(tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    refused(tmp_path, windowed(**changes), word)


def test_stamps_that_do_not_ascend(tmp_path: Path) -> None:
    stamps = stamps_of(400)
    stamps[7] = stamps[6]
    stamps[100] = stamps[98] - 0.5
    refused(tmp_path, raw(timestamps=stamps), "timestamps[7] equals the one before it", "timestamps[100] is 0.50")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e10])
def test_stamps_that_are_no_times(tmp_path: Path, value: float) -> None:
    stamps = stamps_of(400)
    stamps[3] = value
    refused(tmp_path, raw(timestamps=stamps), f"timestamps[3] is {np.float64(value)!r}")


def test_many_bad_stamps_are_cut_short(tmp_path: Path) -> None:
    error = refused(tmp_path, raw(timestamps=stamps_of(400)[::-1]), "and 394 more")
    assert len(error.found) == 6


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 3])
def test_broken_samples_are_named_when_they_are_read(tmp_path: Path, value: float, channel: int) -> None:
    arrays = raw()
    (arrays["forces"] if channel == 0 else arrays["alines"][:, channel - 1])[123] = value
    recording = opened(tmp_path, arrays)
    recording.samples(0, 123)
    with pytest.raises(DatasetError, match=rf"sample 123, channel {channel}: {value}"):
        recording.samples(100, 140)
    arrays = windowed()
    arrays["data"][5, 17, channel] = value
    recording = opened(tmp_path, arrays)
    recording.window(4)
    with pytest.raises(DatasetError, match=rf"window 5, sample 17, channel {channel}: {value}"):
        recording.window(5)


def test_large_numbers_are_not_broken(tmp_path: Path) -> None:
    arrays = raw(forces=np.full(400, np.finfo(np.float32).max))
    assert opened(tmp_path, arrays).samples(0, 400)[0, 0] == np.finfo(np.float32).max


def test_a_file_that_changes_after_it_was_opened(tmp_path: Path) -> None:
    recording = opened(tmp_path, raw())
    recording.require_unchanged()
    save(tmp_path / "sensor_data.npz", raw(seed=1))
    with pytest.raises(DatasetError, match="changed while it was read"):
        recording.require_unchanged()
    (tmp_path / "sensor_data.npz").unlink()
    with pytest.raises(DatasetError, match="changed while it was read"):
        recording.require_unchanged()


@pytest.mark.parametrize("rate_hz", [65.0, 650.0, 1000.0])
def test_the_rate_is_measured_through_jitter_and_gaps(rate_hz: float) -> None:
    stamps = stamps_of(2000, rate_hz=rate_hz)
    stamps[700:] += 3.0
    stamps[1500:] += 0.5
    assert stamps_rate_hz(stamps) == pytest.approx(rate_hz, rel=0.005)
    assert stamps_rate_hz(stamps[:2]) == pytest.approx(rate_hz, rel=0.5)
    assert stamps_rate_hz(stamps[:1]) is None


@pytest.mark.parametrize("hop", [1, 7, 30, 38])
def test_windows_that_overlap_tell_their_rate(hop: int) -> None:
    arrays = windowed(count=max(13, 220 // hop), hop=hop)
    found = overlap_rate_hz(arrays["data"], arrays["timestamps"])
    if hop * 32 < 200:
        assert found is None
    else:
        assert found == pytest.approx(650, rel=0.02)


def test_windows_of_another_rate_than_stated(tmp_path: Path) -> None:
    arrays = windowed()
    arrays["timestamps"] = 1000 + np.arange(12) * 0.2  # 30 samples further every 0.2 s
    recording = opened(tmp_path, arrays)
    assert recording.rate_hz == pytest.approx(150)
    require_rate(recording.rate_hz, 150.0, recording.path)
    with pytest.raises(DatasetError, match=r"(?s)another rate.*650 samples a second.*150\.00, measured"):
        require_rate(recording.rate_hz, 650.0, recording.path)


@pytest.mark.parametrize(
    "arrays",
    [windowed(hop=39), windowed(hop=60), windowed(data=np.zeros((12, 40, 5), np.float32)), windowed(count=2)],
    ids=["one sample in common", "none in common", "all equal", "too few"],
)
def test_windows_that_do_not_tell_their_rate(tmp_path: Path, arrays: dict[str, Any]) -> None:
    recording = opened(tmp_path, arrays)
    assert recording.rate_hz is None
    require_rate(None, 650.0, recording.path)
