"""`orders simulate`: the services around the pipeline, simulated, and customers who check out: the whole circle by itself."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections import Counter
from typing import Annotated

import typer

from cli.terminal import Terminal, progress
from settings import Settings, get_settings
from workload.services import Behaviour
from workload.simulation import Outcome, simulate


def simulate_command(
    checkouts: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many carts are checked out.")] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="Checkouts a second.")] = 100.0,
    delay: Annotated[float, typer.Option(min=0.001, help="Mean seconds that a service takes to answer.")] = 0.2,
    silence: Annotated[float, typer.Option(min=0, max=1, help="Share of commands that a service overlooks.")] = 0.0,
    refusals: Annotated[float, typer.Option(min=0, max=1, help="Share of commands that a service answers with no.")] = 0.05,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events that come twice.")] = 0.0,
    cancellations: Annotated[float, typer.Option(min=0, max=1, help="Share of orders that their customer cancels.")] = 0.03,
    returns: Annotated[float, typer.Option(min=0, max=1, help="Share of delivered lines that come back.")] = 0.1,
    seed: Annotated[
        int | None, typer.Option(help="The same seed gives the same checkouts and the same answers; without it they are new ones.")
    ] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after the last checkout until orders that go on count as hanging.")
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check carts out and serve the pipeline's commands until every order has ended: delivered, returned or closed.

    Needs a running worker. Overlooked commands are asked again when a deadline passes (ORDERS_STOCK_DEADLINE and others, of the worker).
    Exits 1 when orders are left hanging.

    Example: [bold]orders simulate --checkouts 2000 --silence 0.1 --duplicates 0.1[/bold]
    """
    if seed is None:
        seed = secrets.randbelow(1_000_000_000)
    behaviour = Behaviour(silence, refusals, duplicates, cancellations, returns, delay, seed)
    outcome = asyncio.run(run(get_settings(), behaviour, checkouts, rate, timeout))
    _report(outcome, seed, as_json)
    if outcome.hanging:
        raise typer.Exit(1)


async def run(
    settings: Settings, behaviour: Behaviour, checkouts: int, rate: float, timeout: float, console: Terminal | None = None
) -> Outcome:
    """workload.simulation.simulate with progress on `console`, else on standard error."""
    with progress("checked out", checkouts, console=console, form="  {task.description:<11}") as sent_bar:
        ended_bar = sent_bar.another("ended", checkouts)

        def show(sent: int, ended: int) -> None:
            sent_bar.show(sent)
            ended_bar.show(ended)

        return await simulate(settings, behaviour, checkouts, rate, timeout, show)


def _report(outcome: Outcome, seed: int, as_json: bool) -> None:
    ended = Counter(outcome.ended.values())
    if as_json:
        document = {
            "seed": seed,
            "checkouts": outcome.checkouts,
            "ended": dict(sorted(ended.items())),
            "hanging": outcome.hanging,
            "commands": dict(sorted(outcome.commands.items())),
            "ignored": outcome.ignored,
            "sent": dict(sorted(outcome.sent.items())),
            "duplicated": outcome.duplicated,
            "seconds": round(outcome.seconds, 1),
        }
        print(json.dumps(document))
        return
    print(f"{outcome.checkouts:,} checkouts in {outcome.seconds:.1f} s (seed {seed})")
    for name, count in ended.most_common():
        print(f"  {count:>8,}  {name}")
    commands = sum(outcome.commands.values())
    print(f"{commands:,} commands, {outcome.ignored:,} of them overlooked")
    print(f"{outcome.sent.total():,} events, {outcome.duplicated:,} of them twice")
    if outcome.hanging:
        shown = ", ".join(outcome.hanging[:5]) + (" ..." if len(outcome.hanging) > 5 else "")
        print(f"orders: {len(outcome.hanging):,} orders have not ended: {shown}; see orders show ORDER_ID", file=sys.stderr)
