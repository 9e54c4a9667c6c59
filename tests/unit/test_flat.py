"""Payments, scans, returns and cancellations in files with somebody else's columns: what events they are, and
where what is unclear is refused.
"""

from __future__ import annotations

import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cli.main import run
from contracts import errors
from operations.submit.files import USUAL, copied
from operations.submit.flat import FlatCsv
from operations.submit.mapping import MappingError, load_for, parse, parse_flat
from tests.unit.exports import ERP, ONE, ONES_SECOND, TWO, shopify
from tests.unit.test_mapped import sent
from tests.unit.test_sources_bulk import taken

BANK = (
    ERP
    + """
[payment]
order_id = { column = "Auftrag", uuid5 = "order" }
payment_id = { column = "Beleg", uuid5 = "payment" }
time = { column = "Gebucht", format = "%d.%m.%Y", zone = "Europe/Berlin" }
amount = { column = "Betrag" }
currency = { column = "W\u00e4hrung" }
method = { column = "Art" }

[shipment]
when = { filled = "Versandt" }
order_id = { column = "Auftrag", uuid5 = "order" }
shipment_id = { columns = ["Auftrag", "Paket"], uuid5 = "parcel" }
seller_id = { constant = "aaaaaaaa-0000-4000-8000-000000000001" }
time = { column = "Versandt", format = "serial-1900", zone = "UTC" }
status = { column = "Stand", words = { unterwegs = "in_transit", da = "delivered" } }
carrier = { column = "Bote" }

[return]
order_id = { column = "Auftrag", uuid5 = "order" }
return_id = { column = "RMA", uuid5 = "return" }
item_id = { columns = ["Auftrag", "Pos"], uuid5 = "item" }
time = { column = "Am", format = "%d.%m.%Y", zone = "UTC" }
status = { constant = "processed" }
reason = { column = "Grund" }
quantity = { column = "Menge" }
restock = { column = "Lager", yes = ["ja"], no = ["nein"] }
"""
)
"""One mapping of a program's four exports."""
PAYMENTS = "Auftrag;Beleg;Gebucht;Betrag;W\u00e4hrung;Art\nA-1;B 1;04.04.2026;2.517,40 \u20ac;EUR;card\n"
SHIPMENTS = "Auftrag;Paket;Versandt;Stand;Bote\nA-1;1;46116,5;Unterwegs;Corvo\nA-1;2;;;\n"
RETURNS = (
    "Auftrag;RMA;Pos;Am;Grund;Menge;Lager\nA-1;R1;2;09.04.2026;broken;1;nein\nA-1;R2;1;10.04.2026;late;;ja\n"
)


def read(
    kind: str, content: bytes, mapping: str = BANK
) -> tuple[list[dict[str, Any]], list[tuple[int, str]]]:
    """The events of a file, and its refused lines with their reasons."""
    _, parts, refused = taken(content, kind, mapping=parse_flat(mapping.encode(), "erp.toml", kind))  # type: ignore[arg-type]
    return [event for part in parts for event in part], [(each.line, each.detail) for each in refused]


def test_payments_scans_and_returns_are_of_the_orders_of_the_same_mapping() -> None:
    [order] = sent(
        (
            b"Auftrag;Kunde;Datum;Summe;Rabatt;Pos;Artikel;Menge;Preis;Versand\n"
            b"A-1;K 7;03.04.2026 10:30;5,00;;2;Griff;1;5,00;\n"
        ),
        BANK,
    )[0]
    [payment], refused = read("payments", PAYMENTS.encode())
    assert refused == []
    assert payment["order_id"] == order["order_id"]
    assert (payment["amount"], payment["currency"], payment["method"]) == ("2517.40", "EUR", "card")
    assert payment["time"] == "2026-04-03T22:00:00Z"
    [scan], refused = read("shipments", SHIPMENTS.encode("utf-16"))
    assert refused == []
    assert (scan["status"], scan["time"], scan["carrier"]) == ("in_transit", "2026-04-04T12:00:00Z", "Corvo")
    returns, refused = read("returns", RETURNS.encode("utf-8-sig"))
    assert refused == []
    assert returns[0]["item_id"] == order["items"][0]["item_id"]
    assert [(each.get("quantity"), each["restock"]) for each in returns] == [(1, False), (None, True)]


