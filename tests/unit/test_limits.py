"""How much one order takes in: by event type, in the order of that type's log, the same for the pipeline
and the auditor's reference.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import pytest

from audit import reference
from audit.reference import Fact
from contracts import errors
from contracts.incoming import DATA
from contracts.record_id import RecordId
from domain import events, fold, limits
from domain.effects import Writer, encode_data, fresh_suborders
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
    Grant,
    Item,
    Lapse,
    Order,
    Payment,
    PaymentFailure,
    Promise,
    PublishedSuborder,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    StockReply,
    Waiting,
    type_of,
)
from domain.shapes import Derived
from tables import codec
from tests.unit.builders import ANNA, ORDER, STRANGER, VALID, OrderBuilder, at, created, line, record
from tests.unit.test_personal import most_characters

SIZES = (1 << 20, 3_000_001, 8 << 20, 24 << 20)
"""Of a batch that the changelog takes: Kafka's default, an odd one, a managed service's, ours."""
WIDE = "\N{MUSICAL SYMBOL G CLEF}" * 1000
"""As many bytes of UTF-8 as a text can have."""
FACTS = [type_ for type_ in limits.TYPE_BYTES if type_ not in ("deadline.passed", "refund.decided")]
"""Those of other services; ours are in test_decisions."""
PARTS = [
    PublishedSuborder(
        SuborderStatus.CLOSED,
        10**15,
        10**15,
        10**15,
        100_000,
        0,
        0,
        0,
        ClosedBecause.STOCK_UNANSWERED,
        10**15,
    )
] * 1000
ITEMS = [(bytes([n % 256, n // 256]) * 8, 100_000) for n in range(1000)]


def large(type_: str, n: int) -> dict[str, Any]:
    """Data of an event of the type, as large as it can be; n makes it another fact."""
    number = f"{n:012d}"
    texts = most_characters(DATA[type_])
    data = {name: WIDE[: texts[name]] if name in texts else value for name, value in VALID[type_].items()}
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
    bounds = limits.limits_of(1 << 20)  # with the default's, thousands of facts would take long here
    builder = OrderBuilder(bounds)
    builder.create(line(1))
    taken = 0
    while not (
        folded := builder.send(type_, **{k: v for k, v in large(type_, taken).items() if k != "order_id"})
    ).refused or (folded.refused[0] != errors.ORDER_TOO_LARGE):
        taken += 1
        assert taken < 20_000
    headers, value = record(type_, large(type_, 1))
    fact: Any = events.decode(type_, headers, value).fact
    assert taken == bounds.types[type_] // limits.size_of(fact)
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


@pytest.mark.parametrize("size", SIZES)
def test_facts_that_are_not_counted_fit_whatever_they_hold(size: int) -> None:
    """So does the first one of each type, which is never counted."""
    bounds = limits.limits_of(size)
    assert limits.LARGEST_FACT == 80 + 3 * 4_000 + 1_000 * 24
    assert bounds.uncounted >= 0
    few = ("refund.granted", "promise.updated")
    others = [most for type_, most in bounds.types.items() if type_ not in few]
    assert (bounds.uncounted + 1) * limits.LARGEST_FACT <= min(others)
    largest: Any = events.decode("refund.granted", *record("refund.granted", large("refund.granted", 1))).fact
    assert limits.size_of(largest) == 80 + 4_000
    assert (bounds.uncounted + 1) * limits.size_of(largest) <= bounds.types["refund.granted"]
    # A promise has no text and no list.
    assert (bounds.uncounted + 1) * limits.FACT_BYTES <= bounds.types["promise.updated"]


def test_the_limits_of_a_managed_kafka() -> None:
    """As docs/how-to/managed-kafka.md tells them."""
    ours, managed, least = map(limits.limits_of, (24 << 20, 8 << 20, 1 << 20))
    assert ours == limits.LIMITS
    assert (ours.written, ours.input, ours.record, ours.event) == (8 << 20, 6 << 20, 7 << 20, 5 << 20)
    assert (ours.types, ours.uncounted, ours.created) == (limits.TYPE_BYTES, 24, None)
    assert managed.written == ours.written  # so the other topics take what they took
    assert (managed.types["order.paid"], managed.types["shipment.updated"]) == (349_525, 699_050)
    assert (managed.created, managed.uncounted) == (2_796_202, 8)
    assert (least.written, least.input, least.record, least.event) == (1 << 20, 786_432, 917_504, 655_360)
    assert (least.types["order.paid"], least.types["refund.decided"]) == (43_690, 480_597)
    assert (least.created, least.uncounted) == (349_525, 0)


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


Full = Callable[[Any], list[Any]]
"""A fact -> as many like it as an order takes in."""


def full_at(size: int) -> Full:
    types = limits.limits_of(size).types
    return lambda fact: [fact] * (types[type_of(fact)] // limits.size_of(fact))


def short(full: Full) -> dict[str, list[Any]]:
    """Facts of every type that count least for what they take as state."""
    far, raw = 1 << 60, b"\xff" * 16
    return {
        "payments": full(Payment(far, raw, 10**15, "EUR")),
        "failures": full(PaymentFailure(far, raw, "")),
        "stock": [fact for answer in StockAnswer for fact in full(StockReply(far, answer, raw, raw, None))],
        "cancellations": full(Cancellation(far, raw, "")),
        "scans": full(Scan(far, raw, Rank.IN_TRANSIT, raw, raw, None, None, far)),
        "returns": full(
            ReturnStage(far, raw, ReturnStatus.REQUESTED, raw, 100_000, "", far, True, False, far)
        ),
        "refunds": [
            fact
            for failed in (True, False)
            for fact in full(RefundReply(far, raw, failed, None, False, 100, far))
        ],
        "promises": full(Promise(far, raw, far, far)),
        "grants": full(Grant(far, raw, 10**15, "EUR", "", raw, raw)),
    }


def largest_begun(size: int) -> tuple[Created, list[PublishedSuborder]]:
    """The largest order.created that there may be, with its suborders."""
    far, raw, bounds = 1 << 60, b"\xff" * 16, limits.limits_of(size)
    units = 100_000 if bounds.created is None else 1
    lines = [Item(raw, raw, raw, raw, WIDE, units, 10**15, 10**15, ship_by=far, deliver_by=far)] * 1000
    created = Created(far, raw, WIDE, "EUR", 10**15, 10**15, lines)
    while limits.is_too_large(created, bounds):
        created = msgspec.structs.replace(created, items=created.items[1:])
    return created, PARTS[: len(created.items)]


def fits(order: Order, size: int) -> bool:
    """Whether its state leaves room for what Kafka adds, and some more."""
    return len(codec.encode(order)) < limits.limits_of(size).state - size // 1000


@pytest.mark.parametrize("size", SIZES)
def test_the_largest_state_fits_its_topic_while_its_facts_wait(size: int) -> None:
    facts = short(full_at(size))
    origin = RecordId("order.cancel_requested", 1023, 1 << 60)
    waiting = [Waiting(field, n, origin) for field, held in facts.items() for n in range(len(held))]
    assert fits(msgspec.structs.replace(Order(version=1 << 40, waiting=waiting), **facts), size)


@pytest.mark.parametrize("tax", [None, 1 << 63])
@pytest.mark.parametrize("size", SIZES)
def test_the_largest_state_fits_its_topic_whatever_is_written_to_its_decisions(
    size: int, tax: int | None
) -> None:
    far, raw, full = 1 << 60, b"\xff" * 16, full_at(size)
    room = limits.limits_of(size).types["refund.decided"]
    # A decision names each of its units by itself: as many spans are of one unit each.
    spans = [(raw, 99_999, 1)] * min(100_000, (room - 88) // 24)
    decisions = full(RefundDecision(far, 1 << 31, 1 << 63, RefundCause.STOCK, raw, spans, [], far, tax))
    small = RefundDecision(far, 1 << 31, 1 << 63, RefundCause.STOCK, raw, [], [], far, tax)
    rest = room - sum(map(limits.size_of, decisions))
    decisions += [small] * min(
        rest // limits.size_of(small), 1_600_000 * size // limits.MESSAGE_BYTES // limits.size_of(small)
    )
    lapses = full(Lapse(far, DeadlineKind.SHIP, raw, 100_000, True, False, far, far))
    created, parts = largest_begun(size)
    order = Order(
        version=1 << 40,
        created=created,
        decisions=decisions,
        lapses=lapses,
        suborders=parts,
        left=[far] * len(parts),
    )
    assert fits(msgspec.structs.replace(order, **short(full)), size)


@pytest.mark.parametrize("items", [None, ITEMS], ids=["short facts", "long lists"])
@pytest.mark.parametrize("size", SIZES)
def test_the_largest_state_fits_its_topic_once_its_order_is_known(
    size: int, items: list[tuple[bytes, int]] | None
) -> None:
    """And what an order can come to by itself is within the limits of our own facts."""
    far, raw, full = 1 << 60, b"\xff" * 16, full_at(size)
    facts, types = short(full), limits.limits_of(size).types
    created, parts = largest_begun(size)
    if items is not None:
        items = items[: len(created.items)]
        facts["scans"] = full(Scan(far, raw, Rank.IN_TRANSIT, raw, raw, None, None, far, None, items))
        facts["stock"] = [
            fact for answer in StockAnswer for fact in full(StockReply(far, answer, raw, raw, items))
        ]
    # A refund for each return, payment and grant, and one for each fact that can turn units; it names a span
    # of every line that the fact names. Beside them, those that a line of 100,000 units is split into. Each
    # uses up a payment, or a part of one.
    turning = [
        *facts["scans"],
        *(fact for fact in facts["stock"] if fact.type is not StockAnswer.RESERVED),
    ]
    span, part = (raw, 99_999, 100_000), (raw, 10**15)

    def refund(cause: RefundCause, spans: list[Any], shipping: list[bytes], parts: int = 1) -> RefundDecision:
        return RefundDecision(far, 100_000, 10**15, cause, raw, spans, shipping, far, 10**15, [part] * parts)

    pieces = len(created.items) * 10 if size == limits.MESSAGE_BYTES else size // 3 // 24 // 10_000 + 1
    decisions = [refund(RefundCause.RETURN, [span], [])] * (len(facts["returns"]) + pieces)
    decisions += [refund(RefundCause.CLOSED, [], [])] * len(facts["payments"])
    decisions += [refund(RefundCause.GRANT, [], [])] * len(facts["grants"])
    decisions += [refund(RefundCause.STOCK, [span] * len(items or [raw]), [])] * len(turning)
    lines = len(created.items)
    decisions.append(refund(RefundCause.STOCK, [span] * lines, [raw] * lines, len(facts["payments"])))
    assert sum(map(limits.size_of, decisions)) <= types["refund.decided"]
    order = Order(version=1 << 40, created=created, decisions=decisions, suborders=parts)
    order.lapses = full(Lapse(far, DeadlineKind.SHIP, raw, 100_000, True, False, far, far))
    assert fits(msgspec.structs.replace(order, **facts), size)


@pytest.mark.parametrize("size", SIZES[:-1])
def test_what_an_order_comes_to_by_itself_fits_its_topics(size: int) -> None:
    """Of an order that begins as large as it may: five deadlines of two kinds for each seller, what is
    published of it, and a decision that names each of its units.
    """
    bounds = limits.limits_of(size)
    assert bounds.created is not None
    lines = min(1000, bounds.created // limits.created_size(ordered(1, 1, "")))
    deadline = Deadline(0, DeadlineKind.STOCK, bytes(16), 1, False)
    assert 10 * lines * limits.size_of(deadline) <= bounds.types["deadline.passed"]
    control = "\x01" * 1000  # six bytes of JSON for each
    most = bounds.created // limits.created_size(ordered(1, 1, control))
    for order in (ordered(min(1000, most), 1, control), ordered(lines, 1, "")):
        assert not limits.is_too_large(order, bounds)
        writer = Writer(bytes(16), "EUR")
        for suborder in fresh_suborders(order):
            writer.suborder_created(order, suborder)
        (published,) = writer.effects
        assert isinstance(published, Derived)
        assert len(encode_data(published)) + 1024 <= bounds.record
    units = min(100_000, (bounds.created - 3_200) // 24)
    assert not limits.is_too_large(ordered(1, units, ""), bounds)
    assert limits.is_too_large(ordered(1, units + 1, ""), bounds) or units == 100_000
    writer = Writer(bytes(16), "EUR")
    payments = [(bytes(16), 10**15)] * (bounds.types["order.paid"] // 80)
    decision = RefundDecision(
        0, 1, 1, RefundCause.RETURN, bytes(16), [(bytes(16), 0, units)], [], 0, None, payments
    )
    writer.refund_decided(decision)
    order = ordered(lines, 1, "")
    whole = [(item.item_id, 0, 1) for item in order.items]
    writer.refund_request(msgspec.structs.replace(decision, units=whole, tax=1), order)
    for effect in writer.effects:
        assert isinstance(effect, Derived)
        assert len(encode_data(effect)) + 1024 <= bounds.record


def ordered(lines: int, units: int, sku: str) -> Created:
    items = [
        Item(n.to_bytes(16, "big"), bytes(16), bytes(16), bytes(16), sku, units, 10**15, 10**15)
        for n in range(lines)
    ]
    return Created(0, bytes(16), None, "EUR", 0, None, items)


@pytest.mark.parametrize(
    ("lines", "quantity", "sku", "fits"),
    [
        (1, 14_430, "s", True),  # 3,200 + 24 * 14,430 + 3 = 349,523, of 349,525
        (1, 14_430, "\N{LATIN SMALL LETTER E WITH ACUTE}", False),
        (108, 1, "", True),
        (109, 1, "", False),
    ],
)
def test_an_order_that_is_larger_than_one_may_begin(lines: int, quantity: int, sku: str, fits: bool) -> None:
    """The same for the auditor; also where another order.created is known, and as a checkout."""
    items = [line(n, quantity=quantity, sku=sku) for n in range(lines)]
    builder, known = OrderBuilder(limits.limits_of(1 << 20)), OrderBuilder(limits.limits_of(1 << 20))
    known.create(line(1))
    for each in (builder, known):
        refused = each.send("order.created", **created(*items)).refused
        assert (refused == fold.TOO_LARGE_TO_BEGIN) is not fits
    assert builder.order.version == fits
    headers, value = record("order.created", created(*items))
    fact = reference.parse("order.created", ORDER.encode(), value, headers)
    assert isinstance(fact, Fact)
    assert reference.Room(1 << 20).begins(fact) is fits
    assert OrderBuilder().send("order.created", **created(*items)).refused is None
    assert reference.ROOM.begins(fact)


@pytest.mark.parametrize("size", SIZES)
def test_the_auditor_counts_by_the_same_limits(size: int) -> None:
    room, bounds = reference.Room(size), limits.limits_of(size)
    assert {name: room.facts(name) for name in bounds.types} == bounds.types
    assert room.passed_on == bounds.record


@pytest.mark.parametrize("seed", range(20))
def test_the_reference_refuses_the_same_whatever_comes_between(seed: int) -> None:
    """One log per type; two interleavings of them, and the reference, which reads log after log:
    the same facts are refused.
    """
    small = msgspec.structs.replace(limits.LIMITS, types=dict.fromkeys(limits.TYPE_BYTES, 700), uncounted=0)
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
        builder, left = OrderBuilder(small), {type_: list(log) for type_, log in logs.items()}
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

    held = reference.Order(ORDER, SmallRoom())
    builder = {type_: [judged(type_, data, hour) for data, hour in log] for type_, log in logs.items()}
    assert interleaved() == interleaved() == builder
    assert {verdict for log in builder.values() for verdict in log} == {
        "taken",
        "key_conflict",
        errors.ORDER_TOO_LARGE,
    }


class SmallRoom(reference.Room):
    def facts(self, type_: str) -> int:
        return 700


def test_a_record_counts_its_key_value_and_headers() -> None:
    assert limits.record_size(None, None, []) == 0
    assert limits.record_size(b"key", b"value", [("é", b"12"), ("n", None)]) == 8 + (2 + 2 + 10) + (1 + 10)
