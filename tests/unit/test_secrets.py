"""Passwords in server URLs: wherever they stand in one, right or wrong, nothing prints them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import socketserver
import struct
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import SecretStr, ValidationError
from redis.exceptions import RedisError

from cli import main
from credentials import PostgresUrl, RedisUrl, ServerUrl
from settings import SECRET_FILES, Settings, get_settings
from sinks.clients import ONCE, open_client

MARK = "MarkedSecret"
NOWHERE = "127.0.0.1:1"

POSTGRES = {
    f"postgresql://u:{MARK}@{NOWHERE}/d": f"postgresql://***@{NOWHERE}/d",
    f"postgresql://{MARK}@{NOWHERE}/d": f"postgresql://***@{NOWHERE}/d",
    f"postgres://u:%2F{MARK}%40@{NOWHERE},h2/d": f"postgres://***@{NOWHERE},h2/d",
    f"postgresql://u@{NOWHERE}/d?password={MARK}": f"postgresql://***@{NOWHERE}/d?***",
    f"postgresql://{NOWHERE}/d?user=u&sslmode=disable&sslpassword={MARK}": f"postgresql://{NOWHERE}/d?***",
    f"postgresql://u@{NOWHERE}/d?passfile=/{MARK}": f"postgresql://***@{NOWHERE}/d?***",
    f"postgresql:///d?host=/nowhere&password={MARK}": "postgresql:///d?***",
    f"postgresql://u:{MARK}@[::1]:1/d": "postgresql://***@[::1]:1/d",
    f"postgresql://u@{NOWHERE}/d?target_session_attrs={MARK}": f"postgresql://***@{NOWHERE}/d?***",
    f"postgresql://u@{NOWHERE}/d?sslmode={MARK}": f"postgresql://***@{NOWHERE}/d?***",
    f"postgresql://u@127.0.0.1/d?port={MARK}": "postgresql://***@127.0.0.1/d?***",
    f"postgresql://u@/d?host=127.0.0.1&port={MARK}": "postgresql://***@/d?***",
}
REDIS = {
    f"redis://:{MARK}@{NOWHERE}/0": f"redis://***@{NOWHERE}/0",
    f"redis://{MARK}@{NOWHERE}": f"redis://***@{NOWHERE}",
    f"rediss://u:{MARK}@{NOWHERE}/": f"rediss://***@{NOWHERE}/",
    f"redis://{NOWHERE}/0?password={MARK}": f"redis://{NOWHERE}/0?***",
    f"redis://{NOWHERE}?username=u&password={MARK}": f"redis://{NOWHERE}?***",
    f"redis+sentinel://u:{MARK}@{NOWHERE},[::1]:2/orders/0?sentinel_password={MARK}": (
        f"redis+sentinel://***@{NOWHERE},[::1]:2/orders/0?***"
    ),
    f"rediss+sentinel://{MARK}@{NOWHERE}/orders": f"rediss+sentinel://***@{NOWHERE}/orders",
    f"unix://u:{MARK}@/nowhere.sock?db=1": "unix://***@/nowhere.sock?***",
}
WRONG = [
    "",
    MARK,
    f"u:{MARK}@h/d",
    f"{{}}//u:{MARK}@h/1",
    f"{{}}:/u:{MARK}@h/1",
    f"{{}}:///u:{MARK}@h/1",
    f"{{}}:///u:{MARK}",
    f"mysql://u:{MARK}@h/1",
    f"{{}}://u:{MARK}/x@h/1",
    f"{{}}://u:1/{MARK}@h/1",
    f"{{}}://u:{MARK}#x@h/1",
    f"{{}}://u:1#{MARK}@h/1",
    f"{{}}://u:{MARK}?x@h/1",
    f"{{}}://u:1?x={MARK}@h/1",
    f"{{}}://u:{MARK}@x@h/1",
    f"{{}}://u:x@{MARK}@h/1",
    f"{{}}://u:[{MARK}@h/1",
    f"{{}}://u:]{MARK}[@h/1",
    f"{{}}://[{MARK}@h/1",
    f"{{}}://u:{MARK} x@h/1",
    f"{{}}://u:{MARK}\n@h/1",
    f"{{}}://u:{MARK}\u202e@h/1",
    f"{{}}://u:x@h:{MARK}/1",
    f"{{}}://h:{MARK}",
    f"{{}}://u:x@h:99999/1?password={MARK}",
    f"{{}}://u:x@h/1?{MARK}",
    f"{{}}://u:x@h/1?pass word={MARK}",
    f" {{}}://u:{MARK}@h/1",
    f"{{}}+sentinel://u:{MARK}@h",
    f"{{}}+sentinel://u:{MARK}@h/orders/{MARK}",
    f"{{}}+sentinel://u:{MARK}@h,/orders",
    f"sentinel+{{}}://u:{MARK}@h/orders",
]
KAFKA = [
    f"sasl_ssl://user:{MARK}@h:9092",
    f"user:{MARK}@h:9092",
    f"h:9092,SASL_SSL://u:{MARK}@h:9092",
    f"kafka://{MARK}@h:1",
    f"h:{MARK}",
    f"{MARK}",
    f"h:1?password={MARK}",
    f"{MARK} x:1",
    f"h:1/{MARK}",
]
UNUSABLE = [
    *(
        (name, value.format(scheme))
        for name, scheme in (
            ("POSTGRES", "postgresql"),
            ("POSTGRES_REPLICA", "postgresql"),
            ("REDIS", "redis"),
        )
        for value in WRONG
    ),
    *(("KAFKA", value) for value in KAFKA),
    ("API_KEYS", f"{MARK}:"),
]

Orders = Callable[..., tuple[int, str, str]]


@pytest.fixture
def orders(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> Orders:
    """Run a command line in this process with settings -> exit code, and all that was printed and logged."""
    caplog.set_level(logging.DEBUG)
    for name in ("KAFKA", "POSTGRES", "POSTGRES_REPLICA", "REDIS"):
        monkeypatch.delenv(f"ORDERS_{name}", raising=False)

    def run(*args: str, **settings: str) -> tuple[int, str, str]:
        with monkeypatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(f"ORDERS_{name}", value)
            get_settings.cache_clear()
            code = main.run(list(args))
        get_settings.cache_clear()
        out, err = capsys.readouterr()
        return code, out, err + caplog.text

    return run


@pytest.mark.parametrize(("url", "shown"), [*POSTGRES.items(), *REDIS.items()])
def test_a_url_shows_where_its_server_is_and_nothing_else(url: str, shown: str) -> None:
    kind: type[ServerUrl] = PostgresUrl if url.startswith("postgres") else RedisUrl
    address = kind(url)
    assert address.get_secret_value() == url
    assert (str(address), f"{address}", "%s" % address) == (shown,) * 3  # noqa: UP031
    field: dict[str, Any] = {"postgres" if kind is PostgresUrl else "redis": url}
    settings = Settings(**field)
    texts = [
        repr(address),
        repr(settings),
        str(settings),
        repr(settings.model_dump()),
        settings.model_dump_json(),
        json.dumps(settings.model_dump(mode="json")),
    ]
    texts.append("".join(traceback.format_exception(RuntimeError(address, settings))))
    assert [each for each in texts if MARK in each] == []


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_what_cannot_be_used_is_refused_and_not_repeated(orders: Orders, name: str, value: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Settings.model_validate({name.lower(): value})
    assert MARK not in "".join(traceback.format_exception(refused.value))
    for command in (("settings",), ("settings", "--json"), ("db",)):
        code, out, err = orders(*command, **{name: value})
        assert (code, out) == (2, "")
        assert err.startswith(f"orders: ORDERS_{name}=***: ")
        assert "Traceback" not in err
        assert MARK not in err


@pytest.mark.parametrize("url", POSTGRES)
def test_postgres_passwords_are_not_printed(orders: Orders, url: str) -> None:
    for command, code in (
        (("settings",), 0),
        (("settings", "--json"), 0),
        (("db",), 2),
        (("bulk", "status", "--json"), 2),
        (("rebuild", "status"), 2),
    ):
        got, out, err = orders(*command, POSTGRES=url, POSTGRES_REPLICA=url)
        assert got == code, (command, err)
        assert MARK not in out + err, command
        assert "Traceback" not in err


@pytest.mark.parametrize("url", POSTGRES)
def test_the_api_prints_no_password_at_its_start(orders: Orders, url: str) -> None:
    with socket.socket() as taken:  # so it ends, whatever it thinks of the address
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, out, err = orders(
            "api", "--port", str(taken.getsockname()[1]), POSTGRES=url, POSTGRES_REPLICA=url
        )
    assert (code, out) == (2, "")
    assert MARK not in err


@pytest.mark.parametrize("url", REDIS)
def test_redis_passwords_are_not_printed(orders: Orders, url: str) -> None:
    for command in (("settings",), ("settings", "--json")):
        code, out, err = orders(*command, REDIS=url)
        assert (code, MARK in out + err) == (0, False)


FILES = {
    "POSTGRES": (f"postgresql://u:{MARK}@{NOWHERE}/d", f"postgresql://***@{NOWHERE}/d"),
    "POSTGRES_REPLICA": (f"postgresql://u:{MARK}@{NOWHERE}/d", f"postgresql://***@{NOWHERE}/d"),
    "REDIS": (f"redis://u:{MARK}@{NOWHERE}/0", f"redis://***@{NOWHERE}/0"),
    "API_KEYS": (f"{MARK}-long-enough", "**********"),
    "CONSOLE_SECRET": (f"{MARK}-long-enough-to-be-one-of-those", "**********"),
    "CONSOLE_PROXY_SECRET": (f"{MARK}-long-enough-to-be-one-of-those", "**********"),
    "KAFKA_SASL_PASSWORD": (MARK, "**********"),
    "KAFKA_SSL_KEY_PASSWORD": (MARK, "**********"),
}
NEEDED = {
    "KAFKA_SASL_PASSWORD": {
        "KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "KAFKA_SASL_MECHANISM": "PLAIN",
        "KAFKA_SASL_USERNAME": "u",
    },
    "KAFKA_SSL_KEY_PASSWORD": {"KAFKA_SECURITY_PROTOCOL": "SSL", "KAFKA_SSL_CERTFILE": "/none/c.pem"},
}


def test_every_secret_may_lie_in_a_file() -> None:
    secret = {
        name
        for name, field in Settings.model_fields.items()
        if any(
            isinstance(kind, type) and issubclass(kind, SecretStr)
            for kind in (field.annotation, *get_args(field.annotation))
        )
    }
    # What a command prints, or whoever writes the file of a token, has a secret of its own; and an address of
    # public keys is a file itself.
    assert secret - set(SECRET_FILES) == {"kafka_oauth_token_command", "api_jwt_jwks"}
    assert {name.upper() for name in SECRET_FILES} == set(FILES)
    assert {f"{name}_file" for name in SECRET_FILES} <= set(Settings.model_fields)


@pytest.mark.parametrize("name", FILES)
def test_a_secret_of_a_file(orders: Orders, tmp_path: Path, name: str) -> None:
    text, shown = FILES[name]
    file = tmp_path / "secret"
    given = NEEDED.get(name, {}) | {f"{name}_FILE": str(file)}
    code, out, err = orders("settings", **given)
    assert (code, out) == (2, "")
    assert f"ORDERS_{name}_FILE={file}: No such file or directory; see" in err
    file.write_bytes(b"\xff" + text.encode())
    code, out, err = orders("settings", **given)
    assert (code, out, "the file isn't UTF-8" in err) == (2, "", True)
    file.write_text(f"{text}\n")
    code, out, err = orders("settings", "--json", **given)
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, rows[f"ORDERS_{name}"]["value"]) == (0, shown)
    assert (rows[f"ORDERS_{name}"]["set"], rows[f"ORDERS_{name}_FILE"]["value"]) == (False, str(file))
    code, _, conflict = orders("settings", **given, **{name: text})
    assert (code, f"ORDERS_{name} and ORDERS_{name}_FILE are both set; set one" in conflict) == (2, True)
    assert MARK not in out + err + conflict


@pytest.mark.parametrize(
    "login",
    [
        {"KAFKA_SASL_MECHANISM": "PLAIN", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": MARK},
        {"KAFKA_SASL_MECHANISM": "SCRAM-SHA-256", "KAFKA_SASL_USERNAME": "u", "KAFKA_SASL_PASSWORD": MARK},
        {"KAFKA_SASL_MECHANISM": "OAUTHBEARER", "KAFKA_OAUTH_TOKEN_COMMAND": f"echo {MARK}"},
    ],
)
def test_no_command_shows_a_secret(orders: Orders, login: dict[str, str]) -> None:
    """All of them are set, and a server hears each of these commands up to the login."""
    everything = login | {
        "KAFKA_SECURITY_PROTOCOL": "SASL_PLAINTEXT",
        "POSTGRES": f"postgresql://u:{MARK}@{NOWHERE}/d",
        "POSTGRES_REPLICA": f"postgresql://u:{MARK}@{NOWHERE}/d",
        "REDIS": f"redis://u:{MARK}@{NOWHERE}/0",
        "API_KEYS": f"{MARK}-long-enough",
        "LOG_LEVEL": "debug",
    }
    with answering() as address:
        for command, code in (
            (("settings",), 0),
            (("settings", "--json"), 0),
            (("partitions",), 2),
            (("init",), 2),
            (("worker",), 2),
            (("wait", "--timeout", "1"), 2),
            (("audit",), 2),
            (("dlq", "list"), 2),
            (("generate", "--orders", "1"), 2),
            (("db",), 2),
        ):
            got, out, err = orders(*command, KAFKA=address, **everything)
            assert got == code, (command, err)
            assert MARK not in out + err, command
            if code == 2 and command != ("db",):
                assert "refuses the login" in err, (command, err)


@contextmanager
def answering() -> Iterator[str]:
    """A server that speaks Kafka as far as the login, which it refuses with words that repeat what it was
    told. Yields its host:port.
    """

    def answer(number: int, said: bytes) -> bytes:
        if number == 18:  # ApiVersions: these three, and Metadata
            versions = b"".join(
                struct.pack(">hhh", *each) for each in ((18, 0, 0), (17, 0, 1), (36, 0, 0), (3, 0, 1))
            )
            return struct.pack(">hi", 0, 4) + versions
        if number == 17:  # SaslHandshake
            names = (b"PLAIN", b"SCRAM-SHA-256", b"OAUTHBEARER")
            return struct.pack(">hi", 0, 3) + b"".join(struct.pack(">h", len(name)) + name for name in names)
        message = b"Authentication failed: " + bytes(byte for byte in said if 32 <= byte < 127)
        return struct.pack(">hh", 58, len(message)) + message + struct.pack(">i", 0)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while head := self.rfile.read(4):
                request = self.rfile.read(struct.unpack(">i", head)[0])
                number, _, correlation = struct.unpack(">hhi", request[:8])
                response = struct.pack(">i", correlation) + answer(number, request[8:])
                self.wfile.write(struct.pack(">i", len(response)) + response)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.mark.parametrize(("name", "value"), [case for case in UNUSABLE if case[0] != "KAFKA"])
def test_a_file_that_cannot_be_used_is_refused_and_not_repeated(
    orders: Orders, tmp_path: Path, name: str, value: str
) -> None:
    file = tmp_path / "secret"
    file.write_text(value)
    code, out, err = orders("settings", **{f"{name}_FILE": str(file)})
    assert (code, out) == (2, "")
    assert err.startswith(f"orders: ORDERS_{name}_FILE={file}: ")
    assert "Traceback" not in err
    assert MARK not in err


def test_a_url_is_read_again_and_kept_while_its_file_cannot_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "url"
    file.write_text(f"postgresql://u:{MARK}1@a/d")
    settings = Settings.model_validate({"postgres_file": file})
    url = settings.postgres
    assert url.get_secret_value() == f"postgresql://u:{MARK}1@a/d"
    file.write_text(f"postgresql://u:{MARK}2@b/d\n")
    assert (url.get_secret_value(), str(url)) == (f"postgresql://u:{MARK}2@b/d", "postgresql://***@b/d")
    for broken in (lambda: file.write_text(f"{MARK}@b"), file.unlink):
        broken()
        assert (url.get_secret_value(), str(url)) == (f"postgresql://u:{MARK}2@b/d", "postgresql://***@b/d")
    assert caplog.text.count("stays in use") == 1
    file.write_text(f"postgresql://u:{MARK}3@c/d")
    assert url.get_secret_value() == f"postgresql://u:{MARK}3@c/d"
    assert MARK not in caplog.text + repr(settings)


def test_a_file_without_end_is_no_secret(orders: Orders) -> None:
    code, out, err = orders("settings", API_KEYS_FILE="/dev/zero")
    assert (code, out) == (2, "")
    assert err.startswith(
        "orders: ORDERS_API_KEYS_FILE=/dev/zero: a pipe or a device is no file that can be read again; see"
    )


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_no_secret_and_a_link_is_one(orders: Orders, tmp_path: Path, name: str) -> None:
    """Links are how Kubernetes changes a secret at once; a pipe could be read once only, and waits."""
    os.mkfifo(tmp_path / "pipe")
    given = NEEDED.get(name, {})
    code, out, err = orders("settings", **given, **{f"{name}_FILE": str(tmp_path / "pipe")})
    assert (code, out) == (2, "")
    assert (
        f"ORDERS_{name}_FILE={tmp_path}/pipe: a pipe or a device is no file that can be read again; see"
        in err
    )
    (tmp_path / "data").write_text(FILES[name][0])
    (tmp_path / "link").symlink_to("data")
    code, out, _ = orders("settings", **given, **{f"{name}_FILE": str(tmp_path / "link")})
    assert (code, MARK in out) == (0, False)


QUERIES = {
    "socket_timeout": "x",
    "socket_connect_timeout": "-1",
    "db": "x",
    "max_connections": "0",
    "protocol": "4",
    "socket_keepalive": "perhaps",
    "ssl_cert_reqs": "x",
    "ssl_min_version": "1.2",
    "client_name": "a b",
}


@pytest.mark.parametrize("name", QUERIES)
@pytest.mark.parametrize("place", ["rediss://{}/0", "rediss+sentinel://{}/orders"])
def test_what_redis_parameters_cannot_be(orders: Orders, place: str, name: str) -> None:
    for value in (MARK if name != "client_name" else f"{MARK}%20", QUERIES[name].replace(" ", "%20"), ""):
        code, out, err = orders("settings", REDIS=f"{place.format(NOWHERE)}?{name}={value}")
        assert (code, out) == (2, "")
        assert err.startswith(f"orders: ORDERS_REDIS=***: {name} must be ")
        assert MARK not in err


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"redis://{NOWHERE}/0?{MARK}=1", "a parameter behind the ? is none that is read here"),
        (f"redis://{NOWHERE}/0?retry={MARK}", "a parameter behind the ? is none that is read here"),
        (f"redis://{NOWHERE}/0?decode_responses=1&x={MARK}", "a parameter behind the ? is none"),
        (f"redis://{NOWHERE}/0?password={MARK}&password={MARK}", "password stands there more than once"),
        (f"redis://{NOWHERE}/0?p%61ssword={MARK}&password={MARK}", "password stands there more than once"),
        (f"redis://{NOWHERE}/0?ssl_password={MARK}", "ssl_password is for rediss://"),
        (f"redis+sentinel://{NOWHERE}/s?ssl_password={MARK}", "ssl_password is for rediss+sentinel://"),
        (f"redis://{NOWHERE}/0?sentinel_password={MARK}", "sentinel_password is for redis+sentinel://"),
        (f"unix:///{MARK}?socket_keepalive=1", "socket_keepalive is for TCP"),
        (f"redis://{NOWHERE}/0?password={MARK}%00", "password must be text"),
        (f"redis://:{MARK}@{NOWHERE}/0?password={MARK}", "password stands before the @ and behind the ?"),
        (f"unix://u:{MARK}@/nowhere.sock?username={MARK}", "username stands before the @ and behind the ?"),
        (f"redis://:{MARK}@{NOWHERE}/0?db=0", "db stands in the path and behind the ?; leave one"),
        (f"redis+sentinel://u:{MARK}@{NOWHERE}/s/1?db=2", "db stands in the path and behind the ?"),
    ],
)
def test_what_redis_cannot_use_is_named_by_what_is_known(orders: Orders, url: str, says: str) -> None:
    for command in (("settings",), ("wait",), ("worker",), ("api",), ("audit",), ("repair",)):
        code, out, err = orders(*command, REDIS=url)
        assert (code, out) == (2, ""), command
        assert err.startswith(f"orders: ORDERS_REDIS=***: {says}")
        assert "Traceback" not in err
        assert MARK not in err


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p@h?db=1",
        "redis://h/?db=1&username=u&password=p",
        "redis://u@h/1?password=p",
        "unix://u:p@/nowhere.sock?db=1",
        "redis+sentinel://u:p@h/s?db=1",
        "redis+sentinel://u:p@h/s/?db=1&sentinel_password=p",
    ],
)
def test_what_stands_in_a_redis_url_once_may_stand_in_either_place(url: str) -> None:
    assert RedisUrl(url).get_secret_value() == url


@pytest.mark.parametrize(
    ("url", "says"),
    [
        (f"postgresql://u@h/d?user={MARK}", "user stands before the @"),
        (f"postgresql://:{MARK}@h/d?password={MARK}", "password stands before the @"),
        (f"postgresql://h/d?host={MARK}", "host stands before the path"),
        ("postgresql://h:1,h/d?port=2", "port stands before the path"),
        ("postgresql://[::1]:1/d?port=2", "port stands before the path"),
        (f"postgresql://h/d?dbname={MARK}", "dbname stands in the path"),
        (f"postgresql://h/d?d%61tabase={MARK}", "database stands in the path"),
    ],
)
def test_what_an_address_of_postgres_says_twice_is_refused(orders: Orders, url: str, says: str) -> None:
    for name in ("POSTGRES", "POSTGRES_REPLICA"):
        code, out, err = orders("settings", **{name: url})
        assert (code, out) == (2, "")
        assert err.startswith(f"orders: ORDERS_{name}=***: {says} and behind the ?; leave one")
        assert MARK not in err


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u:p@h,[::1]/d?port=1,2",
        "postgresql:///?host=h&user=u&dbname=d&port=1",
        "postgresql://h/?dbname=d&user=u&password=p",
        "postgresql://u@/d?host=/folder&password=p",
    ],
)
def test_what_stands_in_an_address_of_postgres_once_may_stand_in_either_place(url: str) -> None:
    assert PostgresUrl(url).get_secret_value() == url


def test_a_database_that_redis_has_not_is_told_by_its_number() -> None:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while line := self.rfile.readline():
                if line.strip() == b"SELECT":
                    self.wfile.write(b"-ERR DB index is out of range\r\n")
                elif line.strip() in (b"HELLO", b"CLIENT"):
                    self.wfile.write(b"+OK\r\n")

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        at = f"127.0.0.1:{server.server_address[1]}"
        for url in (f"redis://{at}/77?protocol=2", f"redis://{at}?db=77&protocol=2"):
            client = open_client(Settings(redis=RedisUrl(url)), timeout=5, retry=ONCE)

            async def ask(client: Any = client) -> None:
                async with client:
                    await client.ping()

            with pytest.raises(RedisError) as raised:
                asyncio.run(ask())
            assert "refuses what ORDERS_REDIS asks for (it has no database 77); correct" in (
                main.explain(raised.value) or ""
            )
        server.shutdown()


def test_a_redis_server_that_repeats_what_it_was_told(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that doesn't know a command answers with its arguments."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            words: list[bytes] = []
            while line := self.rfile.readline():
                if not line.startswith((b"*", b"$")):
                    words.append(line.strip())
                    self.wfile.write(
                        b"-ERR unknown command 'AUTH', with args beginning with: '%b'\r\n" % line.strip()
                    )

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        at = f"127.0.0.1:{server.server_address[1]}"
        for url in (f"redis://u:{MARK}@{at}/0", f"redis://{at}/0?client_name={MARK}&protocol=2"):
            client = open_client(Settings(redis=RedisUrl(url)), timeout=5, retry=ONCE)

            async def ask(client: Any = client) -> None:
                async with client:
                    await client.ping()

            with pytest.raises(RedisError) as raised:
                asyncio.run(ask())
            text = "".join(traceback.format_exception(raised.value))
            assert MARK not in text
            assert "refuses what ORDERS_REDIS asks for (unknown command)" in (
                main.explain(raised.value) or ""
            )
        server.shutdown()


def test_a_login_for_kafka_is_refused_in_clear_words(orders: Orders) -> None:
    code, _, err = orders("wait", KAFKA=KAFKA[0])
    assert code == 2
    assert err.startswith(
        "orders: ORDERS_KAFKA=***: must be host:port,host:port without a scheme:"
        " ORDERS_KAFKA_SECURITY_PROTOCOL and ORDERS_KAFKA_SASL_... say how to connect;"
    )
