"""Events of other services: their wire form (contracts: section 1) and the step from a Kafka record to a fact.

`decode` is the only door: a record either becomes one Event or raises Refused with a stable code and the path of what is wrong.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from domain import errors, ids, money, times
from domain.errors import Refused
from domain.order import (
    DEADLINES,
    PROCESSED,
    REJECTED,
    REQUESTED,
    RETURN_STATUS,
    SHIPMENT_STATUS,
    STOCK_REJECTED,
    STOCK_RELEASED,
    STOCK_RESERVED,
    Cancellation,
    Created,
    Deadline,
    Fact,
    Item,
    Payment,
    PaymentFailure,
    Quantities,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    SimpleFact,
    StockReply,
)
from domain.topics import BULK, DECISIONS, INPUT, REKEYED

Text = Annotated[str, Meta(max_length=1000)]
Money = Annotated[
    str,
    Meta(
        max_length=1000,
        description="major units, ^(0|[1-9][0-9]*)(\\.[0-9]+)?$, at most the currency's minor digits and 10^15 minor units",
    ),
]
Time = Annotated[str, Meta(max_length=1000, description="RFC 3339 with offset, cut to microseconds")]
Day = Annotated[str, Meta(max_length=1000, description="RFC 3339 with offset, or YYYY-MM-DD")]
Currency = Annotated[str, Meta(max_length=1000, description="ISO 4217")]
Quantity = Annotated[int, Meta(ge=1, le=100_000)]
UnitNumber = Annotated[int, Meta(ge=0, lt=100_000)]
BulkNumber = Annotated[int, Meta(ge=1, le=1_000_000, description="1, 2, ... up to parts")]


class ItemData(Struct, gc=False):
    item_id: UUID
    product_id: UUID
    seller_id: UUID
    sku: Text
    quantity: Quantity
    price: Money
    warehouse_id: UUID | UnsetType = UNSET
    shipping_amount: Money | UnsetType = UNSET


class ItemQuantity(Struct, gc=False):
    item_id: UUID
    quantity: Quantity


Items = Annotated[list[ItemData], Meta(min_length=1, max_length=1000)]
ItemQuantities = Annotated[list[ItemQuantity], Meta(max_length=1000)]


class OrderCreated(Struct, gc=False):
    """A customer placed an order. total_amount = sum(price * quantity + shipping_amount) - discount_amount, exactly."""

    order_id: UUID
    user_id: UUID
    currency: Currency
    total_amount: Money
    items: Items
    region: Text | UnsetType = UNSET
    discount_amount: Money | UnsetType = UNSET


class CheckoutCompleted(Struct, gc=False):
    """A customer completed a checkout. Becomes order.created with order_id = uuid5(checkout_id, "order"), with the same refusals."""

    checkout_id: UUID
    user_id: UUID
    currency: Currency
    total_amount: Money
    items: Items
    region: Text | UnsetType = UNSET
    discount_amount: Money | UnsetType = UNSET

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


class ShipmentUpdated(Struct, gc=False):
    """A parcel was scanned. Without items: it holds all the seller's units in this order."""

    order_id: UUID
    shipment_id: UUID
    seller_id: UUID
    status: Literal["pending", "in_transit", "delivered", "returned"]
    warehouse_id: UUID | UnsetType = UNSET
    carrier: Text | UnsetType = UNSET
    tracking_number: Text | UnsetType = UNSET
    estimated_delivery: Day | UnsetType = UNSET
    location: Text | UnsetType = UNSET
    items: ItemQuantities | UnsetType = UNSET


class OrderReturned(Struct, gc=False):
    """A return went through a stage. quantity absent: the whole line; processed_at absent: the event's time; restock absent: true."""

    order_id: UUID
    return_id: UUID
    item_id: UUID
    reason: Text
    status: Literal["requested", "processed", "rejected"]
    quantity: Quantity | UnsetType = UNSET
    processed_at: Time | UnsetType = UNSET
    restock: bool | UnsetType = UNSET


class RefundCompleted(Struct, gc=False):
    """The payment service paid a refund."""

    order_id: UUID
    refund_id: UUID
    reason: Text | UnsetType = UNSET


