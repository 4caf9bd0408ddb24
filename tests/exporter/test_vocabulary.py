"""An id beyond the trunk's token table never leaves the tokenizer: refused at export, unless no text can bring it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import tokenizers
from open_clip.tokenizer import SimpleTokenizer

from tests.tokenizers_kit import ROWS, SAVERS, save_bpe, save_unigram, save_wordpiece
from tests.trunks import save_trunk
from trunkline.exporter.preprocessing import text_assets
from trunkline.exporter.trunk import load_trunk
from trunkline.exporter.vocabulary import ids_given, require_rows
from trunkline.runtime.errors import InstructionError, TrunkError
from trunkline.runtime.text import Tokenizer

EXTRA = "<extra_id_0>"


def local(folder: Path) -> Any:
    return open_clip.get_tokenizer(f"local-dir:{folder}")


def size_of(folder: Path) -> int:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()


def add(folder: Path, content: str, index: int, *, model: bool = False) -> None:
    """One special token more, as an added one or, as T5 has its own, in the model's vocabulary too."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    whole["added_tokens"].append({"id": index, "content": content, **flags, "special": True})
    if model:
        assert len(whole["model"]["vocab"]) == index
        whole["model"]["vocab"].append([content, 0.0])
    path.write_text(json.dumps(whole))


@pytest.mark.parametrize("kind", SAVERS)
def test_the_largest_id_needs_the_last_row(kind: str, tmp_path: Path) -> None:
    folder = SAVERS[kind](tmp_path)
    rows = size_of(folder)
    spec, data = text_assets(local(folder), rows)
    assert spec.vocab_size == rows
    assert max(ids_given(data, spec)) == rows - 1
    with pytest.raises(TrunkError, match=rf"(?s)no embedding for.*HFTokenizer.*below {rows - 1}.* is {rows - 1}\n"):
        text_assets(local(folder), rows - 1)


def test_a_trunk_with_one_token_more_than_rows(tmp_path: Path) -> None:
    rows = size_of(save_bpe(tmp_path / "tokenizer"))
    name = save_trunk(tmp_path / "trunk", vocab_size=rows)
    assert load_trunk(name).text.vocab_size == rows
    add(tmp_path / "trunk", "gripper", rows)
    with pytest.raises(TrunkError, match=rf"(?s)ids below {rows}, the rows.*found: 'gripper' is {rows}\n.*fix: use"):
        load_trunk(name)


@pytest.mark.parametrize("rows", [1, 40])
def test_a_table_far_smaller_than_the_tokenizer(rows: int, tmp_path: Path) -> None:
    name = save_trunk(tmp_path, vocab_size=rows)
    with pytest.raises(TrunkError, match=rf"(?s)ids below {rows}.* is {rows}\n.*and \d+ more"):
        load_trunk(name)


def test_a_table_far_larger_than_the_tokenizer(tmp_path: Path) -> None:
    trunk = load_trunk(save_trunk(tmp_path, vocab_size=5000))
    assert trunk.text.vocab_size == 5000
    assert size_of(tmp_path) < 1000


def test_clips_own_links_of_merges_are_no_result() -> None:
    """Its data form holds ids beyond 49407, which nothing can give."""
    spec, data = text_assets(SimpleTokenizer(), ROWS)
    assert max(json.loads(data)["model"]["vocab"].values()) > ROWS
    assert Tokenizer(spec, data)(["<end_of_text>"]).max() == ROWS - 1
    with pytest.raises(TrunkError, match=r"(?s)SimpleTokenizer.*below 49407.*'<end_of_text>' is 49407"):
        text_assets(SimpleTokenizer(), ROWS - 1)


