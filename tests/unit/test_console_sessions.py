"""Who comes into the console and for how long: keys, sessions, forms of other pages, a proxy's headers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from pydantic import ValidationError

from api.keys import changing
from console.parameters import own_path
from console.texts import EN
from settings import Settings
from tests.unit.builders import ORDER, USER
from tests.unit.console_world import Made, console, new_key, token_in

SECRET = "0123456789abcdef" * 2
HOST = "https://orders.example"


async def log_in(browser: httpx.AsyncClient, key: str, **form: str) -> httpx.Response:
    return await browser.post("/login", data={"key": key, **form})


async def test_a_key_is_shown_once_and_leads_back(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys) as browser:
        asked = await browser.get(f"/orders/{ORDER}?as_of=2026-01-01")
        wrong = await log_in(browser, "ok_" + "a" * 40)
        assert not browser.cookies
        went = await log_in(browser, f" {new_key(keys, 'all')}\n", next=f"/orders/{ORDER}")
        page = await browser.get(f"/orders/{ORDER}")
    assert asked.status_code == 401
    assert f'name="next" value="/orders/{ORDER}?as_of=2026-01-01"' in asked.text
    assert (wrong.status_code, went.status_code) == (401, 303)
    assert EN["wrong_key"].replace("'", "&#39;") in wrong.text
    assert went.headers["location"] == f"/orders/{ORDER}"
    cookie = went.headers["set-cookie"]
    assert cookie.startswith("__Host-orders-console=")
    for part in ("HttpOnly", "Secure", "SameSite=strict", "Path=/"):
        assert part in cookie
    assert "Max-Age" not in cookie
    assert page.status_code == 200
    assert USER in page.text
    assert "key-0, support" in page.text


async def test_on_this_machine_the_cookie_needs_no_tls(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys, at="http://127.0.0.1:8090") as browser:
        went = await log_in(browser, new_key(keys, "view"))
        assert went.headers["set-cookie"].startswith("orders-console=")
        assert "Secure" not in went.headers["set-cookie"]
        assert (await browser.get("/")).status_code == 200
    async with console(Made(), keys, at="http://orders.example") as browser:
        went = await log_in(browser, new_key(keys, "view"))
        assert "; Secure" in went.headers["set-cookie"]


@pytest.mark.parametrize(
    "next_", ["//evil.example", "https://evil.example", "/\\evil.example", "", "x", "/\n/evil", "/é"]
)
def test_a_login_leads_nowhere_else(next_: str) -> None:
    assert own_path(next_) == "/"


async def test_a_session_ends_when_nobody_uses_it_and_in_any_case(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = tmp_path / "keys"
    real = time.time
    now = real()
    monkeypatch.setattr(time, "time", lambda: now)  # PyJWT looks at the real clock
    limits: dict[str, Any] = {"console_secret": SECRET, "console_idle": 600, "console_session": 3600}
    async with console(Made(), keys, **limits) as browser:
        key = new_key(keys, "view")

        async def seen(ago: float) -> httpx.Response:
            """A page with a session that was used so long ago."""
            nonlocal now
            now = real() - ago
            browser.cookies.clear()
            await log_in(browser, key)
            now = real()
            return await browser.get("/")

        assert (await seen(500)).status_code == 200
        assert (await seen(700)).status_code == 401
        # One that is always used goes on, each time with a new cookie, up to its end.
        now = real() - 3000
        browser.cookies.clear()
        begun = (await log_in(browser, key)).headers["set-cookie"].partition("=")[2].partition(";")[0]
        claims = jwt.decode(
            begun, SECRET, ["HS256"], audience="orders-console", options={"verify_exp": False}
        )
        assert claims["exp"] == claims["iat"] + 600
        claims |= {"nbf": int(real()) - 100, "exp": int(real()) + 500}
        now = real()
        browser.cookies.set("__Host-orders-console", jwt.encode(claims, SECRET), domain="orders.example")
        renewed = await browser.get("/")
        fresh = jwt.decode(
            renewed.headers["set-cookie"].partition("=")[2].partition(";")[0],
            SECRET,
            ["HS256"],
            audience="orders-console",
        )
        assert fresh["iat"] == claims["iat"]
        assert fresh["exp"] == min(fresh["nbf"] + 600, fresh["iat"] + 3600) == fresh["nbf"] + 600
        assert "set-cookie" not in (await browser.get("/?part=live")).headers
        assert "set-cookie" not in (await browser.get("/")).headers


async def test_only_a_cookie_of_ours_is_a_session(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys, console_secret=SECRET) as browser:
        key = new_key(keys, "all")
        await log_in(browser, key)
        (name, cookie), *_ = browser.cookies.items()
        claims = jwt.decode(cookie, SECRET, ["HS256"], audience="orders-console")
        forged: dict[str, Any] = {
            "signature": cookie[:-4] + "AAAA",
            "other secret": jwt.encode(claims, "x" * 32),
            "no signature": jwt.encode(claims, "", "none"),
            "audience": jwt.encode(claims | {"aud": "other"}, SECRET),
            "part": jwt.encode({key: value for key, value in claims.items() if key != "key"}, SECRET),
            "no key": jwt.encode(claims | {"key": ""}, SECRET),
            "nothing": "",
        }
        for why, text in forged.items():
            browser.cookies.clear()
            browser.cookies.set(name, text, domain="orders.example")
            assert (await browser.get("/")).status_code == 401, why
    # Consoles with the same secret share sessions; others don't.
    for secret, code in ((SECRET, 200), (SECRET[::-1], 401), ("", 401)):
        async with console(Made(), console_secret=secret, at=HOST, api_key_store=keys) as other:
            other.cookies.set(name, cookie, domain="orders.example")
            assert (await other.get("/")).status_code == (code), secret


async def test_a_withdrawn_key_ends_its_sessions(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys) as browser:
        await log_in(browser, new_key(keys, "view"))
        assert (await browser.get("/")).status_code == 200
        with changing(keys) as lines:
            lines.clear()
        gone = await browser.get("/")
    assert gone.status_code == 401
    assert EN["key_gone"].replace("'", "&#39;") in gone.text


async def test_a_session_is_left_by_its_own_form(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys) as browser:
        await log_in(browser, new_key(keys, "view"))
        token = token_in((await browser.get("/")).text)
        for form in ({"other": "x"}, {"token": "0" * 64}):
            assert (await browser.post("/logout", data=form)).status_code == 403
        assert (await browser.get("/")).status_code == 200
        left = await browser.post("/logout", data={"token": token})
        assert left.headers["location"] == "/login"
        assert (await browser.get("/")).status_code == 401
        # A program shows its key itself, and needs no token.
        key = {"Authorization": f"Bearer {new_key(keys, 'view')}"}
        assert (await browser.post("/logout", headers=key, data={"x": "y"})).status_code == 303


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({"Origin": HOST}, 303),
        ({"Origin": "http://orders.example"}, 303),  # behind a proxy that speaks TLS
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "https://orders.example.evil.example"}, 403),
        ({"Origin": "https://orders.example:444"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 303),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Origin": HOST, "Sec-Fetch-Site": "cross-site"}, 303),
        ({"Content-Type": "application/json"}, 415),
        ({"Content-Type": "text/plain"}, 415),
    ],
)
async def test_forms_of_other_pages_are_refused(headers: dict[str, str], code: int, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys) as browser:
        key = new_key(keys, "view")
        answer = await browser.post("/login", data={"key": key}, headers=headers)
        assert answer.status_code == code
        assert bool(browser.cookies) == (code == 303)


@pytest.mark.parametrize(
    ("body", "code"), [(b"key=%ff", 422), (b"&" * 200, 422), (b"key=" + b"x" * 70_000, 413), (b"", 401)]
)
async def test_forms_that_cannot_be_read_are_said(body: bytes, code: int, tmp_path: Path) -> None:
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    async with console(Made(), tmp_path / "keys") as browser:
        assert (await browser.post("/login", content=body, headers=headers)).status_code == code


async def test_without_keys_forms_are_bound_to_their_browser(tmp_path: Path) -> None:
    async with console(Made()) as browser, console(Made()) as other:
        page = await browser.get("/")
        assert page.headers["set-cookie"].startswith("orders-console=")
        assert EN["log_out"] not in page.text
        assert "set-cookie" not in (await browser.get("/")).headers
        other.cookies.clear()
        assert (await other.post("/logout", data={"token": "0" * 64})).status_code == 403


# -- a proxy that logs people in -----------------------------------------------------------------------------

PROXY: dict[str, Any] = {
    "console_proxy_user": "X-Forwarded-Email",
    "console_proxy_viewers": "staff",
    "console_proxy_support": "care, care-lead",
    "console_proxy_operators": "ops",
}


@pytest.mark.parametrize(
    ("trust", "address", "shown", "code"),
    [
        ({"console_proxy_secret": SECRET}, "192.0.2.1", SECRET, 200),
        ({"console_proxy_secret": SECRET}, "10.0.0.5", SECRET[::-1], 401),
        ({"console_proxy_secret": SECRET}, "10.0.0.5", "", 401),
        ({"console_proxy_addresses": "10.0.0.0/8, ::1"}, "10.0.0.5", "", 200),
        ({"console_proxy_addresses": "10.0.0.0/8, ::1"}, "::1", "", 200),
        ({"console_proxy_addresses": "10.0.0.0/8, ::1"}, "192.0.2.1", "", 401),
        ({"console_proxy_addresses": "10.0.0.0/8"}, "unix", "", 401),
        ({"console_proxy_addresses": "10.0.0.0/8", "console_proxy_secret": SECRET}, "10.0.0.5", "", 401),
        ({"console_proxy_addresses": "10.0.0.0/8", "console_proxy_secret": SECRET}, "10.0.0.5", SECRET, 200),
    ],
)
async def test_a_proxy_is_believed_where_it_is_known(
    trust: dict[str, Any], address: str, shown: str, code: int
) -> None:
    headers = {"X-Forwarded-Email": "anna@example", "X-Forwarded-Groups": "staff"}
    if shown:
        headers["X-Orders-Proxy-Secret"] = shown
    async with console(Made(), at=HOST, client=address, **PROXY, **trust) as browser:
        answer = await browser.get("/", headers=headers)
    assert answer.status_code == code
    assert ("anna@example, viewer" in answer.text) == (code == 200)
    if code == 401:
        assert EN["by_proxy"][:20] in answer.text


@pytest.mark.parametrize(
    ("groups", "role"),
    [
        ("staff", "viewer"),
        ("x, care-lead ,staff", "support"),
        ("staff,ops", "operator"),
        ("", None),
        ("st", None),
    ],
)
async def test_groups_are_roles(groups: str, role: str | None) -> None:
    trusted: dict[str, Any] = {**PROXY, "console_proxy_secret": SECRET}
    headers = {
        "X-Forwarded-Email": "anna@example",
        "X-Forwarded-Groups": groups,
        "X-Orders-Proxy-Secret": SECRET,
    }
    async with console(Made(), at=HOST, **trusted) as browser:
        answer = await browser.get("/", headers=headers)
        unnamed = await browser.get("/", headers=headers | {"X-Forwarded-Email": " "})
        twice = await browser.get("/", headers=[*headers.items(), ("X-Forwarded-Email", "carl@example")])
        form = await browser.post("/logout", headers=headers, data={"token": "0" * 64})
    assert answer.status_code == (403 if role is None else 200)
    assert role is None or f"anna@example, {role}" in answer.text
    assert (unnamed.status_code, twice.status_code) == (401, 401)
    assert form.status_code == 403


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"console_proxy_user": "X-User", "console_proxy_viewers": "a"},
            "ORDERS_CONSOLE_PROXY_SECRET must be",
        ),
        ({"console_proxy_user": "X-User", "console_proxy_secret": SECRET}, "must name a group"),
        ({"console_proxy_user": "X User"}, "name of a header"),
        ({"console_proxy_addresses": "10.99.0.5/8"}, "must be addresses or networks"),
        ({"console_secret": "short"}, "fewer than 32"),
    ],
)
def test_settings_that_would_let_anybody_in_are_refused(changes: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said) as raised:
        Settings.model_validate(changes)
    assert "short" not in str(raised.value)
