"""Dead letters: how one is made from a refused record, and where the record was first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol

from contracts.errors import ORIGIN_UNKNOWN, Refused
from contracts.record_id import RecordId
from contracts.topics import CHECKOUT, INPUT, REKEYED
from domain.limits import record_size
from wire import raw_bytes

Headers = list[tuple[str, bytes | None]]

REKEYED_FROM: Final = ("rekeyed_topic", "rekeyed_partition", "rekeyed_offset", "rekeyed_key")
"""Headers that a re-keyed record has beside its own."""
_REKEYED_TOPICS: Final = {topic.encode(): topic for topic in INPUT if topic != CHECKOUT}
_MOST_DIGITS: Final = 18


class Record(Protocol):
    """The part of a consumed record (aiokafka.ConsumerRecord) that is used.

    `timestamp` is in ms; with `timestamp_type` 1 it is the broker's append time. A header's value is bytes or
    None.
    """

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, Any]]
    timestamp: int
    timestamp_type: int


class Letter(NamedTuple):
    """A dead letter, as it is written to orders.dlq."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, Any]]


def dead_letter(record: Record, code: str, detail: str, most: int) -> Letter:
    """Make the dead letter of a refused record: the record as it was first, and the reason. `most`: see
    letter_of.

    Pure but for the time of day.
    """
    record_id, key, headers = record_id_of(record), record.key, list(record.headers)
    if record_id.topic != record.topic:
        key = dict(headers).get("rekeyed_key")
        headers = [header for header in headers if header[0] not in REKEYED_FROM]
    return letter_of(record_id, key, raw_value(record), headers, code, detail, most)


def letter_of(
    record_id: RecordId,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, Any]],
    code: str,
    detail: str,
    most: int,
) -> Letter:
    """Make the dead letter of a record by its parts.

    `most`: bytes of a record that orders.dlq has room for (domain.limits.Limits.record). The value, and a key
    that is too large by itself, are left out of a larger one.
    """
    if record_size(key, value, headers) > most:
        value = None
        if record_size(key, None, headers) > most:
            key, headers = None, []
        detail += f"; above {most:,} bytes uncompressed: the raw record is at the coordinates"
    return Letter(key, value, [*headers, *letter_headers(record_id, code, detail)])


def record_id_of(record: Record) -> RecordId:
    """Return where the record was first.

    A re-keyed one says so in its headers; without them its own id counts.
    """
    if record.topic == REKEYED:
        try:
            return rekeyed_from(record)
        except Refused:
            pass
    return RecordId(record.topic, record.partition, record.offset)


def rekeyed_from(record: Record) -> RecordId:
    """Return where a record of orders.rekeyed was first.

    Raises Refused if its headers don't say so: no worker wrote it.
    """
    headers = dict(record.headers)
    topic, *numbers = (headers.get(name) or b"" for name in REKEYED_FROM[:3])
    name = _REKEYED_TOPICS.get(topic)
    if name is None or not all(number.isdigit() and len(number) <= _MOST_DIGITS for number in numbers):
        raise Refused(ORIGIN_UNKNOWN, f"headers {', '.join(REKEYED_FROM[:3])}: missing or malformed")
    return RecordId(name, int(numbers[0]), int(numbers[1]))


def raw_value(record: Record) -> bytes | None:
    """Return a record's value as it came, and the bytes of one that can't be
    parsed, if there are any. Pure.
    """
    return raw_bytes(record) if record.value is None else record.value


def letter_headers(record_id: RecordId, code: str, detail: str) -> list[tuple[str, bytes]]:
    """Return the headers that a dead letter has beside its record's: where that was, why it was refused, and
    when."""
    return [
        ("dlq_topic", record_id.topic.encode()),
        ("dlq_partition", b"%d" % record_id.partition),
        ("dlq_offset", b"%d" % record_id.offset),
        ("dlq_reason", code.encode()),
        ("dlq_detail", detail.encode("utf-8", "backslashreplace")),
        ("dlq_time", datetime.now(UTC).isoformat().encode()),
    ]
