"""What would change if this program's rules and settings had folded the whole history: rows, what is published, deadlines.

Reads everything and writes nothing but temporary files. What the pipeline moves on meanwhile is no difference: an order counts if nothing
of it has changed between two looks, in between of which everything that was in the log was folded. Decisions in orders.decisions are part
of the history and are folded as they were made.

A derived event is known by its id. Two kinds need more care. Notices (suborder.updated, order.status_changed) have ids that tell in which
order the facts came: of them, what was told last is compared. And whether a label or a release was asked for hangs on that order, which the
log doesn't tell for records of different topics: where these differ, other orders of arrival are tried, and if one gives what was
published, it is no difference.
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, NamedTuple
from uuid import UUID

import msgspec
from aiokafka import TopicPartition

from contracts import ids, outgoing
from contracts.strict_json import read_foreign
from contracts.topics import DECISIONS, DERIVED, DLQ, LANE, REKEYED
from domain.deadlines import next_due
from domain.refunds import next_refund
from domain.status import view_of
from domain.totals import RunningTotals
from operations.changelog import decode, read_changelog
from operations.differences import ROUNDS, Differences
from operations.differences import compare as compare_rows
from operations.history import fold, project
from operations.postgres import compare, ddl
from operations.replay import LocalStates, Progress, Refold
from settings import Settings
from sinks import migrate
from streams.dead_letters import Record
from streams.folder import BatchOutput
from streams.lag import Lag
from tables import codec

NOTICES: Final = {spec.type for spec in outgoing.DERIVED if spec.varies == "notice"}
BY_ARRIVAL: Final = {"shipping.label.create", "stock.release"}
"""Whether they are sent, and of what, hangs on which of an order's facts came first."""
ORDERS_A_PASS: Final = 10_000
"""Orders whose records are held in memory at once, to try other orders of arrival. Each pass reads the log again."""
ARRIVALS: Final = 240
"""Orders of arrival that are tried of one order..."""
FAILED: Final = 100
"""... until so many orders weren't explained: then it is the rule, and few are tried. The likely ones come first."""
FEWER: Final = 6
_TOPICS: Final = (*DERIVED, DLQ)
_REFOLDED: Final = {topic.encode() for topic in LANE}
_NUMBER: Final = {topic: number for number, topic in enumerate(_TOPICS)}
_COMMAND, _TOLD, _MOVED, _OWED, _PINNED = b"C", b"T", b"M", b"D", b"V"
_WOULD, _WAS = 1, 2
_ID: Final = 16
_SIDES: Final = {_WOULD: b"a", _WAS: b"l"}
_TOLD_OF: Final = ("status", "closed_because", "items_amount", "shipping_amount", "discount_amount", "total_amount", "units")


@dataclass(frozen=True, slots=True)
class EventDifference:
    """`kind` would: it would be published and wasn't; was: the other way round; other: under this id, with other content; told: a notice
    says something else, which `live` and `anew` tell. `id`: ce_id; of a notice what it is about; of a dead letter where its record is."""

    topic: str
    kind: str
    id: str
    order_id: str
    live: str = ""
    anew: str = ""


@dataclass
class Published:
    """Differences of the derived topics and of orders.dlq."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    """Topic -> kind -> how many."""
    told: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    """Topic of notices -> (status that was told, status that would be) -> how many."""
    orders: int = 0
    unjudged: int = 0
    by_arrival: int = 0
    """Orders whose labels or releases another order of arrival explains."""
    partly: dict[str, str] = field(default_factory=dict)
    """Topics whose beginning is gone: what would be published and isn't there isn't told. -> the partition that says so."""
    examples: list[EventDifference] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(kinds.total() for kinds in self.counts.values())

    def add(self, found: Sequence[EventDifference], examples: int) -> None:
        """One order's."""
        self.orders += 1
        for each in found:
            self.counts.setdefault(each.topic, Counter())[each.kind] += 1
            if each.kind == "told":
                self.told.setdefault(each.topic, Counter())[each.live, each.anew] += 1
        self.examples += found[: max(0, examples - len(self.examples))]


