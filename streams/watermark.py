"""Whether Postgres went back in time: its rows are compared with the states that were written last.

A batch's rows are written before its states. So the last states that a lane has written are a watermark: the
rows of their orders have their versions, or higher ones. They haven't once Postgres was restored to an older
point, or a standby took over that was behind. Rows that were deleted show when a page of all orders is
compared, one after the other in turn. Workers don't mend that: they go on, and say what does.

Traffic makes single orders whole, those that were written last first. So once one is found behind, all of the
lane's orders are looked at, as they are once tables were gone, and the lane counts as behind until each was
looked at and has its rows. A note beside the lane's offsets says so to whoever has the lane next, who begins
anew (docs/decisions/0051).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from contracts import ids
from streams import metrics
from streams.transport.batch import OpenLane
from streams.transport.delivery import Stale, Verdict, judge
from tables import codec

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks whether there is a new connection to Postgres."""
TELL_AFTER: Final = 3.0
"""Seconds for which lanes are gathered that the log then names in one line."""
AGAIN: Final = 30.0
"""Seconds after which orders that were behind are looked at again."""
ROUND: Final = 5.0
"""Seconds between two pages of a lane of which nothing is known to be behind, for each lane that the worker
has: it looks at one in this time, however many they are.
"""
PAGE_PAUSE: Final = 0.02
"""Seconds between two pages of all orders' states, of whichever lane: the lanes have work to do, and so has
Postgres.
"""
MOST: Final = 1_000
"""So many orders of a lane are known to be behind, about: then the search waits until some are whole."""
NOTE: Final = "behind"


class Rows(Protocol):
    """The rows of orders: sinks.postgres."""

    @property
    def connections(self) -> int:
        """How many connections were made."""

    @property
    def taken_away(self) -> int:
        """How often a write found tables gone."""

    async def versions(self, order_ids: Sequence[str]) -> dict[str, int]:
        """The versions of these orders' rows, without those that there are none of."""


@dataclass
class _Search:
    """What is known of one lane."""

    lane: OpenLane
    found: bool
    """Whether orders are behind, or were and not all have been looked at since."""
    after: bytes | None
    """Key behind which orders haven't been looked at; None: all have."""
    behind: dict[str, int] = field(default_factory=dict)
    """Orders whose rows are older, with the versions that they should have."""
    connections: int = -1
    """Of Postgres, when the states written last were compared."""
    taken_away: int = 0
    """How often tables had been gone then."""
    latest: list[bytes] = field(default_factory=list)
    """Keys of the states that were written last then, or a moment ago: what has waited for Postgres is
    written at once when it is back, and whole.
    """
    looked_at: float = 0.0
    round: bytes = b""
    """Key behind which the page begins that is looked at next though nothing is known to be behind."""
    round_at: float = 0.0

    @property
    def searching(self) -> bool:
        return self.after is not None and len(self.behind) < MOST


