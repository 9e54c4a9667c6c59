"""BatchApp: a Faust app whose agents get whole batches, with its own offset tracker.
Why: docs/decisions/0002.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, Any, NoReturn, cast

import faust
import rocksdict
from aiokafka.errors import KafkaError
from faust.app.base import BootStrategy
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from errors import OrdersError
from streams.transport.agents import AgentFunction, BatchChannel, BatchStream, PatientSupervisor, actor
from streams.transport.changelog import stretches
from streams.transport.cluster import check_topics, hold_data_folder, inspect_cluster, prepare_data_folder
from streams.transport.config import TransportSettings
from streams.transport.consumer import Consumer
from streams.transport.delivery import Delivery, Outage, describe
from streams.transport.errors import FolderInUse, TooFewPartitions, Unreachable
from streams.transport.held import Held
from streams.transport.lane import LaneLook, LaneSpec, Limits, Opened
from streams.transport.producer import FaustProducer, LaneProducer
from streams.transport.records import Record
from streams.transport.recovery import ListRecovery, ListTableManager
from streams.transport.table import MEMORY, DueOf, IsState, StateTable, VersionOf
from streams.transport.transaction import TransactionalLaneProducer
from wire.log import Stretch
from wire.refused import AccessRefused

log = logging.getLogger(__name__)

FETCH_BYTES = 1 << 20
"""Bytes a fetch takes of one partition; a larger record comes alone."""
REQUEST_TIMEOUT = 40.0


@dataclass(frozen=True, slots=True)
class TransportStats:
    """What the transport has done since the worker started, and where it stands.
    Offsets by (topic, partition).
    """

    batches: int
    records: int
    retries: int
    rewinds: int
    cancelled: int
    recovered: int
    lanes: tuple[str, ...]
    pending_records: dict[str, int]
    pending_bytes: dict[str, int]
    done: dict[tuple[str, int], int]
    committed: dict[tuple[str, int], int | None]
    outages: tuple[Outage, ...]


class BatchTransport(driver.Transport):
    """Faust's Kafka transport with our consumer and producer."""

    Consumer = Consumer
    Producer = FaustProducer


class NoWeb(BootStrategy):
    """`faust worker` switches the web server on, with every table readable on all interfaces. Never here."""

    enable_web = False


class FaustWorker(faust.Worker):
    """What `faust -A app worker` runs."""

    def execute_from_commandline(self) -> NoReturn:
        """Run the app; doesn't return. Refuses a folder that another worker has, in one line."""
        app = cast(BatchApp, self.app)
        try:
            app.claim_folder()
        except FolderInUse as exc:
            print(f"faust: {exc}", file=sys.stderr)
            raise SystemExit(2) from None
        super().execute_from_commandline()


