"""Which samples calibrate and which judge."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from trunkline.calibration.samples.sample import CalibrationSample, Picture, WindowForm
from trunkline.calibration.samples.split import MIN_EPISODES, split_samples


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
    split = split_samples(rows, (128, 128, 256), seed=1)
    assert (split.kind, split.episodes) == ("episode", 20)
    assert sorted(sum(split.sides, ())) == list(range(100))
    assert sum(len(labels(rows, side)[1]) for side in split.sides) == 20
    assert [len(side) for side in split.sides] == [25, 25, 50]


def test_few_or_unknown_episodes_leave_pictures() -> None:
    few = split_samples(recorded(episodes=MIN_EPISODES - 1, frames=5), (128, 128), seed=1)
    assert (few.kind, few.episodes) == ("picture", MIN_EPISODES - 1)
    unknown = split_samples(Rows([(index, index if index else None) for index in range(20)]), (128, 128), seed=1)
    assert (unknown.kind, unknown.episodes) == ("picture", 0)


def test_episodes_that_share_a_picture_are_one_group() -> None:
    rows = Rows([(index, index) for index in range(10)] + [(0, 1), (1, 2), (2, 3)])
    for seed in range(20):
        split = split_samples(rows, (1, 1), seed)
        pictures, episodes = zip(*(labels(rows, side) for side in split.sides), strict=True)
        assert not pictures[0] & pictures[1]
        assert not episodes[0] & episodes[1]


def test_the_ratio_is_that_of_what_is_wanted() -> None:
    split = split_samples(recorded(episodes=90, frames=1), (128, 64, 192), seed=0)
    assert [len(side) for side in split.sides] == [30, 15, 45]


def test_the_first_samples_see_as_much_as_they_can() -> None:
    rows = recorded(episodes=20, frames=6, wordings=3)
    split = split_samples(rows, (128, 128), seed=3)
    pictures, episodes = labels(rows, split.sides[0][:10])
    assert len(episodes) == 10, "an episode came twice before another came once"
    pictures, _ = labels(rows, split.sides[0][:60])
    assert len(pictures) == 60, "a picture came twice before another of its episode came once"


def test_the_seed_decides() -> None:
    rows = recorded(episodes=20, frames=2)
    one, same, other = (split_samples(rows, (10, 10), seed) for seed in (1, 1, 2))
    assert one == same
    assert one != other


def test_one_side_takes_all() -> None:
    rows = recorded(episodes=20, frames=2)
    (side,) = split_samples(rows, (3,), 1).sides
    assert sorted(side) == list(range(40))


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.one_of(st.none(), st.integers(0, 9))), min_size=1, max_size=60),
    st.lists(st.integers(1, 200), min_size=2, max_size=3),
    st.integers(0, 5),
)
def test_no_picture_is_on_two_sides(rows: list[tuple[int, int | None]], wanted: list[int], seed: int) -> None:
    source = Rows(rows)
    split = split_samples(source, wanted, seed)
    assert sorted(sum(split.sides, ())) == list(range(len(rows)))
    pictures, episodes = zip(*(labels(source, side) for side in split.sides), strict=True)
    assert sum(map(len, pictures)) == len(labels(source, range(len(rows)))[0])
    if split.kind == "episode":
        assert sum(map(len, episodes)) == len(labels(source, range(len(rows)))[1])
    elif len({picture for picture, _ in rows}) >= len(wanted):
        assert all(split.sides)
