"""Rows of the four tables without any state: what each event knows of a row, and how the database merges it.

A row is merged column by column (the least time, the greatest, the kinds of facts that were seen), so it ends
the same whatever the order in which events come, and however often. Status and version are generated columns:
they follow from the kinds of facts. That is exact as long as an order has one payment, one parcel and one
return of each stage, which is so in the benchmark's workload; with more of them it is not.

Only msgspec is needed besides the standard library. Nothing here does I/O.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import msgspec

TOPICS: Final = ("order.created", "order.paid", "shipment.updated", "order.returned")
TABLES: Final = ("orders_order", "orders_order_item", "orders_shipment", "orders_return")

CREATED, PAID = 1, 2
MOVED: Final = {"pending": 4, "in_transit": 8, "delivered": 16, "returned": 32}
SENT_BACK: Final = {"requested": 64, "processed": 128, "rejected": 256}
"""Kinds of facts, one bit each. A version counts them."""

RANKS: Final = {"pending": 0, "in_transit": 1, "delivered": 2, "returned": 3}


class Column(NamedTuple):
    """A column of a row as it is sent. `merge`: what becomes of it where the row is there already.

    key: nothing, it names the row. keep: what is there stays, unless it is NULL. wins: that of the row with
    the greater rank. least, greatest, either (bits): as they say.
    """

    name: str
    type: str
    merge: str


_ORDER_STATUS: Final = (
    f"CASE WHEN units_returned >= units OR facts & {MOVED['returned']} > 0 THEN 'returned'"
    f" WHEN facts & {MOVED['delivered']} > 0 THEN 'delivered'"
    f" WHEN facts & {MOVED['in_transit']} > 0 THEN 'shipped'"
    f" WHEN facts & {PAID} > 0 THEN 'confirmed' ELSE 'pending' END"
)
_TIMES: Final = (
    Column("created_at", "timestamptz", "least"),
    Column("updated_at", "timestamptz", "greatest"),
)
_FACTS: Final = Column("facts", "int", "either")

COLUMNS: Final[dict[str, tuple[Column, ...]]] = {
    "orders_order": (
        Column("id", "uuid", "key"),
        Column("user_id", "uuid", "keep"),
        Column("region", "text", "keep"),
        Column("currency", "text", "keep"),
        Column("total_amount", "numeric(20,4)", "keep"),
        Column("discount_amount", "numeric(20,4)", "keep"),
        Column("units", "int", "keep"),
        Column("units_returned", "int", "greatest"),
        *_TIMES,
        _FACTS,
    ),
    "orders_order_item": (
        Column("id", "uuid", "key"),
        Column("order_id", "uuid", "keep"),
        Column("user_id", "uuid", "keep"),
        Column("region", "text", "keep"),
        Column("product_id", "uuid", "keep"),
        Column("seller_id", "uuid", "keep"),
        Column("warehouse_id", "uuid", "keep"),
        Column("sku", "text", "keep"),
        Column("quantity", "int", "keep"),
        Column("price", "numeric(20,4)", "keep"),
        Column("shipping_amount", "numeric(20,4)", "keep"),
        *_TIMES,
    ),
    "orders_shipment": (
        Column("id", "uuid", "key"),
        Column("order_id", "uuid", "keep"),
        Column("seller_id", "uuid", "wins"),
        Column("warehouse_id", "uuid", "wins"),
        Column("carrier", "text", "wins"),
        Column("tracking_number", "text", "wins"),
        Column("status", "text", "wins"),
        Column("estimated_delivery", "timestamptz", "wins"),
        Column("rank", "int", "greatest"),
        *_TIMES,
        _FACTS,
    ),
    "orders_return": (
        Column("id", "uuid", "key"),
        Column("order_id", "uuid", "keep"),
        Column("order_item_id", "uuid", "wins"),
        Column("quantity", "int", "wins"),
        Column("reason", "text", "wins"),
        Column("status", "text", "wins"),
        Column("processed_at", "timestamptz", "wins"),
        Column("rank", "int", "greatest"),
        *_TIMES,
        _FACTS,
    ),
}
"""Table -> its columns, in the order of a row's values."""

