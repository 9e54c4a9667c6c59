"""`orders personal`: all that is held about one user, as JSON."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from cli.dlq import lossless
from cli.terminal import progress
from errors import OrdersError
from settings import get_settings

if TYPE_CHECKING:
    from operations.personal import Found


def personal_command(
    user: Annotated[
        str, typer.Argument(metavar="USER", help="The user's id, a UUID, with or without dashes.")
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="The same document, and no progress on a terminal.")
    ] = False,
) -> None:
    """List all that is held about one user as one JSON document, for a data subject access request.

    It has the rows of the user's orders, what Redis shows of them, their states, and every record of the log
    that names the user or one of these orders, with its coordinates: events as they came, what was published,
    dead letters, parts of bulk jobs, of which other users' events are left out, and what operators noted. A
    user of whom nothing is held has empty lists. docs/explanation/personal-data.md says what these are, and
    what is held elsewhere.

    It only reads, joins no consumer group, and may run while workers do. It reads the whole log: as long as
    an audit, and in memory that doesn't grow with it.

    Example: orders personal 4e8d1b7a-26c9-4f35-9a60-d7b3e5c81f02 > user.json
    """
    from operations.personal import held

    try:
        user_id = UUID(user)
    except ValueError:
        raise OrdersError(
            f"{user!r} is not a UUID", "give a user_id such as 4e8d1b7a-26c9-4f35-9a60-d7b3e5c81f02"
        ) from None
    with progress("log", quiet=as_json) as bar:

        async def run() -> None:
            async with aclosing(held(get_settings(), user_id, bar.work)) as entries:
                await _print(user_id, entries)

        asyncio.run(run())


async def _print(user: UUID, entries: AsyncIterator[Found]) -> None:
    """One line an entry, as they come: a user's orders may have more records than memory has room for."""
    from operations.personal import SECTIONS

    # Nothing is printed before the first entry: until then a server may turn out to be away.
    before, between = f'{{\n"user_id": "{user}"', ""
    sections, section = iter(SECTIONS), ""

    def begin(name: str) -> str:
        nonlocal before, between
        print(before, f',\n"{name}": [', sep="", end="")
        before, between = "]", "\n"
        return name

    async for each in entries:
        while section != each.section:
            section = begin(next(sections))
        print(between, json.dumps(each.content, default=_value), sep="", end="")
        between = ",\n"
    for name in sections:
        begin(name)
    print("]\n}")


def _value(value: bytes) -> Any:
    """A value as JSON if it is some and nothing of it is lost, as text if it is text, else in base64."""
    try:
        return lossless(value)
    except ValueError:
        pass
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}
