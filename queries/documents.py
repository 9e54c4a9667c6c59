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

from contracts.statuses import OrderStatusText, ParcelStatusText, ReturnStatusText, SuborderStatusText

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
    status: Annotated[
        SuborderStatusText | None,
        Field(description="null: only the cache knows it, and it has forgotten the order."),
    ] = None
    total_amount: Annotated[
        str | None, Field(description="Of the live units, less their discount. null: as with status.")
    ] = None


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
    moments: Annotated[list[Moment], Field(description="In the order of their times.")] = field(
        default_factory=list
    )
    suborders: list[Suborder] = field(default_factory=list)


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
    suborders: list[Suborder]


@dataclass(slots=True)
class Orders:
    """A page of a user's orders, newest first."""

    orders: list[Head]
    next: Annotated[
        str | None,
        Field(description="Give it as `cursor` for the page after this one; null: this was the last one."),
    ]


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
    """A seller's part of an order, as its seller sees it. Amounts are as ordered."""

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
    status: Annotated[
        SuborderStatusText | None,
        Field(description="null: only the cache knows it, and it has forgotten the order."),
    ] = None
    total_amount: Annotated[
        str | None, Field(description="Of the live units, less their discount. null: as with status.")
    ] = None


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
