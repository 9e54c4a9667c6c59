"""Files of bulk jobs, line by line: what is taken, what is refused and where, and the ids
and parts that they become.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import resource
from collections.abc import Callable
from contextlib import ExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid5

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.bulk import bounds_of
from contracts import bulk, errors
from contracts.errors import Refused, SourceError
from contracts.incoming import BulkPart
from domain import events
from operations.submit import files as copies
from operations.submit import jobs as files
from operations.submit.files import Bounds
from operations.submit.jobs import Job, Refusal, prepare
from settings import Settings
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    USER,
    VALID,
    at,
    created,
    item_id,
    line,
    parcel,
    record,
)

JOB = "0b0b0b0b-0000-4000-8000-000000000001"
PRODUCT = "50000000-0000-4000-8000-000000000001"
HEADER = "order_id,time,user_id,currency,total_amount,item_id,product_id,seller_id,sku,quantity,price\n"
FIRST = f"{ORDER},{at(1)},{USER},EUR,30.00,{item_id(1)},{PRODUCT},{ANNA},sku-1,1,10.00\n"
SECOND = f"{ORDER},,,,,{item_id(2)},{PRODUCT},{BORIS},sku-2,2,10.00\n"
OTHER = FIRST.replace(ORDER, STRANGER).replace("30.00", "10.00")
SCAN = VALID["shipment.updated"]


def taken(
    content: bytes, kind: bulk.Kind = "orders", **options: Any
) -> tuple[Job, list[list[dict[str, Any]]], list[Refusal]]:
    """The job of a file, the events of each of its parts, and its refused lines."""
    refused: list[Refusal] = []
    with ExitStack() as stack:
        job = prepare("-", kind, stack, stdin=io.BytesIO(content), refuse=refused.append, **options)
        parts = []
        for offset, length in job.parts:
            job.spool.seek(offset)
            parts.append(json.loads(b"[" + job.spool.read(length) + b"]"))
    return job, parts, refused


def reasons(content: str | bytes, kind: bulk.Kind = "orders") -> list[tuple[int, str]]:
    data = content if isinstance(content, bytes) else content.encode()
    return [(each.line, each.reason) for each in taken(data, kind)[2]]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (HEADER + FIRST + SECOND, []),
        ("\ufeff" + HEADER + FIRST + SECOND + "\n\n" + OTHER, []),
        (HEADER.replace("\n", "\r\n") + (FIRST + SECOND).replace("\n", "\r\n"), []),
        (HEADER + FIRST + OTHER, [(2, errors.TOTAL_MISMATCH)]),
        (
            HEADER + FIRST + OTHER.replace("10.00\n", "9.00\n") + SECOND,
            [(2, errors.FIELD_MALFORMED), (3, errors.TOTAL_MISMATCH), (4, errors.FIELD_MALFORMED)],
        ),
        (HEADER + FIRST + SECOND.replace(",,,,,", ",,,,31.00,") + OTHER, [(2, errors.FIELD_MALFORMED)]),
        (HEADER + FIRST + SECOND.replace(",2,", ",two,") + OTHER, [(2, errors.FIELD_MALFORMED)]),
        (HEADER + FIRST + SECOND.replace("\n", ",\n") + OTHER, [(2, errors.FIELD_MALFORMED)]),
        (HEADER + f'{ORDER},"open,\n' + OTHER, [(2, errors.FIELD_MALFORMED), (3, errors.FIELD_MALFORMED)]),
        (HEADER + FIRST.replace(at(1), "") + OTHER, [(2, errors.FIELD_MISSING)]),
        (HEADER + FIRST.replace(at(1), "2026-01-01 10:00") + OTHER, [(2, errors.FIELD_MALFORMED)]),
        (HEADER + FIRST.replace("EUR", "EURO") + OTHER, [(2, errors.CURRENCY_UNKNOWN)]),
        (
            HEADER.encode() + b"\xff,\n" + OTHER.encode(),
            [(2, errors.FIELD_MALFORMED), (3, errors.FIELD_MALFORMED)],
        ),
        (HEADER + FIRST + ",,,,,,,,,,\n" + SECOND + " , ,\n", []),
    ],
)
def test_lines_of_csv(text: str | bytes, expected: list[tuple[int, str]]) -> None:
    assert reasons(text) == expected


PAID = f"{ORDER},{at(1)},{USER},EUR,10.00,{item_id(1)},{PRODUCT},{ANNA},lamp,1,10.00"
GIFT = f"{ORDER},,,,,{item_id(2)},{PRODUCT},{ANNA},gift,1,0.00"
"""Of the same order, and worth nothing: no total tells when it is missing."""
GOOD = OTHER.rstrip()


def orders_sent(*lines: str | bytes, header: str = HEADER) -> dict[str, int]:
    """Of a file of these lines: the orders that would be sent, and how many items each has."""
    text = b"\n".join(
        [header.rstrip().encode(), *(line if isinstance(line, bytes) else line.encode() for line in lines)]
    )
    return {each["order_id"]: len(each["items"]) for part in taken(text)[1] for each in part}


BROKEN: dict[str, str | bytes] = {
    "a quote that isn't closed": GIFT.replace("gift", '"gift'),
    "a quote that isn't opened": GIFT.replace("gift", 'gift","'),
    "not UTF-8": GIFT.encode().replace(b"gift", b"g\xefft"),
    "not UTF-8, id in upper case": GIFT.encode()
    .replace(ORDER.encode(), ORDER.upper().encode())
    .replace(b"gift", b"g\xefft"),
    "a cell too few": GIFT.replace("gift,", ""),
    "a cell too many": GIFT + ",",
    "a cell too many before the id": "x," + GIFT,
    "a NUL": GIFT.replace("gift", "gi\0ft"),
    "no number": GIFT.replace(",1,", ",one,"),
    "id in braces": GIFT.replace(ORDER, f"{{{ORDER}}}"),
    "blanks around the id": GIFT.replace(ORDER, f" {ORDER} "),
    "too long": GIFT + "," + "x" * (5 << 20),
    "too long, id without dashes": GIFT.replace(ORDER, ORDER.replace("-", "")) + "," + "x" * (5 << 20),
    "an open quote before the id": '"' + GIFT,
    "open quote, id without dashes": GIFT.replace(ORDER, ORDER.replace("-", "")).replace("gift", '"gift'),
    "open quote, id in braces": GIFT.replace(ORDER, f"{{{ORDER}}}").replace("gift", '"gift'),
}
"""The gift's line as it can't be read; whose it is can be told."""
NOBODYS: dict[str, str | bytes] = {
    "no id": GIFT.replace(ORDER, ""),
    "a digit too few": GIFT[1:],
    "an unreadable byte in the id": GIFT.encode().replace(ORDER[:4].encode(), b"0a\xffa"),
    "no id, a cell too few": GIFT.replace(ORDER + ",", ""),
    "a piece of a line": "gift,1,0.00",
    "two lines glued together, one without an id": GIFT.replace(ORDER, "") + GOOD,
    "too long, and its id broken": GIFT[1:] + "," + "x" * (5 << 20),
    "only NULs": "\0" * 40,
}
"""The gift's line as nobody can tell whose it is."""


