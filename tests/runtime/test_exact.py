"""What is a stamp, a number, a plain array, and what only looks like one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trunkline.runtime.errors import InputError, SensorError
from trunkline.runtime.exact import described, fix_for, is_number, is_plain, is_whole, whole_ns

STAMPS = (0, -5, 10**18, np.int64(10**18), np.uint64(7), np.longlong(3), (1 << 63) - 1, -(1 << 63))
NO_STAMPS: tuple[Any, ...] = (
    *(None, True, np.True_, "12", b"12", 3.0, math.nan, math.inf, np.float64(5), np.float32(5)),
    *(np.int32(7), np.uint32(7), np.int8(1), 1 << 63, -(1 << 63) - 1, np.uint64(1 << 63)),
    *(np.array(3), np.array([3]), [3], np.datetime64(5, "ns"), np.timedelta64(5, "ns")),
)


@pytest.mark.parametrize("stamp", STAMPS, ids=repr)
def test_stamps(stamp: Any) -> None:
    found = whole_ns(stamp, "a stamp")
    assert type(found) is int
    assert found == stamp


@pytest.mark.parametrize("stamp", NO_STAMPS, ids=repr)
def test_what_is_no_stamp(stamp: Any) -> None:
    with pytest.raises(SensorError, match=r"(?s)not whole nanoseconds.*where: the camera.*fix: round") as raised:
        whole_ns(stamp, "the camera", SensorError)
    assert type(stamp).__name__ in str(raised.value.found)
    with pytest.raises(InputError):
        whole_ns(stamp, "the camera")


def test_numbers() -> None:
    assert all(map(is_number, (0, -2.5, np.float32(3), np.int8(1), 10**400)))
    assert not any(map(is_number, (math.nan, math.inf, -math.inf, np.float32(math.nan), True, "1", None, 1j)))
    assert all(map(is_whole, (0, np.int8(1), 1 << 80)))
    assert not any(map(is_whole, (True, 1.0, np.float64(1), "1", None)))


def test_plain_arrays(tmp_path: Path) -> None:
    values = np.ones((2, 3), np.float32)
    np.save(tmp_path / "values.npy", values)
    mapped = np.load(tmp_path / "values.npy", mmap_mode="r")
    assert is_plain(values)
    assert is_plain(values[::2])
    assert is_plain(mapped)
    masked, matrix = np.ma.masked_array(values), values.view(np.matrix)
    for special in (masked, matrix, values.view(np.recarray), [1.0], 3):
        assert not is_plain(special)
    assert described(matrix) == "numpy.matrix of float32 (2, 3)"
    assert described(values) == "float32 (2, 3)"
    assert described([1]) == "list"
    assert "filled" in fix_for("other", values, masked)
    assert "numpy.asarray" in fix_for("other", matrix)
    assert fix_for("other", values, None) == "other"
