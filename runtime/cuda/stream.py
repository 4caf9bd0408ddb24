"""Work in order, and waiting for it without keeping a processor busy."""

from __future__ import annotations

import ctypes

from trunkline.runtime.cuda.context import Context, Owned

_NON_BLOCKING = 1
_BLOCKING_SYNC, _NO_TIMING = 1, 2


class Stream(Owned):
    """A queue of work for the GPU, which does it in order and beside other streams. One thread at a time."""

    def __init__(self, context: Context) -> None:
        """Opens a stream that does not wait for the default one.

        Raises:
            BackendError: the driver refuses.
        """
        handle = ctypes.c_void_p()
        with context.current():
            context.driver.call("opened a stream", "cuStreamCreate", ctypes.byref(handle), _NON_BLOCKING)
        super().__init__(context, handle.value or 0)

    @property
    def handle(self) -> int:
        """For libraries that queue work of their own."""
        return self._handle

    def synchronize(self) -> None:
        """Waits, busily, until everything is done.

        Raises:
            BackendError: something that was queued failed.
        """
        self._context.driver.call("waited for the GPU", "cuStreamSynchronize", self._handle)

    def _give_back(self) -> None:
        self._context.driver.call("closed a stream", "cuStreamDestroy_v2", self._handle)


class Event(Owned):
    """A mark in a stream that can be waited for. One thread at a time; while it waits, it sleeps."""

    def __init__(self, context: Context) -> None:
        """Makes a mark that is nowhere yet.

        Raises:
            BackendError: the driver refuses.
        """
        handle = ctypes.c_void_p()
        with context.current():
            flags = _BLOCKING_SYNC | _NO_TIMING
            context.driver.call("made an event", "cuEventCreate", ctypes.byref(handle), flags)
        super().__init__(context, handle.value or 0)

    def record(self, stream: Stream) -> None:
        """Puts the mark behind everything that the stream was given so far.

        Raises:
            BackendError: the driver refuses, or reports an error of earlier work.
        """
        self._context.driver.call("marked a stream", "cuEventRecord", self._handle, stream.handle)

    def wait(self) -> None:
        """Waits until the stream got to the mark.

        Raises:
            BackendError: something before it failed.
        """
        self._context.driver.call("waited for the GPU", "cuEventSynchronize", self._handle)

    def _give_back(self) -> None:
        self._context.driver.call("closed an event", "cuEventDestroy_v2", self._handle)
