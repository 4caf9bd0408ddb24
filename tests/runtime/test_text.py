"""Token ids equal open_clip's for whatever a person or a program may write; what cannot steer a robot is refused."""

# ruff: noqa: RUF001 (instructions hold characters that look alike on purpose)

from __future__ import annotations

import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import open_clip
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer, get_clean_fn

from tests.tokenizers_kit import CONTEXT_LENGTH, CORPUS, ROWS, SAVERS
from trunkline.exporter.preprocessing import text_assets
from trunkline.runtime.errors import BundleError, InstructionError
from trunkline.runtime.text import MAX_INSTRUCTION_CHARS, Clean, TextSpec, Tokenizer, clean

KINDS = ("bpe", "unigram", "wordpiece", "wordpiece stripped", "unigram from the left", "clip", "clip canonicalize")
CLEANS = get_args(Clean)

PIECES = (
    *(
        "put ",
        "the ",
        "red block",
        "Bowl",
        "don't",
        "'s",
        "'LL",
        "'ſ",
        "x_y",
        "3.14",
        "42",
        " ",
        "  ",
        "\t",
        "\n",
        "\r\n",
    ),
    *(
        "!",
        "...",
        "-",
        "_",
        "'",
        '"',
        "<",
        ">",
        "#@",
        "([{",
        "&",
        "&amp;",
        "&lt;",
        "&amp;lt;",
        "&#39;",
        "&#x1F600;",
        "&nbsp;",
    ),
    *(
        "é",
        "e\u0301",
        "ß",
        "ẞ",
        "İ",
        "ı",
        "ſ",
        "\u0345",
        "\u0301",
        "\u0323\u0301\u0316",
        "ﬁ",
        "Å",
        "K\u212a",
        "ǆ",
        "①",
        "Ⅻ",
    ),
    *(
        "你好",
        "ロボット",
        "ｱ",
        "로봇",
        "привет",
        "ΣΊΣΥΦΟΣ",
        "ब्लॉक",
        "ก็",
        "الحمراء",
        "קובייה",
        "\u202e",
        "\u2067",
        "\u200b",
        "\u200d",
    ),
    *(
        "😀",
        "👩\u200d🔧",
        "🇩🇪",
        "👍🏽",
        "❤\ufe0f",
        "\ufdd0",
        "\ufffd",
        "\ue000",
        "\U000e0041",
        "\U00031350",
        "\u0558",
        "\u208f",
    ),
    *("\x00", "\x07", "\x1b[1m", "\x1c", "\x7f", "\x85", "\xa0", "\xad", "\ufeff", "\u2028", "\u3000", "Ã©", "â€œ"),
    *("<eos>", "</s>", "<pad>", "[SEP]", "[CLS]", "[MASK]", "<unk>", "<0x41>", "▁", "##ing", "</w>", "Ġ"),
    *("<start_of_text>", "<end_of_text>", "<START_of_text>", "<ſtart_of_text>", "start_of_text>", "<|endoftext|>"),
)


@cache
def reference(kind: str) -> Callable[[list[str]], Any]:
    """An open_clip tokenizer; the files that it was loaded from are gone afterwards."""
    if kind.startswith("clip"):
        return SimpleTokenizer(clean="canonicalize" if "canonicalize" in kind else "lower")
    options: dict[str, Any] = {}
    if "stripped" in kind:
        options = {"tokenizer_kwargs": {"clean": "lower", "strip_sep_token": True}}
    if "left" in kind:
        options = {"fast": {"padding_side": "left", "truncation_side": "left"}}
    with TemporaryDirectory() as folder:
        return open_clip.get_tokenizer(f"local-dir:{SAVERS[kind.split()[0]](Path(folder), **options)}")


@cache
def assets(kind: str) -> tuple[TextSpec, bytes]:
    return text_assets(reference(kind), ROWS)


@cache
def ours(kind: str) -> Tokenizer:
    return Tokenizer(*assets(kind))


