"""The seven steps of a batch, in their order: effects before state, state before offset.

    1 decode   2 fold   3 publish   4 rows   5 state   6 cache   7 ack (handle returns)

After a crash anywhere the batch is replayed from the older state, and the same effects leave under the same
ids. A temporary failure makes the lane call `handle` again with the same batch (streams.transport.delivery):
the work already done is kept on the batch, so a step that succeeded isn't repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic, perf_counter
from typing import Any

from contracts.bulk import is_unpacked
from contracts.topics import INPUT, INTERNAL
from settings import Settings
from sinks.base import Sink
from sinks.redis import RedisSink
from sinks.rows import RowBatch
from streams import metrics
from streams.cache import CacheKeeper
from streams.flood import Flood
from streams.folder import BatchFolder, BatchOutput
from streams.retraction import Retractions
from streams.transport.batch import LaneBatch, OpenLane
from streams.transport.records import Record

Step = Callable[[LaneBatch, "BatchOutput"], Awaitable[None]]
"""One of steps 3 to 6."""


class _Progress:
    """The output of a batch, and how many of steps 3 to 6 have succeeded."""

    __slots__ = ("done", "retracted", "work")

    def __init__(self, work: BatchOutput, retracted: Sequence[bytes]) -> None:
        self.work = work
        self.retracted = retracted
        """Orders about which a killed worker published notices. They are checked once the batch is done."""
        self.done = 0


class Pipeline:
    """Handles the batches of every lane of this worker.

    `table`: the Faust table of the orders' states. A batch goes on only once `postgres` has taken its rows;
    `cache` never raises. Call `opened` when a lane opens.
    """

    def __init__(self, settings: Settings, table: Any, postgres: Sink[RowBatch], cache: RedisSink) -> None:
        self._table = table
        self._postgres = postgres
        self.folder = BatchFolder(settings)
        self.cache = CacheKeeper(settings, table, cache, self.folder.entry_of)
        self._retractions = Retractions(table)
        self._transactions = settings.delivery == "exactly_once"
        self.flood: Flood | None = None
        """Is told how many records of each input topic were refused."""
        self._at_once = settings.batch_records
        self._folding = asyncio.Lock()
        """One lane folds at a time. Two that took turns would both finish late, and then wait for the
        servers at the same time.
        """
        self._steps: tuple[tuple[str, Step], ...] = (
            ("publish", self._publish),
            ("postgres", self._write_rows),
            ("state", self._write_states),
            ("redis", self._refresh_cache),
        )

    async def opened(self, lane: OpenLane) -> None:
        """What runs beside a lane's batches: start it before the first one."""
        if not self._transactions:  # with transactions no reader saw what a killed worker wrote
            self._retractions.opened(lane)
        await self.cache.opened(lane)

    def wrap_steps(self, wrap: Callable[[str, Step], Step]) -> None:
        """Put something around each of steps 3 to 6, before the first batch."""
        self._steps = tuple((name, wrap(name, step)) for name, step in self._steps)

    async def handle(self, batch: LaneBatch) -> None:
        """Take in one batch. Returning acknowledges it.
        Raises what brokers and Postgres raise: transport.delivery decides what then.
        """
        progress: _Progress | None = batch.work
        if progress is None:
            await self._retractions.read(batch)
            work = await self._fold(batch)
            progress = batch.work = _Progress(work, self._retractions.add(batch, work))
        work = progress.work
        for name, step in self._steps[progress.done :]:
            started = perf_counter()
            await step(batch, work)
            progress.done += 1
            metrics.step_took(name, perf_counter() - started)
        self._retractions.settle(batch, progress.retracted)
        _count(work)
        if self.flood is not None:
            for (topic, outcome), count in work.outcomes.items():
                if outcome == "refused" and topic in INPUT:
                    self.flood.add(topic, count, monotonic())

    async def _fold(self, batch: LaneBatch) -> BatchOutput:
        """Steps 1 and 2. Writes nothing. Blocks on the local disk, for a slice of the batch at a time. Raises
        Stale."""
        if batch.moment is not None:  # no records: only time has passed
            return self.folder.pass_deadlines(
                batch.due_states(self._table, batch.moment, self._at_once), batch.moment
            )
        work = BatchOutput()
        states = partial(batch.get_states, self._table)
        async with self._folding:
            for _ in self.folder.slices(batch, states, work, metrics.step_took):
                await asyncio.sleep(0)  # the loop has others to serve
        metrics.BATCH_RECORDS.observe(len(batch))
        return work

    # -- steps 3 to 6 ----------------------------------------------------------------------------------------

    async def _publish(self, batch: LaneBatch, work: BatchOutput) -> None:
        if work.out:
            await batch.publish(work.out)
            for topic, records in work.out.items():
                metrics.DERIVED.labels(topic).inc(len(records))

    async def _write_rows(self, batch: LaneBatch, work: BatchOutput) -> None:
        if work.rows.orders:
            batch.check()
            await self._postgres.write(work.rows)

    async def _write_states(self, batch: LaneBatch, work: BatchOutput) -> None:
        if work.states or work.moved:
            await batch.write_table(self._table, work.states, work.moved)

    async def _refresh_cache(self, batch: LaneBatch, work: BatchOutput) -> None:
        if work.cache:
            await self.cache.write(batch, work.cache)


def interactive(record: Record) -> bool:
    """Whether somebody may wait for what becomes of a record: it is no event of a bulk job, and nothing that
    the lanes write to themselves. Pure.
    """
    return record.topic not in INTERNAL and not is_unpacked(record.headers)


def _count(work: BatchOutput) -> None:
    for (topic, outcome), count in work.outcomes.items():
        metrics.RECORDS.labels(topic, outcome).inc(count)
    for code, count in work.letters.items():
        metrics.DEAD_LETTERS.labels(code).inc(count)
    for deadline, count in work.deadlines.items():
        metrics.DEADLINES.labels(deadline).inc(count)
    for (kind, state), count in work.attention.items():
        metrics.ATTENTION.labels(kind, state).inc(count)
    metrics.LAST_BATCH.set_to_current_time()
