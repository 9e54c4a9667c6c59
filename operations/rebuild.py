"""Rebuild rows, states and cache from the log beside the pipeline, and replace the live
ones with them on request.

    start    replays every lane's log into the tables of a shadow schema, and its states into a RocksDB on
             this machine
    diff     compares these rows with the live ones while workers run
    switch   with the group locked, writes the states that differ to the changelog, exchanges the live
             partitions for the shadow's, and renews the cache entries that differ

Nothing is published, and nothing live is written before switch.
Each step may be killed at any moment and run again.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg
import msgspec
from aiokafka import TopicPartition

from contracts import ids
from contracts.strict_json import read_foreign
from domain.deadlines import next_due
from errors import OrdersError
from operations.changelog import STALE, decode, read_changelog, same, version, write_states
from operations.differences import Differences, compared_in_ranges, estimate
from operations.differences import compare as compare_rows
from operations.grouplock import GroupLock
from operations.history import HistoryReader, committed, project
from operations.postgres import compare, ddl, shadow
from operations.postgres.shadow import Shadow
from operations.replay import LocalStates, Parts, Replay, lane_of, reached, rules_of
from operations.servers import require
from operations.shares import (
    Done,
    Log,
    Progress,
    Result,
    Say,
    Share,
    Tell,
    look,
    share_out,
    worth_processes,
)
from settings import Settings
from sinks import migrate
from sinks.clients import open_client
from sinks.postgres import PostgresSink
from sinks.redis import TRACKED, RedisSink
from sinks.rows import CacheEntry
from streams.folder import BatchFolder, BatchOutput
from streams.lag import Lag, LagReader
from tables import codec

STATES_AT_ONCE: Final = 2_000
KEYS_AT_ONCE: Final = 500


class _Behind:
    """What a comparison asks of a replay."""

    def __init__(self, rebuild: Rebuild, settings: Settings, stack: AsyncExitStack) -> None:
        self._rebuild = rebuild
        self._settings = settings
        self._stack = stack
        self._reader: LagReader | None = None

    async def lag(self) -> Lag:
        """Return the group's lag now."""
        if self._reader is None:  # most often nothing differs, and nobody asks
            self._reader = await self._stack.enter_async_context(LagReader(self._settings))
        return await self._reader.lag()

    async def reached(self, lag: Lag) -> tuple[Lag, bool]:
        """Wait for the group, as operations.replay.reached does."""
        return await reached(self.lag, lag)

    async def catch_up(self, lag: Lag) -> None:
        """Replay what is committed by now: at least what is in `lag`."""
        await self._rebuild.catch_up(lambda done, total: None)


class NotReady(OrdersError):
    """Raised when there is no shadow that can be used. The message says why."""

    remedy = "run orders rebuild start, which begins again"


class BrokenReference(OrdersError):
    """Raised when an enforced reference doesn't hold for the rebuilt rows. Nothing was changed."""

    remedy = "add what is missing, or run orders db unlink"


@dataclass
class Switched:
    """The result of a switch."""

    before: str
    """Schema that now holds what was live."""
    states: int = 0
    """States that were written to the changelog."""
    deleted: int = 0
    """Those of them that were deleted, because the log has no such order."""
    entries: int = 0
    """Cache entries that were renewed or deleted."""
    records: int = 0
    """Records that were replayed first."""


def folder_of(settings: Settings, target: Shadow) -> Path:
    """Return the folder on this machine that holds the states of a shadow."""
    return settings.data / ".rebuild" / target.id


@dataclass(frozen=True, slots=True)
class _ShareWork:
    """The lanes of a share caught up with. Its result is the number of records that were replayed.

    Without a `schema` only the states are written.
    """

    settings: Settings
    schema: str | None
    share: Share
    states: Path

    async def __call__(self, tell: Tell) -> None:
        async with AsyncExitStack() as stack:
            states = LocalStates(self.states)
            stack.callback(states.close)
            sink = None
            if self.schema is not None:
                sink = PostgresSink(self.settings, self.schema)
                stack.push_async_callback(sink.close)
                await sink.start()

            async def write_rows(lane: int, output: BatchOutput) -> None:
                if sink is not None and len(output.rows):
                    await sink.write(output.rows)

            replay = await stack.enter_async_context(Replay(self.settings, states, write_rows, self.share))
            await replay.catch_up(await replay.lag(), lambda done, total: tell(Done(done, total)))
            tell(Result(replay.records))


