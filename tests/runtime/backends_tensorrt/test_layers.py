"""Which layers run in int8 is read from what an engine tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from tests import qdq_kit
from tests.pretended_tensorrt.running import described
from tests.qdq_kit import Form
from tests.small_stages import small
from trunkline.runtime.backends.tensorrt_layers import int8_products, quantised_products
from trunkline.runtime.backends.tensorrt_log import TensorRtError

QUANTISED = qdq_kit.model(Form(opset=20)).SerializeToString()


def layer(*names: str, reads: str = "Int8", key: str = "Format/Datatype") -> dict[str, Any]:
    return {
        "Name": " + ".join(names),
        "Metadata": "\x1e".join(f"[ONNX Layer: {name}]" for name in names),
        "Inputs": [{"Name": "in", key: reads}],
    }


@pytest.mark.parametrize("product", ["MatMul", "Gemm"])
def test_a_quantised_product_is_meant_to_be_int8(product: str) -> None:
    form = Form(product=product, rank=2, opset=20)
    assert quantised_products(qdq_kit.model(form).SerializeToString()) == {"product"}


@pytest.mark.parametrize("way", ["Cast", "DequantizeLinear"])
def test_a_product_that_only_stores_int8_is_not(way: str) -> None:
    assert quantised_products(qdq_kit.stored(way).SerializeToString()) == set()


def test_a_float_stage_has_none(tmp_path: Path) -> None:
    graph = small(tmp_path).graph
    assert int8_products(described(onnx.load_model_from_string(graph))["Layers"], graph) == 0


@pytest.mark.parametrize(
    "reads",
    ["Int8", "Int8 NC/32HW32", "Row major Int8 format", "Thirty-two wide channel vectorized row major Int8 format"],
)
def test_a_layer_that_reads_int8_counts(reads: str) -> None:
    assert int8_products([layer("product", "add", reads=reads)], QUANTISED) == 1


def test_types_may_stand_under_a_name_of_their_own() -> None:
    assert int8_products([layer("product", reads="INT8", key="Datatype")], QUANTISED) == 1


def test_a_product_that_became_float_does_not_count() -> None:
    layers = [layer("x/Q", reads="Half"), layer("x/DQ", "weight/DQ"), layer("product", "add", reads="Half")]
    assert int8_products(layers, QUANTISED) == 0


def test_a_product_in_several_layers_counts_once() -> None:
    assert int8_products([layer("product"), layer("product", "gelu")], QUANTISED) == 1


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([], "which nodes"),
        ([{"Name": "product"}], "which nodes"),
        ([{"Metadata": "[ONNX Layer: product]"}], "which types"),
        ([{"Metadata": "[ONNX Layer: product]", "Inputs": ["x"]}], "which types"),
        ([{"Metadata": "[ONNX Layer: product]", "Inputs": "Int8"}], "which types"),
    ],
)
def test_an_engine_that_does_not_tell(layers: list[dict[str, Any]], words: str) -> None:
    """Nothing counted would be taken for float."""
    with pytest.raises(TensorRtError, match=words):
        int8_products(layers, QUANTISED)
