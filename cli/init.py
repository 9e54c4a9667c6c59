"""`orders init`: the topics and the schema."""

from __future__ import annotations

import asyncio
import json
from enum import StrEnum
from typing import Annotated

import typer

from cli.noting import Reason, noted
from cli.text import say
from operations import journal
from operations.servers import create
from settings import get_settings
from streams import topics


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

    If something exists and isn't as it should be, it changes nothing there, and says what to do.

    Example: [bold]orders init --partitions 8[/bold]
    """
    settings = get_settings()
    if partitions is not None:
        settings = settings.model_copy(update={"partitions": partitions})
    # The first time there is nothing to note it in.
    created = [] if asyncio.run(journal.exists(settings)) else asyncio.run(topics.ensure(settings))
    with noted(settings, "init", why):
        created += asyncio.run(create(settings, partition_by.value))
    if as_json:
        print(
            json.dumps(
                {
                    "topics_created": created,
                    "partitions": settings.partitions,
                    "partition_by": partition_by.value,
                }
            )
        )
        return
    summary = f"{len(created)} topics created" if created else "all topics were there"
    say(
        f"{summary}, {settings.partitions} partitions each; the schema is up to date, partitioned by"
        f" {partition_by.value}"
    )
