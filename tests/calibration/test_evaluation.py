"""The published protocol on a miniature data set: known scorers get the numbers that follow by hand."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.datasets_kit import WINDOWS, changed, content, save, window
from trunkline.calibration.evaluation import (
    DecisionCase,
    Floats,
    Score,
    agreement,
    draw_decisions,
    evaluate,
    wilson,
)
from trunkline.calibration.samples.dataset import Dataset, read_dataset
from trunkline.calibration.samples.sample import SensorExcerpt
from trunkline.runtime.errors import DatasetError, InputError
from trunkline.runtime.sensor.window import SensorWindow

Felt = SensorWindow | None


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(save(tmp_path_factory.mktemp("data"), content(samples=48)))


@pytest.fixture(scope="module")
def cases(dataset: Dataset) -> list[DecisionCase]:
    return draw_decisions(dataset, samples=20, pool=5, seed=3)


def scores_by(table: dict[str, list[float]], cases: list[DecisionCase]) -> Score:
    """A scorer that looks the scores up by the order of calls; members: the scores, and the scores reversed."""
    order = iter([table[case.sample] for case in cases])

    def score(image: Image.Image, instruction: str, histories: Floats, sensor: Felt) -> tuple[Floats, Floats]:
        fused = np.float32(next(order))
        return fused, np.stack([fused, -fused])

    return score


def oracle(cases: list[DecisionCase]) -> Score:
    return scores_by({c.sample: [float(i == c.truth) for i in range(len(c.histories))] for c in cases}, cases)


def made(*truths: int, pool: int = 4, path: Path) -> list[DecisionCase]:
    """Cases whose window ``i`` is full of ``i``, so that distances are known."""
    path = path / "frame.png"
    Image.new("RGB", (32, 32)).save(path)
    histories = np.stack([np.full((2, 2), index, np.float32) for index in range(pool)])
    return [DecisionCase(f"samples[{i}]", path, "lift", histories, truth) for i, truth in enumerate(truths)]


def test_cases_hold_the_right_window_among_distinct_others(dataset: Dataset, cases: list[DecisionCase]) -> None:
    by_id = {sample.id: sample for sample in dataset.samples}
    assert len({case.sample for case in cases}) == len(cases) == 20
    for case in cases:
        sample = by_id[case.sample]
        assert case.histories.shape == (5, 10, 7)
        assert case.histories.dtype == np.float32
        np.testing.assert_array_equal(case.histories[case.truth], sample.history)
        assert (case.image, case.instruction) == (sample.image, sample.instruction)
        assert len({row.tobytes() for row in case.histories}) == 5
    assert len({case.truth for case in cases}) > 2, "the right window is always in the same places"


def test_the_same_seed_draws_the_same_cases(dataset: Dataset, cases: list[DecisionCase]) -> None:
    again, other = draw_decisions(dataset, 20, 5, 3), draw_decisions(dataset, 20, 5, 4)
    assert [case.sample for case in again] == [case.sample for case in cases]
    for one, two in zip(again, cases, strict=True):
        np.testing.assert_array_equal(one.histories, two.histories)
    assert [case.sample for case in other] != [case.sample for case in cases]


def test_defaults_are_the_published_ones(tmp_path: Path) -> None:
    dataset = read_dataset(save(tmp_path, content(samples=60)))
    drawn, stated = draw_decisions(dataset), draw_decisions(dataset, samples=50, pool=20, seed=42)
    assert len(drawn) == 50
    assert [(case.sample, case.truth) for case in drawn] == [(case.sample, case.truth) for case in stated]


def test_pools_are_as_large_as_there_are_distinct_windows(tmp_path: Path) -> None:
    data = changed(content(), "action_histories", "action_7", to=window(6))  # two ids for one window
    drawn = draw_decisions(read_dataset(save(tmp_path, data)), samples=4, pool=20)
    assert [len(case.histories) for case in drawn] == [WINDOWS - 1] * 4


def test_negative_zero_makes_no_other_window(tmp_path: Path) -> None:
    one = [[0.0] * 7 for _ in range(10)]
    data = content(samples=3)
    data["action_histories"] |= {"action_0": one, "action_1": [[-0.0] * 7 for _ in range(10)]}
    drawn = draw_decisions(read_dataset(save(tmp_path, data)), samples=3, pool=9)
    assert {len(case.histories) for case in drawn} == {2}


def test_drawing_refuses(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(DatasetError, match=r"(?s)fewer samples.*at least 49.*found: 48.*ask for 48"):
        draw_decisions(dataset, samples=49)
    with pytest.raises(InputError, match="a pool of at least 2"):
        draw_decisions(dataset, pool=1)
    with pytest.raises(InputError, match="samples of at least 1"):
        draw_decisions(dataset, samples=0)
    alike = read_dataset(save(tmp_path, content(samples=1)))
    with pytest.raises(DatasetError, match=r"(?s)nothing to choose from.*all windows are equal"):
        draw_decisions(alike, samples=1)


def test_an_oracle_is_always_right(cases: list[DecisionCase]) -> None:
    result = evaluate(cases, oracle(cases))
    assert (result.accuracy.value, result.mean_rank, result.mean_distance) == (1.0, 1.0, 0.0)
    assert (result.decisions, result.chance, result.unreadable) == (20, pytest.approx(0.2), ())
    assert (result.accuracy.hits, result.accuracy.total, result.accuracy.high) == (20, 20, 1.0)
    right, reverse = result.members
    assert (right.accuracy.value, right.mean_rank) == (1.0, 1.0)
    assert (reverse.accuracy.value, reverse.mean_rank) == (0.0, 5.0)


def test_a_random_scorer_is_near_chance(dataset: Dataset) -> None:
    generator = np.random.default_rng(0)

    def guess(image: Image.Image, instruction: str, histories: Floats, sensor: Felt) -> tuple[Floats, Floats]:
        fused = generator.random(len(histories), np.float32)
        return fused, fused[None]

    cases = [case for seed in range(10) for case in draw_decisions(dataset, 48, 4, seed)]
    result = evaluate(cases, guess)
    assert result.chance == pytest.approx(0.25)
    assert result.accuracy.low < 0.25 < result.accuracy.high
    assert abs(result.accuracy.value - 0.25) < 0.08
    assert abs(result.mean_rank - 2.5) < 0.2


def test_numbers_that_follow_by_hand(tmp_path: Path) -> None:
    cases = made(0, 1, 2, path=tmp_path)
    table = {
        "samples[0]": [0.9, 0.1, 0.2, 0.3],  # right
        "samples[1]": [0.1, 0.2, 0.9, 0.8],  # window 2 wins, rank 3, every entry off by 1
        "samples[2]": [0.5, 0.0, 0.1, 0.2],  # window 0 wins, rank 3, every entry off by 2
    }
    result = evaluate(cases, scores_by(table, cases))
    assert [each.winner for each in result.results] == [0, 2, 0]
    assert [each.rank for each in result.results] == [1, 3, 3]
    assert [each.distance for each in result.results] == [0.0, 2.0, 4.0]
    assert result.accuracy.value == pytest.approx(1 / 3)
    assert result.mean_rank == pytest.approx(7 / 3)
    assert result.mean_distance == pytest.approx(2.0)
    plain, negated = result.members
    assert (plain.accuracy.hits, plain.mean_rank) == (1, pytest.approx(7 / 3))
    assert (negated.accuracy.hits, negated.mean_rank) == (0, pytest.approx((4 + 2 + 2) / 3))


def test_ties_favour_the_right_window_in_rank_but_the_first_in_winning(tmp_path: Path) -> None:
    cases = made(2, path=tmp_path)
    result = evaluate(cases, scores_by({"samples[0]": [0.5] * 4}, cases)).results[0]
    assert (result.rank, result.winner) == (1, 0)


def test_chance_is_the_mean_over_pools_of_any_size(tmp_path: Path) -> None:
    cases = [*made(0, pool=2, path=tmp_path), dataclasses.replace(made(1, pool=4, path=tmp_path)[0], sample="other")]
    result = evaluate(cases, scores_by({"samples[0]": [1, 0], "other": [0, 1, 0, 0]}, cases))
    assert result.chance == pytest.approx((1 / 2 + 1 / 4) / 2)


def test_only_scoring_is_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = made(0, 1, path=tmp_path)
    now = iter([10.0, 10.5, 20.0, 20.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    assert evaluate(cases, oracle(cases)).decisions_per_second == 2.0


def test_the_scorer_is_given_the_case(cases: list[DecisionCase]) -> None:
    seen = []

    def score(image: Image.Image, instruction: str, histories: Floats, sensor: Felt) -> tuple[Floats, Floats]:
        seen.append((image.size, instruction, histories, sensor))
        return np.zeros(len(histories), np.float32), np.zeros((3, len(histories)), np.float32)

    window = SensorWindow(np.ones((4, 2), np.float32), 10.0)
    cases = [dataclasses.replace(cases[0], sensor=SensorExcerpt("felt", lambda: window)), *cases[1:]]
    steps: list[tuple[str, int, int]] = []
    assert len(evaluate(cases, score, lambda *step: steps.append(step)).members) == 3
    assert [entry[1] for entry in seen] == [case.instruction for case in cases]
    assert all(entry[0] == (32, 24) and entry[2] is case.histories for entry, case in zip(seen, cases, strict=True))
    assert [entry[3] for entry in seen] == [window] + [None] * 19
    assert steps[0] == ("decisions", 0, 20)
    assert steps[-1] == ("decisions", 20, 20)


def broken(tmp_path: Path) -> list[DecisionCase]:
    cases = made(0, 1, 2, 3, path=tmp_path)
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    cases[1] = dataclasses.replace(cases[1], image=tmp_path / "torn.jpg")
    cases[3] = dataclasses.replace(cases[3], image=tmp_path / "gone.jpg")
    return cases


def test_unreadable_images_stop_it_before_anything_is_scored(tmp_path: Path) -> None:
    def never(image: Image.Image, instruction: str, histories: Floats, sensor: Felt) -> tuple[Floats, Floats]:
        pytest.fail("scored although images are missing")

    with pytest.raises(DatasetError, match=r"(?s)cannot be read.*torn\.jpg.*gone\.jpg.*skip") as caught:
        evaluate(broken(tmp_path), never)
    assert len(caught.value.found) == 2


def test_unreadable_images_are_skipped_by_choice_and_named(tmp_path: Path) -> None:
    cases = broken(tmp_path)
    result = evaluate(cases, oracle([cases[0], cases[2]]), skip_unreadable=True)
    assert [each.case.sample for each in result.results] == ["samples[0]", "samples[2]"]
    assert result.accuracy.hits == 2
    assert [("torn.jpg" in name, "gone.jpg" in name) for name in result.unreadable] == [(True, False), (False, True)]


def test_nothing_left_to_score(tmp_path: Path) -> None:
    cases = broken(tmp_path)
    with pytest.raises(DatasetError, match="cannot be read"):
        evaluate([cases[1], cases[3]], oracle(cases), skip_unreadable=True)
    with pytest.raises(DatasetError, match="no decisions to take"):
        evaluate([], oracle(cases))


@pytest.mark.parametrize(
    ("fused", "members", "words"),
    [
        (np.zeros(3), np.zeros((1, 4)), r"another shape.*\(3,\) and \(1, 4\)"),
        (np.zeros((1, 4)), np.zeros((1, 4)), r"another shape.*\(1, 4\) and"),
        (np.zeros(4), np.zeros(4), r"another shape"),
        (np.zeros(4), np.zeros((0, 4)), r"another shape"),
        (np.array([0, np.nan, 0, 0]), np.zeros((1, 4)), "not finite"),
        (np.zeros(4), np.full((1, 4), np.inf), "not finite"),
    ],
)
def test_scorers_that_return_nonsense(tmp_path: Path, fused: Floats, members: Floats, words: str) -> None:
    with pytest.raises(InputError, match="(?s)" + words):
        evaluate(made(0, path=tmp_path), lambda *_: (fused, members))


def test_a_scorer_that_changes_its_members(tmp_path: Path) -> None:
    counts = iter([1, 2])
    with pytest.raises(InputError, match="number of members"):
        evaluate(made(0, 1, path=tmp_path), lambda *_: (np.zeros(4), np.zeros((next(counts), 4))))


@pytest.mark.parametrize(
    ("hits", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        (37, 50, 0.60445, 0.84130),
        (1, 2, 0.09453, 0.90547),
        (500, 1000, 0.46907, 0.53093),
    ],
)
def test_wilson_interval_against_known_values(hits: int, total: int, low: float, high: float) -> None:
    interval = wilson(hits, total)
    assert interval.value == hits / total
    assert (interval.low, interval.high) == (pytest.approx(low, abs=2e-5), pytest.approx(high, abs=2e-5))


@given(st.integers(1, 500).flatmap(lambda total: st.tuples(st.integers(0, total), st.just(total))))
def test_wilson_interval_solves_its_own_equation(case: tuple[int, int]) -> None:
    """Both ends are the rates p at which the observed rate lies 1.96 standard errors away."""
    hits, total = case
    interval = wilson(hits, total)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            deviation = abs(hits / total - end) / np.sqrt(end * (1 - end) / total)
            assert deviation == pytest.approx(1.959964, abs=1e-4)


@pytest.mark.parametrize(("hits", "total"), [(1, 0), (-1, 3), (4, 3)])
def test_wilson_refuses(hits: int, total: int) -> None:
    with pytest.raises(InputError, match="not a proportion"):
        wilson(hits, total)


def test_agreement(tmp_path: Path) -> None:
    cases = made(0, 1, 2, 3, path=tmp_path)
    table = {case.sample: [0.1, 0.2, 0.3, 0.4] for case in cases}
    other = table | {"samples[2]": [0.1, 0.2, 0.3, 0.4125], "samples[3]": [0.1, 0.2, 0.45, 0.4]}
    one, two = evaluate(cases, scores_by(table, cases)), evaluate(cases, scores_by(other, cases))
    result = agreement(one, two)
    assert (result.decisions, result.same_winner, result.winner_agreement) == (4, 3, 0.75)
    assert result.max_score_change == pytest.approx(0.15, abs=1e-6)
    same = agreement(one, one)
    assert (same.winner_agreement, same.max_score_change) == (1.0, 0.0)


def test_agreement_needs_the_same_cases(tmp_path: Path) -> None:
    cases = made(0, 1, 2, path=tmp_path)
    other = [cases[0], dataclasses.replace(cases[1], histories=cases[1].histories + 1), cases[2]]
    full = evaluate(cases, oracle(cases))
    with pytest.raises(InputError, match=r"(?s)same cases.*samples\[1\]"):
        agreement(full, evaluate(other, oracle(other)))
    with pytest.raises(InputError, match="3 decisions against 2"):
        agreement(full, evaluate(cases[:2], oracle(cases)))
