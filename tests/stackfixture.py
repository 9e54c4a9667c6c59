"""The servers that tests run against: one stack per run, from packages, or from
images with STACK=containers.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
import pytest
import yaml
from redis.asyncio import Redis

from credentials import ServerUrl
from operations import secured
from operations.grants import Acl
from stack import Stack, StackError, folders
from tests.servers import SECURE, administrator, as_admin, with_path

if TYPE_CHECKING:
    from testcontainers.compose import DockerCompose

ROOT = Path(__file__).parent.parent
COMPOSE = ROOT / "docker-compose.yml"
PASSWORDS = tuple(
    f"{name}_PASSWORD" for name in ("POSTGRES", "OWNER", "WORKER", "BULK", "READER", "CONSOLE", "REDIS")
)
PORTS = ("KAFKA_PORT", "POSTGRES_PORT", "POSTGRES_REPLICA_PORT", "REDIS_PORT")
PASSWORD = "tests"
WITHOUT_LOGIN = ROOT / "tests" / "deploy" / "without-login.yaml"
"""Lets tests into Kafka as who may do everything."""


class Servers(Protocol):
    """What the fixture gives: the ORDERS_* values that lead to running servers."""

    @property
    def env(self) -> dict[str, str]:
        """ORDERS_* values."""

    @property
    def admin(self) -> dict[str, str]:
        """The same, for who may do everything."""


@contextmanager
def from_packages() -> Iterator[Stack]:
    """A stack in a folder of this run, deleted at its end.
    What killed runs left behind is ended and deleted first.
    """
    home = Path(tempfile.gettempdir()) / f"orders-tests-{os.geteuid()}"
    home.mkdir(mode=0o755, exist_ok=True)
    with folders.locked(home):  # one of the processes that begin at once deletes it
        for left in home.iterdir():
            if not psutil.pid_exists(int(left.name)):
                purge(left)
    folder = home / str(os.getpid())
    purge(folder)
    with place(folder):
        yield started(folder)


_MEMORY = Path("/dev/shm")
_ROOM = 2 << 30
"""Bytes that have to be free there, and twice as many of the machine's memory."""
_LOGS = f"orders-tests-{os.geteuid()}-"


@contextmanager
def place(folder: Path, brokers: int = 1) -> Iterator[None]:
    """A new folder for a stack of so many brokers, which is purged at the end.

    The brokers' logs lie in the machine's memory where it has room: to make and delete topics costs a broker
    a third less of a processor's time than on a disk.
    """
    with ExitStack() as opened:
        if _room():
            for left in _MEMORY.glob(f"{_LOGS}*"):
                if not psutil.pid_exists(int(left.name.removeprefix(_LOGS).split("-")[0])):
                    shutil.rmtree(left, ignore_errors=True)
            memory = tempfile.TemporaryDirectory(prefix=f"{_LOGS}{os.getpid()}-", dir=_MEMORY)
            logs = Path(opened.enter_context(memory))
            folder.mkdir(0o700, parents=True)
            for node in map(str, range(1, brokers + 1)):
                (logs / node).mkdir()
                home = folder / "kafka" / node
                home.mkdir(parents=True)
                (home / "data").symlink_to(logs / node)
        opened.callback(purge, folder)
        yield


def _room() -> bool:
    try:
        free = shutil.disk_usage(_MEMORY).free if os.access(_MEMORY, os.W_OK) else 0
    except OSError:
        return False
    return free > _ROOM and psutil.virtual_memory().available > 2 * _ROOM


def started(folder: Path, *, replica: bool = False, advertise: Sequence[str] = ()) -> Stack:
    """A stack that runs, secure with STACK=secure."""
    users = secured.USERS if SECURE else ()
    stack = Stack.start(folder, replica=replica, users=users, advertise=advertise)
    if SECURE:
        with ThreadPoolExecutor(1) as pool:  # here a loop may be running
            pool.submit(asyncio.run, _allow(stack)).result()
    return stack


@contextmanager
def administered(stack: Servers) -> Iterator[None]:
    """Meanwhile tests connect as the administrator of this stack."""
    before = administrator(stack.admin)
    try:
        yield
    finally:
        administrator(before)


async def _allow(stack: Stack) -> None:
    """Rights as `orders stack up --secure` gives them, and those of every test's own group."""
    admin = secured.settings_of(stack.admin)
    await secured.allow(admin, stack.users)
    of_a_group = secured.kafka_rights(admin.model_copy(update={"group": GROUPS}), secured.EVERYBODY)
    rights = {acl._replace(name=GROUPS, prefixed=True) for acl in of_a_group if acl.name.startswith(GROUPS)}
    await secured.allow_kafka(admin, {secured.EVERYBODY: rights})
    async with Redis.from_url(admin.redis.get_secret_value()) as cache:
        await cache.execute_command("ACL", "SETUSER", secured.EVERYBODY, "~cache:*")  # type: ignore[no-untyped-call]


async def allow_topic(stack: Servers, topic: str) -> None:
    """Let the programs of a secure stack read and write a topic that no role has. Nothing else is needed."""
    if stack.admin != stack.env:
        rights = [Acl("Topic", topic, operation) for operation in ("Read", "Write")]
        await secured.allow_kafka(secured.settings_of(stack.admin), {secured.EVERYBODY: rights})


