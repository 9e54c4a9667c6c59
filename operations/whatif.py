"""Replay the whole log with this program's rules and settings, and compare: rows,
published events, deadlines.

It only reads, apart from temporary files. What workers change meanwhile is no difference: an order counts if
it is the same in two comparisons and everything that was in the log at the first one was replayed before the
second. Decisions in orders.decisions are part of the log and are replayed as they were made.

Derived events are compared by their ids. Two kinds need more care:

- The id of a notice (suborder.updated, order.status_changed, order.attention) depends on the order in which
  facts arrived. So only the last notice about each suborder, each order and each kind of its attention is
  compared.
- Whether a label or a release was requested, and what a commit holds, depends on that order too, and the log
  doesn't give it for records of different topics. Where labels, releases or commits differ, other orders of
  arrival are tried. If one of them gives what was published, there is no difference.
"""

from __future__ import annotations

import hashlib
import heapq
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Final, Literal, NamedTuple
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
from operations.differences import ROUNDS, Differences, compared_by_id, estimate, put_together
from operations.differences import compare as compare_rows
from operations.history import at_hand, fold, project
from operations.postgres import compare, ddl
from operations.replay import LocalStates, Replay
from operations.shares import ALL, Done, Progress, Result, Say, Share, Step, Tell, look, share_out
from settings import Settings
from sinks import migrate
from streams.dead_letters import Record
from streams.folder import BatchOutput
from streams.lag import Lag
from streams.retraction import NOTICE_FIELDS
from tables import codec

NOTICES: Final = {spec.type for spec in outgoing.DERIVED if spec.varies == "notice"}
BY_ARRIVAL: Final = {spec.type for spec in outgoing.DERIVED if spec.varies == "command"}
"""Events that depend, in whether they are sent and in their content, on which of an order's facts arrived
first."""
ORDERS_A_PASS: Final = 10_000
"""Orders whose records are held in memory at once, to try other orders of arrival.

Each pass reads the log once.
"""
ARRIVALS: Final = 240
"""Orders of arrival that are tried for one order, the likely ones first."""
UNEXPLAINED_MOST: Final = 100
"""Orders whose events of one topic no order of arrival explains, after which a changed rule about this topic
is the likely cause and fewer are tried for it.

Each topic has a count of its own: a changed rule about labels says nothing about releases.
"""
ARRIVALS_FEWER: Final = 6
_TOPICS: Final = (*DERIVED, DLQ)
_REPLAYED: Final = {topic.encode() for topic in LANE}
_NUMBER: Final = {topic: number for number, topic in enumerate(_TOPICS)}
_COMMAND, _NOTICE, _CHANGED, _REFUND_DUE, _PINNED = b"C", b"T", b"M", b"D", b"V"
_EXPECTED, _ACTUAL = 1, 2
_ID: Final = 16
_SIDES: Final = {_EXPECTED: b"e", _ACTUAL: b"a"}
ATTENTION: Final = "order.attention"
_PINNING: Final = NOTICES - {ATTENTION}
"""Those whose version is the order's. Of attention it counts decisions, too."""

EventKind = Literal["missing", "unexpected", "different", "notice"]


@dataclass(frozen=True, slots=True)
class EventDifference:
    """A derived event or a dead letter that isn't what these rules would have published.

    `kind` is "missing" (it would be published and wasn't), "unexpected" (it was published and wouldn't be),
    "different" (it would have other content under the same id) or "notice" (the last notice would be another
    one: `actual` is the status that it gives, `expected` the one that it would give). `id` is the ce_id; for
    a notice the id of its order or suborder, for a dead letter the topic, partition and offset of its record
    with the reason.
    """

    topic: str
    kind: EventKind
    id: str
    order_id: str
    actual: str = ""
    expected: str = ""


