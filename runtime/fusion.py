"""How members become one decision. Pure functions of numpy arrays.

A member's score is the cosine of its context and action vectors. The ensemble does not average scores: it averages
the members' unit vectors on both sides, makes them unit vectors again, and takes their cosine (the published rule;
it is not the mean of the members' cosines).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.errors import BackendError

Vectors = NDArray[np.float32]

#: Rounding to float16 changes a length by less than this; anything more is no unit vector.
LENGTH_TOLERANCE = 1e-2
#: A mean of unit vectors shorter than this is rounding noise, and so is its direction.
SHORTEST_MEAN = 1e-5


def require_unit(vectors: Vectors, tensor: str) -> None:
    """Raises BackendError unless (K, R, E) are unit vectors.

    Scores are clipped to [-1, 1], so a stage that breaks its promise would otherwise show as plausible scores.
    """
    lengths = _lengths(vectors)
    if not (np.abs(lengths - 1) <= LENGTH_TOLERANCE).all():  # also refuses NaN
        raise BackendError(
            "a stage returned vectors that are not of length 1",
            where=tensor,
            expected=f"1, within {LENGTH_TOLERANCE:g}",
            found=f"lengths from {lengths.min():.6g} to {lengths.max():.6g}",
            fix="run `trunkline doctor` on the checkpoint and `trunkline verify` on the bundle",
        )


def _lengths(vectors: Vectors) -> Vectors:
    """Lengths along the last dimension; a third of the time of ``numpy.linalg.norm`` at these sizes."""
    return np.sqrt(np.einsum("...e,...e->...", vectors, vectors))


def member_scores(context: Vectors, action: Vectors) -> Vectors:
    """(K, I, E), (K, N, E) unit vectors -> (K, I, N) float32 cosines in [-1, 1]."""
    return np.clip(context @ action.transpose(0, 2, 1), -1, 1)


def fused_scores(context: Vectors, action: Vectors) -> Vectors:
    """(K, I, E), (K, N, E) unit vectors -> (I, N) float32 cosines in [-1, 1]."""
    return np.clip(_mean_direction(context) @ _mean_direction(action).T, -1, 1)


def _mean_direction(vectors: Vectors) -> Vectors:
    """(K, R, E) -> (R, E) unit vectors."""
    mean = vectors.mean(axis=0)
    lengths = _lengths(mean)[:, None]
    if not (lengths >= SHORTEST_MEAN).all():
        raise BackendError(
            "the members' vectors cancel out, so the ensemble has no direction",
            where=f"rows {np.flatnonzero(~(lengths[:, 0] >= SHORTEST_MEAN)).tolist()[:20]}",
            fix="score with `members=` to see each member's own scores",
        )
    return mean / lengths


def disagreement(scores: Vectors) -> Vectors:
    """(K, I, N) member cosines -> (I, N) standard deviation over the members; 0 for one member."""
    return scores.std(axis=0)


def subset(vectors: Vectors, members: Sequence[int] | None) -> Vectors:
    """The chosen members' vectors, or all of them."""
    return vectors if members is None else vectors[list(members)]
