"""What `orders grants` prints is what the code does, and can be pasted."""

from __future__ import annotations

import ast
import json
import shlex

import pytest

from app import create_app
from cli import main
from contracts import topics as names
from operations import grants, roles, whatif
from operations.grants import acl_lines, acl_user, acls, cache_rights, grant_lines
from operations.roles import ROLES, Role
from settings import Settings, get_settings
from streams import topics
from streams.retraction import NOTICE_TOPICS
from tests.stackfixture import ROOT


def allowed(role: Role, settings: Settings) -> dict[str, set[str]]:
    """Operation -> the topics on which a role has it."""
    by_operation: dict[str, set[str]] = {}
    for acl in acls(settings, role):
        if acl.kind == "Topic":
            by_operation.setdefault(acl.operation, set()).add(acl.name)
    return by_operation


def test_a_workers_acls_are_what_the_app_reads_and_writes() -> None:
    settings = Settings()
    worker = allowed("worker", settings)
    app = create_app(settings)
    assert worker["Read"] == {
        *app.specs_by_topic,
        settings.changelog_topic,
        names.PARTITIONS,
        names.CONTROL,
        *NOTICE_TOPICS,
    }
    assert app.specs[0].tracked == NOTICE_TOPICS
    assert not set(NOTICE_TOPICS) & allowed("worker", Settings(delivery="exactly_once"))["Read"]
    assert worker["Read"] | worker["Write"] == {
        *app.copartitioned,
        names.PARTITIONS,
        names.WORKERS,
        names.CONTROL,
    }
    assert worker["Write"] - worker["Read"] == {*names.DERIVED, names.DLQ, names.CLOCK, names.WORKERS} - {
        *NOTICE_TOPICS
    }
    assert worker["Write"] & set(names.INPUT) == {names.CREATED}, "only a checkout becomes an input"


@pytest.mark.parametrize("role", ROLES)
def test_every_role_may_see_every_topic_that_a_command_asks_for(role: Role) -> None:
    may = allowed(role, Settings())
    seen = set().union(*(may.get(each, set()) for each in ("Read", "Write", "Alter", "Describe")))
    assert seen == {spec.name for spec in topics.specs(Settings(), 1)}


def test_only_those_write_who_have_to() -> None:
    settings = Settings()
    writes = {role: allowed(role, settings).get("Write", set()) for role in ROLES}
    assert not writes["reader"]
    assert not writes["audit"]
    assert settings.changelog_topic not in writes["bulk"]
    assert names.REDRIVEN in writes["owner"] - writes["worker"]
    assert set(grants.NOTICES) == set(whatif.NOTICES) <= writes["owner"], "orders rebuild notices sends them"
    assert allowed("reader", Settings(api_write=True))["Write"] == set(names.INPUT)


def test_names_follow_the_settings() -> None:
    plain = acls(Settings(), "worker")
    assert not [acl for acl in plain if acl.kind == "TransactionalId"]
    once = acls(Settings(group="mine", delivery="exactly_once"), "worker")
    assert [acl for acl in once if acl.kind != "Topic"] == [
        grants.Acl("Group", "mine", "Read"),
        grants.Acl("TransactionalId", "mine-", "Write", prefixed=True),
    ]
    assert ("Topic", "mine-state-changelog", "Write", False) in once
    rights = cache_rights(Settings(group="mine"), "worker")
    assert rights is not None
    assert "~cache:mine:*" in rights.keys
    assert "~rows:*" not in rights.keys


def test_lines_of_acls_say_the_same_for_a_shell() -> None:
    settings = Settings(delivery="exactly_once")
    said = set()
    for line in acl_lines(acls(settings, "worker"), "it's mine"):
        command, given, *words = shlex.split(line)
        assert (command, given, words[:3]) == (
            "kafka-acls.sh", "$@", ["--add", "--allow-principal", "User:it's mine"]
        )  # fmt: skip
        prefixed = words[-2:] == ["--resource-pattern-type", "prefixed"]
        pairs = list(zip(words[3::2], words[4::2], strict=True))
        for option, name in pairs:
            for operation in [value for option, value in pairs if option == "--operation"]:
                if option in ("--topic", "--group", "--transactional-id"):
                    said.add((option, name, operation, prefixed))
    kinds = {"Topic": "--topic", "Group": "--group", "TransactionalId": "--transactional-id"}
    assert said == {(kinds[acl.kind], *acl[1:]) for acl in acls(settings, "worker")}


