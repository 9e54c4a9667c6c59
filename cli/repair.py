"""`orders repair`: write the states, rows and cache entries again that the audit finds broken."""

from __future__ import annotations

import asyncio
import json as jsonlib
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final
from uuid import UUID

import typer
from rich.text import Text

from cli.audit import show_findings
from cli.noting import Reason, noted
from cli.terminal import output, progress
from cli.text import say
from contracts.printable import printable
from errors import OrdersError
from settings import get_settings

if TYPE_CHECKING:
    from operations.repair import RepairResult


MOST_TEXT: Final = 64 << 20
"""Characters of a file of ids."""


def repair_command(
    ids: Annotated[
        str | None,
        typer.Option(
            metavar="ID,...", help="Only these orders; @FILE has one id a line. Default: all broken ones."
        ),
    ] = None,
    rows: Annotated[
        bool,
        typer.Option(
            "--rows",
            help="Only rows that are older than their states, changed by hand or missing; beside running"
            " workers.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be repaired, and write nothing.")
    ] = False,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", help="Repair Redis too; it must be there. --no-cache leaves it out."
        ),
    ] = True,
    max_findings: Annotated[
        int,
        typer.Option(
            "--max-findings",
            min=1,
            max=100_000,
            help="How many remaining findings are kept; all are counted.",
        ),
    ] = 50,
    why: Reason = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Repair orders whose state, rows or cache entries the audit finds broken, by folding their log again.

    It runs the audit before and after. Stop all workers first: the group lets none in while the repair runs.
    It doesn't write derived events, decisions or dead letters; it names those that are broken.

    With --rows it audits nothing and folds nothing: it writes the rows of the changelog's states where
    Postgres has older ones, others of the same version, or none: as after a restore, or when somebody
    changed or deleted rows. Workers may run.

    Exits 0 when nothing is broken any more, 1 when something still is (or, with --dry-run, would be
    repaired), 2 when it couldn't run.

    Example:

        orders repair --dry-run
        orders repair && orders audit
    """
    order_ids = None if ids is None else _parse(ids)
    if rows:
        _repair_rows(order_ids, why, dry_run=dry_run, as_json=json)
        return
    settings = get_settings()
    from operations.repair import repair

    with noted(settings, "repair", why, unless=dry_run), progress("audit", quiet=json) as bar:
        options: dict[str, Any] = {"dry_run": dry_run, "cache": cache, "max_findings": max_findings}
        outcome = asyncio.run(repair(settings, order_ids, progress=bar.work, **options))
    if json:
        print(jsonlib.dumps(outcome.document(), indent=2, sort_keys=True))
    else:
        _show(outcome)
    if outcome.remaining or (dry_run and (outcome.repaired or outcome.keys)):
        raise typer.Exit(1)


def _repair_rows(ids: frozenset[str] | None, why: str | None, *, dry_run: bool, as_json: bool) -> None:
    from operations.rows import repair_rows

    settings = get_settings()
    with noted(settings, "repair", why, unless=dry_run), progress("rows", quiet=as_json) as bar:
        result = asyncio.run(repair_rows(settings, ids, dry_run=dry_run, progress=bar.work))
    if as_json:
        print(jsonlib.dumps(asdict(result), indent=2, sort_keys=True))
    else:
        verb = "would be written" if dry_run else "written"
        print(f"{result.compared:,} orders compared, {result.orders:,} had older or changed rows, or none")
        say(f"{result.rows:,} rows {verb}")
        if result.remaining:
            print(f"{result.remaining:,} orders' rows differ otherwise: orders repair mends them")
    if result.remaining or (dry_run and result.orders):
        raise typer.Exit(1)


def _parse(text: str) -> frozenset[str]:
    """Parse order ids in any form into canonical ones. Raises OrdersError."""
    words = text.split(",")
    if text.startswith("@"):
        try:
            with Path(text[1:]).open(encoding="utf-8-sig") as file:
                listed = file.read(MOST_TEXT + 1)
        except OSError as error:
            raise OrdersError(f"--ids {text}: {error.strerror}", "check the path") from None
        except UnicodeDecodeError:
            raise OrdersError(f"--ids {text}: not text in UTF-8", "write one id a line") from None
        if len(listed) > MOST_TEXT:
            raise OrdersError(
                f"--ids {text}: more than {MOST_TEXT:,} characters",
                "leave --ids out: then every order is looked at",
            )
        words = listed.split()
    try:
        order_ids = frozenset(str(UUID(word.strip())) for word in words if word.strip())
    except ValueError as error:
        raise OrdersError(
            f"--ids: {error}",
            "give order ids such as 3fa85f64-5717-4562-b3fc-2c963f66afa6, separated by commas",
        ) from None
    if not order_ids:
        raise OrdersError("--ids names no order", "leave it out: then every order is looked at")
    return order_ids


def _show(outcome: RepairResult) -> None:
    console = output()
    verb = "would repair" if outcome.dry_run else "repaired"
    for order_id, (stores, version) in sorted(outcome.repaired.items()):
        now = (
            ""
            if version is None
            else f"  version {version}"
            if version
            else "  the log has no such order: deleted"
        )
        console.print(
            Text.assemble(f"{verb} order ", (printable(order_id), "cyan"), f"  {', '.join(stores)}{now}")
        )
    for key in outcome.keys:
        console.print(f"{'would delete' if outcome.dry_run else 'deleted'} {printable(repr(key))} in Redis")
    if not outcome.repaired and not outcome.keys:
        console.print("nothing to repair")
    if outcome.inconclusive:
        why = "records about their orders aren't committed: let workers finish first"
        console.print(f"{outcome.inconclusive:,} differences are inconclusive: {why}", style="yellow")
    show_findings(outcome.findings, outcome.remaining.total(), console)
    if outcome.remaining:
        console.print("These remain: repair writes states, rows and cache, nothing else.", style="yellow")
