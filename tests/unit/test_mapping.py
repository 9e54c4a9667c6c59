"""Mappings: each mistake in one is told with its place, and cells have one reading or none."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest
from msgspec import structs

from operations.submit import mapping as mappings
from operations.submit.cells import Numbers, Times, Unclear, amount, made_id, moment, number, whole
from operations.submit.mapping import MappingError, load, parse, ready
from tests.parsed import ROOT
from tests.unit.exports import ERP
from tests.unit.test_sources_bulk import taken

BERLIN = ZoneInfo("Europe/Berlin")


def test_a_mapping_that_comes_with_the_program_is_right() -> None:
    assert ready() == ["shopify"]
    assert load("shopify").digest != parse(ERP.encode(), "erp.toml").digest


def test_a_mapping_in_a_file_is_found_by_its_path(tmp_path: Any) -> None:
    path = tmp_path / "erp.toml"
    path.write_text(ERP)
    assert load(str(path)).key_columns == ["Auftrag"]
    for name, what in [("shopware", "there are: shopify"), (str(tmp_path / "no.toml"), "No such file")]:
        with pytest.raises(MappingError, match=what):
            load(name)
    with pytest.raises(MappingError, match="directory"):
        load(str(tmp_path))


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ('lines = "item"', 'lines = "items"', "lines: Invalid enum value"),
        ('lines = "item"', "", "missing required field `lines`"),
        ('lines = "item"', 'lines = "order"', "needs a table [[items]]"),
        ("[ids]", "[id]", "unknown field `id`"),
        ('namespace = "7c6d', 'namespace = "zc6d', "ids.namespace: Invalid UUID"),
        ('order_id = { column = "Auftrag", uuid5', 'order_id = { colum = "Auftrag", uuid5', "order.order_id"),
        ('"Auftrag", uuid5 = "order"', '"Auftrag", constant = "x"', "order.order_id: needs exactly one of"),
        ('{ columns = ["Auftrag", "Pos"], uuid5 = "item" }', '{ columns = ["Pos"] }', "item.item_id: an id"),
        ('constant = "aaaaaaaa', 'constant = "baaaaaaaa', "item.seller_id: constant"),
        ('thousands = "."', 'thousands = ","', "both ','; say decimal"),
        ('decimal = ","', "", "both '.'; say decimal"),
        ("%d.%m.%Y %H:%M", "%d.%m. %H:%M", "order.time: '%d.%m. %H:%M' has no year, month and day"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %Q", "order.time: format has %Q"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %I:%M", "one of %I and %p"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %d", "%d twice"),
        ("%d.%m.%Y %H:%M", "%d.%m.%Y %z", "needs a zone, or %z in its format, and not both"),
        (', zone = "Europe/Berlin"', "", "needs a zone, or %z"),
        ("Europe/Berlin", "Europe/Atlantis", "no time zone 'Europe/Atlantis'"),
        ("Europe/Berlin", "../Berlin", "no time zone"),
        ('quantity = { column = "Menge" }', 'quantity = { constant = "1,5" }', "no whole number"),
        ('price = { column = "Preis" }', 'price = { constant = "1,5" }', "no amount like 4.90"),
        (
            'column = "Versand" }',
            'column = "Versand" }\ntaxes = [{ column = "USt", code = "VAT" }]',
            "order.prices_include_tax is missing",
        ),
        ("[file]", "digest = 'x'\n[file]", "digest is no key"),
        ("[file]", "[file", "not TOML"),
    ],
)
def test_a_mistake_is_told_with_its_place(before: str, after: str, what: str) -> None:
    assert before in ERP
    with pytest.raises(MappingError) as raised:
        parse(ERP.replace(before, after).encode(), "erp.toml")
    assert str(raised.value).startswith("erp.toml: ")
    assert what in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [b"\xff", b"x=" + b"[" * 100_000, b"x=1979-99-99", b"#" * (2 << 20)])
def test_what_is_no_mapping_at_all_is_one_line(content: bytes) -> None:
    with pytest.raises(MappingError):
        parse(content, "erp.toml")


def test_the_reference_lists_every_key() -> None:
    page = (ROOT / "docs/mapping.md").read_text()
    for table in (mappings.Mapping, mappings.OrderFields, mappings.ItemFields, mappings.FileFormat,
                  mappings.NumberFormat, mappings.Ids, mappings.Text, mappings.Id, mappings.Total,
                  mappings.Discount, mappings.Time, mappings.Tax, mappings.Choice, mappings.FlatMapping,
                  mappings.PaymentFields, mappings.ShipmentFields, mappings.ReturnFields,
                  mappings.CancellationFields, mappings.Word, mappings.When, mappings.Refunded):  # fmt: skip
        for each in structs.fields(table):
            if each.encode_name not in ("digest", "name", "kind"):
                name = each.encode_name
                assert f"`{name}`" in page or f"[{name}]" in page, name


GERMAN = Numbers(",", ".", ("\u20ac", "EUR"))


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("12.50", Numbers(), "12.50"),
        (" 0012 ", Numbers(), "12"),
        ("1234.567", Numbers(), "1234.567"),
        ("0.125", Numbers(), "0.125"),
        ("1.234", Numbers("."), "1.234"),
        ("1.234", Numbers(None, ","), "1.234"),
        ("1,234.5", Numbers(".", ","), "1234.5"),
        ("1.234,50 \u20ac", GERMAN, "1234.50"),
        ("EUR 1.234", GERMAN, "1234"),
        ("1\u202f234,5", Numbers(",", " "), "1234.5"),
        ("1\u2019234.5", Numbers(".", "'"), "1234.5"),
    ],
)
def test_numbers(text: str, how: Numbers, expected: str) -> None:
    assert number(text, how) == expected


@pytest.mark.parametrize(
    ("text", "how", "what"),
    [
        ("1.234", Numbers(), "a decimal point or a thousands separator"),
        ("1,234", Numbers(), "no number"),
        ("1,50", Numbers(), "no number"),
        ("12.34", GERMAN, "no number"),
        ("1.23.456", GERMAN, "no number"),
        ("1,234,567", Numbers(".", "."), "no number"),
        ("\u20ac 5", Numbers("."), "currency says which"),
        ("$5", GERMAN, "currency says which"),
        ("-5", Numbers(), "negative"),
        ("(5.00)", Numbers(), "negative"),
        ("1.2E+05", Numbers(), "powers of ten"),
        ('="5"', Numbers(), "formula"),
        ("\u0665", Numbers(), "letters or signs"),
        ("", Numbers(), "no number"),
        ("9" * 1000, Numbers(), "too long"),
        ("Ida Sample", Numbers(), "this cell is no number"),
    ],
)
def test_numbers_that_have_no_reading_or_two(text: str, how: Numbers, what: str) -> None:
    with pytest.raises(Unclear, match=what):
        number(text, how)


def test_amounts_have_the_decimals_of_their_currency() -> None:
    assert amount("12.5000", Numbers(), 2) == 1250
    assert amount("1200.00", Numbers(), 0) == 1200
    assert whole("2,00", GERMAN) == 2
    for text, digits in [("12.505", 2), ("12.5", 0), ("9" * 16, 2)]:
        with pytest.raises(Unclear):
            amount(text, Numbers("."), digits)
    with pytest.raises(Unclear, match="no whole number"):
        whole("1.5", Numbers())


@pytest.mark.parametrize(
    ("text", "how", "expected"),
    [
        ("03.04.2026 10:30", Times("%d.%m.%Y %H:%M", BERLIN), "2026-04-03T08:30:00Z"),
        ("2026-05-01 23:58:12 +0200", Times("%Y-%m-%d %H:%M:%S %z"), "2026-05-01T21:58:12Z"),
        ("Apr 3, 2026 1:05 PM", Times("%b %d, %Y %I:%M %p", ZoneInfo("UTC")), "2026-04-03T13:05:00Z"),
        ("46115.4375", Times("serial-1900", ZoneInfo("UTC")), "2026-04-03T10:30:00Z"),
        ("46115,4375", Times("serial-1900", BERLIN), "2026-04-03T08:30:00Z"),
        ("44653.4375", Times("serial-1904", ZoneInfo("UTC")), "2026-04-03T10:30:00Z"),
        ("1", Times("serial-1900", ZoneInfo("UTC")), "1900-01-01T00:00:00Z"),
        ("59", Times("serial-1900", ZoneInfo("UTC")), "1900-02-28T00:00:00Z"),
        ("61", Times("serial-1900", ZoneInfo("UTC")), "1900-03-01T00:00:00Z"),
        ("0", Times("serial-1904", ZoneInfo("UTC")), "1904-01-01T00:00:00Z"),
        ("2026-10-25 02:30", Times("%Y-%m-%d %H:%M", BERLIN, 0), "2026-10-25T00:30:00Z"),
        ("2026-10-25 02:30", Times("%Y-%m-%d %H:%M", BERLIN, 1), "2026-10-25T01:30:00Z"),
        ("2026-04-03T10:30:00+02:00", Times(), "2026-04-03T10:30:00+02:00"),
    ],
)
def test_times(text: str, how: Times, expected: str) -> None:
    decimal = "," if "," in text and how.format.startswith("serial") else None
    assert moment(text, how, Numbers(decimal)) == expected


@pytest.mark.parametrize(
    ("text", "how", "what"),
    [
        ("03/04/2026", Times("%d.%m.%Y", BERLIN), "isn't of the format"),
        ("31.02.2026", Times("%d.%m.%Y", BERLIN), "isn't of the format"),
        ("2026-10-25 02:30", Times("%Y-%m-%d %H:%M", BERLIN), "comes twice"),
        ("2026-03-29 02:30", Times("%Y-%m-%d %H:%M", BERLIN, 0), "doesn't exist"),
        ("60", Times("serial-1900", BERLIN), "no such day"),
        ("0.5", Times("serial-1900", BERLIN), "no such day"),
        ("9999999", Times("serial-1904", BERLIN), "outside the years"),
        ("0001-01-01", Times("%Y-%m-%d", BERLIN), "outside the years"),
        ("\u0660\u0663.04.2026", Times("%d.%m.%Y", BERLIN), "no time"),
    ],
)
def test_times_that_have_no_reading_or_two(text: str, how: Times, what: str) -> None:
    with pytest.raises(Unclear, match=what):
        moment(text, how, Numbers())


def test_ids_are_made_of_kind_and_values() -> None:
    space = b"\x01" * 16
    texts = [("order", ["1"]), ("user", ["1"]), ("order", ["1", ""]), ("order", ['1","']), ("order", ["1 "])]
    assert len({made_id(space, kind, values) for kind, values in texts}) == len(texts)
    assert (
        made_id(space, "order", ["1"])
        == made_id(space, "order", ["1"])
        != made_id(b"\x02" * 16, "order", ["1"])
    )


def test_the_example_of_the_page_is_an_order() -> None:
    page = (ROOT / "docs/how-to/submit-your-files.md").read_text()
    export, example = page.split("```\n")[1], page.split("```toml\n")[1].partition("```")[0]
    _, [[order]], refused = taken(export.encode("cp1252"), mapping=parse(example.encode(), "erp.toml"))
    assert (order["total_amount"], refused) == ("2500.00", [])
