"""Histories of one order for the property tests: facts with distinct natural keys (of conflicting ones
the first in the log stays).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from random import Random
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
    Lapse,
    Order,
    Payment,
    PaymentFailure,
    Promise,
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
from tests.property.records import raw_id
from tests.unit.builders import VALID, record

ORDER_ID = bytes(range(16))
SAME_IN_ANY_ORDER = [spec.type for spec in DERIVED if spec.varies == "never"]
"""Derived events whose set is the same in any arrival order (docs/rules.md, Facts)."""


SELLERS = [raw_id(0xA0, n) for n in range(3)]
STRANGER = raw_id(0xA0, 99)


KINDS = [
    name for name in DATA if name not in ("checkout.completed", "order.created", "refund.decided", *BULK)
]
"""Events that may come of an order any number of times."""


SEEDS = st.integers(0, 2**24 - 1)
RANDOMS = st.builds(Random, SEEDS)
"""Hypothesis chooses a seed and not each part of a history: a part costs it a hundred times as much as one
of random.Random, and most of its histories are short.
"""
MOST_FACTS = 20


def up_to(rng: Random, most: int) -> int:
    """From 0 to `most`; both ends more often than chance has them."""
    return rng.choice((0, most, *3 * [rng.randint(0, most)]))


def created_event(rng: Random, currency: str = "EUR") -> Created:
    items = []
    for n in range(rng.randint(1, 4)):
        shipping = rng.choice((None, up_to(rng, 300)))
        seller = rng.choice(SELLERS[: rng.randint(1, 3)])
        quantity, price = rng.randint(1, 4), rng.choice((0, 1, 3, 100, 999, 1000))
        items.append(
            Item(raw_id(0xB0, n), raw_id(0xC0, n), seller, None, f"sku-{n}", quantity, price, shipping)
        )
    goods = sum(item.price * item.quantity for item in items)
    discount = rng.choice((None, *2 * [up_to(rng, goods)]))
    total = goods + sum(item.shipping or 0 for item in items) - (discount or 0)
    for item in items if rng.random() < 0.5 else ():
        item.ship_by, item.deliver_by = _maybe_time(rng), _maybe_time(rng)
    region = rng.choice((None, "SP"))
    created = Created(_time(rng), raw_id(0xD0, 0), region, currency, total, discount, items)
    created.cart_id = rng.choice((None, raw_id(0xE0, 0), raw_id(0xE0, 1)))
    created.cart_created_at = _maybe_time(rng)
    return taken_over(taxed(created, rng), rng)


def taken_over(created: Created, rng: Random) -> Created:
    """The same order, perhaps one that another system handled until a time, and perhaps says what it paid
    back.
    """
    live_from = rng.choice((None, None, _time(rng)))
    if live_from is None:
        return created
    refunded = rng.choice((None, None, up_to(rng, created.total + 1)))
    return msgspec.structs.replace(created, live_from=live_from, refunded_amount=refunded)


def _time(rng: Random) -> int:
    return rng.randint(0, 6) * 3_600_000_000


def _maybe_time(rng: Random) -> int | None:
    return rng.choice((None, _time(rng)))


def taxed(created: Created, rng: Random, included: bool | None = None) -> Created:
    """The same order, perhaps with taxes: on top of the prices or in them. `included`: which of the two."""
    if included is None:
        included = rng.choice((None, None, True, False))
    if included is None:
        return created
    room = {line.item_id: line.cost_of(0, line.quantity) for line in fresh_lines(created)}
    items = []
    for item in created.items:
        most = (room[item.item_id], item.shipping or 0) if included else (25, 25)
        taxes = _taxes(rng, most[0])
        shipping_taxes = rng.choice((None, _taxes(rng, most[1])))
        items.append(msgspec.structs.replace(item, taxes=taxes, shipping_taxes=shipping_taxes))
    placed = msgspec.structs.replace(created, items=items, prices_include_tax=included)
    on_top = 0 if included else whole_tax(placed)
    return msgspec.structs.replace(placed, total=created.total + on_top)


def _taxes(rng: Random, most: int) -> list[tuple[str, int]]:
    """Up to three taxes that come to `most` minor units together at most."""
    amounts: list[tuple[str, int]] = []
    for code in "ABC"[: rng.randint(0, 3)]:
        amounts.append((code, up_to(rng, most)))
        most -= amounts[-1][1]
    return amounts


def _quantities(rng: Random, created: Created, seller: bytes) -> list[tuple[bytes, int]] | None:
    own = [item.item_id for item in created.items if item.seller_id == seller] or [created.items[0].item_id]
    chosen = rng.sample(own, min(rng.randint(0, 3), len(own)))
    return rng.choice((None, [(item_id, rng.randint(1, 3)) for item_id in chosen]))


def _fact(rng: Random, created: Created) -> tuple[str, Any]:
    time = _time(rng)
    seller = rng.choice([*(item.seller_id for item in created.items), STRANGER])
    kind = rng.choice(KINDS)
    if kind == "order.paid":
        amount = rng.choice((1, max(1, created.total // 2), max(1, created.total), created.total + 7))
        return kind, Payment(
            time, raw_id(1, rng.randint(0, 3)), amount, rng.choice(("EUR", "EUR", "EUR", "USD"))
        )
    if kind == "payment.failed":
        return kind, PaymentFailure(time, raw_id(1, rng.randint(0, 3)), "declined")
    if kind.startswith("stock."):
        answer = StockAnswer[kind.removeprefix("stock.").upper()]
        items = None if answer is StockAnswer.RESERVED else _quantities(rng, created, seller)
        reservation = ids.uuid5(ORDER_ID, f"reservation:{ids.text(seller)}")
        return kind, StockReply(time, answer, seller, reservation, items)
    if kind == "order.cancel_requested":
        return kind, Cancellation(time, rng.choice((None, seller)), "changed my mind")
    if kind == "shipment.updated":
        shipment, rank = raw_id(2, rng.randint(0, 3)), rng.choice(list(Rank))
        tracking = rng.choice((None, "T1"))
        return kind, Scan(
            time, shipment, rank, seller, None, None, tracking, None, None, _quantities(rng, created, seller)
        )
    if kind == "order.returned":
        item = rng.choice(created.items).item_id
        quantity = rng.choice((None, rng.randint(1, 5)))
        restock = rng.choice((None, rng.choice((False, True))))
        return_id, status = raw_id(3, rng.randint(0, 2)), rng.choice(list(ReturnStatus))
        return kind, ReturnStage(time, return_id, status, item, quantity, "broken", None, restock)
    if kind == "refund.granted":
        named = rng.choice((None, rng.choice(created.items).item_id))
        amount = rng.choice((1, 2, max(1, created.total // 3), max(1, created.total)))
        currency, about = rng.choice(("EUR", "EUR", "EUR", "USD")), rng.choice((None, seller))
        return kind, Grant(time, raw_id(4, rng.randint(0, 2)), amount, currency, "late", about, named)
    refund = ids.uuid5(ORDER_ID, f"refund:{rng.randint(0, 1)}")
    if kind == "deadline.passed":
        what = rng.choice(list(DeadlineKind))
        attempt = rng.randint(1, 2)
        if what >= DeadlineKind.SHIP:
            subject, due = _lapsed(what, seller, refund, _time(rng))
            # The attempt is no part of the key of one that says what was due.
            return kind, Lapse(time, what, subject, 1 if due is not None else attempt, True, due=due)
        whose = (None, seller, seller, seller, refund)[what]
        return kind, Deadline(time, what, whose, attempt, rng.choice((False, True)))
    if kind == "promise.updated":
        return kind, Promise(time, seller, _maybe_time(rng), _maybe_time(rng))
    if kind.startswith("refund."):
        return kind, RefundReply(time, refund, kind == "refund.failed", attempt=rng.randint(1, 2))
    example = events.decode(kind, *record(kind, VALID[kind])).fact
    return kind, msgspec.structs.replace(example, time=time)


def _lapsed(what: DeadlineKind, seller: bytes, refund: bytes, due: int) -> tuple[bytes, int | None]:
    """Whose lapse of this kind is, and what was due."""
    if what is DeadlineKind.RETURN:
        return raw_id(3, 0), None
    return (refund, None) if what is DeadlineKind.REFUND_RETRY else (seller, due)


def history(seed: int, kept: int) -> list[Event]:
    """One order.created and up to MOST_FACTS more events, each natural key once.
    `kept`: the bits of those that are in it; Hypothesis makes it smaller when a history fails.
    """
    rng = Random(seed)
    created = created_event(rng)
    facts: list[tuple[str, Any]] = [("order.created", created)]
    keys = set()
    for n in range(MOST_FACTS):
        kind, fact = _fact(rng, created)
        key = (kind, repr(fact.key()))
        if kept >> n & 1 and key not in keys:
            keys.add(key)
            facts.append((kind, fact))
    return [
        Event(kind, ORDER_ID, fact, f"e{n}", fact.time, None, 1_000 + n)
        for n, (kind, fact) in enumerate(facts)
    ]


histories = st.builds(history, SEEDS, st.integers(0, 2**MOST_FACTS - 1))


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
