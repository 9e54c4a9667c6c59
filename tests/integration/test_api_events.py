"""POST /events on one process of `orders api` with real brokers: what is told is there, what is refused
isn't, and what a hostile body costs. What a request may hold is in tests/unit/test_api_events.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import shlex
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import psutil
from aiokafka import AIOKafkaConsumer, TopicPartition
from cloudevents.core.bindings import kafka as sdk

from api.connection import MOST_KEPT
from api.events import MOST_BODY
from api.keys import changing, made
from contracts.topics import INPUT
from domain.events import decode
from settings import Settings
from stack import ports
from tests.clients.page import FILES, order
from tests.contract.places import Line
from tests.forked import Forked
from tests.integration.test_api_edges import answers, received
from tests.servers import kafka
from tests.waiting import eventually
from tests.workers import ORDERS

EVENT, BATCH = "application/cloudevents+json", "application/cloudevents-batch+json"
LARGE = 100 << 20
"""Bytes of a body that nobody should send."""


class Api(NamedTuple):
    process: Forked
    client: httpx.AsyncClient
    port: int
    key: str

    async def post(self, status: int, content_type: str, body: Any, **headers: str) -> httpx.Response:
        answer = await self.client.post(
            "/events", content=json.dumps(body), headers={"Content-Type": content_type, **headers}
        )
        assert answer.status_code == status, answer.text
        return answer

    async def raw(
        self, *pieces: bytes, head: str = "", key: str | None = None, path: str = "/events"
    ) -> list[int]:
        """The statuses of the answers to a request of these bytes, behind its head."""
        lines = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {EVENT}\r\n{head}"
        sent = [f"{lines}Authorization: Bearer {key or self.key}\r\n\r\n".encode(), *pieces]
        text = await asyncio.to_thread(self.exchange, sent)
        return [status for status, _, _ in answers(text.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n"))]

    def exchange(self, pieces: list[bytes]) -> bytes:
        """What is answered to these bytes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as line:
            try:
                for piece in pieces:
                    line.sendall(piece)
                line.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was refused before it was all there
            return received(line)


class Record(NamedTuple):
    topic: str
    key: bytes
    headers: list[tuple[str, bytes]]
    value: bytes


