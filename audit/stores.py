"""Reading what the pipeline wrote outside Kafka: rows in Postgres, entries in Redis, workers' local tables.
Nothing here writes to them.
"""

from __future__ import annotations

import functools
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
import msgspec
import redis.asyncio
import rocksdict
from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from audit.attention import TABLE as ATTENTION
from audit.attention import named_in
from audit.foreign import read_json
from audit.log import told
from audit.reference import uuid_text
from credentials import Refusal
from errors import OrdersError

COLUMNS: Final = {
    "orders_order": (
        "id user_id region status currency total_amount discount_amount tax_amount cart_id cart_created_at"
        " created_at updated_at"
        " version"
    ),
    "orders_order_item": (
        "id order_id user_id region product_id seller_id warehouse_id sku quantity price shipping_amount"
        " tax_amount shipping_tax_amount created_at updated_at version"
    ),
    "orders_shipment": (
        "id order_id user_id region seller_id warehouse_id carrier tracking_number status estimated_delivery"
        " created_at updated_at version"
    ),
    "orders_return": (
        "id order_id user_id region order_item_id quantity reason status processed_at created_at updated_at"
        " version"
    ),
    "orders_suborder": (
        "id order_id user_id region seller_id status closed_because currency items_amount shipping_amount"
        " discount_amount tax_amount total_amount units_ordered units_live units_in_transit units_delivered"
        " units_returned ship_by deliver_by late_since order_status items units parcels parcels_in_transit"
        " parcels_delivered parcels_returned returns created_at updated_at version"
    ),
    "orders_payment": (
        "id order_id user_id region status amount currency method reason created_at updated_at version"
    ),
    "orders_refund": (
        "id order_id user_id region number status amount tax_amount currency cause cause_id attempt reason"
        " requested_at settled_at created_at updated_at version"
    ),
    ATTENTION: "kind order_id user_id region detail since cleared_at created_at updated_at version",
}
TABLES: Final = tuple(COLUMNS)
_TIMES: Final = (
    "created_at",
    "updated_at",
    "processed_at",
    "estimated_delivery",
    "ship_by",
    "deliver_by",
    "late_since",
    "requested_at",
    "settled_at",
    "cart_created_at",
    "since",
    "cleared_at",
)
_MONEY: Final = (
    "total_amount",
    "discount_amount",
    "price",
    "shipping_amount",
    "tax_amount",
    "shipping_tax_amount",
    "items_amount",
    "amount",
)
_DETAIL: Final = "detail"
_NUMBERS: Final = (
    "quantity",
    "version",
    "units_ordered",
    "units_live",
    "units_in_transit",
    "units_delivered",
    "units_returned",
    "items",
    "units",
    "parcels",
    "parcels_in_transit",
    "parcels_delivered",
    "parcels_returned",
    "returns",
    "number",
    "attempt",
)

Row = tuple[Any, ...]


class StoreUnavailable(OrdersError):
    """Postgres or Redis can't be read. The message says which and what happened."""

    remedy = "start it (orders stack up), or set where it is (orders settings)"


def columns(table: str) -> list[str]:
    return COLUMNS[table].split()


def order_column(table: str) -> str:
    return "id" if table == "orders_order" else "order_id"


# -- Postgres ------------------------------------------------------------------------------------------------
#
# Rows travel and are compared as Postgres' COPY writes them, one line of text each.
# Only where two lines differ are they taken apart.

_TO_ESCAPE: Final = re.compile(r"[\\\b\f\n\r\t\v]")
_ESCAPES: Final = {"\\": r"\\", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)
_UNESCAPES: Final = {written[1]: char for char, written in _ESCAPES.items()}


def _escape(match: re.Match[str]) -> str:
    return _ESCAPES[match[0]]


@functools.lru_cache(maxsize=4096)  # an order's rows share their times
def _time_line(text: str) -> str:
    """2026-01-02T03:04:05.120000+00:00 -> 2026-01-02 03:04:05.12+00"""
    day, _, clock = text.removesuffix("+00:00").partition("T")
    return f"{day} {clock.rstrip('0').rstrip('.') if '.' in clock else clock}+00"


def _money_line(text: str) -> str:
    """12.34 -> 12.3400"""
    whole, _, fraction = text.partition(".")
    return f"{whole}.{fraction:0<4}"


