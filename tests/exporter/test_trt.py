"""The ``trt`` variant as files: one trace for both variants, names, the check against the ``cpu`` variant."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from tests.half_stages import STAGES, contract_of, feed, manifest_of, single
from trunkline.calibration.int8.linears import find_linears, normalise
from trunkline.calibration.tensorrt_rules import violations
from trunkline.exporter.checkpoint.members import Checkpoint
from trunkline.exporter.pytorch_ensemble import PyTorchEnsemble
from trunkline.exporter.stages.action import ActionStage
from trunkline.exporter.stages.trace import CPU_OPSET, Contract, capture, lower, save
from trunkline.exporter.stages.trt import TRT_OPSET, check_trt_variant, lower_for_trt, write_trt_variant
from trunkline.exporter.trunk import Trunk
from trunkline.runtime.errors import ExportError
from trunkline.runtime.manifest import CPU_VARIANT, TRT_VARIANT, Stage, Variant


def both(bundle: Path, single_stages: Path, name: str, root: Path) -> Stage:
    """A copy of a stage with its cpu variant, and the trt variant beside it."""
    stage = manifest_of(bundle).stages[name]
    shutil.copytree(bundle / "stages" / name, root / "stages" / name)
    variant, _ = write_trt_variant(single(single_stages, name), contract_of(name, stage), root / "stages")
    return replace(stage, variants={**stage.variants, TRT_VARIANT: variant})


@pytest.mark.parametrize("name", STAGES)
def test_both_variants_of_a_stage_agree(bundle: Path, single_stages: Path, name: str, tmp_path: Path) -> None:
    stage = both(bundle, single_stages, name, tmp_path)
    assert stage.variants[TRT_VARIANT] == Variant(
        f"stages/{name}/trt.onnx", f"stages/{name}/trt.weights", TRT_OPSET, "float16"
    )
    samples = [feed(stage, rows, seed=rows) for rows in (1, 2, 4)]
    assert 0 < check_trt_variant(tmp_path, name, stage, samples) < 5e-3


def test_samples_keep_values_in_range(
    bundle: Path, single_stages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written on the way lies beside the result, not in a folder for temporary files, which may be small."""
    monkeypatch.setattr(tempfile, "tempdir", "/none")
    stage = manifest_of(bundle).stages["action"]
    sample = feed(stage)
    sample["history"][0, 2, 1] = 1e6
    contract = contract_of("action", stage)
    _, report = write_trt_variant(single(single_stages, "action"), contract, tmp_path / "stages", [sample])
    assert report.islands["range"] > 0
    assert [path.name for path in (tmp_path / "stages").iterdir()] == ["action"]


@pytest.mark.parametrize("break_", ["wrong", "infinite"])
def test_a_variant_that_computes_something_else_is_refused(
    bundle: Path, single_stages: Path, tmp_path: Path, break_: str
) -> None:
    stage = both(bundle, single_stages, "text", tmp_path)
    graph = tmp_path / stage.variants[TRT_VARIANT].graph
    model = ir.load(graph)
    weight = next(value for value in model.graph.initializers.values() if len(value.shape or ()) == 2)
    assert weight.const_value is not None
    changed = weight.const_value.numpy() * np.float16(-3 if break_ == "wrong" else np.inf)
    weight.const_value = ir.tensor(changed, name=weight.name)
    ir.save(model, graph, external_data="trt.weights", size_threshold_bytes=512)
    with pytest.raises(ExportError, match=r"(?s)does not compute what the cpu variant does.*stage text"):
        check_trt_variant(tmp_path, "text", stage, [feed(stage)])


def test_one_trace_serves_both_variants(
    bundle: Path, trunk: Trunk, checkpoint: Checkpoint, single_stages: Path, tmp_path: Path
) -> None:
    stage = manifest_of(bundle).stages["action"]
    contract = contract_of("action", stage)
    program = capture(ActionStage(PyTorchEnsemble(trunk, checkpoint).members), contract)
    save(lower_for_trt(program, contract), contract, tmp_path, "single", "float32")
    save(lower(program, contract, CPU_OPSET), contract, tmp_path, CPU_VARIANT, "float32")
    save(lower_for_trt(program, contract), contract, tmp_path, "again", "float32")
    folder = tmp_path / "action"
    assert (folder / "cpu.onnx").read_bytes() == (bundle / "stages" / "action" / "cpu.onnx").read_bytes()
    assert (folder / "cpu.weights").read_bytes() == (bundle / "stages" / "action" / "cpu.weights").read_bytes()
    assert (folder / "single.onnx").read_bytes() == (single_stages / "action" / "single.onnx").read_bytes()
    assert (folder / "single.weights").read_bytes() == (folder / "again.weights").read_bytes()


@pytest.mark.parametrize("name", STAGES)
def test_linear_layers_have_the_same_names_in_both_variants(bundle: Path, single_stages: Path, name: str) -> None:
    """What was decided for a layer of one variant holds for the other."""
    found = []
    for model in (ir.load(bundle / "stages" / name / "cpu.onnx"), single(single_stages, name)):
        normalise(model)
        found.append({linear.name: linear.size for linear in find_linears(model)})
    assert found[0] == found[1]


@pytest.mark.parametrize("name", STAGES)
def test_attention_is_spelled_out_and_the_rest_is_whole(single_stages: Path, name: str) -> None:
    graph = onnx.load(single_stages / name / "single.onnx", load_external_data=False).graph
    operators = {node.op_type for node in graph.node}
    assert "Attention" not in operators
    assert operators >= {"MatMul", "Softmax", "LayerNormalization", "ReduceL2"}
    assert operators.isdisjoint({"Pow", "Erf", "Sqrt", "ReduceMean"})  # a norm or GELU in parts
    assert ("Gelu" in operators) is (name != "action")


@pytest.mark.parametrize("name", STAGES)
def test_tensorrts_rules_are_kept(bundle: Path, single_stages: Path, name: str, tmp_path: Path) -> None:
    stage = both(bundle, single_stages, name, tmp_path)
    assert violations(tmp_path / stage.variants[TRT_VARIANT].graph, "10.3") == []


@pytest.mark.parametrize("name", STAGES)
def test_names_in_a_trt_graph_can_be_read(bundle: Path, single_stages: Path, name: str, tmp_path: Path) -> None:
    stage = both(bundle, single_stages, name, tmp_path)
    graph = onnx.load(tmp_path / stage.variants[TRT_VARIANT].graph, load_external_data=False).graph
    assert graph.name == name
    names = [node.name for node in graph.node]
    values = [value for node in graph.node for value in (*node.input, *node.output) if value]
    assert all(names)
    assert len(set(names)) == len(names)
    opaque = [each for each in names + values if each.startswith(("val_", "node_", "_", "aten")) or each.isdigit()]
    assert opaque == []


def test_a_contract_names_the_stage(tmp_path: Path, single_stages: Path, bundle: Path) -> None:
    contract = contract_of("text", manifest_of(bundle).stages["text"])
    other = Contract("text", contract.inputs, replace(contract.output, name="other"))
    with pytest.raises(ExportError, match="breaks the stage's contract"):
        write_trt_variant(single(single_stages, "text"), other, tmp_path)
    assert list(tmp_path.iterdir()) == []
