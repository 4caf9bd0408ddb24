"""Device profiles: what is built in, what a profile must hold, and what is refused with everything that is wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from trunkline.runtime import backends, record
from trunkline.runtime.engines.settings import varying
from trunkline.runtime.manifest import Stage, TensorSpec
from trunkline.targets.errors import TargetError
from trunkline.targets.estimate.footprint import FOOTPRINTS
from trunkline.targets.profile import BUILT_IN, LETTERS, VARIANTS, Versions, named, profiles, read_profile, user_folder

ROOT = Path(__file__).parents[2]
JETSONS = (
    *("jetson-orin-nano-4gb", "jetson-orin-nano-8gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb"),
    *("jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-thor", "jetson-xavier"),
)
GPUS = ("rtx-30", "rtx-40", "rtx-50", "a100", "h100", "h200")
CPUS = ("x86-cpu", "arm-cpu")
CAPABILITIES = {
    **dict.fromkeys(JETSONS[:6], "8.7"),
    **{"jetson-thor": "11.0", "jetson-xavier": "7.2", "x86-cpu": None, "arm-cpu": None},
    **{"rtx-30": "8.6", "rtx-40": "8.9", "rtx-50": "12.0", "a100": "8.0", "h100": "9.0", "h200": "9.0"},
}
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a user's own profiles, not made yet."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "trunkline" / "targets"


def written(folder: Path, change: Change = lambda content: None, base: str = "jetson-orin-nano-8gb") -> Path:
    """A user's profile ``mine``, made from one that is built in."""
    content = json.loads((BUILT_IN / f"{base}.json").read_text())
    content["name"] = "mine"
    change(content)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.json").write_text(json.dumps(content))
    return folder / "mine.json"


def refused(path: Path) -> list[str]:
    with pytest.raises(TargetError, match="a device profile is malformed") as caught:
        read_profile(path)
    assert str(caught.value.where) == str(path)
    assert isinstance(caught.value.found, list)
    return caught.value.found


# What is built in


def test_every_device_that_was_promised_is_there() -> None:
    assert set(profiles()) == {*JETSONS, *GPUS, *CPUS}


@pytest.mark.parametrize("path", sorted(BUILT_IN.glob("*.json")), ids=lambda path: path.stem)
def test_a_built_in_profile(path: Path) -> None:
    profile = read_profile(path)
    assert profile.name == path.stem
    assert record.encode(profile) == path.read_bytes()
    assert profile.compute_capability == CAPABILITIES[profile.name]
    assert profile.kind == ("jetson" if profile.name in JETSONS else "gpu" if profile.name in GPUS else "cpu")
    assert profile.placement == ("cpu" if profile.kind == "cpu" else "tensorrt")
    assert profile.memory.shared_with_cpu == (profile.kind != "gpu")
    assert (profile.unsupported is not None) == (profile.name == "jetson-xavier")


@pytest.mark.parametrize("profile", profiles().values(), ids=lambda profile: profile.name)
def test_facts_that_are_known(profile: Any) -> None:
    """JetPack brings TensorRT and Python; 1.23.2 is the last ONNX Runtime for Python 3.10; Ampere has no float8."""
    for software in profile.software:
        assert (software.l4t is None) == (profile.kind != "jetson")
        assert (software.tensorrt is None) == (software.cuda is None) == (profile.kind == "cpu")
        if software.python.newest == "3.10":
            assert "1.23.2" in software.onnxruntime
            assert "1.23.3" not in software.onnxruntime
    by_name = {software.name: software for software in profile.software}
    if profile.compute_capability in ("8.0", "8.6", "8.7"):
        assert profile.precisions["float8"].use == "never"
    if profile.compute_capability == "8.7":
        assert str(by_name["JetPack 6.1 and 6.2"].tensorrt) == "10.3"
        assert str(by_name["JetPack 6.1 and 6.2"].python) == "3.10"
        assert "36.4.3" in by_name["JetPack 6.1 and 6.2"].l4t
        assert "36.3" not in by_name["JetPack 6.1 and 6.2"].l4t, "JetPack 6.0 has TensorRT 8.6"
    if profile.name == "jetson-thor":
        assert str(by_name["JetPack 7.0 and 7.1"].tensorrt) == "10.13.3"
    if "JetPack 7.2" in by_name:
        assert str(by_name["JetPack 7.2"].tensorrt) == "10.16.2"
        assert "3.12.3" in by_name["JetPack 7.2"].python
    newer = by_name.get("JetPack 7.2.2")
    assert (newer is not None) == profile.name.startswith(("jetson-agx-orin", "jetson-thor"))
    for version in ("11.0", "11.2", "11.4.0"):
        assert not (newer and version in newer.tensorrt), "nothing before 11.4.1 supports JetPack"