@pytest.mark.parametrize(
    ("kind", "content", "before", "after", "line", "what"),
    [
        (
            "payments",
            PAYMENTS,
            "04.04.2026",
            "03/04/2025",
            2,
            "column 'Gebucht' ($.time): '03/04/2025' isn't",
        ),
        (
            "payments",
            PAYMENTS,
            "2.517,40 \u20ac",
            "-5,00",
            2,
            "column 'Betrag' ($.amount): '-5,00' is no number: it is neg",
        ),
        (
            "payments",
            PAYMENTS,
            "2.517,40 \u20ac",
            "5.00",
            2,
            "column 'Betrag' ($.amount): '5.00' is no number",
        ),
        ("payments", PAYMENTS, ";EUR;", ";Euro;", 2, "column 'W\u00e4hrung' ($.currency): not ISO 4217"),
        ("payments", PAYMENTS, "B 1", "", 2, "column 'Beleg' ($.payment_id): empty"),
        ("shipments", SHIPMENTS, "Unterwegs", "weg", 2, "column 'Stand' ($.status): none of unterwegs, da"),
        ("returns", RETURNS, ";nein", ";no", 2, "column 'Lager' (restock): none of ja, nein"),
        (
            "returns",
            RETURNS,
            "broken;1;",
            "broken;1,5;",
            2,
            "column 'Menge' ($.quantity): '1,5' is no whole number",
        ),
        ("returns", RETURNS, "A-1;R2", ";R2", 3, "column 'Auftrag' ($.order_id): empty"),
    ],
)
def test_what_is_unclear_is_refused_where_it_stands(
    kind: str, content: str, before: str, after: str, line: int, what: str
) -> None:
    assert before in content
    refused = read(kind, content.replace(before, after, 1).encode())[1]
    assert [number for number, _ in refused] == [line]
    assert what in refused[0][1]


def test_latin_1_is_told_by_its_name() -> None:
    named = BANK.replace("[file]", '[file]\nencoding = "latin-1"')
    content = PAYMENTS.replace(" \u20ac", "").encode("latin-1")
    assert read("payments", content, named)[0][0]["amount"] == "2517.40"
    with pytest.raises(Exception, match="not UTF-8"):
        read("payments", content)


@pytest.mark.parametrize(
    ("before", "after", "what"),
    [
        ("[payment]", "[bezahlt]", "unknown field `bezahlt`"),
        ('payment_id = { column = "Beleg", uuid5 = "payment" }', "", "missing required field `payment_id`"),
        (
            'status = { constant = "processed" }',
            'status = { words = { a = "b" } }',
            "return.status: needs exactly one",
        ),
        (
            'when = { filled = "Versandt" }',
            'when = { filled = "a", column = "b" }',
            "shipment.when: needs exactly one",
        ),
        ('when = { filled = "Versandt" }', 'item_id = { column = "Pos", uuid5 = "item" }', "need each other"),
        ("[shipment]", '[shipment]\nwarehouse_id = { from = "position" }', "needs order-number"),
        ('lines = "item"', 'lines = "item"\nfill-down = ["Auftrag"]', "fill-down needs order-number"),
    ],
)
def test_a_mistake_in_a_mapping_is_told_whatever_is_read_by_it(before: str, after: str, what: str) -> None:
    assert before in BANK
    text = BANK.replace('order-number = ["Auftrag"]\n', "").replace(before, after).encode()
    for wrong in (lambda: parse(text, "erp.toml"), lambda: parse_flat(text, "erp.toml", "returns")):
        with pytest.raises(MappingError, match=r"erp\.toml: ") as raised:
            wrong()
        assert what in str(raised.value)


def test_a_mapping_that_says_nothing_of_a_kind_reads_no_file_of_it() -> None:
    with pytest.raises(MappingError, match=r"no \[payment\], so it reads no payments"):
        parse_flat(ERP.encode(), "erp.toml", "payments")


# -- Shopify's export, read once for each kind ---------------------------------------------------------------

PAID = {"Financial Status": "paid", "Paid at": "2026-05-01 23:59:00 +0200", "Payment Method": "card"}
SENT = {"Fulfilled at": "2026-05-03 10:00:00 +0200", "Lineitem fulfillment status": "fulfilled"}
CALLED_OFF = {"Financial Status": "voided", "Cancelled at": "2026-05-03 08:00:00 -0400"}
EXPORT = [ONE | PAID | SENT, ONES_SECOND | {"Lineitem fulfillment status": "fulfilled"}, TWO | CALLED_OFF]


