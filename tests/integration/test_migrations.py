"""Migrations make what sinks.schema declares, by either column; what Alembic's comparison can't see
is read from the catalogue.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
import pytest_asyncio
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from operations.postgres import regions
from settings import Settings
from sinks import migrate
from sinks.migrate import Alembic, Layout, SchemaMismatch
from sinks.schema import (
    DIALECT,
    ENUMS,
    FILLFACTOR,
    PARTITION_COLUMNS,
    TABLES,
    VIEWS,
    PartitionBy,
    build_metadata,
    build_views,
)
from tests.contract.places import drop_database, new_database
from tests.servers import as_admin
from tests.stackfixture import Servers, execute


@pytest_asyncio.fixture
async def empty(stack: Servers) -> AsyncIterator[Settings]:
    """A database without tables."""
    settings = await new_database(stack, postgres_partitions=3)
    yield settings
    await drop_database(stack, settings)


@pytest_asyncio.fixture(params=PARTITION_COLUMNS)
async def migrated(request: pytest.FixtureRequest, empty: Settings) -> tuple[Settings, PartitionBy]:
    await migrate.upgrade(empty, request.param)
    return empty, request.param


async def rows(settings: Settings, query: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        return [tuple(row) for row in await connection.fetch(query)]
    finally:
        await connection.close()


async def differences(settings: Settings, metadata: sa.MetaData) -> list[Any]:
    async with migrate.connect(settings) as connection:
        return await connection.run_sync(
            lambda sync: compare_metadata(
                MigrationContext.configure(sync, opts=Alembic.for_connection(sync)), metadata
            )
        )


async def test_the_database_equals_the_declaration(migrated: tuple[Settings, PartitionBy]) -> None:
    settings, by = migrated
    assert await differences(settings, build_metadata(by)) == []


async def test_the_comparison_sees_what_differs(empty: Settings) -> None:
    await migrate.upgrade(empty)
    metadata = build_metadata()
    metadata.tables["orders_order"].append_column(sa.Column("more", sa.Text))
    metadata.tables["orders_return"].c.reason.type = sa.Integer()
    differing = str(await differences(empty, metadata))
    assert "add_column" in differing
    assert "modify_type" in differing


async def test_keys_checks_and_foreign_keys_equal_the_declaration(
    migrated: tuple[Settings, PartitionBy],
) -> None:
    settings, by = migrated
    constraints = await rows(
        settings,
        "SELECT conrelid::regclass::text, conname, contype::text, conenforced,"
        " ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY k(number, place)"
        "       JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY place)"
        " FROM pg_constraint WHERE conparentid = 0 AND contype IN ('p', 'c', 'f')"
        f" AND conrelid::regclass::text = ANY('{{{','.join(build_metadata(by).tables)}}}')",
    )
    declared = [
        (
            table.name,
            constraint.name,
            kind,
            constraint.info.get("enforced", True),
            [column.name for column in constraint.columns],
        )
        for table in build_metadata(by).tables.values()
        for constraint in table.constraints
        for type_, kind in ((sa.PrimaryKeyConstraint, "p"), (sa.ForeignKeyConstraint, "f"))
        if isinstance(constraint, type_)
    ]
    assert sorted(row for row in constraints if row[2] != "c") == sorted(declared)
    checks = {
        c.name
        for table in build_metadata(by).tables.values()
        for c in table.constraints
        if isinstance(c, sa.CheckConstraint)
    }
    assert {row[1] for row in constraints if row[2] == "c"} == checks


async def test_views_equal_the_declaration(migrated: tuple[Settings, PartitionBy]) -> None:
    settings, by = migrated
    assert await rows(settings, "SELECT viewname FROM pg_views WHERE schemaname = 'public' ORDER BY 1") == [
        (name,) for name in VIEWS
    ]
    for name, select in build_views(build_metadata(by)).items():
        declared = select.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
        await rows(settings, f"CREATE VIEW declared AS {declared}")
        ((actual, wanted),) = await rows(
            settings, f"SELECT pg_get_viewdef('{name}'), pg_get_viewdef('declared')"
        )
        assert actual == wanted
        await rows(settings, "DROP VIEW declared")


async def test_views_are_added_to_a_database_with_orders_and_taken_away_again(
    migrated: tuple[Settings, PartitionBy],
) -> None:
    settings, by = migrated
    config = partial(Alembic.config, partition_by=by, partitions=3)
    views = "SELECT count(*) FROM pg_views WHERE schemaname = 'public'"
    async with migrate.connect(settings) as connection:
        await connection.run_sync(lambda sync: command.downgrade(config(connection=sync), "0001"))
    assert await rows(settings, views) == [(0,)]
    with pytest.raises(SchemaMismatch, match="at revision 0001, this version of the program needs"):
        await migrate.check(settings)
    lacking = r"can't write: it lacks orders_order.tax_amount, .* and \d+ more; run orders init of the newest"
    with pytest.raises(SchemaMismatch, match=lacking):
        await migrate.fits(settings)
    await rows(
        settings,
        "INSERT INTO orders_order SELECT gen_random_uuid(), gen_random_uuid(), 'SP', 'pending', 'BRL', 1, 0,"
        " now(), now(), 1 FROM generate_series(1, 5)",
    )
    await migrate.upgrade(settings, by)
    await migrate.check(settings)
    assert await rows(settings, views) == [(len(VIEWS),)]
    assert await rows(settings, "SELECT count(*), sum(items) FROM orders_summary") == [(5, 0)]


async def to(settings: Settings, by: PartitionBy, revision: str) -> None:
    """Take the schema back to a revision."""
    config = partial(Alembic.config, partition_by=by, partitions=3)
    async with migrate.connect(settings) as connection:
        await connection.run_sync(lambda sync: command.downgrade(config(connection=sync), revision))


BEFORE_SUBORDERS = "0005"
VIEWED = (
    "order_id, seller_id, user_id, region, order_status, currency, items, units, items_amount,"
    " shipping_amount, parcels, parcels_in_transit, parcels_delivered, parcels_returned, returns,"
    " units_returned, created_at, updated_at"
)


async def test_the_view_of_suborders_becomes_a_table_beside_the_rows_that_are_there(
    migrated: tuple[Settings, PartitionBy],
) -> None:
    settings, by = migrated
    if by == "region":
        await regions.add(settings, ["SP", "Côte d'Azur"])
    role = f"reader_{uuid4().hex}"
    administrator = as_admin(settings.postgres)
    await execute(administrator, f"CREATE ROLE {role}")
    try:
        await to(settings, by, BEFORE_SUBORDERS)
        await rows(
            settings,
            "INSERT INTO orders_order SELECT gen_random_uuid(), gen_random_uuid(), 'SP', 'pending', 'BRL', 1,"
            " 0, now(), now(), 1 FROM generate_series(1, 5)",
        )
        await rows(settings, f"GRANT SELECT ON orders_suborder TO {role}, PUBLIC")
        await migrate.upgrade(settings, by)
        assert await differences(settings, build_metadata(by)) == []
        assert await rows(settings, "SELECT count(*), count(cart_id) FROM orders_order") == [(5, 0)]
        # What read the view reads the table, whichever of its columns it named.
        await execute(administrator, f"SET ROLE {role}; SELECT {VIEWED} FROM orders_suborder")
        parts = (
            "SELECT substr(c.relname, length('{0}') + 1), pg_get_expr(c.relpartbound, c.oid) FROM pg_inherits"
            " JOIN pg_class c ON c.oid = inhrelid WHERE inhparent = '{0}'::regclass ORDER BY 1"
        )
        of_orders = await rows(settings, parts.format("orders_order"))
        assert len(of_orders) == 3
        for table in TABLES:
            assert await rows(settings, parts.format(table)) == of_orders
    finally:
        await execute(administrator, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_what_others_made_of_the_view_is_named_and_nothing_changes(empty: Settings) -> None:
    await migrate.upgrade(empty)
    await to(empty, "user_id", BEFORE_SUBORDERS)
    await rows(empty, "CREATE VIEW theirs AS SELECT order_id FROM orders_suborder")
    with pytest.raises(SchemaMismatch, match=r"view theirs depends on view orders_suborder; nothing was"):
        await migrate.upgrade(empty)
    assert await migrate.current(empty) == BEFORE_SUBORDERS
    await rows(empty, "DROP VIEW theirs")
    await migrate.upgrade(empty)
    await migrate.check(empty)


async def test_primary_keys_as_promised(migrated: tuple[Settings, PartitionBy]) -> None:
    settings, by = migrated
    query = (
        "SELECT tablename, indexdef FROM pg_indexes WHERE indexname ~"
        " '^orders_(order|order_item|shipment|return|suborder|payment|refund|attention)_pkey$'"
    )
    keys = await rows(settings, query)
    assert {table: definition.partition("(")[2].rstrip(")") for table, definition in keys} == {
        "orders_order": f"id, {by}",
        "orders_order_item": f"id, order_id, {by}",
        "orders_shipment": f"id, order_id, {by}",
        "orders_return": f"id, order_id, {by}",
        "orders_suborder": f"id, order_id, {by}",
        "orders_payment": f"id, order_id, {by}",
        "orders_refund": f"id, order_id, {by}",
        "orders_attention": f"order_id, kind, {by}",
    }


async def test_enums_partitions_and_fillfactor(migrated: tuple[Settings, PartitionBy]) -> None:
    settings, by = migrated
    query = (
        "SELECT t.typname, e.enumlabel FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid ORDER BY"
        " e.enumsortorder"
    )
    enums = await rows(settings, query)
    assert {name: tuple(label for of, label in enums if of == name) for name, _ in enums} == ENUMS
    partitions = await rows(
        settings,
        "SELECT parent.relname, pg_get_partkeydef(parent.oid), pg_get_expr(part.relpartbound, part.oid),"
        " part.reloptions FROM pg_inherits JOIN pg_class parent ON parent.oid = inhparent JOIN pg_class part"
        " ON part.oid = inhrelid WHERE parent.relkind = 'p' ORDER BY 1, 3",
    )
    if by == "user_id":
        bounds = [f"FOR VALUES WITH (modulus 3, remainder {number})" for number in range(3)]
        assert partitions == [
            (table, "HASH (user_id)", bound, [f"fillfactor={FILLFACTOR[table]}"])
            for table in sorted(TABLES)
            for bound in bounds
        ]
    else:
        assert partitions == [
            (table, "LIST (region)", "DEFAULT", [f"fillfactor={FILLFACTOR[table]}"])
            for table in sorted(TABLES)
        ]


async def test_no_index_has_a_column_that_updates_change(migrated: tuple[Settings, PartitionBy]) -> None:
    # An update of an indexed column writes to every index of the table: 52 us a row instead of 23.
    columns = await rows(
        migrated[0],
        "SELECT DISTINCT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum ="
        " ANY(indkey) WHERE indrelid::regclass::text LIKE 'orders%'",
    )
    indexed = {name for (name,) in columns}
    assert {"id", "order_id", "user_id", "created_at", "tracking_number"} <= indexed
    assert not indexed & {
        "updated_at",
        "version",
        "status",
        "total_amount",
        "processed_at",
        "estimated_delivery",
        "carrier",
    }


async def test_again_is_harmless_also_at_the_same_time(migrated: tuple[Settings, PartitionBy]) -> None:
    settings, by = migrated
    before = await rows(settings, "SELECT oid, relname FROM pg_class ORDER BY oid")
    await asyncio.gather(migrate.upgrade(settings, by), migrate.upgrade(settings, by))
    assert await rows(settings, "SELECT oid, relname FROM pg_class ORDER BY oid") == before
    assert await migrate.current(settings) == Alembic.head()
    await migrate.check(settings)


async def test_two_at_once_on_an_empty_database(empty: Settings) -> None:
    await asyncio.gather(migrate.upgrade(empty), migrate.upgrade(empty))
    assert await migrate.layout(empty) == Layout("user_id", 3)


async def test_nothing_outside_schema_public(empty: Settings) -> None:
    query = (
        "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname NOT IN ('public', 'pg_toast') UNION ALL SELECT nspname, '' FROM pg_namespace"
    )
    before = sorted(await rows(empty, query))
    await migrate.upgrade(empty)
    assert sorted(await rows(empty, query)) == before


async def test_another_layout_than_there_is_says_what_to_do(empty: Settings) -> None:
    await migrate.upgrade(empty)
    with pytest.raises(
        SchemaMismatch, match=r"by user_id, not by region; run orders init --partition-by user_id"
    ):
        await migrate.upgrade(empty, "region")
    with pytest.raises(SchemaMismatch, match=r"3 hash partitions, not 5; set ORDERS_POSTGRES_PARTITIONS=3"):
        await migrate.upgrade(empty.model_copy(update={"postgres_partitions": 5}))
    with pytest.raises(ValueError, match="choose one of user_id, region"):
        await migrate.upgrade(empty, "status")


async def test_somebody_elses_tables_are_left_alone(empty: Settings) -> None:
    await rows(empty, "CREATE TABLE orders_order (id int)")
    with pytest.raises(
        SchemaMismatch, match="orders_order exists in schema public but wasn't made by orders init"
    ):
        await migrate.upgrade(empty)
    assert await rows(empty, "SELECT relname FROM pg_class WHERE relname LIKE 'orders%'") == [
        ("orders_order",)
    ]


REST = "SELECT oid, relname FROM pg_class WHERE relname !~ '^pg_' ORDER BY oid"


@pytest.mark.parametrize(
    ("drops", "what"),
    [
        ("DROP TABLE orders_return", "it lacks orders_return"),
        ("DROP TABLE orders_shipment, orders_bulk_job", "it lacks orders_shipment, orders_bulk_job"),
        ("ALTER TABLE orders_order DROP tax_amount", "it lacks orders_order.tax_amount"),
        ("DROP TABLE orders_order", "orders_order isn't there"),
        (
            "DROP TABLE orders_order, orders_order_item, orders_shipment, orders_return",
            "orders_order isn't there",
        ),
        ("DROP TABLE alembic_version", "alembic_version, which tells the schema's revision, isn't there"),
        # Types are left of it.
        (
            f"DROP TABLE alembic_version, {', '.join(TABLES)}",
            'type "orders_order_status" already exists',
        ),
    ],
)
async def test_a_part_of_the_schema_that_was_dropped_is_named(empty: Settings, drops: str, what: str) -> None:
    await migrate.upgrade(empty)
    await rows(empty, f"{drops} CASCADE")
    left = await rows(empty, REST)
    with pytest.raises(SchemaMismatch, match="a part of the schema was dropped: ") as caught:
        await migrate.upgrade(empty)
    assert what in caught.value.message
    assert caught.value.remedy.endswith("run orders init and orders repair --rows")
    assert await rows(empty, REST) == left
    if "alembic_version" not in drops:  # else nothing tells that it was there
        with pytest.raises(SchemaMismatch, match="a part of the schema was dropped: "):
            await migrate.fits(empty)
    empty_again = "DROP SCHEMA public CASCADE; CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO public"
    await execute(as_admin(empty.postgres), empty_again)  # as who owns the schema
    await migrate.upgrade(empty)
    await migrate.fits(empty)


async def test_views_and_indexes_that_were_dropped_are_named_with_what_makes_them_again(
    migrated: tuple[Settings, PartitionBy],
) -> None:
    settings, by = migrated
    assert await migrate.dropped(settings, by) == []
    indexes = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1"
    before = await rows(settings, indexes), await rows(settings, "SELECT pg_get_viewdef('orders_summary')")
    mine = [
        index.name
        for table in build_metadata(by).tables.values()
        for index in sorted(table.indexes, key=lambda each: str(each.name))
    ]
    await rows(settings, "DROP VIEW orders_summary")
    await rows(settings, f"DROP INDEX {', '.join(map(str, mine))}")
    lacking = await migrate.dropped(settings, by)
    assert [each.name for each in lacking] == [*sorted(map(str, mine)), "orders_summary"]
    await migrate.upgrade(settings, by)  # doesn't mind
    await migrate.fits(settings)
    for each in lacking:
        assert "\n" not in each.statement
        await rows(settings, each.statement)
    assert before == (
        await rows(settings, indexes),
        await rows(settings, "SELECT pg_get_viewdef('orders_summary')"),
    )


async def test_a_migration_that_does_not_find_a_table_says_so(empty: Settings) -> None:
    await migrate.upgrade(empty)
    async with migrate.connect(empty) as connection:
        await connection.run_sync(
            lambda sync: command.downgrade(
                Alembic.config(connection=sync, partition_by="user_id", partitions=3), "0003"
            )
        )
    await rows(empty, "DROP TABLE orders_order_item CASCADE")
    with pytest.raises(SchemaMismatch, match=r'dropped: relation "public.orders_order_item" does not exist'):
        await migrate.upgrade(empty)
    assert await migrate.current(empty) == "0003"


async def test_check_says_what_is_missing(empty: Settings) -> None:
    assert await migrate.current(empty) is None
    assert await migrate.layout(empty) is None
    with pytest.raises(SchemaMismatch, match="no tables yet; run orders init"):
        await migrate.check(empty)
    await migrate.upgrade(empty)
    await rows(empty, "UPDATE alembic_version SET version_num = '0000'")
    with pytest.raises(SchemaMismatch, match="at revision 0000"):
        await migrate.check(empty)


async def test_a_later_schema_is_written_to_as_long_as_nothing_unknown_is_asked_for(empty: Settings) -> None:
    await migrate.upgrade(empty)
    await rows(empty, "UPDATE alembic_version SET version_num = '9999'")
    await rows(empty, "ALTER TABLE orders_order ADD later integer, ADD given integer NOT NULL DEFAULT 0")
    before = await rows(empty, "SELECT oid, relname FROM pg_class ORDER BY oid")
    await migrate.fits(empty)
    await migrate.upgrade(empty)  # who goes back runs orders init, too
    assert await rows(empty, "SELECT oid, relname FROM pg_class ORDER BY oid") == before
    assert await migrate.current(empty) == "9999"
    for change, said in (
        ("ALTER TABLE orders_order ALTER later SET NOT NULL", "it asks for orders_order.later;"),
        ("ALTER TABLE orders_return DROP reason", "it lacks orders_return.reason, asks for"),
        (
            "ALTER TYPE orders_return_status RENAME VALUE 'rejected' TO 'refused'",
            "lacks rejected in orders_ret",
        ),
    ):
        await rows(empty, change)
        for work in (migrate.fits, migrate.upgrade):
            with pytest.raises(SchemaMismatch, match=said):
                await work(empty)


async def test_down_again_leaves_nothing(migrated: tuple[Settings, PartitionBy]) -> None:
    settings, by = migrated
    async with migrate.connect(settings) as connection:
        await connection.run_sync(
            lambda sync: command.downgrade(
                Alembic.config(connection=sync, partition_by=by, partitions=3), "base"
            )
        )
    left = (
        "SELECT relname FROM pg_class WHERE relname LIKE 'orders%' UNION ALL SELECT typname FROM pg_type"
        " WHERE typname LIKE '%orders%'"
    )
    assert await rows(settings, left) == []


async def test_as_a_script_for_the_one_who_runs_it_by_hand(
    empty: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    command.upgrade(Alembic.config(partition_by="user_id", partitions=3), "head", sql=True)
    await rows_of_script(empty, capsys.readouterr().out)
    assert await differences(empty, build_metadata()) == []
    await migrate.check(empty)


async def rows_of_script(settings: Settings, script: str) -> None:
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        await connection.execute(script)
    finally:
        await connection.close()
