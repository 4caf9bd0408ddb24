"""Which profile a machine is: five cases in their order, the nearest where none is its own, what speaks against it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.machines_kit import (
    GIB,
    NO_DRIVER,
    board,
    driver,
    jetson_linux,
    kernel_module,
    memory,
    no_driver,
    processor,
)
from trunkline.targets import detect
from trunkline.targets.detect import Recognition, choose, recognise
from trunkline.targets.errors import TargetError
from trunkline.targets.machine import Driver, Machine, look
from trunkline.targets.profile import Marks, Profile, profiles

KNOWN = profiles(Path("/nonexistent"))
CHIPS = {"tegra234": "Orin", "tegra194": "Xavier", "tegra264": "NVIDIA Thor"}
#: The carrier board of each family of modules.
CARRIERS = {
    "p3767": "p3768-0000",
    "p3701": "p3737-0000",
    "p3834": "p4071-0000",
    "p3668": "p3509-0000",
    "p2888": "p2822",
}
#: As drivers name them.
CARDS = {
    "rtx-30": ("NVIDIA GeForce RTX 3060", "NVIDIA GeForce RTX 3090 Ti", "GeForce RTX 3070"),
    "rtx-40": ("NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 4060 Ti"),
    "rtx-50": ("NVIDIA GeForce RTX 5070 Ti", "NVIDIA GeForce RTX 5090"),
    "a100": ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80GB PCIe", "A100-PCIE-40GB"),
    "h100": ("NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA H100 NVL"),
    "h200": ("NVIDIA H200", "NVIDIA H200 NVL"),
}
RELEASES = {
    "tegra234": ((36, "4.3"), "3.10.12"),
    "tegra194": ((35, "5.0"), "3.8.10"),
    "tegra264": ((38, "4.0"), "3.12.3"),
}


def capability_of(profile: Profile) -> tuple[int, int]:
    major, minor = str(profile.compute_capability).split(".")
    return int(major), int(minor)


def driver_of(profile: Profile, name: str) -> Driver:
    visible = profile.memory.total_bytes * 15 // 16
    return driver(name, capability_of(profile), visible, integrated=profile.kind == "jetson")


def jetson(root: Path, profile: Profile, module: str) -> Machine:
    """A Jetson in full, as its own system shows it."""
    chip = str(profile.recognised_by.chip)
    (release, revision), python = RELEASES[chip]
    carrier = CARRIERS[module.partition("-")[0]]
    board(root, f"NVIDIA {profile.title}", f"nvidia,{carrier}+{module}", f"nvidia,{module}", f"nvidia,{chip}")
    jetson_linux(root, release, revision)
    memory(root, profile.memory.total_bytes * 15 // 16, profile.memory.free_bytes)
    return look(root, driver_of(profile, CHIPS[chip]), architecture="aarch64", python=python)


def pc(root: Path, facts: Driver, python: str = "3.12.3") -> Machine:
    processor(root, "Intel(R) Xeon(R)", "avx2 avx512_vnni")
    memory(root, 64 * GIB, 60 * GIB)
    return look(root, facts, architecture="x86_64", python=python)


def unknown(machine: Machine, known: dict[str, Profile] = KNOWN) -> str:
    with pytest.raises(TargetError, match="this machine is not recognised") as caught:
        recognise(machine, known)
    return str(caught.value)


# Every profile, by what it says it is recognised by


@pytest.mark.parametrize(
    ("name", "module"),
    [(each.name, module) for each in KNOWN.values() for module in each.recognised_by.modules],
)
def test_case_1_a_module_in_the_device_tree(name: str, module: str, tmp_path: Path) -> None:
    found = recognise(jetson(tmp_path, KNOWN[name], module), KNOWN)
    assert (found.profile.name, found.exact) == (name, True)
    assert any(f"module {module} is {KNOWN[name].title}" in line for line in found.how)
    unsupported = KNOWN[name].unsupported
    assert found.concerns == (() if unsupported is None else (unsupported,))


@pytest.mark.parametrize(("name", "card"), [(name, card) for name, cards in CARDS.items() for card in cards])
def test_case_4_a_gpu_by_its_name(name: str, card: str, tmp_path: Path) -> None:
    found = recognise(pc(tmp_path, driver_of(KNOWN[name], card)), KNOWN)
    assert (found.profile.name, found.exact, found.concerns) == (name, True, ())
    assert found.how[0].startswith(f"driver: {card}, compute capability {KNOWN[name].compute_capability}")


@pytest.mark.parametrize(
    ("name", "architecture"),
    [(each.name, architecture) for each in KNOWN.values() for architecture in each.recognised_by.architectures],
)
def test_case_5_a_processor(name: str, architecture: str, tmp_path: Path) -> None:
    processor(tmp_path, "Some processor", "avx2")
    found = recognise(look(tmp_path, no_driver, architecture=architecture, python="3.11.7"), KNOWN)
    assert (found.profile.name, found.exact, found.concerns) == (name, True, ())
    assert found.how == (f"processor: {architecture}, Some processor, avx2", "no NVIDIA GPU")


def test_every_profile_was_recognised_above() -> None:
    jetsons = {each.name for each in KNOWN.values() if each.recognised_by.modules}
    cpus = {each.name for each in KNOWN.values() if each.recognised_by.architectures}
    assert jetsons | cpus | set(CARDS) == set(KNOWN)


@pytest.mark.parametrize("name", [each.name for each in KNOWN.values() if each.kind == "jetson"])
def test_case_3_a_jetson_whose_device_tree_cannot_be_seen(name: str, tmp_path: Path) -> None:
    """Nano and NX of one size are told apart by nothing else, and differ in nothing that matters here."""
    profile = KNOWN[name]
    (release, revision), python = RELEASES[str(profile.recognised_by.chip)]
    jetson_linux(tmp_path, release, revision)
    facts = driver_of(profile, "Orin")
    found = recognise(look(tmp_path, facts, architecture="aarch64", python=python), KNOWN)
    assert found.exact is False
    assert found.profile.memory.total_bytes == profile.memory.total_bytes
    assert found.profile.compute_capability == profile.compute_capability
    assert found.how[0] == f"/etc/nv_tegra_release: Jetson Linux {release}.{revision}"
    assert "the device tree cannot be seen here" in found.how[-1]


# Case 2


@pytest.mark.parametrize(
    ("gib", "name"),
    [
        (3.4, "jetson-orin-nano-4gb"),
        (1.0, "jetson-orin-nano-4gb"),
        (5.9, "jetson-orin-nano-4gb"),
        (15.3, "jetson-orin-nx-16gb"),
        (23.0, "jetson-orin-nx-16gb"),
        (30.0, "jetson-agx-orin-32gb"),
        (61.4, "jetson-agx-orin-64gb"),
        (125.0, "jetson-agx-orin-64gb"),
    ],
)
def test_case_2_the_nearest_of_the_same_chip(gib: float, name: str, tmp_path: Path) -> None:
    """Never one with more memory than the machine has, if there is one with less."""
    board(tmp_path, "Somebody's board", "somebody,robot", "nvidia,p3767-9999", "nvidia,tegra234")
    memory(tmp_path, int(gib * GIB), GIB)
    found = recognise(look(tmp_path, no_driver, architecture="aarch64"), KNOWN)
    assert (found.profile.name, found.exact) == (name, False)
    assert "no profile names this module; of those of its chip, tegra234" in found.how[1]
    fits = found.profile.memory.total_bytes * 0.75 <= gib * GIB
    assert ("is the largest that fits" if fits else "is the smallest, for") in found.how[1]


def test_case_2_without_a_known_memory(tmp_path: Path) -> None:
    board(tmp_path, "Somebody's board", "nvidia,tegra234")
    found = recognise(look(tmp_path, no_driver, architecture="aarch64"), KNOWN)
    assert found.profile.name == "jetson-orin-nano-4gb"
    assert "for an unknown amount of memory" in found.how[1]


def test_the_boards_memory_counts_and_not_a_containers(tmp_path: Path) -> None:
    """What the container may use is the plan's business; the board is what it is."""
    board(tmp_path, "Somebody's board", "nvidia,tegra234")
    memory(tmp_path, 4 * GIB, 4 * GIB)
    facts = driver("Orin", (8, 7), 61 * GIB, integrated=True)
    found = recognise(look(tmp_path, facts, architecture="aarch64"), KNOWN)
    assert found.profile.name == "jetson-agx-orin-64gb"


