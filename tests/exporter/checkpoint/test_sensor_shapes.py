"""Sizes of a sensor side are read from its tensors, whatever they are; what cannot be is named."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from tests.kit import FUSIONS, SENSOR, SMALL, SMALL_MLP, random_member, with_sensor
from trunkline.exporter.checkpoint.members import HeadShape, SensorShape, Settings
from trunkline.exporter.checkpoint.sensor_shapes import (
    encoder_problems,
    encoder_shape,
    tensor_differences,
    value_problems,
)
from trunkline.exporter.checkpoint.shapes import read_shape
from trunkline.exporter.reference_sensor import SensorEncoder
from trunkline.runtime.errors import CheckpointError
from trunkline.runtime.sensor.form import MAX_CHANNELS, SensorForm

PUBLISHED = SensorShape(1026, (512, 1024, 1024, 1024), 2, 4096, 3072, 3072)


def meta_state(shape: SensorShape) -> dict[str, torch.Tensor]:
    with torch.device("meta"):
        return SensorEncoder(shape, SensorForm(channels=shape.channels), heads=1).state_dict()


def test_the_published_sizes() -> None:
    with torch.device("meta"):
        encoder = SensorEncoder(PUBLISHED, SensorForm(), heads=8)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 47_238_656
    assert encoder_shape(encoder.state_dict()) == PUBLISHED
    assert PUBLISHED.stride == 16


def test_random_sizes_are_read_back() -> None:
    generator = random.Random()
    for _ in range(30):
        layers = generator.choice([0, 1, 3])
        shape = SensorShape(
            channels=generator.randint(1, 3000),
            conv=tuple(generator.randint(1, 50) for _ in range(generator.randint(1, 5))),
            layers=layers,
            feedforward=generator.randint(1, 90) if layers else 0,
            projection=generator.randint(1, 40),
            features=generator.randint(1, 40),
            absent=generator.random() < 0.5,
        )
        state = meta_state(shape)
        assert encoder_shape(state) == shape
        assert encoder_problems(state, shape) == []


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("base", [SMALL, SMALL_MLP], ids=["transformer", "mlp"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"absent": False}, {"layers": 0, "feedforward": 0}, {"channels": 1, "conv": (24,)}, {"features": 7}],
    ids=["usual", "no absence", "no transformer", "one channel, one convolution", "few features"],
)
def test_members_with_a_sensor(fusion: str, base: HeadShape, changes: dict) -> None:
    shape = with_sensor(base, fusion, **changes)
    member = random_member(shape)
    assert read_shape(member.components, member.settings, "here") == shape


def wrong(*words: str, shape: HeadShape | None = None, settings: Settings | None = None, **tensors: object) -> None:
    """A member with other tensors (None: without) is refused with these words; ``__`` stands for the dots."""
    member = random_member(shape or with_sensor())
    components = {name: dict(state) for name, state in member.components.items()}
    for key, value in tensors.items():
        part, _, name = key.replace("__", ".").partition(".")
        if not name:
            components.pop(part)
        elif value is None:
            del components[part][name]
        else:
            components[part][name] = torch.zeros(value)  # type: ignore[call-overload]
    with pytest.raises(CheckpointError) as caught:
        read_shape(components, settings or member.settings, "here")
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


def test_every_tensor_that_is_wrong_is_named() -> None:
    wrong(
        "tensors do not fit together",
        "missing sensor_encoder.conv_backbone.1.running_var (8,)",
        "unexpected sensor_encoder.transformer.norm.weight (16,)",
        "sensor_encoder.conv_backbone.5.weight is (9,), expected (16,)",
        "sensor_fusion.fusion_proj.bias is (5,), expected (32,)",
        sensor_encoder__conv_backbone__1__running_var=None,
        sensor_encoder__transformer__norm__weight=(16,),
        sensor_encoder__conv_backbone__5__weight=(9,),
        sensor_fusion__fusion_proj__bias=(5,),
    )


def test_widths_that_do_not_follow_from_each_other() -> None:
    wrong(
        "conv_backbone.4.weight is (16, 9, 3), expected (16, 8, 3)", sensor_encoder__conv_backbone__4__weight=(16, 9, 3)
    )
    wrong("projection.4.weight is (20, 13), expected (20, 12)", sensor_encoder__projection__4__weight=(20, 13))
    wrong("fusion_proj.weight is (32, 80), expected (32, 84)", sensor_fusion__fusion_proj__weight=(32, 80))
    wrong("absent is (3,), expected (20,)", sensor_encoder__absent=(3,))


def test_convolutions_of_another_kernel() -> None:
    wrong(
        "convolutions (out, in, 3), found conv_backbone.0.weight (8, 6, 5), conv_backbone.8.weight (16, 16)",
        sensor_encoder__conv_backbone__0__weight=(8, 6, 5),
        sensor_encoder__conv_backbone__8__weight=(16, 16),
    )
    wrong("found no conv_backbone.0.weight", sensor_encoder__conv_backbone__0__weight=None)


def test_a_missing_convolution_in_between() -> None:
    wrong("unexpected sensor_encoder.conv_backbone.8.weight", sensor_encoder__conv_backbone__4__weight=None)


def test_missing_layers() -> None:
    wrong("transformer.layers.0.linear1.weight", sensor_encoder__transformer__layers__0__linear1__weight=None)
    wrong("projection.0.weight", sensor_encoder__projection__0__weight=None)
    wrong(
        "missing sensor_encoder.transformer.layers.1.norm1.bias",
        sensor_encoder__transformer__layers__1__norm1__bias=None,
    )


def test_sizes_beyond_reason() -> None:
    size = (8, MAX_CHANNELS + 1, 3)
    wrong("sizes (", f"channels are 1 to {MAX_CHANNELS}", sensor_encoder__conv_backbone__0__weight=size)
    for empty in ((0, 6, 3), (8, 0, 3)):
        wrong(f"weight is of shape {empty}", sensor_encoder__conv_backbone__0__weight=empty)


@pytest.mark.parametrize("key", ["sensor_encoder__projection__0__weight", "sensor_fusion__fusion_proj__weight"])
def test_key_tensors_without_a_width(key: str) -> None:
    wrong("cannot read the member's sizes", **{key: ()})


def test_one_side_without_the_other() -> None:
    wrong("carries no sensor_encoder", "--sensor-encoder", sensor_encoder=None)
    plain = random_member().components["input_projection"]
    components = {**random_member(with_sensor()).components, "input_projection": plain}
    del components["sensor_fusion"]
    with pytest.raises(CheckpointError, match="a sensor_encoder but no sensor_fusion"):
        read_shape(components, Settings(), "here")


def test_token_widths_that_are_neither_one_token_nor_two() -> None:
    shape = with_sensor(fusion="cross-attention")
    wrong(
        "vl_proj reads 33 numbers",
        "32 (text and vision as two tokens) or 64",
        shape=shape,
        sensor_fusion__vl_proj__weight=(24, 33),
    )
    wrong("gated fusion needs 64", shape=with_sensor(fusion="gated"), sensor_fusion__vl_proj__weight=(24, 32))


def test_heads_that_do_not_divide_the_sensors_widths() -> None:
    shape = with_sensor(fusion="cross-attention")
    settings = replace(random_member(shape).settings, sensor_heads=5)
    wrong(
        "sensor transformer width 16",
        "sensor cross_attn width 24",
        "not divisible by 5 heads",
        shape=shape,
        settings=settings,
    )
    wrong("sensor_heads is 0", shape=shape, settings=replace(settings, sensor_heads=0))


def test_differences_name_tensors_and_shapes() -> None:
    expected = {"a": torch.zeros(2), "b": torch.zeros(3, 1), "c": torch.zeros(())}
    assert tensor_differences(expected, expected) == []
    actual = {"b": torch.zeros(1, 3), "c": torch.zeros(()), "d": torch.zeros(4)}
    assert tensor_differences(expected, actual) == [
        "missing a (2,)",
        "unexpected d (4,)",
        "b is (1, 3), expected (3, 1)",
    ]


def test_numbers_that_nothing_can_be_computed_with() -> None:
    state = {
        "fine": torch.ones(2, dtype=torch.bfloat16),
        "conv.num_batches_tracked": torch.tensor(3),
        "gone": torch.tensor([1.0, float("nan")]),
        "far": torch.tensor([1e300], dtype=torch.float64),
        "conv.running_var": torch.tensor([0.5, -1e-3]),
        "conv.running_mean": torch.tensor([-3.0]),
    }
    assert list(value_problems(state)) == [
        "gone holds NaN or infinite values",
        "far holds NaN or infinite values",
        "conv.running_var holds variances below 0",
    ]


def test_the_kit_covers_what_is_read() -> None:
    kinds = {with_sensor(fusion=fusion).sensor.fusion for fusion in FUSIONS}  # type: ignore[union-attr]
    assert kinds == {"concat", "gated", "cross_attention"}
    assert SENSOR.layers > 0
