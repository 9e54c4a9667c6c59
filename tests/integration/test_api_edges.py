"""Hostile requests, as bytes, against `orders api` as a process: a well-formed answer that isn't a 500, or
the end of the connection.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from api.connection import MOST_BODY, MOST_HEAD, Limits
from settings import Settings
from sinks.migrate import upgrade
from stack import ports
from tests.contract.places import drop_database, new_database
from tests.forked import Forked
from tests.integration.api_world import World, folded
from tests.stackfixture import Servers
from tests.waiting import until
from tests.workers import ORDERS

KEY = "a-key-that-nobody-guesses"
NOBODY = "00000000-0000-0000-0000-000000000000"
LIMITS = Limits().possible()


class Served(NamedTuple):
    """A running service, and an order that it knows."""

    port: int
    process: psutil.Process
    order: str

    def connect(self) -> socket.socket:
        line = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return line

    def ask(self, *pieces: bytes, end: bool = True) -> list[tuple[int, dict[str, str], bytes]]:
        """The answers to these bytes; with `end` nothing follows them."""
        with self.connect() as line:
            try:
                for piece in pieces:
                    line.sendall(piece)
                if end:
                    line.shutdown(socket.SHUT_WR)
            except OSError:
                pass  # it was refused before it was all there
            return answers(received(line))

    def get(self, target: str, *headers: str, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
        [answer] = self.ask(
            "\r\n".join([f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode(
                "latin-1"
            )
        )
        return answer


def received(line: socket.socket) -> bytes:
    """Everything up to the end of the connection."""
    pieces = []
    try:
        while piece := line.recv(1 << 16):
            pieces.append(piece)
    except ConnectionError:
        pass
    return b"".join(pieces)


def answers(text: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Fails unless all of it is well formed: each error a problem document, no 500.
    Of HEAD the body is empty.
    """
    responses = []
    while text:
        head, end, text = text.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.decode("latin-1").split("\r\n")
        matched = re.fullmatch(r"HTTP/1\.1 (\d{3}) [A-Za-z -]+", first)
        assert matched, first
        status = int(matched[1])
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        assert len(headers) == len(lines), lines
        size = (
            0
            if status == 304 or text.startswith(b"HTTP/1.1 ") or not text
            else int(headers["content-length"])
        )
        body, text = text[:size], text[size:]
        assert len(body) == size, "cut off"
        assert status != 500, body
        if status >= 400:
            assert headers["content-type"] == "application/problem+json"
            assert not body or json.loads(body)["status"] == status
        responses.append((status, headers, body))
    return responses


def serve(settings: Settings, folder: Path, keys: str, order: str) -> Iterator[Served]:
    port = ports.choose(set())
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}
    environment |= {
        "ORDERS_POSTGRES": settings.postgres.get_secret_value(),
        "ORDERS_REDIS": settings.redis.get_secret_value(),
        "ORDERS_API_KEYS": keys,
    }
    process = Forked((*ORDERS, "api", "--port", str(port)), folder / "api.log", env=environment)
    try:

        def ready() -> bool:
            assert process.poll() is None, (folder / "api.log").read_text()
            try:
                return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
            except httpx.TransportError:
                return False

        until(ready, "it serves")
        yield Served(port, psutil.Process(process.pid), order)
        assert "Traceback" not in (folder / "api.log").read_text()
        process.terminate()
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def filled(stack: Servers) -> Iterator[tuple[Settings, str]]:
    async def fill() -> tuple[Settings, str]:
        settings = await new_database(stack)
        await upgrade(settings)
        some = folded(3)
        async with World(settings, some) as world:
            await world.put_rows()
        return settings, str(next(iter(some)))

    settings_and_id = asyncio.run(fill())
    yield settings_and_id
    asyncio.run(drop_database(stack, settings_and_id[0]))


