"""Runs the migrations: on the connection that `sinks.migrate` hands over, or, for `alembic` by
hand, on ORDERS_POSTGRES.

By hand, `-x partition_by=region` and `-x partitions=16` say what `orders init` would say.
"""

from __future__ import annotations

import asyncio
from typing import cast

from alembic import context
from sqlalchemy import Connection

from settings import get_settings
from sinks.migrate import Alembic, connect
from sinks.schema import PartitionBy, build_metadata


def layout() -> tuple[PartitionBy, int]:
    """How the tables are to be partitioned: by which column, and into how many."""
    given = context.get_x_argument(as_dictionary=True)
    attributes = context.config.attributes
    by = attributes.get("partition_by") or given.get("partition_by", "user_id")
    count = attributes.get("partitions") or int(
        cast(str, given.get("partitions", get_settings().postgres_partitions))
    )
    return cast(PartitionBy, by), count


def run(connection: Connection) -> None:
    by, count = layout()
    context.config.attributes.update(partition_by=by, partitions=count)
    context.configure(
        connection=connection, target_metadata=build_metadata(by), **Alembic.for_connection(connection)
    )
    with context.begin_transaction():
        context.run_migrations()


async def by_hand() -> None:
    async with connect(get_settings()) as connection:
        await connection.run_sync(run)


def print_sql() -> None:
    by, count = layout()
    context.config.attributes.update(partition_by=by, partitions=count)
    context.configure(dialect_name="postgresql", literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    print_sql()
elif (given := context.config.attributes.get("connection")) is not None:
    run(given)
else:
    asyncio.run(by_hand())
