"""Records that must be refused, one for every way of being wrong, each with the reason code that it must get.

The codes: docs/rules.md, Refusals.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from random import Random
from typing import Any, Final, NamedTuple

from contracts import errors
from contracts.cloudevents import SourceEvent, binary, rfc3339, structured


class Anchor(NamedTuple):
    """An order whose order.created has been sent under its own key: what a refusal for the
    order's sake is tried on.
    """

    created: dict[str, Any]
    """The data of its order.created, ids as they were written."""

    time_us: int


@dataclass(slots=True)
class Draft:
    """A valid event, still in parts, for a maker to break.
    `value`, `headers` and `key` win over what the parts would give.
    """

    topic: str
    attributes: dict[str, str]
    data: Any
    key: bytes
    structured: bool = False
    value: bytes | None = None
    tombstone: bool = False


@dataclass(frozen=True, slots=True)
class Poison:
    """One way of being wrong: breaks a valid event of `topic`.
    `reason` is the code that its dead letter must carry.
    """

    name: str
    topic: str
    reason: str
    spoil: Callable[[Draft], None]
    needs_order: bool = False
    heavy: bool = False

    def make(self, rng: Random, anchor: Anchor | None = None) -> SourceEvent:
        """The record. With `needs_order` an anchor is required (ValueError); without, the record is
        about an order of its own.
        """
        if self.needs_order and anchor is None:
            raise ValueError(f"{self.name} needs an order that exists")
        draft = _valid(self.topic, rng, anchor if self.needs_order else None)
        self.spoil(draft)
        time_us = anchor.time_us if anchor is not None else _TIME_US
        if draft.tombstone:
            headers, _ = binary(draft.attributes, None)
            return SourceEvent(draft.topic, draft.key, None, headers, time_us)
        headers, value = (structured if draft.structured else binary)(draft.attributes, draft.data)
        return SourceEvent(
            draft.topic, draft.key, value if draft.value is None else draft.value, headers, time_us
        )


def sprinkle(events: Iterator[SourceEvent], rng: Random, share: float) -> Iterator[SourceEvent]:
    """The same events with `share` poisoned records an event between them; every kind
    comes before one comes again.

    A refusal that needs an order is about one whose order.created has gone before on the same partition, so
    that it is the later one.
    """
    anchor: Anchor | None = None
    deck: list[Poison] = []
    waiting: list[Poison] = list(POISONS.values())
    for event in events:
        yield event
        if event.topic == "order.created":
            anchor = _anchored(event) or anchor
        if rng.random() >= share:
            continue
        if not deck:
            deck, waiting = waiting, [poison for poison in POISONS.values() if not poison.heavy]
            rng.shuffle(deck)
        usable = next(
            (place for place, poison in enumerate(deck) if anchor is not None or not poison.needs_order), None
        )
        if usable is not None:
            yield deck.pop(usable).make(rng, anchor)


def _anchored(event: SourceEvent) -> Anchor | None:
    if event.value is None or ("content-type", b"application/json") not in event.headers:
        return None
    data = json.loads(event.value)
    # An order under another key takes a detour, and what is sent after it could arrive before it.
    return Anchor(data, event.time_us) if event.key == data["order_id"].encode() else None


_TIME_US: Final = 1_767_225_600_000_000


def _uuid(rng: Random) -> str:
    digits = f"{rng.getrandbits(128):032x}"
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:]}"


def _valid(topic: str, rng: Random, anchor: Anchor | None) -> Draft:
    """A valid event of the topic, about the anchor's order or about one that nobody else knows."""
    created: dict[str, Any]
    if anchor is not None:
        created = deepcopy(anchor.created)
    else:
        item = {
            "item_id": _uuid(rng),
            "product_id": _uuid(rng),
            "seller_id": _uuid(rng),
            "sku": "SKU-1",
            "quantity": 2,
            "price": "12.50",
            "shipping_amount": "3.00",
        }
        created = {
            "order_id": _uuid(rng),
            "user_id": _uuid(rng),
            "currency": "EUR",
            "total_amount": "28.00",
            "items": [item],
        }
    order_id, line = created["order_id"], created["items"][0]
    returned = {
        "return_id": _uuid(rng),
        "item_id": line["item_id"],
        "quantity": 1,
        "reason": "too_small",
        "status": "requested",
    }
    rest: dict[str, dict[str, Any]] = {
        "order.created": created,
        "order.paid": {"payment_id": _uuid(rng), "amount": "1", "currency": created["currency"]},
        "payment.failed": {"payment_id": _uuid(rng), "reason": "card_declined"},
        "stock.reserved": {"seller_id": line["seller_id"], "reservation_id": _uuid(rng)},
        "stock.rejected": {"seller_id": line["seller_id"], "reservation_id": _uuid(rng)},
        "stock.released": {"seller_id": line["seller_id"], "reservation_id": _uuid(rng)},
        "order.cancel_requested": {"reason": "changed_my_mind", "seller_id": line["seller_id"]},
        "shipment.updated": {"shipment_id": _uuid(rng), "seller_id": line["seller_id"], "status": "pending"},
        "order.returned": returned,
        "refund.completed": {"refund_id": _uuid(rng)},
        "refund.failed": {"refund_id": _uuid(rng)},
        "refund.granted": {
            "grant_id": _uuid(rng),
            "amount": "1",
            "currency": created["currency"],
            "reason": "complaint",
        },
        "promise.updated": {"seller_id": line["seller_id"], "ship_by": "2026-01-09T12:00:00Z"},
    }
    time = rfc3339(anchor.time_us if anchor is not None else _TIME_US)
    attributes = {"specversion": "1.0", "id": _uuid(rng), "source": "/poison", "type": topic, "time": time}
    return Draft(topic, attributes, {"order_id": order_id, **rest[topic]}, order_id.encode())


