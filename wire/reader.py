"""Reading record batches, whatever is in them.

aiokafka's parser (in C) reads a batch. Where it gives up, or tells offsets that can't be, the rest of the
batch is read again here, record by record, as a broker reads it: lengths first. What even so is no record
comes out as an UnreadableRecord, with its bytes if they can be told apart.

The format: https://kafka.apache.org/documentation/#recordbatch (message format 2), and the
formats 0 and 1 of old logs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch
from aiokafka.record.legacy_records import LegacyRecordBatch
from aiokafka.structs import ConsumerRecord, TopicPartition
from msgspec import Struct

from wire.codecs import BATCH_BYTES, CODEC_MASK, NAMES, NONE, at_most, unpack
from wire.names import name_text

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
"""Base offset, length, leader epoch, magic, checksum, attributes, last offset's delta, base and highest
timestamp, producer's id and epoch, base sequence, number of records.
"""
_FRAME: Final = struct.Struct(">qi")
_ATTRIBUTES_AT: Final = 21
_MAGIC_AT: Final = 16
_APPEND_TIME: Final = 0x08
_ABORT: Final = 0


@dataclass
class UnreadableRecord(ConsumerRecord):  # type: ignore[misc]
    """A record that no client can parse.
    Key and value are None, there are no headers; coordinates are right.
    """

    unreadable: str = ""
    """Why."""
    raw: bytes | None = None
    """Its bytes as they lie in the batch, without their length; None: they can't be had."""


class ConsumedRecord(Struct, gc=False):
    """A record as aiokafka's ConsumerRecord has it, made in a fifth of the time. Key and value are bytes: no
    client of ours has deserializers."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    checksum: int | None
    serialized_key_size: int
    serialized_value_size: int
    headers: tuple[tuple[str, bytes | None], ...]


class Unread(NamedTuple):
    """An unreadable record in a batch, in place of a record of aiokafka's parser."""

    offset: int
    timestamp: int
    timestamp_type: int
    unreadable: str
    raw: bytes | None
    key: None = None
    value: None = None
    checksum: None = None
    headers: tuple[tuple[str, bytes | None], ...] = ()


