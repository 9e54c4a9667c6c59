"""`orders import`: take over the orders of another system from its files."""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from cli.bulk import Json, MaxBytes, bounds_of
from cli.noting import Reason, noted
from cli.takeover_report import print_outcome, print_report, print_sent
from cli.terminal import Bar, progress
from errors import OrdersError
from operations.takeover.report import Refused
from operations.takeover.sources import KINDS, found
from settings import Settings, get_settings

if TYPE_CHECKING:
    from operations.takeover.plan import Plan
    from operations.takeover.sending import Outcome, Sent


Folder = Annotated[
    Path | None,
    typer.Argument(
        metavar="FOLDER",
        help=(
            "Folder with the other system's files, named after what they hold: orders.csv, payments.csv,"
            " shipments.csv, returns.csv, cancellations.csv (or .ndjson, .parquet, with .gz, several of a"
            " kind: orders-2025.csv)."
        ),
        show_default=False,
    ),
]
Files = Annotated[list[Path] | None, typer.Option(metavar="FILE", help="More files of this.")]
LiveFrom = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help=(
            "The cut-over: until then the other system handled the orders. For orders without a live_from of"
            " their own."
        ),
        show_default=False,
    ),
]
Mappings = Annotated[
    list[str] | None,
    typer.Option(
        "--mapping",
        metavar="[KIND=]NAME",
        help=(
            "The files are CSV with other columns: a mapping's name (shopify) or its TOML file, for all files"
            " or those of one kind (payments=bank.toml). docs/mapping.md."
        ),
        show_default=False,
    ),
]
UntilLiveFrom = Annotated[
    bool, typer.Option("--until-live-from", help="Leave out what happened from the cut-over on.")
]
Computed = Annotated[
    bool,
    typer.Option(
        "--refunds-as-computed",
        help="Where an order doesn't say what was paid back, tell it as computed: docs/rules.md.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would happen, and send nothing.")]
ReportTo = Annotated[
    Path | None, typer.Option(help="Write every refused line to this file, NDJSON.", show_default=False)
]
Timeout = Annotated[
    float | None,
    typer.Option(
        min=0, help="Seconds to wait for the pipeline at most. Default: no limit.", show_default=False
    ),
]
NoWait = Annotated[bool, typer.Option("--no-wait", help="Send, and don't wait for the pipeline.")]


