"""``make_plan``: for every device, what runs, what it needs, and what is missing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest

from tests.bundles import copied, edit_manifest, put
from trunkline.runtime.backends import Missing
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError
from trunkline.runtime.manifest import Manifest
from trunkline.targets import plan as plans
from trunkline.targets.errors import TargetError
from trunkline.targets.estimate.footprint import FOOTPRINTS
from trunkline.targets.machine import Gpu, Machine
from trunkline.targets.plan import Budget, budget, building_bytes, make_plan
from trunkline.targets.profile import VARIANTS, Profile, profiles

KNOWN = profiles(Path("/nonexistent"))
SUPPORTED = [name for name, each in KNOWN.items() if each.unsupported is None]
GIB = 1 << 30
HERE = Machine("linux", "x86_64", memory_bytes=16 * GIB, free_bytes=10 * GIB)


def with_free(profile: Profile, free_bytes: int) -> Profile:
    return replace(profile, memory=replace(profile.memory, total_bytes=free_bytes, system_bytes=0))


def with_rows(profile: Profile, letter: str, maximum: int) -> Profile:
    rows = [replace(each, maximum=maximum) if each.letter == letter else each for each in profile.rows]
    return replace(profile, rows=tuple(rows))


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretends that some back ends are installed, and no others."""

    def pretend(*names: str) -> None:
        def named(name: str) -> Any:
            missing = None if name in names else Missing(f"no {name} here", f"install {name}")
            return SimpleNamespace(available=lambda: missing)

        monkeypatch.setattr(plans.backends, "named", named)

    return pretend


# Every device


@pytest.mark.parametrize("target", SUPPORTED)
def test_a_plan_for_every_device(half_bundle: Path, target: str) -> None:
    opened, profile = Bundle(half_bundle), KNOWN[target]
    plan = make_plan(opened, profile)
    assert (plan.bundle, plan.target, plan.backend) == (opened.digest, target, profile.backends[0])
    assert plan.memory == Budget(profile.memory.total_bytes, profile.memory.free_bytes, "the profile")
    variant, precision = ("cpu", "float32") if profile.kind == "cpu" else ("trt", "float16")
    assert {(each.variant, each.precision, each.guessed) for each in plan.estimate.stages} == {(variant, precision, 0)}
    assert plan.ready
    assert plan.missing == plan.together == ()
    assert plan.measured == (profile.kind == "cpu")
    assert bool(plan.estimate.building_bytes) == (profile.kind != "cpu")
    never_measured = f"{plan.backend} was never measured: its part of the estimate comes from documentation and reports"
    assert plan.notes == (() if plan.measured else (never_measured,))


@pytest.mark.parametrize(("target", "backend"), [(name, each) for name in SUPPORTED for each in KNOWN[name].backends])
def test_a_plan_for_every_back_end_of_a_device(half_bundle: Path, target: str, backend: str) -> None:
    plan = make_plan(Bundle(half_bundle), KNOWN[target], backend=backend)
    assert plan.backend == backend
    assert {each.variant for each in plan.estimate.stages} == {VARIANTS[backend]}
    assert plan.fits
    if FOOTPRINTS[backend].build is not None:
        assert building_bytes(Bundle(half_bundle), KNOWN[target], backend) == plan.estimate.building_bytes > 0


def test_what_is_not_supported_says_why(half_bundle: Path) -> None:
    with pytest.raises(TargetError, match=r"the target is not supported\n.*jetson-xavier.*\n.*TensorRT 8\.5"):
        make_plan(Bundle(half_bundle), KNOWN["jetson-xavier"])
    with pytest.raises(TargetError, match="the target is not supported"):
        building_bytes(Bundle(half_bundle), KNOWN["jetson-xavier"])


@pytest.mark.parametrize(("target", "backend"), [("x86-cpu", "tensorrt"), ("rtx-40", "openvino"), ("h100", "tvm")])
def test_a_back_end_that_the_device_does_not_run(half_bundle: Path, target: str, backend: str) -> None:
    with pytest.raises(TargetError, match="the target does not run this back end") as caught:
        make_plan(Bundle(half_bundle), KNOWN[target], backend=backend)
    assert ", ".join(KNOWN[target].backends) in str(caught.value)


# What fits


def test_memory_suffices_or_it_does_not(half_bundle: Path) -> None:
    opened = Bundle(half_bundle)
    for target in ("x86-cpu", "jetson-orin-nano-8gb"):
        peak = make_plan(opened, KNOWN[target]).estimate.peak_bytes
        enough = make_plan(opened, with_free(KNOWN[target], peak))
        assert (enough.fits, enough.ready, enough.together) == (True, True, ())
        short = make_plan(opened, with_free(KNOWN[target], peak - 1))
        assert (short.fits, short.ready, short.missing) == (False, False, ())
        assert any(each.fits for each in short.advice)


