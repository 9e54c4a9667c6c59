"""When a command uses the stack of its folder."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from cli import local

FOUND = {
    "ORDERS_KAFKA": "127.0.0.1:7",
    "ORDERS_POSTGRES": "postgresql://h/d",
    "ORDERS_REDIS": "redis://h/0",
    "ORDERS_DATA": "here/workers",
}
NONE: dict[str, str] = {}


@pytest.mark.parametrize(
    ("environment", "running", "used", "said"),
    [
        ({}, True, ["kafka", "postgres", "redis", "data"], "using the stack in "),
        (
            {"ORDERS_DATA": "mine", "ORDERS_GROUP": "g"},
            True,
            ["kafka", "postgres", "redis"],
            "using the stack in ",
        ),
        ({}, False, [], ""),
        (
            {"ORDERS_KAFKA": "h:1"},
            True,
            [],
            "set: ORDERS_KAFKA; not set: ORDERS_POSTGRES, ORDERS_REDIS. So the stack that runs in ",
        ),
        (
            {"orders_redis": "redis://h"},
            True,
            [],
            "set: ORDERS_REDIS; not set: ORDERS_KAFKA, ORDERS_POSTGRES.",
        ),
        (
            {"ORDERS_POSTGRES_REPLICA": "postgresql://h/d"},
            True,
            [],
            "set: ORDERS_POSTGRES_REPLICA; not set: ORDERS_KAFKA, ",
        ),
        ({"ORDERS_KAFKA": "h:1"}, False, [], ""),
        (dict.fromkeys(local.NEEDED, "x"), True, [], ""),
        ({"ORDERS_KAFKA": "h:1", "ORDERS_POSTGRES_FILE": "/p", "ORDERS_REDIS_FILE": "/r"}, True, [], ""),
        (
            {"ORDERS_POSTGRES_FILE": "/p"},
            True,
            [],
            "set: ORDERS_POSTGRES; not set: ORDERS_KAFKA, ORDERS_REDIS",
        ),
    ],
)
def test_when_it_is_used(
    environment: dict[str, str],
    running: bool,
    used: list[str],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("ORDERS_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".stack").mkdir()
    (tmp_path / ".stack" / "stack.json").write_text("{}")
    monkeypatch.setattr("settings.__file__", str(tmp_path / "settings.py"))
    half = SimpleNamespace(folder=tmp_path / ".stack", running=running, env=FOUND, status=[])
    monkeypatch.setattr("stack.Stack.open", lambda folder: half)
    assert local.servers() == {name: FOUND[f"ORDERS_{name.upper()}"] for name in used}
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1 if said else 0)
    assert said in err
    # Somebody else's folder leads nowhere.
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert local.servers() == NONE


def test_it_says_which_server_of_a_stack_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in os.environ if name.upper().startswith("ORDERS_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".stack").mkdir()
    (tmp_path / ".stack" / "stack.json").write_text("{}")
    monkeypatch.setattr("settings.__file__", str(tmp_path / "settings.py"))
    status = [SimpleNamespace(name="kafka-1", running=True), SimpleNamespace(name="postgres", running=False)]
    half = SimpleNamespace(folder=tmp_path / ".stack", running=False, env=FOUND, status=status)
    monkeypatch.setattr("stack.Stack.open", lambda folder: half)
    assert local.servers() == NONE
    assert "is not used, as postgres of it does not run" in capsys.readouterr().err
    # One that is stopped as a whole is no mistake.
    status.pop(0)
    assert (local.servers(), capsys.readouterr().err) == (NONE, "")
