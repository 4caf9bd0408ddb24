"""What the compiler measured on this device, kept for the next build: it is faster, and chooses the same kernels.

There is one such file per library and device, outside the order in which engines are removed. It is handed out under
the same rules as an engine. One of another version or driver is dropped, since its times are no longer true.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from trunkline.runtime import record
from trunkline.runtime.engines import folder
from trunkline.runtime.engines.cache import EngineCache
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.folder import RefusedError, disk_errors
from trunkline.runtime.engines.key import digest_of
from trunkline.runtime.record import shown

FORMAT, SCHEMA = "trunkline-timing-cache", 1
TIMING = "timing"
CONTENT, RECORD = "timing.cache", "record.json"
#: A large tower has a few megabytes.
MAX_BYTES = 256 << 20


@dataclass(frozen=True)
class TimingRecord:
    """What a timing cache is: who measured, where, and its size and SHA-256."""

    format: str
    schema: int
    library: Library
    device: Device
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Place:
    library: str
    device: str
    system: str


class TimingCache:
    """The measurements of one library on one device. Any thread and process."""

    def __init__(self, cache: EngineCache, library: Library, device: Device) -> None:
        self._cache, self._library, self._device = cache, library, device
        name = digest_of(_Place(library.name, device.name, device.system))[:16]
        self._lock, self._place = f"{name}.timing", cache.root / TIMING / name

    def find(self) -> tuple[bytes, str | None]:
        """The measurements, empty if there are none; and why those that were there were dropped, if they were.

        Raises:
            BackendError: the cache cannot be read or written.
        """
        with self._cache.alone(self._lock), disk_errors(self._place):
            folder.remove_leftovers(self._place)
            try:
                return self._checked(), None
            except RefusedError as error:
                folder.remove_entry(self._place)
                return b"", f"measurements of earlier builds were dropped: {error}"

    def keep(self, content: bytes) -> None:
        """Replaces the measurements.

        Raises:
            BackendError: the cache cannot be written.
        """
        if not 0 < len(content) <= MAX_BYTES:
            return  # measurements are a help, and nothing is lost without them
        digest = hashlib.sha256(content).hexdigest()
        found = TimingRecord(FORMAT, SCHEMA, self._library, self._device, len(content), digest)
        with self._cache.alone(self._lock), disk_errors(self._place):
            self._place.parent.mkdir(mode=0o700, exist_ok=True)
            folder.write_entry(self._place, {CONTENT: content, RECORD: record.encode(found)})

    def _checked(self) -> bytes:
        with folder.opened(self._place) as descriptor:
            if descriptor is None:
                return b""
            try:
                text = folder.read_plain(descriptor, RECORD, record.MAX_TEXT_BYTES)
                found = record.decode(text, TimingRecord)
            except record.RecordError as error:
                raise RefusedError(f"their record is malformed: {error}") from error
            if (found.format, found.schema) != (FORMAT, SCHEMA):
                raise RefusedError(f"they are {shown(found.format)}, schema {shown(found.schema)}")
            if (found.library, found.device) != (self._library, self._device):
                raise RefusedError(f"{found.library} made them on {found.device}")
            content = folder.read_plain(descriptor, CONTENT, MAX_BYTES)
        if (len(content), hashlib.sha256(content).hexdigest()) != (found.bytes, found.sha256):
            raise RefusedError("they are not what was written: size or SHA-256 differs")
        return content
