"""What a trunk's makers say about its images, read apart from open_clip's loader.

The loader fills in what nobody said with CLIP's own values, and for weights from a file nobody says anything: a SigLIP
tower then gets CLIP's mean and crop, and everything that runs afterwards is wrong alike. So here only what was said
counts, by the command line, by ``preprocess_cfg`` in the trunk's folder, or by all published weights of a built-in name
alike; what is left open is refused. PyTorch references take their transform from here, bundles from the loaded model.

A third witness is timm, which states mean and std for its towers. It is heard where it is definite: all its weights of
the architecture agree, and so do all weights that open_clip publishes with that tower. For other towers (a general
``vit_base_patch16_224``) its values belong to other weights. Its resize and filter are those of its own evaluations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import open_clip
import timm
from open_clip.pretrained import download_pretrained_from_hf
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from trunkline.exporter.preprocessing import spec_of
from trunkline.runtime import record
from trunkline.runtime.errors import InputError, TrunkError
from trunkline.runtime.image import ImageSpec

#: A ``preprocess_cfg`` as open_clip writes it.
Settings = Mapping[str, Any]

#: What has to be said. The rest has one meaning: the size is the model's, padding is 0 as in open_clip's training.
REQUIRED = ("mean", "std", "interpolation", "resize_mode")
KNOWN = (*REQUIRED, "fill_color", "size", "mode")

_CONFIG_NAME = "open_clip_config.json"
_EXAMPLE = "mean=0.5,0.5,0.5 std=0.5,0.5,0.5 interpolation=bicubic resize_mode=squash"


def read_statement(text: str) -> dict[str, Any]:
    """What ``--preprocess`` says.

    Args:
        text: name of a JSON file, which holds a ``preprocess_cfg`` or an object with one; or its entries, such as
            ``mean=0.5,0.5,0.5 interpolation=bicubic``.

    Raises:
        InputError: it is neither, or says what is not known or nothing.
    """
    try:
        stated = _from_file(Path(text)) if text.endswith(".json") else _from_text(text)
    except (OSError, ValueError, record.RecordError) as error:
        raise _unreadable(text, str(error)) from error
    problems = [f"unknown: {key}" for key in stated if key not in KNOWN]
    problems += [f"no value: {key}" for key in stated if key not in explicit(stated)]
    if problems or not stated:
        raise _unreadable(text, problems or "nothing")
    return stated


def own_settings(name: str, stated: Settings) -> dict[str, Any]:
    """How the images of a trunk are prepared, as far as anybody said it; ``stated`` comes before all others.

    Args:
        name: open_clip name of the trunk.
        stated: on the command line.

    Raises:
        TrunkError: mean, std, filter or resize is left open, or is not what open_clip accepts.
        OSError, RuntimeError, ValueError, AttributeError: there is no such model, or no readable configuration.
    """
    builtin = ":" not in name
    said = _agreed(tag_settings(name)) if builtin else _of_folder(name)
    settings = explicit({**said, **stated})
    if missing := [key for key in REQUIRED if key not in settings]:
        raise _left_open(name, missing, tag_settings(name) if builtin else None)
    spec_of(settings)
    return settings


def explicit(settings: Settings) -> dict[str, Any]:
    """Settings without what open_clip takes for silence and fills in: null, what is empty, and 0 for all of a mean."""
    said = {key: value for key, value in settings.items() if value or (value == 0 and value is not False)}
    single = {
        key: [value] * 3 for key, value in said.items() if key in ("mean", "std") and isinstance(value, int | float)
    }
    return said | single


def tag_settings(name: str) -> dict[str, dict[str, Any]]:
    """Preprocessing of every set of weights that open_clip publishes for a built-in name, by tag.

    Raises:
        RuntimeError: open_clip does not know the name.
    """
    model = name.replace("/", "-")  # as the loader does
    if open_clip.get_model_config(model) is None:
        raise RuntimeError(f"model {name!r} is not built in")
    tags = open_clip.list_pretrained_tags_by_model(model)
    return {tag: _merged(open_clip.get_pretrained_cfg(model, tag)) for tag in tags}


def require_agreement(name: str, model: Any, image: ImageSpec, own: Settings, stated: Settings) -> dict[str, Any]:
    """Compares what the bundle will do with what the trunk's makers say, and gives the latter.

    Args:
        name: open_clip name of the trunk.
        model: the open_clip model, with a timm vision tower.
        image: preprocessing of the model as open_clip loaded it.
        own: of :func:`own_settings`.
        stated: on the command line; what is stated needs no second witness.

    Returns:
        A whole ``preprocess_cfg`` for open_clip's transform.

    Raises:
        TrunkError: two witnesses disagree, or a stated size is not the model's.
    """
    tower = tower_settings(model.visual.trunk)
    settings = {"size": (image.height, image.width), **own, **tower, **stated}
    theirs = spec_of(settings)
    differences = [
        f"{field}: {said} by {_witness(name, field, tower, stated)}, {ours} in the model as open_clip loaded it"
        for field in (each.name for each in fields(image))
        if (said := getattr(theirs, field)) != (ours := getattr(image, field))
    ]
    if differences:
        raise TrunkError(
            "the trunk's preprocessing is not certain: two sources disagree",
            where=name,
            found=differences,
            fix="state what the trunk was trained with; only the size is always the model's own. "
            f'For example --preprocess "{_EXAMPLE}"',
        )
    return settings


def tower_settings(tower: Any) -> dict[str, Any]:
    """Mean and std of a timm tower, where timm and every published open_clip model with it agree; else nothing."""
    architecture = (getattr(tower, "pretrained_cfg", None) or {}).get("architecture")
    if architecture is None:
        return {}
    timms = [cfg.to_dict() for cfg in timm.models.get_arch_pretrained_cfgs(architecture).values()]
    published = [
        cfg
        for name in open_clip.list_models()
        if open_clip.get_model_config(name)["vision_cfg"].get("timm_model_name") == architecture
        for cfg in tag_settings(name).values()
    ]
    said = {(tuple(cfg["mean"]), tuple(cfg["std"])) for cfg in (*timms, *published)}
    if not published or not timms or len(said) > 1:
        return {}
    mean, std = said.pop()
    return {"mean": mean, "std": std}


def in_words(settings: Settings) -> str:
    """Settings in the form that ``--preprocess`` takes."""
    return " ".join(f"{key}={_inline(value)}" for key, value in settings.items())


def _of_folder(name: str) -> dict[str, Any]:
    schema, _, place = name.partition(":")
    file = Path(place) / _CONFIG_NAME
    if schema == "hf-hub":
        file = Path(download_pretrained_from_hf(place, filename=_CONFIG_NAME))
    config = json.loads(file.read_text(encoding="utf-8"))
    return {key: value for key, value in (config.get("preprocess_cfg") or {}).items() if key in KNOWN}


def _agreed(tags: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    first, *others = list(tags.values()) or [{}]
    return {key: value for key, value in first.items() if all(each[key] == value for each in others)}


def _merged(published: Settings) -> dict[str, Any]:
    merged = merge_preprocess_dict(PreprocessCfg(), dict(published))
    return {key: merged[key] for key in (*REQUIRED, "fill_color")}


def _witness(name: str, field: str, tower: Settings, stated: Settings) -> str:
    key = {"height": "size", "width": "size", "fill": "fill_color"}.get(field, field)
    if key in stated:
        return "--preprocess"
    if key in tower:
        return "timm and all models that open_clip publishes with this tower"
    return f"open_clip's published weights of {name}" if ":" not in name else _CONFIG_NAME


def _left_open(name: str, missing: list[str], tags: Mapping[str, dict[str, Any]] | None) -> TrunkError:
    by_settings: dict[str, list[str]] = {}
    for tag, settings in (tags or {}).items():
        by_settings.setdefault(in_words(settings), []).append(tag)
    found = [f"weights {', '.join(each)}: {words}" for words, each in by_settings.items()]
    if tags is None:
        found = [f"a preprocess_cfg without {', '.join(missing)} in {_CONFIG_NAME}, or none"]
    return TrunkError(
        "it is not certain how the trunk's images are prepared, and another preprocessing gives wrong scores",
        where=name,
        expected=f"{', '.join(missing)}, once and for certain",
        found=found or "no published weights of this model, whose preprocessing would be known",
        fix=f'state what the trunk was trained with, in this form: --preprocess "{_EXAMPLE}"',
    )


def _from_file(file: Path) -> dict[str, Any]:
    content = record.parse(file.read_bytes())
    if isinstance(content, dict) and "preprocess_cfg" in content:
        content = content["preprocess_cfg"]
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    return dict(content)


def _from_text(text: str) -> dict[str, Any]:
    stated: dict[str, Any] = {}
    for entry in text.split():
        key, equals, value = entry.partition("=")
        if not equals or key in stated:
            raise ValueError(f"{entry!r}, which {'says it again' if equals else 'has no value'}")
        stated[key] = _value(value)
    return stated


def _value(text: str) -> Any:
    """A number, several, or a word."""
    try:
        values = [int(part) if part.isdecimal() else float(part) for part in text.split(",")]
    except ValueError:
        return text
    return values if len(values) > 1 else values[0]


def _inline(value: Any) -> str:
    return ",".join(f"{part:.9g}" for part in value) if isinstance(value, list | tuple) else str(value)


def _unreadable(text: str, found: object) -> InputError:
    return InputError(
        "the stated preprocessing cannot be read",
        where=f"--preprocess {text}",
        expected=f"a .json file with open_clip's preprocess_cfg, or entries of {', '.join(KNOWN)}",
        found=found,
        fix=f'for example --preprocess "{_EXAMPLE}"',
    )
