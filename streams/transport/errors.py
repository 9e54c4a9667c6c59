"""What can go wrong in the transport. `Stale` is streams.transport.delivery's: the policy has to know it."""

from __future__ import annotations

from aiokafka.errors import InvalidProducerEpoch, KafkaError, ProducerFenced

from errors import OrdersError
from streams.transport.delivery import GaveUp, Stale

__all__ = [
    "DiskFull",
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
    "TransactionsRefused",
    "UnknownTopics",
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
    """The broker refused a transaction because a newer producer has its lane.
    Only the group can tell who has it.
    """


class ImpossibleTransition(Exception):
    """A lane can't come to this state from the one that it is in: a bug."""


def is_fencing(exc: BaseException) -> bool:
    """Whether the broker says, perhaps underneath, that a newer producer has the same transactional id, or
    that it ended a transaction that took too long: it doesn't tell which. Pure.
    """
    seen: BaseException | None = exc
    while seen is not None:
        if isinstance(seen, (ProducerFenced, InvalidProducerEpoch)):
            return True
        seen = seen.__cause__
    return False


class FailStop(OrdersError):
    """The worker has to end, unacknowledged. Not a bug in the program.

    The remedies are in the words of this library; a program that has its own gives them to BatchApp.
    """


class Unreachable(FailStop):
    """No Kafka broker answered at the start."""

    remedy = "start it, or correct the addresses of the brokers"


class FolderInUse(FailStop):
    """Another process works on the data folder."""

    remedy = "give each worker a data folder of its own"


class PartitionMismatch(FailStop):
    """Topics that one lane reads or writes don't have the same number of partitions."""

    remedy = "stop all workers and make them equal"


class TooFewPartitions(PartitionMismatch):
    """The topics of the lanes have fewer partitions than the setting says."""

    remedy = "set the number of partitions to what they have"


class WritersTimes(FailStop):
    """A topic keeps the times of its writers, where the brokers' time is to be learnt."""

    remedy = "set it so, and start the worker again"


class UnknownTopics(FailStop):
    """Topics that the app needs don't exist."""

    remedy = "create them"


class OffsetBeyondEnd(FailStop, ValueError):
    """The group has committed an offset that the log doesn't have."""

    remedy = (
        "set the group's offsets to what should be read (kafka-consumer-groups --reset-offsets) and start the"
        " worker again"
    )


class TransactionsRefused(FailStop):
    """The broker doesn't let this worker use transactions."""


class GroupRefused(FailStop):
    """The group's coordinator doesn't let this worker in, and never will."""

    remedy = (
        "see that the group is of these workers only and that they may use it, and start the worker again"
    )


class GroupShut(GroupRefused):
    """The group's members take no workers beside them."""

    remedy = "start the worker again when those that keep it out have left the group"


class RecoveryStalled(FailStop):
    """Kafka didn't answer in time while tables were recovered."""

    remedy = "start the worker again"


class StateCorrupt(FailStop):
    """A partition's local files could not be read, and were deleted: the next start
    rebuilds them from the changelog.
    """

    remedy = "start the worker again: the state is rebuilt from the changelog"


class DiskFull(FailStop):
    """The local files can't be written."""

    remedy = "make room, and start the worker again: the state is rebuilt from the changelog"


class Stalled(FailStop):
    """No progress for longer than `stall_timeout`."""

    remedy = "start the worker again, and see in its log what it waited for"