# -- makers --------------------------------------------------------------------------------------------------


def _field(**changes: Any) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.data.update(changes)

    return spoil


def _without(*names: str) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        for name in names:
            del draft.data[name]

    return spoil


def _taxes(included: bool | None, **amounts: str) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.data["items"][0]["taxes"] = [{"code": code, "amount": text} for code, text in amounts.items()]
        if included is not None:
            draft.data["prices_include_tax"] = included

    return spoil


def _item(**changes: Any) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.data["items"][0].update(changes)

    return spoil


def _attribute(name: str, value: str | None) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        if value is None:
            del draft.attributes[name]
        else:
            draft.attributes[name] = value

    return spoil


def _raw(value: bytes) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.value = value

    return spoil


def _token(name: str, token: bytes) -> Callable[[Draft], None]:
    """A bare token, as no JSON encoder would write it, for a field's value."""

    def spoil(draft: Draft) -> None:
        draft.data[name] = "@"
        draft.value = json.dumps(draft.data).encode().replace(b'"@"', token)

    return spoil


def _tombstone(draft: Draft) -> None:
    draft.tombstone = True


def _wrong_topic(draft: Draft) -> None:
    draft.topic = "order.paid"


def _repeat_item(draft: Draft) -> None:
    draft.data["items"] *= 2
    draft.data["total_amount"] = "56.00"


def _repeat_quantities(draft: Draft) -> None:
    item_id = draft.data["shipment_id"]
    draft.data["items"] = [{"item_id": item_id, "quantity": 1}, {"item_id": item_id.upper(), "quantity": 1}]


def _many_items(draft: Draft) -> None:
    line = draft.data["items"][0]
    draft.data["items"] = [{**line, "item_id": f"00000000-0000-4000-8000-{n:012d}"} for n in range(1001)]


def _envelope(value: bytes | None = None, without: str | None = None) -> Callable[[Draft], None]:
    def spoil(draft: Draft) -> None:
        draft.structured = True
        draft.value = value
        if without == "data":
            draft.value = json.dumps(draft.attributes).encode()
        elif without is not None:
            del draft.attributes[without]

    return spoil


def _other_content(draft: Draft) -> None:
    draft.data["items"][0]["sku"] += "-other"


def _other_currency(draft: Draft) -> None:
    draft.data["currency"] = "CHF"


def _unknown_item(draft: Draft) -> None:
    draft.data["items"] = [{"item_id": draft.data["shipment_id"], "quantity": 1}]


def _unknown_returned_item(draft: Draft) -> None:
    draft.data["item_id"] = draft.data["return_id"]


def _unknown_item_granted(draft: Draft) -> None:
    draft.data["item_id"] = draft.data["grant_id"]


def _unknown_seller(draft: Draft) -> None:
    names = ("shipment_id", "reservation_id", "grant_id")
    ids = (draft.data[name] for name in names if name in draft.data)
    draft.data["seller_id"] = next(ids, draft.attributes["id"])


_DEEP: Final = b"[" * 200_000 + b"]" * 200_000
_LONG: Final = "x" * 1001

