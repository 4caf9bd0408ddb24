"""Report in, one HTML file out: nothing in it is loaded from anywhere, and nothing in it runs.

Everything that came from a bundle is escaped by the template; characters that cannot be seen are spelled out. As a
second line of defence the page forbids scripts and every outside source to the browser.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from trunkline.exporter.report.content import Report
from trunkline.exporter.report.sections import sections
from trunkline.exporter.report.words import printable

TEMPLATE_NAME = "page.html.jinja"


def render(report: Report) -> str:
    """The page. The same report gives the same text."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template(TEMPLATE_NAME)
    return template.render(report=report, sections=list(sections(report)), version=metadata.version("trunkline"))


def _visible(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
