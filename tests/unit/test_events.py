"""From a Kafka record to a fact, or to a refusal with its code and path (docs/rules.md, Refusals).

All refusals that need no order are here.
"""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import msgspec
import pytest

from contracts import errors
from contracts.errors import Refused
from contracts.incoming import DATA
from contracts.topics import BULK, INPUT
from domain import events
from domain.enums import Rank, RefundCause, ReturnStatus, StockAnswer
from domain.order import (
    Cancellation,
    Created,
    Item,
    Payment,
    PaymentFailure,
    Promise,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    StockReply,
)
from tests.unit.builders import (
    ANNA,
    CART,
    CHECKOUT,
    ORDER,
    PLACED,
    STRANGER,
    STRUCTURED,
    USER,
    VALID,
    Data,
    Headers,
    attributes,
    binary,
    created,
    item_id,
    line,
    parcel,
    payment,
    raw,
    record,
    returned,
)

T0 = 1_767_225_600_000_000
HOUR = 3_600_000_000
BOTH = pytest.mark.parametrize("structured", [False, True], ids=["binary", "structured"])

PROMISED = (T0 + 24 * HOUR, T0 + 72 * HOUR)
LINE = Item(
    raw(item_id(1)),
    raw(line(1)["product_id"]),
    raw(ANNA),
    raw(STRANGER),
    "sku-1",
    2,
    1000,
    300,
    ship_by=PROMISED[0],
    deliver_by=PROMISED[1],
)

FACTS = {
    "order.created": Created(
        T0,
        raw(USER),
        "SP",
        "EUR",
        2200,
        100,
        [LINE],
        cart_id=raw(CART),
        cart_created_at=T0 - 2 * HOUR,
    ),
    "checkout.completed": Created(
        T0,
        raw(USER),
        "SP",
        "EUR",
        2200,
        100,
        [LINE],
        cart_id=raw(CART),
        cart_created_at=T0 - 2 * HOUR,
        checkout_id=raw(CHECKOUT),
    ),
    "order.paid": Payment(T0, raw(payment(1)), 2200, "EUR", "card"),
    "payment.failed": PaymentFailure(T0, raw(payment(1)), "declined"),
    "stock.reserved": StockReply(T0, StockAnswer.RESERVED, raw(ANNA), raw(STRANGER), None),
    "stock.rejected": StockReply(
        T0, StockAnswer.REJECTED, raw(ANNA), raw(STRANGER), [(raw(item_id(1)), 1)], "none left"
    ),
    "stock.released": StockReply(
        T0, StockAnswer.RELEASED, raw(ANNA), raw(STRANGER), [(raw(item_id(1)), 1)], "cancelled"
    ),
    "order.cancel_requested": Cancellation(T0, raw(ANNA), "changed my mind"),
    "promise.updated": Promise(T0, raw(ANNA), T0 + 48 * HOUR, T0 + 96 * HOUR),
    "shipment.updated": Scan(
        T0,
        raw(parcel(1)),
        Rank.IN_TRANSIT,
        raw(ANNA),
        raw(STRANGER),
        "Corvo",
        "T1",
        T0 + 96 * HOUR,
        "hub",
        [(raw(item_id(1)), 1)],
    ),
    "order.returned": ReturnStage(
        T0, raw(returned(1)), ReturnStatus.PROCESSED, raw(item_id(1)), 1, "too small", T0 + 9 * HOUR, True
    ),
    "refund.completed": RefundReply(T0, raw(STRANGER), False, "paid", attempt=2),
    "refund.failed": RefundReply(T0, raw(STRANGER), True, "account closed", attempt=2),
}


def refusal(topic: str, headers: Headers, value: bytes | None) -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        events.decode(topic, headers, value)
    assert refused.value.code in errors.REASONS
    return refused.value.code, refused.value.detail


def changed(type_: str, path: str, value: Any) -> Data:
    """A valid event's data with one field replaced; `path` as in a refusal's detail, without "$."."""
    data = copy.deepcopy(VALID[type_])
    target: Any = data
    *parents, name = path.replace("[0]", ".0").split(".")
    for step in parents:
        target = target[int(step) if step.isdigit() else step]
    target[name] = value
    return data