class Rebuild:
    """A shadow that this program works on; nobody else does at the same time. `target` describes it."""

    def __init__(
        self, settings: Settings, target: Shadow, connection: ddl.Connection, parts: Parts, behind: int | None
    ) -> None:
        """`behind`: how many committed records it hasn't replayed; None: nobody knows."""
        self._settings = settings
        self.target = target
        self._connection = connection
        self._states = parts
        self._behind = behind
        self._apart = worth_processes(behind)
        self._folder = BatchFolder(settings)
        self._reader: HistoryReader
        self.records = 0
        """Records that were replayed."""

    async def catch_up(self, progress: Progress) -> None:
        """Replay what the group has committed since. Blocks. The first time, it does nothing if there was
        nothing when the shadow was opened.

        Raises LogIncomplete, and what the servers raise; run again, it goes on.
        """
        behind, self._behind = self._behind, None
        if behind == 0:
            return
        schema = None if self.target.before else self.target.schema
        work = [
            _ShareWork(self._settings, schema, share, states) for share, states in self._states.shares.items()
        ]
        self.records += sum(await share_out(work, progress, lambda what: None, apart=self._apart))
        self._apart = False

    async def diff(self, examples: int, progress: Progress, say: Say) -> Differences:
        """Compare the shadow's rows with the live ones, and return the differences with `examples` of them.

        Blocks. Raises as catch_up() does.
        """
        schema = self.target.schema
        async with AsyncExitStack() as stack:
            return await compare_rows(
                _Behind(self, self._settings, stack),
                compared_in_ranges(self._states, self._connection, schema),
                partial(compare.with_schema, self._connection, schema),
                total=await estimate(self._connection),
                examples=examples,
                progress=progress,
                say=say,
            )

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Open its states, for switch() and settle(). Raises KafkaConnectionError."""
        self._states.open()
        try:
            async with HistoryReader(self._settings) as self._reader:
                yield
        finally:
            self._states.close()

    async def switch(self, lock: GroupLock, lock_timeout: float, progress: Progress, say: Say) -> Switched:
        """Write the states that differ, then exchange the rows; settle() comes next. Blocks.

        Only within reading(). The lock must be held, and catch_up() must have run since it was taken.
        `lock_timeout`: seconds to ask for locks on tables.

        Raises LeaseLost or Stale, LayoutChanged, BrokenReference, ddl.Busy, and what the servers raise; run
        again, it goes on.
        """
        say("statistics and references of the rebuilt rows")
        try:
            await shadow.prepare(self._connection, self.target)
        except asyncpg.ForeignKeyViolationError as error:
            raise BrokenReference(f"{error.args[0]}: {(error.detail or '').rstrip('.')}") from error
        say("comparing states with the changelog")
        done = Switched("", records=self.records)
        for lane in range(self._settings.partitions):
            written, deleted = await self._write_states(lock, lane)
            done.states += written
            done.deleted += deleted
        say("switching")
        self.target = await shadow.switch(self._connection, self.target, lock.check, lock_timeout, say)
        done.before = self.target.schema
        return done

    async def settle(self, lock: GroupLock, cache: bool, say: Say) -> int:
        """Renew the cache after a switch, delete the shadow's states, and return how many cache entries
        changed. Blocks.

        Only within reading(). It may be run again, from a new process: this object can't be used any more.
        """
        entries = 0
        if cache:
            say("renewing the cache")
            entries = await self._renew_cache(lock)
        await shadow.settle(self._connection, self.target)
        self._states.close()  # RocksDB would go on writing in the deleted folder
        shutil.rmtree(folder_of(self._settings, self.target), ignore_errors=True)
        return entries

    # -- states ----------------------------------------------------------------------------------------------

    async def _write_states(self, lock: GroupLock, lane: int) -> tuple[int, int]:
        """Write those of the lane's states that the changelog has otherwise.

        Returns how many, and how many were deleted.
        """
        written = deleted = 0
        partition = TopicPartition(self._settings.changelog_topic, lane)
        with TemporaryDirectory(prefix="orders-changelog-") as folder:
            live = LocalStates(Path(folder) / "states")
            try:
                await read_changelog(self._reader, partition, 0, live)
                for actual in live.states(STATES_AT_ONCE):
                    replayed = dict(zip(actual, self._states.get(list(actual)), strict=True))
                    expected = self._project(
                        {key: state for key, state in replayed.items() if state is not None}
                    )
                    wrong: dict[bytes, tuple[int, bytes | None]] = {}
                    stale = live.get([STALE + key for key in actual])
                    for (key, raw), older_last in zip(actual.items(), stale, strict=True):
                        state = expected.get(key)
                        if state is None or older_last is not None or not _same(raw, state):
                            wrong[key] = (version(raw), state and self._with_labels(key, raw, state))
                    await asyncio.sleep(0)  # the lock's heartbeats
                    deleted += sum(state is None for _, state in wrong.values())
                    written += await self._send(lock, lane, wrong)
                for replayed_states in self._states.of_lane(lane).states(STATES_AT_ONCE):
                    of_lane = {
                        key: state
                        for key, state in replayed_states.items()
                        if lane_of(self._settings, key) == lane
                    }
                    actual_states = live.get(list(of_lane))
                    await asyncio.sleep(0)
                    missing = {
                        key: of_lane[key]
                        for key, raw in zip(of_lane, actual_states, strict=True)
                        if raw is None
                    }
                    written += await self._send(
                        lock, lane, {key: (0, raw) for key, raw in self._project(missing).items()}
                    )
            finally:
                live.close()
        return written, deleted

    async def _send(
        self, lock: GroupLock, lane: int, states: Mapping[bytes, tuple[int, bytes | None]]
    ) -> int:
        if states:
            await write_states(self._settings, lock, lane, states)
        return len(states)

    def _project(self, states: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return project(self._folder, states).states

    def _with_labels(self, raw_id: bytes, actual: bytes, expected: bytes) -> bytes:
        """Return the expected state with what the actual one says of labels: a replay has published no
        request for them."""
        before = decode(actual)
        if before is None:
            return expected
        order = codec.decode(expected)
        order.labelled, order.labelled_at = before.labelled, before.labelled_at
        order.due = next_due(order, raw_id, self._settings.deadline_policy)
        return codec.encode(order)

    # -- the cache -------------------------------------------------------------------------------------------

    async def _renew_cache(self, lock: GroupLock) -> int:
        """Delete what is in Redis and differs from the states, and write it again
        where its order is known.
        """
        sink = RedisSink(self._settings.model_copy(update={"redis_timeout": 10.0}))
        client = open_client(self._settings, timeout=10, encoding_errors="surrogateescape")
        changed = 0
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.aclose)
            stack.push_async_callback(sink.close)
            for pattern, renew in (
                ("order:*", self._renew_summaries),
                ("tracking:*", self._renew_parcels),
                ("user:*:orders", self._renew_recent),
            ):
                async for keys in _scan(client, self._key(pattern)):
                    lock.check()
                    count, wrong = await renew(client, keys)
                    changed += count
                    entries = [entry for entry in self._entries(wrong).values() if entry is not None]
                    if entries and await sink.put(entries) is None:
                        raise ConnectionError(
                            "Redis took no entries; run orders rebuild switch again when it answers"
                        )
            # Readers have cached these from the rows that were live before.
            async for keys in _scan(client, self._key("rows:*")):
                lock.check()
                changed += await client.delete(*keys)
        return changed

    def _key(self, name: str) -> str:
        return f"{self._settings.redis_prefix}{name}"

    def _entries(self, order_ids: Sequence[str]) -> dict[str, CacheEntry | None]:
        """Return the entry that the cache should have of each order, None for an unknown one; what is no
        order id is left out."""
        raw_ids = {order_id: raw_id for order_id in order_ids if (raw_id := _raw(order_id)) is not None}
        replayed = zip(raw_ids.values(), self._states.get(list(raw_ids.values())), strict=True)
        states = {raw_id: state for raw_id, state in replayed if state is not None}
        entries = {entry.order_id: entry for entry in project(self._folder, states).cache}
        return {order_id: entries.get(order_id) for order_id in raw_ids}

    async def _renew_summaries(self, client: Any, keys: Sequence[str]) -> tuple[int, list[str]]:
        order_ids = [key.removeprefix(self._key("order:")) for key in keys]
        entries = self._entries(order_ids)
        wrong = []
        for order_id, value in zip(order_ids, await _values(client, keys), strict=True):
            entry = entries.get(order_id)
            if entry is None or value is None or _json(value) != _json(entry.summary):
                wrong.append(order_id)
        if wrong:
            await client.delete(*(self._key(f"order:{order_id}") for order_id in wrong))
        right = [
            entry
            for order_id in order_ids
            if (entry := entries.get(order_id)) is not None and order_id not in set(wrong)
        ]
        wrong += await self._untracked(client, right)
        return len(wrong), wrong

    async def _untracked(self, client: Any, entries: Sequence[CacheEntry]) -> list[str]:
        """Return the orders with a parcel that is missing among those under its tracking number."""
        numbers = list(
            {self._key(f"tracking:{number}"): None for entry in entries for number, _, _ in entry.tracking}
        )
        tracked: dict[str, set[tuple[object, object]]] = {}
        for first in range(0, len(numbers), KEYS_AT_ONCE):
            keys = numbers[first : first + KEYS_AT_ONCE]
            for key, value in zip(keys, await _values(client, keys), strict=True):
                if _are_parcels(parcels := _json(value)) and len(parcels) < TRACKED:
                    tracked[key] = {(each.get("order_id"), each.get("shipment_id")) for each in parcels}

        def missing(entry: CacheEntry) -> bool:
            return any(
                (entry.order_id, parcel)
                not in tracked.get(self._key(f"tracking:{at}"), {(entry.order_id, parcel)})
                for at, parcel, _ in entry.tracking
            )

        return [entry.order_id for entry in entries if missing(entry)]

    async def _renew_parcels(self, client: Any, keys: Sequence[str]) -> tuple[int, list[str]]:
        shown = {key: _json(value) for key, value in zip(keys, await _values(client, keys), strict=True)}
        named = {
            key: [str(each.get("order_id")) for each in parcels]
            for key, parcels in shown.items()
            if _are_parcels(parcels)
        }
        entries = self._entries(sorted({order_id for order_ids in named.values() for order_id in order_ids}))
        wrong = []
        for key, parcels in shown.items():
            if key not in named:
                wrong.append(key)
                continue
            number = key.removeprefix(self._key("tracking:"))
            for order_id, parcel in zip(named[key], parcels, strict=True):
                entry = entries.get(order_id)
                right = (
                    () if entry is None else (_json(value) for at, _, value in entry.tracking if at == number)
                )
                if parcel not in right or parcels.count(parcel) > 1:
                    wrong.append(key)
                    break
        if wrong:
            await client.delete(*wrong)
        return len(wrong), sorted({order_id for key in wrong for order_id in named.get(key, ())})

    async def _renew_recent(self, client: Any, keys: Sequence[str]) -> tuple[int, list[str]]:
        count, affected = 0, []
        for key in keys:
            if await client.type(key) not in ("zset", b"zset"):
                count += await client.delete(key)
                continue
            members = {
                member.decode(): score for member, score in await client.zrange(key, 0, -1, withscores=True)
            }
            entries = self._entries(list(members))
            wrong = [
                member
                for member, score in members.items()
                if (entry := entries.get(member)) is None
                or self._key(f"user:{entry.user_id}:orders") != key
                or entry.created_ms != score
            ]
            if wrong:
                await client.zrem(key, *wrong)
                count += len(wrong)
                affected += wrong
        return count, affected


# -- the steps, each as a command runs it --------------------------------------------------------------------


async def start(
    settings: Settings, schema: str, progress: Progress, step: Say, say: Say
) -> tuple[int, float]:
    """Replay into the shadow up to what the group has committed.

    Returns the number of records and the seconds. Blocks.

    `step` is called with the name of each step, `say` with what a person should know. Raises what started()
    and Rebuild.catch_up() raise.
    """
    async with started(settings, schema, say) as rebuild:
        begun = time.monotonic()
        step("replaying")
        await rebuild.catch_up(progress)
        return rebuild.records, time.monotonic() - begun


async def diff(settings: Settings, schema: str, examples: int, progress: Progress, step: Say) -> Differences:
    """Catch up, and compare the shadow's rows with the live ones. Blocks. Raises what existing() raises."""
    async with existing(settings, schema) as rebuild:
        step("catching up")
        await rebuild.catch_up(progress)
        return await rebuild.diff(examples, progress, step)


