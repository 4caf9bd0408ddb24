"""What TensorRT says: its log, and errors of ours made of it.

TensorRT answers a wish that it does not grant with None or False, and writes the reason into its log, if anywhere.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Iterator

from trunkline.runtime.errors import BackendError, TrunklineError
from trunkline.runtime.record import shortened

_KEPT_LINES = 50
_MAX_CHARS = 500


class TensorRtError(Exception):
    """TensorRT said no; the reason, if it gave one, is in its log."""


class Log:
    """The last warnings and errors. Any thread may write and read; lines of parallel work stand side by side."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=_KEPT_LINES)
        self._count = 0
        self._lock = threading.Lock()

    def add(self, text: str) -> None:
        with self._lock:
            self._count += 1
            self._lines.append((self._count, text.strip()))

    def mark(self) -> int:
        """Where the log ends now, for :meth:`since`."""
        return self._count

    def since(self, mark: int) -> list[str]:
        """What was said after a mark, each line once."""
        with self._lock:
            return list(dict.fromkeys(text for number, text in self._lines if number > mark))


LOG = Log()


@contextlib.contextmanager
def asking(problem: str, *, where: str, fix: str | None = None) -> Iterator[None]:
    """Turns whatever TensorRT raises in a block into an error of ours, with what it logged meanwhile.

    Raises:
        BackendError: ``problem``, and why; or one of the block's own, which is told where it happened.
    """
    mark = LOG.mark()
    try:
        yield
    except BackendError as error:
        if error.where is None or str(error.where).startswith(where):
            raise
        place = f"{where}, {error.where}"
        raise BackendError(
            error.problem, where=place, expected=error.expected, found=error.found, fix=error.fix or fix
        ) from error
    except TrunklineError:
        raise
    except Exception as error:  # the library's exceptions share no base class
        found = list(dict.fromkeys([*LOG.since(mark), str(error).strip()[:_MAX_CHARS] or type(error).__name__]))
        raise BackendError(problem, where=where, found=shortened(found), fix=fix) from error