def without_tls(stack: Servers, postgres: ServerUrl) -> str:
    """The URL of Postgres as the administrator, for programs that are built without TLS: it leads to the
    server's own port.
    """
    address = as_admin(postgres)
    if not isinstance(stack, Stack) or stack.admin == stack.env:
        return address
    parts = urlsplit(address)
    login = parts.netloc.rpartition("@")[0]
    port = next(each.port for each in stack.status if each.name == "postgres")
    return urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{port}", query=""))


GROUPS = "orders-"
"""How the names of tests' groups begin."""


async def new_database(postgres: str, name: str, template: str = "template1") -> None:
    """Make a database beside the one of the URL, whose user may work in it as in that one."""
    await execute(as_admin(postgres), f"create database {name} template {template}")
    if "sslmode" in postgres:
        connection = await asyncpg.connect(as_admin(with_path(postgres, name)))
        try:
            await secured.allow_postgres(connection, [secured.EVERYBODY])
        finally:
            await connection.close()


async def execute(postgres: str, statement: str) -> None:
    """Run one statement."""
    connection = await asyncpg.connect(postgres)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def purge(folder: Path) -> None:
    """Stop and delete a stack, if there is one."""
    try:
        Stack.open(folder).purge()
    except StackError:  # there is none; but an unfinished folder there may be
        shutil.rmtree(folder, ignore_errors=True)


RUNNING = "TESTS_SERVERS"
"""Variable that tells tests, when a test runs them, of the servers that it has: env and admin as JSON."""


class Running:
    """Servers that others have started, and will stop."""

    def __init__(self, env: dict[str, str], admin: dict[str, str] | None = None) -> None:
        self.env = env
        self.admin = env if admin is None else admin


def images() -> dict[str, str]:
    """Service -> image, as docker-compose.yml names them by default."""
    services: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())["services"]
    return {
        name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", service["image"]) for name, service in services.items()
    }


def engine_problem() -> str | None:
    """Why containers cannot be used here, or None when `docker compose` and its engine answer."""
    try:
        done = subprocess.run(
            ("docker", "compose", "ls"), capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"docker compose does not answer ({error})"
    return (
        None
        if done.returncode == 0
        else f"docker compose fails: {(done.stderr.strip().splitlines() or ['without a word'])[0]}"
    )


@contextmanager
def project(
    name: str, *services: str, build: bool = False, more: Sequence[Path] = ()
) -> Iterator[DockerCompose]:
    """docker-compose.yml with `more` files over it, or some of its services, up and healthy under another
    name and on other ports; gone with its data at the end.

    The name and the ports, for `docker compose` and for whoever connects, are in the environment meanwhile.
    """
    from testcontainers.compose import DockerCompose

    problem = engine_problem()
    if problem:
        pytest.exit(
            f"STACK=containers was asked for, but {problem}; start one, or leave STACK away", returncode=2
        )
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv(
            "COMPOSE_PROJECT_NAME", f"{name}-{os.getpid()}"
        )  # never the user's own, whose data would go at the end
        for name in PASSWORDS:
            environment.setenv(name, PASSWORD)
        # Chosen before the start: Kafka tells clients its address.
        with ExitStack() as probes:
            for variable in PORTS:
                probe = probes.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                environment.setenv(variable, str(probe.getsockname()[1]))
        compose = DockerCompose(
            ROOT,
            compose_file_name=[str(file.relative_to(ROOT)) for file in (COMPOSE, *more)],
            build=build,
            services=list(services) or None,
        )
        try:
            compose.start()
            yield compose
        except subprocess.CalledProcessError as error:
            logs, _ = compose.get_logs("--tail=12")
            pytest.fail(
                f"{' '.join(error.cmd)} ended with"
                f" {error.returncode}:\n{error.stderr.decode()[-500:]}\n{logs}"
            )
        finally:
            compose.stop()


def published() -> dict[str, str]:
    """The ORDERS_* values that lead to the published ports of the `project` in the environment, as who may do
    everything in Postgres and Redis.
    """
    kafka, postgres, replica, redis = (f"127.0.0.1:{os.environ[variable]}" for variable in PORTS)
    return {
        "ORDERS_KAFKA": kafka,
        "ORDERS_POSTGRES": f"postgresql://postgres:{PASSWORD}@{postgres}/orders",
        "ORDERS_POSTGRES_REPLICA": f"postgresql://postgres:{PASSWORD}@{replica}/orders",
        "ORDERS_REDIS": f"redis://:{PASSWORD}@{redis}/0",
    }


@contextmanager
def from_images() -> Iterator[Running]:
    """Kafka, Postgres and Redis of docker-compose.yml through testcontainers."""
    with (
        project("orders-tests", "kafka", "postgres", "redis", more=[WITHOUT_LOGIN]),
        tempfile.TemporaryDirectory(prefix="orders-tests-") as data,
    ):
        env = published()
        del env["ORDERS_POSTGRES_REPLICA"]
        yield Running({**env, "ORDERS_DATA": data})
