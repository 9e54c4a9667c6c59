"""The benchmark of `orders api`: its own stack with a replica, orders that the real pipeline put there, the
service as its own process.

    .venv/bin/python -m benchmarks.api --out FILE

For each kind of read, first as many requests as come through on so many connections (requests/s), then
requests at a fixed rate (p50 and p99 from when each was due). Misses are of orders that the cache doesn't
know, each another one. Before and after each kind the primary is asked how many transactions it has seen:
with a replica there, none of them should be a reader's.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import psutil
from redis.asyncio import Redis

from stack import Stack, ports

COMMAND = (sys.executable, "-c", "from cli.main import main; main()")


class _Client:
    """One connection that is kept. HTTP as far as the service speaks it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.sources: Counter[str] = Counter()

    async def open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def get(self, path: str) -> None:
        """Send a GET request. Raises RuntimeError for any answer but 200."""
        self._writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await self._reader.readexactly(int(fields["content-length"]))
        if not head.startswith("HTTP/1.1 200"):
            raise RuntimeError(f"{path}: {head}{body.decode()}")
        self.sources[fields["x-source"]] += 1

    def close(self) -> None:
        self._writer.close()


async def _saturate(clients: list[_Client], paths: Iterator[str], seconds: float) -> float:
    """Requests a second, each connection sending the next one when its answer is there."""
    end = time.perf_counter() + seconds
    count = 0

    async def go(client: _Client) -> None:
        nonlocal count
        while time.perf_counter() < end:
            await client.get(next(paths))
            count += 1

    started = time.perf_counter()
    await asyncio.gather(*(go(client) for client in clients))
    return count / (time.perf_counter() - started)


async def _paced(clients: list[_Client], paths: Iterator[str], rate: int, seconds: float) -> list[float]:
    """Latencies in ms, counted from when a request was due, whether or not a connection was free."""
    latencies: list[float] = []
    started = time.perf_counter()
    numbers = iter(range(int(rate * seconds)))

    async def go(client: _Client) -> None:
        for number in numbers:
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await client.get(next(paths))
            latencies.append((time.perf_counter() - due) * 1000)

    await asyncio.gather(*(go(client) for client in clients))
    return sorted(latencies)


