"""Graphs made to reach other files, other code or all of the memory are refused before a back end sees them.

Numbers are those of docs/security.md, "Graphs" and "Tensors".
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tests.bundles import copied, edit_manifest, frame, put, windows
from trunkline.runtime import load, onnx_scan
from trunkline.runtime.backends import names
from trunkline.runtime.errors import BackendError, BundleError
from trunkline.runtime.onnx_scan import MAX_GRAPH_BYTES, MAX_READ, scan

WEIGHTS, WEIGHTS_BYTES = "cpu.weights", 4096
ACTION = "stages/action/cpu"
FLOAT = TensorProto.FLOAT
SECONDS = 12.0


def external(name: str = "w", dims: tuple[int, ...] = (8, 8), **entries: object) -> TensorProto:
    tensor = TensorProto(name=name, data_type=FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in ({"location": WEIGHTS, "offset": 0, "length": 256} | entries).items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return tensor


def stored(name: str = "w", size: int = 8) -> TensorProto:
    return numpy_helper.from_array(np.eye(size, dtype=np.float32), name)


def model(
    *tensors: TensorProto, nodes: list[onnx.NodeProto] | None = None, opset: int = 23, **rest: Any
) -> onnx.ModelProto:
    nodes = nodes or [helper.make_node("MatMul", ["x", "w"], ["y"])]
    x = helper.make_tensor_value_info("x", FLOAT, ["N", 8])
    y = helper.make_tensor_value_info("y", FLOAT, ["N", 8])
    graph = helper.make_graph(nodes, "g", [x], [y], initializer=list(tensors or (external(),)))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10, **rest)


def check(graph: bytes | onnx.ModelProto, opset: int = 23, weights: str | None = WEIGHTS) -> Any:
    content = graph if isinstance(graph, bytes) else graph.SerializeToString()
    return scan(content, opset=opset, weights=weights, weights_bytes=WEIGHTS_BYTES, where="here/cpu.onnx")


def refuse(graph: bytes | onnx.ModelProto, match: str, **options: Any) -> None:
    started = time.process_time()
    with pytest.raises(BundleError, match=f"graph is refused(.|\n)*{match}") as caught:
        check(graph, **options)
    assert time.process_time() - started < SECONDS
    assert "here/cpu.onnx" in str(caught.value)
    assert len(str(caught.value)) < 10_000


def test_good_graphs_pass() -> None:
    assert check(model()).external_tensors == 1
    facts = check(model(stored()), weights=None)
    assert (facts.opset, facts.operators, facts.external_tensors) == (23, {"MatMul": 1}, 0)


EXTERNAL = {
    "41 offset past the end": ({"offset": 4000}, "4000\\+256 does not fit"),
    "41 offset by one": ({"offset": WEIGHTS_BYTES - 255}, "does not fit"),
    "41 offset of 15 digits": ({"offset": 10**15 - 1}, "does not fit"),
    "41 offset of 64 bits": ({"offset": (1 << 64) - 256}, "has offset"),
    "41 offset of 5000 digits": ({"offset": "9" * 5000}, "has offset"),
    "41 negative offset": ({"offset": -256}, "has offset '-256'"),
    "41 offset with a sign": ({"offset": "+0"}, "has offset"),
    "41 offset with a space": ({"offset": " 0"}, "has offset"),
    "41 offset in hexadecimal": ({"offset": "0x0"}, "has offset"),
    "41 offset in other digits": ({"offset": "\u0661\u0662"}, "has offset"),
    "41 length too short": ({"length": 255}, "does not fit: 256 bytes"),
    "41 length too long": ({"length": 257}, "does not fit: 256 bytes"),
    "41 length zero": ({"length": 0}, "does not fit"),
    "41 negative length": ({"length": -1}, "length '-1'"),
    "41 no length": ({"length": None}, "length ''"),
    "42 parent": ({"location": "../cpu.weights"}, "lies in '../cpu.weights', outside"),
    "42 absolute": ({"location": "/etc/passwd"}, "lies in '/etc/passwd', outside"),
    "42 other file": ({"location": "golden.safetensors"}, "outside the stage's weight file"),
    "42 spelt otherwise": ({"location": "./cpu.weights"}, "outside the stage's weight file"),
    "42 with NUL": ({"location": "cpu.weights\0"}, "outside the stage's weight file"),
    "42 none": ({"location": None}, "lies in None, outside"),
    "42 empty": ({"location": ""}, "outside the stage's weight file"),
    "42 memory of the process": ({"location": "*/_ORT_MEM_ADDR_/*"}, "outside the stage's weight file"),
    "42 attribute injection": ({"basepath": "/"}, r"external attributes \['basepath'\]"),
}


@pytest.mark.parametrize(("entries", "match"), EXTERNAL.values(), ids=EXTERNAL)
def test_external_data(entries: dict[str, object], match: str) -> None:
    refuse(model(external(**entries)), match)


def test_42_external_data_where_there_is_no_weight_file() -> None:
    refuse(model(), "outside the stage's weight file", weights=None)


def test_42_marked_external_without_a_place() -> None:
    tensor = stored()
    tensor.data_location = TensorProto.EXTERNAL
    refuse(model(tensor), "lies in None, outside")


def test_42_place_without_the_mark() -> None:
    tensor = external(location="/etc/passwd")
    tensor.ClearField("data_location")
    refuse(model(tensor), "'/etc/passwd', outside")


def test_42_two_places() -> None:
    tensor = external(location="/etc/passwd")
    tensor.external_data.add(key="location", value=WEIGHTS)
    refuse(model(tensor), "states its 'location' twice")


def test_42_external_tensor_in_an_attribute() -> None:
    node = helper.make_node("Constant", [], ["c"], value=external())
    refuse(model(stored(), nodes=[node]), "outside the stage's weight file")


def node(operator: str, domain: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, ["x"], ["y"], domain=domain, **attributes)


def branch() -> onnx.GraphProto:
    return helper.make_graph([helper.make_node("Identity", ["x"], ["b"])], "b", [], [])


def nested(depth: int) -> onnx.GraphProto:
    graph = branch()
    for _ in range(depth):
        inner = helper.make_node("If", ["x"], ["y"], then_branch=graph, else_branch=branch())
        graph = helper.make_graph([inner], "n", [], [])
    return graph


NODES = {
    "43 custom domain": (node("Evil", "com.evil"), "operator 'Evil' of the domain 'com.evil'"),
    "43 standard name in a custom domain": (node("Relu", "com.evil"), "operator 'Relu' of the domain 'com.evil'"),
    "43 contributed operators": (node("FusedMatMul", "com.microsoft"), "of the domain 'com.microsoft'"),
    "43 machine learning operators": (node("LabelEncoder", "ai.onnx.ml"), "of the domain 'ai.onnx.ml'"),
    "43 domain that looks empty": (node("Relu", "\u200b"), r"of the domain '\\u200b'"),
    "43 terminal codes": (node("\x1b[2J"), r"operator '\\x1b\[2J' is not allowed"),
    "43 Python operator": (node("PyOp"), "operator 'PyOp' is not allowed"),
    "48 shape to tensor": (node("ConstantOfShape"), "operator 'ConstantOfShape' is not allowed"),
    "48 range": (node("Range"), "operator 'Range' is not allowed"),
    "48 one-hot": (node("OneHot"), "operator 'OneHot' is not allowed"),
    "random numbers": (node("RandomNormal"), "operator 'RandomNormal' is not allowed"),
    "no operator": (node(""), "operator '' is not allowed"),
    "49 If": (node("If", then_branch=branch(), else_branch=branch()), "holds a graph of its own"),
    "49 If in If in If": (node("If", then_branch=nested(30), else_branch=branch()), "holds a graph of its own"),
    "49 Loop": (node("Loop", body=branch()), "'Loop' is not allowed"),
    "49 graph in an allowed operator": (node("Relu", body=branch()), "holds a graph of its own"),
    "49 graphs in an allowed operator": (node("Relu", bodies=[branch()]), "holds a graph of its own"),
}


@pytest.mark.parametrize(("bad", "match"), NODES.values(), ids=NODES)
def test_operators(bad: onnx.NodeProto, match: str) -> None:
    refuse(model(nodes=[bad]), match)


def test_all_problems_are_listed() -> None:
    graph = model(external("a", offset=9999), external("b", location="x"), nodes=[node("Evil", "com.evil"), node("If")])
    with pytest.raises(BundleError) as caught:
        check(graph)
    for part in ("'Evil'", "'If' is not", "'a' at 9999", "'b' lies in 'x'"):
        assert part in str(caught.value)


@pytest.mark.parametrize(("opset", "match"), [(24, "opset 24 is not one of 1 to 23"), (1 << 40, "opset 1099511627776")])
def test_44_opset_too_new(opset: int, match: str) -> None:
    refuse(model(opset=opset), match)


def test_44_opset_is_not_the_manifests() -> None:
    refuse(model(opset=20), "opset 20, but the manifest says 23")


@pytest.mark.parametrize("opset", [0, -1])
def test_44_opset_without_sense(opset: int) -> None:
    refuse(model(opset=opset), "opset \\d+ is not one of")


def test_44_other_opsets() -> None:
    graph = model()
    graph.opset_import.add(domain="com.evil", version=1)
    refuse(graph, "operators of the domain 'com.evil'")
    graph = model()
    graph.opset_import.add(domain="ai.onnx", version=7)
    refuse(graph, "states its opset twice")


def test_44_no_opset() -> None:
    graph = model()
    graph.ClearField("opset_import")
    refuse(graph, "opset 0, but the manifest says 23")


BOMBS = {
    "many elements": ((1 << 20, 1 << 20), b"\0" * 4, "needs 4398046511104 bytes and has 4"),
    "few bytes too few": ((8, 8), b"\0" * 252, "needs 256 bytes and has 252"),
    "bytes too many": ((8, 8), b"\0" * 260, "needs 256 bytes and has 260"),
    "no bytes": ((8, 8), b"", "needs 256 bytes and has 0"),
    "product overflows 64 bits": ((1 << 32, 1 << 32), b"", "needs 73786976294838206464 bytes"),
    "huge dimension": ((1 << 62,), b"", "has type 1 and shape"),
    "negative dimension": ((-1, 8), b"\0" * 256, "has type 1 and shape"),
    "nine dimensions": ((1,) * 9, b"\0" * 4, "has type 1 and shape"),
}


@pytest.mark.parametrize(("dims", "raw", "match"), BOMBS.values(), ids=BOMBS)
def test_48_initialiser_bomb(dims: tuple[int, ...], raw: bytes, match: str) -> None:
    tensor = TensorProto(name="w", data_type=FLOAT, dims=dims, raw_data=raw)
    refuse(model(tensor), match)
    refuse(model(stored(), nodes=[helper.make_node("Constant", [], ["c"], value=tensor)]), match)


def test_48_external_initialiser_bomb() -> None:
    refuse(model(external(dims=(1 << 20, 1 << 20))), "4398046511104 bytes in a file of 4096")


@pytest.mark.parametrize("kind", [0, TensorProto.STRING, TensorProto.COMPLEX64, TensorProto.FLOAT8E4M3FN, 99])
def test_48_other_types(kind: int) -> None:
    refuse(model(TensorProto(name="w", data_type=kind, dims=(1,), raw_data=b"\0" * 8)), f"has type {kind} and shape")


def test_48_typed_data_beside_raw_bytes() -> None:
    tensor = stored()
    tensor.float_data.extend([1.0] * 64)
    refuse(model(tensor), "not stored as raw bytes")
    refuse(
        model(TensorProto(name="w", data_type=TensorProto.STRING, dims=(1,), string_data=[b"a"])), "not stored as raw"
    )


def test_49_functions_sparse_tensors_and_training() -> None:
    function = helper.make_function("f", "F", ["x"], ["y"], [node("Relu")], [helper.make_opsetid("", 23)])
    refuse(model(functions=[function]), "functions of its own")
    graph = model()
    graph.graph.sparse_initializer.add(values=stored("s"), dims=[8])
    refuse(graph, "holds sparse tensors")
    graph = model()
    graph.graph.node[0].attribute.add(name="a", type=onnx.AttributeProto.SPARSE_TENSOR).sparse_tensor.dims.append(1)
    refuse(graph, "an operator holds a sparse tensor")
    graph = model()
    graph.training_info.add().algorithm.CopyFrom(branch())
    refuse(graph, "graphs for training")


def varint(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


GOOD = model().SerializeToString()
TINY_NODE = field(1, field(4, b"Relu"))

WIRE = {
    "50 empty": (b"", "no graph with nodes"),
    "50 text": (b"hello, this is not a graph", "not an ONNX file"),
    "50 zip": (b"PK\x03\x04" + b"\0" * 40, "not an ONNX file"),
    "50 zeros": (b"\0" * 1000, "not an ONNX file: field number 0"),
    "50 ones": (b"\xff" * 1000, "not an ONNX file"),
    "50 endless integer": (b"\x08" + b"\x80" * 1000, "integer is too long"),
    "50 integer of 65 bits": (b"\x08" + b"\xff" * 9 + b"\x02", "integer is too long"),
    "50 length past the end": (b"\x3a\xff\xff\xff\xff\x0f", "runs past the end"),
    "50 length of 64 bits": (b"\x3a" + varint((1 << 64) - 1), "runs past the end"),
    "50 groups": (b"\x3b\x3c", "wire type 3"),
    "50 number where the graph belongs": (b"\x38\x07", "integer where a message belongs"),
    "50 no nodes": (field(7, b""), "no graph with nodes"),
    "50 two graphs": (GOOD + GOOD, "field 1 twice"),
    "50 graph hidden by a long field number": (
        varint((1 << 32 | 7) << 3 | 2) + b"\0" + GOOD,
        "field number 4294967303",
    ),
    "50 operator twice": (field(8, b"\x10\x17") + field(7, field(1, field(4, b"Relu") * 2)), "field 4 twice"),
    "50 tensor of an attribute twice": (
        field(7, field(1, field(4, b"Constant") + field(5, field(5, stored().SerializeToString()) * 2))),
        "field 5 twice",
    ),
    "50 not UTF-8": (field(7, field(1, field(4, b"\xff"))), "not an ONNX file"),
    "50 flatbuffer of the runtime's own": (b"\x12\x04abORTM" + GOOD, "in its own format"),
    "50 flatbuffer that is a graph, too": (field(2, b"\0\0ORTM") + GOOD, "in its own format"),
}


@pytest.mark.parametrize(("graph", "match"), WIRE.values(), ids=WIRE)
def test_wire_format(graph: bytes, match: str) -> None:
    refuse(graph, match)


CROWD = 10_000
CROWDS = {
    "nodes": field(8, b"\x10\x17") + field(7, TINY_NODE * CROWD),
    "attributes": field(7, field(1, field(4, b"Relu") + b"\x2a\0" * CROWD)),
    "dimensions": field(7, TINY_NODE + field(5, field(1, b"\1" * CROWD))),
    "texts of the model": b"\x72\0" * CROWD,
}


@pytest.mark.parametrize("graph", CROWDS.values(), ids=CROWDS)
def test_48_crowds_of_tiny_parts(graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the limit lowered: at the real one, each takes seconds."""
    assert MAX_READ <= 4 << 20
    monkeypatch.setattr(onnx_scan, "MAX_READ", CROWD - 1)
    refuse(graph, f"more than {CROWD - 1} fields")