@pytest.fixture(scope="module")
def served(filled: tuple[Settings, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(filled[0], tmp_path_factory.mktemp("open"), "", filled[1])


@pytest.fixture(scope="module")
def locked(filled: tuple[Settings, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    yield from serve(filled[0], tmp_path_factory.mktemp("locked"), KEY, filled[1])


# -- who is asked --------------------------------------------------------------------------------------------

ANSWERED = (
    *(
        "localhost",
        "LocalHost",
        "localhost:1",
        "localhost:",
        "127.0.0.1",
        "127.0.0.1:8080",
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]",
    ),
    *("localhost ", "127.0.0.1:8080\t", "\t [::1] \t"),
)
FORBIDDEN = (
    *(
        "evil.example",
        "evil.example:",
        "evil.example:80",
        "localhost.",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.2",
    ),
    *(
        "127.1",
        "2130706433",
        "0x7f.0.0.1",
        "0.0.0.0",
        "[::]",
        "[::ffff:127.0.0.1]",
        "xn--localhost",
        "_",
        "-",
    ),
)
BROKEN = (
    *(
        'a"b.evil.example',
        "a`b.evil.example",
        "a{b}.evil.example",
        "localhost@evil.example",
        "[",
        "]",
        "[]",
        "",
        ":",
        ":80",
        "@",
        "/",
    ),
    *(
        "evil.example@localhost",
        "user:pass@localhost",
        "localhost:80:80",
        "localhost:x",
        "localhost:-1",
        "localhost:99999",
        "localhost:+80",
    ),
    *(
        "localhost:+80",
        "localhost/",
        "localhost#",
        "localhost?x",
        "localhost\\evil",
        "local host",
        "localhost, evil.example",
        "::1",
        "[::1",
        "[::1]x",
    ),
    *(
        "[127.0.0.1]",
        "[localhost]",
        "[::1%lo]",
        "[v1.x]",
        "localhost, evil.example",
        "local%68ost",
        "http://localhost",
        "löcalhost",
        "localhost\x7f",
        "*",
    ),
)


@pytest.mark.parametrize(
    ("hosts", "status"), [(ANSWERED, 404), (FORBIDDEN, 403), (BROKEN, 400)], ids=["ours", "others", "broken"]
)
def test_hosts(served: Served, hosts: tuple[str, ...], status: int) -> None:
    for host in hosts:
        [(code, _, _)] = served.ask(
            f"GET /orders/{NOBODY} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode("latin-1")
        )
        assert code == status, host


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET %s HTTP/1.1\r\n", 400),
        (b"GET %s HTTP/1.0\r\n", 400),
        (b"GET %s HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n", 400),
        (b"GET %s HTTP/1.1\r\nHost: localhost\r\nhost: evil.example\r\n", 400),
        (b"GET http://evil.example%s HTTP/1.1\r\nHost: localhost\r\n", 403),
        (b"GET http://localhost@evil.example%s HTTP/1.1\r\nHost: localhost\r\n", 400),
        (b"GET http://localhost%s HTTP/1.1\r\nHost: evil.example\r\n", 404),
        (b"GET http://%s HTTP/1.1\r\nHost: localhost\r\n", 400),
        (
            (
                b"GET %s HTTP/1.1\r\nHost: evil.example\r\nX-Forwarded-Host: localhost\r\nForwarded:"
                b" host=localhost\r\n"
            ),
            403,
        ),
        (
            (
                b"GET %s HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-Host: evil.example\r\nX-Forwarded-For:"
                b" \xff, x\r\n"
            ),
            404,
        ),
    ],
    ids=repr,
)
def test_whose_host_counts(served: Served, head: bytes, status: int) -> None:
    [(code, _, _)] = served.ask(head.replace(b"%s", f"/orders/{NOBODY}".encode()) + b"\r\n")
    assert code == status


def test_every_path_is_only_for_localhost(served: Served) -> None:
    for path in ("/health", "/openapi.json", "/nowhere", f"/users/{NOBODY}/orders"):
        [(code, _, _)] = served.ask(f"GET {path} HTTP/1.1\r\nHost: evil.example\r\n\r\n".encode())
        assert code == 403, path


def test_with_keys_any_host_that_can_be_read(locked: Served) -> None:
    for host, status in (
        ("orders.example", 404),
        ("10.1.2.3:80", 404),
        ("[2001:db8::1]", 404),
        ("a{b}.example", 400),
        ("", 400),
    ):
        responses = locked.ask(
            f"GET /orders/{NOBODY} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {KEY}\r\n\r\n".encode()
        )
        assert [each[0] for each in responses] == [status], host
    assert [each[0] for each in locked.ask(b"GET /health HTTP/1.0\r\n\r\n")] == [200], (
        "as old health checks ask"
    )


# -- what is asked -------------------------------------------------------------------------------------------

DASHED = "12345678-1234-1234-1234-123456789abc"


@pytest.mark.parametrize(
    ("target", "status", "where"),
    [
        (f"/orders/{DASHED}", 404, None),
        (f"/orders/{DASHED.upper()}", 404, None),
        (f"/orders/{DASHED.replace('-', '')}", 404, None),
        (f"/orders/%31{DASHED[1:]}", 404, None),
        (f"/orders/{{{DASHED}}}", 422, "path.order_id"),
        (f"/orders/%7B{DASHED}%7D", 422, "path.order_id"),
        (f"/orders/urn:uuid:{DASHED}", 422, "path.order_id"),
        (f"/orders/{DASHED[:8]}{DASHED[9:]}", 422, "path.order_id"),
        (f"/orders/{DASHED}%0a", 422, "path.order_id"),
        (f"/orders/{DASHED}%00", 422, "path.order_id"),
        (f"/orders/%20{DASHED}", 422, "path.order_id"),
        (f"/orders/{DASHED}%D9%A1", 422, "path.order_id"),
        (f"/orders/{'1' * 60_000}", 422, "path.order_id"),
        (f"/orders/{DASHED}/", 404, None),
        (f"//orders/{DASHED}", 404, None),
        (f"/orders/x/../{DASHED}", 404, None),
        (f"/orders/{DASHED}%2Fexplain", 404, None),
        (f"/orders%2f{DASHED}", 404, None),
        (f"/ORDERS/{DASHED}", 404, None),
        (f"/orders/{DASHED}?", 404, None),
        (f"/orders/{DASHED}?&&", 404, None),
        (f"/orders/{DASHED}?x=1", 422, "query.x"),
        (f"/orders/{DASHED}?x", 422, "query.x"),
        (f"/orders/{DASHED}?=1", 422, "query."),
        (f"/orders/{DASHED}?MIN_VERSION=1", 422, "query.MIN_VERSION"),
        (f"/orders/{DASHED}?limit=1", 422, "query.limit"),
        (f"/orders/{DASHED}?{'x' * 60_000}=1", 422, f"query.{'x' * 100}"),
        (f"/orders/{DASHED}?min_version=0", 404, None),
        (f"/orders/{DASHED}?min_version=1", 503, None),
        (f"/orders/{DASHED}?min_version=1&min_version=1", 422, "query.min_version"),
        (f"/users/{DASHED}/orders?limit=200", 200, None),
        (f"/users/{DASHED}/orders?status=pending", 200, None),
        (
            f"/users/{DASHED}/orders?from=2026-01-01T00:00:00.1234567Z&to=9999-12-31T23:59:59%2B14:00",
            200,
            None,
        ),
        (f"/sellers/{DASHED}/suborders?status=pending", 422, "query.status"),
        ("/tracking/a%2Fb", 404, None),
        ("/tracking/a/b", 404, None),
        ("/tracking/", 422, "path.number"),
        ("/tracking/a%00b", 422, "path.number"),
        (f"/tracking/{'%C3%BC' * 1000}", 404, None),
        (f"/tracking/{'x' * 1001}", 422, "path.number"),
        ("/tracking/%ff", 400, None),
        ("/tracking/%ED%A0%80", 400, None),
        ("/tracking/%", 400, None),
        ("/tracking/%zz", 400, None),
        ("/tracking/x?y=%ff", 400, None),
        ("/tracking/x?y=%u0041", 400, None),
        ("/tracking/\xfc", 400, None),
        ("/health?x=1", 422, "query.x"),
    ],
    ids=lambda value: value[:60] if isinstance(value, str) else None,
)
def test_parameters_mean_what_the_document_says(
    served: Served, target: str, status: int, where: str | None
) -> None:
    code, _, body = served.get(target)
    assert code == status, body
    faults = json.loads(body).get("errors") if status >= 400 else None
    assert (None if faults is None else [each["where"] for each in faults]) == (
        None if where is None else [where]
    )


@pytest.mark.parametrize(
    ("path", "values"),
    [
        (
            "/orders/{}?min_version=",
            (
                "",
                "-1",
                "+1",
                "%2B1",
                "01",
                "1_0",
                "1.0",
                "1e3",
                "%201",
                "%D9%A1",
                "2147483648",
                "9" * 5000,
                "true",
            ),
        ),
        ("/users/{}/orders?limit=", ("", "0", "201", "-1", "1%00", "null", "5,6")),
        ("/users/{}/orders?status=", ("", "lost", "PENDING", "pending%00", "pending,shipped")),
        (
            "/users/{}/orders?from=",
            ("", "0", "1700000000", "2026-01-01", "2026-01-01T00:00Z", "2026-01-01T00:00:00", "now"),
        ),
        (
            "/users/{}/orders?to=",
            (
                "2026-01-01%2000:00:00Z",
                "2026-01-01T00:00:00+01:00",
                "2026-13-01T00:00:00Z",
                "2026-01-01T00:00:00%2B24:00",
            ),
        ),
        (
            "/users/{}/orders?to=",
            ("9999-12-31T23:59:59-01:00", "0001-01-01T00:00:00%2B01:00", "2026-01-01T00:00:00%2B24:00"),
        ),
        ("/users/{}/orders?cursor=", ("", "A", "%00", "x" * 65, "AAAA", "%F0%9F%98%80")),
        (
            "/users/{}/orders?seen=",
            ("", ":", f"{DASHED}:", f"{DASHED}:-1", f"{DASHED}:1%0a", f"{'-' * 36}:1", f"{DASHED[1:]}1:1"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_values_that_are_none(served: Served, path: str, values: tuple[str, ...]) -> None:
    for value in values:
        code, _, body = served.get(path.format(DASHED) + value)
        assert (code, [each["where"] for each in json.loads(body)["errors"]]) == (
            422,
            [f"query.{path.partition('?')[2][:-1]}"],
        ), value


def test_headers_that_are_parameters(served: Served) -> None:
    for value in ("", "-1", "1_0", "1.0", "9" * 5000, "x", "\xb2"):
        assert served.get(f"/orders/{NOBODY}", f"X-Order-Version: {value}")[0] == 422, value
    for value in ("1", "1 ", "\t1\t "):
        assert served.get(f"/orders/{served.order}", f"X-Order-Version: {value}")[0] == 200, value
    status, _, body = served.get(f"/orders/{NOBODY}", "X-Order-Version: 1", "x-order-version: 1")
    assert (status, json.loads(body)["errors"][0]["where"]) == (422, "header.x-order-version")
    assert (
        served.get(
            f"/orders/{served.order}", "X-Unknown: 1", "X-Unknown: 2", "Cookie: a", "Range: bytes=0-1"
        )[0]
        == 200
    )


def test_head_is_get_without_the_body(served: Served) -> None:
    order = served.order
    for target in (
        *(
            f"/orders/{order}",
            f"/orders/{order}/explain",
            f"/orders/{order}/story",
            f"/users/{NOBODY}/orders",
            "/tracking/x",
            f"/sellers/{NOBODY}/suborders",
        ),
        *("/health", "/openapi.json", "/nowhere", f"/orders/{NOBODY}", f"/orders/{order}?x=1"),
    ):
        served.get(target)  # so that both come from the same place
        asked, headed = served.get(target), served.get(target, method="HEAD")
        assert (headed[0], headed[2]) == (asked[0], b""), target
        assert headed[1] | {"date": ""} == asked[1] | {"date": ""}, target
        assert int(headed[1]["content-length"]) == len(asked[2])
    etag = served.get(f"/orders/{order}")[1]["etag"]
    assert served.get(f"/orders/{order}", f"If-None-Match: {etag}", method="HEAD")[0] == 304
    assert served.get("/health", method="POST")[1]["allow"] == "GET, HEAD"


def test_several_lines_of_if_none_match(served: Served) -> None:
    etag = served.get(f"/orders/{served.order}")[1]["etag"]
    for lines, status in (
        (('"1000"', etag), 304),
        ((etag, '"1000"'), 304),
        (('"1000"', f'W/"a,b", {etag}'), 304),
        (('"1000"', '"1001"'), 200),
        (("*",), 304),
        (("",), 200),
        (("x" * 60_000,), 200),
        ((",".join(['"x"'] * 10_000),), 200),
    ):
        assert (
            served.get(f"/orders/{served.order}", *(f"If-None-Match: {line}" for line in lines))[0] == status
        ), lines


# -- how it is sent ------------------------------------------------------------------------------------------

GET = f"GET /orders/{NOBODY} HTTP/1.1\r\nHost: localhost\r\n".encode()


@pytest.mark.parametrize(
    ("pieces", "statuses"),
    [
        ((GET, b"\r\n"), [404]),
        (tuple(bytes([each]) for each in GET + b"\r\n"), [404]),
        ((b"\r\n\r\n" + GET + b"\r\n",), [404]),
        (((GET + b"\r\n") * 200,), [404] * 200),
        (((GET + b"\r\n") * 3 + b"nonsense\r\n\r\n",), [404] * 3 + [400]),
        ((GET + b"Connection: close\r\n\r\n" + GET + b"\r\n",), [404]),
        ((GET + b"Content-Length: 3\r\n\r\nabc" + GET + b"\r\n",), [404, 404]),
        ((GET + b"Content-Length: 3\r\n\r\n", b"ab", b"c" + GET + b"\r\n"), [404, 404]),
        (
            (GET + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nHost: evil\r\n\r\n" + GET + b"\r\n",),
            [404, 404],
        ),
        ((GET + b"Expect: 100-continue\r\nContent-Length: 3\r\n\r\n",), [404]),
        ((GET + b"Upgrade: websocket\r\nConnection: upgrade\r\n\r\n" + b"x" * 100_000,), [404]),
        ((GET + b"Upgrade: h2c\r\nConnection: upgrade\r\n\r\n",), [404]),
        ((GET + b"Content-Length: %d\r\n\r\n" % (MOST_BODY + 1),), [413]),
        ((GET + b"Content-Length: 99999999999999999999999\r\n\r\n",), [400]),
        ((GET + b"Content-Length: -1\r\n\r\n",), [400]),
        ((GET + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",), [400]),
        ((GET + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",), [400]),
        (
            (GET + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n",)
            + (b"1000\r\n" + b"x" * 4096 + b"\r\n",) * 20,
            [413],
        ),
        ((GET + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 20_000,), [413]),
        ((GET + b"X: " + b"x" * MOST_HEAD + b"\r\n\r\n",), [431]),
        ((GET + b"X: x\r\n" * 20_000 + b"\r\n",), [431]),
        ((GET + b"X: " + b"x" * (MOST_HEAD - 1000) + b"\r\n\r\n",), [404]),
        ((b"GET /" + b"x" * MOST_HEAD + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",), [414]),
        ((b"\r\n" * MOST_HEAD,), [414]),
        ((b"GET / HTTP/2.0\r\nHost: localhost\r\n\r\n",), [505]),
        ((b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",), [400]),
        ((b"GET /\r\n\r\n",), [505]),
        ((b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 500,), [400]),
        ((b"CONNECT localhost:443 HTTP/1.1\r\nHost: localhost\r\n\r\n",), [400]),
        ((b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",), [404]),
        ((b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",), [400]),
        ((b"GET / HTTP/1.1\r\nHost: localhost\r\nX : y\r\n\r\n",), [400]),
        ((b"GET / HTTP/1.1\r\nHost: localhost\r\n folded\r\n\r\n",), [400]),
        ((b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\0b\r\n\r\n",), [400]),
        ((b"POST /health HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}",), [405]),
        ((b"",), []),
    ],
    ids=lambda value: repr(value)[-50:],
)
def test_what_is_sent_is_answered_or_refused(
    served: Served, pieces: tuple[bytes, ...], statuses: list[int]
) -> None:
    assert [each[0] for each in served.ask(*pieces)] == statuses


def test_an_endless_head_costs_no_memory(served: Served) -> None:
    before = served.process.memory_info().rss
    piece = b"X: " + b"x" * 65_000 + b"\r\n"
    assert [each[0] for each in served.ask(GET, *[piece] * 1600)] in ([431], []), "100 MB"
    assert served.process.memory_info().rss < before + (20 << 20)
    assert served.get("/health")[0] == 200


def test_whoever_keeps_the_service_waiting_is_let_go(served: Served) -> None:
    """Everything at once, since each takes as long as the service is patient."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    many = 1500
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, many + 500)), hard))
    begun = time.monotonic()
    stop = threading.Event()
    replies: dict[str, bytes] = {}

    def drip(name: str, head: bytes, piece: bytes) -> None:
        with served.connect() as line:
            line.sendall(head)
            line.settimeout(0.5)
            while not stop.is_set():
                try:
                    line.sendall(piece)
                    if not (got := line.recv(1 << 16)):
                        break
                    replies[name] = replies.get(name, b"") + got
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                return
        replies.setdefault(name, b"")

    def unread() -> None:
        with served.connect() as line:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            try:
                while not stop.is_set():
                    line.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)
            except OSError:
                replies["unread"] = b""

    slow = {
        "headers": (GET, b"X: y\r\n"),
        "one header": (GET + b"X: ", b"y"),
        "body": (GET + b"Content-Length: 1000\r\n\r\n", b"y"),
        "chunks": (GET + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\ny\r\n"),
        "blank lines": (b"", b"\r\n"),
        "after an answer": (GET + b"\r\n", b"\r\n"),
    }
    threads = [threading.Thread(target=drip, args=(name, *each)) for name, each in slow.items()] + [
        threading.Thread(target=unread)
    ]
    try:
        with ExitStack() as lines:
            half = [lines.enter_context(served.connect()) for _ in range(many)]
            for line in half:
                line.sendall(GET) if line is not half[0] else None
            for thread in threads:
                thread.start()
            assert served.get("/health")[0] == 200, "others are answered meanwhile"
            assert served.process.num_fds() <= LIMITS.most + 100
            ends = [received(line) for line in half]
            assert all(answers(end) == [] or answers(end)[0][0] == 408 for end in ends)
            for thread in threads:
                thread.join(LIMITS.timeout + 20)
            assert set(replies) == {*slow, "unread"}
    finally:
        stop.set()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: served.process.num_fds() < 100, "all of them are gone")
    assert [each[0] for each in answers(replies["headers"])] == [408]
    assert [each[0] for each in answers(replies["after an answer"])][:1] == [404]
    assert time.monotonic() - begun < LIMITS.timeout + 30


# -- anything ------------------------------------------------------------------------------------------------

METHODS = st.sampled_from(
    [b"GET", b"GET", b"GET", b"HEAD", b"POST", b"OPTIONS", b"PUT", b"get", b"", b"G\0T"]
)
TARGETS = st.sampled_from(
    [
        *(
            b"/orders/",
            b"/users/",
            b"/sellers/",
            b"/tracking/",
            b"/health",
            b"/openapi.json",
            b"/",
            b"*",
            b"//",
            b"http://localhost/",
        ),
        *(
            NOBODY.encode(),
            b"/orders",
            b"/suborders",
            b"/explain",
            b"%2F",
            b"%00",
            b"%ff",
            b"%",
            b"..",
            b"?",
            b"&",
            b"=",
            b"#",
            b";",
            b"+",
        ),
        *(
            b"limit=",
            b"from=",
            b"to=",
            b"seen=",
            b"cursor=",
            b"status=",
            b"min_version=",
            b"1",
            b"-1",
            b"2026-01-01T00:00:00Z",
            b":",
            b"\xff",
        ),
    ]
)
HEADERS = st.sampled_from(
    [
        *(
            b"Host: localhost",
            b"Host: localhost",
            b"Host: [::1]:1",
            b"Host: a{b}",
            b"Host:",
            b"X-Order-Version: 1",
            b"X-Order-Version: x",
        ),
        *(
            b"If-None-Match: *",
            b'If-None-Match: W/"1"',
            b"If-None-Match: \xff",
            b"Content-Length: 2",
            b"Content-Length: x",
            b"Connection: close",
        ),
        *(
            b"Transfer-Encoding: chunked",
            b"Transfer-Encoding: gzip",
            b"Expect: 100-continue",
            b"Upgrade: h2c\r\nConnection: upgrade",
        ),
        *(
            b"Authorization: Bearer x",
            b"Authorization: \xff",
            b"Accept: \0",
            b"X",
            b": y",
            b" folded",
            b"\xff: y",
            b"X: " + b"y" * 5000,
        ),
    ]
)
BODIES = st.sampled_from(
    [b"", b"", b"{}", b"0\r\n\r\n", b"2\r\nab\r\n0\r\n\r\n", b"\0", b"GET / HTTP/1.1\r\n\r\n"]
)
VERSIONS = st.sampled_from([b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9.9", b"", b"HTTP"])


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    target = b"".join(draw(st.lists(TARGETS, min_size=1, max_size=6)))
    head = [b" ".join([draw(METHODS), target, draw(VERSIONS)]), *draw(st.lists(HEADERS, max_size=4))]
    text = b"\r\n".join(head) + b"\r\n\r\n" + draw(BODIES)
    if draw(st.booleans()):
        at = draw(st.integers(0, len(text)))
        text = text[:at] + draw(st.binary(max_size=3)) + text[at + draw(st.integers(0, 3)) :]
    return text


@profile(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(requests(), min_size=1, max_size=3).map(b"".join), cut=st.integers(0, 400))
def test_whatever_is_sent(served: Served, text: bytes, cut: int) -> None:
    served.ask(text[:cut], text[cut:])
