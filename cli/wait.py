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
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Wait until everything that was sent before is processed, and the cache shows it.

    That is: the workers have read every topic up to where it ended, and what came of that in internal topics;
    readers of committed records see what was written; and every lane's cache has those orders. What is sent
    meanwhile isn't waited for.

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
