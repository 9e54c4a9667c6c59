"""The audit: reads the log lane by lane, folds it with the reference, and compares what the pipeline wrote.

A lane is one partition number over all topics: all facts of its orders, their derived events, their states. Only one lane is in memory
at a time; what must be known of all lanes (re-keyed records, dead letters in another lane's partition, the ids of rows) is kept small or
on disk.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import IO, Any, Final, NamedTuple
from uuid import UUID

from aiokafka import TopicPartition
from aiokafka.partitioner import murmur2

from audit.findings import Finding, Report, Severity
from audit.log import Log, Record, Span
from audit.reference import (
    LATE,
    MOST_PASSED_ON,
    Fact,
    NaturalKey,
    Order,
    Place,
    Reading,
    Refusal,
    Refused,
    parse,
    parse_decision,
    unwrap,
)
from audit.stores import TABLES, Cache, Row, Rows, StoreUnavailable, chunks, columns, comparable, state_readers
from domain.topics import CHECKOUT, DECISIONS, DLQ, INPUT, LANE, REKEYED

SAME: Final = {
    "suborder.created": "suborder_id",
    "stock.reserve": "reservation_id",
    "payment.initiate": "payment_request_id",
    "stock.restock": "restock_id",
    "refund.request": "refund_id",
}
"""Derived events whose set and content don't depend on the order of arrival, and the field that is their id."""
_ORDER_CODES: Final = ("order_currency", "order_item", "order_seller")
_ROWS_AT_ONCE: Final = 5_000
_KEYS_AT_ONCE: Final = 500

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""


@dataclass(frozen=True, slots=True)
class Target:
    """What is audited. `redis` None: the cache is not looked at. `partitions`: by how many an order's lane is found (ORDERS_PARTITIONS);
    None: as many as the topics have, which is not the same once partitions were added.
    """

    brokers: Sequence[str]
    group: str
    changelog: str
    postgres: str
    redis: str | None
    partitions: int | None = None


class Raw(NamedTuple):
    """What a dead letter must hold of its record. `key` is None twice over: `any_key` for a re-keyed record, whose key was replaced."""

    digest: bytes
    key: bytes | None
    any_key: bool


@dataclass(slots=True)
class Wanted:
    """A refused natural key, or a refused record that has none: at least one dead letter of one of its places is due."""

    order_id: str
    codes: set[str]
    place: Place
    found: bool = False


@dataclass(slots=True)
class Held:
    """An order of the lane. `appended` = the broker's time of its first fact, ms; `seen` = derived events met on their topics."""

    order: Order
    appended: int
    seen: set[tuple[str, str]] = field(default_factory=set)
    readings: list[Reading] = field(default_factory=list)
    expected: list[dict[tuple[str, str], dict[str, Any]]] = field(default_factory=list)


@dataclass(slots=True)
class Lane:
    number: int
    held: dict[str, Held] = field(default_factory=dict)
    raws: dict[Place, Raw] = field(default_factory=dict)
    wanted: dict[Place, Wanted] = field(default_factory=dict)
    origins: set[Place] = field(default_factory=set)


class Letter(NamedTuple):
    place: Place
    code: str
    raw: Raw
    where: str