@dataclass
class Deadlines:
    """Orders whose next deadline would be another one, from when they are next touched: later, sooner, new (none now), none (any more)."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, int, int]] = field(default_factory=list)
    """(order, kind, live, anew), ms by the brokers' time."""


@dataclass
class Outcome:
    """All that would change."""

    records: int
    folding: float
    """Seconds that folding them took."""
    rows: Differences
    published: Published
    deadlines: Deadlines

    @property
    def nothing(self) -> bool:
        return not (self.rows.orders or self.published.orders or self.deadlines.counts)


class WhatIf:
    """One look. See whatif()."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings = settings
        self._states = LocalStates(folder / "states")
        self._events = LocalStates(folder / "events")
        self._live = LocalStates(folder / "changelog")
        self._read: dict[TopicPartition, int] = {}
        self._failed = 0
        """Orders whose labels or releases no order of arrival explained."""
        self.published = Published()

    def close(self) -> None:
        for each in (self._states, self._events, self._live):
            each.close()

    async def run(self, examples: int, progress: Progress, say: Callable[[str], None]) -> Outcome:
        """See whatif()."""
        async with ddl.connect(self._settings) as connection, Refold(self._settings, self._states, self._take) as refold:
            await connection.execute("SET default_transaction_read_only = on")
            say("folding the history")
            lag = await refold.lag()
            begun = time.monotonic()
            await refold.catch_up(lag, progress)
            folded, folding = refold.records, time.monotonic() - begun

            async def differ(order_ids: Sequence[str]) -> list[compare.Difference]:
                raw = [UUID(order_id).bytes for order_id in order_ids]
                found = dict(zip(raw, self._states.get(raw), strict=True))
                work = project(refold.folder, {key: state for key, state in found.items() if state is not None})
                return await compare.with_rows(connection, work.rows, order_ids)

            rows = await compare_rows(refold, self._states, connection, differ, examples=examples, progress=progress, say=say)
            say("reading what was published")
            await self._compare_published(refold, examples)
            say("comparing decisions")
            await self._compare_decisions(refold, examples)
            say("comparing deadlines")
            deadlines = await self._compare_deadlines(refold, examples)
            return Outcome(folded, folding, rows, self.published, deadlines)

    # -- what would be, and what was published --------------------------------------------------------------------------

    async def _take(self, lane: int, work: BatchOutput) -> None:
        for topic in _TOPICS:
            if topic in work.out:
                self._note(topic, (each._replace(value=each.content()) for each in work.out[topic]), _WOULD)

    def _note(self, topic: str, records: Iterable[Any], side: int) -> set[bytes]:
        """Keep what was (or would be) published; returns whose it is."""
        puts: dict[bytes, bytes | None] = {}
        first: dict[bytes, bytes] = {}
        commands: dict[bytes, bytes] = {}
        whose: set[bytes] = set()
        for record in records:
            parsed = _parse(topic, record.key, record.value, record.headers)
            if parsed is None:
                continue
            order_id, name, mark, told, text = parsed
            whose.add(order_id)
            if side == _WAS and topic in NOTICES and (pin := _pin(record)) is not None:
                puts[_PINNED + order_id + pin[0]] = pin[1]
            if told is not None:
                key = _TOLD + order_id + name + _SIDES[side]
                if topic in NOTICES:
                    puts[key] = told
                else:
                    first.setdefault(key, told)
            if topic not in NOTICES:
                commands[_COMMAND + order_id + bytes([_NUMBER[topic]]) + name + mark] = text
        for key, known in zip(commands, self._events.get(list(commands)), strict=True):
            flags = side if known is None else known[0] | side
            puts[key] = bytes([flags]) + commands[key]
        for key, known in zip(first, self._events.get(list(first)), strict=True):
            if known is None:
                puts[key] = first[key]
        self._events.write(puts)
        return whose

    async def _read_published(self, refold: Refold, number: int) -> None:
        """Read on in the derived topics to where they end now, and mark the orders that something was published of."""
        lanes = sorted({lane for _, lane in await refold.lag()})
        for topic in _TOPICS:
            for lane in lanes:
                partition = TopicPartition(topic, lane)
                if partition not in self._read:
                    start = (await refold.reader.beginnings([partition]))[partition]
                    self._read[partition] = start
                    if start:
                        self.published.partly.setdefault(topic, f"{topic}/{lane} begins at {start}")
                end = (await refold.reader.ends([partition]))[partition]
                if end > self._read[partition]:
                    async with aclosing(refold.reader.stretch(partition, self._read[partition], end)) as stretches:
                        async for records in stretches:
                            whose = self._note(topic, records, _WAS)
                            if number:
                                self._events.write({_MOVED + order_id: bytes([number]) for order_id in whose})
                self._read[partition] = max(end, self._read[partition])

    async def _compare_published(self, refold: Refold, examples: int) -> None:
        await self._read_published(refold, 0)
        moving: list[bytes] | None = None
        for number in range(1, ROUNDS + 1):
            lag, all_of_it = await refold.reached(await refold.lag())
            await refold.catch_up(lag)
            await self._read_published(refold, number)
            again: list[bytes] = []
            suspects: dict[bytes, list[EventDifference]] = {}
            for order_id in self._everybody() if moving is None else moving:
                found = list(self._judge(order_id, judge_was=all_of_it))
                if not found:
                    continue
                (moved,) = self._events.get([_MOVED + order_id])
                if moved is not None and moved[0] == number:
                    again.append(order_id)
                elif any(each.topic in BY_ARRIVAL for each in found):
                    suspects[order_id] = found
                    if len(suspects) == ORDERS_A_PASS:
                        await self._judge_arrival(refold, lag, suspects, examples)
                        suspects = {}
                else:
                    self.published.add(found, examples)
            await self._judge_arrival(refold, lag, suspects, examples)
            moving = again
            if not moving or not all_of_it:
                break
        self.published.unjudged = len(moving or ())

    async def _compare_decisions(self, refold: Refold, examples: int) -> None:
        """Refunds that are owed by these rules and that nobody has decided, though all that was in the log is folded."""
        for order_id, n in self._owed():
            self._events.write({_OWED + order_id: n.to_bytes(4, "big")})
        lag, all_of_it = await refold.reached(await refold.lag())
        await refold.catch_up(lag)
        for order_id, n in self._owed():
            (before,) = self._events.get([_OWED + order_id])
            if all_of_it and before is not None and int.from_bytes(before, "big") == n:
                name = ids.uuid5_text(order_id, f"refund.decided:{n}")
                self.published.add([EventDifference(DECISIONS, "would", name, ids.text(order_id))], examples)

    def _owed(self) -> Iterator[tuple[bytes, int]]:
        """Orders that the history proposes a refund of, and the number of the one that would be decided next."""
        for some in self._states.states(2_000):
            for order_id, raw in some.items():
                order = codec.decode(raw)
                if order.created is None or order.proposed <= len(order.decisions):
                    continue
                totals = RunningTotals(order)
                now = view_of(order, totals)
                # What was proposed half way may not be owed at the end: another order of arrival, other proposals.
                if now.captured > now.decided and next_refund(order, now, order_id, order.created.time, totals) is not None:
                    yield order_id, len(order.decisions)

    def _everybody(self) -> Iterator[bytes]:
        """Ids of all orders that something was or would be published of."""
        last = b""
        for prefix in (_COMMAND, _TOLD):
            for key, _ in self._events.items(prefix):
                order_id = key[1 : 1 + _ID]
                if order_id != last:
                    last = order_id
                    if prefix == _COMMAND or next(self._events.items(_COMMAND + order_id), None) is None:
                        yield order_id

    def _judge(self, order_id: bytes, judge_was: bool) -> Iterator[EventDifference]:
        text = ids.text(order_id)
        events = list(self._events.items(_COMMAND + order_id))
        for (number, name), group in groupby(events, key=lambda pair: (pair[0][1 + _ID], pair[0][2 + _ID : 2 + 2 * _ID])):
            contents = [value for _, value in group]
            sides = {value[0] for value in contents}
            topic = _TOPICS[number]
            would = _WOULD in sides and (topic not in self.published.partly or len(sides) > 1)
            was = _WAS in sides and judge_was
            if would or was:
                kind = "other" if len(sides) > 1 else "would" if would else "was"
                where = contents[0][1:].decode(errors="replace") or ids.text(name)
                yield EventDifference(topic, kind, where, "" if topic == DLQ else text)
        told = {key[1 + _ID :]: value for key, value in self._events.items(_TOLD + order_id)}
        for name in sorted({key[:-1] for key in told}):
            live, anew = told.get(name + b"l"), told.get(name + b"a")
            topic = "order.status_changed" if name == order_id else "suborder.updated"
            if name == order_id:
                live, anew = live or b'{"status":"pending"}', anew or b'{"status":"pending"}'
            if live is None or anew is None or live == anew or topic in self.published.partly:
                continue
            was_told, would_tell = msgspec.json.decode(live), msgspec.json.decode(anew)
            yield EventDifference(topic, "told", ids.text(name), text, _status(was_told), _status(would_tell))

    async def _judge_arrival(self, refold: Refold, lag: Lag, suspects: Mapping[bytes, list[EventDifference]], examples: int) -> None:
        """Count the suspects' differences, but for those of labels and releases that another order of arrival explains."""
        by_lane: dict[int, dict[bytes, bytes]] = {}
        for order_id in suspects:
            by_lane.setdefault(refold.lane_of(order_id), {})[ids.text(order_id).encode()] = order_id
        for lane, keys in sorted(by_lane.items()):
            records: dict[bytes, list[Record]] = {order_id: [] for order_id in keys.values()}
            async with aclosing(refold.reader.lane({}, refold.ends(lag)[lane])) as stretches:
                async for some in stretches:
                    for record in some:
                        if record.key in keys:
                            records[keys[record.key]].append(record)
            for order_id, of_order in records.items():
                found = suspects[order_id]
                tries = ARRIVALS if self._failed < FAILED else FEWER
                explained = self._explained(refold, lane, order_id, of_order, {each.topic for each in found} & BY_ARRIVAL, tries)
                if explained:
                    self.published.by_arrival += 1
                found = [each for each in found if each.topic not in explained]
                if found:
                    self._failed += 1
                    self.published.add(found, examples)

    def _explained(self, refold: Refold, lane: int, order_id: bytes, records: Sequence[Record], topics: set[str], tries: int) -> set[str]:
        """Those of the topics on which some order of arrival gives what was published."""
        wanted: dict[str, set[bytes]] = {topic: set() for topic in topics}
        for key, value in self._events.items(_COMMAND + order_id):
            if value[0] & _WAS and (topic := _TOPICS[key[1 + _ID]]) in topics:
                wanted[topic].add(key[2 + _ID :])
        pins = {int.from_bytes(key[1 + _ID :], "big"): event_id for key, event_id in self._events.items(_PINNED + order_id)}
        for arrival in islice(arrivals(records, pins, random.Random(order_id)), tries):
            states: dict[bytes, bytes] = {}
            would: dict[str, set[bytes]] = {topic: set() for topic in wanted}
            for work in fold(refold.folder, lane, arrival, lambda keys, states=states: [states.get(key) for key in keys]):  # type: ignore[misc]
                for topic, names in would.items():
                    parsed = [_parse(topic, each.key, each.content(), each.headers) for each in work.out.get(topic, ())]
                    names.update(each[1] + each[2] for each in parsed if each is not None)
                states.update(work.states)
            for topic in sorted(wanted):
                if would[topic] == wanted[topic]:
                    del wanted[topic]
            if not wanted:
                break
        return topics - set(wanted)

    # -- deadlines ---------------------------------------------------------------------------------------------------

    async def _compare_deadlines(self, refold: Refold, examples: int) -> Deadlines:
        """Of the states as they are: which next deadline they have, and which one these settings give them."""
        found, ends = Deadlines(), {}
        lanes = sorted({lane for _, lane in await refold.lag()})
        for lane in lanes:
            partition = TopicPartition(self._settings.changelog_topic, lane)
            ends[lane] = await read_changelog(refold.reader, partition, 0, self._live)
        await refold.reached(await refold.lag())
        with TemporaryDirectory(prefix="orders-whatif-") as folder:
            later = LocalStates(Path(folder) / "later")
            try:
                for lane in lanes:
                    await read_changelog(refold.reader, TopicPartition(self._settings.changelog_topic, lane), ends[lane], later)
                for some in self._live.states(2_000):
                    moved = later.get(list(some))
                    for (order_id, raw), again in zip(some.items(), moved, strict=True):
                        order = None if again is not None else decode(raw)
                        if order is None:
                            continue
                        due = next_due(order, order_id, self._settings.deadline_policy)
                        if due != order.due:
                            kind = "none" if not due else "new" if not order.due else "later" if due > order.due else "sooner"
                            found.counts[kind] += 1
                            if len(found.examples) < examples:
                                found.examples.append((ids.text(order_id), kind, order.due, due))
            finally:
                later.close()
        return found