class RefundFailed(RefundCompleted, gc=False):
    """The payment service couldn't pay a refund."""


class RefundDecided(Struct, gc=False):
    """Internal (orders.decisions): the n-th refund of an order, fixed for ever. amount in minor units; units are [item_id, unit number]."""

    order_id: UUID
    n: Annotated[int, Meta(ge=0)]
    amount: Annotated[int, Meta(ge=1)]
    cause: Literal["return", "stock", "closed"]
    cause_id: UUID
    units: list[tuple[UUID, UnitNumber]]
    shipping: list[UUID]


class DeadlinePassed(Struct, gc=False):
    """Internal (orders.decisions): an answer did not come in time, by the broker's clock. `final`: it isn't waited for any longer."""

    order_id: UUID
    deadline: Literal["payment", "stock", "release", "label", "refund"]
    attempt: Quantity
    final: bool
    seller_id: UUID | UnsetType = UNSET
    refund_id: UUID | UnsetType = UNSET


class BulkPart(Struct, gc=False):
    """One part of a bulk job, whatever its events are: see domain.bulk."""

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


class OrderBulk(Struct, gc=False):
    """A part of a job: many orders at once. Each becomes an order.created, at a pace that leaves what is interactive its latency."""

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


class Event(Struct, gc=False):
    """One accepted event: its order, the fact that it adds, and what derived events carry on of it.

    `time` is when it happened, microseconds since 1970; `appended` when the broker took its record, milliseconds since 1970 (0: not known).
    """

    type: str
    order_id: bytes
    fact: Fact
    id: str
    time: int
    traceparent: str | None
    appended: int = 0


_RETURN_STATUS = {"requested": REQUESTED, "processed": PROCESSED, "rejected": REJECTED}
_RANK = {name: rank for rank, name in enumerate(SHIPMENT_STATUS)}
_CAUSE = {"return": 0, "stock": 1, "closed": 2}
_DEADLINE = {name: number for number, name in enumerate(DEADLINES)}
_SUBJECT: Final = {"payment": None, "stock": "seller_id", "release": "seller_id", "label": "seller_id", "refund": "refund_id"}
"""Deadline -> the field that says whose it is."""
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


def _created(data: OrderCreated | CheckoutCompleted, time: int) -> Fact:
    digits = _digits(data.currency)
    parse = money.parse_field
    items: list[Item] = []
    goods = shipping = 0
    for i, line in enumerate(data.items):
        price = parse(line.price, digits, f"$.items[{i}].price")
        postage = None
        if line.shipping_amount is not UNSET:
            postage = parse(line.shipping_amount, digits, f"$.items[{i}].shipping_amount")
            shipping += postage
        goods += price * line.quantity
        items.append(
            Item(
                line.item_id.bytes,
                line.product_id.bytes,
                line.seller_id.bytes,
                None if line.warehouse_id is UNSET else line.warehouse_id.bytes,
                line.sku,
                line.quantity,
                price,
                postage,
            )
        )
    if len(items) > 1 and len({item.item_id for item in items}) < len(items):
        raise Refused(errors.ITEM_REPEATED, "$.items: an item_id stands twice")
    total = parse(data.total_amount, digits, "$.total_amount")
    discount = None if data.discount_amount is UNSET else parse(data.discount_amount, digits, "$.discount_amount")
    if discount is not None and discount > goods:
        raise Refused(errors.DISCOUNT_TOO_LARGE, "$.discount_amount: above the sum of price * quantity")
    if total != goods + shipping - (discount or 0):
        raise Refused(errors.TOTAL_MISMATCH, "$.total_amount: not sum(price * quantity + shipping_amount) - discount_amount")
    region = None if data.region is UNSET else data.region
    return Created(time, data.user_id.bytes, region, data.currency, total, discount, items)


def _paid(data: OrderPaid, time: int) -> Fact:
    amount = money.parse_field(data.amount, _digits(data.currency), "$.amount")
    if amount == 0:
        raise Refused(errors.FIELD_MALFORMED, "$.amount: must be above 0")
    return Payment(time, data.payment_id.bytes, amount, data.currency, None if data.method is UNSET else data.method)


def _payment_failed(data: PaymentFailed, time: int) -> Fact:
    return PaymentFailure(time, data.payment_id.bytes, data.reason)