def required_fields(type_: str) -> list[str]:
    return [field.encode_name for field in msgspec.structs.fields(DATA[type_]) if field.required]


# -- accepted ------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("type_", FACTS)
def test_every_type_becomes_its_fact(type_: str, structured: bool) -> None:
    event = events.decode(type_, *record(type_, VALID[type_], structured))
    assert event.fact == FACTS[type_]
    order = PLACED if type_ == "checkout.completed" else ORDER
    assert (event.type, event.order_id, event.id, event.time, event.traceparent) == (
        type_,
        raw(order),
        "event-1",
        T0,
        None,
    )
    assert events.order_key(event) == order.encode()


def test_every_input_topic_has_its_event_type() -> None:
    assert set(DATA) == {*INPUT, *BULK, "refund.decided", "deadline.passed"}


@pytest.mark.parametrize("type_", INPUT)
def test_optional_fields_may_be_absent(type_: str) -> None:
    data = {name: value for name, value in VALID[type_].items() if name in required_fields(type_)}
    if type_ in ("order.created", "checkout.completed"):
        data |= {name: value for name, value in created(line(1)).items() if name in data}
    fact = events.decode(type_, *record(type_, data)).fact
    absent = {
        name: getattr(fact, name)
        for name in ("region", "discount", "method", "carrier", "restock", "processed_at")
        if hasattr(fact, name)
    }
    assert all(value is None for value in absent.values())
    assert getattr(fact, "items", None) is None or type_ in ("order.created", "checkout.completed")


@pytest.mark.parametrize(
    "write",
    [str.upper, str.lower, lambda text: text.replace("-", "")],
    ids=["upper case", "lower case", "without dashes"],
)
def test_ids_in_any_form_are_one_id(write: Any) -> None:
    assert events.decode(
        "order.paid", *record("order.paid", changed("order.paid", "order_id", write(ORDER)))
    ).order_id == raw(ORDER)


@pytest.mark.parametrize(
    "text",
    [
        ORDER[:-1],
        ORDER + "0",
        ORDER.replace("-", "", 1),
        "{" + ORDER + "}",
        "urn:uuid:" + ORDER,
        " " + ORDER,
        ORDER + "\n",
        "order-17",
        "",
        "g" * 32,
    ],
)
def test_an_id_that_is_no_uuid(text: str) -> None:
    code, detail = refusal("order.paid", *record("order.paid", changed("order.paid", "order_id", text)))
    assert code == errors.FIELD_MALFORMED
    assert "$.order_id" in detail


@pytest.mark.parametrize(
    "dataschema",
    [None, "urn:orders:order.paid/v1", "https://example.org/order.paid/v1", "/v1"],
)
@BOTH
def test_version_one_or_none(dataschema: str | None, structured: bool) -> None:
    assert (
        events.decode(
            "order.paid", *record("order.paid", VALID["order.paid"], structured, dataschema=dataschema)
        ).fact
        == FACTS["order.paid"]
    )


def test_unknown_fields_and_attributes_are_ignored() -> None:
    data = VALID["order.paid"] | {"extra": {"deep": [1, None, 1.5e3]}, "location": 7}
    assert (
        events.decode("order.paid", *record("order.paid", data, subject="whatever", sequence="7")).fact
        == FACTS["order.paid"]
    )
    assert (
        events.decode("order.paid", *record("order.paid", data, True, subject="whatever", sequence="7")).fact
        == FACTS["order.paid"]
    )


def test_a_number_beyond_a_float_in_an_unknown_field_is_nobodys_business() -> None:
    value = json.dumps(VALID["order.paid"])[:-1].encode() + b', "extra": 1e400}'
    assert events.decode("order.paid", binary(attributes("order.paid")), value).fact == FACTS["order.paid"]


def test_structured_data_in_base64() -> None:
    envelope = attributes("order.paid") | {
        "data_base64": base64.b64encode(json.dumps(VALID["order.paid"]).encode()).decode()
    }
    assert events.decode("order.paid", STRUCTURED, json.dumps(envelope).encode()).fact == FACTS["order.paid"]


@pytest.mark.parametrize(
    "content_type", [b"application/cloudevents+json", b"Application/CloudEvents+JSON; charset=UTF-8"]
)
def test_the_structured_binding_is_told_by_its_content_type(content_type: bytes) -> None:
    _, value = record("order.paid", VALID["order.paid"], structured=True)
    assert events.decode("order.paid", [("content-type", content_type)], value).fact == FACTS["order.paid"]


