"""A Postgres that went back in time is told by what was written last, until all orders have their rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from contracts import ids
from domain.order import Order
from streams import watermark
from streams.transport.batch import OpenLane
from streams.transport.delivery import Stale
from streams.transport.table import Page
from streams.watermark import Watermark
from tables import codec
from tests.unit.test_codec import typical

A, B, WAITING, *OTHERS = (bytes([n]) * 16 for n in range(1, 10))
VERSION = typical().order.version
STATE, WITHOUT_ROWS = codec.encode(typical().order), codec.encode(Order(version=9))


class Rows:
    """Postgres, with rows of these orders. `versions` raises what it is given, once."""

    def __init__(self, *whole: bytes) -> None:
        self.connections = 1
        self.taken_away = 0
        self.whole = set(map(ids.text, whole))
        self.errors: list[Exception] = []
        self.asked: list[set[str]] = []

    async def versions(self, order_ids: Sequence[str]) -> dict[str, int]:
        self.asked.append(set(order_ids))
        if self.errors:
            raise self.errors.pop()
        return {order_id: VERSION - (order_id not in self.whole) for order_id in order_ids}


class Lane:
    """A lane that has written A, B and an order without rows last, two states a page."""

    def __init__(self, partition: int, note: str | None = "") -> None:
        self.partition = partition
        self.found = note
        self.notes: list[str] = []
        self.stale = False
        self.written_last = [A, B, WAITING]
        self.states = dict.fromkeys([A, B, *OTHERS], STATE) | {WAITING: WITHOUT_ROWS}

    def latest(self, table: object) -> list[bytes]:
        if self.stale:
            raise Stale
        return self.written_last

    def get_states(self, table: object, keys: Sequence[bytes]) -> list[bytes]:
        return [self.states[key] for key in keys]

    def states_after(self, table: object, key: bytes) -> Page:
        keys = [each for each in sorted(self.states) if each > key]
        return Page({each: self.states[each] for each in keys[:2]}, keys[1] if keys[2:] else None)

    def leave_note(self, note: str) -> None:
        self.notes.append(note)


def gauge(lane: int) -> float | None:
    return REGISTRY.get_sample_value("orders_rows_behind", {"lane": str(lane)})


async def settled(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE", "PAGE_PAUSE", "AGAIN", "TELL_AFTER"):
        monkeypatch.setattr(watermark, name, 0.0)


def watched(rows: Rows, *lanes: Lane) -> list[asyncio.Task[None]]:
    mark = Watermark(None, rows)
    return [asyncio.ensure_future(mark.watch(cast(OpenLane, lane))) for lane in lanes]


def end(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()


async def test_rows_that_are_as_new_as_the_states_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rows, lane = Rows(A, B), Lane(41)
    (task,) = watched(rows, lane)
    await settled(lambda: rows.asked)
    for _ in range(5):
        await asyncio.sleep(0)
    assert rows.asked == [{ids.text(A), ids.text(B)}]
    rows.connections += 1  # looks again
    await settled(lambda: len(rows.asked) == 2)
    lane.stale = True
    rows.connections += 1
    await task
    assert (caplog.records, gauge(41), lane.notes) == ([], None, [])


async def test_lanes_are_behind_until_all_their_orders_have_their_rows(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watermark, "TELL_AFTER", 0.2)
    rows, lanes = Rows(), (Lane(42), Lane(43))
    rows.errors = [ConnectionResetError("not yet")]
    tasks = watched(rows, *lanes)
    everything = 2 + len(OTHERS)
    await settled(lambda: gauge(42) == gauge(43) == everything and caplog.records)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "of lanes 42, 43, orders have older rows than they had, or none" in record.getMessage()
    assert "run orders repair --rows, beside the workers" in record.getMessage()
    rows.whole = {ids.text(A), ids.text(B)}  # by traffic
    await settled(lambda: gauge(42) == gauge(43) == len(OTHERS))
    rows.whole |= set(map(ids.text, OTHERS))  # by repair
    await settled(lambda: gauge(42) is None and gauge(43) is None)
    assert [lane.notes for lane in lanes] == [["behind", ""]] * 2
    assert [each.levelname for each in caplog.records] == ["ERROR", "INFO"]
    end(*tasks)


async def test_the_next_owner_looks_at_all_orders_though_the_latest_are_whole(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rows, lane = Rows(A, B), Lane(44, "behind")
    (task,) = watched(rows, lane)
    await settled(lambda: gauge(44) == len(OTHERS) and caplog.records)
    assert "of lanes 44," in caplog.text
    rows.whole |= set(map(ids.text, OTHERS))
    await settled(lambda: gauge(44) is None)
    assert lane.notes == [""]
    end(task)


async def test_a_lane_that_was_left_behind_is_so_before_its_orders_are_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watermark, "PAUSE", 0.01)
    rows, lane = Rows(A, B, *OTHERS), Lane(45, "behind")
    rows.errors = [ConnectionResetError("away")] * 3
    (task,) = watched(rows, lane)
    await settled(lambda: gauge(45) == 1)
    await settled(lambda: lane.notes == [""] and gauge(45) is None)
    assert not rows.errors
    end(task)


@pytest.mark.parametrize("whole", [False, True])
async def test_of_a_lane_that_nobody_had_before_all_orders_are_looked_at(whole: bool) -> None:
    rows, lane = Rows(A, B, *OTHERS[whole ^ 1 :]), Lane(46, None)
    (task,) = watched(rows, lane)
    await settled(lambda: ids.text(OTHERS[-1]) in set().union(*rows.asked))
    await settled(lambda: gauge(46) == (None if whole else 1))
    assert lane.notes == ([] if whole else ["behind"])
    end(task)


async def test_no_more_orders_are_kept_than_are_needed_and_a_new_connection_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watermark, "MOST", 2)
    rows, lane = Rows(), Lane(47)
    (task,) = watched(rows, lane)
    await settled(lambda: gauge(47) == 2 and len(rows.asked) > 3)
    assert set().union(*rows.asked) == {ids.text(A), ids.text(B)}
    rows.whole = {ids.text(each) for each in (A, B, *OTHERS)}
    await settled(lambda: lane.notes == ["behind", ""])
    rows.whole.remove(ids.text(A))
    rows.connections += 1
    await settled(lambda: gauge(47) == 1)
    assert lane.notes == ["behind", "", "behind"]
    end(task)


async def test_what_waited_for_postgres_hides_nothing() -> None:
    rows, lane = Rows(A, B, *OTHERS), Lane(49)
    (task,) = watched(rows, lane)
    await settled(lambda: len(rows.asked) == 1)
    for _ in range(5):
        await asyncio.sleep(0)
    rows.whole = set(map(ids.text, OTHERS))
    lane.written_last = OTHERS[:2]  # by a batch, as soon as there was a connection again
    rows.connections += 1
    await settled(lambda: gauge(49) == 2)
    end(task)


@pytest.mark.parametrize("gone", [False, True])
async def test_once_tables_were_gone_all_orders_are_looked_at(gone: bool) -> None:
    rows, lane = Rows(A, B, *OTHERS), Lane(50)
    (task,) = watched(rows, lane)
    await settled(lambda: len(rows.asked) == 1)
    rows.whole = {ids.text(A), ids.text(B)}  # which traffic has made whole
    rows.taken_away += gone
    rows.connections += 1
    await settled(lambda: len(rows.asked) > 1)
    await settled(lambda: gauge(50) == (len(OTHERS) if gone else None))
    end(task)


async def test_rows_that_are_deleted_are_found_in_turn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watermark, "ROUND", 0.0)
    everything = {A, B, *OTHERS}
    rows, lane = Rows(*everything), Lane(51)
    (task,) = watched(rows, lane)
    await settled(lambda: set().union(*rows.asked) == set(map(ids.text, everything)))
    assert (gauge(51), lane.notes) == (None, [])
    rows.whole = {ids.text(A), ids.text(B)}  # of all, those that have got an event since
    await settled(lambda: gauge(51) == len(OTHERS) and caplog.records)
    assert "rows were deleted" in caplog.text
    rows.whole = set(map(ids.text, everything))
    await settled(lambda: gauge(51) is None)
    assert lane.notes == ["behind", ""]
    end(task)


async def test_what_is_behind_stays_told_between_two_looks_at_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Pages in turn, in which nothing is behind, say nothing of it."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(watermark, "ROUND", 0.0)
    monkeypatch.setattr(watermark, "AGAIN", 3600.0)
    rows, lane = Rows(B, *OTHERS), Lane(56)
    (task,) = watched(rows, lane)
    await settled(lambda: set(map(ids.text, OTHERS)) <= set().union(*rows.asked) and caplog.records)
    for _ in range(50):
        await asyncio.sleep(0)
    assert (gauge(56), lane.notes) == (1, ["behind"])
    assert [each.levelname for each in caplog.records] == ["ERROR"]
    end(task)


async def test_a_worker_of_many_lanes_looks_at_no_more_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "ROUND", 1.0)
    rows, lanes = Rows(A, B, *OTHERS), [Lane(52 + n) for n in range(3)]
    tasks = watched(rows, *lanes)
    await settled(lambda: len(rows.asked) == 3)
    loop = asyncio.get_running_loop()
    now = loop.time()
    monkeypatch.setattr(loop, "time", lambda: now + 2.5)
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(rows.asked) == 3
    monkeypatch.setattr(loop, "time", lambda: now + 3.5)
    await settled(lambda: len(rows.asked) == 6)
    monkeypatch.undo()
    end(*tasks)


async def test_what_it_cannot_do_ends_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows()
    rows.errors = [ValueError("a bug")]
    (task,) = watched(rows, Lane(48))
    await task
    assert "lane 48: its rows aren't compared with its states any more" in caplog.text
