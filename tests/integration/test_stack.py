"""`orders stack` with real servers: up, down, status, env; unclean ends; strangers. Three brokers and a
replica are in tests/chaos/test_mini.py.
"""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import psutil
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from redis.asyncio import Redis

from stack import Stack, StackError, folders, jars, kafka, ports, processes
from tests.forked import run
from tests.stackfixture import ROOT, purge
from tests.waiting import until
from tests.workers import ORDERS

Orders = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A stack's folder; whatever runs in it at the end is stopped."""
    yield tmp_path / "stack"
    purge(tmp_path / "stack")


def orders(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `orders stack ...` as a user does."""
    return run((*ORDERS, "stack", *arguments), cwd=cwd)


async def write_something(env: dict[str, str]) -> None:
    """A record, a row and a key on the servers that the values lead to."""
    admin = AIOKafkaAdminClient(bootstrap_servers=env["ORDERS_KAFKA"])
    await admin.start()
    try:
        await admin.create_topics([NewTopic("kept", 1, 1)])
    finally:
        await admin.close()
    producer = AIOKafkaProducer(bootstrap_servers=env["ORDERS_KAFKA"], acks="all")
    await producer.start()
    try:
        await producer.send_and_wait("kept", b"a record")
    finally:
        await producer.stop()
    await execute(env["ORDERS_POSTGRES"], "create table kept as select 'a row' as what")
    async with Redis.from_url(env["ORDERS_REDIS"]) as redis:
        assert await redis.set("key", "value")


async def read_something(env: dict[str, str]) -> tuple[bytes | None, str]:
    """The record and the row that write_something left."""
    consumer = AIOKafkaConsumer("kept", bootstrap_servers=env["ORDERS_KAFKA"], auto_offset_reset="earliest")
    await consumer.start()
    try:
        record = await consumer.getone()
    finally:
        await consumer.stop()
    return record.value, str(await execute(env["ORDERS_POSTGRES"], "select what from kept"))


def ended(pid: int) -> bool:
    """Whether a process is gone, but for the entry that its parent, some other process by
    now, may not have collected.
    """
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


async def execute(url: str, statement: str) -> object:
    """The first value of a statement's result."""
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


def used_without_being_told(folder: Path, kafka: str) -> None:
    """`orders` in a folder whose .stack is this one, with no server in the environment, and with one."""
    (folder.parent / ".stack").symlink_to(folder)
    plain = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")} | {
        "PYTHONPATH": str(ROOT)
    }

    def asked(*arguments: str, **more: str) -> tuple[int, str, str]:
        command = (sys.executable, "-c", "from cli.main import main; main()", *arguments)
        done = run(command, cwd=folder.parent, env=plain | more)
        return done.returncode, done.stdout, done.stderr

    code, out, err = asked("settings", "--json")
    assert code == 0
    assert {row["name"]: row["value"] for row in json.loads(out)}["ORDERS_KAFKA"] == kafka
    assert (err.startswith("orders: using the stack in "), err.count("\n")) == (True, 1)
    assert asked("settings", "--help")[2] == "", "nobody needs a server for that"
    code, out, err = asked("db", ORDERS_KAFKA="127.0.0.1:1")
    assert (code, out) == (2, "")
    assert err.startswith("orders: set: ORDERS_KAFKA; not set: ORDERS_POSTGRES, ORDERS_REDIS.")
    assert "cannot reach Postgres at postgresql://***@127.0.0.1:5432/orders" in err


