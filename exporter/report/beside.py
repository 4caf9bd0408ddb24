"""Two bundles on the same golden inputs: scores, and what each stage gives on the way to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.dataflow import Dataflow, Tensors
from trunkline.exporter.report.content import Beside, BundleFacts, StageDifference
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.parity import Comparison, GoldenCall, Scores, compare
from trunkline.runtime.progress import Progress, silent
from trunkline.targets.latency import LatencyReport


@dataclass(frozen=True, eq=False)
class GoldenRun:
    """What a bundle made of golden calls: scores (F, I, N), member scores (F, K, I, N), each stage's outputs."""

    scores: Scores
    member_scores: Scores
    stages: dict[str, list[NDArray[np.float32]]]


def run_golden(ensemble: Ensemble, calls: Sequence[GoldenCall], progress: Progress = silent) -> GoldenRun:
    """Runs golden calls through a bundle, as a whole and stage by stage.

    Raises:
        InputError: the bundle does not take these inputs.
        BackendError: a stage failed.
    """
    step = f"golden inputs of {ensemble.bundle.root.name}"
    scores, member_scores = [], []
    stages: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ensemble.bundle.manifest.stages}
    flow = Dataflow(ensemble.bundle.manifest.stages)
    with contextlib.ExitStack() as stack:
        sessions = {name: ensemble.open_stage(name) for name in stages}
        for session in sessions.values():
            stack.callback(session.close)

        def run(stage: str, inputs: Tensors) -> NDArray[Any]:
            (output,) = sessions[stage].run(inputs).values()
            return output

        for index, call in enumerate(calls):
            progress(step, index, len(calls))
            decision = ensemble.score(call.image, call.instructions, call.histories, sensor=call.sensor)
            scores.append(decision.scores)
            member_scores.append(decision.member_scores)
            values = dict(ensemble.inputs(call.image, call.instructions, call.histories, call.sensor))
            for name in flow.running(values):
                stages[name].append(flow.output(name, values, run))
    progress(step, len(calls), len(calls))
    return GoldenRun(np.stack(scores), np.stack(member_scores), stages)


def put_beside(
    ours: tuple[BundleFacts, GoldenRun],
    theirs: tuple[BundleFacts, GoldenRun],
    latency: LatencyReport | None,
    *,
    margin: float,
) -> Beside:
    """Compares two runs of the same calls; ``latency`` is that of the other bundle, ``margin`` what a clear lead is."""
    (facts, run), (other, reference) = ours, theirs
    members: tuple[Comparison, ...] = ()
    if [each.digest for each in facts.members] == [each.digest for each in other.members]:
        count = range(len(facts.members))
        members = tuple(compare(reference.member_scores[:, k], run.member_scores[:, k], margin) for k in count)
    fused = compare(reference.scores, run.scores, margin)
    return Beside(other, fused, members, tuple(_differences(reference, run)), latency, tuple(_notes(facts, other)))


def _differences(reference: GoldenRun, run: GoldenRun) -> Iterator[StageDifference]:
    for name, outputs in run.stages.items():
        pairs = list(zip(reference.stages.get(name, []), outputs, strict=False))
        if not pairs or any(exact.shape != found.shape for exact, found in pairs):
            continue
        exact, found = (np.concatenate([pair[side].ravel() for pair in pairs]).astype(np.float64) for side in (0, 1))
        noise, signal = float(np.square(found - exact).sum()), float(np.square(exact).sum())
        ratio = 10 * float(np.log10(signal / noise)) if noise and signal else None
        yield StageDifference(name, float(np.abs(found - exact).max()), ratio)


def _notes(facts: BundleFacts, other: BundleFacts) -> Iterator[str]:
    if facts.trunk.digest != other.trunk.digest:
        yield "The two bundles have different trunks."
    if [each.digest for each in facts.members] != [each.digest for each in other.members]:
        yield "The two bundles have different members, so members are not compared one by one."
