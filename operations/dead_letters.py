"""The dead letters in orders.dlq, and what became of them (orders.redriven).

Nothing here joins a group or writes.
Everything may block for as long as the brokers take, and raises what aiokafka raises.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec
from aiokafka import TopicPartition

from contracts.errors import ORDER_CURRENCY, ORDER_ITEM, ORDER_SELLER, ORIGIN_UNKNOWN, UNREADABLE
from contracts.record_id import RecordId
from contracts.strict_json import read_foreign
from contracts.topics import DLQ, LANE, REDRIVEN, RESOLVED
from errors import OrdersError
from settings import Settings
from streams import topics
from wire.log import LogReader

REDRIVE_OF: Final = "redrive_of"
"""Header of a redriven record: PARTITION:OFFSET of the dead letter in orders.dlq that it was made of."""
REDRIVE_COUNT: Final = "redrive_count"
"""Header of a redriven record: how often it has been redriven, 1 the first time."""

State = Literal["new", "redriven", "parked", "final", "resolved"]
"""What became of a dead letter. new: it may go back. redriven: it went back.
parked: it was redriven so often that it doesn't go any more. final: no fix can help it, see DeadLetter.stays.
resolved: somebody said that it needs nothing more.
"""

_OURS: Final = ("dlq_topic", "dlq_partition", "dlq_offset", "dlq_reason", "dlq_detail", "dlq_time")
_FOR_THE_ORDERS_SAKE: Final = (ORDER_CURRENCY, ORDER_ITEM, ORDER_SELLER)


_SOURCE: Final = re.compile(rb'"source"\s*:\s*"([^"\\]{1,1000})"')
_LONG_AGO: Final = datetime.fromtimestamp(0, UTC)


def _plain(id: str) -> str:
    return id.replace("-", "").lower()


class NoSuchLetter(OrdersError):
    """There is no dead letter at the PARTITION:OFFSET that the message names."""

    remedy = "orders dlq list has them"


class Resolved(msgspec.Struct, gc=False):
    """Value of a dead letter's record in orders.resolved: it needs nothing more."""

    at: str
    by: str
    """user@host, or the name of a key."""
    why: str
    origin: RecordId
    """The refused record."""


class DeadLetter(NamedTuple):
    """A dead letter. `partition` and `offset` are its own in orders.dlq, `record` is the refused record, with
    its headers."""

    partition: int
    offset: int
    reason: str
    detail: str
    time: str
    record: RecordId
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    resolved: Resolved | None = None

    @property
    def id(self) -> str:
        """PARTITION:OFFSET in orders.dlq, by which commands know it."""
        return f"{self.partition}:{self.offset}"

    @property
    def refused_at(self) -> datetime:
        """When it was refused; 1970 if the letter doesn't say."""
        try:
            time = datetime.fromisoformat(self.time)
        except ValueError:
            return _LONG_AGO
        return time if time.tzinfo is not None else time.replace(tzinfo=UTC)

    @property
    def source(self) -> str:
        """Who sent the event, by its header ce_source or its envelope; "": it doesn't say."""
        for name, value in reversed(self.headers):
            if name == "ce_source" and value is not None:
                return value.decode("utf-8", "replace")
        member = _SOURCE.search(self.value or b"")
        return "" if member is None else member[1].decode("utf-8", "replace")

    def ids(self, name: str) -> set[str]:
        """Every value of this name in the JSON, without dashes and in small letters; also of a value that is
        no JSON as a whole."""
        members = re.findall(rb'"%s"\s*:\s*"([^"\\]{1,100})"' % name.encode(), self.value or b"")
        return {_plain(each.decode("utf-8", "replace")) for each in members}

    @property
    def orders(self) -> set[str]:
        """Ids of the order that it may belong to: those in its value, and its key."""
        return {*self.ids("order_id"), _plain((self.key or b"").decode("utf-8", "replace"))}

    def holds(self, text: str) -> bool:
        """Whether this text is in its detail, key, value or a header, whatever its case."""
        wanted = text.casefold()
        places = [self.key, self.value, *(value for _, value in self.headers)]
        return wanted in self.detail.casefold() or any(
            wanted in each.decode("utf-8", "replace").casefold() for each in places if each
        )

    @property
    def redrives(self) -> int:
        """How often the record had been redriven before it was refused."""
        text = next((value for name, value in reversed(self.headers) if name == REDRIVE_COUNT), b"")
        return _number((text or b"").decode("utf-8", "replace"), 0)

    @property
    def stays(self) -> str:
        """Why it can never go back, whatever is mended; "" if it can."""
        if self.reason in _FOR_THE_ORDERS_SAKE:
            return "its order has taken the fact in, so what came again would be a repetition"
        if self.reason == UNREADABLE:
            return "no client can parse its record"
        if self.reason == ORIGIN_UNKNOWN:
            return "another program wrote it where only ours may"
        if self.value is None:
            return "it holds no value: a tombstone, or a record that is too large to be passed on"
        if self.record.topic not in LANE:
            return f"it came from {self.record.topic or 'nowhere'}, which no lane reads"
        return ""


