"""What a forked child does with sessions it inherits: nothing, for ever.

Freeing one joins its worker threads, which the fork did not copy, so that the child would hang when it ends.
"""

from __future__ import annotations

import ctypes
import os
import weakref

_inherited: weakref.WeakSet[object] = weakref.WeakSet()


def never_freed_in_a_child(library_object: object) -> None:
    """Marks an object, with all that it holds, as one that a forked child must not free. This process may."""
    _inherited.add(library_object)


def _abandon() -> None:
    for library_object in _inherited:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(library_object))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon)