def _reserved(data: StockReserved, time: int) -> Fact:
    return StockReply(time, STOCK_RESERVED, data.seller_id.bytes, data.reservation_id.bytes, None)


def _stock(kind: int) -> Callable[[StockRejected, int], Fact]:
    def build(data: StockRejected, time: int) -> Fact:
        reason = None if data.reason is UNSET else data.reason
        return StockReply(time, kind, data.seller_id.bytes, data.reservation_id.bytes, _quantities(data.items), reason)

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
        return RefundReply(time, data.refund_id.bytes, failed, None if data.reason is UNSET else data.reason)

    return build


def _decided(data: RefundDecided, time: int) -> Fact:
    if data.amount > MOST_REFUND:
        raise Refused(errors.FIELD_MALFORMED, f"$.amount: above {MOST_REFUND}")
    units: list[tuple[bytes, int, int]] = []
    for item, number in data.units:
        if units and units[-1][0] == item.bytes and units[-1][1] + units[-1][2] == number:
            units[-1] = (*units[-1][:2], units[-1][2] + 1)
        else:
            units.append((item.bytes, number, 1))
    return RefundDecision(time, data.n, data.amount, _CAUSE[data.cause], data.cause_id.bytes, units, [item.bytes for item in data.shipping])


def _passed(data: DeadlinePassed, time: int) -> Fact:
    name = _SUBJECT[data.deadline]
    subject = UNSET if name is None else getattr(data, name)
    if name is not None and subject is UNSET:
        raise Refused(errors.FIELD_MISSING, f"$.{name}: missing")
    return Deadline(time, _DEADLINE[data.deadline], None if subject is UNSET else subject.bytes, data.attempt, data.final)


def _bulk(data: BulkPart, time: int) -> Any:
    """The part itself: it adds no fact, it is taken apart (domain.bulk)."""
    if data.part > data.parts:
        raise Refused(errors.FIELD_MALFORMED, "$.part: above parts")
    return data


DATA: Final[dict[str, type[Struct]]] = {
    "checkout.completed": CheckoutCompleted,
    "order.created": OrderCreated,
    "order.paid": OrderPaid,
    "payment.failed": PaymentFailed,
    "stock.reserved": StockReserved,
    "stock.rejected": StockRejected,
    "stock.released": StockReleased,
    "order.cancel_requested": OrderCancelRequested,
    "shipment.updated": ShipmentUpdated,
    "order.returned": OrderReturned,
    "refund.completed": RefundCompleted,
    "refund.failed": RefundFailed,
    "refund.decided": RefundDecided,
    "deadline.passed": DeadlinePassed,
    "order.bulk": OrderBulk,
    "shipment.bulk": ShipmentBulk,
    "return.bulk": ReturnBulk,
}
"""Event type -> wire form of its data."""

_BUILD: Final[dict[str, Callable[[Any, int], Fact]]] = {
    "checkout.completed": _created,
    "order.created": _created,
    "order.paid": _paid,
    "payment.failed": _payment_failed,
    "stock.reserved": _reserved,
    "stock.rejected": _stock(STOCK_REJECTED),
    "stock.released": _stock(STOCK_RELEASED),
    "order.cancel_requested": _cancelled,
    "shipment.updated": _scan,
    "order.returned": _returned,
    "refund.completed": _refund(False),
    "refund.failed": _refund(True),
    "refund.decided": _decided,
    "deadline.passed": _passed,
}
READS: Final[dict[tuple[str, int], tuple[type[Struct], Callable[[Any, int], Fact]]]] = {
    (name, 1): (BulkPart, _bulk) if name in BULK else (data, _BUILD[name]) for name, data in DATA.items()
}
"""(type, version) -> wire form and what it becomes. Versions of a type are read side by side: a new one is one more entry here."""

_DECODE: Final = {
    (name, f"/v{version}".encode()): (msgspec.json.Decoder(data).decode, build) for (name, version), (data, build) in READS.items()
}
_TRACEPARENT: Final = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")
_STRUCTURED: Final = b"application/cloudevents+json"

