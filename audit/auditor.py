"""The audit: reads the log lane by lane, folds it with the reference, and compares what the pipeline wrote.

A lane is one partition number over all topics: all facts of its orders, their derived events, their states.
Once the topics were given more partitions the older part of a lane's history lies in another one, which is
read too. What is read goes to disk by a hash of the order's id (audit.spill) and comes back a bucket at a
time, so memory doesn't grow with the number of orders. First the offsets that the group has committed are
taken; everything else is read after that, so it holds at least what was committed.
"""

from __future__ import annotations

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from aiokafka import TopicPartition

from audit.checkpoint import Checkpoint, CheckpointUnusable, after
from audit.derived import DERIVED
from audit.findings import Finding, Findings, Report
from audit.foreign import read_json
from audit.index import Letter, Note
from audit.judge import ROW, coordinates, digest_of, origin_of_copy
from audit.lane import LaneAudit, LaneResult, LanesJob, Shared
from audit.log import Log, LogUnavailable, Record, Span
from audit.orders import OrderReader, items_of
from audit.processes import side_by_side, usable_cores
from audit.reference import LARGEST_BATCH, Fact, RecordId, Refusal, is_canonical, parse, parse_decision
from audit.round import Follow, Servers
from audit.scope import Scope, Target, name_of, text_of
from audit.spill import Spill, size_of
from audit.stores import TABLES, Cache, Entry, Rows
from audit.topics import BULK, CREATED, DECISIONS, DLQ, INPUT, LANE, PARTITIONS, REDRIVEN, REKEYED
from errors import OrdersError

RECORDS_A_PROCESS: Final = 20_000
"""Below twice as many everything is done in this process."""
_MOST_RECENT: Final = 50
_MOST_PARCELS: Final = 100
"""That one tracking number shows."""
_MOST_OPEN: Final = 10_000
"""What a checkpoint keeps beside its orders, and how much may be broken."""
_A_FEW: Final = 2_000
"""Records of a partition beyond what is committed, among which those are looked for that are on their way."""
_LOOK: Final = 0.5
"""Seconds between two looks whether the cache is complete."""

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""


class OtherRoom(OrdersError):
    """The changelog takes other batches than was said, so orders may hold more or less. The remedy says by
    which."""


class OtherLanes(OrdersError):
    """The orders' lanes aren't found by the number of partitions that was given. The remedy says by which."""


