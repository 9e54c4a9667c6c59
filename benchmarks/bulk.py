"""Interactive latency with and without a bulk job: `python -m benchmarks.bulk --lines 1000000 --rounds 5`.

A stack of its own, a realtime worker, and a job of so many lines that it doesn't end meanwhile. In turns
without and with a bulk worker 500 orders a second are sent, and each one's suborder.created awaited: seconds
from handing order.created to the producer to having it.
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
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final
from uuid import NAMESPACE_URL, uuid5

from contracts.bulk import headers_of
from contracts.cloudevents import rfc3339
from settings import Settings
from stack import Stack
from wire import clients

ORDERS: Final = (sys.executable, "-c", "from cli.main import main; main()")
RATE: Final = 500
SETTLE_SECONDS: Final = 3.0


def order(name: str) -> tuple[str, dict[str, Any]]:
    """An order of one line, made of a name."""
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


async def measure(settings: Settings, name: str, seconds: float) -> list[float]:
    """Send for so long; returns every order's latency in seconds, sorted.
    Raises RuntimeError if an order has none.
    """
    sent: dict[bytes, float] = {}
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
                if (since := sent.pop(record.key, None)) is not None:
                    latencies.append(time.perf_counter() - since)
                if not sent and time.perf_counter() - started > seconds:
                    return

        started, count = time.perf_counter(), 0
        listening = asyncio.ensure_future(listen())
        while (elapsed := time.perf_counter() - started) < seconds:
            while count < elapsed * RATE:
                order_id, data = order(f"{name}/{count}")
                headers = headers_of("order.created", order_id, rfc3339(time.time_ns() // 1000), "/benchmark")
                sent[order_id.encode()] = time.perf_counter()
                await producer.send(
                    "order.created", json.dumps(data).encode(), key=order_id.encode(), headers=headers
                )
                count += 1
            await asyncio.sleep(0.002)
        if sent:
            await asyncio.wait({listening}, timeout=30)
        listening.cancel()
    if sent:
        raise RuntimeError(f"{len(sent)} orders have no suborder after 30 s")
    return sorted(latencies)


@contextmanager
def worker(role: str, env: dict[str, str], folder: Path) -> Iterator[None]:
    """A worker that is ready; ended at the end. Raises RuntimeError if it ends before."""
    log = folder / f"{role}-{time.monotonic_ns()}.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            (*ORDERS, "worker", "--role", role, "--name", role), env=env, stdout=out, stderr=out
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


def run(lines: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure; milliseconds of all rounds together, and what the job did meanwhile. Blocks for minutes.
    Raises RuntimeError.
    """
    latencies: dict[str, list[float]] = {"without": [], "with": []}
    with tempfile.TemporaryDirectory(prefix="orders-bench-bulk-") as folder:
        stack = Stack.start(Path(folder) / "stack")
        env = {**os.environ, **stack.env}
        settings = Settings(kafka=stack.env["ORDERS_KAFKA"])

        def command(*arguments: str) -> str:
            done = subprocess.run((*ORDERS, *arguments), env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"orders {' '.join(arguments)}: {done.stderr}")
            return done.stdout

        try:
            command("init")
            file = Path(folder) / "job.ndjson"
            with file.open("w") as out:
                for n in range(lines):
                    print(json.dumps({**order(f"bulk/{n}")[1], "time": "2026-01-01T00:00:00Z"}), file=out)
            with worker("realtime", env, Path(folder)):
                command("bulk", "submit", "orders", str(file))
                asyncio.run(measure(settings, "warm", 5))
                for n in range(rounds):
                    # Who is first changes: what grows meanwhile (tables, changelog) is nobody's advantage.
                    for name in ("without", "with")[:: 1 if n % 2 else -1]:
                        with worker("bulk", env, Path(folder)) if name == "with" else nullcontext():
                            time.sleep(SETTLE_SECONDS)
                            latencies[name] += asyncio.run(measure(settings, f"{name}/{n}", seconds))
                    print(
                        f"round {n}: "
                        + ", ".join(f"{name} {_percentile(each, 99)} ms" for name, each in latencies.items()),
                        file=sys.stderr,
                    )
                [job] = json.loads(command("bulk", "status", "--json"))["jobs"]
        finally:
            stack.purge()
    if job["state"] == "completed":
        raise RuntimeError("the job was done before the measurement: more --lines")
    results: dict[str, Any] = {
        name: {f"p{q}_ms": _percentile(each, q) for q in (50, 90, 99)} for name, each in latencies.items()
    }
    ratio = results["with"]["p99_ms"] / results["without"]["p99_ms"]
    return {
        **results,
        "ratio_p99": round(ratio, 2),
        "unpacked": job["events"],
        "load": os.getloadavg()[0],
        "rounds": rounds,
        "seconds": seconds,
    }


def _percentile(latencies: list[float], q: int) -> float:
    ordered = sorted(latencies)
    return round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1000, 1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20)
    print(json.dumps(run(**vars(parser.parse_args())), indent=2))
