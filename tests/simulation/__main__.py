"""Simulated histories from the command line: many of them, or one again with its trace."""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import fields
from typing import Annotated

import typer

from tests.simulation.run import SimulatedHistory, Summary, prepared, run_many, run_seed

CHUNK = 256
"""Seeds that a process takes at once."""
REPORT_SECONDS = 5.0


def replay_command(seed: int) -> str:
    """What to type to see a history again."""
    return f".venv/bin/python -m tests.simulation --replay {seed}"


Histories = Annotated[
    int | None, typer.Option(help="How many histories; 10,000 without it and without --minutes.", min=1)
]
Seed = Annotated[
    int | None,
    typer.Option(help="The first history's seed; each next one has the next. Without it: the time."),
]


def main(
    histories: Histories = None,
    seed: Seed = None,
    minutes: Annotated[float | None, typer.Option(help="Stop after so many minutes.", min=0.0)] = None,
    jobs: Annotated[int, typer.Option(help="Processes. 0: one per processor.", min=0)] = 0,
    failures: Annotated[int, typer.Option(help="Stop after so many failing histories.", min=1)] = 1,
    replay: Annotated[
        int | None, typer.Option(help="Live through this seed's history alone, and print all that happened.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON document.")] = False,
) -> None:
    """Run the pipeline through random histories of failures, in virtual time, and check what is left.

    Exits with 1 and the seed when something is wrong.

    Example: python -m tests.simulation --histories 100000 --seed 1
    """
    if replay is not None:
        outcome = traced(replay)
        show(outcome)
        raise typer.Exit(1 if outcome.problems else 0)
    first = time.time_ns() // 1_000_000 % (1 << 40) if seed is None else seed
    count = histories or (10_000 if minutes is None else 1 << 40)
    summary = fuzz(
        first, count, jobs or os.cpu_count() or 1, failures, None if minutes is None else minutes * 60
    )
    if as_json:
        typer.echo(json.dumps(document(first, summary)))
    else:
        report(first, summary)
    raise typer.Exit(1 if summary.failed else 0)


def fuzz(first: int, count: int, jobs: int, failures: int, seconds: float | None) -> Summary:
    """Histories on several processors, with progress on stderr. Blocks until done."""
    started = shown = time.monotonic()
    end = float("inf") if seconds is None else started + seconds
    if jobs == 1:
        return run_many(first, count, most_failures=failures, until=end)
    summary = Summary()
    following, last = first, first + count
    with ProcessPoolExecutor(jobs) as pool:
        running: set[Future[Summary]] = set()
        while True:
            while (
                len(running) < 2 * jobs
                and following < last
                and time.monotonic() < end
                and len(summary.failed) < failures
            ):
                size = min(CHUNK - following % CHUNK, last - following)
                running.add(pool.submit(run_many, following, size, most_failures=failures, until=end))
                following += size
            if not running:
                break
            done, running = wait(running, timeout=REPORT_SECONDS, return_when=FIRST_COMPLETED)
            for future in done:
                part = future.result()
                for outcome in part.failed:
                    print(
                        f"seed {outcome.seed} failed: {outcome.problems[0][:160]}",
                        file=sys.stderr,
                        flush=True,
                    )
                summary.merge(part)
            now = time.monotonic()
            if now - shown >= REPORT_SECONDS:
                shown = now
                rate = summary.histories / (now - started) * 60
                print(
                    f"{summary.histories:,} histories, {rate:,.0f} a minute, {len(summary.failed)} failed",
                    file=sys.stderr,
                    flush=True,
                )
    summary.seconds = time.monotonic() - started
    return summary


def document(first: int, summary: Summary) -> dict[str, object]:
    """The summary as JSON has it."""
    # Not asdict: it takes a Counter's items for elements to count.
    plain = {each.name: getattr(summary, each.name) for each in fields(summary)}
    failed = [
        {"seed": each.seed, "problems": each.problems, "replay": replay_command(each.seed)}
        for each in summary.failed
    ]
    return {"seed": first, **plain, "failed": failed}


def report(first: int, summary: Summary) -> None:
    """For people."""
    for outcome in summary.failed[:1]:
        show(traced(outcome.seed))
    rate = summary.histories / max(summary.seconds, 1e-9) * 60
    faults = ", ".join(f"{count:,} {name}" for name, count in summary.faults.most_common())
    typer.echo(
        f"{summary.histories:,} histories from seed {first} in {summary.seconds:.1f} s ({rate:,.0f} a"
        f" minute): {summary.events:,} events, {summary.deaths:,} deaths, {summary.generations:,}"
        f" generations, {summary.passed:,} deadlines passed, {summary.late:,} writes that landed late,"
        f" {summary.hidden:,} orders left out for that; faults: {faults}"
    )
    typer.echo(f"{len(summary.failed)} failed")
    for outcome in summary.failed:
        typer.echo(f"  seed {outcome.seed}: {outcome.problems[0][:200]}\n    {replay_command(outcome.seed)}")


def traced(seed: int) -> SimulatedHistory:
    """A seed's history once more, with its trace."""
    with prepared():
        return run_seed(seed, tracing=True)


def show(outcome: SimulatedHistory) -> None:
    """What happened, and what is wrong with it."""
    for line in outcome.trace:
        typer.echo(line[:220])
    for problem in outcome.problems:
        typer.echo(f"PROBLEM {problem}")
    if not outcome.problems:
        typer.echo(f"seed {outcome.seed}: nothing is wrong")


if __name__ == "__main__":
    typer.run(main)
