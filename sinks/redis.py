"""The cache in Redis: summaries of orders, a user's recent orders, parcels by tracking number.

It may be empty, down or flushed at any time, because readers fall back to Postgres; so a failure here delays
nobody. But it must not go on showing what was true before an outage. So each lane has a checkpoint in it
(streams/cache.py).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, Protocol, cast

import msgspec
import redis.asyncio
from redis.exceptions import NoScriptError, RedisError

from settings import Settings
from sinks.clients import ONCE, open_client
from sinks.refusals import refusal
from sinks.rows import CacheEntry
from sinks.within import answered_within

log = logging.getLogger(__name__)

_ENTRIES_A_CALL = 200
"""Entries of one script call. Redis serves nobody else during a call; 200 entries take about 2 ms."""
_RECENT = 50
TRACKED = 100
"""Parcels that are kept under one tracking number. Nearly always it is one; but an upstream may write
"n/a" as the number of all its parcels, and Redis would spend its time on their list."""
_LONGEST_TTL = 1800
"""Of any entry, in seconds."""
CHECKPOINT_TTL = 3600
"""Longer than any entry lives: when a checkpoint expires, the entries that it covers have expired before."""

# All entries are one argument (MessagePack): a client spends as long on an argument
# as Redis does on a command. PREFIX stands for settings.redis_prefix.
_SCRIPT = (
    """
local call, find, sub = redis.call, string.find, string.sub
local PARCEL = '"shipment_id":"'
local VERSION = '"version":'

-- The other parcels under a number (the same parcel may hold several orders). Values that aren't parcels are
-- left out.
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

