"""Every Kafka client of this project is made here, from settings: how brokers are reached stands once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.client import AIOKafkaClient

from wire import AIOKafkaConsumer, AIOKafkaProducer


class KafkaSettings(Protocol):
    """How the brokers are reached."""

    @property
    def brokers(self) -> Sequence[str]:
        """Each host:port."""


def connection(settings: KafkaSettings) -> dict[str, Any]:
    """Keyword arguments by which any client of aiokafka reaches the brokers. Pure."""
    return {"bootstrap_servers": list(settings.brokers)}


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


def client(settings: KafkaSettings, client_id: str) -> AIOKafkaClient:
    """A bare client that is not connected yet, for requests that no other client makes.
    See consumer for the rest.
    """
    return AIOKafkaClient(**connection(settings), client_id=client_id)
