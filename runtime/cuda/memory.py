"""Memory on both sides: the GPU's own, and pinned memory that copies to and from it run at full speed.

Nobody outside gets a view of pinned memory: arrays are copied in and out, so none outlives the memory it stands for.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from trunkline.runtime.cuda.context import Context, Owned
from trunkline.runtime.cuda.driver import OUT_OF_MEMORY
from trunkline.runtime.cuda.stream import Stream
from trunkline.runtime.errors import BackendError


class DeviceBuffer(Owned):
    """Memory of the GPU, uninitialised. One thread at a time.

    Attributes:
        address: on the GPU; a multiple of 256.
        nbytes: its size.
    """

    def __init__(self, context: Context, nbytes: int) -> None:
        """Asks for memory.

        Raises:
            BackendError: there is not so much; the message says how much there is.
        """
        address = ctypes.c_ulonglong()
        with context.current():
            code = context.driver.code("cuMemAlloc_v2", ctypes.byref(address), nbytes)
            if code:
                raise _refused(context, "GPU memory", "cuMemAlloc_v2", code, nbytes)
        self.nbytes = nbytes
        super().__init__(context, address.value)

    @property
    def address(self) -> int:
        return self._handle

    def read(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A new array with what stands at the beginning. What was to be written there must have been waited for.

        Raises:
            BackendError: it would be larger than this, or the GPU failed.
        """
        array = np.empty(shape, dtype)
        if not self._handle or not 0 < array.nbytes <= self.nbytes:
            raise _too_large(dtype, shape, self.nbytes if self._handle else 0)
        with self._context.current():
            self._context.driver.call(
                "copied from the GPU", "cuMemcpyDtoH_v2", array.ctypes.data, self._handle, array.nbytes
            )
        return array

    def _give_back(self) -> None:
        self._context.driver.call("freed GPU memory", "cuMemFree_v2", self._handle)


class PinnedBuffer(Owned):
    """Memory of this process that the GPU reads and writes directly. One thread at a time.

    Attributes:
        nbytes: its size.
    """

    def __init__(self, context: Context, nbytes: int) -> None:
        """Asks for memory.

        Raises:
            BackendError: there is not so much.
        """
        address = ctypes.c_void_p()
        with context.current():
            code = context.driver.code("cuMemHostAlloc", ctypes.byref(address), nbytes, 0)
            if code:
                raise _refused(context, "pinned memory", "cuMemHostAlloc", code, nbytes)
        self.nbytes = nbytes
        super().__init__(context, address.value or 0)

    @property
    def address(self) -> int:
        return self._handle

    def write(self, array: NDArray[np.generic]) -> None:
        """Copies an array into the beginning.

        Raises:
            BackendError: it is larger than this.
        """
        self._view(array.dtype, array.shape)[...] = array

    def read(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        """A new array with what stands at the beginning.

        Raises:
            BackendError: it would be larger than this.
        """
        return self._view(dtype, shape).copy()

    def _view(self, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
        count = math.prod(shape)
        if not self._handle or count * np.dtype(dtype).itemsize > self.nbytes:
            raise _too_large(dtype, shape, self.nbytes if self._handle else 0)
        content = (ctypes.c_char * self.nbytes).from_address(self._handle)
        return np.frombuffer(memoryview(content), dtype, count).reshape(shape)

    def _give_back(self) -> None:
        self._context.driver.call("freed pinned memory", "cuMemFreeHost", self._handle)


_Buffer = DeviceBuffer | PinnedBuffer


def copy_to_device(target: DeviceBuffer, source: PinnedBuffer, nbytes: int, stream: Stream) -> None:
    """Copies the first bytes, in the order of the stream; neither side may be touched before it got there.

    Raises:
        BackendError: the driver refuses, or reports an error of earlier work.
    """
    _copy("to the GPU", "cuMemcpyHtoDAsync_v2", (target, source), nbytes, stream)


def copy_to_host(target: PinnedBuffer, source: DeviceBuffer, nbytes: int, stream: Stream) -> None:
    """Copies the first bytes, in the order of the stream; they are there when the stream got there.

    Raises:
        BackendError: the driver refuses, or reports an error of earlier work.
    """
    _copy("from the GPU", "cuMemcpyDtoHAsync_v2", (target, source), nbytes, stream)


def copy_on_device(target: DeviceBuffer, source: DeviceBuffer, nbytes: int, stream: Stream) -> None:
    """Copies the first bytes, in the order of the stream; neither side may be touched before it got there.

    Raises:
        BackendError: the driver refuses, or reports an error of earlier work.
    """
    _copy("on the GPU", "cuMemcpyDtoDAsync_v2", (target, source), nbytes, stream)


class BufferPool:
    """GPU memory that is taken and given back over and over: asking the driver each time would cost more than a copy.

    Any thread may take and give. There is no lock: buffers are given back by the garbage collector, too, which may
    interrupt whoever is taking one.
    """

    def __init__(self, context: Context, most: int = 4) -> None:
        """Keeps at most so many buffers that nobody uses."""
        self._context, self._most = context, most
        self._spare: deque[DeviceBuffer] = deque()

    def take(self, nbytes: int) -> DeviceBuffer:
        """A buffer of this size.

        Raises:
            BackendError: there is not so much memory.
        """
        for _ in range(len(self._spare)):
            with contextlib.suppress(IndexError):  # another thread took the last one
                buffer = self._spare.popleft()
                if buffer.nbytes == nbytes:
                    return buffer
                self._spare.append(buffer)
        return DeviceBuffer(self._context, nbytes)

    def give(self, buffer: DeviceBuffer) -> None:
        """Takes a buffer back; the one that was spare for longest goes, if there are too many."""
        self._spare.append(buffer)
        with contextlib.suppress(IndexError):  # another thread took the last one
            while len(self._spare) > self._most:
                self._spare.popleft().close()

    def close(self) -> None:
        """Frees what is spare; what is given back from now on is freed at once."""
        self._most = 0
        with contextlib.suppress(IndexError):
            while True:
                self._spare.popleft().close()


def _copy(way: str, function: str, sides: tuple[_Buffer, _Buffer], nbytes: int, stream: Stream) -> None:
    """``sides`` are target and source."""
    target, source = sides
    most = min(target.nbytes, source.nbytes)
    if not (target.address and source.address and 0 < nbytes <= most):
        raise BackendError(
            "a copy would run past the end of a buffer",
            expected=f"1 to {most} bytes between two buffers that are open",
            found=f"{nbytes} bytes",
        )
    call = target._context.driver.call
    call(f"copied {way}", function, target.address, source.address, nbytes, stream.handle)


def _too_large(dtype: DTypeLike, shape: tuple[int, ...], nbytes: int) -> BackendError:
    return BackendError(
        "an array does not fit into its buffer",
        expected=f"at most {nbytes} bytes",
        found=f"{np.dtype(dtype)} {list(shape)}",
    )


def _refused(context: Context, what: str, function: str, code: int, nbytes: int) -> BackendError:
    """An error that tells how much memory there is, if there is too little."""
    failure = context.driver.failure(f"asked for {nbytes} bytes of {what}", function, code)
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    if code == OUT_OF_MEMORY and not context.driver.code("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total)):
        failure = BackendError(
            failure.problem,
            where=failure.where,
            found=f"{failure.found}; {free.value} of the GPU's {total.value} bytes are free",
            fix=failure.fix,
        )
    return failure
