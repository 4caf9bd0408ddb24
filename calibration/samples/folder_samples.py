"""Samples from a plain folder: pictures, and a text file with what the robot is told.

::

    calibration/
      frame_000.jpg        any names; JPEG, PNG, BMP, PPM or TIFF, directly in the folder
      frame_001.jpg
      instructions.txt     UTF-8, one instruction per line
      candidates.npy       optional: windows of real actions (M, H, A); or candidates.json, a list of M windows

Pictures are taken in the order of their names, character by character (``10.jpg`` before ``9.jpg``). As many lines as
pictures: line i belongs to picture i. Fewer lines: they are taken in turn, and ``notes`` says so. More lines than
pictures are refused, because then a picture is missing. Every sample gets a pool drawn from the windows; nobody knows
which one is right. Without windows the samples have none.

Hidden files and files of other kinds are left alone; pictures in formats that are not read are counted in ``notes``.
Links that lead out of the folder are refused.
"""

from __future__ import annotations

import random
from functools import partial
from pathlib import Path

from trunkline.calibration.evaluation import DEFAULT_POOL, DEFAULT_SEED
from trunkline.calibration.samples.candidate_file import read_candidates
from trunkline.calibration.samples.image_folder import inside
from trunkline.calibration.samples.pools import WindowPool
from trunkline.calibration.samples.sample import CalibrationSample, Picture, WindowForm
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.image import open_image

INSTRUCTIONS = "instructions.txt"
CANDIDATES = ("candidates.npy", "candidates.json")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".tif", ".tiff")
#: Pictures to people, but of formats that the runtime does not open.
OTHER_SUFFIXES = (".webp", ".gif", ".heic", ".avif", ".jxl", ".jp2")
MAX_INSTRUCTION_BYTES = 16_000_000
_LISTED = 20


class FolderSamples:
    """One sample per picture. Pools are drawn when a sample is asked for, the same ones every time.

    Any number of threads may use one.

    Attributes:
        name: of the folder.
        windows: as the candidates file has them, None without one.
        notes: what a person should know about how the folder was read.
    """

    def __init__(self, folder: Path | str, pool: int = DEFAULT_POOL, seed: int = DEFAULT_SEED) -> None:
        """Lists the folder and reads its text files; no picture is opened.

        Args:
            folder: see the module's description.
            pool: windows per sample, fewer if there are fewer.
            seed: of the pools.

        Raises:
            DatasetError: it holds no pictures or no instructions, or what it holds cannot be used.
        """
        folder = Path(folder)
        self.name = folder.resolve().name
        names = _names(folder)
        pictures = [name for name in names if name.lower().endswith(SUFFIXES)]
        _require_pictures(pictures, names, folder)
        self._instructions = _instructions(folder, len(pictures))
        self._pictures = [Picture(name, partial(open_image, folder / name)) for name in pictures]
        self._pool, self._seed = pool, seed
        self._windows = _windows(folder)
        self.notes = tuple(_notes(names, len(pictures), len(self._instructions)))
        self.windows: WindowForm | None = None
        if self._windows is not None:
            steps, width = self._windows.shape
            self.windows = WindowForm(steps, width, None)

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> CalibrationSample:
        picture = self._pictures[index]
        instruction = self._instructions[index % len(self._instructions)]
        histories = None
        if self._windows is not None:
            histories = self._windows.draw(self._pool, random.Random(f"{self._seed}: {index}"))
        return CalibrationSample(picture.name, instruction, picture, histories)


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(
            "cannot list a folder of samples", where=folder, found=error.strerror, fix="check the path"
        ) from error


def _require_pictures(pictures: list[str], names: list[str], folder: Path) -> None:
    if not pictures:
        documents = [name for name in names if name.endswith(".json") and name not in CANDIDATES]
        raise DatasetError(
            "the folder holds no pictures",
            where=folder,
            expected=f"files ending in {', '.join(SUFFIXES)}, directly in it",
            found=names[:_LISTED] or "no files",
            fix=f"if {documents[0]} is a data set, name the file" if documents else "put the camera's frames there",
        )
    outside = [name for name in pictures if not inside(folder / name, folder)]
    if outside:
        raise DatasetError(
            "pictures are links that lead out of the folder",
            where=folder,
            found=outside[:_LISTED] + ([f"and {len(outside) - _LISTED} more"] if len(outside) > _LISTED else []),
            fix="copy the files themselves",
        )


def _instructions(folder: Path, pictures: int) -> list[str]:
    lines = [line.strip() for line in _text(folder / INSTRUCTIONS, folder).split("\n")]
    while lines and not lines[-1]:
        lines.pop()
    empty = [f"line {number} is empty" for number, line in enumerate(lines, 1) if not line]
    if empty or not lines or len(lines) > pictures:
        more = [f"{len(lines)} lines for {pictures} pictures"] if len(lines) > pictures else []
        raise DatasetError(
            "the instructions do not fit the pictures",
            where=folder / INSTRUCTIONS,
            expected="one instruction per line: one for each picture, in the order of the names, or fewer that are "
            "taken in turn",
            found=(more + empty[:_LISTED]) or "no lines",
            fix="add the missing pictures or remove the lines" if more else "write an instruction on every line",
        )
    return lines


def _text(path: Path, folder: Path) -> str:
    try:
        if not path.is_file() or not inside(path, folder):
            found = "a link that leads out of the folder" if path.is_file() else "no such file"
            raise DatasetError(
                "the folder says not what the robot is told", where=path, found=found, fix="write one line per picture"
            )
        size = path.stat().st_size
        if size > MAX_INSTRUCTION_BYTES:
            raise DatasetError(
                "the file of instructions is too large",
                where=path,
                expected=f"at most {MAX_INSTRUCTION_BYTES} bytes",
                found=f"{size} bytes",
            )
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(
            "the instructions cannot be read",
            where=path,
            expected="a text file in UTF-8",
            found="bytes that are not UTF-8" if isinstance(error, UnicodeDecodeError) else error.strerror,
            fix="save it again as UTF-8, and check its permissions",
        ) from error


def _windows(folder: Path) -> WindowPool | None:
    present = [folder / name for name in CANDIDATES if (folder / name).exists()]
    if len(present) > 1:
        raise DatasetError(
            "the folder holds two files of windows", where=folder, found=list(CANDIDATES), fix="remove one of them"
        )
    if not present:
        return None
    windows = WindowPool(read_candidates(present[0], folder))
    if len(windows) < 2:
        raise DatasetError("the windows leave nothing to choose from", where=present[0], found="all windows are equal")
    return windows


def _notes(names: list[str], pictures: int, instructions: int) -> list[str]:
    notes = []
    if instructions < pictures:
        notes.append(f"{INSTRUCTIONS} has {instructions} lines for {pictures} pictures: they are taken in turn")
    other = [name for name in names if name.lower().endswith(OTHER_SUFFIXES)]
    if other:
        notes.append(f"{len(other)} pictures are in formats that are not read, e.g. {other[0]}")
    return notes
