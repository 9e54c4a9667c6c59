"""Files of known orders and scans, broken in random ways: what would be sent is what was meant,
and what isn't is refused.

`python -m tests.fuzz.files --files N --seed S` tries as many as you like; a file that fails is
kept, and named with its seed.

What is right is told by provenance: of each record the fuzzer knows whose it is. A record that can't be read
by itself (Python's csv, strict) takes its order along; an order that is sent has every item that its records
say, and says what they say.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple
from uuid import UUID

from contracts.bulk import Kind
from contracts.errors import SourceError
from operations.submit.cells import made_id
from operations.submit.jobs import ITEM_COLUMNS, prepare
from operations.submit.mapping import Mapping, parse

COLUMNS: Final = [
    "order_id",
    "time",
    "user_id",
    "currency",
    "total_amount",
    "item_id",
    "product_id",
    "seller_id",
    "sku",
    "quantity",
    "price",
]
SCAN: Final = ["order_id", "shipment_id", "seller_id", "status", "time", "carrier", "location"]
TIME: Final = "2026-03-01T10:00:00Z"
IDS: Final = ("item_id", "product_id", "seller_id")
NOTES: Final = [
    "",
    "",
    "ring twice",
    "to the left, please",
    'say "hello"',
    "Bitte\nklingeln",
    "eins\r\n\r\nzwei, drei",
    '5" wide',
]
BYTES: Final = b"\x00\xff\xc3\xe9\",;\n\r\t \\'{}[]09azAZ-"


class Record(NamedTuple):
    """A record of a file as it stands there, and whose it is; None: a piece of nobody's,
    or of nobody knows whose.
    """

    text: bytes
    owner: str | None


class Broken(AssertionError):
    """What would be sent isn't what was meant."""


def _uuid(rng: random.Random) -> str:
    return str(UUID(int=rng.getrandbits(128), version=4))


def _written(rng: random.Random, id_: str) -> str:
    """An id as senders write it."""
    return rng.choice([id_] * 6 + [id_.upper(), id_.replace("-", "")])


def _line(rng: random.Random, cells: list[str]) -> bytes:
    out = io.StringIO()
    csv.writer(out, quoting=csv.QUOTE_ALL if rng.random() < 0.25 else csv.QUOTE_MINIMAL).writerow(cells)
    return out.getvalue().removesuffix("\r\n").encode()


def orders(rng: random.Random, columns: list[str]) -> list[Record]:
    """Orders, a row an item; of most the last item is a gift, so that no total tells when it is missing."""
    records = []
    for _ in range(rng.randint(1, 6)):
        id_, lines = _uuid(rng), rng.randint(1, 3)
        prices = [f"{rng.randint(1, 9)}.00"] + [
            rng.choice(["0.00", "0.00", "2.50"]) for _ in range(lines - 1)
        ]
        total = sum(int(price.replace(".", "")) for price in prices)
        head = {
            "time": TIME,
            "user_id": _uuid(rng),
            "currency": "EUR",
            "total_amount": f"{total // 100}.{total % 100:02d}",
        }
        for n, price in enumerate(prices):
            item = {name: _uuid(rng) for name in IDS} | {"sku": "lamp", "quantity": "1", "price": price}
            cells = {
                "order_id": _written(rng, id_),
                **(head if not n else {}),
                **item,
                "note": rng.choice(NOTES),
                "remark": rng.choice(NOTES),
            }
            records.append(Record(_line(rng, [cells.get(name, "") for name in columns]), id_))
    return records


def scans(rng: random.Random, columns: list[str]) -> list[Record]:
    """Scans of parcels, each of an order of its own."""
    records = []
    for _ in range(rng.randint(1, 8)):
        id_ = _uuid(rng)
        cells = {"order_id": id_, "shipment_id": _uuid(rng), "seller_id": _uuid(rng), "time": TIME}
        cells |= {
            "status": rng.choice(["pending", "in_transit"]),
            "carrier": rng.choice(NOTES),
            "location": rng.choice(NOTES),
        }
        records.append(Record(_line(rng, [cells.get(name, "") for name in columns]), id_))
    return records


# -- breaking ------------------------------------------------------------------------------------------------


