"""What a page is made of: sections of paragraphs, tables, plots, maps and lists, as data.

Every text in here is plain text, which the template escapes. The one exception is :attr:`Plot.svg`, markup that
:mod:`trunkline.exporter.report.drawing` made and escaped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from markupsafe import Markup


@dataclass(frozen=True)
class Paragraph:
    text: str
    block: str = field(default="paragraph", init=False)


@dataclass(frozen=True)
class Table:
    """``columns`` that begin with ``#`` hold numbers. ``folded`` tables are long: they are closed on a screen."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    folded: bool = False
    block: str = field(default="table", init=False)


@dataclass(frozen=True)
class Plot:
    """``alt`` says in words what the plot shows, with its decisive numbers."""

    title: str
    alt: str
    svg: Markup


@dataclass(frozen=True)
class Plots:
    plots: Sequence[Plot]
    block: str = field(default="plots", init=False)


@dataclass(frozen=True)
class Cell:
    """One layer in a map: its precision, and the text that appears over it."""

    precision: str
    title: str


@dataclass(frozen=True)
class PrecisionMap:
    """Layer kinds down, blocks across; None where a block has no such layer."""

    stage: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]
    block: str = field(default="map", init=False)


@dataclass(frozen=True)
class Steps:
    """A numbered list: what was tried, what came of it, and whether it stayed."""

    items: Sequence[tuple[str, str, bool]]
    block: str = field(default="steps", init=False)


Block = Paragraph | Table | Plots | PrecisionMap | Steps


@dataclass(frozen=True)
class Section:
    """``key`` is the anchor."""

    key: str
    title: str
    blocks: Sequence[Block]
