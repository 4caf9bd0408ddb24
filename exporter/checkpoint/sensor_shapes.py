"""Sizes of a member's sensor side, read from its tensors.

The strategy shows in which tensors there are: ``cross_attn`` for cross-attention, ``gate`` for a gated mix, neither for
concatenation. Nothing is assumed of widths; the published V of 3,072 for instance is 2,048 in the published model.
"""

from __future__ import annotations

from collections.abc import Mapping

from trunkline.exporter.checkpoint.members import (
    SENSOR_ENCODER,
    SENSOR_FUSION,
    FusionKind,
    HeadShape,
    SensorShape,
    StateDict,
)
from trunkline.exporter.reference_sensor import BLOCK, KERNEL


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
            "it fuses a sensor but carries no sensor_encoder: name the encoder's file when merging (--sensor-encoder)"
        )
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
    wrong = [tuple(weight.shape) for weight in convolutions if weight.ndim != 3 or weight.shape[2] != KERNEL]
    if wrong or not convolutions:
        raise ValueError(
            f"sensor_encoder.conv_backbone needs convolutions of {KERNEL} samples, found {wrong or 'none'}"
        )
    layers = {key.split(".")[2] for key in state if key.startswith("transformer.layers.")}
    return SensorShape(
        channels=convolutions[0].shape[1],
        conv=tuple(weight.shape[0] for weight in convolutions),
        layers=len(layers),
        feedforward=state["transformer.layers.0.linear1.weight"].shape[0] if layers else 0,
        projection=state["projection.0.weight"].shape[0],
        features=state["projection.4.weight"].shape[0],
        fusion=fusion,
        fusion_width=fusion_width,
        tokens=tokens,
        absent="absent" in state,
    )


def _convolutions(state: StateDict) -> list:
    """Weights of the convolutions, which lie ``BLOCK`` modules apart."""
    found = []
    while (weight := state.get(f"conv_backbone.{BLOCK * len(found)}.weight")) is not None:
        found.append(weight)
    return found


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
