"""Files of orders, shipping updates or returns as bulk jobs: read, validated line by line, cut into parts, sent.

A line is judged by events.decode, like every record. CSV, NDJSON and Parquet, plain or gzipped, are told apart by their content.
docs/bulk.md shows each.
"""

from __future__ import annotations

import asyncio
import csv
import gzip
import hashlib
import io
import shutil
import tempfile
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final, Literal, NamedTuple, get_args
from uuid import UUID

import msgspec

from domain import bulk, errors, events, ids
from domain.bulk import EVENT, EVENT_BYTES, PART_BYTES, PART_EVENTS, TOPIC, Kind
from domain.errors import Refused
from settings import Settings
from sinks.bulk import BulkJobs
from sources.event import SourceError
from wire import AIOKafkaProducer

Format = Literal["csv", "ndjson", "parquet"]
FORMATS: Final[tuple[Format, ...]] = get_args(Format)

IN_FLIGHT: Final = 4
"""Parts that are under way at once."""
NOTED_EVERY: Final = 20
"""Parts between two notes of how far a job was sent."""

_MODEL: Final[dict[Kind, type[msgspec.Struct]]] = {
    "orders": events.OrderCreated,
    "shipments": events.ShipmentUpdated,
    "returns": events.OrderReturned,
}


def _names(model: type[msgspec.Struct], *, required: bool = False) -> tuple[str, ...]:
    return tuple(each.name for each in msgspec.structs.fields(model) if each.required or not required)


ITEM_COLUMNS: Final = _names(events.ItemData)
"""Of orders that are a row an item: what belongs to the item. Everything else belongs to the order."""


class Row(NamedTuple):
    """One line of a file; `error` if it isn't one."""

    line: int
    values: dict[str, Any]
    error: Refused | None = None


class Refusal(NamedTuple):
    """A line that can't be taken in, and why. The detail holds no value of a free-text field."""

    line: int
    reason: str
    detail: str


@dataclass(slots=True)
class Job:
    """A file, validated and cut into parts, nothing of it sent. `lines` are records: of orders that are a row an item, orders."""

    id: str
    kind: Kind
    format: Format
    digest: str
    spool: IO[bytes]
    lines: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    ignored: list[str] = field(default_factory=list)
    """Columns that no event knows."""
    parts: list[tuple[int, int]] = field(default_factory=list)
    """Where each part's events are in `spool`, and how many bytes."""

    @property
    def refused(self) -> int:
        return self.reasons.total()


def prepare(
    path: str,
    kind: Kind,
    stack: ExitStack,
    *,
    stdin: IO[bytes],
    format: Format | None = None,
    job: str | None = None,
    refuse: Callable[[Refusal], None] = lambda _: None,
    progress: Callable[[int], None] = lambda _: None,
) -> Job:
    """Read and validate a file (`-`: stdin). `refuse` gets each line that can't be taken in, `progress` the lines read.

    Needs as much room below $TMPDIR as the file has, twice, until `stack` is closed. Blocks. Raises SourceError when it can't be read as a
    whole: then nothing of it counts.
    """
    content, digest = _content(path, stack, stdin)
    found = format or _sniff(content)
    made = Job(job or bulk.job_id(kind, digest), kind, found, digest, _temporary(stack))
    events_of_part: list[bytes] = []
    size = 0

    def flush() -> None:
        joined = b",".join(events_of_part)
        made.parts.append((made.spool.tell(), len(joined)))
        made.spool.write(joined)
        events_of_part.clear()

    for row in _rows(path, content, kind, found, made.ignored):
        made.lines += 1
        if made.lines % 1000 == 0:
            progress(made.lines)
        try:
            value = encode(kind, made.id, row)
        except Refused as refused:
            made.reasons[refused.code] += 1
            refuse(Refusal(row.line, refused.code, refused.detail))
            continue
        if events_of_part and (len(events_of_part) >= PART_EVENTS or size + len(value) > PART_BYTES):
            flush()
            size = 0
        events_of_part.append(value)
        size += len(value)
        made.accepted += 1
    if events_of_part:
        flush()
    if not made.lines:
        raise SourceError(f"{path}: holds no {kind}")
    return made


