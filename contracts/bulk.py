"""Bulk: many events of one job in one record, and the step back to a record for each (docs/bulk.md).

A part is read by events.decode like every other record. What is in it is not looked at: each of its events is
an ordinary one in the end, and is judged where it arrives, so that one that is refused harms no other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, Literal, NamedTuple, get_args

import msgspec
from msgspec import UNSET, Struct, UnsetType
from uuid_utils import UUID

from contracts import ids
from contracts.incoming import MOST_CHARACTERS, BulkPart

Kind = Literal["orders", "shipments", "returns", "payments"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
TOPIC: Final[dict[Kind, str]] = {
    "orders": "order.bulk",
    "shipments": "shipment.bulk",
    "returns": "return.bulk",
    "payments": "payment.bulk",
}
EVENT: Final[dict[Kind, str]] = {
    "orders": "order.created",
    "shipments": "shipment.updated",
    "returns": "order.returned",
    "payments": "order.paid",
}
KIND_OF: Final[dict[str, Kind]] = {topic: kind for kind, topic in TOPIC.items()}

PART_EVENTS: Final = 500
"""Most events that we put into a part."""
PART_BYTES: Final = 500_000
"""The same in bytes of JSON; a larger event goes alone."""
EVENT_BYTES: Final = 5 << 20
"""Most bytes of JSON of one event: its part has to fit into its topic."""

_ENOUGH: Final = MOST_CHARACTERS + 1
"""A longer id or time is refused anyway, and twice in a record it might not fit into its topic."""

_SOURCE: Final = "/bulk/"
_SOURCE_BYTES: Final = b"/bulk/"
"""How the sources of unpacked events begin; the job's id follows."""

_NAMESPACE: Final = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
"""Of job ids: RFC 9562's namespace for object ids."""


class Unpacked(NamedTuple):
    """One event of a part as a record of its own.
    A key of None: it names no order, and is refused wherever it arrives.
    """

    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


class _Id(Struct, gc=False):
    id: str | UnsetType | None = UNSET


class _Time(Struct, gc=False):
    time: str | UnsetType | None = UNSET


class _Owner(Struct, gc=False):
    order_id: str


_id = msgspec.json.Decoder(_Id).decode
_time = msgspec.json.Decoder(_Time).decode
_owner = msgspec.json.Decoder(_Owner).decode


def job_id(kind: Kind, digest: str) -> str:
    """The job of a file: the same kind and content (sha256, hex) are the same job. Pure."""
    return ids.uuid5_text(_NAMESPACE.bytes, f"{kind}:{digest}")


def event_id(job: str, line: int) -> str:
    """The default id of the event in a line of a job's file, so that sent again
    it is the same event. Pure.
    """
    return ids.uuid5_text(UUID(job).bytes, str(line))


def encode_part(job: str, part: int, parts: int, events: list[bytes]) -> bytes:
    """The data of a part, from its events as JSON. Pure."""
    return b'{"job_id":"%b","part":%d,"parts":%d,"events":[%b]}' % (
        job.encode(),
        part,
        parts,
        b",".join(events),
    )


def headers_of(type_: str, id: str | None, time: str | None, source: str) -> list[tuple[str, bytes]]:
    """Headers of an event in the binary binding; none for what is None."""
    attributes = {"specversion": "1.0", "id": id, "source": source, "type": type_, "time": time}
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items() if text is not None]
    return [*headers, ("content-type", b"application/json")]


def unpack(topic: str, part: BulkPart, traceparent: str | None) -> Iterator[Unpacked]:
    """The events of a part that was read from a bulk `topic`, a record each, in their order. Pure.

    Their data are the bytes of the part: `id` and `time` stay in them, as fields that no event knows.
    What is wrong with one of these is wrong with its header: it is refused for that where it arrives.
    """
    type_, source = EVENT[KIND_OF[topic]], f"{_SOURCE}{part.job_id}"
    for raw in part.events:
        value = bytes(raw)
        headers = headers_of(type_, _id_of(value), _time_of(value), source)
        if traceparent is not None:
            headers.append(("ce_traceparent", traceparent.encode()))
        yield Unpacked(_key(value), value, headers)


def is_unpacked(headers: Sequence[tuple[str, bytes | None]]) -> bool:
    """Whether a record is an event of a bulk job, by its source. Pure."""
    for name, value in headers:
        if name == "ce_source":
            return value is not None and value.startswith(_SOURCE_BYTES)
    return False


def _id_of(value: bytes) -> str | None:
    """Return an event's id as sent; None if it has none that is text."""
    try:
        id = _id(value).id
    except msgspec.ValidationError:
        return None
    return None if id is UNSET or id is None else id[:_ENOUGH]


def _time_of(value: bytes) -> str | None:
    """Return an event's time as sent; None if it has none, empty (which is no time) if it isn't text."""
    try:
        time = _time(value).time
    except msgspec.ValidationError:
        return "" if value.startswith(b"{") else None
    return None if time is UNSET or time is None else time[:_ENOUGH]


def _key(value: bytes) -> bytes | None:
    try:
        return str(UUID(_owner(value).order_id)).encode()
    except (msgspec.MsgspecError, ValueError, TypeError):
        return None


class BulkCompleted(Struct, gc=False):
    """Every part of a job has been unpacked: its events are on their topics.
    Whether each was taken in, the dead letters say.
    """

    job_id: str
    kind: Literal["orders", "shipments", "returns"]
    parts: int
    events: int


class BulkCompletedV2(Struct, gc=False):
    """Every part of a job has been unpacked: its events are on their topics.
    Whether each was taken in, the dead letters say. A job of payments is told in version 2, any other in
    version 1.
    """

    job_id: str
    kind: Kind
    parts: int
    events: int


def completed(
    job: str, kind: Kind, parts: int, events: int, time: str
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """bulk.completed as a record. `time`: when the last part was unpacked, RFC 3339.
    One job has one id. Pure.
    """
    headers = headers_of("bulk.completed", ids.uuid5_text(UUID(job).bytes, "bulk.completed"), time, "/orders")
    # Readers of version 1 know of three kinds.
    version = b"2" if kind == "payments" else b"1"
    return msgspec.json.encode(BulkCompletedV2(job, kind, parts, events)), [
        *headers,
        ("ce_dataschema", b"urn:orders:bulk.completed/v" + version),
    ]
