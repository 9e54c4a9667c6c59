"""The reference as a Markdown page: docs/events.md."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from contracts import outgoing, topics
from contracts.errors import REASONS
from contracts.incoming import INPUT
from contracts.strict_json import DEEPEST
from domain import limits
from operations.dead_letters import REDRIVE_COUNT, REDRIVE_OF
from reference.events import DLQ_HEADERS, reference

Json = dict[str, Any]

_WIDTH: Final = 100

_ATTRIBUTES_IN: Final = (
    ("specversion", "yes", "1.0"),
    ("id", "yes", "names the event; derived events carry it on as their causeid"),
    ("source", "yes", "whatever the sender calls itself"),
    ("type", "yes", "the topic's name"),
    ("time", "yes", "when it happened: RFC 3339 with offset, cut to microseconds"),
    ("dataschema", "no", "ends in /v1; missing means the same"),
    (
        "traceparent",
        "no",
        (
            "W3C trace context, carried on if it is valid, else dropped; without it the header `traceparent`"
            " of the record"
        ),
    ),
)
_ATTRIBUTES_OUT: Final = (
    ("specversion", "yes", "1.0"),
    (
        "id",
        "yes",
        "uuid5 in the namespace of the order's UUID, as said at each event: a repetition has the same",
    ),
    ("source", "yes", outgoing.SOURCE.decode()),
    ("type", "yes", "the topic's name"),
    ("time", "yes", "the time of the event that caused it"),
    ("dataschema", "yes", "ends in /v1"),
    ("causeid", "yes", "the id of the event that caused it"),
    ("traceparent", "no", "that of the cause"),
    (
        "history",
        "no",
        (
            '"true" on a notice (suborder.created, suborder.updated, order.status_changed) of what another'
            " system did before an order's live_from: a reader that writes to customers leaves it out"
        ),
    ),
)
_REDRIVE_HEADERS: Final = (
    (REDRIVE_OF, "PARTITION:OFFSET of the dead letter in orders.dlq that it was made of"),
    (REDRIVE_COUNT, "how often it has been redriven: 1, 2, ..."),
)


def markdown() -> str:
    """The reference as the Markdown page docs/events.md. Never blocks."""
    events = reference()
    components: dict[str, Json] = events["components"]
    parts = (
        _opening(),
        _records(),
        _attributes(),
        _events_in(events["in"], components),
        _events_out(events["out"], components),
        _bulk(events["bulk"], components),
        _internal(events["internal"], components),
        _refused(),
        _reasons(),
    )
    return "\n".join(line for part in parts for line in part).rstrip() + "\n"


# -- the page's parts: each ends in an empty line ------------------------------------------------------------


def _opening() -> Iterator[str]:
    yield from _heading("# Events")
    yield from _prose(
        """
        Every event that the pipeline reads and writes. This page is the output of `orders events`, which
        makes it from the code; `make docs` writes it again, and a test compares the two. `orders events
        --json` gives the same with JSON Schemas.
        """
    )
    yield "| in | out |"
    yield "|---|---|"
    yield f"| {_links((*topics.INPUT, *topics.BULK))} | {_links((*topics.DERIVED, topics.BULK_COMPLETED))} |"
    yield ""
    ledgers = (topics.REDRIVEN, topics.RESOLVED, topics.PARTITIONS, topics.CONTROL, topics.OPERATIONS)
    internal = _links((topics.DECISIONS, topics.REKEYED, *ledgers))
    yield from _prose(f"Internal: {internal}. Refused records: [{topics.DLQ}](#{_anchor(topics.DLQ)}).")


def _records() -> Iterator[str]:
    yield from _heading("## Records")
    yield from _prose(
        f"""
        A topic has the name of the type of its events. A record is a CloudEvents 1.0 event, in either Kafka
        binding: binary (attributes as headers `ce_...`, the value is the data) or structured (the value is
        the whole event). It is structured by its content-type `application/cloudevents+json`, or when there
        is no header `ce_specversion` and the value is a JSON object with a text member `specversion`; then
        headers that begin with `ce_` are ignored. What we write is binary. The record key is the order's id
        in canonical text form, in and out; an event under another key is re-keyed by the order_id in its
        data.

        - **Ids** are UUIDs, read with or without dashes and in any case, written in canonical text form.
        - **Times** are RFC 3339 with offset, cut to microseconds; a leap second (`:60`) is the last
          microsecond of its minute.
        - **Money** is text in major units with at most the currency's minor digits (ISO 4217: JPY 0, EUR 2,
          BHD 3), at most 10^15 minor units.
        - **Text** has at most 1,000 characters (not bytes), in an attribute too. Unknown fields are
          ignored; `null` is no value of any field.
        - **Headers and attributes** that aren't named here are never looked at: their names and values may
          be any bytes. One that is null is absent. Of several headers of one name the last that isn't null
          counts. Names are as written here: `CE_ID` is another header.
        - **JSON** is UTF-8 all through, without NaN, without halves of surrogate pairs, at most {DEEPEST}
          arrays and objects in each other, the envelope's among them. Of a member that stands twice the
          last counts, but each must be well formed: of its JSON type, an id, one of the words, within its
          length and range.
        - **Of several faults** the first of these is told: no value, no JSON, a member of the envelope of
          the wrong JSON type, the attributes in the order specversion, id, source, type, dataschema, time,
          then the data: its fields in the order in which they stand, missing ones, and what only the whole
          tells (currency, amounts, an item twice, the total).
        """
    )


def _attributes() -> Iterator[str]:
    yield from _prose("Attributes of an event in:")
    yield from _table(
        ("attribute", "required", "what"),
        ((f"`{name}`", required, what) for name, required, what in _ATTRIBUTES_IN),
    )
    yield ""
    yield from _prose("Attributes of an event out:")
    yield from _table(
        ("attribute", "always", "what"),
        ((f"`{name}`", always, what) for name, always, what in _ATTRIBUTES_OUT),
    )
    yield ""


def _events_in(events: list[Json], components: dict[str, Json]) -> Iterator[str]:
    yield from _heading("## In")
    yield from _prose(
        """
        An event adds a fact to its order. A fact has a natural key: the same key with the same content
        again changes nothing (of repetitions the earliest time stays), with other content it is refused.
        Time, id, source and reason are not content.
        """
    )
    for event in events:
        yield from _heading(f"### {event['topic']}")
        yield from _prose(event["meaning"])
        yield from _prose(f"Sent by: {event['sender']}. Natural key: {event['natural_key']}.")
        yield from _data(event, components)


def _events_out(events: list[Json], components: dict[str, Json]) -> Iterator[str]:
    yield from _heading("## Out")
    yield from _prose(
        """
        Ids that we make are uuid5 of a name in the namespace of the order's UUID, and so is the event's own
        id: whoever receives a command twice can tell. SELLER, SHIPMENT and RETURN stand for UUIDs in
        canonical text form, N for 0, 1, ... by decision, VERSION for the data's version.
        """
    )
    for event in events:
        yield from _heading(f"### {event['topic']}")
        yield from _prose(event["meaning"])
        yield from _prose(f"When: {event['when']} {event['same_in_any_order']}")
        id_rule = (
            "" if event["id"] is None else f"`{event['id']['field']}`: uuid5 of `{event['id']['name']}`. "
        )
        yield from _prose(f"{id_rule}Event id: uuid5 of `{event['ce_id']}`.")
        yield from _data(event, components)


def _bulk(events: list[Json], components: dict[str, Json]) -> Iterator[str]:
    yield from _heading("## Bulk")
    yield from _prose(
        """
        Many events at once, of one job ([bulk.md](bulk.md)). Key: the job's id in canonical text form. Each
        event in a part has an id and a time of its own and becomes a record of its type, as if it had been
        sent by itself; unpacked twice it changes nothing. `bulk.completed` follows when every part from 1
        to `parts` has been unpacked; its id is uuid5 of `bulk.completed` in the namespace of the job's
        UUID.
        """
    )
    for event in events:
        yield from _heading(f"### {event['topic']}")
        yield from _prose(event["meaning"])
        yield from _data(event, components)


def _internal(events: list[Json], components: dict[str, Json]) -> Iterator[str]:
    yield from _heading("## Internal")
    yield from _heading(f"### {topics.DECISIONS}")
    yield from _prose(
        """
        What would depend on which of two came first is decided once. Written by the pipeline alone, each
        comes back to it as a fact; the first record with each natural key counts.
        """
    )
    for event in events:
        yield from _prose(f"`{event['type']}`: {event['meaning']} Natural key: {event['natural_key']}.")
        yield from _data(event, components)
    yield from _heading(f"### {topics.REKEYED}")
    yield from _prose(
        """
        Events that came under another key than their order's, as they came, on their way to their order's
        partition. The headers `rekeyed_topic`, `rekeyed_partition`, `rekeyed_offset` and `rekeyed_key`
        (absent if there was none) say where they came from.
        """
    )
    yield from _heading(f"### {topics.REDRIVEN}")
    yield from _prose(
        """
        What `orders dlq redrive` has sent back: compacted, kept for ever. Key `PARTITION:OFFSET` of a dead
        letter, value JSON: `at`, `by`, `count`, `reason`, `origin` and `to` ([topic, partition, offset] of
        the refused record and of the one that was sent). If another value was sent (`--edit`), `before` and
        `after` hold both in base64.
        """
    )
    yield from _heading(f"### {topics.RESOLVED}")
    yield from _prose(
        """
        Dead letters that need nothing more (`orders dlq resolve`): compacted, all in partition 0. Key
        `PARTITION:OFFSET` of a dead letter, value JSON: `at`, `by`, `why` and `origin`; none: taken back.
        """
    )
    yield from _heading(f"### {topics.PARTITIONS}")
    yield from _prose(
        """
        Written by `orders partitions --to N`: compacted, kept for ever, one key (`partitions`, in partition
        0). Value JSON: `partitions`, the number by which an order's lane is found, and `former`, those of
        before: an order's older records are in partition hash mod each. Empty where there were never more.
        """
    )
    yield from _heading(f"### {topics.CONTROL}")
    yield from _prose(
        """
        What is paused ([operations.md](operations.md#pause-and-resume)): compacted, all in partition 0. Key
        `KIND:NAME`: lane and its number, topic and its name, type and its name. Value JSON: `since`, `by`,
        `why`; none: it goes on. Key `log-level:WORKER` (`*`: all): what they log from
        (`orders log-level`), value JSON: `since`, `by`, `level`, `why`.
        """
    )
    yield from _heading(f"### {topics.OPERATIONS}")
    yield from _prose(
        """
        Written by every command that writes ([operations.md](operations.md)): kept for ever, all in partition
        0. Key: the operation's id. Value JSON: `id`, `began`, `by` (user@host, or a key's name), `command`,
        `arguments` (without secrets) and `why`; a second record under the same id, when it has ended, has
        `ended`, `outcome` (done, failed, interrupted) and `detail` beside.
        """
    )


def _refused() -> Iterator[str]:
    yield from _heading("## Refused records")
    yield from _heading(f"### {topics.DLQ}")
    yield from _prose(
        f"""
        A refused record with its key, value and headers as they came, and these headers beside them. A fact
        that waited for its order and is refused once the order is known is there in normalised form
        (`dlq_detail` says so); its record is found at the coordinates. So is that of a record above
        {limits.LIMITS.record >> 20} MiB uncompressed: its dead letter holds no value.
        """
    )
    yield from _table(("header", "what"), ((f"`{name}`", what) for name, what in DLQ_HEADERS))
    yield ""
    yield from _prose(
        """
        A record that `orders dlq redrive` sends back is as it came, with these headers beside. It keeps
        them if it is refused again:
        """
    )
    yield from _table(("header", "what"), ((f"`{name}`", what) for name, what in _REDRIVE_HEADERS))
    yield ""


def _reasons() -> Iterator[str]:
    yield from _prose("Reason codes are stable ([dlq.md](dlq.md) says what to do about each):")
    yield from _table(("dlq_reason", "why"), ((f"`{code}`", why) for code, why in REASONS.items()))
    yield ""
    bytes_of = {spec.type: limits.TYPE_BYTES[spec.type] for spec in INPUT if spec.type in limits.TYPE_BYTES}
    usual = max(bytes_of.values(), key=list(bytes_of.values()).count)
    others = ", ".join(
        f"{size >> 10:,} KiB of `{type_}`" for type_, size in bytes_of.items() if size != usual
    )
    texts = ", ".join(f"`{name}`" for name in limits.TEXTS)
    yield from _prose(
        f"""
        One order takes in at most {usual >> 10:,} KiB of facts of each type, but {others}. 2 MiB are more
        than 10,000 scans of the usual size. A fact counts {limits.FACT_BYTES} bytes, its texts ({texts}) in
        UTF-8, and {limits.ITEM_BYTES} bytes for each entry of its `items`. What goes beyond is refused with
        `order_too_large`, in the order of that type's log, and keeps no natural key.
        """
    )
    yield ""
    yield from _prose(
        f"""
        All of this is where Kafka takes batches of {limits.MESSAGE_BYTES >> 20} MiB. With a smaller
        `ORDERS_MESSAGE_BYTES` an order takes in as much less of each type, and `order.created` has a limit,
        too: {limits.CREATED_ITEM_BYTES:,} bytes for each line, {limits.CREATED_UNIT_BYTES} for each unit and
        {limits.CREATED_TEXT} times its texts may come to a third of it. Below
        {limits.WRITTEN_BYTES >> 20} MiB a dead letter holds less, too: seven eighths of it.
        """
    )


# -- lines ---------------------------------------------------------------------------------------------------


def _heading(text: str) -> Iterator[str]:
    yield text
    yield ""


def _prose(text: str) -> Iterator[str]:
    """Paragraphs and lists, filled to the width of the page, and an empty line after each."""
    for paragraph in inspect.cleandoc(text).split("\n\n"):
        for entry in re.split(r"\n(?=- )", paragraph):
            yield from textwrap.wrap(
                " ".join(entry.split()),
                _WIDTH,
                subsequent_indent="  " if entry.startswith("- ") else "",
                break_long_words=False,
                break_on_hyphens=False,
            )
        yield ""


def _data(event: Json, components: dict[str, Json]) -> Iterator[str]:
    yield from _fields(event["data"], components)
    yield ""
    yield "```json"
    yield json.dumps(event["example"], indent=2)
    yield "```"
    yield ""


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
            yield from _prose(f"`{name}`: {components[name].get('description', '')}")
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
        return (
            f"list of {_type(field, inner)}"
            if inner
            else f"[{', '.join(_type(field, each) for each in schema['prefixItems'])}]"
        )
    if kind == "string":
        if schema.get("format") == "uuid" or field.endswith("_id"):
            return "uuid"
        if field == "price" or field.endswith("amount"):
            return "money"
        return {"currency": "currency", "processed_at": "time", "estimated_delivery": "time or day"}.get(
            field, "text"
        )
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
