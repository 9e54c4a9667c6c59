"""The tables of orders and the view of them, declared for readers (SQLAlchemy Core).
Migrations make them; a test proves that both say the same.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, get_args

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg

from contracts.statuses import (
    ClosedBecauseText,
    OrderStatusText,
    ParcelStatusText,
    PaymentStatusText,
    RefundCauseText,
    RefundStatusText,
    ReturnStatusText,
    SuborderStatusText,
)

PartitionBy = Literal["user_id", "region"]
PARTITION_COLUMNS: tuple[PartitionBy, ...] = get_args(PartitionBy)

SHIPMENT_STATUS: tuple[str, ...] = get_args(ParcelStatusText)
ENUMS: dict[str, tuple[str, ...]] = {
    "orders_order_status": get_args(OrderStatusText),
    "orders_shipment_status": SHIPMENT_STATUS,
    "orders_return_status": get_args(ReturnStatusText),
    "orders_suborder_status": get_args(SuborderStatusText),
    "orders_closed_because": get_args(ClosedBecauseText),
    "orders_payment_status": get_args(PaymentStatusText),
    "orders_refund_status": get_args(RefundStatusText),
    "orders_refund_cause": get_args(RefundCauseText),
}

TABLES = (
    "orders_order",
    "orders_order_item",
    "orders_shipment",
    "orders_return",
    "orders_suborder",
    "orders_payment",
    "orders_refund",
    "orders_attention",
)
"""In the order in which their rows depend on each other."""

FILLFACTOR: dict[str, int] = {
    "orders_order": 50,
    "orders_order_item": 80,
    "orders_shipment": 60,
    "orders_return": 60,
    "orders_suborder": 50,
    "orders_payment": 80,
    "orders_refund": 60,
    "orders_attention": 60,
}
"""Of every partition of a table. Leaves room on each page for the next versions of its rows: an update then
touches no index (HOT), as long as no index contains updated_at, status or version. Measured: 23 us a row
against 52. An order's row is replaced some three times. With 80 for all tables, 57 % of the updates of orders
and 32 % of those of shipments found room, with these 100 % and 75 %: 621 bytes of WAL an event instead of
759, and tables and indexes a tenth smaller in all, as indexes have fewer dead entries.
"""

SUBORDER_IS_LATE = "late_since IS NOT NULL"
REFUND_WAITS = "status <> 'completed'"
RETURN_WAITS = "status = 'requested'"
"""What partial indexes hold. A statement that says the same in the same words is served by them, whatever its
plan was made for. A change of such a status writes the indexes of its row, which HOT would have spared it:
once for a refund or a return, of which there are few; never for a suborder that is in time.
"""

DIALECT: sa.Dialect = sa.make_url("postgresql://").get_dialect()()
"""Dialect of the statements that we write."""


def _status(name: str) -> pg.ENUM:
    return pg.ENUM(*ENUMS[name], name=name, create_type=False)


def _money(name: str, default: str | None = None) -> sa.Column[object]:
    # 10^15 minor units at most: 16 digits of a currency without decimals, and up to 4 decimals.
    known = None if default is None else sa.text(default)
    return sa.Column(name, sa.Numeric(20, 4), nullable=False, server_default=known)


def _stamps() -> list[sa.Column[object]]:
    return [
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
    ]


def _owner() -> list[sa.Column[object]]:
    return [
        sa.Column("user_id", sa.Uuid, nullable=False),
        sa.Column("region", sa.Text, nullable=False, server_default=sa.text("''")),
    ]


def build_metadata(partition_by: PartitionBy = "user_id") -> sa.MetaData:
    """The tables of a database partitioned by hash of user_id or by list of region.
    The column is part of every key: nothing else differs.

    The foreign keys say how rows belong together, but Postgres doesn't enforce them (enforcing costs 2.5
    times the write; what keeps them is that an order's rows are written in one transaction). Raises
    ValueError for another column. Never blocks.
    """
    if partition_by not in PARTITION_COLUMNS:
        raise ValueError(
            f"cannot partition by {partition_by!r}: choose one of {', '.join(PARTITION_COLUMNS)}"
        )
    method = "HASH" if partition_by == "user_id" else "LIST"
    metadata = sa.MetaData()
    parts_of = (_order, _order_item, _shipment, _return, _suborder, _payment, _refund, _attention)
    for name, parts in zip(TABLES, parts_of, strict=True):
        sa.Table(name, metadata, *parts(partition_by), postgresql_partition_by=f"{method} ({partition_by})")
    # Not partitioned: a row a job.
    sa.Table("orders_bulk_job", metadata, *_bulk_job())
    return metadata


def _belongs_to(
    partition_by: PartitionBy, parent: str, name: str, *columns: tuple[str, str]
) -> sa.ForeignKeyConstraint:
    here, there = zip(*columns, (partition_by, partition_by), strict=True)
    return sa.ForeignKeyConstraint(
        here, [f"{parent}.{column}" for column in there], name=name, info={"enforced": False}
    )


def _order(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.Uuid, nullable=False),
        *_owner(),
        sa.Column("status", _status("orders_order_status"), nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        _money("total_amount"),
        _money("discount_amount"),
        _money("tax_amount", default="0"),
        sa.Column("cart_id", sa.Uuid),
        sa.Column("cart_created_at", sa.DateTime(timezone=True)),
        *_stamps(),
        sa.PrimaryKeyConstraint("id", partition_by, name="orders_order_pkey"),
        sa.CheckConstraint("total_amount >= 0 AND discount_amount >= 0", name="orders_order_amounts"),
        # A user's orders, newest first.
        sa.Index("orders_order_user", "user_id", sa.text("created_at DESC")),
        # All orders, newest first.
        sa.Index("orders_order_created", sa.text("created_at DESC"), sa.text("id DESC")),
        sa.Index("orders_order_cart", "cart_id", postgresql_where=sa.text("cart_id IS NOT NULL")),
    ]


def _order_item(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        *_owner(),
        sa.Column("product_id", sa.Uuid, nullable=False),
        sa.Column("seller_id", sa.Uuid, nullable=False),
        sa.Column("warehouse_id", sa.Uuid),
        sa.Column("sku", sa.Text, nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        _money("price"),
        _money("shipping_amount"),
        _money("tax_amount", default="0"),
        _money("shipping_tax_amount", default="0"),
        *_stamps(),
        sa.PrimaryKeyConstraint("id", "order_id", partition_by, name="orders_order_item_pkey"),
        _belongs_to(partition_by, "orders_order", "orders_order_item_order", ("order_id", "id")),
        sa.CheckConstraint(
            "quantity > 0 AND price >= 0 AND shipping_amount >= 0", name="orders_order_item_amounts"
        ),
        sa.Index("orders_order_item_order_id", "order_id"),
        # A seller's lines, newest first.
        sa.Index("orders_order_item_seller", "seller_id", sa.text("created_at DESC")),
    ]


def _shipment(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        *_owner(),
        sa.Column("seller_id", sa.Uuid, nullable=False),
        sa.Column("warehouse_id", sa.Uuid),
        sa.Column("carrier", sa.Text),
        sa.Column("tracking_number", sa.Text),
        sa.Column("status", _status("orders_shipment_status"), nullable=False),
        sa.Column("estimated_delivery", sa.DateTime(timezone=True)),
        *_stamps(),
        sa.PrimaryKeyConstraint("id", "order_id", partition_by, name="orders_shipment_pkey"),
        _belongs_to(partition_by, "orders_order", "orders_shipment_order", ("order_id", "id")),
        sa.Index("orders_shipment_order_id", "order_id"),
        # What a customer types in. A hash, because a B-tree refuses values over 2,704 bytes, and a carrier
        # may send 1,000 characters.
        sa.Index(
            "orders_shipment_tracking",
            "tracking_number",
            postgresql_using="hash",
            postgresql_where=sa.text("tracking_number IS NOT NULL"),
        ),
    ]


def _return(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        *_owner(),
        sa.Column("order_item_id", sa.Uuid, nullable=False),
        sa.Column("quantity", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("status", _status("orders_return_status"), nullable=False),
        sa.Column("processed_at", sa.DateTime(timezone=True)),
        *_stamps(),
        sa.PrimaryKeyConstraint("id", "order_id", partition_by, name="orders_return_pkey"),
        _belongs_to(partition_by, "orders_order", "orders_return_order", ("order_id", "id")),
        _belongs_to(
            partition_by,
            "orders_order_item",
            "orders_return_item",
            ("order_item_id", "id"),
            ("order_id", "order_id"),
        ),
        sa.CheckConstraint("quantity > 0", name="orders_return_quantity"),
        sa.Index("orders_return_order_id", "order_id"),
        # What waits, the oldest first.
        sa.Index(
            "orders_return_waiting", "created_at", "order_id", "id", postgresql_where=sa.text(RETURN_WAITS)
        ),
    ]


def _suborder(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        *_part_of_order(),
        sa.Column("seller_id", sa.Uuid, nullable=False),
        sa.Column("status", _status("orders_suborder_status"), nullable=False),
        sa.Column("closed_because", _status("orders_closed_because")),
        sa.Column("currency", sa.Text, nullable=False),
        _money("items_amount"),
        _money("shipping_amount"),
        _money("discount_amount"),
        _money("tax_amount"),
        _money("total_amount"),
        sa.Column("units_ordered", sa.Integer, nullable=False),
        sa.Column("units_live", sa.Integer, nullable=False),
        sa.Column("units_in_transit", sa.Integer, nullable=False),
        sa.Column("units_delivered", sa.Integer, nullable=False),
        sa.Column("units_returned", sa.Integer, nullable=False),
        sa.Column("ship_by", sa.DateTime(timezone=True)),
        sa.Column("deliver_by", sa.DateTime(timezone=True)),
        sa.Column("late_since", sa.DateTime(timezone=True)),
        # What the view that was here had beside them.
        sa.Column("order_status", _status("orders_order_status"), nullable=False),
        sa.Column("items", sa.Integer, nullable=False),
        sa.Column("units", sa.Integer, nullable=False),
        sa.Column("parcels", sa.Integer, nullable=False),
        sa.Column("parcels_in_transit", sa.Integer, nullable=False),
        sa.Column("parcels_delivered", sa.Integer, nullable=False),
        sa.Column("parcels_returned", sa.Integer, nullable=False),
        sa.Column("returns", sa.Integer, nullable=False),
        *_stamps(),
        *_keys_of_part(partition_by, "orders_suborder"),
        # A seller's suborders, newest first.
        sa.Index("orders_suborder_seller", "seller_id", sa.text("created_at DESC")),
        # What is late, for the longest first.
        sa.Index(
            "orders_suborder_late", "late_since", "order_id", "id", postgresql_where=sa.text(SUBORDER_IS_LATE)
        ),
    ]


def _payment(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        *_part_of_order(),
        sa.Column("status", _status("orders_payment_status"), nullable=False),
        sa.Column("amount", sa.Numeric(20, 4)),
        sa.Column("currency", sa.Text),
        sa.Column("method", sa.Text),
        sa.Column("reason", sa.Text),
        *_stamps(),
        *_keys_of_part(partition_by, "orders_payment"),
        sa.CheckConstraint(
            "(status = 'captured') = (amount IS NOT NULL AND currency IS NOT NULL)",
            name="orders_payment_captured",
        ),
    ]


def _refund(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    return [
        *_part_of_order(),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("status", _status("orders_refund_status"), nullable=False),
        # All that an order's payments come to may leave at once: above what one amount of an event may be.
        sa.Column("amount", sa.Numeric(24, 4), nullable=False),
        _money("tax_amount"),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("cause", _status("orders_refund_cause"), nullable=False),
        sa.Column("cause_id", sa.Uuid, nullable=False),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("reason", sa.Text),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("settled_at", sa.DateTime(timezone=True)),
        *_stamps(),
        *_keys_of_part(partition_by, "orders_refund"),
        # What isn't paid, the oldest first.
        sa.Index(
            "orders_refund_waiting", "requested_at", "order_id", "id", postgresql_where=sa.text(REFUND_WAITS)
        ),
    ]


def _attention(partition_by: PartitionBy) -> list[sa.schema.SchemaItem]:
    holds = sa.text("cleared_at IS NULL")
    return [
        sa.Column("order_id", sa.Uuid, nullable=False),
        *_owner(),
        # No enum: a version may know kinds that the one before doesn't.
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cleared_at", sa.DateTime(timezone=True)),
        *_stamps(),
        sa.PrimaryKeyConstraint("order_id", "kind", partition_by, name="orders_attention_pkey"),
        _belongs_to(partition_by, "orders_order", "orders_attention_order", ("order_id", "id")),
        # What is open, the oldest first.
        sa.Index("orders_attention_since", "since", "order_id", "kind", postgresql_where=holds),
        # The orders of a kind, newest first; and how many of each kind are open.
        sa.Index(
            "orders_attention_kind",
            "kind",
            sa.text("created_at DESC"),
            sa.text("order_id DESC"),
            postgresql_where=holds,
        ),
    ]


def _part_of_order() -> list[sa.Column[object]]:
    return [
        sa.Column("id", sa.Uuid, nullable=False),
        sa.Column("order_id", sa.Uuid, nullable=False),
        *_owner(),
    ]


def _keys_of_part(partition_by: PartitionBy, table: str) -> list[sa.schema.SchemaItem]:
    return [
        sa.PrimaryKeyConstraint("id", "order_id", partition_by, name=f"{table}_pkey"),
        _belongs_to(partition_by, "orders_order", f"{table}_order", ("order_id", "id")),
        sa.Index(f"{table}_order_id", "order_id"),
    ]


def _bulk_job() -> list[sa.schema.SchemaItem]:
    return [
        sa.Column("job_id", sa.Uuid, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("parts", sa.Integer, nullable=False),
        sa.Column("parts_sent", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("parts_done", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("events", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("lines", sa.BigInteger),
        sa.Column("refused", sa.BigInteger),
        sa.Column("digest", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.text("now()")),
        sa.Column("submitted_at", sa.DateTime(timezone=True)),
        sa.Column("completed_at", sa.DateTime(timezone=True)),
        sa.Column("announced", sa.Boolean, nullable=False, server_default=sa.text("false")),
        sa.Column("done", pg.INT4MULTIRANGE, nullable=False, server_default=sa.text("'{}'::int4multirange")),
        sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")),
        sa.PrimaryKeyConstraint("job_id", name="orders_bulk_job_pkey"),
        sa.CheckConstraint(
            "kind IN ('orders', 'shipments', 'returns', 'payments')", name="orders_bulk_job_kind"
        ),
        sa.Index("orders_bulk_job_created", "created_at"),
    ]


VIEWS = ("orders_summary",)
"""In the order in which they are made."""


def build_views(metadata: sa.MetaData) -> dict[str, sa.Select[Any]]:
    """What the views select from the tables of build_metadata(): one row an order.

    Every join names user_id and region, so that only one partition of each table is read for an order,
    whichever it is partitioned by. LATERAL, so that a page of orders costs a few index look-ups each instead
    of a pass over all parcels and returns. Never blocks.
    """
    rows = _Rows(
        *(
            metadata.tables[table].alias(name)
            for table, name in zip(TABLES[:4], ("o", "line", "s", "back"), strict=True)
        )
    )
    return {"orders_summary": _summary(rows)}


_PARCELS_BY_STATUS = [f"parcels_{status}" for status in SHIPMENT_STATUS[1:]]


class _Rows(NamedTuple):
    """The tables under the names that they have in the views."""

    order: sa.FromClause
    line: sa.FromClause
    parcel: sa.FromClause
    back: sa.FromClause

    def parcels(self) -> list[sa.Label[Any]]:
        """Count the parcels, and those that have reached each status."""
        return [
            _count("parcels"),
            *(
                _whole(sa.func.count().filter(self.parcel.c.status == status), name)
                for status, name in zip(SHIPMENT_STATUS[1:], _PARCELS_BY_STATUS, strict=True)
            ),
        ]

    def returns(self) -> list[sa.Label[Any]]:
        """Count the returns, and the units that came back."""
        units = sa.func.sum(self.back.c.quantity).filter(self.back.c.status == "processed")
        return [_count("returns"), _whole(sa.func.coalesce(units, sa.literal(0)), "units_returned")]


def _whole(value: sa.ColumnElement[Any], name: str) -> sa.Label[Any]:
    return sa.cast(value, sa.Integer).label(name)


def _count(name: str) -> sa.Label[Any]:
    return _whole(sa.func.count(), name)


def _of(part: sa.FromClause, whose: sa.FromClause, order_id: str) -> list[sa.ColumnElement[bool]]:
    return [
        part.c.order_id == whose.c[order_id],
        part.c.user_id == whose.c.user_id,
        part.c.region == whose.c.region,
    ]


def _summary(rows: _Rows) -> sa.Select[Any]:
    sums = (
        sa.select(
            _whole(sa.func.count(rows.line.c.seller_id.distinct()), "sellers"),
            _count("items"),
            _whole(sa.func.coalesce(sa.func.sum(rows.line.c.quantity), sa.literal(0)), "units"),
        )
        .where(*_of(rows.line, rows.order, "id"))
        .lateral("i")
    )
    moves = sa.select(*rows.parcels()).where(*_of(rows.parcel, rows.order, "id")).lateral("p")
    given_back = sa.select(*rows.returns()).where(*_of(rows.back, rows.order, "id")).lateral("r")
    return sa.select(
        rows.order.c.id.label("order_id"),
        *(
            rows.order.c[name]
            for name in ("user_id", "region", "status", "currency", "total_amount", "discount_amount")
        ),
        *(sums.c[name] for name in ("sellers", "items", "units")),
        *(moves.c[name] for name in ("parcels", *_PARCELS_BY_STATUS)),
        given_back.c.returns,
        given_back.c.units_returned,
        *(rows.order.c[name] for name in ("created_at", "updated_at", "version")),
    ).select_from(rows.order.join(sums, sa.true()).join(moves, sa.true()).join(given_back, sa.true()))
