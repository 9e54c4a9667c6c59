"""Whatever is silent, every order comes to an end or says that somebody has to look at it."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids
from domain import effects, events
from domain.anomalies import anomalies
from domain.deadlines import pending
from domain.enums import ReturnStatus, SuborderStatus
from domain.order import Order
from domain.shapes import DeadlinePolicy, Event
from domain.status import view_of
from domain.totals import winning_stages
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, Run, histories
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    VALID,
    created,
    event,
    item_id,
    line,
    made_id,
    parcel,
    raw,
)

BEGUN = 1_767_225_600_000
"""When the first record was appended, ms."""
POLICIES = st.builds(
    DeadlinePolicy,
    payment=st.integers(1, 100),
    stock=st.integers(1, 100),
    stock_asks=st.integers(1, 3),
    release=st.integers(1, 100),
    release_asks=st.integers(1, 3),
    label=st.integers(1, 100),
    label_asks=st.integers(1, 3),
    refund=st.integers(1, 100),
    refund_asks=st.integers(1, 3),
    history=st.just(BEGUN * 2),
    ship=st.integers(1, 100),
    deliver=st.integers(1, 100),
    ship_cancel=st.integers(0, 100),
    return_=st.integers(1, 100),
    refund_retry=st.integers(1, 100),
    refund_attempts=st.integers(1, 3),
)
_ENDED = (SuborderStatus.DELIVERED, SuborderStatus.RETURNED, SuborderStatus.CLOSED)


def has_ended(order: Order, order_id: bytes) -> bool:
    """Nothing is under way: no unit, no return, no refund."""
    paid = {reply.refund_id for reply in order.refunds if not reply.failed}
    return (
        all(part.status in _ENDED for part in view_of(order).suborders)
        and all(stage.status is not ReturnStatus.REQUESTED for stage in winning_stages(order).values())
        and all(ids.uuid5(order_id, f"refund:{n}") in paid for n in range(len(order.decisions)))
    )


def _reply(seller: str) -> dict[str, Any]:
    reservation_id = made_id(f"reservation:{seller}")
    return {"order_id": ORDER, "seller_id": seller, "reservation_id": reservation_id}


def _scan(n: int, seller: str, item: int, status: str) -> Event:
    data = {"order_id": ORDER, "shipment_id": parcel(n), "seller_id": seller, "status": status}
    return event("shipment.updated", {**data, "items": [{"item_id": item_id(item), "quantity": 1}]}, 3)


def _refund(n: int) -> dict[str, Any]:
    return {"order_id": ORDER, "refund_id": made_id(f"refund:{n}")}


@examples(300)
@given(histories, POLICIES, st.integers(0, 4))
def test_an_order_ends_or_is_told_whatever_is_silent(
    history: list[Event], policy: DeadlinePolicy, pace: int
) -> None:
    run = Run()
    for n, each in enumerate(history):
        run.take(msgspec.structs.replace(each, appended=BEGUN + n * pace))
    wait_to_the_end(run, ORDER_ID, policy, BEGUN + len(history) * pace)
    order = run.order
    assert has_ended(order, ORDER_ID) or anomalies(order, ORDER_ID)


LIFE = [
    event("order.paid", {**VALID["order.paid"], "amount": "40.00"}, 1),
    *(event("stock.reserved", _reply(seller)) for seller in (ANNA, BORIS)),
    *(_scan(1, ANNA, 1, status) for status in ("pending", "in_transit", "delivered")),
    *(_scan(2, ANNA, 2, status) for status in ("in_transit", "delivered")),
    *(_scan(n, BORIS, 3, status) for n in (3, 4) for status in ("in_transit", "delivered")),
    *(
        event("order.returned", {**VALID["order.returned"], "status": status}, 9)
        for status in ("requested", "processed")
    ),
    event("refund.completed", _refund(0)),
]
"""What is told of an order of two sellers that goes as it should."""
ODD = [
    event("order.cancel_requested", {"order_id": ORDER, "reason": "late", "seller_id": BORIS}, 2),
    *(event("stock.released", _reply(seller)) for seller in (ANNA, BORIS)),
    _scan(1, ANNA, 1, "returned"),
    event("refund.failed", _refund(0)),
]
"""What may be told as well."""


@examples(400)
@given(
    st.sets(st.sampled_from(range(len(LIFE))), max_size=4),
    st.sets(st.sampled_from(range(len(ODD))), max_size=2),
    POLICIES,
)
def test_an_order_ends_or_is_told_whoever_falls_silent(
    missing: set[int], odd: set[int], policy: DeadlinePolicy
) -> None:
    run, order_id = Run(), raw(ORDER)
    placed = event("order.created", created(line(1), line(2), line(3, BORIS, quantity=2)))
    happened = [each for n, each in enumerate(LIFE) if n not in missing] + [ODD[n] for n in odd]
    for n, each in enumerate([placed, *happened]):
        run.take(msgspec.structs.replace(each, appended=BEGUN + n))
    wait_to_the_end(run, order_id, policy, BEGUN + len(happened))
    assert has_ended(run.order, order_id) or anomalies(run.order, order_id)


def wait_to_the_end(run: Run, order_id: bytes, policy: DeadlinePolicy, clock: int) -> None:
    """Nothing more arrives, and every deadline passes."""
    for _ in range(1_000):
        run.take_all([])
        order = run.order
        waits = pending(order, order_id, policy)
        if not waits:
            return
        due = min(waits, key=lambda each: each.at)
        clock = max(clock, due.at)
        value, headers = effects.deadline_passed(due, order_id)
        run.take(events.decode("orders.decisions", headers, value, clock))
        assert run.order.version > order.version, f"{due} passed again"
    raise AssertionError("it waits for ever")