@pytest.mark.parametrize("profile", profiles().values(), ids=lambda profile: profile.name)
def test_float16_is_the_default_on_gpus(profile: Any) -> None:
    default = [name for name, each in profile.precisions.items() if each.use == "default"]
    expected = [] if profile.unsupported else ["float32"] if profile.kind == "cpu" else ["float16"]
    assert default == expected
    assert all(each.why for each in profile.precisions.values())


@pytest.mark.parametrize("profile", profiles().values(), ids=lambda profile: profile.name)
def test_settings_are_what_engines_are_built_with(profile: Any) -> None:
    stage = Stage((TensorSpec("x", "float32", ("N", 4)),), (TensorSpec("y", "float32", ("N", 2)),), {})
    if profile.kind == "cpu" or profile.unsupported:
        with pytest.raises(TargetError, match="no engines are built for this target") as caught:
            profile.settings()
        assert profile.name in str(caught.value)
        return
    settings = profile.settings().for_stage(stage)
    assert settings.workspace_bytes == profile.workspace_bytes
    assert [rows.letter for rows in settings.profile] == varying(stage)
    assert settings.rows("N").maximum == profile.most_rows["N"]


def test_xavier_says_why_it_is_not_supported() -> None:
    with pytest.raises(TargetError, match=r"no engines are built for this target\n.*jetson-xavier\n.*TensorRT 8\.5"):
        profiles()["jetson-xavier"].settings()


def test_every_back_end_has_a_footprint_and_a_variant() -> None:
    assert set(VARIANTS) == set(FOOTPRINTS) == set(backends.names())
    assert VARIANTS["openvino"] == VARIANTS["onnxruntime"] == "cpu"
    assert {VARIANTS[name] for name in ("tensorrt", "onnxruntime-tensorrt", "onnxruntime-cuda")} == {"trt"}


# Versions


@pytest.mark.parametrize(
    ("oldest", "newest", "version", "inside"),
    [
        ("10.3", "10.3", "10.3.0.30", True),
        ("10.3", "10.3", "10.30", False),
        ("10.3", "10.3", "10.2.9", False),
        ("36.4", "36", "36.4.3", True),
        ("36.4", "36", "36.3", False),
        ("36.4", "36", "37.1", False),
        ("3.10", "3.13", "3.9.18", False),
        ("3.10", "3.13", "3.13.0rc1", True),
        ("10.16.2", "11.4.1", "11.4.1.5", True),
        ("10.16.2", "11.4.1", "11.4.2", False),
        ("1", "2", "", False),
        ("1", "2", "9" * 10_000, False),
    ],
)
def test_versions(oldest: str, newest: str, version: str, inside: bool) -> None:
    assert (version in Versions(oldest, newest)) == inside


@pytest.mark.parametrize(
    ("versions", "text"),
    [
        (Versions("10.3", "10.3"), "10.3"),
        (Versions("10.3", "11.4.1"), "10.3 to 11.4.1"),
        (Versions("36.4", "36"), "36.4 to 36.x"),
        (Versions("3.1", "3.10"), "3.1 to 3.10"),
    ],
)
def test_versions_in_words(versions: Versions, text: str) -> None:
    assert str(versions) == text


# What is refused

