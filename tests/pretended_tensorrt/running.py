"""What stands behind the runtime's classes: ONNX Runtime computes in pretended GPU memory, once somebody waits.

What the real library refuses is refused: plans of another version or GPU, or with code for the processor that nobody
allowed; shapes outside the profile, or of another rank; a run with an input or output that lies nowhere, without a
shape, or with too little memory to work in. What only the GPU notices comes when somebody waits: memory that was given
back or is too small, and a recorded run whose context has changed since.
"""

from __future__ import annotations

import base64
import ctypes
import json
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.pretended_tensorrt.world import KINDS, MAGIC, SCRATCH_BYTES, Enumerator, Sizes, TensorInfo, World, tensors

ALIGNMENT_BYTES = 256


class Runtime:
    def __init__(self, world: World, logger: Any) -> None:
        self.world = world
        world.loggers.append(logger)
        self.engine_host_code_allowed = True  # whoever forgets to forbid it runs what a plan brings along

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            content = json.loads(bytes(plan).removeprefix(MAGIC))
        except ValueError:
            self.world.log("ERROR", "Serialization assertion magicTag failed")
            return None
        problem = self._problem(content)
        if problem:
            self.world.log("ERROR", problem)
            return None
        if content["host_code"]:
            self.world.host_code_ran += 1
        return Engine(self.world, content)

    def _problem(self, content: dict[str, Any]) -> str | None:
        compatible = "VERSION_COMPATIBLE" in content["flags"]
        if self.world.lean and not compatible:
            return "Unexpected call to stub loadRunner for ReformatRunner"
        built, here = (numbers(version) for version in (content["version"], self.world.version))
        if built != here and not (compatible and built < here):
            return f"the plan is of TensorRT {content['version']}, this is {self.world.version}"
        if content["gpu"] != self.world.gpu and content["hardware"] == repr(None):
            return "the engine was built for another device"
        if content["host_code"] and not self.engine_host_code_allowed:
            return "the plan holds code for the processor, which is not allowed"
        return None


def numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".")]


class Engine:
    def __init__(self, world: World, content: dict[str, Any]) -> None:
        self.world, self.content = world, content
        self.model = onnx.load_model_from_string(base64.b64decode(content["model"]))
        constants = {each.name for each in self.model.graph.initializer}
        declared = tensors(self.model.graph.input, constants)
        self.inputs = [each for each in declared if each.name not in content["drops"]]
        self.dropped = [each for each in declared if each.name in content["drops"]]
        self.outputs = tensors(self.model.graph.output, constants)
        self.session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])

    num_io_tensors = property(lambda self: len(self.inputs) + len(self.outputs))
    device_memory_size_v2 = SCRATCH_BYTES

    def find(self, name: str) -> TensorInfo | None:
        return next((each for each in [*self.inputs, *self.outputs] if each.name == name), None)

    def _of(self, name: str) -> TensorInfo:
        return next(each for each in [*self.inputs, *self.outputs] if each.name == name)

    def get_tensor_name(self, index: int) -> str:
        return [*self.outputs, *self.inputs][index].name  # no order is promised

    def get_tensor_mode(self, name: str) -> Any:
        inside = name in {each.name for each in self.inputs}
        return Enumerator("TensorIOMode", "INPUT", 1) if inside else Enumerator("TensorIOMode", "OUTPUT", 2)

    def get_tensor_dtype(self, name: str) -> Any:
        return self._of(name).dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._of(name).shape

    def get_tensor_location(self, name: str) -> Any:
        host = "ICudaEngine.get_tensor_location" in self.world.refuses
        return Enumerator("TensorLocation", "HOST" if host else "DEVICE", int(host))

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> list[list[int]]:
        return self.content["profile"].get(name) or [list(self._of(name).shape)] * 3

    def create_execution_context(self, strategy: Any) -> Context:
        assert strategy.name == "USER_MANAGED"
        return Context(self.world, self)

    def create_engine_inspector(self) -> Inspector:
        return Inspector(self.world, self.model)


class Inspector:
    def __init__(self, world: World, model: onnx.ModelProto) -> None:
        self._describe = world.layers or described
        self._model = model

    def get_engine_information(self, format: Any) -> str:
        assert format.name == "JSON"
        return json.dumps(self._describe(self._model))


def described(model: onnx.ModelProto) -> dict[str, Any]:
    """Layers as 10.x tells of them: the nodes that each computes, and the types of what it reads."""
    quantised = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    layers = [
        {
            "Name": f"{node.name}_myl0",
            "LayerType": "gemm" if node.op_type in ("MatMul", "Gemm") else "kgen",
            "Inputs": [
                {"Name": name, "Format/Datatype": "Int8" if name in quantised else "Half"} for name in node.input
            ],
            "Metadata": f"[ONNX Layer: {node.name}]",
        }
        for node in model.graph.node
    ]
    return {"Layers": layers, "Bindings": []}


@dataclass(frozen=True)
class Run:
    """What a run was queued with: the state of its context, its memory, addresses and shapes."""

    state: int
    memory: tuple[int, int]
    addresses: dict[str, int]
    shapes: dict[str, Sizes]


