"""No module of the four packages imports itself by way of others, wherever the import stands.

Imports inside functions and those for types alone count too: they hide a circle and do not break it.
"""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def module_name(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(("trunkline", *(parts[:-1] if parts[-1] == "__init__" else parts)))


SOURCES = {
    module_name(file): file.read_text()
    for package in ("runtime", "targets", "calibration", "exporter")
    for file in (ROOT / package).rglob("*.py")
}


def imported(source: str) -> set[str]:
    """Our modules that a source names in an import; what a package holds is the package's only if it is no module."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            held = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= held & SOURCES.keys()
            names |= {str(node.module)} if held - SOURCES.keys() else set()
    return names & SOURCES.keys()


def test_no_circle() -> None:
    graph = {name: imported(source) for name, source in SOURCES.items()}
    assert "trunkline.runtime.cuda.driver" in graph["trunkline.runtime.backends"]
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("indented", ["def f():\n    ", "if TYPE_CHECKING:\n    ", ""])
def test_the_check_can_fail(indented: str) -> None:
    graph = {name: imported(source) for name, source in SOURCES.items()}
    graph["trunkline.runtime.cuda.driver"] |= imported(f"{indented}from trunkline.runtime.backends import Missing")
    with pytest.raises(CycleError):
        TopologicalSorter(graph).prepare()
