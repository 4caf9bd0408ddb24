"""Candidates that the published system would score in a way nobody intends are refused by their index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from tests.bundles import ACTION_DIM, HISTORY_LENGTH, PADDING, frame, windows
from trunkline.runtime import Ensemble
from trunkline.runtime.candidates import MAX_CANDIDATES, prepare
from trunkline.runtime.errors import CandidateError
from trunkline.runtime.manifest import ActionsEntry

ACTIONS = ActionsEntry(HISTORY_LENGTH, ACTION_DIM, PADDING, "transformer")
NAN, INF = float("nan"), float("inf")


def changed(place: tuple[int, ...], value: Any, dtype: type = np.float64) -> Any:
    window = windows(1)[0].astype(dtype)
    window[place] = value
    return window


class Foreign:
    """An array of another library that numpy cannot read."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise self._error


class Endless(Sequence[float]):
    """Claims to hold more than memory does."""

    def __len__(self) -> int:
        return 1 << 40

    def __getitem__(self, index: Any) -> Any:
        pytest.fail("an endless sequence was read")


BAD_WINDOWS: dict[str, tuple[Any, str]] = {
    "ragged": ([[0.0] * 7, [0.0] * 6], "steps of different lengths"),
    "too long": (windows(1, steps=11)[0], "11 steps, more than the 10"),
    "too long list": ([[0.0] * 7] * 11, "11 steps, more than the 10"),
    "no steps": ([], r"shape \(0,\)"),
    "no steps, right width": (np.zeros((0, 7)), "no steps"),
    "too wide": (np.zeros((3, 8)), "8 numbers per step instead of 7"),
    "too narrow": (np.zeros((3, 6)), "6 numbers per step instead of 7"),
    "one step without its brackets": ([0.0] * 7, r"shape \(7,\) instead of \(steps, numbers\)"),
    "one dimension too many": (np.zeros((1, 3, 7)), r"shape \(1, 3, 7\)"),
    "a number": (1.0, r"shape \(\)"),
    "nothing": (None, "object values"),
    "text": ("window", "values instead of numbers"),
    "bytes": (b"window", "values instead of numbers"),
    "texts": ([["a"] * 7], "values instead of numbers"),
    "a text among numbers": ([[0.0] * 6 + ["1"]], "values instead of numbers"),
    "objects": (np.full((2, 7), None), "object values"),
    "integers without bound": ([[10**400] * 7], "object values"),
    "truth values": (np.ones((2, 7), bool), "bool values"),
    "complex": (np.ones((2, 7), complex), "complex128 values"),
    "dates": (np.zeros((2, 7), "datetime64[s]"), "datetime64"),
    "a mapping": ({0: [0.0] * 7}, "object values"),
    "nested without bound": ([[[0.0]] * 7], r"shape \(1, 7, 1\)"),
    "endless": (Endless(), "1099511627776 steps"),
    "endless step": ([Endless()], "1099511627776 numbers per step"),
    "a range": (range(10**12), "1000000000000 steps"),
    "gradients": (Foreign(RuntimeError("Can't call numpy() on Tensor that requires grad")), "requires grad"),
    "on another device": (Foreign(TypeError("can't convert cuda:0 device type tensor")), "cuda:0"),
    "masked": (
        np.ma.masked_array(windows(1)[0], True),
        "MaskedArray of float32 .10, 7. instead of plain numbers; .*filled",
    ),
    "a masked step": ([[0.0] * 7, np.ma.masked_array([0.0] * 7, [1] + [0] * 6)], "MaskedArray of float64 .7,. instead"),
    "a matrix": (windows(1)[0].view(np.matrix), "numpy.matrix of float32 .10, 7. instead of plain numbers; .*asarray"),
    "NaN": (changed((3, 2), NAN), "NaN or infinite"),
    "infinite": (changed((3, 2), INF), "NaN or infinite"),
    "infinite first component": (changed((3, 0), -INF), "NaN or infinite"),
    "overflows float32": (changed((3, 2), 1e39), "NaN or infinite"),
    "nothing but padding": (np.full((10, 7), PADDING), "nothing but padding"),
    "short and nothing but padding": (np.full((1, 7), PADDING), "nothing but padding"),
    "padding by half": (changed((9, 0), PADDING), "step 9 starts with the padding value -5 but is not padding"),
    "almost padding": (changed((4, 0), PADDING + 5e-4, np.float32), "step 4 starts with -4.999.*almost the padding"),
}
BAD_WINDOWS["itself"] = ([], "steps|shape")
BAD_WINDOWS["itself"][0].append(BAD_WINDOWS["itself"][0])


