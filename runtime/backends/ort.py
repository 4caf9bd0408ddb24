"""What the back ends on ONNX Runtime share: its import, sessions over checked bytes, and what a run tells of itself.

Providers are those that a session was asked for, and no others: left alone, ONNX Runtime makes a session that failed
again on the processor, prints that, and goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trunkline.runtime.backends import StageFiles
from trunkline.runtime.backends.contract import Port
from trunkline.runtime.backends.denormals import flushed
from trunkline.runtime.backends.threads import physical_cores
from trunkline.runtime.errors import BackendError
from trunkline.runtime.record import is_text

CPU = "CPUExecutionProvider"

#: Options of every session, on any provider.
SETTINGS = {
    # Idle worker threads sleep instead of spinning: stages run one after another, and a spinning pool of the stage
    # before would take the cores of the next.
    "session.intra_op.allow_spinning": "0",
    # See runtime/backends/denormals.py; this is for the library's own threads.
    "session.set_denormal_as_zero": "1",
    # What was scanned is what is read: a file may carry the mark of another format.
    "session.load_model_format": "ONNX",
}

_DTYPES = {"tensor(uint8)": "uint8", "tensor(int64)": "int64", "tensor(float)": "float32"}

#: Operators that are linear layers in int8 once a graph is optimised.
INT8_KERNELS = frozenset({"MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul", "QGemm"})


@dataclass(frozen=True)
class Kernel:
    """One operator of an optimised graph as it ran.

    Attributes:
        operator: its type.
        provider: what ran it.
        floats: whether it gives floating-point numbers; what does not is shapes, masks and indices.
    """

    operator: str
    provider: str
    floats: bool


def library() -> ModuleType:
    """onnxruntime, which from 1.29 on uploads usage data from the moment it is imported, unless told not to."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime  # optional

    if os.environ["ORT_DISABLE_TELEMETRY"] == "1":
        onnxruntime.disable_telemetry_events()  # it may have been imported before
    return onnxruntime


def is_int8(graph: bytes) -> bool:
    """Whether a stage quantises anything; its operators' names stand in the file as they are."""
    return b"QuantizeLinear" in graph


def options(files: StageFiles, settings: Mapping[str, str]) -> Any:
    """The library's options for a session on a stage, with ``settings`` beside those of every session.

    Raises:
        BackendError: the stage lies where the library cannot look.
    """
    made = library().SessionOptions()
    made.intra_op_num_threads = files.threads or physical_cores()
    made.inter_op_num_threads = 1
    made.log_severity_level = 4  # errors come as exceptions, and would be printed as well
    for key, value in {**SETTINGS, **settings}.items():
        made.add_session_config_entry(key, value)
    folder = _utf8(files.folder, "rename the folder, copy the bundle elsewhere, or load it with OpenVINO")
    made.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return made


def _utf8(path: Path, fix: str) -> str:
    """The path as the library takes it."""
    if not is_text(str(path)):
        raise BackendError("ONNX Runtime takes no path that is not UTF-8", where=ascii(str(path)), fix=fix)
    return str(path)


def session(files: StageFiles, options: Any, providers: Sequence[str | tuple[str, dict[str, str]]]) -> Any:
    """The library's own session on a stage; external tensors are mapped from ``files.folder`` by ONNX Runtime.

    Raises:
        BackendError: the library refuses the stage.
    """
    try:
        with flushed():
            return library().InferenceSession(files.graph, options, providers=list(providers), enable_fallback=0)
    except Exception as error:  # the library's exceptions share no base class
        raise BackendError(
            "ONNX Runtime cannot load a stage",
            where=f"stage {files.name}",
            found=str(error).strip()[:500],
            fix="update onnxruntime (1.23 or newer), or export the bundle again",
        ) from error


def run(session: Any, name: str, outputs: Sequence[str] | None, inputs: Mapping[str, NDArray[np.generic]]) -> list[Any]:
    """Outputs of a session of this module's, in order; all of them for None.

    Raises:
        BackendError: ONNX Runtime failed, out of memory for instance.
    """
    try:
        with flushed():
            return list(session.run(outputs, dict(inputs)))
    except Exception as error:  # the library's exceptions share no base class
        raise failed_run(name, error) from error


def ports(tensors: list[Any]) -> list[Port]:
    """Inputs or outputs as the library reports them."""
    return [Port(each.name, _DTYPES.get(each.type, each.type), tuple(each.shape)) for each in tensors]


def failed_run(name: str, error: Exception | str) -> BackendError:
    found = str(error).strip()[:500]
    return BackendError("ONNX Runtime failed while it ran a stage", where=f"stage {name}", found=found)


@contextlib.contextmanager
def profiling(options: Any) -> Iterator[None]:
    """Sessions made with these options inside the block write down what they run; :func:`kernels` reads it.

    Raises:
        BackendError: there is no folder for temporary files.
    """
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        except OSError as error:
            place = error.filename or "the folder for temporary files"
            raise _no_room(place, error.strerror or str(error)) from error
        options.enable_profiling = True
        options.profile_file_prefix = _utf8(Path(folder) / "profile", "set TMPDIR to another folder")
        yield


def _no_room(folder: object, found: str) -> BackendError:
    """The library never says so itself: what it cannot write is missing, and no error."""
    return BackendError(
        "ONNX Runtime could not write down which kernels it ran",
        where=folder,
        expected="room for a few megabytes",
        found=found,
        fix="free space there, or set TMPDIR to a folder that has some",
    )


def kernels(session: Any, name: str, run: Callable[[], object]) -> list[Kernel]:
    """What one run of a session really executes; the optimised graph, as a file, would hold the weights again.

    Args:
        session: made inside :func:`profiling`. Nothing is written down after this.
        name: of its stage, for messages.
        run: runs it once.

    Raises:
        BackendError: the run failed, or what it wrote down is not all there.
    """
    try:
        run()
    except BackendError:
        raise
    except Exception as error:  # the library's exceptions share no base class
        raise failed_run(name, error) from error
    finally:
        profile = session.end_profiling()
    try:
        events = json.loads(Path(profile).read_bytes())
    except (OSError, ValueError) as error:
        raise _no_room(Path(profile).parent, _shortfall(Path(profile), error)) from error
    # One event per node and run; others tell how long the run as a whole, or loading, took.
    nodes = [event["args"] for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    return [Kernel(node["op_name"], node["provider"], _gives_floats(node)) for node in nodes]


def _shortfall(profile: Path, error: OSError | ValueError) -> str:
    """Why a profile cannot be read."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    free = shutil.disk_usage(profile.parent).free
    return f"a record that stops after {profile.stat().st_size} bytes, {free} bytes free"


def _gives_floats(node: Mapping[str, Any]) -> bool:
    outputs = node.get("output_type_shape")
    if outputs is None:  # the library did not say
        return True
    return any("float" in kind or "double" in kind for output in outputs for kind in output)
