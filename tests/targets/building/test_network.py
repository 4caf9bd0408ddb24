"""A stage becomes an engine: every call fits the bindings of every version, and what is refused is refused by name."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest

from tests.pretended_tensorrt.fixtures import SETTINGS, Install
from tests.pretended_tensorrt.library import LEAN_VERSIONS, NEWEST, OLDEST
from tests.pretended_tensorrt.world import TIMING_MAGIC, World
from tests.small_stages import expected, rows, small
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.engines.device import Device, Library, this_system
from trunkline.runtime.engines.settings import BuildRequest, BuildSettings, BuiltEngine, Rows
from trunkline.runtime.errors import BackendError, BundleError, InputError
from trunkline.runtime.manifest import Stage, TensorSpec
from trunkline.targets.building.network import TensorRtBuilder, profile_shapes
from trunkline.targets.building.progress import PARTS


def built(files: StageFiles, builder: TensorRtBuilder | None = None, **changes: Any) -> BuiltEngine:
    settings = replace(SETTINGS, **changes).for_stage(files.stage)
    return (builder or TensorRtBuilder()).build(BuildRequest(files, settings))


def test_a_stage_is_built_and_runs_with_every_version(
    trt_of_every_version: ModuleType, world: World, tmp_path: Path
) -> None:
    files, builder = small(tmp_path, extra=True), TensorRtBuilder()
    inputs = {"x": rows(3), "shift": np.ones((1, 4), np.float32)}
    session = builder.open_engine(built(files, builder).plan, files.stage)
    np.testing.assert_allclose(session.run(inputs)["y"], expected(files, inputs), atol=1e-2)
    session.close()
    (made,) = world.built
    strongly_typed = int(trt_of_every_version.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    assert made["network_flags"] == 1 << strongly_typed
    assert made["flags"] == []  # TF32, which is there unless it is cleared, would round float32 to ten bits
    assert (made["workspace"], made["level"]) == ({"WORKSPACE": 64 << 20}, 2)
    assert made["verbosity"] == "ProfilingVerbosity.DETAILED"
    assert made["profile"] == {"x": [[1, 6], [4, 6], [16, 6]]}


def test_what_builds_and_for_what(trt: ModuleType) -> None:
    builder = TensorRtBuilder()
    assert builder.variant == "trt"
    assert builder.library == Library("tensorrt", NEWEST)
    device = builder.device
    assert device == Device("Pretended GPU", "8.7", device.driver, this_system())


def test_a_stage_of_fixed_shape_needs_no_profile(trt: ModuleType, world: World, tmp_path: Path) -> None:
    files, builder = small(tmp_path, letter=2), TensorRtBuilder()
    with_engine = builder.open_engine(built(files, builder).plan, files.stage)
    np.testing.assert_allclose(with_engine.run({"x": rows(2)})["y"], expected(files, {"x": rows(2)}), atol=1e-2)
    with_engine.close()
    assert world.built[0]["profile"] == {}


def test_all_that_the_parser_refuses_is_named(trt_of_every_version: ModuleType, world: World, tmp_path: Path) -> None:
    world.unsupported = {"MatMul", "Add"}
    with pytest.raises(BackendError) as caught:
        built(small(tmp_path))
    text = str(caught.value)
    for part in (
        "TensorRT's parser refuses a stage",
        "stage small",
        "- MatMul layer/MatMul: No importer registered for op",
        "- Add layer/Add: No importer registered for op",
    ):
        assert part in text
    assert world.built == []


def test_plugins_are_refused(trt: ModuleType, world: World, tmp_path: Path) -> None:
    world.plugins = ["libother.so"]
    with pytest.raises(BackendError, match="the graph needs the plugin libother"):
        built(small(tmp_path))


def test_weights_are_looked_for_beside_the_graph(trt: ModuleType, tmp_path: Path) -> None:
    files = small(tmp_path / "stages")
    elsewhere = replace(files, folder=tmp_path)
    with pytest.raises(BackendError, match=r"(?s)refuses a stage.*the graph: Failed to open file"):
        built(elsewhere)
    assert built(files).plan


@pytest.mark.parametrize("size", [0, 10])
def test_weights_that_are_too_short(trt: ModuleType, tmp_path: Path, size: int) -> None:
    files = small(tmp_path)
    os.truncate(files.folder / "trt.weights", size)
    with pytest.raises(BackendError, match=r"(?s)refuses a stage.*stage small"):
        built(files)


def of_shapes_that_do_not_fit(graph: bytes) -> bytes:
    model = onnx.load_model_from_string(graph)
    product = next(node for node in model.graph.node if node.op_type == "MatMul")
    product.input[0] = product.input[1]
    return model.SerializeToString()


@pytest.mark.parametrize("graph", [b"", b"\0" * 100, None], ids=["empty", "zeros", "shapes"])
def test_broken_graphs(trt: ModuleType, world: World, tmp_path: Path, graph: bytes | None) -> None:
    """As the shared suite asks of back ends that compile when a stage is opened."""
    files = small(tmp_path)
    with pytest.raises(BackendError, match=r"(?s)refuses a stage.*stage small"):
        built(replace(files, graph=of_shapes_that_do_not_fit(files.graph) if graph is None else graph))
    assert world.built == []


def test_what_the_parser_makes_must_be_the_contract(trt: ModuleType, tmp_path: Path) -> None:
    files = small(tmp_path)
    other = replace(files.stage, outputs=(TensorSpec("y", "float32", ("N", 5)),))
    with pytest.raises(BundleError, match=r"outputs are \['y float32 \[\?, 4\]'\], the manifest says"):
        built(replace(files, stage=other))


REFUSALS = {
    "Builder.__init__": "factory function returned nullptr",
    "Builder.create_network": "did not make a network",
    "Builder.create_builder_config": "did not make a configuration",
    "Builder.create_optimization_profile": "did not make a profile",
    "IBuilderConfig.add_optimization_profile": "did not accept the batch profile",
    "IBuilderConfig.set_timing_cache": "did not start a timing cache",
    "Builder.build_serialized_network": "did not build an engine",
}


@pytest.mark.parametrize("call", REFUSALS)
def test_every_no_is_an_error_with_what_was_logged(trt: ModuleType, world: World, tmp_path: Path, call: str) -> None:
    world.refuses[call] = "[memory.cpp] Error Code 2: OutOfMemory"
    with pytest.raises(BackendError) as caught:
        built(small(tmp_path))
    text = str(caught.value)
    assert text.startswith("TensorRT cannot build a stage\n  where: stage small")
    assert REFUSALS[call] in text
    if call != "Builder.__init__":  # the logger is handed over with it
        assert "error: [memory.cpp] Error Code 2: OutOfMemory" in text
    assert "workspace_bytes" in text


def test_a_parser_that_refuses_without_a_word(trt: ModuleType, world: World, tmp_path: Path) -> None:
    world.refuses["OnnxParser.parse"] = "ModelImporter.cpp: failed"
    with pytest.raises(BackendError, match=r"(?s)error: ModelImporter\.cpp: failed.*named no node"):
        built(small(tmp_path))


def test_measurements_are_handed_in_and_out(trt: ModuleType, world: World, tmp_path: Path) -> None:
    files, builder = small(tmp_path), TensorRtBuilder()
    first = built(files, builder).timing_cache
    request = BuildRequest(files, SETTINGS.for_stage(files.stage), first)
    second = builder.build(request).timing_cache
    assert first.startswith(TIMING_MAGIC)
    assert second == first + b"measured\n"


@pytest.mark.parametrize("content", [b"nonsense", TIMING_MAGIC + b"another GPU\n"])
def test_measurements_of_something_else_are_not_used(trt: ModuleType, tmp_path: Path, content: bytes) -> None:
    files = small(tmp_path)
    request = BuildRequest(files, SETTINGS.for_stage(files.stage), content)
    assert TensorRtBuilder().build(request).timing_cache == TIMING_MAGIC + b"Pretended GPU\nmeasured\n"


@pytest.mark.parametrize("hardware", ["ampere_plus", "same_compute_capability"])
def test_engines_for_other_gpus(trt_of_every_version: ModuleType, world: World, tmp_path: Path, hardware: Any) -> None:
    known = hasattr(trt_of_every_version.HardwareCompatibilityLevel, hardware.upper())
    assert known or hardware == "same_compute_capability"
    if known:
        built(small(tmp_path), hardware_compatibility=hardware)
        assert world.built[0]["hardware"] == f"HardwareCompatibilityLevel.{hardware.upper()}"
    else:
        with pytest.raises(BackendError, match="knows no hardware compatibility 'same_compute_capability'"):
            built(small(tmp_path), hardware_compatibility=hardware)


def test_the_oldest_version_lacks_a_level(install: Install) -> None:
    assert not hasattr(install(OLDEST).HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")
    assert hasattr(install(NEWEST).HardwareCompatibilityLevel, "SAME_COMPUTE_CAPABILITY")


def test_version_compatible_engines_bring_no_code(
    trt_of_every_version: ModuleType, world: World, tmp_path: Path
) -> None:
    built(small(tmp_path), version_compatible=True)
    assert world.built[0]["flags"] == ["EXCLUDE_LEAN_RUNTIME", "VERSION_COMPATIBLE"]


def test_progress_rises_through_nested_phases(trt: ModuleType, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    files = small(tmp_path)
    request = BuildRequest(files, SETTINGS.for_stage(files.stage))
    TensorRtBuilder().build(request, lambda *step: told.append(step))
    assert {step for step, _, _ in told} == {"small: Building Engine"}
    done = [each for _, each, _ in told]
    assert done == sorted(set(done))
    assert (done[0], done[-1], {total for _, _, total in told}) == (0, PARTS, {PARTS})
    assert 0 < done[1] < PARTS // 2  # inside the first of two steps


@pytest.mark.parametrize("kind", [KeyboardInterrupt, ZeroDivisionError])
def test_progress_can_stop_a_build(trt: ModuleType, world: World, tmp_path: Path, kind: type[BaseException]) -> None:
    def stop(step: str, done: int, total: int) -> None:
        if done:
            raise kind("enough")

    files = small(tmp_path)
    with pytest.raises((kind, BackendError)) as caught:
        TensorRtBuilder().build(BuildRequest(files, SETTINGS.for_stage(files.stage)), stop)
    assert isinstance(caught.value, kind) or isinstance(caught.value.__cause__, kind)
    assert world.built == []


@pytest.mark.parametrize("version", LEAN_VERSIONS)
def test_the_lean_runtime_builds_nothing(install: Install, version: str) -> None:
    install(version, "lean")
    with pytest.raises(BackendError, match=r"(?s)only the lean runtime.*apt install tensorrt"):
        TensorRtBuilder()


def test_a_version_that_lacks_something_is_refused_by_name(trt: ModuleType) -> None:
    del trt.IBuilderConfig.set_timing_cache
    with pytest.raises(BackendError, match=f"TensorRT {NEWEST} lacks IBuilderConfig.set_timing_cache"):
        TensorRtBuilder()


def stage_of(*inputs: TensorSpec) -> Stage:
    return Stage(inputs, (TensorSpec("y", "float32", ("N", 4)),), {})


def settings(*profile: Rows) -> BuildSettings:
    return BuildSettings(workspace_bytes=1, profile=profile)


def test_profiles_follow_the_contract() -> None:
    stage = stage_of(
        TensorSpec("patches", "float32", (1, 9, 8)),
        TensorSpec("tokens", "float32", ("N", 7)),
        TensorSpec("ids", "int64", ("N",)),
    )
    assert profile_shapes(stage, settings(Rows("N", 1, 2, 8))) == {
        "tokens": ((1, 7), (2, 7), (8, 7)),
        "ids": ((1,), (2,), (8,)),
    }


def test_blocks_of_a_sensor_are_never_fewer_than_three() -> None:
    stage = Stage((TensorSpec("samples", "float32", ("Q", 16, 6)),), (TensorSpec("steps", "float32", (1, "Q", 8)),), {})
    shapes = profile_shapes(stage, settings(Rows("Q", 1, 2, 20)))
    assert shapes == {"samples": ((3, 16, 6), (3, 16, 6), (20, 16, 6))}
    with pytest.raises(InputError, match=r"(?s)less than any call has.*dimension Q.*3 or more"):
        profile_shapes(stage, settings(Rows("Q", 1, 2, 2)))


def test_a_profile_that_says_nothing_of_a_dimension() -> None:
    with pytest.raises(InputError, match="says nothing about a varying dimension"):
        profile_shapes(stage_of(TensorSpec("x", "float32", ("N", 4))), settings(Rows("B", 1, 1, 1)))