def _flip(rng: random.Random, text: bytes) -> bytes:
    at = rng.randrange(len(text)) if text else 0
    return text[:at] + bytes([rng.choice(BYTES)]) + text[at + 1 :]


def _put(rng: random.Random, text: bytes) -> bytes:
    at = rng.randint(0, len(text))
    return text[:at] + bytes(rng.choices(BYTES, k=rng.randint(1, 3))) + text[at:]


def _quote(rng: random.Random, text: bytes) -> bytes:
    starts = [0, *(n + 1 for n, byte in enumerate(text) if byte == 44), len(text)]
    at = rng.choice(starts)
    return text[:at] + b'"' + text[at:]


def _cells(rng: random.Random, text: bytes) -> bytes:
    cells = text.split(b",")
    at = rng.randrange(len(cells))
    match rng.randrange(4):
        case 0:
            del cells[at]
        case 1:
            cells.insert(at, rng.choice([b"", b"x", cells[at]]))
        case 2:
            other = rng.randrange(len(cells))
            cells[at], cells[other] = cells[other], cells[at]
        case _:
            cells[at] = rng.choice(
                [b"", b" " + cells[at], b"{" + cells[at] + b"}", b'""' + cells[at], cells[at].upper()]
            )
    return b",".join(cells)


def _cut(rng: random.Random, text: bytes) -> bytes:
    return text[: rng.randint(0, len(text))]


def _long(rng: random.Random, text: bytes) -> bytes:
    return text + b"," + b"x" * (5 << 20) if rng.random() < 0.02 else text


WAYS: Final[tuple[Callable[[random.Random, bytes], bytes], ...]] = (
    _flip,
    _put,
    _quote,
    _quote,
    _cells,
    _cells,
    _cut,
    _long,
)


def broken(rng: random.Random, records: list[Record]) -> list[Record]:
    """The same records with some of them broken, moved, said twice, or glued together."""
    records = list(records)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        at = rng.randrange(len(records))
        match rng.randrange(12):
            case 0:
                rng.shuffle(records)
            case 1:
                records.insert(rng.randint(0, len(records)), records[at])
            case 2:
                records.insert(
                    at,
                    Record(
                        rng.choice([b"", b"   ", b",,,,,,,,,,", b"\xef\xbb\xbf", b"x", b'"', b'","']), None
                    ),
                )
            case _:
                records[at] = records[at]._replace(text=rng.choice(WAYS)(rng, records[at].text))
    return records


# -- judging -------------------------------------------------------------------------------------------------


def read(text: bytes, columns: list[str]) -> dict[str, str] | None:
    """What a record says by itself, its filled cells; None: it can't be read.
    Python's csv and nothing of ours.
    """
    try:
        rows = [
            row
            for row in csv.reader(io.StringIO(text.decode(), newline=""), strict=True)
            if any(cell.strip() for cell in row)
        ]
    except (UnicodeDecodeError, csv.Error):
        return None
    if len(rows) != 1 or len(rows[0]) != len(columns) or b"\0" in text or len(text) > 5 << 20:
        return None
    return {name: cell for name, cell in zip(columns, rows[0], strict=True) if cell}


def _same_id(text: str | None) -> str | None:
    try:
        return None if text is None else str(UUID(text.strip(" \t\r\n\xa0\ufeff\"'")))
    except ValueError:
        return None


def _blank(text: bytes) -> bool:
    return not text.strip(b', \t\r\n\xef\xbb\xbf"')


def sent(content: bytes, kind: Kind, mapping: Mapping | None = None) -> list[dict[str, Any]] | None:
    """The events that a file would become; None: it is refused as a whole.
    Any exception but SourceError is a defect.
    """
    with ExitStack() as stack:
        try:
            job = prepare("-", kind, stack, stdin=io.BytesIO(content), mapping=mapping)
        except SourceError:
            return None
        events: list[dict[str, Any]] = []
        for offset, length in job.parts:
            job.spool.seek(offset)
            events += json.loads(b"[" + job.spool.read(length) + b"]")
    if len(events) != job.accepted or job.accepted + job.refused != job.lines:
        raise Broken(f"{job.lines} read, {job.accepted} right, {job.refused} refused, {len(events)} sent")
    return events


