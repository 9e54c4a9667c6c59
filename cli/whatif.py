"""`orders whatif`: try this program's rules and settings on the whole log before they go live."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.rebuild import document, show, sides
from cli.terminal import Terminal, output, progress
from contracts.printable import printable
from settings import get_settings

if TYPE_CHECKING:
    from operations.whatif import Deadlines, EventDifference, EventKind, Published, WhatIfResult


KINDS: dict[EventKind, str] = {
    "missing": "would be published and weren't",
    "unexpected": "were published and wouldn't be",
    "different": "would have other content",
    "notice": "would end with another notice",
}
_KINDS_BEFORE: dict[EventKind, str] = {
    "missing": "would",
    "unexpected": "was",
    "different": "other",
    "notice": "told",
}
"""What the release before calls them in its JSON."""


def whatif_command(
    examples: Annotated[
        int,
        typer.Option(
            "--examples", min=0, max=10_000, help="How many examples of each kind are shown; all are counted."
        ),
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Show which rows, events and deadlines would change with this checkout's rules and these settings.

    It replays the whole log and compares the result with what is live. Run it in the checkout with the
    changed rule, or with the changed settings, against the live servers; workers may run. It only reads, and
    keeps temporary files below $TMPDIR. Refunds that were decided and deadlines that have passed are part of
    the log and stay as they are.

    Exits 0 when nothing would change, 1 when something would, 2 when it couldn't compare.

    Example:

        ORDERS_PAYMENT_DEADLINE=7200 orders whatif --examples 3
    """
    from operations.whatif import whatif

    with progress(quiet=as_json, rate=True) as bar:
        result = asyncio.run(whatif(get_settings(), examples, bar.show, bar.step))
    if as_json:
        print(json.dumps(_document(result)))
    else:
        console = output()
        rate = result.records / max(result.seconds, 0.001)
        console.print(f"{result.records:,} records replayed in {result.seconds:.1f} s ({rate:,.0f}/s)")
        show(result.rows, console)
        _show_published(result.published, console)
        _show_deadlines(result.deadlines, console)
        if result.same:
            console.print("nothing would change", style="bold green")
        else:
            console.print("something would change", style="bold yellow")
    if not result.same:
        raise typer.Exit(1)


def _document(result: WhatIfResult) -> dict[str, Any]:
    """Return the JSON document, with the keys of the release before beside the new ones."""
    published = result.published
    notices = {
        topic: [
            {**sides(actual, expected), "count": count} for (actual, expected), count in values.most_common()
        ]
        for topic, values in published.notices.items()
    }
    return {
        "same": result.same,
        "nothing": result.same,
        "records": result.records,
        "seconds": round(result.seconds, 3),
        "rows": document(result.rows),
        "published": {
            "orders": published.orders,
            "differences": published.counts,
            "topics": {
                topic: {_KINDS_BEFORE[kind]: count for kind, count in kinds.items()}
                for topic, kinds in published.counts.items()
            },
            "notices": notices,
            "told": notices,
            "examples": [_example(each) for each in published.examples],
            "inconclusive": published.inconclusive,
            "unjudged": published.inconclusive,
            "by_arrival": published.by_arrival,
            "incomplete": published.incomplete,
            "partly": published.incomplete,
        },
        "deadlines": {
            "orders": result.deadlines.counts,
            "examples": [
                {"order_id": order_id, "kind": kind, **sides(actual, expected)}
                for order_id, kind, actual, expected in result.deadlines.examples
            ],
        },
    }


def _example(each: EventDifference) -> dict[str, Any]:
    return {
        "topic": each.topic,
        "difference": each.kind,
        "kind": _KINDS_BEFORE[each.kind],
        "id": each.id,
        "order_id": each.order_id,
        **sides(each.actual, each.expected),
    }


def _show_published(published: Published, console: Terminal) -> None:
    for topic, kinds in sorted(published.counts.items()):
        for kind, count in kinds.most_common():
            console.print(Text.assemble((topic, "bold"), f": {count:,} {KINDS[kind]}"))
        for (actual, expected), count in published.notices.get(topic, {}).items():
            console.print(printable(f"  {actual} -> {expected}: {count:,}"))
    for each in published.examples:
        what = f"{each.actual} -> {each.expected}" if each.kind == "notice" else KINDS[each.kind]
        order = f"order {each.order_id}  " if each.order_id else ""
        console.print(printable(f"  {order}{each.topic} {each.id}  {what}"))
    for topic, reason in sorted(published.incomplete.items()):
        console.print(
            printable(f"{reason}: which events are missing from {topic} can't be said"), style="yellow"
        )
    if published.by_arrival:
        orders = f"{published.by_arrival:,} orders' commands"
        console.print(f"{orders} differ only by which of their facts arrived first", style="dim")
    if published.inconclusive:
        why = "they kept changing, or no worker takes their records in"
        console.print(
            f"{published.inconclusive:,} orders' events couldn't be compared: {why}", style="yellow"
        )


def _show_deadlines(deadlines: Deadlines, console: Terminal) -> None:
    if not deadlines.counts:
        return
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in deadlines.counts.most_common())
    console.print(
        Text.assemble(("next deadline", "bold"), f" of waiting orders, once their next event comes: {kinds}")
    )
    for order_id, kind, actual, expected in deadlines.examples:
        console.print(f"  order {order_id}  {kind}: {_moment(actual)} -> {_moment(expected)}")


def _moment(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds") if ms else "none"