@pytest.mark.parametrize("gift", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("where", [0, 1, 2, 3])
def test_an_order_of_which_a_line_cannot_be_read_is_refused_wherever_it_stands(
    gift: str | bytes, where: int
) -> None:
    lines: list[str | bytes] = [PAID, GOOD, GOOD.replace(STRANGER, STRANGER.replace("c", "d"))]
    lines.insert(where, gift)
    sent = orders_sent(*lines)
    assert ORDER not in sent
    assert len(sent) == 2


@pytest.mark.parametrize("gift", NOBODYS.values(), ids=NOBODYS)
@pytest.mark.parametrize("where", [0, 1, 2])
def test_a_line_that_may_belong_to_any_order_refuses_all(gift: str | bytes, where: int) -> None:
    lines: list[str | bytes] = [PAID, GOOD]
    lines.insert(where, gift)
    assert orders_sent(*lines) == {}


def test_lines_of_an_order_are_one_however_its_id_is_written() -> None:
    for id_ in (ORDER.upper(), ORDER.replace("-", ""), ORDER.replace("-", "").upper()):
        assert orders_sent(PAID, GIFT.replace(ORDER, id_), GOOD) == {ORDER: 2, STRANGER: 1}


def test_lines_of_an_order_that_do_not_follow_each_other_refuse_it() -> None:
    assert orders_sent(PAID, GOOD, GIFT) == {STRANGER: 1}
    assert orders_sent(GIFT, GOOD, PAID) == {STRANGER: 1}
    assert orders_sent(PAID, GOOD, PAID) == {STRANGER: 1}


def test_two_lines_glued_together_refuse_both_orders() -> None:
    """As `cat` glues files of which the first has no line break at its end."""
    assert orders_sent(PAID, GIFT + GOOD) == {}
    assert orders_sent(PAID, GIFT + HEADER.rstrip(), GOOD) == {}


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_quoted_cell_holds_line_breaks(end: str) -> None:
    noted = HEADER.rstrip() + ",note,remark\n"
    for note in ("ring twice{0}please", '""hello""{0}, she said', "{0}{0}", "a, b{0}c, d{0}e"):
        quoted = f',"{note.format(end)}",'
        assert orders_sent(PAID + ",,", GIFT + quoted, GOOD + quoted + "x", header=noted) == {
            ORDER: 2,
            STRANGER: 1,
        }
    head = f'"a{end}note",' + HEADER
    assert orders_sent(f'"x{end}y",' + PAID, "," + GIFT, header=head) == {ORDER: 2}


def test_a_quote_that_is_not_closed_takes_in_no_other_line() -> None:
    """Read as one record, the lines between two stray quotes would have the right number of cells."""
    torn = [
        PAID,
        GIFT.replace("gift", '"gift'),
        GOOD,
        GOOD.replace(STRANGER, STRANGER.replace("c", "d")).replace("sku-1", 'sku-1"'),
    ]
    assert orders_sent(*torn) == {STRANGER: 1}
    assert orders_sent(*torn[:2], torn[3]) == {}
    refused = taken("\n".join([HEADER.rstrip(), *torn]).encode())[2]
    assert [each.line for each in refused] == [2, 5]
    assert "in line 3: a quote isn't closed" in refused[0].detail
    # Beside it, a quoted line break is none any more, and what follows it is nobody's.
    assert orders_sent(PAID.replace("lamp", '"la\nmp"'), GIFT.replace("gift", '"gift'), GOOD) == {}


def test_an_order_of_too_many_lines_is_refused_and_not_kept() -> None:
    lines = [PAID, *(GIFT.replace(item_id(2), item_id(n)) for n in range(2, 1100))]
    assert orders_sent(*lines, GOOD) == {STRANGER: 1}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", errors.NOT_JSON),
        (b'{"a": "\xff"}', errors.NOT_JSON),
        (b"[1]", errors.FIELD_MALFORMED),
        (b'"text"', errors.FIELD_MALFORMED),
        (b"[" * 100_000, errors.NOT_JSON),
        (b'{"time": 1}', errors.FIELD_MALFORMED),
        (b'{"time": "2026-01-01T00:00:00Z", "id": 7}', errors.FIELD_MALFORMED),
        (b'{"time": "2026-01-01T00:00:00Z", "id": ""}', errors.NOT_CLOUDEVENT),
        (b'{"time": "2026-01-01T00:00:00Z"}', errors.FIELD_MISSING),
        (b'{"x": "' + b"y" * (6 << 20) + b'"}', errors.RECORD_TOO_LARGE),
        (json.dumps({**SCAN, "time": at(1), "status": "lost"}).encode(), errors.FIELD_MALFORMED),
        (json.dumps({**SCAN, "time": at(1), "carrier": "\x00"}).encode(), errors.FIELD_MALFORMED),
        (b'{"order_id": 7, ' + json.dumps({**SCAN, "time": at(1)}).encode()[1:], errors.FIELD_MALFORMED),
    ],
)
def test_a_refused_line_of_ndjson_leaves_its_neighbours_alone(bad: bytes, reason: str) -> None:
    good = json.dumps({**SCAN, "time": at(1)}).encode()
    job, parts, refused = taken(b"\n".join([good, bad, b"", good]), "shipments", format="ndjson")
    assert [(each.line, each.reason) for each in refused] == [(2, reason)]
    assert (job.lines, job.accepted, job.refused) == (3, 2, 1)
    assert [each["id"] for each in parts[0]] == [str(uuid5(UUID(job.id), number)) for number in ("1", "4")]


