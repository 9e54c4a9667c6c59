"""kill -9 of one of two workers in the middle, and a worker that is stopped past its session: rows exact
afterwards; with transactions events and dead letters as well.
"""

from __future__ import annotations

import asyncio
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.topics import DECISIONS, DERIVED, DLQ
from settings import Settings
from streams.lag import LagReader
from tests.servers import kafka
from tests.waiting import eventually
from tests.workers import audit, processed, worker
from workload import generator
from workload.producer import send


async def half_way(settings: Settings) -> None:
    """Wait until 500 records are handled."""
    async with LagReader(settings) as reader:

        async def handled() -> bool:
            return sum(position.committed for position in (await reader.lag()).values()) > 500

        await eventually(handled, "500 records are handled")


async def test_kill_9_of_one_of_two_workers_loses_nothing(fresh: Settings, tmp_path: Path) -> None:
    history = list(generator.events(800, 21, generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.005)))
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        sending = asyncio.ensure_future(send(fresh, history))
        await half_way(fresh)
        first.kill()
        await sending
        processed()
        report = audit()
        assert report["counts"]["orders"] >= 800
        with worker(tmp_path, "w1") as again:  # with the local state that the killed one left
            await send(fresh, generator.events(50, 22))
            processed()
            audit()
            assert again.terminate() == 0


async def test_a_worker_stopped_past_its_session_harms_nothing(fresh: Settings, tmp_path: Path) -> None:
    history = list(generator.events(800, 23))
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        sending = asyncio.ensure_future(send(fresh, history))
        await half_way(fresh)
        first.process.send_signal(signal.SIGSTOP)
        try:
            await sending
            processed()  # by the other one alone: the session timeout has passed
        finally:
            first.process.send_signal(signal.SIGCONT)
        await send(fresh, generator.events(100, 24))
        processed()
        audit()


async def test_with_transactions_kill_9_doubles_no_event_and_no_dead_letter(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DELIVERY", "exactly_once")
    history = list(generator.events(600, 25, generator.Shares(duplicates=0, shuffle=0.2, poison=0.01)))
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        sending = asyncio.ensure_future(send(fresh, history))
        await half_way(fresh)
        first.kill()
        await sending
        processed()
        with worker(tmp_path, "w1") as again:
            await send(
                fresh, generator.events(100, 26, generator.Shares(duplicates=0, shuffle=0, poison=0.01))
            )
            processed()
            report = audit()
            assert report["counts"]["orders"] >= 700
            assert again.terminate() == 0
    events = Counter(dict(record.headers)["ce_id"] for record in await _committed(fresh, *DERIVED, DECISIONS))
    assert len(events) > 1000
    assert {event: count for event, count in events.items() if count > 1} == {}
    letters = Counter(
        tuple(dict(record.headers)[f"dlq_{part}"] for part in ("topic", "partition", "offset"))
        for record in await _committed(fresh, DLQ)
    )
    assert letters
    assert {letter: count for letter, count in letters.items() if count > 1} == {}


async def _committed(settings: Settings, *topics: str) -> list[Any]:
    """All records of topics that no transaction has taken back."""
    consumer = AIOKafkaConsumer(
        **kafka(settings.brokers), auto_offset_reset="earliest", isolation_level="read_committed"
    )
    await consumer.start()
    try:
        partitions = [
            TopicPartition(topic, number) for topic in topics for number in range(settings.partitions)
        ]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        records: list[Any] = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for batch in (await consumer.getmany(timeout_ms=200)).values():
                records += batch
        return records
    finally:
        await consumer.stop()
