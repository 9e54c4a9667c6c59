"""The step from a Kafka record to a fact of an order.

`decode` is the only door: a record either becomes one Event or raises Refused with a stable code and
the path of what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contracts import errors, ids, money, times
from contracts.cloudevents import data_of, known_text, read_attributes, schema_version, text, trace_of
from contracts.errors import Refused
from contracts.incoming import (
    BULK,
    DATA,
    INPUT,
    OWN,
    BulkPart,
    CheckoutCompleted,
    DeadlinePassed,
    ItemQuantity,
    OrderCancelRequested,
    OrderCreated,
    OrderPaid,
    OrderReturned,
    PaymentFailed,
    PromiseUpdated,
    RefundCompleted,
    RefundDecided,
    RefundGranted,
    ShipmentUpdated,
    StockRejected,
    StockReserved,
    TaxData,
)
from contracts.strict_json import (
    SHALLOW,
    Payload,
    parse_json,
    refuse_deep,
    refuse_no_json,
    refuse_nul,
    refuse_other_bytes,
)
from contracts.topics import DECISIONS, REKEYED
from domain.enums import DeadlineKind, Numbered, Rank, RefundCause, ReturnStatus, StockAnswer
from domain.order import (
    Cancellation,
    Created,
    Deadline,
    Fact,
    Grant,
    Item,
    Lapse,
    Payment,
    PaymentFailure,
    Promise,
    Quantities,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    SimpleFact,
    StockReply,
    Taxes,
)
from domain.shapes import Event
from domain.status import fresh_lines
from domain.tax import sum_of

_RETURN_STATUS: Final = {each.text: each for each in ReturnStatus}
_RANK: Final = {each.text: each for each in Rank}
_CAUSE: Final = {each.text: each for each in RefundCause}
_DEADLINE: Final = {each.text: each for each in DeadlineKind}
_SUBJECT: Final = {
    "payment": None,
    "stock": "seller_id",
    "release": "seller_id",
    "label": "seller_id",
    "refund": "refund_id",
    "ship": "seller_id",
    "unshipped": "seller_id",
    "deliver": "seller_id",
    "return": "return_id",
    "refund_retry": "refund_id",
}
"""Deadline -> the field that says whose it is."""
_LAPSES: Final = frozenset(
    (
        DeadlineKind.SHIP,
        DeadlineKind.UNSHIPPED,
        DeadlineKind.DELIVER,
        DeadlineKind.RETURN,
        DeadlineKind.REFUND_RETRY,
    )
)
_DUE: Final = frozenset((DeadlineKind.SHIP, DeadlineKind.UNSHIPPED, DeadlineKind.DELIVER))
"""Those that say what was due."""
MOST_REFUND: Final = (1 << 64) - 1
"""Minor units: what a state can hold, and more than all the payments that one order takes in."""


def _digits(currency: str) -> int:
    digits = money.DIGITS.get(currency)
    if digits is None:
        raise Refused(errors.CURRENCY_UNKNOWN, "$.currency: not an ISO 4217 currency")
    return digits


def _quantities(items: list[ItemQuantity] | UnsetType) -> Quantities | None:
    if items is UNSET:
        return None
    pairs = [(item.item_id.bytes, item.quantity) for item in items]
    if len(pairs) > 1 and len({item_id for item_id, _ in pairs}) < len(pairs):
        raise Refused(errors.ITEM_REPEATED, "$.items: an item_id stands twice")
    return pairs


def _taxes(taxes: list[TaxData], digits: int, path: str) -> Taxes:
    parse = money.parse_field
    pairs = [(tax.code, parse(tax.amount, digits, f"{path}[{i}].amount")) for i, tax in enumerate(taxes)]
    if len(pairs) > 1 and len({code for code, _ in pairs}) < len(pairs):
        raise Refused(errors.FIELD_MALFORMED, f"{path}: a code stands twice")
    return pairs


def _created(data: OrderCreated | CheckoutCompleted, time: int, appended: int = 0) -> Fact:
    digits = _digits(data.currency)
    parse = money.parse_field
    items: list[Item] = []
    goods = shipping = tax = 0
    taxed = False
    for i, line in enumerate(data.items):
        price = parse(line.price, digits, f"$.items[{i}].price")
        postage = None
        if line.shipping_amount is not UNSET:
            postage = parse(line.shipping_amount, digits, f"$.items[{i}].shipping_amount")
            shipping += postage
        goods += price * line.quantity
        item = Item(
            line.item_id.bytes,
            line.product_id.bytes,
            line.seller_id.bytes,
            None if line.warehouse_id is UNSET else line.warehouse_id.bytes,
            line.sku,
            line.quantity,
            price,
            postage,
        )
        items.append(item)
        if line.ship_by is not UNSET:
            item.ship_by = times.parse(line.ship_by, f"$.items[{i}].ship_by")
        if line.deliver_by is not UNSET:
            item.deliver_by = times.parse(line.deliver_by, f"$.items[{i}].deliver_by")
        if line.taxes is not UNSET:
            item.taxes = _taxes(line.taxes, digits, f"$.items[{i}].taxes")
            tax += sum_of(item.taxes)
            taxed = taxed or bool(item.taxes)
        if line.shipping_taxes is not UNSET:
            item.shipping_taxes = _taxes(line.shipping_taxes, digits, f"$.items[{i}].shipping_taxes")
            tax += sum_of(item.shipping_taxes)
            taxed = taxed or bool(item.shipping_taxes)
    if len(items) > 1 and len({item.item_id for item in items}) < len(items):
        raise Refused(errors.ITEM_REPEATED, "$.items: an item_id stands twice")
    total = parse(data.total_amount, digits, "$.total_amount")
    discount = (
        None if data.discount_amount is UNSET else parse(data.discount_amount, digits, "$.discount_amount")
    )
    if discount is not None and discount > goods:
        raise Refused(errors.DISCOUNT_TOO_LARGE, "$.discount_amount: above the sum of price * quantity")
    cart_created_at = None
    if data.cart_created_at is not UNSET:
        cart_created_at = times.parse(data.cart_created_at, "$.cart_created_at")
    live_from, refunded = _history(data, digits, appended)
    inclusive = None if data.prices_include_tax is UNSET else data.prices_include_tax
    if taxed and inclusive is None:
        raise Refused(errors.FIELD_MALFORMED, "$.prices_include_tax: missing, though a line has a tax")
    if total != goods + shipping - (discount or 0) + (0 if inclusive else tax):
        raise Refused(
            errors.TOTAL_MISMATCH,
            "$.total_amount: not sum(price * quantity + shipping_amount) - discount_amount"
            + (" + all taxes" if taxed and not inclusive else ""),
        )
    region = None if data.region is UNSET else data.region
    created = Created(time, data.user_id.bytes, region, data.currency, total, discount, items, inclusive)
    created.cart_id = None if data.cart_id is UNSET else data.cart_id.bytes
    created.cart_created_at = cart_created_at
    if isinstance(data, CheckoutCompleted):
        created.checkout_id = data.checkout_id.bytes
    created.live_from, created.refunded_amount = live_from, refunded
    if taxed and inclusive:
        _refuse_more_tax_than_price(created)
    return created


def _history(
    data: OrderCreated | CheckoutCompleted, digits: int, appended: int
) -> tuple[int | None, int | None]:
    """What is said of the system that handled the order before: live_from, refunded_amount."""
    live_from = refunded = None
    if data.live_from is not UNSET:
        live_from = times.parse(data.live_from, "$.live_from")
        if appended and live_from // 1000 > appended:
            raise Refused(errors.FIELD_MALFORMED, "$.live_from: later than Kafka took the record")
    if data.refunded_amount is not UNSET:
        refunded = money.parse_field(data.refunded_amount, digits, "$.refunded_amount")
        if live_from is None:
            raise Refused(errors.FIELD_MALFORMED, "$.refunded_amount: there, though live_from is missing")
    return live_from, refunded


def _refuse_more_tax_than_price(created: Created) -> None:
    """Raise Refused if a line has more tax than it costs, where its price includes it."""
    lines = {line.item_id: line for line in fresh_lines(created)}
    for i, item in enumerate(created.items):
        if sum_of(item.taxes) > lines[item.item_id].cost_of(0, item.quantity):
            raise Refused(
                errors.TAX_TOO_LARGE,
                f"$.items[{i}].taxes: above price * quantity less the line's share of the discount",
            )
        if sum_of(item.shipping_taxes) > (item.shipping or 0):
            raise Refused(errors.TAX_TOO_LARGE, f"$.items[{i}].shipping_taxes: above shipping_amount")


def _paid(data: OrderPaid, time: int) -> Fact:
    amount = money.parse_field(data.amount, _digits(data.currency), "$.amount")
    if amount == 0:
        raise Refused(errors.FIELD_MALFORMED, "$.amount: must be above 0")
    return Payment(
        time, data.payment_id.bytes, amount, data.currency, None if data.method is UNSET else data.method
    )


def _payment_failed(data: PaymentFailed, time: int) -> Fact:
    return PaymentFailure(time, data.payment_id.bytes, data.reason)


def _reserved(data: StockReserved, time: int) -> Fact:
    return StockReply(time, StockAnswer.RESERVED, data.seller_id.bytes, data.reservation_id.bytes, None)


def _stock(answer: StockAnswer) -> Callable[[StockRejected, int], Fact]:
    def build(data: StockRejected, time: int) -> Fact:
        reason = None if data.reason is UNSET else data.reason
        return StockReply(
            time, answer, data.seller_id.bytes, data.reservation_id.bytes, _quantities(data.items), reason
        )

    return build


def _cancelled(data: OrderCancelRequested, time: int) -> Fact:
    return Cancellation(time, None if data.seller_id is UNSET else data.seller_id.bytes, data.reason)


def _scan(data: ShipmentUpdated, time: int) -> Fact:
    estimated = data.estimated_delivery
    return Scan(
        time,
        data.shipment_id.bytes,
        _RANK[data.status],
        data.seller_id.bytes,
        None if data.warehouse_id is UNSET else data.warehouse_id.bytes,
        None if data.carrier is UNSET else data.carrier,
        None if data.tracking_number is UNSET else data.tracking_number,
        None if estimated is UNSET else times.parse_day(estimated, "$.estimated_delivery"),
        None if data.location is UNSET else data.location,
        _quantities(data.items),
    )


def _promised(data: PromiseUpdated, time: int) -> Fact:
    return Promise(
        time,
        data.seller_id.bytes,
        None if data.ship_by is UNSET else times.parse(data.ship_by, "$.ship_by"),
        None if data.deliver_by is UNSET else times.parse(data.deliver_by, "$.deliver_by"),
    )


def _returned(data: OrderReturned, time: int) -> Fact:
    return ReturnStage(
        time,
        data.return_id.bytes,
        _RETURN_STATUS[data.status],
        data.item_id.bytes,
        None if data.quantity is UNSET else data.quantity,
        data.reason,
        None if data.processed_at is UNSET else times.parse(data.processed_at, "$.processed_at"),
        None if data.restock is UNSET else data.restock,
    )


def _refund(failed: bool) -> Callable[[RefundCompleted, int], Fact]:
    def build(data: RefundCompleted, time: int) -> Fact:
        return RefundReply(
            time,
            data.refund_id.bytes,
            failed,
            None if data.reason is UNSET else data.reason,
            attempt=1 if data.attempt is UNSET else data.attempt,
        )

    return build


def _granted(data: RefundGranted, time: int) -> Fact:
    amount = money.parse_field(data.amount, _digits(data.currency), "$.amount")
    if amount == 0:
        raise Refused(errors.FIELD_MALFORMED, "$.amount: must be above 0")
    return Grant(
        time,
        data.grant_id.bytes,
        amount,
        data.currency,
        data.reason,
        None if data.seller_id is UNSET else data.seller_id.bytes,
        None if data.item_id is UNSET else data.item_id.bytes,
    )


def _decided(data: RefundDecided, time: int) -> Fact:
    if data.amount > MOST_REFUND:
        raise Refused(errors.FIELD_MALFORMED, f"$.amount: above {MOST_REFUND}")
    if data.tax_amount is not UNSET and data.tax_amount > MOST_REFUND:
        raise Refused(errors.FIELD_MALFORMED, f"$.tax_amount: above {MOST_REFUND}")
    allocations = None
    if data.allocations is not UNSET:
        allocations = [(payment.bytes, amount) for payment, amount in data.allocations]
        if sum(amount for _, amount in allocations) != data.amount:
            raise Refused(errors.FIELD_MALFORMED, "$.allocations: don't add up to amount")
        if len({payment for payment, _ in allocations}) < len(allocations):
            raise Refused(errors.FIELD_MALFORMED, "$.allocations: a payment_id stands twice")
    units: list[tuple[bytes, int, int]] = []
    for item, number in data.units:
        if units and units[-1][0] == item.bytes and units[-1][1] + units[-1][2] == number:
            units[-1] = (*units[-1][:2], units[-1][2] + 1)
        else:
            units.append((item.bytes, number, 1))
    return RefundDecision(
        time,
        data.n,
        data.amount,
        _CAUSE[data.cause],
        data.cause_id.bytes,
        units,
        [item.bytes for item in data.shipping],
        tax=None if data.tax_amount is UNSET else data.tax_amount,
        allocations=allocations,
    )


def _passed(data: DeadlinePassed, time: int) -> Fact:
    name = _SUBJECT[data.deadline]
    subject = UNSET if name is None else getattr(data, name)
    if name is not None and subject is UNSET:
        raise Refused(errors.FIELD_MISSING, f"$.{name}: missing")
    what, whose = _DEADLINE[data.deadline], None if subject is UNSET else subject.bytes
    if whose is None or what not in _LAPSES:
        return Deadline(time, what, whose, data.attempt, data.final)
    due = None
    if what in _DUE:
        if data.due is UNSET:
            raise Refused(errors.FIELD_MISSING, "$.due: missing")
        due = times.parse(data.due, "$.due")
    return Lapse(time, what, whose, data.attempt, data.final, due=due)


def _bulk(data: BulkPart, time: int) -> Any:
    """The part itself: it adds no fact, it is taken apart (contracts.bulk)."""
    if data.part > data.parts:
        raise Refused(errors.FIELD_MALFORMED, "$.part: above parts")
    return data


_BUILD: Final[dict[str, Callable[[Any, int], Fact]]] = {
    "checkout.completed": _created,
    "order.created": _created,
    "order.paid": _paid,
    "payment.failed": _payment_failed,
    "stock.reserved": _reserved,
    "stock.rejected": _stock(StockAnswer.REJECTED),
    "stock.released": _stock(StockAnswer.RELEASED),
    "order.cancel_requested": _cancelled,
    "promise.updated": _promised,
    "shipment.updated": _scan,
    "order.returned": _returned,
    "refund.completed": _refund(False),
    "refund.failed": _refund(True),
    "refund.granted": _granted,
    "refund.decided": _decided,
    "deadline.passed": _passed,
}
_BULK: Final = frozenset(spec.type for spec in BULK)

READS: Final[dict[tuple[str, int], tuple[type[Struct], Callable[[Any, int], Fact]]]] = {
    (name, 1): (BulkPart, _bulk) if name in _BULK else (data, _BUILD[name]) for name, data in DATA.items()
}
"""(type, version) -> wire form and what it becomes.
Versions of a type are read side by side: a new one is one more entry here.
"""

_DECODE: Final = {
    (name, f"/v{version}".encode()): (msgspec.json.Decoder(data).decode, build)
    for (name, version), (data, build) in READS.items()
}
_TYPES_OF: Final = {DECISIONS: tuple(spec.type for spec in OWN), REKEYED: tuple(spec.type for spec in INPUT)}
"""Topic -> types of events on it, where it isn't named after the one type that it holds."""


