"""The contracts for machines: a JSON Schema of every event and one AsyncAPI 3 document, made from the
models and kept in contracts/.

What is published there is a promise: `write` refuses a schema that breaks the one of the same
version that lies there already.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any, Final, Literal

from contracts import incoming, outgoing, topics
from contracts.bulk import BulkCompleted, BulkCompletedV2
from domain import events
from errors import OrdersError
from reference.events import reference, schemas_of

Json = dict[str, Any]
Way = Literal["in", "out"]
"""Who is hurt by a change: of what we read those who write it, of what we write those who read it."""

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
LARGER_IS_WIDER: Final = ("maxLength", "maximum", "maxItems")
SMALLER_IS_WIDER: Final = ("minLength", "minimum", "minItems")


OUT: Final = (*topics.DERIVED, topics.BULK_COMPLETED)
"""What we write for others to read."""


class Breaking(OrdersError):
    """A schema no longer keeps what its version promised. The message says which fields."""


def version_of(type_: str) -> int:
    """Version of an event type's data as it is written or, at most, read now."""
    if type_ == topics.BULK_COMPLETED:
        return 2
    return outgoing.VERSION if type_ in OUT else max(number for name, number in events.READS if name == type_)


def way_of(type_: str) -> Way:
    """Return whether we read or write an event."""
    return "out" if type_ in OUT else "in"


def schemas() -> dict[str, Json]:
    """File name -> JSON Schema (2020-12, self-contained) of the data of every public event, each
    version that is read or written.
    """
    documents: dict[str, Json] = {}
    read = {
        (name, number): data for (name, number), (data, _) in events.READS.items() if name in topics.INPUT
    }
    read |= {(name, 1): incoming.DATA[name] for name in topics.BULK}
    written: dict[tuple[str, int], Any] = {
        (name, outgoing.VERSION): outgoing.DATA[name] for name in topics.DERIVED
    }
    written[topics.BULK_COMPLETED, 1] = BulkCompleted
    written[topics.BULK_COMPLETED, 2] = BulkCompletedV2
    for (name, number), data in {**read, **written}.items():
        (_,), components = schemas_of([data], "#/$defs/{name}")
        own = components.pop(data.__name__)
        head = {"$schema": DIALECT, "$id": f"urn:orders:{name}/v{number}", **own}
        documents[f"{name}.v{number}.json"] = head | ({"$defs": components} if components else {})
    return documents


def asyncapi() -> Json:
    """The AsyncAPI 3.0 document: a channel for every topic, what we receive and what we send,
    CloudEvents as message headers.
    """
    events = reference()
    everything = {event["topic"]: event for event in (*events["in"], *events["out"], *events["bulk"])}
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Order pipeline",
            "version": installed("orders-stream"),
            "description": (
                "Events of an order's life, in and out. Records are CloudEvents 1.0, read in either Kafka"
                " binding, written in binary. Delivery is at least once: a repetition has the same ce_id."
            ),
            "license": {"name": "Apache-2.0"},
        },
        "defaultContentType": "application/json",
        "channels": {
            topic: {
                "address": topic,
                "description": event["meaning"],
                "messages": {topic: {"$ref": f"#/components/messages/{topic}"}},
            }
            for topic, event in everything.items()
        },
        "operations": {
            f"{'send' if topic in OUT else 'receive'}.{topic}": {
                "action": "send" if topic in OUT else "receive",
                "channel": {"$ref": f"#/channels/{topic}"},
                "messages": [{"$ref": f"#/channels/{topic}/messages/{topic}"}],
                "summary": _summary(topic),
            }
            for topic in everything
        },
        "components": {
            "messages": {
                topic: {
                    "name": topic,
                    "contentType": "application/json",
                    "headers": {
                        "$ref": f"#/components/schemas/{'CloudEventOut' if topic in OUT else 'CloudEventIn'}"
                    },
                    "payload": {
                        "schemaFormat": "application/schema+json;version=draft-2020-12",
                        "schema": _absolute(event["data"]),
                    },
                    "bindings": {
                        "kafka": {"key": {"type": "string", "format": "uuid", "description": event["key"]}}
                    },
                    "examples": [{"payload": event["example"]}],
                }
                for topic, event in everything.items()
            },
            "schemas": {
                **{name: _absolute(schema) for name, schema in events["components"].items()},
                "CloudEventIn": _attributes(("dataschema", "traceparent")),
                "CloudEventOut": _attributes(("traceparent", "history"), ("causeid", "dataschema")),
            },
        },
    }


def _summary(topic: str) -> str:
    if topic in topics.BULK:
        return "Sent by: orders bulk submit, or any service that has many events at once."
    if topic == topics.BULK_COMPLETED:
        return "Every part of a job has been unpacked."
    spec = incoming.EVENTS.get(topic)
    return outgoing.SPECS[topic].when if spec is None else f"Sent by: {spec.sender}."


