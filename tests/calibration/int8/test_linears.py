"""Linear layers are found in what the exporter traces, in one form."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from tests.int8_kit import run, stage_inputs
from trunkline.calibration.int8.linears import block_of, find_linears, normalise
from trunkline.calibration.int8.stage_plan import save


@pytest.mark.parametrize(
    ("name", "block"),
    [
        ("features.trunk.blocks.3.mlp.fc1", "features.trunk.blocks.3"),
        ("member.0.layers.2.qkv", "member.0"),
        ("features.model.text.text_projection", "features.model.text.text_projection"),
    ],
)
def test_blocks(name: str, block: str) -> None:
    assert block_of(name) == block


@pytest.mark.parametrize("stage", ["vision", "text", "context", "action"])
def test_normalising_keeps_the_function(bundle: Path, tmp_path: Path, stage: str) -> None:
    graph = bundle / "stages" / stage / "cpu.onnx"
    model = ir.load(graph)
    products = sum(node.op_type in ("MatMul", "Gemm") for node in model.graph)
    normalise(model)
    assert not any(node.op_type == "Gemm" for node in model.graph)
    assert sum(node.op_type == "MatMul" for node in model.graph) == products
    save(model, tmp_path)
    inputs = stage_inputs(stage)
    np.testing.assert_allclose(run(tmp_path / "cpu.onnx", inputs), run(graph, inputs), atol=1e-6)


def test_every_layer_of_a_vision_block_is_found(bundle: Path) -> None:
    model = ir.load(bundle / "stages/vision/cpu.onnx")
    normalise(model)
    linears = find_linears(model)
    first = [linear for linear in linears if linear.block == "features.trunk.blocks.0"]
    assert [linear.name.rpartition("blocks.0.")[2] for linear in first] == [
        "attn.qkv",
        "attn.proj",
        "mlp.fc1",
        "mlp.fc2",
    ]
    assert all(linear.bias is not None for linear in first)
    assert [linear.size for linear in first] == [
        (64, 192),
        (64, 64),
        (64, linears[2].size[1]),
        (linears[2].size[1], 64),
    ]
    assert len({linear.name for linear in linears}) == len(linears)


def test_products_of_two_inputs_are_no_layers(bundle: Path) -> None:
    model = ir.load(bundle / "stages/context/cpu.onnx")
    normalise(model)
    products = [node for node in model.graph if node.op_type == "MatMul"]
    assert 0 < len(find_linears(model)) < len(products)
    assert all(linear.weight.is_initializer() and len(linear.matrix().shape) == 2 for linear in find_linears(model))
