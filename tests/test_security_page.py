"""Every test that docs/security.md names is there, and every number that attack tests use is on the page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "security.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]}
UNTESTED = SECTIONS.pop("Not shown by a test")
#: A number in the name of a test, and in that of a case: "05 duplicate key".
NUMBER = re.compile(r"(?<=def test_)\d\d(?=_)|(?<=\")\d\d(?= [^\"\n]+\")")
LAST = 95


def defined(file: Path) -> set[str]:
    """Names of all tests and their classes in a file."""
    nodes = ast.walk(ast.parse(file.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}


@pytest.mark.parametrize("section", SECTIONS)
def test_every_test_that_is_named_exists(section: str) -> None:
    text = SECTIONS[section]
    files = re.findall(r"`(tests/[\w/]+\.py)`", text)
    there = {file: defined(ROOT / file) for file in files}
    named = set(re.findall(r"`((?:test_|Test)\w+)`", text))
    assert named
    assert named - set.union(*there.values()) == set()
    assert [file for file, tests in there.items() if not tests & named] == []  # named for nothing


def numbers(text: str) -> set[int]:
    """Those of a list such as "13, 15 to 17"."""
    spans = re.findall(r"(\d+)(?: to (\d+))?", text)
    return {number for first, last in spans for number in range(int(first), int(last or first) + 1)}


def test_every_number_of_the_attacks_is_on_the_page() -> None:
    shown = {number for row in re.findall(r"^\| ([\d, ]+) \|", PAGE, re.MULTILINE) for number in numbers(row)}
    untested = {number for row in re.findall(r"\(([\d, to]+)\)", UNTESTED) for number in numbers(row)}
    attacks = (file.read_text() for file in (ROOT / "tests" / "attacks").glob("test_*.py"))
    used = {int(number) for text in attacks for number in NUMBER.findall(text)}
    assert len(used) > 50
    assert used - shown == set()
    assert shown | untested == set(range(1, LAST + 1))


def test_the_page_is_linked() -> None:
    assert "(docs/security.md)" in (ROOT / "README.md").read_text()
    assert "(security.md)" in (ROOT / "docs" / "design.md").read_text()
