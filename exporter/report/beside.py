"""Two bundles on the same golden inputs: scores, and what each stage gives on the way to them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trunkline.exporter.report.content import Beside, BundleFacts, StageDifference
from trunkline.runtime.backends import Session
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.image import decode_png
from trunkline.runtime.parity import Comparison, Scores, compare, golden_name
from trunkline.runtime.progress import Progress, silent
from trunkline.targets.latency import LatencyReport


@dataclass(frozen=True, eq=False)
class GoldenCall:
    """A golden frame, the instructions it is scored under, and its candidates (N, H, A)."""

    image: Image.Image
    instructions: tuple[str, ...]
    histories: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class GoldenRun:
    """What a bundle made of golden calls: scores (F, I, N), member scores (F, K, I, N), each stage's outputs."""

    scores: Scores
    member_scores: Scores
    stages: dict[str, list[NDArray[np.float32]]]


def read_golden(bundle: Bundle) -> tuple[GoldenCall, ...]:
    """The golden inputs of a bundle that :func:`check_parity` has run: their form is known to be right."""
    entry = bundle.manifest.parity
    tensors = bundle.tensors(entry.golden)
    calls = []
    for index in range(sum(name.startswith("frame_") for name in tensors)):
        content, histories = (np.asarray(tensors[golden_name(kind, index)]) for kind in ("frame", "histories"))
        image = decode_png(content.tobytes(), f"{bundle.root}, {entry.golden}, frame {index}")
        calls.append(GoldenCall(image, entry.instructions, histories))
    return tuple(calls)


def run_golden(ensemble: Ensemble, calls: Sequence[GoldenCall], progress: Progress = silent) -> GoldenRun:
    """Runs golden calls through a bundle, as a whole and stage by stage.

    Raises:
        InputError: the bundle does not take these inputs.
        BackendError: a stage failed.
    """
    step = f"golden inputs of {ensemble.bundle.root.name}"
    scores, member_scores = [], []
    stages: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ensemble.bundle.manifest.stages}
    with contextlib.ExitStack() as stack:
        sessions = {name: ensemble.open_stage(name) for name in stages}
        for session in sessions.values():
            stack.callback(session.close)
        for index, call in enumerate(calls):
            progress(step, index, len(calls))
            decision = ensemble.score(call.image, call.instructions, call.histories)
            scores.append(decision.scores)
            member_scores.append(decision.member_scores)
            values = dict(ensemble.inputs(call.image, call.instructions, call.histories))
            for name, output in _run_stages(ensemble.bundle, sessions, values):
                stages[name].append(output)
    progress(step, len(calls), len(calls))
    return GoldenRun(np.stack(scores), np.stack(member_scores), stages)


def put_beside(
    ours: tuple[BundleFacts, GoldenRun], theirs: tuple[BundleFacts, GoldenRun], latency: LatencyReport | None
) -> Beside:
    """Compares two runs of the same calls; ``latency`` is that of the other bundle."""
    (facts, run), (other, reference) = ours, theirs
    margin = facts.parity.margin
    members: tuple[Comparison, ...] = ()
    if [each.digest for each in facts.members] == [each.digest for each in other.members]:
        count = range(len(facts.members))
        members = tuple(compare(reference.member_scores[:, k], run.member_scores[:, k], margin) for k in count)
    fused = compare(reference.scores, run.scores, margin)
    return Beside(other, fused, members, tuple(_differences(reference, run)), latency, tuple(_notes(facts, other)))


def _run_stages(
    bundle: Bundle, sessions: Mapping[str, Session], values: dict[str, NDArray[np.generic]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Outputs of all stages, each as soon as what it reads is there; ``values`` grows by them."""
    waiting = dict(bundle.manifest.stages)
    while waiting:
        ready = next(name for name, stage in waiting.items() if all(each.name in values for each in stage.inputs))
        stage = waiting.pop(ready)
        output = sessions[ready].run({each.name: values[each.name] for each in stage.inputs})[stage.outputs[0].name]
        values[stage.outputs[0].name] = output
        yield ready, output


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