def judge_orders(records: list[Record], columns: list[str], events: list[dict[str, Any]]) -> None:
    """Raises Broken when an order is sent without a record of its own, or otherwise than they say."""
    unreadable: set[str] = set()
    said: dict[str, list[dict[str, str]]] = {}
    # A piece of a line, too short for an id, between two stray quotes: nobody can tell it from
    # the second line of a note.
    notes = [
        pair
        for pair in pairwise(records)
        if len(pair[1].text) < 36 and read(b"\n".join(each.text for each in pair), columns)
    ]
    for record in records:
        cells = read(record.text, columns)
        if cells is None and any(record in pair for pair in notes):
            cells = next(
                (
                    read(b"\n".join(each.text for each in pair), columns)
                    for pair in notes
                    if record is pair[0]
                ),
                {},
            )
        if cells is None and not _blank(record.text) and record.owner is not None and not _renamed(record):
            unreadable.add(record.owner)
        if cells is not None and (id_ := _same_id(cells.get("order_id"))) is not None:
            said.setdefault(id_, []).append(cells)
    for event in events:
        id_ = _same_id(event["order_id"])
        if id_ in unreadable:
            raise Broken(f"order {id_} is sent, and a record of it can't be read")
        rows = said.get(id_ or "", [])
        items = [{name: str(value) for name, value in item.items()} for item in event["items"]]
        if items != [
            {name: _number(name, row[name]) for name in ITEM_COLUMNS if name in row} for row in rows
        ]:
            raise Broken(f"order {id_} is sent with other items than its records say")
        if any(
            event.get(name) != rows[0].get(name) for name in ("time", "user_id", "currency", "total_amount")
        ):
            raise Broken(f"order {id_} is sent otherwise than its first record says")


def _number(name: str, text: str) -> str:
    return str(int(text)) if name == "quantity" else text


def _renamed(record: Record) -> bool:
    """Whether it names another order now, as far as anybody can tell: two faults in one record."""
    return not any(
        _same_id(cell.decode("utf-8", "replace")) == record.owner for cell in record.text.split(b",")
    ) and any(_same_id(cell.decode("utf-8", "replace")) is not None for cell in record.text.split(b",")[:1])


def judge_scans(records: list[Record], columns: list[str], events: list[dict[str, Any]]) -> None:
    """Raises Broken when a scan is sent that no record says, nor two that a stray line break or quotes
    have made of one or of two.
    """
    pairs = [
        first.text + end + second.text for first, second in pairwise(records) for end in (b"\n", b"\r\n")
    ]
    said = [row for text in (*(record.text for record in records), *pairs) for row in _rows(text, columns)]
    for event in events:
        scan = {name: event[name] for name in SCAN if name in event}
        if not any({name: row[name] for name in SCAN if name in row} == scan for row in said):
            raise Broken(f"a scan of order {event['order_id']} is sent that no record says")


def _rows(text: bytes, columns: list[str]) -> Iterator[dict[str, str]]:
    """Each row with as many cells as there should be, that Python's csv finds before it gives up."""
    try:
        for row in csv.reader(io.StringIO(text.decode(), newline=""), strict=True):
            # An id within a cell with line breaks: what lies between two quotes that don't belong together.
            if len(row) == len(columns) and not any("\n" in cell and "-4" in cell for cell in row):
                yield {name: cell for name, cell in zip(columns, row, strict=True) if cell}
    except (UnicodeDecodeError, csv.Error):
        return


# -- files ---------------------------------------------------------------------------------------------------


class File(NamedTuple):
    """A file to try, and who judges what would be sent."""

    content: bytes
    kind: Kind
    judge: Callable[[list[dict[str, Any]]], None]
    right: int | None
    """So many events it has, for nothing of it is broken; None: nobody knows."""
    mapping: Mapping | None = None


