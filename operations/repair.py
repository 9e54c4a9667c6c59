"""Repair orders whose changelog state, rows or summary aren't what their log says, by folding the log again.

The log of the input topics is the truth. A lane's records about an order, up to what the group has committed,
go through the pipeline's own fold once more, and the result replaces what is there. Nothing else is written:
no derived event, no decision, no dead letter, no offset.

A repair needs a group without workers: operations.grouplock keeps them out, and every write checks the lock
first.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field, replace
from itertools import islice
from types import TracebackType
from typing import Any, Final, Self
from uuid import UUID

import msgspec
import redis.asyncio
from aiokafka import TopicPartition
from redis.exceptions import ResponseError

from audit.findings import Finding, Report
from audit.scope import Target
from contracts.strict_json import read_foreign
from errors import OrdersError
from operations.auditing import Progress, audit, target_of
from operations.changelog import version, write_states
from operations.grouplock import GroupLock
from operations.history import FOLD_RECORDS, HistoryReader, at_hand, committed, fold, project
from operations.servers import require
from settings import Settings
from sinks.clients import open_client
from sinks.postgres import PostgresSink
from sinks.redis import RedisSink
from sinks.rows import CacheEntry, RowBatch
from streams.dead_letters import Record
from streams.folder import BatchFolder
from streams.lag import LagReader
from streams.lanes import lanes
from streams.partitioner import partition_of

log = logging.getLogger(__name__)

ORDERS_A_PASS: Final = 20_000
"""Orders of one lane whose records are held in memory at once. Each pass reads the lane's log again."""
STATE_CHECKS: Final = ("changelog", "versions", "tables")
"""Checks whose findings a new record in the changelog mends; a worker's local table takes it over at its next
start."""
MENDED: Final = (*STATE_CHECKS, "rows", "cache")


class CacheRefused(OrdersError):
    """Redis didn't take what was to be written."""

    remedy = "run orders repair again when it answers"


@dataclass(slots=True)
class Damage:
    """What is broken of one order. `keys` are the Redis keys that hold something wrong about it."""

    state: bool = False
    rows: bool = False
    keys: set[str] = field(default_factory=set)

    @property
    def stores(self) -> list[str]:
        """Names of the broken stores."""
        return [
            name
            for name, wrong in (("changelog", self.state), ("rows", self.rows), ("cache", bool(self.keys)))
            if wrong
        ]


