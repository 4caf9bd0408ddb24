"""What stands behind the runtime's classes: ONNX Runtime computes in pretended GPU memory, once somebody waits."""

from __future__ import annotations

import base64
import ctypes
import json
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tests.pretended_tensorrt.world import KINDS, MAGIC, SCRATCH_BYTES, Enumerator, TensorInfo, World, tensors


class Runtime:
    def __init__(self, world: World, logger: Any) -> None:
        self.world = world
        world.loggers.append(logger)
        self.engine_host_code_allowed = True  # whoever forgets to forbid it is found out

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            content = json.loads(bytes(plan).removeprefix(MAGIC))
        except ValueError:
            self.world.log("ERROR", "Serialization assertion magicTag failed")
            return None
        if self.world.lean and "VERSION_COMPATIBLE" not in content["flags"]:
            self.world.log("ERROR", "Unexpected call to stub loadRunner for ReformatRunner")
            return None
        if content["gpu"] != self.world.gpu or self.engine_host_code_allowed:
            self.world.log("ERROR", "the engine was built for another device")
            return None
        return Engine(self.world, content)


class Engine:
    def __init__(self, world: World, content: dict[str, Any]) -> None:
        self.world, self.content = world, content
        self.model = onnx.load_model_from_string(base64.b64decode(content["model"]))
        constants = {each.name for each in self.model.graph.initializer}
        inputs = tensors(self.model.graph.input, constants)
        self.inputs = [each for each in inputs if each.name not in content["drops"]]
        self.outputs = tensors(self.model.graph.output, constants)
        self.session = onnxruntime.InferenceSession(self.model.SerializeToString(), providers=["CPUExecutionProvider"])

    num_io_tensors = property(lambda self: len(self.inputs) + len(self.outputs))
    device_memory_size_v2 = SCRATCH_BYTES

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
        return self.content["profile"][name]

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


class Context:
    def __init__(self, world: World, engine: Engine) -> None:
        self.world, self.engine = world, engine
        self.memory = (0, 0)
        self.addresses: dict[str, int] = {}
        self.shapes = {each.name: each.shape for each in engine.inputs if -1 not in each.shape}
        world.contexts += 1

    def set_device_memory(self, address: int, size: int) -> None:
        self.memory = (address, size)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return address % 256 == 0

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        smallest, _, largest = self.engine.content["profile"][name]
        if not all(low <= size <= high for low, size, high in zip(smallest, shape, largest, strict=True)):
            self.world.log("ERROR", f"{name}: {shape} is outside the profile")
            return False
        self.shapes[name] = shape
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        if name in self.shapes:
            return self.shapes[name]
        sizes = {
            letter: size
            for each in self.engine.inputs
            for letter, size in zip(each.letters, self.shapes.get(each.name, ()), strict=False)
        }
        return tuple(sizes.get(size, -1) if isinstance(size, str) else size for size in self.engine._of(name).letters)

    def execute_async_v3(self, stream: int) -> bool:
        ready = set(self.addresses) == {each.name for each in [*self.engine.inputs, *self.engine.outputs]}
        if not ready or self.memory[0] == 0 or self.memory[1] < SCRATCH_BYTES:
            self.world.log("ERROR", "not all addresses are set")
            return False
        assert self.world.cuda is not None
        addresses, shapes = dict(self.addresses), dict(self.shapes)
        return self.world.cuda.launch(stream, lambda: self._compute(addresses, shapes))

    def _compute(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        self.world.runs += 1
        fed = {
            each.name: at(addresses[each.name], KINDS[each.kind], shapes[each.name]).copy()
            for each in self.engine.inputs
        }
        fed |= {
            each.name: np.zeros([1 if size == -1 else size for size in each.shape], KINDS[each.kind])
            for each in tensors(
                self.engine.model.graph.input, {one.name for one in self.engine.model.graph.initializer}
            )
            if each.name not in fed
        }
        for tensor, result in zip(self.engine.outputs, self.engine.session.run(None, fed), strict=True):
            at(addresses[tensor.name], KINDS[tensor.kind], result.shape)[...] = result


def at(address: int, kind: Any, shape: tuple[int, ...]) -> Any:
    """An array over the pretended GPU's memory."""
    nbytes = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * nbytes).from_address(address), kind).reshape(shape)
