"""What a bundle needs on a device: the sum of its parts, and what changes it in which direction."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from trunkline.runtime.bundle import Bundle
from trunkline.runtime.ensemble import FRAMES
from trunkline.runtime.graph import CacheLimits
from trunkline.targets.estimate.footprint import FOOTPRINTS
from trunkline.targets.estimate.stage import as_half, read_stages, with_members
from trunkline.targets.memory import Case, Estimate, estimate
from trunkline.targets.profile import VARIANTS, Profile, profiles

KNOWN = profiles(Path("/nonexistent"))
PLACES = [(each.name, backend) for each in KNOWN.values() for backend in each.backends]


def case(bundle: Path, target: str, backend: str) -> Case:
    opened, profile = Bundle(bundle), KNOWN[target]
    usual = {each.letter: each.optimum for each in profile.rows}
    stages = tuple(each.facts(profile.most_rows, usual) for each in read_stages(opened, VARIANTS[backend]))
    return Case(opened.manifest, stages, profile, backend)


def with_profile(of: Case, change: Callable[[Profile], Profile]) -> Case:
    return replace(of, profile=change(of.profile))


def shared(of: Case, is_shared: bool) -> Estimate:
    def change(profile: Profile) -> Profile:
        return replace(profile, memory=replace(profile.memory, shared_with_cpu=is_shared))

    return estimate(with_profile(of, change))


@pytest.mark.parametrize(("target", "backend"), PLACES)
def test_the_sum_is_that_of_its_parts(half_bundle: Path, target: str, backend: str) -> None:
    asked = case(half_bundle, target, backend)
    found, footprint = estimate(asked), FOOTPRINTS[backend]
    assert [each.stage for each in found.stages] == ["vision", "text", "context", "action"]
    for stage, facts in zip(found.stages, asked.stages, strict=True):
        assert stage.weights_bytes == footprint.weights_bytes(facts.needs)
        assert stage.activations_bytes == footprint.activations_bytes(facts.needs)
        assert (stage.variant, stage.precision) == (VARIANTS[backend], facts.precision)
    kept = sum(each.weights_bytes + each.activations_bytes for each in found.stages)
    assert found.running_bytes == kept + found.process_bytes + found.scratch_bytes + found.caches_bytes
    assert found.peak_bytes == max(found.running_bytes, found.building_bytes)
    assert (found.building_bytes > 0) == (found.scratch_bytes > 0) == (footprint.build is not None)


def test_what_a_kernel_asks_for_is_bounded_by_the_workspace(half_bundle: Path) -> None:
    asked = case(half_bundle, "rtx-40", "tensorrt")
    most = max(each.activations_bytes for each in estimate(asked).stages)
    small = estimate(with_profile(asked, lambda profile: replace(profile, workspace_bytes=1000)))
    assert small.scratch_bytes == 4 * 1000
    assert estimate(asked).scratch_bytes == sum(each.activations_bytes for each in estimate(asked).stages)
    assert asked.profile.workspace_bytes > most


def test_a_build_holds_one_stage_at_a_time(half_bundle: Path) -> None:
    asked = case(half_bundle, "jetson-orin-nano-8gb", "tensorrt")
    build = FOOTPRINTS["tensorrt"].build
    assert build is not None
    found = estimate(asked)
    process = build.process.host_bytes + build.process.device_bytes + asked.profile.workspace_bytes
    copies = build.host_weights + build.device_weights
    largest = max(int(each.weights_bytes * copies) + each.activations_bytes for each in found.stages)
    assert found.building_bytes == process + largest
    assert estimate(replace(asked, stages=asked.stages[:1])).building_bytes <= found.building_bytes
    assert estimate(replace(asked, stages=())).building_bytes == 0


@pytest.mark.parametrize("backend", ["tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda"])
def test_of_a_gpu_with_memory_of_its_own_only_what_lies_there(half_bundle: Path, backend: str) -> None:
    asked, footprint = case(half_bundle, "rtx-40", backend), FOOTPRINTS[backend]
    asked = replace(asked, stages=asked.stages[:1])
    apart, together = shared(asked, False), shared(asked, True)
    assert together.process_bytes - apart.process_bytes == footprint.process.host_bytes
    assert together.caches_bytes - apart.caches_bytes == FRAMES.bytes
    assert together.stages == apart.stages
    assert together.running_bytes > apart.running_bytes
    if footprint.build is not None:
        host = footprint.build.process.host_bytes + int(apart.stages[0].weights_bytes * footprint.build.host_weights)
        assert together.building_bytes - apart.building_bytes == pytest.approx(host, abs=2)


def test_caches_grow_to_their_limits_and_not_beyond(bundle: Path) -> None:
    """Patches reach the limit in bytes; contexts the limit in entries."""
    asked = case(bundle, "x86-cpu", "onnxruntime")
    limits, manifest = CacheLimits(), asked.manifest
    sizes = {}
    for each in asked.stages:
        stages = replace(asked, stages=(each,))
        sizes[each.name] = estimate(stages).caches_bytes - FRAMES.bytes
    members, embedding = len(manifest.members), manifest.embedding
    assert sizes["vision"] == limits.bytes
    assert sizes["context"] == limits.entries * members * embedding * 4
    assert sizes["text"] == limits.entries * math.prod(manifest.stages["text"].outputs[0].shape[1:]) * 4  # type: ignore[arg-type]
    assert sizes["action"] == min(limits.bytes, limits.entries * members * embedding * 4 * asked.profile.most_rows["N"])
    assert estimate(asked).caches_bytes == FRAMES.bytes + sum(sizes.values())


def test_baked_tokens_are_held(bundle: Path, baked_bundle: Path) -> None:
    asked = case(baked_bundle, "x86-cpu", "onnxruntime")
    assert [each.name for each in asked.stages] == ["vision", "context", "action"]
    tokens = asked.manifest.files[str(asked.manifest.text.baked)].size
    assert tokens > 0
    with_text = case(bundle, "x86-cpu", "onnxruntime")
    without = replace(with_text, stages=tuple(each for each in with_text.stages if each.name != "text"))
    assert estimate(asked).caches_bytes == estimate(without).caches_bytes + tokens


@pytest.mark.parametrize(("target", "backend"), [("x86-cpu", "openvino"), ("jetson-thor", "tensorrt")])
def test_more_rows_never_need_less(sensor_bundle: Path, target: str, backend: str) -> None:
    def at(count: int) -> Estimate:
        opened, profile = Bundle(sensor_bundle), KNOWN[target]
        rows = tuple(replace(each, maximum=max(3, count)) for each in profile.rows)
        profile = replace(profile, rows=rows)
        stages = tuple(each.facts(profile.most_rows) for each in read_stages(opened, VARIANTS[backend]))
        return estimate(Case(opened.manifest, stages, profile, backend))

    found = [at(count) for count in (3, 8, 40)]
    for few, many in itertools.pairwise(found):
        assert few.running_bytes < many.running_bytes
        assert few.building_bytes <= many.building_bytes
        assert [each.weights_bytes for each in few.stages] == [each.weights_bytes for each in many.stages]


@pytest.mark.parametrize(("target", "backend"), [("x86-cpu", "onnxruntime"), ("rtx-30", "onnxruntime-cuda")])
def test_more_members_need_more(half_bundle: Path, target: str, backend: str) -> None:
    asked = case(half_bundle, target, backend)
    found = [
        estimate(replace(asked, stages=tuple(with_members(each, count) for each in asked.stages))).peak_bytes
        for count in (1, 2, 3)
    ]
    assert found[0] < found[1] < found[2] == estimate(asked).peak_bytes


def test_made_up_half_is_estimated_like_the_real_one(half_bundle: Path) -> None:
    """The sum of the stages; weights and values by themselves are compared in test_needs.py."""
    real = case(half_bundle, "jetson-agx-orin-32gb", "tensorrt")
    as_float32 = case(half_bundle, "jetson-agx-orin-32gb", "onnxruntime")
    made_up = replace(as_float32, backend="tensorrt", stages=tuple(map(as_half, as_float32.stages)))
    assert estimate(made_up).running_bytes == pytest.approx(estimate(real).running_bytes, rel=0.05)
    assert estimate(made_up).building_bytes == pytest.approx(estimate(real).building_bytes, rel=0.05)
    assert estimate(as_float32).stages[0].weights_bytes > 1.5 * estimate(real).stages[0].weights_bytes
