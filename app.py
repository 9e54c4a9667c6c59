"""The whole topology on one page.

    the same partition of all topics = one lane
      ─► decode ─► fold ─► derived topics, orders.decisions, orders.dlq
                   │   └─► Postgres ─► state (changelog, RocksDB) ─► Redis ─► ack
                   └─ one order's facts: domain/

An order's events share a key, so they share a partition number, and one lane per partition number reads all
input topics: in one worker no order is folded by two lanes at once. A worker that has lost its partitions
unawares may still fold, but not write (docs/delivery.md, "The stale worker"). What a lane does with a batch:
streams/pipeline.py. What happens when something dies: docs/delivery.md.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, cast

from contracts.topics import CLOCK, DERIVED, DLQ, LANE
from settings import Settings, get_settings, unknown
from sinks.postgres import PostgresSink
from sinks.redis import RedisSink
from streams import metrics
from streams.bulk import BulkService
from streams.control import Control, held_by
from streams.flood import Flood
from streams.health import HealthWatch
from streams.lanes import lanes
from streams.pipeline import Pipeline, interactive
from streams.remedies import REMEDIES
from streams.reports import name_of, report
from streams.retraction import NOTICE_TOPICS
from streams.tracing import traced, tracer
from streams.transport.agents import Batches
from streams.transport.app import BatchApp
from streams.transport.batch import OpenLane
from streams.watermark import Watermark
from tables.codec import due_of, is_state, version_of

log = logging.getLogger(__name__)


class OrdersApp(BatchApp):
    """The Faust app with its sinks, which are opened before the first batch and closed after the last."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, writes=(*DERIVED, DLQ, CLOCK), remedies=REMEDIES)
        self._all_settings = settings
        self.rows_sink = PostgresSink(settings)
        self.cache_sink = RedisSink(settings)
        self.control = Control(settings, self.hold)
        self.hold_topic: Callable[[str, int], Coroutine[Any, Any, None]] | None = None
        """Pauses a topic of which so many records were refused within a minute. Raises nothing."""
        self.health = HealthWatch(self, self.rows_sink, self.cache_sink, self.control)

    async def on_first_start(self) -> None:
        """Open the sinks. Raises what asyncpg raises if Postgres can't be reached; Redis may be away."""
        await self.rows_sink.start()
        await self.cache_sink.start()
        await super().on_first_start()
        self.add_future(metrics.watch_loop())
        self.add_future(self.control.follow())
        self.add_future(self.health.watch())
        self.add_future(report(self._all_settings, partial(self.health.report, self._all_settings)))

    async def check_lanes(self) -> None:
        """Check that ORDERS_PARTITIONS is the number by which the orders were put into lanes, and learn what
        is paused.

        Raises PartitionMismatch, KafkaError.
        """
        await lanes(self._all_settings)
        await self.control.start()

    def flooded(self, topic: str, count: int) -> None:
        """Pause a topic of which so many records were refused within a minute, unless it is. Never blocks."""
        if self.hold_topic is not None and topic not in held_by(self.control.paused)[1]:
            self.add_future(self.hold_topic(topic, count))

    async def on_shutdown(self) -> None:
        """Close the sinks: by now no lane is open."""
        await super().on_shutdown()
        await self.cache_sink.close()
        await self.rows_sink.close()


def create_app(settings: Settings, *, bulk: bool = False) -> OrdersApp:
    """The pipeline, ready to be started by `orders worker` or `faust -A app worker`. Connects to nothing yet.

    `bulk`: also runs the unpacker of bulk jobs beside it.
    """
    app = OrdersApp(settings)
    state = app.state_table("state", version_of, due_of, is_state)
    pipeline = Pipeline(settings, state, app.rows_sink, app.cache_sink)
    pipeline.flood = Flood(settings.dead_letter_hold, app.flooded)
    watermark = Watermark(state, app.rows_sink)
    app.health.rows_behind = watermark.behind
    links = max(128, settings.batch_records)
    spans = tracer("orders-worker", os.environ, instance=name_of(settings), links=links)
    if bulk:
        # Typed for a class; an instance works, too.
        app.service(cast(Any, BulkService(settings, app.control, spans)))
    handle = traced(pipeline, spans, settings.group)

    async def opened(lane: OpenLane) -> None:
        beside = asyncio.ensure_future(watermark.watch(lane))
        try:
            await pipeline.opened(lane)
        finally:
            beside.cancel()

    lanes_of_orders = app.batches(
        LANE,
        max_records=settings.batch_records,
        due=state,
        clock=CLOCK,
        opened=opened,
        committed=metrics.commit_took,
        awaited=interactive,
        tracked=NOTICE_TOPICS,
    )

    @app.agent(lanes_of_orders)
    async def orders(batches: Batches) -> None:
        async for batch in batches:
            await handle(batch)

    return app


def __getattr__(name: str) -> Any:
    """`app`, for `faust -A app worker`: made when it is asked for, so that importing
    this module makes no client.
    """
    if name == "app":
        for setting, _ in unknown(os.environ):
            log.warning("%s is no setting and is ignored", setting)
        globals()["app"] = application = create_app(get_settings())
        return application
    raise AttributeError(name)
