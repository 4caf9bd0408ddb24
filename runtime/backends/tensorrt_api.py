"""Every call of TensorRT, and all that differs between its versions, 10.3 to 11.x.

Callers hold TensorRT's objects and hand them back; nobody else touches their members. Which members are used is listed
in :mod:`trunkline.runtime.backends.tensorrt_members`, and checked against the real bindings, version by version.

What differs, and where it is handled:

- Networks are strongly typed in 11 whatever is asked, in 10 if it is asked for (:func:`new_network`).
- Levels of hardware compatibility came one by one (:func:`set_compatibility`).
- The lean runtime has neither builder nor inspector, and its module another name (:func:`library`, :func:`is_lean`).
- ``device_memory_size`` was dropped in 11 (:func:`scratch_bytes`).
- Calls with several signatures are made so that each version has one that fits (:func:`new_context`,
  :func:`open_engine`, :func:`build`).
- Precision flags, calibrators and dynamic ranges, gone in 11, are never used: precision is in the graph.

TensorRT answers with None or False where it will not. That is a :class:`TensorRtError` here, and one of our own errors
where the call stands in a block of :func:`~trunkline.runtime.backends.tensorrt_log.asking`.

**Nothing here has run on a device.**
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Protocol

from trunkline.runtime.backends.contract import VARYING, Port
from trunkline.runtime.backends.tensorrt_log import LOG, TensorRtError

FULL, LEAN = "tensorrt", "tensorrt_lean"
OLDEST = (10, 3)

Shape = tuple[int, ...]

_DTYPES = {"FLOAT": "float32", "HALF": "float16", "INT32": "int32", "INT64": "int64", "UINT8": "uint8"}
_HARDWARE = {"ampere_plus": "AMPERE_PLUS", "same_compute_capability": "SAME_COMPUTE_CAPABILITY"}

_WORST_KEPT = 2  # internal errors are 0, errors 1, warnings 2


def library() -> ModuleType:
    """The full library if it can be imported, else the lean one. Never both: a process may hold only one.

    Where there is no driver, using the lean one ends the process: ask
    :func:`trunkline.runtime.cuda.driver.probe` first.

    Raises:
        ImportError: neither is installed; the full one's reason.
    """
    try:
        return importlib.import_module(FULL)
    except ImportError as error:
        with contextlib.suppress(ImportError):
            return importlib.import_module(LEAN)
        raise error


def is_lean(trt: ModuleType) -> bool:
    """Whether this is the lean runtime, which only runs engines that were built version-compatible."""
    return not hasattr(trt, "Builder")


def version(trt: ModuleType) -> str:
    """Such as 10.3.0."""
    return str(trt.__version__)


def is_too_old(trt: ModuleType) -> bool:
    """Whether a version is older than those that were looked at."""
    return tuple(int(part) for part in re.findall(r"\d+", version(trt))[:2]) < OLDEST


@functools.cache
def _logger(trt: ModuleType) -> Any:
    """The logger of the process: TensorRT keeps the first it is given, for everything."""

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]  # its base comes with the library
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, msg: str) -> None:
            if int(severity) <= _WORST_KEPT:
                LOG.add(f"{severity.name.lower().replace('_', ' ')}: {msg}")

    return Logger()


def _granted(answer: Any, what: str) -> Any:
    """An answer, unless it is a no."""
    if answer is None or answer is False:
        raise TensorRtError(f"TensorRT did not {what}")
    return answer


class Watcher(Protocol):
    """Who is told how far a build is. Called from threads of TensorRT's own, which do not expect exceptions."""

    def begin(self, phase: str, parent: str | None, steps: int) -> None: ...

    def step(self, phase: str, step: int) -> bool:
        """Whether to go on."""

    def end(self, phase: str) -> None: ...


def new_builder(trt: ModuleType) -> Any:
    return trt.Builder(_logger(trt))


