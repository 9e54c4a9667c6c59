"""The entry of an event: everything that is said of it in one place. contracts.incoming and
contracts.outgoing hold the entries."""

from __future__ import annotations

from typing import Literal, NamedTuple

from msgspec import Struct

Model = type[Struct]
"""Wire form of an event's data."""


class EventSpec(NamedTuple):
    """One type of event that is read.
    Topics, decoders, limits and the reference's pages are computed from these.
    """

    type: str
    model: Model
    """Of version 1."""
    sender: str
    natural_key: str
    """In words: what makes two of them the same fact."""
    facts: str | None = None
    """Field of domain.order.Order that holds its facts in a list; None: it adds none of this kind."""
    most_bytes: int | None = None
    """Most bytes of facts of this type that one order takes in, as domain.limits counts them; None:
    their number alone is limited.
    """
    topic: str = ""
    """Where it is read; empty: the topic of its own name."""


Varies = Literal["never", "decided", "notice", "command"]
"""What the order in which facts arrive may change. never: the set of these and their contents are the same in
any order. decided: one id has one content. notice: which of them leave may differ, the last one of an order
doesn't. command: whether it leaves, and with what.
"""


class DerivedSpec(NamedTuple):
    """One type of event that is published."""

    type: str
    model: Model
    when: str
    """In words: when it leaves."""
    id_field: str | None
    """Member of its data that holds an id of ours; None: it has none, and its event id
    is made of `id_name` alone.
    """
    id_name: str
    """The name of which that id is the uuid5, in the namespace of the order's UUID.
    Capitals stand for what varies.
    """
    varies: Varies
