"""Topics, sending, waiting and dead letters on a real broker."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from redis.asyncio import Redis

from cli import main
from contracts.cloudevents import SourceEvent
from contracts.topics import DLQ, LANE
from domain.order import Order
from operations.wait import Cache, wait
from settings import Settings, get_settings
from sinks.redis import checkpoint_key
from streams import topics
from streams.lag import LagReader, by_topic, total
from streams.topics import TopicsMissing
from tables import codec
from tests.servers import admin, as_admin, kafka
from tests.stackfixture import execute
from tests.waiting import eventually
from workload import generator, producer


async def read_all(settings: Settings, names: tuple[str, ...]) -> dict[TopicPartition, list[SourceEvent]]:
    """Everything in these topics, each partition in its order."""
    consumer = AIOKafkaConsumer(**kafka(settings.brokers), group_id=None, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(name, number) for name in names for number in range(settings.partitions)]
        ends = {place: end for place, end in (await consumer.end_offsets(places)).items() if end}
        events: dict[TopicPartition, list[SourceEvent]] = {place: [] for place in ends}
        consumer.assign(list(ends))
        while any(len(events[place]) < end for place, end in ends.items()):
            for place, records in (await consumer.getmany(timeout_ms=1000)).items():
                events[place] += [
                    SourceEvent(place.topic, record.key, record.value, list(record.headers), 0)
                    for record in records
                ]
        return events
    finally:
        await consumer.stop()


async def commit(settings: Settings, lag: int = 0) -> None:
    """Commit as a worker does that has handled everything but the last `lag` records of
    order.paid's first partition.
    """
    consumer = AIOKafkaConsumer(**kafka(settings.brokers), group_id=settings.group, enable_auto_commit=False)
    await consumer.start()
    try:
        places = [TopicPartition(name, number) for name in LANE for number in range(settings.partitions)]
        ends = await consumer.end_offsets(places)
        ends[TopicPartition("order.paid", 0)] -= lag
        consumer.assign(places)
        await consumer.commit({place: end for place, end in ends.items() if end})
    finally:
        await consumer.stop()


async def run(*args: str) -> int:
    """A command line in a thread: it starts an event loop of its own."""
    return await asyncio.to_thread(main.run, list(args))


async def test_topics_are_made_once_and_again_after_they_were_deleted(fresh: Settings) -> None:
    expected = topics.specs(fresh, 1)
    assert await topics.ensure(fresh) == []
    assert await topics.missing(fresh) == []
    for _ in range(2):
        assert len(await topics.delete_all(admin(fresh))) == len(expected)
        assert await topics.describe(fresh) == {}
        assert await topics.delete_all(admin(fresh)) == []
        assert len(await topics.missing(fresh)) == len(expected)
        assert await topics.ensure(fresh) == [spec.name for spec in expected]
    states = await topics.describe(fresh)
    for spec in expected:
        state = states[spec.name]
        assert (state.partitions, state.replication) == (spec.partitions, 1)
        assert {config.name: state.configs[config.name] for config in spec.configs} == {
            config.name: config.value for config in spec.configs
        }


async def test_init_at_the_same_time_makes_each_topic_once(fresh: Settings) -> None:
    await topics.delete_all(admin(fresh))
    created = await asyncio.gather(*(topics.ensure(fresh) for _ in range(3)))
    assert Counter(name for names in created for name in names) == Counter(
        spec.name for spec in topics.specs(fresh, 1)
    )


async def test_a_mismatch_says_what_to_do_and_changes_nothing(
    fresh: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("init", "--partitions", "7") == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert f"have {fresh.partitions} partition(s), not 7" in err
    assert f"ORDERS_PARTITIONS={fresh.partitions}" in err
    admin = AIOKafkaAdminClient(**kafka(fresh.brokers))
    await admin.start()
    await admin.alter_configs(
        [ConfigResource(ConfigResourceType.TOPIC, "order.paid", {"retention.ms": "1000"})]
    )
    await admin.close()

    async def known() -> bool:
        return (await topics.describe(fresh))["order.paid"].configs["retention.ms"] == "1000"

    await eventually(known, "the broker knows of the changed retention")
    with pytest.raises(topics.TopicMismatch, match=r"order\.paid has retention\.ms=1000, not -1"):
        await topics.ensure(fresh)
    with pytest.raises(topics.TopicMismatch, match="ORDERS_REPLICATION is 2"):
        await topics.ensure(fresh.model_copy(update={"replication": 2}))


async def test_init_again_is_harmless(fresh: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    await topics.delete_all(admin(fresh))
    assert await run("init", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["topics_created"]) == len(topics.specs(fresh, 1))
    assert await run("init", "--json") == 0
    assert json.loads(capsys.readouterr().out)["topics_created"] == []
    await execute(fresh.postgres.get_secret_value(), "DROP VIEW orders_summary")
    assert await run("init", "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["dropped"] == ["orders_summary"]
    assert err.startswith("orders: warning: the view orders_summary was dropped; to make it again (and grant")
    assert err.count("\n") == 1


async def test_every_event_arrives_once_in_its_partition_and_order(fresh: Settings) -> None:
    events = list(generator.events(300, 1, generator.Shares(0.05, 0.05, 0.05)))
    progress: list[int] = []
    sent = await producer.send(fresh, events, progress=progress.append)
    assert sent.by_topic == Counter(event.topic for event in events)
    assert progress[-1] == sent.records == len(events)
    expected: dict[TopicPartition, list[SourceEvent]] = {}
    for event in events:
        place = TopicPartition(event.topic, producer.partition_of(event.key, fresh.partitions))
        expected.setdefault(place, []).append(event._replace(time_us=0))
    assert await read_all(fresh, tuple(sent.by_topic)) == expected


async def test_a_rate_sends_all_the_same(fresh: Settings) -> None:
    events = list(generator.events(20, 1))
    sent = await producer.send(fresh, events, rate=2000)
    assert (
        sent.records
        == len(events)
        == sum(len(records) for records in (await read_all(fresh, tuple(sent.by_topic))).values())
    )
    assert sent.seconds >= (len(events) - 1) / 2000


async def test_generate_is_repeatable_and_counts(fresh: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run("generate", "--orders", "30", "--seed", "4", "--json") == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == ""
    expected = list(generator.events(30, 4))
    assert document["events"] == len(expected)
    assert document["by_topic"] == Counter(event.topic for event in expected)
    assert await run("generate", "--orders", "30", "--seed", "4") == 0
    assert f"{len(expected):,}" in capsys.readouterr().out
    for records in (await read_all(fresh, tuple(document["by_topic"]))).values():
        assert records[: len(records) // 2] == records[len(records) // 2 :]


async def test_without_topics_the_way_out_is_named(
    fresh: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await topics.delete_all(admin(fresh))
    for args in (("generate",), ("wait",), ("dlq", "list")):
        assert await run(*args) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "run orders init" in err
    async with LagReader(fresh) as reader:
        with pytest.raises(TopicsMissing, match=r"checkout\.completed"):
            await reader.lag()


async def test_lag_counts_from_the_commit_or_from_the_logs_start(fresh: Settings) -> None:
    events = list(generator.events(50, 1))
    async with LagReader(fresh) as reader:
        assert total(await reader.lag()) == 0
        await producer.send(fresh, events)
        lag = await reader.lag()
        assert {topic for topic, _ in lag} == set(LANE)
        assert by_topic(lag) == Counter(event.topic for event in events)
        await commit(fresh, lag=1)
        assert by_topic(await reader.lag()) == {"order.paid": 1}
        assert await reader.members() == 0


async def test_wait_ends_when_all_is_committed(
    fresh: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = list(generator.events(50, 1))
    await producer.send(fresh, events)
    assert await run("wait", "--timeout", "0", "--json") == 1
    document = json.loads(capsys.readouterr().out)
    assert document["lag"] == sum(document["left"].values()) == len(events)
    assert await run("wait", "--timeout", "0.1") == 1
    assert "no worker is running: start one with orders worker" in capsys.readouterr().err
    seen: list[tuple[int, int]] = []
    said: asyncio.Queue[str] = asyncio.Queue()
    monkeypatch.setattr("operations.wait.SAY_AFTER", 0.0)

    def progress(handled: int, left: int) -> None:
        seen.append((handled, left))

    waiting = asyncio.create_task(wait(fresh, timeout=60, progress=progress, say=said.put_nowait))
    assert await said.get() == (
        f"{len(events):,} records are left; no worker is running: start one with orders worker"
    )
    await commit(fresh)
    outcome = await waiting
    assert (outcome.left, outcome.handled) == ({}, len(events))
    assert said.empty(), "once"
    assert (seen[0], seen[-1]) == ((0, len(events)), (len(events), 0))
    assert await run("wait", "--json") == 0
    assert json.loads(capsys.readouterr().out)["left"] == {}


async def test_what_is_sent_meanwhile_is_not_waited_for(fresh: Settings) -> None:
    first = list(generator.events(20, 1))
    # An order.created might be a checkout's.
    later = [event for event in generator.events(20, 2) if event.topic == "order.paid"]
    await producer.send(fresh, first)
    looked: asyncio.Queue[int] = asyncio.Queue()
    waiting = asyncio.create_task(wait(fresh, 60, lambda handled, left: looked.put_nowait(left), so_far=True))
    assert await looked.get() == len(first)
    await commit(fresh)
    await producer.send(fresh, later)
    assert (await waiting).left == {}
    assert sum((await wait(fresh, 0)).left.values()) == len(later)
    assert await run("wait", "--so-far", "--timeout", "0.1") == 1, "by now they were sent before"


async def states(settings: Settings, lane: int, count: int) -> None:
    """Records in a lane's changelog."""
    async with AIOKafkaProducer(**kafka(settings.brokers)) as sender:
        for _ in range(count):
            await sender.send_and_wait(
                settings.changelog_topic, codec.encode(Order()), key=b"k" * 16, partition=lane
            )


