"""``trunkline export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from trunkline.exporter.cli.options import BackboneOption, JsonOption, TrunkWeightsOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, say, show, size
from trunkline.runtime.errors import InstructionError


def command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CKPT", help="Training checkpoint or merged ensemble.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="BUNDLE", help="Directory to create.")],
    backbone: BackboneOption = None,
    trunk_weights: TrunkWeightsOption = None,
    bake: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--bake", metavar="FILE", help="Instructions, one per line, to store in place of the text tower."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace BUNDLE if it is one.")] = False,
    json: JsonOption = False,
) -> None:
    """Compile a checkpoint into a bundle, and prove that its scores are PyTorch's.

    Traces the trunk and the heads to ONNX, stores tokenizer, preprocessing and golden vectors, and runs them once.
    An interrupted export leaves nothing behind.

    **Examples**

        trunkline export ensemble.safetensors -o bundle/

        trunkline export merged.pt -o bundle/ --backbone local-dir:siglip2/ --bake instructions.txt
    """
    with exporter_libraries("export"):
        from trunkline.exporter.export import export
    with progress_bar() as progress:
        report = export(
            checkpoint,
            output,
            backbone=backbone,
            trunk_weights=trunk_weights,
            bake=None if bake is None else read_instructions(bake),
            overwrite=overwrite,
            progress=progress,
        )
    for finding in report.findings:
        say(f"{finding.severity}: {finding.problem} (`trunkline doctor` explains)")
    if json:
        print_json(report)
        return
    rows = [[name, size(count)] for name, count in report.stage_bytes.items()] + [["all", size(report.bundle_bytes)]]
    print_table(f"{report.output}, {len(report.members)} members", ["stage", "size"], rows)
    fused = report.parity.fused
    show(
        f"parity with PyTorch float32: largest score change {fused.max_score_change:.2g} "
        f"(allowed {report.parity.allowed_score_change:g}), "
        f"{fused.decisions - fused.winners_changed} of {fused.decisions} winners the same"
    )


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
