"""CloudEvents' HTTP binding: what a request holds, as the records that Kafka's binding makes of it. Pure.

What an event says is judged by domain.events.decode alone, as in the lanes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote_to_bytes
from uuid import UUID

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from contracts import errors
from contracts.cloudevents import Headers, data_of, read_attributes
from contracts.errors import Refused
from contracts.strict_json import parse_json, read_foreign
from contracts.topics import CHECKOUT, INPUT
from domain.events import decode, order_key
from domain.shapes import Event

MOST_EVENTS: Final = 1000
"""Events of a batch."""
MEDIA_TYPES: Final = (
    "application/json",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
)
"""Content types of a request: of an event in binary mode, of one in structured mode, of a batch."""

Mode = Literal["binary", "structured"]

_KAFKA: Final[Headers] = [("content-type", b"application/cloudevents+json")]
_JSON: Final = re.compile(r"application/(?!cloudevents)(?:[a-z0-9!#$&^_.+-]+\+)?json")
_CHARSET: Final = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^";\s]*)', re.IGNORECASE)
_NAME: Final = re.compile(r"[a-z0-9]+")
_PATH: Final = re.compile(r" - at `(\$[^`]*)`$|^(\$[^:\s]*|[a-z][a-z0-9_-]*): ")
_QUOTED: Final = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)


class UnsupportedMedia(Exception):
    """The body is in a form that isn't read here."""


class TooMany(Exception):
    """The batch has more than MOST_EVENTS events."""


class Record(NamedTuple):
    """What is written to Kafka for an event, as the official SDKs write it in binary mode. `id`: the
    event's.
    """

    id: str
    topic: str
    key: bytes
    value: bytes
    headers: Headers


class _Typed(Struct, gc=False):
    type: str | UnsetType | None = UNSET


class _Checkout(Struct, gc=False):
    checkout_id: UUID


_typed: Final = msgspec.json.Decoder(_Typed).decode
_checkout: Final = msgspec.json.Decoder(_Checkout).decode
_members: Final = msgspec.json.Decoder(dict[str, Raw]).decode
_elements: Final = msgspec.json.Decoder(list[Raw]).decode
_value: Final = msgspec.json.Decoder().decode


def split(headers: Sequence[tuple[bytes, bytes]], body: bytes) -> tuple[Mode, list[bytes]]:
    """The mode of a request and its events, each as its own JSON value: in binary mode its data.

    `headers`: those of the request, names in lower case. Raises UnsupportedMedia, TooMany; Refused if a batch
    isn't an array.
    """
    if any(name == b"content-encoding" and value.lower() != b"identity" for name, value in headers):
        raise UnsupportedMedia("content-encoding: none is read")
    given = [value.decode("latin-1") for name, value in headers if name == b"content-type"]
    if len(given) != 1:
        raise UnsupportedMedia(f"content-type: {'given more than once' if given else 'missing'}")
    media = given[0].partition(";")[0].strip().lower()
    charset = _CHARSET.search(given[0])
    if charset is not None and charset[1].lower() not in ("utf-8", "us-ascii"):
        raise UnsupportedMedia("content-type: JSON is UTF-8")
    if media == "application/cloudevents+json":
        return "structured", [body]
    if media == "application/cloudevents-batch+json":
        return "structured", _batch(body)
    if not _JSON.fullmatch(media):
        raise UnsupportedMedia(f"content-type: one of {', '.join(MEDIA_TYPES)}")
    return "binary", [body]


def _batch(body: bytes) -> list[bytes]:
    elements = parse_json(_elements, body, errors.NOT_CLOUDEVENT)
    if len(elements) > MOST_EVENTS:
        raise TooMany(f"more than {MOST_EVENTS:,} events")
    return [bytes(each) for each in elements]


def record(mode: Mode, headers: Sequence[tuple[bytes, bytes]], value: bytes, now: int = 0) -> Record:
    """An event as a record, once the lanes' decoder has taken it as one that Kafka took `now`, milliseconds
    since 1970 (0: when isn't known). Raises Refused. Pure.
    """
    return _binary(headers, value, now) if mode == "binary" else _structured(value, now)


def path_of(refusal: Refused) -> str:
    """The path of what is wrong: of a member (`$.items[0].price`) or an attribute (`ce_id`), as the detail of
    a dead letter has it.
    """
    match = _PATH.search(refusal.detail)
    return "$" if match is None else match[1] or match[2]


