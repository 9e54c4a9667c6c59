"""What facts amount to: units, statuses, shares of a discount, refunds owed, anomalies (docs/rules.md)."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import ids
from domain import events
from domain.shapes import Event
from domain.totals import winning_scans, winning_stages
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    Data,
    OrderBuilder,
    item_id,
    line,
    made_id,
    parcel,
    raw,
    record,
    returned,
)

Told = tuple[Any, ...]


def built(lines: list[Data], *events: Told, **more: Any) -> OrderBuilder:
    """An order of these lines; each event is (method of OrderBuilder, arguments..., keywords)."""
    builder = OrderBuilder()
    builder.create(*lines, **more)
    for name, *arguments in events:
        keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        getattr(builder, name)(*arguments, **keywords)
    return builder


def units(builder: OrderBuilder, n: int = 1) -> tuple[int, int, int, int, int]:
    """(live, gone, in transit, delivered, returned) of line n."""
    view = next(each for each in builder.now.lines if each.item_id == raw(item_id(n)))
    return view.live, view.gone, view.in_transit, view.delivered, view.returned


THREE = [line(1, quantity=3)]

# -- units ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        pytest.param([], (3, 0, 0, 0, 0), id="as ordered"),
        pytest.param([("scan", "pending")], (3, 0, 0, 0, 0), id="a pending parcel moves nothing"),
        pytest.param(
            [("scan", "in_transit")],
            (3, 0, 3, 0, 0),
            id="a parcel without items holds all the seller's units",
        ),
        pytest.param([("scan", "in_transit", {"items": {1: 2}})], (3, 0, 2, 0, 0), id="a part is on its way"),
        pytest.param(
            [("scan", "in_transit", {"items": {}})], (3, 0, 0, 0, 0), id="an empty parcel holds nothing"
        ),
        pytest.param([("scan", "delivered")], (3, 0, 3, 3, 0), id="delivered is in transit too"),
        pytest.param([("scan", "returned")], (3, 0, 3, 3, 3), id="returned is delivered too"),
        pytest.param(
            [("scan", "in_transit", {"items": {1: 5}})], (3, 0, 3, 0, 0), id="no more than there are"
        ),
        pytest.param(
            [("scan", "delivered", {"items": {1: 1}}), ("scan", "in_transit", 2, {"items": {1: 1}})],
            (3, 0, 2, 1, 0),
            id="two parcels add up",
        ),
        pytest.param(
            [("scan", "delivered", {"items": {1: 2}}), ("scan", "delivered", 2, {"items": {1: 2}})],
            (3, 0, 3, 3, 0),
            id="two parcels overlap",
        ),
        pytest.param(
            [("scan", "delivered", 1, 3), ("scan", "in_transit", 1, 9)],
            (3, 0, 3, 3, 0),
            id="the highest rank wins over a later one",
        ),
        pytest.param(
            [
                ("scan", "in_transit", 1, 3, {"items": {1: 1}}),
                ("scan", "in_transit", 1, 2, {"items": {1: 3}}),
            ],
            (3, 0, 1, 0, 0),
            id="at one rank the latest scan's items count",
        ),
        pytest.param(
            [("scan", "in_transit", 1, 2, {"items": {1: 3}}), ("scan", "delivered", 1, 3, {"items": {1: 1}})],
            (3, 0, 1, 1, 0),
            id="the winning scan's items replace those of the others",
        ),
        pytest.param([("stock", "reserved")], (3, 0, 0, 0, 0), id="a reservation changes nothing"),
        pytest.param([("stock", "rejected")], (0, 3, 0, 0, 0), id="rejected without items: all"),
        pytest.param([("stock", "released", {"items": {1: 1}})], (2, 1, 0, 0, 0), id="one released"),
        pytest.param([("stock", "released", {"items": {}})], (3, 0, 0, 0, 0), id="none released"),
        pytest.param(
            [("stock", "rejected", {"items": {1: 1}}), ("stock", "released", {"items": {1: 1}})],
            (1, 2, 0, 0, 0),
            id="rejected + released",
        ),
        pytest.param(
            [("stock", "released", {"items": {1: 1}}), ("stock", "released", {"items": {1: 2}})],
            (0, 3, 0, 0, 0),
            id="both releases count",
        ),
        pytest.param(
            [("stock", "released", {"items": {1: 9}})], (0, 3, 0, 0, 0), id="no more gone than there are"
        ),
        pytest.param(
            [("stock", "rejected"), ("stock", "released")], (0, 3, 0, 0, 0), id="gone twice is gone"
        ),
        pytest.param(
            [("scan", "in_transit", {"items": {1: 2}}), ("stock", "released")],
            (2, 3, 2, 0, 0),
            id="what is on its way stays live",
        ),
        pytest.param(
            [("scan", "in_transit", {"items": {1: 1}}), ("stock", "released", {"items": {1: 2}})],
            (1, 2, 1, 0, 0),
            id="one left, one on its way",
        ),
        pytest.param(
            [("scan", "pending"), ("stock", "released")], (0, 3, 0, 0, 0), id="a pending parcel saves nothing"
        ),
        pytest.param([("give_back", "requested")], (3, 0, 0, 0, 0), id="a request turns nothing"),
        pytest.param([("give_back", "rejected")], (3, 0, 0, 0, 0), id="a rejection turns nothing"),
        pytest.param(
            [("give_back", "processed", {"quantity": 1})], (3, 0, 1, 1, 1), id="a return before any parcel"
        ),
        pytest.param([("give_back", "processed")], (3, 0, 3, 3, 3), id="a return without quantity: the line"),
        pytest.param(
            [("give_back", "processed", {"quantity": 9})],
            (3, 0, 3, 3, 3),
            id="no more returned than there are",
        ),
        pytest.param(
            [("scan", "delivered", {"items": {1: 2}}), ("give_back", "processed", {"quantity": 1})],
            (3, 0, 2, 2, 1),
            id="a delivered unit is turned first",
        ),
        pytest.param(
            [
                ("scan", "delivered", {"items": {1: 1}}),
                ("scan", "in_transit", 2, {"items": {1: 1}}),
                ("give_back", "processed", {"quantity": 2}),
            ],
            (3, 0, 2, 2, 2),
            id="then one in transit",
        ),
        pytest.param(
            [
                ("scan", "returned", {"items": {1: 1}}),
                ("scan", "delivered", 2, {"items": {1: 2}}),
                ("give_back", "processed", {"quantity": 1}),
            ],
            (3, 0, 3, 3, 2),
            id="one sent back by the carrier is not turned again",
        ),
        pytest.param(
            [("give_back", "processed", 1, {"quantity": 1}), ("give_back", "processed", 2, {"quantity": 1})],
            (3, 0, 2, 2, 2),
            id="two returns add up",
        ),
        pytest.param(
            [("give_back", "processed", {"quantity": 1}), ("stock", "released")],
            (0, 3, 1, 1, 1),
            id="a return alone keeps no unit live",
        ),
    ],
)
def test_units_of_a_line(events: list[Told], expected: tuple[int, ...]) -> None:
    assert units(built(THREE, *events)) == expected


def test_a_sellers_events_leave_the_others_lines_alone() -> None:
    builder = built(
        [line(1, ANNA, 2), line(2, BORIS, 2), line(3, ANNA, 1)],
        ("scan", "delivered"),
        ("stock", "rejected", BORIS),
    )
    assert [units(builder, n) for n in (1, 2, 3)] == [(2, 0, 2, 2, 0), (0, 2, 0, 0, 0), (1, 0, 1, 1, 0)]


def test_the_winning_scans_seller_and_tracking_count() -> None:
    builder = built(
        [line(1, ANNA), line(2, BORIS)],
        ("scan", "in_transit", 1, 2, {"tracking_number": "T1", "carrier": "Alba"}),
        ("scan", "delivered", 1, 1, {"seller": BORIS, "tracking_number": "T2"}),
    )
    winner = winning_scans(builder.order)[raw(parcel(1))]
    assert (winner.seller_id, winner.tracking_number, winner.carrier) == (raw(BORIS), "T2", None)
    assert [units(builder, n)[3] for n in (1, 2)] == [0, 1]


# -- status of an order --------------------------------------------------------------------------------------

TWO = [line(1, ANNA, 1, "10.00", shipping_amount="2.00"), line(2, BORIS, 1, "30.00", shipping_amount="3.00")]
PAID: Told = ("pay", "45.00")


@pytest.mark.parametrize(
    ("events", "status"),
    [
        pytest.param([], "pending", id="nothing yet"),
        pytest.param([("pay", "44.99")], "pending", id="a cent is missing"),
        pytest.param([PAID], "confirmed", id="paid"),
        pytest.param([("pay", "20.00", 1), ("pay", "25.00", 2)], "confirmed", id="paid in two"),
        pytest.param([("pay", "50.00")], "confirmed", id="paid too much"),
        pytest.param([("pay", "22.50", 1), ("pay", "22.50", 1)], "pending", id="one payment twice is one"),
        pytest.param(
            [PAID, ("send", "payment.failed", {"payment_id": parcel(1), "reason": "r"})],
            "confirmed",
            id="a failure takes nothing back",
        ),
        pytest.param(
            [("stock", "reserved"), ("stock", "reserved", BORIS)], "pending", id="reserved is not paid"
        ),
        pytest.param(
            [("pay", "12.00"), ("stock", "rejected", BORIS)], "confirmed", id="what is live is paid"
        ),
        pytest.param(
            [("pay", "11.99"), ("stock", "rejected", BORIS)], "pending", id="what is live is not paid"
        ),
        pytest.param(
            [("pay", "12.00"), ("stock", "rejected"), ("stock", "rejected", BORIS)],
            "pending",
            id="none live: all units count",
        ),
        pytest.param(
            [PAID, ("stock", "rejected"), ("stock", "rejected", BORIS)],
            "confirmed",
            id="none live, all paid: its last true milestone",
        ),
        pytest.param([PAID, ("cancel",)], "confirmed", id="a request to cancel is only a request"),
        pytest.param([("scan", "pending")], "pending", id="a parcel that waits"),
        pytest.param([("scan", "in_transit")], "shipped", id="shipped though nobody paid"),
        pytest.param([PAID, ("scan", "in_transit")], "shipped", id="one of two parcels left"),
        pytest.param([PAID, ("scan", "delivered")], "shipped", id="one of two delivered"),
        pytest.param(
            [PAID, ("scan", "delivered"), ("scan", "in_transit", 2, {"seller": BORIS})],
            "shipped",
            id="one delivered, one on its way",
        ),
        pytest.param(
            [PAID, ("scan", "delivered"), ("scan", "delivered", 2, {"seller": BORIS})],
            "delivered",
            id="both delivered",
        ),
        pytest.param(
            [PAID, ("scan", "delivered"), ("stock", "rejected", BORIS)],
            "delivered",
            id="what is live is delivered",
        ),
        pytest.param(
            [("scan", "delivered"), ("scan", "delivered", 2, {"seller": BORIS})],
            "delivered",
            id="delivered though nobody paid",
        ),
        pytest.param(
            [PAID, ("scan", "delivered"), ("scan", "returned", 2, {"seller": BORIS})],
            "delivered",
            id="delivered or returned",
        ),
        pytest.param(
            [PAID, ("scan", "returned"), ("scan", "returned", 2, {"seller": BORIS})],
            "returned",
            id="all back to their senders",
        ),
        pytest.param(
            [PAID, ("scan", "returned"), ("stock", "released", BORIS)],
            "returned",
            id="what is live is returned",
        ),
        pytest.param(
            [
                PAID,
                ("scan", "delivered"),
                ("scan", "delivered", 2, {"seller": BORIS}),
                ("give_back", "processed"),
            ],
            "delivered",
            id="one given back",
        ),
        pytest.param(
            [
                PAID,
                ("scan", "delivered"),
                ("scan", "delivered", 2, {"seller": BORIS}),
                ("give_back", "processed"),
                ("give_back", "processed", 2, {"item": 2}),
            ],
            "returned",
            id="both given back",
        ),
        pytest.param(
            [("give_back", "processed"), ("give_back", "processed", 2, {"item": 2})],
            "returned",
            id="given back before any scan",
        ),
        pytest.param(
            [("give_back", "requested"), ("give_back", "requested", 2, {"item": 2})],
            "pending",
            id="only asked to give back",
        ),
        pytest.param(
            [
                PAID,
                ("give_back", "processed"),
                ("give_back", "processed", 2, {"item": 2}),
                ("stock", "rejected"),
                ("stock", "rejected", BORIS),
            ],
            "confirmed",
            id="a failed order is never returned",
        ),
    ],
)
def test_status(events: list[Told], status: str) -> None:
    builder = built(TWO, *events)
    assert builder.status == status
    assert builder.now.status == builder.order.status


@pytest.mark.parametrize(
    ("lines", "events", "status"),
    [
        pytest.param([line(1, price="0")], [], "confirmed", id="an order that costs nothing is paid"),
        pytest.param(
            [line(1, quantity=3)],
            [("pay", "20.00"), ("stock", "rejected", {"items": {1: 1}})],
            "confirmed",
            id="two of three live",
        ),
        pytest.param(
            [line(1, quantity=3)],
            [("scan", "delivered", {"items": {1: 2}})],
            "shipped",
            id="two of three delivered",
        ),
        pytest.param(
            [line(1, quantity=3)],
            [("scan", "delivered", {"items": {1: 2}}), ("stock", "released", {"items": {1: 1}})],
            "delivered",
            id="and the third gone",
        ),
        pytest.param(
            [line(1, quantity=2, shipping_amount="5.00")],
            [("pay", "15.00"), ("stock", "rejected", {"items": {1: 1}})],
            "confirmed",
            id="shipping of a line with a live unit counts whole",
        ),
        pytest.param(
            [line(1, quantity=2, shipping_amount="5.00")],
            [("pay", "14.99"), ("stock", "rejected", {"items": {1: 1}})],
            "pending",
            id="and is due",
        ),
        pytest.param(
            [line(1, quantity=1), line(2, quantity=1, shipping_amount="5.00")],
            [("pay", "10.00"), ("stock", "rejected", {"items": {2: 1}})],
            "confirmed",
            id="shipping of a line without a live unit is not",
        ),
    ],
)
def test_status_by_live_units(lines: list[Data], events: list[Told], status: str) -> None:
    assert built(lines, *events).status == status


def test_a_discount_lowers_what_is_due_for_live_units() -> None:
    # 3 units of 10.00 with 5.00 off: shares 1.67, 1.67, 1.66. Two live ones cost 16.66.
    assert (
        built(THREE, ("stock", "rejected", {"items": {1: 1}}), ("pay", "16.66"), discount="5.00").status
        == "confirmed"
    )
    assert (
        built(THREE, ("stock", "rejected", {"items": {1: 1}}), ("pay", "16.65"), discount="5.00").status
        == "pending"
    )


def test_a_payment_in_another_currency_pays_nothing() -> None:
    assert built(TWO, ("pay", "45.00", {"currency": "USD"})).status == "pending"


# -- status of suborders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "anna", "boris"),
    [
        pytest.param([], "pending", "pending", id="nothing yet"),
        pytest.param([PAID], "confirmed", "confirmed", id="an order is paid as a whole"),
        pytest.param([PAID, ("scan", "in_transit")], "shipped", "confirmed", id="one seller's parcel"),
        pytest.param([("scan", "delivered")], "delivered", "pending", id="delivered, unpaid"),
        pytest.param(
            [PAID, ("scan", "delivered"), ("give_back", "processed")],
            "returned",
            "confirmed",
            id="given back",
        ),
        pytest.param([PAID, ("stock", "rejected")], "closed", "confirmed", id="no live unit: closed"),
        pytest.param(
            [("stock", "rejected"), ("stock", "rejected", BORIS)], "closed", "closed", id="both closed"
        ),
    ],
)
def test_status_of_suborders(events: list[Told], anna: str, boris: str) -> None:
    assert [each.status.text for each in built(TWO, *events).now.suborders] == [anna, boris]


def test_suborders_count_live_units_alone() -> None:
    anna = built(
        [line(1, quantity=3, shipping_amount="1.00")],
        ("scan", "in_transit", {"items": {1: 1}}),
        ("stock", "released", {"items": {1: 1}}),
    )
    (suborder,) = anna.now.suborders
    assert (suborder.ordered, suborder.live, suborder.in_transit, suborder.delivered, suborder.returned) == (
        3,
        2,
        1,
        0,
        0,
    )
    assert (suborder.items_amount, suborder.shipping, suborder.discount, suborder.total) == (
        2000,
        100,
        0,
        2100,
    )


# -- status of a return --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "winner"),
    [
        pytest.param([("requested", 5)], "requested", id="requested"),
        pytest.param([("requested", 5), ("processed", 6)], "processed", id="processed"),
        pytest.param([("requested", 5), ("rejected", 6)], "rejected", id="rejected"),
        pytest.param([("requested", 9), ("processed", 6)], "processed", id="a later request is not final"),
        pytest.param(
            [("processed", 6), ("rejected", 7)], "processed", id="the earlier of the two: processed"
        ),
        pytest.param([("processed", 8), ("rejected", 7)], "rejected", id="the earlier of the two: rejected"),
        pytest.param([("rejected", 7), ("processed", 7)], "processed", id="at equal times processed"),
        pytest.param(
            [("processed", 8), ("rejected", 7), ("processed", 6)],
            "processed",
            id="of repetitions the earliest time stays",
        ),
    ],
)
@pytest.mark.parametrize("backwards", [False, True], ids=["in order", "backwards"])
def test_the_stage_that_wins(stages: list[tuple[str, int]], winner: str, backwards: bool) -> None:
    events: list[Told] = [("give_back", status, 1, hour) for status, hour in stages]
    builder = built(THREE, *(reversed(events) if backwards else events))
    assert ("requested", "processed", "rejected")[
        winning_stages(builder.order)[raw(returned(1))].status
    ] == winner


def test_item_and_quantity_are_those_of_the_winning_stage() -> None:
    builder = built(
        [line(1, quantity=2), line(2, quantity=2)],
        ("give_back", "requested", 1, 5, {"item": 1, "quantity": 2}),
        ("give_back", "processed", 1, 6, {"item": 2, "quantity": 1}),
    )
    assert [units(builder, n)[4] for n in (1, 2)] == [0, 1]


# -- discount ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "discount", "shares"),
    [
        pytest.param([line(1), line(2)], "0.01", [1, 0], id="a tie goes to the lower item_id"),
        pytest.param([line(2), line(1)], "0.01", [1, 0], id="whatever the order of the lines"),
        pytest.param([line(1), line(2), line(3)], "0.02", [1, 1, 0], id="ties among three"),
        pytest.param([line(1, price="10.00"), line(2, price="20.00")], "1.00", [33, 67], id="by price"),
        pytest.param([line(1, quantity=2), line(2)], "1.00", [67, 33], id="by price times quantity"),
        pytest.param([line(1, price="0"), line(2)], "1.00", [0, 100], id="nothing for what costs nothing"),
        pytest.param(
            [line(1, shipping_amount="90.00"), line(2)], "1.00", [50, 50], id="shipping has no share"
        ),
        pytest.param([line(1), line(2)], "20.00", [1000, 1000], id="all of it"),
        pytest.param([line(1), line(2)], None, [0, 0], id="none"),
    ],
)
def test_shares_of_a_discount(lines: list[Data], discount: str | None, shares: list[int]) -> None:
    assert [each.discount for each in built(lines, discount=discount).now.lines] == shares


def test_within_a_line_the_first_units_have_the_larger_share() -> None:
    (view,) = built(THREE, discount="0.05").now.lines
    assert [view.cost_of(number, number + 1) for number in range(3)] == [998, 998, 999]


def test_a_suborders_discount_is_that_of_its_live_units() -> None:
    (suborder,) = built(THREE, ("stock", "rejected", {"items": {1: 1}}), discount="0.05").now.suborders
    assert (suborder.items_amount, suborder.discount, suborder.total) == (2000, 4, 1996)


# -- refunds owed --------------------------------------------------------------------------------------------

Refund = tuple[int, str, str, list[tuple[str, int]], list[str]]


def refunds(builder: OrderBuilder) -> list[Refund]:
    """(amount, cause, cause_id, units, shipping) of all decisions, once all have come back."""
    builder.settle()
    return [
        (
            d.amount,
            d.cause.text,
            ids.text(d.cause_id),
            [(ids.text(item), n) for item, first, count in d.units for n in range(first, first + count)],
            [ids.text(item) for item in d.shipping],
        )
        for d in builder.order.decisions
    ]


def of(n: int, *numbers: int) -> list[tuple[str, int]]:
    return [(item_id(n), number) for number in numbers]


PAID_THREE: Told = ("pay", "30.00")


@pytest.mark.parametrize(
    ("lines", "events", "expected"),
    [
        pytest.param(THREE, [PAID_THREE], [], id="nothing happened"),
        pytest.param(THREE, [("pay", "40.00")], [], id="an overpayment on live units earns nothing"),
        pytest.param(
            THREE, [PAID_THREE, ("scan", "returned")], [], id="a return to sender earns nothing by itself"
        ),
        pytest.param(THREE, [PAID_THREE, ("give_back", "requested")], [], id="a request earns nothing"),
        pytest.param(THREE, [PAID_THREE, ("give_back", "rejected")], [], id="a rejection earns nothing"),
        pytest.param(THREE, [PAID_THREE, ("cancel",)], [], id="a cancellation earns nothing by itself"),
        pytest.param(
            THREE,
            [PAID_THREE, ("give_back", "processed", {"quantity": 2})],
            [(2000, "return", returned(1), of(1, 0, 1), [])],
            id="return: the lowest numbers",
        ),
        pytest.param(
            [line(1, quantity=3, shipping_amount="4.00")],
            [("pay", "34.00"), ("scan", "delivered"), ("give_back", "processed")],
            [(3000, "return", returned(1), of(1, 0, 1, 2), [])],
            id="return of a whole line: no shipping",
        ),
        pytest.param(
            THREE,
            [
                PAID_THREE,
                ("give_back", "processed", 1, {"quantity": 1}),
                ("give_back", "processed", 2, {"quantity": 1}),
            ],
            [(1000, "return", returned(1), of(1, 0), []), (1000, "return", returned(2), of(1, 1), [])],
            id="two returns, a unit each",
        ),
        pytest.param(
            THREE,
            [
                PAID_THREE,
                ("give_back", "processed", 1, {"quantity": 3}),
                ("give_back", "processed", 2, {"quantity": 1}),
            ],
            [(3000, "return", returned(1), of(1, 0, 1, 2), [])],
            id="more returns than units: each unit once",
        ),
        pytest.param(
            THREE,
            [
                PAID_THREE,
                ("give_back", "processed", 1, {"quantity": 2}),
                ("give_back", "processed", 2, {"quantity": 2}),
            ],
            [(2000, "return", returned(1), of(1, 0, 1), []), (1000, "return", returned(2), of(1, 2), [])],
            id="the second return has what is left",
        ),
        pytest.param(
            THREE,
            [PAID_THREE, ("stock", "rejected", {"items": {1: 2}})],
            [(2000, "stock", ANNA, of(1, 1, 2), [])],
            id="stock: the highest numbers",
        ),
        pytest.param(
            THREE,
            [PAID_THREE, ("stock", "rejected", {"items": {1: 1}}), ("stock", "released", {"items": {1: 1}})],
            [(1000, "stock", ANNA, of(1, 2), []), (1000, "stock", ANNA, of(1, 1), [])],
            id="stock: again when more units go",
        ),
        pytest.param(
            TWO,
            [PAID, ("stock", "rejected", BORIS)],
            [(3300, "stock", BORIS, of(2, 0), [item_id(2)])],
            id="stock: shipping of a line with no live unit",
        ),
        pytest.param(
            [line(1, quantity=2, shipping_amount="3.00")],
            [("pay", "23.00"), ("stock", "rejected", {"items": {1: 1}})],
            [(1000, "stock", ANNA, of(1, 1), [])],
            id="stock: not of a line with a live unit",
        ),
        pytest.param(
            [line(1, price="0", shipping_amount="3.00"), line(2, BORIS)],
            [("pay", "13.00"), ("stock", "rejected")],
            [(300, "stock", ANNA, of(1, 0), [item_id(1)])],
            id="stock: shipping of what costs nothing",
        ),
        pytest.param(
            [line(1, price="0"), line(2, BORIS)],
            [("pay", "10.00"), ("stock", "rejected")],
            [],
            id="never an amount of 0: stock",
        ),
        pytest.param(
            [line(1, price="0"), line(2, BORIS)],
            [("pay", "10.00"), ("give_back", "processed")],
            [],
            id="never an amount of 0: return",
        ),
        pytest.param(THREE, [("stock", "rejected")], [], id="never an amount of 0: closed"),
        pytest.param(
            THREE,
            [PAID_THREE, ("stock", "rejected")],
            [(3000, "closed", ORDER, [], [])],
            id="closed: all that was captured",
        ),
        pytest.param(
            THREE,
            [("stock", "rejected"), ("pay", "12.00")],
            [(1200, "closed", ORDER, [], [])],
            id="closed: money that comes later",
        ),
        pytest.param(
            THREE,
            [("stock", "rejected"), ("pay", "12.00"), ("settle",), ("pay", "5.00", 2)],
            [(1200, "closed", ORDER, [], []), (500, "closed", ORDER, [], [])],
            id="closed: whenever above 0",
        ),
        pytest.param(
            THREE,
            [
                ("pay", "40.00"),
                ("stock", "rejected", {"items": {1: 1}}),
                ("settle",),
                ("stock", "released", {"items": {1: 2}}),
            ],
            [(1000, "stock", ANNA, of(1, 2), []), (3000, "closed", ORDER, [], [])],
            id="closed: the overpayment too",
        ),
        pytest.param(
            THREE,
            [("pay", "9.99"), ("stock", "rejected", {"items": {1: 1}})],
            [],
            id="waits for captured money",
        ),
        pytest.param(
            THREE,
            [("pay", "9.99"), ("stock", "rejected", {"items": {1: 1}}), ("pay", "0.01", 2)],
            [(1000, "stock", ANNA, of(1, 2), [])],
            id="until it is there",
        ),
        pytest.param(
            TWO,
            [
                ("pay", "12.00"),
                ("give_back", "processed", 1, {"item": 1}),
                ("give_back", "processed", 2, {"item": 2}),
            ],
            [(1000, "return", returned(1), of(1, 0), [])],
            id="one that is covered does not wait for one that is not",
        ),
        pytest.param(
            TWO,
            [("pay", "30.00"), ("give_back", "processed", 2, {"item": 2}), ("stock", "rejected")],
            [(3000, "return", returned(2), of(2, 0), [])],
            id="captured less decided",
        ),
        pytest.param(
            THREE,
            [
                PAID_THREE,
                ("give_back", "processed", {"quantity": 1}),
                ("settle",),
                ("stock", "rejected", {"items": {1: 2}}),
            ],
            [(1000, "return", returned(1), of(1, 0), []), (2000, "stock", ANNA, of(1, 1, 2), [])],
            id="a return, then stock",
        ),
        pytest.param(
            THREE,
            [
                PAID_THREE,
                ("stock", "rejected", {"items": {1: 2}}),
                ("settle",),
                ("give_back", "processed", {"quantity": 3}),
            ],
            [(2000, "stock", ANNA, of(1, 1, 2), []), (1000, "return", returned(1), of(1, 0), [])],
            id="stock, then a return: a unit is paid for once",
        ),
    ],
)
def test_refunds(lines: list[Data], events: list[Told], expected: list[Refund]) -> None:
    assert refunds(built(lines, *events)) == expected


def test_a_return_is_paid_less_its_share_of_the_discount() -> None:
    assert (
        refunds(built(THREE, ("pay", "29.95"), ("give_back", "processed", {"quantity": 1}), discount="0.05"))[
            0
        ][0]
        == 998
    )
    assert (
        refunds(built(THREE, ("pay", "29.95"), ("stock", "rejected", {"items": {1: 1}}), discount="0.05"))[0][
            0
        ]
        == 999
    )


def test_each_seller_is_refunded_by_itself() -> None:
    builder = built(
        [line(1, ANNA, 2), line(2, BORIS, 2)], ("pay", "40.00"), ("stock", "rejected", {"items": {1: 1}})
    )
    builder.stock("rejected", BORIS, {2: 1})
    assert refunds(builder) == [(1000, "stock", ANNA, of(1, 1), []), (1000, "stock", BORIS, of(2, 1), [])]


def test_shipping_alone_is_not_owed_while_a_unit_is_live() -> None:
    # Its line's only unit was paid for as a return before it was gone: the seller has no unit not
    # live and not yet paid for.
    builder = built(TWO, PAID, ("give_back", "processed", 1, {"item": 1}), ("settle",), ("stock", "rejected"))
    assert [amount for amount, *_ in refunds(builder)] == [1000]


def test_refunds_never_exceed_what_was_captured() -> None:
    builder = built(
        TWO,
        PAID,
        ("give_back", "processed", 1, {"item": 1}),
        ("settle",),
        ("stock", "rejected"),
        ("stock", "rejected", BORIS),
    )
    assert [amount for amount, *_ in refunds(builder)] == [1000, 3500]
    assert builder.now.decided == builder.now.captured


# -- refunds of more units than one decision names -----------------------------------------------------------

SEVEN = [line(1, quantity=7), line(2, BORIS)]
"""Four decisions' worth of units that may go, where a decision names two at most, and one
that keeps the order alive.
"""
REJECTED: Told = ("stock", "rejected")


@pytest.fixture
def two_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decision names two units at most."""
    monkeypatch.setattr("domain.refunds.MOST_UNITS", 2)


