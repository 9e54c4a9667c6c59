"""`orders partitions`: how many the topics have, and more of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from cli.noting import Reason, noted
from cli.terminal import progress
from cli.text import say
from settings import get_settings


def partitions_command(
    to: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="New number of partitions of every topic, a multiple of the present one.",
            show_default=False,
        ),
    ] = None,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache",
            help="Also move what Redis lacks; it must be there. --no-cache leaves it out.",
        ),
    ] = True,
    why: Reason = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show how many partitions the topics have and had before; with --to, give them more.

    Stop all workers first: the group lets none in meanwhile. Records stay where they are, so senders may go
    on; each order's state moves to its new lane. If it is cut short, run it again; until it is done no worker
    starts. Then set ORDERS_PARTITIONS to the new number everywhere. docs/scaling.md has the steps.

    Exits 0 when done, 2 if it couldn't.

    Example: [bold]orders partitions --to 24[/bold]
    """
    from operations import repartition

    settings = get_settings()
    if to is None:
        counts, lanes = asyncio.run(repartition.look(settings))
        if as_json:
            print(json.dumps({"partitions": counts, "lanes": lanes.number, "former": list(lanes.former)}))
        else:
            before = f", before {_listed(lanes.former)}" if lanes.former else ""
            say(f"{_listed(counts)} partitions, {lanes.number} lanes{before}")
        return
    with noted(settings, "partitions", why), progress("partitions", quiet=as_json) as bar:
        moved = asyncio.run(repartition.change(settings, to, cache=cache, progress=bar.work))
    if as_json:
        print(json.dumps({"partitions": to, "moved": moved}))
    else:
        say(f"every topic has {to} partitions; {moved:,} orders have moved to another lane")
        say(f"set ORDERS_PARTITIONS={to}, then start the workers")


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