def import_command(
    folder: Folder = None,
    orders: Files = None,
    payments: Files = None,
    shipments: Files = None,
    returns: Files = None,
    cancellations: Files = None,
    live_from: LiveFrom = None,
    mapping: Mappings = None,
    until_live_from: UntilLiveFrom = False,
    refunds_as_computed: Computed = False,
    dry_run: DryRun = False,
    report: ReportTo = None,
    max_bytes: MaxBytes = None,
    timeout: Timeout = None,
    no_wait: NoWait = False,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Take over the orders of another system from its files, as history: they get statuses, rows and
    summaries, and no command leaves because of them.

    All files are read and checked first, and folded on this machine by the pipeline's rules; if any line is
    refused, nothing is sent. Then they are sent as bulk jobs, and when the pipeline has taken them in, every
    order is compared with what was told. Killed anywhere, the same command goes on from there.
    docs/how-to/take-over.md.

    Orders of which units came back or were taken away have to say what was paid back (refunded_amount).

    Exits 0 if all is taken in as told (with --dry-run: if it could be), 1 if lines were refused, refunds
    aren't told or an order isn't what was told, 2 if it couldn't run.

    Example: [bold]orders import ./old-shop --live-from 2026-03-10T12:00:00Z --dry-run[/bold]

    Example: [bold]orders import --orders orders_export.csv --payments orders_export.csv --mapping shopify
    --live-from 2026-03-10T12:00:00Z[/bold]
    """
    from operations.submit.cutover import CutOver
    from operations.takeover.plan import Plan

    settings = get_settings()
    sources = found(folder, _named(orders, payments, shipments, returns, cancellations), mapping or ())
    cut_over = CutOver.of(settings, live_from)
    with ExitStack() as stack:
        refused = _Refused(report, [source.path for source in sources], stack)
        plan = Plan(
            settings,
            sources,
            cut_over,
            until_live_from=until_live_from,
            refunds_computed=refunds_as_computed,
            refuse=refused.add,
        )
        bar = stack.enter_context(progress("lines read", quiet=as_json))
        shown = _Shown(bar)
        plan.read(stack, stdin=sys.stdin.buffer, bounds=bounds_of(settings, max_bytes), progress=shown.read)
        if dry_run or not plan.report.ready:
            bar.hide()
            _tell(plan, dry_run, as_json)
            raise typer.Exit(0 if plan.report.ready else 1)
        with noted(settings, "import", why):
            sent, outcome = asyncio.run(_run(settings, plan, stack, shown, timeout, no_wait))
        bar.hide()
    _tell_sent(plan, sent, outcome, as_json)
    if outcome is not None and not outcome.clean:
        raise typer.Exit(1)


def _named(*files: list[Path] | None) -> dict[str, list[str]]:
    """Return the files of each kind, given in the order of KINDS."""
    return {kind: [str(path) for path in paths or ()] for kind, paths in zip(KINDS, files, strict=True)}


async def _run(
    settings: Settings, plan: Plan, stack: ExitStack, shown: _Shown, timeout: float | None, no_wait: bool
) -> tuple[list[Sent], Outcome | None]:
    from operations.servers import require
    from operations.takeover.sending import compare, send_all, taken_in

    await require(settings, schema=True)
    sent = await send_all(settings, plan, stack, shown.show)
    if no_wait:
        return sent, None
    await taken_in(settings, sent, timeout, shown.show, shown.say)
    return sent, await compare(settings, plan, shown.show)


class _Shown:
    """What is at work, one line at a time."""

    def __init__(self, bar: Bar) -> None:
        self._bar = bar
        self._what = ""

    def read(self, what: str, done: int) -> None:
        self._step(f"{what} read" if what != "orders" else "orders folded")
        self._bar.show(done)

    def show(self, what: str, done: int, total: int) -> None:
        self._step(what)
        self._bar.show(done, total)

    def say(self, what: str) -> None:
        self._bar.say(f"orders: {what}")

    def _step(self, what: str) -> None:
        if what != self._what:
            self._what = what
            self._bar.step(what)


class _Refused:
    """Writes every refused line to --report, once there is one."""

    def __init__(self, report: Path | None, read: list[str], stack: ExitStack) -> None:
        """Raises OrdersError: it would overwrite what is read, or can't be written."""
        self._out: TextIO | None = None
        if report is None:
            return
        if report.exists() and any(Path(path).exists() and report.samefile(path) for path in read):
            raise OrdersError(f"--report {report} would overwrite what is read", "choose another file")
        try:
            self._out = stack.enter_context(report.open("w", encoding="utf-8"))
        except OSError as error:
            raise OrdersError(f"--report {report}: {error.strerror}", "check the path") from None

    def add(self, refused: Refused) -> None:
        """Write a line. Raises OrdersError when it can't be written."""
        if self._out is None:
            return
        try:
            self._out.write(json.dumps(refused._asdict()) + "\n")
        except OSError as error:
            raise OrdersError(f"--report: {error.strerror}", "make room, or leave it out") from None


def _tell(plan: Plan, dry_run: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**plan.report.document(), "dry_run": dry_run, "sent": False}))
    else:
        print_report(plan.report, dry_run=dry_run)


def _tell_sent(plan: Plan, sent: list[Sent], outcome: Outcome | None, as_json: bool) -> None:
    if not as_json:
        print_report(plan.report, dry_run=False)
        print_sent(sent)
        if outcome is not None:
            print_outcome(outcome)
        return
    compared: dict[str, Any] | None = None
    if outcome is not None:
        compared = {**outcome._asdict(), "differences": [each._asdict() for each in outcome.differences]}
    document = {"dry_run": False, "sent": True, "jobs": [each._asdict() for each in sent]}
    print(json.dumps({**plan.report.document(), **document, "compared": compared}))