def new_network(trt: ModuleType, builder: Any) -> Any:
    """An empty network in which every type is the graph's own.

    10.x has to be asked for that. 11.x knows no other networks, and takes the flag without a word; a version that has
    dropped it needs none.
    """
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return _granted(builder.create_network(0 if flag is None else 1 << int(flag)), "make a network")


def parse(trt: ModuleType, network: Any, graph: bytes, path: str | None) -> tuple[Any, list[str]]:
    """Reads an ONNX graph into a network.

    Args:
        trt: the library.
        network: empty.
        graph: the ONNX file's bytes.
        path: of a file, that need not be there, beside which weights outside the graph lie.

    Returns:
        The parser, whose memory the network uses until it is built; and what is wrong, node by node.
    """
    parser = trt.OnnxParser(network, _logger(trt))
    accepted = parser.parse(graph, path)
    problems = [_described(parser.get_error(place)) for place in range(parser.num_errors)]
    if accepted:  # only then does the parser know
        problems += [f"the graph needs the plugin {name}" for name in parser.get_used_vc_plugin_libraries()]
    elif not problems:
        raise TensorRtError("TensorRT's parser refused the graph and named no node")
    return parser, list(dict.fromkeys(problems))


def _described(error: Any) -> str:
    named = " ".join(filter(None, (error.node_operator(), error.node_name()))) or "the graph"
    return f"{named}: {(error.desc() or 'no reason given').strip()}"


