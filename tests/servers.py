"""How tests themselves reach the servers of the run, to look at them and to change them: as an administrator.

On a secure stack (STACK=secure) programs may do only what their roles need. The clients that tests make for
themselves get their options, or their URL, here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from credentials import PostgresUrl, RedisUrl, ServerUrl
from operations.secured import settings_of
from settings import SECRET_FILES, Settings
from wire import clients

SECURE: Final = os.environ.get("STACK") == "secure"
"""Whether the servers of the run have TLS, logins and least rights."""
REDIS_DATABASE: Final = 7
"""Of the tests that share a database in Postgres; no other test uses it."""

_admin: dict[str, str] = {}
"""The ORDERS_* values of who may do everything; empty before the stack runs."""


def administrator(env: Mapping[str, str]) -> dict[str, str]:
    """From now on tests connect with these ORDERS_* values. Returns those before."""
    before = dict(_admin)
    _admin.clear()
    _admin.update(env)
    return before


def url(env: Mapping[str, str], server: str) -> str:
    """The URL of POSTGRES, POSTGRES_REPLICA or REDIS, which may lie in a file."""
    file = env.get(f"ORDERS_{server}_FILE")
    return Path(file).read_text() if file else env[f"ORDERS_{server}"]


def without_files(env: Mapping[str, str]) -> dict[str, str]:
    """The same values with the secrets themselves in place of their files."""
    secret = {f"ORDERS_{name.upper()}_FILE" for name in SECRET_FILES}
    return {
        name.removesuffix("_FILE") if name in secret else name: Path(value).read_text()
        if name in secret
        else value
        for name, value in env.items()
    }


def with_path(address: str, path: str) -> str:
    """The same server's other database."""
    return urlunsplit(urlsplit(address)._replace(path=f"/{path}"))


def kafka_env(brokers: str | Sequence[str]) -> dict[str, str]:
    """The ORDERS_KAFKA... of these brokers. Those that the run hasn't started ask for no login."""
    address = brokers if isinstance(brokers, str) else ",".join(brokers)
    ours = address == _admin.get("ORDERS_KAFKA")
    login = {name: value for name, value in _admin.items() if ours and name.startswith("ORDERS_KAFKA_")}
    return {"ORDERS_KAFKA": address, **without_files(login)}


def kafka_settings(brokers: str | Sequence[str]) -> Settings:
    """Settings that lead to these brokers."""
    empty = ("SASL_MECHANISM", "SASL_USERNAME", "SASL_PASSWORD", "SSL_CAFILE", "SSL_CERTFILE", "SSL_KEYFILE")
    plain = {f"ORDERS_KAFKA_{name}": "" for name in empty}
    return settings_of({**plain, "ORDERS_KAFKA_SECURITY_PROTOCOL": "PLAINTEXT", **kafka_env(brokers)})


def kafka(brokers: str | Sequence[str]) -> dict[str, Any]:
    """Options of aiokafka's clients."""
    return clients.connection(kafka_settings(brokers))


def as_admin(address: str | ServerUrl) -> str:
    """A URL of Postgres or Redis with the administrator's login, if it is a server of the run."""
    given = address if isinstance(address, str) else address.get_secret_value()
    parts = urlsplit(given)
    for server in ("POSTGRES", "POSTGRES_REPLICA", "REDIS"):
        if {f"ORDERS_{server}", f"ORDERS_{server}_FILE"} & _admin.keys():
            login, _, place = urlsplit(url(_admin, server)).netloc.rpartition("@")
            if place == parts.netloc.rpartition("@")[2]:
                return urlunsplit(parts._replace(netloc=f"{login}@{place}"))
    return given


def admin(settings: Settings) -> Settings:
    """The same places, with the administrator's logins."""
    reached = kafka_settings(settings.brokers)
    login = {name: getattr(reached, name) for name in Settings.model_fields if name.startswith("kafka_")}
    urls = {
        "postgres": PostgresUrl(as_admin(settings.postgres)),
        "redis": RedisUrl(as_admin(settings.redis)),
    }
    return settings.model_copy(update=login | urls)


async def used_topics(settings: Settings) -> set[str]:
    """The pipeline's topics that were ever written to, or that have too many or too few partitions."""
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from streams import topics
    from streams.transport.cluster import inspect_cluster

    needed = {spec.name: spec.partitions for spec in topics.specs(settings, 1)}
    asking = {"settings": kafka_settings(settings.brokers), "client_id": "orders-tests"}
    there = (await inspect_cluster(asking, needed)).partitions
    if not there:
        return set()
    places = [TopicPartition(name, number) for name, count in there.items() for number in range(count)]
    async with AIOKafkaConsumer(**kafka(settings.brokers)) as consumer:
        used = {place.topic for place, end in (await consumer.end_offsets(places)).items() if end}
    return used | {name for name, count in there.items() if count != needed[name]}