@dataclass
class Published:
    """Differences of the derived topics and of orders.dlq."""

    counts: dict[str, Counter[EventKind]] = field(default_factory=dict)
    """Topic -> kind -> number of events."""
    notices: dict[str, Counter[tuple[str, str]]] = field(default_factory=dict)
    """Topic of notices -> (actual status, expected status) -> number of notices."""
    orders: int = 0
    """Orders with a difference."""
    inconclusive: int = 0
    """Orders that kept changing, or whose records no worker takes in."""
    by_arrival: int = 0
    """Orders whose labels, releases or commits another order of arrival explains."""
    incomplete: dict[str, str] = field(default_factory=dict)
    """Topics whose first records are gone, so that missing events can't be told from deleted ones -> a
    sentence naming the partition."""
    examples: list[EventDifference] = field(default_factory=list)

    @property
    def total(self) -> int:
        return sum(kinds.total() for kinds in self.counts.values())

    def take_over(self, other: Published) -> None:
        """Count those of another share too; not the examples."""
        for topic, kinds in other.counts.items():
            self.counts.setdefault(topic, Counter()).update(kinds)
        for topic, notices in other.notices.items():
            self.notices.setdefault(topic, Counter()).update(notices)
        self.orders += other.orders
        self.inconclusive += other.inconclusive
        self.by_arrival += other.by_arrival
        self.incomplete.update(other.incomplete)

    def add(self, differences: Sequence[EventDifference], examples: int) -> None:
        """Count the differences of one order, and keep them as examples while there are fewer than
        `examples`."""
        self.orders += 1
        for each in differences:
            self.counts.setdefault(each.topic, Counter())[each.kind] += 1
            if each.kind == "notice":
                self.notices.setdefault(each.topic, Counter())[each.actual, each.expected] += 1
        self.examples += differences[: max(0, examples - len(self.examples))]


@dataclass
class Deadlines:
    """Orders whose next deadline would change once their next event comes.

    The kinds are "later", "sooner", "new" (the order has none now) and "none" (it would have none any more).
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: list[tuple[str, str, int, int]] = field(default_factory=list)
    """(order id, kind, actual, expected); times in ms of the brokers' clock, 0 for no deadline."""


@dataclass
class WhatIfResult:
    """Everything that would change."""

    records: int
    """Records that were replayed."""
    seconds: float
    """How long the replay took."""
    rows: Differences
    published: Published
    deadlines: Deadlines

    @property
    def same(self) -> bool:
        """Whether nothing would change."""
        return not (self.rows.orders or self.published.orders or self.deadlines.counts)


