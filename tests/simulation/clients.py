"""What a worker holds of Kafka: aiokafka's consumer and an idempotent producer, as far as
streams/transport touches them.

The consumer's subscription and fetch results are aiokafka's own classes; its fetcher and coordinator are
fakes with the attributes that ConsumerThread reads, so the real ConsumerThread runs on top.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from aiokafka import errors
from aiokafka.consumer.fetcher import FetchResult
from aiokafka.consumer.subscription_state import Assignment, SubscriptionState
from aiokafka.errors import ProducerClosed
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.transport.producer import Gate, Outgoing
from tests.simulation.kafka import APPEND_TIME, NO_GENERATION, NO_MEMBER, Broker, Group, Joined, Record, Sent
from tests.simulation.loop import OWNER
from tests.simulation.network import Network

BROKER = "kafka"
BACKOFF = 0.1
"""Seconds between two attempts of aiokafka (retry_backoff_ms)."""
REQUEST_TIMEOUT = 40.0


# -- producer ------------------------------------------------------------------------------------------------


class SentBatch:
    """A record batch that is full after so many records, as a real one is after so many bytes."""

    def __init__(self, most: int) -> None:
        self.records: list[Sent] = []
        self._most = most

    def extend(self, records: list[Outgoing], first: int, timestamp: int) -> int:
        """The index after the last one that it has taken."""
        at = first
        while at < len(records) and len(self.records) < self._most:
            key, value, headers = records[at]
            self.records.append(Sent(key, value, tuple(headers)))
            at += 1
        return at

    def record_count(self) -> int:
        """Records in it."""
        return len(self.records)


class Metadata(NamedTuple):
    """What a delivery tells: the first record's offset (-1: the broker doesn't know any more), and
    when the broker took it, ms.
    """

    offset: int
    timestamp: int = -1
    timestamp_type: int = APPEND_TIME


class Leaving(NamedTuple):
    """A produce request as it leaves the worker: when, and what `stamp` said then."""

    at: float
    stamp: Any


class FakeConnection:
    """streams.transport.producer.Connection over the fake broker: each partition's batches one after the
    other, partitions side by side.
    """

    def __init__(
        self,
        network: Network,
        broker: Broker,
        gate: Gate,
        *,
        timeout: float,
        most: int = 1 << 30,
        stamp: Callable[[], Any] = lambda: None,
        landed: Callable[[Leaving, TopicPartition, int, Sequence[Sent]], None] | None = None,
        milliseconds: Callable[[], int] = lambda: 0,
    ) -> None:
        """`timeout`: of one request, seconds. `most`: records of a batch.
        `landed(leaving, tp, offset, records)`: it was appended.
        """
        self._network = network
        self._broker = broker
        self._gate = gate
        self._timeout = timeout
        self._most = most
        self._stamp = stamp
        self._landed = landed
        self._milliseconds = milliseconds
        self._producer = 0
        self._closed = False
        self._queues: dict[TopicPartition, deque[tuple[SentBatch, asyncio.Future[Metadata]]]] = {}
        self._sequences: dict[TopicPartition, int] = {}
        self._senders: dict[TopicPartition, asyncio.Task[None]] = {}

    async def start(self) -> None:
        """See Connection."""
        self._producer = await self._network.request(
            BROKER, "init", self._broker.new_producer, errors.RequestTimedOutError, self._timeout
        )

    def create_batch(self) -> SentBatch:
        """See Connection."""
        return SentBatch(self._most)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """See Connection."""
        if self._closed:
            raise ProducerClosed
        tp = TopicPartition(topic, partition)
        self._broker.log(tp)
        future: asyncio.Future[Metadata] = asyncio.get_running_loop().create_future()
        queue = self._queues.setdefault(tp, deque())
        queue.append((batch, future))
        if tp not in self._senders:
            self._senders[tp] = asyncio.ensure_future(self._send_all(tp, queue))
        return future

    def take_back(self) -> None:
        """See Connection. A request on its way here ends by its time-out, within
        the session it was sent in.
        """

    async def abandon(self) -> None:
        """See Connection."""
        self._closed = True
        for queue in self._queues.values():
            for _, future in queue:
                if not future.done():
                    future.set_exception(ProducerClosed())
        for task in list(self._senders.values()):
            task.cancel()

    async def _send_all(
        self, tp: TopicPartition, queue: deque[tuple[SentBatch, asyncio.Future[Metadata]]]
    ) -> None:
        try:
            while queue:
                batch, future = queue[0]
                sequence = self._sequences.get(tp, 0)
                self._sequences[tp] = sequence + len(batch.records)
                try:
                    metadata = await self._send(tp, batch, sequence)
                except errors.KafkaError as error:
                    outcome: Exception | None = error
                else:
                    outcome = None
                queue.popleft()
                if future.done():
                    continue
                if outcome is None:
                    future.set_result(metadata)
                else:
                    future.set_exception(outcome)
        finally:
            self._senders.pop(tp, None)

    async def _send(self, tp: TopicPartition, batch: SentBatch, sequence: int) -> Metadata:
        """An idempotent batch is sent until it is there."""
        loop = asyncio.get_running_loop()
        while True:
            await self._gate()
            leaving = Leaving(loop.time(), self._stamp())

            def apply(leaving: Leaving = leaving) -> Metadata:
                log = self._broker.log(tp)
                end = log.end
                offset = self._broker.produce(
                    tp, self._producer, sequence, batch.records, self._milliseconds()
                )
                if offset == end and self._landed is not None:
                    self._landed(leaving, tp, offset, batch.records)
                times = [record.timestamp for record in log.read(offset, 1)[0] if record.offset == offset]
                return Metadata(offset, times[0] if times else -1)

            try:
                return await self._network.request(
                    BROKER, "produce", apply, errors.RequestTimedOutError, self._timeout
                )
            except errors.DuplicateSequenceNumber:
                return Metadata(-1)
            except TimeoutError:
                pass
            except errors.KafkaError as error:
                if not error.retriable:
                    raise
            await asyncio.sleep(BACKOFF)


# -- consumer ------------------------------------------------------------------------------------------------


class PartitionRecords:
    """What a fetch brought of one partition, to be iterated once."""

    def __init__(self, start: int, to: int, records: Sequence[Record]) -> None:
        self.next_fetch_offset = start
        self._to = to
        self._records = iter(records)

    def __iter__(self) -> Iterator[Record]:
        return self

    def __next__(self) -> Record:
        record = next(self._records, None)
        if record is None:
            self.next_fetch_offset = self._to
            raise StopIteration
        self.next_fetch_offset = record.offset + 1
        return record


class FakeFetcher:
    """aiokafka's Fetcher: keeps a list of each assigned partition ready.
    Its fetches are callbacks, so an idle worker costs nothing.
    """

    def __init__(self, network: Network, broker: Broker, subscriptions: SubscriptionState, most: int) -> None:
        self._network = network
        self._broker = broker
        self._subscriptions = subscriptions
        self._most = most
        self._records: dict[TopicPartition, FetchResult] = {}
        self._fetching: set[TopicPartition] = set()
        self._waiters: list[asyncio.Future[None]] = []
        self._backing_off = False
        self._wait_consume_future = None
        self._closed = False
        self._ordered: tuple[Assignment | None, list[TopicPartition]] = (None, [])
        self._loop = asyncio.get_running_loop()
        self._process = OWNER.get()

    def _notify(self, future: object) -> None:
        """Something was taken away: fetch on."""
        self.look()

    def _create_fetch_waiter(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def look(self) -> None:
        """Fetch every assigned partition that has something new and nothing ready."""
        assignment = self._assignment()
        if assignment is not None:
            if assignment is not self._ordered[0]:
                self._ordered = assignment, sorted(assignment.tps)
            for tp in self._ordered[1]:
                self._fetch(assignment, tp)

    def appended(self, tp: TopicPartition) -> None:
        """There may be something new in this partition (a watcher of Log), or it is read from elsewhere."""
        assignment = self._assignment()
        if assignment is not None and tp in assignment.tps:
            self._fetch(assignment, tp)

    def _assignment(self) -> Assignment | None:
        subscription = self._subscriptions.subscription
        return None if self._closed or subscription is None else subscription.assignment

    def _fetch(self, assignment: Assignment, tp: TopicPartition) -> None:
        state = assignment.state_value(tp)
        if tp in self._records or tp in self._fetching or not state.has_valid_position:
            return
        if self._broker.logs[tp].end <= state.position:
            return
        self._fetching.add(tp)
        # Not in the world's name: a dead worker gets nothing, a stopped one later.
        # It may have been called by a producer's request.
        token = OWNER.set(self._process)
        self._loop.call_later(0.001 + 2 * self._network.way(), self._arrive, assignment, tp, state.position)
        OWNER.reset(token)

    def _again(self) -> None:
        self._backing_off = False
        self.look()

    def _arrive(self, assignment: Assignment, tp: TopicPartition, position: int) -> None:
        self._fetching.discard(tp)
        if self._closed:
            return
        if BROKER in self._network.down:
            if not self._backing_off:
                self._backing_off = True
                self._network.after(BACKOFF, self._again)
            return
        if assignment.active and assignment.state_value(tp).position == position:
            records, to = self._broker.logs[tp].read(position, self._most)
            if to > position:
                partition_records = PartitionRecords(position, to, records)
                self._records[tp] = FetchResult(
                    tp, assignment=assignment, partition_records=partition_records, backoff=0
                )
        else:
            self.look()
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)


class HeartbeatRequest(NamedTuple):
    """By its name ConsumerThread knows what it is."""

    member: str
    generation: int


class SyncGroupRequest(NamedTuple):
    """The same."""

    member: str
    generation: int


class Response(NamedTuple):
    """An answer of the group's coordinator."""

    error_code: int
    assignment: frozenset[TopicPartition] = frozenset()


