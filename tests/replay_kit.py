"""A small robot whose days are recorded, and an ensemble that judges them, without a bundle."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.ensemble import Decision
from trunkline.runtime.manifest import ActionsEntry
from trunkline.runtime.replay.front import Front, Seen
from trunkline.runtime.replay.payloads import Header, pack
from trunkline.runtime.replay.reader import Entry, ReplayLog
from trunkline.runtime.replay.recorder import SyncRecorder
from trunkline.runtime.replay.writer import LogLimits
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow

MS = 1_000_000
S = 1_000_000_000
FORM = SensorForm(channels=3, rate_hz=100.0, samples=20, steps=20)
ACTIONS = ActionsEntry(4, 2, -5.0, "mlp")
HEADER = Header("ab" * 32, ACTIONS, FORM, 1)
#: No test waits for a disk.
UNSYNCED = LogLimits(sync_s=None)
INSTRUCTIONS = ("put the red block in the bowl", "open the drawer\u2019s lid")


class Ticks:
    """A clock that stands until it is moved."""

    def __init__(self, now_ns: int = 1_700_000_000 * S) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns


def limits(**changes: Any) -> LogLimits:
    return LogLimits(**{"sync_s": None, **changes})


def recorder(folder: Path, clock: Ticks | None = None, header: Header = HEADER, **options: Any) -> SyncRecorder:
    chosen = options.pop("limits", UNSYNCED)
    return SyncRecorder(folder, header, chosen, clock=clock or Ticks(), frames=options.pop("frames", "raw"))


def frozen(array: NDArray[Any]) -> NDArray[Any]:
    array = array.copy()
    array.setflags(write=False)
    return array


def image(seed: int, height: int = 8, width: int = 9) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def histories(seed: int, count: int = 3) -> NDArray[np.float32]:
    return np.random.default_rng(seed).uniform(-1, 1, (count, 4, 2)).astype(np.float32)


@dataclass
class Fake:
    """Scores by a checksum of everything that it is given, so that any other input gives other scores.

    ``changes`` is added to the scores.
    """

    sensor: SensorForm | None = FORM
    changes: NDArray[np.float32] = field(default_factory=lambda: np.zeros(1, np.float32))
    digest: str = "ab" * 32
    windows: list[SensorWindow | None] = field(default_factory=list)

    @property
    def bundle(self) -> Any:
        sensor = None if self.sensor is None else SimpleNamespace(form=self.sensor)
        manifest = SimpleNamespace(sensor=sensor, actions=ACTIONS)
        return SimpleNamespace(manifest=manifest, digest=self.digest, root=Path("fake"))

    def score(
        self,
        image: NDArray[np.uint8],
        instruction: str | Sequence[str],
        histories: NDArray[np.float32],
        *,
        sensor: SensorWindow | None = None,
    ) -> Decision:
        self.windows.append(sensor)
        texts = [instruction] if isinstance(instruction, str) else list(instruction)
        rows = b"" if sensor is None else sensor.samples.tobytes()
        seeds = [zlib.crc32(b"".join((image.tobytes(), text.encode(), histories.tobytes(), rows))) for text in texts]
        members = np.stack([np.random.default_rng(seed).uniform(-1, 1, (2, len(histories))) for seed in seeds], 1)
        members = members.astype(np.float32)  # (K, I, N)
        scores = (members.mean(0) + self.changes).astype(np.float32)
        best = int(scores.argmax())
        if isinstance(instruction, str):
            scores, members = scores[0], members[:, 0]
        return Decision(scores, best % len(histories), best // len(histories), members)


@dataclass
class Robot:
    """Pushes 7 samples a step, decides in each; a new frame every second step, new candidates too.

    ``seen`` and ``decisions`` are what was handed to the recorder.
    """

    seed: int = 0
    sensor: bool = True
    seen: list[Seen] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    rows: int = 0
    stream: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 3), np.float32))

    def step(self, recording: Front, ensemble: Fake, index: int) -> None:
        now_ns = 10 * S + index * 70 * MS
        generator = np.random.default_rng((self.seed, index))
        window = None
        if self.sensor:
            block = generator.standard_normal((7, 3)).astype(np.float32)
            recording.sensor(now_ns + np.arange(-6, 1, dtype=np.int64) * 10 * MS, block)
            self.stream = np.concatenate([self.stream, block])
            window = SensorWindow(frozen(self.stream[-20:]), 100.0, end_ns=now_ns)
        seen = Seen(
            INSTRUCTIONS[(index // 5) % 2],
            histories(1000 * self.seed + index // 2),
            image=image(1000 * self.seed + index // 2),
            frame_ns=now_ns - 30 * MS,
            window=window,
            frame_age_ns=30 * MS,
            sensor_age_ns=0,
        )
        decision = ensemble.score(seen.image, seen.instruction, seen.histories, sensor=window)  # type: ignore[arg-type]
        recording.decision(seen, decision, now_ns)
        self.seen.append(seen)
        self.decisions.append(decision)

    def work(self, recording: Front, ensemble: Fake, steps: int, clock: Ticks | None = None) -> None:
        for index in range(len(self.seen), len(self.seen) + steps):
            if clock is not None:
                clock.now_ns += 70 * MS
            self.step(recording, ensemble, index)


def contents(folder: Path) -> list[tuple[int, int, bytes]]:
    """Number, stamp and payload of every record that is read."""
    return [content(entry) for entry in ReplayLog(folder).entries()]


def content(entry: Entry) -> tuple[int, int, bytes]:
    return entry.number, entry.stamp_ns, pack(entry.meta, *entry.arrays)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tlog"))


def of_kind(folder: Path, kind: type) -> Iterator[Entry]:
    return (entry for entry in ReplayLog(folder).entries() if isinstance(entry.meta, kind))