def test_an_engine_that_runs_but_cannot_be_built_does_not_fit(half_bundle: Path) -> None:
    opened, profile = Bundle(half_bundle), KNOWN["jetson-agx-orin-32gb"]
    found = make_plan(opened, profile).estimate
    assert found.peak_bytes == found.building_bytes > found.running_bytes
    without_build = make_plan(opened, profile, backend="onnxruntime-cuda").estimate.peak_bytes
    plan = make_plan(opened, with_free(profile, max(without_build, found.running_bytes)))
    assert not plan.fits
    assert [each.name for each in plan.advice if each.fits] == ["onnxruntime-cuda"]


@pytest.mark.parametrize("target", SUPPORTED)
def test_the_budget_of_a_device_that_is_elsewhere(target: str) -> None:
    profile = KNOWN[target]
    assert budget(profile) == Budget(profile.memory.total_bytes, profile.memory.free_bytes, "the profile")


def test_the_budget_of_this_machine() -> None:
    assert budget(KNOWN["x86-cpu"], HERE) == Budget(16 * GIB, 10 * GIB, "this machine, now")
    assert budget(KNOWN["jetson-thor"], HERE) == Budget(16 * GIB, 10 * GIB, "this machine, now")
    full = replace(HERE, free_bytes=0)
    assert budget(KNOWN["x86-cpu"], full) == Budget(16 * GIB, 0, "this machine, now")


def test_the_budget_of_this_machines_gpu() -> None:
    """What the driver keeps is taken off; the machine's own memory is not what counts."""
    profile = KNOWN["rtx-40"]
    found = budget(profile, replace(HERE, gpu=Gpu("RTX 4090", "8.9", 24 * GIB)))
    assert (found.total_bytes, found.free_bytes) == (24 * GIB, 24 * GIB - profile.memory.system_bytes)
    assert found.source.startswith("this machine's GPU")
    tiny = budget(profile, replace(HERE, gpu=Gpu("RTX 4090", "8.9", 1)))
    assert tiny.free_bytes == 0


@pytest.mark.parametrize(
    ("target", "machine"),
    [
        ("x86-cpu", replace(HERE, memory_bytes=None)),
        ("x86-cpu", replace(HERE, free_bytes=None)),
        ("rtx-40", replace(HERE, gpu=None)),
        ("rtx-40", replace(HERE, gpu=Gpu("RTX 4090"))),
    ],
)
def test_what_this_machine_does_not_tell_the_profile_does(target: str, machine: Machine) -> None:
    assert budget(KNOWN[target], machine) == budget(KNOWN[target])


# What is missing


@pytest.mark.parametrize("target", [name for name in SUPPORTED if KNOWN[name].kind != "cpu"])
def test_a_bundle_without_the_variant_for_gpus(bundle: Path, half_bundle: Path, target: str) -> None:
    plan, real = make_plan(Bundle(bundle), KNOWN[target]), make_plan(Bundle(half_bundle), KNOWN[target])
    assert plan.fits
    assert not plan.ready
    assert len(plan.missing) == 1
    assert "no trt variant, which `trunkline export --half` writes" in plan.missing[0]
    assert {(each.variant, each.precision) for each in plan.estimate.stages} == {("trt", "float16")}
    assert plan.estimate.running_bytes == pytest.approx(real.estimate.running_bytes, rel=0.05)


def test_an_int8_bundle_on_a_gpu(int8_bundle: Path) -> None:
    plan = make_plan(Bundle(int8_bundle), KNOWN["rtx-50"])
    assert not plan.ready
    assert "no trt variant" in plan.missing[0]
    assert {each.precision for each in plan.estimate.stages} == {"float16"}


def test_a_bundle_for_gpus_alone(half_bundle: Path, tmp_path: Path) -> None:
    folder = copied(half_bundle, tmp_path / "bundle")

    def without_cpu(manifest: dict[str, Any]) -> None:
        manifest["parity"]["gates"].pop("cpu")
        for stage in manifest["stages"].values():
            gone = stage["variants"].pop("cpu")
            for name in (gone["graph"], gone["weights"]):
                manifest["files"].pop(name)
                (folder / name).unlink()

    edit_manifest(folder, without_cpu)
    assert make_plan(Bundle(folder), KNOWN["a100"]).ready
    with pytest.raises(TargetError, match="the bundle holds nothing that this back end runs") as caught:
        make_plan(Bundle(folder), KNOWN["x86-cpu"])
    assert "expected: variant cpu" in str(caught.value)
    assert "found: trt" in str(caught.value)


