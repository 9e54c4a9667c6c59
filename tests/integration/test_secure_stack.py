"""`orders stack up --secure`: TLS, logins and least rights on every server. Every command works there.
This is what continuous integration runs of STACK=secure (docs/testing.md).
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import asyncpg
import httpx
import pytest

from console.worklists import WORKLISTS
from operations.secured import EVERYBODY, USERS, settings_of
from settings import get_settings
from stack import Stack, StackError, ports
from stack.certificates import certificate
from tests import forked
from tests.integration.test_bulk import an_order, order_id
from tests.integration.test_console import get, opened, send_form
from tests.servers import url
from tests.stackfixture import purge
from tests.unit.builders import ORDER, USER
from tests.unit.takeover_files import LIVE_FROM, write
from tests.waiting import until
from tests.workers import ORDERS, Worker, audit, processed, worker
from wire import clients
from wire.refused import OtherProtocol

WORKS = [f"/work/{name}{form}" for name in WORKLISTS for form in ("", "?format=csv")]


@pytest.fixture(scope="module")
def secured() -> Iterator[Stack]:
    """A secure stack in a folder that only its user may enter, started by the command."""
    home = Path(tempfile.mkdtemp(prefix="orders-secured-"))
    folder = home / ".stack"
    # Transactions, which need the most rights.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}
    env = {**plain, "ORDERS_DELIVERY": "exactly_once", "TERM": "dumb"}
    try:
        up = forked.run((*ORDERS, "stack", "up", "--secure"), env=env, cwd=home)
        assert up.returncode == 0, up.stderr
        stack = Stack.open(folder)
        secrets = [*stack.users.values(), url(stack.admin, "POSTGRES").partition("@")[0].rpartition(":")[2]]
        assert not any(secret in up.stdout + up.stderr for secret in secrets)
        assert stack.users.keys() == set(USERS)
        init = forked.run((*ORDERS, "init"), env=env, cwd=home)
        assert (init.returncode, "using the stack in" in init.stderr) == (0, True), init.stderr
        again = forked.run((*ORDERS, "stack", "up", "--json"), env=env, cwd=home)  # now there are tables
        assert json.loads(again.stdout) == stack.env
        yield stack
        down = forked.run((*ORDERS, "stack", "down"), env=env, cwd=home)
        assert (down.returncode, stack.running) == (0, False)
    finally:
        purge(folder)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def acting(
    secured: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[str], None]]:
    """From now on the environment has a user's login, as `orders stack env --user` prints it."""
    for name in os.environ:
        if name.startswith("ORDERS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("ORDERS_DELIVERY", "exactly_once")

    def act(user: str) -> None:
        for name, value in secured.env_of(user).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("ORDERS_DATA", str(tmp_path))
        if user == "orders-bulk":  # it needs nothing in Redis, and has no user there
            monkeypatch.delenv("ORDERS_REDIS_FILE", raising=False)
        get_settings.cache_clear()

    yield act
    get_settings.cache_clear()


async def test_nobody_comes_in_plainly_and_no_program_is_a_superuser(secured: Stack, tmp_path: Path) -> None:
    files = [each for each in secured.folder.glob("secure/*") if each.name != "ca.pem"]
    assert len(files) > 3 * len(USERS)
    files.append(secured.folder / "redis" / "users.acl")
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    postgres = url(secured.env, "POSTGRES")
    with pytest.raises((OSError, asyncpg.PostgresError)):
        await asyncpg.connect(postgres.partition("?")[0] + "?sslmode=disable")
    certificate(tmp_path / "stranger.pem", tmp_path / "stranger.key")
    strange = f"{postgres.partition('?')[0]}?sslmode=verify-full&sslrootcert={tmp_path}/stranger.pem"
    with pytest.raises(OSError, match="CERTIFICATE_VERIFY_FAILED"):
        await asyncpg.connect(strange)
    plain = clients.admin(settings_of({"ORDERS_KAFKA": secured.env["ORDERS_KAFKA"]}), "test")
    with pytest.raises(OtherProtocol):
        await plain.start()
    await plain.close()
    connection = await asyncpg.connect(postgres)
    try:
        superusers = await connection.fetch("SELECT rolname FROM pg_roles WHERE rolsuper")
        assert [row["rolname"] for row in superusers] == ["postgres"]
        assert await connection.fetchval("SELECT session_user::text") == EVERYBODY
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("CREATE ROLE somebody")
    finally:
        await connection.close()
    with pytest.raises(StackError, match="has no user nobody; it has orders, "):
        secured.env_of("nobody")


def test_what_keeps_a_command_out_is_one_line(
    secured: Stack,
    acting: Callable[[str], None],
    run_command: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A wrong authority, a file that is none or isn't there, a wrong password, nobody there: of each server
    that has them in its URL (tests/integration/test_secure_kafka.py has Kafka's).
    """
    acting(EVERYBODY)
    certificate(tmp_path / "stranger.pem", tmp_path / "stranger.key")
    (tmp_path / "none.pem").write_text("none")
    cart = ("show", "--cart", ORDER)
    for server, parameter, commands in (
        ("POSTGRES", "sslrootcert", (("attention",), cart, ("db",), ("worker",))),
        ("REDIS", "ssl_ca_certs", (("audit",), ("personal", ORDER))),
    ):
        right, file = url(secured.env, server), tmp_path / server
        before, trusted, ca = right.partition(f"{parameter}=")
        login, at, place = right.partition("@")
        somebody = login.rpartition(":")[0]
        for wrong, says in (
            (f"{before}{trusted}{tmp_path}/stranger.pem", "isn't trusted (unable to get local issuer"),
            (f"{before}{trusted}{tmp_path}/none.pem", f"{parameter} names a file that holds no certificates"),
            (f"{before}{trusted}{tmp_path}/gone.pem", f"{parameter} names no file that can be read (No such"),
            (f"{somebody}:MarkedSecret{at}{place}", "refuses the login ("),
            (f"{before.partition('://')[0]}://127.0.0.1:1/0", "127.0.0.1:1/0"),
        ):
            assert ca
            file.write_text(wrong)
            monkeypatch.setenv(f"ORDERS_{server}_FILE", str(file))
            for command in commands:
                get_settings.cache_clear()
                code, said = run_command(*command)
                assert (code, said.count("\n"), says in said) == (2, 1, True), f"{command}: {said}"
                assert "MarkedSecret" not in said
        file.write_text(right)
    monkeypatch.setenv("ORDERS_REDIS_FILE", str(tmp_path / "nowhere"))
    get_settings.cache_clear()
    code, said = run_command("status")
    where = f"{tmp_path}/nowhere"
    assert (code, said.count("\n")) == (2, 1)
    assert said.startswith(
        f"orders: ORDERS_REDIS_FILE={where}: No such file or directory; see orders settings"
    )


class Logins:
    """Runs commands with the login of a role, or of the user who has all roles."""

    def __init__(self, acting: Callable[[str], None], run_command: Callable[..., tuple[int, str]]) -> None:
        self.acting = acting
        self._run = run_command

    def does(self, role: str, *command: str) -> None:
        """It ends with 0. Raises AssertionError otherwise. Blocks."""
        self.acting(role if role == EVERYBODY else f"orders-{role}")
        code, said = self._run(*command)
        assert code == 0, f"{role}: {command}: {said}"

    def lacks(self, role: str, *command: str) -> str:
        """It ends with 2 and one line, which is returned. Raises AssertionError otherwise. Blocks."""
        self.acting(f"orders-{role}")
        code, said = self._run(*command)
        assert (code, said.count("\n")) == (2, 1), f"{role}: {command}: {said}"
        return said

    @contextmanager
    def working(self, role: str, folder: Path) -> Iterator[Worker]:
        """A worker with the login of its role."""
        self.acting(f"orders-{role}")
        kind = "realtime" if role == "worker" else role
        with worker(folder, role, (*ORDERS, "worker", "--name", role, "--role", kind)) as started:
            yield started


@pytest.fixture
def logins(acting: Callable[[str], None], run_command: Callable[..., tuple[int, str]]) -> Logins:
    return Logins(acting, run_command)


@pytest.fixture
def jobs(tmp_path: Path) -> Path:
    """A file of one order."""
    file = tmp_path / "orders.ndjson"
    file.write_text(f"{json.dumps(an_order(1))}\n")
    return file


def test_each_role_does_its_work_with_its_own_login(logins: Logins, jobs: Path, tmp_path: Path) -> None:
    does = logins.does
    shop = ("import", str(write(tmp_path / "shop", cancellations="")), "--live-from", LIVE_FROM)
    does(EVERYBODY, "generate", "--orders", "30", "--seed", "0", "--poison", "0.05")
    with logins.working("worker", tmp_path) as pipeline, logins.working("bulk", tmp_path) as unpacking:
        does("bulk", "bulk", "submit", "orders", "--as-new", str(jobs))
        until(lambda: "is unpacked" in unpacking.text(), "the job is unpacked")
        does("reader", "wait")
        does("owner", "dlq", "redrive", "--all")
        does("bulk", *shop, "--dry-run")
        does("bulk", *shop, "--no-wait")
        does("owner", "pause", "lane", "0", "--reason", "a trial")
        does("owner", "resume", "lane", "0")
        does("owner", "log-level", "debug")
        does("owner", "log-level", "default")
        until(lambda: unpacking.text().count("is unpacked") > 3, "the shop's files are unpacked, too")
        logins.acting("orders-reader")
        processed()
        does("console", "status")
        assert [pipeline.terminate(), unpacking.terminate()] == [0, 0]
    assert "lacks" not in pipeline.text() + unpacking.text()
    assert "redis.away" not in pipeline.text()
    for command in (("show", order_id(1)), ("dlq", "list"), ("attention",)):
        does("reader", *command)
    for command in (("audit",), ("personal", ORDER), ("whatif",)):
        does("audit", *command)
    for command in (("operations",), ("attention",)):
        does("console", *command)
    logins.acting("orders-console")
    asyncio.run(pages())
    does("owner", "repair")
    does("owner", "repair", "--rows")
    does("owner", "dlq", "resolve", "--since", "1d", "--reason", "a trial")
    does("owner", "rebuild", "notices", "--send")


def test_a_role_is_told_which_right_it_lacks(
    logins: Logins, jobs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lacks = logins.lacks
    whole = ("import", str(write(tmp_path / "whole")), "--live-from", LIVE_FROM, "--refunds-as-computed")
    assert "Write on Topic order.cancel_requested" in lacks("bulk", *whole, "--no-wait")
    assert "never retrieved" not in caplog.text
    assert "Read on Topic orders.operations" in lacks("reader", "operations")
    assert "permission denied for table orders_attention" in lacks("bulk", "attention")
    for command in (("pause", "lane", "0"), ("resume", "lane", "0"), ("dlq", "resolve", "0:0"), ("repair",)):
        said = lacks("console", *command, "--reason", "it may not")
        assert "IdempotentWrite on Cluster" in said, command
    assert "IdempotentWrite on Cluster" in lacks("reader", "generate", "--orders", "1")
    again = ("bulk", "submit", "orders", "--as-new", str(jobs), "--again")
    assert "IdempotentWrite on Cluster" in lacks("audit", *again)
    assert "IdempotentWrite on Cluster" in lacks("audit", "repair")
    logins.acting("orders-bulk")
    changelog = get_settings().changelog_topic
    assert f"Read on Topic {changelog}" in lacks("bulk", "show", order_id(1))
    assert "DescribeConfigs on Topic " in lacks("worker", "dlq", "list")


async def pages() -> None:
    """What the console shows and does with the rights of its role."""
    async with opened(get_settings()) as browser:
        order = f"/orders/{order_id(1)}"
        letters = await get(browser, "/dead-letters")
        letter = re.findall(r"/dead-letters/\d+:\d+", letters)[0]
        for path in ("/lanes", "/jobs", letter, "/pauses", "/operations", f"/users/{USER}", *WORKS):
            await get(browser, path)
        for path in (order, f"{order}/stores", f"{order}/records"):
            assert "doesn&#39;t allow" not in await get(browser, path)
        form = {"kind": "lane", "name": "0", "why": "it may not", "step": "pause"}
        refused = await send_form(browser, "/pauses", 503, **form)
        assert "Kafka doesn&#39;t allow IdempotentWrite on Cluster" in refused


def test_one_login_does_everything(
    secured: Stack,
    acting: Callable[[str], None],
    run_command: Callable[..., tuple[int, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    acting(EVERYBODY)
    port = ports.choose(set())
    monkeypatch.setenv("ORDERS_METRICS_PORT", str(port))
    monkeypatch.setenv("ORDERS_PAYMENT_DEADLINE", "5")  # some customers don't pay, and say nothing more
    with worker(tmp_path, "w") as pipeline:
        until(lambda: httpx.get(f"http://127.0.0.1:{port}/ready").status_code == 200, "it says so itself")
        assert httpx.get(f"http://127.0.0.1:{port}/live").text == "ready\n"
        code, said = run_command("simulate", "--checkouts", "5")
        assert code == 0, said
        processed()
        audit()
        assert pipeline.terminate() == 0
    assert "lacks" not in pipeline.text()
    for command in (
        ("db",),
        ("rebuild", "start"),
        ("rebuild", "switch"),
        ("rebuild", "drop"),
        ("bulk", "status"),
        ("partitions", "--to", "8"),
    ):
        code, said = run_command(*command)
        assert code == 0, f"{command}: {said}"
