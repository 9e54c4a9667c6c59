"""`orders events`: the reference of every event in and out, made from the code that reads and writes them."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import typer

from cli.errors import UserError
from domain import effects, events, ids, limits, topics
from domain.bulk import EVENT, TOPIC, BulkCompleted, completed, event_id
from domain.deadlines import Due
from domain.effects import Derived
from domain.errors import REASONS
from domain.events import Event
from domain.fold import fold
from domain.order import DUE_STOCK, Order, Origin
from streams.dead_letters import REDRIVE_COUNT, REDRIVE_OF

Json = dict[str, Any]


class Incoming(NamedTuple):
    """Who sends an event, and what makes two of them one fact."""

    sender: str
    natural_key: str


class Outgoing(NamedTuple):
    """When a derived event leaves, and the name that its ids are made of (uuid5 in the namespace of the order's UUID)."""

    when: str
    field: str | None
    name: str
    same: str


INCOMING: Final = {
    "checkout.completed": Incoming("checkout", "the order that it becomes"),
    "order.created": Incoming("checkout", "the order itself"),
    "order.paid": Incoming("payment service", "payment_id"),
    "payment.failed": Incoming("payment service", "payment_id"),
    "stock.reserved": Incoming("inventory", "seller_id"),
    "stock.rejected": Incoming("inventory", "seller_id and items as sent, so two partial rejections both count"),
    "stock.released": Incoming("inventory", "seller_id and items as sent, so two partial releases both count"),
    "order.cancel_requested": Incoming("customer service", "seller_id, or the whole order without it"),
    "shipment.updated": Incoming("shipping service", "shipment_id, status and the event's time"),
    "order.returned": Incoming("returns desk", "return_id and status"),
    "refund.completed": Incoming("payment service", "refund_id"),
    "refund.failed": Incoming("payment service", "refund_id"),
}

_ANY_ORDER: Final = "The set of these is the same in any order of arrival, and one id has one content."
_NOTICE: Final = "Which of these leave may differ with the order of arrival; the last one of an order does not."
_COMMAND: Final = "Whether and with which units it leaves may differ with the order of arrival."

OUTGOING: Final = {
    "suborder.created": Outgoing(
        "order.created came: one for every seller, whatever else is known.", "suborder_id", "suborder:SELLER", _ANY_ORDER
    ),
    "suborder.updated": Outgoing("The status, the amounts or the unit counts of a seller's part changed.", None, "VERSION:SELLER", _NOTICE),
    "stock.reserve": Outgoing(
        "order.created came: one for every seller, whatever else is known.", "reservation_id", "reservation:SELLER", _ANY_ORDER
    ),
    "payment.initiate": Outgoing("order.created came, unless its total is 0.", "payment_request_id", "payment", _ANY_ORDER),
    "shipping.label.create": Outgoing(
        "The order is confirmed or further for the first time: one for each seller that has units not gone and no parcel in transit. "
        "It does not wait for stock.reserved.",
        "label_request_id",
        "label:SELLER",
        _COMMAND,
    ),
    "stock.release": Outgoing(
        "A cancellation came: one for each seller meant that has units neither gone nor in transit.",
        "reservation_id",
        "reservation:SELLER",
        _COMMAND,
    ),
    "stock.commit": Outgoing("A parcel is in transit or further for the first time.", "commit_id", "commit:SHIPMENT", _COMMAND),
    "stock.restock": Outgoing("A return was processed and its goods are sound.", "restock_id", "restock:RETURN", _ANY_ORDER),
    "refund.request": Outgoing(
        "A refund was decided: its refund.decided came back from orders.decisions.", "refund_id", "refund:N", "One id has one content."
    ),
    "order.status_changed": Outgoing("The order's status changed.", None, "VERSION", _NOTICE),
}

_ATTRIBUTES_IN: Final = (
    ("specversion", "yes", "1.0"),
    ("id", "yes", "names the event; derived events carry it on as their causeid"),
    ("source", "yes", "whatever the sender calls itself"),
    ("type", "yes", "the topic's name"),
    ("time", "yes", "when it happened: RFC 3339 with offset, cut to microseconds"),
    ("dataschema", "no", "ends in /v1; missing means the same"),
    ("traceparent", "no", "W3C trace context, carried on if it is valid, else dropped; without it the header `traceparent` of the record"),
)
_ATTRIBUTES_OUT: Final = (
    ("specversion", "yes", "1.0"),
    ("id", "yes", "uuid5 in the namespace of the order's UUID, as said at each event: a repetition has the same"),
    ("source", "yes", effects.SOURCE.decode()),
    ("type", "yes", "the topic's name"),
    ("time", "yes", "the time of the event that caused it"),
    ("dataschema", "yes", "ends in /v1"),
    ("causeid", "yes", "the id of the event that caused it"),
    ("traceparent", "no", "that of the cause"),
)
_DLQ_HEADERS: Final = (
    ("dlq_topic", "topic of the refused record"),
    ("dlq_partition", "its partition"),
    ("dlq_offset", "its offset"),
    ("dlq_reason", "a reason code (below)"),
    ("dlq_detail", "where and what, without any free text of the record"),
    ("dlq_time", "when it was refused"),
)

_REDRIVE_HEADERS: Final = (
    (REDRIVE_OF, "PARTITION:OFFSET of the dead letter in orders.dlq that it was made of"),
    (REDRIVE_COUNT, "how often it has been redriven: 1, 2, ..."),
)


def events_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, with JSON Schemas.")] = False,
    as_asyncapi: Annotated[bool, typer.Option("--asyncapi", help="The AsyncAPI 3 document on stdout.")] = False,
    write: Annotated[
        Path | None,
        typer.Option(
            help="Write asyncapi.json and a JSON Schema of each event into this folder; refused where that breaks what lies there."
        ),
    ] = None,
) -> None:
    """The reference of all events in and out: topics, fields, ids, reason codes. Markdown, JSON Schema or AsyncAPI.

    Example: [bold]orders events > docs/events.md; orders events --write contracts[/bold]
    """
    from cli import contracts

    if sum((as_json, as_asyncapi, write is not None)) > 1:
        raise UserError("one of --json, --asyncapi and --write at a time")
    if write is not None:
        try:
            changed = contracts.write(write)
        except contracts.Breaking as broken:
            raise UserError(str(broken)) from None
        except OSError as error:
            raise UserError(f"--write {write}: {error.strerror}") from None
        print("\n".join(str(path) for path in changed) or "nothing has changed")
    elif as_asyncapi:
        print(json.dumps(contracts.asyncapi(), indent=2))
    else:
        print(json.dumps(reference(), indent=2) if as_json else markdown(), end="\n" if as_json else "")


