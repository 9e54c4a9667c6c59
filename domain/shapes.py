"""What the rules hand to each other and to those who write it: events, effects, rows, summaries. No rules.

Apart from the rules, since these may be compiled, and msgspec's structs can't be (docs/decisions/0043).
"""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

from contracts.record_id import RecordId
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
from domain.enums import DeadlineKind
from domain.order import Fact, SimpleFact


class Event(Struct, gc=False):
    """One accepted event: its order, the fact that it adds, and what derived events carry on of it.

    `time` is when it happened, microseconds since 1970; `appended` when the broker took its record,
    milliseconds since 1970 (0: not known).
    """

    type: str
    order_id: bytes
    fact: Fact
    id: str
    time: int
    traceparent: str | None
    appended: int = 0


class Derived(Struct, gc=False):
    """One event to publish. `ce_name`: what its ce_id is the uuid5 of.
    `made`: its data, or what makes them, the same each time. `history`: a notice of what another system did
    (docs/rules.md, History of another system).
    """

    topic: str
    type: str
    ce_name: str
    made: Struct | Callable[[], Struct]
    history: bool = False

    @property
    def data(self) -> Struct:
        """Its data. Pure."""
        data = self.made
        return data if isinstance(data, Struct) else data()


class LateRefusal(Struct, gc=False):
    """A waiting fact that turned out to be refused once its order was known."""

    type: str
    fact: SimpleFact
    code: str
    detail: str
    record: RecordId


Effect = Derived | LateRefusal


class Folded(Struct, gc=False):
    """What one event did.

    `changed`: whether the state has to be written. `refused`: (code, detail) for orders.dlq.
    `effects`: what is to be published.
    """

    changed: bool
    refused: tuple[str, str] | None
    effects: list[Effect]


class DeadlinePolicy(Struct, frozen=True, gc=False):
    """How long an answer may take, in ms, and how often it is asked for (the first time included).
    0 ms: it is not waited for.
    """

    payment: int
    stock: int
    stock_asks: int
    release: int
    release_asks: int
    label: int
    label_asks: int
    refund: int
    refund_asks: int
    history: int
    """An order.created that was older than this when it was appended is history: nothing is waited for."""
    ship: int = 0
    """Where nothing was promised: from the order's being confirmed, and from the seller's last parcel's
    leaving.
    """
    deliver: int = 0
    ship_cancel: int = 0
    """From the moment at which it is late."""
    return_: int = 0
    refund_retry: int = 0
    refund_attempts: int = 1


class Due(Struct, gc=False):
    """One deadline: `at` by the broker's time, ms; the rest as in order.Deadline."""

    at: int
    what: DeadlineKind
    subject: bytes | None
    attempt: int
    final: bool
    due: int | None = None
    """Microseconds since 1970, as in order.Lapse."""


class OrderRow(Struct, gc=False):
    """Of orders_order."""

    id: str
    user_id: str
    region: str
    status: OrderStatusText
    currency: str
    total_amount: str
    discount_amount: str
    tax_amount: str
    cart_id: str | None
    cart_created_at: str | None
    created_at: str
    updated_at: str
    version: int


class ItemRow(Struct, gc=False):
    """Of orders_order_item."""

    id: str
    order_id: str
    user_id: str
    region: str
    product_id: str
    seller_id: str
    warehouse_id: str | None
    sku: str
    quantity: int
    price: str
    shipping_amount: str
    tax_amount: str
    shipping_tax_amount: str
    created_at: str
    updated_at: str
    version: int


class ShipmentRow(Struct, gc=False):
    """Of orders_shipment."""

    id: str
    order_id: str
    user_id: str
    region: str
    seller_id: str
    warehouse_id: str | None
    carrier: str | None
    tracking_number: str | None
    status: ParcelStatusText
    estimated_delivery: str | None
    created_at: str
    updated_at: str
    version: int


class ReturnRow(Struct, gc=False):
    """Of orders_return."""

    id: str
    order_id: str
    user_id: str
    region: str
    order_item_id: str
    quantity: int
    reason: str
    status: ReturnStatusText
    processed_at: str | None
    created_at: str
    updated_at: str
    version: int


class SuborderRow(Struct, gc=False):
    """Of orders_suborder. Amounts are over the live units; `items`: lines, `units`: all of their units."""

    id: str
    order_id: str
    user_id: str
    region: str
    seller_id: str
    status: SuborderStatusText
    closed_because: ClosedBecauseText | None
    currency: str
    items_amount: str
    shipping_amount: str
    discount_amount: str
    tax_amount: str
    total_amount: str
    units_ordered: int
    units_live: int
    units_in_transit: int
    units_delivered: int
    units_returned: int
    ship_by: str | None
    deliver_by: str | None
    late_since: str | None
    order_status: OrderStatusText
    items: int
    units: int
    parcels: int
    parcels_in_transit: int
    parcels_delivered: int
    parcels_returned: int
    returns: int
    created_at: str
    updated_at: str
    version: int


class PaymentRow(Struct, gc=False):
    """Of orders_payment. A failed one has neither amount nor currency nor method."""

    id: str
    order_id: str
    user_id: str
    region: str
    status: PaymentStatusText
    amount: str | None
    currency: str | None
    method: str | None
    reason: str | None
    created_at: str
    updated_at: str
    version: int


class RefundRow(Struct, gc=False):
    """Of orders_refund."""

    id: str
    order_id: str
    user_id: str
    region: str
    number: int
    status: RefundStatusText
    amount: str
    tax_amount: str
    currency: str
    cause: RefundCauseText
    cause_id: str
    attempt: int
    reason: str | None
    requested_at: str
    settled_at: str | None
    created_at: str
    updated_at: str
    version: int


class AttentionRow(Struct, gc=False):
    """Of orders_attention. `detail`: all that hold of this kind; `cleared_at` None: it holds."""

    order_id: str
    user_id: str
    region: str
    kind: str
    detail: str
    since: str
    cleared_at: str | None
    created_at: str
    updated_at: str
    version: int


Row = OrderRow | ItemRow | ShipmentRow | ReturnRow | SuborderRow | PaymentRow | RefundRow | AttentionRow


class SuborderSummary(Struct, gc=False):
    suborder_id: str
    seller_id: str
    status: SuborderStatusText
    total_amount: str


class ShipmentSummary(Struct, gc=False):
    shipment_id: str
    seller_id: str
    status: ParcelStatusText
    carrier: str | None
    tracking_number: str | None
    estimated_delivery: str | None


class OrderSummary(Struct, gc=False):
    """Value of `order:{order_id}` in Redis (docs/rules.md, Summaries in Redis)."""

    order_id: str
    user_id: str
    status: OrderStatusText
    currency: str
    total_amount: str
    created_at: str
    updated_at: str
    version: int
    suborders: list[SuborderSummary]
    shipments: list[ShipmentSummary]


class Tracking(Struct, gc=False):
    """One entry of `tracking:{tracking_number}` in Redis."""

    order_id: str
    shipment_id: str
    carrier: str | None
    status: ParcelStatusText
    location: str | None
    estimated_delivery: str | None


class Summary(Struct, gc=False):
    """What the cache needs of an order.
    `tracking`: (number, shipment_id, JSON); `untracked`: numbers that a parcel no longer has.
    """

    user_id: str
    created_ms: int
    settled: bool
    value: bytes
    tracking: list[tuple[str, str, bytes]]
    untracked: list[tuple[str, str]]
    suborders: list[SuborderSummary]