class WhatIf:
    """One run of whatif() over the lanes of a share, with its temporary files in `folder`. Close it
    afterwards."""

    def __init__(self, settings: Settings, folder: Path, share: Share = ALL) -> None:
        self._settings = settings
        self._share = share
        self._states = LocalStates(folder / "states")
        self._events = LocalStates(folder / "events")
        self._live = LocalStates(folder / "changelog")
        self._read: dict[TopicPartition, int] = {}
        self._unexplained: Counter[str] = Counter()
        """Topic of BY_ARRIVAL -> number of orders whose events there no order of arrival explained."""
        self.published = Published()

    def close(self) -> None:
        for each in (self._states, self._events, self._live):
            each.close()

    async def run(self, examples: int, progress: Progress, say: Say) -> WhatIfResult:
        """Do what whatif() says."""
        async with (
            ddl.connect(self._settings) as connection,
            Replay(self._settings, self._states, self._keep_expected, self._share) as replay,
        ):
            if not self._settings.pooled:  # others would find their session read-only
                await connection.execute("SET default_transaction_read_only = on")
            say("folding the history")
            lag = await replay.lag()
            started = time.monotonic()
            await replay.catch_up(lag, progress)
            replayed, seconds = replay.records, time.monotonic() - started

            async def differ(order_ids: Sequence[str]) -> list[compare.Difference]:
                raw_ids = [UUID(order_id).bytes for order_id in order_ids]
                states = dict(zip(raw_ids, self._states.get(raw_ids), strict=True))
                output = project(
                    replay.folder, {key: state for key, state in states.items() if state is not None}
                )
                return await compare.with_rows(connection, output.rows, order_ids)

            rows = await compare_rows(
                replay,
                compared_by_id(replay, self._states, connection, differ),
                differ,
                total=await estimate(connection) // self._share.of,
                examples=examples,
                progress=progress,
                say=say,
            )
            say("reading what was published")
            await self._compare_published(replay, examples)
            say("comparing decisions")
            await self._compare_decisions(replay, examples)
            say("comparing deadlines")
            deadlines = await self._compare_deadlines(replay, examples)
            return WhatIfResult(replayed, seconds, rows, self.published, deadlines)

    # -- what would be, and what was published ---------------------------------------------------------------

    async def _keep_expected(self, lane: int, output: BatchOutput) -> None:
        for topic in _TOPICS:
            if topic in output.out:
                self._keep(
                    topic,
                    (
                        each
                        if isinstance(each.value, bytes)
                        else msgspec.structs.replace(each, value=each.content())
                        for each in output.out[topic]
                    ),
                    _EXPECTED,
                )

    def _keep(self, topic: str, records: Iterable[Any], side: int) -> set[bytes]:
        """Keep events of one side, _EXPECTED or _ACTUAL, on disk, and return the raw ids of their orders."""
        puts: dict[bytes, bytes | None] = {}
        first: dict[bytes, bytes] = {}
        commands: dict[bytes, bytes] = {}
        order_ids: set[bytes] = set()
        for record in records:
            event = parse_event(topic, record.key, record.value, record.headers)
            if event is None:
                continue
            order_ids.add(event.order_id)
            # The version of an order's attention counts decisions, too.
            if side == _ACTUAL and topic in _PINNING and (pin := _pin(record)) is not None:
                puts[_PINNED + event.order_id + pin[0]] = pin[1]
            if event.notice is not None:
                key = _NOTICE + event.order_id + event.subject + _SIDES[side]
                if topic in NOTICES:
                    puts[key] = event.notice
                else:
                    first.setdefault(key, event.notice)
            if topic not in NOTICES:
                commands[
                    _COMMAND + event.order_id + bytes([_NUMBER[topic]]) + event.subject + event.digest
                ] = event.text
        for key, kept in zip(commands, self._events.get(list(commands)), strict=True):
            sides = side if kept is None else kept[0] | side
            puts[key] = bytes([sides]) + commands[key]
        for key, kept in zip(first, self._events.get(list(first)), strict=True):
            if kept is None:
                puts[key] = first[key]
        self._events.write(puts)
        return order_ids

    async def _read_published(self, replay: Replay, number: int) -> None:
        """Read the derived topics on to where they end now, and note under `number` the orders with new
        events."""
        lanes = sorted(replay.ends(await replay.lag()))
        for topic in _TOPICS:
            for lane in lanes:
                partition = TopicPartition(topic, lane)
                if partition not in self._read:
                    start = (await replay.reader.beginnings([partition]))[partition]
                    self._read[partition] = start
                    if start:
                        self.published.incomplete.setdefault(topic, f"{topic}/{lane} begins at {start}")
                end = (await replay.reader.ends([partition]))[partition]
                if end > self._read[partition]:
                    async with aclosing(
                        replay.reader.read(partition, self._read[partition], end)
                    ) as stretches:
                        async for records, _ in stretches:
                            order_ids = self._keep(topic, records, _ACTUAL)
                            if number:
                                self._events.write(
                                    {_CHANGED + order_id: bytes([number]) for order_id in order_ids}
                                )
                self._read[partition] = max(end, self._read[partition])

    async def _compare_published(self, replay: Replay, examples: int) -> None:
        await self._read_published(replay, 0)
        changing: list[bytes] | None = None
        for number in range(1, ROUNDS + 1):
            lag, complete = await replay.reached(await replay.lag())
            await replay.catch_up(lag)
            await self._read_published(replay, number)
            again: list[bytes] = []
            suspects: dict[bytes, list[EventDifference]] = {}
            for order_id in self._all_orders() if changing is None else changing:
                differences = list(self._compare_order(order_id, complete=complete))
                if not differences:
                    continue
                (changed_in,) = self._events.get([_CHANGED + order_id])
                if changed_in is not None and changed_in[0] == number:
                    again.append(order_id)
                elif any(each.topic in BY_ARRIVAL for each in differences):
                    suspects[order_id] = differences
                    if len(suspects) == ORDERS_A_PASS:
                        await self._try_arrivals(replay, lag, suspects, examples)
                        suspects = {}
                else:
                    self.published.add(differences, examples)
            await self._try_arrivals(replay, lag, suspects, examples)
            changing = again
            if not changing or not complete:
                break
        self.published.inconclusive = len(changing or ())

    async def _compare_decisions(self, replay: Replay, examples: int) -> None:
        """Count the refunds that these rules owe and no worker has decided, although everything in the log is
        replayed."""
        for order_id, n in self._refunds_due():
            self._events.write({_REFUND_DUE + order_id: n.to_bytes(4, "big")})
        lag, complete = await replay.reached(await replay.lag())
        await replay.catch_up(lag)
        for order_id, n in self._refunds_due():
            (before,) = self._events.get([_REFUND_DUE + order_id])
            if complete and before is not None and int.from_bytes(before, "big") == n:
                decision_id = ids.uuid5_text(order_id, f"refund.decided:{n}")
                self.published.add(
                    [EventDifference(DECISIONS, "missing", decision_id, ids.text(order_id))], examples
                )

    def _refunds_due(self) -> Iterator[tuple[bytes, int]]:
        """Yield the orders that these rules owe a refund, with the number of the decision that would come
        next."""
        for states in self._states.states(2_000):
            for order_id, raw in states.items():
                order = codec.decode(raw)
                if order.created is None or order.proposed <= len(order.decisions):
                    continue
                totals = RunningTotals(order)
                view = view_of(order, totals)
                # A refund proposed on the way may not be owed at the end: proposals
                # depend on the order of arrival.
                if (
                    view.captured > view.decided
                    and next_refund(order, view, order_id, order.created.time, totals) is not None
                ):
                    yield order_id, len(order.decisions)

    def _all_orders(self) -> Iterator[bytes]:
        """Yield the raw ids of all orders with events on either side."""
        last = b""
        for prefix in (_COMMAND, _NOTICE):
            for key, _ in self._events.items(prefix):
                order_id = key[1 : 1 + _ID]
                if order_id != last:
                    last = order_id
                    if prefix == _COMMAND or next(self._events.items(_COMMAND + order_id), None) is None:
                        yield order_id

    def _compare_order(self, order_id: bytes, *, complete: bool) -> Iterator[EventDifference]:
        """Yield an order's differences.

        `complete`: everything in the log is replayed, so unexpected events count.
        """
        text = ids.text(order_id)
        events = list(self._events.items(_COMMAND + order_id))
        for (number, subject), group in groupby(
            events, key=lambda pair: (pair[0][1 + _ID], pair[0][2 + _ID : 2 + 2 * _ID])
        ):
            contents = [value for _, value in group]
            sides = {value[0] for value in contents}
            topic = _TOPICS[number]
            expected = _EXPECTED in sides and (topic not in self.published.incomplete or len(sides) > 1)
            actual = _ACTUAL in sides and complete
            if expected or actual:
                kind: EventKind = "different" if len(sides) > 1 else "missing" if expected else "unexpected"
                event_id = contents[0][1:].decode(errors="replace") or ids.text(subject)
                yield EventDifference(topic, kind, event_id, "" if topic == DLQ else text)
        yield from self._compare_notices(order_id, text)

    def _compare_notices(self, order_id: bytes, text: str) -> Iterator[EventDifference]:
        """Yield the differences of the last notices about the order and about each suborder."""
        notices = {key[1 + _ID :]: value for key, value in self._events.items(_NOTICE + order_id)}
        for subject in sorted({key[:-1] for key in notices}):
            actual, expected = (
                notices.get(subject + _SIDES[_ACTUAL]),
                notices.get(subject + _SIDES[_EXPECTED]),
            )
            topic = "order.status_changed" if subject == order_id else "suborder.updated"
            kind = msgspec.json.decode(actual or expected or b"").get("kind")
            if kind is not None:
                topic = ATTENTION
                actual, expected = actual or attention_told(kind), expected or attention_told(kind)
            elif subject == order_id:
                actual, expected = actual or b'{"status":"pending"}', expected or b'{"status":"pending"}'
            if actual is None or expected is None or actual == expected or topic in self.published.incomplete:
                continue
            statuses = status_text(msgspec.json.decode(actual)), status_text(msgspec.json.decode(expected))
            yield EventDifference(topic, "notice", ids.text(subject), text, *statuses)

    async def _try_arrivals(
        self, replay: Replay, lag: Lag, suspects: Mapping[bytes, list[EventDifference]], examples: int
    ) -> None:
        """Count the suspects' differences, except for those of topics in BY_ARRIVAL that another order of
        arrival explains."""
        by_lane: dict[int, dict[bytes, bytes]] = {}
        for order_id in suspects:
            by_lane.setdefault(replay.lane_of(order_id), {})[ids.text(order_id).encode()] = order_id
        for lane, keys in sorted(by_lane.items()):
            records: dict[bytes, list[Record]] = {order_id: [] for order_id in keys.values()}
            async with aclosing(replay.reader.lane({}, replay.ends(lag)[lane])) as stretches:
                async for stretch in stretches:
                    for record in stretch:
                        if record.key in keys:
                            records[keys[record.key]].append(record)
            for order_id, of_order in records.items():
                differences = suspects[order_id]
                tries = {
                    topic: ARRIVALS
                    if self._unexplained[topic] < UNEXPLAINED_MOST // self._share.of
                    else ARRIVALS_FEWER
                    for topic in {each.topic for each in differences} & BY_ARRIVAL
                }
                explained = self._explained(replay, lane, order_id, of_order, tries)
                self._unexplained.update(tries.keys() - explained)
                if explained:
                    self.published.by_arrival += 1
                differences = [each for each in differences if each.topic not in explained]
                if differences:
                    self.published.add(differences, examples)

    def _explained(
        self,
        replay: Replay,
        lane: int,
        order_id: bytes,
        records: Sequence[Record],
        tries: Mapping[str, int],
    ) -> set[str]:
        """Return the topics for which one of the first orders of arrival gives what was published.

        `tries` says of each topic how many are tried for it.
        """
        unexplained: dict[str, set[bytes]] = {topic: set() for topic in tries}
        for key, value in self._events.items(_COMMAND + order_id):
            if value[0] & _ACTUAL and (topic := _TOPICS[key[1 + _ID]]) in tries:
                unexplained[topic].add(key[2 + _ID :])
        pins = {
            int.from_bytes(key[1 + _ID :], "big"): event_id
            for key, event_id in self._events.items(_PINNED + order_id)
        }
        explained: set[str] = set()
        for number, arrival in enumerate(arrivals(records, pins, random.Random(order_id))):
            expected: dict[str, set[bytes]] = {
                topic: set() for topic in unexplained.keys() - explained if number < tries[topic]
            }
            if not expected:
                break
            states: dict[bytes, bytes] = {}
            for output in fold(replay.folder, lane, arrival, at_hand(states)):
                for topic, contents in expected.items():
                    events = [
                        parse_event(topic, each.key, each.content(), each.headers)
                        for each in output.out.get(topic, ())
                    ]
                    contents.update(each.subject + each.digest for each in events if each is not None)
                states.update(output.states)
            explained |= {topic for topic in expected if expected[topic] == unexplained[topic]}
        return explained

    # -- deadlines -------------------------------------------------------------------------------------------

    async def _compare_deadlines(self, replay: Replay, examples: int) -> Deadlines:
        """Compare the next deadline of each live state with the one that these settings give it."""
        result, ends = Deadlines(), {}
        lanes = sorted(replay.ends(await replay.lag()))
        for lane in lanes:
            partition = TopicPartition(self._settings.changelog_topic, lane)
            ends[lane] = await read_changelog(replay.reader, partition, 0, self._live)
        await replay.reached(await replay.lag())
        with TemporaryDirectory(prefix="orders-whatif-") as folder:
            later = LocalStates(Path(folder) / "later")
            try:
                for lane in lanes:
                    await read_changelog(
                        replay.reader, TopicPartition(self._settings.changelog_topic, lane), ends[lane], later
                    )
                for states in self._live.states(2_000):
                    changes = later.get(list(states))
                    for (order_id, raw), changed in zip(states.items(), changes, strict=True):
                        order = None if changed is not None else decode(raw)
                        if order is None:
                            continue
                        due = next_due(order, order_id, self._settings.deadline_policy)
                        if due != order.due:
                            kind = (
                                "none"
                                if not due
                                else "new"
                                if not order.due
                                else "later"
                                if due > order.due
                                else "sooner"
                            )
                            result.counts[kind] += 1
                            if len(result.examples) < examples:
                                result.examples.append((ids.text(order_id), kind, order.due, due))
            finally:
                later.close()
        return result


