"""Adds the ``trt`` variant to the stages of a bundle that is being written: float16 with float32 islands, for GPUs.

Which values come near the end of half's range is looked up on the bundle's golden frames. Each variant is compared with
the stage's own ``cpu`` variant where that is float32; what half precision itself does to scores is judged on the device
that runs it, by a gate of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from trunkline.calibration.dataflow import Dataflow, Tensors
from trunkline.calibration.defaults import FLOAT16_SCORE_CHANGE
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter.stages.trace import Contract, capture
from trunkline.exporter.stages.trt import TRT_VARIANT, Feed, check_trt_variant, lower_for_trt, write_trt_variant
from trunkline.runtime.backends import Session
from trunkline.runtime.ensemble import load
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import Manifest, list_files, write_manifest
from trunkline.runtime.parity import golden_calls
from trunkline.runtime.progress import Progress, silent

#: JetPack 6 has it.
OLDEST_TENSORRT = "10.3"


def add_half(
    folder: Path,
    module: Callable[[str], nn.Module],
    allowed_score_change: float = FLOAT16_SCORE_CHANGE,
    progress: Progress = silent,
) -> None:
    """Writes ``stages/<stage>/trt.onnx`` for every stage, and enters it into the manifest.

    Args:
        folder: a bundle that nobody uses yet.
        module: what a stage of a name is traced from.
        allowed_score_change: the variant's gate.
        progress: counts stages.

    Raises:
        ExportError: a stage cannot be lowered or converted, or computes something else.
    """
    manifest, feeds = _golden_feeds(folder)
    stages = dict(manifest.stages)
    for index, (name, stage) in enumerate(manifest.stages.items()):
        progress("float16 variants", index, len(stages))
        contract = Contract(name, stage.inputs, stage.outputs[0])
        model = lower_for_trt(capture(module(name), contract), contract)
        variant, _ = write_trt_variant(model, contract, folder / "stages", feeds[name])
        _require_acceptable(folder / variant.graph, name)
        stages[name] = replace(stage, variants={**stage.variants, TRT_VARIANT: variant})
        if all(other.precision == "float32" for other in stage.variants.values()):
            check_trt_variant(folder, name, stages[name], feeds[name])
    progress("float16 variants", len(stages), len(stages))
    parity = replace(manifest.parity, gates={**manifest.parity.gates, TRT_VARIANT: allowed_score_change})
    write_manifest(list_files(replace(manifest, stages=stages, parity=parity), folder), folder)


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
