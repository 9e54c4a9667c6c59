"""The statements of the readers (SQLAlchemy Core), and their rows as documents.

Each answer is one statement, so it is of one moment of the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from operator import attrgetter
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import aggregate_order_by

from contracts import ids, money, times
from contracts.statuses import (
    ClosedBecauseText,
    ParcelStatusText,
    PaymentStatusText,
    RefundCauseText,
    RefundStatusText,
    ReturnStatusText,
    SuborderStatusText,
)
from queries.documents import (
    Attention,
    Head,
    Item,
    Moment,
    OrderDetails,
    Parcel,
    ParcelDetails,
    Payment,
    Refund,
    Return,
    SellerHead,
    Sold,
    Suborder,
    SuborderDetails,
    Summary,
    Tracked,
)
from queries.keyset import Position
from queries.lists import Lists
from sinks.schema import build_metadata

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

_tables: Final = build_metadata().tables
_order: Final = _tables["orders_order"]
_item: Final = _tables["orders_order_item"]
_shipment: Final = _tables["orders_shipment"]
_return: Final = _tables["orders_return"]
_suborder: Final = _tables["orders_suborder"]
_payment: Final = _tables["orders_payment"]
_refund: Final = _tables["orders_refund"]
_attention: Final = _tables["orders_attention"]

TRACKED: Final = 100
"""Parcels that a tracking number shows, as in the cache."""
FOUND: Final = 20
"""Orders that an id, or the beginning of one, leads to."""


class Query(NamedTuple):
    """A statement, built once for all of its values (building takes as long as executing), and the values."""

    statement: sa.Executable
    values: dict[str, Any]


LAG: Final = Query(
    sa.text(
        """
    SELECT CASE
        -- It follows nobody: promoted by mistake, or no replica at all. What it has may be old for ever.
        WHEN NOT pg_is_in_recovery() THEN NULL
        -- Connected, and it has replayed everything that it knows of. (latest_end_lsn is shown only to
        -- members of pg_read_all_stats.)
        WHEN r.pid IS NOT NULL
            AND pg_last_wal_replay_lsn() >= greatest(pg_last_wal_receive_lsn(), r.latest_end_lsn) THEN 0.0
        ELSE extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8
    END
    FROM (VALUES (1)) one LEFT JOIN pg_stat_wal_receiver r ON true"""
    ),
    {},
)
"""Seconds that a replica is behind; NULL: it doesn't know."""

ONE: Final = Query(sa.text("SELECT 1"), {})
"""Answers if anybody is there."""


def details(order_id: UUID, user_id: UUID | None = None) -> Query:
    """One order with its parts.
    With its user one partition is read, without all of them, by their primary keys.
    """
    values = {"order_id": order_id, "user_id": user_id}
    return Query(
        _details(user_id is not None), {name: value for name, value in values.items() if value is not None}
    )


