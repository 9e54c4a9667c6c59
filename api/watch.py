"""How `orders api` and `orders console` do: what their probes answer, and their metrics of servers.

/live: 200 while the event loop turns. /ready: 200 while a database answers whose schema this version can
read; Redis and the replica may be away, which the answer tells.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg
from sqlalchemy.exc import SQLAlchemyError

from errors import OrdersError
from queries.documents import Health as SourcesHealth
from settings import Settings
from sinks import migrate
from streams import metrics
from streams.probes import Health, Probes

if TYPE_CHECKING:
    from fastapi import FastAPI

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 2.0
END_SECONDS: Final = 5.0
"""Seconds that a look has to end when the service does."""
SCHEMA_SECONDS: Final = 30.0
"""Seconds between two looks at the schema."""
NAMES: Final = {"cache": "redis", "primary": "postgres", "replica": "replica"}
"""What a source is called in metrics and answers."""


class ServiceWatch:
    """Looks at the servers of one process. Everything is called in its event loop."""

    def __init__(
        self, settings: Settings, health: Callable[[], Awaitable[SourcesHealth]], service: str
    ) -> None:
        self._settings = settings
        self._health = health
        self._service = service
        self._since: dict[str, float] = {}
        """Server -> when it was first found away, monotonic seconds."""
        self._rows = False
        """Whether a database answers."""
        self._schema: str | None = None
        """What is wrong with it, as far as is known."""
        self._looked_at_schema = float("-inf")
        self._looking: asyncio.Task[None] | None = None

    def look(self) -> Health:
        """For the probes. Never blocks."""
        now = time.monotonic()
        away = [f"{server} hasn't answered for {now - since:.0f} s" for server, since in self._since.items()]
        wrong = [] if self._schema is None else [self._schema]
        if self._rows and not wrong:
            return Health(tells="; ".join(away) or None)
        return Health(waits="; ".join(away + wrong) or "the servers haven't been looked at yet")

    async def watch(self) -> None:
        """Keep looking, until cancelled."""
        while True:
            await self._look()
            metrics.HTTP_READY.labels(self._service).set(0.0 if self.look().waits else 1.0)
            await asyncio.sleep(LOOK_SECONDS)

    async def _look(self) -> None:
        health = await self._health()
        now = time.monotonic()
        for source, seen in health.sources.items():
            server = NAMES[source]
            if seen.up:
                self._since.pop(server, None)
            else:
                self._since.setdefault(server, now)
            metrics.SERVER_AWAY.labels(server).set(now - self._since.get(server, now))
        late = now - self._looked_at_schema > SCHEMA_SECONDS or self._schema is not None
        if late and health.sources["primary"].up:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.ensure_future(self._look_at_schema())
                self._looked_at_schema = now
            # A server that falls silent in the middle of it is noticed by the next look, not waited for.
            await asyncio.wait({self._looking}, timeout=LOOK_SECONDS)
        self._rows = health.status != "down"

    async def _look_at_schema(self) -> None:
        try:
            async with asyncio.timeout(SCHEMA_SECONDS):
                await migrate.fits(self._settings)
        except OrdersError as error:
            if self._schema != error.message:
                log.error("not ready: %s", error)
            self._schema = error.message
        except (asyncpg.PostgresError, asyncpg.InterfaceError, SQLAlchemyError, OSError) as error:
            # What it was before counts on: who is away says nothing about its tables.
            log.debug("the schema can't be looked at: %r", error)
        else:
            self._schema = None


def watched(application: FastAPI, probes: Probes | None, settings: Settings, service: str) -> None:
    """Have an application look at its servers while it is served, and answer probes by that. Not if there are
    none. Its state has `health`.
    """
    if probes is None:
        return
    inner = application.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            watch = ServiceWatch(settings, app.state.health, service)
            tasks = [asyncio.ensure_future(watch.watch()), asyncio.ensure_future(metrics.watch_loop())]
            probes.watch(asyncio.get_running_loop(), watch.look)
            try:
                yield
            finally:
                tasks += [] if watch._looking is None else [watch._looking]
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks, timeout=END_SECONDS)

    application.router.lifespan_context = lifespan