def csv_file(rng: random.Random) -> File:
    """CSV of orders or scans, its columns in any order, some beside them, broken
    record by record or as a whole.
    """
    of_orders = rng.random() < 0.8
    columns = [*(COLUMNS if of_orders else SCAN), *rng.choice([[], [], ["note"], ["note", "remark"]])]
    if rng.random() < 0.3:
        tail = columns[1:]
        rng.shuffle(tail)
        columns = [columns[0], *tail] if of_orders else columns[:1] + tail
    whole = orders(rng, columns) if of_orders else scans(rng, columns)
    records = broken(rng, whole)
    end = rng.choice([b"\n", b"\n", b"\r\n"])
    bodies = [record.text for record in records]
    if len(records) > 1 and rng.random() < 0.05:
        at = rng.randrange(len(records) - 1)
        pair = records[at : at + 2]
        # A second fault beside it may leave as many cells as there should be, and nobody can tell.
        if not _blank(pair[0].text) and all(record in whole for record in pair):
            bodies[at : at + 2] = [pair[0].text + pair[1].text]
            records[at : at + 2] = [record._replace(text=bodies[at]) for record in pair]
    intact = (
        rng.choice([b"", b"", b"\xef\xbb\xbf"])
        + _line(rng, columns)
        + end
        + end.join(bodies)
        + rng.choice([end, b""])
    )
    content = _as_a_whole(rng, intact)
    judge = judge_orders if of_orders else judge_scans
    right = len({record.owner for record in whole}) if records == whole and content == intact else None
    return File(
        content, "orders" if of_orders else "shipments", lambda events: judge(records, columns, events), right
    )


def _as_a_whole(rng: random.Random, content: bytes) -> bytes:
    match rng.randrange(60):
        case 0:
            return content.decode("utf-8", "replace").encode("utf-16")
        case 1:
            return content.replace(b",", b";")
        case 2:
            return content.replace(b"sku", b"price", 1)
        case 3:
            return b"\0" * rng.randint(1, 9) + content
        case 4:
            return gzip.compress(gzip.compress(content))
        case 5:
            return gzip.compress(content)[: -rng.randint(1, 20)]
        case 6:
            return gzip.compress(content) + b"garbage"
        case _:
            return content


FOREIGN: Final = ["number", "buyer", "date", "total", "seller", "sku", "quantity", "price", "note"]
MAPPING: Final = parse(
    b"""
    lines = "item"
    ids = { namespace = "7c6d1f6e-0b52-4b0e-9a55-3d6a3a6f0a11" }
    [order]
    order_id = { column = "number", uuid5 = "order" }
    user_id = { column = "buyer", uuid5 = "user" }
    time = { column = "date", format = "%d.%m.%Y", zone = "Europe/Berlin" }
    currency = { constant = "EUR" }
    total_amount = { column = "total" }
    [item]
    item_id = { from = "position" }
    product_id = { column = "sku", uuid5 = "product" }
    seller_id = { column = "seller", uuid5 = "seller" }
    sku = { column = "sku" }
    quantity = { column = "quantity" }
    price = { column = "price" }
    """,
    "fuzz.toml",
)


def mapped_file(rng: random.Random) -> File:
    """Orders of another program, a line an item, of which the last costs nothing; broken as CSV is."""
    whole = []
    for n in range(rng.randint(1, 6)):
        number, count = f"#{1000 + n}", rng.randint(1, 3)
        for k in range(count):
            head = [f"b{n}@example.com", "03.04.2026", "10.00"] if k == 0 else ["", "", ""]
            cells = [number, *head, "Ida & Co", f"lamp {k}", "1", "10.00" if k == 0 else "0.00"]
            whole.append(Record(_line(rng, [*cells, rng.choice(NOTES)]), number))
    records = broken(rng, whole)
    intact = b"\n".join([",".join(FOREIGN).encode(), *(record.text for record in records)])
    content = _as_a_whole(rng, intact)
    right = len({record.owner for record in whole}) if records == whole and content == intact else None

    def judge(events: list[dict[str, Any]]) -> None:
        # Two stray quotes: what stands between them may be a note, and nobody can tell.
        if content == intact and sum(record.text.count(b'"') % 2 for record in records) < 2:
            judge_mapped(records, events)

    return File(content, "orders", judge, right, MAPPING)


def _says(text: bytes) -> list[str] | None:
    """What a record of another program says by itself; empty cells beyond its columns say nothing."""
    try:
        [cells] = csv.reader(io.StringIO(text.decode("utf-8"), newline=""), strict=True)
    except (UnicodeDecodeError, csv.Error, ValueError):
        return None
    while len(cells) > len(FOREIGN) and not cells[-1].strip():
        del cells[-1]
    return cells if len(cells) == len(FOREIGN) and b"\0" not in text and len(text) <= 5 << 20 else None


