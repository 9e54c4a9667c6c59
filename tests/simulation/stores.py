"""What a worker writes beside Kafka: Postgres's tables, Redis, and the files of its local store.

Redis runs the pipeline's own script, by a real Lua. Postgres's statement can't run here: `Tables` says its
rule a second time, and tests/contract holds both against the real servers.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from operator import attrgetter
from typing import Any, Final, TypeVar

import asyncpg
import msgspec
import redis.exceptions
from lupa import lua51
from msgspec.structs import replace

from domain.shapes import AttentionRow, Row
from sinks.redis import _SCRIPT
from sinks.rows import NotedAttention, RowBatch
from sinks.schema import TABLES, build_metadata
from streams.transport.table import DUE, StateStore
from tables.codec import is_state
from tests.simulation.loop import Killed
from tests.simulation.network import Network

POSTGRES, REDIS = "postgres", "redis"

# -- Postgres ------------------------------------------------------------------------------------------------

_METADATA = build_metadata("user_id")
_KEYS: Final = {name: attrgetter(*_METADATA.tables[name].primary_key.columns.keys()) for name in TABLES}
"""Table -> the primary key of a row."""


class Tables:
    """The tables. A row is replaced by one of a higher version; at the same version by another one
    whose times aren't later.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[tuple[Any, ...], Row]] = {name: {} for name in TABLES}

    def write(self, given: Mapping[str, Sequence[Row]], noted: Sequence[NotedAttention] = ()) -> int:
        """Write rows in one transaction; returns how many are new or changed."""
        cleared = [row for each in noted for row in self._not_noted(each)]
        return len(cleared) + sum(
            self._put(self.rows[table], _KEYS[table](row), row)
            for table, rows in given.items()
            for row in rows
        )

    def _not_noted(self, noted: NotedAttention) -> Iterator[Row]:
        """Clear what is open of an order's attention and isn't noted, and yield it."""
        table = self.rows["orders_attention"]
        for key, row in list(table.items()):
            assert isinstance(row, AttentionRow)
            if (
                row.order_id == noted.order_id
                and row.cleared_at is None
                and row.version <= noted.version
                and row.kind not in noted.kinds.split(",")
            ):
                at, version = noted.updated_at, noted.version
                table[key] = replace(row, cleared_at=max(row.since, at), updated_at=at, version=version)
                yield row

    @staticmethod
    def _put(table: dict[tuple[Any, ...], Row], key: tuple[Any, ...], row: Row) -> bool:
        old = table.get(key)
        if old is not None:
            # Times are RFC 3339 texts of one form, so they compare as texts.
            no_later = row.created_at <= old.created_at and row.updated_at <= old.updated_at
            if not (row.version > old.version or (row.version == old.version and no_later and row != old)):
                return False
        table[key] = row
        return True


def _connection_lost() -> asyncpg.PostgresError:
    return asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")


class FakePostgres:
    """A sinks.base.Sink[RowBatch] on Tables, as one worker has it."""

    def __init__(self, network: Network, tables: Tables, timeout: float = 31.0) -> None:
        self._network = network
        self._tables = tables
        self._timeout = timeout

    async def start(self) -> None:
        """Connects at the first write."""

    async def write(self, batch: RowBatch, /) -> int:
        """See Sink. Raises asyncpg.ConnectionDoesNotExistError, and TimeoutError."""
        given = {table: tuple(rows) for table, rows in batch.by_table().items()}
        noted = tuple(batch.noted)
        if not given:
            return 0
        return await self._network.request(
            POSTGRES, "rows", lambda: self._tables.write(given, noted), _connection_lost, self._timeout
        )

    async def close(self) -> None:
        """Nothing to give back."""


# -- Redis ---------------------------------------------------------------------------------------------------

_serving: ContextVar[Keys] = ContextVar("serving")
_decode = msgspec.msgpack.Decoder().decode