def reference() -> Json:
    """Everything that the Markdown says, with a JSON Schema of each event's data; `$ref`s point into `components`. Never blocks."""
    known: dict[str, type[msgspec.Struct]] = {**events.DATA, **effects.DATA, topics.BULK_COMPLETED: BulkCompleted}
    schemas, components = msgspec.json.schema_components(known.values(), ref_template="#/components/{name}")
    schema_of = dict(zip(known, schemas, strict=True))
    sent, published = _examples()
    return {
        "in": [
            {
                "topic": topic,
                "sender": INCOMING[topic].sender,
                "meaning": _meaning(events.DATA[topic]),
                "key": f"{'checkout_id' if topic == topics.CHECKOUT else 'order_id'} in canonical text form",
                "natural_key": INCOMING[topic].natural_key,
                "data": schema_of[topic],
                "example": sent[topic],
            }
            for topic in topics.INPUT
        ],
        "internal": [
            {
                "topic": topics.DECISIONS,
                "type": "refund.decided",
                "meaning": _meaning(events.RefundDecided),
                "natural_key": "n",
                "data": schema_of["refund.decided"],
                "example": published["refund.decided"],
            },
            {
                "topic": topics.DECISIONS,
                "type": "deadline.passed",
                "meaning": _meaning(events.DeadlinePassed),
                "natural_key": "deadline, seller_id or refund_id, attempt",
                "data": schema_of["deadline.passed"],
                "example": published["deadline.passed"],
            },
        ],
        "out": [
            {
                "topic": topic,
                "meaning": _meaning(effects.DATA[topic]),
                "when": OUTGOING[topic].when,
                "key": "order_id in canonical text form",
                "id": None if OUTGOING[topic].field is None else {"field": OUTGOING[topic].field, "name": OUTGOING[topic].name},
                "ce_id": _ce_name(topic),
                "same_in_any_order": OUTGOING[topic].same,
                "data": schema_of[topic],
                "example": published[topic],
            }
            for topic in topics.DERIVED
        ],
        "bulk": [
            {
                "topic": topic,
                "meaning": _meaning(known[topic]),
                "key": "job_id in canonical text form",
                "data": schema_of[topic],
                "example": example,
            }
            for topic, example in _bulk_examples(sent).items()
        ],
        "dead_letters": {"topic": topics.DLQ, "headers": dict(_DLQ_HEADERS), "reasons": dict(REASONS)},
        "components": components,
    }


