"""A marked secret in every setting that holds one, and every command: nothing printed or logged has it.

Both are enumerated from the code, so a new one is covered without a word here; one whose argument this page
doesn't know makes it fail.
"""

from __future__ import annotations

import enum
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, get_args

import pytest
from pydantic import SecretStr

from cli import main
from credentials import Secret
from settings import SECRET_FILES, Settings, get_settings
from stack import Stack, StackError
from tests.unit.test_secrets import MARK, NOWHERE, answering

ARGUMENTS: Final[dict[str, str]] = {
    "mapping": "shopify",
    "kind": "order",
    "values": "A-1",
    "names": "EU",
    "name": "shop",
    "scope": "all",
    "order_id": "10000000-0000-4000-8000-000000000001",
    "user": "10000000-0000-4000-8000-000000000001",
    "coordinates": "0:0",
    "folder": "there/is/none",
    "file": "orders.csv",
    "reason": "to see what happens",
    "why": "to see what happens",
}
"""Name of a required argument -> what it gets here. Enums get their first value."""
MORE: Final = {
    ("api",): ["--port", "{taken}"],
    ("db", "link"): ["--users", "people"],
    ("dlq", "redrive"): ["--all"],
}
"""With which a command ends, or comes as far as to its servers."""


def commands() -> Iterator[list[str]]:
    """Every command, with the arguments that it can't do without."""

    def leaves(path: list[str], command: Any) -> Iterator[list[str]]:
        below = getattr(command, "commands", {})
        for name, each in below.items():
            yield from leaves([*path, name], each)
        if not below or command.invoke_without_command:
            yield path + [word for each in command.params if each.required for word in given(each)]

    for sub in main.SUBCOMMANDS:
        yield from leaves([sub.name], main.load(sub))


def given(parameter: Any) -> list[str]:
    kind = parameter.type_descriptor.annotation
    value = next(iter(kind)).value if isinstance(kind, enum.EnumMeta) else ARGUMENTS[parameter.name]
    return [option for option in parameter.opts[:1] if option.startswith("-")] + [value]


COLUMNS: Final = "order_id,user_id,currency,total_amount,time,item_id,product_id,seller_id,sku,quantity,price"
GOOD: Final = "{0}1,{0}2,EUR,1.00,2026-01-01T01:00:00Z,{0}3,{0}4,{0}5,sku,1,1.00".format(
    "10000000-0000-4000-8000-00000000000"
)
HELD: Final = {
    name
    for name, field in Settings.model_fields.items()
    if any(
        isinstance(kind, type) and issubclass(kind, SecretStr)
        for kind in (field.annotation, *get_args(field.annotation))
    )
}
"""Settings that hold a secret."""
LOGINS: Final[dict[str, dict[str, str]]] = {
    "password": {
        "kafka_security_protocol": "SASL_PLAINTEXT",
        "kafka_sasl_mechanism": "PLAIN",
        "kafka_sasl_username": "u",
    },
    "token": {"kafka_security_protocol": "SASL_PLAINTEXT", "kafka_sasl_mechanism": "OAUTHBEARER"},
    "certificate": {"kafka_security_protocol": "SSL", "kafka_ssl_certfile": "there/is/none.pem"},
}
"""Kafka's secrets exclude each other."""
NOT_WITH: Final = {
    "kafka_sasl_password": {"token", "certificate"},
    "kafka_oauth_token_command": {"password", "certificate"},
    "kafka_ssl_key_password": {"password", "token"},
}


OTHERS: Final = {
    "kafka_oauth_token_command": f"echo {MARK}",
    "api_jwt_jwks": f"https://{NOWHERE}/jwks?key={MARK}",
}
"""Secrets of another form."""


def secret(name: str) -> str:
    """A value of a setting that can be used, and has the mark wherever a secret can be."""
    kind, check = SECRET_FILES.get(name, (Secret, None))
    for value in (
        f"postgresql://u:{MARK}@{NOWHERE}/d?sslpassword={MARK}&role={MARK}&options=-c%20{MARK}={MARK}&{MARK}=1",
        f"rediss://u:{MARK}@{NOWHERE}/0?ssl_password={MARK}&client_name={MARK}&ssl_ca_certs={MARK}",
        f"{MARK}-long-enough",
    ):
        try:
            kind(value)
            if check is not None:
                check(value)
        except ValueError:
            continue
        return OTHERS.get(name, value)
    raise AssertionError(f"no value for {name}")


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """It refuses each login, with words that repeat what it was told."""
    with answering() as address:
        yield address


