"""`orders bench`: throughput, latency, and where the time goes."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.terminal import Rows, Terminal, messages, output
from contracts.printable import printable
from errors import OrdersError
from settings import Settings


class Delivery(enum.Enum):
    """Values of ORDERS_DELIVERY."""

    AT_LEAST_ONCE = "at_least_once"
    EXACTLY_ONCE = "exactly_once"


def bench_command(
    orders: Annotated[
        int, typer.Option(min=1_000, help="Orders to drain; each has about four events.")
    ] = 60_000,
    spread: Annotated[
        int,
        typer.Option(
            min=1,
            help=(
                "How many orders lie between two events of one order. The more, the fewer batches have an"
                " order twice."
            ),
        ),
    ] = 50_000,
    workers: Annotated[
        int, typer.Option(min=1, max=16, help="Worker processes; on two cores two are faster.")
    ] = 2,
    rate: Annotated[int, typer.Option(min=10, help="Events a second while latency is measured.")] = 500,
    seconds: Annotated[int, typer.Option(min=5, help="Seconds for which latency is measured.")] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the workload.")] = 1,
    delivery: Annotated[
        Delivery | None,
        typer.Option(
            metavar="DELIVERY",
            help="at_least_once or exactly_once. Default: ORDERS_DELIVERY.",
            show_default=False,
        ),
    ] = None,
    open_orders: Annotated[
        int,
        typer.Option(
            min=0,
            help="Orders that wait for answers meanwhile; with them the measured orders have deadlines too.",
        ),
    ] = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON document to this file.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
    ] = False,
) -> None:
    """Measure throughput by draining pre-loaded events, then latency at a fixed rate, on servers of its own.

    Example: orders bench --workers 2 --delivery exactly_once --json
    """
    from benchmarks.run import Plan, run

    console = messages()
    if out is not None:
        _check_writable(out)
    guarantee = Settings().delivery if delivery is None else delivery.value

    def report(message: str) -> None:
        console.print(printable(message), style="dim")

    result = run(Plan(orders, spread, workers, rate, seconds, seed, guarantee, open_orders, report))
    text = json.dumps(result, indent=2) + "\n"
    if as_json:
        print(text, end="")
    else:
        _print(result)
    if out is not None:
        _save(out, text)


def _check_writable(out: Path) -> None:
    """Before minutes of work. Raises OrdersError."""
    try:
        out.open("a").close()
    except OSError as error:
        raise OrdersError(f"--out {out}: {error.strerror}", "check the path") from None


def _save(out: Path, text: str) -> None:
    """Raises OrdersError."""
    try:
        out.write_text(text)
    except OSError as error:
        raise OrdersError(
            f"--out {out}: {error.strerror}; the result is on stdout only", "copy it from there"
        ) from None


def _print(result: dict[str, Any]) -> None:
    console = output()
    speed = f"\n{result['events_per_second']:,.0f} events/s"
    console.print(
        Text.assemble((speed, "bold"), f"   {result['events']:,} events in {result['seconds']:.1f} s")
    )
    console.print(
        f"latency at {result['latency_rate']} events/s: p50 {result['p50_ms']} ms, p99 {result['p99_ms']} ms;"
        f" until a reader sees what came of it: p50 {result['visible_p50_ms']} ms, p99"
        f" {result['visible_p99_ms']} ms"
    )
    if "idle_cores_per_worker" in result:
        console.print(
            f"with {result['conditions']['open_orders']:,} open orders and nothing to do a worker took"
            f" {result['idle_cores_per_worker']:.2%} of a core and"
            f" {result['idle_resident_bytes_per_worker'] / 1e6:,.0f} MB"
        )
    _print_figures(console, "CPU microseconds an event", result["cpu_us_per_event"])
    _print_figures(
        console,
        "Microseconds an event in each step, waiting included (the first four never wait)",
        result["step_us_per_event"],
    )
    growth = result["growth"]
    console.print(
        f"{growth['postgres_bytes_per_order']:,} bytes an order in Postgres,"
        f" {growth['local_state_bytes_per_order']:,} in local state; a new worker was ready after"
        f" {result['recovery']['seconds_from_nothing']} s"
    )


def _print_figures(console: Terminal, title: str, figures: dict[str, Any]) -> None:
    table = Rows(*figures, title=title, right=figures)
    table.add(*figures.values())
    console.print(table)
