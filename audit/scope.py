"""What is audited, and what an audit knows of it before it looks at single lanes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiokafka import TopicPartition

from audit.log import Span, partition_of
from audit.reference import LARGEST_BATCH, is_canonical
from audit.stores import CacheServer
from audit.topics import LANE
from wire.clients import KafkaSettings

NUMBER: Final = {topic: number for number, topic in enumerate(LANE)}


@dataclass(frozen=True, slots=True)
class Target:
    """What is audited. `redis` None: the cache is not looked at.
    `data`: where workers of this machine have their local tables, if any.

    `partitions`: by how many an order's lane is found (ORDERS_PARTITIONS); None: as many as the topics have,
    which is not the same once partitions were added. `cache_stall`: seconds without progress for which a
    cache that is behind is waited for.
    """

    kafka: KafkaSettings = field(repr=False)
    group: str
    changelog: str
    postgres: str = field(repr=False)
    redis: CacheServer | None
    data: Path | None = None
    partitions: int | None = None
    cache_stall: float = 30.0
    message_bytes: int = LARGEST_BATCH
    """Bytes of a batch that the changelog takes (ORDERS_MESSAGE_BYTES): what an order may hold follows from
    it."""
    checkpoints: Path | None = None
    """Where audits leave their checkpoints; None: they leave none, and rely on none."""


@dataclass(slots=True)
class Scope:
    """What all lanes of one audit have in common."""

    target: Target
    only: frozenset[bytes] | None = None
    """The orders that are audited, by their keys; None: all."""
    lanes: int = 0
    former: Sequence[int] = ()
    """How many partitions the topics had before."""
    counts: dict[str, int] = field(default_factory=dict)
    """Partitions of each topic."""
    topic_ids: Mapping[str, str] = field(default_factory=dict)
    """The id of each topic, which a later one of this name hasn't; not known of brokers before Kafka 2.8."""
    spans: dict[TopicPartition, Span] = field(default_factory=dict)
    """Of the topics that lanes read: what is committed."""
    cluster: str = ""

    def home(self, key: bytes) -> int:
        """The lane of an order."""
        return partition_of(key, self.target.partitions or self.lanes)

    def owner(self, key: bytes, number: int) -> int:
        """The lane that a record under this key belongs to by its partition: its order's, also where that
        is its partition of before.
        """
        home = self.home(key)
        return (
            home
            if home != number and is_canonical(key) and number in (home % count for count in self.former)
            else number
        )

    def wanted(self, key: bytes) -> bool:
        """Whether the orders with this key are audited."""
        return self.only is None or key in self.only


def name_of(partition: TopicPartition) -> str:
    """A partition for a person."""
    return f"{partition.topic}/{partition.partition}"


def text_of(raw: bytes) -> str:
    """A key for a person, whatever is in it."""
    return raw.decode("utf-8", "backslashreplace")
