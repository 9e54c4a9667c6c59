"""Events that are read: the wire form of their data, and one entry for each (docs/events.md, In)."""

from __future__ import annotations

from typing import Annotated, Final
from uuid import UUID

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from contracts import ids
from contracts.catalogue import EventSpec
from contracts.statuses import DeadlineText, ParcelStatusText, RefundCauseText, ReturnStatusText

MOST_CHARACTERS: Final = 1_000
"""Of a text."""
MOST_ITEMS: Final = 1_000
"""Of an order, a parcel or a reply."""
MOST_TAXES: Final = 20
"""Of a line, and of its shipping."""

Text = Annotated[str, Meta(max_length=MOST_CHARACTERS)]
Money = Annotated[
    str,
    Meta(
        max_length=MOST_CHARACTERS,
        description=(
            "major units, ^(0|[1-9][0-9]*)(\\.[0-9]+)?$, at most the currency's minor digits and 10^15 minor"
            " units"
        ),
    ),
]
Time = Annotated[
    str, Meta(max_length=MOST_CHARACTERS, description="RFC 3339 with offset, cut to microseconds")
]
Day = Annotated[str, Meta(max_length=MOST_CHARACTERS, description="RFC 3339 with offset, or YYYY-MM-DD")]
Currency = Annotated[str, Meta(max_length=MOST_CHARACTERS, description="ISO 4217")]
TaxCode = Annotated[str, Meta(min_length=1, max_length=32)]
Quantity = Annotated[int, Meta(ge=1, le=100_000)]
Attempt = Annotated[int, Meta(ge=1, le=100)]
UnitNumber = Annotated[int, Meta(ge=0, lt=100_000)]
BulkNumber = Annotated[int, Meta(ge=1, le=1_000_000, description="1, 2, ... up to parts")]


class TaxData(Struct, gc=False):
    """One tax on a whole line, or on its shipping. A code stands once in a list."""

    code: TaxCode
    amount: Money


Taxes = Annotated[list[TaxData], Meta(max_length=MOST_TAXES)]


class ItemData(Struct, gc=False):
    item_id: UUID
    product_id: UUID
    seller_id: UUID
    sku: Text
    quantity: Quantity
    price: Money
    warehouse_id: UUID | UnsetType = UNSET
    shipping_amount: Money | UnsetType = UNSET
    taxes: Taxes | UnsetType = UNSET
    shipping_taxes: Taxes | UnsetType = UNSET
    ship_by: Time | UnsetType = UNSET
    deliver_by: Time | UnsetType = UNSET


class ItemQuantity(Struct, gc=False):
    item_id: UUID
    quantity: Quantity


Items = Annotated[list[ItemData], Meta(min_length=1, max_length=MOST_ITEMS)]
ItemQuantities = Annotated[list[ItemQuantity], Meta(max_length=MOST_ITEMS)]


class OrderCreated(Struct, gc=False):
    """A customer placed an order.
    total_amount = sum(price * quantity + shipping_amount) - discount_amount, exactly; with all taxes on top
    unless prices_include_tax, which is required where there is a tax. live_from: until then another system
    handled the order, and what happened before causes no command; refunded_amount: what it paid back.
    """

    order_id: UUID
    user_id: UUID
    currency: Currency
    total_amount: Money
    items: Items
    region: Text | UnsetType = UNSET
    discount_amount: Money | UnsetType = UNSET
    prices_include_tax: bool | UnsetType = UNSET
    cart_id: UUID | UnsetType = UNSET
    cart_created_at: Time | UnsetType = UNSET
    live_from: Time | UnsetType = UNSET
    refunded_amount: Money | UnsetType = UNSET


class CheckoutCompleted(Struct, gc=False):
    """A customer completed a checkout.
    Becomes order.created with order_id = uuid5(checkout_id, "order"), with the same refusals.
    """

    checkout_id: UUID
    user_id: UUID
    currency: Currency
    total_amount: Money
    items: Items
    region: Text | UnsetType = UNSET
    discount_amount: Money | UnsetType = UNSET
    prices_include_tax: bool | UnsetType = UNSET
    cart_id: UUID | UnsetType = UNSET
    cart_created_at: Time | UnsetType = UNSET
    live_from: Time | UnsetType = UNSET
    refunded_amount: Money | UnsetType = UNSET

    @property
    def order_id(self) -> UUID:
        return UUID(bytes=ids.uuid5(self.checkout_id.bytes, "order"))


class OrderPaid(Struct, gc=False):
    """Money was captured. An order may have several payments."""

    order_id: UUID
    payment_id: UUID
    amount: Money
    currency: Currency
    method: Text | UnsetType = UNSET


class PaymentFailed(Struct, gc=False):
    """A payment attempt failed."""

    order_id: UUID
    payment_id: UUID
    reason: Text


class StockReserved(Struct, gc=False):
    """The inventory reserved a seller's units."""

    order_id: UUID
    seller_id: UUID
    reservation_id: UUID


