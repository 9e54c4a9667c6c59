"""States that a later version wrote. Apart from tables.codec, which is compiled: mypyc knows no class of
errors whose remedy another one inherits.
"""

from __future__ import annotations

from typing import Self

from errors import OrdersError


class NewerFormat(OrdersError):
    """A state that this version can't read: a later one wrote it."""

    remedy = (
        "run that version, or a later one; if none has ever run here, orders repair writes the state again"
    )

    def of(self, order_id: str, waiting: str) -> Self:
        """The same of an order that is known by its id. `waiting`: what can't be folded into it."""
        return type(self)(
            f"order {order_id}: {self.message}; {waiting} waits for it, and the lane behind it",
            "run that version, or a later one; if none has ever run here, stop the workers and run orders"
            f" repair --ids {order_id}",
        )
