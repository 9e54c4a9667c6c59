"""Keep the cache as new as the states, even if workers die while Redis is away for a long time.

What Redis didn't take isn't kept in memory: it is in the changelog. Each lane has a checkpoint, the position
in the changelog up to which all of its orders are in the cache. The checkpoint is in Redis too, and the
script call that writes a batch's last entries advances it. While a lane is behind, its checkpoint stays where
it is, its batches are written as always, and beside them the changelog is read from the checkpoint on and its
orders are refreshed.
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
from sinks.redis import CacheCheckpoint, RedisSink, Written, checkpoint_key
from sinks.rows import CacheEntry
from streams.transport.batch import LaneBatch, OpenLane
from streams.transport.delivery import Stale, describe
from tables import codec

log = logging.getLogger(__name__)

PAUSE: Final = 1.0
"""Seconds between two checks whether a lane is behind and Redis is back."""
CHECK_INTERVAL: Final = 30.0
"""Seconds after which a lane that isn't behind checks its checkpoint in Redis, which may be an older copy by
now."""
SHARE: Final = 0.2
"""Share of the event loop's time that all lanes of a worker together take to catch up; live events have the
rest."""

EntryOf = Callable[[bytes, bytes], CacheEntry | None]
"""Makes the cache entry of an order from its raw id and state; None while there is nothing to show."""


class _Lane:
    """The state of a lane's part of the cache, as long as the lane is open."""

    def __init__(self, key: str, generation: int, opened_at: int) -> None:
        self.key = key
        self.generation = generation
        self.complete_to = opened_at
        """The checkpoint: of each record below this position of the changelog, the cache has the state, a
        newer one, or nothing."""
        self.sequence = 0
        """Sequence number of the last write."""
        self.acknowledged = 0
        """Sequence number of the last write that Redis acknowledged."""
        self.claimed = False
        """Whether the checkpoint in Redis is this generation's.

        Before, nothing is written, and `complete_to` only counts if Redis has no checkpoint.
        """
        self.behind = True
        """Whether the cache may lack something below the position of the local store."""
        self.gaps = 0
        """How often a write was missed, or an earlier one was found to be lost."""
        self.settled: tuple[int, int] | None = None
        """Position of the local store and end of the changelog when the checkpoint was last advanced to that
        end."""
        self.seen: tuple[int, int] | None = None
        """The same, as it was at the check before."""
        self.missed = False
        """Whether the last batch wasn't written. Its states may not be in the changelog yet."""
        self.latest: Sequence[CacheEntry] = ()
        """Entries of the last batch. With exactly_once its states are stored later."""
        self.writing = asyncio.Lock()
        """Held while writing: of two entries of one version the later one must stay."""

    def checkpoint(self, position: int, to: int, claim: str = "") -> CacheCheckpoint:
        """Return the checkpoint for the next write: from `position` to `to`."""
        self.sequence += 1
        return CacheCheckpoint(
            self.key, self.generation, self.sequence, position, to, claim, self.acknowledged
        )

    def on_gap(self) -> None:
        """Note that a write is missing, so that `complete_to` no longer advances with the batches."""
        self.latest = ()
        self.gaps += 1
        self.behind = True

    def on_written(self, checkpoint: CacheCheckpoint, written: Written) -> bool:
        """Take over what Redis answered.

        Returns False if Redis has lost the checkpoint or an acknowledged write.

        That happens when an older replica took over or a snapshot was loaded.
        """
        self.acknowledged = checkpoint.sequence
        if written.lost or written.position < checkpoint.position:
            self.complete_to = min(self.complete_to, written.position)
            self.on_gap()
            return False
        self.complete_to = max(self.complete_to, written.position)
        return True


def _idle(open_lane: OpenLane, lane: _Lane) -> bool:
    """Tell whether the cache has everything that the lane has written."""
    return not lane.behind and not open_lane.busy


