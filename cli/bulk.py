"""`orders bulk`: files of orders, shipping updates, returns or payments as background jobs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from enum import Enum
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn
from uuid import UUID

import typer

from cli.noting import Reason, noted
from cli.terminal import Bar, Rows, Wide, output, progress
from cli.text import say
from contracts.printable import printable
from errors import OrdersError
from operations.servers import require
from operations.submit.cells import made_id
from operations.submit.cutover import CutOver
from operations.submit.files import Bounds, temporary, write
from operations.submit.jobs import Job, Refusal, prepare, send, status
from operations.submit.mapping import load_for, namespace_of, ready_text
from settings import Settings, get_settings
from sinks.bulk import OtherJob

app = typer.Typer(
    help=(
        "Send files of orders, shipping updates, returns or payments as background jobs.\n\nExample:"
        " [bold]orders bulk submit orders orders.csv.gz --report refused.ndjson[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

SHOWN: Final = 20
"""Refused lines that a person is shown."""
KEPT: Final = 1000
"""Refused lines in the JSON document; --report has them all."""


class KindName(Enum):
    """The kind of events that a file holds."""

    orders = "orders"
    shipments = "shipments"
    returns = "returns"
    payments = "payments"


class FormatName(Enum):
    """The format of a file."""

    csv = "csv"
    ndjson = "ndjson"
    parquet = "parquet"


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def _bulk() -> None:
    """Files of orders, shipping updates, returns or payments as background jobs."""


JobId = Annotated[
    str | None,
    typer.Option(help="The job's UUID. Default: one made from kind and content.", show_default=False),
]
Format = Annotated[
    FormatName | None,
    typer.Option(help="Format of the file. Default: recognised by its content.", show_default=False),
]
MaxBytes = Annotated[
    int | None,
    typer.Option(
        min=1,
        help=(
            "Most bytes of the unpacked file. Default: 4 GiB (ORDERS_BULK_FILE_BYTES), and 100 times the size"
            " of the file (ORDERS_BULK_FILE_RATIO)."
        ),
        show_default=False,
    ),
]
MappingName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help=(
            "CSV with somebody else's columns: a mapping's name (shopify) or its TOML file (docs/mapping.md)."
        ),
        show_default=False,
    ),
]


LiveFrom = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help=(
            "Until then another system handled these orders, and what happened before causes no command. For"
            " orders without a live_from of their own."
        ),
        show_default=False,
    ),
]
File = Annotated[
    str, typer.Argument(metavar="FILE", help="CSV, NDJSON or Parquet, plain or gzipped; - is stdin.")
]
Report = Annotated[
    Path | None, typer.Option(help="Write every refused line to this file, NDJSON.", show_default=False)
]
Again = Annotated[bool, typer.Option("--again", help="Send the whole job even if it was sent before.")]
AsNew = Annotated[bool, typer.Option("--as-new", help="Send old orders as new ones all the same.")]


@app.command("submit")
def submit_command(
    kind: Annotated[KindName, typer.Argument(help="What the file holds.")],
    file: File,
    job: JobId = None,
    format: Format = None,
    report: Report = None,
    max_bytes: MaxBytes = None,
    mapping: MappingName = None,
    live_from: LiveFrom = None,
    as_new: AsNew = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate, and send nothing.")] = False,
    again: Again = False,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Validate a file line by line, and send the valid lines as a bulk job. A refused line harms no other.

    The same file is the same job: submitted twice it is sent once, and after a kill it goes on where it was.
    A worker with the role bulk or all unpacks it. docs/bulk.md lists the columns; a mapping says which of
    another program's export they are. Orders placed more than ORDERS_HISTORY_AGE ago need --live-from or
    --as-new.

    Exits 0 if every line was accepted, 1 if some were refused (the others are sent) or sending failed in the
    middle, 2 if it couldn't run and sent nothing.

    Example: [bold]orders bulk submit orders orders.csv.gz --report refused.ndjson[/bold]

    Example: [bold]orders bulk submit orders orders_export.csv --mapping shopify --dry-run[/bold]

    Example: [bold]orders bulk submit orders old-shop.csv --live-from 2026-03-10T12:00:00Z[/bold]
    """
    settings, started = get_settings(), time.monotonic()
    mapped = None if mapping is None else load_for(kind.value, mapping)
    cut_over, sending = _cut_over(settings, kind, live_from, as_new), _Sending(settings, again)
    with ExitStack() as stack:
        refused = _Refused(report, file, stack)
        bar = stack.enter_context(progress("lines read", quiet=as_json))
        prepared = prepare(
            file,
            kind.value,
            stack,
            stdin=sys.stdin.buffer,
            format=None if format is None else format.value,
            job=None if job is None else _uuid(job),
            bounds=bounds_of(settings, max_bytes),
            mapping=mapped,
            cut_over=cut_over,
            refuse=refused.add,
            progress=bar.show,
        )
        refused.write(prepared)
        too_old = None if as_new or not prepared.old else _too_old(file, prepared.old, settings)
        if too_old is not None and not dry_run:
            raise too_old
        if prepared.parts and not dry_run:
            with noted(settings, "bulk submit", why) as operation:
                sending.run(prepared, bar.another("parts sent", len(prepared.parts)))
                operation.failure = sending.failure
    failure, seconds = sending.failure, time.monotonic() - started
    outcome = SubmitResult(sending.sent, settings.bulk_rate, dry_run, failure is not None, seconds, too_old)
    _report(prepared, refused.first, outcome, as_json)
    if refused.failed is not None:
        say(
            f"orders: --report {report}: {refused.failed.strerror}; it doesn't hold every refused line",
            file=sys.stderr,
        )
    if failure is not None:
        _fail(failure, sending.sent)
    if prepared.refused or refused.failed is not None:
        raise typer.Exit(1)


