"""`orders events`: the reference of every event in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from cli.text import say
from errors import OrdersError
from reference import compatibility
from reference.events import reference
from reference.page import markdown


def events_command(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, with JSON Schemas.")
    ] = False,
    as_asyncapi: Annotated[
        bool, typer.Option("--asyncapi", help="The AsyncAPI 3 document on stdout.")
    ] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            help=(
                "Write asyncapi.json and a JSON Schema of each event into this folder, unless that breaks a"
                " schema that is there."
            )
        ),
    ] = None,
) -> None:
    """Print the reference of all events: topics, fields, ids, reason codes, as Markdown, JSON Schema or
    AsyncAPI.

    Example:

        orders events > docs/events.md
        orders events --write contracts
    """
    if sum((as_json, as_asyncapi, write is not None)) > 1:
        raise OrdersError(
            "--json, --asyncapi and --write contradict each other", "give one of them at a time"
        )
    if write is not None:
        try:
            changed = compatibility.write(write)
        except OSError as error:
            raise OrdersError(f"--write {write}: {error.strerror}", "check the path") from None
        for line in [str(path) for path in changed] or ["nothing has changed"]:
            say(line)
    elif as_asyncapi:
        print(json.dumps(compatibility.asyncapi(), indent=2))
    else:
        print(json.dumps(reference(), indent=2) if as_json else markdown(), end="\n" if as_json else "")