def test_48_too_large_to_look_at() -> None:
    refuse(b"\0" * (MAX_GRAPH_BYTES + 1), "too large")


def test_48_millions_of_problems_are_not_collected() -> None:
    refuse(field(7, field(1, b"\x3a\0") * 1_000_000), "operator '' is not allowed")


def test_50_truncated_anywhere(bundle: Path) -> None:
    graph = (bundle / f"{ACTION}.onnx").read_bytes()
    cuts = [*range(0, 4000, 53), *range(4000, len(graph), 997), len(graph) - 1]
    for length in cuts:
        with pytest.raises(BundleError):
            scan(graph[:length], opset=23, weights=WEIGHTS, weights_bytes=1 << 20, where="here")
    for length in range(len(GOOD)):
        with pytest.raises(BundleError):
            check(GOOD[:length])


def test_50_random_bytes() -> None:
    source = random.Random(0)
    for size in range(1, 400):
        with pytest.raises(BundleError):
            check(source.randbytes(size))


def outcome(graph: bytes) -> str:
    try:
        check(graph)
    except BundleError:
        return "refused"
    return "accepted"


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6))
def test_50_flipped_bytes(changes: list[tuple[int, int]]) -> None:
    graph = bytearray(GOOD)
    for place, value in changes:
        graph[place] = value
    assert outcome(bytes(graph)) in ("refused", "accepted")  # and no other exception


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 30))
def test_50_spliced_bytes(content: bytes, place: int, removed: int) -> None:
    assert outcome(GOOD[:place] + content + GOOD[place + removed :]) in ("refused", "accepted")


