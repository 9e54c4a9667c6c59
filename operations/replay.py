"""Every lane's history folded again, up to what the group has committed, with the states on the local disk: as long as the log may be.

What each batch comes to goes to whoever asks (rebuild: rows of a shadow schema; whatif: what would be published) before the states and
positions are written, in one step. Killed at any moment, it goes on from there: rows only move forward, so writing some twice is harmless.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self, cast

import msgspec
import rocksdict

import domain
from contracts import ids
from operations.history import FOLD_RECORDS, HistoryReader, Positions, committed, fold
from settings import Settings
from streams import pipeline
from streams.dead_letters import Record
from streams.folder import BatchFolder, BatchOutput
from streams.lag import Lag, LagReader
from streams.lanes import lanes
from streams.partitioner import partition_of
from streams.transport.table import MEMORY, store_options
from tables import codec

LANES_AT_ONCE: Final = 2
"""While one lane's rows are written, another one is folded."""
POLL: Final = 0.2
STALL: Final = 5.0
"""Seconds without a commit after which nobody is taken to work the lag off."""
_ID: Final = 16
_POSITIONS: Final = b"@"

Progress = Callable[[int, int], None]
"""Records folded so far, and all that are to be."""
Take = Callable[[int, BatchOutput], Awaitable[None]]
"""A lane, and what a batch of it came to."""


