"""Writing headers whose names aren't UTF-8: what was read with such a name can be passed on as it came."""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aiokafka.producer import message_accumulator
from aiokafka.record import util
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchBuilderPy

import compiled
from wire.names import name_bytes

Headers = Sequence[tuple[str, bytes | None]]
Given = tuple[bytes | None, bytes | None, Headers]
"""Key, value and headers of a record. The headers are a list."""


class _Name(str):
    """A name whose bytes are those that it was read from."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        return name_bytes(str(self))


class SizeEstimate:
    """The size of a record at most, which the producer asks before it adds one."""

    @staticmethod
    def estimate_size_in_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
        """Bytes of a record in a batch of its own. Pure."""
        try:
            size: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)
        except UnicodeEncodeError:
            size = _DefaultRecordBatchBuilderPy.estimate_size_in_bytes(key, value, _named(headers))
        return size


class _Added(NamedTuple):
    """What aiokafka asks about a record in a batch."""

    offset: int
    size: int
    timestamp: int


_CRC: Final = struct.Struct(">I")
_crc32c: Final[Callable[[memoryview], int]] = getattr(compiled.native, "crc32c", None) or util.calc_crc32c


class _Records(_DefaultRecordBatchBuilderPy):  # type: ignore[misc]
    """aiokafka's builder in Python, whose records native.c writes. A batch's are put together at its end."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._parts = [bytes(self.HEADER_STRUCT.size)]
        self._size: int = self.HEADER_STRUCT.size
        self._first_timestamp = self._max_timestamp = 0

    def append(
        self, offset: int, timestamp: int | None, key: bytes | None, value: bytes | None, headers: Headers
    ) -> _Added | None:
        """Add a record. None: it doesn't fit. Raises UnicodeEncodeError, TypeError; then nothing is added."""
        if timestamp is None:
            timestamp = int(time.time() * 1000)
        before = self._size
        if not self.extend([(key, value, headers)], 0, offset, timestamp):
            return None
        return _Added(offset, self._size - before, timestamp)

    def extend(self, records: list[Given], first: int, offset: int, timestamp: int) -> int:
        """Add records from the index `first` on, as many as fit, and one at least if there is none yet,
        however large. Returns the index after the last one. Raises as append() does.
        """
        empty = not self._num_records
        since: int = timestamp if empty else self._first_timestamp
        room = max(0, self._batch_size - self._size)
        packed, end = compiled.native.pack_records(
            records, first, room, int(empty), offset, timestamp - since
        )
        if end > first:
            self._first_timestamp = since
            self._max_timestamp = max(self._max_timestamp, timestamp)
            self._parts.append(packed)
            self._size += len(packed)
            self._num_records += end - first
            self._last_offset = offset + end - first - 1
        return int(end)

    def size(self) -> int:
        """Bytes of it, uncompressed."""
        return self._size

    def build(self) -> bytearray:
        """The batch, compressed if that was asked for and makes it smaller."""
        self._buffer = bytearray().join(self._parts)
        self._parts = []
        batch: bytearray = super().build()
        return batch

    def _write_header(self, use_compression_type: bool = True) -> None:
        batch = self._buffer
        self.HEADER_STRUCT.pack_into(
            batch,
            0,
            0,  # the broker's: the base offset
            len(batch) - self.AFTER_LEN_OFFSET,
            self.NO_PARTITION_LEADER_EPOCH,
            self._magic,
            0,  # the checksum is that of what follows it
            self._get_attributes(use_compression_type),
            self._last_offset,
            self._first_timestamp or 0,
            self._max_timestamp or 0,
            self._producer_id,
            self._producer_epoch,
            self._base_sequence,
            self._num_records,
        )
        with memoryview(batch) as whole:
            _CRC.pack_into(batch, self.CRC_OFFSET, _crc32c(whole[self.ATTRIBUTES_OFFSET :]))


class BatchBuilder(message_accumulator.BatchBuilder):  # type: ignore[misc]
    """aiokafka's, which goes over to its builder in Python for a batch that holds such a name: the
    one in C encodes strictly.
    """

    def __init__(
        self, batch_size: int, compression_type: int, *, is_transactional: bool = False, **serializers: Any
    ) -> None:
        self._builder: Any
        super().__init__(batch_size, compression_type, is_transactional=is_transactional, **serializers)
        self._slow = (compression_type, is_transactional, batch_size)
        if compiled.native is not None:
            self._builder = _Records(2, compression_type, int(is_transactional), -1, -1, 0, batch_size)

    def append(self, *, timestamp: int | None, key: Any, value: Any, headers: Headers = ()) -> Any:
        """Add a record. None: the batch is full, or can't hold this one beside what
        it has; it stays as it is.
        """
        if self._closed:
            return None
        if type(headers) is not list:
            headers = list(headers)
        try:
            # What aiokafka's does, less its serializers, which no client of ours has.
            added = self._builder.append(
                self._relative_offset, timestamp, key=key, value=value, headers=headers
            )
            if added is None:
                self.close()
            else:
                self._relative_offset += 1
            return added
        except UnicodeEncodeError:
            if self.record_count() and isinstance(self._builder, _STRICT):
                self.close()
                return None
        compression, transactional, size = self._slow
        if isinstance(self._builder, _STRICT):
            self._builder = _DefaultRecordBatchBuilderPy(2, compression, int(transactional), -1, -1, 0, size)
        return super().append(timestamp=timestamp, key=key, value=value, headers=_named(headers))

    def extend(self, records: list[Given], first: int, timestamp: int) -> int:
        """Add records, given as (key, value, headers), from the index `first` on, as many as fit; to an empty
        batch one at least. Returns the index after the last one; if there are more, the batch is closed.
        """
        at = first
        if type(self._builder) is _Records and not self._closed:
            # A name that isn't UTF-8: one after the other, then.
            with suppress(UnicodeEncodeError):
                at = self._builder.extend(records, first, self._relative_offset, timestamp)
                self._relative_offset += at - first
                if at < len(records):
                    self.close()
                return at
        while at < len(records):
            key, value, headers = records[at]
            if self.append(timestamp=timestamp, key=key, value=value, headers=headers) is None:
                break
            at += 1
        return at

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)


_STRICT: Final = (DefaultRecordBatchBuilder, _Records)
"""Builders that take names in UTF-8 alone."""


def _named(headers: Headers) -> list[tuple[str, bytes | None]]:
    return [(_Name(name), value) for name, value in headers]
