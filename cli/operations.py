"""`orders operations`: who did what with the commands that write, when and why."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import typer
from msgspec import to_builtins

from cli.terminal import Cell, Rows, Wide, output
from cli.text import second
from errors import OrdersError
from operations.journal import Operation, operations
from settings import get_settings

_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([dhm])", re.ASCII)
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}


def operations_command(
    since: Annotated[
        str | None,
        typer.Option(
            help="Only what began since then: RFC 3339, or a span such as 7d, 12h, 30m.", show_default=False
        ),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Only by whom this is a part of: user@host.", show_default=False)
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(help='Only this command, or group of them: "dlq redrive", dlq.', show_default=False),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many are shown, the newest.")] = 50,
    wide: Wide = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List who did what with the commands that write, when and why (--reason), the newest last.

    An operation without an end is under way, or was killed: what it had done until then stays.

    Example: [bold]orders operations --since 7d --command dlq[/bold]
    """
    begun = None if since is None else moment(since, "--since")
    chosen = [
        each
        for each in asyncio.run(operations(get_settings(), begun))
        if (by is None or by in each.by) and (command is None or _is(each.command, command))
    ]
    if as_json:
        print(json.dumps({"total": len(chosen), "operations": to_builtins(chosen[-limit:])}))
        return
    if not chosen:
        output().print("no operations")
        return
    table = Rows("began", "by", "what", "why", "end", prose=("what", "why", "end"), wide=wide)
    for each in chosen[-limit:]:
        what = shlex.join((*each.command.split(), *each.arguments))
        table.add(second(each.began), each.by, what, each.why or "-", _end(each))
    console = output()
    console.print(table)
    if len(chosen) > limit:
        console.print(f"{len(chosen) - limit:,} older ones; --limit shows more", style="dim")


def moment(text: str, option: str) -> datetime:
    """A time that was given as RFC 3339, or as a span before now, such as 90d, 12h, 30m.

    Raises OrdersError.
    """
    span = _SPAN.fullmatch(text)
    try:
        time = (
            datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
            if span
            else datetime.fromisoformat(text)
        )
    except (ValueError, OverflowError):
        time = None
    if time is None or time.tzinfo is None:
        raise OrdersError(
            f"{option} {text} is no time", "write 2027-01-31T00:00:00Z, or a span such as 7d, 12h, 30m"
        )
    return time


def _is(command: str, wanted: str) -> bool:
    words, those = command.split(), wanted.split()
    return words[: len(those)] == those


def _end(operation: Operation) -> Cell:
    if operation.ended is None:
        return "no end", "yellow"
    said = f"{operation.outcome}: {operation.detail}" if operation.detail else str(operation.outcome)
    return f"{second(operation.ended)} {said}", "" if operation.outcome == "done" else "red"