def test_grants_are_those_of_the_statements() -> None:
    def of(role: Role) -> dict[str, tuple[str, ...]]:
        return {grant.on: grant.privileges for grant in grants.grants(role)}

    assert of("worker")["TABLE public.orders_shipment"] == ("SELECT", "INSERT", "UPDATE")
    assert "TABLE public.orders_bulk_job" not in of("worker")
    assert of("bulk")["TABLE public.orders_bulk_job"] == ("SELECT", "INSERT", "UPDATE")
    for role in ("reader", "audit"):
        assert {
            privilege for on, each in of(role).items() if on.startswith("TABLE") for privilege in each
        } == {"SELECT"}
    assert grant_lines(grants.grants("owner"), 'a "b"') == [
        'GRANT CONNECT, CREATE ON DATABASE :"DBNAME" TO "a ""b""";',
        'GRANT USAGE, CREATE ON SCHEMA public TO "a ""b""";',
    ]


COMMAND_OF = {"delete": "DEL"}
"""A method of redis-py -> what it sends, where that isn't its own name."""
CLIENTS = {"redis", "client", "cache", "_redis", "_cache", "_client"}


@pytest.mark.parametrize(
    "file", ["operations/repair.py", "operations/rebuild.py", "operations/repartition.py"]
)
def test_the_owner_may_send_what_mends_the_cache(file: str) -> None:
    """Whatever is awaited of a client of Redis, by its usual names."""
    rights = cache_rights(Settings(), "owner")
    assert rights is not None
    sent = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.Await) and isinstance(node.value, ast.Call):
            call = node.value.func
            if isinstance(call, ast.Attribute):
                of = (
                    call.value.attr
                    if isinstance(call.value, ast.Attribute)
                    else getattr(call.value, "id", "")
                )
                if of in CLIENTS and call.attr not in ("aclose", "put"):
                    sent.add(COMMAND_OF.get(call.attr, call.attr.upper()))
    assert sent
    assert sent <= {command.upper() for command in rights.commands}


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("server", ["kafka", "postgres", "redis"])
def test_the_command(
    role: Role, server: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_POSTGRES", "postgresql://u:MarkedSecret@h/db")
    get_settings.cache_clear()
    assert main.run(["grants", server, "--role", role, "--user", "me"]) == 0
    text, said = capsys.readouterr()
    assert main.run(["grants", server, "--role", role, "--user", "me", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    get_settings.cache_clear()
    assert "MarkedSecret" not in text + said + str(document)
    if (server, role) == ("redis", "bulk"):
        assert (text, document, said) == ("", [], "orders: the role bulk needs nothing in Redis\n")
    else:
        assert (said, bool(document)) == ("", True)
        assert all("me" in line for line in text.splitlines())


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("kafka",), "Missing option '--role'"),
        (("kafka", "--role", "boss"), "'boss' is not one of 'owner', 'worker', 'reader', 'bulk', 'audit'"),
        (("redis", "--role", "worker", "--user", "a b"), "'a b' can't be a user of Redis; "),
        (("postgres", "--role", "worker", "--user", ""), "'' can't be a role; "),
        (("kafka", "--role", "worker", "--principal", "a\nb"), "can't be a principal; "),
        (("kafka", "--role", "worker", "--password", "x"), "No such option: --password"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["grants", *args]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert says in err


def test_a_user_of_redis_keeps_its_password_and_nothing_else() -> None:
    rights = cache_rights(Settings(), "reader")
    assert rights is not None
    words = acl_user(rights, "api").split()
    assert words[:8] == [
        "ACL",
        "SETUSER",
        "api",
        "on",
        "resetkeys",
        "resetchannels",
        "clearselectors",
        "-@all",
    ]
    assert "reset" not in words
    assert {word[0] for word in words[8:]} == {"%", "~", "+"}
    assert not [word for word in words if word.startswith("~") and word != "~rows:*"]


def test_the_page_names_every_role() -> None:
    page = (ROOT / "docs" / "how-to" / "give-the-least-rights.md").read_text()
    for role, commands in roles.PURPOSE.items():
        assert f"| `{role}` | {commands} |" in page
