"""Kafka with TLS, logins and ACLs: a broker of its own, since it takes its configuration at its start."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import uvloop
from aiokafka import TopicPartition
from aiokafka.admin import NewTopic
from aiokafka.errors import TopicAuthorizationFailedError

from cli import main
from cli.access import main as give_access
from settings import Settings, get_settings
from sinks import migrate
from streams import topics
from streams.transport.errors import Stale
from streams.transport.producer import BATCH_BYTES, REQUEST_BYTES, AiokafkaConnection, LaneProducer
from streams.transport.records import OutRecord
from streams.transport.request_writer import RequestWriter
from tests.integration.test_transport import Gate
from tests.secure import DENY, PASSWORD, USER, Secure, secure_broker, token
from tests.servers import as_admin
from tests.waiting import until
from tests.workers import audit, finished, orders, processed, worker
from wire import access, clients
from wire.refused import CertificateRefused, LoginRefused, NoToken, NotTrusted, OtherProtocol

EVERYTHING = [
    ("All", "Topic", "*"),
    ("All", "Group", "*"),
    ("All", "Cluster", "kafka-cluster"),
    ("All", "TransactionalId", "*"),
]


@pytest.fixture(scope="module")
def secure() -> Iterator[Secure]:
    folder = Path(tempfile.mkdtemp(prefix="orders-secure-"))
    try:
        with secure_broker(folder / "stack") as broker:
            finished(broker.set_password(PASSWORD))
            for user in (USER, "CN=client"):
                finished(broker.allow(EVERYTHING, user))
            yield broker
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
async def settings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of a test, without the login at the Kafka of the run, which may have one."""
    for name in os.environ:
        if name.startswith("ORDERS_KAFKA"):
            monkeypatch.delenv(name)
    get_settings.cache_clear()
    return settings


