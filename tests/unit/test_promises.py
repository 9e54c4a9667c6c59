"""Promises: until when a seller ships and delivers, what follows when it doesn't, and how orders end then."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from contracts.errors import Refused
from domain import effects, events
from domain.anomalies import anomalies
from domain.deadlines import pending
from domain.enums import ClosedBecause, DeadlineKind
from domain.shapes import DeadlinePolicy, Due, Event
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    OrderBuilder,
    day,
    event,
    item_id,
    line,
    made_id,
    raw,
    returned,
)

T0 = 1_767_225_600_000
"""Midnight of the first of January 2026, ms: hour 0 of tests.unit.builders."""
HOUR = 3_600_000
DAY = 24 * HOUR
POLICY = DeadlinePolicy(
    payment=0,
    stock=0,
    stock_asks=1,
    release=DAY,
    release_asks=2,
    label=0,
    label_asks=1,
    refund=0,
    refund_asks=1,
    history=DAY,
    ship=7 * DAY,
    deliver=30 * DAY,
    ship_cancel=2 * DAY,
    return_=14 * DAY,
    refund_retry=DAY,
    refund_attempts=3,
)
NAMES = {
    raw(ANNA): "anna",
    raw(BORIS): "boris",
    raw(returned(1)): "return",
    raw(made_id("refund:0")): "refund:0",
}


class Timed(OrderBuilder):
    """An order whose records are appended at T0 + `clock` ms."""

    def __init__(self, policy: DeadlinePolicy = POLICY) -> None:
        super().__init__()
        self.policy = policy
        self.clock = 0

    def take(self, event: Event, offset: int | None = None) -> Any:
        return super().take(msgspec.structs.replace(event, appended=T0 + self.clock), offset)

    def waits(self) -> set[tuple[float, str, str | None]]:
        """(days after T0, what, whose)"""
        here = pending(self.order, raw(ORDER), self.policy)
        return {
            ((d.at - T0) / DAY, d.what.text, None if d.subject is None else NAMES[d.subject]) for d in here
        }

    def let_pass(self, what: str, whose: str | None = None) -> Due:
        """The clock reaches the next deadline of this kind: its record is written, and comes back."""
        here = [
            d
            for d in pending(self.order, raw(ORDER), self.policy)
            if d.what.text == what and (whose is None or NAMES[d.subject or b""] == whose)
        ]
        due = min(here, key=lambda d: (d.at, d.subject or b""))
        self.clock = due.at - T0
        self.take(comes_back(due))
        return due

    def told(self) -> list[str]:
        return [each for each in anomalies(self.order, raw(ORDER)) if not each.startswith("overpaid")]


def comes_back(due: Due) -> Event:
    value, headers = effects.deadline_passed(due, raw(ORDER))
    return events.decode("orders.decisions", headers, value)


def paid(*lines: Any, policy: DeadlinePolicy = POLICY) -> Timed:
    """An order placed at T0 and paid an hour later."""
    builder = Timed(policy)
    builder.create(*lines)
    builder.clock = HOUR
    assert builder.order.created is not None
    amount = builder.order.created.total
    builder.pay(f"{amount // 100}.{amount % 100:02d}")
    return builder


H = 1 / 24


# -- when it is due --------------------------------------------------------------------------------------


def test_a_confirmed_order_is_shipped_within_a_week_where_nobody_promised() -> None:
    builder = paid(line(1), line(2, BORIS))
    assert builder.waits() == {(7 + H, "ship", "anna"), (7 + H, "ship", "boris")}


def test_an_order_that_is_not_confirmed_waits_for_no_parcel() -> None:
    builder = Timed()
    builder.create(line(1, ship_by=day(2)))
    assert builder.waits() == set()


def test_a_lines_promise_counts_instead_and_each_line_has_its_own() -> None:
    builder = paid(line(1, ship_by=day(3)), line(2, ship_by=day(2)), line(3))
    assert builder.waits() == {(1, "ship", "anna")}
    assert builder.now.suborders[0].ship_by == (T0 + DAY) * 1000
    builder.scan("in_transit", items={2: 1})
    assert builder.waits() == {(2, "ship", "anna"), (30 + H, "deliver", "anna")}
    builder.scan("in_transit", n=2, items={1: 1})
    assert (7 + H, "ship", "anna") in builder.waits()


@pytest.mark.parametrize("late", [False, True])
def test_of_promises_the_latest_by_time_counts_for_each_field_in_any_order(late: bool) -> None:
    builder = paid(line(1, ship_by=day(2), deliver_by=day(3)))
    promises: list[dict[str, int]] = [{"hour": 3, "ship_by": 12}, {"hour": 4, "deliver_by": 20}]
    for promise in reversed(promises) if late else promises:
        builder.promise(ANNA, **promise)
    builder.promise(hour=2, ship_by=8, deliver_by=9)
    part = builder.now.suborders[0]
    assert (part.ship_by, part.deliver_by) == ((T0 + 12 * HOUR) * 1000, (T0 + 20 * HOUR) * 1000)
    assert builder.waits() == {(0.5, "ship", "anna")}


def test_a_promise_that_was_past_when_the_order_was_confirmed_passes_then() -> None:
    builder = paid(line(1, ship_by="0001-01-01T00:00:00Z"))
    assert builder.waits() == {(H, "ship", "anna")}


def test_delivery_is_waited_for_from_the_sellers_last_parcel_on() -> None:
    builder = paid(line(1, quantity=3))
    builder.clock = DAY
    builder.scan("in_transit", items={1: 1})
    builder.clock = 3 * DAY
    builder.scan("in_transit", n=2, items={1: 1})
    builder.clock = 4 * DAY
    builder.scan("in_transit", n=2, hour=3, items={1: 1})
    assert builder.waits() == {(7 + H, "ship", "anna"), (33, "deliver", "anna")}
    builder.scan("delivered", items={1: 1}, hour=3)
    builder.scan("delivered", n=2, items={1: 1}, hour=4)
    assert builder.waits() == {(7 + H, "ship", "anna")}


def test_a_setting_of_0_waits_for_promises_alone() -> None:
    policy = DeadlinePolicy(0, 0, 1, 0, 1, 0, 1, 0, 1, DAY)
    assert paid(line(1), policy=policy).waits() == set()
    builder = paid(line(1, ship_by=day(2)), line(2), policy=policy)
    assert builder.waits() == {(1, "ship", "anna")}
    builder.scan("in_transit", items={1: 1})
    assert builder.waits() == set()


def test_history_waits_for_nothing() -> None:
    builder = Timed()
    builder.clock = 2 * DAY
    builder.create(line(1, ship_by=day(2)))
    builder.pay("10.00")
    assert builder.waits() == set()


def test_a_cancelled_sellers_parcels_are_not_waited_for() -> None:
    builder = paid(line(1, ship_by=day(2)), line(2, BORIS))
    builder.cancel(ANNA)
    assert builder.waits() == {(1 + H, "release", "anna"), (7 + H, "ship", "boris")}
    builder.cancel()
    assert {what for _, what, _ in builder.waits()} == {"release"}


# -- what follows ------------------------------------------------------------------------------------------


def test_a_seller_that_ships_too_late_is_told_of_once_and_is_late_until_it_ships() -> None:
    builder = paid(line(1, quantity=3, ship_by=day(2)))
    builder.let_pass("ship")
    (late,) = builder.published("suborder.late")
    assert late == {
        "suborder_id": made_id(f"suborder:{ANNA}"),
        "order_id": ORDER,
        "seller_id": ANNA,
        "what": "ship",
        "due": day(2),
        "units": 3,
        "version": 3,
    }
    assert builder.now.suborders[0].late_since == (T0 + DAY) * 1000
    assert builder.told() == [f"late_to_ship: seller {ANNA}: 3 not in transit, due {day(2)}"]
    assert {what for _, what, _ in builder.waits()} == {"unshipped"}
    builder.scan("in_transit", items={1: 2})
    assert builder.told() == [f"late_to_ship: seller {ANNA}: 1 not in transit, due {day(2)}"]
    builder.scan("in_transit", n=2, items={1: 1})
    assert builder.told() == []
    assert builder.now.suborders[0].late_since is None


def test_lines_with_a_promise_and_lines_without_one_are_late_together() -> None:
    """Three units without a promise are due on the 8th, and two on the 10th."""
    builder = paid(line(1, quantity=2, ship_by=day(10)), line(2, quantity=3))
    builder.let_pass("ship")
    assert builder.told() == [f"late_to_ship: seller {ANNA}: 3 not in transit, due 2026-01-08T01:00:00+00:00"]
    builder.let_pass("ship")
    assert builder.told() == [f"late_to_ship: seller {ANNA}: 5 not in transit, due 2026-01-08T01:00:00+00:00"]


def test_a_later_promise_ends_lateness_until_it_passes_too() -> None:
    builder = paid(line(1))
    builder.let_pass("ship")
    assert builder.told()
    builder.send("promise.updated", 5, seller_id=ANNA, ship_by=day(20))
    assert (builder.told(), builder.now.suborders[0].late_since) == ([], None)
    builder.let_pass("ship")
    assert builder.clock == 19 * DAY
    assert len(builder.published("suborder.late")) == 2
    assert builder.now.suborders[0].late_since == (T0 + 19 * DAY) * 1000
    builder.send("promise.updated", 6, seller_id=ANNA, ship_by=day(10))
    assert builder.told() == [f"late_to_ship: seller {ANNA}: 1 not in transit, due 2026-01-20T00:00:00+00:00"]
    assert "ship" not in {what for _, what, _ in builder.waits()}


def test_a_deadline_that_comes_back_after_the_parcel_left_tells_nobody() -> None:
    builder = paid(line(1))
    (due,) = [each for each in pending(builder.order, raw(ORDER), POLICY) if each.what.text == "ship"]
    builder.scan("in_transit")
    builder.take(comes_back(due))
    assert builder.published("suborder.late") == []
    assert builder.told() == []


def test_a_deadline_counts_once_by_what_was_due() -> None:
    builder = paid(line(1))
    due = builder.let_pass("ship")
    version = builder.order.version
    builder.take(comes_back(due))
    assert builder.order.version == version
    assert len(builder.published("suborder.late")) == 1


def test_units_that_are_not_delivered_in_time_make_their_seller_late() -> None:
    builder = paid(line(1, quantity=2, deliver_by=day(5)))
    builder.scan("in_transit")
    builder.let_pass("deliver")
    (late,) = builder.published("suborder.late")
    assert (late["what"], late["due"], late["units"]) == ("deliver", day(5), 2)
    assert builder.told() == [f"late_to_deliver: seller {ANNA}: 2 not delivered, due {day(5)}"]
    assert builder.waits() == set()
    builder.scan("delivered", hour=3)
    assert builder.told() == []


def test_what_is_never_shipped_is_asked_back_and_closes_the_sellers_part() -> None:
    builder = paid(line(1, quantity=2), line(2, BORIS))
    builder.scan("in_transit", n=2, seller=BORIS)
    builder.let_pass("ship")
    builder.let_pass("unshipped")
    (release,) = builder.published("stock.release")
    assert (release["seller_id"], release["items"][0]["quantity"]) == (ANNA, 2)
    assert {(what, whose) for _, what, whose in builder.waits()} == {
        ("release", "anna"),
        ("deliver", "boris"),
    }
    builder.let_pass("release")
    assert len(builder.published("stock.release")) == 2
    builder.let_pass("release")
    assert sorted(each.partition(":")[0] for each in builder.told()) == ["late_to_ship", "release_unanswered"]
    builder.stock("released", hour=9)
    anna = builder.now.suborders[0]
    assert anna.because is ClosedBecause.NOT_SHIPPED
    assert builder.published("suborder.updated")[-1]["closed_because"] == "not_shipped"
    assert builder.told() == []
    assert builder.settle().published("refund.request")[0]["amount"] == "20.00"


@pytest.mark.parametrize("first", ["cancelled", "payment_overdue"])
def test_a_cancellation_and_an_overdue_payment_are_the_reason_rather_than_that_nobody_shipped(
    first: str,
) -> None:
    builder = paid(line(1))
    builder.let_pass("ship")
    builder.let_pass("unshipped")
    if first == "cancelled":
        builder.cancel()
    else:
        builder.take(comes_back(Due(T0, DeadlineKind.PAYMENT, None, 1, True)))
    builder.stock("released")
    assert builder.now.suborders[0].because.text == first


def test_only_late_lines_are_asked_back() -> None:
    builder = paid(line(1, ship_by=day(2)), line(2, ship_by=day(30)))
    builder.let_pass("ship")
    builder.let_pass("unshipped")
    (release,) = builder.published("stock.release")
    assert [each["item_id"] for each in release["items"]] == [item_id(1)]
    assert builder.waits() == {(29, "ship", "anna"), (4, "release", "anna")}
    builder.let_pass("release")
    again = builder.published("stock.release")[-1]
    assert [each["item_id"] for each in again["items"]] == [item_id(1)]
    builder.stock("released", items={1: 1})
    assert builder.waits() == {(29, "ship", "anna")}


def test_a_return_that_nobody_judges_is_overdue() -> None:
    builder = paid(line(1))
    builder.scan("delivered")
    builder.clock = 10 * DAY
    builder.give_back("requested")
    assert builder.waits() == {(24, "return", "return")}
    builder.let_pass("return")
    assert builder.told() == [f"return_overdue: return {returned(1)}: neither processed nor rejected"]
    assert builder.waits() == set()
    builder.give_back("rejected", hour=6)
    assert builder.told() == []


# -- refunds that fail ---------------------------------------------------------------------------------------


def refunded(policy: DeadlinePolicy = POLICY) -> Timed:
    builder = paid(line(1), policy=policy)
    builder.scan("delivered")
    builder.give_back("processed")
    builder.settle()
    builder.clock = 20 * DAY
    return builder


def fail(builder: Timed, attempt: int | None = None, verb: str = "failed", hour: int = 9) -> None:
    more = {} if attempt is None else {"attempt": attempt}
    builder.send(f"refund.{verb}", hour, refund_id=made_id("refund:0"), **more)


def test_a_refund_that_fails_is_asked_for_again_as_often_as_set() -> None:
    builder = refunded()
    fail(builder)
    assert builder.told() == [f"refund_failed: refund {made_id('refund:0')}"]
    assert builder.waits() == {(21, "refund_retry", "refund:0")}
    builder.let_pass("refund_retry")
    first, second = builder.published("refund.request")
    assert first["attempt"] == 1
    assert second == first | {"attempt": 2}
    names = [each.ce_name for each in builder.derived if each.type == "refund.request"]
    refund = made_id("refund:0")
    assert names == [f"refund.request:{refund}", f"refund.request:{refund}:2"]
    assert builder.waits() == set()
    fail(builder, 2)
    builder.let_pass("refund_retry")
    assert builder.published("refund.request")[-1]["attempt"] == 3
    fail(builder, 3)
    assert builder.waits() == set()
    assert builder.told() == [f"refund_failed: refund {refund}"]


UNANSWERED = msgspec.structs.replace(POLICY, refund=2 * DAY, refund_asks=3, refund_retry=DAY)


def asked_again(policy: DeadlinePolicy = UNANSWERED) -> Timed:
    """A refund whose first attempt failed, asked for the second time at day 21."""
    builder = refunded(policy)
    fail(builder)
    builder.let_pass("refund_retry")
    return builder


def test_a_later_attempt_that_nobody_answers_is_asked_for_again_as_the_first_is() -> None:
    """Under the same attempt, which may have been paid: a payment service pays one attempt once."""
    builder = asked_again()
    assert builder.waits() == {(23, "refund", "refund:0")}
    assert not builder.let_pass("refund").final
    assert builder.waits() == {(25, "refund", "refund:0")}
    builder.let_pass("refund")
    second, *again = builder.published("refund.request")[1:]
    assert second["attempt"] == 2
    assert again == [second, second]
    names = [each.ce_name for each in builder.derived if each.type == "refund.request"]
    assert names == [f"refund.request:{made_id('refund:0')}", *[names[1]] * 3]
    assert builder.let_pass("refund").final
    assert builder.published("refund.request")[3:] == [second]
    assert builder.waits() == set()
    assert builder.told() == [f"refund_failed: refund {made_id('refund:0')}"]


@pytest.mark.parametrize("verb", ["completed", "failed"])
@pytest.mark.parametrize("passed", [0, 1, 3])
def test_a_later_attempt_that_is_answered_is_not_waited_for(verb: str, passed: int) -> None:
    builder = asked_again()
    for _ in range(passed):
        builder.let_pass("refund")
    fail(builder, 2, verb)
    retried = {(builder.clock / DAY + 1, "refund_retry", "refund:0")}
    assert builder.waits() == (retried if verb == "failed" else set())


def test_a_refund_that_any_attempt_paid_is_not_waited_for() -> None:
    builder = asked_again()
    fail(builder, 1, "completed")
    assert builder.waits() == set()


def test_each_attempt_is_asked_for_as_often_as_the_first() -> None:
    """Whatever was waited for before it: its numbers go on."""
    builder = refunded(UNANSWERED)
    numbers = [builder.let_pass("refund").attempt for _ in range(3)]
    assert builder.waits() == set(), "given up"
    for attempt in (1, 2):
        fail(builder, attempt)
        builder.let_pass("refund_retry")
        passed = [builder.let_pass("refund") for _ in range(3)]
        assert [each.final for each in passed] == [False, False, True]
        numbers += [each.attempt for each in passed]
    assert numbers == list(range(1, 10))
    assert [each["attempt"] for each in builder.published("refund.request")] == [1] * 3 + [2] * 3 + [3] * 3
    assert builder.waits() == set()


def test_a_deadline_that_comes_back_after_the_refund_was_paid_asks_for_nothing_new() -> None:
    """Its record was written before the answer was read: the request has the id of one that left before."""
    builder = asked_again()
    late = comes_back(next(iter(pending(builder.order, raw(ORDER), UNANSWERED))))
    fail(builder, 2, "completed")
    builder.take(late)
    assert builder.published("refund.request")[2:] == builder.published("refund.request")[1:2]
    assert builder.waits() == set()


def test_the_first_request_says_that_it_is_the_first() -> None:
    """But not that of a decision of an earlier version: it stays as it was."""
    before = refunded().order.decisions[0]
    for decision, said in ((before, [1, 2]), (msgspec.structs.replace(before, allocations=None), [None, 2])):
        builder = paid(line(1))
        builder.take(
            Event("refund.decided", raw(ORDER), msgspec.structs.replace(decision), "e", decision.time, None)
        )
        fail(builder)
        builder.let_pass("refund_retry")
        assert [each.get("attempt") for each in builder.published("refund.request")] == said


def test_a_refund_that_is_paid_is_not_asked_for_again() -> None:
    builder = refunded()
    fail(builder)
    fail(builder, 1, "completed")
    assert builder.waits() == set()
    assert builder.told() == []


def test_a_refund_of_which_two_attempts_are_paid_is_told() -> None:
    builder = refunded()
    fail(builder)
    builder.let_pass("refund_retry")
    fail(builder, None, "completed")
    fail(builder, 1, "completed", hour=8)
    assert builder.told() == []
    fail(builder, 2, "completed")
    assert builder.told() == [f"refund_paid_twice: refund {made_id('refund:0')}: 2 attempts were paid out"]


def test_a_failure_that_another_version_took_in_is_not_retried() -> None:
    builder = refunded()
    builder.clock = -T0
    fail(builder)
    assert builder.waits() == set()


# -- what came back ------------------------------------------------------------------------------------------


def test_units_that_a_parcel_brought_back_are_told_until_a_processed_return_names_them() -> None:
    builder = paid(line(1, quantity=3))
    builder.scan("returned", items={1: 2})
    came_back = f"came_back: item {item_id(1)}: 2 of it came back, and no processed return names them"
    assert builder.told() == [came_back]
    builder.give_back("processed", quantity=1)
    assert builder.told() == [came_back.replace("2 of it", "1 of it")]
    builder.give_back("processed", n=2, quantity=1)
    assert builder.told() == []


def test_a_promise_of_a_stranger_is_refused() -> None:
    builder = paid(line(1))
    builder.promise(STRANGER, ship_by=9)
    assert [code for code, _ in builder.refused] == ["order_seller"]
    waiting = OrderBuilder()
    waiting.promise(STRANGER, ship_by=9)
    waiting.create(line(1))
    (late,) = waiting.late
    assert effects.normalised(late, raw(ORDER)) == msgspec.json.encode(
        {
            "type": "promise.updated",
            "time": "2026-01-01T01:00:00+00:00",
            "data": {"order_id": ORDER, "seller_id": STRANGER, "ship_by": "2026-01-01T09:00:00+00:00"},
        }
    )


@pytest.mark.parametrize("verb", ["completed", "failed"])
@pytest.mark.parametrize("attempt", [0, 101, -1, 1.5, "2", None])
def test_an_attempt_that_cannot_be_is_refused(verb: str, attempt: Any) -> None:
    data = {"order_id": ORDER, "refund_id": made_id("refund:0"), "attempt": attempt}
    with pytest.raises(Refused, match=r"\$\.attempt") as refusal:
        event(f"refund.{verb}", data | ({"reason": "closed"} if verb == "failed" else {}))
    assert refusal.value.code == "field_malformed"
    for good in (1, 100):
        event(f"refund.{verb}", data | {"attempt": good, "reason": "closed"})
