"""A lane's topics as one stream: by the brokers' time, whatever pieces they are fetched in, and never more
than a piece of each at once.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import shutil
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from contracts.record_id import RecordId
from contracts.topics import LANE
from domain.enums import OrderStatus, SuborderStatus
from domain.order import Cancellation, Created, Order, Payment, PublishedSuborder, Waiting
from operations.changelog import same
from operations.history import HistoryReader, MemoryBatch
from operations.replay import LocalStates, rules_of
from operations.whatif import arrivals
from settings import Settings

Times = list[list[int]]
"""Of each topic, the brokers' times of its records."""


class Broker:
    """What HistoryReader asks of a consumer: gives a few records at a time, of some of
    the partitions asked for.
    """

    def __init__(self, times: Times, dice: random.Random, after: int) -> None:
        self.logs = {
            TopicPartition(topic, 0): [
                SimpleNamespace(topic=topic, offset=at, timestamp=time) for at, time in enumerate(of_topic)
            ]
            for topic, of_topic in zip(LANE, times, strict=False)
        }
        self.dice = dice
        self.after = after
        """Offsets behind the last record, as markers of transactions take them."""
        self.at: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.most = 0

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.at = dict.fromkeys(partitions, 0)

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.at[partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        self.paused.add(partition)

    async def position(self, partition: TopicPartition) -> int:
        return self.at[partition]

    async def getmany(
        self, *partitions: TopicPartition, timeout_ms: int
    ) -> Mapping[TopicPartition, list[Any]]:
        assert not self.paused & set(partitions)
        records = {}
        for partition in self.dice.sample(partitions, self.dice.randint(1, len(partitions))):
            log, at = self.logs[partition], self.at[partition]
            some = log[at : at + self.dice.randint(1, 3)]
            self.at[partition] = at + len(some) if at + len(some) < len(log) else len(log) + self.after
            if some:
                records[partition] = some
        return records


def read(broker: Broker, start: Mapping[str, int], end: Mapping[str, int]) -> list[list[tuple[str, int]]]:
    async def run() -> list[list[tuple[str, int]]]:
        reader = object.__new__(HistoryReader)
        reader._consumer = broker
        return [
            [(record.topic, record.offset) for record in some]
            async for some in reader.lane(_logs(start), _logs(end))
        ]

    return asyncio.run(run())


def _logs(positions: Mapping[str, int]) -> dict[str, int]:
    return {f"{topic}/0": offset for topic, offset in positions.items()}


def expected(times: Times, start: Mapping[str, int], end: Mapping[str, int]) -> list[tuple[str, int]]:
    """The same from all records at once."""
    topics = []
    for number, of_topic in enumerate(times):
        latest, keyed = 0, []
        for at in range(start.get(LANE[number], 0), min(end[LANE[number]], len(of_topic))):
            latest = max(latest, of_topic[at])
            keyed.append((latest, LANE[number], at))
        topics.append(keyed)
    return [(topic, at) for _, topic, at in heapq.merge(*topics, key=lambda each: each[0])]


@given(
    times=st.lists(st.lists(st.integers(0, 12), max_size=12), min_size=1, max_size=5),
    seed=st.integers(0, 1 << 20),
    after=st.integers(0, 2),
    cut=st.integers(0, 4),
)
def test_any_pieces_give_one_order(times: Times, seed: int, after: int, cut: int) -> None:
    ends = {LANE[at]: max(0, len(of_topic) + after - cut) for at, of_topic in enumerate(times)}
    starts = {LANE[at]: min(1, end) for at, end in enumerate(ends.values()) if at % 2}
    pieces = read(Broker(times, random.Random(seed), after), starts, ends)
    assert [each for piece in pieces for each in piece] == expected(times, starts, ends)
    assert all(pieces)


def test_a_long_topic_is_not_held_while_another_one_is_late() -> None:
    times = [list(range(1000)), [500]]
    pieces = read(Broker(times, random.Random(1), 0), {}, {LANE[0]: 1000, LANE[1]: 1})
    assert max(map(len, pieces)) <= 4


def test_a_batch_has_a_slice_for_each_run_of_a_topic() -> None:
    records: list[Any] = [
        SimpleNamespace(topic=topic, offset=at) for topic, at in (("a", 0), ("a", 1), ("b", 7), ("a", 2))
    ]
    batch = MemoryBatch(3, records)
    assert [(part.topic, len(part.records), part.to) for part in batch.slices] == [
        ("a", 2, 2),
        ("b", 1, 8),
        ("a", 1, 3),
    ]
    assert batch.partition == 3


# -- states that tell the same -------------------------------------------------------------------------------

ONE, TWO = Payment(1, b"1" * 16, 100, "EUR"), Payment(2, b"2" * 16, 200, "EUR")
GIVEN_UP, CHANGED_MIND = Cancellation(1, None, "late"), Cancellation(1, None, "changed")
CREATED = Created(5, b"u" * 16, None, "EUR", 300, None, [])


def part(live: int) -> PublishedSuborder:
    return PublishedSuborder(SuborderStatus.CONFIRMED, 100, 0, 0, live, 0, 0, 0)


def waiting(*payments: Payment) -> Order:
    origins = {ONE.payment_id: RecordId("order.paid", 0, 1), TWO.payment_id: RecordId("order.paid", 0, 2)}
    whats = [Waiting("payments", at, origins[each.payment_id]) for at, each in enumerate(payments)]
    return Order(2, payments=list(payments), waiting=whats)


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        (Order(3, CREATED, [ONE, TWO]), Order(3, CREATED, [TWO, ONE]), True),
        (Order(3, CREATED, labelled=True, labelled_at=7, due=9), Order(3, CREATED), True),
        (Order(3, CREATED, proposed=1), Order(3, CREATED), True),
        (waiting(ONE, TWO), waiting(TWO, ONE), True),
        (Order(3, CREATED, due=9), Order(3, CREATED, due=8), False),
        (Order(3, CREATED, [ONE, TWO]), Order(3, CREATED, [ONE]), False),
        (Order(3, CREATED, [ONE]), Order(3, CREATED, [TWO]), False),
        (Order(3, CREATED), Order(4, CREATED), False),
        (Order(3, CREATED), Order(3, None), False),
        (
            Order(3, CREATED, status=OrderStatus.CONFIRMED),
            Order(3, CREATED, status=OrderStatus.SHIPPED),
            False,
        ),
        (Order(3, CREATED, suborders=[part(1)]), Order(3, CREATED, suborders=[part(2)]), False),
        (
            Order(3, CREATED, cancellations=[Cancellation(1, None, "a")]),
            Order(3, CREATED, cancellations=[Cancellation(1, None, "b")]),
            False,
        ),
    ],
)
def test_states_that_are_the_same(one: Order, other: Order, equal: bool) -> None:
    assert same(one, other) is equal
    assert same(other, one) is equal


