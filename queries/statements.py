"""The statements of the readers (SQLAlchemy Core), and their rows as documents.

Each answer is one statement, so it is of one moment of the database.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, lru_cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.dialects.postgresql import aggregate_order_by

from contracts import ids, money, times
from contracts.statuses import ParcelStatusText, ReturnStatusText
from queries.documents import (
    Head,
    Item,
    Moment,
    OrderDetails,
    Parcel,
    ParcelDetails,
    Return,
    SellerHead,
    Sold,
    Suborder,
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

TRACKED: Final = 100
"""Parcels that a tracking number shows, as in the cache."""


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
        built = aggregate_order_by(_object(**columns), table.c.created_at, table.c.id)
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
    )
    query = sa.select(*columns).where(_order.c.id == _value("order_id", _order.c.id))
    return query.where(_order.c.user_id == _value("user_id", _order.c.user_id)) if by_user else query


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
) -> Query:
    """Orders, newest first: placed at `since` or later and before `until`, behind the position `after`.
    Each row begins with its place in the order of the list, and whether its user is one of `users`.

    Orders of users are found by the index orders_order_user, those of sellers by orders_order_item_seller,
    each no further than the page needs; the latter are sorted by the time of their order.created. Without
    users and sellers nothing serves the order: every partition is read.
    """
    values = {
        "users": list(lists.users) or None,
        "sellers": list(lists.sellers) or None,
        "seller_id": lists.seller_id,
        "status": status,
        "region": region,
        "since": since,
        "until": until,
        **_after(after),
    }
    given = {name: value for name, value in values.items() if value is not None}
    return Query(_orders(frozenset(given), limit), given)


@lru_cache(maxsize=256)
def _orders(given: frozenset[str], limit: int) -> sa.Select[Any]:
    branches = []
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
    for name in ("status", "region"):
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
    i = _item.c
    seller = _each("sellers")
    group = (i.order_id, i.user_id, i.region, i.created_at)
    lines: sa.Select[Any] = sa.select(*group).where(i.seller_id == seller.c.id)
    if "region" in given:
        lines = lines.where(i.region == _value("region", i.region))
    if "users" in given:
        # Those are in the other half, whole.
        lines = lines.where(i.user_id != sa.all_(sa.bindparam("users", type_=_IDS)))
    lines = _placed(lines, given, i.created_at, i.order_id).group_by(*group)
    lines = lines.order_by(i.created_at.desc(), i.order_id.desc())
    if "status" not in given:
        lines = lines.limit(_rows(limit))
    line = lines.correlate(seller).lateral("line")
    # As in `suborders`: with a limit it stays a look into one partition for each line.
    own = (
        sa.select(*_head())
        .where(_order.c.id == line.c.order_id, _order.c.user_id == line.c.user_id)
        .where(_order.c.region == line.c.region)
        .limit(1)
        .lateral("own")
    )
    columns = (line.c.created_at.label("place"), sa.literal_column("false").label("whole"), *own.c)
    query: sa.Select[Any] = sa.select(*columns).select_from(line.join(own, sa.true()))
    if "status" in given:
        query = query.where(own.c.status == _value("status", _order.c.status))
    query = query.order_by(line.c.created_at.desc(), line.c.order_id.desc()).limit(_rows(limit))
    page = query.lateral("page")
    # An order of several of these sellers is there for each of them.
    return (
        sa.select(page)
        .select_from(seller.join(page, sa.true()))
        .distinct()
        .order_by(page.c.place.desc(), page.c.id.desc())
        .limit(_rows(limit))
    )


_IDS: Final = pg.ARRAY(sa.Uuid)


def _each(name: str) -> sa.TableValuedAlias:
    ids_ = sa.func.unnest(sa.bindparam(name, type_=_IDS))
    return ids_.table_valued(sa.column("id", sa.Uuid), name=f"each_of_{name}").render_derived()


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
    orders_order_item_seller, which has the page's order; the orders and parcels of a page are then
    found in their own partitions.
    """
    return Query(_suborders(after is not None, limit), {"seller_id": seller_id, **_after(after)})


