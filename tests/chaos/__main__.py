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
from pathlib import Path
from typing import Annotated

import typer
import uvloop
from rich.console import Console

from tests.chaos import report, schedule
from tests.chaos.faults import CATALOGUE
from tests.chaos.run import Outcome, run
from tests.chaos.world import Shape

app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
console = Console(stderr=True, highlight=False)


@app.command()
def chaos(
    minutes: Annotated[float | None, typer.Option(min=0.1, help="How long to inject faults. Without it: until each has come.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, minutes and faults: the same schedule. Without it: a new one.")] = None,
    faults: Annotated[str, typer.Option(help="Only these, separated by commas.")] = "",
    rate: Annotated[float, typer.Option(min=1, help="Events a second.")] = 200.0,
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path(".chaos"),
    listed: Annotated[bool, typer.Option("--list", help="Tell which faults there are.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The report as one JSON document on stdout.")] = False,
) -> None:
    """Inject faults into the whole pipeline under load, heal them, and audit what is left.

    Exit code 0 only if every fault was recovered from in time and the audit is clean. The report lies in OUT/seed-SEED; of a failed run
    the logs too.

    Example: make chaos MINUTES=5 SEED=7 FAULTS=worker-kill,postgres-stop
    """
    if listed:
        for name, each in sorted(CATALOGUE.items()):
            print(f"{name:24} {each.what}")
        return
    names = [name.strip() for name in faults.split(",") if name.strip()]
    unknown = [name for name in names if name not in CATALOGUE]
    if unknown:
        console.print(f"chaos: there is no fault {unknown[0]}; make chaos FAULTS=list names them")
        raise typer.Exit(2)
    if seed is None:
        seed = random.SystemRandom().randrange(10_000)
    kinds = [CATALOGUE[name].kind for name in names or CATALOGUE]
    endless = schedule.rounds(seed, kinds)
    planned = list(schedule.once(seed, kinds) if minutes is None else schedule.within(endless, minutes * 60))
    place = out / f"seed-{seed}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    console.print(f"seed {seed}: {len(planned)} rounds, some {sum(each.seconds for each in planned) / 60:.0f} minutes")
    outcome = asyncio.run(_run(place, seed, planned, Shape(rate=rate), minutes))
    document = report.write(outcome, place)
    if as_json:
        print(json.dumps(document, indent=2))
    report.show(outcome, console)
    if outcome.good:
        shutil.rmtree(place / "logs", ignore_errors=True)
    else:
        console.print(
            f"[red]failed[/]: logs in {place / 'logs'}; again with: make chaos SEED={seed}" + (f" MINUTES={minutes:g}" if minutes else "")
        )
    console.print(f"report: {place / 'report.html'}")
    raise typer.Exit(0 if outcome.good else 1)


async def _run(place: Path, seed: int, planned: list[schedule.Round], shape: Shape, minutes: float | None) -> Outcome:
    began = time.monotonic()

    def say(message: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:7.1f}[/] {message}")

    folder = Path(tempfile.mkdtemp(prefix=f"orders-chaos-{os.getpid()}-"))
    folder.chmod(0o711)
    try:
        return await run(folder, seed, planned, shape, minutes=minutes, say=say)
    finally:
        shutil.copytree(folder / "logs", place / "logs", dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    for noisy in ("aiokafka", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    app()


if __name__ == "__main__":
    main()
