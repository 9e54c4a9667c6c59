"""`orders wait`: until the workers have handled everything that was sent, and the cache shows it."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, NamedTuple

import redis.asyncio
import typer
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from cli.errors import UserError
from settings import Settings, get_settings
from sinks.redis import behind
from streams.lag import LagReader, TopicsMissing, by_topic, total

POLL_SECONDS: Final = 0.2
REDIS_SECONDS: Final = 2.0
"""After which Redis counts as away, for this look."""
SAY_AFTER: Final = 2.0
"""Seconds of waiting for the cache alone after which it is said."""


class Cache(NamedTuple):
    """What the cache misses. `behind`: lane -> records of its changelog that it may not have yet; None: Redis doesn't answer."""

    behind: Mapping[int, int] | None

    @property
    def complete(self) -> bool:
        return self.behind == {}

    def __str__(self) -> str:
        if self.behind is None:
            return "Redis doesn't answer"
        lanes = ", ".join(str(lane) for lane in sorted(self.behind))
        return f"the cache of lanes {lanes} is behind by {sum(self.behind.values()):,} records of the changelog"


class Outcome(NamedTuple):
    """`left`: records still to be handled, by topic (empty: all done); `handled`: those worked off meanwhile; `members` of the group.

    `cache`: None if it wasn't looked at: it was not to be waited for, or the time was up before.
    """

    left: dict[str, int]
    handled: int
    seconds: float
    members: int
    cache: Cache | None = None

    @property
    def done(self) -> bool:
        return not self.left and (self.cache is None or self.cache.complete)


def wait_command(
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most; without it as long as it takes.", show_default=False)
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Wait until the cache shows it too. --no-cache: even if Redis is away.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Wait until everything that was sent is processed: lag 0 on every topic that the workers read, internal ones too, what they have
    written to be seen by readers of committed records, and the cache of every lane to be as new as its orders.

    Exits 1 when the time is up, and says what is left.

    Example: [bold]orders wait --timeout 60[/bold]
    """
    from cli.terminal import messages, progress
    from cli.text import printable

    try:
        with progress(messages()) as bar:
            task = bar.add_task("processed", total=None)

            def show(handled: int, lag: int) -> None:
                bar.update(task, completed=handled, total=handled + lag)

            def say(what: str) -> None:
                bar.console.print(f"orders: everything is processed; waiting for the cache: {printable(what)}")

            outcome = asyncio.run(wait(get_settings(), timeout, show, cache=cache, say=say))
    except TopicsMissing as error:
        raise UserError(f"{error}; run orders init") from error
    if as_json:
        print(json.dumps(_document(outcome, cache)))
    elif outcome.done:
        unseen = "" if cache else "; the cache wasn't waited for"
        print(f"everything is processed ({outcome.handled:,} records in {outcome.seconds:.1f} s){unseen}")
    else:
        print(f"orders: {_told(outcome)}", file=sys.stderr)
    if not outcome.done:
        raise typer.Exit(1)


def _document(outcome: Outcome, cache: bool) -> dict[str, Any]:
    seen = outcome.cache
    lanes = None if seen is None or seen.behind is None else {str(lane): count for lane, count in sorted(seen.behind.items())}
    return {
        "lag": sum(outcome.left.values()),
        "left": outcome.left,
        "handled": outcome.handled,
        "seconds": round(outcome.seconds, 3),
        "members": outcome.members,
        "cache": {"waited": cache, "complete": None if seen is None else seen.complete, "behind": lanes},
    }


def _told(outcome: Outcome) -> str:
    """What is left, for a person."""
    nobody = "" if outcome.members else "; no worker is running: start one with orders worker"
    if outcome.left:
        left = ", ".join(f"{topic} {count:,}" for topic, count in outcome.left.items())
        return f"{sum(outcome.left.values()):,} records are left after {outcome.seconds:.1f} s ({left}){nobody}"
    return f"everything is processed, but after {outcome.seconds:.1f} s {outcome.cache}{nobody} (--no-cache doesn't wait for it)"


async def wait(
    settings: Settings,
    timeout: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    cache: bool = True,
    say: Callable[[str], None] = lambda what: None,
) -> Outcome:
    """Poll until the lag is 0 and the cache complete, or `timeout` seconds are over. Without `cache` Redis isn't looked at.

    `progress` gets the records handled so far and those left. `say` is told once, in words, what of the cache is waited for when that takes
    a while. Raises TopicsMissing, and aiokafka's errors when the brokers go away.
    """
    started = time.monotonic()
    processed: float | None = None
    said = False
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(LagReader(settings))
        client = await stack.enter_async_context(_client(settings)) if cache else None
        lag = await reader.lag()
        first = sum(position.committed for position in lag.values())
        while True:
            handled = sum(position.committed for position in lag.values()) - first
            if progress is not None:
                progress(handled, total(lag))
            left = by_topic(lag) or await reader.unseen()
            seen = None if left or client is None else await _look(settings, reader, client)
            seconds = time.monotonic() - started
            outcome = Outcome(left, handled, seconds, 0, seen)
            if outcome.done or (timeout is not None and seconds >= timeout):
                return outcome._replace(members=await reader.members())
            processed = None if left else seconds if processed is None else processed
            if processed is not None and seconds >= processed + SAY_AFTER and not said:
                said = True
                nobody = "" if await reader.members() else "; no worker is running: start one with orders worker"
                say(f"{seen}{nobody}")
            pause = POLL_SECONDS if timeout is None else min(POLL_SECONDS, max(0.0, timeout - seconds))
            await asyncio.sleep(pause)
            lag = await reader.lag()


def _client(settings: Settings) -> redis.asyncio.Redis:
    return redis.asyncio.Redis.from_url(
        settings.redis.get_secret_value(),
        socket_timeout=REDIS_SECONDS,
        socket_connect_timeout=REDIS_SECONDS,
        retry=Retry(NoBackoff(), 0),
    )


async def _look(settings: Settings, reader: LagReader, client: redis.asyncio.Redis) -> Cache:
    ends = await reader.changelog_ends()
    try:
        return Cache(await behind(client, settings.group, ends))
    except (RedisError, OSError):
        return Cache(None)
