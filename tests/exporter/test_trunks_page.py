"""The page about open_clip's built-in models says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import open_clip
import pytest

from tests.trunks_page import PAGE, page, survey, versions
from trunkline.exporter.cut import Cut, cut_by_name

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_the_page_was_made_with_the_pinned_versions() -> None:
    pins = dict(re.findall(r"^(open_clip_torch|timm)==(\S+)", CONSTRAINTS.read_text(), re.MULTILINE))
    assert f"open_clip {pins['open_clip_torch']} and timm {pins['timm']}" in PAGE.read_text()


def test_the_published_trunk_is_on_the_page() -> None:
    assert cut_by_name("ViT-L-16-SigLIP2-384") == Cut(width=1024, patches=576, context_length=64)
    assert "| ViT-L-16-SigLIP2-384 | 384 | 576 | 1024 | 64 |\n" in PAGE.read_text()


def test_the_page_has_every_reason_and_size() -> None:
    text = page({"ViT-B-16-SigLIP": Cut(7, 8, 9), "RN50": ["one", "two"], "RN101": ["one", "two"], "ViT-B-32": ["one"]})
    assert "the 4 models that open_clip knows" in text
    assert f"wrote this page with {versions()};" in text
    assert "## 1 that can be cut\n" in text
    assert "| ViT-B-16-SigLIP | 224 | 8 | 7 | 9 |\n" in text
    assert text.endswith("## 3 that cannot\n\n- one; two: RN50, RN101\n- one: ViT-B-32\n")


@pytest.mark.slow
def test_the_page_is_what_all_built_in_models_give() -> None:
    """Each of open_clip's models is cut, or refused with a TrunkError: the survey lets no other error pass."""
    found = survey()
    assert list(found) == open_clip.list_models()
    assert all(found.values()), "a refusal without a reason"
    if versions() not in PAGE.read_text():
        pytest.skip(f"{versions()} may know other models than the page, which the pinned versions made")
    assert page(found) == PAGE.read_text(), "write docs/trunks.md anew: python -m tests.trunks_page"