class CacheKeeper:
    """Writes and refreshes the cache of a worker's lanes.

    It lives in the main event loop and never raises what Redis raises.
    """

    def __init__(self, settings: Settings, table: Any, cache: RedisSink, entry_of: EntryOf) -> None:
        """`table` holds the states that `entry_of` makes entries from."""
        self._settings = settings
        self._table = table
        self._cache = cache
        self._entry_of = entry_of
        self._lanes: dict[int, _Lane] = {}
        self._turn = asyncio.Lock()

    @property
    def behind(self) -> list[int]:
        """Lanes of which the cache may show something old."""
        return [number for number, lane in self._lanes.items() if lane.behind]

    async def write(self, batch: LaneBatch, entries: Sequence[CacheEntry]) -> None:
        """Write a batch's entries once its states are written, or with exactly_once are part of its
        transaction.

        Blocks as RedisSink.put does. Raises Stale.
        """
        lane = self._lanes.get(batch.partition)
        if lane is None:  # the lane is closed: its next owner refreshes what this batch changed
            return
        lane.missed = False  # the states of a batch that was missed before are in the changelog by now
        async with lane.writing:
            written = None
            if lane.claimed:
                checkpoint = lane.checkpoint(
                    lane.complete_to,
                    lane.complete_to if lane.behind else max(lane.complete_to, batch.position(self._table)),
                )
                written = await self._cache.put(entries, checkpoint)
            if written is None:
                lane.missed = True
                lane.on_gap()
            else:
                lane.on_written(checkpoint, written)
                lane.latest = entries

    async def opened(self, open_lane: OpenLane) -> None:
        """Refresh what the cache has missed, as long as the lane is open.

        Start it before the lane's first batch.
        """
        number = open_lane.partition
        try:
            position = open_lane.position(self._table)
        except Stale:
            return
        lane = self._lanes[number] = _Lane(
            checkpoint_key(self._settings, number), open_lane.generation, position
        )
        try:
            await self._keep(open_lane, lane)
        except Stale:
            pass
        finally:
            if self._lanes.get(number) is lane:
                del self._lanes[number]

    async def _keep(self, open_lane: OpenLane, lane: _Lane) -> None:
        clock = asyncio.get_running_loop().time
        checked_at, failing = clock(), False
        while True:
            if (lane.behind or clock() >= checked_at + CHECK_INTERVAL) and await self._claim_checkpoint(lane):
                checked_at, lane.settled = clock(), None
                try:
                    async with self._turn:
                        await self._catch_up(open_lane, lane)
                    failing = False
                except (KafkaError, OSError, TimeoutError) as error:
                    if not failing:
                        log.warning(
                            "lane %(lane)d: its changelog can't be read yet, so its cache stays behind:"
                            " %(why)s",
                            {"lane": open_lane.partition, "why": describe(error)},
                        )
                    failing = True
            with suppress(KafkaError, OSError, TimeoutError):
                await self._settle(open_lane, lane)
            await asyncio.sleep(PAUSE)

    async def _claim_checkpoint(self, lane: _Lane) -> bool:
        """Read the checkpoint from Redis and claim it for this generation.

        Returns False if Redis doesn't answer.
        """
        async with lane.writing:
            checkpoint = lane.checkpoint(lane.complete_to, lane.complete_to, "" if lane.claimed else "claim")
            written = await self._cache.put((), checkpoint, probe=True)
            if written is None:
                return False
            if lane.claimed:
                lane.on_written(checkpoint, written)
            else:
                lane.complete_to, lane.claimed, lane.acknowledged = (
                    written.position,
                    True,
                    checkpoint.sequence,
                )
            return True

    async def _settle(self, open_lane: OpenLane, lane: _Lane) -> None:
        """Advance the checkpoint of an idle lane to the changelog's end, so that others see that the cache is
        complete.

        Batches don't advance it past states without a cache entry (facts that wait for their order, passed
        deadlines) or past the end of a transaction.
        """
        if not _idle(open_lane, lane):
            return
        position = open_lane.position(self._table)
        if lane.settled == (position, lane.complete_to):
            return
        end = await open_lane.end(self._table)
        async with lane.writing:
            if not _idle(open_lane, lane):
                return
            # Checked after the end was read: so this lane has written or read everything below it.
            open_lane.check()
            if end > lane.complete_to:
                checkpoint = lane.checkpoint(lane.complete_to, end)
                written = await self._cache.put((), checkpoint, probe=True)
                if written is None or not lane.on_written(checkpoint, written):
                    return
            # The marker of a transaction may come a moment later: it is settled once
            # two checks in a row agree.
            lane.settled = (position, end) if lane.seen == (position, end) else None
            lane.seen = position, end

    async def _catch_up(self, open_lane: OpenLane, lane: _Lane) -> None:
        """Read the changelog once from the checkpoint to where it ends now, and refresh its orders."""
        if not lane.behind:
            return
        gaps, settled = lane.gaps, not (lane.missed and open_lane.busy)
        end = await open_lane.end(self._table)
        if lane.complete_to > end:
            log.warning(
                "lane %(lane)d: its cache is of another changelog, all of it is refreshed",
                {"lane": open_lane.partition},
            )
            async with lane.writing:
                if await self._cache.put((), lane.checkpoint(0, 0, "reset")) is None:
                    return
                lane.complete_to = 0
        refreshed_to, refreshed = lane.complete_to, 0
        if refreshed_to < end:
            async with aclosing(open_lane.changes(self._table, refreshed_to, end)) as changes:
                async for states, position in changes:
                    async with lane.writing:
                        started = time.perf_counter()
                        entries = self._entries(open_lane, lane, states, position)
                        spent = time.perf_counter() - started
                        checkpoint = lane.checkpoint(refreshed_to, position)
                        written = await self._cache.put(entries, checkpoint)
                    if written is None or not lane.on_written(checkpoint, written):
                        return
                    refreshed_to = position
                    refreshed += len(entries)
                    await asyncio.sleep(spent * (1 / SHARE - 1))
        if refreshed_to >= end and settled and lane.gaps == gaps:
            lane.behind = False
            log.info(
                "lane %(lane)d: its cache is complete, %(orders)d orders refreshed",
                {"lane": open_lane.partition, "orders": refreshed},
            )

    def _entries(
        self, open_lane: OpenLane, lane: _Lane, states: dict[bytes, bytes], position: int
    ) -> list[CacheEntry]:
        """Make entries of those of `states`, read from below `position`, that no later state has replaced or
        deleted."""
        stored = open_lane.position(self._table) >= position
        latest = {entry.order_id for entry in lane.latest}
        entries: list[CacheEntry] = []
        states = {key: state for key, state in states.items() if codec.is_state(key, state)}
        for (key, state), now in zip(
            states.items(), open_lane.get_states(self._table, list(states)), strict=True
        ):
            if now != state and (
                stored or (now is not None and codec.version_of(now) > codec.version_of(state))
            ):
                continue
            entry = self._entry_of(key, state)
            if entry is not None and entry.order_id not in latest:
                entries.append(entry)
        return entries
