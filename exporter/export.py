"""Checkpoint in, bundle out.

The bundle is built in a hidden sibling directory, loaded, held against PyTorch, flushed to the disk, and only then
given its name. Whatever goes wrong before that leaves nothing that looks like a bundle.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save

from trunkline.calibration.defaults import FLOAT32_SCORE_CHANGE
from trunkline.calibration.int8.compress import check_budget, compress
from trunkline.calibration.int8.outcome import CalibrationRecord
from trunkline.calibration.int8.recipe import Recipe
from trunkline.calibration.samples.draw import DrawnSamples
from trunkline.exporter.checkpoint.doctor import refuse_fatal
from trunkline.exporter.checkpoint.findings import Finding
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.checkpoint.names import bundle_text
from trunkline.exporter.checkpoint.read import digest_tensors, read_checkpoint
from trunkline.exporter.golden import probe_inputs, sample_inputs, write_golden
from trunkline.exporter.half_variant import add_half
from trunkline.exporter.int8_samples import draw
from trunkline.exporter.options import ExportOptions
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.sensor_entry import absent_features, sensor_entry
from trunkline.exporter.stages.modules import stage_module
from trunkline.exporter.stages.towers import TextStage
from trunkline.exporter.stages.trace import Contract, trace
from trunkline.exporter.trunk import Trunk, load_trunk
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import load
from trunkline.runtime.errors import ExportError, TrunkError
from trunkline.runtime.files import becoming
from trunkline.runtime.manifest import (
    CPU_VARIANT,
    FORMAT,
    MANIFEST_NAME,
    SCHEMA,
    ActionsEntry,
    Manifest,
    MemberEntry,
    ParityEntry,
    Stage,
    TextEntry,
    TrunkEntry,
    draft_problems,
    list_files,
    verifier_contract,
    write_manifest,
)
from trunkline.runtime.parity import ParityReport, check_parity, require_parity
from trunkline.runtime.progress import Progress, silent
from trunkline.runtime.record import is_text, shortened
from trunkline.runtime.text import clean

GOLDEN_NAME = "golden.safetensors"
TOKENIZER_NAME = "tokenizer.json"
BAKED_NAME = "instructions.safetensors"
STAGES_NAME = "stages"
BAKE_BATCH = 16

_PRODUCERS = (
    "trunkline",
    "torch",
    "open_clip_torch",
    "timm",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tokenizers",
    "pillow",
)


@dataclass(frozen=True)
class ExportReport:
    """What an export made. Sizes in bytes; ``findings`` are the doctor's that are not fatal."""

    output: Path
    members: tuple[str, ...]
    bundle_bytes: int
    stage_bytes: dict[str, int]
    parity: ParityReport
    findings: tuple[Finding, ...]
    calibration: CalibrationRecord | None