def test_a_module_comes_before_the_chip_and_memory(tmp_path: Path) -> None:
    machine = jetson(tmp_path, KNOWN["jetson-orin-nano-8gb"], "p3767-0005")
    found = recognise(replace(machine, memory_bytes=60 * GIB), KNOWN)
    assert found.profile.name == "jetson-orin-nano-8gb"


def test_the_super_mode_of_jetpack_6_2(tmp_path: Path) -> None:
    names = ("nvidia,p3768-0000+p3767-0005-super", "nvidia,p3767-0005", "nvidia,tegra234")
    board(tmp_path, "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", *names)
    found = recognise(look(tmp_path, no_driver, architecture="aarch64"), KNOWN)
    assert (found.profile.name, found.exact) == ("jetson-orin-nano-8gb", True)


def test_a_chip_that_no_profile_is_for(tmp_path: Path) -> None:
    board(tmp_path, "NVIDIA Jetson Nano Developer Kit", "nvidia,p3450-0000", "nvidia,tegra210")
    text = unknown(look(tmp_path, no_driver, architecture="aarch64"))
    assert "this is a Jetson, or another device with an NVIDIA chip, that no profile is for" in text
    assert "device tree: NVIDIA Jetson Nano Developer Kit, nvidia,p3450-0000, nvidia,tegra210" in text