def assert_equal_to_reference(kind: str, text: str) -> None:
    if not clean(text, ours(kind).spec.clean):
        with pytest.raises(InstructionError, match="has no words"):
            ours(kind)([text])
        return
    ids = ours(kind)([text])
    assert ids.dtype == np.int64
    assert ids.tolist() == reference(kind)([text]).tolist()


@st.composite
def instructions(draw: st.DrawFn) -> str:
    character = st.characters(exclude_categories=["Cs"])
    parts = draw(st.lists(st.sampled_from(PIECES) | st.text(character, max_size=5), max_size=12))
    return "".join(parts)


class TestIdsEqualTheReference:
    @pytest.mark.parametrize("kind", KINDS)
    def test_any_text(self, kind: str) -> None:
        @settings(derandomize=True, deadline=None, max_examples=120, database=None)
        @given(instructions())
        def check(text: str) -> None:
            assert_equal_to_reference(kind, text)

        check()

    @pytest.mark.parametrize("kind", KINDS)
    def test_many_random_texts(self, kind: str) -> None:
        rng = random.Random(7)
        for _ in range(300):
            words = [rng.choice(rng.choice((PIECES, CORPUS))) for _ in range(rng.randrange(1, 9))]
            assert_equal_to_reference(kind, rng.choice(("", " ")).join(words))

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_length_around_the_context(self, kind: str) -> None:
        length = ours(kind).spec.context_length
        for count in range(1, 2 * length):
            assert_equal_to_reference(kind, " ".join(["block"] * count))

    @pytest.mark.parametrize("kind", KINDS)
    def test_the_longest_instruction(self, kind: str) -> None:
        assert_equal_to_reference(kind, ("put the red block " * 1000)[:MAX_INSTRUCTION_CHARS])
        assert_equal_to_reference(kind, "é" * MAX_INSTRUCTION_CHARS)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_batch_is_its_rows(self, kind: str) -> None:
        ids = ours(kind)(CORPUS)
        assert ids.shape == (len(CORPUS), ours(kind).spec.context_length)
        assert ids.tolist() == reference(kind)(list(CORPUS)).tolist()

    def test_clip_knows_every_character(self) -> None:
        """Each character after a letter, before a digit, and alone: categories, case folding and bytes."""
        rng = random.Random(3)
        characters = [chr(code) for code in (*range(0x250), *range(0x300, 0x380), *range(0x2000, 0x2100))]
        characters += [chr(code) for code in rng.sample(range(0xE000, 0x110000), 2000)]
        characters += [chr(code) for code in rng.sample(range(0x250, 0xD800), 4000)]
        texts = [" ".join(f"a{c}1 {c}" for c in characters[at : at + 8]) for at in range(0, len(characters), 8)]
        tokenizer = Tokenizer(*text_assets(SimpleTokenizer(context_length=400), ROWS))
        expected = SimpleTokenizer(context_length=400)(texts).numpy()
        np.testing.assert_array_equal(tokenizer(texts), expected)

    def test_special_text_where_no_word_may_begin(self) -> None:
        for text in (
            "!<start_of_text>",
            "a<end_of_text>!<end_of_text>",
            "<start_of_text><end_of_text>>",
            "<<end_of_text>",
        ):
            assert_equal_to_reference("clip", text)
        assert 49406 in ours("clip")(["put <start_of_text>"])[0, 1:]
        assert 49406 not in ours("clip")(["put !<start_of_text>"])[0, 1:]

    def test_stripped_separators_are_zero(self) -> None:
        tokenizer = ours("wordpiece stripped")
        assert tokenizer.spec.strip_token == 2
        assert 2 not in tokenizer(["put the [SEP] block"])
        assert 2 in Tokenizer(replace(tokenizer.spec, strip_token=None), assets("wordpiece stripped")[1])(["put"])


