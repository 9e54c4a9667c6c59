"""`orders audit`: the invariants, told to a person or a program."""

from __future__ import annotations

import asyncio
import json as jsonlib
from typing import Annotated

import typer
from rich.text import Text

from audit.findings import CHECKS, Finding, Report
from cli.terminal import Rows, Terminal, output, progress
from cli.text import printable
from operations.auditing import audit, target_of
from settings import get_settings


def audit_command(
    json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    max_findings: Annotated[
        int,
        typer.Option(
            "--max-findings",
            min=1,
            max=100_000,
            help="How many findings of each severity are kept; all are counted.",
        ),
    ] = 50,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", help="Compare Redis too; it must be there. --no-cache leaves it out."
        ),
    ] = True,
    tables: Annotated[
        bool,
        typer.Option(
            "--tables/--no-tables",
            help="Compare the workers' local tables below ORDERS_DATA, if there are any.",
        ),
    ] = True,
) -> None:
    """Fold the log a second time, independently of the pipeline, and compare everything written with it.

    It only reads, joins no consumer group, and may run while workers do. It takes about 200 MB of memory
    however many orders there are, and on disk about as much as one lane of the log, below $TMPDIR.
    docs/audit.md says what is checked and how.

    Exits 0 if nothing is broken, 1 if something is (and names order, fact and store), 2 if it couldn't run
    because a server isn't there.

    Example:

        orders wait && orders audit --max-findings 10
    """
    with progress("audit", quiet=json, transient=False) as bar:
        target = target_of(get_settings(), cache=cache, tables=tables)
        report = asyncio.run(audit(target, max_findings=max_findings, progress=bar.work))
    if json:
        print(jsonlib.dumps(report.document(), indent=2, sort_keys=True))
    else:
        show(report, output())
    if not report.clean:
        raise typer.Exit(1)


def show(report: Report, console: Terminal) -> None:
    """Print a report for a person: what was checked, what is broken, what is worth knowing."""
    checks = Rows(
        "check",
        "invariant",
        "verdict",
        title=f"Audit of group {printable(report.group)}",
        prose={"invariant"},
    )
    for check, invariant in CHECKS.items():
        checks.add(check, invariant, _verdict(report, check))
    console.print(checks)
    counts = report.counts
    console.print(
        f"{counts['records']:,} records: {counts['facts']:,} facts, {counts['duplicates']:,} duplicates, "
        f"{counts['conflicts']:,} conflicts, {counts['refused']:,} refused. {counts['orders']:,} orders"
        + "".join(
            f", {report.checked[table]:,} rows of {table}"
            for table in report.checked
            if table.startswith("orders_")
        )
    )
    console.print(
        f"{counts['states']:,} states, {counts['derived_events']:,} derived events,"
        f" {counts['cached_orders']:,} cached orders, {counts['local_states']:,} states in local tables;"
        f" {report.seconds:.1f} s"
    )
    console.print(
        f"seen from {'the beginning' if not report.seen_from else _listed(report.seen_from)}; lag"
        f" {report.lag:,}"
    )
    if report.dead_letters:
        console.print(f"dead letters: {_listed(report.dead_letters)}")
    if report.anomalies:
        console.print(f"anomalies: {_listed(report.anomalies)}")
    if counts["waiting_facts"]:
        console.print(
            f"waiting: {counts['waiting_facts']:,} facts of {counts['waiting_orders']:,} orders without"
            f" order.created, {counts['waiting_facts_old']:,} of them for more than a day"
        )
    for notice in report.notices:
        console.print(printable(notice), style="yellow")
    show_findings(
        [each for each in report.findings if each.severity == "broken"], report.broken.total(), console
    )
    if report.clean:
        console.print("clean", style="bold green")


def _verdict(report: Report, check: str) -> tuple[str, str]:
    if report.broken[check]:
        return f"{report.broken[check]:,} broken", "bold red"
    if {"cache": "redis", "tables": "local tables"}.get(check, "log") not in report.compared:
        return "not looked at", "dim"
    if report.inconclusive[check]:
        return f"{report.inconclusive[check]:,} inconclusive", "yellow"
    return "holds", "green"


def show_findings(findings: list[Finding], total: int, console: Terminal) -> None:
    """Lines, not a table: ids and places are long, and someone copies them."""
    if not findings:
        return
    console.print(f"{total:,} broken", style="bold red")
    for finding in findings:
        line = Text.assemble(("  " + finding.check, "bold"), f"  {printable(finding.where)}")
        if finding.order_id:
            line.append(f"  order {printable(finding.order_id)}", "cyan")
        if finding.fact:
            line.append(f"  by {printable(finding.fact)}", "dim")
        line.append(
            f"\n      expected {printable(finding.expected)}\n      actual   {printable(finding.actual)}"
        )
        console.print(line)
    if total > len(findings):
        console.print(f"and {total - len(findings):,} more; --max-findings keeps more")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(
        f"{printable(name)} {count:,}"
        for name, count in sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
    )