async def test_a_stack_is_started_asked_and_stopped_from_the_command_line(folder: Path) -> None:
    where = ("--dir", str(folder))

    kafka.make_class_cache(jars.class_path(), print)  # `make install` has, where nothing kept it from it
    up = orders("up", "--json", *where)
    assert up.returncode == 0, up.stderr
    values = json.loads(up.stdout)
    assert values.keys() == {"ORDERS_KAFKA", "ORDERS_POSTGRES", "ORDERS_REDIS", "ORDERS_DATA"}
    assert Path(values["ORDERS_DATA"]).is_relative_to(folder)
    await write_something(values)

    again = orders("up", *where)
    assert again.returncode == 0
    assert f"ORDERS_KAFKA={values['ORDERS_KAFKA']}" in again.stdout.splitlines()

    exported = orders("env", *where)
    shell = f'{exported.stdout}\nprintf %s "$ORDERS_POSTGRES"'
    assert (
        subprocess.run(["sh", "-c", shell], capture_output=True, text=True, check=True).stdout
        == values["ORDERS_POSTGRES"]
    )
    assert all(line.startswith("export ORDERS_") for line in exported.stdout.splitlines())

    status = orders("status", "--json", *where)
    assert status.returncode == 0
    servers = json.loads(status.stdout)["servers"]
    assert [server["name"] for server in servers] == ["kafka-1", "postgres", "redis"]
    for server in servers:
        listening = {
            entry.laddr
            for entry in psutil.Process(server["pid"]).net_connections("tcp")
            if entry.status == psutil.CONN_LISTEN
        }
        assert server["port"] in {address.port for address in listening}
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}

    mapped = {Path(each.path).name for each in psutil.Process(servers[0]["pid"]).memory_maps()}
    assert any(re.fullmatch(r"classes-[\d.]+\.aot", name) for name in mapped), mapped

    used_without_being_told(folder, values["ORDERS_KAFKA"])

    assert orders("down", *where).returncode == 0
    assert all(ended(server["pid"]) for server in servers)
    assert orders("status", *where).returncode == 1
    assert orders("env", *where).returncode == 2

    with Stack.start(folder) as stack:
        assert stack.env == values, "free ports are kept"
        assert await read_something(stack.env) == (b"a record", "a row")


async def test_a_stack_comes_back_after_kill_9_of_everything_and_leaves_strangers_alone(folder: Path) -> None:
    before = Stack.start(folder)
    await write_something(before.env)

    # A start that was cut short before it wrote down its pids: the servers are found by what they run.
    path = folder / "stack.json"
    state = json.loads(path.read_text())
    for record in state["servers"].values():
        record["pid"] = record["born"] = None
    path.write_text(json.dumps(state))
    stack = Stack.start(folder)
    assert stack.pids == before.pids
    assert stack.cpu_seconds()["kafka"] > 0

    for pids in stack.pids.values():
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not stack.running, "the servers are dead")

    # The dead servers' pids by now belong to somebody else, as after a reboot; Postgres has
    # its own file with one, too.
    with subprocess.Popen(["sleep", "600"]) as stranger:
        for record in state["servers"].values():
            record["pid"] = stranger.pid
            record["born"] = processes.birth(stranger.pid)
        path.write_text(json.dumps(state))
        lines = (folder / "postgres" / "postgres" / "postmaster.pid").read_text().splitlines()
        (folder / "postgres" / "postgres" / "postmaster.pid").write_text(
            "\n".join([str(stranger.pid), *lines[1:]]) + "\n"
        )

        assert not Stack.open(folder).running
        with Stack.start(folder) as again:
            assert await read_something(again.env) == (b"a record", "a row")
            assert stranger.pid not in {pid for pids in again.pids.values() for pid in pids}
        assert stranger.poll() is None
        stranger.kill()


async def test_a_second_listener_tells_its_clients_another_address_and_one_server_is_started_alone(
    folder: Path,
) -> None:
    with pytest.raises(StackError, match=r"2 addresses are to be advertised by 1 broker\(s\)"):
        Stack.start(folder, advertise=["127.0.0.1:1", "127.0.0.1:2"])
    advertised = f"127.0.0.1:{ports.choose(set())}"
    with Stack.start(folder, advertise=[advertised]) as stack:
        assert stack.detours.keys() == {advertised}
        for bootstrap, address in (
            (f"127.0.0.1:{stack.detours[advertised]}", advertised),
            (stack.env["ORDERS_KAFKA"], stack.env["ORDERS_KAFKA"]),
        ):
            admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
            await admin.start()
            try:
                assert {f"{broker.host}:{broker.port}" for broker in admin._client.cluster.brokers()} == {
                    address
                }
            finally:
                await admin.close()

        before = stack.pids
        [pid] = before["redis"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: not stack.pids["redis"], "Redis is dead")
        stack.revive("redis")
        assert stack.pids["redis"] not in ([], [pid])
        assert {kind: pids for kind, pids in stack.pids.items() if kind != "redis"} == {
            kind: pids for kind, pids in before.items() if kind != "redis"
        }
        with pytest.raises(StackError, match="no server mysql"):
            stack.revive("mysql")


