"""How much memory a bundle needs on a device: while it runs, and while its engines are built there.

The sum is made of what the stages need (:mod:`trunkline.targets.estimate`), what the process takes by itself, and
what the runtime's caches may grow to. Where processor and GPU share memory everything counts; of a GPU with memory of
its own only what lies on it, which includes the outputs of stages that are left there to be used again.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from trunkline.runtime.ensemble import FRAMES
from trunkline.runtime.graph import CacheLimits
from trunkline.runtime.manifest import Manifest, TensorSpec
from trunkline.targets.estimate.footprint import FOOTPRINTS, Build
from trunkline.targets.estimate.stage import StageFacts
from trunkline.targets.profile import Profile

FLOAT_BYTES = 4
#: Varying dimensions whose entries are known one by one when they come again; candidates and blocks come together.
_KNOWN_APART = ("B", "I")


@dataclass(frozen=True)
class Case:
    """What is to run where.

    Attributes:
        manifest: of the bundle.
        stages: that run, each with its needs.
        profile: of the device.
        backend: that runs them.
    """

    manifest: Manifest
    stages: tuple[StageFacts, ...]
    profile: Profile
    backend: str


@dataclass(frozen=True)
class StageMemory:
    """Of one stage.

    Attributes:
        stage: its name.
        variant: that runs.
        precision: as the manifest calls it.
        weights_bytes: as the back end keeps them.
        activations_bytes: what it sets aside for values.
        guessed: values whose size could not be derived from the graph.
    """

    stage: str
    variant: str
    precision: str
    weights_bytes: int
    activations_bytes: int
    guessed: int


@dataclass(frozen=True)
class Estimate:
    """Of a bundle on a device, in bytes of the device's memory.

    Attributes:
        stages: one by one.
        process_bytes: interpreter, libraries, contexts.
        scratch_bytes: what kernels may ask for while they run.
        caches_bytes: what the runtime's caches may grow to, and camera frames and baked tokens on the host.
        running_bytes: all of these together.
        building_bytes: the most that building engines takes, one stage after another; 0 where none are built.
    """

    stages: tuple[StageMemory, ...]
    process_bytes: int
    scratch_bytes: int
    caches_bytes: int
    running_bytes: int
    building_bytes: int

    @property
    def peak_bytes(self) -> int:
        """What must be free."""
        return max(self.running_bytes, self.building_bytes)


def estimate(case: Case) -> Estimate:
    """Adds it up."""
    footprint, shared = FOOTPRINTS[case.backend], case.profile.memory.shared_with_cpu
    stages = tuple(_stage(each, case.backend) for each in case.stages)
    process = footprint.process.device_bytes + (footprint.process.host_bytes if shared else 0)
    caches = _parts_bytes(case) + (_host_bytes(case.manifest) if shared else 0)
    scratch = sum(min(case.profile.workspace_bytes, each.activations_bytes) for each in stages)
    if footprint.build is None:
        scratch, building = 0, 0
    else:
        building = max((_building(each, footprint.build, case.profile) for each in stages), default=0)
    kept = sum(each.weights_bytes + each.activations_bytes for each in stages)
    return Estimate(stages, process, scratch, caches, kept + process + scratch + caches, building)


def _stage(facts: StageFacts, backend: str) -> StageMemory:
    footprint, needs = FOOTPRINTS[backend], facts.needs
    weights, activations = footprint.weights_bytes(needs), footprint.activations_bytes(needs)
    return StageMemory(facts.name, facts.variant, facts.precision, weights, activations, needs.guessed)


def _building(stage: StageMemory, build: Build, profile: Profile) -> int:
    """Weights as often as the builder keeps them, values of one run, and the whole workspace."""
    shared = profile.memory.shared_with_cpu
    copies = build.device_weights + (build.host_weights if shared else 0)
    process = build.process.device_bytes + (build.process.host_bytes if shared else 0)
    return process + int(stage.weights_bytes * copies) + stage.activations_bytes + profile.workspace_bytes


def _parts_bytes(case: Case) -> int:
    """What the caches of the stages may grow to under their usual limits."""
    limits, rows = CacheLimits(), case.profile.most_rows
    outputs = [case.manifest.stages[each.name].outputs[0] for each in case.stages]
    return sum(min(limits.bytes, limits.entries * _part_bytes(each, rows)) for each in outputs)


def _host_bytes(manifest: Manifest) -> int:
    """Camera frames that are kept to be compared, and baked tokens."""
    baked = manifest.text.baked
    return FRAMES.bytes + (manifest.files[baked].size if baked else 0)


def _part_bytes(output: TensorSpec, rows: Mapping[str, int]) -> int:
    sizes = [
        size if isinstance(size, int) else (1 if size in _KNOWN_APART else rows.get(size, 1)) for size in output.shape
    ]
    return math.prod(sizes) * FLOAT_BYTES