class Auditor:
    """One audit. `run` may take minutes: it reads the whole log once."""

    def __init__(self, target: Target, *, most_findings: int = 100, progress: Progress | None = None) -> None:
        self._target = target
        self._most = most_findings
        self._progress = progress or (lambda what, done, whole: None)
        self._done = 0
        self._whole = 0
        self.report = Report(target.group)
        self._lanes = 0
        self._counts: dict[str, int] = {}
        self._spans: dict[TopicPartition, Span] = {}
        self._ends: dict[TopicPartition, int] = {}
        self._commits: dict[TopicPartition, int] = {}
        self._spans_written: dict[TopicPartition, Span] = {}
        self._truncated = False
        self._unsettled: list[Finding] = []
        self._unsettled_more: Counter[tuple[str, Severity]] = Counter()
        self._to_be_rekeyed: dict[Place, str] = {}
        self._rekeyed: set[Place] = set()
        self._stray_letters: list[Letter] = []
        self._unlettered: dict[Place, Wanted] = {}
        self._unlettered_raws: dict[Place, Raw] = {}
        self._expected_rows: dict[tuple[str, int], IO[bytes]] = {}
        self._rows_met = dict.fromkeys(TABLES, 0)
        self._extra_rows: set[tuple[str, bytes]] = set()
        self._version_of, self._status_of = state_readers()

    async def run(self) -> Report:
        """Audit everything. Raises LogUnavailable or StoreUnavailable when a server isn't there or has no orders."""
        with ExitStack() as files:
            async with Log(self._target.brokers) as log, Rows.open(self._target.postgres) as rows:
                cache = Cache(self._target.redis) if self._target.redis else None
                try:
                    await self._look(log)
                    for number in range(self._lanes):
                        lane = Lane(number)
                        await self._fold(log, lane)
                        await self._look_at_outputs(log, lane)
                        await self._judge_letters(log, lane)
                        await self._judge_derived(log, lane)
                        await self._judge_changelog(log, lane)
                        await self._judge_rows(rows, lane, files)
                        if cache is not None:
                            await self._judge_cache(cache, lane)
                    await self._judge_phantoms(rows)
                    await self._reconcile(log)
                    await self._settle(log)
                    if cache is not None and cache.failure:
                        self.report.notices.append(f"Redis was not checked: {cache.failure}")
                finally:
                    if cache is not None:
                        await cache.close()
        return self.report

    # -- what there is ----------------------------------------------------------------------------------------------

    async def _look(self, log: Log) -> None:
        report = self.report
        topics = [*LANE, *SAME, DLQ, self._target.changelog]
        self._counts = await log.partitions(topics)
        report.missing_topics = [topic for topic in topics if topic not in self._counts]
        present = [topic for topic in LANE if topic in self._counts]
        if not present:
            raise StoreUnavailable("Kafka has none of the input topics; run `orders init`")
        if report.missing_topics:
            report.notices.append(f"topics missing: {', '.join(report.missing_topics)}; `orders init` creates them")
        self._lanes = max(self._counts[topic] for topic in present)
        for topic, count in self._counts.items():
            if count != self._lanes:
                self._broken("accounting", "", topic, f"{self._lanes} partitions, as the other topics", str(count))
        partitions = [TopicPartition(topic, number) for topic in present for number in range(self._counts[topic])]
        spans = await log.spans(partitions)
        self._commits = await log.committed(self._target.group)
        self._ends = {partition: span.end for partition, span in spans.items()}
        for partition, span in spans.items():
            committed = self._commits.get(partition, span.start)
            if committed > span.end:
                self._broken("accounting", "", _name(partition), f"at most {span.end} committed", str(committed))
            to = min(max(committed, span.start), span.end)
            report.lag += span.end - to
            self._spans[partition] = Span(span.start, to)
            if span.start > 0:
                report.seen_from[_name(partition)] = span.start
                self._truncated = True
        if self._truncated:
            report.notices.append("the log's beginning is gone: what it can't prove any more is reported, not broken")
        others = [TopicPartition(topic, n) for topic in [*SAME, DLQ, self._target.changelog] for n in range(self._counts.get(topic, 0))]
        self._whole = sum(span.end - span.start for span in [*self._spans.values(), *(await log.spans(others)).values()])
        report.settled = report.lag == 0

    async def _look_at_outputs(self, log: Log, lane: Lane) -> None:
        """What can be read of what the pipeline wrote: taken after the fold, so that it holds at least what was committed before."""
        topics = [topic for topic in (*SAME, DLQ, self._target.changelog) if lane.number < self._counts.get(topic, 0)]
        self._spans_written = await log.spans([TopicPartition(topic, lane.number) for topic in topics])

    def _partition_of(self, order_id: str) -> int:
        return int((murmur2(order_id.encode()) & 0x7FFFFFFF) % (self._target.partitions or self._lanes))

    # -- the fold ---------------------------------------------------------------------------------------------------

    async def _fold(self, log: Log, lane: Lane) -> None:
        rekeyed = TopicPartition(REKEYED, lane.number)
        if rekeyed in self._spans:
            span = self._spans[rekeyed]
            # Copies beyond what is committed are no facts yet, but prove that their records were passed on.
            async for record in self._read(log, rekeyed, Span(span.start, self._ends[rekeyed])):
                self._take_rekeyed(lane, record, folded=record.offset < span.end)
        for topic in INPUT:
            partition = TopicPartition(topic, lane.number)
            if partition in self._spans:
                async for record in self._read(log, partition, self._spans[partition]):
                    self._take(lane, record)
        decisions = TopicPartition(DECISIONS, lane.number)
        if decisions in self._spans:
            async for record in self._read(log, decisions, self._spans[decisions]):
                self._take_decision(lane, record)
        for held in lane.held.values():
            held.readings = held.order.readings()
            self._count_order(held)
            self._want_letters(lane, held)
            self._judge_refunds(held)

    def _take(self, lane: Lane, record: Record) -> None:
        place = Place(record.topic, record.partition, record.offset)
        self.report.counts["records"] += 1
        fact = parse(record.topic, record.key, record.value, record.headers)
        if isinstance(fact, Refusal):
            self._refuse(lane, record, place, fact, any_key=False)
            return
        if record.topic == CHECKOUT:
            return
        home = self._partition_of(fact.order_id)
        passed_on = home != lane.number or record.key != fact.order_id.encode()
        if passed_on and _size(record) > MOST_PASSED_ON:
            self._refuse(lane, record, place, Refusal("record_too_large", "under another key"), any_key=False)
        elif home != lane.number:
            self._to_be_rekeyed[place] = fact.order_id
        elif place not in lane.origins:
            self._add(lane, record, fact, [place], rekeyed=record.key != fact.order_id.encode())

    def _take_rekeyed(self, lane: Lane, record: Record, *, folded: bool) -> None:
        place = Place(record.topic, record.partition, record.offset)
        origin = _coordinates(record.headers, "rekeyed")
        if origin is None:
            self._broken("accounting", "", str(place), "headers rekeyed_topic, rekeyed_partition, rekeyed_offset", "missing or malformed")
            return
        self._rekeyed.add(origin)
        if not folded:
            return
        self.report.counts["rekeyed"] += 1
        lane.origins.add(origin)
        fact = parse(origin.topic, record.key, record.value, _own_headers(record.headers))
        if isinstance(fact, Refusal):
            self._refuse(lane, record, place, fact, any_key=True, also=origin)
        elif self._partition_of(fact.order_id) != lane.number:
            self._broken("accounting", fact.order_id, str(place), f"partition {self._partition_of(fact.order_id)}", str(lane.number))
        else:
            self._add(lane, record, fact, [place, origin], rekeyed=True)

    def _add(self, lane: Lane, record: Record, fact: Fact, places: list[Place], *, rekeyed: bool) -> None:
        held = lane.held.get(fact.order_id)
        if held is None:
            held = lane.held[fact.order_id] = Held(Order(fact.order_id), record.timestamp)
        before = held.order.candidates.get(fact.key)
        candidate = held.order.add(fact, places[0], rekeyed=rekeyed)
        if isinstance(candidate, Refusal):
            self._refuse(lane, record, places[0], candidate, any_key=rekeyed, also=places[1] if rekeyed and places[1:] else None)
            return
        candidate.places.extend(places[1:])
        if before is None or candidate.places == places:
            self.report.counts["facts" if len(held.order.candidates[fact.key]) == 1 else "conflicts"] += 1
        else:
            self.report.counts["duplicates"] += 1
        if len(held.order.candidates[fact.key]) > 1:
            for place in places if _size(record) <= MOST_PASSED_ON else ():
                lane.raws[place] = _raw(record, any_key=rekeyed)
        held.appended = min(held.appended, record.timestamp)

    def _take_decision(self, lane: Lane, record: Record) -> None:
        place = Place(record.topic, record.partition, record.offset)
        decision = parse_decision(record.value, record.headers)
        if isinstance(decision, Refusal):
            self._report("accounting", "", str(place), "refund.decided", f"{decision.code} {decision.detail}")
            return
        if isinstance(decision, Fact):
            self._add(lane, record, decision, [place], rekeyed=False)
            return
        held = lane.held.get(decision.order_id)
        if held is None:
            self._when_settled("refunds", decision.order_id, str(place), "a decision about a known order", f"refund {decision.n}")
        elif not held.order.decide(decision) and decision.n > len(held.order.decisions):
            self._when_settled("refunds", decision.order_id, str(place), f"decision {len(held.order.decisions)} next", str(decision.n))

    def _refuse(self, lane: Lane, record: Record, place: Place, refusal: Refusal, *, any_key: bool, also: Place | None = None) -> None:
        wanted = Wanted("", {refusal.code}, place)
        for each in (place, also):
            if each is not None:
                lane.wanted[each] = wanted
                if _size(record) <= MOST_PASSED_ON:
                    lane.raws[each] = _raw(record, any_key=any_key)
        self.report.counts["refused"] += 1

    def _want_letters(self, lane: Lane, held: Held) -> None:
        """Note the refused keys of an order: of a conflict every content that isn't surely the first, and what the order's sake refuses."""
        order = held.order
        refused: dict[NaturalKey, set[str]] = {}
        for reading in held.readings:
            for key, refusal in reading.refused.items():
                refused.setdefault(key, set()).add(refusal.code)
        for key, candidates in order.candidates.items():
            codes = set(refused.get(key, ()))
            if len(candidates) > 1:
                codes.add("key_conflict")
            if not codes:
                continue
            winners = order.winners(key)
            losers = [each for each in candidates if key in refused or len(winners) > 1 or each is not winners[0]]
            wanted = Wanted(order.order_id, codes, losers[0].places[0])
            self.report.counts["refused_keys"] += 1
            for candidate in losers:
                lane.wanted.update(dict.fromkeys(candidate.places, wanted))

    def _count_order(self, held: Held) -> None:
        reading, counts = held.readings[0], self.report.counts
        if reading.created is None:
            counts["waiting_orders"] += 1
            counts["waiting_facts"] += len(reading.facts)
            since = time.time() - held.appended / 1000
            old = since > LATE.total_seconds()
            counts["waiting_facts_old"] += len(reading.facts) if old else 0
            self._report(
                "waiting",
                reading.order_id,
                "log",
                "order.created",
                f"{len(reading.facts)} facts wait for it, the first since {since / 3600:.1f} h" + (" (more than a day)" if old else ""),
            )
            return
        counts["orders"] += 1
        self.report.checked[reading.status()] += 1
        for anomaly in reading.anomalies():
            self.report.anomalies[anomaly.code] += 1
            self._report("anomaly", reading.order_id, anomaly.code, "", anomaly.detail)

    def _judge_refunds(self, held: Held) -> None:
        reading = held.readings[0]
        if not reading.decisions and (reading.created is None or reading.owed() == []):
            return
        if reading.created is None:
            self._when_settled(
                "refunds", reading.order_id, DECISIONS, "order.created before a decision", f"{len(reading.decisions)} decisions"
            )
            return
        try:
            amounts = [reading.decided(decision) for decision in reading.decisions]
        except ValueError as error:
            self._broken("refunds", reading.order_id, DECISIONS, "amounts in the order's currency", str(error))
            return
        if any(amount <= 0 for amount in amounts) or sum(amounts) > max(each.captured for each in held.readings):
            self._when_settled("refunds", reading.order_id, DECISIONS, f"0 <= refunds <= captured {reading.captured}", str(amounts))
        units = [unit for decision in reading.decisions for unit in decision.units]
        if len(set(units)) < len(units):
            self._broken("refunds", reading.order_id, DECISIONS, "each unit paid for once", str(sorted(units)))
        for owed in reading.owed():
            if owed.covered and all(owed in each.owed() for each in held.readings):
                self._when_settled(
                    "refunds", reading.order_id, DECISIONS, f"{owed.cause} {owed.cause_id}: {owed.amount} decided", "undecided"
                )

    # -- dead letters -----------------------------------------------------------------------------------------------

    async def _judge_letters(self, log: Log, lane: Lane) -> None:
        partition = TopicPartition(DLQ, lane.number)
        async for record in self._read_all(log, partition):
            self._judge_letter(lane, record)
        for place, wanted in lane.wanted.items():
            if not wanted.found:
                self._unlettered[place] = wanted
                if place in lane.raws:
                    self._unlettered_raws[place] = lane.raws[place]

    def _judge_letter(self, lane: Lane, record: Record) -> None:
        where = f"{DLQ}/{record.partition}@{record.offset}"
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
        place = _coordinates(record.headers, "dlq")
        code = headers.get("dlq_reason", "")
        self.report.counts["dead_letters"] += 1
        self.report.dead_letters[code or "(none)"] += 1
        missing = [name for name in ("dlq_reason", "dlq_detail", "dlq_time") if name not in headers]
        if place is None or missing:
            self._broken(
                "letters", "", where, "headers dlq_topic, dlq_partition, dlq_offset, dlq_reason, dlq_detail, dlq_time", str(missing)
            )
            return
        letter = Letter(place, code, _raw(record, any_key=False), where)
        span = self._spans.get(TopicPartition(place.topic, place.partition))
        if span is None:
            self._broken("letters", "", where, "coordinates of an input record", str(place))
        elif not span.start <= place.offset < span.end:
            self.report.counts["letters_out_of_sight"] += 1
        elif place in lane.wanted:
            self._match(letter, lane.wanted[place], lane.raws.get(place))
        elif place.partition != lane.number or place in lane.origins or place in self._to_be_rekeyed:
            self._stray_letters.append(letter)
        else:
            # Only at rest: what refuses it may not be committed yet.
            self._when_settled("letters", "", where, f"{place} is a fact that counts", f"dead letter with reason {code}")

    def _match(self, letter: Letter, wanted: Wanted, raw: Raw | None) -> None:
        wanted.found = True
        if letter.code not in wanted.codes:
            self._report("letters", wanted.order_id, letter.where, " or ".join(sorted(wanted.codes)), letter.code, letter.place)
        if raw is None or letter.code in _ORDER_CODES:
            return
        if raw.digest != letter.raw.digest or not (raw.any_key or raw.key == letter.raw.key):
            self._broken(
                "letters", wanted.order_id, letter.where, f"key, value and headers of {letter.place}", "something else", letter.place
            )

    async def _reconcile(self, log: Log) -> None:
        """What a lane could not decide alone: letters in another lane's partition, and re-keyed records."""
        for letter in self._stray_letters:
            wanted = self._unlettered.get(letter.place)
            if wanted is not None:
                self._match(letter, wanted, self._unlettered_raws.get(letter.place))
                continue
            partition = TopicPartition(letter.place.topic, letter.place.partition)
            async for record in log.read(partition, Span(letter.place.offset, letter.place.offset + 1)):
                outcome = parse(record.topic, record.key, record.value, record.headers)
                if isinstance(outcome, Fact):
                    self._report("letters", outcome.order_id, letter.where, "in the partition of its record", letter.code, letter.place)
        for wanted in {id(wanted): wanted for wanted in self._unlettered.values() if not wanted.found}.values():
            codes = " or ".join(sorted(wanted.codes))
            self._finding("accounting", wanted.order_id, f"{DLQ}", f"a dead letter ({codes})", "none", wanted.place, truncatable=False)
        for place, order_id in self._to_be_rekeyed.items():
            if place not in self._rekeyed:
                self._broken("accounting", order_id, REKEYED, f"a copy in partition {self._partition_of(order_id)}", "none", place)

    # -- derived events ---------------------------------------------------------------------------------------------

    async def _judge_derived(self, log: Log, lane: Lane) -> None:
        for held in lane.held.values():
            try:
                held.expected = [reading.derived() for reading in held.readings]
            except ValueError:
                held.expected = [{}]  # an amount that is none: already told
        for type_ in SAME:
            partition = TopicPartition(type_, lane.number)
            async for record in self._read_all(log, partition):
                self._judge_event(lane, type_, record)
            span = self._spans_written.get(partition)
            if span is not None and span.start > 0:
                self.report.notices.append(f"{_name(partition)} begins at {span.start}: events that left it are not looked for")
                continue
            for held in lane.held.values():
                certain = set.intersection(*(set(expected) for expected in held.expected))
                for kind, made_id in sorted(certain - held.seen):
                    if kind == type_:
                        self._broken("derived", held.order.order_id, type_, f"{SAME[type_]} {made_id}", "none", self._cause(held, type_))

    def _judge_event(self, lane: Lane, type_: str, record: Record) -> None:
        where = f"{type_}/{record.partition}@{record.offset}"
        try:
            event = unwrap(record.value, record.headers)
            data = event.data if isinstance(event.data, dict) else {}
            order_id, made_id = str(UUID(data["order_id"])), str(UUID(data[SAME[type_]]))
        except (Refused, KeyError, ValueError, TypeError, AttributeError) as error:
            self._broken("derived", "", where, "a CloudEvent with order_id and " + SAME[type_], str(error))
            return
        self.report.counts["derived_events"] += 1
        held = lane.held.get(order_id)
        contents = [expected[type_, made_id] for expected in held.expected if (type_, made_id) in expected] if held else []
        if held is None or not contents:
            self._when_settled("derived", order_id, where, "no such event", f"{SAME[type_]} {made_id}")
            return
        if (type_, made_id) in held.seen:
            self.report.counts["derived_repetitions"] += 1
        held.seen.add((type_, made_id))
        differing = [_difference(content, data) for content in contents]
        if all(differing):
            self._broken("derived", order_id, where, *_pair(differing), self._cause(held, type_))
        event_id = held.readings[0].event_id(type_, made_id)
        if event.type != type_ or event.id != event_id:
            self._broken("derived", order_id, where, f"type {type_}, id {event_id}", f"type {event.type}, id {event.id}")

    @staticmethod
    def _cause(held: Held, type_: str) -> Place | None:
        key = next((key for key in held.order.candidates if key[0] == ("return" if type_ == "stock.restock" else "created")), None)
        return held.order.winners(key)[0].places[0] if key is not None else None

    # -- states -----------------------------------------------------------------------------------------------------

    async def _judge_changelog(self, log: Log, lane: Lane) -> None:
        topic = self._target.changelog
        if topic not in self._counts:
            return
        last: dict[str, tuple[int, int, str | None]] = {}
        async for record in self._read_all(log, TopicPartition(topic, lane.number)):
            where = f"{topic}/{record.partition}@{record.offset}"
            try:
                order_id = str(UUID(bytes=record.key or b""))
                version = self._version_of(record.value or b"")
                status = self._status_of(record.value or b"") if self._status_of else None
            except Exception as error:  # whatever a codec raises for bytes that are no state
                self._broken("changelog", "", where, "16 bytes of an order id, and a state", f"{type(error).__name__}: {error}")
                continue
            if order_id in last and version < last[order_id][0]:
                self._broken("versions", order_id, where, f"at least {last[order_id][0]}, as at {last[order_id][1]}", str(version))
            if order_id not in last or version >= last[order_id][0]:
                last[order_id] = version, record.offset, status
        self.report.counts["states"] += len(last)
        for order_id, (version, offset, status) in last.items():
            held, where = lane.held.get(order_id), f"{topic}/{lane.number}@{offset}"
            if held is None:
                self._when_settled("changelog", order_id, where, "no facts of this order", f"a state of version {version}")
            elif version < held.order.version:
                self._broken("changelog", order_id, where, f"version {held.order.version}", f"version {version}")
            elif version > held.order.version:
                self._when_settled("changelog", order_id, where, f"version {held.order.version}", f"version {version}")
            elif status is not None and held.readings[0].created is not None:
                right = {reading.status() for reading in held.readings if reading.created is not None}
                if status not in right:
                    self._when_settled("changelog", order_id, where, f"status {' or '.join(sorted(right))}", f"status {status}")
        for order_id, held in lane.held.items():
            if order_id not in last:
                self._broken("changelog", order_id, f"{topic}/{lane.number}", f"a state of version {held.order.version}", "none")

    # -- rows -------------------------------------------------------------------------------------------------------

    async def _judge_rows(self, rows: Rows, lane: Lane, files: ExitStack) -> None:
        identities: dict[str, list[bytes]] = {table: [] for table in TABLES}
        ids = sorted(lane.held)
        for some in chunks(ids, _ROWS_AT_ONCE):
            found = await rows.of_orders(some)
            for order_id in some:
                held = lane.held[order_id]
                known = [reading.rows() for reading in held.readings]
                # Where the log allows several readings, the nearest is compared.
                expected = min(known, key=lambda each: _distance(each, found.get(order_id, {})))
                for table in TABLES:
                    own = found.get(order_id, {}).get(table, [])
                    self._judge_table(held, table, expected[table], own)
                    self._rows_met[table] += len(own)
                    identities[table] += [UUID(order_id).bytes + UUID(row[0]).bytes for row in expected[table]]
            self._progress("rows", self._done, self._whole)
        for table in TABLES:
            spill = files.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - closed with `files`
            spill.write(b"".join(sorted(identities[table])))
            self._expected_rows[table, lane.number] = spill

    def _judge_table(self, held: Held, table: str, expected: Iterable[Row], found: Iterable[Row]) -> None:
        order_id, names = held.order.order_id, columns(table)
        there: dict[str, list[Row]] = {}
        for row in found:
            there.setdefault(row[0], []).append(row)
        for wanted in (comparable(table, row) for row in expected):
            self.report.checked[table] += 1
            twins = there.pop(wanted[0], [])
            where, fact = f"{table} {wanted[0]}", _fact_behind(held, table, wanted[0])
            if not twins:
                self._broken("rows", order_id, where, f"a row of version {wanted[-1]}", "none", fact)
                continue
            if len(twins) > 1:
                self._broken("rows", order_id, where, "one row", f"{len(twins)} rows: {', '.join(str(row[1:4]) for row in twins)}", fact)
            row = min(twins, key=lambda each: _columns_apart(wanted, each))
            differing = [index for index in range(len(names)) if wanted[index] != row[index]]
            if not differing:
                continue
            add = self._broken if row[-1] < wanted[-1] else self._when_settled
            for index in differing:
                add("rows", order_id, f"{where} {names[index]}", _plain(wanted[index]), _plain(row[index]), fact)
        for row_id, extra in there.items():
            self._extra_rows.add((table, UUID(order_id).bytes + UUID(row_id).bytes))
            self._when_settled("rows", order_id, f"{table} {row_id}", "no row", f"a row of version {extra[0][-1]}")

    async def _judge_phantoms(self, rows: Rows) -> None:
        """Rows of orders that the log doesn't know. Counting is enough unless there are some."""
        for table in TABLES:
            self._progress(f"counting {table}", self._done, self._whole)
            if await rows.count(table) == self._rows_met[table]:
                continue
            known = heapq.merge(*(_pieces(spill) for (name, _), spill in self._expected_rows.items() if name == table))
            nearest = next(known, None)
            async for order, row in rows.identities(table):
                identity = order + row
                while nearest is not None and nearest < identity:
                    nearest = next(known, None)
                if nearest != identity and (table, identity) not in self._extra_rows:
                    where = f"{table} {UUID(bytes=row)}"
                    self._when_settled("rows", str(UUID(bytes=order)), where, "no row: the log has no such order", "a row")

    # -- cache ------------------------------------------------------------------------------------------------------

    async def _judge_cache(self, cache: Cache, lane: Lane) -> None:
        known = [held for held in lane.held.values() if held.readings[0].created is not None]
        for some in chunks(known, _KEYS_AT_ONCE):
            summaries = await cache.values([f"order:{held.order.order_id}" for held in some])
            scores = await cache.scores([(f"user:{held.readings[0].known['user_id']}:orders", held.order.order_id) for held in some])
            for held, summary, score in zip(some, summaries, scores, strict=True):
                if summary is not None:
                    self.report.counts["cached_orders"] += 1
                    self._judge_summary(held, summary)
                created = {_milliseconds(reading) for reading in held.readings if reading.created is not None}
                if score is not None and all(abs(score - ms) >= 1 for ms in created):
                    where = f"user:{held.readings[0].known['user_id']}:orders"
                    self._when_settled("cache", held.order.order_id, where, f"score {min(created):.0f}", f"{score:.0f}")
            parcels = [
                (held, shipment_id, scan.content)
                for held in some
                for shipment_id, scan in held.readings[0].parcels.items()
                if "tracking_number" in scan.content
            ]
            entries = await cache.values([f"tracking:{content['tracking_number']}" for _, _, content in parcels])
            for (held, shipment_id, content), entry in zip(parcels, entries, strict=True):
                if entry is not None:
                    self._judge_tracking(held, shipment_id, content, entry)

    def _judge_summary(self, held: Held, summary: bytes) -> None:
        order_id, where = held.order.order_id, f"order:{held.order.order_id}"
        try:
            found = json.loads(summary)
            values = [
                {
                    "order_id": row[0],
                    "user_id": row[1],
                    "status": row[3],
                    "currency": row[4],
                    "total_amount": row[5],
                    "created_at": row[7],
                    "updated_at": row[8],
                    "version": row[9],
                }
                for row in (reading.rows()["orders_order"][0] for reading in held.readings if reading.created is not None)
            ]
            differing = [_difference(expected, found) for expected in values]
        except (ValueError, TypeError, AttributeError) as error:
            self._broken("cache", order_id, where, "a JSON object", str(error))
            return
        if all(differing):
            self._when_settled("cache", order_id, where, *_pair(differing))

    def _judge_tracking(self, held: Held, shipment_id: str, content: Mapping[str, Any], entry: bytes) -> None:
        order_id, where = held.order.order_id, f"tracking:{content['tracking_number'][:40]}"
        try:
            own = [each["status"] for each in json.loads(entry) if (each["order_id"], each["shipment_id"]) == (order_id, shipment_id)]
        except (ValueError, TypeError, KeyError) as error:
            self._broken("cache", order_id, where, "a JSON array of parcels", f"{type(error).__name__}: {error}")
            return
        if any(status != content["status"] for status in own) and len(held.readings) == 1:
            self._when_settled("cache", order_id, where, f"{shipment_id} {content['status']}", str(own))

    # -- findings ---------------------------------------------------------------------------------------------------

    async def _settle(self, log: Log) -> None:
        """Whether anything moved meanwhile. What only holds at rest is broken only if nothing did."""
        report = self.report
        if report.settled:
            ends = {partition: span.end for partition, span in (await log.spans(list(self._ends))).items()}
            report.settled = ends == self._ends and await log.committed(self._target.group) == self._commits
        if report.settled:
            for finding in self._unsettled:
                report.add(finding, self._most)
            for (check, severity), count in self._unsettled_more.items():
                (report.broken if severity == "broken" else report.reported)[check] += count
        else:
            what = f"lag {report.lag}" if report.lag else "records came in during the audit"
            unjudged = len(self._unsettled) + self._unsettled_more.total()
            report.notices.append(
                f"{what}: the pipeline is at work, so rows may be ahead of what is committed; {unjudged} differences that only count "
                "at rest were not judged. Run `orders wait`, then audit again"
            )

    def _finding(
        self, check: str, order_id: str, where: str, expected: str, found: str, fact: Place | None = None, *, truncatable: bool = True
    ) -> None:
        severity: Severity = (
            "report" if self._truncated and truncatable and check in ("rows", "derived", "changelog", "refunds") else "broken"
        )
        self.report.add(Finding(check, severity, order_id, where, expected, found, str(fact or "")), self._most)

    def _broken(self, check: str, order_id: str, where: str, expected: str, found: str, fact: Place | None = None) -> None:
        self._finding(check, order_id, where, expected, found, fact)

    def _when_settled(self, check: str, order_id: str, where: str, expected: str, found: str, fact: Place | None = None) -> None:
        """Broken if the pipeline is at rest."""
        severity: Severity = "report" if self._truncated else "broken"
        if len(self._unsettled) < self._most:
            self._unsettled.append(Finding(check, severity, order_id, where, expected, found, str(fact or "")))
        else:
            self._unsettled_more[check, severity] += 1

    def _report(self, check: str, order_id: str, where: str, expected: str, found: str, fact: Place | None = None) -> None:
        self.report.add(Finding(check, "report", order_id, where, expected, found, str(fact or "")), self._most)

    def _read(self, log: Log, partition: TopicPartition, span: Span) -> AsyncIterator[Record]:
        def progress(count: int) -> None:
            self._done += count
            self._progress(_name(partition), self._done, self._whole)

        return log.read(partition, span, progress)

    def _read_all(self, log: Log, partition: TopicPartition) -> AsyncIterator[Record]:
        """What was written to a topic of the lane; nothing if the topic doesn't exist."""
        return self._read(log, partition, self._spans_written.get(partition, Span(0, 0)))


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"


