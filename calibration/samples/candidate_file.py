"""Reads action windows that somebody put beside their pictures: an array file, or a JSON list.

Neither is trusted: arrays are mapped, so that a header cannot ask for memory that the file does not fill, and Python
objects are never built from a file.
"""

from __future__ import annotations

import json
import tokenize
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from trunkline.calibration.samples.image_folder import inside
from trunkline.runtime.errors import DatasetError

#: Some 200,000 windows of the published size.
MAX_FILE_BYTES = 64_000_000
_LISTED = 20
#: ValueError covers what is not UTF-8, not JSON, ragged, truncated or made of objects; an array file's header is a
#: literal of Python, which numpy reads with Python's own tokenizer and parser.
_READING_ERRORS = (OSError, ValueError, TypeError, OverflowError, RecursionError, SyntaxError, tokenize.TokenError)


def read_candidates(path: Path, folder: Path) -> NDArray[np.float32]:
    """The windows (M, H, A) of ``candidates.npy`` or ``candidates.json``, read-only.

    Raises:
        DatasetError: the file cannot be read, or holds something else.
    """
    if not path.is_file() or not inside(path, folder):
        found = "a link that leads out of the folder" if path.is_file() else "something that is not a file"
        raise DatasetError("cannot read a file of windows", where=path, found=found, fix="copy the file itself")
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise _refused(path, f"{path.stat().st_size} bytes, more than {MAX_FILE_BYTES}")
        array = open_memmap(path, mode="r") if path.suffix == ".npy" else _list(path)
    except _READING_ERRORS as error:
        raise _refused(path, str(error).splitlines()[0][:200] if str(error) else type(error).__name__) from error
    return _checked(array, path)


def _list(path: Path) -> NDArray[np.generic]:
    content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    return np.asarray(content)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _checked(array: NDArray[np.generic], path: Path) -> NDArray[np.float32]:
    if array.dtype.kind not in "fiu" or array.ndim != 3 or not array.size:
        raise _refused(path, f"dtype {array.dtype}, shape {array.shape}")
    with np.errstate(over="ignore"):  # what overflows float32 is reported as not finite
        windows = array.astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(windows).all(axis=(1, 2))).tolist()
    if wrong:
        more = [f"and {len(wrong) - _LISTED} more"] if len(wrong) > _LISTED else []
        raise _refused(path, [f"window {index}: NaN or infinite values" for index in wrong[:_LISTED]] + more)
    windows.setflags(write=False)
    return windows


def _refused(path: Path, found: object) -> DatasetError:
    return DatasetError(
        "the file does not hold windows of actions",
        where=path,
        expected="numbers (windows, steps, numbers per step), finite in float32",
        found=found,
        fix="write it with numpy.save, or as a JSON list of windows, each a list of steps",
    )
