"""How long records wait: counted by lanes, noted beside the offsets, read from there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.structs import TopicPartition
from faust.types import TP

from contracts import bulk
from streams.pipeline import interactive
from streams.transport.records import Slice
from streams.transport.transaction import TransactionalAiokafkaConnection
from streams.transport.waits import SAMPLE, WAITS, Totals, Waited, Waits, awaited, read_notes
from tests.unit.builders import ORDER

HEADERS = [("ce_id", b"1"), ("ce_source", b"/checkout")]


def rec(topic: str, headers: list[tuple[str, Any]]) -> Any:
    return SimpleNamespace(topic=topic, headers=headers)


def test_the_last_note_of_each_process_counts() -> None:
    one, other = Waits(), Waits()
    before = one.note()
    one.add(3, 1, 0.25)
    one.add(0, 2, 1.5)
    assert sorted(read_notes([one.note(), before, other.note(), before]).values()) == [
        Totals(Waited(), Waited()),
        Totals(Waited(3, 750), Waited(3, 3250)),
    ]


@pytest.mark.parametrize("other", ["", "waits", "waits 1 2 3 4 5", f"waits {'a' * 16} 1 2 3 -4", "a" * 4096])
def test_what_is_no_note_is_left_out(other: str) -> None:
    assert read_notes([other]) == {}


def test_of_a_large_batch_a_sample_is_asked() -> None:
    asked = []

    def counts(record: Any) -> bool:
        asked.append(record)
        return bool(record % 4 == 0)

    assert awaited([Slice("a", range(3), 3), Slice("b", (), 3)], counts) == 1  # type: ignore[arg-type]
    assert asked == [0, 1, 2]
    del asked[:]
    assert awaited([Slice("a", range(2001), 2001)], lambda record: counts(record // 3)) > 0  # type: ignore[arg-type, operator]
    assert len(asked) <= SAMPLE


@pytest.mark.parametrize(
    ("record", "waits"),
    [
        (rec("order.created", HEADERS), True),
        (rec("order.created", []), True),
        (rec("order.created", [("ce_source", None)]), True),
        (rec("order.created", [("ce_source", b"/bulk/1"), ("ce_id", b"1")]), False),
        (rec("orders.decisions", HEADERS), False),
        (rec("orders.rekeyed", HEADERS), False),
    ],
)
def test_somebody_waits_for_what_is_no_event_of_a_job(record: Any, waits: bool) -> None:
    assert interactive(record) is waits


def test_an_unpacked_event_is_one_of_a_job() -> None:
    part: Any = SimpleNamespace(job_id=ORDER, events=[b"{}"])
    (each,) = bulk.unpack("order.bulk", part, None)
    assert bulk.is_unpacked(each.headers)


async def test_a_transaction_notes_them_with_its_offsets() -> None:
    sent = []

    async def send(offsets: Any, group: str) -> None:
        sent.append((offsets, group))

    class Connection(TransactionalAiokafkaConnection):
        def __init__(self) -> None:
            self._producer = SimpleNamespace(send_offsets_to_transaction=send)

    await Connection().send_offsets({TP("a", 1): 7}, "g", {})
    assert sent == [({TopicPartition("a", 1): (7, WAITS.note())}, "g")]