def judge_mapped(records: list[Record], events: list[dict[str, Any]]) -> None:
    """Raises Broken when an order is sent without a record of its own, or otherwise than they say."""
    said: dict[str, list[list[str]]] = {}
    unreadable: set[str] = set()
    assert MAPPING.ids is not None
    space = MAPPING.ids.namespace.bytes
    for record in records:
        cells = _says(record.text)
        if cells is not None:
            said.setdefault(made_id(space, "order", [cells[0].strip()]), []).append(cells)
        elif record.owner is not None and record.owner.encode() in record.text:
            unreadable.add(made_id(space, "order", [record.owner]))
    for event in events:
        if event["order_id"] in unreadable:
            raise Broken(f"order {event['order_id']} is sent, and a record of it can't be read")
        items = [[item["sku"], str(item["quantity"]), item["price"]] for item in event["items"]]
        rows = said.get(event["order_id"], [])
        if [row[0] for row in items] != [row[5].strip() for row in rows]:
            raise Broken(f"order {event['order_id']} is sent with other items than its records say")
        if event["total_amount"] != next((f"{Decimal(row[3]):.2f}" for row in rows if row[3].strip()), None):
            raise Broken(f"order {event['order_id']} is sent with another total")


def ndjson_file(rng: random.Random) -> File:
    """NDJSON of orders, a line each, broken: what is sent is what a line says to a reader that isn't ours."""
    lines = []
    for _ in range(rng.randint(1, 6)):
        item = {name: _uuid(rng) for name in IDS} | {
            "sku": "lamp \u00e9",
            "quantity": 1,
            "price": "1.00",
        }
        order = {
            "order_id": _uuid(rng),
            "time": TIME,
            "user_id": _uuid(rng),
            "currency": "EUR",
            "total_amount": "1.00",
        }
        lines.append(json.dumps({**order, "items": [item]}, ensure_ascii=rng.random() < 0.5).encode())
    whole = list(lines)
    for _ in range(rng.choice([0, 1, 1, 2])):
        at = rng.randrange(len(lines))
        lines[at] = rng.choice((_flip, _put, _cut))(rng, lines[at])
    content = rng.choice([b"\n", b"\r\n"]).join(lines)

    def judge(events: list[dict[str, Any]]) -> None:
        said = [value for line in content.split(b"\n") if (value := _json(line)) is not None]
        for event in events:
            if not any({**value, "id": event["id"]} == event for value in said):
                raise Broken(f"order {event['order_id']} is sent, and no line says so")

    return File(
        gzip.compress(content) if rng.random() < 0.2 else content,
        "orders",
        judge,
        len(whole) if lines == whole else None,
    )


