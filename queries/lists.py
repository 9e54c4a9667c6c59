"""Which orders a list is of."""

from __future__ import annotations

from typing import NamedTuple
from uuid import UUID


class Lists(NamedTuple):
    """Which orders a list is of: those of `users`, and of the others those that have an item of `sellers`;
    with neither, all. `seller_id`, beside: only those that have an item of this seller, too.
    """

    users: tuple[UUID, ...] = ()
    sellers: tuple[UUID, ...] = ()
    seller_id: UUID | None = None
