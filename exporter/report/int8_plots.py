"""Plots of a calibration record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from trunkline.calibration.int8.outcome import (
    Budget,
    CalibrationRecord,
    LayerOutcome,
    ScorePairs,
    SearchStep,
    Sensitivity,
)
from trunkline.exporter.report.blocks import Plot
from trunkline.exporter.report.drawing import COLOURS, draw, label
from trunkline.exporter.report.precision_map import kind_of, path_and_number
from trunkline.exporter.report.words import few_digits

#: More points than this make the page heavy and the plot no clearer; those that moved most are always drawn.
MAX_POINTS = 1500
MOVED_MOST = 300
#: Values that are further apart than this are drawn on a logarithmic axis.
WIDE_RATIO = 50
#: Labels below bars are turned if they are longer than this, and more than this many.
MAX_LEVEL_LABEL_CHARS = 3
MAX_LEVEL_LABELS = 5
MARKERS = {"int8": "o", "stored": "s", "float32": "^"}


def score_plots(calibration: CalibrationRecord) -> Iterator[Plot]:
    """Scores in float32 against int8, and how far they moved; nothing without recorded scores."""
    if not calibration.scores.reference:
        return
    scores, limit = calibration.scores, calibration.budget.max_score_change
    changes = np.asarray(scores.found) - np.asarray(scores.reference)
    largest, typical = float(np.abs(changes).max()), float(np.abs(changes).mean())
    summary = f"{len(changes)} scores; mean change {few_digits(typical)}, largest {few_digits(largest)}"
    yield draw(
        "scatter",
        "Scores, float32 against int8",
        f"Scatter of int8 scores over float32 scores with the line of equality and the budget band: {summary}.",
        lambda axes: _scatter(axes, scores, limit),
        height=3.6,
    )
    yield draw(
        "changes",
        "How far scores moved",
        f"Histogram of score changes between the limits of the budget, plus and minus {limit:g}: {summary}.",
        lambda axes: _histogram(axes, changes, limit),
    )


def sensitivity_plots(calibration: CalibrationRecord) -> Iterator[Plot]:
    """The largest score change for each stage in int8, then for each block of each stage."""
    whole = [each for each in calibration.sensitivities if not each.block]
    if whole:
        yield _sensitivity("stages", "One stage in int8, all else float32", whole, calibration.budget, whole)
    blocks = [each for each in calibration.sensitivities if each.block]
    for stage in dict.fromkeys(each.stage for each in blocks):
        entries = [each for each in blocks if each.stage == stage]
        title = f"{stage}: one block in int8, all else float32"
        yield _sensitivity(f"blocks-{stage}", title, entries, calibration.budget, blocks)


def noise_plots(calibration: CalibrationRecord) -> Iterator[Plot]:
    """Signal to noise of every layer's own output, a row for each kind of layer, all on one scale."""
    measured = [layer for layer in calibration.layers if layer.signal_to_noise_db is not None]
    values = [_noise(layer) for layer in measured]
    reach = (min(values) - 2, max(values) + 2) if values else (0.0, 1.0)
    for stage in dict.fromkeys(layer.stage for layer in measured):
        layers = [layer for layer in measured if layer.stage == stage]
        kinds = list(dict.fromkeys(kind_of(layer) for layer in layers))
        worst = min(layers, key=_noise)
        yield draw(
            f"noise-{stage}",
            f"{stage}: signal to noise of each layer in int8",
            f"Dots of {len(layers)} layers in rows by kind, coloured by the precision they were given. The noisiest is "
            f"{worst.name} with {_noise(worst):.1f} dB.",
            lambda axes, layers=layers, kinds=kinds: _dots(axes, layers, kinds, reach),  # type: ignore[misc]
            height=1.0 + 0.24 * len(kinds),
        )


def trial_plot(calibration: CalibrationRecord, trials: Sequence[SearchStep]) -> Plot:
    """The largest score change of each trial of the search."""
    first, last, limit = calibration.all_int8, calibration.fused, calibration.budget.max_score_change
    alt = (
        f"Largest score change in each of {len(trials)} trials. Everything in int8 gave "
        f"{few_digits(first.max_score_change)}, what was shipped {few_digits(last.max_score_change)}; the budget is "
        f"{limit:g}."
    )
    changes = np.array([first.max_score_change, *(step.damage.max_score_change for step in trials)])
    kept = np.array([calibration.budget.met(first), *(step.kept for step in trials)])
    return draw("search", "Largest score change in each trial", alt, lambda axes: _trials(axes, changes, kept, limit))


def _scatter(axes: Axes, scores: ScorePairs, limit: float) -> None:
    exact, found = np.asarray(scores.reference), np.asarray(scores.found)
    ends = np.array([min(exact.min(), found.min()) - limit, max(exact.max(), found.max()) + limit])
    band = {"color": COLOURS["limit"], "alpha": 0.18, "linewidth": 0}
    axes.fill_between(ends, ends - limit, ends + limit, label=f"budget, +/- {limit:g}", **band)  # type: ignore[arg-type]
    axes.plot(ends, ends, color=COLOURS["ink"], linewidth=0.8, label="the same score")
    shown = _thinned(found - exact)
    axes.scatter(exact[shown], found[shown], s=5, color=COLOURS["int8"], alpha=0.6, linewidths=0)
    axes.set(xlabel="score in float32 (cosine)", ylabel="score in int8 (cosine)", xlim=ends, ylim=ends)
    axes.set_aspect("equal")
    axes.legend(loc="upper left")


