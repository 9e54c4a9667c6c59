"""Who is admitted to `orders api`, how often, and what the log says of it. What each sees of the stores is
in tests/integration/test_api_scopes.py.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import cache
from hashlib import sha256
from hmac import digest as hmac
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from pydantic import ValidationError

from api import tokens
from api.app import create_app
from api.callers import Caller
from api.keys import NamedKey, changing, made
from api.scopes import EVERYTHING
from api.tls import CertificateUnusable, _context
from cli import main
from queries.errors import NotFound
from queries.reader import Answer
from settings import Settings, get_settings
from stack.certificates import certificate

ORDER = "/orders/3fa85f64-5717-4562-b3fc-2c963f66afa6"
USER = "0d9d3c6f-6a0e-4a41-9d7e-6c1f2b8a7e55"
KEY = "a-key-that-nobody-guesses"
ISSUER, AUDIENCE = "https://issuer.example", "orders"


class Service(NamedTuple):
    """The API with a reader that finds whatever a caller with the scope `all` asks for, and nothing else."""

    client: httpx.AsyncClient
    app: Any

    async def get(self, key: str | None, status: int = 200, path: str = ORDER) -> httpx.Response:
        answer = await self.client.get(
            path, headers={} if key is None else {"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == status, answer.text
        return answer


@asynccontextmanager
async def service(**settings: Any) -> AsyncIterator[Service]:
    app = create_app(Settings(**settings))

    async def order(order_id: Any, seen: int, sees: Any) -> Answer:
        if not sees.everything:
            raise NotFound(f"no order {order_id}")
        return Answer(b"{}", "cache", 1)

    app.state.reader.order = order
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield Service(client, app)
    finally:
        await app.state.reader.close()


def add(store: Path, name: str, *scopes: str, **options: Any) -> str:
    with changing(store) as there:
        line, key = made(name, scopes or ["all"], **options)
        there.append(line)
    return key


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def failures(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


# -- named keys ----------------------------------------------------------------------------------------------


async def test_named_keys_beside_those_of_the_environment(store: Path) -> None:
    key, reading_nothing = add(store, "shop"), add(store, "writer", "write", "operate")
    async with service(api_key_store=store, api_keys=KEY) as s:
        for each in (key, KEY):
            await s.get(each)
        await s.get(reading_nothing, 404)
        for wrong in (None, "wrong-but-long-enough", sha256(key.encode()).hexdigest(), f"{key}x", "a.b.c"):
            answer = await s.get(wrong, 401)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert (await s.client.get("/health", headers={"Host": "any.example"})).status_code == 503


@pytest.mark.parametrize("setting", ["api_key_store", "api_keys_file"])
async def test_a_file_that_is_emptied_is_a_warning(
    store: Path, setting: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    key = add(store, "shop") if setting == "api_key_store" else KEY
    if key == KEY:
        store.write_text(KEY)
    async with service(**{setting: store}) as s:
        await s.get(key)
        store.write_text("")
        for _ in range(2):
            await s.get(key, 401)
    [line] = failures(caplog)
    assert line == f"ORDERS_{setting.upper()}: read again; it holds none now, so nobody is admitted by it"
    assert "read again" not in caplog.text.replace(line, "")


async def test_the_slowest_rate_is_told_in_seconds(store: Path) -> None:
    key = add(store, "slow", rate=0.001)
    async with service(api_key_store=store) as s:
        await s.get(key)
        assert int((await s.get(key, 429)).headers["retry-after"]) in (999, 1000)
    with pytest.raises(ValidationError, match=r"must be 0, or 0\.001 or more"):
        Settings(api_rate=1e-320)


async def test_one_key_is_shown_once(store: Path) -> None:
    key = add(store, "shop")
    async with service(api_key_store=store) as s:
        for second in (key, "another-that-nobody-has"):
            headers = [("Authorization", f"Bearer {each}") for each in (key, second)]
            answer = await s.client.get(ORDER, headers=headers)
            assert (answer.status_code, answer.json()["detail"]) == (400, "several Authorization headers")


async def test_a_file_without_keys_admits_nobody(store: Path) -> None:
    store.write_text("")
    async with service(api_key_store=store) as s:
        for path in (ORDER, "/orders/no-id", f"{ORDER}?no=parameter", f"/users/{USER}/orders", "/tracking/x"):
            await s.get(None, 401, path)


async def test_keys_count_from_the_next_request_on(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = add(store, "first")
    async with service(api_key_store=store) as s:
        await s.get(first)
        second = add(store, "second")
        await s.get(second)
        with changing(store) as there:
            there[:] = [each for each in there if each.name != "first"]
        assert (await s.get(first, 401)).json()["detail"] == "this key isn't accepted"
        await s.get(second)
    assert failures(caplog) == []


async def test_keys_of_the_environments_file(
    store: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file, second = tmp_path / "keys", KEY[::-1]
    file.write_text(f"{KEY}\n")
    async with service(api_keys_file=file) as s:
        await s.get(KEY)
        file.write_text(f"{KEY}, {second}\n")
        await s.get(second)
        file.write_text("short")  # it can't be used, so both go on
        await s.get(second)
        assert caplog.text.count("what it had before stays in use") == 1
        assert "short" not in caplog.text
        file.write_text("")
        await s.get(KEY, 401)
        file.write_text(second)
        await s.get(second)
        await s.get(None, 401)
        await s.get(KEY, 401)


async def test_a_link_that_is_switched_is_a_change(store: Path, tmp_path: Path) -> None:
    """As Kubernetes changes a Secret that is mounted."""
    keys = {version: add(tmp_path / version, "shop") for version in ("one", "two")}
    store.symlink_to("now")
    (tmp_path / "now").symlink_to("one")
    async with service(api_key_store=store) as s:
        await s.get(keys["one"])
        await s.get(keys["two"], 401)
        (tmp_path / "next").symlink_to("two")
        os.replace(tmp_path / "next", tmp_path / "now")
        await s.get(keys["one"], 401)
        await s.get(keys["two"])


@pytest.mark.parametrize("how", ["broken", "gone", "unreadable", "a folder"])
async def test_a_file_that_can_no_longer_be_used_leaves_the_keys_in_force(
    store: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    key, other = add(store, "shop"), add(store, "other")
    whole = store.read_text()
    async with service(api_key_store=store) as s:
        await s.get(key)
        if how == "broken":
            store.write_text(f"{whole.splitlines()[0]}\nwhat is this\n")
        elif how == "unreadable":
            store.write_bytes(b"\xff")
        else:
            store.unlink()
            store.mkdir() if how == "a folder" else None
        for _ in range(3):
            await s.get(key)
            await s.get(other)
            await s.get("wrong-but-long-enough", 401)
        [line] = failures(caplog)
        assert line.startswith(f"ORDERS_API_KEY_STORE: {store}")
        assert line.endswith("what was read before stays in force")
        assert ("line 2" in line) == (how == "broken")
        if how == "a folder":
            store.rmdir()
        store.write_text(whole.splitlines()[1] + "\n")
        await s.get(key, 401)
        await s.get(other)
    assert len(failures(caplog)) == 1


async def test_a_key_that_ends(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import UTC, datetime, timedelta

    key = add(store, "shop", expires=datetime.now(UTC) + timedelta(hours=1))
    async with service(api_key_store=store) as s:
        await s.get(key)
        now = time.time
        monkeypatch.setattr("api.access.time.time", lambda: now() + 3601)
        assert (await s.get(key, 401)).json()["detail"] == "this key has expired"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "No such file or directory; make it with orders keys add"),
        ("# mine\n{}\n", "line 2: Object missing required field `name`; mend the line or take it out"),
    ],
)
def test_at_start_a_file_that_cannot_be_used_is_one_line(
    store: Path,
    text: str | None,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if text is not None:
        store.write_text(text)
    monkeypatch.setenv("ORDERS_API_KEY_STORE", str(store))
    assert says in refused_to_start(monkeypatch, capsys)


@pytest.mark.parametrize("command", ["api", "console"])
def test_at_start_a_certificate_of_kafka_that_cannot_be_used_is_one_line(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text("none")
    monkeypatch.setenv("ORDERS_KAFKA_SECURITY_PROTOCOL", "SSL")
    monkeypatch.setenv("ORDERS_KAFKA_SSL_CAFILE", str(ca))
    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: pytest.fail("it starts"))
    said = refused_to_start(monkeypatch, capsys, command=command)
    assert said.startswith(f"orders: ORDERS_KAFKA_SSL_CAFILE={ca} holds no certificates (")


def refused_to_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *options: str, command: str = "api"
) -> str:
    """What `orders api`, or another command that serves, says, which doesn't start."""
    monkeypatch.setenv("ORDERS_POSTGRES", "postgresql://127.0.0.1:1/orders")
    get_settings.cache_clear()
    try:
        code = main.run([command, "--port", "0", *options])
    finally:
        get_settings.cache_clear()
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1), err
    return err


