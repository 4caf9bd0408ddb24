"""Taking decisions again: the same bundle gives the same scores, another one is told apart, and nothing is guessed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.bundles import frame, windows
from tests.replay_kit import FORM, INSTRUCTIONS, Fake, Robot, histories, image, recorder, segments
from trunkline.calibration.replay import ReplayReport, replay
from trunkline.runtime.ensemble import Decision, Ensemble
from trunkline.runtime.errors import BackendError, CandidateError
from trunkline.runtime.parity import compare
from trunkline.runtime.replay import Recorder, ReplayLog, Seen, SyncRecorder, header_of
from trunkline.runtime.replay.index import FRAME_GONE, NO_SCORES
from trunkline.runtime.sensor.window import SensorWindow


def again(folder: Path, fake: Fake, **options: Any) -> ReplayReport:
    return replay(ReplayLog(folder), cast(Ensemble, fake), **options)


@pytest.fixture
def robot(tmp_path: Path) -> Robot:
    robot = Robot()
    with recorder(tmp_path / "log") as recording:
        robot.work(recording, Fake(), 30)
    return robot


def test_the_ensemble_that_decided_gives_the_very_scores(tmp_path: Path, robot: Robot) -> None:
    fake, steps = Fake(), []
    report = again(tmp_path / "log", fake, progress=lambda *step: steps.append(step))
    assert (report.decisions, report.replayed, dict(report.skipped), report.moved) == (30, 30, {}, ())
    assert report.comparison is not None
    assert (report.comparison.max_score_change, report.comparison.rank_correlation) == (0.0, pytest.approx(1.0))
    assert report.deciders == {"ab" * 32: 30}
    windows_seen = cast(list[SensorWindow], fake.windows)
    for seen, window in zip(robot.seen, windows_seen, strict=True):
        assert seen.window is not None
        assert window.samples.tobytes() == seen.window.samples.tobytes()
    assert steps[-1] == ("replaying decisions", 30, 30)


@given(st.integers(0, 1 << 30), st.floats(0.0, 0.4), st.booleans(), st.integers(1, 40))
@settings(max_examples=30, deadline=None)
def test_moved_decisions_are_those_of_a_plain_comparison(
    tmp_path_factory: pytest.TempPathFactory, seed: int, margin: float, rephrased: bool, limit: int
) -> None:
    """Against scores that are computed and compared one by one, without the log."""
    folder = tmp_path_factory.mktemp("moved") / "log"
    generator = np.random.default_rng(seed)
    shape = (2, 3) if rephrased else (3,)
    changes = generator.uniform(-0.3, 0.3, shape).astype(np.float32)
    other = Fake(changes=changes if rephrased else changes[None])
    instruction = list(INSTRUCTIONS) if rephrased else INSTRUCTIONS[0]
    expected, before_all, after_all = [], [], []
    with recorder(folder) as recording:
        for index in range(12):
            seen = Seen(instruction, histories(index), image=image(index))
            before = Fake().score(image(index), instruction, histories(index))
            after = other.score(image(index), instruction, histories(index))
            recording.decision(seen, before, index)
            before_all.append(before.scores.reshape(-1))
            after_all.append(after.scores.reshape(-1))
            if (before.instruction, before.best) != (after.instruction, after.best):
                old = before.scores.reshape(2 if rephrased else 1, 3)
                new = after.scores.reshape(2 if rephrased else 1, 3)
                expected.append(
                    (
                        index,
                        before.best,
                        after.best,
                        INSTRUCTIONS[before.instruction],
                        INSTRUCTIONS[after.instruction],
                        float(old.max() - old[after.instruction, after.best]),
                        float(new.max() - new[before.instruction, before.best]),
                    )
                )
    report = again(folder, other, margin=margin, limit=limit)
    limit = min(limit, 12)
    assert [
        (
            each.stamp_ns,
            each.before,
            each.after,
            each.instruction,
            each.instruction_after,
            each.margin_before,
            each.margin_after,
        )
        for each in report.moved
    ] == [each for each in expected if each[0] >= 12 - limit]
    whole = compare(np.stack(before_all[12 - limit :]), np.stack(after_all[12 - limit :]), margin)
    assert report.comparison == whole
    assert report.replayed == limit


def test_what_cannot_be_taken_again_is_skipped_with_the_reason(tmp_path: Path, robot: Robot) -> None:
    class Choosy(Fake):
        def score(self, image: Any, instruction: Any, histories: Any, **sensor: Any) -> Decision:
            if instruction == INSTRUCTIONS[1]:
                raise CandidateError("candidates cannot be scored")
            return super().score(image, instruction, histories, **sensor)

    folder = tmp_path / "log"
    with recorder(folder) as recording:
        recording.decision(robot.seen[0], None, 0, marks=["no frame"])
    data = bytearray(segments(folder)[0].read_bytes())
    data[data.index(b"raw") + 60] ^= 1  # the first frame, on which two decisions were made
    segments(folder)[0].write_bytes(data)
    report = again(folder, Choosy())
    assert dict(report.skipped) == {
        "the bundle refuses it: candidates cannot be scored": 15,
        FRAME_GONE: 2,
        NO_SCORES: 1,
    }
    assert (report.decisions, report.replayed) == (31, 13)
    assert sum(report.skipped.values()) + report.replayed == report.decisions


def test_an_error_that_is_not_about_the_input_is_not_swallowed(tmp_path: Path, robot: Robot) -> None:
    class Broken(Fake):
        def score(self, *_: Any, **__: Any) -> Decision:
            raise BackendError("a stage failed")

    with pytest.raises(BackendError):
        again(tmp_path / "log", Broken())


def test_a_bundle_without_a_sensor_is_given_no_window_and_it_is_said(tmp_path: Path, robot: Robot) -> None:
    fake = Fake(sensor=None)
    report = again(tmp_path / "log", fake)
    assert fake.windows == [None] * 30
    assert report.windows_unused == 30
    with recorder(tmp_path / "blind") as recording:
        Robot(sensor=False).work(recording, Fake(), 3)
    report = again(tmp_path / "blind", Fake(sensor=FORM))
    assert (report.replayed, report.windows_unused) == (3, 0)


def test_nothing_to_compare(tmp_path: Path) -> None:
    with recorder(tmp_path / "log") as recording:
        recording.note("quiet")
    report = again(tmp_path / "log", Fake())
    assert (report.decisions, report.comparison, report.moved) == (0, None, ())


def test_decisions_of_a_real_bundle(tmp_path: Path, ensemble: Ensemble) -> None:
    """Recorded while it decides, in a thread, with a driver that overwrites its image; replayed after a restart."""
    buffer = frame(0)
    decisions = []
    with Recorder(tmp_path / "log", header_of(ensemble.bundle)) as recording:
        for index in range(6):
            buffer[:] = frame(index // 2)
            instruction: Any = ["pick it up", "lift it"] if index == 3 else "put it down"
            candidates: Any = windows(5, index)
            if index == 4:
                candidates = [candidates[0], candidates[1][:4], candidates[2][-1:]]
            decision = ensemble.score(buffer, instruction, candidates)
            recording.decision(Seen(instruction, candidates, image=buffer, frame_ns=index), decision, index)
            decisions.append(decision)
    ensemble.forget()
    report = replay(ReplayLog(tmp_path / "log"), ensemble)
    assert report.replayed == 6
    assert report.moved == ()
    assert report.comparison is not None
    assert report.comparison.max_score_change <= 1e-6
    assert report.deciders == {ensemble.bundle.digest: 6}
    with SyncRecorder(tmp_path / "other", header_of(ensemble.bundle)) as recording:
        for index, decision in enumerate(decisions[:2]):
            flipped = Decision(-decision.scores, int((-decision.scores).argmax()), 0, -decision.member_scores)
            recording.decision(Seen("put it down", windows(5, index), image=frame(0)), flipped, index)
    report = replay(ReplayLog(tmp_path / "other"), ensemble)
    assert [moved.after for moved in report.moved] == [decision.best for decision in decisions[:2]]
    assert report.comparison is not None
    assert math.isclose(report.comparison.rank_correlation, -1.0)
