"""The step from a part of a bulk job to records: what is wrong with one of its events
is told where that arrives. And whether any may leave, when nothing tells.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError
from prometheus_client import REGISTRY

from contracts import bulk
from contracts.bulk import Unpacked
from contracts.errors import Refused
from contracts.incoming import BulkPart
from domain import events
from settings import Settings
from streams.bulk import TICK, Unpacker
from streams.bulk_health import BulkHealth
from streams.control import Control
from streams.topics import TopicsMissing
from tests.unit.builders import ORDER, VALID

JOB = "00000000-0000-4000-8000-00000000000b"
EVENT = {**VALID["shipment.updated"], "id": "scan-1", "time": "2026-03-01T10:00:00Z"}


def unpacked(*written: bytes) -> list[Unpacked]:
    headers = bulk.headers_of("shipment.bulk", "part-1", "2026-03-01T10:00:00Z", "/tests")
    part = events.decode("shipment.bulk", headers, bulk.encode_part(JOB, 1, 1, list(written)))
    return list(bulk.unpack(part.type, cast(BulkPart, part.fact), part.traceparent))


def verdict(each: Unpacked) -> tuple[str, str]:
    try:
        return "taken in", events.decode("shipment.updated", each.headers, each.value).id
    except Refused as refused:
        return refused.code, refused.detail


def changed(**changes: Any) -> bytes:
    return json.dumps({name: value for name, value in {**EVENT, **changes}.items() if value != "-"}).encode()


MISSING_ID = ("not_cloudevent", "ce_id: missing or empty")
MISSING_TIME = ("field_missing", "ce_time: missing")
NO_TIME = ("field_malformed", "ce_time: not an RFC 3339 time with offset")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (changed(), ("taken in", "scan-1")),
        (changed(id="é" * 1_000), ("taken in", "é" * 1_000)),
        (changed(time="-"), MISSING_TIME),
        (changed(time=None), MISSING_TIME),
        (changed(time=1_772_359_200), NO_TIME),
        (changed(time=""), NO_TIME),
        (changed(time="yesterday"), NO_TIME),
        (changed(id="-"), MISSING_ID),
        (changed(id=None), MISSING_ID),
        (changed(id=7), MISSING_ID),
        (changed(id=""), MISSING_ID),
        (changed(id="-", time="-"), MISSING_ID),
        (changed(id="é" * 1_001), ("field_malformed", "ce_id: longer than 1,000 characters")),
        (changed(id="-", time=[]), MISSING_ID),
        (changed()[:-1] + b',"time":"2026-03-01T11:00:00Z"}', ("taken in", "scan-1")),
        (changed(time=5)[:-1] + b',"time":"2026-03-01T11:00:00Z"}', NO_TIME),
        (changed(order_id="-"), ("field_missing", "Object missing required field `order_id`")),
        (b"7", MISSING_ID),
        (b"[]", MISSING_ID),
    ],
)
def test_an_event_is_judged_where_it_arrives(written: bytes, expected: tuple[str, str]) -> None:
    good, bad = unpacked(changed(), written)
    assert verdict(good) == ("taken in", "scan-1")
    assert (verdict(bad), bad.value) == (expected, written)


def test_the_key_is_the_orders() -> None:
    assert [each.key for each in unpacked(changed(order_id=ORDER.upper()), changed(order_id=5), b"1")] == [
        ORDER.encode(),
        None,
        None,
    ]


def test_no_id_or_time_makes_a_record_twice_as_large() -> None:
    (each,) = unpacked(changed(id="x" * (5 << 20), time="y" * (5 << 20)))
    assert sum(len(value) for _, value in each.headers) < 3_000
    assert verdict(each) == ("field_malformed", "ce_id: longer than 1,000 characters")


async def unpacker_that_sees(look: Callable[[], Any]) -> Unpacker:
    settings = Settings()
    unpacker = Unpacker(settings, BulkHealth(settings, Control(settings, lambda lanes, topics: None)))

    async def looked() -> Any:
        return look()

    unpacker._lag.look = looked  # type: ignore[method-assign]
    unpacker._watching = asyncio.ensure_future(unpacker._watch())
    return unpacker


async def test_what_no_waiting_helps_against_ends_the_unpacking() -> None:
    def look() -> Any:
        raise TopicsMissing("order.created is missing", "run orders init")

    unpacker = await unpacker_that_sees(look)
    with pytest.raises(TopicsMissing):
        await asyncio.wait_for(unpacker._pace_of(500), 5)
    await unpacker.close()


async def test_while_the_lag_cannot_be_read_events_leave_at_the_floor(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def look() -> Any:
        raise KafkaConnectionError("away")

    unpacker = await unpacker_that_sees(look)
    assert await asyncio.wait_for(unpacker._pace_of(500), 5) == int(250 * TICK)
    assert REGISTRY.get_sample_value("orders_bulk_rate") == 250
    assert "the lanes' lag can't be read" in caplog.text
    await unpacker.close()
    assert REGISTRY.get_sample_value("orders_bulk_rate") == 0


def test_readers_of_the_first_version_see_no_kind_that_they_do_not_know() -> None:
    schemas = {
        kind: dict(bulk.completed(JOB, kind, 1, 1, EVENT["time"])[1])["ce_dataschema"].decode()
        for kind in bulk.KINDS
    }
    first = "urn:orders:bulk.completed/v1"
    assert schemas == {**dict.fromkeys(bulk.KINDS, first), "payments": first.replace("v1", "v2")}