# -- rates ---------------------------------------------------------------------------------------------------


def test_a_rate_admits_a_second_of_requests_at_once_and_then_its_pace() -> None:
    caller = Caller("shop", EVERYTHING, rate=2.0)
    now = time.monotonic() + 10
    assert [caller.wait(now) for _ in range(3)] == [0, 0, 0.5]
    assert caller.wait(now + 0.4) == pytest.approx(0.1)
    assert caller.wait(now + 0.5) == 0
    assert caller.wait(now + 0.6) > 0
    slow = Caller("slow", EVERYTHING, rate=0.1)
    assert (slow.wait(now), slow.wait(now)) == (0, 10), "a rate below 1 admits one"
    free = Caller("free", EVERYTHING)
    assert {free.wait(now) for _ in range(100)} == {0}


async def test_whoever_comes_too_often_is_told_when_to_come_again(store: Path) -> None:
    slow, other = add(store, "slow", rate=0.01), add(store, "other")
    async with service(api_key_store=store, api_rate=0.02) as s:
        await s.get(slow)
        answer = await s.get(slow, 429)
        assert answer.headers["content-type"] == "application/problem+json"
        assert int(answer.headers["retry-after"]) in (99, 100)
        add(store, "third")
        await s.get(slow, 429)
        await s.get(other)
        assert int((await s.get(other, 429)).headers["retry-after"]) in (49, 50), "of ORDERS_API_RATE"


