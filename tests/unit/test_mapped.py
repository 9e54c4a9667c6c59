"""Files with somebody else's columns, read by a mapping: what orders they are, and where what is unclear is
refused.
"""

from __future__ import annotations

import gzip
from typing import Any

import pytest

from cli.main import run
from contracts import errors
from contracts.errors import SourceError
from operations.submit.mapped import MappedCsv
from operations.submit.mapping import load, parse
from tests.unit.exports import ERP, ERP_HEADER, ERP_LINES, ONE, ONES_SECOND, TWO, shopify
from tests.unit.test_sources_bulk import taken


def sent(content: bytes, mapping: str = ERP) -> tuple[list[dict[str, Any]], list[tuple[int, str, str]]]:
    """The orders that a file becomes, and its refused lines."""
    _, parts, refused = taken(content, mapping=parse(mapping.encode(), "erp.toml"))
    return [order for part in parts for order in part], [tuple(each) for each in refused]  # type: ignore[misc]


def values(content: bytes) -> list[dict[str, Any]]:
    """The orders of a Shopify export as rows, before the pipeline's decoder has judged them."""
    import io
    from contextlib import ExitStack

    from operations.submit.files import USUAL, copied

    with ExitStack() as stack:
        copy = copied("-", stack, io.BytesIO(content), USUAL)
        table = MappedCsv("-", copy.file, load("shopify"), USUAL, stack)
        rows = list(table.rows())
    assert [row.error for row in rows] == [None] * len(rows)
    return [row.values for row in rows]


ERP_FILE = ERP_HEADER + ERP_LINES


def test_an_order_of_a_program_that_writes_numbers_and_dates_its_own_way() -> None:
    [order], refused = sent(ERP_FILE.encode())
    assert refused == []
    assert order["total_amount"] == "2517.40"
    assert order["time"] == "2026-04-03T08:30:00Z"
    assert [(each["sku"], each["quantity"], each["price"]) for each in order["items"]] == [
        ("Tür; weiß", 2, "1250.00"),
        ("Griff", 1, "5.00"),
    ]
    assert order["items"][0]["shipping_amount"] == "12.40"


def test_encodings() -> None:
    expected = sent(ERP_FILE.encode())[0]
    for content in (
        ERP_FILE.encode("utf-8-sig"),
        ERP_FILE.encode("utf-16"),
        "\ufeff".encode("utf-16-be") + ERP_FILE.encode("utf-16-be"),
        gzip.compress(ERP_FILE.encode("utf-16")),
        ERP_FILE.replace("\n", "\r\n").encode() + b"\r\n\r\n",
    ):
        orders = sent(content)[0]
        assert [order | {"id": ""} for order in orders] == [order | {"id": ""} for order in expected]
    named = ERP.replace("[file]", '[file]\nencoding = "cp1252"')
    assert sent(ERP_FILE.encode("cp1252"), named)[0][0]["items"] == expected[0]["items"]
    ((*refused, detail),) = sent(ERP_FILE.encode("cp1252").replace(b"Griff", b"Gr\x81ff"), named)[1]
    assert refused == [2, errors.FIELD_MALFORMED]
    assert detail.startswith("in line 3: not cp1252: save it ")
    assert sent(ERP_FILE.encode("latin-1", "replace"))[1][0][2].startswith("not UTF-8: save ")
    for content, mapping, what in [
        (ERP_FILE.encode("utf-16"), named, "its byte order mark says utf-16, the mapping cp1252"),
        (ERP_FILE.encode("utf-16") + b"\x00", ERP, "not UTF-16 somewhere after line"),
        (ERP_FILE.encode("utf-16-le"), ERP, "NUL|UTF-16"),
    ]:
        with pytest.raises(SourceError, match=what):
            sent(content, mapping)


@pytest.mark.parametrize(
    ("before", "after", "line", "what"),
    [
        (
            "2.517,40 €",
            "2.517,41 €",
            2,
            "column 'Summe': 2517.41, but goods 2505.00 + shipping 12.40 - discount",
        ),
        ("2.517,40 €", "$2.517,40", 2, "column 'Summe' ($.total_amount): this cell is no number"),
        ("2.517,40 €", "", 2, "column 'Summe' ($.total_amount): empty"),
        ("03.04.2026 10:30", "03/04/2026", 2, "column 'Datum' ($.time): '03/04/2026' isn't of the format"),
        (";5,00;", ";5.00;", 2, "in line 3: column 'Preis' ($.price): '5.00' is no number"),
        (";5,00;", ";;", 2, "in line 3: column 'Preis' ($.price): empty"),
        (";1;5,00", ";1,5;5,00", 2, "in line 3: column 'Menge' ($.quantity): '1,5' is no whole number"),
        (";1;5,00", ";0;5,00", 2, "in line 3: column 'Menge' ($.quantity): not 1 to 100,000"),
        ("A-1;;;;", "A-1;K 8;;;", 2, "in line 3: column 'Kunde': not as in an earlier line"),
        ("A-1;;;;", "A-1;;;;;;;", 3, "cells, not 10"),
        ("A-1;;;;", ";;;;", 3, "column 'Auftrag': empty, so its order can't be told"),
        ("2.517,40 €;", "17,40 €;9.999,00", 2, "a discount of 9999.00, and the goods cost 2505.00"),
        ("Griff", '"Griff', 3, "a quote isn't closed"),
    ],
)
def test_what_is_unclear_is_refused_where_it_stands(before: str, after: str, line: int, what: str) -> None:
    assert before in ERP_LINES
    orders, refused = sent((ERP_HEADER + ERP_LINES.replace(before, after, 1)).encode())
    assert orders == []
    assert [detail for number, _, detail in refused if number == line and what in detail], refused


