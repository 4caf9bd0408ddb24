"""Half precision computed as half precision, on a CPU.

ONNX Runtime has few half kernels on CPUs: it computes such a graph in float32 and may drop casts, so it cannot tell
whether half precision suffices. Here ONNX's own reference evaluator runs the graph node by node in numpy, whose
float16 arithmetic rounds after every operation. Two kinds of kernel are told apart, since no file says which a GPU has:

- ``fused``: products are summed in float32 and normalisations, softmax, GELU and norms are computed in float32 inside;
  the result is rounded once. Kernels of GPUs usually are like this.
- ``stepwise``: every step inside is rounded to half, sums are trees of half sums, and products are summed in half after
  each sixteen terms. The worst that a library is allowed to do with the same graph.

numpy's own half matrix product sums in float32, like ``fused``, but is a thousand times slower than a float32 one.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from trunkline.exporter.cut import captured

Array = NDArray[Any]
Kernels = Literal["fused", "stepwise"]
TERMS = 16  # of a product that a matrix unit sums exactly before it rounds


class HalfEvaluator:
    """A stage as a file, run in true half precision."""

    def __init__(self, graph: Path, kernels: Kernels = "fused") -> None:
        self._evaluator = ReferenceEvaluator(onnx.load(graph), new_ops=list(OPERATORS[kernels]))

    def run(self, feed: dict[str, Array]) -> Array:
        """The stage's output; overflow gives infinities and NaN, quietly."""
        with np.errstate(all="ignore"):
            return self._evaluator.run(None, feed)[0]


def wide(*arrays: Array | None) -> list[Any]:
    return [None if array is None else np.asarray(array, np.float32) for array in arrays]


def rounded(result: Array, like: Array) -> Array:
    return result.astype(like.dtype)


def tree_sum(x: Array, axis: int) -> Array:
    """Pairs are added, then pairs of sums, each rounded to x's type; keeps the axis."""
    x = np.moveaxis(x, axis, -1)
    while x.shape[-1] > 1:
        if x.shape[-1] % 2:
            x = np.concatenate([x, np.zeros_like(x[..., :1])], -1)
        x = x[..., 0::2] + x[..., 1::2]
    return np.moveaxis(x, -1, axis)


def product(a: Array, b: Array, stepwise: bool) -> Array:
    if a.dtype != np.float16:
        return a @ b
    wide_a, wide_b = wide(a, b)
    if not stepwise:
        return rounded(wide_a @ wide_b, a)
    total = np.zeros((*np.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]), np.float32)
    for start in range(0, a.shape[-1], TERMS):
        terms = wide_a[..., start : start + TERMS] @ wide_b[..., start : start + TERMS, :]
        total = (total + terms).astype(np.float16).astype(np.float32)
    return total.astype(np.float16)


def erf(x: Array) -> Array:
    return rounded(torch.erf(torch.from_numpy(np.asarray(x, np.float32))).numpy(), x)


def gelu(x: Array, approximate: str) -> Array:
    """Every operation rounds to x's type."""
    number = x.dtype.type
    if approximate == "tanh":
        inner = number(0.7978845608) * (x + number(0.044715) * (x * x * x))
        return number(0.5) * x * (number(1) + np.tanh(inner))
    return number(0.5) * x * (number(1) + erf(x * number(0.70710678)))


def softmax(x: Array, axis: int) -> Array:
    powers = np.exp(x - x.max(axis=axis, keepdims=True))
    return powers / tree_sum(powers, axis)


def layer_norm(x: Array, scale: Array, bias: Array | None, epsilon: float) -> Array:
    count = x.dtype.type(x.shape[-1])
    centred = x - tree_sum(x, -1) / count
    variance = tree_sum(centred * centred, -1) / count
    result = centred / np.sqrt(variance + x.dtype.type(epsilon)) * scale
    return result if bias is None else result + bias


def length(x: Array, axes: tuple[int, ...]) -> Array:
    return np.sqrt(tree_sum(x * x, axes[0]))


def convolution(x: Array, weight: Array, bias: Array | None, strides: list[int], stepwise: bool) -> Array:
    """Patches that do not overlap, as a product."""
    if list(weight.shape[2:]) != list(strides):
        raise NotImplementedError("only patch convolutions")
    batch, channels, height, width = x.shape
    rows, columns = height // strides[0], width // strides[1]
    patches = x.reshape(batch, channels, rows, strides[0], columns, strides[1]).transpose(0, 2, 4, 1, 3, 5)
    result = product(patches.reshape(batch, rows * columns, -1), weight.reshape(len(weight), -1).T, stepwise)
    if bias is not None:
        result = result + bias
    return result.transpose(0, 2, 1).reshape(batch, len(weight), rows, columns)