@pytest.mark.parametrize(
    ("quantity", "price", "captured", "amounts"),
    [
        pytest.param(25_000, "0.01", "1250.00", [10_000, 10_000, 5_000], id="three pieces"),
        pytest.param(25_000, "0.01", "250.00", [10_000, 10_000, 5_000], id="three pieces, covered exactly"),
        pytest.param(25_000, "0.01", "249.99", [], id="a cent is missing for the whole"),
        pytest.param(25_000, "0.01", "150.00", [], id="enough for a piece"),
        pytest.param(9_000, "0.02", "150.00", [], id="not enough for what one decision names"),
        pytest.param(20_000, "0.01", "200.00", [10_000, 10_000], id="two full pieces, and no third"),
    ],
)
def test_a_refund_is_covered_whole_or_not_at_all(
    quantity: int, price: str, captured: str, amounts: list[int]
) -> None:
    builder = built(
        [line(1, quantity=quantity, price=price), line(2, BORIS, 1, "1000.00")], ("pay", captured), REJECTED
    ).settle()
    assert [decision.amount for decision in builder.order.decisions] == amounts
    assert builder.anomalies == ([] if amounts else ["refund_uncovered"])


@pytest.mark.parametrize(
    ("lines", "events", "expected"),
    [
        pytest.param(
            [
                line(1, quantity=3, shipping_amount="4.00"),
                line(2, quantity=2, shipping_amount="5.00"),
                line(3, BORIS),
            ],
            [("pay", "69.00"), REJECTED],
            [
                (2900, "stock", ANNA, of(1, 0, 1), [item_id(1), item_id(2)]),
                (2000, "stock", ANNA, of(1, 2) + of(2, 0), []),
                (1000, "stock", ANNA, of(2, 1), []),
            ],
            id="the shipping goes with the first",
        ),
        pytest.param(
            [line(1, quantity=3, price="0"), line(2, quantity=1), line(3, BORIS)],
            [("pay", "20.00"), REJECTED],
            [(1000, "stock", ANNA, of(2, 0) + of(1, 0), [])],
            id="what is worth something first",
        ),
        pytest.param(
            [line(1, quantity=3, price="0", shipping_amount="4.00"), line(3, BORIS)],
            [("pay", "14.00"), REJECTED],
            [(400, "stock", ANNA, of(1, 0, 1), [item_id(1)])],
            id="only the shipping is worth something",
        ),
        pytest.param(
            SEVEN,
            [("pay", "70.00"), REJECTED, ("give_back", "processed", 1, {"item": 2})],
            [(2000, "stock", ANNA, of(1, n, n + 1), []) for n in (0, 2, 4)]
            + [(1000, "stock", ANNA, of(1, 6), [])],
            id="a return that comes while it is under way waits for what is left",
        ),
        pytest.param(
            [line(1, BORIS, 7), line(2, ANNA), line(3, STRANGER)],
            [("pay", "70.00"), ("stock", "rejected", BORIS), ("stock", "rejected", ANNA)],
            [(2000, "stock", BORIS, of(1, n, n + 1), []) for n in (0, 2, 4)]
            + [(1000, "stock", BORIS, of(1, 6), [])],
            id="so does another seller",
        ),
        pytest.param(
            SEVEN,
            [("pay", "80.00"), REJECTED, ("decide",), ("stock", "rejected", BORIS)],
            [
                (2000, "stock", ANNA, of(1, 0, 1), []),
                (2000, "stock", ANNA, of(1, 2, 3), []),
                (4000, "closed", ORDER, [], []),
            ],
            id="the last live unit goes: the rest is that of a closed order",
        ),
        pytest.param(
            SEVEN,
            [("pay", "80.00"), REJECTED, ("scan", "in_transit", {"items": {1: 4}})],
            [
                (2000, "stock", ANNA, of(1, 0, 1), []),
                (2000, "stock", ANNA, of(1, 4, 5), []),
                (1000, "stock", ANNA, of(1, 6), []),
            ],
            id="units that were on their way after all",
        ),
        pytest.param(
            SEVEN,
            [
                ("pay", "50.00"),
                ("stock", "rejected", {"items": {1: 5}}),
                ("stock", "released", {"items": {1: 2}}),
            ],
            [(2000, "stock", ANNA, of(1, 2, 3), [])],
            id="more units go, and the whole of what is left is not covered any more",
        ),
        pytest.param(
            SEVEN,
            [
                ("pay", "50.00"),
                ("stock", "rejected", {"items": {1: 5}}),
                ("stock", "released", {"items": {1: 2}}),
                ("settle",),
                ("pay", "20.00", 2),
            ],
            [(2000, "stock", ANNA, of(1, n, n + 1), []) for n in (2, 0, 4)]
            + [(1000, "stock", ANNA, of(1, 6), [])],
            id="until it is",
        ),
    ],
)
@pytest.mark.usefixtures("two_at_most")
def test_a_refund_in_pieces(lines: list[Data], events: list[Told], expected: list[Refund]) -> None:
    # All of it happens before the first piece comes back, but for what decide and settle let come back.
    assert refunds(built(lines, *events)) == expected


