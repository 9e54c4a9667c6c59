"""What the find box leads to."""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from uuid import UUID

from console.access import Visitor
from console.pages import address
from console.sources import Sources
from console.texts import text

_DIGITS: Final = re.compile(r"[0-9a-fA-F]{8,32}", re.ASCII)
MOST: Final = 200
"""Characters that are looked for; a tracking number may have 1,000, but nobody types those."""


class Hit(NamedTuple):
    """Something that was found: what it is, and the address of its page."""

    says: str
    path: str


class Search(NamedTuple):
    """What was looked for and found. `order`: the address of the order of this id, found or not."""

    text: str
    hits: list[Hit]
    order: str | None


async def look_for(reads: Sources, given: str, seen_by: Visitor) -> Search:
    """Look for an id, for the beginning of an order's id, for a tracking number. Raises as Sources do.

    To a visitor who doesn't see personal fields users are as if they weren't there.
    """
    given = given.strip()[:MOST].replace("\x00", "")
    if not given:
        return Search("", [], None)
    id_ = _uuid(given)
    if id_ is not None:
        hits = [_hit(kind, leads_to) for kind, leads_to in await reads.found(id_)]
        if not seen_by.role.personal:
            hits = [hit for hit in hits if not hit.path.startswith("/users/")]
        return Search(given, list(dict.fromkeys(hits)), address("/orders", id_))
    hits = []
    digits = given.replace("-", "")
    if _DIGITS.fullmatch(digits):
        orders = await reads.beginning_with(digits.lower())
        hits = [_hit("order", order_id) for order_id in orders]
    for parcel in await reads.tracked(given):
        says = text("found_tracking", parcel=parcel.shipment_id, id=parcel.order_id)
        hits.append(Hit(says, address("/orders", parcel.order_id)))
    return Search(given, hits, None)


def _uuid(given: str) -> UUID | None:
    try:
        return UUID(given)
    except ValueError:
        return None


def _hit(kind: str, leads_to: UUID) -> Hit:
    where = {"user": "/users", "seller": "/sellers"}.get(kind, "/orders")
    return Hit(text(f"found_{kind}", id=leads_to), address(where, leads_to))
