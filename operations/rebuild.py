"""Rebuild: rows, states and cache made anew from the log, beside the pipeline, and put in the place of the live ones when asked.

    start    folds every lane's history into the tables of a shadow schema, states into a RocksDB on this
             machine
    diff     compares them with the live rows, while workers run
    switch   with workers kept out: states that differ go to the changelog, the shadow's partitions take the
             live ones' place, and cache entries that say something else are renewed

Nothing is published, and nothing live is written before switch. Each can be killed at any moment and run again.
"""

from __future__ import annotations

import asyncio
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import asyncpg
import msgspec
import redis.asyncio
from aiokafka import TopicPartition

from contracts import ids
from contracts.strict_json import read_foreign
from domain.deadlines import next_due
from errors import OrdersError
from operations.changelog import STALE, decode, read_changelog, same, version, write_states
from operations.differences import Differences
from operations.differences import compare as compare_rows
from operations.grouplock import GroupLock
from operations.history import committed, project
from operations.postgres import compare, ddl, shadow
from operations.postgres.shadow import Shadow
from operations.replay import LocalStates, Progress, Refold, rules_of
from operations.servers import require
from settings import Settings
from sinks import migrate
from sinks.postgres import PostgresSink
from sinks.redis import TRACKED, RedisSink
from sinks.rows import CacheEntry
from streams.folder import BatchOutput
from streams.lag import LagReader
from streams.lanes import lanes
from tables import codec

STATES_AT_ONCE: Final = 2_000
KEYS_AT_ONCE: Final = 500
Say = Callable[[str], None]


class NotReady(OrdersError):
    """There is no shadow that could be used. The message says why."""

    remedy = "run orders rebuild start, which begins again"


class BrokenReference(OrdersError):
    """An enforced reference doesn't hold for the rebuilt rows, so they can't go live. Nothing was changed."""

    remedy = "add what is missing, or run orders db unlink"


@dataclass
class Switched:
    """What a switch did. `states`: written to the changelog, `gone` of them taken away; `entries`: cache entries renewed or taken away."""

    before: str
    states: int = 0
    gone: int = 0
    entries: int = 0
    records: int = 0


def folder_of(settings: Settings, made: Shadow) -> Path:
    """Where the states of a shadow are on this machine."""
    return settings.data / ".rebuild" / made.id


