"""Work that is recorded once and then started as a whole, which takes the processor a fraction of the time."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

from trunkline.runtime.cuda.context import Context, Owned
from trunkline.runtime.cuda.stream import Stream

#: Work of other threads may go on while this one records.
_THREAD_LOCAL = 1


class Graph(Owned):
    """Recorded work. Addresses and sizes are part of it. One thread at a time."""

    def __init__(self, context: Context, handle: int) -> None:
        """Takes over an executable graph; :func:`capture` makes them."""
        super().__init__(context, handle)

    def launch(self, stream: Stream) -> None:
        """Queues the work.

        Raises:
            BackendError: the driver refuses, or reports an error of earlier work.
        """
        self._context.driver.call("started a graph", "cuGraphLaunch", self._handle, stream.handle)

    def _give_back(self) -> None:
        self._context.driver.call("freed a graph", "cuGraphExecDestroy", self._handle)


def capture(context: Context, stream: Stream, work: Callable[[], None]) -> Graph:
    """Records what ``work`` gives the stream, without doing it.

    Args:
        context: current in this thread.
        stream: what was queued in it before is done as usual.
        work: queues; it may not wait, and may not ask for memory.

    Raises:
        BackendError: the driver cannot record it; the stream is as it was.
        Exception: whatever ``work`` raises, with the recording ended.
    """
    driver, recorded, handle = context.driver, ctypes.c_void_p(), ctypes.c_void_p()
    driver.call("began to record", "cuStreamBeginCapture_v2", stream.handle, _THREAD_LOCAL)
    try:
        work()
    except BaseException:
        driver.code("cuStreamEndCapture", stream.handle, ctypes.byref(recorded))
        if recorded:
            driver.code("cuGraphDestroy", recorded)
        raise
    driver.call("recorded", "cuStreamEndCapture", stream.handle, ctypes.byref(recorded))
    try:
        driver.call("prepared a graph", "cuGraphInstantiateWithFlags", ctypes.byref(handle), recorded, 0)
    finally:
        driver.code("cuGraphDestroy", recorded)
    return Graph(context, handle.value or 0)
