"""What an open_clip model does to images and text becomes data, or the reason why it cannot is named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import tokenizers
import torch
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer
from open_clip.transform import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, PreprocessCfg, image_transform_v2
from PIL import Image

from tests.tokenizers_kit import CONTEXT_LENGTH, CORPUS, ROWS, SAVERS, save_bpe, save_wordpiece
from trunkline.exporter import preprocessing
from trunkline.exporter.preprocessing import image_spec, text_assets
from trunkline.runtime.errors import TrunkError
from trunkline.runtime.image import ImageSpec, to_pixels
from trunkline.runtime.text import TextSpec, Tokenizer


def a_model(**settings: Any) -> Any:
    """Whatever carries ``visual.preprocess_cfg``, as open_clip models do."""
    return SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=settings))


def loaded(folder: Path, **options: Any) -> Any:
    return open_clip.get_tokenizer(f"local-dir:{folder}", **options)


class TestImageSpec:
    def test_of_siglip(self) -> None:
        half = (0.5, 0.5, 0.5)
        model = a_model(size=(384, 384), mean=half, std=half, interpolation="bicubic", resize_mode="squash", mode="RGB")
        assert image_spec(model) == ImageSpec(384, 384, "squash", "bicubic", 0, half, half)

    def test_of_clip_with_open_clips_defaults(self) -> None:
        expected = ImageSpec(224, 224, "shortest", "bicubic", 0, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD)
        assert image_spec(a_model()) == expected
        assert image_spec(a_model(size=224, mean=None, std=None, resize_mode=None, interpolation="random")) == expected

    def test_lists_and_single_numbers_from_json(self) -> None:
        spec = image_spec(a_model(size=[24, 40], mean=0.5, std=[0.2, 0.3, 0.4], resize_mode="longest", fill_color=7))
        assert spec == ImageSpec(24, 40, "longest", "bicubic", 7, (0.5, 0.5, 0.5), (0.2, 0.3, 0.4))

    def test_tiny_targets(self) -> None:
        assert image_spec(a_model(size=4)).height == 4

    def test_of_a_model_that_open_clip_built(self, tmp_path: Path) -> None:
        vision = {"image_size": [24, 40], "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
        text = {"context_length": 8, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1}
        settings = {
            "mean": [0.1, 0.2, 0.3],
            "std": [0.5, 0.6, 0.7],
            "resize_mode": "shortest",
            "interpolation": "bilinear",
        }
        config = {"model_cfg": {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": settings}
        (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
        model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}", load_weights=False)
        spec = image_spec(model)
        assert spec == ImageSpec(24, 40, "shortest", "bilinear", 0, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
        image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
        pixels = torch.from_numpy(to_pixels(image, spec)).permute(2, 0, 1).float()
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
        assert torch.equal((pixels / 255 - mean) / std, transform(image))

    @pytest.mark.parametrize(
        "model", [object(), SimpleNamespace(visual=None), SimpleNamespace(visual=SimpleNamespace(preprocess_cfg=None))]
    )
    def test_no_settings(self, model: Any) -> None:
        with pytest.raises(TrunkError, match=r"(?s)does not say how.*model\.visual\.preprocess_cfg.*found: NoneType"):
            image_spec(model)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"resize_mode": "stretch"}, "what open_clip's own evaluation transform accepts"),
            ({"interpolation": "nearest"}, "own evaluation transform"),
            ({"mode": "L"}, "own evaluation transform"),
            ({"colour": "RGB"}, "(?s)own evaluation transform.*colour"),
            ({"size": (1, 2, 3)}, "own evaluation transform"),
            ({"size": 2.5}, "own evaluation transform|whole numbers"),
            ({"size": 0}, "size is positive whole numbers"),
            ({"size": (224, -1)}, "size is positive whole numbers"),
            ({"size": 10_000}, "size is at most 64000000 pixels"),
            ({"fill_color": 256, "mean": (1.0, float("nan"), 0)}, "(?s)fill_color.*mean is finite"),
            ({"std": (0.5, 0.0, 0.5)}, "std is finite and above zero"),
            ({"std": (0.5, 0.5)}, "own evaluation transform"),
        ],
    )
    def test_wrong_settings(self, settings: dict[str, Any], message: str) -> None:
        with pytest.raises(
            TrunkError, match=r"(?s)preprocessing cannot be described.*open_clip_config\.json"
        ) as caught:
            image_spec(a_model(**settings))
        assert caught.match(message)

    def test_another_open_clip(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def other(config: PreprocessCfg, is_train: bool) -> Any:
            config.interpolation = "bilinear"
            return image_transform_v2(config, is_train=is_train)

        monkeypatch.setattr(preprocessing, "image_transform_v2", other)
        with pytest.raises(TrunkError, match=r"(?s)differs from open_clip's.*probe image of 97 x 61.*mode RGB"):
            image_spec(a_model(size=32))


class TestTextAssets:
    @pytest.mark.parametrize("kind", SAVERS)
    def test_fast_tokenizers(self, kind: str, tmp_path: Path) -> None:
        tokenizer = loaded(SAVERS[kind](tmp_path))
        spec, data = text_assets(tokenizer, ROWS)
        how = "whitespace" if kind == "wordpiece" else "canonicalize"
        assert spec == TextSpec(how, CONTEXT_LENGTH, None, ROWS)
        assert Tokenizer(spec, data)(CORPUS).tolist() == tokenizer(list(CORPUS)).tolist()

    @pytest.mark.parametrize("name", ["GemmaTokenizerFast", "T5TokenizerFast", "BertTokenizer"])
    def test_named_classes(self, name: str, tmp_path: Path) -> None:
        kind = {"G": "bpe", "T": "unigram", "B": "wordpiece"}[name[0]]
        path = SAVERS[kind](tmp_path) / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": name}))
        spec, data = text_assets(loaded(tmp_path), ROWS)
        assert Tokenizer(spec, data)(CORPUS).tolist() == loaded(tmp_path)(list(CORPUS)).tolist()

    @pytest.mark.parametrize("side", ["padding_side", "truncation_side"])
    def test_sides(self, side: str, tmp_path: Path) -> None:
        tokenizer = loaded(save_bpe(tmp_path, fast={side: "left"}))
        spec, data = text_assets(tokenizer, ROWS)
        assert json.loads(data)[side.split("_")[0]]["direction"] == "Left"
        assert Tokenizer(spec, data)(CORPUS).tolist() == tokenizer(list(CORPUS)).tolist()

    @pytest.mark.parametrize("how", ["canonicalize", "lower", "whitespace"])
    def test_cleaning(self, how: str, tmp_path: Path) -> None:
        assert text_assets(loaded(save_bpe(tmp_path, tokenizer_kwargs={"clean": how})), ROWS)[0].clean == how

    def test_context_length_is_the_tokenizers_own(self, tmp_path: Path) -> None:
        folder = save_bpe(tmp_path, context_length=9)
        assert text_assets(loaded(folder), ROWS)[0].context_length == 9
        assert text_assets(loaded(folder, context_length=5), ROWS)[0].context_length == 5

    def test_stripped_separator(self, tmp_path: Path) -> None:
        folder = save_wordpiece(tmp_path, tokenizer_kwargs={"clean": "lower", "strip_sep_token": True})
        assert text_assets(loaded(folder), ROWS)[0] == TextSpec("lower", CONTEXT_LENGTH, 2, ROWS)

    def test_the_tokenizer_is_left_as_it_was(self, tmp_path: Path) -> None:
        tokenizer = loaded(save_bpe(tmp_path))
        long = tokenizer(["put the block " * 9], context_length=30).tolist()
        text_assets(tokenizer, ROWS)
        assert tokenizer(["put the block " * 9], context_length=30).tolist() == long

    def test_siglips_own_class(self, tmp_path: Path) -> None:
        tokenizer = SigLipTokenizer.__new__(SigLipTokenizer)  # its constructor wants a sentencepiece file
        tokenizer.tokenizer, tokenizer.context_length = loaded(save_bpe(tmp_path)).tokenizer, 12
        assert text_assets(tokenizer, ROWS)[0] == TextSpec("canonicalize", 12, None, ROWS)

    @pytest.mark.parametrize(("how", "length"), [("lower", 2), ("lower", 3), ("canonicalize", 8), ("canonicalize", 77)])
    def test_clip(self, how: str, length: int) -> None:
        tokenizer = SimpleTokenizer(context_length=length, clean=how)
        spec, data = text_assets(tokenizer, ROWS)
        assert spec == TextSpec(how, length, None, ROWS)  # type: ignore[arg-type]
        assert Tokenizer(spec, data)(CORPUS).tolist() == tokenizer(list(CORPUS)).tolist()

    def test_clip_by_name(self) -> None:
        spec, data = text_assets(open_clip.get_tokenizer("ViT-B-32"), ROWS)
        assert spec == TextSpec("lower", 77, None, ROWS)
        assert Tokenizer(spec, data)(["hello world!"])[0, :6].tolist() == [49406, 3306, 1002, 256, 49407, 0]


class Slow:
    pad_token_id = 0


class Unpicklable:
    def pre_tokenize(self, text: Any) -> None:
        raise NotImplementedError


def with_changes(tokenizer: HFTokenizer, /, **changes: Any) -> HFTokenizer:
    for name, value in changes.items():
        setattr(tokenizer, name, value)
    return tokenizer


class TestUnsupportedTokenizers:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"reduction_mask": "simple"}, "drops tokens at random"),
            ({"additional_special_tokens": ["<mask>"]}, "additional special tokens"),
            ({"clean": "whitespace"}, "'lower' or 'canonicalize'.*without regard to case"),
            ({"context_length": None}, "context_length is None"),
            ({"context_length": 0}, "context_length is 0"),
        ],
    )
    def test_clip(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(TrunkError, match="(?s)cannot be described as data.*SimpleTokenizer.*" + message):
            text_assets(SimpleTokenizer(**options), ROWS)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"tokenizer_mode": "clips"}, "'clips' assembles ids in Python"),
            ({"tokenizer": Slow()}, "Slow is a slow tokenizer"),
            ({"clean_fn": str.lower}, "cleaning is not open_clip's"),
            ({"context_length": None}, "context_length is None"),
            ({"strip_sep_token": True}, "no such token"),
        ],
    )
    def test_fast(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        with pytest.raises(TrunkError, match=f"(?s)cannot be described as data.*HFTokenizer.*{message}"):
            text_assets(with_changes(loaded(save_bpe(tmp_path)), **changes), ROWS)

    def test_without_padding_token(self, tmp_path: Path) -> None:
        tokenizer = loaded(save_bpe(tmp_path))
        tokenizer.tokenizer.pad_token = None
        with pytest.raises(TrunkError, match="no padding token"):
            text_assets(tokenizer, ROWS)

    def test_split_special_tokens(self, tmp_path: Path) -> None:
        with pytest.raises(TrunkError, match="split_special_tokens is set"):
            text_assets(loaded(save_bpe(tmp_path, fast={"split_special_tokens": True})), ROWS)

    def test_python_parts(self, tmp_path: Path) -> None:
        tokenizer = loaded(save_bpe(tmp_path))
        custom = tokenizers.pre_tokenizers.PreTokenizer.custom(Unpicklable())
        tokenizer.tokenizer.backend_tokenizer.pre_tokenizer = custom
        with pytest.raises(TrunkError, match="a part of it is Python code"):
            text_assets(tokenizer, ROWS)

    def test_unknown_class(self) -> None:
        with pytest.raises(TrunkError, match=r"(?s)where: partial.*HFTokenizer, SigLipTokenizer or SimpleTokenizer"):
            text_assets(partial(print), ROWS)

    def test_no_room_for_words(self, tmp_path: Path) -> None:
        with pytest.raises(TrunkError, match="cannot be described as data"):
            text_assets(loaded(save_wordpiece(tmp_path, context_length=1)), ROWS)

    def test_other_ids_name_the_text(self, tmp_path: Path) -> None:
        class Other(HFTokenizer):
            def __call__(self, texts: Any, context_length: int | None = None) -> torch.Tensor:
                return super().__call__([text.replace("fish", "cat") for text in texts], context_length)

        tokenizer = loaded(save_bpe(tmp_path))
        tokenizer.__class__ = Other
        with pytest.raises(
            TrunkError, match=r"(?s)other ids than open_clip.*probe 'fish &amp; chips'.*expected:.*found:"
        ):
            text_assets(tokenizer, ROWS)
