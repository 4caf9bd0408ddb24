"""Reads the times to cut windows at: a text file with one moment, or one interval, per line.

Numbers are seconds, separated by commas, semicolons or blanks; of a table with more columns the first are read. A first
line without numbers is a heading. Empty lines and lines that begin with ``#`` are left out.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import DatasetError
from trunkline.runtime.record import shortened, shown

#: Room for a million lines and more.
MAX_FILE_BYTES = 256_000_000
_SEPARATOR = re.compile(r"[,;\s]+")


def read_times(path: Path, columns: int) -> NDArray[np.float64]:
    """Moments (N,) for one column, intervals (N, 2) for two; float64 seconds.

    Raises:
        DatasetError: the file cannot be read, or lines hold something else; all of them are listed.
    """
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if line and not line.startswith("#")]
    rows, problems = [], []
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
            fix="write one window per line",
        )
    times = np.array(rows, np.float64)
    return times[:, 0] if columns == 1 else times


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
