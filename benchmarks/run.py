"""The benchmark behind `orders bench`: its own stack, the real worker process, pre-loaded events;
then latency at a fixed rate.

Throughput: events are in Kafka before the worker starts; the clock runs from the worker's first finished
batch to its last. Latency, after a checkpoint: from the moment an event is handed to the producer to the
commit of the transaction that wrote its row (PostgreSQL's own commit timestamp, same machine, same clock),
for the last event of each order. `visible`: until a reader of committed records has got the
order.status_changed that the event caused.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import asyncpg
import psutil
from prometheus_client.parser import text_string_to_metric_families

from contracts.cloudevents import SourceEvent
from errors import OrdersError
from settings import Settings
from stack import Stack, ports
from wire import clients
from workload.generator import workload
from workload.producer import send

STEPS = ("decode", "load", "fold", "render", "publish", "postgres", "state", "redis", "commit")
"""Steps as streams.pipeline names them, and the transaction; the first four never wait,
so their time is CPU time.
"""
VISIBLE = "order.status_changed"
EVENTS_PER_ORDER = 4.08
WAITING = {
    f"ORDERS_{name}_DEADLINE": "86400" for name in ("PAYMENT", "STOCK", "RELEASE", "LABEL", "REFUND")
} | {"ORDERS_HISTORY_AGE": "1e9"}
"""Every order of the workload arms its deadlines, though its times are years old; none
of them passes meanwhile.
"""
POLL_SECONDS = 0.5
"""Asking a worker costs it some milliseconds: more often, and the measurement would measure itself."""


class BenchFailed(OrdersError):
    """Raised when nothing could be measured."""

    remedy = "run it again when the machine has less to do, or with fewer --orders"


@dataclass
class Plan:
    """A plan of what to measure: `orders` are drained, then `rate` events a second are sent for `seconds`."""

    orders: int = 60_000
    spread: int = 50_000
    workers: int = 2
    rate: int = 500
    seconds: int = 30
    seed: int = 1
    delivery: str = "at_least_once"
    open_orders: int = 0
    """So many orders wait for answers meanwhile, with their deadlines a day away."""
    say: Callable[[str], None] = field(default=lambda message: None)


def run(plan: Plan) -> dict[str, Any]:
    """Measure and return one JSON object.

    Blocks for minutes. Raises BenchFailed if a worker dies or stands still.
    """
    with tempfile.TemporaryDirectory(prefix="orders-bench-") as folder:
        stack = Stack.start(Path(folder) / "stack")
        try:
            asyncio.run(track_commits(stack.env))
            stack.stop()
            stack = Stack.start(Path(folder) / "stack")
            return _Bench(plan, stack, Path(folder)).run()
        finally:
            stack.purge()


class Process(Protocol):
    """What is measured: a process that handles records."""

    def cpu_seconds(self) -> float:
        """Seconds of CPU since its start."""

    def metrics(self) -> dict[str, float]:
        """`records` handled, `finished` (when its last batch was, seconds since 1970), and what
        else is known. Empty until it tells. Raises BenchFailed if it has ended.
        """


class Worker:
    """One `orders worker` process and its metrics."""

    def __init__(self, name: str, env: dict[str, str], log: Path) -> None:
        self.port = ports.choose(set())
        self._log = log
        environment = {**os.environ, **env, "ORDERS_METRICS_PORT": str(self.port), "ORDERS_LOG_LEVEL": "info"}
        self._out = log.open("w")
        command = [sys.executable, "-c", "from cli.main import main; main()", "worker", "--name", name]
        self.process = psutil.Popen(command, env=environment, stdout=self._out, stderr=subprocess.STDOUT)

    def cpu_seconds(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def metrics(self) -> dict[str, float]:
        """Handled records, seconds by step. Empty until the worker serves them."""
        if self.process.poll() is not None:
            raise BenchFailed(
                f"a worker ended with exit code {self.process.returncode}",
                "see the last lines of its log",
                log=self._log.read_text()[-2000:],
            )
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            return {}
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "orders_records_total":
                    values["records"] = values.get("records", 0.0) + sample.value
                elif sample.name in ("orders_step_seconds_sum", "orders_step_seconds_count"):
                    values[f"{sample.labels['step']}{sample.name.removeprefix('orders_step_seconds')}"] = (
                        sample.value
                    )
                elif sample.name == "orders_event_loop_lag_seconds_count":
                    values["looks"] = sample.value
                elif sample.name == "orders_event_loop_lag_seconds_bucket" and sample.labels["le"] == "0.02":
                    values["looks_in_time"] = sample.value
                elif sample.name == "orders_last_batch_timestamp_seconds":
                    values["finished"] = sample.value
                elif sample.name == "orders_derived_total":
                    values["derived"] = values.get("derived", 0.0) + sample.value
        return values

    def ready(self) -> bool:
        """Whether it has read back its state and takes in records."""
        self.metrics()
        return "worker ready" in self._log.read_text()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except psutil.TimeoutExpired:
                self.process.kill()
        self._out.close()


class _Bench:
    def __init__(self, plan: Plan, stack: Stack, folder: Path) -> None:
        self.plan = plan
        self.stack = stack
        self.folder = folder
        self.env = {**stack.env, "ORDERS_DELIVERY": plan.delivery}
        if plan.open_orders:
            self.env |= WAITING
        self.settings = Settings.model_validate(
            {name.removeprefix("ORDERS_").lower(): value for name, value in stack.env.items()}
        )

    def run(self) -> dict[str, Any]:
        plan = self.plan
        orders(self.stack.env, "init")
        idle = self._leave_open() if plan.open_orders else {}
        plan.say(f"pre-loading the events of {plan.orders:,} orders")
        sent = asyncio.run(send(self.settings, workload(plan.orders, plan.seed, plan.spread)))
        with self._workers("w") as workers:
            drained = drain(self.stack, workers, sent.records)
            plan.say(
                f"drained at {drained['events_per_second']:,.0f} events/s; now {plan.rate} events/s for"
                f" {plan.seconds} s"
            )
            before = cpu_seconds(self.stack, workers)
            latency = asyncio.run(self._latency())
            cpu = {name: used - before[name] for name, used in cpu_seconds(self.stack, workers).items()}
            latency["latency_cpu_us_per_event"] = {
                name: round(used * 1e6 / (plan.rate * plan.seconds), 1) for name, used in cpu.items()
            }
        growth = asyncio.run(self._growth(sent.records))
        plan.say("recovery: a new worker reads all state back from the changelog")
        return {
            **drained,
            **latency,
            **idle,
            "growth": growth,
            "recovery": self._recovery(),
            "conditions": self._conditions(sent.records),
        }

    def _leave_open(self) -> dict[str, Any]:
        """Take in orders that nobody answers, and look at workers that have nothing else to do."""
        plan = self.plan
        plan.say(f"{plan.open_orders:,} orders that wait for answers")
        created = (
            event for event in workload(plan.open_orders, plan.seed + 2, 1) if event.topic == "order.created"
        )
        sent = asyncio.run(send(self.settings, created))
        with self._workers("o") as workers:
            drain(self.stack, workers, sent.records)
            asyncio.run(settle(self.settings.postgres.get_secret_value()))
            before, started = cpu_seconds(self.stack, workers)["worker"], time.monotonic()
            time.sleep(plan.seconds)
            used = cpu_seconds(self.stack, workers)["worker"] - before
            cores = used / (time.monotonic() - started) / len(workers)
            memory = max(worker.process.memory_info().rss for worker in workers)
        return {"idle_cores_per_worker": round(cores, 4), "idle_resident_bytes_per_worker": memory}

    @contextmanager
    def _workers(self, prefix: str, count: int | None = None) -> Iterator[list[Worker]]:
        numbers = range(count or self.plan.workers)
        workers = [Worker(f"{prefix}{n}", self.env, self.folder / f"{prefix}{n}.log") for n in numbers]
        try:
            yield workers
        finally:
            for worker in workers:
                worker.stop()

    async def _latency(self) -> dict[str, Any]:
        plan = self.plan
        await settle(self.settings.postgres.get_secret_value())
        sent_at: dict[str, float] = {}
        caused_at: dict[bytes, float] = {}

        def stamped() -> Iterator[SourceEvent]:
            # Orders lie one second apart from stage to stage, so that the last event of each is
            # a batch of its own making.
            events = plan.rate * plan.seconds
            for event in workload(
                int(events / EVENTS_PER_ORDER) + 1, plan.seed + 1, max(1, int(plan.rate / EVENTS_PER_ORDER))
            ):
                assert event.key is not None
                sent_at[event.key.decode()] = caused_at[dict(event.headers)["ce_id"]] = time.time()
                yield event

        async with _reading(self.settings, caused_at) as visible:
            await send(self.settings, stamped(), rate=plan.rate)
        waits = await commit_waits(self.settings.postgres.get_secret_value(), "orders_order", sent_at)
        cuts = statistics.quantiles(waits, n=1000)
        return {
            "p50_ms": round(cuts[499], 1),
            "p99_ms": round(cuts[989], 1),
            "max_ms": round(waits[-1], 1),
            **visible,
            "latency_samples": len(waits),
            "latency_rate": plan.rate,
        }

    async def _growth(self, records: int) -> dict[str, Any]:
        connection = await asyncpg.connect(self.settings.postgres.get_secret_value())
        try:
            orders = await connection.fetchval("SELECT count(*) FROM orders_order")
            database = await connection.fetchval(
                "SELECT sum(pg_total_relation_size(inhrelid)) FROM pg_inherits"
            )
        finally:
            await connection.close()
        local = sum(path.stat().st_size for path in self.settings.data.rglob("*") if path.is_file())
        return {
            "orders": orders,
            "postgres_bytes_per_order": round(int(database) / orders),
            "local_state_bytes_per_order": round(local / orders),
        }

    def _recovery(self) -> dict[str, Any]:
        started = time.monotonic()
        with self._workers("fresh", 1) as (worker,):
            while not worker.ready():
                if time.monotonic() - started > 300:
                    raise BenchFailed("a new worker was not ready within five minutes")
                time.sleep(0.05)
            return {"seconds_from_nothing": round(time.monotonic() - started, 2)}

    def _conditions(self, records: int) -> dict[str, Any]:
        return {
            "workload": {
                "orders": self.plan.orders,
                "events": records,
                "spread": self.plan.spread,
                "seed": self.plan.seed,
            },
            "workers": self.plan.workers,
            "delivery": self.plan.delivery,
            "open_orders": self.plan.open_orders,
            "kafka_partitions": self.settings.partitions,
            **machine(),
        }


def _late_share(now: dict[str, float], before: dict[str, float]) -> float:
    """The share of the looks at the workers' event loops at which they were more than 20 ms late."""
    looks, in_time = (now.get(name, 0.0) - before.get(name, 0.0) for name in ("looks", "looks_in_time"))
    return round(1 - in_time / looks, 4) if looks else 0.0


