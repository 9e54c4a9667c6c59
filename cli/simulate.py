"""`orders simulate`: simulated customers and services, so that orders run from checkout to their end."""

from __future__ import annotations

import asyncio
import json
import secrets
import sys
from collections import Counter
from typing import Annotated
from uuid import UUID

import typer

from cli.errors import UserError
from cli.terminal import Terminal, messages, progress
from queries.state import read_state
from settings import Settings, get_settings
from streams import topics
from workload.services import Behaviour, Customers, order_of
from workload.simulation import Simulation, SimulationResult


def simulate_command(
    checkouts: Annotated[int, typer.Option(min=1, max=1_000_000, help="How many carts are checked out.")] = 1000,
    rate: Annotated[float, typer.Option(min=0.1, help="Checkouts a second.")] = 100.0,
    delay: Annotated[float, typer.Option(min=0.001, help="Mean seconds that a service takes to answer.")] = 0.2,
    silence: Annotated[float, typer.Option(min=0, max=1, help="Share of commands that a service overlooks.")] = 0.0,
    refusals: Annotated[float, typer.Option(min=0, max=1, help="Share of commands that a service refuses.")] = 0.05,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of events that are sent twice.")] = 0.0,
    cancellations: Annotated[float, typer.Option(min=0, max=1, help="Share of orders that their customer cancels.")] = 0.03,
    returns: Annotated[float, typer.Option(min=0, max=1, help="Share of delivered lines that are returned.")] = 0.1,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same checkouts and answers. Without it they are new.")] = None,
    timeout: Annotated[
        float, typer.Option(min=1, help="Seconds after the last checkout after which orders that haven't ended count as hanging.")
    ] = 300.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Check out carts and answer the pipeline's commands until every order has ended: delivered, returned or closed.

    It needs a running worker. The worker sends an overlooked command again when its deadline passes
    (ORDERS_STOCK_DEADLINE and others). Exits 1 when some orders haven't ended.

    Example: [bold]orders simulate --checkouts 2000 --silence 0.1 --duplicates 0.1[/bold]
    """
    if seed is None:
        seed = secrets.randbelow(1_000_000_000)
    behaviour = Behaviour(silence, refusals, duplicates, cancellations, returns, delay, seed)
    result = asyncio.run(run(get_settings(), behaviour, checkouts, rate, timeout, messages()))
    _report(result, seed, as_json)
    if result.hanging:
        raise typer.Exit(1)


async def run(settings: Settings, behaviour: Behaviour, checkouts: int, rate: float, timeout: float, console: Terminal) -> SimulationResult:
    """Run a simulation with progress on `console`.

    Raises UserError when topics are missing, or when the checkouts of this seed are there already.
    """
    absent = await topics.missing(settings)
    if absent:
        raise UserError(f"topic {absent[0]} doesn't exist on Kafka at {settings.kafka}; run orders init")
    [(checkout, _)] = Customers(behaviour).checkouts(1)
    first = order_of(checkout.key)
    if await read_state(settings, UUID(first)) is not None:
        raise UserError(f"order {first}, the first one of seed {behaviour.seed}, is there already; leave --seed out or take another one")
    with progress(console, form="  {task.description:<11}") as bar:
        sent_bar, ended_bar = bar.add_task("checked out", total=checkouts), bar.add_task("ended", total=checkouts)

        def show(sent: int, ended: int) -> None:
            bar.update(sent_bar, completed=sent)
            bar.update(ended_bar, completed=ended)

        return await Simulation(settings, behaviour).run(checkouts, rate, timeout, show)


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
    print(f"{result.checkouts:,} checkouts in {result.seconds:.1f} s (seed {seed})")
    for name, count in ended.most_common():
        print(f"  {count:>8,}  {name}")
    commands = sum(result.commands.values())
    print(f"{commands:,} commands, {result.ignored:,} of them overlooked")
    print(f"{result.sent.total():,} events, {result.duplicated:,} of them twice")
    if result.hanging:
        shown = ", ".join(result.hanging[:5]) + (" ..." if len(result.hanging) > 5 else "")
        print(f"orders: {len(result.hanging):,} orders have not ended: {shown}; see orders show ORDER_ID", file=sys.stderr)
