"""Partitions for single regions, added while workers write.

Until it has a partition of its own, a region's rows lie in the default partition of each table. PostgreSQL 18
can't split a partition online, so adding a region moves its rows in one transaction. What blocks whom:

- writers of the tables wait from the first row moved to the commit, so for as long as this region's rows
  take. A worker's batch that waits longer than its statement timeout is tried again; nothing is lost.
- readers go on meanwhile. They wait only at the end, while Postgres looks through what is left in the
  default partitions (ATTACH).

A region that has no rows yet costs only the looking through: add it before its first order, and while the
default partitions are small.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from operations.postgres import ddl
from settings import Settings
from sinks.migrate import LOCK, SchemaMismatch, check, layout
from sinks.schema import FILLFACTOR, TABLES, build_metadata

_SLUG = 30
"""Bytes of a table's name in Postgres, of which the longest table's name and a prefix take 20."""


@dataclass(frozen=True, slots=True)
class Region:
    """One region's own partitions."""

    region: str
    created: bool
    """Whether this call made them; False: they were there."""
    moved: dict[str, int]
    """Table -> rows moved out of the default partition."""
    writers_waited: float
    readers_waited: float
    """Seconds that writers had to wait, and readers of the default partition."""


def partition_name(table: str, region: str) -> str:
    """The partition of `table` for one region: readable where the region is (orders_order_r_sp),
    else with a part of its hash.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", region.lower())[:_SLUG].strip("_")
    plain = slug and slug.upper() == region
    return "_".join(
        filter(None, (table, "r", slug, "" if plain else hashlib.sha256(region.encode()).hexdigest()[:8]))
    )


async def _require_regions(settings: Settings) -> None:
    await check(settings)
    columns = await layout(settings)
    if columns is None or columns.partition_by != "region":
        raise SchemaMismatch(
            "the tables are partitioned by user_id",
            "choose regions at the start: orders init --partition-by region on an empty database",
        )


async def listed(settings: Settings) -> dict[str, int | None]:
    """Region -> its orders in the default partition, or None for a region with partitions of its own.
    Counts by reading the default partition of orders_order. Raises SchemaMismatch when the tables aren't
    partitioned by region; blocks.
    """
    await _require_regions(settings)
    async with ddl.connect(settings) as connection:
        own: dict[str, int | None] = dict.fromkeys(await _with_partition(connection, "orders_order"))
        default = await connection.fetch("SELECT region, count(*) FROM orders_order_default GROUP BY region")
        return own | {row[0]: row[1] for row in default}


async def _with_partition(connection: ddl.Connection, table: str) -> list[str]:
    """The regions that have a partition of this table."""
    bounds = await ddl.fetch_values(
        connection,
        "SELECT pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid"
        " WHERE inhparent = to_regclass($1) ORDER BY c.relname",
        f"public.{table}",
    )
    return [
        value.replace("''", "'")
        for bound in bounds
        if bound != "DEFAULT"
        for value in re.findall(r"'((?:[^']|'')*)'", bound)
    ]


async def add(
    settings: Settings, regions: Sequence[str], timeout: float = 60.0, say: ddl.Say = lambda _: None
) -> list[Region]:
    """Give each region a partition of each table, with its rows, in one transaction for each region. Again is
    harmless.

    Blocks while rows move. Raises SchemaMismatch if the tables aren't partitioned by region; ddl.Busy if a
    region doesn't get its locks (those before it are done); and what asyncpg raises.
    """
    await _require_regions(settings)
    async with ddl.connect(settings) as connection:
        return [await _add(connection, region, timeout, say) for region in dict.fromkeys(regions)]


async def _add(connection: ddl.Connection, region: str, timeout: float, say: ddl.Say) -> Region:
    metadata = build_metadata("region")

    async def work() -> Region:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        missing = [table for table in TABLES if region not in await _with_partition(connection, table)]
        if not missing:
            return Region(region, False, {}, 0.0, 0.0)
        for table in missing:
            await connection.execute(
                f"CREATE TABLE {partition_name(table, region)} (LIKE {table} INCLUDING ALL) WITH (fillfactor"
                f" = {FILLFACTOR[table]})"
            )
        # In the order in which workers lock them, or both would wait for each other. This mode
        # shuts writers out, so that none puts a row into the default partition that has just been
        # moved out of it; readers go on.
        await connection.execute(f"LOCK TABLE {', '.join(TABLES)} IN SHARE ROW EXCLUSIVE MODE")
        say(f"region {region!r}: moving its rows; workers wait meanwhile")
        begun, moved = time.monotonic(), {}
        for table in missing:
            columns = ", ".join(column.name for column in metadata.tables[table].columns)
            done = await connection.execute(
                f"WITH gone AS (DELETE FROM {table}_default WHERE region = $1 RETURNING {columns})"
                f" INSERT INTO {partition_name(table, region)} ({columns}) SELECT {columns} FROM gone",
                region,
            )
            moved[table] = int(done.rpartition(" ")[2])
        shut = time.monotonic()
        for table in missing:
            await connection.execute(
                f"ALTER TABLE {table} ATTACH PARTITION {partition_name(table, region)} FOR VALUES IN"
                f" ({ddl.literal(region)})"
            )
        ended = time.monotonic()
        return Region(region, True, moved, ended - begun, ended - shut)

    added = await ddl.in_short_waits(connection, work, timeout, say)
    for table in added.moved:
        # The planner knows nothing of rows that were moved in until somebody looks at them.
        await connection.execute(f"ANALYZE {partition_name(table, region)}")
    return added
