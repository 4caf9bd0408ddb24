"""Which samples calibrate and which judge."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.calibration.samples.sample import CalibrationSample, Picture, WindowForm
from trunkline.calibration.samples.split import MIN_EPISODES, split_samples, spread_samples


class Rows:
    """A source of (picture, episode) pairs whose pictures cannot be opened."""

    name = "rows"
    windows: WindowForm | None = None

    def __init__(self, rows: Sequence[tuple[int, int | None]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> CalibrationSample:
        picture, episode = self._rows[index]

        def source() -> None:
            raise AssertionError("a picture was opened")

        return CalibrationSample(f"#{index}", "lift", Picture(f"{picture}", source), episode=episode)  # type: ignore[arg-type]


def recorded(episodes: int, frames: int, wordings: int = 1) -> Rows:
    """``wordings`` samples of each of ``frames`` pictures of each episode."""
    return Rows([(e * frames + f, e) for e in range(episodes) for f in range(frames) for _ in range(wordings)])


def labels(rows: Rows, indices: Sequence[int]) -> tuple[set[str], set[object]]:
    chosen = [rows[index] for index in indices]
    return {sample.picture.name for sample in chosen}, {sample.episode for sample in chosen}


def test_episodes_are_kept_together() -> None:
    rows = recorded(episodes=20, frames=5)
    split = split_samples(rows, 128, 128, seed=1)
    assert (split.kind, split.episodes) == ("episode", 20)
    assert sorted(split.calibrating + split.judging) == list(range(100))
    assert not labels(rows, split.calibrating)[1] & labels(rows, split.judging)[1]
    assert len(split.calibrating) == len(split.judging) == 50


def test_few_or_unknown_episodes_leave_pictures() -> None:
    few = split_samples(recorded(episodes=MIN_EPISODES - 1, frames=5), 128, 128, seed=1)
    assert (few.kind, few.episodes) == ("picture", MIN_EPISODES - 1)
    unknown = split_samples(Rows([(index, index if index else None) for index in range(20)]), 128, 128, seed=1)
    assert (unknown.kind, unknown.episodes) == ("picture", 0)


def test_episodes_that_share_a_picture_are_one_group() -> None:
    rows = Rows([(index, index) for index in range(10)] + [(0, 1), (1, 2), (2, 3)])
    for seed in range(20):
        split = split_samples(rows, 1, 1, seed)
        pictures, episodes = zip(labels(rows, split.calibrating), labels(rows, split.judging), strict=True)
        assert not pictures[0] & pictures[1]
        assert not episodes[0] & episodes[1]


def test_the_ratio_is_that_of_what_is_wanted() -> None:
    split = split_samples(recorded(episodes=90, frames=1), 128, 64, seed=0)
    assert (len(split.calibrating), len(split.judging)) == (60, 30)


def test_the_first_samples_see_as_much_as_they_can() -> None:
    rows = recorded(episodes=20, frames=6, wordings=3)
    split = split_samples(rows, 128, 128, seed=3)
    pictures, episodes = labels(rows, split.calibrating[:10])
    assert len(episodes) == 10, "an episode came twice before another came once"
    pictures, _ = labels(rows, split.calibrating[:60])
    assert len(pictures) == 60, "a picture came twice before another of its episode came once"


def test_the_seed_decides() -> None:
    rows = recorded(episodes=20, frames=2)
    one, same, other = (split_samples(rows, 10, 10, seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other
    assert spread_samples(rows, 1) == spread_samples(rows, 1) != spread_samples(rows, 2)
    assert sorted(spread_samples(rows, 1)) == list(range(40))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=60),
    st.integers(1, 200),
    st.integers(1, 200),
    st.integers(0, 5),
)
def test_no_picture_is_on_both_sides(rows: list[tuple[int, int | None]], calibrate: int, judge: int, seed: int) -> None:
    source = Rows(rows)
    split = split_samples(source, calibrate, judge, seed)
    assert sorted(split.calibrating + split.judging) == list(range(len(rows)))
    one, two = labels(source, split.calibrating), labels(source, split.judging)
    assert not one[0] & two[0]
    if split.kind == "episode":
        assert not one[1] & two[1]
    if len({picture for picture, _ in rows}) > 1:
        assert split.calibrating
        assert split.judging
