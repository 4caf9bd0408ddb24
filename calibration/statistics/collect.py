"""What flows into the layers of a stage: ranges and sampled rows of activations, in one pass over some samples.

An int8 scale is fitted to the numbers that a layer will see. Keeping them all is out of the question: the inputs of
the linear layers of a large trunk are hundreds of megabytes for one frame. So each sample is run once, and of every
watched tensor remain the largest magnitude per channel, a few of its rows drawn at random, and the row that holds its
largest number. That row is why a handful is enough: transformers put their outliers into single tokens, which a draw
of a few rows would miss, and which decide where a range ends.

What remains of a sample goes into a cache under a name made of everything it depends on. So a run that was
interrupted continues where it stopped, runs with overlapping samples share work, and the result is the same to the
last bit whichever samples came from the cache: it is a fold over the samples in their order.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.statistics.cache import StatisticsCache
from trunkline.runtime.errors import BackendError, InputError
from trunkline.runtime.progress import Progress, silent

#: Changes whenever the same arguments would give other statistics, so that nothing old is taken from a cache.
VERSION = 1
#: With the row of the largest number that makes 5 a sample: 440 MB for 128 frames of a 24-block, 1024-wide trunk.
DEFAULT_ROWS = 4
DEFAULT_SEED = 42
STEP = "calibration samples"

Floats = NDArray[np.float32]
Inputs = dict[str, NDArray[Any]]
#: A digest of a sample's inputs, and how to get them: the stage's inputs by name.
StageInput = tuple[str, Callable[[], Inputs]]


class Runner(Protocol):
    """Something that computes the watched tensors of a stage, such as ``Watch`` in the module ``watch``.

    Attributes:
        stage: name of the stage, for messages.
        values: names of the watched tensors.
        digest: of everything but the inputs that the numbers depend on.
    """

    @property
    def stage(self) -> str: ...

    @property
    def values(self) -> tuple[str, ...]: ...

    @property
    def digest(self) -> str: ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Floats]]:
        """Every watched tensor as (rows, C) float32, one after the other, so that the caller can drop each."""


@dataclass(frozen=True)
class Sampling:
    """Which rows of a tensor are kept: how many drawn at random per sample, and the seed of the draw."""

    rows: int = DEFAULT_ROWS
    seed: int = DEFAULT_SEED


@dataclass(frozen=True, eq=False)
class TensorStatistics:
    """What was seen of one tensor. A channel is an index of its last dimension, a row a vector along it.

    Attributes:
        absmax: (C,) float32, largest magnitude per channel, exact over all rows seen.
        rows: (n, C) float32, sampled rows; of each sample some at random and the one with the largest number.
        weights: (n,) float32, how many rows seen each sampled row stands for: 1 for the row with the largest number.
            Sums weighted so are unbiased although outliers are always kept.
        count: rows seen.
    """

    absmax: Floats
    rows: Floats
    weights: Floats
    count: int

    def reduced(self, most: int) -> TensorStatistics:
        """With at most so many sampled rows, always the same ones; itself where there are not more.

        They are drawn at random: rows come in a fixed pattern, so that every n-th may be an outlier each time.
        """
        if len(self.rows) <= most:
            return self
        chosen = sorted(random.Random(DEFAULT_SEED).sample(range(len(self.rows)), most))
        return replace(self, rows=self.rows[chosen], weights=self.weights[chosen])


def collect(
    runner: Runner,
    samples: Sequence[StageInput],
    cache: Path | None = None,
    progress: Progress = silent,
    sampling: Sampling | None = None,
) -> dict[str, TensorStatistics]:
    """Statistics of every watched tensor of a stage.

    Args:
        runner: what computes the tensors; it is not run for samples that the cache holds.
        samples: digests of inputs, and how to load them; each holds one or several entries of what varies.
        cache: folder of the cache, such as :func:`trunkline.calibration.statistics.cache.default_folder`; None for
            no cache.
        progress: counts samples.
        sampling: which rows are kept; None for the defaults.

    Raises:
        InputError: there is no sample, no row is asked for, or a watched tensor has no channels.
        BackendError: the stage failed, or computed NaN or infinity: stage, tensor and sample are named.
    """
    sampling = sampling or Sampling()
    if not samples or sampling.rows < 1:
        raise InputError(
            "cannot collect statistics",
            where=f"stage {runner.stage}",
            expected="at least one sample, and at least one row of each",
            found=f"{len(samples)} samples, {sampling.rows} rows",
        )
    store = StatisticsCache(cache) if cache is not None else None
    parts: dict[str, list[TensorStatistics]] = {name: [] for name in runner.values}
    for done, sample in enumerate(samples):
        progress(STEP, done, len(samples))
        for name, part in _of_sample(runner, sample, sampling, store).items():
            parts[name].append(part)
    progress(STEP, len(samples), len(samples))
    # Popped one by one: the rows of one tensor are held twice at a time, not those of all.
    return {name: merge(parts.pop(name), f"stage {runner.stage}, tensor {name}") for name in runner.values}


def merge(parts: Sequence[TensorStatistics], where: str) -> TensorStatistics:
    """Statistics of everything that the parts have seen, in their order.

    Raises:
        BackendError: the tensor does not have the same number of channels everywhere.
    """
    channels = sorted({len(part.absmax) for part in parts})
    if len(channels) != 1:
        raise BackendError(
            "a watched tensor changes its number of channels",
            where=where,
            expected="one size of the last dimension",
            found=", ".join(map(str, channels)),
            fix="watch inputs of linear layers only",
        )
    return TensorStatistics(
        absmax=np.max([part.absmax for part in parts], axis=0),
        rows=np.concatenate([part.rows for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
        count=sum(part.count for part in parts),
    )


def _of_sample(
    runner: Runner, sample: StageInput, sampling: Sampling, store: StatisticsCache | None
) -> dict[str, TensorStatistics]:
    digest, load = sample
    if store is None:
        return _measured(runner, digest, load, sampling)
    key = _key(runner, digest, sampling)
    found = _unpacked(store.get(key), runner.values)
    if found is None:
        found = _measured(runner, digest, load, sampling)
        store.put(key, _packed(found, runner.values))
    return found


def _measured(
    runner: Runner, digest: str, load: Callable[[], Inputs], sampling: Sampling
) -> dict[str, TensorStatistics]:
    result = {}
    for name, tensor in runner.run(load()):
        where = f"stage {runner.stage}, tensor {name}, sample {digest}"
        generator = random.Random(_digest_of(sampling.seed, digest, name))
        result[name] = summarise(tensor, sampling.rows, generator, where)
    return result


def summarise(tensor: Floats, rows: int, generator: random.Random, where: str) -> TensorStatistics:
    """Statistics of one tensor of one sample.

    Args:
        tensor: (n, C) float32.
        rows: how many to draw, besides the one with the largest number.
        generator: of the draw.
        where: stage, tensor and sample, for messages.

    Raises:
        InputError: the tensor is empty.
        BackendError: it holds NaN or infinity.
    """
    if tensor.size == 0:
        raise InputError("a watched tensor is empty", where=where, found=str(tensor.shape), fix="check the sample")
    # Two reductions instead of one over np.abs: no second array of the tensor's size. Both pass NaN on.
    absmax = np.maximum(np.abs(tensor.max(axis=0)), np.abs(tensor.min(axis=0)))
    if not np.isfinite(absmax).all():
        raise _not_finite(tensor, where)
    largest = int(np.maximum(tensor.max(axis=1), -tensor.min(axis=1)).argmax())
    others = [index for index in range(len(tensor)) if index != largest]
    drawn = sorted(generator.sample(others, min(rows, len(others))))
    each = len(others) / len(drawn) if drawn else 0.0
    return TensorStatistics(
        absmax=absmax,
        rows=tensor[[largest, *drawn]],
        weights=np.array([1.0, *[each] * len(drawn)], np.float32),
        count=len(tensor),
    )


def _not_finite(tensor: Floats, where: str) -> BackendError:
    wrong = ~np.isfinite(tensor)
    channels = np.flatnonzero(wrong.any(axis=0))
    return BackendError(
        "a stage computed numbers that are not finite",
        where=where,
        expected="finite numbers",
        found=f"{int(wrong.sum())} of {tensor.size} are NaN or infinite, the first in channel {channels[0]}",
        fix="check the sample, and run `trunkline verify` on the float32 bundle",
    )


def _key(runner: Runner, digest: str, sampling: Sampling) -> str:
    """Name of a sample's statistics in the cache: everything they depend on."""
    return _digest_of(VERSION, runner.digest, list(runner.values), digest, sampling.rows, sampling.seed)


def _digest_of(*parts: object) -> str:
    """SHA-256 over values that JSON writes alike everywhere; unlike joined text it cannot confuse their borders."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _packed(statistics: Mapping[str, TensorStatistics], values: Sequence[str]) -> dict[str, NDArray[Any]]:
    """As arrays by name. Tensors are numbered, since their names may be anything."""
    packed: dict[str, NDArray[Any]] = {"count": np.array([statistics[name].count for name in values], np.int64)}
    for index, name in enumerate(values):
        each = statistics[name]
        packed |= {f"{index}.absmax": each.absmax, f"{index}.rows": each.rows, f"{index}.weights": each.weights}
    return packed


def _unpacked(packed: Mapping[str, NDArray[Any]] | None, values: Sequence[str]) -> dict[str, TensorStatistics] | None:
    """The reverse. The cache has checked that these are the arrays that were stored under this key."""
    if packed is None:
        return None
    return {
        name: TensorStatistics(
            absmax=packed[f"{index}.absmax"],
            rows=packed[f"{index}.rows"],
            weights=packed[f"{index}.weights"],
            count=int(packed["count"][index]),
        )
        for index, name in enumerate(values)
    }
