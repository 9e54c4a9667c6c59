"""`orders status`: how lanes, workers, servers, dead letters and bulk jobs do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from msgspec import to_builtins
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cli.terminal import Cell, Rows, Wide, output
from contracts.printable import printable
from settings import Settings, get_settings
from streams.levels import ALL

if TYPE_CHECKING:
    from operations.status import LaneStatus, Status


WATCH_SECONDS: Final = 2.0


def status_command(
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again every 2 seconds, until Ctrl-C.")
    ] = False,
    wide: Wide = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout; with --watch one a line.")
    ] = False,
) -> None:
    """Show how everything does: lanes with owner and lag, what they wait for, servers, dead letters, jobs.

    It asks the brokers and what workers tell them, so it works without a worker. Exits 1 if something is to
    be looked at, and says what; with --watch only by Ctrl-C.

    Example: [bold]orders status --watch[/bold]
    """
    settings = get_settings()
    if watch:
        asyncio.run(_watch(settings, wide=wide, as_json=as_json))
        return
    status = asyncio.run(_once(settings))
    if as_json:
        print(json.dumps(document(status)))
    else:
        output().print(picture(status, wide=wide))
    if status.problems:
        raise typer.Exit(1)


async def _once(settings: Settings) -> Status:
    from operations.status import StatusReader

    async with StatusReader(settings) as reader:
        return await reader.look()


async def _watch(settings: Settings, *, wide: bool, as_json: bool) -> None:
    """Show it until cancelled. A server that goes away is shown, and asked anew."""
    from aiokafka.errors import KafkaError

    from operations.answers import failed
    from operations.status import StatusReader

    console = output()
    with ExitStack() as stack:
        live = None
        if not as_json and console.is_terminal:
            live = stack.enter_context(Live(console=console, auto_refresh=False, vertical_overflow="visible"))

        def show(shown: RenderableType, said: dict[str, Any]) -> None:
            if as_json:
                print(json.dumps(said), flush=True)
            elif live is None:
                console.print(shown)
            else:
                live.update(shown, refresh=True)

        while True:
            try:
                async with StatusReader(settings) as reader:
                    while True:
                        status = await reader.look()
                        show(picture(status, wide=wide), document(status))
                        await asyncio.sleep(WATCH_SECONDS)
            except (KafkaError, OSError) as error:
                problem = f"kafka {failed(error)}"
                show(Text(problem, "red"), {"at": _moment(time.time()), "problems": [problem]})
            await asyncio.sleep(WATCH_SECONDS)


def document(status: Status) -> dict[str, Any]:
    """As JSON."""
    from operations.status import LATELY_SECONDS

    return {
        "at": _moment(status.at),
        "problems": status.problems,
        "members": status.members,
        "workers": to_builtins(status.workers),
        "lanes": [lane._asdict() | {"problem": lane.problem} for lane in status.lanes],
        "paused": [each._asdict() | {"seconds": round(each.seconds(status.at))} for each in status.paused],
        "servers": status.servers,
        "dead_letters": {"seconds": LATELY_SECONDS, **status.dead_letters._asdict()},
        "bulk_jobs": None
        if status.jobs is None
        else [{name: _plain(value) for name, value in row.items()} for row in status.jobs],
        "attention": status.attention,
        "log_levels": [each._asdict() for each in status.log_levels],
        "last_audit": status.audit,
        "last_audit_broken": status.audit_broken,
    }


def picture(status: Status, *, wide: bool = False) -> RenderableType:
    """For a person: what is wrong, then everything."""
    problems = status.problems
    head = Text("all is well", "green")
    if problems:
        head = Text("\n").join(Text(printable(problem), "red") for problem in problems)
    facts = Rows("", "", header=False, prose=("",))
    for name, cell in _facts(status):
        facts.add((name, "bold"), cell)
    right = ("records left", "oldest")
    lanes = Rows("lanes", "worker", *right, "state", right=right, wide=wide)
    for cells in _lanes(status.lanes):
        lanes.add(*cells)
    return Group(head, facts, lanes)


def _facts(status: Status) -> Iterator[tuple[str, Cell]]:
    for server, why in status.servers.items():
        yield server, ("answers", "green") if why is None else (why, "red")
    said = ", ".join(f"{worker.worker} ({worker.role})" for worker in status.workers)
    yield "workers", (f"{status.members} in the group" + (f": {said}" if said else ""), "")
    if status.log_levels:
        levels = ", ".join(
            f"{'all' if each.worker == ALL else each.worker} {each.level} (since {each.since} by {each.by})"
            for each in status.log_levels
        )
        yield "log level", (levels, "yellow")
    letters = status.dead_letters
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in letters.reasons.items())
    if reasons and (counted := sum(letters.reasons.values())) < letters.total:
        reasons = f"of the first {counted:,} {reasons}"
    yield "dead letters", (f"{letters.total:,} in the last hour" + (f": {reasons}" if reasons else ""), "")
    if status.jobs is not None:
        jobs = ", ".join(
            f"{row['job_id']} ({row['kind']}, {row['parts_done']:,} of {row['parts']:,} parts)"
            for row in status.jobs
        )
        yield "bulk jobs", (jobs or "none under way", "")
    if status.attention is not None:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in status.attention.items())
        yield "attention", (kinds or "nothing to look at", "")
    outcome = f", {status.audit_broken:,} differences" if status.audit_broken else ""
    yield "last audit", ((status.audit or "none on this machine") + outcome, "")


def _lanes(lanes: list[LaneStatus]) -> Iterator[list[Cell]]:
    """A row for lanes side by side that have nothing to tell apart: idle ones of one worker."""

    def alike(lane: LaneStatus) -> tuple[object, ...]:
        busy = lane.lag or lane.problem or lane.oldest is not None
        return (lane.worker, lane.lane if busy else None)

    for _, group in groupby(lanes, alike):
        members = list(group)
        first, last = members[0], members[-1]
        works = "idle" if not first.lag else "works" if first.lag > first.held else "held: topics are paused"
        state: Cell = (first.problem, "red") if first.problem else (works, "")
        yield [
            f"{first.lane}" if first is last else f"{first.lane}-{last.lane}",
            first.worker or "-",
            f"{first.lag:,}",
            "-" if first.oldest is None else f"{first.oldest:.0f} s",
            state,
        ]


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _plain(value: Any) -> Any:
    return value if isinstance(value, (int, str, type(None))) else str(value)
