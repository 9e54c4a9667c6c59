"""The state table: Faust's place for it (changelog topic, partition files, rebalancing), with
our own reads and writes.

Keys and values are raw bytes. The changelog is the truth; the local RocksDB is a copy that can be deleted.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import rocksdict
from faust.stores import rocksdb
from faust.tables.table import Table
from faust.types import TP, CollectionT

from streams.transport.errors import DiskFull, StateCorrupt
from streams.transport.records import DueState, Moved, Record
from wire import unreadable

log = logging.getLogger(__name__)

VersionOf = Callable[[bytes], int]
DueOf = Callable[[bytes], int]
"""State -> when it is due, ms by the broker's time; 0: never."""
IsState = Callable[[bytes, bytes], bool]
"""(key, value) -> whether they are a state's. Anybody may write to a changelog."""

DUE: Final = b"due:"
_DUE_KEY: Final = len(DUE) + 8
"""An entry of the index of due times: prefix, time in 8 bytes (the highest first, so that they
sort), key. Its value is empty.
"""
KEY_BYTES: Final = 16
"""A state's key has so many bytes at most, and may be any: whoever names an order chooses it.
The store's own keys are longer.
"""
OFFSET: Final = b"offset of the changelog"
"""Where a store says how far it goes."""
LATEST: Final = DUE + b"\xff" * 8 + b"the latest keys:"
"""Where a store says which states were written to it last. To the version before it is an entry of the index
that is never due.
"""
LATEST_KEYS: Final = 32
_FORMER_OFFSET: Final = rocksdb.Store.offset_key
"""Where it said so before: as long as a state's key, and so perhaps one."""
DUE_BYTES: Final = 16 << 20
"""Of states that are due, about: more are due the next time."""
_DUE_AT_ONCE: Final = 64
PAGE_STATES: Final = 200
PAGE_KEYS: Final = 1_000
PAGE_BYTES: Final = 1 << 20
"""Of states that are looked at together, about, in the event loop."""

MEMORY = 64 << 20
"""Bytes of block cache that all partitions of a worker share (Faust's default is 2 GiB for each)."""
WRITE_BUFFER = 16 << 20
BLOOM_BITS = 10
OPEN_FILES = 512
LOG_BYTES = 1 << 20
CORRUPT = ("Corruption", "No such file or directory")
"""How RocksDB says that files are broken, or missing. (rocksdict raises Exception for everything.)
A lock held by another process is something else.
"""
FULL = ("No space left on device", "Disk quota exceeded")
"""How the system says, in RocksDB's words, that there is no room."""


class Newest(NamedTuple):
    """What a stretch of the changelog leaves: `kept`, and the keys that were `deleted` somewhere
    in it, whatever came after.
    """

    kept: dict[bytes, bytes | None]
    deleted: set[bytes]


class Page(NamedTuple):
    """Some of a partition's states, and the key behind which the next ones are. None: these were the last."""

    states: dict[bytes, bytes]
    until: bytes | None


def newest(records: Sequence[Record], version_of: VersionOf) -> Newest:
    """The highest version of each key, the later one of equals; a deletion counts as later
    than all before it. Pure.

    Not simply the last: a worker that had lost its partition may have written an older
    state after its successor's.
    """
    kept: dict[bytes, bytes | None] = {}
    deleted: set[bytes] = set()
    for record in records:
        key, value = record.key, record.value
        if key is None:
            continue
        old = kept.get(key)
        if value is None:
            deleted.add(key)
        if value is None or old is None or version_of(value) >= version_of(old):
            kept[key] = value
    return Newest(kept, deleted)


def of_states(records: Sequence[Record], is_state: IsState, where: str) -> list[Record]:
    """Those that are states or deletions of states.
    What else somebody wrote to a changelog is told, and left out: `where` names it.
    """
    kept: list[Record] = []
    for record in records:
        key, value = record.key, record.value
        if (
            key is not None
            and len(key) <= KEY_BYTES
            and (value is None or is_state(key, value))
            and unreadable(record) is None
        ):
            kept.append(record)
        else:
            log.error(
                "%(where)s: the record at offset %(offset)d is no state: left out (key %(key)s)",
                {"where": where, "offset": record.offset, "key": (key or b"").hex() or "none"},
            )
    return kept


def store_options(cache: rocksdict.Cache) -> rocksdict.Options:
    """RocksDB's options for a store of states. It is made where it is missing.
    Stores may share a cache of blocks.
    """
    blocks = rocksdict.BlockBasedOptions()
    blocks.set_block_cache(cache)
    blocks.set_bloom_filter(BLOOM_BITS, False)
    blocks.set_cache_index_and_filter_blocks(True)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(WRITE_BUFFER)
    options.set_max_write_buffer_number(2)
    options.set_target_file_size_base(WRITE_BUFFER)
    options.set_max_background_jobs(2)
    options.set_max_open_files(OPEN_FILES)
    options.set_max_log_file_size(LOG_BYTES)
    options.set_keep_log_file_num(2)
    options.set_stats_dump_period_sec(0)
    return options


