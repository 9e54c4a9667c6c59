"""`orders simulate`: simulated customers and services, so that orders run from checkout to their end."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections import Counter
from typing import Annotated

import typer

from cli.noting import Reason, noted
from cli.terminal import Terminal, progress
from cli.text import say
from settings import Settings, get_settings
from workload.services import Behaviour
from workload.simulation import SimulationResult, simulate


def simulate_command(
    checkouts: Annotated[
        int, typer.Option(min=1, max=1_000_000, help="Number of carts that are checked out.")
    ] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="Checkouts a second.")] = 100.0,
    delay: Annotated[
        float, typer.Option(min=0.001, help="Mean seconds that a service takes to answer.")
    ] = 0.2,
    silence: Annotated[
        float, typer.Option(min=0, max=1, help="Share of commands that a service overlooks.")
    ] = 0.0,
    refusals: Annotated[
        float, typer.Option(min=0, max=1, help="Share of commands that a service refuses.")
    ] = 0.05,
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Share of events that are sent twice.")
    ] = 0.0,
    cancellations: Annotated[
        float, typer.Option(min=0, max=1, help="Share of orders that their customer cancels.")
    ] = 0.03,
    returns: Annotated[
        float, typer.Option(min=0, max=1, help="Share of delivered lines that are returned.")
    ] = 0.1,
    unshipped: Annotated[
        float, typer.Option(min=0, max=1, help="Share of sellers' parts that are never shipped.")
    ] = 0.0,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same checkouts and answers. Without it they are new."),
    ] = None,
    timeout: Annotated[
        float,
        typer.Option(
            min=1,
            help="Seconds after the last checkout after which orders that haven't ended count as hanging.",
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
    ORDERS_SHIP_CANCEL_AFTER, if that is set. Exits 1 when some orders haven't ended.

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
    )
    settings = get_settings()
    with noted(settings, "simulate", why):
        result = asyncio.run(run(settings, behaviour, checkouts, rate, timeout))
    _report(result, seed, as_json)
    if result.hanging:
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


def _report(result: SimulationResult, seed: int, as_json: bool) -> None:
    ended = Counter(result.ended.values())
    if as_json:
        document = {
            "seed": seed,
            "checkouts": result.checkouts,
            "ended": dict(sorted(ended.items())),
            "hanging": result.hanging,
            "commands": dict(sorted(result.commands.items())),
            "ignored": result.ignored,
            "sent": dict(sorted(result.sent.items())),
            "duplicated": result.duplicated,
            "seconds": round(result.seconds, 1),
        }
        print(json.dumps(document))
        return
    say(f"{result.checkouts:,} checkouts in {result.seconds:.1f} s (seed {seed})")
    for name, count in ended.most_common():
        say(f"  {count:>8,}  {name}")
    commands = sum(result.commands.values())
    print(f"{commands:,} commands, {result.ignored:,} of them overlooked")
    print(f"{result.sent.total():,} events, {result.duplicated:,} of them twice")
    if result.hanging:
        shown = ", ".join(result.hanging[:5]) + (" ..." if len(result.hanging) > 5 else "")
        say(
            f"orders: {len(result.hanging):,} orders have not ended: {shown}; see orders show ORDER_ID",
            file=sys.stderr,
        )
