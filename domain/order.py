"""An order is a set of facts with natural keys.
Everything else about it is computed from them (domain.status).

A fact is added once and never changed, but for two things: of repetitions the earliest time stays, and a fact
may turn out to be refused once its order is known (it then keeps its key, so that a repetition is
recognised). Ids are 16 raw bytes, times microseconds since 1970 UTC, money is in minor units. Structs are
arrays on the wire (tables.codec): a field is only ever added at the end, with a default, and the version
before keeps it without knowing it.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Annotated, Any, Final

from msgspec import Meta, Struct

from contracts.incoming import FACT_FIELDS
from contracts.record_id import RecordId
from domain.enums import (
    ClosedBecause,
    DeadlineKind,
    OrderStatus,
    Rank,
    RefundCause,
    ReturnStatus,
    StockAnswer,
    SuborderStatus,
)

Id = Annotated[bytes, Meta(min_length=16, max_length=16)]
Micros = Annotated[int, Meta(ge=-62_135_596_800_000_000, le=253_402_300_799_999_999)]
"""Microseconds since 1970 UTC, from the year 1 to 9999."""
Moment = Annotated[int, Meta(ge=0)]
"""Milliseconds since 1970 by the brokers' time; 0: not known, or none."""
Amount = Annotated[int, Meta(ge=0, le=1 << 62)]
Units = Annotated[int, Meta(ge=1, le=100_000)]
Attempt = Annotated[int, Meta(ge=1, le=100)]
# States are read from a topic that anybody may write to: a value outside these bounds means that it isn't one
# of ours (tables.codec). Bounds are checked on reading only.

Quantities = list[tuple[Id, Units]]
"""[(item_id, quantity)], as sent."""
Taxes = list[tuple[str, Amount]]
"""[(code, amount)], as sent: of a whole line, or of its shipping."""
Allocations = list[tuple[Id, int]]
"""[(payment_id, amount)]: which payments a refund goes back to."""


FORMAT: Final = 2
"""The format in which states are written; this one and the one before it are read. Format 1 has no
number. A field that is added at the end of a struct is no new format (docs/decisions/0036).

A later format keeps the places of version, `due` and `format`, and ends with a checksum, by which versions
that can't read it know it: the last element of the array is the CRC-32 of all bytes before it, as msgpack's
uint32.
"""


class Stored(Struct, array_like=True, gc=False, forbid_unknown_fields=True):
    """A part of a state: an array of its fields. A longer one is a later version's (tables.codec)."""


class Item(Stored):
    """One line of an order. `shipping` and the taxes are for the whole line; None: not sent."""

    item_id: Id
    product_id: Id
    seller_id: Id
    warehouse_id: Id | None
    sku: str
    quantity: Units
    price: Amount
    shipping: Amount | None
    taxes: Taxes | None = None
    shipping_taxes: Taxes | None = None
    ship_by: Micros | None = None
    """When its last unit is to be in transit, and delivered; None: not sent."""
    deliver_by: Micros | None = None


class Created(Stored):
    """order.created. Natural key: the order itself."""

    time: Micros
    user_id: Id
    region: str | None
    currency: str
    total: Amount
    discount: Amount | None
    items: list[Item]
    prices_include_tax: bool | None = None
    """None: not sent, so no line has a tax."""
    cart_id: Id | None = None
    cart_created_at: Micros | None = None
    checkout_id: Id | None = None
    """Of the checkout that became the order, as far as one is known. No content: the order's id follows from
    it.
    """
    live_from: Micros | None = None
    """Until then another system handled the order (domain.taken_over)."""
    refunded_amount: Amount | None = None
    """What it paid back. None: not sent."""


class Payment(Stored):
    """order.paid: money captured. Natural key: payment_id."""

    time: Micros
    payment_id: Id
    amount: Amount
    currency: str
    method: str | None = None
    refused: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.payment_id,)


class PaymentFailure(Stored):
    """payment.failed. Natural key: payment_id."""

    time: Micros
    payment_id: Id
    reason: str
    refused: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.payment_id,)


class StockReply(Stored):
    """stock.reserved, rejected, released. Natural key: type, seller, items as sent.
    `items` None: all the seller's.
    """

    time: Micros
    type: StockAnswer
    seller_id: Id
    reservation_id: Id
    items: Quantities | None
    reason: str | None = None
    refused: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.type, self.seller_id, None if self.items is None else tuple(self.items))


class Cancellation(Stored):
    """order.cancel_requested. Natural key: the seller, or None for the whole order."""

    time: Micros
    seller_id: Id | None
    reason: str
    refused: bool = False
    appended: Moment = 0
    """The broker's time of its record, ms: from here on the answer is waited for."""

    def key(self) -> tuple[object, ...]:
        return (self.seller_id,)


