"""Makes calibration data of what a robot saw: a data set in the published form, with the sensor's windows.

::

    samples/
    |-- dataset.json
    |-- images/        PNG, or TIFF for CMYK; neither loses anything
    `-- sensor.npz     only if decisions had a sensor window

Each decision becomes a sample whose right window is *the winner*: what the robot did, not what would have been right.
That serves calibration, which asks that scores stay what they are. It does not serve as a measure of accuracy.

Samples of one stretch of work are one episode, so that calibration never judges on frames beside those that it took
its ranges from. A new episode begins with a new session of the recorder, after a pause, and every so often with the
next new frame. A decision that repeats another in everything is left out.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.calibration.replay.again import DROPPED_MEANWHILE, UNKNOWN_FORM, newest
from trunkline.calibration.replay.window_file import WindowFile
from trunkline.calibration.samples.bundle_needs import form_problems
from trunkline.calibration.samples.dataset import MAX_FILE_BYTES
from trunkline.calibration.samples.sample import WindowForm
from trunkline.runtime.errors import ReplayError
from trunkline.runtime.files import becoming
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.replay.frames import Pixels
from trunkline.runtime.replay.index import Inputs, LogIndex, RecordedDecision
from trunkline.runtime.replay.payloads import Header
from trunkline.runtime.replay.reader import ReplayLog
from trunkline.runtime.sensor.form import SensorForm
from trunkline.runtime.sensor.window import SensorWindow, pad

DATASET_NAME = "dataset.json"
IMAGES_NAME = "images"
SENSOR_NAME = "sensor.npz"

BLANK = "its instruction is blank"
OTHER_FORM = "its candidates are of another size or padding than the newest ones"
NO_FILE = "its frame is of a mode that no image file holds without loss: YCbCr"
OTHER_STREAM = "its sensor window is of another stream than the first one"
SHORT_WINDOW = "its sensor window is shorter than a whole one, and the encoder does not pad"
NOT_FINITE = "its sensor window holds NaN or infinite values"

Rows = NDArray[np.float32]


@dataclass(frozen=True)
class EpisodeRule:
    """When a new episode begins.

    Attributes:
        pause_s: after so many seconds without a decision.
        block_s: with the first new frame after so many seconds of the same episode.
    """

    pause_s: float = 5.0
    block_s: float = 60.0


@dataclass(frozen=True)
class Promotion:
    """What was made of a log.

    Attributes:
        path: the data set's JSON file.
        samples: how many there are.
        episodes: of how many stretches.
        images: different frames.
        windows: different sensor windows.
        repeated: decisions that were left out because they repeat another one.
        skipped: decisions that could not be used, by reason.
    """

    path: Path
    samples: int
    episodes: int
    images: int
    windows: int
    repeated: int
    skipped: Mapping[str, int]


def promote(
    log: ReplayLog,
    output: Path | str,
    *,
    rule: EpisodeRule | None = None,
    limit: int | None = None,
    progress: Progress = silent,
) -> Promotion:
    """Writes a data set of a log's decisions.

    Args:
        log: what was recorded.
        output: the folder to write; it must not exist. It appears when everything is in it.
        rule: when an episode ends.
        limit: only the newest so many decisions; all by default.
        progress: told about segments, then about decisions.

    Raises:
        ReplayError: the folder exists or cannot be written, or no decision can be used.
    """
    output = Path(output).absolute()
    if output.exists() or output.is_symlink():
        raise ReplayError("the output exists already", where=output, fix="choose another folder, or remove it")
    index = LogIndex(log, progress)
    if not index.headers:
        raise ReplayError("no header of the log can be read, which says how candidates are padded", where=log.folder)
    header = index.headers[max(index.headers)]
    numbers = newest(index.decisions, limit)
    try:
        with becoming(output) as folder, _Draft(folder, header, rule or EpisodeRule()) as draft:
            for done, number in enumerate(numbers):
                progress("writing samples", done, len(numbers))
                draft.add(index, number)
            draft.finish(log)
    except OSError as error:
        raise ReplayError(
            "samples cannot be written",
            where=output,
            found=error.strerror or str(error),
            fix="check space and permissions",
        ) from error
    progress("writing samples", len(numbers), len(numbers))
    return draft.promotion(output / DATASET_NAME)


@dataclass
class _Episodes:
    """Numbers episodes and the samples in them."""

    rule: EpisodeRule
    number: int = -1
    timestep: int = 0
    _start_ns: int = 0
    _last: tuple[int, int, str] | None = None

    def place(self, stamp_ns: int, session: int, image: str) -> tuple[int, int]:
        """Episode and step of the next sample."""
        if self._last is None or self._ended(stamp_ns, session, image):
            self.number, self.timestep, self._start_ns = self.number + 1, 0, stamp_ns
        else:
            self.timestep += 1
        self._last = stamp_ns, session, image
        return self.number, self.timestep

    def _ended(self, stamp_ns: int, session: int, image: str) -> bool:
        last_ns, last_session, last_image = self._last or (0, 0, "")
        if session != last_session or stamp_ns - last_ns > self.rule.pause_s * 1e9:
            return True
        # A frame on both sides would join the episodes again.
        return stamp_ns - self._start_ns > self.rule.block_s * 1e9 and image != last_image


class _Windows:
    """The sensor's windows, all of one stream. Threads: for one."""

    def __init__(self, path: Path, form: SensorForm | None) -> None:
        self._path, self._form = path, form
        self._file: WindowFile | None = None
        self._last: tuple[bytes, int, int] | None = None
        self.rate_hz = 0.0
        self._shape = (0, 0)

    @property
    def count(self) -> int:
        return 0 if self._file is None else self._file.count

    def whole(self, window: SensorWindow) -> Rows | str:
        """The rows (T, C) that an encoder is given before it resamples, or why there are none."""
        rows, form = window.samples, self._form
        if form is not None and rows.shape[1] != form.channels:
            return OTHER_STREAM
        if form is not None:
            rows = rows[-form.samples :]
            if len(rows) < form.samples and (form.adaptive or form.padding == "none"):
                return SHORT_WINDOW
            rows = pad(rows, form)
        if self._file is not None and (rows.shape, window.rate_hz) != (self._shape, self.rate_hz):
            return OTHER_STREAM
        return rows if np.isfinite(rows).all() else NOT_FINITE

    def row(self, rows: Rows, window: SensorWindow, end_ns: int) -> int:
        """The row of a whole window; one that is used again keeps its row."""
        content = rows.tobytes()
        if self._last is not None and self._last[:2] == (content, end_ns):
            return self._last[2]
        if self._file is None:
            self.rate_hz, self._shape = window.rate_hz, (len(rows), rows.shape[1])
            self._file = WindowFile(self._path, *self._shape)
        row = self._file.add(rows, end_ns)
        self._last = content, end_ns, row
        return row

    def finish(self) -> None:
        if self._file is not None:
            self._file.finish()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()


