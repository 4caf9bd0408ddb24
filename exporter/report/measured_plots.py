"""Plots of what every bundle has: sizes and latency, of one bundle or of two beside each other."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from trunkline.exporter.report.blocks import Plot
from trunkline.exporter.report.content import BundleFacts
from trunkline.exporter.report.drawing import COLOURS, draw, label
from trunkline.exporter.report.words import amount, size
from trunkline.targets.latency import LatencyReport

#: Colours of stages, and of what a call spends outside of them.
SERIES = ("one", "two", "three", "four", "five")
OUTSIDE = "outside"
ROW_INCHES = 0.34

Bar = tuple[str, dict[str, float]]


def size_plot(bundles: Sequence[BundleFacts]) -> Plot:
    """Megabytes of each stage, weights and graph apart; with two bundles each stage has two bars."""
    bars: list[Bar] = []
    for form in bundles[0].stages:
        for bundle in bundles:
            for other in bundle.stages:
                if (other.stage, other.variant) == (form.stage, form.variant):
                    name = f"{form.stage}, {form.variant}" + _of(bundle, bundles)
                    bars.append((name, {"weights": other.weight_bytes / 1e6, "graph": other.graph_bytes / 1e6}))
    largest = max(bundles[0].stages, key=lambda form: form.weight_bytes + form.graph_bytes)
    totals = " and ".join(f"{size(bundle.total_bytes)}{_of(bundle, bundles)}" for bundle in bundles)
    alt = f"Bars of the size of each stage; the largest is {largest.stage}. All files together: {totals}."
    return draw(
        "sizes",
        "Size of each stage",
        alt,
        lambda axes: _stacked(axes, bars, ("weights", "graph"), "megabytes"),
        height=1.0 + ROW_INCHES * len(bars),
    )


def latency_plot(bundles: Sequence[tuple[BundleFacts, LatencyReport]]) -> Plot:
    """Milliseconds of the everyday calls, stacked by stage."""
    facts = [each for each, _ in bundles]
    bars: list[Bar] = []
    for cases in zip(*(report.cases for _, report in bundles), strict=True):
        for bundle, case in zip(facts, cases, strict=True):
            parts = {stage: spent.p50_ms for stage, spent in case.stages.items()}
            bars.append((case.name + _of(bundle, facts), {**parts, OUTSIDE: case.outside.p50_ms}))
    stages = tuple(dict.fromkeys(part for _, parts in bars for part in parts if part != OUTSIDE))
    alt = "Bars of medians, stacked by stage. Whole calls: " + "; ".join(
        f"{name} {amount(sum(parts.values()))} ms" for name, parts in bars
    )
    return draw(
        "latency",
        "Median time of a call",
        f"{alt}.",
        lambda axes: _stacked(axes, bars, (*stages, OUTSIDE), "milliseconds"),
        height=1.2 + ROW_INCHES * len(bars),
    )


def _of(bundle: BundleFacts, bundles: Sequence[BundleFacts]) -> str:
    """Which bundle a bar belongs to, where there are two; two may have the same name."""
    if len(bundles) == 1:
        return ""
    return " (this)" if bundle is bundles[0] else " (other)"


def _stacked(axes: Axes, bars: Sequence[Bar], parts: Sequence[str], unit: str) -> None:
    places = range(len(bars))
    left = [0.0] * len(bars)
    for index, part in enumerate(parts):
        widths = [values.get(part, 0.0) for _, values in bars]
        colour = COLOURS["rest" if part == OUTSIDE else SERIES[index % len(SERIES)]]
        # The line between two parts also tells them apart where colours do not.
        axes.barh(places, widths, left=left, color=colour, edgecolor=COLOURS["paper"], linewidth=0.6, label=label(part))
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for place, end in zip(places, left, strict=True):
        axes.annotate(amount(end), (end, place), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [label(name) for name, _ in bars])
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.margins(x=0.14)
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=min(len(parts), 5), columnspacing=1.0)