def _as_line(name: str) -> Callable[[Any], str]:
    if name in _TIMES:
        return _time_line
    if name in _MONEY:
        return _money_line
    if name in _NUMBERS:
        return str
    return _as_is


def _as_is(text: str) -> str:
    return text


_WRITERS: Final = {table: tuple(_as_line(name) for name in columns(table)) for table in TABLES}
_SPECIAL: Final = {
    table: [(at, write) for at, write in enumerate(writers) if write is not _as_is]
    for table, writers in _WRITERS.items()
}
"""Table -> (number of a column, what writes it), where that isn't the text as it is."""


def line_of(table: str, row: Sequence[Any]) -> bytes:
    """A row of the reference (text, None for NULL) as a line of COPY in text format: what
    `Rows.lines` gives for the same row.
    """
    texts = list(row)
    for at, write in _SPECIAL[table]:
        if texts[at] is not None:
            texts[at] = write(texts[at])
    plain = "".join([text for text in texts if text is not None])
    if _TO_ESCAPE.search(plain) is not None:  # hardly ever
        texts = [text if text is None else _TO_ESCAPE.sub(_escape, text) for text in texts]
    return "\t".join(["\\N" if text is None else text for text in texts]).encode()


def comparable(table: str, row: Sequence[Any]) -> Row:
    """A row of the reference with values that compare: times, decimals, what a detail names."""
    return tuple(
        datetime.fromisoformat(value)
        if value is not None and name in _TIMES
        else Decimal(value)
        if value is not None and name in _MONEY
        else named_in(value)
        if name == _DETAIL
        else value
        for name, value in zip(columns(table), row, strict=True)
    )


def row_of(table: str, line: bytes) -> Row:
    """A line of COPY as `comparable` has it."""
    values: list[Any] = []
    for name, text in zip(columns(table), line.decode().split("\t"), strict=True):
        if text == "\\N":
            values.append(None)
        elif name in _TIMES:
            values.append(datetime.fromisoformat(text))
        elif name in _MONEY:
            values.append(Decimal(text))
        elif name in _NUMBERS:
            values.append(int(text))
        else:
            values.append(named_in(_unescape(text)) if name == _DETAIL else _unescape(text))
    return tuple(values)


def text_at(line: bytes, at: int) -> str | None:
    """The text in a column of a line of COPY."""
    text = line.split(b"\t")[at].decode()
    return None if text == "\\N" else _unescape(text)


def _unescape(text: str) -> str:
    return _ESCAPED.sub(lambda match: _UNESCAPES.get(match[1], match[1]), text)


