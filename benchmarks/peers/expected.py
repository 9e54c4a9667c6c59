"""The rows that the workload's events amount to, and what is wrong in a database.

Written from docs/rules.md alone, for the four types of events that the workload has: it shares no code
with the pipeline, with the auditor or with the peers, and all of them are held to it. Everything is kept in
memory.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg

from contracts.cloudevents import SourceEvent

RANKS: Final = ("pending", "in_transit", "delivered", "returned")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "orders_order": (
        "user_id",
        "region",
        "status",
        "currency",
        "total_amount",
        "discount_amount",
        "created_at",
        "updated_at",
        "version",
    ),
    "orders_order_item": (
        "order_id",
        "user_id",
        "region",
        "product_id",
        "seller_id",
        "warehouse_id",
        "sku",
        "quantity",
        "price",
        "shipping_amount",
        "created_at",
        "updated_at",
        "version",
    ),
    "orders_shipment": (
        "order_id",
        "seller_id",
        "warehouse_id",
        "carrier",
        "tracking_number",
        "status",
        "estimated_delivery",
        "created_at",
        "updated_at",
        "version",
        "user_id",
        "region",
    ),
    "orders_return": (
        "order_id",
        "order_item_id",
        "quantity",
        "reason",
        "status",
        "processed_at",
        "created_at",
        "updated_at",
        "version",
        "user_id",
        "region",
    ),
}
"""Table -> its columns besides id, in the order of a row's values. The last two of the last two tables are
those that a peer without state doesn't know.
"""
UNKNOWN: Final = {"orders_shipment": 2, "orders_return": 2}
"""Table -> how many of its last columns those are."""
_TIMES: Final = ("created_at", "updated_at", "estimated_delivery", "processed_at")
_MONEY: Final = ("total_amount", "discount_amount", "price", "shipping_amount")
_NUMBERS: Final = ("version", "quantity")

Row = tuple[Any, ...]
Rows = dict[str, dict[str, Row]]
"""Table -> id -> its values. Times are microseconds since 1970, money has four decimals, ids are text."""


@dataclass
class _Order:
    created: tuple[dict[str, Any], int] | None = None
    payments: dict[str, tuple[Decimal, int]] = field(default_factory=dict)
    scans: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    stages: dict[tuple[str, str], tuple[dict[str, Any], int]] = field(default_factory=dict)


def rows_of(events: Iterable[SourceEvent]) -> Rows:
    """Fold the events, in any order. Pure. Raises KeyError for a type that the workload doesn't have."""
    orders: dict[str, _Order] = {}
    for event in events:
        data = json.loads(event.value or b"")
        order = orders.setdefault(data["order_id"], _Order())
        time = micros(dict(event.headers)["ce_time"].decode())
        match event.topic:
            case "order.created":
                order.created = data, time
            case "order.paid":
                order.payments[data["payment_id"]] = Decimal(data["amount"]), time
            case "shipment.updated":
                order.scans[data["shipment_id"], data["status"], time] = data
            case "order.returned":
                order.stages[data["return_id"], data["status"]] = data, time
            case _:
                raise KeyError(event.topic)
    rows: Rows = {table: {} for table in COLUMNS}
    for order_id, order in orders.items():
        if order.created is not None:
            _add_order(rows, order_id, order, *order.created)
    return rows


def micros(text: str) -> int:
    """RFC 3339, or a day, as microseconds since 1970."""
    time = datetime.fromisoformat(text)
    return (time.replace(tzinfo=time.tzinfo or UTC) - _EPOCH) // timedelta(microseconds=1)


def _money(amount: Decimal) -> str:
    return f"{amount:.4f}"


def _add_order(rows: Rows, order_id: str, order: _Order, created: dict[str, Any], created_at: int) -> None:
    owner = created["user_id"], created.get("region", "")
    times = [
        created_at,
        *(time for _, time in order.payments.values()),
        *(time for _, _, time in order.scans),
        *(time for _, time in order.stages.values()),
    ]
    rows["orders_order"][order_id] = (
        *owner,
        _status(order, created),
        created["currency"],
        _money(Decimal(created["total_amount"])),
        _money(Decimal(created.get("discount_amount", "0"))),
        min(times),
        max(times),
        len(times),
    )
    for line in created["items"]:
        rows["orders_order_item"][line["item_id"]] = (
            order_id,
            *owner,
            line["product_id"],
            line["seller_id"],
            line.get("warehouse_id"),
            line["sku"],
            line["quantity"],
            _money(Decimal(line["price"])),
            _money(Decimal(line.get("shipping_amount", "0"))),
            created_at,
            created_at,
            1,
        )
    _add_shipments(rows, order_id, order, owner)
    _add_returns(rows, order_id, order, owner)


