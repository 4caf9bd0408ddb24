"""Where the towers are cut, and which towers can be (docs/design.md, "The cut"; docs/trunks.md).

What heads were trained on is not what the towers return:

- patches: output of the *last vision block's attention*, a class token dropped, L2-normalised;
- tokens: output of the text transformer, through the final norm and the projection, L2-normalised.

Both are captured with hooks while the tower runs as its authors wrote it. In a traced graph whatever comes after the
cut is dead code and disappears. A model is examined before it is cut, in its parts and by a run, which costs nothing on
PyTorch's meta device: weights are neither needed nor read. Whatever is not understood is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import open_clip
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from trunkline.runtime.errors import TrunkError

#: What the code of a model raises when it is built wrongly, or is run on what it was not made for.
MODEL_ERRORS = (
    RuntimeError,
    ValueError,
    OSError,
    LookupError,
    TypeError,
    AssertionError,
    AttributeError,
    ImportError,
    ArithmeticError,
    StopIteration,
)
MAX_REASON_CHARS = 300

_TEXT_PARTS = ("token_embedding", "transformer", "ln_final", "text_projection")

Result = TypeVar("Result")


@dataclass(frozen=True)
class Cut:
    """Sizes of what heads read: ``width`` D of patches and tokens alike, ``patches`` P, ``context_length`` L."""

    width: int
    patches: int
    context_length: int


class _CannotCutError(Exception):
    """Why a tower cannot be cut, one reason per line."""

    def __init__(self, *reasons: str) -> None:
        self.reasons = reasons
        super().__init__("; ".join(reasons))


def cut_by_name(name: str) -> Cut:
    """Sizes of a trunk's features, from its configuration alone: the model is built without memory for its weights.

    Raises:
        TrunkError: the trunk cannot be cut. It may also raise ``MODEL_ERRORS`` for a model that open_clip cannot build.
    """
    config = open_clip.get_model_config(name if ":" in name else name.replace("/", "-")) or {}
    if hugging_face := config.get("text_cfg", {}).get("hf_model_name"):
        raise _refusal(name, [f"the text tower is Hugging Face's {hugging_face}, not open_clip's text transformer"])
    with torch.device("meta"):
        model = open_clip.create_model(name, load_weights=False, device="meta")
    return examine(name, model)


def examine(name: str, model: Any) -> Cut:
    """Sizes of the features of a model that is built, on whatever device it lies; it is set to eval mode.

    Raises:
        TrunkError: the model cannot be cut, for each of the reasons listed.
    """
    model.eval()
    patches, reasons = _tried(lambda: _patch_size(model))
    tokens, text_reasons = _tried(lambda: _token_size(model))
    reasons = [*reasons, *text_reasons]
    if patches and tokens and patches[1] != tokens[1]:
        reasons.append(f"the towers differ in width: patches have {patches[1]} numbers, text tokens {tokens[1]}")
    if reasons or not patches or not tokens:
        raise _refusal(name, reasons)
    return Cut(width=patches[1], patches=patches[0], context_length=tokens[0])


def _refusal(name: str, reasons: Sequence[str]) -> TrunkError:
    return TrunkError(
        "the trunk cannot be cut where the heads read it",
        where=name,
        expected="an open_clip model with a timm vision transformer and open_clip's text transformer, equally wide",
        found=reasons,
        fix="use a SigLIP or SigLIP2 model, such as the published ViT-L-16-SigLIP2-384; docs/trunks.md lists the "
        "built-in models that can be cut",
    )


def _tried(find: Callable[[], Result]) -> tuple[Result | None, Sequence[str]]:
    try:
        return find(), ()
    except _CannotCutError as error:
        return None, error.reasons


def text_owner(model: Any) -> Any:
    """The module that holds the text transformer: ``model.text``, or in plain CLIP the model itself."""
    return getattr(model, "text", model)


# The vision tower


def _patch_size(model: Any) -> tuple[int, int]:
    """P and D, seen in a run."""
    visual = getattr(model, "visual", None)
    if not isinstance(visual, TimmModel):
        raise _CannotCutError(f"the vision tower is open_clip's {type(visual).__name__}, not a timm model")
    if reasons := [*_block_reasons(visual.trunk), *_embedding_reasons(visual.trunk)]:
        raise _CannotCutError(*reasons)
    seen, attended = _run_vision(visual)
    if reasons := _pixel_reasons(visual, seen) or _attention_reasons(visual, attended):
        raise _CannotCutError(*reasons)
    return patch_count(visual), attended.shape[2]


def patch_count(visual: Any) -> int:
    """P: patches in one image of a timm tower whose patches are one convolution's."""
    height, width = visual.image_size
    kernel = visual.trunk.patch_embed.proj.kernel_size
    return (height // kernel[0]) * (width // kernel[1])


def _block_reasons(tower: Any) -> list[str]:
    blocks = getattr(tower, "blocks", None)
    last = blocks[-1] if isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) else None
    if isinstance(getattr(last, "attn", None), nn.Module):
        return []
    return [f"the vision tower {type(tower).__name__} has no attention in a last block (blocks[-1].attn)"]


