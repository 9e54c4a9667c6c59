"""Sizes and waste of the tables, partition by partition, from Postgres's own
statistics; nothing is scanned.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from operations.postgres import ddl
from settings import Settings
from sinks.migrate import Layout, current, layout, no_tables
from sinks.schema import TABLES


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition of one table. Sizes in bytes."""

    table: str
    name: str
    bound: str
    """As Postgres says it: FOR VALUES ..., or DEFAULT."""
    rows: int
    dead_rows: int
    """Estimates, kept by Postgres as rows are written."""
    table_bytes: int
    index_bytes: int
    """Without indexes, and the indexes."""
    bloat_bytes: int | None
    """What the rows don't need, estimated from their number and average width; None until
    the partition was analyzed.
    """
    vacuumed_at: datetime | None
    """The last vacuum, by Postgres itself or by hand; None: never."""


@dataclass(frozen=True, slots=True)
class Overview:
    """The tables of a database."""

    layout: Layout
    revision: str | None
    database_bytes: int
    partitions: list[Partition]
    """In the order of schema.TABLES, each table's by name, the default partition last."""


# A row takes its item pointer (4 bytes), its header (24, or 32 where columns are null) and its columns,
# aligned to 8; a page holds 8,168 bytes, of which writing leaves some free (fillfactor). What else there is,
# is bloat: dead rows, and room that vacuum has freed and nobody has taken yet.
_PARTITIONS = """
    SELECT parent.relname, part.relname, pg_get_expr(part.relpartbound, part.oid),
           coalesce(nullif(stat.n_live_tup, 0), greatest(part.reltuples, 0))::bigint,
           coalesce(stat.n_dead_tup, 0),
           pg_table_size(part.oid), pg_indexes_size(part.oid),
           CASE WHEN width.bytes IS NOT NULL THEN greatest(0, pg_relation_size(part.oid) - 8192 * ceil(
               coalesce(nullif(stat.n_live_tup, 0), greatest(part.reltuples, 0))
               / floor(8168 * room.fillfactor / (4 + width.header + ceil(width.bytes / 8.0) * 8))
           ))::bigint END,
           greatest(stat.last_autovacuum, stat.last_vacuum)
    FROM unnest($1::text[]) WITH ORDINALITY AS named(name, place)
    JOIN pg_class parent ON parent.oid = to_regclass('public.' || named.name)
    JOIN pg_inherits ON inhparent = parent.oid
    JOIN pg_class part ON part.oid = inhrelid
    LEFT JOIN pg_stat_all_tables stat ON stat.relid = part.oid
    CROSS JOIN LATERAL (
        SELECT sum((1 - null_frac) * avg_width) AS bytes,
               CASE WHEN max(null_frac) > 0 THEN 32 ELSE 24 END AS header
        FROM pg_stats WHERE schemaname = 'public' AND tablename = part.relname
    ) width
    CROSS JOIN LATERAL (
        SELECT coalesce(max(option_value::numeric), 100) / 100 AS fillfactor
        FROM pg_options_to_table(part.reloptions) WHERE option_name = 'fillfactor'
    ) room
    ORDER BY named.place, part.relname LIKE '%\\_default', length(part.relname), part.relname"""


async def overview(settings: Settings) -> Overview:
    """Return the partitions now.

    Blocks for some milliseconds. Raises SchemaMismatch without our tables, and what asyncpg raises.
    """
    tables = await layout(settings)
    if tables is None:
        raise no_tables()
    revision = await current(settings)
    async with ddl.connect(settings) as connection:
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
        return Overview(
            tables,
            revision,
            size,
            [Partition(*row) for row in await connection.fetch(_PARTITIONS, list(TABLES))],
        )
