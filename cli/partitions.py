"""`orders partitions`: how many the topics have, and more of them."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from cli.errors import UserError
from cli.terminal import messages, progress
from operations import repartition
from operations.grouplock import GroupBusy, GroupLock
from operations.repartition import CannotGrow
from settings import Settings, get_settings
from streams import topics
from streams.lanes import Lanes, noted
from streams.transport.errors import LeaseLost, Stale


def partitions_command(
    to: Annotated[
        int | None, typer.Option(min=1, max=1024, help="Give every topic so many: a multiple of what they have.", show_default=False)
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Take along what Redis lacks. Without --no-cache it must be there.")
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """How many partitions the topics have, and had before; with --to, more of them.

    Stop all workers first: while it is at work the group lets none in. Records stay where they are, so whoever sends may go on; each
    order's state moves to its new lane. Cut short, it is run again and goes on; until it is done no worker starts. Then set
    ORDERS_PARTITIONS to the new number everywhere. docs/scaling.md has it step by step.

    Exits 0 when done, 2 when it couldn't.

    Example: [bold]orders partitions --to 24[/bold]
    """
    settings = get_settings()
    if to is None:
        counts, lanes = asyncio.run(_look(settings))
        if not counts:
            raise UserError("no topics; run orders init")
        if as_json:
            print(json.dumps({"partitions": counts, "lanes": lanes.number, "former": list(lanes.former)}))
        else:
            before = f", before {_listed(lanes.former)}" if lanes.former else ""
            print(f"{_listed(counts)} partitions, {lanes.number} lanes{before}")
        return
    try:
        moved = asyncio.run(_grow(settings, to, cache=cache, quiet=as_json or not sys.stderr.isatty()))
    except CannotGrow as error:
        raise UserError(f"--to {to}: {error}") from None
    except GroupBusy as error:
        raise UserError(f"{error}: stop all workers (SIGTERM lets them finish), and run orders partitions again") from None
    except (LeaseLost, Stale, KafkaError, RedisError) as error:
        raise UserError(f"{error}; not done yet: run orders partitions --to {to} again, it goes on") from None
    if as_json:
        print(json.dumps({"partitions": to, "moved": moved}))
    else:
        print(f"every topic has {to} partitions; {moved:,} orders have moved to another lane")
        print(f"set ORDERS_PARTITIONS={to}, then start the workers")


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))


async def _look(settings: Settings) -> tuple[list[int], Lanes]:
    """Numbers of partitions that topics have (one, unless a change is under way), and the lanes."""
    states = await topics.describe(settings)
    return sorted({state.partitions for state in states.values()}), await noted(settings) or Lanes(settings.partitions)


async def _grow(settings: Settings, partitions: int, *, cache: bool, quiet: bool) -> int:
    with progress(messages(), quiet=quiet) as bar:
        task = bar.add_task("partitions", total=None)
        async with AsyncExitStack() as stack:
            redis = None
            if cache:
                redis = await stack.enter_async_context(
                    Redis.from_url(settings.redis.get_secret_value(), socket_timeout=10, socket_connect_timeout=10)
                )
                await redis.ping()
            lock = await stack.enter_async_context(GroupLock(settings))
            return await repartition.grow(
                settings, lock, partitions, redis, lambda what, done, whole: bar.update(task, description=what, completed=done, total=whole)
            )