# Case 3


def test_a_hidden_jetson_without_nv_tegra_release(tmp_path: Path) -> None:
    """A container of another distribution has no such file; a GPU that shares memory gives it away."""
    facts = driver("Orin", (8, 7), 15 * GIB, integrated=True)
    found = recognise(look(tmp_path, facts, architecture="aarch64", python="3.10.12"), KNOWN)
    assert (found.profile.name, found.exact) == ("jetson-orin-nx-16gb", False)
    assert found.how[0] == "driver: Orin, compute capability 8.7, 15 GiB"
    assert found.concerns[0].startswith("Jetson Linux of an unknown release is not among the supported ones")


def test_a_hidden_jetson_without_a_driver_is_nobody(tmp_path: Path) -> None:
    jetson_linux(tmp_path, 36, "4.3")
    text = unknown(look(tmp_path, no_driver, architecture="aarch64"))
    assert "neither device tree nor driver tell which one" in text
    assert "Jetson Linux: 36.4.3" in text
    assert NO_DRIVER.reason in text


@pytest.mark.parametrize("release", [True, False])
def test_a_gpu_that_shares_memory_and_no_profile_is_for(release: bool, tmp_path: Path) -> None:
    if release:
        jetson_linux(tmp_path, 40, "1.0")
    text = unknown(look(tmp_path, driver("NVIDIA GB10", (12, 1), 119 * GIB, integrated=True), architecture="aarch64"))
    assert "a Jetson, or its like, that no profile is for" in text
    assert "GPU: NVIDIA GB10, compute capability 12.1, 119 GiB" in text


def test_an_arm_board_without_a_gpu_is_a_processor(tmp_path: Path) -> None:
    board(tmp_path, "Raspberry Pi 5 Model B Rev 1.0", "raspberrypi,5-model-b", "brcm,bcm2712")
    found = recognise(look(tmp_path, no_driver, architecture="aarch64", python="3.11.2"), KNOWN)
    assert (found.profile.name, found.concerns) == ("arm-cpu", ())


# Case 4