@pytest.mark.usefixtures("two_at_most")
def test_what_waits_because_a_refund_was_begun_is_an_anomaly() -> None:
    assert built(
        SEVEN, ("pay", "70.00"), REJECTED, ("give_back", "processed", 1, {"item": 2}), ("settle",)
    ).anomalies == ["refund_uncovered"]
    more = built(
        SEVEN,
        ("pay", "50.00"),
        ("stock", "rejected", {"items": {1: 5}}),
        ("stock", "released", {"items": {1: 2}}),
    )
    assert more.settle().anomalies == ["refund_uncovered"]


def test_a_piece_that_was_decided_though_the_whole_was_not_covered_counts() -> None:
    # Versions before looked at each piece by itself.
    builder = built(
        [line(1, quantity=25_000, price="0.01"), line(2, BORIS, 1, "1000.00")], ("pay", "150.00"), REJECTED
    )
    assert not builder.decisions
    builder.take(decision(0, 10_000, ANNA, [[item_id(1), n] for n in range(10_000)]))
    assert builder.settle().anomalies == ["refund_uncovered"]
    builder.pay("100.00", 2)
    assert [amount for amount, *_ in refunds(builder)] == [10_000, 10_000, 5_000]
    assert builder.anomalies == []


def decision(n: int, amount: int, seller: str, units: list[list[Any]]) -> Event:
    data = {
        "order_id": ORDER,
        "n": n,
        "amount": amount,
        "cause": "stock",
        "cause_id": seller,
        "units": units,
        "shipping": [],
    }
    headers, value = record("refund.decided", data)
    return events.decode("orders.decisions", headers, value)


