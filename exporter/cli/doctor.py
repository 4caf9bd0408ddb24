"""``trunkline doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trunkline.exporter.cli.options import JsonOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, progress_bar, show

_COLOURS = {"fatal": "bold red", "warning": "yellow", "note": "cyan"}


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of any known form.")],
    json: JsonOption = False,
) -> None:
    """Look for hazards in a checkpoint: what each means for the robot, and what to do.

    Exits with 1 if something is fatal; `export` refuses such a file.

    **Example**

        trunkline doctor ensemble.safetensors
    """
    with exporter_libraries("doctor"):
        from trunkline.exporter.checkpoint.doctor import diagnose
        from trunkline.exporter.checkpoint.read import read_checkpoint
    with progress_bar() as progress:
        findings = diagnose(read_checkpoint(file, progress=progress))
    if json:
        print_json({"file": file, "findings": findings})
    else:
        for finding in findings:
            where = f" in {finding.member}" if finding.member else ""
            show(f"{finding.severity}: {finding.check}{where}: {finding.problem}", _COLOURS[finding.severity])
            show(f"    on the robot: {finding.meaning}\n    what to do:   {finding.fix}")
        fatal = sum(finding.severity == "fatal" for finding in findings)
        show(f"{len(findings)} findings, {fatal} fatal")
    if any(finding.severity == "fatal" for finding in findings):
        raise typer.Exit(1)