def test_a_server_that_does_not_come_up_says_why_and_leaves_nothing_running(folder: Path) -> None:
    with Stack.start(folder):
        pass

    configuration = folder / "postgres" / "postgres" / "postgresql.conf"
    sound = configuration.read_text()
    configuration.write_text(sound + "\nno_such_setting = 1\n")
    refused = orders("up", "--dir", str(folder))
    configuration.write_text(sound)
    assert "postgres did not start" in refused.stderr
    assert 'unrecognized configuration parameter "no_such_setting"' in refused.stderr

    (folder / "kafka" / "1" / "data" / "meta.properties").write_text("version=1\nnode.id=7\n")
    unreadable = orders("up", "--dir", str(folder))
    assert "kafka-1 did not start" in unreadable.stderr
    assert "meta.properties" in unreadable.stderr

    for failed in (refused, unreadable):
        assert failed.returncode == 2
        assert failed.stdout == ""
        assert "Traceback" not in failed.stderr
    assert not any(status.running for status in Stack.open(folder).status)


def test_a_user_without_a_home_runs_a_stack() -> None:
    """As root: as the user nobody, where that user can reach this clone.
    As anybody else: as that user, without a home.
    """
    nobody = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    account = (
        nobody
        if all(processes.permitted(nobody, place) for place in (ROOT / "stack", Path(sys.prefix) / "bin"))
        else None
    )
    home = Path(tempfile.mkdtemp(prefix="orders-test-user-"))
    shutil.copytree(
        Path(jars.class_path().split(os.pathsep)[0]).parent, home / "cache" / folders.NAME / jars.KAFKA.folder
    )
    if account:
        for path in (home, *home.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid)
    # The user changes once Python has loaded: root's own Python may lie where that user cannot go.
    script = """
import os, pathlib, sys
import stack.lifecycle
folder, uid, gid = pathlib.Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
if uid != os.geteuid():
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
with stack.lifecycle.Stack.start(folder) as running:
    print(sorted(running.pids), running.running, os.stat(running.status[1].log).st_uid == uid)
"""
    uid, gid = (account.pw_uid, account.pw_gid) if account else (os.geteuid(), os.getegid())
    try:
        done = subprocess.run(
            [sys.executable, "-c", script, str(home / "stack"), str(uid), str(gid)],
            env={
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(ROOT),
                "HOME": "/nonexistent",
                "XDG_CACHE_HOME": str(home / "cache"),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.stdout == "['kafka', 'postgres', 'redis'] True True\n", done.stderr
    finally:
        purge(home / "stack")
        shutil.rmtree(home)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("up", "--brokers", "2"), "1 or 3 brokers, not 2", id="brokers"),
        pytest.param(("status",), "there is no stack in", id="status"),
        pytest.param(("down",), "there is no stack in", id="down"),
        pytest.param(("env",), "there is no stack in", id="env"),
    ],
)
def test_what_the_user_can_mend_is_one_line(folder: Path, arguments: tuple[str, ...], says: str) -> None:
    done = orders(*arguments, "--dir", str(folder))
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert says in done.stderr


def test_a_folder_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = orders("up", "--dir", str(tmp_path / "file"))
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "is a file" in done.stderr


@pytest.mark.parametrize("command", ["up", "down", "status", "env"])
def test_help_has_an_example(command: str) -> None:
    done = orders(command, "--help")
    assert done.returncode == 0
    assert re.search(r"Example: .*orders stack", done.stdout)


def test_a_jar_that_differs_from_the_lock_is_refused(tmp_path: Path) -> None:
    locked = jars.read_lock()
    assert len(locked) == 46
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in locked.values())
    first, *others = locked
    (tmp_path / first).write_bytes(b"not the jar")
    with pytest.raises(StackError, match=f"{re.escape(first)} is not the jar"):
        jars.verify(tmp_path, locked)
    assert others