def from_shopify(kind: str, rows: list[dict[str, str]]) -> tuple[list[dict[str, Any]], list[str]]:
    mapping = load_for(kind, "shopify")
    with ExitStack() as stack:
        copy = copied("-", stack, io.BytesIO(shopify(rows)), USUAL)
        table = FlatCsv("-", copy.file, mapping, USUAL, stack)  # type: ignore[arg-type]
        read = list(table.rows())
    return [row.values for row in read if row.error is None], [
        row.error.detail for row in read if row.error is not None
    ]


def test_one_export_tells_orders_payments_parcels_and_cancellations() -> None:
    _, parts, _ = taken(shopify(EXPORT), mapping=load_for("orders", "shopify"))
    first, second = parts[0]
    assert [{*first} & {"refunded_amount", "live_from"}] == [set()], "of new orders nothing is taken over"
    [payment] = from_shopify("payments", EXPORT)[0]
    assert (payment["order_id"], payment["amount"]) == (first["order_id"], "31.00")
    scans = from_shopify("shipments", EXPORT)[0]
    assert [each["items"] for each in scans] == [
        [{"item_id": item["item_id"], "quantity": item["quantity"]}] for item in first["items"]
    ]
    assert [each["seller_id"] for each in scans] == [item["seller_id"] for item in first["items"]]
    assert {each["time"] for each in scans} == {"2026-05-03T08:00:00Z"}
    assert len({each["shipment_id"] for each in scans}) == 2
    [called_off] = from_shopify("cancellations", EXPORT)[0]
    assert called_off["order_id"] == second["order_id"]


@pytest.mark.parametrize(
    ("kind", "column", "text", "what"),
    [
        ("payments", "Financial Status", "partially_paid", "column 'Financial Status' (when): none of paid"),
        ("payments", "Paid at", "", "column 'Paid at' ($.time): empty"),
        ("shipments", "Lineitem fulfillment status", "partial", "(when): none of fulfilled"),
        ("shipments", "Fulfilled at", "", "column 'Fulfilled at' ($.time): empty"),
    ],
)
def test_what_the_export_leaves_open_is_refused(kind: str, column: str, text: str, what: str) -> None:
    refused = from_shopify(kind, [EXPORT[0] | {column: text}, *EXPORT[1:]])[1]
    assert refused
    assert what in refused[0]


def test_a_file_may_tell_of_none_where_the_mapping_chooses_lines() -> None:
    job, _, refused = taken(shopify([TWO]), "payments", mapping=load_for("payments", "shopify"))
    assert (job.lines, job.parts, refused) == (0, [], [])


def test_what_another_system_paid_back_is_read_where_it_handled_the_order() -> None:
    mapped = BANK.replace(
        "[item]",
        'refunded_amount = { column = "Erstattet" }\n'
        'live_from = { column = "Bis", format = "%d.%m.%Y", zone = "UTC" }\n\n[item]',
        1,
    )
    header = "Auftrag;Kunde;Datum;Summe;Rabatt;Pos;Artikel;Menge;Preis;Versand;Erstattet;Bis\n"
    one = "A-1;K 7;03.04.2026 10:30;5,00;;1;Griff;1;5,00;;1,50;04.04.2026\n"
    lines = one + one.replace("A-1", "A-2").replace("04.04.2026", "")
    orders, refused = sent((header + lines).encode(), mapped)
    assert refused == []
    assert [(each.get("live_from"), each.get("refunded_amount")) for each in orders] == [
        ("2026-04-04T00:00:00Z", "1.50"),
        (None, None),
    ]
    assert (
        sent((header + lines.replace(";1,50;04", ";-1;04")).encode(), mapped)[1][0][1]
        == errors.FIELD_MALFORMED
    )


def test_the_id_of_a_number_is_printed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "erp.toml"
    file.write_text(BANK)
    assert run(["bulk", "id", str(file), "payment", "B 1"]) == 0
    assert capfd.readouterr().out.strip() == read("payments", PAYMENTS.encode())[0][0]["payment_id"]
    file.write_text("lines = 'item'")
    assert run(["bulk", "id", str(file), "payment", "B 1"]) == 2
    assert "no [ids], so it makes none" in capfd.readouterr().err
