"""`orders demo`: servers, schema, a worker, orders; then what became of them.
Everything that a newcomer sees first.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any
from uuid import UUID

import psutil
import typer
from rich.text import Text

from cli.terminal import Rows, output, progress
from contracts.errors import REASONS
from contracts.printable import printable
from domain import explain
from errors import OrdersError
from settings import Settings

WORKER_FILE = "demo-worker"
CONSOLE_FILE = "demo-console"
CONSOLE_PORT = 8090
"""Where it is free; else another one."""
READY_SECONDS = 60.0
DRAIN_SECONDS = 300.0
CHECKOUTS = 300
DEADLINES = {"ORDERS_PAYMENT_DEADLINE": "5"}
"""Some of the simulated customers' cards are declined: those orders close while one watches."""
CHECKOUT_RATE = 100.0
SIMULATION_SECONDS = 60.0
ATTENTION_KINDS = 3
"""The most frequent kinds of attention; beside them that of the late order is counted."""
SHARES = (0.02, 0.1, 0.005)
"""Duplicates, late events, poison: what a marketplace's topics look like on an ordinary day."""

console = output()


class DemoFailed(OrdersError):
    """The demo didn't come to its end."""

    remedy = "run it again with --keep, and see worker.log in the stack's folder"


def demo_command(
    orders: Annotated[int, typer.Option(min=1, max=1_000_000, help="Synthetic orders to send.")] = 3000,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the servers and the worker running, with their data in DIR.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop what --keep left running. The data stays.")
    ] = False,
    dir: Annotated[
        Path, typer.Option("--dir", readable=False, help="The stack's folder with --keep and --stop.")
    ] = Path(".stack"),
) -> None:
    """Start the servers, stream thousands of orders through a worker, show what became of them,
    and stop everything again.

    Example: orders demo --orders 3000
    """
    if stop:
        _stop(dir)
        return
    if keep:
        _run(dir, orders, keep=True)
        return
    try:
        scratch = tempfile.TemporaryDirectory(prefix="orders-demo-")
    except OSError as error:
        raise OrdersError(
            f"there is no temporary folder to work in ({error.strerror or error})",
            "set TMPDIR to one of yours",
        ) from None
    with scratch as folder:
        _run(Path(folder) / "stack", orders, keep=False)


def _run(folder: Path, orders: int, *, keep: bool) -> None:
    from stack import Stack
    from streams import topics

    with console.status("starting Kafka, PostgreSQL and Valkey from packages") as status:
        stack = Stack.start(folder, progress=status.update)
    processes: list[subprocess.Popen[bytes]] = []
    done = False
    try:
        settings = Settings.model_validate(
            {name.removeprefix("ORDERS_").lower(): value for name, value in stack.env.items()}
        )
        _step("servers", f"Kafka {settings.kafka}, PostgreSQL and Valkey on this machine's loopback")
        with console.status("creating topics and tables"):
            subprocess.run(
                [*_ORDERS, "init"], env={**os.environ, **stack.env}, check=True, stdout=subprocess.DEVNULL
            )
        _step("topics", f"{len(topics.specs(settings, 1))} Kafka topics, 8 tables in PostgreSQL")
        worker = _worker(folder, stack.env)
        processes.append(worker)
        _step("worker", f"pid {worker.pid}, kill -9 it whenever you like: nothing is lost")
        console_process, address = _console(folder, stack.env)
        processes.append(console_process)
        _step("console", f"{address} shows it in a browser{'' if keep else ', while this runs'}")
        late = asyncio.run(_late(settings))
        simulated = asyncio.run(_simulate(settings, worker))
        asyncio.run(_stream(settings, orders, worker))
        asyncio.run(_summary(settings, simulated))
        asyncio.run(_looked_at(settings, late))
        _verdict(settings)
        done = True
    finally:
        if not (keep and done):
            for process in reversed(processes):
                _terminate(psutil.Process(process.pid) if process.poll() is None else None)
                process.wait()
            with console.status("stopping the servers"):
                stack.purge() if not keep else stack.stop()
    if keep:
        console.print(f"\nLook at it in a browser: {address}")
        if folder == Path(".stack"):
            console.print(
                "It all still runs, and in this folder orders uses it: orders generate, show, audit ..."
                " Stop it with: make down"
            )
        else:
            console.print(
                'It all still runs. For this shell: eval "$(orders stack env --dir'
                f' {shlex.quote(str(folder))})"'
            )
            console.print(f"Stop it with: orders demo --stop --dir {shlex.quote(str(folder))}")
    else:
        console.print("\nEverything is stopped again. make up leaves it running, make test proves it.")


