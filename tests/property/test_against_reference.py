"""The pipeline's domain (decode, fold, rows) against audit.reference, written from the contract alone: the
same verdicts, rows, events.

A history becomes wire records; both sides read those. Refund decisions are made by the fold and read by both.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, Self

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple

from audit import reference, states
from audit.attention import named_in
from audit.derived import DERIVED, DerivedEvents
from audit.derived import Event as DerivedEvent
from audit.findings import Finding, Findings, Report
from audit.index import Index
from audit.promises import DELIVER, SHIP
from contracts import ids, outgoing, times
from contracts.errors import Refused
from contracts.record_id import RecordId
from contracts.topics import DECISIONS
from domain import effects, events, parts, rows
from domain.anomalies import anomalies
from domain.attention import attention_rows
from domain.fold import fold
from domain.order import Created, Order, RefundDecision
from domain.shapes import Derived, Event, LateRefusal
from domain.status import view_of
from sinks.schema import TABLES
from tables import codec
from tests.property.examples import examples, part
from tests.property.histories import RANDOMS, SAME_IN_ANY_ORDER, histories
from tests.property.records import HOUR, Record, dense, record
from workload import generator
from workload.poison import POISONS

ANOMALIES = {
    "overpaid": "captured_above_total",
    "over_returned": "returned_above_quantity",
    "moved_though_gone": "in_transit_above_stock",
    "reservation_unknown": "reservation_unknown",
    "refund_failed": "refund_failed",
    "refund_uncovered": "refund_not_covered",
    "refund_contradicted": "decision_contradicted",
    "release_unanswered": "release_unanswered",
    "label_unscanned": "label_unscanned",
    "refund_unconfirmed": "refund_unconfirmed",
    "late_to_ship": "late_to_ship",
    "late_to_deliver": "late_to_deliver",
    "return_overdue": "return_overdue",
}
"""Our code -> the reference's, as far as both have them."""


# -- both sides ----------------------------------------------------------------------------------------------


class Told(NamedTuple):
    """What one side says of one order."""

    rows: dict[str, list[tuple[Any, ...]]]
    refused: Counter[str]
    commands: dict[tuple[str, str], Any]
    refunds: dict[tuple[str, str], Any]
    anomalies: set[str]
    promises: dict[str, tuple[str | None, ...]]
    """Seller -> until when its parts are promised to be shipped and delivered, and since when it is late."""
    version: int


