"""Device profiles: what a device is, how it is recognised, and how bundles run on it. Data, one JSON file per device.

Profiles that come with Trunkline lie in ``targets/profiles``. A user's own have the same form and lie in
``~/.config/trunkline/targets``, or anywhere, if named by path. Reading is strict: a file that is not a profile is
refused with everything that is wrong in it, and a name that is there twice is refused.

docs/targets.md explains the form field by field.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from trunkline.runtime import backends, record
from trunkline.runtime.engines.settings import BuildSettings, Rows
from trunkline.runtime.manifest import CPU_VARIANT, TRT_VARIANT, fewest
from trunkline.runtime.record import shown
from trunkline.targets.errors import TargetError

FORMAT = "trunkline-target"
SCHEMA = 1
BUILT_IN = Path(__file__).parent / "profiles"
#: The target that is this machine, whatever it is.
AUTO = "auto"
#: Letters of varying dimensions that a profile must speak of: frames, instructions, candidates, blocks of samples.
LETTERS = ("B", "I", "N", "Q")

#: The variant of a stage that each back end runs.
VARIANTS = {name: backends.named(name).VARIANT for name in backends.names()}
PRECISIONS = ("float32", "float16", "int8", "float8")
#: What a device of each kind must be recognised by, and may.
_MARKS_OF = {"jetson": ("chip", "modules"), "gpu": ("gpu_names",), "cpu": ("architectures",)}
#: The variant that does not run on the memory that a profile speaks of; on a Jetson both do.
_FOREIGN = {"gpu": CPU_VARIANT, "cpu": TRT_VARIANT}

_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})*")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Versions:
    """Oldest and newest that are supported, inclusive; ``newest`` covers what begins with it, 10.3 also 10.3.0."""

    oldest: str
    newest: str

    def __contains__(self, version: str) -> bool:
        found, newest = _numbers(version), _numbers(self.newest)
        return _numbers(self.oldest) <= found and found[: len(newest)] <= newest

    @property
    def rising(self) -> bool:
        newest = _numbers(self.newest)
        return _numbers(self.oldest)[: len(newest)] <= newest

    def __str__(self) -> str:
        if self.oldest == self.newest:
            return self.oldest
        return f"{self.oldest} to {self.newest}" + (".x" if self.oldest.startswith(f"{self.newest}.") else "")


@dataclass(frozen=True)
class Marks:
    """How a device is recognised.

    Attributes:
        modules: of a Jetson, part numbers in the device tree, such as ``p3767-0003``.
        chip: of a Jetson, the chip in the device tree, such as ``tegra234``.
        gpu_names: of another GPU, its name as the driver tells it; ``*`` stands for anything, ``?`` for one character.
        architectures: of the processor, such as ``x86_64``, for devices that compute on it.
    """

    modules: tuple[str, ...] = ()
    chip: str | None = None
    gpu_names: tuple[str, ...] = ()
    architectures: tuple[str, ...] = ()


@dataclass(frozen=True)
class Memory:
    """Of the device that computes.

    Attributes:
        total_bytes: as sold; where a profile stands for several products, of the smallest.
        system_bytes: what is gone before Trunkline starts: reserved by firmware, kernel, drivers and services.
        shared_with_cpu: whether processor and GPU use the same.
    """

    total_bytes: int
    system_bytes: int
    shared_with_cpu: bool

    @property
    def free_bytes(self) -> int:
        return self.total_bytes - self.system_bytes


@dataclass(frozen=True)
class Software:
    """What comes together on a device.

    Attributes:
        name: such as ``JetPack 6.1 and 6.2``.
        l4t: releases of Jetson Linux, None where there is none.
        python: versions.
        cuda: the newest version, None where there is none.
        tensorrt: versions, None where there is none.
        onnxruntime: versions that run there.
    """

    name: str
    l4t: Versions | None
    python: Versions
    cuda: str | None
    tensorrt: Versions | None
    onnxruntime: Versions


@dataclass(frozen=True)
class Precision:
    """Whether a precision is worth using on a device, and why.

    ``default`` is what an export should aim at, ``if measured`` what needs a measured gain and the parity gate,
    ``never`` what the device cannot do or what would be slower.
    """

    use: Literal["default", "if measured", "never"]
    why: str


@dataclass(frozen=True)
class Profile:
    """One device, or one family.

    Attributes:
        format: ``trunkline-target``.
        schema: 1.
        name: what ``--target`` takes.
        title: for people.
        kind: jetson, gpu (in a computer of its own), or cpu.
        unsupported: why nothing runs there, None if something does.
        recognised_by: marks.
        compute_capability: of the GPU, such as ``8.7``.
        memory: of the device that computes.
        software: what comes together there, oldest first.
        precisions: by name.
        placement: name of the rules by which int8 layers are placed for it.
        backends: in order of preference.
        workspace_bytes: what a kernel may ask for while it runs, at most; 0 where nobody asks.
        rows: for each varying dimension the smallest, usual and largest size.
        sources: where the facts come from.
    """

    format: Literal["trunkline-target"]
    schema: Literal[1]
    name: str
    title: str
    kind: Literal["jetson", "gpu", "cpu"]
    unsupported: str | None
    recognised_by: Marks
    compute_capability: str | None
    memory: Memory
    software: tuple[Software, ...]
    precisions: dict[str, Precision]
    placement: Literal["cpu", "tensorrt"]
    backends: tuple[str, ...]
    workspace_bytes: int
    rows: tuple[Rows, ...]
    sources: tuple[str, ...]

    @property
    def most_rows(self) -> dict[str, int]:
        """The largest size of each varying dimension, by letter."""
        return {each.letter: each.maximum for each in self.rows}

    def settings(self) -> BuildSettings:
        """How engines are compiled for it.

        Raises:
            TargetError: nothing is compiled for it.
        """
        if self.workspace_bytes == 0 or self.unsupported is not None:
            raise TargetError(
                "no engines are built for this target",
                where=self.name,
                found=self.unsupported or "its back ends compile when they load",
                fix="use a target with a GPU",
            )
        return BuildSettings(self.workspace_bytes, profile=self.rows)


def read_profile(path: Path) -> Profile:
    """Reads one file.

    Raises:
        TargetError: listing everything that is wrong in it.
    """
    profile, differences = _read(path)
    if profile is None or differences:
        raise _malformed({path: differences})
    return profile


def profiles(user: Path | None = None) -> dict[str, Profile]:
    """All profiles by name: those that come with Trunkline, then the user's.

    Args:
        user: folder of the user's own; by default the one that :func:`user_folder` names.

    Raises:
        TargetError: listing every file that is wrong, with everything in it, and every name that is there twice.
    """
    folder = user_folder() if user is None else user
    paths = [*sorted(BUILT_IN.glob("*.json")), *(sorted(folder.glob("*.json")) if folder else ())]
    found: dict[str, Profile] = {}
    wrong: dict[Path, list[str]] = {}
    homes: dict[str, Path] = {}
    for path in paths:
        profile, differences = _read(path)
        if profile is not None and profile.name in found:
            differences = [*differences, f"name: {profile.name!r} is also that of {homes[profile.name]}"]
        if differences:
            wrong[path] = differences
        elif profile is not None:
            found[profile.name], homes[profile.name] = profile, path
    if wrong:
        raise _malformed(wrong)
    return found


def named(target: str, known: dict[str, Profile]) -> Profile:
    """The profile of a name, or in a file.

    Args:
        target: a name, or the path of a file, which has a slash in it or ends in ``.json``.
        known: from :func:`profiles`.

    Raises:
        TargetError: there is no such profile, or the file is none.
    """
    if "/" in target or target.endswith(".json"):
        profile = read_profile(Path(target))
        if profile.name in known and known[profile.name] != profile:
            raise TargetError(
                "a profile has the name of another one", where=target, found=profile.name, fix="give it another name"
            )
        return profile
    if target not in known:
        raise TargetError(
            "there is no such target",
            expected=[*known, "or the path of a profile of your own"],
            found=target,
            fix="`trunkline targets` lists them",
        )
    return known[target]


def user_folder() -> Path | None:
    """Where a user's own profiles lie; None for a user without a home directory."""
    base = os.environ.get("XDG_CONFIG_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "trunkline" / "targets"
    try:
        return Path.home() / ".config" / "trunkline" / "targets"
    except RuntimeError:
        return None


def _read(path: Path) -> tuple[Profile | None, list[str]]:
    """A profile, if the file is one in form, and what is wrong in it."""
    try:
        if not path.is_file():  # a pipe would keep us waiting
            return None, ["not a file" if path.exists() else "no such file"]
        with path.open("rb") as file:
            text = file.read(record.MAX_TEXT_BYTES + 1)
        profile = record.decode(text, Profile)
    except OSError as error:
        return None, [f"cannot be read: {error.strerror}"]
    except record.RecordError as error:
        return None, error.differences
    return profile, record.shortened(list(_problems(profile)))


def _malformed(wrong: dict[Path, list[str]]) -> TargetError:
    (single, *others) = wrong
    found = [f"{path}: {each}" if others else each for path, differences in wrong.items() for each in differences]
    return TargetError(
        "device profiles are malformed" if others else "a device profile is malformed",
        where=None if others else single,
        expected=f"{FORMAT}, schema {SCHEMA} (docs/targets.md)",
        found=found,
        fix="correct the file, or move it out of the way; `trunkline targets NAME` prints one to start from",
    )


def _problems(profile: Profile) -> Iterator[str]:
    if not _NAME.fullmatch(profile.name):
        yield f"name: {shown(profile.name)} is not lower-case words joined by hyphens"
    if profile.name == AUTO:
        yield "name: auto stands for this machine, whatever it is"
    yield from _text_problems(profile)
    yield from _kind_problems(profile)
    yield from _mark_problems(profile)
    yield from _memory_problems(profile)
    yield from _version_problems(profile)
    yield from _precision_problems(profile)
    yield from _backend_problems(profile)
    yield from _row_problems(profile)


def _text_problems(profile: Profile) -> Iterator[str]:
    marks = profile.recognised_by
    texts = [profile.title, *profile.sources, *marks.modules, *marks.gpu_names, *marks.architectures]
    texts += [*(each.name for each in profile.software), *(each.why for each in profile.precisions.values())]
    texts += [text for text in (profile.unsupported, marks.chip) if text is not None]
    yield from (f"{shown(text)} is not a line of text" for text in texts if not text or not text.isprintable())
    if not profile.sources:
        yield "sources: there must be one"


def _kind_problems(profile: Profile) -> Iterator[str]:
    capability = profile.compute_capability
    if profile.kind == "cpu" and (capability is not None or profile.workspace_bytes):
        yield "a processor has no compute capability, and its workspace_bytes are 0"
    if profile.kind != "cpu" and (capability is None or not re.fullmatch(r"[0-9]{1,2}\.[0-9]", capability)):
        yield f"compute_capability: {shown(capability)} is not one, such as 8.7"


def _mark_problems(profile: Profile) -> Iterator[str]:
    needed, *others = _MARKS_OF[profile.kind]
    present = {each.name for each in fields(Marks) if getattr(profile.recognised_by, each.name)}
    if needed not in present:
        yield f"recognised_by.{needed}: a {profile.kind} needs it"
    for name in sorted(present - {needed, *others}):
        yield f"recognised_by.{name}: a {profile.kind} is not recognised by it"


def _memory_problems(profile: Profile) -> Iterator[str]:
    memory = profile.memory
    if not 0 <= memory.system_bytes < memory.total_bytes <= 1 << 50:
        yield f"memory: {memory.system_bytes} of {memory.total_bytes} bytes for the system leaves nothing"
    if profile.kind != "gpu" and not memory.shared_with_cpu:
        yield f"memory.shared_with_cpu: it is shared on a {profile.kind}"
    if not 0 <= profile.workspace_bytes < memory.total_bytes:
        yield f"workspace_bytes: {profile.workspace_bytes} of {memory.total_bytes}"
    if profile.kind != "cpu" and profile.unsupported is None and not profile.workspace_bytes:
        yield "workspace_bytes: 0, where engines are built"


def _version_problems(profile: Profile) -> Iterator[str]:
    if not profile.software:
        yield "software: there must be one entry"
    for place, software in enumerate(profile.software):
        for name in ("l4t", "python", "tensorrt", "onnxruntime"):
            versions: Versions | None = getattr(software, name)
            if versions is None:
                continue
            if not (_VERSION.fullmatch(versions.oldest) and _VERSION.fullmatch(versions.newest)):
                yield f"software[{place}].{name}: {shown(str(versions))} are no versions"
            elif not versions.rising:
                yield f"software[{place}].{name}: the oldest, {versions.oldest}, is newer than {versions.newest}"
        if software.cuda is not None and not _VERSION.fullmatch(software.cuda):
            yield f"software[{place}].cuda: {shown(software.cuda)} is no version"


def _precision_problems(profile: Profile) -> Iterator[str]:
    yield from (f"precisions: there is no {shown(name)}" for name in profile.precisions if name not in PRECISIONS)
    yield from (f"precisions: nothing about {name}" for name in PRECISIONS if name not in profile.precisions)
    defaults = sum(each.use == "default" for each in profile.precisions.values())
    if defaults != 1 and profile.unsupported is None:
        yield f"precisions: {defaults} are the default; one must be"


def _backend_problems(profile: Profile) -> Iterator[str]:
    unknown = [name for name in profile.backends if name not in VARIANTS]
    yield from (f"backends: there is no {shown(name)}; there are {', '.join(VARIANTS)}" for name in unknown)
    elsewhere = [name for name in profile.backends if VARIANTS.get(name, "") == _FOREIGN.get(profile.kind)]
    yield from (f"backends: {name} does not compute on a {profile.kind}" for name in elsewhere)
    if len(set(profile.backends)) != len(profile.backends):
        yield "backends: one is there twice"
    if bool(profile.backends) == (profile.unsupported is not None):
        yield "backends: there is at least one, unless the device is unsupported"


def _row_problems(profile: Profile) -> Iterator[str]:
    letters = sorted(each.letter for each in profile.rows)
    if letters != sorted(LETTERS):
        yield f"rows: {shown(letters)}, not each of {', '.join(LETTERS)} once"
    for rows in profile.rows:
        yield from rows.problems()
        if rows.maximum < fewest(rows.letter):
            yield f"rows: every call has {fewest(rows.letter)} {rows.letter} or more, the maximum is {rows.maximum}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]{1,9}", version))
