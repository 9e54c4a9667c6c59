"""Replay every lane's log up to what the group has committed, with the states in a RocksDB on the local disk.

The output of each batch goes to a function of the caller first: rebuild writes its rows to a shadow schema,
whatif keeps its events. Then the states and the positions are written in one step. A replay that was killed
goes on from these positions; it may write some rows twice, which is harmless because a row never goes back to
an older version.
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
"""Lanes that are replayed at the same time: while one lane's rows are written, another one is folded."""
POLL: Final = 0.2
STALL: Final = 5.0
"""Seconds without a commit after which no worker is believed to run."""
_ID: Final = 16
_POSITIONS: Final = b"@"

Progress = Callable[[int, int], None]
"""Called with the number of records that are done and their total."""
Take = Callable[[int, BatchOutput], Awaitable[None]]
"""Called with a lane and the output of one of its batches."""


def rules_of(settings: Settings) -> str:
    """Return a fingerprint of the rules by which this program folds: of its code
    and of the deadline policy.
    """
    modules = sorted(Path(str(domain.__file__)).parent.glob("*.py"))
    sources = [*modules, Path(pipeline.__file__), Path(codec.__file__)]
    digest = hashlib.sha256(repr(settings.deadline_policy).encode())
    for path in sources:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class LocalStates:
    """States by raw order id, and the position of each lane, in a RocksDB.

    Every call blocks for the local disk.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the database, or create it.

        With `read_only` another process may have it open; later writes aren't seen.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        access = rocksdict.AccessType.read_only() if read_only else rocksdict.AccessType.read_write()
        self._db = rocksdict.Rdict(str(path), store_options(rocksdict.Cache(MEMORY)), access_type=access)
        self._closed = False

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return the values in the order of `keys`, None for a key that isn't there."""
        if not keys:
            return []
        return cast("list[bytes | None]", self._db.get(list(keys)))

    def write(
        self, puts: Mapping[bytes, bytes | None], positions: tuple[int, Positions] | None = None
    ) -> None:
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
        """Return, for each log of the lane ("topic/partition"), the next offset to be replayed."""
        raw = self._db.get(_POSITIONS + lane.to_bytes(4, "big"))
        return {} if raw is None else msgspec.msgpack.decode(raw, type=dict[str, int])

    def items(self, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Yield all entries whose keys begin with `prefix`, in the order of the keys; positions are among
        them."""
        cursor = self._db.iter()
        cursor.seek(prefix)
        while cursor.valid() and (key := cursor.key()).startswith(prefix):
            yield key, cursor.value()
            cursor.next()

    def states(self, at_once: int) -> Iterator[dict[bytes, bytes]]:
        """Yield all states, `at_once` at a time."""
        states = ((key, value) for key, value in self.items() if len(key) == _ID)
        while chunk := dict(islice(states, at_once)):
            yield chunk

    def close(self) -> None:
        """Close the database; again is harmless."""
        if not self._closed:
            self._closed = True
            self._db.close()


class Replay:
    """A replay of all lanes. Use it as `async with Replay(settings, states, take) as replay`.

    Entering raises TopicsMissing and KafkaConnectionError.
    """

    def __init__(self, settings: Settings, states: LocalStates, take: Take | None = None) -> None:
        self._settings = settings
        self._states = states
        self._take = take
        self._stack = AsyncExitStack()
        self.records = 0
        """Records replayed by this process."""

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._lag = await stack.enter_async_context(LagReader(self._settings))
            await self._lag.lag()  # says at once which topic is missing
            self._readers = [
                await stack.enter_async_context(HistoryReader(self._settings)) for _ in range(LANES_AT_ONCE)
            ]
            self.folder = BatchFolder(self._settings)
            self._former = (await lanes(self._settings)).former
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @property
    def reader(self) -> HistoryReader:
        """A reader for other logs; it may be used while catch_up() isn't running."""
        return self._readers[0]

    def lane_of(self, raw_id: bytes) -> int:
        """Return the lane of an order."""
        return partition_of(ids.text(raw_id).encode(), self._settings.partitions)

    def ends(self, lag: Lag) -> dict[int, dict[str, int]]:
        """Return the committed positions of each lane, as operations.history.committed does."""
        return committed(lag, self._former)

    async def lag(self) -> Lag:
        """Return the group's lag now, as LagReader.lag does."""
        return await self._lag.lag()

    def ahead(self, lag: Lag) -> bool:
        """Tell whether the states go beyond what the group has committed, because
        its offsets were set back.
        """
        return any(
            position > end.get(log, 0)
            for lane, end in self.ends(lag).items()
            for log, position in self._states.positions(lane).items()
        )

    async def catch_up(self, lag: Lag, progress: Progress = lambda done, total: None) -> None:
        """Replay up to what is committed in `lag`. Blocks.

        Raises LogIncomplete before the first record is folded, and what the brokers and `take` raise.
        """
        ends = self.ends(lag)
        starts = {lane: self._states.positions(lane) for lane in ends}
        await self._readers[0].require(starts, ends)
        total = sum(max(0, end[log] - starts[lane].get(log, 0)) for lane, end in ends.items() for log in end)
        done = 0

        def count(records: int) -> None:
            nonlocal done
            done += records
            self.records += records
            progress(done, total)

        lanes = iter(
            [
                (lane, end)
                for lane, end in sorted(ends.items())
                if any(end[log] > starts[lane].get(log, 0) for log in end)
            ]
        )

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
        progress(total, total)

    async def reached(
        self, lag: Lag, waiting: Callable[[int], None] = lambda remaining: None
    ) -> tuple[Lag, bool]:
        """Wait until the group has committed all that was in the logs at `lag`.

        Returns the lag then, and whether it has.

        It stops waiting after STALL seconds without a commit. `waiting` is called with the number of
        remaining records.
        """
        clock = asyncio.get_running_loop().time
        best, since = -1, clock()
        while True:
            now = await self.lag()
            remaining = sum(max(0, position.end - now[at].committed) for at, position in lag.items())
            waiting(remaining)
            if not remaining:
                return now, True
            total = sum(position.committed for position in now.values())
            if total > best:
                best, since = total, clock()
            elif clock() - since > STALL:
                return now, False
            await asyncio.sleep(POLL)

    async def _lane(
        self, reader: HistoryReader, lane: int, end: Positions, count: Callable[[int], None]
    ) -> None:
        position = self._states.positions(lane)
        pending: list[Record] = []
        async with aclosing(reader.lane(position, end)) as stretches:
            async for records in stretches:
                pending += records
                while len(pending) >= FOLD_RECORDS:
                    chunk, pending = pending[:FOLD_RECORDS], pending[FOLD_RECORDS:]
                    for record in chunk:
                        position[f"{record.topic}/{record.partition}"] = record.offset + 1
                    await self._fold(lane, chunk, position)
                    count(len(chunk))
        # The end may lie behind the marker of a transaction, which is no record.
        await self._fold(lane, pending, {**position, **end})
        count(len(pending))

    async def _fold(self, lane: int, records: Sequence[Record], position: Positions) -> None:
        for output in fold(self.folder, lane, records, self._states.get):
            if self._take is not None:
                await self._take(lane, output)
            # Killed before the last output, all are folded again: those written already change nothing.
            self._states.write(output.states)
        self._states.write({}, (lane, dict(position)))