class Rows:
    """The tables of orders, read in a snapshot, in a transaction that can't write.
    Methods block on the network.

    They raise StoreUnavailable.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, timeout: float = 10.0) -> AsyncIterator[Rows]:
        """A connection. What is read is read in a `snapshot`."""
        # Not read-only for the whole session: target_session_attrs would take every server for one
        # that can't be written to. What else is needed is said in the transaction: a pooler may give the
        # session to somebody else afterwards.
        settings = {"application_name": "orders-audit"}
        try:
            connection = await asyncpg.connect(dsn, timeout=timeout, server_settings=settings)
        except asyncpg.PostgresError as error:
            said = Refusal.of(dsn, error.sqlstate or "", error.args[0] if error.args else "")
            raise StoreUnavailable(f"no Postgres at {_without_password(dsn)}: {said.text}") from None
        except asyncpg.TargetServerAttributeNotMatched:
            raise StoreUnavailable(
                f"no Postgres at {_without_password(dsn)}: no host is what target_session_attrs asks for"
            ) from None
        except (OSError, TimeoutError) as error:
            raise StoreUnavailable(f"no Postgres at {_without_password(dsn)}: {told(error)}") from error
        except (asyncpg.InterfaceError, ValueError) as error:
            # What a client doesn't understand it repeats.
            raise StoreUnavailable(
                f"no Postgres at {_without_password(dsn)}: {type(error).__name__}"
            ) from None
        _keep_alive(connection._transport)  # type: ignore[attr-defined]
        try:
            yield cls(connection)
        finally:
            await connection.close()

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """What is read in this block is as it was at the first read."""
        try:
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                await self._connection.execute(
                    "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL search_path = public"
                )
                yield
        except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:  # also of its end
            raise StoreUnavailable(f"Postgres: {told(error)}") from error

    async def estimate(self) -> int:
        """About how many rows there are, by Postgres' statistics.
        Raises StoreUnavailable also when the tables don't exist.
        """
        names = ", ".join(f"'{table}'::regclass" for table in TABLES)
        query = (
            "SELECT coalesce(sum(reltuples) FILTER (WHERE reltuples > 0), 0)::bigint"
            f" FROM pg_class JOIN pg_inherits ON oid = inhrelid WHERE inhparent IN ({names})"
        )
        return int(await self._run(self._connection.fetchval(query)))

    async def lines(self, table: str, take: Callable[[bytes, bytes], None], where: str = "") -> None:
        """Calls `take(order id as text, line)` for every row of a table, or those that `where` says: see
        rows_of and rows_between.
        """
        rest = b""

        async def output(chunk: bytes) -> None:
            nonlocal rest
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            for line in lines:
                take(line[:36], line[37:])

        query = f"SELECT {order_column(table)}, {', '.join(columns(table))} FROM {table}"
        if where:
            query += f" WHERE {where.replace('?', order_column(table))}"
        await self._run(self._connection.copy_from_query(query, output=output))

    @staticmethod
    async def _run(question: Awaitable[Any]) -> Any:
        try:
            return await question
        except (
            asyncpg.UndefinedTableError,
            asyncpg.UndefinedColumnError,
        ) as error:  # of a version before, too
            raise StoreUnavailable(f"Postgres: {error}", "run orders init") from error
        except asyncpg.InsufficientPrivilegeError as error:
            raise StoreUnavailable(
                f"Postgres: {told(error)}",
                "give its role that: orders grants postgres --role audit prints what it needs",
            ) from error
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(f"Postgres: {told(error)}") from error


def rows_of(keys: Iterable[bytes]) -> str:
    """Of these orders, for Rows.lines: their canonical ids."""
    return f"? = ANY ('{{{','.join(key.decode() for key in keys)}}}'::uuid[])"


def rows_between(after: bytes, last: bytes) -> str:
    """Of the orders after the one id, up to the other one; b"": from the first, to the last."""
    bounds = [f"? > '{after.decode()}'"] if after else []
    bounds += [f"? <= '{last.decode()}'"] if last else []
    return " AND ".join(bounds)


def _keep_alive(transport: Any) -> None:
    """Have TCP find out, within some seconds, that the server has gone without a word:
    rows may be read for long.
    """
    line = transport.get_extra_info("socket")
    if line is None or line.family not in (socket.AF_INET, socket.AF_INET6):
        return
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 2), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _without_password(dsn: str) -> str:
    """Where the server is: what stands before the @ or after the ? may be secret."""
    scheme, _, rest = dsn.partition("?")[0].partition("://")
    _, at, place = rest.rpartition("@")
    return f"{scheme}://{'***@' if at else ''}{place}"


# -- Redis ---------------------------------------------------------------------------------------------------

# One answer for many keys, in MessagePack: a client spends as long on one small answer as Redis does on a
# key. MessagePack in Lua writes all strings as text, so what isn't ASCII goes as hexadecimal digits.
_LOOK: Final = """
local prefix = ARGV[1]
local function packed(text)
  if not string.find(text, '[\\128-\\255]') then return text end
  return {(string.gsub(text, '.', function(char) return string.format('%02x', string.byte(char)) end))}