class Log:
    """What the input topics hold."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer
        self._places = [TopicPartition(topic, partition) for topic in INPUT for partition in (0, 1)]
        self._consumer.assign(self._places)

    async def ends(self) -> dict[TopicPartition, int]:
        ends: dict[TopicPartition, int] = await self._consumer.end_offsets(self._places)
        return ends

    async def records(self) -> dict[tuple[str, int, int], Record]:
        """By topic, partition and offset."""
        ends = await self.ends()
        await self._consumer.seek_to_beginning(*self._places)
        by_place: dict[tuple[str, int, int], Record] = {}
        while len(by_place) < sum(ends.values()):
            for place, records in (await self._consumer.getmany(timeout_ms=1000)).items():
                for each in records:
                    record = Record(place.topic, each.key, list(each.headers), each.value)
                    by_place[place.topic, place.partition, each.offset] = record
        return by_place


@contextmanager
def served(settings: Settings, folder: Path, brokers: str) -> Iterator[Api]:
    keys = {}
    with changing(folder / "keys") as there:
        for scope in ("write", "all"):
            line, keys[scope] = made(scope, [scope])
            there.append(line)
    changes = {"KAFKA": brokers, "API_WRITE": "true", "API_KEY_STORE": str(folder / "keys")}
    port = ports.choose(set())
    process = Forked(
        (*ORDERS, "api", "--port", str(port)),
        folder / "api.log",
        env=os.environ | {f"ORDERS_{name}": value for name, value in changes.items()},
    )
    client = httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}",
        timeout=30,
        headers={"Authorization": f"Bearer {keys['write']}"},
    )
    try:
        yield Api(process, client, port, keys["write"])
        assert "Traceback" not in (folder / "api.log").read_text()
    finally:
        process.kill()
        process.wait()


async def test_events_over_http(fresh: Settings, tmp_path: Path) -> None:
    broker = Line(f"kafka://{fresh.brokers[0]}")
    await broker.mend()
    brokers = broker.url.removeprefix("kafka://")
    await broker.cut()
    try:
        with served(fresh, tmp_path, brokers) as api:
            async with api.client, AIOKafkaConsumer(**kafka(fresh.brokers)) as consumer:
                log = Log(consumer)
                await while_kafka_is_away(api)
                await broker.mend()
                await what_is_told_is_there(api, log)
                await nothing_of_a_refused_request(api, log)
                await the_same_at_once(api, log)
                await hostile_bodies(api, log)
                await more_than_is_kept(api, log)
                await killed_in_the_middle(api, log)
    finally:
        await broker.cut()


async def while_kafka_is_away(api: Api) -> None:
    async def serves() -> bool:
        assert api.process.poll() is None, api.process.out.read_text()
        try:
            return (await api.client.get("/health")).status_code == 200
        except httpx.TransportError:
            return False

    await eventually(serves, "it serves")
    answer = await api.post(503, EVENT, order("away")[0])
    assert answer.json()["type"] == "urn:orders:unavailable"
    assert int(answer.headers["retry-after"]) > 0
    assert await serves(), "reads go on"


async def what_is_told_is_there(api: Api, log: Log) -> None:
    one, *rest = order("told")

    async def takes() -> bool:
        headers = {
            f"ce-{name}": text for name, text in one.items() if name not in ("data", "datacontenttype")
        }
        headers |= {"Content-Type": "application/json"}
        answer = await api.client.post("/events", content=json.dumps(one["data"]), headers=headers)
        assert answer.status_code in (202, 503), answer.text
        accepted.extend(answer.json().get("accepted", ()))
        return answer.status_code == 202

    accepted: list[dict[str, Any]] = []
    await eventually(takes, "Kafka is back")
    accepted += (await api.post(202, EVENT, rest[0])).json()["accepted"]
    accepted += await as_on_the_page(api, rest[1:])
    records = await log.records()
    assert [each["id"] for each in accepted] == [each["id"] for each in (one, *rest)]
    for each, event in zip(accepted, (one, *rest), strict=True):
        record = records[each["topic"], each["partition"], each["offset"]]
        assert record.key.decode() == event["data"]["order_id"]
        read = sdk.from_kafka_event(sdk.KafkaMessage(dict(record.headers), record.key, record.value))
        assert (read.get_id(), read.get_type(), read.get_data()) == (
            event["id"],
            event["type"],
            event["data"],
        )
        assert read.get_extension("traceparent") == event.get("traceparent")
        decode(record.topic, record.headers, record.value)


async def as_on_the_page(api: Api, events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Send what the command of docs/how-to/send-events.md sends, which not every machine has."""
    text = (
        FILES["send_http.sh"].replace("$ORDERS_API", f"http://127.0.0.1:{api.port}").replace("$KEY", api.key)
    )
    command = iter(shlex.split(text.replace("\\\n", " ")))
    assert [next(command), next(command)] == ["curl", "--fail-with-body"]
    url, headers, body = next(command), {}, b""
    for option in command:
        match option, next(command):
            case "-H", header:
                name, _, value = header.partition(": ")
                headers[name] = value
            case "--data-binary", "@events.json":
                body = json.dumps(events).encode()
            case other:
                raise AssertionError(other)
    async with httpx.AsyncClient() as client:
        answer = await client.post(url, headers=headers, content=body)
    assert answer.status_code == 202, answer.text
    accepted: list[dict[str, Any]] = answer.json()["accepted"]
    return accepted


async def nothing_of_a_refused_request(api: Api, log: Log) -> None:
    before = await log.ends()
    batch = order("refused")
    batch[2]["data"]["status"] = "lost"
    answer = await api.post(422, BATCH, batch)
    assert [(each["index"], each["code"], each["path"]) for each in answer.json()["refused"]] == [
        (2, "field_malformed", "$.status")
    ]
    await api.post(413, BATCH, [batch[0]] * 1001)
    await api.post(415, "text/plain", batch[0])
    assert await log.ends() == before


async def the_same_at_once(api: Api, log: Log) -> None:
    batch = [event | {"id": f"{event['id']}-{n}"} for n in range(250) for event in order("at once")]
    given = await asyncio.gather(*(api.post(202, BATCH, batch) for _ in range(2)))
    records = await log.records()
    facts = []
    for answer in given:
        places = answer.json()["accepted"]
        assert [each["id"] for each in places] == [each["id"] for each in batch]
        read = [records[each["topic"], each["partition"], each["offset"]] for each in places]
        facts.append([decode(each.topic, each.headers, each.value).fact for each in read])
    assert facts[0] == facts[1], "natural keys make them one"


