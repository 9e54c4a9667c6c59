"""Where a record is in Kafka."""

from __future__ import annotations

from msgspec import Struct


class RecordId(Struct, array_like=True, frozen=True, gc=False):
    """Topic, partition and offset of a record. As JSON and MessagePack it is the array of the three."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}:{self.partition}:{self.offset}"