# -- refunds where some units of a line are worth nothing ----------------------------------------------------


@pytest.mark.parametrize(
    ("quantity", "discount", "returns", "amounts"),
    [
        pytest.param(2, "1", [1, 1], [1], id="0 1: the first return takes the 1"),
        pytest.param(2, "1", [2], [1], id="0 1 at once"),
        pytest.param(5, "3", [1, 1, 3], [1, 1], id="0 0 0 1 1: each takes a 1 while there are any"),
        pytest.param(5, "3", [3, 2], [2], id="0 0 0 1 1: all that is worth something"),
        pytest.param(
            5, "3", [4, 1], [1, 1], id="0 0 0 1 1: the lowest, as they are worth something together"
        ),
        pytest.param(2, "2", [1, 1], [], id="0 0: nothing, never"),
    ],
)
def test_returns_where_units_are_worth_nothing(
    quantity: int, discount: str, returns: list[int], amounts: list[int]
) -> None:
    builder = OrderBuilder()
    builder.create(
        line(1, quantity=quantity, price="1"), line(2, price="0"), currency="JPY", discount=discount
    )
    if quantity > int(discount):
        builder.pay(str(quantity - int(discount)), currency="JPY")
    for n, each in enumerate(returns, 1):
        builder.give_back("processed", n, quantity=each)
        builder.settle()
    assert [decision.amount for decision in builder.order.decisions] == amounts
    assert builder.anomalies == []


