"""How members become one decision. Pure functions of numpy arrays.

A member's score is the cosine of its context and action vectors. The ensemble does not average scores: it averages
the members' unit vectors on both sides, makes them unit vectors again, and takes their cosine (the published rule;
it is not the mean of the members' cosines).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


def member_scores(context: Vectors, action: Vectors) -> Vectors:
    """(K, I, E), (K, N, E) unit vectors -> (K, I, N) float32 cosines in [-1, 1]."""
    return np.clip(context @ action.transpose(0, 2, 1), -1, 1)


def fused_scores(context: Vectors, action: Vectors) -> Vectors:
    """(K, I, E), (K, N, E) unit vectors -> (I, N) float32 cosines in [-1, 1]."""
    return np.clip(_mean_direction(context) @ _mean_direction(action).T, -1, 1)


def _mean_direction(vectors: Vectors) -> Vectors:
    """(K, R, E) -> (R, E) unit vectors."""
    mean = vectors.mean(axis=0)
    return mean / np.linalg.norm(mean, axis=-1, keepdims=True)


def disagreement(scores: Vectors) -> Vectors:
    """(K, I, N) member cosines -> (I, N) standard deviation over the members; 0 for one member."""
    return scores.std(axis=0)


def subset(vectors: Vectors, members: Sequence[int] | None) -> Vectors:
    """The chosen members' vectors, or all of them."""
    return vectors if members is None else vectors[list(members)]
