"""Candidate action histories, checked and brought into the one shape the action stage takes.

A candidate is a window of up to H steps of A numbers. Shorter ones are padded on the left with whole rows of the
padding value, as the ensemble was trained. What the published system would score in a way nobody intends is refused:
windows that are too long, empty, ragged, not finite or nothing but padding, and steps that are padding only by half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trunkline.runtime.errors import CandidateError
from trunkline.runtime.exact import described, fix_for, is_plain
from trunkline.runtime.manifest import ActionsEntry

MAX_CANDIDATES = 4096
#: A first component this near to the padding value without being equal to it is padding gone wrong, not an action.
NEAR_PADDING = 1e-3
_LISTED = 20


def prepare(histories: Sequence[ArrayLike] | NDArray[np.generic], actions: ActionsEntry) -> NDArray[np.float32]:
    """Candidates as one array.

    Args:
        histories: (N, h, A) array, or a list of (h, A) arrays with 1 <= h <= H each.
        actions: the window the ensemble was trained on.

    Returns:
        (N, H, A) float32, C-contiguous, never the caller's own memory: that may change while it is scored.

    Raises:
        CandidateError: naming every candidate that cannot be scored, and why.
    """
    _check_count(histories)
    if isinstance(histories, np.ndarray) and histories.dtype == np.float32:
        problem = _shape_problem(histories.shape[1:], actions)
        windows: list[NDArray[np.float32]] = [] if problem else [histories.astype(np.float32, copy=False)]
        indices = list(range(len(histories)))
        problems = [f"every candidate: {problem}"] if problem else []
    else:
        windows, indices, problems = _convert(histories, actions)
    batch = _padded(windows, actions)
    if not _surely_fine(batch, actions):
        problems += _content_problems(batch, indices, actions)
    if problems:
        found = problems[:_LISTED] + ([f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else [])
        raise CandidateError(
            "candidates cannot be scored",
            expected=f"windows of 1 to {actions.history_length} steps of {actions.action_dim} finite numbers, "
            f"padded with whole rows of {actions.padding_value:g}",
            found=found,
            fix="pass an array (N, steps, numbers) or a list of (steps, numbers); cut long histories to the last steps",
        )
    return batch


def count(histories: Sequence[ArrayLike] | NDArray[np.generic]) -> int:
    """How many candidates there are.

    Raises:
        CandidateError: they are not a list of windows, or none, or too many.
    """
    _check_count(histories)
    return len(histories)


def _check_count(histories: object) -> None:
    if isinstance(histories, np.ndarray) and not is_plain(histories):
        raise CandidateError(
            "candidates cannot be scored",
            expected="a plain array of numpy, or a list of windows",
            found=described(histories),
            fix=fix_for("", histories),
        )
    ready = isinstance(histories, np.ndarray) and histories.ndim == 3
    if not ready and (isinstance(histories, np.ndarray | str | bytes) or not isinstance(histories, Sequence)):
        found = f"array of shape {histories.shape}" if isinstance(histories, np.ndarray) else type(histories).__name__
        raise CandidateError(
            "candidates must be a list of windows, or one array of them",
            expected="(N, steps, numbers)",
            found=found,
            fix="wrap a single window: [window]",
        )
    count = len(histories)  # type: ignore[arg-type]
    if not 0 < count <= MAX_CANDIDATES:
        raise CandidateError(
            "there must be candidates to choose from, and not too many",
            expected=f"1 to {MAX_CANDIDATES}",
            found=count,
            fix="score in several calls" if count else "pass at least one candidate",
        )


def _convert(
    histories: Sequence[ArrayLike] | NDArray[np.generic], actions: ActionsEntry
) -> tuple[list[NDArray[np.float32]], list[int], list[str]]:
    """Windows as (1, h, A) arrays, their indices, and what is wrong with those that are none."""
    windows, indices, problems = [], [], []
    for index, history in enumerate(histories):
        window = _window(history, actions)
        if isinstance(window, str):
            problems.append(f"candidate {index}: {window}")
        else:
            windows.append(window[None])
            indices.append(index)
    return windows, indices, problems


def _window(history: ArrayLike, actions: ActionsEntry) -> NDArray[np.float32] | str:
    """One window (h, A), or what is wrong with it."""
    if problem := _special(history) or _length_problem(history, actions):
        return problem
    try:
        window = np.asarray(history)
    except ValueError:
        return "steps of different lengths"
    except (TypeError, RuntimeError) as error:  # another library's array: on a GPU, or one that tracks gradients
        return f"{type(history).__name__} that numpy cannot read: {error!s:.200}"
    if window.dtype.kind not in "fiu":
        return f"{window.dtype} values instead of numbers"
    if problem := _shape_problem(window.shape, actions):
        return problem
    with np.errstate(over="ignore"):  # what overflows float32 is reported as not finite
        return window.astype(np.float32)


def _special(history: object) -> str | None:
    """What numpy would make plain numbers of, though it may mean something else."""
    for each in (history, *(history if isinstance(history, list | tuple) else ())):
        if isinstance(each, np.ndarray) and not is_plain(each):
            return f"{described(each)} instead of plain numbers; {fix_for('', each)}"
    return None


def _length_problem(history: object, actions: ActionsEntry) -> str | None:
    """Told before conversion, which would make an array of whatever a sequence claims to hold."""
    if not isinstance(history, Sequence) or isinstance(history, str | bytes):
        return None
    if len(history) > actions.history_length:
        return _too_long(len(history), actions)
    widths = [len(step) for step in history if isinstance(step, Sequence) and not isinstance(step, str | bytes)]
    too_wide = [width for width in widths if width > actions.action_dim]
    return _wrong_width(too_wide[0], actions) if too_wide else None


def _shape_problem(shape: tuple[int, ...], actions: ActionsEntry) -> str | None:
    if len(shape) != 2:
        return f"shape {shape} instead of (steps, numbers)"
    steps, width = shape
    if steps == 0:
        return "no steps"
    if width != actions.action_dim:
        return _wrong_width(width, actions)
    if steps > actions.history_length:
        return _too_long(steps, actions)
    return None


def _wrong_width(width: int, actions: ActionsEntry) -> str:
    return f"{width} numbers per step instead of {actions.action_dim}"


def _too_long(steps: int, actions: ActionsEntry) -> str:
    return f"{steps} steps, more than the {actions.history_length} it was trained on"


def _padded(windows: list[NDArray[np.float32]], actions: ActionsEntry) -> NDArray[np.float32]:
    """Windows (n, h, A) of any h, padded on the left and joined to (N, H, A)."""
    if len(windows) == 1 and windows[0].shape[1] == actions.history_length:
        return np.array(windows[0], order="C")
    count = sum(len(window) for window in windows)
    batch = np.full((count, actions.history_length, actions.action_dim), actions.padding_value, np.float32)
    row = 0
    for window in windows:
        batch[row : row + len(window), actions.history_length - window.shape[1] :] = window
        row += len(window)
    return batch


def _surely_fine(batch: NDArray[np.float32], actions: ActionsEntry) -> bool:
    """A quick test for the usual case: finite numbers, and first components well above the padding value."""
    flat = batch.reshape(-1)
    lowest = float(np.minimum.reduce(batch[:, :, 0], axis=None, initial=np.inf))
    return lowest > actions.padding_value + NEAR_PADDING and math.isfinite(flat @ flat)


def _content_problems(batch: NDArray[np.float32], indices: list[int], actions: ActionsEntry) -> Iterator[str]:
    rows = np.flatnonzero(~np.isfinite(batch).all(axis=(1, 2)))
    yield from (f"candidate {indices[row]}: NaN or infinite values" for row in rows)
    padding = np.float32(actions.padding_value)
    with np.errstate(invalid="ignore", over="ignore"):  # infinite values are reported above
        close = np.abs(batch[:, :, 0] - padding) < NEAR_PADDING
    yield from _padding_problems(batch, close, indices, padding)


def _padding_problems(
    batch: NDArray[np.float32], close: NDArray[np.bool_], indices: list[int], padding: np.float32
) -> Iterator[str]:
    """What is wrong with steps whose first component is ``close`` to the padding value."""
    marked = batch[:, :, 0] == padding
    empty = marked.all(axis=1)
    yield from (f"candidate {indices[row]}: nothing but padding" for row in np.flatnonzero(empty))
    half = marked & (batch != padding).any(axis=2)
    yield from (
        f"candidate {indices[row]}: step {step} starts with the padding value {padding:g} but is not padding; "
        "it would be ignored"
        for row, step in np.argwhere(half)
    )
    yield from (
        f"candidate {indices[row]}: step {step} starts with {batch[row, step, 0]:.9g}, "
        f"almost the padding value {padding:g}; it would be taken for an action"
        for row, step in np.argwhere(close & ~marked)
    )
