"""Which trunks can be cut: every kind of tower that cannot is refused for its own reason, before weights are read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from torch import nn
from typer.testing import CliRunner

from tests.kit import random_checkpoint
from tests.trunks import CONTEXT_LENGTH, model_config
from trunkline.exporter.checkpoint.write import write_checkpoint
from trunkline.exporter.cli import app
from trunkline.exporter.cut import Cut, VisionFeatures, captured, cut_by_name, examine
from trunkline.exporter.trunk import load_trunk
from trunkline.runtime.errors import TrunkError


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def configured(folder: Path, vision: str, image_size: Any = 160, width: int = 64, **text: Any) -> str:
    """The name of a trunk that is a configuration alone."""
    config = model_config("test_vit", **text) | {"embed_dim": width}
    config["vision_cfg"] |= {"timm_model_name": vision, "image_size": image_size}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    return f"local-dir:{folder}"


def refused(name: str) -> list[str]:
    """Why a trunk is refused."""
    with pytest.raises(TrunkError) as caught:
        cut_by_name(name)
    assert caught.value.problem == "the trunk cannot be cut where the heads read it"
    assert caught.value.where == name
    assert "docs/trunks.md" in str(caught.value.fix)
    return list(caught.value.found)  # type: ignore[call-overload]


ACCEPTED = {
    "class token": ("test_vit", 160, 64, 100),
    "one register token": ("test_vit2", 160, 64, 100),
    "no token but patches": ("vit_base_patch16_siglip_224", 224, 768, 196),
    "of a size that the tower adapts to": ("test_vit", 192, 64, 144),
    "wider than high": ("test_vit", [96, 160], 64, 60),
    "pixels left over": ("vit_so400m_patch14_siglip_384", 384, 1152, 729),
    "relative positions": ("vit_relpos_medium_patch16_cls_224", 224, 512, 196),
    "rotary positions": ("eva02_tiny_patch14_224", 224, 192, 256),
}


@pytest.mark.parametrize("kind", ACCEPTED)
def test_towers_that_can_be_cut(tmp_path: Path, kind: str) -> None:
    vision, size, width, patches = ACCEPTED[kind]
    name = configured(tmp_path, vision, size, width)
    assert cut_by_name(name) == Cut(width=width, patches=patches, context_length=CONTEXT_LENGTH)


#: By kind: timm's name, image_size of open_clip's configuration, reasons.
REFUSED: dict[str, tuple[str, Any, list[str]]] = {
    "convolutions before the patches": (
        "vitamin_small_224",
        224,
        ["the patches of the vision tower VisionTransformer come from HybridEmbed, which is not one convolution"],
    ),
    "a network, then one convolution": (
        "vit_base_r50_s16_224",
        224,
        ["the patches come from HybridEmbed, which works on the image before it cuts it into patches"],
    ),
    "several convolutions": (
        "xcit_nano_12_p16_224",
        224,
        ["the patches of the vision tower Xcit come from ConvPatchEmbed, which is not one convolution"],
    ),
    "no patch embedding": (
        "naflexvit_base_patch16_gap",
        384,
        ["the vision tower NaFlexVit has no patch embedding (patch_embed)"],
    ),
    "patches that overlap": (
        "hiera_tiny_224",
        224,
        [
            "the patches of the vision tower Hiera overlap or have a border: "
            "kernel (7, 7), stride (4, 4), padding (3, 3)"
        ],
    ),
    "a map": (
        "samvit_base_patch16",
        1024,
        ["the last attention gives a map (1, 64, 64, 768), not one row of tokens for an image (1, tokens, width)"],
    ),
    "register tokens": (
        "vit_small_patch14_reg4_dinov2",
        518,
        ["5 tokens come before the patches (class, register or distillation tokens); one is the most"],
    ),
    "register tokens and rotary positions": (
        "vit_small_patch16_dinov3",
        256,
        ["5 tokens come before the patches (class, register or distillation tokens); one is the most"],
    ),
    "windows": (
        "swin_tiny_patch4_window7_224",
        224,
        ["the vision tower SwinTransformer has no attention in a last block (blocks[-1].attn)"],
    ),
    "no transformer": (
        "test_convnext",
        160,
        [
            "the vision tower ConvNeXt has no attention in a last block (blocks[-1].attn)",
            "the vision tower ConvNeXt has no patch embedding (patch_embed)",
        ],
    ),
    "attention and MLP in one": (
        "vit_pwee_patch16_reg1_gap_256",
        256,
        ["the vision tower VisionTransformer has no attention in a last block (blocks[-1].attn)"],
    ),
    "larger than the tower": (
        "test_vit3",
        192,
        [
            "the vision tower VisionTransformer does not take images of the configured image_size, 192 x 192 px: "
            "Input height (192) doesn't match model (160)."
        ],
    ),
    "smaller than the tower": (
        "vit_base_patch16_siglip_224",
        96,
        [
            "the vision tower VisionTransformer does not take images of the configured image_size, 96 x 96 px: "
            "Input height (96) doesn't match model (224)."
        ],
    ),
    "no whole number of patches": (
        "test_vit",
        [160, 168],
        [
            "the vision tower VisionTransformer does not take images of the configured image_size, 168 x 160 px: "
            "Input width (168) should be divisible by patch size (16)."
        ],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_towers_that_cannot_be_cut(tmp_path: Path, kind: str) -> None:
    vision, size, reasons = REFUSED[kind]
    assert refused(configured(tmp_path, vision, size)) == reasons


BUILT_IN = {
    "RN50": ["the vision tower is open_clip's ModifiedResNet, not a timm model"],
    "ViT-B-32": ["the vision tower is open_clip's VisionTransformer, not a timm model"],
    "EVA02-B-16": ["the towers differ in width: patches have 768 numbers, text tokens 512"],
    "MobileCLIP-B": [
        "the patches of the vision tower VisionTransformer come from HybridEmbed, which is not one convolution"
    ],
    "roberta-ViT-B-32": ["the text tower is Hugging Face's roberta-base, not open_clip's text transformer"],
    "coca_base": [
        "the vision tower is open_clip's VisionTransformer, not a timm model",
        "the text tower TextTransformer appends a class token",
    ],
}


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_models_that_cannot_be_cut(name: str) -> None:
    assert refused(name) == BUILT_IN[name]


def test_a_slash_in_a_built_in_name() -> None:
    assert refused("roberta-ViT-B/32") == BUILT_IN["roberta-ViT-B-32"]


def meta_model(folder: Path, vision: str = "test_vit", image_size: int = 160) -> Any:
    with torch.device("meta"):
        return open_clip.create_model(configured(folder, vision, image_size), load_weights=False, device="meta")


def reasons_of(model: Any) -> list[str]:
    with pytest.raises(TrunkError) as caught:
        examine("changed", model)
    return list(caught.value.found)  # type: ignore[call-overload]


def test_padded_images(tmp_path: Path) -> None:
    model = meta_model(tmp_path)
    with torch.device("meta"):
        model.visual.trunk = timm.create_model("test_vit", dynamic_img_pad=True)
    model.visual.image_size = (100, 160)
    assert reasons_of(model) == [
        "images of 160 x 100 px are padded to 160 x 112 px, so the last patches see what is no image"
    ]


class Changed(nn.Module):
    """An attention whose output is changed by a function."""

    def __init__(self, attention: nn.Module, change: Any) -> None:
        super().__init__()
        self.attention, self.change = attention, change

    def forward(self, *inputs: Any, **settings: Any) -> Any:
        return self.change(self.attention(*inputs, **settings))


def change_attention(model: Any, change: Any) -> None:
    block = model.visual.trunk.blocks[-1]
    block.attn = Changed(block.attn, change)
    block.forward = lambda x, **_: (block.attn(block.norm1(x)), x)[1]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x.expand(4, -1, -1), "the last attention looks at windows of an image, 4 of them, not at the whole"),
        (
            lambda x: x[:, ::2],
            "the last attention of VisionTransformer sees 51 tokens, where an image has 100 patches",
        ),
        (
            lambda x: torch.cat([x, x], 1),
            "the last attention of VisionTransformer sees 202 tokens, where an image has 100 patches",
        ),
    ],
    ids=["windows", "merged tokens", "more tokens"],
)
def test_attention_that_sees_something_else(tmp_path: Path, change: Any, reason: str) -> None:
    model = meta_model(tmp_path)
    change_attention(model, change)
    assert reasons_of(model) == [reason]


def test_an_attention_that_gives_no_tensor(tmp_path: Path) -> None:
    model = meta_model(tmp_path)
    change_attention(model, lambda x: (x, None))
    assert reasons_of(model) == ["what is to be cut is a tuple, not a tensor"]


def test_an_attention_that_is_not_called(tmp_path: Path) -> None:
    model = meta_model(tmp_path)
    model.visual.trunk.blocks[-1].forward = lambda x, **_: x
    (reason,) = reasons_of(model)
    assert reason.endswith("160 x 160 px: Attention is not called")


def test_an_extra_token_that_the_tower_does_not_know(tmp_path: Path) -> None:
    """It may be anywhere, so no first token is dropped on suspicion."""
    model = meta_model(tmp_path, "vit_base_patch16_siglip_224", 224)
    change_attention(model, lambda x: torch.cat([x, x[:, :1]], 1))
    assert reasons_of(model) == [
        "the last attention of VisionTransformer sees 197 tokens, where an image has 196 patches"
    ]


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    name = configured(tmp_path, "samvit_base_patch16", 1024, embed_cls=True)
    vision, text = refused(name)
    assert "map (1, 64, 64, 768)" in vision
    assert text == "the text tower TextTransformer appends a class token"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ({"width": 48, "heads": 5}, "embed_dim must be divisible by num_heads"),
        ({"layers": "two"}, "'str' object cannot be interpreted as an integer"),
        ({"heads": 0}, "embed_dim and num_heads must be greater than 0"),
        ({"colour": "red"}, "unexpected keyword argument 'colour'"),
    ],
)
def test_configurations_that_open_clip_cannot_build(tmp_path: Path, text: dict[str, Any], words: str) -> None:
    with pytest.raises(TrunkError, match=f"(?s)open_clip cannot build the trunk.*({words})"):
        load_trunk(configured(tmp_path, "test_vit", **text))


def test_patch_dropout_is_for_training_only(tmp_path: Path) -> None:
    name = configured(tmp_path, "test_vit")
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["patch_dropout"] = 0.5
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert cut_by_name(name).patches == 100


def test_weights_are_not_read_for_a_trunk_that_cannot_be_cut(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"no weights")
    with pytest.raises(TrunkError, match=r"(?s)cannot be cut.*ViTamin-S.*HybridEmbed"):
        load_trunk("ViTamin-S", tmp_path / "weights.bin")


def test_the_sizes_are_those_of_a_run(trunk: Any) -> None:
    """Of the whole model, with its weights, and without the code that predicts them."""
    images = torch.rand(2, 3, 160, 160)
    visual = trunk.model.visual
    attended = captured(visual.trunk.blocks[-1].attn, lambda: visual(images))
    assert attended.shape == (2, 101, 64)
    assert (trunk.patches, trunk.width) == (100, 64)
    patches = VisionFeatures(trunk.model)(images)
    torch.testing.assert_close(patches, nn.functional.normalize(attended[:, 1:], dim=-1))


def test_a_tokenizer_of_another_length(trunk_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get_tokenizer = open_clip.get_tokenizer
    monkeypatch.setattr(open_clip, "get_tokenizer", lambda name: get_tokenizer(name, context_length=8))
    with pytest.raises(TrunkError, match=r"(?s)another length.*expected: 12 ids.*found: 8 ids.*context_length"):
        load_trunk(f"local-dir:{trunk_folder}")


@pytest.mark.parametrize("name", ["hf-hub:nobody/nothing", "hf-hub:", "local-dir:", "local-dir:/nowhere"])
def test_names_of_nothing(name: str) -> None:
    with pytest.raises(TrunkError, match="open_clip cannot build the trunk"):
        load_trunk(name)


def test_a_built_in_name_that_open_clip_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(TrunkError, match=r"(?s)cannot build the trunk.*'ViT-Q' not found.*check the spelling"):
        load_trunk("ViT-Q", tmp_path / "weights.bin")


def test_the_command_ends_as_for_any_mistake_of_its_user(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    write_checkpoint(random_checkpoint(1), tmp_path / "m.safetensors")
    command = ["export", str(tmp_path / "m.safetensors"), "-o", str(tmp_path / "bundle"), "--backbone", "MobileCLIP-B"]
    result = CliRunner().invoke(app, [*command, "--trunk-weights", str(tmp_path / "weights.bin")])
    assert result.exit_code == 1
    assert "HybridEmbed, which is not one convolution" in result.stderr
    assert not (tmp_path / "bundle").exists()
