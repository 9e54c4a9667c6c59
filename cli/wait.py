"""`orders wait`: until the workers have handled everything that was sent, and the cache shows it."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.terminal import progress
from cli.text import say
from settings import get_settings

if TYPE_CHECKING:
    from operations.wait import WaitResult


def wait_command(
    timeout: Annotated[
        float | None,
        typer.Option(min=0, help="Seconds to wait at most. Default: no limit.", show_default=False),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Wait for the cache too. --no-cache leaves Redis out.")
    ] = True,
    so_far: Annotated[
        bool, typer.Option("--so-far", help="Don't wait for what is sent from now on.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Wait until everything that was sent is processed, and the cache shows it.

    That is: the lag is 0 on every topic that the workers read, internal ones too; readers of committed
    records see what was written; and every lane's cache is as new as its orders. While others send there may
    be no such moment: --so-far waits for what was sent before, and for what that causes.

    Exits 1 when the time is up, and says what is left.

    Example: [bold]orders wait --timeout 60[/bold]
    """
    from operations.wait import wait

    with progress("processed") as bar:
        outcome = asyncio.run(
            wait(
                get_settings(),
                timeout,
                lambda handled, lag: bar.show(handled, handled + lag),
                cache=cache,
                so_far=so_far,
                say=lambda what: bar.say(f"orders: {what}"),
            )
        )
    if as_json:
        print(json.dumps(_document(outcome, cache)))
    elif outcome.done:
        unseen = "" if cache else "; the cache wasn't waited for"
        say(f"everything is processed ({outcome.handled:,} records in {outcome.seconds:.1f} s){unseen}")
    else:
        say(f"orders: {_told(outcome)}", file=sys.stderr)
    if not outcome.done:
        raise typer.Exit(1)


def _document(outcome: WaitResult, cache: bool) -> dict[str, Any]:
    seen = outcome.cache
    lanes = (
        None
        if seen is None or seen.behind is None
        else {str(lane): count for lane, count in sorted(seen.behind.items())}
    )
    return {
        "lag": sum(outcome.left.values()),
        "left": outcome.left,
        "handled": outcome.handled,
        "seconds": round(outcome.seconds, 3),
        "members": outcome.members,
        "cache": {"waited": cache, "complete": None if seen is None else seen.complete, "behind": lanes},
    }


def _told(outcome: WaitResult) -> str:
    """Describe what is left, for a person."""
    nobody = "" if outcome.members else "; no worker is running: start one with orders worker"
    if outcome.left:
        remaining = ", ".join(f"{topic} {count:,}" for topic, count in outcome.left.items())
        return (
            f"{sum(outcome.left.values()):,} records are left after {outcome.seconds:.1f} s"
            f" ({remaining}){nobody}"
        )
    return (
        f"everything is processed, but after {outcome.seconds:.1f} s {outcome.cache}{nobody} (--no-cache"
        " doesn't wait for it)"
    )
