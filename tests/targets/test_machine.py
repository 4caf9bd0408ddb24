"""What a machine's own files and its driver tell, and that nonsense in them is a fact that is not known."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.machines_kit import (
    GIB,
    MIB,
    NO_DRIVER,
    board,
    control_group,
    driver,
    jetson_linux,
    kernel_module,
    memory,
    no_driver,
    processor,
    put,
)
from trunkline.runtime.control_groups import MAX_FILE_BYTES
from trunkline.targets.machine import Gpu, Machine, look

UNLIMITED = 9223372036854771712  # version 1's word for no limit


def test_a_jetson(tmp_path: Path) -> None:
    board(tmp_path, "NVIDIA Jetson Orin Nano Developer Kit", "nvidia,p3768-0000+p3767-0005", "nvidia,tegra234")
    jetson_linux(tmp_path, 36, "4.3")
    memory(tmp_path, 7620 * MIB, 6000 * MIB)
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nFeatures\t: fp asimd\n")
    found = look(
        tmp_path, driver("Orin", (8, 7), 7620 * MIB, integrated=True), architecture="aarch64", python="3.10.12"
    )
    assert found == Machine(
        system=sys.platform,
        architecture="aarch64",
        model="NVIDIA Jetson Orin Nano Developer Kit",
        compatible=("nvidia,p3768-0000+p3767-0005", "nvidia,tegra234"),
        l4t="36.4.3",
        gpu=Gpu("Orin", "8.7", 7620 * MIB, integrated=True),
        gpus=1,
        no_driver=None,
        processor="ARMv8 Processor rev 1 (v8l)",
        flags=(),
        memory_bytes=7620 * MIB,
        free_bytes=6000 * MIB,
        python="3.10.12",
    )


def test_a_pc_with_two_gpus(tmp_path: Path) -> None:
    processor(tmp_path, "Intel(R) Core(TM) i9", "amx_int8 avx2 avx512f sse4_2 avx512_vnni")
    kernel_module(tmp_path, "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060")
    found = look(tmp_path, driver("NVIDIA GeForce RTX 4090", (8, 9), 24 * GIB))
    assert (found.gpu, found.gpus) == (Gpu("NVIDIA GeForce RTX 4090", "8.9", 24 * GIB), 2)
    assert found.processor == "Intel(R) Core(TM) i9"
    assert found.flags == ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    assert (found.model, found.compatible, found.l4t) == (None, (), None)


def test_a_gpu_whose_driver_cannot_be_used(tmp_path: Path) -> None:
    kernel_module(tmp_path, "NVIDIA H100 80GB HBM3")
    found = look(tmp_path, no_driver)
    assert found.gpu == Gpu("NVIDIA H100 80GB HBM3")
    assert (found.gpus, found.no_driver) == (1, NO_DRIVER.reason)


def test_an_empty_machine(tmp_path: Path) -> None:
    found = look(tmp_path, no_driver)
    assert found == Machine(
        sys.platform, platform.machine().lower(), no_driver=NO_DRIVER.reason, python=platform.python_version()
    )


def test_a_board_that_names_itself_in_cpuinfo(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "processor\t: 0\nCPU part\t: 0xd08\n\nModel\t\t: Raspberry Pi 5 Model B\n")
    assert look(tmp_path, no_driver).processor == "Raspberry Pi 5 Model B"


def test_an_empty_line_of_cpuinfo_is_not_the_next_one(tmp_path: Path) -> None:
    put(tmp_path, "proc/cpuinfo", "model name\t:\nstepping\t: 7\nflags\t\t:\nbugs\t\t: avx2\n")
    found = look(tmp_path, no_driver)
    assert (found.processor, found.flags) == (None, ())


# Memory


def test_memory_without_limits(tmp_path: Path) -> None:
    memory(tmp_path, 16 * GIB, 9 * GIB)
    control_group(tmp_path, "", {"memory.max": "max"}, ["0::/"])
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (16 * GIB, 9 * GIB)


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    """Version 2, which shows a container its own group as the root."""
    memory(tmp_path, 16 * GIB, 9 * GIB)
    files = {"memory.max": str(4 * GIB), "memory.current": str(GIB), "memory.stat": "anon 5\ninactive_file 0"}
    control_group(tmp_path, "", files, ["0::/"])
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (4 * GIB, 3 * GIB)


def test_the_limit_of_a_container_in_version_1(tmp_path: Path) -> None:
    memory(tmp_path, 16 * GIB, 9 * GIB)
    files = {"memory.limit_in_bytes": str(4 * GIB), "memory.usage_in_bytes": str(3 * GIB)}
    control_group(tmp_path, "memory", files, ["5:devices:/docker/ab", "4:memory:/docker/ab", "0::/docker/ab"])
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (4 * GIB, GIB)


def test_no_limit_in_version_1(tmp_path: Path) -> None:
    memory(tmp_path, 16 * GIB, 9 * GIB)
    control_group(tmp_path, "memory", {"memory.limit_in_bytes": str(UNLIMITED)}, ["4:memory:/"])
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (16 * GIB, 9 * GIB)


def test_limits_of_a_service_and_what_is_around_it(tmp_path: Path) -> None:
    """The service may use 2 GiB, but its slice has only half of one left."""
    memory(tmp_path, 16 * GIB, 9 * GIB)
    lines = ["0::/robot.slice/trunkline.service"]
    files = {"memory.max": str(2 * GIB), "memory.current": "0"}
    control_group(tmp_path, "robot.slice/trunkline.service", files, lines)
    files = {"memory.max": str(4 * GIB), "memory.current": str(4 * GIB - GIB // 2)}
    control_group(tmp_path, "robot.slice", files, lines)
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (2 * GIB, GIB // 2)


def test_files_that_were_read_do_not_take_memory_away(tmp_path: Path) -> None:
    """A group is charged for a bundle's pages after its digests were checked; they go when the memory is needed."""
    memory(tmp_path, 16 * GIB, 9 * GIB)
    stat = f"anon {GIB}\nactive_file {GIB // 4}\ninactive_file {2 * GIB}\nunevictable 7"
    files = {"memory.max": str(4 * GIB), "memory.current": str(GIB * 13 // 4), "memory.stat": stat}
    control_group(tmp_path, "", files, ["0::/"])
    assert look(tmp_path, no_driver).free_bytes == 3 * GIB


def test_a_machine_that_is_fuller_than_its_container(tmp_path: Path) -> None:
    memory(tmp_path, 16 * GIB, GIB)
    control_group(tmp_path, "", {"memory.max": str(4 * GIB), "memory.current": "0"}, ["0::/"])
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (4 * GIB, GIB)


def test_a_group_above_its_limit_has_nothing_left(tmp_path: Path) -> None:
    memory(tmp_path, 16 * GIB, 9 * GIB)
    control_group(tmp_path, "", {"memory.max": str(GIB), "memory.current": str(2 * GIB)}, ["0::/"])
    assert look(tmp_path, no_driver).free_bytes == 0


def test_groups_that_a_container_is_not_shown(tmp_path: Path) -> None:
    """``/..`` stands for what is outside; nothing outside the tests' folder is looked at."""
    memory(tmp_path, 16 * GIB, 9 * GIB)
    put(tmp_path, "sys/outside/memory.max", str(GIB))
    control_group(tmp_path, "", {"memory.max": str(4 * GIB)}, ["0::/../../outside", "7::/x\0y", "8:://etc"])
    assert look(tmp_path, no_driver).memory_bytes == 4 * GIB


@pytest.mark.parametrize("text", ["", "MemTotal: lots kB\n", "MemTotal: 16 MB\nMemAvailable: -5 kB\n", "MemTotal:"])
def test_memory_that_is_not_told(text: str, tmp_path: Path) -> None:
    put(tmp_path, "proc/meminfo", text)
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (None, None)


def test_a_limit_where_memory_is_not_told(tmp_path: Path) -> None:
    control_group(tmp_path, "", {"memory.max": str(GIB), "memory.current": "0"}, ["0::/"])
    found = look(tmp_path, no_driver)
    assert (found.memory_bytes, found.free_bytes) == (GIB, GIB)


# Nonsense

FILES = (
    *("proc/device-tree/model", "proc/device-tree/compatible", "etc/nv_tegra_release", "proc/cpuinfo", "proc/meminfo"),
    *("proc/driver/nvidia/gpus/0/information", "proc/self/cgroup", "sys/fs/cgroup/memory.max"),
    *("sys/fs/cgroup/memory.current", "sys/fs/cgroup/memory.stat"),
)
NONSENSE = {
    "empty": b"",
    "garbage": np.random.default_rng(7).bytes(4096),
    "zeros": bytes(4096),
    "huge line": b"R36 REVISION " * (MAX_FILE_BYTES // 8),
    "huge spaces": b" " * (2 * MAX_FILE_BYTES) + b"x",
    "huge name": b"Model: " + b"x" * MAX_FILE_BYTES,
    "huge number": b"# R" + b"9" * 9000 + b" (release), REVISION: " + b"9" * 9000,
    "huge memory": b"MemTotal: " + b"9" * 9000 + b" kB\nMemAvailable: " + b"9" * 25 + b" kB\n",
    "digits": b"9" * 9000,
    "escapes": b"\x1b[2Jx\0\x1b]0;y\x07\0",
}


@pytest.mark.parametrize("nonsense", NONSENSE)
def test_nonsense_is_not_known(nonsense: str, tmp_path: Path) -> None:
    for name in FILES:
        put(tmp_path, name, NONSENSE[nonsense])
    found = look(tmp_path, no_driver)
    assert (found.model, found.compatible, found.l4t) == (None, (), None)
    assert (found.gpu, found.processor, found.flags) == (None, None, ())
    assert (found.memory_bytes, found.free_bytes) == (None, None)


def test_what_cannot_be_opened_is_not_known(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).mkdir(parents=True)
    assert look(tmp_path, no_driver) == look(tmp_path / "none", no_driver)


def test_names_that_can_be_shown_are_kept_among_others(tmp_path: Path) -> None:
    put(tmp_path, "proc/device-tree/compatible", b"nvidia,tegra234\0\xff\xfe\0\x1b[2J\0 \0nvidia,p3767-0005\0")
    assert look(tmp_path, no_driver).compatible == ("nvidia,tegra234", "nvidia,p3767-0005")


# This machine


def test_this_machine() -> None:
    found = look()
    assert found.architecture == platform.machine().lower()
    assert found.python == platform.python_version()
    assert found.memory_bytes is not None
    assert found.free_bytes is not None
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < found.free_bytes <= found.memory_bytes <= physical