def markdown() -> str:
    """The reference as the Markdown page docs/events.md. Never blocks."""
    return "\n".join(_page(reference())).rstrip() + "\n"


# -- the page -----------------------------------------------------------------------------------------------------------


def _page(found: Json) -> Iterator[str]:
    components: dict[str, Json] = found["components"]
    yield "# Events"
    yield ""
    yield (
        "Every event that the pipeline reads and writes. This page is the output of `orders events`, which makes it "
        "from the code; `make docs`"
    )
    yield "writes it anew, and a test compares the two. `orders events --json` gives the same with JSON Schemas."
    yield ""
    yield "| in | out |"
    yield "|---|---|"
    yield f"| {_links((*topics.INPUT, *topics.BULK))} | {_links((*topics.DERIVED, topics.BULK_COMPLETED))} |"
    yield ""
    internal = _links((topics.DECISIONS, topics.REKEYED, topics.REDRIVEN, topics.PARTITIONS))
    yield f"Internal: {internal}. Refused records: [{topics.DLQ}](#{_anchor(topics.DLQ)})."
    yield ""
    yield "## Records"
    yield ""
    yield (
        "A topic has the name of the type of its events. A record is a CloudEvents 1.0 event, in either Kafka binding: "
        "binary (attributes as headers"
    )
    yield (
        "`ce_...`, the value is the data) or structured (the value is the whole event). It is structured by its content-type "
        "`application/cloudevents+json`, or when"
    )
    yield (
        "there is no header `ce_specversion` and the value is a JSON object with a text member `specversion`; then headers that begin with "
        "`ce_` are ignored. What we"
    )
    yield (
        "write is binary. The record key is the order's id in canonical text form, in and out; an event under another key is "
        "re-keyed by the order_id in its data."
    )
    yield ""
    yield "- **Ids** are UUIDs, read with or without dashes and in any case, written in canonical text form."
    yield ("- **Times** are RFC 3339 with offset, cut to microseconds; a leap second (`:60`) is the last microsecond of its minute.")
    yield (
        "- **Money** is text in major units with at most the currency's minor digits (ISO 4217: JPY 0, EUR 2, BHD 3), "
        "at most 10^15 minor units."
    )
    yield (
        "- **Text** has at most 1,000 characters (not bytes), in an attribute too. Unknown fields are ignored; `null` is no value of "
        "any field."
    )
    yield (
        "- **Headers and attributes** that aren't named here are never looked at: their names and values may be any bytes. One that is "
        "null is absent. Of several"
    )
    yield "  headers of one name the last that isn't null counts. Names are as written here: `CE_ID` is another header."
    yield (
        f"- **JSON** is UTF-8 all through, without NaN, without halves of surrogate pairs, at most {events.DEEPEST} arrays and objects in "
        "each other, the envelope's among them."
    )
    yield (
        "  Of a member that stands twice the last counts, but each must be well formed: of its JSON type, an id, one of the words, within "
        "its length and range."
    )
    yield (
        "- **Of several faults** the first of these is told: no value, no JSON, a member of the envelope of the wrong JSON type, the "
        "attributes in the order specversion,"
    )
    yield (
        "  id, source, type, dataschema, time, then the data: its fields in the order in which they stand, missing ones, and what only "
        "the whole tells (currency, amounts,"
    )
    yield "  an item twice, the total)."
    yield ""
    yield "Attributes of an event in:"
    yield ""
    yield from _table(("attribute", "required", "what"), ((f"`{name}`", required, what) for name, required, what in _ATTRIBUTES_IN))
    yield ""
    yield "Attributes of an event out:"
    yield ""
    yield from _table(("attribute", "always", "what"), ((f"`{name}`", always, what) for name, always, what in _ATTRIBUTES_OUT))
    yield ""
    yield "## In"
    yield ""
    yield (
        "An event adds a fact to its order. A fact has a natural key: the same key with the same content again changes "
        "nothing (of repetitions the"
    )
    yield "earliest time stays), with other content it is refused. Time, id, source and reason are not content."
    for event in found["in"]:
        yield ""
        yield f"### {event['topic']}"
        yield ""
        yield event["meaning"]
        yield ""
        yield f"Sent by: {event['sender']}. Natural key: {event['natural_key']}."
        yield ""
        yield from _fields(event["data"], components)
        yield from _example(event["example"])
    yield ""
    yield "## Out"
    yield ""
    yield (
        "Ids that we make are uuid5 of a name in the namespace of the order's UUID, and so is the event's own id: "
        "whoever receives a command twice can"
    )
    yield (
        "tell. SELLER, SHIPMENT and RETURN stand for UUIDs in canonical text form, N for 0, 1, ... by decision, "
        "VERSION for the data's version."
    )
    for event in found["out"]:
        yield ""
        yield f"### {event['topic']}"
        yield ""
        yield event["meaning"]
        yield ""
        yield f"When: {event['when']} {event['same_in_any_order']}"
        yield ""
        made = "" if event["id"] is None else f"`{event['id']['field']}`: uuid5 of `{event['id']['name']}`. "
        yield f"{made}Event id: uuid5 of `{event['ce_id']}`."
        yield ""
        yield from _fields(event["data"], components)
        yield from _example(event["example"])
    yield ""
    yield "## Bulk"
    yield ""
    yield (
        "Many events at once, of one job ([bulk.md](bulk.md)). Key: the job's id in canonical text form. Each event in a part has an "
        "id and a time"
    )
    yield (
        "of its own and becomes a record of its type, as if it had been sent by itself; unpacked twice it changes nothing. "
        "`bulk.completed` follows when"
    )
    yield "every part from 1 to `parts` has been unpacked; its id is uuid5 of `bulk.completed` in the namespace of the job's UUID."
    for event in found["bulk"]:
        yield ""
        yield f"### {event['topic']}"
        yield ""
        yield event["meaning"]
        yield ""
        yield from _fields(event["data"], components)
        yield from _example(event["example"])
    yield ""
    yield "## Internal"
    yield ""
    yield f"### {topics.DECISIONS}"
    yield ""
    yield "What would depend on which of two came first is decided once. Written by the pipeline alone, each comes back to it as a fact;"
    yield "the first record with each natural key counts."
    for event in found["internal"]:
        yield ""
        yield f"`{event['type']}`: {event['meaning']} Natural key: {event['natural_key']}."
        yield ""
        yield from _fields(event["data"], components)
        yield from _example(event["example"])
    yield ""
    yield f"### {topics.REKEYED}"
    yield ""
    yield (
        "Events that came under another key than their order's, as they came, on their way to their order's partition. "
        "The headers `rekeyed_topic`,"
    )
    yield "`rekeyed_partition`, `rekeyed_offset` and `rekeyed_key` (absent if there was none) say where they came from."
    yield ""
    yield f"### {topics.REDRIVEN}"
    yield ""
    yield (
        "What `orders dlq redrive` has sent back: compacted, kept for ever. Key `PARTITION:OFFSET` of a dead letter, value JSON: "
        "`at`, `by`, `count`,"
    )
    yield "`reason`, `origin` and `to` ([topic, partition, offset] of the refused record and of the one that was sent)."
    yield ""
    yield f"### {topics.PARTITIONS}"
    yield ""
    yield (
        "Written by `orders partitions --to N`: compacted, kept for ever, one key (`partitions`, in partition 0). Value JSON: "
        "`partitions`, the number by which an order's lane is found,"
    )
    yield "and `former`, those of before: an order's older records lie in partition hash mod each. Empty where there were never more."
    yield ""
    yield "## Refused records"
    yield ""
    yield f"### {topics.DLQ}"
    yield ""
    yield (
        "A refused record with its key, value and headers as they came, and these headers beside them. A fact that "
        "waited for its order and is refused"
    )
    yield "once the order is known is there in normalised form (`dlq_detail` says so); its record is found at the coordinates."
    yield f"So is that of a record above {limits.RECORD_BYTES >> 20} MiB uncompressed: its dead letter holds no value."
    yield ""
    yield from _table(("header", "what"), ((f"`{name}`", what) for name, what in _DLQ_HEADERS))
    yield ""
    yield "A record that `orders dlq redrive` sends back is as it came, with these headers beside. It keeps them if it is refused again:"
    yield ""
    yield from _table(("header", "what"), ((f"`{name}`", what) for name, what in _REDRIVE_HEADERS))
    yield ""
    yield "Reason codes are stable ([dlq.md](dlq.md) says what to do about each):"
    yield ""
    yield from _table(("dlq_reason", "why"), ((f"`{code}`", why) for code, why in REASONS.items()))
    most, scans = min(limits.TYPE_BYTES.values()) >> 20, limits.TYPE_BYTES["shipment.updated"] >> 20
    yield ""
    yield (
        f"One order takes in at most {most} MiB of facts of each type, {scans} MiB of `shipment.updated` (more than 10,000 scans of the "
        f"usual size). A fact counts {limits.FACT_BYTES} bytes,"
    )
    yield (
        "its texts (`reason`, `method`, `carrier`, `tracking_number`, `location`) in UTF-8, "
        f"and {limits.ITEM_BYTES} bytes for each entry of its `items`. What goes beyond is"
    )
    yield "refused with `order_too_large`, in the order of that type's log, and keeps no natural key."


