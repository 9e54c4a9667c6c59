"""A Postgres that went back in time is told, once, by what was written last."""

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
from streams.transport import OpenLane
from streams.transport.delivery import Stale
from streams.watermark import Watermark
from tables import codec
from tests.unit.test_codec import eventful, typical

A, B, WAITING = (bytes([n]) * 16 for n in (1, 2, 3))


class Rows:
    """Postgres. `versions` raises what it is given, once."""

    def __init__(self, **at: int) -> None:
        self.connections = 1
        self.at = {ids.text(key): version for key, version in ((A, at["a"]), (B, at["b"]))}
        self.errors: list[Exception] = []
        self.asked: list[set[str]] = []

    async def versions(self, order_ids: Sequence[str]) -> dict[str, int]:
        self.asked.append(set(order_ids))
        if self.errors:
            raise self.errors.pop()
        return {order_id: at for order_id, at in self.at.items() if order_id in order_ids and at}


class Lane:
    """A lane that has written three states last, one of them of an order without rows."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.stale = False

    def latest(self, table: object) -> list[bytes]:
        if self.stale:
            raise Stale
        return [A, B, WAITING]

    def get_states(self, table: object, keys: Sequence[bytes]) -> list[bytes]:
        assert list(keys) == [A, B, WAITING]
        return [*map(codec.encode, (typical().order, eventful().order, Order(version=9)))]


VERSIONS = {"a": typical().order.version, "b": eventful().order.version}


def gauge(lane: int) -> float | None:
    return REGISTRY.get_sample_value("orders_rows_behind", {"lane": str(lane)})


async def settled(condition: Any) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watermark, "PAUSE", 0.0)


async def watched(rows: Rows, *lanes: Lane) -> list[asyncio.Task[None]]:
    mark = Watermark(None, rows)
    return [asyncio.ensure_future(mark.watch(cast(OpenLane, lane))) for lane in lanes]


async def test_rows_that_are_as_new_as_the_states_say_nothing(caplog: pytest.LogCaptureFixture) -> None:
    rows, lane = Rows(a=VERSIONS["a"], b=VERSIONS["b"] + 1), Lane(41)
    (task,) = await watched(rows, lane)
    await settled(lambda: rows.asked)
    for _ in range(5):
        await asyncio.sleep(0)
    assert rows.asked == [set(rows.at)]
    rows.connections += 1  # looks again
    await settled(lambda: len(rows.asked) == 2)
    lane.stale = True
    rows.connections += 1
    await task
    assert (caplog.records, gauge(41)) == ([], None)


async def test_a_postgres_that_went_back_is_told_once_and_so_is_its_return(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    rows = Rows(a=VERSIONS["a"] - 1, b=0)
    rows.errors = [ConnectionResetError("not yet")]
    tasks = await watched(rows, Lane(42), Lane(43))
    await settled(lambda: gauge(42) == gauge(43) == 2)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "of the 2 orders that lane 4" in record.getMessage()
    assert "2 have older rows or none; run orders repair --rows, beside the workers" in record.getMessage()
    # The next states of the lane are of other orders: those that were behind are not forgotten.
    monkeypatch.setattr(Lane, "latest", lambda *_: [])
    monkeypatch.setattr(Lane, "get_states", lambda *_: [])
    rows.connections += 1
    before = len(rows.asked)
    await settled(lambda: len(rows.asked) >= before + 2)
    assert (gauge(42), gauge(43)) == (2, 2)
    rows.at = dict.fromkeys(rows.at, 99)
    monkeypatch.setattr(watermark, "AGAIN", 0.0)
    await settled(lambda: gauge(42) is None and gauge(43) is None)
    assert [each.levelname for each in caplog.records] == ["ERROR", "INFO"]
    for task in tasks:
        task.cancel()


async def test_what_it_cannot_do_ends_no_worker(caplog: pytest.LogCaptureFixture) -> None:
    rows = Rows(a=1, b=1)
    rows.errors = [ValueError("a bug")]
    (task,) = await watched(rows, Lane(44))
    await task
    assert "lane 44: its rows aren't compared with its states any more" in caplog.text