def export(
    checkpoint: Path,
    output: Path,
    *,
    backbone: str | None = None,
    trunk_weights: Path | None = None,
    preprocess: Mapping[str, Any] | None = None,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Exports a checkpoint file.

    Args:
        checkpoint: any form that :func:`read_checkpoint` knows.
        output: directory to create.
        backbone: open_clip name of the trunk; by default the name in the checkpoint.
        trunk_weights: weights of a built-in backbone.
        preprocess: entries of open_clip's ``preprocess_cfg`` that are stated; the trunk's own need not be.
        options: precision, baked instructions and so on; by default a float32 bundle with its text tower.
        progress: told what is done.

    Raises:
        CheckpointError: the checkpoint cannot be read, or the doctor calls it fatal.
        TrunkError: the trunk cannot be built, is not the one the members were trained on, or its preprocessing is not
            certain.
        DatasetError: samples for int8 cannot be used.
        ExportError: a stage cannot be traced, or the bundle cannot be written.
        ParityError: the bundle does not score as PyTorch does, or int8 does not keep to its budget.
    """
    options = options or ExportOptions()
    _check_output(Path(output), options.overwrite)
    if options.int8 is not None:
        check_budget(options.int8.compress.budget)
    read = read_checkpoint(Path(checkpoint), progress=progress)
    name = backbone or read.backbone
    if name is None:
        raise TrunkError(
            "the checkpoint does not say which trunk it was trained on",
            where=checkpoint,
            fix="name it with --backbone, e.g. hf-hub:timm/ViT-L-16-SigLIP2-384",
        )
    progress("loading the trunk", 0, 1)
    trunk = load_trunk(name, trunk_weights, preprocess)
    progress("loading the trunk", 1, 1)
    return build(read, trunk, output, options=options, progress=progress)


def build(
    checkpoint: Checkpoint,
    trunk: Trunk,
    output: Path,
    *,
    options: ExportOptions | None = None,
    progress: Progress = silent,
) -> ExportReport:
    """Exports a checkpoint and a trunk that are in memory; see :func:`export`."""
    output, options = Path(output), options or ExportOptions()
    _check_output(output, options.overwrite)
    findings = refuse_fatal(checkpoint, output)
    require_fit(checkpoint, trunk, progress)
    instructions = _bakeable(options.bake, trunk) if options.bake is not None else None
    try:
        with becoming(output, overwrite=options.overwrite) as folder:
            draft = _draft(checkpoint, trunk, instructions, progress)
            _require_readable(draft, output)
            drawn = None if options.int8 is None else draw(options.int8, draft, trunk, progress)
            reference = PyTorchEnsemble(trunk, checkpoint)
            _write(draft, reference, folder, drawn, progress)
            parity = _measure(folder, progress)
            calibration: CalibrationRecord | None = None
            recipes: Mapping[str, Recipe] = {}
            if options.int8 is not None and drawn is not None:
                compressed = compress(folder, drawn, options.int8.compress, progress)
                calibration, recipes = compressed.record, compressed.recipes
                parity = _measure(folder, progress)
            if options.half is not None:
                add_half(folder, lambda stage: stage_module(stage, reference), options.half, recipes, progress)
            manifest = _keep_measured(folder, parity)
    except OSError as error:
        raise ExportError(
            "cannot write the bundle",
            where=output,
            found=error.strerror or f"a file was written in part: {error}",  # numpy's way to say that a disk is full
            fix="check space and permissions",
        ) from error
    sizes = {
        name: sum(entry.size for file, entry in manifest.files.items() if file.startswith(f"{STAGES_NAME}/{name}/"))
        for name in manifest.stages
    }
    total = sum(entry.size for entry in manifest.files.values())
    names = tuple(member.name for member in checkpoint.members)
    return ExportReport(output, names, total, sizes, parity, tuple(findings), calibration)


def require_fit(checkpoint: Checkpoint, trunk: Trunk, progress: Progress = silent) -> None:
    """Raises TrunkError unless the members were trained on this trunk, as far as the files tell."""
    shape = checkpoint.members[0].shape
    differences = []
    if shape.trunk_width != trunk.width:
        differences.append(f"members read tokens of width {shape.trunk_width}, the trunk gives {trunk.width}")
    if shape.patches != trunk.patches:
        differences.append(f"members read {shape.patches} patches, the trunk gives {trunk.patches}")
    if not differences and not trunk.is_frozen_in(checkpoint, progress):
        differences.append(
            f"the frozen weights in the training checkpoint (sha256 {str(checkpoint.frozen_digest)[:12]} in bfloat16) "
            "are not the trunk's"
        )
    if differences:
        raise TrunkError(
            "the members were trained on another trunk",
            where=trunk.name,
            found=differences,
            fix="name the trunk of the training run with --backbone (and --trunk-weights)",
        )


def _check_output(output: Path, overwrite: bool) -> None:
    if not is_text(str(output.absolute())):
        raise ExportError(
            "the output's path is not UTF-8, and not every back end would find the bundle",
            where=ascii(str(output.absolute())),
            fix="choose another path",
        )
    if not output.exists() and not output.is_symlink():
        return
    replaceable = output.is_dir() and not output.is_symlink() and (output / MANIFEST_NAME).is_file()
    if not (overwrite and replaceable):
        raise ExportError(
            "the output exists already",
            where=output,
            found="a bundle" if replaceable else "something that is not a bundle",
            fix="pass --overwrite to replace the bundle" if replaceable else "choose another path",
        )


def _write(
    draft: Manifest, reference: PyTorchEnsemble, folder: Path, drawn: DrawnSamples | None, progress: Progress
) -> None:
    """Writes a float32 bundle; its golden frames are made up, or samples that do not calibrate."""
    trunk, baked = reference.trunk, draft.text.instructions or None
    stages = _trace_stages(draft, reference, folder, progress)
    if baked is None:
        (folder / TOKENIZER_NAME).write_bytes(trunk.tokenizer_json)
    else:
        (folder / BAKED_NAME).write_bytes(save({"tokens": _bake(trunk, baked, progress)}))
    if draft.sensor is not None and draft.sensor.absent is not None:
        (folder / draft.sensor.absent).write_bytes(save({"absent": absent_features(reference)}))
    golden = probe_inputs(reference, baked) if drawn is None else sample_inputs(drawn.judging, draft.actions)
    write_golden(reference, golden, folder / GOLDEN_NAME, progress)
    draft = replace(draft, stages=stages, parity=replace(draft.parity, instructions=golden.instructions))
    write_manifest(list_files(draft, folder), folder)


def _keep_measured(folder: Path, parity: ParityReport) -> Manifest:
    """Enters what was measured into the manifest."""
    manifest = Bundle(folder).manifest
    measured = replace(
        manifest.parity,
        measured_score_change=parity.fused.max_score_change,
        decisions=parity.fused.decisions,
        winners_changed=parity.fused.winners_changed,
    )
    manifest = replace(manifest, parity=measured)
    write_manifest(manifest, folder)
    return manifest


def _draft(checkpoint: Checkpoint, trunk: Trunk, baked: tuple[str, ...] | None, progress: Progress) -> Manifest:
    """The manifest before there are files: everything but stages, digests and what is measured."""
    shape, settings = checkpoint.members[0].shape, checkpoint.members[0].settings
    text = TextEntry(trunk.text, TOKENIZER_NAME) if baked is None else TextEntry(trunk.text, None, BAKED_NAME, baked)
    return Manifest(
        format=FORMAT,
        schema=SCHEMA,
        kind="verifier",
        embedding=shape.embedding,
        trunk=TrunkEntry(_portable(trunk.name), trunk.digest(progress), trunk.width, trunk.patches),
        members=tuple(
            MemberEntry(member.name, member.source, digest_tensors(member.tensors().items()))
            for member in checkpoint.members
        ),
        actions=ActionsEntry(
            settings.history_length, settings.action_dim, float(np.float32(settings.padding_value)), shape.encoder
        ),
        image=trunk.image,
        text=text,
        stages={},
        parity=ParityEntry(GOLDEN_NAME, (), {CPU_VARIANT: FLOAT32_SCORE_CHANGE}, 0.0, 0, 0),
        producer={name: metadata.version(name) for name in _PRODUCERS} | {"python": platform.python_version()},
        files={},
        sensor=sensor_entry(checkpoint),
    )


def _portable(name: str) -> str:
    """A trunk's name without the folders of this machine: ``local-dir:/home/me/trunk`` is ``local-dir:trunk``."""
    schema, colon, place = name.partition(":")
    return f"{schema}:{bundle_text(Path(place).absolute().name)}" if colon and schema == "local-dir" else name


def _require_readable(draft: Manifest, output: Path) -> None:
    """Raises ExportError if the bundle would be one that no runtime opens, before anything is traced."""
    problems = draft_problems(draft)
    if problems:
        raise ExportError(
            "the bundle would hold what no runtime reads",
            where=output,
            found=shortened(problems),
            fix="rename these members, or the trunk, before they are exported",
        )


def _trace_stages(draft: Manifest, reference: PyTorchEnsemble, folder: Path, progress: Progress) -> dict[str, Stage]:
    contracts, stages = verifier_contract(draft), {}
    for index, (name, (inputs, output)) in enumerate(contracts.items()):
        progress(f"tracing {name}", index, len(contracts))
        stages[name] = trace(stage_module(name, reference), Contract(name, inputs, output), folder / STAGES_NAME)
    progress("tracing", len(contracts), len(contracts))
    return stages


def _bakeable(bake: Sequence[str], trunk: Trunk) -> tuple[str, ...]:
    """The instructions to bake, each one once."""
    distinct: dict[str, str] = {}
    for instruction in bake:
        cleaned = clean(instruction, trunk.text.clean)
        if cleaned:
            distinct.setdefault(cleaned, instruction.strip())
    if not distinct:
        raise ExportError(
            "there are no instructions to bake",
            expected="one instruction per line",
            fix="write them to the --bake file, or leave --bake out to keep the text tower",
        )
    return tuple(distinct.values())


def _bake(trunk: Trunk, instructions: Sequence[str], progress: Progress) -> np.ndarray:
    """(n, L, D) float32 tokens of the text tower."""
    tower, blocks = TextStage(trunk), []
    for start in range(0, len(instructions), BAKE_BATCH):
        progress("baking instructions", start, len(instructions))
        ids = trunk.tokenizer(list(instructions[start : start + BAKE_BATCH]), context_length=trunk.context_length)
        with torch.inference_mode():
            blocks.append(tower(ids).numpy())
    progress("baking instructions", len(instructions), len(instructions))
    return np.concatenate(blocks)


def _measure(folder: Path, progress: Progress) -> ParityReport:
    with load(folder) as ensemble:
        report = check_parity(ensemble, progress=progress)
    require_parity(report, "the new bundle")
    return report
