"""Whether Postgres went back in time: its rows are compared with the states that were written last.

A batch's rows are written before its states. So the last states that a lane has written are a watermark: the
rows of their orders have their versions, or higher ones. They haven't once Postgres was restored to an older
point, or a standby took over that was behind. Workers don't mend that: they go on, and say what does.

Nothing is written for this but the keys of the last states, into the local store, with the states.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final, Protocol

from contracts import ids
from streams import metrics
from streams.transport import OpenLane
from streams.transport.delivery import Stale, Verdict, judge
from tables import codec

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks whether there is a new connection to Postgres."""
AGAIN: Final = 30.0
"""Seconds after which orders that were behind are looked at again."""


class Rows(Protocol):
    """The rows of orders: sinks.postgres."""

    @property
    def connections(self) -> int:
        """How many connections were made."""

    async def versions(self, order_ids: Sequence[str]) -> dict[str, int]:
        """The versions of these orders' rows, without those that there are none of."""


class Watermark:
    """Compares the rows of a worker's lanes, as a lane opens and whenever there is a new connection."""

    def __init__(self, table: Any, rows: Rows) -> None:
        """`table` holds the states."""
        self._table = table
        self._rows = rows
        self._behind: dict[int, int] = {}
        """Lane -> how many orders are behind; without those at 0."""

    async def watch(self, lane: OpenLane) -> None:
        """Compare as long as the lane is open; cancel it then. Doesn't raise: it only tells."""
        clock = asyncio.get_running_loop().time
        seen, at, behind = -1, 0.0, dict[str, int]()
        try:
            while True:
                connections = self._rows.connections
                if connections != seen or (behind and clock() >= at + AGAIN):
                    try:
                        expected = self._expected(lane) | behind if connections != seen else behind
                        behind = await self._compare(expected)
                        seen, at = connections, clock()
                        self._tell(lane.partition, len(behind), len(expected))
                    except Exception as error:
                        if judge(error) is not Verdict.TEMPORARY:
                            raise
                await asyncio.sleep(PAUSE)
        except Stale:
            pass
        except Exception:
            log.exception("lane %d: its rows aren't compared with its states any more", lane.partition)
        finally:
            self._tell(lane.partition, 0, 0)

    def _expected(self, lane: OpenLane) -> dict[str, int]:
        """The orders whose states were written last and that have rows, with their versions."""
        keys = lane.latest(self._table)
        expected: dict[str, int] = {}
        for key, state in zip(keys, lane.get_states(self._table, keys), strict=True):
            if state is not None and codec.is_created(state):
                expected[ids.text(key)] = codec.version_of(state)
        return expected

    async def _compare(self, expected: dict[str, int]) -> dict[str, int]:
        versions = await self._rows.versions([*expected]) if expected else {}
        return {order_id: at for order_id, at in expected.items() if versions.get(order_id, 0) < at}

    def _tell(self, lane: int, behind: int, looked_at: int) -> None:
        before = bool(self._behind)
        if behind:
            metrics.ROWS_BEHIND.labels(lane).set(behind)
            self._behind[lane] = behind
            if not before:
                log.error(
                    "Postgres went back in time (restored to an older point, or a standby took over that"
                    " was behind): of the %d orders that lane %d wrote last, %d have older rows or none; run"
                    " orders repair --rows, beside the workers",
                    looked_at,
                    lane,
                    behind,
                )
        elif self._behind.pop(lane, None) is not None:
            metrics.ROWS_BEHIND.remove(lane)
            if looked_at and not self._behind:
                log.info("the rows in Postgres that were behind have come back, as far as was looked at")