def encode(kind: Kind, job: str, row: Row) -> bytes:
    """A line as an event of a part. Raises Refused, as the pipeline would refuse the event. Never blocks."""
    if row.error is not None:
        raise row.error
    type_, values = EVENT[kind], row.values
    id_, time = values.get("id", bulk.event_id(job, row.line)), values.get("time")
    if time is None:
        raise Refused(errors.FIELD_MISSING, "$.time: missing")
    for name, text in (("id", id_), ("time", time)):
        if not isinstance(text, str):
            raise Refused(errors.FIELD_MALFORMED, f"$.{name}: not text")
    try:
        value = msgspec.json.encode({**values, "id": id_, "time": time})
        headers = bulk.headers_of(type_, id_, time, "/bulk")
    except UnicodeEncodeError:
        raise Refused(errors.FIELD_MALFORMED, "not UTF-8") from None
    if len(value) > EVENT_BYTES:
        raise Refused(errors.RECORD_TOO_LARGE, f"above {EVENT_BYTES:,} bytes as JSON")
    events.decode(type_, headers, value)
    return value


async def send(settings: Settings, job: Job, *, again: bool = False, progress: Callable[[int], None] = lambda _: None) -> int:
    """Send the job's parts that weren't sent before (all with `again`), each acknowledged, and note it in orders_bulk_job.

    Returns how many were sent now. `progress` gets the parts sent so far, earlier ones included. Raises sinks.bulk.OtherJob, and what
    aiokafka and asyncpg raise: what was acknowledged until then stays, and the same file again goes on from there.
    """
    topic, count = TOPIC[job.kind], len(job.parts)
    async with BulkJobs(settings, "orders-bulk-submit") as jobs:
        first = await jobs.begin(job.id, job.kind, count, job.lines, job.refused, job.digest, again=again)
        if first >= count:
            return 0
        producer = AIOKafkaProducer(
            bootstrap_servers=settings.brokers,
            client_id="orders-bulk-submit",
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            max_request_size=16 << 20,
        )
        flying: deque[tuple[int, Any]] = deque()

        async def land() -> None:
            part, future = flying.popleft()
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
        finally:
            await producer.stop()
            await asyncio.gather(*(future for _, future in flying), return_exceptions=True)
        return count - first


# -- files ------------------------------------------------------------------------------------------------------------


def _content(path: str, stack: ExitStack, stdin: IO[bytes]) -> tuple[IO[bytes], str]:
    """The file's content, gunzipped, in a temporary file, and its sha256."""
    source: Any = stdin if path == "-" else stack.enter_context(Path(path).open("rb"))  # noqa: SIM115
    content, digest = _temporary(stack), hashlib.sha256()
    buffered = source if hasattr(source, "peek") else io.BufferedReader(source)
    try:
        if buffered.peek(2)[:2] == b"\x1f\x8b":
            buffered = gzip.GzipFile(fileobj=buffered)
        shutil.copyfileobj(buffered, content, 1 << 20)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(f"{path}: gzip that is cut short or broken ({error}); nothing of it was sent") from error
    content.seek(0)
    while block := content.read(1 << 20):
        digest.update(block)
    content.seek(0)
    return content, digest.hexdigest()


def _temporary(stack: ExitStack) -> IO[bytes]:
    return stack.enter_context(tempfile.TemporaryFile())


