"""How many threads a back end takes: cores, hyper-threads, affinity, and what control groups leave of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest

from tests.machines_kit import put
from trunkline.runtime import control_groups
from trunkline.runtime.backends.threads import physical_cores

V1 = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0\n"
V2 = "cgroup2 /sys/fs/cgroup cgroup2 rw,nosuid,nsdelegate 0 0\n"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight processors, two to a core."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    for processor in range(8):
        place = f"sys/devices/system/cpu/cpu{processor}/topology/thread_siblings_list"
        put(tmp_path, place, f"{processor % 4},{processor % 4 + 4}\n")
    return tmp_path


def version_2(root: Path, path: str, **limits: str) -> Path:
    """This process in a group of version 2, with ``cpu.max`` of it and those around it, by name."""
    put(root, "proc/self/mounts", V2)
    put(root, "proc/self/cgroup", f"0::{path}\n")
    for group, limit in limits.items():
        place = next((each for each in (path, *map(str, Path(path).parents)) if Path(each).name == group), "/")
        put(root, f"sys/fs/cgroup{place}/cpu.max", f"{limit}\n")
    return root


def version_1(root: Path, path: str, quota: str, period: str = "100000", mounts: str = V1) -> Path:
    put(root, "proc/self/mounts", mounts)
    put(root, "proc/self/cgroup", f"12:memory:/elsewhere\n3:cpu,cpuacct:{path}\n0::/\n")
    put(root, f"sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_quota_us", f"{quota}\n")
    put(root, f"sys/fs/cgroup/cpu,cpuacct{path}/cpu.cfs_period_us", f"{period}\n")
    return root


def test_without_a_limit(machine: Path) -> None:
    assert physical_cores(machine) == 4
    assert control_groups.processors(machine) == math.inf


@pytest.mark.parametrize(
    ("limit", "cores"),
    [
        ("max 100000", 4),
        ("800000 100000", 4),
        ("300000 100000", 3),
        ("250000 100000", 2),
        ("199999 100000", 1),
        ("150000 100000", 1),
        ("50000 100000", 1),
        ("1000 100000", 1),
        ("40000 20000", 2),
    ],
)
def test_a_quota_in_version_2(machine: Path, limit: str, cores: int) -> None:
    """Fractions are rounded down: whoever uses up their time early stands still."""
    assert physical_cores(version_2(machine, "/robot.slice/trunkline.service", **{"trunkline.service": limit})) == cores


def test_the_tightest_group_counts_wherever_it_is(machine: Path) -> None:
    limits = {"c.service": "300000 100000", "b.slice": "200000 100000", "a.slice": "max 100000"}
    assert physical_cores(version_2(machine, "/a.slice/b.slice/c.service", **limits)) == 2
    assert physical_cores(version_2(machine, "/a.slice/b.slice/c.service", **limits | {"a.slice": "100000 50000"})) == 2
    assert physical_cores(version_2(machine, "/a.slice/b.slice/c.service", **limits | {"a.slice": "100000 90000"})) == 1


def test_a_container_whose_group_is_its_root(machine: Path) -> None:
    put(version_2(machine, "/"), "sys/fs/cgroup/cpu.max", "200000 100000\n")
    assert physical_cores(machine) == 2


@pytest.mark.parametrize(
    ("quota", "period", "cores"),
    [
        ("-1", "100000", 4),
        ("300000", "100000", 3),
        ("250000", "100000", 2),
        ("50000", "100000", 1),
        ("2000", "1000", 2),
    ],
)
def test_a_quota_in_version_1(machine: Path, quota: str, period: str, cores: int) -> None:
    assert physical_cores(version_1(machine, "/docker/ab", quota, period)) == cores


def test_a_container_that_sees_its_group_as_the_mount(machine: Path) -> None:
    """Without a namespace of its own, the path is the host's, and nothing of that name is below the mount."""
    version_1(machine, "/", "200000")
    put(machine, "proc/self/cgroup", "3:cpu,cpuacct:/docker/ab\n")
    assert physical_cores(machine) == 2


def test_both_versions_at_once(machine: Path) -> None:
    """Version 2 beside version 1, somewhere else; the mounts say where."""
    hybrid = V1 + "cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n"
    version_1(machine, "/docker/ab", "300000", mounts=hybrid)
    assert physical_cores(machine) == 3
    put(machine, "sys/fs/cgroup/unified/cpu.max", "200000 100000\n")
    assert physical_cores(machine) == 2


def test_where_mounts_are_not_told(machine: Path) -> None:
    put(version_2(machine, "/a.slice", **{"a.slice": "200000 100000"}), "proc/self/mounts", "")
    assert physical_cores(machine) == 2


@pytest.mark.parametrize(
    "limit",
    ["", "max", "200000", "-5 100000", "200000 0", "0 100000", "2e5 100000", "1 2 3", "max max", "9" * 40 + " 1"],
)
def test_limits_that_are_none(machine: Path, limit: str) -> None:
    put(version_2(machine, "/"), "sys/fs/cgroup/cpu.max", limit)
    assert physical_cores(machine) == 4


def test_groups_outside_are_not_looked_at(machine: Path) -> None:
    put(machine, "sys/outside/cpu.max", "100000 100000")
    put(version_2(machine, "/../../outside"), "sys/fs/cgroup/cpu.max", "200000 100000")
    assert physical_cores(machine) == 2


def test_affinity_and_quota(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two threads of one core, and more than enough time for it; then cores whose siblings nobody tells."""
    version_2(machine, "/", **{"": "300000 100000"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 5})
    assert physical_cores(machine) == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 99})
    assert physical_cores(machine) == 3
    (machine / "sys/fs/cgroup/cpu.max").unlink()
    assert physical_cores(machine) == 4


def test_this_machine_tells_something() -> None:
    assert 1 <= physical_cores() <= len(os.sched_getaffinity(0))
    assert control_groups.processors() > 0