class FakeCoordinator:
    """aiokafka's GroupCoordinator: joins, beats, commits. `run` is its coordination routine."""

    def __init__(
        self,
        network: Network,
        group: Group,
        subscriptions: SubscriptionState,
        fetcher: FakeFetcher,
        interval: float,
    ) -> None:
        self._network = network
        self._group = group
        self._subscriptions = subscriptions
        self._fetcher = fetcher
        self._interval = interval
        self.generation = NO_GENERATION
        self.member_id = NO_MEMBER
        self._commit_lock = asyncio.Lock()
        self._client = SimpleNamespace(_conns={})
        self._rejoin = asyncio.Event()
        self._rejoin.set()
        self._beating: asyncio.Task[None] | None = None
        self._closing = False

    # -- what ConsumerThread uses ----------------------------------------------------------------------------

    async def ensure_coordinator_known(self) -> None:
        """Nearly always it is; now and then it has to be looked for, which takes as long as a failover."""
        if self._network.faults.left and self._network.rng.random() < 0.1:
            await self.until_answered("find", lambda: None)

    def coordinator_dead(self) -> None:
        """It is asked anew where the coordinator is: here it stays where it is."""

    async def _send_req(self, request: Any) -> Response:
        group = self._group
        kind = "heartbeat" if isinstance(request, HeartbeatRequest) else "sync"

        def apply() -> Response:
            if isinstance(request, HeartbeatRequest):
                return Response(group.heartbeat(request.member, request.generation))
            try:
                return Response(0, group.sync(request.member, request.generation))
            except errors.KafkaError as error:
                return Response(int(error.errno))

        response: Response = await self._request(kind, apply)
        return response

    async def fetch_committed_offsets(
        self, partitions: Sequence[TopicPartition]
    ) -> dict[TopicPartition, OffsetAndMetadata]:
        """What the group has committed; partitions without a commit are left out.
        Blocks until it is known.
        """

        def apply() -> dict[TopicPartition, OffsetAndMetadata]:
            return {
                tp: OffsetAndMetadata(self._group.offsets[tp], self._group.metadata.get(tp, ""))
                for tp in partitions
                if tp in self._group.offsets
            }

        committed: dict[TopicPartition, OffsetAndMetadata] = await self.until_answered(
            "fetch_committed", apply
        )
        return committed

    async def _do_commit_offsets(
        self, assignment: Assignment, offsets: Mapping[TopicPartition, OffsetAndMetadata]
    ) -> None:
        # As aiokafka does: generation and member of the moment in which it is sent.
        generation, member = self.generation, self.member_id
        plain = {tp: each.offset for tp, each in offsets.items()}
        beside = {tp: each.metadata for tp, each in offsets.items()}
        try:
            await self._request("commit", lambda: self._group.commit(member, generation, plain, beside))
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError):
            self._reset()
            raise

    async def _request(self, kind: str, apply: Callable[[], Any]) -> Any:
        try:
            return await self._network.request(
                BROKER, kind, apply, errors.RequestTimedOutError, REQUEST_TIMEOUT
            )
        except TimeoutError:
            raise errors.RequestTimedOutError from None

    async def until_answered(self, kind: str, apply: Callable[[], Any]) -> Any:
        """As long as the brokers are away."""
        while True:
            try:
                return await self._request(kind, apply)
            except errors.RequestTimedOutError:
                await asyncio.sleep(BACKOFF)

    # -- membership ------------------------------------------------------------------------------------------

    def _reset(self) -> None:
        self.generation = NO_GENERATION
        self.member_id = NO_MEMBER
        self._rejoin.set()

    def request_rejoin(self) -> None:
        """Take part in a new generation."""
        self._rejoin.set()

    async def run(self) -> None:
        """Until it is closed: be a member."""
        previous: Assignment | None = None
        prepared = False
        while True:
            await self._rejoin.wait()
            if self._closing:
                return
            listener = self._subscriptions.listener
            if not prepared:
                self._subscriptions.begin_reassignment()
                await listener.on_partitions_revoked(frozenset() if previous is None else previous.tps)
                prepared = True
            await self._stop_beating()
            self._rejoin.clear()
            assigned = await self._join()
            if assigned is None:
                self._rejoin.set()
                await asyncio.sleep(BACKOFF)
                continue
            self._subscriptions.assign_from_subscribed(set(assigned))
            previous = self._subscriptions.subscription.assignment
            self._reset_positions(previous)
            await listener.on_partitions_assigned(assigned)
            prepared = False
            self._beating = asyncio.ensure_future(self._beat())
            # If it ends by an error, the event loop tells: nobody awaits it.
            self._beating.add_done_callback(lambda task: task.cancelled() or task.result())

    async def _join(self) -> frozenset[TopicPartition] | None:
        member = self.member_id
        loop = asyncio.get_running_loop()
        joining: asyncio.Future[Joined] = loop.create_future()

        def answer(outcome: Joined | BaseException) -> None:
            self._network.after(self._network.way(), tell, outcome)

        def tell(outcome: Joined | BaseException) -> None:
            if joining.done():
                return
            if isinstance(outcome, BaseException):
                joining.set_exception(outcome)
                joining.exception()  # perhaps nobody waits any more
            else:
                joining.set_result(outcome)

        try:
            await self._request("join", lambda: self._group.join(member, answer))
            async with asyncio.timeout(REQUEST_TIMEOUT):
                joined = await joining
        except errors.UnknownMemberIdError:
            self._reset()
            return None
        except (errors.KafkaError, TimeoutError):
            return None
        self.generation, self.member_id = joined
        try:
            response = await self._send_req(SyncGroupRequest(self.member_id, self.generation))
        except errors.KafkaError:
            return None
        if response.error_code:
            if response.error_code != errors.RebalanceInProgressError.errno:
                self._reset()
            return None
        return response.assignment

    def _reset_positions(self, assignment: Assignment) -> None:
        """aiokafka begins to read at the committed offsets by itself, before anybody has said so."""

        def begin() -> None:
            if assignment.active:
                for tp in sorted(assignment.tps):
                    state = assignment.state_value(tp)
                    if not state.has_valid_position:
                        state.seek(self._group.offsets.get(tp, 0))
                self._fetcher.look()

        if self._network.rng.random() < 0.5:
            asyncio.get_running_loop().call_later(self._network.way(), begin)

    async def _beat(self) -> None:
        # Goes on while a rebalance is prepared: lanes may take their time to close.
        while self.member_id != NO_MEMBER:
            await asyncio.sleep(self._interval)
            try:
                response = await self._send_req(HeartbeatRequest(self.member_id, self.generation))
            except errors.KafkaError:
                continue
            if response.error_code == errors.RebalanceInProgressError.errno:
                self.request_rejoin()
            elif response.error_code:
                self._reset()

    async def _stop_beating(self) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.wait([self._beating])
            self._beating = None

    async def close(self) -> None:
        """Leave the group."""
        self._closing = True
        self._rejoin.set()
        await self._stop_beating()
        member = self.member_id
        if member != NO_MEMBER:
            try:
                await self._request("leave", lambda: self._group.leave(member))
            except errors.KafkaError:
                return


