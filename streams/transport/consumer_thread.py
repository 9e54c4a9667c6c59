"""The part of the consumer that lives in its own thread and event loop: reads, seeks, commits, heartbeats.

aiokafka's consumer is not safe to read from another thread in two steps. So everything that must
belong together (a list of records, the assignment it was fetched for, the positions before and after
it) is taken here in one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from aiokafka.conn import CloseReason
from aiokafka.consumer.fetcher import READ_UNCOMMITTED, FetchResult
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from aiokafka.errors import ConsumerStoppedError, KafkaError, RequestTimedOutError
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.transport.consumer_app import ConsumerApp
from streams.transport.errors import OffsetBeyondEnd
from streams.transport.executor import end_executor
from streams.transport.lane_notes import ends_of, note_of, with_ends, with_note
from streams.transport.lease import Lease, clock
from streams.transport.offsets import Commit, stable_commits, stable_offsets
from streams.transport.records import Record, place
from streams.transport.waits import WAITS
from wire import clients
from wire.denied import acl

log = logging.getLogger(__name__)

T = TypeVar("T")

FETCH_WAIT_MS = 100
"""How long the broker holds an empty fetch. A seek, or a partition that is wanted again, waits for the fetch
under way. Faust's 1,500 ms are not a setting.
"""
STOP_TIMEOUT = 10.0
LOOK_INTERVAL = 0.5
"""Seconds after which a waiting fetch looks for lost lists again."""
ACCEPTED = (0, 27)
"""Error codes of a heartbeat that prove membership: none, and 'a rebalance has begun'."""


class Fetched(NamedTuple):
    """Everything in [start, to) of one partition, and for which assignment it was read."""

    tp: TP
    assignment: object
    start: int
    to: int
    records: Sequence[Record]


class Start(NamedTuple):
    """Where a tracker begins, and what the group has committed (None: nothing)."""

    offset: int
    committed: int | None
    noted: str = ""
    """The lane's note beside it."""
    ends: tuple[int, ...] = ()
    """Where the logs ended, it says, that LaneSpec.tracked names."""


class Bounds(NamedTuple):
    """First offset of a log, and the one after its last."""

    low: int
    high: int


def resolve_start(name: str, committed: int | None, bounds: Bounds) -> Start:
    """Where to begin reading: at the committed offset, or at the log's start. Pure.

    Raises OffsetBeyondEnd if the log ends before the committed offset.
    """
    if committed is None:
        return Start(bounds.low, None)
    if committed > bounds.high:
        raise OffsetBeyondEnd(beyond_end(name, committed, bounds.high))
    if committed < bounds.low:
        log.error(
            "records of %(topic)s/%(partition)s are lost: the group had finished up to offset %(offset)d, the"
            " log now begins at %(begins)d. Going on there.",
            {**place(name), "offset": committed, "begins": bounds.low},
        )
        return Start(bounds.low, committed)
    return Start(committed, committed)