def _binary(headers: Sequence[tuple[bytes, bytes]], value: bytes, now: int) -> Record:
    attributes: dict[str, bytes] = {}
    content_type = b""
    for raw, text in headers:
        if raw == b"content-type":
            content_type = text
        if not raw.startswith(b"ce-"):
            continue
        name = "ce_" + raw[3:].decode("latin-1")
        if name in attributes:
            raise Refused(errors.NOT_CLOUDEVENT, f"{_told(name)}: given more than once")
        attributes[name] = _unescaped(text)
    if "ce_specversion" not in attributes:
        # To Kafka's binding the value might be an event in structured mode.
        raise Refused(errors.NOT_CLOUDEVENT, "ce_specversion: must be 1.0")
    written = [*attributes.items(), ("content-type", content_type)]
    type_ = attributes.get("ce_type", b"").decode("utf-8", "replace")
    event = _decoded(type_, written, value, now)
    for name, text in attributes.items():
        if not _NAME.fullmatch(name[3:]) or name in ("ce_data", "ce_datacontenttype"):
            raise Refused(errors.NOT_CLOUDEVENT, f"{_told(name)}: no attribute has this name")
        try:
            text.decode()
        except UnicodeDecodeError:
            raise Refused(errors.NOT_CLOUDEVENT, f"{name}: not UTF-8") from None
    return _record(event, value, written)


def _unescaped(text: bytes) -> bytes:
    """The value of a header without quotes, and percent-decoded once (HTTP binding, 3.1.3.2)."""
    quoted = _QUOTED.fullmatch(text)
    if quoted is not None:
        text = re.sub(rb"\\(.)", rb"\1", quoted[1], flags=re.DOTALL)
    return unquote_to_bytes(text)


def _structured(value: bytes, now: int) -> Record:
    typed = read_foreign(_typed, value)
    type_ = typed.type if typed is not None and isinstance(typed.type, str) else ""
    event = _decoded(type_, _KAFKA, value, now)
    envelope = read_attributes(_KAFKA, value)[1]
    assert envelope is not None
    headers: Headers = []
    content_type = b"application/json"
    for name, raw in parse_json(_members, value, errors.NOT_CLOUDEVENT).items():
        if name in ("data", "data_base64"):
            continue
        text = _attribute(name, bytes(raw))
        if text is None:
            continue
        if name == "datacontenttype":
            if not _JSON.fullmatch(text.partition(";")[0].strip().lower()):
                raise Refused(errors.NOT_CLOUDEVENT, "$.datacontenttype: the data must be JSON")
            content_type = text.encode()
        else:
            headers.append((f"ce_{name}", text.encode()))
    headers.append(("content-type", content_type))
    return _record(event, bytes(data_of(envelope)), headers)


def _attribute(name: str, raw: bytes) -> str | None:
    """An attribute of JSON as text; None: it is null, and so not there."""
    if not _NAME.fullmatch(name):
        raise Refused(errors.NOT_CLOUDEVENT, f"$.{_told(name)}: no attribute has this name")
    value: Any = parse_json(_value, raw, errors.NOT_CLOUDEVENT)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and -(2**31) <= value < 2**31:  # CloudEvents' integers
        return str(value)
    raise Refused(errors.NOT_CLOUDEVENT, f"$.{_told(name)}: an attribute is text, an integer or a boolean")


def _told(name: str) -> str:
    """A name of a stranger's choice, to be repeated in an answer."""
    return name[:64].encode("ascii", "backslashreplace").decode()


def _decoded(type_: str, headers: Headers, value: bytes, now: int) -> Event:
    """An event in Kafka's binding as the lanes read it. Raises Refused."""
    try:
        # On no topic every type is refused, after what is looked at before it.
        return decode(type_ if type_ in INPUT else "", headers, value, now)
    except Refused as refusal:
        if refusal.code != errors.TYPE_WRONG_TOPIC:
            raise
        raise Refused(errors.TYPE_UNKNOWN, "ce_type: no event that other services send") from None


def _record(event: Event, data: bytes, headers: Headers) -> Record:
    key = str(_checkout(data).checkout_id).encode() if event.type == CHECKOUT else order_key(event)
    return Record(event.id, event.type, key, data, headers)
