"""Record batches: what the parser in C can't take is read all the same, and what is no
record hides nothing behind it.
"""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import conn
from aiokafka.errors import KafkaConnectionError

from tests.fuzz.batches import GZIP, LZ4, NONE, SNAPPY, ZSTD, Raw, batch_bytes, odd, pack, record_bytes
from wire import RecordBatches, name_bytes, unreadable
from wire.builder import BatchBuilder, SizeEstimate
from wire.codecs import BATCH_BYTES

FIRST = Raw(b"key", b"value", ((b"ce_type", b"order.paid"),))
ODD_NAME = FIRST._replace(headers=((b"gr\xf6\xdfe", b"1"), (b"n", None)))
CODECS = (NONE, GZIP, SNAPPY, LZ4, ZSTD)


def read(batch: bytes) -> list[Any]:
    batches, records = RecordBatches(batch), []
    while batches.has_next():
        each = batches.next_batch()
        assert each is not None
        assert each.validate_crc()
        records += list(each)
    return records


def of(*records: Raw, **options: Any) -> bytes:
    return batch_bytes([record_bytes(record, number) for number, record in enumerate(records)], **options)


def as_raw(record: Any) -> Raw:
    return Raw(record.key, record.value, tuple((name_bytes(name), value) for name, value in record.headers))


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(
    "records",
    [
        (FIRST,),
        (FIRST, ODD_NAME, FIRST),
        (ODD_NAME, ODD_NAME),
        (FIRST, FIRST._replace(attributes=0x80), FIRST),
        (FIRST._replace(attributes=0xFF), FIRST),
        (FIRST, Raw(None, None), FIRST),
    ],
    ids=[
        "plain",
        "a name that isn't UTF-8",
        "only such",
        "attributes",
        "attributes of the first",
        "a tombstone",
    ],
)
def test_a_record_is_read_as_it_was_written(codec: int, records: Sequence[Raw]) -> None:
    read_back = read(of(*records, codec=codec, base=70))
    assert [record.offset for record in read_back] == list(range(70, 70 + len(records)))
    assert [as_raw(record) for record in read_back] == [record._replace(attributes=0) for record in records]


@pytest.mark.parametrize("codec", CODECS)
def test_what_is_no_record_comes_with_its_bytes_and_hides_nothing(codec: int) -> None:
    broken = FIRST._replace(padding=b"xyz")
    before, at, behind = read(of(FIRST, broken, FIRST, codec=codec, base=5))
    assert (before.offset, at.offset, behind.offset) == (5, 6, 7)
    assert as_raw(behind) == FIRST
    assert unreadable(before) is None
    assert unreadable(at)
    assert record_bytes(broken, 1).endswith(at.raw)
    assert (at.key, at.value, tuple(at.headers)) == (None, None, ())


def test_where_a_record_s_length_is_wrong_the_rest_of_its_batch_has_coordinates_only() -> None:
    records = read(batch_bytes([record_bytes(FIRST, 0), b"\xfe\xff\x03", record_bytes(FIRST, 2)], base=9))
    assert [(record.offset, unreadable(record) is None) for record in records] == [
        (9, True),
        (10, False),
        (11, False),
    ]
    assert records[1].raw is None


def test_a_codec_that_nobody_knows() -> None:
    records = read(of(FIRST, FIRST, attributes=7))
    assert [record.offset for record in records] == [0, 1]
    assert all(unreadable(record) for record in records)


@pytest.mark.parametrize("form", range(12))
@pytest.mark.parametrize("codec", CODECS)
def test_every_form_of_a_codec(codec: int, form: int) -> None:
    content = record_bytes(FIRST, 0) + record_bytes(ODD_NAME, 1)
    records = read(batch_bytes([b"", b""], codec=codec, packed=pack(content, codec, Random(form))))
    assert [as_raw(record) for record in records] == [FIRST, ODD_NAME]


@pytest.mark.parametrize("codec", [GZIP, LZ4, ZSTD])
def test_a_batch_that_becomes_gigabytes_is_not_unpacked_to_its_end(codec: int) -> None:
    huge = record_bytes(Raw(b"k", bytes(BATCH_BYTES + (1 << 20))), 1)
    batch = batch_bytes([record_bytes(FIRST, 0), huge, record_bytes(FIRST, 2)], codec=codec)
    del huge
    tracemalloc.start()
    try:
        records = read(batch)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert as_raw(records[0]) == FIRST
    assert [(record.offset, bool(unreadable(record))) for record in records] == [
        (0, False),
        (1, True),
        (2, True),
    ]
    assert peak < 4 * BATCH_BYTES


