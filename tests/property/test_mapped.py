"""Orders that are written by a mapping and read back are the same orders; any bytes as a file or a mapping
are orders or one clear line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import given
from hypothesis import strategies as st

from contracts import money
from contracts.errors import SourceError
from operations.submit.files import USUAL, copied
from operations.submit.jobs import prepare
from operations.submit.mapped import MappedCsv
from operations.submit.mapping import Mapping, MappingError, load, parse
from operations.submit.rows import Row
from tests.property.examples import examples
from tests.property.histories import RANDOMS, SEEDS, up_to
from tests.unit.exports import ERP, ERP_HEADER, ERP_LINES, ONE, ONES_SECOND, TWO, shopify

WORDS = st.text(
    st.characters(codec="cp1252", exclude_categories=("Cc", "Zs")) | st.sampled_from(' ",;\n'),
    min_size=1,
    max_size=12,
).filter(lambda text: text.strip() == text and not text.startswith("="))
SPACE = UUID("7c6d1f6e-0b52-4b0e-9a55-3d6a3a6f0a11")


@st.composite
def orders(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Orders with the ids of their own; amounts in minor units."""
    rng = Random(draw(SEEDS))

    def new_id() -> str:
        return str(UUID(bytes=rng.randbytes(16)))

    placed = []
    for _ in range(rng.randint(1, 4)):
        currency = rng.choice(("EUR", "JPY", "KWD"))
        items: list[dict[str, Any]] = [
            {
                "item_id": new_id(),
                "product_id": new_id(),
                "seller_id": new_id(),
                "sku": draw(WORDS),
                "quantity": rng.choice((1, 2000, rng.randint(1, 2000))),
                "price": up_to(rng, 10 ** rng.randint(0, 9)),
                "shipping_amount": up_to(rng, 5000),
            }
            for _ in range(rng.randint(1, 3))
        ]
        goods = sum(each["price"] * each["quantity"] for each in items)
        discount = up_to(rng, min(goods, 10**6))
        shipping = sum(each["shipping_amount"] for each in items)
        second = up_to(rng, 2 * 10**9)
        placed.append(
            {
                "order_id": new_id(),
                "user_id": new_id(),
                "time": datetime.fromtimestamp(second - second % 60, UTC),
                "currency": currency,
                "discount_amount": discount,
                "total_amount": goods + shipping - discount,
                "items": items,
            }
        )
    return placed


@st.composite
def ways(draw: st.DrawFn) -> dict[str, Any]:
    """How a program may write its export."""
    decimal = draw(st.sampled_from([".", ","]))
    format = draw(st.sampled_from(["%d.%m.%Y %H:%M", "%m/%d/%Y %I:%M %p", "serial-1900", "serial-1904"]))
    return {
        "decimal": decimal,
        "thousands": draw(st.sampled_from([None, " ", "'", {".": ",", ",": "."}[decimal]])),
        "format": format,
        "zone": draw(st.sampled_from(["UTC", "Asia/Kolkata", "America/Bogota"])),
        "delimiter": draw(st.sampled_from([",", ";", "\t", "|"])),
        "encoding": draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "cp1252"])),
        "quoting": draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        "end": draw(st.sampled_from(["\n", "\r\n"])),
        "sign": draw(st.sampled_from(["", "\u20ac", "CHF"])),
    }


COLUMNS = ["order_id", "user_id", "time", "currency", "total_amount", "discount_amount"]
ITEMS = ["item_id", "product_id", "seller_id", "sku", "quantity", "price", "shipping_amount"]


def mapping(way: dict[str, Any]) -> Mapping:
    """The mapping of an export in this way: each column has its field's name in capitals."""
    fields = [f'{name} = {{ column = "{name.upper()}" }}' for name in COLUMNS if name != "time"]
    time = f'time = {{ column = "TIME", format = "{way["format"]}", zone = "{way["zone"]}" }}'
    items = [f'{name} = {{ column = "{name.upper()}" }}' for name in ITEMS]
    numbers = ["[numbers]", f'decimal = "{way["decimal"]}"']
    numbers += [] if way["thousands"] is None else [f'thousands = "{way["thousands"]}"']
    numbers += [f'currency = ["{way["sign"]}"]'] if way["sign"] else []
    delimiter = way["delimiter"].replace("\t", "\\t")
    file = ["[file]", f'delimiter = "{delimiter}"']
    file += ['encoding = "cp1252"'] if way["encoding"] == "cp1252" else []
    text = ['lines = "item"', *file, *numbers, "[order]", *fields, time, "[item]", *items]
    return parse("\n".join(text).encode(), "m.toml")


def written_number(minor: int, digits: int, way: dict[str, Any]) -> str:
    whole, point, fraction = money.text(minor, digits).partition(".")
    if way["thousands"] is not None:
        whole = f"{int(whole):,}".replace(",", way["thousands"])
    return whole + (way["decimal"] if point else "") + fraction


def written_time(time: datetime, way: dict[str, Any]) -> str:
    local = time.astimezone(ZoneInfo(way["zone"])).replace(tzinfo=None)
    if not way["format"].startswith("serial"):
        return local.strftime(way["format"])
    base = datetime.fromisoformat("1899-12-30" if way["format"] == "serial-1900" else "1904-01-01")
    days = (local - base) / timedelta(days=1)
    return f"{days:.10f}".replace(".", way["decimal"])