def test_a_rekeyed_event_keeps_its_type() -> None:
    assert (
        events.decode("orders.rekeyed", *record("order.paid", VALID["order.paid"])).fact
        == FACTS["order.paid"]
    )


@pytest.mark.parametrize(
    ("trace", "kept"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331", False),
        ("00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01", False),
        ("00-zzf7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", False),
        ("nonsense", False),
    ],
)
@BOTH
def test_traceparent_is_carried_on_when_it_is_one(trace: str, kept: bool, structured: bool) -> None:
    event = events.decode(
        "order.paid", *record("order.paid", VALID["order.paid"], structured, traceparent=trace)
    )
    assert event.traceparent == (trace if kept else None)


def test_what_a_refusal_says_holds_no_value_of_the_record() -> None:
    """A dead letter has it as a header, beside the record: together they have to fit into their topic."""
    status = "somebody@example.org" * 100_000
    code, detail = refusal(
        "shipment.updated", *record("shipment.updated", VALID["shipment.updated"] | {"status": status})
    )
    assert (code, detail) == (errors.FIELD_MALFORMED, "Invalid enum value of many characters - at `$.status`")


def test_traceparent_as_a_header_of_the_record() -> None:
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers, value = record("order.paid", VALID["order.paid"])
    assert (
        events.decode("order.paid", [*headers, ("traceparent", trace.encode())], value).traceparent == trace
    )


def test_our_own_decisions_come_back() -> None:
    data = {
        "order_id": ORDER,
        "n": 2,
        "amount": 1250,
        "cause": "stock",
        "cause_id": ANNA,
        "units": [[item_id(1), 0], [item_id(1), 1]],
        "shipping": [item_id(1)],
    }
    fact = events.decode("orders.decisions", *record("refund.decided", data)).fact
    unit = raw(item_id(1))
    assert fact == RefundDecision(T0, 2, 1250, RefundCause.STOCK, raw(ANNA), [(unit, 0, 2)], [unit])


# -- not JSON, a tombstone -----------------------------------------------------------------------------------


def with_reason(token: bytes) -> bytes:
    return json.dumps(VALID["payment.failed"] | {"reason": "@"}).encode().replace(b'"@"', token)


def with_extra(token: bytes) -> bytes:
    return json.dumps(VALID["payment.failed"] | {"extra": "@"}).encode().replace(b'"@"', token)


DEEP = b"[" * 200_000 + b"]" * 200_000

NOT_JSON = {
    "empty": b"",
    "cut off": b'{"order_id": ',
    "a word": b"hello",
    "binary": bytes(range(256)),
    "a byte order mark": b"\xef\xbb\xbf" + with_reason(b'"r"'),
    "something behind it": with_reason(b'"r"') + b"{}",
    "single quotes": b"{'order_id': 1}",
    "NaN": with_reason(b"NaN"),
    "NaN in an unknown field": with_extra(b"NaN"),
    "Infinity": with_extra(b"-Infinity"),
    "a lone surrogate": with_reason(rb'"\ud800"'),
    "a lone low surrogate": with_reason(rb'"\udc00 "'),
    "a lone surrogate in an unknown field": with_extra(rb'"\ud800"'),
    "not UTF-8": with_reason(b'"\xff"'),
    "a surrogate in UTF-8": with_reason(b'"\xed\xa0\x80"'),
    "an overlong NUL": with_reason(b'"\xc0\x80"'),
    "a bare NUL": with_reason(b'"a\x00b"'),
    "a bare newline": with_reason(b'"a\nb"'),
    "an unknown escape": with_reason(rb'"\x41"'),
    "200,000 deep in an unknown field": with_extra(DEEP),
}


@pytest.mark.parametrize("value", NOT_JSON.values(), ids=NOT_JSON.keys())
def test_not_json(value: bytes) -> None:
    assert refusal("payment.failed", binary(attributes("payment.failed")), value)[0] == errors.NOT_JSON


