"""`make chaos`: python -m tests.chaos [--minutes M] [--seed S] [--faults a,b] ..."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
import uvloop
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from tests.chaos import report, schedule
from tests.chaos.faults import CATALOGUE, READS_THE_WIRE
from tests.chaos.run import ChaosResult, Say, arena, run
from tests.chaos.scenarios import SCENARIOS
from tests.chaos.sweep.sweep import Swept, sweep_stacks
from tests.chaos.world import Shape
from tests.servers import SECURE

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)

T = TypeVar("T")

MIX, SWEEP = "mix", "sweep"
USUAL = (MIX, "partitions-added", "worker-failover", SWEEP)
"""What runs when nothing else is asked for."""


@app.command()
def chaos(
    minutes: Annotated[
        float | None,
        typer.Option(min=0.1, help="How long to inject faults. Without it: until each has come."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed, minutes and faults: the same schedule. Without it: a new one."),
    ] = None,
    faults: Annotated[
        str, typer.Option(help="Only these faults, scenarios, mix or sweep; separated by commas.")
    ] = "",
    rate: Annotated[float, typer.Option(min=1, help="Events a second.")] = 200.0,
    stacks: Annotated[
        int, typer.Option(min=1, max=8, help="Servers of its own that the sweep has side by side.")
    ] = 2,
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path(".chaos"),
    as_json: Annotated[
        bool, typer.Option("--json", help="The reports as one JSON document on stdout.")
    ] = False,
) -> None:
    """Inject faults into the whole pipeline under load, heal them, and audit what is left.

    Exit code 0 only if every fault was recovered from in time and every audit is clean. Reports lie
    in OUT/seed-SEED; of what failed the logs too. ORDERS_* of the environment reach the workers, but
    for the servers' addresses.

    Example: make chaos MINUTES=5 SEED=7 FAULTS=worker-kill,postgres-stop
    """
    names = [name.strip() for name in faults.split(",") if name.strip()]
    if names == ["list"]:
        _list()
        return
    unknown = [name for name in names if name not in {MIX, SWEEP, *CATALOGUE, *SCENARIOS}]
    if unknown:
        console.print(f"chaos: there is no fault {unknown[0]}; make chaos FAULTS=list names them")
        raise typer.Exit(2)
    unfit = _unfit(names)
    if seed is None:
        seed = random.SystemRandom().randrange(10_000)
    parts = dict.fromkeys(MIX if name in CATALOGUE else name for name in names or USUAL if name not in unfit)
    chosen = [name for name in names if name in CATALOGUE]
    chosen = chosen or [name for name in CATALOGUE if name not in unfit]
    place = out / f"seed-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    documents: dict[str, Any] = {}
    good = True
    for part in parts:
        console.rule(f"{part}, seed {seed}")
        folder = place / part
        folder.mkdir(parents=True)
        if part == SWEEP:
            document = asyncio.run(_sweep(folder, seed, stacks))
        elif part == MIX:
            document = asyncio.run(_mix(folder, seed, chosen, rate, minutes))
        else:
            document = asyncio.run(_scenario(folder, seed, part))
        documents[part] = document
        good = good and document["good"]
        if document["good"]:
            shutil.rmtree(folder / "logs", ignore_errors=True)
        else:
            again = f"make chaos SEED={seed} FAULTS={','.join(names) or part}" + (
                f" MINUTES={minutes:g}" if minutes else ""
            )
            console.print(f"[bold red]failed[/]: logs in {folder / 'logs'}; again with: {again}")
        console.print(f"report: {folder / 'report.html'}")
    if as_json:
        print(json.dumps(documents, indent=2))
    raise typer.Exit(0 if good else 1)


def _unfit(names: Sequence[str]) -> set[str]:
    """What can't be on the stack of this run, and is told. Raises typer.Exit if it was asked for."""
    unfit = {*READS_THE_WIRE, SWEEP} if SECURE else set()
    if unfit & set(names):
        console.print(f"chaos: {min(unfit & set(names))} can't be on a secure stack (docs/chaos.md)")
        raise typer.Exit(2)
    if unfit and (not names or MIX in names):
        console.print(f"left out on a secure stack: {', '.join(sorted(unfit))} (docs/chaos.md)")
    return unfit


def _list() -> None:
    for name, fault in sorted(CATALOGUE.items()):
        print(f"{name:24} {fault.what}")
    print()
    for name, scenario in sorted(SCENARIOS.items()):
        print(f"{name:24} {scenario.what}")
    print(f"{SWEEP:24} kill a worker before and after every await on a batch's path")
    print(f"{MIX:24} all faults of the first list in a seeded order")


async def _mix(
    place: Path, seed: int, names: Sequence[str], rate: float, minutes: float | None
) -> dict[str, Any]:
    kinds = [CATALOGUE[name].kind for name in names]
    endless = schedule.rounds(seed, kinds)
    planned = list(schedule.once(seed, kinds) if minutes is None else schedule.within(endless, minutes * 60))
    console.print(f"{len(planned)} rounds, some {sum(each.seconds for each in planned) / 60:.0f} minutes")

    async def play(folder: Path, say: Say) -> ChaosResult:
        return await run(folder, seed, planned, Shape(rate=rate), minutes=minutes, say=say)

    outcome = await _played(place, play)
    left_out = sorted(set(names) - {injection.kind for injection in outcome.injections})
    if left_out:
        outcome.notes.append(f"not injected for want of time: {', '.join(left_out)}")
    report.show(outcome, console)
    return report.write(outcome, place)


async def _scenario(place: Path, seed: int, name: str) -> dict[str, Any]:
    scenario = SCENARIOS[name]

    async def play(folder: Path, say: Say) -> ChaosResult:
        async with arena(folder, seed, scenario.shape, limit=scenario.limit, say=say) as (here, outcome):
            await scenario.act(here, outcome, say)
        return outcome

    outcome = await _played(place, play)
    report.show(outcome, console)
    return report.write(outcome, place)


async def _sweep(place: Path, seed: int, stacks: int) -> dict[str, Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("reconnaissance", total=1)

        def show_progress(done: int, whole: int, line: str) -> None:
            progress.update(task, description="kills", completed=done, total=whole)
            if line or (done % 20 == 0 and not console.is_terminal):
                progress.console.print(line or f"{done} of {whole} kills", markup=False)

        async def play(folder: Path, say: Say) -> Swept:
            return await sweep_stacks(folder, seed, stacks, show_progress)

        swept = await _played(place, play)
    report.show_sweep(swept, console)
    return report.write_sweep(swept, place)


async def _played(place: Path, play: Callable[[Path, Say], Awaitable[T]]) -> T:
    began = time.monotonic()

    def say(message: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:7.1f}[/] {escape(message)}")

    async with _folder(place) as folder:
        return await play(folder, say)


@asynccontextmanager
async def _folder(place: Path) -> AsyncIterator[Path]:
    """A folder that Postgres's own user can reach, too. What is in its `logs` is kept."""
    folder = Path(tempfile.mkdtemp(prefix=f"orders-chaos-{os.getpid()}-"))
    folder.chmod(0o711)
    try:
        yield folder
    finally:
        if (folder / "logs").exists():
            shutil.copytree(folder / "logs", place / "logs", dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    logging.basicConfig(
        level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    for noisy in ("aiokafka", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    app()


if __name__ == "__main__":
    main()