_ALL: Final = (
    # not JSON
    Poison("truncated_json", "order.created", errors.NOT_JSON, _raw(b'{"order_id":')),
    Poison("empty_value", "order.paid", errors.NOT_JSON, _raw(b"")),
    Poison("not_utf8", "payment.failed", errors.NOT_JSON, _token("reason", b'"\xff\xfe"')),
    Poison("binary_value", "order.created", errors.NOT_JSON, _raw(bytes(range(256)))),
    Poison("lone_surrogate", "payment.failed", errors.NOT_JSON, _token("reason", rb'"\ud800"')),
    Poison("nan", "order.paid", errors.NOT_JSON, _token("amount", b"NaN")),
    Poison("deep_json", "order.created", errors.NOT_JSON, _token("extra", _DEEP), heavy=True),
    Poison("tombstone", "order.created", errors.TOMBSTONE, _tombstone),
    # not a CloudEvent
    Poison("no_specversion", "order.paid", errors.NOT_CLOUDEVENT, _attribute("specversion", None)),
    Poison("wrong_specversion", "order.paid", errors.NOT_CLOUDEVENT, _attribute("specversion", "0.3")),
    Poison("no_id", "order.paid", errors.NOT_CLOUDEVENT, _attribute("id", None)),
    Poison("empty_source", "order.paid", errors.NOT_CLOUDEVENT, _attribute("source", "")),
    Poison("no_type", "order.paid", errors.NOT_CLOUDEVENT, _attribute("type", None)),
    Poison("envelope_not_json", "order.paid", errors.NOT_JSON, _envelope(b"<order/>")),
    Poison("envelope_without_data", "order.paid", errors.FIELD_MISSING, _envelope(without="data")),
    Poison("envelope_without_id", "order.paid", errors.NOT_CLOUDEVENT, _envelope(without="id")),
    Poison("unknown_type", "order.paid", errors.TYPE_UNKNOWN, _attribute("type", "order.forgotten")),
    Poison("wrong_topic", "order.created", errors.TYPE_WRONG_TOPIC, _wrong_topic),
    Poison(
        "unknown_version",
        "order.paid",
        errors.VERSION_UNKNOWN,
        _attribute("dataschema", "urn:orders:order.paid/v2"),
    ),
    Poison("no_time", "order.paid", errors.FIELD_MISSING, _attribute("time", None)),
    Poison(
        "time_without_offset", "order.paid", errors.FIELD_MALFORMED, _attribute("time", "2026-01-01T00:00:00")
    ),
    Poison("no_such_time", "order.paid", errors.FIELD_MALFORMED, _attribute("time", "2026-02-30T00:00:00Z")),
    # fields
    Poison("not_an_object", "order.paid", errors.FIELD_MALFORMED, _raw(b"[1, 2]")),
    Poison("no_order_id", "order.paid", errors.FIELD_MISSING, _without("order_id")),
    Poison("no_items", "order.created", errors.FIELD_MISSING, _without("items")),
    Poison("no_status", "shipment.updated", errors.FIELD_MISSING, _without("status")),
    Poison("null_field", "stock.reserved", errors.FIELD_MALFORMED, _field(seller_id=None)),
    Poison("id_no_uuid", "order.paid", errors.FIELD_MALFORMED, _field(payment_id="payment-17")),
    Poison("status_unknown", "shipment.updated", errors.FIELD_MALFORMED, _field(status="lost")),
    Poison("items_empty", "order.created", errors.FIELD_MALFORMED, _field(items=[])),
    Poison("items_too_many", "order.created", errors.FIELD_MALFORMED, _many_items, heavy=True),
    Poison("quantity_zero", "order.returned", errors.FIELD_MALFORMED, _field(quantity=0)),
    Poison("quantity_too_large", "order.returned", errors.FIELD_MALFORMED, _field(quantity=100_001)),
    Poison("quantity_fraction", "order.returned", errors.FIELD_MALFORMED, _field(quantity=1.5)),
    Poison("quantity_text", "order.returned", errors.FIELD_MALFORMED, _field(quantity="1")),
    Poison("quantity_beyond_float", "order.returned", errors.FIELD_MALFORMED, _token("quantity", b"1e400")),
    Poison("price_negative", "order.created", errors.FIELD_MALFORMED, _item(price="-12.50")),
    Poison("price_number", "order.created", errors.FIELD_MALFORMED, _item(price=12.5)),
    Poison("price_leading_zero", "order.created", errors.FIELD_MALFORMED, _item(price="012.50")),
    Poison("price_three_decimals", "order.created", errors.FIELD_MALFORMED, _item(price="12.500")),
    Poison("amount_exponent", "order.paid", errors.FIELD_MALFORMED, _field(amount="1e3")),
    Poison("amount_zero", "order.paid", errors.FIELD_MALFORMED, _field(amount="0.00")),
    Poison("grant_zero", "refund.granted", errors.FIELD_MALFORMED, _field(amount="0")),
    Poison("amount_too_large", "order.paid", errors.FIELD_MALFORMED, _field(amount="10000000000000.01")),
    Poison("yen_with_decimals", "order.paid", errors.FIELD_MALFORMED, _field(amount="1.0", currency="JPY")),
    Poison("text_too_long", "payment.failed", errors.FIELD_MALFORMED, _field(reason=_LONG)),
    Poison("text_with_nul", "payment.failed", errors.FIELD_MALFORMED, _field(reason="a\x00b")),
    Poison(
        "huge_value", "payment.failed", errors.FIELD_MALFORMED, _field(reason="x" * 5_000_000), heavy=True
    ),
    Poison(
        "day_malformed", "shipment.updated", errors.FIELD_MALFORMED, _field(estimated_delivery="tomorrow")
    ),
    Poison(
        "processed_at_malformed", "order.returned", errors.FIELD_MALFORMED, _field(processed_at="2026-01-01")
    ),
    Poison("ship_by_malformed", "order.created", errors.FIELD_MALFORMED, _item(ship_by="next week")),
    Poison("promise_malformed", "promise.updated", errors.FIELD_MALFORMED, _field(deliver_by="2026-01-09")),
    Poison("attempt_zero", "refund.failed", errors.FIELD_MALFORMED, _field(attempt=0)),
    Poison("currency_unknown", "order.paid", errors.CURRENCY_UNKNOWN, _field(currency="ECU")),
    Poison("total_mismatch", "order.created", errors.TOTAL_MISMATCH, _field(total_amount="28.01")),
    Poison(
        "discount_too_large",
        "order.created",
        errors.DISCOUNT_TOO_LARGE,
        _field(discount_amount="25.01", total_amount="2.99"),
    ),
    Poison("tax_too_large", "order.created", errors.TAX_TOO_LARGE, _taxes(True, VAT="25.01")),
    Poison("tax_not_in_the_total", "order.created", errors.TOTAL_MISMATCH, _taxes(False, VAT="2.50")),
    Poison("tax_negative", "order.created", errors.FIELD_MALFORMED, _taxes(False, VAT="-2.50")),
    Poison("tax_of_which_prices", "order.created", errors.FIELD_MALFORMED, _taxes(None, VAT="2.50")),
    Poison("item_repeated", "order.created", errors.ITEM_REPEATED, _repeat_item),
    Poison("quantity_repeated", "shipment.updated", errors.ITEM_REPEATED, _repeat_quantities),
    # refused for the sake of the order
    Poison("other_content", "order.created", errors.KEY_CONFLICT, _other_content, needs_order=True),
    Poison("other_currency", "order.paid", errors.ORDER_CURRENCY, _other_currency, needs_order=True),
    Poison(
        "grant_in_other_currency", "refund.granted", errors.ORDER_CURRENCY, _other_currency, needs_order=True
    ),
    Poison(
        "grant_of_unknown_seller", "refund.granted", errors.ORDER_SELLER, _unknown_seller, needs_order=True
    ),
    Poison(
        "grant_of_unknown_item", "refund.granted", errors.ORDER_ITEM, _unknown_item_granted, needs_order=True
    ),
    Poison("unknown_item", "shipment.updated", errors.ORDER_ITEM, _unknown_item, needs_order=True),
    Poison(
        "unknown_item_returned", "order.returned", errors.ORDER_ITEM, _unknown_returned_item, needs_order=True
    ),
    Poison("unknown_seller", "shipment.updated", errors.ORDER_SELLER, _unknown_seller, needs_order=True),
    Poison(
        "unknown_seller_reserved", "stock.reserved", errors.ORDER_SELLER, _unknown_seller, needs_order=True
    ),
    Poison(
        "unknown_seller_promises", "promise.updated", errors.ORDER_SELLER, _unknown_seller, needs_order=True
    ),
)

POISONS: Final[dict[str, Poison]] = {poison.name: poison for poison in _ALL}
"""Name -> poison. Every reason code that a record can be refused with occurs."""