def test_50_flipped_bytes_of_a_real_graph(bundle: Path) -> None:
    graph = (bundle / f"{ACTION}.onnx").read_bytes()
    source = random.Random(1)
    seen = set()
    for _ in range(150):
        changed = bytearray(graph)
        changed[source.randrange(len(graph))] = source.randrange(256)
        try:
            scan(bytes(changed), opset=23, weights=WEIGHTS, weights_bytes=1 << 20, where="here")
            seen.add("accepted")
        except BundleError:
            seen.add("refused")
    assert seen == {"accepted", "refused"}


# Whole bundles, whose manifest and digests agree with the evil graph.


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    return copied(bundle, tmp_path / "bundle")


def change_graph(folder: Path, change: Callable[[onnx.ModelProto], object]) -> Path:
    graph = onnx.load(folder / f"{ACTION}.onnx", load_external_data=False)
    change(graph)
    put(folder, f"{ACTION}.onnx", graph.SerializeToString())
    return folder


def set_dimension(value: onnx.ValueInfoProto, axis: int, size: int | str) -> None:
    dimension = value.type.tensor_type.shape.dim[axis]
    dimension.Clear()
    if isinstance(size, str):
        dimension.dim_param = size
    else:
        dimension.dim_value = size


SIGNATURES: dict[str, tuple[Callable[[onnx.GraphProto], object], str]] = {
    "45 fixed where it varies": (lambda graph: set_dimension(graph.input[0], 0, 4), r"history float32 \[4, 10, 7\]"),
    "45 varies where it is fixed": (
        lambda graph: set_dimension(graph.input[0], 1, "H"),
        r"history float32 \[N, H, 7\]",
    ),
    "45 another letter": (lambda graph: set_dimension(graph.input[0], 0, "M"), r"history float32 \[M, 10, 7\]"),
    "45 no letter": (lambda graph: set_dimension(graph.input[0], 0, ""), r"history float32 \[None, 10, 7\]"),
    "46 more inputs": (
        lambda graph: graph.input.append(helper.make_tensor_value_info("extra", FLOAT, [1])),
        r"extra float32 \[1\]",
    ),
    "46 more outputs": (
        lambda graph: graph.output.append(helper.make_tensor_value_info("history", FLOAT, ["N", 10, 7])),
        "outputs are",
    ),
}