def _embedding_reasons(tower: Any) -> list[str]:
    embedding = getattr(tower, "patch_embed", None)
    kind = f"the vision tower {type(tower).__name__}"
    if embedding is None:
        return [f"{kind} has no patch embedding (patch_embed)"]
    convolution = getattr(embedding, "proj", None)
    if not isinstance(convolution, nn.Conv2d):
        return [f"the patches of {kind} come from {type(embedding).__name__}, which is not one convolution"]
    kernel, stride, padding = convolution.kernel_size, convolution.stride, convolution.padding
    if kernel == stride and padding == (0, 0) and convolution.dilation == (1, 1):
        return []
    return [f"the patches of {kind} overlap or have a border: kernel {kernel}, stride {stride}, padding {padding}"]


def _run_vision(visual: Any) -> tuple[tuple[int, ...], Tensor]:
    """The shape that the patch convolution was given, and what the last attention made of it."""
    images = torch.zeros(1, 3, *visual.image_size, device=next(visual.parameters()).device)
    shapes: list[tuple[int, ...]] = []
    convolution = visual.trunk.patch_embed.proj
    handle = convolution.register_forward_pre_hook(lambda _module, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        attended = _ran(
            f"the vision tower {type(visual.trunk).__name__} does not take images of the configured "
            f"image_size, {_pixels(visual.image_size)}",
            lambda: captured(visual.trunk.blocks[-1].attn, lambda: visual.trunk.forward_features(images)),
        )
    finally:
        handle.remove()
    return (shapes or [()])[-1], attended


def _ran(problem: str, run: Callable[[], Tensor]) -> Tensor:
    try:
        with torch.no_grad():
            output = run()
    except MODEL_ERRORS as error:
        reason = " ".join(str(error).split())[:MAX_REASON_CHARS]
        raise _CannotCutError(f"{problem}: {reason or type(error).__name__}") from error
    if not isinstance(output, Tensor):
        raise _CannotCutError(f"what is to be cut is a {type(output).__name__}, not a tensor")
    return output


def _pixel_reasons(visual: Any, seen: tuple[int, ...]) -> list[str]:
    kind = type(visual.trunk.patch_embed).__name__
    if len(seen) != 4 or seen[1] != 3:
        return [f"the patches come from {kind}, which works on the image before it cuts it into patches"]
    if seen[2:] != tuple(visual.image_size):
        return [
            f"images of {_pixels(visual.image_size)} are padded to {_pixels(seen[2:])}, "
            "so the last patches see what is no image"
        ]
    return []


def _attention_reasons(visual: Any, attended: Tensor) -> list[str]:
    shape = tuple(attended.shape)
    if len(shape) != 3:
        return [f"the last attention gives a map {shape}, not one row of tokens for an image (1, tokens, width)"]
    if shape[0] != 1:
        return [f"the last attention looks at windows of an image, {shape[0]} of them, not at the whole"]
    tower, patches = visual.trunk, patch_count(visual)
    extra, known = shape[1] - patches, getattr(tower, "num_prefix_tokens", 1)
    if 0 <= extra <= min(known, 1):
        return []
    if extra == known:
        return [f"{extra} tokens come before the patches (class, register or distillation tokens); one is the most"]
    return [
        f"the last attention of {type(tower).__name__} sees {shape[1]} tokens, where an image has {patches} patches"
    ]


def _pixels(size: Sequence[int]) -> str:
    height, width = size
    return f"{width} x {height} px"


# The text tower


def _token_size(model: Any) -> tuple[int, int]:
    """L and D, seen in a run."""
    owner = text_owner(model)
    kind = f"the text tower {type(owner).__name__}"
    if missing := [part for part in _TEXT_PARTS if not hasattr(owner, part)]:
        raise _CannotCutError(f"{kind} has no {', '.join(missing)}")
    if getattr(owner, "cls_emb", None) is not None:
        raise _CannotCutError(f"{kind} appends a class token")
    length = owner.context_length
    ids = torch.zeros(1, length, dtype=torch.long, device=owner.token_embedding.weight.device)
    tokens = _ran(f"{kind} does not take its own {length} ids", lambda: TextFeatures(model)(ids))
    if tokens.ndim != 3 or tokens.shape[:2] != ids.shape:
        raise _CannotCutError(f"{kind} gives {tuple(tokens.shape)}, not one token for each of {length} ids")
    return length, tokens.shape[2]


# The cut


def captured(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What ``module`` returns while ``run`` runs.

    Raises:
        LookupError: it was not called.
    """
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        run()
    finally:
        handle.remove()
    if not outputs:
        raise LookupError(f"{type(module).__name__} is not called")
    return outputs[-1]


class VisionFeatures(nn.Module):
    """Normalised images (B, 3, height, width) -> patches (B, P, D) float32, unit rows; of a model that was examined."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.trunk: Any = model.visual.trunk
        self.patches = patch_count(model.visual)

    def forward(self, images: Tensor) -> Tensor:
        attended = captured(self.trunk.blocks[-1].attn, lambda: self.trunk.forward_features(images))
        if attended.shape[1] != self.patches:
            attended = attended[:, 1:]  # class token
        return unit_rows(attended.float())


class TextFeatures(nn.Module):
    """Token ids (I, L) int64 -> tokens (I, L, D) float32, unit rows."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, ids: Tensor) -> Tensor:
        owner = text_owner(self.model)
        hidden = owner.ln_final(captured(owner.transformer, lambda: self.model.encode_text(ids)))
        projection = owner.text_projection
        if isinstance(projection, nn.Linear):
            hidden = projection(hidden)
        elif projection is not None:
            hidden = hidden @ projection
        return unit_rows(hidden.float())


def unit_rows(features: Tensor) -> Tensor:
    """Rows of length one, without epsilon."""
    return features / features.norm(dim=-1, keepdim=True)
