"""The frozen encoder: loaded by open_clip's own loader, after a look at what it is and at the file of its weights."""

from __future__ import annotations

import logging
import pickle  # noqa: TID251 - only its exception is caught; nothing is unpickled here
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors import SafetensorError

from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.read import FROZEN_CASTS, digest_tensors
from trunkline.exporter.cut import MODEL_ERRORS, cut_by_name, examine, text_owner
from trunkline.exporter.own_preprocessing import explicit, own_settings, require_agreement
from trunkline.exporter.preprocessing import image_spec, text_assets
from trunkline.exporter.trunk_weights import refuse_pointers, require_readable
from trunkline.runtime.errors import TrunkError
from trunkline.runtime.image import ImageSpec
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.text import TextSpec

#: What open_clip raises for a wrong name, a missing or broken file, weights that do not fit, or no network.
LOADER_ERRORS = (*MODEL_ERRORS, pickle.UnpicklingError, zipfile.BadZipFile, SafetensorError)


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
        image: size, resize and normalisation of the images, from the loaded model: what a bundle does.
        preprocess: the same as the trunk's makers state it, in open_clip's form: what PyTorch references do.
        text: how instructions become ids; with ``tokenizer_json``, the tokenizer as data.
    """

    name: str
    model: Any
    tokenizer: Any
    width: int
    patches: int
    context_length: int
    image: ImageSpec
    preprocess: dict[str, Any]
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


def load_trunk(name: str, weights: Path | None = None, stated: Mapping[str, Any] | None = None) -> Trunk:
    """Builds a trunk by its open_clip name.

    Args:
        name: ``hf-hub:ORG/REPO``, ``local-dir:FOLDER``, or a built-in name (then ``weights`` is needed).
        weights: weights of a built-in model.
        stated: entries of ``preprocess_cfg`` that the user states; they come before all others.

    Raises:
        TrunkError: the model cannot be built with its real weights, is of a kind that cannot be cut, or its
            preprocessing is not certain.
    """
    stated = explicit(stated or {})
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
    _quietly(name, lambda: refuse_pointers(name))
    _quietly(name, lambda: cut_by_name(name))
    own = _quietly(name, lambda: own_settings(name, stated))
    _quietly(name, lambda: require_readable(name, weights))
    pretrained = None if weights is None else str(weights)
    forced = {key: value for key, value in (own if schema is None else stated).items() if key != "size"}
    model = _quietly(
        name, lambda: open_clip.create_model(name, pretrained, require_pretrained=True, force_preprocess_cfg=forced)
    )
    tokenizer = _quietly(name, lambda: open_clip.get_tokenizer(name))
    return describe(name, model, tokenizer, own, stated)


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


def describe(name: str, model: Any, tokenizer: Any, own: Mapping[str, Any], stated: Mapping[str, Any]) -> Trunk:
    """A :class:`Trunk` around a model that is already built, with what :func:`own_settings` says of its images.

    Raises:
        TrunkError: the model is of a kind that cannot be cut, its preprocessing is not certain, or it does not fit its
            tokenizer.
    """
    model = model.float().eval().requires_grad_(False)
    cut = examine(name, model)
    text, tokenizer_json = text_assets(tokenizer, text_owner(model).token_embedding.weight.shape[0])
    image = image_spec(model)
    preprocess = require_agreement(name, model, image, own, stated)
    if text.context_length != cut.context_length:
        raise TrunkError(
            "the trunk's tokenizer gives texts of another length than its text tower takes",
            where=name,
            expected=f"{cut.context_length} ids",
            found=f"{text.context_length} ids",
            fix="correct context_length in the model's open_clip_config.json",
        )
    sizes = (cut.width, cut.patches, cut.context_length)
    return Trunk(name, model, tokenizer, *sizes, image, preprocess, text, tokenizer_json)