def _thinned(changes: NDArray[np.float64]) -> NDArray[np.intp]:
    """Which points to draw: those that moved most, and an even choice of the others."""
    if len(changes) <= MAX_POINTS:
        return np.arange(len(changes))
    order = np.argsort(-np.abs(changes), kind="stable")
    others = np.sort(order[MOVED_MOST:])
    even = others[np.linspace(0, len(others) - 1, MAX_POINTS - MOVED_MOST).astype(int)]
    return np.concatenate([even, order[:MOVED_MOST]])


def _histogram(axes: Axes, changes: NDArray[np.float64], limit: float) -> None:
    reach = max(float(np.abs(changes).max()), limit) * 1.05
    axes.hist(changes, bins=np.linspace(-reach, reach, 42).tolist(), color=COLOURS["int8"])
    for place in (-limit, limit):
        axes.axvline(place, color=COLOURS["limit"], linestyle="--", linewidth=1.2)
    axes.set(xlabel=f"int8 score minus float32 score; dashed: budget, +/- {limit:g}", ylabel="scores")


def _sensitivity(
    key: str, title: str, entries: Sequence[Sensitivity], budget: Budget, beside: Sequence[Sensitivity]
) -> Plot:
    """Bars on the scale of all that stand ``beside``, so that heights can be compared from plot to plot."""
    changes = [each.damage.max_score_change for each in entries]
    worst = entries[int(np.argmax(changes))]
    alt = (
        f"Bars of the largest score change for {len(entries)} cases; the largest is {few_digits(max(changes))}, "
        f"{worst.block or worst.stage}. The budget is {budget.max_score_change:g}."
    )
    names = [_short(each) for each in entries]
    long = max(map(len, names)) > MAX_LEVEL_LABEL_CHARS and len(names) > MAX_LEVEL_LABELS
    reach = [*(each.damage.max_score_change for each in beside), budget.max_score_change]

    def paint(axes: Axes) -> None:
        over = [change > budget.max_score_change for change in changes]
        colours = [COLOURS["two" if each else "int8"] for each in over]
        axes.bar(range(len(names)), changes, color=colours, hatch=["///" if each else "" for each in over])
        axes.axhline(budget.max_score_change, color=COLOURS["limit"], linestyle="--", linewidth=1.2)
        _scale(axes, reach)
        axes.set_xticks(range(len(names)), names, rotation=60 if long else 0, ha="right" if long else "center")
        if len(names) > 16 and not long:
            axes.set_xticks(range(0, len(names), 2), names[::2])
        axes.set(ylabel="largest score change", xlabel=f"dashed: budget, {budget.max_score_change:g}")
        axes.grid(axis="x", visible=False)

    return draw(key, title, alt, paint, height=3.0 if long else 2.4)


def _short(entry: Sensitivity) -> str:
    """A block's number where it has one; the stage's name for a whole stage."""
    if not entry.block:
        return label(entry.stage)
    return path_and_number(entry.block)[1] or label(entry.block.rpartition(".")[2])


def _scale(axes: Axes, values: Sequence[float]) -> None:
    positive = [value for value in values if value > 0]
    if positive and max(positive) > WIDE_RATIO * min(positive):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
        axes.set_ylim(min(positive) / 1.5, max(positive) * 1.5)
    elif positive:
        axes.set_ylim(0, max(positive) * 1.08)


def _noise(layer: LayerOutcome) -> float:
    """Decibels; other tensors than linear layers have none."""
    return layer.signal_to_noise_db or 0.0


def _dots(axes: Axes, layers: Sequence[LayerOutcome], kinds: Sequence[str], reach: tuple[float, float]) -> None:
    for precision, marker in MARKERS.items():
        chosen = [layer for layer in layers if layer.precision == precision]
        if not chosen:
            continue
        rows = [kinds.index(kind_of(layer)) for layer in chosen]
        values = [_noise(layer) for layer in chosen]
        style = {"marker": marker, "s": 14 if precision == "int8" else 30, "alpha": 0.8, "linewidths": 0}
        axes.scatter(values, rows, color=COLOURS[precision], label=precision, **style)  # type: ignore[arg-type]
    axes.set_yticks(range(len(kinds)), [label(kind) for kind in kinds])
    axes.set(ylim=(len(kinds) - 0.5, -0.5), xlim=reach)
    axes.set_xlabel("signal to noise in int8 (dB)")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)


def _trials(axes: Axes, changes: NDArray[np.float64], kept: NDArray[np.bool_], limit: float) -> None:
    places = np.arange(len(changes))
    for chosen, marker, colour, name in ((kept, "o", "int8", "kept"), (~kept, "x", "two", "not kept")):
        if chosen.any():
            style = {"marker": marker, "linestyle": "none", "color": COLOURS[colour]}
            axes.plot(places[chosen], changes[chosen], label=name, **style)  # type: ignore[arg-type]
    axes.axhline(limit, color=COLOURS["limit"], linestyle="--", linewidth=1.2, label=f"budget, {limit:g}")
    _scale(axes, [*changes.tolist(), limit])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set(xlabel="trial; 0 is everything in int8", ylabel="largest score change")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)
