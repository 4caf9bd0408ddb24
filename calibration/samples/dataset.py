"""Reads the published data set form: one JSON file of action windows and instructions, beside a folder of images.

::

    dataset = read_dataset("bridge_dataset.json")
    dataset.samples[0].open()       # the PIL image; nothing is decoded before
    dataset.samples[0].history      # (H, A) float32

Two forms are read: the keyed one (``action_histories``, ``instructions``, ``samples``, ``_metadata``) and the legacy
one (instruction -> ``samples``). Rows of both may name windows of a fast sensor (see ``sensor_rows``). Unknown metadata
is ignored. Rows without an image, window or instruction are left out, as the published readers do, but they are counted
with the reason. Everything else that does not fit is refused, all problems at once: references to unknown ids, windows
of another size, numbers that are not finite, and images that lead out of their folder.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.calibration.samples.image_folder import image_problem, images_folder
from trunkline.calibration.samples.sample import SensorExcerpt, WindowForm
from trunkline.calibration.samples.sensor_rows import SensorReader, SensorRows
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.image import open_image

#: The published file has 3.8 MB; this leaves room for one seventy times as large.
MAX_FILE_BYTES = 256_000_000
DEFAULT_PADDING_VALUE = -5.0
MAX_PADDING = float(np.finfo(np.float32).max)
_LISTED = 20
_KEYED = ("action_histories", "instructions", "samples")
_ROW_IDS = ("action_history_id", "agent_view_image_file", "instruction_id")
_LEGACY_ROW = ("agent_view_image_file", "action_history", "language_instruction")

Window = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Sample:
    """One frame of an episode, an instruction that holds for it, and the window of actions that was right.

    Attributes:
        id: where it stands in the file, such as ``samples[12]``; unique within the data set.
        image: path of the frame, inside the images folder; whether it can be read shows when it is opened.
        instruction: as the file spells it.
        history: (H, A) float32, read-only and shared by all samples with the same window.
        episode: number of the episode, None where the file does not say.
        timestep: step of the episode, None where the file does not say.
        sensor: window of the fast sensor, None where the row names none.
    """

    id: str
    image: Path
    instruction: str
    history: Window
    episode: int | None
    timestep: int | None
    sensor: SensorExcerpt | None = None

    def open(self) -> Image.Image:
        """The frame.

        Raises:
            ImageError: it is missing, damaged or of a kind that cannot be judged.
        """
        return open_image(self.image)


@dataclass(frozen=True)
class Skipped:
    """A row that was left out: where it stands in the file, and why."""

    id: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set in memory, without its images.

    Attributes:
        path: the JSON file.
        images: the folder of the images.
        form: "keyed" or "legacy".
        samples: in the file's order.
        histories: windows (H, A) float32 by id; ids of a legacy file are made up, one per distinct window.
        instructions: sentences by id.
        skipped: rows that were left out.
        history_length: H, steps per window: ``total_window_size`` where the file states it, else ``history_length``.
        action_dim: A, numbers per step.
        padding_value: what padded steps are filled with.
        metadata: ``_metadata`` as the file states it.
        sensor: the windows of a fast sensor, None where the file names none.
    """

    path: Path
    images: Path
    form: str
    samples: tuple[Sample, ...]
    histories: Mapping[str, Window]
    instructions: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    history_length: int
    action_dim: int
    padding_value: float
    metadata: Mapping[str, Any]
    sensor: SensorRows | None = None

    @property
    def windows(self) -> WindowForm:
        """What the file states, or shows, of its windows."""
        sensor = None
        if self.sensor is not None:
            recording = self.sensor.recording
            sensor = (recording.samples_per_window, recording.channels, self.sensor.rate_hz)
        return WindowForm(self.history_length, self.action_dim, self.padding_value, sensor)

    @property
    def skipped_reasons(self) -> dict[str, int]:
        """How many rows were left out for each reason."""
        reasons = [skipped.reason for skipped in self.skipped]
        return {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}


