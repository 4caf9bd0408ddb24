"""Takes the decisions of a log again, with another bundle or with the same one, and says which come out differently.

A decision is taken again only from the very input it was taken from: pixels, instruction, candidates, and the sensor's
samples one by one. Where any of that is no longer in the log, or the bundle refuses it, the decision is skipped and
counted with the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trunkline.calibration.samples.bundle_needs import check_actions, form_problems
from trunkline.calibration.samples.sample import WindowForm
from trunkline.runtime.ensemble import Decision, Ensemble
from trunkline.runtime.errors import InputError
from trunkline.runtime.parity import Comparison, compare
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.replay.index import Inputs, LogIndex, RecordedDecision
from trunkline.runtime.replay.reader import ReplayLog

Scores = NDArray[np.float32]

DROPPED_MEANWHILE = "the log dropped it while it was read"
UNKNOWN_FORM = "nothing that is left of the log tells how its candidates are padded"
OTHER_FORM = "its candidates are of another kind than the bundle"


@dataclass(frozen=True)
class Moved:
    """A decision with another winner.

    Attributes:
        number: of its record.
        stamp_ns: when it was taken, on the clock of whoever took it.
        frame: number of the frame's record.
        instruction: under which the recorded winner won.
        before: index of the recorded winner.
        after: index of the winner now.
        instruction_after: under which the winner now wins; the same unless there were rephrasings.
        margin_before: recorded score of the recorded winner, less that of the winner now.
        margin_after: score now of the winner now, less that of the recorded winner.
    """

    number: int
    stamp_ns: int
    frame: int
    instruction: str
    before: int
    after: int
    instruction_after: str
    margin_before: float
    margin_after: float


@dataclass(frozen=True)
class ReplayReport:
    """What became of a log's decisions.

    Attributes:
        decisions: how many were looked at.
        replayed: how many of them were taken again.
        skipped: how many were not, by reason.
        comparison: scores then and now; None if no decision was taken again.
        moved: decisions with another winner, oldest first.
        deciders: how many of those taken again each bundle took, by the digest of its manifest.
        windows_unused: decisions that had a sensor window, which a bundle without a sensor does not read.
    """

    decisions: int
    replayed: int
    skipped: Mapping[str, int]
    comparison: Comparison | None
    moved: tuple[Moved, ...]
    deciders: Mapping[str, int]
    windows_unused: int


def replay(
    log: ReplayLog,
    ensemble: Ensemble,
    *,
    margin: float = 0.0,
    limit: int | None = None,
    progress: Progress = silent,
) -> ReplayReport:
    """Takes decisions again.

    Args:
        log: what was recorded.
        ensemble: the bundle that is asked, loaded.
        margin: a recorded winner that was ahead by no more than this counts as close.
        limit: only the newest so many decisions; all by default.
        progress: told about segments, then about decisions.

    Raises:
        ReplayError: the log is of another version.
        DatasetError: the newest header tells of other windows of actions than the bundle's.
        TrunklineError: as :meth:`Ensemble.score`, but for inputs that it refuses.
    """
    index = LogIndex(log, progress)
    if index.headers:
        latest = index.headers[max(index.headers)]
        check_actions(str(log.folder), WindowForm.of(latest.actions), ensemble.bundle.manifest.actions)
    numbers = newest(index.decisions, limit)
    judge = _Judge(ensemble, margin)
    for done, number in enumerate(numbers):
        progress("replaying decisions", done, len(numbers))
        judge.take(index, number)
    progress("replaying decisions", len(numbers), len(numbers))
    return judge.report(len(numbers))


def newest(numbers: Sequence[int], limit: int | None) -> Sequence[int]:
    """The last so many, all without a limit."""
    return numbers if limit is None else numbers[max(0, len(numbers) - limit) :]


class _Judge:
    """Takes one decision after the other and keeps what came out. Threads: for one."""

    def __init__(self, ensemble: Ensemble, margin: float) -> None:
        self._ensemble = ensemble
        self._reads_sensor = ensemble.bundle.manifest.sensor is not None
        self._actions = ensemble.bundle.manifest.actions
        self._margin = margin
        self._skipped: Counter[str] = Counter()
        self._deciders: Counter[str] = Counter()
        self._compared: list[Comparison] = []
        self._moved: list[Moved] = []
        self._windows_unused = 0

    def take(self, index: LogIndex, number: int) -> None:
        recorded = index.decision(number)
        inputs = DROPPED_MEANWHILE if recorded is None else index.inputs(recorded)
        if recorded is None or isinstance(inputs, str):
            self._skipped[str(inputs)] += 1
            return
        actions = index.actions(recorded)
        other = [UNKNOWN_FORM] if actions is None else form_problems(WindowForm.of(actions), self._actions)
        if other:
            self._skipped[UNKNOWN_FORM if actions is None else f"{OTHER_FORM}: {'; '.join(other)}"] += 1
            return
        try:
            decision = self._score(inputs)
        except InputError as error:
            self._skipped[f"the bundle refuses it: {error.problem}"] += 1
            return
        self._windows_unused += inputs.window is not None and not self._reads_sensor
        self._deciders[recorded.meta.bundle] += 1
        self._compare(recorded, inputs, decision)

    def report(self, decisions: int) -> ReplayReport:
        return ReplayReport(
            decisions=decisions,
            replayed=len(self._compared),
            skipped=dict(self._skipped.most_common()),
            comparison=_joined(self._compared),
            moved=tuple(self._moved),
            deciders=dict(self._deciders),
            windows_unused=self._windows_unused,
        )

    def _score(self, inputs: Inputs) -> Decision:
        image, instruction, candidates = inputs.image, inputs.instruction, inputs.candidates
        if inputs.window is None or not self._reads_sensor:
            return self._ensemble.score(image, instruction, candidates)
        return self._ensemble.score(image, instruction, candidates, sensor=inputs.window)

    def _compare(self, recorded: RecordedDecision, inputs: Inputs, decision: Decision) -> None:
        before, after = recorded.scores.reshape(-1), decision.scores.reshape(-1)  # rephrasing by rephrasing
        self._compared.append(compare(before[None], after[None], self._margin))
        old, new = int(before.argmax()), int(after.argmax())
        if old == new:
            return
        count = len(inputs.candidates)
        self._moved.append(
            Moved(
                number=recorded.entry.number,
                stamp_ns=recorded.meta.stamp_ns,
                frame=inputs.frame,
                instruction=inputs.instructions[old // count],
                before=old % count,
                after=new % count,
                instruction_after=inputs.instructions[new // count],
                margin_before=float(before[old] - before[new]),
                margin_after=float(after[new] - after[old]),
            )
        )


def _joined(comparisons: Sequence[Comparison]) -> Comparison | None:
    """Comparisons of one decision each as one of all."""
    if not comparisons:
        return None
    return Comparison(
        decisions=sum(each.decisions for each in comparisons),
        max_score_change=max(each.max_score_change for each in comparisons),
        winners_changed=sum(each.winners_changed for each in comparisons),
        winners_close=sum(each.winners_close for each in comparisons),
        rank_correlation=min(each.rank_correlation for each in comparisons),
    )
