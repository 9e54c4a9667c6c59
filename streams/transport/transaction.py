"""The way to Kafka in transactions: what a batch writes, and the offsets it comes from, become
visible together or not at all.

    begin ─► derived events, dead letters, states' changelog ─► offsets ─► commit ─► local store

- What the handler publishes is kept until it has returned. So the transaction is open for a few round trips,
  never while Postgres or Redis is waited for, and readers of committed records don't stand behind it.
- The transactional id is the lane's, whoever has it. Starting a producer ends what its predecessor
  had open and shuts it out for good: that comes before the state is recovered and before the
  committed offsets are read.
- Shut out (fenced): the lane is given up and the group is asked who has it. Never tried again.
- Any other failure leaves in doubt whether the transaction went in.
  A new producer settles it, one way or the other; then the committed offsets tell which.

The local store is written when the transaction has gone in.
If the worker dies in between, recovery reads the changelog.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, TypeVar

from aiokafka.errors import (
    InvalidTransactionTimeout,
    KafkaError,
    ProducerClosed,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.producer.transaction_manager import TransactionState
from aiokafka.structs import TopicPartition
from faust.types import TP

from streams.transport.errors import Fenced, LeaseLost, Stale, TransactionsRefused, is_fencing
from streams.transport.lane_notes import with_note
from streams.transport.producer import (
    CLOSE_TIMEOUT,
    GATE_INTERVAL,
    NOTHING,
    AiokafkaConnection,
    Connection,
    Gate,
    LaneProducer,
    changes,
    last_offset,
    retrieve,
    time_of,
)
from streams.transport.records import Moved, OutRecord
from streams.transport.table import StateTable
from streams.transport.waits import WAITS

log = logging.getLogger(__name__)

T = TypeVar("T")


class TransactionalConnection(Connection, Protocol):
    """A producer with a transactional id.
    Its `start` ends what the id's former owner had open and shuts it out; blocks until it has.
    """

    async def begin(self) -> None:
        """Open a transaction: what is sent from now on belongs to it."""

    async def send_offsets(self, offsets: Mapping[TP, int], group: str, notes: Mapping[TP, str]) -> None:
        """Make offsets of `group` part of the transaction, with the lane's notes beside them.
        Blocks while the brokers are away. Raises KafkaError.
        """

    async def commit(self) -> None:
        """End the transaction.
        Everything sent must have been acknowledged before: it would commit without a batch that failed.

        Blocks while the brokers are away. Raises KafkaError: the transaction may have gone in nevertheless.
        """

    async def abort(self) -> None:
        """Take the transaction back, if one is open and not being committed.
        Blocks for seconds at most. Raises nothing.
        """


ConnectTransactional = Callable[[Mapping[str, Any], Gate], TransactionalConnection]
"""(keyword arguments of wire.clients.producer, gate) -> connection, not started."""


class Settled(enum.Enum):
    """What became of a transaction whose end nobody saw."""

    WENT_IN = "went in"
    DID_NOT = "did not"
    TAKEN_OVER = "taken over"  # the group's offsets are neither the old nor the new ones


def settle(
    before: Mapping[TP, int | None], offsets: Mapping[TP, int], committed: Mapping[TP, int | None]
) -> Settled:
    """Judge by the offsets that the group has committed (`committed`), those that it had `before`, and those
    of the transaction. Pure.

    `before` and `committed` hold all of the lane's partitions: whoever else had the lane
    meanwhile has moved one of them.
    """
    if committed == before:
        return Settled.DID_NOT
    if committed == {**before, **offsets}:
        return Settled.WENT_IN
    return Settled.TAKEN_OVER


class TransactionalLaneProducer(LaneProducer):
    """Writes one lane's batches, each in a transaction of its own: exactly once.
    Bound to the main event loop.
    """

    commits: ClassVar[bool] = True

    def __init__(
        self,
        options: Callable[[], Mapping[str, Any]],
        check: Callable[[], None],
        waiting: Callable[[str], object],
        report_interval: float,
        *,
        group: str,
        committed: Callable[[Sequence[TP]], Awaitable[Mapping[TP, int | None]]],
        connect: ConnectTransactional | None = None,
    ) -> None:
        """Beyond LaneProducer's: `group` whose offsets are committed, and `committed`, which asks for them
        when no transaction may still change them. `options` hold the transactional id.
        """
        super().__init__(options, check, waiting, report_interval, connect or TransactionalAiokafkaConnection)
        self._group = group
        self._committed = committed
        self._staged: dict[str, list[OutRecord]] = {}
        self._puts: list[tuple[StateTable, Mapping[bytes, bytes | None], Sequence[Moved]]] = []
        self._partition = -1
        self._in_doubt = True
        """Whether somebody may have written for the lane, we or another, since the committed
        offsets that the trackers know.
        """
        self._changed: dict[str, int | None] | None = None
        """Once the transaction is in: last offset by changelog topic."""
        self._ended = asyncio.Event()

    async def start(self) -> None:
        """Shut out the lane's former owner.
        Blocks until what it had open has ended, for START_TIMEOUT at most.

        Raises KafkaError, TimeoutError, Stale, and TransactionsRefused.
        """
        await self._ready()
        self._in_doubt = False

    async def publish(self, records: Mapping[str, Sequence[OutRecord]], partition: int) -> None:
        """See LaneBatch.publish. Never blocks."""
        self._check()
        self._stage(records, partition)

    async def write_states(
        self,
        table: StateTable,
        puts: Mapping[bytes, bytes | None],
        partition: int,
        moved: Sequence[Moved] = (),
    ) -> None:
        """See LaneBatch.write_table. Never blocks."""
        self._check()
        self._stage({table.changelog_topic_name: changes(puts)}, partition)
        self._puts.append((table, puts, moved))

    async def acknowledge(
        self, offsets: Mapping[TP, int], before: Mapping[TP, int | None], notes: Mapping[TP, str]
    ) -> None:
        """See LaneProducer: write all that the handler has published, and commit it with the offsets;
        then write the local store.
        """
        if self._changed is None:
            self._changed = await self._commit(offsets, before, notes)
        with contextlib.suppress(
            LeaseLost
        ):  # it is in, and the store is this worker's own as long as the partition is
            self._check()
        for table, puts, moved in self._puts:
            table.store.write(self._partition, puts, self._changed.get(table.changelog_topic_name), moved)
        self._staged.clear()
        self._puts.clear()
        self._changed = None

    async def close(self) -> None:
        """Send nothing more, and take back what is open. Blocks for a few seconds at most."""
        self._closed = True
        self._ended.set()
        if self._producer is not None:
            await self._connection(self._producer).abort()
        await super().close()

    # -- one transaction -------------------------------------------------------------------------------------

    async def tell_time(self, topic: str, partition: int) -> int:
        """See LaneProducer: in a transaction of its own, since there is no other way to write."""
        self._check()
        async with self._settling():
            producer = self._connection(await self._ready())
            await producer.begin()
            (delivered,) = await self._deliver(producer, {topic: [NOTHING]}, partition)
            await self._leased()
            await self._until(producer.commit(), "Kafka has not ended a transaction")
        return time_of(delivered)

    async def _commit(
        self, offsets: Mapping[TP, int], before: Mapping[TP, int | None], notes: Mapping[TP, str]
    ) -> dict[str, int | None]:
        self._check()
        async with self._settling():
            if self._in_doubt and await self._went_in(offsets, before):
                self._in_doubt = False
                return {}
            producer = self._connection(await self._ready())
            self._in_doubt = True
            changed = await self._transact(producer, offsets, notes)
            self._in_doubt = False
            return changed

    @contextlib.asynccontextmanager
    async def _settling(self) -> AsyncIterator[None]:
        """After a failure the connection is of no use any more.
        Raises Fenced instead of what says that another one has the lane.
        """
        try:
            yield
        except Exception as exc:
            if self._producer is not None:
                await self._discard(self._producer)
            if not is_fencing(exc):
                raise
            self.fenced = True
            raise Fenced(f"the broker has shut this producer out: {exc!r}") from exc

    async def _transact(
        self, producer: TransactionalConnection, offsets: Mapping[TP, int], notes: Mapping[TP, str]
    ) -> dict[str, int | None]:
        await producer.begin()
        delivered = await self._deliver(producer, self._staged, self._partition)
        # Only now: while the coordinator is busy with the offsets the broker refuses records, and aiokafka
        # pauses before it tries again.
        if offsets:  # none of a batch of time
            await self._until(
                producer.send_offsets(offsets, self._group, notes),
                "Kafka has not taken the offsets of a transaction",
            )
        await self._leased()
        await self._until(producer.commit(), "Kafka has not ended a transaction")
        topics = {table.changelog_topic_name for table, _, _ in self._puts}
        return {
            topic: last_offset([batch for batch in delivered if batch.topic == topic]) for topic in topics
        }

    async def _went_in(self, offsets: Mapping[TP, int], before: Mapping[TP, int | None]) -> bool:
        await self._leased()
        await self._ready()
        committed = await self._until(
            self._committed(list(before)), "Kafka has not said which offsets are committed"
        )
        settled = settle(before, offsets, committed)
        log.warning("a transaction's end was in doubt; by the committed offsets it %s", settled.value)
        if settled is Settled.TAKEN_OVER:
            self.fenced = True
            raise Fenced(f"the group has committed {committed}, which this lane did not")
        return settled is Settled.WENT_IN

    async def _leased(self) -> None:
        """Wait for the lease: an open transaction isn't given up for a late heartbeat. Raises Stale."""
        while True:
            try:
                self._check()
                return
            except LeaseLost:
                await asyncio.sleep(GATE_INTERVAL)

    async def _until(self, awaitable: Awaitable[T], what: str) -> T:
        """The result of `awaitable`, for as long as the brokers take.
        Raises Stale when the lane closes, and what `waiting` raises.
        """
        task = asyncio.ensure_future(awaitable)
        task.add_done_callback(retrieve)
        ended = asyncio.ensure_future(self._ended.wait())
        either: set[asyncio.Future[Any]] = {task, ended}
        try:
            while True:
                await asyncio.wait(either, timeout=self._report_interval, return_when=asyncio.FIRST_COMPLETED)
                if task.done():
                    return task.result()
                if ended.done():
                    raise Stale("the lane was closed")
                self._waiting(what)
        finally:
            ended.cancel()
            task.cancel()

    def _stage(self, records: Mapping[str, Sequence[OutRecord]], partition: int) -> None:
        self._partition = partition
        for topic, items in records.items():
            self._staged.setdefault(topic, []).extend(items)

    async def _ready(self) -> Connection:
        try:
            return await super()._ready()
        except InvalidTransactionTimeout as exc:
            raise TransactionsRefused(
                "transaction_timeout is above what the brokers allow (transaction.max.timeout.ms)", "lower it"
            ) from exc
        except TransactionalIdAuthorizationFailed as exc:
            raise TransactionsRefused(
                f"the brokers don't let this worker use the transactional id {exc}", "allow it (kafka-acls)"
            ) from exc

    @staticmethod
    def _connection(producer: Connection) -> TransactionalConnection:
        return producer  # type: ignore[return-value]


