"""``trunkline eval``."""

from __future__ import annotations

from dataclasses import replace
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
    beside: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--beside", metavar="BUNDLE", help="Take the same decisions with this bundle too."),
    ] = None,
    without_sensor: Annotated[
        bool, typer.Option("--without-sensor", help="Decide as if the data set had no sensor windows.")
    ] = False,
    backbone: BackboneOption = None,
    trunk_weights: TrunkWeightsOption = None,
    preprocess: PreprocessOption = None,
    backend: BackendOption = None,
    json: JsonOption = False,
) -> None:
    """Measure how often the right action window wins, by the published protocol.

    Each decision puts the window that was really executed among windows of other moments. 50 decisions have a
    standard error of 6 points: look at the interval, and draw more.

    **Examples**

        trunkline eval bundle/ --dataset data/dataset.json --samples 500

        trunkline eval bundle/ --dataset data/dataset.json --against ensemble.safetensors --json

        trunkline eval int8/ --dataset data/dataset.json --samples 1000 --beside float32/

        trunkline eval bundle/ --dataset data/dataset.json --without-sensor
    """
    from trunkline.calibration.evaluation import agreement, draw_decisions, evaluate
    from trunkline.calibration.samples.bundle_needs import BundleNeeds, check_actions
    from trunkline.calibration.samples.dataset import read_dataset
    from trunkline.calibration.samples.dataset_samples import check_decisions
    from trunkline.runtime.bundle import Bundle
    from trunkline.runtime.ensemble import load

    data = read_dataset(dataset, images)
    if data.skipped:
        say(f"note: {len(data.skipped)} rows of the data set were skipped, e.g. {data.skipped[0]}")
    cases = draw_decisions(data, samples, pool, seed)
    if without_sensor:
        cases = [replace(case, sensor=None) for case in cases]
    columns: dict[str, Any] = {}
    with progress_bar() as progress:
        for path in (bundle, beside):
            if path is not None:
                check_decisions(data, cases, BundleNeeds.of(Bundle(path, progress=progress)))
        if against is not None:
            reference = reference_for(
                "eval --against",
                against,
                progress,
                backbone=backbone,
                trunk_weights=trunk_weights,
                preprocess=preprocess,
            )
            check_actions(data.path.name, data.windows, reference.settings)

            def score_reference(image: Any, instruction: str, histories: Any, window: Any) -> Any:
                samples = None if window is None else window.samples
                fused, by_member = reference.score(image, [instruction], histories, samples)
                return fused[0], by_member[:, 0]

            columns["pytorch"] = evaluate(cases, score_reference, progress, skip_unreadable=skip_unreadable)
        for name, path in (("beside", beside), ("bundle", bundle)):
            if path is None:
                continue
            with load(path, backend=backend, progress=progress) as ensemble:
                score = _scorer(ensemble)
                columns[name] = evaluate(cases, score, progress, skip_unreadable=skip_unreadable)
                members = ensemble.members
                if name == "bundle":
                    reused = _reused(ensemble.bundle, columns[name])
    ours = columns["bundle"]
    same = {name: agreement(other, ours) for name, other in columns.items() if name != "bundle"}
    if reused is not None and reused.used:
        say(f"note: {reused}; the bundle may do better on them than on others")
    if json:
        summaries = {name: _summary(each, members) for name, each in columns.items()}
        print_json({"pytorch": None, "beside": None, **summaries, "same": same, "used_in_calibration": reused})
        return
    titles = {
        "pytorch": "PyTorch",
        "beside": beside.name if beside else "",
        "bundle": bundle.name if beside else "bundle",
    }
    _show({titles[name]: each for name, each in columns.items()}, members)
    for name, each in same.items():
        show(
            f"same winner as {titles[name]} in {each.same_winner} of {each.decisions} decisions "
            f"({each.winner_agreement:.1%}), largest score change {each.max_score_change:.2g}; other winners cost "
            f"{each.mean_regret:.2g} of a score on average, {each.max_regret:.2g} at most"
        )
    for image in ours.unreadable:
        say(f"unreadable: {image}")


def _scorer(ensemble: Any) -> Any:
    reads_sensor = ensemble.sensor is not None

    def score(image: Any, instruction: str, histories: Any, window: Any) -> Any:
        decision = ensemble.score(image, instruction, histories, sensor=window if reads_sensor else None)
        return decision.scores, decision.member_scores

    return score


def _reused(bundle: Any, evaluation: Any) -> Any:
    """Which evaluated samples calibrated the bundle; None for a bundle that was not calibrated."""
    from trunkline.calibration.int8.outcome import read_calibration
    from trunkline.calibration.samples.dataset_samples import sample_of
    from trunkline.calibration.samples.overlap import overlap

    calibration = read_calibration(bundle)
    if calibration is None:
        return None
    return overlap(calibration.samples.digests, (sample_of(result.case) for result in evaluation.results))


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


def _show(by_name: dict[str, Any], members: tuple[str, ...]) -> None:
    columns = list(by_name.values())
    ours = columns[-1]
    rows: list[list[object]] = [
        ["accuracy (95 % interval)", *(_rate(each.accuracy) for each in columns)],
        ["mean rank", *(f"{each.mean_rank:.3f}" for each in columns)],
        ["mean L2 distance", *(f"{each.mean_distance:.4f}" for each in columns)],
        ["decisions per second", *(f"{each.decisions_per_second:.1f}" for each in columns)],
    ]
    for index, member in enumerate(members):
        rows.append([f"{member} alone: accuracy", *(_rate(each.members[index].accuracy) for each in columns)])
        rows.append([f"{member} alone: mean rank", *(f"{each.members[index].mean_rank:.3f}" for each in columns)])
    print_table(f"{ours.decisions} decisions, chance {ours.chance:.1%}", ["", *by_name], rows)


def _rate(rate: Any) -> str:
    return f"{rate.value:.1%} ({rate.low:.1%} to {rate.high:.1%})"