class Ours:
    """The pipeline's domain: every record decoded and folded, state going through bytes; decisions come
    back every `pace` records.
    """

    def __init__(self, pace: int) -> None:
        self.pace = pace
        self.states: dict[bytes, bytes] = {}
        self.decided: list[Record] = []
        self.back: deque[Record] = deque()
        self.derived: dict[bytes, list[Derived]] = defaultdict(list)
        self.causes: dict[bytes, list[str]] = defaultdict(list)
        """Of each of these, the id of the event that made it."""
        self.refused: dict[bytes, set[tuple[Any, ...]]] = defaultdict(set)
        self.verdicts: list[str] = []

    def take_all(self, records: Iterable[Record]) -> Self:
        for n, each in enumerate(records):
            self.verdicts.append(self._judge(each))
            if n % self.pace == 0 and self.back:
                self._judge(self.back.popleft())
        while self.back:
            self._judge(self.back.popleft())
        return self

    def _judge(self, each: Record) -> str:
        try:
            event = events.decode(each.topic, each.headers, each.value)
        except Refused as refused:
            return refused.code
        raw = self.states.get(event.order_id)
        order = Order() if raw is None else codec.decode(raw)
        folded = fold(order, event, RecordId(each.topic, 0, 0))
        if folded.changed:
            self.states[event.order_id] = codec.encode(order)
        for effect in folded.effects:
            if isinstance(effect, LateRefusal):
                self.refused[event.order_id].add(
                    (effect.code, effect.type, *map(hashable, effect.fact.key()))
                )
            else:
                self._leave(event, effect)
        if folded.refused is not None and folded.refused[0] != "key_conflict":
            assert not isinstance(event.fact, (Created, RefundDecision))
            self.refused[event.order_id].add(
                (folded.refused[0], event.type, *map(hashable, event.fact.key()))
            )
        return "ok" if folded.refused is None else folded.refused[0]

    def _leave(self, event: Event, effect: Derived) -> None:
        if effect.type == "refund.decided":
            value, headers = effects.encode(effect, event.order_id, effects.headers_of(event))
            each = Record(effect.topic, None, value, headers)
            self.decided.append(each)
            self.back.append(each)
        else:
            self.derived[event.order_id].append(effect)
            self.causes[event.order_id].append(event.id)

    def outcome(self, order_id: bytes) -> Told:
        order = codec.decode(self.states[order_id])
        text = ids.text(order_id)
        tables: dict[str, list[tuple[Any, ...]]] = {name: [] for name in TABLES}
        if order.created is not None:
            row = rows.order_row(text, order)
            tables = {
                "orders_order": [astuple(row)],
                "orders_order_item": [astuple(row) for row in rows.item_rows(text, order)],
                "orders_shipment": [astuple(row) for row in rows.shipment_rows(text, order)],
                "orders_return": [astuple(row) for row in rows.return_rows(text, order)],
                "orders_suborder": [astuple(each) for each in parts.suborder_rows(order_id, order, row)],
                "orders_payment": [astuple(row) for row in parts.payment_rows(text, order)],
                "orders_refund": [astuple(row) for row in parts.refund_rows(text, order_id, order)],
                "orders_attention": [
                    (
                        *(row.kind, row.order_id, row.user_id, row.region, named_in(row.detail), row.since),
                        *(None, row.created_at, row.updated_at, row.version),
                    )
                    for row in attention_rows(text, order_id, order, *rows.fact_times(order))
                    if row.cleared_at is None
                ],
            }
        kept = [
            (each.type, msgspec.json.decode(msgspec.json.encode(each.data)))
            for each in self.derived[order_id]
            if each.type in OUR_IDS
        ]
        published = [(type_, f"{data[OUR_IDS[type_]]}{_attempt_of(data)}", data) for type_, data in kept]
        return Told(
            {name: sorted(each, key=repr) for name, each in tables.items()},
            Counter(code for code, *_ in self.refused[order_id]),
            {(type_, made_id): data for type_, made_id, data in published if type_ in SAME_IN_ANY_ORDER},
            {(type_, made_id): data for type_, made_id, data in published if type_ == "refund.request"},
            {
                ANOMALIES[code]
                for text in anomalies(order, order_id)
                if (code := text.partition(":")[0]) in ANOMALIES
            },
            _promises(order),
            order.version,
        )


def _attempt_of(data: dict[str, Any]) -> str:
    return f":{data['attempt']}" if data.get("attempt", 1) > 1 else ""


def _promises(order: Order) -> dict[str, tuple[str | None, ...]]:
    return {
        ids.text(part.seller_id): tuple(
            None if by is None else times.text(by) for by in (part.ship_by, part.deliver_by, part.late_since)
        )
        for part in (view_of(order).suborders if order.created is not None else ())
    }


def hashable(value: Any) -> Any:
    return tuple(map(hashable, value)) if isinstance(value, (list, tuple)) else value


OUR_IDS = {
    spec.type: spec.id_field
    for spec in outgoing.DERIVED
    if spec.id_field is not None and spec.varies in ("never", "decided")
}
"""Type -> the field of its data that tells one from another."""


def read_by_reference(each: Record) -> reference.Fact | reference.Decision | reference.Refusal:
    if each.topic == DECISIONS:
        return reference.parse_decision(each.value, each.headers)
    return reference.parse(each.topic, each.key, each.value, each.headers)


