"""How clients get into servers: which settings belong together, what is read again, how an error is told."""

from __future__ import annotations

import logging
import os
import socketserver
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka.conn import OAuthAuthenticator
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    KafkaConnectionError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)
from aiokafka.protocol.coordination import FindCoordinatorResponse_v0
from aiokafka.protocol.group import HeartbeatResponse_v0, JoinGroupResponse_v0
from aiokafka.protocol.metadata import MetadataResponse_v0
from aiokafka.protocol.produce import ProduceResponse_v0
from aiokafka.protocol.transaction import InitProducerIdResponse_v0
from pydantic import ValidationError
from redis.exceptions import RedisError

from cli import main
from credentials import PostgresUrl, RedisUrl
from settings import Settings, get_settings
from sinks.clients import UnusableFile, open_client
from sinks.connection import borrowed, check, connect, plain
from stack.certificates import certificate
from streams.transport.delivery import describe
from tests import secure
from wire import access, clients, denied
from wire.access import Access, BadFile
from wire.client import Client
from wire.refused import CertificateRefused, LoginRefused, NoToken, NotTrusted, OtherProtocol, refusal

MARK = "MarkedSecret"
LOGIN = {"kafka_security_protocol": "SASL_SSL", "kafka_sasl_mechanism": "SCRAM-SHA-256"}
USER = {"kafka_sasl_username": "u", "kafka_sasl_password": MARK}
BEARER = LOGIN | {"kafka_sasl_mechanism": "OAUTHBEARER"}
COMMAND = {"kafka_oauth_token_command": f"print {MARK}"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"kafka_sasl_mechanism": "PLAIN"}, "ORDERS_KAFKA_SASL_MECHANISM is set, but"),
        (USER | {"kafka_security_protocol": "SSL"}, "=SSL doesn't log in; make it SASL_SSL"),
        (COMMAND, "ORDERS_KAFKA_OAUTH_TOKEN_COMMAND is set, but"),
        ({"kafka_security_protocol": "SASL_SSL"}, "needs ORDERS_KAFKA_SASL_MECHANISM: PLAIN,"),
        (LOGIN, "SCRAM-SHA-256 needs ORDERS_KAFKA_SASL_USERNAME and ORDERS_KAFKA_SASL_PASSWORD"),
        (LOGIN | {"kafka_sasl_username": "u"}, "SCRAM-SHA-256 needs ORDERS_KAFKA_SASL_USERNAME and"),
        (LOGIN | {"kafka_sasl_password": MARK}, "SCRAM-SHA-256 needs ORDERS_KAFKA_SASL_USERNAME and"),
        (
            LOGIN | USER | COMMAND,
            "ORDERS_KAFKA_OAUTH_TOKEN_COMMAND is for ORDERS_KAFKA_SASL_MECHANISM=OAUTHB",
        ),
        (BEARER, "OAUTHBEARER needs ORDERS_KAFKA_OAUTH_TOKEN_FILE or ORDERS_KAFKA_OAUTH_TOKEN_COMMAND"),
        (BEARER | COMMAND | USER, "logs in by a token: take ORDERS_KAFKA_SASL_USERNAME"),
        (BEARER | COMMAND | {"kafka_oauth_token_file": "/t"}, "are both set; set one of them"),
        ({"kafka_oauth_extensions": f"a={MARK}"}, "ORDERS_KAFKA_OAUTH_EXTENSIONS is set, but"),
        (
            LOGIN | USER | {"kafka_oauth_extensions": "a=b"},
            "EXTENSIONS is for ORDERS_KAFKA_SASL_MECH",
        ),
        (BEARER | {"kafka_oauth_extensions": "a=b"}, "OAUTHBEARER needs ORDERS_KAFKA_OAUTH_TOKEN_FILE or"),
        (BEARER | COMMAND | {"kafka_oauth_extensions": f"a=b,{MARK}"}, "extension 2 is not name=value"),
        (BEARER | COMMAND | {"kafka_oauth_extensions": f"a1={MARK}"}, "extension 1 is not name=value"),
        (BEARER | COMMAND | {"kafka_oauth_extensions": f"auth={MARK}"}, "extension 1 is not name=value"),
        (BEARER | COMMAND | {"kafka_oauth_extensions": f"a={MARK} b"}, "extension 1 is not name=value"),
        (BEARER | COMMAND | {"kafka_oauth_extensions": f"a={MARK},a=c"}, "names an extension twice"),
        ({"kafka_ssl_cafile": "/ca"}, "ORDERS_KAFKA_SSL_CAFILE is set, but"),
        (
            LOGIN | USER | {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_ssl_cafile": "/ca"},
            "=SASL_PLAINTEXT doesn't encrypt; make it SASL_SSL",
        ),
        (
            {"kafka_security_protocol": "SSL", "kafka_ssl_keyfile": "/k"},
            "ORDERS_KAFKA_SSL_KEYFILE needs a certificate: set ORDERS_KAFKA_SSL_CERTFILE",
        ),
        (
            {"kafka_security_protocol": "SSL", "kafka_ssl_key_password": MARK},
            "ORDERS_KAFKA_SSL_KEY_PASSWORD needs a certificate",
        ),
        ({"kafka_security_protocol": "TLS"}, "'PLAINTEXT', 'SSL', 'SASL_PLAINTEXT' or 'SASL_SSL'"),
        (BEARER | {"kafka_oauth_token_command": f"print '{MARK}"}, "can't be split into words"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    settings: dict[str, str],
    says: str,
) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(settings)
    for name, value in settings.items():
        monkeypatch.setenv(f"ORDERS_{name.upper()}", value)
    get_settings.cache_clear()
    code = main.run(["partitions"])
    get_settings.cache_clear()
    line = capsys.readouterr().err
    assert (code, line.count("\n")) == (2, 1), line
    assert says in line
    assert MARK not in line


def test_empty_variables_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a compose file can pass them all on."""
    for name in Settings.model_fields:
        if name.startswith("kafka_") or name.endswith("_file"):
            monkeypatch.setenv(f"ORDERS_{name.upper()}", "")
    settings = Settings()
    assert (settings.kafka_security_protocol, settings.kafka_sasl_mechanism) == ("PLAINTEXT", None)
    assert clients.connection(settings)["security_protocol"] == "PLAINTEXT"


# -- what is read again --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tls") / "certificates"
    secure.certificates(folder)
    certificate(folder / "locked.pem", folder / "locked.key", password=MARK.encode())
    return folder


def tls(folder: Path, certificate: str = "client.pem", key: str = "client.key", **more: Any) -> Settings:
    return Settings.model_validate(
        {
            "kafka_security_protocol": "SSL",
            "kafka_ssl_cafile": folder / "ca.pem",
            "kafka_ssl_certfile": folder / certificate,
            "kafka_ssl_keyfile": folder / key,
        }
        | more
    )


@pytest.mark.parametrize(
    ("certificate", "key", "more", "says"),
    [
        ("none.pem", "client.key", {}, "ORDERS_KAFKA_SSL_CERTFILE=.*none.pem: No such file"),
        ("client.pem", "none.key", {}, "ORDERS_KAFKA_SSL_KEYFILE=.*none.key: No such file"),
        ("client.pem", "broker.key", {}, "the key is of another certificate"),
        ("client.pem", "ca.pem", {}, "can't be used"),
        ("locked.pem", "locked.key", {}, "the key needs ORDERS_KAFKA_SSL_KEY_PASSWORD"),
        ("locked.pem", "locked.key", {"kafka_ssl_key_password": f"{MARK}2"}, "password of the key is wrong"),
        (
            "client.pem",
            "client.key",
            {"kafka_ssl_cafile": "/none/ca.pem"},
            "SSL_CAFILE=/none/ca.pem: No such",
        ),
    ],
)
def test_certificates_that_cannot_be_used_end_the_program_at_its_start(
    certificates: Path, certificate: str, key: str, more: dict[str, Any], says: str
) -> None:
    with pytest.raises(BadFile, match=says) as refused:
        Access(tls(certificates, certificate, key, **more))
    assert MARK not in str(refused.value)


def test_a_locked_key(certificates: Path) -> None:
    Access(tls(certificates, "locked.pem", "locked.key", kafka_ssl_key_password=MARK))


def test_certificates_are_read_again_when_they_have_changed(
    certificates: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def put(name: str) -> None:
        for end in ("pem", "key"):
            (tmp_path / f"own.{end}").write_bytes((certificates / f"{name}.{end}").read_bytes())

    def context() -> ssl.SSLContext:
        ssl_context: ssl.SSLContext = mine.options()["ssl_context"]
        return ssl_context

    put("client")
    settings = tls(certificates).model_copy(
        update={"kafka_ssl_certfile": tmp_path / "own.pem", "kafka_ssl_keyfile": tmp_path / "own.key"}
    )
    mine = Access(settings)
    first = context()
    assert context() is first
    (tmp_path / "own.key").write_bytes((certificates / "broker.key").read_bytes())
    assert (context(), context()) == (first, first), "half of a pair that is being replaced"
    assert [record.levelno for record in caplog.records] == [logging.WARNING], "it is said once"
    assert "what they were before stays in use" in caplog.text
    put("broker")
    second = context()
    assert second is not first
    (tmp_path / "own.key").unlink()
    assert context() is second


async def test_each_connection_reads_the_password_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, user = tmp_path / "password", tmp_path / "user"
    file.write_text("first\n")
    user.write_text("key-1\n")
    settings = Settings.model_validate(
        LOGIN
        | {
            "kafka_security_protocol": "SASL_PLAINTEXT",
            "kafka_sasl_username_file": user,
            "kafka_sasl_password_file": file,
        }
    )
    kafka_options = clients.connection(settings)
    assert kafka_options["sasl_plain_password"] == "first"

    def opened() -> Any:
        from wire.connection import Connection

        options = {name: value for name, value in kafka_options.items() if name != "bootstrap_servers"}
        return Connection("h", 1, **options)

    def password() -> str:
        return str(opened()._sasl_plain_password)

    assert opened()._sasl_plain_username == "key-1"
    user.write_text("key-2")
    connection = opened()
    assert (connection._sasl_plain_username, connection._access.login) == (
        "key-2",
        "of key-2 by SCRAM-SHA-256",
    )
    user.unlink()
    assert opened()._sasl_plain_username == "key-2"
    with pytest.raises(ValidationError, match="USERNAME and ORDERS_KAFKA_SASL_USERNAME_FILE are both set"):
        Settings.model_validate({"kafka_sasl_username": "u", "kafka_sasl_username_file": file})

    file.write_text("second \n\n")
    assert password() == "second \n", "one newline at the end is left out"
    file.unlink()
    assert [password(), password()] == ["second \n"] * 2
    assert caplog.text.count("ORDERS_KAFKA_SASL_PASSWORD_FILE") == 1
    assert "second" not in caplog.text
    file.write_text("third")
    assert password() == "third"
    file.unlink()
    assert password() == "third"
    assert caplog.text.count("ORDERS_KAFKA_SASL_PASSWORD_FILE") == 2, "and again when it vanishes again"


async def test_a_file_without_end_is_no_token() -> None:
    settings = Settings.model_validate(BEARER | {"kafka_oauth_token_file": "/dev/zero"})
    with pytest.raises(NoToken, match=r"TOKEN_FILE=/dev/zero \(a pipe or a device is no file that can be"):
        await Access(settings).token()


async def test_pipes_are_no_files(tmp_path: Path, certificates: Path) -> None:
    """Reading one would wait for whoever writes to it."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(NoToken, match="a pipe or a device is no file"):
        await Access(Settings.model_validate(BEARER | {"kafka_oauth_token_file": pipe})).token()
    for name in ("cafile", "certfile", "keyfile"):
        settings = tls(certificates).model_copy(update={f"kafka_ssl_{name}": pipe})
        with pytest.raises(BadFile, match=f"{name.upper()}={pipe}: a pipe or a device is no file"):
            Access(settings)
    for name in ("sslrootcert", "sslcert", "sslkey", "sslcrl"):
        address = f"postgresql://127.0.0.1:1/d?sslmode=verify-full&{name}={pipe}"
        for act in (connect(address, "test", timeout=5, pooled=False), check(address)):
            with pytest.raises(asyncpg.ClientConfigurationError, match=f"{name} names no file .*a pipe or"):
                await act
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        with pytest.raises(UnusableFile, match=f"ORDERS_REDIS: {name} names no file .*a pipe or a device"):
            open_client(Settings(redis=RedisUrl(f"rediss://127.0.0.1:1/0?{name}={pipe}")))


async def test_authorities_that_are_none_are_named_and_not_the_server(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("none")
    address = f"postgresql://127.0.0.1:1/d?sslmode=verify-full&sslrootcert={file}"
    for act in (connect(address, "test", timeout=5, pooled=False), check(address)):
        with pytest.raises(asyncpg.ClientConfigurationError, match="sslrootcert names a file that holds no"):
            await act
    with pytest.raises(UnusableFile, match="ORDERS_REDIS: ssl_ca_certs names a file that holds no cert"):
        open_client(Settings(redis=RedisUrl(f"rediss://127.0.0.1:1/0?ssl_ca_certs={file}")))


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
@pytest.mark.parametrize("by", ["address", "environment"])
async def test_tls_that_is_checked_needs_to_know_who_signed(
    mode: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("PGSSLROOTCERT", raising=False)
    address = "postgresql://127.0.0.1:1/d"
    if by == "address":
        address += f"?sslmode={mode}"
    else:
        monkeypatch.setenv("PGSSLMODE", mode)
    says = f"^sslmode={mode} needs sslrootcert=FILE, .*; or put it in ~/.postgresql/root.crt$"
    for act in (connect(address, "test", timeout=5, pooled=False), check(address)):
        with pytest.raises(asyncpg.ClientConfigurationError, match=says):
            await act
    with pytest.raises(asyncpg.ClientConfigurationError, match=says):
        plain(address)
    (tmp_path / ".postgresql").mkdir()
    (tmp_path / ".postgresql/root.crt").touch()
    assert plain(address) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  \n",
        "{",
        "[" * 100_000,
        "{" * 100_000,
        '{"token": "x"}',
        '{"access_token": ""}',
        f"{MARK} {MARK}",
        f"{MARK}\0",
    ],
)
def test_what_is_no_token_is_not_repeated(text: str) -> None:
    if text.startswith("["):
        assert access._parsed(text) == (text, 0.0)
        return
    with pytest.raises(ValueError, match="it ") as refused:
        access._parsed(text)
    assert MARK not in str(refused.value)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("", ""),
        ("logicalCluster=lkc-1", "\1logicalCluster=lkc-1"),
        ("logicalCluster=lkc-1, identityPoolId=a=b", "\1logicalCluster=lkc-1\1identityPoolId=a=b"),
    ],
)
async def test_extensions_go_with_the_token(tmp_path: Path, given: str, sent: str) -> None:
    file = tmp_path / "token"
    file.write_text("abc")
    settings = Settings.model_validate(
        BEARER | {"kafka_oauth_token_file": file, "kafka_oauth_extensions": given}
    )
    message = await OAuthAuthenticator(sasl_oauth_token_provider=Access(settings)).step(b"")
    assert message == (f"n,,\1auth=Bearer abc{sent}\1\1".encode(), True)


