"""A compiler of stages that needs no GPU, and caches with engines that no compiler made, to be spoilt.

The compiler's engines are ONNX Runtime sessions, and faults can be put into them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from trunkline.runtime.backends import Arrays, Session, StageFiles, onnxruntime
from trunkline.runtime.engines import attestation, key, sets
from trunkline.runtime.engines.attestation import Attestation, ParityRun
from trunkline.runtime.engines.cache import EngineCache
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.engines.sets import EngineSet, EngineSets, Pinned
from trunkline.runtime.engines.settings import BuildRequest, BuildSettings, BuiltEngine, Rows
from trunkline.runtime.errors import BackendError
from trunkline.runtime.manifest import Stage
from trunkline.runtime.progress import Progress

LIBRARY = Library("fake", "1.0.0")
DEVICE = Device("Fake Orin", "8.7", "540.4.0", "linux-aarch64")
SETTINGS = BuildSettings(
    workspace_bytes=1 << 30,
    profile=(Rows("B", 1, 1, 1), Rows("I", 1, 1, 8), Rows("N", 1, 20, 64), Rows("Q", 1, 4, 64)),
)
BUNDLE = "b" * 64
PLAN = bytes(range(48))
GRAPH = b"a graph"
#: A stage that no compiler ever sees.
FILES = StageFiles("vision", Stage((), (), {}), GRAPH, Path("/"), None, "2" * 64)


@dataclass
class FakeBuilder:
    """Compiles a stage's ``cpu`` variant.

    Attributes:
        faults: factors that results of nodes are multiplied with, by the node's name.
        built: stages that were compiled, in order.
        measured: timing caches that were handed in.
        settings: how each was compiled.
    """

    faults: Mapping[str, float] = field(default_factory=dict)
    library: Library = LIBRARY
    device: Device = DEVICE
    variant: str = "cpu"
    built: list[str] = field(default_factory=list)
    measured: list[bytes] = field(default_factory=list)
    settings: list[BuildSettings] = field(default_factory=list)

    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        files = request.stage
        progress(f"compiling {files.name}", 0, 1)
        self.built.append(files.name)
        self.measured.append(request.timing_cache)
        self.settings.append(request.settings)
        level = request.settings.optimization_level
        head = json.dumps({"name": files.name, "folder": str(files.folder), "level": level}).encode()
        plan = head + b"\n" + spoilt(files.graph, self.faults)
        return BuiltEngine(plan, request.timing_cache + files.name.encode() + b"\n")

    def open_engine(self, plan: bytes, stage: Stage) -> Session:
        head, _, graph = plan.partition(b"\n")
        known = json.loads(head)
        return FakeSession(StageFiles(known["name"], stage, graph, Path(known["folder"])))


class FakeSession:
    """An engine that runs; how its shapes are declared is another back end's business."""

    def __init__(self, files: StageFiles) -> None:
        self._session: Any = onnxruntime.compiled(files)
        self._outputs = [spec.name for spec in files.stage.outputs]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.float32]]:
        return dict(zip(self._outputs, self._session.run(self._outputs, dict(inputs)), strict=True))

    def close(self) -> None:
        del self._session


class FailingBuilder(FakeBuilder):
    """Dies at a stage, as a compiler out of memory does."""

    def __init__(self, stage: str) -> None:
        super().__init__()
        self._stage = stage

    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        if request.stage.name == self._stage:
            raise BackendError("the compiler ran out of memory", where=f"stage {self._stage}")
        return super().build(request, progress)


def spoilt(graph: bytes, faults: Mapping[str, float]) -> bytes:
    """A graph in which results of nodes are multiplied; nodes that are not in it do not matter."""
    model = onnx.load_model_from_string(graph)
    nodes = []
    for node in model.graph.node:
        nodes.append(node)
        if node.name in faults:
            result, node.output[0] = node.output[0], node.output[0] + "/right"
            factor = onnx.numpy_helper.from_array(np.float32(faults[node.name]), f"{node.name}/factor")
            model.graph.initializer.append(factor)
            nodes.append(onnx.helper.make_node("Mul", [node.output[0], factor.name], [result], f"{node.name}/fault"))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model.SerializeToString()


def a_key(stage: str = "vision", **changes: object) -> EngineKey:
    """A key that fits ``SETTINGS``; every field can be another."""
    settings = replace(SETTINGS, profile=SETTINGS.profile[:1])
    made = EngineKey(key.FORMAT, key.SCHEMA, key.RECIPE, stage, "cpu", "1" * 64, "2" * 64, LIBRARY, DEVICE, settings)
    return replace(made, **changes)  # type: ignore[arg-type]


def a_run(passed: bool = True, bundle: str = BUNDLE) -> ParityRun:
    return ParityRun(bundle, passed, 12, 1e-5 if passed else 0.5, 0, 1e-3, {"vision": 1e-6}, "onnxruntime 1.0")


def attested(made: EngineKey, plan: bytes, parity: ParityRun | None = None) -> Attestation:
    return Attestation(
        attestation.FORMAT,
        attestation.SCHEMA,
        made,
        plan_bytes=len(plan),
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        build_seconds=1.5,
        built="2026-01-01T00:00:00+00:00",
        target="fake",
        versions={"trunkline": "0"},
        parity=parity,
    )


def a_set(engines: Mapping[str, Attestation], bundle: str = BUNDLE) -> EngineSet:
    pinned = {stage: Pinned(each.key, each.plan_sha256) for stage, each in engines.items()}
    made = sets.FORMAT, sets.SCHEMA, bundle, LIBRARY, DEVICE
    return EngineSet(*made, engines=pinned, parity=a_run(bundle=bundle), verified="2026-01-01T00:00:00+00:00")


#: Of ``FILES``.
KEY = a_key(graph=hashlib.sha256(GRAPH).hexdigest())


def put(cache: EngineCache, key: EngineKey = KEY, plan: bytes = PLAN) -> Attestation:
    """An engine that passed, and that nobody holds."""
    found = attested(key, plan, a_run())
    with cache.building(key):
        cache.publish(plan, found).close()
    return found


def used(cache: EngineCache, key: EngineKey = KEY, plan: bytes = PLAN, bundle: str = BUNDLE) -> EngineSets:
    """A cache whose one engine is in use."""
    in_use = EngineSets(cache, key.library, key.device)
    found = put(cache, key, plan)
    with in_use.assembling(bundle):
        in_use.use(replace(a_set({key.stage: found}, bundle), library=key.library, device=key.device))
    return in_use


def place(cache: EngineCache, key: EngineKey = KEY) -> Path:
    return cache.root / key.digest


def linked(path: Path, tmp_path: Path) -> None:
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")


def hard_linked(path: Path, tmp_path: Path) -> None:
    os.link(path, tmp_path / "elsewhere")


def fifo(path: Path, tmp_path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path, tmp_path: Path) -> None:
    path.unlink()
    path.mkdir()


def missing(path: Path, tmp_path: Path) -> None:
    path.unlink()


def writable(path: Path, tmp_path: Path) -> None:
    path.chmod(0o666)


def group_writable(path: Path, tmp_path: Path) -> None:
    path.chmod(0o620)


#: Ways to spoil a file of the cache, with what is said of it.
PLANTED = {
    linked: "is a link",
    hard_linked: "has 2 names",
    fifo: "is no plain file",
    a_folder: "is no plain file",
    missing: "is missing",
    writable: "its group or everybody may write",
    group_writable: "its group or everybody may write",
}