@pytest.mark.parametrize(("change", "match"), SIGNATURES.values(), ids=SIGNATURES)
def test_graph_is_not_what_the_manifest_promises(
    folder: Path, change: Callable[[onnx.GraphProto], object], match: str
) -> None:
    change_graph(folder, lambda graph: change(graph.graph))
    with pytest.raises((BundleError, BackendError), match=f"(.|\n)*stage action(.|\n)*({match}|cannot load)"):
        load(folder)


def rename(graph: onnx.ModelProto, old: str, new: str) -> None:
    for value in (*graph.graph.input, *graph.graph.output):
        value.name = new if value.name == old else value.name
    for each in graph.graph.node:
        each.input[:] = [new if name == old else name for name in each.input]
        each.output[:] = [new if name == old else name for name in each.output]


@pytest.mark.parametrize("name", ["history", "action"])
def test_46_tensor_of_another_name(folder: Path, name: str) -> None:
    change_graph(folder, lambda graph: rename(graph, name, "other"))
    with pytest.raises(BundleError, match=r"not the one its manifest describes\n.*stage action(.|\n)*other float32"):
        load(folder)


def test_47_head_of_another_trunk_width(folder: Path) -> None:
    """The context stage of this bundle under a manifest whose trunk is wider."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["trunk"]["width"] = 65
        for stage in manifest["stages"].values():
            for tensor in stage["inputs"] + stage["outputs"]:
                if tensor["name"] in ("tokens", "patches"):
                    tensor["shape"][2] = 65

    edit_manifest(folder, change)
    with pytest.raises(
        BundleError, match=r"not the one its manifest describes(.|\n)*64\]'\], the manifest says .*65\]"
    ):
        load(folder)


def test_42_bundle_that_reaches_for_another_file(folder: Path) -> None:
    def change(graph: onnx.ModelProto) -> None:
        for entry in next(each for each in graph.graph.initializer if each.external_data).external_data:
            if entry.key == "location":
                entry.value = "../../tokenizer.json"

    change_graph(folder, change)
    with pytest.raises(BundleError, match=r"stages/action/cpu.onnx(.|\n)*'\.\./\.\./tokenizer.json', outside"):
        load(folder)


def test_42_weights_beside_another_graph(folder: Path) -> None:
    edit_manifest(
        folder,
        lambda manifest: (
            manifest["files"].pop("stages/action/cpu.weights"),
            manifest["stages"]["action"]["variants"]["cpu"].update(weights="stages/vision/cpu.weights"),
        ),
    )
    (folder / f"{ACTION}.weights").unlink()
    with pytest.raises(BundleError, match=r"weight file must lie beside its graph(.|\n)*stages/vision/cpu.weights"):
        load(folder)


def test_41_weights_shorter_than_the_graph_needs(folder: Path) -> None:
    put(folder, f"{ACTION}.weights", (folder / f"{ACTION}.weights").read_bytes()[:-64])
    with pytest.raises(BundleError, match=r"does not fit: \d+ bytes in a file of"):
        load(folder)


def test_no_variant_for_this_back_end(folder: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        for stage in manifest["stages"].values():
            stage["variants"]["trt"] = stage["variants"].pop("cpu")
        manifest["parity"]["gates"] = {"trt": 0.01}

    edit_manifest(folder, change)
    for name in names("cpu"):
        with pytest.raises(BackendError, match=rf"no variant that the back end runs\n.*{name}\n.*cpu\n.*trt"):
            load(folder, backend=name)


def test_graph_that_the_back_end_cannot_load(folder: Path) -> None:
    change_graph(folder, lambda graph: graph.graph.node[0].input.append("nowhere"))
    with pytest.raises(BackendError, match=r"cannot load a stage\n.*stage action"):
        load(folder)


def weights_set(folder: Path, value: float) -> None:
    size = (folder / f"{ACTION}.weights").stat().st_size
    put(folder, f"{ACTION}.weights", np.full(size // 4, value, np.float32).tobytes())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_39_weights_that_are_not_finite_give_no_score(folder: Path, value: float) -> None:
    weights_set(folder, value)
    with load(folder) as ensemble:
        with pytest.raises(BackendError, match=r"not of length 1\n.*action\n(.|\n)*nan"):
            ensemble.score(frame(), "go", windows(2))
        with pytest.raises(BackendError, match="not of length 1"):  # nor when it is asked again
            ensemble.score(frame(), "go", windows(2))


def test_39_vectors_that_are_no_unit_vectors_give_no_score(folder: Path) -> None:
    """Clipped to [-1, 1], their scores would look like any others."""

    def change(graph: onnx.ModelProto) -> None:
        rename_output = next(each for each in graph.graph.node if "action" in each.output)
        rename_output.output[0] = "unit"
        graph.graph.node.append(helper.make_node("Add", ["unit", "unit"], ["action"]))

    match = r"not of length 1\n.*action\n(.|\n)*lengths from 2 to 2"
    with load(change_graph(folder, change)) as ensemble, pytest.raises(BackendError, match=match):
        ensemble.score(frame(), "go", windows(2))
