"""Sending a takeover: its files as bulk jobs, orders first; then waiting until the pipeline has taken it in,
and comparing what it made of it with what was told.

Killed anywhere, it is run again: parts that were sent aren't sent again, and what is sent twice counts once.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final, NamedTuple
from uuid import UUID

from contracts import bulk, ids
from errors import OrdersError
from operations.submit.files import temporary
from operations.submit.jobs import IN_FLIGHT, SILENCE, Job, Parts, send
from operations.takeover.plan import Plan, headers
from operations.takeover.report import SHOWN
from operations.takeover.store import Expected, content_of
from operations.wait import WaitResult, wait
from settings import Settings
from sinks.bulk import BulkJobs
from sinks.connection import connect, tables_there
from wire import clients

POLL: Final = 0.3
SAY_AFTER: Final = 5.0
"""Seconds without a finished part after which a person is told that nobody unpacks."""
_AS_TOLD, _LATER, _DIFFERENT = "as told", "later", "different"
_FLYING: Final = IN_FLIGHT * 250

_ROWS: Final = (
    "SELECT id, status::text, version, user_id, currency, total_amount FROM orders_order WHERE id"
    " = ANY($1::uuid[])"
)

Show = Callable[[str, int, int], None]
"""Gets what is done, how much of it is, and of how much."""


class Sent(NamedTuple):
    """A file's job: its parts, and how many of them were sent now. No job: its events were sent directly."""

    path: str
    kind: str
    job: str | None
    parts: int
    now: int


class Difference(NamedTuple):
    """An order that isn't what was told. `found`: None, it isn't there."""

    order_id: str
    told: str
    found: str | None


class Outcome(NamedTuple):
    """What became of a takeover. `as_told`: orders; `later`: those to which more has happened since."""

    as_told: int
    later: int
    differences: list[Difference]
    different: int

    @property
    def clean(self) -> bool:
        """Whether every order is there, as it was told."""
        return not self.different


class NotUnpacked(OrdersError):
    """The jobs weren't unpacked, or not processed, in time. They are sent, and stay."""

    remedy = "start a worker (orders worker), and run the same command again: it goes on from there"


async def send_all(settings: Settings, plan: Plan, stack: ExitStack, show: Show) -> list[Sent]:
    """Send what isn't sent yet, orders first. Blocks.

    Raises what operations.submit.jobs.send raises: what was acknowledged stays.
    """
    sent: list[Sent] = []
    for file, source in enumerate(plan.sources):
        what = f"{source.kind}: {source.path}"
        if source.kind == "cancellations":
            continue
        job = job_of(plan, file, stack)
        if not job.parts:
            continue

        def progress(part: int, what: str = what, job: Job = job) -> None:
            show(what, part, len(job.parts))

        now = await send(settings, job, progress=progress)
        sent.append(Sent(source.path, source.kind, job.id, len(job.parts), now))
    files = [source for source in plan.sources if source.kind == "cancellations"]
    if files:
        count = await _send_directly(settings, plan)
        sent.append(Sent(", ".join(source.path for source in files), "cancellations", None, count, count))
    return sent


def job_of(plan: Plan, file: int, stack: ExitStack) -> Job:
    """What is sent of a file, as a bulk job. Blocks. Raises SourceError when there is no room for it."""
    source, read, digest = plan.sources[file], plan.reads[file], plan.digest(file)
    kind: Any = source.kind
    job = Job(bulk.job_id(kind, digest), kind, "ndjson", digest, "", "", temporary(stack), lines=read.lines)
    parts = Parts(job)
    for _, value, refunded in plan.store.of_file(file):
        if refunded is not None and source.kind == "orders":
            value = b'{"refunded_amount":"%b",' % refunded.encode() + value[1:]
        parts.add(value)
    parts.end()
    return job


