"""The schema of an event's data as rows of a table, with the place that a reason is about. All pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final, NamedTuple

from contracts.incoming import DATA
from operations.dead_letters import DeadLetter
from reference.events import meaning, schemas_of
from streams.control import Pause, topic_of

_LIMITS: Final = ("format", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "pattern")


class Field(NamedTuple):
    """A member of an event's data: where (`items[].price`), its type, its bounds, what the schema says of it.
    `marked`: a reason is about it.
    """

    path: str
    type: str
    required: bool
    limits: str
    says: str
    marked: bool = False


class Schema(NamedTuple):
    """What the data of an event's type has to look like."""

    type: str
    meaning: str
    fields: list[Field]


def type_of(letter: DeadLetter) -> str | None:
    """The type of a letter's event: as it says it, else its topic's; None: it is of no type that is known."""
    said = next((value for name, value in reversed(letter.headers) if name == "ce_type"), None)
    if said is not None:
        name = said.decode("utf-8", "replace")
    else:
        try:
            document = json.loads(letter.value or b"")
        except (ValueError, RecursionError):
            document = None
        name = str(document.get("type", "")) if isinstance(document, dict) else ""
    return next((each for each in (name, letter.record.topic) if each in DATA), None)


def holding(pauses: Iterable[Pause], type_: str) -> list[Pause]:
    """Those of the pauses that hold events of this type back: its own, and those of its topic."""
    topic = topic_of("type", type_)
    return [each for each in pauses if topic_of(each.kind, each.name) == topic]


def schema_of(type_: str, path: str) -> Schema:
    """The schema of a type, and in it what a path of a reason ($.items[0].price) is about."""
    place = re.sub(r"\[[^\]]*\]", "[]", path.removeprefix("$").removeprefix("."))
    fields = _fields_of(type_)
    known = {each.path for each in fields}
    while place and place not in known:
        # Of an element the list it is in, of a member that no schema has its parent.
        place = place.removesuffix("[]") if place.endswith("[]") else place.rpartition(".")[0]
    marked = [each._replace(marked=True) if each.path == place else each for each in fields]
    return Schema(type_, meaning(DATA[type_]), marked)


@lru_cache(maxsize=64)
def _fields_of(type_: str) -> tuple[Field, ...]:
    (own,), components = schemas_of([DATA[type_]], "{name}")
    return tuple(_rows(own, components, ""))


def _rows(schema: Any, components: dict[str, Any], before: str) -> list[Field]:
    whole = components[schema["$ref"]] if "$ref" in schema else schema
    rows = []
    for name, member in whole.get("properties", {}).items():
        path = f"{before}{name}"
        said = components[member["$ref"]] if "$ref" in member else member
        limits = ", ".join(f"{key} {said[key]}" for key in _LIMITS if key in said)
        choices = ", ".join(map(str, said.get("enum", ())))
        required = name in whole.get("required", ())
        rows.append(
            Field(
                path,
                _type(said),
                required,
                "; ".join(part for part in (limits, choices) if part),
                said.get("description", ""),
            )
        )
        if said.get("type") == "object":
            rows += _rows(said, components, f"{path}.")
        elif "items" in said:
            rows += _rows(said["items"], components, f"{path}[].")
    return rows


def _type(schema: dict[str, Any]) -> str:
    named = schema.get("type") or " | ".join(
        str(each.get("type", "object")) for each in schema.get("anyOf", ())
    )
    return named or ("string" if "enum" in schema else "any")
