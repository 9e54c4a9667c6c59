"""`orders pause` and `orders resume`: hold back a lane, a topic or a type of event, and let it go on."""

from __future__ import annotations

import asyncio
import json
import time
from enum import StrEnum
from typing import Annotated, Any

import typer

from cli.noting import Reason, noted
from cli.text import say
from operations import pause
from operations.journal import somebody
from settings import get_settings
from streams.control import Kind, Pause, paused, span


class KindName(StrEnum):
    """What can be paused."""

    lane = "lane"
    topic = "topic"
    type = "type"


What = Annotated[KindName, typer.Argument(help="What it is.")]
Name = Annotated[str, typer.Argument(help="The lane's number, or the name of the topic or the type.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


def pause_command(
    kind: What,
    name: Name,
    reason: Annotated[
        str, typer.Option("--reason", "--why", help="Why: everybody who looks is told.", show_default=False)
    ],
    as_json: Json = False,
) -> None:
    """Hold back a lane, a topic or a type of event: its records stay in Kafka until orders resume.

    Workers take it in within a second or two, finish the batch that they have begun, and fetch no more of it.
    It holds over restarts. The rest goes on; deadlines wait on lanes where records are held back. orders
    status, the console, a metric and an alert tell that it is paused, for how long, by whom and why.

    Example: [bold]orders pause topic order.paid --reason "the payment service sends wrong amounts"[/bold]
    """
    settings, what = get_settings(), _kind(kind)
    asyncio.run(pause.named(settings, what, name))
    with noted(settings, "pause", reason):
        result = asyncio.run(pause.pause(settings, what, name, by=somebody(), why=reason))
    if as_json:
        print(json.dumps(_document(result)))
    elif result.pause is not None:
        since = "" if result.changed else f" already, since {result.pause.since} by {result.pause.by}"
        held = pause.holds(result.pause.kind, result.pause.name)
        say(f"{result.pause} is paused{since}; held back: {held}")
        say(f"orders resume {result.pause} lets it go on")


def resume_command(kind: What, name: Name, why: Reason = None, as_json: Json = False) -> None:
    """Let what orders pause has held back go on: workers fetch from where they stopped.

    Example: [bold]orders resume topic order.paid --reason "amounts are right again"[/bold]
    """
    settings, what = get_settings(), _kind(kind)
    if not _is_paused(asyncio.run(paused(settings)), what, name):
        asyncio.run(pause.named(settings, what, name))
    with noted(settings, "resume", why):
        result = asyncio.run(pause.resume(settings, what, name))
    if as_json:
        print(json.dumps(_document(result)))
    elif result.pause is None:
        say(f"{what} {name} isn't paused")
    else:
        say(f"{result.pause} goes on; it was paused for {span(result.pause.seconds(time.time()))}")


def _kind(kind: KindName) -> Kind:
    return kind.value


def _is_paused(pauses: tuple[Pause, ...], kind: Kind, name: str) -> bool:
    return any((each.kind, each.name) == (kind, name) for each in pauses)


def _document(result: pause.Result) -> dict[str, Any]:
    return {"changed": result.changed, "pause": None if result.pause is None else result.pause._asdict()}
