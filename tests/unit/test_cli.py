"""The command line towards a person: one line for what can be mended, the right
exit code, never a traceback.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import asyncpg
import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    OffsetOutOfRangeError,
    UnknownTopicOrPartitionError,
)
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from cli import dlq, main
from errors import OrdersError
from settings import get_settings
from tests.stackfixture import ROOT
from wire import denied

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def orders(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run one command line in this process -> exit code, stdout, stderr."""

    def run(*args: str, **environment: str) -> tuple[int, str, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        try:
            code = main.run(list(args))
        finally:
            get_settings.cache_clear()
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def closed_port() -> str:
    """An address where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def one_line(err: str) -> str:
    assert err.startswith("orders: ")
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("frobnicate",), "No such command 'frobnicate'; see orders --help"),
        (("setting",), "Did you mean 'settings'?"),
        (("settings", "--wrong"), "No such option: --wrong"),
        (("generate", "--orders", "many"), "'--orders'"),
        (("generate", "--orders", "0"), "'--orders'"),
        (("generate", "--poison", "2"), "'--poison'"),
        (("generate", "--rate", "0"), "'--rate'"),
        (("wait", "--timeout", "-1"), "'--timeout'"),
        (("init", "--partition-by", "mood"), "'--partition-by'"),
        (("replay", "olist"), "'DIR'"),
        (("replay", "ebay"), "No such command 'ebay'; see orders replay --help"),
        (("dlq", "list", "--reason", "boredom"), "no reason code 'boredom'; one of not_json, "),
        (("dlq", "list", "--topic", "orders"), "no dead letter comes from a topic 'orders'"),
        (("dlq", "list", "--state", "lost"), "no state 'lost'; one of new, redriven, parked, final"),
        (("dlq", "redrive", "--reason", "boredom"), "no reason code 'boredom'"),
        (("dlq", "redrive", "--topic", "orders"), "no dead letter comes from a topic 'orders'"),
        (("dlq", "redrive", "--ids", "0:1,2"), "--ids '2' is not PARTITION:OFFSET"),
        (("dlq", "redrive", "--max", "0"), "'--max'"),
        (("dlq", "redrive", "--yes"), "No such option: --yes"),
        (
            ("dlq", "redrive"),
            "nothing says which dead letters; --all for every one, or --reason, --topic, --seller, ...",
        ),
        (("dlq", "redrive", "--json"), "nothing says which dead letters; --all"),
        (("dlq", "redrive", "--all", "--topic", "order.paid"), "--all contradicts what else chooses"),
        (("db", "--json", "regions", "list"), "--json belongs after regions"),
        (
            ("grants", "kafka", "--role", "nobody"),
            "Invalid value for '--role': 'nobody' is not one of 'owner', 'worker', 'reader', 'bulk', 'audit',"
            " 'console'; see orders grants kafka --help",
        ),
        (("db", "sizes"), "No such command 'sizes'; see orders db --help"),
        (("db", "link"), "nothing to link; give at least one of --users"),
        (("db", "unlink", "friends"), "'friends' is not one of 'users', 'products', 'warehouses', 'sellers'"),
        (("db", "regions", "add"), "Missing argument 'REGION'"),
        (("db", "regions", "add", "SP", "--timeout", "-1"), "'--timeout'"),
        (("dlq", "show", "17"), "'17' is neither PARTITION:OFFSET nor TOPIC:PARTITION:OFFSET"),
        (("dlq", "show", "0:x"), "'0:x' is neither"),
        (("personal", "anna"), "'anna' is not a UUID; give a user_id such as "),
        (("personal",), "Missing argument 'USER'"),
        (("replay", "olist", "/nowhere/at/all"), "/nowhere/at/all: no such folder"),
    ],
)
def test_wrong_usage(orders: Run, args: tuple[str, ...], says: str) -> None:
    code, out, err = orders(*args)
    assert (code, out) == (2, "")
    assert says in one_line(err)


def test_a_missing_file_is_named(orders: Run, tmp_path: Path) -> None:
    code, _, err = orders("replay", "olist", str(tmp_path))
    assert code == 2
    assert f"{tmp_path / 'olist_customers_dataset.csv'}: no such file" in one_line(err)


@pytest.mark.parametrize(
    "args",
    [
        ("init",),
        ("generate",),
        ("wait",),
        ("dlq", "list"),
        ("dlq", "show", "0:0"),
        ("dlq", "redrive", "--all"),
        ("personal", "0d0d0d0d-0000-4000-8000-000000000001"),
    ],
)
def test_no_kafka(orders: Run, closed_port: str, args: tuple[str, ...]) -> None:
    code, out, err = orders(*args, ORDERS_KAFKA=closed_port)
    assert (code, out) == (2, "")
    assert f"cannot reach Kafka at {closed_port}" in one_line(err)
    assert "orders stack up" in err
    assert "ORDERS_KAFKA" in err


@pytest.mark.parametrize(
    "args",
    [
        ("db",),
        ("db", "--json"),
        ("db", "link", "--users", "u"),
        ("db", "unlink"),
        ("db", "regions", "add", "SP"),
        ("db", "regions", "list"),
    ],
)
@pytest.mark.usefixtures("unnoted")
def test_no_postgres(orders: Run, closed_port: str, args: tuple[str, ...]) -> None:
    code, out, err = orders(*args, ORDERS_POSTGRES=f"postgresql://postgres:secret@{closed_port}/orders")
    assert (code, out) == (2, "")
    assert f"cannot reach Postgres at postgresql://***@{closed_port}/orders" in one_line(err)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("ORDERS_DATA", "", "ORDERS_DATA=: must be a folder, not empty"),
        ("ORDERS_DATA", "/x\udcff", "must be written in UTF-8"),
        ("ORDERS_KAFKA", "localhost", "ORDERS_KAFKA=***: broker 1 is not host:port"),
        (
            "ORDERS_KAFKA",
            "h:1,sasl_ssl://u:secret@h:9092",
            "without a scheme: ORDERS_KAFKA_SECURITY_PROTOCOL and",
        ),
        ("ORDERS_PARTITIONS", "four", "ORDERS_PARTITIONS=four: "),
        ("ORDERS_POSTGRES", "mysql://u:secret@h/d", "must look like postgresql://"),
        ("ORDERS_API_KEYS", "secret", "ORDERS_API_KEYS=***: each key is at least 16"),
    ],
)
def test_a_setting_that_cannot_be_used(orders: Run, name: str, value: str, says: str) -> None:
    code, out, err = orders("settings", **{name: value})
    assert (code, out) == (2, "")
    assert says in one_line(err)
    assert "secret" not in err


def test_settings_are_all_there_and_passwords_are_not(orders: Run) -> None:
    environment = {
        "ORDERS_POSTGRES": "postgresql://u:secret@h:1/d",
        "ORDERS_PARTITIONS": "8",
        "ORDERS_API_KEYS": "a-secret-that-is-long",
    }
    code, out, err = orders("settings", "--json", **environment)
    assert (code, err) == (0, "")
    rows = {row["name"]: row for row in json.loads(out)}
    assert list(rows) == [f"ORDERS_{name.upper()}" for name in type(get_settings()).model_fields]
    assert rows["ORDERS_POSTGRES"]["value"] == "postgresql://***@h:1/d"
    assert (
        rows["ORDERS_PARTITIONS"]["value"],
        rows["ORDERS_PARTITIONS"]["default"],
        rows["ORDERS_PARTITIONS"]["set"],
    ) == (8, 4, True)
    assert all(row["description"] for row in rows.values())
    code, out, _ = orders("settings", **environment)
    assert code == 0
    assert "ORDERS_PARTITIONS = 8" in out
    assert "secret" not in out


@pytest.mark.parametrize("args", [("stack", "up"), ("demo",), ("bench",)])
def test_without_the_packages_of_the_local_servers(
    orders: Run, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...]
) -> None:
    """As in the workers' image."""
    for name in [
        name
        for name in sys.modules
        if name.partition(".")[0] in ("stack", "benchmarks") or name == "cli.demo"
    ]:
        monkeypatch.delitem(sys.modules, name)
    for name in main.LOCAL_SERVERS:
        monkeypatch.setitem(sys.modules, name, None)
    code, out, err = orders(*args)
    assert (code, out) == (2, "")
    assert "the local servers are not installed" in one_line(err)
    assert "pip install 'orders-stream[stack]'" in err


def test_help_imports_nothing_of_what_a_command_works_with() -> None:
    """A person waits for it at every start: what asks servers is imported when a command runs."""
    heavy = {"aiohttp", "alembic", "audit.reference", "fastapi", "faust", "jinja2", "pyarrow", "redis"}
    heavy |= {"rocksdict", "sqlalchemy", "uvicorn"}
    loading = (
        "import sys; from cli import main; print(*sys.modules);"
        " [main.load(each) for each in main.SUBCOMMANDS]; print(*sys.modules)"
    )
    ran = subprocess.run((sys.executable, "-c", loading), capture_output=True, text=True, check=True)
    alone, with_all = (set(line.split()) for line in ran.stdout.splitlines())
    assert not (heavy | {"aiokafka", "asyncpg"}) & alone
    assert not heavy & with_all


def test_the_packages_of_the_local_servers_are_those_of_the_extra() -> None:
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["stack"]
    assert {
        re.split(r"[=>]", requirement)[0].replace("-", "_") for requirement in extra
    } == main.LOCAL_SERVERS


@pytest.mark.parametrize("name", [sub.name for sub in main.SUBCOMMANDS])
def test_every_subcommand_is_where_the_table_says(orders: Run, name: str) -> None:
    code, out, err = orders(name, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: orders {name}" in out


@pytest.mark.parametrize("sub", main.SUBCOMMANDS, ids=[sub.name for sub in main.SUBCOMMANDS])
def test_every_commands_help_has_an_example(sub: main.Subcommand) -> None:
    commands = {sub.name: main.load(sub)}
    while commands:
        name, command = commands.popitem()
        assert "Example" in f"{command.help} {command.epilog}", name
        below = getattr(command, "commands", {})
        commands |= {f"{name} {each}": below[each] for each in below}


def test_help_is_wrapped_at_the_terminals_width(orders: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = orders("dlq", "redrive", "--help")
    paragraph = out[out.index("Choose the letters") : out.index("Example:")]
    *lines, _ = (line.strip() for line in paragraph.strip().splitlines())
    assert len(lines) > 3
    assert [line for line in lines if len(line) < 60] == []


def test_help_lists_every_subcommand_without_importing_it(
    orders: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "load", lambda sub: pytest.fail(f"imported {sub.module}"))
    for args in ((), ("--help",)):
        code, out, err = orders(*args)
        assert (code, err) == (0, "")
        assert all(f" {sub.name} " in out and sub.help[:20] in out for sub in main.SUBCOMMANDS)


def test_ctrl_c_is_quiet(orders: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cli.settings.table", interrupt)
    assert orders("settings") == (130, "", "")


def test_the_first_process_of_a_container_ends_by_sigterm() -> None:
    """The kernel keeps from it what it has no handler for, as if it were ignored."""
    program = (
        "import os, signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); os.getpid = lambda: 1\n"
        "from cli import main\n"
        "main.run = lambda _: print('up', flush=True) or signal.pause() or 0\n"
        "main.main()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.terminate()
        try:
            assert process.wait(20) == 128 + signal.SIGTERM
        finally:
            process.kill()


def test_a_fault_in_machine_code_says_where_it_was() -> None:
    program = (
        "import os, signal\nfrom cli import main\n"
        "def crashes(_): os.kill(os.getpid(), signal.SIGSEGV)\n"
        "main.run = crashes\nmain.main()"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGSEGV
    assert "Segmentation fault" in ended.stderr
    assert "in crashes" in ended.stderr


def test_a_defect_of_ours_keeps_its_traceback(orders: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("cli.settings.table", broken)
    with pytest.raises(KeyError, match="ours"):
        orders("settings")


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OrdersError("it is broken", "mend it"), "it is broken; mend it"),
        (
            ExceptionGroup("tasks", [ValueError(), OrdersError("it is broken", "mend it")]),
            "it is broken; mend it",
        ),
        (KafkaConnectionError("no"), "cannot reach Kafka at "),
        (UnknownTopicOrPartitionError("x"), "run orders init"),
        (OffsetOutOfRangeError("x"), "were deleted while they were read; run it again"),
        (RedisConnectionError("no"), "cannot reach Redis at "),
        (asyncpg.UndefinedTableError("orders_order"), "run orders init"),
        (
            asyncpg.InvalidPasswordError("no"),
            "refuses the login (no); check the user and the password in ORDERS_POSTGRES",
        ),
        (
            asyncpg.InsufficientPrivilegeError("permission denied for table t"),
            "doesn't allow it (permission denied for table t); as the owner of the tables, GRANT it",
        ),
        (
            AuthenticationError("WRONGPASS"),
            "refuses the login (WRONGPASS); check the user and the password in ORDERS_REDIS",
        ),
        (
            NoPermissionError("User u has no permissions to run the 'get' command"),
            "no permissions to run the 'get' command); give its user that (ACL SETUSER)",
        ),
        (
            GroupAuthorizationFailedError("orders"),
            "doesn't allow this client the operation on Group orders; have that ACL added",
        ),
        (
            asyncpg.ForeignKeyViolationError("no user"),
            "(no user): add what is missing, or run orders db unlink",
        ),
        (FileNotFoundError(2, "No such file", "here.csv"), "here.csv: No such file; check the path"),
        (OSError(28, "No space left on device"), "the disk is full"),
        (Exception("IO error: No space left on device: While appending"), "the disk is full"),
        (ValueError("ours"), None),
        (Exception("ours"), None),
        (OSError("ours"), None),
    ],
)
def test_explanations(monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str | None) -> None:
    monkeypatch.setattr(denied, "_noted", {})  # of tests before this one
    line = main.explain(error)
    assert line is None if says is None else says in (line or "")


async def test_a_refused_connection_names_the_server_whose_client_it_was(
    closed_port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"postgresql://u:secret@{closed_port}/d"
    monkeypatch.setenv("ORDERS_POSTGRES", url)
    get_settings.cache_clear()
    with pytest.raises(OSError, match="Connect") as caught:
        await asyncpg.connect(url)
    line = main.explain(caught.value) or ""
    get_settings.cache_clear()
    assert f"cannot reach Postgres at postgresql://***@{closed_port}/d" in line
    assert "ORDERS_POSTGRES" in line


def test_a_cause_is_found_behind_what_hides_it() -> None:
    try:
        try:
            raise KafkaConnectionError("no")
        except KafkaConnectionError as error:
            raise RuntimeError("while starting") from error
    except RuntimeError as error:
        line = main.explain(error)
    assert line is not None
    assert "cannot reach Kafka" in line


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (b'{"a":[1,"x"]}', '{\n  "a": [\n    1,\n    "x"\n  ]\n}'),
        (b'{"a":1.10}', '{"a":1.10}'),  # indenting would print 1.1
        (b'{"a":1e400}', '{"a":1e400}'),
        (b'{"a":NaN}', '{"a":NaN}'),
        (b'{"a":1,"a":2}', '{"a":1,"a":2}'),
        (b"\xff\x1b[31mred\x00", r"\xff\x1b[31mred\x00"),
        ("a\u202eb".encode(), r"a\u202eb"),
        (b"[" * 100_000, "[" * 100_000),
    ],
)
def test_a_value_is_shown_without_loss_and_without_harm(value: bytes, shown: str) -> None:
    assert dlq.pretty(value) == shown


def test_a_name_that_is_no_setting_is_told_and_its_value_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "ORDERS_GRUOP",
        "ORDERS_SOMETHING\x1b",
        # Known:
        "ORDERS_KAFKA_SASL_PASSWORD_FILE",
        "ORDERS_COMPILED",
        "orders_partitions",  # refused by whoever reads it
        "ORDERSHIP",
        # Kubernetes', of a service `orders-api`:
        "ORDERS_API_SERVICE_HOST",
        "ORDERS_API_SERVICE_PORT_HTTP",
        "ORDERS_API_PORT",
        "ORDERS_API_PORT_8080_TCP_ADDR",
    ):
        monkeypatch.setenv(name, "secret")
    main.warn_of_unknown_settings()
    assert capsys.readouterr() == (
        "",
        "orders: warning: ORDERS_GRUOP is no setting and is ignored; did you mean ORDERS_GROUP?\n"
        "orders: warning: ORDERS_SOMETHING\\x1b is no setting and is ignored; orders settings lists all\n",
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [("orders_partitions", "ORDERS_PARTITIONS"), ("Orders_Redis_File", "ORDERS_REDIS_FILE")],
)
@pytest.mark.parametrize("capitals", [False, True])
def test_a_setting_in_small_letters_is_refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    name: str,
    meant: str,
    capitals: bool,
) -> None:
    monkeypatch.setenv("ORDERS_PARTITIONS", "2") if capitals else monkeypatch.delenv(meant, raising=False)
    monkeypatch.setenv(name, "7secret")
    get_settings.cache_clear()
    code = main.run(["partitions"])
    get_settings.cache_clear()
    assert (code, capsys.readouterr().err) == (
        2,
        f"orders: {name} in the environment isn't in capitals; write {meant}, or unset it\n",
    )


def test_every_command_tells_names_that_are_no_settings_on_stderr_alone() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", "from cli.main import main; main()", "events", "--json"],
        env={**os.environ, "ORDERS_GRUOP": "secret"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stdout)
    assert one_line(ended.stderr).startswith("orders: warning: ORDERS_GRUOP is no setting")
