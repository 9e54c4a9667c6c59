"""Paused lanes, topics and types on real servers: their records stay, the rest goes on, nothing is lost."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from contracts.topics import CONTROL
from operations.status import StatusReader
from settings import Settings
from streams.lag import LagReader
from tests.integration.test_bulk import an_order, completed, job, ndjson, order_id, submit
from tests.integration.test_health import gauge, probe
from tests.servers import kafka
from tests.unit.builders import at, parcel
from tests.waiting import eventually, until
from tests.workers import audit, finished, orders, processed, worker
from workload import generator
from workload.producer import send

__all__ = ["probe"]

RunCommand = Callable[..., tuple[int, str]]
PAYMENT = (
    f"order_id,payment_id,amount,currency,method,time\n{order_id(1)},{parcel(1)},30.00,EUR,card,{at(2)}\n"
)
EVENTS = list(generator.events(60, 33))


def command(*arguments: str, code: int = 0) -> Any:
    done = orders(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


async def lag(settings: Settings) -> dict[tuple[str, int], int]:
    """Topic and partition -> what is left, where something is."""
    async with LagReader(settings) as reader:
        return {place: position.lag for place, position in (await reader.lag()).items() if position.lag}


def left(settings: Settings) -> dict[tuple[str, int], int]:
    return finished(lag(settings))


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_what_is_paused_stays_whatever_dies_and_drains_when_it_goes_on(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    monkeypatch.setenv("ORDERS_DELIVERY", delivery)
    with ExitStack() as running:
        first = running.enter_context(worker(tmp_path, "w1"))
        assert command("pause", "lane", "1", "--reason", "a trial", "--json")["changed"]
        assert command("pause", "type", "order.paid", "--why", "wrong amounts", "--json")["changed"]
        until(lambda: "type order.paid is paused" in first.text(), "the worker knows")
        await send(fresh, EVENTS)

        def held() -> bool:
            """Lane 0 has everything but payments; of lane 1 nothing is done."""
            now = left(fresh)
            of_lane_0 = {topic for topic, partition in now if partition == 0}
            return of_lane_0 == {"order.paid"} and ("order.created", 1) in now

        until(held, "the rest goes on", 90)
        before = left(fresh)
        first.kill()
        second = running.enter_context(worker(tmp_path, "w2"))
        until(lambda: "lanes 0, 1 open" in second.text(), "another has the lanes", 60)
        assert "lane 1 is paused since" in second.text()
        assert (
            command("log-level", "debug", "--worker", "w2", "--why", "a trial", "--json")["level"] == "debug"
        )
        until(lambda: "the log has the level debug, since" in second.text(), "it logs more")
        assert second.text().count("the log has the level debug") == 1
        await send(fresh, list(generator.events(5, 34)))
        until(lambda: held() and left(fresh) != before, "what is paused stays so for the next worker")
        now = left(fresh)
        assert all(now[place] >= count for place, count in before.items()), "no offset of it moved"
        async with StatusReader(fresh) as reader:

            async def told() -> bool:
                workers = (await reader.look()).workers
                return [each.log_level for each in workers if each.worker.startswith("w2@")] == ["debug"]

            await eventually(told, "its report tells its level")
            status = await reader.look()
        assert [str(each) for each in status.paused] == ["lane 1", "type order.paid"]
        assert [(each.worker, each.level) for each in status.log_levels] == [("w2", "debug")]
        assert command("log-level", "default", "--worker", "w2", "--json")["level"] is None
        until(lambda: "the level of the settings again" in second.text(), "and as before")
        assert [each for each in status.problems if "wrong amounts" in each]
        assert status.lanes[1].problem is not None
        assert re.search("a trial; \\d+ records wait, the oldest for \\d+ s", status.lanes[1].problem)
        assert status.lanes[0].held == status.lanes[0].lag > 0
        waiting = orders("wait", "--timeout", "3")
        assert waiting.returncode == 1
        assert "paused: lane 1, type order.paid" in waiting.stderr
        assert command("resume", "lane", "1", "--json")["changed"]
        assert command("resume", "type", "order.paid", "--json")["changed"]
        processed()
        audit()
        assert second.terminate() == 0
    noted = [
        (each["command"], each["why"])
        for each in command("operations", "--json")["operations"]
        if each.get("why")
    ]
    assert noted == [("pause", "a trial"), ("pause", "wrong amounts"), ("log-level", "a trial")]


async def test_a_paused_worker_is_alive_and_ready_and_says_for_how_long(
    fresh: Settings, probe: Any, tmp_path: Path
) -> None:
    assert orders("pause", "lane", "0", "--reason", "x").returncode == 0
    with worker(tmp_path):
        await send(fresh, EVENTS)

        async def measured() -> bool:
            return (await gauge(probe, "orders_paused_seconds")).get("lane", 0) > 0

        await eventually(measured, "the metric says so")
        assert (await gauge(probe, "orders_paused")) == {"lane": 1.0}
        assert (await probe.get("/live")).status_code == 200
        assert (await probe.get("/ready")).status_code == 200
        assert orders("resume", "lane", "0").returncode == 0

        async def gone() -> bool:
            return not await gauge(probe, "orders_paused")

        await eventually(gone, "and that it goes on")
        processed()


async def test_what_there_is_not_cannot_be_paused(fresh: Settings, run_command: RunCommand) -> None:
    for kind, name, says in (
        ("lane", "2", "there is no lane 2; lanes are 0 to 1"),
        ("lane", "one", "there is no lane one; lanes are 0 to 1"),
        ("topic", "order.payed", "no lane reads a topic order.payed; did you mean order.paid?"),
        ("topic", "orders.dlq", "no lane reads a topic orders.dlq; "),
        ("type", "order.payed", "no lane reads events of type order.payed; did you mean order.paid?"),
    ):
        code, said = run_command("pause", kind, name, "--reason", "x")
        assert (code, said.startswith(f"orders: {says}")) == (2, True), said
        assert run_command("resume", kind, name)[0] == 2
    assert "Missing option '--reason'" in run_command("pause", "lane", "0")[1]
    assert run_command("resume", "lane", "0")[0] == 0
    assert not command("resume", "lane", "0", "--json")["changed"]
    assert command("pause", "lane", "0", "--reason", "first", "--json")["changed"]
    again = command("pause", "lane", "0", "--reason", "second", "--json")
    assert (again["changed"], again["pause"]["why"]) == (False, "first")
    assert CONTROL == "orders.control"


async def test_a_flood_of_refused_records_pauses_its_topic_and_no_other(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DEAD_LETTER_HOLD", "20")

    async def refused(topic: str, count: int) -> None:
        async with AIOKafkaProducer(**kafka(fresh.brokers)) as producer:
            for number in range(count):
                await producer.send_and_wait(topic, b"{", b"x", partition=number % 2)

    with worker(tmp_path, "w1") as running:
        await refused("payment.failed", 20)
        await refused("order.paid", 21)
        until(lambda: "topic order.paid is paused since" in running.text(), "it is paused")
        await send(fresh, EVENTS)
        until(lambda: {topic for topic, _ in left(fresh)} == {"order.paid"}, "the rest goes on")
        [paused] = command("status", "--json", code=1)["paused"]
        assert (paused["kind"], paused["name"]) == ("topic", "order.paid")
        assert paused["by"].startswith("w1@")
        assert "21 of its records were refused within a minute" in paused["why"]
        [noted] = command("operations", "--json")["operations"]
        assert (noted["command"], noted["by"], noted["outcome"]) == ("pause", paused["by"], "done")
        assert orders("resume", "topic", "order.paid").returncode == 0
        processed()
        audit()


async def test_a_paused_bulk_topic_waits_and_the_others_do_not(fresh: Settings, tmp_path: Path) -> None:
    file, paid = tmp_path / "orders.ndjson", tmp_path / "payments.csv"
    file.write_bytes(ndjson(an_order(1)))
    paid.write_text(PAYMENT)
    assert orders("pause", "topic", "order.bulk", "--reason", "a wrong file").returncode == 0
    with worker(tmp_path):
        held = submit("orders", file)["job_id"]
        other = submit("payments", paid)["job_id"]
        await completed(fresh, other)
        assert (await job(fresh, held))["state"] != "completed"
        assert orders("resume", "topic", "order.bulk").returncode == 0
        await completed(fresh, held)