def _cut_over(settings: Settings, kind: KindName, live_from: str | None, as_new: bool) -> CutOver:
    if (live_from is not None or as_new) and kind is not KindName.orders:
        raise OrdersError(
            "--live-from and --as-new are for files of orders", f"leave them out for {kind.value}"
        )
    if live_from is not None and as_new:
        raise OrdersError("--live-from and --as-new contradict each other", "give one of them")
    return CutOver.of(settings, live_from)


def _too_old(file: str, count: int, settings: Settings) -> OrdersError:
    age = timedelta(seconds=settings.history_age)
    return OrdersError(
        f"{file}: {count:,} {'order was' if count == 1 else 'orders were'} placed more than {age} ago"
        " (ORDERS_HISTORY_AGE), and as new ones their customers would be charged again; nothing of it was"
        " sent",
        "--live-from TIME says until when another system handled them, --as-new sends them as new",
    )


def bounds_of(settings: Settings, max_bytes: int | None) -> Bounds:
    """What a file may come to, by the settings and --max-bytes."""
    return Bounds(
        max_bytes or settings.bulk_file_bytes,
        None if max_bytes else settings.bulk_file_ratio,
        settings.bulk_file_columns,
        settings.bulk_file_memory,
        settings.limits.event,
    )


class SubmitResult(NamedTuple):
    """The result of submitting a file: parts sent now, and whether it was given up after them."""

    sent: int
    rate: float
    dry_run: bool
    failed: bool
    seconds: float
    too_old: OrdersError | None = None
    """Why the file would be refused."""


