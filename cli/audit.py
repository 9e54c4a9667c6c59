"""`orders audit`: the invariants, told to a person or a program."""

from __future__ import annotations

import asyncio
import json as jsonlib
import signal
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from cli.terminal import Rows, Terminal, messages, output, progress
from contracts.printable import printable
from settings import Settings, get_settings

if TYPE_CHECKING:
    from audit.findings import Finding, Report
    from audit.follow import Follower, Told

MOST_OF_A_KEY: Final = 80
"""Characters of a record's key that are shown."""

Follows = Annotated[
    bool,
    typer.Option(
        "--follow",
        help="Go on until Ctrl-C, some seconds behind the workers, and print what breaks when it does.",
    ),
]
Interval = Annotated[
    float, typer.Option(min=0.5, max=600, help="With --follow: seconds from one round to the next.")
]
Sweep = Annotated[
    float,
    typer.Option(
        min=1,
        max=10_000,
        help="With --follow: how many orders without new records are compared each second.",
    ),
]


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
    full: Annotated[
        bool,
        typer.Option(
            "--full", help="Read the whole log again, whatever the checkpoint of the last audit says."
        ),
    ] = False,
    follows: Follows = False,
    interval: Interval = 5.0,
    sweep: Sweep = 500.0,
) -> None:
    """Compute everything again from the log, independently of the pipeline, and compare all stores with it.

    It only reads, joins no consumer group, and may run while workers do. docs/audit.md says what is checked
    and how.

    It leaves a checkpoint below ORDERS_DATA. The next audit reads only what the log got since then, compares
    all rows, cache entries and local tables, and says what it took from the checkpoint unchecked; --full
    reads everything.

    For each core it takes about 200 MB of memory, however many orders there are, and below $TMPDIR as much
    disk as one lane of the log.

    With --follow it goes on from the checkpoint (without one it audits everything first) and prints a line
    for each new difference, and for each that is gone again; with --json, an object. It goes on until SIGINT
    or SIGTERM, serves metrics on ORDERS_METRICS_PORT, and leaves out local tables.

    Exits 0 if nothing is broken, 1 if something is (and names order, fact and store), 2 if it couldn't run
    because a server isn't there.

    Example:

        orders wait && orders audit --full --max-findings 10
        orders audit --follow --sweep 2000
    """
    if follows:
        following: dict[str, Any] = {"interval": interval, "rate": sweep, "full": full}
        raise typer.Exit(asyncio.run(_follow(get_settings(), cache=cache, json=json, **following)))
    with progress("audit", quiet=json, transient=False) as bar:
        options: dict[str, Any] = {"max_findings": max_findings, "progress": bar.work, "full": full}
        report = _audited(get_settings(), cache=cache, tables=tables, **options)
    if json:
        print(jsonlib.dumps(report.document(), indent=2, sort_keys=True))
    else:
        show(report, output())
    if not report.clean:
        raise typer.Exit(1)


def _audited(settings: Settings, *, cache: bool, tables: bool, **options: Any) -> Report:
    from operations.auditing import audit, target_of

    target = target_of(settings, cache=cache, tables=tables, checkpoints=True)
    return asyncio.run(audit(target, **options))


async def _follow(settings: Settings, *, cache: bool, json: bool, **options: Any) -> int:
    """Follow until a signal comes; returns the exit code."""
    from audit.follow import Follower
    from cli.probes import serve
    from operations.auditing import follow, target_of
    from streams import metrics
    from streams.probes import Health

    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    began, console = time.time(), output()

    def tell(news: Told) -> None:
        if json:
            finding = asdict(news.finding)
            del finding["severity"]
            print(jsonlib.dumps({"at": _now(), "event": news.what, **finding}), flush=True)
        else:
            console.print(_line(news))

    def say(what: str) -> None:
        if json:
            print(jsonlib.dumps({"at": _now(), "event": "notice", "text": what}), flush=True)
        else:
            messages().print(f"{_now()} {printable(what)}", style="yellow")

    def measure(follower: Follower) -> None:
        for check, count in follower.broken.items():
            metrics.AUDIT_BROKEN.labels(check).set(count)
        for name, offset in follower.positions.items():
            metrics.AUDIT_POSITION.labels(*name.split("/")).set(offset)

    with progress("audit", quiet=json, transient=True) as bar:
        follower = Follower(
            target_of(settings, cache=cache, tables=False, checkpoints=True),
            tell=tell,
            say=say,
            after_round=measure,
            progress=lambda what, done, total: None if follower.at else bar.work(what, done, total),
            **options,
        )
        metrics.AUDIT_AGE.set_function(lambda: time.time() - (follower.at or began))
        probes = serve(settings, metrics.AUDIT)
        if probes is not None:
            waits = "what was written before is audited first"
            probes.watch(asyncio.get_running_loop(), lambda: Health(waits=None if follower.at else waits))
        clean = await follow(follower, stop)
    return 0 if clean else 1


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _line(news: Told) -> Text:
    """One line: somebody reads it beside others, or a program cuts it out."""
    finding = news.finding
    line = Text.assemble(
        (_now(), "dim"),
        (f" {news.what}", "bold red" if news.what == "broken" else "bold green"),
        f" {finding.check} {printable(finding.where)}",
    )
    if finding.order_id:
        line.append(f" order {_name(finding.order_id)}", "cyan")
    if news.what == "broken":
        if finding.fact:
            line.append(f" by {printable(finding.fact)}", "dim")
        line.append(f" expected {printable(finding.expected)}, actual {printable(finding.actual)}")
    return line


def show(report: Report, console: Terminal) -> None:
    """Print a report for a person: what was checked, what is broken, what is worth knowing."""
    from audit.findings import CHECKS

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
            line.append(f"  order {_name(finding.order_id)}", "cyan")
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


def _name(order_id: str) -> str:
    """An order's id; where it is none, but a record's key, its beginning."""
    return printable(order_id if len(order_id) <= MOST_OF_A_KEY else f"{order_id[:MOST_OF_A_KEY]}…")
