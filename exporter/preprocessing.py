"""Describes an open_clip model's image preprocessing and tokenizer as data that the runtime can carry out.

Promises: what is returned was compared with open_clip itself, pixel for pixel and id for id, on probes that are built
in; a difference is an error, never a warning. Refuses what is no function of its input (tokenizers that drop tokens at
random) and what exists only as Python code (slow tokenizers, open_clip's ``clips`` mode).
"""

# ruff: noqa: RUF001 (probes hold characters that look alike on purpose)

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, get_args

import numpy as np
import regex
import tokenizers
import torch
from open_clip.tokenizer import HFTokenizer, SigLipTokenizer, SimpleTokenizer, get_clean_fn
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from tokenizers import models, pre_tokenizers, processors

from trunkline.exporter.vocabulary import ids_given, require_rows
from trunkline.runtime.errors import BundleError, TrunkError
from trunkline.runtime.image import MAX_PIXELS, MIN_SIDE_PX, ImageSpec, normalised, to_pixels
from trunkline.runtime.text import MAX_INSTRUCTION_CHARS, Clean, TextSpec, Tokenizer, clean

_PROBE_IMAGES = ((97, 61, "RGB"), (40, 131, "RGB"), (500, 375, "RGB"), (64, 64, "L"))  # width, height, mode

# One probe between each two bars or lines.
_SHORT_PROBES = """a|Z|7|pick up the red block|Put the CARROT on the plate.|open the top drawer!|don't drop it
I'll, we've, you're, he'd, I'm, it's, can't|IT'S WHAT WE'VE GOT|the robots' arms 's 't|rock'n'roll|'same 'tis 'really
move 3 cm left|10,000.50 m/s|grasp at (0.12, -3.4e-5)|v1.2.3-rc4+build|50% of 1/2 = 25 %|#1 @home|2x4 cm3
under_score snake_case|path/to/file.txt|http://example.com/a?b=c&d=e|a\tb\rc|  many   spaces  |x   .   y
...|?!?!|--- === ~~~|"quoted" 'single' `tick`|{curly} [square] <angle>|a*b^c\\d|$5 & 6|(((nested)))
“curly” ‘quotes’ – — …|«guillemets» ‹single›|10° ± 2 µm × 3 ÷ 4|€ £ ¥ ₿ ¢|→ ← ↑ ↓ ⇒ ∀x∈ℝ|½ ¼ Ⅻ ① ² ٣ ३
café naïve façade|cafe\u0301 nai\u0308ve|Straße GRÖẞE|İstanbul ıspanak|Ελληνικά ΣΊΣΥΦΟΣ|Привет МИР|Đặt khối đỏ
你好，世界。|ロボットアーム|ﾛﾎﾞｯﾄ ｱｰﾑ|로봇 팔|ＦＵＬＬ ｗｉｄｔｈ １２３|यह एक लाल ब्लॉक है|ยกบล็อกสีแดง|\U00020000\U0002a6d6
ارفع الكتلة الحمراء|הרם את הקובייה|\u202eright to left\u202c|a\u200bb\u200cc\u200dd\ufeffe|soft\u00adhyphen
😀|🤖🦾 grab|👩\u200d🔧 helps|🇩🇪 flag|👍🏽|❤\ufe0f|a😀b|𝔣𝔯𝔞𝔨𝔱𝔲𝔯 𝟙𝟚𝟛|Z\u0351\u036ba\u0327lgo|\u0301 alone
ﬁne ﬂow ﬃ|ſtop the ſaw|'ſ it|K\u212a Å\u212b|\u0345 iota a\u0345|\u1e9e|ǅ Ǆ ǆ|\ufdd0 \ufffd \ue000|\u208f \u0558
fish &amp; chips|&lt;tag&gt; &amp;lt;|&#39;s &#x1F600; &eacute;|&nbsp;a&nbsp;b|&amp;amp;amp;|AT&T; &unknown;|&#xD800;
schÃ¶n|doesnâ€™t|\x00nul|bell\x07|\x1b[31mred\x1b[0m|a\x85b|a\u2028line\u2029b|\xa0nbsp\xa0|a\x0bb\x0cc\x1cd
<eos>|</s> <s>|<pad>|<unk> <bos>|[CLS] x [SEP]|[MASK][PAD][UNK]|<0x0A>|▁word ##ing Ġthe
<start_of_text>|a<end_of_text>b|!<start_of_text>|<START_OF_TEXT> <ſtart_of_text>|<start_of_text><end_of_text>!"""
_LONG_PROBES = (
    "<|endoftext|> a|b",
    "supercalifragilisticexpialidocious",
    *(piece * 300 for piece in "x😀!你1\u0301"),
    *(
        piece * 90
        for piece in ("ab", "pick up the block and ", "&amp; ", "don't ", "a b c ", "a\nb\r\n", "Wörter-mit_, ")
    ),
)