def _versions(type_: str) -> str:
    return " or ".join(f"/v{version}" for name, version in READS if name == type_)


def decode(
    topic: str, headers: Sequence[tuple[str, bytes | None]], value: bytes | None, appended: int = 0
) -> Event:
    """One record of one of topics.LANE or BULK -> Event. `appended`: the broker's time of the record, ms.
    Raises Refused. Never blocks.

    Of several things that are wrong the first of these is told: no value, no JSON, the envelope's
    forms, its attributes one by one, the forms of the data in the order in which it says them, and what
    only the whole data tells.
    """
    if value is None:
        raise Refused(errors.TOMBSTONE, "the record has no value")
    if not value.isascii():
        refuse_other_bytes(value)
    payload: Payload = value
    try:
        attributes, whole = read_attributes(headers, value)
        event_id = text(attributes.get("ce_id"), "ce_id")
        known_text(attributes.get("ce_source"), "ce_source")
        type_ = known_text(attributes.get("ce_type"), "ce_type")
        if (type_ != topic or type_ not in DATA) and type_ not in _TYPES_OF.get(topic, ()):
            if type_ in DATA:
                raise Refused(
                    errors.TYPE_WRONG_TOPIC, f"ce_type: an event of {type_} belongs on the topic of that name"
                )
            raise Refused(errors.TYPE_UNKNOWN, "ce_type: no such event type")
        schema = attributes.get("ce_dataschema")
        reader = _DECODE.get((type_, b"/v1" if schema is None else schema_version(schema)))
        if reader is None:
            raise Refused(errors.VERSION_UNKNOWN, f"ce_dataschema: must end in {_versions(type_)}")
        parse, build = reader
        when = attributes.get("ce_time")
        if when is None:
            raise Refused(errors.FIELD_MISSING, "ce_time: missing")
        time = times.parse(when.decode("ascii", "replace"), "ce_time")
        if whole is not None:
            payload = data_of(whole)
        data = parse_json(parse, payload, errors.FIELD_MALFORMED)
    except Refused as refusal:
        if refusal.code != errors.NOT_JSON:
            refuse_no_json(value)
        raise
    if len(value) > SHALLOW:
        refuse_deep(value, len(getattr(data, "items", None) or ()) if whole is None else 0)
    if b"\\" in value or whole is not None:
        refuse_nul(payload, data)
    trace, tracer = attributes.get("ce_traceparent"), attributes.get("traceparent")
    traceparent = None if trace is None and tracer is None else trace_of(trace, tracer)
    order_id = data.order_id.bytes
    fact = _created(data, time, appended) if build is _created else build(data, time)
    if type(fact) is Created and fact.checkout_id is None:
        fact.checkout_id = _checkout(attributes.get("ce_checkoutid"), order_id)
    return Event(type_, order_id, fact, event_id, time, traceparent, appended)