def _status(order: _Order, created: dict[str, Any]) -> str:
    """By units: each has the rank of its seller's parcel, or is returned. None is ever gone."""
    units = {line["item_id"]: [0] * line["quantity"] for line in created["items"]}
    for _, scan in _winning(order).values():
        for line in created["items"]:
            if line["seller_id"] == scan["seller_id"]:
                units[line["item_id"]] = [RANKS.index(scan["status"])] * line["quantity"]
    for (_, status), (stage, _) in order.stages.items():
        if status == "processed":
            units[stage["item_id"]][: stage["quantity"]] = [RANKS.index("returned")] * stage["quantity"]
    ranks = [rank for each in units.values() for rank in each]
    if max(ranks) == 0:
        paid = sum(amount for amount, _ in order.payments.values())
        return "confirmed" if paid >= Decimal(created["total_amount"]) else "pending"
    return ("pending", "shipped", "delivered", "returned")[max(1, min(ranks))]


def _winning(order: _Order) -> dict[str, tuple[tuple[int, int], dict[str, Any]]]:
    """Parcel -> (rank, time) and content of the scan of the highest rank, then of the latest time."""
    best: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
    for (shipment_id, status, time), scan in order.scans.items():
        place = RANKS.index(status), time
        if shipment_id not in best or place > best[shipment_id][0]:
            best[shipment_id] = place, scan
    return best


def _add_shipments(rows: Rows, order_id: str, order: _Order, owner: tuple[str, str]) -> None:
    for shipment_id, (_, scan) in _winning(order).items():
        times = [time for shipment, _, time in order.scans if shipment == shipment_id]
        promised = scan.get("estimated_delivery")
        rows["orders_shipment"][shipment_id] = (
            order_id,
            scan["seller_id"],
            scan.get("warehouse_id"),
            scan.get("carrier"),
            scan.get("tracking_number"),
            scan["status"],
            None if promised is None else micros(promised),
            min(times),
            max(times),
            len(times),
            *owner,
        )


def _add_returns(rows: Rows, order_id: str, order: _Order, owner: tuple[str, str]) -> None:
    """Of its final stages the earlier one wins; the workload has one of each return."""
    for return_id in {return_id for return_id, _ in order.stages}:
        stages = [(stage, time) for (each, _), (stage, time) in order.stages.items() if each == return_id]
        winner, at = min(stages, key=lambda pair: (pair[0]["status"] == "requested", pair[1]))
        times = [time for _, time in stages]
        processed = None
        if winner["status"] == "processed":
            processed = micros(winner["processed_at"]) if "processed_at" in winner else at
        rows["orders_return"][return_id] = (
            order_id,
            winner["item_id"],
            winner["quantity"],
            winner["reason"],
            winner["status"],
            processed,
            min(times),
            max(times),
            len(times),
            *owner,
        )


def joined(parts: Iterable[Rows]) -> Rows:
    """Rows of several streams that have no order in common, in one. Pure."""
    total: Rows = {table: {} for table in COLUMNS}
    for part in parts:
        for table, rows in part.items():
            total[table].update(rows)
    return total


def compare(wanted: Mapping[str, Row], actual: Iterable[tuple[str, Row]], unknown: int) -> dict[str, int]:
    """How many rows of a table are missing, doubled (also those that nothing called for) and wrong. Pure.

    `unknown`: so many of the last columns aren't there, and not compared.
    """
    wrong = doubled = 0
    seen: set[str] = set()
    for id, row in actual:
        expected = wanted.get(id)
        if id in seen or expected is None:
            doubled += 1
        elif row != (expected[: len(expected) - unknown]):
            wrong += 1
        seen.add(id)
    return {"missing": len(wanted.keys() - seen), "doubled": doubled, "wrong": wrong}


async def check(postgres: str, schema: str, wanted: Rows, *, all_columns: bool) -> dict[str, int]:
    """Compare the four tables of a schema with the rows that are wanted: rows, missing, doubled, wrong.

    Without `all_columns` those that a peer doesn't know are left out. Blocks. Raises asyncpg.PostgresError.
    """
    total = {"rows": sum(map(len, wanted.values())), "missing": 0, "doubled": 0, "wrong": 0}
    connection = await asyncpg.connect(postgres)
    try:
        for table, columns in COLUMNS.items():
            unknown = 0 if all_columns else UNKNOWN.get(table, 0)
            names = columns[: len(columns) - unknown]
            query = f"SELECT {', '.join(map(_canonical, ('id', *names)))} FROM {schema}.{table}"
            rows = await connection.fetch(query)
            actual = ((row[0], tuple(row)[1:]) for row in rows)
            for name, count in compare(wanted[table], actual, unknown).items():
                total[name] += count
    finally:
        await connection.close()
    return total


def _canonical(column: str) -> str:
    if column in _TIMES:
        return f"(extract(epoch FROM {column}) * 1000000)::int8"
    if column in _MONEY:
        return f"{column}::numeric(20,4)::text"
    return f"{column}::int8" if column in _NUMBERS else f"{column}::text"
