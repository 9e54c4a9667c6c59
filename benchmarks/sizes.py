"""How many bytes an event and an order take in each store: what benchmarks.capacity
computes disks and memory from.

    .venv/bin/python -m benchmarks.sizes --orders 20000 --out FILE

Its own stack, one worker, the events of `orders bench`.
Bytes don't depend on how busy the machine is, so this may be measured anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncpg

from contracts import topics as names
from settings import Settings
from sinks.clients import open_client
from stack import Stack
from workload.generator import workload
from workload.producer import send

COMMAND = (sys.executable, "-c", "from cli.main import main; main()")


def log_bytes(data: Path, group: str) -> dict[str, int]:
    """Bytes of the segments below a broker's log.dirs, by what the topics are for. Blocks on the disk."""
    sizes = Counter({"input": 0, "derived": 0, "changelog": 0, "internal": 0})
    for segment in data.rglob("*.log"):
        topic = segment.parent.name.rpartition("-")[0]
        if topic in names.INPUT:
            kind = "input"
        elif topic in names.DERIVED:
            kind = "derived"
        elif topic.startswith(f"{group}-") and topic.endswith("-changelog"):
            kind = "changelog"
        else:
            kind = "internal"
        sizes[kind] += segment.stat().st_size
    return dict(sizes)


async def _stores(settings: Settings) -> dict[str, int]:
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        wal = await connection.fetchval("SELECT wal_bytes::int8 FROM pg_stat_wal")
        full_pages = await connection.fetchval("SELECT wal_fpi FROM pg_stat_wal")
        tables = await connection.fetchval(
            "SELECT sum(pg_total_relation_size(inhrelid))::int8 FROM pg_inherits"
        )
        rows = await connection.fetchval("SELECT sum(n_tup_ins + n_tup_upd)::int8 FROM pg_stat_user_tables")
    finally:
        await connection.close()
    async with open_client(settings, timeout=10) as redis:
        memory = (await redis.info("memory"))["used_memory"]
    return {
        "wal": wal,
        "full_pages": full_pages,
        "postgres": tables,
        "row_writes": rows or 0,
        "redis": memory,
    }


def measure(orders: int, spread: int) -> dict[str, Any]:
    """Sends so many orders through one worker and returns one JSON object. Blocks for minutes.
    Raises RuntimeError if a command fails.
    """
    with tempfile.TemporaryDirectory(prefix="orders-sizes-") as folder:
        stack = Stack.start(Path(folder) / "stack")
        try:
            return _measure(stack, Path(folder), orders, spread)
        finally:
            stack.purge()


def _measure(stack: Stack, folder: Path, orders: int, spread: int) -> dict[str, Any]:
    settings = Settings.model_validate(
        {name.removeprefix("ORDERS_").lower(): value for name, value in stack.env.items()}
    )
    data = folder / "stack" / "kafka"
    _orders(stack.env, "init")
    before, log_before = asyncio.run(_stores(settings)), log_bytes(data, settings.group)
    events = asyncio.run(send(settings, workload(orders, 1, spread))).records
    with (folder / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [*COMMAND, "worker", "--name", "w"], env={**os.environ, **stack.env}, stdout=log, stderr=log
        )
        try:
            _orders(stack.env, "wait", "--timeout", "900")
        finally:
            worker.terminate()
            worker.wait(60)
    after, log_after = asyncio.run(_stores(settings)), log_bytes(data, settings.group)
    grown = {name: after[name] - before[name] for name in after}
    logged = {name: log_after[name] - log_before[name] for name in log_after}
    local = sum(path.stat().st_size for path in settings.data.rglob("*") if path.is_file())
    return {
        "bytes_per_event": {
            **{f"kafka_{name}": round(value / events) for name, value in logged.items()},
            "wal": round(grown["wal"] / events),
        },
        "bytes_per_order": {
            "postgres": round(grown["postgres"] / orders),
            "redis": round(grown["redis"] / orders),
            "local_state": round(local / orders),
        },
        "rows_written_per_event": round(grown["row_writes"] / events, 2),
        "full_pages_in_wal": grown["full_pages"],
        "conditions": {
            "orders": orders,
            "events": events,
            "spread": spread,
            "kafka_replication": 1,
            "workers": 1,
        },
    }


def _orders(env: Mapping[str, str], *arguments: str) -> None:
    done = subprocess.run(
        [*COMMAND, *arguments], check=False, env={**os.environ, **env}, capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"orders {' '.join(arguments)}: {done.stderr[-2000:] or done.stdout[-2000:]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--orders", type=int, default=20_000, help="how many orders (default: 20000; each has 4.08 events)"
    )
    parser.add_argument(
        "--spread", type=int, default=15_000, help="orders between two events of one order (default: 15000)"
    )
    parser.add_argument("--out", type=Path, help="write there instead of stdout")
    options = parser.parse_args()
    text = json.dumps(measure(options.orders, options.spread), indent=2) + "\n"
    if options.out is None:
        sys.stdout.write(text)
    else:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
