"""Engines that do not decide as they should: which one, which layer, and what to do.

Each stage in turn is run by ONNX Runtime on the CPU while the others stay engines. The one without which the scores are
right again is the one that breaks them; its engine is removed, so that the next build makes another. Engines of other
stages stay in the cache, not judged, and need not be compiled again. An engine that another bundle runs stays, and so
does one that another process holds, which may be judging it.

Without ONNX Runtime nothing tells the stages apart, and every engine that nobody else uses is removed.
"""

from __future__ import annotations

import math

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines.sets import EngineSets
from trunkline.runtime.errors import BackendError, ParityError
from trunkline.runtime.parity import require_parity
from trunkline.runtime.progress import Progress
from trunkline.runtime.stage_files import stage_files
from trunkline.targets.building.bisect import find_layer
from trunkline.targets.building.verify import EngineBackend, Replacement, Verdict, reference_of, replacements

NO_REFERENCE = "install ONNX Runtime (pip install 'trunkline[cpu]') and build again: the message then names the stage"


def explained(
    bundle: Bundle, backend: EngineBackend, verdict: Verdict, *, bisect: bool, progress: Progress
) -> ParityError:
    """The error for engines that failed; removes what must be built again.

    Raises:
        ParityError: preprocessing differs; no engine is to blame, and none is removed.
        TrunklineError: as :func:`trunkline.targets.building.verify.replacements`.
    """
    report = verdict.report
    if report and (report.pixels_changed or report.normalised_changed or report.ids_changed):
        require_parity(report, bundle.root)
    reference = reference_of(bundle)
    tried = replacements(bundle, backend, reference, progress) if reference else []
    worst = tried[0].stage if tried else None
    found = [*_numbers(verdict), *map(_in_words, tried)]
    if worst and bisect:
        found.append(_layer(bundle, backend, worst, verdict, progress))
    stays = {stage: _removed_or_why_not(bundle, backend, stage) for stage in ([worst] if worst else backend.engines)}
    return ParityError(
        "the engines that were built here do not decide as the PyTorch ensemble did",
        where=f"{bundle.root}, {backend.builder.library} on {backend.builder.device}",
        expected=f"scores within {bundle.manifest.parity.gates[backend.builder.variant]:g} and the same winners",
        found=found,
        fix=_fix(worst, bisect, stays=stays[worst]) if worst else NO_REFERENCE,
    )


def _numbers(verdict: Verdict) -> list[str]:
    found = [f"stage {stage} returned numbers that are not finite" for stage in verdict.broken]
    found += verdict.report.problems() if verdict.report else [str(verdict.refusal)]
    if verdict.differences:
        each = ", ".join(f"{stage} {largest:.2g}" for stage, largest in verdict.differences.items())
        found.append(f"output numbers differ from those of {verdict.reference} by up to: {each}")
    return found


def _in_words(tried: Replacement) -> str:
    verdict = "the gate passes" if tried.passed else "the gate fails"
    change = (
        f"a score changes by {tried.max_score_change:.3g}" if math.isfinite(tried.max_score_change) else "no scores"
    )
    return f"with stage {tried.stage} on the CPU {verdict}: {change}"


def _layer(bundle: Bundle, backend: EngineBackend, stage: str, verdict: Verdict, progress: Progress) -> str:
    settings, inputs = backend.engines[stage].key.settings, verdict.worst[stage].inputs
    try:
        with stage_files(bundle, stage, backend.builder.variant) as files:
            suspect = find_layer(backend.builder, files, settings, inputs, progress=progress)
    except BackendError as error:  # the engines failed all the same, and that is what has to be said
        return f"stage {stage}: the layer was not found, since a part of the stage cannot be compiled: {error}"
    if suspect is None:
        return f"stage {stage}: no layer stands out"
    return (
        f"stage {stage}: layer {suspect.node} ({suspect.operator}) is off by {suspect.difference:.2g} of its largest "
        f"number, what comes before it by {suspect.before:.2g}"
    )


def _fix(worst: str, bisect: bool, stays: str | None) -> str:
    layer = "that layer" if bisect else "the layer that `trunkline build --bisect` names"
    raised = f"keep {layer} in float32 when exporting (an Island in calibration/half.py)"
    if stays:
        return f"{raised}; the engine of stage {worst} stays, since {stays}"
    return f"build once more, since compilers choose other kernels each time; if stage {worst} fails again, {raised}"


def _removed_or_why_not(bundle: Bundle, backend: EngineBackend, stage: str) -> str | None:
    """None if an engine was removed, so that the next build makes another; else why it stays."""
    engine, cache = backend.engines[stage], backend.cache
    engine.close()
    with cache.building(engine.key):
        if EngineSets(cache, backend.builder.library, backend.builder.device).runs(engine, besides=bundle.digest):
            return "it passes with another bundle"
        return None if cache.remove_unless_held(engine.key) else "another process uses it"
