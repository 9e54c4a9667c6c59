"""How much one order takes in: by event type, in the order of that type's log, the same for the pipeline
and the auditor's reference.
"""

from __future__ import annotations

import json
from collections import defaultdict
from random import Random
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from audit import reference
from audit.reference import Fact
from contracts import errors
from contracts.incoming import DATA, Text
from contracts.record_id import RecordId
from domain import events, fold, limits
from domain.enums import (
    ClosedBecause,
    DeadlineKind,
    Rank,
    RefundCause,
    ReturnStatus,
    StockAnswer,
    SuborderStatus,
)
from domain.order import (
    Cancellation,
    Created,
    Deadline,
    Item,
    Order,
    Payment,
    PaymentFailure,
    PublishedSuborder,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    StockReply,
    Waiting,
    type_of,
)
from streams.topics import STATE_MAX_BYTES
from tables import codec
from tests.unit.builders import ANNA, ORDER, STRANGER, VALID, OrderBuilder, at, line, record

WIDE = "\N{MUSICAL SYMBOL G CLEF}" * 1000
"""As many bytes of UTF-8 as a text can have."""
FACTS = [type_ for type_ in limits.TYPE_BYTES if type_ not in ("deadline.passed", "refund.decided")]
"""Those of other services; ours are in test_decisions."""
PARTS = [
    PublishedSuborder(
        SuborderStatus.CLOSED, 10**15, 10**15, 10**15, 100_000, 0, 0, 0, ClosedBecause.STOCK_UNANSWERED
    )
] * 1000
ITEMS = [(bytes([n % 256, n // 256]) * 8, 100_000) for n in range(1000)]


def large(type_: str, n: int) -> dict[str, Any]:
    """Data of an event of the type, as large as it can be; n makes it another fact."""
    number = f"{n:012d}"
    hints = get_type_hints(DATA[type_], include_extras=True)
    data = {
        name: WIDE if Text in (hints[name], *get_args(hints[name])) else value
        for name, value in VALID[type_].items()
    }
    for name in data:
        if name.endswith("_id") and name not in ("order_id", "item_id"):
            data[name] = data[name][:24] + number
    if "items" in data:
        data["items"] = [{"item_id": f"10000000-0000-4000-8000-{i:012d}", "quantity": 1} for i in range(1000)]
    return data


@pytest.mark.parametrize("type_", FACTS)
def test_the_auditor_counts_a_fact_the_same(type_: str) -> None:
    headers, value = record(type_, large(type_, 1))
    read = reference.parse(type_, ORDER.encode(), value, headers)
    assert isinstance(read, Fact)
    fact: Any = events.decode(type_, headers, value).fact
    assert reference.size(read) == limits.size_of(fact)


@pytest.mark.parametrize("type_", FACTS)
def test_beyond_its_limit_a_type_is_refused_and_nothing_of_the_order_changes(type_: str) -> None:
    builder = OrderBuilder()
    builder.create(line(1))
    taken = 0
    while not (
        folded := builder.send(type_, **{k: v for k, v in large(type_, taken).items() if k != "order_id"})
    ).refused or (folded.refused[0] != errors.ORDER_TOO_LARGE):
        taken += 1
        assert taken < 20_000
        if (
            type_ == "stock.reserved" and taken == limits.UNCOUNTED
        ):  # they hold no text: 13,000 would take long here
            fact: Any = StockReply(0, StockAnswer.RESERVED, bytes(16), bytes(16), None)
            builder.order.stock += [
                StockReply(0, StockAnswer.RESERVED, n.to_bytes(16, "big"), bytes(16), None)
                for n in range(13_000)
            ]
            taken = limits.TYPE_BYTES[type_] // limits.size_of(fact)
    assert taken >= limits.UNCOUNTED
    before = codec.encode(builder.order)
    again = builder.send(type_, **{k: v for k, v in large(type_, 50_000).items() if k != "order_id"})
    assert again.refused is not None
    assert (again.changed, again.refused[0], again.effects) == (False, errors.ORDER_TOO_LARGE, [])
    assert codec.encode(builder.order) == before
    version = builder.order.version
    for other in set(FACTS) - {type_}:
        folded = builder.send(other, **{k: v for k, v in VALID[other].items() if k != "order_id"})
        assert folded.refused is None or folded.refused[0] != errors.ORDER_TOO_LARGE, (
            "another type has room of its own"
        )
    assert builder.order.version > version


def test_what_is_small_enough_still_fits_and_a_longer_reason_does_not() -> None:
    builder = OrderBuilder()
    n = 0
    builder.send("payment.failed", 5, payment_id=large("order.paid", 99_999)["payment_id"], reason="x" * 1000)
    while (
        builder.send(
            "payment.failed", 5, payment_id=large("order.paid", n)["payment_id"], reason=WIDE
        ).refused
        is None
    ):
        n += 1
    assert builder.send("payment.failed", 5, payment_id=STRANGER, reason="r").refused is None
    assert (
        builder.send("payment.failed", 4, payment_id=STRANGER, reason=WIDE).refused == fold._TOO_LARGE.refused
    )
    assert builder.order.failures[-1].reason == "r"
    assert builder.send("payment.failed", 3, payment_id=STRANGER, reason="s").refused is None
    assert builder.order.failures[-1].reason == "s"


def test_facts_that_are_not_counted_fit_whatever_they_hold() -> None:
    largest = limits.FACT_BYTES + 3 * 4_000 + 1_000 * limits.ITEM_BYTES
    assert (limits.UNCOUNTED + 1) * largest <= min(limits.TYPE_BYTES.values())


def test_ten_thousand_scans_of_the_usual_size_fit() -> None:
    scan = Scan(
        0,
        bytes(16),
        Rank.IN_TRANSIT,
        bytes(16),
        bytes(16),
        "Interparcel",
        "1Z999AA10123456784",
        0,
        "Sorting centre",
        ITEMS[:2],
    )
    assert 10_000 * limits.size_of(scan) <= limits.TYPE_BYTES["shipment.updated"]


def full(fact: Any) -> list[Any]:
    """As many facts like this one as an order takes in."""
    return [fact] * (limits.TYPE_BYTES[type_of(fact)] // limits.size_of(fact))


def short() -> dict[str, list[Any]]:
    """Facts of every type that count least for what they take as state."""
    far, raw = 1 << 60, b"\xff" * 16
    return {
        "payments": full(Payment(far, raw, 10**15, "EUR")),
        "failures": full(PaymentFailure(far, raw, "")),
        "stock": [fact for answer in StockAnswer for fact in full(StockReply(far, answer, raw, raw, None))],
        "cancellations": full(Cancellation(far, raw, "")),
        "scans": full(Scan(far, raw, Rank.IN_TRANSIT, raw, raw, None, None, far)),
        "returns": full(ReturnStage(far, raw, ReturnStatus.PROCESSED, raw, 100_000, "", far, True)),
        "refunds": [fact for failed in (True, False) for fact in full(RefundReply(far, raw, failed))],
    }


def test_the_largest_state_fits_its_topic_while_its_facts_wait() -> None:
    facts = short()
    origin = RecordId("order.cancel_requested", 1023, 1 << 60)
    waiting = [Waiting(field, n, origin) for field, held in facts.items() for n in range(len(held))]
    assert (
        len(codec.encode(msgspec.structs.replace(Order(version=1 << 40, waiting=waiting), **facts))) + 100_000
        < STATE_MAX_BYTES
    )


def test_the_largest_state_fits_its_topic_whatever_is_written_to_its_decisions() -> None:
    far, raw = 1 << 60, b"\xff" * 16
    lines = [Item(raw, raw, raw, raw, WIDE, 100_000, 10**15, 10**15) for _ in range(1000)]
    created = Created(far, raw, WIDE, "EUR", 10**15, 10**15, lines)
    spans = [(raw, 99_999, 100_000)] * 100_000
    decisions = full(RefundDecision(far, 1 << 31, 1 << 63, RefundCause.STOCK, raw, spans, [], far))
    decisions += full(RefundDecision(far, 1 << 31, 1 << 63, RefundCause.STOCK, raw, [], [], far))[
        : 20_000 - len(decisions)
    ]
    deadlines = full(Deadline(far, DeadlineKind.REFUND, raw, 100_000, False, False, far))
    order = Order(version=1 << 40, created=created, decisions=decisions, deadlines=deadlines, suborders=PARTS)
    assert len(codec.encode(msgspec.structs.replace(order, **short()))) + 100_000 < STATE_MAX_BYTES


@pytest.mark.parametrize("items", [None, ITEMS], ids=["short facts", "long lists"])
def test_the_largest_state_fits_its_topic_once_its_order_is_known(
    items: list[tuple[bytes, int]] | None,
) -> None:
    far, raw = 1 << 60, b"\xff" * 16
    facts = short()
    if items is not None:
        facts["scans"] = full(Scan(far, raw, Rank.IN_TRANSIT, raw, raw, None, None, far, None, items))
        facts["stock"] = [
            fact for answer in StockAnswer for fact in full(StockReply(far, answer, raw, raw, items))
        ]
    lines = [Item(raw, raw, raw, raw, WIDE, 100_000, 10**15, 10**15) for _ in range(1000)]
    created = Created(far, raw, WIDE, "EUR", 10**15, 10**15, lines)
    # A refund for each return and each payment, and one for each fact that can turn units; it names a span of
    # every line that the fact names. Beside them, those that a line of 100,000 units is split into.
    turning = [*facts["scans"], *facts["stock"]]
    spans = [(raw, 99_999, 100_000)] * len(items or [raw])
    small = RefundDecision(far, 100_000, 10**15, RefundCause.RETURN, raw, [(raw, 99_999, 100_000)], [])
    decisions = [small] * (len(facts["returns"]) + len(facts["payments"]) + 10_000)
    decisions += [RefundDecision(far, 100_000, 10**15, RefundCause.STOCK, raw, spans, []) for _ in turning]
    decisions.append(RefundDecision(far, 100_000, 10**15, RefundCause.STOCK, raw, spans, [raw] * 1000))
    assert sum(map(limits.size_of, decisions)) <= limits.TYPE_BYTES["refund.decided"]
    order = Order(version=1 << 40, created=created, decisions=decisions, suborders=PARTS)
    order.deadlines = full(Deadline(far, DeadlineKind.REFUND, raw, 100_000, False, False, far))
    assert len(codec.encode(msgspec.structs.replace(order, **facts))) + 100_000 < STATE_MAX_BYTES


@pytest.mark.parametrize("seed", range(20))
def test_the_reference_refuses_the_same_whatever_comes_between(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One log per type; two interleavings of them, and the reference, which reads log after log:
    the same facts are refused.
    """
    monkeypatch.setattr(fold, "UNCOUNTED", 0)
    monkeypatch.setattr(fold, "TYPE_BYTES", dict.fromkeys(limits.TYPE_BYTES, 700))
    monkeypatch.setattr(reference, "MOST_FACTS", 700)
    monkeypatch.setattr(reference, "MOST_SCANS", 700)
    random = Random(seed)
    logs: dict[str, list[tuple[dict[str, Any], int]]] = defaultdict(list)
    for type_ in ("payment.failed", "stock.rejected", "shipment.updated", "order.returned"):
        for _ in range(25):
            data = large(type_, random.randrange(12)) | {"seller_id": ANNA, "items": []}
            data |= {name: "é" * random.randrange(60) for name in ("reason", "location") if name in data}
            data |= {name: "x" for name in ("carrier", "tracking_number") if name in data}
            data["items"] = (
                VALID["shipment.updated"]["items"]
                if random.random() < 0.3
                else [{**VALID["shipment.updated"]["items"][0], "quantity": 2}]
            )
            logs[type_].append((data, random.randrange(3, 8)))

    def interleaved() -> dict[str, list[str]]:
        builder, left = OrderBuilder(), {type_: list(log) for type_, log in logs.items()}
        verdicts: dict[str, list[str]] = defaultdict(list)
        created_after = random.randrange(100)
        for n in range(100):
            if n == created_after:
                builder.create(line(1, quantity=9))
            type_ = random.choice([type_ for type_, log in left.items() if log])
            data, hour = left[type_].pop(0)
            folded = builder.send(type_, hour, **{k: v for k, v in data.items() if k != "order_id"})
            verdicts[type_].append(folded.refused[0] if folded.refused else "taken")
        return verdicts

    def judged(type_: str, data: dict[str, Any], hour: int) -> str:
        headers, value = record(type_, data, time=at(hour))
        fact = reference.parse(type_, ORDER.encode(), value, headers)
        assert isinstance(fact, Fact), json.dumps(data)
        known = [each.fact.content for each in held.candidates.get(fact.key, [])]
        added = held.add(fact)
        if isinstance(added, reference.Refusal):
            return added.code
        return "key_conflict" if known and added.fact.content != known[0] else "taken"

    held = reference.Order(ORDER)
    builder = {type_: [judged(type_, data, hour) for data, hour in log] for type_, log in logs.items()}
    assert interleaved() == interleaved() == builder
    assert {verdict for log in builder.values() for verdict in log} == {
        "taken",
        "key_conflict",
        errors.ORDER_TOO_LARGE,
    }


def test_a_record_counts_its_key_value_and_headers() -> None:
    assert limits.record_size(None, None, []) == 0
    assert limits.record_size(b"key", b"value", [("é", b"12"), ("n", None)]) == 8 + (2 + 2 + 10) + (1 + 10)
