"""Every call of TensorRT fits the real bindings of every version that was read, and nothing is called besides."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import trunkline.runtime
import trunkline.targets
from tests.pretended_tensorrt.fixtures import (
    SETTINGS,
    compiled_cuda,
    cuda,
    install,
    leaky_cuda,
    trt_of_every_version,
    world,
)
from tests.pretended_tensorrt.library import LEAN_VERSIONS, NEWEST, OLDEST, VERSIONS, dump, library
from tests.pretended_tensorrt.world import World
from tests.small_stages import rows, small
from tests.trt_bindings.read_bindings import wanted
from trunkline.runtime.backends import tensorrt_api as api
from trunkline.runtime.backends.tensorrt import int8_layers_of
from trunkline.runtime.backends.tensorrt_members import BUILD, CONSTRUCTED, INSPECT, RUN, SINCE, lacking
from trunkline.runtime.backends.tensorrt_session import RECENT, TensorRtSession
from trunkline.runtime.engines.settings import BuildRequest
from trunkline.targets.building.network import TensorRtBuilder

__all__ = ["compiled_cuda", "cuda", "install", "leaky_cuda", "trt_of_every_version", "world"]

API = Path(api.__file__)
PACKAGES = [Path(package.__file__).parent for package in (trunkline.runtime, trunkline.targets)]

#: Attributes of other things than TensorRT's, in the module that calls it.
PYTHON = {
    *(
        "import_module",
        "suppress",
        "cache",
        "findall",
        "loads",
        "add",
        "append",
        "items",
        "join",
        "lower",
        "replace",
        "strip",
    ),
    *("get", "fromkeys", "__version__", "__init__"),
    *("begin", "step", "end"),  # of a Watcher
}


def test_versions_from_jetpack_6_to_today() -> None:
    assert OLDEST.startswith("10.3.")
    assert {version.split(".")[0] for version in VERSIONS} == {"10", "11"}
    assert tuple(map(int, OLDEST.split(".")[:2])) == api.OLDEST


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_has_all_that_is_used(version: str) -> None:
    assert lacking(library(version, World()), RUN, INSPECT, BUILD) == []


@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_the_lean_runtime_has_all_that_running_takes(version: str) -> None:
    lean = library(version, World(), "lean")
    assert lacking(lean, RUN) == []
    assert api.is_lean(lean)
    assert "EngineInspector.get_engine_information" in lacking(lean, INSPECT)
    assert "Builder.create_network" in lacking(lean, BUILD)


def test_what_only_some_versions_have() -> None:
    lacks = {version: lacking(library(version, World()), SINCE) for version in VERSIONS}
    before = [version for version in VERSIONS if lacks[version]]
    assert {each for version in before for each in lacks[version]} == {
        "HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY"
    }
    assert before == VERSIONS[: len(before)]  # it came and stayed
    assert OLDEST in before
    assert NEWEST not in before


@pytest.mark.parametrize(
    ("version", "kind"), [*((each, "full") for each in VERSIONS), *((each, "lean") for each in LEAN_VERSIONS)]
)
def test_what_was_read_is_what_is_used(version: str, kind: str) -> None:
    """Signatures only: no prose of the vendor's, and nothing that nobody needs."""
    found = dump(version, kind)
    assert found["version"] == version
    assert found["wheel"].endswith(f"=={version}")
    assert found["made_with"].split()[1] == "tests/trt_bindings/read_bindings.py"
    for name, members in found["classes"].items():
        assert set(members) <= set(wanted()[name])
        for spec in members.values():
            texts = spec if isinstance(spec, list) else []
            assert all(text in ("property", "settable", "read-only") or len(text) < 160 for text in texts)


def everything(trt: ModuleType, folder: Path) -> None:
    """Whatever is ever asked of TensorRT."""
    files, builder = small(folder), TensorRtBuilder()
    settings = SETTINGS.for_stage(files.stage)
    built = builder.build(BuildRequest(files, settings))
    builder.build(BuildRequest(files, settings, built.timing_cache))
    session = TensorRtSession(trt, built.plan, files.stage)
    for _ in range(RECENT):
        session.run({"x": rows(2)})
        session.run_resident({"x": rows(3)})
    session.close()
    int8_layers_of(trt, built.plan, files)