_ORDERS = (sys.executable, "-c", "from cli.main import main; main()")


def _step(name: str, text: str) -> None:
    console.print(
        Text.assemble(("✓" if console.can("✓") else "*", "green"), " ", (f"{name:<8}", "bold"), " ", text)
    )


def _worker(folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker in the background (one that --keep left is ended first) and wait
    until it takes in records.
    """
    _terminate(_left(folder, WORKER_FILE))
    words = ("worker", "--name", "demo")

    def ready(log: str) -> bool:
        return "worker ready" in log

    return _started(folder, "worker", words, {**DEADLINES, **env}, WORKER_FILE, ready)


def _console(folder: Path, env: dict[str, str]) -> tuple[subprocess.Popen[bytes], str]:
    """Start a console in the background (one that --keep left is ended first) and return its address, where
    it answers.
    """
    from stack import ports

    _terminate(_left(folder, CONSOLE_FILE))
    port = CONSOLE_PORT if ports.is_free(CONSOLE_PORT) else ports.choose(set())
    words = ("console", "--port", str(port))
    # Orders of a demo may be cancelled there.
    env = {"ORDERS_API_WRITE": "true", **env}

    def ready(_: str) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            return False
        return True

    process = _started(folder, "console", words, env, CONSOLE_FILE, ready)
    return process, f"http://127.0.0.1:{port}"


def _started(
    folder: Path,
    name: str,
    words: Sequence[str],
    env: dict[str, str],
    file: str,
    ready: Callable[[str], bool],
) -> subprocess.Popen[bytes]:
    """Start `orders` with these words, and wait until `ready` says so of its log. `file` is to name it."""
    from stack.processes import spawn

    log = folder / f"{name}.log"
    process = spawn([*_ORDERS, *words], log=log, cwd=Path.cwd(), env=env)
    (folder / file).write_text(f"{process.pid} {psutil.Process(process.pid).create_time()}")
    deadline = time.monotonic() + READY_SECONDS
    with console.status(f"starting a {name}"):
        while not ready(log.read_text(errors="replace")):
            if process.poll() is not None or time.monotonic() > deadline:
                _terminate(psutil.Process(process.pid) if process.poll() is None else None)
                raise OrdersError(
                    f"the {name} did not start",
                    "see the last lines of its log",
                    log=log.read_text(errors="replace")[-2000:],
                )
            time.sleep(0.1)
    return process


def _left(folder: Path, file: str) -> psutil.Process | None:
    """The process that an earlier --keep left, if it still runs; never another one that got its pid."""
    try:
        pid, born = (folder / file).read_text().split()
        process = psutil.Process(int(pid))
    except (OSError, ValueError, psutil.NoSuchProcess):
        return None
    return process if abs(process.create_time() - float(born)) < 0.1 else None


def _terminate(process: psutil.Process | None) -> None:
    if process is None:
        return
    from stack.processes import gone

    process.send_signal(signal.SIGTERM)
    if not gone(process, 45):
        process.kill()
        gone(process, 10)


def _stop(folder: Path) -> None:
    from stack import Stack

    for file in (CONSOLE_FILE, WORKER_FILE):
        _terminate(_left(folder, file))
    Stack.open(folder).stop()
    console.print("stopped; the data stays in " + str(folder))


async def _late(settings: Settings) -> str:
    """Send an order that its seller ships late, and return its id."""
    from workload import late
    from workload.producer import send

    now = time.time_ns()
    order_id, events = late.order(now, now // 1000)
    await send(settings, events)
    return order_id


async def _simulate(settings: Settings, worker: subprocess.Popen[bytes]) -> list[str]:
    """Simulate customers and services until every order has ended, and return the orders' ids."""
    from cli.simulate import run
    from workload.services import Behaviour

    # Another seed each time: what --keep left has the checkouts of an earlier one.
    behaviour = Behaviour(delay=0.1, returns=0.25, seed=time.time_ns())
    with _watched(worker):
        outcome = await run(settings, behaviour, CHECKOUTS, CHECKOUT_RATE, SIMULATION_SECONDS, console)
    if outcome.hanging:
        raise DemoFailed(
            f"{len(outcome.hanging)} orders did not end within {SIMULATION_SECONDS:.0f} s, one of them"
            f" {outcome.hanging[0]}"
        )
    if outcome.stock["wrong"]:
        raise DemoFailed(f"the inventory's stock doesn't add up: {outcome.stock['wrong'][0]}")
    served = f"simulated inventory, payment and shipping answered {outcome.commands.total():,} commands"
    _step("services", f"{CHECKOUTS:,} carts checked out; {served}")
    ended = Counter(outcome.ended.values())
    _step("", "every order ended: " + ", ".join(f"{count:,} {how}" for how, count in ended.most_common()))
    return list(outcome.ended)


def _events(orders: int) -> tuple[list[Any], str]:
    """Return the events to send, and their description in words."""
    from workload import generator, olist

    synthetic = list(generator.events(orders, 7, generator.Shares(*SHARES)))
    words = f"{orders:,} synthetic orders ({len(synthetic):,} events, some twice, some late, some broken)"
    folder = os.environ.get("ORDERS_OLIST")
    if not folder:
        return synthetic, words
    real = olist.Events(Path(folder))
    return [*synthetic, *real], f"{words} and Olist's real ones ({len(real):,} events)"


async def _stream(settings: Settings, orders: int, worker: subprocess.Popen[bytes]) -> None:
    from operations.wait import POLL_SECONDS, wait
    from streams.lag import LagReader
    from streams.lag import total as records_left
    from workload.producer import send

    with console.status("making up orders"):
        events, words = _events(orders)
    total = len(events)
    started = time.monotonic()
    with progress("sent", total, console=console, form="  {task.description:<10}") as sent_bar:
        done_bar = sent_bar.another("processed", total)
        sent = 0

        def count(records: int) -> None:
            nonlocal sent
            sent = records
            sent_bar.show(sent)

        def processed(_: int, remaining: int) -> None:
            _require_alive(worker)
            done_bar.show(max(0, sent - remaining))

        sending = asyncio.ensure_future(send(settings, events, progress=count))
        with _watched(worker):
            async with LagReader(settings) as reader:
                while not sending.done():
                    processed(0, records_left(await reader.lag()))
                    await asyncio.wait({sending}, timeout=POLL_SECONDS)
            await sending
            outcome = await wait(settings, DRAIN_SECONDS, processed)
    if not outcome.done:
        raise DemoFailed(
            f"the worker did not finish within {DRAIN_SECONDS:.0f} s; left: {outcome.left or outcome.cache}"
        )
    seconds = time.monotonic() - started
    _step("orders", words)
    _step(
        "speed",
        f"{total:,} events from producer to PostgreSQL and Valkey in {seconds:.1f} s: {total / seconds:,.0f}"
        " events/s",
    )


@contextmanager
def _watched(worker: subprocess.Popen[bytes]) -> Iterator[None]:
    yield
    _require_alive(worker)


def _require_alive(worker: subprocess.Popen[bytes]) -> None:
    if worker.poll() is not None:
        raise DemoFailed(f"the worker ended with exit code {worker.returncode}")


async def _summary(settings: Settings, simulated: list[str]) -> None:
    from cli.show import COLOURS, render
    from operations.dead_letters import read
    from operations.postgres.ddl import connect
    from queries.state import read_state

    async with connect(settings) as connection:
        counts = await connection.fetch(
            "SELECT status::text, count(*) AS orders FROM orders_order GROUP BY status ORDER BY status"
        )
        rows = await connection.fetchrow(
            "SELECT (SELECT count(*) FROM orders_order_item) AS items, (SELECT count(*) FROM orders_shipment)"
            " AS shipments, (SELECT count(*) FROM orders_return) AS returns"
        )
        chosen = await connection.fetchval(
            "SELECT o.id FROM orders_order o JOIN orders_order_item i ON i.order_id = o.id AND i.user_id ="
            " o.user_id"
            # With a return that was processed, so that money goes back, and short enough to be read.
            " LEFT JOIN orders_return r ON r.order_id = o.id AND r.user_id = o.user_id AND r.status ="
            " 'processed' WHERE o.id = ANY($1::uuid[]) GROUP BY o.id, o.version HAVING count(DISTINCT"
            " i.seller_id) > 1 ORDER BY count(r.id) > 0 DESC, o.version, o.id LIMIT 1",
            simulated,
        )
    console.print()
    most = max((row["orders"] for row in counts), default=1)
    table = Rows("status", "orders", "share", title="Orders by status", right={"orders"}, header=False)
    block = "█" if console.can("█") else "#"
    for row in counts:
        table.add(
            row["status"],
            f"{row['orders']:,}",
            (block * max(1, round(40 * row["orders"] / most)), COLOURS[row["status"]]),
        )
    console.print(table)
    assert rows is not None
    console.print(
        f"with {rows['items']:,} items, {rows['shipments']:,} shipments, {rows['returns']:,} returns\n"
    )
    if chosen is not None:
        console.print(Text.assemble(("One order of several sellers", "bold"), " (orders show)"))
        order = await read_state(settings, UUID(str(chosen)))
        assert order is not None
        console.print(render(explain.explain(UUID(str(chosen)).bytes, order)))
    console.print(Text.assemble(("\nDead letters", "bold"), " (orders dlq list)"))
    reasons = Counter([letter.reason async for letter in read(settings)])
    for reason, count in reasons.most_common():
        console.print(
            Text.assemble(f"  {count:>5,}  ", (printable(reason), "yellow"), f"  {REASONS.get(reason, '')}")
        )


async def _looked_at(settings: Settings, late: str) -> None:
    """Show the tax of the order that ships late, and what a person should look at."""
    from operations.postgres.ddl import connect
    from queries.attention import attention_counts
    from queries.databases import Databases

    async with connect(settings) as connection:
        order = await connection.fetchrow(
            "SELECT total_amount, tax_amount, currency FROM orders_order WHERE id = $1", UUID(late)
        )
        held = await connection.fetch(
            "SELECT kind, detail FROM orders_attention WHERE order_id = $1 AND cleared_at IS NULL", UUID(late)
        )
    databases = Databases(settings)
    try:
        counts = await attention_counts(databases)
    finally:
        await databases.close()
    if order is not None:
        console.print(Text.assemble(("\nTax", "bold"), f" (orders show {late})"))
        console.print(
            f"  total {order['total_amount']:.2f} {order['currency']}, {order['tax_amount']:.2f} of it tax"
        )
    console.print(
        Text.assemble(("\nAttention", "bold"), f" (orders attention): {sum(counts.values()):,} to look at")
    )
    of_late = [row["kind"] for row in held]
    for n, (kind, count) in enumerate(counts.items()):
        if n < ATTENTION_KINDS or kind in of_late:
            console.print(Text.assemble(f"  {count:>5,}  ", (kind, "yellow")))
    for row in held:
        console.print(Text.assemble("Such as ", (row["kind"], "yellow"), f" of order {late}:"))
        lines = textwrap.wrap(row["detail"], 76, break_on_hyphens=False)
        console.print(Text("\n".join(f"  {line}" for line in lines)))


def _verdict(settings: Settings) -> None:
    from operations.auditing import audit, target_of

    with console.status("auditing: the log is folded a second time"):
        report = asyncio.run(audit(target_of(settings, cache=True, tables=True), max_findings=50))
    verdict = ("clean", "bold green") if report.clean else (f"{report.broken.total():,} broken", "bold red")
    what = ": a second, independent fold of the log equals every row, state and cache entry"
    console.print(Text.assemble(("\nAudit", "bold"), " (orders audit): ", verdict, what))
    if not report.clean:
        raise DemoFailed("the audit found broken invariants")