_BUG = "this open_clip version works differently; please report it with the model's name"


def image_spec(model: Any) -> ImageSpec:
    """The evaluation preprocessing of an open_clip model.

    Raises:
        TrunkError: the model has none, or one that the runtime cannot reproduce.
    """
    settings = getattr(getattr(model, "visual", None), "preprocess_cfg", None)
    if not isinstance(settings, dict):
        raise TrunkError(
            "the model does not say how its images are prepared",
            where=type(model).__name__,
            expected="a dict model.visual.preprocess_cfg",
            found=type(settings).__name__,
            fix="create the model with open_clip.create_model or create_model_from_pretrained",
        )
    return spec_of(settings)


def spec_of(settings: dict[str, Any]) -> ImageSpec:
    """A ``preprocess_cfg`` as data; what it leaves out is open_clip's default.

    Raises:
        TrunkError: open_clip does not accept it, or the runtime cannot reproduce it.
    """
    try:
        transform = image_transform_v2(PreprocessCfg(**settings), is_train=False)
        spec = _spec_of(PreprocessCfg(**settings), transform)
    except (TypeError, ValueError, AssertionError) as error:
        raise _undescribed(settings, ["what open_clip's own evaluation transform accepts"], error) from error
    if broken := [rule for rule, kept in _image_rules(spec) if not kept]:
        raise _undescribed(settings, broken, spec)
    _prove_pixels(spec, transform)
    return spec


def text_assets(tokenizer: Any, vocab_size: int) -> tuple[TextSpec, bytes]:
    """A tokenizer of ``open_clip.get_tokenizer`` as data, at its own context length.

    Args:
        tokenizer: of the trunk.
        vocab_size: rows of the trunk's token embedding table.

    Returns:
        The settings, and the JSON for ``trunkline.runtime.text.Tokenizer``.

    Raises:
        TrunkError: the tokenizer is not supported, its data form gives other ids, or it gives ids beyond the table.
    """
    given: Mapping[int, str]
    if isinstance(tokenizer, SimpleTokenizer):
        spec, data = _simple_assets(tokenizer, vocab_size)
        given = tokenizer.decoder
    elif isinstance(tokenizer, HFTokenizer | SigLipTokenizer):
        spec, data = _fast_assets(tokenizer, vocab_size)
        given = ids_given(data, spec)
    else:
        raise _unsupported(tokenizer, "it is of an unknown class", "HFTokenizer, SigLipTokenizer or SimpleTokenizer")
    require_rows(given, vocab_size, type(tokenizer).__name__)
    _prove_ids(tokenizer, spec, data)
    return spec, data


def _undescribed(settings: dict[str, Any], expected: list[str], found: object) -> TrunkError:
    return TrunkError(
        "the model's image preprocessing cannot be described",
        where=f"preprocess_cfg, {settings}",
        expected=expected,
        found=found,
        fix="correct preprocess_cfg in the model's open_clip_config.json, or what --preprocess states",
    )


def _image_rules(spec: ImageSpec) -> list[tuple[str, bool]]:
    sides = (spec.height, spec.width)
    whole = all(isinstance(side, int) and side > 0 for side in sides)
    return [
        ("size is positive whole numbers of pixels", whole),
        (f"size is at most {MAX_PIXELS} pixels", not whole or sides[0] * sides[1] <= MAX_PIXELS),
        ("fill_color is a whole number from 0 to 255", isinstance(spec.fill, int) and 0 <= spec.fill <= 255),
        ("mean is finite, of values scaled to 0..1", all(0 <= value <= 1 for value in spec.mean)),
        ("std is finite and above zero, of values scaled to 0..1", all(0 < value <= 1 for value in spec.std)),
    ]


def _spec_of(settings: PreprocessCfg, transform: Any) -> ImageSpec:
    size = settings.size
    height, width = (size, size) if isinstance(size, int) else size
    normalize = transform.transforms[-1]  # holds mean and std with open_clip's own defaults filled in
    return ImageSpec(
        height=height,
        width=width,
        resize_mode=settings.resize_mode or "shortest",  # type: ignore[arg-type]  # checked by the transform
        interpolation="bilinear" if settings.interpolation == "bilinear" else "bicubic",  # also for 'random'
        fill=settings.fill_color,
        mean=_floats(normalize.mean),
        std=_floats(normalize.std),
    )


