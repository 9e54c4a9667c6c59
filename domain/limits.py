"""How much one order, and one record, may hold: beyond it a record is refused, so that
no order can stop its lane.

An order's state is written whole with every batch that touches it, and Kafka takes no record of any size. The
facts of one event type come from one topic, so counting by type makes what is refused follow from that
topic's log alone, whatever arrives in between.

`limits_of` makes the limits of a Kafka that takes smaller batches: in proportion, so that an order at all of
them is still one batch of its changelog (docs/decisions/0040).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, get_args, get_type_hints

from msgspec import Struct

from contracts.incoming import EVENTS
from domain.order import Created, RefundDecision, SimpleFact

MESSAGE_BYTES: Final = 24 << 20
"""Largest batch of the changelog, bytes, for an order that takes in all it may, unless a setting says less.
One of 10,000 scans has some 1.2 MB.
"""
LEAST_MESSAGE_BYTES: Final = 1 << 20
"""What Kafka takes by default: below it not every single fact would fit."""
WRITTEN_BYTES: Final = 8 << 20
"""Largest batch of the other topics that we write, bytes, unless the changelog takes less."""
HEADER_BYTES: Final = 10
"""What a header counts beside its name and its value."""

FACT_BYTES: Final = 80
"""What a fact counts beside its texts and lists: about what its ids and times take."""
DECISION_BYTES: Final = 64
"""The same for a refund decision."""
ITEM_BYTES: Final = 24
"""What one entry of a fact's `items` counts."""
TAX_BYTES: Final = 8
"""What the tax of a refund decision counts."""

TYPE_BYTES: Final[dict[str, int]] = {
    name: spec.most_bytes for name, spec in EVENTS.items() if spec.most_bytes is not None
}
"""Event type -> most bytes, as size_of counts them, of the facts of that type that one order takes
in: some 8,000 to 26,000. Of MESSAGE_BYTES.
"""

LARGEST_FACT: Final = FACT_BYTES + 3 * 4_000 + 1_000 * ITEM_BYTES
"""What one fact counts at most."""
_LARGEST: Final = {"refund.granted": FACT_BYTES + 4_000, "promise.updated": FACT_BYTES}
"""Event type -> the same, where an order takes in less of it than of any other."""

CREATED_ITEM_BYTES: Final = 3_200
"""What a line of an order.created counts: our own facts about it, deadlines and refunds, have to fit too."""
CREATED_UNIT_BYTES: Final = 24
"""What each of its units counts: a decision about a return names each by itself."""
CREATED_TAX_BYTES: Final = 64
"""What each of its taxes counts beside its code."""
CREATED_TEXT: Final = 3
"""How often its texts count: derived events repeat them, with up to six bytes for one."""
TAXED_ITEM_BYTES: Final = 512
"""What a line of an order.created with taxes takes in JSON at most, without its texts and taxes."""
TAXED_TEXT: Final = 6
"""What a byte of its texts may take there."""

_TEXTS: Final[dict[type, tuple[str, ...]]] = {
    fact: tuple(
        name
        for name, hint in get_type_hints(fact).items()
        if (hint is str or str in get_args(hint)) and name != "currency"
    )
    for fact in get_args(SimpleFact)
}
"""Kind of fact -> its free texts: every text that no list of words bounds."""
TEXTS: Final = tuple(dict.fromkeys(name for names in _TEXTS.values() for name in names))
"""The names of all free texts."""


class Limits(Struct, frozen=True, gc=False):
    """How much an order and a record may hold where a topic takes batches of this size. All in bytes."""

    message: int
    """Largest batch of the changelog."""
    written: int
    """Largest batch of the other topics that we write: a dead letter holds its record and our headers, so it
    is larger than any input.
    """
    input: int
    """Largest batch of an input topic."""
    record: int
    """Of a record, uncompressed, that is passed on to orders.dlq or orders.rekeyed: our headers come beside
    it.
    """
    event: int
    """Of an event of a bulk part, as JSON."""
    state: int
    """Of a state, with room for what Kafka adds to it."""
    created: int | None
    """Of an order.created, as created_size counts it; None: any one fits."""
    types: Mapping[str, int]
    """Event type -> of its facts in one order, as size_of counts them."""
    uncounted: int
    """So many facts of a type are within its limit, however large each is."""