-- Adds a parcel's entry to those of a tracking number, MOST_PARCELS at most. Nearly always it is the only
-- one; then nothing is parsed.
local function track(number, order, parcel, json, ttl)
  local key = 'PREFIXtracking:' .. number
  local found = call('GET', key)
  if found then
    local own = '[{"order_id":"' .. order .. '",' .. PARCEL .. parcel .. '"'
    if sub(found, 1, #own) ~= own or find(found, PARCEL, #own, true) then
      local rest = others(found, order, parcel)
      if #rest > 0 then
        for n = MOST_PARCELS, #rest do rest[n] = nil end
        rest[#rest + 1] = cjson.decode(json)
        table.sort(rest, before)
        -- Lives as long as the summary of any order in it: an order that is cached has its parcels cached.
        call('SET', key, cjson.encode(rest), 'EX', math.min(math.max(ttl, call('TTL', key)), LONGEST_TTL))
        return
      end
    end
  end
  call('SET', key, '[' .. json .. ']', 'EX', ttl)
end

local function untrack(number, order, parcel)
  local key = 'PREFIXtracking:' .. number
  local found = call('GET', key)
  if not found or not find(found, PARCEL .. parcel .. '"', 1, true) then return end
  local rest = others(found, order, parcel)
  if #rest == 0 then call('DEL', key) else call('SET', key, cjson.encode(rest), 'KEEPTTL') end
end

local function put(e)
  local order, user, created, version, ttl, summary, tracking, untracked = unpack(e, 1, 8)
  local key = 'PREFIXorder:' .. order
  local found = call('GET', key)
  if found then
    -- Looked for as plain text first: a pattern would be tried at every byte.
    local _, last = find(found, VERSION, 1, true)
    local known = last and tonumber(string.match(found, '^%d+', last + 1))
    if known and known > version then return 0 end
  end
  call('SET', key, summary, 'EX', ttl)
  local recent = 'PREFIXuser:' .. user .. ':orders'
  if call('ZADD', recent, created, order) == 1 then call('ZREMRANGEBYRANK', recent, 0, -(RECENT + 1)) end
  call('EXPIRE', recent, LONGEST_TTL)
  for _, u in ipairs(untracked) do untrack(u[1], order, u[2]) end
  for _, t in ipairs(tracking) do track(t[1], order, t[2], t[3], ttl) end
  return 1
end

-- Deletes values of another type under our keys. Values of the right type stay: they may hold other orders'
-- parcels.
local function clear(e)
  if not pcall(call, 'GET', 'PREFIXorder:' .. e[1]) then call('DEL', 'PREFIXorder:' .. e[1]) end
  local recent = 'PREFIXuser:' .. e[2] .. ':orders'
  if not pcall(call, 'ZCARD', recent) then call('DEL', recent) end
  for _, list in ipairs({e[7], e[8]}) do
    for _, t in ipairs(list) do
      local key = 'PREFIXtracking:' .. t[1]
      if not pcall(call, 'GET', key) then call('DEL', key) end
    end
  end
end

-- The lane's checkpoint: "GENERATION SEQUENCE POSITION". Writes of a former owner are refused, and so are
-- writes that were sent before the latest.
local key, generation, sequence, position, to, claim, acknowledged = unpack(ARGV, 2, 8)
local at, lost = 0, 0
if key then
  generation, sequence, position = tonumber(generation), tonumber(sequence), tonumber(position)
  to, acknowledged = tonumber(to), tonumber(acknowledged)
  local by, last, found = string.match(call('GET', key) or '', '^(%d+) (%d+) (%d+)$')
  if claim == 'reset' then found = position end
  by, last, at = tonumber(by or 0), tonumber(last or 0), tonumber(found or position)
  if claim == '' and (by > generation or by == generation and last > sequence) then return {0, at, 0} end
  -- The owner had a later write acknowledged than the server has: the server is an older copy, even with the
  -- same position.
  if found and claim == '' and acknowledged > 0 and (by < generation or last < acknowledged) then lost = 1 end
end

local written = 0
for _, e in ipairs(cmsgpack.unpack(ARGV[1])) do
  local fine, done = pcall(put, e)
  if not fine then
    -- Out of memory is no reason to delete what is there; and after a DEL the server would let a script write
    -- beyond its limit.
    local reason = type(done) == 'table' and done.err or done
    if find(reason, '^OOM') then return redis.error_reply(reason) end
    clear(e)
    done = put(e)
  end
  written = written + done
end
if key then
  -- It advances only from the position that its owner believes it to have, not if the server has gone
  -- back behind that.
  if at >= position then at = math.max(at, to) end
  call('SET', key, string.format('%d %d %d', generation, sequence, at), 'EX', CHECKPOINT_TTL)
end
return {written, at, lost}
""".replace("LONGEST_TTL", str(_LONGEST_TTL))
    .replace("CHECKPOINT_TTL", str(CHECKPOINT_TTL))
    .replace("RECENT", str(_RECENT))
    .replace("MOST_PARCELS", str(TRACKED))
)


KEYS: Final = ("order:*", "user:*:orders", "tracking:*")
"""Patterns of the keys that the script writes, beside the lanes' checkpoints. Each key has
settings.redis_prefix before it.
"""


def called(script: str) -> frozenset[str]:
    """Return the commands that a Lua script calls. Pure."""
    return frozenset(re.findall(r"\bp?call[(,] ?'([A-Z]+)'", script))


COMMANDS: Final = frozenset({"EVAL", "EVALSHA"}) | called(_SCRIPT)
"""All that a RedisSink sends."""

_encode = msgspec.msgpack.Encoder().encode


def _pack(entries: Sequence[CacheEntry]) -> bytes:
    # As text throughout: the script's MessagePack knows no binary type.
    return _encode(
        [
            (
                order,
                user,
                created,
                version,
                ttl,
                summary.decode(),
                [(a, b, json.decode()) for a, b, json in tracking],
                untracked,
            )
            for order, user, created, version, ttl, summary, tracking, untracked in entries
        ]
    )


class Client(Protocol):
    """The part of redis.asyncio.Redis that is used here."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Return an awaitable of the answer. It raises RedisError, OSError, TimeoutError."""

    async def aclose(self) -> None:
        """Close the connections."""


class CacheCheckpoint(NamedTuple):
    """A lane's checkpoint, and how its owner advances it: up to `position` the cache was complete, with this
    write up to `to`."""

    key: str
    generation: int
    """Of the group, as the owner knows it. Writes of a former owner are refused."""
    sequence: int
    """Number of this write, higher than the one before. A write that arrives after a later one is refused."""
    position: int
    """In the changelog, as `to` is."""
    to: int
    claim: str = ""
    """"claim" in an owner's first write: it is never refused, because a group that was deleted and created
    again starts with generation 1. "reset": the position in Redis doesn't count either, because the
    changelog is another one. Else empty."""
    acknowledged: int = 0
    """`sequence` of the owner's latest write that was acknowledged."""


class Written(NamedTuple):
    """The result of a write."""

    entries: int
    """Entries that were written, because Redis had no newer ones."""
    position: int
    """The lane's checkpoint in Redis. Below CacheCheckpoint.position if Redis has lost some of what was
    written."""
    lost: bool = False
    """Whether Redis has lost the owner's latest acknowledged write."""


def checkpoint_key(settings: Settings, lane: int) -> str:
    """Return the key of a lane's checkpoint. Pure."""
    return f"{settings.redis_prefix}cache:{settings.group}:{lane}"


async def behind(client: redis.asyncio.Redis, settings: Settings, ends: Mapping[int, int]) -> dict[int, int]:
    """Return the lanes whose checkpoint in Redis is below the changelog's end in `ends`, with the number of
    records between.

    Lanes without a checkpoint are left out: where nothing was written, or all was flushed, nothing is old.
    Blocks for a round trip. Raises RedisError, OSError.
    """
    lanes = [lane for lane, end in ends.items() if end > 0]
    checkpoints = await client.mget([checkpoint_key(settings, lane) for lane in lanes]) if lanes else []
    lags: dict[int, int] = {}
    for lane, checkpoint in zip(lanes, checkpoints, strict=True):
        position = re.fullmatch(rb"\d+ \d+ (\d+)", cast("bytes | None", checkpoint) or b"")
        if position is not None and int(position[1]) < ends[lane]:
            lags[lane] = ends[lane] - int(position[1])
    return lags


class RedisSink:
    """Writes cache entries.

    A sinks.base.Sink[Sequence[CacheEntry]] whose writes neither raise nor wait when Redis is away.

    It needs a single Redis or Valkey (with replicas), not a sharded cluster: the script uses keys that it
    isn't given.
    """

    def __init__(self, settings: Settings, *, client: Client | None = None) -> None:
        """Create the sink. `client` is by default one for settings.redis."""
        self._timeout = settings.redis_timeout
        # Without limits of its own: they would count what this event loop is busy with. And its retries would
        # hold the batch up.
        self._client: Client = client or open_client(settings, retry=ONCE)
        self._script = _SCRIPT.replace("PREFIX", settings.redis_prefix)
        self._sha = hashlib.sha1(self._script.encode(), usedforsecurity=False).hexdigest()
        self._away_since: float | None = None
        self.refusal: str | None = None
        """Why Redis, which answers, refuses to write, by the last attempt; None: it writes, or is silent."""
        self.failures = 0
        """Attempts that failed."""

    @property
    def away(self) -> bool:
        """Whether the last attempt failed. While it is true, only probes are sent."""
        return self._away_since is not None

    def away_for(self) -> float:
        """Seconds since the first of the attempts that failed in a row; 0: the last one worked."""
        return 0.0 if self._away_since is None else asyncio.get_running_loop().time() - self._away_since

    async def start(self) -> None:
        """Do nothing: the first write connects. A Redis that is away must not hold up a start."""

    async def write(self, batch: Sequence[CacheEntry], /) -> int:
        """Write entries as `put` does, and return how many were written: 0 if Redis is away."""
        written = await self.put(batch)
        return 0 if written is None else written.entries

    async def put(
        self, batch: Sequence[CacheEntry], checkpoint: CacheCheckpoint | None = None, *, probe: bool = False
    ) -> Written | None:
        """Write the entries that aren't older than what is there, then advance the checkpoint.

        Returns None if Redis took only a part of it, or nothing; it isn't tried again. A batch may hold
        several entries of an order; the highest version wins. Never raises what Redis raises. Blocks for
        settings.redis_timeout at most, and not at all while Redis is known to be away, unless this is a
        `probe` whether it is back.
        """
        if not batch and checkpoint is None:
            return Written(0, 0)
        if self.away and not probe:
            return None
        entries, position, lost = 0, 0, False
        clock = asyncio.get_running_loop().time
        try:
            async with answered_within(self._timeout) as limit:
                for first in range(0, len(batch) or 1, _ENTRIES_A_CALL):
                    if checkpoint is not None and first + _ENTRIES_A_CALL < len(batch):
                        arguments: Sequence[str | int] = checkpoint._replace(to=checkpoint.position)
                    else:
                        arguments = checkpoint or ()
                    written, position, lost_here = await self._call(
                        _pack(batch[first : first + _ENTRIES_A_CALL]), *arguments
                    )
                    entries += written
                    lost |= lost_here
                    limit.answered()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error, len(batch))
            return None
        if self._away_since is not None:
            log.info(
                "redis.back: after %(seconds).1f s, %(failures)d failures in all",
                {"seconds": clock() - self._away_since, "failures": self.failures},
            )
            self._away_since = self.refusal = None
        return Written(entries, position, lost)

    def _failed(self, error: Exception, entries: int) -> None:
        self.failures += 1
        before, self.refusal = self.refusal, refusal(error)
        if self._away_since is None:
            self._away_since = asyncio.get_running_loop().time()
        elif before is not None or self.refusal is None:
            return  # it is told already
        if self.refusal is None:
            log.warning(
                "redis.away: %(entries)d entries are left out: %(error)s: %(why)s",
                {"entries": entries, "error": type(error).__name__, "why": error},
            )
        else:
            log.warning(
                "redis.refuses: it answers, but refuses to write, %(entries)d entries are left out: %(why)s",
                {"entries": entries, "why": self.refusal},
            )

    async def close(self) -> None:
        """Close the connections. Blocks for settings.redis_timeout at most."""
        with suppress(TimeoutError):
            async with answered_within(self._timeout):
                await self._client.aclose()

    async def _call(self, packed: bytes, *checkpoint: str | int) -> tuple[int, int, bool]:
        run = self._client.execute_command
        try:
            entries, position, lost = await run("EVALSHA", self._sha, 0, packed, *checkpoint)
        except NoScriptError:
            # The first call of a server's life.
            entries, position, lost = await run("EVAL", self._script, 0, packed, *checkpoint)
        except RuntimeError as error:
            # uvloop's way to say that a connection was reset while nobody used it.
            if "is closed" not in str(error):
                raise
            raise ConnectionResetError(f"Redis ended the connection: {error}") from error
        return int(entries), int(position), bool(lost)
