"""`orders attention`: what a person should look at, over all orders."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Final

import typer
from msgspec import to_builtins
from rich.text import Text

from cli.terminal import Rows, Wide, output
from cli.text import second
from contracts import times
from contracts.errors import Refused
from domain.anomalies import KINDS
from errors import OrdersError
from settings import Settings, get_settings

if TYPE_CHECKING:
    from queries.attention import AttentionPage


MOST: Final = 100
"""Rows that are shown unless more are asked for."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def attention_command(
    kind: Annotated[
        str | None, typer.Option("--kind", help="Only this kind, such as refund_uncovered or late_to_ship.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only what began to hold then or later (RFC 3339)."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=100_000, help="The oldest so many.")] = MOST,
    wide: Wide = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
    ] = False,
) -> None:
    """List what a person should look at: of each order every kind that holds, the oldest first.

    It reads the rows of orders_attention, from the replica where there is one. docs/rules.md says what each
    kind means, and orders show ORDER_ID why it holds. Exits 0 whatever there is.

    Example: orders attention --kind refund_uncovered --since 2026-03-01T00:00:00Z
    """
    if kind is not None and kind not in KINDS:
        raise OrdersError(f"{kind!r} is no kind of attention", f"give one of {', '.join(sorted(KINDS))}")
    began = None if since is None else _time(since)
    counts, page = asyncio.run(_read(get_settings(), limit, kind, began))
    if as_json:
        document = {"counts": counts, "attention": to_builtins(page.rows), "more": page.next is not None}
        print(json.dumps(document, indent=2))
        return
    shown = ", ".join(f"{of} {count:,}" for of, count in counts.items())
    output().print(Text(f"{sum(counts.values()):,} to look at: {shown}" if counts else "nothing to look at"))
    table = Rows("order", "kind", "since", "what", prose=("what",), wide=wide)
    for each in page.rows:
        table.add(str(each.order_id), (each.kind, "yellow"), second(each.since), each.detail)
    output().print(table)
    if page.next is not None:
        output().print(Text(f"and more: the oldest {limit:,} are shown, --limit shows more", "dim"))


async def _read(
    settings: Settings, limit: int, kind: str | None, since: datetime | None
) -> tuple[dict[str, int], AttentionPage]:
    from queries.attention import attention_counts, open_attention
    from queries.databases import Databases

    databases = Databases(settings)
    try:
        counts = await attention_counts(databases)
        return counts, await open_attention(databases, limit, kind=kind, since=since)
    finally:
        await databases.close()


def _time(text: str) -> datetime:
    try:
        return _EPOCH + timedelta(microseconds=times.parse(text, "--since"))
    except Refused:
        raise OrdersError(
            f"--since: {text!r} is not an RFC 3339 time with its offset",
            "give one such as 2026-03-10T12:00:00Z",
        ) from None