class BatchApp(faust.App):
    """See the module. Made from Settings; may be made at import: it connects to nothing until it is started.

    app = BatchApp(settings, writes=DERIVED)
    table = app.state_table("state", version_of)

    @app.agent(app.batches(INPUT, max_records=settings.batch_records))
    async def orders(batches: Batches) -> None:
        async for batch in batches: ...
    """

    BootStrategy = NoWeb

    def __init__(
        self,
        settings: TransportSettings,
        *,
        writes: Sequence[str] = (),
        compression: str | None = None,
        metadata_age: float = 30.0,
        remedies: Mapping[type[BaseException], str] | None = None,
        **options: Any,
    ) -> None:
        """`writes`: topics that handlers publish to, checked at the start to have as many partitions as the
        lanes' topics. `compression`: of what lanes write: None, 'gzip', 'lz4'. `metadata_age`: seconds until
        a change of the topics is noticed. `remedies`: what to do about an error in the words of the program,
        which are said instead of ours where the worker ends for it. `options`: further settings of faust.App,
        but for how brokers are reached (wire.clients).
        """
        self.settings = settings
        self.remedies = dict(remedies or {})
        self.specs: list[LaneSpec] = []
        self.specs_by_topic: dict[str, LaneSpec] = {}
        self._without_agent: dict[BatchChannel, LaneSpec] = {}
        self.delivery = Delivery(settings)
        self.held = Held()
        self.limits = Limits(settings.pending_records, settings.pending_bytes)
        self._writes = tuple(writes)
        self._compression = compression
        self._block_cache = rocksdict.Cache(MEMORY)
        self._folder: IO[str] | None = None
        session = settings.session_timeout
        defaults: dict[str, Any] = {
            "broker": [f"kafka://{broker}" for broker in settings.brokers],
            "datadir": settings.data / settings.group,
            "store": "rocksdb://",
            "value_serializer": "raw",
            "topic_allow_declare": False,
            "topic_disable_leader": True,
            "topic_partitions": settings.partitions,
            "table_standby_replicas": 0,
            "stream_recovery_delay": 0.0,
            "web_enabled": False,
            "web_bind": "127.0.0.1",
            "worker_redirect_stdouts": False,
            "broker_session_timeout": session,
            "broker_heartbeat_interval": min(settings.heartbeat_interval, session / 3),
            "broker_commit_interval": settings.commit_interval,
            "broker_request_timeout": max(REQUEST_TIMEOUT, session + 5),
            "broker_rebalance_timeout": settings.drain_timeout + 20,
            # A lane that waits for Postgres fetches nothing; that is not idleness to leave the group for.
            "broker_max_poll_interval": settings.retry_limit + settings.stall_timeout + 600,
            "consumer_auto_offset_reset": "earliest",
            "consumer_max_fetch_size": FETCH_BYTES,
            "consumer_metadata_max_age_ms": int(metadata_age * 1000),
            # A request that is answered after the session has ended would be a stale write.
            "producer_request_timeout": session * 2 / 3,
            "producer_compression_type": compression,
            "TableManager": ListTableManager,
            "agent_supervisor": PatientSupervisor,
            "Worker": FaustWorker,
        }
        super().__init__(settings.group, **{**defaults, **options})

    # -- definition ------------------------------------------------------------------------------------------

    def batches(
        self,
        topics: Sequence[str],
        *,
        max_records: int,
        due: StateTable | None = None,
        clock: str | None = None,
        opened: Opened | None = None,
        committed: Callable[[float], None] | None = None,
        awaited: Callable[[Record], bool] | None = None,
        tracked: Sequence[str] = (),
    ) -> BatchChannel:
        """A channel of batches of `topics`, all of one partition number, at most `max_records`
        together: for one agent. Pure.

        With `due` also when states of that table are due: then a batch has a `moment` and no records, once
        everything that the brokers appended before it has been handled. `clock` is then the topic to which
        empty records are written to learn the brokers' time.

        Partition numbers run side by side, each with one batch at a time. `opened` is called when a lane
        opens and runs beside it. `committed` is told how many seconds each commit of a transaction took.
        `awaited` tells of a record whether somebody waits for it: how long these waited is noted with the
        offsets (see waits). `tracked` names topics that are published to: see LaneSpec.
        Raises ValueError for topics that have a channel already.
        """
        if (due is None) != (clock is None):
            raise ValueError("due and clock go together")
        taken = [topic for topic in topics if topic in self.specs_by_topic]
        if taken:
            raise ValueError(f"read by two lanes: {', '.join(taken)}")
        channel = BatchChannel(self)
        spec = LaneSpec(
            tuple(topics), channel.handle, max_records, due, clock, opened, committed, awaited, tuple(tracked)
        )
        self.specs.append(spec)
        self.specs_by_topic.update(dict.fromkeys(spec.topics, spec))
        self._without_agent[channel] = spec
        return channel

    def agent(self, channel: Any = None, **options: Any) -> Callable[[AgentFunction], Any]:
        """Decorator: as Faust's for topics. For a channel of batches the agent has as many actors as there
        are lanes, and a batch is done when its actor asks for the next one; what the agent raises goes to the
        delivery policy, which brings the same batch again or ends the worker. Raises ValueError for the
        second agent of such a channel.
        """
        if not isinstance(channel, BatchChannel):
            return cast("Callable[[AgentFunction], Any]", super().agent(channel, **options))
        if self._without_agent.pop(channel, None) is None:
            raise ValueError("a channel of batches has one agent")
        register = super().agent(channel, concurrency=self.settings.partitions, **options)
        return lambda function: register(actor(function))

    def stream(self, channel: Any, beacon: Any = None, **options: Any) -> Any:
        """As Faust's; of batches a BatchStream."""
        if not isinstance(channel, BatchChannel):
            return super().stream(channel, beacon, **options)
        return BatchStream(channel, app=self, beacon=beacon or self.beacon, **options)

    def is_ordinary(self, topic: str) -> bool:
        """Whether a subscribed topic is read by ordinary agents, not by lanes or recovery. Pure."""
        return topic not in self.specs_by_topic and topic not in self.tables.changelog_topics

    def state_table(
        self,
        name: str,
        version_of: VersionOf,
        due_of: DueOf | None = None,
        is_state: IsState = lambda key, value: True,
    ) -> StateTable:
        """A table from bytes (table.KEY_BYTES at most) to bytes, its changelog in the topic
        '{group}-{name}-changelog'.

        `version_of` reads a state's version: recovery keeps a key's highest. `due_of` reads when a state
        is due: see lane(). `is_state` tells a state from what somebody else wrote to the changelog:
        recovery leaves that out.
        """
        table = StateTable(
            self,
            name=name,
            beacon=self.tables.beacon,
            partitions=self.settings.partitions,
            version_of=version_of,
            due_of=due_of,
            is_state=is_state,
            cache=self._block_cache,
        )
        self.tables.add(table)
        return table

    # -- state -----------------------------------------------------------------------------------------------

    @property
    def copartitioned(self) -> tuple[str, ...]:
        """Topics that must have the same number of partitions: all that lanes read and
        write, and the changelogs.
        """
        return (*self.specs_by_topic, *sorted(self.tables.changelog_topics), *self._writes)

    @property
    def recovery(self) -> ListRecovery:
        """The tables' recovery."""
        return cast(ListTableManager, self.tables).recovery

    @property
    def ready(self) -> bool:
        """True while all lanes that are ours are open: assigned, recovered, delivering. There may be none."""
        return self._consumer is not None and cast(Consumer, self._consumer).standing

    def hold(self, partitions: Collection[int], topics: Collection[str]) -> None:
        """Leave these partition numbers, and these topics of the lanes, alone until the next call: nothing of
        them is fetched or handled any more, but a batch that a lane has begun. Topics of ordinary agents
        aren't held back. Never blocks; to be called in the main thread.
        """
        self.held.partitions, self.held.topics = frozenset(partitions), frozenset(topics)
        consumer = cast("Consumer | None", self._consumer)
        if consumer is not None:
            consumer.held_changed()

    def look(self) -> list[LaneLook]:
        """How the open lanes do. Never blocks; to be called in the main thread."""
        consumer = cast("Consumer | None", self._consumer)
        return [] if consumer is None else consumer.look(time.monotonic())

    def standing_still(self, limit: float) -> list[LaneLook]:
        """Open lanes whose batch hasn't got on for more than `limit` seconds though they wait for no server.
        Never blocks; to be called in the main thread.
        """
        consumer = cast("Consumer | None", self._consumer)
        return [] if consumer is None else consumer.standing_still(time.monotonic(), limit)

    def kafka_away(self) -> float:
        """Seconds since the brokers last answered a heartbeat, once that is too long to write; otherwise 0.
        Before the first one 0, too.
        """
        consumer = cast("Consumer | None", self._consumer)
        return 0.0 if consumer is None else consumer.away()

    def stats(self) -> TransportStats:
        """A snapshot for metrics. Never blocks; to be called in the main thread."""
        consumer = cast("Consumer | None", self._consumer)
        lanes = list(consumer.lanes.values()) if consumer is not None else []
        trackers = (
            {(tp.topic, tp.partition): tracker for tp, (_, tracker) in consumer.trackers.items()}
            if consumer is not None
            else {}
        )
        return TransportStats(
            batches=sum(lane.progress.batches for lane in lanes)
            + (consumer.finished_batches if consumer is not None else 0),
            records=sum(lane.progress.records for lane in lanes)
            + (consumer.finished_records if consumer is not None else 0),
            retries=self.delivery.retries,
            rewinds=consumer.rewinds if consumer is not None else 0,
            cancelled=consumer.cancelled if consumer is not None else 0,
            recovered=self.recovery.recovered if self.tables else 0,
            lanes=tuple(lane.name for lane in lanes),
            pending_records={lane.name: lane.intake.pending_records for lane in lanes},
            pending_bytes={lane.name: lane.intake.pending_bytes for lane in lanes},
            done={tp: tracker.done for tp, tracker in trackers.items()},
            committed={tp: tracker.committed for tp, tracker in trackers.items()},
            outages=tuple(self.delivery.outages.values()),
        )

    # -- what Faust calls ------------------------------------------------------------------------------------

    def _new_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_consumer, self)

    def _new_producer_transport(self) -> BatchTransport:
        return BatchTransport(self.conf.broker_producer, self)

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """A loop for the consumer's thread, of the kind that the app itself runs in."""
        return (
            type(self.loop)() if type(self.loop).__module__.startswith("uvloop") else asyncio.new_event_loop()
        )

    def lane_producer(self, lane: str, check: Callable[[], None]) -> LaneProducer:
        """What the lane of this name writes with. `check` raises Stale or LeaseLost.
        Connects to nothing yet.
        """
        producer, settings = cast(FaustProducer, self.producer), self.settings
        options = producer.lane_options(
            f"{self.conf.id}-lane-{lane}", settings.producer_linger_ms, self._compression
        )
        waiting, report_interval = (
            partial(self.delivery.failed, lane),
            float(self.conf.producer_request_timeout),
        )
        if settings.delivery == "at_least_once":
            return LaneProducer(lambda: options, check, waiting, report_interval)
        # The same for whoever has the lane, so that the broker lets only the latest one write.
        options |= {
            "transactional_id": f"{self.conf.id}-{lane}",
            "transaction_timeout_ms": int(settings.transaction_timeout * 1000),
        }
        return TransactionalLaneProducer(
            lambda: options,
            check,
            waiting,
            report_interval,
            group=self.conf.id,
            committed=cast(Consumer, self.consumer).committed,
        )

    def stretches(self, tp: TP, since: int, end: int) -> AsyncGenerator[Stretch, None]:
        """Of a changelog: see changelog.stretches."""
        return stretches(cast(FaustProducer, self.producer).connection_options(), tp, since, end)

    def claim_folder(self) -> None:
        """Take the data folder for as long as this process lives. Again is harmless.
        Raises FolderInUse, OSError.
        """
        if self._folder is None:
            try:
                self._folder = hold_data_folder(self.conf.datadir)
            except FolderInUse as failure:
                # The one failure of a worker that its caller explains: with the program's words on it.
                failure.remedy = self.remedies.get(FolderInUse, failure.remedy)
                raise

    async def on_first_start(self) -> None:
        """Check the topics and the data folder before anything is read. Raises FailStop, OSError."""
        for spec in self._without_agent.values():
            raise RuntimeError(f"no agent reads the batches of {', '.join(spec.topics)}")
        self.claim_folder()
        producer = cast(FaustProducer, self.producer)
        try:
            cluster = await inspect_cluster(producer.connection_options(), self.copartitioned)
        except AccessRefused:
            raise
        except (KafkaError, OSError) as exc:
            raise Unreachable(
                f"no Kafka broker answers at {','.join(self.settings.brokers)}: {describe(exc)}"
            ) from exc
        count = check_topics(self.copartitioned, cluster.partitions)
        if count < self.settings.partitions:
            raise TooFewPartitions(
                f"the topics have {count} partitions, the setting is {self.settings.partitions}"
            )
        await self.check_lanes()
        prepare_data_folder(self.conf.datadir, cluster.id)
        await super().on_first_start()

    async def crash(self, reason: BaseException) -> None:
        """End the worker for this reason. Each lane may call it with the same one, which the log has once."""
        if not (self._crashed.is_set() and isinstance(reason, OrdersError)):
            await super().crash(reason)

    def explain(self, failure: BaseException) -> str:
        """A failure's message and what to do about it, in the program's words where it has some. Pure."""
        if not isinstance(failure, OrdersError):
            return str(failure)
        words = next(
            (text for kind in type(failure).__mro__ if (text := self.remedies.get(kind)) is not None),
            failure.remedy,
        )
        return f"{failure.message}; {words}"

    async def check_lanes(self) -> None:
        """For apps: what else of the lanes must hold before anything is read. Raises FailStop, KafkaError."""

    async def on_start(self) -> None:
        """Subscribe to the lanes' topics."""
        await super().on_start()
        for name in self.specs_by_topic:
            self.topics.add(self.topic(name, key_type=bytes, value_type=bytes))

    async def _stop_consumer(self) -> None:
        if self._consumer is not None:
            await cast(Consumer, self._consumer).close_lanes("worker stops")
        await super()._stop_consumer()
