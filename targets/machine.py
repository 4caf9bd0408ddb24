"""What this machine is, as far as its own files and its driver tell: the facts that profiles are compared with.

Reading them needs no rights, no NVML and no library: the device tree, ``/etc/nv_tegra_release``, ``/proc`` and
``/sys/fs/cgroup`` are text, and the driver is asked through :func:`trunkline.runtime.cuda.driver.probe`, which ends no
process where there is none. What is missing, unreadable or no text is a fact that is not known.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime.backends import Missing
from trunkline.runtime.control_groups import groups, read_text
from trunkline.runtime.cuda.driver import DriverFacts, probe

MAX_NAME_CHARS = 200
#: Flags of x86 processors that decide which kernels run.
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")

#: Of a control group, what it may use and what it uses: version 2, version 1.
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))

Driver = Callable[[], DriverFacts | Missing]


@dataclass(frozen=True)
class Gpu:
    """An NVIDIA GPU, as the driver (or, without a usable one, the kernel module's files) tells it.

    Attributes:
        name: such as ``Orin`` or ``NVIDIA GeForce RTX 4090``.
        compute_capability: such as ``8.7``; None where only files tell of it.
        memory_bytes: None where only files tell of it.
        integrated: whether it shares memory with the processor.
    """

    name: str
    compute_capability: str | None = None
    memory_bytes: int | None = None
    integrated: bool = False


@dataclass(frozen=True)
class Machine:
    """Facts; None or empty is not known.

    Attributes:
        system: such as ``linux``.
        architecture: of the processor, such as ``x86_64`` or ``aarch64``.
        model: of the board, from the device tree.
        compatible: names of module and chip, from the device tree.
        l4t: release of Jetson Linux, such as ``36.4.3``.
        gpu: the first one.
        gpus: how many there are.
        no_driver: why the driver could not be asked.
        processor: its name.
        flags: those of :data:`FLAGS` that it has.
        memory_bytes: of the machine, as far as this process may use it.
        free_bytes: what is left of that.
        python: version of this process's.
    """

    system: str
    architecture: str
    model: str | None = None
    compatible: tuple[str, ...] = ()
    l4t: str | None = None
    gpu: Gpu | None = None
    gpus: int = 0
    no_driver: str | None = None
    processor: str | None = None
    flags: tuple[str, ...] = ()
    memory_bytes: int | None = None
    free_bytes: int | None = None
    python: str = ""


def look(
    root: Path = Path("/"), driver: Driver = probe, *, architecture: str | None = None, python: str | None = None
) -> Machine:
    """Looks at a machine.

    Args:
        root: where its files are; another folder than ``/`` for tests.
        driver: asks the driver of the first GPU.
        architecture: of the processor; by default this one's.
        python: its version; by default this one's.
    """
    facts = driver()
    listed = _listed_gpus(root)
    processor = read_text(root / "proc" / "cpuinfo")
    memory, free = _memory(root)
    return Machine(
        system=sys.platform,
        architecture=architecture or platform.machine().lower(),
        model=next(iter(_device_tree(root, "model")), None),
        compatible=_device_tree(root, "compatible"),
        l4t=_l4t(root),
        gpu=_gpu(facts) if isinstance(facts, DriverFacts) else (listed[0] if listed else None),
        gpus=max(len(listed), int(isinstance(facts, DriverFacts))),
        no_driver=facts.reason if isinstance(facts, Missing) else None,
        processor=_name(_stated(processor, "model name", "Model")),
        flags=tuple(flag for flag in FLAGS if flag in _stated(processor, "flags").split()),
        memory_bytes=memory,
        free_bytes=free,
        python=python or platform.python_version(),
    )


def _gpu(facts: DriverFacts) -> Gpu:
    return Gpu(facts.name, ".".join(map(str, facts.capability)), facts.memory_bytes, facts.integrated)


def _listed_gpus(root: Path) -> list[Gpu]:
    """GPUs that the kernel module lists; Jetsons have no such files."""
    files = sorted(root.glob("proc/driver/nvidia/gpus/*/information"))
    names = [_name(_stated(read_text(path), "Model")) for path in files]
    return [Gpu(name) for name in names if name]


def _device_tree(root: Path, name: str) -> tuple[str, ...]:
    """Strings of a property, which end with a NUL each."""
    names = map(_name, read_text(root / "proc" / "device-tree" / name).split("\0"))
    return tuple(name for name in names if name)


def _l4t(root: Path) -> str | None:
    text = read_text(root / "etc" / "nv_tegra_release")[:MAX_NAME_CHARS]
    found = re.search(r"R([0-9]{1,9}) .*?REVISION: ([0-9]{1,9}(?:\.[0-9]{1,9})*)", text)
    return ".".join(found.groups()) if found else None


def _memory(root: Path) -> tuple[int | None, int | None]:
    """All there is and what is free, within the limits that a container or a service sets."""
    text = read_text(root / "proc" / "meminfo")
    total, free = _kilobytes(_stated(text, "MemTotal")), _kilobytes(_stated(text, "MemAvailable"))
    limits = [(most, left) for most, left in _limits(root) if total is None or most < total]
    lefts = [left for _, left in limits] if free is None else [free, *(left for _, left in limits)]
    return min((most for most, _ in limits), default=total), min(lefts, default=None)


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """What every control group around this process may use, and what is left of it."""
    for group in groups("memory", root):
        for most, used in _LIMITS:
            limit = _number(read_text(group / most))
            if limit is not None:
                needed = (_number(read_text(group / used)) or 0) - _droppable(group)
                yield limit, max(0, limit - max(0, needed))


def _droppable(group: Path) -> int:
    """Bytes of files that were read and would make room: after a bundle was checked, all of it."""
    parts = re.findall(r"^(?:in)?active_file ([0-9]{1,19})$", read_text(group / "memory.stat"), re.MULTILINE)
    return sum(map(int, parts))


def _stated(text: str, *keys: str) -> str:
    """What stands behind the first of these keys and a colon; empty where nothing does."""
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in keys and value.strip():
            return value.strip()
    return ""


def _kilobytes(text: str) -> int | None:
    number = _number(text.removesuffix(" kB"))
    return None if number is None else number << 10


def _number(text: str) -> int | None:
    return int(text) if re.fullmatch(r"[0-9]{1,19}", text.strip()) else None


def _name(text: str) -> str | None:
    """A name that can be shown."""
    text = text.strip()
    return text if 0 < len(text) <= MAX_NAME_CHARS and text.isprintable() and "\ufffd" not in text else None
