"""How much one order, and one record, may hold: beyond it a record is refused, so that
no order can stop its lane.

An order's state is written whole with every batch that touches it, and Kafka takes no record of any size. The
facts of one event type come from one topic, so counting by type makes what is refused follow from that
topic's log alone, whatever arrives in between.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, get_args, get_type_hints

from contracts.incoming import EVENTS
from domain.order import RefundDecision, SimpleFact

RECORD_BYTES: Final = 7 << 20
"""Most bytes, uncompressed, of a record that is passed on to orders.dlq or orders.rekeyed, which take 8 MiB:
our headers come beside it.
"""
HEADER_BYTES: Final = 10
"""What a header counts beside its name and its value."""

FACT_BYTES: Final = 80
"""What a fact counts beside its texts and lists: about what its ids and times take."""
ITEM_BYTES: Final = 24
"""What one entry of a fact's `items` counts."""

TYPE_BYTES: Final[dict[str, int]] = {
    name: spec.most_bytes for name, spec in EVENTS.items() if spec.most_bytes is not None
}
"""Event type -> most bytes, as size_of counts them, of the facts of that type that one order takes
in: some 8,000 to 26,000.
"""

UNCOUNTED: Final = 24
"""So many facts of a type are within its limit, however large each is: 80 + 3 * 4,000 +
1,000 * 24 bytes at most.
"""

_TEXTS: Final[dict[type, tuple[str, ...]]] = {
    fact: tuple(
        name
        for name, hint in get_type_hints(fact).items()
        if str in (hint, *get_args(hint)) and name != "currency"
    )
    for fact in get_args(SimpleFact)
}
"""Kind of fact -> its free texts: every text that no list of words bounds."""
TEXTS: Final = tuple(dict.fromkeys(name for names in _TEXTS.values() for name in names))
"""The names of all free texts."""


def record_size(key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]) -> int:
    """Bytes of a record, uncompressed."""
    size = len(key or b"") + len(value or b"")
    return size + sum(
        len(name.encode("utf-8", "surrogateescape")) + len(text or b"") + HEADER_BYTES
        for name, text in headers
    )


def size_of(fact: SimpleFact | RefundDecision) -> int:
    """What a fact counts: FACT_BYTES, its free texts in UTF-8, ITEM_BYTES for each entry of its items (of a
    decision's units, shipping).
    """
    if type(fact) is RefundDecision:
        return FACT_BYTES + ITEM_BYTES * (len(fact.units) + len(fact.shipping))
    size = FACT_BYTES
    for name in _TEXTS[type(fact)]:
        text = getattr(fact, name)
        if text:
            size += len(text.encode())
    items = getattr(fact, "items", None)
    return size + ITEM_BYTES * len(items) if items else size