def read_dataset(path: Path | str, images: Path | str | None = None) -> Dataset:
    """Reads a data set.

    Args:
        path: the JSON file.
        images: folder of the images; by default the one that ``_metadata.images_folder`` names, beside the file.

    Raises:
        DatasetError: the file cannot be read, is of no known form, or contradicts itself; all problems are listed.
    """
    path = Path(path)
    content = _parse(_read(path), path)
    if all(key in content for key in _KEYED):
        return _keyed(content, path, images)
    if content and all(isinstance(value, dict) and "samples" in value for value in _legacy_groups(content).values()):
        return _legacy(content, path, images)
    raise DatasetError(
        "the file is not a data set of a known form",
        where=path,
        expected=f"an object with {', '.join(_KEYED)} and _metadata, or instruction -> samples (legacy)",
        found="keys " + (", ".join(repr(key) for key in list(content)[:8]) or "none"),
        fix="write the file with the published generator, or in the form that it writes",
    )


def _read(path: Path) -> bytes:
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no such file"
        raise DatasetError("cannot read a data set", where=path, found=found, fix="name the JSON file")
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DatasetError(
                "the data set is too large to be read at once",
                where=path,
                expected=f"at most {MAX_FILE_BYTES} bytes",
                found=f"{size} bytes",
                fix="split it; evaluation needs a few hundred samples",
            )
        return path.read_bytes()
    except OSError as error:
        raise DatasetError(
            "cannot read a data set", where=path, found=error.strerror, fix="check its permissions"
        ) from error


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError and JSONDecodeError
        raise DatasetError(
            "the data set is not JSON",
            where=path,
            expected="UTF-8 JSON without NaN, infinity or repeated keys",
            found=f"nested too deeply ({error})" if isinstance(error, RecursionError) else str(error),
            fix="write the file again; a copy that stopped half-way ends in the middle of a value",
        ) from error
    if not isinstance(content, dict):
        raise DatasetError(
            "the file is not a data set of a known form", where=path, expected="an object", found=_kind(content)
        )
    return content


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError("repeated keys " + ", ".join(repr(key) for key in result if keys.count(key) > 1))
    return result


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


@dataclass(frozen=True)
class _Sizes:
    """What the metadata states, or the first window shows: steps, numbers per step, padding."""

    history_length: int
    action_dim: int
    padding_value: float