_LONGEST_DETAIL: Final = 200
MOST_CHARACTERS: Final = 1_000
"""Of a text; the forms above say the same."""
DEEPEST: Final = 500
"""So many arrays and objects lie in each other at most. JSON's parsers stop somewhere, each elsewhere: what all of them read is a rule."""
_SHALLOW: Final = 2 * DEEPEST
"""A value of no more bytes can't be deeper."""
_TOO_DEEP: Final = f"arrays and objects more than {DEEPEST} deep"
_BESIDE_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))

Attribute = str | None | UnsetType


class _Envelope(Struct, gc=False):
    """A whole CloudEvent as one JSON value; an attribute that is null is absent. What they say is checked as in the binary binding."""

    specversion: Attribute = UNSET
    id: Attribute = UNSET
    source: Attribute = UNSET
    type: Attribute = UNSET
    time: Attribute = UNSET
    dataschema: Attribute = UNSET
    traceparent: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    data_base64: Attribute = UNSET


class _Marked(Struct, gc=False):
    """What tells an event in the structured binding from another JSON object."""

    specversion: Raw | UnsetType = UNSET


_envelope = msgspec.json.Decoder(_Envelope).decode
_marked = msgspec.json.Decoder(_Marked).decode
_text_of = msgspec.json.Decoder(str).decode
_skip = msgspec.json.Decoder(Raw).decode
_ATTRIBUTES: Final = ("specversion", "id", "source", "type", "time", "dataschema")


def _expected_types(topic: str) -> Sequence[str]:
    if topic == DECISIONS:
        return ("refund.decided", "deadline.passed")
    if topic == REKEYED:
        return INPUT
    return ()


# -- JSON ---------------------------------------------------------------------------------------------------------


def _refuse_other_bytes(value: bytes) -> None:
    """Raises Refused if `value` isn't UTF-8 all through: the decoders look only at the text of fields that they know."""
    try:
        value.decode()
    except UnicodeDecodeError:
        raise Refused(errors.NOT_JSON, "not UTF-8") from None


def _refuse_deep(value: bytes, shallow: int = 0) -> None:
    """Raises Refused if `value`, which is JSON, is more than DEEPEST deep. `shallow`: so many of its objects lie side by side in a list."""
    if len(value) > _SHALLOW and _count(value, b"[") + _count(value, b"{") - shallow >= DEEPEST and _depth(value) > DEEPEST:
        raise Refused(errors.NOT_JSON, _TOO_DEEP)


def _count(value: bytes, char: bytes) -> int:
    return len(value) - len(value.replace(char, b""))  # a third of what bytes.count takes


def _depth(value: bytes) -> int:
    """How deep arrays and objects lie in each other, if `value` is JSON; DEEPEST + 1 where it is more."""
    if b"\\" in value:
        value = re.sub(rb"\\.", b"", value, flags=re.DOTALL)
    # Between quotes only brackets are left, so two quotes side by side may go: what lies between others stays there.
    structure = value.translate(None, _BESIDE_STRUCTURE).replace(b'""', b"")
    depth = deepest = 0
    for char in b"".join(structure.split(b'"')[::2]):
        if char in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > DEEPEST:
                    break
        else:
            depth -= 1
    return deepest


def _refuse_no_json(value: bytes) -> None:
    """Raises Refused if `value` is no JSON somewhere: a decoder stops at the first thing that is wrong."""
    try:
        _skip(value)
    except msgspec.DecodeError as error:
        raise Refused(errors.NOT_JSON, str(error)) from None
    except RecursionError:
        raise Refused(errors.NOT_JSON, _TOO_DEEP) from None
    _refuse_deep(value)


def _parse_json(decode: Callable[[Any], Any], value: bytes | Raw, code: str) -> Any:
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        what = str(error)
        if what.startswith("Invalid enum value") and len(what) > _LONGEST_DETAIL:  # it repeats the value
            what = "Invalid enum value of many characters" + what[what.rindex(" - at ") :]
        raise Refused(errors.FIELD_MISSING if "missing required field" in what else code, what) from None
    except msgspec.DecodeError as error:
        raise Refused(errors.NOT_JSON, str(error)) from None
    except RecursionError:
        raise Refused(errors.NOT_JSON, _TOO_DEEP) from None


