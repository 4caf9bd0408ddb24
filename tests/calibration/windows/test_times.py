"""Files of times are read line by line, and lines that hold something else are named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trunkline.calibration.windows.times import read_times
from trunkline.runtime.errors import DatasetError


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "times.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "text",
    [
        "1700000000.125\n1.5e9\n-3",
        "\ufeffrecv_timestamp,origin_timestamp\n1700000000.125,1\n1.5e9,2\n\n-3,nan\n",
        "# camera\n\n  1700000000.125 left.jpg\n1.5e9\tright.jpg\n-3\n",
        "1700000000.125;x\r\n1.5e9;y\r\n-3;z",
    ],
    ids=["plain", "table", "names", "semicolons"],
)
def test_moments(tmp_path: Path, text: str) -> None:
    found = read_times(written(tmp_path, text), 1)
    assert found.dtype == np.float64
    assert found.tolist() == [1700000000.125, 1.5e9, -3.0]


@pytest.mark.parametrize(
    ("text", "columns", "wrong"),
    [
        ("1700000000,125\n1700000001,25", 1, [1, 2]),
        ("time\n12,5\n13", 1, [2]),
        ("12,5;3", 1, [1]),
        ("-0,5e1 left.jpg", 1, [1]),
        ("12.5\n13,5", 1, [2]),  # the point settles nothing: there is a column more
        ("1,30\n2,60", 1, [1, 2]),  # seconds and frames, or not
        ("12,5 13,5", 2, [1]),
        ("12,5;13,5", 2, [1]),
        ("12,5,13,5", 2, [1]),
        ("1,2,3", 2, [1]),
        ("1 2,5", 2, [1]),
    ],
)
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_commas_that_may_be_decimal_are_refused(
    tmp_path: Path, text: str, columns: int, wrong: list[int], newline: str
) -> None:
    """Read as columns, 12,5 would be 12 s: a window half a second off."""
    with pytest.raises(DatasetError, match=r"decimals with a point \(12\.5, also 12\.0\)") as caught:
        read_times(written(tmp_path, text.replace("\n", newline)), columns)
    lines = text.split("\n")
    assert caught.value.found == [f"line {n}: {lines[n - 1]!r}: a decimal comma, or two columns" for n in wrong]


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("1, 30\n2, 60", 1, [1.0, 2.0]),
        ("12.5,3\n13,4\n14.25,5", 1, [12.5, 13.0, 14.25]),  # whole seconds among others of the same table
        ("12,left_5,5.jpg", 1, [12.0]),
        ("1e1,5", 1, [10.0]),
        ("12,-5", 1, [12.0]),
        ("12,", 1, [12.0]),
        ("1,2", 2, [[1.0, 2.0]]),  # one number would be too few
        ("0.5,1,7\n1,2,8", 2, [[0.5, 1.0], [1.0, 2.0]]),
    ],
)
def test_commas_that_can_only_divide(tmp_path: Path, text: str, columns: int, expected: list[Any]) -> None:
    assert read_times(written(tmp_path, text), columns).tolist() == expected


def test_intervals(tmp_path: Path) -> None:
    assert read_times(written(tmp_path, "start,end\n1,2\n2.5, 3,x"), 2).tolist() == [[1.0, 2.0], [2.5, 3.0]]


@pytest.mark.parametrize(
    ("text", "columns", "words"),
    [
        ("", 1, ["no times"]),
        ("time\n", 1, ["no times"]),
        ("time\n1\nnow\n2\nnan\n", 1, ["line 3: 'now'", "line 5: 'nan'", "a time in seconds on each line"]),
        ("1,2\n3\n4,x\n", 2, ["line 2: '3'", "line 3: '4,x'", "a start and an end"]),
        ("1\n2\n", 2, ["line 1: '1'"]),
    ],
)
def test_lines_that_hold_something_else(tmp_path: Path, text: str, columns: int, words: list[str]) -> None:
    with pytest.raises(DatasetError, match="a file of times cannot be used") as caught:
        read_times(written(tmp_path, text), columns)
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match="No such file"):
        read_times(tmp_path / "none.txt", 1)
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe1")
    with pytest.raises(DatasetError, match="not UTF-8"):
        read_times(tmp_path / "a.txt", 1)
    monkeypatch.setattr("trunkline.calibration.windows.times.MAX_FILE_BYTES", 1)
    with pytest.raises(DatasetError, match="too large"):
        read_times(tmp_path / "a.txt", 1)