@pytest.mark.parametrize(
    ("header", "mapping", "what"),
    [
        (
            ERP_HEADER.replace("Preis", "Prices"),
            ERP,
            "no column 'Preis', which erp.toml names; it has 'Auftrag'",
        ),
        (ERP_HEADER.replace("Versand", "preis "), ERP, "column 'Preis' stands 2 times"),
        (ERP_HEADER.replace(";", "\t"), ERP, "one column only, with .* in its name"),
    ],
)
def test_columns_that_are_missing_or_twice(header: str, mapping: str, what: str) -> None:
    with pytest.raises(SourceError, match=what):
        sent((header + ERP_LINES).encode(), mapping)


@pytest.mark.parametrize("content", ["", "\n", "\ufeff"])
def test_a_file_without_a_header_is_told(content: str) -> None:
    with pytest.raises(SourceError, match="no header, the file or its first line is empty; nothing"):
        sent(content.encode(), ERP)


def test_columns_that_nobody_names_may_stand_twice() -> None:
    content = ERP_HEADER.replace("\n", ";Notiz;Notiz;;\n") + ERP_LINES.replace("\n", ";x;y;;\n")
    job, _, refused = taken(content.encode(), mapping=parse(ERP.encode(), "erp.toml"))
    assert (job.accepted, refused, job.ignored) == (1, [], ["Notiz", "Notiz"])


def test_lines_that_a_quote_has_swallowed_are_not_taken_for_a_note() -> None:
    content = "".join(
        f"B-{n};K;03.04.2026 10:30;5,00;;1;{article};1;5,00;\n"
        for n, article in enumerate(["x", '"x', 'y"', "x"])
    )
    orders, refused = sent((ERP_HEADER + content).encode())
    assert orders == []
    assert {line for line, _, _ in refused} == {2, 3, 4, 5}


def test_one_line_an_order() -> None:
    head, tail = ERP.split("[item]")
    items = "".join(
        f"[[items]]\n{tail}".replace('"Pos"', f'"Pos{n}"').replace('"Artikel"', f'"Artikel{n}"')
        .replace('"Menge"', f'"Menge{n}"').replace('"Preis"', f'"Preis{n}"').replace('"Versand"', f'"V{n}"')
        for n in (1, 2)
    )  # fmt: skip
    mapping = head.replace('"item"', '"order"') + items
    header = (
        "Auftrag;Kunde;Datum;Summe;Rabatt;Pos1;Artikel1;Menge1;Preis1;V1;Pos2;Artikel2;Menge2;Preis2;V2\n"
    )
    both = "A-1;K;03.04.2026 10:30;15,00;;1;a;1;10,00;;2;b;1;5,00;\n"
    alone = both.replace("A-1", "A-2").replace("15,00", "10,00").replace("2;b;1;5,00;", ";;;;")
    broken = alone.replace("A-2", "A-3") + ";;x\n"
    orders, refused = sent((header + both + alone + broken + alone.replace("A-2", "A-4")).encode(), mapping)
    assert [len(order["items"]) for order in orders] == [2, 1, 1, 1]
    assert [line for line, _, _ in refused] == [5]
    orders, refused = sent((header + alone + alone).encode(), mapping)
    assert (orders, [line for line, _, _ in refused]) == ([], [2])


def test_the_same_export_is_the_same_orders_and_the_same_job() -> None:
    erp = parse(ERP.encode(), "erp.toml")
    first, again = (taken(ERP_FILE.encode(), mapping=erp) for _ in range(2))
    assert (first[0].id, first[1]) == (again[0].id, again[1])
    longer = taken((ERP_FILE + ERP_LINES.replace("A-1", "A-2")).encode(), mapping=erp)
    assert longer[0].id != first[0].id
    assert {**longer[1][0][0], "id": ""} == {**first[1][0][0], "id": ""}
    other = parse((ERP + "\n").encode(), "erp.toml")
    assert taken(ERP_FILE.encode(), mapping=other)[0].id != first[0].id