# -- tokens --------------------------------------------------------------------------------------------------


@cache
def private(kind: str) -> Any:
    if kind == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    if kind == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 1024 if kind == "short" else 2048)


def jwk(kind: str, kid: str | None = None, **changes: Any) -> dict[str, Any]:
    algorithm: Any = {"ES256": ECAlgorithm, "EdDSA": OKPAlgorithm}.get(kind, RSAAlgorithm)
    public = algorithm.to_jwk(private(kind).public_key(), as_dict=True)
    return {**public, "kid": kid or kind, "use": "sig", **changes}


def jwks(path: Path, *keys: dict[str, Any]) -> None:
    """Write a JWKS as a rename does, so that it is another file."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"keys": keys}))
    os.replace(new, path)


def token(
    kind: str = "RS256", kid: str | None = None, key: Any = None, headers: Any = None, **changes: Any
) -> str:
    claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "shop", "exp": time.time() + 300, "scope": "openid all"}
    claims |= changes
    return jwt.encode(
        {name: value for name, value in claims.items() if value is not None},
        key or private(kind),
        kind,
        headers={"kid": kid or kind} | (headers or {}),
    )


def by_hand(header: dict[str, Any], sign: Callable[[bytes], bytes], **changes: Any) -> str:
    """A token that no library would make."""
    claims = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "shop",
        "exp": time.time() + 300,
        "scope": "all",
    } | changes

    def part(data: bytes) -> bytes:
        return urlsafe_b64encode(data).rstrip(b"=")

    signed = part(json.dumps(header).encode()) + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(sign(signed))).decode()


@pytest.fixture
def issuer(tmp_path: Path) -> dict[str, Any]:
    """Settings of an issuer whose keys are in a file."""
    jwks(tmp_path / "jwks", jwk("RS256"), jwk("ES256"), jwk("EdDSA"))
    return {
        "api_jwt_issuer": ISSUER,
        "api_jwt_audience": AUDIENCE,
        "api_jwt_jwks": str(tmp_path / "jwks"),
    }


@pytest.mark.parametrize("kind", ["RS256", "ES256", "EdDSA"])
async def test_tokens(issuer: dict[str, Any], kind: str) -> None:
    async with service(**issuer) as s:
        await s.get(token(kind))
        await s.get(token(kind, aud=["others", AUDIENCE], scope=None, scp=["all"]))
        await s.get(token(kind, scope=None, scp="read all"))
        for narrower in ({"scope": "openid read"}, {"scope": None}, {"scope": 7}, {"scope": f"user:{USER}"}):
            await s.get(token(kind, **narrower), 404)
        await s.get(None, 401)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"exp": time.time() - 60}, "the token has expired"),
        ({"nbf": 4e9}, "the token isn't valid yet"),
        ({"aud": "others"}, "the token is for another audience"),
        ({"aud": None}, "the token lacks a claim: exp, iss, aud and sub are needed"),
        ({"iss": "https://issuer.example.evil"}, "the token is of another issuer"),
        ({"exp": None}, "the token lacks a claim: exp, iss, aud and sub are needed"),
        ({"sub": None}, "the token lacks a claim: exp, iss, aud and sub are needed"),
        ({"exp": 1e999}, "the token isn't valid"),
        ({"exp": 10**400}, "the token isn't valid"),
        ({"exp": "9999999999"}, "the token isn't valid"),
        ({"exp": [9999999999]}, "the token isn't valid"),
        ({"exp": True}, "the token has expired"),
        ({"iat": "x"}, "the token isn't valid"),
        ({"nbf": 10**400}, "the token isn't valid yet"),
        ({"aud": {"orders": 1}}, "the token is for another audience"),
        ({"aud": [AUDIENCE, 1]}, "the token is for another audience"),
        ({"sub": {"a": 1}}, "the token isn't valid"),
        ({"kid": "k" * 10_000}, "the token isn't signed by a key of the issuer"),
        ({"headers": {"crit": ["exp"]}}, "this isn't a token"),
        ({"headers": {"crit": []}}, "this isn't a token"),
        ({"kid": "unknown"}, "the token isn't signed by a key of the issuer"),
        ({"key": rsa.generate_private_key(65537, 2048)}, "the token isn't valid"),
    ],
)
async def test_tokens_that_are_not_accepted(
    issuer: dict[str, Any], changes: dict[str, Any], says: str
) -> None:
    async with service(**issuer) as s:
        answer = await s.get(token(**changes), 401)
        assert answer.json()["detail"] == says
        assert answer.headers["www-authenticate"] == (
            f'Bearer error="invalid_token", error_description="{says}"'
        )


async def test_a_token_decides_nothing_about_how_it_is_checked(issuer: dict[str, Any]) -> None:
    pem = private("RS256").public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    forged = [
        by_hand({"alg": alg, "kid": "RS256"}, sign)
        for alg in ("none", "None", "NONE", "HS256", "RS256", "ES256", "", None)
        for sign in (
            lambda _: b"",
            lambda text: hmac(pem, text, "sha256"),
            lambda text: hmac(json.dumps(jwk("RS256")).encode(), text, "sha256"),
        )
    ]
    own = jwk("RS256", "mine")
    forged += [
        by_hand({"alg": "none"}, lambda _: b""),
        token(kid="mine", key=rsa.generate_private_key(65537, 2048)),
        jwt.encode(
            {"sub": "x"}, private("RS256"), "RS256", headers={"jwk": own, "jku": "https://evil.example"}
        ),
        jwt.encode(
            {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 9}, private("RS256"), "RS512"
        ),
        by_hand({"alg": "RS256", "kid": ["RS256"]}, lambda _: b"x"),
        by_hand({"alg": "RS256", "kid": "RS256", "crit": ["exp"]}, lambda _: b"x"),
        "..",
        "a.b.c",
        "e30.e30.",
        f"{urlsafe_b64encode(b'[' * 45_000).decode()}.e30.e30",
        f"{urlsafe_b64encode(bytes(range(256))).decode()}.e30.e30",
    ]
    async with service(**issuer) as s:
        for each in forged:
            await s.get(each, 401)


async def test_only_public_keys_for_these_algorithms_count(issuer: dict[str, Any], tmp_path: Path) -> None:
    shared = urlsafe_b64encode(b"x" * 32).decode().rstrip("=")
    wrong = [
        {"kty": "oct", "k": shared, "kid": "HS256", "alg": "HS256"},
        {"kty": "oct", "k": shared, "kid": "RS256"},
        jwk("short"),
        jwk("RS256", "enc", use="enc"),
        jwk("RS256", "RS512", alg="RS512"),
        jwk("RS256", "damaged", n="AA"),
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA", "kid": "damaged too"},
        {"kty": ["RSA"]},
        "a key",
    ]
    (tmp_path / "jwks").write_text(json.dumps({"keys": [*wrong, jwk("ES256")]}))
    async with service(**issuer) as s:
        await s.get(token("ES256"))
        await s.get(token("RS256", "enc"), 401)
        await s.get(token("RS256", "RS512"), 401)
        await s.get(jwt.encode({"sub": "x"}, b"x" * 32, "HS256", headers={"kid": "HS256"}), 401)
        weak = by_hand(
            {"alg": "RS256", "kid": "short"}, lambda text: private("short").sign(text, PKCS1v15(), SHA256())
        )
        await s.get(weak, 401)


async def test_without_a_kid_the_only_key_is_meant(issuer: dict[str, Any], tmp_path: Path) -> None:
    unnamed = jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "sub": "x", "exp": time.time() + 300, "scope": "all"},
        private("ES256"),
        "ES256",
    )
    async with service(**issuer) as s:
        await s.get(unnamed, 401)
        jwks(tmp_path / "jwks", {name: value for name, value in jwk("ES256").items() if name != "kid"})
        await s.get(unnamed)


async def test_a_file_of_keys_is_read_again(
    issuer: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = token("RS256"), token("RS256", "new")
    async with service(**issuer) as s:
        await s.get(old)
        await s.get(new, 401)
        jwks(tmp_path / "jwks", jwk("RS256", "new"))
        await s.get(new)
        await s.get(old, 401)
        (tmp_path / "jwks").unlink()
        for _ in range(3):
            await s.get(new)
        assert len(failures(caplog)) == 1


async def test_a_known_token_ends_too(issuer: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    known = token()
    async with service(**issuer) as s:
        await s.get(known)
        now = time.time
        monkeypatch.setattr("api.access.time.time", lambda: now() + 400)
        await s.get(known, 401)


async def test_only_so_many_tokens_are_remembered(
    issuer: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "MOST_TOKENS", 2)
    async with service(**issuer, api_rate=1.0) as s:
        for number in range(4):
            await s.get(token(sub=f"subject {number}"))
        remembered = s.app.state.access._issuer
        assert (len(remembered._known), len(remembered._callers)) == (2, 2)


async def test_a_subjects_tokens_share_its_rate(issuer: dict[str, Any]) -> None:
    async with service(**issuer, api_rate=0.01) as s:
        await s.get(token())
        await s.get(token(exp=time.time() + 100), 429)
        await s.get(token(sub="other"))


# -- an issuer's URL -----------------------------------------------------------------------------------------


class Server(NamedTuple):
    """Where an issuer is, what it answers (status, body), and how often it was asked."""

    url: str
    answer: list[Any]
    asked: list[str]
    stop: Callable[[], None]


@pytest.fixture
def server() -> Iterator[Server]:
    answer: list[Any] = [200, json.dumps({"keys": [jwk("RS256")]})]
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = answer[1].encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=http.serve_forever, args=(0.01,))
    thread.start()
    stopped: list[bool] = []

    def stop() -> None:
        if not stopped:
            stopped.append(True)
            http.shutdown()
            thread.join()
            http.server_close()

    yield Server(f"http://127.0.0.1:{http.server_address[1]}/jwks", answer, asked, stop)
    stop()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds by which the issuer's client believes that time has gone on."""
    ahead = [0.0]

    class Time:
        time = staticmethod(time.time)

        @staticmethod
        def monotonic() -> float:
            return time.monotonic() + ahead[0]

    monkeypatch.setattr(tokens, "time", Time)
    return ahead