@pytest.mark.parametrize("value", [DEEP, with_reason(DEEP)], ids=["as data", "in a known field"])
def test_200000_deep_where_something_else_belongs(value: bytes) -> None:
    # The first bracket is already wrong there: nobody has to look how deep it goes.
    assert refusal("payment.failed", binary(attributes("payment.failed")), value)[0] in (
        errors.FIELD_MALFORMED,
        errors.NOT_JSON,
    )


@pytest.mark.parametrize(
    "data",
    [b"{", b"NaN", with_extra(DEEP), with_reason(rb'"\ud800"')],
    ids=["cut off", "NaN", "200,000 deep", "lone surrogate"],
)
def test_a_structured_event_that_is_not_json(data: bytes) -> None:
    whole = json.dumps(attributes("payment.failed") | {"data": "@"}).encode().replace(b'"@"', data)
    assert refusal("payment.failed", STRUCTURED, whole)[0] == errors.NOT_JSON


@pytest.mark.parametrize("topic", [*INPUT, "orders.decisions", "orders.rekeyed"])
def test_tombstone(topic: str) -> None:
    assert refusal(topic, binary(attributes("order.paid")), None)[0] == errors.TOMBSTONE
    assert refusal(topic, STRUCTURED, None)[0] == errors.TOMBSTONE


# -- not a CloudEvent ----------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("specversion", None),
        ("specversion", "0.3"),
        ("specversion", ""),
        ("id", None),
        ("id", ""),
        ("source", None),
        ("source", ""),
        ("type", None),
        ("type", ""),
    ],
)
def test_a_required_attribute(name: str, value: str | None, structured: bool) -> None:
    code, detail = refusal(
        "order.paid", *record("order.paid", VALID["order.paid"], structured, **{name: value})
    )
    assert code == errors.NOT_CLOUDEVENT
    assert name in detail


@pytest.mark.parametrize("name", ["id", "source", "type"])
def test_an_attribute_that_is_not_utf8(name: str) -> None:
    headers = [
        (header, b"\xff" if header == f"ce_{name}" else value)
        for header, value in binary(attributes("order.paid"))
    ]
    code, detail = refusal("order.paid", headers, json.dumps(VALID["order.paid"]).encode())
    assert code == errors.NOT_CLOUDEVENT
    assert f"ce_{name}" in detail


def test_no_headers_at_all() -> None:
    assert refusal("order.paid", [], json.dumps(VALID["order.paid"]).encode())[0] == errors.NOT_CLOUDEVENT


@pytest.mark.parametrize("name", ["specversion", "id", "source", "type"])
@pytest.mark.parametrize("value", [1, True, [], {}, None], ids=repr)
def test_a_structured_attribute_of_another_json_type(name: str, value: object) -> None:
    whole = json.dumps(attributes("order.paid") | {name: value, "data": VALID["order.paid"]}).encode()
    assert refusal("order.paid", STRUCTURED, whole)[0] == errors.NOT_CLOUDEVENT


@pytest.mark.parametrize("whole", [b"[]", b"1", b"null", b'"text"'])
def test_a_structured_event_that_is_no_object(whole: bytes) -> None:
    assert refusal("order.paid", STRUCTURED, whole)[0] == errors.NOT_CLOUDEVENT


def test_structured_data_that_is_not_base64() -> None:
    whole = json.dumps(attributes("order.paid") | {"data_base64": "***"}).encode()
    assert refusal("order.paid", STRUCTURED, whole) == (errors.NOT_CLOUDEVENT, "data_base64: not base64")


# -- type, version, time -------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    "type_",
    ["order.forgotten", "ORDER.PAID", "suborder.created", "orders.dlq", "orders.decisions", "x" * 900],
)
def test_an_unknown_type(type_: str, structured: bool) -> None:
    assert refusal("order.paid", *record(type_, VALID["order.paid"], structured))[0] == errors.TYPE_UNKNOWN


@pytest.mark.parametrize("topic", INPUT)
def test_a_type_on_anothers_topic(topic: str) -> None:
    for type_ in INPUT:
        if type_ != topic:
            assert refusal(topic, *record(type_, VALID[type_]))[0] == errors.TYPE_WRONG_TOPIC


