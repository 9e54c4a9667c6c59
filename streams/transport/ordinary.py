"""Records of topics that no lane reads, for ordinary Faust agents: one by one, through Faust's conductor,
with Faust's own semantics.

Faust acknowledges a record once its agent has gone on, also if it raised; what is acknowledged is committed
from time to time. A worker that dies handles some records again. Nothing here waits for lanes, and lanes
don't wait for anything here.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

from aiokafka.errors import KafkaError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.transport.consumer_thread import Bounds, ConsumerThread, Fetched, Start
from streams.transport.records import place

log = logging.getLogger(__name__)

FETCH_TIMEOUT = 1.0
FETCH_RECORDS = 500
REST = 0.1
"""Seconds between two looks whether an agent whose queue is full has room again."""
RETRY_PAUSE = 1.0


def resolve_start(name: str, committed: int | None, bounds: Bounds) -> Start:
    """Where to begin reading: at the committed offset, or at the log's start where the
    log doesn't hold it. Pure.
    """
    if committed is None:
        return Start(bounds.low, None)
    if bounds.low <= committed <= bounds.high:
        return Start(committed, committed)
    log.error(
        "%(topic)s/%(partition)s: the group had finished up to offset %(offset)d, the log has %(begins)d to"
        " %(ends)d. Reading from its start.",
        {**place(name), "offset": committed, "begins": bounds.low, "ends": bounds.high},
    )
    return Start(bounds.low, committed)


class OrdinaryTopics:
    """The assigned partitions that no lane reads. Belongs to a Consumer and lives in the main thread."""

    def __init__(
        self, consumer: driver.Consumer, thread: ConsumerThread, note_rewind: Callable[[TP, int, int], None]
    ) -> None:
        """`note_rewind` is told of a list that was lost: where the reader stands, and the
        offset that was expected.
        """
        self._consumer = consumer
        self._thread = thread
        self._note_rewind = note_rewind
        self._next: dict[TP, int] = {}
        """The next offset to deliver."""
        self._opening: list[TP] = []
        """Partitions of which the next offset isn't known yet."""
        self._assignment: Any = None
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._next)

    def begin(self, tps: list[TP], assignment: Any) -> None:
        """Deliver `tps` from now on, as long as the assignment lasts, from what the group has
        committed on. Never blocks.
        """
        self._opening = [tp for tp in tps if tp not in self._next]
        self._assignment = assignment
        if self._opening:
            self._changed.set()

    def clear(self) -> None:
        """The assignment is over: deliver nothing more of it."""
        self._opening = []
        self._next.clear()

    async def _open(self) -> None:
        """Begin with what waits for it. Blocks for a few round trips. Raises KafkaError."""
        consumer, thread, tps = self._consumer, self._thread, self._opening
        opened = await thread.in_thread(thread.start_positions(tps, self._assignment, resolve_start))
        if self._opening is not tps:
            return  # a rebalance
        self._opening = []
        for tp, start in opened[1].items() if opened is not None else ():
            self._next[tp] = start.offset
            # Faust keeps its books from here on; None is its word for the offset 0.
            consumer._read_offset[tp] = consumer._committed_offset[tp] = start.offset or None
        log.info(
            "ordinary agents read %s",
            ", ".join(f"{tp.topic}/{tp.partition} from {offset}" for tp, offset in self._next.items()),
        )

    def _wanted(self) -> dict[TP, int]:
        consumer = self._consumer
        if not consumer.flow_active:
            return {}
        # Faust takes a partition out of the active ones while its agent's queue is full.
        active = consumer._get_active_partitions()
        return {tp: offset for tp, offset in self._next.items() if tp in active}

    async def deliver(self, fetcher: Any) -> None:
        """Bring records to Faust's conductor until consumer or fetcher stops. Raises ConsumerStoppedError."""
        consumer, thread = self._consumer, self._thread
        while not (consumer._stopped.is_set() or fetcher._stopped.is_set()):
            if not self._next and not self._opening:
                self._changed.clear()
                await self._changed.wait()
            try:
                if self._opening:
                    await self._open()
                wanted = self._wanted()
                lists = (
                    await thread.in_thread(thread.fetch(wanted, FETCH_TIMEOUT, FETCH_RECORDS, kickable=False))
                    if wanted
                    else []
                )
            except KafkaError as exc:
                log.warning("records for ordinary agents can't be fetched, trying again: %r", exc)
                await asyncio.sleep(RETRY_PAUSE)
                continue
            if not wanted:
                await asyncio.sleep(REST)
            for fetched in lists:
                await self._deliver(fetched)

    async def _deliver(self, fetched: Fetched) -> None:
        consumer, thread, tp = self._consumer, self._thread, fetched.tp
        expected = self._next.get(tp)
        if expected is None or fetched.assignment is not thread.assignment_now():
            return  # read before a rebalance
        if fetched.start > expected:
            self._note_rewind(tp, fetched.start, expected)
            await thread.in_thread(thread.rewind(tp, expected, fetched.assignment))
            return
        for record in fetched.records:
            if record.offset < expected:
                continue
            await self._skip(tp, expected, record.offset)
            message = consumer._to_message(tp, record)
            await consumer.wait_first(consumer.callback(message), consumer.suspend_flow.wait())
            if tp not in self._next or consumer.suspend_flow.is_set():
                return  # a rebalance has begun; what wasn't acknowledged is read again
            expected = self._next[tp] = record.offset + 1
        await self._skip(tp, expected, fetched.to)
        self._next[tp] = max(expected, fetched.to)

    async def _skip(self, tp: TP, since: int, to: int) -> None:
        """Offsets that hold no record (aborted, compacted, marks of transactions) count as acknowledged."""
        if since < to:
            await self._consumer._add_gap(tp, since, to - 1)
