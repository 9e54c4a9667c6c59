"""The dead letters in orders.dlq, and what became of them (orders.redriven).

Nothing here joins a group or writes.
Everything may block for as long as the brokers take, and raises what aiokafka raises.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Any, Final, Literal, NamedTuple, Self

import msgspec
from aiokafka import TopicPartition

from contracts.errors import ORDER_CURRENCY, ORDER_ITEM, ORDER_SELLER, ORIGIN_UNKNOWN, UNREADABLE
from contracts.record_id import RecordId
from contracts.strict_json import read_foreign
from contracts.topics import DLQ, LANE, REDRIVEN
from errors import OrdersError
from settings import Settings
from streams import topics
from wire.log import LogReader

REDRIVE_OF: Final = "redrive_of"
"""Header of a redriven record: PARTITION:OFFSET of the dead letter in orders.dlq that it was made of."""
REDRIVE_COUNT: Final = "redrive_count"
"""Header of a redriven record: how often it has been redriven, 1 the first time."""

State = Literal["new", "redriven", "parked", "final"]
"""What became of a dead letter. new: it may go back. redriven: it went back.
parked: it was redriven so often that it doesn't go any more. final: no fix can help it, see DeadLetter.stays.
"""

_OURS: Final = ("dlq_topic", "dlq_partition", "dlq_offset", "dlq_reason", "dlq_detail", "dlq_time")
_FOR_THE_ORDERS_SAKE: Final = (ORDER_CURRENCY, ORDER_ITEM, ORDER_SELLER)


class NoSuchLetter(OrdersError):
    """There is no dead letter at the PARTITION:OFFSET that the message names."""

    remedy = "orders dlq list has them"


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

    @property
    def id(self) -> str:
        """PARTITION:OFFSET in orders.dlq, by which commands know it."""
        return f"{self.partition}:{self.offset}"

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


class Redriven(msgspec.Struct, gc=False):
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


def state_of(settings: Settings, letter: DeadLetter, note: Redriven | None) -> State:
    """Return what a redrive does with a letter. Pure."""
    if note is not None:
        return "redriven"
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
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._letters)
            await stack.enter_async_context(self._ledger)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

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
                    letter = _letter(record)
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
                    letter = _letter(record)
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
            letters.append(_letter(record))
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


async def newest_of(
    settings: Settings, reason: str | None, topic: str | None, state: str | None, limit: int
) -> tuple[list[Found], Counter[str], Counter[str]]:
    """The newest `limit` letters of this reason, origin topic and state (None: whichever), the newest last,
    without what takes memory.

    With them how many there are of each reason and of each state. Raises TopicsMissing.
    """
    newest: list[Found] = []
    reasons: Counter[str] = Counter()
    states: Counter[str] = Counter()
    async with Letters(settings) as letters, aclosing(letters.all()) as pairs:
        async for letter, note in pairs:
            its = state_of(settings, letter, note)
            if (
                (reason in (None, letter.reason))
                and (topic in (None, letter.record.topic))
                and (state in (None, its))
            ):
                reasons[letter.reason] += 1
                states[its] += 1
                newest.append((_slim(letter), note))
                if len(newest) >= 2 * limit + 1000:
                    newest = _last(newest, limit)
    return _last(newest, limit), reasons, states


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
