"""What the page of an order shows beside its explanation: bars of units, refunds with their state, money as a
balance. All pure.
"""

from __future__ import annotations

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