class Witnessed(Ours):
    """The pipeline's domain, and after each record the reference's opinion of what is owed and of
    what was decided just now.
    """

    def __init__(self, pace: int, most_units: int) -> None:
        super().__init__(pace)
        self.most_units = most_units
        self.orders: dict[str, reference.Order] = {}
        self.seen: Counter[str] = Counter()

    def _judge(self, each: Record) -> str:
        before = len(self.decided)
        code = super()._judge(each)
        parsed = read_by_reference(each)
        if not isinstance(parsed, reference.Refusal):
            order = self.orders.setdefault(parsed.order_id, reference.Order(parsed.order_id))
            if isinstance(parsed, reference.Decision):
                assert order.decide(parsed)
            else:
                order.add(parsed)
            self._witness(order.reading(), self.decided[before:])
        return code

    def _witness(self, now: reference.Reading, proposed: list[Record]) -> None:
        owed = now.owed() if now.created else []
        for each in proposed:
            decision = reference.parse_decision(each.value, each.headers)
            assert isinstance(decision, reference.Decision)
            self._witness_decision(now, owed, decision)
        order_id = reference.uuid_bytes(now.order_id)
        uncovered = [
            text
            for text in anomalies(codec.decode(self.states[order_id]), order_id)
            if text.startswith("refund_uncovered")
        ]
        assert [text.split(": ")[1] for text in uncovered] == sorted(
            f"{each.cause} {each.cause_id}" for each in owed if not each.covered
        )
        self.seen["uncovered"] += bool(uncovered)

    def _witness_decision(
        self, now: reference.Reading, owed: list[reference.Owed], decision: reference.Decision
    ) -> None:
        (whole,) = [
            each for each in owed if (each.cause, each.cause_id) == (decision.cause, decision.cause_id)
        ]
        assert whole.covered
        assert set(decision.units) <= set(whole.units)
        assert len(decision.units) == min(
            self.most_units if whole.cause == "stock" else len(whole.units), len(whole.units)
        )
        costly = {line.item_id for line in now.lines if line.shipping_cost}
        assert decision.shipping == tuple(item_id for item_id in whole.shipping if item_id in costly)
        assert decision.tax_amount == (now.tax_of(decision) if now.taxed else None)
        self.seen["taxed"] += bool(decision.tax_amount)
        assert 0 < decision.amount <= whole.amount
        cost = now.pays_for(decision)
        assert decision.amount == (whole.amount if cost is None else min(cost, whole.amount))
        self.seen["cut"] += cost is not None and decision.amount < cost
        assert decision.allocations == now.allocate(decision.amount)
        self.seen["split"] += len(decision.allocations) > 1
        if len(decision.units) == len(whole.units):
            assert decision.amount == whole.amount
        else:
            self.seen["pieces"] += 1
        begun = now.decisions[-1] if now.decisions else None
        if begun is not None and begun.cause == "stock" and len(begun.units) == self.most_units:
            rest = [each for each in owed if each.cause_id == begun.cause_id and each.covered]
            assert whole in rest or not rest
            self.seen["rests"] += len(rest)


class Theirs:
    """The reference: facts by order, and what they amount to."""

    def __init__(self) -> None:
        self.orders: dict[str, reference.Order] = {}
        self.verdicts: list[str] = []
        self.happened: dict[str, dict[str, set[tuple[str, datetime]]]] = defaultdict(lambda: defaultdict(set))
        """Order -> id of an event that another service sent -> its type and time."""

    def take_all(self, records: Iterable[Record], decided: Iterable[Record]) -> Theirs:
        for each in records:
            parsed = read_by_reference(each)
            assert not isinstance(parsed, reference.Decision)
            if isinstance(parsed, reference.Refusal):
                self.verdicts.append(parsed.code)
            else:
                order = self.orders.setdefault(parsed.order_id, reference.Order(parsed.order_id))
                if each.topic != DECISIONS:
                    event_id = reference.read(each.topic, each.value, each.headers).event_id
                    self.happened[parsed.order_id][event_id].add((parsed.type, parsed.time))
                first = next(iter(order.candidates.get(parsed.key, ())), None)
                order.add(parsed)
                self.verdicts.append(
                    "ok" if first is None or first.fact.content == parsed.content else "key_conflict"
                )
        for each in decided:
            decision = reference.parse_decision(each.value, each.headers)
            assert isinstance(decision, reference.Decision), decision
            self.orders[decision.order_id].decide(decision)
        return self

    def outcome(self, order_id: str) -> Told:
        reading = self.orders[order_id].reading()
        derived = reading.derived()
        return Told(
            {
                name: sorted(
                    ((*row[:4], named_in(row[4]), *row[5:]) for row in each)
                    if name == "orders_attention"
                    else each,
                    key=repr,
                )
                for name, each in reading.rows().items()
            },
            Counter(refusal.code for refusal in reading.refused.values()),
            {key: data for key, data in derived.items() if key[0] in SAME_IN_ANY_ORDER},
            {key: data for key, data in derived.items() if key[0] == "refund.request"},
            {each.code for each in reading.anomalies()} & set(ANOMALIES.values()),
            {
                seller: tuple(
                    None if by is None else by.isoformat()
                    for by in (
                        reading.promised(SHIP, seller),
                        reading.promised(DELIVER, seller),
                        reading.late_since(seller),
                    )
                )
                for seller in (reading.sellers if reading.created else ())
            },
            reading.version,
        )


