"""Samples for an int8 export: drawn and checked before anything is traced, which takes longer."""

from __future__ import annotations

from dataclasses import replace

from trunkline.calibration.int8.proof import few_proving
from trunkline.calibration.samples.bundle_needs import BundleNeeds, instruction_check
from trunkline.calibration.samples.draw import DrawnSamples, draw_samples
from trunkline.exporter.options import Int8Options
from trunkline.exporter.trunk import Trunk
from trunkline.runtime.manifest import Manifest
from trunkline.runtime.progress import Progress, silent


def draw(options: Int8Options, draft: Manifest, trunk: Trunk, progress: Progress = silent) -> DrawnSamples:
    """Draws the samples for a bundle that is about to be written, and tells what is thin about them.

    Raises:
        DatasetError: they cannot be used.
        InputError: the numbers asked for are under 1.
    """
    tokenizer = trunk.tokenizer_json if draft.text.baked is None else None
    needs = BundleNeeds(draft.actions, instruction_check(draft.text, tokenizer), draft.sensor)
    drawn = draw_samples(options.samples, needs, options.draw, judge=options.judge, progress=progress)
    few = few_proving(options.compress.budget.min_agreement, len(drawn.proving))
    drawn = drawn if few is None else replace(drawn, warnings=(*drawn.warnings, few))
    for warning in drawn.warnings:
        options.tell(warning.message)
    return drawn
