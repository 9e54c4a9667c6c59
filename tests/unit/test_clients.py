"""However a program talks to Kafka, it is wire.clients that knows how the brokers are reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from settings import Settings
from streams.transport.producer import FaustProducer
from tests.integration.transport_app import make_app
from wire import clients


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What wire.clients says of the brokers."""
    options = {"bootstrap_servers": ["elsewhere:1"], "metadata_max_age_ms": 4711}
    monkeypatch.setattr(clients, "connection", lambda settings: options)
    return options


def reaches(client: Any) -> dict[str, Any]:
    return {
        "bootstrap_servers": client._bootstrap_servers,
        "metadata_max_age_ms": client._metadata_max_age_ms,
    }


async def test_every_client_reaches_the_brokers_alike(found: dict[str, Any]) -> None:
    settings = Settings(kafka="here:1")
    consumer, producer = (
        clients.consumer(settings, "c", "topic"),
        clients.producer(settings, "p", linger_ms=3),
    )
    admin, client = clients.admin(settings, "a"), clients.client(settings, "b")
    bare = [consumer._client, producer.client, admin._client, client]
    assert [reaches(each) for each in bare] == [found] * 4
    assert [each._client_id for each in bare] == ["c", "p", "a", "b"]
    assert (consumer._isolation_level, consumer._enable_auto_commit, producer._sender._acks) == (
        "read_committed",
        False,
        -1,
    )
    for each in (consumer, producer):
        await each.stop()
    await admin.close()
    await client.close()


async def test_the_transport_reaches_them_so_too(found: dict[str, Any], tmp_path: Path) -> None:
    app, _ = make_app(Settings(kafka="here:1", data=tmp_path), ("in",), "out")
    faust = app.producer
    assert isinstance(faust, FaustProducer)
    options = faust.lane_options("lane", 2, None) | {"transactional_id": "t"}
    made = [faust._new_producer(), clients.producer(**options), clients.admin(**faust.connection_options())]
    assert [reaches(getattr(each, "client", None) or each._client) for each in made] == [found] * 3
    for each in made[:2]:
        await each.stop()
    await made[2].close()
