"""The newest finished features of a source, and which stamps are believed.

A stamp from the future says nothing about an age, and one from before the features in use would make them older. So an
item is *fresh* only if its stamp lies behind that of the features in use and not ahead of the clock; all others are
counted and leave the features as they are, which then age until their bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

Item = TypeVar("Item")

Verdict = Literal["fresh", "same", "backward", "future"]


@dataclass(frozen=True)
class Features(Generic[Item]):
    """What an encoder made of an item: ``value`` is the ensemble's own type, ``captured_ns`` the item's stamp."""

    value: Any
    item: Item
    captured_ns: int

    def age_ns(self, now_ns: int) -> int:
        """Since the capture; a stamp a little ahead of the clock counts as now."""
        return max(0, now_ns - self.captured_ns)


class Newest(Generic[Item]):
    """Features that are finished, and what is being computed.

    Threads: the encoding thread writes, any thread reads. Each attribute is replaced as a whole, so there is no lock
    that scoring could wait for.
    """

    def __init__(self) -> None:
        self.finished: Features[Item] | None = None
        self.computing_ns: int | None = None

    def judge(self, captured_ns: int | None, latest_ns: int) -> Verdict:
        """Whether an item with this stamp (None: there is no item) is to be encoded.

        ``latest_ns`` is the last moment that is believed.
        """
        if captured_ns is None:
            return "same"
        if captured_ns > latest_ns:
            return "future"
        if self.finished is None or captured_ns > self.finished.captured_ns:
            return "fresh"
        return "same" if captured_ns == self.finished.captured_ns else "backward"

    def look(self) -> tuple[Features[Item] | None, bool]:
        """The newest features, and whether newer ones are being computed."""
        computing_ns = self.computing_ns  # first, or features that are finished meanwhile would not be seen
        finished = self.finished
        pending = computing_ns is not None and (finished is None or computing_ns > finished.captured_ns)
        return finished, pending