async def switch(
    settings: Settings, schema: str, cache: bool, lock_timeout: float, progress: Progress, step: Say
) -> Switched:
    """Replace the live rows with the shadow's, or finish a switch that was killed.

    Without `cache` Redis is left out. Blocks.

    Raises GroupBusy or TopicsMissing before anything is done, LockLost, and what existing() and
    Rebuild.switch() raise; run again, it goes on.
    """
    ddl.require_session(settings, "orders rebuild switch")
    await require(settings)
    # What can't be done is said before anybody stops workers for it.
    async with unsettled(settings) as interrupted:
        pass
    if interrupted is None:
        async with existing(settings, schema):
            pass
    async with GroupLock(settings) as lock:
        async with unsettled(settings) as interrupted:
            if interrupted is not None:
                step("catching up")
                await interrupted.catch_up(progress)
                async with interrupted.reading():
                    entries = await interrupted.settle(lock, cache, step)
                return Switched(interrupted.target.schema, entries=entries, records=interrupted.records)
        async with existing(settings, schema) as rebuild:
            step("catching up")
            await rebuild.catch_up(progress)
            async with rebuild.reading():
                switched = await rebuild.switch(lock, lock_timeout, progress, step)
                switched.entries = await rebuild.settle(lock, cache, step)
            return switched


