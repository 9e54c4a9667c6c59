"""Note of dead letters that they need nothing more: a record each in orders.resolved."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import aclosing
from typing import Final, NamedTuple

import msgspec

from contracts.topics import RESOLVED
from operations.dead_letters import Filter, Letters, NoSuchLetter, Resolved, State, state_of
from settings import Settings
from streams.control import now
from wire import clients

AT_ONCE: Final = 500


class ResolveResult(NamedTuple):
    """How many letters were resolved, and how many of the others stay as they are, by state."""

    resolved: int
    states: Counter[State]


async def resolve(
    settings: Settings, ids: frozenset[tuple[int, int]] | None, wanted: Filter, *, by: str, why: str
) -> ResolveResult:
    """Resolve the letters of these (partition, offset), or those that are wanted.

    What was redriven or resolved before stays as it is. Again is harmless. Blocks. Raises NoSuchLetter,
    TopicsMissing, KafkaError.
    """
    states: Counter[State] = Counter()
    records: list[tuple[bytes, bytes]] = []
    async with (
        Letters(settings) as letters,
        aclosing(letters.all() if ids is None else letters.some(ids)) as pairs,
    ):
        async for letter, note in pairs:
            state = state_of(settings, letter, note)
            if not wanted.takes(letter, state):
                continue
            if state in ("redriven", "resolved"):
                states[state] += 1
                continue
            value = Resolved(now(), by, why, letter.record)
            records.append((letter.id.encode(), msgspec.json.encode(value)))
    await _write(settings, records)
    return ResolveResult(len(records), states)


async def reopen(settings: Settings, ids: frozenset[tuple[int, int]]) -> int:
    """Take back that these letters are resolved; how many were. Blocks. Raises as resolve() does."""
    records: list[tuple[bytes, None]] = []
    async with Letters(settings) as letters, aclosing(letters.some(ids)) as pairs:
        async for letter, _ in pairs:
            if letter.resolved is not None:
                records.append((letter.id.encode(), None))
    await _write(settings, records)
    return len(records)


async def _write(settings: Settings, records: list[tuple[bytes, bytes]] | list[tuple[bytes, None]]) -> None:
    if not records:
        return
    async with clients.producer(settings, "orders-resolve") as producer:
        for start in range(0, len(records), AT_ONCE):
            sending = [
                await producer.send(RESOLVED, value, key, partition=0)
                for key, value in records[start : start + AT_ONCE]
            ]
            await asyncio.gather(*sending)


__all__ = ["NoSuchLetter", "ResolveResult", "reopen", "resolve"]