class TestClean:
    @pytest.mark.parametrize("how", CLEANS)
    def test_equals_the_reference(self, how: Clean) -> None:
        @settings(derandomize=True, deadline=None, max_examples=150, database=None)
        @given(instructions())
        def check(text: str) -> None:
            assert clean(text, how) == get_clean_fn(how)(text)

        check()

    @pytest.mark.parametrize(
        ("how", "expected"),
        [
            ("whitespace", "Put the “Red_Block” & café!"),
            ("lower", "put the “red_block” & café!"),
            ("canonicalize", "put the “red block” café"),
        ],
    )
    def test_what_each_does(self, how: Clean, expected: str) -> None:
        expected = expected.replace("“", '"').replace("”", '"') if how != "canonicalize" else "put the red block café"
        assert clean("  Put the\n“Red_Block”\t&amp;amp; cafÃ©! ", how) == expected

    def test_an_entity_that_is_no_number(self) -> None:
        with pytest.raises(InstructionError, match=r"(?s)cannot be cleaned.*remove the HTML entity"):
            clean("&#" + "9" * 5000 + ";", "lower")


class TestRefusedInstructions:
    @pytest.mark.parametrize("text", ["", "   ", "\n\t", "\x00\x07", "&nbsp;", "\u3000", "&amp;nbsp;"])
    @pytest.mark.parametrize("kind", ["bpe", "wordpiece", "clip"])
    def test_without_words(self, kind: str, text: str) -> None:
        with pytest.raises(InstructionError, match=r"(?s)has no words.*instruction 1.*say what the robot is to do"):
            ours(kind)(["put", text])

    def test_without_words_once_punctuation_is_dropped(self) -> None:
        with pytest.raises(InstructionError, match=r"(?s)has no words.*drops punctuation.*'\?!'"):
            ours("bpe")(["?!"])
        assert ours("wordpiece")(["?!"]).shape == (1, CONTEXT_LENGTH)

    def test_too_long(self) -> None:
        with pytest.raises(InstructionError, match=r"(?s)too long.*at most 10000.*10001 characters.*shorten"):
            ours("bpe")(["a" * (MAX_INSTRUCTION_CHARS + 1)])

    @pytest.mark.parametrize("text", ["put \ud800 down", "\udcff", "\ud83d\ude00"])
    def test_half_characters(self, text: str) -> None:
        with pytest.raises(
            InstructionError, match=r"(?s)surrogate.*'\\ud[0-9a-f]{3}' at position.*surrogateescape"
        ) as caught:
            ours("bpe")([text])
        assert isinstance(caught.value.__cause__, UnicodeEncodeError)

    @pytest.mark.parametrize(
        ("thing", "message"),
        [
            (b"put", "(?s)not text.*found: bytes.*decode"),
            (None, "(?s)not text.*found: NoneType"),
            (["put"], "found: list"),
        ],
    )
    def test_not_text(self, thing: Any, message: str) -> None:
        with pytest.raises(InstructionError, match=message):
            ours("bpe")(["put", thing])

    @pytest.mark.parametrize(
        ("things", "message"),
        [
            ("put", r"(?s)one string.*\[instruction\]"),
            ([], "(?s)an empty list.*at least one"),
            ((), "an empty list"),
            (None, "NoneType"),
            (7, "int"),
            ({"put"}, "(?s)found: set.*list of strings"),
        ],
    )
    def test_not_a_list(self, things: Any, message: str) -> None:
        with pytest.raises(InstructionError, match=message):
            ours("bpe")(things)

    def test_entity_bomb(self) -> None:
        with pytest.raises(InstructionError, match="cannot be cleaned"):
            ours("clip")(["&#" + "9" * 9000 + ";"])


def edited(change: Callable[[dict[str, Any]], None]) -> bytes:
    content = json.loads(assets("wordpiece")[1])
    change(content)
    return json.dumps(content).encode()


