"""`orders bulk`: files of orders, shipping updates or returns as background jobs, and how far they are."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import stat
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from enum import Enum
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple, NoReturn
from uuid import UUID

import typer

from cli.terminal import Rows, Wide, output, progress
from cli.text import printable
from errors import OrdersError
from operations.servers import require
from operations.submit.files import temporary, write
from operations.submit.jobs import Job, Refusal, prepare, send, status
from settings import Settings, get_settings
from sinks.bulk import OtherJob

app = typer.Typer(
    help="Files of orders, shipping updates or returns as background jobs.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

SHOWN: Final = 20
"""Refused lines that a person is shown."""
KEPT: Final = 1000
"""Refused lines in the JSON document; --report has them all."""


class KindName(Enum):
    """What a file holds."""

    orders = "orders"
    shipments = "shipments"
    returns = "returns"


class FormatName(Enum):
    """How a file is written."""

    csv = "csv"
    ndjson = "ndjson"
    parquet = "parquet"


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@app.callback()
def _bulk() -> None:
    """Files of orders, shipping updates or returns as background jobs."""


@app.command("submit")
def submit_command(
    kind: Annotated[KindName, typer.Argument(help="What the file holds.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="CSV, NDJSON or Parquet, plain or gzipped; - is stdin.")],
    job: Annotated[str | None, typer.Option(help="The job's UUID. Without it made of kind and content.", show_default=False)] = None,
    format: Annotated[FormatName | None, typer.Option(help="Without it told by the content.", show_default=False)] = None,
    report: Annotated[Path | None, typer.Option(help="Write every refused line to this file, NDJSON.", show_default=False)] = None,
    max_bytes: Annotated[
        int | None,
        typer.Option(min=1, help="Most bytes of the file, unpacked. Without it 4 GiB, and 100 times its size.", show_default=False),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate, and send nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Send the whole job even if it was sent before.")] = False,
    as_json: Json = False,
) -> None:
    """Validate a file line by line and send what is right as a bulk job. A refused line harms no other.

    The same file is the same job: submitted twice it is sent once, and after a kill it goes on where it was. orders worker (role bulk or
    all) unpacks it. docs/bulk.md has the columns.

    Exits 0 when every line was taken, 1 when some were refused (the others are sent) or sending failed in the middle, 2 when nothing was
    sent because it couldn't work.

    Example: [bold]orders bulk submit orders orders.csv.gz --report refused.ndjson[/bold]
    """
    settings, started = get_settings(), time.monotonic()
    job = None if job is None else _uuid(job)
    failure: BaseException | None = None
    sent = 0
    with ExitStack() as stack:
        refused = _Refused(report, file, stack)
        bar = stack.enter_context(progress("lines read", quiet=as_json))
        made = prepare(
            file,
            kind.value,
            stack,
            stdin=sys.stdin.buffer,
            format=None if format is None else format.value,
            job=job,
            limit=max_bytes,
            refuse=refused.add,
            progress=bar.show,
        )
        refused.write(made)
        if made.parts and not dry_run:
            sending = bar.another("parts sent", len(made.parts))

            def count(part: int) -> None:
                nonlocal sent
                sent += 1
                sending.show(part)

            try:
                asyncio.run(_send(settings, made, again, count))
            except OtherJob:
                raise  # nothing was sent
            except BaseException as error:
                failure = error
    outcome = Outcome(sent, settings.bulk_rate, dry_run, failure is not None, time.monotonic() - started)
    _report(made, refused.first, outcome, as_json)
    if refused.failed is not None:
        print(f"orders: --report {report}: {refused.failed.strerror}; it doesn't hold every refused line", file=sys.stderr)
    if failure is not None:
        _fail(failure, sent)
    if made.refused or refused.failed is not None:
        raise typer.Exit(1)


class Outcome(NamedTuple):
    """What became of a submitted file: parts sent now, and whether it was then given up."""

    sent: int
    rate: float
    dry_run: bool
    failed: bool
    seconds: float


class _Refused:
    """The refused lines: the first ones for the summary, all of them for --report, which is written once the file has been read."""

    def __init__(self, report: Path | None, file: str, stack: ExitStack) -> None:
        """Opens the report, and changes nothing of it. Raises OrdersError: it can't be written, or is read, or printed to."""
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
        """Write the report; what goes wrong is kept in `failed`. Raises OrdersError when it holds what was read, through a pipe perhaps."""
        if self._out is None:
            return
        try:
            if stat.S_ISREG(os.fstat(self._out).st_mode):
                with open(self._out, "rb", closefd=False) as there:
                    if hashlib.file_digest(there, "sha256").hexdigest() in (job.digest, job.packed):
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
    """Whether two descriptors are of one file; a closed one is of none."""
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
    print(f"orders: {line}", file=sys.stderr)
    raise typer.Exit(1)