class Parsed(NamedTuple):
    """A record that was read here, in place of one of aiokafka's parser."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    checksum: None = None


class PartitionRecords(fetcher.PartitionRecords):  # type: ignore[misc]
    """aiokafka's way through the batches of a partition: aborted ones left out, offsets
    without records passed over.
    """

    def _contains_abort_marker(self, next_batch: Any) -> bool:
        aborts: bool = next_batch.aborts
        return aborts

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        if type(record) is not Unread:
            key, value = record.key, record.value
            return ConsumedRecord(
                tp.topic,
                tp.partition,
                record.offset,
                record.timestamp,
                record.timestamp_type,
                key,
                value,
                None,
                -1 if key is None else len(key),
                -1 if value is None else len(value),
                tuple(record.headers),
            )
        times = (record.timestamp, record.timestamp_type)
        return UnreadableRecord(
            *tp, record.offset, *times, None, None, None, -1, -1, (), record.unreadable, record.raw
        )


class RecordBatches:
    """The batches in a fetch's answer, the last one cut off perhaps. In place of aiokafka's MemoryRecords.

    It says that it has come to its end when what was unpacked of it is more than `most_bytes`: a megabyte of
    an answer can hold gigabytes. The reader then fetches the rest again.
    """

    most_bytes = 16 << 20

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._last: Batch | OldBatch | None = None
        self._unpacked = 0

    def size_in_bytes(self) -> int:
        """Bytes of all of it."""
        return len(self._data)

    def has_next(self) -> bool:
        """Tell whether a complete batch follows."""
        if self._last is not None:
            self._unpacked += self._last.unpacked
            self._last = None
        return self._unpacked <= self.most_bytes and self._end() is not None

    def next_batch(self) -> Batch | OldBatch | None:
        """The next one; None: there is no whole one left.
        Raises CorruptRecordException for what is too short to be a batch.
        """
        end = self._end()
        if end is None:
            return None
        raw = memoryview(self._data)[self._at : end]
        self._at = end
        if len(raw) <= _MAGIC_AT or (len(raw) < _HEADER.size and raw[_MAGIC_AT] >= 2):
            raise CorruptRecordException(f"a record batch of {len(raw)} bytes")
        self._last = Batch(raw) if raw[_MAGIC_AT] >= 2 else OldBatch(raw)
        return self._last

    def _end(self) -> int | None:
        if len(self._data) < self._at + _FRAME.size:
            return None
        end = self._at + _FRAME.size + int(_FRAME.unpack_from(self._data, self._at)[1])
        return end if self._at < end <= len(self._data) else None


class Batch:
    """A batch of format 2."""

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self.unpacked = 0
        """Bytes of its records, once they were read."""
        self._parser = DefaultRecordBatch(raw)
        self.validate_crc = self._parser.validate_crc
        self.base_offset: int = self._parser.base_offset
        self.next_offset: int = self._parser.next_offset
        self.producer_id: int = self._parser.producer_id
        self.is_control_batch: bool = self._parser.is_control_batch
        self.is_transactional: bool = self._parser.is_transactional

    @property
    def aborts(self) -> bool:
        """Tell whether it is the marker of an aborted transaction.

        Compaction may leave a marker's batch without the marker.
        """
        for record in self._records():
            return (
                record.key is not None
                and len(record.key) >= 4
                and int.from_bytes(record.key[2:4], "big") == _ABORT
            )
        return False

    def __iter__(self) -> Iterator[Any]:
        """Its records in the order of their offsets, and an Unread for each that is none.
        Unpacks BATCH_BYTES at most.
        """
        return self._records()

    def _records(self) -> Iterator[Any]:
        header = _HEADER.unpack_from(self._raw)
        attributes, delta, count = header[5], header[6], header[12]
        complete = count == delta + 1  # nothing is compacted away: offsets have no holes
        expected, end = self.base_offset, self.next_offset
        codec = attributes & CODEC_MASK
        packed = self._raw[_HEADER.size :]
        content = packed if codec == NONE else unpack(packed, codec)
        self.unpacked = len(content)
        parser = self._parser
        if codec != NONE:
            plain = struct.pack(">h", attributes & ~CODEC_MASK)
            head = bytes(self._raw[: _HEADER.size])
            parser = DefaultRecordBatch(head[:_ATTRIBUTES_AT] + plain + head[_ATTRIBUTES_AT + 2 :] + content)
        try:
            for record in parser:
                if record.offset != expected if complete else not expected <= record.offset < end:
                    break
                yield record
                expected = record.offset + 1
            else:
                return
        except Exception:  # whatever it is that the parser can't take, it is read again below
            pass
        why = (
            ""
            if codec == NONE
            else f" of a batch packed with {NAMES[codec] if codec < len(NAMES) else codec}"
        )
        yield from _salvage(bytes(content), header, expected, why)


class OldBatch:
    """A message of format 0 or 1, which may hold others, packed."""

    producer_id = None
    is_control_batch = False
    is_transactional = False
    aborts = False

    def __init__(self, raw: memoryview) -> None:
        self._raw = raw
        self.unpacked = at_most(len(raw), raw[_MAGIC_AT + 1] & CODEC_MASK)
        self._parser = LegacyRecordBatch(raw, raw[_MAGIC_AT])
        self.validate_crc = self._parser.validate_crc
        self.next_offset: int = self._parser.next_offset
        self.base_offset: int = self.next_offset - 1

    def __iter__(self) -> Iterator[Any]:
        """Its records, and an Unread for what is none."""
        expected = -1
        try:
            if self.unpacked > BATCH_BYTES:
                raise CorruptRecordException("it may hold more than can be unpacked")
            for record in self._parser:
                time = -1 if record.timestamp is None else record.timestamp  # format 0 has none
                yield Parsed(record.offset, time, record.timestamp_type or 0, record.key, record.value, [])
                expected = record.offset + 1
        except Exception as error:
            if expected < self.next_offset:
                yield Unread(self.next_offset - 1, -1, 0, f"a message of an old format: {error}", None)


def _salvage(data: bytes, header: tuple[int, ...], expected: int, why: str) -> Iterator[Parsed | Unread]:
    """The records of a batch from the offset `expected` on, read one by one."""
    base, attributes, delta, first_time, last_time, count = (header[at] for at in (0, 5, 6, 7, 8, 12))
    append_time = bool(attributes & _APPEND_TIME)
    complete, last = count == delta + 1, base + delta
    reader = _Reader(data)
    remaining = count
    for number in range(count):
        try:
            raw = reader.take(reader.number())
        except _Malformed:
            break
        remaining -= 1
        try:
            at, time, key, value, headers = _parse(raw)
        except _Malformed as error:
            offset, record = base + number if complete else expected, None
            reason = str(error)
        else:
            offset, time = (
                base + (number if complete else at),
                last_time if append_time else _signed(first_time + time),
            )
            record = Parsed(offset, time, int(append_time), key, value, headers)
            if offset > last:
                offset, record, reason = expected, None, "its offset lies outside of its batch"
        if not expected <= offset <= last:
            continue
        yield record or Unread(offset, last_time, int(append_time), reason, raw)
        expected = offset + 1
    # What follows can't be told apart, not even where it begins.
    for offset in range(expected, min(last + 1, expected + remaining)):
        yield Unread(
            offset,
            last_time,
            int(append_time),
            f"it can't be found among the bytes{why or ' of its batch'}",
            None,
        )


class _Malformed(Exception):
    """These bytes are no record. The message says what is wrong with them."""


class _Reader:
    """Reads numbers and bytes as Kafka's own reader does: extra bits of a number are cut off.

    Raises _Malformed.
    """

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._at

    def take(self, count: int) -> bytes:
        if not 0 <= count <= self.left:
            raise _Malformed(f"{count} bytes are said to follow, there are {self.left}")
        self._at += count
        return self._data[self._at - count : self._at]

    def maybe(self) -> bytes | None:
        """Bytes after their length; a negative one: none."""
        count = self.number()
        return None if count < 0 else self.take(count)

    def number(self, bits: int = 32) -> int:
        """A varint, zigzag. So many bits of it count."""
        value = 0
        for shift in range(0, bits + 6, 7):
            if shift >= bits:
                break
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                value &= (1 << bits) - 1
                return (value >> 1) ^ -(value & 1)
        raise _Malformed(f"a number of more than {bits} bits")


def _parse(raw: bytes) -> tuple[int, int, bytes | None, bytes | None, list[tuple[str, bytes | None]]]:
    """Offset and time (as differences to the batch's), key, value and headers of a
    record. Raises _Malformed.
    """
    reader = _Reader(raw)
    reader.take(1)  # attributes: none is in use
    time, offset = reader.number(64), reader.number()
    key, value = reader.maybe(), reader.maybe()
    count = reader.number()
    if not 0 <= count <= reader.left:
        raise _Malformed(f"{count} headers are said to follow")
    headers = [(name_text(reader.take(reader.number())), reader.maybe()) for _ in range(count)]
    if reader.left:
        raise _Malformed(f"{reader.left} bytes too many")
    return offset, time, key, value, headers


def _signed(number: int) -> int:
    """Return the number as 64 bits with a sign; extra bits are cut off."""
    number &= (1 << 64) - 1
    return number - (1 << 64) if number >> 63 else number
