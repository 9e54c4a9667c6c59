"""Anybody may write to orders.decisions: what is no decision of ours is refused, by the pipeline
and by the auditor alike.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from audit import reference
from contracts.errors import Refused
from contracts.record_id import RecordId
from contracts.topics import DECISIONS
from domain.enums import DeadlineKind
from domain.events import MOST_REFUND, decode
from domain.fold import fold
from domain.limits import TYPE_BYTES, size_of
from domain.order import Deadline, Order
from tables import codec
from tests.unit.builders import ANNA, ORDER, raw

ORIGIN = RecordId(DECISIONS, 0, 0)
LINE = "0e0e0e0e-0000-4000-8000-000000000001"
TAKEN = "taken"
REFUND = {
    "order_id": ORDER,
    "n": 0,
    "amount": 500,
    "cause": "return",
    "cause_id": ANNA,
    "units": [[LINE, 0]],
    "shipping": [LINE],
}
DEADLINE = {"order_id": ORDER, "deadline": "stock", "attempt": 1, "final": True, "seller_id": ANNA}


def less(name: str, data: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in data.items() if key != name}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "a refund": (REFUND, TAKEN),
    "as much as a state can hold": ({**REFUND, "amount": MOST_REFUND}, TAKEN),
    "more than a state can hold": ({**REFUND, "amount": MOST_REFUND + 1}, "field_malformed"),
    "an amount of 30 digits": ({**REFUND, "amount": 10**30}, "field_malformed"),
    "nothing": ({**REFUND, "amount": 0}, "field_malformed"),
    "less than nothing": ({**REFUND, "amount": -500}, "field_malformed"),
    "an amount as text": ({**REFUND, "amount": "5.00"}, "field_malformed"),
    "a number below 0": ({**REFUND, "n": -1}, "field_malformed"),
    "a number of 30 digits": ({**REFUND, "n": 10**30}, TAKEN),
    "a unit below 0": ({**REFUND, "units": [[LINE, -1]]}, "field_malformed"),
    "the last unit that a line can have": ({**REFUND, "units": [[LINE, 99_999]]}, TAKEN),
    "a unit that no line has": ({**REFUND, "units": [[LINE, 100_000]]}, "field_malformed"),
    "units as objects": ({**REFUND, "units": [{"item_id": LINE, "unit": 0}]}, "field_malformed"),
    "units of three": ({**REFUND, "units": [[LINE, 0, 0]]}, "field_malformed"),
    "no units": (less("units", REFUND), "field_missing"),
    "no shipping": (less("shipping", REFUND), "field_missing"),
    "payments that it goes back to": ({**REFUND, "allocations": [[LINE, 200], [ANNA, 300]]}, TAKEN),
    "payments that get less": ({**REFUND, "allocations": [[LINE, 200], [ANNA, 299]]}, "field_malformed"),
    "a payment that gets nothing": (
        {**REFUND, "allocations": [[LINE, 500], [ANNA, 0]]},
        "field_malformed",
    ),
    "a payment twice": ({**REFUND, "allocations": [[LINE, 200], [LINE, 300]]}, "field_malformed"),
    "no payments": ({**REFUND, "allocations": []}, "field_malformed"),
    "payments that are null": ({**REFUND, "allocations": None}, "field_malformed"),
    "units that are null": ({**REFUND, "units": None}, "field_malformed"),
    "a deadline": (DEADLINE, TAKEN),
    "attempt 0": ({**DEADLINE, "attempt": 0}, "field_malformed"),
    "an attempt of 30 digits": ({**DEADLINE, "attempt": 10**30}, "field_malformed"),
    "nobody's stock": (less("seller_id", DEADLINE), "field_missing"),
    "nobody's refund": ({**DEADLINE, "deadline": "refund"}, "field_missing"),
    "a payment": ({**less("seller_id", DEADLINE), "deadline": "payment"}, TAKEN),
    "a payment of a seller": ({**DEADLINE, "deadline": "payment"}, TAKEN),
    "a label with a refund beside": ({**DEADLINE, "deadline": "label", "refund_id": LINE}, TAKEN),
}


def headers(data: dict[str, Any], **other: str) -> list[tuple[str, bytes | None]]:
    type_ = "deadline.passed" if "deadline" in data else "refund.decided"
    attributes = {
        "specversion": "1.0",
        "id": "e",
        "source": "/strangers",
        "type": type_,
        "time": "2026-01-02T03:04:05Z",
    } | other
    return [(f"ce_{name}", value.encode()) for name, value in attributes.items() if value]


def pipelines(data: dict[str, Any], **other: str) -> str:
    try:
        decode(DECISIONS, headers(data, **other), json.dumps(data).encode())
    except Refused as refusal:
        return refusal.code
    return TAKEN


def auditors(data: dict[str, Any], **other: str) -> str:
    read = reference.parse_decision(json.dumps(data).encode(), headers(data, **other))
    return read.code if isinstance(read, reference.Refusal) else TAKEN


@pytest.mark.parametrize(("data", "verdict"), CASES.values(), ids=CASES)
def test_what_is_a_decision(data: dict[str, Any], verdict: str) -> None:
    assert pipelines(data) == verdict
    assert auditors(data) == verdict


@pytest.mark.parametrize(
    ("other", "verdict"), [({"time": ""}, "field_missing"), ({"dataschema": "/v2"}, "version_unknown")]
)
def test_its_envelope_is_read_as_any(other: dict[str, str], verdict: str) -> None:
    assert pipelines(REFUND, **other) == auditors(REFUND, **other) == verdict


@pytest.mark.parametrize(
    "data", [data for data, verdict in CASES.values() if verdict == TAKEN and data.get("n", 0) == 0]
)
def test_what_is_taken_can_be_stored_and_recovered(data: dict[str, Any]) -> None:
    """A decision may be all that an order has: after a crash it is read before the facts that made it due."""
    order = Order()
    fold(order, decode(DECISIONS, headers(data), json.dumps(data).encode()), None if "n" in data else ORIGIN)
    stored = codec.encode(order)
    assert codec.decode(stored) == order
    assert codec.is_state(raw(ORDER), stored)


def test_an_order_takes_in_a_bounded_amount_of_them() -> None:
    apart = [[LINE, number] for number in range(0, 99_999, 2)]
    pipeline, auditor = Order(), reference.Order(ORDER)
    refused = []
    most = TYPE_BYTES["refund.decided"] // (64 + 24 * (len(apart) + 1))
    for n in (*range(most + 1), most):
        data = {**REFUND, "n": n, "units": apart}
        value = json.dumps(data).encode()
        folded = fold(pipeline, decode(DECISIONS, headers(data), value), None)
        decision = reference.parse_decision(value, headers(data))
        assert isinstance(decision, reference.Decision)
        assert auditor.decide(decision) is (folded.refused is None)
        refused.append(folded.refused and folded.refused[0])
    assert refused == [None] * most + ["order_too_large"] * 2
    assert sum(map(size_of, pipeline.decisions)) <= TYPE_BYTES["refund.decided"]


def test_an_order_takes_in_a_bounded_number_of_deadlines() -> None:
    pipeline, auditor = Order(), reference.Order(ORDER)
    most = TYPE_BYTES["deadline.passed"] // size_of(Deadline(0, DeadlineKind.PAYMENT, None, 1, False))
    pipeline.deadlines = [
        Deadline(0, DeadlineKind.STOCK, raw(ANNA), number + 1, False) for number in range(most)
    ]
    for number in range(most + 1):
        data = {**DEADLINE, "attempt": number + 1, "final": False}
        value = json.dumps(data).encode()
        fact = reference.parse_decision(value, headers(data))
        assert isinstance(fact, reference.Fact)
        assert isinstance(auditor.add(fact), reference.Refusal) is (number == most)
    refusal = fold(pipeline, decode(DECISIONS, headers(data), value), ORIGIN).refused
    assert refusal is not None
    assert refusal[0] == "order_too_large"
