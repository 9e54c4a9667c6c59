"""What is held back stays where it is, and the rest goes on. orders.control says what that is."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from aiokafka.errors import KafkaConnectionError

from errors import OrdersError
from operations.pause import holds
from settings import Settings
from streams import control, level_follower, levels
from streams.control import Note, Pauses, encode, held_by, key_of, span, topic_of
from streams.reports import name_of
from streams.transport.batch import LaneBatch
from streams.transport.held import Held
from streams.transport.intake import Intake
from streams.transport.offset_tracker import OffsetTracker
from tests.unit.test_lane import Group, end, lane_of, start, until
from tests.unit.test_offset_tracker import recs


def intake_of(held: Held, most: int = 10) -> tuple[Intake, OffsetTracker, OffsetTracker]:
    intake = Intake(100, most, 1 << 20, held)
    a, b = OffsetTracker("a", 0, 0, None), OffsetTracker("b", 0, 0, None)
    intake.trackers.extend((a, b))
    return intake, a, b


def test_a_held_topic_is_neither_wanted_nor_taken_nor_counted() -> None:
    held = Held()
    intake, a, b = intake_of(held)
    a.offer(0, 12, recs(*range(12)))
    b.offer(0, 2, recs(0, 1))
    assert intake.wanted() == [], "it is full"
    held.topics = frozenset({"a"})
    assert intake.wanted() == [b], "what is held back leaves room for the others"
    assert [(each.part.topic, each.part.to) for each in intake.take()] == [("b", 2)]
    assert intake.take() == []
    assert (intake.pending_records, intake.oldest, a.count) == (0, None, 12)
    held.topics = frozenset()
    assert [(each.part.topic, each.part.to) for each in intake.take()] == [("a", 12)]


def test_a_stretch_without_records_is_not_taken_of_a_held_topic_either() -> None:
    held = Held()
    held.topics = frozenset({"a"})
    intake, a, _ = intake_of(held)
    a.offer(0, 5, [])
    assert intake.take() == []


async def test_a_held_lane_finishes_its_batch_and_does_nothing_more_until_it_goes_on() -> None:
    release, seen = asyncio.Event(), list[LaneBatch]()

    async def handler(batch: LaneBatch) -> None:
        seen.append(batch)
        await release.wait()

    lane = lane_of(handler, Group())
    held = lane._context.held
    try:
        a = lane.trackers[0]
        a.offer(0, 2, recs(0, 1))
        task = await start(lane)
        await until(lambda: bool(seen))
        held.partitions = frozenset({0})
        lane.look_again()
        a.offer(2, 3, recs(2))
        lane.wake()
        release.set()
        await until(lambda: a.done == 2)
        for _ in range(20):
            await asyncio.sleep(0)
        assert (len(seen), a.done, lane.wanted()) == (1, 2, [])
        held.partitions = frozenset()
        lane.look_again()
        await until(lambda: a.done == 3)
        held.partitions = frozenset({0})
        await end(lane, task)  # a held lane can be closed
    finally:
        held.partitions = frozenset()


def test_what_orders_control_says() -> None:
    pauses = Pauses()
    note = encode(Note("2026-11-30T10:00:00.000Z", "anna@h", "why"))
    later = encode(Note("2026-11-30T11:00:00.000Z", "anna@h", "why"))
    pauses.apply(key_of("topic", "order.paid"), later)
    pauses.apply(key_of("lane", "1"), note)
    pauses.apply(key_of("type", "refund.decided"), later)
    for key, value in (
        (None, note),
        (b"lane:x", note),
        (b"lane:", note),
        (b"moon:1", note),
        (b"\xff", note),
        (b"lane:2", b"{}"),
        (b"lane:2", b"\xff"),
    ):
        pauses.apply(key, value)
    assert [str(each) for each in pauses.now] == ["lane 1", "topic order.paid", "type refund.decided"]
    assert held_by(pauses.now) == (frozenset({1}), frozenset({"order.paid", "orders.decisions"}))
    pauses.apply(b"lane:1", None)
    assert held_by(pauses.now)[0] == frozenset()
    assert pauses.now[0].seconds(1796040000.0) == pytest.approx(3600, abs=1e9)


def test_a_type_is_held_back_by_its_topic() -> None:
    assert topic_of("type", "order.paid") == "order.paid"
    assert holds("type", "order.paid") == "topic order.paid"
    assert holds("type", "deadline.passed") == "topic orders.decisions, with refund.decided"
    assert holds("topic", "orders.decisions") == "topic orders.decisions"


@pytest.mark.parametrize(
    ("seconds", "says"),
    [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3661, "1 h 1 min"), (90000, "1 d 1 h"), (3605, "1 h")],
)
def test_how_long(seconds: float, says: str) -> None:
    assert span(seconds) == says


def test_levels_are_read_beside_pauses_and_what_is_neither_is_left_out() -> None:
    pauses = Pauses()
    note = levels.encode(levels.LevelNote("2026-01-01T00:00:00Z", "ops", "debug", "why"))
    for key, value in (
        (levels.key_of("*"), note),
        (levels.key_of("w1"), note),
        (levels.key_of(""), note),
        (levels.key_of("w2"), b'{"since": "", "by": "", "level": "loud"}'),
        (levels.key_of("w3"), b"\xff"),
        (key_of("lane", "1"), encode(Note("", "", ""))),
        (None, note),
    ):
        pauses.apply(key, value)
    assert [each.worker for each in pauses.levels.now] == ["*", "w1"]
    assert [str(each) for each in pauses.now] == ["lane 1"]
    pauses.apply(levels.key_of("w1"), None)
    pauses.apply(levels.key_of("never"), None)
    assert [each.worker for each in pauses.levels.now] == ["*"]


def test_a_workers_own_level_counts_before_that_of_all() -> None:
    settings = Settings(data=Path("/data/w1"))
    every, own, whole = (levels.Level(name, "debug", "", "", None) for name in ("*", "w1", name_of(settings)))
    assert levels.level_of([every, own, whole], name_of(settings)) is whole
    assert levels.level_of([every, own], name_of(settings)) is own
    assert levels.level_of([every], name_of(settings)) is every
    assert levels.level_of([], name_of(settings)) is None


class Log:
    """orders.control as a follower reads it: each look says what comes next."""

    def __init__(self, *looks: levels.Level | BaseException | None) -> None:
        self.looks = list(looks)
        self.levels: tuple[levels.Level, ...] = ()

    def __call__(self, _: Settings) -> Log:
        return self

    async def __aenter__(self) -> Log:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def paused(self) -> tuple[()]:
        look = self.looks.pop(0)
        if isinstance(look, BaseException):
            raise look
        self.levels = () if look is None else (look,)
        return ()


async def test_a_level_is_followed_with_and_without_kafka(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As the API and the console do it: whatever Kafka does ends nothing."""
    there = iter([False, True, True, True])
    taken: list[str | None] = []

    async def answers(_: Settings) -> bool:
        return next(there)

    def take(level: str | None) -> bool:
        taken.append(level)
        return True

    debug = levels.Level("api", "debug", "2026-01-01T00:00:00Z", "ops", None)
    log = Log(debug, KafkaConnectionError("away"), debug, OrdersError("a file", "mend it"), None, KeyError())
    monkeypatch.setattr(level_follower, "ControlReader", log)
    monkeypatch.setattr(level_follower, "_there", answers)
    monkeypatch.setattr(level_follower, "FOLLOW_SECONDS", 0.0)
    monkeypatch.setattr(control, "set_level", take)
    with pytest.raises(KeyError):  # a bug; the test's way out
        await level_follower.follow_level(Settings(), "api@host")
    assert taken == ["debug", None]
    assert "the log has the level debug, since 2026-01-01T00:00:00Z by ops" in caplog.text


async def test_a_broker_that_takes_no_connection_is_not_there() -> None:
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = Settings(kafka=f"127.0.0.1:{port}")
    assert await level_follower._there(settings)
    server.close()
    await server.wait_closed()
    assert not await level_follower._there(settings)
