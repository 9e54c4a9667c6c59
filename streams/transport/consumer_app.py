"""The app as the consumer sees it: BatchApp, and in tests what stands in its place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, Protocol

from faust.types import TP

from streams.transport.config import TransportSettings
from streams.transport.delivery import Delivery
from streams.transport.held import Held
from streams.transport.lane import LaneSpec, Limits
from streams.transport.producer import LaneProducer
from streams.transport.recovery import ListRecovery
from wire.log import Stretch


class ConsumerApp(Protocol):
    """What the consumer needs of BatchApp beyond what Faust's own consumer needs of an app."""

    settings: TransportSettings
    specs: list[LaneSpec]
    specs_by_topic: dict[str, LaneSpec]
    delivery: Delivery
    limits: Limits
    held: Held
    should_stop: bool

    @property
    def copartitioned(self) -> tuple[str, ...]:
        """See BatchApp."""

    @property
    def recovery(self) -> ListRecovery:
        """See BatchApp."""

    def is_ordinary(self, topic: str) -> bool:
        """See BatchApp."""

    def lane_producer(self, lane: str, check: Callable[[], None]) -> LaneProducer:
        """See BatchApp."""

    def stretches(self, tp: TP, since: int, end: int) -> AsyncGenerator[Stretch, None]:
        """See BatchApp."""

    def new_event_loop(self) -> asyncio.AbstractEventLoop:
        """See BatchApp."""

    def add_future(self, coro: Coroutine[Any, Any, Any]) -> object:
        """Run something beside, for as long as the app runs."""
