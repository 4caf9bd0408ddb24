"""The frozen encoder: loaded by open_clip's own loader, and the two features that heads read from it.

What heads were trained on is not what the towers return (docs/design.md, "The cut"):

- patches: output of the *last vision block's attention*, a class token dropped, L2-normalised;
- tokens: output of the text transformer, through the final norm and the projection, L2-normalised.

Both are captured with hooks while the tower runs as its authors wrote it, so every timm model with
``blocks[-1].attn`` works. In a traced graph whatever comes after the cut is dead code and disappears.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.timm_model import TimmModel
from torch import Tensor, nn

from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.read import FROZEN_CASTS, digest_tensors
from trunkline.exporter.preprocessing import image_spec, text_assets
from trunkline.runtime.errors import TrunkError
from trunkline.runtime.image import ImageSpec
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.text import TextSpec

#: What open_clip raises for a wrong name, a missing or broken file, weights that do not fit, or no network.
LOADER_ERRORS = (RuntimeError, ValueError, OSError, KeyError, TypeError, AssertionError, AttributeError, ImportError)


@dataclass(frozen=True)
class Trunk:
    """A frozen open_clip model and what the bundle must know of it.

    Attributes:
        name: open_clip name, as in the checkpoint or on the command line.
        model: the whole ``torch.nn.Module``, float32, eval mode.
        tokenizer: as ``open_clip.get_tokenizer`` gives it.
        width: D, of patches and tokens alike.
        patches: P.
        context_length: L.
        image: size, resize and normalisation of the images it was trained on.
        text: how instructions become ids; with ``tokenizer_json``, the tokenizer as data.
    """

    name: str
    model: Any
    tokenizer: Any
    width: int
    patches: int
    context_length: int
    image: ImageSpec
    text: TextSpec
    tokenizer_json: bytes

    def digest(self, progress: Progress = silent) -> str:
        """SHA-256 of the weights."""
        return digest_tensors(self.model.state_dict().items(), progress)

    def is_frozen_in(self, checkpoint: Checkpoint, progress: Progress = silent) -> bool:
        """Whether a checkpoint's frozen weights are these; also true of one that carries none.

        Both sides are compared in bfloat16. Weights that were stored in float16 have been rounded twice, so if the
        digests differ, these are rounded in the same way before a difference is believed.
        """
        weights = self.model.state_dict().items()
        digests = (digest_tensors(weights, progress, casts) for casts in (FROZEN_CASTS, (torch.float16, *FROZEN_CASTS)))
        return checkpoint.frozen_digest is None or checkpoint.frozen_digest in digests


def load_trunk(name: str, weights: Path | None = None) -> Trunk:
    """Builds a trunk by its open_clip name.

    Args:
        name: ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, or a built-in name (then ``weights`` is needed).
        weights: weights of a built-in model.

    Raises:
        TrunkError: the model cannot be built with its real weights, or is of a kind that cannot be cut.
    """
    schema = name.partition(":")[0] if ":" in name else None
    if schema is None and weights is None:
        raise TrunkError(
            "a built-in model name comes without weights, and random weights give meaningless scores",
            where=name,
            fix="pass --trunk-weights FILE, or use hf-hub:ORG/REPO or local-dir:FOLDER",
        )
    if schema is not None and weights is not None:
        raise TrunkError("--trunk-weights is for built-in model names only", where=name, fix="leave it out")
    if weights is not None and not Path(weights).is_file():
        raise TrunkError("cannot read the trunk's weights", where=weights, found="no such file", fix="check the path")
    pretrained = None if weights is None else str(weights)
    model = _quietly(name, lambda: open_clip.create_model(name, pretrained, require_pretrained=True))
    tokenizer = _quietly(name, lambda: open_clip.get_tokenizer(name))
    return describe(name, model, tokenizer)


def _quietly(name: str, build: Callable[[], Any]) -> Any:
    """open_clip logs every step through the root logger; only its errors matter to our users."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        return build()
    except LOADER_ERRORS as error:
        raise TrunkError(
            "open_clip cannot build the trunk",
            where=name,
            expected="a model name that open_clip knows, with its weights and tokenizer files",
            found=f"{type(error).__name__}: {str(error)[:500]}",
            fix="check the spelling and the network, or download the model and name it local-dir:FOLDER",
        ) from error
    finally:
        logging.root.setLevel(level)


