"""What all tests share: which of them can run here, the servers, and a clean place on them for each test."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio
from redis.asyncio import Redis

import compiled
from credentials import PostgresUrl
from settings import Settings, get_settings
from tests import chromium, stackfixture
from tests.alerts import monitoring
from tests.deploy import helm, promtool
from tests.e2e import previous
from tests.servers import REDIS_DATABASE, admin, as_admin, url, used_topics, with_path, without_files
from tests.stackfixture import Servers

CONTAINERS = os.environ.get("STACK", "local") == "containers"

QUICK = frozenset({"unit", "property"})
"""Folders of tests that take no time worth speaking of."""

_left_out = pytest.StashKey[list[str]]()
_redis_databases = itertools.cycle(sorted({*range(16)} - {REDIS_DATABASE}))


# -- which tests can run here --------------------------------------------------------------------------------


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what needs servers, and leave out, audibly, what this machine has not got."""
    for item in items:
        if "stack" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)
    missing = {
        "containers": None if CONTAINERS else "they run with STACK=containers",
        "helm": helm.problem(),
        "promtool": promtool.problem(),
        "browser": chromium.problem(),
        "monitoring": monitoring.problem(),
        "long": None if "long" in config.option.markexpr else "make alerts runs them",
        "previous": previous.problem(),
        "compiled": compiled.WHY_NOT,
        "source": None if compiled.WHY_NOT else f"they run with {compiled.SETTING}=off",
        "olist": None
        if os.environ.get("ORDERS_OLIST")
        else "$ORDERS_OLIST does not name the folder of Olist's orders",
    }
    lines = []
    for marker, reason in missing.items():
        affected = [item for item in items if reason and item.get_closest_marker(marker)]
        if affected:
            lines.append(f"{len(affected)} test(s) marked {marker} left out: {reason}")
            config.hook.pytest_deselected(items=affected)
            items[:] = [item for item in items if item not in affected]
    config.stash[_left_out] = lines
    items[:] = _dealt(items, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


def _dealt(items: list[pytest.Item], processes: int) -> list[pytest.Item]:
    """The tests so that each process begins with files of slow ones.

    xdist cuts the list into equal parts, and who has done his takes from the end of another's. With the
    quick ones at the ends, no process is left with a slow test while the others have nothing to do.
    """
    slow: dict[Path, list[pytest.Item]] = {}
    quick: list[pytest.Item] = []
    for item in items:
        if QUICK.isdisjoint(item.path.parts):
            slow.setdefault(item.path, []).append(item)
        else:
            quick.append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(processes)]
    for number, file in enumerate(slow.values()):
        parts[number % processes] += file
    for number, part in enumerate(parts):
        missing = max(
            0, (len(items) * (number + 1)) // processes - (len(items) * number) // processes - len(part)
        )
        part += quick[:missing]
        del quick[:missing]
    return [item for part in parts for item in part] + quick


def pytest_collection_finish() -> None:
    """Thousands of tests and what they import stay: garbage collection need not look at them again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was left out, and why, and what passed tests have to say (their property `note`)."""
    properties_of = [report.user_properties for report in terminalreporter.getreports("passed")]
    notes = [str(value) for properties in properties_of for name, value in properties if name == "note"]
    for line in (*config.stash.get(_left_out, []), *notes):
        terminalreporter.write_line(line, yellow=True)


# -- servers -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def stack() -> Iterator[Servers]:
    """Kafka, Postgres and Redis, once per run."""
    with ExitStack() as opened:
        servers: Servers
        if known := os.environ.get(stackfixture.RUNNING):
            servers = stackfixture.Running(**json.loads(known))
        elif CONTAINERS:
            servers = opened.enter_context(stackfixture.from_images())
        else:
            servers = opened.enter_context(stackfixture.from_packages())
        opened.enter_context(stackfixture.administered(servers))
        yield servers


