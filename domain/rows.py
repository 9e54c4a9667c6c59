"""An order as rows of its tables, and as the summary that readers find in Redis.
Pure; text as PostgreSQL takes it.

A row's fields are the columns of its table, by name (sinks.schema): ids, enums, money (decimal text in major
units) and times (RFC 3339, +00:00) as text, None for NULL. created_at and updated_at are the earliest and the
latest event time of the row's own facts, the version of a parcel's or a return's row counts that row's own
natural keys, so rows are the same in any order of arrival.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Final

import msgspec

from contracts import ids, money, times
from domain.enums import OrderStatus, Rank, ReturnStatus, SuborderStatus
from domain.order import (
    Created,
    Order,
    PublishedSuborder,
    ReturnStage,
    Scan,
    fact_lists,
)
from domain.shapes import (
    ItemRow,
    OrderRow,
    OrderSummary,
    ReturnRow,
    ShipmentRow,
    ShipmentSummary,
    SuborderSummary,
    Summary,
    Tracking,
)
from domain.tax import sum_of, whole_tax
from domain.totals import RunningTotals, winning_scans, winning_stages

_IN_TRANSIT: Final = Rank.IN_TRANSIT
_DELIVERED: Final = OrderStatus.DELIVERED
_CLOSED: Final = SuborderStatus.CLOSED


def _optional(raw: bytes | None) -> str | None:
    return None if raw is None else ids.text(raw)


def fact_times(order: Order) -> tuple[int, int]:
    """Earliest and latest event time of the order's facts.
    Refused ones and decisions are not facts of the row.
    """
    created = order.created
    assert created is not None
    first = last = created.time
    for facts in fact_lists(order):
        for fact in facts:
            if not fact.refused:
                time = fact.time
                if time < first:
                    first = time
                elif time > last:
                    last = time
    return first, last


def order_row(order_id: str, order: Order) -> OrderRow:
    """Row of orders_order."""
    return _order_row(order_id, order, *fact_times(order))


def _order_row(order_id: str, order: Order, first: int, last: int) -> OrderRow:
    created = order.created
    assert created is not None
    digits = money.DIGITS[created.currency]
    return OrderRow(
        id=order_id,
        user_id=ids.text(created.user_id),
        region=created.region or "",
        status=order.status.text,
        currency=created.currency,
        total_amount=money.text(created.total, digits),
        discount_amount=money.text(created.discount or 0, digits),
        tax_amount=money.text(whole_tax(created), digits),
        cart_id=_optional(created.cart_id),
        cart_created_at=None if created.cart_created_at is None else times.text(created.cart_created_at),
        created_at=times.text(first),
        updated_at=times.text(last),
        version=order.version,
    )


def item_rows(order_id: str, order: Order) -> list[ItemRow]:
    """Rows of orders_order_item. Their only fact is order.created."""
    created = order.created
    assert created is not None
    digits = money.DIGITS[created.currency]
    user_id, region, time = ids.text(created.user_id), created.region or "", times.text(created.time)
    return [
        ItemRow(
            id=ids.text(item.item_id),
            order_id=order_id,
            user_id=user_id,
            region=region,
            product_id=ids.text(item.product_id),
            seller_id=ids.text(item.seller_id),
            warehouse_id=_optional(item.warehouse_id),
            sku=item.sku,
            quantity=item.quantity,
            price=money.text(item.price, digits),
            shipping_amount=money.text(item.shipping or 0, digits),
            tax_amount=money.text(sum_of(item.taxes), digits),
            shipping_tax_amount=money.text(sum_of(item.shipping_taxes), digits),
            created_at=time,
            updated_at=time,
            version=1,
        )
        for item in created.items
    ]


def shipment_rows(
    order_id: str, order: Order, wanted: Iterable[bytes] | None = None, totals: RunningTotals | None = None
) -> list[ShipmentRow]:
    """Rows of orders_shipment for the `wanted` parcels (all without it). `totals`: those of the order, if
    they are at hand.
    """
    created = order.created
    assert created is not None
    user_id, region = ids.text(created.user_id), created.region or ""
    winners = winning_scans(order) if totals is None else totals.parcels
    by_parcel: dict[bytes, list[Scan]] = {
        shipment_id: [] for shipment_id in (winners if wanted is None else wanted)
    }
    for scan in order.scans:
        if scan.shipment_id in by_parcel:
            by_parcel[scan.shipment_id].append(scan)
    rows: list[ShipmentRow] = []
    for shipment_id, scans in by_parcel.items():
        winner = winners.get(shipment_id)
        if winner is None:
            continue
        seen = [scan.time for scan in scans if not scan.refused]
        estimated = winner.estimated_delivery
        rows.append(
            ShipmentRow(
                id=ids.text(shipment_id),
                order_id=order_id,
                user_id=user_id,
                region=region,
                seller_id=ids.text(winner.seller_id),
                warehouse_id=_optional(winner.warehouse_id),
                carrier=winner.carrier,
                tracking_number=winner.tracking_number,
                status=winner.rank.text,
                estimated_delivery=None if estimated is None else times.text(estimated),
                created_at=times.text(min(seen)),
                updated_at=times.text(max(seen)),
                version=len(scans),
            )
        )
    return rows


def return_rows(order_id: str, order: Order, wanted: Iterable[bytes] | None = None) -> list[ReturnRow]:
    """Rows of orders_return for the `wanted` returns (all without it)."""
    created = order.created
    assert created is not None
    user_id, region = ids.text(created.user_id), created.region or ""
    quantity = {item.item_id: item.quantity for item in created.items}
    winners = winning_stages(order)
    by_return: dict[bytes, list[ReturnStage]] = {
        return_id: [] for return_id in (winners if wanted is None else wanted)
    }
    for stage in order.returns:
        if stage.return_id in by_return:
            by_return[stage.return_id].append(stage)
    rows: list[ReturnRow] = []
    for return_id, stages in by_return.items():
        winner = winners.get(return_id)
        if winner is None:
            continue
        seen = [stage.time for stage in stages if not stage.refused]
        processed = None
        if winner.status is ReturnStatus.PROCESSED:
            processed = times.text(winner.time if winner.processed_at is None else winner.processed_at)
        rows.append(
            ReturnRow(
                id=ids.text(return_id),
                order_id=order_id,
                user_id=user_id,
                region=region,
                order_item_id=ids.text(winner.item_id),
                quantity=winner.quantity or quantity[winner.item_id],
                reason=winner.reason,
                status=winner.status.text,
                processed_at=processed,
                created_at=times.text(min(seen)),
                updated_at=times.text(max(seen)),
                version=len(stages),
            )
        )
    return rows


_encode: Final = msgspec.json.Encoder().encode


MANY_PARCELS: Final = 200
"""Parcels of an order up to which each of its entries in Redis is refreshed with it; beyond, those that have
changed. Nor does one number show more of an order's parcels than that.
"""


def order_row_and_summary(
    order_id: str,
    raw_id: bytes,
    order: Order,
    changed: Container[bytes] | None = None,
    totals: RunningTotals | None = None,
) -> tuple[OrderRow, Summary]:
    """Both at once: they share texts and times. `changed`: parcels of the events at hand; None: all.
    `totals`: those of the order, if they are at hand.
    """
    first, last = fact_times(order)
    row = _order_row(order_id, order, first, last)
    winners = winning_scans(order) if totals is None else totals.parcels
    return row, _summary(order_id, raw_id, order, row, first, changed, winners)


def suborder_summaries(raw_id: bytes, order: Order) -> list[SuborderSummary]:
    """What the summary of an order tells of its suborders, in the order of seller ids."""
    created = order.created
    assert created is not None
    digits = money.DIGITS[created.currency]
    sellers = (
        sorted({item.seller_id for item in created.items})
        if len(created.items) > 1
        else [created.items[0].seller_id]
    )
    summaries = []
    for seller_id, part in zip(sellers, order.suborders, strict=True):
        seller = ids.text(seller_id)
        total = money.text(_total_of(part, created), digits)
        summaries.append(
            SuborderSummary(ids.uuid5_text(raw_id, f"suborder:{seller}"), seller, part.status.text, total)
        )
    return summaries


def _total_of(part: PublishedSuborder, created: Created) -> int:
    """Minor units. `created`: that of its order, which says whether prices include the tax."""
    net = part.items_amount + part.shipping - part.discount
    return net if created.prices_include_tax else net + part.tax


def _summary(
    order_id: str,
    raw_id: bytes,
    order: Order,
    row: OrderRow,
    first: int,
    changed: Container[bytes] | None,
    winners: Mapping[bytes, Scan],
) -> Summary:
    created = order.created
    assert created is not None
    suborders = suborder_summaries(raw_id, order)
    shipments: list[ShipmentSummary] = []
    tracking: list[tuple[str, str, bytes]] = []
    untracked: list[tuple[str, str]] = []
    moving = False
    if winners:
        shown: dict[str, int] = {}
        if len(winners) <= MANY_PARCELS:
            changed = None
        for shipment_id, scan in winners.items():
            shipment = ids.text(shipment_id)
            status = scan.rank.text
            estimated = None if scan.estimated_delivery is None else times.text(scan.estimated_delivery)
            shipments.append(
                ShipmentSummary(
                    shipment, ids.text(scan.seller_id), status, scan.carrier, scan.tracking_number, estimated
                )
            )
            moving = moving or scan.rank is _IN_TRANSIT
            if scan.tracking_number and (changed is None or shipment_id in changed):
                entry = Tracking(order_id, shipment, scan.carrier, status, scan.location, estimated)
                shown[scan.tracking_number] = count = shown.get(scan.tracking_number, 0) + 1
                if count <= MANY_PARCELS:
                    tracking.append((scan.tracking_number, shipment, _encode(entry)))
        if len(order.scans) > len(winners):
            stale = {
                (scan.tracking_number, scan.shipment_id)
                for scan in order.scans
                if scan.tracking_number
                and scan.shipment_id in winners
                and (changed is None or scan.shipment_id in changed)
                and winners[scan.shipment_id].tracking_number != scan.tracking_number
            }
            untracked = [(number, ids.text(shipment_id)) for number, shipment_id in sorted(stale)]
    value = OrderSummary(
        order_id,
        row.user_id,
        row.status,
        row.currency,
        row.total_amount,
        row.created_at,
        row.updated_at,
        row.version,
        suborders,
        shipments,
    )
    settled = not moving
    if settled and order.status < _DELIVERED:
        settled = all(part.status is _CLOSED for part in order.suborders)
    return Summary(row.user_id, first // 1000, settled, _encode(value), tracking, untracked, suborders)
