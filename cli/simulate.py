"""`orders simulate`: simulated customers and services, so that orders run from checkout to their end."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections import Counter
from typing import Annotated, Any

import typer

from cli.noting import Reason, noted
from cli.terminal import Terminal, progress
from cli.text import say
from settings import Settings, get_settings
from workload.services import Behaviour
from workload.simulation import SimulationResult, simulate
from workload.stock import INITIAL


def _share(of_what: str) -> Any:
    return typer.Option(min=0, max=1, help=f"Share of {of_what}")


Units = Annotated[
    int,
    typer.Option(
        min=0,
        max=1_000_000_000,
        help="Units of each of the 500 skus in the beginning: with a few some run out.",
    ),
]


def simulate_command(
    checkouts: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Number of carts that are checked out.")
    ] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="Checkouts a second.")] = 100.0,
    delay: Annotated[
        float, typer.Option(min=0.001, help="Mean seconds that a service takes to answer.")
    ] = 0.2,
    silence: Annotated[float, _share("commands that a service overlooks.")] = 0.0,
    refusals: Annotated[float, _share("commands that a service refuses.")] = 0.05,
    duplicates: Annotated[float, _share("events that are sent twice.")] = 0.0,
    cancellations: Annotated[float, _share("orders that their customer cancels.")] = 0.03,
    returns: Annotated[float, _share("delivered lines that are returned.")] = 0.1,
    unshipped: Annotated[float, _share("sellers' parts that are never shipped.")] = 0.0,
    taxed: Annotated[float, _share("orders with tax, by turns on top of prices and in them.")] = 0.5,
    grants: Annotated[float, _share("delivered parcels for which support grants something.")] = 0.03,
    failed_refunds: Annotated[float, _share("refunds that fail twice before they are paid.")] = 0.0,
    stock: Units = INITIAL,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same checkouts and answers. Without it they are new."),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds after which orders that haven't ended count as hanging, if in them nothing was"
            " answered and no order has ended.",
        ),
    ] = 300.0,
    why: Reason = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check out carts and answer the pipeline's commands until every order has ended: delivered, returned or
    closed.

    It needs a running worker. The worker sends an overlooked command again when its deadline passes
    (ORDERS_STOCK_DEADLINE and others), and some customers don't pay: their orders end after
    ORDERS_PAYMENT_DEADLINE, an hour unless it is set. What is never shipped ends after ORDERS_SHIP_WITHIN and
    ORDERS_SHIP_CANCEL_AFTER, if that is set. Refunds that fail are asked for again after
    ORDERS_REFUND_RETRY_AFTER, a day unless it is set: set it to seconds with --failed-refunds, and
    ORDERS_REFUND_DEADLINE with --silence. In the end the inventory counts its stock. Exits 1 when some orders
    haven't ended, such a refund isn't paid, one that was overlooked isn't asked for again, or the stock
    doesn't add up.

    Example: [bold]orders simulate --checkouts 2000 --silence 0.1 --duplicates 0.1[/bold]
    """
    if seed is None:
        seed = secrets.randbelow(1_000_000_000)
    behaviour = Behaviour(
        silence=silence,
        refusals=refusals,
        duplicates=duplicates,
        cancellations=cancellations,
        returns=returns,
        delay=delay,
        seed=seed,
        unshipped=unshipped,
        taxed=taxed,
        grants=grants,
        failed_refunds=failed_refunds,
        stock=stock,
    )
    settings = get_settings()
    with noted(settings, "simulate", why):
        result = asyncio.run(run(settings, behaviour, checkouts, rate, timeout))
    _report(result, behaviour, as_json)
    if not result.right:
        raise typer.Exit(1)


async def run(
    settings: Settings,
    behaviour: Behaviour,
    checkouts: int,
    rate: float,
    timeout: float,
    console: Terminal | None = None,
) -> SimulationResult:
    """Run a simulation with progress on `console`, else on standard error. Raises what simulate() raises."""
    with progress("checked out", checkouts, console=console, form="  {task.description:<11}") as sent_bar:
        ended_bar = sent_bar.another("ended", checkouts)

        def show(sent: int, ended: int) -> None:
            sent_bar.show(sent)
            ended_bar.show(ended)

        return await simulate(settings, behaviour, checkouts, rate, timeout, show)


def _report(result: SimulationResult, behaviour: Behaviour, as_json: bool) -> None:
    ended = Counter(result.ended.values())
    if as_json:
        document = {
            "seed": behaviour.seed,
            "taxed": behaviour.taxed,
            "grants": behaviour.grants,
            "failed_refunds": behaviour.failed_refunds,
            "checkouts": result.checkouts,
            "ended": dict(sorted(ended.items())),
            "hanging": result.hanging,
            "unpaid": result.unpaid,
            "stock": result.stock,
            "commands": dict(sorted(result.commands.items())),
            "ignored": result.ignored,
            "sent": dict(sorted(result.sent.items())),
            "duplicated": result.duplicated,
            "seconds": round(result.seconds, 1),
        }
        print(json.dumps(document))
        return
    say(f"{result.checkouts:,} checkouts in {result.seconds:.1f} s (seed {behaviour.seed})")
    for name, count in ended.most_common():
        say(f"  {count:>8,}  {name}")
    commands = sum(result.commands.values())
    print(f"{commands:,} commands, {result.ignored:,} of them overlooked")
    print(f"{result.sent.total():,} events, {result.duplicated:,} of them twice")
    stock = result.stock
    verdict = "doesn't add up" if stock["wrong"] else "adds up"
    say(
        f"stock {verdict}: {stock['initial']:,} units in the beginning, {stock['on_hand']:,} on hand,"
        f" {stock['reserved']:,} reserved, {stock['shipped']:,} shipped, {stock['returned']:,} back"
    )
    _complain(result)


def _complain(result: SimulationResult) -> None:
    """Say on standard error what isn't right."""
    for wrong, what, see in (
        (result.hanging, "orders have not ended", "see orders show ORDER_ID"),
        (
            result.unpaid,
            "refunds that failed or were overlooked have not been asked for again until they were paid",
            "the workers need ORDERS_REFUND_RETRY_AFTER and ORDERS_REFUND_DEADLINE of seconds, and"
            " ORDERS_REFUND_ATTEMPTS of 3 or more",
        ),
        (result.stock["wrong"], "differences in the stock", "compare with orders audit"),
    ):
        if wrong:
            shown = ", ".join(wrong[:5]) + (" ..." if len(wrong) > 5 else "")
            say(f"orders: {len(wrong):,} {what}: {shown}; {see}", file=sys.stderr)
