"""Draws what 03_sensor_loop.py wrote down: ages of what was decided on, and how often each part ran."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from trunkline.runtime.loop import LoopPlan, LoopReport, Refused

BLUE, GREEN, ORANGE, RED, GREY = "#2563a8", "#2a7f4f", "#b35c00", "#c0272d", "#767676"
SETTINGS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "trunkline",
    "font.family": "sans-serif",
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.edgecolor": GREY,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "grid.color": "#e4e4e4",
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
}
Mask = NDArray[np.bool_]
TASKS = {"sensor": GREEN, "scoring": ORANGE, "vision": BLUE}


def draw_ages(path: Path, diary: Any, plan: LoopPlan) -> None:
    """Age of the frame and of the sensor's last sample at every scoring tick, with the bounds."""
    bounds = {"frame": plan.frame_bound_ms, "sensor": plan.sensor_bound_ms}
    bounds = {name: bound for name, bound in bounds.items() if bound is not None}
    with mpl.rc_context(SETTINGS):
        figure, panels = _figure(len(bounds), 4.6)
        for axes, (name, bound) in zip(panels, bounds.items(), strict=True):
            _ages(axes, name, bound, diary)
            _phases(axes, diary)
        _save(figure, panels, diary, path)


def draw_rates(path: Path, diary: Any, plan: LoopPlan) -> None:
    """Runs of every part in each second, and the ticks that it missed."""
    tasks = {name: colour for name, colour in TASKS.items() if name != "sensor" or plan.sensor_bound_ms is not None}
    with mpl.rc_context(SETTINGS):
        figure, (runs, missed) = _figure(2, 4.2)
        for name, colour in tasks.items():
            _runs(runs, name, colour, diary.reports)
            _missed(missed, name, colour, diary.reports)
        runs.set_title("runs per second")
        runs.set_ylim(0, 1.25 * max(getattr(plan, name).hz for name in tasks))
        missed.set_title("ticks missed in each second, counted when the part went on")
        missed.set_ylim(0, max(4.0, 1.3 * missed.get_ylim()[1]))
        for axes in (runs, missed):
            _phases(axes, diary)
        _save(figure, [runs, missed], diary, path)


def _ages(axes: Axes, name: str, bound: float, diary: Any) -> None:
    seen = [each for each in diary.outcomes if getattr(each, f"{name}_age_ns") is not None]
    time = np.array([(each.finished_ns - diary.story.begun_ns) / 1e9 for each in seen])
    age = np.array([getattr(each, f"{name}_age_ns") / 1e6 for each in seen])
    refused = np.array([isinstance(each, Refused) for each in seen], bool)
    old = np.array([isinstance(each, Refused) and f"{name} too old" in each.reasons for each in seen], bool)
    axes.set_yscale("log")
    axes.set_title(f"age of the {name} at each scoring (ms)")
    axes.plot(time[~refused], age[~refused], ".", color=BLUE, markersize=3.5)
    axes.plot(time[old], age[old], "x", color=RED, markersize=4, markeredgewidth=0.9)
    axes.plot(time[refused & ~old], age[refused & ~old], "|", color=GREY, markersize=5, markeredgewidth=0.8)
    for group in _groups(old):
        _label(axes, "refused", (time[group[-1]], age[group[-1]]), RED, (5, 0))
    for group in _groups(refused & ~old)[:1]:
        _label(axes, "refused for another reason", (time[group[0]], age[group].min()), GREY, (0, -12))
    for group in _groups(~refused)[-1:]:
        _label(axes, "decided", (time[group[-1]], age[group[-1]]), BLUE, (5, 0))
    axes.axhline(bound, color=RED, linewidth=0.9)
    _label(axes, f"bound {bound:g} ms", (0, bound), RED, (3, 5))
    axes.set_ylim(min(20, float(age.min(initial=20))) / 1.5, 3 * max(2 * bound, float(age.max(initial=0))))
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.yaxis.set_minor_locator(NullLocator())


def _groups(chosen: Mask) -> list[NDArray[np.intp]]:
    """Indices of what is chosen, run by run."""
    indices = np.flatnonzero(chosen)
    return [each for each in np.split(indices, np.flatnonzero(np.diff(indices) > 1) + 1) if len(each)]


def _label(axes: Axes, words: str, at: tuple[float, float], colour: str, offset: tuple[int, int]) -> None:
    axes.annotate(words, at, offset, textcoords="offset points", color=colour, va="center")


def _runs(axes: Axes, name: str, colour: str, reports: Sequence[LoopReport]) -> None:
    seconds = np.array([report.seconds for report in reports])
    rates = np.diff([getattr(report, name).runs for report in reports]) / np.diff(seconds)
    axes.stairs(rates, seconds, color=colour, linewidth=1.2, baseline=None)
    _label(axes, name, (seconds[-1], rates[-1]), colour, (4, 0))


def _missed(axes: Axes, name: str, colour: str, reports: Sequence[LoopReport]) -> None:
    seconds = np.array([report.seconds for report in reports])[1:] + 0.12 * list(TASKS).index(name)
    counts = np.diff([getattr(report, name).missed for report in reports])
    if not counts.any():
        return
    most = int(counts.argmax())
    axes.vlines(seconds[counts > 0], 0, counts[counts > 0], color=colour, linewidth=2)
    _label(axes, f"{name}, {counts[most]} at most", (seconds[most], counts[most]), colour, (4, 5))


def _phases(axes: Axes, diary: Any) -> None:
    """What was made to fail, and when."""
    top = axes.get_ylim()[1]
    for (begin, end), what in (
        (diary.story.hangs, "camera hangs"),
        (diary.story.clock_is_off, "sensor's clock is off"),
    ):
        axes.axvspan(begin, end, color="#f0ece2", zorder=0, linewidth=0)
        axes.text((begin + end) / 2, 0.98 * top, what, color=GREY, ha="center", va="top")


def _figure(panels: int, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(7.2, height * (panels + 0.2) / 2.2), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0])


def _save(figure: Figure, panels: list[Axes], diary: Any, path: Path) -> None:
    for axes in panels:
        axes.grid(axis="y")
        axes.tick_params(length=0)
    panels[-1].set_xlabel("time since the start (s)")
    panels[-1].set_xlim(0, diary.reports[-1].seconds + 1)
    content = io.StringIO()
    figure.savefig(content, format="svg", facecolor="white", metadata={"Date": None, "Creator": None})
    path.parent.mkdir(parents=True, exist_ok=True)
    # A tenth of a point is as much as anybody sees.
    path.write_text(re.sub(r"\d+\.\d\d+", lambda number: f"{float(number[0]):.1f}", content.getvalue()))
