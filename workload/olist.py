"""Real marketplace orders as events: the files of the Brazilian E-Commerce Public Dataset by
Olist, under their own names.

The dataset isn't part of this project.
Every made id is a uuid5 in the namespace of the order's UUID. Of each order:

    order.created      at order_purchase_timestamp: user_id is customer_unique_id, region customer_state,
                       currency BRL; an item a row, quantity 1, sku product_id, shipping_amount
                       freight_value, total their sum
    order.paid         at order_approved_at, one for each payment row that isn't 0.00
    shipment.updated   one parcel for each seller: in_transit at order_delivered_carrier_date,
                       delivered at order_delivered_customer_date; carrier and tracking number are made up

An order without items is sent as it is, so it ends in the dead letters and its payments wait.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, Final, NamedTuple, TextIO
from uuid import UUID, uuid5
from zoneinfo import ZoneInfo

from contracts.cloudevents import SourceEvent, binary, micros
from contracts.errors import SourceError

ZONE: Final = ZoneInfo("America/Sao_Paulo")
SOURCE: Final = "/olist"
CURRENCY: Final = "BRL"
_CARRIERS: Final = ("Azul Carga", "Correio Sul", "Expresso Andorinha", "Rapido Serra", "Trans Ipe")

_COLUMNS: Final = {
    "olist_orders_dataset.csv": (
        "order_id",
        "customer_id",
        "order_purchase_timestamp",
        "order_approved_at",
        "order_delivered_carrier_date",
        "order_delivered_customer_date",
        "order_estimated_delivery_date",
    ),
    "olist_customers_dataset.csv": ("customer_id", "customer_unique_id", "customer_state"),
    "olist_order_items_dataset.csv": (
        "order_id",
        "order_item_id",
        "product_id",
        "seller_id",
        "price",
        "freight_value",
    ),
    "olist_order_payments_dataset.csv": ("order_id", "payment_sequential", "payment_type", "payment_value"),
}
_ORDERS, _CUSTOMERS, _ITEMS, _PAYMENTS = _COLUMNS

_LONGEST: Final = 1 << 20
"""Characters of a line: Olist's longest ones have some hundreds."""
_AS_PUBLISHED: Final = "give the file as Olist publishes it"
_THAT_LINE: Final = "mend or drop that line"

Row = dict[str, str]


class _Planned(NamedTuple):
    """An event to come, small: the whole dataset's are sorted before the first is built.
    `nth`: which payment or seller of the order.
    """

    time_us: int
    kind: str
    time: datetime
    order: _Order
    nth: int


@dataclass(slots=True, eq=False)
class _Order:
    id: UUID
    row: Row
    customer: Row | None
    items: list[Row]
    payments: list[Row]
    sellers: list[str]


class Events:
    """All events of a folder in the order of their times; equal times in the order of the files.
    The same files give the same bytes.
    """

    def __init__(self, folder: Path, *, since: int | None = None, until: int | None = None) -> None:
        """Read every file. Blocks; takes about 2 KB of memory an order. `since`, `until`: only what happened
        from then on, or before, microseconds.

        Raises SourceError naming file, line and column.
        """
        self._planned = [
            event
            for event in _plan(folder)
            if (since is None or event.time_us >= since) and (until is None or event.time_us < until)
        ]

    def __len__(self) -> int:
        return len(self._planned)

    def __iter__(self) -> Iterator[SourceEvent]:
        return (_BUILD[event.kind](event) for event in self._planned)


def events(folder: Path) -> Iterator[SourceEvent]:
    """Yield the events of a folder, as iter(Events(folder)). Raises SourceError before the first event."""
    return iter(Events(folder))


def local_time(text: str) -> datetime:
    """A timestamp of the files (no zone) as an aware time.

    Where clocks went back the first of both readings is meant; a time that clocks skipped counts by the
    offset before the change. Raises ValueError.
    """
    return datetime.fromisoformat(text).replace(tzinfo=ZONE)


