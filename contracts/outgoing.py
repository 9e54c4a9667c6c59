"""Events and commands that are published: the wire form of their data, one entry for
each (docs/events.md, Out).
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contracts.catalogue import DerivedSpec
from contracts.statuses import (
    AttentionStateText,
    ClosedBecauseText,
    LatenessText,
    OrderStatusText,
    RefundCauseText,
    SuborderStatusText,
)

SOURCE: Final = b"/orders"
"""ce_source of everything we publish."""

VERSION: Final = 1
"""Version of the data of everything we publish.
A field may be added under it, never removed or narrowed (contracts/).
"""


class SuborderItem(Struct, gc=False):
    item_id: str
    product_id: str
    sku: str
    quantity: int
    live_quantity: int
    price: str
    shipping_amount: str
    warehouse_id: str | UnsetType = UNSET
    tax_amount: str | UnsetType = UNSET
    shipping_tax_amount: str | UnsetType = UNSET


class SuborderUnits(Struct, gc=False):
    """How many of a suborder's units there are, are live, and of the live ones reached a rank or more."""

    ordered: int
    live: int
    in_transit: int
    delivered: int
    returned: int


class SuborderCreated(Struct, gc=False):
    """An order's part for one seller, as ordered.
    The same whatever else is known: status pending, full amounts, version 1.
    """

    suborder_id: str
    order_id: str
    seller_id: str
    status: SuborderStatusText
    currency: str
    items: list[SuborderItem]
    items_amount: str
    shipping_amount: str
    discount_amount: str
    total_amount: str
    units: SuborderUnits
    version: int
    closed_because: ClosedBecauseText | UnsetType = UNSET
    tax_amount: str | UnsetType = UNSET


class SuborderUpdated(SuborderCreated, gc=False):
    """A suborder's status, amounts (over its live units) or unit counts changed."""


class SuborderLate(Struct, gc=False):
    """A seller is late: by `due`, what it promised or what counts without a promise, so many of its live
    units are not in transit (ship), or in transit and not delivered (deliver).
    """

    suborder_id: str
    order_id: str
    seller_id: str
    what: LatenessText
    due: str
    units: int
    version: int


class StockItem(Struct, gc=False):
    item_id: str
    product_id: str
    sku: str
    quantity: int
    warehouse_id: str | UnsetType = UNSET


class StockReserve(Struct, gc=False):
    """Command to the inventory: reserve a seller's units."""

    reservation_id: str
    order_id: str
    seller_id: str
    items: list[StockItem]


class StockRelease(StockReserve, gc=False):
    """Command to the inventory: a cancellation, or nobody shipped; take back what has not left.
    Only its stock.released makes the units gone.
    """


class StockCommit(Struct, gc=False):
    """Command to the inventory: these units have left with a parcel."""

    commit_id: str
    shipment_id: str
    reservation_id: str
    order_id: str
    seller_id: str
    items: list[StockItem]


class StockRestock(Struct, gc=False):
    """Command to the inventory: sound goods came back."""

    restock_id: str
    order_id: str
    seller_id: str
    return_id: str
    item_id: str
    product_id: str
    sku: str
    quantity: int


class PaymentInitiate(Struct, gc=False):
    """Command to the payment service: collect the order's total."""

    payment_request_id: str
    order_id: str
    user_id: str
    amount: str
    currency: str


class LabelItem(Struct, gc=False):
    item_id: str
    product_id: str
    sku: str
    quantity: int
    warehouse_id: str | UnsetType = UNSET


class ShippingLabelCreate(Struct, gc=False):
    """Command to the shipping service: the order is confirmed, a label for a
    seller's units that are not gone.
    """

    label_request_id: str
    order_id: str
    suborder_id: str
    seller_id: str
    items: list[LabelItem]


class RefundLine(Struct, gc=False):
    """Units of a line that a refund pays for: what they cost, with their tax where it is on top."""

    item_id: str
    quantity: int
    amount: str
    tax_amount: str | UnsetType = UNSET


class RefundAllocation(Struct, gc=False):
    """What of a refund goes back to a captured payment."""

    payment_id: str
    amount: str


