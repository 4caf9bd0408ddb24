"""What this machine is, as far as its own files and its driver tell: the facts that profiles are compared with.

Reading them needs no rights, no NVML and no library: the device tree, ``/etc/nv_tegra_release``, ``/proc`` and
``/sys/fs/cgroup`` are text, and the driver is asked through :func:`trunkline.runtime.cuda.driver.probe`, which ends no
process where there is none. A file that is missing or unreadable is a fact that is not known.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trunkline.runtime.backends import Missing
from trunkline.runtime.cuda.driver import DriverFacts, probe

MAX_FILE_BYTES = 1 << 20
#: Flags of x86 processors that decide which kernels run.
FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8")

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
    memory, free = _memory(root)
    return Machine(
        system=sys.platform,
        architecture=architecture or platform.machine().lower(),
        model=_device_tree(root, "model")[0] if _device_tree(root, "model") else None,
        compatible=_device_tree(root, "compatible"),
        l4t=_l4t(root),
        gpu=_gpu(facts) if isinstance(facts, DriverFacts) else (listed[0] if listed else None),
        gpus=max(len(listed), int(isinstance(facts, DriverFacts))),
        no_driver=facts.reason if isinstance(facts, Missing) else None,
        processor=_processor(root),
        flags=_flags(root),
        memory_bytes=memory,
        free_bytes=free,
        python=python or platform.python_version(),
    )


def _gpu(facts: DriverFacts) -> Gpu:
    return Gpu(facts.name, ".".join(map(str, facts.capability)), facts.memory_bytes, facts.integrated)


def _listed_gpus(root: Path) -> list[Gpu]:
    """GPUs that the kernel module lists; Jetsons have no such files."""
    found = []
    for path in sorted(root.glob("proc/driver/nvidia/gpus/*/information")):
        name = re.search(r"^Model:\s*(\S.*?)\s*$", _text(path), re.MULTILINE)
        if name:
            found.append(Gpu(name.group(1)))
    return found


def _device_tree(root: Path, name: str) -> tuple[str, ...]:
    """Strings of a property, which end with a NUL each."""
    parts = _text(root / "proc" / "device-tree" / name).split("\0")
    return tuple(part.strip() for part in parts if part.strip())


def _l4t(root: Path) -> str | None:
    text = _text(root / "etc" / "nv_tegra_release")
    found = re.search(r"R(\d+) .*?REVISION: (\d+(?:\.\d+)*)", text)
    return ".".join(found.groups()) if found else None


def _processor(root: Path) -> str | None:
    found = re.search(r"^(?:model name|Model)\s*:\s*(\S.*?)\s*$", _text(root / "proc" / "cpuinfo"), re.MULTILINE)
    return found.group(1) if found else None


def _flags(root: Path) -> tuple[str, ...]:
    found = re.search(r"^flags\s*:(.*)$", _text(root / "proc" / "cpuinfo"), re.MULTILINE)
    present = set(found.group(1).split()) if found else set()
    return tuple(flag for flag in FLAGS if flag in present)


def _memory(root: Path) -> tuple[int | None, int | None]:
    """All there is and what is free, within the limit that a container sets."""
    text = _text(root / "proc" / "meminfo")
    total, free = (_kilobytes(text, key) for key in ("MemTotal", "MemAvailable"))
    group = root / "sys" / "fs" / "cgroup"
    limit, used = _number(group / "memory.max"), _number(group / "memory.current")
    if limit is not None and (total is None or limit < total):
        total = limit
        left = max(0, limit - (used or 0))
        free = left if free is None else min(free, left)
    return total, free


def _kilobytes(text: str, key: str) -> int | None:
    found = re.search(rf"^{key}:\s*(\d+) kB", text, re.MULTILINE)
    return int(found.group(1)) << 10 if found else None


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isascii() and text.isdecimal() else None


def _text(path: Path) -> str:
    """Content of a small file, empty if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_FILE_BYTES).decode(errors="replace")
    except OSError:
        return ""