async def hostile_bodies(api: Api, log: Log) -> None:
    before, process = await log.ends(), psutil.Process(api.process.pid)
    memory = process.memory_info().rss
    size, chunked = f"Content-Length: {LARGE}\r\n", "Transfer-Encoding: chunked\r\n"
    piece = b"100000\r\n" + b" " * (1 << 20) + b"\r\n"
    for pieces, head in (((b"{" * 1000,), size), ((piece,) * (LARGE >> 20), chunked)):
        for key in (None, "a-stranger-without-a-key"):
            assert await api.raw(*pieces, head=head, key=key) == [413]
    assert process.memory_info().rss < memory + (32 << 20)
    assert await log.ends() == before
    text = json.dumps(order("raw")[0]).encode()
    whole = f"Content-Length: {len(text)}\r\n"
    half = [text[:10], text[10:]]
    assert await api.raw(*half, head=whole) == [202]
    assert await api.raw(*half, head=f"{whole}Expect: 100-continue\r\n") == [202]
    old = f"POST /events HTTP/1.0\r\nContent-Type: {EVENT}\r\nAuthorization: Bearer {api.key}\r\n{whole}"
    sent = await asyncio.to_thread(api.exchange, [f"{old}Expect: 100-continue\r\n\r\n".encode(), text])
    assert sent.startswith(b"HTTP/1.1 202 "), "which a client of 1.0 couldn't read"
    for path in ("/%65vents", "/events?", "http://localhost/%65vents"):
        assert await api.raw(*half, head=whole, path=path) == [202], path
    upgrade = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n"
    assert await api.raw(*half, head=f"{whole}{upgrade}") == [202]
    assert await api.raw(*half, head=whole, key="a-stranger-without-a-key") == [401]
    assert await api.raw(text[:10], head=whole) == [], "cut off"


async def more_than_is_kept(api: Api, log: Log) -> None:
    """Bodies that may be kept, of requests that aren't whole: 64 MiB of all of them, one more is refused, and
    once they have gone others are taken in.
    """
    before, process = await log.ends(), psutil.Process(api.process.pid)
    memory = process.memory_info().rss
    body = b" " * (MOST_BODY - 1)
    head = (
        f"POST /events HTTP/1.1\r\nHost: localhost\r\nContent-Type: {EVENT}\r\n"
        f"Authorization: Bearer {api.key}\r\nContent-Length: {MOST_BODY}\r\n\r\n"
    ).encode()

    def fill() -> list[bytes]:
        """What is answered on the first connections of which something is to be read."""
        with ExitStack() as stack:
            lines = []
            for _ in range(MOST_KEPT // MOST_BODY + 8):
                line = stack.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=30))
                lines.append(line)
                with suppress(OSError):  # it was refused before it was all there
                    line.sendall(head + body)
            ready, _, _ = select.select(lines, [], [], 30)
            return [received(line) for line in ready]

    texts = await asyncio.to_thread(fill)
    assert {status for text in texts for status, _, _ in answers(text)} == {503}
    assert process.memory_info().rss < memory + 2 * MOST_KEPT
    await eventually(partial(taken_in, api), "whoever has gone has no room any more")
    assert sum((await log.ends()).values()) == sum(before.values()) + 1


async def taken_in(api: Api) -> bool:
    answer = await api.client.post(
        "/events", content=json.dumps(order("room")[0]), headers={"Content-Type": EVENT}
    )
    assert answer.status_code in (202, 503)
    return answer.status_code == 202


async def killed_in_the_middle(api: Api, log: Log) -> None:
    """Whoever has an answer has its events in the log, and nobody has half of one."""
    accepted: list[dict[str, Any]] = []

    async def sends(name: int) -> None:
        for n in range(1000):
            batch = [event | {"id": f"{name}-{n}-{i}"} for i, event in enumerate(order("killed") * 20)]
            answer = await api.post(202, BATCH, batch)
            places = answer.json()["accepted"]
            assert [each["id"] for each in places] == [each["id"] for each in batch]
            accepted.extend(places)
            if len(accepted) > 1000:
                api.process.kill()

    ended = await asyncio.gather(*(sends(name) for name in range(4)), return_exceptions=True)
    assert all(isinstance(each, httpx.TransportError) for each in ended), ended
    records = await log.records()
    assert len(accepted) > 1000
    for each in accepted:
        record = records[each["topic"], each["partition"], each["offset"]]
        assert dict(record.headers)["ce_id"].decode() == each["id"]