@pytest.mark.parametrize("command", ["/none/program", "sh -c 'exit 7'", "true", "sh -c 'printf {'"])
async def test_a_command_that_gives_no_token(command: str) -> None:
    with pytest.raises(NoToken, match=r"ORDERS_KAFKA_OAUTH_TOKEN_COMMAND .*run it by hand"):
        await access._Tokens(command).get()


async def test_a_command_that_hangs_is_ended_with_what_it_has_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(access, "COMMAND_SECONDS", 0.1)
    with pytest.raises(NoToken, match="took longer than"):
        await access._Tokens("sh -c 'sleep 600 & sleep 600'").get()


# -- how an error is told ------------------------------------------------------------------------------------


def test_a_refusal_is_found_behind_what_aiokafka_raises() -> None:
    def why(error: BaseException, protocol: str = "SASL_SSL") -> Any:
        return refusal(error, "b:1", protocol, "of u by PLAIN")

    wrapped = KafkaConnectionError("closed")
    wrapped.__cause__ = ssl.SSLError(1, "[SSL: TLSV13_ALERT_CERTIFICATE_REQUIRED] tlsv13 alert")
    wrapped.__cause__.reason = "TLSV13_ALERT_CERTIFICATE_REQUIRED"
    assert isinstance(why(wrapped), CertificateRefused)
    refused = why(SaslAuthenticationFailed("not here."))
    assert isinstance(refused, LoginRefused)
    assert "refuses the login of u by PLAIN: not here; check" in str(refused)
    lost = KafkaConnectionError("closed")
    lost.__cause__ = EOFError()
    assert isinstance(why(lost, "PLAINTEXT"), OtherProtocol)
    for elsewhere in (ConnectionRefusedError(), TimeoutError(), OSError("no route"), KafkaConnectionError()):
        assert why(elsewhere) is None
    untrusted = ssl.SSLCertVerificationError(1, "bad")
    untrusted.verify_code, untrusted.verify_message = 10, "certificate has expired"
    assert isinstance(why(untrusted), NotTrusted)