def test_holes_that_compaction_leaves_are_no_mistake() -> None:
    records = read(batch_bytes([record_bytes(FIRST, 2), record_bytes(ODD_NAME, 5)], delta=9, base=100))
    assert [record.offset for record in records] == [102, 105]


def test_a_marker_s_batch_that_compaction_emptied() -> None:
    batch = RecordBatches(batch_bytes([], attributes=0x30, count=0, delta=0)).next_batch()
    assert batch is not None
    assert batch.is_control_batch
    assert batch.aborts is False


def test_an_old_message_that_can_t_be_unpacked_has_its_coordinates() -> None:
    from aiokafka.record.legacy_records import LegacyRecordBatchBuilder

    builder = LegacyRecordBatchBuilder(1, GZIP, 10_000)
    for number in range(2):
        builder.append(number, 1, b"k", b"v" * 100)
    whole = bytes(builder.build())
    assert [record.offset for record in read(whole)] == [0, 1]
    cut = bytearray(whole)
    cut[50:60] = bytes(10)
    batch = RecordBatches(bytes(cut)).next_batch()
    assert batch is not None
    (record,) = batch
    assert record.offset == batch.next_offset - 1
    assert unreadable(record)


@pytest.mark.parametrize("seed", range(300))
def test_whatever_a_batch_holds_it_has_an_end_and_right_offsets(seed: int) -> None:
    raw = odd(Random(seed), [FIRST, ODD_NAME, Raw(None, None)])
    batch = RecordBatches(raw).next_batch()
    assert batch is not None
    if batch.next_offset > 100:  # the brokers take no batch that claims more records than it has
        return
    offsets = [record.offset for record in batch]
    assert offsets == sorted(set(offsets))
    assert all(batch.base_offset <= offset < batch.next_offset for offset in offsets)


# -- writing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", CODECS)
def test_a_name_that_isn_t_utf_8_is_written_as_it_was_read(codec: int) -> None:
    (plain, odd_one) = read(of(FIRST, ODD_NAME))
    written: list[Any] = []
    builder = BatchBuilder(10_000, codec)
    for record in (plain, odd_one, plain, odd_one, odd_one, plain):
        fields = {"timestamp": 5, "key": record.key, "value": record.value, "headers": list(record.headers)}
        assert SizeEstimate.estimate_size_in_bytes(record.key, record.value, list(record.headers)) > 60
        if builder.append(**fields) is None:
            written += read(bytes(builder._build()))
            builder = BatchBuilder(10_000, codec)
            assert builder.append(**fields) is not None
    written += read(bytes(builder._build()))
    assert [as_raw(record) for record in written] == [FIRST, ODD_NAME, FIRST, ODD_NAME, ODD_NAME, FIRST]


def test_a_full_batch_of_such_names_says_so() -> None:
    builder = BatchBuilder(300, NONE)
    fields: dict[str, Any] = {"timestamp": 5, "key": b"k", "value": b"v" * 200, "headers": [("\udcf6", b"")]}
    assert builder.append(**fields) is not None
    assert builder.append(**fields) is None
    assert builder.record_count() == 1


def test_every_client_of_a_worker_reads_and_writes_with_it() -> None:
    """In a process of its own: what has been imported here is no proof."""
    said = """
import app
from aiokafka.consumer import fetcher
from aiokafka.producer import message_accumulator
for used in (fetcher.MemoryRecords, fetcher.PartitionRecords, message_accumulator.BatchBuilder):
    print(used.__module__)
"""
    done = subprocess.run((sys.executable, "-c", said), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["wire.reader", "wire.reader", "wire.builder"]


class Struck:
    """What stands behind a connection, and a request to it."""

    def __init__(self, *, closing: bool) -> None:
        self._closing = closing
        self.closed = False

    def write(self, data: bytes) -> None:
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self.closed = True

    def prepare(self, versions: object) -> Struck:
        return self

    def build_request_header(self, **_: object) -> Struck:
        return self

    def encode(self) -> bytes:
        return b""


async def test_a_write_to_a_closed_connection_is_a_broken_connection() -> None:
    """As uvloop tells it: aiokafka's own tasks would end with it, and its metadata
    stay as they are for ever.
    """
    for closing, expected in ((True, KafkaConnectionError), (False, RuntimeError)):
        connection: Any = conn.AIOKafkaConnection("127.0.0.1", 1)
        connection._writer = struck = Struck(closing=closing)
        connection._reader, connection._read_task = (
            SimpleNamespace(at_eof=lambda: False),
            SimpleNamespace(done=lambda: True),
        )
        with pytest.raises(expected):
            connection.send(struck)
        assert (connection._writer is None, struck.closed) == (closing, closing)
        connection.close()