async def _send(settings: Settings, job: Job, again: bool, progress: Any) -> int:
    await require(settings)
    return await send(settings, job, again=again, progress=progress)


def _report(job: Job, refusals: list[Refusal], outcome: Outcome, as_json: bool) -> None:
    sent = outcome.sent
    if as_json:
        document = {"job_id": job.id, "kind": job.kind, "format": job.format, "dry_run": outcome.dry_run, "lines": job.lines}
        counts = {"accepted": job.accepted, "refused": job.refused, "by_reason": dict(job.reasons.most_common())}
        parts = {"parts": len(job.parts), "parts_sent_now": sent, "failed": outcome.failed, "ignored_columns": job.ignored}
        listed = [refusal._asdict() for refusal in refusals]
        print(json.dumps({**document, **counts, **parts, "seconds": round(outcome.seconds, 3), "refusals": listed}))
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
    elif outcome.failed:
        console.print(f"{what}; {sent:,} of {len(job.parts):,} parts sent now as job {job.id}, then it failed")
        console.print("the same command again goes on from there; orders bulk status tells how far it is")
    elif not job.parts:
        console.print(f"{what}; nothing to send")
    elif not sent:
        console.print(f"{what}; job {job.id} was sent before: nothing sent (--again sends it)")
    else:
        console.print(f"{what}; {sent:,} of {len(job.parts):,} parts sent now as job {job.id}")
        took = timedelta(seconds=ceil(job.accepted / outcome.rate))
        rate = f"ORDERS_BULK_RATE={outcome.rate:g}"
        console.print(f"at {rate} a bulk worker takes at least {took} for it; orders bulk status tells how far it is")


@app.command("status")
def status_command(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Only this job.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
    wide: Wide = False,
    as_json: Json = False,
) -> None:
    """How far bulk jobs are: parts sent and unpacked, lines refused. Exits 1 if the job that was asked for isn't known.

    Example: [bold]orders bulk status[/bold]
    """
    wanted = None if job is None else _uuid(job)
    rows = asyncio.run(status(get_settings(), wanted, limit))
    if as_json:
        print(json.dumps({"jobs": rows}, default=_text))
    else:
        numbers = ("lines", "refused", "parts sent", "parts done", "events")
        table = Rows("job", "kind", *numbers, "state", right=numbers, wide=wide)
        for row in rows:
            known = {name: "?" if row[name] is None else f"{row[name]:,}" for name in ("lines", "refused")}
            sent = "?" if row["digest"] is None else f"{row['parts_sent']:,}/{row['parts']:,}"
            done = f"{row['parts_done']:,}/{row['parts']:,}"
            table.add(row["job_id"], row["kind"], known["lines"], known["refused"], sent, done, f"{row['events']:,}", row["state"])
        output().print(table if rows else "no jobs")
    if wanted is not None and not rows:
        print(f"orders: no job {wanted}", file=sys.stderr)
        raise typer.Exit(1)


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise OrdersError(f"{text!r} is not a job's UUID", "orders bulk status has them") from None
