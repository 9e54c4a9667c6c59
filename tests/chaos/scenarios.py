"""What has to be told on its own: what can't be undone, what takes long, what is measured.

Each is played on a topology under load (run.arena) and notes what it saw.
What should not have been goes into the world's problems.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from aiokafka.admin import NewPartitions
from aiokafka.errors import KafkaError

from streams import topics
from streams.lag import LagReader
from tests.chaos.readers import Readers, api, environment, job_lines, percentile
from tests.chaos.run import ChaosResult, Injection, Say
from tests.chaos.workers import Supervised
from tests.chaos.world import Shape, World, until, until_awaited
from workload import generator
from workload.producer import send

METADATA_AGE = 30.0
"""Seconds after which a running worker looks at the topics again."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """`limit`: seconds that catching up may take at the end."""

    act: Callable[[World, ChaosResult, Say], Awaitable[None]]
    what: str
    shape: Shape = field(default_factory=Shape)
    limit: float = 60.0


SCENARIOS: dict[str, Scenario] = {}
A = TypeVar("A", bound=Callable[[World, ChaosResult, Say], Awaitable[None]])


def scenario(name: str, what: str, shape: Shape | None = None, limit: float = 60.0) -> Callable[[A], A]:
    """Decorator: put it among the scenarios."""

    def register(act: A) -> A:
        SCENARIOS[name] = Scenario(act, what, shape or Shape(), limit)
        return act

    return register


@scenario(
    "partitions-added",
    "a partition is added to one input topic: workers end with 1 and say what to do; when all topics have it"
    " they go on",
    Shape(brokers=1, replica=False, workers=2, rate=100.0),
)
async def partitions_added(here: World, outcome: ChaosResult, say: Say) -> None:
    """Can't be undone, so it comes last on its servers."""
    topic = "order.paid"
    more = here.settings.partitions + 1
    said = (
        f"{topic} has {more}, the others have {here.settings.partitions}; stop all workers and make them"
        " equal"
    )
    marks = {name: (worker.size(), len(worker.exits)) for name, worker in here.workers.items()}
    injection = Injection(0, "partitions-added", 0, f"{topic}: {more} partitions", here.clock.now())
    outcome.injections.append(injection)
    async with here.kafka() as admin:
        await admin.create_partitions({topic: NewPartitions(more)})
        say(f"{topic} has {more} partitions")

        def refused() -> bool:
            """Each has ended, was started again, and has ended again."""
            return all(len(worker.exits) >= marks[name][1] + 2 for name, worker in here.workers.items())

        await until(refused, "every worker has refused to go on, twice", METADATA_AGE + 45)
        for name, worker in here.workers.items():
            codes = [gone.code for gone in worker.exits[marks[name][1] :]]
            if any(code != 1 for code in codes):
                here.problems.append(f"{name} ended with {codes}, not 1, for want of equal partitions")
            text = worker.text(marks[name][0])
            if said not in text:
                here.problems.append(f"{name} doesn't say what is wrong and what to do: {said!r}")
            injection.said = next((line for line in text.splitlines() if said in line), "")
        say("every worker has refused to go on; now every topic gets the partition")
        others = [spec.name for spec in topics.specs(here.settings, here.shape.brokers) if spec.name != topic]
        await admin.create_partitions({name: NewPartitions(more) for name in others})
    injection.healed = here.clock.now()
    # A producer that knows of the new partition: some orders' events now come in another lane than before.
    await send(here.settings, generator.events(300, here.seed + 1, generator.Shares(0.05, 0.2, 0.01)))
    injection.recovery = await here.watch.caught_up(60.0)
    if injection.recovery is None:
        here.problems.append("partitions-added: not handled 60 s after all topics have the partition")


