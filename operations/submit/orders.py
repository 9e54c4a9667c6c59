"""One order from its lines in somebody's file, by a mapping (docs/mapping.md). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import UUID

from contracts import errors, ids, money
from contracts.errors import Refused
from operations.submit.fields import Fields, Line, Unreadable, where
from operations.submit.mapping import ItemFields, Mapping, Number, Tax


class _Goods(NamedTuple):
    """A line of the order in minor units, with the values that the event has."""

    values: dict[str, Any]
    line: int
    price: int
    """Of all its units."""
    shipping: int
    taxes: dict[str, int]
    shipping_taxes: dict[str, int]
    taxable: bool


def order(mapping: Mapping, lines: Sequence[Line]) -> dict[str, Any]:
    """The data and the time of order.created.

    Raises Unreadable, naming line, column and field, and Refused: a total that isn't the sum of its parts.
    """
    return _Order(mapping, lines).values()


class _Order(Fields):
    def __init__(self, mapping: Mapping, lines: Sequence[Line]) -> None:
        super().__init__(mapping)
        self._mapping, self._lines = mapping, lines
        self._first = lines[0]

    def values(self) -> dict[str, Any]:
        """Put the order together."""
        fields, head = self._mapping.order, self._head()
        currency = self.currency(fields.currency, head)
        order_id = self.id_of(fields.order_id, "order_id", head)
        goods = self._goods(head, order_id)
        values: dict[str, Any] = {
            "order_id": order_id,
            "time": self.time(fields.time, head),
            "user_id": self.id_of(fields.user_id, "user_id", head),
            "currency": currency,
        }
        if fields.region is not None and (region := self.maybe(fields.region, head)) is not None:
            values["region"] = region
        discount = self._discount(head, goods)
        shipping = self._shipping(head, goods)
        taxes = self._taxes(head, goods, shipping, discount)
        total, included = self._total(head, goods, shipping, discount, taxes)
        values["total_amount"] = self.amount(total)
        if discount:
            values["discount_amount"] = self.amount(discount)
        values |= self._taken_over(head)
        if included is not None:
            values["prices_include_tax"] = included
        values["items"] = [
            each.values
            | ({"shipping_amount": self.amount(cost)} if cost else {})
            | ({"taxes": self._listed(tax[0])} if tax[0] else {})
            | ({"shipping_taxes": self._listed(tax[1])} if tax[1] else {})
            for each, cost, tax in zip(goods, shipping, taxes, strict=True)
        ]
        return values

    # -- cells -----------------------------------------------------------------------------------------------

    def _head(self) -> Line:
        """Return the order's own cells: of each column the first that isn't empty; others say the same."""
        if self._mapping.lines == "order":
            return self._first
        head: dict[str, str] = {}
        for column in self._mapping.head_columns:
            for line in self._lines:
                text = line.cells.get(column)
                if text is not None and head.setdefault(column, text) != text:
                    raise Unreadable(
                        line.number,
                        errors.FIELD_MALFORMED,
                        f"column {column!r}: not as in an earlier line of this order",
                    )
        return Line(self._first.number, head)

    def _taken_over(self, head: Line) -> dict[str, Any]:
        """Return until when another system handled the order, and what it paid back, as far as told."""
        fields, values = self._mapping.order, {}
        live_from, refunded = fields.live_from, fields.refunded_amount
        if live_from is not None and (live_from.constant or (live_from.column or "") in head.cells):
            values["live_from"] = self.time(live_from, head, "live_from")
        if refunded is not None and (amount := self.money(refunded, "refunded_amount", head)) is not None:
            values["refunded_amount"] = self.amount(amount)
        return values

    # -- items -----------------------------------------------------------------------------------------------

    def _goods(self, head: Line, order_id: str) -> list[_Goods]:
        if self._mapping.item is not None:
            item = self._mapping.item
            return [self._item(item, line, order_id, n) for n, line in enumerate(self._lines, 1)]
        there = [
            (n, item)
            for n, item in enumerate(self._mapping.items, 1)
            if any(column in head.cells for column in self._mapping.item_columns(item))
        ]
        if not there:
            raise Unreadable(head.number, errors.FIELD_MISSING, "no item: the cells of all of them are empty")
        return [self._item(item, head, order_id, n) for n, item in there]

    def _item(self, fields: ItemFields, line: Line, order_id: str, position: int) -> _Goods:
        if fields.item_id.from_ is not None:
            item_id = ids.uuid5_text(UUID(order_id).bytes, f"item:{position}")
        else:
            item_id = self.id_of(fields.item_id, "item_id", line)
        quantity = self.quantity(fields.quantity, line)
        price = self.money(fields.price, "price", line)
        if price is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"{where(fields.price, 'price')}: empty")
        values: dict[str, Any] = {
            "item_id": item_id,
            "product_id": self.id_of(fields.product_id, "product_id", line),
            "seller_id": self.id_of(fields.seller_id, "seller_id", line),
            "sku": self.text(fields.sku, "sku", line),
            "quantity": quantity,
            "price": self.amount(price),
        }
        warehouse = fields.warehouse_id
        if warehouse is not None and self.given(warehouse, line):
            values["warehouse_id"] = self.id_of(warehouse, "warehouse_id", line)
        shipping = fields.shipping_amount
        cost = 0 if shipping is None else self.money(shipping, "shipping_amount", line) or 0
        taxable = fields.taxable is None or self.choice(fields.taxable, "taxable", line)
        return _Goods(
            values,
            line.number,
            price * quantity,
            cost,
            self._by_code(fields.taxes, "taxes", line),
            self._by_code(fields.shipping_taxes, "shipping_taxes", line),
            taxable,
        )

    # -- money -----------------------------------------------------------------------------------------------

    def _discount(self, head: Line, goods: list[_Goods]) -> int:
        field = self._mapping.order.discount_amount
        if field is None:
            return 0
        if field.subtotal is None:
            assert field.column is not None
            return self.money(Number(column=field.column), "discount_amount", head) or 0
        subtotal = self.column(field.subtotal, "discount_amount", head)
        discount = sum(each.price for each in goods) - subtotal
        if discount < 0:
            raise Refused(
                errors.TOTAL_MISMATCH,
                f"column {field.subtotal!r}: {self.amount(subtotal)} is above what the goods cost,"
                f" {self.amount(discount + subtotal)}",
            )
        return discount

    def _shipping(self, head: Line, goods: list[_Goods]) -> list[int]:
        field = self._mapping.order.shipping_amount
        if field is None:
            return [each.shipping for each in goods]
        cost = self.money(field, "shipping_amount", head) or 0
        return _shared(cost, [each.price for each in goods])

    def _by_code(self, fields: Sequence[Tax], name: str, line: Line) -> dict[str, int]:
        """Return the taxes of a line, amounts of the same code added up. Those of nothing are left out."""
        by_code: dict[str, int] = {}
        for field in fields:
            amount = self.money(Number(column=field.column), name, line)
            if not amount:
                continue
            code = field.code if field.code is not None else line.cells.get(field.code_column or "")
            if code is None:
                raise Unreadable(
                    line.number, errors.FIELD_MISSING, f"column {field.code_column!r} ($.{name}.code): empty"
                )
            code = field.codes.get(code, code)
            if len(code) > 32:
                raise Unreadable(
                    line.number,
                    errors.FIELD_MALFORMED,
                    f"column {field.code_column!r} ($.{name}.code): more than 32 characters; codes in the"
                    " mapping gives it a shorter one",
                )
            by_code[code] = by_code.get(code, 0) + amount
        return by_code

    def _taxes(
        self, head: Line, goods: list[_Goods], shipping: list[int], discount: int
    ) -> list[tuple[dict[str, int], dict[str, int]]]:
        """Return each line's taxes and those of its shipping: its own, or its share of the order's."""
        fields = self._mapping.order.taxes
        if not fields:
            return [(each.taxes, each.shipping_taxes) for each in goods]
        shares = money.allocate(discount, [each.price for each in goods])
        room = [each.price - share if each.taxable else 0 for each, share in zip(goods, shares, strict=True)]
        room += (
            shipping if self._mapping.tax_on == "goods and shipping" or not any(room) else [0] * len(goods)
        )
        weights = list(room)
        by_line: list[dict[str, int]] = [{} for _ in room]
        for code, amount in self._by_code(fields, "taxes", head).items():
            # What the taxes before left: where prices include them, no line has more tax than it costs.
            parts = _shared(amount, room if sum(room) >= amount else weights)
            for taxes, part in zip(by_line, parts, strict=True):
                if part:
                    taxes[code] = part
            room = [max(0, left - part) for left, part in zip(room, parts, strict=True)]
        return list(zip(by_line[: len(goods)], by_line[len(goods) :], strict=True))

    def _total(
        self,
        head: Line,
        goods: list[_Goods],
        shipping: list[int],
        discount: int,
        taxes: list[tuple[dict[str, int], dict[str, int]]],
    ) -> tuple[int, bool | None]:
        """Return the total, and whether prices include taxes (None without any). Raises Refused, with the
        numbers, when they don't add up.
        """
        tax = sum(sum(by_code.values()) for each in taxes for by_code in each)
        costs, sent = sum(each.price for each in goods), sum(shipping)
        before = costs + sent - discount
        included = self._mapping.order.prices_include_tax
        field = self._mapping.order.total_amount
        if discount > costs:
            raise Refused(
                errors.DISCOUNT_TOO_LARGE,
                f"a discount of {self.amount(discount)}, and the goods cost {self.amount(costs)}",
            )
        known = included is not None and included.from_ is None
        include = self.choice(included, "prices_include_tax", head) if included and known and tax else None
        if field.column is None:
            return before + (0 if include in (None, True) else tax), include
        total = self.column(field.column, "total_amount", head)
        fits = {True: before, False: before + tax}
        if tax and not known:
            include = next((way for way, amount in fits.items() if amount == total), None)
        expected = fits[include] if include is not None else before
        if total != expected or (tax and include is None):
            parts = f"goods {self.amount(costs)} + shipping {self.amount(sent)} - discount"
            parts += f" {self.amount(discount)} = {self._signed(before)}"
            if tax:
                parts += f", with taxes of {self.amount(tax)} {self._signed(before + tax)}"
            raise Refused(
                errors.TOTAL_MISMATCH, f"column {field.column!r}: {self.amount(total)}, but {parts}"
            )
        return total, include

    def _signed(self, minor: int) -> str:
        return f"-{self.amount(-minor)}" if minor < 0 else self.amount(minor)

    def _listed(self, by_code: dict[str, int]) -> list[dict[str, str]]:
        return [{"code": code, "amount": self.amount(amount)} for code, amount in by_code.items()]


def _shared(amount: int, weights: Sequence[int]) -> list[int]:
    """Share an amount by weights, to the unit; all of it to the first if none weighs anything."""
    if not any(weights):
        return [amount, *(0 for _ in weights[1:])]
    return money.allocate(amount, weights)
