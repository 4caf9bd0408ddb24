"""Sizes of a member's sensor side, read from its tensors.

The strategy shows in which tensors there are: ``cross_attn`` for cross-attention, ``gate`` for a gated mix, neither for
concatenation. Nothing is assumed of widths; the published V of 3,072 for instance is 2,048 in the published model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from trunkline.exporter.checkpoint.members import (
    SENSOR_ENCODER,
    SENSOR_FUSION,
    FusionKind,
    HeadShape,
    SensorShape,
    StateDict,
)
from trunkline.exporter.checkpoint.tensors import COUNTER
from trunkline.exporter.reference_sensor import BLOCK, KERNEL, SensorEncoder
from trunkline.runtime.sensor.form import MAX_CHANNELS, SensorForm


def sensor_shape(components: Mapping[str, StateDict], pool_width: int) -> SensorShape | None:
    """Sizes of the sensor side, None for a member without one.

    Args:
        components: component name -> state dict.
        pool_width: width of the member's pools.

    Raises:
        KeyError, IndexError, ValueError: tensors are missing or cannot be; for the caller to explain.
    """
    if SENSOR_ENCODER not in components and SENSOR_FUSION not in components:
        return None
    if SENSOR_ENCODER not in components:
        raise ValueError(
            "it fuses a sensor but carries no sensor_encoder: name the encoder's file when packing (--sensor-encoder)"
        )
    if SENSOR_FUSION not in components:
        raise ValueError("it carries a sensor_encoder but no sensor_fusion that would use it")
    fusion = components[SENSOR_FUSION]
    kind = _kind(fusion)
    seen = 2 * pool_width
    vl_width = fusion["vl_proj.weight"].shape[1] if kind != "concat" else seen
    if kind == "gated" and vl_width != seen:
        raise ValueError(f"sensor_fusion.vl_proj reads {vl_width} numbers; gated fusion needs {seen}, text and vision")
    return encoder_shape(
        components[SENSOR_ENCODER],
        fusion=kind,
        fusion_width=fusion["vl_proj.weight"].shape[0] if kind != "concat" else 0,
        tokens=_tokens(vl_width, pool_width),
    )


def encoder_shape(
    state: StateDict, *, fusion: FusionKind = "concat", fusion_width: int = 0, tokens: int = 1
) -> SensorShape:
    """Sizes of a sensor encoder's state dict; those of its fusion are handed through.

    Raises:
        KeyError, IndexError, ValueError: it is none.
    """
    convolutions = _convolutions(state)
    wrong = [f"{name} {tuple(weight.shape)}" for name, weight in convolutions.items() if not _is_convolution(weight)]
    if wrong or not convolutions:
        found = ", ".join(wrong) or "no conv_backbone.0.weight"
        raise ValueError(f"the sensor encoder needs convolutions (out, in, {KERNEL}), found {found}")
    weights = list(convolutions.values())
    layers = {key.split(".")[2] for key in state if key.startswith("transformer.layers.")}
    shape = SensorShape(
        channels=weights[0].shape[1],
        conv=tuple(weight.shape[0] for weight in weights),
        layers=len(layers),
        feedforward=state["transformer.layers.0.linear1.weight"].shape[0] if layers else 0,
        projection=state["projection.0.weight"].shape[0],
        features=state["projection.4.weight"].shape[0],
        fusion=fusion,
        fusion_width=fusion_width,
        tokens=tokens,
        absent="absent" in state,
    )
    sizes = (shape.channels, *shape.conv, shape.projection, shape.features, *[shape.feedforward][: shape.layers])
    if min(sizes) < 1 or shape.channels > MAX_CHANNELS:
        raise ValueError(f"the sensor encoder has sizes {sizes}; channels are 1 to {MAX_CHANNELS}, others at least 1")
    return shape


def _convolutions(state: StateDict) -> StateDict:
    """Weights of the convolutions, which lie ``BLOCK`` modules apart."""
    found: dict[str, torch.Tensor] = {}
    while (weight := state.get(name := f"conv_backbone.{BLOCK * len(found)}.weight")) is not None:
        found[name] = weight
    return found


def _is_convolution(weight: torch.Tensor) -> bool:
    return weight.ndim == 3 and weight.shape[2] == KERNEL


def encoder_problems(state: StateDict, shape: SensorShape) -> list[str]:
    """Tensors that keep a state dict from being an encoder of this shape, in words; see :func:`tensor_differences`.

    Args:
        state: the encoder's state dict, counters included.
        shape: its sizes, from :func:`encoder_shape`.
    """
    with torch.device("meta"):
        expected = SensorEncoder(shape, SensorForm(channels=shape.channels), heads=1).state_dict()
    return tensor_differences(expected, state)


def tensor_differences(expected: StateDict, actual: StateDict) -> list[str]:
    """Every tensor that is missing, unexpected or of another shape, in words."""
    found = [f"missing {name} {tuple(expected[name].shape)}" for name in expected if name not in actual]
    found += [f"unexpected {name} {tuple(actual[name].shape)}" for name in actual if name not in expected]
    found += [
        f"{name} is {tuple(actual[name].shape)}, expected {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in actual and actual[name].shape != tensor.shape
    ]
    return found


def value_problems(state: StateDict) -> Iterator[str]:
    """Tensors whose numbers nothing can be computed with, in words."""
    for name, tensor in state.items():
        if name.endswith(COUNTER):
            continue
        if not torch.isfinite(tensor.float()).all():
            yield f"{name} holds NaN or infinite values"
        elif name.endswith("running_var") and tensor.min() < 0:
            yield f"{name} holds variances below 0"


def _kind(fusion: StateDict) -> FusionKind:
    if any(key.startswith("cross_attn.") for key in fusion):
        return "cross_attention"
    return "gated" if any(key.startswith("gate.") for key in fusion) else "concat"


def _tokens(vl_width: int, pool_width: int) -> int:
    """Whether text and vision are one token or two: the projection of a token tells."""
    if vl_width not in (pool_width, 2 * pool_width):
        raise ValueError(
            f"sensor_fusion.vl_proj reads {vl_width} numbers: {pool_width} (text and vision as two tokens) or "
            f"{2 * pool_width} (as one) are possible"
        )
    return 2 * pool_width // vl_width


def sensor_problems(shape: HeadShape) -> list[str]:
    """Differences that would stop the module from being built, in words."""
    sensor, heads = shape.sensor, shape.sensor_heads
    if sensor is None:
        return []
    widths = {"transformer": sensor.conv[-1]} if sensor.layers else {}
    if sensor.fusion == "cross_attention":
        widths["cross_attn"] = sensor.fusion_width
    return [
        f"sensor {name} width {width} is not divisible by {heads} heads"
        for name, width in widths.items()
        if width % heads
    ]