class _Problems:
    """Collects what is wrong, so that one error names everything."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._found: list[str] = []

    def add(self, problem: str) -> None:
        self._found.append(problem)

    def refuse(self, expected: str, fix: str) -> None:
        if not self._found:
            return
        more = len(self._found) - _LISTED
        raise DatasetError(
            "the data set contradicts itself",
            where=self._path,
            expected=expected,
            found=self._found[:_LISTED] + ([f"and {more} more"] if more > 0 else []),
            fix=fix,
        )


def _keyed(content: Mapping[str, Any], path: Path, images: Path | str | None) -> Dataset:
    _refuse_documented_schema(content, path)
    metadata = _metadata(content, path)
    problems = _Problems(path)
    sizes = _sizes(metadata, content["action_histories"].values(), path)
    histories = {
        name: window
        for name, rows in content["action_histories"].items()
        if (window := _window(rows, sizes, f"action_histories[{name!r}]", problems)) is not None
    }
    instructions = _instructions(content["instructions"], problems)
    folder = images_folder(metadata, path, images)
    rows = [(f"samples[{index}]", row) for index, row in enumerate(content["samples"])]
    used, skipped = _split(rows, _ROW_IDS, problems)
    frames, sensor = _Frames(folder, problems), SensorReader(metadata, path, problems.add)
    samples = []
    for name, row in used:
        history_id, image, instruction_id = (row[key] for key in _ROW_IDS)
        known = _known(history_id, content["action_histories"], name, "action_history_id", problems)
        known &= _known(instruction_id, content["instructions"], name, "instruction_id", problems)
        frame = frames.path(image, name)
        episode, timestep = (_number(row, key, name, problems) for key in ("episode_id", "timestep"))
        felt = sensor.excerpt(row, name)
        if known and frame and history_id in histories and instruction_id in instructions:
            sentence, history = instructions[instruction_id], histories[history_id]
            samples.append(Sample(name, frame, sentence, history, episode, timestep, felt))
    _refuse(problems, sizes)
    _require_samples(samples, skipped, path)
    return Dataset(
        path,
        folder,
        "keyed",
        tuple(samples),
        histories,
        instructions,
        skipped,
        *_tuple(sizes),
        metadata=metadata,
        sensor=sensor.rows,
    )


def _legacy(content: Mapping[str, Any], path: Path, images: Path | str | None) -> Dataset:
    metadata = _metadata(content, path)
    problems = _Problems(path)
    rows = list(_legacy_rows(content, problems))
    used, skipped = _split(rows, _LEGACY_ROW, problems)
    sizes = _sizes(metadata, [row["action_history"] for _, row in used], path)
    folder = images_folder(metadata, path, images)
    frames, sensor = _Frames(folder, problems), SensorReader(metadata, path, problems.add)
    distinct: dict[bytes, str] = {}
    histories: dict[str, Window] = {}
    instructions: dict[str, str] = {}
    samples = []
    for name, row in used:
        image, history, sentence = (row[key] for key in _LEGACY_ROW)
        window, frame = _window(history, sizes, name, problems), frames.path(image, name)
        episode, timestep = (_number(row, key, name, problems) for key in ("episode_id", "timestep"))
        felt = sensor.excerpt(row, name)
        if not _is_sentence(sentence, name, problems) or window is None or frame is None:
            continue
        key = distinct.setdefault(window.tobytes(), f"action_{len(distinct)}")
        shared = histories.setdefault(key, window)
        instructions.setdefault(sentence, sentence)
        samples.append(Sample(name, frame, sentence, shared, episode, timestep, felt))
    _refuse(problems, sizes)
    _require_samples(samples, skipped, path)
    numbered = {f"instr_{index}": sentence for index, sentence in enumerate(instructions)}
    return Dataset(
        path,
        folder,
        "legacy",
        tuple(samples),
        histories,
        numbered,
        skipped,
        *_tuple(sizes),
        metadata=metadata,
        sensor=sensor.rows,
    )


def _tuple(sizes: _Sizes) -> tuple[int, int, float]:
    return sizes.history_length, sizes.action_dim, sizes.padding_value


def _refuse(problems: _Problems, sizes: _Sizes) -> None:
    problems.refuse(
        f"windows of {sizes.history_length} steps of {sizes.action_dim} finite numbers, ids and "
        "sensor windows that exist, and images inside the images folder",
        "correct these entries, or generate the data set again",
    )


def _refuse_documented_schema(content: Mapping[str, Any], path: Path) -> None:
    wanted = {"action_histories": dict, "instructions": dict, "samples": list}
    wrong = [f"{key} is {_kind(content[key])}" for key, kind in wanted.items() if not isinstance(content[key], kind)]
    if wrong:
        raise DatasetError(
            "the file is not a data set of a known form",
            where=path,
            expected="action_histories and instructions as objects keyed by id, samples as a list",
            found=wrong,
            fix="lists of objects with id, actions and text appear in a README of the published system, but none of "
            "its programs reads or writes them: generate the file with its generator",
        )


def _metadata(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    metadata = content.get("_metadata", {})
    if not isinstance(metadata, dict):
        raise DatasetError("_metadata is not an object", where=path, expected="an object", found=_kind(metadata))
    return metadata


def _sizes(metadata: Mapping[str, Any], windows: Iterable[object], path: Path) -> _Sizes:
    """Sizes as stated; what the file does not state is read from its first window that is one."""
    grids = ((len(rows), len(rows[0])) for rows in windows if isinstance(rows, list) and _is_grid(rows))
    steps, width = next(grids, (1, 1))
    stated = {
        "history_length": metadata.get("total_window_size", metadata.get("history_length", steps)),
        "action_dim": metadata.get("action_dim", width),
    }
    wrong = [f"{key} is {value!r}" for key, value in stated.items() if type(value) is not int or value < 1]
    padding = metadata.get("padding_value", DEFAULT_PADDING_VALUE)
    if type(padding) not in (int, float) or not abs(padding) <= MAX_PADDING:
        wrong.append(f"padding_value is {padding!r}")
    if wrong:
        raise DatasetError(
            "_metadata is not usable", where=path, expected="positive whole numbers, a finite padding", found=wrong
        )
    return _Sizes(**stated, padding_value=float(padding))


def _is_grid(rows: list[Any]) -> bool:
    return bool(rows) and all(isinstance(row, list) and row and len(row) == len(rows[0]) for row in rows)


def _window(rows: object, sizes: _Sizes, where: str, problems: _Problems) -> Window | None:
    if not isinstance(rows, list) or not _is_grid(rows):
        problems.add(f"{where}: no list of equally long steps")
        return None
    if (len(rows), len(rows[0])) != (sizes.history_length, sizes.action_dim):
        problems.add(f"{where}: {len(rows)} steps of {len(rows[0])} numbers")
        return None
    if any(type(value) not in (int, float) for row in rows for value in row):
        problems.add(f"{where}: holds something that is not a number")
        return None
    try:
        with np.errstate(over="ignore"):  # what overflows float32 is reported as not finite
            window = np.asarray(rows, np.float64).astype(np.float32)
    except OverflowError:  # an integer beyond float64
        problems.add(f"{where}: numbers that are not finite in float32")
        return None
    if not np.isfinite(window).all():
        problems.add(f"{where}: numbers that are not finite in float32")
        return None
    window.setflags(write=False)
    return window


def _instructions(entries: Mapping[str, Any], problems: _Problems) -> dict[str, str]:
    return {
        name: sentence
        for name, sentence in entries.items()
        if _is_sentence(sentence, f"instructions[{name!r}]", problems)
    }


def _is_sentence(sentence: object, where: str, problems: _Problems) -> bool:
    if isinstance(sentence, str) and sentence.strip():
        return True
    problems.add(f"{where}: {sentence!r:.60} is no instruction")
    return False


def _legacy_groups(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != "_metadata"}


def _legacy_rows(content: Mapping[str, Any], problems: _Problems) -> Iterator[tuple[str, object]]:
    for instruction, group in _legacy_groups(content).items():
        if not isinstance(group["samples"], list):
            problems.add(f"{instruction!r}: samples is {_kind(group['samples'])}")
            continue
        for index, row in enumerate(group["samples"]):
            stated = row if not isinstance(row, dict) else {"language_instruction": instruction} | row
            yield f"{instruction!r}.samples[{index}]", stated


def _split(
    rows: list[tuple[str, Any]], required: tuple[str, ...], problems: _Problems
) -> tuple[list[tuple[str, dict[str, Any]]], tuple[Skipped, ...]]:
    """Rows to use, and those that the published readers pass over because something in them is empty."""
    used, skipped = [], []
    for name, row in rows:
        if not isinstance(row, dict):
            problems.add(f"{name}: {_kind(row)} instead of an object")
        elif empty := [key for key in required if not row.get(key)]:
            skipped.append(Skipped(name, f"no {' and no '.join(empty)}"))
        else:
            used.append((name, row))
    return used, tuple(skipped)


def _known(id_: object, entries: Mapping[str, Any], name: str, key: str, problems: _Problems) -> bool:
    if isinstance(id_, str) and id_ in entries:
        return True
    problems.add(f"{name}: {key} {id_!r:.60} does not exist")
    return False


def _number(row: Mapping[str, Any], key: str, name: str, problems: _Problems) -> int | None:
    value = row.get(key)
    if value is None or type(value) is int:
        return value
    problems.add(f"{name}: {key} {value!r:.60} is not a whole number")
    return None


def _require_samples(samples: list[Sample], skipped: tuple[Skipped, ...], path: Path) -> None:
    if not samples:
        raise DatasetError(
            "the data set has no samples",
            where=path,
            found=f"{len(skipped)} rows, all of them without an image, a window or an instruction" if skipped else None,
            fix="generate it again, and look for what the generator skipped",
        )


class _Frames:
    """Turns image names into paths; each name is checked once, however many samples use it."""

    def __init__(self, folder: Path, problems: _Problems) -> None:
        self._folder = folder
        self._problems = problems
        self._known: dict[str, str | None] = {}

    def path(self, name: object, where: str) -> Path | None:
        if not isinstance(name, str):
            self._problems.add(f"{where}: image name is {_kind(name)}")
            return None
        if name not in self._known:
            self._known[name] = image_problem(self._folder, name)
        if problem := self._known[name]:
            self._problems.add(f"{where}: image {name!r:.60} {problem}")
            return None
        return self._folder / name
