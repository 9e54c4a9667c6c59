"""What each role needs on Kafka, Postgres and Redis, made from what the code does there. All pure."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, NamedTuple

from audit import stores
from contracts import bulk, outgoing
from contracts import topics as names
from errors import OrdersError
from operations.roles import Role
from queries import cache
from settings import Settings
from sinks import bulk as jobs
from sinks import redis as sink
from sinks.postgres import statement
from sinks.schema import TABLES, VIEWS
from streams import topics

_LETTERS: Final = (names.DLQ, names.REDRIVEN, names.RESOLVED)
_LEDGERS: Final = (names.REDRIVEN, names.RESOLVED, names.PARTITIONS, names.CONTROL, names.OPERATIONS)
"""What the commands of a person note."""
NOTICES: Final = tuple(spec.type for spec in outgoing.DERIVED if spec.varies == "notice")
"""What `orders rebuild notices` sends, and workers take back of killed runs (streams.retraction)."""


class UnusableName(OrdersError):
    """The name of a user can't be written in the server's own language."""


# -- Kafka ---------------------------------------------------------------------------------------------------


class Acl(NamedTuple):
    """What one ACL allows, in the words of kafka-acls. `prefixed`: `name` is how the names begin."""

    kind: Literal["Topic", "Group", "TransactionalId"]
    name: str
    operation: str
    prefixed: bool = False


def _of_worker(settings: Settings, every: Iterable[str]) -> dict[str, Iterable[str]]:
    """Operation -> the topics of `every` on which a worker needs it."""
    return {
        "Read": (
            *names.LANE,
            settings.changelog_topic,
            names.PARTITIONS,
            names.CONTROL,
            *(NOTICES if settings.delivery == "at_least_once" else ()),
        ),
        "Write": (
            *names.DERIVED,
            *names.INTERNAL,
            names.CREATED,
            names.DLQ,
            names.CLOCK,
            names.WORKERS,
            settings.changelog_topic,
            *((names.CONTROL, names.OPERATIONS) if settings.dead_letter_hold else ()),
        ),
        "DescribeConfigs": (settings.changelog_topic,),
        "Describe": every,
    }


def acls(settings: Settings, role: Role) -> list[Acl]:
    """Return the ACLs of a role. Read, Write and Alter allow Describe too, in Kafka itself."""
    every = [spec.name for spec in topics.specs(settings, 1)]
    wanted: dict[Role, dict[str, Iterable[str]]] = {
        "owner": {
            "Create": every,
            "DescribeConfigs": every,
            "Alter": every,
            "Read": every,
            "Write": (*names.LANE, *NOTICES, settings.changelog_topic, *_LEDGERS),
        },
        "worker": _of_worker(settings, every),
        "reader": {
            "Read": (settings.changelog_topic, *_LETTERS, names.WORKERS, names.CONTROL),
            "Write": names.INPUT if settings.api_write else (),
            "DescribeConfigs": every,
            "Describe": every,
        },
        "bulk": {
            "Read": (*names.BULK, names.CONTROL),
            "Write": (
                *names.BULK,
                *bulk.EVENT.values(),
                names.BULK_COMPLETED,
                names.DLQ,
                names.WORKERS,
                names.OPERATIONS,
            ),
            "DescribeConfigs": (settings.changelog_topic,),
            "Describe": every,
        },
        "audit": {"Read": every, "DescribeConfigs": every},
        "console": {
            "Read": (
                *names.LANE,
                settings.changelog_topic,
                names.DLQ,
                names.WORKERS,
                *_LEDGERS,
            ),
            # What it sends it notes, too.
            "Write": (*names.INPUT, names.OPERATIONS) if settings.api_write else (),
            "DescribeConfigs": every,
            "Describe": every,
        },
    }
    on_topics = [
        Acl("Topic", topic, operation)
        for topic in every
        for operation, those in wanted[role].items()
        if topic in those
    ]
    implying = {acl.name for acl in on_topics if acl.operation in ("Read", "Write", "Alter")}
    on_topics = [acl for acl in on_topics if acl.operation != "Describe" or acl.name not in implying]
    return on_topics + _groups(settings, role)


def _groups(settings: Settings, role: Role) -> list[Acl]:
    group = Acl("Group", settings.group, "Describe")
    match role:
        case "owner":
            # Its lock is a membership, and a redrive is a transaction.
            redrive = Acl("TransactionalId", f"{settings.group}-redrive", "Write")
            return [group._replace(operation="Read"), redrive]
        case "worker":
            lanes = Acl("TransactionalId", f"{settings.group}-", "Write", prefixed=True)
            once = settings.delivery == "exactly_once"
            return [group._replace(operation="Read"), *([lanes] if once else [])]
        case "bulk":
            return [group, Acl("Group", settings.bulk_group, "Read")]
    return [group]


_OPTIONS: Final = {"Topic": "--topic", "Group": "--group", "TransactionalId": "--transactional-id"}


def acl_lines(acls: Iterable[Acl], principal: str) -> list[str]:
    """Return commands for a shell, one for all that is allowed alike.

    Their `"$@"` stands for how kafka-acls.sh reaches the brokers.
    """
    operations: dict[tuple[str, str, bool], list[str]] = {}
    for acl in acls:
        operations.setdefault((acl.kind, acl.name, acl.prefixed), []).append(acl.operation)
    alike: dict[tuple[str, bool, tuple[str, ...]], list[str]] = {}
    for (kind, name, prefixed), those in operations.items():
        alike.setdefault((kind, prefixed, tuple(sorted(those))), []).append(name)
    lines = []
    for (kind, prefixed, allowed), resources in alike.items():
        words = ["--add", "--allow-principal", principal_of(principal)]
        words += [word for operation in allowed for word in ("--operation", operation)]
        words += [word for name in resources for word in (_OPTIONS[kind], name)]
        words += ["--resource-pattern-type", "prefixed"] if prefixed else []
        lines.append(f'kafka-acls.sh "$@" {shlex.join(words)}')
    return lines


def principal_of(name: str) -> str:
    """Return the principal of a user: User:NAME. Raises UnusableName."""
    name = name.removeprefix("User:")
    if not name or not name.isprintable():
        raise UnusableName(f"{name!r} can't be a principal", "give a user's name, as the brokers know it")
    return f"User:{name}"


# -- Postgres ------------------------------------------------------------------------------------------------


class Grant(NamedTuple):
    """Privileges on one object, as GRANT names both."""

    privileges: tuple[str, ...]
    on: str


VERSION_TABLE: Final = "alembic_version"
"""Alembic's own, from which a command learns whether the schema is the one that it needs."""
DATABASE: Final = ':"DBNAME"'
"""What psql puts the name of the database for that it is connected to."""