def attention_subject(order_id: bytes, kind: str) -> bytes:
    """The subject of the notices about one kind of what a person should look at."""
    return ids.uuid5(order_id, f"attention:{kind}")


def attention_told(kind: str, detail: str | None = None) -> bytes:
    """What a notice about it tells, as parse_event() does. `detail` None: that it doesn't hold."""
    if detail is None:
        return msgspec.json.encode({"kind": kind, "status": "cleared"})
    return msgspec.json.encode({"kind": kind, "status": "raised", "detail": detail})


def status_text(notice: Mapping[str, Any]) -> str:
    """What a notice tells, without what only one order has."""
    if "kind" in notice:
        return f"{notice['kind']} {notice['status']}"
    return f"{notice.get('status')}" + (
        f" ({notice['closed_because']})" if notice.get("closed_because") else ""
    )


class DerivedEvent(NamedTuple):
    """The parts of a derived event or a dead letter that are compared."""

    order_id: bytes
    subject: bytes
    """16 bytes: its ce_id; for a notice the id of its order or suborder, or attention_subject()."""
    digest: bytes
    """Of its content; empty for a notice."""
    notice: bytes | None
    """What it says of its subject's status and amounts, as JSON; None if it is no notice."""
    text: bytes
    """Its name for a person, where the subject's id says nothing; else empty."""


