"""Names out of names of files: such that the manifest's rule takes them, distinct, and the same after every packing."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from tests.kit import random_member
from trunkline.exporter.checkpoint.members import Member
from trunkline.exporter.checkpoint.names import bundle_text, unique_names
from trunkline.runtime.files import ambiguous
from trunkline.runtime.manifest import member_name_problem, shown_problem
from trunkline.runtime.record import is_text

#: Letters, and what is read as a path, invisible, composed with its neighbour, unassigned, private or half a character.
LETTERS = (
    "ab.é漢 -_/\\:\0\n\x1b\u00a0\u0308\u0301\u200b\u200d\u202e\u2028\u2126\ufb01\u0378\ue000\U0001f600\udcff\ud800"
)


@pytest.fixture(scope="module")
def member() -> Member:
    return random_member()


def renamed(member: Member, *sources: str) -> list[tuple[str, str]]:
    members = [replace(member, name=Path(source).stem, source=source) for source in sources]
    return [(each.name, each.source) for each in unique_names(members)]


@pytest.mark.parametrize(
    ("source", "name", "kept"),
    [
        ("epoch_9.pt", "epoch_9", "epoch_9.pt"),
        ("grün 2.pt", "grün 2", "grün 2.pt"),
        ("漢字.v2.pt", "漢字.v2", "漢字.v2.pt"),
        ("e\u200d\u0301.pt", "e_\u0301", "e_\u0301.pt"),  # what was apart is not joined
        ("\u2126.pt", "\u03a9", "\u03a9.pt"),
        ("a\u3000b.pt", "a_b", "a_b.pt"),  # a name may hold it, but nobody can be shown it
        ("a\udcffb.pt", "a_b", "a_b.pt"),
        ("no suffix", "no suffix", "no suffix"),
        ("", "member", ""),
        ("..", "member", ".."),
        ("a." + "b" * 300, "a", "a." + "b" * 99),
    ],
    ids=ascii,
)
def test_names_and_sources(member: Member, source: str, name: str, kept: str) -> None:
    assert renamed(member, source) == [(name, kept)]


def test_what_becomes_the_same_is_told_apart(member: Member) -> None:
    found = renamed(member, "run:1.pt", "run_1.pt", "RUN_1.pt", "x" * 240 + "1.pt", "x" * 240 + "2.pt")
    assert [name for name, _ in found] == ["run_1", "run_1-2", "RUN_1-3", "x" * 100, "x" * 100 + "-2"]


def test_anything_becomes_what_the_manifest_takes(member: Member) -> None:
    source = random.Random(0)
    for _ in range(300):
        files = ["".join(source.choices(LETTERS, k=source.choice((1, 3, 12, 150)))) + ".pt" for _ in range(4)]
        found = renamed(member, *files)
        for name, kept in found:
            assert member_name_problem(name) is None, ascii(files)
            assert shown_problem(kept) is None, ascii(files)
            assert is_text(name + kept)
        assert ambiguous([name for name, _ in found]) == []
        again = renamed(member, *(kept for _, kept in found))
        assert [kept for _, kept in again] == [kept for _, kept in found]


def test_what_may_stay_does() -> None:
    for text in ("epoch_9", "siglip2 (large)", "grün", "漢字", "a" * 100):
        assert bundle_text(text) == text