def without_extras(ours: Any, theirs: Any) -> Any:
    """Ours with only the fields that the contract names (more may be added to them)."""
    if isinstance(theirs, dict):
        return {name: without_extras(ours[name], theirs[name]) for name in theirs if name in ours}
    if isinstance(theirs, list):
        return [without_extras(mine, other) for mine, other in zip(ours, theirs, strict=True)]
    return ours


def compare(records: list[Record], pace: int) -> None:
    ours = Ours(pace).take_all(records)
    theirs = Theirs().take_all(records, ours.decided)
    refused = {"order_currency", "order_item", "order_seller"}
    # A refusal for the order's sake is judged below, by key: when it is told depends on what came first.
    assert ["ok" if code in refused else code for code in ours.verdicts] == theirs.verdicts
    assert {ids.text(order_id) for order_id in ours.states} == set(theirs.orders)
    origins = [reference.RecordId(each.topic, 0, 0) for each in records]
    readings = {order_id: theirs.orders[ids.text(order_id)].reading() for order_id in ours.states}
    for order_id, reading in readings.items():
        mine, other = ours.outcome(order_id), theirs.outcome(ids.text(order_id))
        assert mine.rows == other.rows
        assert mine.version == other.version
        assert mine.refused == other.refused
        assert mine.anomalies == other.anomalies
        assert mine.promises == other.promises
        # What left before its event turned out to be history stays.
        possible = reading.possible() if reading.created is not None else {}
        for here, there in ((mine.commands, other.commands), (mine.refunds, other.refunds)):
            assert set(there) <= set(here) <= set(possible)
            for key, data in here.items():
                assert without_extras(data, possible[key]) == possible[key]
        state = states.read_state(ours.states[order_id])
        assert states.differences(reading, state, lambda fact: None, origins) == []
        if reading.created is not None:
            assert_no_more_than_there_is(reading, ours.derived[order_id])
    assert unexpected(readings, ours, theirs) == []


def assert_no_more_than_there_is(reading: reference.Reading, derived: Iterable[Derived]) -> None:
    """Every quantity that leaves is one to that of its line."""
    for each in derived:
        data = msgspec.to_builtins(each.data)
        for item in [data] if each.type == "stock.restock" else data.get("items", []):
            assert 0 < item["quantity"] <= reading.items[item["item_id"]]["quantity"], f"{each.type}: {item}"


def unexpected(readings: Mapping[bytes, reference.Reading], ours: Ours, theirs: Theirs) -> list[Finding]:
    """What the auditor has to say of the orders' derived events, each with its cause, in the order in which
    they left.
    """
    with TemporaryDirectory() as folder:
        index = Index(Path(folder))
        findings = Findings(Report("test"), index, 100)
        for order_id, reading in readings.items():
            happened = theirs.happened[ids.text(order_id)]
            judged = DerivedEvents([reading], AnyCause(), lambda fact: None, findings, happened)
            for each, cause in zip(ours.derived[order_id], ours.causes[order_id], strict=True):
                if each.type in DERIVED:
                    value = msgspec.json.encode(each.data)
                    event_id = ids.uuid5_text(order_id, each.ce_name)
                    history = dict(effects.attributes(each, order_id, [])).get("ce_history", b"").decode()
                    judged.take(DerivedEvent(each.type, 0, 0, event_id, cause, None, value, history or None))
            judged.finish(set(DERIVED))
        findings.judge()
        index.close()
    return findings.report.findings


