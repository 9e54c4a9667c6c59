"""The users of a secure local stack and of docker-compose.yml, and the rights that `orders grants` prints for
them, given to them.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Mapping
from typing import Any, Final

import asyncpg
from aiokafka.errors import for_code
from aiokafka.protocol.admin import CreateAclsRequest, DescribeAclsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactBytes,
    CompactString,
    Int8,
    Int16,
    Int32,
    Schema,
    TaggedFields,
)

from contracts import topics as names
from operations.grants import DATABASE, Acl, CacheRights, acl_user, acls, cache_rights, grant_lines, grants
from operations.roles import ROLES, Role
from settings import SECRET_FILES, Settings
from sinks import connection
from sinks.clients import open_client
from wire import clients

EVERYBODY: Final = "orders"
"""The user with all roles, and the rights of the services around us, which `orders generate` and `orders
simulate` play. On Postgres it is the owner of the tables.
"""
USERS: Final = (EVERYBODY, *(f"orders-{role}" for role in ROLES))
"""Who may come in: one for every command, and one for each role."""

ACL_SECONDS: Final = 30.0
"""How long a broker may take to hear of ACLs that its controller has."""

_KINDS: Final = {"Topic": 2, "Group": 3, "TransactionalId": 5}
_OPERATIONS: Final = {
    "Read": 3,
    "Write": 4,
    "Create": 5,
    "Delete": 6,
    "Alter": 7,
    "Describe": 8,
    "DescribeConfigs": 10,
}
_LITERAL, _PREFIXED, _ALLOW, _ANY = 3, 4, 3, 1


def settings_of(env: Mapping[str, str]) -> Settings:
    """Settings of these ORDERS_* values, over those of the environment. Reads files."""
    values = {name.removeprefix("ORDERS_").lower(): value for name, value in env.items()}
    for name in SECRET_FILES:
        here, file = name in values, f"{name}_file" in values
        values |= {name: ""} if file else {f"{name}_file": ""} if here else {}
    return Settings.model_validate(values)


async def allow(admin: Settings, passwords: Mapping[str, str]) -> None:
    """Give users their rights on all three servers, and take others that they had on Postgres and Redis.

    `admin` leads to the servers as somebody who may. `passwords`: of USERS; on Kafka they are there already.
    Rights on tables come with the tables: call it again after `orders init`. Blocks for a second. Raises what
    clients raise.
    """
    await allow_kafka(admin, {user: kafka_rights(admin, user) for user in passwords})
    await make_roles(admin, passwords)
    async with open_client(admin, timeout=10) as cache:
        for user, password in passwords.items():
            rights = redis_rights(admin, user)
            if rights is not None:
                await cache.execute_command(*acl_user(rights, user).split(), "resetpass", f">{password}")
        await cache.execute_command("ACL", "SAVE")


def roles_of(user: str) -> tuple[Role, ...]:
    """The roles of one of USERS. Pure."""
    return tuple(role for role in ROLES if user in (EVERYBODY, f"orders-{role}"))


# -- Kafka ---------------------------------------------------------------------------------------------------


def kafka_rights(settings: Settings, user: str) -> set[Acl]:
    """The ACLs of one of USERS; transactions are always among those of EVERYBODY. Pure."""
    if user != EVERYBODY:
        return {acl for role in roles_of(user) for acl in acls(settings, role)}
    transactions = settings.model_copy(update={"delivery": "exactly_once"})
    others = {
        Acl("Topic", topic, operation)
        for topic in (*names.INPUT, *names.DERIVED)
        for operation in ("Read", "Write")
    }
    return others | {acl for role in ROLES for acl in acls(transactions, role)}


async def make_logins(admin: Settings, passwords: Mapping[str, str]) -> None:
    """Make users of Kafka who log in by SCRAM-SHA-512, or give them other passwords. Raises KafkaError."""
    salted: list[tuple[Any, ...]] = []
    for user, password in passwords.items():
        salt = os.urandom(16)
        derived = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
        salted.append((user, _SCRAM_SHA_512, _ITERATIONS, salt, derived, {}))
    client = clients.admin(admin, "orders-stack")
    await client.start()
    try:
        response = await client._send_request(_AlterScram(salted))
        for _, code, message, _ in response.results:
            if code:
                raise for_code(code)(message)
    finally:
        await client.close()


_SCRAM_SHA_512, _ITERATIONS = 2, 4096


class _AlterScramResponse(Response):  # type: ignore[misc]
    API_KEY, API_VERSION, FLEXIBLE_VERSION = 51, 0, True
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "results",
            CompactArray(
                ("user", CompactString("utf-8")),
                ("error_code", Int16),
                ("error_message", CompactString("utf-8")),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterScramStruct(RequestStruct):  # type: ignore[misc]
    API_KEY, API_VERSION, FLEXIBLE_VERSION = 51, 0, True
    RESPONSE_TYPE = _AlterScramResponse
    SCHEMA = Schema(
        (
            "deletions",
            CompactArray(("name", CompactString("utf-8")), ("mechanism", Int8), ("tags", TaggedFields)),
        ),
        (
            "upsertions",
            CompactArray(
                ("name", CompactString("utf-8")),
                ("mechanism", Int8),
                ("iterations", Int32),
                ("salt", CompactBytes),
                ("salted_password", CompactBytes),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _AlterScram(Request[_AlterScramStruct]):  # type: ignore[misc]
    """AlterUserScramCredentials, which aiokafka doesn't have."""

    API_KEY = 51

    def __init__(self, upsertions: list[tuple[Any, ...]]) -> None:
        self._upsertions = upsertions

    def build(self, request_struct_class: type[_AlterScramStruct]) -> _AlterScramStruct:
        return request_struct_class([], self._upsertions, {})


