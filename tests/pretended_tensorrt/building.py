"""What stands behind the builder's classes: networks are ONNX graphs, and plans hold them with their settings."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
from google.protobuf.message import DecodeError

from tests.pretended_tensorrt.world import MAGIC, TIMING_MAGIC, HostMemory, TensorInfo, World, memory, tensors


class Builder:
    def __init__(self, world: World, logger: Any) -> None:
        self.world = world
        world.loggers.append(logger)

    def create_network(self, flags: int = 0) -> Network:
        return Network(self.world, flags)

    def create_builder_config(self) -> Config:
        return Config(self.world)

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Any, config: Any) -> HostMemory | None:
        built, settings = network.impl, config.impl
        if not _told(settings.progress_monitor, self.world.phases):
            self.world.log("ERROR", "the build was cancelled")
            return None
        wrong = [each.name for each in built.inputs if not _profile_fits(each, settings.profile.get(each.name))]
        wrong += sorted(set(settings.profile) - {each.name for each in built.inputs})
        if wrong:
            self.world.log("ERROR", f"no profile for {wrong}")
            return None
        if settings.cache is not None:
            settings.cache.impl.content += b"measured\n"
        made = {
            "version": self.world.version,
            "host_code": "VERSION_COMPATIBLE" in settings.flags and "EXCLUDE_LEAN_RUNTIME" not in settings.flags,
            "flags": sorted(settings.flags),
            "network_flags": built.flags,
            "workspace": settings.pools,
            "level": settings.builder_optimization_level,
            "verbosity": repr(settings.profiling_verbosity),
            "hardware": repr(settings.hardware_compatibility_level),
            "profile": settings.profile,
            "gpu": self.world.gpu,
        }
        self.world.built.append(made)
        model = base64.b64encode(built.model.SerializeToString()).decode()
        return memory(
            self.world, MAGIC + json.dumps({**made, "model": model, "drops": sorted(self.world.drops)}).encode()
        )


def _profile_fits(tensor: TensorInfo, shapes: list[list[int]] | None) -> bool:
    """Whether a profile says how large a tensor may be, and contradicts no size that is fixed."""
    if shapes is None:
        return -1 not in tensor.shape
    return all(
        len(shape) == len(tensor.shape)
        and all(fixed in (-1, size) for size, fixed in zip(shape, tensor.shape, strict=True))
        for shape in shapes
    )


def _told(monitor: Any, phases: list[tuple[str, str | None, int]]) -> bool:
    """Tells a monitor, if there is one, of phases inside each other, as long as it wants to go on."""
    if monitor is None:
        return True
    for name, parent, steps in phases:
        monitor.phase_start(name, parent, steps)
    going = True
    for name, _, steps in reversed(phases):
        for step in range(steps):
            going = going and monitor.step_complete(name, step)
        monitor.phase_finish(name)
    return going


class Network:
    def __init__(self, world: World, flags: int) -> None:
        self.world, self.flags = world, flags
        self.model = onnx.ModelProto()
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []

    num_inputs = property(lambda self: len(self.inputs))
    num_outputs = property(lambda self: len(self.outputs))

    def get_input(self, index: int) -> TensorInfo:
        return self.inputs[index]

    def get_output(self, index: int) -> TensorInfo:
        return self.outputs[index]


@dataclass
class Problem:
    text: str
    name: str = ""
    operator: str = ""

    def desc(self) -> str:
        return self.text

    def node_name(self) -> str:
        return self.name

    def node_operator(self) -> str:
        return self.operator


class Parser:
    def __init__(self, world: World, network: Any, logger: Any) -> None:
        self.world, self._network = world, network.impl
        self._problems: list[Problem] = []

    num_errors = property(lambda self: len(self._problems))

    def get_error(self, index: int) -> Problem:
        return self._problems[index]

    def get_used_vc_plugin_libraries(self) -> list[str]:
        return self.world.plugins

    def parse(self, model: bytes, path: str | None = None) -> bool:
        try:
            loaded = onnx.load_model_from_string(model)
        except DecodeError:
            return self._refused("Failed to parse the model")
        try:
            onnx.load_external_data_for_model(loaded, str(Path(path).parent) if path else "/nowhere")
        except (FileNotFoundError, ValueError, onnx.checker.ValidationError):
            return self._refused("Failed to open file: weights")
        for node in loaded.graph.node:
            if node.op_type in self.world.unsupported:
                self._problems.append(Problem("No importer registered for op", node.name, node.op_type))
        network, constants = self._network, {each.name for each in loaded.graph.initializer}
        network.model = loaded
        network.inputs = tensors(loaded.graph.input, constants)
        network.outputs = tensors(loaded.graph.output, constants)
        return not self._problems and (_computable(loaded) or self._refused("the shapes of a layer do not fit"))

    def _refused(self, text: str) -> bool:
        self._problems.append(Problem(text))
        return False


def _computable(model: onnx.ModelProto) -> bool:
    """Whether a network can be made of a graph; an empty one is no graph."""
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception:  # its exceptions share no base class
        return False
    return bool(model.graph.output)


class Config:
    def __init__(self, world: World) -> None:
        self.world = world
        self.flags = {"TF32"}
        self.pools: dict[str, int] = {}
        self.builder_optimization_level = 3
        self.profiling_verbosity: Any = None
        self.hardware_compatibility_level: Any = None
        self.progress_monitor: Any = None
        self.cache: Any = None
        self.profile: dict[str, list[list[int]]] = {}

    def set_memory_pool_limit(self, pool: Any, size: int) -> None:
        self.pools[pool.name] = size

    def set_flag(self, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag.name)

    def add_optimization_profile(self, profile: Any) -> int:
        self.profile = profile.impl.shapes
        return 0

    def create_timing_cache(self, content: bytes) -> Timing | None:
        return Timing(self.world, content) if content[: len(TIMING_MAGIC)] in (b"", TIMING_MAGIC) else None

    def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
        if self.world.gpu.encode() not in cache.impl.content:
            self.world.log("WARNING", "the timing cache is another device's")
            return False
        self.cache = cache
        return not ignore_mismatch


class Timing:
    def __init__(self, world: World, content: bytes) -> None:
        self.world = world
        self.content = content or TIMING_MAGIC + world.gpu.encode() + b"\n"

    def serialize(self) -> HostMemory:
        return memory(self.world, self.content)


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[list[int]]] = {}

    def set_shape(self, name: str, smallest: Any, usual: Any, largest: Any) -> None:
        if not all(a <= b <= c for a, b, c in zip(smallest, usual, largest, strict=True)):
            raise RuntimeError("Shape provided for min is inconsistent with other shapes.")
        self.shapes[name] = [list(smallest), list(usual), list(largest)]