def test_units_gone_of_which_a_return_was_paid_one() -> None:
    # Units are worth 0, 0, 1, 1: the return takes the third, so of the two that are gone the fourth is left.
    builder = OrderBuilder()
    builder.create(line(1, quantity=4, price="1"), line(2, price="0"), currency="JPY", discount="2")
    builder.pay("2", currency="JPY")
    builder.give_back("processed", 1, quantity=1)
    builder.settle()
    builder.stock("rejected", items={1: 2})
    assert [(amount, units) for amount, _, _, units, _ in refunds(builder)] == [(1, of(1, 2)), (1, of(1, 3))]


# -- anomalies -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "codes"),
    [
        pytest.param([], [], id="none"),
        pytest.param([PAID_THREE], [], id="paid exactly"),
        pytest.param([("pay", "30.01")], ["overpaid"], id="captured above the total"),
        pytest.param([("give_back", "processed", {"quantity": 3})], [], id="all units given back"),
        pytest.param(
            [("give_back", "processed", {"quantity": 4})], ["over_returned"], id="more than there are"
        ),
        pytest.param(
            [("give_back", "processed", 1, {"quantity": 2}), ("give_back", "processed", 2, {"quantity": 2})],
            ["over_returned"],
            id="more in two returns",
        ),
        pytest.param([("give_back", "requested", {"quantity": 4})], [], id="a request is not a return"),
        pytest.param(
            [("scan", "in_transit"), ("stock", "released", {"items": {1: 1}})],
            ["moved_though_gone"],
            id="gone and yet on its way",
        ),
        pytest.param(
            [("scan", "in_transit", {"items": {1: 2}}), ("stock", "released", {"items": {1: 1}})],
            [],
            id="two on their way, one gone",
        ),
        pytest.param(
            [("stock", "reserved", {"reservation_id": STRANGER})],
            ["reservation_unknown"],
            id="a reservation that is not ours",
        ),
        pytest.param(
            [("stock", "reserved", {"reservation_id": made_id(f"reservation:{ANNA}").upper()})],
            [],
            id="ours in upper case",
        ),
        pytest.param(
            [("send", "refund.failed", {"refund_id": STRANGER})],
            ["refund_failed", "refund_unknown"],
            id="a failed refund",
        ),
        pytest.param([("give_back", "processed")], [], id="nothing captured, so nothing to cover"),
        pytest.param([("pay", "30.00", {"currency": "USD"})], [], id="a refused payment is not captured"),
    ],
)
def test_anomalies(events: list[Told], codes: list[str]) -> None:
    anomalies = [code for code in built(THREE, *events).anomalies if code != "refund_uncovered"]
    assert anomalies == codes