def test_decisions_are_ours_alone() -> None:
    decided = {
        "order_id": ORDER,
        "n": 0,
        "amount": 1,
        "cause": "closed",
        "cause_id": ORDER,
        "units": [],
        "shipping": [],
    }
    assert refusal("order.paid", *record("refund.decided", decided))[0] == errors.TYPE_WRONG_TOPIC
    assert refusal("orders.rekeyed", *record("refund.decided", decided))[0] == errors.TYPE_WRONG_TOPIC
    assert (
        refusal("orders.decisions", *record("order.paid", VALID["order.paid"]))[0] == errors.TYPE_WRONG_TOPIC
    )


@BOTH
@pytest.mark.parametrize(
    "dataschema", ["urn:orders:order.paid/v2", "v1", "/v11", "/v1/", "/V1", "urn:orders:order.paid"]
)
def test_an_unknown_version(dataschema: str, structured: bool) -> None:
    refused = refusal(
        "order.paid", *record("order.paid", VALID["order.paid"], structured, dataschema=dataschema)
    )
    assert refused == (errors.VERSION_UNKNOWN, "ce_dataschema: must end in /v1")


@BOTH
def test_time_is_required(structured: bool) -> None:
    assert refusal("order.paid", *record("order.paid", VALID["order.paid"], structured, time=None)) == (
        errors.FIELD_MISSING,
        "ce_time: missing",
    )


@BOTH
@pytest.mark.parametrize("time", ["2026-01-01T00:00:00", "2026-02-30T00:00:00Z", "2026-01-01", "now"])
def test_a_malformed_time(time: str, structured: bool) -> None:
    code, detail = refusal("order.paid", *record("order.paid", VALID["order.paid"], structured, time=time))
    assert code == errors.FIELD_MALFORMED
    assert detail.startswith("ce_time: ")


# -- fields --------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("type_", "name"), [(type_, name) for type_ in INPUT for name in required_fields(type_)]
)
def test_each_missing_field(type_: str, name: str, structured: bool) -> None:
    data = {field: value for field, value in VALID[type_].items() if field != name}
    code, detail = refusal(type_, *record(type_, data, structured))
    assert code == errors.FIELD_MISSING
    assert f"`{name}`" in detail


@pytest.mark.parametrize("name", ["item_id", "product_id", "seller_id", "sku", "quantity", "price"])
def test_each_missing_field_of_an_item(name: str) -> None:
    data = copy.deepcopy(VALID["order.created"])
    del data["items"][0][name]
    code, detail = refusal("order.created", *record("order.created", data))
    assert code == errors.FIELD_MISSING
    assert f"`{name}`" in detail
    assert "$.items[0]" in detail


@pytest.mark.parametrize("name", ["item_id", "quantity"])
@pytest.mark.parametrize("type_", ["stock.rejected", "stock.released", "shipment.updated"])
def test_each_missing_field_of_an_items_quantity(type_: str, name: str) -> None:
    data = copy.deepcopy(VALID[type_])
    del data["items"][0][name]
    code, detail = refusal(type_, *record(type_, data))
    assert code == errors.FIELD_MISSING
    assert f"`{name}`" in detail
    assert "$.items[0]" in detail


@pytest.mark.parametrize(("type_", "name"), [(type_, name) for type_ in INPUT for name in VALID[type_]])
def test_null_is_no_value_of_any_field(type_: str, name: str) -> None:
    code, detail = refusal(type_, *record(type_, VALID[type_] | {name: None}))
    assert code == errors.FIELD_MALFORMED
    assert f"$.{name}" in detail


@BOTH
def test_a_structured_event_without_data(structured: bool) -> None:
    if structured:
        refused = refusal("order.paid", STRUCTURED, json.dumps(attributes("order.paid")).encode())
        assert refused == (errors.FIELD_MISSING, "$.data: missing")
    else:
        assert refusal("order.paid", binary(attributes("order.paid")), b"")[0] == errors.NOT_JSON


@pytest.mark.parametrize("value", [b"[]", b"1", b"null", b'"text"', b"true"])
def test_data_that_is_no_object(value: bytes) -> None:
    assert refusal("order.paid", binary(attributes("order.paid")), value)[0] == errors.FIELD_MALFORMED