async def _send_directly(settings: Settings, plan: Plan) -> int:
    """Send the events that no bulk job brings. Again they change nothing."""
    producer = clients.producer(settings, "orders-import", linger_ms=5, compression_type="lz4")
    flying: deque[Any] = deque()
    count = 0
    try:
        await producer.start()
        for topic, order_id, value in plan.store.direct():
            key = ids.text(order_id).encode()
            flying.append(await producer.send(topic, value, key=key, headers=headers(topic, value)))
            count += 1
            if len(flying) >= _FLYING:
                await asyncio.wait_for(flying.popleft(), SILENCE)
        while flying:
            await asyncio.wait_for(flying.popleft(), SILENCE)
    except BaseException:
        for each in flying:  # of one failure many are told, and one is enough
            each.cancel()
        raise
    finally:
        await producer.stop()
    return count


async def taken_in(
    settings: Settings,
    sent: list[Sent],
    timeout: float | None,
    show: Show,
    say: Callable[[str], None],
) -> WaitResult:
    """Wait until the jobs are unpacked and everything is processed. Blocks.

    Raises NotUnpacked when `timeout` seconds are over, and what Postgres and the brokers raise.
    """
    started = time.monotonic()
    jobs = {each.job: each.parts for each in sent if each.job is not None}

    def remaining() -> float | None:
        return None if timeout is None else timeout - (time.monotonic() - started)

    async with BulkJobs(settings, "orders-import") as table:
        await _unpacked(table, jobs, remaining, show, say)
    outcome = await wait(
        settings,
        None if (left := remaining()) is None else max(0.0, left),
        lambda handled, lag: show("processed", handled, handled + lag),
        cache=False,
        say=say,
    )
    if not outcome.done:
        raise NotUnpacked(f"after {timeout:g} s {sum(outcome.left.values()):,} records are left to process")
    return outcome


async def _unpacked(
    table: BulkJobs,
    jobs: dict[str, int],
    remaining: Callable[[], float | None],
    show: Show,
    say: Callable[[str], None],
) -> None:
    done, since, said = -1, time.monotonic(), False
    while True:
        rows = [row for job in jobs for row in await table.jobs(job, 1)]
        finished = sum(row["parts_done"] for row in rows)
        show("parts unpacked", finished, sum(jobs.values()))
        if all(row["completed_at"] is not None for row in rows):
            return
        if finished > done:
            done, since = finished, time.monotonic()
        elif not said and time.monotonic() - since > SAY_AFTER:
            said = True
            say("no part was unpacked for a while: is a worker with the role bulk or all running?")
        left = remaining()
        if left is not None and left <= 0:
            raise NotUnpacked(f"{finished:,} of {sum(jobs.values()):,} parts are unpacked")
        await asyncio.sleep(POLL)


async def compare(settings: Settings, plan: Plan, show: Show) -> Outcome:
    """Compare the rows of all orders of a takeover with what was told. Blocks. Raises what asyncpg raises."""
    connection = await connect(
        settings.postgres,
        "orders-import",
        timeout=settings.postgres_connect_timeout,
        pooled=settings.pooled,
        command_timeout=settings.postgres_statement_timeout,
    )
    as_told = later = different = 0
    differences: list[Difference] = []
    try:
        for expected in plan.store.expected():
            with tables_there():
                rows = await connection.fetch(_ROWS, [UUID(bytes=each.order_id) for each in expected])
            by_id = {row["id"].bytes: row for row in rows}
            for each in expected:
                row = by_id.get(each.order_id)
                what = _compared(each, row)
                as_told, later = as_told + (what == _AS_TOLD), later + (what == _LATER)
                if what == _DIFFERENT:
                    different += 1
                    if len(differences) < SHOWN:
                        differences.append(_difference(each, row))
            show("orders compared", as_told + later + different, plan.report.orders)
    finally:
        await connection.close()
    return Outcome(as_told, later, differences, different)


def _compared(each: Expected, row: Any) -> str:
    if row is None or _content(row) != each.content or row["version"] < each.version:
        return _DIFFERENT
    if row["version"] > each.version:
        return _LATER
    return _AS_TOLD if row["status"] == each.status else _DIFFERENT


def _content(row: Any) -> str:
    return content_of(row["user_id"].bytes, row["currency"], row["total_amount"])


def _difference(each: Expected, row: Any) -> Difference:
    there = None if row is None else f"{row['status']} (version {row['version']})"
    if row is not None and _content(row) != each.content:
        there = f"another order of this id, {there}"
    return Difference(ids.text(each.order_id), f"{each.status} (version {each.version})", there)
