"""`orders keys`: who may read over HTTP, as named keys in a file."""

from __future__ import annotations

import json
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.noting import Reason, noted
from cli.terminal import Rows, Wide, messages, output
from cli.text import say, second
from errors import OrdersError
from settings import get_settings

app = typer.Typer(
    help=(
        "Make, list and revoke the named keys of orders api, in the file ORDERS_API_KEY_STORE.\n\nExample:"
        " [bold]orders keys add shop --scope seller:SELLER_ID --expires 90d[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

_SPAN: Final = re.compile(r"([1-9][0-9]{0,5})([dhm])", re.ASCII)
_UNITS: Final = {"d": "days", "h": "hours", "m": "minutes"}

Name = Annotated[str, typer.Argument(help="The key's name, as it stands in the access log.")]


@app.command("add")
def add_command(
    name: Name,
    scope: Annotated[
        list[str],
        typer.Option(
            help="all, user:ID, seller:ID, tracking, write, operate or view. Several: give it several times."
        ),
    ],
    expires: Annotated[
        str | None, typer.Option(help="When it ends: RFC 3339, or a span such as 90d, 12h, 30m.")
    ] = None,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, max=1e6, help="Most requests a second. Default: ORDERS_API_RATE."),
    ] = None,
    why: Reason = None,
) -> None:
    """Make a key and print it. Nothing can print it again: the file holds its digest.

    Services that run take it in at once.

    Example: [bold]orders keys add shop --scope seller:SELLER_ID --expires 90d[/bold]
    """
    from api.keys import KeyUnknown, changing, is_name, made
    from api.scopes import canonical

    if not is_name(name):
        raise OrdersError(f"{name} can't be a key's name", "take 1 to 64 of A-Z a-z 0-9 . _ -")
    scopes = []
    for text in scope:
        known = canonical(text)
        if known is None:
            raise OrdersError(
                f"{text} is no scope",
                "one of all, user:ID, seller:ID, tracking, write, operate, view; ID is a UUID",
            )
        scopes.append(known)
    line, key = made(name, list(dict.fromkeys(scopes)), expires=_end(expires), rate=rate)
    with noted(get_settings(), "keys add", why), changing(_file()) as keys:
        if any(each.name == name for each in keys):
            raise KeyUnknown(
                f"there is a key {name} already", "take another name, or run orders keys revoke first"
            )
        keys.append(line)
    if sys.stderr.isatty():
        messages().print("This is the only time that the key is shown:")
    say(key)


@app.command("list")
def list_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array on stdout.")] = False,
    wide: Wide = False,
) -> None:
    """List the keys: names, scopes, ends and rates, never a key.

    Example: [bold]orders keys list --json[/bold]
    """
    from api.keys import read_keys

    now = datetime.now(UTC).timestamp()
    rows: list[dict[str, Any]] = [
        {
            "name": key.name,
            "scopes": key.scopes,
            "created": key.created,
            "expires": key.expires,
            "expired": key.expires_at <= now,
            "rate": key.rate,
        }
        for key in read_keys(_file())
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Rows("name", "scopes", "ends", "rate", "made", prose=("scopes",), right=("rate",), wide=wide)
    for row in rows:
        ends = "never" if row["expires"] is None else second(row["expires"])
        table.add(
            row["name"],
            " ".join(row["scopes"]),
            (f"{ends} (over)", "red") if row["expired"] else ends,
            "" if row["rate"] is None else f"{row['rate']:g}/s",
            second(row["created"]),
        )
    output().print(table if rows else "There are no keys.")


@app.command("revoke")
def revoke_command(name: Name, why: Reason = None) -> None:
    """Take a key out of the file. Services that run refuse it from their next request on.

    Example: [bold]orders keys revoke shop[/bold]
    """
    from api.keys import KeyUnknown, changing

    with noted(get_settings(), "keys revoke", why), changing(_file()) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise KeyUnknown(f"there is no key {name}", "see orders keys list")
        keys[:] = left


def _file() -> Path:
    path = get_settings().api_key_store
    if path is None:
        raise OrdersError("no file of keys is set", "set ORDERS_API_KEY_STORE to its path")
    return path


def _end(text: str | None) -> datetime | None:
    if text is None:
        return None
    now = datetime.now(UTC).replace(microsecond=0)
    span = _SPAN.fullmatch(text)
    try:
        end = now + timedelta(**{_UNITS[span[2]]: int(span[1])}) if span else datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        end = None
    if end is None or end.tzinfo is None:
        raise OrdersError(
            f"--expires {text} is no time", "write 2027-01-31T00:00:00Z, or a span such as 90d, 12h, 30m"
        )
    if end <= now:
        raise OrdersError(f"--expires {text} is over", "take a time to come")
    return end.astimezone(UTC)
