"""What the node does, without ROS: messages in, decisions out that are neither late nor made on something old.

Callbacks put the newest message of each topic where the loop finds it; the loop (docs/loop.md) encodes and scores at
its own rate. Each candidates message gets one decision. What cannot be used is refused, counted and named in
:meth:`Judge.status`; it never becomes a decision on something else.

*Clocks.* Images are stamped in ROS time, which may be set at any moment; the loop counts ages in monotonic time, which
never is. Both clocks are read when an image arrives: ROS time now, less its stamp, is how old it is, and so long before
the monotonic now it was captured. A clock that is set later does not touch what has arrived. An image from the future
is refused: its stamp is of another clock, and says nothing about its age.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from trunkline.runtime import Ensemble
from trunkline.runtime.ensemble import Decision
from trunkline.runtime.errors import CandidateError, InputError, InstructionError
from trunkline.runtime.loop import (
    Clock,
    Decided,
    Frame,
    LiveFrames,
    Loop,
    LoopPlan,
    LoopReport,
    Outcome,
    Question,
    Rate,
    Sources,
    SystemClock,
)
from trunkline_ros.messages import candidates_array, image_array, stamp_ns

#: Publishes a decision on candidates with this label.
Publish = Callable[[Decision, str], None]


@dataclass(frozen=True)
class Settings:
    """Parameters of the node, under these names in ROS and on the command line.

    Attributes:
        bundle: directory that ``trunkline export`` wrote.
        backend: by name; empty for the fastest that is installed.
        instruction: until a message brings another one. It is scored once before the node starts, so that the text
            tower, which runs when an instruction is first seen, makes no decision late.
        vision_hz: how often an image is encoded, at most.
        scoring_hz: how often candidates are looked for; a decision that takes longer than a period is late.
        frame_bound_ms: nothing is decided on an image older than this.
        candidates_bound_ms: nothing is decided on candidates that arrived longer ago than this.
        future_ms: how far ahead of the clock a stamp may be.
    """

    bundle: str = ""
    backend: str = ""
    instruction: str = ""
    vision_hz: float = 10.0
    scoring_hz: float = 10.0
    frame_bound_ms: float = 500.0
    candidates_bound_ms: float = 500.0
    future_ms: float = 10.0

    @property
    def plan(self) -> LoopPlan:
        """Of the loop."""
        return LoopPlan(
            frame_bound_ms=self.frame_bound_ms,
            vision=Rate(self.vision_hz),
            scoring=Rate(self.scoring_hz),
            future_ms=self.future_ms,
        )


PARAMETERS = {field.name: field.default for field in fields(Settings)}


@dataclass(frozen=True)
class Status:
    """How the node is doing. ``healthy`` is whether it decided since the last status, or was not asked."""

    healthy: bool
    summary: str
    values: dict[str, str]


@dataclass(frozen=True)
class _Asked:
    """A candidates message."""

    candidates: np.ndarray
    label: str
    received_ns: int


class _Images:
    """The newest image, handed out once. Any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: Frame | None = None

    def put(self, frame: Frame) -> None:
        with self._lock:
            if self._newest is None or frame.captured_ns > self._newest.captured_ns:
                self._newest = frame

    def read(self) -> Frame | None:
        with self._lock:
            frame, self._newest = self._newest, None
        return frame


