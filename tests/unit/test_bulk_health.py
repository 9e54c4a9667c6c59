"""What a bulk worker says of itself, and the spans of its parts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from settings import Settings
from sinks.bulk import BulkJobs
from streams.bulk_health import LANE, BulkHealth
from streams.bulk_spans import PartSpans
from streams.control import Control
from tests.unit.test_tracing import TRACES, made, memory, record

__all__ = ["memory"]


def health() -> BulkHealth:
    settings = Settings()
    return BulkHealth(settings, Control(settings, lambda lanes, topics: None))


def refuses(health: BulkHealth, server: str) -> None:
    asked = (health.control if server == "kafka" else health.jobs).availability.asked
    with pytest.raises(ConnectionRefusedError), asked():
        raise ConnectionRefusedError


def test_it_is_ready_in_its_group_while_its_servers_answer() -> None:
    look = health()
    assert look.look().waits == "it isn't in its group yet"
    look.joined = True
    assert look.look() == (None, None, None)
    for server in ("kafka", "postgres"):
        refuses(look, server)
        assert look.look().stuck is None
        assert f"{server} hasn't answered for 0 s" in str(look.look().waits)
    assert sorted(look.report().away) == ["kafka", "postgres"]
    for asked in (look.control.availability, look.jobs.availability):
        with asked.asked():
            pass
    assert look.look().waits is None


def test_a_part_that_fails_is_told_and_a_failure_that_is_over_is_not() -> None:
    look = health()
    look.joined = look.unpacking = True
    look.delivery.failed(LANE, "UndefinedTableError: gone")
    assert look.look().waits == "lane bulk has waited for 0 s: UndefinedTableError: gone"
    assert look.report().waits == "UndefinedTableError: gone"
    look.unpacking = False
    assert look.look().waits is None, "another has the part"
    look.joined = False
    assert "UndefinedTableError" in str(look.look().waits)


async def test_a_statement_under_way_tells_as_much_as_a_ping(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs, asked = BulkJobs(Settings(), "test"), []

    async def once(how: str, statement: str, *_: object) -> None:
        asked.append(statement)

    monkeypatch.setattr(jobs, "_ask_once", once)
    async with jobs._turn:
        await jobs.ping()
    assert asked == []
    await jobs.ping()
    assert asked == ["SELECT 1"]


@pytest.mark.parametrize("error", [None, OSError("user 7")])
def test_a_part_is_a_span(memory: InMemorySpanExporter, error: Exception | None) -> None:
    part = record(7, ("ce_specversion", b"1.0"), ("ce_traceparent", TRACES[0].encode()))
    part = SimpleNamespace(**vars(part), topic="order.bulk", partition=3)
    spans = PartSpans(made(memory), "orders-bulk")

    def work() -> None:
        with spans.part(part), spans.step("publish"):
            if error is not None:
                raise error

    if error is None:
        work()
    else:
        with pytest.raises(OSError, match="user 7"):
            work()
    step, whole = memory.get_finished_spans()
    assert (whole.name, step.name) == ("unpack part", "publish")
    assert step.parent is not None
    assert step.parent.span_id == whole.context.span_id
    assert (whole.status.status_code is StatusCode.ERROR) is (error is not None)
    assert [each.context.trace_id for each in whole.links] == [10]
    said = cast(dict[str, Any], whole.attributes)
    assert said["orders.records"] == ("order.bulk 7-7",)
    assert "user 7" not in f"{whole.to_json()}{step.to_json()}"


def test_without_a_tracer_there_is_no_span() -> None:
    spans = PartSpans(None, "orders-bulk")
    with spans.part(object()), spans.step("publish"):
        pass