@pytest.fixture
def run_command(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Run a command line with settings in this process -> its exit code and what it says on stderr."""

    def run(environment: dict[str, str], *command: str) -> tuple[int, str]:
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            get_settings.cache_clear()
            code = main.run(list(command))
        get_settings.cache_clear()
        return code, capsys.readouterr().err

    return run


def by(environment: dict[str, str]) -> Settings:
    """Settings with what leads to Kafka instead of the environment's."""
    names = {name.removeprefix("ORDERS_").lower(): value for name, value in environment.items()}
    return Settings.model_validate(names)


async def let_in(environment: dict[str, str]) -> None:
    """Connect. Raises what a client raises."""
    admin = clients.admin(by(environment), "test")
    try:
        await admin.start()
    finally:
        await admin.close()


# -- who is let in -------------------------------------------------------------------------------------------


async def test_every_way_in(secure: Secure, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    certificate = {
        f"SSL_{name}": str(secure.folder / f"client.{end}")
        for name, end in (("CERTFILE", "pem"), ("KEYFILE", "key"))
    }
    plain = {"SASL_MECHANISM": "PLAIN", "SASL_USERNAME": USER, "SASL_PASSWORD": PASSWORD}
    for environment in (
        secure.scram(),
        secure.scram("CLEAR"),
        secure.env("LOGIN", **plain),
        secure.env("MUTUAL", **certificate),
        secure.env("MUTUAL", SSL_CERTFILE=str(secure.folder / "client.both.pem")),
    ):
        await let_in(environment)
    assert "SaslAuthenticateRequest" in caplog.text
    assert PASSWORD not in caplog.text


async def test_a_token_of_a_file_and_of_a_command(
    secure: Secure, settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    bearer = {"SASL_MECHANISM": "OAUTHBEARER"}
    file, runs = tmp_path / "token", tmp_path / "runs"
    by_file = secure.env("LOGIN", **bearer, OAUTH_TOKEN_FILE=str(file))
    with pytest.raises(NoToken, match="No such file"):
        await let_in(by_file)
    file.write_text(token() + "\n")
    await let_in(by_file)
    await let_in(by_file | {"ORDERS_KAFKA_OAUTH_EXTENSIONS": "logicalCluster=lkc-1,identityPoolId=pool-2"})
    file.write_text(token(seconds=-5))
    with pytest.raises(LoginRefused, match="check who issues the token"):
        await let_in(by_file)
    script = "import sys; open(sys.argv[1], 'a').write('x'); print(open(sys.argv[2]).read())"
    command = f"{sys.executable} -c {json.dumps(script)} {runs} {file}"
    by_command = secure.env("LOGIN", **bearer, OAUTH_TOKEN_COMMAND=command)
    file.write_text(json.dumps({"access_token": token(), "expires_in": 3600}))
    await let_in(by_command)
    await let_in(by_command)
    assert runs.read_text() == "x", "a token that holds for an hour is used again"
    failing = secure.env("LOGIN", **bearer, OAUTH_TOKEN_COMMAND="sh -c 'echo MarkedSecret; exit 3'")
    with pytest.raises(NoToken, match="ended with exit code 3") as refused:
        await let_in(failing)
    assert "MarkedSecret" not in str(refused.value)
    assert token().partition(".")[0] not in caplog.text


async def test_the_end_of_a_session_interrupts_nobody(secure: Secure, settings: Settings) -> None:
    admin = clients.admin(by(secure.scram("BRIEF")), "test")
    await admin.start()
    used: list[Any] = []
    while len(used) < 3:
        await admin.describe_cluster()
        (connection,) = admin._client._conns.values()
        if connection not in used:
            used.append(connection)
    assert [each.connected() for each in used] == [False, False, True]
    await admin.close()


async def test_a_token_is_fetched_again_before_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    printed = iter([token("a", 600), token("b", 600), "opaque-1", "opaque-2"])
    tokens = access._Tokens("true")
    monkeypatch.setattr(tokens, "_run", lambda: next(printed))

    async def subject() -> str:
        got = await tokens.get()
        parts = got.split(".")
        return got if len(parts) < 3 else str(json.loads(base64.urlsafe_b64decode(parts[1] + "=="))["sub"])

    assert [await subject(), await subject()] == ["a", "a"]
    now += 539
    assert await subject() == "a"
    now += 2
    assert await subject() == "b"
    tokens.forget()
    assert [await subject(), await subject()] == ["opaque-1", "opaque-2"]


# -- who is not ----------------------------------------------------------------------------------------------


def test_each_refusal_is_a_line_of_its_own(secure: Secure, run_command: Any, tmp_path: Path) -> None:
    wrong = "MarkedSecret-and-wrong"
    over = tmp_path / "over"
    over.write_text(token("MarkedSecret", seconds=-5))

    def bearer(**issuer: str) -> dict[str, str]:
        return secure.env("LOGIN", SASL_MECHANISM="OAUTHBEARER", **issuer)

    stranger = {
        f"SSL_{name}FILE": str(secure.folder / f"stranger.{end}")
        for name, end in (("CERT", "pem"), ("KEY", "key"))
    }
    for environment, kind, says in (
        (
            secure.scram(password=wrong),
            LoginRefused,
            f"refuses the login of {USER} by SCRAM-SHA-512: Authentication failed",
        ),
        (
            secure.env("LOGIN", SASL_MECHANISM="PLAIN", SASL_USERNAME=USER, SASL_PASSWORD=wrong),
            LoginRefused,
            f"refuses the login of {USER} by PLAIN: Authentication failed",
        ),
        (
            secure.scram() | {"ORDERS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-256"},
            LoginRefused,
            "set ORDERS_KAFKA_SASL_MECHANISM to one that it has",
        ),
        (
            secure.scram() | {"ORDERS_KAFKA_SSL_CAFILE": str(secure.folder / "stranger.pem")},
            NotTrusted,
            "set ORDERS_KAFKA_SSL_CAFILE to the certificate of the authority",
        ),
        (
            bearer(OAUTH_TOKEN_FILE=str(tmp_path / "nowhere")),
            NoToken,
            f"no token in ORDERS_KAFKA_OAUTH_TOKEN_FILE={tmp_path}/nowhere (No such file or directory); see",
        ),
        (bearer(OAUTH_TOKEN_FILE=str(over)), LoginRefused, "check who issues the token, for whom it is, and"),
        (
            bearer(OAUTH_TOKEN_COMMAND="sh -c 'echo MarkedSecret; exit 7'"),
            NoToken,
            "ORDERS_KAFKA_OAUTH_TOKEN_COMMAND ended with exit code 7; run it by hand",
        ),
        (secure.env("EXPIRED"), NotTrusted, "certificate has expired; have the broker's certificate renewed"),
        (secure.env("OTHER"), NotTrusted, "reach the brokers by a name that is in their certificates"),
        (secure.env("MUTUAL"), CertificateRefused, "refuses this client's certificate"),
        (secure.env("MUTUAL", **stranger), CertificateRefused, "refuses this client's certificate"),
        ({"ORDERS_KAFKA": secure.broker.at("LOGIN")}, OtherProtocol, "its listener doesn't speak PLAINTEXT"),
        ({"ORDERS_KAFKA": secure.broker.at("CLEAR")}, OtherProtocol, "its listener doesn't speak PLAINTEXT"),
        (
            secure.env("EXPIRED") | {"ORDERS_KAFKA": secure.broker.at("CLEAR")},
            OtherProtocol,
            "its listener doesn't speak SSL",
        ),
    ):
        with pytest.raises(kind):
            finished(let_in(environment))
        code, line = run_command(environment, "partitions")
        assert (code, line.count("\n")) == (2, 1), line
        assert says in line
        assert "MarkedSecret" not in line
    code, line = run_command(secure.scram() | {"ORDERS_KAFKA": "127.0.0.1:1"}, "partitions")
    assert (code, "cannot reach Kafka at 127.0.0.1:1" in line) == (2, True)


def test_the_acl_that_lacks_is_named(
    secure: Secure, run_command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = secure.scram()
    finished(secure.forget())
    try:
        code, line = run_command(user, "wait", "--timeout", "5")
        assert (code, line.count("\n")) == (2, 1), line
        assert "doesn't allow this client Describe on Topic checkout.completed; have that ACL added" in line
        code, line = run_command(user, "init")
        assert (code, line.count("\n")) == (2, 1), line
        assert "doesn't allow this client Describe on Topic orders.operations; have that ACL" in line
        finished(
            secure.allow(
                [
                    ("All", "Cluster", "kafka-cluster"),
                    ("Describe", "Topic", "*"),
                    ("DescribeConfigs", "Topic", "*"),
                    ("Write", "Topic", "orders.operations"),
                ]
            )
        )
        assert run_command(user, "init")[0] == 0
        code, line = run_command(user, "wait", "--timeout", "5")
        assert (code, line.count("\n")) == (2, 1), line
        assert "doesn't allow this client Describe on Group orders-" in line
        # Who may not see how large batches the changelog takes goes by the setting.
        finished(secure.allow([("DescribeConfigs", "Topic", "*")], permission=DENY))
        code, line = run_command(user, "generate", "--orders", "3")
        finished(secure.forget(DENY))
        assert (code, line.count("\n")) == (2, 1), line
        assert "doesn't allow this client Write on Topic " in line
        with monkeypatch.context() as patch:
            for name, value in user.items():
                patch.setenv(name, value)
            ended = orders("generate", "--orders", "500")  # so many that several batches are refused
        assert (ended.returncode, ended.stderr.count("\n")) == (2, 1), ended.stderr
        code, line = run_command(user, "dlq", "list")
        assert (code, line) == (0, "")
    finally:
        finished(secure.forget())
        finished(secure.allow(EVERYTHING))


# -- a worker ------------------------------------------------------------------------------------------------


async def test_a_worker_whose_password_and_rights_are_changed_while_it_runs(
    secure: Secure, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a listener that asks for the login again every two seconds: so the worker, whose connections end in
    the middle of its work, also shows that it can live with that.
    """
    secret = tmp_path / "password"
    secret.write_text(f"{PASSWORD}\n")
    for name, value in secure.scram("BRIEF").items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("ORDERS_KAFKA_SASL_PASSWORD")
    monkeypatch.setenv("ORDERS_KAFKA_SASL_PASSWORD_FILE", str(secret))
    monkeypatch.setenv("ORDERS_LOG_LEVEL", "debug")
    get_settings.cache_clear()
    await topics.ensure(Settings())
    await migrate.upgrade(Settings())
    with worker(tmp_path) as running:
        assert orders("generate", "--orders", "20", "--seed", "1").returncode == 0
        processed()
        changed = "MarkedSecret-that-is-new"
        await secure.set_password(changed)
        try:
            until(
                lambda: "refuses the login" in running.text() or "Authentication failed" in running.text(),
                "the worker says that its password is refused",
            )
            secret.write_text(changed)
            assert orders("generate", "--orders", "20", "--seed", "2").returncode == 0
            processed()
            rights = (
                "Write on Topic stock.reserve",
                "Read on Topic order.paid",
                f"Read on Group {settings.group}",
            )
            for seed, right in enumerate(rights, 3):
                operation, _, kind, name = right.split()
                await secure.allow([(operation, kind, name)], permission=DENY)
                assert orders("generate", "--orders", "20", "--seed", str(seed)).returncode == 0
                lacks = f"this client lacks the ACL {right} "
                until(partial(lambda lacks: lacks in running.text(), lacks), f"the worker says: {lacks}")
                await secure.forget(DENY)
                processed()
            audit()
            assert running.terminate() == 0
        finally:
            await secure.set_password(PASSWORD)
            await secure.forget(DENY)
    assert "MarkedSecret" not in running.text()


async def test_users_of_compose_log_in_and_have_the_rights_of_their_role(
    secure: Secure,
    migrated: None,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """What docker-compose.yml runs as `access`, on a broker with such listeners."""
    password = "it's-MarkedSecret"
    monkeypatch.setenv("ORDERS_KAFKA", f"127.0.0.1:{secure.broker.port}")
    monkeypatch.setenv("ORDERS_POSTGRES", as_admin(settings.postgres))
    monkeypatch.setenv("WORKER_PASSWORD", password)
    get_settings.cache_clear()
    await asyncio.to_thread(give_access)
    said = capsys.readouterr()
    assert (said.out, said.err) == ("orders-worker: rights given on Kafka and PostgreSQL\n", "")

    login = {"SASL_MECHANISM": "SCRAM-SHA-512", "SASL_USERNAME": "orders-worker"}
    await let_in(secure.env("CLEAR", **login, SASL_PASSWORD=password))
    with pytest.raises(LoginRefused):
        await let_in(secure.env("CLEAR", **login, SASL_PASSWORD=PASSWORD))
    mine = by(secure.env("CLEAR", **login, SASL_PASSWORD=password))
    client = clients.admin(mine, "test")
    await client.start()
    try:
        refused = await client.create_topics([NewTopic("orders.unknown", 1, 1)])
        assert refused.topic_errors[0][1] == TopicAuthorizationFailedError.errno
    finally:
        await client.close()
    database = await asyncpg.connect(
        settings.postgres.get_secret_value(), user="orders-worker", password=password
    )
    try:
        assert await database.fetchval("SELECT count(*) FROM orders_order") == 0
        for statement in ("DROP TABLE orders_order", "CREATE TABLE mine ()", "TABLE orders_bulk_job"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await database.execute(statement)
    finally:
        await database.close()


# -- the last byte -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_a_request_that_the_kernel_has_in_part_is_not_made_whole_by_a_lane_that_lost_its_partition(
    secure: Secure, settings: Settings, run: Callable[..., Any]
) -> None:
    """As in test_transport.py, with TLS: its transport may have handed everything on, and the one below it
    holds the rest.
    """
    topic = f"part-{run.__module__}"
    gate = Gate()
    options = {
        "settings": by(secure.scram()),
        "client_id": "test",
        "max_batch_size": BATCH_BYTES,
        "max_request_size": REQUEST_BYTES,
    }
    held: list[int] = []

    async def send() -> None:
        async with secure.operator() as operator:
            await operator.create_topics(
                [NewTopic(topic, 1, 1, topic_configs={"max.message.bytes": "16777216"})]
            )
        lane = LaneProducer(lambda: options, gate.check, gate.waiting, 0.1)
        await lane.send({topic: [OutRecord(b"a", b"1", [])]}, 0)
        assert isinstance(lane._producer, AiokafkaConnection)
        connections = [each for each in lane._producer._producer.client._conns.values() if each.connected()]
        (writer,) = {each._writer for each in connections if isinstance(each._writer, RequestWriter)}

        async def asked() -> None:
            held.append(writer._lower.get_write_buffer_size())
            gate.check()

        writer._gate = asked
        await lane.send({topic: [OutRecord(b"a", bytes(8 << 20), [])]}, 0)
        assert held == [0], "the gate is asked when the kernel has everything"
        sending = asyncio.ensure_future(lane.send({topic: [OutRecord(b"a", bytes(8 << 20), [])]}, 0))
        while not writer._lower.get_write_buffer_size():
            assert not sending.done()
            await asyncio.sleep(0)
        gate.error = Stale("gone")  # as after a minute's stop: before what the loop does next
        with pytest.raises(Stale):
            await sending
        gate.error = None
        await lane.close()
        async with clients.consumer(
            by(secure.scram()), "test", topic, auto_offset_reset="earliest"
        ) as consumer:
            end = await consumer.end_offsets([TopicPartition(topic, 0)])
        assert list(end.values()) == [2]

    run(send())
