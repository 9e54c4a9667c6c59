"""Kafka's brokers, as far as the pipeline relies on them: logs, idempotent producers,
compaction, and one consumer group.

Plain objects without time or network: the fakes of aiokafka (tests.simulation.clients) reach them through a
Network, and tests/contract compares what they do with a real broker.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from types import MappingProxyType
from typing import NamedTuple

from aiokafka import errors
from aiokafka.structs import TopicPartition

REMEMBERED = 5
"""Batches of a producer and partition that a broker remembers, to recognise a repetition."""
APPEND_TIME = 1
NO_MEMBER = ""
NO_GENERATION = -1

Headers = Sequence[tuple[str, bytes]]


class Record(NamedTuple):
    """As aiokafka's ConsumerRecord, as far as the transport reads it."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Sent(NamedTuple):
    """A record on its way to a log."""

    key: bytes | None
    value: bytes | None
    headers: Headers


class Log:
    """One partition. Offsets are never reused; compaction leaves holes."""

    __slots__ = ("end", "producers", "records", "start", "tp", "watchers")

    def __init__(self, tp: TopicPartition) -> None:
        self.tp = tp
        self.records: list[Record] = []
        self.start = 0
        self.end = 0
        self.producers: dict[int, deque[tuple[int, int, int]]] = {}
        """Producer id -> (first sequence number, last one, first offset) of its latest batches."""
        self.watchers: list[Callable[[TopicPartition], None]] = []
        """Told when something was appended."""

    def append(self, sent: Sequence[Sent], now: int) -> int:
        """Append records with the broker's time `now` (ms) and return the first one's offset."""
        base = self.end
        topic, partition = self.tp
        self.records += [
            Record(topic, partition, at, now, APPEND_TIME, *each) for at, each in enumerate(sent, base)
        ]
        self.end = base + len(sent)
        for watcher in self.watchers:
            watcher(self.tp)
        return base

    def read(self, offset: int, most: int) -> tuple[list[Record], int]:
        """At most `most` records from `offset` on, and the position after them, beyond a hole that
        follows them to the log's end.
        """
        at = bisect.bisect_left(self.records, offset, key=attrgetter("offset"))
        records = self.records[at : at + most]
        return records, records[-1].offset + 1 if at + most < len(self.records) else self.end

    def compact(self) -> None:
        """Only the last record of each key remains, at its offset."""
        last = {record.key: record.offset for record in self.records}
        self.records = [record for record in self.records if last[record.key] == record.offset]


class Broker:
    """All logs of a cluster. `create` topics first: an unknown one is refused."""

    def __init__(self) -> None:
        self.logs: dict[TopicPartition, Log] = {}
        self.partitions: dict[str, int] = {}
        self._producer_ids = 0

    def create(self, topics: Iterable[str], partitions: int) -> None:
        """Create topics."""
        for topic in topics:
            self.partitions[topic] = partitions
            for number in range(partitions):
                tp = TopicPartition(topic, number)
                self.logs[tp] = Log(tp)

    def new_producer(self) -> int:
        """A producer id that nobody has."""
        self._producer_ids += 1
        return self._producer_ids

    def log(self, tp: TopicPartition) -> Log:
        """Raises UnknownTopicOrPartitionError."""
        try:
            return self.logs[tp]
        except KeyError:
            raise errors.UnknownTopicOrPartitionError from None

    def produce(
        self, tp: TopicPartition, producer: int, sequence: int, sent: Sequence[Sent], now: int
    ) -> int:
        """Append a batch of an idempotent producer, or recognise it; returns the offset of its first record.

        Raises OutOfOrderSequenceNumber if a batch before it is missing, DuplicateSequenceNumber if it was
        written, but so long ago that its offset isn't known any more.
        """
        log = self.log(tp)
        known = log.producers.setdefault(producer, deque(maxlen=REMEMBERED))
        last = sequence + len(sent) - 1
        for first, final, base in known:
            if (first, final) == (sequence, last):
                return base
        expected = known[-1][1] + 1 if known else 0
        if sequence < expected:
            raise errors.DuplicateSequenceNumber
        if sequence > expected:
            raise errors.OutOfOrderSequenceNumber
        base = log.append(sent, now)
        known.append((sequence, last, base))
        return base


# -- the group -----------------------------------------------------------------------------------------------


Assign = Callable[[Sequence[str]], Mapping[str, Iterable[TopicPartition]]]
"""Member ids, in the order in which they came -> partitions of each."""


@dataclass(slots=True)
class Member:
    """One consumer of the group."""

    id: str
    heard: float
    """When the coordinator last heard of it."""
    joining: Callable[[Joined | BaseException], None] | None = None
    """It waits for the next generation, and is told by this."""


class Joined(NamedTuple):
    """The answer to a join."""

    generation: int
    member: str


