"""Reads the times to cut windows at: a text file with one moment, or one interval, per line.

Numbers are seconds, separated by commas, semicolons or blanks; of a table with more columns the first are read. A first
line without numbers is a heading. Empty lines and lines that begin with ``#`` are left out.

``12,5`` may be one number or two. Where the line has enough numbers either way it is refused, unless another line of as
many columns writes its decimals with a point.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import DatasetError
from trunkline.runtime.record import shortened, shown

#: Room for a million lines and more.
MAX_FILE_BYTES = 256_000_000
_SEPARATOR = re.compile(r"[,;\s]+")
#: What a line holds if a comma between digits is a decimal one.
_WITH_COMMAS = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?(?![^,;\s])|[^,;\s]+")


def read_times(path: Path, columns: int) -> NDArray[np.float64]:
    """Moments (N,) for one column, intervals (N, 2) for two; float64 seconds.

    Raises:
        DatasetError: the file cannot be read, or lines hold something else; all of them are listed.
    """
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if line and not line.startswith("#")]
    rows, problems = [], _ambiguous(lines, columns)
    for place, (number, line) in enumerate(lines):
        values = [_number(text) for text in _SEPARATOR.split(line)[:columns]]
        found = [value for value in values if value is not None]
        if len(found) == columns:
            rows.append(found)
        elif place or found:
            problems.append(f"line {number}: {shown(line)}")
    if problems or not rows:
        raise DatasetError(
            "a file of times cannot be used",
            where=path,
            expected="a time in seconds on each line" if columns == 1 else "a start and an end in seconds on each line",
            found=shortened(problems) or "no times",
            fix="write one window per line, decimals with a point (12.5, also 12.0), and a blank behind commas between "
            "columns",
        )
    times = np.array(rows, np.float64)
    return times[:, 0] if columns == 1 else times


def _ambiguous(lines: Sequence[tuple[int, str]], columns: int) -> list[str]:
    """Lines whose commas may be decimal ones."""
    settled = {len(fields) for _, line in lines if "." in "".join((fields := _SEPARATOR.split(line))[:columns])}
    return [
        f"line {number}: {shown(line)}: a decimal comma, or two columns"
        for number, line in lines
        if len(found := _WITH_COMMAS.findall(line)) >= columns
        and "," in "".join(found[:columns])
        and len(_SEPARATOR.split(line)) not in settled
    ]


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise DatasetError("a file of times is too large", where=path, found=f"{path.stat().st_size} bytes")
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        found = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise DatasetError("cannot read a file of times", where=path, found=found, fix="check the path") from error


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
