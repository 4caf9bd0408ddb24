"""Arrays of an npz file, mapped where they lie uncompressed, as ``numpy.savez`` writes them.

``numpy.load`` reads a whole array at each access. A recording has gigabytes, so here only the archive's directory and
an array's header are read; the numbers stay in the file. Compressed arrays are loaded, up to 4 GB. Python objects are
never built from a file.

Checksums of mapped arrays are compared by ``check`` alone, since that reads everything.
"""

from __future__ import annotations

import math
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from trunkline.calibration.windows.mapped_file import MappedFile
from trunkline.runtime.errors import DatasetError
from trunkline.runtime.progress import Progress, silent

#: Compressed arrays cannot be mapped; a small file may claim to hold a large one.
MAX_LOADED_BYTES = 4 << 30
#: Of the archive's directory; our files have a handful of arrays.
MAX_ARRAYS = 1024
_CHUNK_BYTES = 8 << 20
_BYTE = np.dtype(np.uint8)
_LOCAL_HEADER = struct.Struct("<26x2H")
_LOCAL_HEADER_BYTES = 30
#: What a damaged archive makes zipfile and numpy raise. Encrypted members are a RuntimeError, unknown compression a
#: NotImplementedError; an array's header is a literal of Python, read with Python's own tokenizer.
_DAMAGE = (
    *(OSError, ValueError, TypeError, KeyError, EOFError, OverflowError, MemoryError, RuntimeError, SyntaxError),
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
)


