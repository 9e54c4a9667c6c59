"""What lanes leave alone for now: whole partition numbers, and topics."""

from __future__ import annotations


class Held:
    """What is held back: its records are neither fetched nor handled, and its offsets stay where they are.

    A lane whose partition number is held does nothing at all; a batch that it has begun is finished first.
    """

    __slots__ = ("partitions", "topics")

    def __init__(self) -> None:
        self.partitions: frozenset[int] = frozenset()
        self.topics: frozenset[str] = frozenset()

    def has(self, topic: str, partition: int) -> bool:
        """Whether this partition of this topic is held back. Pure."""
        return partition in self.partitions or topic in self.topics