def grants(role: Role) -> list[Grant]:
    """Return the grants of a role, those that the others build on first."""
    read = ("SELECT",)
    tables: dict[Role, Mapping[str, tuple[str, ...]]] = {
        "owner": {},
        "worker": {table: _verbs(statement((table,))) for table in TABLES},
        "reader": dict.fromkeys((*TABLES, *VIEWS, jobs.TABLE), read),
        "bulk": {jobs.TABLE: _verbs(*jobs.STATEMENTS)},
        "audit": dict.fromkeys(stores.TABLES, read),
        "console": dict.fromkeys((*TABLES, *VIEWS, jobs.TABLE), read),
    }
    if role == "owner":
        return [
            Grant(("CONNECT", "CREATE"), f"DATABASE {DATABASE}"),
            Grant(("USAGE", "CREATE"), "SCHEMA public"),
        ]
    return [
        Grant(("CONNECT",), f"DATABASE {DATABASE}"),
        Grant(("USAGE",), "SCHEMA public"),
        *(Grant(verbs, f"TABLE public.{table}") for table, verbs in tables[role].items()),
        Grant(read, f"TABLE public.{VERSION_TABLE}"),
    ]


def _verbs(*statements: str) -> tuple[str, ...]:
    """The privileges that these statements on one table need. Their WHERE and RETURNING read it."""
    words = set(re.findall(r"\b(?:INSERT|UPDATE|DELETE)\b", " ".join(statements)))
    return ("SELECT", *(verb for verb in ("INSERT", "UPDATE", "DELETE") if verb in words))