async def test_a_client_says_why_it_is_not_let_in(monkeypatch: pytest.MonkeyPatch) -> None:
    client = clients.client(Settings(kafka="127.0.0.1:1"), "test")
    refused = LoginRefused("no", "mend it")

    async def fails(self: Any, *_: Any, **__: Any) -> None:
        client._sasl_oauth_token_provider.refused(refused)
        raise failure

    failure: Exception = KafkaConnectionError("Unable to bootstrap")
    monkeypatch.setattr("aiokafka.client.AIOKafkaClient.bootstrap", fails)
    with pytest.raises(LoginRefused) as raised:
        await client.bootstrap()
    assert raised.value is refused
    failure = NodeNotReadyError("not ready")
    monkeypatch.setattr("aiokafka.client.AIOKafkaClient.send", fails)
    with pytest.raises(NodeNotReadyError) as waits:
        await client.send(1, None)
    assert describe(waits.value) == "LoginRefused: no; mend it"
    assert main.explain(waits.value) == "no; mend it"
    await client.close()


async def test_every_client_is_ours() -> None:
    settings = Settings(kafka="127.0.0.1:1")
    consumer, producer = clients.consumer(settings, "c"), clients.producer(settings, "p")
    admin = clients.admin(settings, "a")
    assert {type(each) for each in (consumer._client, producer.client, admin._client)} == {Client}
    await consumer.stop()
    await producer.stop()
    await admin.close()