class Rebuild:
    """A shadow in use: nobody else works on it. `made`: what it is."""

    def __init__(self, settings: Settings, made: Shadow, connection: ddl.Connection, states: LocalStates, refold: Refold) -> None:
        self._settings = settings
        self.made = made
        self._connection = connection
        self._states = states
        self._refold = refold

    @property
    def records(self) -> int:
        """Folded so far by this process."""
        return self._refold.records

    async def catch_up(self, progress: Progress = lambda done, whole: None) -> None:
        """Up to what the group has committed now. Raises LogIncomplete, and what the servers raise; run again, it goes on. Blocks."""
        await self._refold.catch_up(await self._refold.lag(), progress)

    async def diff(self, examples: int, progress: Progress, say: Say) -> Differences:
        """The shadow's rows against the live ones. Blocks."""

        async def differ(order_ids: Sequence[str]) -> list[compare.Difference]:
            return await compare.with_schema(self._connection, self.made.schema, order_ids)

        return await compare_rows(self._refold, self._states, self._connection, differ, examples=examples, progress=progress, say=say)

    async def switch(self, lock: GroupLock, patience: float, progress: Progress, say: Say) -> Switched:
        """States, then rows; settle() comes next. The lock must be held, and everything caught up since. Blocks.

        Raises LeaseLost or Stale, LayoutChanged, BrokenReference, ddl.Busy, and what the servers raise; run again, it goes on.
        """
        say("statistics and references of the rebuilt rows")
        try:
            await shadow.prepare(self._connection, self.made)
        except asyncpg.ForeignKeyViolationError as error:
            raise BrokenReference(f"{error.args[0]}: {(error.detail or '').rstrip('.')}") from error
        say("comparing states with the changelog")
        done = Switched("", records=self.records)
        for lane in sorted({lane for _, lane in await self._refold.lag()}):
            states, gone = await self._write_states(lock, lane)
            done.states += states
            done.gone += gone
        say("switching")
        self.made = await shadow.switch(self._connection, self.made, lock.check, patience, say)
        done.before = self.made.schema
        return done

    async def settle(self, lock: GroupLock, cache: bool, say: Say) -> int:
        """What follows once the rows are live: the cache. Returns how many entries changed. Again is harmless. Blocks. It is of no
        use afterwards: the states are gone."""
        entries = 0
        if cache:
            say("renewing the cache")
            entries = await self._renew_cache(lock)
        await shadow.settle(self._connection, self.made)
        self._states.close()  # it would write on in a folder that isn't there any more
        shutil.rmtree(folder_of(self._settings, self.made), ignore_errors=True)
        return entries

    # -- states ------------------------------------------------------------------------------------------------------

    async def _write_states(self, lock: GroupLock, lane: int) -> tuple[int, int]:
        """Write the lane's states that the changelog doesn't have like that: how many, and how many were only taken away."""
        written = gone = 0
        partition = TopicPartition(self._settings.changelog_topic, lane)
        with TemporaryDirectory(prefix="orders-changelog-") as folder:
            live = LocalStates(Path(folder) / "states")
            try:
                await read_changelog(self._refold.reader, partition, 0, live)
                for some in live.states(STATES_AT_ONCE):
                    mine = dict(zip(some, self._states.get(list(some)), strict=True))
                    anew = self._render({key: state for key, state in mine.items() if state is not None})
                    wrong: dict[bytes, tuple[int, bytes | None]] = {}
                    stale = live.get([STALE + key for key in some])
                    for (key, raw), older_last in zip(some.items(), stale, strict=True):
                        state = anew.get(key)
                        if state is None or older_last is not None or not _same(raw, state):
                            wrong[key] = (version(raw), state and self._remembering(key, raw, state))
                    await asyncio.sleep(0)  # the lock's heartbeats
                    gone += sum(state is None for _, state in wrong.values())
                    written += await self._send(lock, lane, wrong)
                for some in self._states.states(STATES_AT_ONCE):
                    here = {key: state for key, state in some.items() if self._refold.lane_of(key) == lane}
                    there = live.get(list(here))
                    await asyncio.sleep(0)
                    missing = self._render({key: here[key] for key, raw in zip(here, there, strict=True) if raw is None})
                    written += await self._send(lock, lane, {key: (0, state) for key, state in missing.items()})
            finally:
                live.close()
        return written, gone

    async def _send(self, lock: GroupLock, lane: int, states: Mapping[bytes, tuple[int, bytes | None]]) -> int:
        if states:
            await write_states(self._settings, lock, lane, states)
        return len(states)

    def _render(self, states: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        return project(self._refold.folder, states).states

    def _remembering(self, raw_id: bytes, live: bytes, anew: bytes) -> bytes:
        """Whether labels were asked for is what the live state says: the rebuilt one only would have asked, and published nothing."""
        was = decode(live)
        if was is None:
            return anew
        order = codec.decode(anew)
        order.labelled, order.labelled_at = was.labelled, was.labelled_at
        order.due = next_due(order, raw_id, self._settings.deadline_policy)
        return codec.encode(order)

    # -- the cache ---------------------------------------------------------------------------------------------------

    async def _renew_cache(self, lock: GroupLock) -> int:
        """Whatever is in Redis and says something else than the states is taken away, and put there anew where its order is known."""
        sink = RedisSink(self._settings.model_copy(update={"redis_timeout": 10.0}))
        client = redis.asyncio.Redis.from_url(
            self._settings.redis.get_secret_value(), socket_timeout=10, socket_connect_timeout=10, encoding_errors="surrogateescape"
        )
        changed = 0
        async with AsyncExitStack() as stack:
            stack.push_async_callback(client.aclose)
            stack.push_async_callback(sink.close)
            for pattern, look in (("order:*", self._summaries), ("tracking:*", self._parcels), ("user:*:orders", self._places)):
                async for keys in _scan(client, pattern):
                    lock.check()
                    number, wrong = await look(client, keys)
                    changed += number
                    entries = [entry for entry in self._entries(wrong).values() if entry is not None]
                    if entries and await sink.put(entries) is None:
                        raise ConnectionError("Redis took no entries; run orders rebuild switch again when it answers")
            # What readers have put beside it is made of the rows that were live.
            async for keys in _scan(client, "rows:*"):
                lock.check()
                changed += await client.delete(*keys)
        return changed

    def _entries(self, order_ids: Sequence[str]) -> dict[str, CacheEntry | None]:
        """What the cache should show, by order; None: nothing. Ids that are none are left out."""
        raw = {order_id: key for order_id in order_ids if (key := _raw(order_id)) is not None}
        found = dict(zip(raw, self._states.get(list(raw.values())), strict=True))
        known = {raw[order_id]: state for order_id, state in found.items() if state is not None}
        entries = {entry.order_id: entry for entry in project(self._refold.folder, known).cache}
        return {order_id: entries.get(order_id) for order_id in raw}

    async def _summaries(self, client: Any, keys: Sequence[str]) -> tuple[int, list[str]]:
        order_ids = [key.removeprefix("order:") for key in keys]
        entries = self._entries(order_ids)
        wrong = []
        for order_id, value in zip(order_ids, await _values(client, keys), strict=True):
            entry = entries.get(order_id)
            if entry is None or value is None or _json(value) != _json(entry.summary):
                wrong.append(order_id)
        if wrong:
            await client.delete(*(f"order:{order_id}" for order_id in wrong))
        right = [entry for order_id in order_ids if (entry := entries.get(order_id)) is not None and order_id not in set(wrong)]
        wrong += await self._untracked(client, right)
        return len(wrong), wrong

    async def _untracked(self, client: Any, entries: Sequence[CacheEntry]) -> list[str]:
        """Orders of which a parcel isn't among those that are there under its tracking number."""
        numbers = list({f"tracking:{number}": None for entry in entries for number, _, _ in entry.tracking})
        there: dict[str, set[tuple[object, object]]] = {}
        for first in range(0, len(numbers), KEYS_AT_ONCE):
            some = numbers[first : first + KEYS_AT_ONCE]
            for key, value in zip(some, await _values(client, some), strict=True):
                if _are_parcels(parcels := _json(value)) and len(parcels) < TRACKED:
                    there[key] = {(each.get("order_id"), each.get("shipment_id")) for each in parcels}

        def missing(entry: CacheEntry) -> bool:
            return any(
                (entry.order_id, parcel) not in there.get(f"tracking:{at}", {(entry.order_id, parcel)}) for at, parcel, _ in entry.tracking
            )

        return [entry.order_id for entry in entries if missing(entry)]

    async def _parcels(self, client: Any, keys: Sequence[str]) -> tuple[int, list[str]]:
        shown = {key: _json(value) for key, value in zip(keys, await _values(client, keys), strict=True)}
        named = {key: [str(each.get("order_id")) for each in parcels] for key, parcels in shown.items() if _are_parcels(parcels)}
        entries = self._entries(sorted({order_id for order_ids in named.values() for order_id in order_ids}))
        wrong = []
        for key, parcels in shown.items():
            if key not in named:
                wrong.append(key)
                continue
            number = key.removeprefix("tracking:")
            for order_id, parcel in zip(named[key], parcels, strict=True):
                entry = entries.get(order_id)
                right = () if entry is None else (_json(value) for at, _, value in entry.tracking if at == number)
                if parcel not in right or parcels.count(parcel) > 1:
                    wrong.append(key)
                    break
        if wrong:
            await client.delete(*wrong)
        return len(wrong), sorted({order_id for key in wrong for order_id in named.get(key, ())})

    async def _places(self, client: Any, keys: Sequence[str]) -> tuple[int, list[str]]:
        count, concerned = 0, []
        for key in keys:
            if await client.type(key) not in ("zset", b"zset"):
                count += await client.delete(key)
                continue
            members = {member.decode(): score for member, score in await client.zrange(key, 0, -1, withscores=True)}
            entries = self._entries(list(members))
            wrong = [
                member
                for member, score in members.items()
                if (entry := entries.get(member)) is None or f"user:{entry.user_id}:orders" != key or entry.created_ms != score
            ]
            if wrong:
                await client.zrem(key, *wrong)
                count += len(wrong)
                concerned += wrong
        return count, concerned


# -- the steps, each as a command runs it --------------------------------------------------------------------------


async def start(settings: Settings, schema: str, progress: Progress, step: Say, say: Say) -> tuple[int, float]:
    """Fold into the shadow up to what the group has committed; returns how many records, and in how many seconds. Blocks.

    `step` is told what is at work, `say` what a person should know. Raises as started() and Rebuild.catch_up().
    """
    async with started(settings, schema, say) as shadowed:
        begun = time.monotonic()
        step("folding")
        await shadowed.catch_up(progress)
        return shadowed.records, time.monotonic() - begun


async def diff(settings: Settings, schema: str, examples: int, progress: Progress, step: Say) -> Differences:
    """The shadow's rows against the live ones, once it is caught up. Raises as existing(); blocks."""
    async with existing(settings, schema) as shadowed:
        step("catching up")
        await shadowed.catch_up(progress)
        return await shadowed.diff(examples, progress, step)


async def switch(settings: Settings, schema: str, cache: bool, patience: float, progress: Progress, step: Say) -> Switched:
    """Put the shadow in the place of the live rows, or finish a switch that was killed. `cache`: Redis too. Blocks.

    Raises GroupBusy or TopicsMissing before anything is done, LockLost, and as existing() and Rebuild.switch(); run again, it goes on.
    """
    await require(settings)
    async with GroupLock(settings) as lock:
        async with unsettled(settings) as left:
            if left is not None:
                step("catching up")
                await left.catch_up(progress)
                entries = await left.settle(lock, cache, step)
                return Switched(left.made.schema, entries=entries, records=left.records)
        async with existing(settings, schema) as shadowed:
            step("catching up")
            await shadowed.catch_up(progress)
            done = await shadowed.switch(lock, patience, progress, step)
            done.entries = await shadowed.settle(lock, cache, step)
            return done


async def status(settings: Settings) -> list[dict[str, Any]]:
    """All schemas of rebuilds, the one that is being filled first, as JSON has them. Raises what the servers raise; blocks."""
    async with ddl.connect(settings) as connection:
        return [
            {
                "schema": each.schema,
                "state": _state(each),
                "group": each.group,
                "started_at": each.started_at.isoformat(),
                "switched_at": each.switched_at and each.switched_at.isoformat(),
                "left": None if each.before else await left(settings, each),
                "rows": {} if each.before else await shadow.count(connection, each),
            }
            for each in await shadow.listed(connection)
        ]


def _state(each: Shadow) -> str:
    if not each.before:
        return "shadow"
    return "was live" if each.settled else "was live; run orders rebuild switch once more"


async def drop_all(settings: Settings, names: Sequence[str]) -> list[str]:
    """Take these schemas of rebuilds away, or all of them if none is named; returns their names. Raises NotReady, Held; blocks."""
    async with ddl.connect(settings) as connection:
        there = {each.schema: each for each in await shadow.listed(connection)}
        for name in names:
            if name not in there:
                raise NotReady(f"schema {name} is none of orders rebuild's", "orders rebuild status lists them")
        wanted = [there[name] for name in names] if names else list(there.values())
        for each in wanted:
            if each.before and not each.settled:
                raise NotReady(f"the switch that left {each.schema} isn't done", "run orders rebuild switch once more first")
            await shadow.hold(connection, each.schema)
        for each in wanted:
            await drop(settings, connection, each)
        return [each.schema for each in wanted]


# -- beginning, going on, and looking ------------------------------------------------------------------------------


@asynccontextmanager
async def started(settings: Settings, schema: str, say: Say) -> AsyncIterator[Rebuild]:
    """The shadow to be filled: the one that is there if it can go on, else a new one, and it says why. Raises SchemaTaken, Held."""
    await migrate.check(settings)
    async with ddl.connect(settings) as connection:
        await shadow.hold(connection, schema)
        made = await shadow.find(connection, schema)
        if made is not None and made.group != settings.group:
            raise NotReady(f"schema {schema} is of group {made.group}", "choose another name with --schema")
        if made is not None and (reason := await _unusable(settings, connection, made)) is not None:
            say(f"beginning again: {reason}")
            await drop(settings, connection, made)
            made = None
        if made is None:
            made = await shadow.create(connection, schema, uuid.uuid4().hex, settings.group, rules_of(settings))
            LocalStates(folder_of(settings, made)).close()
        async with _opened(settings, connection, made) as rebuild:
            if rebuild is not None:
                yield rebuild
                return
        say("beginning again: the group's offsets were set back")
        await drop(settings, connection, made)
    async with started(settings, schema, say) as rebuild:
        yield rebuild


@asynccontextmanager
async def existing(settings: Settings, schema: str) -> AsyncIterator[Rebuild]:
    """The shadow that is there. Raises NotReady, SchemaTaken, Held."""
    await migrate.check(settings)
    async with ddl.connect(settings) as connection:
        await shadow.hold(connection, schema)
        made = await shadow.find(connection, schema)
        if made is None:
            raise NotReady(f"there is no schema {schema}", "run orders rebuild start")
        if (reason := await _unusable(settings, connection, made)) is not None:
            raise NotReady(f"schema {schema} is of no use any more, {reason}")
        async with _opened(settings, connection, made) as rebuild:
            if rebuild is None:
                raise NotReady(f"schema {schema} is ahead, the group's offsets were set back")
            yield rebuild


@asynccontextmanager
async def unsettled(settings: Settings) -> AsyncIterator[Rebuild | None]:
    """What a switch that was killed has left to do: its rows are live, its cache isn't renewed. None: nothing is left."""
    async with ddl.connect(settings) as connection:
        left = [each for each in await shadow.listed(connection) if each.before and not each.settled and each.group == settings.group]
        if not left:
            yield None
            return
        made = left[-1]
        await shadow.hold(connection, made.schema)
        states = LocalStates(folder_of(settings, made))  # all of it is folded again if another machine has them
        try:
            async with Refold(settings, states) as refold:
                yield Rebuild(settings, made, connection, states, refold)
        finally:
            states.close()


@asynccontextmanager
async def _opened(settings: Settings, connection: ddl.Connection, made: Shadow) -> AsyncIterator[Rebuild | None]:
    """None if it has folded more than is committed."""
    async with AsyncExitStack() as stack:
        states = LocalStates(folder_of(settings, made))
        stack.callback(states.close)
        sink = PostgresSink(settings, made.schema)
        stack.push_async_callback(sink.close)
        await sink.start()

        async def take(lane: int, work: BatchOutput) -> None:
            if len(work.rows):
                await sink.write(work.rows)

        refold = await stack.enter_async_context(Refold(settings, states, take))
        if refold.ahead(await refold.lag()):
            states.close()
            yield None
        else:
            yield Rebuild(settings, made, connection, states, refold)


async def _unusable(settings: Settings, connection: ddl.Connection, made: Shadow) -> str | None:
    """Why a shadow can't be gone on with."""
    if made.group != settings.group:
        return f"it is of group {made.group}"
    if made.rules != rules_of(settings):
        return "it was folded by other rules or deadlines than this program's"
    if await shadow.layout(connection) != made.layout:
        return "the live tables have other columns, partitions or indexes now"
    if not folder_of(settings, made).exists():
        return f"its states aren't in {folder_of(settings, made)}"
    return None


async def left(settings: Settings, made: Shadow) -> int | None:
    """Records that the group has committed and the shadow doesn't have yet; None if its states aren't here, or are being written."""
    if not (path := folder_of(settings, made)).exists():
        return None
    try:
        states = LocalStates(path, read_only=True)
    except Exception:  # rocksdict's only kind
        return None
    try:
        async with LagReader(settings) as reader:
            ends = committed(await reader.lag(), (await lanes(settings)).former)
        return sum(max(0, end - states.positions(lane).get(log, 0)) for lane, of in ends.items() for log, end in of.items())
    finally:
        states.close()


async def drop(settings: Settings, connection: ddl.Connection, made: Shadow) -> None:
    """Take a schema of ours away, and its states. Again is harmless."""
    shutil.rmtree(folder_of(settings, made), ignore_errors=True)
    await shadow.drop(connection, made)


# -- small things ---------------------------------------------------------------------------------------------------


def _same(live: bytes, anew: bytes) -> bool:
    if live == anew:
        return True
    order = decode(live)
    return order is not None and same(order, codec.decode(anew))


async def _scan(client: Any, pattern: str) -> AsyncIterator[list[str]]:
    cursor = 0
    while True:
        cursor, keys = await client.scan(cursor, match=pattern, count=KEYS_AT_ONCE)
        if keys:
            yield [key.decode("utf-8", "surrogateescape") for key in keys]
        if not cursor:
            return


async def _values(client: Any, keys: Sequence[str]) -> list[bytes | None]:
    """Of strings; None for anything else."""
    found: list[bytes | None] = await client.mget(keys)
    return found


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
