"""Records that are refused or passed on: where each first was, and the dead letter that is made of it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, NamedTuple, Protocol

from contracts.errors import ORIGIN_UNKNOWN, Refused
from contracts.topics import CHECKOUT, INPUT, REKEYED
from domain.limits import RECORD_BYTES, record_size
from domain.order import Origin
from wire import raw_bytes

Headers = list[tuple[str, bytes | None]]

REKEYED_FROM: Final = ("rekeyed_topic", "rekeyed_partition", "rekeyed_offset", "rekeyed_key")
"""Headers that a re-keyed record has beside its own."""
_REKEYED_TOPICS: Final = {topic.encode(): topic for topic in INPUT if topic != CHECKOUT}
_MOST_DIGITS: Final = 18


class Record(Protocol):
    """What is used of a consumed record (aiokafka.ConsumerRecord). `timestamp_type` 1: `timestamp` is the broker's append time, ms."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int
    timestamp_type: int


class Letter(NamedTuple):
    """A dead letter, as it is written to orders.dlq."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def dead_letter(record: Record, code: str, detail: str) -> Letter:
    """What is written to orders.dlq of a refused record: the record as it first was, and why. Pure but for the time of day."""
    origin, key, headers = origin_of(record), record.key, list(record.headers)
    if origin.topic != record.topic:
        key = dict(headers).get("rekeyed_key")
        headers = [header for header in headers if header[0] not in REKEYED_FROM]
    return letter_of(origin, key, raw_value(record), headers, code, detail)


def letter_of(
    origin: Origin, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]], code: str, detail: str
) -> Letter:
    """The same of a record that was at `origin`. What would be too large for orders.dlq is left out, its value first."""
    if record_size(key, value, headers) > RECORD_BYTES:
        value = None
        if record_size(key, None, headers) > RECORD_BYTES:
            key, headers = None, []
        detail += f"; above {RECORD_BYTES:,} bytes uncompressed: the raw record is at the coordinates"
    return Letter(key, value, [*headers, *letter_headers(origin, code, detail)])


def origin_of(record: Record) -> Origin:
    """Where the record first was: a re-keyed one tells by its headers. Its own place where these say nothing."""
    if record.topic == REKEYED:
        try:
            return rekeyed_from(record)
        except Refused:
            pass
    return Origin(record.topic, record.partition, record.offset)


def rekeyed_from(record: Record) -> Origin:
    """Where a record of orders.rekeyed first was. Raises Refused when its headers don't say so: then none of us wrote it."""
    came = dict(record.headers)
    topic, *places = (came.get(name) or b"" for name in REKEYED_FROM[:3])
    name = _REKEYED_TOPICS.get(topic)
    if name is None or not all(place.isdigit() and len(place) <= _MOST_DIGITS for place in places):
        raise Refused(ORIGIN_UNKNOWN, f"headers {', '.join(REKEYED_FROM[:3])}: missing or malformed")
    return Origin(name, int(places[0]), int(places[1]))


def raw_value(record: Record) -> bytes | None:
    """A record's value as it came; of one that can't be parsed its bytes, if they are to be had. Pure."""
    return raw_bytes(record) if record.value is None else record.value


def letter_headers(origin: Origin, code: str, detail: str) -> list[tuple[str, bytes]]:
    """What a dead letter says beside its record: where that was, why it was refused, and when."""
    return [
        ("dlq_topic", origin.topic.encode()),
        ("dlq_partition", b"%d" % origin.partition),
        ("dlq_offset", b"%d" % origin.offset),
        ("dlq_reason", code.encode()),
        ("dlq_detail", detail.encode("utf-8", "backslashreplace")),
        ("dlq_time", datetime.now(UTC).isoformat().encode()),
    ]