@dataclass
class _Names:
    """Ids of what samples share, by content."""

    prefix: str
    ids: dict[Any, str] = field(default_factory=dict)

    def of(self, content: Any) -> tuple[str, bool]:
        """The id, and whether it is new."""
        new = content not in self.ids
        return self.ids.setdefault(content, f"{self.prefix}_{len(self.ids)}"), new


class _Draft:
    """A data set in the making. Threads: for one."""

    def __init__(self, folder: Path, header: Header, rule: EpisodeRule) -> None:
        self._folder, self._actions = folder, header.actions
        (folder / IMAGES_NAME).mkdir()
        self._windows = _Windows(folder / SENSOR_NAME, header.sensor)
        self._episodes = _Episodes(rule)
        self._images, self._instructions, self._histories = _Names("frame"), _Names("instr"), _Names("action")
        self._history_rows: dict[str, list[list[float]]] = {}
        self._samples: list[dict[str, object]] = []
        self._known: set[tuple[object, ...]] = set()
        self._skipped: Counter[str] = Counter()
        self._repeated = 0

    def __enter__(self) -> _Draft:
        return self

    def __exit__(self, *_: object) -> None:
        self._windows.close()

    def add(self, index: LogIndex, number: int) -> None:
        recorded = index.decision(number)
        inputs = DROPPED_MEANWHILE if recorded is None else index.inputs(recorded)
        if recorded is None or isinstance(inputs, str):
            self._skipped[str(inputs)] += 1
            return
        text = inputs.instructions[recorded.meta.best_instruction or 0]
        rows = None if inputs.window is None else self._windows.whole(inputs.window)
        actions = index.actions(recorded)
        if not text.strip():
            self._skipped[BLANK] += 1
        elif actions is None:
            self._skipped[UNKNOWN_FORM] += 1
        elif form_problems(WindowForm.of(actions), self._actions):
            self._skipped[OTHER_FORM] += 1
        elif inputs.pixels.mode == "YCbCr":
            self._skipped[NO_FILE] += 1
        elif isinstance(rows, str):
            self._skipped[rows] += 1
        else:
            self._add(recorded, inputs, text, rows)

    def finish(self, log: ReplayLog) -> None:
        """Writes what belongs to all samples."""
        if not self._samples:
            raise ReplayError(
                "no decision of the log can become a sample",
                where=log.folder,
                found=[f"{count}: {reason}" for reason, count in self._skipped.items()] or "no decisions",
            )
        self._windows.finish()
        content = {
            "action_histories": self._history_rows,
            "instructions": {name: text for text, name in self._instructions.ids.items()},
            "samples": self._samples,
            "_metadata": self._metadata(),
        }
        text = json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
        if len(text) > MAX_FILE_BYTES:
            raise ReplayError(
                "the log has too many decisions for one data set",
                where=log.folder,
                expected=f"a JSON file of at most {MAX_FILE_BYTES} bytes",
                found=f"{len(text)} bytes for {len(self._samples)} samples",
                fix="promote the newest ones with a limit; calibration needs a few hundred",
            )
        (self._folder / DATASET_NAME).write_bytes(text)

    def promotion(self, path: Path) -> Promotion:
        return Promotion(
            path=path,
            samples=len(self._samples),
            episodes=self._episodes.number + 1,
            images=len(self._images.ids),
            windows=self._windows.count,
            repeated=self._repeated,
            skipped=dict(self._skipped.most_common()),
        )

    def _add(self, recorded: RecordedDecision, inputs: Inputs, text: str, rows: Rows | None) -> None:
        sample: dict[str, object] = {
            "action_history_id": self._history(inputs.candidates[recorded.meta.best or 0]),
            "agent_view_image_file": self._image(inputs.pixels),
            "instruction_id": self._instructions.of(text)[0],
        }
        if rows is not None and inputs.window is not None:
            sample["sensor_window"] = self._windows.row(rows, inputs.window, _end_ns(recorded, inputs.window))
        if (key := tuple(sample.values())) in self._known:
            self._repeated += 1
            return
        self._known.add(key)
        entry = recorded.entry
        episode, timestep = self._episodes.place(entry.stamp_ns, entry.session, str(sample["agent_view_image_file"]))
        self._samples.append({**sample, "episode_id": episode, "timestep": timestep})

    def _image(self, pixels: Pixels) -> str:
        form = f"{pixels.mode} {pixels.height} {pixels.width} {pixels.palette.hex()} "
        name, new = self._images.of(hashlib.sha256(form.encode() + pixels.data.tobytes()).digest())
        file = f"{name}.tiff" if pixels.mode == "CMYK" else f"{name}.png"
        if new:
            image = pixels.image
            image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
            image.save(self._folder / IMAGES_NAME / file, compress_level=1)
        return file

    def _history(self, window: Rows) -> str:
        name, new = self._histories.of(window.tobytes())
        if new:
            self._history_rows[name] = window.tolist()
        return name

    def _metadata(self) -> dict[str, object]:
        metadata: dict[str, object] = {
            "history_length": self._actions.history_length,
            "total_window_size": self._actions.history_length,
            "action_dim": self._actions.action_dim,
            "padding_value": self._actions.padding_value,
            "images_folder": IMAGES_NAME,
            "source": "trunkline replay",
            "action_histories_are": "what the ensemble chose",
        }
        if self._windows.count:
            metadata["sensor"] = {"file": SENSOR_NAME, "rate_hz": self._windows.rate_hz}
        return metadata


def _end_ns(recorded: RecordedDecision, window: SensorWindow) -> int:
    """When a window's last sample was taken; where nobody knows, when the decision was written."""
    source = recorded.meta.window
    last_ns = None if source is None else source.last_ns
    known = (each for each in (window.end_ns, last_ns) if each is not None)
    return next(known, recorded.entry.stamp_ns)
