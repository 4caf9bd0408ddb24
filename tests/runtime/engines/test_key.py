"""An engine's name holds everything that made it, and is the same everywhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.engines_kit import DEVICE, LIBRARY, SETTINGS, a_key
from trunkline.runtime import record
from trunkline.runtime.backends import StageFiles
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.engines.device import Device, Library
from trunkline.runtime.engines.key import EngineKey, engine_key
from trunkline.runtime.engines.settings import Rows
from trunkline.runtime.errors import BackendError, InputError

#: Computed once; a change means that every engine out there is built again.
DIGEST = "e7eb3e0c9ba5147b52ab0f67c5ed508290b5fa8342a41520157f1c2473c88253"

CHANGES: dict[str, Callable[[EngineKey], EngineKey]] = {
    "recipe": lambda key: replace(key, recipe=key.recipe + 1),
    "stage": lambda key: replace(key, stage="text"),
    "variant": lambda key: replace(key, variant="trt"),
    "graph": lambda key: replace(key, graph="3" * 64),
    "weights": lambda key: replace(key, weights="3" * 64),
    "no weights": lambda key: replace(key, weights=None),
    "library": lambda key: replace(key, library=Library("other", key.library.version)),
    "version": lambda key: replace(key, library=Library(key.library.name, "1.0.1")),
    "device": lambda key: replace(key, device=replace(key.device, name="Thor")),
    "capability": lambda key: replace(key, device=replace(key.device, compute_capability="8.6")),
    "driver": lambda key: replace(key, device=replace(key.device, driver="540.4.1")),
    "system": lambda key: replace(key, device=replace(key.device, system="linux-x86_64")),
    "workspace": lambda key: replace(key, settings=replace(key.settings, workspace_bytes=5)),
    "level": lambda key: replace(key, settings=replace(key.settings, optimization_level=5)),
    "versions": lambda key: replace(key, settings=replace(key.settings, version_compatible=True)),
    "hardware": lambda key: replace(key, settings=replace(key.settings, hardware_compatibility="ampere_plus")),
    "profile": lambda key: replace(key, settings=replace(key.settings, profile=(Rows("B", 1, 1, 2),))),
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_difference_makes_another_name(name: str) -> None:
    changed = CHANGES[name](a_key())
    assert changed.digest != a_key().digest
    assert len(changed.differences(a_key())) == 1
    assert list(changed.problems()) == []


def test_names_of_all_changes_are_distinct() -> None:
    assert len({change(a_key()).digest for change in CHANGES.values()}) == len(CHANGES)


def test_the_digest_is_the_same_everywhere() -> None:
    """In another process with another hash seed; the constant was computed under Python 3.10 as well."""
    code = "from tests.engines_kit import a_key; print(a_key().digest)"
    for seed in ("0", "1"):
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        )
        assert done.stdout.strip() == a_key().digest
    assert a_key().digest == DIGEST


def test_the_record_comes_back() -> None:
    assert record.decode(record.encode(a_key()), EngineKey) == a_key()


def test_differences_in_words() -> None:
    (words,) = a_key().differences(replace(a_key(), library=Library("fake", "2.0")))
    assert words == "library.version: '1.0.0' here, '2.0' there"


@pytest.mark.parametrize(
    ("key", "decisive"),
    [
        (a_key(graph="1" * 63), "key.graph"),
        (a_key(graph="A" * 64), "key.graph"),
        (a_key(weights="../../etc/passwd"), "key.weights"),
        (a_key(format="x"), "trunkline-engine-key"),
        (a_key(schema=2), "schema"),
        (a_key(library=Library("", "1")), "library.name"),
        (a_key(device=Device("a\x1b[31m", "8.7", "5", "linux")), "device.name"),
        (a_key(device=Device("a" * 201, "8.7", "5", "linux")), "device.name"),
        (a_key(settings=replace(SETTINGS, workspace_bytes=0)), "workspace_bytes"),
    ],
)
def test_what_a_key_cannot_be(key: EngineKey, decisive: str) -> None:
    (problem,) = key.problems()
    assert decisive in problem


def files_of(bundle: Path, stage: str) -> StageFiles:
    opened = Bundle(bundle)
    variant = opened.manifest.stages[stage].variants["cpu"]
    digest = opened.manifest.files[variant.weights].sha256 if variant.weights else None
    path = bundle / variant.graph
    return StageFiles(stage, opened.manifest.stages[stage], path.read_bytes(), path.parent, None, digest)


def test_a_key_is_made_of_a_stage(bundle: Path) -> None:
    files = files_of(bundle, "action")
    made = engine_key(files, SETTINGS, variant="cpu", library=LIBRARY, device=DEVICE)
    entries = Bundle(bundle).manifest.files
    assert (made.graph, made.weights) == tuple(
        entries[f"stages/action/cpu.{end}"].sha256 for end in ("onnx", "weights")
    )
    assert [rows.letter for rows in made.settings.profile] == ["N"]
    assert list(made.problems()) == []


def test_settings_of_other_stages_do_not_matter(bundle: Path) -> None:
    more = replace(SETTINGS, profile=(*SETTINGS.profile[:2], Rows("N", 1, 50, 100)))
    for stage, same in {"vision": True, "action": False}.items():
        files = files_of(bundle, stage)
        one, two = (
            engine_key(files, settings, variant="cpu", library=LIBRARY, device=DEVICE) for settings in (SETTINGS, more)
        )
        assert (one == two) is same


def test_weights_without_a_digest_are_refused(bundle: Path) -> None:
    """Two heads of one architecture have the same graph."""
    files = replace(files_of(bundle, "action"), weights_digest=None)
    with pytest.raises(BackendError, match=r"without the digest of its stage's weights\n.*stage action"):
        engine_key(files, SETTINGS, variant="cpu", library=LIBRARY, device=DEVICE)


def test_a_letter_without_a_profile_is_refused(bundle: Path) -> None:
    bare = replace(SETTINGS, profile=())
    with pytest.raises(InputError, match=r"says nothing about a varying dimension\n.*dimension N\n(.|\n)*add N"):
        engine_key(files_of(bundle, "action"), bare, variant="cpu", library=LIBRARY, device=DEVICE)