@pytest.mark.parametrize("model", [True, False], ids=["in the vocabulary too", "added"])
def test_an_added_token_that_cleaning_takes_away_needs_no_row(model: bool, tmp_path: Path) -> None:
    """The published tokenizers of SigLIP have 100 tokens more than the trunk has rows; nobody can write them."""
    folder = save_unigram(tmp_path)
    rows = size_of(folder)
    add(folder, EXTRA, rows, model=model)
    spec, data = text_assets(local(folder), rows)
    assert Tokenizer(spec, data)([f"put {EXTRA} down {EXTRA}"]).max() < rows


def test_a_normaliser_that_brings_it_back_is_refused_at_run_time(tmp_path: Path) -> None:
    """NFKC makes ASCII of small forms, which cleaning does not know for punctuation."""
    folder = save_unigram(tmp_path)
    rows = size_of(folder)
    add(folder, EXTRA, rows, model=True)
    text = "\ufe64extra\ufe4did\ufe4d0\ufe65"
    with pytest.raises(InstructionError, match=rf"(?s)no embedding for.*instruction 1.*'{EXTRA}' is {rows}\n"):
        Tokenizer(*text_assets(local(folder), rows))(["put", text])


@pytest.mark.parametrize("how", ["lower", "whitespace"])
def test_the_same_token_where_cleaning_keeps_it(how: str, tmp_path: Path) -> None:
    folder = save_unigram(tmp_path, tokenizer_kwargs={"clean": how})
    rows = size_of(folder)
    add(folder, EXTRA, rows)
    with pytest.raises(TrunkError, match=f"'{EXTRA}' is {rows}"):
        text_assets(local(folder), rows)


def test_an_added_token_without_punctuation(tmp_path: Path) -> None:
    folder = save_bpe(tmp_path)
    rows = size_of(folder)
    add(folder, "block", rows)
    with pytest.raises(TrunkError, match=f"'block' is {rows}"):
        text_assets(local(folder), rows)


AROUND: dict[str, Callable[[dict[str, Any]], object]] = {
    "padding": lambda whole: whole["padding"].update(pad_id=777, pad_token="far"),
    "a template": lambda whole: whole["post_processor"]["special_tokens"]["[SEP]"].update(ids=[777], tokens=["far"]),
    "BERT's": lambda whole: whole.update(
        post_processor={"type": "BertProcessing", "sep": ["far", 777], "cls": ["a", 1]}
    ),
    "RoBERTa's, in a sequence": lambda whole: whole.update(
        post_processor={
            "type": "Sequence",
            "processors": [
                {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
                {
                    "type": "RobertaProcessing",
                    "sep": ["a", 1],
                    "cls": ["far", 777],
                    "trim_offsets": True,
                    "add_prefix_space": True,
                },
            ],
        }
    ),
    "what stands for unknown words": lambda whole: (
        whole["model"]["vocab"].update({"[UNK]": 777}),
        whole["added_tokens"][0].update(id=777),
    ),
}


@pytest.mark.parametrize("change", AROUND.values(), ids=AROUND)
def test_ids_that_no_text_has_to_name(change: Callable[[dict[str, Any]], object], tmp_path: Path) -> None:
    """What is put around every text, or given for what is unknown; canonicalize would take its name away."""
    folder = save_wordpiece(tmp_path, tokenizer_kwargs={"clean": "canonicalize"})
    spec, data = text_assets(local(folder), ROWS)
    whole = json.loads(data)
    change(whole)
    changed = json.dumps(whole).encode()
    assert 777 in Tokenizer(spec, changed)(["put the ☃ down"])
    assert ids_given(changed, spec)[777] in ("far", "[UNK]")


def test_a_separator_that_is_replaced_needs_no_row(tmp_path: Path) -> None:
    settings = {"clean": "canonicalize", "strip_sep_token": True}
    spec, data = text_assets(local(save_wordpiece(tmp_path, tokenizer_kwargs=settings)), ROWS)
    given = ids_given(data, spec)
    assert spec.strip_token == 2
    assert sorted(given)[:4] == [0, 1, 4, 5]  # 2 is [SEP]; 3 is [MASK], which cleaning takes away
    require_rows(given, max(given) + 1, "here")