def _coordinates(headers: Iterable[tuple[str, bytes | None]], prefix: str) -> Place | None:
    """The place that headers PREFIX_topic, PREFIX_partition and PREFIX_offset name."""
    texts = {name: (value or b"").decode("utf-8", "replace") for name, value in headers}
    try:
        return Place(texts[f"{prefix}_topic"], int(texts[f"{prefix}_partition"]), int(texts[f"{prefix}_offset"]))
    except (KeyError, ValueError):
        return None


def _own_headers(headers: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
    """Headers as they came, without those that the pipeline adds."""
    return [(name, value) for name, value in headers if not name.startswith(("dlq_", "rekeyed_"))]


def _size(record: Record) -> int:
    """Bytes of a record as it came, with 10 more for each header."""
    parts = [
        part for name, value in _own_headers(record.headers) for part in (name.encode("utf-8", "surrogateescape"), value or b"", bytes(10))
    ]
    return len(record.key or b"") + len(record.value or b"") + sum(map(len, parts))


def _raw(record: Record, *, any_key: bool) -> Raw:
    digest = hashlib.blake2b(digest_size=16)
    parts = [
        record.value,
        *(part for name, value in _own_headers(record.headers) for part in (name.encode("utf-8", "surrogateescape"), value)),
    ]
    for part in parts:
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return Raw(digest.digest(), record.key, any_key)


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, str] | tuple[()]:
    """The first field that differs, as (expected, found); nothing if all expected fields are there. More fields may be."""
    for name, value in expected.items():
        if name not in found:
            return f"{name} {_plain(value)}", f"no {name}"
        if not _same(name, value, found[name]):
            return f"{name} {_plain(value)}", f"{name} {_plain(found[name])}"
    return ()


