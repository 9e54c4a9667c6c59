"""Rows and tables agree by name: what the domain computes, the sink's statement and the
declaration of the tables.
"""

from __future__ import annotations

import pytest
from msgspec import Struct, structs

from domain.shapes import ReturnRow
from sinks import arrays
from sinks.postgres import check_columns, columns_of, given_rows, statement
from sinks.rows import ROWS, RowBatch
from sinks.schema import TABLES, build_metadata
from tests.unit.builders import ANNA, ORDER


class Turned(Struct):
    """A row of orders_return whose fields stand in another order."""

    version: int
    id: str


class Short(Struct):
    """A row that lacks columns, and has one that the table hasn't."""

    id: str
    colour: str


def test_each_table_has_a_row_with_its_columns() -> None:
    tables = build_metadata().tables
    assert tuple(ROWS) == TABLES
    for name, row in ROWS.items():
        assert sorted(row.__struct_fields__) == sorted(tables[name].columns.keys())
    check_columns()


def test_a_worker_does_not_start_when_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "orders_return", Short)
    with pytest.raises(
        TypeError, match=r"Short and the columns of orders_return differ: colour, created_at, .*, version"
    ):
        check_columns()


def test_the_statement_takes_a_rows_fields_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ROWS, "orders_return", Turned)
    select = given_rows(build_metadata().tables["orders_return"], 3)
    assert select == (
        "SELECT version::INTEGER, id::UUID"
        " FROM (SELECT unnest($3::int4[]) AS version, unnest($4::uuid[]) AS id) new"
    )
    assert (
        "INSERT INTO public.orders_return AS old (version, id) SELECT version::INTEGER, id::UUID"
        in statement.__wrapped__(TABLES)
    )


def test_columns_come_in_the_order_of_the_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "_native", None)
    row = ReturnRow(
        ANNA, ORDER, "user", "SP", "item", 2, 'too "small"', "processed", None, "first", "last", 3
    )
    packed = columns_of("orders_return", [row, structs.replace(row, quantity=7)])
    columns = dict(zip(ReturnRow.__struct_fields__, packed, strict=True))
    assert (columns["quantity"], columns["processed_at"]) == ("{2,7}", "{NULL,NULL}")
    assert columns["reason"] == r'{"too \"small\"","too \"small\""}'


def test_a_batch_names_the_tables_that_it_has_rows_for() -> None:
    row = ReturnRow(ANNA, ORDER, "user", "SP", "item", 2, "reason", "processed", None, "first", "last", 3)
    assert RowBatch(returns=[row]).by_table() == {"orders_return": [row]}
    assert RowBatch().by_table() == {}
