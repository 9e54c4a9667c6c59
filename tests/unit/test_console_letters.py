"""A dead letter's page: the schema of its event beside it, and the place where it ceases to be JSON."""

from __future__ import annotations

from pathlib import Path

import pytest

from console import letter_view
from console.schema_view import schema_of, type_of
from console.texts import EN
from contracts.incoming import DATA, EVENTS
from contracts.record_id import RecordId
from tests.unit.console_world import Made, console, letter, new_key
from tests.unit.test_console import bearer


@pytest.mark.parametrize(
    ("path", "marked"),
    [
        ("$.items[3].price", ["items[].price"]),
        ("$.items[...].taxes[0]", ["items[].taxes"]),
        ("$.items[0].unknown.deep", ["items"]),
        ("$.total_amount", ["total_amount"]),
        ("$", []),
        ("ce_time", []),
    ],
)
def test_what_a_reason_is_about_is_marked_in_the_schema(path: str, marked: list[str]) -> None:
    schema = schema_of("order.created", path)
    assert [each.path for each in schema.fields if each.marked] == marked


def test_every_type_that_comes_in_has_a_schema() -> None:
    for type_ in DATA:
        schema = schema_of(type_, "$")
        assert schema.meaning
        assert all(each.path and each.type for each in schema.fields), type_
        assert type_ in EVENTS  # so it can be paused
    price = next(each for each in schema_of("order.created", "$").fields if each.path == "items[].quantity")
    assert (price.type, price.required, price.limits) == ("integer", True, "minimum 1, maximum 100000")
    status = next(each for each in schema_of("shipment.updated", "$").fields if each.path == "status")
    assert "in_transit" in status.limits


def test_a_letters_type_is_what_it_says_else_its_topic() -> None:
    topic = RecordId("order.paid", 0, 1)
    for headers, value, expected in (
        ((("ce_type", b"order.created"),), b"{", "order.created"),
        ((("ce_type", b"order.creatd"),), b"{}", "order.paid"),
        ((), b'{"type": "payment.failed"}', "payment.failed"),
        ((), b'{"type": ["x"]}', "order.paid"),
        ((), b"[" * 100_000, "order.paid"),
        ((), None, "order.paid"),
    ):
        assert type_of(letter(headers=headers, value=value, record=topic)) == expected
    assert type_of(letter()) is None


async def test_a_page_has_the_schema_beside_the_letter_and_marks_broken_bytes(tmp_path: Path) -> None:
    keys, shows = tmp_path / "keys", Made()
    paid = RecordId("order.paid", 0, 1)
    value = b'{"a": 1,                    }'
    broken = "JSON is malformed: trailing comma in object (byte 28)"
    async with console(shows, keys) as browser:
        viewer, support = bearer(new_key(keys, "view")), bearer(new_key(keys, "all"))
        unknown = (await browser.get("/dead-letters/1:7", headers=support)).text
        shows.letter_ = letter(record=paid, detail="$.amount: not money", value=b'{"amount": "secret"}')
        whole = (await browser.get("/dead-letters/1:7", headers=support)).text
        masked = (await browser.get("/dead-letters/1:7", headers=viewer)).text
        shows.letter_ = letter(record=paid, detail=broken, value=value)
        bytes_ = (await browser.get("/dead-letters/1:7", headers=support)).text
    assert EN["no_schema"] in unknown
    assert "<mark>amount</mark>" in whole
    assert "<mark>amount</mark>" in masked
    assert "secret" in whole
    assert "secret" not in masked
    assert "<mark>00000010" in bytes_
    assert EN["place_bytes"] in bytes_
    assert letter_view.broken_row(letter(detail="not UTF-8")) is None
