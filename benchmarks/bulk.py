"""Bulk with and without interactive traffic beside it: `python -m benchmarks.bulk --lines 1000000`.

A stack of its own. First the drain rate: orders are in Kafka before the workers start. Then as many orders as
a bulk job with nothing beside it, from its first commit to its last: its share of the drain rate. Then 500
orders a second in turns without and with a bulk worker that has more to do than there is time for, and each
one's suborder.created awaited: seconds from handing order.created to the producer to having it. The first
seconds of each turn don't count: a bulk worker has to notice that it isn't alone any more.

Prints one JSON document; `holds` tells whether a job alone goes at 70 % of the drain rate, and p99 is at most
1.3 times that without.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from contracts.bulk import headers_of
from contracts.cloudevents import SourceEvent, rfc3339
from settings import Settings
from stack import Stack
from streams.lag import LagReader, total
from wire import clients
from workload.producer import send

ORDERS: Final = (sys.executable, "-c", "from cli.main import main; main()")
RATE: Final = 500
WARM_SECONDS: Final = 15.0
"""Sent before what counts, in each turn."""
POLL_SECONDS: Final = 0.2
LEAST_SHARE: Final = 0.7
MOST_RATIO: Final = 1.3


def order(name: str) -> tuple[str, dict[str, Any]]:
    """An order of one line, sending of a name."""
    order_id, item_id = str(uuid5(NAMESPACE_URL, name)), str(uuid5(NAMESPACE_URL, f"{name}/item"))
    line = {
        "item_id": item_id,
        "product_id": item_id,
        "seller_id": str(uuid5(NAMESPACE_URL, "seller")),
        "sku": "s",
        "quantity": 1,
        "price": "10.00",
    }
    return order_id, {
        "order_id": order_id,
        "user_id": item_id,
        "currency": "EUR",
        "total_amount": "10.00",
        "items": [line],
    }


def event(name: str) -> SourceEvent:
    """The order as a record."""
    order_id, data = order(name)
    time_us = time.time_ns() // 1000
    headers = headers_of("order.created", order_id, rfc3339(time_us), "/benchmark")
    return SourceEvent("order.created", order_id.encode(), json.dumps(data).encode(), headers, time_us)


async def measure(settings: Settings, name: str, seconds: float) -> list[float]:
    """Send for so long, after WARM_SECONDS; returns every order's latency in seconds.
    Raises RuntimeError if an order has none.
    """
    sent: dict[bytes, tuple[float, bool]] = {}
    latencies: list[float] = []
    async with AsyncExitStack() as stack:
        producer = await stack.enter_async_context(clients.producer(settings, "orders-bench", linger_ms=0))
        consumer = await stack.enter_async_context(
            clients.consumer(settings, "orders-bench", "suborder.created")
        )
        for partition in consumer.assignment():
            await consumer.position(partition)

        async def listen() -> None:
            async for record in consumer:
                since, counts = sent.pop(record.key, (0.0, False))
                if counts:
                    latencies.append(time.perf_counter() - since)
                if not sent and time.perf_counter() - started > WARM_SECONDS + seconds:
                    return

        started, count = time.perf_counter(), 0
        listening = asyncio.ensure_future(listen())
        while (elapsed := time.perf_counter() - started) < WARM_SECONDS + seconds:
            while count < elapsed * RATE:
                sending = event(f"{name}/{count}")
                assert sending.key is not None
                sent[sending.key] = time.perf_counter(), elapsed >= WARM_SECONDS
                await producer.send(sending.topic, sending.value, key=sending.key, headers=sending.headers)
                count += 1
            await asyncio.sleep(0.002)
        if sent:
            await asyncio.wait({listening}, timeout=30)
        listening.cancel()
    if sent:
        raise RuntimeError(f"{len(sent)} orders have no suborder after 30 s")
    return latencies


async def committed_per_second(settings: Settings, records: int, limit: float) -> float:
    """Records a second from the group's next commit until so many more are committed.
    Raises RuntimeError when that takes longer than `limit` seconds.
    """
    async with LagReader(settings) as reader:
        before = begun = sum(position.committed for position in (await reader.lag()).values())
        since = deadline = time.monotonic()
        while time.monotonic() < deadline + limit:
            lag = await reader.lag()
            now, done = time.monotonic(), sum(position.committed for position in lag.values())
            if begun == before and done > before:
                since, begun = now, done
            if done - before >= records and total(lag) == 0:
                return (done - begun) / (now - since)
            await asyncio.sleep(POLL_SECONDS)
    raise RuntimeError(f"{done - before:,} of {records:,} records were committed in {limit:.0f} s")


class _Bench:
    def __init__(self, folder: Path, stack: Stack, workers: int) -> None:
        self.folder = folder
        self.env = {**os.environ, **stack.env}
        self.settings = Settings(kafka=stack.env["ORDERS_KAFKA"])
        self.workers = workers
        self.results: dict[str, Any] = {}

    def command(self, *arguments: str) -> str:
        done = subprocess.run(
            (*ORDERS, *arguments), env=self.env, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"orders {' '.join(arguments)}: {done.stderr}")
        return done.stdout

    def submit(self, name: str, lines: int) -> str:
        """A job of so many orders; returns its id."""
        file = self.folder / f"{name}.ndjson"
        with file.open("w") as out:
            for n in range(lines):
                print(json.dumps({**order(f"{name}/{n}")[1], "time": "2026-01-01T00:00:00Z"}), file=out)
        job: str = json.loads(self.command("bulk", "submit", "orders", str(file), "--as-new", "--json"))[
            "job_id"
        ]
        file.unlink()
        return job

    def job(self, job: str) -> dict[str, Any]:
        [row] = json.loads(self.command("bulk", "status", job, "--json"))["jobs"]
        return dict(row)

    @contextmanager
    def worker(self, role: str, name: str) -> Iterator[None]:
        """A worker that is ready; ended at the end. Raises RuntimeError if it ends before."""
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("w") as out:
            process = subprocess.Popen(
                (*ORDERS, "worker", "--role", role, "--name", name), env=self.env, stdout=out, stderr=out
            )
        try:
            while "worker ready" not in log.read_text():
                if process.poll() is not None:
                    raise RuntimeError(f"the worker ended:\n{log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)

    def run(self, lines: int, rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
        """Everything. Blocks for minutes. Raises RuntimeError."""
        limit = max(120.0, lines / 100)
        say(f"pre-loading {lines:,} orders")
        asyncio.run(send(self.settings, (event(f"drain/{n}") for n in range(lines))))
        with ExitStack() as workers:
            drained = _together(self._enter(workers), self.settings, lines, limit)
            say(f"drained at {drained:,.0f} orders/s; the same as a bulk job")
            job = self.submit("alone", lines)
            with self.worker("bulk", "bulk"):
                alone = asyncio.run(committed_per_second(self.settings, lines, limit))
            if self.job(job)["state"] != "completed":
                raise RuntimeError("the job isn't completed, though everything is processed")
            say(f"a job alone: {alone:,.0f} orders/s, {alone / drained:.0%}; now {RATE} orders/s beside one")
            beside = self._beside(rounds, seconds, say)
        share = alone / drained
        return {
            "drained_per_second": round(drained),
            "bulk_alone_per_second": round(alone),
            "share": round(share, 2),
            **beside,
            "holds": {
                f"share >= {LEAST_SHARE}": share >= LEAST_SHARE,
                f"ratio_p99 <= {MOST_RATIO}": beside["ratio_p99"] <= MOST_RATIO,
            },
            "lines": lines,
            "workers": self.workers,
            "rounds": rounds,
            "seconds": seconds,
            "load": round(os.getloadavg()[0], 1),
        }

    def _enter(self, workers: ExitStack) -> Callable[[], None]:
        def start() -> None:
            for n in range(self.workers):
                workers.enter_context(self.worker("realtime", f"realtime{n}"))

        return start

    def _beside(self, rounds: int, seconds: float, say: Callable[[str], None]) -> dict[str, Any]:
        latencies: dict[str, list[float]] = {"without": [], "with": []}
        turn = WARM_SECONDS + seconds
        # Should it take the half of what there is, it lasts.
        job = self.submit("beside", int(rounds * turn * 3000))
        for n in range(rounds):
            # Who is first changes: what grows meanwhile (tables, changelog) is nobody's advantage.
            for name in ("without", "with")[:: 1 if n % 2 else -1]:
                with self.worker("bulk", "bulk") if name == "with" else nullcontext():
                    latencies[name] += asyncio.run(measure(self.settings, f"{name}/{n}", seconds))
            say(
                f"round {n}: "
                + ", ".join(f"p99 {name} {_percentile(each, 99)} ms" for name, each in latencies.items())
            )
        row = self.job(job)
        if row["state"] == "completed":
            raise RuntimeError("the job was done before the measurement")
        percentiles: dict[str, Any] = {
            name: {f"p{q}_ms": _percentile(each, q) for q in (50, 90, 99)} for name, each in latencies.items()
        }
        percentiles["ratio_p99"] = round(percentiles["with"]["p99_ms"] / percentiles["without"]["p99_ms"], 2)
        percentiles["bulk_beside_per_second"] = round(row["events"] / (rounds * turn))
        return percentiles


def _together(start: Callable[[], None], settings: Settings, records: int, limit: float) -> float:
    """Start workers, and measure how fast they commit from their first commit on."""

    async def both() -> float:
        measuring = asyncio.ensure_future(committed_per_second(settings, records, limit))
        await asyncio.to_thread(start)
        return await measuring

    return asyncio.run(both())


def run(lines: int, rounds: int, seconds: float, workers: int) -> dict[str, Any]:
    """Measure. Blocks for minutes. Raises RuntimeError."""

    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    with tempfile.TemporaryDirectory(prefix="orders-bench-bulk-") as folder:
        stack = Stack.start(Path(folder) / "stack")
        try:
            bench = _Bench(Path(folder), stack, workers)
            bench.command("init")
            return bench.run(lines, rounds, seconds, say)
        finally:
            stack.purge()


def _percentile(latencies: list[float], q: int) -> float:
    ordered = sorted(latencies)
    return round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1000, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--workers", type=int, default=2)
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))