@scenario(
    "postgres-down-10m",
    "Postgres is away for ten minutes under load: the workers' memory stays within bounds",
    Shape(settings={"ORDERS_RETRY_LIMIT": "1200"}),
    limit=600.0,
)
async def postgres_down_10m(here: World, outcome: ChaosResult, say: Say) -> None:
    """The retry limit is above the outage, so that one life of each worker sees all of it."""
    seconds = 600.0
    injection = Injection(0, "postgres-stop", 0, f"for {seconds:.0f} s", here.clock.now())
    outcome.injections.append(injection)
    await here.kill("postgres", signal.SIGQUIT)
    began = time.monotonic()
    while (passed := time.monotonic() - began) < seconds:
        await asyncio.sleep(min(30.0, seconds - passed))
        latest = here.watch.samples[-1]
        say(
            f"lag {latest.lag or 0:,}; "
            + ", ".join(f"{name} {rss / 2**20:.0f} MiB" for name, rss in sorted(latest.rss.items()))
        )
    await here.revive("postgres")
    injection.healed = here.clock.now()
    down = [sample for sample in here.watch.samples if injection.injected <= sample.at <= injection.healed]
    for name in here.workers:
        sizes = [sample.rss[name] / 2**20 for sample in down if name in sample.rss]
        if not sizes:
            here.problems.append(f"{name} never lived while Postgres was away")
            continue
        # Buffers fill in the first part of an outage; after that nothing may grow.
        early, late = max(sizes[: len(sizes) // 4 + 1]), max(sizes[len(sizes) * 3 // 4 :])
        here.notes.append(
            f"{name}: {sizes[0]:.0f} MiB at the start, {early:.0f} at most in the first quarter, {late:.0f}"
            " in the last"
        )
        if late > early * 1.15 + 16:
            here.problems.append(f"{name} grew from {early:.0f} to {late:.0f} MiB while Postgres was away")
    injection.recovery = await here.watch.caught_up(SCENARIOS["postgres-down-10m"].limit)
    if injection.recovery is None:
        here.problems.append("postgres-down: not caught up in time")


@scenario(
    "worker-failover", "kill -9 of one of three workers, three times: seconds until its partitions move on"
)
async def worker_failover(here: World, outcome: ChaosResult, say: Say) -> None:
    for number, name in enumerate(sorted(here.workers)):
        worker = here.workers[name]
        lanes = _lanes(worker)
        if not lanes:
            here.problems.append(f"{name} has no lane")
            continue
        injection = Injection(
            number, "worker-kill", 0, f"{name} with lanes {sorted(lanes)}", here.clock.now()
        )
        outcome.injections.append(injection)
        began = time.monotonic()
        ending = asyncio.ensure_future(worker.down(signal.SIGKILL))
        times = await _moved_on(here, lanes, began)
        await ending
        if times is None:
            here.problems.append(f"{name}: its partitions had not moved on after 60 s")
        else:
            here.notes.append(
                f"kill -9 of {name}: "
                + ", ".join(f"lane {lane} after {seconds:.1f} s" for lane, seconds in times.items())
            )
            say(here.notes[-1])
        worker.start()
        injection.healed = here.clock.now()
        injection.recovery = await here.watch.caught_up(60.0)
        await asyncio.sleep(5)


JOB_LINES = 1_000_000


@scenario(
    "bulk-and-readers",
    "a job of a million lines beside live events and readers; the replica away, Redis flushed, each worker"
    " killed meanwhile",
    Shape(brokers=1, workers=3, rate=200.0, settings={"ORDERS_BULK_RATE": "2000"}),
    limit=300.0,
)
async def bulk_and_readers(
    here: World,
    outcome: ChaosResult,
    say: Say,
    lines: int = JOB_LINES,
    readers: int = 4,
    pause: float = 0.0,
) -> None:
    """Half as many orders as lines. Each reader holds every answer to the versions that it knows of."""
    file = here.folder / "job.csv"
    with file.open("w") as out:
        out.writelines(f"{line}\n" for line in job_lines(lines // 2, here.seed))
    async with api(environment(here.direct), here.folder / "logs" / "api.log") as url:
        reading = Readers(url, here.settings.brokers, here.seed)
        await reading.start(readers, pause)
        began = time.monotonic()
        code, output, error = await here.orders(
            "bulk", "submit", "orders", str(file), "--as-new", "--json", timeout=900
        )
        if code:
            here.problems.append(f"orders bulk submit ended with {code}: {error}")
            return
        job = json.loads(output)["job_id"]
        say(f"job {job} of {lines:,} lines is submitted after {time.monotonic() - began:.1f} s")
        await _break_under(job, here, outcome, say)
        await until_awaited(partial(_unpacked, here, job, 1.0), "the whole job is unpacked", 900)
        seconds = time.monotonic() - began
        await here.feeder.stop()
        for injection in outcome.injections:
            injection.recovery = await here.watch.caught_up(SCENARIOS["bulk-and-readers"].limit)
        await reading.stop()
        await reading.finish(500)
        here.problems += reading.wrong[:20]
        if len(reading.wrong) > 20:
            here.problems.append(f"and {len(reading.wrong) - 20:,} more wrong answers")
        if not reading.answers["replica"] or not reading.answers["cache"]:
            here.problems.append(
                f"the readers were not answered by cache and replica: {dict(reading.answers)}"
            )
    async with here.sql() as session:
        row = await session.fetchrow(
            "SELECT parts, parts_done, events, lines, refused FROM orders_bulk_job WHERE job_id = $1", job
        )
        done = await session.fetchval(
            "SELECT count(DISTINCT order_id) FROM orders_order_item WHERE sku = 'job-2'"
        )
    if row is None or row["events"] != lines // 2 or row["parts_done"] != row["parts"]:
        here.problems.append(f"the job's row says {dict(row or {})}")
    here.notes.append(
        f"a job of {lines:,} lines ({row['parts'] if row else 0:,} parts): unpacked {seconds:.0f} s after its"
        " submit began"
    )
    answers = ", ".join(f"{what} {count:,}" for what, count in sorted(reading.answers.items()))
    tail = ", ".join(
        f"p{share:.0%} {percentile(reading.latencies, share) * 1000:.0f} ms".replace("%", "")
        for share in (0.5, 0.99)
    )
    here.notes.append(f"readers: {len(reading.latencies):,} requests, {tail}; answered by {answers}")
    for note in here.notes[-2:]:
        say(note)
    if done < lines // 2:
        here.problems.append(f"{done:,} orders of the job have rows, not {lines // 2:,}")


async def _break_under(job: str, here: World, outcome: ChaosResult, say: Say) -> None:
    """The faults, each when so much of the job is unpacked."""
    steps = [
        (0.1, "replica-kill", partial(_replica_away, here)),
        (0.3, "redis-flushall", partial(_flush, here)),
        *(
            (0.4 + 0.15 * n, "worker-kill", partial(_kill, worker))
            for n, worker in enumerate(here.workers.values())
        ),
    ]
    for number, (share, kind, act) in enumerate(steps):
        await until_awaited(partial(_unpacked, here, job, share), f"{share:.0%} of the job is unpacked", 900)
        injection = Injection(number, kind, 0, f"at {share:.0%} of the job", here.clock.now())
        outcome.injections.append(injection)
        say(f"{kind} at {share:.0%} of the job")
        await act()
        injection.healed = here.clock.now()


async def _unpacked(here: World, job: str, share: float) -> bool:
    async with here.sql() as session:
        row = await session.fetchrow("SELECT parts, parts_done FROM orders_bulk_job WHERE job_id = $1", job)
    if row is not None and row["parts_done"] >= share * row["parts"]:
        return True
    await asyncio.sleep(0.25)
    return False


async def _kill(worker: Supervised) -> None:
    worker.send(signal.SIGKILL)


async def _replica_away(here: World) -> None:
    await here.kill("postgres-replica", signal.SIGQUIT)
    await asyncio.sleep(5)
    await here.revive("postgres-replica")


async def _flush(here: World) -> None:
    async with here.redis() as client:
        await client.flushall()


def _lanes(worker: Supervised) -> set[int]:
    """Partition numbers that it has opened last."""
    matches = re.findall(r"lanes ([\d, ]+) open, generation", worker.text())
    return {int(number) for number in matches[-1].split(",")} if matches else set()


async def _moved_on(here: World, lanes: set[int], began: float) -> dict[int, float] | None:
    """Lane -> seconds from `began` until something of it was committed again.
    None if that takes longer than 60 s.
    """
    times: dict[int, float] = {}
    async with LagReader(here.settings) as reader:
        first = {partition: position.committed for partition, position in (await reader.lag()).items()}
        while times.keys() != lanes:
            now = time.monotonic()
            if now - began > 60:
                return None
            try:
                lag = await reader.lag()
            except KafkaError:
                continue
            for (topic, partition), position in lag.items():
                if (
                    partition in lanes
                    and partition not in times
                    and position.committed > first[topic, partition]
                ):
                    times[partition] = now - began
            await asyncio.sleep(0.05)
    return dict(sorted(times.items()))
