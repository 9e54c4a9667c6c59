"""A worker: the pipeline as `orders worker` runs it, on fake servers.
Everything between the ports is the real code.

Faust's part (which of our methods it calls when, during a rebalance) is played by `App`, `Recovery` and
`Listener`, after Faust's own sequence of steps.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, Protocol
from unittest import mock

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.errors import RequestTimedOutError
from aiokafka.structs import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from contracts.topics import CLOCK, DERIVED, DLQ
from settings import Settings
from sinks.redis import RedisSink
from streams import cache as cache_module
from streams.pipeline import Pipeline
from streams.retraction import NOTICE_TOPICS
from streams.transport import consumer as consumer_module
from streams.transport import consumer_thread, lane, producer
from streams.transport.batch import LaneBatch
from streams.transport.consumer import Consumer
from streams.transport.consumer_thread import ConsumerThread, Fetched
from streams.transport.delivery import Delivery, GaveUp
from streams.transport.errors import FailStop
from streams.transport.held import Held
from streams.transport.lane import LaneSpec, Limits
from streams.transport.lease import Lease
from streams.transport.offsets import Commit
from streams.transport.producer import Gate, LaneProducer
from streams.transport.records import Record
from tables.codec import due_of, is_state, version_of
from tests.simulation.clients import BROKER, FakeConnection, FakeConsumer, Leaving
from tests.simulation.kafka import Broker, Group, Sent
from tests.simulation.loop import OWNER, Process, VirtualLoop
from tests.simulation.network import Network, Trace
from tests.simulation.stores import FakePostgres, FakeRedis, FakeStore, Files, Keys, Tables
from wire.log import Stretch


class Servers(Protocol):
    """What a worker is connected to, and the world's rules."""

    loop: VirtualLoop
    network: Network
    broker: Broker
    group: Group
    tables: Tables
    keys: Keys
    settings: Settings
    trace: Trace
    lane_topics: tuple[str, ...]
    batch_limit: int
    fetch_limit: int
    held_bytes: int
    lost_lists: float
    """How likely it is that a fetched list is lost."""

    def recovering(self, partition: int, generation: int) -> None:
        """A worker knows up to where it reads the changelog before it opens its lane: what lands from
        now on is none of its state.
        """

    def opened(self, worker: Worker) -> None:
        """The worker's lanes are open."""

    def landed(self, worker: Worker, leaving: Leaving, tp: Any, offset: int, records: Sequence[Sent]) -> None:
        """A produce request of the worker was appended."""

    def ended(self, worker: Worker, failure: BaseException | None) -> None:
        """The worker's process has ended by itself."""

    def wall_clock(self) -> float:
        """Seconds since 1970 as the machines' clocks have it, which may jump."""


# -- Faust's classes, without Faust --------------------------------------------------------------------------


class _BareConsumer(driver.Consumer):
    """Stands where Faust's consumer stands, below ours: does what ours relies on."""

    def __init__(self, app: App) -> None:
        self.app: Any = app
        self.simulated = app
        self.flow_active = True
        self._stopped = asyncio.Event()  # type: ignore[assignment]
        self._thread = self._new_consumer_thread()

    def resume_flow(self) -> None:
        self.flow_active = True

    def stop_flow(self) -> None:
        self.flow_active = False

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        for tp, offset in partitions.items():
            self.simulated.client.seek(TopicPartition(*tp), offset)
        await asyncio.sleep(0)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        await self.simulated.revoked()

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        await self.simulated.assigned()


class _BareThread(driver.AIOKafkaConsumerThread):
    """Stands where Faust's consumer thread stands."""

    def __init__(self, consumer: Any, app: App) -> None:
        self.consumer: Any = consumer
        self.app: Any = app


