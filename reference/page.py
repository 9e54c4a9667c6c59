"""The reference as a Markdown page: docs/events.md."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from contracts import outgoing, topics
from contracts.errors import REASONS
from contracts.strict_json import DEEPEST
from domain import limits
from operations.dead_letters import REDRIVE_COUNT, REDRIVE_OF
from reference.events import DLQ_HEADERS, reference

Json = dict[str, Any]

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
    ("source", "yes", outgoing.SOURCE.decode()),
    ("type", "yes", "the topic's name"),
    ("time", "yes", "the time of the event that caused it"),
    ("dataschema", "yes", "ends in /v1"),
    ("causeid", "yes", "the id of the event that caused it"),
    ("traceparent", "no", "that of the cause"),
)
_REDRIVE_HEADERS: Final = (
    (REDRIVE_OF, "PARTITION:OFFSET of the dead letter in orders.dlq that it was made of"),
    (REDRIVE_COUNT, "how often it has been redriven: 1, 2, ..."),
)


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
        f"- **JSON** is UTF-8 all through, without NaN, without halves of surrogate pairs, at most {DEEPEST} arrays and objects in "
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
    yield from _table(("header", "what"), ((f"`{name}`", what) for name, what in DLQ_HEADERS))
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
        f"its texts ({', '.join(f'`{name}`' for name in limits.TEXTS)}) in UTF-8, "
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
