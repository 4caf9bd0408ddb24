"""Tensor files whose digest is right and whose content is not.

Numbers are those of docs/security.md, "Tensors".
"""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load_file, save

from tests.bundles import copied, edit_manifest, frame, put, windows
from trunkline.runtime import Ensemble, load
from trunkline.runtime.bundle import Bundle
from trunkline.runtime.errors import BundleError, InputError, InstructionError, ParityError, TrunklineError
from trunkline.runtime.parity import check_parity, require_parity
from trunkline.runtime.stage_files import stage_files

GOLDEN = "golden.safetensors"
BAKED = "instructions.safetensors"
INSTRUCTIONS = ["put it down", "Pick it up!"]

Tensors = dict[str, NDArray[Any]]


def file_of(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape: list[int], dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


MALFORMED = {
    "37 empty": b"",
    "37 header too small": b"\x02\0",
    "37 header of a terabyte": file_of({}, length=1 << 40),
    "37 header of 2**64-1": file_of({}, length=(1 << 64) - 1),
    "37 not JSON": file_of(b"{nope"),
    "37 a list": file_of([]),
    "37 nested deep": file_of(b"[" * 100_000),
    "37 overlap": file_of({"a": tensor(0, 2, [2]), "b": tensor(1, 3, [2])}, b"\0" * 3),
    "37 hole": file_of({"a": tensor(1, 3, [2])}, b"\0" * 3),
    "37 trailing bytes": file_of({"a": tensor(0, 2, [2])}, b"\0" * 5),
    "37 past the end": file_of({"a": tensor(0, 200, [200])}, b"\0" * 5),
    "37 product overflows": file_of({"a": tensor(0, 2, [1 << 60, 1 << 60])}, b"\0" * 2),
    "37 negative size": file_of({"a": tensor(0, 2, [-1])}, b"\0" * 2),
    "38 unknown type": file_of({"a": tensor(0, 2, [2], "X9")}, b"\0" * 2),
    "38 type that numpy lacks": file_of({"a": tensor(0, 4, [2], "BF16")}, b"\0" * 4),
    "40 pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "40 zip, as .pt and .npz are": b"PK\x03\x04" + b"\0" * 60,
}


@pytest.fixture
def folder(bundle: Path, tmp_path: Path) -> Path:
    return copied(bundle, tmp_path / "bundle")


@pytest.fixture
def baked(folder: Path) -> Path:
    """The bundle with its text tower replaced by the tokens of two instructions."""
    with load(folder) as ensemble:
        ids = ensemble.token_ids(INSTRUCTIONS)
        assert ids is not None
        graph = ensemble._graph
        tokens = graph.nodes["text"].session.run({"ids": ids})["tokens"]  # type: ignore[union-attr]

    def change(manifest: dict[str, Any]) -> None:
        variant = manifest["stages"].pop("text")["variants"]["cpu"]
        for name in (variant["graph"], variant["weights"], "tokenizer.json"):
            del manifest["files"][name]
            (folder / name).unlink()
        manifest["text"] |= {"tokenizer": None, "baked": BAKED, "instructions": INSTRUCTIONS}

    edit_manifest(folder, change)
    put(folder, BAKED, save({"tokens": tokens}))
    return folder


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_golden_malformed(folder: Path, content: bytes) -> None:
    put(folder, GOLDEN, content)
    with pytest.raises(BundleError, match=f"tensor file of the bundle is malformed\n.*{GOLDEN}"):
        Bundle(folder).tensors(GOLDEN)


@pytest.mark.parametrize("content", MALFORMED.values(), ids=MALFORMED)
def test_baked_malformed(baked: Path, content: bytes) -> None:
    put(baked, BAKED, content)
    with pytest.raises(BundleError, match=f"tensor file of the bundle is malformed\n.*{BAKED}"):
        load(baked)


def with_far_token(folder: Path) -> None:
    """Puts the word "carrot" into the tokenizer, beyond the 1,000 rows of the trunk's table."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary |= {f"<unused{index}>": index for index in range(len(vocabulary), 1000)}
    added = {"id": 1000, "content": "carrot", "single_word": False, "lstrip": False, "rstrip": False}
    tokenizer["added_tokens"].append(added | {"normalized": False, "special": False})
    put(folder, "tokenizer.json", json.dumps(tokenizer).encode())


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_no_back_end_sees_an_id_beyond_the_token_table(folder: Path, ensemble: Ensemble, backend: str) -> None:
    expected = ensemble.score(frame(), INSTRUCTIONS[0], windows(3)).scores
    with_far_token(folder)
    with load(folder, backend=backend) as far:
        np.testing.assert_allclose(far.score(frame(), INSTRUCTIONS[0], windows(3)).scores, expected, atol=1e-5)
        for instructions in ("drop the carrot", ["put it down", "drop the carrot"]):
            with pytest.raises(InstructionError, match=r"(?s)ids below 1000.*'drop the carrot': 'carrot' is 1000\n"):
                far.score(frame(), instructions, windows(3))
        with pytest.raises(InstructionError, match="'carrot' is 1000"):
            far.token_ids(["drop the carrot"])


@pytest.mark.parametrize("made", ["bundle", "half_int8_bundle"])
@pytest.mark.parametrize("rows", [999, 1001])
def test_a_token_table_of_another_size(request: pytest.FixtureRequest, tmp_path: Path, made: str, rows: int) -> None:
    folder = copied(request.getfixturevalue(made), tmp_path / "bundle")
    edit_manifest(folder, lambda manifest: manifest["text"]["spec"].update(vocab_size=rows))
    bundle = Bundle(folder)
    for variant in bundle.manifest.stages["text"].variants:
        with (
            pytest.raises(BundleError, match=rf"(?s)of another size.*{variant}\.onnx.*{rows} rows.*shape \(1000, "),
            stage_files(bundle, "text", variant),
        ):
            pass


def test_baked_works_and_refuses_other_instructions(baked: Path, ensemble: Ensemble) -> None:
    with load(baked) as small:
        expected = ensemble.score(frame(), INSTRUCTIONS[1], windows(3)).scores
        np.testing.assert_allclose(small.score(frame(), "pick it UP", windows(3)).scores, expected, atol=1e-5)
        with pytest.raises(InstructionError, match=r"not one of them(.|\n)*throw it"):
            small.score(frame(), "throw it", windows(3))


BAD_TOKENS = {
    "38 dtype": (lambda tokens: tokens.astype(np.float64), "found: float64"),
    "38 width": (
        lambda tokens: tokens[:, :, :-1].copy(),
        r"expected: float32 \(2, 12, 64\)\n  found: float32 \(2, 12, 63\)",
    ),
    "38 length": (lambda tokens: tokens[:, :-1].copy(), r"found: float32 \(2, 11, 64\)"),
    "38 fewer than instructions": (lambda tokens: tokens[:1].copy(), r"found: float32 \(1, 12, 64\)"),
    "38 rank": (lambda tokens: tokens[0].copy(), r"found: float32 \(12, 64\)"),
    "39 NaN": (lambda tokens: np.where(np.arange(64) == 3, np.float32("nan"), tokens), "NaN or infinite"),
    "39 infinite": (lambda tokens: np.where(np.arange(64) == 3, np.float32("inf"), tokens), "NaN or infinite"),
}


@pytest.mark.parametrize(("change", "match"), BAD_TOKENS.values(), ids=BAD_TOKENS)
def test_baked_tokens(baked: Path, change: Any, match: str) -> None:
    tokens = load_file(baked / BAKED)["tokens"]
    put(baked, BAKED, save({"tokens": np.ascontiguousarray(change(tokens))}))
    with pytest.raises(BundleError, match=f"baked instructions are malformed(.|\n)*{match}"):
        load(baked)


def test_baked_tokens_of_another_name(baked: Path) -> None:
    put(baked, BAKED, save({"token": load_file(baked / BAKED)["tokens"]}))
    with pytest.raises(BundleError, match=r"baked instructions are malformed(.|\n)*no tokens"):
        load(baked)


def test_baked_instructions_that_are_one_once_cleaned(baked: Path) -> None:
    edit_manifest(baked, lambda manifest: manifest["text"].update(instructions=["Put it", "put it!"]))
    with pytest.raises(BundleError, match="not distinct once cleaned"):
        load(baked)


def test_baked_instruction_that_cannot_be_cleaned(baked: Path) -> None:
    edit_manifest(baked, lambda manifest: manifest["text"].update(instructions=["put it", f"&#{'9' * 5000};"]))
    with pytest.raises(BundleError, match=r"baked instructions are malformed(.|\n)*cannot be cleaned"):
        load(baked)


def test_39_huge_tokens_give_no_score(baked: Path) -> None:
    """Finite, but the context stage overflows on them."""
    tokens = load_file(baked / BAKED)["tokens"]
    put(baked, BAKED, save({"tokens": np.full_like(tokens, 3e38)}))
    with load(baked) as ensemble, pytest.raises(TrunklineError, match=r"not finite|not of length 1"):
        ensemble.score(frame(), INSTRUCTIONS[0], windows(2))


def golden_changed(folder: Path, change: Any) -> Path:
    tensors = load_file(folder / GOLDEN)
    change(tensors)
    put(folder, GOLDEN, save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))
    return folder


def setting(name: str, make: Any) -> Any:
    return lambda tensors: tensors.update({name: make(tensors[name])})


BAD_GOLDEN = {
    "38 scores of fewer candidates": (setting("scores_0", lambda it: it[:, :-1]), "scores of frame 0: float32"),
    "38 scores that broadcast": (setting("scores_1", lambda it: it[:, :1]), "scores of frame 1: float32"),
    "38 scores of another rank": (setting("scores_0", lambda it: it[0]), "scores of frame 0: float32"),
    "38 scores of another type": (setting("scores_0", lambda it: it.astype(np.float64)), "scores of frame 0: float64"),
    "39 NaN scores": (setting("scores_0", lambda it: it * np.float32("nan")), "scores of frame 0"),
    "39 infinite scores": (setting("member_scores_0", lambda it: it + np.float32("inf")), "member_scores of frame 0"),
    "38 scores of fewer members": (setting("member_scores_0", lambda it: it[:2]), "member_scores of frame 0"),
    "38 a frame of another type": (setting("frame_0", lambda it: it.astype(np.float32)), "frame 0: float32"),
    "38 a frame of another rank": (setting("frame_0", lambda it: it[None]), r"frame 0: uint8 \(1, "),
    "41 a frame that is cut short": (setting("frame_0", lambda it: it[: it.size // 2]), "image cannot be decoded"),
    "41 a frame that is no PNG": (setting("frame_0", lambda it: it[::-1]), "frame 0: the image file"),
    "no scores": (lambda tensors: tensors.pop("scores_1"), "no scores of frame 1"),
    "no candidates": (lambda tensors: tensors.pop("histories_0"), "no histories of frame 0"),
    "no digest of normalised pixels": (lambda tensors: tensors.pop("normalised_1"), "no normalised of frame 1"),
    "no ids": (lambda tensors: tensors.pop("ids_0"), "no ids of frame 0"),
}


@pytest.mark.parametrize(("change", "match"), BAD_GOLDEN.values(), ids=BAD_GOLDEN)
def test_golden_vectors(folder: Path, change: Any, match: str) -> None:
    match = f"golden vectors are malformed(.|\n)*{match}"
    with load(golden_changed(folder, change)) as ensemble, pytest.raises(BundleError, match=match):
        check_parity(ensemble)


def test_no_golden_vectors(folder: Path) -> None:
    match = "holds no golden vectors"
    with load(golden_changed(folder, dict.clear)) as ensemble, pytest.raises(BundleError, match=match):
        check_parity(ensemble)


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("histories_0", lambda it: it[:, :, :-1]),
        ("histories_0", lambda it: it * np.float32("nan")),
    ],
)
def test_golden_inputs_that_cannot_be_scored(folder: Path, name: str, make: Any) -> None:
    with load(golden_changed(folder, setting(name, make))) as ensemble, pytest.raises(InputError):
        check_parity(ensemble)


@pytest.mark.parametrize(
    ("name", "make", "match"),
    [
        ("scores_0", lambda it: it + np.float32(0.01), "a score changed by 0.01"),
        ("scores_0", lambda it: -it, "have another winner"),
        ("pixels_1", lambda it: it ^ 1, "preprocessing of 1 of"),
        ("ids_0", lambda it: it + 1, "token ids of"),
    ],
)
def test_golden_vectors_of_another_ensemble(folder: Path, name: str, make: Any, match: str) -> None:
    with load(golden_changed(folder, setting(name, make))) as ensemble:
        report = check_parity(ensemble)
        assert not report.passed
        with pytest.raises(ParityError, match=match):
            require_parity(report, folder)


def test_40_npz_is_never_unpickled(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = io.BytesIO()
    np.savez(archive, scores=np.array([{"a": 1}], dtype=object))
    put(folder, GOLDEN, archive.getvalue())
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("np.load was called"))
    with pytest.raises(BundleError, match="malformed"):
        Bundle(folder).tensors(GOLDEN)