class SimulatedThread(ConsumerThread, _BareThread):
    """The real ConsumerThread on a fake AIOKafkaConsumer, in the one event loop that there is."""

    def __init__(self, consumer: Any, app: App, client: FakeConsumer) -> None:
        super().__init__(consumer, app)
        self.lease = Lease(app.settings.session_timeout)
        self._kicked = asyncio.Event()
        self._consumer = client
        self._watch_heartbeats(client._coordinator)

    def _ensure_consumer(self) -> Any:
        return self._consumer

    async def fetch(
        self, wanted: Mapping[TP, int], timeout: float, limit: int, *, kickable: bool = True
    ) -> list[Fetched]:
        """As it is, but a list may be lost on its way, as a fetch that a rebalance cancels loses it."""
        lists = await super().fetch(wanted, timeout, limit, kickable=kickable)
        lost = self.consumer.simulated.servers.lost_lists
        if not lost:
            return lists
        rng = self.consumer.simulated.servers.network.rng
        return [each for each in lists if rng.random() >= lost]

    async def in_thread(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return await coroutine

    def kick(self) -> None:
        self._kicked.set()

    # Without aiokafka's own requests: there are no transactions here.

    async def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        return {tp: None if each is None else each.offset for tp, each in (await self.commits(tps)).items()}

    async def commits(self, tps: Sequence[TP]) -> dict[TP, Commit | None]:
        fetched = await self._ensure_consumer()._coordinator.fetch_committed_offsets(
            [TopicPartition(*tp) for tp in tps]
        )
        known = {
            TP(*tp): Commit(each.offset, each.metadata) for tp, each in fetched.items() if each.offset >= 0
        }
        return {tp: known.get(tp) for tp in tps}

    async def _high_watermarks(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, int]:
        ends: dict[TopicPartition, int] = await self._ensure_consumer().end_offsets(list(partitions))
        return ends


class SimulatedConsumer(Consumer, _BareConsumer):
    """The real Consumer."""

    def _new_consumer_thread(self) -> SimulatedThread:
        return SimulatedThread(self, self.simulated, self.simulated.client)


class Recovery:
    """Faust's recovery of the table: what is between the local store and the changelog's end of the moment is
    read, then the lanes open.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._position: dict[TP, int] = {}
        self._highwater: dict[TP, int] = {}
        self._done = asyncio.Event()
        self.progress_at = 0.0

    def position(self, tp: TP) -> int:
        """As ListRecovery's."""
        return self._position[tp]

    def apply(self, tp: TP, records: Sequence[Record], to: int) -> None:
        """As ListRecovery's."""
        if tp not in self._position:
            return
        self._app.store.recover(tp.partition, records, to)
        self._position[tp] = to
        if all(self._position[each] >= self._highwater[each] for each in self._highwater):
            self._done.set()

    async def run(self) -> None:
        """One recovery, from the assignment to open lanes. Cancelled by the next one."""
        app = self._app
        assignment = app.consumer._thread.assignment_now()
        changelog = app.settings.changelog_topic
        tps = sorted(TP(*tp) for tp in assignment.tps if tp.topic == changelog)
        client = app.client
        generation = client._coordinator.generation
        ends = await client.end_offsets(tps)
        for tp in tps:
            app.servers.recovering(tp.partition, generation)
        starts = await client.beginning_offsets(tps)
        self._done.clear()
        self._highwater = {tp: ends[tp] for tp in tps}
        persisted = {tp: app.store.persisted(tp.partition) for tp in tps}
        self._position = {
            tp: max(-1 if (kept := persisted[tp]) is None else kept, starts[tp] - 1) + 1 for tp in tps
        }
        if tps:
            await app.consumer.seek_wait(self._position)
            if any(self._position[tp] < self._highwater[tp] for tp in tps):
                app.consumer.resume_flow()
                await self._done.wait()
        await app.consumer.perform_seek()
        app.consumer.resume_flow()
        if app.consumer.lanes:
            app.servers.opened(app.worker)


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Faust's: from aiokafka's coordinator to our consumer."""

    def __init__(self, consumer: SimulatedConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Any) -> None:
        await self._consumer.on_partitions_revoked({TP(*tp) for tp in revoked})

    async def on_partitions_assigned(self, assigned: Any) -> None:
        generation = self._consumer.simulated.client._coordinator.generation
        await self._consumer.on_partitions_assigned({TP(*tp) for tp in assigned}, generation)


class App:
    """What our consumer asks of BatchApp."""

    in_recovery = False

    def __init__(self, worker: Worker, servers: Servers, files: Files) -> None:
        self.worker = worker
        self.servers = servers
        self.settings = settings = servers.settings
        self.conf = SimpleNamespace(broker_session_timeout=settings.session_timeout)
        self.delivery = Delivery(settings, servers.loop.time)
        self.limits = Limits(settings.pending_records, settings.pending_bytes)
        self.held = Held()
        self.should_stop = False
        self.store = FakeStore(files, servers.network, version_of, due_of)
        self.table = SimpleNamespace(
            store=self.store,
            changelog_topic_name=settings.changelog_topic,
            version_of=version_of,
            is_state=is_state,
        )
        self.rows = FakePostgres(servers.network, servers.tables)
        self.cache = RedisSink(settings, client=FakeRedis(servers.network, servers.keys))
        self.pipeline = Pipeline(settings, self.table, self.rows, self.cache)
        self.pipeline.folder.held_bytes = servers.held_bytes
        self.specs = [
            LaneSpec(
                servers.lane_topics,
                self._handle,
                settings.batch_records,
                self.table,  # type: ignore[arg-type]
                CLOCK,
                self.pipeline.opened,
                tracked=NOTICE_TOPICS,
            )
        ]
        self.specs_by_topic = dict.fromkeys(servers.lane_topics, self.specs[0])
        self.copartitioned = (*servers.lane_topics, settings.changelog_topic, *DERIVED, DLQ, CLOCK)
        self.recovery = Recovery(self)
        self.client = FakeConsumer(
            servers.network, servers.broker, servers.group, settings.heartbeat_interval, servers.fetch_limit
        )
        self.consumer = SimulatedConsumer(self)
        self._recovering: asyncio.Task[None] | None = None

    async def stretches(self, tp: TP, since: int, end: int) -> AsyncGenerator[Stretch, None]:
        """As BatchApp's."""
        network, log = self.servers.network, self.servers.broker.logs[TopicPartition(*tp)]
        position = since
        while position < end:
            read = partial(log.read, position, 2)
            records, position = await network.request(BROKER, "read", read, RequestTimedOutError)
            yield Stretch([record for record in records if record.offset < end], min(position, end))

    async def _handle(self, batch: LaneBatch) -> None:
        self.servers.trace(self.worker.process, f"takes {batch!r}")
        await self.pipeline.handle(batch)

    def lane_producer(self, name: str, check: Callable[[], None]) -> LaneProducer:
        """As BatchApp's, with a fake connection."""
        servers, worker, settings = self.servers, self.worker, self.settings
        generation = self.client._coordinator.generation

        def connect(options: Mapping[str, Any], gate: Gate) -> FakeConnection:
            return FakeConnection(
                servers.network,
                servers.broker,
                gate,
                timeout=settings.session_timeout * 2 / 3,
                most=servers.batch_limit,
                stamp=lambda: generation,
                landed=lambda leaving, tp, offset, records: servers.landed(
                    worker, leaving, tp, offset, records
                ),
                milliseconds=lambda: int(servers.wall_clock() * 1000),
            )

        waiting = lambda why: self.delivery.failed(name, why)  # noqa: E731
        producer = LaneProducer(dict, check, waiting, settings.session_timeout * 2 / 3, connect)
        producer.window_bytes = servers.held_bytes
        return producer

    def is_ordinary(self, topic: str) -> bool:
        """As BatchApp's."""
        return topic not in self.copartitioned

    async def revoked(self) -> None:
        """Faust's part of a revocation."""
        self.consumer.stop_flow()

    async def assigned(self) -> None:
        """Faust's part of an assignment: a new recovery replaces the one that may be under way."""
        if self._recovering is not None and not self._recovering.done():
            self._recovering.cancel()
        self._recovering = asyncio.ensure_future(self.recovery.run())
        self._recovering.add_done_callback(self._recovered)

    def _recovered(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self.add_future(self.crash(exc))

    async def crash(self, exc: BaseException) -> None:
        """The worker has to end, unacknowledged."""
        self.worker.fail(exc)

    def add_future(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something on the side."""
        self.servers.loop.create_task(coroutine)  # which keeps it


class Worker:
    """One process and what it has on its disk."""

    def __init__(self, name: str, number: int, servers: Servers, files: Files) -> None:
        self.name = name
        self.number = number
        self.process = Process(f"{name}.{number}")
        self.files = files
        self.servers = servers
        self.app: App | None = None
        self.failure: BaseException | None = None
        self.stopping = False

    def start(self) -> None:
        """Begin, as a process of its own."""
        self._spawn(self._run())

    def stop(self) -> None:
        """SIGTERM."""
        self._spawn(self._stop())

    def rejoin(self) -> None:
        """Ask for a rebalance, as a change of metadata does."""
        app = self.app
        if app is not None:
            self._spawn(self._rejoin(app))

    def fail(self, exc: BaseException) -> None:
        """It can't go on: it ends as SIGTERM ends it, but says why."""
        self.failure = self.failure or exc
        self._spawn(self._stop())

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        token = OWNER.set(self.process)
        try:
            self.servers.loop.create_task(coroutine)  # which keeps it
        finally:
            OWNER.reset(token)

    async def _rejoin(self, app: App) -> None:
        app.client._coordinator.request_rejoin()

    async def _run(self) -> None:
        self.app = app = App(self, self.servers, self.files)
        consumer, client = app.consumer, app.client
        client._subscription.subscribe(
            {*app.specs_by_topic, app.settings.changelog_topic}, Listener(consumer)
        )
        for coroutine in (
            client._coordinator.run(),
            consumer._drain_messages(consumer),
            self._commit(app),
            self._watch(app),
        ):
            asyncio.ensure_future(coroutine).add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None and not self.stopping:
            self.fail(exc)

    async def _commit(self, app: App) -> None:
        while not app.should_stop:
            await asyncio.sleep(app.settings.commit_interval)
            await app.consumer.force_commit()

    async def _watch(self, app: App) -> None:
        while not app.should_stop:
            await asyncio.sleep(10 * consumer_module.WATCH_INTERVAL)
            app.consumer._check_partitions()
            app.consumer._check_progress(asyncio.get_running_loop().time())

    async def _stop(self) -> None:
        if self.stopping:
            return
        self.stopping = True
        app = self.app
        if app is not None:
            await app.consumer.close_lanes("worker stops")
            app.should_stop = True
            client = app.client
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(client._coordinator.close(), consumer_thread.STOP_TIMEOUT)
            await app.cache.close()
        self.servers.ended(self, self.failure)

    def expected(self) -> bool:
        """Whether it ended for a reason that is no bug."""
        return self.failure is None or isinstance(self.failure, (FailStop, GaveUp))

    def forget(self) -> None:
        """The process is gone."""
        if self.app is not None:
            self.app.client.forget()


class _Quiet:
    """A logger that says nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return _say_nothing


def _say_nothing(*args: object, **fields: object) -> None:
    return None


@contextlib.contextmanager
def simulated(clock: Callable[[], float], wall_clock: Callable[[], float]) -> Iterator[None]:
    """The real modules look at these clocks, and log nothing.
    Waits that only bound how long an idle fetch sleeps are longer.
    """
    time = SimpleNamespace(monotonic=clock, time=wall_clock, perf_counter=clock)
    quiet = _Quiet()
    replaced: list[tuple[Any, str, Any]] = [
        (cache_module, "time", time),
        (lane, "time", time),
        (producer, "time", time),
        (consumer_module, "time", time),
        (consumer_thread, "clock", clock),
        (consumer_thread, "LOOK_INTERVAL", 2.0),
        (consumer_module, "FETCH_TIMEOUT", 4.0),
    ]
    with contextlib.ExitStack() as stack:
        for module, name, value in replaced:
            stack.enter_context(mock.patch.object(module, name, value))
        for module in ("transport.delivery", "cache", "transport.consumer", "transport.consumer_thread"):
            stack.enter_context(mock.patch(f"streams.{module}.log", quiet))
        stack.enter_context(mock.patch("sinks.redis.log", quiet))
        yield