class TestRefusedBundles:
    @pytest.mark.parametrize(
        "content",
        [b"", b"{}", b"null", b"[]", b"\xff\xfe{", b"[" * 100_000, b'{"version":"1.0","model":{"type":"Evil"}}'],
    )
    def test_not_a_tokenizer(self, content: bytes) -> None:
        with pytest.raises(
            BundleError, match=r"(?s)cannot be read.*the JSON of a tokenizer.*export the bundle again"
        ) as caught:
            Tokenizer(assets("bpe")[0], content)
        assert caught.value.__cause__ is not None

    def test_half_a_tokenizer(self) -> None:
        spec, content = assets("bpe")
        with pytest.raises(BundleError, match="cannot be read"):
            Tokenizer(spec, content[: len(content) // 2])

    def test_text_instead_of_bytes(self) -> None:
        spec, content = assets("bpe")
        with pytest.raises(BundleError, match="cannot be read"):
            Tokenizer(spec, content.decode())  # type: ignore[arg-type]

    def test_other_context_length(self) -> None:
        spec, content = assets("bpe")
        with pytest.raises(BundleError, match=r"(?s)other lengths.*truncation to 17.*truncation to 16.*padding to 16"):
            Tokenizer(replace(spec, context_length=17), content)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda content: content.update(truncation=None), "truncation to None"),
            (lambda content: content.update(padding=None), "padding to None"),
            (lambda content: content["padding"].update(strategy="BatchLongest"), "padding to None"),
            (lambda content: content["padding"].update(strategy={"Fixed": 10**12}), "padding to 1000000000000"),
            (lambda content: content["padding"].update(pad_to_multiple_of=10**12), "multiple of 1000000000000"),
        ],
    )
    def test_forged_lengths(self, change: Callable[[dict[str, Any]], None], message: str) -> None:
        with pytest.raises(BundleError, match=message):
            Tokenizer(assets("wordpiece")[0], edited(change))

    def test_wrong_width(self) -> None:
        tokenizer = ours("bpe")
        other = tokenizers.Tokenizer.from_buffer(assets("bpe")[1])
        other.no_padding()
        forged = Tokenizer(*assets("bpe"))
        forged._tokenizer = other
        assert tokenizer(["put"]).shape == (1, CONTEXT_LENGTH)
        with pytest.raises(BundleError, match=r"(?s)wrong number of ids.*16 ids.*ids"):
            forged(["put"])

    def test_panics_of_the_library(self, capfd: pytest.CaptureFixture[str]) -> None:
        """A template that names a token it does not define makes the Rust side panic, which is no ``Exception``."""

        def change(content: dict[str, Any]) -> None:
            content["post_processor"]["special_tokens"] = {}

        with pytest.raises(BundleError, match=r"PanicException|cannot be read"):
            Tokenizer(assets("wordpiece")[0], edited(change))(["put the block"])
        capfd.readouterr()

    def test_damaged_tokenizers_end_in_ids_or_a_bundle_error(self, capfd: pytest.CaptureFixture[str]) -> None:
        spec, whole = assets("wordpiece")
        rng = random.Random(0)
        for _ in range(1000):
            damaged = bytearray(whole)
            for _ in range(rng.choice([1, 1, 3])):
                at = rng.randrange(len(damaged))
                damaged[at : at + rng.choice([0, 1, 1, 9])] = bytes(
                    rng.choices(b'0123456789{}[]",:ae', k=rng.choice([0, 1, 2]))
                )
            try:
                assert Tokenizer(spec, bytes(damaged))(["put the [SEP] block 😀"]).shape == (1, CONTEXT_LENGTH)
            except BundleError:
                continue
        capfd.readouterr()

    def test_interrupts_are_not_mapped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Interrupted:
            def encode(self, text: str) -> None:
                raise KeyboardInterrupt

        tokenizer = Tokenizer(*assets("bpe"))
        monkeypatch.setattr(tokenizer, "_tokenizer", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            tokenizer(["put"])


def test_threads_share_one_tokenizer() -> None:
    tokenizer = ours("clip")
    texts = [f"{text} {number}" for number in range(20) for text in CORPUS]
    expected = tokenizer(texts)
    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(lambda text: tokenizer([text])[0], texts))
    np.testing.assert_array_equal(rows, expected)
