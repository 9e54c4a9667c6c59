"""`orders log-level`: change what workers, the API and the console log while they run."""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from typing import Annotated, cast

import typer

from cli.noting import Reason, noted
from cli.text import say
from operations.journal import somebody
from operations.levels import reset_level, set_level
from settings import get_settings
from streams.levels import ALL, LogLevel


class LevelName(StrEnum):
    """What can be set."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"
    default = "default"


def log_level_command(
    level: Annotated[
        LevelName,
        typer.Argument(help="The lowest level that is logged; default: what ORDERS_LOG_LEVEL says."),
    ],
    worker: Annotated[
        str,
        typer.Option(
            help=(
                "Whom it reaches: w1@host as orders status lists it, w1 on any host, api or console"
                " (api@host: of one host only). *: all of these."
            )
        ),
    ] = ALL,
    why: Reason = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Change the level of the log of workers, bulk workers, the API and the console while they run.

    They take it in within a second or two; the API and the console serve without Kafka, too, and take it in
    once it is there. It holds over restarts, until it is set to default. What is set for one counts before
    what is set for all. orders status tells what is set. orders audit --follow has ORDERS_LOG_LEVEL alone.

    Example: [bold]orders log-level debug --worker w1 --reason "lane 3 stands still"[/bold]

    Example: [bold]orders log-level debug --worker api[/bold]
    """
    settings, by = get_settings(), somebody()
    which = "all" if worker == ALL else worker
    with noted(settings, "log-level", why):
        if level is LevelName.default:
            asyncio.run(reset_level(settings, worker))
            document = {"worker": worker, "level": None}
            line = f"{which}: the log has the level of the settings"
        else:
            named = cast(LogLevel, level.value)
            document = asyncio.run(set_level(settings, worker, named, by=by, why=why))._asdict()
            line = f"{which}: the log has the level {level.value}; orders log-level default takes it back"
    if as_json:
        print(json.dumps(document))
    else:
        say(line)