end
local found = {}
local function look(key)
  local name = string.sub(key, #prefix + 1)
  local family = string.match(name, '^order:') or string.match(name, '^tracking:')
    or string.match(name, '^user:.*:orders$')
  if family and string.sub(key, 1, #prefix) == prefix then
    local kind = redis.call('TYPE', key).ok
    local value = false
    if family == 'order:' or family == 'tracking:' then
      if kind == 'string' then value = packed(redis.call('GET', key)) end
    elseif kind == 'zset' then
      value = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
      for n, text in ipairs(value) do value[n] = packed(text) end
    end
    found[#found + 1] = {packed(name), kind, redis.call('PTTL', key), value}
  end
end
"""
_SCAN: Final = (
    _LOOK
    + """
local scanned = redis.call('SCAN', ARGV[2], 'COUNT', ARGV[3])
for _, key in ipairs(scanned[2]) do look(key) end
return cmsgpack.pack({scanned[1], found})
"""
)
_SOME: Final = (
    _LOOK
    + """
for n = 2, #ARGV do look(prefix .. ARGV[n]) end
return cmsgpack.pack({'', found})
"""
)
COMMANDS: Final = frozenset({"DBSIZE", "EVAL_RO", "GET", "INFO", "MGET", "PTTL", "SCAN", "TYPE", "ZRANGE"})
"""All that a Cache sends to Redis, in the script too."""
_SCAN_COUNT: Final = 1000
_CHECKPOINT: Final = re.compile(rb"[0-9]+ [0-9]+ ([0-9]+)")
"""A lane's checkpoint: generation of the group, number of the write, position in the changelog."""
_ORDERS_A_CALL: Final = 100
_KEYS_A_CALL: Final = 500


class Entry(NamedTuple):
    """What lies under a key. `value`: the string, the sorted set as (member, score), None for another type;
    `ttl` in ms, -1: for ever.
    """

    key: bytes
    kind: str
    ttl: int
    value: bytes | list[tuple[bytes, float]] | None


class Tracked(NamedTuple):
    """`parcels` under a tracking number, as (order id, shipment id); `orders` of those asked about,
    whose summaries are there.
    """

    parcels: set[tuple[str, str]]
    orders: set[str]


@dataclass(frozen=True, slots=True)
class CacheServer:
    """A Redis. `open` makes a client (it must be picklable), `where` is for a person, `prefix` is that of the
    pipeline's keys.
    """

    open: Callable[[], redis.asyncio.Redis]
    where: str
    prefix: str = ""


class Cache:
    """Redis, read once. Keys are named without their prefix.
    Methods block on the network and raise StoreUnavailable.
    """

    def __init__(self, server: CacheServer) -> None:
        self._where = server.where
        self._prefix = server.prefix
        self._client = server.open()
        self._evicts: bool | None = None

    async def close(self) -> None:
        await self._client.aclose()

    async def size(self) -> int:
        """Keys in the database, ours and others'."""
        try:
            return int(await self._client.dbsize())
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error

    async def entries(self) -> AsyncIterator[list[Entry]]:
        """Everything under the pipeline's keys, some at a time; a key may come twice."""
        cursor = "0"
        while True:
            try:
                run: Any = self._client.execute_command
                raw = await run("EVAL_RO", _SCAN, 0, self._prefix, cursor, _SCAN_COUNT)
            except (RedisError, OSError) as error:
                raise self._unavailable(error) from error
            cursor, keys = msgspec.msgpack.decode(raw)
            yield [entry for entry in map(_entry, keys) if entry is not None]
            if cursor == "0":
                return

    async def some(self, names: Sequence[str]) -> list[Entry]:
        """What lies under these keys."""
        entries: list[Entry] = []
        for first in range(0, len(names), _KEYS_A_CALL):
            some = names[first : first + _KEYS_A_CALL]
            try:
                run: Any = self._client.execute_command
                raw = await run("EVAL_RO", _SOME, 0, self._prefix, *some)
            except (RedisError, OSError) as error:
                raise self._unavailable(error) from error
            _, keys = msgspec.msgpack.decode(raw)
            entries += [entry for entry in map(_entry, keys) if entry is not None]
        return entries

    async def parcels(self, key: str, order_ids: Sequence[str]) -> Tracked | None:
        """What is under a tracking number's key now, and of which of these orders there are summaries;
        None: there is no such list.
        """
        tracked: Tracked | None = None
        for first in range(0, len(order_ids), _ORDERS_A_CALL):
            some = order_ids[first : first + _ORDERS_A_CALL]
            try:
                value, *summaries = await self._client.mget(
                    [self._prefix + name for name in (key, *(f"order:{order_id}" for order_id in some))]
                )
            except (RedisError, OSError) as error:
                raise self._unavailable(error) from error
            try:
                parcels = {(str(each["order_id"]), str(each["shipment_id"])) for each in read_json(value)}
            except (ValueError, TypeError, KeyError):
                return None
            with_summary = {
                order_id for order_id, summary in zip(some, summaries, strict=True) if summary is not None
            }
            tracked = Tracked(parcels, with_summary if tracked is None else tracked.orders | with_summary)
        return tracked

    async def behind(self, group: str, ends: Mapping[int, int]) -> dict[int, int]:
        """Return, by lane, the records of its changelog between its checkpoint in Redis and `ends`; without a
        checkpoint nothing is old."""
        lanes = [lane for lane, end in ends.items() if end > 0]
        try:
            checkpoints = (
                await self._client.mget([f"{self._prefix}cache:{group}:{lane}" for lane in lanes])
                if lanes
                else []
            )
        except (RedisError, OSError) as error:
            raise self._unavailable(error) from error
        lags = {}
        for lane, checkpoint in zip(lanes, checkpoints, strict=True):
            position = _CHECKPOINT.fullmatch(_plain(checkpoint))
            if position is not None and int(position[1]) < ends[lane]:
                lags[lane] = ends[lane] - int(position[1])
        return lags

    async def evicts(self) -> bool:
        """Whether Redis has evicted keys, or doesn't tell us."""
        if self._evicts is None:
            try:
                self._evicts = bool((await self._client.info("stats")).get("evicted_keys", 0))
            except ResponseError:  # no permission
                self._evicts = True
            except (RedisError, OSError) as error:
                raise self._unavailable(error) from error
        return self._evicts

    def _unavailable(self, error: Exception) -> StoreUnavailable:
        if isinstance(error, NoPermissionError):
            return StoreUnavailable(
                f"Redis at {self._where} doesn't allow it: {told(error)}",
                "give its user that: orders grants redis --role audit prints what it needs",
            )
        if isinstance(error, MasterNotFoundError):  # its text says how each client was made
            return StoreUnavailable(
                f"no Sentinel of {self._where} names a primary",
                "check the service's name and whether they run, or audit without it (--no-cache)",
            )
        return StoreUnavailable(
            f"no Redis at {self._where}: {told(error)}",
            "start it (orders stack up), or audit without it (--no-cache)",
        )


def _entry(raw: list[Any]) -> Entry | None:
    key, kind, ttl, value = raw
    if kind == "none":  # expired in between
        return None
    if isinstance(value, list) and kind == "zset":
        texts = [_bytes(text) for text in value]
        value = [(member, float(score)) for member, score in zip(texts[::2], texts[1::2], strict=True)]
    elif value is False:
        value = None
    else:
        value = _bytes(value)
    return Entry(_bytes(key), kind, ttl, value)


def _plain(value: bytes | str | None) -> bytes:
    return value if isinstance(value, bytes) else (value or "").encode()


def _bytes(packed: str | list[str]) -> bytes:
    return packed.encode() if isinstance(packed, str) else bytes.fromhex(packed[0])


# -- workers' local tables -----------------------------------------------------------------------------------

_OFFSET_KEY: Final = b"offset of the changelog"
_PARTITION: Final = re.compile(r"state-([0-9]+)\.db")


_DUE_KEY: Final = 28
"""Bytes of a key of the index of due times, which lies beside the states."""


class LocalTable:
    """One partition of a worker's local copy of the state table, opened for reading
    only, as it is at that moment.

    Raises StoreUnavailable when it can't be opened. Reads the local disk.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = rocksdict.Rdict(
                str(path), rocksdict.Options(raw_mode=True), access_type=rocksdict.AccessType.read_only()
            )
        except Exception as error:  # rocksdict raises plain Exception
            raise StoreUnavailable(f"{path}: {error}") from error
        offset = self._db.get(_OFFSET_KEY)
        self.offset = int(offset) if offset is not None else -1
        """The last changelog record that it holds."""

    def close(self) -> None:
        self._db.close()

    def states(self) -> Iterator[tuple[bytes, bytes]]:
        """(order id as text, state) of every order."""
        items: Any = self._db.items()
        for key, value in items:
            if key != _OFFSET_KEY and not (len(key) == _DUE_KEY and key.startswith(b"due:")):
                yield (uuid_text(key.hex()).encode() if len(key) == 16 else key), value


def local_tables(data: Path, group: str, cluster: str) -> dict[Path, int]:
    """Path -> partition of the local tables under ORDERS_DATA that were built from this cluster,
    whatever worker they belong to.
    """
    tables: dict[Path, int] = {}
    for folder in (data / group, *sorted(data.glob(f"*/{group}"))):
        marker = folder / "cluster"
        if marker.is_file() and marker.read_text().strip() == cluster:
            for path in sorted(folder.glob("v*/tables/state-*.db")):
                match = _PARTITION.fullmatch(path.name)
                if match is not None:
                    tables[path] = int(match[1])
    return tables