class RefundRequest(Struct, gc=False):
    """Command to the payment service: pay back. Fixed by the decision that it follows.
    lines and shipping_amount say what it pays for, whole, also where less than that is left to be refunded;
    allocations add up to amount. attempt: how often it is asked for after failures, with this one.
    First requests of decisions of earlier versions have none of the four; absent attempt: 1.
    """

    refund_id: str
    order_id: str
    amount: str
    currency: str
    cause: RefundCauseText
    cause_id: str
    tax_amount: str | UnsetType = UNSET
    lines: list[RefundLine] | UnsetType = UNSET
    shipping_amount: str | UnsetType = UNSET
    allocations: list[RefundAllocation] | UnsetType = UNSET
    attempt: int | UnsetType = UNSET


class StatusCause(Struct, gc=False):
    type: str
    id: str


class OrderStatusChanged(Struct, gc=False):
    """An order's status changed."""

    order_id: str
    user_id: str
    from_: OrderStatusText = msgspec.field(name="from")
    to: OrderStatusText
    cause: StatusCause
    version: int


class OrderAttention(Struct, gc=False):
    """Something that a person should look at holds of an order, in other words than before, or no longer.
    `detail`: all that hold of this kind; of what was cleared, what was told last.
    """

    order_id: str
    user_id: str
    kind: str
    state: AttentionStateText
    detail: str
    since: str
    version: int


DERIVED: Final = (
    DerivedSpec(
        "suborder.created",
        SuborderCreated,
        "order.created came: one for every seller, whatever else is known.",
        "suborder_id",
        "suborder:SELLER",
        "never",
    ),
    DerivedSpec(
        "suborder.updated",
        SuborderUpdated,
        "The status, the amounts or the unit counts of a seller's part changed.",
        None,
        "VERSION:SELLER",
        "notice",
    ),
    DerivedSpec(
        "suborder.late",
        SuborderLate,
        "A seller's ship_by or deliver_by passed, and units are not in transit, or not delivered: its"
        " deadline.passed came back from orders.decisions.",
        None,
        "WHAT:SELLER:DUE",
        "command",
    ),
    DerivedSpec(
        "stock.reserve",
        StockReserve,
        "order.created came: one for every seller, whatever else is known.",
        "reservation_id",
        "reservation:SELLER",
        "never",
    ),
    DerivedSpec(
        "payment.initiate",
        PaymentInitiate,
        "order.created came, unless its total is 0.",
        "payment_request_id",
        "payment",
        "never",
    ),
    DerivedSpec(
        "shipping.label.create",
        ShippingLabelCreate,
        "The order is confirmed or further for the first time: one for each seller that has units not gone"
        " and no parcel in transit. It does not wait for stock.reserved.",
        "label_request_id",
        "label:SELLER",
        "command",
    ),
    DerivedSpec(
        "stock.release",
        StockRelease,
        "A cancellation came: one for each seller meant that has units neither gone nor in transit. Or a"
        " seller ships too late: for the units that are late (ORDERS_SHIP_CANCEL_AFTER).",
        "reservation_id",
        "reservation:SELLER",
        "command",
    ),
    DerivedSpec(
        "stock.commit",
        StockCommit,
        "A parcel is in transit or further for the first time.",
        "commit_id",
        "commit:SHIPMENT",
        "command",
    ),
    DerivedSpec(
        "stock.restock",
        StockRestock,
        "A return was processed and its goods are sound.",
        "restock_id",
        "restock:RETURN",
        "never",
    ),
    DerivedSpec(
        "refund.request",
        RefundRequest,
        "A refund was decided: its refund.decided came back from orders.decisions. Or it failed some time"
        " ago: again, with the next attempt, which its event id is made of too.",
        "refund_id",
        "refund:N",
        "decided",
    ),
    DerivedSpec(
        "order.status_changed", OrderStatusChanged, "The order's status changed.", None, "VERSION", "notice"
    ),
    DerivedSpec(
        "order.attention",
        OrderAttention,
        "What a person should look at began to hold of an order, holds in other words, or no longer does"
        " (docs/rules.md has the kinds).",
        None,
        "KIND:STATE:VERSION",
        "notice",
    ),
)

SPECS: Final = {spec.type: spec for spec in DERIVED}
"""Every event that is published, by its type."""

DATA: Final[dict[str, type[Struct]]] = {name: spec.model for name, spec in SPECS.items()}
"""Derived event type -> wire form of its data."""

NOTICES: Final = frozenset(
    ("suborder.created", "suborder.updated", "order.status_changed", "order.attention")
)
"""Those that tell what happened and ask for nothing: of what another system did they say so, by their
attribute `history`.
"""