class Watermark:
    """Compares the rows of a worker's lanes, as a lane opens and whenever there is a new connection."""

    def __init__(self, table: Any, rows: Rows) -> None:
        """`table` holds the states."""
        self._table = table
        self._rows = rows
        self._paging = asyncio.Lock()
        self._lanes = 0
        """How many are watched."""
        self.behind: dict[int, int] = {}
        """Lanes of which orders are behind, or may be still, with how many are known."""
        self._untold: dict[int, float] = {}
        """Those of them that the log hasn't named, and since when."""

    async def watch(self, lane: OpenLane) -> None:
        """Compare as long as the lane is open; cancel it then. Doesn't raise: it only tells."""
        # Of a lane that nothing is known of, as after orders partitions, all orders are looked at too.
        search = _Search(lane, lane.found == NOTE, None if lane.found == "" else b"")
        search.taken_away = self._rows.taken_away
        self._lanes += 1
        try:
            if search.found:
                self._tell(search)
            while True:
                try:
                    await self._look(search)
                except Exception as error:
                    if judge(error) is not Verdict.TEMPORARY:
                        raise
                    await asyncio.sleep(PAUSE)
                self._log_lanes()
                if not search.searching:
                    await asyncio.sleep(PAUSE)
        except Stale:
            pass
        except Exception:
            log.exception(
                "lane %(lane)d: its rows aren't compared with its states any more", {"lane": lane.partition}
            )
        finally:
            self._lanes -= 1
            self._forget(lane.partition)

    async def _look(self, search: _Search) -> None:
        """One step: the states written last if there is a new connection, those that were behind if it is
        time, else a page in turn; and a page of all others while these are searched.
        """
        now = asyncio.get_running_loop().time()
        connections = self._rows.connections
        lane = search.lane
        latest_keys = lane.latest(self._table)
        if connections != search.connections:
            keys = [*dict.fromkeys([*search.latest, *latest_keys])]
            states = lane.get_states(self._table, keys)
            latest = _expected((k, s) for k, s in zip(keys, states, strict=True) if s is not None)
            search.behind = await self._compare(latest | search.behind)
            search.connections, search.looked_at, search.round_at = connections, now, now
            # After tables were gone, what waited for them may have made all of the latest orders whole.
            if search.behind or search.found or search.taken_away != self._rows.taken_away:
                search.after = b""
            search.taken_away = self._rows.taken_away
        elif search.behind and now >= search.looked_at + AGAIN:
            search.behind = await self._compare(search.behind)
            search.looked_at = now
        elif not search.found and search.after is None and now >= search.round_at + ROUND * self._lanes:
            await self._go_round(search)
            search.round_at = now
        search.latest = latest_keys
        if search.after is not None and search.searching:
            async with self._paging:
                page = search.lane.states_after(self._table, search.after)
                search.behind |= await self._compare(_expected(page.states.items()))
                await asyncio.sleep(PAGE_PAUSE)
            search.after = page.until
        lasts = bool(search.behind) or (search.found and search.after is not None)
        if lasts != search.found:
            search.found = lasts
            search.lane.leave_note(NOTE if lasts else "")
        self._tell(search)

    async def _go_round(self, search: _Search) -> None:
        """Compare the next page of all orders, and look at all of them once one is behind."""
        page = search.lane.states_after(self._table, search.round)
        search.behind = await self._compare(_expected(page.states.items()))
        search.round = page.until or b""
        if search.behind:
            search.after = b""

    async def _compare(self, expected: dict[str, int]) -> dict[str, int]:
        versions = await self._rows.versions([*expected]) if expected else {}
        return {order_id: at for order_id, at in expected.items() if versions.get(order_id, 0) < at}

    def _tell(self, search: _Search) -> None:
        lane = search.lane.partition
        if search.found:
            if lane not in self.behind:
                self._untold[lane] = asyncio.get_running_loop().time()
            self.behind[lane] = max(1, len(search.behind))
            metrics.ROWS_BEHIND.labels(lane).set(self.behind[lane])
        elif lane in self.behind:
            self._forget(lane)
            if not self.behind:
                log.info("the rows in Postgres that were behind are back: all orders were looked at")

    def _log_lanes(self) -> None:
        """One line for all lanes that were found within TELL_AFTER."""
        if not self._untold or asyncio.get_running_loop().time() < min(self._untold.values()) + TELL_AFTER:
            return
        lanes = ", ".join(map(str, sorted(self._untold)))
        self._untold.clear()
        log.error(
            "Postgres went back in time (restored to an older point, or a standby took over that was behind),"
            " rows were deleted, or tables that an upgrade added aren't filled yet: of lanes %(lanes)s,"
            " orders have older rows than they had, or none; run orders repair --rows, beside the workers",
            {"lanes": lanes},
        )

    def _forget(self, lane: int) -> None:
        self._untold.pop(lane, None)
        if self.behind.pop(lane, None) is not None:
            metrics.ROWS_BEHIND.remove(lane)


def _expected(states: Iterable[tuple[bytes, bytes]]) -> dict[str, int]:
    """The orders with these states that have rows, with their versions."""
    return {
        ids.text(key): codec.version_of(state)
        for key, state in states
        if len(key) == codec.KEY_BYTES and codec.is_created(state)
    }
