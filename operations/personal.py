"""All that is held about one user, for a data subject access request: found by the ids of the user and of the
orders.

Nothing here joins a group or writes. Everything may block for as long as the servers take, and raises what
their clients raise.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import msgspec
from aiokafka import TopicPartition

from contracts import bulk, ids, times
from contracts import topics as names
from contracts.errors import Refused
from contracts.strict_json import read_foreign
from domain import events
from domain.order import Created, Order
from operations.postgres import ddl
from operations.servers import require
from settings import Settings
from sinks.clients import open_client
from sinks.schema import TABLES
from streams.dead_letters import raw_value
from tables import codec
from wire.log import LogReader

Progress = Callable[[str, int, int], None]
"""Called with the topic, the offsets read so far, and all that will be."""

SECTIONS: Final = (
    "orders", *TABLES, "cache", "states", "events", "published", "dead_letters", "bulk_parts", "notes"
)  # fmt: skip
"""What is found, in this order: ids of orders, rows, entries of Redis, and records of the log."""
_NAMING: Final = (names.CREATED, names.CHECKOUT, bulk.TOPIC["orders"])
"""Topics whose events say whose an order is."""
_SECTION_OF: Final = {
    **dict.fromkeys(names.LANE, "events"),
    **dict.fromkeys(names.DERIVED, "published"),
    names.DLQ: "dead_letters",
    **dict.fromkeys(names.BULK, "bulk_parts"),
    **dict.fromkeys((names.REDRIVEN, names.RESOLVED, names.CONTROL, names.OPERATIONS), "notes"),
}
_OF_LETTERS: Final = (names.REDRIVEN, names.RESOLVED)
"""Whose keys are the ids of dead letters."""
_TIMES: Final = frozenset({"time", "processed_at", "estimated_delivery"})
_REDIS_SECONDS: Final = 10.0

_ID: Final = re.compile(rb"[0-9A-Fa-f]{8}(?:-?[0-9A-Fa-f]{4}){3}-?[0-9A-Fa-f]{12}")
_ESCAPED: Final = re.compile(rb"\\u00([0-7][0-9A-Fa-f])")
_BASE64: Final = re.compile(rb'"(?:data_base64|before|after)"\s*:\s*"([^"]*)"')
"""Of a CloudEvent, and of the note of an edited redrive."""


class Found(NamedTuple):
    """Something that is held. `content` is JSON but for values of records, which are bytes as they came."""

    section: str
    content: Any


def ids_in(data: bytes) -> Iterator[bytes]:
    """Yield the UUIDs that stand anywhere in a text, as 16 bytes each, also where JSON escapes their
    characters, or has them in base64 where a CloudEvent or the note of a redrive does. Pure.
    """
    if b"\\u00" in data:
        data = _ESCAPED.sub(lambda match: bytes([int(match[1], 16)]), data)
    for written in _ID.findall(data):
        yield bytes.fromhex(written.replace(b"-", b"").decode())
    for encoded in _BASE64.findall(data):
        try:
            yield from ids_in(base64.b64decode(encoded))
        except binascii.Error:
            pass


def names_any(record: Any, wanted: Collection[bytes]) -> bool:
    """Tell whether a record names one of these ids in its key, its value or a header. Pure."""
    parts = (record.key, raw_value(record), *(value for _, value in record.headers))
    return any(named in wanted for part in parts if part for named in ids_in(part))


async def held(settings: Settings, user: UUID, progress: Progress) -> AsyncGenerator[Found, None]:
    """Yield all that is held about a user, in the order of SECTIONS; nothing if nothing is.

    The log is read up to where it ended at the call. Memory grows with the number of the user's orders and
    dead letters alone.
    Raises TopicsMissing.
    """
    await require(settings)
    async with _Log(settings, progress) as log:
        known = await _whose(settings, log, user.bytes)
        for order_id in sorted(known.orders):
            yield Found("orders", ids.text(order_id))
        async with aclosing(_rows(settings, user, known)) as rows:
            async for row in rows:
                yield row
        async with aclosing(_cached(settings, user, known)) as entries:
            async for entry in entries:
                yield entry
        async for record in log.records(settings.changelog_topic):
            if record.key in known.orders and record.value is not None:
                yield Found("states", _state(record, known.newest.get(record.key)))
        wanted = {*known.orders, user.bytes}
        letters: set[bytes] = set()
        for topic, section in _SECTION_OF.items():
            async for record in log.records(topic):
                if names_any(record, wanted) or (topic in _OF_LETTERS and record.key in letters):
                    if topic == names.DLQ:
                        letters.add(f"{record.partition}:{record.offset}".encode())
                    yield Found(section, _record(record, wanted))


# -- whose an order is ---------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """The user's orders; where the newest state of each is, by order id; tracking numbers of their
    parcels."""

    orders: set[bytes]
    newest: dict[bytes, tuple[int, int]]
    numbers: set[str]


async def _whose(settings: Settings, log: _Log, user: bytes) -> _Known:
    """An order is the user's if its state or its row says so, and without these if an event does: an event
    that was refused may name somebody else's.
    """
    claimed: set[bytes] = set()
    for topic in _NAMING:
        async for record in log.records(topic):
            if names_any(record, (user,)):
                claimed.update(_claims(record, user))
    orders: set[bytes] = set()
    async with ddl.connect(settings) as connection:
        for row in await connection.fetch("SELECT id FROM orders_order WHERE user_id = $1", UUID(bytes=user)):
            orders.add(row["id"].bytes)
    newest: dict[bytes, tuple[int, int]] = {}
    versions: dict[bytes, int] = {}
    numbers: set[str] = set()
    async for record in log.records(settings.changelog_topic):
        key, value = record.key, record.value
        if value is None or not (key in claimed or user in value) or not codec.is_state(key, value):
            continue
        order = codec.decode(value)
        if order.created is not None and order.created.user_id != user:
            claimed.discard(key)
            continue
        if order.created is not None:
            orders.add(key)
        if order.version >= versions.get(key, 0):
            versions[key], newest[key] = order.version, (record.partition, record.offset)
        numbers.update(scan.tracking_number for scan in order.scans if scan.tracking_number)
    return _Known(orders | claimed, newest, numbers)


def _claims(record: Any, user: bytes) -> Iterator[bytes]:
    """Yield the orders that a record says are this user's."""
    own = [(record.topic, record.headers, record.value)]
    try:
        if record.topic in bulk.KIND_OF:
            part: Any = events.decode(*own[0]).fact
            unpacked = bulk.unpack(record.topic, part, None)
            own = [(names.CREATED, each.headers, each.value) for each in unpacked]
    except Refused:
        return
    for topic, headers, value in own:
        try:
            event = events.decode(topic, headers, value)
        except Refused:
            continue
        if isinstance(event.fact, Created) and event.fact.user_id == user:
            yield event.order_id


