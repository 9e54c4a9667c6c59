"""Every derived event: when it leaves, under which id, with what in it (docs/rules.md, Commands)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from contracts.topics import DECISIONS, DERIVED
from domain import effects, events
from domain.enums import DeadlineKind
from domain.shapes import Derived, Due, Event
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    USER,
    OrderBuilder,
    event,
    item_id,
    line,
    made_id,
    moment,
    parcel,
    payment,
    raw,
    returned,
)

WAREHOUSE = STRANGER
LINES = [
    line(3, BORIS, 1, "30.00", shipping_amount="3.00"),
    line(1, ANNA, 2, "10.00", shipping_amount="2.00", warehouse_id=WAREHOUSE),
    line(2, ANNA, 1, "5.00"),
]
TOTAL = "59.00"
"""Of all lines and their shipping, less the discount of 1.00."""


def built_order(**more: Any) -> OrderBuilder:
    begun = OrderBuilder()
    begun.create(*LINES, discount="1.00", **more)
    return begun


def stock_item(n: int, quantity: int) -> dict[str, Any]:
    source = next(each for each in LINES if each["item_id"] == item_id(n))
    return {
        name: source[name] for name in ("item_id", "product_id", "sku", "warehouse_id") if name in source
    } | {"quantity": quantity}


def ce_id(derived: Derived) -> str:
    _, headers = effects.encode(derived, raw(ORDER), [])
    return dict(headers)["ce_id"].decode()


def ce_ids(builder: OrderBuilder, type_: str) -> list[str]:
    return [ce_id(derived) for derived in builder.derived if derived.type == type_]


def types(folded: Any) -> list[str]:
    return [effect.type for effect in folded.effects]


# -- suborders -----------------------------------------------------------------------------------------------


def test_suborder_created() -> None:
    anna, boris = built_order().published("suborder.created")
    assert (anna["seller_id"], boris["seller_id"]) == (ANNA, BORIS)
    assert {name: anna[name] for name in anna if name not in ("items", "units", "currency")} == {
        "suborder_id": made_id(f"suborder:{ANNA}"),
        "order_id": ORDER,
        "seller_id": ANNA,
        "status": "pending",
        "items_amount": "25.00",
        "shipping_amount": "2.00",
        "discount_amount": "0.45",
        "total_amount": "26.55",
        "version": 1,
    }
    assert [
        (each["item_id"], each["quantity"], each["price"], each["shipping_amount"], each.get("warehouse_id"))
        for each in anna["items"]
    ] == [
        (item_id(1), 2, "10.00", "2.00", WAREHOUSE),
        (item_id(2), 1, "5.00", "0.00", None),
    ]
    assert boris["total_amount"] == "32.45"


def test_suborders_add_up_to_the_order() -> None:
    cents = [
        int(each["total_amount"].replace(".", "")) for each in built_order().published("suborder.created")
    ]
    assert sum(cents) == 5900


def test_suborder_created_is_the_same_whatever_else_is_known() -> None:
    late = OrderBuilder()
    late.pay(TOTAL)
    late.scan("delivered")
    late.stock("rejected", BORIS)
    late.cancel()
    late.create(*LINES, discount="1.00")
    for type_ in ("suborder.created", "stock.reserve", "payment.initiate"):
        assert late.published(type_) == built_order().published(type_)
    assert [each["status"] for each in late.published("suborder.updated")] == ["delivered", "closed"]


@pytest.mark.parametrize(
    ("change", "sellers"),
    [
        pytest.param(lambda builder: builder.pay(TOTAL), [ANNA, BORIS], id="paid"),
        pytest.param(lambda builder: builder.pay("58.99"), [], id="not yet paid"),
        pytest.param(lambda builder: builder.scan("in_transit"), [ANNA], id="a parcel moves"),
        pytest.param(lambda builder: builder.scan("pending"), [], id="a parcel waits"),
        pytest.param(lambda builder: builder.stock("rejected", items={1: 1}), [ANNA], id="amounts"),
        pytest.param(lambda builder: builder.stock("reserved"), [], id="reserved"),
        pytest.param(lambda builder: builder.cancel(), [], id="a request to cancel"),
    ],
)
def test_suborder_updated_when_status_or_amounts_change(change: Any, sellers: list[str]) -> None:
    builder = built_order()
    change(builder)
    assert [each["seller_id"] for each in builder.published("suborder.updated")] == sellers
    assert all(each["version"] == 2 for each in builder.published("suborder.updated"))


# -- ids -----------------------------------------------------------------------------------------------------


def full() -> OrderBuilder:
    builder = built_order()
    builder.take(_late("ship"))
    builder.cancel(BORIS)
    builder.pay(TOTAL)
    builder.scan("delivered", 1, items={1: 2, 2: 1})
    builder.give_back("processed", item=1, quantity=1)
    builder.stock("rejected", BORIS)
    return builder.settle()


def test_the_id_of_a_lateness_is_over_what_seller_and_due() -> None:
    builder = built_order()
    builder.take(_late("ship"))
    builder.scan("in_transit", seller=BORIS)
    builder.take(_late("deliver"))
    due = "2026-01-02T00:00:00+00:00"
    assert ce_ids(builder, "suborder.late") == [
        made_id(f"suborder.late:{what}:{BORIS}:{due}") for what in ("ship", "deliver")
    ]


def _late(what: str) -> Event:
    at = 1_767_312_000_000
    value, headers = effects.deadline_passed(
        Due(at, DeadlineKind[what.upper()], raw(BORIS), 1, True, at * 1000), raw(ORDER)
    )
    return events.decode("orders.decisions", headers, value)


@pytest.mark.parametrize(
    ("type_", "field", "names"),
    [
        ("suborder.created", "suborder_id", [f"suborder:{ANNA}", f"suborder:{BORIS}"]),
        ("stock.reserve", "reservation_id", [f"reservation:{ANNA}", f"reservation:{BORIS}"]),
        ("payment.initiate", "payment_request_id", ["payment"]),
        ("shipping.label.create", "label_request_id", [f"label:{ANNA}", f"label:{BORIS}"]),
        ("stock.release", "reservation_id", [f"reservation:{BORIS}"]),
        ("stock.commit", "commit_id", [f"commit:{parcel(1)}"]),
        ("stock.restock", "restock_id", [f"restock:{returned(1)}"]),
        ("refund.request", "refund_id", ["refund:0", "refund:1"]),
    ],
)
def test_ids_are_uuid5_in_the_orders_namespace(type_: str, field: str, names: list[str]) -> None:
    builder = full()
    assert [each[field] for each in builder.published(type_)] == [made_id(name) for name in names]
    assert ce_ids(builder, type_) == [made_id(f"{type_}:{made_id(name)}") for name in names]


def test_ids_of_notices_are_over_version_and_seller() -> None:
    builder = full()
    updated = builder.published("suborder.updated")
    assert ce_ids(builder, "suborder.updated") == [
        made_id(f"suborder.updated:{each['version']}:{each['seller_id']}") for each in updated
    ]
    changed = builder.published("order.status_changed")
    assert ce_ids(builder, "order.status_changed") == [
        made_id(f"order.status_changed:{each['version']}") for each in changed
    ]
    assert len(set(ce_ids(builder, "suborder.updated"))) == len(updated)


def test_everything_published_has_its_topic_and_its_own_id() -> None:
    builder = full()
    assert {derived.type for derived in builder.derived} == set(DERIVED)
    assert all(derived.topic == derived.type for derived in builder.derived)
    everything = [ce_id(derived) for derived in builder.derived]
    assert len(set(everything)) == len(everything)


# -- commands ------------------------------------------------------------------------------------------------


def test_stock_reserve() -> None:
    anna, boris = built_order().published("stock.reserve")
    assert anna == {
        "reservation_id": made_id(f"reservation:{ANNA}"),
        "order_id": ORDER,
        "seller_id": ANNA,
        "items": [stock_item(1, 2), stock_item(2, 1)],
    }
    assert boris["items"] == [stock_item(3, 1)]


def test_payment_initiate() -> None:
    assert built_order().published("payment.initiate") == [
        {
            "payment_request_id": made_id("payment"),
            "order_id": ORDER,
            "user_id": USER,
            "amount": "59.00",
            "currency": "EUR",
        }
    ]


def test_nothing_is_collected_for_nothing() -> None:
    builder = OrderBuilder()
    builder.create(line(1, price="0"))
    assert builder.published("payment.initiate") == []
    assert builder.status == "confirmed"


def test_labels_when_first_confirmed() -> None:
    builder = built_order()
    assert builder.published("shipping.label.create") == []
    builder.pay(TOTAL)
    anna, boris = builder.published("shipping.label.create")
    assert anna == {
        "label_request_id": made_id(f"label:{ANNA}"),
        "order_id": ORDER,
        "suborder_id": made_id(f"suborder:{ANNA}"),
        "seller_id": ANNA,
        "items": [stock_item(1, 2), stock_item(2, 1)],
    }
    assert boris["seller_id"] == BORIS


def test_labels_once() -> None:
    builder = built_order()
    builder.pay(TOTAL)
    builder.pay("1.00", 2)
    builder.stock("rejected", items={1: 2})
    builder.scan("in_transit", seller=BORIS)
    assert len(builder.published("shipping.label.create")) == 2


@pytest.mark.parametrize(
    ("before", "expected"),
    [
        pytest.param(
            lambda builder: builder.stock("rejected", BORIS),
            {ANNA: [(1, 2), (2, 1)]},
            id="not for a seller whose units are gone",
        ),
        pytest.param(
            lambda builder: builder.stock("rejected", items={1: 1}),
            {ANNA: [(1, 1), (2, 1)], BORIS: [(3, 1)]},
            id="for those that are not gone",
        ),
        pytest.param(
            lambda builder: builder.stock("rejected", items={1: 2}),
            {ANNA: [(2, 1)], BORIS: [(3, 1)]},
            id="not for a line that is gone",
        ),
        pytest.param(
            lambda builder: builder.scan("pending"),
            {ANNA: [(1, 2), (2, 1)], BORIS: [(3, 1)]},
            id="a waiting parcel is not in transit",
        ),
        pytest.param(
            lambda builder: builder.stock("reserved"),
            {ANNA: [(1, 2), (2, 1)], BORIS: [(3, 1)]},
            id="whether or not stock is reserved",
        ),
    ],
)
def test_whom_labels_are_for(before: Any, expected: dict[str, list[tuple[int, int]]]) -> None:
    builder = built_order()
    before(builder)
    builder.pay(TOTAL)
    by_seller = {
        each["seller_id"]: [(i["item_id"], i["quantity"]) for i in each["items"]]
        for each in builder.published("shipping.label.create")
    }
    assert by_seller == {
        seller: [(item_id(n), quantity) for n, quantity in pairs] for seller, pairs in expected.items()
    }


def test_labels_when_an_order_is_shipped_before_it_is_paid() -> None:
    builder = built_order()
    builder.scan("in_transit", items={1: 1})
    assert [each["seller_id"] for each in builder.published("shipping.label.create")] == [BORIS]
    builder.pay(TOTAL)
    assert len(builder.published("shipping.label.create")) == 1


@pytest.mark.parametrize(
    ("before", "seller", "expected"),
    [
        pytest.param([], None, {ANNA: [(1, 2), (2, 1)], BORIS: [(3, 1)]}, id="the whole order"),
        pytest.param([], ANNA, {ANNA: [(1, 2), (2, 1)]}, id="one seller"),
        pytest.param(
            [("scan", "in_transit", 1, 2, BORIS)], None, {ANNA: [(1, 2), (2, 1)]}, id="not what is on its way"
        ),
        pytest.param(
            [("scan", "delivered", 1, 2, ANNA, {1: 1})],
            ANNA,
            {ANNA: [(1, 1), (2, 1)]},
            id="the rest of a line",
        ),
        pytest.param(
            [("scan", "pending")], ANNA, {ANNA: [(1, 2), (2, 1)]}, id="a parcel that waits can be stopped"
        ),
        pytest.param([("stock", "rejected", BORIS)], None, {ANNA: [(1, 2), (2, 1)]}, id="not what is gone"),
        pytest.param(
            [("stock", "released", ANNA, {1: 1})],
            ANNA,
            {ANNA: [(1, 1), (2, 1)]},
            id="not the units that are gone",
        ),
        pytest.param([("scan", "in_transit")], ANNA, {}, id="nothing left to release"),
    ],
)
def test_stock_release(
    before: list[tuple[Any, ...]], seller: str | None, expected: dict[str, list[tuple[int, int]]]
) -> None:
    builder = built_order()
    for name, *arguments in before:
        getattr(builder, name)(*arguments)
    builder.cancel(seller)
    by_seller = {
        each["seller_id"]: [(i["item_id"], i["quantity"]) for i in each["items"]]
        for each in builder.published("stock.release")
    }
    assert by_seller == {
        seller: [(item_id(n), quantity) for n, quantity in pairs] for seller, pairs in expected.items()
    }


def test_a_release_changes_nothing_by_itself() -> None:
    builder = built_order()
    builder.pay(TOTAL)
    builder.cancel()
    assert builder.status == "confirmed"
    assert builder.now.live == 4
    assert not builder.decisions


@pytest.mark.parametrize(
    ("scans", "commits"),
    [
        pytest.param([("pending", 1)], [], id="pending"),
        pytest.param([("in_transit", 2)], [1], id="in transit"),
        pytest.param([("delivered", 2)], [1], id="or further at once"),
        pytest.param(
            [("pending", 1), ("in_transit", 2), ("in_transit", 3), ("delivered", 4)],
            [2],
            id="the first move alone",
        ),
        pytest.param([("delivered", 4), ("in_transit", 2)], [1], id="first in the log"),
    ],
)
def test_stock_commit_on_the_first_move(scans: list[tuple[str, int]], commits: list[int]) -> None:
    builder = built_order()
    committing = [
        n
        for n, (status, hour) in enumerate(scans, 1)
        if "stock.commit" in types(builder.scan(status, hour=hour))
    ]
    assert committing == commits


def test_what_a_commit_holds() -> None:
    builder = built_order()
    builder.scan("in_transit", 7, items={1: 1})
    builder.scan("in_transit", 8, seller=BORIS)
    one, all_of_the_sellers = builder.published("stock.commit")
    assert one == {
        "commit_id": made_id(f"commit:{parcel(7)}"),
        "shipment_id": parcel(7),
        "reservation_id": made_id(f"reservation:{ANNA}"),
        "order_id": ORDER,
        "seller_id": ANNA,
        "items": [stock_item(1, 1)],
    }
    assert all_of_the_sellers["items"] == [stock_item(3, 1)]


@pytest.mark.parametrize("waiting", [False, True], ids=["direct", "waiting"])
def test_a_commit_holds_no_more_than_the_line_has(waiting: bool) -> None:
    builder = OrderBuilder() if waiting else built_order()
    builder.scan("in_transit", items={1: 9, 2: 1})
    if waiting:
        builder.create(*LINES)
    (commit,) = builder.published("stock.commit")
    assert [item["quantity"] for item in commit["items"]] == [2, 1]


def test_a_parcel_that_moved_before_its_order_is_committed_once() -> None:
    builder = OrderBuilder()
    for status in ("in_transit", "delivered"):
        builder.scan(status)
    builder.create(*LINES)
    builder.scan("returned", hour=9)
    assert len(builder.published("stock.commit")) == 1


@pytest.mark.parametrize(
    ("stages", "restocked"),
    [
        pytest.param([("requested", {})], [], id="requested"),
        pytest.param([("rejected", {})], [], id="rejected"),
        pytest.param([("processed", {})], [2], id="processed: the whole line"),
        pytest.param([("processed", {"quantity": 1})], [1], id="processed: one"),
        pytest.param([("processed", {"quantity": 9})], [2], id="no more than the line has"),
        pytest.param([("processed", {"restock": True})], [2], id="sound goods"),
        pytest.param([("processed", {"restock": False})], [], id="broken goods"),
        pytest.param([("requested", {}), ("processed", {}), ("processed", {})], [2], id="once"),
    ],
)
@pytest.mark.parametrize("waiting", [False, True], ids=["direct", "waiting"])
def test_stock_restock(stages: list[tuple[str, dict[str, Any]]], restocked: list[int], waiting: bool) -> None:
    builder = OrderBuilder() if waiting else built_order()
    for status, more in stages:
        builder.give_back(status, **more)
    if waiting:
        builder.create(*LINES)
    assert builder.published("stock.restock") == [
        {
            "restock_id": made_id(f"restock:{returned(1)}"),
            "order_id": ORDER,
            "seller_id": ANNA,
            "return_id": returned(1),
            "item_id": item_id(1),
            "product_id": LINES[1]["product_id"],
            "sku": "sku-1",
            "quantity": quantity,
        }
        for quantity in restocked
    ]


def test_a_restock_does_not_depend_on_which_stage_came_first() -> None:
    for stages in (("processed", "rejected"), ("rejected", "processed")):
        builder = built_order()
        for status in stages:
            builder.give_back(status, hour=5 if status == "rejected" else 6)
        assert len(builder.published("stock.restock")) == 1


def test_refund_request() -> None:
    builder = full()
    assert builder.published("refund.request") == [
        {
            "refund_id": made_id("refund:0"),
            "order_id": ORDER,
            "amount": "9.82",
            "currency": "EUR",
            "cause": "return",
            "cause_id": returned(1),
            "lines": [{"item_id": item_id(1), "quantity": 1, "amount": "9.82"}],
            "shipping_amount": "0.00",
            "allocations": [{"payment_id": payment(1), "amount": "9.82"}],
            "attempt": 1,
        },
        {
            "refund_id": made_id("refund:1"),
            "order_id": ORDER,
            "amount": "32.45",
            "currency": "EUR",
            "cause": "stock",
            "cause_id": BORIS,
            "lines": [{"item_id": item_id(3), "quantity": 1, "amount": "29.45"}],
            "shipping_amount": "3.00",
            "allocations": [{"payment_id": payment(1), "amount": "32.45"}],
            "attempt": 1,
        },
    ]


def test_a_decision_goes_to_its_own_topic() -> None:
    builder = built_order()
    builder.pay(TOTAL)
    (decided,) = [each for each in builder.stock("rejected", BORIS).effects if each.type == "refund.decided"]
    assert isinstance(decided, Derived)
    assert decided.topic == DECISIONS
    assert msgspec.json.decode(msgspec.json.encode(decided.data)) == {
        "order_id": ORDER,
        "n": 0,
        "amount": 3245,
        "cause": "stock",
        "cause_id": BORIS,
        "units": [[item_id(3), 0]],
        "shipping": [item_id(3)],
        "allocations": [[payment(1), 3245]],
    }


# -- notices -------------------------------------------------------------------------------------------------


def test_order_status_changed() -> None:
    builder = built_order()
    builder.take(
        event(
            "order.paid",
            {"order_id": ORDER, "payment_id": payment(1), "amount": TOTAL, "currency": "EUR"},
            id="the payment",
        )
    )
    builder.pay("1.00", 2)
    builder.scan("in_transit")
    changes = builder.published("order.status_changed")
    assert changes[0] == {
        "order_id": ORDER,
        "user_id": USER,
        "from": "pending",
        "to": "confirmed",
        "cause": {"type": "order.paid", "id": "the payment"},
        "version": 2,
    }
    assert [(each["from"], each["to"], each["version"]) for each in changes] == [
        ("pending", "confirmed", 2),
        ("confirmed", "shipped", 4),
    ]


def test_a_pending_order_is_no_change() -> None:
    assert built_order().published("order.status_changed") == []


def test_a_late_order_changes_once() -> None:
    builder = OrderBuilder()
    builder.pay(TOTAL)
    builder.scan("delivered", 1)
    builder.scan("delivered", 2, seller=BORIS)
    builder.create(*LINES, discount="1.00")
    assert [(each["from"], each["to"]) for each in builder.published("order.status_changed")] == [
        ("pending", "delivered")
    ]


def test_a_status_may_fall() -> None:
    builder = OrderBuilder()
    builder.create(line(1, quantity=2))
    builder.scan("delivered", 1, items={1: 1})
    builder.stock("released", items={1: 1})
    builder.scan("in_transit", 2, items={1: 1})
    assert [each["to"] for each in builder.published("order.status_changed")] == [
        "shipped",
        "delivered",
        "shipped",
    ]


# -- on the wire ---------------------------------------------------------------------------------------------

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize("trace", [None, TRACE], ids=["without trace", "with trace"])
def test_headers_of_a_derived_event(trace: str | None) -> None:
    cause = event(
        "order.created",
        {"order_id": ORDER, "user_id": USER, "currency": "EUR", "total_amount": "10", "items": [line(1)]},
        4,
        traceparent=trace,
    )
    builder = OrderBuilder()
    derived = next(each for each in builder.take(cause).effects if each.type == "stock.reserve")
    assert isinstance(derived, Derived)
    value, headers = effects.encode(derived, raw(ORDER), effects.headers_of(cause))
    by_name = {name: text.decode() for name, text in headers}
    assert len(by_name) == len(headers)
    assert msgspec.json.decode(value) == builder.published("stock.reserve")[0]
    assert by_name.pop("ce_dataschema").endswith("/v1")
    carried = {} if trace is None else {"ce_traceparent": TRACE, "traceparent": TRACE}
    assert (
        by_name
        == {
            "ce_specversion": "1.0",
            "ce_type": "stock.reserve",
            "ce_source": "/orders",
            "ce_id": made_id(f"stock.reserve:{made_id(f'reservation:{ANNA}')}"),
            "ce_time": moment(4),
            "ce_causeid": "event-1",
            "content-type": "application/json",
        }
        | carried
    )
