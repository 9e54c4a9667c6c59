"""Files of another system, as small as they can be: four orders and what happened to them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tests.unit.builders import ANNA, BORIS, USER, at, item_id

LIVE_FROM: Final = at(20)
"""The cut-over; all below happened before."""
PRODUCT: Final = "50000000-0000-4000-8000-000000000001"


def order_id(n: int) -> str:
    return f"0e0e0e0e-0000-4000-8000-{n:012d}"


def other_id(n: int) -> str:
    """Of a payment, a parcel or a return."""
    return f"0f0f0f0f-0000-4000-8000-{n:012d}"


COLUMNS: Final = "order_id,time,user_id,currency,total_amount,item_id,product_id,seller_id,sku,quantity,price"


PAYMENTS: Final = "order_id,time,payment_id,amount,currency\n"
SCANS: Final = "order_id,time,shipment_id,seller_id,status\n"
CANCELLATIONS: Final = "order_id,time,reason\n"


def order(n: int, *, columns: str = "", total: str = "30.00") -> str:
    """An order of two lines: one unit of Anna's and two of Boris's, 10.00 each."""
    first = f"{order_id(n)},{at(1)},{USER},EUR,{total},{item_id(1)},{PRODUCT},{ANNA},tea,1,10.00{columns}\n"
    empty = "," * columns.count(",")
    return first + f"{order_id(n)},,,,,{item_id(2)},{PRODUCT},{BORIS},mug,2,10.00{empty}\n"


def payment(n: int, hour: int = 2, amount: str = "30.00", payment_id: int | None = None) -> str:
    return f"{order_id(n)},{at(hour)},{other_id(payment_id or n)},{amount},EUR\n"


def scan(n: int, seller: str, status: str = "delivered", hour: int = 5) -> str:
    shipment = other_id(n * 10 + (seller == BORIS))
    return f"{order_id(n)},{at(hour)},{shipment},{seller},{status}\n"


def write(folder: Path, **more: str) -> Path:
    """A shop's files: an order that is delivered, one that is shipped in part, one that nobody paid, one that
    was paid and called off. `more` replaces files, by kind; an empty one is left out.
    """
    files = {
        "orders": COLUMNS + "\n" + "".join(order(n) for n in (1, 2, 3, 4)),
        "payments": PAYMENTS + payment(1, 0) + payment(2) + payment(4),
        "shipments": SCANS + scan(1, ANNA) + scan(1, BORIS) + scan(2, ANNA, "in_transit"),
        "cancellations": f"{CANCELLATIONS}{order_id(4)},{at(6)},changed my mind\n",
    } | more
    folder.mkdir(exist_ok=True)
    for kind, text in files.items():
        if text:
            (folder / f"{kind}.csv").write_text(text)
    return folder


RETURNS: Final = (
    "order_id,time,return_id,item_id,reason,status,quantity\n"
    f"{order_id(1)},{at(9)},{other_id(1)},{item_id(2)},broken,processed,1\n"
)
"""A unit of the delivered order came back."""
