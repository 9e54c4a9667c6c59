"""Wait until the workers have handled everything that was sent, and the cache shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Final, NamedTuple

import redis.asyncio
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError

from contracts.topics import CREATED, INTERNAL
from settings import Settings
from sinks.clients import ONCE, open_client
from sinks.redis import behind
from streams.control import paused
from streams.lag import Lag, LagReader, Position, by_topic, total

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


class Goal:
    """What has to be handled where only what was sent before counts: all that was in the topics at first, and
    what it causes.

    Records that come later don't count, so that it is reached under load, too. A cause is committed only
    after what it appends. So once all topics are handled up to where they ended at first, what was caused
    lies in those that the workers write themselves, and these are handled up to where they end then. That
    goes on until nothing is left in them, and so nothing under way (LagReader.lag). Where traffic always
    leaves something, it ends after CHAIN times.
    """

    CHAIN: Final = 50
    """How many decisions may cause each other, one after the other, where others send meanwhile."""

    def __init__(self, lag: Lag) -> None:
        """`lag`: at first."""
        self._ends = {place: position.end for place, position in lag.items()}
        self._first = {place: end for place, end in self._ends.items() if place[0] not in INTERNAL}
        self._reached = 0

    def left(self, lag: Lag) -> dict[str, int]:
        """Records that are still to be handled, by topic; empty: everything is. To be called with one lag
        after the other.
        """
        if remaining := self._below(lag, self._ends):
            return remaining
        self._reached += 1
        # Only checkouts cause an order.created, and the first time all of them are handled.
        written = (CREATED, *INTERNAL) if self._reached == 1 else INTERNAL
        caused = {place: position for place, position in lag.items() if place[0] in written}
        others_send = any(lag[place].end > end for place, end in self._first.items() if place in lag)
        if not total(caused) or (others_send and self._reached > self.CHAIN):
            return {}
        self._ends |= {place: position.end for place, position in caused.items()}
        return self._below(lag, self._ends)

    @staticmethod
    def _below(lag: Lag, ends: Mapping[tuple[str, int], int]) -> dict[str, int]:
        return by_topic(
            {place: Position(lag[place].committed, end) for place, end in ends.items() if place in lag}
        )


async def wait(
    settings: Settings,
    timeout: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    cache: bool = True,
    so_far: bool = False,
    say: Callable[[str], None] = lambda what: None,
) -> WaitResult:
    """Poll until the lag is 0 and the cache is complete, or `timeout` seconds are over. With `so_far` until
    that is so of what was sent before, and of what it causes. Without `cache` Redis isn't asked.

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
        goal, written, changelog = Goal(lag) if so_far else None, None, None
        first = sum(position.committed for position in lag.values())
        while True:
            handled = sum(position.committed for position in lag.values()) - first
            if goal is None:
                left, written, changelog = by_topic(lag), None, None
            else:
                left = goal.left(lag) if written is None else {}
            if progress is not None:
                progress(handled, sum(left.values()))
            if not left:
                # What the workers write from now on is of later records.
                written = await reader.written() if written is None else written
                left = await reader.unseen(written)
            if not left and changelog is None:
                changelog = await reader.changelog_ends()
            seen = None
            if client is not None and changelog is not None:
                seen = await _cache_of(settings, changelog, client)
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


async def _cache_of(settings: Settings, ends: Mapping[int, int], client: redis.asyncio.Redis) -> Cache:
    try:
        return Cache(await behind(client, settings, ends))
    except (AuthenticationError, NoPermissionError):
        raise  # nobody who waits gets in
    except (RedisError, OSError):
        return Cache(None)