def _pair(differences: Sequence[tuple[str, str] | tuple[()]]) -> tuple[str, str]:
    """The first of several differences, none of them empty."""
    expected, found = next(each for each in differences if each)
    return expected, found


def _same(name: str, expected: Any, found: Any) -> bool:
    if name == "items":
        if not isinstance(found, list) or len(found) != len(expected):
            return False
        by_id = {item.get("item_id"): item for item in found if isinstance(item, dict)}
        return all(item["item_id"] in by_id and not _difference(item, by_id[item["item_id"]]) for item in expected)
    try:
        if name == "amount" or name.endswith("_amount"):
            return isinstance(found, str) and Decimal(expected) == Decimal(found)
        if name.endswith("_at"):
            return isinstance(found, str) and datetime.fromisoformat(expected) == datetime.fromisoformat(found)
    except (ValueError, InvalidOperation, TypeError):
        return False
    return type(expected) is type(found) and bool(expected == found)


def _plain(value: Any) -> str:
    text = value.isoformat() if isinstance(value, datetime) else str(value)
    return text if len(text) <= 200 else text[:200] + "..."


def _columns_apart(expected: Row, found: Row) -> int:
    return sum(one != other for one, other in zip(expected, found, strict=True))


def _distance(expected: Mapping[str, Sequence[Row]], found: Mapping[str, Sequence[Row]]) -> int:
    """Rows that only one side has."""
    return sum(len({comparable(table, row) for row in expected[table]} ^ set(found.get(table, ()))) for table in TABLES)


def _fact_behind(held: Held, table: str, row_id: str) -> Place | None:
    """The record whose fact makes this row what it is."""
    reading = held.readings[0]
    fact = {"orders_shipment": reading.parcels, "orders_return": reading.returns}.get(table, {}).get(row_id, reading.created)
    return held.order.winners(fact.key)[0].places[0] if fact is not None else None


def _pieces(spill: IO[bytes]) -> Iterator[bytes]:
    """The 32-byte identities in a file."""
    spill.seek(0)
    while piece := spill.read(32):
        yield piece


def _milliseconds(reading: Reading) -> float:
    return min(fact.time for fact in reading.accepted).timestamp() * 1000