def test_a_line_is_refused_as_the_pipeline_refuses_its_event() -> None:
    for data in (
        {**VALID["order.created"], "total_amount": "1.00"},
        {**VALID["order.created"], "items": []},
        {"order_id": ORDER},
    ):
        [refused] = taken(json.dumps({**data, "time": at(1)}).encode())[2]
        with pytest.raises(Refused) as caught:
            events.decode("order.created", *record("order.created", data))
        assert (refused.reason, refused.detail) == (caught.value.code, caught.value.detail)


def test_one_content_is_one_job_in_whatever_wrapping() -> None:
    text = (HEADER + FIRST + SECOND).encode()
    plain, zipped = taken(text)[0], taken(gzip.compress(text, mtime=0))[0]
    assert plain.id == zipped.id
    assert taken(json.dumps({**SCAN, "time": at(1)}).encode(), "shipments")[0].id != plain.id
    assert taken(text + OTHER.encode())[0].id != plain.id
    assert taken(text, job=JOB)[1][0][0]["id"] == bulk.event_id(JOB, 2)


def test_members_of_gzip_are_one_file() -> None:
    assert (
        taken(
            gzip.compress(HEADER.encode())
            + gzip.compress((PAID + "\n").encode())
            + gzip.compress(GIFT.encode())
        )[0].accepted
        == 1
    )


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "no header, the file or its first line is empty"),
        (b"\n", "no header, the file or its first line is empty"),
        (HEADER.encode(), "holds no orders"),
        (HEADER.replace("price", "prize").encode(), "no column price"),
        (HEADER.replace("sku", "price").encode(), "column 'price' stands twice"),
        (HEADER.replace("sku", "sku, Price ").encode(), "column 'price' stands twice"),
        (
            (HEADER + PAID).replace(",", ";").encode(),
            "no column order_id; its cells seem to be separated by .;.",
        ),
        (PAID.encode(), "in its first line, which is the header"),
        ((HEADER + PAID).encode("utf-16"), "UTF-16"),
        ((HEADER + PAID).encode("utf-16-le"), "NUL"),
        (b"\0" * 1000, "NUL"),
        (gzip.compress(HEADER.encode(), mtime=0)[:-9], "cut short or broken"),
        (gzip.compress(HEADER.encode(), mtime=0) + b"more", "cut short or broken"),
        (gzip.compress(gzip.compress(HEADER.encode(), mtime=0), mtime=0), "gzip within gzip"),
        (b"PK\x03\x04", "Excel"),
        (b"orders.csv".ljust(257, b"x") + b"ustar", "tar"),
        (b"PAR1 and no more", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_as_a_whole(content: bytes, says: str) -> None:
    with pytest.raises(SourceError, match=says):
        taken(content)


def test_parts_hold_so_many_events_and_so_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"\n".join(
        json.dumps({**SCAN, "shipment_id": parcel(n), "time": at(1)}).encode() for n in range(25)
    )
    monkeypatch.setattr(files, "PART_EVENTS", 10)
    assert [len(part) for part in taken(lines, "shipments")[1]] == [10, 10, 5]
    monkeypatch.setattr(files, "PART_BYTES", 1000)
    parts = taken(lines, "shipments")[1]
    assert sum(map(len, parts)) == 25
    assert all(1 <= len(part) <= 3 for part in parts)


def parquet(*rows: dict[str, Any], **types: Any) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows))
    for name, type_ in types.items():
        table = table.set_column(table.column_names.index(name), name, table[name].cast(type_))
    pq.write_table(table, buffer)
    return buffer.getvalue()


