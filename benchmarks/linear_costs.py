"""What a linear layer costs in int8 and in float32, on each back end: the constants of calibration/int8/rules.py.

    python benchmarks/linear_costs.py [--write docs/benchmarks.md]

One layer at a time, in the shapes of ViT-L, of the published heads and of small ones. Milliseconds are fitted by
``a * rows * K * N + b * K * N + c`` with nothing below zero, by relative error: multiplications, weights that are read
once, and the call.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.full_scale import machine, write_into
from trunkline.calibration.int8.linears import add_initializer
from trunkline.calibration.int8.placement import place_int8
from trunkline.calibration.int8.stage_plan import save
from trunkline.runtime.backends import StageFiles, onnxruntime, openvino
from trunkline.runtime.manifest import Stage, TensorSpec

#: Rows, inputs, outputs.
SHAPES = (
    (577, 1024, 3072),
    (577, 1024, 1024),
    (577, 1024, 4096),
    (577, 4096, 1024),
    (200, 512, 1536),
    (200, 512, 512),
    (200, 512, 1024),
    (64, 1024, 1024),
    (8, 512, 512),
    (1, 512, 512),
    (1, 512, 2048),
    (101, 96, 288),
    (101, 96, 96),
    (200, 64, 128),
)


def layer(rows: int, inputs: int, outputs: int, folder: Path, int8: bool) -> StageFiles:
    """Layers in a row would hide the call; one is enough."""
    random = np.random.default_rng(0)
    x = ir.Value(name="x", shape=ir.Shape(["N", rows, inputs]), type=ir.TensorType(ir.DataType.FLOAT))
    y = ir.Value(name="y", shape=ir.Shape(["N", rows, outputs]), type=ir.TensorType(ir.DataType.FLOAT))
    product = ir.Value(name="layer/MatMul")
    graph = ir.Graph([x], [y], nodes=[], name="layer", opset_imports={"": 23})
    model = ir.Model(graph, ir_version=10)
    weight = add_initializer(model, "layer.weight", random.normal(0, 1, (inputs, outputs)).astype(np.float32))
    bias = add_initializer(model, "layer.bias", random.normal(0, 1, outputs).astype(np.float32))
    graph.append(ir.Node("", "MatMul", [x, weight], outputs=[product], name="layer/MatMul"))
    graph.append(ir.Node("", "Add", [product, bias], outputs=[y], name="layer/Add"))
    if int8:
        place_int8(model, {"layer": 4.0}, [])
    save(model, folder)
    stage = Stage(
        (TensorSpec("x", "float32", ("N", rows, inputs)),), (TensorSpec("y", "float32", ("N", rows, outputs)),), {}
    )
    return StageFiles("layer", stage, (folder / "cpu.onnx").read_bytes(), folder)


def measure(backend, shape: tuple[int, int, int], int8: bool) -> float:
    """Median milliseconds."""
    with tempfile.TemporaryDirectory() as folder:
        session = backend.open_stage(layer(*shape, Path(folder), int8))
        x = {"x": np.random.default_rng(1).normal(0, 1, (1, *shape[:2])).astype(np.float32)}
        times = []
        deadline = time.perf_counter() + 0.5
        while time.perf_counter() < deadline or len(times) < 20:
            started = time.perf_counter()
            session.run(x)
            times.append(time.perf_counter() - started)
        session.close()
    return statistics.median(times[5:]) * 1e3


def fit(milliseconds: list[float]) -> np.ndarray:
    """a, b, c in nanoseconds: nonnegative least squares of the relative error, by projected gradient."""
    terms = np.array([[rows * k * n, k * n, 1.0] for rows, k, n in SHAPES])
    relative = terms / np.array(milliseconds)[:, None] / 1e6
    scale = np.linalg.norm(relative, axis=0)
    matrix, solution = relative / scale, np.zeros(3)
    step = 1 / np.linalg.norm(matrix, 2) ** 2
    for _ in range(20000):
        solution = np.maximum(0, solution - step * matrix.T @ (matrix @ solution - 1))
    return solution / scale


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    arguments = parser.parse_args()
    ways = [(backend, int8) for backend in (onnxruntime, openvino) for int8 in (False, True)]
    names = [f"{backend.NAME} {'int8' if int8 else 'float32'}" for backend, int8 in ways]
    table = [[measure(backend, shape, int8) for backend, int8 in ways] for shape in SHAPES]
    lines = [f"Machine: {machine()}.", "", f"| rows x K x N | {' | '.join(names)} |", "|---" * 5 + "|"]
    for shape, row in zip(SHAPES, table, strict=True):
        lines.append(f"| {' x '.join(map(str, shape))} | {' | '.join(f'{value:.3f} ms' for value in row)} |")
    for index, name in enumerate(names):
        a, b, c = fit([row[index] for row in table])
        lines.append(f"| fit, {name} | {a:.5f} ns a product | {b:.4f} ns a weight | {c:.0f} ns a call | |")
    print("\n".join(lines))
    if arguments.write:
        write_into(arguments.write, "\n".join(lines), "linear_costs")


if __name__ == "__main__":
    main()
