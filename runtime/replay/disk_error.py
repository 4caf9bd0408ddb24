"""What a failed write to a log means."""

from __future__ import annotations

import errno
from pathlib import Path

from trunkline.runtime.errors import ReplayError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def disk_error(error: OSError, where: Path) -> ReplayError:
    """The error of our tree for one of the system's."""
    if error.errno in _FULL:
        return ReplayError(
            "there is no room on the disk for the replay log",
            where=where,
            found=error.strerror,
            fix="free some space, or let the log keep fewer bytes; what it holds stays readable",
        )
    return ReplayError(
        "the replay log cannot be written",
        where=where,
        found=error.strerror or str(error),
        fix="check the disk and the permissions of the directory; what the log holds stays readable",
    )
