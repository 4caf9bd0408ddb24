"""Turns a float32 bundle that is being written into an int8 one that keeps its decisions.

Samples in; statistics of what flows into every linear layer; smoothing and ranges; a search for the fastest mix of int8
and float within a budget; a proof on decisions that nothing was chosen by; new stages and a record of all that in the
bundle. Nothing here needs PyTorch.

Everything is a function of the bundle, the samples and the options, so two runs give the same bytes, and a run that was
interrupted goes on from the statistics that it had collected.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from trunkline.calibration.defaults import INT8_AGREEMENT, INT8_SCORE_CHANGE
from trunkline.calibration.int8.judge import Judge, Verdict
from trunkline.calibration.int8.kernels import require_int8_kernels
from trunkline.calibration.int8.linears import block_of
from trunkline.calibration.int8.outcome import (
    CALIBRATION_NAME,
    FORMAT,
    SCHEMA,
    Budget,
    CalibrationRecord,
    LayerOutcome,
    LayerPrecision,
    Proof,
    SampleSummary,
    ScorePairs,
)
from trunkline.calibration.int8.proof import prove
from trunkline.calibration.int8.proven_mix import proven_mix
from trunkline.calibration.int8.recipe import Recipe
from trunkline.calibration.int8.rules import CPU, PlacementRules
from trunkline.calibration.int8.search import Assignment, Search, SearchResult, Trials, cost_ms
from trunkline.calibration.int8.stage_inputs import StageInputs
from trunkline.calibration.int8.stage_plan import Choice, RangeOptions, StagePlan, make_plan, watched_values
from trunkline.calibration.samples.coverage import coverage
from trunkline.calibration.samples.draw import DrawnSamples
from trunkline.calibration.samples.sample import CalibrationSample
from trunkline.calibration.statistics.collect import Inputs, collect
from trunkline.calibration.statistics.watch import Watch
from trunkline.runtime import record
from trunkline.runtime.backends import StageFiles, described
from trunkline.runtime.ensemble import Ensemble, load
from trunkline.runtime.errors import InputError
from trunkline.runtime.manifest import CPU_VARIANT, Manifest, Stage, list_files, write_manifest
from trunkline.runtime.parity import golden_calls
from trunkline.runtime.progress import Progress, silent

#: Scores that are kept for plotting.
MAX_PAIRS = 600
#: Below this, a budget is for float32: see docs/design.md.
SMALLEST_BUDGET = 1e-4

DEFAULT_BUDGET = Budget(INT8_SCORE_CHANGE, INT8_AGREEMENT)


@dataclass(frozen=True)
class CompressOptions:
    """What the int8 ensemble may do to decisions, and how it is made.

    Attributes:
        budget: what is allowed; see :class:`Budget`.
        ranges: how activation ranges are chosen.
        rules: which layers may become int8.
        statistics: folder in which collected statistics are remembered; None to remember none.
        backend: what judges; by default the fastest installed.
        threads: of the back end.
    """

    budget: Budget = DEFAULT_BUDGET
    ranges: RangeOptions = field(default_factory=RangeOptions)
    rules: PlacementRules = CPU
    statistics: Path | None = None
    backend: str | None = None
    threads: int | None = None


def check_budget(budget: Budget) -> None:
    """Refuses a budget that no int8 bundle can meet.

    Raises:
        InputError: the score change is not above what float32 itself may change, or the agreement is no share.
    """
    if not SMALLEST_BUDGET < budget.max_score_change <= 2 or not 0 <= budget.min_agreement <= 1:
        raise InputError(
            "the budget for int8 cannot be met or cannot be missed",
            expected=f"a score change above {SMALLEST_BUDGET:g}, up to 2, and an agreement from 0 to 1",
            found=f"{budget.max_score_change:g} and {budget.min_agreement:g}",
            fix=f"int8 moves scores by about {DEFAULT_BUDGET.max_score_change / 2:g}; for scores that do not move, "
            "export with float32",
        )


@dataclass(frozen=True)
class Compressed:
    """What :func:`compress` did: the record in the bundle, and by stage with int8 how to do it to another variant."""

    record: CalibrationRecord
    recipes: Mapping[str, Recipe]


def compress(
    folder: Path, samples: DrawnSamples, options: CompressOptions | None = None, progress: Progress = silent
) -> Compressed:
    """Rewrites the float32 bundle in ``folder``, which nobody may be using, as int8.

    Args:
        folder: a bundle as ``trunkline export`` writes it.
        samples: as :func:`trunkline.calibration.samples.draw.draw_samples` draws them.
        options: budget, method and so on.
        progress: counts samples, layers and trials.

    Raises:
        InputError: the budget cannot be met by any int8 bundle.
        ParityError: no choice of int8 layers keeps the decisions within the budget, or none is proved to.
        BackendError: a stage cannot be compiled or run, computes NaN, or would run an int8 layer in float.
    """
    options = options or CompressOptions()
    check_budget(options.budget)
    with tempfile.TemporaryDirectory(prefix=".int8.", dir=folder.parent) as work:
        with load(folder, backend=options.backend, threads=options.threads) as ensemble:
            plans = make_plans(ensemble, samples.calibrating, options, Path(work), progress)
            judge = Judge(ensemble, decisions(ensemble, samples.judging), progress)
            trials = Trials(plans, judge, Path(work) / "trials")
            search = Search(plans, trials, options.rules, progress)
            found, proof = proven_mix(
                search,
                options.budget,
                lambda each: prove(ensemble, trials.replaced(each), samples.proving, options.budget, progress),
                samples.name,
            )
            warnings = [each.message for each in (*samples.warnings, *coverage(judge.contexts()).warnings)]
            facts = (_summary(samples, warnings), options, described(ensemble.backend))
            result = _record(plans, search, found, proof, *facts)
            manifest = ensemble.bundle.manifest
            written = _write(plans, found.assignment, Path(work) / "final")
        # Closed by now, so that nothing maps the files that are replaced.
        stages = {name: _replace(files, found.assignment[name], plans[name], folder) for name, files in written.items()}
    _finish(folder, replace(manifest, stages={**manifest.stages, **stages}), result)
    recipes = {name: plans[name].recipe(choice) for name, choice in found.assignment.items()}
    return Compressed(result, {name: recipe for name, recipe in recipes.items() if recipe.thresholds})


def make_plans(
    ensemble: Ensemble,
    samples: Sequence[CalibrationSample],
    options: CompressOptions,
    work: Path,
    progress: Progress = silent,
) -> dict[str, StagePlan]:
    """Collects statistics and plans every stage.

    Args:
        ensemble: the float32 bundle, loaded.
        samples: what calibrates.
        options: ranges, rules, and where statistics are remembered.
        work: folder for the prepared graphs.
        progress: counts samples and inputs of layers.
    """
    plans = {}
    with StageInputs(ensemble, samples) as inputs:
        for name, stage in ensemble.bundle.manifest.stages.items():
            graph = ensemble.bundle.root / stage.variants[CPU_VARIANT].graph
            fed, statistics = inputs.of(name), {}
            if fed:
                with Watch(name, graph, watched_values(graph, options.rules), options.threads) as watch:
                    step = f"collecting ranges of {name}"
                    statistics = collect(watch, fed, options.statistics, _named(progress, step))
            files = StageFiles(name, stage, b"", graph.parent)
            plans[name] = make_plan(
                files,
                statistics,
                work / name,
                ranges=options.ranges,
                rules=options.rules,
                runs=max(1, len(fed)),
                progress=_named(progress, f"choosing ranges of {name}"),
            )
    return plans


def _named(progress: Progress, step: str) -> Progress:
    return lambda _, done, total: progress(step, done, total)


def decisions(ensemble: Ensemble, samples: Sequence[CalibrationSample]) -> list[Inputs]:
    """Inputs of what the budget is judged on: samples, and the golden vectors, by which devices judge the bundle."""
    golden = [
        ensemble.inputs(call.image, [instruction], call.histories, call.sensor)
        for call in golden_calls(ensemble)
        for instruction in call.instructions
    ]
    with StageInputs(ensemble, samples) as inputs:
        return [*inputs.whole(), *golden]


def _summary(samples: DrawnSamples, warnings: Sequence[str]) -> SampleSummary:
    return SampleSummary(
        source=record.as_text(samples.name),
        calibrating=len(samples.calibrating),
        judging=len(samples.judging),
        proving=len(samples.proving),
        digests=samples.digests,
        warnings=tuple(map(record.as_text, warnings)),
        skipped=tuple(map(record.as_text, (*samples.unreadable, *samples.noise))),
    )


def _record(
    plans: Mapping[str, StagePlan],
    search: Search,
    found: SearchResult,
    proof: Proof,
    samples: SampleSummary,
    options: CompressOptions,
    backend: str,
) -> CalibrationRecord:
    layers = [
        _outcome(plan, name, found.assignment[stage].get(name, "float32"))
        for stage, plan in plans.items()
        for name in (*plan.layers, *plan.others)
    ]
    return CalibrationRecord(
        format=FORMAT,
        schema=SCHEMA,
        method="best" if options.ranges.method is None else options.ranges.method.name,
        backend=backend,
        budget=options.budget,
        samples=samples,
        layers=tuple(layers),
        sensitivities=search.sensitivities,
        steps=found.steps,
        all_int8=found.all_int8.fused,
        fused=found.verdict.fused,
        members=found.verdict.members,
        proof=proof,
        scores=_pairs(found.verdict),
        cost_int8=cost_ms(plans, found.assignment, options.rules),
        cost_float32=cost_ms(plans, {}, options.rules),
    )


def _outcome(plan: StagePlan, name: str, precision: LayerPrecision) -> LayerOutcome:
    layer = plan.layers.get(name)
    if layer is None:
        return LayerOutcome(plan.name, block_of(name), name, precision)
    return LayerOutcome(
        stage=plan.name,
        block=layer.block,
        name=name,
        precision=precision,
        inputs=layer.inputs,
        outputs=layer.outputs,
        signal_to_noise_db=round(layer.signal_to_noise_db, 2),
        smoothing=layer.smoothing,
        clipped=round(layer.clipped, 4),
    )


def _pairs(verdict: Verdict) -> ScorePairs:
    reference, found = (np.concatenate(each)[:MAX_PAIRS] for each in (verdict.reference, verdict.found))
    return ScorePairs(*(tuple(round(float(score), 6) for score in scores) for scores in (reference, found)))


def _write(plans: Mapping[str, StagePlan], assignment: Assignment, folder: Path) -> dict[str, StageFiles]:
    """Writes what was found, and sees to it that int8 runs as int8."""
    written = {name: plans[name].write(choice, folder / name) for name, choice in assignment.items()}
    for name, files in written.items():
        require_int8_kernels(files, sum(kind == "int8" for kind in assignment[name].values()))
    return written


def _replace(files: StageFiles, choice: Choice, plan: StagePlan, folder: Path) -> Stage:
    """Moves a stage over its float32 form, and returns its manifest entry."""
    variant = plan.stage.variants[CPU_VARIANT]
    for name in (variant.graph, variant.weights):
        if name is not None:
            (folder / name).unlink()
    target = (folder / variant.graph).parent
    for file in files.folder.iterdir():
        shutil.move(file, target / file.name)
    weights = f"{Path(variant.graph).parent}/{CPU_VARIANT}.weights"
    kinds = {choice.get(name, "float32") for name in plan.layers} | set(choice.values())
    precision = "+".join(sorted(kinds)) or "float32"
    written = replace(variant, weights=weights if (folder / weights).is_file() else None, precision=precision)
    return replace(plan.stage, variants={**plan.stage.variants, CPU_VARIANT: written})


def _finish(folder: Path, manifest: Manifest, result: CalibrationRecord) -> None:
    """Writes the record and the manifest, with the budget as the gate from now on."""
    (folder / CALIBRATION_NAME).write_bytes(record.encode(result, compact=True))
    gates = {**manifest.parity.gates, CPU_VARIANT: result.budget.max_score_change}
    parity = replace(manifest.parity, calibration=CALIBRATION_NAME, gates=gates)
    write_manifest(list_files(replace(manifest, parity=parity), folder), folder)