# -- stores --------------------------------------------------------------------------------------------------


async def _rows(settings: Settings, user: UUID, known: _Known) -> AsyncGenerator[Found, None]:
    async with (
        ddl.connect(settings) as connection,
        connection.transaction(isolation="repeatable_read", readonly=True),
    ):
        for table in TABLES:
            async for row in connection.cursor(f"SELECT * FROM {table} WHERE user_id = $1", user):
                if row.get("tracking_number"):
                    known.numbers.add(row["tracking_number"])
                yield Found(table, {name: _column(value) for name, value in row.items()})


def _column(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    return str(value) if isinstance(value, UUID | Decimal) else value


async def _cached(settings: Settings, user: UUID, known: _Known) -> AsyncGenerator[Found, None]:
    async with open_client(settings, timeout=_REDIS_SECONDS) as client:
        for name in _keys(user, known):
            key = f"{settings.redis_prefix}{name}"
            kind = (await client.type(key)).decode()
            if kind == "none":
                continue
            value: Any = None
            if kind == "string":
                value = await client.get(key)
            elif kind == "zset":
                value = [member.decode("utf-8", "replace") for member in await client.zrange(key, 0, -1)]
            if ":tracking:" in f":{name}":
                value = _own_parcels(value, known.orders)
                if not value:
                    continue
            yield Found("cache", {"key": key, "expires_ms": await client.pttl(key), "value": value})


def _keys(user: UUID, known: _Known) -> Iterator[str]:
    """The keys, without their prefix, under which there may be something about the user."""
    yield from (f"user:{user}:orders", f"rows:user:{user}")
    for order_id in sorted(known.orders):
        yield from (f"order:{ids.text(order_id)}", f"rows:{ids.text(order_id)}")
    for number in sorted(known.numbers):
        yield from (f"tracking:{number}", f"rows:tracking:{number}")


class _Parcel(msgspec.Struct):
    order_id: UUID


_parcels: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_parcel: Final = msgspec.json.Decoder(_Parcel).decode


def _own_parcels(value: bytes | None, orders: Collection[bytes]) -> list[bytes]:
    """Of what is under a tracking number, the parcels of these orders: others may have the same number."""
    own = []
    for raw in read_foreign(_parcels, value) or ():
        parcel = read_foreign(_parcel, bytes(raw))
        if parcel is not None and parcel.order_id.bytes in orders:
            own.append(bytes(raw))
    return own


# -- the log -------------------------------------------------------------------------------------------------


class _Log:
    """Whole topics, up to where they ended when this was opened. An async context manager."""

    def __init__(self, settings: Settings, progress: Progress) -> None:
        self._names = [*_NAMING, settings.changelog_topic, settings.changelog_topic, *_SECTION_OF]
        self._progress = progress
        self._reader = LogReader(settings, "orders-personal")
        self._spans: dict[str, dict[TopicPartition, tuple[int, int]]] = {}
        self._total = self._done = 0

    async def __aenter__(self) -> Self:
        await self._reader.__aenter__()
        try:
            for name in dict.fromkeys(self._names):
                places = [TopicPartition(name, n) for n in sorted(await self._reader.partitions(name))]
                starts, ends = await self._reader.beginnings(places), await self._reader.ends(places)
                self._spans[name] = {place: (starts[place], ends[place]) for place in places}
        except BaseException:
            await self._reader.__aexit__(None, None, None)
            raise
        self._total = sum(end - start for name in self._names for start, end in self._spans[name].values())
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.__aexit__(None, None, None)

    async def records(self, topic: str) -> AsyncGenerator[Any, None]:
        """All records of a topic, each partition's in order."""
        for place, (start, end) in self._spans[topic].items():
            position = start
            async with aclosing(self._reader.read(place, start, end)) as stretches:
                async for stretch in stretches:
                    for record in stretch.records:
                        yield record
                    self._done += stretch.position - position
                    position = stretch.position
                    self._progress(topic, self._done, self._total)


def _place(record: Any) -> dict[str, Any]:
    time = datetime.fromtimestamp(record.timestamp / 1000, UTC).isoformat()
    return {"topic": record.topic, "partition": record.partition, "offset": record.offset, "time": time}


def _record(record: Any, wanted: Collection[bytes]) -> dict[str, Any]:
    """A record as it came; of a bulk job's part, and of the dead letter of one, only what is wanted of it:
    the rest is other users'.
    """
    headers = [[name, _text(value)] for name, value in record.headers]
    topic = next((value for name, value in headers if name == "dlq_topic"), record.topic)
    content = {**_place(record), "key": _text(record.key), "headers": headers}
    if topic in bulk.KIND_OF:
        return content | _own_events(topic, record, wanted)
    return content | {"value": raw_value(record)}


def _own_events(topic: str, record: Any, wanted: Collection[bytes]) -> dict[str, Any]:
    try:
        part: Any = events.decode(topic, record.headers, record.value).fact
    except Refused:
        return {"events": None}
    own = [bytes(raw) for raw in part.events if any(named in wanted for named in ids_in(bytes(raw)))]
    return {"job_id": str(part.job_id), "part": part.part, "count": len(own), "events": own}


def _state(record: Any, newest: tuple[int, int] | None) -> dict[str, Any]:
    """A record of the changelog, with its facts where it is the order's newest."""
    content = {**_place(record), "order_id": ids.text(record.key)}
    if (record.partition, record.offset) == newest:
        return content | {"facts": _facts(codec.decode(record.value))}
    return content


def _facts(order: Order) -> dict[str, Any]:
    facts: dict[str, Any] = _plain(order)
    return facts


def _plain(value: Any, name: str = "") -> Any:
    """A part of a state as JSON: ids and times as text, amounts in minor units as they are."""
    if isinstance(value, msgspec.Struct):
        return {each: _plain(getattr(value, each), each) for each in value.__struct_fields__}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):
        return ids.text(value)
    if isinstance(value, Enum):
        return getattr(value, "text", value.value)
    return times.text(value) if name in _TIMES and isinstance(value, int) else value


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("utf-8", "backslashreplace")