async def status(settings: Settings) -> list[dict[str, Any]]:
    """Return all schemas of rebuilds for JSON, the shadow first. Blocks. Raises what the servers raise."""
    async with ddl.connect(settings) as connection:
        return [
            {
                "schema": each.schema,
                "state": _state(each),
                "group": each.group,
                "started_at": each.started_at.isoformat(),
                "switched_at": each.switched_at and each.switched_at.isoformat(),
                "lag": None if each.before else await lag(settings, each),
                "rows": {} if each.before else await shadow.count(connection, each),
            }
            for each in await shadow.listed(connection)
        ]


def _state(each: Shadow) -> str:
    if not each.before:
        return "shadow"
    return "was live" if each.settled else "was live; run orders rebuild switch once more"


async def drop_all(settings: Settings, names: Sequence[str]) -> list[str]:
    """Delete these schemas of rebuilds, all of them if none is named, and return their names.

    Blocks. Raises NotReady, InUse.
    """
    ddl.require_session(settings, "orders rebuild drop")
    async with ddl.connect(settings) as connection:
        listed = {each.schema: each for each in await shadow.listed(connection)}
        for name in names:
            if name not in listed:
                raise NotReady(
                    f"schema {name} is none of orders rebuild's", "orders rebuild status lists them"
                )
        shadows = [listed[name] for name in names] if names else list(listed.values())
        for each in shadows:
            if each.before and not each.settled:
                raise NotReady(
                    f"the switch that left {each.schema} isn't done",
                    "run orders rebuild switch once more first",
                )
            await shadow.hold(connection, each.schema)
        for each in shadows:
            await drop(settings, connection, each)
        return [each.schema for each in shadows]


