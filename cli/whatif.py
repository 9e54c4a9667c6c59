"""`orders whatif`: this program's rules and settings, tried on the whole history before they go live."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.rebuild import document, show
from cli.terminal import Terminal, output, progress
from cli.text import printable
from operations.whatif import Deadlines, Outcome, Published, whatif
from settings import get_settings

KINDS = {
    "would": "would be published and weren't",
    "was": "were published and wouldn't be",
    "other": "would say something else",
    "told": "would end with another notice",
}


def whatif_command(
    examples: Annotated[int, typer.Option("--examples", min=0, max=10_000, help="Of each kind; all are counted.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """What would change if this checkout's rules, with these settings, had folded the whole history: rows, events, deadlines.

    Run it from the checkout with the changed rule, or with the changed settings, against the servers of the live one; workers may go on.
    It only reads, and keeps temporary files below $TMPDIR. Refunds and passed deadlines are part of the history, as they were decided.

    Exits 0 when nothing would change, 1 when something would, 2 when it couldn't look.

    Example:

        ORDERS_PAYMENT_DEADLINE=7200 orders whatif --examples 3
    """
    with progress(quiet=as_json, rate=True) as bar:
        found = asyncio.run(whatif(get_settings(), examples, bar.show, bar.step))
    if as_json:
        print(json.dumps(_document(found)))
    else:
        console = output()
        rate = found.records / max(found.folding, 0.001)
        console.print(f"{found.records:,} records folded in {found.folding:.1f} s ({rate:,.0f}/s)")
        show(found.rows, console)
        _show_published(found.published, console)
        _show_deadlines(found.deadlines, console)
        if found.nothing:
            console.print("nothing would change", style="bold green")
        else:
            console.print("something would change", style="bold yellow")
    if not found.nothing:
        raise typer.Exit(1)


def _document(found: Outcome) -> dict[str, Any]:
    published = found.published
    return {
        "nothing": found.nothing,
        "records": found.records,
        "seconds": round(found.folding, 3),
        "rows": document(found.rows),
        "published": {
            "orders": published.orders,
            "topics": {topic: dict(kinds) for topic, kinds in published.counts.items()},
            "told": {
                topic: [{"live": live, "anew": anew, "count": count} for (live, anew), count in values.most_common()]
                for topic, values in published.told.items()
            },
            "examples": [asdict(each) for each in published.examples],
            "unjudged": published.unjudged,
            "by_arrival": published.by_arrival,
            "partly": published.partly,
        },
        "deadlines": {
            "orders": dict(found.deadlines.counts),
            "examples": [
                {"order_id": order_id, "kind": kind, "live": live, "anew": anew} for order_id, kind, live, anew in found.deadlines.examples
            ],
        },
    }


def _show_published(found: Published, console: Terminal) -> None:
    for topic, kinds in sorted(found.counts.items()):
        for kind, count in kinds.most_common():
            console.print(Text.assemble((topic, "bold"), f": {count:,} {KINDS[kind]}"))
        for (live, anew), count in found.told.get(topic, {}).items():
            console.print(printable(f"  {live} -> {anew}: {count:,}"))
    for each in found.examples:
        what = f"{each.live} -> {each.anew}" if each.kind == "told" else KINDS[each.kind]
        order = f"order {each.order_id}  " if each.order_id else ""
        console.print(printable(f"  {order}{each.topic} {each.id}  {what}"))
    for topic, where in sorted(found.partly.items()):
        console.print(printable(f"{where}: what would be published there and wasn't can't be told of {topic}"), style="yellow")
    if found.by_arrival:
        console.print(f"{found.by_arrival:,} orders' labels or releases differ only by which of their facts came first", style="dim")
    if found.unjudged:
        why = "they went on moving, or no worker goes on with them"
        console.print(f"{found.unjudged:,} orders' events were not judged: {why}", style="yellow")


def _show_deadlines(found: Deadlines, console: Terminal) -> None:
    if not found.counts:
        return
    told = ", ".join(f"{kind} {count:,}" for kind, count in found.counts.most_common())
    console.print(Text.assemble(("next deadline", "bold"), f" of orders that wait, from when they are next touched: {told}"))
    for order_id, kind, live, anew in found.examples:
        console.print(f"  order {order_id}  {kind}: {_moment(live)} -> {_moment(anew)}")


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms else "none"