def _checkout(named: bytes | None, order_id: bytes) -> bytes | None:
    """The checkout that an order.created says it was; None if it names none, or one that became another."""
    if named is None:
        return None
    try:
        checkout_id = UUID(named.decode("ascii")).bytes
    except ValueError:
        return None
    return checkout_id if ids.uuid5(checkout_id, "order") == order_id else None


def order_key(event: Event) -> bytes:
    """The record key of the event's order: canonical text form of its id."""
    return ids.text(event.order_id).encode()


def to_event_data(fact: SimpleFact, order_id: bytes) -> dict[str, Any]:
    """A fact as the data of its event again, normalised: ids canonical, times in
    UTC, absent fields left out.
    """
    fields: dict[str, Any] = {"order_id": ids.text(order_id)}
    digits = money.DIGITS[fact.currency] if isinstance(fact, (Payment, Grant)) else 0
    for name in fact.__struct_fields__:
        value = getattr(fact, name)
        if value is None or name in ("time", "refused", "type", "failed", "appended"):
            continue
        if name == "rank":
            name = "status"
        if isinstance(value, Numbered):
            value = value.text
        elif name == "amount":
            value = money.text(value, digits)
        elif name in ("estimated_delivery", "processed_at", "ship_by", "deliver_by", "due"):
            value = times.text(value)
        elif name == "items":
            value = [{"item_id": ids.text(item_id), "quantity": quantity} for item_id, quantity in value]
        elif isinstance(value, bytes):
            value = ids.text(value)
        fields[name] = value
    return fields