def test_parquet_nested_and_a_row_an_item() -> None:
    order = {**created(line(1), line(2)), "time": "2026-01-01T01:00:00Z", "region": None}
    item = {
        "item_id": UUID(item_id(1)).bytes,
        "product_id": PRODUCT,
        "seller_id": ANNA,
        "sku": "s",
        "quantity": 1,
        "price": Decimal("10.00"),
    }
    flat = {
        "order_id": ORDER,
        "time": None,
        "user_id": USER,
        "currency": "EUR",
        "total_amount": "20.00",
        **item,
    }
    for content in (
        parquet(order),
        parquet({**order, "time": 1_700_000_000_000_000_123}, time=pa.timestamp("ns", "UTC")),
        parquet({**flat, "time": at(1)}, {**flat, "item_id": UUID(item_id(2)).bytes}),
    ):
        _, [[event]], refused = taken(content)
        assert refused == []
        assert len(event["items"]) == 2
        assert "region" not in event
    assert [
        (each.line, each.reason) for each in taken(parquet({**flat, "time": at(1), "price": 10.0}))[2]
    ] == [(1, "field_malformed")]


@pytest.mark.parametrize(
    ("column", "type_", "good", "bad", "refused"),
    [
        ("price", pa.decimal128(20, 4), Decimal("10.0000"), Decimal("10.0010"), "with at most 2 decimals"),
        ("price", pa.decimal256(60, 30), Decimal(10), Decimal(-10), "not an amount"),
        ("price", pa.large_string(), "10.00", "10.0000", "with at most 2 decimals"),
        ("quantity", pa.float64(), 1.0, 1.5, "a float"),
        ("quantity", pa.decimal128(9, 2), Decimal(1), Decimal("1.5"), "Expected `int`"),
        ("quantity", pa.int8(), 1, -1, ">= 1"),
        ("sku", pa.binary(), b"0123456789abcdef", b"\xff", "not UTF-8"),
        ("sku", pa.string(), "lamp", None, "missing required field `sku`"),
        ("item_id", pa.binary(), UUID(item_id(1)).bytes, b"\0" * 15, "Invalid UUID"),
        ("time", pa.timestamp("ns", "Europe/Berlin"), 1_700_000_000_000_000_123, None, "$.time: missing"),
        ("time", pa.timestamp("ms", "UTC"), 1_700_000_000_000, 1 << 52, "$.time: of a type"),
    ],
)
def test_each_value_of_parquet_is_judged_by_itself(
    column: str, type_: pa.DataType, good: Any, bad: Any, refused: str
) -> None:
    item = {
        "item_id": item_id(1),
        "product_id": PRODUCT,
        "seller_id": ANNA,
        "sku": "lamp",
        "quantity": 1,
        "price": "10.00",
    }
    rows = [
        {"order_id": id_, "time": at(1), "user_id": USER, "currency": "EUR", "total_amount": "10.00", **item}
        for id_ in (ORDER, STRANGER)
    ]
    table = pa.Table.from_pylist(rows)
    for values, count in (([good, good], 2), ([good, bad], 1)):
        buffer = io.BytesIO()
        changed = table.set_column(table.column_names.index(column), column, pa.array(values, type_))
        pq.write_table(changed, buffer)
        job, parts, refusals = taken(buffer.getvalue())
        assert job.accepted == count, refusals
        assert all(
            column != "sku" or each["items"][0]["sku"] in ("lamp", "0123456789abcdef") for each in parts[0]
        )
    assert refused in refusals[0].detail


