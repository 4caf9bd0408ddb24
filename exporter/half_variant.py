"""Adds the ``trt`` variant to the stages of a bundle that is being written: float16 with float32 islands, for GPUs.

Which values come near the end of half's range is looked up on the bundle's golden frames. If it is asked for, layers
that are int8 in the ``cpu`` variant become int8 with the same ranges. Each variant is compared with the stage's own
``cpu`` variant where that is of the same kind, and the golden vectors run on all of them once, by ONNX Runtime on this
processor: that finds graphs that are wrong. What half precision itself does to scores is judged on the device that runs
it, by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from trunkline.calibration.dataflow import Dataflow, Tensors
from trunkline.calibration.int8.recipe import Recipe
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter.options import HalfOptions
from trunkline.exporter.stages.trace import Contract, capture
from trunkline.exporter.stages.trt import Feed, check_trt_variant, lower_for_trt, write_trt_variant
from trunkline.runtime.backends import Session, StageFiles, onnxruntime, ort
from trunkline.runtime.backends.ort_device import OrtDeviceSession, Placement
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import Ensemble, load
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import CPU_VARIANT, TRT_VARIANT, Manifest, list_files, write_manifest
from trunkline.runtime.parity import check_parity, golden_calls, require_parity
from trunkline.runtime.progress import Progress, silent

#: JetPack 6 has it.
OLDEST_TENSORRT = "10.3"


def add_half(
    folder: Path,
    module: Callable[[str], nn.Module],
    options: HalfOptions,
    recipes: Mapping[str, Recipe],
    progress: Progress = silent,
) -> None:
    """Writes ``stages/<stage>/trt.onnx`` for every stage, and enters it into the manifest.

    Args:
        folder: a bundle that nobody uses yet.
        module: what a stage of a name is traced from.
        options: the variant's gate, and whether it is to hold int8.
        recipes: how the ``cpu`` variant became int8, by stages that did.
        progress: counts stages.

    Raises:
        ExportError: a stage cannot be lowered or converted, or computes something else.
        ParityError: the golden vectors miss the variant's gate even where most of it is computed in float32.
    """
    manifest, feeds = _golden_feeds(folder)
    stages = dict(manifest.stages)
    for index, (name, stage) in enumerate(manifest.stages.items()):
        progress("float16 variants", index, len(stages))
        contract = Contract(name, stage.inputs, stage.outputs[0])
        model = lower_for_trt(capture(module(name), contract), contract)
        recipe = recipes.get(name) if options.int8 else None
        if recipe is not None:
            recipe.apply(model, f"stage {name}, variant {TRT_VARIANT}")
        precision = "float16" if recipe is None else "float16+int8"
        variant, _ = write_trt_variant(model, contract, folder / "stages", feeds[name], precision)
        _require_acceptable(folder / variant.graph, name)
        stages[name] = replace(stage, variants={**stage.variants, TRT_VARIANT: variant})
        if recipe is not None or stage.variants[CPU_VARIANT].precision == "float32":
            check_trt_variant(folder, name, stages[name], feeds[name])
    progress("float16 variants", len(stages), len(stages))
    gates = manifest.parity.gates
    allowed = max(options.allowed_score_change, gates[CPU_VARIANT] if options.int8 else 0.0)
    parity = replace(manifest.parity, gates={**gates, TRT_VARIANT: allowed})
    write_manifest(list_files(replace(manifest, stages=stages, parity=parity), folder), folder)
    with Ensemble(Bundle(folder), _OnProcessor()) as ensemble:
        require_parity(check_parity(ensemble, progress=progress), f"{folder}, variant {TRT_VARIANT}")


class _OnProcessor:
    """Runs the variant for GPUs on this processor, slowly and mostly in float32, as it would be run on CUDA."""

    NAME, VARIANT = onnxruntime.NAME, TRT_VARIANT
    available, version = staticmethod(onnxruntime.available), staticmethod(onnxruntime.version)

    def open_stage(self, files: StageFiles) -> OrtDeviceSession:
        return OrtDeviceSession(files, Placement(((ort.CPU, {}),), device="cpu"))

    def int8_kernels(self, files: StageFiles) -> int:
        return 0


def _require_acceptable(graph: Path, name: str) -> None:
    """Refuses what the oldest supported TensorRT would not take, as far as the graph tells."""
    found = violations(graph, OLDEST_TENSORRT)
    if found:
        raise ExportError(
            "TensorRT would not take a stage",
            where=f"stage {name}",
            expected=f"what the parser of TensorRT {OLDEST_TENSORRT} reads",
            found=[str(each) for each in found[:20]],
            fix="export without --half, and please report the architecture",
        )


def _golden_feeds(folder: Path) -> tuple[Manifest, dict[str, list[Feed]]]:
    """The bundle's manifest, and what each stage is fed for its golden frames."""
    feeds: dict[str, list[Feed]] = {}
    with load(folder) as ensemble:
        manifest = ensemble.bundle.manifest
        flow = Dataflow(manifest.stages)
        sessions: dict[str, Session] = {}

        def run(stage: str, inputs: Tensors) -> NDArray[Any]:
            if stage not in sessions:
                sessions[stage] = ensemble.open_stage(stage)
            (output,) = sessions[stage].run(inputs).values()
            return output

        for call in golden_calls(ensemble):
            fed = ensemble.inputs(call.image, call.instructions, call.histories, call.sensor)
            for name in flow.running(fed):
                feeds.setdefault(name, []).append(flow.inputs(name, fed, run))
        for session in sessions.values():
            session.close()
    return manifest, feeds