@pytest.mark.parametrize(("window", "match"), BAD_WINDOWS.values(), ids=BAD_WINDOWS)
def test_one_bad_window_is_named(window: Any, match: str) -> None:
    good = windows(2)
    with pytest.raises(CandidateError, match=f"found: candidate 1: .*{match}") as caught:
        prepare([good[0], window, good[1]], ACTIONS)
    assert "windows of 1 to 10 steps of 7 finite numbers" in str(caught.value)
    assert "cut long histories" in str(caught.value)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("place", "value", "match"),
    [
        ((2, 5, 1), NAN, "NaN"),
        ((2, 5, 1), INF, "NaN or inf"),
        ((2, 9, 0), PADDING, "step 9"),
        ((2,), PADDING, "nothing"),
    ],
)
def test_bad_values_in_one_array(dtype: type, place: tuple[int, ...], value: float, match: str) -> None:
    array = windows(4).astype(dtype)
    array[place] = value
    with pytest.raises(CandidateError, match=f"found: candidate 2: .*{match}"):
        prepare(array, ACTIONS)


def test_all_bad_ones_are_listed() -> None:
    good = windows(1)[0]
    bad = [windows(1, steps=12)[0], good, np.zeros((2, 3)), changed((0, 0), NAN), good, np.full((2, 7), PADDING)]
    with pytest.raises(CandidateError) as caught:
        prepare(bad, ACTIONS)
    message = str(caught.value)
    assert all(f"candidate {index}: " in message for index in (0, 2, 3, 5))
    assert "candidate 1" not in message
    assert "candidate 4" not in message


def test_a_long_list_is_cut() -> None:
    with pytest.raises(CandidateError, match=r"candidate 19: (.|\n)*and 80 more") as caught:
        prepare(np.full((100, 10, 7), NAN, np.float32), ACTIONS)
    assert "candidate 20:" not in str(caught.value)