WRONG: dict[str, tuple[Change, str]] = {
    "name": (lambda it: it.update(name="Mine!"), "name: 'Mine!' is not lower-case words"),
    "name of this machine": (lambda it: it.update(name="auto"), "auto stands for this machine"),
    "empty title": (lambda it: it.update(title=""), "'' is not a line of text"),
    "escape in a title": (lambda it: it.update(title="\x1b[2J"), "'\\x1b[2J' is not a line of text"),
    "empty reason": (lambda it: it.update(unsupported="", backends=[]), "'' is not a line of text"),
    "empty chip": (lambda it: it["recognised_by"].update(chip=""), "'' is not a line of text"),
    "no sources": (lambda it: it.update(sources=[]), "sources: there must be one"),
    "no marks": (lambda it: it["recognised_by"].update(modules=[], chip=None), "recognised_by.chip: a jetson needs it"),
    "no chip": (lambda it: it["recognised_by"].update(chip=None), "recognised_by.chip: a jetson needs it"),
    "marks of another kind": (
        lambda it: it["recognised_by"].update(architectures=["aarch64"]),
        "recognised_by.architectures: a jetson is not recognised by it",
    ),
    "a gpu by its processor": (
        lambda it: it.update(kind="gpu", recognised_by={**it["recognised_by"], "architectures": ["x86_64"]}),
        "recognised_by.gpu_names: a gpu needs it",
    ),
    "no capability": (lambda it: it.update(compute_capability=None), "compute_capability: None is not one"),
    "odd capability": (lambda it: it.update(compute_capability="sm_87"), "compute_capability: 'sm_87' is not one"),
    "capability of a processor": (lambda it: it.update(kind="cpu"), "a processor has no compute capability"),
    "memory": (lambda it: it["memory"].update(system_bytes=1 << 40), "bytes for the system leaves nothing"),
    "negative memory": (lambda it: it["memory"].update(system_bytes=-1), "bytes for the system leaves nothing"),
    "endless memory": (lambda it: it["memory"].update(total_bytes=1 << 60), "bytes for the system leaves nothing"),
    "memory apart": (lambda it: it["memory"].update(shared_with_cpu=False), "it is shared on a jetson"),
    "workspace": (lambda it: it.update(workspace_bytes=1 << 40), f"workspace_bytes: {1 << 40} of"),
    "negative workspace": (lambda it: it.update(workspace_bytes=-1), "workspace_bytes: -1 of"),
    "no workspace": (lambda it: it.update(workspace_bytes=0), "workspace_bytes: 0, where engines are built"),
    "no software": (lambda it: it.update(software=[]), "software: there must be one entry"),
    "version": (
        lambda it: it["software"][0]["tensorrt"].update(newest="ten"),
        "software[0].tensorrt: '10.3 to ten' are no versions",
    ),
    "version in other digits": (
        lambda it: it["software"][0]["python"].update(newest="\u0663.\u0661\u0662"),
        "software[0].python: '3.10 to \u0663.\u0661\u0662' are no versions",
    ),
    "endless version": (lambda it: it["software"][0]["l4t"].update(newest="9" * 5000), "software[0].l4t: '36.4 to 999"),
    "falling versions": (
        lambda it: it["software"][1]["l4t"].update(newest="39.1"),
        "software[1].l4t: the oldest, 39.2, is newer than 39.1",
    ),
    "cuda": (lambda it: it["software"][0].update(cuda="12.x"), "software[0].cuda: '12.x' is no version"),
    "unknown precision": (lambda it: it["precisions"].update(int4=it["precisions"]["int8"]), "there is no 'int4'"),
    "missing precision": (lambda it: it["precisions"].pop("int8"), "precisions: nothing about int8"),
    "two defaults": (
        lambda it: it["precisions"]["float32"].update(use="default"),
        "precisions: 2 are the default; one must be",
    ),
    "unknown back end": (lambda it: it["backends"].append("tvm"), "backends: there is no 'tvm'; there are"),
    "back end twice": (lambda it: it["backends"].append("tensorrt"), "backends: one is there twice"),
    "no back end": (lambda it: it.update(backends=[]), "backends: there is at least one"),
    "back ends of what is not supported": (lambda it: it.update(unsupported="broken"), "unless the device is unsupp"),
    "letters": (lambda it: it["rows"].pop(), "rows: ['B', 'I', 'N'], not each of B, I, N, Q once"),
    "letter twice": (lambda it: it["rows"].append(it["rows"][0]), "not each of B, I, N, Q once"),
    "no letter": (lambda it: it["rows"][0].update(letter="b"), "'b' is not a capital letter"),
    "falling rows": (lambda it: it["rows"][0].update(minimum=3), "3, 1, 1 do not rise from 1"),
    "no rows": (lambda it: it["rows"][0].update(minimum=0), "0, 1, 1 do not rise from 1"),
    "fewer rows than any call has": (
        lambda it: it["rows"][3].update(minimum=1, optimum=2, maximum=2),
        "rows: every call has 3 Q or more, the maximum is 2",
    ),
    "unknown field": (lambda it: it.update(dla=True), "unknown field dla"),
    "unknown field inside": (lambda it: it["memory"].update(swap=1), "unknown field memory.swap"),
    "missing field": (lambda it: it.pop("sources"), "missing field sources"),
    "wrong type": (lambda it: it.update(title=3), "title: expected str, found 3"),
    "other format": (lambda it: it.update(format="x"), "format: expected 'trunkline-target'"),
    "newer schema": (lambda it: it.update(schema=2), "schema: expected 1, found 2"),
    "other kind": (lambda it: it.update(kind="tpu"), "kind: expected 'jetson' or 'gpu' or 'cpu'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_a_profile_must_not_say(case: str, tmp_path: Path) -> None:
    change, decisive = WRONG[case]
    assert decisive in "\n".join(refused(written(tmp_path, change)))


@pytest.mark.parametrize(("base", "backend", "kind"), [("x86-cpu", "tensorrt", "cpu"), ("rtx-40", "openvino", "gpu")])
def test_back_ends_that_compute_elsewhere(base: str, backend: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path, lambda it: it["backends"].append(backend), base)
    assert refused(path) == [f"backends: {backend} does not compute on a {kind}"]


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content.update(name="MINE", sources=[], workspace_bytes=0, compute_capability="?", software=[])
        content["rows"][1]["minimum"] = 0
        content["precisions"]["float32"]["use"] = "default"

    assert len(refused(written(tmp_path, spoil))) == 7


def test_fields_that_are_wrong_are_told_at_once(tmp_path: Path) -> None:
    found = refused(written(tmp_path, lambda it: it.update(title=1, schema=7, more=2)))
    assert len(found) == 3


def test_thousands_of_faults_are_not_all_told(tmp_path: Path) -> None:
    found = refused(written(tmp_path, lambda it: it.update(sources=[""] * 3000)))
    assert len(found) == record.MAX_LISTED + 1
    assert found[-1] == "and 2950 more"


@pytest.mark.parametrize(
    ("content", "decisive"),
    [
        (b"", "empty"),
        (b"\x7fELF\x02\x01\xff\xfe", "not UTF-8"),
        (b"[" * 100_000, "nested deeper"),
        (b" " * (record.MAX_TEXT_BYTES + 1), "more than the"),
        (b'{"name": "a", "name": "b"}', "duplicate key"),
        (b"[]", "expected an object"),
        (b'{"memory": NaN}', "NaN"),
    ],
)
def test_files_that_are_no_profiles(content: bytes, decisive: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_bytes(content)
    assert decisive in "\n".join(refused(path))


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.json").mkdir()
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "broken.json").symlink_to(tmp_path / "nowhere")
    assert refused(tmp_path / "folder.json") == refused(tmp_path / "pipe.json") == ["not a file"]
    assert refused(tmp_path / "broken.json") == refused(tmp_path / "missing.json") == ["no such file"]
    assert "cannot be read" in refused(tmp_path / ("x" * 300 + ".json"))[0]


# A user's own


def test_a_profile_that_was_printed_is_one_to_start_from(home: Path) -> None:
    written(home, lambda it: it["memory"].update(total_bytes=4 << 30))
    found = profiles()
    assert list(found)[-1] == "mine"
    assert found["mine"].memory.total_bytes == 4 << 30
    assert named("mine", found) is found["mine"]


def test_without_a_folder_there_are_the_built_in_ones(home: Path) -> None:
    assert not home.exists()
    assert len(profiles()) == len(JETSONS + GPUS + CPUS)


def test_where_the_users_folder_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert user_folder() == home
    for base in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", base)
        assert user_folder() == Path.home() / ".config" / "trunkline" / "targets"

    def no_home() -> Path:
        raise RuntimeError("no home directory")

    monkeypatch.setattr(Path, "home", no_home)
    assert user_folder() is None
    assert set(profiles()) == {*JETSONS, *GPUS, *CPUS}


def test_two_profiles_of_one_name(home: Path) -> None:
    written(home, lambda it: it.update(name="jetson-thor"))
    with pytest.raises(TargetError, match=r"'jetson-thor' is also that of .*jetson-thor\.json"):
        profiles()


def test_all_files_that_are_wrong_are_named(home: Path) -> None:
    written(home).rename(home / "first.json")
    written(home).rename(home / "second.json")
    (home / "third.json").write_text("{")
    with pytest.raises(TargetError) as caught:
        profiles()
    text = str(caught.value)
    assert "device profiles are malformed" in text
    assert f"{home / 'second.json'}: name: 'mine' is also that of {home / 'first.json'}" in text
    assert f"{home / 'third.json'}: not JSON" in text
    assert "move it out of the way" in text


def test_other_files_in_the_folder_are_not_looked_at(home: Path) -> None:
    home.mkdir(parents=True)
    (home / "notes.txt").write_text("hello")
    assert "mine" not in profiles()


def test_a_target_may_be_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path)
    known = profiles(tmp_path / "none")
    assert named(str(path), known).name == "mine"
    monkeypatch.chdir(tmp_path)
    assert named("mine.json", known) == named("./mine.json", known) == read_profile(path)
    assert named(str(BUILT_IN / "a100.json"), known) == known["a100"]


def test_a_changed_copy_needs_a_name_of_its_own(tmp_path: Path) -> None:
    path = written(tmp_path, lambda it: it.update(name="jetson-thor"))
    with pytest.raises(TargetError, match=r"has the name of another one\n.*mine\.json\n.*jetson-thor\n.*another name"):
        named(str(path), profiles(tmp_path / "none"))


@pytest.mark.parametrize("target", ["toaster", "", "Jetson-Thor"])
def test_an_unknown_target_is_answered_with_all_there_are(target: str) -> None:
    with pytest.raises(TargetError, match="there is no such target") as caught:
        named(target, profiles())
    assert all(name in str(caught.value) for name in JETSONS + GPUS + CPUS)
    assert "trunkline targets" in str(caught.value)


def test_letters_are_those_of_stages() -> None:
    assert LETTERS == ("B", "I", "N", "Q")


# Installed


def test_profiles_are_installed(tmp_path: Path) -> None:
    """A wheel holds them, and they are found when it is imported from where pip puts it."""
    if int(metadata.version("setuptools").partition(".")[0]) < 77:
        pytest.skip("setuptools 77, which pyproject.toml asks for to make a wheel, is not installed")
    pip = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "runtime", "targets", "calibration", "exporter"):
        (source / name).symlink_to(ROOT / name)
    done = subprocess.run([*pip, "-w", tmp_path, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    code = "from trunkline.targets import profile; print(profile.__file__); print(*profile.profiles())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "XDG_CONFIG_HOME": str(tmp_path)}
    words = subprocess.check_output([sys.executable, "-c", code], env=environment, cwd=tmp_path, text=True).split()
    assert words[0].startswith(str(tmp_path / "site"))
    assert set(words[1:]) == {*JETSONS, *GPUS, *CPUS}