class _CreateAcls(CreateAclsRequest):  # type: ignore[misc]
    """Of many ACLs at once."""

    def __init__(self, creations: list[tuple[Any, ...]]) -> None:
        self._creations = creations

    def build(self, request_struct_class: type[Any]) -> Any:
        return request_struct_class(self._creations)


async def allow_kafka(admin: Settings, rights: Mapping[str, Iterable[Acl]]) -> None:
    """Add ACLs: user -> what it may. Blocks until the brokers know of them. Raises KafkaError."""
    wanted = {
        (
            _KINDS[acl.kind],
            acl.name,
            _PREFIXED if acl.prefixed else _LITERAL,
            f"User:{user}",
            "*",
            _OPERATIONS[acl.operation],
            _ALLOW,
        )
        for user, those in rights.items()
        for acl in those
    }
    client = clients.admin(admin, "orders-stack")
    await client.start()
    try:
        response = await client._send_request(_CreateAcls(sorted(wanted)))
        for code, message in response.creation_responses:
            if code:
                raise for_code(code)(message)
        async with asyncio.timeout(ACL_SECONDS):
            while not wanted <= await _known(client):  # noqa: ASYNC110, the brokers tell only who asks
                await asyncio.sleep(0.02)
    finally:
        await client.close()


async def _known(client: Any) -> set[tuple[Any, ...]]:
    """The ACLs that every broker knows."""
    known: list[set[tuple[Any, ...]]] = []
    for broker in client._client.cluster.brokers():
        asked = DescribeAclsRequest(_ANY, None, _ANY, None, None, _ANY, _ANY)
        response = await client._send_request_to_node(broker.nodeId, asked)
        known.append(
            {
                (kind, name, pattern, principal, host, operation, permission)
                for kind, name, pattern, those in response.resources
                for principal, host, operation, permission in those
            }
        )
    return set.intersection(*known)


# -- Postgres ------------------------------------------------------------------------------------------------


async def make_roles(admin: Settings, passwords: Mapping[str, str]) -> None:
    """Make users of Postgres, and give them their rights on what there is. Raises what the client raises."""
    database = await connection.connect(
        admin.postgres.get_secret_value(), "orders-stack", timeout=10, pooled=False
    )
    try:
        for user, password in passwords.items():
            await make_role(database, user, password)
        await allow_postgres(database, passwords)
    finally:
        await database.close()


async def make_role(database: asyncpg.Connection[Any], user: str, password: str) -> None:
    """Make a user of Postgres, or give it another password. Raises PostgresError."""
    there = await database.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", user)
    verb = "ALTER" if there else "CREATE"
    await database.execute(f"{verb} ROLE {_quoted(user)} LOGIN NOSUPERUSER PASSWORD {_literal(password)}")


async def allow_postgres(database: asyncpg.Connection[Any], users: Iterable[str]) -> None:
    """Give users their rights in the database that the connection is to, on what there is of it.
    Raises PostgresError.
    """
    here = str(await database.fetchval("SELECT current_database()"))
    for user in users:
        if user == "orders-owner":
            # It acts as the other one, so that tables have one owner, whichever of the two makes them.
            await database.execute(f"GRANT {_quoted(EVERYBODY)} TO {_quoted(user)}")
            await database.execute(f"ALTER ROLE {_quoted(user)} SET role = {_quoted(EVERYBODY)}")
            continue
        roles: tuple[Role, ...] = ("owner",) if user == EVERYBODY else roles_of(user)
        for role in roles:
            for grant, line in zip(grants(role), grant_lines(grants(role), user), strict=True):
                _, _, table = grant.on.partition("TABLE ")
                if not table or await database.fetchval("SELECT to_regclass($1) IS NOT NULL", table):
                    await database.execute(line.replace(DATABASE, _quoted(here)))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


# -- Redis ---------------------------------------------------------------------------------------------------


def redis_rights(settings: Settings, user: str) -> CacheRights | None:
    """What one of USERS may do in Redis; None if nothing. Pure."""
    rights = [each for role in roles_of(user) if (each := cache_rights(settings, role)) is not None]
    if not rights:
        return None
    return CacheRights(
        tuple(dict.fromkeys(key for each in rights for key in each.keys)),
        tuple(sorted({command for each in rights for command in each.commands})),
    )
