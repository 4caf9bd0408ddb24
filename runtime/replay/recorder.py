"""What a control loop calls to have recorded what it saw and decided.

::

    with Recorder("logs/today", header_of(ensemble.bundle)) as recorder:
        recorder.sensor(stamps_ns, samples)  # from the sensor's driver, as it comes
        ...
        seen = Seen(instruction, histories, image=image, frame_ns=captured_ns, window=window)
        recorder.decision(seen, decision, now_ns)

No call waits for the disk. What it gets is checked, goes into a queue of bounded size, and one thread writes it. If
that falls behind, what does not fit is dropped and counted, in the log too. If the disk refuses, or anything else goes
wrong with a record, that is counted the same way, ``failure`` says why, and recording goes on with the next one. A
process that is killed loses what is in the queue.
"""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from pathlib import Path

from trunkline.runtime.errors import ReplayError, TrunklineError
from trunkline.runtime.replay.front import Front, What, Write
from trunkline.runtime.replay.payloads import Encoding, Header
from trunkline.runtime.replay.scribe import Scribe, packed
from trunkline.runtime.replay.writer import Clock, LogLimits, LogWriter

QUEUE_BYTES = 256 << 20
MAX_QUEUED = 1 << 16
#: What a queued call takes beside its arrays.
_CALL_BYTES = 512
#: Between two looks at whether the disk must be told, while nothing comes.
_LEAST_IDLE_S = 0.05


class SyncRecorder(Front):
    """Writes within the call, for tests and for programs that have the time.

    Threads: for one at a time. Every call raises ReplayError if the record cannot be written.
    """

    def __init__(
        self,
        folder: Path | str,
        header: Header,
        limits: LogLimits | None = None,
        *,
        frames: Encoding = "png",
        clock: Clock | None = None,
    ) -> None:
        """Opens a log; see :class:`~trunkline.runtime.replay.writer.LogWriter`."""
        super().__init__(header)
        self._writer = LogWriter(folder, packed(header), limits, clock=clock)
        self._scribe = Scribe(self._writer, header, frames)

    def close(self) -> None:
        """Closes the log. Calling it twice is fine."""
        self._writer.close()

    def _do(self, what: What, size: int, write: Write) -> None:
        write(self._scribe)


class Recorder(Front):
    """Writes in a thread of its own.

    Threads: any may call; :meth:`sensor` one at a time. What one thread hands over is written in that order.
    """

    def __init__(
        self,
        folder: Path | str,
        header: Header,
        limits: LogLimits | None = None,
        *,
        frames: Encoding = "png",
        queue_bytes: int = QUEUE_BYTES,
        clock: Clock | None = None,
    ) -> None:
        """Opens a log and starts the thread.

        Args:
            folder: directory of the log; it is made.
            header: see :func:`header_of`.
            limits: what is kept.
            frames: "png" takes time, "raw" takes space; neither loses anything.
            queue_bytes: bytes that may wait to be written.
            clock: as for :class:`~trunkline.runtime.replay.writer.LogWriter`.

        Raises:
            ReplayError: the log cannot be opened.
        """
        super().__init__(header)
        self._writer = LogWriter(folder, packed(header), limits, clock=clock)
        self._scribe = Scribe(self._writer, header, frames)
        self._most_bytes = queue_bytes
        self._process = os.getpid()
        sync_s = self._writer.limits.sync_s
        self._idle_s = None if sync_s is None else max(sync_s, _LEAST_IDLE_S)
        self._ready = threading.Condition()
        self._queue: deque[tuple[What, int, Write]] = deque()
        self._waiting_bytes = 0
        self._closing = False
        self._dropped: Counter[str] = Counter()
        self._unreported: Counter[str] = Counter()
        self._failure: TrunklineError | None = None
        self._thread = threading.Thread(target=self._run, name="trunkline replay log", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> dict[str, int]:
        """What was not recorded so far, by what it was."""
        with self._ready:
            return dict(self._dropped)

    @property
    def failure(self) -> TrunklineError | None:
        """The last error of writing, None if there was none."""
        return self._failure

    def close(self) -> None:
        """Writes what is in the queue, and gives the log back. Calling it twice is fine."""
        if os.getpid() != self._process:
            return
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join()
        self._writer.close()

    def _do(self, what: What, size: int, write: Write) -> None:
        if os.getpid() != self._process:
            raise ReplayError(
                "the recorder was made before this process was forked",
                where=self._writer.folder,
                fix="make one in this process, for another directory",
            )
        size += _CALL_BYTES
        with self._ready:
            if self._closing:
                raise ReplayError("the replay log is closed", where=self._writer.folder, fix="open it again")
            if self._waiting_bytes + size > self._most_bytes or len(self._queue) >= MAX_QUEUED:
                self._count_dropped(what)
                return
            self._queue.append((what, size, write))
            self._waiting_bytes += size
            self._ready.notify()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            what, size, write = call
            self._attempt(what, write)
            with self._ready:
                self._waiting_bytes -= size
        self._attempt(None, lambda scribe: None)

    def _next(self) -> tuple[What, int, Write] | None:
        """The next call, None when all is written and nothing will come."""
        while True:
            with self._ready:
                self._ready.wait_for(lambda: self._queue or self._closing, self._idle_s)
                if self._queue:
                    return self._queue.popleft()
                if self._closing:
                    return None
            if self._idle_s is not None:
                self._attempt(None, lambda scribe: self._writer.sync())

    def _attempt(self, what: What | None, write: Write) -> None:
        """Writes, after a word about what was dropped before."""
        with self._ready:
            unreported, self._unreported = self._unreported, Counter()
        try:
            if unreported:
                self._scribe.dropped(dict(unreported))
                unreported = Counter()
            write(self._scribe)
        except Exception as error:  # whatever it is, the next record may be written, and nothing is lost in silence
            self._failure = error if isinstance(error, TrunklineError) else _unexpected(error, what, self._writer)
            with self._ready:
                self._unreported.update(unreported)
                if what is not None:
                    self._count_dropped(what)

    def _count_dropped(self, what: What) -> None:
        self._dropped[what] += 1
        self._unreported[what] += 1


def _unexpected(error: Exception, what: What | None, writer: LogWriter) -> ReplayError:
    failure = ReplayError(
        "something went wrong with a record, which is not in the log",
        where=f"{what or 'what was dropped'}, {writer.folder}",
        found=f"{type(error).__name__}: {error}",
        fix="tell us: what cannot be recorded should have been refused by the call",
    )
    failure.__cause__ = error
    return failure