class StockRejected(Struct, gc=False):
    """These units are not to be had: never left and never will. Without items: all the seller's."""

    order_id: UUID
    seller_id: UUID
    reservation_id: UUID
    reason: Text | UnsetType = UNSET
    items: ItemQuantities | UnsetType = UNSET


class StockReleased(StockRejected, gc=False):
    """These units went back to stock before they left. Without items: all the seller's."""


class OrderCancelRequested(Struct, gc=False):
    """Somebody asks to cancel the order, or one seller's part of it."""

    order_id: UUID
    reason: Text
    seller_id: UUID | UnsetType = UNSET


class PromiseUpdated(Struct, gc=False):
    """A seller promises anew until when all its lines are in transit (ship_by) and delivered (deliver_by).
    Of each the latest by the event's time counts, instead of what order.created says.
    """

    order_id: UUID
    seller_id: UUID
    ship_by: Time | UnsetType = UNSET
    deliver_by: Time | UnsetType = UNSET


class ShipmentUpdated(Struct, gc=False):
    """A parcel was scanned. Without items: it holds all the seller's units in this order."""

    order_id: UUID
    shipment_id: UUID
    seller_id: UUID
    status: ParcelStatusText
    warehouse_id: UUID | UnsetType = UNSET
    carrier: Text | UnsetType = UNSET
    tracking_number: Text | UnsetType = UNSET
    estimated_delivery: Day | UnsetType = UNSET
    location: Text | UnsetType = UNSET
    items: ItemQuantities | UnsetType = UNSET


class OrderReturned(Struct, gc=False):
    """A return went through a stage.
    quantity absent: the whole line; processed_at absent: the event's time; restock absent: true.
    """

    order_id: UUID
    return_id: UUID
    item_id: UUID
    reason: Text
    status: ReturnStatusText
    quantity: Quantity | UnsetType = UNSET
    processed_at: Time | UnsetType = UNSET
    restock: bool | UnsetType = UNSET


class RefundCompleted(Struct, gc=False):
    """The payment service paid a refund. attempt: that of the refund.request; absent: 1."""

    order_id: UUID
    refund_id: UUID
    reason: Text | UnsetType = UNSET
    attempt: Attempt | UnsetType = UNSET


class RefundFailed(RefundCompleted, gc=False):
    """The payment service couldn't pay a refund."""


class RefundGranted(Struct, gc=False):
    """Customer service granted a refund as goodwill. It pays for no unit.
    amount above 0; seller_id and item_id say what it is about.
    """

    order_id: UUID
    grant_id: UUID
    amount: Money
    currency: Currency
    reason: Text
    seller_id: UUID | UnsetType = UNSET
    item_id: UUID | UnsetType = UNSET


class RefundDecided(Struct, gc=False):
    """Internal (orders.decisions): the n-th refund of an order, fixed for ever.
    amount in minor units, and the tax in it, if the order has any; units are [item_id, unit number].
    allocations are [payment_id, minor units] and add up to amount; decisions of earlier versions have none.
    """

    order_id: UUID
    n: Annotated[int, Meta(ge=0)]
    amount: Annotated[int, Meta(ge=1)]
    cause: RefundCauseText
    cause_id: UUID
    units: list[tuple[UUID, UnitNumber]]
    shipping: list[UUID]
    tax_amount: Annotated[int, Meta(ge=0)] | UnsetType = UNSET
    allocations: list[tuple[UUID, Annotated[int, Meta(ge=1)]]] | UnsetType = UNSET


class DeadlinePassed(Struct, gc=False):
    """Internal (orders.decisions): an answer did not come in time, by the broker's clock, or what was
    promised didn't happen by `due`. `final`: it isn't waited for any longer.
    """

    order_id: UUID
    deadline: DeadlineText
    attempt: Quantity
    final: bool
    seller_id: UUID | UnsetType = UNSET
    refund_id: UUID | UnsetType = UNSET
    return_id: UUID | UnsetType = UNSET
    due: Time | UnsetType = UNSET


class BulkPart(Struct, gc=False):
    """One part of a bulk job, whatever its events are: see contracts.bulk."""

    job_id: UUID
    part: BulkNumber
    parts: BulkNumber
    events: Annotated[list[Raw], Meta(max_length=10_000)]

    @property
    def order_id(self) -> UUID:
        """What its record is keyed by."""
        return self.job_id


class BulkOrder(OrderCreated, gc=False, kw_only=True):
    """The data of order.created, with the id and the time of the event."""

    id: Text
    time: Time


class BulkShipment(ShipmentUpdated, gc=False, kw_only=True):
    """The data of shipment.updated, with the id and the time of the event."""

    id: Text
    time: Time


class BulkReturn(OrderReturned, gc=False, kw_only=True):
    """The data of order.returned, with the id and the time of the event."""

    id: Text
    time: Time


class BulkPayment(OrderPaid, gc=False, kw_only=True):
    """The data of order.paid, with the id and the time of the event."""

    id: Text
    time: Time


class OrderBulk(Struct, gc=False):
    """A part of a job: many orders at once.
    Each becomes an order.created, at a pace that leaves what is interactive its latency.
    """

    job_id: UUID
    part: BulkNumber
    parts: BulkNumber
    events: Annotated[list[BulkOrder], Meta(max_length=10_000)]


