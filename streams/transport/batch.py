"""What a handler gets: a batch of one lane, and the only ways to write for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from streams.transport.ledger import Record

if TYPE_CHECKING:
    from streams.transport.lane import Lane
    from streams.transport.table import DueState, Moved, StateTable


class OutRecord(NamedTuple):
    """A record to publish. `partition` None: the batch's own."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    partition: int | None = None


@dataclass(frozen=True, slots=True)
class Slice:
    """One topic's part of a batch: records in offset order, without a hole, and the position after them."""

    topic: str
    records: Sequence[Record]
    to: int


class LaneBatch:
    """Records of several topics of one partition number. Acknowledged, all of it, when the handler returns.

    The handler may be called again with the same batch: after a temporary failure, or by another worker after a crash. Called again it must
    not repeat a step that has returned: `work` is there to remember that.

    With exactly_once what it writes to Kafka and to tables is kept until it returns, and goes out in one transaction with the offsets; this
    batch doesn't see its own states. With at_least_once each step is written when it is taken.
    """

    __slots__ = ("_lane", "moment", "partition", "slices", "work")

    def __init__(self, lane: Lane, slices: tuple[Slice, ...], moment: int | None = None) -> None:
        self._lane = lane
        self.moment = moment
        """No records, but time has passed: everything appended before this, ms by the brokers' clock, has been handled. See due_states."""
        self.partition = lane.partition
        self.slices = slices
        self.work: Any = None
        """The handler's own: what it has done so far, should it be called again with this batch."""

    def __len__(self) -> int:
        return sum(len(part.records) for part in self.slices)

    def __repr__(self) -> str:
        parts = ", ".join(f"{part.topic} {len(part.records)} to {part.to}" for part in self.slices)
        return f"<LaneBatch {self.partition}: {parts}>"

    def check(self) -> None:
        """To be called right before a write anywhere. Raises Stale or LeaseLost. Never blocks."""
        self._lane.check()

    async def publish(self, records: Mapping[str, Sequence[OutRecord]]) -> None:
        """Write records to topics, in order within a topic. Returns when all in-sync replicas have all of them (with exactly_once: when
        they are part of the batch's transaction, at once).

        Blocks while Kafka is away, up to retry_limit. Raises KafkaError, Stale, LeaseLost or GaveUp; some of the records may then
        have been written, and a second call writes all of them again.
        """
        await self._lane.publish(records)

    def get_states(self, table: StateTable, keys: Sequence[bytes]) -> list[bytes | None]:
        """States of `keys`, in their order, None where there is none. Reads the local disk. Raises Stale."""
        return self._lane.get_states(table, keys)

    def due_states(self, table: StateTable, until: int, limit: int) -> list[DueState]:
        """At most `limit` states due at `until` (ms) or before, the earliest first. Reads the local disk. Raises Stale."""
        return self._lane.due_states(table, until, limit)

    async def write_table(self, table: StateTable, puts: Mapping[bytes, bytes | None], moved: Sequence[Moved] = ()) -> None:
        """Write states (None deletes): to the changelog, and when that is delivered to the local store in one step, with what changed of
        their due times.

        Blocks and raises like publish.
        """
        await self._lane.write_table(table, puts, moved)
