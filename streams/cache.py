"""Keeps the cache as new as the states, whoever dies while Redis is away, and however long it is.

What Redis didn't take isn't kept anywhere: it is in the changelog. A lane only knows up to which position of it everything is in the cache,
and Redis knows it too: a mark, moved by the same script call as a batch's last entries. While a lane is behind, its mark stays, its batches
are written as always, and beside them the changelog is read from the mark on and its orders are refreshed.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, Final

from aiokafka.errors import KafkaError

from settings import Settings
from sinks.redis import Mark, RedisSink, Written, mark_key
from sinks.rows import CacheEntry
from streams.transport import LaneBatch, OpenLane
from streams.transport.delivery import Stale, describe
from tables import codec

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two looks whether a lane is behind and Redis is back."""
LOOK_INTERVAL: Final = 30.0
"""Seconds after which a lane that isn't behind looks whether its mark is still there: Redis may have gone back to an older copy."""
SHARE: Final = 0.2
"""Of the event loop's time, for all lanes of a worker together while they catch up: the rest is for live events."""

EntryOf = Callable[[bytes, bytes], CacheEntry | None]
"""The entry of an order by its id and state; None: there is nothing to show yet."""


class _Lane:
    """What is known of a lane's part of the cache, as long as the lane is open."""

    def __init__(self, key: str, generation: int, opened_at: int) -> None:
        self.key = key
        self.generation = generation
        self.low = opened_at
        """Of each record of the changelog below this position, the cache has the state, a newer one, or nothing."""
        self.number = 0
        """Of the last write."""
        self.known = 0
        """Of the last one that was acknowledged."""
        self.claimed = False
        """Whether the mark is this generation's. Until then nothing is written, and `low` is only for the case that there is none."""
        self.behind = True
        """Whether there may be others below the position of the local store."""
        self.doubts = 0
        """How often something wasn't written, or was found to be gone again."""
        self.settled: tuple[int, int] | None = None
        """Position of the local store and end of the changelog when the mark was last brought to that end."""
        self.seen: tuple[int, int] | None = None
        """The same, as it was a moment ago."""
        self.missed = False
        """Whether the last batch wasn't written. Its states may not be in the changelog yet."""
        self.latest: Sequence[CacheEntry] = ()
        """What the last batch wrote. With exactly_once its states are stored later."""
        self.writing = asyncio.Lock()
        """One at a time: of two entries of one version the later one stays."""

    def mark(self, position: int, to: int, claim: str = "") -> Mark:
        """For the next write."""
        self.number += 1
        return Mark(self.key, self.generation, self.number, position, to, claim, self.known)

    def doubt(self) -> None:
        """`low` doesn't go on with the batches."""
        self.latest = ()
        self.doubts += 1
        self.behind = True

    def learn(self, mark: Mark, written: Written) -> bool:
        """What Redis said of the mark. False: it has gone back behind it, or behind the last write (an older replica took over, a snapshot
        was loaded)."""
        self.known = mark.number
        if written.lost or written.mark < mark.position:
            self.low = min(self.low, written.mark)
            self.doubt()
            return False
        self.low = max(self.low, written.mark)
        return True


def _idle(open_lane: OpenLane, lane: _Lane) -> bool:
    """Whether the cache has all that the lane has written."""
    return not lane.behind and not open_lane.busy