class ShipmentBulk(Struct, gc=False):
    """A part of a job: many scans at once. Each becomes a shipment.updated."""

    job_id: UUID
    part: BulkNumber
    parts: BulkNumber
    events: Annotated[list[BulkShipment], Meta(max_length=10_000)]


class ReturnBulk(Struct, gc=False):
    """A part of a job: many returns at once. Each becomes an order.returned."""

    job_id: UUID
    part: BulkNumber
    parts: BulkNumber
    events: Annotated[list[BulkReturn], Meta(max_length=10_000)]


class PaymentBulk(Struct, gc=False):
    """A part of a job: many payments at once. Each becomes an order.paid."""

    job_id: UUID
    part: BulkNumber
    parts: BulkNumber
    events: Annotated[list[BulkPayment], Meta(max_length=10_000)]


DECISIONS: Final = "orders.decisions"
"""The topic of the pipeline's own decisions, which come back as facts."""

_MOST: Final = 1 << 20
_MOST_SCANS: Final = 2 << 20
_MOST_PROMISES: Final = 1 << 17
"""Some 1,600: each may come to three deadlines."""
_MOST_DECISIONS: Final = 11 << 20
_MOST_GRANTS: Final = 1 << 18
"""Some 3,000: each may become a decision, too."""

INPUT: Final[tuple[EventSpec, ...]] = (
    EventSpec("checkout.completed", CheckoutCompleted, "checkout", "the order that it becomes"),
    EventSpec("order.created", OrderCreated, "checkout", "the order itself"),
    EventSpec("order.paid", OrderPaid, "payment service", "payment_id", "payments", _MOST),
    EventSpec("payment.failed", PaymentFailed, "payment service", "payment_id", "failures", _MOST),
    EventSpec("stock.reserved", StockReserved, "inventory", "seller_id", "stock", _MOST),
    EventSpec(
        "stock.rejected",
        StockRejected,
        "inventory",
        "seller_id and items as sent, so two partial rejections both count",
        "stock",
        _MOST,
    ),
    EventSpec(
        "stock.released",
        StockReleased,
        "inventory",
        "seller_id and items as sent, so two partial releases both count",
        "stock",
        _MOST,
    ),
    EventSpec(
        "order.cancel_requested",
        OrderCancelRequested,
        "customer service",
        "seller_id, or the whole order without it",
        "cancellations",
        _MOST,
    ),
    EventSpec(
        "promise.updated",
        PromiseUpdated,
        "seller",
        "seller_id and the event's time",
        "promises",
        _MOST_PROMISES,
    ),
    EventSpec(
        "shipment.updated",
        ShipmentUpdated,
        "shipping service",
        "shipment_id, status and the event's time",
        "scans",
        _MOST_SCANS,
    ),
    EventSpec("order.returned", OrderReturned, "returns desk", "return_id and status", "returns", _MOST),
    EventSpec(
        "refund.completed", RefundCompleted, "payment service", "refund_id and attempt", "refunds", _MOST
    ),
    EventSpec("refund.failed", RefundFailed, "payment service", "refund_id and attempt", "refunds", _MOST),
    EventSpec("refund.granted", RefundGranted, "customer service", "grant_id", "grants", _MOST_GRANTS),
)
"""Events of other services, in the order of an order's life."""

OWN: Final[tuple[EventSpec, ...]] = (
    EventSpec("refund.decided", RefundDecided, "", "n", None, _MOST_DECISIONS, DECISIONS),
    EventSpec(
        "deadline.passed",
        DeadlinePassed,
        "",
        "deadline, seller_id, return_id or refund_id, and due (ship, unshipped, deliver) or attempt",
        "deadlines",
        _MOST_SCANS,
        DECISIONS,
    ),
)
"""The pipeline's own decisions.
They come to less than their limits by themselves; but anybody may write to orders.decisions.
"""

BULK: Final[tuple[EventSpec, ...]] = (
    EventSpec("order.bulk", OrderBulk, "", "job_id and part"),
    EventSpec("shipment.bulk", ShipmentBulk, "", "job_id and part"),
    EventSpec("return.bulk", ReturnBulk, "", "job_id and part"),
    EventSpec("payment.bulk", PaymentBulk, "", "job_id and part"),
)
"""Parts of bulk jobs (contracts.bulk). They add no fact: what is in them does."""

EVENTS: Final = {spec.type: spec for spec in (*INPUT, *OWN, *BULK)}
"""Every event that is read, by its type."""

DATA: Final[dict[str, type[Struct]]] = {name: spec.model for name, spec in EVENTS.items()}
"""Event type -> wire form of its data."""

LAPSES: Final = "lapses"
"""Field of domain.order.Order that holds deadline.passed of the kinds that came later."""

FACT_FIELDS: Final = (
    *dict.fromkeys(spec.facts for spec in EVENTS.values() if spec.facts is not None),
    LAPSES,
)
"""Fields of domain.order.Order that hold lists of facts."""