@dataclass(frozen=True)
class ArrayHeader:
    """What the file says of one array.

    Attributes:
        shape: of the array.
        dtype: of its numbers.
        order: of its axes in the file.
        offset: bytes from the start of the file to the numbers, None where they are compressed.
        header_bytes: of numpy's header before the numbers.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    order: Literal["C", "F"]
    offset: int | None
    header_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of the numbers."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzFile:
    """An npz file. Arrays that nobody asks for are left alone, whatever they hold. Any number of threads may use one.

    Attributes:
        path: the file.
        file: mapped.
        names: of the arrays, such as ``data`` for the member ``data.npy``.
    """

    def __init__(self, path: Path) -> None:
        """Reads the archive's directory.

        Raises:
            DatasetError: the file is missing, truncated or no archive.
        """
        self.path = path
        self.file = MappedFile(path)
        try:
            with zipfile.ZipFile(path) as archive:
                self._members = _members(archive)
        except _DAMAGE as error:
            raise self._damaged(error) from error
        self.names = tuple(self._members)

    def header(self, name: str) -> ArrayHeader:
        """What the file says of an array.

        Raises:
            DatasetError: it is no array of numbers, or does not lie where the directory says.
            KeyError: there is no such array.
        """
        member = self._members[name]
        try:
            with zipfile.ZipFile(self.path) as archive:
                return self._header(archive, member)
        except _DAMAGE as error:
            raise self._damaged(error, name) from error

    def array(self, name: str) -> NDArray[Any]:
        """The array, read-only: mapped, or in memory where it is compressed.

        Raises:
            DatasetError: as :meth:`header`; a compressed array is damaged or larger than 4 GB.
            KeyError: there is no such array.
        """
        header = self.header(name)
        if header.offset is not None:
            return self.file.array(header.offset, header.shape, header.dtype, header.order)
        if header.size_bytes > MAX_LOADED_BYTES:
            raise DatasetError(
                "a compressed array is too large to be loaded",
                where=f"{self.path}, {name}",
                expected=f"at most {MAX_LOADED_BYTES} bytes, or an array that is not compressed",
                found=f"{header.size_bytes} bytes",
                fix="write the file with numpy.savez, not savez_compressed",
            )
        try:
            return self._load(name, header)
        except _DAMAGE as error:
            raise self._damaged(error, name) from error

    def check(self, names: Iterable[str], progress: Progress = silent) -> None:
        """Compares the checksums of mapped arrays; that of a compressed one is compared on loading.

        Raises:
            DatasetError: one differs.
        """
        starts = {name: self._start(name) for name in names}
        total, done = sum(self._members[name].file_size for name in starts), 0
        for name, start in starts.items():
            member = self._members[name]
            checksum = 0
            for place in range(0, 0 if start is None else member.file_size, _CHUNK_BYTES):
                count = min(_CHUNK_BYTES, member.file_size - place)
                self.file.handing_out(count)
                checksum = zlib.crc32(self.file.array((start or 0) + place, (count,), _BYTE).data, checksum)
                progress("checking the recording", done + place, total)
            if start is not None and checksum != member.CRC:
                raise self._damaged(f"checksum {checksum:08x} instead of {member.CRC:08x}", name)
            done += member.file_size
            progress("checking the recording", done, total)

    def _start(self, name: str) -> int | None:
        """Where a mapped member begins, its header of numpy's included."""
        header = self.header(name)
        return None if header.offset is None else header.offset - header.header_bytes

    def _header(self, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
        with archive.open(member) as content:  # compares the member's own header with the directory
            shape, order, dtype = _npy_header(content)
            header_bytes = content.tell()
        stored = member.compress_type == zipfile.ZIP_STORED
        offset = self._content(member) + header_bytes if stored else None
        header = ArrayHeader(shape, dtype, order, offset, header_bytes)
        if dtype.hasobject or min(shape, default=0) < 0 or header.size_bytes + header_bytes != member.file_size:
            raise ValueError(f"{member.filename}: dtype {dtype}, shape {shape} in {member.file_size} bytes")
        if stored and (member.compress_size != member.file_size or (offset or 0) + header.size_bytes > self.file.size):
            raise ValueError(f"{member.filename} reaches beyond the file's end")
        return header

    def _content(self, member: zipfile.ZipInfo) -> int:
        """Where the member's content begins: behind a header, part of which has a length that only it tells."""
        header = self.file.array(member.header_offset, (_LOCAL_HEADER_BYTES,), _BYTE)
        name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header.tobytes())
        return member.header_offset + _LOCAL_HEADER_BYTES + int(name_bytes) + int(extra_bytes)

    def _load(self, name: str, header: ArrayHeader) -> NDArray[Any]:
        array = np.empty(header.shape, header.dtype, header.order)
        content = array.reshape(-1, order="A").view(np.uint8).data
        with zipfile.ZipFile(self.path) as archive, archive.open(self._members[name]) as member:
            member.read(header.header_bytes)
            done = 0
            while chunk := member.read(_CHUNK_BYTES):  # the last, empty one compares the checksum
                content[done : done + len(chunk)] = chunk
                done += len(chunk)
        if done != header.size_bytes:
            raise EOFError(f"{done} of {header.size_bytes} bytes")
        array.setflags(write=False)
        return array

    def _damaged(self, problem: Exception | str, name: str | None = None) -> DatasetError:
        text = str(problem) if isinstance(problem, str) else f"{type(problem).__name__}: {problem}"
        return DatasetError(
            "the file is no npz file, or a damaged one",
            where=self.path if name is None else f"{self.path}, {name}",
            expected="arrays of numbers as numpy.savez writes them",
            found=text.splitlines()[0][:200],
            fix="copy it again; a recorder that was stopped leaves a file without its directory",
        )


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    members = archive.infolist()
    if len(members) > MAX_ARRAYS or len({member.filename for member in members}) != len(members):
        raise ValueError(f"{len(members)} members, or two of the same name")
    return {member.filename[:-4]: member for member in members if member.filename.endswith(".npy")}


def _npy_header(content: IO[bytes]) -> tuple[tuple[int, ...], Literal["C", "F"], np.dtype[Any]]:
    version = npy.read_magic(content)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"npy version {version}")
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran, dtype = read(content)
    return shape, "F" if fortran else "C", dtype