def test_money_of_several_currencies_in_one_column_of_decimals() -> None:
    amounts = [
        ("EUR", Decimal("10.0000")),
        ("JPY", Decimal("1000.0000")),
        ("BHD", Decimal("1.2340")),
        ("JPY", Decimal("0.5000")),
    ]
    rows = []
    for n, (currency, amount) in enumerate(amounts):
        item = {
            "item_id": item_id(n),
            "product_id": PRODUCT,
            "seller_id": ANNA,
            "sku": "lamp",
            "quantity": 1,
            "price": amount,
        }
        order = {
            "order_id": parcel(n),
            "time": at(1),
            "user_id": USER,
            "currency": currency,
            "total_amount": amount,
        }
        rows.append(order | {"items": [item]})
    _, parts, refused = taken(parquet(*rows, total_amount=pa.decimal128(20, 4)))
    assert [each["total_amount"] for each in parts[0]] == ["10", "1000", "1.234"]
    assert [(each.line, each.reason) for each in refused] == [(4, errors.FIELD_MALFORMED)]


def test_a_row_of_parquet_without_an_order_refuses_all() -> None:
    item = {
        "item_id": item_id(1),
        "product_id": PRODUCT,
        "seller_id": ANNA,
        "sku": "lamp",
        "quantity": 1,
        "price": "10.00",
    }
    order = {
        "order_id": ORDER,
        "time": at(1),
        "user_id": USER,
        "currency": "EUR",
        "total_amount": "10.00",
        **item,
    }
    assert taken(parquet(order, {**order, "order_id": None}))[0].accepted == 0


