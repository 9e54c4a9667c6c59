"""Plants every bug, says what noticed it, and after how many histories and seconds."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from tests.mutants.forkserver import ForkServer
from tests.mutants.planted import CONTROL, DoesNotApply, Mutant, Verdict, copied, judge, mutants


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which ones; all without it.")] = None,
    histories: Annotated[
        int | None, typer.Option(help="Histories of each, instead of its own number.", min=1)
    ] = None,
    jobs: Annotated[int, typer.Option(help="How many at once. 0: one per processor.", min=0)] = 0,
    write: Annotated[Path | None, typer.Option(help="Write the result as JSON to this file as well.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Break the pipeline in every planted way, and look whether something notices it.

    Exits with 1 when a bug escapes, or when its patch doesn't apply any more.

    Example: python -m tests.mutants lease-off ack-before-write
    """
    known = {mutant.name: mutant for mutant in [CONTROL, *mutants()]}
    unknown = sorted(set(names or ()) - known.keys())
    if unknown:
        typer.echo(f"no mutant {unknown[0]}; there are: {', '.join(known)}", err=True)
        raise typer.Exit(2)
    chosen = [known[name] for name in names] if names else list(known.values())
    verdicts, broken = judge_all(chosen, histories, jobs or os.cpu_count() or 1)
    document = {"mutants": [asdict(verdict) for verdict in verdicts], "not_applying": broken}
    if write is not None:
        write.write_text(json.dumps(document, indent=1) + "\n")
    if as_json:
        typer.echo(json.dumps(document))
    else:
        show(verdicts, broken)
    raise typer.Exit(0 if not broken and all(right(verdict) for verdict in verdicts) else 1)


def right(verdict: Verdict) -> bool:
    """A planted bug is noticed, and the source as it is isn't."""
    return verdict.caught != (verdict.name == CONTROL.name)


def judge_all(chosen: list[Mutant], histories: int | None, jobs: int) -> tuple[list[Verdict], list[str]]:
    """Verdicts in the order of `chosen`, and what doesn't apply.
    Blocks until all have ended; progress on stderr.
    """
    verdicts: dict[str, Verdict] = {}
    broken: list[str] = []
    with ExitStack() as opened, ThreadPoolExecutor(jobs) as pool:
        idle: SimpleQueue[tuple[ForkServer, Path]] = SimpleQueue()
        for _ in range(min(jobs, len(chosen))):
            idle.put((opened.enter_context(ForkServer()), opened.enter_context(copied())))

        def judged(mutant: Mutant) -> Verdict:
            server, root = idle.get()
            try:
                return judge(mutant, server, root, histories=histories)
            finally:
                idle.put((server, root))

        running = {pool.submit(judged, mutant): mutant for mutant in chosen}
        for number, future in enumerate(as_completed(running), 1):
            mutant = running[future]
            try:
                verdict = verdicts[mutant.name] = future.result()
            except DoesNotApply as error:
                broken.append(str(error))
                outcome = str(error)
            else:
                outcome = "noticed" if verdict.caught else "not noticed"
            print(f"{number}/{len(chosen)} {mutant.name}: {outcome}", file=sys.stderr, flush=True)
    return [verdicts[mutant.name] for mutant in chosen if mutant.name in verdicts], broken


def show(verdicts: list[Verdict], broken: list[str]) -> None:
    """For people."""
    table = Table("mutant", "what is broken", "noticed by", "histories", "seconds", title="Planted bugs")
    for each in verdicts:
        by = each.by if each.caught else "nothing" if right(each) else "[red]NOTHING[/red]"
        count = str(each.histories) if each.histories else ""
        table.add_row(each.name, each.what, by[:110] if right(each) else by, count, f"{each.seconds:.1f}")
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for line in broken:
        typer.echo(line)
    escaped = [each.name for each in verdicts if not right(each)]
    typer.echo(
        f"{len(verdicts) - len(escaped)} as they should be, {len(escaped)}"
        f" not{': ' if escaped else ''}{', '.join(escaped)}"
    )


if __name__ == "__main__":
    typer.run(main)
