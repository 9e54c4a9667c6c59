"""What readers get: the shapes of the answers.
`api/` describes them to its clients by these very declarations.

Amounts are decimal text in major units with the currency's digits, times RFC 3339 in UTC, as
in the events and in Redis.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

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

Amount = Annotated[str, Field(description="Decimal text in major units.", examples=["129.90"])]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Version = Annotated[
    int,
    Field(description="Grows with each fact taken in; the ETag, and the token for reading one's own writes."),
]


@dataclass(slots=True)
class Suborder:
    """One seller's part of an order."""

    suborder_id: UUID
    seller_id: UUID
    status: SuborderStatusText
    total_amount: Annotated[Amount, Field(description="Of the live units, less their discount.")]


@dataclass(slots=True)
class SuborderDetails(Suborder):
    """A suborder with everything that its row holds. Amounts are over its live units; of the units, all, live
    ones, and live ones at least so far.
    """

    closed_because: Annotated[
        ClosedBecauseText | None, Field(description="Why no unit is live; null: some is.")
    ]
    items_amount: Amount
    shipping_amount: Amount
    discount_amount: Amount
    tax_amount: Annotated[Amount, Field(description="The shipping's too.")]
    units_ordered: int
    units_live: int
    units_in_transit: int
    units_delivered: int
    units_returned: int
    ship_by: Annotated[Time | None, Field(description="The earliest promised.")]
    deliver_by: Annotated[Time | None, Field(description="The earliest promised.")]
    late_since: Time | None


@dataclass(slots=True)
class Payment:
    """A payment. One that failed, and never succeeded, has neither amount nor currency. Its reason is free
    text, and stays in the rows.
    """

    payment_id: UUID
    status: PaymentStatusText
    amount: Amount | None
    currency: str | None
    method: str | None
    created_at: Time
    updated_at: Time
    version: int


@dataclass(slots=True)
class Refund:
    """A refund that was decided. A reason why it failed is free text, and stays in the rows."""

    refund_id: UUID
    number: Annotated[int, Field(description="0, 1, ... by decision.")]
    status: RefundStatusText
    amount: Amount
    tax_amount: Annotated[Amount, Field(description="What of the amount is tax.")]
    currency: str
    cause: RefundCauseText
    cause_id: Annotated[UUID, Field(description="Of the return, the seller or the order.")]
    attempt: Annotated[int, Field(description="The latest that was asked for.")]
    requested_at: Time
    settled_at: Annotated[Time | None, Field(description="When it was paid out.")]
    created_at: Time
    updated_at: Time
    version: int


@dataclass(slots=True)
class Attention:
    """Something that a person should look at, and since when it holds."""

    kind: Annotated[str, Field(examples=["refund_uncovered"])]
    detail: Annotated[str, Field(description="All that hold of this kind.")]
    since: Annotated[Time, Field(description="The event time from which on it holds.")]
    cleared_at: Annotated[Time | None, Field(description="When it no longer held; null: it holds.")]


@dataclass(slots=True)
class Parcel:
    """A parcel as its winning scan has it."""

    shipment_id: UUID
    seller_id: UUID
    status: ParcelStatusText
    carrier: str | None
    tracking_number: str | None
    estimated_delivery: Time | None


@dataclass(slots=True)
class Head:
    """An order without its parts."""

    order_id: UUID
    user_id: UUID
    status: OrderStatusText
    currency: str
    total_amount: Amount
    created_at: Time
    updated_at: Time
    version: Version


@dataclass(slots=True)
class Summary(Head):
    """An order as the cache has it."""

    suborders: list[Suborder]
    shipments: list[Parcel]


@dataclass(slots=True)
class SellerSummary:
    """An order as one of its sellers sees it: without its user and without what it has of other sellers.
    Status, times and version are those of the whole order.
    """

    order_id: UUID
    status: OrderStatusText
    currency: str
    created_at: Time
    updated_at: Time
    version: Version
    suborders: list[Suborder]
    shipments: list[Parcel]


@dataclass(slots=True)
class Item:
    """One line of an order."""

    item_id: UUID
    product_id: UUID
    seller_id: UUID
    warehouse_id: UUID | None
    sku: str
    quantity: int
    price: Amount
    shipping_amount: Amount
    tax_amount: Annotated[Amount, Field(description="The tax of all its units, without the shipping's.")]
    shipping_tax_amount: Amount


@dataclass(slots=True)
class ParcelDetails(Parcel):
    """A parcel with the times of its first and latest scan."""

    created_at: Time
    updated_at: Time
    version: int


@dataclass(slots=True)
class Return:
    """A return as its winning stage has it. Its reason is free text of a customer, and stays in the rows."""

    return_id: UUID
    item_id: UUID
    quantity: int
    status: ReturnStatusText
    processed_at: Time | None
    created_at: Time
    updated_at: Time
    version: int


