"""What the pretended TensorRT is to do, what was done with it, and what its parts have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from tests.cuda_kit import FakeCuda

MAGIC = b"plan of a pretended TensorRT\n"
TIMING_MAGIC = b"measurements of a pretended TensorRT\n"
SCRATCH_BYTES = 4096
KINDS = {"FLOAT": np.float32, "HALF": np.float16, "INT32": np.int32, "INT64": np.int64, "UINT8": np.uint8}
Sizes = tuple[int, ...]
_ONNX_KINDS = {1: "FLOAT", 10: "HALF", 6: "INT32", 7: "INT64", 2: "UINT8"}


@dataclass
class World:
    """What the pretended library is to do, and what was done with it.

    Attributes:
        refuses: calls that answer no, by "Class.member", with what is logged.
        unsupported: operators that the parser does not know.
        plugins: libraries that the parser says it needs.
        drops: inputs that engines do not have.
        layers: how an engine describes itself; by default as 10.x does.
        gpu: that engines are built for.
        built: settings of every engine that was built.
        contexts: how many were made.
        runs: how many were computed.
        faults: what runs did that ends a real GPU's context.
        host_code_ran: how often code for the processor, out of a plan, would have run.
        version: of the library.
        lean: whether it is the lean runtime.
        severities: of its logger.
        phases: name, parent and steps of what a build tells of.
        used: members that were touched.
        loggers: that the library was given; it keeps the first.
    """

    cuda: FakeCuda | None = None
    refuses: dict[str, str] = field(default_factory=dict)
    unsupported: set[str] = field(default_factory=set)
    plugins: list[str] = field(default_factory=list)
    drops: set[str] = field(default_factory=set)
    layers: Callable[[onnx.ModelProto], Any] | None = None
    used: set[str] = field(default_factory=set)
    gpu: str = "Pretended GPU"
    built: list[dict[str, Any]] = field(default_factory=list)
    loggers: list[Any] = field(default_factory=list)
    contexts: int = 0
    runs: int = 0
    faults: list[str] = field(default_factory=list)
    host_code_ran: int = 0
    version: str = ""
    lean: bool = False
    severities: Any = None
    phases: list[tuple[str, str | None, int]] = field(
        default_factory=lambda: [("Building Engine", None, 2), ("Timing", "Building Engine", 4)]
    )

    def says_no(self, call: str) -> bool:
        if call in self.refuses:
            if self.loggers:
                self.log("ERROR", self.refuses[call])
            return True
        return False

    def log(self, severity: str, text: str) -> None:
        logger = self.loggers[0]
        logger.log(getattr(self.severities, severity), text)


class Enumerator(int):
    """A member of an enumeration; two versions may give one name different numbers."""

    def __new__(cls, kind: str, name: str, number: int) -> Enumerator:
        made = super().__new__(cls, number)
        made.kind, made.name = kind, name
        return made

    kind: str
    name: str

    def __repr__(self) -> str:
        return f"{self.kind}.{self.name}"


class HostMemory(bytes):
    """Memory of the library's, which reads as bytes."""

    @property
    def nbytes(self) -> int:
        self.world.used.add("IHostMemory.nbytes")
        return len(self)

    world: World


def memory(world: World, content: bytes) -> HostMemory:
    made = HostMemory(content)
    made.world = world
    return made


@dataclass
class TensorInfo:
    name: str
    kind: str
    shape: tuple[int, ...]
    letters: tuple[int | str, ...]
    kinds: Any = None

    @property
    def dtype(self) -> Any:
        return Enumerator("DataType", self.kind, 0)


def tensors(values: Any, constants: set[str]) -> list[TensorInfo]:
    found = []
    for value in values:
        if value.name not in constants:
            letters = tuple(each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim)
            shape = tuple(-1 if isinstance(each, str) else each for each in letters)
            found.append(TensorInfo(value.name, _ONNX_KINDS[value.type.tensor_type.elem_type], shape, letters))
    return found