def parse_event(
    topic: str, key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes | None]]
) -> DerivedEvent | None:
    """Parse a record of `topic`; None for one that no worker of ours wrote."""
    texts: dict[str, Any] = dict(headers)
    if topic == DLQ:
        try:
            record_id = b"%b/%b@%b" % (texts["dlq_topic"], texts["dlq_partition"], texts["dlq_offset"])
            reason = bytes(texts["dlq_reason"])
        except (KeyError, TypeError):
            return None
        if texts["dlq_topic"] not in _REPLAYED:
            return None  # a bulk worker's: what it reads isn't replayed here
        subject = hashlib.blake2b(record_id, digest_size=_ID).digest()
        return DerivedEvent(subject, subject, _digest(reason), None, b"%s %s" % (record_id, reason))
    try:
        order_id, ce_id = _raw((key or b"").decode()), _raw(texts["ce_id"].decode())
    except (KeyError, ValueError, AttributeError):
        return None
    if topic not in NOTICES and topic != "suborder.created":
        return DerivedEvent(order_id, ce_id, _digest(value or b""), None, b"")
    if topic == "order.status_changed":
        change = read_foreign(_status_change, value)
        if change is None:
            return None
        return DerivedEvent(order_id, order_id, b"", msgspec.json.encode({"status": change.to}), b"")
    if topic == ATTENTION:
        said = read_foreign(_attention, value)
        if said is None:
            return None
        notice = attention_told(said.kind, said.detail if said.state == "raised" else None)
        return DerivedEvent(order_id, attention_subject(order_id, said.kind), b"", notice, b"")
    data: Any = read_foreign(_notice, value)
    try:
        subject = _raw(data.suborder_id)
    except (ValueError, AttributeError):
        return None
    data.suborder_id = msgspec.UNSET
    notice = msgspec.json.encode(data)
    # suborder.created is both: a command's ce_id follows from the suborder's id, and what it
    # says holds until a notice.
    return DerivedEvent(
        order_id, subject, _digest(value or b"") if topic == "suborder.created" else b"", notice, b""
    )


