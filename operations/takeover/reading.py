"""A file of a takeover, line by line, each judged as the pipeline judges its event."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import IO, Annotated, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contracts import bulk, errors, times
from contracts.errors import Refused, SourceError
from domain import events
from operations.submit.cutover import CutOver
from operations.submit.files import Bounds, copied
from operations.submit.flat import FlatCsv
from operations.submit.jobs import Refusal, prepare
from operations.submit.mapping import FlatMapping
from operations.submit.rows import Csv, Row, ndjson
from operations.takeover.sources import Source

Take = Callable[[bytes, int, bytes], None]
"""Gets an order's raw id, a line and its event: data, id and time as JSON."""

CANCELLATION: Final = "order.cancel_requested"
RELEASED: Final = "stock.released"
_COLUMNS: Final = ("order_id", "time", "reason", "seller_id", "items", "id")
_NEEDED: Final = _COLUMNS[:3]


class Head(Struct):
    """What every event of a file has."""

    id: str
    time: str
    order_id: Annotated[str, msgspec.Meta(min_length=1)]


class Read(Struct):
    """A file that was read: of how many lines, which columns no event knows, and the digest of what its job
    is made of, hex."""

    lines: int
    ignored: list[str]
    digest: str


_head = msgspec.json.Decoder(Head).decode


def read(
    source: Source,
    stack: ExitStack,
    *,
    stdin: IO[bytes],
    bounds: Bounds,
    cut_over: CutOver,
    take: Take,
    refuse: Callable[[Refusal], None],
    progress: Callable[[int], None],
) -> Read:
    """Read and validate a file. Blocks; needs room below $TMPDIR until `stack` is closed.

    Raises SourceError when it can't be read as a whole.
    """

    def taken(line: int, value: bytes) -> None:
        take(UUID(_head(value).order_id).bytes, line, value)

    if source.kind == "cancellations":
        return _cancellations(source, stack, stdin, bounds, taken, refuse)
    job = prepare(
        source.path,
        source.kind,  # type: ignore[arg-type]
        stack,
        stdin=stdin,
        bounds=bounds,
        mapping=source.mapping,
        cut_over=cut_over,
        take=taken,
        refuse=refuse,
        progress=progress,
    )
    return Read(job.lines, job.ignored, job.digest)


def _cancellations(
    source: Source,
    stack: ExitStack,
    stdin: IO[bytes],
    bounds: Bounds,
    take: Callable[[int, bytes], None],
    refuse: Callable[[Refusal], None],
) -> Read:
    content, digest, _ = copied(source.path, stack, stdin, bounds, utf16=source.mapping is not None)
    job, ignored, lines = bulk.job_id("returns", f"cancellations:{digest}"), [], 0
    start = content.peek(4096)[:4096]
    rows: Iterator[Row]
    if isinstance(source.mapping, FlatMapping):
        table = FlatCsv(source.path, content, source.mapping, bounds, stack)
        rows, ignored = table.rows(), table.ignored
    elif start.startswith(b"PAR1"):
        raise SourceError(f"{source.path}: Parquet; cancellations are read from CSV or NDJSON")
    elif start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"{"):
        rows = ndjson(content)
    else:
        ours = Csv(source.path, content, bounds)
        missing = next((name for name in _NEEDED if name not in ours.columns), None)
        if missing is not None:
            raise SourceError(f"{source.path}: no column {missing}", f"it needs {', '.join(_NEEDED)}")
        rows, ignored = ours.rows(_COLUMNS), [name for name in ours.columns if name not in _COLUMNS]
    for row in rows:
        lines += 1
        try:
            take(row.line, _cancellation(row, job))
        except Refused as refused:
            refuse(Refusal(row.line, refused.code, refused.detail))
    if not lines and not (isinstance(source.mapping, FlatMapping) and source.mapping.is_choosy):
        raise SourceError(f"{source.path}: holds no cancellations")
    return Read(lines, ignored, digest)


def _cancellation(row: Row, job: str) -> bytes:
    """A line as JSON, judged as both events that become of it. Raises Refused."""
    if row.error is not None:
        raise row.error
    values: dict[str, Any] = {name: row.values[name] for name in _COLUMNS if name in row.values}
    missing = next((name for name in _NEEDED if name not in values), None)
    if missing is not None:
        raise Refused(errors.FIELD_MISSING, f"$.{missing}: missing")
    values.setdefault("id", bulk.event_id(job, row.line))
    if not isinstance(values["id"], str) or not isinstance(values["time"], str):
        raise Refused(errors.FIELD_MALFORMED, "$.id or $.time: not text")
    times.parse(values["time"], "$.time")
    value = msgspec.json.encode(values)
    seller = values.get("seller_id", values["order_id"])
    released = {**values, "seller_id": seller, "reservation_id": values["order_id"]}
    for type_, data in ((CANCELLATION, value), (RELEASED, msgspec.json.encode(released))):
        events.decode(type_, bulk.headers_of(type_, values["id"], values["time"], "/bulk"), data)
    return value


class Line(Struct):
    """Of an order's line: what a cancellation needs."""

    item_id: UUID
    seller_id: UUID


class OrderLine(Head):
    """An order of a file."""

    items: list[Line]
    live_from: str | UnsetType = UNSET
    refunded_amount: str | UnsetType = UNSET


class PaymentLine(Head):
    """A payment of a file."""

    payment_id: UUID


class Quantity(Struct):
    """So many units of an item."""

    item_id: UUID
    quantity: int


class CancellationLine(Head):
    """A cancellation of a file."""

    reason: str
    seller_id: UUID | UnsetType = UNSET
    items: list[Quantity] | UnsetType = UNSET