@dataclass(slots=True)
class Moment:
    """Something that happened, as far as the rows show it."""

    time: Time
    what: Literal[
        "created", "parcel first scanned", "parcel status", "return requested", "return status", "last fact"
    ]
    id: Annotated[UUID, Field(description="Of the order, parcel or return.")]
    status: Annotated[str | None, Field(description="Since then.")] = None


@dataclass(slots=True)
class OrderDetails(Head):
    """An order with everything that its rows hold."""

    region: str
    discount_amount: Amount
    tax_amount: Annotated[
        Amount, Field(description="All of it, the shipping's too. total_amount includes it, either way.")
    ]
    items: list[Item]
    shipments: list[ParcelDetails]
    returns: list[Return]
    suborders: list[SuborderDetails]
    payments: list[Payment]
    refunds: Annotated[list[Refund], Field(description="In the order of their numbers.")]
    cart_id: Annotated[UUID | None, Field(description="The cart that became the order, if its sender said.")]
    cart_created_at: Time | None
    attention: Annotated[
        list[Attention], Field(description="What holds, the oldest first; then what was seen to hold.")
    ] = field(default_factory=list)
    moments: Annotated[list[Moment], Field(description="In the order of their times.")] = field(
        default_factory=list
    )


@dataclass(slots=True)
class SellerDetails:
    """An order's details as one of its sellers sees them: only the seller's items, parcels and returns."""

    order_id: UUID
    status: OrderStatusText
    currency: str
    created_at: Time
    updated_at: Time
    version: Version
    items: list[Item]
    shipments: list[ParcelDetails]
    returns: list[Return]
    moments: Annotated[list[Moment], Field(description="In the order of their times.")]
    suborders: list[SuborderDetails]


@dataclass(slots=True)
class Orders:
    """A page of a user's orders, newest first."""

    orders: list[Head]
    next: Annotated[
        str | None,
        Field(description="Give it as `cursor` for the page after this one; null: this was the last one."),
    ]


@dataclass(slots=True)
class SellerHead:
    """An order without its parts, as one of its sellers sees it."""

    order_id: UUID
    status: OrderStatusText
    currency: str
    created_at: Time
    updated_at: Time
    version: Version


@dataclass(slots=True)
class OrderPage:
    """A page of orders, newest first."""

    orders: Annotated[
        list[Head | SellerHead], Field(description="Whole, or as one of their sellers sees them.")
    ]
    next: Annotated[
        str | None,
        Field(description="Give it as `cursor` for the page after this one; null: this was the last one."),
    ]


@dataclass(slots=True)
class FactCause:
    """What a fact of the pipeline's own was decided for, or what it waited for."""

    type: str
    id: UUID | None


@dataclass(slots=True)
class ToldFact:
    """A fact of an order."""

    n: Annotated[int, Field(description="Its number in this answer, from 1.")]
    time: Annotated[
        Time,
        Field(description="When it happened, as its sender says. Of a cart without a time: the order's."),
    ]
    appended: Annotated[Time | None, Field(description="When the broker took its record. null: not known.")]
    type: Annotated[
        str, Field(description="The type of its event; cart: that the customer's cart was begun.")
    ]
    what: Annotated[str, Field(description="It in a sentence, without free text.")]
    source: Annotated[str | None, Field(description="Who sent it. null: not known.")]
    cause: Annotated[
        FactCause | None, Field(description="Only of the pipeline's own facts; null of all others.")
    ]
    note: Literal["", "refused", "waits for its order"]


@dataclass(slots=True)
class Reason:
    """A rule that made the order what it is (docs/rules.md has its name)."""

    of: Literal["order", "suborder", "refund", "anomaly"]
    id: Annotated[UUID, Field(description="Of the order, suborder or refund; of an anomaly the order's.")]
    rule: Annotated[str, Field(examples=["status_shipped"])]
    says: str
    facts: Annotated[list[int], Field(description="The numbers of the facts that it rests on.")]
    numbers: Annotated[
        dict[str, int | str], Field(description="Units are integers, amounts decimal text in major units.")
    ]


@dataclass(slots=True)
class UnitsOfLine:
    """A line and how many of its units got how far, each count at least that far."""

    item_id: UUID
    seller_id: UUID
    price: Amount
    discount: Amount
    shipping: Amount
    quantity: int
    gone: int
    live: int
    in_transit: int
    delivered: int
    returned: int


@dataclass(slots=True)
class UnitsOfSuborder:
    """Units of a suborder: all, live, and live ones at least so far."""

    ordered: int
    live: int
    in_transit: int
    delivered: int
    returned: int


@dataclass(slots=True)
class TimelineSuborder:
    """A suborder over its live units."""

    suborder_id: UUID
    seller_id: UUID
    status: SuborderStatusText
    units: UnitsOfSuborder
    total_amount: Amount
    gone_because: Annotated[
        list[str] | None, Field(description="Only there if a unit is gone: the types that say so.")
    ] = None
    ship_by: Annotated[
        str | None, Field(description="The earliest that was promised for a line; null: nothing was.")
    ] = None
    deliver_by: str | None = None
    late_since: Annotated[
        str | None, Field(description="Since when what is late now has been; null: nothing is.")
    ] = None