class Keys:
    """A Redis server's keys, with the commands that the script calls.
    Nothing expires here; lifetimes are remembered in `ttl`.
    """

    def __init__(self) -> None:
        self.values: dict[bytes, bytes | dict[bytes, float]] = {}
        self.ttl: dict[bytes, int] = {}
        self.known = False
        """The script was sent before."""
        self._older: dict[bytes, bytes | dict[bytes, float]] = {}

    def flush(self) -> None:
        """Everything is gone, the script too: a restart without persistence."""
        self.values.clear()
        self.ttl.clear()
        self.known = False

    def keep(self) -> None:
        """What is there now is the older copy from here on."""
        self._older = _copy(self.values)

    def lose(self) -> None:
        """A replica that is behind has taken over, or a snapshot was loaded."""
        self.values = _copy(self._older)

    def readable(self) -> dict[str, Any]:
        """Key -> what it holds: JSON, or (member, score) pairs in the order of a sorted set."""
        by_key: dict[str, Any] = {}
        for key in sorted(self.values):
            value = self.values[key]
            if isinstance(value, dict):
                by_key[key.decode()] = [(member.decode(), value[member]) for member in _ranked(value)]
            else:
                by_key[key.decode()] = value.decode() if key.startswith(b"cache:") else json.loads(value)
        return by_key

    def evaluate(self, arguments: Sequence[bytes | str | int]) -> list[int]:
        """Run the script."""
        token = _serving.set(self)
        try:
            texts = [each if isinstance(each, bytes) else str(each).encode() for each in arguments]
            return [int(each) for each in _RUN(*texts).values()]
        finally:
            _serving.reset(token)

    def call(self, command: bytes, *arguments: Any) -> Any:
        """One command, as redis.call has it."""
        return _COMMANDS[command](self, *(_bytes(each) for each in arguments))

    def text(self, key: bytes) -> bytes | None:
        value = self.values.get(key)
        if isinstance(value, dict):
            raise TypeError("WRONGTYPE")
        return value

    def sorted_set(self, key: bytes) -> dict[bytes, float]:
        value = self.values.setdefault(key, {})
        if not isinstance(value, dict):
            raise TypeError("WRONGTYPE")
        return value


def _copy(values: Mapping[bytes, bytes | dict[bytes, float]]) -> dict[bytes, bytes | dict[bytes, float]]:
    return {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return b"%d" % int(value) if float(value).is_integer() else repr(float(value)).encode()


def _get(keys: Keys, key: bytes) -> Any:
    text = keys.text(key)
    return False if text is None else text


def _set(keys: Keys, key: bytes, value: bytes, *options: bytes) -> bytes:
    keys.values[key] = value
    if options[:1] == (b"EX",):
        keys.ttl[key] = int(options[1])
    elif options != (b"KEEPTTL",):
        keys.ttl.pop(key, None)
    return b"OK"


def _delete(keys: Keys, *names: bytes) -> int:
    return sum(keys.values.pop(name, None) is not None for name in names)


def _zadd(keys: Keys, key: bytes, score: bytes, member: bytes) -> int:
    members = keys.sorted_set(key)
    new = member not in members
    members[member] = float(score)
    return int(new)


def _ranked(members: Mapping[bytes, float]) -> list[bytes]:
    return sorted(members, key=lambda member: (members[member], member))


def _zremrangebyrank(keys: Keys, key: bytes, first: bytes, last: bytes) -> int:
    members = keys.sorted_set(key)
    ranked = _ranked(members)
    end = int(last) + 1
    gone = ranked[int(first) : end or None]
    for member in gone:
        del members[member]
    return len(gone)


def _expire(keys: Keys, key: bytes, seconds: bytes) -> int:
    keys.ttl[key] = int(seconds)
    return 1


def _ttl(keys: Keys, key: bytes) -> int:
    return keys.ttl.get(key, -1) if key in keys.values else -2


_COMMANDS: Final[dict[bytes, Callable[..., Any]]] = {
    b"GET": _get,
    b"SET": _set,
    b"DEL": _delete,
    b"TTL": _ttl,
    b"ZADD": _zadd,
    b"ZCARD": lambda keys, key: len(keys.sorted_set(key)),
    b"ZREMRANGEBYRANK": _zremrangebyrank,
    b"EXPIRE": _expire,
}


def _script() -> Callable[..., Any]:
    """The script as a function of its arguments, in a Lua with the modules that Redis gives it.
    Texts are bytes throughout.
    """
    lua = lua51.LuaRuntime(encoding=None)

    null = object()  # cjson.null

    def to_lua(value: Any) -> Any:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, list):
            return lua.table_from([to_lua(each) for each in value])
        if isinstance(value, dict):
            return lua.table_from(
                {name.encode(): null if each is None else to_lua(each) for name, each in value.items()}
            )
        return value

    def from_lua(value: Any) -> Any:
        if isinstance(value, bytes):
            return value.decode()
        if value is null:
            return None
        if lua51.lua_type(value) == "table":
            keys = list(value.keys())
            if keys and keys == list(range(1, len(keys) + 1)):
                return [from_lua(value[key]) for key in keys]
            return {key.decode(): from_lua(value[key]) for key in keys}
        return value

    globals_ = lua.globals()
    globals_[b"redis"] = lua.table_from({b"call": lambda *arguments: _serving.get().call(*arguments)})
    globals_[b"cmsgpack"] = lua.table_from({b"unpack": lambda packed: to_lua(_decode(packed))})
    globals_[b"cjson"] = lua.table_from(
        {
            b"decode": lambda text: to_lua(json.loads(text)),
            b"encode": lambda value: json.dumps(from_lua(value), separators=(",", ":")).encode(),
        }
    )
    # Redis's unpack takes a range; so does Lua 5.1's own.
    run: Callable[..., Any] = lua.eval(
        b"function(...) local ARGV = {...}\n" + _SCRIPT.replace("PREFIX", "").encode() + b"\nend"
    )
    return run


