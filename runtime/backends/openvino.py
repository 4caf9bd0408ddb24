"""OpenVINO on the CPU, running a stage's ``cpu`` variant.

OpenVINO follows paths to weights only from a graph *file*, and only below its folder. What was checked is bytes, so it
is given those, without the weight file (:mod:`trunkline.runtime.onnx_graph`), and large tensors are bound to memory
that is mapped here. Its own copies of the weights are all made in the first run, which is therefore part of opening a
stage; what was mapped is then given back to the system and read again if it is ever needed.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, Missing, StageFiles
from trunkline.runtime.backends.contract import (
    VARYING,
    Port,
    check_declared,
    check_signature,
    input_problem,
    smallest_inputs,
)
from trunkline.runtime.backends.denormals import flushed
from trunkline.runtime.backends.forks import never_freed_in_a_child
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import CPU_VARIANT
from trunkline.runtime.onnx_graph import Place, detach, weight_file

NAME = "openvino"
VARIANT = CPU_VARIANT
DEVICE = "CPU"

#: The first version that knows attention as one operator.
OLDEST = (2026, 1)

#: Options of every stage. What is float32 in the graph is computed in float32, and what is int8 is marked so there:
#: left alone, OpenVINO takes bfloat16 where the processor has it, and quantises inputs of layers stored in int8.
SETTINGS = {
    "INFERENCE_PRECISION_HINT": "f32",
    "EXECUTION_MODE_HINT": "ACCURACY",
    "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
    "PERFORMANCE_HINT": "LATENCY",
    # Threads bound to a core wait for it while a robot's other programs use it and a core next to it is idle.
    "ENABLE_CPU_PINNING": "NO",
    # No compiled stages in a folder of the library's choice.
    "CACHE_DIR": "",
}

_DTYPES = {"u8": "uint8", "i64": "int64", "f32": "float32"}
_INT8_LAYERS = frozenset({"FullyConnected", "MatMul"})
_INT8_TYPES = frozenset({"i8", "u8"})


def available() -> Missing | None:
    """None if a new enough openvino can be imported, and this process can use it, otherwise why not."""
    install = "pip install --upgrade 'trunkline[openvino]'"
    try:
        found = version()
    except ImportError as error:
        return Missing(str(error), install)
    if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < OLDEST:
        return Missing(f"openvino {found} is older than {OLDEST[0]}.{OLDEST[1]}", install)
    if _started_in and os.getpid() not in _started_in:
        return Missing(
            "this process was forked from one that had started it, and its threads did not come along",
            "start the process with multiprocessing's spawn or forkserver, or fork before anything is loaded",
        )
    return None


def version() -> str:
    return str(_library().__version__).partition("-")[0]


def _library() -> ModuleType:
    """openvino, whose import sends usage data through a package of its own, from a process that outlives this one."""
    if loaded := sys.modules.get("openvino"):
        return loaded
    with _hidden("openvino_telemetry"):
        return importlib.import_module("openvino")  # optional


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Lets a module seem not to be installed."""
    found = sys.modules.get(module)
    sys.modules[module] = None  # type: ignore[assignment]  # this is how Python says so
    try:
        yield
    finally:
        del sys.modules[module]
        if found is not None:
            sys.modules[module] = found


#: The process that started the library's threads. In a forked child it takes them for its own, and waits for them now
#: and then for ever.
_started_in: set[int] = set()


@functools.cache
def _core() -> Any:
    """The library's engine, one for all stages."""
    _started_in.add(os.getpid())
    core = _library().Core()
    never_freed_in_a_child(core)
    return core


def open_stage(files: StageFiles) -> OpenVinoSession:
    """A session over checked graph bytes; the weight file in ``files.folder`` is mapped."""
    return OpenVinoSession(files)


def int8_kernels(files: StageFiles) -> int:
    """Linear layers that run in int8, counted in the compiled graph.

    What a layer reads tells: the precision that the library states is int8 also for layers that only keep their
    weights in it.
    """
    with _Weights(files) as weights:
        nodes = _compiled(files, weights).get_runtime_model().get_ops()
        linears = [node for node in nodes if node.get_rt_info()["layerType"].astype(str) in _INT8_LAYERS]
        return sum(
            all(port.get_element_type().get_type_name() in _INT8_TYPES for port in node.inputs()[:2])
            for node in linears
        )