def at(server: Server) -> dict[str, Any]:
    return {"api_jwt_issuer": ISSUER, "api_jwt_audience": AUDIENCE, "api_jwt_jwks": server.url}


async def test_an_unknown_key_is_asked_for_once_a_minute(server: Server, clock: list[float]) -> None:
    async with service(**at(server)) as s:
        await s.app.state.access.prepare()
        await s.get(token())
        server.answer[1] = json.dumps({"keys": [jwk("RS256"), jwk("ES256")]})
        answers = await asyncio.gather(*(s.get(token("ES256")) for _ in range(10)))
        assert (len(answers), len(server.asked)) == (10, 2)
        for number in range(10):
            await s.get(token(kid=f"made up {number}"), 401)
        assert len(server.asked) == 2
        clock[0] = 61
        await s.get(token(kid="made up"), 401)
        assert len(server.asked) == 3


async def test_what_is_behind_the_mark_of_an_address_is_not_printed(
    server: Server,
    clock: list[float],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url, secret = f"{server.url}?key=MarkedSecret", "MarkedSecret"
    shown = f"{server.url}?***"
    given = at(server) | {"api_jwt_jwks": url}
    for name, value in given.items():
        monkeypatch.setenv(f"ORDERS_{name.upper()}", value)
    for command in (["settings"], ["settings", "--json"]):
        get_settings.cache_clear()
        assert main.run(command) == 0
        assert shown in capsys.readouterr().out
    assert secret not in repr(get_settings()) + get_settings().model_dump_json()
    get_settings.cache_clear()
    async with service(**given) as s:
        await s.app.state.access.prepare()
        assert server.asked == ["/jwks?key=MarkedSecret"]
        good = server.answer[1]
        for answer in ([503, ""], [200, "{}"], [200, '{"keys": []}']):
            server.answer[:] = answer
            with pytest.raises(tokens.IssuerUnusable, match=re.escape(shown)) as raised:
                await s.app.state.access.prepare()
            assert secret not in str(raised.value)
        server.answer[:] = [200, good]
        server.stop()
        clock[0] = 61
        await s.get(token(kid="new"), 503)
    for host in (
        "https://127.0.0.1:1/x?MarkedSecret",
        "https://a..b/?MarkedSecret",
        "https://[::/?MarkedSecret",
    ):
        with pytest.raises(tokens.IssuerUnusable) as raised:
            await tokens._of_url(host)
        assert secret not in str(raised.value)
    [line] = failures(caplog)
    assert shown in line
    assert secret not in caplog.text


async def test_an_issuer_that_goes_away(
    server: Server, clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    async with service(**at(server)) as s:
        await s.app.state.access.prepare()
        server.stop()
        for ahead in (0, 61, 700, 800):
            clock[0] = ahead
            await s.get(token(), path=ORDER)
            await s.get(token(sub=f"another at {ahead}"))
            answer = await s.get(token(kid="new"), 503)
            assert answer.headers["retry-after"] == "60"
        [line] = failures(caplog)
        assert server.url in line
        assert line.endswith("the keys that are known stay in force")


async def test_a_key_that_the_issuer_has_withdrawn_ends(server: Server, clock: list[float]) -> None:
    async with service(**at(server)) as s:
        await s.app.state.access.prepare()
        known = token()
        await s.get(known)
        server.answer[1] = json.dumps({"keys": [jwk("ES256")]})
        clock[0] = tokens.REFRESH_AGE + 1
        while (await s.client.get(ORDER, headers={"Authorization": f"Bearer {known}"})).status_code == 200:
            await asyncio.sleep(0)
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (404, "{}", "answers 404"),
        (302, "{}", "answers 302"),
        (200, "<html>", "holds no JWKS"),
        (200, "[]", "holds no JWKS"),
        (200, '{"keys": {}}', "holds no public key for RS256, ES256, EdDSA"),
        (200, '{"keys": []}', "holds no public key for RS256, ES256, EdDSA"),
        (200, " " * (tokens.MOST_BYTES + 1), "holds no JWKS"),
    ],
)
def test_at_start_an_issuer_that_answers_something_else_is_one_line(
    server: Server,
    status: int,
    body: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server.answer[:] = status, body
    for name, value in at(server).items():
        monkeypatch.setenv(f"ORDERS_{name.upper()}", value)
    line = refused_to_start(monkeypatch, capsys)
    assert f"{server.url} {says}" in line
    assert server.asked == ["/jwks"]


def test_at_start_an_issuer_that_is_not_there_is_one_line(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    server.stop()
    for name, value in at(server).items():
        monkeypatch.setenv(f"ORDERS_{name.upper()}", value)
    line = refused_to_start(monkeypatch, capsys)
    assert f"the issuer's keys can't be fetched from {server.url}" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"jwks": None}, "ORDERS_API_JWT_JWKS not set"),
        ({"issuer": None, "audience": None}, "ORDERS_API_JWT_ISSUER and ORDERS_API_JWT_AUDIENCE not set"),
        ({"jwks": "/nowhere/jwks"}, "/nowhere/jwks: No such file or directory"),
        ({"jwks": "http://issuer.example/jwks"}, "must be a file or an https URL"),
        ({"jwks": "https://user:password@issuer.example/jwks"}, "must be a file or an https URL"),
        ({"jwks": "ftp://issuer.example/jwks"}, "must be a file or an https URL"),
    ],
)
def test_settings_of_an_issuer_that_cannot_be_used(
    changes: dict[str, str | None],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = {"issuer": ISSUER, "audience": AUDIENCE, "jwks": "https://issuer.example/jwks"} | changes
    for name, value in given.items():
        if value is not None:
            monkeypatch.setenv(f"ORDERS_API_JWT_{name.upper()}", value)
    line = refused_to_start(monkeypatch, capsys)
    assert says in line
    assert "user:password" not in line


# -- TLS -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--cert", "cert"), "--cert and --key belong together; give both, or neither"),
        (("--key", "key"), "--cert and --key belong together; give both, or neither"),
        (("--cert", "cert", "--key", "other"), "other is not the key of "),
        (("--cert", "cert", "--key", "nowhere"), "nowhere: No such file or directory"),
        (("--cert", "", "--key", "key"), "Is a directory"),
        (("--cert", "key", "--key", "cert"), "hold no certificate and key; give --cert and --key"),
        (("--cert", "garbage", "--key", "key"), "hold no certificate and key"),
        (("--cert", "cert", "--key", "locked"), "locked is locked by a password"),
        (("--cert", "old", "--key", "old.key"), "old has expired ("),
    ],
)
def test_a_certificate_that_cannot_be_used_is_one_line(
    tmp_path: Path,
    options: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    certificate(tmp_path / "cert", tmp_path / "key")
    certificate(tmp_path / "another", tmp_path / "other")
    certificate(tmp_path / "cert that is locked", tmp_path / "locked", password=b"secret")
    certificate(tmp_path / "old", tmp_path / "old.key", days=-1)
    (tmp_path / "garbage").write_bytes(b"\xff" * 100)
    args = [each if each.startswith("--") else str(tmp_path / each) for each in options]
    assert says in refused_to_start(monkeypatch, capsys, *args)


# -- the access log ------------------------------------------------------------------------------------------


async def test_the_access_log_says_who_did_what_and_nothing_personal(
    store: Path, issuer: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "api.requests")
    key = add(store, "shop", rate=0.01)
    async with service(api_key_store=store, api_keys=KEY, **issuer) as s:
        await s.get(key, path=f"{ORDER}?min_version=0")
        await s.get(key, 429)
        await s.get(KEY)
        await s.get(token(sub="a b\n=\x1b[31m" + "c" * 200))
        await s.get(token(sub=USER, scope=f"user:{USER}"), 404)
        await s.get("wrong-but-long-enough", 401)
        await s.get(KEY, 422, f"/users/{USER}/orders?limit=x")
        await s.get(KEY, 404, "/no/such/path")
        await s.client.head(ORDER, headers={"Authorization": f"Bearer {KEY}"})
        await s.client.post(ORDER)
        s.app.state.reader.order = None  # a bug of ours
        await s.get(KEY, 500)
    lines = [record.getMessage() for record in caplog.records if record.name == "api.requests"]
    assert [line.rpartition(" ms=")[0].removeprefix("request who=") for line in lines] == [
        "shop method=GET route=/orders/{order_id} status=200",
        "shop method=GET route=/orders/{order_id} status=429",
        "ORDERS_API_KEYS:1 method=GET route=/orders/{order_id} status=200",
        f"jwt:a_b_=__31m{'c' * 90} method=GET route=/orders/{{order_id}} status=200",
        "jwt:(a user) method=GET route=/orders/{order_id} status=404",
        "- method=GET route=/orders/{order_id} status=401",
        "ORDERS_API_KEYS:1 method=GET route=/users/{user_id}/orders status=422",
        "- method=GET route=- status=404",
        "ORDERS_API_KEYS:1 method=HEAD route=/orders/{order_id} status=200",
        "- method=POST route=/orders/{order_id} status=405",
        "ORDERS_API_KEYS:1 method=GET route=/orders/{order_id} status=500",
    ]
    everything = caplog.text
    for secret in (key, KEY, USER, "3fa85f64", "min_version", "127.0.0.1"):
        assert secret not in everything


async def test_probes_do_not_fill_the_access_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "api.requests")
    async with service(api_keys=KEY) as s:
        assert (await s.client.get("/health")).status_code == 503
        await s.get(KEY)
    probe, request = [record for record in caplog.records if record.name == "api.requests"]
    assert (probe.levelname, "route=/health" in probe.getMessage()) == ("DEBUG", True)
    assert request.levelname == "INFO"


async def test_the_access_log_can_be_off(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "api.requests")
    async with service(api_keys=KEY, api_access_log=False) as s:
        await s.get(KEY)
    assert caplog.records == []


def test_a_line_of_the_file_is_what_the_page_shows() -> None:
    assert NamedKey.__struct_fields__ == ("name", "sha256", "scopes", "created", "expires", "rate")


def test_a_pipe_as_jwks_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(tokens.IssuerUnusable, match="pipe: a pipe or a device is no file"):
        tokens._of_file(tmp_path / "pipe")


def test_a_pipe_as_certificate_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CertificateUnusable, match="pipe: a pipe or a device is no file"):
        _context(tmp_path / "pipe", tmp_path / "key")
