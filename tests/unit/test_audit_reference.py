"""The auditor's reference, rule by rule."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.currencies import MINOR_DIGITS
from audit.reference import (
    Anomaly,
    Decision,
    Fact,
    Order,
    Reading,
    Refusal,
    money,
    money_text,
    parse,
    parse_decision,
    shares,
)

NAMESPACE = UUID("00000000-0000-4000-8000-000000000000")


def uid(name: str) -> str:
    return str(uuid5(NAMESPACE, name))


ORDER, USER, ANN, BOB = uid("order"), uid("user"), uid("ann"), uid("bob")
A, B, C = sorted((uid("item a"), uid("item b"), uid("item c")))


def item(
    item_id: str = A, seller: str = ANN, quantity: int = 2, price: str = "10.00", **more: Any
) -> dict[str, Any]:
    product = {"item_id": item_id, "product_id": uid("product"), "seller_id": seller, "sku": "SKU-1"}
    return {**product, "quantity": quantity, "price": price, **more}


def created(items: Sequence[dict[str, Any]] | None = None, **more: Any) -> dict[str, Any]:
    items = [item()] if items is None else list(items)
    currency = more.get("currency", "EUR")
    whole = sum(
        money(each["price"], currency) * each["quantity"] + money(each.get("shipping_amount", "0"), currency)
        for each in items
    )
    total = money_text(whole - money(more.get("discount_amount", "0"), currency), currency)
    return {
        "order_id": ORDER,
        "user_id": USER,
        "currency": "EUR",
        "total_amount": total,
        "items": items,
        **more,
    }


def at(minute: int) -> str:
    return f"2026-01-02T03:{minute:02d}:00Z"


def headers(type_: str, **attributes: str) -> list[tuple[str, bytes | None]]:
    given = {
        "specversion": "1.0",
        "id": "event-1",
        "source": "/tests",
        "type": type_,
        "time": at(0),
        **attributes,
    }
    return [(f"ce_{name}", value.encode()) for name, value in given.items() if value != "-"]


def binary(type_: str, data: Any, **attributes: str) -> Fact | Refusal:
    return parse(type_, ORDER.encode(), json.dumps(data).encode(), headers(type_, **attributes))


def raw(value: bytes | None, type_: str = "order.paid") -> Fact | Refusal:
    return parse(type_, ORDER.encode(), value, headers(type_))


def fact(type_: str, minute: int = 0, /, **data: Any) -> Fact:
    parsed = binary(type_, {"order_id": ORDER, **data}, time=at(minute))
    assert isinstance(parsed, Fact), parsed
    return parsed


def order(*items: dict[str, Any], **more: Any) -> Fact:
    return fact("order.created", 0, **created(items or None, **more))


def paid(amount: str = "20.00", name: str = "p", **more: Any) -> Fact:
    return fact("order.paid", 1, payment_id=uid(name), amount=amount, **{"currency": "EUR", **more})


def scan(status: str, minute: int = 2, name: str = "s", seller: str = ANN, **more: Any) -> Fact:
    return fact("shipment.updated", minute, shipment_id=uid(name), seller_id=seller, status=status, **more)


def stock(kind: str, seller: str = ANN, **more: Any) -> Fact:
    reservation = str(uuid5(UUID(ORDER), f"reservation:{seller}"))
    return fact(f"stock.{kind}", 1, **{"seller_id": seller, "reservation_id": reservation, **more})


def back(status: str = "processed", minute: int = 5, name: str = "r", item_id: str = A, **more: Any) -> Fact:
    return fact(
        "order.returned",
        minute,
        return_id=uid(name),
        item_id=item_id,
        status=status,
        **{"reason": "broken", **more},
    )


def units(item_id: str, quantity: int) -> list[dict[str, Any]]:
    return [{"item_id": item_id, "quantity": quantity}]


def fold(*facts: Fact, decisions: Sequence[Decision] = ()) -> Reading:
    held = Order(ORDER)
    for each in facts:
        held.add(each)
    for decision in decisions:
        assert held.decide(decision)
    return held.reading()


# -- records -------------------------------------------------------------------------------------------------

PAID = {"order_id": ORDER, "payment_id": uid("p"), "amount": "1.00", "currency": "EUR"}
SCAN = {"order_id": ORDER, "shipment_id": uid("s"), "seller_id": ANN, "status": "in_transit"}


def test_both_bindings_say_the_same() -> None:
    plain = binary("order.paid", PAID)
    event = {
        "specversion": "1.0",
        "id": "1",
        "source": "/x",
        "type": "order.paid",
        "time": at(0),
        "dataschema": None,
        "data": PAID,
    }
    structured = [("content-type", b"application/cloudevents+json; charset=utf-8")]
    assert isinstance(plain, Fact)
    assert parse("order.paid", None, json.dumps(event).encode(), structured) == plain


def test_values_are_normalised() -> None:
    created_at = "2026-01-02t05:04:06.1234569+02:00"
    data = {**PAID, "order_id": ORDER.replace("-", "").upper(), "amount": "1.5", "later": {"field": [None]}}
    parsed = binary("order.paid", data, time=created_at)
    assert isinstance(parsed, Fact)
    assert parsed.order_id == ORDER
    assert parsed.content["amount"] == 150
    assert parsed.time == datetime(2026, 1, 2, 3, 4, 6, 123456, UTC)
    assert "later" not in parsed.content


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (None, "tombstone"),
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"\xef\xbb\xbf{}", "not_json"),
        (b'{"order_id": "\xff"}', "not_json"),
        (json.dumps({**PAID, "amount": float("nan")}).encode(), "not_json"),
        (b"[" * 200_000, "not_json"),
        (b"[" * 200_000 + b"]" * 200_000, "not_json"),
        (json.dumps({**PAID, "method": "\ud800"}).encode(), "not_json"),
        (json.dumps({**PAID, "method": "a\0b"}).encode(), "field_malformed"),
        (json.dumps({**PAID, "amount": 1.5}).encode(), "field_malformed"),
        (json.dumps(PAID).replace('"1.00"', "1e400").encode(), "field_malformed"),
        (json.dumps(PAID).replace('"1.00"', "9" * 9999).encode(), "field_malformed"),
        (b"[]", "field_malformed"),
        (b"null", "field_malformed"),
    ],
)
def test_bad_bytes(value: bytes | None, code: str) -> None:
    parsed = raw(value)
    assert isinstance(parsed, Refusal)
    assert parsed.code == code


@pytest.mark.parametrize(
    ("attributes", "code"),
    [
        ({"specversion": "0.3"}, "not_cloudevent"),
        ({"specversion": "-"}, "not_cloudevent"),
        ({"id": "-"}, "not_cloudevent"),
        ({"id": ""}, "not_cloudevent"),
        ({"source": "-"}, "not_cloudevent"),
        ({"type": "-"}, "not_cloudevent"),
        ({"type": "order.eaten"}, "type_unknown"),
        ({"type": "refund.decided"}, "type_wrong_topic"),
        ({"type": "payment.failed"}, "type_wrong_topic"),
        ({"dataschema": "https://example.org/paid/v2"}, "version_unknown"),
        ({"time": "-"}, "field_missing"),
        ({"time": "2026-01-02T03:04:05"}, "field_malformed"),
        ({"time": "2026-02-30T03:04:05Z"}, "field_malformed"),
        ({"time": "2026-01-02T03:04:61Z"}, "field_malformed"),
        ({"time": "2026-01-02T03:04:05+24:00"}, "field_malformed"),
        ({"time": "0001-01-01T00:00:00+01:00"}, "field_malformed"),
    ],
)
def test_bad_attributes(attributes: dict[str, str], code: str) -> None:
    parsed = parse("order.paid", None, json.dumps(PAID).encode(), headers("order.paid", **attributes))
    assert isinstance(parsed, Refusal)
    assert parsed.code == code


@pytest.mark.parametrize(
    "written", ["2016-12-31T23:59:60Z", "2016-12-31T23:59:60.25z", "2017-01-01T00:59:60+01:00"]
)
def test_a_leap_second_is_the_last_microsecond_of_its_minute(written: str) -> None:
    parsed = binary("order.paid", PAID, time=written)
    assert isinstance(parsed, Fact)
    assert parsed.time == datetime(2016, 12, 31, 23, 59, 59, 999_999, UTC)


def test_a_known_schema_version_is_taken() -> None:
    assert isinstance(binary("order.paid", PAID, dataschema="https://example.org/order.paid/v1"), Fact)


def test_a_batch_of_events_is_no_event() -> None:
    parsed = parse("order.paid", None, b"[]", [("content-type", b"application/cloudevents-batch+json")])
    assert parsed == Refusal("not_cloudevent", "content-type application/cloudevents-batch+json")


@pytest.mark.parametrize(
    ("changes", "code", "path"),
    [
        ({"amount": "0.00"}, "field_malformed", "amount"),
        ({"amount": "-1.00"}, "field_malformed", "amount"),
        ({"amount": "01.00"}, "field_malformed", "amount"),
        ({"amount": "1."}, "field_malformed", "amount"),
        ({"amount": "1.000"}, "field_malformed", "amount"),
        ({"amount": "1.00\n"}, "field_malformed", "amount"),
        ({"amount": "١.00"}, "field_malformed", "amount"),
        ({"amount": "10000000000000.01"}, "field_malformed", "amount"),
        ({"amount": "100.0", "currency": "JPY"}, "field_malformed", "amount"),
        ({"currency": "EURO"}, "currency_unknown", "currency"),
        ({"currency": "eur"}, "currency_unknown", "currency"),
        ({"currency": "XAU"}, "currency_unknown", "currency"),
        ({"currency": 978}, "field_malformed", "currency"),
        ({"payment_id": "urn:uuid:" + uid("p")}, "field_malformed", "payment_id"),
        ({"payment_id": "{" + uid("p") + "}"}, "field_malformed", "payment_id"),
        ({"payment_id": uid("p") + "\n"}, "field_malformed", "payment_id"),
        ({"payment_id": None}, "field_malformed", "payment_id"),
        ({"method": None}, "field_malformed", "method"),
        ({"method": "x" * 1001}, "field_malformed", "method"),
    ],
)
def test_bad_fields(changes: dict[str, Any], code: str, path: str) -> None:
    assert binary("order.paid", {**PAID, **changes}) == Refusal(code, path)


@pytest.mark.parametrize("name", ["order_id", "payment_id", "amount", "currency"])
def test_a_required_field_is_missing(name: str) -> None:
    assert binary("order.paid", {key: value for key, value in PAID.items() if key != name}) == Refusal(
        "field_missing", name
    )


@pytest.mark.parametrize(
    ("data", "code", "path"),
    [
        (created(total_amount="20.01"), "total_mismatch", "total_amount"),
        (created(discount_amount="20.01", total_amount="0"), "discount_too_large", "discount_amount"),
        (
            created([item(shipping_amount="5.00")], discount_amount="22.00"),
            "discount_too_large",
            "discount_amount",
        ),
        (created([item(), item()]), "item_repeated", "items"),
        (created([], total_amount="0"), "field_malformed", "items"),
        (created([item(quantity=1)] * 1001), "field_malformed", "items"),
        (created([item(quantity=0)]), "field_malformed", "items[0].quantity"),
        (created([item(quantity=100_001)]), "field_malformed", "items[0].quantity"),
        (created() | {"items": [item() | {"quantity": True}]}, "field_malformed", "items[0].quantity"),
        (created() | {"items": [item() | {"quantity": 2.0}]}, "field_malformed", "items[0].quantity"),
        (created() | {"items": ["x"]}, "field_malformed", "items[0]"),
        (created([item() | {"warehouse_id": "here"}]), "field_malformed", "items[0].warehouse_id"),
        (created(region=None), "field_malformed", "region"),
    ],
)
def test_bad_orders(data: dict[str, Any], code: str, path: str) -> None:
    assert binary("order.created", data) == Refusal(code, path)


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"status": "lost"}, "status"),
        ({"estimated_delivery": "2026-13-01"}, "estimated_delivery"),
        ({"estimated_delivery": "2026-01-01T00:00:00"}, "estimated_delivery"),
        ({"items": [{"item_id": A}]}, "items[0].quantity"),
        ({"items": {}}, "items"),
    ],
)
def test_bad_scans(changes: dict[str, Any], path: str) -> None:
    parsed = binary("shipment.updated", {**SCAN, **changes})
    assert isinstance(parsed, Refusal)
    assert parsed.detail == path


def test_an_item_twice_in_a_parcel() -> None:
    twice = [{"item_id": A, "quantity": 1}, {"item_id": A.upper(), "quantity": 1}]
    assert binary("shipment.updated", {**SCAN, "items": twice}) == Refusal("item_repeated", "items")


def test_currencies_have_their_digits() -> None:
    assert {code: MINOR_DIGITS[code] for code in ("JPY", "EUR", "BHD", "CLF")} == {
        "JPY": 0,
        "EUR": 2,
        "BHD": 3,
        "CLF": 4,
    }
    assert [money_text(1234567, code) for code in ("JPY", "EUR", "BHD")] == [
        "1234567",
        "12345.67",
        "1234.567",
    ]
    assert money("1000000000000000", "JPY") == 10**15
    with pytest.raises(ValueError, match="too much"):
        money("1000000000000001", "JPY")


# -- natural keys --------------------------------------------------------------------------------------------


def test_the_first_content_of_a_key_stays_and_the_earliest_time() -> None:
    held = Order(ORDER)
    for each in (order(), paid("20.00"), paid("3.00")):
        held.add(each)
    held.add(fact("order.created", 9, **created()))
    reading = held.reading()
    assert (reading.captured, reading.version) == (2000, 2)
    assert reading.created is not None
    assert reading.created.time == datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
    assert len(held.candidates["order.paid", uid("p")]) == 2


def test_the_log_does_not_tell_direct_from_rekeyed() -> None:
    held = Order(ORDER)
    held.add(order())
    held.add(paid("20.00"))
    held.add(paid("3.00"), rekeyed=True)
    held.add(paid("4.00"))
    assert sorted(reading.captured for reading in held.readings()) == [300, 2000]
    held = Order(ORDER)
    held.add(order())
    held.add(paid("20.00"))
    held.add(paid("20.00"), rekeyed=True)
    assert [reading.captured for reading in held.readings()] == [2000]


def test_every_reading_of_several_such_keys_is_looked_at() -> None:
    held = Order(ORDER)
    held.add(order())
    for n in range(6):
        held.add(paid(f"{2**n}.00", f"p{n}"))
        held.add(paid("100.00", f"p{n}"), rekeyed=True)
    expected = {sum(100 if picks >> n & 1 else 2**n for n in range(6)) for picks in range(64)}
    assert {reading.captured // 100 for reading in held.readings()} == expected


def test_an_absent_field_equals_only_an_absent_one() -> None:
    held = Order(ORDER)
    held.add(order())
    held.add(order(region=""))
    held.add(order(discount_amount="0"))
    assert len(held.candidates["created",]) == 3


def test_a_reason_is_no_content_and_the_earliest_stays() -> None:
    held = Order(ORDER)
    held.add(order())
    for minute, reason in ((7, "late"), (5, "b"), (5, "a"), (6, "0")):
        held.add(back("requested", minute, reason=reason))
    (row,) = held.reading().rows()["orders_return"]
    assert (row[6], row[9], row[10], row[11]) == (
        "a",
        "2026-01-02T03:05:00+00:00",
        "2026-01-02T03:05:00+00:00",
        1,
    )


def test_partial_stock_replies_are_facts_of_their_own() -> None:
    facts = [
        stock("released", items=units(A, 1)),
        stock("released", items=units(A, 2)),
        stock("rejected", items=units(A, 1)),
    ]
    reading = fold(order(item(quantity=5)), *facts)
    assert (reading.version, reading.lines[0].gone, reading.lines[0].live_count) == (4, 4, 1)


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (paid(currency="USD"), "order_currency"),
        (stock("rejected", BOB), "order_seller"),
        (stock("rejected", items=units(B, 1)), "order_item"),
        (scan("delivered", items=units(C, 1)), "order_seller"),
        (scan("delivered", seller=uid("nobody")), "order_seller"),
        (back(item_id=B), "order_item"),
        (fact("order.cancel_requested", 1, reason="x", seller_id=BOB), "order_seller"),
    ],
)
def test_refused_for_the_orders_sake_keeps_its_key(refused: Fact, code: str) -> None:
    sellers = order(item(A), item(C, uid("another seller")))
    assert fold(refused).refused == {}
    for facts in ((sellers, refused), (refused, sellers)):
        reading = fold(*facts)
        assert reading.refused[refused.key].code == code
        assert reading.version == 2
        assert [len(rows) for rows in reading.rows().values()] == [1, 2, 0, 0, 2, 0, 0, 0]
        assert reading.rows()["orders_order"][0][11] == "2026-01-02T03:00:00+00:00"


# -- units and status ----------------------------------------------------------------------------------------

TWO = (item(A, ANN, 2), item(B, BOB, 1, "5.00"))


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ([], "pending"),
        ([paid("24.99")], "pending"),
        ([paid("20.00"), paid("5.00", "q")], "confirmed"),
        ([scan("pending")], "pending"),
        ([scan("in_transit")], "shipped"),
        ([scan("delivered")], "shipped"),
        ([scan("delivered"), scan("delivered", name="t", seller=BOB)], "delivered"),
        ([scan("delivered", items=units(A, 1)), scan("delivered", name="t", seller=BOB)], "shipped"),
        ([scan("delivered"), scan("returned", name="t", seller=BOB)], "delivered"),
        ([scan("returned"), scan("returned", name="t", seller=BOB)], "returned"),
        ([scan("delivered", 3), scan("in_transit", 9), scan("delivered", name="t", seller=BOB)], "delivered"),
        # What is gone is not waited for.
        ([scan("delivered"), stock("rejected", BOB)], "delivered"),
        ([paid("20.00"), stock("rejected", BOB)], "confirmed"),
        ([paid("20.00"), stock("reserved", BOB)], "pending"),
        ([fact("order.cancel_requested", 1, reason="x")], "pending"),
        # Nothing live: never more than confirmed.
        ([paid("25.00"), stock("rejected", ANN), stock("released", BOB)], "confirmed"),
        ([paid("20.00"), stock("rejected", ANN), stock("released", BOB)], "pending"),
        # A parcel under way is live whatever the inventory said.
        ([stock("rejected", ANN), scan("in_transit")], "shipped"),
        # Returns turn the highest units into returned ones.
        ([back(), scan("delivered", name="t", seller=BOB)], "delivered"),
        ([back(), scan("returned", name="t", seller=BOB)], "returned"),
        ([back("requested"), scan("returned", name="t", seller=BOB)], "shipped"),
        ([back(quantity=1), scan("delivered", name="t", seller=BOB)], "shipped"),
        (
            [back(quantity=1), back(name="r2", quantity=1), scan("delivered", name="t", seller=BOB)],
            "delivered",
        ),
        ([back(quantity=9), scan("returned", name="t", seller=BOB)], "returned"),
    ],
)
def test_status(facts: list[Fact], status: str) -> None:
    assert fold(order(*TWO), *facts).status() == status
    assert fold(*facts, order(*TWO)).status() == status


def test_an_order_that_costs_nothing_is_confirmed() -> None:
    reading = fold(order(item(price="0.00")))
    assert reading.status() == "confirmed"
    assert {type_ for type_, _ in reading.derived()} == {"suborder.created", "stock.reserve"}


def test_units_are_numbered_from_the_highest_rank_down() -> None:
    facts = [
        scan("in_transit", items=units(A, 2)),
        scan("delivered", name="t", items=units(A, 1)),
        stock("released", items=units(A, 1)),
    ]
    line = fold(order(item(quantity=5)), *facts, back(quantity=2)).lines[0]
    assert [unit.rank for unit in line.units] == [3, 3, 1, 0, 0]
    assert [unit.live for unit in line.units] == [True, True, True, True, False]


@given(
    quantity=st.integers(1, 8),
    parcels=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=4),
    returns=st.lists(st.integers(1, 9), max_size=3),
    gone=st.integers(0, 9),
    discount=st.integers(0, 50),
)
def test_counts_of_a_line_equal_its_units_one_by_one(
    quantity: int, parcels: list[tuple[int, int]], returns: list[int], gone: int, discount: int
) -> None:
    words = ("pending", "in_transit", "delivered", "returned")
    cents = money_text(min(discount, 7 * quantity), "EUR")
    facts = [
        scan(words[rank], name=f"s{n}", items=units(A, count)) for n, (rank, count) in enumerate(parcels)
    ]
    facts += [back(name=f"r{n}", quantity=count) for n, count in enumerate(returns)]
    facts += [stock("released", items=units(A, gone))] if gone else []
    line = fold(order(item(quantity=quantity, price="0.07"), discount_amount=cents), *facts).lines[0]
    ranks = [
        max(
            (rank for rank in range(4) if sum(c for r, c in parcels if r >= rank) > n or rank == 0), default=0
        )
        for n in range(quantity)
    ]
    moving = sum(rank > 0 for rank in ranks)
    for _ in range(sum(min(quantity, count) for count in returns)):
        ranks.sort(reverse=True)
        place = next((n for n, rank in enumerate(ranks) if rank < 3), None)
        if place is not None:
            ranks[place] = 3
    assert [unit.rank for unit in line.units] == sorted(ranks, reverse=True)
    assert [unit.live for unit in line.units].count(True) == max(quantity - min(gone, quantity), moving)
    assert sum(unit.net for unit in line.units) == 7 * quantity - min(discount, 7 * quantity)


@pytest.mark.parametrize(
    ("amount", "weights", "parts"),
    [
        (10, [1, 1, 1], [4, 3, 3]),
        (1, [1, 2], [0, 1]),
        (5, [3, 3, 4], [2, 1, 2]),
        (0, [0, 0], [0, 0]),
        (7, [7], [7]),
        (100, [0, 1], [0, 100]),
    ],
)
def test_largest_remainder(amount: int, weights: list[int], parts: list[int]) -> None:
    assert shares(amount, weights) == parts


def test_nothing_to_split_by() -> None:
    with pytest.raises(ValueError, match="nothing to split by"):
        shares(1, [0])


@given(st.integers(0, 10**6), st.lists(st.integers(0, 10**6), min_size=1, max_size=9).filter(any))
def test_shares_add_up_and_are_near(amount: int, weights: list[int]) -> None:
    parts = shares(amount, weights)
    assert sum(parts) == amount
    assert all(
        abs(part * sum(weights) - amount * weight) < sum(weights)
        for part, weight in zip(parts, weights, strict=True)
    )


# -- rows ----------------------------------------------------------------------------------------------------


def test_rows_hold_every_column() -> None:
    house = uid("warehouse")
    goods = item(quantity=3, warehouse_id=house, shipping_amount="1.50")
    rows = fold(
        order(goods, region="SP", discount_amount="0.50"),
        scan("in_transit", 2, carrier="C", tracking_number="T1", estimated_delivery="2026-02-01"),
        scan("delivered", 4, warehouse_id=house, estimated_delivery="2026-02-01T10:00:00.5+01:00"),
        back("requested", 6, quantity=1),
        back("processed", 7, quantity=1, reason="cold", processed_at="2026-01-03T00:00:00Z"),
        back("rejected", 8, quantity=1),
    ).rows()
    whose = (USER, "SP")
    assert rows["orders_order"][0] == (
        *(ORDER, *whose, "delivered", "EUR", "31.00", "0.50", "0.00", None, None),
        *("2026-01-02T03:00:00+00:00", "2026-01-02T03:08:00+00:00", 6),
    )
    assert rows["orders_order_item"] == [
        (
            *(A, ORDER, *whose, uid("product"), ANN, house, "SKU-1", 3, "10.00", "1.50", "0.00", "0.00"),
            *("2026-01-02T03:00:00+00:00", "2026-01-02T03:00:00+00:00", 1),
        )
    ]
    assert rows["orders_shipment"] == [
        (
            *(
                uid("s"),
                ORDER,
                *whose,
                ANN,
                house,
                None,
                None,
                "delivered",
                "2026-02-01T09:00:00.500000+00:00",
            ),
            *("2026-01-02T03:02:00+00:00", "2026-01-02T03:04:00+00:00", 2),
        )
    ]
    assert rows["orders_return"] == [
        (
            *(uid("r"), ORDER, *whose, A, 1, "cold", "processed", "2026-01-03T00:00:00+00:00"),
            *("2026-01-02T03:06:00+00:00", "2026-01-02T03:08:00+00:00", 3),
        )
    ]


@pytest.mark.parametrize(
    ("stages", "status"),
    [
        ([("processed", 5), ("rejected", 5)], "processed"),
        ([("processed", 6), ("rejected", 5)], "rejected"),
        ([("requested", 9), ("rejected", 10)], "rejected"),
        ([("requested", 9)], "requested"),
    ],
)
def test_the_winning_stage_of_a_return(stages: list[tuple[str, int]], status: str) -> None:
    row = fold(order(), *(back(stage, minute) for stage, minute in stages)).rows()["orders_return"][0]
    assert row[7] == status
    assert row[8] == ("2026-01-02T03:05:00+00:00" if status == "processed" else None)
    assert row[5] == 2


def test_nothing_is_written_of_an_unknown_order() -> None:
    reading = fold(paid(), scan("delivered"), back())
    assert not any(reading.rows().values())
    assert reading.derived() == {}
    assert len(reading.waiting()) == 3
    with pytest.raises(LookupError):
        reading.status()


# -- refunds -------------------------------------------------------------------------------------------------


def decision(
    n: int,
    amount: int,
    cause: str,
    cause_id: str,
    numbers: Sequence[tuple[str, int]] = (),
    ships: Sequence[str] = (),
    minute: int = 0,
) -> Decision:
    time = datetime(2026, 1, 2, 3, minute, tzinfo=UTC)
    return Decision(ORDER, n, amount, cause, cause_id, tuple(numbers), tuple(ships), time=time)


def test_a_return_is_owed_its_units_less_their_discount() -> None:
    facts = [
        order(item(quantity=3, price="1.00"), discount_amount="0.10"),
        paid("2.90"),
        scan("delivered"),
        back(quantity=2),
    ]
    (owed,) = fold(*facts).owed()
    assert (owed.amount, owed.cause, owed.cause_id, owed.units, owed.covered) == (
        96 + 97,
        "return",
        uid("r"),
        ((A, 0), (A, 1)),
        True,
    )
    paid_for = decision(0, 193, "return", uid("r"), [(A, 0), (A, 1)])
    assert fold(*facts, decisions=[paid_for]).owed() == []
    (rest,) = fold(*facts, back(name="r2", quantity=2), decisions=[paid_for]).owed()
    assert (rest.amount, rest.units) == (97, ((A, 2),))


def test_a_return_whose_lowest_units_are_worth_nothing_is_owed_the_lowest_that_are_worth_something() -> None:
    yen = [
        order(item(quantity=4, price="1"), currency="JPY", discount_amount="2"),
        paid("2", currency="JPY"),
        back(quantity=1),
    ]
    (owed,) = fold(*yen).owed()
    assert (owed.amount, owed.units) == (1, ((A, 2),))
    rest = [decision(0, 1, "return", uid("r"), [(A, 2)]), decision(1, 1, "return", uid("r2"), [(A, 3)])]
    assert fold(*yen, back(name="r2", quantity=3), decisions=rest[:1]).owed()[0].units == (
        (A, 0),
        (A, 1),
        (A, 3),
    )
    assert fold(*yen, back(name="r2", quantity=1), back(name="r3", quantity=2), decisions=rest).owed() == []


def test_a_commit_holds_no_more_than_the_line_has() -> None:
    (commit,) = fold(order(item(A), item(B)), scan("in_transit", items=[*units(A, 9), *units(B, 1)])).commits[
        uid("s")
    ]
    assert [each["quantity"] for each in commit["items"]] == [2, 1]


def test_a_seller_owes_what_is_gone_with_the_shipping_of_dead_lines() -> None:
    lines = (item(A, ANN, 2, shipping_amount="3.00"), item(B, ANN, 1, shipping_amount="4.00"), item(C, BOB))
    gone = [{"item_id": A, "quantity": 1}, {"item_id": B, "quantity": 1}]
    reading = fold(order(*lines), paid("57.00"), stock("released", items=gone))
    assert [(o.amount, o.cause, o.cause_id, o.units, o.shipping) for o in reading.owed()] == [
        (2400, "stock", ANN, ((A, 1), (B, 0)), (B,))
    ]
    assert [
        owed.covered for owed in fold(order(*lines), paid("20.00"), stock("released", items=gone)).owed()
    ] == [False]
    assert (
        Anomaly("refund_not_covered", f"stock {ANN}")
        in fold(order(*lines), stock("released", items=gone)).anomalies()
    )


def test_a_dead_order_is_closed_with_all_that_was_captured() -> None:
    facts = [order(), paid("25.00"), stock("rejected")]
    (owed,) = fold(*facts).owed()
    assert (owed.amount, owed.cause, owed.cause_id, owed.units) == (2500, "closed", ORDER, ())
    assert fold(*facts, decisions=[decision(0, 2500, "closed", ORDER)]).owed() == []
    assert fold(order(), stock("rejected")).owed() == []


def test_the_first_decision_of_each_number_counts() -> None:
    held = Order(ORDER)
    held.add(order())
    assert held.decide(decision(0, 100, "return", uid("r")))
    assert not held.decide(decision(0, 200, "return", uid("r")))
    assert not held.decide(decision(2, 200, "return", uid("r")))
    assert held.reading().refunded == 100


def test_a_decision_record() -> None:
    data = {
        "order_id": ORDER,
        "n": 0,
        "amount": 100,
        "cause": "stock",
        "cause_id": ANN,
        "units": [[A, 1]],
        "shipping": [A],
    }
    read = parse_decision(json.dumps(data).encode(), headers("refund.decided"))
    assert read == decision(0, 100, "stock", ANN, [(A, 1)], [A])
    assert parse_decision(json.dumps(data).encode(), headers("order.paid")) == Refusal(
        "type_unknown", "order.paid"
    )


# -- derived events ------------------------------------------------------------------------------------------


def test_derived_events() -> None:
    lines = (item(A, ANN, 2, shipping_amount="1.00"), item(B, BOB, 1, "0.01"))
    processed = [back(quantity=9), back("rejected", 4), back(name="r2", restock=False)]
    reading = fold(
        order(*lines, discount_amount="0.10"), *processed, decisions=[decision(0, 50, "return", uid("r"))]
    )
    events = reading.derived()

    def own(name: str) -> str:
        return str(uuid5(UUID(ORDER), name))

    assert set(events) == {
        ("suborder.created", own(f"suborder:{ANN}")),
        ("suborder.created", own(f"suborder:{BOB}")),
        ("stock.reserve", own(f"reservation:{ANN}")),
        ("stock.reserve", own(f"reservation:{BOB}")),
        ("payment.initiate", own("payment")),
        ("stock.restock", own(f"restock:{uid('r')}")),
        ("refund.request", own("refund:0")),
    }
    suborder = events["suborder.created", own(f"suborder:{ANN}")]
    amounts = [
        suborder[name]
        for name in (
            "status",
            "items_amount",
            "shipping_amount",
            "discount_amount",
            "total_amount",
            "version",
        )
    ]
    assert amounts == ["pending", "20.00", "1.00", "0.10", "20.90", 1]
    assert events["stock.restock", own(f"restock:{uid('r')}")]["quantity"] == 2
    assert events["payment.initiate", own("payment")]["amount"] == "20.91"
    assert events["refund.request", own("refund:0")]["amount"] == "0.50"
    assert reading.event_id("refund.request", own("refund:0")) == own(f"refund.request:{own('refund:0')}")


def test_anomalies() -> None:
    facts = [
        order(),
        paid("20.01"),
        back(quantity=3),
        scan("in_transit"),
        stock("rejected", reservation_id=uid("other")),
        fact("refund.failed", 1, refund_id=uid("f")),
    ]
    codes = {anomaly.code for anomaly in fold(*facts).anomalies()}
    assert codes >= {
        "captured_above_total",
        "returned_above_quantity",
        "in_transit_above_stock",
        "reservation_unknown",
        "refund_failed",
    }
    assert fold(order(), paid(), scan("delivered"), back()).anomalies() == []


# -- any order of arrival ------------------------------------------------------------------------------------

HISTORY = [
    order(item(A, ANN, 3, shipping_amount="1.00"), item(B, BOB, 2), discount_amount="0.07"),
    paid("30.00"),
    paid("20.93", "q"),
    paid("1.00", "usd", currency="USD"),
    stock("reserved"),
    stock("released", items=units(A, 1)),
    stock("rejected", BOB),
    scan("in_transit", 3, items=units(A, 2)),
    scan("delivered", 9, items=units(A, 1)),
    scan("in_transit", 4, "t", BOB, items=units(B, 1)),
    scan("delivered", 5, "u", uid("nobody")),
    back("requested", 10, quantity=1),
    back("processed", 11, quantity=1),
    back("rejected", 11, quantity=1),
    fact("order.cancel_requested", 2, reason="mind changed"),
    fact("payment.failed", 1, payment_id=uid("z"), reason="no"),
    fact("refund.failed", 12, refund_id=uid("f")),
]


@settings(max_examples=60)
@given(st.permutations(HISTORY), st.lists(st.sampled_from(HISTORY), max_size=6))
def test_any_order_of_arrival_and_any_repetition_is_the_same(history: list[Fact], again: list[Fact]) -> None:
    known, other = fold(*HISTORY), fold(*history, *again)
    assert other.rows() == known.rows()
    assert other.derived() == known.derived()
    assert sorted(other.anomalies()) == sorted(known.anomalies())
    assert other.refused == known.refused
    assert sorted(other.owed()) == sorted(known.owed())
