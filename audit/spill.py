"""Records on disk by bucket, so that a log of any size is looked at with the memory of one bucket."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

Item = tuple[Any, ...]
"""The first element is the key, bytes; the others are whatever MessagePack can hold.
It comes back as a list.
"""

BUFFER_BYTES: Final = 8 << 20
"""Held in memory before it is written."""
BUCKET_BYTES: Final = 24 << 20
"""A bucket larger than this is split before it is loaded.
As Python objects it takes about five times as much.
"""
_OVERHEAD: Final = 24
"""Of an item beside its bytes, roughly."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


class Spill:
    """Items by bucket in one file, gone when it is closed. Those of a bucket keep their order.
    Uses the local disk; raises OSError.
    """

    def __init__(self, folder: Path, buckets: int) -> None:
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by close()
        self._waiting: list[list[Item]] = [[] for _ in range(buckets)]
        self._waiting_bytes = 0
        self._chunks: list[list[tuple[int, int]]] = [[] for _ in range(buckets)]
        self._sizes = [0] * buckets
        self._end = 0

    def __getstate__(self) -> dict[str, Any]:
        """For a process that is being spawned, which reads on in the same file. It must have been flushed."""
        return {**vars(self), "_file": DupFd(self._file.fileno())}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _file=os.fdopen(state["_file"].detach(), "r+b"))

    def __len__(self) -> int:
        """Buckets."""
        return len(self._sizes)

    def close(self) -> None:
        self._file.close()

    def add(self, bucket: int, item: Item, size: int) -> None:
        """`size`: bytes of the item's texts, about."""
        self._waiting[bucket].append(item)
        size += _OVERHEAD
        self._sizes[bucket] += size
        self._waiting_bytes += size
        if self._waiting_bytes >= BUFFER_BYTES:
            self.flush()

    def items(self, bucket: int) -> Iterator[list[Any]]:
        """A bucket's items in their order."""
        # Read at its place, not by a position in the file: processes share that.
        for offset, length in self._chunks[bucket]:
            yield from _decode(os.pread(self._file.fileno(), length, offset))
        yield from map(list, self._waiting[bucket])

    def groups(self, bucket: int, divisor: int = 1) -> Iterator[dict[bytes, list[list[Any]]]]:
        """A bucket's items by key, a part of the bucket at a time if it is large.

        `divisor`: of the hash of a key, what earlier splits have used up.
        The items of one key always come together.
        """
        if self._sizes[bucket] > BUCKET_BYTES and divisor < 1 << 24:
            parts = 2 + self._sizes[bucket] // BUCKET_BYTES
            finer = Spill(self._folder, parts)
            try:
                for item in self.items(bucket):
                    key = item[0]
                    finer.add(crc32(key) // divisor % parts, tuple(item), size_of(item))
                for part in range(parts):
                    yield from finer.groups(part, divisor * parts)
            finally:
                finer.close()
            return
        groups: dict[bytes, list[list[Any]]] = {}
        for item in self.items(bucket):
            groups.setdefault(item[0], []).append(item)
        yield groups

    def flush(self) -> None:
        """Write what is still in memory."""
        for bucket, items in enumerate(self._waiting):
            if items:
                chunk = _encode(items)
                self._chunks[bucket].append((self._end, len(chunk)))
                self._file.write(chunk)
                self._end += len(chunk)
                self._waiting[bucket] = []
        self._file.flush()
        self._waiting_bytes = 0


def size_of(item: Iterable[Any]) -> int:
    """Bytes of an item's texts."""
    return sum(len(part) for part in item if isinstance(part, (bytes, str)))
