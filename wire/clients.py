"""Every Kafka client of this project is made here, from settings: how brokers are reached stands once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from aiokafka.admin import AIOKafkaAdminClient

from wire import AIOKafkaConsumer, AIOKafkaProducer
from wire.access import Access, SecuritySettings
from wire.client import Client


class KafkaSettings(SecuritySettings, Protocol):
    """How the brokers are reached, and how a program gets in."""

    @property
    def brokers(self) -> Sequence[str]:
        """Each host:port."""


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments by which any one client of aiokafka reaches the brokers.

    Certificates and passwords are read here, and again for each connection. Reads files. Raises
    wire.access.BadFile.
    """
    return {"bootstrap_servers": list(settings.brokers), **Access(settings).options()}


def consumer(settings: KafkaSettings, client_id: str, *topics: str, **options: Any) -> AIOKafkaConsumer:
    """A consumer that is not started yet.
    It is in no group, reads committed records and commits nothing by itself.

    `client_id` tells the brokers' operator who asks. `options`: keyword arguments of aiokafka's; they win
    over ours. Never blocks. Raises RuntimeError where no event loop runs.
    """
    ours = {"enable_auto_commit": False, "isolation_level": "read_committed"}
    return AIOKafkaConsumer(*topics, **connection(settings), client_id=client_id, **{**ours, **options})


def producer(settings: KafkaSettings, client_id: str, **options: Any) -> AIOKafkaProducer:
    """A producer that is not started yet. It is idempotent, and all in-sync replicas acknowledge.
    See consumer for the rest.
    """
    ours = {"acks": "all", "enable_idempotence": True}
    return AIOKafkaProducer(**connection(settings), client_id=client_id, **{**ours, **options})


def admin(settings: KafkaSettings, client_id: str, **options: Any) -> AIOKafkaAdminClient:
    """An admin client that is not started yet. See consumer for the rest."""
    return AIOKafkaAdminClient(**connection(settings), client_id=client_id, **options)


def client(settings: KafkaSettings, client_id: str) -> Client:
    """A bare client that is not connected yet, for requests that no other client makes.
    See consumer for the rest.
    """
    return Client(**connection(settings), client_id=client_id)