def breaking(old: Json, new: Json, way: Way) -> list[str]:
    """What of `old` (a schema of `schemas()`) no longer holds in `new`, a line each; empty: everybody who
    kept to `old` is served. Pure.

    In: a writer's event must still be taken.
    Out: a reader must still find what it found, and nothing that it never heard of in an enum.
    """
    return list(_compare(old, new, "$", way, old.get("$defs", {}), new.get("$defs", {})))


def write(folder: Path) -> list[Path]:
    """Write asyncapi.json and schemas/ into `folder`; returns the files that changed.

    Raises Breaking before anything is written, also for a file there that is no schema, and OSError.
    """
    files = {folder / "schemas" / name: schema for name, schema in schemas().items()}
    for path, schema in files.items():
        if path.exists():
            type_ = path.name.rsplit(".v", 1)[0]
            try:
                old = json.loads(path.read_text())
            except ValueError as error:
                raise Breaking(
                    f"{path}: not JSON ({error})", "restore it, or delete it if it was never published"
                ) from None
            broken = breaking(old, schema, way_of(type_))
            if broken:
                raise Breaking(
                    f"{path.name}, which is published: {'; '.join(broken)}",
                    "raise the version and keep the old one beside it",
                )
    changed: list[Path] = []
    for path, document in {**files, folder / "asyncapi.json": asyncapi()}.items():
        text = json.dumps(document, indent=2) + "\n"
        if not path.exists() or path.read_bytes() != text.encode():
            path.parent.mkdir(parents=True, exist_ok=True)
            # What was published is there until the new one is complete.
            fresh = path.with_name(f".{path.name}.new")
            try:
                fresh.write_text(text)
                fresh.replace(path)
            finally:
                fresh.unlink(missing_ok=True)
            changed.append(path)
    return changed


def _compare(old: Json, new: Json, path: str, way: Way, old_defs: Json, new_defs: Json) -> Iterator[str]:
    old, new = _resolved(old, old_defs), _resolved(new, new_defs)
    if old.get("type") != new.get("type") or ("enum" in old) != ("enum" in new):
        yield f"{path} is of another type"
        return
    if "enum" in old:
        lost, more = set(old["enum"]) - set(new["enum"]), set(new["enum"]) - set(old["enum"])
        if lost:
            yield f"{path} has lost {', '.join(sorted(lost))}"
        if more and way == "out":
            yield f"{path} has got {', '.join(sorted(more))}, which no reader knows"
    yield from _compare_bounds(old, new, path, way)
    if (
        old.get("type") == "array"
        and isinstance(old.get("items"), dict)
        and isinstance(new.get("items"), dict)
    ):
        yield from _compare(old["items"], new["items"], f"{path}[]", way, old_defs, new_defs)
    fields, others = old.get("properties", {}), new.get("properties", {})
    for name in fields:
        if name not in others:
            yield f"{path}.{name} is gone"
        else:
            yield from _compare(fields[name], others[name], f"{path}.{name}", way, old_defs, new_defs)
    needed, given = set(old.get("required", ())), set(new.get("required", ()))
    for name in sorted(needed - given if way == "out" else given - needed):
        if name in others:
            yield (
                f"{path}.{name} is no longer always there"
                if way == "out"
                else f"{path}.{name} is required now"
            )


def _compare_bounds(old: Json, new: Json, path: str, way: Way) -> Iterator[str]:
    """A reader's field may not become wider, a writer's not narrower."""
    for name, sign in (*((name, 1) for name in LARGER_IS_WIDER), *((name, -1) for name in SMALLER_IS_WIDER)):
        before, after = (sign * schema[name] if name in schema else float("inf") for schema in (old, new))
        if (after < before) if way == "in" else (after > before):
            yield f"{path}: {name} was {old.get(name, 'open')}, is {new.get(name, 'open')}"
    if old.get("format") != new.get("format") and ("format" in new if way == "in" else "format" in old):
        yield f"{path}: format was {old.get('format', 'open')}, is {new.get('format', 'open')}"


def _resolved(schema: Json, defs: Json) -> Json:
    ref = schema.get("$ref")
    return defs[ref.rpartition("/")[2]] if ref else schema


def _absolute(schema: Any) -> Any:
    """References as AsyncAPI has them."""
    if isinstance(schema, dict):
        return {
            key: value.replace("#/components/", "#/components/schemas/")
            if key == "$ref"
            else _absolute(value)
            for key, value in schema.items()
        }
    return [_absolute(each) for each in schema] if isinstance(schema, list) else schema


def _attributes(optional: tuple[str, ...], required: tuple[str, ...] = ()) -> Json:
    always = ("specversion", "id", "source", "type", "time", *required)
    return {
        "type": "object",
        "properties": {f"ce_{name}": {"type": "string"} for name in (*always, *optional)},
        "required": [f"ce_{name}" for name in always],
    }