def _fields(schema: Json, components: dict[str, Json]) -> Iterator[str]:
    """A table of the fields of a struct, then one for each struct inside it."""
    seen: list[str] = []
    waiting = deque([_name(schema)])
    while waiting:
        name = waiting.popleft()
        if name in seen:
            continue
        if seen:
            yield ""
            yield f"`{name}`:" + (f" {components[name]['description']}" if "description" in components[name] else "")
            yield ""
        seen.append(name)
        properties: dict[str, Json] = components[name]["properties"]
        required = components[name].get("required", ())
        yield from _table(
            ("field", "type", "required", "notes"),
            (
                (f"`{field}`", _type(field, inner), "yes" if field in required else "no", _notes(inner))
                for field, inner in properties.items()
            ),
        )
        for inner in properties.values():
            for element in (inner, inner.get("items", {})):
                if isinstance(element, dict) and "$ref" in element:
                    waiting.append(_name(element))


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', '&#124;') for cell in row)} |"


def _example(data: Json) -> Iterator[str]:
    yield ""
    yield "```json"
    yield json.dumps(data, indent=2)
    yield "```"


def _name(schema: Json) -> str:
    return str(schema["$ref"]).rpartition("/")[2]


def _type(field: str, schema: Json) -> str:
    if "$ref" in schema:
        return f"`{_name(schema)}`"
    if "enum" in schema:
        return ", ".join(f"`{word}`" for word in schema["enum"])
    kind = schema["type"]
    if kind == "array":
        inner = schema.get("items")
        # A pair: its elements are told one by one.
        return f"list of {_type(field, inner)}" if inner else f"[{', '.join(_type(field, each) for each in schema['prefixItems'])}]"
    if kind == "string":
        if schema.get("format") == "uuid" or field.endswith("_id"):
            return "uuid"
        if field == "price" or field.endswith("amount"):
            return "money"
        return {"currency": "currency", "processed_at": "time", "estimated_delivery": "time or day"}.get(field, "text")
    return str(kind)