def _raw(text: str) -> bytes:
    """Return the 16 bytes of an id. Raises ValueError. The UUID class takes five times as long."""
    raw = bytes.fromhex(text.replace("-", ""))
    if len(raw) != _ID:
        raise ValueError(f"{text!r} is no id")
    return raw


class _StatusChange(msgspec.Struct):
    to: Any


class _Attention(msgspec.Struct):
    kind: str
    state: str
    detail: str


_attention: Final = msgspec.json.Decoder(_Attention).decode
_status_change: Final = msgspec.json.Decoder(_StatusChange).decode
_notice: Final = msgspec.json.Decoder(
    msgspec.defstruct(
        "_Notice", [("suborder_id", Any), *((name, Any, msgspec.UNSET) for name in NOTICE_FIELDS)]
    )
).decode


class _Versioned(msgspec.Struct):
    version: Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]


_version: Final = msgspec.json.Decoder(_Versioned).decode


def _pin(notice: Any) -> tuple[bytes, bytes] | None:
    """Return (the order's version, ce_id of the event that raised it) as a notice has them; None if it has no
    cause."""
    cause = dict(notice.headers).get("ce_causeid")
    data = read_foreign(_version, notice.value)
    return None if cause is None or data is None else (data.version.to_bytes(4, "big"), cause)


