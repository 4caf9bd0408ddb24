"""``trunkline report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from trunkline.exporter.cli.options import BackendOption, BundleArgument, JsonOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, progress_bar, show


def command(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="HTML file to write.")],
    against: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--against", metavar="BUNDLE", help="Put this bundle, say the float32 one, beside it."),
    ] = None,
    latency: Annotated[bool, typer.Option("--latency/--no-latency", help="Measure latency, or leave it out.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Write one HTML file about a bundle: does it decide as PyTorch did, what did int8 cost, how large, how fast?

    Runs the golden vectors and measures latency on this machine. The file needs nothing else and opens offline. With
    `--json` the same content also goes to stdout. Exits with 3 if the golden vectors fail their gate; the report is
    written all the same.

    **Examples**

        trunkline report bundle/ -o report.html

        trunkline report int8/ -o report.html --against float32/ --no-latency
    """
    with exporter_libraries("report"):
        from trunkline.exporter.report import write_report
    from trunkline.runtime.parity import require_parity

    with progress_bar() as progress:
        report = write_report(
            bundle,
            output,
            backend=backend,
            latency=latency,
            against=against,
            overwrite=overwrite,
            progress=progress,
        )
    if json:
        print_json(report)
    else:
        show(report.verdict.sentence, "green" if report.verdict.passed else "bold red")
        for detail in report.verdict.details:
            show(f"  {detail}")
        show(f"written: {output}")
    require_parity(report.parity, bundle)
