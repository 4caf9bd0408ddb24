"""docs/trunks.md: which of open_clip's built-in models can be cut, and why the others cannot.

Written anew with ``python -m tests.trunks_page``, which takes some minutes, needs no network and no weights.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import open_clip
import timm

from trunkline.exporter.cut import Cut, cut_by_name
from trunkline.runtime.errors import TrunkError

PAGE = Path(__file__).parent.parent / "docs" / "trunks.md"

_HEAD = """# Built-in trunks

Which of the {count} models that open_clip knows by name can be a trunk (`--backbone NAME --trunk-weights FILE`).
`python -m tests.trunks_page` wrote this page with {versions}; a test fails when it is out of
date. A model of `hf-hub:ORG/REPO` or `local-dir:FOLDER` is examined in the same way, before its weights are read.

A trunk needs (see [the cut](design.md#the-cut)):

- a timm vision transformer whose patches are one convolution of the image, without overlap and without padding;
- attention in the last block that sees the whole image: its patches, and one more token at most;
- images of a size that the tower takes, which open_clip's configuration states as `image_size`;
- open_clip's own text transformer, without a class token;
- vision and text features of the same width.

Nothing else is examined here: a trunk's preprocessing and tokenizer are looked at when it is loaded, and every export
proves its own scores.

Weights are opened before open_clip's loader sees them. A Git LFS pointer, a file that was cut short, a web page in its
place, objects that are no tensors, and whole numbers where a parameter should be are refused by name. Where a file
needs full unpickling, convert it to `.safetensors` with software that you trust.

## {accepted} that can be cut

| name | image, pixels | patches | width | ids of a text |
|---|---|---|---|---|
"""
_REFUSED = """
## {refused} that cannot

"""


def survey() -> dict[str, Cut | list[str]]:
    """What each built-in model gives, or why it cannot be cut. Anything but a TrunkError is let through."""
    found: dict[str, Cut | list[str]] = {}
    for name in open_clip.list_models():
        try:
            found[name] = cut_by_name(name)
        except TrunkError as error:
            found[name] = list(error.found)  # type: ignore[call-overload]
    return found


def versions() -> str:
    return f"open_clip {open_clip.__version__} and timm {timm.__version__}"


def page(found: Mapping[str, Cut | list[str]]) -> str:
    accepted = {name: cut for name, cut in found.items() if isinstance(cut, Cut)}
    refused: dict[str, list[str]] = {}
    for name, reasons in found.items():
        if not isinstance(reasons, Cut):
            refused.setdefault("; ".join(reasons), []).append(name)
    head = _HEAD.format(count=len(found), versions=versions(), accepted=len(accepted))
    rows = "".join(_row(name, cut) for name, cut in accepted.items())
    reasons = "".join(f"- {reason}: {', '.join(names)}\n" for reason, names in refused.items())
    return head + rows + _REFUSED.format(refused=len(found) - len(accepted)) + reasons


def _row(name: str, cut: Cut) -> str:
    size = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
    return f"| {name} | {size} | {cut.patches} | {cut.width} | {cut.context_length} |\n"


if __name__ == "__main__":
    logging.disable(logging.WARNING)  # open_clip's, that no weights are loaded
    PAGE.write_text(page(survey()))