def _digest(value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=8).digest()


def arrivals(
    records: Sequence[Record], pins: Mapping[int, bytes], dice: random.Random
) -> Iterator[list[Record]]:
    """Yield orders in which a lane may have taken in one order's records, the likely ones first.

    Records of one topic keep their order, and often several of one topic are taken in together, as a worker
    does that takes what it has of a topic. `records` are sorted by time. `pins` gives, for a version of the
    order, the ce_id of the event that raised it to that version, where a notice says so. It never ends.
    """
    arrived = [_Arrived.of(at, record) for at, record in enumerate(records)]
    copied = {each.id for each in arrived if each.record.topic == REKEYED}
    # A record that reached another lane, from a producer that didn't know of new partitions
    # yet, counts as its copy only.
    as_copies = [each for each in arrived if each.record.topic == REKEYED or each.id not in copied]
    candidates = [
        _by_topic(each) for each in ((as_copies, arrived) if len(as_copies) < len(arrived) else (arrived,))
    ]
    for by_topic in candidates:
        yield [each.record for of_topic in by_topic for each in of_topic]  # one batch: topic after topic
        yield _arrange(by_topic, pins, lambda heads: min(heads, key=lambda topic: heads[topic].at))
        yield _arrange(by_topic, pins, min)
    while True:
        for by_topic in candidates:
            yield _arrange(by_topic, pins, _in_runs(by_topic, dice))
            # A repetition can make a notice under the version of another event.
            yield _arrange(by_topic, {}, _in_runs(by_topic, dice))


def _by_topic(arrived: Sequence[_Arrived]) -> list[list[_Arrived]]:
    return [[each for each in arrived if each.record.topic == topic] for topic in LANE]


def _in_runs(
    by_topic: Sequence[Sequence[_Arrived]], dice: random.Random
) -> Callable[[Mapping[int, _Arrived]], int]:
    """Return a function for _arrange that chooses a topic by chance and stays with it for some records.

    A worker with a backlog takes in all ten records of a topic before another topic's. If the topic were
    chosen anew for each record, one in a thousand arrangements would be like that.
    """
    current, left = -1, 0

    def choose(heads: Mapping[int, _Arrived]) -> int:
        nonlocal current, left
        if not left or current not in heads:
            current = dice.choice(list(heads))
            whole = len(by_topic[current])
            left = dice.choice((whole, dice.randint(1, whole)))
        left -= 1
        return current

    return choose


