"""``trunkline export``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from trunkline.calibration.defaults import (
    CALIBRATING_SAMPLES,
    FLOAT16_SCORE_CHANGE,
    INT8_AGREEMENT,
    INT8_SCORE_CHANGE,
    JUDGING_SAMPLES,
)
from trunkline.exporter.cli.options import (
    BackboneOption,
    JsonOption,
    PreprocessOption,
    TrunkWeightsOption,
    exporter_libraries,
)
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, say, show, size
from trunkline.runtime.errors import InputError, InstructionError

if TYPE_CHECKING:
    from trunkline.calibration.int8.compress import CompressOptions
    from trunkline.calibration.int8.outcome import CalibrationRecord
    from trunkline.calibration.samples.draw import DrawOptions
    from trunkline.exporter.export import ExportReport
    from trunkline.exporter.options import Int8Options
    from trunkline.runtime.progress import Progress

_INT8 = "int8 (--precision int8)"


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Training checkpoint or ensemble.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Directory to create.")],
    backbone: BackboneOption = None,
    trunk_weights: TrunkWeightsOption = None,
    preprocess: PreprocessOption = None,
    bake: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--bake", metavar="FILE", help="Instructions, one per line, to store in place of the text tower."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace BUNDLE if it is one.")] = False,
    half: Annotated[bool, typer.Option("--half", help="Also write a float16 variant for GPUs.")] = False,
    half_int8: Annotated[
        bool,
        typer.Option("--half-int8", help="Also int8 in the variant for GPUs, with --precision int8. Measure the gain."),
    ] = False,
    half_score_change: Annotated[
        float,
        typer.Option(
            "--half-score-change",
            min=1e-6,
            max=2.0,
            help="By how much float16 may change a score; judged on the GPU, by `trunkline build` or `verify`.",
        ),
    ] = FLOAT16_SCORE_CHANGE,
    report: Annotated[
        bool, typer.Option("--report/--no-report", help="Write BUNDLE.html, what `trunkline report` shows, beside it.")
    ] = True,
    json: JsonOption = False,
    precision: Annotated[
        Literal["float32", "int8"],
        typer.Option("--precision", help="int8: four times smaller and faster, within a budget; needs --calibrate."),
    ] = "float32",
    calibrate: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--calibrate",
            metavar="DATA",
            help="What the robot sees: a data set's JSON file, or a folder of images with instructions.txt.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    images: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--images", metavar="DIR", help="Images of DATA; by default as it says.", rich_help_panel=_INT8),
    ] = None,
    judge: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--judge",
            metavar="DATA",
            help="Judge and prove on this; by default on held-out parts.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    method: Annotated[
        Literal["best", "minmax", "percentile", "entropy", "mse"],
        typer.Option("--method", help="How activation ranges are chosen.", rich_help_panel=_INT8),
    ] = "best",
    max_score_change: Annotated[
        float, typer.Option("--max-score-change", help="Most that a score may move.", rich_help_panel=_INT8)
    ] = INT8_SCORE_CHANGE,
    min_agreement: Annotated[
        float,
        typer.Option(
            "--min-agreement",
            help="Share of all decisions that must keep winner and scores; proved, 95 % sure.",
            rich_help_panel=_INT8,
        ),
    ] = INT8_AGREEMENT,
    samples: Annotated[
        int, typer.Option("--samples", min=1, help="Samples that calibrate.", rich_help_panel=_INT8)
    ] = CALIBRATING_SAMPLES,
    judged: Annotated[
        int, typer.Option("--judged", min=1, help="Decisions that layers are chosen by.", rich_help_panel=_INT8)
    ] = JUDGING_SAMPLES,
    proved: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(
            "--proved",
            min=1,
            help="Decisions that prove the choice; by default as many as --min-agreement needs, 1,145 for 0.97.",
            rich_help_panel=_INT8,
        ),
    ] = None,
    backend: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            "--backend", metavar="NAME", help="What judges; by default the fastest installed.", rich_help_panel=_INT8
        ),
    ] = None,
    skip_unreadable: Annotated[
        bool, typer.Option("--skip-unreadable", help="Go on without images that cannot be read.", rich_help_panel=_INT8)
    ] = False,
) -> None:
    """Compile a checkpoint into a bundle, and prove that it decides as PyTorch does.

    Traces the trunk and the heads to ONNX, stores tokenizer, preprocessing and golden vectors, and runs them once.
    An interrupted export leaves nothing behind; calibration goes on where it stopped.

    With **--precision int8** the linear layers become int8 where the decisions stay within the budget, judged on
    samples that did not calibrate and proved on others that nothing was chosen by. If no choice of layers keeps to it,
    or too few samples prove it, nothing is written and the exit code is 3.

    **Examples**

        trunkline export ensemble.safetensors -o bundle/

        trunkline export merged.pt -o bundle/ --backbone local-dir:siglip2/ --bake instructions.txt

        trunkline export merged.pt -o small/ --precision int8 --calibrate dataset.json --max-score-change 0.02
    """
    with exporter_libraries("export"):
        from trunkline.calibration.int8.compress import CompressOptions
        from trunkline.calibration.int8.outcome import Budget
        from trunkline.calibration.int8.proof import decisions_needed
        from trunkline.calibration.int8.ranges import Method
        from trunkline.calibration.int8.stage_plan import RangeOptions
        from trunkline.calibration.samples.draw import DrawOptions
        from trunkline.exporter.export import export
        from trunkline.exporter.options import ExportOptions, HalfOptions
        from trunkline.exporter.own_preprocessing import read_statement
    note, int8 = _noting_once(), None
    if precision == "int8":
        compress = CompressOptions(
            Budget(max_score_change, min_agreement),
            RangeOptions(None if method == "best" else Method(method)),
            backend=backend,
        )
        draw = DrawOptions(samples, judged, proved or decisions_needed(min_agreement), skip_unreadable=skip_unreadable)
        int8 = _int8(calibrate, images, judge, draw, compress, note)
    elif calibrate or images or judge:
        raise InputError("samples are given, but nothing is calibrated", fix="pass --precision int8 as well")
    instructions = None if bake is None else read_instructions(bake)
    stated = None if preprocess is None else read_statement(preprocess)
    with progress_bar() as progress:
        for_gpus = HalfOptions(half_score_change, int8=half_int8) if half or half_int8 else None
        options = ExportOptions(bake=instructions, int8=int8, half=for_gpus, overwrite=overwrite)
        exported = export(
            checkpoint,
            output,
            backbone=backbone,
            trunk_weights=trunk_weights,
            preprocess=stated,
            options=options,
            progress=progress,
        )
        page = _write_report(output, progress) if report else None
    for warning in exported.calibration.samples.warnings if exported.calibration else ():
        note(warning)
    for finding in exported.findings:
        say(f"{finding.severity}: {finding.problem} (`trunkline doctor` explains)")
    if json:
        print_json(exported)
        return
    _show(exported)
    if page is not None:
        show(f"report: {page}")


def _noting_once() -> Callable[[str], None]:
    """Says each note once: some are known before the long work, and all are in what it returns."""
    said: set[str] = set()

    def note(message: str) -> None:
        if message not in said:
            said.add(message)
            say(f"note: {message}")

    return note


def _int8(
    calibrate: Path | None,
    images: Path | None,
    judge: Path | None,
    draw: DrawOptions,
    compress: CompressOptions,
    note: Callable[[str], None],
) -> Int8Options:
    from trunkline.calibration.samples.sources import open_samples
    from trunkline.exporter.options import Int8Options

    if calibrate is None:
        raise InputError(
            "int8 needs samples of what the robot sees",
            expected="--calibrate DATA: a data set's JSON file, or a folder of images with instructions.txt",
            found="no --calibrate",
        )
    return Int8Options(
        samples=open_samples(calibrate, images),
        judge=None if judge is None else open_samples(judge),
        draw=draw,
        compress=replace(compress, statistics=_statistics()),
        tell=note,
    )


def _statistics() -> Path | None:
    """Where statistics are remembered, None for a user without a home directory."""
    from trunkline.calibration.statistics.cache import default_folder

    try:
        return default_folder()
    except OSError as error:
        say(f"note: an interrupted export will not go on where it stopped, since there is {error}")
        return None


def _show(report: ExportReport) -> None:
    rows = [[name, size(count)] for name, count in report.stage_bytes.items()] + [["all", size(report.bundle_bytes)]]
    print_table(f"{report.output}, {len(report.members)} members", ["stage", "size"], rows)
    fused = report.parity.fused
    show(
        f"parity with PyTorch float32: largest score change {fused.max_score_change:.2g} "
        f"(allowed {report.parity.allowed_score_change:g}), "
        f"{fused.decisions - fused.winners_changed - fused.winners_close} of {fused.decisions} winners the same"
    )
    if report.calibration is not None:
        _show_calibration(report.calibration)


def _show_calibration(calibration: CalibrationRecord) -> None:
    from trunkline.calibration.int8.outcome import promised

    kinds = [layer.precision for layer in calibration.layers if layer.inputs is not None]
    show(f"{kinds.count('int8')} of {len(kinds)} linear layers in int8, judged with {calibration.backend}")
    for line in promised(calibration.proof, calibration.budget):
        show(line)


def _write_report(output: Path, progress: Progress) -> Path:
    from trunkline.exporter.report import write_report
    from trunkline.runtime.backends import choose

    page = output.with_name(f"{output.name}.html")
    # Exports were measured on the processor; whoever exports needs nothing that runs bundles on its GPU.
    write_report(output, page, backend=choose(None, ("cpu",)).NAME, overwrite=True, progress=progress)
    return page


def read_instructions(file: Path) -> list[str]:
    """Lines of a text file.

    Raises:
        InstructionError: it cannot be read.
    """
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InstructionError(
            "cannot read the instructions to bake", where=file, expected="UTF-8 text, one per line", found=str(error)
        ) from error
