"""When a lane looks for states that are due: by the brokers' clock, and not before everything up to
that time is taken in. Pure.

    due known ─► it may be due (own clock, corrected) ─► look: the brokers' time, then each log's end
              ─► lane done up to there ─► fire

The own clock is only a hint when to look, and none at all before it was compared with the brokers' once: the
first look is made as soon as anything is waited for. What counts is the time that a broker gave to a record
written for that purpose: everything that was appended before it lies below the ends that are read afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from faust.types import TP

LOOK_INTERVAL: Final = 1.0
"""Seconds between two looks at least: what is due comes in bunches, and each look costs
a record and a round trip.
"""
LOOK_AGAIN: Final = 300.0
"""Seconds from one look to the next at most, while anything is waited for: clocks may be set, the
brokers' too, even during a look.
"""


class Now(NamedTuple):
    """The own clocks, ms: the one that tells the time since 1970 and may be set, and the one that only ever
    goes on (since whenever).
    """

    wall: int
    steady: int


class Clock:
    """One lane's. Times are ms since 1970 by the brokers' clock; `now` is by the own ones."""

    __slots__ = ("_ahead", "_ends", "_looked", "due", "moment")

    def __init__(self) -> None:
        self.due = 0
        """The earliest due time of the lane's states; 0: none."""
        self.moment = 0
        """The time of the last look, until everything due then is fired; 0: no look is under way."""
        self._ends: Mapping[TP, int] = {}
        self._ahead = Now(0, 0)
        """What the brokers' clock is ahead of each of the own ones, as of the last look."""
        self._looked: int | None = None

    def pause(self, now: Now) -> float | None:
        """Seconds until a look is worth while; None: nothing is waited for, or a look is under way."""
        if not self.due or self.moment:
            return None
        ahead, looked = self._ahead, self._looked
        if looked is None:
            return 0.0
        # Whichever is set, the other one still tells; a look too many does no harm.
        latest = max(now.wall + ahead.wall, now.steady + ahead.steady)
        since = (now.steady - looked) / 1000
        return max(min(max((self.due - latest) / 1000, LOOK_INTERVAL - since), LOOK_AGAIN - since), 0.0)

    def looked(self, now: Now, moment: int, ends: Mapping[TP, int]) -> None:
        """A broker said `moment`; then the logs ended at `ends`. To be called at `now`."""
        self._ahead, self._looked = Now(moment - now.wall, moment - now.steady), now.steady
        if moment >= self.due:
            self.moment, self._ends = moment, ends

    def ripe(self, done: Callable[[TP], int]) -> bool:
        """Whether everything that was appended up to `moment` is taken in: then what is due at `moment` may
        fire. `done`: log -> offset.
        """
        return bool(self.moment) and all(done(tp) >= end for tp, end in self._ends.items())

    def see(self, due: int, *, fired: bool) -> None:
        """`due` is the earliest due time now.
        `fired`: a batch of what was due has been, perhaps not all of it.
        """
        self.due = due
        if fired and not 0 < due <= self.moment:
            self.moment = 0