def test_a_shopify_export_with_all_that_is_odd_in_one() -> None:
    one, two = values(shopify([ONE, TWO, ONES_SECOND]))
    assert one["total_amount"] == "31.00"
    assert one["discount_amount"] == "3.00"
    assert one["prices_include_tax"] is True
    assert [each["sku"] for each in one["items"]] == ["TEA-1", "MUG-7"]
    assert [each["shipping_amount"] for each in one["items"]] == ["2.67", "1.33"]
    assert [each["taxes"] for each in one["items"]] == [
        [{"code": "VAT 19%", "amount": "2.87"}, {"code": "VAT 7%", "amount": "0.43"}],
        [{"code": "VAT 19%", "amount": "1.44"}, {"code": "VAT 7%", "amount": "0.21"}],
    ]
    assert len({each["seller_id"] for each in one["items"]}) == 2
    assert one["items"][0]["seller_id"] == two["items"][0]["seller_id"]
    assert one["time"] == "2026-05-01T21:58:12Z"
    assert two["prices_include_tax"] is False
    assert two["total_amount"] == "21.65"
    assert two["items"][0]["sku"] == "Lamp"
    assert two["items"][0]["taxes"] == [{"code": "State Tax 8.25%", "amount": "1.65"}]
    assert "discount_amount" not in two


def test_an_export_without_taxes_has_no_columns_for_them() -> None:
    taxless = {name: text for name, text in ONE.items() if not name.startswith("Tax")}
    content = shopify([taxless, ONES_SECOND], bom=False, end="\n").replace(b"Tax 1", b"Old 1")
    [order] = values(content)
    assert "prices_include_tax" not in order
    assert not any("taxes" in each for each in order["items"])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (
            {"Total": "32.00"},
            "column 'Total': 32.00, but goods 30.00 + shipping 4.00 - discount 3.00 = 31.00",
        ),
        ({"Subtotal": "47.00"}, "column 'Subtotal': 47.00 is above what the goods cost, 30.00"),
        ({"Vendor": ""}, "column 'Vendor' ($.seller_id): empty"),
        ({"Lineitem taxable": "maybe"}, "column 'Lineitem taxable' (taxable): none of true, yes"),
        ({"Tax 1 Name": "x" * 33}, "codes in the mapping gives it a shorter one"),
        ({"Tax 1 Name": ""}, "column 'Tax 1 Name' ($.taxes.code): empty"),
        ({"Currency": "EURO"}, "not ISO 4217"),
        ({"Id": ""}, "column 'Id' ($.order_id): empty"),
        ({"Id": '="5001"'}, "a spreadsheet's formula"),
    ],
)
def test_a_shopify_order_that_is_unclear(change: dict[str, str], what: str) -> None:
    _, parts, refused = taken(shopify([{**ONE, **change}, ONES_SECOND]), mapping=load("shopify"))
    assert parts == []
    assert [what in each.detail for each in refused] == [True], refused


def test_the_command_applies_a_mapping(tmp_path: Any, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "erp.toml").write_text(ERP)
    (tmp_path / "export.csv").write_text(ERP_FILE)
    file, mapping = str(tmp_path / "export.csv"), str(tmp_path / "erp.toml")
    assert run(["bulk", "submit", "orders", file, "--mapping", mapping, "--dry-run"]) == 0
    assert "1 orders read, 1 right, 0 refused; nothing sent" in capfd.readouterr().out
    assert run(["bulk", "submit", "returns", file, "--mapping", mapping, "--dry-run"]) == 2
    assert run(["bulk", "submit", "orders", file, "--mapping", "shopify", "--dry-run"]) == 2
    assert "say delimiter = ';' in [file] of the mapping" in capfd.readouterr().err.splitlines()[-1]
    assert run(["bulk", "mapping", "shopify"]) == 0
    assert parse(capfd.readouterr().out.encode(), "x").digest == load("shopify").digest
    assert run(["bulk", "mapping", "magento"]) == 2


@pytest.mark.parametrize("number", [b"\xffA-1", b"A-1\0"])
def test_a_line_whose_order_number_is_damaged_may_be_of_any_order(number: bytes) -> None:
    """Taken for another order's, it would be missing in its own."""
    gift = ERP_LINES.splitlines()[1].replace("5,00", "0,00").encode().replace(b"A-1", number)
    lines = ERP_LINES.splitlines()[0].replace("2.517,40", "2.512,40").encode()
    orders, refused = sent(ERP_HEADER.encode() + lines + b"\n" + gift + b"\n")
    assert (orders, [line for line, _, _ in refused]) == ([], [2, 3])
