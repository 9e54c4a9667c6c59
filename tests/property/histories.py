"""Histories of one order for the property tests: facts with distinct natural keys (of conflicting ones
the first in the log stays).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st

from contracts import ids
from contracts.incoming import DATA
from contracts.outgoing import DERIVED
from contracts.record_id import RecordId
from contracts.topics import BULK
from domain import effects, events
from domain.enums import DeadlineKind, Rank, ReturnStatus, StockAnswer
from domain.fold import fold
from domain.order import (
    Cancellation,
    Created,
    Deadline,
    Grant,
    Item,
    Order,
    Payment,
    PaymentFailure,
    RefundReply,
    ReturnStage,
    Scan,
    StockReply,
)
from domain.shapes import Derived, Event, LateRefusal
from domain.status import fresh_lines
from domain.tax import whole_tax
from domain.totals import RunningTotals
from tables import codec
from tests.unit.builders import VALID, record

ORDER_ID = bytes(range(16))
SAME_IN_ANY_ORDER = [spec.type for spec in DERIVED if spec.varies == "never"]
"""Derived events whose set is the same in any arrival order (docs/rules.md, Facts)."""


def raw_id(kind: int, number: int) -> bytes:
    return bytes([kind] * 15 + [number])


SELLERS = [raw_id(0xA0, n) for n in range(3)]
STRANGER = raw_id(0xA0, 99)
TIMES = st.integers(0, 6).map(lambda hour: hour * 3_600_000_000)


KINDS = [
    name for name in DATA if name not in ("checkout.completed", "order.created", "refund.decided", *BULK)
]
"""Events that may come of an order any number of times."""


@st.composite
def created_events(draw: st.DrawFn, currency: str = "EUR") -> Created:
    lines = draw(st.integers(1, 4))
    items = []
    for n in range(lines):
        shipping = draw(st.none() | st.integers(0, 300))
        seller = draw(st.sampled_from(SELLERS[: draw(st.integers(1, 3))]))
        quantity, price = draw(st.integers(1, 4)), draw(st.sampled_from([0, 1, 3, 100, 999, 1000]))
        items.append(
            Item(raw_id(0xB0, n), raw_id(0xC0, n), seller, None, f"sku-{n}", quantity, price, shipping)
        )
    goods = sum(item.price * item.quantity for item in items)
    discount = draw(st.none() | st.integers(0, goods))
    total = goods + sum(item.shipping or 0 for item in items) - (discount or 0)
    created = Created(
        draw(TIMES), raw_id(0xD0, 0), draw(st.none() | st.just("SP")), currency, total, discount, items
    )
    created.cart_id = draw(st.sampled_from((None, raw_id(0xE0, 0), raw_id(0xE0, 1))))
    created.cart_created_at = draw(st.none() | TIMES)
    return draw(taken_over(draw(taxed(created))))


@st.composite
def taken_over(draw: st.DrawFn, created: Created) -> Created:
    """The same order, perhaps one that another system handled until a time, and perhaps says what it paid
    back.
    """
    live_from = draw(st.none() | st.none() | TIMES)
    if live_from is None:
        return created
    refunded = draw(st.none() | st.none() | st.integers(0, created.total + 1))
    return msgspec.structs.replace(created, live_from=live_from, refunded_amount=refunded)


@st.composite
def taxed(draw: st.DrawFn, created: Created, included: bool | None = None) -> Created:
    """The same order, perhaps with taxes: on top of the prices or in them. `included`: which of the two."""
    if included is None:
        included = draw(st.sampled_from((None, None, True, False)))
    if included is None:
        return created
    room = {line.item_id: line.cost_of(0, line.quantity) for line in fresh_lines(created)}
    items = []
    for item in created.items:
        most = (room[item.item_id], item.shipping or 0) if included else (25, 25)
        items.append(
            msgspec.structs.replace(
                item, taxes=draw(_taxes(most[0])), shipping_taxes=draw(st.none() | _taxes(most[1]))
            )
        )
    placed = msgspec.structs.replace(created, items=items, prices_include_tax=included)
    on_top = 0 if included else whole_tax(placed)
    return msgspec.structs.replace(placed, total=created.total + on_top)


@st.composite
def _taxes(draw: st.DrawFn, most: int) -> list[tuple[str, int]]:
    """Up to three taxes that come to `most` minor units together at most."""
    amounts: list[tuple[str, int]] = []
    for code in "ABC"[: draw(st.integers(0, 3))]:
        amounts.append((code, draw(st.integers(0, most))))
        most -= amounts[-1][1]
    return amounts


@st.composite
def _quantities(draw: st.DrawFn, created: Created, seller: bytes) -> list[tuple[bytes, int]] | None:
    own = [item.item_id for item in created.items if item.seller_id == seller] or [created.items[0].item_id]
    chosen = draw(st.none() | st.lists(st.sampled_from(own), unique=True, max_size=3))
    return None if chosen is None else [(item_id, draw(st.integers(1, 3))) for item_id in chosen]


@st.composite
def _fact(draw: st.DrawFn, created: Created) -> tuple[str, Any]:
    time = draw(TIMES)
    seller = draw(st.sampled_from([*(item.seller_id for item in created.items), STRANGER]))
    kind = draw(st.sampled_from(KINDS))
    if kind == "order.paid":
        amount = draw(
            st.sampled_from([1, max(1, created.total // 2), max(1, created.total), created.total + 7])
        )
        return kind, Payment(
            time,
            raw_id(1, draw(st.integers(0, 3))),
            amount,
            draw(st.sampled_from(["EUR", "EUR", "EUR", "USD"])),
        )
    if kind == "payment.failed":
        return kind, PaymentFailure(time, raw_id(1, draw(st.integers(0, 3))), "declined")
    if kind.startswith("stock."):
        answer = StockAnswer[kind.removeprefix("stock.").upper()]
        items = None if answer is StockAnswer.RESERVED else draw(_quantities(created, seller))
        reservation = ids.uuid5(ORDER_ID, f"reservation:{ids.text(seller)}")
        return kind, StockReply(time, answer, seller, reservation, items)
    if kind == "order.cancel_requested":
        return kind, Cancellation(time, draw(st.none() | st.just(seller)), "changed my mind")
    if kind == "shipment.updated":
        shipment, rank = raw_id(2, draw(st.integers(0, 3))), draw(st.sampled_from(Rank))
        tracking = draw(st.none() | st.just("T1"))
        return kind, Scan(
            time, shipment, rank, seller, None, None, tracking, None, None, draw(_quantities(created, seller))
        )
    if kind == "order.returned":
        item = draw(st.sampled_from([item.item_id for item in created.items]))
        quantity = draw(st.none() | st.integers(1, 5))
        restock = draw(st.none() | st.booleans())
        return_id, status = raw_id(3, draw(st.integers(0, 2))), draw(st.sampled_from(ReturnStatus))
        return kind, ReturnStage(time, return_id, status, item, quantity, "broken", None, restock)
    if kind == "refund.granted":
        named = draw(st.none() | st.sampled_from([item.item_id for item in created.items]))
        amount = draw(st.sampled_from([1, 2, max(1, created.total // 3), max(1, created.total)]))
        currency, about = (
            draw(st.sampled_from(["EUR", "EUR", "EUR", "USD"])),
            draw(st.none() | st.just(seller)),
        )
        return kind, Grant(time, raw_id(4, draw(st.integers(0, 2))), amount, currency, "late", about, named)
    refund = ids.uuid5(ORDER_ID, f"refund:{draw(st.integers(0, 1))}")
    if kind == "deadline.passed":
        what = draw(st.sampled_from(DeadlineKind))
        subject = (None, seller, seller, seller, refund)[what]
        return kind, Deadline(time, what, subject, draw(st.integers(1, 2)), draw(st.booleans()))
    if kind.startswith("refund."):
        return kind, RefundReply(time, refund, kind == "refund.failed")
    example = events.decode(kind, *record(kind, VALID[kind])).fact
    return kind, msgspec.structs.replace(example, time=time)


@st.composite
def histories(draw: st.DrawFn) -> list[Event]:
    """One order.created and up to 14 more events, each natural key once, in the order of drawing."""
    created = draw(created_events())
    facts: list[tuple[str, Any]] = [("order.created", created)]
    keys = set()
    for kind, fact in draw(st.lists(_fact(created), max_size=14)):
        key = (kind, repr(fact.key()))
        if key not in keys:
            keys.add(key)
            facts.append((kind, fact))
    return [
        Event(kind, ORDER_ID, fact, f"e{n}", fact.time, None, 1_000 + n)
        for n, (kind, fact) in enumerate(facts)
    ]


class Run:
    """A history folded event by event, decisions coming back like any record.

    The state goes through its bytes after each event, or only after those that `cuts`
    says: the ends of batches.
    """

    def __init__(self, cuts: Sequence[bool] = ()) -> None:
        self.raw: bytes | None = None
        self.cuts = cuts
        self.held: tuple[Order, RunningTotals] | None = None
        self.derived: list[Derived] = []
        self.refusals: list[tuple[str, str]] = []
        self.late: list[LateRefusal] = []
        self.decisions: deque[Event] = deque()
        self.offset = 0

    @property
    def order(self) -> Order:
        return codec.decode(self.raw) if self.raw else Order()

    def take(self, event: Event) -> None:
        order, totals = self.held or (self.order, None)
        totals = totals or RunningTotals(order)
        # fold takes the fact over: in the pipeline it was decoded for this record alone.
        fact = msgspec.msgpack.decode(msgspec.msgpack.encode(event.fact), type=type(event.fact))
        folded = fold(
            order, msgspec.structs.replace(event, fact=fact), RecordId(event.type, 0, self.offset), totals
        )
        self.held = (order, totals) if self.cuts and not self.cuts[self.offset % len(self.cuts)] else None
        self.offset += 1
        if folded.refused:
            self.refusals.append(folded.refused)
        for effect in folded.effects:
            if isinstance(effect, LateRefusal):
                # As it is now: its fact stays in the order, and an earlier repetition moves its time.
                self.late.append(msgspec.structs.replace(effect, fact=msgspec.structs.replace(effect.fact)))
            elif effect.type == "refund.decided":
                self.decisions.append(_comes_back(effect, event))
            else:
                self.derived.append(effect)
        if folded.changed:
            self.raw = codec.encode(order)

    def take_all(self, history: Sequence[Event], decisions_after: int = 1) -> Run:
        """Take `history`; a decision comes back after every `decisions_after` events, and all at the end."""
        for n, event in enumerate(history):
            self.take(event)
            if n % decisions_after == 0 and self.decisions:
                self.take(self.decisions.popleft())
        while self.decisions:
            self.take(self.decisions.popleft())
        return self


def _comes_back(effect: Derived, cause: Event) -> Event:
    value, headers = effects.encode(effect, cause.order_id, effects.headers_of(cause))
    return events.decode("orders.decisions", headers, value)