def test_every_member_is_used_and_none_besides(trt_of_every_version: ModuleType, world: World, tmp_path: Path) -> None:
    """The pretended library has the members of the list and no more, so what is used besides would have failed."""
    everything(trt_of_every_version, tmp_path)
    for hardware in ("ampere_plus", "same_compute_capability"):
        config = api.new_config(
            trt_of_every_version, api.new_builder(trt_of_every_version), workspace_bytes=1, optimization_level=0
        )
        if hardware == "ampere_plus" or not lacking(trt_of_every_version, SINCE):
            api.set_compatibility(trt_of_every_version, config, version_compatible=True, hardware=hardware)
    world.unsupported = {"MatMul"}
    network = api.new_network(trt_of_every_version, api.new_builder(trt_of_every_version))
    api.parse(trt_of_every_version, network, small(tmp_path / "again").graph, str(tmp_path / "again" / "stage.onnx"))
    listed = {
        f"{kind}.{name}" for table in (RUN, INSPECT, BUILD, SINCE) for kind, names in table.items() for name in names
    }
    listed |= {f"{kind}.__init__" for kind in CONSTRUCTED}
    unused = listed - world.used - set(lacking(trt_of_every_version, SINCE))
    # Types are known by their names. What ours derive from is called, and calls nothing of its base.
    allowed = {"ILogger.Severity", "ILogger.log", "IProgressMonitor.phase_start", "IProgressMonitor.phase_finish"}
    allowed |= {"IProgressMonitor.step_complete"}
    assert {each for each in unused if not each.startswith("DataType.")} <= allowed
    assert world.used <= listed


def attributes(source: str) -> Iterator[str]:
    """Names behind a dot, whoever they belong to."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            yield node.attr


def test_no_attribute_is_overlooked() -> None:
    """Also in lines that no test runs."""
    members = {name for names in wanted().values() for name in names} | set(wanted())
    assert set(attributes(API.read_text())) - members - PYTHON == set()


def test_nobody_else_calls_tensorrt() -> None:
    own = {
        "execute_async_v3",
        "set_tensor_address",
        "deserialize_cuda_engine",
        "build_serialized_network",
        "parse_from_file",
    }
    for package in PACKAGES:
        for path in package.rglob("*.py"):
            source = path.read_text()
            for node in ast.walk(ast.parse(source)):
                imported = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                imported += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not {"tensorrt", "tensorrt_lean", "tensorrt_bindings"} & set(imported), path
            if path != API:
                assert not own & set(attributes(source)), path


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_the_pretended_library_is_strict(version: str, tmp_path: Path) -> None:
    trt = library(version, World())
    builder = trt.Builder(trt.ILogger())
    network = builder.create_network(flags=1)
    for wrong in (
        lambda: trt.Builder(),
        lambda: trt.Builder("logger"),
        lambda: builder.create_network("1"),
        lambda: builder.create_network(1, 2),
        lambda: builder.create_network(flag=1),
        lambda: builder.build_serialized_network(network),
        lambda: trt.OnnxParser(network, trt.ILogger()).parse(b"", 1),
        lambda: setattr(builder.create_builder_config(), "builder_optimization_level", "3"),
    ):
        with pytest.raises(TypeError):
            wrong()
    for wrong in (
        lambda: builder.platform_has_fast_fp16,
        lambda: trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH,
        lambda: setattr(network, "name", "stage"),
        lambda: setattr(network, "num_inputs", 1),
    ):
        with pytest.raises(AttributeError):
            wrong()


def test_numbers_of_flags_differ_between_versions() -> None:
    """So nothing may remember one as a number."""
    flags = [
        dump(version)["classes"]["NetworkDefinitionCreationFlag"]["STRONGLY_TYPED"] for version in (OLDEST, NEWEST)
    ]
    assert flags == [1, 0]