class _Arrived(NamedTuple):
    at: int
    record: Record
    id: bytes
    counts: bool
    """Whether it raises the order's version if it is new; a refund's decision doesn't."""

    @classmethod
    def of(cls, at: int, record: Record) -> _Arrived:
        headers = dict(record.headers)
        # In the structured binding the id is in the value: such a record is treated as
        # distinct from all others.
        return cls(
            at, record, headers.get("ce_id") or b"@%d" % at, headers.get("ce_type") != b"refund.decided"
        )


def _arrange(
    by_topic: Sequence[Sequence[_Arrived]],
    pins: Mapping[int, bytes],
    choose: Callable[[Mapping[int, _Arrived]], int],
) -> list[Record]:
    version_of = {event_id: version for version, event_id in pins.items()}
    positions, version, seen = [0] * len(by_topic), 0, set()
    arranged: list[Record] = []
    while heads := {
        topic: of[positions[topic]] for topic, of in enumerate(by_topic) if positions[topic] < len(of)
    }:
        next_one = pins.get(version + 1)
        due = next(
            (topic for topic, head in heads.items() if head.id == next_one and head.id not in seen), None
        )
        if due is None:
            free = {
                topic: head
                for topic, head in heads.items()
                if head.id in seen or not head.counts or version_of.get(head.id, version + 1) <= version + 1
            }
            due = choose(free or heads)
        topic, head = due, heads[due]
        positions[topic] += 1
        arranged.append(head.record)
        if head.counts and head.id not in seen:
            version += 1
        seen.add(head.id)
    return arranged


@dataclass(frozen=True, slots=True)
class _ShareWork:
    """What if, of the lanes of a share. Its result is a WhatIfResult."""

    settings: Settings
    folder: Path
    share: Share
    examples: int

    async def __call__(self, tell: Tell) -> None:
        run = WhatIf(self.settings, self.folder, self.share)
        try:
            result = await run.run(
                self.examples, lambda done, total: tell(Done(done, total)), lambda what: tell(Step(what))
            )
        finally:
            run.close()
        tell(Result(result))


def _put_together(shares: Sequence[WhatIfResult], examples: int) -> WhatIfResult:
    """Return what would change in all shares as one, with `examples` of each kind, those of the lowest order
    ids first."""
    if len(shares) == 1:
        return shares[0]
    published, deadlines = Published(), Deadlines()
    for each in shares:
        published.take_over(each.published)
        deadlines.counts.update(each.deadlines.counts)
    events = heapq.merge(*(each.published.examples for each in shares), key=attrgetter("order_id"))
    published.examples += islice(events, examples)
    orders = heapq.merge(*(each.deadlines.examples for each in shares))
    deadlines.examples += islice(orders, examples)
    return WhatIfResult(
        sum(each.records for each in shares),
        max(each.seconds for each in shares),
        put_together([each.rows for each in shares], examples),
        published,
        deadlines,
    )


async def whatif(settings: Settings, examples: int, progress: Progress, say: Say) -> WhatIfResult:
    """Replay the whole log with these rules and settings, and return what would change, with `examples` of
    each kind.

    Needs space below $TMPDIR for all states and the ids of all events. Blocks until all is read. Raises
    LogIncomplete, SchemaMismatch, TopicsMissing, and what the servers raise.
    """
    await migrate.check(settings)
    log = await look(settings)
    # Where topics got more partitions, a record may have been refused in two lanes, and a dead letter about
    # it lies in another partition than its lane's.
    count = 1 if log.former else log.processes
    with TemporaryDirectory(prefix="orders-whatif-") as folder:
        results = await share_out(
            [
                _ShareWork(settings, Path(folder) / str(number), Share(number, count), examples)
                for number in range(count)
            ],
            progress,
            say,
        )
    return _put_together(results, examples)
