"""The rows for Postgres (domain.rows) and the entries for Redis that the pipeline hands to the sinks."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from msgspec import Struct

from domain.shapes import (
    AttentionRow,
    ItemRow,
    OrderRow,
    PaymentRow,
    RefundRow,
    ReturnRow,
    Row,
    ShipmentRow,
    SuborderRow,
)

ROWS: Final[dict[str, type[Row]]] = {
    "orders_order": OrderRow,
    "orders_order_item": ItemRow,
    "orders_shipment": ShipmentRow,
    "orders_return": ReturnRow,
    "orders_suborder": SuborderRow,
    "orders_payment": PaymentRow,
    "orders_refund": RefundRow,
    "orders_attention": AttentionRow,
}
"""Table -> its row, whose fields are the table's columns (sinks.postgres holds
them to each other by name).
"""


class NotedAttention(Struct, gc=False):
    """What is noted of the attention of an order, whose rows are written.

    A run that was killed may have folded its facts in another order, and have written a row of a kind that
    this run never saw. Where such a row is open, and isn't of a later version, it is cleared.
    """

    order_id: str
    user_id: str
    region: str
    kinds: str
    """Those of its rows, cleared ones too, separated by commas."""
    updated_at: str
    version: int
    """As in the rows of its attention."""


@dataclass(slots=True)
class RowBatch:
    """Rows of the tables that are written together.
    Each primary key at most once in a batch; an order's rows may come in any number of batches.
    """

    orders: list[OrderRow] = field(default_factory=list)
    items: list[ItemRow] = field(default_factory=list)
    shipments: list[ShipmentRow] = field(default_factory=list)
    returns: list[ReturnRow] = field(default_factory=list)
    suborders: list[SuborderRow] = field(default_factory=list)
    payments: list[PaymentRow] = field(default_factory=list)
    refunds: list[RefundRow] = field(default_factory=list)
    attention: list[AttentionRow] = field(default_factory=list)
    noted: list[NotedAttention] = field(default_factory=list)
    """No rows, so neither counted nor among by_table()."""

    def by_table(self) -> dict[str, Sequence[Row]]:
        """Table -> its rows, in the order of `sinks.schema.TABLES`; tables without rows are left out."""
        lists: tuple[Sequence[Row], ...] = (
            self.orders,
            self.items,
            self.shipments,
            self.returns,
            self.suborders,
            self.payments,
            self.refunds,
            self.attention,
        )
        return {table: rows for table, rows in zip(ROWS, lists, strict=True) if rows}

    def add(self, other: RowBatch) -> None:
        """Add the rows of another batch."""
        self.orders += other.orders
        self.items += other.items
        self.shipments += other.shipments
        self.returns += other.returns
        self.suborders += other.suborders
        self.payments += other.payments
        self.refunds += other.refunds
        self.attention += other.attention
        self.noted += other.noted

    def of(self, order_ids: Container[str]) -> RowBatch:
        """The rows of these orders, by canonical id."""
        return RowBatch(
            [row for row in self.orders if row.id in order_ids],
            [row for row in self.items if row.order_id in order_ids],
            [row for row in self.shipments if row.order_id in order_ids],
            [row for row in self.returns if row.order_id in order_ids],
            [row for row in self.suborders if row.order_id in order_ids],
            [row for row in self.payments if row.order_id in order_ids],
            [row for row in self.refunds if row.order_id in order_ids],
            [row for row in self.attention if row.order_id in order_ids],
            [each for each in self.noted if each.order_id in order_ids],
        )

    def last_of_each(self) -> RowBatch:
        """Of each primary key the last row."""
        return RowBatch(
            list({row.id: row for row in self.orders}.values()),
            list({(row.order_id, row.id): row for row in self.items}.values()),
            list({(row.order_id, row.id): row for row in self.shipments}.values()),
            list({(row.order_id, row.id): row for row in self.returns}.values()),
            list({(row.order_id, row.id): row for row in self.suborders}.values()),
            list({(row.order_id, row.id): row for row in self.payments}.values()),
            list({(row.order_id, row.id): row for row in self.refunds}.values()),
            list({(row.order_id, row.kind): row for row in self.attention}.values()),
            list({each.order_id: each for each in self.noted}.values()),
        )

    def __len__(self) -> int:
        """Rows in all tables."""
        return sum(map(len, self.by_table().values()))


class CacheEntry(NamedTuple):
    """One order as the cache shows it."""

    order_id: str
    user_id: str
    """Whose list of recent orders it belongs to."""
    created_ms: int
    """Milliseconds since 1970: the order's place in that list."""
    version: int
    """The order's version; an entry never replaces one with a higher version."""
    ttl: int
    """Seconds until it expires, 600 to 1,800."""
    summary: bytes
    """The summary, a JSON object. The first "version":N in it is the order's."""
    tracking: list[tuple[str, str, bytes]]
    """(tracking number, shipment id, JSON object of that shipment, which begins with order_id and
    shipment_id): entries to put under their tracking numbers. Under a number, order and shipment id
    together say which entry it is.
    """
    untracked: list[tuple[str, str]]
    """(tracking number, shipment id): entries to take away, because the parcel has another number now."""