def _notes(schema: Json) -> str:
    notes = []
    if schema.get("description") and "major units" not in schema["description"]:
        notes.append(str(schema["description"]))
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        notes.append(f"{least:,} to {most:,}")
    if schema.get("type") == "array" and "maxItems" in schema and "prefixItems" not in schema:
        notes.append(f"{schema.get('minItems', 0):,} to {schema['maxItems']:,}")
    return "; ".join(notes)


def _links(names: tuple[str, ...]) -> str:
    return ", ".join(f"[{name}](#{_anchor(name)})" for name in names)


def _anchor(heading: str) -> str:
    return heading.replace(".", "")


def _meaning(data: type[msgspec.Struct]) -> str:
    return " ".join((data.__doc__ or "").split())


def _ce_name(topic: str) -> str:
    known = OUTGOING[topic]
    return f"{topic}:{known.name}" if known.field is None else f"{topic}:" + known.field.upper()


# -- examples: one order's story, and what the pipeline makes of it ---------------------------------------------------------

_ORDER: Final = "6f1d7a52-0d0e-4a2b-9c3e-1f4b8a70c901"
_CHECKOUT: Final = "b0c7d1f2-5a8e-4d3b-8f6a-2e9c41d07a55"
_JOB: Final = "5b8e2c17-9f3d-4e60-a1c4-7d2f60b9e835"
_ANNA: Final = "0b7f4a8e-5a51-4c39-8f0d-3f6c2d9e1a01"
_BORIS: Final = "d2c9e6b4-77a3-4f18-a1c5-92e0b84f6b02"
_LAMP: Final = "31f0c5d8-6e2b-4d47-b9a1-7c05e3f2aa01"
_BULBS: Final = "84ab1e07-92d6-4b5c-8e3f-20d9c67bb002"
_POSTER: Final = "c65e9f13-4a08-4e71-9d2c-5b81f07dcc03"
_PARCEL: Final = "9a4d3c21-8b7e-4f60-a512-6ed0b9c8f711"
_RETURN: Final = "e7b05f94-1c3d-4a86-b02e-84f9d1a6e521"
_PRODUCT: Final = "5d20b8c7-3e91-4a6f-8c14-0f7be2d9a63"
_CARD: Final = "2e8f60d1-b4a7-4c95-93d8-a61c7f0b5e31"