@pytest.mark.parametrize(
    ("greeting", "says"),
    [
        (8, "name its authority by sslrootcert= in ORDERS_POSTGRES"),
        (0, "name its authority by ssl_ca_certs= in ORDERS_REDIS"),
    ],
    ids=["postgres", "redis"],
)
async def test_a_certificate_that_is_not_trusted(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, greeting: int, says: str
) -> None:
    """Postgres is asked for TLS in 8 bytes before it begins."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(certificates / "broker.pem", certificates / "broker.key")

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            if greeting:
                self.request.recv(greeting)
                self.request.sendall(b"S")
            with suppress(OSError):  # the client doesn't trust it
                server_side.wrap_socket(self.request, server_side=True)

    authority = certificates / "stranger.pem"
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        where = f"127.0.0.1:{server.server_address[1]}"
        postgres = PostgresUrl(f"postgresql://u:p@{where}/d?sslmode=verify-full&sslrootcert={authority}")
        redis = open_client(Settings(redis=RedisUrl(f"rediss://{where}/0?ssl_ca_certs={authority}")))
        monkeypatch.setenv("ORDERS_POSTGRES", postgres.get_secret_value())
        get_settings.cache_clear()
        with pytest.raises((OSError, RedisError)) as raised:
            await (connect(postgres, "test", timeout=5, pooled=False) if greeting else redis.ping())
        await redis.aclose()
        server.shutdown()
    message = main.explain(raised.value) or ""
    get_settings.cache_clear()
    assert says in message
    assert "(unable to get local issuer certificate)" in message


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.setattr(denied, "_noted", {})
    return denied.note


def request(name: str, **attributes: str) -> Any:
    return type(f"{name}Request", (), attributes)()


def test_the_acl_that_lacks_follows_from_the_request(noted: Callable[..., None]) -> None:
    assert denied.acl(KafkaConnectionError()) is None
    unknown = denied.acl(GroupAuthorizationFailedError("g"))
    assert str(unknown) == "the operation on Group g"
    noted(request("Metadata"), MetadataResponse_v0([], [(0, "e", [(29, 0, 1, [], [])]), (29, "c.d", [])]))
    noted(request("Produce"), ProduceResponse_v0([("a", [(0, 0, 5), (1, 29, -1)]), ("b", [(0, 29, -1)])]))
    noted(request("JoinGroup", _group="g"), JoinGroupResponse_v0(30, -1, "", "", "", []))
    noted(request("FindCoordinator", _coordinator_key="g2"), FindCoordinatorResponse_v0(30, -1, "", 0))
    noted(request("InitProducerId"), InitProducerIdResponse_v0(0, 31, -1, -1))
    noted(request("Heartbeat"), HeartbeatResponse_v0(27))
    noted(request("Unheard"), HeartbeatResponse_v0(29))
    noted(request("Heartbeat"), object())
    for error, lacks in (
        (TopicAuthorizationFailedError("a"), "Write on Topic a"),
        (TopicAuthorizationFailedError({"b"}), "Write on Topic b"),
        (TopicAuthorizationFailedError("cannot create topic c.d: no"), "Describe on Topic c.d"),
        (GroupAuthorizationFailedError("g"), "Read on Group g"),
        (GroupAuthorizationFailedError("g2"), "Describe on Group g2"),
        (
            ClusterAuthorizationFailedError(),
            "IdempotentWrite on Cluster kafka-cluster, which Write on any topic gives",
        ),
    ):
        assert str(denied.acl(error)) == lacks
    assert describe(TopicAuthorizationFailedError("a")).endswith("this client lacks the ACL Write on Topic a")


class FreeAgain:
    """A pool whose connections somebody ends while they are given back."""

    async def acquire(self) -> str:
        return "a connection"

    async def release(self, _: str) -> None:
        raise asyncpg.InternalClientError("PoolConnectionHolder.release() called on a free connection holder")


async def test_what_a_statement_said_counts_and_not_that_its_connection_was_ended_meanwhile() -> None:
    pool: Any = FreeAgain()
    async with borrowed(pool) as connection:
        assert connection == "a connection"
    with pytest.raises(asyncpg.UndefinedTableError):
        async with borrowed(pool):
            raise asyncpg.UndefinedTableError("relation does not exist")