class AnyCause(dict[str, set[str | None]]):
    """Every id is one of an event without a trace."""

    def get(self, key: object, default: object = None) -> Any:
        return {None}


@examples(150)
@given(histories, RANDOMS, st.integers(1, 5))
def test_random_histories(history: list[Event], random: Any, pace: int) -> None:
    records = [record(event) for event in history]
    records += [each for each in records if random.random() < 0.2]
    # A repetition with another time: only of a scan is that another fact.
    records += [
        record(msgspec.structs.replace(event, time=max(0, event.time + shift)))
        for event in history
        if (shift := random.randrange(-9, 9) * HOUR) and random.random() < 0.3
    ]
    random.shuffle(records)
    compare(records, pace)


@examples(100)
@given(histories, histories, RANDOMS)
def test_conflicting_histories(history: list[Event], rival: list[Event], random: Any) -> None:
    """Two histories of one order: many known keys with other content, of which the first in the log stays."""
    rival = [msgspec.structs.replace(event, id=f"rival {event.id}") for event in rival]
    records = [record(event) for event in (*history, *rival)]
    random.shuffle(records)
    compare(records, 1)


@pytest.mark.parametrize("seed", range(part(4)))
def test_dense_orders(seed: int) -> None:
    """Few parcels, returns and payments with many events each, so that facts meet:
    rivals, ties, corrections.
    """
    rng = Random(seed)
    records = [each for n in range(100) for each in dense(n, rng, lapses=True)]
    rng.shuffle(records)
    compare(records, rng.randint(1, 4))


@examples(60)
@given(history=histories, random=RANDOMS, pace=st.integers(1, 5))
def test_every_decision_is_about_a_refund_that_is_covered_whole(
    most_units: int, history: list[Event], random: Any, pace: int
) -> None:
    records = [record(event) for event in history]
    random.shuffle(records)
    Witnessed(pace, most_units).take_all(records)


def test_refunds_of_dense_orders_are_covered_whole(most_units: int) -> None:
    rng = Random(7)
    records = [each for n in range(max(100, part(300))) for each in dense(n, rng)]
    rng.shuffle(records)
    seen = Witnessed(3, most_units).take_all(records).seen
    assert seen["uncovered"] > 3
    assert most_units > 2 or (seen["pieces"] > 3 and seen["rests"] > 3), seen


@pytest.mark.parametrize("seed", range(part(3)))
def test_generated_orders(seed: int) -> None:
    shares = generator.Shares(duplicates=0.1, shuffle=0.2)
    records = [
        Record(each.topic, each.key, each.value, each.headers) for each in generator.events(150, seed, shares)
    ]
    compare(list(shuffled(records, Random(seed))), 3)


def shuffled(records: list[Record], rng: Random) -> Iterator[Record]:
    """The generator displaces records; here those of a window change their places too."""
    for start in range(0, len(records), 200):
        window = records[start : start + 200]
        rng.shuffle(window)
        yield from window


@pytest.mark.parametrize(
    "poison", [each for each in POISONS.values() if not each.needs_order], ids=lambda each: each.name
)
def test_poison_is_refused_by_both(poison: Any) -> None:
    poisoned = poison.make(Random(1))
    ours = Ours(1).take_all([Record(poisoned.topic, poisoned.key, poisoned.value, poisoned.headers)])
    theirs = Theirs().take_all([Record(poisoned.topic, poisoned.key, poisoned.value, poisoned.headers)], [])
    assert ours.verdicts == theirs.verdicts == [poison.reason]