@dataclass(slots=True)
class Group:
    """A group's coordinator. Time is told by whoever calls: `now` in seconds.
    `schedule(delay, callback)` is the world's clock.
    """

    assign: Assign
    session: float
    rebalance: float
    schedule: Callable[[float, Callable[[], object]], object]
    clock: Callable[[], float]
    members: dict[str, Member] = field(default_factory=dict)
    generation: int = 0
    offsets: dict[TopicPartition, int] = field(default_factory=dict)
    metadata: dict[TopicPartition, str] = field(default_factory=dict)
    """What was committed beside each offset."""
    assignment: dict[str, frozenset[TopicPartition]] = field(default_factory=dict)
    preparing: bool = False
    on_generation: Callable[[], None] = lambda: None
    on_commit: Callable[[str, Mapping[TopicPartition, int]], None] = lambda member, offsets: None
    _round: int = 0
    _ids: int = 0

    # -- requests --------------------------------------------------------------------------------------------

    def join(self, member: str, reply: Callable[[Joined | BaseException], None]) -> None:
        """Ask to take part in the next generation. `reply` is called when it has begun, or with the error."""
        if member == NO_MEMBER:
            self._ids += 1
            member = f"member-{self._ids}"
            self.members[member] = Member(member, self.clock())
            self._watch(member)
        elif member not in self.members:
            reply(errors.UnknownMemberIdError())
            return
        known = self.members[member]
        known.heard = self.clock()
        if known.joining is not None:
            known.joining(errors.UnknownMemberIdError())  # an answer to a request that was given up
        known.joining = reply
        self._prepare()
        self._complete_if_all_joined()

    def sync(self, member: str, generation: int) -> frozenset[TopicPartition]:
        """What the member was assigned.
        Raises UnknownMemberIdError, IllegalGenerationError, RebalanceInProgressError.
        """
        self._check(member, generation)
        self.members[member].heard = self.clock()
        if self.preparing:
            raise errors.RebalanceInProgressError
        return self.assignment[member]

    def heartbeat(self, member: str, generation: int) -> int:
        """The answer's error code: 0, 27 a rebalance has begun, 22 an old generation, 25 not a member."""
        try:
            self._check(member, generation)
        except (errors.UnknownMemberIdError, errors.IllegalGenerationError) as error:
            return int(error.errno)
        self.members[member].heard = self.clock()
        return int(errors.RebalanceInProgressError.errno) if self.preparing else 0

    def commit(
        self,
        member: str,
        generation: int,
        offsets: Mapping[TopicPartition, int],
        metadata: Mapping[TopicPartition, str] = MappingProxyType({}),
    ) -> None:
        """Commit offsets, and what stands beside them. Raises UnknownMemberIdError or IllegalGenerationError.
        Like Kafka it doesn't ask whose partitions they are.
        """
        self._check(member, generation)
        self.on_commit(member, offsets)
        self.offsets.update(offsets)
        self.metadata.update(metadata)

    def leave(self, member: str) -> None:
        """The member is gone of its own will."""
        if member in self.members:
            self._remove(member)

    # -- generations -----------------------------------------------------------------------------------------

    def _check(self, member: str, generation: int) -> None:
        if member not in self.members:
            raise errors.UnknownMemberIdError
        if generation != self.generation:
            raise errors.IllegalGenerationError

    def _prepare(self) -> None:
        if self.preparing:
            return
        self.preparing = True
        self._round += 1
        this = self._round
        self.schedule(self.rebalance, lambda: self._too_late(this))

    def _too_late(self, this: int) -> None:
        """Whoever has not joined within the rebalance timeout is left out."""
        if self.preparing and self._round == this:
            for member in [each for each in self.members.values() if each.joining is None]:
                del self.members[member.id]
            self._complete_if_all_joined()

    def _complete_if_all_joined(self) -> None:
        if not self.preparing or any(member.joining is None for member in self.members.values()):
            return
        self.preparing = False
        self.generation += 1
        names = list(self.members)
        self.assignment = {name: frozenset(tps) for name, tps in self.assign(names).items()} if names else {}
        for member in list(self.members.values()):
            reply, member.joining = member.joining, None
            member.heard = self.clock()
            assert reply is not None
            reply(Joined(self.generation, member.id))
        self.on_generation()

    def _watch(self, name: str) -> None:
        """Remove the member when nothing was heard of it for the session timeout."""
        member = self.members.get(name)
        if member is None:
            return
        left = member.heard + self.session - self.clock()
        if member.joining is not None:
            left = self.session
        elif left <= 0:
            self._remove(name)
            return
        self.schedule(left, lambda: self._watch(name))

    def _remove(self, name: str) -> None:
        del self.members[name]
        self._prepare()
        self._complete_if_all_joined()