def rules_of(settings: Settings) -> str:
    """Fingerprint of the rules by which this program folds: its code, and the settings that count there."""
    modules = sorted(Path(str(domain.__file__)).parent.glob("*.py"))
    sources = [*modules, Path(pipeline.__file__), Path(codec.__file__)]
    digest = hashlib.sha256(repr(settings.deadline_policy).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class LocalStates:
    """States by raw order id, and how far each lane is, in a RocksDB. Every call reads or writes the local disk."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Opens it, or makes it. `read_only`: somebody else may have it open, and what is seen is of now."""
        path.parent.mkdir(parents=True, exist_ok=True)
        access = rocksdict.AccessType.read_only() if read_only else rocksdict.AccessType.read_write()
        self._db = rocksdict.Rdict(str(path), store_options(rocksdict.Cache(MEMORY)), access_type=access)
        self._closed = False

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`, None where there is none."""
        if not keys:
            return []
        return cast("list[bytes | None]", self._db.get(list(keys)))

    def write(self, puts: Mapping[bytes, bytes | None], positions: tuple[int, Positions] | None = None) -> None:
        """Write values (None deletes) and a lane's positions in one step."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in puts.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if positions is not None:
            lane, to = positions
            batch.put(_POSITIONS + lane.to_bytes(4, "big"), msgspec.msgpack.encode(to))
        self._db.write(batch)

    def positions(self, lane: int) -> dict[str, int]:
        """Log -> the next offset to be folded."""
        raw = self._db.get(_POSITIONS + lane.to_bytes(4, "big"))
        return {} if raw is None else msgspec.msgpack.decode(raw, type=dict[str, int])

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Keys and values in the order of keys, from `prefix` on as long as they begin with it. Positions too."""
        cursor = self._db.iter()
        cursor.seek(prefix)
        while cursor.valid() and (key := cursor.key()).startswith(prefix):
            yield key, cursor.value()
            cursor.next()

    def states(self, at_once: int) -> Iterator[dict[bytes, bytes]]:
        """All states, some at a time."""
        states = ((key, value) for key, value in self.items() if len(key) == _ID)
        while some := dict(islice(states, at_once)):
            yield some

    def close(self) -> None:
        """May be called twice."""
        if not self._closed:
            self._closed = True
            self._db.close()


class Refold:
    """Use as `async with Refold(settings, states, take) as refold`. Entering raises TopicsMissing and KafkaConnectionError."""

    def __init__(self, settings: Settings, states: LocalStates, take: Take | None = None) -> None:
        self._settings = settings
        self._states = states
        self._take = take
        self._stack = AsyncExitStack()
        self.records = 0
        """Folded by this process."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._lag = await stack.enter_async_context(LagReader(self._settings))
            await self._lag.lag()  # says at once which topic is missing
            self._readers = [await stack.enter_async_context(HistoryReader(self._settings)) for _ in range(LANES_AT_ONCE)]
            self.folder = BatchFolder(self._settings)
            self._former = (await lanes(self._settings)).former
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    @property
    def reader(self) -> HistoryReader:
        """For other logs, while nothing is caught up."""
        return self._readers[0]

    def lane_of(self, raw_id: bytes) -> int:
        """Where an order's events are."""
        return partition_of(ids.text(raw_id).encode(), self._settings.partitions)

    def ends(self, lag: Lag) -> dict[int, dict[str, int]]:
        """See operations.history.committed."""
        return committed(lag, self._former)

    async def lag(self) -> Lag:
        """As LagReader.lag."""
        return await self._lag.lag()

    def ahead(self, lag: Lag) -> bool:
        """Whether the states know more than the group has committed: its offsets were set back."""
        return any(
            position > end.get(log, 0) for lane, end in self.ends(lag).items() for log, position in self._states.positions(lane).items()
        )

    async def catch_up(self, lag: Lag, progress: Progress = lambda done, whole: None) -> None:
        """Fold up to what is committed in `lag`. Raises LogIncomplete before anything is folded, and what the brokers and `take` raise."""
        ends = self.ends(lag)
        starts = {lane: self._states.positions(lane) for lane in ends}
        await self._readers[0].require(starts, ends)
        whole = sum(max(0, end[log] - starts[lane].get(log, 0)) for lane, end in ends.items() for log in end)
        done = 0

        def count(records: int) -> None:
            nonlocal done
            done += records
            self.records += records
            progress(done, whole)

        lanes = iter([(lane, end) for lane, end in sorted(ends.items()) if any(end[log] > starts[lane].get(log, 0) for log in end)])

        async def run(reader: HistoryReader) -> None:
            for lane, end in lanes:
                await self._lane(reader, lane, end, count)

        tasks = [asyncio.create_task(run(reader)) for reader in self._readers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        progress(whole, whole)

    async def reached(self, lag: Lag, waiting: Callable[[int], None] = lambda left: None) -> tuple[Lag, bool]:
        """Wait until the group has committed all that was in the logs at `lag`: the lag then, and whether it has. It gives up when nobody
        has committed anything for some seconds. `waiting` is told how many records are left."""
        clock = asyncio.get_running_loop().time
        best, since = -1, clock()
        while True:
            now = await self.lag()
            left = sum(max(0, position.end - now[at].committed) for at, position in lag.items())
            waiting(left)
            if not left:
                return now, True
            total = sum(position.committed for position in now.values())
            if total > best:
                best, since = total, clock()
            elif clock() - since > STALL:
                return now, False
            await asyncio.sleep(POLL)

    async def _lane(self, reader: HistoryReader, lane: int, end: Positions, count: Callable[[int], None]) -> None:
        position = self._states.positions(lane)
        pending: list[Record] = []
        async with aclosing(reader.lane(position, end)) as stretches:
            async for records in stretches:
                pending += records
                while len(pending) >= FOLD_RECORDS:
                    some, pending = pending[:FOLD_RECORDS], pending[FOLD_RECORDS:]
                    for record in some:
                        position[f"{record.topic}/{record.partition}"] = record.offset + 1
                    await self._fold(lane, some, position)
                    count(len(some))
        # The end may lie behind the marker of a transaction, which is no record.
        await self._fold(lane, pending, {**position, **end})
        count(len(pending))

    async def _fold(self, lane: int, records: Sequence[Record], position: Positions) -> None:
        for work in fold(self.folder, lane, records, self._states.get):
            if self._take is not None:
                await self._take(lane, work)
            # Killed before the last one, all are folded again: those written already change nothing.
            self._states.write(work.states)
        self._states.write({}, (lane, dict(position)))
