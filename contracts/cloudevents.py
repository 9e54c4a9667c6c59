"""CloudEvents over Kafka in both bindings, read and written, and a record on its way to a topic."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import UNSET

from contracts import errors
from contracts.envelope import Envelope, Marked
from contracts.errors import Refused
from contracts.incoming import MOST_CHARACTERS
from contracts.strict_json import Payload, parse_json, refuse_no_json, refuse_other_bytes

Headers = list[tuple[str, bytes]]

_TRACEPARENT: Final = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)
_STRUCTURED: Final = b"application/cloudevents+json"
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode: Final = msgspec.json.Encoder().encode


class SourceEvent(NamedTuple):
    """A record to send. `time_us` is when the event happened, microseconds since 1970 (UTC); a key of
    None goes to partition 0.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    time_us: int


def binary(attributes: Mapping[str, str], data: Any) -> tuple[Headers, bytes]:
    """CloudEvents binary binding: attributes as ce_ headers, the data as the value."""
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    headers.append(("content-type", b"application/json"))
    return headers, _encode(data)


def structured(attributes: Mapping[str, str], data: Any) -> tuple[Headers, bytes]:
    """CloudEvents structured binding: the whole event as the value."""
    content_type = ("content-type", b"application/cloudevents+json; charset=utf-8")
    return [content_type], _encode({**attributes, "datacontenttype": "application/json", "data": data})


def rfc3339(time_us: int) -> str:
    """Microseconds since 1970 as text in UTC, e.g. 2026-01-02T03:04:05.000006Z."""
    return (_EPOCH + timedelta(microseconds=time_us)).isoformat().removesuffix("+00:00") + "Z"


def micros(time: datetime) -> int:
    """An aware time as microseconds since 1970."""
    since = time - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


# -- reading -------------------------------------------------------------------------------------------------


_envelope: Final = msgspec.json.Decoder(Envelope).decode
_marked: Final = msgspec.json.Decoder(Marked).decode
_text_of: Final = msgspec.json.Decoder(str).decode
_ATTRIBUTES: Final = ("specversion", "id", "source", "type", "time", "dataschema")


def read_attributes(
    headers: Sequence[tuple[str, bytes | None]], value: bytes
) -> tuple[dict[str, bytes | None], Envelope | None]:
    """Attributes by the names of their headers, and the whole event if it is in the structured binding.
    Raises Refused. Pure.
    """
    by_name = dict(headers)
    if len(by_name) != len(headers):
        by_name = _last_of_each(headers)
    envelope: Envelope | None = None
    content_type = by_name.get("content-type")
    if by_name.get("ce_specversion") != b"1.0" or (
        content_type is not None and content_type != b"application/json"
    ):
        envelope = _structured(by_name, value)
        if envelope is not None:
            by_name = _attributes(envelope, by_name.get("traceparent"))
        if by_name.get("ce_specversion") != b"1.0":
            raise Refused(errors.NOT_CLOUDEVENT, "ce_specversion: must be 1.0")
    return by_name, envelope


def text(raw: bytes | None, name: str) -> str:
    if not raw:
        raise Refused(errors.NOT_CLOUDEVENT, f"{name}: missing or empty")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Refused(errors.NOT_CLOUDEVENT, f"{name}: not UTF-8") from None
    if len(text) > MOST_CHARACTERS:
        raise Refused(errors.FIELD_MALFORMED, f"{name}: longer than 1,000 characters")
    return text


known_text: Final = lru_cache(maxsize=1024)(text)  # few senders, few types


@lru_cache(maxsize=1024)
def schema_version(schema: bytes) -> bytes:
    """The end of a dataschema, which tells the version: b"/v1"."""
    if schema:
        text(schema, "ce_dataschema")
    return schema[schema.rfind(b"/") :]


def _structured(by_name: Mapping[str, bytes | None], value: bytes) -> Envelope | None:
    """The whole event, if it is in the structured binding: by its content-type, or because no header but the
    value says a specversion.
    """
    media_type = (by_name.get("content-type") or b"").partition(b";")[0].strip().lower()
    if media_type != _STRUCTURED and not (by_name.get("ce_specversion") is None and _is_marked(value)):
        if media_type.startswith(b"application/cloudevents"):
            raise Refused(
                errors.NOT_CLOUDEVENT,
                "content-type: of CloudEvents formats only application/cloudevents+json is read",
            )
        return None
    try:
        envelope: Envelope = parse_json(_envelope, value, errors.NOT_CLOUDEVENT)
    except Refused as refusal:
        if refusal.detail.endswith("`$.time`"):
            raise Refused(errors.FIELD_MALFORMED, refusal.detail) from None
        raise
    return envelope


def _is_marked(value: bytes) -> bool:
    try:
        mark = _marked(value).specversion
    except (msgspec.DecodeError, RecursionError):
        return False
    return mark is not UNSET and bytes(mark).startswith(b'"')


def _attributes(envelope: Envelope, traceparent: bytes | None) -> dict[str, bytes | None]:
    """The attributes of a structured event as the binary binding has them.
    `traceparent`: a header, which is no attribute.
    """
    attributes: dict[str, bytes | None] = {"traceparent": traceparent}
    for name in _ATTRIBUTES:
        text = getattr(envelope, name)
        if text is not UNSET and text is not None:
            attributes[f"ce_{name}"] = text.encode()
    if envelope.traceparent is not UNSET:
        try:
            attributes["ce_traceparent"] = _text_of(envelope.traceparent).encode()
        except msgspec.ValidationError:
            pass  # a trace that isn't valid is dropped
    return attributes


def data_of(envelope: Envelope) -> Payload:
    """The data of a structured event as JSON."""
    encoded = None if envelope.data_base64 is UNSET else envelope.data_base64
    if envelope.data is not UNSET:
        if encoded is not None:  # which of the two counts, readers would not agree on
            raise Refused(errors.NOT_CLOUDEVENT, "data_base64: beside data")
        return envelope.data
    if encoded is None:
        raise Refused(errors.FIELD_MISSING, "$.data: missing")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(errors.NOT_CLOUDEVENT, "data_base64: not base64") from None
    refuse_other_bytes(data)
    refuse_no_json(data)
    return data


def trace_of(*candidates: bytes | None) -> str | None:
    """The event's trace, else that of the header that a tracer adds to any record; one that isn't valid
    by the W3C's form is none.
    """
    return next((raw.decode() for raw in candidates if raw is not None and _TRACEPARENT.fullmatch(raw)), None)


def _last_of_each(headers: Sequence[tuple[str, bytes | None]]) -> dict[str, bytes | None]:
    """Name -> value, where a name stands twice: the last that isn't null, as a
    header that is null is none.
    """
    return {name: raw for name, raw in headers if raw is not None}
