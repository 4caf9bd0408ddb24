"""``trunkline verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from trunkline.exporter.cli.options import (
    BackboneOption,
    BackendOption,
    BundleArgument,
    JsonOption,
    PreprocessOption,
    TrunkWeightsOption,
    reference_for,
)
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, show
from trunkline.runtime.errors import ParityError


def command(
    bundle: BundleArgument,
    against: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--against", metavar="CKPT", help="Also compare with this checkpoint in PyTorch."),
    ] = None,
    backbone: BackboneOption = None,
    trunk_weights: TrunkWeightsOption = None,
    preprocess: PreprocessOption = None,
    frames: Annotated[int, typer.Option(min=1, help="Random frames for --against.")] = 4,
    seed: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=0, help="Of the random inputs for --against; new each time by default."),
    ] = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Check that a bundle, on this machine, decides as the PyTorch ensemble did.

    Hashes every file, then runs the golden vectors; no torch needed. With `--against`, fresh random inputs go through
    PyTorch too, in float32 and with the bfloat16 trunk of the original, so that our error stands beside its rounding.
    Exits with 3 if the gate fails.

    **Examples**

        trunkline verify bundle/

        trunkline verify bundle/ --against ensemble.safetensors
    """
    from trunkline.runtime.backends import described
    from trunkline.runtime.ensemble import load
    from trunkline.runtime.parity import check_parity, require_parity

    with progress_bar() as progress, load(bundle, backend=backend, recheck=True, progress=progress) as ensemble:
        golden, ran_on = check_parity(ensemble, progress=progress), described(ensemble.backend)
        fresh = None
        if against is not None:
            reference = reference_for(
                "verify --against",
                against,
                progress,
                backbone=backbone,
                trunk_weights=trunk_weights,
                preprocess=preprocess,
            )
            from trunkline.exporter.against import verify_against

            fresh = verify_against(ensemble, reference, frames=frames, seed=seed, progress=progress)
    if json:
        print_json({"golden": golden, "against": fresh, "backend": ran_on})
    else:
        _show(golden, fresh, ran_on)
    require_parity(golden, bundle)
    if fresh is not None and not fresh.passed:
        raise ParityError(
            "the bundle does not score as this checkpoint does",
            where=f"{bundle} against {against}, seed {fresh.seed}",
            expected=f"scores within {fresh.allowed_score_change:g}, the same winners and the same preprocessing",
            found=fresh.problems(),
            fix="check that the bundle was exported from this very checkpoint and trunk",
        )


def _show(golden: Any, fresh: Any, ran_on: str) -> None:
    rows = [["golden vectors, fused", *_row(golden.fused)]]
    rows += [[f"golden vectors, member {index}", *_row(each)] for index, each in enumerate(golden.members)]
    if fresh is not None:
        rows.append([f"fresh inputs (seed {fresh.seed})", *_row(fresh.ours)])
        rows.append(["the original's own bfloat16 rounding", *_row(fresh.original)])
    columns = ["compared with PyTorch float32", "decisions", "largest score change", "winners changed", "rank corr."]
    print_table("parity", columns, rows)
    passed = golden.passed and (fresh is None or fresh.passed)
    show(
        f"{golden.frames - golden.pixels_changed - golden.normalised_changed} of {golden.frames} frames preprocessed "
        "identically, "
        f"{golden.ids_changed} instructions tokenised differently, {ran_on}"
    )
    show("passed", "green") if passed else show("FAILED", "bold red")


def _row(comparison: Any) -> list[object]:
    changed = str(comparison.winners_changed)
    if comparison.winners_close:
        changed += f" (+{comparison.winners_close} close)"
    return [
        comparison.decisions,
        f"{comparison.max_score_change:.2e}",
        changed,
        f"{comparison.rank_correlation:.4f}",
    ]
