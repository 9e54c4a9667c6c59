"""What whatif makes of labels, releases and commits that depend on the order in which facts arrived: a lane
takes its records in, in batches as a worker may, and whatif replays them by the brokers' time.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import defaultdict
from collections.abc import AsyncIterator
from itertools import groupby, islice, permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

import domain.fold
from contracts.topics import DERIVED
from operations import whatif
from operations.history import at_hand, fold
from operations.whatif import ARRIVALS, NOTICES, Published, WhatIf, arrivals
from settings import Settings
from streams.folder import BatchFolder
from tests.unit.builders import ORDER, VALID, Data, created, item_id, line, parcel, record

ONE_LANE = Settings(partitions=1)
PLAIN, CANCELLED = "00000000-0000-4000-8000-000000000001", ORDER
UNITS = 8


class Lane:
    """A lane's log, what a worker published of it, and what whatif asks of a Replay."""

    def __init__(self) -> None:
        self.folder = BatchFolder(ONE_LANE)
        self.log: list[Any] = []
        self.published: dict[str, list[Any]] = defaultdict(list)
        self._states: dict[bytes, bytes] = {}

    def send(self, topic: str, order_id: str, data: Data, **headers: str) -> Any:
        """Append a record to the log, later than the others, and return it."""
        offset = len(self.log)
        named, value = record(
            headers.get("rekeyed_topic", topic), {**data, "order_id": order_id}, id=f"event-{offset}"
        )
        added = SimpleNamespace(
            topic=topic,
            partition=0,
            offset=offset,
            timestamp=offset,
            timestamp_type=1,
            key=order_id.encode(),
            value=value,
            headers=[*named, *((name, text.encode()) for name, text in headers.items())],
        )
        self.log.append(added)
        return added

    def take(self, *batch: Any) -> None:
        """Let the worker fold a batch, and publish its output."""
        for output in fold(self.folder, 0, batch, at_hand(self._states)):
            self._states.update(output.states)
            for topic in DERIVED:
                self.published[topic] += (
                    SimpleNamespace(key=each.key, value=each.content(), headers=each.headers)
                    for each in output.out.get(topic, ())
                )

    def compare(self, folder: Path) -> Published:
        """Return what whatif says of the published events. The notices are gone: they would tell much of
        the order of arrival."""
        run = WhatIf(ONE_LANE, folder)

        async def compare() -> None:
            states: dict[bytes, bytes] = {}
            for output in fold(self.folder, 0, self.log, at_hand(states)):
                await run._keep_expected(0, output)
                states.update(output.states)
            await run._compare_published(self, 10)  # type: ignore[arg-type]

        try:
            asyncio.run(compare())
        finally:
            run.close()
        return run.published

    # -- as a Replay -----------------------------------------------------------------------------------------

    @property
    def reader(self) -> Reader:
        return Reader(self)

    async def lag(self) -> Any:
        return {("order.created", 0): None}

    async def reached(self, lag: Any) -> Any:
        return lag, True

    async def catch_up(self, lag: Any) -> None:
        """Everything is replayed."""

    def lane_of(self, raw_id: bytes) -> int:
        return 0

    def ends(self, lag: Any) -> Any:
        return {0: {}}


class Reader:
    """What whatif asks of a HistoryReader."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane

    async def lane(self, start: Any, end: Any) -> AsyncIterator[list[Any]]:
        yield self._lane.log

    async def beginnings(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        ends = await self.ends(partitions)
        return {each: end if each.topic in NOTICES else 0 for each, end in ends.items()}

    async def ends(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {each: len(self._lane.published[each.topic]) for each in partitions}

    async def read(self, partition: TopicPartition, start: int, end: int) -> AsyncIterator[Any]:
        yield self._lane.published[partition.topic][start:end], end


def confirmed(lane: Lane, order_id: str) -> list[Any]:
    """Records of an order whose labels are asked for."""
    return [
        lane.send("order.created", order_id, created(line(1, quantity=UNITS))),
        lane.send("order.paid", order_id, {**VALID["order.paid"], "amount": f"{UNITS * 10}.00"}),
        lane.send("stock.reserved", order_id, VALID["stock.reserved"]),
    ]


def scan(number: int, status: str = "in_transit", quantity: int = 1) -> Data:
    """Data of a parcel's scan."""
    items = [{"item_id": item_id(1), "quantity": quantity}]
    return {**VALID["shipment.updated"], "shipment_id": parcel(number), "status": status, "items": items}


@pytest.fixture
def lane() -> Lane:
    """By the brokers' time a cancellation came before all parcels; the worker had five of eight parcels
    before it, and asked three units back."""
    lane = Lane()
    lane.take(*confirmed(lane, PLAIN))
    lane.take(*confirmed(lane, CANCELLED))
    cancelled = lane.send("order.cancel_requested", CANCELLED, VALID["order.cancel_requested"])
    scans = [lane.send("shipment.updated", CANCELLED, scan(number)) for number in range(UNITS)]
    lane.take(*scans[:5])
    lane.take(cancelled, *scans[5:])
    (release,) = lane.published["stock.release"]
    assert json.loads(release.value)["items"][0]["quantity"] == 3
    return lane


def test_another_order_of_arrival_is_no_difference(lane: Lane, tmp_path: Path) -> None:
    comparison = lane.compare(tmp_path)
    assert (comparison.counts, comparison.by_arrival) == ({}, 1)


@pytest.mark.source
def test_a_changed_rule_about_labels_says_nothing_about_releases(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whatif, "UNEXPLAINED_MOST", 1)
    monkeypatch.setattr(domain.fold, "_ask_labels", lambda *asked: None)
    comparison = lane.compare(tmp_path)
    assert (comparison.counts, comparison.by_arrival) == ({"shipping.label.create": {"unexpected": 2}}, 1)


def test_fewer_orders_of_arrival_are_tried_once_a_changed_rule_is_likely(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whatif, "UNEXPLAINED_MOST", 0)
    assert lane.compare(tmp_path).counts == {"stock.release": {"different": 1}}


@pytest.mark.source
def test_a_changed_rule_about_releases_is_told(
    lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(domain.fold, "_release_units", lambda *asked: None)
    comparison = lane.compare(tmp_path)
    assert (comparison.counts, comparison.by_arrival) == ({"stock.release": {"unexpected": 1}}, 0)


def test_a_commit_depends_on_which_scan_of_its_parcel_came_first(tmp_path: Path) -> None:
    lane = Lane()
    lane.take(*confirmed(lane, CANCELLED))
    direct = lane.send("shipment.updated", CANCELLED, scan(1))
    origin = {"rekeyed_topic": "shipment.updated", "rekeyed_partition": "0", "rekeyed_offset": "7"}
    copied = lane.send("orders.rekeyed", CANCELLED, scan(1, "delivered", quantity=2), **origin)
    lane.take(copied)
    lane.take(direct)
    (commit,) = lane.published["stock.commit"]
    assert json.loads(commit.value)["items"][0]["quantity"] == 2
    comparison = lane.compare(tmp_path)
    assert (comparison.counts, comparison.by_arrival) == ({}, 1)


def test_a_topic_is_often_taken_in_whole_before_another_one() -> None:
    topics = ["order.created", "order.paid", "shipment.updated"]
    records: Any = [
        SimpleNamespace(topic=topic, headers=[("ce_id", b"%d" % number)])
        for number, topic in enumerate(topics * 10)
    ]
    ways = {
        tuple(topic for topic, _ in groupby(record.topic for record in arrival))
        for arrival in islice(arrivals(records, {}, random.Random(1)), ARRIVALS)
    }
    assert ways >= set(permutations(topics))
