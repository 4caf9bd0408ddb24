"""Which samples calibrate, which judge and which prove: decided by a seed, without opening a picture.

Samples are put into groups that stay together: all samples of an episode, or, where episodes are not known or hardly
any, all samples that show the same picture. Frames of one episode look alike, so that judging on frames beside the
calibrating ones would flatter. Whole groups go to one side or the other; then each side's samples are ordered so that
every group, and within it every picture, gives one before any gives a second. Taking the first n of an order therefore
sees as much of the world as n samples can.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from trunkline.calibration.samples.sample import Samples

#: With fewer episodes than this, each side would see one or two, and pictures are divided instead.
MIN_EPISODES = 5

Kind = Literal["episode", "picture"]
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Split:
    """Indices of samples, in the order in which they are to be used.

    Attributes:
        sides: of each side; no group is on two of them.
        kind: what a group is.
        episodes: how many episodes there are, 0 where nobody knows.
    """

    sides: tuple[tuple[int, ...], ...]
    kind: Kind
    episodes: int


@dataclass(frozen=True)
class _Row:
    index: int
    picture: str
    episode: int | str | None


def split_samples(samples: Samples, wanted: Sequence[int], seed: int) -> Split:
    """Divides samples in the ratio of what each side wants; with as many groups as sides, no side is empty.

    Args:
        samples: what to divide.
        wanted: samples for each side, at least 1.
        seed: the same one gives the same split.
    """
    groups, kind, episodes = _groups(samples)
    generator = random.Random(seed)
    generator.shuffle(groups)
    sides: list[list[list[_Row]]] = [[] for _ in wanted]
    sizes = [0 for _ in wanted]
    for group in groups:
        side = min(range(len(wanted)), key=lambda each: sizes[each] / wanted[each])
        sides[side].append(group)
        sizes[side] += len(group)
    return Split(tuple(_spread(side, generator) for side in sides), kind, episodes)


def _groups(samples: Samples) -> tuple[list[list[_Row]], Kind, int]:
    rows = []
    for index in range(len(samples)):
        sample = samples[index]
        rows.append(_Row(index, sample.picture.name, sample.episode))
    episodes = {row.episode for row in rows}
    if None in episodes:
        return _by_picture(rows), "picture", 0
    joined = _connected(rows)
    if len(joined) >= MIN_EPISODES:
        return joined, "episode", len(episodes)
    return _by_picture(rows), "picture", len(episodes)


def _by_picture(rows: Iterable[_Row]) -> list[list[_Row]]:
    groups: dict[str, list[_Row]] = {}
    for row in rows:
        groups.setdefault(row.picture, []).append(row)
    return list(groups.values())


def _connected(rows: Sequence[_Row]) -> list[list[_Row]]:
    """Rows that share an episode or a picture, directly or through others: a picture may occur in two episodes."""
    parents = list(range(len(rows)))

    def root(place: int) -> int:
        while parents[place] != place:
            parents[place] = parents[parents[place]]
            place = parents[place]
        return place

    first: dict[tuple[str, Hashable], int] = {}
    for place, row in enumerate(rows):
        for label in (("picture", row.picture), ("episode", row.episode)):
            parents[root(place)] = root(first.setdefault(label, place))
    groups: dict[int, list[_Row]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(root(place), []).append(row)
    return list(groups.values())


def _spread(groups: list[list[_Row]], generator: random.Random) -> tuple[int, ...]:
    return tuple(row.index for row in _in_turns([_shuffled(group, generator) for group in groups]))


def _shuffled(group: list[_Row], generator: random.Random) -> list[_Row]:
    pictures = _by_picture(generator.sample(group, len(group)))
    return _in_turns(pictures)


def _in_turns(groups: list[list[_Item]]) -> list[_Item]:
    """The first of every group, then the second of every group that has one, and so on."""
    turns = [(turn, place, item) for place, group in enumerate(groups) for turn, item in enumerate(group)]
    turns.sort(key=lambda each: each[:2])
    return [item for _, _, item in turns]