def test_the_first_back_end_that_is_installed(half_bundle: Path, installed: Callable[..., None]) -> None:
    installed("onnxruntime")
    plan = make_plan(Bundle(half_bundle), KNOWN["x86-cpu"], machine=HERE)
    assert (plan.backend, plan.missing) == ("onnxruntime", ())
    assert plan.memory.source == "this machine, now"


def test_nothing_is_asked_of_this_machine_for_another_device(half_bundle: Path, installed: Callable[..., None]) -> None:
    installed()
    assert make_plan(Bundle(half_bundle), KNOWN["x86-cpu"]).missing == ()


def test_a_device_whose_back_ends_are_all_missing(half_bundle: Path, installed: Callable[..., None]) -> None:
    """A processor's back end is not taken in place of a GPU's, although the bundle and the device have it."""
    installed("onnxruntime", "openvino")
    plan = make_plan(Bundle(half_bundle), KNOWN["jetson-thor"], machine=HERE)
    assert (plan.backend, plan.ready) == ("tensorrt", False)
    assert plan.missing == tuple(
        f"{name} is not here: no {name} here; install {name}"
        for name in ("tensorrt", "onnxruntime-cuda")  # the third is only taken by name
    )


def test_a_back_end_that_was_named_is_not_replaced(half_bundle: Path, installed: Callable[..., None]) -> None:
    installed("onnxruntime-cuda")
    plan = make_plan(Bundle(half_bundle), KNOWN["jetson-thor"], backend="tensorrt", machine=HERE)
    assert plan.backend == "tensorrt"
    assert plan.missing == ("tensorrt is not here: no tensorrt here; install tensorrt",)


@pytest.mark.parametrize(("backend", "complains"), [("tensorrt", True), ("onnxruntime-cuda", False)])
def test_a_window_that_engines_are_too_small_for(sensor_bundle: Path, backend: str, complains: bool) -> None:
    opened = Bundle(sensor_bundle)
    assert opened.manifest.sensor is not None
    blocks = opened.manifest.sensor.blocks + 1
    enough = make_plan(opened, with_rows(KNOWN["jetson-thor"], "Q", blocks), backend=backend)
    assert enough.missing == ()
    short = make_plan(opened, with_rows(KNOWN["jetson-thor"], "Q", blocks - 1), backend=backend)
    wanted = f"a whole sensor window has {blocks} blocks, and the profile takes {blocks - 1} (rows, letter Q)"
    assert short.missing == ((wanted,) if complains else ())


def test_everything_that_is_missing_at_once(sensor_bundle: Path, installed: Callable[..., None]) -> None:
    installed()
    opened, profile = Bundle(sensor_bundle), with_rows(KNOWN["jetson-thor"], "Q", 3)
    plan = make_plan(opened, profile, backend="tensorrt", machine=HERE)
    assert len(plan.missing) == 2


# What else is to be known


def test_int8_on_a_processor_is_noted(int8_bundle: Path) -> None:
    plan = make_plan(Bundle(int8_bundle), KNOWN["x86-cpu"])
    (note,) = plan.notes
    assert note.startswith("vision, text, context, action: int8 on this device if measured: 2.5 to 2.8 times faster")


def test_values_that_could_not_be_derived_are_noted(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "bundle")
    name = Bundle(bundle).manifest.stages["action"].variants["cpu"].graph
    model = onnx.load(folder / name, load_external_data=False)
    node = next(each for each in model.graph.node if each.op_type == "Concat")
    node.op_type = "Einsum"
    put(folder, name, model.SerializeToString())
    plan = make_plan(Bundle(folder), KNOWN["x86-cpu"])
    guessed = {each.stage: each.guessed for each in plan.estimate.stages}
    assert guessed["action"] > 0
    assert guessed["vision"] == 0
    assert f"the size of {guessed['action']} values could not be derived" in plan.notes[0]


def test_a_graph_that_is_refused(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "bundle")
    put(folder, Bundle(bundle).manifest.stages["action"].variants["cpu"].graph, b"\x08\x0a junk")
    with pytest.raises(BundleError, match="a stage's graph is refused"):
        make_plan(Bundle(folder), KNOWN["x86-cpu"])


def test_a_plan_reads_no_weights(half_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And runs nothing: of a bundle only graphs are read."""
    opened = Bundle(half_bundle)
    read, real = [], Bundle.read

    def reading(bundle: Bundle, name: str, *words: Any) -> bytes:
        read.append(name)
        return real(bundle, name, *words)

    monkeypatch.setattr(Bundle, "read", reading)
    make_plan(opened, KNOWN["jetson-thor"])
    manifest: Manifest = opened.manifest
    assert sorted(read) == sorted(stage.variants["trt"].graph for stage in manifest.stages.values())
