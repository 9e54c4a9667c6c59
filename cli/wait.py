"""`orders wait`: until the workers have handled everything that was sent."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable
from typing import Annotated, NamedTuple

import typer

from cli.errors import UserError
from settings import Settings, get_settings
from streams.lag import LagReader, TopicsMissing, by_topic, total

POLL_SECONDS = 0.2


class Outcome(NamedTuple):
    """`left`: records still to be handled, by topic (empty: all done); `handled`: those worked off meanwhile; `members` of the group."""

    left: dict[str, int]
    handled: int
    seconds: float
    members: int


def wait_command(
    timeout: Annotated[
        float | None, typer.Option(min=0, help="Seconds to wait at most; without it as long as it takes.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Wait until everything that was sent is processed: lag 0 on every topic that the workers read, internal ones too, and what they have
    written to be seen by readers of committed records.

    Exits 1 when the time is up, and says what is left.

    Example: [bold]orders wait --timeout 60[/bold]
    """
    from cli.terminal import messages, progress

    try:
        with progress(messages()) as bar:
            task = bar.add_task("processed", total=None)

            def show(handled: int, lag: int) -> None:
                bar.update(task, completed=handled, total=handled + lag)

            outcome = asyncio.run(wait(get_settings(), timeout, show))
    except TopicsMissing as error:
        raise UserError(f"{error}; run orders init") from error
    lag = sum(outcome.left.values())
    if as_json:
        document = {"lag": lag, "left": outcome.left, "handled": outcome.handled, "seconds": round(outcome.seconds, 3)}
        print(json.dumps({**document, "members": outcome.members}))
    elif not lag:
        print(f"everything is processed ({outcome.handled:,} records in {outcome.seconds:.1f} s)")
    else:
        left = ", ".join(f"{topic} {count:,}" for topic, count in outcome.left.items())
        nobody = "" if outcome.members else "; no worker is running: start one with orders worker"
        print(f"orders: {lag:,} records are left after {outcome.seconds:.1f} s ({left}){nobody}", file=sys.stderr)
    if lag:
        raise typer.Exit(1)


async def wait(settings: Settings, timeout: float | None = None, progress: Callable[[int, int], None] | None = None) -> Outcome:
    """Poll until the lag is 0 or `timeout` seconds are over. `progress` gets the records handled so far and those left.

    Raises TopicsMissing, and aiokafka's errors when the brokers go away.
    """
    started = time.monotonic()
    async with LagReader(settings) as reader:
        lag = await reader.lag()
        first = sum(position.committed for position in lag.values())
        while True:
            handled = sum(position.committed for position in lag.values()) - first
            if progress is not None:
                progress(handled, total(lag))
            left = by_topic(lag) or await reader.unseen()
            seconds = time.monotonic() - started
            if not left or (timeout is not None and seconds >= timeout):
                return Outcome(left, handled, seconds, await reader.members())
            pause = POLL_SECONDS if timeout is None else min(POLL_SECONDS, max(0.0, timeout - seconds))
            await asyncio.sleep(pause)
            lag = await reader.lag()
