"""docker-compose.yml as a whole: the image is built, everything comes up, each program with its own login, a
worker is killed, and the audit is clean.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from operations.secured import EVERYBODY
from settings import get_settings
from tests import stackfixture
from tests.stackfixture import ROOT
from tests.waiting import eventually
from tests.workers import audit, orders, processed
from wire import clients
from wire.refused import OtherProtocol

if TYPE_CHECKING:
    from testcontainers.compose import DockerCompose

pytestmark = [pytest.mark.containers, pytest.mark.e2e]


@pytest.fixture
def topology(monkeypatch: pytest.MonkeyPatch) -> Iterator[DockerCompose]:
    """Everything, healthy; the ORDERS_* values of the environment lead to its published ports, as the user
    with all roles.
    """
    with stackfixture.project("orders-e2e", build=True) as compose:
        for name, value in stackfixture.published().items():
            monkeypatch.setenv(name, value.replace("//postgres:", f"//{EVERYBODY}:"))
        for name, value in (
            ("SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("SASL_MECHANISM", "SCRAM-SHA-512"),
            ("SASL_USERNAME", EVERYBODY),
            ("SASL_PASSWORD", stackfixture.PASSWORD),
        ):
            monkeypatch.setenv(f"ORDERS_KAFKA_{name}", value)
        yield compose


def docker(*arguments: str) -> str:
    done = subprocess.run(("docker", *arguments), cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def states(service: str) -> list[dict[str, Any]]:
    """What the engine knows of a service's containers, those that ended as well, by name."""
    containers = docker("compose", "ps", "--all", "--quiet", service).split()
    return sorted(json.loads(docker("inspect", *containers)), key=lambda container: str(container["Name"]))


def send(seed: int) -> None:
    done = orders("generate", "--orders", "400", "--seed", str(seed), "--poison", "0.01", "--json")
    assert done.returncode == 0, done.stderr


async def value(variable: str, query: str, *arguments: str) -> Any:
    """What the administrator is told."""
    connection = await asyncpg.connect(stackfixture.published()[variable])
    try:
        return await connection.fetchval(query, *arguments)
    finally:
        await connection.close()


async def nobody_comes_in_as_somebody_else() -> None:
    anonymous = {"kafka_security_protocol": "PLAINTEXT", "kafka_sasl_mechanism": None}
    client = clients.admin(get_settings().model_copy(update=anonymous), "test")
    with pytest.raises(OtherProtocol):
        await client.start()
    await client.close()
    sessions = "SELECT array_agg(DISTINCT usename::text) FROM pg_stat_activity WHERE application_name = $1"
    assert await value("ORDERS_POSTGRES", sessions, "orders-worker") == ["orders-worker"]
    owners = "SELECT array_agg(DISTINCT tableowner::text) FROM pg_tables WHERE schemaname = 'public'"
    assert await value("ORDERS_POSTGRES", owners) == [EVERYBODY]


async def test_the_topology_works_and_survives_the_kill_of_a_worker(topology: DockerCompose) -> None:
    [init], [first, second] = states("init"), states("worker")
    assert init["State"]["ExitCode"] == 0
    assert {first["State"]["Health"]["Status"], second["State"]["Health"]["Status"]} == {"healthy"}
    assert docker("exec", first["Id"], "id", "-u").strip() != "0"

    await nobody_comes_in_as_somebody_else()

    send(1)
    processed()
    assert audit()["counts"]["orders"] == 400

    rows = await value("ORDERS_POSTGRES", "SELECT count(*) FROM orders_order")
    assert await value("ORDERS_POSTGRES_REPLICA", "SELECT pg_is_in_recovery()") is True

    async def replicated() -> bool:
        return bool(await value("ORDERS_POSTGRES_REPLICA", "SELECT count(*) FROM orders_order") == rows)

    await eventually(replicated, "the replica has every row")

    # The published ports and the names inside lead to the same servers.
    inside = json.loads(docker("compose", "run", "--rm", "--no-TTY", "orders", "audit", "--json"))
    assert inside["counts"] == audit()["counts"]

    docker("kill", "--signal", "KILL", first["Id"])
    send(2)
    processed()  # by the other one alone
    assert audit()["counts"]["orders"] == 800

    docker("compose", "up", "--wait", "--no-recreate")
    docker("compose", "stop", "worker")
    assert [container["State"]["ExitCode"] for container in states("worker")] == [0, 0]
    audit()
    # From where the one before came to: what that left has stayed, though its container is gone.
    again = json.loads(docker("compose", "run", "--rm", "--no-TTY", "orders", "audit", "--json"))
    assert again["trusted"]["orders"] > 0
