"""What became of a transaction, and what a lane does when its acknowledgement fails.
The rest needs a broker: tests/integration.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import ClassVar

import pytest
from aiokafka import errors as kafka
from faust.types import TP

from streams.transport.batch import LaneBatch
from streams.transport.errors import Fenced, is_fencing
from streams.transport.lane import Lane, LaneState
from streams.transport.producer import Delivered, LaneProducer, last_offset
from streams.transport.transaction import Settled, settle
from tests.unit.test_lane import Group, end, lane_of, start, until
from tests.unit.test_offset_tracker import recs

A, B, C = (TP(topic, 0) for topic in "abc")


@pytest.mark.parametrize(
    ("committed", "settled"),
    [
        ({A: 5, B: None, C: 7}, Settled.DID_NOT),
        ({A: 6, B: 3, C: 7}, Settled.WENT_IN),
        ({A: 6, B: None, C: 7}, Settled.TAKEN_OVER),  # half of it can't be ours
        ({A: 5, B: 3, C: 7}, Settled.TAKEN_OVER),
        ({A: 8, B: 3, C: 7}, Settled.TAKEN_OVER),
        ({A: 5, B: None, C: 8}, Settled.TAKEN_OVER),  # somebody else took a topic that this batch hasn't got
        ({A: 6, B: 3, C: 8}, Settled.TAKEN_OVER),
        ({A: 4, B: None, C: 7}, Settled.TAKEN_OVER),  # reset by hand
        ({A: None, B: None, C: None}, Settled.TAKEN_OVER),
    ],
)
def test_a_transaction_is_settled_by_all_of_the_lanes_offsets(
    committed: Mapping[TP, int | None], settled: Settled
) -> None:
    assert settle({A: 5, B: None, C: 7}, {A: 6, B: 3}, committed) is settled


def test_the_broker_may_refuse_a_producer_underneath_another_error() -> None:
    outer = kafka.KafkaError("unexpected")
    outer.__cause__ = kafka.InvalidProducerEpoch()
    assert is_fencing(outer)
    assert is_fencing(kafka.ProducerFenced())
    assert not is_fencing(kafka.InvalidTxnState())
    assert not is_fencing(kafka.KafkaConnectionError())


def test_the_last_offset_of_several_batches_is_known_only_if_all_are() -> None:
    assert last_offset([Delivered("t", 0, 4), Delivered("t", 0, 9)]) == 9
    assert last_offset([Delivered("t", 0, 4), Delivered("t", 0, None)]) is None
    assert last_offset([]) is None


class Acknowledging(LaneProducer):
    """Commits as often as the broker lets it: `failures` come first."""

    commits: ClassVar[bool] = True

    def __init__(self, check: Callable[[], None], *failures: Exception) -> None:
        super().__init__(dict, check, lambda why: None, 1.0)
        self.failures = list(failures)
        self.calls: list[tuple[dict[TP, int], dict[TP, int | None]]] = []
        self.notes: list[dict[TP, str]] = []

    async def acknowledge(
        self, offsets: Mapping[TP, int], before: Mapping[TP, int | None], notes: Mapping[TP, str]
    ) -> None:
        self.calls.append((dict(offsets), dict(before)))
        self.notes.append(dict(notes))
        if self.failures:
            failure = self.failures.pop(0)
            self.fenced = isinstance(failure, Fenced)
            raise failure


def acknowledging(lane: Lane) -> Acknowledging:
    assert isinstance(lane.producer, Acknowledging)
    return lane.producer


async def test_an_acknowledgement_that_fails_is_tried_again_without_the_handler() -> None:
    handled: list[LaneBatch] = []

    async def handler(batch: LaneBatch) -> None:
        handled.append(batch)

    failures = (kafka.RequestTimedOutError(), kafka.RequestTimedOutError())
    lane = lane_of(handler, Group(), producer=lambda name, check: Acknowledging(check, *failures))
    a, b = lane.trackers
    producer = acknowledging(lane)
    task = await start(lane)
    a.offer(0, 3, recs(0, 1, 2))
    b.offer(0, 9, recs(4))
    lane.wake()
    await until(lambda: a.done == 3)
    assert len(handled) == 1
    first = ({A: 3, B: 9}, {A: None, B: None})
    assert producer.calls == [first, first, first]
    assert (a.committed, b.committed) == (3, 9)
    b.offer(9, 12, [])  # offsets without a record are acknowledged as well
    lane.wake()
    await until(lambda: b.done == 12)
    assert producer.calls[-1] == ({B: 12}, {A: 3, B: 9})
    assert len(handled) == 1
    await end(lane, task)


async def test_a_note_is_acknowledged_once_though_nothing_moves() -> None:
    async def handler(batch: LaneBatch) -> None:
        raise AssertionError("there is nothing to handle")

    lane = lane_of(handler, Group(), producer=lambda name, check: Acknowledging(check))
    a, b = lane.trackers
    a.committed = a.done = a.next = 4
    b.committed = b.done = b.next = 7
    b.note = b.noted = "older"
    assert lane.note == "older"
    producer = acknowledging(lane)
    task = await start(lane)
    lane.leave_note("behind")
    await until(lambda: b.noted == "behind")
    assert producer.calls == [({B: 7}, {A: 4, B: 7})]
    assert producer.notes == [{B: "behind"}]
    a.offer(4, 6, [])  # goes on with the others
    lane.wake()
    await until(lambda: a.committed == 6)
    lane.leave_note("")
    await until(lambda: b.noted == "")
    assert producer.notes == [{B: "behind"}, {A: ""}, {B: ""}]
    await end(lane, task)


async def test_a_lane_that_is_shut_out_ends_and_leaves_its_batch_unfinished() -> None:
    async def handler(batch: LaneBatch) -> None:
        return

    lane = lane_of(handler, Group(), producer=lambda name, check: Acknowledging(check, Fenced("by another")))
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    await asyncio.wait_for(await start(lane), 5)
    assert len(acknowledging(lane).calls) == 1
    tracker = lane.trackers[0]
    assert (lane.state, tracker.done, tracker.committed) == (LaneState.FENCED, 0, None)