_VERSION: Final = "bit_count(facts::bit(9))::int"
GENERATED: Final[dict[str, dict[str, str]]] = {
    "orders_order": {"status": _ORDER_STATUS, "version": _VERSION},
    "orders_order_item": {"version": "1"},
    "orders_shipment": {"version": _VERSION},
    "orders_return": {"version": _VERSION},
}
_GENERATED_TYPE: Final = {"status": "text", "version": "int"}
_FILLFACTOR: Final = {"orders_order": 50, "orders_order_item": 80, "orders_shipment": 60, "orders_return": 60}
_INDEXES: Final = (
    "CREATE INDEX ON {}.orders_order (user_id, created_at DESC)",
    "CREATE INDEX ON {}.orders_order_item (order_id)",
    "CREATE INDEX ON {}.orders_order_item (seller_id, created_at DESC)",
    "CREATE INDEX ON {}.orders_shipment (order_id)",
    "CREATE INDEX ON {}.orders_shipment USING hash (tracking_number) WHERE tracking_number IS NOT NULL",
    "CREATE INDEX ON {}.orders_return (order_id)",
)
"""Both as orders-stream has them on the same columns."""


def definitions(schema: str) -> list[str]:
    """The statements that make the tables in a schema of their own. Pure."""
    statements = [f"CREATE SCHEMA {schema}"]
    for table, columns in COLUMNS.items():
        lines = [f"{column.name} {column.type}" for column in columns]
        lines += [
            f"{name} {_GENERATED_TYPE[name]} GENERATED ALWAYS AS ({expression}) STORED"
            for name, expression in GENERATED[table].items()
        ]
        lines.append("PRIMARY KEY (id)")
        room = f" WITH (fillfactor = {_FILLFACTOR[table]})"
        statements.append(f"CREATE TABLE {schema}.{table} ({', '.join(lines)}){room}")
    return statements + [index.format(schema) for index in _INDEXES]


def merged(column: Column) -> str:
    """What a column holds after another row came for its row: SQL, of `old` and `excluded`. Pure."""
    name = column.name
    match column.merge:
        case "keep":
            return f"coalesce(old.{name}, excluded.{name})"
        case "wins":
            return f"CASE WHEN excluded.rank > old.rank THEN excluded.{name} ELSE old.{name} END"
        case "either":
            return f"old.{name} | excluded.{name}"
        case _:
            return f"{column.merge}(old.{name}, excluded.{name})"


def statement(schema: str, parameter: str = "${}") -> str:
    """The one statement that writes a batch. Its parameters are those of Batch.columns, table by table. Pure.

    One statement is one transaction and one round trip. Each column is one JSON array, which takes the least
    time on both sides (sinks.postgres has the measurements).
    """
    parts, number = [], 0
    for table, columns in COLUMNS.items():
        names = ", ".join(column.name for column in columns)
        values = ", ".join(f"{column.name}::{column.type}" for column in columns)
        arrays = []
        for _ in columns:
            number += 1
            arrays.append(f"json_array_elements_text({parameter.format(number)}::text::json)")
        action = "NOTHING"
        if table != "orders_order_item":  # whose only fact is order.created
            changes = [f"{column.name} = {merged(column)}" for column in columns if column.merge != "key"]
            action = f"UPDATE SET {', '.join(changes)}"
        parts.append(
            f"{table}_ AS (INSERT INTO {schema}.{table} AS old ({names}) SELECT {values}"
            f" FROM ROWS FROM ({', '.join(arrays)}) new({names}) ON CONFLICT (id) DO {action})"
        )
    return f"WITH {', '.join(parts)} SELECT 1"


class _Line(msgspec.Struct, gc=False):
    item_id: str
    product_id: str
    seller_id: str
    sku: str
    quantity: int
    price: str
    warehouse_id: str | None = None
    shipping_amount: str = "0"


class _Created(msgspec.Struct, gc=False):
    order_id: str
    user_id: str
    currency: str
    total_amount: str
    items: list[_Line]
    region: str = ""
    discount_amount: str = "0"


class _Paid(msgspec.Struct, gc=False):
    order_id: str


class _Scan(msgspec.Struct, gc=False):
    order_id: str
    shipment_id: str
    seller_id: str
    status: str
    warehouse_id: str | None = None
    carrier: str | None = None
    tracking_number: str | None = None
    estimated_delivery: str | None = None


class _Return(msgspec.Struct, gc=False):
    order_id: str
    return_id: str
    item_id: str
    reason: str
    status: str
    quantity: int
    processed_at: str | None = None


