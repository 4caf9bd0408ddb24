"""A log of what a robot saw and decided, written while it works and read by anybody.

Writing, see :mod:`trunkline.runtime.replay.recorder`::

    with Recorder("logs/today", header_of(ensemble.bundle)) as recorder:
        recorder.sensor(stamps_ns, samples)
        recorder.decision(Seen(instruction, histories, image=image, window=window), decision, now_ns)

Reading::

    log = ReplayLog("logs/today")
    for entry in log.entries():
        print(entry.number, entry.meta)

The log is a directory of append-only files, bounded in bytes and in seconds. A process that is killed at any moment
leaves every record but the one it was writing, and what follows an accident on the disk is still read. The layout is
described in :mod:`trunkline.runtime.replay.framing` and :mod:`trunkline.runtime.replay.payloads`.
"""

from trunkline.runtime.errors import ReplayError
from trunkline.runtime.replay.front import Seen, header_of
from trunkline.runtime.replay.payloads import Header
from trunkline.runtime.replay.reader import ReplayLog
from trunkline.runtime.replay.recorder import Recorder, SyncRecorder
from trunkline.runtime.replay.writer import LogLimits

__all__ = ["Header", "LogLimits", "Recorder", "ReplayError", "ReplayLog", "Seen", "SyncRecorder", "header_of"]