def test_a_refund_that_captured_money_does_not_cover() -> None:
    assert built(THREE, ("pay", "9.99"), ("give_back", "processed", {"quantity": 1})).anomalies == [
        "refund_uncovered"
    ]
    assert (
        built(THREE, ("pay", "10.00"), ("give_back", "processed", {"quantity": 1}), ("settle",)).anomalies
        == []
    )


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(
            [
                ("give_back", "processed", 1, 6, {"quantity": 1}),
                ("settle",),
                ("give_back", "rejected", 1, 5, {"quantity": 1}),
            ],
            id="a return",
        ),
        pytest.param(
            [
                ("stock", "rejected", {"items": {1: 1}}),
                ("settle",),
                ("scan", "in_transit", {"items": {1: 3}}),
            ],
            id="stock",
        ),
        pytest.param(
            [("stock", "rejected"), ("settle",), ("scan", "in_transit", {"items": {1: 1}})], id="closed"
        ),
    ],
)
def test_a_decision_that_a_later_fact_contradicts_stays(events: list[Told]) -> None:
    builder = built(THREE, PAID_THREE, *events).settle()
    assert len(builder.order.decisions) == 1
    assert "refund_contradicted" in builder.anomalies


def test_an_order_that_waits_for_its_created_has_no_anomalies() -> None:
    builder = OrderBuilder()
    builder.pay("1000.00")
    assert builder.anomalies == []