def _refuse_nul(value: bytes | Raw, data: Struct) -> None:
    """PostgreSQL's text cannot hold U+0000, which JSON can only write as an escape."""
    if b"\\u0000" in bytes(value):
        _look_for_nul(data, "$")


def _look_for_nul(data: object, path: str) -> None:
    if isinstance(data, str) and "\x00" in data:
        raise Refused(errors.FIELD_MALFORMED, f"{path}: holds the character U+0000")
    if isinstance(data, Struct):
        for name in data.__struct_fields__:
            _look_for_nul(getattr(data, name), f"{path}.{name}")
    elif isinstance(data, list):
        for i, element in enumerate(data):
            _look_for_nul(element, f"{path}[{i}]")


# -- the envelope -------------------------------------------------------------------------------------------------


def _text(raw: bytes | None, name: str) -> str:
    if not raw:
        raise Refused(errors.NOT_CLOUDEVENT, f"{name}: missing or empty")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Refused(errors.NOT_CLOUDEVENT, f"{name}: not UTF-8") from None
    if len(text) > MOST_CHARACTERS:
        raise Refused(errors.FIELD_MALFORMED, f"{name}: longer than 1,000 characters")
    return text


_known_text: Final = lru_cache(maxsize=1024)(_text)  # few senders, few types


@lru_cache(maxsize=1024)
def _version(schema: bytes) -> bytes:
    """The end of a dataschema, which tells the version: b"/v1"."""
    if schema:
        _text(schema, "ce_dataschema")
    return schema[schema.rfind(b"/") :]


def _versions(type_: str) -> str:
    return " or ".join(f"/v{version}" for name, version in READS if name == type_)


