"""The cache: summaries of orders, a user's recent orders, tracking numbers.

It may be empty, down or flushed at any time: readers fall back to Postgres. So a failure here is never the caller's. What it must not do
is keep showing what was true before an outage: entries that couldn't be written wait here, the latest of each order, until Redis answers
again.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
import redis.asyncio
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from settings import Settings
from sinks.rows import CacheEntry

log = structlog.get_logger(__name__)

#: Entries a script call; Redis serves nobody else meanwhile (200 take about 2 ms).
_ENTRIES_A_CALL = 200
#: Orders whose latest entry waits for Redis; beyond it the longest waiting are dropped and stay stale until they expire.
_WAITING = 20_000
_RECENT = 50
#: Parcels that one tracking number shows. Nearly always it is one; but an upstream may write "n/a" there, and Redis would spend its time on
#: a list of all of them.
_PARCELS = 100
_RECENT_TTL = 1800

# One argument for all entries (MessagePack): a client spends as long on an argument as Redis does on a command.
_SCRIPT = (
    """
local call, find, sub = redis.call, string.find, string.sub
local PARCEL = '"shipment_id":"'
local VERSION = '"version":'

-- Puts a parcel's entry among those of a tracking number, MOST_PARCELS at most. Nearly always it is the only one; then nothing is parsed.
local function track(number, parcel, json, ttl)
  local key = 'tracking:' .. number
  local found = call('GET', key)
  if found then
    local first, last = find(found, PARCEL, 1, true)
    local alone = first and not find(found, PARCEL, last, true) and sub(found, last + 1, last + #parcel) == parcel
    if not alone then
      local rest = {cjson.decode(json)}
      for _, entry in ipairs(cjson.decode(found)) do
        if entry.shipment_id ~= parcel and #rest < MOST_PARCELS then rest[#rest + 1] = entry end
      end
      table.sort(rest, function(a, b) return a.shipment_id < b.shipment_id end)
      call('SET', key, cjson.encode(rest), 'EX', ttl)
      return
    end
  end
  call('SET', key, '[' .. json .. ']', 'EX', ttl)
end

local function untrack(number, parcel)
  local key = 'tracking:' .. number
  local found = call('GET', key)
  if not found or not find(found, PARCEL .. parcel .. '"', 1, true) then return end
  local rest = {}
  for _, entry in ipairs(cjson.decode(found)) do
    if entry.shipment_id ~= parcel then rest[#rest + 1] = entry end
  end
  if #rest == 0 then call('DEL', key) else call('SET', key, cjson.encode(rest), 'KEEPTTL') end
end

local function put(e)
  local order, user, created, version, ttl, summary, tracking, untracked = unpack(e, 1, 8)
  local key = 'order:' .. order
  local found = call('GET', key)
  if found then
    -- Looked for as plain text first: a pattern would be tried at every byte.
    local _, last = find(found, VERSION, 1, true)
    local known = last and tonumber(string.match(found, '^%d+', last + 1))
    if known and known > version then return 0 end
  end
  call('SET', key, summary, 'EX', ttl)
  local recent = 'user:' .. user .. ':orders'
  if call('ZADD', recent, created, order) == 1 then call('ZREMRANGEBYRANK', recent, 0, -(RECENT + 1)) end
  call('EXPIRE', recent, RECENT_TTL)
  for _, u in ipairs(untracked) do untrack(u[1], u[2]) end
  for _, t in ipairs(tracking) do track(t[1], t[2], t[3], ttl) end
  return 1
end

-- Something under our keys that isn't ours: it is only a cache, away with it.
local function clear(e)
  call('DEL', 'order:' .. e[1], 'user:' .. e[2] .. ':orders')
  for _, list in ipairs({e[7], e[8]}) do
    for _, t in ipairs(list) do call('DEL', 'tracking:' .. t[1]) end
  end
end

local written = 0
for _, e in ipairs(cmsgpack.unpack(ARGV[1])) do
  local fine, done = pcall(put, e)
  if not fine then
    -- No memory is no reason to take away what is there; and after a DEL the server would let a script write beyond its limit.
    local reason = type(done) == 'table' and done.err or done
    if find(reason, '^OOM') then return redis.error_reply(reason) end
    clear(e)
    done = put(e)
  end
  written = written + done
end
return written
""".replace("RECENT_TTL", str(_RECENT_TTL))
    .replace("RECENT", str(_RECENT))
    .replace("MOST_PARCELS", str(_PARCELS))
)


_SHA = hashlib.sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()

_encode = msgspec.msgpack.Encoder().encode


def _pack(entries: Sequence[CacheEntry]) -> bytes:
    # As text throughout: the script's MessagePack knows no binary type.
    return _encode(
        [
            (order, user, created, version, ttl, summary.decode(), [(a, b, json.decode()) for a, b, json in tracking], untracked)
            for order, user, created, version, ttl, summary, tracking, untracked in entries
        ]
    )


class Client(Protocol):
    """What is used of redis.asyncio.Redis."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Awaitable: the answer. Raises RedisError, OSError, TimeoutError."""

    async def aclose(self) -> None:
        """Give the connections back."""


class RedisSink:
    """Writes cache entries. A sinks.base.Sink[Sequence[CacheEntry]] whose writes neither raise nor wait when Redis is away.

    The script names keys that it isn't told beforehand: a single Redis or Valkey (with replicas), not a sharded cluster.
    """

    def __init__(self, settings: Settings, *, pause: float = 1.0, client: Client | None = None) -> None:
        """pause: seconds between attempts while Redis is away. client: by default one for settings.redis."""
        self._timeout = settings.redis_timeout
        self._pause = pause
        self._client: Client = client or redis.asyncio.Redis.from_url(
            settings.redis,
            socket_timeout=settings.redis_timeout,
            socket_connect_timeout=settings.redis_timeout,
            # Retrying is done here, by entry and in the background; the client's own would hold the batch up.
            retry=Retry(NoBackoff(), 0),
        )
        self._waiting: dict[str, CacheEntry] = {}
        self._catching_up: asyncio.Task[None] | None = None
        #: Attempts that failed, entries dropped because too many waited.
        self.failures = 0
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Entries that wait for Redis to answer again. 0 when it does."""
        return len(self._waiting)

    async def start(self) -> None:
        """Nothing: the first write connects. A Redis that is away must not hold up a start."""

    async def write(self, batch: Sequence[CacheEntry], /) -> int:
        """Writes what isn't older than what is there and returns how many entries that were; 0 while Redis is away (they are written
        later).

        Several entries of an order in a batch are allowed, the highest version wins. Never raises for Redis' sake. Blocks at most
        settings.redis_timeout, and while Redis is known to be away not at all.
        """
        if not batch:
            return 0
        if self._catching_up is not None:
            self._wait(batch)
            return 0
        written = await self._attempt(batch)
        if written is None:
            self._wait(batch)
            if self._catching_up is None:
                self._catching_up = asyncio.create_task(self._catch_up(), name="redis-catch-up")
            return 0
        return written

    async def close(self) -> None:
        """Closes the connections. What still waits for Redis is dropped: the cache is stale there until it expires."""
        task, self._catching_up = self._catching_up, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if self._waiting:
            log.warning("redis.closed_behind", entries=len(self._waiting))
        await self._client.aclose()

    async def _attempt(self, batch: Sequence[CacheEntry]) -> int | None:
        """Entries written, or None when Redis couldn't be reached or refused."""
        try:
            async with asyncio.timeout(self._timeout):
                written = 0
                for at in range(0, len(batch), _ENTRIES_A_CALL):
                    written += await self._call(_pack(batch[at : at + _ENTRIES_A_CALL]))
                return written
        except (RedisError, OSError, TimeoutError) as error:
            self.failures += 1
            if self._catching_up is None:
                # Once an outage: while it lasts, only the background task tries.
                log.warning("redis.away", error=f"{type(error).__name__}: {error}", entries=len(batch))
            return None

    async def _call(self, packed: bytes) -> int:
        run = self._client.execute_command
        try:
            return int(await run("EVALSHA", _SHA, 0, packed))
        except NoScriptError:
            # The first call of a server's life.
            return int(await run("EVAL", _SCRIPT, 0, packed))
        except RuntimeError as error:
            # uvloop's way to say that a connection was reset while nobody used it.
            if "is closed" not in str(error):
                raise
            raise ConnectionResetError(f"Redis ended the connection: {error}") from error

    def _wait(self, batch: Sequence[CacheEntry]) -> None:
        for entry in batch:
            known = self._waiting.pop(entry.order_id, None)
            if known is None:
                self._waiting[entry.order_id] = entry
            elif known.version <= entry.version:
                self._waiting[entry.order_id] = _both(known, entry)
            else:
                self._waiting[entry.order_id] = known
        excess = len(self._waiting) - _WAITING
        if excess > 0:
            for order_id in list(itertools.islice(self._waiting, excess)):
                del self._waiting[order_id]
            self.dropped += excess

    async def _catch_up(self) -> None:
        away = asyncio.get_running_loop().time()
        while self._waiting:
            await asyncio.sleep(self._pause)
            while self._waiting:
                some = list(itertools.islice(self._waiting.values(), _ENTRIES_A_CALL))
                if await self._attempt(some) is None:
                    break
                for entry in some:
                    if self._waiting.get(entry.order_id) is entry:
                        del self._waiting[entry.order_id]
        self._catching_up = None
        log.info("redis.back", seconds=round(asyncio.get_running_loop().time() - away, 1), failures=self.failures, dropped=self.dropped)


def _both(older: CacheEntry, newer: CacheEntry) -> CacheEntry:
    """What remains to be written of two versions of an order: the newer one, and of the older one the parcels that the newer one leaves
    as they are.
    """
    if not older.tracking and not older.untracked:
        return newer
    put = {(number, parcel): (number, parcel, json) for number, parcel, json in (*older.tracking, *newer.tracking)}
    kept = {(number, parcel) for number, parcel, _ in newer.tracking}
    for pair in newer.untracked:
        if pair not in kept:
            put.pop(pair, None)
    away = [pair for pair in dict.fromkeys((*older.untracked, *newer.untracked)) if pair not in put]
    return newer._replace(tracking=list(put.values()), untracked=away)
