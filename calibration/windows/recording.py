"""Recordings of a fast sensor, in the two forms that the published programs write.

*raw*
    ``timestamps`` float64 (N,) seconds, ``forces`` float32 (N,), ``alines`` float32 (N, A): every sample of the stream.
*windowed*
    ``timestamps`` float64 (N,) seconds, ``data`` float32 (N, T, C): windows that somebody cut, each with the stamp of
    its last sample.

Both forms are called ``sensor_data*.npz``, so that only their keys tell them apart. Other keys, such as
``send_timestamps``, are ignored. Numbers stay in the file until they are asked for. A recording that does not fit
together is refused with everything that is wrong; a NaN is found when its samples are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.windows.npz_file import NpzFile
from trunkline.calibration.windows.rates import overlap_rate_hz, stamps_rate_hz
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.progress import Progress, silent

Rows = NDArray[np.float32]
Stamps = NDArray[np.float64]

RAW_KEYS = ("timestamps", "forces", "alines")
WINDOWED_KEYS = ("timestamps", "data")
#: Seconds whose nanoseconds an int64 holds.
MAX_STAMP_S = 9e9
_LISTED = 5


class RawRecording:
    """A stream, sample by sample. Any number of threads may read one.

    Attributes:
        path: the file.
        stamps: (N,) float64 seconds on the sensor's clock, strictly ascending, in memory.
        channels: C, the force and A numbers of the A-scan.
        rate_hz: as the stamps say; None for a single sample.
    """

    form = "raw"

    def __init__(self, npz: NpzFile) -> None:
        """Raises DatasetError, with everything that does not fit together."""
        self.path = npz.path
        arrays = _arrays(npz, {"timestamps": ("float64", 1), "forces": ("float32", 1), "alines": ("float32", 2)})
        self._npz = npz
        self._forces, self._alines = arrays["forces"], arrays["alines"]
        self.stamps = _stamps(arrays["timestamps"], npz.path)
        self.channels = 1 + self._alines.shape[1]
        self.rate_hz = stamps_rate_hz(self.stamps)

    def __len__(self) -> int:
        return len(self.stamps)

    def samples(self, start: int, stop: int) -> Rows:
        """Samples ``start`` to ``stop``, the latter excluded: (stop - start, C) float32, force first, a copy.

        Raises:
            DatasetError: NaN or infinite values among them.
        """
        rows = np.empty((stop - start, self.channels), np.float32)
        self._npz.file.handing_out(rows.nbytes)
        rows[:, 0] = self._forces[start:stop]
        rows[:, 1:] = self._alines[start:stop]
        _require_finite(rows, self.path, "sample", start)
        return rows

    def check(self, progress: Progress = silent) -> None:
        """Reads everything once and compares checksums. Raises DatasetError if the file is damaged."""
        self._npz.check(RAW_KEYS, progress)

    def require_unchanged(self) -> None:
        """Raises DatasetError if somebody wrote to the file, or exchanged it, since it was opened."""
        self._npz.file.require_unchanged()


class WindowedRecording:
    """Windows that somebody cut. Any number of threads may read one.

    Attributes:
        path: the file.
        stamps: (N,) float64 seconds, strictly ascending: those of each window's last sample, by the form's own word.
        samples_per_window: T.
        channels: C.
        rate_hz: as overlapping windows say; None where they do not overlap. Nothing in the file states it.
    """

    form = "windowed"

    def __init__(self, npz: NpzFile) -> None:
        """Raises DatasetError, with everything that does not fit together."""
        self.path = npz.path
        arrays = _arrays(npz, {"timestamps": ("float64", 1), "data": ("float32", 3)})
        self._npz, self._data = npz, arrays["data"]
        self.stamps = _stamps(arrays["timestamps"], npz.path)
        _, self.samples_per_window, self.channels = self._data.shape
        self.rate_hz = overlap_rate_hz(self._data, self.stamps)

    def __len__(self) -> int:
        return len(self.stamps)

    def window(self, index: int) -> Rows:
        """Window ``index``: (T, C) float32, a copy.

        Raises:
            DatasetError: NaN or infinite values in it.
        """
        rows = np.empty(self._data.shape[1:], np.float32)
        self._npz.file.handing_out(rows.nbytes)
        rows[:] = self._data[index]  # copied: what lies in an archive is not aligned
        _require_finite(rows, self.path, f"window {index}, sample", 0)
        return rows

    def check(self, progress: Progress = silent) -> None:
        """Reads everything once and compares checksums. Raises DatasetError if the file is damaged."""
        self._npz.check(WINDOWED_KEYS, progress)

    def require_unchanged(self) -> None:
        """Raises DatasetError if somebody wrote to the file, or exchanged it, since it was opened."""
        self._npz.file.require_unchanged()


Recording = RawRecording | WindowedRecording


def open_recording(path: Path | str) -> Recording:
    """Opens a recording of either form; its samples are not read.

    Raises:
        DatasetError: the file is missing, damaged, or of neither form; everything wrong is listed.
    """
    npz = NpzFile(Path(path))
    raw, windowed = "alines" in npz.names, "data" in npz.names
    if raw == windowed:
        raise DatasetError(
            "the file is not a sensor recording of a known form",
            where=npz.path,
            expected="timestamps, forces and alines (raw), or timestamps and data (windowed)",
            found="both alines and data" if raw else "keys " + (", ".join(map(repr, npz.names[:8])) or "none"),
            fix="name the recorder's own file",
        )
    return RawRecording(npz) if raw else WindowedRecording(npz)


def _arrays(npz: NpzFile, wanted: dict[str, tuple[str, int]]) -> dict[str, NDArray[Any]]:
    problems = list(_form_problems(npz, wanted))
    if problems:
        raise _refused(npz.path, problems)
    return {name: npz.array(name) for name in wanted}


def _form_problems(npz: NpzFile, wanted: dict[str, tuple[str, int]]) -> Iterator[str]:
    """What is missing, of another kind, or of another length than the stamps."""
    lengths = {}
    for name, (dtype, dimensions) in wanted.items():
        if name not in npz.names:
            yield f"no {name}"
            continue
        header = npz.header(name)
        if header.dtype != np.dtype(dtype) or len(header.shape) != dimensions:
            yield f"{name} is {header.dtype} {header.shape} instead of {dtype} with {dimensions} dimensions"
        elif 0 in header.shape:
            yield f"{name} is empty: {header.shape}"
        else:
            lengths[name] = header.shape[0]
    if len(set(lengths.values())) > 1:
        yield "lengths differ: " + ", ".join(f"{count} {name}" for name, count in lengths.items())


def _stamps(mapped: NDArray[Any], path: Path) -> Stamps:
    stamps = np.array(mapped, np.float64)
    wrong = np.flatnonzero(~(np.abs(stamps) <= MAX_STAMP_S))
    problems = [f"timestamps[{index}] is {stamps[index]!r}" for index in wrong[:_LISTED].tolist()]
    if not problems:
        steps = np.diff(stamps)
        wrong = np.flatnonzero(steps <= 0) + 1
        problems = [
            f"timestamps[{index}] is {-steps[index - 1]:g} s before the one before it" if steps[index - 1]
            else f"timestamps[{index}] equals the one before it"
            for index in wrong[:_LISTED].tolist()
        ]  # fmt: skip
    if problems:
        more = len(wrong) - _LISTED
        raise _refused(path, problems + ([f"and {more} more"] if more > 0 else []))
    return stamps


def _require_finite(rows: Rows, path: Path, what: str, start: int) -> None:
    if np.isfinite(rows.sum(dtype=np.float64)):  # float64 has room for any number of float32
        return
    row, channel = np.argwhere(~np.isfinite(rows))[0].tolist()
    raise _refused(path, f"{what} {start + row}, channel {channel}: {rows[row, channel]}")


def _refused(path: Path, found: object) -> DatasetError:
    return DatasetError(
        "a sensor recording cannot be used",
        where=path,
        expected="finite numbers under ascending stamps in seconds: timestamps float64 (N,) with forces float32 (N,) "
        "and alines float32 (N, A), or with data float32 (N, T, C)",
        found=found,
        fix="sort the samples by their stamps, drop repeated and broken ones, and write the file again",
    )
