"""Denormal numbers (below 1.2e-38 in float32) count as zero while a back end computes.

Processors compute with them many times more slowly, and no score depends on them. Both libraries have a switch for that
and neither is of use by itself: it stays on in the thread that called, so that other parts of a robot's program would
compute differently, and ONNX Runtime throws it for the process's first session only. So the calling thread is switched
here, and back again. Threads that a library starts inside the block take the setting over and keep it. OpenVINO may
give a stage the threads of a model that another part of the program has closed, which compute as they did there.

This concerns x86 under Linux. Elsewhere nothing is switched.
"""

from __future__ import annotations

import ctypes
import functools
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: A ``fenv_t`` on x86-64, in glibc and musl, and which part of it is the register MXCSR.
_Environment, _MXCSR = ctypes.c_uint32 * 8, 7
#: Bits of MXCSR: results that are denormal become zero, and so do operands.
_FLUSH = 0x8000 | 0x0040


@contextmanager
def flushed() -> Iterator[None]:
    """Denormals are zero in this thread inside the block; its floating-point state is then as it was before."""
    library = _library()
    if library is None:
        yield
        return
    environment = _Environment()
    library.fegetenv(environment)
    before = environment[_MXCSR]
    environment[_MXCSR] = before | _FLUSH
    library.fesetenv(environment)
    try:
        yield
    finally:
        environment[_MXCSR] = before
        library.fesetenv(environment)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """The C library's functions for the floating-point environment, where its layout is known."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or sys.maxsize < 1 << 32:
        return None
    for name in ("libm.so.6", None):
        try:
            found = ctypes.CDLL(name)
            found.fegetenv, found.fesetenv  # noqa: B018  # raises where it has none
        except (OSError, AttributeError):
            continue
        return found
    return None