def export(placed: list[dict[str, Any]], way: dict[str, Any], mixed: Any) -> bytes:
    """The orders as a file, their lines in any order but the items of each in theirs."""
    lines = []
    for order in placed:
        digits = money.DIGITS[order["currency"]]
        for n, item in enumerate(order["items"]):
            head = {name.upper(): str(order[name]) for name in ("order_id", "user_id", "currency")}
            head["TIME"] = written_time(order["time"], way)
            for name in ("total_amount", "discount_amount"):
                head[name.upper()] = written_number(order[name], digits, way) + way["sign"]
            row = {"ORDER_ID": order["order_id"], **(head if n == 0 else {})}
            row |= {name.upper(): str(item[name]) for name in ITEMS}
            row["QUANTITY"] = written_number(item["quantity"], 0, way)
            for name in ("price", "shipping_amount"):
                row[name.upper()] = written_number(item[name], digits, way)
            lines.append((order["order_id"], row))
    owners = [owner for owner, _ in lines]
    mixed.shuffle(owners)
    waiting = {owner: iter([row for each, row in lines if each == owner]) for owner in owners}
    out = io.StringIO()
    writer = csv.DictWriter(
        out,
        [name.upper() for name in (*ITEMS, *COLUMNS)],
        delimiter=way["delimiter"],
        quoting=way["quoting"],
        lineterminator=way["end"],
    )
    writer.writeheader()
    writer.writerows(next(waiting[owner]) for owner in owners)
    return out.getvalue().encode(way["encoding"])


def rows(content: bytes, by: Mapping) -> list[Row]:
    with ExitStack() as stack:
        copy = copied("-", stack, io.BytesIO(content), USUAL, utf16=True)
        return list(MappedCsv("-", copy.file, by, USUAL, stack).rows())


@examples(150)
@given(orders(), ways(), RANDOMS)
def test_what_is_written_by_a_mapping_is_read_back(
    placed: list[dict[str, Any]], way: dict[str, Any], mixed: Any
) -> None:
    read = rows(export(placed, way, mixed), mapping(way))
    assert [row.error for row in read] == [None] * len(placed)
    by_id = {row.values["order_id"]: row.values for row in read}
    for order in placed:
        digits = money.DIGITS[order["currency"]]
        back = by_id[order["order_id"]]
        assert datetime.fromisoformat(back["time"]) == order["time"]
        assert (back["user_id"], back["currency"]) == (order["user_id"], order["currency"])
        assert back["total_amount"] == money.text(order["total_amount"], digits)
        assert back.get("discount_amount", money.text(0, digits)) == money.text(
            order["discount_amount"], digits
        )
        for item, expected in zip(back["items"], order["items"], strict=True):
            assert {"shipping_amount": money.text(0, digits)} | item == expected | {
                name: money.text(expected[name], digits) for name in ("price", "shipping_amount")
            }


PIECES = [*ERP_HEADER, *ERP_LINES, "A-1;", '"', '""', "\n", "\r", "\0", "\ufeff", "1.234", "=1", "\u20ac"]


def broken(whole: bytes, pieces: Iterable[bytes]) -> st.SearchStrategy[bytes]:
    """A file with something put, or cut out, at some places."""
    change = st.tuples(st.integers(0, len(whole)), st.integers(0, 9), st.sampled_from(list(pieces)))

    def changed(changes: list[tuple[int, int, bytes]]) -> bytes:
        content = whole
        for at, length, piece in changes:
            content = content[:at] + piece + content[at + length :]
        return content

    return st.lists(change, min_size=1, max_size=4).map(changed)


def one_line(error: Exception) -> None:
    assert "\n" not in str(error)


BYTES = [piece.encode() for piece in PIECES] + [b"\xff", b"\xfe\xff", b"\xff\xfe", b"\x81"]


@examples(300)
@given(
    st.binary(max_size=200)
    | broken((ERP_HEADER + ERP_LINES).encode(), BYTES)
    | broken((ERP_HEADER + ERP_LINES).encode("utf-16"), BYTES)
    | broken(shopify([ONE, TWO, ONES_SECOND]), BYTES),
    st.sampled_from([parse(ERP.encode(), "erp.toml"), load("shopify")]),
)
def test_any_bytes_as_a_file_are_orders_or_one_line(content: bytes, by: Mapping) -> None:
    with ExitStack() as stack:
        try:
            job = prepare("-", "orders", stack, stdin=io.BytesIO(content), mapping=by)
        except SourceError as error:
            one_line(error)
        else:
            assert job.accepted + job.refused == job.lines > 0


@examples(300)
@given(
    st.binary(max_size=200)
    | broken(ERP.encode(), [*BYTES, b"[", b"]]", b"{", b"}", b"=", b'"""', b"#", b"9", b"e9", b"true", b"%"])
)
def test_any_bytes_as_a_mapping_are_one_or_one_line(content: bytes) -> None:
    try:
        by = parse(content, "m.toml")
    except MappingError as error:
        one_line(error)
        return
    test_any_bytes_as_a_file_are_orders_or_one_line.hypothesis.inner_test(  # type: ignore[attr-defined]
        (ERP_HEADER + ERP_LINES).encode(), by
    )