async def test_wait_waits_for_the_cache(fresh: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    async def waited(*args: str, code: int) -> tuple[str, str]:
        assert await run("wait", "--timeout", "0.2", *args) == code
        return capsys.readouterr()

    key = checkpoint_key(fresh, 1)
    await states(fresh, 1, 5)
    async with Redis.from_url(as_admin(fresh.redis)) as redis:
        out, _ = await waited("--json", code=0)
        assert json.loads(out)["cache"] == {"waited": True, "complete": True, "behind": {}}, (
            "without a checkpoint nothing is old"
        )
        await redis.set(key, "7 3 2")
        out, _ = await waited("--json", code=1)
        assert json.loads(out)["cache"] == {"waited": True, "complete": False, "behind": {"1": 3}}
        assert json.loads(out)["lag"] == 0
        _, err = await waited(code=1)
        assert "the cache of lanes 1 is behind by 3 records of the changelog" in err
        assert "no worker is running" in err
        assert "--no-cache" in err
        out, _ = await waited("--no-cache", code=0)
        assert "the cache wasn't waited for" in out
        out, _ = await waited("--no-cache", "--json", code=0)
        assert json.loads(out)["cache"] == {"waited": False, "complete": None, "behind": None}

        said: list[str] = []
        heard = asyncio.Event()

        def say(what: str) -> None:
            said.append(what)
            heard.set()

        waiting = asyncio.create_task(wait(fresh, 60, say=say))
        await heard.wait()
        await redis.set(key, "7 4 5")
        outcome = await waiting
    assert outcome.done
    assert outcome.cache == Cache({})
    assert said == [
        "everything is processed; waiting for the cache: the cache of lanes 1 is behind by 3 records of the"
        " changelog; no worker is running: start one with orders worker"
    ]


async def test_wait_says_that_redis_is_away(
    fresh: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_REDIS", "redis://127.0.0.1:1/0")
    get_settings.cache_clear()
    assert await run("wait", "--timeout", "0.2") == 0, "nothing was written yet, so nothing can be old"
    await states(fresh, 1, 1)
    assert await run("wait", "--timeout", "0.2") == 1
    assert "Redis doesn't answer" in capsys.readouterr().err
    assert await run("wait", "--timeout", "0.2", "--json") == 1
    assert json.loads(capsys.readouterr().out)["cache"] == {"waited": True, "complete": False, "behind": None}
    assert await run("wait", "--no-cache") == 0


async def dead_letters(settings: Settings) -> None:
    sender = AIOKafkaProducer(**kafka(settings.brokers))
    await sender.start()
    try:
        for place, (reason, value) in enumerate(
            [
                ("not_json", b"\xff\x1b[2J"),
                ("total_mismatch", b'{"total_amount":"1.00"}'),
                ("tombstone", None),
                ("not_json", b"{"),
            ]
        ):
            headers = [
                ("ce_id", b"one"),
                ("dlq_topic", b"order.paid"),
                ("dlq_partition", b"3"),
                ("dlq_offset", str(40 + place).encode()),
                ("dlq_reason", reason.encode()),
                ("dlq_detail", b"$.here: [bold]wrong"),
                ("dlq_time", f"2026-01-01T00:00:0{place}+00:00".encode()),
            ]
            await sender.send_and_wait(DLQ, value=value, key=b"key", partition=place % 2, headers=headers)
    finally:
        await sender.stop()


async def test_dead_letters_are_listed_newest_last(
    fresh: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run("dlq", "list") == 0
    assert capsys.readouterr().out == "no dead letters\n"
    await dead_letters(fresh)
    assert await run("dlq", "list", "--json", "--limit", "3") == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["total"], document["by_reason"]) == (
        4,
        {"not_json": 2, "total_mismatch": 1, "tombstone": 1},
    )
    assert [letter["origin"]["offset"] for letter in document["dead_letters"]] == [41, 42, 43]
    assert await run("dlq", "list", "--json", "--reason", "not_json", "--topic", "order.paid") == 0
    assert [letter["offset"] for letter in json.loads(capsys.readouterr().out)["dead_letters"]] == [0, 1]
    assert await run("dlq", "list") == 0
    out = capsys.readouterr().out
    assert "tombstone" in out
    assert "a record without a value" in out


async def test_a_dead_letter_is_shown_as_it_came(fresh: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    await dead_letters(fresh)
    assert await run("dlq", "show", "0:0", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert base64.b64decode(document["value"]) == b"\xff\x1b[2J"
    assert document["headers"] == [["ce_id", base64.b64encode(b"one").decode()]]
    assert document["origin"] == {"topic": "order.paid", "partition": 3, "offset": 40}
    assert await run("dlq", "show", "0:0") == 0
    out = capsys.readouterr().out
    assert r"\xff\x1b[2J" in out
    assert "\x1b" not in out
    assert "[bold]wrong" in out
    assert await run("dlq", "show", "order.paid:3:41") == 0
    assert '"total_amount": "1.00"' in capsys.readouterr().out
    assert await run("dlq", "show", "order.paid:3:42") == 0
    assert "a tombstone" in capsys.readouterr().out
    for nowhere in ("0:2", "9:0", "order.paid:3:99"):
        assert await run("dlq", "show", nowhere) == 2
        assert re.search(
            rf"no dead letter (at|of) {re.escape(nowhere)}; orders dlq list has them", capsys.readouterr().err
        )
