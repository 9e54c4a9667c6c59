"""The simulated inventory's own count: what the pipeline told it against what left and came back."""

from __future__ import annotations

from typing import Any

import pytest

from cli import simulate
from workload.services import Behaviour
from workload.simulation import SimulationResult
from workload.stock import INITIAL, Stock

LAMP = {"item_id": "lamp-1", "sku": "LAMP", "quantity": 3}
COMMIT: dict[str, Any] = {"commit_id": "c", "items": [LAMP]}
PARCEL: dict[str, Any] = {
    "shipment_id": "s",
    "status": "in_transit",
    "items": [{"item_id": "lamp-1", "quantity": 3}],
}
RESTOCK: dict[str, Any] = {"restock_id": "r", "item_id": "lamp-1", "sku": "LAMP", "quantity": 2}
RETURN: dict[str, Any] = {
    "return_id": "b",
    "status": "processed",
    "restock": True,
    "item_id": "lamp-1",
    "quantity": 2,
}


def test_what_left_and_came_back_is_committed_and_restocked_once_each() -> None:
    stock = Stock()
    for _ in range(2):
        stock.sent("shipment.updated", PARCEL)
        stock.told("stock.commit", COMMIT)
        stock.sent("order.returned", RETURN)
        stock.told("stock.restock", RESTOCK)
    assert not stock.differs()
    assert stock.report(0, {}) == {
        "initial": INITIAL,
        "on_hand": INITIAL - 1,
        "reserved": 0,
        "committed": 3,
        "restocked": 2,
        "shipped": 3,
        "returned": 2,
        "wrong": [],
    }


def test_other_messages_move_nothing() -> None:
    stock = Stock()
    stock.sent("shipment.updated", PARCEL | {"status": "delivered"})
    stock.sent("order.returned", RETURN | {"restock": False})
    stock.sent("order.returned", RETURN | {"status": "rejected"})
    stock.sent("order.returned", {"return_id": "b", "status": "requested", "item_id": "lamp-1"})
    stock.sent("stock.reserved", {})
    assert not stock.differs()
    assert stock.report(0, {})["shipped"] == stock.report(0, {})["returned"] == 0


def test_a_commit_that_lacks_and_one_of_too_many_units_are_told() -> None:
    stock = Stock()
    stock.learn([LAMP])
    stock.sent("shipment.updated", PARCEL)
    assert stock.differs()
    assert stock.report(0, {})["wrong"] == ["LAMP: 3 too few in stock.commit"]
    stock.told("stock.commit", {"commit_id": "c", "items": [LAMP | {"quantity": 4}]})
    assert stock.report(0, {})["wrong"] == ["LAMP: 1 too many in stock.commit"]


def test_a_restock_of_what_never_came_back_is_told() -> None:
    stock = Stock()
    stock.told("stock.restock", RESTOCK)
    assert stock.report(0, {})["wrong"] == [
        "LAMP: 2 more came back than left",
        "LAMP: 2 too many in stock.restock",
    ]


def test_stock_below_nothing_is_told() -> None:
    stock = Stock()
    much = [LAMP | {"quantity": INITIAL + 5}]
    stock.sent("shipment.updated", PARCEL | {"items": much})
    stock.told("stock.commit", {"commit_id": "c", "items": much})
    assert stock.report(0, {})["wrong"] == ["LAMP: -5 on hand"]


def test_more_than_there_was_in_the_beginning_is_told() -> None:
    stock = Stock(2)
    stock.sent("shipment.updated", PARCEL)
    stock.told("stock.commit", COMMIT)
    assert stock.report(0, {})["wrong"] == ["LAMP: -1 on hand"]


def test_units_of_orders_that_have_ended_are_not_reserved() -> None:
    report = Stock().report(5, {"o": 2})
    assert report["reserved"] == 5
    assert report["wrong"] == ["order o has ended and 2 reserved"]


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        ({"hanging": ["o"]}, "1 orders have not ended: o"),
        ({"unpaid": ["f"]}, "1 refunds that failed or were overlooked have not"),
        ({"stock": Stock().report(1, {"o": 1})}, "1 differences in the stock: order o has ended and 1"),
    ],
)
def test_the_summary_says_what_is_not_right(
    capsys: pytest.CaptureFixture[str], more: dict[str, Any], complaint: str
) -> None:
    right = SimulationResult(stock=Stock().report(0, {}))
    assert right.right
    simulate._report(right, Behaviour(), False)
    printed = capsys.readouterr()
    assert "stock adds up" in printed.out
    assert printed.err == ""

    wrong = SimulationResult(**{"stock": Stock().report(0, {}), **more})
    assert not wrong.right
    simulate._report(wrong, Behaviour(), False)
    printed = capsys.readouterr()
    assert complaint in printed.err.replace("\n", " ")
    assert ("stock doesn't add up" in printed.out) == ("stock" in more)
