"""`orders init`: the topics and the schema."""

from __future__ import annotations

import asyncio
import json
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from cli.noting import Reason, noted
from cli.text import say
from operations import journal
from operations.servers import create
from settings import get_settings
from streams import topics

if TYPE_CHECKING:
    from sinks.migrate import Dropped


class PartitionColumn(StrEnum):
    """The column by which the Postgres tables are partitioned."""

    user_id = "user_id"
    region = "region"


def init_command(
    partition_by: Annotated[
        PartitionColumn,
        typer.Option(
            help="Column that the Postgres tables are partitioned by. For region see orders db regions."
        ),
    ] = PartitionColumn.user_id,
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1, max=1024, help="Partitions of every topic. Default: ORDERS_PARTITIONS.", show_default=False
        ),
    ] = None,
    why: Reason = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Create the topics and the tables that are missing. Running it again is harmless.

    If something exists and isn't as it should be, it changes nothing there, and says what to do. A view or an
    index that was dropped is named on stderr with the statement that makes it again.

    Example: [bold]orders init --partitions 8[/bold]
    """
    settings = get_settings()
    if partitions is not None:
        settings = settings.model_copy(update={"partitions": partitions})

    async def work() -> list[Dropped]:
        from sinks.migrate import dropped  # SQLAlchemy and Alembic take their time

        created.extend(await create(settings, partition_by.value))
        return await dropped(settings, partition_by.value)

    # The first time there is nothing to note it in.
    created = [] if asyncio.run(journal.exists(settings)) else asyncio.run(topics.ensure(settings))
    with noted(settings, "init", why):
        lacking = asyncio.run(work())
    for kind, name, statement in lacking:
        then = " (and grant it, see orders grants postgres)" if kind == "view" else ""
        say(
            f"orders: warning: the {kind} {name} was dropped; to make it again{then}: {statement}",
            lines=True,
            file=sys.stderr,
        )
    if as_json:
        print(
            json.dumps(
                {
                    "topics_created": created,
                    "partitions": settings.partitions,
                    "partition_by": partition_by.value,
                    "dropped": [each.name for each in lacking],
                }
            )
        )
        return
    summary = f"{len(created)} topics created" if created else "all topics were there"
    say(
        f"{summary}, {settings.partitions} partitions each; the schema is up to date, partitioned by"
        f" {partition_by.value}"
    )
