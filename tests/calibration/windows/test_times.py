"""Files of times are read line by line, and lines that hold something else are named."""

from __future__ import annotations

from pathlib import Path

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