MALFORMED = [
    ("order.created", "items[0].price", "-10.00", "negative price"),
    ("order.created", "items[0].price", "10.000", "three decimals in EUR"),
    ("order.created", "items[0].price", 10, "a number for money"),
    ("order.created", "items[0].price", 10.5, "a fraction for money"),
    ("order.created", "items[0].price", "010.00", "leading zero"),
    ("order.created", "items[0].price", "", "empty money"),
    ("order.created", "items[0].price", "NaN", "NaN as text"),
    ("order.created", "items[0].price", "10000000000000.01", "price above 10^15 cents"),
    ("order.created", "items[0].shipping_amount", "-0.01", "negative shipping"),
    ("order.created", "items[0].shipping_amount", "1.234", "shipping with three decimals"),
    ("order.created", "discount_amount", "-1.00", "negative discount"),
    ("order.created", "discount_amount", "1.001", "discount with three decimals"),
    ("order.created", "total_amount", "-22.00", "negative total"),
    ("order.created", "total_amount", "22.000", "total with three decimals"),
    ("order.created", "total_amount", "1e3", "total with an exponent"),
    ("order.created", "items[0].quantity", 0, "quantity 0"),
    ("order.created", "items[0].quantity", -1, "quantity -1"),
    ("order.created", "items[0].quantity", 100_001, "quantity 100,001"),
    ("order.created", "items[0].quantity", 10**400, "quantity of 400 digits"),
    ("order.created", "items[0].quantity", 1.5, "quantity with a fraction"),
    ("order.created", "items[0].quantity", 2.0, "quantity as a float"),
    ("order.created", "items[0].quantity", "2", "quantity as text"),
    ("order.created", "items[0].quantity", True, "quantity true"),
    ("order.created", "items[0].sku", "x" * 1001, "1,001 characters"),
    ("order.created", "items[0].sku", 7, "a number for text"),
    ("order.created", "items[0].item_id", "item-1", "item_id no UUID"),
    ("order.created", "items[0].warehouse_id", "w", "warehouse_id no UUID"),
    ("order.created", "items", [], "no items"),
    ("order.created", "items", {}, "an object for items"),
    ("order.created", "region", "x" * 1001, "region of 1,001 characters"),
    ("order.created", "user_id", "alice", "user_id no UUID"),
    ("order.paid", "amount", "0", "amount 0"),
    ("order.paid", "amount", "0.00", "amount 0.00"),
    ("order.paid", "amount", "-1", "negative amount"),
    ("order.paid", "amount", "10.001", "amount with three decimals"),
    ("order.paid", "amount", "10000000000000.01", "amount above 10^15 cents"),
    ("order.paid", "method", "x" * 1001, "method of 1,001 characters"),
    ("payment.failed", "reason", "x" * 5_000_000, "5 MB"),
    ("payment.failed", "reason", "a\x00b", "NUL"),
    ("payment.failed", "reason", 5, "a number for a reason"),
    ("stock.rejected", "items[0].quantity", 0, "units 0"),
    ("stock.released", "items[0].quantity", 100_001, "units 100,001"),
    ("shipment.updated", "status", "lost", "an unknown status"),
    ("shipment.updated", "status", "DELIVERED", "a status in upper case"),
    ("shipment.updated", "estimated_delivery", "tomorrow", "no day"),
    ("shipment.updated", "estimated_delivery", "2026-02-30", "no such day"),
    ("shipment.updated", "estimated_delivery", "2026-01-01T00:00:00", "a day's time without offset"),
    ("shipment.updated", "location", "\x00", "NUL alone"),
    ("shipment.updated", "items[0].quantity", 0, "no units in a parcel"),
    ("order.returned", "status", "returned", "no stage"),
    ("order.returned", "quantity", 0, "no units given back"),
    ("order.returned", "processed_at", "2026-01-01", "processed_at is a time"),
    ("order.returned", "processed_at", "2026-01-01T00:00:00", "processed_at without offset"),
    ("order.returned", "restock", "true", "restock as text"),
    ("order.returned", "restock", 1, "restock as a number"),
    ("refund.failed", "refund_id", "refund-0", "refund_id no UUID"),
]


@BOTH
@pytest.mark.parametrize(
    ("type_", "path", "value"),
    [case[:3] for case in MALFORMED],
    ids=[f"{case[0]} {case[3]}" for case in MALFORMED],
)
def test_a_malformed_field(type_: str, path: str, value: Any, structured: bool) -> None:
    code, detail = refusal(type_, *record(type_, changed(type_, path, value), structured))
    assert code == errors.FIELD_MALFORMED
    assert f"$.{path}" in detail
    assert len(detail) < 300


