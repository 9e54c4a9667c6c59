"""Olist's files as events, as workload/olist.py maps them: on made-up rows, and on the
real ones where they are.
"""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from datetime import UTC
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from uuid import UUID, uuid5

import pytest

from contracts.cloudevents import SourceEvent
from contracts.errors import SourceError
from workload import olist

ORDER = "0123456789abcdef0123456789abcdef"
EMPTY = "11112222333344445555666677778888"
CUSTOMER, PERSON = "a" * 32, "b" * 32
SELLERS = ("c" * 32, "d" * 32)
PRODUCT = "e" * 32
NAMESPACE = UUID(ORDER)

FILES = {
    "olist_orders_dataset.csv": [
        (
            "order_id,customer_id,order_status,order_purchase_timestamp,order_approved_at,order_delivered_carrier_date,"
            "order_delivered_customer_date,order_estimated_delivery_date"
        ),
        (
            f"{ORDER},{CUSTOMER},delivered,2018-06-12 20:07:44,2018-06-13 10:00:00,2018-06-13"
            " 09:00:00,2018-06-19 12:00:00,2018-07-17 00:00:00"
        ),
        f"{EMPTY},{CUSTOMER},canceled,2018-06-12 20:07:45,2018-06-12 20:08:00,,,",
    ],
    "olist_customers_dataset.csv": [
        "customer_id,customer_unique_id,customer_zip_code_prefix,customer_city,customer_state",
        f"{CUSTOMER},{PERSON},1,town,RJ",
    ],
    "olist_order_items_dataset.csv": [
        "order_id,order_item_id,product_id,seller_id,shipping_limit_date,price,freight_value",
        f"{ORDER},1,{PRODUCT},{SELLERS[0]},,35.9,15.2",
        f"{ORDER},2,{PRODUCT},{SELLERS[0]},,35.9,15.2",
        f"{ORDER},3,{PRODUCT},{SELLERS[1]},,100,0",
    ],
    "olist_order_payments_dataset.csv": [
        "order_id,payment_sequential,payment_type,payment_installments,payment_value",
        f"{ORDER},2,voucher,1,2.2",
        f"{ORDER},1,credit_card,1,200.0",
        f"{ORDER},3,voucher,1,0.00",
        f"{EMPTY},1,boleto,1,9.99",
    ],
}


def write(folder: Path, **lines: list[str]) -> Path:
    for name, content in FILES.items():
        (folder / name).write_text("\n".join(lines.get(name.split("_")[1], content)) + "\n")
    return folder


def data(event: SourceEvent) -> dict[str, object]:
    assert event.value is not None
    content: dict[str, object] = json.loads(event.value)
    return content


def test_one_order_as_the_contract_has_it(tmp_path: Path) -> None:
    events = [event for event in olist.events(write(tmp_path)) if event.key == str(NAMESPACE).encode()]
    assert [(event.topic, data(event).get("status"), dict(event.headers)["ce_time"]) for event in events] == [
        ("order.created", None, b"2018-06-12T20:07:44-03:00"),
        ("shipment.updated", "in_transit", b"2018-06-13T09:00:00-03:00"),
        ("shipment.updated", "in_transit", b"2018-06-13T09:00:00-03:00"),
        ("order.paid", None, b"2018-06-13T10:00:00-03:00"),
        ("order.paid", None, b"2018-06-13T10:00:00-03:00"),
        ("shipment.updated", "delivered", b"2018-06-19T12:00:00-03:00"),
        ("shipment.updated", "delivered", b"2018-06-19T12:00:00-03:00"),
    ]
    item = {
        "product_id": PRODUCT,
        "seller_id": SELLERS[0],
        "sku": PRODUCT,
        "quantity": 1,
        "price": "35.9",
        "shipping_amount": "15.2",
    }
    assert data(events[0]) == {
        "order_id": ORDER,
        "user_id": PERSON,
        "region": "RJ",
        "currency": "BRL",
        "total_amount": "202.20",
        "items": [
            {"item_id": str(uuid5(NAMESPACE, "1")), **item},
            {"item_id": str(uuid5(NAMESPACE, "2")), **item},
            {
                "item_id": str(uuid5(NAMESPACE, "3")),
                **item,
                "seller_id": SELLERS[1],
                "price": "100",
                "shipping_amount": "0",
            },
        ],
    }
    assert [(data(event)["payment_id"], data(event)["amount"]) for event in events[3:5]] == [
        (str(uuid5(NAMESPACE, "payment-2")), "2.2"),
        (str(uuid5(NAMESPACE, "payment-1")), "200.0"),
    ]
    shipments = [str(uuid5(NAMESPACE, str(UUID(seller)))) for seller in SELLERS]
    assert [data(event)["shipment_id"] for event in (*events[1:3], *events[5:])] == shipments * 2
    assert {data(event)["estimated_delivery"] for event in events[1:3]} == {"2018-07-17"}
    assert (
        data(events[1])["tracking_number"]
        == data(events[5])["tracking_number"]
        != data(events[2])["tracking_number"]
    )


def test_an_order_without_items_is_sent_as_it_is(tmp_path: Path) -> None:
    events = [event for event in olist.events(write(tmp_path)) if event.key == str(UUID(EMPTY)).encode()]
    assert [event.topic for event in events] == ["order.created", "order.paid"]
    assert data(events[0])["items"] == []