class _Refused:
    """The refused lines: the first ones for the summary, all of them for --report, which is written
    once the file has been read.
    """

    def __init__(self, report: Path | None, file: str, stack: ExitStack) -> None:
        """Opens the report, and changes nothing of it.

        Raises OrdersError: it can't be written, or is read, or printed to.
        """
        self.first: list[Refusal] = []
        self.failed: OSError | None = None
        self._out: int | None = None
        if file == "-" and sys.stdin is None:
            raise OrdersError("-: there is no stdin", "name a file")
        if report is None:
            return
        try:
            source = os.fstat(sys.stdin.fileno()) if file == "-" else os.stat(file)
        except (OSError, ValueError):
            return  # whoever reads it will tell
        self._report = report
        try:
            there = os.stat(report) if report.exists() else None
            if there is not None and not stat.S_ISCHR(there.st_mode) and os.path.samestat(source, there):
                raise self._overwrites()  # of a pipe: opened for writing as well, it would never end
            ordinary = there is None or stat.S_ISREG(there.st_mode)
            self._out = os.open(report, os.O_RDWR | os.O_CREAT if ordinary else os.O_WRONLY, 0o666)
        except OSError as error:
            raise OrdersError(f"--report {report}: {error.strerror}", "check the path") from None
        stack.callback(os.close, self._out)
        if ordinary and os.path.samestat(source, os.fstat(self._out)):
            raise self._overwrites()
        if ordinary and any(_same_file(self._out, number) for number in (1, 2)):
            raise OrdersError(f"--report {report} is where this command prints to", "choose another file")
        self._all = temporary(stack)

    def add(self, refusal: Refusal) -> None:
        """Raises SourceError when there is no room for it."""
        if len(self.first) < KEPT:
            self.first.append(refusal)
        if self._out is not None:
            write(self._all, json.dumps(refusal._asdict()).encode() + b"\n")

    def write(self, job: Job) -> None:
        """Write the report; what goes wrong is kept in `failed`.

        Raises OrdersError when it holds what was read, through a pipe perhaps.
        """
        if self._out is None:
            return
        try:
            if stat.S_ISREG(os.fstat(self._out).st_mode):
                with open(self._out, "rb", closefd=False) as there:
                    if hashlib.file_digest(there, "sha256").hexdigest() in (job.content, job.packed):
                        raise self._overwrites()
                os.lseek(self._out, 0, os.SEEK_SET)
                os.truncate(self._out, 0)
            self._all.seek(0)
            while rest := self._all.read(1 << 20):
                while rest:
                    rest = rest[os.write(self._out, rest) :]
        except OSError as error:
            self.failed = error

    def _overwrites(self) -> OrdersError:
        return OrdersError(f"--report {self._report} would overwrite what is read", "choose another file")


def _same_file(one: int, other: int) -> bool:
    """Tell whether two descriptors are of the same file; a closed one is of none."""
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:
        return False


def _fail(failure: BaseException, sent: int) -> NoReturn:
    """End as the failure wants it, or in one line and with exit code 1 if a part of the job has been sent."""
    from cli.main import explain

    line = explain(failure)
    if line is None or not sent:
        raise failure
    say(f"orders: {line}", lines=True, file=sys.stderr)
    raise typer.Exit(1)


class _Sending:
    """The sending of a job's parts: how many were sent, and what ended it before its time."""

    def __init__(self, settings: Settings, again: bool) -> None:
        self.sent = 0
        self.failure: BaseException | None = None
        self._settings = settings
        self._again = again

    def run(self, job: Job, bar: Bar) -> None:
        """Blocks until all parts are sent; what goes wrong is kept in `failure`.

        Raises OtherJob: nothing was sent.
        """

        def count(part: int) -> None:
            self.sent += 1
            bar.show(part)

        try:
            asyncio.run(_send(self._settings, job, self._again, count))
        except OtherJob:
            raise
        except BaseException as error:
            self.failure = error


async def _send(settings: Settings, job: Job, again: bool, progress: Callable[[int], None]) -> int:
    await require(settings)
    return await send(settings, job, again=again, progress=progress)