# -- beginning, going on, and looking ------------------------------------------------------------------------


@asynccontextmanager
async def started(settings: Settings, schema: str, say: Say) -> AsyncIterator[Rebuild]:
    """Open the shadow that can go on, else create a new one and `say` why.

    Raises SchemaTaken, InUse, NotReady.
    """
    ddl.require_session(settings, "orders rebuild start")
    await migrate.check(settings)
    async with ddl.connect(settings) as connection:
        await shadow.hold(connection, schema)
        target = await shadow.find(connection, schema)
        if target is not None and target.group != settings.group:
            raise NotReady(f"schema {schema} is of group {target.group}", "choose another name with --schema")
        if target is not None and (reason := await _unusable(settings, connection, target)) is not None:
            say(f"beginning again: {reason}")
            await drop(settings, connection, target)
            target = None
        log = await look(settings)
        if target is None:
            target = await shadow.create(
                connection, schema, uuid.uuid4().hex, settings.group, rules_of(settings)
            )
            Parts.create(folder_of(settings, target), log.processes)
        parts = Parts(folder_of(settings, target))
        behind = _behind(parts, log)
        if behind is not None:
            yield Rebuild(settings, target, connection, parts, behind)
            return
        say("beginning again: the group's offsets were set back")
        await drop(settings, connection, target)
    async with started(settings, schema, say) as rebuild:
        yield rebuild


