"""The audit: reads the log lane by lane, folds it with the reference, and compares what the pipeline wrote.

A lane is one partition number over all topics: all facts of its orders, their derived events, their states.
Once the topics were given more partitions the older part of a lane's history lies in another one, which is
read too. What is read goes to disk by a hash of the order's id (audit.spill) and comes back a bucket at a
time, so memory doesn't grow with the number of orders. First the offsets that the group has committed are
taken; everything else is read after that, so it holds at least what was committed.
"""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from zlib import crc32

from aiokafka import TopicPartition

from audit.derived import DERIVED, NOTICES
from audit.findings import Finding, Findings, Report
from audit.foreign import read_json
from audit.index import Index, Letter, Note
from audit.judge import (
    DERIVED_EVENT,
    ENTRY,
    FACT,
    LOCAL,
    MEMBER,
    ROW,
    STATE,
    Judge,
    Lane,
    coordinates,
    digest_of,
    origin_of_copy,
)
from audit.log import Log, LogUnavailable, Record, Span, partition_of
from audit.reference import (
    Fact,
    RecordId,
    Refusal,
    Refused,
    is_canonical,
    parse,
    parse_decision,
    unwrap,
    uuid_text,
)
from audit.spill import Spill
from audit.stores import TABLES, Cache, CacheServer, Entry, LocalTable, Rows, StoreUnavailable, local_tables
from audit.topics import BULK, CREATED, DECISIONS, DLQ, INPUT, LANE, PARTITIONS, REDRIVEN, REKEYED
from errors import OrdersError
from wire import name_bytes, raw_bytes
from wire.clients import KafkaSettings
from wire.reader import Parsed, Unread

_RECORDS_A_BUCKET: Final = 20_000
_MOST_BUCKETS: Final = 1_024
_MOST_RECENT: Final = 50
_MOST_PARCELS: Final = 100
"""That one tracking number shows."""
_LOOK: Final = 0.5
"""Seconds between two looks whether the cache is complete."""
_YIELD_EVERY: Final = 500
"""Orders after which whatever else runs in this event loop has its turn: a heartbeat, say."""
_FACT_TOPICS: Final = (REKEYED, *INPUT, DECISIONS)
_NUMBER: Final = {topic: number for number, topic in enumerate(LANE)}

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""


@dataclass(frozen=True, slots=True)
class Target:
    """What is audited. `redis` None: the cache is not looked at.
    `data`: where workers of this machine have their local tables, if any.

    `partitions`: by how many an order's lane is found (ORDERS_PARTITIONS); None: as many as the topics have,
    which is not the same once partitions were added. `cache_stall`: seconds without progress for which a
    cache that is behind is waited for.
    """

    kafka: KafkaSettings = field(repr=False)
    group: str
    changelog: str
    postgres: str = field(repr=False)
    redis: CacheServer | None
    data: Path | None = None
    partitions: int | None = None
    cache_stall: float = 30.0


class OtherLanes(OrdersError):
    """The orders' lanes aren't found by the number of partitions that was given. The remedy says by which."""


