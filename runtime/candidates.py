"""Candidate action histories, checked and brought into the one shape the action stage takes.

A candidate is a window of up to H steps of A numbers. Shorter ones are padded on the left with whole rows of the
padding value, as the ensemble was trained. What the published system would score in a way nobody intends is refused:
windows that are too long, empty, ragged, not finite or nothing but padding, and steps that are padding only by half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trunkline.runtime.errors import CandidateError
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
        (N, H, A) float32, C-contiguous.

    Raises:
        CandidateError: naming every candidate that cannot be scored, and why.
    """
    _check_count(histories)
    if isinstance(histories, np.ndarray) and histories.dtype == np.float32:
        problem = _shape_problem(histories.shape[1:], actions)
        windows = [] if problem else [histories]
        problems = [f"every candidate: {problem}"] if problem else []
    else:
        windows, problems = _convert(histories, actions)
    if not problems:
        batch = _padded(windows, actions)
        problems = list(_content_problems(batch, actions))
    if problems:
        raise CandidateError(
            "candidates cannot be scored",
            expected=f"windows of 1 to {actions.history_length} steps of {actions.action_dim} finite numbers, "
            f"padded with whole rows of {actions.padding_value:g}",
            found=problems[:_LISTED] + ([f"and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []),
            fix="pass an array (N, steps, numbers) or a list of (steps, numbers); cut long histories to the last steps",
        )
    return batch


def _check_count(histories: object) -> None:
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


def _convert(histories: Sequence[ArrayLike], actions: ActionsEntry) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Windows as (1, h, A) arrays, and what is wrong with those that are none."""
    windows, problems = [], []
    for index, history in enumerate(histories):
        try:
            window = np.asarray(history)
        except ValueError:
            problems.append(f"candidate {index}: steps of different lengths")
            continue
        if window.dtype.kind not in "fiu":
            problems.append(f"candidate {index}: {window.dtype} values instead of numbers")
        elif problem := _shape_problem(window.shape, actions):
            problems.append(f"candidate {index}: {problem}")
        else:
            with np.errstate(over="ignore"):  # what overflows float32 is reported as not finite
                windows.append(window.astype(np.float32)[None])
    return windows, problems


def _shape_problem(shape: tuple[int, ...], actions: ActionsEntry) -> str | None:
    if len(shape) != 2:
        return f"shape {shape} instead of (steps, numbers)"
    steps, width = shape
    if steps == 0:
        return "no steps"
    if width != actions.action_dim:
        return f"{width} numbers per step instead of {actions.action_dim}"
    if steps > actions.history_length:
        return f"{steps} steps, more than the {actions.history_length} it was trained on"
    return None


def _padded(windows: list[NDArray[np.float32]], actions: ActionsEntry) -> NDArray[np.float32]:
    """Windows (n, h, A) of any h, padded on the left and joined to (N, H, A)."""
    if len(windows) == 1 and windows[0].shape[1] == actions.history_length:
        return np.ascontiguousarray(windows[0])
    count = sum(len(window) for window in windows)
    batch = np.full((count, actions.history_length, actions.action_dim), actions.padding_value, np.float32)
    row = 0
    for window in windows:
        batch[row : row + len(window), actions.history_length - window.shape[1] :] = window
        row += len(window)
    return batch


def _content_problems(batch: NDArray[np.float32], actions: ActionsEntry) -> Iterator[str]:
    finite = np.isfinite(batch).all(axis=(1, 2))
    yield from (f"candidate {index}: NaN or infinite values" for index in np.flatnonzero(~finite))
    padding = np.float32(actions.padding_value)
    marked = batch[:, :, 0] == padding
    empty = marked.all(axis=1)
    yield from (f"candidate {index}: nothing but padding" for index in np.flatnonzero(empty))
    half = marked & (batch != padding).any(axis=2)
    yield from (
        f"candidate {index}: step {step} starts with the padding value {padding:g} but is not padding; it would be ignored"
        for index, step in np.argwhere(half)
    )
    near = ~marked & (np.abs(batch[:, :, 0] - padding) < NEAR_PADDING)
    yield from (
        f"candidate {index}: step {step} starts with {batch[index, step, 0]:.9g}, almost the padding value {padding:g}; "
        "it would be taken for an action"
        for index, step in np.argwhere(near)
    )
