"""Read the cache, and write what readers refill beside it.

The keys that sinks.redis writes belong to the lanes, and no reader writes them. A reader lacks parts of an
entry (a suborder's status, a parcel's location are in no row), and what it has read may be older than what
the lane has written, or would have written if the entry hadn't been evicted. That would break the promise of
decision 14. So readers refill keys of their own, `rows:...`, from rows, for settings.cache_ttl_refill
seconds, and these are shown only where the lanes' keys have nothing newer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, Generic, NamedTuple, TypeVar
from uuid import UUID

from redis.exceptions import RedisError

from queries.circuit import Circuit
from settings import Settings
from sinks.clients import ONCE, open_client
from sinks.redis import called
from sinks.within import answered_within

T = TypeVar("T")

RECENT: Final = 50
"""Orders of a user that the cache knows, as in sinks.redis."""

# Two processes may refill at the same time, one of them from a replica that is behind.
_REFILL: Final = """
local found = redis.call('GET', KEYS[1])
local known = found and tonumber(string.match(found, '"version":(%d+)'))
if known and known > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
"""

KEYS: Final = ("rows:*",)
"""Patterns of the keys that readers refill."""
COMMANDS: Final = frozenset({"EVALSHA", "GET", "MGET", "PING", "SCRIPT|LOAD", "SET", "ZREVRANGE"}) | called(
    _REFILL
)
"""All that a CacheReader sends. `orders wait` sends no other."""

_SUMMARIES_AT_ONCE: Final = 10
_UUID: Final = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION: Final = re.compile(rb'"version":(\d+)')


def version_of(value: bytes | None) -> int:
    """Version of the order whose summary or details this is; 0 for None."""
    match = None if value is None else _VERSION.search(value)
    return 0 if match is None else int(match[1])


class Recent(NamedTuple, Generic[T]):
    """A user's order as the lanes' keys have it.
    `created_ms` since 1970; `summary`: what was read of it, None if it has expired.
    """

    order_id: UUID
    created_ms: float
    summary: T


class CacheReader:
    """Never raises for Redis' sake and blocks at most settings.redis_timeout; while Redis is away, not at
    all. Then nothing is there.
    """

    def __init__(self, settings: Settings) -> None:
        self._timeout = settings.redis_timeout
        self._ttl = settings.cache_ttl_refill
        self._prefix = settings.redis_prefix
        # Without limits of its own: they would count what this event loop is busy with.
        self._client: Any = open_client(settings, retry=ONCE)
        self._circuit = Circuit("cache")
        self._refill = self._client.register_script(_REFILL)

    @property
    def away(self) -> bool:
        """Whether the last attempt failed."""
        return self._circuit.open

    async def order(self, order_id: UUID) -> tuple[bytes | None, bytes | None]:
        """Return (the lane's summary, the details that readers have refilled) of an order, as JSON."""
        values = await self._ask(
            self._client.mget, self._key(f"order:{order_id}"), self._key(f"rows:{order_id}")
        )
        return (None, None) if values is None else (values[0], values[1])

    async def recent(
        self, user_id: UUID, read: Callable[[bytes | None], T]
    ) -> tuple[bytes | None, list[Recent[T]]]:
        """-> (the refilled page of a user's newest orders, the orders that the lanes have written of late,
        newest first). `read`: what is wanted of a summary.
        """
        pipe = self._client.pipeline(transaction=False)
        pipe.get(self._key(f"rows:user:{user_id}"))
        pipe.zrevrange(self._key(f"user:{user_id}:orders"), 0, RECENT - 1, withscores=True)
        answers = await self._ask(pipe.execute)
        if answers is None:
            return None, []
        page, members = answers
        orders = [(UUID(member.decode()), score) for member, score in members if _UUID.fullmatch(member)]
        summaries = await self.summaries([order_id for order_id, _ in orders], read)
        return page, [
            Recent(order_id, score, each) for (order_id, score), each in zip(orders, summaries, strict=True)
        ]

    async def summaries(self, order_ids: Sequence[UUID], read: Callable[[bytes | None], T]) -> list[T]:
        """Return what `read` finds in the lanes' summaries of these orders.

        A few are read at a time: one may have megabytes.
        """
        summaries: list[T] = []
        for start in range(0, len(order_ids), _SUMMARIES_AT_ONCE):
            some = [self._key(f"order:{each}") for each in order_ids[start : start + _SUMMARIES_AT_ONCE]]
            summaries += map(read, await self._ask(self._client.mget, *some) or [None] * len(some))
        return summaries

    async def tracking(self, number: str) -> tuple[bytes | None, bytes | None]:
        """Return (the lanes' entry, the page that readers have refilled) of a tracking number, as JSON."""
        values = await self._ask(
            self._client.mget, self._key(f"tracking:{number}"), self._key(f"rows:tracking:{number}")
        )
        return (None, None) if values is None else (values[0], values[1])

    async def refill_order(self, order_id: UUID, version: int, details: bytes) -> None:
        """Put an order's details beside the cache, unless newer ones are there."""
        await self._ask(
            self._refill, keys=[self._key(f"rows:{order_id}")], args=[version, details, self._ttl]
        )

    async def refill(self, what: str, value: bytes) -> None:
        """Put a page beside the cache; `what`: user:ID or tracking:NUMBER."""
        await self._ask(self._client.set, self._key(f"rows:{what}"), value, ex=self._ttl)

    async def ping(self) -> bool:
        """Tell whether Redis answers."""
        return await self._ask(self._client.ping) is not None

    async def close(self) -> None:
        """Close the connections. Blocks for settings.redis_timeout at most."""
        with suppress(TimeoutError):
            async with answered_within(self._timeout):
                await self._client.aclose()

    def _key(self, name: str) -> str:
        return f"{self._prefix}{name}"

    async def _ask(self, call: Any, *args: Any, **options: Any) -> Any:
        if not self._circuit.admits():
            return None
        try:
            async with answered_within(self._timeout):
                answer = await call(*args, **options)
        except (RedisError, OSError, TimeoutError) as error:
            self._circuit.failed(error)
            return None
        except RuntimeError as error:
            # uvloop's way to say that a connection was reset while nobody used it.
            if "is closed" not in str(error):
                raise
            self._circuit.failed(error)
            return None
        self._circuit.worked()
        return answer