_RUN: Final = _script()


class FakeRedis:
    """sinks.redis.Client on Keys, as one worker has it."""

    def __init__(self, network: Network, keys: Keys) -> None:
        self._network = network
        self._keys = keys

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """EVALSHA or EVAL. Raises redis.exceptions.ConnectionError and NoScriptError."""
        command, _, _, *given = arguments

        def apply() -> list[int]:
            if command == "EVALSHA" and not self._keys.known:
                raise redis.exceptions.NoScriptError("NOSCRIPT")
            self._keys.known = True
            return self._keys.evaluate(given)

        return await self._network.request(REDIS, "cache", apply, redis.exceptions.ConnectionError)

    async def aclose(self) -> None:
        """Nothing to give back."""


# -- local store ---------------------------------------------------------------------------------------------

T = TypeVar("T")


class Files:
    """The local store of one worker's folder, by partition, with an older generation that a
    machine may come back with.
    """

    def __init__(self) -> None:
        self.partitions: dict[int, dict[bytes, bytes]] = {}
        self.older: dict[int, dict[bytes, bytes]] = {}

    def keep(self) -> None:
        """What is there now is the older generation from here on."""
        self.older = {number: dict(content) for number, content in self.partitions.items()}

    def lose(self) -> None:
        """The machine comes back with the older generation."""
        self.partitions = {number: dict(content) for number, content in self.older.items()}

    def delete(self) -> None:
        """The folder is deleted."""
        self.partitions.clear()
        self.older.clear()


class _Batch:
    """rocksdict's WriteBatch: takes effect as a whole."""

    def __init__(self) -> None:
        self.puts: dict[bytes, bytes | None] = {}

    def put(self, key: bytes, value: bytes) -> None:
        self.puts[key] = value

    def delete(self, key: bytes) -> None:
        self.puts[key] = None


class _Cursor:
    """rocksdict's iterator over sorted keys."""

    def __init__(self, keys: list[bytes]) -> None:
        self._keys = keys
        self._at = 0

    def seek(self, key: bytes) -> None:
        self._at = bisect_left(self._keys, key)

    def valid(self) -> bool:
        return self._at < len(self._keys)

    def key(self) -> bytes:
        return self._keys[self._at]

    def next(self) -> None:
        self._at += 1


class _Db:
    """rocksdict's Rdict of one partition."""

    def __init__(self, content: dict[bytes, bytes], network: Network) -> None:
        self._content = content
        self._network = network

    def get(self, keys: list[bytes]) -> list[bytes | None]:
        return [self._content.get(key) for key in keys]

    def iter(self) -> _Cursor:
        return _Cursor(sorted(key for key in self._content if key.startswith(DUE)))

    def write(self, batch: _Batch) -> None:
        fault = self._network.local()
        if fault != "crash_out":
            for key, value in batch.puts.items():
                if value is None:
                    self._content.pop(key, None)
                else:
                    self._content[key] = value
        if fault:
            self._network.die("the local store's write")
            raise Killed


class FakeStore(StateStore):
    """The real StateStore on Files instead of RocksDB."""

    def __init__(
        self,
        files: Files,
        network: Network,
        version_of: Callable[[bytes], int],
        due_of: Callable[[bytes], int],
    ) -> None:
        # Not Faust's: it would ask for an app.
        self._files = files
        self._network = network
        self._version_of = version_of
        self._due_of = due_of
        self._is_state = is_state

    def _db_for_partition(self, partition: int) -> Any:
        return _Db(self._files.partitions.setdefault(partition, {}), self._network)

    def _new_batch(self) -> Any:
        return _Batch()

    def persisted(self, partition: int) -> int | None:
        """The changelog offset that the store goes up to."""
        raw = self._files.partitions.get(partition, {}).get(self.offset_key)
        return None if raw is None else int(raw)