class OpenVinoSession:
    """One stage. Its buffers are used again by the next run, so one thread at a time; results are copies."""

    def __init__(self, files: StageFiles) -> None:
        self._name, self._stage = files.name, files.stage
        self._weights = _Weights(files)
        self._compiled = _compiled(files, self._weights)
        self._request = self._compiled.create_infer_request()
        never_freed_in_a_child(self)
        inputs, outputs = files.stage.inputs, files.stage.outputs
        check_declared(files)  # which has letters, and inputs that nothing uses
        check_signature(
            files,
            _ports(self._compiled.inputs, [spec.name for spec in inputs]),
            _ports(self._compiled.outputs, [spec.name for spec in outputs]),
        )
        self._outputs = [spec.name for spec in outputs]
        self.run(smallest_inputs(files.stage))
        self._weights.give_back()

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        """Runs the stage.

        Raises:
            BackendError: OpenVINO failed, out of memory for instance, or an input is not one of the stage's.
        """
        # OpenVINO itself converts types, reads past the end of other shapes, and keeps the last run's missing inputs.
        if problem := input_problem(self._stage, inputs):
            raise self._failed(problem)
        try:
            with flushed():
                self._request.infer(dict(inputs))
            results = [self._request.get_output_tensor(place).data.copy() for place in range(len(self._outputs))]
        except Exception as error:  # the library's exceptions share no base class
            raise self._failed(str(error).strip()[:500]) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Drops the session and its memory."""
        del self._request, self._compiled
        self._weights.close()

    def _failed(self, found: str) -> BackendError:
        return BackendError("OpenVINO failed while it ran a stage", where=f"stage {self._name}", found=found)


class _Weights:
    """A stage's graph, taken apart from its weight file, which is mapped until this is closed."""

    def __init__(self, files: StageFiles) -> None:
        self._map: mmap.mmap | None = None
        self.graph = files.graph
        self.places: Mapping[str, Place] = {}
        name = weight_file(files.graph)
        if name is None:
            return
        try:
            with open(files.folder / name, "rb") as file:
                # Private and writable, which the library asks of memory it shares, and never written.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise BackendError(
                "a stage's weight file cannot be mapped",
                where=f"stage {files.name}, {files.folder / name}",
                found=str(error),
                fix="copy the whole bundle again",
            ) from error
        detached = detach(files.graph, memoryview(self._map))
        self.graph, self.places = detached.graph, detached.inputs
        self._require(files, max((place.end for place in self.places.values()), default=0))

    def _require(self, files: StageFiles, size: int) -> None:
        if self._map is not None and len(self._map) < size:
            raise BackendError(
                "a stage's weight file is too short",
                where=f"stage {files.name}, {files.folder}",
                expected=f"{size} bytes",
                found=f"{len(self._map)} bytes",
                fix="copy the whole bundle again",
            )

    def tensor(self, name: str, kind: Any, shape: Any) -> Any:
        """A tensor of the library's over mapped memory."""
        place = self.places[name]
        content = np.frombuffer(self._map, np.uint8, place.length, place.offset)  # type: ignore[arg-type]
        return _library().Tensor(content, shape, kind)

    def give_back(self) -> None:
        """Lets the system have the memory of what was read; it reads it again if it must."""
        if self._map is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Drops the mapping as soon as no tensor needs it."""
        self._map = None

    def __enter__(self) -> _Weights:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _compiled(files: StageFiles, weights: _Weights) -> Any:
    options = SETTINGS | {"INFERENCE_NUM_THREADS": str(files.threads or physical_cores())}
    core = _core()
    try:
        model = core.read_model(weights.graph)
        _bind(model, weights)
        with flushed():
            return core.compile_model(model, DEVICE, options)
    except Exception as error:  # the library's exceptions share no base class
        raise BackendError(
            "OpenVINO cannot load a stage",
            where=f"stage {files.name}",
            found=str(error).strip()[:500],
            fix="update openvino (2026.1 or newer), or export the bundle again",
        ) from error


def _bind(model: Any, weights: _Weights) -> None:
    """Puts constants over mapped memory where detached weights are read."""
    for parameter in model.get_parameters():
        name = parameter.get_friendly_name()
        if name not in weights.places:
            continue
        tensor = weights.tensor(name, parameter.get_element_type(), parameter.get_output_shape(0))
        constant = _library().op.Constant(tensor, shared_memory=True)
        constant.set_friendly_name(name)
        parameter.output(0).replace(constant.output(0))
        model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()


def _ports(ports: list[Any], expected: list[str]) -> list[Port]:
    """A port that the library knows by several names is called by the expected one."""
    found = []
    for place, port in enumerate(ports):
        wanted = expected[place] if place < len(expected) else ""
        name = wanted if wanted in port.get_names() else port.get_any_name()
        kind = port.get_element_type().get_type_name()
        found.append(Port(name, _DTYPES.get(kind, kind), _shape(port.get_partial_shape())))
    return found


def _shape(shape: Any) -> tuple[int | str, ...]:
    if shape.rank.is_dynamic:
        return ("...",)
    return tuple(VARYING if size.is_dynamic else size.get_length() for size in shape)