class Context:
    def __init__(self, world: World, engine: Engine) -> None:
        self.world, self.engine = world, engine
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}
        self.shapes = {each.name: each.shape for each in engine.inputs if -1 not in each.shape}
        self._state = 0
        world.contexts += 1

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory, self._state = (address, size), self._state + 1

    def set_tensor_address(self, name: str, address: int) -> bool:
        if self.engine.find(name) is None or address % ALIGNMENT_BYTES:
            return self._refused(f"{name} is no tensor of the engine, or {address} is not aligned")
        self.addresses[name], self._state = address, self._state + 1
        return True

    def set_input_shape(self, name: str, shape: Sizes) -> bool:
        if name not in {each.name for each in self.engine.inputs}:
            return self._refused(f"{name} is no input of the engine")
        smallest, _, largest = self.engine.get_tensor_profile_shape(name, 0)
        if len(shape) != len(smallest) or not all(map(_between, smallest, shape, largest)):
            return self._refused(f"{name}: {shape} is outside the profile")
        self.shapes[name], self._state = tuple(shape), self._state + 1
        return True

    def get_tensor_shape(self, name: str) -> Sizes:
        if name in self.shapes:
            return self.shapes[name]
        sizes = self._sizes()
        return tuple(sizes.get(size, -1) if isinstance(size, str) else size for size in self.engine._of(name).letters)

    def _sizes(self) -> dict[str | int, int]:
        """Sizes of letters; inputs that contradict each other are found by :meth:`_problem`."""
        return {letter: size for each in self.engine.inputs for letter, size in self._lettered(each)}

    def _lettered(self, tensor: TensorInfo) -> list[tuple[str | int, int]]:
        return list(zip(tensor.letters, self.shapes.get(tensor.name, ()), strict=False))

    def execute_async_v3(self, stream: int) -> bool:
        if problem := self._problem():
            return self._refused(problem)
        assert self.world.cuda is not None
        run = Run(self._state, self.memory, dict(self.addresses), dict(self.shapes))
        return self.world.cuda.launch(stream, lambda: self._done(run))

    def _problem(self) -> str | None:
        lacking = {each.name for each in [*self.engine.inputs, *self.engine.outputs]} - set(self.addresses)
        if lacking:
            return f"no address was set for {sorted(lacking)}"
        if shapeless := {each.name for each in self.engine.inputs} - set(self.shapes):
            return f"no shape was set for {sorted(shapeless)}"
        sizes = self._sizes()
        if any(sizes[letter] != size for each in self.engine.inputs for letter, size in self._lettered(each)):
            return f"inputs contradict each other: {self.shapes}"
        address, nbytes = self.memory
        if not address or address % ALIGNMENT_BYTES or nbytes < SCRATCH_BYTES:
            return f"{nbytes} bytes at {address} to work in, {SCRATCH_BYTES} are needed"
        return None

    def _refused(self, text: str) -> bool:
        self.world.log("ERROR", text)
        return False

    def _done(self, run: Run) -> None:
        """Computes, as a kernel would; it is called from the pretended driver, to which nothing can be raised."""
        try:
            fault = self._fault(run)
            if not fault:
                self._compute(run)
        except BaseException as error:
            fault = repr(error)
        if fault:
            self.world.faults.append(fault)
            assert self.world.cuda is not None
            self.world.cuda.fault()

    def _fault(self, run: Run) -> str | None:
        if run.state != self._state:
            return "the context was changed after this run was recorded"
        places = [(run.memory[0], SCRATCH_BYTES)]
        places += [(run.addresses[each.name], _nbytes(each, run.shapes[each.name])) for each in self.engine.inputs]
        places += [
            (run.addresses[each.name], _nbytes(each, self.get_tensor_shape(each.name))) for each in self.engine.outputs
        ]
        assert self.world.cuda is not None
        outside = [place for place in places if not self.world.cuda.inside(*place)]
        return f"touched memory that is not there: {outside}" if outside else None

    def _compute(self, run: Run) -> None:
        self.world.runs += 1
        fed = {
            each.name: at(run.addresses[each.name], KINDS[each.kind], run.shapes[each.name]).copy()
            for each in self.engine.inputs
        }
        fed |= {
            each.name: np.zeros([abs(size) for size in each.shape], KINDS[each.kind]) for each in self.engine.dropped
        }
        ctypes.memset(run.memory[0], 0x5A, SCRATCH_BYTES)  # nobody else may keep anything there
        for tensor, result in zip(self.engine.outputs, self.engine.session.run(None, fed), strict=True):
            at(run.addresses[tensor.name], KINDS[tensor.kind], result.shape)[...] = result


def _between(low: int, size: int, high: int) -> bool:
    return low <= size <= high


def _nbytes(tensor: TensorInfo, shape: Sizes) -> int:
    return math.prod(shape) * np.dtype(KINDS[tensor.kind]).itemsize


def at(address: int, kind: Any, shape: Sizes) -> Any:
    """An array over the pretended GPU's memory."""
    nbytes = math.prod(shape) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), kind).reshape(shape)
