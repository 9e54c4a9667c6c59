"""POST /events without servers: what a request holds, who may send it, what is refused, and what is told.
What brokers do with it is in tests/integration/test_api_events.py.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, TopicAuthorizationFailedError
from cloudevents.core.bindings import http as sdk_http
from cloudevents.core.bindings import kafka as sdk_kafka
from cloudevents.core.v1.event import CloudEvent

from api import sending
from api.app import create_app
from api.binding import Mode, Record, path_of, record, split
from api.events import MOST_BODY, keeps_body
from api.keys import changing, made
from api.sending import Place, Sender
from contracts.errors import Refused
from contracts.topics import INPUT
from domain.events import decode
from queries.errors import Unavailable
from settings import Settings
from tests.unit.builders import CHECKOUT, ORDER, VALID, created, line

JSON, EVENT, BATCH = (
    "application/json",
    "application/cloudevents+json",
    "application/cloudevents-batch+json",
)
PAID = VALID["order.paid"]
DECISION = {"order_id": ORDER, "n": 0, "amount": 1, "cause": "return", "cause_id": ORDER, "units": []}


def event(type_: str = "order.paid", data: Any = PAID, **more: Any) -> dict[str, Any]:
    known = {
        "specversion": "1.0",
        "id": "e1",
        "source": "/shop",
        "type": type_,
        "time": "2026-01-01T10:00:00Z",
    }
    return {**known, "data": data} | more


def binary(type_: str = "order.paid", **more: str | None) -> list[tuple[str, str]]:
    """Headers of an event in binary mode; None leaves one out."""
    attributes: dict[str, Any] = event(type_) | more
    given = {f"ce-{name}": text for name, text in attributes.items() if name != "data" and text is not None}
    return [("Content-Type", JSON), *given.items()]


def as_bytes(headers: Sequence[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), text.encode()) for name, text in headers]


def read(headers: Sequence[tuple[str, str]], body: Any) -> list[Record]:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    mode, values = split(as_bytes(headers), content)
    return [record(mode, as_bytes(headers), value) for value in values]


# -- what is written -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", INPUT)
def test_each_mode_of_http_becomes_the_record_that_the_sdk_sends_to_kafka(type_: str) -> None:
    """The SDK makes the request, and the record."""
    attributes = event(type_, subject="Lämp", traceparent=f"00-{'1' * 32}-{'2' * 16}-01", other="a b%c")
    data = attributes.pop("data") | VALID[type_]
    attributes |= {"time": datetime.fromisoformat(attributes["time"]), "datacontenttype": JSON}
    official = CloudEvent(attributes, data)
    wanted = sdk_kafka.to_binary_event(official)
    for message in (sdk_http.to_binary_event(official), sdk_http.to_structured_event(official)):
        [got] = read(list(message.headers.items()), message.body)
        assert dict(got.headers) == wanted.headers
        assert json.loads(got.value) == json.loads(wanted.value)
        assert (got.topic, got.id) == (type_, "e1")
        assert got.key.decode() == (CHECKOUT if type_ == "checkout.completed" else ORDER)
        decode(got.topic, got.headers, got.value)


@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_a_live_from_to_come_is_refused_as_the_lane_would(mode: Mode) -> None:
    data = VALID["order.created"] | {"live_from": "2026-01-01T00:00:00.001Z"}
    attributes = event("order.created")
    if mode == "binary":
        del attributes["data"]
        headers, value = [(f"ce-{name}", text) for name, text in attributes.items()], json.dumps(data)
    else:
        headers, value = [], json.dumps(attributes | {"data": data})
    given = as_bytes([*headers, ("content-type", JSON)])
    assert record(mode, given, value.encode(), 1_767_225_600_001).id == "e1"
    with pytest.raises(Refused) as refused:
        record(mode, given, value.encode(), 1_767_225_600_000)
    assert path_of(refused.value) == "$.live_from"


@pytest.mark.parametrize("data", ["data", "data_base64"])
def test_a_structured_event_becomes_a_binary_one_that_reads_the_same(data: str) -> None:
    value = json.dumps(PAID)
    sent = json.dumps(event(data=0, flag=True, number=7, none=None) | {"dataschema": "urn:x/v1"}).encode()
    member = value if data == "data" else json.dumps(base64.b64encode(value.encode()).decode())
    sent = sent.replace(b'"data": 0', f'"{data}": {member}'.encode())
    [got] = read([("content-type", EVENT)], sent)
    assert got.value == value.encode(), "byte for byte"
    assert dict(got.headers) == {
        "ce_specversion": b"1.0",
        "ce_id": b"e1",
        "ce_source": b"/shop",
        "ce_type": b"order.paid",
        "ce_time": b"2026-01-01T10:00:00Z",
        "ce_dataschema": b"urn:x/v1",
        "ce_flag": b"true",
        "ce_number": b"7",
        "content-type": b"application/json",
    }
    kafka = [("content-type", EVENT.encode())]
    assert decode("order.paid", got.headers, got.value) == decode("order.paid", kafka, sent)


@pytest.mark.parametrize(
    ("sent", "read_as"),
    [
        ("a%20b", "a b"),
        ('"a b"', "a b"),
        (r'"a\"b"', 'a"b'),
        ("L%C3%A4mp", "Lämp"),
        ("100%", "100%"),
        ("%2525", "%25"),
    ],
)
def test_headers_are_unquoted_and_percent_decoded_once(sent: str, read_as: str) -> None:
    [got] = read(binary(id=sent), PAID)
    assert got.id == read_as
    assert dict(got.headers)["ce_id"] == read_as.encode()


def test_an_id_is_written_in_one_form() -> None:
    [got] = read(binary(), PAID | {"order_id": ORDER.replace("-", "").upper()})
    assert got.key.decode() == ORDER


# -- what is refused -----------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[Any, Any, str, str]] = {
    "no specversion": (binary(specversion=None), event(), "not_cloudevent", "ce_specversion"),
    "a specversion of before": (binary(specversion="0.3"), PAID, "not_cloudevent", "ce_specversion"),
    "no id": (binary(id=None), PAID, "not_cloudevent", "ce_id"),
    "an empty id": (binary(id=""), PAID, "not_cloudevent", "ce_id"),
    "a long id": (binary(id="x" * 1001), PAID, "field_malformed", "ce_id"),
    "an id twice": ([*binary(), ("CE-ID", "e2")], PAID, "not_cloudevent", "ce_id"),
    "an id of no UTF-8": (binary(id="%ff"), PAID, "not_cloudevent", "ce_id"),
    "an extension of no UTF-8": (binary(other="%ff"), PAID, "not_cloudevent", "ce_other"),
    "a name with a dash": (binary(**{"other-one": "x"}), PAID, "not_cloudevent", "ce_other-one"),
    "a second content type": (binary(datacontenttype=JSON), PAID, "not_cloudevent", "ce_datacontenttype"),
    "no type": (binary(type=None), PAID, "not_cloudevent", "ce_type"),
    "no time": (binary(time=None), PAID, "field_missing", "ce_time"),
    "a time without offset": (binary(time="2026-01-01T10:00:00"), PAID, "field_malformed", "ce_time"),
    "an unknown type": (binary("order.teleported"), PAID, "type_unknown", "ce_type"),
    "a part of a bulk job": (binary("order.bulk"), {"job_id": ORDER}, "type_unknown", "ce_type"),
    "a decision": (binary("refund.decided"), DECISION, "type_unknown", "ce_type"),
    "what we publish": (binary("suborder.created"), PAID, "type_unknown", "ce_type"),
    "a topic's name": (binary("orders.decisions"), PAID, "type_unknown", "ce_type"),
    "a version to come": (binary(dataschema="urn:x/v9"), PAID, "version_unknown", "ce_dataschema"),
    "no body": (binary(), b"", "not_json", "$"),
    "half of it": (binary(), b'{"order_id": "', "not_json", "$"),
    "no UTF-8": (binary(), b'{"order_id": "\xff"}', "not_json", "$"),
    "a field that lacks": (binary(), {"order_id": ORDER}, "field_missing", "$"),
    "null": (binary(), PAID | {"method": None}, "field_malformed", "$.method"),
    "a wrong price": (
        binary("order.created"),
        created(line(1), line(2, sku=7)),
        "field_malformed",
        "$.items[1].sku",
    ),
    "a wrong total": (
        binary("order.created"),
        created(total_amount="1.00"),
        "total_mismatch",
        "$.total_amount",
    ),
    "no event": (EVENT, [event()], "not_cloudevent", "$"),
    "an id as a number": (EVENT, event(id=7), "not_cloudevent", "$.id"),
    "no data": (
        EVENT,
        {name: text for name, text in event().items() if name != "data"},
        "field_missing",
        "$.data",
    ),
    "data twice": (EVENT, event() | {"data_base64": "e30="}, "not_cloudevent", "data_base64"),
    "data that is null, and data_base64": (
        EVENT,
        event() | {"data": None, "data_base64": "e30="},
        "not_cloudevent",
        "data_base64",
    ),
    "an integer that no attribute can be": (EVENT, event(tries=2**31), "not_cloudevent", "$.tries"),
    "one of 5,000 digits": (
        EVENT,
        json.dumps(event(tries="many")).replace('"many"', "9" * 5000).encode(),
        "not_cloudevent",
        "$",
    ),
    "no base64": (EVENT, event() | {"data_base64": "?"} | {"data": ...}, "not_cloudevent", "data_base64"),
    "base64 of no JSON": (EVENT, event() | {"data_base64": "AAAA"} | {"data": ...}, "not_json", "$"),
    "data of another kind": (EVENT, event(datacontenttype="text/xml"), "not_cloudevent", "$.datacontenttype"),
    "an event in an event": (EVENT, event(datacontenttype=EVENT), "not_cloudevent", "$.datacontenttype"),
    "an attribute that is an object": (EVENT, event(other={}), "not_cloudevent", "$.other"),
    "an attribute that is a fraction": (EVENT, event(other=0.5), "not_cloudevent", "$.other"),
    "an attribute's name": (EVENT, event(Other="x"), "not_cloudevent", "$.Other"),
    "a bulk part, structured": (EVENT, event("return.bulk"), "type_unknown", "ce_type"),
    "a batch that is none": (BATCH, event(), "not_cloudevent", "$"),
    "a batch of no JSON": (BATCH, b"[", "not_json", "$"),
    "a batch of numbers": (BATCH, [7], "not_cloudevent", "$"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_has_the_code_and_the_path(name: str) -> None:
    headers, body, code, path = REFUSED[name]
    if isinstance(body, dict) and body.get("data") is ...:
        del (body := dict(body))["data"]
    with pytest.raises(Refused) as refusal:
        read([("content-type", headers)] if isinstance(headers, str) else headers, body)
    assert (refusal.value.code, path_of(refusal.value)) == (code, path), refusal.value.detail


# -- over HTTP -----------------------------------------------------------------------------------------------


class Service(NamedTuple):
    """The API with a Kafka that takes everything; `written`: what it got, request by request."""

    client: httpx.AsyncClient
    app: Any
    key: str
    written: list[Sequence[Record]]

    async def post(self, status: int, content_type: str | None, body: Any, **headers: str) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {} if content_type is None else {"Content-Type": content_type}
        answer = await self.client.post(
            "/events", content=content, headers={"Authorization": f"Bearer {self.key}", **given, **headers}
        )
        assert answer.status_code == status, answer.text
        if status >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == status
        return answer


@asynccontextmanager
async def service(folder: Path, *scopes: str, **settings: Any) -> AsyncIterator[Service]:
    store, written = folder / "keys", []
    with changing(store) as keys:
        kept, key = made("shop", scopes or ["write"])
        keys.append(kept)
    app = create_app(Settings(**{"api_key_store": store, "api_write": True, **settings}))

    async def send(records: Sequence[Record]) -> list[Place]:
        written.append(records)
        return [Place(1, 40 + n) for n, _ in enumerate(records)]

    if app.state.sender is not None:
        app.state.sender.send = send
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Service(client, app, key, written)
    finally:
        await app.state.reader.close()


async def test_what_was_accepted_is_told_in_the_order_of_the_request(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        batch = [event(id="a"), event("order.created", created(), id="b")]
        answer = await s.post(202, f"{BATCH}; charset=UTF-8", batch)
        assert answer.json() == {
            "accepted": [
                {"id": "a", "topic": "order.paid", "partition": 1, "offset": 40},
                {"id": "b", "topic": "order.created", "partition": 1, "offset": 41},
            ]
        }
        one = await s.post(202, JSON, PAID, **dict(binary()[1:]))
        assert [each["id"] for each in one.json()["accepted"]] == ["e1"]
        assert (await s.post(202, BATCH, [])).json() == {"accepted": []}
        full = await s.post(202, BATCH, [event(id=f"e{n}") for n in range(1000)])
        assert [each["id"] for each in full.json()["accepted"]] == [f"e{n}" for n in range(1000)]


async def test_of_a_batch_with_a_refused_event_nothing_is_written(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        wrong = PAID | {"amount": "lots"}
        answer = await s.post(422, BATCH, [event(), event(data=wrong), event(), event("order.bulk", {}), 7])
        assert answer.json()["type"] == "urn:orders:events-refused"
        refused = answer.json()["refused"]
        assert [(each["index"], each["code"], each["path"]) for each in refused] == [
            (1, "field_malformed", "$.amount"),
            (3, "type_unknown", "ce_type"),
            (4, "not_cloudevent", "$"),
        ]
        assert "lots" not in answer.text
        whole = await s.post(422, BATCH, event())
        assert [each.keys() for each in whole.json()["refused"]] == [{"code", "path", "detail"}]
        assert not s.written


async def test_what_is_too_much_or_in_another_form(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        await s.post(413, BATCH, [event()] * 1001)
        await s.post(413, EVENT, b" " * (MOST_BODY + 1))
        for unread in (
            None,
            "text/plain",
            "application/cloudevents+avro",
            f"{JSON}; charset=utf-16",
            ";",
            BATCH + "x",
        ):
            await s.post(415, unread, event())
        await s.post(415, EVENT, event(), **{"Content-Encoding": "gzip"})
        await s.post(422, EVENT, b"")
        assert (
            await s.client.post("/events?x=1", headers={"Authorization": f"Bearer {s.key}"})
        ).status_code == 422
        assert not s.written


async def test_a_key_needs_the_scope(tmp_path: Path) -> None:
    async with service(tmp_path, "all", "operate") as s:
        answer = await s.post(403, EVENT, event())
        assert 'scope="write"' in answer.headers["www-authenticate"]
        await s.post(401, EVENT, event(), Authorization="Bearer wrong-but-long-enough")
        get = await s.client.get("/events")
        assert (get.status_code, get.headers["allow"]) == (405, "POST")
        assert not s.written


async def test_without_keys_who_comes_from_here_may_write(tmp_path: Path) -> None:
    async with service(tmp_path, api_key_store=None) as s:
        await s.post(202, EVENT, event())
        await s.post(403, EVENT, event(), Host="evil.example")


async def test_it_is_not_there_unless_it_is_switched_on(tmp_path: Path) -> None:
    async with service(tmp_path, api_write=False) as s:
        await s.post(404, EVENT, event())
        assert "/events" not in (await s.client.get("/openapi.json")).json()["paths"]


async def test_the_openapi_document_tells_of_it(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        document = (await s.client.get("/openapi.json")).json()
        post = document["paths"]["/events"]["post"]
        assert set(post["requestBody"]["content"]) == {JSON, EVENT, BATCH}
        assert set(post["responses"]) == {"202", "401", "403", "413", "415", "422", "429", "503"}
        assert "HTTPValidationError" not in json.dumps(document)
        problem = document["components"]["schemas"]["Problem"]["properties"]["refused"]
        assert "RefusedEvent" in json.dumps(problem)
        assert "RefusedEvent" in document["components"]["schemas"]


# -- the producer --------------------------------------------------------------------------------------------


class Producer:
    """One that answers as `answer` says, or never."""

    def __init__(self, answer: Exception | None) -> None:
        self.answer = answer
        self.stopped = False

    async def partitions_for(self, topic: str) -> set[int]:
        if self.answer is None:
            await asyncio.Event().wait()
        assert self.answer is not None
        raise self.answer

    async def stop(self) -> None:
        self.stopped = True


ONE = Record("e1", "order.paid", ORDER.encode(), b"{}", [])


async def test_a_kafka_that_is_silent_costs_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "WAIT_SECONDS", 0.01)
    sender = Sender(Settings())
    sender._producer = Producer(None)
    for _ in range(3):  # and those that follow don't wait
        with pytest.raises(Unavailable):
            await sender.send([ONE])


@pytest.mark.parametrize(
    ("error", "replaced"), [(KafkaTimeoutError(), False), (TopicAuthorizationFailedError(), True)]
)
async def test_a_producer_that_cannot_go_on_is_replaced(error: Exception, replaced: bool) -> None:
    sender, producer = Sender(Settings()), Producer(error)
    sender._producer = producer
    with pytest.raises(Unavailable):
        await sender.send([ONE])
    assert producer.stopped == replaced


async def test_an_event_larger_than_its_topic_takes() -> None:
    sender = Sender(Settings())
    sender._producer = Producer(MessageSizeTooLargeError())
    for value, index in ((b"x" * Settings().limits.input, 1), (b"{}", None)):
        with pytest.raises(sending.TooLarge) as error:
            await sender.send([ONE, ONE._replace(value=value)])
        assert error.value.index == index


# -- whose body is kept --------------------------------------------------------------------------------------


async def test_only_the_body_of_who_may_write_is_kept(tmp_path: Path) -> None:
    async with service(tmp_path) as s:
        access, writer = s.app.state.access, f"Bearer {s.key}"
        with changing(tmp_path / "keys") as keys:
            kept, reader = made("reader", ["all"])
            keys.append(kept)
        assert keeps_body(access, b"POST", b"/events?x=1", writer) == MOST_BODY
        for target in (b"/%65vents", b"/events#x", b"/events?", b"/%65%76ents?x=%2F"):
            assert keeps_body(access, b"POST", target, writer) == MOST_BODY, target
        for target in (
            b"/events/",
            b"//events",
            b"/%2565vents",
            b"/events%00",
            b"/events%2F",
            b"*",
            b"/",
            b"%",
            b"",
        ):
            assert keeps_body(access, b"POST", target, writer) == 0, target
        assert keeps_body(access, b"POST", b"/events", writer.replace("Bearer", "bearer")) == MOST_BODY
        assert keeps_body(access, b"POST", b"/events", writer.replace("Bearer ", "Bearer   ")) == MOST_BODY
        for method, target, shown in (
            (b"GET", b"/events", writer),
            (b"POST", b"/orders/1", writer),
            (b"POST", b"/events", None),
            (b"POST", b"/events", f"Basic {s.key}"),
            (b"POST", b"/events", f"Bearer {reader}"),
            (b"POST", b"/events", "Bearer a.b.c"),
        ):
            assert keeps_body(access, method, target, shown) == 0
