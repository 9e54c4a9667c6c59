"""However a program talks to Kafka, it is wire.clients that knows how the brokers are reached."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import pytest
from aiokafka.coordinator.assignors.roundrobin import RoundRobinPartitionAssignor
from faust.exceptions import ImproperlyConfigured
from faust.transport.drivers import aiokafka as driver

from settings import Settings
from streams.transport.app import BatchApp
from streams.transport.consumer_thread import FETCH_WAIT_MS, ConsumerThread
from streams.transport.producer import FaustProducer
from tests.integration.transport_app import make_app
from wire import clients
from wire.access import Access


@pytest.fixture
def connection_options(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What wire.clients says of the brokers."""
    options = {"bootstrap_servers": ["elsewhere:1"], "metadata_max_age_ms": 4711}
    monkeypatch.setattr(clients, "connection", lambda settings: options)
    return options


def reaches(client: Any) -> dict[str, Any]:
    return {
        "bootstrap_servers": client._bootstrap_servers,
        "metadata_max_age_ms": client._metadata_max_age_ms,
    }


async def test_every_client_reaches_the_brokers_alike(connection_options: dict[str, Any]) -> None:
    settings = Settings(kafka="here:1")
    consumer, producer = (
        clients.consumer(settings, "c", "topic"),
        clients.producer(settings, "p", linger_ms=3),
    )
    admin, client = clients.admin(settings, "a"), clients.client(settings, "b")
    bare = [consumer._client, producer.client, admin._client, client]
    assert [reaches(each) for each in bare] == [connection_options] * 4
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


async def test_the_transport_reaches_them_so_too(connection_options: dict[str, Any], tmp_path: Path) -> None:
    app, _ = make_app(Settings(kafka="here:1", data=tmp_path), ("in",), "out")
    faust = app.producer
    assert isinstance(faust, FaustProducer)
    options = faust.lane_options("lane", 2, None) | {"transactional_id": "t"}
    assert options["max_batch_size"] == 1 << 20
    opened = [faust._new_producer(), clients.producer(**options), clients.admin(**faust.connection_options())]
    assert [reaches(getattr(each, "client", None) or each._client) for each in opened] == [
        connection_options
    ] * 3
    for each in opened[:2]:
        await each.stop()
    await opened[2].close()


async def test_a_lane_writes_no_batch_that_an_input_topic_would_not_take(tmp_path: Path) -> None:
    """Those of checkouts become order.created, on a topic that takes the least."""
    app, _ = make_app(Settings(data=tmp_path, message_bytes=1 << 20), ("in",), "out")
    assert isinstance(app.producer, FaustProducer)
    assert app.producer.lane_options("lane", 2, None)["max_batch_size"] == 786_432


def thread_of(app: faust.App, kind: type[driver.AIOKafkaConsumerThread]) -> Any:
    thread: Any = object.__new__(kind)
    thread.app, thread.consumer = app, SimpleNamespace(in_transaction=False)
    return thread


OTHERWISE = {
    "consumer_group_instance_id": "worker-1",
    "consumer_auto_offset_reset": "latest",
    "consumer_max_fetch_size": 4711,
    "consumer_connections_max_idle_ms": 4712,
    "broker_check_crcs": False,
    "broker_client_id": "another",
    "broker_max_poll_records": 13,
    "broker_max_poll_interval": 99.5,
    "broker_request_timeout": 71,
    "broker_session_timeout": 33,
    "broker_rebalance_timeout": 61.5,
    "broker_heartbeat_interval": 2.5,
    "metadata_age": 17.0,
}
"""What a program may set of Faust's consumer, none of it as by default."""


@pytest.mark.parametrize("options", [{}, OTHERWISE], ids=["defaults", "otherwise"])
@pytest.mark.parametrize("tables", [True, False], ids=["with a table", "without"])
async def test_a_workers_consumer_is_fausts_but_for_what_is_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], tables: bool
) -> None:
    settings = Settings(kafka="one:1,two:2", data=tmp_path)
    app = make_app(settings, ("in",), "out", **options)[0] if tables else BatchApp(settings, **options)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(aiokafka, "AIOKafkaConsumer", lambda *topics, **given: calls.append(given))
    monkeypatch.setattr(clients, "AIOKafkaConsumer", lambda *topics, **given: calls.append(given))
    for kind in (driver.AIOKafkaConsumerThread, ConsumerThread):
        thread_of(app, kind)._create_worker_consumer(app.transport)
    fausts, ours = calls
    assert fausts.pop("security_protocol") == ours.pop("security_protocol") == "PLAINTEXT"
    assert isinstance(ours.pop("sasl_oauth_token_provider"), Access), "wire.clients says how they are reached"
    assert ours == fausts | {"isolation_level": "read_committed", "fetch_max_wait_ms": FETCH_WAIT_MS}
    assert ours["partition_assignment_strategy"] == [app.assignor if tables else RoundRobinPartitionAssignor]


async def test_a_workers_consumer_reaches_the_brokers_so_too(
    connection_options: dict[str, Any], tmp_path: Path
) -> None:
    connection_options.pop("metadata_max_age_ms")  # a setting of the app
    app, _ = make_app(Settings(kafka="here:1", data=tmp_path), ("in",), "out")
    consumer = thread_of(app, ConsumerThread)._create_worker_consumer(app.transport)
    assert consumer._client._bootstrap_servers == connection_options["bootstrap_servers"]
    assert (consumer._isolation_level, consumer._enable_auto_commit) == ("read_committed", False)
    await consumer.stop()


async def test_a_session_is_no_longer_than_a_request_may_take(tmp_path: Path) -> None:
    options = {"broker_request_timeout": 5.0, "broker_session_timeout": 6.0}
    app, _ = make_app(Settings(data=tmp_path), ("in",), "out", **options)
    with pytest.raises(ImproperlyConfigured, match="longer than"):
        thread_of(app, ConsumerThread)._create_worker_consumer(app.transport)
