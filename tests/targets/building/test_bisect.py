"""A layer that a compiler gets wrong is found by its name; graphs are cut without the onnx package."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from tests.engines_kit import SETTINGS, FakeBuilder
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage
from trunkline.targets.building import subgraph
from trunkline.targets.building.bisect import TOLERANCE, find_layer
from trunkline.targets.building.subgraph import OUTPUT


def files_of(bundle: Path, name: str, variant: str = "cpu") -> StageFiles:
    stage = Bundle(bundle).manifest.stages[name]
    path = bundle / stage.variants[variant].graph
    return StageFiles(name, stage, path.read_bytes(), path.parent)


def sample(stage: Stage, count: int = 2) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    fed: dict[str, NDArray[Any]] = {}
    for spec in stage.inputs:
        shape = [size if isinstance(size, int) else count for size in spec.shape]
        whole = spec.dtype != "float32"
        fed[spec.name] = (rng.integers(0, 20, shape) if whole else rng.standard_normal(shape)).astype(spec.dtype)
    return fed


def layers(graph: bytes, operator: str) -> list[str]:
    return [node.name for node in onnx.load_model_from_string(graph).graph.node if node.op_type == operator]


@pytest.mark.parametrize(("stage", "operator"), [("vision", "MatMul"), ("vision", "LayerNormalization")])
@pytest.mark.parametrize("place", [0, 1, -1])
def test_every_layer_is_found(bundle: Path, stage: str, operator: str, place: int) -> None:
    files = files_of(bundle, stage)
    guilty = layers(files.graph, operator)[place]
    steps: list[tuple[str, int, int]] = []
    suspect = find_layer(
        FakeBuilder({guilty: 1.3}), files, SETTINGS, sample(files.stage, 1), progress=lambda *step: steps.append(step)
    )
    assert suspect is not None
    assert (suspect.node, suspect.operator) == (guilty, operator)
    assert suspect.difference == pytest.approx(0.3, rel=1e-3)
    assert suspect.before <= suspect.tolerance <= TOLERANCE
    assert steps[0][1] == 0
    assert steps[-1][1] == steps[-1][2]
    assert all(done <= total for _, done, total in steps)


@pytest.mark.parametrize("stage", ["text", "context", "action"])
def test_in_every_kind_of_stage(bundle: Path, stage: str) -> None:
    files = files_of(bundle, stage)
    names = layers(files.graph, "MatMul")
    guilty = names[len(names) // 2]
    suspect = find_layer(FakeBuilder({guilty: 3.0}), files, SETTINGS, sample(files.stage))
    assert suspect is not None
    assert suspect.node == guilty


def test_numbers_that_are_not_finite_are_found(bundle: Path) -> None:
    files = files_of(bundle, "vision")
    guilty = layers(files.graph, "MatMul")[3]
    suspect = find_layer(FakeBuilder({guilty: float("nan")}), files, SETTINGS, sample(files.stage, 1))
    assert suspect is not None
    assert (suspect.node, suspect.difference) == (guilty, float("inf"))


def test_a_small_fault_is_found_below_the_usual_tolerance(bundle: Path) -> None:
    files = files_of(bundle, "vision")
    guilty = layers(files.graph, "LayerNormalization")[-1]
    suspect = find_layer(FakeBuilder({guilty: 1.002}), files, SETTINGS, sample(files.stage, 1))
    assert suspect is not None
    assert suspect.tolerance < TOLERANCE
    assert suspect.difference > suspect.tolerance


def test_a_stage_that_is_right_has_no_suspect(bundle: Path) -> None:
    files = files_of(bundle, "action")
    builder = FakeBuilder()
    assert find_layer(builder, files, SETTINGS, sample(files.stage)) is None
    assert len(builder.built) == 1


def test_it_takes_few_builds(bundle: Path) -> None:
    files = files_of(bundle, "vision")
    builder = FakeBuilder({layers(files.graph, "MatMul")[5]: 2.0})
    find_layer(builder, files, SETTINGS, sample(files.stage, 1))
    assert len(builder.built) <= len(onnx.load_model_from_string(files.graph).graph.node).bit_length() + 3


def test_without_onnxruntime_there_is_advice(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    files = files_of(bundle, "action")
    with pytest.raises(BackendError, match=r"only be compared with ONNX Runtime(.|\n)*pip install 'trunkline\[cpu\]'"):
        find_layer(FakeBuilder(), files, SETTINGS, sample(files.stage))


# Cutting


def run(graph: bytes, folder: Path, fed: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
    options = ort.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    wanted = {each.name for each in session.get_inputs()}
    return session.run(None, {name: value for name, value in fed.items() if name in wanted})


@pytest.mark.parametrize("stage", ["vision", "text", "context", "action"])
def test_a_cut_graph_gives_what_the_whole_one_has_there(bundle: Path, stage: str) -> None:
    files = files_of(bundle, stage)
    fed = sample(files.stage)
    way = subgraph.on_the_way(files.graph, files.stage.outputs[0].name)
    asked = [
        node.outputs[0] for node in way[:: max(1, len(way) // 6)] if node.outputs[0] != files.stage.outputs[0].name
    ]
    whole = onnx.load_model_from_string(files.graph)
    whole.graph.output.extend(onnx.helper.make_empty_tensor_value_info(tensor) for tensor in asked)
    expected = run(whole.SerializeToString(), files.folder, fed)
    for tensor, right in zip([files.stage.outputs[0].name, *asked], expected, strict=True):
        (found,) = run(subgraph.cut(files.graph, tensor), files.folder, fed)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, right.astype(np.float32), rtol=1e-4, atol=1e-4)


def test_a_cut_graph_holds_nothing_else(bundle: Path) -> None:
    files = files_of(bundle, "context")
    way = subgraph.on_the_way(files.graph, "context")
    early = next(node for node in way if node.operator == "MatMul")
    cut = onnx.load_model_from_string(subgraph.cut(files.graph, early.outputs[0]))
    onnx.checker.check_model(_with_shape(cut))
    assert [each.name for each in cut.graph.output] == [OUTPUT]
    used = {name for node in cut.graph.node for name in node.input}
    assert {each.name for each in cut.graph.input} <= used
    assert {each.name for each in cut.graph.initializer} <= used
    made = {name for node in cut.graph.node for name in node.output}
    assert {each.name for each in cut.graph.value_info} <= made
    assert len(cut.graph.node) < len(onnx.load_model_from_string(files.graph).graph.node)


def _with_shape(model: onnx.ModelProto) -> onnx.ModelProto:
    """The checker wants a shape, which nobody knows and no back end asks for; and no external data."""
    model.graph.output[0].type.tensor_type.shape.SetInParent()
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
            size = int(np.prod(tensor.dims)) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
            tensor.raw_data = bytes(size)
    return model


def test_the_last_on_the_way_makes_the_output(bundle: Path) -> None:
    for stage in ("vision", "text", "context", "action"):
        files = files_of(bundle, stage)
        output = files.stage.outputs[0].name
        assert subgraph.on_the_way(files.graph, output)[-1].outputs == (output,)


def test_constants_are_not_on_the_way() -> None:
    make = onnx.helper.make_node
    nodes = [
        make("Add", ["c", "c"], ["constant"], "constant"),
        make("Mul", ["x", "constant"], ["y"], "first"),
        make("Neg", ["y"], ["dead"], "dead"),
        make("Abs", ["y"], ["z"], "last"),
    ]
    value = onnx.helper.make_tensor_value_info
    initial = onnx.numpy_helper.from_array(np.float32([2]), "c")
    graph = onnx.helper.make_graph(nodes, "g", [value("x", 1, ["N"])], [value("z", 1, ["N"])], initializer=[initial])
    content = onnx.helper.make_model(graph).SerializeToString()
    assert [node.name for node in subgraph.on_the_way(content, "z")] == ["first", "last"]
    cut = onnx.load_model_from_string(subgraph.cut(content, "y"))
    assert [node.name for node in cut.graph.node] == ["constant", "first", OUTPUT]


def test_half_precision_is_cut_too(half_bundle: Path) -> None:
    """What lies between two layers is float16 there; the compared tensor is float32."""
    files = files_of(half_bundle, "vision", "trt")
    guilty = layers(files.graph, "LayerNormalization")[2]
    suspect = find_layer(FakeBuilder({guilty: 1.5}), files, SETTINGS, sample(files.stage, 1))
    assert suspect is not None
    assert suspect.node == guilty


def test_nothing_is_left_behind(bundle: Path) -> None:
    folder = bundle / "stages" / "vision"
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    files = files_of(bundle, "vision")
    find_layer(FakeBuilder({layers(files.graph, "MatMul")[1]: 2.0}), files, SETTINGS, sample(files.stage, 1))
    assert before == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def test_no_onnx_and_no_torch_is_imported() -> None:
    code = (
        "import sys, trunkline.targets.building.run\n"
        "print([name for name in ('onnx', 'torch', 'onnx_ir', 'onnxruntime', 'typer') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
