"""What `orders api`, `orders console` and a worker tell of themselves: probes, metrics, spans over OTLP."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from aiokafka import AIOKafkaProducer
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from api.connection import MOST_HEAD
from settings import Settings
from stack import ports
from tests.chaos.proxy import Proxy
from tests.clients.page import order
from tests.forked import Forked
from tests.servers import kafka
from tests.unit.builders import record
from tests.waiting import eventually
from tests.workers import ORDERS, orders, worker

TRACE: Final = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER: Final = "00f067aa0ba902b7"
TRACEPARENT: Final = {"traceparent": f"00-{TRACE}-{CALLER}-01"}
NOBODY: Final = "5c0ffee0-0000-4000-8000-000000000001"
EVENT: Final = "application/cloudevents+json"


class Span:
    """A span that came in, with what it has of the resource."""

    def __init__(self, service: str, span: Any) -> None:
        self.service = service
        self.name: str = span.name
        self.id: str = span.span_id.hex()
        self.trace: str = span.trace_id.hex()
        self.parent: str = span.parent_span_id.hex()
        self.links = {(each.trace_id.hex(), each.span_id.hex()) for each in span.links}
        self.attributes = {each.key: each.value for each in span.attributes}
        self.text = str(span)


class Receiver:
    """A receiver of OTLP over HTTP: what it got, by the protocol's own messages."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for each in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {one.key: one.value.string_value for one in each.resource.attributes}
                    for scope in each.scope_spans:
                        spans.extend(Span(about["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    running = Receiver()
    thread = threading.Thread(target=running.server.serve_forever)
    thread.start()
    yield running
    running.server.shutdown()
    thread.join()
    running.server.server_close()


class Service:
    """One that serves over HTTP: `client` asks it, `probe` its metrics port."""

    def __init__(self, name: str, folder: Path, environ: dict[str, str]) -> None:
        self.name = name
        port, metrics = ports.choose(set()), ports.choose(set())
        environ = os.environ | environ | {"ORDERS_METRICS_PORT": str(metrics)}
        self.log = folder / f"{name}.log"
        self.process = Forked((*ORDERS, name, "--port", str(port)), self.log, env=environ)
        self.client = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30)
        self.probe = httpx.AsyncClient(base_url=f"http://127.0.0.1:{metrics}", timeout=30)

    async def says(self, path: str, code: int, text: str) -> bool:
        """Whether a probe answers so."""
        assert self.process.poll() is None, self.log.read_text()
        try:
            answer = await self.probe.get(path)
        except httpx.TransportError:
            return False
        return answer.status_code == code and text in answer.text

    async def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """A metric by the values of its labels in the order of their names, `service` left out."""
        text = (await self.probe.get("/metrics")).text
        families = text_string_to_metric_families(text)
        return {
            tuple(value for label, value in sample.labels.items() if label != "service"): sample.value
            for family in families
            for sample in family.samples
            if sample.name == name
        }


@asynccontextmanager
async def service(name: str, folder: Path, environ: dict[str, str]) -> AsyncIterator[Service]:
    running = Service(name, folder, environ)
    try:
        async with running.client, running.probe:
            await eventually(lambda: running.says("/ready", 200, "ready\n"), f"{name} is ready", 120)
            yield running
        running.process.terminate()
        assert await asyncio.to_thread(running.process.wait, 45) == 0, "the line to Postgres works meanwhile"
    finally:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@contextmanager
def working(folder: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str]) -> Iterator[None]:
    """A worker, ended in order at the end, so that its spans are sent."""
    with monkeypatch.context() as patched:
        for name, value in environ.items():
            patched.setenv(name, value)
        with worker(folder) as running:
            yield
            assert running.terminate() == 0


async def test_requests_and_batches_are_told(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    url = urlsplit(fresh.postgres.get_secret_value())
    line = Proxy("postgres")
    await line.start(url.port or 0)
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.server.server_port}"}
    environ = otlp | {
        "ORDERS_POSTGRES": urlunsplit(url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@{line.address}")),
        "ORDERS_API_WRITE": "true",
        "ORDERS_READ_TIMEOUT": "2",
    }
    events = order("https://shop.example/observed")
    for event in events:
        event.pop("traceparent", None)  # an event's own would count before its request's
    async with (
        service("api", tmp_path, environ) as api,
        service("console", tmp_path, environ) as console,
    ):
        await asyncio.to_thread(log_level, "debug")
        await ask(api, events)
        await told_in_metrics(api, console)
        with working(tmp_path, monkeypatch, otlp):
            await taken_in(api, str(events[0]["data"]["order_id"]))
            await send_a_part(fresh)
            # A forked worker ends without what a process does at its end: its spans are sent every 5 s.
            await eventually(partial(all_linked, receiver.spans), "the batches' spans came", 60)
        for each in (api, console):
            assert "the log has the level debug" in each.log.read_text(), "it has followed meanwhile"
        line.black_hole()
        for each in (api, console):
            await eventually(
                partial(each.says, "/ready", 503, "postgres hasn't answered"), "it isn't ready", 90
            )
            assert await each.says("/live", 200, "postgres hasn't answered")
            assert await each.samples("orders_http_ready") == {(): 0}
            await eventually(partial(postgres_away, each), "the metrics tell for how long")
        await line.heal()
        for each in (api, console):
            await eventually(partial(each.says, "/ready", 200, "ready\n"), "it is ready again", 90)
    await line.close()
    told_in_spans(receiver.spans, str(events[0]["data"]["order_id"]))


async def ask(api: Service, events: list[dict[str, Any]]) -> None:
    assert (await api.client.get(f"/orders/{NOBODY}", headers=TRACEPARENT)).status_code == 404
    assert (await api.client.head(f"/orders/{NOBODY}", headers=TRACEPARENT)).status_code == 404
    assert (await api.client.get(f"/users/{NOBODY}/orders")).status_code == 200
    assert (await api.client.get(f"/nowhere/{NOBODY}")).status_code == 404
    for each in events:
        sent = await api.client.post("/events", json=each, headers={"Content-Type": EVENT, **TRACEPARENT})
        assert sent.status_code == 202, sent.text


async def told_in_metrics(api: Service, console: Service) -> None:
    assert (await api.client.get("/", headers={"X": "x" * MOST_HEAD})).status_code == 431
    counted = await api.samples("orders_http_requests_total")
    assert counted["other", "none", "none", "431"] == 1, "refused before it was read whole"
    assert counted["GET", "/orders/{order_id}", "none", "404"] == 1
    assert counted["HEAD", "/orders/{order_id}", "none", "404"] == 1
    assert counted["GET", "none", "none", "404"] == 1
    [source] = [labels[2] for labels in counted if labels[1] == "/users/{user_id}/orders"]
    assert source in ("primary", "replica")
    assert (await api.samples("orders_http_request_duration_seconds_count"))[("/orders/{order_id}",)] == 2
    assert (await api.samples("orders_http_key_requests_total"))["none", "4xx"] == 4
    assert await api.samples("orders_http_ready") == {(): 1}
    assert await api.samples("orders_event_loop_lag_seconds_count")
    assert await api.samples("process_cpu_seconds_total")
    assert NOBODY not in (await api.probe.get("/metrics")).text, "the template, never the path"
    assert (await console.client.get("/lanes")).status_code == 200
    assert (await console.samples("orders_http_requests_total"))["GET", "/lanes", "none", "200"] == 1


async def postgres_away(each: Service) -> bool:
    return (await each.samples("orders_server_away_seconds"))[("postgres",)] > 0


async def taken_in(api: Service, order_id: str) -> None:
    async def there() -> bool:
        return (await api.client.get(f"/orders/{order_id}")).status_code == 200

    await eventually(there, "the worker has taken the order in", 60)


def linked(spans: list[Span]) -> set[tuple[str, str]]:
    """What batches' spans link to: traces and spans."""
    return {link for each in spans if each.name == "process batch" for link in each.links}


async def all_linked(spans: list[Span]) -> bool:
    sent = {(TRACE, each.id) for each in spans if each.name == "POST /events"}
    return bool(sent) and sent <= linked(spans) and any(each.name == "unpack part" for each in spans)


def log_level(level: str) -> None:
    assert orders("log-level", level).returncode == 0


async def send_a_part(settings: Settings) -> None:
    """Of a bulk job of nothing."""
    headers, _ = record("return.bulk", {})
    part = {"job_id": NOBODY, "part": 1, "parts": 1, "events": []}
    async with AIOKafkaProducer(**kafka(settings.brokers)) as producer:
        await producer.send_and_wait("return.bulk", json.dumps(part).encode(), headers=headers)


def told_in_spans(spans: list[Span], order_id: str) -> None:
    by_name = {(each.service, each.name): each for each in spans}
    one = by_name["orders-api", "GET /orders/{order_id}"]
    head = by_name["orders-api", "HEAD /orders/{order_id}"]
    sent = [each for each in spans if each.name == "POST /events"]
    assert {(each.trace, each.parent) for each in (head, *sent)} == {(TRACE, CALLER)}
    assert one.attributes["http.route"].string_value == "/orders/{order_id}"
    assert one.attributes["http.response.status_code"].int_value in (200, 404)
    assert ("orders-console", "GET /lanes") in by_name
    batches = [each for each in spans if (each.service, each.name) == ("orders-worker", "process batch")]
    assert linked(spans) >= {(TRACE, each.id) for each in sent}, "each event is found from its batch"
    steps = {each.name for each in spans if each.parent in {batch.id for batch in batches}}
    assert steps == {"publish", "postgres", "state", "redis"}
    [part] = [each for each in spans if each.name == "unpack part"]
    assert {each.name for each in spans if each.parent == part.id} == {"publish", "postgres"}
    assert not [each.text for each in spans if NOBODY in each.text or order_id in each.text]
