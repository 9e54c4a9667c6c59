"""What native.c writes is what Python writes, byte by byte, and aiokafka reads a batch of its records."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchBuilderPy
from aiokafka.record.util import calc_crc32c
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Struct, structs

from compiled import native
from contracts import ids, money, times
from streams.partitioner import murmur2
from wire.builder import BatchBuilder, _crc32c
from wire.reader import RecordBatches

pytestmark = pytest.mark.compiled

RAW = st.binary(min_size=16, max_size=16)
NAMES = st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=150)
"""Printable ones."""
NONE_OR_BYTES = st.none() | st.binary(max_size=300)
RECORDS = st.lists(
    st.tuples(
        NONE_OR_BYTES, NONE_OR_BYTES, st.lists(st.tuples(st.text(max_size=200), NONE_OR_BYTES), max_size=5)
    ),
    min_size=1,
    max_size=30,
)


@given(RAW, NAMES)
def test_ids(raw: bytes, name: str) -> None:
    assert native.uuid_text(raw) == str(UUID(bytes=raw)) == ids._text(raw)
    assert native.uuid5_text(raw, name) == ids._five_text(raw, name)
    assert native.uuid5(raw, name) == ids._five(raw, name)


def test_names_of_every_length() -> None:
    """A block of SHA-1 has 64 bytes, of which the last one keeps 8 for the length."""
    raw = bytes(range(16))
    for size in range(200):
        assert native.uuid5_text(raw, "x" * size) == ids._five_text(raw, "x" * size)


@given(st.integers(0, 10**19), st.sampled_from([0, 2, 3, 4]))
def test_amounts(amount: int, digits: int) -> None:
    assert money.text(amount, digits) == money._text(amount, digits)
    if amount < 10**18:
        assert native.money_text(amount, digits) == money._text(amount, digits)


@given(
    st.integers(times._EARLIEST, times._LATEST) | st.integers(-10, 10).map(lambda day: day * 86_400_000_000)
)
def test_times(micros: int) -> None:
    assert native.time_text(micros) == times._text(micros)


@given(st.binary(max_size=100))
def test_hashes_of_keys(key: bytes) -> None:
    assert native.murmur2(key) == murmur2(key)


class Row(Struct, gc=False):
    id: str | None
    name: str | None
    amount: str | None
    count: int | None
    time: str | None


class Longer(Row, gc=False):
    more: str


ROW = Row("00000000-0000-4000-8000-00000000000A", "a", "0.00", 1, "2026-01-01T00:00:00+00:00")
LONGER = Longer(ROW.id, ROW.name, ROW.amount, ROW.count, ROW.time, "b")
VALUES = (
    st.uuids().map(str),
    st.text(max_size=20),
    st.integers(0, 10**15).map(lambda amount: money.text(amount, 2)),
    st.integers(-(1 << 31), (1 << 31) - 1),
    st.integers(times._EARLIEST, times._LATEST).map(times.text),
)


@given(
    st.lists(st.tuples(*VALUES) | st.tuples(*(st.none() for _ in VALUES)), min_size=1, max_size=5), st.data()
)
def test_columns_of_structs(values: list[Any], data: st.DataObject) -> None:
    """Are those of tuples; and those of rows that share values are those of rows with values of their own."""
    rows = data.draw(st.lists(st.sampled_from([Row(*each) for each in values]), min_size=1, max_size=20))
    packed = native.pack_columns(rows, b"utniz")
    assert packed == native.pack_columns([structs.astuple(row) for row in rows], b"utniz")
    arrays = [native.pack_columns([row], b"utniz") for row in rows]
    for column, array in enumerate(packed):
        assert array[20:] == b"".join(each[column][20:] for each in arrays)


@pytest.mark.parametrize(
    ("call", "raises"),
    [
        (lambda: native.uuid_text(b"short"), ValueError),
        (lambda: native.uuid_text("text"), ValueError),
        (lambda: native.uuid5_text(b"short", "name"), ValueError),
        (lambda: native.uuid5(bytes(16), b"name"), TypeError),
        (lambda: native.uuid5(bytes(16)), TypeError),
        (lambda: native.uuid5_text(bytes(16), "\ud800"), UnicodeEncodeError),
        (lambda: native.money_text(-1, 2), ValueError),
        (lambda: native.money_text(10**30, 2), OverflowError),
        (lambda: native.money_text(1, 10), ValueError),
        (lambda: native.money_text("1", 2), TypeError),
        (lambda: native.time_text(times._LATEST + 1), OverflowError),
        (lambda: native.time_text(times._EARLIEST - 1), OverflowError),
        (lambda: native.pack_records([(b"k", "text", [])], 0, 100, 1, 0, 0), TypeError),
        (lambda: native.pack_records([(b"k", b"v", ())], 0, 100, 1, 0, 0), TypeError),
        (lambda: native.pack_records([(b"k", b"v", [("n",)])], 0, 100, 1, 0, 0), TypeError),
        (lambda: native.pack_records([(b"k", b"v", [(b"n", b"")])], 0, 100, 1, 0, 0), TypeError),
        (lambda: native.pack_records([(b"k", b"v", [("\ud800", b"")])], 0, 100, 1, 0, 0), UnicodeEncodeError),
        (lambda: native.pack_records([], 0, 100, 1, 0), TypeError),
        (lambda: native.pack_columns([("x",)], b"u"), ValueError),
        (lambda: native.pack_columns([("00000000-0000-0000-0000-0000000000000",)], b"u"), ValueError),
        (lambda: native.pack_columns([("00000000-0000-0000-0000-00000000000g",)], b"u"), ValueError),
        (lambda: native.pack_columns([("",)], b"n"), ValueError),
        (lambda: native.pack_columns([("1.",)], b"n"), ValueError),
        (lambda: native.pack_columns([("1e5",)], b"n"), ValueError),
        (lambda: native.pack_columns([("1" * 61,)], b"n"), ValueError),
        (lambda: native.pack_columns([(1 << 31,)], b"i"), ValueError),
        (lambda: native.pack_columns([("1",)], b"i"), TypeError),
        (lambda: native.pack_columns([("2026-02-29T00:00:00+00:00",)], b"z"), ValueError),
        (lambda: native.pack_columns([("2026-01-01T00:00:00Z",)], b"z"), ValueError),
        (lambda: native.pack_columns([("2026-01-01T24:00:00+00:00",)], b"z"), ValueError),
        (lambda: native.pack_columns([(1,)], b"t"), TypeError),
        (lambda: native.pack_columns([("\ud800",)], b"t"), UnicodeEncodeError),
        (lambda: native.pack_columns([("a", "b")], b"t"), ValueError),
        (lambda: native.pack_columns([("a",)], b"?"), ValueError),
        (lambda: native.pack_columns([["a"]], b"t"), ValueError),
        (lambda: native.pack_columns([("a",)]), TypeError),
        (lambda: native.pack_columns([ROW], b"utni"), ValueError),
        (lambda: native.pack_columns([LONGER], b"utniz"), ValueError),
        (lambda: native.pack_columns([ROW, structs.astuple(ROW)], b"utniz"), ValueError),
        (lambda: native.pack_columns([structs.astuple(ROW), ROW], b"utniz"), ValueError),
        (lambda: native.pack_columns([ROW, LONGER], b"utniz"), ValueError),
        (lambda: native.murmur2("text"), TypeError),
    ],
)
def test_what_it_does_not_take_is_an_exception(call: Any, raises: type[Exception]) -> None:
    with pytest.raises(raises):
        call()


@given(st.binary(max_size=4_000))
def test_checksums(data: bytes) -> None:
    assert _crc32c(memoryview(data)) == calc_crc32c(data)
    assert _crc32c(memoryview(data)[1:]) == calc_crc32c(data[1:])


@given(RECORDS, st.integers(100, 6_000), st.integers(0, 3))
def test_batches(records: list[Any], most: int, apart: int) -> None:
    """The same records fit, and the bytes are the same, whether they are added one by one or at once."""
    at = 0
    while at < len(records):
        reference = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, most)
        end, time = at, 1_764_450_000_000
        while end < len(records):
            if reference.append(end - at, time, *records[end]) is None:
                break
            end, time = end + 1, time + apart
        whole, single = BatchBuilder(most, 0), BatchBuilder(most, 0)
        for number in range(at, end):
            added = single.append(
                timestamp=1_764_450_000_000 + (number - at) * apart,
                key=records[number][0],
                value=records[number][1],
                headers=records[number][2],
            )
            assert (added.offset, added.timestamp) == (number - at, 1_764_450_000_000 + (number - at) * apart)
        expected = bytes(reference.build())
        assert single.size() == len(expected)
        single.close()
        assert bytes(single._build()) == expected
        if apart == 0:
            assert whole.extend(records, at, 1_764_450_000_000) == end
            assert whole.record_count() == end - at
            assert whole.closed() == (end < len(records))
            whole.close()
            assert bytes(whole._build()) == expected
        read = list(DefaultRecordBatch(expected))
        assert [(each.key, each.value, list(each.headers)) for each in read] == records[at:end]
        at = end


def test_a_batch_goes_on_after_others_were_added() -> None:
    batch = BatchBuilder(1 << 20, 0)
    assert batch.extend([(b"a", b"1", [])], 0, 5) == 1
    assert batch.append(timestamp=7, key=b"b", value=None, headers=[]).offset == 1
    assert batch.extend([(b"-", b"-", []), (b"c", b"3", []), (b"d", b"4", [("h", None)])], 1, 6) == 3
    batch.close()
    assert batch.extend([(b"e", b"", [])], 0, 6) == 0
    read = list(DefaultRecordBatch(bytes(batch._build())))
    assert [(each.offset, each.timestamp, each.key) for each in read] == [
        (0, 5, b"a"),
        (1, 7, b"b"),
        (2, 6, b"c"),
        (3, 6, b"d"),
    ]


@given(RECORDS, st.integers(0, 30))
def test_names_that_are_not_utf_8_lose_and_double_nothing(records: list[Any], at: int) -> None:
    """Their batch is written in Python; what came before them is a batch of its own."""
    records.insert(min(at, len(records)), (b"k", b"v", [("\udcff", b"x")]))
    read: list[Any] = []
    first = 0
    while first < len(records):
        batch = BatchBuilder(1 << 20, 0)
        end = batch.extend(records, first, 5)
        assert batch.record_count() == end - first > 0
        batch.close()
        whole = list(RecordBatches(bytes(batch._build())).next_batch() or ())
        assert [each.offset for each in whole] == [*range(end - first)]
        read += whole
        first = end
    assert [(each.key, each.value) for each in read] == [(key, value) for key, value, _ in records]