def _status(told: Mapping[str, Any]) -> str:
    return f"{told.get('status')}" + (f" ({told['closed_because']})" if told.get("closed_because") else "")


def _parse(
    topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> tuple[bytes, bytes, bytes, bytes | None, bytes] | None:
    """(order, what it is, mark of its content, what it tells, text) of a derived event or a dead letter; None for what isn't ours."""
    found = {name: text for name, text in headers if text is not None}
    if topic == DLQ:
        try:
            where = b"%s/%s@%s" % (found["dlq_topic"], found["dlq_partition"], found["dlq_offset"])
            reason = found["dlq_reason"]
        except KeyError:
            return None
        if found["dlq_topic"] not in _REFOLDED:
            return None  # a bulk worker's: what it reads isn't folded here
        name = hashlib.blake2b(where, digest_size=_ID).digest()
        return name, name, _mark(reason), None, b"%s %s" % (where, reason)
    try:
        order_id, ce_id = UUID((key or b"").decode()).bytes, UUID(found["ce_id"].decode()).bytes
    except (KeyError, ValueError):
        return None
    if topic not in NOTICES and topic != "suborder.created":
        return order_id, ce_id, _mark(value or b""), None, b""
    data: Any = read_foreign(msgspec.json.decode, value)
    try:
        if topic == "order.status_changed":
            return order_id, order_id, b"", msgspec.json.encode({"status": data["to"]}), b""
        told = msgspec.json.encode({name: data[name] for name in _TOLD_OF if name in data})
        subject = UUID(data["suborder_id"]).bytes
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    if topic == "suborder.created":
        # Its id is the uuid5 of the suborder's, and what it tells is what stands until something else is told.
        return order_id, subject, _mark(value or b""), told, b""
    return order_id, subject, b"", told, b""


class _Versioned(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


_version: Final = msgspec.json.Decoder(_Versioned).decode


def _pin(notice: Any) -> tuple[bytes, bytes] | None:
    """(the order's version, the event that raised it) by a notice."""
    cause = dict(notice.headers).get("ce_causeid")
    data = read_foreign(_version, notice.value)
    return None if cause is None or data is None else (data.version.to_bytes(4, "big"), cause)


def _mark(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8).digest()


def arrivals(records: Sequence[Record], pins: Mapping[int, bytes], dice: random.Random) -> Iterator[list[Record]]:
    """Orders in which a lane may have taken in one order's records, the likely ones first; each topic's in its own order.

    `records` are in the order of time. `pins`: version -> ce_id of the event that was the order's so manieth fact, as far as notices tell.
    """
    whole = [_Arrived.of(at, record) for at, record in enumerate(records)]
    copied = {each.id for each in whole if each.record.topic == REKEYED}
    # What reached another lane, as from a producer that hadn't heard of new partitions, was taken in as a copy only.
    as_copies = [each for each in whole if each.record.topic == REKEYED or each.id not in copied]
    taken_in = [_by_topic(some) for some in ((as_copies, whole) if len(as_copies) < len(whole) else (whole,))]
    for by_topic in taken_in:
        yield [each.record for of_topic in by_topic for each in of_topic]  # one batch: topic after topic
        yield _arrange(by_topic, pins, lambda heads: min(heads, key=lambda topic: heads[topic].at))
        yield _arrange(by_topic, pins, min)
    while True:
        for by_topic in taken_in:
            yield _arrange(by_topic, pins, lambda heads: dice.choice(list(heads)))
            # A repetition can make a notice under the version of another event.
            yield _arrange(by_topic, {}, lambda heads: dice.choice(list(heads)))


def _by_topic(arrived: Sequence[_Arrived]) -> list[list[_Arrived]]:
    return [[each for each in arrived if each.record.topic == topic] for topic in LANE]


class _Arrived(NamedTuple):
    at: int
    record: Record
    id: bytes
    counts: bool
    """Whether it raises the order's version, if it is new: a refund's decision doesn't."""

    @classmethod
    def of(cls, at: int, record: Record) -> _Arrived:
        headers = dict(record.headers)
        # An event in the structured binding has its id in the value: taken for another one than all others.
        return cls(at, record, headers.get("ce_id") or b"@%d" % at, headers.get("ce_type") != b"refund.decided")


def _arrange(
    by_topic: Sequence[Sequence[_Arrived]], pins: Mapping[int, bytes], choose: Callable[[Mapping[int, _Arrived]], int]
) -> list[Record]:
    version_of = {event_id: version for version, event_id in pins.items()}
    place, version, seen = [0] * len(by_topic), 0, set()
    arranged: list[Record] = []
    while heads := {topic: of[place[topic]] for topic, of in enumerate(by_topic) if place[topic] < len(of)}:
        free = {
            topic: head
            for topic, head in heads.items()
            if head.id in seen or not head.counts or version_of.get(head.id, version + 1) <= version + 1
        }
        next_one = pins.get(version + 1)
        due = next((topic for topic, head in heads.items() if head.id == next_one and head.id not in seen), None)
        topic = due if due is not None else choose(free or heads)
        head = heads[topic]
        place[topic] += 1
        arranged.append(head.record)
        if head.counts and head.id not in seen:
            version += 1
        seen.add(head.id)
    return arranged


@asynccontextmanager
async def _look(settings: Settings) -> AsyncIterator[WhatIf]:
    with TemporaryDirectory(prefix="orders-whatif-") as folder:
        look = WhatIf(settings, Path(folder))
        try:
            yield look
        finally:
            look.close()


async def whatif(settings: Settings, examples: int, progress: Progress, say: Callable[[str], None]) -> Outcome:
    """Fold the whole history by these rules and settings, and tell what would change. Blocks; raises LogIncomplete, SchemaMismatch,
    TopicsMissing, and what the servers raise. On disk it needs about as much as all states and ids of all events, below $TMPDIR."""
    await migrate.check(settings)
    async with _look(settings) as look:
        return await look.run(examples, progress, say)