@pytest.mark.parametrize(
    ("card", "capability", "gib", "name"),
    [
        ("NVIDIA RTX A2000", (8, 6), 6, "rtx-30"),
        ("NVIDIA RTX 6000 Ada Generation", (8, 9), 48, "rtx-40"),
        ("NVIDIA GH200 480GB", (9, 0), 95, "h100"),
        ("NVIDIA GH200 144G HBM3e", (9, 0), 141, "h200"),
        ("NVIDIA H20", (9, 0), 40, "h100"),
    ],
)
def test_the_nearest_gpu_of_the_same_compute_capability(
    card: str, capability: tuple[int, int], gib: int, name: str, tmp_path: Path
) -> None:
    found = recognise(pc(tmp_path, driver(card, capability, gib * GIB)), KNOWN)
    assert (found.profile.name, found.exact) == (name, False)
    assert f"no profile names this GPU; of those of compute capability {capability[0]}.{capability[1]}" in found.how[-1]


def test_a_gpu_that_nobody_knows_does_not_make_a_processor(tmp_path: Path) -> None:
    text = unknown(pc(tmp_path, driver("NVIDIA GeForce GTX 1080", (6, 1), 8 * GIB)))
    for part in (
        "no profile is for this GPU",
        "device tree: no model, no names",
        "Jetson Linux: no",
        "GPU: NVIDIA GeForce GTX 1080, compute capability 6.1, 8 GiB",
        "processor: x86_64, Intel(R) Xeon(R)",
        "--target",
        "docs/targets.md",
    ):
        assert part in text


def test_the_first_of_several_gpus(tmp_path: Path) -> None:
    kernel_module(tmp_path, "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3060")
    found = recognise(pc(tmp_path, driver_of(KNOWN["rtx-40"], "NVIDIA GeForce RTX 4090")), KNOWN)
    assert found.profile.name == "rtx-40"
    assert found.how[0].endswith(", the first of 2 GPUs")


def test_a_gpu_without_a_driver_is_known_by_its_name(tmp_path: Path) -> None:
    kernel_module(tmp_path, "NVIDIA GeForce RTX 4090")
    found = recognise(pc(tmp_path, no_driver), KNOWN)
    assert (found.profile.name, found.exact) == ("rtx-40", True)
    assert found.how[:2] == (
        "/proc/driver/nvidia: NVIDIA GeForce RTX 4090",
        f"the driver cannot be asked: {NO_DRIVER.reason}",
    )
    assert found.concerns == (f"the GPU cannot be used now: {NO_DRIVER.reason}",)


def test_a_gpu_without_a_driver_and_of_an_unknown_name(tmp_path: Path) -> None:
    kernel_module(tmp_path, "NVIDIA RTX 6000 Ada Generation")
    text = unknown(pc(tmp_path, no_driver))
    assert "no profile is for this GPU" in text
    assert "GPU: NVIDIA RTX 6000 Ada Generation" in text


# Case 5


@pytest.mark.parametrize("architecture", ["riscv64", "armv7l", "ppc64le"])
def test_another_processor(architecture: str, tmp_path: Path) -> None:
    text = unknown(look(tmp_path, no_driver, architecture=architecture))
    assert "no profile is for this processor" in text
    assert f"processor: {architecture}, no name" in text
    assert f"GPU: {NO_DRIVER.reason}" in text


def test_this_machine() -> None:
    """Whatever the tests run on, it is recognised; without a GPU as its processor."""
    machine = look()
    found = recognise(machine, KNOWN)
    if machine.gpu is None:
        assert found.profile.kind == "cpu"
        assert platform.machine().lower() in found.profile.recognised_by.architectures
    assert choose().profile.name == found.profile.name
    assert choose().machine is not None


