"""The report of a takeover, for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from cli.terminal import Rows, Terminal, output
from contracts import money
from contracts.printable import printable
from operations.takeover.report import STATUSES, Report

if TYPE_CHECKING:
    from operations.takeover.sending import Outcome, Sent


SHOWN: Final = 20
"""Lines and orders that a person is shown."""

WAITS: Final = {
    "payment": "money; overdue, their stock is asked back",
    "stock": "an answer about stock; overdue, it is asked for again",
    "release": "stock to come back after a cancellation; overdue, it is asked for again",
    "label": "a first scan; overdue, the label is asked for again",
    "refund": "a refund to be paid; overdue, it is asked for again",
    "ship": "units to be shipped; overdue, the seller is late",
    "unshipped": "late units to be shipped at last; overdue, their stock is asked back",
    "deliver": "parcels to be delivered; overdue, the seller is late",
    "return": "returns to be processed; overdue, somebody should look",
    "refund_retry": "a failed refund to be tried again",
}
"""What a deadline waits for, and what follows when it doesn't come."""


def print_report(report: Report, *, dry_run: bool) -> None:
    """Print what was read, what is refused, what it comes to and what has to be told."""
    console = output()
    _print_files(report, console)
    if report.refused:
        table = Rows("file", "line", "reason", "detail", right={"line"}, prose={"detail"})
        for each in report.refused[:SHOWN]:
            table.add(each.file, each.line, each.reason, each.detail)
        console.print(table)
        _more(console, report.refusals, "lines: --report FILE has them all")
    _print_orders(report, console)
    _print_untold(report, console)
    _say(console, _verdict(report, dry_run), "bold" if report.ready else "yellow")


def _print_files(report: Report, console: Terminal) -> None:
    numbers = ("lines", "refused", "left out")
    table = Rows("file", "kind", *numbers, right=numbers)
    for file in report.files:
        table.add(file.path, file.kind, f"{file.lines:,}", f"{file.refused:,}", f"{file.left_out:,}")
    console.print(table)
    for path, ignored in _ignored(report).items():
        if ignored:
            columns = ", ".join(map(printable, ignored))
            _say(console, f"{printable(path)}: ignored columns: {columns}", "yellow")
    if report.live_from is not None:
        console.print(f"history until {report.live_from}")


def _ignored(report: Report) -> dict[str, list[str]]:
    """Path -> columns that nothing was read from. One file may be read for orders, payments and more."""
    columns: dict[str, list[str]] = {}
    for file in report.files:
        before = columns.get(file.path, file.ignored)
        columns[file.path] = [column for column in before if column in file.ignored]
    return columns


def _print_orders(report: Report, console: Terminal) -> None:
    table = Rows("", "orders", "", right={"orders"}, prose={""}, header=False)
    table.add(("orders", "bold"), (f"{report.orders:,}", "bold"), "")
    for status in STATUSES:
        if report.statuses[status]:
            table.add(f"  {status}", f"{report.statuses[status]:,}", "")
    table.add("open", f"{report.open:,}", "not delivered, returned or closed")
    for what, waits in report.waits.items():
        overdue = f" ({waits.overdue:,} at once)" if waits.overdue else ""
        table.add(f"  {what}", f"{waits.orders:,}", f"wait for {WAITS[what]}{overdue}")
    commands = ", ".join(f"{topic} {count:,}" for topic, count in report.commands.items())
    table.add("commands", f"{report.commands.total():,}" if commands else "none", commands)
    table.add("anomalies", f"{report.anomalies.total():,}", "")
    for kind, count in sorted(report.anomalies.items()):
        example = next((each.order_id for each in report.oddities if each.kind == kind), "")
        table.add(f"  {kind}", f"{count:,}", f"order {example}" if example else "")
    console.print(table)
    if report.money:
        sums = ("total", "captured", "paid back")
        table = Rows("currency", *sums, right=sums)
        for currency, each in sorted(report.money.items()):
            amounts = (each.total, each.captured, each.refunded)
            table.add(currency, *(money.text(amount, money.DIGITS[currency]) for amount in amounts))
        console.print(table)


def _print_untold(report: Report, console: Terminal) -> None:
    if not report.refunds_untold:
        return
    how = "is told as computed" if report.refunds_computed else "isn't told"
    _say(console, f"units came back or were taken away, and what was paid back {how}:")
    table = Rows("file", "line", "order", "computed", "", right={"line", "computed"})
    for each in report.untold[:SHOWN]:
        table.add(each.file, each.line, each.order_id, each.computed, each.currency)
    console.print(table)
    _more(console, report.refunds_untold, "orders: --json names 1,000")


def _say(console: Terminal, text: str, style: str = "") -> None:
    """Print a sentence, wrapped at the terminal's width."""
    line = Rows("", prose={""}, header=False)
    line.add((text, style))
    console.print(line)


def _more(console: Terminal, count: int, where: str) -> None:
    if count > SHOWN:
        console.print(f"and {count - SHOWN:,} more {where}")


def _verdict(report: Report, dry_run: bool) -> str:
    """Say whether it can be taken over, and what to do if it can't."""
    if report.refusals:
        return f"{report.refusals:,} lines are refused, so nothing is sent: mend the files or the mapping"
    if report.commands:
        return "commands would leave, so nothing is sent: this is a defect, please report it"
    if report.refunds_untold and not report.refunds_computed:
        return (
            f"{report.refunds_untold:,} orders don't say what was paid back, so nothing is sent: give a"
            " column refunded_amount, or take what is computed (--refunds-as-computed)"
        )
    if not report.orders:
        return "no order is left to be taken over"
    return "it can be taken over; nothing is sent (--dry-run)" if dry_run else "it can be taken over"


def print_sent(sent: Sequence[Sent]) -> None:
    """Print what was sent."""
    table = Rows("file", "kind", "parts", "sent now", "job", right={"parts", "sent now"})
    for each in sent:
        table.add(each.path, each.kind, f"{each.parts:,}", f"{each.now:,}", each.job or "")
    output().print(table)


def print_outcome(outcome: Outcome) -> None:
    """Print what the pipeline made of it."""
    console = output()
    if outcome.differences:
        table = Rows("order", "told", "found")
        for each in outcome.differences[:SHOWN]:
            table.add(each.order_id, each.told, each.found or "nothing")
        console.print(table)
        _more(console, outcome.different, "orders")
    later = f", {outcome.later:,} to which more has happened since" if outcome.later else ""
    console.print(f"taken in: {outcome.as_told:,} orders as told{later}, {outcome.different:,} otherwise")
    if outcome.different:
        console.print("orders show ORDER and orders dlq list say more", style="yellow")
