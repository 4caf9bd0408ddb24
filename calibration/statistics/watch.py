"""A stage of a bundle that shows values from inside its graph.

The values become outputs of the graph, and the stage's own outputs are dropped, so that what lies behind the last
watched value is not computed. Only the graph is rewritten, in memory, and it is small: the weights stay in their file,
which ONNX Runtime maps.

Outputs keep their names through all optimisations. But a fusion across a watched value no longer happens, so that the
numbers may differ from those of the stage itself in the last bits.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from trunkline.runtime import files
from trunkline.runtime.backends import StageFiles, ort
from trunkline.runtime.backends import onnxruntime as backend
from trunkline.runtime.backends.denormals import flushed
from trunkline.runtime.errors import BackendError, BundleError, InputError
from trunkline.runtime.manifest import Stage

Floats = NDArray[np.float32]


class Watch:
    """Runs a stage for its watched values. Use it from one thread, as a context manager or with :meth:`close`.

    Attributes:
        stage: name of the stage, for messages.
        values: the watched values, distinct, in the order they were named.
        digest: over the graph, its weight file and the library that runs them.
    """

    def __init__(self, stage: str, graph: Path, values: Sequence[str], threads: int | None = None) -> None:
        """Reads the graph and hashes the weights; the session is made when something is first run.

        Args:
            stage: its name.
            graph: the ONNX file; external tensors lie in files beside it.
            values: names of outputs of nodes, or of inputs of the graph.
            threads: of the session; by default the physical cores this process may use.

        Raises:
            InputError: the graph has no such value.
            BundleError: the file is no ONNX graph, or its weights lie elsewhere.
        """
        content = graph.read_bytes()
        model = _parsed(content, graph)
        _require_values(model, values, f"stage {stage}, {graph}")
        self.stage, self.values = stage, tuple(dict.fromkeys(values))
        self.digest = _digest(content, model, graph)
        inputs = {value.name for value in model.graph.input}
        self._inside = [name for name in self.values if name not in inputs]
        contract = Stage((), (), {})  # that of the stage does not hold: other values are shown
        self._files = StageFiles(stage, contract, _showing(model, self._inside), graph.parent.resolve(), threads)
        self._session: Any = None

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, Floats]]:
        """Every watched value as (rows, C) float32, where C is its last dimension.

        Each array is valid until the next is asked for: then its memory is given back.

        Raises:
            InputError: a watched value has no dimensions, or is not floating-point.
            BackendError: ONNX Runtime cannot load the graph, or failed.
        """
        for name in self.values:
            if name in inputs and name not in self._inside:
                yield name, self._rows(name, inputs[name])
        results = self._run(inputs) if self._inside else []
        for name in self._inside:
            yield name, self._rows(name, results.pop(0).numpy())

    def _run(self, inputs: Mapping[str, NDArray[Any]]) -> list[Any]:
        """The library's own values: unlike its arrays they are not copies, and can be freed one by one."""
        if self._session is None:
            self._session = backend.compiled(self._files)
        taken = {value.name for value in self._session.get_inputs()}
        wrap = ort.library().OrtValue.ortvalue_from_numpy
        try:
            fed = {name: wrap(np.ascontiguousarray(array)) for name, array in inputs.items() if name in taken}
            with flushed():
                return list(self._session.run_with_ort_values(self._inside, fed))
        except Exception as error:  # the library's exceptions share no base class
            raise BackendError(
                "ONNX Runtime failed while it ran a stage for calibration",
                where=f"stage {self.stage}",
                found=str(error).strip()[:500],
            ) from error

    def _rows(self, name: str, array: NDArray[Any]) -> Floats:
        if array.ndim == 0 or not np.issubdtype(array.dtype, np.floating):
            raise InputError(
                "a value cannot be watched",
                where=f"stage {self.stage}, {name}",
                expected="floating-point numbers with a last dimension of channels",
                found=f"{array.dtype} {array.shape}",
                fix="watch inputs of linear layers only",
            )
        return array.reshape(-1, array.shape[-1]).astype(np.float32, copy=False)

    def close(self) -> None:
        """Drops the session and its memory; it is made again if it is needed."""
        self._session = None

    def __enter__(self) -> Watch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _parsed(content: bytes, path: Path) -> onnx.ModelProto:
    try:
        return onnx.load_model_from_string(content)
    except DecodeError as error:
        raise BundleError(
            "a stage's graph is malformed", where=path, found=str(error), fix="export the bundle again"
        ) from error


def _require_values(model: onnx.ModelProto, values: Sequence[str], where: str) -> None:
    present = {name for node in model.graph.node for name in node.output if name}
    present |= {value.name for value in model.graph.input}
    missing = [name for name in values if name not in present]
    if missing:
        raise InputError(
            "a graph has no such values to watch",
            where=where,
            expected="outputs of nodes, or inputs of the graph",
            found=missing,
        )


def _showing(model: onnx.ModelProto, values: Sequence[str]) -> bytes:
    """The graph with other outputs. They have names only: types and shapes are inferred by ONNX Runtime."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values)
    return bytes(model.SerializeToString())


def _digest(content: bytes, model: onnx.ModelProto, path: Path) -> str:
    """The library is part of it: another version may round otherwise, and one result mixes no two."""
    digest = hashlib.sha256(f"{backend.NAME} {backend.version()}\n".encode())
    digest.update(hashlib.sha256(content).digest())
    for name in sorted(_weight_files(model)):
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise BundleError(
                "a stage's weight file must lie beside its graph",
                where=path,
                found=name,
                fix="use bundles that `trunkline export` wrote",
            )
        digest.update(f"{name}\n{_hashed(path.with_name(name))}\n".encode())
    return digest.hexdigest()


def _hashed(path: Path) -> str:
    try:
        return files.sha256_of(path)
    except OSError as error:
        raise BundleError(
            "a stage's weight file cannot be read", where=path, found=error.strerror, fix="copy the bundle again"
        ) from error


def _weight_files(model: onnx.ModelProto) -> set[str]:
    return {
        entry.value for tensor in model.graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
