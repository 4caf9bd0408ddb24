"""Engines are built, seen to decide, and only then used; whatever goes wrong leaves those of before in use."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.bundles import edit_manifest, put
from tests.engines_kit import DEVICE, LIBRARY, SETTINGS, FailingBuilder, FakeBuilder
from trunkline.runtime import record
from trunkline.runtime.backends import onnxruntime
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines.cache import EngineCache
from trunkline.runtime.engines.key import EngineKey
from trunkline.runtime.engines.sets import EngineSets
from trunkline.runtime.engines.settings import BuildRequest, BuiltEngine, Rows
from trunkline.runtime.engines.timing import TimingCache
from trunkline.runtime.errors import BackendError, InputError, IntegrityError, ParityError
from trunkline.runtime.progress import Progress
from trunkline.runtime.stage_files import stage_files
from trunkline.targets.building import verify
from trunkline.targets.building.run import Memory, Target, build, verify_again

TARGET = Target("fake-orin", SETTINGS)
STAGES = ["vision", "text", "context", "action"]
#: A product in the middle of the vision tower, off by half: scores move by a thousand times the gate.
LAYER = "features.trunk.blocks.1.mlp.fc1/MatMul"
FAULT = {LAYER: 1.5}
SPAWN = multiprocessing.get_context("spawn")
SECONDS = 300


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return Bundle(bundle)


def in_use(cache: EngineCache, bundle: Bundle) -> dict[str, bytes]:
    """The engines that a back end would run."""
    sets = EngineSets(cache, LIBRARY, DEVICE)
    plans = {}
    for stage in bundle.manifest.stages:
        with stage_files(bundle, stage, "cpu") as files:
            engine = sets.open(files, "cpu", bundle.digest)
        plans[stage] = engine.plan()
        engine.close()
    return plans


def entries(cache: EngineCache) -> list[Path]:
    return [path for path in cache.root.iterdir() if len(path.name) == 64]


def test_a_build(cache: EngineCache, opened: Bundle) -> None:
    builder, steps = FakeBuilder(), []
    report = build(opened, builder, TARGET, cache=cache, progress=lambda *step: steps.append(step))
    assert builder.built == STAGES
    assert [stage.stage for stage in report.stages] == STAGES
    assert all(stage.compiled for stage in report.stages)
    assert (report.bundle, report.target, report.library, report.device) == (
        *(opened.digest, "fake-orin"),
        *(LIBRARY, DEVICE),
    )
    assert report.notes == ()
    assert report.parity.passed
    assert report.parity.tensor_differences == dict.fromkeys(STAGES, 0.0)
    assert str(report.parity.reference).startswith("onnxruntime 1.")
    assert {step for step, _, _ in steps} >= {"engines", "compiling vision", "golden vectors"}
    assert list(in_use(cache, opened)) == STAGES


def test_the_attestation_says_what_was_seen(cache: EngineCache, opened: Bundle) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    for path in entries(cache):
        text = json.loads((path / "attestation.json").read_text())
        assert text["key"]["library"] == {"name": "fake", "version": "1.0.0"}
        assert text["key"]["device"]["driver"] == "540.4.0"
        assert text["plan_bytes"] == (path / "engine.plan").stat().st_size
        assert text["parity"]["bundle"] == opened.digest
        assert text["parity"]["passed"] is True
        assert text["parity"]["decisions"] == 12
        assert text["target"] == "fake-orin"
        assert set(text["versions"]) == {"trunkline", "python", "numpy"}


def test_what_is_there_is_not_built_again(cache: EngineCache, opened: Bundle) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    plans, again = in_use(cache, opened), FakeBuilder()
    report = build(opened, again, TARGET, cache=cache)
    assert again.built == []
    assert [stage.compiled for stage in report.stages] == [False] * 4
    assert in_use(cache, opened) == plans


def test_other_candidates_are_another_engine_of_one_stage(cache: EngineCache, opened: Bundle) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    again, rows = FakeBuilder(), (*SETTINGS.profile[:2], Rows("N", 1, 8, 100), SETTINGS.profile[3])
    build(opened, again, Target("more", replace(SETTINGS, profile=rows)), cache=cache)
    assert again.built == ["action"]


@pytest.mark.parametrize(
    "change", [{"library": replace(LIBRARY, version="2")}, {"device": replace(DEVICE, driver="6")}]
)
def test_another_library_or_driver_builds_everything(
    cache: EngineCache, opened: Bundle, change: dict[str, Any]
) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    again = FakeBuilder(**change)
    report = build(opened, again, TARGET, cache=cache)
    assert again.built == STAGES
    assert len(entries(cache)) == 8
    assert ["measurements of earlier builds were dropped" in note for note in report.notes] == [True]


def test_measurements_go_from_stage_to_stage_and_build_to_build(cache: EngineCache, opened: Bundle) -> None:
    builder = FakeBuilder()
    build(opened, builder, TARGET, cache=cache)
    assert builder.measured == [b"", b"vision\n", b"vision\ntext\n", b"vision\ntext\ncontext\n"]
    again = FakeBuilder()
    build(opened, again, Target("x", replace(SETTINGS, optimization_level=1)), cache=cache)
    assert again.measured[0] == b"vision\ntext\ncontext\naction\n"
    assert TimingCache(cache, LIBRARY, DEVICE).find()[1] is None


def test_a_damaged_engine_is_built_again_and_named(cache: EngineCache, opened: Bundle) -> None:
    report = build(opened, FakeBuilder(), TARGET, cache=cache)
    plan = cache.root / report.stages[2].key / "engine.plan"
    content = bytearray(plan.read_bytes())
    content[len(content) // 2] ^= 1
    plan.write_bytes(content)
    again = FakeBuilder()
    report = build(opened, again, TARGET, cache=cache)
    assert again.built == ["context"]
    assert report.notes == (
        "context: the engine in the cache was refused and removed: engine.plan is not what was attested: "
        "its SHA-256 differs",
    )


def test_two_bundles_share_what_is_the_same(cache: EngineCache, opened: Bundle, tmp_path: Path) -> None:
    """Heads were trained further: the towers' engines stay, the heads' are built, and both bundles run their own."""
    build(opened, FakeBuilder(), TARGET, cache=cache)
    other = Bundle(retrained(opened.root, tmp_path / "retrained"))
    builder = FakeBuilder()
    with pytest.raises(ParityError, match="with stage action on the CPU the gate fails"):
        build(other, builder, TARGET, cache=cache)  # golden vectors are those of the old heads
    assert builder.built == ["action"]
    graphs = [bundle.manifest.files["stages/action/cpu.onnx"] for bundle in (opened, other)]
    assert graphs[0] == graphs[1]
    assert list(in_use(cache, opened)) == STAGES


def retrained(bundle: Path, target: Path) -> Path:
    """The same graphs to the byte, and other numbers in one head."""
    shutil.copytree(bundle, target)
    weights = np.frombuffer((target / "stages/action/cpu.weights").read_bytes(), np.float32)
    put(target, "stages/action/cpu.weights", (weights * np.float32(1.5)).tobytes())
    return target


# Parity


def test_a_build_that_decides_otherwise_is_not_used(cache: EngineCache, opened: Bundle) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    plans = in_use(cache, opened)
    other = Target("other", replace(SETTINGS, optimization_level=1))
    with pytest.raises(ParityError) as caught:
        build(opened, FakeBuilder(FAULT), other, cache=cache)
    error = caught.value
    assert error.exit_code == 3
    found = [str(each) for each in error.found]  # type: ignore[union-attr]
    assert found[0].startswith("a score changed by")
    assert "differ from those of onnxruntime" in found[-5]
    assert found[-4].startswith("with stage vision on the CPU the gate passes: a score changes by ")
    assert all("the gate fails" in each for each in found[-3:])
    assert "stage vision fails again, keep the layer that `trunkline build --bisect` names in float32" in str(error.fix)
    assert in_use(cache, opened) == plans


def test_only_the_engine_that_is_to_blame_is_built_again(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(ParityError):
        build(opened, FakeBuilder(FAULT), TARGET, cache=cache)
    with pytest.raises(BackendError, match="there is no engine for a stage"):
        in_use(cache, opened)
    again = FakeBuilder()
    assert build(opened, again, TARGET, cache=cache).parity.passed
    assert again.built == ["vision"]


def test_bisect_names_the_layer(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(
        ParityError, match=rf"stage vision: layer {LAYER} \(MatMul\) is off by 0\.5 .* by 0\n"
    ) as caught:
        build(opened, FakeBuilder(FAULT), TARGET, cache=cache, bisect=True)
    assert "keep that layer in float32" in str(caught.value.fix)


class _CannotCut(FakeBuilder):
    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        if "up to" in request.stage.name:
            raise BackendError("a part is refused")
        return super().build(request, progress)


def test_where_the_layer_cannot_be_found_the_stage_is_still_named(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(ParityError, match=r"with stage vision on the CPU the gate passes(.|\n)*a part is refused"):
        build(opened, _CannotCut(FAULT), TARGET, cache=cache, bisect=True)


def test_numbers_that_are_not_finite_fail(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(ParityError, match="stage vision returned numbers that are not finite"):
        build(opened, FakeBuilder({LAYER: float("inf")}), TARGET, cache=cache)


def test_without_onnxruntime_every_engine_that_failed_is_built_again(
    cache: EngineCache, opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verify, "reference_of", lambda bundle: None)
    for module in ("run", "failure"):
        monkeypatch.setattr(f"trunkline.targets.building.{module}.reference_of", lambda bundle: None)
    with pytest.raises(ParityError, match=r"install ONNX Runtime .* the message then names the stage"):
        build(opened, FakeBuilder(FAULT), TARGET, cache=cache)
    assert entries(cache) == []
    report = build(opened, FakeBuilder(), TARGET, cache=cache)
    assert (report.parity.reference, report.parity.tensor_differences) == (None, {})


def test_an_engine_that_passes_with_another_bundle_is_not_removed(
    cache: EngineCache, opened: Bundle, tmp_path: Path
) -> None:
    """Here the other bundle's golden vectors are wrong; its own engines are the first one's."""
    build(opened, FakeBuilder(), TARGET, cache=cache)
    other = tmp_path / "other"
    shutil.copytree(opened.root, other)
    change_golden(other)
    with pytest.raises(ParityError, match="stays, since it passes with another bundle"):
        build(Bundle(other), FakeBuilder(), TARGET, cache=cache)
    assert list(in_use(cache, opened)) == STAGES


def test_an_engine_that_another_bundle_runs_stays_whoever_judged_it_last(
    cache: EngineCache, opened: Bundle, tmp_path: Path
) -> None:
    """Its record names the last bundle that it passed with; the other one would find it gone."""
    other = Bundle(same_stages(opened.root, tmp_path / "other"))
    for each in (opened, other):
        build(each, FakeBuilder(), TARGET, cache=cache)
    with pytest.raises(ParityError, match="stays, since it passes with another bundle"):
        verify_again(other, _Aged(), cache=cache)
    assert list(in_use(cache, opened)) == STAGES
    with pytest.raises(ParityError, match="build once more"):
        verify_again(opened, _Aged(), cache=cache)
    assert len(entries(cache)) == 3


def same_stages(bundle: Path, target: Path) -> Path:
    """Another bundle of the same stages."""
    shutil.copytree(bundle, target)
    edit_manifest(target, lambda manifest: manifest["parity"].update(measured_score_change=1e-7))
    return target


def test_an_engine_that_another_process_holds_stays(cache: EngineCache, opened: Bundle) -> None:
    """It may be judging it."""
    build(opened, FakeBuilder(), TARGET, cache=cache)
    held = []
    for path in entries(cache):
        key = json.loads((path / "attestation.json").read_text())["key"]
        held.append(cache.find(record.build(key, EngineKey)))
    with pytest.raises(ParityError, match="stays, since another process uses it"):
        verify_again(opened, _Aged(), cache=cache)
    assert len(entries(cache)) == 4
    with pytest.raises(BackendError, match="there is no engine for a stage"):
        in_use(cache, opened)
    for engine in held:
        assert engine is not None
        engine.close()


def change_golden(bundle: Path) -> None:
    from safetensors.numpy import load, save

    tensors = load((bundle / "golden.safetensors").read_bytes())
    tensors["scores_0"] = tensors["scores_0"] + np.float32(0.5)
    put(bundle, "golden.safetensors", save(tensors))


def test_other_preprocessing_is_not_blamed_on_engines(
    cache: EngineCache, opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trunkline.runtime.parity.pixels_digest", lambda pixels: np.zeros(32, np.uint8))
    with pytest.raises(ParityError, match="preprocessing of 4 of 4 frames differs"):
        build(opened, FakeBuilder(), TARGET, cache=cache)
    assert len(entries(cache)) == 4


# Again


def test_verifying_again(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(BackendError, match=r"there is no engine for a stage(.|\n)*trunkline build"):
        verify_again(opened, FakeBuilder(), cache=cache)
    build(opened, FakeBuilder(), TARGET, cache=cache)
    builder = FakeBuilder()
    report = verify_again(opened, builder, cache=cache)
    assert builder.built == []
    assert (report.target, report.parity.passed) == ("fake-orin", True)


class _Aged(FakeBuilder):
    """A driver that computes otherwise than when the engine was built."""

    def open_engine(self, plan: bytes, stage: Any) -> Any:
        session = super().open_engine(plan, stage)
        right = session.run
        session.run = lambda inputs: {name: value * 0.5 for name, value in right(inputs).items()}  # type: ignore[method-assign]
        return session


def test_engines_that_fail_later_are_not_used_any_more(cache: EngineCache, opened: Bundle) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    with pytest.raises(ParityError):
        verify_again(opened, _Aged(), cache=cache)
    with pytest.raises(BackendError, match="there is no engine for a stage"):
        in_use(cache, opened)


# Before a build


def test_memory_is_asked_for_before_anything_is_compiled(cache: EngineCache, opened: Bundle) -> None:
    builder, asked = FakeBuilder(), []
    memory = Memory(lambda: asked.append("needed") or 5 << 20, lambda: asked.append("free") or 4 << 20)  # type: ignore[func-returns-value]
    with pytest.raises(BackendError, match=r"not enough free memory(.|\n)*5 MiB(.|\n)*4 MiB free(.|\n)*trunkline plan"):
        build(opened, builder, replace(TARGET, memory=memory), cache=cache)
    assert (builder.built, asked) == ([], ["needed", "free"])


def test_enough_memory_is_asked_for_once(cache: EngineCache, opened: Bundle) -> None:
    asked = []
    memory = Memory(lambda: 5, lambda: asked.append(1) or 5)  # type: ignore[func-returns-value]
    build(opened, FakeBuilder(), replace(TARGET, memory=memory), cache=cache)
    assert asked == [1]
    build(opened, FakeBuilder(), replace(TARGET, memory=memory), cache=cache)
    assert asked == [1]  # nothing is compiled


@pytest.mark.parametrize(
    ("rows", "decisive"),
    [
        (Rows("I", 1, 1, 2), "I is 3, the profile has 1 to 2"),
        (Rows("N", 1, 1, 1), "N is 16, the profile has 1 to 1"),
        (Rows("N", 50, 50, 50), "N is 16, the profile has 50 to 50"),
    ],
)
def test_a_profile_that_the_golden_vectors_do_not_fit(
    cache: EngineCache, opened: Bundle, rows: Rows, decisive: str
) -> None:
    """Otherwise the build would fail after it had spent its minutes."""
    profile = (*(each for each in SETTINGS.profile if each.letter != rows.letter), rows)
    builder = FakeBuilder()
    with pytest.raises(InputError, match="could not run the bundle's golden vectors") as caught:
        build(opened, builder, Target("x", replace(SETTINGS, profile=profile)), cache=cache)
    assert decisive in str(caught.value)
    assert builder.built == []


def test_a_profile_without_a_letter(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(InputError, match="says nothing about a varying dimension"):
        build(opened, FakeBuilder(), Target("x", replace(SETTINGS, profile=())), cache=cache)


def test_a_bundle_without_the_variant(cache: EngineCache, opened: Bundle) -> None:
    with pytest.raises(BackendError, match="no variant that this back end runs"):
        build(opened, FakeBuilder(variant="trt"), TARGET, cache=cache)


def test_a_cache_that_is_too_small_for_one_bundle(opened: Bundle, tmp_path: Path) -> None:
    """Its own first engine is not removed for its last."""
    cache = EngineCache(tmp_path / "engines", 200_000)
    with pytest.raises(BackendError, match="does not fit into the cache"):
        build(opened, FakeBuilder(), TARGET, cache=cache)


# Interruptions


def test_a_compiler_that_fails_leaves_what_was_in_use(cache: EngineCache, opened: Bundle) -> None:
    build(opened, FakeBuilder(), TARGET, cache=cache)
    plans, other = in_use(cache, opened), Target("x", replace(SETTINGS, optimization_level=1))
    with pytest.raises(BackendError, match="ran out of memory"):
        build(opened, FailingBuilder("context"), other, cache=cache)
    assert in_use(cache, opened) == plans
    again = FakeBuilder()
    build(opened, again, other, cache=cache)
    assert again.built == ["context", "action"]  # it goes on where it stopped
    assert in_use(cache, opened) != plans


class _Tampering(FakeBuilder):
    """Someone writes to the bundle while it is compiled."""

    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        built = super().build(request, progress)
        weights = request.stage.folder / "cpu.weights"
        weights.write_bytes(weights.read_bytes())
        return built


def test_an_engine_of_a_bundle_that_was_touched_is_not_kept(cache: EngineCache, opened: Bundle, tmp_path: Path) -> None:
    copy = shutil.copytree(opened.root, tmp_path / "copy")
    with pytest.raises(IntegrityError, match="touched while it was loaded"):
        build(Bundle(copy), _Tampering(), TARGET, cache=cache)
    assert entries(cache) == []


class _Dying(FakeBuilder):
    """Killed in the middle of a stage, or while engines are verified."""

    def __init__(self, stage: str, when: str) -> None:
        super().__init__()
        self._stage, self._when = stage, when

    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        if (request.stage.name, self._when) == (self._stage, "compiling"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().build(request, progress)

    def open_engine(self, plan: bytes, stage: Any) -> Any:
        if self._when == "verifying":
            os.kill(os.getpid(), signal.SIGKILL)
        return super().open_engine(plan, stage)


def _build(bundle: str, root: str, builder: FakeBuilder, level: int) -> None:
    target = Target("x", replace(SETTINGS, optimization_level=level))
    build(Bundle(bundle), builder, target, cache=EngineCache(Path(root)))


@pytest.mark.parametrize(("when", "left"), [("compiling", ["context", "action"]), ("verifying", [])])
def test_80_kill_9_leaves_what_was_in_use(cache: EngineCache, opened: Bundle, when: str, left: list[str]) -> None:
    _build(str(opened.root), str(cache.root), FakeBuilder(), 3)
    plans = in_use(cache, opened)
    dying = SPAWN.Process(target=_build, args=(str(opened.root), str(cache.root), _Dying("context", when), 1))
    dying.start()
    dying.join(SECONDS)
    assert dying.exitcode == -signal.SIGKILL
    assert in_use(cache, opened) == plans
    again = FakeBuilder()
    _build(str(opened.root), str(cache.root), again, 1)
    assert again.built == left
    assert in_use(cache, opened) != plans


def test_81_two_processes_build_each_stage_once(cache: EngineCache, opened: Bundle, tmp_path: Path) -> None:
    """The second comes while the first compiles; it waits, and finds what the first made."""
    counted, second = tmp_path / "compiled", SPAWN.Event()
    both = [
        SPAWN.Process(target=_build_and_tell, args=(str(opened.root), str(cache.root), str(counted), second))
        for _ in range(2)
    ]
    for each in both:
        each.start()
    for each in both:
        each.join(SECONDS)
    assert [each.exitcode for each in both] == [0, 0]
    assert sorted(counted.read_text().split()) == sorted(STAGES)
    assert len(entries(cache)) == 4
    assert list(in_use(cache, opened)) == STAGES


class _Counting(FakeBuilder):
    """Compiles when another process has come: to a lock, or as far as this one."""

    def __init__(self, file: Path, second: Any) -> None:
        super().__init__()
        self._file, self._second = file, second

    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        with self._file.open("a") as file:
            file.write(request.stage.name + "\n")
        if self._file.read_text().split().count("vision") > 1:
            self._second.set()
        assert self._second.wait(SECONDS)
        return super().build(request, progress)


def _build_and_tell(bundle: str, root: str, file: str, second: Any) -> None:
    def progress(step: str, done: int, total: int) -> None:
        if step.startswith("waiting"):
            second.set()

    build(Bundle(bundle), _Counting(Path(file), second), TARGET, cache=EngineCache(Path(root)), progress=progress)


# Details


def test_the_path_that_is_verified_is_the_one_that_runs(cache: EngineCache, opened: Bundle) -> None:
    """A session that can leave outputs on its device is asked to, while what it did is recorded."""
    builder = _Staying()
    report = build(opened, builder, TARGET, cache=cache)
    assert report.parity.passed
    assert builder.stayed > 0
    assert report.parity.tensor_differences == dict.fromkeys(STAGES, 0.0)


class _Left:
    """An output on a pretended device."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        self.shape, self.dtype, self.nbytes = array.shape, array.dtype, array.nbytes

    def numpy(self) -> np.ndarray:
        return self._array.copy()


