"""`orders partitions`: how many the topics have, and more of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated

import typer

from cli.terminal import progress
from operations import repartition
from settings import get_settings


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
        counts, lanes = asyncio.run(repartition.look(settings))
        if as_json:
            print(json.dumps({"partitions": counts, "lanes": lanes.number, "former": list(lanes.former)}))
        else:
            before = f", before {_listed(lanes.former)}" if lanes.former else ""
            print(f"{_listed(counts)} partitions, {lanes.number} lanes{before}")
        return
    with progress("partitions", quiet=as_json) as bar:
        moved = asyncio.run(repartition.change(settings, to, cache=cache, progress=bar.work))
    if as_json:
        print(json.dumps({"partitions": to, "moved": moved}))
    else:
        print(f"every topic has {to} partitions; {moved:,} orders have moved to another lane")
        print(f"set ORDERS_PARTITIONS={to}, then start the workers")


def _listed(counts: Sequence[int]) -> str:
    return ", ".join(map(str, counts))
