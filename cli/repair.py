"""`orders repair`: write the states, rows and cache entries again that the audit finds broken."""

from __future__ import annotations

import asyncio
import json as jsonlib
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.text import Text

from audit.findings import Finding, Report
from cli.audit import audit, show_findings, target_of
from cli.errors import UserError
from cli.terminal import output
from cli.text import printable
from operations.grouplock import GroupBusy, GroupLock
from operations.history import LogIncomplete
from operations.repair import Damage, Repairer
from settings import Settings, get_settings
from streams.lag import LagReader, TopicsMissing
from streams.transport.errors import LeaseLost, Stale

STATE_CHECKS: Final = ("changelog", "versions", "tables")
"""Checks whose findings a new record in the changelog mends; a worker's local table takes it over at its next start."""
MENDED: Final = (*STATE_CHECKS, "rows", "cache")
MOST_TEXT: Final = 64 << 20
"""Characters of a file of ids."""


@dataclass
class RepairResult:
    """The result of a repair, or with `dry_run` what it would be."""

    dry_run: bool
    repaired: dict[str, tuple[list[str], int | None]] = field(default_factory=dict)
    """By order id: its repaired stores, and the version that it has now."""
    keys: list[str] = field(default_factory=list)
    """Redis keys that belong to no order and were deleted."""
    remaining: Counter[str] = field(default_factory=Counter)
    """What is still broken, by check."""
    findings: list[Finding] = field(default_factory=list)
    inconclusive: int = 0

    def document(self) -> dict[str, Any]:
        """Return the JSON document, with the keys of the release before beside the new ones."""
        return {
            "dry_run": self.dry_run,
            "clean": not self.remaining,
            "repaired": [
                {"order_id": order_id, "stores": stores, "version": version}
                for order_id, (stores, version) in sorted(self.repaired.items())
            ],
            "deleted_keys": self.keys,
            "remaining": self.remaining,
            "left": self.remaining,
            "findings": [finding.document() for finding in self.findings],
            "inconclusive": self.inconclusive,
            "unjudged": self.inconclusive,
        }