class _Staying(FakeBuilder):
    stayed = 0

    def open_engine(self, plan: bytes, stage: Any) -> Any:
        session, builder = super().open_engine(plan, stage), self

        def run_resident(inputs: dict[str, Any]) -> dict[str, Any]:
            builder.stayed += 1
            host = {name: value.numpy() if isinstance(value, _Left) else value for name, value in inputs.items()}
            return {name: _Left(value) for name, value in session.run(host).items()}

        session.run_resident = run_resident  # type: ignore[attr-defined]
        return session


def test_a_stage_that_no_golden_vector_runs_is_told(
    cache: EngineCache, opened: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = verify.verify

    def without_text(*args: Any) -> Any:
        verdict = real(*args)
        return replace(verdict, ran=tuple(stage for stage in verdict.ran if stage != "text"))

    monkeypatch.setattr("trunkline.targets.building.run.verify", without_text)
    report = build(opened, FakeBuilder(), TARGET, cache=cache)
    assert report.notes == ("text: the golden vectors do not run it, so nothing is known of its engine",)


def test_a_bundle_with_a_sensor(cache: EngineCache, sensor_bundle: Path) -> None:
    opened = Bundle(sensor_bundle)
    report = build(opened, FakeBuilder(), TARGET, cache=cache)
    assert [stage.stage for stage in report.stages] == list(opened.manifest.stages)
    assert report.notes == ()
    assert report.parity.passed


def test_engines_are_let_go_of(cache: EngineCache, opened: Bundle) -> None:
    before: Callable[[], int] = lambda: len(os.listdir("/proc/self/fd"))  # noqa: E731
    build(opened, FakeBuilder(), TARGET, cache=cache)
    count = before()
    for _ in range(3):
        build(opened, FakeBuilder(), TARGET, cache=cache)
    assert before() == count


def test_a_failing_action_fails_with_its_own_error(opened: Bundle) -> None:
    with pytest.raises(BackendError, match="no"), stage_files(opened, "vision", onnxruntime.VARIANT):
        raise BackendError("no")