def limits_of(message_bytes: int) -> Limits:
    """The limits where the changelog takes batches of so many bytes: LEAST_MESSAGE_BYTES to MESSAGE_BYTES.
    Pure.
    """
    written = min(WRITTEN_BYTES, message_bytes)
    types = {name: most * message_bytes // MESSAGE_BYTES for name, most in TYPE_BYTES.items()}
    return Limits(
        message=message_bytes,
        written=written,
        input=written * 3 // 4,
        record=written * 7 // 8,
        event=written * 5 // 8,
        state=message_bytes - 1024,
        created=message_bytes // 3 if message_bytes < MESSAGE_BYTES else None,
        types=types,
        uncounted=min(24, *(most // _LARGEST.get(name, LARGEST_FACT) - 1 for name, most in types.items())),
    )


LIMITS: Final = limits_of(MESSAGE_BYTES)
"""Those of the default."""


def record_size(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> int:
    """Bytes of a record, uncompressed."""
    size = len(key or b"") + len(value or b"")
    return size + sum(
        len(name.encode("utf-8", "surrogateescape")) + len(text or b"") + HEADER_BYTES
        for name, text in headers
    )


def size_of(fact: SimpleFact | RefundDecision) -> int:
    """What a fact counts: FACT_BYTES, its free texts in UTF-8, ITEM_BYTES for each entry of its items. A
    decision: DECISION_BYTES, ITEM_BYTES for each entry of units, shipping and allocations, TAX_BYTES for its
    tax.
    """
    if type(fact) is RefundDecision:
        entries = len(fact.units) + len(fact.shipping) + len(fact.allocations or ())
        size = DECISION_BYTES + ITEM_BYTES * entries
        return size if fact.tax is None else size + TAX_BYTES
    size = FACT_BYTES
    for name in _TEXTS[type(fact)]:
        text = getattr(fact, name)
        if text:
            size += len(text.encode())
    items = getattr(fact, "items", None)
    return size + ITEM_BYTES * len(items) if items else size


def created_size(created: Created) -> int:
    """What an order.created counts: CREATED_ITEM_BYTES for each line, CREATED_UNIT_BYTES for each unit,
    CREATED_TAX_BYTES for each tax, its free texts and the taxes' codes in UTF-8 CREATED_TEXT times.
    """
    size = CREATED_TEXT * len((created.region or "").encode())
    for item in created.items:
        size += (
            CREATED_ITEM_BYTES + CREATED_UNIT_BYTES * item.quantity + CREATED_TEXT * len(item.sku.encode())
        )
        for taxes in (item.taxes, item.shipping_taxes):
            for code, _ in taxes or ():
                size += CREATED_TAX_BYTES + CREATED_TEXT * len(code.encode())
    return size


def taxed_size(created: Created) -> int:
    """What an order.created with taxes counts as the order.created that its checkout becomes: without taxes
    any one fits, but each line may have 40 of them.
    """
    size = TAXED_TEXT * len((created.region or "").encode())
    for item in created.items:
        size += TAXED_ITEM_BYTES + TAXED_TEXT * len(item.sku.encode())
        for taxes in (item.taxes, item.shipping_taxes):
            for code, _ in taxes or ():
                size += CREATED_TAX_BYTES + TAXED_TEXT * len(code.encode())
    return size


def is_too_large(created: Created, limits: Limits) -> bool:
    """Whether an order.created is larger than an order may begin. Pure."""
    if limits.created is not None and created_size(created) > limits.created:
        return True
    return created.prices_include_tax is not None and taxed_size(created) > limits.record