class StateStore(rocksdb.Store):
    """RocksDB files, one for each partition.

    Every call reads or writes the local disk, from the main thread, and may raise StateCorrupt.
    """

    offset_key = OFFSET

    def __init__(
        self,
        *args: Any,
        version_of: VersionOf,
        due_of: DueOf | None,
        is_state: IsState,
        cache: rocksdict.Cache,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._version_of = version_of
        self._due_of = due_of
        self._is_state = is_state
        self._cache = cache

    def states(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`, None where there is none."""
        if not keys:
            return []
        with self._sound(partition):
            values: list[bytes | None] = self._db_for_partition(partition).get(list(keys))
        return values

    def first_due(self, partition: int) -> int:
        """The earliest due time of all states, ms; 0: none is due ever."""
        with self._sound(partition):
            entry = next(self._index(partition), None)
        return 0 if entry is None else _due_time(entry)

    def due(self, partition: int, until: int, limit: int) -> list[DueState]:
        """At most `limit` entries that are due at `until` (ms) or before, the earliest first; fewer where
        their states are more than DUE_BYTES.
        """
        entries: list[bytes] = []
        with self._sound(partition):
            for entry in self._index(partition):
                if _due_time(entry) > until or len(entries) == limit:
                    break
                entries.append(entry)
        due_states: list[DueState] = []
        size = 0
        for start in range(0, len(entries), _DUE_AT_ONCE):
            some = entries[start : start + _DUE_AT_ONCE]
            for entry, state in zip(
                some, self.states(partition, [entry[_DUE_KEY:] for entry in some]), strict=True
            ):
                due_states.append(DueState(_due_time(entry), entry[_DUE_KEY:], state))
                size += len(state or b"")
            if size > DUE_BYTES:
                break
        return due_states

    def _index(self, partition: int) -> Iterator[bytes]:
        cursor = self._db_for_partition(partition).iter()
        cursor.seek(DUE)
        while cursor.valid() and (entry := cursor.key()).startswith(DUE):
            if len(entry) > KEY_BYTES and entry != LATEST:
                yield entry
            cursor.next()

    def write(
        self,
        partition: int,
        puts: Mapping[bytes, bytes | None],
        offset: int | None,
        moved: Iterable[Moved] = (),
    ) -> None:
        """Write `puts` (None deletes), the changelog offset that they go up to, and what changed of
        their due times, in one step.
        """
        batch = self._new_batch()
        for key, value in puts.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        for each in moved:
            if each.before:
                batch.delete(due_entry(each.before, each.key))
            if each.now:
                batch.put(due_entry(each.now, each.key), b"")
        if offset is not None:
            batch.put(self.offset_key, str(offset).encode())
        latest = [key for key in [*puts][-LATEST_KEYS:] if puts[key] is not None and len(key) == KEY_BYTES]
        if latest:
            batch.put(LATEST, b"".join(latest))
        with self._sound(partition):
            self._db_for_partition(partition).write(batch)

    def position(self, partition: int) -> int:
        """The changelog's position that the partition's state goes up to, at least."""
        (raw,) = self.states(partition, [self.offset_key])
        return 0 if raw is None else int(raw) + 1

    def latest(self, partition: int) -> list[bytes]:
        """Keys of the states that were written last, LATEST_KEYS at most."""
        (raw,) = self.states(partition, [LATEST])
        return [] if raw is None else [raw[at : at + KEY_BYTES] for at in range(0, len(raw), KEY_BYTES)]

    def after(self, partition: int, key: bytes) -> Page:
        """Some states after `key`, in the order of keys."""
        states: dict[bytes, bytes] = {}
        size = seen = 0
        with self._sound(partition):
            cursor = self._db_for_partition(partition).iter()
            cursor.seek(key + b"\0")
            while cursor.valid() and len(states) < PAGE_STATES and size < PAGE_BYTES and seen < PAGE_KEYS:
                key = cursor.key()
                seen += 1
                if len(key) <= KEY_BYTES:
                    states[key] = cursor.value()
                    size += len(states[key])
                cursor.next()
            return Page(states, key if cursor.valid() else None)

    def persisted_offset(self, tp: TP) -> int | None:
        """The changelog offset that the partition's state goes up to."""
        with self._sound(tp.partition):
            offset: int | None = super().persisted_offset(tp)
        return offset

    def recover(self, partition: int, records: Sequence[Record], to: int) -> None:
        """Take over a stretch of the changelog that ends before offset `to`, keeping
        each key's highest version.
        """
        kept, deleted = newest(
            of_states(records, self._is_state, f"changelog of partition {partition}"), self._version_of
        )
        version_of, due_of = self._version_of, self._due_of
        puts: dict[bytes, bytes | None] = {}
        moved: list[Moved] = []
        for (key, value), old in zip(kept.items(), self.states(partition, list(kept)), strict=True):
            if value is None or old is None or key in deleted or version_of(value) >= version_of(old):
                puts[key] = value
                if due_of is not None:
                    before, now = 0 if old is None else due_of(old), 0 if value is None else due_of(value)
                    if before != now:
                        moved.append(Moved(key, before, now))
        self.write(partition, puts, to - 1, moved)

    def _new_batch(self) -> rocksdict.WriteBatch:
        return rocksdict.WriteBatch(raw_mode=True)

    def _open_for_partition(self, partition: int) -> rocksdict.Rdict:
        path = self.partition_path(partition)
        try:
            return self._opened(path)
        except Exception as error:
            self._check_room(error)
            if not _corrupt(error):
                raise
            log.error(
                "local state of partition %(partition)d is corrupt and was deleted, it is rebuilt from the"
                " changelog: %(error)s",
                {"partition": partition, "error": error},
            )
            shutil.rmtree(path)
            return self._opened(path)

    def _opened(self, path: Path) -> rocksdict.Rdict:
        db = rocksdict.Rdict(str(path), store_options(self._cache))
        former = db.get(_FORMER_OFFSET)
        if former is not None and former.isdigit() and db.get(OFFSET) is None:
            batch = self._new_batch()
            batch.put(OFFSET, former)
            batch.delete(_FORMER_OFFSET)
            db.write(batch)
        return db

    @contextlib.contextmanager
    def _sound(self, partition: int) -> Iterator[None]:
        """Raises StateCorrupt, the files deleted, when RocksDB finds them broken: a restart that
        found them would end alike. Raises DiskFull.
        """
        try:
            yield
        except Exception as error:
            self._check_room(error)
            if not _corrupt(error):
                raise
            with contextlib.suppress(Exception):
                self._close(partition)
            shutil.rmtree(self.partition_path(partition), ignore_errors=True)
            raise StateCorrupt(
                f"local state of partition {partition} is corrupt and was deleted ({error})"
            ) from error

    def _check_room(self, error: Exception) -> None:
        if any(text in str(error) for text in FULL):
            where = self.partition_path(0).parent
            raise DiskFull(f"the disk of {where} is full, RocksDB can't write ({error})") from error

    def revoke_partitions(self, table: CollectionT, tps: set[TP]) -> None:
        """Close the files at once: their next owner may be a process on this machine.
        (Faust waits for the collector.)
        """
        for tp in tps:
            if tp.topic in table.changelog_topic.topics:
                self._close(tp.partition)

    async def stop(self) -> None:
        """Close all files."""
        for partition in list(self._dbs):
            self._close(partition)
        gc.collect()

    def _close(self, partition: int) -> None:
        db = self._dbs.pop(partition, None)
        if db is None:
            return
        try:
            db.close()
        except Exception as error:  # after a write that failed; what is in the files doesn't change
            log.warning(
                "the local state of partition %(partition)d wasn't closed in order: %(error)s",
                {"partition": partition, "error": error},
            )


def due_entry(at: int, key: bytes) -> bytes:
    """Key of the index of due times."""
    return DUE + at.to_bytes(8, "big") + key


def _due_time(entry: bytes) -> int:
    return int.from_bytes(entry[len(DUE) : _DUE_KEY], "big")


def _corrupt(error: Exception) -> bool:
    return any(text in str(error) for text in CORRUPT)


class StateTable(Table[bytes, bytes]):
    """Bytes to bytes. Read and written through LaneBatch only."""

    def __init__(
        self,
        *args: Any,
        version_of: VersionOf,
        due_of: DueOf | None,
        is_state: IsState,
        cache: rocksdict.Cache,
        **kwargs: Any,
    ) -> None:
        self.version_of = version_of
        self.due_of = due_of
        self.is_state = is_state
        self._cache = cache
        super().__init__(*args, key_type=bytes, value_type=bytes, **kwargs)

    @property
    def store(self) -> StateStore:
        """The local files."""
        store = self.data
        assert isinstance(store, StateStore)
        return store

    def _new_store_by_url(self, url: Any) -> StateStore:
        return StateStore(
            url,
            self.app,
            self,
            table_name=self.name,
            key_type=self.key_type,
            key_serializer=self.key_serializer,
            value_serializer=self.value_serializer,
            value_type=self.value_type,
            loop=self.loop,
            version_of=self.version_of,
            due_of=self.due_of,
            is_state=self.is_state,
            cache=self._cache,
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError(
            "states are written with LaneBatch.write_table: Faust would not wait for the changelog"
        )

    def __delitem__(self, key: Any) -> None:
        raise TypeError(
            "states are deleted with LaneBatch.write_table: Faust would not wait for the changelog"
        )

    def partition_file(self, partition: int) -> Path:
        """Where a partition's state lies."""
        return self.store.partition_path(partition)
