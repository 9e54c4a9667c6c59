"""When a lane looks for states that are due: by the brokers' clock, and not before everything up to that time is taken in. Pure.

    due known ─► it may be due (own clock, corrected) ─► look: the brokers' time, then each log's end ─► lane done up to there ─► fire

The own clock is only a hint when to look. What counts is the time that a broker gave to a record written for that purpose: everything that
was appended before it lies below the ends that are read afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from faust.types import TP

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at least: what is due comes in bunches, and each look costs a record and a round trip."""


class Clock:
    """One lane's. Times are ms since 1970: `now` by the own clock, all others by the brokers'."""

    __slots__ = ("_ahead", "_ends", "_looked", "due", "moment")

    def __init__(self) -> None:
        self.due = 0
        """The earliest due time of the lane's states; 0: none."""
        self.moment = 0
        """The time of the last look, until everything due then is fired; 0: no look is under way."""
        self._ends: Mapping[TP, int] = {}
        self._ahead = 0
        self._looked = 0

    def pause(self, now: int) -> float | None:
        """Seconds until a look is worth while; None: nothing is waited for, or a look is under way."""
        if not self.due or self.moment:
            return None
        return max(self.due - self._ahead - now, self._looked + LOOK_INTERVAL * 1000 - now, 0) / 1000

    def looked(self, now: int, moment: int, ends: Mapping[TP, int]) -> None:
        """A broker said `moment`; then the logs ended at `ends`. To be called at `now`."""
        self._ahead, self._looked = moment - now, now
        if moment >= self.due:
            self.moment, self._ends = moment, ends

    def ripe(self, done: Callable[[TP], int]) -> bool:
        """Whether everything that was appended up to `moment` is taken in: then what is due at `moment` may fire. `done`: log -> offset."""
        return bool(self.moment) and all(done(tp) >= end for tp, end in self._ends.items())

    def see(self, due: int, *, fired: bool) -> None:
        """`due` is the earliest due time now. `fired`: a batch of what was due has been, perhaps not all of it."""
        self.due = due
        if fired and not 0 < due <= self.moment:
            self.moment = 0
