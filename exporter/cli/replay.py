"""``trunkline replay``."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from trunkline.exporter.cli.options import BackendOption, JsonOption
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, say, show, size
from trunkline.runtime.errors import ParityError
from trunkline.runtime.record import shown

if TYPE_CHECKING:
    from trunkline.calibration.replay import Promotion, ReplayReport
    from trunkline.runtime.progress import Progress
    from trunkline.runtime.replay import ReplayLog
    from trunkline.runtime.replay.reader import Summary

_DAMAGE_SHOWN = 10


def command(
    log: Annotated[Path, typer.Argument(metavar="LOG", help="Directory that a recorder wrote.")],
    bundle: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--bundle", metavar="BUNDLE", help="Take the decisions again with this bundle."),
    ] = None,
    promote: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--promote", metavar="FOLDER", help="Write the decisions as a data set for calibration."),
    ] = None,
    limit: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Only the newest so many decisions."),
    ] = None,
    show_moved: Annotated[int, typer.Option("--show", min=0, help="Moved decisions to list.")] = 20,
    max_score_change: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option("--max-score-change", min=0.0, help="Exit with 3 if a score changed by more."),
    ] = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Look into a log of what a robot saw and decided, and take its decisions again.

    Without `--bundle` or `--promote`: what the log holds, and what of it is damaged. With `--bundle`: which decisions
    another bundle takes otherwise. With `--promote`: a data set whose right windows are those the robot chose, for
    `trunkline export --calibrate FOLDER/dataset.json`.

    **Examples**

        trunkline replay logs/tuesday

        trunkline replay logs/tuesday --bundle int8/ --max-score-change 0.05

        trunkline replay logs/tuesday --promote samples/ --limit 2000
    """
    from trunkline.runtime.replay import ReplayLog

    if max_score_change is not None and bundle is None:
        raise typer.BadParameter("--max-score-change needs --bundle")
    opened = ReplayLog(log)
    result: dict[str, Any] = {}
    with progress_bar() as progress:
        if bundle is not None:
            result["replay"] = _replayed(opened, bundle, backend, limit, progress)
        if promote is not None:
            from trunkline.calibration.replay import promote as promoted

            result["promotion"] = promoted(opened, promote, limit=limit, progress=progress)
        if not result:
            result["log"] = opened.summary(progress)
    if json:
        print_json(result)
    else:
        _show(result, bundle, show_moved)
    if bundle is not None:
        _require(result["replay"], opened, bundle, max_score_change)


def _replayed(log: ReplayLog, bundle: Path, backend: str | None, limit: int | None, progress: Progress) -> ReplayReport:
    from trunkline.calibration.replay import replay
    from trunkline.runtime.ensemble import load
    from trunkline.runtime.parity import clear_margin

    with load(bundle, backend=backend, progress=progress) as ensemble:
        margin = clear_margin(ensemble.allowed_score_change)
        return replay(log, ensemble, margin=margin, limit=limit, progress=progress)


def _require(report: ReplayReport, log: ReplayLog, bundle: Path, max_score_change: float | None) -> None:
    from trunkline.runtime.replay import ReplayError

    if report.comparison is None:
        raise ReplayError(
            "no decision of the log could be taken again",
            where=f"{log.folder} with {bundle}",
            found=[f"{count}: {reason}" for reason, count in report.skipped.items()] or "no decisions",
            fix="look at the log with `trunkline replay LOG`",
        )
    changed = report.comparison.max_score_change
    if max_score_change is not None and changed > max_score_change:
        raise ParityError(
            "the bundle does not score as the one that decided",
            where=f"{log.folder} with {bundle}",
            expected=f"scores within {max_score_change:g}",
            found=f"a score changed by {changed:.3g}, {len(report.moved)} of {report.replayed} winners moved",
        )


def _show(result: dict[str, Any], bundle: Path | None, show_moved: int) -> None:
    if "log" in result:
        _show_log(result["log"])
    if "replay" in result:
        _show_replay(result["replay"], bundle, show_moved)
    if "promotion" in result:
        _show_promotion(result["promotion"])


def _show_log(summary: Summary) -> None:
    rows: list[list[object]] = [[kind, count] for kind, count in summary.records.most_common()]
    print_table("records", ["kind", "count"], rows)
    if summary.first_ns is not None and summary.last_ns is not None:
        span_s = (summary.last_ns - summary.first_ns) / 1e9
        show(f"{span_s:.1f} s, from {_time(summary.first_ns)} to {_time(summary.last_ns)}")
    show(f"{size(summary.bytes)} in {summary.segments} segments of {summary.sessions} sessions")
    lost = ", ".join(f"{count} {_plain(what)}" for what, count in summary.dropped.items())
    show(f"not recorded, because the disk was too slow or refused, or something went wrong: {lost or 'nothing'}")
    for torn in summary.torn:
        show(f"segment {torn.segment} ends in {torn.bytes} bytes of a record that was not finished")
    for damage in summary.damage[:_DAMAGE_SHOWN]:
        show(f"damaged: segment {damage.segment}, {damage.bytes} bytes from {damage.offset}: {damage.reason}", "red")
    if (more := len(summary.damage) - _DAMAGE_SHOWN) > 0:
        show(f"damaged: {more} more places", "red")


def _plain(text: str) -> str:
    """A text from a log, which must not steer the terminal."""
    return text if text.isprintable() else shown(text)


def _time(stamp_ns: int) -> str:
    """A stamp for people; one that no calendar knows stays a number."""
    try:
        return datetime.datetime.fromtimestamp(stamp_ns // 1_000_000_000, datetime.timezone.utc).isoformat()
    except (ValueError, OverflowError, OSError):
        return f"{stamp_ns / 1e9:.0f} s"


def _show_replay(report: ReplayReport, bundle: Path | None, show_moved: int) -> None:
    if report.moved and show_moved:
        columns = ["decision", "at s", "candidate", "margin", "now", "margin now", "instruction"]
        rows = [
            [
                moved.number,
                f"{moved.stamp_ns / 1e9:.3f}",
                moved.before,
                f"{moved.margin_before:.4f}",
                moved.after,
                f"{moved.margin_after:.4f}",
                _plain(moved.instruction),
            ]
            for moved in report.moved[:show_moved]
        ]
        print_table(f"decisions that moved, {len(report.moved)} in all", columns, rows)
    if report.comparison is not None:
        compared = report.comparison
        show(
            f"{report.replayed} of {report.decisions} decisions taken again with {bundle}: {len(report.moved)} winners "
            f"moved ({compared.winners_close} of them close), largest score change {compared.max_score_change:.2g}, "
            f"lowest rank correlation {compared.rank_correlation:.4f}"
        )
    for reason, count in report.skipped.items():
        show(f"skipped {count}: {reason}")
    if report.windows_unused:
        say(f"note: {report.windows_unused} decisions had a sensor window, which this bundle does not read")


def _show_promotion(promotion: Promotion) -> None:
    show(
        f"{promotion.samples} samples of {promotion.episodes} episodes, {promotion.images} frames, "
        f"{promotion.windows} sensor windows; {promotion.repeated} repeated decisions left out"
    )
    for reason, count in promotion.skipped.items():
        show(f"skipped {count}: {reason}")
    show(str(promotion.path))
