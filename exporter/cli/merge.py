"""``trunkline merge``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trunkline.exporter.cli.options import BackboneOption, JsonOption, exporter_libraries
from trunkline.exporter.cli.output import print_json, progress_bar, say, show, size


def command(
    sources: Annotated[list[Path], typer.Argument(metavar="CKPT...", help="Training checkpoints or ensembles.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.safetensors, or FILE.pt.")],
    backbone: BackboneOption = None,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads the members were trained with.")] = 8,
    history_length: Annotated[int, typer.Option(min=1, help="Steps per action window.")] = 10,
    action_dim: Annotated[int, typer.Option(min=1, help="Numbers per step; read from transformer encoders.")] = 7,
    padding_value: Annotated[float, typer.Option(help="Component 0 of a padded step.")] = -5.0,
    json: JsonOption = False,
) -> None:
    """Merge training checkpoints into one ensemble file: the heads without backbone and optimiser.

    The suffix chooses the form: `.safetensors` is ours (strict, versioned), `.pt` is the published one.
    Training checkpoints do not say their window, padding value and heads; the options state them.

    **Example**

        trunkline merge epoch_7.pt epoch_8.pt epoch_9.pt -o ensemble.safetensors
    """
    with exporter_libraries("merge"):
        from trunkline.exporter.checkpoint.members import Settings
        from trunkline.exporter.checkpoint.merge import merge
    settings = Settings(heads, history_length, action_dim, padding_value)
    with progress_bar() as progress:
        report = merge(sources, output, backbone=backbone, settings=settings, progress=progress)
    for note in report.notes:
        say(f"note: {note}")
    if json:
        print_json(report)
        return
    show(f"{report.output}: {len(report.members)} members ({', '.join(report.members)}) on {report.backbone}")
    show(f"before: {size(report.source_bytes)} in {len(sources)} files, after: {size(report.output_bytes)}")