def _report(job: Job, refusals: list[Refusal], outcome: SubmitResult, as_json: bool) -> None:
    sent = outcome.sent
    if as_json:
        document = {
            "job_id": job.id,
            "kind": job.kind,
            "format": job.format,
            "dry_run": outcome.dry_run,
            "lines": job.lines,
        }
        counts = {
            "accepted": job.accepted,
            "refused": job.refused,
            "by_reason": dict(job.reasons.most_common()),
        }
        parts = {
            "parts": len(job.parts),
            "parts_sent_now": sent,
            "failed": outcome.failed,
            "ignored_columns": job.ignored,
            "old_orders": job.old,
        }
        listed = [refusal._asdict() for refusal in refusals]
        print(
            json.dumps(
                {**document, **counts, **parts, "seconds": round(outcome.seconds, 3), "refusals": listed}
            )
        )
        return
    console = output()
    if job.ignored:
        console.print(f"ignored columns: {', '.join(map(printable, job.ignored))}", style="yellow")
    if refusals:
        table = Rows("line", "reason", "detail", prose={"detail"})
        for refusal in refusals[:SHOWN]:
            table.add(refusal.line, refusal.reason, refusal.detail)
        console.print(table)
        if job.refused > SHOWN:
            console.print(f"and {job.refused - SHOWN:,} more: --report FILE has them all")
    what = f"{job.lines:,} {job.kind} read, {job.accepted:,} right, {job.refused:,} refused"
    if outcome.dry_run:
        console.print(f"{what}; nothing sent (--dry-run)")
        if outcome.too_old is not None:
            console.print(f"it would be refused: {outcome.too_old}", style="yellow")
    elif outcome.failed:
        console.print(
            f"{what}; {sent:,} of {len(job.parts):,} parts sent now as job {job.id}, then it failed"
        )
        console.print("the same command again goes on from there; orders bulk status tells how far it is")
    elif not job.parts:
        console.print(f"{what}; nothing to send")
    elif not sent:
        console.print(f"{what}; job {job.id} was sent before: nothing sent (--again sends it)")
    else:
        console.print(f"{what}; {sent:,} of {len(job.parts):,} parts sent now as job {job.id}")
        took = timedelta(seconds=ceil(job.accepted / outcome.rate))
        rate = f"ORDERS_BULK_RATE={outcome.rate:g}"
        console.print(
            f"a bulk worker that goes no faster than {rate} takes {took} for it; orders bulk status tells how"
            " far it is"
        )


@app.command("mapping")
def mapping_command(
    name: Annotated[str, typer.Argument(help="One of those that come with the program: shopify.")],
) -> None:
    """Print a mapping, to begin one of your own with. docs/mapping.md lists its keys.

    Example: [bold]orders bulk mapping shopify > my-shop.toml[/bold]
    """
    print(ready_text(name), end="")


@app.command("id")
def id_command(
    mapping: Annotated[str, typer.Argument(help="The mapping's name or file.")],
    kind: Annotated[str, typer.Argument(help="The kind of thing, as uuid5 says it in the mapping: order.")],
    values: Annotated[list[str], typer.Argument(help="The text of its columns: its number there.")],
) -> None:
    """Print the id that a mapping makes of something's number in a file.

    Example: [bold]orders show $(orders bulk id shop.toml order A-1)[/bold]
    """
    print(made_id(namespace_of(mapping), kind, values))


@app.command("status")
def status_command(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="Only this job.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="How many jobs are shown, the newest.")] = 50,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """Show the progress of bulk jobs: parts sent and unpacked, lines refused. Exits 1 if the named job isn't
    known.

    Example: [bold]orders bulk status[/bold]
    """
    job_id = None if job is None else _uuid(job)
    rows = asyncio.run(status(get_settings(), job_id, limit))
    if as_json:
        print(json.dumps({"jobs": rows}, default=_text))
    else:
        numbers = ("lines", "refused", "parts sent", "parts done", "events")
        table = Rows("job", "kind", *numbers, "state", right=numbers, wide=wide)
        for row in rows:
            counts = {name: "?" if row[name] is None else f"{row[name]:,}" for name in ("lines", "refused")}
            sent = "?" if row["digest"] is None else f"{row['parts_sent']:,}/{row['parts']:,}"
            done = f"{row['parts_done']:,}/{row['parts']:,}"
            table.add(
                row["job_id"],
                row["kind"],
                counts["lines"],
                counts["refused"],
                sent,
                done,
                f"{row['events']:,}",
                row["state"],
            )
        output().print(table if rows else "no jobs")
    if job_id is not None and not rows:
        say(f"orders: no job {job_id}", file=sys.stderr)
        raise typer.Exit(1)


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise OrdersError(f"{text!r} is not a job's UUID", "orders bulk status has them") from None
