"""``trunkline eval``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from trunkline.exporter.cli.options import (
    BackboneOption,
    BackendOption,
    BundleArgument,
    JsonOption,
    TrunkWeightsOption,
    reference_for,
)
from trunkline.exporter.cli.output import print_json, print_table, progress_bar, say, show


def command(
    bundle: BundleArgument,
    dataset: Annotated[Path, typer.Option("--dataset", metavar="FILE", help="Data set in the published JSON schema.")],
    images: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10
        typer.Option("--images", metavar="DIR", help="Folder of its images; by default the one the data set names."),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Decisions to draw.")] = 50,
    pool: Annotated[int, typer.Option(min=2, help="Candidates per decision, the right one included.")] = 20,
    seed: Annotated[int, typer.Option(help="Of the draw; the same seed gives the same decisions.")] = 42,
    skip_unreadable: Annotated[bool, typer.Option("--skip-unreadable", help="Leave out unreadable images.")] = False,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--against", metavar="CKPT", help="Take the same decisions in PyTorch, side by side."),
    ] = None,
    backbone: BackboneOption = None,
    trunk_weights: TrunkWeightsOption = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how often the right action window wins, by the published protocol.

    Each decision puts the window that was really executed among windows of other moments. 50 decisions have a
    standard error of 6 points: look at the interval, and draw more.

    **Examples**

        trunkline eval bundle/ --dataset data/dataset.json --samples 500

        trunkline eval bundle/ --dataset data/dataset.json --against ensemble.safetensors --json
    """
    from trunkline.calibration.dataset import read_dataset
    from trunkline.calibration.evaluation import agreement, draw_decisions, evaluate
    from trunkline.runtime.ensemble import load

    data = read_dataset(dataset, images)
    if data.skipped:
        say(f"note: {len(data.skipped)} rows of the data set were skipped, e.g. {data.skipped[0]}")
    cases = draw_decisions(data, samples, pool, seed)
    with progress_bar() as progress:
        with load(bundle, backend=backend, progress=progress) as ensemble:
            members = ensemble.members

            def score(image: Any, instruction: str, histories: Any) -> Any:
                decision = ensemble.score(image, instruction, histories)
                return decision.scores, decision.member_scores

            ours = evaluate(cases, score, progress, skip_unreadable=skip_unreadable)
        theirs = None
        if against is not None:
            reference = reference_for("eval --against", against, backbone, trunk_weights, progress)

            def score_reference(image: Any, instruction: str, histories: Any) -> Any:
                fused, by_member = reference.score(image, [instruction], histories)
                return fused[0], by_member[:, 0]

            theirs = evaluate(cases, score_reference, progress, skip_unreadable=skip_unreadable)
    same = None if theirs is None else agreement(theirs, ours)
    if json:
        print_json({"bundle": _summary(ours, members), "pytorch": theirs and _summary(theirs, members), "same": same})
        return
    _show(ours, theirs, members)
    if same is not None:
        show(
            f"same winner in {same.same_winner} of {same.decisions} decisions, "
            f"largest score change {same.max_score_change:.2g}"
        )
    for image in ours.unreadable:
        say(f"unreadable: {image}")


def _summary(evaluation: Any, members: tuple[str, ...]) -> dict[str, Any]:
    return {
        "decisions": evaluation.decisions,
        "accuracy": evaluation.accuracy,
        "mean_rank": evaluation.mean_rank,
        "mean_distance": evaluation.mean_distance,
        "chance": evaluation.chance,
        "decisions_per_second": evaluation.decisions_per_second,
        "members": dict(zip(members, evaluation.members, strict=True)),
        "unreadable": evaluation.unreadable,
    }


def _show(ours: Any, theirs: Any, members: tuple[str, ...]) -> None:
    columns = [each for each in (theirs, ours) if each is not None]
    names = [*(["PyTorch"] if theirs else []), "bundle"]
    rows: list[list[object]] = [
        ["accuracy (95 % interval)", *(_rate(each.accuracy) for each in columns)],
        ["mean rank", *(f"{each.mean_rank:.3f}" for each in columns)],
        ["mean L2 distance", *(f"{each.mean_distance:.4f}" for each in columns)],
        ["decisions per second", *(f"{each.decisions_per_second:.1f}" for each in columns)],
    ]
    for index, member in enumerate(members):
        rows.append([f"{member} alone: accuracy", *(_rate(each.members[index].accuracy) for each in columns)])
        rows.append([f"{member} alone: mean rank", *(f"{each.members[index].mean_rank:.3f}" for each in columns)])
    print_table(f"{ours.decisions} decisions, chance {ours.chance:.1%}", ["", *names], rows)


def _rate(rate: Any) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
