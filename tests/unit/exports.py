"""Exports as shops have them, and mappings for them; the people and goods are invented."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from typing import Final

SHOPIFY: Final = [
    "Name",
    "Email",
    "Financial Status",
    "Paid at",
    "Fulfillment Status",
    "Fulfilled at",
    "Accepts Marketing",
    "Currency",
    "Subtotal",
    "Shipping",
    "Taxes",
    "Total",
    "Discount Code",
    "Discount Amount",
    "Shipping Method",
    "Created at",
    "Lineitem quantity",
    "Lineitem name",
    "Lineitem price",
    "Lineitem compare at price",
    "Lineitem sku",
    "Lineitem requires shipping",
    "Lineitem taxable",
    "Lineitem fulfillment status",
    "Billing Name",
    "Billing Zip",
    "Shipping Zip",
    "Notes",
    "Note Attributes",
    "Cancelled at",
    "Payment Method",
    "Payment Reference",
    "Refunded Amount",
    "Vendor",
    "Outstanding Balance",
    "Id",
    "Tags",
    "Risk Level",
    "Source",
    "Lineitem discount",
    "Tax 1 Name",
    "Tax 1 Value",
    "Tax 2 Name",
    "Tax 2 Value",
    "Tax 3 Name",
    "Tax 3 Value",
    "Tax 4 Name",
    "Tax 4 Value",
    "Tax 5 Name",
    "Tax 5 Value",
    "Phone",
    "Receipt Number",
    "Duties",
    "",
    "",
]
"""The header of a Shopify export of orders, with two columns that somebody left at its end."""

ONE: Final = {
    "Name": "#1001",
    "Email": "ida@example.com",
    "Currency": "EUR",
    "Subtotal": "27.00",
    "Shipping": "4.00",
    "Taxes": "4.95",
    "Total": "31.00",
    "Discount Code": "HELLO",
    "Discount Amount": "3.00",
    "Created at": "2026-05-01 23:58:12 +0200",
    "Lineitem quantity": "2",
    "Lineitem name": "Teapot, blue",
    "Lineitem price": "10.00",
    "Lineitem sku": "TEA-1",
    "Lineitem taxable": "true",
    "Billing Name": "Ida Sample",
    "Billing Zip": "'01234",
    "Notes": 'Ring twice,\r\nthen say "hello"\nand wait',
    "Vendor": "Kettle & Co",
    "Id": "5001000001",
    "Tax 1 Name": "VAT 19%",
    "Tax 1 Value": "4.31",
    "Tax 2 Name": "VAT 7%",
    "Tax 2 Value": "0.64",
}
"""Its first line; prices include the taxes."""
ONES_SECOND: Final = {
    "Name": "#1001",
    "Lineitem quantity": "1",
    "Lineitem name": "=SUM(A1:A9) mug",
    "Lineitem price": "10.00",
    "Lineitem sku": "MUG-7",
    "Lineitem taxable": "true",
    "Vendor": "Potters",
}
TWO: Final = {
    "Name": "#1002",
    "Currency": "USD",
    "Subtotal": "20.00",
    "Shipping": "0.00",
    "Taxes": "1.65",
    "Total": "21.65",
    "Created at": "2026-05-02 08:00:00 -0400",
    "Lineitem quantity": "1",
    "Lineitem name": "Lamp",
    "Lineitem price": "20.00",
    "Lineitem taxable": "true",
    "Vendor": "Kettle & Co",
    "Id": "5001000002",
    "Tax 1 Name": "State Tax 8.25%",
    "Tax 1 Value": "1.65",
}
"""On top of the price is its tax; it has neither an e-mail nor a sku."""


def shopify(rows: Iterable[dict[str, str]], *, bom: bool = True, end: str = "\r\n") -> bytes:
    """An export with these lines, an empty line at its end."""
    out = io.StringIO()
    writer = csv.DictWriter(out, SHOPIFY, lineterminator=end)
    csv.writer(out, lineterminator=end).writerow(SHOPIFY)
    writer.writerows(rows)
    return (("\ufeff" if bom else "") + out.getvalue() + end).encode()


ERP: Final = """
lines = "item"
order-number = ["Auftrag"]

[file]
delimiter = ";"

[numbers]
decimal = ","
thousands = "."
currency = ["EUR", "\u20ac"]

[ids]
namespace = "7c6d1f6e-0b52-4b0e-9a55-3d6a3a6f0a11"

[order]
order_id = { column = "Auftrag", uuid5 = "order" }
user_id = { column = "Kunde", uuid5 = "user" }
time = { column = "Datum", format = "%d.%m.%Y %H:%M", zone = "Europe/Berlin" }
currency = { constant = "EUR" }
total_amount = { column = "Summe" }
discount_amount = { column = "Rabatt" }

[item]
item_id = { columns = ["Auftrag", "Pos"], uuid5 = "item" }
product_id = { column = "Artikel", uuid5 = "product" }
seller_id = { constant = "aaaaaaaa-0000-4000-8000-000000000001" }
sku = { column = "Artikel" }
quantity = { column = "Menge" }
price = { column = "Preis" }
shipping_amount = { column = "Versand" }
"""
"""Of a German program, a line an item."""
ERP_HEADER: Final = "Auftrag;Kunde;Datum;Summe;Rabatt;Pos;Artikel;Menge;Preis;Versand\n"
ERP_LINES: Final = (
    'A-1;K 7;03.04.2026 10:30;2.517,40 \u20ac;;1;"T\u00fcr; wei\u00df";2;1.250,00;12,40\n'
    "A-1;;;;;2;Griff;1;5,00;\n"
)
