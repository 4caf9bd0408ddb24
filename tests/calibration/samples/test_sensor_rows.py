"""Sensor windows of a data set are found by their rows, stay on the disk until they are looked at, and are strict."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.datasets_kit import changed, content, legacy, save
from tests.samples_kit import scene
from tests.windows_kit import RATE_HZ, raw, windowed
from tests.windows_kit import save as save_recording
from trunkline.calibration.samples.dataset import read_dataset
from trunkline.calibration.samples.dataset_samples import DatasetSamples
from trunkline.calibration.samples.sample import CalibrationSample, Picture, SensorExcerpt, window_of
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.sensor.window import SensorWindow

SENSOR = {"file": "sensor.npz", "rate_hz": RATE_HZ}
ROWS = [0, 3, None, 3, 11]


def with_sensor(rows: list[Any] | None = None, sensor: Any = SENSOR, data: Any = None) -> dict[str, Any]:
    """The data set of the kit; its first rows name windows."""
    data = changed(data or content(), "_metadata", "sensor", to=sensor)
    for index, row in enumerate(ROWS if rows is None else rows):
        data["samples"][index]["sensor_window"] = row
    return data


def written(folder: Path, data: object, arrays: dict[str, Any] | None = None) -> Path:
    save_recording(folder / "sensor.npz", arrays or windowed())
    return save(folder, data)


def refused(folder: Path, data: object, *words: str, arrays: dict[str, Any] | None = None) -> DatasetError:
    with pytest.raises(DatasetError) as caught:
        read_dataset(written(folder, data, arrays))
    missing = [word for word in ("contradicts itself", *words) if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


def test_rows_name_windows(tmp_path: Path) -> None:
    arrays = windowed()
    dataset = read_dataset(written(tmp_path, with_sensor(), arrays))
    assert dataset.sensor is not None
    assert dataset.sensor.rate_hz == RATE_HZ
    for index, row in enumerate(ROWS):
        sensor = dataset.samples[index].sensor
        if row is None:
            assert sensor is None
            continue
        assert sensor is not None
        window = sensor.open()
        np.testing.assert_array_equal(window.samples, arrays["data"][row])
        assert (window.rate_hz, window.end_ns) == (RATE_HZ, round(float(arrays["timestamps"][row]) * 1e9))
        assert sensor.name == f"{tmp_path / 'sensor.npz'}, window {row}"
    assert dataset.samples[1].sensor is dataset.samples[3].sensor
    assert all(sample.sensor is None for sample in dataset.samples[5:])


def test_samples_take_their_windows_along(tmp_path: Path) -> None:
    samples = DatasetSamples(read_dataset(written(tmp_path, with_sensor())))
    window = window_of(samples[4])
    assert window is not None
    np.testing.assert_array_equal(window.samples, windowed()["data"][11])
    assert window_of(samples[2]) is None


def test_the_legacy_form(tmp_path: Path) -> None:
    data = legacy() | {"_metadata": {"sensor": SENSOR, "images_folder": "images"}}
    first = next(iter(legacy()))
    data[first]["samples"][2]["sensor_window"] = 7
    dataset = read_dataset(written(tmp_path, data))
    assert [sample.sensor is not None for sample in dataset.samples[:4]] == [False, False, True, False]
    data[first]["samples"][2]["sensor_window"] = 12
    refused(tmp_path, data, f"{first!r}.samples[2]: sensor_window 12 does not exist, there are 12")


def test_a_data_set_without_a_sensor(tmp_path: Path) -> None:
    for data in (content(), changed(content(), "_metadata", "sensor", to=None)):
        dataset = read_dataset(save(tmp_path, data))
        assert dataset.sensor is None
        assert all(sample.sensor is None for sample in dataset.samples)


def test_nothing_is_read_before_it_is_looked_at(tmp_path: Path) -> None:
    arrays = windowed()
    arrays["data"][3, 5, 2] = np.nan
    dataset = read_dataset(written(tmp_path, with_sensor(), arrays))
    assert dataset.samples[0].sensor is not None
    assert dataset.samples[1].sensor is not None
    dataset.samples[0].sensor.open()
    with pytest.raises(DatasetError, match=r"(?s)sensor\.npz.*window 3, sample 5, channel 2: nan"):
        dataset.samples[1].sensor.open()


def test_rows_that_are_none_are_all_listed(tmp_path: Path) -> None:
    error = refused(
        tmp_path,
        with_sensor([12, -1, 1.0, True, "3", [1]]),
        "samples[0]: sensor_window 12 does not exist, there are 12",
        "samples[1]: sensor_window -1 does not exist",
        "samples[2]: sensor_window 1.0 is not a whole number",
        "samples[3]: sensor_window True is not",
        "samples[4]: sensor_window '3' is not",
        "samples[5]: sensor_window [1] is not",
    )
    assert len(error.found) == 6


def test_rows_without_a_file(tmp_path: Path) -> None:
    data = content()
    data["samples"][1]["sensor_window"] = 0
    error = refused(tmp_path, data, "samples[1]: sensor_window 0, but _metadata names no sensor")
    assert len(error.found) == 1


@pytest.mark.parametrize(
    ("sensor", "words"),
    [
        ("sensor.npz", [" 'sensor.npz' is not an object with file and rate_hz"]),
        ({}, [" has no file", " has no rate_hz"]),
        (SENSOR | {"rate": 650}, [" has the unknown key 'rate'"]),
        (SENSOR | {"file": "../sensor.npz"}, [".file '../sensor.npz' holds an empty, '.' or '..' part"]),
        (SENSOR | {"file": "/etc/passwd"}, ["is absolute"]),
        (SENSOR | {"file": 3}, [".file 3 is not a name"]),
        (SENSOR | {"file": "link.npz"}, [".file 'link.npz' is a link that leads out of the data set's folder"]),
        (SENSOR | {"file": "none.npz"}, [".file 'none.npz': cannot read a file: No such file"]),
        (SENSOR | {"file": "images"}, [".file 'images': cannot read a file: no plain file"]),
        (SENSOR | {"file": "dataset.json"}, [".file 'dataset.json': the file is no npz file, or a damaged one"]),
        (SENSOR | {"file": "raw.npz"}, [".file 'raw.npz': a raw recording, not windows"]),
        (SENSOR | {"rate_hz": 0}, [".rate_hz 0 is not above 0"]),
        (SENSOR | {"rate_hz": True}, [".rate_hz True is not"]),
        (SENSOR | {"rate_hz": "650"}, [".rate_hz '650' is not"]),
        (SENSOR | {"rate_hz": 10**400}, ["is not above 0 and up to"]),
        (SENSOR | {"rate_hz": 65.0}, ["another rate than was stated: 650", ", measured, expected 65 samples a second"]),
    ],
)
def test_metadata_that_names_no_windows(tmp_path: Path, sensor: Any, words: list[str]) -> None:
    save_recording(tmp_path / "outside" / "a.npz", windowed())
    save_recording(tmp_path / "data" / "raw.npz", raw())
    (tmp_path / "data" / "link.npz").symlink_to(tmp_path / "outside" / "a.npz")
    refused(tmp_path / "data", with_sensor(sensor=sensor), "_metadata.sensor", *words)


@pytest.mark.parametrize(
    ("arrays", "word"),
    [
        (windowed(timestamps=None), "no timestamps"),
        (windowed(data=np.zeros((12, 5), np.float32)), "data is float32 (12, 5)"),
        (windowed(timestamps=windowed()["timestamps"][::-1]), "before the one before it"),
    ],
)
def test_files_that_do_not_fit_together(tmp_path: Path, arrays: dict[str, Any], word: str) -> None:
    refused(tmp_path, with_sensor([99, "x"]), word, "samples[1]: sensor_window 'x'", arrays=arrays)


def excerpt(rows: Any = 1.0, rate_hz: float = 650.0) -> SensorExcerpt:
    window = SensorWindow(np.full((4, 2), rows, np.float32), rate_hz)
    return SensorExcerpt("a window", lambda: window)


def sample(sensor: SensorExcerpt | None = None, instruction: str = "lift the lid") -> CalibrationSample:
    return CalibrationSample("a", instruction, Picture("frame", lambda: scene(0)), sensor=sensor)


def test_digests_of_windows() -> None:
    same = {excerpt().digest, excerpt(np.float32([1, 1])).digest, excerpt(1.0, 650).digest}
    assert len(same) == 1
    wide = SensorWindow(np.ones((2, 4), np.float32), 650.0)
    others = [excerpt(2.0), excerpt(1.0, 65.0), SensorExcerpt("a window", lambda: wide)]
    assert len(same | {each.digest for each in others}) == 4


def test_digests_of_samples_depend_on_the_sensor_where_there_is_one() -> None:
    plain = sample()
    expected = hashlib.sha256(bytes.fromhex(plain.picture.facts.digest) + b"lift the lid").hexdigest()
    assert plain.digest == expected  # statistics that were kept stay valid
    assert sample(excerpt()).digest == sample(excerpt()).digest
    assert len({plain.digest, sample(excerpt()).digest, sample(excerpt(2.0)).digest}) == 3
    assert sample(excerpt()).digest != sample(excerpt(), "open the lid").digest


def test_a_view_that_is_not_contiguous_has_the_same_digest() -> None:
    rows = np.arange(24, dtype=np.float32).reshape(4, 6)
    views = [SensorExcerpt("a", lambda: SensorWindow(rows[:, ::2], 650.0))]
    views.append(SensorExcerpt("a", lambda: SensorWindow(rows[:, ::2].copy(), 650.0)))
    assert views[0].digest == views[1].digest
