"""How a stage is to be compiled for a device, and what a compiler of stages offers.

Precision is not among the settings: it is in the graph. Settings are part of an engine's name
(:mod:`trunkline.runtime.engines.key`), so a stage is given only those that concern it
(:meth:`BuildSettings.for_stage`): more candidates in a call do not make the vision tower's engine another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from trunkline.runtime.backends import Session, StageFiles
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.errors import InputError
from trunkline.runtime.manifest import MAX_DIMENSION, Stage
from trunkline.runtime.progress import Progress
from trunkline.runtime.record import shown

#: Which GPUs besides the one that built it an engine is to run on. Everything but "none" makes it slower.
HardwareCompatibility = Literal["none", "ampere_plus", "same_compute_capability"]

MAX_WORKSPACE_BYTES = 1 << 40
MAX_OPTIMIZATION_LEVEL = 5


@dataclass(frozen=True)
class Rows:
    """Sizes of one varying dimension: the smallest, the one that is tuned for, and the largest, all inclusive.

    Attributes:
        letter: the dimension's, as in a stage's shapes: B frames, I instructions, N candidates, Q blocks of samples.
        minimum: a call with fewer is refused.
        optimum: what calls usually have; the fastest kernels are chosen for it.
        maximum: a call with more is refused; memory is reserved for so many.
    """

    letter: str
    minimum: int
    optimum: int
    maximum: int

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        if len(self.letter) != 1 or not ("A" <= self.letter <= "Z"):
            yield f"profile: {shown(self.letter)} is not a capital letter"
        if not 0 < self.minimum <= self.optimum <= self.maximum <= MAX_DIMENSION:
            rows = f"{self.minimum}, {self.optimum}, {self.maximum}"
            yield f"profile of {shown(self.letter)}: {rows} do not rise from 1 to {MAX_DIMENSION} at most"


@dataclass(frozen=True)
class BuildSettings:
    """How to compile. Equal settings give the same digest in every process.

    Attributes:
        workspace_bytes: memory that a kernel may ask for while it runs, at most.
        optimization_level: how long the compiler searches, 0 to 5.
        version_compatible: whether newer versions of the library, and its lean runtime, may run the engine.
        hardware_compatibility: which other GPUs may.
        profile: sizes per varying dimension, at most one entry per letter.
    """

    workspace_bytes: int
    optimization_level: int = 3
    version_compatible: bool = False
    hardware_compatibility: HardwareCompatibility = "none"
    profile: tuple[Rows, ...] = ()

    def problems(self) -> Iterator[str]:
        """What cannot be, in words."""
        if not 0 < self.workspace_bytes <= MAX_WORKSPACE_BYTES:
            yield f"workspace_bytes is {self.workspace_bytes}, not 1 to {MAX_WORKSPACE_BYTES}"
        if not 0 <= self.optimization_level <= MAX_OPTIMIZATION_LEVEL:
            yield f"optimization_level is {self.optimization_level}, not 0 to {MAX_OPTIMIZATION_LEVEL}"
        letters = [rows.letter for rows in self.profile]
        yield from (f"profile: {shown(letter)} twice" for letter in dict.fromkeys(letters) if letters.count(letter) > 1)
        for rows in self.profile:
            yield from rows.problems()

    def rows(self, letter: str) -> Rows:
        """Sizes of a varying dimension.

        Raises:
            InputError: the profile says nothing about it.
        """
        for rows in self.profile:
            if rows.letter == letter:
                return rows
        raise InputError(
            "the batch profile says nothing about a varying dimension",
            where=f"dimension {letter}",
            found="profile of " + (", ".join(rows.letter for rows in self.profile) or "nothing"),
            fix=f"add {letter} with its smallest, usual and largest size to the target's batch profile",
        )

    def for_stage(self, stage: Stage) -> BuildSettings:
        """These settings as they concern one stage: the profile in alphabetical order, without other stages' letters.

        Raises:
            InputError: a setting is out of range, or the profile lacks a dimension of the stage; all at once.
        """
        problems = list(self.problems())
        if problems:
            raise InputError("engines cannot be built with these settings", found=problems, fix="correct the target")
        return replace(self, profile=tuple(self.rows(letter) for letter in varying(stage)))


def varying(stage: Stage) -> list[str]:
    """Letters of a stage's varying dimensions, in alphabetical order."""
    shapes = [spec.shape for spec in stage.inputs + stage.outputs]
    return sorted({size for shape in shapes for size in shape if isinstance(size, str)})


@dataclass(frozen=True)
class BuildRequest:
    """One stage to compile.

    Attributes:
        stage: contract, checked graph, and the folder its weights lie in.
        settings: as :meth:`BuildSettings.for_stage` gives them.
        timing_cache: what the compiler measured before on this device; empty if nothing.
    """

    stage: StageFiles
    settings: BuildSettings
    timing_cache: bytes = b""


@dataclass(frozen=True)
class BuiltEngine:
    """What a compiler made: the engine, and all measurements it knows now, those it was given included."""

    plan: bytes
    timing_cache: bytes = b""


class Builder(Protocol):
    """Compiles stages on the device it runs on. One thread at a time.

    Attributes:
        variant: of the stages that it compiles.
        library: that compiles, and must run what it compiled.
        device: that it compiles for.
    """

    @property
    def variant(self) -> str: ...

    @property
    def library(self) -> Library: ...

    @property
    def device(self) -> Device: ...

    def build(self, request: BuildRequest, progress: Progress) -> BuiltEngine:
        """Compiles a stage; takes minutes.

        Raises:
            BackendError: the library refuses the stage, or runs out of memory.
        """

    def open_engine(self, plan: bytes, stage: Stage) -> Session:
        """Loads an engine that was compiled here.

        Raises:
            BackendError: the library refuses it.
            BundleError: its inputs or outputs are not the stage's.
        """