def beyond_end(name: str, offset: int, end: int) -> str:
    """The message for a person."""
    return (
        f"{name}: the group has finished up to offset {offset}, but the log ends at {end}: the topic was"
        " created anew or truncated"
    )


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """See the module. Methods marked 'main' are called from the main thread; the
    coroutines run in this one.
    """

    lease: Lease
    _denied: BaseException | None = None
    """A topic or a group that may not be read, until it is told."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lease = Lease(self.app.conf.broker_session_timeout)

    async def on_start(self) -> None:
        await super().on_start()
        self._kicked = asyncio.Event()
        self._watch_heartbeats(self._ensure_consumer()._coordinator)

    def _create_worker_consumer(self, transport: Any) -> Any:
        """Faust's consumer of a worker, made by wire.clients. It reads committed records only: an aborted one
        was never written, not by an upstream service, and not by a worker that wrote in transactions.

        Raises ImproperlyConfigured for a session that is longer than a request may take.
        """
        conf = self.app.conf
        if conf.broker_session_timeout > conf.broker_request_timeout:
            raise ImproperlyConfigured(
                f"broker_session_timeout={conf.broker_session_timeout} is longer than"
                f" broker_request_timeout={conf.broker_request_timeout}"
            )
        tables = conf.table_standby_replicas > 0 or bool(self.app.tables.changelog_topics)
        self._assignor = self.app.assignor if tables else RoundRobinPartitionAssignor
        return clients.consumer(
            cast(ConsumerApp, self.app).settings,
            conf.broker_client_id,
            group_id=conf.id,
            group_instance_id=conf.consumer_group_instance_id,
            partition_assignment_strategy=[self._assignor],
            auto_offset_reset=conf.consumer_auto_offset_reset,
            max_poll_records=conf.broker_max_poll_records,
            max_poll_interval_ms=_milliseconds(conf.broker_max_poll_interval or 0),
            max_partition_fetch_bytes=conf.consumer_max_fetch_size,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            request_timeout_ms=_milliseconds(conf.broker_request_timeout),
            check_crcs=conf.broker_check_crcs,
            session_timeout_ms=_milliseconds(conf.broker_session_timeout),
            rebalance_timeout_ms=_milliseconds(conf.broker_rebalance_timeout),
            heartbeat_interval_ms=_milliseconds(conf.broker_heartbeat_interval),
            metadata_max_age_ms=conf.consumer_metadata_max_age_ms,
            connections_max_idle_ms=conf.consumer_connections_max_idle_ms,
        )

    def _watch_heartbeats(self, coordinator: Any) -> None:
        """Renew the lease with the time at which an accepted request was sent (not
        answered: the answer may be old).

        A heartbeat that isn't answered for a whole session ends all connections: their other ends may be gone
        without a word, and a request's own timeout is that of the longest rebalance.
        """
        send = coordinator._send_req
        session = self.app.conf.broker_session_timeout

        async def watched(request: Any) -> Any:
            sent = clock()
            beat = type(request).__name__.startswith("HeartbeatRequest")
            try:
                response = await asyncio.wait_for(send(request), session if beat else None)
            except TimeoutError:
                log.warning(
                    "no heartbeat was answered for %(seconds)g s: connecting anew", {"seconds": session}
                )
                for connection in list(coordinator._client._conns.values()):
                    connection.close(reason=CloseReason.CONNECTION_TIMEOUT)
                coordinator.coordinator_dead()
                raise RequestTimedOutError from None
            if (
                beat or type(request).__name__.startswith("SyncGroupRequest")
            ) and response.error_code in ACCEPTED:
                self.lease.renew(sent)
            return response

        coordinator._send_req = watched

    async def on_thread_stop(self) -> None:
        # With a broker down aiokafka's Fetcher.close() lets a CancelledError out.
        # It would end this thread before it has said so, and whoever stops the worker would wait for ever.
        try:
            await asyncio.wait_for(super().on_thread_stop(), STOP_TIMEOUT)
        except (asyncio.CancelledError, Exception) as exc:
            log.warning("the consumer did not stop in order (the process is ending anyway): %r", exc)
        await end_executor()

    # -- main ------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Main: called when a rebalance comes while the worker stops. Does nothing: on_thread_stop ends the
        consumer, in its own thread.

        Faust's closes the client in the main loop, while this thread reads from its sockets. With uvloop that
        ended the process with SIGSEGV, when a broker's answer came at that moment.
        """

    def leased(self) -> bool:
        """Main: True while writing is allowed."""
        return self.lease.valid(clock())

    def unproven(self) -> float:
        """Main: seconds since the last heartbeat that the coordinator accepted; infinite before the first."""
        return clock() - self.lease.proven

    def end_of(self, tp: TP) -> int | None:
        """Main: where the log ended when it was last fetched; None: not fetched yet, or not assigned."""
        assignment = self.assignment_now()
        state = None if assignment is None or tp not in assignment.tps else assignment.state_value(tp)
        return None if state is None else cast("int | None", state.highwater)

    def assignment_now(self) -> Any:
        """Main: the assignment object of this moment, or None."""
        subscription = self._consumer._subscription.subscription if self._consumer is not None else None
        return subscription.assignment if subscription is not None else None

    def claimed(self) -> tuple[Any, int] | None:
        """Main: assignment and generation of this moment; None while there is no assignment."""
        assignment = self.assignment_now()
        if self._consumer is None or assignment is None or not assignment.active:
            return None
        return assignment, self._consumer._coordinator.generation

    def current(self, assignment: Any, generation: int) -> bool:
        """Main: True if `assignment` is the one of this moment, in the same generation."""
        consumer = self._consumer
        return (
            consumer is not None
            and assignment is self.assignment_now()
            and assignment.active
            and consumer._coordinator.generation == generation
        )

    def refusal(self) -> BaseException | None:
        """Main: why the group's coordinator doesn't let this consumer in, or None; or why a topic may not be
        read, since the last call. aiokafka rests until somebody asks for it by reading.
        """
        coordinator = self._consumer._coordinator if self._consumer is not None else None
        refusal: BaseException | None = getattr(coordinator, "_pending_exception", None)
        denied, self._denied = self._denied, None
        return refusal or denied

    def partition_counts(self, topics: Sequence[str]) -> dict[str, int]:
        """Main: partitions of each topic as far as the metadata knows it."""
        if self._consumer is None:
            return {}
        cluster = self._consumer._client.cluster
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        return {topic: count for topic, count in counts.items() if count}

    async def in_thread(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Main: run `coroutine` in this thread and wait.
        Raises ConsumerStoppedError if the thread has ended.
        """
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self.thread_loop)
        except RuntimeError:
            coroutine.close()
            raise ConsumerStoppedError from None
        return await asyncio.wrap_future(future)

    def kick(self) -> None:
        """Main: end the fetch that is waiting, because something else is wanted now."""
        if not self.thread_loop.is_closed():
            self.thread_loop.call_soon_threadsafe(self._kicked.set)

    async def join_again(self) -> None:
        """In this thread: have aiokafka try once more what the coordinator refused."""
        coordinator = self._ensure_consumer()._coordinator
        if coordinator._pending_exception is not None:
            with contextlib.suppress(KafkaError):
                coordinator.check_errors()
            coordinator.request_rejoin()

    # -- in this thread --------------------------------------------------------------------------------------

    async def fetch(
        self, wanted: Mapping[TP, int], timeout: float, limit: int, *, kickable: bool = True
    ) -> list[Fetched]:
        """What has arrived for `wanted` (partition -> next expected offset), at most `limit` records a list.

        Blocks up to `timeout` seconds while nothing has arrived, or until kick() if it is `kickable`, as one
        fetch at a time may be. Raises ConsumerStoppedError, and KafkaError if the broker refuses a partition.
        """
        consumer = self._ensure_consumer()
        fetcher = consumer._fetcher
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout
        with fetcher._subscriptions.fetch_context():
            while True:
                if consumer._closed or fetcher._closed:
                    raise ConsumerStoppedError
                lists = self._arrived(consumer, fetcher, wanted, limit)
                left = deadline - loop.time()
                if lists or left <= 0:
                    return lists
                arrival = fetcher._create_fetch_waiter()
                kicked = asyncio.ensure_future(self._kicked.wait() if kickable else asyncio.sleep(left))
                try:
                    await asyncio.wait(
                        {arrival, kicked},
                        timeout=min(left, LOOK_INTERVAL),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if arrival.done() and not arrival.cancelled():
                        self._raise(arrival.exception())  # the coordinator reports a refused group here
                finally:
                    arrival.cancel()
                    kicked.cancel()
                if kickable and self._kicked.is_set():
                    self._kicked.clear()
                    return []

    def _raise(self, error: BaseException | None) -> None:
        """Raise an error, but not of an ACL that lacks: whoever reads it waits, and refusal() says why."""
        if error is not None and acl(error) is None:
            raise error
        self._denied = error or self._denied

    def _arrived(self, consumer: Any, fetcher: Any, wanted: Mapping[TP, int], limit: int) -> list[Fetched]:
        subscriptions = fetcher._subscriptions
        if subscriptions.reassignment_in_progress or subscriptions.subscription is None:
            return []
        assignment = subscriptions.subscription.assignment
        if assignment is None:
            return []
        self._look_for_lost(consumer, assignment, wanted)
        lists: list[Fetched] = []
        for tp in list(fetcher._records):
            if tp not in wanted:
                continue
            result = fetcher._records[tp]
            if type(result) is not FetchResult:  # an error
                if lists:
                    return lists
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
                self._raise(result._error)
                continue
            if result.has_more() and result._assignment is assignment and result.check_assignment(tp):
                start = result._partition_records.next_fetch_offset
                records = result.getall(limit)
                to = assignment.state_value(tp).position
                if to > start:
                    lists.append(Fetched(TP(*tp), assignment, start, to, records))
            if not result.has_more() or result._assignment is not assignment:
                del fetcher._records[tp]
                fetcher._notify(fetcher._wait_consume_future)
        return lists

    def _look_for_lost(self, consumer: Any, assignment: Any, wanted: Mapping[TP, int]) -> None:
        """A reader that stands beyond what its tracker expects has lost a list on the way: read it again.

        Waiting for the next list to show the gap would hang if the lost one was the log's last.
        """
        for tp, expected in wanted.items():
            state = assignment.state_value(TopicPartition(*tp))
            if state is not None and state.has_valid_position and state.position > expected:
                self.consumer.note_rewind(tp, state.position, expected)  # type: ignore[attr-defined]
                consumer.seek(TopicPartition(*tp), expected)

    async def rewind(self, tp: TP, offset: int, assignment: Any) -> None:
        """Read `tp` again from `offset`, if it is still assigned."""
        if assignment is self.assignment_now() and assignment.active:
            self._ensure_consumer().seek(TopicPartition(*tp), offset)

    async def rejoin(self, assignment: Any, generation: int) -> None:
        """Let the group say anew who has which partitions, unless it does so already."""
        if self.current(assignment, generation):
            self._ensure_consumer()._coordinator.request_rejoin()

    async def bounds(self, tps: Sequence[TP]) -> dict[TP, Bounds]:
        """First and next offset of each log. Blocks for a round trip. Raises KafkaError."""
        consumer = self._ensure_consumer()
        partitions = [TopicPartition(*tp) for tp in tps]
        low = await consumer.beginning_offsets(partitions)
        high = await self._high_watermarks(partitions)
        return {TP(*tp): Bounds(low[tp], high[tp]) for tp in partitions}

    async def _high_watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        """Where the logs end.
        Asked as it is, the fetcher would tell where the oldest open transaction begins.
        """
        fetcher = copy.copy(self._ensure_consumer()._fetcher)
        fetcher._isolation_level = READ_UNCOMMITTED
        ends: dict[TopicPartition, int] = await fetcher.end_offsets(
            list(partitions), int(self.app.conf.broker_request_timeout * 1000)
        )
        return ends

    async def _highwaters(self, partitions: list[TP]) -> Mapping[TP, int]:
        # Recovery reads up to the log's end: behind an open transaction lie records that
        # count, once it has ended.
        ends = await self._high_watermarks(TopicPartition(*tp) for tp in partitions)
        return {TP(*tp): end for tp, end in ends.items()}

    async def start_positions(
        self,
        tps: Sequence[TP],
        assignment: Any,
        resolve: Callable[[str, int | None, Bounds], Start] = resolve_start,
    ) -> tuple[int, dict[TP, Start]] | None:
        """Resolve where to begin and seek there, every partition explicitly: aiokafka's seek_to_committed
        leaves out partitions without a committed offset, and those committed at 0.

        Returns the generation and the starts, or None if the assignment has gone meanwhile.
        Raises OffsetBeyondEnd, KafkaError.
        """
        consumer = self._ensure_consumer()
        coordinator = consumer._coordinator
        generation = coordinator.generation
        commits = await self.commits(tps)
        bounds = await self.bounds(tps)
        starts: dict[TP, Start] = {}
        for tp, commit in commits.items():
            offset, metadata = commit or (None, "")
            start = resolve(f"{tp.topic}/{tp.partition}", offset, bounds[tp])
            starts[tp] = start._replace(noted=note_of(metadata), ends=ends_of(metadata))
        if not self.current(assignment, generation):
            return None
        for tp, start in starts.items():
            consumer.seek(TopicPartition(*tp), start.offset)
        return generation, starts

    async def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        """What the group has committed, None where nothing: see stable_offsets. Raises KafkaError."""
        return await stable_offsets(self._ensure_consumer()._coordinator, tps)

    async def commits(self, tps: Sequence[TP]) -> dict[TP, Commit | None]:
        """The same with what was written beside it: see stable_commits. Raises KafkaError."""
        return await stable_commits(self._ensure_consumer()._coordinator, tps)

    async def commit_finished(
        self,
        assignment: Any,
        generation: int,
        offsets: Mapping[TP, int],
        notes: Mapping[TP, str],
        ends: Mapping[TP, Sequence[int]],
    ) -> bool:
        """Commit exactly `offsets`, and beside each the lane's note, or where the logs that it tells end.
        False if it did not work (they are committed another time) or may not be done.
        """
        waits = WAITS.note()

        def beside(tp: TP) -> str:
            note = notes.get(tp, "")
            return with_note(waits, note) if note else with_ends(waits, ends.get(tp, ()))

        coordinator = self._ensure_consumer()._coordinator
        await coordinator.ensure_coordinator_known()
        async with coordinator._commit_lock:
            if not self.current(assignment, generation):
                return False
            try:
                await coordinator._do_commit_offsets(
                    assignment,
                    {
                        TopicPartition(*tp): OffsetAndMetadata(offset, beside(tp))
                        for tp, offset in offsets.items()
                    },
                )
            except KafkaError as exc:
                log.warning("offsets not committed, to be tried again: %r", exc)
                return False
        return True
