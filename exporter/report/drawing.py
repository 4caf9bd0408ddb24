"""Figures as SVG that belongs into a page: it takes the page's colours, light or dark, and its fonts.

Requires: figures drawn in the colours of :data:`COLOURS` only.
Ensures: the same figure gives the same bytes; no two figures of a page share an id; nothing refers to anything outside.
Texts stay texts. Names from a bundle are never read as mathematics, and control characters are shown as escapes.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from trunkline.exporter.report.blocks import Plot
from trunkline.exporter.report.words import printable

#: Colours by what they mean. In the SVG each becomes ``var(--NAME)``, which the style sheet defines for light and dark,
#: from a palette that people with any colour vision can tell apart.
COLOURS = {
    name: f"#0102{index:02x}"
    for index, name in enumerate(
        (
            *("ink", "faint", "paper", "limit", "int8", "stored", "float32"),
            *("one", "two", "three", "four", "five", "rest"),
        )
    )
}
#: Narrow enough to be read on a phone without much scaling.
WIDTH_INCHES = 4.7
#: Of a name beside an axis; the tables have it in full.
MAX_LABEL_CHARS = 34

_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trunkline",
    "text.parse_math": False,
    "axes.unicode_minus": False,
    "font.size": 9.0,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["ink"],
    "axes.edgecolor": COLOURS["faint"],
    "xtick.color": COLOURS["faint"],
    "ytick.color": COLOURS["faint"],
    "xtick.labelcolor": COLOURS["ink"],
    "ytick.labelcolor": COLOURS["ink"],
    "grid.color": COLOURS["faint"],
    "grid.alpha": 0.25,
}


def draw(key: str, title: str, alt: str, paint: Callable[[Axes], None], *, height: float = 2.6) -> Plot:
    """A plot of one pair of axes.

    Args:
        key: unique on the page.
        title: stands above the plot.
        alt: says what it shows.
        paint: draws.
        height: in inches.
    """
    # The defaults first: a user's own taste in figures would make other bytes.
    settings: Any = {key: value for key, value in mpl.rcParamsDefault.items() if key != "backend"} | _SETTINGS
    with _quiet(), mpl.rc_context(settings):
        figure = Figure(figsize=(WIDTH_INCHES, height), layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure.add_subplot())
        figure.patch.set_alpha(0)
        for axes in figure.axes:
            axes.patch.set_alpha(0)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return Plot(title, alt, _for_the_page(content.getvalue(), key, alt))


def label(text: str) -> str:
    """A name fit to stand beside an axis; of a long one the end is kept, which tells layers apart."""
    text = printable(text)
    return text if len(text) <= MAX_LABEL_CHARS else "..." + text[3 - MAX_LABEL_CHARS :]


@contextmanager
def _quiet() -> Iterator[None]:
    """The page's fonts have letters that the font which measures the text lacks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _for_the_page(svg: str, key: str, alt: str) -> Markup:
    svg = svg[svg.index("<svg") :]
    # The style would hold for the whole page; the page's own sheet says the same for plots.
    svg = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{key}-', svg)
    svg = re.sub(r'href="#', f'href="#{key}-', svg).replace("url(#", f"url(#{key}-")
    svg = re.sub(r'^<svg ([^>]*?)width="[^"]*" height="[^"]*"|^<svg height="[^"]*"', r"<svg \1", svg, count=1)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alt)}" ', 1)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)  # matplotlib escapes texts, and alt is escaped above