_created: Final = msgspec.json.Decoder(_Created).decode
_paid: Final = msgspec.json.Decoder(_Paid).decode
_scan: Final = msgspec.json.Decoder(_Scan).decode
_return: Final = msgspec.json.Decoder(_Return).decode
_encode: Final = msgspec.json.Encoder().encode

Row = list[Any]


class Batch:
    """Rows of one batch: of each primary key one, since a statement merges into a row once."""

    __slots__ = ("items", "orders", "returns", "shipments")

    def __init__(self) -> None:
        self.orders: dict[str, Row] = {}
        self.items: dict[str, Row] = {}
        self.shipments: dict[str, Row] = {}
        self.returns: dict[str, Row] = {}

    def add(self, topic: str, value: bytes, time: str) -> str:
        """Take in an event of a topic of TOPICS, and return the id of its order.

        `time` is RFC 3339 in UTC, as all are written here, so that times compare as texts. Raises
        msgspec.DecodeError for what is no such event.
        """
        match topic:
            case "order.paid":
                return self._order(_paid(value).order_id, PAID, time)
            case "shipment.updated":
                return self._shipment(_scan(value), time)
            case "order.created":
                return self._created(_created(value), time)
            case _:
                return self._return(_return(value), time)

    def columns(self) -> list[list[str]]:
        """Of each table the parameters of its columns: one JSON array each."""
        return [
            [_encode(column).decode() for column in zip(*rows, strict=True)]
            if rows
            else ["[]"] * len(columns)
            for rows, columns in zip(self._rows(), COLUMNS.values(), strict=True)
        ]

    def _rows(self) -> list[list[Row]]:
        # Sorted, so that two that write never wait for each other in a circle.
        tables = (self.orders, self.items, self.shipments, self.returns)
        return [[rows[key] for key in sorted(rows)] for rows in tables]

    def _order(self, order_id: str, fact: int, time: str, returned: int = 0) -> str:
        row = self.orders.get(order_id)
        if row is None:
            self.orders[order_id] = [order_id, *(None,) * 6, returned, time, time, fact]
        else:
            row[7] = max(row[7], returned)
            row[8] = min(row[8], time)
            row[9] = max(row[9], time)
            row[10] |= fact
        return order_id

    def _created(self, event: _Created, time: str) -> str:
        order_id = self._order(event.order_id, CREATED, time)
        units = 0
        for line in event.items:
            units += line.quantity
            self.items[line.item_id] = [
                line.item_id,
                order_id,
                event.user_id,
                event.region,
                line.product_id,
                line.seller_id,
                line.warehouse_id,
                line.sku,
                line.quantity,
                line.price,
                line.shipping_amount,
                time,
                time,
            ]
        self.orders[order_id][1:7] = (
            event.user_id,
            event.region,
            event.currency,
            event.total_amount,
            event.discount_amount,
            units,
        )
        return order_id

    def _shipment(self, event: _Scan, time: str) -> str:
        rank, fact = RANKS[event.status], MOVED[event.status]
        self._wins(
            self.shipments,
            [
                event.shipment_id,
                event.order_id,
                event.seller_id,
                event.warehouse_id,
                event.carrier,
                event.tracking_number,
                event.status,
                event.estimated_delivery,
                rank,
                time,
                time,
                fact,
            ],
        )
        return self._order(event.order_id, fact, time)

    def _return(self, event: _Return, time: str) -> str:
        fact = SENT_BACK[event.status]
        processed = event.status == "processed"
        self._wins(
            self.returns,
            [
                event.return_id,
                event.order_id,
                event.item_id,
                event.quantity,
                event.reason,
                event.status,
                event.processed_at or time if processed else None,
                int(event.status != "requested"),
                time,
                time,
                fact,
            ],
        )
        return self._order(event.order_id, fact, time, event.quantity if processed else 0)

    def _wins(self, rows: dict[str, Row], row: Row) -> None:
        """Merge as the statement does: the row of the greater rank wins. The last four values are its rank,
        its times and its kind of fact.
        """
        known = rows.get(row[0])
        if known is None:
            rows[row[0]] = row
            return
        winner = row if row[-4] > known[-4] else known
        rows[row[0]] = [
            *winner[:-3],
            min(row[-3], known[-3]),
            max(row[-2], known[-2]),
            row[-1] | known[-1],
        ]