class Redriven(msgspec.Struct, gc=False, omit_defaults=True):
    """Value of a dead letter's record in orders.redriven: it was sent back."""

    at: str
    by: str
    """user@host."""
    count: int
    """redrive_count of the record that was sent."""
    reason: str
    origin: RecordId
    """The refused record. It identifies a letter, because a record may have a second letter after a crash."""
    to: RecordId
    """The record that was sent."""
    before: str | None = None
    """In base64: the value as it was refused, if another one was sent (`orders dlq redrive --edit`)."""
    after: str | None = None
    """In base64: the value that was sent in its place."""


def state_of(settings: Settings, letter: DeadLetter, note: Redriven | None) -> State:
    """Return what a redrive does with a letter. Pure."""
    if note is not None:
        return "redriven"
    if letter.resolved is not None:
        return "resolved"
    if letter.stays:
        return "final"
    return "parked" if letter.redrives >= settings.redrive_limit else "new"


class Reader:
    """Reads whole partitions up to where they ended when it was opened. An async context manager."""

    def __init__(self, settings: Settings, names: Collection[str]) -> None:
        self._settings = settings
        self._names = names
        self._begins: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> Self:
        """Raises TopicsMissing."""
        described = await topics.describe(self._settings, self._names)
        topics.require(self._settings, self._names, described)
        partitions = [
            TopicPartition(name, number)
            for name in self._names
            for number in range(described[name].partitions)
        ]
        async with AsyncExitStack() as stack:
            self._log = await stack.enter_async_context(LogReader(self._settings, "orders-dlq"))
            self._begins = await self._log.beginnings(partitions)
            self._ends = await self._log.ends(partitions)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def partitions(self, topic: str) -> list[int]:
        """Partition numbers of a topic."""
        return sorted(place.partition for place in self._ends if place.topic == topic)

    def count(self, topic: str) -> int:
        """Offsets of a topic, over all partitions."""
        return sum(end - self._begins[place] for place, end in self._ends.items() if place.topic == topic)

    async def newest(self, topic: str, time: int, most: int) -> tuple[dict[int, int], int]:
        """Of each partition the offset of its first record of that time (ms since 1970) or later, but not so
        far back that there are more than `most` offsets of the topic; and how many are left out by that.
        """
        places = [place for place in self._ends if place.topic == topic]
        starts = await self._log.since(places, time)
        bounded = {
            place: max(starts[place], self._ends[place] - max(1, most // len(places))) for place in places
        }
        left = sum(bounded[place] - starts[place] for place in places)
        return {place.partition: start for place, start in bounded.items()}, left

    async def records(
        self, topic: str, partition: int, start: int | None = None
    ) -> AsyncGenerator[Any, None]:
        """A partition's records in order, from offset `start` (None: all); none when it lies outside."""
        place = TopicPartition(topic, partition)
        if place not in self._ends:
            return
        begin, end = self._begins[place], self._ends[place]
        position = begin if start is None else start
        if not begin <= position < end:
            return
        async with aclosing(self._log.read(place, position, end)) as stretches:
            async for records, _ in stretches:
                for record in records:
                    yield record


class Letters:
    """Dead letters and what became of them, partition by partition.
    An async context manager; raises TopicsMissing.
    """

    def __init__(self, settings: Settings) -> None:
        self._letters = Reader(settings, (DLQ,))
        self._ledger = Reader(settings, (REDRIVEN,))
        self._resolutions = Reader(settings, (RESOLVED,))
        self._resolved: dict[bytes, Resolved] = {}
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._letters)
            await stack.enter_async_context(self._ledger)
            await stack.enter_async_context(self._resolutions)
            await self._read_resolved()
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def _read_resolved(self) -> None:
        async with aclosing(self._resolutions.records(RESOLVED, 0)) as records:
            async for record in records:
                resolved = read_foreign(_decode_resolved, record.value)
                if resolved is None:
                    self._resolved.pop(record.key or b"", None)
                else:
                    self._resolved[record.key or b""] = resolved

    def _made(self, record: Any) -> DeadLetter:
        letter = _letter(record)
        resolved = self._resolved.get(letter.id.encode()) if self._resolved else None
        if resolved is None or resolved.origin != letter.record:
            return letter
        return letter._replace(resolved=resolved)

    @property
    def count(self) -> int:
        """Offsets of orders.dlq: about how many letters there are."""
        return self._letters.count(DLQ)

    async def all(self) -> AsyncGenerator[tuple[DeadLetter, Redriven | None], None]:
        """Every dead letter there is, each partition's in order, with what the ledger says of it: a
        partition of it is held in memory.
        """
        for partition in self._letters.partitions(DLQ):
            notes = await self._notes(partition)
            async with aclosing(self._letters.records(DLQ, partition)) as records:
                async for record in records:
                    letter = self._made(record)
                    yield letter, notes.get(letter.record)

    async def since(
        self, time: int, most: int
    ) -> tuple[int, AsyncGenerator[tuple[DeadLetter, Redriven | None], None]]:
        """How many letters of that time (ms since 1970) or later are left out, since there are more than
        `most`; and the newest others as all() yields them.
        """
        starts, left = await self._letters.newest(DLQ, time, most)
        return left, self._from(starts)

    async def _from(
        self, starts: Mapping[int, int]
    ) -> AsyncGenerator[tuple[DeadLetter, Redriven | None], None]:
        for partition, start in starts.items():
            notes = await self._notes(partition)
            async with aclosing(self._letters.records(DLQ, partition, start)) as records:
                async for record in records:
                    letter = self._made(record)
                    yield letter, notes.get(letter.record)

    async def some(
        self, ids: Collection[tuple[int, int]]
    ) -> AsyncGenerator[tuple[DeadLetter, Redriven | None], None]:
        """Yield the letters at these (partition, offset).

        Raises NoSuchLetter before the first if one of them isn't there.
        """
        letters: list[DeadLetter] = []
        for partition, offset in sorted(ids):
            async with aclosing(self._letters.records(DLQ, partition, offset)) as records:
                record = await anext(records, None)
            if record is None or record.offset != offset:
                raise NoSuchLetter(f"no dead letter at {partition}:{offset}")
            letters.append(self._made(record))
        notes = {
            partition: await self._notes(partition) for partition in {letter.partition for letter in letters}
        }
        for letter in letters:
            yield letter, notes[letter.partition].get(letter.record)

    async def _notes(self, partition: int) -> dict[RecordId, Redriven]:
        """Refused record -> the note of its letter, for the letters in this partition of orders.dlq."""
        notes: dict[RecordId, Redriven] = {}
        async with aclosing(self._ledger.records(REDRIVEN, partition)) as records:
            async for record in records:
                note = _decode_note(record.value)
                if note is not None:
                    notes[note.origin] = note
        return notes


_decode: Final = msgspec.json.Decoder(Redriven).decode
_decode_resolved: Final = msgspec.json.Decoder(Resolved).decode


def _decode_note(value: bytes | None) -> Redriven | None:
    """Decode a record of orders.redriven; None if it is no note, since anybody may write there."""
    return read_foreign(_decode, value)


def _letter(record: Any) -> DeadLetter:
    ours = {
        name: (value or b"").decode("utf-8", "replace") for name, value in record.headers if name in _OURS
    }
    return DeadLetter(
        record.partition,
        record.offset,
        ours.get("dlq_reason", ""),
        ours.get("dlq_detail", ""),
        ours.get("dlq_time", ""),
        RecordId(
            ours.get("dlq_topic", ""),
            _number(ours.get("dlq_partition", ""), -1),
            _number(ours.get("dlq_offset", ""), -1),
        ),
        record.key,
        record.value,
        tuple((name, value) for name, value in record.headers if name not in _OURS),
    )


def _number(text: str, otherwise: int) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else otherwise


Found = tuple[DeadLetter, Redriven | None]
"""A letter, and what orders.redriven says of it."""


async def read(settings: Settings) -> AsyncGenerator[DeadLetter, None]:
    """Every dead letter there is at the call, each partition's in order. Raises TopicsMissing."""
    async with Letters(settings) as letters, aclosing(letters.all()) as pairs:
        async for letter, _ in pairs:
            yield letter


class Filter(NamedTuple):
    """Which letters are looked at; None: whichever. `since` and `until` are times of refusal."""

    reason: str | None = None
    topic: str | None = None
    """Of the refused record."""
    state: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    source: str | None = None
    """ce_source of the event."""
    seller: str | None = None
    order: str | None = None
    text: str | None = None
    """Part of the detail, the key, the value or a header, whatever its case."""

    def takes(self, letter: DeadLetter, state: State) -> bool:
        """Tell whether it is one of these. Pure."""
        return (
            self.reason in (None, letter.reason)
            and self.topic in (None, letter.record.topic)
            and self.state in (None, state)
            and (self.since is None or letter.refused_at >= self.since)
            and (self.until is None or letter.refused_at < self.until)
            and (self.source is None or self.source == letter.source)
            and (self.seller is None or _plain(self.seller) in letter.ids("seller_id"))
            and (self.order is None or _plain(self.order) in letter.orders)
            and (self.text is None or letter.holds(self.text))
        )


By = Literal["reason", "source", "topic", "hour", "seller"]


def groups_of(letter: DeadLetter, by: By) -> list[str]:
    """The groups that a letter is counted in; "" where what they go by is unknown. Pure."""
    match by:
        case "reason":
            return [letter.reason]
        case "source":
            return [letter.source]
        case "topic":
            return [letter.record.topic]
        case "hour":
            return [f"{letter.time[:13]}:00Z" if len(letter.time) > 13 else ""]
        case "seller":
            return sorted(letter.ids("seller_id")) or [""]


class Listing(NamedTuple):
    """The newest letters, the newest last and without what takes memory, and how many there are of each group
    and of each state."""

    newest: list[Found]
    groups: Counter[str]
    states: Counter[str]


async def newest_of(settings: Settings, wanted: Filter, limit: int, by: By = "reason") -> Listing:
    """The newest `limit` letters of those that are wanted. Raises TopicsMissing."""
    newest: list[Found] = []
    groups: Counter[str] = Counter()
    states: Counter[str] = Counter()
    async with Letters(settings) as letters, aclosing(letters.all()) as pairs:
        async for letter, note in pairs:
            its = state_of(settings, letter, note)
            if wanted.takes(letter, its):
                groups.update(groups_of(letter, by))
                states[its] += 1
                newest.append((_slim(letter), note))
                if len(newest) >= 2 * limit + 1000:
                    newest = _last(newest, limit)
    return Listing(_last(newest, limit), groups, states)


async def recent(settings: Settings, time: int, most: int) -> tuple[list[Found], int]:
    """The letters of that time (ms since 1970) or later without what takes memory, the newest last; about
    `most` of them, and how many are left out. Raises TopicsMissing.
    """
    async with Letters(settings) as letters:
        left, pairs = await letters.since(time, most)
        async with aclosing(pairs):
            newest = [(_slim(letter), note) async for letter, note in pairs]
    return sorted(newest, key=_age), left


async def find(settings: Settings, topic: str | None, partition: int, offset: int) -> Found:
    """Find the letter at this partition and offset of orders.dlq or, with a topic, the letter of that record.

    Raises NoSuchLetter, TopicsMissing.
    """
    async with Letters(settings) as letters:
        source = letters.some([(partition, offset)]) if topic is None else letters.all()
        async with aclosing(source) as pairs:
            async for letter, note in pairs:
                if topic is None or letter.record == RecordId(topic, partition, offset):
                    return letter, note
    raise NoSuchLetter(f"no dead letter of {topic}:{partition}:{offset}")


def _slim(letter: DeadLetter) -> DeadLetter:
    """Without what takes memory; its state stays."""
    marks = tuple(header for header in letter.headers if header[0] == REDRIVE_COUNT)
    return letter._replace(key=None, value=None if letter.value is None else b"", headers=marks)


def _last(letters: list[Found], limit: int) -> list[Found]:
    return sorted(letters, key=_age)[-limit:]


def _age(pair: Found) -> tuple[str, int, int]:
    letter = pair[0]
    return letter.time, letter.partition, letter.offset