def test_again_is_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path)
    assert list(olist.events(tmp_path)) == list(olist.events(tmp_path))
    assert len(olist.Events(tmp_path)) == 9


@pytest.mark.parametrize(
    ("local", "expected"),
    [
        ("2018-06-12 20:07:44", "2018-06-12T23:07:44+00:00"),
        ("2018-01-20 12:00:00", "2018-01-20T14:00:00+00:00"),  # summer time
        (
            "2017-10-15 00:30:00",
            "2017-10-15T03:30:00+00:00",
        ),  # clocks went forward at midnight: skipped, by the offset before
        (
            "2018-02-17 23:30:00",
            "2018-02-18T01:30:00+00:00",
        ),  # clocks went back at midnight: the first of two
    ],
)
def test_local_times(local: str, expected: str) -> None:
    assert olist.local_time(local).astimezone(UTC).isoformat() == expected


@pytest.mark.parametrize(
    ("name", "lines", "says"),
    [
        (
            "payments",
            ["order_id,payment_sequential,payment_type"],
            "olist_order_payments_dataset.csv: no column payment_value",
        ),
        ("customers", ["customer_id,customer_unique_id,customer_state", "x,u,SP"], None),
        (
            "customers",
            ["customer_id,customer_unique_id,customer_state", "x"],
            "line 2: not the cells of one line",
        ),
        (
            "customers",
            ["customer_id,customer_unique_id,customer_state", '"x,u,SP', 'y,u,SP"'],
            "line 3: not the cells of one line",
        ),
        (
            "customers",
            ["customer_id,customer_unique_id,customer_state", "x,u,SP", "x,v,SP"],
            "line 3: customer_id 'x' stands in line 2, too",
        ),
        (
            "customers",
            ["customer_id,customer_unique_id,customer_state", "," * (1 << 20)],
            "a line above 1,048,576 characters",
        ),
        (
            "customers",
            ["customer_id,customer_unique_id,customer_id", "x,u,SP"],
            "column customer_id stands twice",
        ),
        (
            "orders",
            [FILES["olist_orders_dataset.csv"][0], "0" * 32 + ",c,s,2018-01-01 12:00:00,,,,"],
            "is no order of",
        ),
        (
            "orders",
            [FILES["olist_orders_dataset.csv"][0], f"{ORDER},c,s,never,,,,"],
            "line 2: order_purchase_timestamp 'never'",
        ),
        (
            "orders",
            [FILES["olist_orders_dataset.csv"][0], f"{ORDER},c,s,,,,,"],
            "line 2: order_purchase_timestamp '' is empty",
        ),
        (
            "orders",
            [FILES["olist_orders_dataset.csv"][0], "nonsense,c,s,,,,,"],
            "line 2: order_id 'nonsense' is not 32 hex digits",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, name: str, lines: list[str], says: str | None
) -> None:
    file = {"payments": "order_payments", "items": "order_items"}.get(name, name)
    write(tmp_path)
    (tmp_path / f"olist_{file}_dataset.csv").write_text("\n".join(lines) + "\n")
    if says is None:  # an order whose customer is unknown is sent as it is, and refused for its missing user
        assert "user_id" not in data(next(olist.events(tmp_path)))
        return
    with pytest.raises(SourceError) as caught:
        olist.Events(tmp_path)
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "olist_order_items_dataset.csv").unlink()
    with pytest.raises(SourceError, match=r"olist_order_items_dataset\.csv: no such file"):
        olist.Events(tmp_path)
    with pytest.raises(SourceError, match="no such folder"):
        olist.Events(tmp_path / "nowhere")


@pytest.mark.olist
def test_the_real_files() -> None:
    folder = Path(os.environ["ORDERS_OLIST"])

    def rows(name: str) -> list[dict[str, str]]:
        with (folder / f"olist_{name}_dataset.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    orders = {row["order_id"]: row for row in rows("orders")}
    items, payments = rows("order_items"), rows("order_payments")
    sellers = {(row["order_id"], row["seller_id"]) for row in items}
    expected = Counter(
        {
            "order.created": len(orders),
            "order.paid": sum(
                Decimal(row["payment_value"]) != 0 and bool(orders[row["order_id"]]["order_approved_at"])
                for row in payments
                if row["order_id"] in orders
            ),
            "shipment.updated": sum(
                bool(orders[order_id][column])
                for order_id, _ in sellers
                for column in ("order_delivered_carrier_date", "order_delivered_customer_date")
            ),
        }
    )
    events = list(olist.events(folder))
    assert Counter(event.topic for event in events) == expected
    assert all(earlier.time_us <= later.time_us for earlier, later in pairwise(events))
    assert len({dict(event.headers)["ce_id"] for event in events}) == len(events)
    amounts = {row["order_id"]: Decimal(0) for row in orders.values()}
    for row in items:
        amounts[row["order_id"]] += Decimal(row["price"]) + Decimal(row["freight_value"])
    created = [data(event) for event in events if event.topic == "order.created"]
    assert all(Decimal(str(order["total_amount"])) == amounts[str(order["order_id"])] for order in created)