def grant_lines(grants: Iterable[Grant], user: str) -> list[str]:
    """Return statements for psql. Raises UnusableName."""
    if not user or not user.isprintable() or len(user.encode()) > 63:
        raise UnusableName(f"{user!r} can't be a role", "give the name of a role, of 63 bytes at most")
    quoted = '"' + user.replace('"', '""') + '"'
    return [f"GRANT {', '.join(grant.privileges)} ON {grant.on} TO {quoted};" for grant in grants]


# -- Redis ---------------------------------------------------------------------------------------------------


class CacheRights(NamedTuple):
    """What a user of Redis may do. `keys`: patterns, each with its permission (%R~ reads, ~ does all)."""

    keys: tuple[str, ...]
    commands: tuple[str, ...]


_CONNECTS: Final = frozenset({"CLIENT|SETINFO", "SELECT"})
"""What every connection begins with, beside AUTH and HELLO, which need no permission."""
_MENDS: Final = frozenset({"DEL", "GET", "MGET", "PING", "SCAN", "SET", "TYPE", "ZRANGE", "ZREM"})
"""What repair, rebuild and partitions send themselves, beside what the sink and the auditor do."""


def cache_rights(settings: Settings, role: Role) -> CacheRights | None:
    """Return what a role may do in Redis; None if it doesn't use it."""
    prefix = settings.redis_prefix
    written = [f"{prefix}{key}" for key in (*sink.KEYS, f"cache:{settings.group}:*")]
    refilled = [f"{prefix}{key}" for key in cache.KEYS]
    match role:
        case "bulk":
            return None
        case "worker":
            keys = [f"~{key}" for key in written]
            commands = sink.COMMANDS
        case "reader" | "console":
            keys = [*(f"%R~{key}" for key in written), *(f"~{key}" for key in refilled)]
            commands = cache.COMMANDS
        case "audit":
            keys = [f"%R~{key}" for key in (*written, *refilled)]
            commands = stores.COMMANDS
        case "owner":
            keys = [f"~{key}" for key in (*written, *refilled)]
            commands = sink.COMMANDS | stores.COMMANDS | _MENDS
    return CacheRights(tuple(keys), tuple(sorted(command.lower() for command in commands | _CONNECTS)))


def acl_user(rights: CacheRights, user: str) -> str:
    """Return the command that gives a user these rights and takes all others. Raises UnusableName."""
    if not re.fullmatch(r"[!-~]+", user):
        raise UnusableName(f"{user!r} can't be a user of Redis", "give a name without spaces")
    return " ".join(
        (
            "ACL SETUSER",
            user,
            "on resetkeys resetchannels clearselectors -@all",
            *rights.keys,
            *(f"+{command}" for command in rights.commands),
        )
    )


def documents(role: Role, settings: Settings, user: str, server: str) -> list[dict[str, Any]]:
    """Return the same for programs, an object for each right. `server`: kafka, postgres or redis."""
    if server == "kafka":
        return [
            {
                "principal": principal_of(user),
                "operation": acl.operation,
                "resource_type": acl.kind,
                "resource_name": acl.name,
                "pattern_type": "PREFIXED" if acl.prefixed else "LITERAL",
                "permission": "Allow",
                "host": "*",
            }
            for acl in acls(settings, role)
        ]
    if server == "postgres":
        return [{"role": user, "privileges": each.privileges, "on": each.on} for each in grants(role)]
    rights = cache_rights(settings, role)
    return [] if rights is None else [{"user": user, "keys": rights.keys, "commands": rights.commands}]
