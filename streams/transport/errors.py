"""What can go wrong in the transport. `Stale` is streams.delivery's: the policy has to know it."""

from __future__ import annotations

from aiokafka.errors import KafkaError

from streams.delivery import GaveUp, Stale

__all__ = [
    "FailStop",
    "GaveUp",
    "GroupRefused",
    "LaneClosed",
    "LeaseLost",
    "OffsetBeyondEnd",
    "PartitionMismatch",
    "RecoveryStalled",
    "Stale",
    "Stalled",
    "TopicsMissing",
    "Unreachable",
]


class LeaseLost(KafkaError):  # type: ignore[misc]
    """Group membership isn't proven at this moment: nothing may be written. Temporary."""


class LaneClosed(KafkaError):  # type: ignore[misc]
    """A produce request was held back because its lane is closed. Never retried: the batch is stale."""

    retriable = False


class FailStop(Exception):
    """The worker has to end, unacknowledged; the message says what and what to do. Not a bug in the program."""


class Unreachable(FailStop):
    """No Kafka broker answered at the start."""


class PartitionMismatch(FailStop):
    """Topics that one lane reads or writes don't have the same number of partitions."""


class TopicsMissing(FailStop):
    """Topics that the app needs don't exist."""


class OffsetBeyondEnd(FailStop, ValueError):
    """The group has committed an offset that the log doesn't have."""


class GroupRefused(FailStop):
    """The group's coordinator doesn't let this worker in, and never will."""


class RecoveryStalled(FailStop):
    """Kafka didn't answer in time while tables were recovered."""


class Stalled(FailStop):
    """No progress for longer than `stall_timeout`."""
