"""What Citus asks of tables that are distributed by user_id (docs/scaling.md), asked of the declaration
that the database equals.
"""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from sinks.postgres import statement
from sinks.schema import DIALECT, TABLES, build_metadata, build_views

DISTRIBUTED_BY = "user_id"
METADATA = build_metadata("user_id")
METADATA.remove(METADATA.tables["orders_bulk_job"])  # a row a job: it stays on the coordinator


def broken_rules(metadata: sa.MetaData) -> list[str]:
    """Each rule that the tables break.
    Citus refuses to distribute the table, or a query would have to move rows between nodes.
    """
    broken: list[str] = []
    types = {
        str(table.c[DISTRIBUTED_BY].type) for table in metadata.tables.values() if DISTRIBUTED_BY in table.c
    }
    if len(types) != 1:
        broken.append(f"co-located tables need one type of {DISTRIBUTED_BY}, not {sorted(types)}")
    for table in metadata.tables.values():
        if DISTRIBUTED_BY not in table.c:
            broken.append(f"{table.name} has no {DISTRIBUTED_BY}")
            continue
        if table.c[DISTRIBUTED_BY].nullable:
            broken.append(f"{table.name}.{DISTRIBUTED_BY} may be null")
        unique = [
            c for c in table.constraints if isinstance(c, sa.PrimaryKeyConstraint | sa.UniqueConstraint)
        ]
        keys = [(str(c.name), {column.name for column in c.columns}) for c in unique]
        keys += [
            (str(index.name), {column.name for column in index.columns})
            for index in table.indexes
            if index.unique
        ]
        broken += [
            f"{name} lacks {DISTRIBUTED_BY}" for name, columns in keys if DISTRIBUTED_BY not in columns
        ]
        for reference in table.foreign_key_constraints:
            pairs = [
                (element.parent.name, element.target_fullname.rpartition(".")[2])
                for element in reference.elements
            ]
            if (DISTRIBUTED_BY, DISTRIBUTED_BY) not in pairs:
                broken.append(f"{reference.name} doesn't lead from {DISTRIBUTED_BY} to {DISTRIBUTED_BY}")
    return broken


def test_the_schema_keeps_what_citus_asks_for() -> None:
    assert set(METADATA.tables) == set(TABLES)
    assert broken_rules(METADATA) == []


def test_partitioned_by_region_it_does_not() -> None:
    """Which shows that the rules can be broken: then the keys hold the region in the user's place."""
    assert {f"{name}_pkey lacks user_id" for name in TABLES} <= set(broken_rules(build_metadata("region")))


def _another(*parts: sa.schema.SchemaItem) -> sa.MetaData:
    metadata = build_metadata("user_id")
    sa.Table("another", metadata, *parts)
    return metadata


@pytest.mark.parametrize(
    ("parts", "rule"),
    [
        ((sa.Column("id", sa.Uuid, primary_key=True),), "another has no user_id"),
        ((sa.Column("user_id", sa.Uuid),), "another.user_id may be null"),
        (
            (sa.Column("user_id", sa.Text, primary_key=True),),
            "co-located tables need one type of user_id, not ['CHAR(32)', 'TEXT']",
        ),
        (
            (
                sa.Column("user_id", sa.Uuid, primary_key=True),
                sa.Column("n", sa.Integer),
                sa.UniqueConstraint("n", name="numbers"),
            ),
            "numbers lacks user_id",
        ),
        (
            (
                sa.Column("user_id", sa.Uuid, primary_key=True),
                sa.Column("n", sa.Integer),
                sa.Index("numbers", "n", unique=True),
            ),
            "numbers lacks user_id",
        ),
        (
            (
                sa.Column("user_id", sa.Uuid, primary_key=True),
                sa.Column("order_id", sa.Uuid),
                sa.ForeignKeyConstraint(["order_id"], ["orders_order.id"], name="whose"),
            ),
            "whose doesn't lead from user_id to user_id",
        ),
    ],
)
def test_each_rule_is_seen(parts: tuple[sa.schema.SchemaItem, ...], rule: str) -> None:
    assert rule in broken_rules(_another(*parts))


def test_the_upsert_never_changes_the_user_and_names_it_in_its_conflict() -> None:
    """Citus refuses to change a row's distribution column, and to look for a conflict on another node."""
    for name in TABLES:
        sql = statement((name,))
        _, conflict, changes = sql.partition(" ON CONFLICT ")
        assert conflict
        assert DISTRIBUTED_BY in changes[: changes.index(")")]
        assert f"{DISTRIBUTED_BY} = excluded" not in changes


def test_views_join_by_the_user() -> None:
    """Then each node joins what it has."""
    for name, select in build_views(METADATA).items():
        sql = str(select.compile(dialect=DIALECT))
        # Every join of this schema names the region.
        assert sql.count("user_id = ") == sql.count("region = ") >= 3, name