# -- orders of arrival ---------------------------------------------------------------------------------------


def arrived(topic: str, name: bytes) -> Any:
    return SimpleNamespace(topic=topic, headers=[("ce_id", name)])


def test_an_order_of_arrival_is_one_in_which_each_topic_keeps_its_own() -> None:
    records = [
        arrived("order.paid", b"p1"),
        arrived("shipment.updated", b"s1"),
        arrived("order.paid", b"p2"),
        arrived("order.created", b"c"),
    ]
    event_ids = [
        [dict(record.headers)["ce_id"] for record in arrival]
        for arrival in islice(arrivals(records, {}, random.Random(1)), 60)
    ]
    assert event_ids[0] == [b"c", b"p1", b"p2", b"s1"]
    assert event_ids[1] == [b"p1", b"s1", b"p2", b"c"]
    assert all(
        sorted(each) == sorted(event_ids[0]) and each.index(b"p1") < each.index(b"p2") for each in event_ids
    )
    assert len({tuple(each) for each in event_ids}) > 6


def test_what_another_lane_sent_on_may_have_been_taken_in_as_a_copy_only() -> None:
    records = [
        arrived("order.created", b"c"),
        arrived("order.paid", b"p1"),
        arrived("order.paid", b"p2"),
        arrived("orders.rekeyed", b"p1"),
    ]
    event_ids = [
        [dict(record.headers)["ce_id"] for record in arrival]
        for arrival in islice(arrivals(records, {}, random.Random(1)), 60)
    ]
    assert (event_ids[0], event_ids[3]) == ([b"c", b"p2", b"p1"], [b"c", b"p1", b"p2", b"p1"])
    assert {len(each) for each in event_ids} == {3, 4}


def test_it_keeps_to_what_notices_tell() -> None:
    records = [
        arrived("order.created", b"c"),
        arrived("order.paid", b"p"),
        arrived("shipment.updated", b"s"),
        arrived("order.paid", b"p"),
    ]
    pins = {1: b"s", 3: b"p"}
    event_ids = [
        [dict(record.headers)["ce_id"] for record in arrival]
        for arrival in islice(arrivals(records, pins, random.Random(1)), 60)
    ]
    assert {tuple(each) for each in [*event_ids[1:3], *event_ids[3::2]]} == {(b"s", b"c", b"p", b"p")}


def test_settings_count_as_rules() -> None:
    assert rules_of(Settings(payment_deadline=7200)) != rules_of(Settings())
    assert rules_of(Settings(group="other")) == rules_of(Settings())


def test_local_states_are_read_in_order_and_closed_twice(tmp_path: Path) -> None:
    states = LocalStates(tmp_path / "a" / "states")
    states.write({b"%016d" % number: b"s%d" % number for number in (3, 1, 2)}, (7, {"order.paid": 5}))
    states.write({b"%016d" % 1: None, b"<%016d" % 2: b""})
    assert list(states.states(1)) == [{b"%016d" % 2: b"s2"}, {b"%016d" % 3: b"s3"}]
    assert (states.positions(7), states.positions(8)) == ({"order.paid": 5}, {})
    assert states.get([b"%016d" % 3, b"%016d" % 1]) == [b"s3", None]
    states.close()
    shutil.rmtree(tmp_path / "a")
    states.close()
