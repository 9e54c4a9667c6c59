"""Files of orders, shipping updates, returns or payments as bulk jobs: read, validated line by
line, cut into parts, sent.

A line is judged by events.decode, like every record.
CSV, NDJSON and Parquet, plain or gzipped, are told apart by their content. docs/bulk.md shows each.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import sqlite3
import sys
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any, Final, Literal, NamedTuple, get_args
from uuid import UUID

import msgspec
from aiokafka.errors import KafkaTimeoutError

from contracts import bulk, errors, ids, incoming, times
from contracts.bulk import EVENT, EVENT_BYTES, PART_BYTES, PART_EVENTS, TOPIC, Kind
from contracts.errors import Refused, SourceError
from domain import events
from operations.submit.cutover import CutOver
from operations.submit.files import USUAL, Bounds, copied, no_room, temporary, write
from operations.submit.flat import FlatCsv
from operations.submit.mapped import MappedCsv
from operations.submit.mapping import FlatMapping, Mapping
from operations.submit.parquet import Parquet
from operations.submit.rows import Csv, Row, ndjson
from settings import Settings
from sinks.bulk import BulkJobs
from wire import clients

Format = Literal["csv", "ndjson", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

IN_FLIGHT: Final = 4
"""Parts that are under way at once."""
NOTED_EVERY: Final = 20
"""Parts between two notes of how far a job was sent."""
MAX_ITEMS: Final = 1000
"""Most items of an order."""

SILENCE: Final = 60.0
"""Seconds without an acknowledgement after which Kafka is given up: an idempotent producer
alone would wait for ever.
"""
STOPPING: Final = 2.0
"""Seconds in which a producer that was given up may close its connections."""

_MODEL: Final[dict[Kind, type[msgspec.Struct]]] = {
    "orders": incoming.OrderCreated,
    "shipments": incoming.ShipmentUpdated,
    "returns": incoming.OrderReturned,
    "payments": incoming.OrderPaid,
}


def _names(model: type[msgspec.Struct], *, required: bool = False) -> tuple[str, ...]:
    return tuple(each.name for each in msgspec.structs.fields(model) if each.required or not required)


NOTHING_OLD: Final = CutOver()
"""Every order is taken as it is, however old."""

ITEM_COLUMNS: Final = _names(incoming.ItemData)
"""Of orders that are a row an item: what belongs to the item. Everything else belongs to the order."""


class Refusal(NamedTuple):
    """A line that can't be taken in, and why. The detail holds no value of a free-text field."""

    line: int
    reason: str
    detail: str


@dataclass(slots=True)
class Job:
    """A file, validated and cut into parts, nothing of it sent.
    `lines` are records: of orders that are a row an item, orders.
    """

    id: str
    kind: Kind
    format: Format
    digest: str
    packed: str
    """sha256 of the file as it came."""
    content: str
    """The same of what it holds, unpacked. So is `digest`; with a mapping, of both."""
    spool: io.FileIO
    lines: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    ignored: list[str] = field(default_factory=list)
    """Columns that no event knows."""
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Where each part's events are in `spool`, and how many bytes."""
    old: int = 0
    """Orders that were placed long ago, and that no other system is said to have handled."""

    @property
    def refused(self) -> int:
        return self.reasons.total()


