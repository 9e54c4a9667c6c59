"""The state table: Faust's place for it (changelog topic, partition files, rebalancing), with our own reads and writes.

Keys and values are raw bytes. The changelog is the truth; the local RocksDB is a copy that can be deleted.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rocksdict
from faust.stores import rocksdb
from faust.tables.table import Table
from faust.types import TP, CollectionT

from streams.transport.ledger import Record

VersionOf = Callable[[bytes], int]

MEMORY = 64 << 20
"""Bytes of block cache that all partitions of a worker share (Faust's default is 2 GiB for each)."""
WRITE_BUFFER = 16 << 20
BLOOM_BITS = 10
OPEN_FILES = 512
LOG_BYTES = 1 << 20


class Newest(NamedTuple):
    """What a stretch of the changelog leaves: `kept`, and the keys that were `deleted` somewhere in it, whatever came after."""

    kept: dict[bytes, bytes | None]
    deleted: set[bytes]


def newest(records: Sequence[Record], version_of: VersionOf) -> Newest:
    """The highest version of each key, the later one of equals; a deletion counts as later than all before it. Pure.

    Not simply the last: a worker that had lost its partition may have written an older state after its successor's.
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


class StateStore(rocksdb.Store):
    """RocksDB files, one for each partition. Every call reads or writes the local disk, from the main thread."""

    def __init__(self, *args: Any, version_of: VersionOf, cache: rocksdict.Cache, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._version_of = version_of
        self._cache = cache

    def states(self, partition: int, keys: Sequence[bytes]) -> list[bytes | None]:
        """Values in the order of `keys`, None where there is none."""
        if not keys:
            return []
        found: list[bytes | None] = self._db_for_partition(partition).get(list(keys))
        return found

    def write(self, partition: int, puts: Mapping[bytes, bytes | None], offset: int | None) -> None:
        """Write `puts` (None deletes) and the changelog offset that they go up to, in one step."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        for key, value in puts.items():
            if value is None:
                batch.delete(key)
            else:
                batch.put(key, value)
        if offset is not None:
            batch.put(self.offset_key, str(offset).encode())
        self._db_for_partition(partition).write(batch)

    def recover(self, partition: int, records: Sequence[Record], to: int) -> None:
        """Take over a stretch of the changelog that ends before offset `to`, keeping each key's highest version."""
        kept, deleted = newest(records, self._version_of)
        version_of = self._version_of
        puts = {
            key: value
            for (key, value), old in zip(kept.items(), self.states(partition, list(kept)), strict=True)
            if value is None or old is None or key in deleted or version_of(value) >= version_of(old)
        }
        self.write(partition, puts, to - 1)

    def _open_for_partition(self, partition: int) -> rocksdict.Rdict:
        return rocksdict.Rdict(str(self.partition_path(partition)), self._options())

    def _options(self) -> rocksdict.Options:
        blocks = rocksdict.BlockBasedOptions()
        blocks.set_block_cache(self._cache)
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

    def revoke_partitions(self, table: CollectionT, tps: set[TP]) -> None:
        """Close the files at once: their next owner may be a process on this machine. (Faust waits for the collector.)"""
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
        if db is not None:
            db.close()


class StateTable(Table):  # type: ignore[type-arg]
    """Bytes to bytes. Read and written through LaneBatch only."""

    def __init__(self, *args: Any, version_of: VersionOf, cache: rocksdict.Cache, **kwargs: Any) -> None:
        self._version_of = version_of
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
            version_of=self._version_of,
            cache=self._cache,
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        raise TypeError("states are written with LaneBatch.write_table: Faust would not wait for the changelog")

    def __delitem__(self, key: Any) -> None:
        raise TypeError("states are deleted with LaneBatch.write_table: Faust would not wait for the changelog")

    def partition_file(self, partition: int) -> Path:
        """Where a partition's state lies."""
        return self.store.partition_path(partition)
