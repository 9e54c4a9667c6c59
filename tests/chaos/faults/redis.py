"""The cache dies, forgets, is full, is read-only. It delays nothing and loses nothing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

from tests.chaos.faults.base import fault
from tests.chaos.world import World

AWAY = "redis.away"


@fault("redis-kill", "redis", (1.0, 8.0), what="kill -9 of Redis; it comes back empty", sees=AWAY)
async def redis_kill(world: World, random: Random) -> AsyncIterator[str]:
    await world.kill("redis")
    yield "redis"
    await world.revive("redis")


@fault("redis-flushall", "redis", (0.1, 0.5), what="FLUSHALL")
async def redis_flushall(world: World, random: Random) -> AsyncIterator[str]:
    async with world.redis() as client:
        await client.flushall()
    yield "redis"


@fault(
    "redis-full",
    "redis",
    (3.0, 8.0),
    what="Redis at maxmemory with noeviction: every write is refused",
    sees=AWAY,
)
async def redis_full(world: World, random: Random) -> AsyncIterator[str]:
    async with world.redis() as client:
        before = await client.config_get("maxmemory*")
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
    yield "redis"
    async with world.redis() as client:
        for name in ("maxmemory", "maxmemory-policy"):
            await client.config_set(name, str(before[name]))


@fault(
    "redis-read-only",
    "redis",
    (3.0, 8.0),
    what="Redis is the replica of a primary that doesn't exist: it is read-only",
    sees=AWAY,
)
async def redis_read_only(world: World, random: Random) -> AsyncIterator[str]:
    async with world.redis() as client:
        await client.replicaof("127.0.0.1", 1)
    yield "redis"
    async with world.redis() as client:
        await client.replicaof("NO", "ONE")