class Auditor:
    """One audit. `run` may take minutes: it reads everything once.
    It writes nothing but temporary files of its own.
    """

    def __init__(
        self,
        target: Target,
        *,
        most_findings: int = 100,
        progress: Progress | None = None,
        on_finding: Callable[[Finding], None] | None = None,
        only: frozenset[str] | None = None,
    ) -> None:
        """`on_finding` is called with every broken finding.

        `only`: audit these orders and nothing else (canonical ids).
        """
        self.report = Report(target.group)
        self._target = target
        self._most = most_findings
        self._on_finding = on_finding
        self._only = None if only is None else frozenset(order_id.encode() for order_id in only)
        self._progress = progress or (lambda what, done, total: None)
        self._done = 0
        self._whole = 0
        self._lanes = 0
        self._former: list[int] = []
        """How many partitions the topics had before."""
        self._counts: dict[str, int] = {}
        self._spans: dict[TopicPartition, Span] = {}
        """Of the topics that lanes read: what is committed."""
        self._ends: dict[TopicPartition, int] = {}
        self._commits: dict[TopicPartition, int] = {}

    async def run(self) -> Report:
        """Audit everything. Raises LogUnavailable or StoreUnavailable when a server isn't there or has no
        orders, OtherLanes, OSError when the disk is full.
        """
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orders-audit-")))
            log = await stack.enter_async_context(Log(self._target.kafka))
            rows = await stack.enter_async_context(Rows.open(self._target.postgres))
            cache = None
            if self._target.redis:
                cache = Cache(self._target.redis)
                stack.push_async_callback(cache.close)
            self._index = Index(folder)
            stack.callback(self._index.close)
            self._findings = Findings(self.report, self._index, self._most, self._on_finding)
            await self._compare_stores(log, rows, cache)
            # An order's rows and cache entries lie apart, so that remembering its
            # partition would seldom help.
            self._home = functools.partial(partition_of, partitions=self._target.partitions or self._lanes)
            await self._read_former(log)
            await self._read_letters(log)
            await self._read_copies(log)
            await self._read_notes(log)
            stores = Spill(folder, self._lanes)
            stack.callback(stores.close)
            await self._read_rows(rows, stores)
            if cache is not None:
                await self._await_cache(log, cache)
                await self._read_cache(cache, stores)
            for number in range(self._lanes):
                if self._only is None or any(self._home(key) == number for key in self._only):
                    await self._audit_lane(log, number, stores, folder)
            await self._judge_rest_of_letters(log)
            self._judge_redrives()
            self._judge_checkouts()
            if cache is not None:
                await self._judge_absent(cache)
            await self._settle(log)
        self.report.seconds = round(time.monotonic() - started, 3)
        return self.report

    # -- what there is ---------------------------------------------------------------------------------------

    async def _compare_stores(self, log: Log, rows: Rows, cache: Cache | None) -> None:
        report = self.report
        topics = [*LANE, *DERIVED, DLQ, REDRIVEN, PARTITIONS, self._target.changelog]
        self._counts = await log.partitions(topics)
        report.missing_topics = [topic for topic in topics if topic not in self._counts]
        present = [topic for topic in LANE if topic in self._counts]
        if not present:
            raise LogUnavailable("Kafka has none of the input topics", "run orders init")
        if report.missing_topics:
            report.notices.append(
                f"topics missing: {', '.join(report.missing_topics)}; `orders init` creates them"
            )
        self._lanes = max(self._counts[topic] for topic in present)
        for topic, count in self._counts.items():
            if count != self._lanes:
                self._findings.broken(
                    "accounting", "", topic, f"{self._lanes} partitions, as the other topics", count
                )
        # Commits first: what is read later can only be more.
        self._commits = await log.committed(self._target.group)
        partitions = [
            TopicPartition(topic, number) for topic in present for number in range(self._counts[topic])
        ]
        spans = await log.spans(partitions)
        self._ends = {partition: span.end for partition, span in spans.items()}
        for partition, span in spans.items():
            committed = self._commits.get(partition, span.start)
            if committed > span.end:
                self._findings.broken(
                    "accounting", "", _name(partition), f"at most {span.end} committed", committed
                )
            to = min(max(committed, span.start), span.end)
            report.lag += span.end - to
            self._spans[partition] = Span(span.start, to)
            if span.start > 0:
                report.seen_from[_name(partition)] = span.start
        if report.seen_from:
            report.notices.append(
                "the log's beginning is gone: what it can't prove any more is reported, not broken"
            )
        report.settled = report.lag == 0
        others = [
            TopicPartition(topic, n)
            for topic in [*DERIVED, DLQ, self._target.changelog]
            for n in range(self._counts.get(topic, 0))
        ]
        self._whole = sum(
            span.end - span.start for span in [*self._spans.values(), *(await log.spans(others)).values()]
        )
        self._whole += await rows.estimate() + (0 if cache is None else await cache.size())
        self._cluster = await log.cluster()
        report.compared = ["log", "changelog", "postgres", *(["redis"] if cache is not None else [])]

    async def _written(self, log: Log, topics: Iterable[str], number: int) -> dict[TopicPartition, Span]:
        """What can be read now of topics that the pipeline writes, of one partition."""
        return await log.spans(
            [TopicPartition(topic, number) for topic in topics if number < self._counts.get(topic, 0)]
        )

    def _wanted(self, key: bytes) -> bool:
        return self._only is None or key in self._only

    # -- what lanes share: dead letters, copies, stores ------------------------------------------------------

    async def _read_former(self, log: Log) -> None:
        lanes: int | None = None
        for partition, span in (await self._written(log, [PARTITIONS], 0)).items():
            async for records in log.read(partition, span):
                for record in records:
                    lanes, self._former = _lanes_told(record.value) or (lanes, self._former)
        if None not in (lanes, self._target.partitions) and lanes != self._target.partitions:
            raise OtherLanes(
                f"the orders are spread over {lanes} lanes, ORDERS_PARTITIONS is {self._target.partitions}",
                f"set it to {lanes}",
            )

    def _owner(self, key: bytes, number: int) -> int:
        """The lane that a record under this key belongs to by its partition: its order's, also where that
        is its partition of before.
        """
        home = self._home(key)
        return (
            home
            if home != number and is_canonical(key) and number in (home % count for count in self._former)
            else number
        )

    async def _read_letters(self, log: Log) -> None:
        for number in range(self._counts.get(DLQ, 0)):
            for partition, span in (await self._written(log, [DLQ], number)).items():
                async for records in self._read(log, partition, span):
                    self._index.add_letters(
                        letter for record in records if (letter := self._letter(number, record)) is not None
                    )

    def _letter(self, lane: int, record: Record) -> Letter | None:
        headers = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers}
        record_id, code = coordinates(record.headers, "dlq"), headers.get("dlq_reason", "")
        self.report.counts["dead_letters"] += 1
        self.report.dead_letters[code or "(none)"] += 1
        missing = [name for name in ("dlq_reason", "dlq_detail") if not headers.get(name)]
        if not _is_time(headers.get("dlq_time", "")):
            missing.append("dlq_time")
        if record_id is not None and record_id.topic in BULK and not missing:
            return None  # a part of a bulk job: it was to become records of the log, and became none
        read = record_id is not None and TopicPartition(record_id.topic, record_id.partition) in self._spans
        if missing or not read or record_id is None:
            where = f"{DLQ}/{lane}@{record.offset}"
            expected = (
                "headers dlq_topic, dlq_partition, dlq_offset (of an input record), dlq_reason, dlq_detail,"
                " dlq_time"
            )
            actual = f"{', '.join(missing)} missing" if missing else f"coordinates {record_id or 'missing'}"
            self._findings.broken("letters", "", where, expected, actual, proven=True)
            return None
        value = record.value if code.startswith("order_") else None
        return Letter(
            record_id,
            code,
            headers["dlq_detail"],
            record.key,
            digest_of(record.value, record.headers),
            value,
            lane,
            record.offset,
        )

    async def _read_copies(self, log: Log) -> None:
        """Also those beyond what is committed: they are no facts yet, but prove that
        their records were passed on.
        """
        for number in range(self._counts.get(REKEYED, 0)):
            for partition, span in (await self._written(log, [REKEYED], number)).items():
                async for records in log.read(partition, span):
                    # Of those that don't say where they came from none of us wrote: they are refused.
                    self._index.add_copies(
                        origin for record in records if (origin := origin_of_copy(record.headers)) is not None
                    )

    async def _read_notes(self, log: Log) -> None:
        for number in range(self._counts.get(REDRIVEN, 0)):
            for partition, span in (await self._written(log, [REDRIVEN], number)).items():
                async for records in log.read(partition, span):
                    self._index.add_notes(
                        note for record in records if (note := self._parse_note(number, record)) is not None
                    )
        self.report.counts["redriven"] = self._index.notes

    def _parse_note(self, lane: int, record: Record) -> Note | None:
        try:
            note = read_json(record.value)
            (topic, partition, offset), (to_topic, to_partition, to_offset) = note["origin"], note["to"]
            origin, to = (
                RecordId(str(topic), int(partition), int(offset)),
                RecordId(str(to_topic), int(to_partition), int(to_offset)),
            )
            return Note(_text(record.key or b""), str(note["reason"]), origin, to)
        except (ValueError, TypeError, KeyError) as error:
            expected = "reason, refused record and sent record of a redrive"
            self._findings.broken(
                "letters",
                "",
                f"{REDRIVEN}/{lane}@{record.offset}",
                expected,
                f"{type(error).__name__}: {error}",
            )
            return None

    async def _read_rows(self, rows: Rows, stores: Spill) -> None:
        for number, table in enumerate(TABLES):
            count = 0

            def take(key: bytes, line: bytes, number: int = number, table: str = table) -> None:
                nonlocal count
                if self._wanted(key):
                    stores.add(self._home(key), (key, ROW, number, line), len(line) + 36)
                count += 1
                if count % 10_000 == 0:
                    self._done += 10_000
                    self._progress(table, self._done, self._whole)

            await rows.lines(table, take)

    async def _await_cache(self, log: Log, cache: Cache) -> None:
        """An entry that is older than its state isn't broken while its lane still refreshes what the cache
        has missed. So that is waited for, as long as it goes on and there is somebody who may do it.
        """
        lanes = [
            TopicPartition(self._target.changelog, number)
            for number in range(self._counts.get(self._target.changelog, 0))
        ]
        ends = {partition.partition: span.end for partition, span in (await log.spans(lanes)).items()}
        least, since = 0, time.monotonic()
        while behind := await cache.behind(self._target.group, ends):
            behind_by = sum(behind.values())
            if least == 0 or behind_by < least:
                least, since = behind_by, time.monotonic()
            stands = time.monotonic() - since
            if stands >= self._target.cache_stall or not await log.members(self._target.group):
                who = (
                    f"for {stands:.0f} s nothing came"
                    if stands >= self._target.cache_stall
                    else "no worker is running"
                )
                message = (
                    f"the cache of lanes {', '.join(map(str, sorted(behind)))} is behind by {behind_by:,}"
                    " records of the changelog"
                )
                self.report.notices.append(f"{message}, and {who}: what is old there counts as broken")
                return
            self._progress(f"the cache is refreshed, {behind_by:,} records left", self._done, self._whole)
            await asyncio.sleep(_LOOK)

    async def _read_cache(self, cache: Cache, stores: Spill) -> None:
        async for entries in cache.entries():
            for entry in entries:
                self._take_entry(entry, stores)
            self._done += len(entries)
            self._progress("redis", self._done, self._whole)

    def _take_entry(self, entry: Entry, stores: Spill) -> None:
        key, value = entry.key.decode("utf-8", "backslashreplace"), entry.value
        family, _, name = entry.key.partition(b":")
        if family == b"order":
            self._keep(stores, name, (name, ENTRY, key, entry.ttl, value), len(value or b""))
            return
        if family == b"tracking" and not isinstance(value, list):
            for order_id in _orders_of(value):
                self._keep(stores, order_id, (order_id, ENTRY, key, entry.ttl, value), len(value or b""))
            return
        if not isinstance(value, list):
            self._findings.broken("cache", "", key, "a sorted set", entry.kind)
            return
        if len(value) > _MOST_RECENT:
            self._findings.broken(
                "cache", "", key, f"the newest {_MOST_RECENT} orders", f"{len(value)} members"
            )
        for member, score in value:
            self._keep(stores, member, (member, MEMBER, key, entry.ttl, score), len(key))

    def _keep(self, stores: Spill, key: bytes, item: tuple[Any, ...], size: int) -> None:
        if self._wanted(key):
            stores.add(self._home(key), item, size + 80)

    # -- a lane ----------------------------------------------------------------------------------------------

    async def _audit_lane(self, log: Log, number: int, stores: Spill, folder: Path) -> None:
        sources = [*dict.fromkeys([*(number % count for count in self._former), number])]  # the oldest first
        changelog = TopicPartition(self._target.changelog, number)
        spans = await self._written(log, [self._target.changelog], number)
        for source in sources:
            spans |= await self._written(log, DERIVED, source)
        own = {partition: span for partition, span in self._spans.items() if partition.partition in sources}
        records = sum(span.end - span.start for span in [*own.values(), *spans.values()])
        self._findings.truncated = any(span.start > 0 for span in own.values())
        complete = {
            topic
            for topic in DERIVED
            if all(_whole(spans.get(TopicPartition(topic, source))) for source in sources)
        }
        self._tell_deleted(number, spans)
        spill = Spill(folder, max(1, min(_MOST_BUCKETS, records // _RECORDS_A_BUCKET)))
        tables = self._open_local(number, spans.get(changelog))
        try:
            for topic in _FACT_TOPICS:
                for partition in (TopicPartition(topic, source) for source in sources):
                    if partition in own:
                        await self._spill_facts(log, partition, own[partition], spill, number)
            for topic in DERIVED:
                for partition in (TopicPartition(topic, source) for source in sources):
                    if partition in spans:
                        await self._spill_derived(log, partition, spans[partition], spill, number)
            if changelog in spans:
                await self._spill_states(log, changelog, spans[changelog], spill)
            for record_id, table in enumerate(tables):
                for count, (key, state) in enumerate(table.states()):
                    if self._wanted(key):
                        spill.add(crc32(key) % len(spill), (key, LOCAL, record_id, state), len(state) + 36)
                    if count % _YIELD_EVERY == 0:
                        await asyncio.sleep(0)
            for count, item in enumerate(stores.items(number)):
                spill.add(crc32(item[0]) % len(spill), tuple(item), 200)
                if count % _YIELD_EVERY == 0:
                    await asyncio.sleep(0)
            local = [(str(table.path), table.offset) for table in tables]
            lane = Lane(
                number,
                self._target.changelog if changelog in spans else None,
                complete,
                local,
                self._target.redis is not None,
            )
            judge = Judge(lane, self._index, self._findings, self._home)
            for bucket in range(len(spill)):
                self._progress(
                    f"judging lane {number}, {bucket * 100 // len(spill)} %", self._done, self._whole
                )
                for group in spill.groups(bucket):
                    for count, (key, items) in enumerate(group.items()):
                        judge.order(key, items)
                        if count % _YIELD_EVERY == 0:
                            await asyncio.sleep(0)
        finally:
            spill.close()
            for table in tables:
                table.close()

    def _tell_deleted(self, number: int, spans: dict[TopicPartition, Span]) -> None:
        for partition, span in spans.items():
            if span.start > 0 and partition.topic != self._target.changelog:
                what = (
                    "they may have been last notices"
                    if partition.topic in NOTICES
                    else "they aren't looked for"
                )
                self.report.notices.append(
                    f"{_name(partition)} begins at {span.start}, events before that were deleted: {what}"
                )

    def _open_local(self, number: int, changelog: Span | None) -> list[LocalTable]:
        if self._target.data is None or changelog is None:
            return []
        tables = []
        for path, partition in local_tables(self._target.data, self._target.group, self._cluster).items():
            if partition != number:
                continue
            try:
                table = LocalTable(path)
            except StoreUnavailable as error:
                self.report.notices.append(f"local table not looked at: {error.message}")
                continue
            if table.offset >= changelog.end:
                expected = f"at most {changelog.end - 1}, the last of {self._target.changelog}/{number}"
                self._findings.broken("tables", "", str(path), expected, f"read to {table.offset}")
            tables.append(table)
        if tables and "local tables" not in self.report.compared:
            self.report.compared.append("local tables")
        return tables

    async def _spill_facts(
        self, log: Log, partition: TopicPartition, span: Span, spill: Spill, lane: int
    ) -> None:
        number, buckets, add, record_id = _NUMBER[partition.topic], len(spill), spill.add, partition.partition
        moved = bool(self._former)
        async for records in self._read(log, partition, span):
            for record in records:
                key, value = record.key or b"", record.value
                if (self._only is None or key in self._only) and not (
                    moved and self._owner(key, record_id) != lane
                ):
                    headers: Any = record.headers
                    kind: type = type(record)
                    if kind is Unread:
                        headers, value = None, raw_bytes(record)
                    elif kind is Parsed:
                        headers = [(name_bytes(name), text) for name, text in headers]
                    item = (key, FACT, number, record_id, record.offset, record.timestamp, value, headers)
                    add(crc32(key) % buckets, item, len(value or b"") + 250)

    async def _spill_derived(
        self, log: Log, partition: TopicPartition, span: Span, spill: Spill, lane: int
    ) -> None:
        type_, number, buckets, add = partition.topic, DERIVED.index(partition.topic), len(spill), spill.add
        moved = bool(self._former)
        ce_type = type_.encode()
        async for records in self._read(log, partition, span):
            for record in records:
                key, value = record.key or b"", record.value
                if (self._only is not None and key not in self._only) or (
                    moved and self._owner(key, partition.partition) != lane
                ):
                    continue
                headers = dict(record.headers)
                if headers.get("ce_specversion") != b"1.0" or headers.get("ce_type") != ce_type or not value:
                    headers, value = self._structured(partition, record)
                    if value is None:
                        continue
                event_id, cause, trace = (
                    headers.get("ce_id"),
                    headers.get("ce_causeid"),
                    headers.get("ce_traceparent"),
                )
                if not event_id or not cause or not headers.get("ce_source") or not headers.get("ce_time"):
                    where = f"{_name(partition)}@{record.offset}"
                    present = sorted(name for name in headers if name.startswith("ce_"))
                    self._findings.broken(
                        "derived", _text(key), where, "attributes id, source, time, causeid", present
                    )
                item = (
                    key,
                    DERIVED_EVENT,
                    number,
                    partition.partition,
                    record.offset,
                    _text(event_id or b""),
                    _text(cause or b""),
                    None if trace is None else _text(trace),
                    value,
                )
                add(crc32(key) % buckets, item, len(value) + 180)

    def _structured(
        self, partition: TopicPartition, record: Record
    ) -> tuple[dict[str, bytes | None], bytes | None]:
        """A derived event that isn't in the binary binding, as if it were; no value, and
        a finding, if it is none.
        """
        where = f"{_name(partition)}@{record.offset}"
        try:
            event = unwrap(record.value, record.headers)
            if event.type != partition.topic:
                raise Refused("type_wrong_topic", event.type)
            envelope = read_json(record.value)
        except (Refused, ValueError) as error:
            self._findings.broken(
                "derived", _text(record.key or b""), where, f"a CloudEvent of type {partition.topic}", error
            )
            return {}, None
        attributes = {
            f"ce_{name}": str(text).encode() for name, text in envelope.items() if isinstance(text, str)
        }
        return {**dict(record.headers), **attributes}, json.dumps(event.data).encode()

    async def _spill_states(self, log: Log, partition: TopicPartition, span: Span, spill: Spill) -> None:
        buckets = len(spill)
        async for records in self._read(log, partition, span):
            for record in records:
                raw, value = record.key or b"", record.value
                if len(raw) != 16:
                    where = f"{_name(partition)}@{record.offset}"
                    self._findings.broken(
                        "changelog", "", where, "a key of 16 bytes, an order's id", repr(raw[:40])
                    )
                    continue
                key = uuid_text(raw.hex()).encode()
                if self._only is None or key in self._only:
                    spill.add(
                        crc32(key) % buckets, (key, STATE, record.offset, value), len(value or b"") + 36
                    )

    # -- when all lanes are done -----------------------------------------------------------------------------

    async def _judge_rest_of_letters(self, log: Log) -> None:
        """Dead letters that no refused record or key asked for."""
        if self._only is not None:
            return
        read = 0
        for letter in self._index.unmatched_letters():
            partition = TopicPartition(letter.record_id.topic, letter.record_id.partition)
            span = self._spans[partition]
            if not span.start <= letter.record_id.offset < span.end:
                self.report.counts["letters_out_of_sight"] += 1
                continue
            order_id, read = "", read + 1
            if read <= self._most:
                async for records in log.read(
                    partition, Span(letter.record_id.offset, letter.record_id.offset + 1)
                ):
                    for record in records:
                        outcome = parse(letter.record_id.topic, record.key, record.value, record.headers)
                        order_id = outcome.order_id if isinstance(outcome, Fact) else ""
            actual = f"a dead letter with reason {letter.code}"
            self._findings.truncated = False
            self._findings.at_rest(
                "letters",
                order_id,
                f"{DLQ}/{letter.lane}@{letter.at}",
                f"{letter.record_id} is a fact that counts",
                actual,
            )

    def _judge_redrives(self) -> None:
        """Each record that went back is in the log once, and in the ledger."""
        if self._only is not None:
            return
        for letter, record_id in self._index.sent_without_note():
            # A record and its note are one transaction, and any upstream can send, or copy, such a header.
            self._findings.note(
                "letters",
                "",
                REDRIVEN,
                f"a note that dead letter {letter} is at {record_id}",
                "none",
                record_id,
            )
        for record_id, count in self._index.redriven_twice():
            self._findings.broken(
                "letters", "", REDRIVEN, "one redrive of this record", count, record_id, proven=True
            )
        for note in self._index.notes_without_sent():
            span = self._spans.get(TopicPartition(note.to.topic, note.to.partition))
            if span is not None and span.start <= note.to.offset < span.end:
                expected = f"the record of dead letter {note.letter}"
                self._findings.broken(
                    "letters", "", str(note.to), expected, "another one", note.origin, proven=True
                )

    def _judge_checkouts(self) -> None:
        """Each accepted checkout has become an order.created, in whichever lane."""
        self._findings.truncated = False
        for order_id, record_id in self._index.unplaced_checkouts():
            if self._only is None:
                self._findings.at_rest(
                    "accounting",
                    order_id,
                    CREATED,
                    "an order.created made of the checkout",
                    "none",
                    record_id,
                )

    async def _judge_absent(self, cache: Cache) -> None:
        """Parcels that lack under their tracking number what others have there: readers of Redis take
        it for all that there is.

        Where Redis evicts keys, a number's key may have gone and come back without
        them: then it is only told.
        """
        self._findings.truncated = False
        tell = self._findings.at_rest
        for key, absent in self._index.absent():
            there = await cache.parcels(key, [order_id for order_id, _ in absent])
            if there is None or len(there.parcels) >= _MOST_PARCELS:
                continue
            for order_id, shipment_id in absent:
                if order_id in there.orders and (order_id, shipment_id) not in there.parcels:
                    if await cache.evicts():
                        tell = self._findings.note
                    actual = f"{len(there.parcels)} others" if there.parcels else "none"
                    tell("cache", order_id, key, f"an entry of parcel {shipment_id}", actual)

    async def _settle(self, log: Log) -> None:
        """What only holds at rest is judged of those orders about which no record waits to be committed.

        Whatever the pipeline wrote beyond what was committed when the audit began, it wrote
        because of records about the same order that were not committed then, and all of those lie
        below the ends that are read now.
        """
        report = self.report
        ends = {partition: span.end for partition, span in (await log.spans(list(self._ends))).items()}
        report.settled = (
            report.settled and ends == self._ends and await log.committed(self._target.group) == self._commits
        )
        if not report.settled:
            before = self._index.waiting_by_check()
            if self._index.waiting:
                self._index.forget([""])
                for partition, span in self._spans.items():
                    async for records in log.read(partition, Span(span.end, ends[partition])):
                        self._index.forget(
                            {order_id for record in records for order_id in _about(partition.topic, record)}
                        )
            report.inconclusive = before - self._index.waiting_by_check()
            what = f"lag {report.lag}" if report.lag else "records came in during the audit"
            report.notices.append(
                f"{what}: the pipeline is at work or stopped before the end, so some orders may be ahead of"
                f" what is committed; {report.inconclusive.total()} differences of such orders are"
                " inconclusive. Run `orders wait`, then audit again"
            )
        self._findings.judge()

    async def _read(self, log: Log, partition: TopicPartition, span: Span) -> AsyncIterator[Sequence[Record]]:
        async for records in log.read(partition, span):
            yield records
            self._done += len(records)
            self._progress(_name(partition), self._done, self._whole)


def _lanes_told(value: bytes | None) -> tuple[int, list[int]] | None:
    """How many lanes there are since partitions were added, and were before; None where a
    record says no such thing.
    """
    try:
        note = read_json(value)
        lanes, former = note["partitions"], sorted(note["former"])
    except (ValueError, TypeError, KeyError):
        return None
    return (lanes, former) if all(type(number) is int and number > 0 for number in (lanes, *former)) else None


def _about(topic: str, record: Record) -> list[str]:
    """Ids of the orders that a record may be about: by its key and by what it says."""
    order_ids = [_text(record.key or b"")] if is_canonical(record.key) else []
    if topic == DECISIONS:
        decision = parse_decision(record.value, record.headers)
        return order_ids if isinstance(decision, Refusal) else [*order_ids, decision.order_id]
    origin = origin_of_copy(record.headers) if topic == REKEYED else None
    fact = parse(origin.topic if origin else topic, record.key, record.value, record.headers)
    return [*order_ids, fact.order_id] if isinstance(fact, Fact) else order_ids


def _orders_of(tracking: bytes | None) -> list[bytes]:
    """Orders with a parcel in a tracking entry; none of them known, as b"", if it is
    no JSON array of parcels.
    """
    try:
        return sorted({each["order_id"].encode() for each in read_json(tracking)}) or [b""]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [b""]


def _whole(span: Span | None) -> bool:
    """Whether a partition is there, and nothing of it was deleted."""
    return span is not None and span.start == 0


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")


def _name(partition: TopicPartition) -> str:
    return f"{partition.topic}/{partition.partition}"