@pytest.mark.parametrize(
    ("histories", "match"),
    [
        (windows(1)[0], r"array of shape \(10, 7\)(.|\n)*wrap a single window"),
        (np.zeros(7), r"array of shape \(7,\)"),
        (np.float32(1), "float32"),
        (np.zeros((1, 1, 10, 7)), r"array of shape \(1, 1, 10, 7\)"),
        (np.ma.masked_array(windows(2), True), r"MaskedArray of float32 \(2, 10, 7\)(.|\n)*filled"),
        (windows(1)[0].view(np.matrix), r"numpy\.matrix of float32(.|\n)*numpy\.asarray"),
        (None, "NoneType"),
        (5, "int"),
        ("abc", "str"),
        (b"abc", "bytes"),
        ({"a": 1}, "dict"),
        ((window for window in windows(2)), "generator"),
        (np.zeros((2, 11, 7), np.float32), "every candidate: 11 steps"),
        (np.zeros((2, 0, 7), np.float32), "every candidate: no steps"),
        (np.zeros((2, 3, 8), np.float32), "every candidate: 8 numbers"),
        ([], "at least one candidate"),
        ((), "at least one candidate"),
        (np.zeros((0, 10, 7), np.float32), "at least one candidate"),
        ([windows(1)[0]] * (MAX_CANDIDATES + 1), "4097(.|\n)*several calls"),
        (np.broadcast_to(np.float32(0), (1 << 40, 10, 7)), "1099511627776(.|\n)*several calls"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)
def test_not_a_list_of_candidates(ensemble: Ensemble, histories: Any, match: str) -> None:
    with pytest.raises(CandidateError, match=match):
        prepare(histories, ACTIONS)
    with pytest.raises(CandidateError, match=match):
        ensemble.score(frame(), "go", histories)


def test_bad_candidates_give_no_score_and_no_work(ensemble: Ensemble) -> None:
    ensemble.forget()
    before = {name: counts.runs for name, counts in ensemble.counts().items()}
    with pytest.raises(CandidateError, match="candidate 0: NaN"):
        ensemble.score(frame(), "go", windows(2) * np.array([[[NAN]], [[1]]], np.float32))
    assert {name: counts.runs for name, counts in ensemble.counts().items()} == before


def padded(window: Any) -> Any:
    rows = np.full((HISTORY_LENGTH - len(window), ACTION_DIM), PADDING, np.float32)
    return np.concatenate([rows, window])


@pytest.mark.parametrize("steps", range(1, HISTORY_LENGTH + 1))
def test_short_windows_are_padded_on_the_left(steps: int) -> None:
    window = windows(1, steps=steps)[0]
    np.testing.assert_array_equal(prepare([window], ACTIONS), padded(window)[None])
    np.testing.assert_array_equal(prepare(window[None], ACTIONS), padded(window)[None])


def test_short_windows_score_as_padded_ones(ensemble: Ensemble) -> None:
    short = [windows(1, seed=steps, steps=steps)[0] for steps in (1, 4, 10, 7)]
    scores = ensemble.score(frame(), "go", short).scores
    ensemble.forget()
    explicit = ensemble.score(frame(), "go", np.stack([padded(window) for window in short])).scores
    np.testing.assert_array_equal(scores, explicit)
    assert len(set(scores.tolist())) == 4


SAME: dict[str, Callable[[Any], Any]] = {
    "list of arrays": list,
    "tuple": tuple,
    "lists of numbers": lambda array: array.tolist(),
    "float64": lambda array: array.astype(np.float64),
    "Fortran order": np.asfortranarray,
    "negative strides": lambda array: array[::-1, ::-1].copy()[::-1, ::-1],
    "every second": lambda array: np.repeat(array, 2, axis=2)[:, :, ::2],
    "big-endian": lambda array: array.astype(">f4"),
    "read-only": lambda array: np.frombuffer(array.tobytes(), np.float32).reshape(array.shape),
    "unaligned": lambda array: np.frombuffer(b"\0" + array.tobytes(), np.float32, offset=1).reshape(array.shape),
}


@pytest.mark.parametrize("form", SAME.values(), ids=SAME)
def test_forms_of_the_same_candidates(form: Callable[[Any], Any]) -> None:
    array = windows(3)
    result = prepare(form(array), ACTIONS)
    np.testing.assert_array_equal(result, array)
    assert (result.dtype, result.flags.c_contiguous) == (np.float32, True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, np.float16])
def test_other_numbers(dtype: type) -> None:
    array = np.arange(3 * 10 * 7).reshape(3, 10, 7) % 100
    np.testing.assert_array_equal(prepare(array.astype(dtype), ACTIONS), array)


def test_as_many_as_allowed() -> None:
    assert prepare(np.zeros((MAX_CANDIDATES, 1, ACTION_DIM), np.float32), ACTIONS).shape == (MAX_CANDIDATES, 10, 7)


def test_padding_at_the_front_and_between_is_fine() -> None:
    window = windows(1)[0]
    window[[0, 1, 5]] = PADDING
    np.testing.assert_array_equal(prepare([window], ACTIONS)[0], window)


def test_result_is_not_the_callers_memory() -> None:
    """Candidates are looked at when they are checked and again when the stage runs."""
    array = windows(2)
    result = prepare(array, ACTIONS)
    array[:] = NAN
    assert np.isfinite(result).all()