@pytest.fixture
def taken() -> Iterator[str]:
    """A port that nobody else can listen on."""
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        line.listen()
        yield str(line.getsockname()[1])


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without a stack, and none is started."""
    monkeypatch.chdir(tmp_path)
    Path("orders.csv").write_text(f"{COLUMNS}\n{GOOD}\n")
    Path("keys.jsonl").touch(mode=0o600)

    def refuse(*_: object, **__: object) -> None:
        raise StackError("none here", "a test needs none")

    for name in ("start", "open"):
        monkeypatch.setattr(Stack, name, refuse)
    for name in [name for name in os.environ if name.startswith("ORDERS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ORDERS_KAFKA", NOWHERE)
    monkeypatch.setenv("ORDERS_POSTGRES", f"postgresql://{NOWHERE}/d")
    monkeypatch.setenv("ORDERS_REDIS", f"redis://{NOWHERE}/0")


@pytest.mark.parametrize("form", ["value", "file"])
@pytest.mark.parametrize("login", LOGINS)
def test_no_command_tells_a_secret(
    kafka: str,
    taken: str,
    login: str,
    form: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    for name, value in LOGINS[login].items():
        monkeypatch.setenv(f"ORDERS_{name.upper()}", value)
    monkeypatch.setenv("ORDERS_KAFKA", kafka)
    monkeypatch.setenv("ORDERS_API_KEY_STORE", str(Path("keys.jsonl").absolute()))
    for name in ("ORDERS_POSTGRES", "ORDERS_REDIS"):
        monkeypatch.delenv(name)
    held = [name for name in HELD if login not in NOT_WITH.get(name, ())]
    for name in held:
        if form == "value" or name not in SECRET_FILES:
            monkeypatch.setenv(f"ORDERS_{name.upper()}", secret(name))
        else:
            file = Path(name)
            file.write_text(secret(name))
            monkeypatch.setenv(f"ORDERS_{name.upper()}_FILE", str(file.absolute()))
    codes = set()
    for command in commands():
        more = [
            word.format(taken=taken)
            for path, words in MORE.items()
            if command[: len(path)] == [*path]
            for word in words
        ]
        get_settings.cache_clear()
        codes.add(main.run([*command, *more]))
        out, err = capfd.readouterr()
        output = out + err + caplog.text
        caplog.clear()
        assert MARK not in output, command
        assert "Traceback" not in err, command
    get_settings.cache_clear()
    assert codes == {0, 2}


def test_every_secret_is_tried() -> None:
    tried = {login: {name for name in HELD if login not in NOT_WITH.get(name, ())} for login in LOGINS}
    assert set().union(*tried.values()) == HELD
    assert set(SECRET_FILES) <= HELD


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, f"postgresql://u:{MARK}@{NOWHERE}/d") for name in Settings.model_fields),
        *((f"{name}_file", f"{MARK}-0/+=") for name in SECRET_FILES),
    ],
)
def test_a_secret_in_the_wrong_setting_is_not_repeated(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whoever mixes two variables up reads which one is wrong, not what it had."""
    monkeypatch.setenv(f"ORDERS_{name.upper()}", value)
    get_settings.cache_clear()
    code = main.run(["settings"])
    get_settings.cache_clear()
    _, err = capfd.readouterr()
    assert MARK not in err
    assert (code == 0) == (err == "")
    assert code == 0 or f"ORDERS_{name.upper()}" in err


LEAKS: Final = {
    "a password among Postgres' parameters": ("POSTGRES", f"postgresql://u@{NOWHERE}/d?password={MARK}", ""),
    "a password among Redis' parameters": ("REDIS", f"redis://{NOWHERE}/0?password={MARK}", ""),
    "no scheme": ("POSTGRES", f"u:{MARK}@{NOWHERE}/d", "POSTGRES"),
    "half a scheme": ("REDIS", f"redis//u:{MARK}@{NOWHERE}", "REDIS"),
    "a slash in the password": ("POSTGRES", f"postgresql://u:x/{MARK}@{NOWHERE}/d", "POSTGRES"),
    "a hash in the password": ("POSTGRES", f"postgresql://u:x#{MARK}@{NOWHERE}/d", "POSTGRES"),
    "a bracket in the password": ("POSTGRES", f"postgresql://u:x[{MARK}@{NOWHERE}/d", "POSTGRES"),
    "Kafka's password in a URL": ("KAFKA", f"sasl_ssl://user:{MARK}@h:9092", "KAFKA"),
}
"""What a review found printed -> setting, value, the setting that is refused, if one is."""


@pytest.mark.parametrize(("name", "value", "refused"), LEAKS.values(), ids=LEAKS)
def test_a_leak_of_the_review(
    name: str,
    value: str,
    refused: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv(f"ORDERS_{name}", value)
    for command in (["settings"], ["settings", "--json"], ["db"], ["wait", "--timeout", "1", "--no-cache"]):
        get_settings.cache_clear()
        code = main.run(command)
        out, err = capfd.readouterr()
        assert MARK not in out + err + caplog.text, command
        assert "Traceback" not in err
        if refused:
            assert (code, err.startswith(f"orders: ORDERS_{refused}=***: ")) == (2, True), err
    get_settings.cache_clear()
