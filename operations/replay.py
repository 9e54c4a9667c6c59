"""Replay every lane's log up to what the group has committed, with the states in a RocksDB on the local disk.

The output of each batch goes to a function of the caller first: rebuild writes its rows to a shadow schema,
whatif keeps its events. Then the states and the positions are written in one step. A replay that was killed
goes on from these positions; it may write some rows twice, which is harmless because a row never goes back to
an older version.
"""

from __future__ import annotations

import asyncio
import hashlib
import heapq
import time
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
from operations.shares import ALL, Progress, Share
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
LOCKED: Final = 5.0
_LOCK: Final = "While lock file"
_ID: Final = 16
_POSITIONS: Final = b"@"
_PART: Final = "part-"

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


def lane_of(settings: Settings, raw_id: bytes) -> int:
    """Return the lane of an order. Pure."""
    return partition_of(ids.text(raw_id).encode(), settings.partitions)


class LocalStates:
    """States by raw order id, and the position of each lane, in a RocksDB.

    Every call blocks for the local disk.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the database, or create it.

        With `read_only` another process may have it open; later writes aren't seen. Without, it waits up to
        LOCKED seconds for another process: one of a rebuild that was just killed ends a moment later. Raises
        Exception, as rocksdict does.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        access = rocksdict.AccessType.read_only() if read_only else rocksdict.AccessType.read_write()
        deadline = time.monotonic() + LOCKED
        while True:
            try:
                options = store_options(rocksdict.Cache(MEMORY))
                self._db = rocksdict.Rdict(str(path), options, access_type=access)
                break
            except Exception as error:  # rocksdict's only kind
                if _LOCK not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(POLL)
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

    def ids(self) -> Iterator[bytes]:
        """Yield the raw ids of all orders, in their order."""
        return (key for key, _ in self.items() if len(key) == _ID)

    def close(self) -> None:
        """Close the database; again is harmless."""
        if not self._closed:
            self._closed = True
            self._db.close()


class Parts:
    """The states of a replay, as they were shared out: a LocalStates for each share.

    There are as many shares as there are folders, from the first replay on.
    """

    def __init__(self, folder: Path) -> None:
        """`folder`: where the states are."""
        several = sorted(folder.glob(f"{_PART}*"), key=lambda path: int(path.name.removeprefix(_PART)))
        self.shares = {Share(at, len(several)): path for at, path in enumerate(several)} or {ALL: folder}
        """Share -> folder of its states."""
        self._opened: list[LocalStates] = []

    @classmethod
    def create(cls, folder: Path, count: int) -> Parts:
        """Make empty ones for so many shares."""
        for path in (folder / f"{_PART}{number}" for number in range(count)) if count > 1 else (folder,):
            LocalStates(path).close()
        return cls(folder)

    def open(self, *, read_only: bool = False) -> None:
        """Open all of them, as LocalStates does."""
        for path in self.shares.values():
            self._opened.append(LocalStates(path, read_only=read_only))

    def of_lane(self, lane: int) -> LocalStates:
        """Return the open states that a lane's are among."""
        return self._opened[lane % len(self._opened)]

    def positions(self, lane: int) -> dict[str, int]:
        """Return a lane's positions, as LocalStates does."""
        return self.of_lane(lane).positions(lane)

    def ids(self) -> Iterator[bytes]:
        """Yield the raw ids of all orders, in their order."""
        return heapq.merge(*(states.ids() for states in self._opened))

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Return values as LocalStates does, whichever share they are of."""
        of_shares = [states.get(keys) for states in self._opened]
        return [next(filter(None, values), None) for values in zip(*of_shares, strict=True)]

    def close(self) -> None:
        """Close all; again is harmless."""
        while self._opened:
            self._opened.pop().close()


async def reached(
    read: Callable[[], Awaitable[Lag]], lag: Lag, waiting: Callable[[int], None] = lambda remaining: None
) -> tuple[Lag, bool]:
    """Wait until the group has committed all that was in the logs at `lag`.

    Returns the lag then, and whether it has.

    `read` reads the lag. It stops waiting after STALL seconds without a commit. `waiting` is called with the
    number of remaining records.
    """
    clock = asyncio.get_running_loop().time
    best, since = -1, clock()
    while True:
        now = await read()
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


class Replay:
    """A replay of the lanes of a share. Use it as `async with Replay(settings, states, take) as replay`.

    Entering raises TopicsMissing and KafkaConnectionError.
    """

    def __init__(
        self, settings: Settings, states: LocalStates, take: Take | None = None, share: Share = ALL
    ) -> None:
        self._settings = settings
        self._states = states
        self._take = take
        self.share = share
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
        return lane_of(self._settings, raw_id)

    def owns(self, raw_id: bytes) -> bool:
        """Tell whether an order is of this share."""
        return self.share == ALL or self.share.has(self.lane_of(raw_id))

    def ends(self, lag: Lag) -> dict[int, dict[str, int]]:
        """Return the committed positions of each lane of this share, as operations.history.committed does."""
        return {lane: end for lane, end in committed(lag, self._former).items() if self.share.has(lane)}

    async def lag(self) -> Lag:
        """Return the group's lag now, as LagReader.lag does."""
        return await self._lag.lag()

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
        """As the function reached()."""
        return await reached(self.lag, lag, waiting)

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
