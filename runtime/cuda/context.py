"""The GPU's primary context, made current for the thread that needs it."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from types import TracebackType
from typing import TypeVar

from trunkline.runtime.backends.forks import never_freed_in_a_child
from trunkline.runtime.cuda.driver import DEVICE, Driver, driver
from trunkline.runtime.errors import BackendError

Own = TypeVar("Own", bound="Owned")


class Context:
    """What memory and streams belong to. There is one per process, and it stays until the process ends.

    Threads: any may use it, each for itself.
    """

    def __init__(self, driver: Driver) -> None:
        """Retains the primary context of the GPU.

        Raises:
            BackendError: the GPU is out of memory, or another process has it for itself.
        """
        self.driver = driver
        self._handle = ctypes.c_void_p()
        driver.call("opened the GPU", "cuDevicePrimaryCtxRetain", ctypes.byref(self._handle), DEVICE)

    @contextlib.contextmanager
    def current(self) -> Iterator[None]:
        """Makes the context this thread's, and gives the thread its own back afterwards.

        Raises:
            BackendError: the driver refuses it.
        """
        self.driver.call("chose the GPU", "cuCtxPushCurrent_v2", self._handle)
        try:
            yield
        finally:
            self.driver.code("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p()))


@functools.cache
def _context_of(process: int) -> Context:
    return Context(driver())


def context() -> Context:
    """The context of this process.

    Raises:
        BackendError: there is no usable driver, or it refuses.
    """
    return _context_of(os.getpid())


class Owned:
    """Something that CUDA lends under a handle and that is given back once, by ``close`` or at the end of a block.

    A forked child never gives back what it inherited: it is its parent's.
    """

    def __init__(self, context: Context, handle: int) -> None:
        self._context = context
        self._handle = handle
        never_freed_in_a_child(self)

    def _give_back(self) -> None:
        """Gives the handle back; the context is current."""
        raise NotImplementedError

    def close(self) -> None:
        """Gives it back. Calling it twice is fine.

        Raises:
            BackendError: the driver reports an error, its own or one of earlier work.
        """
        if self._handle:
            try:
                with self._context.current():
                    self._give_back()
            finally:
                self._handle = 0

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Whoever drops it without closing gets no error, and the GPU its memory back.
        with contextlib.suppress(BackendError, AttributeError, TypeError):
            self.close()
