"""The servers that tests run against: one stack per run, from packages, or from images with STACK=containers."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psutil
import yaml

from stack import Stack, StackError

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"


class Servers(Protocol):
    """What the fixture gives: the ORDERS_* values that lead to running servers."""

    @property
    def env(self) -> dict[str, str]:
        """ORDERS_* values."""


@contextmanager
def from_packages() -> Iterator[Stack]:
    """A stack in a folder of this run, deleted at its end. What killed runs left behind is ended and deleted first."""
    home = Path(tempfile.gettempdir()) / f"orders-tests-{os.geteuid()}"
    home.mkdir(mode=0o755, exist_ok=True)
    for left in home.iterdir():
        if not psutil.pid_exists(int(left.name)):
            purge(left)
    folder = home / str(os.getpid())
    purge(folder)
    try:
        yield Stack.start(folder)
    finally:
        purge(folder)


def purge(folder: Path) -> None:
    """Stop and delete a stack, if there is one."""
    try:
        Stack.open(folder).purge()
    except StackError:  # there is none; but an unfinished folder there may be
        shutil.rmtree(folder, ignore_errors=True)


class Containers:
    """The same servers as containers, under the image names of docker-compose.yml."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env


def images() -> dict[str, str]:
    """Service -> image, as docker-compose.yml has them."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return {name: str(service["image"]) for name, service in services.items() if "image" in service}


def engine_problem() -> str | None:
    """Why no Docker engine can be used, or None when one answers."""
    try:
        import docker

        client = docker.from_env(timeout=5)
        try:
            client.ping()
        finally:
            client.close()
    except Exception as error:  # the client raises a dozen kinds; each means the same here
        return f"no Docker engine answers ({type(error).__name__})"
    return None


@contextmanager
def from_images() -> Iterator[Containers]:
    """Kafka, Postgres and Redis through testcontainers; stopped at the end."""
    from testcontainers.core.config import testcontainers_config
    from testcontainers.core.container import DockerContainer
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy

    testcontainers_config.ryuk_disabled = True  # one image less to pull; the containers are stopped here
    named = images()
    # The brokers tell clients their address, so the port on the host has to be known before the start.
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    kafka = (
        DockerContainer(named["kafka"])
        .with_bind_ports(19092, port)
        .with_envs(
            KAFKA_NODE_ID="1",
            KAFKA_PROCESS_ROLES="broker,controller",
            KAFKA_LISTENERS="PLAINTEXT://:9092,CONTROLLER://:9093,HOST://:19092",
            KAFKA_ADVERTISED_LISTENERS=f"PLAINTEXT://localhost:9092,HOST://127.0.0.1:{port}",
            KAFKA_LISTENER_SECURITY_PROTOCOL_MAP="PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,HOST:PLAINTEXT",
            KAFKA_CONTROLLER_LISTENER_NAMES="CONTROLLER",
            KAFKA_CONTROLLER_QUORUM_VOTERS="1@localhost:9093",
            KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR="1",
            KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR="1",
            KAFKA_TRANSACTION_STATE_LOG_MIN_ISR="1",
            KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS="0",
            KAFKA_AUTO_CREATE_TOPICS_ENABLE="false",
        )
        .waiting_for(LogMessageWaitStrategy("Kafka Server started"))
    )
    postgres = (
        DockerContainer(named["postgres"])
        .with_exposed_ports(5432)
        .with_envs(POSTGRES_PASSWORD="orders", POSTGRES_DB="orders")
        # Said twice: by the temporary server that initialises the folder, and by the one that stays.
        .waiting_for(LogMessageWaitStrategy("database system is ready to accept connections", times=2))
    )
    redis = DockerContainer(named["redis"]).with_exposed_ports(6379).waiting_for(LogMessageWaitStrategy("Ready to accept connections"))
    with ExitStack() as running, tempfile.TemporaryDirectory(prefix="orders-tests-") as data:
        for container in (kafka, postgres, redis):
            running.enter_context(container)
        host = postgres.get_container_host_ip()
        yield Containers(
            {
                "ORDERS_KAFKA": f"127.0.0.1:{port}",
                "ORDERS_POSTGRES": f"postgresql://postgres:orders@{host}:{postgres.get_exposed_port(5432)}/orders",
                "ORDERS_REDIS": f"redis://{host}:{redis.get_exposed_port(6379)}/0",
                "ORDERS_DATA": data,
            }
        )