class Repairer:
    """Repairs orders. Use it as `async with Repairer(settings, lock) as repairer`, once the group is locked.

    Entering raises what asyncpg, redis and aiokafka raise when a server isn't there.
    """

    def __init__(self, settings: Settings, lock: GroupLock, *, cache: bool = True) -> None:
        """Create a repairer. `cache`: whether it writes Redis too."""
        self._settings = settings
        self._lock = lock
        self._stack = AsyncExitStack()
        self._rows = PostgresSink(settings)
        self._redis: redis.asyncio.Redis | None = open_client(settings, timeout=10) if cache else None
        self._cache = RedisSink(settings.model_copy(update={"redis_timeout": 10.0})) if cache else None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._reader = await stack.enter_async_context(HistoryReader(self._settings))
            stack.push_async_callback(self._rows.close)
            await self._rows.start()
            if self._redis is not None and self._cache is not None:
                stack.push_async_callback(self._redis.aclose)
                stack.push_async_callback(self._cache.close)
                await self._redis.ping()
            async with LagReader(self._settings) as reader:
                lag = await reader.lag()
            self._positions = committed(lag, (await lanes(self._settings)).former)
            self._partitions = self._settings.partitions
            self._folder = BatchFolder(self._settings)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def repair(self, damaged: Mapping[str, Damage]) -> dict[str, int]:
        """Repair these orders, by canonical id.

        Returns the version that each has now; 0 for an order that the log doesn't know.

        Blocks while the lanes' logs are read. Raises LogIncomplete before anything is written, LeaseLost when
        the lock is lost, and what the servers raise; what was written until then is right, and doing it again
        does the rest.
        """
        by_lane: dict[int, list[str]] = {}
        for order_id in sorted(damaged):
            by_lane.setdefault(partition_of(order_id.encode(), self._partitions), []).append(order_id)
        await self._reader.require({}, {lane: self._positions[lane] for lane in by_lane})
        versions: dict[str, int] = {}
        for lane, order_ids in sorted(by_lane.items()):
            remaining = iter(order_ids)
            while some := list(islice(remaining, ORDERS_A_PASS)):
                versions |= await self._repair_lane(lane, {order_id: damaged[order_id] for order_id in some})
        return versions

    async def drop_keys(self, keys: Iterable[str]) -> None:
        """Delete cache entries that belong to no order. Readers refill what they need."""
        names = sorted(keys)
        if self._redis is not None and names:
            self._lock.check()
            await self._redis.delete(*map(self._key, names))

    # -- reading and folding ---------------------------------------------------------------------------------

    async def _repair_lane(self, lane: int, damaged: Mapping[str, Damage]) -> dict[str, int]:
        keys = {order_id.encode() for order_id in damaged}
        records: list[Record] = []
        async with aclosing(self._reader.lane({}, self._positions[lane])) as stretches:
            async for stretch in stretches:
                records += [record for record in stretch if record.key in keys]
        states = self._fold(lane, records)
        output = project(self._folder, states)
        await self._write_rows([order_id for order_id, each in damaged.items() if each.rows], output.rows)
        await self._write_states(
            lane, [order_id for order_id, each in damaged.items() if each.state], output.states
        )
        await self._write_cache(
            {order_id: each.keys for order_id, each in damaged.items() if each.keys}, output.cache
        )
        for order_id, each in damaged.items():
            log.info("repaired: order %(order)s, %(in)s", {"order": order_id, "in": ", ".join(each.stores)})
        return {
            order_id: version(states[_raw(order_id)]) if _raw(order_id) in states else 0
            for order_id in damaged
        }

    def _fold(self, lane: int, records: Sequence[Record]) -> dict[bytes, bytes]:
        """Fold these records, and return the states by raw id as the lane would have them."""
        states: dict[bytes, bytes] = {}
        for start in range(0, len(records), FOLD_RECORDS):
            chunk = records[start : start + FOLD_RECORDS]
            for output in fold(self._folder, lane, chunk, at_hand(states)):
                states.update(output.states)
        return states

    # -- writing ---------------------------------------------------------------------------------------------

    async def _write_rows(self, order_ids: Sequence[str], rows: RowBatch) -> None:
        if not order_ids:
            return
        broken = set(order_ids)
        self._lock.check()
        await self._rows.replace(order_ids, rows.of(broken))

    async def _write_states(self, lane: int, order_ids: Sequence[str], states: Mapping[bytes, bytes]) -> None:
        """Append the states. A higher version in the changelog is deleted first: a deletion counts as later
        than all before it."""
        if not order_ids:
            return
        partition = TopicPartition(self._settings.changelog_topic, lane)
        raw_ids = {_raw(order_id) for order_id in order_ids}
        highest: dict[bytes, int] = {}
        end = (await self._reader.ends([partition]))[partition]
        async with aclosing(self._reader.read(partition, 0, end)) as stretches:
            async for records, _ in stretches:
                for record in records:
                    if record.key in raw_ids:
                        highest[record.key] = (
                            0
                            if record.value is None
                            else max(version(record.value), highest.get(record.key, 0))
                        )
        await write_states(
            self._settings,
            self._lock,
            lane,
            {raw_id: (highest.get(raw_id, 0), states.get(raw_id)) for raw_id in sorted(raw_ids)},
        )

    async def _write_cache(self, wrong: Mapping[str, set[str]], entries: Sequence[CacheEntry]) -> None:
        """Delete what is wrong, and write the summary again with its parcels. Other orders' parcels stay."""
        if not wrong or self._redis is None or self._cache is None:
            return
        self._lock.check()
        for order_id, keys in wrong.items():
            for key in keys:
                if key.startswith("user:"):
                    await self._redis.zrem(self._key(key), order_id)
                elif key.startswith("tracking:"):
                    await self._untrack(self._redis, self._key(key), order_id)
                else:
                    await self._redis.delete(self._key(key))
        if await self._cache.put([entry for entry in entries if entry.order_id in wrong]) is None:
            raise CacheRefused("Redis took no entries")

    def _key(self, name: str) -> str:
        """A key in Redis, whose name an audit tells without the prefix."""
        return f"{self._settings.redis_prefix}{name}"

    @staticmethod
    async def _untrack(client: redis.asyncio.Redis, key: str, order_id: str) -> None:
        """Remove an order's parcels from those of a tracking number. No worker writes meanwhile."""
        try:
            parcels = read_foreign(msgspec.json.decode, await client.get(key)) or []
            rest = [each for each in parcels if each["order_id"] != order_id]
        except (TypeError, KeyError, ResponseError):  # no list of parcels
            rest = []
        if rest:
            await client.set(key, json.dumps(rest, separators=(",", ":"), ensure_ascii=False), keepttl=True)
        else:
            await client.delete(key)


def _raw(order_id: str) -> bytes:
    return bytes.fromhex(order_id.replace("-", ""))