class Judge:
    """Messages in, decisions out.

    Threads: ``on_image``, ``on_candidates`` and ``on_instruction`` may be called from any thread, :meth:`run` on one,
    which is the one that publishes. :meth:`stop` and :meth:`status` may be called from any.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        settings: Settings,
        publish: Publish,
        *,
        ros_now_ns: Callable[[], int],
        clock: Clock | None = None,
    ) -> None:
        """Prepares a loop over an ensemble.

        Raises:
            InputError: the ensemble reads a fast sensor, for which there is no topic, or no loop runs by the settings.
        """
        if ensemble.sensor is not None:
            raise InputError("this node has no topic for a fast sensor, and the bundle's members read one")
        self._ensemble, self._settings, self._publish = ensemble, settings, publish
        self._ros_now_ns, self._clock = ros_now_ns, clock or SystemClock()
        self._lock = threading.Lock()
        self._waiting: _Asked | None = None
        self._asked: _Asked | None = None
        self._instruction = settings.instruction
        self._refused: Counter[str] = Counter()
        self._last_refusal = ""
        self._published = self._received = 0
        self._told = (0, 0)
        self._images = _Images()
        self._live = LiveFrames(self._images)
        self._loop = Loop(ensemble, Sources(self._live, self), settings.plan, clock=self._clock)

    def on_image(self, message: Any) -> None:
        """A sensor_msgs/Image."""
        arrived_ns = self._clock.now_ns()
        try:
            age_ns = self._ros_now_ns() - stamp_ns(message.header.stamp)
            if age_ns < -self._settings.future_ms * 1e6:
                raise InputError(
                    "an image is from the future",
                    where="header.stamp",
                    expected=f"at most {self._settings.future_ms:g} ms ahead of this machine's ROS time",
                    found=f"{-age_ns / 1e6:.1f} ms ahead",
                    fix="let the camera's machine and this one agree on the time (chrony, PTP)",
                )
            self._images.put(Frame(image_array(message), arrived_ns - age_ns))
        except InputError as error:
            self._refuse("image", str(error))

    def on_candidates(self, message: Any) -> None:
        """A std_msgs/Float32MultiArray (N, H, A)."""
        with self._lock:
            self._received += 1
        try:
            candidates, label = candidates_array(message)
            actions = self._ensemble.bundle.manifest.actions
            longest, width = actions.history_length, actions.action_dim
            if candidates.shape[1] > longest or candidates.shape[2] != width:
                raise CandidateError(
                    "candidates do not have the shape that the bundle was trained on",
                    expected=f"(N, up to {longest}, {width})",
                    found=str(candidates.shape),
                )
        except InputError as error:
            return self._refuse("candidates", str(error))
        with self._lock:
            self._waiting = _Asked(candidates, label, self._clock.now_ns())
        return None

    def on_instruction(self, message: Any) -> None:
        """A std_msgs/String; it holds for every decision from now on."""
        if not message.data.strip():
            return self._refuse("instruction", str(InstructionError("an instruction is empty")))
        self._instruction = message.data
        return None

    def ask(self) -> Question | None:
        """For the loop: the newest candidates that nothing was decided on yet."""
        with self._lock:
            asked, self._asked = self._waiting, None
        if asked is None:
            return None
        if self._too_old(asked):
            self._drop(asked)
            return None
        if not self._instruction:
            self._refuse("no instruction", "there was no instruction yet")
            return None
        self._asked = asked
        return Question(self._instruction, asked.candidates)

    def run(self, seconds: float | None = None) -> LoopReport:
        """Decides until :meth:`stop`, or for so long.

        Raises:
            InputError: the first instruction cannot be scored, or a source did not return at the end.
        """
        if self._settings.instruction:
            self._warm_up()
        with self._loop:
            return self._loop.run(self._act, seconds=seconds)

    def stop(self) -> None:
        """Ends :meth:`run` soon."""
        self._loop.stop()

    def status(self) -> Status:
        """What happened since the last call in short, and since the start in numbers."""
        report = self._loop.report()
        with self._lock:
            told, self._told = self._told, (self._published, self._received)
            published, received = self._published - told[0], self._received - told[1]
            refused, last = dict(self._refused), self._last_refusal
        healthy = published > 0 or received == 0
        summary = f"{published} decisions on {received} candidates messages"
        values = {
            "decisions": str(self._told[0]),
            "late, not published": str(report.late),
            "frame age, median ms": f"{report.frame_age.median:.0f}",
            "frame age, largest ms": f"{report.frame_age.largest:.0f}",
            "images that repeat the one before": str(self._live.frozen),
            "images that could not be encoded": str(report.vision.errors),
            **{f"refused: {reason}": str(count) for reason, count in refused.items()},
            # a tick without candidates is none that was refused
            **{f"ticks refused: {why}": str(count) for why, count in report.refused.items() if why != "no question"},
            "last refusal": last,
        }
        return Status(healthy, summary if healthy else f"{summary}; last refusal: {last or 'none'}", values)

    def _warm_up(self) -> None:
        actions = self._ensemble.bundle.manifest.actions
        candidates = np.zeros((1, actions.history_length, actions.action_dim), np.float32)
        self._ensemble.score(np.zeros((8, 8, 3), np.uint8), self._settings.instruction, candidates)

    def _act(self, outcome: Outcome) -> None:
        """On the thread of :meth:`run`, after each tick."""
        asked = self._asked
        if isinstance(outcome, Decided):
            if asked is not None:
                self._decided(asked, outcome)
        elif asked is not None:
            if outcome.error is not None:  # what cannot be scored now cannot be later
                self._done(asked)
            self._last_refusal = str(outcome.error or ", ".join(outcome.reasons))

    def _decided(self, asked: _Asked, outcome: Decided) -> None:
        if outcome.late:  # the candidates are asked once more, as long as they are young enough
            self._last_refusal = f"late by {(outcome.finished_ns - outcome.deadline_ns) / 1e6:.0f} ms"
        elif self._too_old(asked):
            self._drop(asked)
        else:
            self._publish(outcome.decision, asked.label)
            with self._lock:
                self._published += 1
            self._done(asked)

    def _too_old(self, asked: _Asked) -> bool:
        return self._clock.now_ns() - asked.received_ns > self._settings.candidates_bound_ms * 1e6

    def _drop(self, asked: _Asked) -> None:
        self._done(asked)
        self._refuse("candidates too old", f"candidates older than {self._settings.candidates_bound_ms:g} ms")

    def _done(self, asked: _Asked) -> None:
        with self._lock:
            if self._waiting is asked:  # newer ones may have come meanwhile
                self._waiting = None

    def _refuse(self, reason: str, text: str) -> None:
        with self._lock:
            self._refused[reason] += 1
            self._last_refusal = text