def operators(stepwise: bool) -> tuple[type[OpRun], ...]:
    def inside(compute: Callable[..., Array], x: Array, *others: Any) -> Array:
        """In the type of x, or in float32 and then rounded."""
        if stepwise:
            return compute(x, *others)
        arrays = [np.asarray(each, np.float32) if isinstance(each, np.ndarray) else each for each in others]
        return rounded(compute(np.asarray(x, np.float32), *arrays), x)

    class MatMul(OpRun):
        op_domain = ""

        def _run(self, a: Array, b: Array) -> tuple[Array]:
            return (product(a, b, stepwise),)

    class Gemm(OpRun):
        op_domain = ""

        def _run(self, a: Array, b: Array, c: Array | None = None, **kwargs: Any) -> tuple[Array]:
            result = product(a.T if kwargs.get("transA") else a, b.T if kwargs.get("transB") else b, stepwise)
            return (result if c is None else result + c,)

    class Conv(OpRun):
        op_domain = ""

        def _run(self, x: Array, weight: Array, bias: Array | None = None, **kwargs: Any) -> tuple[Array]:
            return (convolution(x, weight, bias, kwargs["strides"], stepwise),)

    class LayerNormalization(OpRun):
        op_domain = ""

        def _run(self, x: Array, scale: Array, bias: Array | None = None, **kwargs: Any) -> tuple[Array]:
            return (inside(layer_norm, x, scale, bias, kwargs.get("epsilon", 1e-5)),)

    class Softmax(OpRun):
        op_domain = ""

        def _run(self, x: Array, axis: int = -1) -> tuple[Array]:
            return (inside(softmax, x, axis),)

    class Gelu(OpRun):
        op_domain = ""

        def _run(self, x: Array, approximate: str = "none") -> tuple[Array]:
            return (inside(gelu, x, approximate),)

    class ReduceL2(OpRun):
        op_domain = ""

        def _run(self, x: Array, axes: Array | None = None, **_: Any) -> tuple[Array]:
            return (inside(length, x, (-1,) if axes is None else tuple(int(axis) for axis in axes)),)

    return MatMul, Gemm, Conv, LayerNormalization, Softmax, Gelu, ReduceL2


OPERATORS: dict[str, tuple[type[OpRun], ...]] = {"fused": operators(False), "stepwise": operators(True)}


def with_giants(model: Any, images: torch.Tensor, size: float = 1000.0, channels: tuple[int, ...] = (3, 17)) -> None:
    """Gives a timm vision tower what trained ones have: a few channels of the residual stream that are giants.

    Patches and extra tokens start with ``size`` in the first of a pair of channels and its negative in the second, a
    tenth of it varying with the image. (In pairs, so that a norm's mean stays what it was.)
    Norms are rescaled so that blocks see the other channels as large as before, and giants small. The last attention's
    rows, whose length the stage divides by, become as long as ``size``. What changes is how numbers are represented;
    scores stay close to what they were.

    Args:
        model: open_clip's, changed in place.
        images: (B, 3, height, width), normalised; norms are rescaled on them.
        size: of the giants.
        channels: which ones, in pairs.
    """
    tower, index = model.visual.trunk, torch.tensor(channels)
    first, second = index[0::2], index[1::2]
    attention = tower.blocks[-1].attn
    norms = [norm for block in tower.blocks for norm in (block.norm1, block.norm2)]
    with torch.no_grad():
        before = [spread for spread, _ in inputs_of(norms, tower, images)]
        projection = tower.patch_embed.proj
        varies = projection(images)[:, first].std(dim=(0, 2, 3))
        projection.weight[first] *= (size / 10 / varies)[:, None, None, None]
        projection.bias[first] = size
        projection.weight[second], projection.bias[second] = -projection.weight[first], -projection.bias[first]
        for token in (tower.cls_token, tower.reg_token):
            if token is not None:
                token[..., first], token[..., second] = size, -size
        for place, norm in enumerate(norms):
            giants = norm.weight[index] * 0.05
            norm.weight *= inputs_of(norms, tower, images)[place][0] / before[place]
            norm.weight[index] = giants
        longest = captured(attention, lambda: tower.forward_features(images)).norm(dim=-1).max()
        attention.proj.weight *= size / longest
        attention.proj.bias *= size / longest


def inputs_of(norms: list[Any], tower: Any, images: torch.Tensor) -> list[tuple[float, float]]:
    """Mean spread over channels, and largest magnitude, of what each norm reads."""
    found: list[tuple[float, float]] = []

    def look(_module: Any, inputs: tuple[torch.Tensor]) -> None:
        found.append((float(inputs[0].std(dim=-1).mean()), float(inputs[0].abs().max())))

    handles = [norm.register_forward_pre_hook(look) for norm in norms]
    tower.forward_features(images)
    for handle in handles:
        handle.remove()
    return found