@pytest.mark.parametrize("token", [b"1e400", b"-1e400", b"1e-400", b"9" * 5000])
def test_a_number_that_no_quantity_is(token: bytes) -> None:
    value = json.dumps(VALID["order.returned"] | {"quantity": "@"}).encode().replace(b'"@"', token)
    code, detail = refusal("order.returned", binary(attributes("order.returned")), value)
    assert code == errors.FIELD_MALFORMED
    assert "$.quantity" in detail


@pytest.mark.parametrize("token", [b"1e400", b"9" * 5000, b"12.5"])
def test_a_number_that_is_no_money(token: bytes) -> None:
    value = json.dumps(VALID["order.paid"] | {"amount": "@"}).encode().replace(b'"@"', token)
    assert refusal("order.paid", binary(attributes("order.paid")), value)[0] == errors.FIELD_MALFORMED


def test_a_nul_inside_base64_is_found() -> None:
    data = base64.b64encode(json.dumps(VALID["payment.failed"] | {"reason": "\x00"}).encode()).decode()
    whole = json.dumps(attributes("payment.failed") | {"data_base64": data}).encode()
    assert refusal("payment.failed", STRUCTURED, whole) == (
        errors.FIELD_MALFORMED,
        "$.reason: holds the character U+0000",
    )


def test_a_nul_inside_an_item_has_its_path() -> None:
    refused = refusal(
        "order.created", *record("order.created", changed("order.created", "items[0].sku", "a\x00"))
    )
    assert refused == (errors.FIELD_MALFORMED, "$.items[0].sku: holds the character U+0000")


def test_an_escaped_backslash_before_u0000_is_text() -> None:
    data = VALID["payment.failed"] | {"reason": "a\\u0000b"}
    assert events.decode("payment.failed", *record("payment.failed", data)).fact == PaymentFailure(
        T0, raw(payment(1)), "a\\u0000b"
    )


def test_a_refusals_detail_never_holds_free_text() -> None:
    for type_, name in (("payment.failed", "reason"), ("shipment.updated", "location")):
        for value in ("secret" * 200, "secret\x00"):
            assert "secret" not in refusal(type_, *record(type_, VALID[type_] | {name: value}))[1]


# -- bounds --------------------------------------------------------------------------------------------------


def many(count: int, **more: Any) -> list[Data]:
    return [line(n, **more) for n in range(count)]


def test_a_thousand_items_and_a_thousand_characters_are_fine() -> None:
    fact = events.decode(
        "order.created", *record("order.created", created(*many(1000), region="😀" * 1000))
    ).fact
    assert isinstance(fact, Created)
    assert len(fact.items) == 1000
    assert fact.region == "😀" * 1000


def test_a_quantity_of_100000_is_fine() -> None:
    fact = events.decode("order.created", *record("order.created", created(line(1, quantity=100_000)))).fact
    assert isinstance(fact, Created)
    assert fact.items[0].quantity == 100_000


def test_an_amount_of_10_to_the_15_is_fine() -> None:
    fact = events.decode(
        "order.created", *record("order.created", created(line(1, price="10000000000000.00")))
    ).fact
    assert isinstance(fact, Created)
    assert fact.total == 10**15


@pytest.mark.parametrize("type_", ["stock.rejected", "stock.released", "shipment.updated"])
def test_1001_items(type_: str) -> None:
    items = [{"item_id": item_id(n), "quantity": 1} for n in range(1001)]
    code, detail = refusal(type_, *record(type_, VALID[type_] | {"items": items}))
    assert code == errors.FIELD_MALFORMED
    assert "$.items" in detail
    fact = events.decode(type_, *record(type_, VALID[type_] | {"items": items[:1000]})).fact
    assert isinstance(fact, (Scan, StockReply))
    assert len(fact.items or ()) == 1000


def test_an_order_of_1001_items() -> None:
    code, detail = refusal("order.created", *record("order.created", created(*many(1001))))
    assert code == errors.FIELD_MALFORMED
    assert "$.items" in detail