def _sniff(content: IO[bytes]) -> Format:
    start = content.read(4096)
    content.seek(0)
    if start.startswith(b"PAR1"):
        return "parquet"
    return "ndjson" if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{") else "csv"


def _rows(path: str, content: IO[bytes], kind: Kind, format: Format, ignored: list[str]) -> Iterator[Row]:
    if format == "ndjson":
        return _ndjson(content)
    columns, rows = _csv(path, content) if format == "csv" else _parquet(path, content)
    flat = kind == "orders" and (format == "csv" or "items" not in columns)
    own = tuple(name for name in _names(_MODEL[kind]) if not (flat and name == "items"))
    needed = [*(name for name in _names(_MODEL[kind], required=True) if name in own), "time"]
    if flat:
        needed += _names(events.ItemData, required=True)
    missing = [name for name in needed if name not in columns]
    if missing:
        raise SourceError(f"{path}: no column {missing[0]}; {kind} need {', '.join(needed)}")
    known = {*own, "id", "time", *(ITEM_COLUMNS if flat else ())}
    ignored += [name for name in columns if name not in known]
    kept = (Row(row.line, {name: value for name, value in row.values.items() if name in known}, row.error) for row in rows)
    return _orders(kept) if flat else kept


def _lines(content: IO[bytes]) -> Iterator[tuple[int, bytes | Refused]]:
    """Number and bytes of each line that isn't blank; of one that is too long to be an event, why it is refused."""
    number = 0
    while line := content.readline(EVENT_BYTES + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if len(line) > EVENT_BYTES + 1 and not line.endswith(b"\n"):
            while line and not line.endswith(b"\n"):
                line = content.readline(1 << 20)
            yield number, Refused(errors.RECORD_TOO_LARGE, f"a line above {EVENT_BYTES:,} bytes")
        elif line.strip():
            yield number, line


def _ndjson(content: IO[bytes]) -> Iterator[Row]:
    for number, line in _lines(content):
        values: Any = {}
        refused: Refused | None = None
        try:
            if isinstance(line, Refused):
                raise line
            values = msgspec.json.decode(line)
        except Refused as why:
            refused = why
        except (msgspec.DecodeError, UnicodeError) as error:
            refused = Refused(errors.NOT_JSON, str(error))
        except RecursionError:
            refused = Refused(errors.NOT_JSON, "nested too deep")
        if isinstance(values, dict):
            yield Row(number, values, refused)
        else:
            yield Row(number, {}, Refused(errors.FIELD_MALFORMED, "$: not an object"))


def _csv(path: str, content: IO[bytes]) -> tuple[list[str], Iterator[Row]]:
    csv.field_size_limit(EVENT_BYTES)
    lines = _lines(content)

    def cells(line: bytes | Refused) -> list[str]:
        # Each line by itself: a quote that isn't closed refuses its line, and doesn't swallow those after it.
        if isinstance(line, Refused):
            raise line
        try:
            return next(csv.reader([line.decode().rstrip("\r\n")], strict=True))
        except UnicodeDecodeError:
            raise Refused(errors.FIELD_MALFORMED, "not UTF-8") from None
        except csv.Error as error:
            raise Refused(errors.FIELD_MALFORMED, f"not CSV: {error}") from None

    try:
        columns = [name.strip() for name in cells(next(lines, (0, b","))[1])]
    except Refused as refused:
        raise SourceError(f"{path}: its first line is no header of CSV ({refused.detail})") from None

    def rows() -> Iterator[Row]:
        for number, line in lines:
            values: dict[str, Any] = {}
            refused: Refused | None = None
            try:
                found = cells(line)
                if len(found) != len(columns):
                    refused = Refused(errors.FIELD_MALFORMED, f"{len(found)} cells, not {len(columns)}")
                for name, text in zip(columns, found, strict=False):
                    if text:
                        values[name] = _cell(name, text)
            except Refused as why:
                refused = why
            yield Row(number, values, refused)

    return columns, rows()


def _cell(name: str, text: str) -> Any:
    """A cell as the type of its field. What is of no such type stays text, and is refused as such."""
    if name == "quantity" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if name == "restock" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name == "items":
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Refused(errors.FIELD_MALFORMED, f"$.items: not JSON ({error})") from None
    return text


def _parquet(path: str, content: IO[bytes]) -> tuple[list[str], Iterator[Row]]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError:
        raise SourceError(f"{path}: Parquet needs pyarrow; run pip install 'orders-stream[parquet]'") from None
    try:
        file = pq.ParquetFile(content)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: cannot be read as Parquet ({error})") from error

    def rows() -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches(batch_size=1000):
                for values in pa.Table.from_batches([batch]).cast(_in_microseconds(pa, batch.schema), safe=False).to_pylist():
                    number += 1
                    yield Row(number, _plain(values))
        except (pa.ArrowException, OSError) as error:
            raise SourceError(f"{path}: cannot be read as Parquet after row {number} ({error}); nothing of it was sent") from error

    return list(file.schema_arrow.names), rows()


def _in_microseconds(pa: Any, schema: Any) -> Any:
    """Python's times have no nanoseconds, nor has an event."""
    return pa.schema(
        [pa.field(each.name, pa.timestamp("us", tz=each.type.tz)) if pa.types.is_timestamp(each.type) else each for each in schema]
    )


def _plain(value: Any) -> Any:
    """A value of Parquet as JSON has it; null is absent."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return str(UUID(bytes=value)) if len(value) == 16 else value.decode("utf-8", "surrogateescape")
    return value


def _orders(rows: Iterable[Row]) -> Iterator[Row]:
    """A row an item -> an order each: rows that follow each other and have the same order_id."""
    mine: list[Row] = []
    for row in rows:
        if mine and row.values.get("order_id") != mine[0].values.get("order_id"):
            yield _order(mine)
            mine = []
        mine.append(row)
    if mine:
        yield _order(mine)


def _order(rows: list[Row]) -> Row:
    first, error = rows[0], next((row.error for row in rows if row.error is not None), None)
    values = {name: value for name, value in first.values.items() if name not in ITEM_COLUMNS}
    for row in rows[1:]:
        differs = next((name for name in row.values if name not in ITEM_COLUMNS and row.values[name] != values.get(name)), None)
        if differs is not None and error is None:
            error = Refused(errors.FIELD_MALFORMED, f"$.{differs}: in line {row.line} not as in line {first.line}, the order's first")
    values["items"] = [{name: value for name, value in row.values.items() if name in ITEM_COLUMNS} for row in rows]
    return Row(first.line, values, error)
