"""Dead letters on their way back: after a fix they count, without one they are refused again, and
whatever dies each goes once.
"""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil
import pytest
from aiokafka import AIOKafkaProducer

from contracts.cloudevents import SourceEvent
from contracts.topics import DLQ, INPUT, LANE, REDRIVEN
from operations.dead_letters import DeadLetter, Reader, read
from operations.redrive import RedriveResult, Selection, redrive
from settings import Settings
from tests.forked import Forked
from tests.servers import kafka
from tests.unit.builders import CHECKOUT, ORDER, VALID, record
from tests.waiting import until
from tests.workers import ORDERS, audit, orders, processed, rows, worker
from workload import generator, poison
from workload.producer import send

OLD = """
import os
os.environ["ORDERS_COMPILED"] = "off"  # compiled rules don't look at what stands in their place
from domain import events
from contracts import errors
decode = events.decode
REFUSED = {"order.paid": errors.VERSION_UNKNOWN, "shipment.updated": errors.TYPE_UNKNOWN,
           "stock.reserved": errors.FIELD_MALFORMED, "checkout.completed": errors.FIELD_MALFORMED}
def stricter(topic, *rest):
    if topic in REFUSED:
        raise errors.Refused(REFUSED[topic], "not by this version")
    return decode(topic, *rest)
events.decode = stricter
from cli.main import main
main()
"""
"""A worker of an older version, which doesn't take four of the types."""

FAULTY = """
import asyncio, os, signal, sys
from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
action, moment, name, turn = sys.argv.pop(1).split()
send, send_batch, left = AIOKafkaClient.send, AIOKafkaProducer.send_batch, int(turn)
async def faulty(self, node, request, **options):
    global left
    mine = type(request).__name__ == name
    left -= mine
    if mine and left == 0 and moment == "before":
        os.kill(os.getpid(), getattr(signal, action))
    answer = await send(self, node, request, **options)
    if mine and left == 0 and moment == "after":
        os.kill(os.getpid(), getattr(signal, action))
    return answer
async def slow(self, *args, **options):
    while self._txn_manager.is_in_transaction() and slow.called:
        await asyncio.sleep(0.01)
    slow.called = True
    return await send_batch(self, *args, **options)
slow.called = False
AIOKafkaClient.send = faulty
if "--slow" in sys.argv:
    AIOKafkaProducer.send_batch = slow
from cli.main import main
sys.argv = [each for each in sys.argv if each != "--slow"]
main()
"""
"""A redrive that is killed or stopped at a request.
With --slow it sends its second batch when its transaction has failed.
"""


async def back(dry_run: bool = False, **selection: Any) -> RedriveResult:
    """A redrive in this process."""
    return await redrive(Settings(), Selection(**selection), by="a@test", dry_run=dry_run)


