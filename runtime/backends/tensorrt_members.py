"""Which members of TensorRT are used, by class, and which versions lack.

The lists are complete: ``tests/trt_bindings`` keeps the signatures of exactly these, as the real bindings state them,
and the tests run every call against a library that has nothing else. A version without one of them is refused by name
before anything is opened.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

Members = Mapping[str, tuple[str, ...]]

#: What running an engine takes, by class.
RUN: Members = {
    "ILogger": ("Severity", "log"),
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        *("num_io_tensors", "get_tensor_name", "get_tensor_mode", "get_tensor_dtype", "get_tensor_shape"),
        *("get_tensor_location", "get_tensor_profile_shape", "device_memory_size_v2", "create_execution_context"),
    ),
    "IExecutionContext": (
        *("set_device_memory", "set_input_shape", "set_tensor_address", "get_tensor_shape", "execute_async_v3"),
    ),
    "ExecutionContextAllocationStrategy": ("USER_MANAGED",),
    "TensorIOMode": ("INPUT",),
    "TensorLocation": ("DEVICE",),
    "DataType": ("FLOAT", "HALF", "INT32", "INT64", "UINT8"),
}

#: What looking into an engine takes.
INSPECT: Members = {
    "ICudaEngine": ("create_engine_inspector",),
    "EngineInspector": ("get_engine_information",),
    "LayerInformationFormat": ("JSON",),
}

#: What building one takes.
BUILD: Members = {
    "Builder": (
        *("create_network", "create_builder_config", "create_optimization_profile", "build_serialized_network"),
    ),
    "INetworkDefinition": ("num_inputs", "get_input", "num_outputs", "get_output"),
    "ITensor": ("name", "dtype", "shape"),
    "OnnxParser": ("parse", "num_errors", "get_error", "get_used_vc_plugin_libraries"),
    "ParserError": ("desc", "node_name", "node_operator"),
    "IBuilderConfig": (
        *("set_memory_pool_limit", "builder_optimization_level", "profiling_verbosity", "progress_monitor"),
        *("set_flag", "clear_flag", "hardware_compatibility_level", "add_optimization_profile"),
        *("create_timing_cache", "set_timing_cache"),
    ),
    "IOptimizationProfile": ("set_shape",),
    "ITimingCache": ("serialize",),
    "IHostMemory": ("nbytes",),
    "IProgressMonitor": ("phase_start", "step_complete", "phase_finish"),
    "BuilderFlag": ("TF32", "VERSION_COMPATIBLE", "EXCLUDE_LEAN_RUNTIME"),
    "MemoryPoolType": ("WORKSPACE",),
    "ProfilingVerbosity": ("DETAILED",),
    "HardwareCompatibilityLevel": ("AMPERE_PLUS",),
}

#: What only some versions have.
SINCE: Members = {
    "NetworkDefinitionCreationFlag": ("STRONGLY_TYPED",),
    "HardwareCompatibilityLevel": ("SAME_COMPUTE_CAPABILITY",),
}

#: Made by the classes' own constructors, which have signatures, too.
CONSTRUCTED = ("ILogger", "IProgressMonitor", "Runtime", "Builder", "OnnxParser")


def lacking(trt: ModuleType, *wanted: Members) -> list[str]:
    """Which members a version does not have."""
    return [
        f"{kind}.{member}"
        for members in wanted
        for kind, names in members.items()
        for member in names
        if not hasattr(getattr(trt, kind, None), member)
    ]