class _Bench:
    def __init__(self, arguments: argparse.Namespace, env: dict[str, str], folder: Path) -> None:
        self.arguments = arguments
        self.env = env
        self.folder = folder
        self.port = ports.choose(set())

    def run(self) -> dict[str, Any]:
        self._fill()
        # So short-lived that no order is found again by the time all others have been asked for.
        environment = {
            **os.environ,
            **self.env,
            "ORDERS_CACHE_TTL_REFILL": "1",
            "ORDERS_LOG_LEVEL": "warning",
        }
        with (self.folder / "api.log").open("w") as log:
            process = psutil.Popen(
                (*COMMAND, "api", "--port", str(self.port)), env=environment, stdout=log, stderr=log
            )
        try:
            # Not /health, which would look at the primary.
            _until(
                lambda: (
                    urllib.request.urlopen(f"http://127.0.0.1:{self.port}/openapi.json", timeout=5).status
                    == 200
                )
            )
            return asyncio.run(self._measure(process))
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)
            print((self.folder / "api.log").read_text(), end="", file=sys.stderr)

    def _fill(self) -> None:
        def orders(*arguments: str) -> None:
            subprocess.run(
                (*COMMAND, *arguments), env={**os.environ, **self.env}, check=True, stdout=subprocess.DEVNULL
            )

        orders("init")
        with (self.folder / "worker.log").open("w") as log:
            worker = subprocess.Popen(
                (*COMMAND, "worker"), env={**os.environ, **self.env}, stdout=log, stderr=log
            )
        try:
            orders("generate", "--orders", str(self.arguments.orders))
            orders("wait", "--timeout", "300")
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)

    async def _measure(self, process: psutil.Popen) -> dict[str, Any]:
        connection = await asyncpg.connect(self.env["ORDERS_POSTGRES"])
        orders = [
            (str(row[0]), str(row[1]))
            for row in await connection.fetch("SELECT id, user_id FROM orders_order")
        ]
        sellers = [
            str(row[0]) for row in await connection.fetch("SELECT DISTINCT seller_id FROM orders_order_item")
        ]
        numbers = [
            row[0]
            for row in await connection.fetch(
                "SELECT tracking_number FROM orders_shipment WHERE tracking_number IS NOT NULL"
            )
        ]
        # So that whatever the primary does while readers are measured is theirs.
        await connection.execute("VACUUM (ANALYZE)")
        await connection.execute("ALTER SYSTEM SET autovacuum = off")
        await connection.execute("SELECT pg_reload_conf()")
        await connection.close()
        kinds: dict[str, tuple[bool, list[str]]] = {
            "order, hit": (True, [f"/orders/{order_id}" for order_id, _ in orders]),
            "tracking, hit": (True, [f"/tracking/{number}" for number in numbers]),
            "order, miss": (False, [f"/orders/{order_id}" for order_id, _ in orders]),
            "details, miss": (False, [f"/orders/{order_id}/explain" for order_id, _ in orders]),
            "history": (
                False,
                [f"/users/{user_id}/orders?from=2020-01-01T00:00:00Z" for _, user_id in orders],
            ),
            "seller's suborders": (False, [f"/sellers/{seller_id}/suborders" for seller_id in sellers]),
        }
        results: dict[str, Any] = {}
        flushed = False
        for kind, (hit, paths) in kinds.items():
            if not hit and not flushed:
                async with Redis.from_url(self.env["ORDERS_REDIS"]) as redis:
                    await redis.flushdb()
                flushed = True
            results[kind] = await self._one(
                process, paths, self.arguments.hit_rate if hit else self.arguments.miss_rate
            )
            print(f"{kind}: {json.dumps(results[kind])}", file=sys.stderr)
        return {"reads": results, "conditions": self._conditions(len(orders))}

    async def _one(self, process: psutil.Popen, paths: list[str], rate: int) -> dict[str, Any]:
        seconds: float = self.arguments.seconds
        clients = [_Client(self.port) for _ in range(self.arguments.connections)]
        for client in clients:
            await client.open()
        turn = itertools.cycle(paths)
        await _saturate(clients, turn, 1.0)
        for client in clients:
            client.sources.clear()
        before, cpu = await self._primary(), _cpu(process)
        most = await _saturate(clients, turn, seconds)
        cpu = _cpu(process) - cpu
        latencies = await _paced(clients, turn, rate, seconds)
        transactions = await self._primary() - before
        for client in clients:
            client.close()
        return {
            "requests_per_second": round(most),
            "cpu_us_per_request": round(cpu / (most * seconds) * 1e6),
            "paced_rate": rate,
            "paced_p50_ms": round(statistics.median(latencies), 2),
            "paced_p99_ms": round(latencies[int(len(latencies) * 0.99)], 2),
            "sources": dict(sum((client.sources for client in clients), Counter())),
            "transactions_on_the_primary": transactions,
            "connections_to_the_primary": await self._connections(),
        }

    async def _primary(self) -> int:
        """Transactions that backends of the orders database on the primary have ended, but for this one's."""
        statement = (
            "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        )
        return int(await self._ask(statement))

    async def _connections(self) -> int:
        return int(
            await self._ask("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'orders-api'")
        )

    async def _ask(self, statement: str) -> Any:
        # From another database, so that asking isn't counted; sessions have reported what they did within a
        # second of doing nothing more.
        url = self.env["ORDERS_POSTGRES"]
        await asyncio.sleep(1.5)
        connection = await asyncpg.connect(url.rpartition("/")[0] + "/postgres")
        try:
            return await connection.fetchval(
                statement.replace("current_database()", f"'{url.rpartition('/')[2]}'")
            )
        finally:
            await connection.close()

    def _conditions(self, orders: int) -> dict[str, Any]:
        cpu = (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        )
        return {
            "orders": orders,
            "connections": self.arguments.connections,
            "seconds": self.arguments.seconds,
            "service_processes": 1,
            "cores": os.cpu_count(),
            "cpu": next(cpu, "unknown"),
            "python": platform.python_version(),
            "load_average_at_the_end": os.getloadavg()[0],
            "everything_on_one_machine": True,
        }


def _cpu(process: psutil.Popen) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > deadline:
            raise RuntimeError("orders api doesn't answer")
        time.sleep(0.1)


def main() -> None:
    """Measure, and print or write one JSON document."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.api", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--orders", type=int, default=20_000, help="orders in the databases")
    parser.add_argument("--connections", type=int, default=16, help="of the client")
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for each of the two measurements of a kind of read"
    )
    parser.add_argument(
        "--hit-rate", type=int, default=500, help="requests a second while the latency of hits is measured"
    )
    parser.add_argument(
        "--miss-rate",
        type=int,
        default=200,
        help="requests a second while the latency of other reads is measured",
    )
    parser.add_argument("--out", type=Path, help="write the JSON document to this file instead of stdout")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="orders-bench-") as folder:
        stack = Stack.start(Path(folder) / "stack", replica=True)
        try:
            result = json.dumps(_Bench(arguments, stack.env, Path(folder)).run(), indent=2)
        finally:
            stack.purge()
    if arguments.out is None:
        print(result)
    else:
        arguments.out.write_text(result + "\n")


if __name__ == "__main__":
    main()
