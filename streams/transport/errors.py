"""What can go wrong in the transport. `Stale` is streams.transport.delivery's: the policy has to know it."""

from __future__ import annotations

from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from streams.transport.delivery import GaveUp, Stale

__all__ = [
    "FailStop",
    "Fenced",
    "FolderInUse",
    "GaveUp",
    "GroupRefused",
    "GroupShut",
    "ImpossibleTransition",
    "LaneClosed",
    "LeaseLost",
    "OffsetBeyondEnd",
    "PartitionMismatch",
    "RecoveryStalled",
    "Stale",
    "StateCorrupt",
    "Stalled",
    "TooFewPartitions",
    "TopicsMissing",
    "TransactionsRefused",
    "Unreachable",
    "WritersTimes",
    "is_fencing",
]


class LeaseLost(KafkaError):  # type: ignore[misc]
    """Group membership isn't proven at this moment: nothing may be written. Temporary."""


class LaneClosed(KafkaError):  # type: ignore[misc]
    """A produce request was held back because its lane is closed. Never retried: the batch is stale."""

    retriable = False


class Fenced(Stale):
    """The broker refused a transaction because a newer producer has its lane. Only the group can tell who has it."""


class ImpossibleTransition(Exception):
    """A lane can't come to this state from the one that it is in: a bug."""


def is_fencing(exc: BaseException) -> bool:
    """Whether the broker says, perhaps underneath, that a newer producer has the same transactional id, or that it ended a transaction
    that took too long: it doesn't tell which. Pure."""
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, (ProducerFenced, InvalidProducerEpoch)):
            return True
        seen = seen.__cause__
    return False


class FailStop(Exception):
    """The worker has to end, unacknowledged; the message says what and what to do. Not a bug in the program."""


class Unreachable(FailStop):
    """No Kafka broker answered at the start."""


class FolderInUse(FailStop):
    """Another process works on the data folder."""


class PartitionMismatch(FailStop):
    """Topics that one lane reads or writes don't have the same number of partitions."""


class TooFewPartitions(PartitionMismatch):
    """The topics of the lanes have fewer partitions than the setting says."""


class WritersTimes(FailStop):
    """A topic keeps the times of its writers, where the brokers' time is to be learnt."""


class TopicsMissing(FailStop):
    """Topics that the app needs don't exist."""


class OffsetBeyondEnd(FailStop, ValueError):
    """The group has committed an offset that the log doesn't have."""


class TransactionsRefused(FailStop):
    """The broker doesn't let this worker use transactions."""


class GroupRefused(FailStop):
    """The group's coordinator doesn't let this worker in, and never will."""


class GroupShut(GroupRefused):
    """The group's members take no workers beside them."""


class RecoveryStalled(FailStop):
    """Kafka didn't answer in time while tables were recovered."""


class StateCorrupt(FailStop):
    """A partition's local files could not be read, and were deleted: the next start rebuilds them from the changelog."""


class Stalled(FailStop):
    """No progress for longer than `stall_timeout`."""
