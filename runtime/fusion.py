"""How members become one decision. Pure functions of numpy arrays.

A member's score is the cosine of its context and action vectors. The ensemble does not average scores: it averages
the members' unit vectors on both sides, makes them unit vectors again, and takes their cosine (the published rule;
it is not the mean of the members' cosines).

This runs once per decision on a few dozen vectors, right after a back end has emptied the processor's caches. There the
first call of each numpy function costs more than all its arithmetic, so few different ones are used.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import BackendError

Vectors = NDArray[np.float32]

#: Rounding to float16 changes a length by less than this; anything more is no unit vector.
LENGTH_TOLERANCE = 1e-2
SHORTEST_SQUARE, LONGEST_SQUARE = (1 - LENGTH_TOLERANCE) ** 2, (1 + LENGTH_TOLERANCE) ** 2
#: A mean of unit vectors shorter than this is rounding noise, and so is its direction.
SHORTEST_MEAN = 1e-5


def fuse(context: Vectors, action: Vectors) -> tuple[Vectors, Vectors]:
    """Cosines of K members' contexts and actions, fused and one by one.

    Args:
        context: (K, I, E) float32 unit vectors.
        action: (K, N, E) float32 unit vectors.

    Returns:
        Fused scores (I, N) and members' scores (K, I, N), float32 in [-1, 1].

    Raises:
        BackendError: vectors are not of length 1, or the members' vectors cancel out.
    """
    fused = _mean_direction(context, "context") @ _mean_direction(action, "action").T
    return _clipped(fused), _clipped(context @ action.transpose(0, 2, 1))


def _mean_direction(vectors: Vectors, name: str) -> Vectors:
    """(K, R, E) -> (R, E): the direction of the members' mean, which is that of their sum."""
    _require_unit(_squares(vectors), name)
    total = np.add.reduce(vectors, axis=0)
    squares = _squares(total)
    if min(squares) < (SHORTEST_MEAN * len(vectors)) ** 2:
        raise BackendError(
            "the members' vectors cancel out, so the ensemble has no direction",
            where=name,
            found="an instruction or a candidate on which the members contradict each other completely",
            fix="score with `members=` to see each member's own scores",
        )
    scale = np.array([square**-0.5 for square in squares], np.float32)
    return total * scale[:, None]


def _require_unit(squares: list[float], name: str) -> None:
    """Cosines are clipped, so a stage that breaks its promise would otherwise show as plausible scores."""
    # The built-in min and max may pass over a NaN, a sum does not.
    if min(squares) >= SHORTEST_SQUARE and max(squares) <= LONGEST_SQUARE and math.isfinite(sum(squares)):
        return
    raise BackendError(
        "a stage returned vectors that are not of length 1",
        where=name,
        expected=f"1, within {LENGTH_TOLERANCE:g}",
        found=f"lengths from {min(squares) ** 0.5:.6g} to {max(squares) ** 0.5:.6g}",
        fix="run `trunkline doctor` on the checkpoint and `trunkline verify` on the bundle",
    )


def _squares(vectors: Vectors) -> list[float]:
    """Squared lengths along the last dimension, flat."""
    return np.add.reduce(vectors * vectors, axis=-1).reshape(-1).tolist()


def _clipped(cosines: Vectors) -> Vectors:
    """Rounding may carry a cosine a little beyond 1; usually none is."""
    values = cosines.reshape(-1).tolist()
    return cosines if min(values) >= -1 and max(values) <= 1 else np.minimum(np.maximum(cosines, -1), 1)


def disagreement(scores: Vectors) -> Vectors:
    """(K, ...) member cosines -> (...) standard deviation over the members; 0 for one member."""
    return scores.std(axis=0)


def subset(vectors: Vectors, members: Sequence[int] | None) -> Vectors:
    """The chosen members' vectors, or all of them."""
    return vectors if members is None else vectors[list(members)]
