"""The cache: summaries of orders, a user's recent orders, tracking numbers.

It may be empty, down or flushed at any time: readers fall back to Postgres. So a failure here delays nobody. What it must not do is keep
showing what was true before an outage: so each lane has a mark in it, which says how far it goes (streams/cache.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Protocol, cast

import msgspec
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from settings import Settings
from sinks.rows import CacheEntry
from sinks.within import answered_within

log = logging.getLogger(__name__)

_ENTRIES_A_CALL = 200
"""Entries a script call; Redis serves nobody else meanwhile (200 take about 2 ms)."""
_RECENT = 50
TRACKED = 100
"""Parcels that one tracking number shows. Nearly always it is one; but an upstream may write "n/a" there, and Redis would spend its time on
a list of all of them.
"""
_LONGEST_TTL = 1800
"""Of any entry."""
MARK_TTL = 3600
"""Longer than any entry lives: where a mark has expired, so has all that it vouched for."""

# One argument for all entries (MessagePack): a client spends as long on an argument as Redis does on a command.
_SCRIPT = (
    """
local call, find, sub = redis.call, string.find, string.sub
local PARCEL = '"shipment_id":"'
local VERSION = '"version":'

-- What a number shows beside this parcel of this order (the same parcel may hold several orders). Whatever
-- isn't a parcel is left out.
local function others(found, order, parcel)
  local rest = {}
  local fine, entries = pcall(cjson.decode, found)
  if not fine or type(entries) ~= 'table' then return rest end
  for _, each in ipairs(entries) do
    local ours = type(each) == 'table' and type(each.order_id) == 'string'
      and type(each.shipment_id) == 'string'
    if ours and not (each.order_id == order and each.shipment_id == parcel) then rest[#rest + 1] = each end
  end
  return rest
end

local function before(a, b)
  if a.shipment_id ~= b.shipment_id then return a.shipment_id < b.shipment_id end
  return a.order_id < b.order_id
end

-- Puts a parcel's entry among those of a tracking number, MOST_PARCELS at most. Nearly always it is the only
-- one; then nothing is parsed.
local function track(number, order, parcel, json, ttl)
  local key = 'tracking:' .. number
  local found = call('GET', key)
  if found then
    local own = '[{"order_id":"' .. order .. '",' .. PARCEL .. parcel .. '"'
    if sub(found, 1, #own) ~= own or find(found, PARCEL, #own, true) then
      local rest = others(found, order, parcel)
      if #rest > 0 then
        for n = MOST_PARCELS, #rest do rest[n] = nil end
        rest[#rest + 1] = cjson.decode(json)
        table.sort(rest, before)
        -- As long as the summary of any order in it: where that is there, its parcel is.
        call('SET', key, cjson.encode(rest), 'EX', math.min(math.max(ttl, call('TTL', key)), LONGEST_TTL))
        return
      end
    end
  end
  call('SET', key, '[' .. json .. ']', 'EX', ttl)
end

local function untrack(number, order, parcel)
  local key = 'tracking:' .. number
  local found = call('GET', key)
  if not found or not find(found, PARCEL .. parcel .. '"', 1, true) then return end
  local rest = others(found, order, parcel)
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
  call('EXPIRE', recent, LONGEST_TTL)
  for _, u in ipairs(untracked) do untrack(u[1], order, u[2]) end
  for _, t in ipairs(tracking) do track(t[1], order, t[2], t[3], ttl) end
  return 1
end

-- Something of another type under our keys: it is only a cache, away with it. What is ours stays: it may hold
-- other orders' parcels.
local function clear(e)
  if not pcall(call, 'GET', 'order:' .. e[1]) then call('DEL', 'order:' .. e[1]) end
  local recent = 'user:' .. e[2] .. ':orders'
  if not pcall(call, 'ZCARD', recent) then call('DEL', recent) end
  for _, list in ipairs({e[7], e[8]}) do
    for _, t in ipairs(list) do
      local key = 'tracking:' .. t[1]
      if not pcall(call, 'GET', key) then call('DEL', key) end
    end
  end
end

-- The lane's mark: "GENERATION NUMBER POSITION". What a former owner sent comes too late, and so does what
-- was sent before the latest.
local key, generation, number, position, to, claim, known = unpack(ARGV, 2, 8)
local at, lost = 0, 0
if key then
  generation, number, position = tonumber(generation), tonumber(number), tonumber(position)
  to, known = tonumber(to), tonumber(known)
  local by, last, found = string.match(call('GET', key) or '', '^(%d+) (%d+) (%d+)$')
  if claim == 'anew' then found = position end
  by, last, at = tonumber(by or 0), tonumber(last or 0), tonumber(found or position)
  if claim == '' and (by > generation or by == generation and last > number) then return {0, at, 0} end
  -- The owner knows of a later write than the server: that is an older copy, though the mark may be where
  -- it was.
  if found and claim == '' and known > 0 and (by < generation or last < known) then lost = 1 end
end

local written = 0
for _, e in ipairs(cmsgpack.unpack(ARGV[1])) do
  local fine, done = pcall(put, e)
  if not fine then
    -- No memory is no reason to take away what is there; and after a DEL the server would let a script write
    -- beyond its limit.
    local reason = type(done) == 'table' and done.err or done
    if find(reason, '^OOM') then return redis.error_reply(reason) end
    clear(e)
    done = put(e)
  end
  written = written + done
end
if key then
  -- It goes on from where its owner believes it to be; not if the server has gone back behind that.
  if at >= position then at = math.max(at, to) end
  call('SET', key, string.format('%d %d %d', generation, number, at), 'EX', MARK_TTL)
end
return {written, at, lost}
""".replace("LONGEST_TTL", str(_LONGEST_TTL))
    .replace("MARK_TTL", str(MARK_TTL))
    .replace("RECENT", str(_RECENT))
    .replace("MOST_PARCELS", str(TRACKED))
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


class Mark(NamedTuple):
    """To be moved by the lane's owner: everything up to `to` is in the cache with this write, as up to `position` it was before."""

    key: str
    generation: int
    """Of the group, as the owner knows it. What a former owner writes is refused."""
    number: int
    """Of the owner's writes, each higher than the one before. One that comes too late, after another one, is refused."""
    position: int
    """In the changelog, as `to` is."""
    to: int
    claim: str = ""
    """"yes", the owner's first: nothing is refused, whoever was there (the group may have been deleted and begun anew). "anew": nor does
    the old position count (the changelog is another one).
    """
    known: int = 0
    """The number of the owner's latest write that was acknowledged."""


class Written(NamedTuple):
    """What came of a write."""

    entries: int
    """Entries that weren't older than what was there."""
    mark: int
    """Where the lane's mark is now. Below Mark.position: the server has forgotten some of what was written."""
    lost: bool = False
    """The server has forgotten the owner's latest acknowledged write, or more."""


def mark_key(group: str, lane: int) -> str:
    """Where Redis has a lane's mark. Pure."""
    return f"cache:{group}:{lane}"


async def behind(client: redis.asyncio.Redis, group: str, ends: Mapping[int, int]) -> dict[int, int]:
    """Lane -> records of the changelog, below its end in `ends`, that the lane's mark in Redis doesn't say to be in the cache yet.

    Without lanes that have them all, or have no mark: where nothing was written, or all was flushed, nothing is old. Blocks for a round
    trip; raises RedisError, OSError.
    """
    lanes = [lane for lane, end in ends.items() if end > 0]
    marks = await client.mget([mark_key(group, lane) for lane in lanes]) if lanes else []
    found: dict[int, int] = {}
    for lane, mark in zip(lanes, marks, strict=True):
        known = re.fullmatch(rb"\d+ \d+ (\d+)", cast("bytes | None", mark) or b"")
        if known is not None and int(known[1]) < ends[lane]:
            found[lane] = ends[lane] - int(known[1])
    return found


class RedisSink:
    """Writes cache entries. A sinks.base.Sink[Sequence[CacheEntry]] whose writes neither raise nor wait when Redis is away.

    The script names keys that it isn't told beforehand: a single Redis or Valkey (with replicas), not a sharded cluster.
    """

    def __init__(self, settings: Settings, *, client: Client | None = None) -> None:
        """client: by default one for settings.redis."""
        self._timeout = settings.redis_timeout
        self._client: Client = client or redis.asyncio.Redis.from_url(
            settings.redis.get_secret_value(),
            # The client's own limits would count what this event loop is busy with.
            socket_timeout=None,
            socket_connect_timeout=None,
            # Nothing is tried again here; the client's own retries would hold the batch up.
            retry=Retry(NoBackoff(), 0),
        )
        self._away_since: float | None = None
        self.failures = 0
        """Attempts that failed."""

    @property
    def away(self) -> bool:
        """Whether the last attempt failed. While it is so, only probes are sent."""
        return self._away_since is not None

    async def start(self) -> None:
        """Nothing: the first write connects. A Redis that is away must not hold up a start."""

    async def write(self, batch: Sequence[CacheEntry], /) -> int:
        """As `put`, but returns how many entries were written: 0 if Redis is away."""
        written = await self.put(batch)
        return 0 if written is None else written.entries

    async def put(self, batch: Sequence[CacheEntry], mark: Mark | None = None, *, probe: bool = False) -> Written | None:
        """Writes what isn't older than what is there, and then moves the mark. None: Redis took only some of it, or nothing; nobody tries
        again.

        Several entries of an order in a batch are allowed, the highest version wins. Never raises for Redis' sake. Gives Redis
        settings.redis_timeout seconds, and while it is known to be away none at all, unless this is the `probe` whether it is back.
        """
        if not batch and mark is None:
            return Written(0, 0)
        if self.away and not probe:
            return None
        entries, at, lost = 0, 0, False
        clock = asyncio.get_running_loop().time
        try:
            async with answered_within(self._timeout) as limit:
                for first in range(0, len(batch) or 1, _ENTRIES_A_CALL):
                    if mark is not None and first + _ENTRIES_A_CALL < len(batch):
                        moved: Sequence[str | int] = mark._replace(to=mark.position)
                    else:
                        moved = mark or ()
                    some, at, gone = await self._call(_pack(batch[first : first + _ENTRIES_A_CALL]), *moved)
                    entries += some
                    lost |= gone
                    limit.answered()
        except (RedisError, OSError, TimeoutError) as error:
            self.failures += 1
            if self._away_since is None:
                self._away_since = clock()
                log.warning("redis.away: %d entries are left out: %s: %s", len(batch), type(error).__name__, error)
            return None
        if self._away_since is not None:
            log.info("redis.back: after %.1f s, %d failures in all", clock() - self._away_since, self.failures)
            self._away_since = None
        return Written(entries, at, lost)

    async def close(self) -> None:
        """Closes the connections. Blocks for settings.redis_timeout at most."""
        with suppress(TimeoutError):
            async with answered_within(self._timeout):
                await self._client.aclose()

    async def _call(self, packed: bytes, *mark: str | int) -> tuple[int, int, bool]:
        run = self._client.execute_command
        try:
            entries, at, lost = await run("EVALSHA", _SHA, 0, packed, *mark)
        except NoScriptError:
            # The first call of a server's life.
            entries, at, lost = await run("EVAL", _SCRIPT, 0, packed, *mark)
        except RuntimeError as error:
            # uvloop's way to say that a connection was reset while nobody used it.
            if "is closed" not in str(error):
                raise
            raise ConnectionResetError(f"Redis ended the connection: {error}") from error
        return int(entries), int(at), bool(lost)