# Two that fit


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("jetson-orin-nx-8gb", lambda marks: marks),
        ("rtx-40", lambda marks: replace(marks, gpu_names=("*4090*",))),
        ("x86-cpu", lambda marks: replace(marks, architectures=("x86_64",))),
    ],
)
def test_the_users_own_profile_comes_first(base: str, change: Callable[[Marks], Marks], tmp_path: Path) -> None:
    profile = KNOWN[base]
    mine = replace(profile, name="mine", title="Mine", recognised_by=change(profile.recognised_by))
    machine = {
        "jetson-orin-nx-8gb": lambda: jetson(tmp_path, profile, "p3767-0001"),
        "rtx-40": lambda: pc(tmp_path, driver_of(profile, "NVIDIA GeForce RTX 4090")),
        "x86-cpu": lambda: pc(tmp_path, no_driver),
    }[base]()
    found = recognise(machine, {**KNOWN, "mine": mine})
    assert (found.profile.name, found.exact) == ("mine", True)
    assert found.how[-1] == f"{base} fits, too"


@pytest.mark.parametrize("gib", [7.4, 1.0])
def test_the_users_own_comes_first_among_the_nearest(gib: float, tmp_path: Path) -> None:
    """Of two with equal memory, whether they fit or are merely the smallest."""
    base = KNOWN["jetson-orin-nano-8gb" if gib > 4 else "jetson-orin-nano-4gb"]
    mine = replace(base, name="mine", recognised_by=replace(base.recognised_by, modules=()))
    board(tmp_path, "Somebody's board", "nvidia,tegra234")
    memory(tmp_path, int(gib * GIB), GIB)
    found = recognise(look(tmp_path, no_driver, architecture="aarch64"), {**KNOWN, "mine": mine})
    assert (found.profile.name, found.exact) == ("mine", False)


# What speaks against it


@pytest.mark.parametrize(
    ("release", "python", "decisive"),
    [
        ((36, "4.3"), "3.10.12", None),
        ((36, "5.0"), "3.10.12", None),
        ((39, "2.0"), "3.12.3", None),
        (
            (36, "3.0"),
            "3.10.12",
            "Jetson Linux 36.3.0 is not among the supported ones: JetPack 6.1 and 6.2 (36.4 to 36.x)",
        ),
        ((35, "4.1"), "3.8.10", "Jetson Linux 35.4.1 is not among the supported ones"),
        ((36, "4.3"), "3.12.3", "Python 3.12.3 is not what comes with it: 3.10"),
        ((39, "2.0"), "3.10.12", "Python 3.10.12 is not what comes with it: 3.12"),
    ],
)
def test_jetson_linux_and_python(release: tuple[int, str], python: str, decisive: str | None, tmp_path: Path) -> None:
    machine = jetson(tmp_path, KNOWN["jetson-orin-nano-8gb"], "p3767-0005")
    number, revision = release
    found = recognise(replace(machine, l4t=f"{number}.{revision}", python=python), KNOWN)
    assert found.exact is True
    assert [decisive is not None and decisive in concern for concern in found.concerns] == [True] * bool(decisive)


def test_a_jetson_without_a_usable_driver(tmp_path: Path) -> None:
    machine = jetson(tmp_path, KNOWN["jetson-thor"], "p3834-0008")
    found = recognise(replace(machine, gpu=None, no_driver="no rights"), KNOWN)
    assert found.concerns == ("the GPU cannot be used now: no rights",)


def test_a_python_that_no_wheel_is_for(tmp_path: Path) -> None:
    found = recognise(pc(tmp_path, no_driver, python="3.9.1"), KNOWN)
    assert found.concerns == ("Python 3.9.1 is not what comes with it: 3.10 to 3.13",)


# What --target stands for


def test_a_device_that_is_named_is_not_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "look", lambda: pytest.fail("nobody asked for this machine"))
    chosen = choose("jetson-thor")
    assert (chosen.profile.name, chosen.machine, chosen.recognition) == ("jetson-thor", None, None)
    with pytest.raises(TargetError, match="there is no such target"):
        choose("toaster")


def test_auto_is_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = jetson(tmp_path, KNOWN["jetson-thor"], "p3834-0008")
    monkeypatch.setattr(detect, "look", lambda: machine)
    chosen = choose()
    assert (chosen.profile.name, chosen.machine) == ("jetson-thor", machine)
    assert isinstance(chosen.recognition, Recognition)
    assert choose("auto") == chosen