def repair_command(
    ids: Annotated[
        str | None, typer.Option(metavar="ID,...", help="Only these orders; @FILE: one id a line. Without it: whatever is broken.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be repaired, and write nothing.")] = False,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Repair Redis too. Without --no-cache it must be there.")] = True,
    max_findings: Annotated[
        int, typer.Option("--max-findings", min=1, max=100_000, help="Findings kept of what is left; all are counted.")
    ] = 50,
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Repair orders whose state, rows or cache entries the audit finds broken, by folding their log again.

    It runs the audit before and after. Stop all workers first: the group lets none in while the repair runs. It doesn't
    write derived events, decisions or dead letters; it names those that are broken.

    Exits 0 when nothing is broken any more, 1 when something still is (or, with --dry-run, would be repaired), 2 when it
    couldn't run.

    Example:

        orders repair --dry-run; orders repair && orders audit
    """
    order_ids = None if ids is None else _parse(ids)
    quiet = json or not sys.stderr.isatty()
    try:
        outcome = asyncio.run(_repair(get_settings(), order_ids, dry_run=dry_run, cache=cache, max_findings=max_findings, quiet=quiet))
    except GroupBusy as error:
        raise UserError(f"{error}: stop all workers (SIGTERM lets them finish), and run orders repair again") from None
    except LogIncomplete as error:
        raise UserError(str(error)) from None
    except TopicsMissing as error:
        raise UserError(f"{error}; run orders init") from None
    except (LeaseLost, Stale) as error:
        raise UserError(f"{error}; what was written is right: run orders repair again for the rest") from None
    if json:
        print(jsonlib.dumps(outcome.document(), indent=2, sort_keys=True))
    else:
        _show(outcome)
    if outcome.remaining or (dry_run and (outcome.repaired or outcome.keys)):
        raise typer.Exit(1)


async def _repair(
    settings: Settings, ids: frozenset[str] | None, *, dry_run: bool, cache: bool, max_findings: int, quiet: bool
) -> RepairResult:
    outcome, target = RepairResult(dry_run), target_of(settings, cache=cache, tables=True)
    if dry_run:
        damaged, keys, first = await _find_damage(target, ids, max_findings, quiet)
        outcome.repaired = {order_id: (damage.stores, None) for order_id, damage in damaged.items()}
        outcome.keys = sorted(keys)
        _count(outcome, first, max_findings, mended=False)
        return outcome
    async with LagReader(settings) as reader:  # says at once which server or topic is missing
        await reader.lag()
    target = replace(target, patience=0.0)  # a member of the group that refreshes nothing keeps those out that would
    async with GroupLock(settings) as lock:
        damaged, keys, first = await _find_damage(target, ids, max_findings, quiet)
        _count(outcome, first, max_findings, mended=False)
        if damaged or keys:
            async with Repairer(settings, lock, cache=cache) as repairer:
                versions = await repairer.repair(damaged)
                await repairer.drop_keys(keys)
            outcome.repaired = {order_id: (damage.stores, versions[order_id]) for order_id, damage in damaged.items()}
            outcome.keys = sorted(keys)
        if damaged:
            again = await audit(target, max_findings=max_findings, quiet=quiet, only=frozenset(damaged))
            _count(outcome, again, max_findings, mended=True)
    return outcome


async def _find_damage(
    target: Any, ids: frozenset[str] | None, max_findings: int, quiet: bool
) -> tuple[dict[str, Damage], set[str], Report]:
    """Run the audit. Returns what can be repaired by order, the wrong Redis keys that belong to no order, and the report."""
    damaged: dict[str, Damage] = {}
    keys: set[str] = set()

    def on_finding(finding: Finding) -> None:
        if finding.check not in MENDED:
            return
        if not finding.order_id or not _is_id(finding.order_id):
            if finding.check == "cache":
                keys.add(finding.where)
            return
        damage = damaged.setdefault(finding.order_id, Damage())
        damage.state |= finding.check in STATE_CHECKS
        damage.rows |= finding.check == "rows"
        if finding.check == "cache":
            damage.keys.add(finding.where)

    report = await audit(target, max_findings=max_findings, quiet=quiet, only=ids, on_finding=on_finding)
    return damaged, keys, report


def _count(outcome: RepairResult, report: Report, most: int, *, mended: bool) -> None:
    """Add what a report calls broken to `outcome`: of the checks that repair mends if `mended`, else of the others."""
    for check, count in report.broken.items():
        if (check in MENDED) == mended:
            outcome.remaining[check] += count
    findings = [each for each in report.findings if each.severity == "broken" and (each.check in MENDED) == mended]
    outcome.findings += findings[: most - len(outcome.findings)]
    outcome.inconclusive = report.inconclusive.total()


def _parse(text: str) -> frozenset[str]:
    """Parse order ids in any form into canonical ones. Raises UserError."""
    words = text.split(",")
    if text.startswith("@"):
        try:
            with Path(text[1:]).open(encoding="utf-8-sig") as file:
                listed = file.read(MOST_TEXT + 1)
        except OSError as error:
            raise UserError(f"--ids {text}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise UserError(f"--ids {text}: not text in UTF-8") from None
        if len(listed) > MOST_TEXT:
            raise UserError(f"--ids {text}: more than {MOST_TEXT:,} characters; without --ids every order is looked at")
        words = listed.split()
    try:
        order_ids = frozenset(str(UUID(word.strip())) for word in words if word.strip())
    except ValueError as error:
        raise UserError(f"--ids: {error}; order ids such as 3fa85f64-5717-4562-b3fc-2c963f66afa6, separated by commas") from None
    if not order_ids:
        raise UserError("--ids names no order")
    return order_ids


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False


def _show(outcome: RepairResult) -> None:
    console = output()
    verb = "would repair" if outcome.dry_run else "repaired"
    for order_id, (stores, version) in sorted(outcome.repaired.items()):
        now = "" if version is None else f"  version {version}" if version else "  the log has no such order: deleted"
        console.print(Text.assemble(f"{verb} order ", (printable(order_id), "cyan"), f"  {', '.join(stores)}{now}"))
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
