"""What a worker's probes and metrics say when a server is away, and when a lane stands still."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from settings import Settings
from sinks.availability import PATIENCE
from stack import ports
from tests.chaos.proxy import Proxy
from tests.waiting import eventually
from tests.workers import ORDERS, worker
from workload import generator
from workload.producer import send

SOME = list(generator.events(40, 71))


@pytest.fixture
async def probe(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[httpx.AsyncClient]:
    """Asks a worker that is started later."""
    port = ports.choose(set())
    monkeypatch.setenv("ORDERS_METRICS_PORT", str(port))
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
        yield client


async def gauge(probe: httpx.AsyncClient, name: str) -> dict[str, float]:
    """A metric's samples by their one label."""
    families = text_string_to_metric_families((await probe.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return {next(iter(sample.labels.values()), ""): sample.value for sample in samples}


async def bulk_worker(stack: ExitStack, folder: Path, monkeypatch: pytest.MonkeyPatch) -> httpx.AsyncClient:
    """Start one, and return who asks its probes."""
    port = ports.choose(set())
    with monkeypatch.context() as patched:
        patched.setenv("ORDERS_METRICS_PORT", str(port))
        command = (*ORDERS, "worker", "--role", "bulk", "--name", "b")
        await asyncio.to_thread(stack.enter_context, worker(folder, "b", command))
    return httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10)


async def says(probe: httpx.AsyncClient, path: str, code: int, text: str) -> bool:
    """Whether a probe answers so."""
    answer = await probe.get(path)
    return answer.status_code == code and text in answer.text


async def test_a_silent_postgres_is_not_ready_but_alive(
    fresh: Settings, probe: httpx.AsyncClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = urlsplit(fresh.postgres.get_secret_value())
    line = Proxy("postgres")
    await line.start(url.port or 0)
    there = urlunsplit(url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@{line.address}"))
    monkeypatch.setenv("ORDERS_POSTGRES", there)
    # A lane that stands still for less than a silent server is borne with would be called stuck.
    still = PATIENCE + 2
    code = f"from streams import health; health.STILL_SECONDS = {still}; from cli.main import main; main()"
    dead: list[str] = []

    async def live() -> None:
        answer = await probe.get("/live")
        if answer.status_code != 200:
            dead.append(answer.text)

    async def ready(says: str) -> bool:
        await live()
        return says in (await probe.get("/ready")).text

    with ExitStack() as stack:
        bulk = await bulk_worker(stack, tmp_path, monkeypatch)
        started = worker(tmp_path, command=(*ORDERS[:2], code, "worker", "--name", "w"))
        running = await asyncio.to_thread(stack.enter_context, started)  # the line works meanwhile
        await eventually(lambda: ready("ready"), "it is ready")
        await eventually(partial(says, bulk, "/ready", 200, "ready\n"), "the bulk worker is ready", 60)
        assert (await gauge(probe, "orders_server_away_seconds"))["postgres"] == 0
        line.black_hole()
        await send(fresh, SOME)

        async def away() -> bool:
            await live()
            return (await gauge(probe, "orders_server_away_seconds"))["postgres"] > still + 2

        await eventually(away, "the metrics tell that Postgres is away")
        refused = await probe.get("/ready")
        assert refused.status_code == 503
        assert "postgres hasn't answered for" in refused.text
        assert max((await gauge(probe, "orders_lane_lag_seconds")).values()) > still
        assert sum((await gauge(probe, "orders_lane_lag_records")).values()) > 0
        assert await says(bulk, "/ready", 503, "postgres hasn't answered for"), "though it has no job"
        assert await says(bulk, "/live", 200, "postgres hasn't answered for")
        assert (await gauge(bulk, "orders_server_away_seconds"))["postgres"] > 0
        await line.heal()
        await eventually(lambda: ready("ready\n"), "it is ready again", 60)
        await eventually(partial(says, bulk, "/ready", 200, "ready\n"), "so is the bulk worker", 60)

        async def done() -> bool:
            return not sum((await gauge(probe, "orders_lane_lag_records")).values())

        await eventually(done, "nothing is left")
        assert dead == []
        assert (await gauge(probe, "orders_server_away_seconds"))["postgres"] == 0
        assert await asyncio.to_thread(running.terminate) == 0
    await line.close()


async def test_a_lane_that_stands_still_is_told(
    fresh: Settings, probe: httpx.AsyncClient, tmp_path: Path
) -> None:
    code = (
        "import asyncio; from streams import health, pipeline; health.STILL_SECONDS = 1.0;"
        " pipeline.Pipeline.handle = lambda self, batch: asyncio.Event().wait();"
        " from cli.main import main; main()"
    )
    with worker(tmp_path, command=(*ORDERS[:2], code, "worker", "--name", "w")):
        assert (await probe.get("/live")).status_code == 200
        await send(fresh, SOME)

        async def stuck() -> bool:
            answer = await probe.get("/live")
            return answer.status_code == 503 and "has stood still for" in answer.text

        async def busy() -> bool:
            return max((await gauge(probe, "orders_lane_busy_seconds")).values()) > 1

        await eventually(stuck, "it is told that a lane stands still")
        await eventually(busy, "the metrics tell it")