class _Cluster:
    def __init__(self, broker: Broker) -> None:
        self._partitions = broker.partitions

    def partitions_for_topic(self, topic: str) -> range | None:
        count = self._partitions.get(topic)
        return None if count is None else range(count)


class _Client:
    def __init__(self, broker: Broker) -> None:
        self.cluster = _Cluster(broker)


class FakeConsumer:
    """AIOKafkaConsumer with the attributes that ConsumerThread and Faust's thread use."""

    def __init__(self, network: Network, broker: Broker, group: Group, interval: float, most: int) -> None:
        self._broker = broker
        self._subscription = SubscriptionState()
        self._fetcher = FakeFetcher(network, broker, self._subscription, most)
        self._coordinator = FakeCoordinator(network, group, self._subscription, self._fetcher, interval)
        self._client = _Client(broker)
        self._closed = False
        for log in broker.logs.values():
            log.watchers.append(self._fetcher.appended)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        """Read on from `offset`. Raises IllegalStateError if the partition isn't assigned."""
        self._subscription.seek(tp, offset)
        self._fetcher._records.pop(tp, None)
        self._fetcher.appended(tp)

    async def beginning_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """First offsets."""
        offsets: dict[TopicPartition, int] = await self._coordinator.until_answered(
            "offsets", lambda: {tp: self._broker.logs[tp].start for tp in tps}
        )
        return offsets

    async def end_offsets(self, tps: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Offsets after the last records."""
        offsets: dict[TopicPartition, int] = await self._coordinator.until_answered(
            "offsets", lambda: {tp: self._broker.logs[tp].end for tp in tps}
        )
        return offsets

    def forget(self) -> None:
        """The worker is gone: its fetcher watches no log any more."""
        self._closed = self._fetcher._closed = True
        for log in self._broker.logs.values():
            if self._fetcher.appended in log.watchers:
                log.watchers.remove(self._fetcher.appended)