def network_ports(network: Any) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of a network."""
    inputs = [network.get_input(place) for place in range(network.num_inputs)]
    outputs = [network.get_output(place) for place in range(network.num_outputs)]
    return [_port(each) for each in inputs], [_port(each) for each in outputs]


def _port(tensor: Any) -> Port:
    return Port(tensor.name, _dtype(tensor.dtype), _sizes(tensor.shape))


def new_config(trt: ModuleType, builder: Any, *, workspace_bytes: int, optimization_level: int) -> Any:
    """A configuration that adds nothing to the graph.

    Float32 is float32: left alone, TensorRT multiplies float32 with ten bits of mantissa where the GPU can. Engines
    tell of which layers they consist, so that int8 can be counted and faults be found.
    """
    config = _granted(builder.create_builder_config(), "make a configuration")
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace_bytes)
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)
    return config


def set_compatibility(trt: ModuleType, config: Any, *, version_compatible: bool, hardware: str) -> None:
    """Lets newer versions or other GPUs run the engine.

    A version-compatible engine may hold a runtime, which is code that is run when it is opened. Ours do not: whoever
    opens them has one.

    Raises:
        TensorRtError: this version does not have the level.
    """
    if version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    if hardware == "none":
        return
    level = getattr(trt.HardwareCompatibilityLevel, _HARDWARE[hardware], None)
    if level is None:
        raise TensorRtError(f"TensorRT {version(trt)} knows no hardware compatibility {hardware!r}")
    config.hardware_compatibility_level = level


def add_profile(builder: Any, config: Any, shapes: Mapping[str, tuple[Shape, Shape, Shape]]) -> None:
    """Says how large inputs may be: smallest, usual and largest shape of each input that varies."""
    profile = _granted(builder.create_optimization_profile(), "make a profile")
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise TensorRtError("TensorRT did not accept the batch profile")


def use_timing_cache(config: Any, content: bytes) -> Any:
    """Hands over earlier measurements; empty for none. What is of another device or version is not taken.

    Returns:
        The cache that the build uses, which must be kept until it is over.
    """
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        _granted(config.set_timing_cache(cache, False), "start a timing cache")
    return cache


def measurements(cache: Any) -> bytes:
    """All measurements that are known after a build."""
    memory = cache.serialize()
    return b"" if memory is None else bytes(memory)


def watch(trt: ModuleType, config: Any, watcher: Watcher) -> None:
    """Tells a watcher how far the build is."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]  # its base comes with the library
        def __init__(self) -> None:
            super().__init__()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            watcher.begin(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return watcher.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            watcher.end(phase_name)

    config.progress_monitor = Monitor()


def build(builder: Any, network: Any, config: Any) -> bytes:
    """The engine; takes minutes, and lets other threads run.

    Raises:
        TensorRtError: it could not be built, or the watcher stopped it.
    """
    memory = _granted(builder.build_serialized_network(network, config), "build an engine")
    if not memory.nbytes:
        raise TensorRtError("TensorRT built an empty engine")
    return bytes(memory)


def open_engine(trt: ModuleType, plan: bytes) -> tuple[Any, Any]:
    """Runtime and engine; the runtime must be kept as long as the engine. Code inside a plan is refused.

    Raises:
        TensorRtError: the plan is of another version or GPU, damaged, or needs code that is not here.
    """
    runtime = trt.Runtime(_logger(trt))
    runtime.engine_host_code_allowed = False
    return runtime, _granted(runtime.deserialize_cuda_engine(plan), "open the engine")


def engine_ports(trt: ModuleType, engine: Any) -> tuple[list[Port], list[Port]]:
    """Inputs and outputs of an engine.

    Raises:
        TensorRtError: one of them is not in GPU memory; stages have none that are not.
    """
    inputs: list[Port] = []
    outputs: list[Port] = []
    for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
        if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE:
            raise TensorRtError(f"{name} is not in GPU memory")
        port = Port(name, _dtype(engine.get_tensor_dtype(name)), _sizes(engine.get_tensor_shape(name)))
        (inputs if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT else outputs).append(port)
    return inputs, outputs


def shape_range(engine: Any, name: str) -> tuple[Shape, Shape]:
    """Smallest and largest shape of an input that varies."""
    smallest, _, largest = engine.get_tensor_profile_shape(name, 0)
    return tuple(smallest), tuple(largest)


def scratch_bytes(engine: Any) -> int:
    """Memory that a context of the engine needs while it runs, at most. The older name for it was dropped in 11."""
    return int(engine.device_memory_size_v2)


def new_context(trt: ModuleType, engine: Any, scratch: int, scratch_bytes: int) -> Any:
    """A context that works in memory of the caller's.

    Raises:
        TensorRtError: there is no memory for it.
    """
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    context = _granted(engine.create_execution_context(strategy), "make a context")
    if scratch_bytes:
        context.set_device_memory(scratch, scratch_bytes)
    return context


def bind(context: Any, name: str, address: int) -> None:
    """Says where on the GPU an input or output lies."""
    _granted(context.set_tensor_address(name, address), f"take the address of {name}")


def set_shape(context: Any, name: str, shape: Shape) -> None:
    """Says how large an input is.

    Raises:
        TensorRtError: the engine was built for other sizes.
    """
    _granted(context.set_input_shape(name, shape), f"take {name} of shape {list(shape)}")


def shape_of(context: Any, name: str) -> Shape:
    """How large an input or output is, as far as the inputs' shapes were given."""
    return tuple(context.get_tensor_shape(name))


def enqueue(context: Any, stream: int) -> None:
    """Puts a run into a stream.

    Raises:
        TensorRtError: it could not be.
    """
    _granted(context.execute_async_v3(stream), "start a run")


def layers(trt: ModuleType, engine: Any) -> list[dict[str, Any]]:
    """What an engine consists of, as it tells: one record per layer, whose fields differ between versions.

    Raises:
        TensorRtError: it tells nothing that could be read.
    """
    inspector = _granted(engine.create_engine_inspector(), "look into the engine")
    text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    try:
        found = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError) as error:
        raise TensorRtError("TensorRT describes the engine in a form that is not known") from error
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise TensorRtError("the engine was built without a description of its layers")
    return found


def _dtype(dtype: Any) -> str:
    return _DTYPES.get(dtype.name, dtype.name)


def _sizes(shape: Any) -> tuple[int | str, ...]:
    return tuple(VARYING if size < 0 else int(size) for size in shape)
