"""Checkpoints of the sensor-action system are recognised and read to the last tensor, and taken for nothing else."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.expert_kit import (
    DIFFUSION,
    FUSIONS,
    REGRESSION,
    SEEN,
    WIDTH,
    encoder_state,
    expert_state,
    fused,
    published,
    read,
    save,
    whole_model,
)
from tests.kit import SENSOR, random_checkpoint, random_member, save_training, training_dict, with_sensor
from trunkline.exporter.checkpoint.expert import (
    expert_shape,
    is_sensor_action,
    new_expert,
    read_sensor_action,
    refuse_sensor_action,
)
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.reference_expert import (
    DiffusionExpert,
    ExpertFusion,
    ExpertShape,
    RegressionExpert,
    step_code,
)
from trunkline.runtime.errors import CheckpointError

#: V of the published language model, and the published encoder's features.
PUBLISHED = ExpertShape("regression", "concat", 2048, 3072, 1024, 4, 4096, 8, 7)


def refused(path: Path, *words: str) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        read_sensor_action(path)
    missing = [word for word in (*words, str(path)) if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    return caught.value


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        (PUBLISHED, 72_448_007),
        (replace(PUBLISHED, fusion="gated"), 75_596_807),
        (replace(PUBLISHED, fusion="cross_attention"), 77_697_031),
        (replace(PUBLISHED, fusion="none", sensor=0), 69_302_279),
        (replace(PUBLISHED, kind="diffusion", horizon=0, time_width=128), 57_877_511),
    ],
    ids=["concat", "gated", "cross-attention", "none", "diffusion"],
)
def test_parameters_of_the_published_sizes(shape: ExpertShape, parameters: int) -> None:
    with torch.device("meta"):
        expert = new_expert(shape)
    assert sum(parameter.numel() for parameter in expert.parameters()) == parameters
    assert expert_shape(expert.published(), features=3072) == shape


@pytest.mark.parametrize("shape", [REGRESSION, DIFFUSION], ids=["regression", "diffusion"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_sizes_are_read_back(tmp_path: Path, shape: ExpertShape, fusion: ExpertFusion) -> None:
    shape = fused(fusion, replace(shape, width=24, layers=3, feedforward=17, action_dim=5))
    state = expert_state(shape)
    assert read(tmp_path, published(encoder_state(), state)).expert_shape == shape
    # The entry alone, without the language model's width to go by:
    found = read(tmp_path, {"sensor_encoder": encoder_state(), "action_expert": state}).expert_shape
    if fusion == "none":  # 40 numbers seen look like 20 and 20 of the sensor
        assert found is not None
        assert (found.fusion, found.seen, found.sensor) == ("concat", 20, 20)
    else:
        assert found == shape


@pytest.mark.parametrize("language", [None, 2048])
def test_whether_an_expert_takes_a_sensor_is_told_by_what_lies_beside_it(language: int | None) -> None:
    """The width of one projection is all that concatenation and no fusion differ in."""
    with torch.device("meta"):
        concat, none = (
            new_expert(shape).published() for shape in (PUBLISHED, replace(PUBLISHED, fusion="none", sensor=0))
        )

    def told(state: dict[str, Tensor], features: int | None) -> tuple[str, int, int]:
        shape = expert_shape(state, features, language)
        return shape.fusion, shape.seen, shape.sensor

    assert told(concat, 3072) == ("concat", 2048, 3072)
    assert told(none, 3072) == ("none", 2048, 0)
    assert told(concat, None) == (("concat", 2048, 3072) if language else ("unknown", 5120, 0))
    assert told(none, None) == (("none", 2048, 0) if language else ("unknown", 2048, 0))


def test_published_names() -> None:
    names = set(expert_state(fused("cross_attention")))
    assert {name.partition(".")[0] for name in names} == {
        *("pos_embed", "vl_proj", "sensor_proj", "cross_attn", "fusion_proj", "temporal_decoder", "output_head")
    }
    assert "temporal_decoder.layers.1.multihead_attn.in_proj_weight" in names
    names = set(expert_state(fused("gated", DIFFUSION)))
    assert {name.partition(".")[0] for name in names} == {
        *(
            "vl_proj",
            "sensor_proj",
            "gate",
            "cond_proj",
            "time_embed",
            "action_embed",
            "temporal_encoder",
            "output_head",
        )
    }
    assert {"gate.0.weight", "cond_proj.bias", "time_embed.2.weight", "output_head.3.bias"} <= names


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_condition_is_the_published_formula(fusion: ExpertFusion) -> None:
    expert = new_expert(fused(fusion)).eval()
    state = expert.published()
    seen, sensor = torch.randn(3, SEEN), torch.randn(3, expert.shape.sensor)

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    if fusion in ("concat", "none"):
        wanted = linear("fusion_proj", torch.cat([seen, sensor], dim=1))
    elif fusion == "gated":
        v, s = linear("vl_proj", seen), linear("sensor_proj", sensor)
        gate = linear("gate.0", torch.cat([v, s], dim=1)).sigmoid()
        wanted = linear("fusion_proj", gate * v + (1 - gate) * s)
    else:  # one token: all attention goes to it, whoever asks
        values = linear("vl_proj", seen) @ state["cross_attn.in_proj_weight"][2 * WIDTH :].T
        values = values + state["cross_attn.in_proj_bias"][2 * WIDTH :]
        wanted = linear("fusion_proj", linear("cross_attn.out_proj", values))
    torch.testing.assert_close(expert.condition(seen, sensor), wanted)


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def attention(x: Tensor, memory: Tensor, state: dict[str, Tensor], name: str, heads: int = 8) -> Tensor:
    weights = [each.T for each in state[f"{name}.in_proj_weight"].chunk(3)]
    biases = state[f"{name}.in_proj_bias"].chunk(3)
    q, k, v = (source @ w + b for source, w, b in zip((x, memory, memory), weights, biases, strict=True))
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    mixed = torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]), dim=-1) @ v
    return mixed.transpose(1, 2).flatten(2) @ state[f"{name}.out_proj.weight"].T + state[f"{name}.out_proj.bias"]


def feed_forward(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    hidden = (x @ state[f"{name}.linear1.weight"].T + state[f"{name}.linear1.bias"]).relu()
    return hidden @ state[f"{name}.linear2.weight"].T + state[f"{name}.linear2.bias"]


def test_the_regression_expert_layer_by_layer() -> None:
    expert = new_expert(REGRESSION).eval()
    assert isinstance(expert, RegressionExpert)
    state = expert.published()
    seen, sensor, chunk = torch.randn(2, SEEN), torch.randn(2, SENSOR.features), torch.randn(2, 8, 7)
    memory = expert.condition(seen, sensor).unsqueeze(1)
    x = state["pos_embed"].expand(2, -1, -1)
    for index in range(REGRESSION.layers):
        name = f"temporal_decoder.layers.{index}"
        x = layer_norm(x + attention(x, x, state, f"{name}.self_attn"), state, f"{name}.norm1")
        x = layer_norm(x + attention(x, memory, state, f"{name}.multihead_attn"), state, f"{name}.norm2")
        x = layer_norm(x + feed_forward(x, state, name), state, f"{name}.norm3")
    wanted = layer_norm(x, state, "output_head.0") @ state["output_head.1.weight"].T + state["output_head.1.bias"]
    actions, delta = expert(seen, chunk, sensor)
    torch.testing.assert_close(delta, wanted, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(actions, chunk + delta)


@pytest.mark.parametrize("horizon", [0, 6])
def test_the_diffusion_expert_layer_by_layer(horizon: int) -> None:
    expert = new_expert(replace(DIFFUSION, horizon=horizon)).eval()
    assert isinstance(expert, DiffusionExpert)
    state = expert.published()
    seen, sensor, chunk = torch.randn(2, SEEN), torch.randn(2, SENSOR.features), torch.randn(2, 6, 7)
    step = torch.tensor([0, 73])

    def linear(name: str, x: Tensor) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    silu = nn.functional.silu
    time = linear("time_embed.2", silu(linear("time_embed.0", step_code(step, 12))))
    x = linear("action_embed", chunk) + (time + expert.condition(seen, sensor)).unsqueeze(1)
    x = x + state.get("pos_embed", torch.zeros(()))
    for index in range(DIFFUSION.layers):
        name = f"temporal_encoder.layers.{index}"
        normal = layer_norm(x, state, f"{name}.norm1")
        x = x + attention(normal, normal, state, f"{name}.self_attn")
        x = x + feed_forward(layer_norm(x, state, f"{name}.norm2"), state, name)
    wanted = linear("output_head.3", silu(linear("output_head.1", layer_norm(x, state, "output_head.0"))))
    torch.testing.assert_close(expert(chunk, step, seen, sensor), wanted, atol=1e-5, rtol=1e-4)


def test_the_code_of_a_diffusion_step() -> None:
    code = step_code(torch.tensor([7]), 128)[0]
    angles = [7 * math.exp(-k * math.log(10000) / 63) for k in range(64)]
    torch.testing.assert_close(code, torch.tensor([*map(math.sin, angles), *map(math.cos, angles)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_published_file_is_read_whole(tmp_path: Path, dtype: torch.dtype) -> None:
    encoder, expert = (
        {key: value.to(dtype) for key, value in state.items()} for state in (encoder_state(), expert_state())
    )
    file = read(tmp_path, published(encoder, expert))
    assert file.encoder_shape == replace(SENSOR, absent=False)
    assert file.expert_shape == REGRESSION
    assert (file.whole_model, file.wrapped, file.bare, file.language_width) == (True, False, False, SEEN)
    assert file.encoder.differing() == file.expert.differing() == []
    assert file.expert.state is not None
    assert file.expert.state.keys() == expert.keys()
    assert file.describe() == (
        "sensor-action checkpoint, no verifier: a regression expert (concat fusion of 40 numbers seen with 20 of a "
        "sensor, 2 layers of 16, chunks of 8 of 7 numbers per action) and a sensor encoder (6 channels, 2 transformer "
        "layers, 20 features)"
    )


WHOLE = whole_model(encoder_state(), expert_state())
THEIRS: dict[str, Any] = {
    "published": published(encoder_state(), expert_state()),
    "entries alone": {"sensor_encoder": encoder_state(), "action_expert": expert_state()},
    "model alone": {"model_state_dict": WHOLE},
    "bare state dict": WHOLE,
    "wrapped": {"model_state_dict": {f"module.{key}": value for key, value in WHOLE.items()}},
    "expert only": {"action_expert": expert_state()},
    "encoder only": {"sensor_encoder": encoder_state()},
    "bare encoder": encoder_state(),
}
OTHERS: dict[str, Any] = {
    "training checkpoint": training_dict(random_member(with_sensor())),
    "bare verifier": random_member(with_sensor()).tensors(),
    "merged": {"ensemble_components": [], "sensor_encoder": encoder_state()},
    "foreign": {"weights": torch.zeros(1)},
    "empty": {},
    "number": {"model_state_dict": 3},
}


@pytest.mark.parametrize("content", THEIRS.values(), ids=list(THEIRS))
def test_their_files_are_recognised(tmp_path: Path, content: dict[str, Any]) -> None:
    assert is_sensor_action(content)
    file = read(tmp_path, content)
    assert file.describe().startswith("sensor-action checkpoint, no verifier: a")
    with pytest.raises(CheckpointError, match=r"(?s)not a verifier checkpoint but.*scores.*--sensor-encoder.*doctor"):
        refuse_sensor_action(content, "here")


@pytest.mark.parametrize("content", OTHERS.values(), ids=list(OTHERS))
def test_other_files_are_not(tmp_path: Path, content: dict[str, Any]) -> None:
    assert not is_sensor_action(content)
    assert read_sensor_action(save(tmp_path / "a.pt", content)) is None
    refuse_sensor_action(content, "here")


def test_files_that_are_not_theirs_by_their_name(tmp_path: Path) -> None:
    assert read_sensor_action(tmp_path / "none.pt") is None
    write_checkpoint(random_checkpoint(1), tmp_path / "e.safetensors")
    assert read_sensor_action(tmp_path / "e.safetensors") is None
    assert read_sensor_action(save_training(random_member(), tmp_path / "a.pt")) is None


def edited(shape: ExpertShape = REGRESSION, **tensors: Any) -> dict[str, Tensor]:
    """An expert with other tensors (None: without); ``__`` stands for the dots."""
    state = expert_state(shape) | {key.replace("__", "."): value for key, value in tensors.items()}
    return {key: value for key, value in state.items() if value is not None}


def test_every_tensor_that_is_wrong_is_named(tmp_path: Path) -> None:
    expert = edited(
        temporal_decoder__layers__1__norm3__weight=None,
        temporal_decoder__norm__weight=torch.zeros(16),
        output_head__0__bias=torch.zeros(3),
    )
    error = refused(
        save(tmp_path / "a.pt", published(encoder_state(), expert)), "a regression expert with concat fusion"
    )
    assert error.found == [
        "missing temporal_decoder.layers.1.norm3.weight (16,)",
        "unexpected temporal_decoder.norm.weight (16,)",
        "output_head.0.bias is (3,), expected (16,)",
    ]


@pytest.mark.parametrize(
    ("expert", "words"),
    [
        (lambda: edited(pos_embed=None), "missing pos_embed"),
        (lambda: edited(pos_embed=torch.zeros(1, 0, 16)), "pos_embed is of shape (1, 0, 16)"),
        (lambda: edited(fusion_proj__weight=torch.zeros(16)), "cannot read an action expert's sizes"),
        (lambda: edited(temporal_decoder__layers__0__linear1__weight=None), "layers.0.linear1.weight"),
        (lambda: edited(fused("gated"), sensor_proj__weight=torch.zeros(16, 21)), "reads 21 sensor features"),
        (lambda: expert_state(replace(REGRESSION, width=16, seen=41)), "fusion_proj"),
        (lambda: edited(DIFFUSION, time_embed__0__weight=torch.zeros(16, 3)), "time_embed.0.weight reads 3 numbers"),
        (lambda: edited(DIFFUSION, cond_proj__weight=None), "missing cond_proj.weight"),
    ],
)
def test_experts_that_cannot_be(tmp_path: Path, expert: Callable[[], dict[str, Tensor]], words: str) -> None:
    path = save(tmp_path / "a.pt", published(encoder_state(), expert()))
    if words == "fusion_proj":  # one number more to see is one more of the sensor, by the language model's width
        words = "reads 21 sensor features, the sensor encoder gives 20"
    refused(path, words)


def test_widths_that_no_attention_divides(tmp_path: Path) -> None:
    with torch.device("meta"):
        narrow = new_expert(replace(REGRESSION, width=12, heads=4)).published()
    expert = {key: torch.zeros(value.shape) for key, value in narrow.items()}
    refused(save(tmp_path / "a.pt", {"action_expert": expert}), "width 12 is not divisible by 8 heads")
    encoder = encoder_state()
    with torch.device("meta"):
        from trunkline.exporter.reference_sensor import SensorEncoder
        from trunkline.runtime.sensor.form import SensorForm

        other = SensorEncoder(replace(SENSOR, conv=(8, 12), absent=False), SensorForm(), 4).state_dict()
    encoder = {key: torch.ones(value.shape, dtype=value.dtype) for key, value in other.items()}
    refused(save(tmp_path / "a.pt", encoder), "cannot be examined", "width 12", "--sensor-heads")


def test_broken_encoders_are_named(tmp_path: Path) -> None:
    encoder = encoder_state()
    del encoder["conv_backbone.1.running_var"]
    content = published(encoder, expert_state())
    refused(save(tmp_path / "a.pt", content), "missing conv_backbone.1.running_var (8,)", "a.pt, sensor_encoder")


@pytest.mark.parametrize("part", ["sensor_encoder", "action_expert"])
def test_entries_that_are_no_state_dicts(tmp_path: Path, part: str) -> None:
    content = published(encoder_state(), expert_state()) | {part: [1]}
    refused(save(tmp_path / "a.pt", content), "not a state dict", part, "list")
    refused(save(tmp_path / "a.pt", {"sensor_encoder": {}, "action_expert": None}), "neither an expert nor")