def _story() -> list[tuple[str, str, Json]]:
    """(time, type, data without order_id) of one order of two sellers, every type at least once."""
    order_id = bytes.fromhex(_ORDER.replace("-", ""))

    def made(name: str) -> str:
        return ids.uuid5_text(order_id, name)

    anna, boris = {"seller_id": _ANNA}, {"seller_id": _BORIS}
    lines = [
        {
            "item_id": _LAMP,
            "product_id": f"{_PRODUCT}1",
            **anna,
            "sku": "LAMP-BLACK",
            "quantity": 1,
            "price": "49.90",
            "shipping_amount": "4.90",
        },
        {"item_id": _BULBS, "product_id": f"{_PRODUCT}2", **anna, "sku": "BULB-E27", "quantity": 4, "price": "3.50"},
        {
            "item_id": _POSTER,
            "product_id": f"{_PRODUCT}3",
            **boris,
            "sku": "POSTER-A2",
            "quantity": 1,
            "price": "18.00",
            "shipping_amount": "3.20",
        },
    ]
    created = {
        "user_id": "7c1b9e44-0a6d-4d2f-85b3-c9e8f2a01d71",
        "region": "BE",
        "currency": "EUR",
        "total_amount": "85.00",
        "discount_amount": "5.00",
        "items": lines,
    }
    held = [{"item_id": _LAMP, "quantity": 1}, {"item_id": _BULBS, "quantity": 3}]
    scan = {
        "shipment_id": _PARCEL,
        **anna,
        "carrier": "Corvo",
        "tracking_number": "C004182",
        "estimated_delivery": "2026-03-05",
        "items": held,
    }
    back = {"return_id": _RETURN, "item_id": _LAMP, "quantity": 1, "reason": "too_bright"}
    reservation = {name: made(f"reservation:{seller}") for name, seller in (("anna", _ANNA), ("boris", _BORIS))}
    return [
        ("2026-03-01T10:00:00Z", "order.created", created),
        ("2026-03-01T10:00:20Z", "stock.reserved", {**anna, "reservation_id": reservation["anna"]}),
        ("2026-03-01T10:01:00Z", "payment.failed", {"payment_id": f"{_CARD[:-1]}0", "reason": "card_declined"}),
        ("2026-03-01T10:02:00Z", "order.paid", {"payment_id": _CARD, "amount": "85.00", "currency": "EUR", "method": "card"}),
        (
            "2026-03-01T10:05:00Z",
            "stock.rejected",
            {**anna, "reservation_id": reservation["anna"], "reason": "out_of_stock", "items": [{"item_id": _BULBS, "quantity": 1}]},
        ),
        ("2026-03-01T11:00:00Z", "order.cancel_requested", {"reason": "changed_my_mind", **boris}),
        ("2026-03-01T11:00:05Z", "stock.released", {**boris, "reservation_id": reservation["boris"], "reason": "cancelled"}),
        ("2026-03-02T08:00:00Z", "shipment.updated", {**scan, "status": "in_transit", "location": "hub north"}),
        ("2026-03-04T15:30:00Z", "shipment.updated", {**scan, "status": "delivered"}),
        ("2026-03-09T09:00:00Z", "order.returned", {**back, "status": "processed", "processed_at": "2026-03-09T08:45:00Z"}),
        ("2026-03-10T12:00:00Z", "refund.completed", {"refund_id": made("refund:0")}),
        ("2026-03-10T12:05:00Z", "refund.failed", {"refund_id": made("refund:1"), "reason": "account_closed"}),
    ]


