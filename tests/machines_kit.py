"""Machines that are not here: their files below a folder of the test's own, and what their driver says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trunkline.runtime.backends import Missing
from trunkline.runtime.cuda.driver import DriverFacts
from trunkline.targets.machine import Driver

GIB, MIB = 1 << 30, 1 << 20
NO_DRIVER = Missing("no NVIDIA driver: libcuda.so.1: cannot open shared object file", "install it")


def put(root: Path, name: str, content: str | bytes) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def board(root: Path, model: str, *compatible: str) -> None:
    """A device tree, as the kernel shows it: strings that end with a NUL each."""
    put(root, "proc/device-tree/model", f"{model}\0")
    put(root, "proc/device-tree/compatible", "".join(f"{name}\0" for name in compatible))


def jetson_linux(root: Path, release: int, revision: str) -> None:
    line = (
        f"# R{release} (release), REVISION: {revision}, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8"
    )
    put(root, "etc/nv_tegra_release", f"{line} 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n")


def memory(root: Path, total_bytes: int, available_bytes: int) -> None:
    lines = {"MemTotal": total_bytes, "MemFree": available_bytes // 2, "MemAvailable": available_bytes}
    put(root, "proc/meminfo", "".join(f"{name + ':':16}{count >> 10:>8} kB\n" for name, count in lines.items()))


def processor(root: Path, name: str, flags: str = "") -> None:
    cores = "".join(
        f"processor\t: {core}\nmodel\t\t: 85\nmodel name\t: {name}\nflags\t\t: fpu vme {flags}\nbugs\t\t:\n\n"
        for core in range(2)
    )
    put(root, "proc/cpuinfo", cores)


def kernel_module(root: Path, *names: str) -> None:
    """What the NVIDIA kernel module lists of PCI cards."""
    for place, name in enumerate(names):
        text = f"Model: \t\t {name}\nIRQ:   \t\t 170\nGPU UUID: \t GPU-????????\nBus Type: \t PCIe\n"
        put(root, f"proc/driver/nvidia/gpus/0000:0{place + 1}:00.0/information", text)


def control_group(root: Path, path: str, files: dict[str, str], lines: Sequence[str]) -> None:
    for name, content in files.items():
        put(root, f"sys/fs/cgroup/{path}/{name}", content + "\n")
    put(root, "proc/self/cgroup", "".join(f"{line}\n" for line in lines))


def driver(name: str, capability: tuple[int, int], memory_bytes: int, *, integrated: bool = False) -> Driver:
    return lambda: DriverFacts(name, capability, memory_bytes, integrated, "0" * 32, (12, 6), "CUDA 12.6")


def no_driver() -> Missing:
    return NO_DRIVER