def _floats(values: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _prove_pixels(spec: ImageSpec, transform: Callable[[Image.Image], torch.Tensor]) -> None:
    for width, height, mode in (*_PROBE_IMAGES, (max(spec.width, MIN_SIDE_PX), max(spec.height, MIN_SIDE_PX), "RGB")):
        values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
        image = Image.fromarray(values).convert(mode)
        if not np.array_equal(transform(image).numpy(), normalised(to_pixels(image, spec), spec)):
            raise TrunkError(
                "the runtime's image preprocessing differs from open_clip's",
                where=f"probe image of {width} x {height} pixels (width x height), mode {mode}",
                expected=transform,
                found=spec,
                fix=_BUG,
            )


def _fast_assets(tokenizer: Any, vocab_size: int) -> tuple[TextSpec, bytes]:
    if getattr(tokenizer, "tokenizer_mode", "") == "clips":
        raise _unsupported(tokenizer, "its mode 'clips' assembles ids in Python", "no tokenizer_mode")
    inner = tokenizer.tokenizer
    backend = getattr(inner, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        found = f"{type(inner).__name__} is a slow tokenizer, which exists only as Python code"
        raise _unsupported(tokenizer, found, "a fast tokenizer (a tokenizer.json next to the model)")
    if getattr(inner, "split_special_tokens", False):
        raise _unsupported(tokenizer, "split_special_tokens is set, which no tokenizer.json can hold", "it is not set")
    if inner.pad_token_id is None:
        raise _unsupported(tokenizer, "it has no padding token", "a pad_token in tokenizer_config.json")
    spec = _text_spec(tokenizer, _strip_token(tokenizer), vocab_size)
    return spec, _fast_json(inner, _copied(tokenizer, backend), spec.context_length)


def _strip_token(tokenizer: Any) -> int | None:
    if not getattr(tokenizer, "strip_sep_token", False):
        return None
    token = tokenizer.tokenizer.sep_token_id
    if token is None:
        raise _unsupported(tokenizer, "strip_sep_token is set, but there is no such token", "a sep_token")
    return int(token)


def _copied(tokenizer: Any, backend: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_str(backend.to_str())
    except Exception as error:  # tokenizers raises no narrower class
        raise _unsupported(tokenizer, f"a part of it is Python code ({error})", "parts of tokenizers only") from error


def _fast_json(inner: Any, backend: tokenizers.Tokenizer, length: int) -> bytes:
    """The settings that transformers makes for ``padding='max_length', truncation=True, max_length=length``."""
    backend.enable_truncation(length, stride=0, strategy="longest_first", direction=inner.truncation_side)
    backend.enable_padding(
        direction=inner.padding_side,
        pad_id=inner.pad_token_id,
        pad_type_id=inner.pad_token_type_id,
        pad_token=inner.pad_token,
        length=length,
    )
    return backend.to_str().encode()


def _text_spec(tokenizer: Any, strip_token: int | None, vocab_size: int) -> TextSpec:
    length = tokenizer.context_length
    if not isinstance(length, int) or length < 1:
        raise _unsupported(tokenizer, f"its context_length is {length}", "a positive whole number")
    return TextSpec(_clean_name(tokenizer), length, strip_token, vocab_size)


def _clean_name(tokenizer: Any) -> Clean:
    if isinstance(tokenizer, SigLipTokenizer):
        return "canonicalize"  # built in there
    names: tuple[Clean, ...] = get_args(Clean)
    for name in names:
        if tokenizer.clean_fn is get_clean_fn(name):
            return name
    raise _unsupported(tokenizer, "its text cleaning is not open_clip's", f"one of {names}")


def _simple_assets(tokenizer: SimpleTokenizer, vocab_size: int) -> tuple[TextSpec, bytes]:
    if tokenizer.reduction_fn is not None:
        raise _unsupported(tokenizer, "its reduction_mask drops tokens at random", "no reduction_mask")
    if len(tokenizer.all_special_ids) != 2:
        raise _unsupported(tokenizer, "it has additional special tokens", "the start and end tokens only")
    spec = _text_spec(tokenizer, None, vocab_size)
    if spec.clean == "whitespace":
        found = "it keeps upper case, and reads the start and end tokens' text without regard to case"
        raise _unsupported(tokenizer, found, "clean 'lower' or 'canonicalize'")
    return spec, _simple_json(tokenizer, spec.context_length)


def _simple_json(tokenizer: SimpleTokenizer, length: int) -> bytes:
    """CLIP's byte-level BPE: words are found by a pattern, bytes become letters, the last letter carries ``</w>``."""
    start, end = ((tokenizer.decoder[token], token) for token in (tokenizer.sot_token_id, tokenizer.eot_token_id))
    converted = tokenizers.Tokenizer(_simple_model(tokenizer, dict((start, end))))
    pattern = tokenizers.Regex(_spelled_out(tokenizer.pat))
    converted.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    converted.post_processor = processors.TemplateProcessing(
        single=[start[0], "$A", end[0]], special_tokens=[start, end]
    )
    converted.enable_truncation(length)
    converted.enable_padding(length=length, pad_id=0, pad_token=tokenizer.decoder[0])
    return converted.to_str().encode()


def _simple_model(tokenizer: SimpleTokenizer, special: dict[str, int]) -> models.BPE:
    """The BPE with two more chains of merges, at the end, that turn a special token's own text into its id.

    Added tokens of the library cannot do it: they are cut out anywhere, whereas the reference sees a special token
    only where a word may begin (not in ``!<start_of_text>``). No other word holds both ``<`` and letters, so the
    chains act on nothing else, and their links, whose ids are beyond the vocabulary, are never a result.
    """
    vocabulary = {token: index for token, index in tokenizer.encoder.items() if token not in special}
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.__getitem__)
    plain = models.BPE(vocabulary, merges, end_of_word_suffix="</w>")
    for text, index in special.items():
        pieces = [piece.value for piece in plain.tokenize(text)]
        for count in range(1, len(pieces)):
            merges.append(("".join(pieces[:count]), pieces[count]))
            vocabulary["".join(pieces[: count + 1])] = len(vocabulary) + len(special)
        vocabulary["".join(pieces)] = index
    return models.BPE(vocabulary, merges, end_of_word_suffix="</w>")


def _spelled_out(pattern: Any) -> str:
    """A word pattern with each letter and class written as code points.

    The tokenizers library's regular expressions know another version of Unicode and fold case differently.
    """
    alternatives = [_alternative(text, pattern.flags) for text in pattern.pattern.split("|")]
    return "|".join(alternatives)


def _alternative(text: str, flags: int) -> str:
    if text.startswith("["):
        body, bracket, repeat = text.rpartition("]")
        return _code_points(body + bracket, flags) + repeat
    return "".join(_code_points(regex.escape(letter), flags) for letter in text)


@cache
def _code_points(one: str, flags: int) -> str:
    """The class of all characters that ``one``, a pattern for a single character, matches."""
    matcher = regex.compile(f"(?:{one})+", flags)
    spans = [(text[run.start()], text[run.end() - 1]) for text in _characters() for run in matcher.finditer(text)]
    return "[" + "".join(rf"\x{{{ord(low):x}}}-\x{{{ord(high):x}}}" for low, high in spans) + "]"


@cache
def _characters() -> tuple[str, str]:
    """All of Unicode, in two runs, because the surrogates between them are not characters."""
    return "".join(map(chr, range(0xD800))), "".join(map(chr, range(0xE000, 0x110000)))


def _prove_ids(tokenizer: Any, spec: TextSpec, data: bytes) -> None:
    texts = _probes(tokenizer, spec.clean)
    try:
        found = Tokenizer(spec, data)(texts)
    except BundleError as error:
        raise _unsupported(tokenizer, f"its data form does not work ({error.problem}: {error.found})", "ids") from error
    for text, row in zip(texts, found, strict=True):
        expected = tokenizer([text])[0].tolist()
        if expected != row.tolist():
            raise TrunkError(
                "the tokenizer's data form gives other ids than open_clip",
                where=f"probe {text[:60]!r}",
                expected=expected,
                found=row.tolist(),
                fix="use a tokenizer that transformers runs from its tokenizer.json alone; " + _BUG,
            )


def _probes(tokenizer: Any, how: Clean) -> list[str]:
    """The built-in texts and this tokenizer's own special tokens, less those without words."""
    special = getattr(getattr(tokenizer, "tokenizer", None), "all_special_tokens", [])
    texts = [
        *re.split(r"[|\n]", _SHORT_PROBES),
        *_LONG_PROBES,
        *(f"a{token} {token}b {token.upper()}" for token in special),
    ]
    return [text for text in texts if len(text) <= MAX_INSTRUCTION_CHARS and clean(text, how)]


def _unsupported(tokenizer: Any, found: str, expected: str) -> TrunkError:
    return TrunkError(
        "the tokenizer cannot be described as data",
        where=type(tokenizer).__name__,
        expected=expected,
        found=found,
        fix="use a model whose tokenizer is a tokenizer.json, or CLIP's own",
    )
