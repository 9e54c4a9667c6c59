"""The simulated services: what they remember, so that a repeated command gets the same answer
and no unit is had twice.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid5

import pytest

from contracts.cloudevents import binary
from domain import events
from workload.services import (
    Behaviour,
    Customers,
    Inventory,
    Later,
    Message,
    Payments,
    Shipping,
    SimulatedServices,
    Steps,
)

ORDER = "0a0a0a0a-0000-4000-8000-000000000001"
SELLER = "aaaaaaaa-0000-4000-8000-000000000001"
RESERVATION = str(uuid5(UUID(ORDER), f"reservation:{SELLER}"))
COMMAND: dict[str, Any] = {
    "reservation_id": RESERVATION,
    "label_request_id": "1a1a1a1a-0000-4000-8000-000000000001",
    "payment_request_id": "2a2a2a2a-0000-4000-8000-000000000001",
    "refund_id": "3a3a3a3a-0000-4000-8000-000000000001",
    "order_id": ORDER,
    "seller_id": SELLER,
    "amount": "12.00",
    "currency": "EUR",
    "items": [{"item_id": "10000000-0000-4000-8000-000000000001", "quantity": 3}],
}
ITEM = COMMAND["items"][0]["item_id"]
NEVER, ALWAYS = Behaviour(refusals=0, returns=0), Behaviour(refusals=1, returns=1)


def all_of(steps: Steps) -> list[Message]:
    """Everything that follows, without the waiting."""
    messages: list[Message] = []
    for step in steps:
        messages += all_of(step.act()) if isinstance(step, Later) else [step]
    return messages


def sent(steps: Steps) -> list[tuple[str, int]]:
    """(type, units)"""
    return [
        (each.type, sum(item["quantity"] for item in each.data.get("items", []))) for each in all_of(steps)
    ]


def test_a_reservation_asked_twice_is_answered_twice_alike() -> None:
    inventory = Inventory(NEVER)
    assert sent(inventory.reserve(COMMAND)) == sent(inventory.reserve(COMMAND)) == [("stock.reserved", 0)]


def test_what_is_refused_is_never_handed_out() -> None:
    for seed in range(20):
        inventory = Inventory(Behaviour(refusals=1, seed=seed))
        rejected = sum(
            units for type_, units in sent(inventory.reserve(COMMAND)) if type_ == "stock.rejected"
        )
        assert rejected
        assert inventory.pick(RESERVATION, {ITEM: 3}).get(ITEM, 0) == 3 - rejected


def test_units_leave_or_come_back_but_not_both() -> None:
    inventory = Inventory(NEVER)
    inventory.reserve(COMMAND)
    assert inventory.pick(RESERVATION, {ITEM: 2}) == {ITEM: 2}
    assert sent(inventory.release(COMMAND)) == [("stock.released", 1)]
    assert inventory.pick(RESERVATION, {ITEM: 1}) == {}
    assert sent(inventory.release(COMMAND)) == [
        ("stock.released", 1)
    ]  # the same answer again, not one more unit


def test_a_release_of_what_was_never_reserved_closes_it() -> None:
    inventory = Inventory(NEVER)
    assert sent(inventory.release(COMMAND)) == [("stock.released", 3)]
    assert sent(inventory.reserve(COMMAND)) == [("stock.released", 3)]
    assert inventory.pick(RESERVATION, {ITEM: 3}) == {}


def test_a_reservation_that_a_label_made_is_answered_when_it_is_asked_for() -> None:
    inventory = Inventory(NEVER)
    assert sent(inventory.expect(COMMAND)) == []
    assert sent(inventory.reserve(COMMAND)) == sent(inventory.reserve(COMMAND)) == [("stock.reserved", 0)]


def test_a_label_for_more_than_there_is_is_told_and_ships_the_rest() -> None:
    """The reservation was overlooked."""
    services = SimulatedServices(Behaviour(refusals=0, returns=0, stock=2))
    lamp = COMMAND["items"][0] | {"sku": "LAMP"}
    services.stock.learn([lamp])
    answers = all_of(services.handle("shipping.label.create", COMMAND))
    shipped = [each for each in answers if each.data.get("status") == "in_transit"]
    assert sent(answers[:2]) == [("stock.rejected", 1), ("stock.reserved", 0)]
    assert sum(item["quantity"] for each in shipped for item in each.data["items"]) == 2
    assert sent(services.handle("stock.reserve", COMMAND)) == sent(answers[:2]), "asked for again"


def test_sellers_run_out_of_stock_and_have_again_what_is_released_or_restocked() -> None:
    services = SimulatedServices(Behaviour(refusals=0, stock=4))
    lamp = COMMAND["items"][0] | {"sku": "LAMP"}
    services.stock.learn([lamp])
    asked = [COMMAND | {"reservation_id": str(UUID(int=n))} for n in range(5)]

    def reserve(n: int) -> list[tuple[str, int]]:
        return sent(services.handle("stock.reserve", asked[n]))

    assert reserve(0) == [("stock.reserved", 0)]
    assert reserve(1) == [("stock.rejected", 2), ("stock.reserved", 0)]
    assert reserve(2) == reserve(2) == [("stock.rejected", 3)], "asked for again, answered the same"
    assert sent(services.handle("stock.release", asked[0])) == [("stock.released", 3)]
    assert sent(services.handle("stock.release", asked[2])) == [], "it held none"
    assert reserve(3) == [("stock.reserved", 0)]
    for _ in range(2):
        services.stock.told("stock.restock", {"restock_id": "r", **lamp, "quantity": 1})
    assert reserve(4) == [("stock.rejected", 2), ("stock.reserved", 0)]


def test_a_refund_that_was_overlooked_waits_until_it_is_asked_for_again() -> None:
    deaf, heard = SimulatedServices(Behaviour(silence=1)), SimulatedServices(NEVER)
    for services in (deaf, heard):
        all_of(services.handle("refund.request", COMMAND))
    assert deaf.payments.waiting == {COMMAND["refund_id"]}
    assert heard.payments.waiting == set()
    all_of(deaf.payments.refund(COMMAND))
    assert deaf.payments.waiting == set()
    all_of(deaf.handle("refund.request", COMMAND))
    assert deaf.payments.waiting == set(), "it was answered before"
    all_of(deaf.handle("refund.request", COMMAND | {"attempt": 2}))
    assert deaf.payments.waiting == {COMMAND["refund_id"]}, "another request"


def test_a_label_leads_to_scans_up_to_the_door_and_asked_again_to_the_same_ones() -> None:
    inventory = Inventory(NEVER)
    shipping = Shipping(NEVER, inventory, lambda order, parcel, items: [])
    scans = all_of(shipping.label(COMMAND))
    assert {each.data["status"] for each in scans} == {"in_transit", "delivered"}
    assert (
        sum(
            item["quantity"]
            for each in scans
            if each.data["status"] == "delivered"
            for item in each.data["items"]
        )
        == 3
    )
    again = all_of(shipping.label(COMMAND))
    assert all(any(each is scan for scan in scans) for each in again)
    assert len(again) == len(scans)


def test_payments() -> None:
    assert [each.type for each in all_of(Payments(NEVER).initiate(COMMAND))] == ["order.paid"]
    assert all_of(Payments(ALWAYS).initiate(COMMAND))[0].type == "payment.failed"
    assert [each.type for each in all_of(Payments(NEVER).refund(COMMAND))] == ["refund.completed"]
    assert [each.type for each in all_of(Payments(ALWAYS).refund(COMMAND))] == ["refund.failed"]


def test_a_refund_goes_back_to_the_payments_that_it_names() -> None:
    payments = Payments(NEVER)
    (paid,) = all_of(payments.initiate(COMMAND))
    payment_id = paid.data["payment_id"]

    def refund(n: int, amount: str, payment_id: str) -> str:
        command = COMMAND | {"refund_id": f"3a3a3a3a-0000-4000-8000-{n:012d}"}
        command |= {"allocations": [{"payment_id": payment_id, "amount": amount}]}
        (answer,) = all_of(payments.refund(command))
        return str(answer.data.get("reason", answer.type))

    assert refund(1, "7.00", payment_id) == "refund.completed"
    assert refund(2, "5.01", payment_id) == "more_than_captured"
    assert refund(3, "5.00", payment_id) == "refund.completed"
    assert refund(4, "0.01", payment_id) == "more_than_captured"
    assert refund(2, "5.01", payment_id) == "more_than_captured"
    assert refund(1, "7.00", payment_id) == "refund.completed", "asked for again, paid once"
    # Captured before this service began.
    assert refund(5, "99.00", COMMAND["label_request_id"]) == "refund.completed"


def test_customer_service_grants_something_for_some_parcels() -> None:
    customers = Customers(Behaviour(returns=0, grants=1))
    (grant,) = all_of(customers.delivered(ORDER, COMMAND["label_request_id"], {ITEM: 3}))
    headers, value = binary(
        {"specversion": "1.0", "id": "e", "source": "/s", "type": grant.type, "time": "2026-01-01T00:00:00Z"},
        grant.data,
    )
    assert events.decode(grant.type, headers, value).type == "refund.granted"
    some = Customers(Behaviour(returns=0, grants=0.1))
    counts = [bool(all_of(some.delivered(ORDER, str(UUID(int=n)), {ITEM: 1}))) for n in range(300)]
    assert 10 < sum(counts) < 60


def test_customers_send_back_no_more_than_they_got() -> None:
    returned = all_of(
        Customers(Behaviour(returns=1, refusals=0)).delivered(ORDER, COMMAND["label_request_id"], {ITEM: 3})
    )
    assert [each.data["status"] for each in returned] == ["requested", "processed"]
    assert 1 <= returned[0].data["quantity"] <= 3


def test_the_services_overlook_as_many_commands_as_it_should() -> None:
    services = SimulatedServices(Behaviour(silence=0.3))
    answered = sum(
        bool(all_of(services.handle("payment.initiate", COMMAND | {"payment_request_id": str(UUID(int=n))})))
        for n in range(500)
    )
    assert services.ignored == 500 - answered
    assert 0.2 < services.ignored / 500 < 0.4
    retried = [bool(all_of(services.handle("payment.initiate", COMMAND))) for _ in range(30)]
    assert True in retried


@pytest.mark.parametrize("seed", range(3))
def test_every_checkout_is_one_that_the_pipeline_takes(seed: int) -> None:
    for checkout, _ in Customers(Behaviour(seed=seed)).checkouts(60):
        attributes = {
            "specversion": "1.0",
            "id": "1",
            "source": "/tests",
            "type": checkout.type,
            "time": "2026-01-01T00:00:00Z",
        }
        event = events.decode(checkout.type, *binary(attributes, checkout.data))
        assert str(UUID(bytes=event.order_id)) == str(uuid5(UUID(checkout.key), "order"))
        assert Decimal(checkout.data["total_amount"]) > 0


def test_the_same_seed_gives_the_same_checkouts() -> None:
    first, second = ([each.data for each, _ in Customers(Behaviour(seed=9)).checkouts(20)] for _ in range(2))
    assert first == second


def test_a_refund_that_failed_may_be_paid_when_it_is_asked_for_again() -> None:
    answers = set()
    for seed in range(20):
        payments = Payments(Behaviour(refusals=0.5, seed=seed))
        first, again = (all_of(payments.refund(COMMAND | more)) for more in ({}, {"attempt": 2}))
        assert all_of(payments.refund(COMMAND)) == first
        assert "attempt" not in first[0].data
        assert again[0].data["attempt"] == 2
        answers.add((first[0].type, again[0].type))
    assert len(answers) == 4


def test_a_seller_that_does_not_ship_never_does() -> None:
    shipping = Shipping(Behaviour(unshipped=1), Inventory(NEVER), lambda *_: [])
    assert all_of(shipping.label(COMMAND)) == all_of(shipping.label(COMMAND)) == []


@pytest.mark.parametrize(("share", "taxed"), [(0, 0), (0.1, 4), (0.5, 20), (1, 40)])
def test_a_share_of_the_checkouts_is_taxed_by_turns_on_top_and_in_the_prices(
    share: float, taxed: int
) -> None:
    checkouts = [each.data for each, _ in Customers(Behaviour(taxed=share)).checkouts(40)]
    modes = [each["prices_include_tax"] for each in checkouts if "prices_include_tax" in each]
    assert modes == [False, True] * (taxed // 2)
    assert sum(any("taxes" in line for line in each["items"]) for each in checkouts) == taxed


def test_without_a_share_every_other_checkout_is_taxed() -> None:
    modes = [each.data.get("prices_include_tax") for each, _ in Customers(Behaviour()).checkouts(8)]
    assert modes == [False, None, True, None] * 2


def test_a_share_of_the_refunds_fails_twice_before_they_are_paid() -> None:
    payments = Payments(Behaviour(refusals=0, failed_refunds=1))

    def asked(attempt: int) -> str:
        (answer,) = all_of(payments.refund(COMMAND | ({} if attempt == 1 else {"attempt": attempt})))
        return answer.type

    assert [asked(1), asked(2), asked(1)] == ["refund.failed"] * 3
    assert payments.unpaid == {COMMAND["refund_id"]}
    assert asked(3) == "refund.completed"
    assert asked(2) == "refund.failed", "asked for again, answered the same"
    assert payments.unpaid == set()

    some = Payments(Behaviour(refusals=0, failed_refunds=0.3))
    for n in range(300):
        all_of(some.refund(COMMAND | {"refund_id": str(UUID(int=n))}))
    assert 60 < len(some.unpaid) < 120


def test_what_stays_reserved_for_an_order_is_told_unless_nobody_heard_that_it_is_asked_back() -> None:
    services = SimulatedServices(NEVER)
    all_of(services.handle("stock.reserve", COMMAND))
    assert services.reserved(ORDER, SELLER) == services.inventory.total() == 3
    services.inventory.pick(RESERVATION, {ITEM: 1})
    assert services.reserved(ORDER, SELLER) == 2
    deaf = SimulatedServices(Behaviour(silence=1))
    all_of(deaf.inventory.reserve(COMMAND))
    all_of(deaf.handle("stock.release", COMMAND))
    assert (deaf.reserved(ORDER, SELLER), deaf.inventory.total()) == (0, 3)
    all_of(deaf.inventory.release(COMMAND))
    assert deaf.inventory.total() == 0
    assert deaf.inventory.unheard == set()
