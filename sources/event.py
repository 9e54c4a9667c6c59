"""One record on its way to a topic, and the two ways in which CloudEvents travel over Kafka."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

Headers = list[tuple[str, bytes]]

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_encode: Final = msgspec.json.Encoder().encode


class SourceError(Exception):
    """The source cannot be read as it is. The message names the file, the line or column, and what to do."""


class SourceEvent(NamedTuple):
    """A record to send. `time_us` is when the event happened, microseconds since 1970 (UTC); a key of None goes to partition 0."""

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
