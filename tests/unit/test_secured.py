"""The users of a secure stack: what each may do, and what is refused, without a server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from cli import access
from operations.grants import UnusableName
from operations.roles import ROLES
from operations.secured import EVERYBODY, USERS, kafka_rights, redis_rights, settings_of
from settings import Settings
from stack import Stack, StackError, logins
from stack.state import Record, State


def stack(folder: Path, **state: object) -> Stack:
    """A stack as it is written down, of which nothing runs."""
    ports = dict.fromkeys(("port", "controller", "internal"), 1)
    new_state = State(path=folder / "stack.json", brokers=1, **state)  # type: ignore[arg-type]
    new_state.servers = {name: Record(ports) for name in ("kafka-1", "postgres", "redis")}
    new_state.save()
    return Stack.open(folder)


def test_the_first_user_has_the_rights_of_all_roles_and_each_other_those_of_one() -> None:
    settings = Settings()
    assert USERS[0] == EVERYBODY
    assert len(USERS) == len(ROLES) + 1
    together = kafka_rights(settings, EVERYBODY)
    for user in USERS[1:]:
        assert kafka_rights(settings, user) < together
    assert {acl.operation for acl in together} == {
        "Alter",
        "Create",
        "Describe",
        "DescribeConfigs",
        "Read",
        "Write",
    }, "nothing is deleted"
    assert redis_rights(settings, "orders-bulk") is None
    all_of_it = redis_rights(settings, EVERYBODY)
    assert all_of_it is not None
    assert "flushall" not in all_of_it.commands
    assert not {"~*", "%R~*"} & set(all_of_it.keys)


def test_who_gives_rights_in_vain_says_why_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Mapping[str, str]] = []

    async def refused(admin: Settings, passwords: Mapping[str, str]) -> None:
        asked.append(passwords)
        raise UnusableName("no", "ask somebody else")

    monkeypatch.setattr(access, "give", refused)
    monkeypatch.setenv("OWNER_PASSWORD", "MarkedSecret-1")
    monkeypatch.setenv("WORKER_PASSWORD", "MarkedSecret-2")
    with pytest.raises(SystemExit, match="2"):
        access.main()
    assert asked == [{EVERYBODY: "MarkedSecret-1", "orders-worker": "MarkedSecret-2"}]
    assert capsys.readouterr() == ("", "orders: no; ask somebody else\n")
    assert {*access.PASSWORDS.values()} <= set(USERS)


def test_what_leads_to_a_stack_wins_over_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_POSTGRES", "postgresql://u@elsewhere/d")
    monkeypatch.setenv("ORDERS_REDIS_FILE", str(tmp_path / "nothing"))
    (tmp_path / "url").write_text("postgresql://u@here/d")
    got = settings_of({"ORDERS_POSTGRES_FILE": str(tmp_path / "url"), "ORDERS_REDIS": "redis://here:1/0"})
    assert got.postgres.get_secret_value() == "postgresql://u@here/d"
    assert got.redis.get_secret_value() == "redis://here:1/0"


def test_the_environment_of_a_secure_stack_holds_no_secret(tmp_path: Path) -> None:
    secure = stack(tmp_path, users={EVERYBODY: "MarkedSecret-1", "orders-worker": "MarkedSecret-2"})
    assert "MarkedSecret" not in str(secure.env)
    assert secure.env["ORDERS_KAFKA_SASL_USERNAME"] == EVERYBODY
    assert secure.env_of("orders-worker")["ORDERS_KAFKA_SASL_PASSWORD_FILE"] == str(
        tmp_path / logins.FOLDER / "orders-worker.kafka"
    )
    with pytest.raises(StackError, match="it has orders, orders-worker, admin"):
        secure.env_of("nobody")


def test_a_stack_stays_as_it_was_made(tmp_path: Path) -> None:
    plain = stack(tmp_path)
    assert plain.admin == plain.env
    with pytest.raises(StackError, match="it isn't secure"):
        plain.env_of(EVERYBODY)
    with pytest.raises(StackError, match="is not secure, which cannot be changed"):
        Stack.start(tmp_path, users=USERS)
    other = tmp_path / "other"
    other.mkdir()
    stack(other, users={"somebody": "x"})
    with pytest.raises(StackError, match="has other users"):
        Stack.start(other, users=USERS)


def test_certificates_are_made_once_and_their_key_is_the_owners_alone(tmp_path: Path) -> None:
    state = State(path=tmp_path / "stack.json", brokers=1)
    logins.prepare(state)
    home = logins.folder(state)
    assert sorted(path.name for path in home.iterdir()) == ["ca.pem", "server.pem"], (
        "the authority's key is gone"
    )
    assert (home / "server.pem").stat().st_mode & 0o077 == 0
    before = (home / "server.pem").read_bytes()
    logins.prepare(state)
    assert (home / "server.pem").read_bytes() == before