class CacheKeeper:
    """One per worker. Lives in the main event loop. Never raises for Redis' sake."""

    def __init__(self, settings: Settings, table: Any, cache: RedisSink, entry_of: EntryOf) -> None:
        """`table`: the states that `entry_of` makes entries of."""
        self._group = settings.group
        self._table = table
        self._cache = cache
        self._entry_of = entry_of
        self._lanes: dict[int, _Lane] = {}
        self._turn = asyncio.Lock()

    @property
    def behind(self) -> list[int]:
        """Partitions of which the cache may show something old."""
        return [number for number, lane in self._lanes.items() if lane.behind]

    async def write(self, batch: LaneBatch, entries: Sequence[CacheEntry]) -> None:
        """Write a batch's entries, once its states are written (with exactly_once: are part of its transaction). Blocks as RedisSink.put.

        Raises Stale.
        """
        lane = self._lanes.get(batch.partition)
        if lane is None:  # it is over: its successor does it
            return
        lane.missed = False  # what was missed before is in the changelog by now
        async with lane.writing:
            written = None
            if lane.claimed:
                mark = lane.mark(lane.low, lane.low if lane.behind else max(lane.low, batch.position(self._table)))
                written = await self._cache.put(entries, mark)
            if written is None:
                lane.missed = True
                lane.doubt()
            else:
                lane.learn(mark, written)
                lane.latest = entries

    async def opened(self, open_lane: OpenLane) -> None:
        """To be called when a lane opens, beside its batches, before the first one. Refreshes whatever the cache has missed."""
        number = open_lane.partition
        try:
            position = open_lane.position(self._table)
        except Stale:
            return
        lane = self._lanes[number] = _Lane(mark_key(self._group, number), open_lane.generation, position)
        try:
            await self._keep(open_lane, lane)
        except Stale:
            pass
        finally:
            if self._lanes.get(number) is lane:
                del self._lanes[number]

    async def _keep(self, open_lane: OpenLane, lane: _Lane) -> None:
        clock = asyncio.get_running_loop().time
        looked, failing = clock(), False
        while True:
            if (lane.behind or clock() >= looked + LOOK_INTERVAL) and await self._find_mark(lane):
                looked, lane.settled = clock(), None
                try:
                    async with self._turn:
                        await self._catch_up(open_lane, lane)
                    failing = False
                except (KafkaError, OSError, TimeoutError) as error:
                    if not failing:
                        log.warning("lane %d: what its cache misses can't be read yet: %s", open_lane.partition, describe(error))
                    failing = True
            with suppress(KafkaError, OSError, TimeoutError):
                await self._settle(open_lane, lane)
            await asyncio.sleep(PAUSE)

    async def _find_mark(self, lane: _Lane) -> bool:
        """Where Redis has the mark, and that it is this generation's now. False if Redis doesn't answer."""
        async with lane.writing:
            mark = lane.mark(lane.low, lane.low, "" if lane.claimed else "yes")
            written = await self._cache.put((), mark, probe=True)
            if written is None:
                return False
            if lane.claimed:
                lane.learn(mark, written)
            else:
                lane.low, lane.claimed, lane.known = written.mark, True, mark.number
            return True

    async def _settle(self, open_lane: OpenLane, lane: _Lane) -> None:
        """Bring the mark of a lane that has nothing to do to where the changelog ends, so that others see that the cache is complete.

        States that are shown to nobody (facts wait for their order, a deadline passed) move no mark, nor does the end of a transaction.
        """
        if not _idle(open_lane, lane):
            return
        position = open_lane.position(self._table)
        if lane.settled == (position, lane.low):
            return
        end = await open_lane.end(self._table)
        async with lane.writing:
            if not _idle(open_lane, lane):
                return
            # After the end was asked for: so all below it is what this lane has written, or has found.
            open_lane.check()
            if end > lane.low:
                mark = lane.mark(lane.low, end)
                written = await self._cache.put((), mark, probe=True)
                if written is None or not lane.learn(mark, written):
                    return
            # The marker of a transaction may come a moment later: only what was so the last time as well is settled.
            lane.settled = (position, end) if lane.seen == (position, end) else None
            lane.seen = position, end

    async def _catch_up(self, open_lane: OpenLane, lane: _Lane) -> None:
        """One pass from the mark to where the changelog ends now."""
        if not lane.behind:
            return
        doubts, settled = lane.doubts, not (lane.missed and open_lane.busy)
        end = await open_lane.end(self._table)
        if lane.low > end:
            log.warning("lane %d: its cache is of another changelog, all of it is refreshed", open_lane.partition)
            async with lane.writing:
                if await self._cache.put((), lane.mark(0, 0, "anew")) is None:
                    return
                lane.low = 0
        at, refreshed = lane.low, 0
        if at < end:
            async with aclosing(open_lane.changes(self._table, at, end)) as changes:
                async for states, position in changes:
                    async with lane.writing:
                        started = time.perf_counter()
                        entries = self._entries(open_lane, lane, states, position)
                        spent = time.perf_counter() - started
                        mark = lane.mark(at, position)
                        written = await self._cache.put(entries, mark)
                    if written is None or not lane.learn(mark, written):
                        return
                    at = position
                    refreshed += len(entries)
                    await asyncio.sleep(spent * (1 / SHARE - 1))
        if at >= end and settled and lane.doubts == doubts:
            lane.behind = False
            log.info("lane %d: its cache is complete, %d orders refreshed", open_lane.partition, refreshed)

    def _entries(self, open_lane: OpenLane, lane: _Lane, states: dict[bytes, bytes], position: int) -> list[CacheEntry]:
        """Of `states`, from below `position` of the changelog, those not deleted, nor replaced: later ones were written, or will be."""
        stored = open_lane.position(self._table) >= position
        latest = {entry.order_id for entry in lane.latest}
        entries: list[CacheEntry] = []
        states = {key: state for key, state in states.items() if codec.is_state(key, state)}
        for (key, state), now in zip(states.items(), open_lane.get_states(self._table, list(states)), strict=True):
            if now != state and (stored or (now is not None and codec.version_of(now) > codec.version_of(state))):
                continue
            entry = self._entry_of(key, state)
            if entry is not None and entry.order_id not in latest:
                entries.append(entry)
        return entries
