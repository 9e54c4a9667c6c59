"""What the page of an order shows beside its explanation: bars of units, refunds with their state, money as a
balance. All pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

from domain.enums import DeadlineKind
from domain.order import Order

Json = dict[str, Any]

RefundState = Literal["paid", "failed", "given_up", "waits"]

WIDTH: Final = 1000
"""Of a bar, in units of its own."""


class Segment(NamedTuple):
    """A part of a bar: its name, how many units it is, where it begins and how wide it is."""

    name: str
    units: int
    x: int
    width: int


def bar(line: Json) -> list[Segment]:
    """A line's units by how far they got; together they are its quantity. Parts without any are left out."""
    counts = {
        "returned": line["returned"],
        "delivered": line["delivered"] - line["returned"],
        "in_transit": line["in_transit"] - line["delivered"],
        "waiting": line["live"] - line["in_transit"],
        "gone": line["gone"],
    }
    whole = max(1, sum(counts.values()))
    segments, before = [], 0
    for name, units in counts.items():
        x, end = before * WIDTH // whole, (before + units) * WIDTH // whole
        before += units
        if units > 0:
            segments.append(Segment(name, units, x, end - x))
    return segments


class Moment(NamedTuple):
    """A time at which something of an order happened (RFC 3339), and what: types of its facts."""

    time: str
    says: str


MOST_MOMENTS: Final = 400
"""Of an order with more, some are left out evenly; the form for a time has all."""


def moments(facts: Sequence[Json]) -> list[Moment]:
    """The times of an order's facts in order, each once. `facts`: as an explanation has them."""
    at: dict[str, list[str]] = {}
    for fact in facts:
        types = at.setdefault(fact["time"], [])
        if fact["type"] not in types:
            types.append(fact["type"])
    all_of_them = [Moment(time, ", ".join(types)) for time, types in at.items()]
    step = -(-len(all_of_them) // MOST_MOMENTS) or 1
    # The last one stays, whatever is left out.
    return all_of_them[::-1][::step][::-1]


def place_of(these: Sequence[Moment], at: datetime | None) -> int:
    """Where a slider stands that shows `at`: on the last moment up to then; None: now, behind all of them."""
    if at is None:
        return len(these)
    return max(0, sum(datetime.fromisoformat(each.time) <= at for each in these) - 1)


class Refund(NamedTuple):
    """A refund decision and what became of it. `asked`: how often its answer was waited for in vain."""

    refund_id: str
    amount: str
    cause: str
    cause_id: str
    units: int
    state: RefundState
    asked: int


def refunds(document: Json, order: Order) -> list[Refund]:
    """The refunds of an explanation, each with its state."""
    return [_refund(each, order) for each in document.get("refunds", ())]


def _refund(each: Json, order: Order) -> Refund:
    raw = UUID(each["refund_id"]).bytes
    failed = {reply.failed for reply in order.refunds if reply.refund_id == raw and not reply.refused}
    passed = [one for one in order.deadlines if one.what is DeadlineKind.REFUND and one.subject == raw]
    state: RefundState = "waits"
    if False in failed:
        state = "paid"
    elif failed:
        state = "failed"
    elif any(one.final for one in passed):
        state = "given_up"
    units = sum(count for _, _, count in each["units"])
    return Refund(
        each["refund_id"], each["amount"], each["cause"], each["cause_id"], units, state, len(passed)
    )


class Entry(NamedTuple):
    """A line of a balance. `sign`: + and - are added up, = is what they make."""

    sign: Literal["+", "-", "="]
    name: str
    amount: str


def balance(document: Json, of_refunds: list[Refund]) -> list[list[Entry]]:
    """Two sums: what the order costs now, and what of the captured money is kept."""
    money = document["money"]
    total, live = Decimal(money["total"]), Decimal(money["live_total"])
    captured, decided = Decimal(money["captured"]), Decimal(money["refunds_decided"])
    by_state = {
        state: sum((Decimal(each.amount) for each in of_refunds if each.state == state), Decimal(0))
        for state in ("paid", "waits", "failed", "given_up")
    }
    # A decision may be known before those that it builds on, and then isn't listed.
    other = decided - sum(by_state.values())
    # Of the currency's digits, which every amount of the document has.
    digits = total.as_tuple().exponent
    cost = [Entry("+", "total", money["total"]), Entry("-", "gone", _text(total - live, digits))]
    kept = [Entry("+", "captured", money["captured"])]
    kept += [
        Entry("-", f"refund_{state}", _text(amount, digits)) for state, amount in by_state.items() if amount
    ]
    if other:
        kept.append(Entry("-", "refund_other", _text(other, digits)))
    return [
        [*cost, Entry("=", "live_total", money["live_total"])],
        [*kept, Entry("=", "kept", _text(captured - decided, digits))],
    ]


def _text(amount: Decimal, exponent: Any) -> str:
    return str(amount.quantize(Decimal(1).scaleb(exponent)))
