"""What taxes come to: of a line, of some of its units, of its shipping (docs/rules.md, Tax)."""

from __future__ import annotations

from contracts import money
from domain.order import Created, Item, Taxes


def sum_of(taxes: Taxes | None) -> int:
    """Minor units of all taxes of a list. Pure."""
    return sum(amount for _, amount in taxes) if taxes else 0


def whole_tax(created: Created) -> int:
    """Minor units of all taxes of an order, its shipping's too. Pure."""
    if created.prices_include_tax is None:
        return 0
    return sum(sum_of(item.taxes) + sum_of(item.shipping_taxes) for item in created.items)


def is_taxed(created: Created) -> bool:
    """Whether an order has a tax, were it one of 0: then its events tell tax amounts. Pure."""
    return created.prices_include_tax is not None and any(
        item.taxes or item.shipping_taxes for item in created.items
    )


class LineTax:
    """The tax of one line. Amounts in minor units."""

    __slots__ = ("amounts", "goods", "on_top", "quantity", "shipping")

    def __init__(self, item: Item, on_top: bool) -> None:
        self.amounts = [amount for _, amount in item.taxes or ()]
        """Of each code: each is shared by the units by itself."""
        self.goods = sum_of(item.taxes)
        self.shipping = sum_of(item.shipping_taxes)
        self.on_top = on_top
        """Prices don't include it."""
        self.quantity = item.quantity

    def of_first(self, units: int) -> int:
        """What the first `units` of the line have of it."""
        if units == self.quantity:
            return self.goods
        return sum(money.share_of_first(amount, self.quantity, units) for amount in self.amounts)

    def taxed(self) -> int:
        """How many units have some of it: the first ones."""
        return min(self.quantity, max(self.amounts, default=0))