def test_a_total_above_10_to_the_15() -> None:
    code, detail = refusal(
        "order.created", *record("order.created", created(line(1, quantity=2, price="10000000000000.00")))
    )
    assert code == errors.FIELD_MALFORMED
    assert detail.startswith("$.total_amount: ")


@pytest.mark.parametrize(
    ("currency", "amount", "minor"),
    [
        ("JPY", "1", 1),
        ("EUR", "1", 100),
        ("EUR", "1.5", 150),
        ("BHD", "1.234", 1234),
        ("CLF", "1.2345", 12345),
    ],
)
def test_amounts_by_currency(currency: str, amount: str, minor: int) -> None:
    data = VALID["order.paid"] | {"currency": currency, "amount": amount}
    assert events.decode("order.paid", *record("order.paid", data)).fact == Payment(
        T0, raw(payment(1)), minor, currency, "card"
    )


@pytest.mark.parametrize(
    ("currency", "amount"),
    [("JPY", "1.0"), ("EUR", "1.000"), ("BHD", "1.0000"), ("CLF", "1.00000"), ("JPY", "1000000000000001")],
)
def test_amounts_that_a_currency_does_not_have(currency: str, amount: str) -> None:
    code, detail = refusal(
        "order.paid", *record("order.paid", VALID["order.paid"] | {"currency": currency, "amount": amount})
    )
    assert code == errors.FIELD_MALFORMED
    assert detail.startswith("$.amount: ")


# -- what belongs together -----------------------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["order.created", "order.paid"])
@pytest.mark.parametrize("currency", ["ECU", "eur", "", "XAU", "EURO", "€"])
def test_an_unknown_currency(type_: str, currency: str) -> None:
    code, detail = refusal(type_, *record(type_, VALID[type_] | {"currency": currency}))
    assert code == errors.CURRENCY_UNKNOWN
    assert detail.startswith("$.currency: ")


@pytest.mark.parametrize("total", ["22.01", "21.99", "0", "25.00", "23.00"])
def test_a_total_that_does_not_add_up(total: str) -> None:
    code, detail = refusal(
        "order.created", *record("order.created", VALID["order.created"] | {"total_amount": total})
    )
    assert code == errors.TOTAL_MISMATCH
    assert detail.startswith("$.total_amount: ")


def test_a_discount_above_the_goods() -> None:
    data = VALID["order.created"] | {"discount_amount": "20.01", "total_amount": "2.99"}
    code, detail = refusal("order.created", *record("order.created", data))
    assert code == errors.DISCOUNT_TOO_LARGE
    assert detail.startswith("$.discount_amount: ")


def test_a_discount_of_all_goods_leaves_the_shipping() -> None:
    fact = events.decode(
        "order.created",
        *record(
            "order.created", VALID["order.created"] | {"discount_amount": "20.00", "total_amount": "3.00"}
        ),
    ).fact
    assert isinstance(fact, Created)
    assert (fact.total, fact.discount) == (300, 2000)


def test_an_order_that_costs_nothing() -> None:
    fact = events.decode("order.created", *record("order.created", created(line(1, price="0")))).fact
    assert isinstance(fact, Created)
    assert (fact.total, fact.discount) == (0, None)


@pytest.mark.parametrize(
    "write",
    [str, str.upper, lambda text: text.replace("-", "")],
    ids=["same text", "upper case", "without dashes"],
)
def test_an_item_twice_in_an_order(write: Any) -> None:
    again = line(2) | {"item_id": write(item_id(1))}
    code, detail = refusal("order.created", *record("order.created", created(line(1), again)))
    assert code == errors.ITEM_REPEATED
    assert detail.startswith("$.items: ")


@pytest.mark.parametrize("type_", ["stock.rejected", "stock.released", "shipment.updated"])
def test_an_item_twice_in_a_list(type_: str) -> None:
    items = [{"item_id": item_id(1), "quantity": 1}, {"item_id": item_id(1).upper(), "quantity": 2}]
    assert refusal(type_, *record(type_, VALID[type_] | {"items": items}))[0] == errors.ITEM_REPEATED


def test_every_reason_code_says_what_it_means() -> None:
    codes = {value for name, value in vars(errors).items() if name.isupper() and isinstance(value, str)}
    assert codes == set(errors.REASONS)
    assert all(errors.REASONS.values())