def command(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = orders("dlq", "redrive", "--json", *arguments)
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    outcome: dict[str, Any] = json.loads(done.stdout)
    return outcome


def listed(*arguments: str) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(orders("dlq", "list", "--json", *arguments).stdout)
    return document


async def letters(settings: Settings) -> list[DeadLetter]:
    return [letter async for letter in read(settings)]


async def copies(settings: Settings) -> list[Any]:
    """Every record in the lanes' topics that says that it is a redrive."""
    redriven = []
    async with Reader(settings, INPUT) as reader:
        for topic in INPUT:
            for partition in reader.partitions(topic):
                redriven += [
                    each
                    async for each in reader.records(topic, partition)
                    if "redrive_of" in dict(each.headers)
                ]
    return redriven


def stopped(pid: int) -> bool:
    return bool(psutil.Process(pid).status() == psutil.STATUS_STOPPED)


async def ends(settings: Settings) -> dict[str, int]:
    async with Reader(settings, (*LANE, DLQ, REDRIVEN)) as reader:
        return {topic: reader.count(topic) for topic in (*LANE, DLQ, REDRIVEN)}


async def test_after_a_fix_they_count_as_if_they_had_come_first(fresh: Settings, tmp_path: Path) -> None:
    """An older version refuses some types; a newer one takes later facts of the same orders;
    then the letters go back.
    """
    history = list(generator.events(60, 41, generator.Shares(duplicates=0.1, shuffle=0.3, poison=0)))
    half = len(history) // 2
    astray = next(number for number, event in enumerate(history[:half]) if event.topic == "order.paid")
    history[astray] = history[astray]._replace(key=b"astray")
    headers, value = record("checkout.completed", VALID["checkout.completed"])
    history.insert(0, SourceEvent("checkout.completed", CHECKOUT.encode(), value, headers, 0))
    # Not forked: there the rules are imported already, compiled.
    older = (sys.executable, "-u", "-c", OLD, "worker", "--name", "w1")
    with worker(tmp_path, "old", older) as old:
        await send(fresh, history[:half])
        processed()
        assert old.terminate() == 0
    with worker(tmp_path, "new", (*ORDERS, "worker", "--name", "w1")):
        await send(fresh, history[half:])
        processed()
        before = await letters(fresh)
        fixed = ("version_unknown", "type_unknown", "field_malformed")
        asked = [argument for code in fixed for argument in ("--reason", code)]
        missed = json.loads(orders("audit", "--json").stdout)
        assert {"letters", "rows"} <= set(missed["broken"]), (
            "what the newer version would have taken isn't there"
        )
        outcome = command(*asked)
        refused = {letter.record for letter in before if letter.reason in fixed}
        assert outcome["sent"] == len(refused) > 50
        assert set(outcome["by_reason"]) == set(fixed)
        processed()
        assert audit()["counts"]["redriven"] == len(refused)
        assert (await back(topics=frozenset(("order.paid",)))).states == {
            "redriven": outcome["by_reason"]["version_unknown"]
        }
        assert len((await rows(fresh))["orders_shipment"]) > 20
    by_id = {letter.id: letter for letter in before}
    for copy in await copies(fresh):
        marks = dict(copy.headers)
        letter = by_id[marks["redrive_of"].decode()]
        assert [*copy.headers] == [
            *letter.headers,
            ("redrive_of", letter.id.encode()),
            ("redrive_count", b"1"),
        ]
        assert (copy.topic, copy.partition, copy.key, copy.value) == (
            letter.record.topic,
            letter.record.partition,
            letter.key,
            letter.value,
        )


async def forge(settings: Settings, coordinates: str, origin: list[Any]) -> None:
    """A note without its record, and a second redrive.
    Such a header is anybody's: it is told, not believed.
    """
    note = {"reason": "not_json", "origin": origin, "to": ["order.paid", 0, 0]}
    async with AIOKafkaProducer(**kafka(settings.brokers)) as producer:
        await producer.send_and_wait(
            "order.paid", b"{", partition=0, headers=[("redrive_of", coordinates.encode())]
        )
        await producer.send_and_wait(REDRIVEN, json.dumps(note).encode(), key=b"7:7", partition=0)


def forgeries_are_told() -> None:
    report = json.loads(orders("audit", "--json").stdout)
    assert report["broken"] == {"letters": 2}
    findings = sorted(
        (finding["severity"], finding["expected"].split(" that ")[0]) for finding in report["findings"]
    )
    assert [each for each in findings if each[0] == "broken"] == [
        ("broken", "one redrive of this record"),
        ("broken", "the record of dead letter 7:7"),
    ]
    assert ("report", "a note") in findings


async def test_what_no_fix_has_helped_is_parked(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every way of being wrong, redriven until nothing goes back any more.
    The audit counts each way that a record went.
    """
    monkeypatch.setenv("ORDERS_REDRIVE_LIMIT", "1")
    monkeypatch.setenv("ORDERS_DELIVERY", "exactly_once")
    random = Random(5)
    good = list(generator.events(20, 42, generator.Shares(0, 0, 0)))
    first = next(
        event
        for event in good
        if event.topic == "order.created" and (event.value or b"").startswith(b'{"order_id')
    )
    anchor = poison.Anchor(json.loads(first.value or b""), first.time_us)
    bad = [
        each.make(random, anchor if each.needs_order else None)
        for each in poison.POISONS.values()
        if not each.heavy
    ]
    with worker(tmp_path):
        await send(fresh, good + bad)
        processed()
        refused = Counter(letter.reason for letter in await letters(fresh))
        final = {"order_currency", "order_item", "order_seller", "tombstone"}
        assert final < set(refused)
        expected = Counter({reason: count for reason, count in refused.items() if reason not in final})
        outcome = await back()
        assert (outcome.by_reason, outcome.states) == (
            expected,
            {"final": refused.total() - expected.total()},
        )
        processed()
        assert audit()["counts"]["redriven"] == expected.total()
        outcome = await back()
        assert (outcome.sent, outcome.states["redriven"], outcome.states["parked"]) == (
            0,
            expected.total(),
            expected.total(),
        )
        assert Counter(dict(copy.headers)["redrive_count"] for copy in await copies(fresh)) == {
            b"1": expected.total()
        }
        parked = listed("--state", "parked", "--limit", "1")
        assert (parked["total"], parked["by_state"]["new"]) == (expected.total(), 0)
        assert [(each["state"], each["redrives_before"]) for each in parked["dead_letters"]] == [
            ("parked", 1)
        ]
        coordinates = "{partition}:{offset}".format(**parked["dead_letters"][0])
        assert command("--ids", coordinates, code=1)["parked"] == 1
        monkeypatch.setenv("ORDERS_REDRIVE_LIMIT", "2")
        assert command("--ids", coordinates)["sent"] == 1
        assert [dict(copy.headers)["redrive_count"] for copy in await copies(fresh)].count(b"2") == 1
        shown = json.loads(orders("dlq", "show", coordinates, "--json").stdout)
        assert (shown["state"], shown["redriven"]["count"]) == ("redriven", 2)
        assert "@" in shown["redriven"]["by"]

        await forge(fresh, coordinates, list(shown["origin"].values()))
        processed()
    forgeries_are_told()


async def test_a_dry_run_and_what_is_not_asked_for_change_nothing(fresh: Settings, tmp_path: Path) -> None:
    """Of the letters one came at the limit of its topic, and with two headers more it is beyond."""
    headers, value = record("payment.failed", VALID["payment.failed"])
    paid, _ = record("order.paid", VALID["order.paid"])
    bad = [SourceEvent("order.paid", f"k{n}".encode(), b"{", paid, 0) for n in range(20)]
    await send(
        fresh,
        [
            *bad,
            SourceEvent("payment.failed", ORDER.encode(), value.replace(b"reason", b"season"), headers, 0),
        ],
    )
    async with AIOKafkaProducer(**kafka(fresh.brokers), max_request_size=16 << 20) as producer:
        batch = producer.create_batch()
        batch.append(key=None, value=b"", headers=headers, timestamp=None)
        most = (6 << 20) - batch.size() - 8  # its lengths take more bytes
        await producer.send_and_wait("stock.reserved", Random(1).randbytes(most), headers=headers)
    with worker(tmp_path):
        processed()
    before = await ends(fresh)
    three = frozenset((letter.partition, letter.offset) for letter in (await letters(fresh))[:3])
    selections: tuple[tuple[dict[str, Any], int], ...] = (
        ({"reasons": frozenset(("field_missing",))}, 1),
        ({"reasons": frozenset(("field_missing", "not_json"))}, 22),
        ({"topics": frozenset(("payment.failed",))}, 1),
        ({"topics": frozenset(("order.paid",)), "most": 7}, 7),
        ({"ids": three}, 3),
        ({"ids": three, "reasons": frozenset(("tombstone",))}, 0),
    )
    for selection, expected in selections:
        assert (await back(dry_run=True, **selection)).sent == expected, selection
    said = orders("dlq", "redrive", "--dry-run").stdout
    assert said == "22 would go back (not_json 21, field_missing 1)\n"
    done = orders("dlq", "redrive", "--ids", "0:99999")
    assert (done.returncode, done.stdout, done.stderr) == (
        2,
        "",
        "orders: no dead letter at 0:99999; orders dlq list has them\n",
    )
    assert await ends(fresh) == before
    assert listed()["by_state"] == {"new": 22, "redriven": 0, "parked": 0, "final": 0, "resolved": 0}
    outcome = command("--topic", "payment.failed", "--topic", "stock.reserved", code=1)
    assert (outcome["sent"], len(outcome["too_large"])) == (1, 1)
    assert [copy.topic for copy in await copies(fresh)] == ["payment.failed"]
    assert listed()["by_state"] == {"new": 21, "redriven": 1, "parked": 0, "final": 0, "resolved": 0}


async def test_killed_or_taken_over_anywhere_each_goes_once(fresh: Settings, tmp_path: Path) -> None:
    """Redrives killed at a request, or stopped there until others have come after them: what goes
    back goes once, and is noted.
    """
    headers, _ = record("order.paid", VALID["order.paid"])
    await send(fresh, [SourceEvent("order.paid", f"k{n}".encode(), b"{", headers, 0) for n in range(90)])
    with worker(tmp_path):
        processed()
    known = {letter.id for letter in await letters(fresh)}
    faults: list[tuple[str, ...]] = [
        ("SIGKILL before EndTxnRequest 1",),
        ("SIGKILL after EndTxnRequest 1",),
        ("SIGSTOP before AddPartitionsToTxnRequest 1", "--slow"),
        ("SIGSTOP before AddPartitionsToTxnRequest 2",),
        ("SIGSTOP before ProduceRequest 2",),  # the first one notes that it begins
        ("SIGSTOP before EndTxnRequest 1",),
    ]
    sleepers: list[tuple[tuple[str, ...], Forked]] = []
    try:
        for fault in faults:
            most = (
                ("--max", "10") if fault[0].startswith("SIGKILL") else ("--all",)
            )  # the others send to several partitions
            arguments = (sys.executable, "-c", FAULTY, *fault, "dlq", "redrive", *most)
            log = tmp_path / fault[0]
            started = Forked(arguments, log.with_suffix(".out"), log.with_suffix(".err"))
            if fault[0].startswith("SIGKILL"):
                assert started.wait(60) == -signal.SIGKILL, (fault, started.out.read_text())
                continue
            sleepers.append((fault, started))
            until(partial(stopped, started.pid), f"{fault} stops it", 60)
        outcome = await back()
        assert (outcome.states["redriven"], outcome.sent) == (10, 80), "one of them has come to its end"
        for _, sleeper in sleepers:
            sleeper.send_signal(signal.SIGCONT)
        for fault, sleeper in sleepers:
            code, out, said = sleeper.wait(60), sleeper.out.read_text(), sleeper.err.read_text()
            assert (code, out, said.count("\n")) == (2, "", 1), (fault, said)
            assert said.startswith("orders: another redrive was begun meanwhile and has taken over")
    finally:
        for _, sleeper in sleepers:
            if sleeper.poll() is None:
                sleeper.kill()
    sent = [dict(copy.headers)["redrive_of"].decode() for copy in await copies(fresh)]
    assert len(sent) == len(known)
    assert set(sent) == known
    assert (await back()).states == {"redriven": len(known)}
