"""The bytes of a segment: a preamble, then records one behind the other.

All numbers are little-endian. The preamble (32 bytes):

====== ===== ==========================================================
offset bytes content
====== ===== ==========================================================
0      8     ``8f 54 4c 4c 4f 47 0d 0a``
8      4     schema version
12     4     number of the segment, as in its file's name
16     4     session: number of the first segment of the writer that wrote this one
20     8     stamp of the segment's beginning, nanoseconds (signed)
28     4     CRC-32 of what stands before
====== ===== ==========================================================

A record is a head of 32 bytes, its payload, and a tail of 4 bytes:

====== ===== ==========================================================
offset bytes content
====== ===== ==========================================================
0      4     ``c5 54 52 9e``
4      4     length of the payload in bytes
8      8     number of the record: number of the segment times 2**32, plus its place in it, from 0
16     8     stamp of the writing, nanoseconds (signed)
24     2     kind
26     2     zero
28     4     CRC-32 of the head up to here
32     n     payload
32+n   4     CRC-32 of head and payload
====== ===== ==========================================================

The head has a sum of its own, so that a length is believed only when it is right: behind a damaged payload reading goes
on with the next record, and behind a damaged head where the next whole head is found. The sums find accidents. They do
not find a forger.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

MAGIC = b"\x8fTLLOG\r\n"
SCHEMA = 2
#: Version 1 knows RGB frames only, and is read.
OLDEST_SCHEMA = 1
MARKER = b"\xc5TR\x9e"
_PREAMBLE = struct.Struct("<8sIIIqI")
_HEAD = struct.Struct("<4sIQqHHI")
_SUM = struct.Struct("<I")

PREAMBLE_BYTES = _PREAMBLE.size
HEAD_BYTES = _HEAD.size
#: What a record takes beside its payload.
FRAME_BYTES = HEAD_BYTES + _SUM.size
#: A raw frame of 11 megapixels. A forged length asks for no more memory than this.
MAX_PAYLOAD_BYTES = 32 << 20
MAX_SEGMENT = (1 << 32) - 1
_PLACES = 32


@dataclass(frozen=True)
class Preamble:
    """How a segment begins; the fields are described in the module."""

    segment: int
    session: int
    start_ns: int


@dataclass(frozen=True)
class Head:
    """How a record begins."""

    length: int
    number: int
    stamp_ns: int
    kind: int

    @property
    def size(self) -> int:
        """Bytes of the whole record."""
        return self.length + FRAME_BYTES


class SchemaError(Exception):
    """The segment was written in another version of this layout; its argument is the version."""


def record_number(segment: int, place: int) -> int:
    """The number of a record, unique in its log and ascending."""
    return segment << _PLACES | place


def segment_of(number: int) -> int:
    """The segment that a record is in."""
    return number >> _PLACES


def pack_preamble(preamble: Preamble) -> bytes:
    body = _PREAMBLE.pack(MAGIC, SCHEMA, preamble.segment, preamble.session, preamble.start_ns, 0)[: -_SUM.size]
    return body + _SUM.pack(zlib.crc32(body))


def unpack_preamble(data: bytes) -> Preamble | None:
    """The preamble in 32 bytes, None if it is damaged.

    Raises:
        SchemaError: it is whole, and of another version.
    """
    magic, schema, segment, session, start_ns, total = _PREAMBLE.unpack(data)
    if magic != MAGIC or zlib.crc32(data[: -_SUM.size]) != total:
        return None
    if not OLDEST_SCHEMA <= schema <= SCHEMA:
        raise SchemaError(schema)
    return Preamble(segment, session, start_ns)


def pack_record(head: Head, payload: bytes) -> bytes:
    """A whole record; ``head.length`` is the payload's."""
    fields = (MARKER, head.length, head.number, head.stamp_ns, head.kind, 0)
    begin = _HEAD.pack(*fields, 0)[: -_SUM.size]
    begin += _SUM.pack(zlib.crc32(begin))
    return b"".join((begin, payload, _SUM.pack(zlib.crc32(payload, zlib.crc32(begin)))))


def unpack_head(data: bytes, segment: int, after: int) -> Head | None:
    """The head in 32 bytes, or None.

    Args:
        data: the bytes.
        segment: the segment that they are in.
        after: number of the last record before; what is not above it is no record of this place.
    """
    marker, length, number, stamp_ns, kind, zero, total = _HEAD.unpack(data)
    if marker != MARKER or zero or length > MAX_PAYLOAD_BYTES:
        return None
    if segment_of(number) != segment or number <= after:
        return None
    if zlib.crc32(data[: -_SUM.size]) != total:
        return None
    return Head(length, number, stamp_ns, kind)


def unpack_payload(record: bytes) -> bytes | None:
    """The payload of a whole record with a good head, None if it is damaged."""
    if zlib.crc32(record[: -_SUM.size]) != _SUM.unpack(record[-_SUM.size :])[0]:
        return None
    return record[HEAD_BYTES : -_SUM.size]