def test_a_column_of_parquet_that_stands_twice_refuses_the_file() -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table([["1"], ["2"]], ["price", "Price"]), buffer)
    with pytest.raises(SourceError, match="stands twice"):
        taken(buffer.getvalue())


def test_small_files_that_unpack_to_gigabytes_are_refused() -> None:
    """Their text is the same in every row, and stands there once; or they have rows without end."""
    bounds = Bounds(memory=400 << 20)
    for length, says in ((1_000, "no column order_id"), (2_000_000, "too much memory")):
        text = pa.DictionaryArray.from_arrays(pa.array([0] * 250, pa.int32()), ["x" * length])
        buffer = io.BytesIO()
        pq.write_table(pa.table({"sku": text}), buffer, compression="zstd")
        assert len(buffer.getvalue()) < 50_000
        with pytest.raises(SourceError, match=says):
            taken(buffer.getvalue(), bounds=bounds)
    many = pa.table(
        {name: pa.array([""]).take(pa.array([0] * 100_000)) for name in HEADER.strip().split(",")}
    )
    buffer = io.BytesIO()
    pq.write_table(many, buffer)
    with pytest.raises(SourceError, match="more than 1,000,000 bytes"):
        taken(buffer.getvalue(), bounds=Bounds(bytes=1_000_000))


def test_gzip_that_unpacks_to_much_more_than_its_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = gzip.compress((HEADER + "x" * 1_000_000).encode())
    assert taken(content)[0].refused == 1
    monkeypatch.setattr(copies, "ALWAYS", 10_000)
    with pytest.raises(SourceError, match="100 times its size"):
        taken(content)
    assert taken(content, bounds=Bounds(bytes=2_000_000, ratio=None))[0].refused == 1
    with pytest.raises(SourceError, match="more than 1,000 bytes"):
        taken(content, bounds=Bounds(bytes=1_000))


def test_an_event_that_its_topic_would_not_take_is_refused_alone() -> None:
    """The bound follows ORDERS_MESSAGE_BYTES."""
    large = json.dumps({**SCAN, "time": at(1), "note": "x" * 700_000})
    lines = f"{large}\n{json.dumps({**SCAN, 'time': at(2)})}\n".encode()
    bounds = bounds_of(Settings(message_bytes=1 << 20), None)
    _, parts, refused = taken(lines, "shipments", bounds=bounds)
    assert [(each.line, each.reason) for each in refused] == [(1, errors.RECORD_TOO_LARGE)]
    assert sum(map(len, parts)) == 1
    assert taken(lines, "shipments", bounds=bounds_of(Settings(), None))[2] == []


def wide(columns: list[str]) -> bytes:
    return parquet(dict.fromkeys(columns, "x"))


@pytest.mark.parametrize(
    "content_of", [wide, lambda columns: ",".join(columns).encode()], ids=["parquet", "csv"]
)
def test_columns_without_end_are_refused(content_of: Callable[[list[str]], bytes]) -> None:
    columns = [*HEADER.strip().split(","), *(f"column {number}" for number in range(90))]
    bounds = Bounds(columns=len(columns))
    if content_of is wide:
        assert taken(content_of(columns), bounds=bounds)[0].ignored == columns[-90:]
    with pytest.raises(SourceError, match=r"102 columns, more than 101; .*ORDERS_BULK_FILE_COLUMNS"):
        taken(content_of([*columns, "one more"]), bounds=bounds)
    with pytest.raises(SourceError, match="the name of column 2 has more than 200 characters") as refused:
        taken(content_of([columns[0], "x" * 300_000, *columns[1:]]))
    assert len(str(refused.value)) < 200