class Parts:
    """Cuts a job's events into parts, and writes these to its spool."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._events: list[bytes] = []
        self._size = 0

    def add(self, value: bytes) -> None:
        """Add the next event. Raises SourceError when there is no room."""
        if self._events and (len(self._events) >= PART_EVENTS or self._size + len(value) > PART_BYTES):
            self.end()
        self._events.append(value)
        self._size += len(value)
        self._job.accepted += 1

    def end(self) -> None:
        """End the part that was begun."""
        if not self._events:
            return
        joined = b",".join(self._events)
        self._job.parts.append((self._job.spool.tell(), len(joined)))
        write(self._job.spool, joined)
        self._events.clear()
        self._size = 0


def prepare(
    path: str,
    kind: Kind,
    stack: ExitStack,
    *,
    stdin: IO[bytes],
    format: Format | None = None,
    job: str | None = None,
    bounds: Bounds = USUAL,
    mapping: Mapping | FlatMapping | None = None,
    cut_over: CutOver = NOTHING_OLD,
    take: Callable[[int, bytes], None] = lambda _, __: None,
    refuse: Callable[[Refusal], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Job:
    """Read and validate a file (`-`: stdin), by a `mapping` if its columns are somebody else's.
    `cut_over` is for orders. `take` gets each line that can be taken in, and its event, `refuse` each that
    can't, `progress` the lines read.

    Needs as much room below $TMPDIR as the file
    has, twice, until `stack` is closed. Blocks. Raises SourceError when it can't be read as a whole:
    then nothing of it counts.
    """
    if mapping is not None and kind != (mapping.kind if isinstance(mapping, FlatMapping) else "orders"):
        raise SourceError(f"the mapping {mapping.name} was loaded for files of another kind")
    content, unpacked, packed = copied(path, stack, stdin, bounds, utf16=mapping is not None)
    file_format = format or _sniff(content)
    digest = _digest(unpacked, mapping, cut_over)
    job_ = Job(
        job or bulk.job_id(kind, digest), kind, file_format, digest, packed, unpacked, temporary(stack)
    )
    parts = Parts(job_)
    if mapping is None:
        rows = _rows(path, content, kind, job_, bounds, stack)
    else:
        rows = _mapped(path, content, mapping, job_, bounds, stack)
    for row in rows:
        job_.lines += 1
        if job_.lines % 1000 == 0:
            progress(job_.lines)
        if kind == "orders":
            row = cut_over.applied(row)
            if mapping is not None and "live_from" not in row.values:
                # Its column is there in every export; of a new order it says nothing.
                row.values.pop("refunded_amount", None)
        try:
            value = encode(kind, job_.id, row, bounds.event)
        except Refused as refused:
            job_.reasons[refused.code] += 1
            refuse(Refusal(row.line, refused.code, refused.detail))
            continue
        parts.add(value)
        take(row.line, value)
        job_.old += kind == "orders" and cut_over.is_old(row)
    parts.end()
    if not job_.lines and not (isinstance(mapping, FlatMapping) and mapping.is_choosy):
        raise SourceError(f"{path}: holds no {kind}")
    return job_


def _digest(content: str, mapping: Mapping | FlatMapping | None, cut_over: CutOver) -> str:
    """That of a job: read by another mapping, or live from another time, the same file is another job."""
    parts = [content]
    if mapping is not None:
        parts.append(mapping.digest)
    if cut_over.live_from is not None:
        parts.append(f"live_from={cut_over.live_from}")
    return content if len(parts) == 1 else hashlib.sha256(":".join(parts).encode()).hexdigest()


async def status(settings: Settings, job: str | None, most: int) -> list[dict[str, Any]]:
    """Rows of orders_bulk_job, the newest job first, each with its state in words.

    Raises what asyncpg raises. Blocks.
    """
    async with BulkJobs(settings, "orders-bulk-status") as jobs:
        return [{**row, "state": _state(row)} for row in await jobs.jobs(job, most)]


def _state(row: dict[str, Any]) -> str:
    if row["completed_at"] is not None:
        return "completed"
    if row["digest"] is not None and row["submitted_at"] is None:
        return "submitting"
    return "unpacking" if row["parts_done"] else "submitted"


def encode(kind: Kind, job: str, row: Row, most: int = EVENT_BYTES) -> bytes:
    """A line as an event of a part, of at most `most` bytes. Raises Refused, as the pipeline would refuse the
    event. Never blocks.
    """
    if row.error is not None:
        raise row.error
    type_, values = EVENT[kind], row.values
    id_, time = values.get("id", bulk.event_id(job, row.line)), values.get("time")
    if time is None:
        raise Refused(errors.FIELD_MISSING, "$.time: missing")
    for name, text in (("id", id_), ("time", time)):
        if not isinstance(text, str):
            raise Refused(errors.FIELD_MALFORMED, f"$.{name}: not text")
    times.parse(time, "$.time")
    try:
        value = msgspec.json.encode({**values, "id": id_, "time": time})
        headers = bulk.headers_of(type_, id_, time, "/bulk")
    except UnicodeEncodeError:
        raise Refused(errors.FIELD_MALFORMED, "not UTF-8") from None
    except (OverflowError, RecursionError):
        raise Refused(errors.FIELD_MALFORMED, "a number too large, or nested too deep") from None
    if len(value) > most:
        raise Refused(errors.RECORD_TOO_LARGE, f"above {most:,} bytes as JSON")
    # As it came, where it came as JSON: what a member says that stands twice, is judged each time.
    events.decode(type_, headers, row.raw or value)
    return value


async def send(
    settings: Settings, job: Job, *, again: bool = False, progress: Callable[[int], None] = lambda _: None
) -> int:
    """Send the job's parts that weren't sent before (all with `again`), each acknowledged, and
    note it in orders_bulk_job.

    Returns how many were sent now. `progress` gets the parts sent so far, earlier ones included. Blocks;
    gives up after SILENCE. Raises sinks.bulk.OtherJob, and what aiokafka and asyncpg raise: what was
    acknowledged stays, and the same file again goes on from there.
    """
    topic, count = TOPIC[job.kind], len(job.parts)
    async with BulkJobs(settings, "orders-bulk-submit") as jobs:
        first = await jobs.begin(job.id, job.kind, count, job.lines, job.refused, job.digest, again=again)
        if first >= count:
            return 0
        producer = clients.producer(
            settings, "orders-bulk-submit", compression_type="lz4", max_request_size=16 << 20
        )
        flying: deque[tuple[int, Any]] = deque()

        async def land() -> None:
            part, future = flying.popleft()
            done, _ = await asyncio.wait([future], timeout=SILENCE)
            if not done:
                raise KafkaTimeoutError(f"no acknowledgement for {SILENCE:g} s")
            await future
            if part % NOTED_EVERY == 0 or part == count:
                await jobs.sent(job.id, part)
            progress(part)

        try:
            await producer.start()
            for part in range(first + 1, count + 1):
                offset, length = job.parts[part - 1]
                job.spool.seek(offset)
                value = bulk.encode_part(job.id, part, count, [job.spool.read(length)])
                id_ = ids.uuid5_text(UUID(job.id).bytes, f"{topic}:{part}")
                headers = bulk.headers_of(topic, id_, datetime.now(UTC).isoformat(), "/bulk")
                flying.append((part, await producer.send(topic, value, key=job.id.encode(), headers=headers)))
                if len(flying) >= IN_FLIGHT:
                    await land()
            while flying:
                await land()
        except BaseException:
            for _, future in flying:
                future.cancel()
            raise
        finally:
            await asyncio.wait(
                [asyncio.ensure_future(producer.stop())], timeout=STOPPING if sys.exception() else None
            )
        return count - first


# -- rows ----------------------------------------------------------------------------------------------------


def _sniff(content: io.BufferedReader) -> Format:
    start = content.peek(4096)[:4096]
    if start.startswith(b"PAR1"):
        return "parquet"
    return "ndjson" if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "csv"


def _how_to_mend(kind: Kind, columns: Sequence[str], needed: Sequence[str]) -> str:
    """What to do about a file that lacks columns."""
    for separator in (";", "\t", "|"):
        if any(needed[0] in name.split(separator) for name in columns):
            return (
                f"its cells seem to be separated by {separator!r}: write a mapping that says so (orders bulk"
                " mapping), or save the file with commas"
            )
    return f"{kind} need {', '.join(needed)}"


def _rows(
    path: str, content: io.BufferedReader, kind: Kind, job: Job, bounds: Bounds, stack: ExitStack
) -> Iterator[Row]:
    if job.format == "ndjson":
        return ndjson(content)
    every = {*_names(_MODEL[kind]), "id", "time", *ITEM_COLUMNS}
    table = Csv(path, content, bounds) if job.format == "csv" else Parquet(path, content, every, bounds)
    flat = kind == "orders" and (job.format == "csv" or "items" not in table.columns)
    own = tuple(name for name in _names(_MODEL[kind]) if not (flat and name == "items"))
    needed = [*(name for name in _names(_MODEL[kind], required=True) if name in own), "time"]
    if flat:
        needed += _names(incoming.ItemData, required=True)
    missing = [name for name in needed if name not in table.columns]
    if missing:
        raise SourceError(f"{path}: no column {missing[0]}", _how_to_mend(kind, table.columns, needed))
    columns = {*own, "id", "time", *(ITEM_COLUMNS if flat else ())}
    job.ignored += [name for name in table.columns if name not in columns]

    def rows() -> Iterator[Row]:
        if isinstance(table, Csv):
            return table.rows(columns, table.columns.index("order_id") if flat else None)
        return table.rows(columns, set(ITEM_COLUMNS), flat)

    return _orders(rows(), _Lines(rows(), stack)) if flat else rows()


def _mapped(
    path: str,
    content: io.BufferedReader,
    mapping: Mapping | FlatMapping,
    job: Job,
    bounds: Bounds,
    stack: ExitStack,
) -> Iterator[Row]:
    if content.peek(4).startswith(b"PAR1") or job.format == "parquet":
        raise SourceError(f"{path}: Parquet, and a mapping is for CSV; nothing of it was sent")
    job.format = "csv"
    table = (
        FlatCsv(path, content, mapping, bounds, stack)
        if isinstance(mapping, FlatMapping)
        else MappedCsv(path, content, mapping, bounds, stack)
    )
    job.ignored += table.ignored
    return table.rows()


class _Lines:
    """Of orders that are a row an item: which of them may not be sent, because a line of theirs is,
    or may be, somewhere else.

    On the local disk, in a nameless file, as far as it doesn't fit into memory.
    """

    def __init__(self, rows: Iterable[Row], stack: ExitStack) -> None:
        """Read all rows. Raises SourceError when there is no room."""
        self.lost: int | None = None
        """The first line that may belong to any order."""
        self._db = stack.enter_context(closing(sqlite3.connect("", isolation_level=None)))
        try:
            self._read(rows)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in (
                sqlite3.SQLITE_FULL,
                sqlite3.SQLITE_IOERR,
                sqlite3.SQLITE_CANTOPEN,
            ):
                raise
            raise no_room(error) from error

    def _read(self, rows: Iterable[Row]) -> None:
        run = self._db.execute
        run("CREATE TABLE orders (id BLOB PRIMARY KEY, line INTEGER, other INTEGER) WITHOUT ROWID")
        run("CREATE TABLE perhaps (line INTEGER, id BLOB)")
        run("BEGIN")
        last: bytes | None = None
        for row in rows:
            if row.order is None:
                # Without any id that stands where the order's should, nothing is in the way
                # of its being any order's.
                run("INSERT INTO perhaps VALUES (?, NULL)", (row.line,))
                for each in row.perhaps:
                    run("INSERT INTO perhaps VALUES (?, ?)", (row.line, each))
            elif row.order != last:
                upsert = (
                    "INSERT INTO orders VALUES (?, ?, NULL) ON CONFLICT (id) DO UPDATE SET other ="
                    " coalesce(other, excluded.line)"
                )
                run(upsert, (row.order, row.line))
            last = row.order
        lost = (
            "SELECT p.line FROM perhaps p LEFT JOIN orders o USING (id) GROUP BY p.line HAVING count(o.id) ="
            " 0 ORDER BY p.line LIMIT 1"
        )
        self.lost = next((line for (line,) in run(lost)), None)
        run("UPDATE orders SET other = p.line FROM perhaps p WHERE p.id = orders.id AND orders.other IS NULL")

    def why_not(self, order: bytes | None, line: int) -> Refused | None:
        """Why an order, met in this line, may not be sent."""
        first, other = self._db.execute(
            "SELECT line, other FROM orders WHERE id = ?", (order,)
        ).fetchone() or (None, None)
        if other is not None:
            elsewhere = other if line == first else first
            return Refused(
                errors.FIELD_MALFORMED,
                f"$.order_id: line {elsewhere} is of this order, too, or may be, and doesn't follow",
            )
        if self.lost is not None:
            return Refused(
                errors.FIELD_MALFORMED,
                f"$.order_id: line {self.lost} may be of this order, too: its order can't be told",
            )
        return None


def _orders(rows: Iterable[Row], lines: _Lines) -> Iterator[Row]:
    """A row an item -> an order each: rows that follow each other and are of the same order."""
    mine: list[Row] = []
    size = 0
    for row in rows:
        if mine and (mine[0].order is None or mine[0].order not in (row.order, *row.perhaps)):
            yield _order(mine, lines)
            mine, size = [], 0
        size += sum(len(value) for value in row.values.values() if isinstance(value, str))
        if size > EVENT_BYTES and row.error is None:
            row = row._replace(error=Refused(errors.RECORD_TOO_LARGE, f"above {EVENT_BYTES:,} bytes as JSON"))
        if row.error is not None:
            row = row._replace(values={})
        # One more than an order may have: it is refused, and no more of it has to be kept.
        if len(mine) <= MAX_ITEMS:
            mine.append(row)
        elif row.error is not None:
            mine[-1] = row
    if mine:
        yield _order(mine, lines)


def _order(rows: list[Row], lines: _Lines) -> Row:
    first = rows[0]
    broken = next((row for row in rows if row.error is not None), None)
    error = lines.why_not(first.order, first.line) if broken is None else broken.error
    if broken is not None and broken is not first and error is not None:
        error = Refused(error.code, f"in line {broken.line}: {error.detail}")
    if error is not None:
        return Row(first.line, {}, error)
    values = {name: value for name, value in first.values.items() if name not in ITEM_COLUMNS}
    for row in rows[1:]:
        differs = next(
            (
                name
                for name in row.values
                if name not in ITEM_COLUMNS and not _same(name, row.values[name], values)
            ),
            None,
        )
        if differs is not None:
            error = Refused(
                errors.FIELD_MALFORMED,
                f"$.{differs}: in line {row.line} not as in line {first.line}, the order's first",
            )
            return Row(first.line, {}, error)
    values["items"] = [
        {name: value for name, value in row.values.items() if name in ITEM_COLUMNS} for row in rows
    ]
    return Row(first.line, values)


def _same(name: str, value: Any, first: dict[str, Any]) -> bool:
    """Tell whether a line says the same about its order as the order's first line; ids may be written
    differently."""
    if value == first.get(name):
        return True
    try:
        return name == "order_id" and msgspec.convert(value, UUID) is not None
    except msgspec.ValidationError:
        return False