def tracking_number(shipment_id: UUID) -> str:
    """A made-up number in the form of the postal union's (S10), always the same for a shipment."""
    digits = shipment_id.int
    letters = chr(65 + digits % 26) + chr(65 + digits // 26 % 26)
    return f"{letters}{digits // 676 % 1_000_000_000:09d}BR"


def carrier(shipment_id: UUID) -> str:
    """A made-up carrier, always the same for a shipment."""
    return _CARRIERS[(shipment_id.int >> 64) % len(_CARRIERS)]


def _plan(folder: Path) -> list[_Planned]:
    planned: list[_Planned] = []
    for order in _orders(folder):
        row = order.row

        def add(kind: str, column: str, nths: range, order: _Order = order, row: Row = row) -> None:
            text = row[column]
            if not text:
                return
            try:
                time = local_time(text)
            except ValueError as error:
                raise _bad(folder, _ORDERS, row, column, "is not a time like 2018-01-31 12:00:00") from error
            planned.extend(_Planned(micros(time), kind, time, order, nth) for nth in nths)

        add("created", "order_purchase_timestamp", range(1))
        if not row["order_purchase_timestamp"]:
            raise _bad(
                folder,
                _ORDERS,
                row,
                "order_purchase_timestamp",
                "is empty: an event without a time has no place",
            )
        add("paid", "order_approved_at", range(len(order.payments)))
        add("in_transit", "order_delivered_carrier_date", range(len(order.sellers)))
        add("delivered", "order_delivered_customer_date", range(len(order.sellers)))
    planned.sort(key=lambda event: event.time_us)
    return planned


def _orders(folder: Path) -> Iterator[_Order]:
    if not folder.is_dir():
        raise SourceError(f"{folder}: no such folder", f"give the one that holds {_ORDERS}")
    customers: dict[str, Row] = {}
    for row in _rows(folder, _CUSTOMERS):
        _once(folder, _CUSTOMERS, row, "customer_id", customers, row["customer_id"])
    items: defaultdict[UUID, list[Row]] = defaultdict(list)
    for row in _rows(folder, _ITEMS):
        for column in ("price", "freight_value"):
            _decimal(folder, _ITEMS, row, column)
        _uuid(folder, _ITEMS, row, "seller_id")
        items[_uuid(folder, _ITEMS, row, "order_id")].append(row)
    payments: defaultdict[UUID, list[Row]] = defaultdict(list)
    for row in _rows(folder, _PAYMENTS):
        if _decimal(folder, _PAYMENTS, row, "payment_value"):
            payments[_uuid(folder, _PAYMENTS, row, "order_id")].append(row)
    orders: dict[UUID, Row] = {}
    for row in _rows(folder, _ORDERS):
        uuid = _uuid(folder, _ORDERS, row, "order_id")
        _once(folder, _ORDERS, row, "order_id", orders, uuid)
        mine = items.pop(uuid, [])
        sellers = list(dict.fromkeys(item["seller_id"] for item in mine))
        yield _Order(uuid, row, customers.get(row["customer_id"]), mine, payments.pop(uuid, []), sellers)
    for name, remaining in ((_ITEMS, items), (_PAYMENTS, payments)):
        for rows in remaining.values():
            raise _bad(
                folder,
                name,
                rows[0],
                "order_id",
                f"is no order of {_ORDERS}: one of its own would go without this",
            )


def _rows(folder: Path, name: str) -> Iterator[Row]:
    path = folder / name
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(_lines(path, file), strict=True)
            columns = next(reader, [])
            missing = [column for column in _COLUMNS[name] if columns.count(column) != 1]
            if missing:
                what = "column {} stands twice" if missing[0] in columns else "no column {}"
                raise SourceError(f"{path}: {what.format(missing[0])}", _AS_PUBLISHED)
            for cells in reader:
                if len(cells) != len(columns) or any("\n" in cell or "\0" in cell for cell in cells):
                    if not any(cells):
                        continue
                    raise SourceError(
                        f"{path}, line {reader.line_num}: not the cells of one line", _THAT_LINE
                    )
                yield {**dict(zip(columns, cells, strict=True)), "line": str(reader.line_num)}
    except FileNotFoundError as error:
        raise SourceError(
            f"{path}: no such file", "give the folder with Olist's files under their own names"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: cannot be read as CSV ({error})", _AS_PUBLISHED) from error


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    while line := file.readline(_LONGEST + 1):
        if len(line) > _LONGEST:
            raise SourceError(f"{path}: a line above {_LONGEST:,} characters", _AS_PUBLISHED)
        yield line


def _once(folder: Path, name: str, row: Row, column: str, seen: dict[Any, Row], key: Any) -> None:
    if key in seen:
        raise _bad(folder, name, row, column, f"stands in line {seen[key]['line']}, too")
    seen[key] = row


def _decimal(folder: Path, name: str, row: Row, column: str) -> Decimal:
    try:
        value = Decimal(row[column])
        if not value.is_finite():
            raise InvalidOperation
    except InvalidOperation as error:
        raise _bad(folder, name, row, column, "is not an amount") from error
    return value


def _uuid(folder: Path, name: str, row: Row, column: str) -> UUID:
    try:
        return UUID(row[column])
    except ValueError as error:
        raise _bad(folder, name, row, column, "is not 32 hex digits") from error


def _bad(folder: Path, name: str, row: Row, column: str, what: str) -> SourceError:
    return SourceError(f"{folder / name}, line {row['line']}: {column} {row[column]!r} {what}", _THAT_LINE)


def _created(event: _Planned) -> SourceEvent:
    order = event.order
    items = [
        {
            "item_id": str(uuid5(order.id, row["order_item_id"])),
            "product_id": row["product_id"],
            "seller_id": row["seller_id"],
            "sku": row["product_id"],
            "quantity": 1,
            "price": row["price"],
            "shipping_amount": row["freight_value"],
        }
        for row in order.items
    ]
    total = sum(
        (Decimal(row["price"]) + Decimal(row["freight_value"]) for row in order.items), Decimal("0.00")
    )
    data: dict[str, Any] = {"order_id": order.row["order_id"]}
    if order.customer is not None:
        data |= {"user_id": order.customer["customer_unique_id"], "region": order.customer["customer_state"]}
    data |= {"currency": CURRENCY, "total_amount": f"{total:f}", "items": items}
    return _event(event, "order.created", "", data)


def _paid(event: _Planned) -> SourceEvent:
    row = event.order.payments[event.nth]
    name = f"payment-{row['payment_sequential']}"
    data = {
        "order_id": event.order.row["order_id"],
        "payment_id": str(uuid5(event.order.id, name)),
        "amount": row["payment_value"],
        "currency": CURRENCY,
        "method": row["payment_type"],
    }
    return _event(event, "order.paid", name, data)


def _scanned(event: _Planned) -> SourceEvent:
    order = event.order
    seller = str(UUID(order.sellers[event.nth]))
    shipment = uuid5(order.id, seller)
    data: dict[str, Any] = {
        "order_id": order.row["order_id"],
        "shipment_id": str(shipment),
        "seller_id": order.sellers[event.nth],
        "status": event.kind,
        "carrier": carrier(shipment),
        "tracking_number": tracking_number(shipment),
    }
    estimated = order.row["order_estimated_delivery_date"]
    if estimated:
        # The files hold days, as midnights; midnight itself was skipped in Brazil when summer time began.
        day, _, clock = estimated.partition(" ")
        data["estimated_delivery"] = day if clock in ("", "00:00:00") else local_time(estimated).isoformat()
    return _event(event, "shipment.updated", f"{seller}:{event.kind}", data)


def _event(event: _Planned, type_: str, name: str, data: dict[str, Any]) -> SourceEvent:
    attributes = {
        "specversion": "1.0",
        "id": str(uuid5(event.order.id, f"{type_}:{name}")),
        "source": SOURCE,
        "type": type_,
        "time": event.time.isoformat(),
    }
    headers, value = binary(attributes, data)
    return SourceEvent(type_, str(event.order.id).encode(), value, headers, event.time_us)


_BUILD: Final = {"created": _created, "paid": _paid, "in_transit": _scanned, "delivered": _scanned}