def _json(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def parquet_file(rng: random.Random) -> File:
    """Parquet of orders, nested or a row an item, in whatever types columns have; now and then one value
    is wrong, or a byte of it.
    """
    nested = rng.random() < 0.5
    orders_: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for _ in range(rng.randint(1, 5)):
        currency, digits = rng.choice([("EUR", 2), ("JPY", 0), ("BHD", 3)])
        prices = [Decimal(rng.randint(1, 999)).scaleb(-digits) for _ in range(rng.randint(1, 3))]
        head: dict[str, Any] = {
            "order_id": _uuid(rng),
            "time": TIME,
            "user_id": _uuid(rng),
            "currency": currency,
        }
        head["total_amount"] = sum(prices)
        items = [
            {**{name: _uuid(rng) for name in IDS}, "sku": "0123456789abcdef", "quantity": 1, "price": price}
            for price in prices
        ]
        orders_.append(head | {"items": items})
        rows += [orders_[-1]] if nested else [head | item for item in items]
    spoilt = None
    if rng.random() < 0.4:
        row = rng.choice(rows)
        item = row["items"][0] if nested else row
        name = rng.choice([*IDS, "sku", "price"])
        item[name] = Decimal("1.00005") if name == "price" else None
        spoilt = row["order_id"]
    content = _parquet(rng, rows, nested)
    flips = rng.choice([0, 0, 1, 3])
    for _ in range(flips):
        at = rng.randrange(len(content))
        content = content[:at] + bytes([rng.randrange(256)]) + content[at + 1 :]
    meant = {each["order_id"]: each for each in orders_ if each["order_id"] != spoilt}

    def judge(events: list[dict[str, Any]]) -> None:
        if flips:  # nothing in the file tells a value that was changed
            return
        for event in events:
            order = meant.pop(event["order_id"])
            if [Decimal(item["price"]) for item in event["items"]] != [
                item["price"] for item in order["items"]
            ] or [{name: item[name] for name in (*IDS, "sku", "quantity")} for item in event["items"]] != [
                {name: item[name] for name in (*IDS, "sku", "quantity")} for item in order["items"]
            ]:
                raise Broken(f"order {event['order_id']} is sent otherwise than it stands there")

    return File(content, "orders", judge, None if flips else len(meant))


def _parquet(rng: random.Random, rows: list[dict[str, Any]], nested: bool) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string()), pa.binary()]
    money = [pa.decimal128(20, 5), pa.decimal128(38, 10), pa.decimal256(50, 20)]
    whole = [pa.int8(), pa.int64(), pa.uint32(), pa.float64(), pa.decimal128(9, 2)]
    times = [pa.timestamp("ms", "UTC"), pa.timestamp("us", "+02:00"), pa.timestamp("ns", "UTC"), pa.string()]

    def column(name: str, values: list[Any], dictionaries: bool = True) -> Any:
        if name == "items":
            fields = {
                key: column(key, [item[key] for items in values for item in items], False)
                for key in values[0][0]
            }
            struct = pa.StructArray.from_arrays(list(fields.values()), list(fields))
            offsets = [0]
            for items in values:
                offsets.append(offsets[-1] + len(items))
            return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), struct)
        if name == "time":
            type_ = rng.choice(times)
            return pa.array(
                values if type_ == pa.string() else [datetime.fromisoformat(each) for each in values], type_
            )
        if name in ("price", "total_amount"):
            return pa.array(values, rng.choice(money))
        if name == "quantity":
            type_ = rng.choice(whole)
            return pa.array([Decimal(each) if pa.types.is_decimal(type_) else each for each in values], type_)
        if name.endswith("_id") and rng.random() < 0.4:
            return pa.array(
                [None if each is None else UUID(each).bytes for each in values],
                rng.choice([pa.binary(), pa.binary(16)]),
            )
        type_ = rng.choice(texts)
        if pa.types.is_dictionary(type_):
            return (
                pa.array(values).dictionary_encode()
                if dictionaries and any(values)
                else pa.array(values, pa.string())
            )
        return pa.array(
            [each if each is None or type_ != pa.binary() else each.encode() for each in values], type_
        )

    names = [name for name in rows[0] if nested or name != "items"]
    table = pa.table({name: column(name, [row[name] for row in rows]) for name in names})
    out = io.BytesIO()
    packing = rng.choice(["none", "snappy", "zstd"])
    pq.write_table(
        table,
        out,
        compression=packing,
        row_group_size=rng.choice([1, 2, 100]),
        use_dictionary=rng.random() < 0.7,
    )
    return out.getvalue()


def files(count: int, seed: int) -> Iterator[tuple[int, File]]:
    """So many files, each with the number that makes it again."""
    for n in range(seed, seed + count):
        rng = random.Random(n)
        [make] = rng.choices((csv_file, mapped_file, ndjson_file, parquet_file), (73, 15, 10, 2))
        yield n, make(rng)


def check(file: File) -> int:
    """How many events of a file would be sent. Raises Broken, or whatever `prepare` raises and mustn't."""
    events = sent(file.content, file.kind, file.mapping)
    if file.right is not None and len(events or ()) != file.right:
        raise Broken(f"{len(events or ())} sent of {file.right}, and nothing of them is broken")
    file.judge(events or [])
    return len(events or ())


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    wanted = parser.parse_args()
    begun, total, failed = time.monotonic(), 0, 0
    for n, file in files(wanted.files, wanted.seed):
        try:
            total += check(file)
        except Exception as error:
            failed += 1
            place = Path(f"fuzz-files-{n}.bin")
            place.write_bytes(file.content)
            print(f"seed {n}: {type(error).__name__}: {error}; kept as {place}", flush=True)
    print(f"{wanted.files:,} files, {total:,} events sent, {failed} failed, {time.monotonic() - begun:.0f} s")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
