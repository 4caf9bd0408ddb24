"""What does another form of a stage do to the ensemble's decisions?

The judge takes decisions once with the bundle as it is (the reference), and again with any of its stages replaced. Work
that a replacement does not touch is not repeated: results are kept per stage and per form of everything upstream.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.dataflow import Dataflow
from trunkline.calibration.int8.outcome import Damage
from trunkline.runtime import fusion
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.ensemble import Ensemble
from trunkline.runtime.parity import regret, spearman
from trunkline.runtime.progress import Progress, silent

Floats = NDArray[np.float32]
#: What the stages are fed for one decision: ``pixels``, ``ids`` or ``tokens``, ``history``, each with one row or more.
Inputs = Mapping[str, NDArray[np.generic]]

#: Forms of each stage whose results are kept: the float32 one, and the last few that were tried.
_KEPT = 2


@dataclass(frozen=True)
class Verdict:
    """Damage of the fused decisions and of each member's own, and all scores, reference against found."""

    fused: Damage
    members: tuple[Damage, ...]
    reference: tuple[Floats, ...]
    found: tuple[Floats, ...]


class Judge:
    """Judges replacements of a bundle's stages. Not for several threads."""

    def __init__(self, ensemble: Ensemble, decisions: Sequence[Inputs], progress: Progress = silent) -> None:
        """Takes the decisions with the bundle's own stages.

        Args:
            ensemble: the float32 bundle, loaded; its back end runs the replacements too.
            decisions: inputs of each decision, one frame and one instruction; see :meth:`Ensemble.inputs`.
            progress: counts decisions.
        """
        self._ensemble = ensemble
        self._flow = Dataflow(ensemble.bundle.manifest.stages)
        self._decisions = decisions
        self._running = [self._flow.running(fed) for fed in decisions]
        self._outputs: OrderedDict[tuple[str, ...], list[Floats]] = OrderedDict()
        self._contexts: list[Floats] = []
        self._reference = self._score({}, progress)

    def judge(self, replaced: Mapping[str, StageFiles], progress: Progress = silent) -> Verdict:
        """Decides with some stages replaced.

        Args:
            replaced: stages in another form, by name; their folders and graphs tell forms apart.
            progress: counts decisions of each stage that runs.

        Raises:
            BackendError: a stage cannot be compiled or run, or returns vectors that are not finite unit vectors.
        """
        fused, members = self._score(replaced, progress)
        expected, expected_members = self._reference
        return Verdict(
            fused=damage(expected, fused),
            members=tuple(
                damage([each[k] for each in expected_members], [each[k] for each in members])
                for k in range(len(members[0]))
            ),
            reference=tuple(expected),
            found=tuple(fused),
        )

    def contexts(self) -> Floats:
        """(decisions, E) float32: mean context vectors of the members, as the bundle itself computes them."""
        return np.stack([context[:, 0].mean(axis=0) for context in self._contexts])

    def _score(self, replaced: Mapping[str, StageFiles], progress: Progress) -> tuple[list[Floats], list[Floats]]:
        """Fused scores (N,) and members' scores (K, N) of each decision."""
        contexts = self._outputs_of("context", replaced, progress)
        self._contexts = self._contexts or contexts
        actions = self._outputs_of("action", replaced, progress)
        fused, members = [], []
        for context, action in zip(contexts, actions, strict=True):
            scores, by_member = fusion.fuse(context, action)  # (1, N), (K, 1, N)
            fused.append(scores[0])
            members.append(by_member[:, 0])
        return fused, members

    def _outputs_of(self, stage: str, replaced: Mapping[str, StageFiles], progress: Progress) -> list[Floats]:
        """A stage's output for every decision. Outputs that depend on nothing replaced since are not computed again."""
        before = self._flow.before(stage)
        key = (stage, *(_form(replaced.get(name)) for name in before))
        if key in self._outputs:
            self._outputs.move_to_end(key)
            return self._outputs[key]
        known = {name: self._outputs_of(name, replaced, progress) for name in before[:-1]}
        outputs = self._run(stage, replaced.get(stage), self._inputs(stage, known), progress)
        self._outputs[key] = outputs
        self._forget(stage)
        return outputs

    def _inputs(self, stage: str, known: Mapping[str, list[Floats]]) -> list[Inputs | None]:
        """What a stage is fed for every decision, from the outputs of those before it; None where it does not run."""
        sources = self._flow.sources(stage)
        return [
            {name: fed[name] if name in fed else known[str(source)][index] for name, source in sources.items()}
            if stage in self._running[index]
            else None
            for index, fed in enumerate(self._decisions)
        ]

    def _run(
        self, stage: str, files: StageFiles | None, inputs: Sequence[Inputs | None], progress: Progress
    ) -> list[Floats]:
        """The stage's output for every decision, with inputs that were seen before not run again.

        Empty where the stage does not run; nobody asks for it there.
        """
        session = self._ensemble.open_stage(stage, files)
        try:
            known: dict[tuple[bytes, ...], Floats] = {}
            outputs = []
            for index, fed in enumerate(inputs):
                progress(f"judging {stage}", index, len(inputs))
                if fed is None:
                    outputs.append(np.empty(0, np.float32))
                    continue
                content = tuple(np.ascontiguousarray(array).tobytes() for array in fed.values())
                if content not in known:
                    (known[content],) = session.run(dict(fed)).values()
                outputs.append(known[content])
        finally:
            session.close()
        progress(f"judging {stage}", len(inputs), len(inputs))
        return outputs

    def _forget(self, stage: str) -> None:
        """Drops the oldest results of a stage; those of the bundle's own form stay."""
        keys = [key for key in self._outputs if key[0] == stage and any(key[1:])]
        for key in keys[: max(0, len(keys) - _KEPT)]:
            del self._outputs[key]


def _form(files: StageFiles | None) -> str:
    """Which form of a stage this is; empty for the bundle's own."""
    return "" if files is None else f"{files.folder} {hash(files.graph)}"


def damage(expected: Sequence[Floats], found: Sequence[Floats]) -> Damage:
    """Compares decisions' scores, (N,) each; N may differ between decisions."""
    pairs = list(zip(expected, found, strict=True))
    changes = [np.abs(one - two) for one, two in pairs]
    regrets = [regret(one, two) for one, two in pairs]
    return Damage(
        decisions=len(pairs),
        max_score_change=max(float(change.max()) for change in changes),
        mean_score_change=float(np.mean([change.mean() for change in changes])),
        winners_kept=regrets.count(0.0),
        mean_regret=float(np.mean(regrets)),
        max_regret=max(regrets),
        rank_correlation=float(np.mean([spearman(one, two) for one, two in pairs])),
    )