@asynccontextmanager
async def existing(settings: Settings, schema: str) -> AsyncIterator[Rebuild]:
    """Open the shadow that is there. Raises NotReady, SchemaTaken, InUse."""
    ddl.require_session(settings, "orders rebuild")
    await migrate.check(settings)
    async with ddl.connect(settings) as connection:
        await shadow.hold(connection, schema)
        target = await shadow.find(connection, schema)
        if target is None:
            raise NotReady(f"there is no schema {schema}", "run orders rebuild start")
        if (reason := await _unusable(settings, connection, target)) is not None:
            raise NotReady(f"schema {schema} is of no use any more, {reason}")
        parts = Parts(folder_of(settings, target))
        behind = _behind(parts, await look(settings))
        if behind is None:
            raise NotReady(f"schema {schema} is ahead, the group's offsets were set back")
        yield Rebuild(settings, target, connection, parts, behind)


@asynccontextmanager
async def unsettled(settings: Settings) -> AsyncIterator[Rebuild | None]:
    """Open the shadow of a switch that was killed after its rows went live, to renew the cache; None if there
    is none."""
    async with ddl.connect(settings) as connection:
        shadows = [
            each
            for each in await shadow.listed(connection)
            if each.before and not each.settled and each.group == settings.group
        ]
        if not shadows:
            yield None
            return
        target = shadows[-1]
        await shadow.hold(connection, target.schema)
        # Another machine may have its states: then all is replayed again.
        yield Rebuild(settings, target, connection, Parts(folder_of(settings, target)), None)


def _behind(parts: Parts, log: Log, *, read_only: bool = False) -> int | None:
    """Return how many committed records the states haven't replayed; None if they go beyond what is
    committed, because the group's offsets were set back."""
    behind = 0
    try:
        parts.open(read_only=read_only)
        for lane, ends in committed(log.lag, log.former).items():
            positions = parts.positions(lane)
            if any(position > ends.get(name, 0) for name, position in positions.items()):
                return None
            behind += sum(end - positions.get(name, 0) for name, end in ends.items())
        return behind
    finally:
        parts.close()


async def _unusable(settings: Settings, connection: ddl.Connection, target: Shadow) -> str | None:
    """Return why a shadow can't be used any more; None if it can."""
    if target.group != settings.group:
        return f"it is of group {target.group}"
    if target.rules != rules_of(settings):
        return "it was folded by other rules or deadlines than this program's"
    if await shadow.layout(connection) != target.layout:
        return "the live tables have other columns, partitions or indexes now"
    if not folder_of(settings, target).exists():
        return f"its states aren't in {folder_of(settings, target)}"
    return None


async def lag(settings: Settings, target: Shadow) -> int | None:
    """Return how many committed records the shadow hasn't replayed.

    None if its states aren't on this machine, or another process is writing them. Blocks.
    """
    if not (path := folder_of(settings, target)).exists():
        return None
    log = await look(settings)
    try:
        return _behind(Parts(path), log, read_only=True) or 0
    except Exception:  # rocksdict's only kind
        return None


async def drop(settings: Settings, connection: ddl.Connection, target: Shadow) -> None:
    """Delete a schema of ours and its states. Again is harmless. Blocks."""
    shutil.rmtree(folder_of(settings, target), ignore_errors=True)
    await shadow.drop(connection, target)


# -- small things --------------------------------------------------------------------------------------------


def _same(actual: bytes, expected: bytes) -> bool:
    if actual == expected:
        return True
    order = decode(actual)
    return order is not None and same(order, codec.decode(expected))


async def _scan(client: Any, pattern: str) -> AsyncIterator[list[str]]:
    cursor = 0
    while True:
        cursor, keys = await client.scan(cursor, match=pattern, count=KEYS_AT_ONCE)
        if keys:
            yield [key.decode("utf-8", "surrogateescape") for key in keys]
        if not cursor:
            return


async def _values(client: Any, keys: Sequence[str]) -> list[bytes | None]:
    """Return the strings under these keys, None where there is none or something else."""
    values: list[bytes | None] = await client.mget(keys)
    return values


def _json(value: bytes | None) -> Any:
    return read_foreign(msgspec.json.decode, value)


def _are_parcels(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _raw(order_id: str) -> bytes | None:
    try:
        raw = uuid.UUID(order_id).bytes
    except ValueError:
        return None
    return raw if ids.text(raw) == order_id else None
