"""One reading of an event: the pipeline's (domain.events) and the auditor's (audit.reference), which share no
code, on mutated records.

Both take a record in with the same facts, or both refuse it with the same reason code and, where a field
is to blame, the same path.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

import typer

from audit import reference
from contracts.errors import FIELD_MALFORMED, FIELD_MISSING, Refused
from domain import events
from domain.order import Created, ReturnStage, Scan
from domain.shapes import Event
from tests.fuzz.records import Record, record

CHUNK: Final = 5_000
"""Records that a process takes at once."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_FIELD: Final = (FIELD_MALFORMED, FIELD_MISSING)
_RENAMED: Final = {"total": "total_amount", "discount": "discount_amount", "shipping": "shipping_amount"}

Verdict = tuple[Any, ...]
"""A reason code and a path, or what the record says."""


def pipelines(given: Record) -> Verdict:
    """The pipeline's reading."""
    try:
        event = events.decode(given.topic, given.headers, given.value)
    except Refused as refused:
        return refused.code, _path(refused.detail) if refused.code in _FIELD else ""
    return "taken in", event.type, event.id, event.traceparent, _time(event.time), *_said(event)


def auditors(given: Record) -> Verdict:
    """The auditor's reading."""
    outcome, event_id, traceparent = reference.read(given.topic, given.value, given.headers)
    if isinstance(outcome, reference.Refusal):
        path = re.sub(r"\[[0-9]+\]", "[]", outcome.detail) if outcome.code in _FIELD else ""
        return outcome.code, "" if outcome == reference.Refusal(FIELD_MALFORMED, "data") else path
    content = {name: _plain(value) for name, value in outcome.content.items() if name != "order_id"}
    return (
        "taken in",
        outcome.type,
        event_id,
        traceparent,
        outcome.time,
        outcome.order_id,
        content,
        outcome.reason,
    )


def _path(detail: str) -> str:
    """The field that a refusal's detail names: "Object missing required field `sku` - at
    `$.items[...]`", "$.items[0].price: ...".
    """
    if detail.startswith(("$", "ce_")):
        path = detail.partition(":")[0]
    else:
        at = re.search(r"`(\$[^`]*)`$", detail)
        missing = re.search(r"missing required field `([^`]*)`", detail)
        path = (at[1] if at else "$") + (f".{missing[1]}" if missing else "")
    return re.sub(r"\[[^]]*\]", "[]", path).removeprefix("$").removeprefix(".").removeprefix("ce_")


def _said(event: Event) -> tuple[str, dict[str, Any], str | None]:
    """The order, and what an event says of it as the auditor does: ids as text, times as such, absent fields
    left out, the reason apart.
    """
    order_id, fact = str(UUID(bytes=event.order_id)), event.fact
    content = {_RENAMED.get(name, name): _plain(getattr(fact, name)) for name in fact.__struct_fields__}
    for name in ("time", "appended", "refused", "type", "failed"):
        content.pop(name, None)
    if isinstance(fact, Created):
        del content["checkout_id"]  # no content: the attribute of the order.created that we make
        content["items"] = tuple(_line(line) for line in fact.items)
    elif content.get("items") is not None:
        content["items"] = tuple(
            {"item_id": _plain(item_id), "quantity": quantity} for item_id, quantity in content["items"]
        )
    if isinstance(fact, Scan):
        content["status"] = content.pop("rank").text
    if isinstance(fact, ReturnStage):
        content["status"] = fact.status.text
    _tell_times(content)
    content = {name: value for name, value in content.items() if value is not None}
    return order_id, content, content.pop("reason", None)


def _line(line: Any) -> dict[str, Any]:
    fields = {_RENAMED.get(name, name): _plain(getattr(line, name)) for name in line.__struct_fields__}
    _tell_times(fields)
    return {name: value for name, value in fields.items() if value is not None}


def _plain(value: Any) -> Any:
    return str(UUID(bytes=value)) if isinstance(value, bytes) else value