class TransactionalAiokafkaConnection(AiokafkaConnection):
    """A TransactionalConnection by AIOKafkaProducer."""

    async def begin(self) -> None:
        """See TransactionalConnection."""
        producer = self._producer
        await producer.begin_transaction()
        # A transaction that fails before anybody waits for its end must not be reported as an
        # exception nobody looked at.
        producer._txn_manager.wait_for_transaction_end().add_done_callback(retrieve)

    async def send_offsets(self, offsets: Mapping[TP, int], group: str, notes: Mapping[TP, str]) -> None:
        """See TransactionalConnection."""
        waits = WAITS.note()
        await self._producer.send_offsets_to_transaction(
            {
                TopicPartition(*tp): (offset, with_note(waits, notes.get(tp, "")))
                for tp, offset in offsets.items()
            },
            group,
        )

    async def commit(self) -> None:
        """See TransactionalConnection."""
        await self._producer.commit_transaction()

    async def abort(self) -> None:
        """See TransactionalConnection."""
        if self._producer._txn_manager.state not in (
            TransactionState.IN_TRANSACTION,
            TransactionState.ABORTABLE_ERROR,
        ):
            return
        try:
            self._producer._message_accumulator.fail_all(ProducerClosed())
            await asyncio.wait_for(self._producer.abort_transaction(), CLOSE_TIMEOUT)
        except (KafkaError, TimeoutError) as exc:
            log.warning("a transaction was left open, its lane's next owner ends it: %r", exc)
