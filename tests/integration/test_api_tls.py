"""`orders api --cert --key` as a process: TLS, certificates that are renewed, clients that never shake hands,
and the limits that are settings. It needs no stores: /health says that they are away.
"""

from __future__ import annotations

import json
import os
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import psutil
import pytest

from stack import ports
from stack.certificates import certificate
from tests.forked import Forked
from tests.waiting import until
from tests.workers import ORDERS


class Served(NamedTuple):
    """A running service."""

    port: int
    cert: Path
    key: Path
    log: Path
    process: psutil.Process

    def client(self) -> httpx.Client:
        context = ssl.create_default_context(cafile=self.cert)
        return httpx.Client(base_url=f"https://localhost:{self.port}", verify=context)

    def subject(self) -> str:
        """The name in the certificate that a new connection gets."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with self.connect() as line, context.wrap_socket(line) as secured:
            der = secured.getpeercert(True)
        assert der is not None
        names = re.findall(rb"name-[a-z]+", der)
        return names[0].decode() if names else ""

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@contextmanager
def serve(folder: Path, **settings: str) -> Iterator[Served]:
    port, cert, key, log = ports.choose(set()), folder / "cert.pem", folder / "key.pem", folder / "api.log"
    certificate(cert, key, name="name-first")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}
    environment |= {"ORDERS_POSTGRES": "postgresql://127.0.0.1:1/x", "ORDERS_REDIS": "redis://127.0.0.1:1/0"}
    environment |= settings
    command = (*ORDERS, "api", "--port", str(port), "--cert", str(cert), "--key", str(key))
    process = Forked(command, log, env=environment)
    try:
        served = Served(port, cert, key, log, psutil.Process(process.pid))

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                served.connect().close()
            except OSError:
                return False
            return True

        until(ready, "it serves")
        yield served
        assert "Traceback" not in log.read_text()
        process.terminate()
        assert process.wait(30) == 0, log.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serve(tmp_path_factory.mktemp("tls")) as running:
        yield running


def test_it_is_the_same_service_behind_tls(served: Served) -> None:
    with served.client() as client:
        answers = [client.get("/health") for _ in range(3)]
        assert [(each.status_code, each.json()["status"]) for each in answers] == [(503, "down")] * 3
        assert client.head("/openapi.json").headers["content-length"] == str(
            len(client.get("/openapi.json").content)
        )
        assert client.get("/nowhere").headers["content-type"] == "application/problem+json"
    context = ssl.create_default_context(cafile=served.cert)
    with served.connect() as line, context.wrap_socket(line, server_hostname="localhost") as secured:
        assert secured.version() in ("TLSv1.2", "TLSv1.3")
        # All at once behind the handshake, and then no more.
        secured.sendall(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
        received = b""
        while received.count(b'"status":404') < 3:
            received += secured.recv(1 << 16)
        secured.sendall(b"GET /nowhere HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 70_000)
        assert b" 431 " in secured.recv(1 << 16)


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\xff\xff" + b"x" * 500,
        b"\0" * 70_000,
        b"",
    ],
    ids=["plain HTTP", "no hello", "nothing known", "nothing"],
)
def test_what_is_not_tls_is_let_go(served: Served, sent: bytes) -> None:
    with served.connect() as line:
        try:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            while line.recv(1 << 16):
                pass
        except OSError:
            pass
    with served.client() as client:
        assert client.get("/health").status_code == 503


def test_a_client_that_does_not_trust_the_certificate(served: Served) -> None:
    with pytest.raises(httpx.ConnectError, match="self-signed"):
        httpx.get(f"https://localhost:{served.port}/health")


def test_a_renewed_certificate_is_taken_in(tmp_path: Path) -> None:
    with serve(tmp_path) as s:
        assert s.subject() == "name-first"
        with s.client() as client:
            client.get("/health")
            new_cert, new_key = tmp_path / "new.cert", tmp_path / "new.key"
            certificate(new_cert, new_key, name="name-second")
            os.replace(new_cert, s.cert)  # and its key comes a moment later
            assert s.subject() == "name-first"
            assert s.subject() == "name-first"
            client.get("/health")
            os.replace(new_key, s.key)
            assert s.subject() == "name-second"
            s.key.unlink()
            assert s.subject() == "name-second"
            assert client.get("/health").status_code == 503, "open connections go on"
        failed = [line for line in s.log.read_text().splitlines() if "stays in force" in line]
        assert len(failed) == 2
        assert "is not the key of" in failed[0]


def test_whoever_never_shakes_hands_keeps_no_place(tmp_path: Path) -> None:
    with serve(tmp_path, ORDERS_API_CONNECTIONS="20", ORDERS_API_REQUEST_TIMEOUT="3") as s:
        with ExitStack() as lines:
            for number in range(60):
                line = lines.enter_context(s.connect())
                if number % 2:
                    line.sendall(b"\x16\x03\x01\x02\x00\x01")  # a hello that doesn't go on
            with s.client() as client:
                assert client.get("/health").status_code == 503, "others are answered meanwhile"
            assert s.process.num_fds() < 20 + 40
        until(lambda: s.process.num_fds() < 40, "all of them are gone")


def test_half_a_hello_ends_when_its_time_is_over(tmp_path: Path) -> None:
    with serve(tmp_path, ORDERS_API_REQUEST_TIMEOUT="0.5") as s, s.connect() as silent, s.connect() as half:
        half.sendall(b"\x16\x03\x01\x02\x00\x01")
        for line in (silent, half):
            try:
                assert line.recv(100) == b""
            except ConnectionError:
                pass
        context = ssl.create_default_context(cafile=s.cert)
        with s.connect() as line, context.wrap_socket(line, server_hostname="localhost") as secured:
            secured.sendall(b"GET / HTTP/1.1\r\n")
            received = secured.recv(1 << 16)
            assert received.startswith(b"HTTP/1.1 408 ")
            assert json.loads(received.partition(b"\r\n\r\n")[2])["detail"] == "no whole request within 0.5 s"
        assert "status=408" in s.log.read_text()