@pytest.mark.parametrize("change", ["grow", "shrink", "write"])
def test_a_file_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(HEADER + PAID + "\n" + GIFT)
    look = copies._require_data

    def changing(path: str, block: bytes, *, utf16: bool) -> None:
        look(path, block, utf16=utf16)
        match change:
            case "grow":
                with file.open("a") as out:
                    out.write("\n" + GOOD)
            case "shrink":
                os.truncate(file, len(HEADER))
            case _:
                os.utime(file, ns=(1, 1))

    monkeypatch.setattr(copies, "_require_data", changing)
    with ExitStack() as stack, pytest.raises(SourceError, match="changed while it was read"):
        prepare(str(file), "orders", stack, stdin=io.BytesIO())


def test_what_cannot_be_read_or_copied_is_one_line(tmp_path: Path) -> None:
    for path, says in (
        (tmp_path, "Is a directory"),
        (tmp_path / "none", "No such file"),
        (Path("/dev/zero"), "NUL"),
    ):
        with ExitStack() as stack, pytest.raises(SourceError, match=says):
            prepare(str(path), "orders", stack, stdin=io.BytesIO())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # to a process, a disk that is full
    try:
        with pytest.raises(SourceError, match="no room left for temporary files"):
            taken(HEADER.encode() + b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_part_is_taken_apart_into_events_as_they_came() -> None:
    good = json.dumps({**VALID["order.created"], "id": "é", "time": at(1)}, ensure_ascii=False).encode()
    value = bulk.encode_part(JOB, 1, 2, [good, b'{"order_id":"x"}', b"7"])
    headers, _ = record("order.bulk", {})
    event = events.decode("order.bulk", headers, value)
    first, *others = bulk.unpack(event.type, cast(BulkPart, event.fact), event.traceparent)
    assert (first.key, first.value, events.order_key(event)) == (ORDER.encode(), good, JOB.encode())
    assert events.decode("order.created", first.headers, first.value).id == "é"
    for each in others:
        assert each.key is None
        with pytest.raises(Refused):
            events.decode("order.created", each.headers, each.value)


@pytest.mark.parametrize(
    "change", [{"part": 3}, {"part": 0}, {"parts": 0}, {"job_id": "x"}, {"events": None}, {"part": None}]
)
def test_what_is_no_part_is_refused(change: dict[str, Any]) -> None:
    headers, _ = record("order.bulk", {})
    good = {"job_id": JOB, "part": 1, "parts": 2, "events": []}
    assert events.decode("order.bulk", headers, json.dumps(good).encode()).type == "order.bulk"
    with pytest.raises(Refused):
        events.decode("order.bulk", headers, json.dumps({**good, **change}).encode())


def test_line_ends_that_are_none_are_told_as_such() -> None:
    """As old spreadsheets on a Mac write them."""
    detail = "a carriage return that ends no line: save it with LF or CRLF"
    with pytest.raises(SourceError, match=detail):
        taken((HEADER + FIRST + SECOND).replace("\n", "\r").encode())
    refused = taken((HEADER + FIRST + SECOND.replace("sku-2", "sku\r2")).encode())[2]
    assert [(each.line, each.detail) for each in refused] == [(2, f"in line 3: {detail}")]


def test_payments_are_rows_of_order_paid() -> None:
    paid = VALID["order.paid"]
    text = ",".join([*paid, "time"]) + "\n" + ",".join([*map(str, paid.values()), at(1)]) + "\n"
    job, [[event]], refused = taken(
        (text + text.splitlines()[1].replace(at(1), "") + "\n").encode(), "payments"
    )
    assert (job.accepted, [(each.line, each.reason) for each in refused]) == (1, [(3, errors.FIELD_MISSING)])
    assert {name: event[name] for name in paid} == paid
    part = BulkPart(UUID(JOB), 1, 1, [json.dumps(event).encode()])  # type: ignore[list-item]
    [unpacked] = bulk.unpack("payment.bulk", part, None)
    assert dict(unpacked.headers)["ce_type"] == b"order.paid"