@lru_cache(maxsize=256)
def _suborders(paged: bool, limit: int) -> sa.Select[Any]:
    seller_id = _value("seller_id", _item.c.seller_id)
    group = (_item.c.order_id, _item.c.user_id, _item.c.region, _item.c.created_at)
    page = sa.select(
        *group,
        sa.func.sum(_item.c.quantity).label("quantity"),
        sa.func.sum(_item.c.price * _item.c.quantity).label("items_amount"),
        sa.func.sum(_item.c.shipping_amount).label("shipping_amount"),
    ).where(_item.c.seller_id == seller_id)
    if paged:
        page = page.where(*_behind(_item.c.created_at, _item.c.order_id))
    page_ = (
        page.group_by(*group)
        .order_by(_item.c.created_at.desc(), _item.c.order_id.desc())
        .limit(_rows(limit))
        .subquery("page")
    )
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
    # With a limit it stays what it is: a look into one partition for each row of the page, whatever the
    # planner thinks of the tables.
    own = (
        sa.select(_order.c.status, _order.c.currency, _order.c.version)
        .where(
            _order.c.id == page_.c.order_id,
            _order.c.user_id == page_.c.user_id,
            _order.c.region == page_.c.region,
        )
        .limit(1)
        .lateral("own")
    )
    columns = (
        page_.c.order_id,
        page_.c.created_at,
        own.c.status,
        own.c.currency,
        page_.c.quantity,
        sa.cast(page_.c.items_amount, sa.Text),
        sa.cast(page_.c.shipping_amount, sa.Text),
        own.c.version,
        parcels,
    )
    return (
        sa.select(*columns)
        .select_from(page_.join(own, sa.true()))
        .order_by(page_.c.created_at.desc(), page_.c.order_id.desc())
    )


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


_items: Final = msgspec.json.Decoder(list[_Item])
_parcels: Final = msgspec.json.Decoder(list[_Parcel])
_returns: Final = msgspec.json.Decoder(list[_Return])


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
        _amount(total, currency),
        _time(created_at),
        _time(updated_at),
        version_,
    )


def as_details(row: Sequence[Any]) -> OrderDetails:
    """Convert a row of `details`."""
    head, (region, discount, tax, items, shipments, returns) = as_head(row[:8]), row[8:]
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
        _amount(discount, currency),
        _amount(tax, currency),
        [
            Item(
                each.item_id,
                each.product_id,
                each.seller_id,
                each.warehouse_id,
                each.sku,
                each.quantity,
                _amount(each.price, currency),
                _amount(each.shipping_amount, currency),
                _amount(each.tax_amount, currency),
                _amount(each.shipping_tax_amount, currency),
            )
            for each in _items.decode(items or "[]")
        ],
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
                None if each.processed_at is None else _iso(each.processed_at),
                _iso(each.created_at),
                _iso(each.updated_at),
                each.version,
            )
            for each in _returns.decode(returns or "[]")
        ],
    )
    details.moments = _moments(details)
    sellers = sorted({item.seller_id for item in details.items})
    details.suborders = [Suborder(suborder_id(details.order_id, seller), seller) for seller in sellers]
    return details


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
        details.suborders,
        shipments,
    )


def as_tracked(row: Sequence[Any]) -> Tracked:
    """Convert a row of `tracking`."""
    order_id, shipment_id, carrier, status, estimated = row
    return Tracked(
        order_id, shipment_id, carrier, status, None, None if estimated is None else _time(estimated)
    )


def as_sold(seller_id: UUID, row: Sequence[Any]) -> Sold:
    """Convert a row of `suborders`."""
    order_id, created_at, status, currency, quantity, items_amount, shipping_amount, version_, shipments = row
    return Sold(
        suborder_id(order_id, seller_id),
        order_id,
        _time(created_at),
        status,
        currency,
        quantity,
        _amount(items_amount, currency),
        _amount(shipping_amount, currency),
        version_,
        [Parcel(*_parcel_fields(each)) for each in _parcels.decode(shipments or "[]")],
    )


def suborder_id(order_id: UUID, seller_id: UUID) -> UUID:
    """Return the id that the pipeline gives to a seller's part of an order."""
    return UUID(ids.uuid5_text(order_id.bytes, f"suborder:{seller_id}"))


def _parcel_fields(each: _Parcel) -> tuple[UUID, UUID, ParcelStatusText, str | None, str | None, str | None]:
    estimated = None if each.estimated_delivery is None else _iso(each.estimated_delivery)
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


def _amount(text: str, currency: str) -> str:
    """numeric(20,4) as text -> with the currency's digits, as the pipeline writes it."""
    whole, _, fraction = text.partition(".")
    digits = money.DIGITS.get(currency, 4)
    return f"{whole}.{fraction[:digits].ljust(digits, '0')}" if digits else whole


def _time(value: datetime) -> str:
    return times.text((value - _EPOCH) // _MICROSECOND)


def _iso(value: str) -> str:
    return _time(datetime.fromisoformat(value))
