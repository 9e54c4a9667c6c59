"""One lane audited: its part of the log is read, spilled by order, and judged a bucket at a time."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from zlib import crc32

from aiokafka import TopicPartition

from audit.attention import TOPIC as ATTENTION
from audit.checkpoint import Checkpoint, Fresh, LaneCheckpoint, after
from audit.derived import DERIVED, NOTICES
from audit.findings import Finding, Findings, Report
from audit.followed import LATE
from audit.foreign import read_json
from audit.index import Index, Read
from audit.judge import DERIVED_EVENT, FACT, LOCAL, STATE, TOUCHED, Item, Judge, Lane
from audit.log import Log, Record, Span
from audit.orders import OrderReader
from audit.processes import Say
from audit.reference import Refused, Room, unwrap, uuid_text
from audit.scope import NUMBER, Scope, name_of, text_of
from audit.spill import Spill, size_of
from audit.stores import LocalTable, StoreUnavailable, local_tables
from audit.topics import DECISIONS, INPUT, REKEYED
from wire import name_bytes, raw_bytes
from wire.reader import Parsed, Unread

_RECORDS_A_BUCKET: Final = 20_000
_ORDERS_A_BUCKET: Final = 4_000
_MOST_BUCKETS: Final = 1_024
_YIELD_EVERY: Final = 500
"""Orders after which whatever else runs in this event loop has its turn: a heartbeat, say."""
_ATTRIBUTES: Final = "attributes id, source, time, causeid"
_FACT_TOPICS: Final = (REKEYED, *INPUT, DECISIONS)

Done = Callable[[str, int], None]
"""(what is being done, how much more of it is done)"""


class LaneResult(NamedTuple):
    """What came of a lane: see LaneAudit."""

    number: int
    report: Report
    positions: dict[str, int]
    complete: set[str]
    trusted: int
    lasting: list[Finding]


class Shared(NamedTuple):
    """What all lanes of an audit have in common. `stores`: rows and cache entries by lane. `folder`: for
    temporary files. `most`: findings to keep of each severity.
    """

    scope: Scope
    stores: Spill
    folder: Path
    most: int
    checkpoint: Checkpoint | None


class LaneAudit:
    """The audit of one lane, once. What it finds goes to `index` and `on_finding`."""

    def __init__(
        self,
        shared: Shared,
        number: int,
        log: Log,
        index: Index,
        done: Done,
        on_finding: Callable[[Finding], None] | None,
        reader: OrderReader | None = None,
    ) -> None:
        """With `reader` only orders are looked at of which a record came, that wait to be judged again, or
        that it names as suspects; their rows and cache entries are read by it, and not from `shared.stores`.
        """
        self._reader = reader
        self._scope, self._stores, self._folder, most, checkpoint = shared
        scope = self._scope
        self._number = number
        self._log = log
        self._index = index
        self._findings = Findings(Report(scope.target.group), index, most, on_finding)
        self._done = done
        self._checkpoint = checkpoint
        self._before = None if checkpoint is None else checkpoint.manifest
        self._changelog = scope.target.changelog
        self.positions: dict[str, int] = {}
        """Partition -> offset up to which it was read, of those that aren't in the scope."""
        self.complete: set[str] = set()
        """Those of derived topics of which nothing was deleted."""
        self.trusted = 0
        """Orders that weren't judged again."""
        self.lasting: list[Finding] = []
        """What is broken in the log itself, of no order."""
        self._all_of_it = scope.only is None and not scope.former

    async def run(self) -> LaneResult:
        """Read and judge it. Raises what Log raises, CheckpointUnusable, OSError when the disk is full."""
        scope, number, log = self._scope, self._number, self._log
        sources = [*dict.fromkeys([*(number % count for count in scope.former), number])]  # the oldest first
        changelog = TopicPartition(self._changelog, number)
        spans = await log.written([self._changelog], number, scope.counts)
        for source in sources:
            spans |= await log.written(DERIVED, source, scope.counts)
        own = {partition: span for partition, span in scope.spans.items() if partition.partition in sources}
        self._findings.truncated = self._before is None and any(span.start > 0 for span in own.values())
        self._tell_deleted(spans)
        spans = self._since(spans)
        records = sum(span.end - span.start for span in [*own.values(), *spans.values()])
        before = None if self._checkpoint is None else self._checkpoint.lane(number)
        buckets = max(1, min(_MOST_BUCKETS, records // _RECORDS_A_BUCKET))
        if before is not None:
            buckets = before.buckets(buckets, _ORDERS_A_BUCKET)
        spill = Spill(self._folder, buckets)
        tables = self._open_local(spans.get(changelog))
        try:
            self._spill_held(before, spill)
            for topic in _FACT_TOPICS:
                for partition in (TopicPartition(topic, source) for source in sources):
                    if partition in own:
                        await self._spill_facts(partition, own[partition], spill)
            for topic in DERIVED:
                for partition in (TopicPartition(topic, source) for source in sources):
                    if partition in spans:
                        await self._spill_derived(partition, spans[partition], spill)
            if changelog in spans:
                await self._spill_states(changelog, spans[changelog], spill)
            for record_id, table in enumerate(tables):
                for count, (key, state) in enumerate(table.states()):
                    if scope.wanted(key):
                        spill.add(crc32(key) % len(spill), (key, LOCAL, record_id, state), len(state) + 36)
                    if count % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
            for count, item in enumerate(() if self._reader else self._stores.items(number)):
                spill.add(crc32(item[0]) % len(spill), tuple(item), 200)
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            local = [(str(table.path), table.offset) for table in tables]
            notices = [each for each in spans if each.topic == ATTENTION]
            lane = Lane(
                number,
                self._changelog if changelog in spans else None,
                self._complete_in(sources),
                local,
                self._cached,
                self._checkpoint is not None,
                await log.began(notices),
            )
            judge = Judge(lane, self._index, self._findings, scope.home, Room(scope.target.message_bytes))
            fresh = None if self._checkpoint is None else self._checkpoint.fresh(number)
            for bucket in range(len(spill)):
                self._done(f"judging lane {number}, {bucket * 100 // len(spill)} %", 0)
                await self._judge_bucket(judge, spill, bucket, before, fresh, len(tables))
            if fresh is not None:
                fresh.close()
        finally:
            spill.close()
            if before is not None:
                before.close()
            for table in tables:
                table.close()
        return LaneResult(
            number, self._findings.report, self.positions, self.complete, self.trusted, self.lasting
        )

    def _complete_in(self, sources: Sequence[int]) -> set[str]:
        """Derived topics of which nothing was deleted in these partitions."""
        return {
            topic
            for topic in DERIVED
            if all(name_of(TopicPartition(topic, source)) in self.complete for source in sources)
        }

    @property
    def _cached(self) -> bool:
        """Whether cache entries are compared."""
        return (
            self._scope.target.redis is not None
            if self._reader is None
            else self._reader.cached(self._number)
        )

    def _spill_held(self, before: LaneCheckpoint | None, spill: Spill) -> None:
        """What the audit before read of orders that have to be looked at again, and whatever is suspect."""
        for key, items in () if before is None else before.held():
            spill.add(crc32(key) % len(spill), (key, TOUCHED), 40)
            for item in items:
                spill.add(crc32(key) % len(spill), tuple(item), size_of(item))
        for key in () if self._reader is None else self._reader.suspects.get(self._number, ()):
            spill.add(crc32(key) % len(spill), (key, TOUCHED), 40)

    async def _judge_bucket(
        self,
        judge: Judge,
        spill: Spill,
        bucket: int,
        before: LaneCheckpoint | None,
        fresh: Fresh | None,
        tables: int,
    ) -> None:
        """Judge the orders of a bucket but for those of the checkpoint that are what they were."""
        whole = self._reader is None
        entries = before.entries(bucket, len(spill)) if whole and before is not None else {}

        def judge_one(key: bytes, items: Sequence[Item]) -> None:
            entry = entries.pop(key, None) if whole or before is None else before.entry(key)
            known, items = None, [item for item in items if item[1] != TOUCHED]
            if entry is not None and before is not None:
                if entry.agrees(items, tables, self._cached):
                    self.trusted += 1
                    return
                known = before.known(key, entry)
            before_it = self._told()
            known = judge.order(key, items, known)
            if fresh is None:
                return
            if self._told() != before_it:
                fresh.hold(key, items)
            elif known is not None:
                fresh.add(key, items, known)

        for group in spill.groups(bucket):
            if self._reader is not None:
                for item in await self._reader.items(group):
                    group[item[0]].append(list(item))
            for count, (key, items) in enumerate(group.items()):
                judge_one(key, items)
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
        for key in list(entries):  # of which nothing is left
            judge_one(key, [])

    def _told(self) -> tuple[int, ...]:
        """It grows with everything that may be wrong."""
        return (
            self._findings.report.broken.total(),
            self._index.waiting,
            self._index.absences,
        )

    def _since(self, spans: dict[TopicPartition, Span]) -> dict[TopicPartition, Span]:
        """What came to each partition since the checkpoint. Raises CheckpointUnusable."""
        since = {}
        for partition, span in spans.items():
            name, start = name_of(partition), span.start
            if self._before is None:
                whole = span.start == 0
            else:
                whole, start = name in self._before.complete, after(self._before, partition, span)
            if whole:
                self.complete.add(name)
            self.positions[name] = span.end
            since[partition] = Span(start, span.end)
        return since

    def _tell_deleted(self, spans: dict[TopicPartition, Span]) -> None:
        for partition, span in spans.items():
            if span.start > 0 and partition.topic != self._changelog:
                what = (
                    "they may have been last notices"
                    if partition.topic in NOTICES and partition.topic != LATE
                    else "they aren't looked for"
                )
                self._findings.report.notices.append(
                    f"{name_of(partition)} begins at {span.start}, events before that were deleted: {what}"
                )

    def _open_local(self, changelog: Span | None) -> list[LocalTable]:
        target = self._scope.target
        if target.data is None or changelog is None:
            return []
        tables = []
        for path, partition in local_tables(target.data, target.group, self._scope.cluster).items():
            if partition != self._number:
                continue
            try:
                table = LocalTable(path)
            except StoreUnavailable as error:
                self._findings.report.notices.append(f"local table not looked at: {error.message}")
                continue
            if table.offset >= changelog.end:
                expected = f"at most {changelog.end - 1}, the last of {self._changelog}/{self._number}"
                self._findings.broken("tables", "", str(path), expected, f"read to {table.offset}")
            tables.append(table)
        if tables and "local tables" not in self._findings.report.compared:
            self._findings.report.compared.append("local tables")
        return tables

    def _elsewhere(self, key: bytes, number: int) -> bool:
        """Whether a record under this key, in a partition of this number, is none of this lane's."""
        scope = self._scope
        return not scope.wanted(key) or (bool(scope.former) and scope.owner(key, number) != self._number)

    async def _spill_facts(self, partition: TopicPartition, span: Span, spill: Spill) -> None:
        number, buckets, add, record_id = NUMBER[partition.topic], len(spill), spill.add, partition.partition
        all_of_it = self._all_of_it
        async for records in self._read(partition, span):
            for record in records:
                key, value = record.key or b"", record.value
                if all_of_it or not self._elsewhere(key, record_id):
                    headers: Any = record.headers
                    kind: type = type(record)
                    if kind is Unread:
                        headers, value = None, raw_bytes(record)
                    elif kind is Parsed:
                        headers = [(name_bytes(name), text) for name, text in headers]
                    item = (key, FACT, number, record_id, record.offset, record.timestamp, value, headers)
                    add(crc32(key) % buckets, item, len(value or b"") + 250)

    async def _spill_derived(self, partition: TopicPartition, span: Span, spill: Spill) -> None:
        type_, number, buckets, add = partition.topic, DERIVED.index(partition.topic), len(spill), spill.add
        all_of_it = self._all_of_it
        ce_type = type_.encode()
        async for records in self._read(partition, span):
            for record in records:
                key, value = record.key or b"", record.value
                if not all_of_it and self._elsewhere(key, partition.partition):
                    continue
                headers = dict(record.headers)
                if headers.get("ce_specversion") != b"1.0" or headers.get("ce_type") != ce_type or not value:
                    headers, value = self._structured(partition, record)
                    if value is None:
                        continue
                event_id, cause, trace, history = (
                    headers.get("ce_id"),
                    headers.get("ce_causeid"),
                    headers.get("ce_traceparent"),
                    headers.get("ce_history"),
                )
                if not event_id or not cause or not headers.get("ce_source") or not headers.get("ce_time"):
                    where = f"{name_of(partition)}@{record.offset}"
                    present = sorted(name for name in headers if name.startswith("ce_"))
                    self._in_the_log("derived", text_of(key), where, _ATTRIBUTES, present)
                item = (
                    key,
                    DERIVED_EVENT,
                    number,
                    partition.partition,
                    record.offset,
                    text_of(event_id or b""),
                    text_of(cause or b""),
                    None if trace is None else text_of(trace),
                    value,
                    None if history is None else text_of(history),
                )
                add(crc32(key) % buckets, item, len(value) + 180)

    def _structured(
        self, partition: TopicPartition, record: Record
    ) -> tuple[dict[str, bytes | None], bytes | None]:
        """A derived event that isn't in the binary binding, as if it were; no value, and
        a finding, if it is none.
        """
        where = f"{name_of(partition)}@{record.offset}"
        try:
            event = unwrap(record.value, record.headers)
            if event.type != partition.topic:
                raise Refused("type_wrong_topic", event.type)
            envelope = read_json(record.value)
        except (Refused, ValueError) as error:
            expected = f"a CloudEvent of type {partition.topic}"
            self._in_the_log("derived", text_of(record.key or b""), where, expected, error)
            return {}, None
        attributes = {
            f"ce_{name}": str(text).encode() for name, text in envelope.items() if isinstance(text, str)
        }
        return {**dict(record.headers), **attributes}, json.dumps(event.data).encode()

    async def _spill_states(self, partition: TopicPartition, span: Span, spill: Spill) -> None:
        buckets = len(spill)
        async for records in self._read(partition, span):
            for record in records:
                raw, value = record.key or b"", record.value
                if len(raw) != 16:
                    where = f"{name_of(partition)}@{record.offset}"
                    expected = "a key of 16 bytes, an order's id"
                    self._in_the_log("changelog", "", where, expected, repr(raw[:40]))
                    continue
                key = uuid_text(raw.hex()).encode()
                if self._scope.wanted(key):
                    spill.add(
                        crc32(key) % buckets, (key, STATE, record.offset, value), len(value or b"") + 36
                    )

    def _in_the_log(self, check: str, order_id: str, where: str, expected: str, actual: object) -> None:
        """It is broken, and no later record makes it right."""
        self.lasting.append(self._findings.broken(check, order_id, where, expected, actual))

    async def _read(self, partition: TopicPartition, span: Span) -> AsyncIterator[Sequence[Record]]:
        async for records in self._log.read(partition, span):
            yield records
            self._done(name_of(partition), len(records))


@dataclass(frozen=True, slots=True)
class LanesJob:
    """Some lanes audited in a process of their own, one after the other. It says (what is being done, how
    much more is done), with `tell` each Finding, and a LaneResult for each lane.
    """

    shared: Shared
    read: Read
    numbers: Sequence[int]
    tell: bool

    async def __call__(self, say: Say) -> None:
        for number in self.numbers:
            index = self.read.branch(number)
            async with Log(self.shared.scope.target.kafka) as log:
                lane = LaneAudit(self.shared, number, log, index, _Sometimes(say), say if self.tell else None)
                result = await lane.run()
            index.flush()
            index.close()
            say(result)


class _Sometimes:
    """What is done, said by a process a few times a second."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._more = 0
        self._at = 0.0

    def __call__(self, what: str, more: int) -> None:
        self._more += more
        now = time.monotonic()
        if now - self._at > 0.1:
            self._say((what, self._more))
            self._more, self._at = 0, now
