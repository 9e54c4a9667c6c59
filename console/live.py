"""How everything does, read once for all who look at it."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, suppress
from typing import Final, NamedTuple

from aiokafka.errors import KafkaError

from console.texts import text
from errors import OrdersError
from operations.answers import refused
from operations.flow import FlowReader, Point
from operations.status import Status, StatusReader
from settings import Settings

GOOD_SECONDS: Final = 0.7
"""How long one look is shown. With the page's own interval of a second nothing is older than two."""
LOOK_SECONDS: Final = 8.0
"""Seconds for a look; Postgres and Redis have three each of them."""


class Glance(NamedTuple):
    """`status` as it was at `status.at`; None: never seen. `lost`: why nothing newer is known.
    `flow`: None while it is being read.
    """

    status: Status | None
    flow: list[Point] | None
    lost: str | None


class Live:
    """One reader for every page. What it holds is never older than a look, so it may be lost at any time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._turn = asyncio.Lock()
        self._stack = AsyncExitStack()
        self._reader: StatusReader | None = None
        self._looked = 0.0
        self._glance = Glance(None, None, None)
        self._flow: list[Point] | None = None
        self._flow_task: asyncio.Task[None] | None = None

    async def glance(self) -> Glance:
        """How everything does, GOOD_SECONDS old at most. Never raises for a server's sake. Blocks for a look:
        round trips, and while servers are away LOOK_SECONDS at most.
        """
        async with self._turn:
            if time.monotonic() >= self._looked + GOOD_SECONDS:
                self._glance = await self._look()
                self._looked = time.monotonic()
            return self._glance._replace(flow=self._flow)

    async def close(self) -> None:
        """Close all connections."""
        if self._flow_task is not None:
            self._flow_task.cancel()
            with suppress(asyncio.CancelledError):
                await self._flow_task
        await self._stack.aclose()

    async def _look(self) -> Glance:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                if self._reader is None:
                    self._reader = await self._stack.enter_async_context(StatusReader(self._settings))
                status = await self._reader.look()
        except (KafkaError, OSError, TimeoutError, OrdersError) as error:
            # Its connections may be half open.
            await self._drop()
            return Glance(self._glance.status, None, _why(error))
        if self._flow_task is None or self._flow_task.done():
            self._flow_task = asyncio.create_task(self._read_flow())
        return Glance(status, None, None)

    async def _drop(self) -> None:
        self._reader = None
        stack, self._stack = self._stack, AsyncExitStack()
        with suppress(KafkaError, OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                await stack.aclose()

    async def _read_flow(self) -> None:
        """Read the flow as long as it is looked at."""
        with suppress(KafkaError, OSError):
            async with FlowReader(self._settings) as reader:
                while time.monotonic() < self._looked + 60.0:
                    self._flow = await reader.look()
                    await asyncio.sleep(5.0)


def _why(error: BaseException) -> str:
    if isinstance(error, OrdersError):
        return str(error)
    how = refused(error)
    if how is not None:
        return text("server_refuses", server="Kafka", how=how)
    return text("kafka_away", why=type(error).__name__)
