"""Windows read back from a store: mapped, one at a time, in bounded memory.

A store is opened only if its record is whole and of this version, and its files have the sizes that were written; the
small index is hashed, too, the data only where ``recheck`` asks for it. Handing over a key, or the recording that the
windows should be of, refuses a store of anything else.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from trunkline.calibration.windows.batches import Batches
from trunkline.calibration.windows.mapped_file import MappedFile
from trunkline.calibration.windows.storage import decode, encoded_bytes
from trunkline.calibration.windows.store_record import (
    INDEX_NAME,
    RECORD_NAME,
    FileFacts,
    Resolution,
    data_name,
    malformed,
    read_record,
)
from trunkline.runtime.errors import DatasetError, InputError
from trunkline.runtime.files import sha256_of
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.sensor.window import Rows, SensorWindow

MAX_RECORD_BYTES = 1 << 20
#: 24 bytes and more for each of up to 16 million windows.
MAX_INDEX_BYTES = 1 << 30
_INDEX = ("lengths", "rows", "missing", "stamps_ns", "moments")

Integers = NDArray[np.int64]


class WindowStore:
    """The windows of a store at one of its resolutions. Any number of threads may read one.

    Pickling sends the path and the key; the receiver opens the files itself, as do worker processes of a data loader. A
    forked child may go on using what it inherits.

    Attributes:
        path: the directory.
        record: what the store was made of, and how exact it is.
        steps: the resolution; 0 for windows as they were cut.
        lengths: (W,) int64 rows of each window at this resolution.
        rows: (W,) int64 samples of the stream in each window before it was resampled; padding does not count.
        stamps_ns: (W,) int64 nanoseconds on the sensor's clock, of each window's last sample.
        moments: (W,) int64 which of the times each window was cut at: 0, 1, 2... unless some were skipped.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        steps: int | None = None,
        key: str | None = None,
        recording: Path | str | None = None,
        recheck: bool = False,
        progress: Progress = silent,
    ) -> None:
        """Opens and checks a store.

        Args:
            path: the directory that ``build_store`` wrote.
            steps: which resolution; by default the first.
            key: the only key that will do.
            recording: the only recording that will do; it is hashed.
            recheck: hash the data, too.
            progress: told about hashing.

        Raises:
            DatasetError: there is no store, it is damaged, or of something else.
            InputError: it has no such resolution.
        """
        self.path = Path(path).absolute()
        self.record = read_record(_read(self.path / RECORD_NAME, MAX_RECORD_BYTES), self.path / RECORD_NAME)
        self._require_key(key)
        if recording is not None:
            self._require_recording(Path(recording), progress)
        self._resolution = self._chosen(steps)
        self.steps = self._resolution.steps
        self._data = MappedFile(self.path / data_name(self.steps))
        index = self._index()
        self.rows, self._missing = index["rows"], index["missing"]
        self.stamps_ns, self.moments = index["stamps_ns"], index["moments"]
        self._cut_lengths = index["lengths"]
        self.lengths = np.full_like(self._cut_lengths, self.steps) if self.steps else self._cut_lengths
        self._offsets = self._checked_offsets()
        if recheck:
            self._recheck(progress)

    def __len__(self) -> int:
        return self.record.windows

    def __getitem__(self, index: int) -> SensorWindow:
        """Window ``index``.

        Its samples are read-only; of a float32 store they are a view of the file. The rate is that of the window's
        rows: a second of 650 Hz in 65 rows has 65 Hz.

        Raises:
            IndexError: there is no such window.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        samples = self._samples(index % len(self))
        samples.setflags(write=False)
        share = len(samples) / float(self._cut_lengths[index])
        return SensorWindow(
            samples,
            self.record.form.rate_hz * share,
            end_ns=int(self.stamps_ns[index]),
            missing=round(int(self._missing[index]) * share),
        )

    def stack(self, indices: Sequence[int]) -> Rows:
        """Windows of one length as an array of their own: (B, T, C) float32.

        Raises:
            InputError: they have several lengths, or there are none.
        """
        lengths = {int(self.lengths[index]) for index in indices}
        if len(lengths) != 1:
            raise InputError(
                "windows cannot be stacked",
                expected="one length, at least one window",
                found=sorted(lengths),
                fix="take indices from batches(), which groups windows by length",
            )
        result = np.empty((len(indices), lengths.pop(), self.record.form.channels), np.float32)
        for place, index in enumerate(indices):
            result[place] = self[index].samples
        return result

    def batches(self, size: int, seed: int | None = None) -> Batches:
        """Indices in batches of windows of one length, shuffled anew for each pass if a seed is given.

        Raises:
            InputError: ``size`` is under 1.
        """
        return Batches(self.lengths, size, seed)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "steps": self.steps, "key": self.record.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _samples(self, index: int) -> Rows:
        start, length = int(self._offsets[index]), int(self.lengths[index])
        size_bytes = int(self._offsets[index + 1]) - start
        self._data.handing_out(size_bytes)
        content = self._data.array(start, (size_bytes,), np.dtype(np.uint8))
        return decode(content, self.record.storage, length, self.record.form.channels)

    def _chosen(self, steps: int | None) -> Resolution:
        found = {each.steps: each for each in self.record.resolutions}
        if steps is not None and steps not in found:
            raise InputError(
                "a store has no such resolution",
                where=self.path,
                expected=" or ".join(map(str, found)),
                found=steps,
                fix="build it with this resolution among the others",
            )
        return self.record.resolutions[0] if steps is None else found[steps]

    def _require_key(self, key: str | None) -> None:
        if key is not None and key != self.record.key:
            raise DatasetError(
                "a store holds other windows than are wanted",
                where=self.path,
                expected=f"key {key[:16]}",
                found=f"key {self.record.key[:16]}: another recording, form, cut or storage",
                fix="build it again, replacing this one, or beside it",
            )

    def _require_recording(self, recording: Path, progress: Progress) -> None:
        progress("reading the recording", 0, 1)
        try:
            sha256 = sha256_of(recording)
        except OSError as error:
            raise DatasetError("cannot read a recording", where=recording, found=error.strerror) from error
        if sha256 != self.record.recording.sha256:
            raise DatasetError(
                "a store holds windows of another recording",
                where=self.path,
                expected=f"{recording}, sha256 {sha256[:16]}",
                found=f"sha256 {self.record.recording.sha256[:16]}",
                fix="build it again from this recording",
            )

    def _index(self) -> dict[str, Integers]:
        where, facts = self.path / INDEX_NAME, self.record.index
        content = _read(where, MAX_INDEX_BYTES)
        if FileFacts(len(content), hashlib.sha256(content).hexdigest()) != facts:
            raise malformed(where, "another size or digest than the record says")
        try:
            index = dict(load_safetensors(content))
        except SafetensorError as error:
            raise malformed(where, str(error)) from error
        form = (np.dtype(np.int64), (self.record.windows,))
        if set(index) != set(_INDEX) or any((each.dtype, each.shape) != form for each in index.values()):
            raise malformed(where, "other arrays than the format has")
        for each in index.values():
            each.setflags(write=False)
        return index

    def _checked_offsets(self) -> Integers:
        """Where windows begin in the file, and where it ends: (W + 1,)."""
        expected = self._resolution.data.size
        if self._data.size != expected:
            raise malformed(self._data.path, f"{self._data.size} bytes, {expected} recorded")
        limit = expected // self.record.form.channels
        if self.lengths.min() < 1 or self.lengths.max() > limit or self.rows.min() < 1 or self._cut_lengths.min() < 1:
            raise malformed(self.path / INDEX_NAME, "windows longer than the data, or without rows")
        storage, channels = self.record.storage, self.record.form.channels
        sizes = {length: encoded_bytes(storage, length, channels) for length in set(self.lengths.tolist())}
        offsets = np.zeros(len(self) + 1, np.int64)
        np.cumsum([sizes[length] for length in self.lengths.tolist()], out=offsets[1:])
        if offsets[-1] != expected:
            raise malformed(self.path / INDEX_NAME, f"windows of {offsets[-1]} bytes in a file of {expected}")
        return offsets

    def _recheck(self, progress: Progress) -> None:
        """Raises DatasetError if any data of the store, at any resolution, is not what was written."""
        for place, each in enumerate(self.record.resolutions):
            progress("checking digests", place, len(self.record.resolutions))
            file = self.path / data_name(each.steps)
            if sha256_of(file) != each.data.sha256:
                raise malformed(file, "another digest than the record says")


def _read(path: Path, most: int) -> bytes:
    """A small file of a store."""
    try:
        if not path.is_file():
            raise DatasetError(
                "this is not a store of windows",
                where=path.parent,
                expected=path.name,
                found="no such file",
                fix="name the directory that `trunkline windows` wrote",
            )
        if path.stat().st_size > most:
            raise malformed(path, f"{path.stat().st_size} bytes: too large")
        return path.read_bytes()
    except OSError as error:
        raise DatasetError("cannot read a store of windows", where=path, found=error.strerror) from error