class Auditor:
    """One audit. `run` may take minutes: it reads everything once.
    It writes nothing but temporary files of its own, and a checkpoint.
    """

    def __init__(
        self,
        target: Target,
        *,
        most_findings: int = 100,
        progress: Progress | None = None,
        on_finding: Callable[[Finding], None] | None = None,
        only: frozenset[str] | None = None,
        processes: int | None = None,
        full: bool = False,
        follow: Follow | None = None,
    ) -> None:
        """`on_finding` is called with every broken finding.

        `only`: audit these orders and nothing else (canonical ids). `processes`: how many lanes are audited
        side by side; None: as many as there are cores. `full`: rely on no earlier audit's checkpoint.
        `follow`: be one round of an audit that follows.
        """
        self._follow = follow
        self.report = Report(target.group)
        self._target = target
        self._most = most_findings
        self._on_finding = on_finding
        self._only = None if only is None else frozenset(order_id.encode() for order_id in only)
        self._full = full
        self._progress = progress or (lambda what, done, total: None)
        self._processes = usable_cores() if processes is None else processes
        self._begin()

    def _begin(self) -> None:
        self.report = Report(self._target.group)
        self._scope = Scope(self._target, self._only)
        self._done = 0
        self._whole = 0
        self._ends: dict[TopicPartition, int] = {}
        self._commits: dict[TopicPartition, int] = {}
        self._all: dict[TopicPartition, Span] = {}
        """Of the topics that lanes read: what is committed, from the log's beginning on."""
        self._checkpoint: Checkpoint | None = None
        self._reader: OrderReader | None = None
        self._open_letters: frozenset[tuple[int, int]] = frozenset()
        self._positions: dict[str, int] = {}
        self._complete: set[str] = set()
        self.left = False
        """Whether there is a checkpoint of it for the next audit."""
        self.inconclusive: set[str] = set()
        """Orders of which differences weren't told because records about them aren't committed."""
        self.lasting: list[Finding] = []
        """What is broken in the log itself, so that no later audit can find it right."""

    async def run(self) -> Report:
        """Audit everything. Raises LogUnavailable or StoreUnavailable when a server isn't there or has no
        orders, OtherLanes, OtherRoom, OSError when the disk is full.
        """
        started = time.monotonic()
        try:
            await self._run()
        except CheckpointUnusable as error:
            if self._follow is not None:
                raise
            self._begin()
            self._full = True
            self.report.notices.append(f"{error.message}: everything is audited anew")
            await self._run()
        self.report.seconds = round(time.monotonic() - started, 3)
        return self.report

    async def _run(self) -> None:
        async with AsyncExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orders-audit-")))
            follow = self._follow
            servers = await Servers.open(self._target, folder, stack) if follow is None else follow.servers
            self._servers, self._index = servers, servers.index
            log, rows, cache = servers.log, servers.rows, servers.cache
            self._findings = Findings(self.report, self._index, self._most, self._on_finding)
            await self._compare_stores(log, cache, stack)
            self._recall()
            async with rows.snapshot():
                if follow is None:
                    self._whole += await rows.estimate() + (0 if cache is None else await cache.size())
                await self._read_former(log)
                await self._read_letters(log)
                await self._read_copies(log)
                await self._read_notes(log)
                stores = Spill(folder, self._scope.lanes)
                stack.callback(stores.close)
                if follow is not None:
                    await self._look_at_quiet(log, rows, cache, follow)
                else:
                    await self._read_rows(rows, stores)
                    if cache is not None:
                        await self._await_cache(log, cache)
                        await self._read_cache(cache, stores)
                await self._audit_lanes(log, stores, folder)
            await self._judge_rest_of_letters(log)
            self._judge_redrives()
            self._judge_checkouts()
            if cache is not None:
                await self._judge_absent(cache)
            await self._settle(log)
            self._leave_checkpoint()

    @property
    def positions(self) -> dict[str, int]:
        """Input partition ("topic/number") -> offset up to which it was judged."""
        return {name_of(partition): span.end for partition, span in self._scope.spans.items()}

    # -- what there is ---------------------------------------------------------------------------------------

    async def _require_room(self, log: Log) -> None:
        """Raise OtherRoom if the changelog says that orders hold more or less than was said: below the
        default it takes batches of exactly that size.
        """
        wanted, changelog = self._target.message_bytes, self._target.changelog
        if changelog not in self._scope.counts:
            return
        actual = await log.largest_batch(changelog)
        if actual is not None and (actual < wanted if wanted == LARGEST_BATCH else actual != wanted):
            raise OtherRoom(
                f"{changelog} has max.message.bytes={actual}, ORDERS_MESSAGE_BYTES is {wanted}: orders hold"
                " more or less than is looked for",
                f"set ORDERS_MESSAGE_BYTES={actual}, if that is what the workers have",
            )

    async def _compare_stores(self, log: Log, cache: Cache | None, stack: AsyncExitStack) -> None:
        report = self.report
        topics = topics_of(self._target)
        self._scope.counts = await log.partitions(topics)
        report.missing_topics = [topic for topic in topics if topic not in self._scope.counts]
        present = [topic for topic in LANE if topic in self._scope.counts]
        if not present:
            raise LogUnavailable("Kafka has none of the input topics", "run orders init")
        if report.missing_topics:
            report.notices.append(
                f"topics missing: {', '.join(report.missing_topics)}; `orders init` creates them"
            )
        await self._require_room(log)
        self._scope.lanes = lanes_of(self._scope.counts)
        for topic, count in self._scope.counts.items():
            if count != self._scope.lanes:
                self._findings.broken(
                    "accounting", "", topic, f"{self._scope.lanes} partitions, as the other topics", count
                )
        # Commits first: what is read later can only be more.
        self._commits = await log.committed(self._target.group)
        partitions = [
            TopicPartition(topic, number) for topic in present for number in range(self._scope.counts[topic])
        ]
        spans = await log.spans(partitions)
        self._ends = {partition: span.end for partition, span in spans.items()}
        for partition, span in spans.items():
            committed = self._commits.get(partition, span.start)
            if committed > span.end:
                self._findings.broken(
                    "accounting", "", name_of(partition), f"at most {span.end} committed", committed
                )
            to = min(max(committed, span.start), span.end)
            report.lag += span.end - to
            self._all[partition] = Span(span.start, to)
            if span.start > 0:
                report.seen_from[name_of(partition)] = span.start
        if report.seen_from:
            report.notices.append(
                "the log's beginning is gone: what it can't prove any more is reported, not broken"
            )
        report.settled = report.lag == 0
        self._scope.cluster = await log.cluster()
        self._scope.topic_ids = await log.topic_ids(self._scope.counts)
        self._checkpoint = self._open_checkpoint(stack)
        if self._follow is not None and not self._follow.advance:
            report.settled = False
        self._scope.spans = {partition: self._since(partition, span) for partition, span in self._all.items()}
        for partition, span in self._scope.spans.items():
            self._all[partition] = Span(self._all[partition].start, span.end)
        others = [
            TopicPartition(topic, n)
            for topic in [*DERIVED, DLQ, self._target.changelog]
            for n in range(self._scope.counts.get(topic, 0))
        ]
        written = [self._since(*each) for each in (await log.spans(others)).items()]
        self._whole = sum(span.end - span.start for span in [*self._scope.spans.values(), *written])
        report.compared = ["log", "changelog", "postgres", *(["redis"] if cache is not None else [])]

    # -- the checkpoint --------------------------------------------------------------------------------------

    def _open_checkpoint(self, stack: AsyncExitStack) -> Checkpoint | None:
        """Find what the last audit left, and tell where this one can't leave anything."""
        target, scope = self._target, self._scope
        if target.checkpoints is None or scope.only is not None:
            return None
        what = scope_of(target, scope.cluster, scope.counts, scope.topic_ids)
        if self._follow is not None:
            checkpoint = self._servers.checkpoint
            assert checkpoint is not None
            if not checkpoint.has_scope(what):
                raise CheckpointUnusable("the topics, or the cluster, are other ones now")
            if self.report.seen_from:
                raise CheckpointUnusable("the log's beginning is gone")
            return checkpoint
        folder = folder_of(target, scope.cluster)
        checkpoint = Checkpoint(folder, what)
        try:
            checkpoint.prepare()
        except BlockingIOError:
            self.report.notices.append("another audit is going on: this one leaves and uses no checkpoint")
            return None
        except OSError as error:
            self.report.notices.append(f"no checkpoint for the next audit: {folder}: {error.strerror}")
            return None
        stack.callback(checkpoint.close)
        if not self._full and checkpoint.load(scope.lanes) and self.report.seen_from:
            raise CheckpointUnusable("the log's beginning is gone")
        return checkpoint

    def _since(self, partition: TopicPartition, span: Span) -> Span:
        """What there is of a partition since the checkpoint. Raises CheckpointUnusable."""
        manifest = None if self._checkpoint is None else self._checkpoint.manifest
        if manifest is None:
            return span
        start = after(manifest, partition, span)
        return Span(start, span.end if self._follow is None or self._follow.advance else start)

    def _leave_checkpoint(self) -> None:
        """Leave a checkpoint for the next audit, unless some of the log is gone."""
        report, checkpoint = self.report, self._checkpoint
        if checkpoint is None or report.seen_from or report.missing_topics:
            return
        checkouts = [(order_id, *record_id) for order_id, record_id in self._index.unplaced_checkouts()]
        letters = [(letter.lane, letter.at) for letter in self._index.unmatched_letters()]
        if max(len(checkouts), len(letters), report.broken.total()) > _MOST_OPEN:
            report.notices.append("no checkpoint for the next audit: there is too much that it would look at")
            return
        self._positions |= {name_of(partition): span.end for partition, span in self._all.items()}
        lasting = [] if checkpoint.manifest is None else [*checkpoint.manifest.lasting]
        lasting = [*dict.fromkeys([*lasting, *self.lasting])]
        try:
            checkpoint.leave(
                self._scope.lanes,
                self._positions,
                self._complete,
                checkouts=checkouts,
                letters=letters,
                lasting=lasting,
                broken=report.broken.total(),
            )
        except (OSError, sqlite3.Error) as error:
            report.notices.append(f"no checkpoint for the next audit: {error}")
        else:
            self.left = True

    def _recall(self) -> None:
        """What the audit before couldn't judge, or found broken in the log itself, counts as found now."""
        manifest = None if self._checkpoint is None else self._checkpoint.manifest
        if manifest is None:
            return
        if not self._servers.read:
            self._open_letters = frozenset(manifest.letters)
            for order_id, *record_id in manifest.checkouts:
                self._index.add_checkout(order_id, RecordId._make(record_id))
        for finding in (*manifest.lasting, *self._servers.lasting):
            self._findings.repeat(finding)

    async def _look_at_quiet(self, log: Log, rows: Rows, cache: Cache | None, follow: Follow) -> None:
        """Find orders that aren't what they were though no record came about them."""
        ends = await self._ends_of_changelog(log)
        behind = {} if cache is None else await cache.behind(self._target.group, ends)
        reader = OrderReader(rows, cache, follow.behind(behind), self._scope.home)
        if follow.advance:
            assert self._checkpoint is not None
            await follow.look(reader, self._checkpoint, self._scope.lanes)
        self._reader = reader

    def _tell_trusted(self, orders: int) -> None:
        manifest = None if self._checkpoint is None else self._checkpoint.manifest
        if manifest is None:
            return
        records = sum(manifest.positions.values())
        self.report.trusted = {"since": manifest.at, "records": records, "orders": orders}
        self.report.notices.append(
            f"taken on trust from the audit of {manifest.at}: {records:,} records, which weren't read again,"
            f" and {orders:,} orders, of which rows, cache entries and local states are what they were then;"
            " --full reads everything"
        )

    # -- what lanes share: dead letters, copies, stores ------------------------------------------------------

    async def _read_former(self, log: Log) -> None:
        lanes: int | None = None
        for partition, span in (await log.written([PARTITIONS], 0, self._scope.counts)).items():
            async for records in log.read(partition, span):
                for record in records:
                    lanes, self._scope.former = _lanes_told(record.value) or (lanes, self._scope.former)
        if None not in (lanes, self._target.partitions) and lanes != self._target.partitions:
            raise OtherLanes(
                f"the orders are spread over {lanes} lanes, ORDERS_PARTITIONS is {self._target.partitions}",
                f"set it to {lanes}",
            )

    async def _read_letters(self, log: Log) -> None:
        for number in range(self._scope.counts.get(DLQ, 0)):
            for partition, span in (await log.written([DLQ], number, self._scope.counts)).items():
                self._positions[name_of(partition)] = span.end
                async for records in self._read(log, partition, self._unread(partition, span)):
                    letters = (self._letter(number, record) for record in records)
                    self._index.add_letters(filter(None, letters), self._judged_before)

    def _unread(self, partition: TopicPartition, span: Span) -> Span:
        """What of a partition these servers haven't been asked for yet."""
        read = self._servers.read
        start, read[partition] = max(read.get(partition, 0), span.start), span.end
        return Span(start, span.end)

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
        read = (
            record_id is not None
            and TopicPartition(record_id.topic, record_id.partition) in self._scope.spans
        )
        if missing or not read or record_id is None:
            where = f"{DLQ}/{lane}@{record.offset}"
            expected = (
                "headers dlq_topic, dlq_partition, dlq_offset (of an input record), dlq_reason, dlq_detail,"
                " dlq_time"
            )
            actual = f"{', '.join(missing)} missing" if missing else f"coordinates {record_id or 'missing'}"
            self._servers.lasting.append(
                self._findings.broken("letters", "", where, expected, actual, proven=True)
            )
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
        for number in range(self._scope.counts.get(REKEYED, 0)):
            for partition, span in (await log.written([REKEYED], number, self._scope.counts)).items():
                async for records in log.read(partition, self._unread(partition, span)):
                    # Of those that don't say where they came from none of us wrote: they are refused.
                    self._index.add_copies(
                        origin for record in records if (origin := origin_of_copy(record.headers)) is not None
                    )

    async def _read_notes(self, log: Log) -> None:
        for number in range(self._scope.counts.get(REDRIVEN, 0)):
            for partition, span in (await log.written([REDRIVEN], number, self._scope.counts)).items():
                async for records in log.read(partition, self._unread(partition, span)):
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
            return Note(text_of(record.key or b""), str(note["reason"]), origin, to)
        except (ValueError, TypeError, KeyError) as error:
            expected = "reason, refused record and sent record of a redrive"
            where = f"{REDRIVEN}/{lane}@{record.offset}"
            self._servers.lasting.append(
                self._findings.broken("letters", "", where, expected, f"{type(error).__name__}: {error}")
            )
            return None

    async def _read_rows(self, rows: Rows, stores: Spill) -> None:
        for number, table in enumerate(TABLES):
            count = 0

            def take(key: bytes, line: bytes, number: int = number, table: str = table) -> None:
                nonlocal count
                if self._scope.wanted(key):
                    stores.add(self._scope.home(key), (key, ROW, number, line), len(line) + 36)
                count += 1
                if count % 10_000 == 0:
                    self._done += 10_000
                    self._progress(table, self._done, self._whole)

            await rows.lines(table, take)

    async def _await_cache(self, log: Log, cache: Cache) -> None:
        """An entry that is older than its state isn't broken while its lane still refreshes what the cache
        has missed. So that is waited for, as long as it goes on and there is somebody who may do it.
        """
        ends = await self._ends_of_changelog(log)
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

    async def _ends_of_changelog(self, log: Log) -> dict[int, int]:
        lanes = [
            TopicPartition(self._target.changelog, number)
            for number in range(self._scope.counts.get(self._target.changelog, 0))
        ]
        return {partition.partition: span.end for partition, span in (await log.spans(lanes)).items()}

    async def _read_cache(self, cache: Cache, stores: Spill) -> None:
        async for entries in cache.entries():
            for entry in entries:
                self._take_entry(entry, stores)
            self._done += len(entries)
            self._progress("redis", self._done, self._whole)

    def _take_entry(self, entry: Entry, stores: Spill) -> None:
        key, items = entry.key.decode("utf-8", "backslashreplace"), items_of(entry)
        if items is None:
            self._findings.broken("cache", "", key, "a sorted set", entry.kind)
            return
        if isinstance(entry.value, list) and len(entry.value) > _MOST_RECENT:
            self._findings.broken(
                "cache", "", key, f"the newest {_MOST_RECENT} orders", f"{len(items)} members"
            )
        for item in items:
            if self._scope.wanted(item[0]):
                stores.add(self._scope.home(item[0]), tuple(item), size_of(item) + 80)

    # -- lanes -----------------------------------------------------------------------------------------------

    async def _audit_lanes(self, log: Log, stores: Spill, folder: Path) -> None:
        """Audit every lane: one after the other here or, where there is much to read, side by side."""
        scope = self._scope
        numbers = [
            number
            for number in range(scope.lanes)
            if scope.only is None or any(scope.home(key) == number for key in scope.only)
        ]
        processes = min(self._processes, len(numbers), self._whole // RECORDS_A_PROCESS)
        if processes < 2 or self._reader is not None:
            shared, index, reader = self._shared(stores, folder), self._index, self._reader
            results = {
                number: await LaneAudit(
                    shared, number, log, index, self._add_done, self._on_finding, reader
                ).run()
                for number in numbers
            }
        else:
            results = await self._audit_side_by_side(numbers, processes, self._shared(stores, folder))
        for number in numbers:
            result = results[number]
            self.report.take_over(result.report, self._most)
            self._positions |= result.positions
            self._complete |= result.complete
            self.lasting += result.lasting
        self._tell_trusted(sum(result.trusted for result in results.values()))

    def _shared(self, stores: Spill, folder: Path) -> Shared:
        return Shared(self._scope, stores, folder, self._most, self._checkpoint)

    async def _audit_side_by_side(
        self, numbers: Sequence[int], processes: int, shared: Shared
    ) -> dict[int, LaneResult]:
        self._index.flush()
        shared.stores.flush()
        results: dict[int, LaneResult] = {}

        def hear(message: Any) -> None:
            if isinstance(message, LaneResult):
                results[message.number] = message
            elif isinstance(message, Finding):
                assert self._on_finding is not None
                self._on_finding(message)
            else:
                self._add_done(*message)

        await side_by_side(
            [
                LanesJob(shared, self._index.read, numbers[first::processes], self._on_finding is not None)
                for first in range(processes)
            ],
            hear,
        )
        for number in numbers:
            self._index.take_over(number)
        return results

    def _add_done(self, what: str, more: int) -> None:
        self._done += more
        self._progress(what, self._done, self._whole)

    # -- when all lanes are done -----------------------------------------------------------------------------

    async def _judge_rest_of_letters(self, log: Log) -> None:
        """Dead letters that no refused record or key asked for."""
        if self._scope.only is not None:
            return
        read = 0
        for letter in self._index.unmatched_letters():
            partition = TopicPartition(letter.record_id.topic, letter.record_id.partition)
            span = self._all[partition]
            if not span.start <= letter.record_id.offset < span.end:
                self.report.counts["letters_out_of_sight"] += 1
                continue
            order_id, read = "", read + 1
            if read <= self._most:
                async for records in log.read(
                    partition, Span(letter.record_id.offset, letter.record_id.offset + 1)
                ):
                    for record in records:
                        said = (record.key, record.value, record.headers, record.timestamp)
                        outcome = parse(letter.record_id.topic, *said)
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

    def _judged_before(self, letter: Letter) -> bool:
        """Whether an earlier audit has found the record of this dead letter."""
        manifest = None if self._checkpoint is None else self._checkpoint.manifest
        return (
            manifest is not None
            and letter.at < manifest.positions.get(f"{DLQ}/{letter.lane}", 0)
            and (letter.lane, letter.at) not in self._open_letters
        )

    def _judge_redrives(self) -> None:
        """Each record that went back is in the log once, and in the ledger."""
        if self._scope.only is not None:
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
            span = self._scope.spans.get(TopicPartition(note.to.topic, note.to.partition))
            if span is not None and span.start <= note.to.offset < span.end:
                expected = f"the record of dead letter {note.letter}"
                self.lasting.append(
                    self._findings.broken(
                        "letters", "", str(note.to), expected, "another one", note.origin, proven=True
                    )
                )

    def _judge_checkouts(self) -> None:
        """Each accepted checkout has become an order.created, in whichever lane."""
        self._findings.truncated = False
        for order_id, record_id in self._index.unplaced_checkouts():
            home = self._scope.home(order_id.encode())
            known = self._checkpoint is not None and self._checkpoint.knows_placed(order_id, home)
            if self._scope.only is None and not known:
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
            before, orders = self._index.waiting_by_check(), self._index.waiting_orders()
            await self._forgive(log, {**self._scope.spans}, ends)
            report.inconclusive = before - self._index.waiting_by_check()
            self.inconclusive = orders - self._index.waiting_orders()
            what = f"lag {report.lag}" if report.lag else "records came in during the audit"
            report.notices.append(
                f"{what}: the pipeline is at work or stopped before the end, so some orders may be ahead of"
                f" what is committed; {report.inconclusive.total()} differences of such orders are"
                " inconclusive. Run `orders wait`, then audit again"
            )
        self._findings.judge()

    async def _forgive(
        self, log: Log, spans: dict[TopicPartition, Span], ends: dict[TopicPartition, int]
    ) -> None:
        """Forget the findings about orders of which there are records after `spans`, up to `ends`.

        Those that are on their way lie at the beginning, however many come after them. So it reads a few of
        each partition, then more, as long as there is anything to forget.
        """
        self._index.forget([""])
        some = _A_FEW
        while spans and self._index.waiting:
            for partition, span in [*spans.items()]:
                after = Span(span.end, min(span.end + some, ends[partition]))
                async for records in log.read(partition, after):
                    self._index.forget(
                        {order_id for record in records for order_id in _about(partition.topic, record)}
                    )
                spans[partition] = after
                if after.end >= ends[partition]:
                    del spans[partition]
                if not self._index.waiting:
                    break
            some *= 8

    async def _read(self, log: Log, partition: TopicPartition, span: Span) -> AsyncIterator[Sequence[Record]]:
        async for records in log.read(partition, span):
            yield records
            self._done += len(records)
            self._progress(name_of(partition), self._done, self._whole)


def topics_of(target: Target) -> list[str]:
    """All topics that an audit reads."""
    return [*LANE, *DERIVED, DLQ, REDRIVEN, PARTITIONS, target.changelog]


def folder_of(target: Target, cluster: str) -> Path:
    """Where the checkpoints of this group on this cluster lie."""
    assert target.checkpoints is not None
    return target.checkpoints / target.group / cluster


def scope_of(
    target: Target, cluster: str, counts: Mapping[str, int], topic_ids: Mapping[str, str]
) -> dict[str, Any]:
    """What a checkpoint is one of. `counts`: partitions of each topic; `topic_ids`: see Scope."""
    return {
        "group": target.group,
        "cluster": cluster,
        "changelog": target.changelog,
        "lanes": target.partitions or lanes_of(counts),
        "topics": dict(counts),
        "topic ids": dict(topic_ids),
        "message_bytes": target.message_bytes,
    }


def lanes_of(counts: Mapping[str, int]) -> int:
    """How many lanes there are; 0: none of the input topics is there."""
    return max((counts[topic] for topic in LANE if topic in counts), default=0)


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
    if _says_order(record.value) == record.key and topic in INPUT:
        return [text_of(record.key or b"")]
    order_ids = [text_of(record.key or b"")] if is_canonical(record.key) else []
    if topic == DECISIONS:
        decision = parse_decision(record.value, record.headers)
        return order_ids if isinstance(decision, Refusal) else [*order_ids, decision.order_id]
    origin = origin_of_copy(record.headers) if topic == REKEYED else None
    said = (record.key, record.value, record.headers, record.timestamp)
    fact = parse(origin.topic if origin else topic, *said)
    return [*order_ids, fact.order_id] if isinstance(fact, Fact) else order_ids


class _Said(msgspec.Struct):
    order_id: str = ""


_decode_said: Final = msgspec.json.Decoder(_Said).decode


def _says_order(value: bytes | None) -> bytes:
    """The order of an event in the binary binding; b"": it has to be looked at more closely."""
    try:
        return _decode_said(value or b"").order_id.encode()
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return b""


def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        return False
