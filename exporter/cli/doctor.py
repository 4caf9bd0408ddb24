"""``trunkline doctor``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from trunkline.exporter.cli.options import JsonOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, progress_bar, show

if TYPE_CHECKING:
    from trunkline.exporter.checkpoint.findings import Finding
    from trunkline.runtime.progress import Progress

_COLOURS = {"fatal": "bold red", "warning": "yellow", "note": "cyan"}


def command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of any known form.")],
    action_scale: Annotated[
        float,
        typer.Option(
            help="Size of a usual number in the training actions; for sensor-action checkpoints, whose expert should "
            "predict motions of that size."
        ),
    ] = 1.0,
    json: JsonOption = False,
) -> None:
    """Look for hazards in a checkpoint: what each means for the robot, and what to do.

    Checkpoints of the published sensor-action system are examined too, though only their sensor encoder can be used.

    Exits with 1 if something is fatal; `export` refuses such a file.

    **Example**

        trunkline doctor ensemble.safetensors
    """
    with exporter_libraries("doctor"), progress_bar() as progress:
        facts, findings = _examine(file, action_scale, progress)
    if json:
        print_json({"file": file, "kind": facts[0], "sensor": facts[1:], "findings": findings})
    else:
        show("\n".join(facts))
        _show(findings)
    if any(finding.severity == "fatal" for finding in findings):
        raise typer.Exit(1)


def _examine(file: Path, action_scale: float, progress: Progress) -> tuple[list[str], Sequence[Finding]]:
    """What the file is, what it reads of a sensor, and what was found in it."""
    from trunkline.exporter.checkpoint.doctor import diagnose
    from trunkline.exporter.checkpoint.expert import read_sensor_action
    from trunkline.exporter.checkpoint.expert_doctor import diagnose_expert
    from trunkline.exporter.checkpoint.members import shared_settings
    from trunkline.exporter.checkpoint.read import read_checkpoint
    from trunkline.exporter.checkpoint.sensor_file import fusions

    expert = read_sensor_action(file)
    if expert is not None:
        return [expert.describe()], diagnose_expert(expert, action_scale=action_scale)
    checkpoint = read_checkpoint(file, progress=progress)
    form = shared_settings(checkpoint).sensor
    lines = [] if form is None else [f"sensor: {line}" for line in (form.in_words(), *fusions(checkpoint))]
    return [checkpoint.form, *lines], diagnose(checkpoint)


def _show(findings: Sequence[Finding]) -> None:
    for finding in findings:
        where = f" in {finding.member}" if finding.member else ""
        show(f"{finding.severity}: {finding.check}{where}: {finding.problem}", _COLOURS[finding.severity])
        show(f"    on the robot: {finding.meaning}\n    what to do:   {finding.fix}")
    fatal = sum(finding.severity == "fatal" for finding in findings)
    show(f"{len(findings)} findings, {fatal} fatal")
