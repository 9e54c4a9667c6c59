"""Somebody's CSV as payments, scans, returns or cancellations, a line each, by a mapping
(docs/mapping.md).
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, Final
from uuid import UUID

from contracts import errors, ids
from contracts.errors import Refused
from operations.submit.cells import BLANKS
from operations.submit.fields import Fields, Line, Unreadable, where
from operations.submit.files import Bounds
from operations.submit.mapped import opened
from operations.submit.mapping import (
    CancellationFields,
    FlatMapping,
    Id,
    PaymentFields,
    ReturnFields,
    ShipmentFields,
    When,
    Word,
)
from operations.submit.rows import Record, Row

Values = dict[str, Any]


class FlatCsv:
    """A file of CSV of which a line is one event, read by a mapping.
    `ignored`: columns that it doesn't name.
    """

    def __init__(
        self, path: str, content: io.BufferedReader, mapping: FlatMapping, bounds: Bounds, stack: ExitStack
    ) -> None:
        """Read the whole file once. Blocks. Raises SourceError as MappedCsv does."""
        self._mapping = mapping
        self._table, self._at, self.ignored = opened(path, content, mapping, bounds, stack)
        self._numbers: Counter[tuple[str, ...]] = Counter()
        self._filled: tuple[tuple[str, ...], dict[str, str]] = ((), {})

    def rows(self) -> Iterator[Row]:
        """An event each, in the order of the lines; lines that tell of none are left out."""
        for record in self._table.records():
            if record.why is not None:
                yield Row(record.line, {}, record.why)
                continue
            try:
                line, position = self._line(record)
                values = _Event(self._mapping, position).values(line)
            except Unreadable as error:
                yield Row(record.line, {}, Refused(error.code, error.detail))
            except Refused as refused:
                yield Row(record.line, {}, refused)
            else:
                if values is not None:
                    yield Row(record.line, values)

    def _line(self, record: Record) -> tuple[Line, int]:
        """Return a record's cells, filled from its order's lines before it, and its place among those."""
        cells = {name: text for name, at in self._at.items() if (text := record.cells[at].strip(BLANKS))}
        if self._mapping.order_number is None:
            return Line(record.line, cells), 0
        number = tuple(cells.get(name, "") for name in self._mapping.order_number)
        self._numbers[number] += 1
        before = self._filled[1] if self._filled[0] == number and any(number) else {}
        cells = {**before, **cells}
        self._filled = (number, {name: cells[name] for name in self._mapping.fill_down if name in cells})
        return Line(record.line, cells), self._numbers[number]


class _Event(Fields):
    """One line as an event's data and time."""

    def __init__(self, mapping: FlatMapping, position: int) -> None:
        super().__init__(mapping)
        self._mapping, self._position = mapping, position

    def values(self, line: Line) -> Values | None:
        """Return them; None: the line tells of none."""
        fields = self._mapping.section(self._mapping.kind)
        if fields is None or (fields.when is not None and not self._tells(fields.when, line)):
            return None
        order_id = self.id_of(fields.order_id, "order_id", line)
        values = {"order_id": order_id, "time": self.time(fields.time, line)}
        return {**values, **_READ[type(fields)](self, fields, line, order_id)}

    def payment(self, fields: PaymentFields, line: Line, order_id: str) -> Values:
        currency = self.currency(fields.currency, line)
        amount = self.money(fields.amount, "amount", line)
        if amount is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"{where(fields.amount, 'amount')}: empty")
        values = {
            "payment_id": self._id(fields.payment_id, "payment_id", line, order_id),
            "amount": self.amount(amount),
            "currency": currency,
        }
        return values | self._texts(fields, ("method",), line)

    def shipment(self, fields: ShipmentFields, line: Line, order_id: str) -> Values:
        values = {
            "shipment_id": self._id(fields.shipment_id, "shipment_id", line, order_id),
            "seller_id": self.id_of(fields.seller_id, "seller_id", line),
            "status": self._word(fields.status, "status", line),
        }
        if fields.warehouse_id is not None and self.given(fields.warehouse_id, line):
            values["warehouse_id"] = self.id_of(fields.warehouse_id, "warehouse_id", line)
        return (
            values
            | self._texts(fields, ("carrier", "tracking_number"), line)
            | self._items(fields, line, order_id)
        )

    def returned(self, fields: ReturnFields, line: Line, order_id: str) -> Values:
        values: Values = {
            "return_id": self._id(fields.return_id, "return_id", line, order_id),
            "item_id": self._id(fields.item_id, "item_id", line, order_id),
            "status": self._word(fields.status, "status", line),
            "reason": self.text(fields.reason, "reason", line),
        }
        quantity = fields.quantity
        if quantity is not None and (quantity.constant or (quantity.column or "") in line.cells):
            values["quantity"] = self.quantity(quantity, line)
        if fields.restock is not None:
            values["restock"] = self.choice(fields.restock, "restock", line)
        return values

    def cancellation(self, fields: CancellationFields, line: Line, order_id: str) -> Values:
        values: Values = {"reason": self.text(fields.reason, "reason", line)}
        if fields.seller_id is not None and self.given(fields.seller_id, line):
            values["seller_id"] = self.id_of(fields.seller_id, "seller_id", line)
        return values | self._items(fields, line, order_id)

    # -- cells -----------------------------------------------------------------------------------------------

    def _items(self, fields: ShipmentFields | CancellationFields, line: Line, order_id: str) -> Values:
        if fields.item_id is None or fields.quantity is None:
            return {}
        item_id = self._id(fields.item_id, "items[].item_id", line, order_id)
        return {"items": [{"item_id": item_id, "quantity": self.quantity(fields.quantity, line)}]}

    def _id(self, field: Id, name: str, line: Line, order_id: str) -> str:
        if field.from_ is None:
            return self.id_of(field, name, line)
        kind = name.removeprefix("items[].").removesuffix("_id")
        return ids.uuid5_text(UUID(order_id).bytes, f"{kind}:{self._position}")

    def _texts(self, fields: Any, names: tuple[str, ...], line: Line) -> Values:
        given = {name: field for name in names if (field := getattr(fields, name)) is not None}
        texts = {name: self.maybe(field, line) for name, field in given.items()}
        return {name: text for name, text in texts.items() if text is not None}

    def _word(self, field: Word, name: str, line: Line) -> str:
        if field.constant is not None:
            return field.constant
        text = line.cells.get(field.column or "")
        if text is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"{where(field, name)}: empty")
        words = {word.casefold(): meant for word, meant in field.words.items()}
        if words and text.casefold() not in words:
            detail = f"{where(field, name)}: none of {', '.join(field.words)}"
            raise Unreadable(line.number, errors.FIELD_MALFORMED, detail)
        return words.get(text.casefold(), text)

    def _tells(self, when: When, line: Line) -> bool:
        if when.filled is not None:
            return when.filled in line.cells
        text = line.cells.get(when.column or "")
        if text is None:
            return False
        for words, answer in ((when.yes, True), (when.no, False)):
            if text.casefold() in [word.casefold() for word in words]:
                return answer
        detail = f"column {when.column!r} (when): none of {', '.join([*when.yes, *when.no])}"
        raise Unreadable(line.number, errors.FIELD_MALFORMED, detail)


_READ: Final[dict[type, Callable[..., Values]]] = {
    PaymentFields: _Event.payment,
    ShipmentFields: _Event.shipment,
    ReturnFields: _Event.returned,
    CancellationFields: _Event.cancellation,
}
