"""Odd record batches on every topic of a real broker, and then every program that reads them.

    python -m tests.fuzz.topics [--batches N] [--seed S] [--minutes M]

Two floods, on a stack of its own. The first goes to the topics of upstream services: afterwards each record
that the broker took is applied or a dead letter, orders that came behind are there, and the audit is clean.
The second goes to everything else (internal topics, changelog, derived topics, dead letters, ledgers):
afterwards every program still does its work, though the audit may say what is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any, Final
from uuid import UUID

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient

from contracts import topics as names
from contracts.cloudevents import SourceEvent
from settings import Settings, get_settings
from streams import topics
from tests.fuzz.batches import Raw, batch_bytes, odd, produce, record_bytes
from tests.servers import admin, kafka
from tests.workers import orders, processed, worker
from wire import AIOKafkaConsumer, name_bytes, unreadable
from workload import generator
from workload.producer import send

ORDERS: Final = 40
BEHIND: Final = 10
UPSTREAM: Final = (*names.INPUT, *names.BULK)
DEEP: Final = (b"[" * 100_000 + b"]" * 100_000, b'{"specversion":"1.0","a":' * 30_000 + b"1" + b"}" * 30_000)
TRACEBACK: Final = "Traceback (most recent call last)"


async def written(settings: Settings, wanted: Collection[str]) -> dict[str, list[Raw]]:
    """What lies on these topics, as it came."""
    consumer = AIOKafkaConsumer(**kafka(settings.brokers), auto_offset_reset="earliest")
    await consumer.start()
    try:
        partitions = [
            TopicPartition(topic, number) for topic in wanted for number in range(settings.partitions)
        ]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        by_topic: dict[str, list[Raw]] = {topic: [] for topic in wanted}
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for partition, records in (await consumer.getmany(timeout_ms=200)).items():
                by_topic[partition.topic] += [
                    Raw(
                        record.key,
                        record.value,
                        [(name_bytes(name), value) for name, value in record.headers],
                    )
                    for record in records
                    if unreadable(record) is None
                ]
        return by_topic
    finally:
        await consumer.stop()


async def flood(
    settings: Settings, random: Random, samples: dict[str, list[Raw]], batches: int
) -> Counter[str]:
    """Write odd batches, so many, made of the samples of a topic (or of another one) to each.
    Returns what the broker said.
    """
    client = AIOKafkaClient(**kafka(settings.brokers))
    await client.bootstrap()
    said: Counter[str] = Counter()
    everything = [record for records in samples.values() for record in records]
    try:
        for topic, own in samples.items():  # whatever is drawn: JSON that is deeper than any parser goes
            for deep in DEEP:
                batch = batch_bytes([record_bytes((own or everything)[0]._replace(value=deep), 0)])
                assert await produce(client, topic, random.randrange(settings.partitions), batch) == 0
        for number in range(batches):
            topic = list(samples)[number % len(samples)]
            own = samples[topic] or everything
            batch = odd(random, own if random.random() < 0.9 else everything)
            code = await produce(client, topic, random.randrange(settings.partitions), batch)
            said["taken" if code == 0 else f"refused ({code})"] += 1
        return said
    finally:
        await client.close()


def events(seed: int, count: int = ORDERS) -> list[SourceEvent]:
    """Orders with everything that can happen to them."""
    return list(generator.events(count, seed, generator.Shares(duplicates=0.02, shuffle=0.1, poison=0.02)))


def run(*arguments: str, codes: Sequence[int] = (0,), report: bool = True) -> Any:
    """A command of ours, which must end well; its JSON document. Raises AssertionError."""
    command = (*arguments, *(["--json"] if report else []))
    done = orders(*command, timeout=300)
    if "were deleted while they were read; run it again" in done.stderr:  # as old as the fuzzer made them
        done = orders(*command, timeout=300)
    said = f"orders {' '.join(arguments)}: {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert done.returncode in codes, said
    assert TRACEBACK not in done.stdout + done.stderr, said
    return json.loads(done.stdout) if report else None


def sound(count: int, seed: int) -> list[SourceEvent]:
    """Events that are all taken in."""
    return list(generator.events(count, seed, generator.Shares(duplicates=0, shuffle=0, poison=0)))


def ids_of(batch: Sequence[SourceEvent]) -> list[str]:
    """The orders that some events make, in either binding."""
    created = [json.loads(event.value or b"") for event in batch if event.topic == names.CREATED]
    return [str(UUID(each.get("data", each)["order_id"])) for each in created]


async def upstream(settings: Settings, folder: Path, seed: int, batches: int) -> dict[str, Any]:
    """The first flood. The topics must be empty."""
    random = Random(seed)
    first, behind = events(seed), sound(BEHIND, seed + 1)
    with worker(folder, "first") as running:
        await send(settings, first)
        await asyncio.to_thread(processed)
        samples = await written(settings, UPSTREAM)
        said = await flood(settings, random, samples, batches)
        await send(settings, behind)
        await asyncio.to_thread(processed)
        for order_id in ids_of(behind):
            assert run("show", order_id)["status"]
        report = run("audit", "--max-findings", "20", codes=(0, 1))
        assert report["clean"], f"seed {seed}: {json.dumps(report, indent=1)[:6000]}"
        assert running.terminate() == 0
    return {"said": dict(said), "dead_letters": report["dead_letters"]}


async def everywhere(settings: Settings, folder: Path, seed: int, batches: int) -> dict[str, Any]:
    """The second flood. The topics hold what the first left."""
    random = Random(seed)
    behind = sound(BEHIND, seed + 2)
    others = [
        spec.name
        for spec in topics.specs(settings, 1)
        if spec.name not in UPSTREAM and spec.name != names.CLOCK
    ]
    samples = await written(settings, others)
    with worker(folder, "second") as running:
        said = await flood(settings, random, samples, batches)
        await send(settings, behind)
        await asyncio.to_thread(processed)
        assert running.terminate() == 0
    with worker(folder, "third") as recovered:  # from the changelog, and nothing else
        await send(settings, sound(BEHIND, seed + 3))
        await asyncio.to_thread(processed)
        for order_id in ids_of(behind):
            assert run("show", order_id)["status"]
        run("audit", codes=(0, 1))
        letters = run("dlq", "list", "--limit", "100000")["dead_letters"]
        for letter in random.sample(letters, min(5, len(letters))):
            run("dlq", "show", f"{letter['partition']}:{letter['offset']}")
        run("dlq", "redrive", "--all")
        await asyncio.to_thread(processed)
        run("whatif", codes=(0, 1))
        run("rebuild", "start")
        run("rebuild", "diff", codes=(0, 1))
        assert recovered.terminate() == 0
    run("repair", codes=(0, 1))
    run("rebuild", "drop")
    run("partitions")
    return {"said": dict(said)}


@contextmanager
def _stack() -> Iterator[tuple[Settings, Path]]:
    """A stack of its own, and settings that lead to it."""
    from stack import Stack
    from tests.stackfixture import place

    with tempfile.TemporaryDirectory(prefix="orders-fuzz-") as folder:
        home = Path(folder)
        with place(home / "stack"):
            servers = Stack.start(home / "stack")
            os.environ |= {**servers.env, "ORDERS_DATA": str(home / "data")}
            get_settings.cache_clear()
            yield get_settings(), home


async def _prepare(settings: Settings) -> None:
    from sinks import migrate

    await topics.delete_all(admin(settings))
    await topics.ensure(settings)
    await migrate.upgrade(settings)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batches", type=int, default=600, help="of each flood")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--minutes", type=float, default=0, help="seed after seed, for as long; 0: one")
    chosen = parser.parse_args()
    seed = secrets.randbelow(1 << 32) if chosen.seed is None else chosen.seed
    until = time.monotonic() + 60 * chosen.minutes
    while True:
        print(f"seed {seed}", file=sys.stderr, flush=True)
        with _stack() as (settings, folder):
            asyncio.run(_prepare(settings))
            try:
                print(json.dumps(asyncio.run(upstream(settings, folder, seed, chosen.batches))), flush=True)
                print(json.dumps(asyncio.run(everywhere(settings, folder, seed, chosen.batches))), flush=True)
            except AssertionError:
                for log in sorted(folder.glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text(errors='replace')[-4000:]}", file=sys.stderr)
                raise
        seed += 1
        if time.monotonic() >= until:
            return


if __name__ == "__main__":
    main()
