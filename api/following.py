"""An application that follows its log level while it is served (orders log-level)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from api.watch import END_SECONDS
from settings import Settings
from streams.level_follower import follow_level

if TYPE_CHECKING:
    from fastapi import FastAPI


def followed(application: FastAPI, settings: Settings, service: str) -> None:
    """Have an application follow the level of `service`, which is called so on every host. It serves with and
    without Kafka.
    """
    inner = application.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with inner(app):
            following = asyncio.ensure_future(follow_level(settings, f"{service}@{socket.gethostname()}"))
            try:
                yield
            finally:
                following.cancel()
                await asyncio.wait({following}, timeout=END_SECONDS)

    application.router.lifespan_context = lifespan