def _tell_times(content: dict[str, Any]) -> None:
    for name in ("estimated_delivery", "processed_at", "cart_created_at", "ship_by", "deliver_by"):
        if content.get(name) is not None:
            content[name] = _time(content[name])


def _time(micros: int) -> datetime:
    return _EPOCH + timedelta(microseconds=micros)


@dataclass(slots=True)
class Apart:
    """A record that the two read differently."""

    seed: int
    n: int
    given: Record
    pipeline: Verdict
    auditor: Verdict

    def __str__(self) -> str:
        value = self.given.value
        shown = repr(
            value if value is None or len(value) < 2_000 else value[:1_000] + b" ... " + value[-1_000:]
        )
        return (
            f"record {self.n} of seed {self.seed} ({self.given.made}), see it again:"
            f" {replay_command(self.seed, self.n)}\n  topic    {self.given.topic}\n  headers "
            f" {str(self.given.headers)[:2_000]}\n  value    {shown}\n  pipeline"
            f" {str(self.pipeline)[:1_000]}\n  auditor  {str(self.auditor)[:1_000]}"
        )


@dataclass(slots=True)
class Summary:
    """`verdicts`: how often each reason code, or `taken in`.
    `apart`: the records of which there are two readings.
    """

    records: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    apart: list[Apart] = field(default_factory=list)


def replay_command(seed: int, n: int) -> str:
    """What to type to see a record again."""
    return f".venv/bin/python -m tests.fuzz.reading --seed {seed} --only {n}"


def run(seed: int, count: int, first: int = 0) -> Summary:
    """Read `count` records of a seed's row from its `first` on, both ways."""
    summary = Summary()
    for n in range(first, first + count):
        given = record(seed, n)
        pipeline, auditor = pipelines(given), auditors(given)
        summary.records += 1
        summary.verdicts[pipeline[0]] += 1
        if pipeline != auditor:
            summary.apart.append(Apart(seed, n, given, pipeline, auditor))
    return summary


def run_all(seed: int, count: int, jobs: int) -> Summary:
    """The same on several processors, with progress on stderr."""
    whole, started = Summary(), time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        starts = range(0, count, CHUNK)
        for part in pool.map(
            run, [seed] * len(starts), [min(CHUNK, count - start) for start in starts], starts
        ):
            whole.records += part.records
            whole.verdicts += part.verdicts
            whole.apart += part.apart
            if whole.records % (20 * CHUNK) == 0:
                rate = whole.records / (time.monotonic() - started)
                print(
                    f"{whole.records:,} records, {rate:,.0f} a second, {len(whole.apart)} read differently",
                    file=sys.stderr,
                    flush=True,
                )
    return whole


def main(
    records: Annotated[int, typer.Option(help="How many.", min=1)] = 100_000,
    seed: Annotated[int | None, typer.Option(help="Whose. Without it: the time.")] = None,
    jobs: Annotated[int, typer.Option(help="Processes. 0: one per processor.", min=0)] = 0,
    only: Annotated[int | None, typer.Option(help="Read this one alone, and show it.", min=0)] = None,
) -> None:
    """Read mutated records by the pipeline's code and by the auditor's, and compare.

    Exits with 1 when there are two readings of one.

    Example: python -m tests.fuzz.reading --records 1000000 --seed 1
    """
    seed = time.time_ns() // 1_000_000 % (1 << 40) if seed is None else seed
    if only is not None:
        given = record(seed, only)
        pipeline, auditor = pipelines(given), auditors(given)
        typer.echo(str(Apart(seed, only, given, pipeline, auditor)))
        raise typer.Exit(int(pipeline != auditor))
    summary = run_all(seed, records, jobs or os.cpu_count() or 1)
    for apart in summary.apart[:20]:
        typer.echo(str(apart))
    typer.echo(", ".join(f"{count:,} {verdict}" for verdict, count in summary.verdicts.most_common()))
    typer.echo(f"{summary.records:,} records of seed {seed}, {len(summary.apart):,} read differently")
    raise typer.Exit(1 if summary.apart else 0)


if __name__ == "__main__":
    typer.run(main)