class Scan(Stored):
    """shipment.updated: one scan of a parcel. Natural key: shipment_id, status, time."""

    time: Micros
    shipment_id: Id
    rank: Rank
    seller_id: Id
    warehouse_id: Id | None = None
    carrier: str | None = None
    tracking_number: str | None = None
    estimated_delivery: Micros | None = None
    location: str | None = None
    items: Quantities | None = None
    refused: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.shipment_id, self.rank, self.time)


class ReturnStage(Stored):
    """order.returned: one stage of a return. Natural key: return_id, status."""

    time: Micros
    return_id: Id
    status: ReturnStatus
    item_id: Id
    quantity: Units | None
    reason: str
    processed_at: Micros | None = None
    restock: bool | None = None
    refused: bool = False
    appended: Moment = 0
    """The broker's time of its record, ms, of a request: from here on its end is waited for."""

    def key(self) -> tuple[object, ...]:
        return (self.return_id, self.status)


class RefundReply(Stored):
    """refund.completed, refund.failed. Natural key: refund_id, type and attempt."""

    time: Micros
    refund_id: Id
    failed: bool
    reason: str | None = None
    refused: bool = False
    attempt: Attempt = 1
    """Which request it answers; 1: also of a reply that doesn't say."""
    appended: Moment = 0
    """The broker's time of its record, ms, of a failure: from here on the next request is waited for."""

    def key(self) -> tuple[object, ...]:
        return (self.refund_id, self.failed, self.attempt)


class Promise(Stored):
    """promise.updated: until when a seller ships and delivers all its lines.
    Natural key: the seller and the event's time.
    """

    time: Micros
    seller_id: Id
    ship_by: Micros | None = None
    deliver_by: Micros | None = None
    refused: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.seller_id, self.time)


class Grant(Stored):
    """refund.granted: goodwill. Natural key: grant_id."""

    time: Micros
    grant_id: Id
    amount: Amount
    currency: str
    reason: str
    seller_id: Id | None = None
    item_id: Id | None = None
    refused: bool = False

    def key(self) -> tuple[object, ...]:
        return (self.grant_id,)


class RefundDecision(Stored):
    """refund.decided, our own fact: the n-th decision, what it pays for.
    n is its place in Order.decisions.
    """

    time: Micros
    n: Annotated[int, Meta(ge=0)]
    amount: int
    cause: RefundCause
    cause_id: Id
    units: list[tuple[Id, Annotated[int, Meta(ge=0, le=100_000)], Units]]
    """Spans of a line's units: (item_id, first unit number, how many)."""
    shipping: list[Id]
    appended: Moment = 0
    """The broker's time of its record, ms: from here on its confirmation is waited for."""
    tax: int | None = None
    """The tax in `amount`. None: the order has none."""
    allocations: Allocations | None = None
    """They add up to `amount`. None: of an earlier version."""


class Deadline(Stored):
    """deadline.passed, our own fact: what was asked for did not come in time.
    Natural key: what, whose, number of the attempt.

    `subject` is the seller's id or the refund's, None for the payment. `final`: it isn't asked for again.
    """

    time: Micros
    what: DeadlineKind
    subject: Id | None
    attempt: int
    final: bool
    refused: bool = False
    appended: Moment = 0
    """The broker's time of its record, ms: from here on the next answer is waited for."""

    def key(self) -> tuple[object, ...]:
        return (self.what, self.subject, self.attempt)


class Lapse(Stored):
    """deadline.passed of a later kind (from DeadlineKind.SHIP on): in a list of its own, which the version
    before this one keeps without reading it. Natural key: what, whose, and `due`, or the number of the
    attempt.

    `subject` is the seller's id, the return's or the refund's. `final` as in Deadline; nothing asks for it.
    """

    time: Micros
    what: DeadlineKind
    subject: Id
    attempt: int
    final: bool
    refused: bool = False
    appended: Moment = 0
    """The broker's time of its record, ms: from here on what follows is waited for."""
    due: Micros | None = None
    """What a seller had promised, or the time that counts without a promise; None: of a return or refund."""

    def key(self) -> tuple[object, ...]:
        return (self.what, self.subject, self.attempt if self.due is None else self.due)


SimpleFact = (
    Payment
    | PaymentFailure
    | StockReply
    | Cancellation
    | Scan
    | ReturnStage
    | RefundReply
    | Deadline
    | Grant
    | Promise
    | Lapse
)
"""Facts that an order holds in a list of their kind, a field of FACT_FIELDS."""
Fact = Created | RefundDecision | SimpleFact