def _structured(found: Mapping[str, bytes | None], value: bytes) -> _Envelope | None:
    """The whole event, if it is in the structured binding: by its content-type, or because no header but the value says a specversion."""
    media_type = (found.get("content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != _STRUCTURED and not (found.get("ce_specversion") is None and _is_marked(value)):
        if media_type.startswith(b"application/cloudevents"):
            raise Refused(errors.NOT_CLOUDEVENT, "content-type: of CloudEvents formats only application/cloudevents+json is read")
        return None
    try:
        whole: _Envelope = _parse_json(_envelope, value, errors.NOT_CLOUDEVENT)
    except Refused as refusal:
        if refusal.detail.endswith("`$.time`"):
            raise Refused(errors.FIELD_MALFORMED, refusal.detail) from None
        raise
    return whole


def _is_marked(value: bytes) -> bool:
    try:
        mark = _marked(value).specversion
    except (msgspec.DecodeError, RecursionError):
        return False
    return mark is not UNSET and bytes(mark).startswith(b'"')


def _attributes(whole: _Envelope, traceparent: bytes | None) -> dict[str, bytes | None]:
    """The attributes of a structured event as the binary binding has them. `traceparent`: a header, which is no attribute."""
    found: dict[str, bytes | None] = {"traceparent": traceparent}
    for name in _ATTRIBUTES:
        text = getattr(whole, name)
        if text is not UNSET and text is not None:
            found[f"ce_{name}"] = text.encode()
    if whole.traceparent is not UNSET:
        try:
            found["ce_traceparent"] = _text_of(whole.traceparent).encode()
        except msgspec.ValidationError:
            pass  # a trace that isn't valid is dropped
    return found


def _data_of(whole: _Envelope) -> bytes | Raw:
    """The data of a structured event as JSON."""
    if whole.data is not UNSET:
        return whole.data
    if whole.data_base64 is UNSET or whole.data_base64 is None:
        raise Refused(errors.FIELD_MISSING, "$.data: missing")
    try:
        data = base64.b64decode(whole.data_base64, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(errors.NOT_CLOUDEVENT, "data_base64: not base64") from None
    _refuse_other_bytes(data)
    _refuse_no_json(data)
    return data


def _trace_of(*candidates: bytes | None) -> str | None:
    """The event's trace, else that of the header that a tracer adds to any record; one that isn't valid by the W3C's form is none."""
    return next((raw.decode() for raw in candidates if raw is not None and _TRACEPARENT.fullmatch(raw)), None)


def _last_of_each(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes | None]:
    """Name -> value, where a name stands twice: the last that isn't null, as a header that is null is none."""
    return {name: raw for name, raw in headers if raw is not None}


def decode(topic: str, headers: Sequence[tuple[str, bytes | None]], value: bytes | None, appended: int = 0) -> Event:
    """One record of one of topics.LANE or BULK -> Event. `appended`: the broker's time of the record, ms. Raises Refused. Never blocks.

    Of several things that are wrong the first of these is told: no value, no JSON, the envelope's forms, its attributes one by one, the
    forms of the data in the order in which it says them, and what only the whole data tells.
    """
    if value is None:
        raise Refused(errors.TOMBSTONE, "the record has no value")
    if not value.isascii():
        _refuse_other_bytes(value)
    found = dict(headers)
    if len(found) != len(headers):
        found = _last_of_each(headers)
    whole: _Envelope | None = None
    payload: bytes | Raw = value
    try:
        content_type = found.get("content-type")
        if found.get("ce_specversion") != b"1.0" or (content_type is not None and content_type != b"application/json"):
            whole = _structured(found, value)
            if whole is not None:
                found = _attributes(whole, found.get("traceparent"))
            if found.get("ce_specversion") != b"1.0":
                raise Refused(errors.NOT_CLOUDEVENT, "ce_specversion: must be 1.0")
        event_id = _text(found.get("ce_id"), "ce_id")
        _known_text(found.get("ce_source"), "ce_source")
        type_ = _known_text(found.get("ce_type"), "ce_type")
        if (type_ != topic or type_ not in DATA) and type_ not in _expected_types(topic):
            if type_ in DATA:
                raise Refused(errors.TYPE_WRONG_TOPIC, f"ce_type: an event of {type_} belongs on the topic of that name")
            raise Refused(errors.TYPE_UNKNOWN, "ce_type: no such event type")
        schema = found.get("ce_dataschema")
        reader = _DECODE.get((type_, b"/v1" if schema is None else _version(schema)))
        if reader is None:
            raise Refused(errors.VERSION_UNKNOWN, f"ce_dataschema: must end in {_versions(type_)}")
        parse, build = reader
        when = found.get("ce_time")
        if when is None:
            raise Refused(errors.FIELD_MISSING, "ce_time: missing")
        time = times.parse(when.decode("ascii", "replace"), "ce_time")
        if whole is not None:
            payload = _data_of(whole)
        data = _parse_json(parse, payload, errors.FIELD_MALFORMED)
    except Refused as refusal:
        if refusal.code != errors.NOT_JSON:
            _refuse_no_json(value)
        raise
    if len(value) > _SHALLOW:
        _refuse_deep(value, len(getattr(data, "items", None) or ()) if whole is None else 0)
    if b"\\" in value or whole is not None:
        _refuse_nul(payload, data)
    trace, tracer = found.get("ce_traceparent"), found.get("traceparent")
    traceparent = None if trace is None and tracer is None else _trace_of(trace, tracer)
    return Event(type_, data.order_id.bytes, build(data, time), event_id, time, traceparent, appended)


def order_key(event: Event) -> bytes:
    """The record key of the event's order: canonical text form of its id."""
    return ids.text(event.order_id).encode()


def wire(fact: SimpleFact, order_id: bytes) -> dict[str, Any]:
    """A fact as the data of its event again, normalised: ids canonical, times in UTC, absent fields left out."""
    fields: dict[str, Any] = {"order_id": ids.text(order_id)}
    digits = money.DIGITS[fact.currency] if isinstance(fact, Payment) else 0
    for name in fact.__struct_fields__:
        value = getattr(fact, name)
        if value is None or name in ("time", "refused", "type", "failed"):
            continue
        if name == "rank":
            name, value = "status", SHIPMENT_STATUS[value]
        elif name == "status":
            value = RETURN_STATUS[value]
        elif name == "amount":
            value = money.text(value, digits)
        elif name in ("estimated_delivery", "processed_at"):
            value = times.text(value)
        elif name == "items":
            value = [{"item_id": ids.text(item_id), "quantity": quantity} for item_id, quantity in value]
        elif isinstance(value, bytes):
            value = ids.text(value)
        fields[name] = value
    return fields
