"""Stamps, numbers and arrays from outside: what is one, and what only looks like one.

A stamp is compared with bounds, and every comparison with NaN is false; text, a float of seconds or a 32-bit integer
that wrapped around would be taken for another time. An array of a class of its own may mean something else than its
numbers: a masked one hides values, a matrix stays two-dimensional whatever is cut from it, a quantity has a unit.
"""

from __future__ import annotations

import math
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import InputError

_INT64 = range(-(1 << 63), 1 << 63)
_PLAIN = (np.ndarray, np.memmap)


def is_whole(value: object) -> TypeGuard[int]:
    """An int, or an integer of numpy; True and False are none, and no span of time is one."""
    return type(value) is int or (isinstance(value, np.integer) and not isinstance(value, np.timedelta64))


def is_stamp(value: object) -> TypeGuard[int]:
    """Whole nanoseconds within 64 bits: an int, or an integer of numpy that has as many."""
    return is_whole(value) and int(value) in _INT64 and (type(value) is int or np.dtype(type(value)).itemsize == 8)


def is_number(value: object) -> TypeGuard[float]:
    """A finite number of Python or numpy; True and False are none."""
    return (is_whole(value) or isinstance(value, float | np.floating)) and bool(-math.inf < value < math.inf)


def whole_ns(value: object, what: str, error: type[InputError] = InputError) -> int:
    """A stamp or a duration in nanoseconds.

    Args:
        value: what came from outside.
        what: it is, for the message.
        error: the class to raise.

    Raises:
        InputError: it is not whole nanoseconds, see :func:`is_stamp`.
    """
    if not is_stamp(value):
        raise error(
            "a time is not whole nanoseconds",
            where=what,
            expected="an int, or an integer of numpy with 64 bits",
            found=told(value),
            fix="round(seconds * 1e9); 32 bits end after two seconds",
        )
    return int(value)


def is_plain(value: object) -> TypeGuard[NDArray[np.generic]]:
    """An array that means its numbers and nothing else."""
    return type(value) in _PLAIN


def described(value: object) -> str:
    """Type and shape of an array in words; of anything else its type."""
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    kind = "" if is_plain(value) else f"{_class_name(value)} of "
    return f"{kind}{value.dtype} {value.shape}"


def fix_for(fix: str, *values: object) -> str:
    """``fix``, unless a value is an array of a class of its own: then how that becomes a plain one."""
    special = [value for value in values if isinstance(value, np.ndarray) and not is_plain(value)]
    if not special:
        return fix
    if isinstance(special[0], np.ma.MaskedArray):
        return "say what masked values are: array.filled(value)"
    return "make it a plain array, if its numbers mean what is asked for: numpy.asarray(array)"


def told(value: object) -> str:
    """A value and its type, in words."""
    return f"{type(value).__name__} {value!r:.60}"


def _class_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
