"""Files of the form of Olist's dataset, with invented rows: orders around the end of June 2018."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SELLERS: Final = ("c" * 32, "d" * 32)
COLUMNS: Final = {
    "olist_orders_dataset.csv": (
        "order_id,customer_id,order_status,order_purchase_timestamp,order_approved_at,"
        "order_delivered_carrier_date,order_delivered_customer_date,order_estimated_delivery_date"
    ),
    "olist_customers_dataset.csv": (
        "customer_id,customer_unique_id,customer_zip_code_prefix,customer_city,customer_state"
    ),
    "olist_order_items_dataset.csv": (
        "order_id,order_item_id,product_id,seller_id,shipping_limit_date,price,freight_value"
    ),
    "olist_order_payments_dataset.csv": (
        "order_id,payment_sequential,payment_type,payment_installments,payment_value"
    ),
}
TIMES: Final = (
    ("2018-06-10 10:00:00", "2018-06-10 10:20:00", "2018-06-12 09:00:00", "2018-06-19 12:00:00"),
    ("2018-06-25 10:00:00", "2018-06-25 10:20:00", "2018-06-28 09:00:00", "2018-07-03 12:00:00"),
    ("2018-06-29 10:00:00", "2018-06-29 10:20:00", "2018-07-02 09:00:00", "2018-07-09 12:00:00"),
    ("2018-06-30 22:00:00", "2018-07-01 10:20:00", "2018-07-03 09:00:00", ""),
    ("2018-07-02 10:00:00", "2018-07-02 10:20:00", "2018-07-04 09:00:00", "2018-07-11 12:00:00"),
    ("2018-06-30 11:00:00", "2018-06-30 11:20:00", "", ""),
)
"""Of each order: placed, paid, in transit, delivered. Before and after 1 July; the last has no items."""


def write_olist(folder: Path) -> Path:
    """Write the four files to a folder, which is made, and return it."""
    orders, items, payments = [], [], []
    for n, times in enumerate(TIMES, 1):
        order_id = f"{n:032x}"
        orders.append(f"{order_id},{'a' * 32},delivered,{','.join(times)},2018-07-20 00:00:00")
        payments.append(f"{order_id},1,credit_card,1,151.1")
        if n < len(TIMES):
            items += [f"{order_id},{m},{'e' * 32},{SELLERS[m % 2]},,70.0,5.55" for m in (1, 2)]
    rows = {
        "olist_orders_dataset.csv": orders,
        "olist_customers_dataset.csv": [f"{'a' * 32},{'b' * 32},1,town,RJ"],
        "olist_order_items_dataset.csv": items,
        "olist_order_payments_dataset.csv": payments,
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in rows.items():
        (folder / name).write_text("\n".join([COLUMNS[name], *lines]) + "\n")
    return folder
