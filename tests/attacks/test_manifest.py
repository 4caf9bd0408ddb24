"""Manifests that are broken, forged or from elsewhere are refused by name, quickly, and with all differences.

Numbers are those of docs/security.md, "Manifest" and "Graphs".
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bundles import copied, edit_manifest
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError
from trunkline.runtime.manifest import Manifest, read_manifest

SECONDS = 3.0  # far below what a quadratic reader takes for these texts, far above what ours does


@pytest.fixture(scope="module")
def text(bundle: Path) -> bytes:
    return (bundle / "manifest.json").read_bytes()


@pytest.fixture
def content(text: bytes) -> Any:
    return json.loads(text)


def refuse(text: bytes | dict[str, Any], match: str) -> BundleError:
    encoded = text if isinstance(text, bytes) else json.dumps(text).encode()
    started = time.process_time()  # of this process alone: others may keep the machine busy
    with pytest.raises(BundleError, match=match) as caught:
        read_manifest(encoded, "here/manifest.json")
    assert time.process_time() - started < SECONDS
    assert "here/manifest.json" in str(caught.value)
    assert len(str(caught.value)) < 20_000
    return caught.value


def test_01_missing(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "bundle")
    (folder / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"is not a bundle\n(.|\n)*manifest\.json\n(.|\n)*no such file"):
        Bundle(folder)


def test_01_no_directory(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"cannot open a bundle(.|\n)*no such directory"):
        Bundle(tmp_path / "absent")


@pytest.mark.parametrize("name", ["a\0b", "", "manifest.json"])
def test_01_path_that_is_no_directory(bundle: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"cannot open a bundle|is not a bundle"):
        Bundle(str(bundle / name) if name == "manifest.json" else name)


def test_04_64_megabytes_are_not_even_read(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copied(bundle, tmp_path / "bundle")
    with (folder / "manifest.json").open("r+b") as file:
        file.truncate(64 << 20)
    monkeypatch.setattr("trunkline.runtime.files.read_bytes", lambda *_: pytest.fail("read"))
    with pytest.raises(BundleError, match="67108864 bytes: too large"):
        Bundle(folder)


WHOLE_TEXTS = {
    "02 empty": (b"", "empty"),
    "02 blank": (b" \n\t ", "empty"),
    "03 no end": (b'{"format": "trunkline-bundle", "schema": 1', "not JSON"),
    "04 64 MB": (b" " * (64 << 20), "67108864 bytes, more than"),
    "05 duplicate key": (b'{"format": 1, "format": 2}', "duplicate key 'format'"),
    "05 many keys, one duplicate": (
        b"{" + b",".join(b'"%d":0' % i for i in range(300_000)) + b',"7":1}',
        "duplicate key '7'",
    ),
    "06 NaN": (b'{"format": NaN}', "NaN is not a JSON number"),
    "06 infinity": (b'{"format": -Infinity}', "-Infinity is not a JSON number"),
    "06 overflow": (b'{"format": 1e999}', "1e999 is too large"),
    "07 lists": (b"[" * 10_000 + b"]" * 10_000, "nested deeper than"),
    "07 objects": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested deeper than"),
    "07 behind an escaped quote": (b'{"\\"": ' + b"[" * 10_000, "nested deeper than"),
    "07 behind a string with a line break": (b'{"\\\n": ' + b"[" * 10_000, "nested deeper than"),
    "07 unclosed string of escaped quotes": (b'{"' + b'\\"' * 1_000_000, "not JSON"),
    "07 unclosed quotes and backslashes": (b'"' + b"\\\\" * 1_000_000, "not JSON"),
    "08 byte-order mark": (b"\xef\xbb\xbf{}", "byte-order mark"),
    "09 Latin-1": (b'{"format": "caf\xe9"}', "not UTF-8 at byte 15"),
    "09 UTF-16": ('{"format": 1}'.encode("utf-16"), "not UTF-8 at byte 0"),
    "12 a list": (b"[]", "not a bundle's manifest"),
    "12 a number": (b"7", "not a bundle's manifest"),
    "12 null": (b"null", "not a bundle's manifest"),
    "13 integer of 5000 digits": (b'{"format": ' + b"9" * 5000 + b"}", "not JSON"),
}


@pytest.mark.parametrize(("bad", "match"), WHOLE_TEXTS.values(), ids=WHOLE_TEXTS)
def test_whole_text(bad: bytes, match: str) -> None:
    refuse(bad, match)


def test_03_truncated_anywhere(text: bytes) -> None:
    for length in range(0, len(text.rstrip()) - 1, 37):
        refuse(text[:length], "malformed")


def test_10_unknown_field(content: Any) -> None:
    content["colour"] = 1
    content["trunk"]["size"] = 2
    content["stages"]["vision"]["variants"]["cpu"]["provider"] = "evil.so"
    error = refuse(content, "unknown field colour")
    assert "unknown field trunk.size" in str(error)  # all of them at once
    assert "unknown field stages['vision'].variants['cpu'].provider" in str(error)


def test_10_unknown_field_cannot_steer_the_terminal(content: Any) -> None:
    content["\x1b[2J" + "x" * 100_000] = 1
    assert "\x1b" not in str(refuse(content, r"unknown field '\\x1b\[2J"))


def test_10_thousands_of_unknown_fields_are_cut(content: Any) -> None:
    content |= {f"field{i}": 1 for i in range(50_000)}
    refuse(content, "and 49950 more")


@pytest.mark.parametrize("schema", [2, 99, 10**30])
def test_11_newer_schema(content: Any, schema: int) -> None:
    content["schema"] = schema
    refuse(content, "newer schema(.|\n)*update trunkline")


@pytest.mark.parametrize(("field", "value"), [("schema", 0), ("schema", "1"), ("format", "onnx"), ("format", None)])
def test_11_other_format(content: Any, field: str, value: object) -> None:
    content[field] = value
    refuse(content, "not a bundle's manifest")


def leaves(kind: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], Any]]:
    """Paths of every field of a record, through lists and mappings by their first entry."""
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        for field in dataclasses.fields(kind):
            yield (*path, field.name), hints[field.name]
            yield from leaves(hints[field.name], (*path, field.name))
    elif typing.get_origin(kind) is tuple:
        yield (*path, 0), typing.get_args(kind)[0]
        yield from leaves(typing.get_args(kind)[0], (*path, 0))
    elif typing.get_origin(kind) is dict:
        yield (*path, ""), typing.get_args(kind)[1]
        yield from leaves(typing.get_args(kind)[1], (*path, ""))


FIELDS = list(leaves(Manifest))


def parent_of(content: Any, path: tuple[str | int, ...]) -> tuple[Any, str | int]:
    """What holds the field at ``path``, and its key there; "" is the first entry of a mapping."""
    for step in path[:-1]:
        content = content[next(iter(content)) if step == "" else step]
    return content, next(iter(content)) if path[-1] == "" else path[-1]


def wrong_values(kind: Any) -> list[object]:
    options = typing.get_args(kind) if typing.get_origin(kind) in (typing.Union, types.UnionType) else (kind,)
    values: list[object] = [True, {"unknown": 1}, [[]], [None]]
    if type(None) not in options:
        values.append(None)
    if str not in options:
        values.append("text")
    if int not in options and float not in options:
        values.append(7)
    if float not in options:
        values.append(1.5)
    return values


@pytest.mark.parametrize(("path", "kind"), FIELDS, ids=[".".join(map(str, path)) for path, _ in FIELDS])
def test_12_wrong_type(content: Any, path: tuple[str | int, ...], kind: Any) -> None:
    if path == ("text", "instructions", 0):
        content["text"]["instructions"] = ["a"]
    for value in wrong_values(kind):
        changed = copy.deepcopy(content)
        holder, key = parent_of(changed, path)
        holder[key] = value
        refuse(changed, "malformed|not a bundle's manifest|newer schema|parity.gates are for")


# These may be left out; that they go together is tested below.
OPTIONAL = [("text", name) for name in ("tokenizer", "baked", "instructions")] + [
    ("parity", "calibration"),
    ("sensor",),
]
REQUIRED = [path for path, _ in FIELDS if isinstance(path[-1], str) and path[-1] and path not in OPTIONAL]


@pytest.mark.parametrize("path", REQUIRED, ids=lambda path: ".".join(map(str, path)))
def test_12_missing_field(content: Any, path: tuple[str | int, ...]) -> None:
    holder, key = parent_of(content, path)
    del holder[key]
    refuse(content, f"missing field .*{key}|not a bundle's manifest")


def test_12_all_differences_at_once(content: Any) -> None:
    content["embedding"] = "32"
    del content["trunk"]["digest"]
    content["members"][1]["name"] = 5
    error = refuse(content, "embedding: expected int, found '32'")
    assert "missing field trunk.digest" in str(error)
    assert "members[1].name: expected str, found 5" in str(error)


HUGE = 10**400  # an int, but no float


@pytest.mark.parametrize("value", [-1, 0, (1 << 20) + 1, 1 << 63, HUGE])
@pytest.mark.parametrize(
    "path",
    [
        *("embedding", "trunk.width", "trunk.patches", "actions.history_length", "actions.action_dim"),
        *("image.height", "image.width", "text.spec.context_length", "text.spec.vocab_size"),
    ],
)
def test_13_size_out_of_range(content: Any, path: str, value: int) -> None:
    *parents, key = path.split(".")
    holder = content
    for name in parents:
        holder = holder[name]
    holder[key] = value
    refuse(content, f"contradicts itself(.|\n)*{path} is {str(value)[:20]}")


@pytest.mark.parametrize("value", [-1, (1 << 40) + 1, HUGE])
def test_13_file_size(content: Any, value: int) -> None:
    content["files"]["golden.safetensors"]["size"] = value
    refuse(content, r"golden\.safetensors'?: size -?\d+.* is out of range")


@pytest.mark.parametrize("shape", [[0], [-1, 3], [1 << 40], [1 << 20, 1 << 20], [HUGE] * 900, [1] * 9, ["B"] * 2])
def test_13_tensor_shape(content: Any, shape: list[int]) -> None:
    content["stages"]["vision"]["inputs"][0]["shape"] = shape
    refuse(content, "stage 'vision': shape .* is out of range|may have one varying dimension")


def test_13_image_without_bound(content: Any) -> None:
    content["image"] |= {"height": 1 << 20, "width": 1 << 20}
    refuse(content, "image: 1048576 x 1048576 are more than")


def test_13_windows_without_bound(content: Any) -> None:
    content["actions"] |= {"history_length": 1 << 19, "action_dim": 1 << 19}
    refuse(content, "actions: windows of 524288 x 524288")


@pytest.mark.parametrize("field", ["padding_value"])
@pytest.mark.parametrize(("value", "match"), [(HUGE, "a number that a float can hold"), (1e39, "no float32")])
def test_13_huge_numbers(content: Any, field: str, value: float, match: str) -> None:
    content["actions"][field] = value
    refuse(content, match)


@pytest.mark.parametrize("value", [-1, 256, HUGE])
def test_13_fill(content: Any, value: int) -> None:
    content["image"]["fill"] = value
    refuse(content, "image.fill is .*, not 0 to 255")


@pytest.mark.parametrize("digest", ["", "AB" * 32, "g" * 64, "a" * 63, "a" * 64 + "\n"])
def test_13_digests(content: Any, digest: str) -> None:
    content["files"]["tokenizer.json"]["sha256"] = digest
    content["trunk"]["digest"] = digest
    content["members"][1]["digest"] = digest
    error = refuse(content, "'tokenizer.json': sha256 is not 64 lower-case hex digits")
    assert "trunk.digest is not 64" in str(error)
    assert "members[1].digest is not 64" in str(error)


def test_14_zero_members(content: Any) -> None:
    content["members"] = []
    refuse(content, "0 members; there must be 1 to 256")


def test_14_too_many_members(content: Any) -> None:
    content["members"] = [content["members"][0] | {"name": f"m{i}"} for i in range(257)]
    refuse(content, "257 members; there must be 1 to 256")


def test_15_two_members_of_one_name(content: Any) -> None:
    content["members"][1]["name"] = content["members"][0]["name"]
    refuse(content, "member names are not distinct: 'epoch_0' and 'epoch_0'")


BAD_NAMES = {
    "slash": ("a/b", "slash"),
    "parent": ("..", r"'\.\.' part"),
    "dot": (".", r"'\.' or"),
    "empty": ("", "empty"),
    "NUL": ("a\0b", "control"),
    "newline": ("a\nb", "control"),
    "escape": ("\x1b[31m", "control"),
    "bidirectional": ("a\u202eb", "control, format"),
    "zero width": ("a\u200bb", "control, format"),
    "private use": ("a\ue000", "control, format or unassigned"),
    "decomposed": ("cafe\u0301", "normal form C"),
    "backslash": ("a\\b", "backslash"),
    "drive": ("C:x", "colon"),
    "long": ("a" * 201, "longer than 200"),
    "half a character": ("a\ud800", "half characters"),
}


@pytest.mark.parametrize(("name", "match"), BAD_NAMES.values(), ids=BAD_NAMES)
def test_16_member_name(content: Any, name: str, match: str) -> None:
    content["members"][2]["name"] = name
    message = str(refuse(content, match))
    assert name in ("", ".", "..") or message.isprintable() or "\x1b" not in message
    assert "\u202e" not in message


@pytest.mark.parametrize(
    ("name", "match"),
    [
        *((bad, match) for key, (bad, match) in BAD_NAMES.items() if key not in ("slash", "half a character")),
        ("a\ud800", "half a character"),
        ("/etc/passwd", "is absolute"),
        ("../x", r"'\.\.' part"),
        ("a/../../b", r"'\.\.' part"),
        ("a//b", "empty"),
        ("a/", "empty"),
    ],
    ids=ascii,
)
def test_16_file_name(content: Any, name: str, match: str) -> None:
    content["files"][name] = content["files"].pop("tokenizer.json")
    content["text"]["tokenizer"] = name if "\ud800" not in name else "tokenizer.json"
    refuse(content, match)


def test_16_text_that_is_shown_cannot_steer_the_terminal(content: Any) -> None:
    content["trunk"]["name"] = "\x1b]0;title\a"
    content["members"][0]["source"] = "a\rb"
    content["producer"]["torch"] = "2\n3"
    error = refuse(content, "trunk.name holds characters that cannot be shown")
    assert r"members[0].source holds" in str(error)
    assert r"producer['torch'] holds" in str(error)


@pytest.mark.parametrize(
    ("one", "two"),
    [("Best", "bEST"), ("straße", "STRASSE"), ("ﬁne", "fine"), ("\u212bngstrom", "\u00e5ngstrom"), ("\u017f", "S")],
)
def test_17_names_that_some_file_systems_confuse(content: Any, one: str, two: str) -> None:
    content["members"][0]["name"], content["members"][1]["name"] = one, two
    refuse(content, "not distinct|normal form C")


def test_17_file_names_that_some_file_systems_confuse(content: Any) -> None:
    entry = content["files"].pop("tokenizer.json")
    content["files"] |= {"Tokenizer.json": entry, "tokenizer.JSON": entry}
    content["text"]["tokenizer"] = "Tokenizer.json"
    refuse(content, "file names are the same on some systems: 'tokenizer.JSON' and 'Tokenizer.json'")


SHAPES = {
    "vision width": (("vision", "outputs", 0), ["B", 100, 65]),
    "vision fixed where it varies": (("vision", "inputs", 0), [1, 160, 160, 3]),
    "text length": (("text", "inputs", 0), ["I", 13]),
    "context reads other tokens": (("context", "inputs", 1), ["I", 12, 63]),
    "context of fewer members": (("context", "outputs", 0), [2, "I", 32]),
    "action of another embedding": (("action", "outputs", 0), [3, "N", 31]),
    "action varies where it is fixed": (("action", "inputs", 0), [5, "N", 7]),
}


@pytest.mark.parametrize(("where", "shape"), SHAPES.values(), ids=SHAPES)
def test_46_shapes_that_do_not_fit_along_the_graph(content: Any, where: tuple[Any, ...], shape: list[Any]) -> None:
    stage, role, index = where
    content["stages"][stage][role][index]["shape"] = shape
    refuse(content, f"stage {stage} is .*expected ")


def test_46_tensor_of_another_name(content: Any) -> None:
    content["stages"]["context"]["inputs"][0]["name"] = "tokens"
    refuse(content, "stage context is .*expected patches")


@pytest.mark.parametrize("name", ["vision", "text", "context", "action"])
def test_missing_stage(content: Any, name: str) -> None:
    for variant in content["stages"].pop(name)["variants"].values():
        del content["files"][variant["graph"]], content["files"][variant["weights"]]
    refuse(content, f"stage {name} is missing")


def test_extra_stage(content: Any) -> None:
    content["stages"]["payload"] = content["stages"]["text"]
    refuse(content, "stage 'payload' does not belong to a verifier")


def test_stage_without_variants_or_with_two_outputs(content: Any) -> None:
    content["stages"]["vision"]["variants"] = {}
    content["stages"]["text"]["outputs"] *= 2
    error = refuse(content, "stage 'vision' has no variant")
    assert "stage 'text' has 2 outputs; one is supported" in str(error)


def test_file_that_is_used_but_not_listed(content: Any) -> None:
    del content["files"]["tokenizer.json"]
    refuse(content, "'tokenizer.json' is used but not listed in files")


def test_file_that_is_listed_but_not_used(content: Any) -> None:
    content["files"]["payload.so"] = content["files"]["tokenizer.json"]
    refuse(content, "'payload.so' is listed in files but not used")


def test_manifest_that_lists_itself(content: Any) -> None:
    content["files"]["manifest.json"] = content["files"]["tokenizer.json"]
    refuse(content, "the manifest lists itself")


def test_too_many_files(content: Any) -> None:
    content["files"] |= {f"f{i}": {"size": 0, "sha256": ""} for i in range(60_000)}
    refuse(content, "files; there may be 1024")


def test_neither_tokenizer_nor_baked_instructions(content: Any) -> None:
    del content["files"]["tokenizer.json"]
    content["text"]["tokenizer"] = None
    refuse(content, "exactly one of tokenizer and baked")


def test_baked_without_instructions(content: Any) -> None:
    content["text"] |= {"baked": "tokenizer.json", "tokenizer": None}
    refuse(content, "baked tokens and their instructions must come together")


@pytest.mark.parametrize("gate", [0, -1, 2.1])
def test_gate_that_passes_everything_or_nothing(content: Any, gate: float) -> None:
    content["parity"]["gates"] = {"cpu": gate}
    refuse(content, "gates must be positive, and at most 2")


@pytest.mark.parametrize("gates", [{}, {"trt": 0.01}, {"cpu": 0.01, "trt": 0.01}])
def test_gates_of_other_variants(content: Any, gates: dict[str, float]) -> None:
    content["parity"]["gates"] = gates
    refuse(content, r"parity.gates are for .*, the stages have \['cpu'\]")


def test_stages_with_different_variants(content: Any) -> None:
    variants = content["stages"]["action"]["variants"]
    variants["trt"] = variants.pop("cpu")
    refuse(content, r"stage 'action' has variants \['trt'\], all have \[\]")


def test_good_manifest_still_reads(bundle: Path, tmp_path: Path) -> None:
    folder = copied(bundle, tmp_path / "bundle")
    edit_manifest(folder, lambda manifest: None)
    assert Bundle(folder).manifest == Bundle(bundle).manifest