@dataclass(slots=True)
class TimelineParcel:
    """A parcel as its winning scan has it."""

    shipment_id: UUID
    seller_id: UUID
    status: ParcelStatusText
    carrier: str | None
    tracking_number: str | None
    items: Annotated[
        list[tuple[UUID, int]] | Literal["all the seller's"], Field(description="Items and their units.")
    ]


@dataclass(slots=True)
class TimelineReturn:
    """A return as its winning stage has it; quantity null: the whole line."""

    return_id: UUID
    item_id: UUID
    quantity: int | None
    status: ReturnStatusText


@dataclass(slots=True)
class TimelineMoney:
    """What an order costs, what was paid and what is paid back."""

    total: Amount
    live_total: Amount
    captured: Amount
    refunds_decided: Amount


@dataclass(slots=True)
class TimelineRefund:
    """A refund decision; units: (item, first unit number, how many)."""

    refund_id: UUID
    amount: Amount
    cause: str
    cause_id: UUID
    units: list[tuple[UUID, int, int]]
    shipping: list[UUID]


@dataclass(slots=True)
class TimelineAttention:
    """A kind of what a person should look at; `anomalies` has each that holds of it by itself."""

    kind: str
    detail: str
    since: Time


@dataclass(slots=True)
class Timeline:
    """An order's facts in the order of their times, and why it is what it is. From `status` on the fields are
    only there if order.created is known (as of then); a seller gets none from `user_id` on.
    """

    order_id: UUID
    as_of: Time | None
    known: bool
    version: Version
    facts: list[ToldFact]
    why: list[Reason]
    status: OrderStatusText | None = None
    currency: str | None = None
    lines: list[UnitsOfLine] | None = None
    suborders: list[TimelineSuborder] | None = None
    shipments: list[TimelineParcel] | None = None
    returns: list[TimelineReturn] | None = None
    user_id: UUID | None = None
    region: str | None = None
    cart_id: UUID | None = None
    checkout_id: UUID | None = None
    money: TimelineMoney | None = None
    refunds: list[TimelineRefund] | None = None
    anomalies: list[str] | None = None
    attention: Annotated[
        list[TimelineAttention] | None, Field(description="What a person should look at, the oldest first.")
    ] = None


@dataclass(slots=True)
class Tracked:
    """A parcel under a tracking number."""

    order_id: UUID
    shipment_id: UUID
    carrier: str | None
    status: ParcelStatusText
    location: Annotated[
        str | None,
        Field(
            description="Of the winning scan. Only the cache knows it: null may mean that it has forgotten."
        ),
    ]
    estimated_delivery: Time | None


@dataclass(slots=True)
class TrackedStatus:
    """A parcel under a tracking number, without what leads to a person: its order, and where it was last."""

    shipment_id: UUID
    carrier: str | None
    status: ParcelStatusText
    estimated_delivery: Time | None


@dataclass(slots=True)
class Sold:
    """A seller's part of an order, as its seller sees it. Amounts are over its live units."""

    suborder_id: UUID
    order_id: UUID
    created_at: Time
    order_status: OrderStatusText
    currency: str
    quantity: Annotated[int, Field(description="Units in all lines.")]
    items_amount: Amount
    shipping_amount: Amount
    order_version: int
    shipments: list[Parcel]
    status: SuborderStatusText
    total_amount: Annotated[Amount, Field(description="Of the live units, less their discount.")]
    closed_because: Annotated[
        ClosedBecauseText | None, Field(description="Why no unit is live; null: some is.")
    ]
    discount_amount: Amount
    tax_amount: Annotated[Amount, Field(description="The shipping's too.")]
    units_live: int
    units_in_transit: int
    units_delivered: int
    units_returned: int
    ship_by: Time | None
    deliver_by: Time | None
    late_since: Time | None


@dataclass(slots=True)
class Suborders:
    """A page of a seller's suborders, newest first."""

    suborders: list[Sold]
    next: Annotated[
        str | None,
        Field(description="Give it as `cursor` for the page after this one; null: this was the last one."),
    ]


@dataclass(slots=True)
class SourceHealth:
    """Whether a source of answers is up."""

    up: bool
    lag: Annotated[
        float | None, Field(description="Seconds that a replica is behind; null: unknown, or not a replica.")
    ] = None
    used: Annotated[bool, Field(description="False: passed over, because it is down or too far behind.")] = (
        True
    )


@dataclass(slots=True)
class Health:
    """The health of the service: ok if every source is used, degraded if only some are, down if no database
    answers."""

    status: Literal["ok", "degraded", "down"]
    sources: dict[str, SourceHealth]