def type_of(fact: SimpleFact | RefundDecision) -> str:
    """The type of the event that brings such a fact."""
    match fact:
        case Payment():
            return "order.paid"
        case PaymentFailure():
            return "payment.failed"
        case StockReply():
            return f"stock.{fact.type.text}"
        case Cancellation():
            return "order.cancel_requested"
        case Scan():
            return "shipment.updated"
        case ReturnStage():
            return "order.returned"
        case RefundReply():
            return "refund.failed" if fact.failed else "refund.completed"
        case Deadline() | Lapse():
            return "deadline.passed"
        case Promise():
            return "promise.updated"
        case Grant():
            return "refund.granted"
        case RefundDecision():
            return "refund.decided"


class Waiting(Stored):
    """A fact whose order isn't known yet: field of Order, index in it, and its record, for a dead
    letter if it's refused later.
    """

    field: str
    index: int
    record: RecordId


class PublishedSuborder(Stored):
    """What was published last of a seller's part: over its live units, amounts in minor units."""

    status: SuborderStatus
    items_amount: int
    shipping: int
    discount: int
    live: int
    """Units; the next three: those of them at this rank or above."""
    in_transit: int
    delivered: int
    returned: int
    because: ClosedBecause = ClosedBecause.NOT_CLOSED
    tax: int = 0
    """Of the live units and their lines' shipping."""
    not_shipped: bool = False
    """`because` is STOCK_RELEASED, and the stock was asked back since the units were never shipped: the
    version before this one can't read ClosedBecause.NOT_SHIPPED.
    """


class Attention(Stored):
    """One kind of what a person should look at (domain.attention): it holds, or was seen to hold."""

    kind: str
    detail: str
    """What was told of it last, as domain.attention.kept() leaves it."""
    since: Micros
    cleared_at: Micros | None = None
    """The time of the event with which it no longer held; None: it holds."""


class Order(Stored):
    """All that is kept of one order. The first element is the version: recovery compares it (tables.codec).

    `status`, `suborders`, `labelled` and `proposed` are what was published already, so that only
    changes are published again.
    """

    version: Annotated[int, Meta(ge=0)] = 0
    """Distinct natural keys taken in, refused ones included, decisions not. Never falls."""
    created: Created | None = None
    payments: list[Payment] = []
    scans: list[Scan] = []
    stock: list[StockReply] = []
    returns: list[ReturnStage] = []
    cancellations: list[Cancellation] = []
    failures: list[PaymentFailure] = []
    refunds: list[RefundReply] = []
    decisions: list[RefundDecision] = []
    waiting: list[Waiting] = []
    status: OrderStatus = OrderStatus.PENDING
    suborders: list[PublishedSuborder] = []
    """Of each seller, in the order of seller ids."""
    labelled: bool = False
    """The order was once confirmed or further: labels have been asked for."""
    proposed: int = 0
    """Refund decisions written to orders.decisions so far, folded or on their way."""
    deadlines: list[Deadline] = []
    appended: Moment = 0
    """The broker's time of order.created's record, ms; 0: not known, so nothing is waited for."""
    labelled_at: Moment = 0
    """When the broker took the event that made us ask for labels. If another system asked for them: the event
    with which the order was first confirmed or further.
    """
    due: Moment = 0
    """When the next deadline passes, by the broker's time, ms; 0: nothing is
    waited for (domain.deadlines).
    """
    format: Annotated[int, Meta(ge=2, le=FORMAT)] = FORMAT
    """Of the version that writes it. A later format keeps the places of this, of `due` and of `version`."""
    grants: list[Grant] = []
    promises: list[Promise] = []
    lapses: list[Lapse] = []
    left: list[Moment] = []
    """When the last parcel of each seller was first in transit, by the broker's time of that scan's record,
    ms; in the order of seller ids, empty until one is. 0: not before the order's own record.
    """
    attention: list[Attention] = []
    """What was told of it. What holds follows from the facts; what was cleared is what was seen."""
    attended: Annotated[int, Meta(ge=0)] = 0
    """Sum of the times of all facts when the `since` of what holds was last computed: if it is still the
    same, no `since` has to be computed again. 0: nothing holds.
    """


class Extended(Order, gc=True, dict=True):
    """A state with elements that this version doesn't know: `tails`, in its __dict__, which isn't encoded."""


fact_lists: Final[Callable[[Order], tuple[list[Any], ...]]] = attrgetter(*FACT_FIELDS)
"""Order -> its facts, a list for each field of FACT_FIELDS. Pure."""