# -- finding what is broken, and putting it right ------------------------------------------------------------


@dataclass
class RepairResult:
    """The result of a repair, or with `dry_run` what it would be."""

    dry_run: bool
    repaired: dict[str, tuple[list[str], int | None]] = field(default_factory=dict)
    """By order id: its repaired stores, and the version that it has now."""
    keys: list[str] = field(default_factory=list)
    """Redis keys that belong to no order and were deleted."""
    remaining: Counter[str] = field(default_factory=Counter)
    """What is still broken, by check."""
    findings: list[Finding] = field(default_factory=list)
    inconclusive: int = 0

    def document(self) -> dict[str, Any]:
        """Return the JSON document, with the keys of the release before beside the new ones."""
        return {
            "dry_run": self.dry_run,
            "clean": not self.remaining,
            "repaired": [
                {"order_id": order_id, "stores": stores, "version": version}
                for order_id, (stores, version) in sorted(self.repaired.items())
            ],
            "deleted_keys": self.keys,
            "remaining": self.remaining,
            "left": self.remaining,
            "findings": [finding.document() for finding in self.findings],
            "inconclusive": self.inconclusive,
            "unjudged": self.inconclusive,
        }


async def repair(
    settings: Settings,
    ids: frozenset[str] | None,
    *,
    dry_run: bool,
    cache: bool,
    max_findings: int,
    progress: Progress = lambda what, done, total: None,
) -> RepairResult:
    """Audit orders, repair what is broken, and audit the repaired orders again.

    `ids` are canonical order ids; None: all orders. With `dry_run` it writes nothing; without `cache` it
    leaves Redis out. Blocks for as long as it takes to read the log. Raises GroupBusy, LockLost,
    LogIncomplete, TopicsMissing, what an audit raises, and what the servers raise.
    """
    outcome, target = RepairResult(dry_run), target_of(settings, cache=cache, tables=True)
    if dry_run:
        damaged, keys, first = await _find_damage(target, ids, max_findings, progress)
        outcome.repaired = {order_id: (damage.stores, None) for order_id, damage in damaged.items()}
        outcome.keys = sorted(keys)
        _count(outcome, first, max_findings, mended=False)
        return outcome
    await require(settings)
    # A member of the group that refreshes nothing keeps those out that would.
    target = replace(target, cache_stall=0.0)
    async with GroupLock(settings) as lock:
        damaged, keys, first = await _find_damage(target, ids, max_findings, progress)
        _count(outcome, first, max_findings, mended=False)
        if damaged or keys:
            async with Repairer(settings, lock, cache=cache) as repairer:
                versions = await repairer.repair(damaged)
                await repairer.drop_keys(keys)
            outcome.repaired = {
                order_id: (damage.stores, versions[order_id]) for order_id, damage in damaged.items()
            }
            outcome.keys = sorted(keys)
        if damaged:
            again = await audit(target, max_findings=max_findings, progress=progress, only=frozenset(damaged))
            _count(outcome, again, max_findings, mended=True)
    return outcome


async def _find_damage(
    target: Target, ids: frozenset[str] | None, max_findings: int, progress: Progress
) -> tuple[dict[str, Damage], set[str], Report]:
    """Run the audit. Returns what can be repaired by order, the wrong Redis keys that belong to no order, and
    the report."""
    damaged: dict[str, Damage] = {}
    keys: set[str] = set()

    def on_finding(finding: Finding) -> None:
        if finding.check not in MENDED:
            return
        if not finding.order_id or not _is_id(finding.order_id):
            if finding.check == "cache":
                keys.add(finding.where)
            return
        damage = damaged.setdefault(finding.order_id, Damage())
        damage.state |= finding.check in STATE_CHECKS
        damage.rows |= finding.check == "rows"
        if finding.check == "cache":
            damage.keys.add(finding.where)

    report = await audit(
        target, max_findings=max_findings, progress=progress, only=ids, on_finding=on_finding
    )
    return damaged, keys, report


def _count(outcome: RepairResult, report: Report, most: int, *, mended: bool) -> None:
    """Add what a report calls broken to `outcome`: of the checks that repair mends if `mended`, else of the
    others."""
    for check, count in report.broken.items():
        if (check in MENDED) == mended:
            outcome.remaining[check] += count
    findings = [
        each for each in report.findings if each.severity == "broken" and (each.check in MENDED) == mended
    ]
    outcome.findings += findings[: most - len(outcome.findings)]
    outcome.inconclusive = report.inconclusive.total()


def _is_id(text: str) -> bool:
    try:
        return str(UUID(text)) == text
    except ValueError:
        return False
