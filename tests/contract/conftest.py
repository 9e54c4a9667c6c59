"""The sinks as fixtures, on the stack's servers and on fake ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from settings import Settings
from sinks.migrate import upgrade
from tests.contract.places import PLACES, Place, PostgresPlace, RedisPlace, drop_database, new_database
from tests.stackfixture import Servers


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def migrated(stack: Servers) -> AsyncIterator[Settings]:
    settings = await new_database(stack)
    await upgrade(settings)
    yield settings
    await drop_database(stack, settings)


async def _opened(place: Place) -> AsyncIterator[Any]:
    await place.open()
    yield place
    await place.close()


@pytest_asyncio.fixture(params=list(PLACES), loop_scope="module")
async def place(request: pytest.FixtureRequest, migrated: Settings) -> AsyncIterator[Place]:
    """Each of the sinks, started, its place empty."""
    async for opened in _opened(PLACES[request.param](migrated)):
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def postgres(migrated: Settings) -> AsyncIterator[PostgresPlace]:
    async for opened in _opened(PostgresPlace(migrated)):
        yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def cache(migrated: Settings) -> AsyncIterator[RedisPlace]:
    async for opened in _opened(RedisPlace(migrated)):
        yield opened