def describe(name: str, model: Any, tokenizer: Any) -> Trunk:
    """A :class:`Trunk` around a model that is already built.

    Raises:
        TrunkError: the model is of a kind that cannot be cut.
    """
    _refuse_uncuttable(name, model)
    model = model.float().eval().requires_grad_(False)
    text, tokenizer_json = text_assets(tokenizer, text_owner(model).token_embedding.weight.shape[0])
    image = image_spec(model)
    with torch.no_grad():
        patches = VisionFeatures(model)(torch.zeros(1, 3, image.height, image.width))
        tokens = TextFeatures(model)(torch.zeros(1, text.context_length, dtype=torch.long))
    if patches.shape[-1] != tokens.shape[-1]:
        raise TrunkError(
            "the two towers have different widths, so text cannot be compared with patches",
            where=name,
            found=f"patches of width {patches.shape[-1]}, text tokens of width {tokens.shape[-1]}",
            fix="use a trunk whose text projection has the vision width",
        )
    return Trunk(
        name, model, tokenizer, patches.shape[-1], patches.shape[1], tokens.shape[1], image, text, tokenizer_json
    )


def text_owner(model: Any) -> Any:
    """The module that holds the text transformer: ``model.text``, or in plain CLIP the model itself."""
    return getattr(model, "text", model)


def _refuse_uncuttable(name: str, model: Any) -> None:
    visual, owner = getattr(model, "visual", None), text_owner(model)
    problems = []
    if not isinstance(visual, TimmModel):
        problems.append(f"vision tower is {type(visual).__name__}, not a timm model")
    elif not hasattr(next(reversed(getattr(visual.trunk, "blocks", [None])), None), "attn"):
        problems.append(f"vision tower {type(visual.trunk).__name__} has no attention in a last block")
    if not all(hasattr(owner, part) for part in ("token_embedding", "transformer", "ln_final", "text_projection")):
        parts = "token_embedding, transformer, ln_final and text_projection"
        problems.append(f"text tower {type(owner).__name__} has no {parts}")
    if getattr(owner, "cls_emb", None) is not None:
        problems.append("text tower appends a class token")
    if problems:
        raise TrunkError(
            "the trunk cannot be cut where the heads read it",
            where=name,
            expected="an open_clip model with a timm vision transformer and open_clip's text transformer",
            found=problems,
            fix="use a SigLIP or SigLIP2 model, such as the published ViT-L-16-SigLIP2-384",
        )


def captured(module: nn.Module, run: Callable[[], object]) -> Tensor:
    """What ``module`` returns while ``run`` runs."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        run()
    finally:
        handle.remove()
    return outputs[-1]


class VisionFeatures(nn.Module):
    """Normalised images (B, 3, height, width) -> patches (B, P, D) float32, unit rows."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.trunk: Any = model.visual.trunk
        height, width = model.visual.image_size
        kernel = self.trunk.patch_embed.proj.kernel_size
        self.patches = (height // kernel[0]) * (width // kernel[1])

    def forward(self, images: Tensor) -> Tensor:
        attended = captured(self.trunk.blocks[-1].attn, lambda: self.trunk.forward_features(images))
        tokens = attended.shape[1]
        if tokens == self.patches + 1:
            attended = attended[:, 1:]  # class token
        elif tokens != self.patches:
            raise TrunkError(
                "the vision tower has more than one extra token",
                expected=f"{self.patches} patches, or one more for a class token",
                found=f"{tokens} tokens",
                fix="towers with register tokens are not supported; the published system cannot read them either",
            )
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