def machine() -> dict[str, Any]:
    """The conditions of any measurement here."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cores": os.cpu_count(),
        "cpu": models[0] if models else "unknown",
        "python": platform.python_version(),
        "everything_on_one_machine": True,
    }


def drain(
    stack: Stack, workers: Sequence[Process], total: int, poll_seconds: float = POLL_SECONDS
) -> dict[str, Any]:
    """Wait until so many records are handled; events/s, CPU an event and what the workers' metrics tell.

    Raises BenchFailed if a worker dies, or if they stand still.
    """
    first: tuple[float, dict[str, float], dict[str, float]] | None = None
    last_change = time.monotonic()
    seen = 0.0
    while True:
        metrics = merged(worker.metrics() for worker in workers)
        now = time.monotonic()
        records = metrics.get("records", 0.0)
        if records != seen:
            seen, last_change = records, now
        if records and first is None:
            first = (now, metrics, cpu_seconds(stack, workers))
        if first is not None and records >= total:
            break
        if now - last_change > 120:
            raise BenchFailed(f"the workers stand still at {records:,.0f} of {total:,} records")
        time.sleep(poll_seconds)
    _, before, cpu_before = first
    cpu = cpu_seconds(stack, workers)
    handled = seen - before["records"]
    if handled <= 0:
        raise BenchFailed("the workers were done before the first look at them", "give more --orders")
    # Both ends by the workers' own clock readings, so that the interval of the questions doesn't matter.
    elapsed = metrics["finished"] - before["finished"]
    steps = {
        step: (metrics.get(f"{step}_sum", 0.0) - before.get(f"{step}_sum", 0.0)) * 1e6 / handled
        for step in STEPS
    }
    split = {name: (cpu[name] - cpu_before[name]) * 1e6 / handled for name in cpu}
    return {
        "events_per_second": round(handled / elapsed, 1),
        "events": int(total),
        "seconds": round(elapsed, 3),
        "cpu_us_per_event": {name: round(value, 1) for name, value in split.items()},
        "step_us_per_event": {name: round(value, 1) for name, value in steps.items()},
        "loop_late_share": _late_share(metrics, before),
        "records_per_batch": round(
            handled / max(1.0, metrics.get("fold_count", 0.0) - before.get("fold_count", 0.0)), 1
        ),
        "derived_per_event": round((metrics.get("derived", 0.0) - before.get("derived", 0.0)) / handled, 2),
    }


def cpu_seconds(stack: Stack, workers: Sequence[Process]) -> dict[str, float]:
    """worker, kafka, postgres, redis -> seconds of CPU that they used so far."""
    return {"worker": sum(worker.cpu_seconds() for worker in workers), **stack.cpu_seconds()}


async def settle(postgres: str) -> None:
    """Write down what a drain left in memory: else its checkpoint falls into the
    seconds that are measured next. Blocks.
    """
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute("CHECKPOINT")
    finally:
        await connection.close()
    os.sync()


async def commit_waits(postgres: str, table: str, sent_at: Mapping[str, float]) -> list[float]:
    """Milliseconds from `sent_at` (order id -> seconds since 1970) to the commit of each order's row, sorted.

    Waits for the rows. Raises BenchFailed if some aren't there, or not as late as that, within a minute.
    """
    deadline = time.monotonic() + 60
    connection = await asyncpg.connect(postgres)
    try:
        query = (
            "SELECT id::text, extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at"
            f" FROM {table} WHERE id = ANY($1::uuid[])"
        )
        while True:
            rows = await connection.fetch(query, list(sent_at))
            waits = sorted((row["at"] - sent_at[row["id"]]) * 1000 for row in rows)
            if len(rows) == len(sent_at) and waits[0] > 0:
                return waits
            if time.monotonic() > deadline:
                raise BenchFailed(f"{len(rows)} of {len(sent_at)} orders arrived within a minute")
            await asyncio.sleep(0.2)
    finally:
        await connection.close()


def merged(parts: Iterator[dict[str, float]]) -> dict[str, float]:
    """Metrics of several workers: sums, and the latest time of a finished batch."""
    total: dict[str, float] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = (
                max(total.get(name, 0.0), value) if name == "finished" else total.get(name, 0.0) + value
            )
    return total


@asynccontextmanager
async def _reading(settings: Settings, caused_at: dict[bytes, float]) -> AsyncIterator[dict[str, float]]:
    """Read VISIBLE meanwhile; afterwards the dictionary holds how long events took to be
    seen there, in milliseconds.
    """
    waits: list[float] = []
    values: dict[str, float] = {}
    async with clients.consumer(
        settings, "orders-bench", VISIBLE, auto_offset_reset="latest", fetch_max_wait_ms=50
    ) as consumer:
        await consumer.seek_to_end()

        async def read() -> None:
            async for record in consumer:
                sent = caused_at.get(dict(record.headers)["ce_causeid"])
                if sent is not None:
                    waits.append((time.time() - sent) * 1000)

        reading = asyncio.ensure_future(read())
        yield values
        deadline, seen = time.monotonic() + 60, -1
        while len(waits) != seen and time.monotonic() < deadline:  # until nothing comes any more
            seen = len(waits)
            await asyncio.sleep(2)
        reading.cancel()
    if len(waits) < 2:
        raise BenchFailed(f"no {VISIBLE} came")
    cuts = statistics.quantiles(waits, n=1000)
    values.update({"visible_p50_ms": round(cuts[499], 1), "visible_p99_ms": round(cuts[989], 1)})


def orders(env: dict[str, str], *arguments: str) -> None:
    """Run a command of `orders`. Blocks. Raises CalledProcessError."""
    command = [sys.executable, "-c", "from cli.main import main; main()", *arguments]
    subprocess.run(command, env={**os.environ, **env}, check=True, stdout=subprocess.DEVNULL)


async def track_commits(env: dict[str, str]) -> None:
    """Have the next start of the server note when each transaction was committed."""
    connection = await asyncpg.connect(env["ORDERS_POSTGRES"])
    try:
        await connection.execute("ALTER SYSTEM SET track_commit_timestamp = on")
    finally:
        await connection.close()
