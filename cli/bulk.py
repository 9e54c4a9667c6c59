"""`orders bulk`: files of orders, shipping updates or returns as background jobs, and how far they are."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import ExitStack
from datetime import timedelta
from enum import Enum
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from cli.errors import UserError
from cli.terminal import Rows, messages, output, progress
from cli.text import printable
from settings import Settings, get_settings
from sinks.bulk import BulkJobs, OtherJob
from sources.bulk import Job, Refusal, prepare, send
from sources.event import SourceError
from streams import topics

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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Validate, and send nothing.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Send the whole job even if it was sent before.")] = False,
    as_json: Json = False,
) -> None:
    """Validate a file line by line and send what is right as a bulk job. A refused line harms no other.

    The same file is the same job: submitted twice it is sent once, and after a kill it goes on where it was. orders worker (role bulk or
    all) unpacks it. docs/bulk.md has the columns.

    Exits 0 when every line was taken, 1 when some were refused (the others are sent), 2 when it couldn't work.

    Example: [bold]orders bulk submit orders orders.csv.gz --report refused.ndjson[/bold]
    """
    settings, started = get_settings(), time.monotonic()
    job = None if job is None else _uuid(job)
    refusals: list[Refusal] = []
    bar = progress(messages(), quiet=as_json)
    with ExitStack() as stack:
        out = None if report is None else stack.enter_context(report.open("w"))

        def refuse(refusal: Refusal) -> None:
            if len(refusals) < KEPT:
                refusals.append(refusal)
            if out is not None:
                print(json.dumps(refusal._asdict()), file=out)

        stack.enter_context(bar)
        reading = bar.add_task("lines read", total=None)
        try:
            made = prepare(
                file,
                kind.value,
                stack,
                stdin=sys.stdin.buffer,
                format=None if format is None else format.value,
                job=job,
                refuse=refuse,
                progress=lambda lines: bar.update(reading, completed=lines),
            )
        except SourceError as error:
            raise UserError(str(error)) from error
        sent = 0
        if made.parts and not dry_run:
            sending = bar.add_task("parts sent", total=len(made.parts))
            try:
                sent = asyncio.run(_send(settings, made, again, lambda parts: bar.update(sending, completed=parts)))
            except OtherJob:
                raise UserError(f"job {made.id} is that of another file or kind; choose another --job, or none") from None
    _report(made, refusals, sent, settings.bulk_rate, dry_run, time.monotonic() - started, as_json)
    if made.refused:
        raise typer.Exit(1)


async def _send(settings: Settings, job: Job, again: bool, progress: Any) -> int:
    # Asked first: the producer would wait half a minute for a topic that isn't there.
    absent = await topics.missing(settings)
    if absent:
        raise UserError(f"topic {absent[0]} doesn't exist on Kafka at {settings.kafka}; run orders init")
    return await send(settings, job, again=again, progress=progress)


def _report(job: Job, refusals: list[Refusal], sent: int, rate: float, dry_run: bool, seconds: float, as_json: bool) -> None:
    if as_json:
        document = {"job_id": job.id, "kind": job.kind, "format": job.format, "dry_run": dry_run, "lines": job.lines}
        counts = {"accepted": job.accepted, "refused": job.refused, "by_reason": dict(job.reasons.most_common())}
        parts = {"parts": len(job.parts), "parts_sent_now": sent, "ignored_columns": job.ignored, "seconds": round(seconds, 3)}
        print(json.dumps({**document, **counts, **parts, "refusals": [refusal._asdict() for refusal in refusals]}))
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
    if dry_run:
        console.print(f"{what}; nothing sent (--dry-run)")
    elif not job.parts:
        console.print(f"{what}; nothing to send")
    elif not sent:
        console.print(f"{what}; job {job.id} was sent before: nothing sent (--again sends it)")
    else:
        console.print(f"{what}; {sent:,} of {len(job.parts):,} parts sent now as job {job.id}")
        took = timedelta(seconds=ceil(job.accepted / rate))
        console.print(f"at ORDERS_BULK_RATE={rate:g} a bulk worker takes at least {took} for it; orders bulk status tells how far it is")


@app.command("status")
def status_command(
    job: Annotated[str | None, typer.Argument(metavar="[JOB]", help="Only this job.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many.")] = 50,
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
        table = Rows("job", "kind", *numbers, "state", right=numbers)
        for row in rows:
            known = {name: "?" if row[name] is None else f"{row[name]:,}" for name in ("lines", "refused")}
            sent = "?" if row["digest"] is None else f"{row['parts_sent']:,}/{row['parts']:,}"
            done = f"{row['parts_done']:,}/{row['parts']:,}"
            table.add(row["job_id"], row["kind"], known["lines"], known["refused"], sent, done, f"{row['events']:,}", row["state"])
        output().print(table if rows else "no jobs")
    if wanted is not None and not rows:
        print(f"orders: no job {wanted}", file=sys.stderr)
        raise typer.Exit(1)


async def status(settings: Settings, job: str | None, most: int) -> list[dict[str, Any]]:
    """Rows of orders_bulk_job, the newest job first, each with its state in words. Raises what asyncpg raises."""
    async with BulkJobs(settings, "orders-bulk-status") as jobs:
        return [{**row, "state": _state(row)} for row in await jobs.jobs(job, most)]


def _state(row: dict[str, Any]) -> str:
    if row["completed_at"] is not None:
        return "completed"
    if row["digest"] is not None and row["submitted_at"] is None:
        return "submitting"
    return "unpacking" if row["parts_done"] else "submitted"


def _text(value: Any) -> str:
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise UserError(f"{text!r} is not a job's UUID; orders bulk status has them") from None
