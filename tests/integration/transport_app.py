"""The app that the transport's tests run as processes of their own: counts records per key.

State of a key, little endian: version (= records counted), then for each topic the highest offset
counted. Every counted record is also published to the topic `out`, so that a test can compare input,
output, changelog and store.

Environment: ORDERS_*, COUNTER_TOPICS (comma separated), COUNTER_OUT, and faults: COUNTER_LOSE (probability
that a fetched list is thrown away), COUNTER_FAIL (the first n batches of a process fail once with a
connection error), COUNTER_DOWN (all do), COUNTER_BUG (a key whose record raises a KeyError), COUNTER_SLOW
(seconds that each batch takes), COUNTER_MAX (records a batch), COUNTER_NOTES (the topic of an ordinary
agent, which copies its values to `{topic}.copies`, raises at `bad` and never returns from `stuck`),
COUNTER_BREAK ("stop before EndTxn", "kill after EndTxn": on SIGUSR1 the process stops or kills itself at
the next such request of a lane).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import struct
import sys
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaError

from settings import Settings
from streams.transport.agents import Batches
from streams.transport.app import BatchApp
from streams.transport.batch import LaneBatch
from streams.transport.consumer import Consumer
from streams.transport.consumer_thread import Fetched
from streams.transport.records import OutRecord
from streams.transport.table import StateTable
from streams.transport.worker import run_worker

VERSION = struct.Struct("<q")


def version_of(raw: bytes) -> int:
    return int(VERSION.unpack_from(raw)[0])


def pack(counted: int, seen: dict[int, int], topics: int) -> bytes:
    return struct.pack(f"<{1 + topics}q", counted, *(seen.get(number, -1) for number in range(topics)))


def unpack(raw: bytes | None, topics: int) -> tuple[int, dict[int, int]]:
    if raw is None:
        return 0, {}
    counted, *seen = struct.unpack(f"<{1 + topics}q", raw)
    return counted, dict(enumerate(seen))


def make_app(
    settings: Settings, topics: tuple[str, ...], out: str, **options: Any
) -> tuple[BatchApp, StateTable]:
    app = BatchApp(settings, writes=(out,), **options)
    table = app.state_table("state", version_of)
    order = {topic: number for number, topic in enumerate(topics)}
    down = "COUNTER_DOWN" in os.environ
    failures = int(os.environ.get("COUNTER_FAIL", "0"))
    bug = os.environ.get("COUNTER_BUG", "").encode()
    slow = float(os.environ.get("COUNTER_SLOW", "0"))
    failed: set[tuple[int, int]] = set()

    @app.agent(app.batches(topics, max_records=int(os.environ.get("COUNTER_MAX", "500"))))
    async def counter(batches: Batches) -> None:
        async for batch in batches:
            await count(batch)

    async def count(batch: LaneBatch) -> None:
        first = (batch.partition, batch.slices[0].to)
        if down or (len(failed) < failures and first not in failed):
            failed.add(first)
            raise ConnectionError("injected")
        keys = list(dict.fromkeys(record.key or b"" for part in batch.slices for record in part.records))
        states = dict(
            zip(keys, (unpack(raw, len(topics)) for raw in batch.get_states(table, keys)), strict=True)
        )
        effects: list[OutRecord] = []
        for part in batch.slices:
            number = order[part.topic]
            for record in part.records:
                key = record.key or b""
                if bug and key == bug:
                    raise KeyError(bug)
                counted, seen = states[key]
                if record.offset > seen.get(number, -1):
                    seen[number] = record.offset
                    states[key] = (counted + 1, seen)
                effects.append(
                    OutRecord(key, f"{number} {batch.partition} {record.offset}".encode(), [("n", b"1")])
                )
        if slow:
            await asyncio.sleep(slow)
        if not batch.work:  # called again, it must not publish again
            await batch.publish({out: effects})
            batch.work = True
        await batch.write_table(table, {key: pack(*states[key], len(topics)) for key in keys})

    return app, table


def add_ordinary_agent(app: BatchApp, topic: str) -> None:
    """See COUNTER_NOTES."""
    copies = app.topic(f"{topic}.copies", value_type=bytes)

    @app.agent(app.topic(topic, value_type=bytes))
    async def note(values: Any) -> None:
        async for value in values:
            if value == b"bad":
                raise ValueError("injected")
            if value == b"stuck":
                await asyncio.Event().wait()
            await copies.send(value=value)


def lose_lists(probability: float) -> None:
    """A fetched list is thrown away, as a fetch cancelled by a rebalance does it."""

    def losing(method: Any) -> Any:
        async def wrapped(self: Consumer, fetched: Fetched) -> None:
            if random.random() >= probability:
                await method(self, fetched)

        return wrapped

    Consumer._offer = losing(Consumer._offer)  # type: ignore[method-assign]
    Consumer._recover = losing(Consumer._recover)  # type: ignore[method-assign]


def break_at(fault: str) -> None:
    """See COUNTER_BREAK. A request that the process was stopped before goes out once it is
    resumed; the answer is logged.
    """
    what, when, name = fault.split()
    number = {"stop": signal.SIGSTOP, "kill": signal.SIGKILL}[what]
    armed: list[bool] = []
    signal.signal(signal.SIGUSR1, lambda *_: armed.append(True))
    send = AIOKafkaClient.send

    async def breaking(self: Any, node_id: int, request: Any, **options: Any) -> Any:
        here = bool(armed) and type(request).__name__ == f"{name}Request" and "-lane-" in self._client_id
        if here:
            armed.clear()
        if here and when == "before":
            logging.info("%s before %s", what, name)
            os.kill(os.getpid(), number)
        try:
            response = await send(self, node_id, request, **options)
        except KafkaError as exc:
            if here:
                logging.info("the answer to %s: none, %r", name, exc)
            raise
        if here:
            logging.info("the answer to %s: %r", name, response)
        if here and when == "after":
            logging.info("%s after %s", what, name)
            os.kill(os.getpid(), number)
        return response

    AIOKafkaClient.send = breaking


def main() -> int:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s %(message)s"
    )
    lose = float(os.environ.get("COUNTER_LOSE", "0"))
    if lose:
        lose_lists(lose)
    fault = os.environ.get("COUNTER_BREAK")
    if fault:
        break_at(fault)
    app, _ = make_app(
        Settings(),
        tuple(os.environ["COUNTER_TOPICS"].split(",")),
        os.environ["COUNTER_OUT"],
        metadata_age=1.0,
    )
    if notes := os.environ.get("COUNTER_NOTES"):
        add_ordinary_agent(app, notes)
    code = run_worker(app)
    stats = app.stats()
    print(
        f"rewinds={stats.rewinds} retries={stats.retries} records={stats.records}"
        f" recovered={stats.recovered}",
        flush=True,
    )
    return code


if __name__ == "__main__":
    sys.exit(main())