@pytest.fixture
async def settings(
    stack: Servers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> AsyncIterator[Settings]:
    """Settings for a place of the test's own: an empty database, an empty Redis database, a new
    group, an empty data folder.

    They are in the environment as well, for the processes that a test starts. Topics are shared: see `fresh`.
    """
    template = "migrated" if "migrated" in request.fixturenames else "template1"
    async with _own_place(stack, tmp_path, monkeypatch, template) as given:
        yield given


@asynccontextmanager
async def _own_place(
    stack: Servers, folder: Path, monkeypatch: pytest.MonkeyPatch, template: str
) -> AsyncIterator[Settings]:
    for name in os.environ:
        if name.startswith("ORDERS_") and name != "ORDERS_OLIST":
            monkeypatch.delenv(name)
    unique = uuid.uuid4().hex[:12]
    given = without_files(stack.env)
    postgres = given["ORDERS_POSTGRES"]
    values = {
        **given,
        "ORDERS_POSTGRES": with_path(postgres, f"test_{unique}"),
        "ORDERS_REDIS": with_path(given["ORDERS_REDIS"], str(next(_redis_databases))),
        "ORDERS_DATA": str(folder / "data"),
        "ORDERS_GROUP": f"orders-{unique}",
        "ORDERS_PARTITIONS": "2",  # a broker takes as long to make and to delete a topic as it has partitions
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    await stackfixture.new_database(postgres, f"test_{unique}", template)
    async with Redis.from_url(as_admin(values["ORDERS_REDIS"])) as redis:
        await redis.flushdb()
    yield Settings()
    # The database stays until the servers go: to drop it makes Postgres write out all that the others hold.
    await stackfixture.execute(
        as_admin(postgres),
        f"select pg_terminate_backend(pid) from pg_stat_activity where datname = 'test_{unique}'",
    )
    get_settings.cache_clear()


@pytest.fixture(scope="session")
def migrated(stack: Servers) -> None:
    """A database of this name with our tables, to be copied."""
    from sinks import migrate

    postgres = url(stack.env, "POSTGRES")

    async def make() -> None:
        await stackfixture.new_database(postgres, "migrated")
        await migrate.upgrade(Settings(postgres=PostgresUrl(with_path(postgres, "migrated"))))

    with ThreadPoolExecutor(1) as pool:  # here a loop may be running
        pool.submit(asyncio.run, make()).result()


@pytest.fixture
async def fresh(migrated: None, settings: Settings) -> AsyncIterator[Settings]:
    """The same with empty topics and an empty schema.
    Topic names are the contract's, so two such tests never run at once.
    """
    async with _empty_topics(settings):
        yield settings


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fresh_once(
    stack: Servers, migrated: None, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Settings]:
    """As `fresh`, once for all tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("fresh")
        async with _own_place(stack, folder, patch, "migrated") as given, _empty_topics(given):
            yield given


@asynccontextmanager
async def _empty_topics(settings: Settings) -> AsyncIterator[None]:
    from streams import topics

    await topics.delete_all(admin(settings), await used_topics(settings))
    try:
        await topics.ensure(settings)
    except topics.TopicMismatch:  # a test that failed has left them with another configuration
        await topics.delete_all(admin(settings))
        await topics.ensure(settings)
    yield
    # A broker takes a second of a processor to delete all of them, and most tests write to a few.
    await topics.delete_all(admin(settings), await used_topics(settings))


@pytest.fixture
def unnoted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that write begin without a Kafka in which to note it."""
    from operations import journal

    async def begin(*_: object, **__: object) -> None: ...

    async def exists(_: object) -> bool:
        return True

    monkeypatch.setattr(journal, "begin", begin)
    monkeypatch.setattr(journal, "end", begin)
    monkeypatch.setattr(journal, "exists", exists)


@pytest.fixture
def run_command(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run a command in this process, in a loop of its own -> its exit code and what it says on stderr."""
    from cli import main

    def run(*command: str) -> tuple[int, str]:
        with ThreadPoolExecutor(1) as pool:
            code = pool.submit(main.run, list(command)).result()
        return code, capsys.readouterr().err

    return run
