"""Bundle in, :class:`Report` out: opens, runs and measures.

Requires: a bundle that opens; a back end that runs it.
Ensures: one bundle is in memory at a time, also when two are compared. Promises nothing about what it finds: a bundle
that fails its gate has a report, too.
"""

from __future__ import annotations

from pathlib import Path

from trunkline.calibration.int8.outcome import CalibrationRecord, read_calibration
from trunkline.exporter.report.beside import put_beside, run_golden
from trunkline.exporter.report.content import FORMAT, SCHEMA, BundleFacts, Report, StageForm
from trunkline.exporter.report.machine import describe_machine
from trunkline.exporter.report.verdict import judge
from trunkline.runtime import record
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Ensemble, load
from trunkline.runtime.errors import BundleError
from trunkline.runtime.parity import check_parity, golden_calls
from trunkline.runtime.progress import Progress, silent
from trunkline.targets.latency import LatencyReport, measure

#: Calls of each everyday case. At full scale on two cores that is a minute and a half; ``trunkline bench`` makes more.
LATENCY_CALLS = 15


def collect(
    bundle: Path,
    *,
    backend: str | None = None,
    latency: bool = True,
    against: Path | None = None,
    progress: Progress = silent,
) -> Report:
    """Everything that a report says about a bundle.

    Args:
        bundle: directory of the bundle.
        backend: name of the back end; by default the fastest that is installed.
        latency: also measure it.
        against: another bundle to put beside this one.
        progress: told what is done.

    Raises:
        BundleError: a bundle, or its calibration record, is malformed.
        InputError: the other bundle does not take this one's golden inputs.
        BackendError: no back end runs the bundle here.
    """
    with load(bundle, backend=backend, progress=progress) as ensemble:
        calibration = _consistent(read_calibration(ensemble.bundle), ensemble.bundle)
        parity = check_parity(ensemble, progress=progress)
        facts, name = describe(ensemble.bundle), f"{ensemble.backend.NAME} {ensemble.backend.version()}"
        calls = golden_calls(ensemble) if against else []
        run = run_golden(ensemble, calls, progress) if against else None
        timed = _timed(ensemble, latency, progress)
    beside = None
    if against is not None and run is not None:
        with load(against, backend=backend, progress=progress) as other:
            theirs = describe(other.bundle), run_golden(other, calls, progress)
            beside = put_beside((facts, run), theirs, _timed(other, latency, progress), margin=parity.margin)
    verdict = judge(parity, name, calibration)
    return Report(FORMAT, SCHEMA, verdict, facts, describe_machine(), name, parity, calibration, timed, beside)


def describe(bundle: Bundle) -> BundleFacts:
    """What a bundle's manifest says about it."""
    manifest, sizes = bundle.manifest, {name: entry.size for name, entry in bundle.manifest.files.items()}
    forms = tuple(
        StageForm(
            name,
            variant_name,
            variant.opset,
            variant.precision,
            sizes[variant.graph],
            sizes[variant.weights] if variant.weights else 0,
        )
        for name, stage in manifest.stages.items()
        for variant_name, variant in stage.variants.items()
    )
    variants = [variant for stage in manifest.stages.values() for variant in stage.variants.values()]
    of_stages = {file for variant in variants for file in (variant.graph, variant.weights)}
    return BundleFacts(
        name=bundle.root.resolve().name,
        digest=bundle.digest,
        kind=manifest.kind,
        schema=manifest.schema,
        trunk=manifest.trunk,
        members=manifest.members,
        actions=manifest.actions,
        image=manifest.image,
        text=manifest.text,
        stages=forms,
        other_bytes={name: size for name, size in sizes.items() if name not in of_stages},
        parity=manifest.parity,
        producer=manifest.producer,
        sensor=manifest.sensor,
    )


def _timed(ensemble: Ensemble, wanted: bool, progress: Progress) -> LatencyReport | None:
    return measure(ensemble, iterations=LATENCY_CALLS, progress=progress) if wanted else None


def _consistent(calibration: CalibrationRecord | None, bundle: Bundle) -> CalibrationRecord | None:
    """The record, held against the manifest: a page must not put a member's numbers beside another's name."""
    if calibration is None:
        return None
    members, stages = len(bundle.manifest.members), bundle.manifest.stages
    problems = [
        f"{kind} of a stage {record.shown(each.stage)}"
        for kind, entries in (("a layer", calibration.layers), ("a sensitivity", calibration.sensitivities))
        for each in entries
        if each.stage not in stages
    ]
    if len(calibration.members) != members:
        problems.append(f"{len(calibration.members)} members, the bundle has {members}")
    if len(calibration.scores.reference) != len(calibration.scores.found):
        problems.append(f"{len(calibration.scores.reference)} scores against {len(calibration.scores.found)}")
    damages = [calibration.all_int8, calibration.fused, calibration.proof.damage, *calibration.members]
    damages += [each.damage for each in calibration.sensitivities] + [each.damage for each in calibration.steps]
    problems += [
        f"{each.winners_kept} winners kept of {each.decisions} decisions"
        for each in damages
        if not 0 <= each.winners_kept <= each.decisions or not each.decisions
    ]
    if problems:
        raise BundleError(
            "the calibration record is not this bundle's",
            where=f"{bundle.root}, {bundle.manifest.parity.calibration}",
            expected=f"stages {', '.join(stages)}, {members} members, scores in pairs",
            found=record.shortened(problems),
            fix="export the bundle again",
        )
    return calibration
