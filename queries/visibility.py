"""What of the orders a caller may see. Everything else is to them as if it weren't there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from uuid import UUID

from queries.documents import (
    OrderDetails,
    SellerDetails,
    SellerSummary,
    Suborder,
    Summary,
    Tracked,
    TrackedStatus,
)
from queries.lists import Lists


class Parties(Protocol):
    """Whose order it is: its user, and its sellers by their suborders. Neither ever changes."""

    user_id: UUID

    @property
    def suborders(self) -> Sequence[Suborder]:
        """Of each seller one."""


@dataclass(frozen=True, slots=True)
class Visibility:
    """`everything`, or: the orders of `users` whole, of other orders the parts of `sellers`, and with
    `tracking` the state of every parcel whose number the caller knows.
    """

    everything: bool = False
    users: frozenset[UUID] = frozenset()
    sellers: frozenset[UUID] = frozenset()
    tracking: bool = False

    def whole(self, user_id: UUID) -> bool:
        """Whether a user's orders are seen whole."""
        return self.everything or user_id in self.users

    def seller(self, seller_id: UUID) -> bool:
        """Whether a seller's parts of orders are seen."""
        return self.everything or seller_id in self.sellers

    def some(self, order: Parties) -> bool:
        """Whether anything of an order is seen."""
        return self.whole(order.user_id) or any(
            suborder.seller_id in self.sellers for suborder in order.suborders
        )

    def summary(self, order: Summary) -> Summary | SellerSummary:
        """What is seen of an order of which something is."""
        if self.whole(order.user_id):
            return order
        return SellerSummary(
            order.order_id,
            order.status,
            order.currency,
            order.created_at,
            order.updated_at,
            order.version,
            [each for each in order.suborders if each.seller_id in self.sellers],
            [each for each in order.shipments if each.seller_id in self.sellers],
        )

    def details(self, order: OrderDetails) -> OrderDetails | SellerDetails:
        """What is seen of the details of an order of which something is."""
        if self.whole(order.user_id):
            return order
        items = [each for each in order.items if each.seller_id in self.sellers]
        shipments = [each for each in order.shipments if each.seller_id in self.sellers]
        own = {each.item_id for each in items}
        returns = [each for each in order.returns if each.item_id in own]
        shown = {order.order_id, *(each.shipment_id for each in shipments)}
        shown.update(each.return_id for each in returns)
        return SellerDetails(
            order.order_id,
            order.status,
            order.currency,
            order.created_at,
            order.updated_at,
            order.version,
            items,
            shipments,
            returns,
            [each for each in order.moments if each.id in shown],
            [each for each in order.suborders if each.seller_id in self.sellers],
        )

    def orders(
        self,
        user_id: UUID | None,
        seller_id: UUID | None,
        region: str | None,
        cart_id: UUID | None = None,
        attention: str | None = None,
    ) -> Lists | None:
        """Which orders a list with these filters is of; None: of none. A filter by what a caller doesn't see
        of an order (its user, its region, its cart, its attention) doesn't find that order.
        """
        unseen = region is not None or cart_id is not None or attention is not None
        user, seller = () if user_id is None else (user_id,), () if seller_id is None else (seller_id,)
        if self.everything or (user_id is not None and user_id in self.users):
            return Lists(user, () if user else seller, seller_id if user else None)
        if user_id is not None:
            return None
        users = tuple(sorted(self.users))
        if seller_id is None:
            sellers = () if unseen else tuple(sorted(self.sellers))
        elif seller_id in self.sellers and not unseen:
            sellers = seller
        else:
            sellers = ()
        return Lists(users, sellers, seller_id) if users or sellers else None

    def parcels(
        self, parcels: Sequence[Tracked], owners: dict[tuple[UUID, UUID], tuple[UUID, UUID]]
    ) -> list[Tracked | TrackedStatus]:
        """What is seen of parcels. `owners`: (user, seller) of a parcel, by (order, parcel); a parcel without
        is nobody's whom the caller sees.
        """
        seen: list[Tracked | TrackedStatus] = []
        for each in parcels:
            owner = owners.get((each.order_id, each.shipment_id))
            if owner is not None and (self.whole(owner[0]) or self.seller(owner[1])):
                seen.append(each)
            elif self.tracking:
                seen.append(
                    TrackedStatus(each.shipment_id, each.carrier, each.status, each.estimated_delivery)
                )
        return seen


EVERYTHING: Final = Visibility(everything=True)