def _examples() -> tuple[dict[str, Json], dict[str, Json]]:
    """Type -> data of the first event of that type: of those sent, and of those that the fold makes of them."""
    sent: dict[str, Json] = {}
    published: dict[str, Json] = {}
    order = Order()
    due = Due(0, DUE_STOCK, bytes.fromhex(_ANNA.replace("-", "")), 1, False)
    published["deadline.passed"] = json.loads(effects.deadline_passed(due, bytes.fromhex(_ORDER.replace("-", "")))[0])
    for n, (time, type_, fields) in enumerate(_story()):
        data = {"order_id": _ORDER, **fields}
        if type_ == topics.CREATED:
            sent[topics.CHECKOUT] = {"checkout_id": _CHECKOUT, **fields}
        sent.setdefault(type_, data)
        attributes = {"specversion": "1.0", "id": f"event-{n}", "source": "/example", "type": type_, "time": time}
        headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
        waiting = deque([events.decode(type_, headers, json.dumps(data).encode())])
        while waiting:
            waiting.extend(_publish(order, waiting.popleft(), published))
    return sent, published


def _bulk_examples(sent: dict[str, Json]) -> dict[str, Json]:
    """Topic -> data: of each kind a part with one event, and the end of the job."""
    job = {"job_id": _JOB, "part": 1, "parts": 1}
    parts = {
        topic: {**job, "events": [{**sent[EVENT[kind]], "id": event_id(_JOB, 1), "time": "2026-03-01T10:00:00Z"}]}
        for kind, topic in TOPIC.items()
    }
    value, _ = completed(_JOB, "orders", 1, 1, "2026-03-01T10:00:00Z")
    return {**parts, topics.BULK_COMPLETED: json.loads(value)}


def _publish(order: Order, event: Event, published: dict[str, Json]) -> Iterator[Event]:
    """Fold one event, note what leaves, and give the decisions that come back."""
    for effect in fold(order, event, Origin(event.type, 0, 0)).effects:
        if isinstance(effect, Derived):
            value, headers = effects.encode(effect, event.order_id, effects.headers_of(event))
            published.setdefault(effect.type, json.loads(value))
            if effect.topic == topics.DECISIONS:
                yield events.decode(effect.topic, headers, value)
