"""Promotion: what is written is read back by the data set reader, and is what the robot saw and chose."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.replay_kit import (
    FORM,
    HEADER,
    INSTRUCTIONS,
    MS,
    Fake,
    Robot,
    S,
    Ticks,
    histories,
    image,
    limits,
    recorder,
)
from trunkline.calibration.replay import EpisodeRule, Promotion, promote
from trunkline.calibration.replay.promote import (
    BLANK,
    NOT_FINITE,
    OTHER_FORM,
    OTHER_STREAM,
    SHORT_WINDOW,
)
from trunkline.calibration.replay.window_file import WindowFile
from trunkline.calibration.samples.dataset import Dataset, read_dataset
from trunkline.calibration.samples.dataset_samples import DatasetSamples
from trunkline.calibration.samples.split import split_samples
from trunkline.runtime.ensemble import Decision
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.replay import ReplayError, ReplayLog, Seen
from trunkline.runtime.sensor.window import SensorWindow, encoder_rows

DECISION = Decision(np.array([0.1, 0.3, 0.2], np.float32), 1, 0, np.zeros((2, 3), np.float32))


def promoted(folder: Path, **options: Any) -> tuple[Promotion, Dataset]:
    promotion = promote(ReplayLog(folder / "log"), folder / "samples", **options)
    return promotion, read_dataset(promotion.path)


def sensor_file(folder: Path) -> dict[str, Any]:
    with np.load(folder / "samples" / "sensor.npz") as file:
        return {name: file[name] for name in file.files}


def rows_of(folder: Path) -> list[int | None]:
    content = json.loads((folder / "samples" / "dataset.json").read_text("utf-8"))
    return [sample.get("sensor_window") for sample in content["samples"]]


@pytest.mark.parametrize("frames", ["raw", "png"])
def test_samples_are_what_the_robot_saw_and_chose(tmp_path: Path, frames: str) -> None:
    robot = Robot()
    with recorder(tmp_path / "log", frames=frames) as recording:
        robot.work(recording, Fake(), 20)
    promotion, dataset = promoted(tmp_path)
    assert (promotion.samples, promotion.images, promotion.windows, promotion.repeated) == (20, 10, 20, 0)
    assert (dataset.form, dataset.history_length, dataset.action_dim, dataset.padding_value) == ("keyed", 4, 2, -5.0)
    assert dataset.skipped == ()
    for sample, seen, decision in zip(dataset.samples, robot.seen, robot.decisions, strict=True):
        np.testing.assert_array_equal(np.asarray(sample.open()), seen.image)
        assert sample.instruction == seen.instruction
        np.testing.assert_array_equal(sample.history, np.asarray(seen.histories)[decision.best])


def test_sensor_windows_are_what_the_encoder_read(tmp_path: Path) -> None:
    robot = Robot()
    with recorder(tmp_path / "log") as recording:
        robot.work(recording, Fake(), 20)
    _, dataset = promoted(tmp_path)
    file, rows = sensor_file(tmp_path), rows_of(tmp_path)
    assert dataset.metadata["sensor"] == {"file": "sensor.npz", "rate_hz": 100.0}
    assert (file["data"].dtype, file["data"].shape) == (np.float32, (20, 20, 3))
    assert (file["timestamps"].dtype, file["timestamps"].shape) == (np.float64, (20,))
    for row, seen, sample in zip(rows, robot.seen, dataset.samples, strict=True):
        assert row is not None
        assert seen.window is not None
        assert seen.window.end_ns is not None
        np.testing.assert_array_equal(file["data"][row], encoder_rows(seen.window, FORM))
        assert file["timestamps"][row] == pytest.approx(seen.window.end_ns / 1e9, abs=1e-6)
        assert sample.sensor is not None
        window = sample.sensor.open()
        np.testing.assert_array_equal(encoder_rows(window, FORM), encoder_rows(seen.window, FORM))
        assert window.rate_hz == 100.0
    assert not list((tmp_path / "samples").glob("*.partial"))


def test_a_window_that_several_decisions_used_is_written_once(tmp_path: Path) -> None:
    window = SensorWindow(np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32), 100.0, end_ns=5 * S)
    later = replace(window, end_ns=6 * S)
    with recorder(tmp_path / "log") as recording:
        for index, each in enumerate([window, window, later, None]):
            recording.decision(Seen(INSTRUCTIONS[0], histories(index), image=image(0), window=each), DECISION, index)
    promotion, dataset = promoted(tmp_path)
    assert rows_of(tmp_path) == [0, 0, 1, None]
    assert [sample.sensor is None for sample in dataset.samples] == [False, False, False, True]
    assert sensor_file(tmp_path)["timestamps"].tolist() == [5.0, 6.0]
    assert promotion.windows == 2


def test_a_log_without_a_sensor_has_no_sensor_file(tmp_path: Path) -> None:
    with recorder(tmp_path / "log", header=replace(HEADER, sensor=None)) as recording:
        Robot(sensor=False).work(recording, Fake(sensor=None), 6)
    promotion, dataset = promoted(tmp_path)
    assert promotion.windows == 0
    assert "sensor" not in dataset.metadata
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["dataset.json", "images"]


def test_rephrasings_give_the_one_that_won(tmp_path: Path) -> None:
    scores = np.float32([[0.1, 0.2, 0.3], [0.1, 0.9, 0.3]])
    decision = Decision(scores, 1, 1, np.zeros((2, 2, 3), np.float32))
    with recorder(tmp_path / "log") as recording:
        recording.decision(Seen(list(INSTRUCTIONS), histories(0), image=image(0)), decision, 0)
    _, dataset = promoted(tmp_path)
    assert [sample.instruction for sample in dataset.samples] == [INSTRUCTIONS[1]]
    np.testing.assert_array_equal(dataset.samples[0].history, histories(0)[1])


def test_repeated_decisions_are_left_out_and_limits_take_the_newest(tmp_path: Path) -> None:
    with recorder(tmp_path / "log") as recording:
        for index in range(12):
            recording.decision(Seen(INSTRUCTIONS[0], histories(index // 3), image=image(0)), DECISION, index)
    promotion, _ = promoted(tmp_path)
    assert (promotion.samples, promotion.repeated, promotion.images) == (4, 8, 1)
    newest = promote(ReplayLog(tmp_path / "log"), tmp_path / "newest", limit=3)
    assert (newest.samples, newest.repeated) == (1, 2)
    np.testing.assert_array_equal(read_dataset(newest.path).samples[0].history, histories(3)[1])


waits = st.lists(st.tuples(st.sampled_from([50, 400, 4900, 5100, 20_000]), st.booleans(), st.booleans()), min_size=1)


@given(waits)
@settings(max_examples=40, deadline=None)
def test_episodes_follow_the_rule(
    tmp_path_factory: pytest.TempPathFactory, waits: list[tuple[int, bool, bool]]
) -> None:
    """Against the rule said again: session, pause, and a new frame after a block."""
    folder, clock = tmp_path_factory.mktemp("episodes"), Ticks()
    recording = recorder(folder / "log", clock, limits=limits(seconds=1e6))
    expected, frame, start, last, session = [], 0, 0, 0, 0
    for index, (wait_ms, new_frame, new_session) in enumerate(waits):
        clock.now_ns += wait_ms * MS
        ended = index == 0 or clock.now_ns - last > 5 * S
        if new_session and index:
            recording.close()
            recording, ended = recorder(folder / "log", clock, limits=limits(seconds=1e6)), True
        frame += new_frame
        ended |= new_frame and clock.now_ns - start > 10 * S
        if ended:
            session, start = session + 1, clock.now_ns
        expected.append(session - 1)
        last = clock.now_ns
        recording.decision(Seen(INSTRUCTIONS[0], histories(index), image=image(frame)), DECISION, index)
    recording.close()
    promotion, dataset = promoted(folder, rule=EpisodeRule(pause_s=5.0, block_s=10.0))
    assert [sample.episode for sample in dataset.samples] == expected
    assert promotion.episodes == expected[-1] + 1
    for episode in set(expected):
        steps = [sample.timestep for sample in dataset.samples if sample.episode == episode]
        assert steps == list(range(len(steps)))


def test_a_long_day_is_split_by_episodes(tmp_path: Path) -> None:
    clock, robot = Ticks(), Robot(sensor=False)
    with recorder(tmp_path / "log", clock) as recording:
        robot.work(recording, Fake(), 120, clock)
    _, dataset = promoted(tmp_path, rule=EpisodeRule(block_s=1.0))
    split = split_samples(DatasetSamples(dataset, pool=4), (20, 20), seed=0)
    assert split.kind == "episode"
    assert split.episodes >= 7
    episodes = [{dataset.samples[index].episode for index in side} for side in split.sides]
    assert not episodes[0] & episodes[1]


def test_what_cannot_be_a_sample_is_skipped_with_the_reason(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    whole = random.standard_normal((20, 3)).astype(np.float32)
    broken = whole.copy()
    broken[3, 1] = np.nan
    with recorder(tmp_path / "log", header=replace(HEADER, actions=ActionsEntry(3, 2, -5.0, "mlp"))) as recording:
        recording.decision(Seen(INSTRUCTIONS[0], histories(0)[:, :3], image=image(0)), DECISION, 0)
    header = replace(HEADER, sensor=replace(FORM, padding="none"))
    with recorder(tmp_path / "log", header=header) as recording:
        rows = [whole, whole[:7], broken, whole[:, :2].copy(), random.standard_normal((30, 3)).astype(np.float32)]
        for index, each in enumerate(rows):
            window = SensorWindow(each, 100.0, end_ns=index * S)
            recording.decision(Seen(INSTRUCTIONS[0], histories(index), image=image(1), window=window), DECISION, 0)
        window = SensorWindow(whole, 50.0, end_ns=9 * S)
        recording.decision(Seen(INSTRUCTIONS[0], histories(7), image=image(1), window=window), DECISION, 0)
        recording.decision(Seen(" \t", histories(8), image=image(1)), DECISION, 0)
    promotion, _ = promoted(tmp_path)
    assert dict(promotion.skipped) == {OTHER_STREAM: 2, OTHER_FORM: 1, SHORT_WINDOW: 1, NOT_FINITE: 1, BLANK: 1}
    assert promotion.samples == 2
    np.testing.assert_array_equal(sensor_file(tmp_path)["data"][1], rows[4][-20:])


def test_nothing_is_left_of_a_promotion_that_fails(tmp_path: Path) -> None:
    with recorder(tmp_path / "log") as recording:
        recording.note("quiet")
        recording.decision(Seen(INSTRUCTIONS[0], histories(0), image=image(0)), None, 0)
    with pytest.raises(ReplayError, match=r"no decision of the log can become a sample[\s\S]*no scores"):
        promoted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]
    (tmp_path / "samples").mkdir()
    with pytest.raises(ReplayError, match="exists already"):
        promoted(tmp_path)


def test_a_disk_that_is_full_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with recorder(tmp_path / "log") as recording:
        Robot().work(recording, Fake(), 3)

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ReplayError, match=r"samples cannot be written[\s\S]*No space"):
        promoted(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


@given(st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 10 * S), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_stamps_of_a_window_file_ascend_whatever_the_clock_did(
    tmp_path_factory: pytest.TempPathFactory, ends_ns: list[int]
) -> None:
    path = tmp_path_factory.mktemp("windows") / "sensor.npz"
    file = WindowFile(path, 2, 3)
    random = np.random.default_rng(0)
    windows = [random.standard_normal((2, 3)).astype(np.float32) for _ in ends_ns]
    assert [file.add(rows, end_ns) for rows, end_ns in zip(windows, ends_ns, strict=True)] == list(range(len(windows)))
    file.finish()
    with np.load(path) as content:
        np.testing.assert_array_equal(content["data"], np.stack(windows))
        stamps = content["timestamps"]
    assert (np.diff(stamps) > 0).all()
    assert (np.abs(stamps) <= 9e9).all()
    if all(one < two for one, two in itertools.pairwise(ends_ns)) and max(map(abs, ends_ns)) < 10 * S:
        np.testing.assert_allclose(stamps, np.array(ends_ns) / 1e9, rtol=0, atol=1e-9)
