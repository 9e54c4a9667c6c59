"""Wait until the workers have handled everything that was sent, and the cache shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import redis.asyncio
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from settings import Settings
from sinks.clients import ONCE, open_client
from sinks.redis import behind
from streams.control import paused
from streams.lag import LagReader, by_topic, total

POLL_SECONDS: Final = 0.2
REDIS_SECONDS: Final = 2.0
"""Seconds after which Redis counts as away."""
SAY_AFTER: Final = 2.0
"""Seconds of waiting for the cache alone, or for a worker to run, after which a person is told."""

_NOBODY: Final = "no worker is running: start one with orders worker"


class Cache(NamedTuple):
    """How far the cache is behind, by lane, in records of the changelog.

    `behind` is None if Redis doesn't answer.
    """

    behind: Mapping[int, int] | None

    @property
    def complete(self) -> bool:
        return self.behind == {}

    def __str__(self) -> str:
        if self.behind is None:
            return "Redis doesn't answer"
        lanes = ", ".join(str(lane) for lane in sorted(self.behind))
        return (
            f"the cache of lanes {lanes} is behind by {sum(self.behind.values()):,} records of the changelog"
        )


class WaitResult(NamedTuple):
    """The result of waiting."""

    left: dict[str, int]
    """Records that are still to be handled, by topic; empty if all are done."""
    handled: int
    """Records that were handled meanwhile."""
    seconds: float
    members: int
    cache: Cache | None = None
    """None if Redis wasn't asked, because it wasn't to be waited for or the time was up before."""

    @property
    def done(self) -> bool:
        return not self.left and (self.cache is None or self.cache.complete)


async def wait(
    settings: Settings,
    timeout: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    cache: bool = True,
    say: Callable[[str], None] = lambda what: None,
) -> WaitResult:
    """Poll until the lag is 0 and the cache is complete, or `timeout` seconds are over.

    Without `cache` Redis isn't asked.

    `progress` is called with the records handled so far and those left. When no worker runs, or the cache
    takes long, `say` is called once with a sentence about it. Raises TopicsMissing, aiokafka's errors when
    the brokers go away, and redis-py's AuthenticationError and NoPermissionError.
    """
    started = time.monotonic()
    processed: float | None = None
    said: set[str] = set()
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(LagReader(settings))
        client = None
        if cache:
            client = await stack.enter_async_context(open_client(settings, timeout=REDIS_SECONDS, retry=ONCE))
        lag = await reader.lag()
        first = sum(position.committed for position in lag.values())
        while True:
            handled = sum(position.committed for position in lag.values()) - first
            if progress is not None:
                progress(handled, total(lag))
            left = by_topic(lag) or await reader.unseen()
            seen = None if left or client is None else await _cache_of(settings, reader, client)
            seconds = time.monotonic() - started
            outcome = WaitResult(left, handled, seconds, 0, seen)
            if outcome.done or (timeout is not None and seconds >= timeout):
                return outcome._replace(members=await reader.members())
            processed = None if left else seconds if processed is None else processed
            if processed is not None and seconds >= processed + SAY_AFTER and "cache" not in said:
                said.add("cache")
                nobody = "" if await reader.members() else f"; {_NOBODY}"
                say(f"everything is processed; waiting for the cache: {seen}{nobody}")
            if left and seconds >= SAY_AFTER and "nobody" not in said and not await reader.members():
                said.add("nobody")
                say(f"{sum(left.values()):,} records are left; {_NOBODY}")
            if left and seconds >= SAY_AFTER and "paused" not in said:
                said.add("paused")
                pauses = ", ".join(map(str, await paused(settings)))
                if pauses:
                    say(f"paused: {pauses}; what is held back isn't handled before orders resume")
            pause = POLL_SECONDS if timeout is None else min(POLL_SECONDS, max(0.0, timeout - seconds))
            await asyncio.sleep(pause)
            lag = await reader.lag()


async def _cache_of(settings: Settings, reader: LagReader, client: redis.asyncio.Redis) -> Cache:
    ends = await reader.changelog_ends()
    try:
        return Cache(await behind(client, settings, ends))
    except (AuthenticationError, NoPermissionError):
        raise  # nobody who waits gets in
    except (RedisError, OSError):
        return Cache(None)