@cache
def _details(by_user: bool) -> sa.Select[Any]:
    def parts(table: sa.Table, **columns: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        own_id = table.c.kind if table is _attention else table.c.id
        built = aggregate_order_by(_object(**columns), table.c.created_at, own_id)
        # Both columns that tables may be partitioned by: one partition is read.
        same = (
            table.c.order_id == _order.c.id,
            table.c.user_id == _order.c.user_id,
            table.c.region == _order.c.region,
        )
        return (
            sa.select(sa.cast(sa.func.json_agg(built), sa.Text))
            .where(*same)
            .correlate(_order)
            .scalar_subquery()
        )

    items = parts(
        _item,
        item_id=_item.c.id,
        product_id=_item.c.product_id,
        seller_id=_item.c.seller_id,
        warehouse_id=_item.c.warehouse_id,
        sku=_item.c.sku,
        quantity=_item.c.quantity,
        price=sa.cast(_item.c.price, sa.Text),
        shipping_amount=sa.cast(_item.c.shipping_amount, sa.Text),
        tax_amount=sa.cast(_item.c.tax_amount, sa.Text),
        shipping_tax_amount=sa.cast(_item.c.shipping_tax_amount, sa.Text),
    )
    shipments = parts(
        _shipment,
        shipment_id=_shipment.c.id,
        seller_id=_shipment.c.seller_id,
        status=_shipment.c.status,
        carrier=_shipment.c.carrier,
        tracking_number=_shipment.c.tracking_number,
        estimated_delivery=_shipment.c.estimated_delivery,
        created_at=_shipment.c.created_at,
        updated_at=_shipment.c.updated_at,
        version=_shipment.c.version,
    )
    returns = parts(
        _return,
        return_id=_return.c.id,
        item_id=_return.c.order_item_id,
        quantity=_return.c.quantity,
        status=_return.c.status,
        processed_at=_return.c.processed_at,
        created_at=_return.c.created_at,
        updated_at=_return.c.updated_at,
        version=_return.c.version,
    )
    columns = (
        *_head(),
        _order.c.region,
        sa.cast(_order.c.discount_amount, sa.Text),
        sa.cast(_order.c.tax_amount, sa.Text),
        items,
        shipments,
        returns,
        parts(_suborder, **_columns_of(_suborder, _Suborder, suborder_id="id")),
        parts(_payment, **_columns_of(_payment, _Payment, payment_id="id")),
        parts(_refund, **_columns_of(_refund, _Refund, refund_id="id")),
        _order.c.cart_id,
        _order.c.cart_created_at,
        parts(_attention, **_columns_of(_attention, _Attention)),
    )
    query = sa.select(*columns).where(_order.c.id == _value("order_id", _order.c.id))
    return query.where(_order.c.user_id == _value("user_id", _order.c.user_id)) if by_user else query


def _columns_of(table: sa.Table, kind: type[msgspec.Struct], **named: str) -> dict[str, Any]:
    """The columns that a struct has as its fields, of which some have other names there; money as text."""
    columns = {name: table.c[named.get(name, name)] for name in kind.__struct_fields__}
    return {
        name: sa.cast(column, sa.Text) if isinstance(column.type, sa.Numeric) else column
        for name, column in columns.items()
    }


def history(
    user_id: UUID,
    status: str | None,
    since: datetime | None,
    until: datetime | None,
    after: Position | None,
    limit: int,
) -> Query:
    """A user's orders, newest first: placed at `since` or later and before `until`,
    behind the position `after`.

    Served by the index orders_order_user.
    """
    values = {"user_id": user_id, "status": status, "since": since, "until": until, **_after(after)}
    filters = {name: value for name, value in values.items() if value is not None}
    return Query(_history(frozenset(filters), limit), filters)


@lru_cache(maxsize=256)
def _history(filters: frozenset[str], limit: int) -> sa.Select[Any]:
    time, id_ = _order.c.created_at, _order.c.id
    query = sa.select(*_head()).where(_order.c.user_id == _value("user_id", _order.c.user_id))
    if "status" in filters:
        query = query.where(_order.c.status == _value("status", _order.c.status))
    if "since" in filters:
        query = query.where(time >= _value("since", time))
    if "until" in filters:
        query = query.where(time < _value("until", time))
    if "after_time" in filters:
        query = query.where(*_behind(time, id_))
    return query.order_by(time.desc(), id_.desc()).limit(_rows(limit))


def orders(
    lists: Lists,
    status: str | None,
    region: str | None,
    since: datetime | None,
    until: datetime | None,
    after: Position | None,
    limit: int,
    cart: UUID | None = None,
    attention: str | None = None,
) -> Query:
    """Orders, newest first: placed at `since` or later and before `until`, behind the position `after`.
    Each row begins with its place in the order of the list, and whether its user is one of `users`.

    Orders of users are found by the index orders_order_user, those of sellers by orders_suborder_seller,
    those of a cart by orders_order_cart, those with something of a kind to look at by orders_attention_kind,
    all others by orders_order_created, each no further than the page needs.
    """
    values = {
        "users": list(lists.users) or None,
        "sellers": list(lists.sellers) or None,
        "seller_id": lists.seller_id,
        "status": status,
        "region": region,
        "cart_id": cart,
        "attention": attention,
        "since": since,
        "until": until,
        **_after(after),
    }
    given = {name: value for name, value in values.items() if value is not None}
    return Query(_orders(frozenset(given), limit), given)


@lru_cache(maxsize=256)
def _orders(given: frozenset[str], limit: int) -> sa.Select[Any]:
    branches = []
    if "attention" in given and not given & {"users", "sellers", "cart_id"}:
        return _orders_with_attention(given, limit)
    if "users" in given or "sellers" not in given:
        branches.append(_orders_of_users(given, limit))
    if "sellers" in given:
        branches.append(_orders_of_sellers(given, limit))
    if len(branches) == 1:
        return branches[0]
    both = sa.union_all(*(sa.select(branch.subquery()) for branch in branches)).subquery("both")
    return sa.select(both).order_by(both.c.place.desc(), both.c.id.desc()).limit(_rows(limit))


def _placed(
    query: sa.Select[Any], given: frozenset[str], time: sa.ColumnElement[Any], id_: sa.ColumnElement[Any]
) -> sa.Select[Any]:
    """The query within the times that are asked for, and behind the page before."""
    if "since" in given:
        query = query.where(time >= _value("since", time))
    if "until" in given:
        query = query.where(time < _value("until", time))
    if "after_time" in given:
        query = query.where(*_behind(time, id_))
    return query


def _orders_of_users(given: frozenset[str], limit: int) -> sa.Select[Any]:
    c = _order.c
    query = sa.select(c.created_at.label("place"), sa.literal_column("true").label("whole"), *_head())
    for name in ("status", "region", "cart_id"):
        if name in given:
            query = query.where(c[name] == _value(name, c[name]))
    if "seller_id" in given:
        item = sa.select(_item.c.id).where(
            _item.c.order_id == c.id,
            _item.c.user_id == c.user_id,
            _item.c.region == c.region,
            _item.c.seller_id == _value("seller_id", _item.c.seller_id),
        )
        query = query.where(item.exists())
    if "attention" in given:
        query = query.where(_attention_of(c.id, c.user_id, c.region))
    query = _placed(query, given, c.created_at, c.id)
    query = query.order_by(c.created_at.desc(), c.id.desc()).limit(_rows(limit))
    if "users" not in given:
        return query
    # For each of them the newest: so each is read in the order of the index, no further than that.
    user = _each("users")
    page = query.where(c.user_id == user.c.id).correlate(user).lateral("page")
    return (
        sa.select(page)
        .select_from(user.join(page, sa.true()))
        .order_by(page.c.place.desc(), page.c.id.desc())
        .limit(_rows(limit))
    )


def _orders_of_sellers(given: frozenset[str], limit: int) -> sa.Select[Any]:
    p = _suborder.c
    seller = _each("sellers")
    columns = (p.order_id, p.user_id, p.region, p.created_at)
    parts: sa.Select[Any] = sa.select(*columns).where(p.seller_id == seller.c.id)
    if "status" in given:
        parts = parts.where(p.order_status == _value("status", p.order_status))
    if "region" in given:
        parts = parts.where(p.region == _value("region", p.region))
    if "attention" in given:
        parts = parts.where(_attention_of(p.order_id, p.user_id, p.region))
    if "users" in given:
        # Those are in the other half, whole.
        parts = parts.where(p.user_id != sa.all_(sa.bindparam("users", type_=_IDS)))
    parts = _placed(parts, given, p.created_at, p.order_id)
    parts = parts.order_by(p.created_at.desc(), p.order_id.desc()).limit(_rows(limit))
    part = parts.correlate(seller).lateral("part")
    # With a limit it stays what it is: a look into one partition for each row of the page, whatever the
    # planner thinks of the tables.
    own = (
        sa.select(*_head())
        .where(_order.c.id == part.c.order_id, _order.c.user_id == part.c.user_id)
        .where(_order.c.region == part.c.region)
        .limit(1)
        .lateral("own")
    )
    columns_ = (part.c.created_at.label("place"), sa.literal_column("false").label("whole"), *own.c)
    query: sa.Select[Any] = sa.select(*columns_).select_from(part.join(own, sa.true()))
    page = query.lateral("page")
    # An order of several of these sellers is there for each of them.
    return (
        sa.select(page)
        .select_from(seller.join(page, sa.true()))
        .distinct()
        .order_by(page.c.place.desc(), page.c.id.desc())
        .limit(_rows(limit))
    )


def _holds() -> tuple[sa.ColumnElement[bool], ...]:
    a = _attention.c
    return a.kind == _value("attention", a.kind), a.cleared_at.is_(None)


def _attention_of(*order: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
    """Whether the kind holds of an order. `order`: its id, user and region."""
    a = _attention.c
    same = [column == own for column, own in zip((a.order_id, a.user_id, a.region), order, strict=True)]
    return sa.select(a.order_id).where(*same, *_holds()).exists()


def _orders_with_attention(given: frozenset[str], limit: int) -> sa.Select[Any]:
    """Of all orders those of which a kind holds: by the index of these, each order in its own partition."""
    a, c = _attention.c, _order.c
    own_ = sa.select(*_head()).where(c.id == a.order_id, c.user_id == a.user_id, c.region == a.region)
    if "status" in given:
        own_ = own_.where(c.status == _value("status", c.status))
    own = own_.limit(1).correlate(_attention).lateral("own")
    query: sa.Select[Any] = (
        sa.select(a.created_at.label("place"), sa.literal_column("true").label("whole"), *own.c)
        .select_from(_attention.join(own, sa.true()))
        .where(*_holds())
    )
    if "region" in given:
        query = query.where(a.region == _value("region", a.region))
    query = _placed(query, given, a.created_at, a.order_id)
    return query.order_by(a.created_at.desc(), a.order_id.desc()).limit(_rows(limit))


_IDS: Final = pg.ARRAY(sa.Uuid)


def _each(name: str) -> sa.TableValuedAlias:
    ids_ = sa.func.unnest(sa.bindparam(name, type_=_IDS))
    return ids_.table_valued(sa.column("id", sa.Uuid), name=f"each_of_{name}").render_derived()


def of_cart(cart_id: UUID) -> Query:
    """Ids of the orders that a cart became, TRACKED at most; found by the index orders_order_cart."""
    return Query(_of_cart(), {"cart_id": cart_id})


@cache
def _of_cart() -> sa.Select[Any]:
    c = _order.c
    query = sa.select(c.id).where(c.cart_id == _value("cart_id", c.cart_id))
    return query.order_by(c.created_at, c.id).limit(_rows(TRACKED))


def version(order_id: UUID, user_id: UUID | None, seller_id: UUID | None = None) -> Query:
    """An order's version, if it is an order of this user and has an item of this seller."""
    values = {"order_id": order_id, "user_id": user_id, "seller_id": seller_id}
    given = {name: value for name, value in values.items() if value is not None}
    return Query(_version(frozenset(given)), given)


@cache
def _version(given: frozenset[str]) -> sa.Select[Any]:
    query = sa.select(_order.c.version).where(_order.c.id == _value("order_id", _order.c.id))
    if "user_id" in given:
        query = query.where(_order.c.user_id == _value("user_id", _order.c.user_id))
    if "seller_id" in given:
        item = sa.select(_item.c.id).where(
            _item.c.order_id == _order.c.id,
            _item.c.user_id == _order.c.user_id,
            _item.c.region == _order.c.region,
            _item.c.seller_id == _value("seller_id", _item.c.seller_id),
        )
        query = query.where(item.exists())
    return query


def changed_at(order_id: UUID) -> Query:
    """An order's updated_at, by the primary key of each partition."""
    return Query(_changed_at(), {"order_id": order_id})


@cache
def _changed_at() -> sa.Select[Any]:
    return sa.select(_order.c.updated_at).where(_order.c.id == _value("order_id", _order.c.id))


def tracking(number: str) -> Query:
    """The parcels of a tracking number.
    Every partition is looked into, by the hash index orders_shipment_tracking.
    """
    return Query(_tracking(), {"number": number})


@cache
def _tracking() -> sa.Select[Any]:
    c = _shipment.c
    columns = (c.order_id, c.id, c.carrier, c.status, c.estimated_delivery)
    query = sa.select(*columns).where(c.tracking_number == _value("number", c.tracking_number))
    return query.order_by(c.id, c.order_id).limit(_rows(TRACKED))


def found(id_: UUID) -> Query:
    """(kind, id of the order, user or seller that it leads to) of everything that has this id: a row of
    orders, checkouts, users and sellers; some of carts, and of what is only unique within an order.

    Every partition is looked into, by the primary key of each table or an index that begins with the id. A
    checkout has no row: its order's id follows from its own.
    """
    return Query(_found(), {"id": id_, "of_checkout": UUID(bytes=ids.uuid5(id_.bytes, "order"))})


@cache
def _found() -> sa.CompoundSelect[Any]:
    id_ = _value("id", _order.c.id)

    def one(
        kind: str, shown: sa.ColumnElement[Any], where: sa.ColumnElement[Any], most: int, value: Any = id_
    ) -> Any:
        # Of a subquery, since a branch of a union has no limit of its own.
        rows = sa.select(shown.label("leads_to")).where(where == value).limit(_rows(most)).subquery()
        return sa.select(sa.literal_column(f"'{kind}'").label("kind"), rows.c.leads_to)

    return sa.union_all(
        one("order", _order.c.id, _order.c.id, 1),
        one("checkout", _order.c.id, _order.c.id, 1, _value("of_checkout", _order.c.id)),
        one("cart", _order.c.id, _order.c.cart_id, FOUND),
        one("user", _order.c.user_id, _order.c.user_id, 1),
        one("seller", _item.c.seller_id, _item.c.seller_id, 1),
        one("parcel", _shipment.c.order_id, _shipment.c.id, FOUND),
        one("return", _return.c.order_id, _return.c.id, FOUND),
        one("item", _item.c.order_id, _item.c.id, FOUND),
        one("payment", _payment.c.order_id, _payment.c.id, FOUND),
        one("refund", _refund.c.order_id, _refund.c.id, FOUND),
    )


def between(first: UUID, last: UUID) -> Query:
    """The ids of orders in this range, FOUND at most, by the primary key of each partition."""
    return Query(_between(), {"first": first, "last": last})


@cache
def _between() -> sa.Select[Any]:
    c = _order.c
    first, last = _value("first", c.id), _value("last", c.id)
    return sa.select(c.id).where(c.id >= first, c.id <= last).order_by(c.id).limit(_rows(FOUND))


def owners(number: str) -> Query:
    """(order, parcel, user, seller) of the parcels of a tracking number, found as by `tracking`."""
    return Query(_owners(), {"number": number})


@cache
def _owners() -> sa.Select[Any]:
    c = _shipment.c
    query = sa.select(c.order_id, c.id, c.user_id, c.seller_id)
    query = query.where(c.tracking_number == _value("number", c.tracking_number))
    return query.order_by(c.id, c.order_id).limit(_rows(TRACKED))


def suborders(seller_id: UUID, after: Position | None, limit: int) -> Query:
    """A seller's parts of orders, newest first. Every partition is looked into, by the index
    orders_suborder_seller, which has the page's order; the parcels of a page are then found in their own
    partitions.
    """
    return Query(_suborders(after is not None, limit), {"seller_id": seller_id, **_after(after)})


@lru_cache(maxsize=256)
def _suborders(paged: bool, limit: int) -> sa.Select[Any]:
    c = _suborder.c
    seller_id = _value("seller_id", c.seller_id)
    page = sa.select(_suborder).where(c.seller_id == seller_id)
    if paged:
        page = page.where(*_behind(c.created_at, c.order_id))
    page_ = page.order_by(c.created_at.desc(), c.order_id.desc()).limit(_rows(limit)).subquery("page")
    parcel = _object(
        shipment_id=_shipment.c.id,
        seller_id=_shipment.c.seller_id,
        status=_shipment.c.status,
        carrier=_shipment.c.carrier,
        tracking_number=_shipment.c.tracking_number,
        estimated_delivery=_shipment.c.estimated_delivery,
    )
    parcels = (
        sa.select(
            sa.cast(
                sa.func.json_agg(aggregate_order_by(parcel, _shipment.c.created_at, _shipment.c.id)), sa.Text
            )
        )
        .where(
            _shipment.c.order_id == page_.c.order_id,
            _shipment.c.user_id == page_.c.user_id,
            _shipment.c.region == page_.c.region,
            _shipment.c.seller_id == seller_id,
        )
        .correlate(page_)
        .scalar_subquery()
    )
    part = _object(
        **{
            name: sa.cast(page_.c[of], sa.Text) if isinstance(page_.c[of].type, sa.Numeric) else page_.c[of]
            for name in _Suborder.__struct_fields__
            for of in ("id" if name == "suborder_id" else name,)
        }
    )
    columns = (
        page_.c.order_id,
        page_.c.created_at,
        page_.c.order_status,
        page_.c.currency,
        page_.c.version,
        sa.cast(part, sa.Text),
        parcels,
    )
    return sa.select(*columns).order_by(page_.c.created_at.desc(), page_.c.order_id.desc())


def _rows(limit: int) -> sa.ColumnElement[int]:
    # Said to the planner, which otherwise (plans are details once, for all values) takes
    # it for a tenth of all rows.
    return sa.literal_column(str(limit))


def _head() -> tuple[sa.ColumnElement[Any], ...]:
    c = _order.c
    return (
        c.id,
        c.user_id,
        c.status,
        c.currency,
        sa.cast(c.total_amount, sa.Text),
        c.created_at,
        c.updated_at,
        c.version,
    )


def _object(**columns: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    pairs: list[sa.ColumnElement[Any]] = []
    for name, column in columns.items():
        pairs += (sa.literal_column(f"'{name}'"), column)
    return sa.func.json_build_object(*pairs)


def _value(name: str, like: sa.ColumnElement[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=like.type)


def _after(after: Position | None) -> dict[str, Any]:
    return {} if after is None else {"after_time": after.time, "after_id": after.id}


def _behind(time: sa.ColumnElement[Any], id_: sa.ColumnElement[Any]) -> tuple[sa.ColumnElement[bool], ...]:
    last, last_id = _value("after_time", time), _value("after_id", id_)
    # The first one says nothing new, but it is what an index on the time alone can be asked.
    return time <= last, sa.tuple_(time, id_) < sa.tuple_(last, last_id)


# -- rows as documents ---------------------------------------------------------------------------------------


class _Item(msgspec.Struct):
    item_id: UUID
    product_id: UUID
    seller_id: UUID
    warehouse_id: UUID | None
    sku: str
    quantity: int
    price: str
    shipping_amount: str
    tax_amount: str
    shipping_tax_amount: str


class _Parcel(msgspec.Struct):
    shipment_id: UUID
    seller_id: UUID
    status: ParcelStatusText
    carrier: str | None
    tracking_number: str | None
    estimated_delivery: str | None
    created_at: str = ""
    updated_at: str = ""
    version: int = 0


class _Return(msgspec.Struct):
    return_id: UUID
    item_id: UUID
    quantity: int
    status: ReturnStatusText
    processed_at: str | None
    created_at: str
    updated_at: str
    version: int


class _Suborder(msgspec.Struct):
    suborder_id: UUID
    seller_id: UUID
    status: SuborderStatusText
    total_amount: str
    closed_because: ClosedBecauseText | None
    items_amount: str
    shipping_amount: str
    discount_amount: str
    tax_amount: str
    units_ordered: int
    units_live: int
    units_in_transit: int
    units_delivered: int
    units_returned: int
    ship_by: str | None
    deliver_by: str | None
    late_since: str | None


class _Payment(msgspec.Struct):
    payment_id: UUID
    status: PaymentStatusText
    amount: str | None
    currency: str | None
    method: str | None
    created_at: str
    updated_at: str
    version: int


class _Refund(msgspec.Struct):
    refund_id: UUID
    number: int
    status: RefundStatusText
    amount: str
    tax_amount: str
    currency: str
    cause: RefundCauseText
    cause_id: UUID
    attempt: int
    requested_at: str
    settled_at: str | None
    created_at: str
    updated_at: str
    version: int


class _Attention(msgspec.Struct):
    kind: str
    detail: str
    since: str
    cleared_at: str | None


_items: Final = msgspec.json.Decoder(list[_Item])
_parcels: Final = msgspec.json.Decoder(list[_Parcel])
_returns: Final = msgspec.json.Decoder(list[_Return])
_suborder_of: Final = msgspec.json.Decoder(_Suborder)
_parts: Final = msgspec.json.Decoder(list[_Suborder])
_payments: Final = msgspec.json.Decoder(list[_Payment])
_refunds: Final = msgspec.json.Decoder(list[_Refund])
_attentions: Final = msgspec.json.Decoder(list[_Attention])


def as_listed(row: Sequence[Any], sees_all: bool) -> Head | SellerHead:
    """Convert a row of `orders`, for a caller who sees all orders whole, or only those of its users."""
    head = as_head(row[2:])
    if sees_all or row[1]:
        return head
    return SellerHead(
        head.order_id, head.status, head.currency, head.created_at, head.updated_at, head.version
    )


def as_head(row: Sequence[Any]) -> Head:
    """Convert a row of `history`."""
    id_, user_id, status, currency, total, created_at, updated_at, version_ = row
    return Head(
        id_,
        user_id,
        status,
        currency,
        as_amount(total, currency),
        _time(created_at),
        _time(updated_at),
        version_,
    )


def as_details(row: Sequence[Any]) -> OrderDetails:
    """Convert a row of `details`."""
    head, (region, discount, tax, items, shipments, returns) = as_head(row[:8]), row[8:14]
    parts, payments, refunds, cart_id, cart_created_at, attention = row[14:]
    currency = head.currency
    details = OrderDetails(
        head.order_id,
        head.user_id,
        head.status,
        currency,
        head.total_amount,
        head.created_at,
        head.updated_at,
        head.version,
        region,
        as_amount(discount, currency),
        as_amount(tax, currency),
        [_item_of(each, currency) for each in _items.decode(items or "[]")],
        [
            ParcelDetails(*_parcel_fields(each), _iso(each.created_at), _iso(each.updated_at), each.version)
            for each in _parcels.decode(shipments or "[]")
        ],
        [
            Return(
                each.return_id,
                each.item_id,
                each.quantity,
                each.status,
                _iso_or_none(each.processed_at),
                _iso(each.created_at),
                _iso(each.updated_at),
                each.version,
            )
            for each in _returns.decode(returns or "[]")
        ],
        sorted(
            (_suborder_details(each, currency) for each in _parts.decode(parts or "[]")),
            key=attrgetter("seller_id"),
        ),
        [_payment_of(each) for each in _payments.decode(payments or "[]")],
        sorted((_refund_of(each) for each in _refunds.decode(refunds or "[]")), key=attrgetter("number")),
        cart_id,
        None if cart_created_at is None else _time(cart_created_at),
        sorted(map(_attention_as_is, _attentions.decode(attention or "[]")), key=_open_first),
    )
    details.moments = _moments(details)
    return details


def _item_of(each: _Item, currency: str) -> Item:
    return Item(
        each.item_id,
        each.product_id,
        each.seller_id,
        each.warehouse_id,
        each.sku,
        each.quantity,
        as_amount(each.price, currency),
        as_amount(each.shipping_amount, currency),
        as_amount(each.tax_amount, currency),
        as_amount(each.shipping_tax_amount, currency),
    )


def _suborder_details(each: _Suborder, currency: str) -> SuborderDetails:
    return SuborderDetails(
        each.suborder_id,
        each.seller_id,
        each.status,
        as_amount(each.total_amount, currency),
        each.closed_because,
        as_amount(each.items_amount, currency),
        as_amount(each.shipping_amount, currency),
        as_amount(each.discount_amount, currency),
        as_amount(each.tax_amount, currency),
        each.units_ordered,
        each.units_live,
        each.units_in_transit,
        each.units_delivered,
        each.units_returned,
        _iso_or_none(each.ship_by),
        _iso_or_none(each.deliver_by),
        _iso_or_none(each.late_since),
    )


def _payment_of(each: _Payment) -> Payment:
    return Payment(
        each.payment_id,
        each.status,
        None if each.amount is None or each.currency is None else as_amount(each.amount, each.currency),
        each.currency,
        each.method,
        _iso(each.created_at),
        _iso(each.updated_at),
        each.version,
    )


def _attention_as_is(each: _Attention) -> Attention:
    return Attention(each.kind, each.detail, _iso(each.since), _iso_or_none(each.cleared_at))


def _open_first(each: Attention) -> tuple[bool, datetime, str]:
    return each.cleared_at is not None, datetime.fromisoformat(each.since), each.kind


def _refund_of(each: _Refund) -> Refund:
    return Refund(
        each.refund_id,
        each.number,
        each.status,
        as_amount(each.amount, each.currency),
        as_amount(each.tax_amount, each.currency),
        each.currency,
        each.cause,
        each.cause_id,
        each.attempt,
        _iso(each.requested_at),
        _iso_or_none(each.settled_at),
        _iso(each.created_at),
        _iso(each.updated_at),
        each.version,
    )


def as_summary(details: OrderDetails) -> Summary:
    """Return the part of an order's summary that its rows hold."""
    shipments = [
        Parcel(
            each.shipment_id,
            each.seller_id,
            each.status,
            each.carrier,
            each.tracking_number,
            each.estimated_delivery,
        )
        for each in details.shipments
    ]
    return Summary(
        details.order_id,
        details.user_id,
        details.status,
        details.currency,
        details.total_amount,
        details.created_at,
        details.updated_at,
        details.version,
        [
            Suborder(each.suborder_id, each.seller_id, each.status, each.total_amount)
            for each in details.suborders
        ],
        shipments,
    )


def as_tracked(row: Sequence[Any]) -> Tracked:
    """Convert a row of `tracking`."""
    order_id, shipment_id, carrier, status, estimated = row
    return Tracked(
        order_id, shipment_id, carrier, status, None, None if estimated is None else _time(estimated)
    )


def as_sold(row: Sequence[Any]) -> Sold:
    """Convert a row of `suborders`."""
    order_id, created_at, status, currency, version_, part, shipments = row
    own = _suborder_details(_suborder_of.decode(part), currency)
    return Sold(
        own.suborder_id,
        order_id,
        _time(created_at),
        status,
        currency,
        own.units_ordered,
        own.items_amount,
        own.shipping_amount,
        version_,
        [Parcel(*_parcel_fields(each)) for each in _parcels.decode(shipments or "[]")],
        own.status,
        own.total_amount,
        own.closed_because,
        own.discount_amount,
        own.tax_amount,
        own.units_live,
        own.units_in_transit,
        own.units_delivered,
        own.units_returned,
        own.ship_by,
        own.deliver_by,
        own.late_since,
    )


def _parcel_fields(each: _Parcel) -> tuple[UUID, UUID, ParcelStatusText, str | None, str | None, str | None]:
    estimated = _iso_or_none(each.estimated_delivery)
    return each.shipment_id, each.seller_id, each.status, each.carrier, each.tracking_number, estimated


def _moments(details: OrderDetails) -> list[Moment]:
    moments = [Moment(details.created_at, "created", details.order_id)]
    for parcel in details.shipments:
        moments.append(Moment(parcel.created_at, "parcel first scanned", parcel.shipment_id))
        moments.append(Moment(parcel.updated_at, "parcel status", parcel.shipment_id, parcel.status))
    for each in details.returns:
        moments.append(Moment(each.created_at, "return requested", each.return_id))
        moments.append(
            Moment(each.processed_at or each.updated_at, "return status", each.return_id, each.status)
        )
    moments.append(Moment(details.updated_at, "last fact", details.order_id, details.status))
    return sorted(moments, key=lambda moment: datetime.fromisoformat(moment.time))


def as_amount(text: str, currency: str) -> str:
    """Convert numeric(20,4) as text to text with the currency's digits, as the pipeline writes it. Pure."""
    whole, _, fraction = text.partition(".")
    digits = money.DIGITS.get(currency, 4)
    return f"{whole}.{fraction[:digits].ljust(digits, '0')}" if digits else whole


def _time(value: datetime) -> str:
    return times.text((value - _EPOCH) // _MICROSECOND)


def _iso(value: str) -> str:
    return _time(datetime.fromisoformat(value))


def _iso_or_none(value: str | None) -> str | None:
    return None if value is None else _iso(value)
