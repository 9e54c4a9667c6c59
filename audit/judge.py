"""One order judged: everything that the log says about it against everything that was written of it.

The auditor hands over what it has read, order by order, as items (key, kind, ...); see the kinds below.
Nothing here blocks but for the index on the local disk.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from audit.attention import TABLE as ATTENTION
from audit.attention import no_later
from audit.attention import version_of as attention_version
from audit.derived import DERIVED, SAME, DerivedEvents, Event, difference, first_pair
from audit.findings import Findings
from audit.foreign import read_json
from audit.index import Index, Letter
from audit.promises import subject_of
from audit.reference import (
    LATE,
    ROOM,
    Candidate,
    Decision,
    Fact,
    NaturalKey,
    Order,
    Reading,
    RecordId,
    Refusal,
    Room,
    is_canonical,
    normalised,
    parse_decision,
    read,
    unwrap,
)
from audit.rows import payments_of
from audit.states import State, differences, read_state, version_of
from audit.stores import TABLES, Row, columns, comparable, line_of, row_of, text_at
from audit.topics import CHECKOUT, CREATED, DECISIONS, DLQ, INPUT, INTERNAL, LANE, REKEYED

FACT, DERIVED_EVENT, STATE, ROW, ENTRY, MEMBER, LOCAL, TOUCHED = range(8)
"""Kinds of items. After (key, kind) come

    FACT           number of the topic in LANE, partition, offset, timestamp in ms, value,
                   headers (see _as_read)
    DERIVED_EVENT  number of the topic in derived.DERIVED, partition, offset, id, causeid,
                   traceparent or None, value, history or None
    STATE          offset in the changelog, value or None
    ROW            number of the table, line of COPY
    ENTRY          Redis key, TTL in ms, string or None
    MEMBER         Redis key of a sorted set, TTL in ms, score
    LOCAL          number of the local table, state
    TOUCHED        nothing: the order is to be looked at (never comes to a Judge)
"""

_NUMBER: Final = re.compile("[0-9]{1,18}")
OURS: Final = b"/orders"
"""ce_source of an order.created that was made of a checkout."""
_ORDER_CODES: Final = ("order_currency", "order_item", "order_seller")
LONGEST_TTL: Final = 1_800_000
_MANY_PARCELS: Final = 200
"""Beyond that not each of an order's parcels is refreshed with its summary."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ATTENTION: Final = TABLES.index(ATTENTION)
_CLEARED_AT: Final = columns(ATTENTION).index("cleared_at")
_REKEYED_FROM: Final = ("rekeyed_topic", "rekeyed_partition", "rekeyed_offset", "rekeyed_key")
"""Headers that a re-keyed copy has beside its record's own."""

Item = Sequence[Any]
_RANK: Final = [topic != REKEYED and number + 1 for number, topic in enumerate(LANE)]
"""Number of a topic in LANE -> where it comes among those of facts: copies first."""


@dataclass(slots=True)
class Lane:
    """What holds for all orders of a lane.

    `complete`: derived topics of which no record was deleted.
    `local`: path and changelog offset of each local table of this partition.
    `kept`: what is known of its orders is to be kept for the next audit.
    `told_from`: when the first order.attention was written, ms since 1970; None: there is none.
    """

    number: int
    changelog: str | None
    complete: set[str]
    local: list[tuple[str, int]]
    cached: bool
    kept: bool = False
    told_from: int | None = None


class Known(NamedTuple):
    """What an earlier audit read of an order and found clean: enough to judge it again with what came since.

    `facts`: its FACT items. `seen`: (type, id) of its derived events, but for notices. `last`: DERIVED_EVENT
    items of its last notices. `state`: offset and bytes of the state that recovery would keep. `placed`:
    whether its order.created was made of a checkout. `waits`: its order.created is unknown.
    """

    facts: Sequence[Item]
    seen: Sequence[tuple[str, str]]
    last: Sequence[Item]
    state: tuple[int, bytes] | None
    placed: bool
    waits: bool


@dataclass(slots=True)
class Held:
    """An order of the log.

    `raws` are its records as they came, `causes` the ids of its events with the traces that go on from them,
    `happened` those of other services' events with their types and times.
    """

    order: Order
    appended: int
    raws: dict[RecordId, Item] = field(default_factory=dict)
    causes: dict[str, set[str | None]] = field(default_factory=dict)
    happened: dict[str, set[tuple[str, datetime]]] = field(default_factory=dict)
    readings: list[Reading] = field(default_factory=list)
    placed: bool = False
    """Its order.created was made of a checkout."""
    decided: list[RecordId] = field(default_factory=list)
    """Where each decision of a refund lies, by its number."""

    @property
    def order_id(self) -> str:
        return self.order.order_id

    @property
    def reading(self) -> Reading:
        """The first reading."""
        return self.readings[0]

    def record_of(self, fact: Fact) -> RecordId | None:
        """Where the log says this."""
        for candidate in self.order.candidates.get(fact.key, ()):
            if candidate.fact is fact and candidate.records:
                return candidate.records[0]
        return None

    def appended_of(self, fact: Fact) -> int | None:
        """When the first record that says this was appended, ms since 1970; None: there is none."""
        times = [
            self.raws[record_id][5]
            for candidate in self.order.candidates.get(fact.key, ())
            if candidate.fact is fact
            for record_id in candidate.records
            if record_id in self.raws
        ]
        return min(times, default=None)


class Judge:
    """Judges the orders of one lane. `home` tells the partition of a key, `room` how much an order may
    hold.
    """

    def __init__(self, lane: Lane, index: Index, findings: Findings, home: Any, room: Room = ROOM) -> None:
        self._lane = lane
        self._index = index
        self._findings = findings
        self._home = home
        self._room = room
        self._counts = findings.report.counts
        self._checked = findings.report.checked

    def order(self, key: bytes, items: Iterable[Item], known: Known | None = None) -> Known | None:
        """Judge everything that was read under one key and, of the order under it, what was known before.
        Returns what is known of that order now, if that is to be kept; None if there is none.
        """
        kinds: list[list[Item]] = [[], [], [], [], [], [], []]
        for item in items:
            kinds[item[1]].append(item)
        facts, derived, states, rows, entries, members, local = kinds
        if known is not None:
            facts[:0] = known.facts
            if known.state is not None:
                states.insert(0, (key, STATE, *known.state))
        # In the order in which a lane's topics are read, whenever they were.
        facts.sort(key=lambda item: _RANK[item[2]])
        order_id = key.decode("utf-8", "backslashreplace")
        at_home = is_canonical(key) and self._home(key) == self._lane.number
        held = self._fold(key, order_id, at_home, facts) if facts else None
        kept: Item | None = None
        if self._lane.changelog is not None:
            # First: where the log allows several readings, the state says which one the pipeline took, and
            # the rest must agree with it.
            kept = self._judge_changelog(order_id, held, states)
            self._judge_local(order_id, held, None if kept is None else kept[3], states, local)
        if held is not None:
            self._count_order(held)
            self._judge_refunds(held)
            self._judge_deadlines(held)
            self._want_letters(held)
        events = self._judge_derived(order_id, held, derived, known)
        self._judge_rows(order_id, held, rows)
        if self._lane.cached:
            self._judge_cache(order_id, held, entries, members)
        if held is None or events is None or not self._lane.kept:
            return None
        last = [_as_item(key, event) for event in events.last]
        state = None if kept is None else (kept[2], kept[3])
        return Known(facts, events.seen, last, state, held.placed, held.reading.created is None)

    # -- facts -----------------------------------------------------------------------------------------------

    def _fold(self, key: bytes, order_id: str, own: bool, items: Iterable[Item]) -> Held | None:
        held: Held | None = None
        decisions = []
        for item in items:
            if not item[-1] or type(item[-1][0][0]) is bytes:
                item = _as_read(item)
            _, _, number, partition, offset, _, value, headers = item
            record_id = RecordId(LANE[number], partition, offset)
            if type(headers) is _Unreadable:
                self._counts["records"] += record_id.topic not in INTERNAL
                self._refuse("unreadable", [record_id], {record_id: item})
                continue
            if record_id.topic != REKEYED:
                for name, text in headers:
                    if name == "redrive_of":
                        self._index.add_sent((text or b"").decode("utf-8", "replace"), record_id)
            if record_id.topic == DECISIONS:
                decisions.append((record_id, value, headers, item))
            elif record_id.topic == CHECKOUT:
                self._take_checkout(record_id, value, headers, item)
            else:
                held = self._take_event(held, order_id, own, item, record_id)
        held = self._decide(held, order_id, decisions)
        if held is not None:
            held.readings = held.order.readings()
        return held

    def _take_event(
        self, held: Held | None, order_id: str, own: bool, item: Item, record_id: RecordId
    ) -> Held | None:
        """Add what a record says to its order, or say why not; returns the order."""
        _, _, _, partition, _, timestamp, value, headers = item
        topic, record_ids = record_id.topic, [record_id]
        if topic == REKEYED:
            self._counts["rekeyed"] += 1
            origin = origin_of_copy(headers)
            if origin is None:
                self._refuse("origin_unknown", record_ids, {record_id: item})
                return held
            record_ids.append(origin)
            parsed = read(origin.topic, value, own_headers(headers), timestamp)
        else:
            self._counts["records"] += 1
            parsed = read(topic, value, headers, timestamp)
        fact = self._of_then(parsed.outcome, record_ids[-1])
        if isinstance(fact, Refusal):
            self._refuse(fact.code, record_ids, dict.fromkeys(record_ids, item))
            return held
        # In the order's partition of before it was either taken there, or passed on after the change.
        at_home = own and (
            partition == self._lane.number or topic in INTERNAL or not self._index.has_copy(record_id)
        )
        if fact.order_id != order_id or not at_home:
            if topic != REKEYED and _size(item) > self._room.passed_on:
                self._refuse("record_too_large", record_ids, {})
            else:
                self._look_for_copy(fact.order_id, order_id, record_id)
            return held
        if fact.type == CREATED and not self._room.begins(fact):
            self._refuse("order_too_large", record_ids, dict.fromkeys(record_ids, item))
            return held
        if held is None:
            held = Held(Order(order_id, self._room), timestamp)
        held.appended = min(held.appended, timestamp)
        self._add(held, fact, record_ids, item)
        held.causes.setdefault(parsed.event_id, set()).add(parsed.traceparent)
        held.happened.setdefault(parsed.event_id, set()).add((fact.type, fact.time))
        if topic == CREATED and dict(headers).get("ce_source") == OURS:
            held.placed = True
            self._index.add_placed(order_id)
        return held

    def _look_for_copy(self, owner: str, key: str, record_id: RecordId) -> None:
        """An event under another key, or in another partition, than its order's has to
        be passed on there, once.
        """
        home = self._home(owner.encode())
        if record_id.topic == REKEYED:
            actual = f"key {key} in partition {record_id.partition}"
            self._findings.broken(
                "accounting", owner, str(record_id), f"key {owner} in partition {home}", actual
            )
        elif not self._index.has_copy(record_id):
            self._findings.broken(
                "accounting", owner, REKEYED, f"a copy in partition {home}", "none", record_id
            )

    def _refuse(self, code: str, record_ids: list[RecordId], items: dict[RecordId, Item]) -> None:
        self._counts["refused"] += 1
        self._want("", {code}, record_ids, items)

    def _take_checkout(self, record_id: RecordId, value: bytes | None, headers: Any, item: Item) -> None:
        self._counts["records"] += 1
        fact = self._of_then(read(CHECKOUT, value, headers, item[5]).outcome, record_id)
        if isinstance(fact, Refusal):
            self._refuse(fact.code, [record_id], {record_id: item})
        elif not self._room.begins(fact):
            self._refuse("order_too_large", [record_id], {record_id: item})
        else:
            self._counts["checkouts"] += 1
            self._index.add_checkout(fact.order_id, record_id)

    def _of_then(self, outcome: Fact | Refusal, record_id: RecordId) -> Fact | Refusal:
        """What a record was when it came: one that was refused by other rules and went back since
        is none, its copy counts.

        But for a conflict: there a record is refused because of another one, and goes on
        counting as the other content.
        """
        if isinstance(outcome, Refusal):
            return outcome
        reason = self._index.reason_of_redriven(record_id)
        return outcome if reason in (None, "key_conflict") else Refusal(reason, "redriven")

    def _add(self, held: Held, fact: Fact, record_ids: list[RecordId], item: Item) -> None:
        order = held.order
        before = len(order.candidates.get(fact.key, ()))
        candidate = order.add(fact, record_ids[0], rekeyed=len(record_ids) > 1)
        if isinstance(candidate, Refusal):
            self._refuse(candidate.code, record_ids, dict.fromkeys(record_ids, item))
            return
        repeated = len(candidate.records) > 1
        candidate.records.extend(record_ids[1:])
        self._counts["duplicates" if repeated else "facts" if before == 0 else "conflicts"] += 1
        held.raws.update(dict.fromkeys(record_ids, item))

    def _decide(
        self, held: Held | None, order_id: str, decisions: Iterable[tuple[RecordId, bytes | None, Any, Item]]
    ) -> Held | None:
        for record_id, value, headers, item in decisions:
            decision = parse_decision(value, headers)
            if isinstance(decision, Refusal):
                # What has a dead letter is somebody else's: no lane took it for a decision.
                refused = bool(self._index.letters_of([record_id]))
                self._counts["refused"] += refused
                if decision.code != "type_unknown" and not refused:
                    self._findings.broken(
                        "refunds",
                        order_id,
                        str(record_id),
                        "refund.decided",
                        f"{decision.code} {decision.detail}",
                    )
                continue
            if held is None or decision.order_id != order_id:
                actual = decision.type if isinstance(decision, Fact) else f"refund {decision.n}"
                self._findings.at_rest(
                    "refunds", decision.order_id, str(record_id), "a decision about a known order", actual
                )
                continue
            if isinstance(decision, Fact):
                self._add(held, decision, [record_id], item)
                event = unwrap(value, headers)
                held.causes.setdefault(event.id, set()).add(event.traceparent)
                continue
            event = unwrap(value, headers)
            held.causes.setdefault(event.id, set()).add(event.traceparent)
            expected = len(held.order.decisions)
            if held.order.decide(decision):
                held.decided.append(record_id)
            elif decision.n >= expected:
                self._findings.at_rest(
                    "refunds", order_id, str(record_id), f"decision {expected} next", decision.n
                )
                self._index.letters_of([record_id])  # one too many has one
        return held

    def _count_order(self, held: Held) -> None:
        reading, counts = held.reading, self._counts
        if reading.created is None:
            counts["waiting_orders"] += 1
            counts["waiting_facts"] += len(reading.facts)
            since = time.time() - held.appended / 1000
            old = since > LATE.total_seconds()
            counts["waiting_facts_old"] += len(reading.facts) if old else 0
            age = f"{len(reading.facts)} facts wait for it, the first since {since / 3600:.1f} h" + (
                " (more than a day)" if old else ""
            )
            self._findings.note("waiting", reading.order_id, "log", "order.created", age)
            return
        counts["orders"] += 1
        self._checked[reading.status()] += 1
        for anomaly in reading.anomalies():
            self._findings.report.anomalies[anomaly.code] += 1
            self._findings.note("anomaly", reading.order_id, anomaly.code, "", anomaly.detail)

    # -- refunds ---------------------------------------------------------------------------------------------

    def _judge_refunds(self, held: Held) -> None:
        reading, order_id = held.reading, held.order_id
        if reading.created is None:
            if reading.decisions:
                actual = f"{len(reading.decisions)} decisions"
                self._findings.at_rest(
                    "refunds", order_id, DECISIONS, "order.created before a decision", actual
                )
            return
        if not reading.decisions and reading.captured == 0:
            return
        amounts = [decision.amount for decision in reading.decisions]
        captured = max(each.captured for each in held.readings)
        elsewhere = min(each.known.get("refunded_amount", 0) for each in held.readings)
        if amounts and sum(amounts) + elsewhere > captured:
            less = f" less {elsewhere} paid back elsewhere" if elsewhere else ""
            expected = f"refunds <= captured {captured}{less}"
            self._findings.at_rest("refunds", order_id, DECISIONS, expected, amounts)
        for what in ("units", "shipping"):
            paid = [each for decision in reading.decisions for each in getattr(decision, what)]
            if len(set(paid)) < len(paid):
                twice = sorted(each for each, count in Counter(paid).items() if count > 1)[:5]
                self._findings.broken(
                    "refunds",
                    order_id,
                    DECISIONS,
                    f"{what} of each unit and line paid for once",
                    f"twice {twice}",
                )
        for decision, amount in zip(reading.decisions, amounts, strict=True):
            if decision.cause == "grant":
                self._judge_grant(held, decision)
            else:
                self._judge_decision(held, decision.n, amount)
            self._judge_allocations(held, decision)
            if not any(each.may_be_decided(decision) for each in held.readings):
                expected = f"no refund of {decision.cause} {decision.cause_id}: it is history"
                where = f"{DECISIONS} n {decision.n}"
                self._findings.at_rest("refunds", order_id, where, expected, decision.amount)
        for owed in reading.owed():
            if owed.covered and all(owed in each.owed() for each in held.readings):
                expected = f"{owed.cause} {owed.cause_id}: {owed.amount} decided"
                self._findings.at_rest("refunds", order_id, DECISIONS, expected, "undecided")

    def _judge_grant(self, held: Held, decision: Decision) -> None:
        """A grant is paid once, whole, and pays for no unit."""
        where = f"{DECISIONS} n {decision.n}"
        amounts = {reading.grants.get(decision.cause_id) for reading in held.readings}
        if amounts == {None}:
            expected = f"refund.granted {decision.cause_id}"
            self._findings.at_rest("refunds", held.order_id, where, expected, "none")
        elif decision.amount not in amounts:
            expected = f"amount {min(filter(None, amounts))}, of the grant"
            self._findings.broken("refunds", held.order_id, where, expected, decision.amount)
        before = held.reading.decisions[: decision.n]
        if any((each.cause, each.cause_id) == ("grant", decision.cause_id) for each in before):
            expected = f"grant {decision.cause_id} paid once"
            self._findings.broken("refunds", held.order_id, where, expected, "again")
        named = [*decision.units, *decision.shipping]
        if named or decision.tax_amount:
            actual = named[:5] or f"tax_amount {decision.tax_amount}"
            self._findings.broken("refunds", held.order_id, where, "no units, no tax: a grant", actual)

    def _judge_allocations(self, held: Held, decision: Decision) -> None:
        """It goes back to captured payments, each up to what is left of it."""
        wrong = [reading.misallocated(decision.n) for reading in held.readings]
        if all(wrong):
            expected, actual = next(filter(None, wrong))
            where = f"{DECISIONS} n {decision.n} allocations"
            self._findings.at_rest("refunds", held.order_id, where, expected, actual)

    def _judge_decision(self, held: Held, n: int, amount: int) -> None:
        """What a decision names costs what it says, with as much tax: that depends on the order and the
        decisions before alone, whatever is known of it since. It pays less only if it is what was left.
        """
        where = f"{DECISIONS} n {n}"
        costs: set[int | None] = set()
        taxes: set[int | None] = set()
        fits = False
        for reading in held.readings:
            try:
                costs.add(reading.pays_for(reading.decisions[n]))
                fits = fits or reading.may_pay(reading.decisions[n])
                taxes.add(reading.tax_of(reading.decisions[n]))
            except LookupError as error:
                self._findings.broken(
                    "refunds", held.order_id, where, "units and lines of the order", f"{error}"
                )
                return
        if not fits:
            self._findings.broken(
                "refunds",
                held.order_id,
                where,
                f"amount {min(filter(None, costs), default=0)}, for what it names",
                amount,
            )
        decision, tax_amount = held.reading.decisions[n], held.reading.decisions[n].tax_amount
        if decision.cause == "closed" and any(
            reading.tells_what_is_paid_elsewhere for reading in held.readings
        ):
            return  # what was left then depends on what was known
        if tax_amount not in taxes and (
            tax_amount is not None or all(reading.taxed for reading in held.readings)
        ):
            self._findings.broken(
                "refunds",
                held.order_id,
                where,
                f"tax_amount {min(filter(None, taxes), default=0)}",
                "none" if tax_amount is None else tax_amount,
            )

    def _judge_deadlines(self, held: Held) -> None:
        """Of an order that another system began, nobody waits for what that system saw to."""
        unexpected = [reading.unexpected_deadlines() for reading in held.readings]
        for fact in unexpected[0] if all(unexpected) else []:
            actual = f"{fact.content['deadline']} {subject_of(fact.content) or ''}".rstrip()
            expected = "no such deadline: another system saw to it"
            where, record_id = DECISIONS, held.record_of(fact)
            self._findings.at_rest("derived", held.order_id, where, expected, actual, record_id)

    # -- dead letters ----------------------------------------------------------------------------------------

    def _want_letters(self, held: Held) -> None:
        """The refused keys of an order: of a conflict every content that isn't surely the first, and what
        the order's sake refuses.

        What only some of the readings refuse may have a dead letter and needn't.
        """
        order = held.order
        refused: dict[NaturalKey, set[str]] = {}
        for reading in held.readings:
            for key, refusal in reading.refused.items():
                refused.setdefault(key, set()).add(refusal.code)
        in_all = {key for key in refused if all(key in reading.refused for reading in held.readings)}
        for key, candidates in order.candidates.items():
            if len(candidates) == 1 and key not in refused:
                continue
            codes = set(refused.get(key, ()))
            if len(candidates) > 1:
                codes.add("key_conflict")
            winners = order.winners(key)
            losers = [
                each for each in candidates if key in refused or len(winners) > 1 or each is not winners[0]
            ]
            self._counts["refused_keys"] += 1
            due = len(candidates) > 1 or key in in_all
            self._want(
                order.order_id,
                codes,
                [record_id for each in losers for record_id in each.records],
                held.raws,
                losers,
                due=due,
            )

    def _want(
        self,
        order_id: str,
        codes: set[str],
        record_ids: list[RecordId],
        raws: Mapping[RecordId, Item],
        refused: Sequence[Candidate] = (),
        *,
        due: bool = True,
    ) -> None:
        """At least one dead letter of one of these record_ids is due, or may at least be there."""
        letters = self._index.letters_of(record_ids)
        if not letters and due:
            expected = f"a dead letter ({' or '.join(sorted(codes))})"
            self._findings.broken("accounting", order_id, DLQ, expected, "none", record_ids[0], proven=True)
        for letter in letters:
            where = f"{DLQ}/{letter.lane}@{letter.at}"
            if letter.code not in codes:
                self._findings.note(
                    "letters", order_id, where, " or ".join(sorted(codes)), letter.code, letter.record_id
                )
            item = raws.get(letter.record_id)
            if item is None or _size(item) > self._room.passed_on or is_raw(letter, item):
                continue
            if letter.code in _ORDER_CODES and self._is_fact(letter, refused):
                continue
            expected = f"key, value and headers of {letter.record_id}" + (
                ", or its fact normalised" if letter.code in _ORDER_CODES else ""
            )
            self._findings.broken(
                "letters", order_id, where, expected, "something else", letter.record_id, proven=True
            )

    @staticmethod
    def _is_fact(letter: Letter, refused: Sequence[Candidate]) -> bool:
        """Whether the letter of a fact that waited holds it in normalised form, and says so."""
        candidate = next((each for each in refused if letter.record_id in each.records), None)
        if (
            candidate is None
            or "normalised" not in letter.detail
            or letter.key != candidate.fact.order_id.encode()
        ):
            return False
        fact = normalised(candidate.fact.type, letter.value)
        return isinstance(fact, Fact) and (fact.order_id, fact.content) == (
            candidate.fact.order_id,
            candidate.fact.content,
        )

    # -- derived events --------------------------------------------------------------------------------------

    def _judge_derived(
        self, order_id: str, held: Held | None, items: Sequence[Item], known: Known | None
    ) -> DerivedEvents | None:
        events = (
            None
            if held is None
            else DerivedEvents(
                held.readings,
                held.causes,
                held.record_of,
                self._findings,
                held.happened,
                held.appended_of,
                self._lane.told_from,
            )
        )
        if events is not None and known is not None:
            events.recall(known.seen, [Event(DERIVED[item[2]], *item[3:]) for item in known.last])
        for _, _, number, partition, offset, *said in items:
            if events is not None and events.take_written(DERIVED[number], *said):
                continue
            where = f"{DERIVED[number]}/{partition}@{offset}"
            try:
                event = Event(DERIVED[number], partition, offset, *said)
            except ValueError as error:
                self._findings.broken("derived", order_id, where, "a JSON object", error)
                continue
            if events is None:
                subject_id = event.data.get(SAME.get(event.type, "")) or event.event_id
                self._findings.at_rest(
                    "derived",
                    order_id,
                    where,
                    "no such event: the log has no such order in this lane",
                    subject_id,
                )
            else:
                events.take(event)
        if items:
            self._counts["derived_events"] += len(items)
        if events is not None:
            events.finish(self._lane.complete)
            self._counts["derived_repetitions"] += events.repetitions
        return events

    # -- states ----------------------------------------------------------------------------------------------

    def _judge_changelog(self, order_id: str, held: Held | None, items: Sequence[Item]) -> Item | None:
        """Returns the item of the state that recovery would keep: the highest version, the last of equals; a
        deletion is later than all before it.
        """
        if held is None and not items:
            return None
        topic, lane = self._lane.changelog, self._lane.number
        kept: tuple[int, int, bytes] | None = None
        stale: tuple[int, int] | None = None
        deleted = None
        for _, _, offset, value in items:
            if value is None:
                kept, stale, deleted = None, None, offset
                continue
            try:
                version = version_of(value)
            except ValueError as error:
                self._findings.broken("changelog", order_id, f"{topic}/{lane}@{offset}", "a state", error)
                continue
            if kept is not None and version < kept[0]:
                stale = version, offset
                self._counts["stale_states"] += 1
            else:
                kept, stale = (version, offset, value), None
        if kept is None:
            if held is not None:
                actual = "none" if deleted is None else f"deleted at {deleted}"
                self._findings.broken(
                    "changelog",
                    order_id,
                    f"{topic}/{lane}",
                    f"a state of version {held.order.version}",
                    actual,
                )
            return None
        self._counts["states"] += 1
        version, offset, value = kept
        where = f"{topic}/{lane}@{offset}"
        if stale is not None:
            # Compaction would keep this one alone.
            expected = f"version {version} or above last, as at {offset}"
            self._findings.broken(
                "versions", order_id, f"{topic}/{lane}@{stale[1]}", expected, f"version {stale[0]}"
            )
        if held is None:
            self._findings.at_rest(
                "changelog",
                order_id,
                where,
                "no state: the log has no facts of this order",
                f"version {version}",
            )
        elif version < held.order.version:
            self._findings.broken(
                "changelog", order_id, where, f"version {held.order.version}", f"version {version}"
            )
        elif version > held.order.version:
            self._findings.at_rest(
                "changelog", order_id, where, f"version {held.order.version}", f"version {version}"
            )
        else:
            self._compare_state(held, where, value)
        return (b"", STATE, offset, value)

    def _compare_state(self, held: Held, where: str, value: bytes) -> None:
        try:
            state: State = read_state(value)
            apart = [differences(reading, state, held.record_of, held.raws) for reading in held.readings]
        except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as error:
            self._findings.broken(
                "changelog", held.order_id, where, "a state", f"{type(error).__name__}: {error}"
            )
            return
        if all(apart):
            for each in min(apart, key=len):
                self._findings.at_rest(
                    "changelog", held.order_id, f"{where} {each.field}", each.expected, each.found, each.fact
                )
        else:
            held.readings = [
                reading for reading, differs in zip(held.readings, apart, strict=True) if not differs
            ]

    def _judge_local(
        self,
        order_id: str,
        held: Held | None,
        kept: bytes | None,
        states: Sequence[Item],
        items: Iterable[Item],
    ) -> None:
        """A worker that starts with a local table, and reads the changelog on from where the table ends,
        has the state that is kept.
        """
        stored = {item[2]: item[3] for item in items}
        for number, (path, read_to) in enumerate(self._lane.local):
            local: bytes | None = stored.get(number)
            if local is not None:
                self._counts["local_states"] += 1
            state, changelog = local, f"{self._lane.changelog}/{self._lane.number}"
            for _, _, offset, value in states:
                if offset > read_to and (
                    value is None or state is None or _version(value) >= _version(state)
                ):
                    state = value
            if state == kept:
                continue
            if kept is None:
                if held is None:  # a lost state is told of the changelog
                    self._findings.at_rest(
                        "tables", order_id, path, "no state: the log has no facts of this order", "a state"
                    )
            elif state is None or _version(state) <= _version(kept):
                what = "none" if state is None else f"version {_version(state)}, not the same"
                expected = (
                    f"version {_version(kept)} as in {changelog}, by its own states up to {read_to} and the"
                    " changelog's after it"
                )
                self._findings.broken("tables", order_id, path, expected, what)
            # Else it keeps a newer one than the changelog, which is told of the changelog.

    # -- rows ------------------------------------------------------------------------------------------------

    def _judge_rows(self, order_id: str, held: Held | None, items: Sequence[Item]) -> None:
        actual: list[list[bytes]] = [[] for _ in TABLES]
        cleared: list[bytes] = []
        for item in items:
            was_seen = item[2] == _ATTENTION and text_at(item[3], _CLEARED_AT) is not None
            (cleared if was_seen else actual[item[2]]).append(item[3])
        if held is None:
            actual[_ATTENTION] += cleared
            for table, lines in zip(TABLES, actual, strict=True):
                for line in lines:
                    row_id = text_at(line, 0)
                    self._findings.at_rest(
                        "rows", order_id, f"{table} {row_id}", "no row: the log has no such order", "a row"
                    )
            return
        expected: list[list[list[Row]]] = [
            [reading.rows()[table] for table in TABLES] for reading in held.readings
        ]
        written = [
            [[line_of(table, row) for row in rows] for table, rows in zip(TABLES, each, strict=True)]
            for each in expected
        ]
        actual[_ATTENTION] += self._judge_cleared(held, cleared, actual[_ATTENTION])
        for table, rows in zip(TABLES, expected[0], strict=True):
            self._checked[table] += len(rows)
        # Of each reading the rows that only one side has, a second row of one id counted.
        apart = [
            sum(_apart(wanted, got) for wanted, got in zip(each, actual, strict=True)) for each in written
        ]
        if 0 in apart:
            return
        # Where the log allows several readings, the nearest is compared.
        nearest = expected[apart.index(min(apart))]
        for table, rows, got in zip(TABLES, nearest, actual, strict=True):
            self._judge_table(held, table, rows, [row_of(table, line) for line in got])

    def _judge_cleared(self, held: Held, cleared: Sequence[bytes], open_: Sequence[bytes]) -> list[bytes]:
        """A row that was cleared is what was seen: nobody asks for it, and it isn't newer than the order.
        Returns those that aren't such: of what holds, without an open row, and of an order that waits.
        """
        most = attention_version(held.reading)
        known = all(reading.created is not None for reading in held.readings)
        opened = {text_at(line, 0) for line in open_}
        wrong = []
        for line in cleared:
            kind, version = text_at(line, 0), int(line.rsplit(b"\t", 1)[1])
            holds = all(kind in reading.attention for reading in held.readings)
            if not known or (holds and kind not in opened):
                wrong.append(line)
            elif version > most:
                where = f"{ATTENTION} {kind} version"
                self._findings.at_rest("rows", held.order_id, where, f"at most {most}", version)
        return wrong

    def _judge_table(self, held: Held, table: str, expected: Iterable[Row], actual: Iterable[Row]) -> None:
        order_id, names = held.order_id, columns(table)
        vague = no_later(held.reading) if table == ATTENTION else ()
        there: dict[str, list[Row]] = {}
        for row in actual:
            there.setdefault(row[0], []).append(row)
        for wanted in (comparable(table, row) for row in expected):
            twins = there.pop(wanted[0], [])
            where, fact = f"{table} {wanted[0]}", _fact_behind(held, table, wanted[0])
            if not twins:
                self._findings.broken("rows", order_id, where, f"a row of version {wanted[-1]}", "none", fact)
                continue
            if len(twins) > 1:
                owners = ", ".join(str(row[1:4]) for row in twins)
                self._findings.broken(
                    "rows", order_id, where, "one row", f"{len(twins)} rows: {owners}", fact
                )
            row = min(
                twins, key=lambda each: sum(one != other for one, other in zip(wanted, each, strict=True))
            )
            add = self._findings.broken if row[-1] < wanted[-1] else self._findings.at_rest
            for name, value, value_there in zip(names, wanted, row, strict=True):
                if value != value_there and not (
                    name == "since" and wanted[0] in vague and value_there < value
                ):
                    add("rows", order_id, f"{where} {name}", value, value_there, fact)
        for row_id, extra in there.items():
            self._findings.at_rest(
                "rows", order_id, f"{table} {row_id}", "no row", f"a row of version {extra[0][-1]}"
            )

    # -- cache -----------------------------------------------------------------------------------------------

    def _judge_cache(
        self, order_id: str, held: Held | None, entries: Iterable[Item], members: Iterable[Item]
    ) -> None:
        placed = held if held is not None and held.reading.created is not None else None
        seen: set[str] = set()
        tracked: set[tuple[str, str]] = set()
        for _, _, key, ttl, value in entries:
            if key in seen:  # SCAN may tell a key twice
                continue
            seen.add(key)
            if value is None:
                self._findings.broken("cache", order_id, key, "a string", "another type")
            elif placed is None:
                self._findings.at_rest(
                    "cache", order_id, key, "nothing: the log has no such order", "an entry"
                )
            elif key.startswith("order:"):
                self._counts["cached_orders"] += 1
                self._judge_summary(placed, key, value)
                self._judge_ttl(order_id, key, ttl)
            else:
                self._counts["cached_parcels"] += 1
                tracked.update((key, shipment_id) for shipment_id in self._judge_tracking(placed, key, value))
                self._judge_ttl(order_id, key, ttl)
        if placed is not None and f"order:{order_id}" in seen:
            self._miss_parcels(placed, tracked)
        for _, _, key, ttl, score in members:
            self._counts["cached_places"] += 1
            readings = [] if placed is None else placed.readings
            scores = {
                f"user:{reading.known['user_id']}:orders": _milliseconds(reading) for reading in readings
            }
            if key not in scores:
                self._findings.at_rest("cache", order_id, key, "no such member", "the order")
            elif all(abs(score - ms) >= 1 for ms in scores.values()):
                self._findings.at_rest(
                    "cache", order_id, key, f"score {min(scores.values()):.0f}", f"{score:.0f}"
                )
            self._judge_ttl(order_id, key, ttl)

    def _judge_ttl(self, order_id: str, key: str, ttl: int) -> None:
        if not 0 <= ttl <= LONGEST_TTL:
            self._findings.broken(
                "cache", order_id, key, "TTL of at most 1800 s", "none" if ttl < 0 else f"{ttl / 1000:.0f} s"
            )

    def _judge_summary(self, held: Held, key: str, value: bytes) -> None:
        try:
            summary = read_json(value)
            apart = [difference(summary_of(reading), summary) for reading in held.readings]
        except (ValueError, TypeError, AttributeError) as error:
            self._findings.broken("cache", held.order_id, key, "a JSON object", error)
            return
        if all(apart):
            self._findings.at_rest("cache", held.order_id, key, *first_pair(apart))

    def _miss_parcels(self, held: Held, tracked: set[tuple[str, str]]) -> None:
        """What was written with a summary should be under its tracking number too.
        Whether that is in the cache is looked up later.
        """
        parcels = [_numbers(reading) for reading in held.readings]
        if len(parcels[0]) <= _MANY_PARCELS:
            for key, shipment_id in parcels[0].intersection(*parcels[1:]) - tracked:
                self._index.add_absent(key, held.order_id, shipment_id)

    def _judge_tracking(self, held: Held, key: str, value: bytes) -> list[str]:
        """Returns the ids of the order's parcels that are there."""
        number = key.removeprefix("tracking:")
        try:
            own = [
                (each["shipment_id"], each) for each in read_json(value) if each["order_id"] == held.order_id
            ]
        except (ValueError, TypeError, KeyError) as error:
            self._findings.broken(
                "cache", held.order_id, key, "a JSON array of parcels", f"{type(error).__name__}: {error}"
            )
            return []
        parcels = [shipment_id for shipment_id, _ in own]
        if len(set(parcels)) < len(parcels):
            self._findings.broken(
                "cache", held.order_id, key, "each parcel of the order once", ", ".join(sorted(parcels))
            )
        for shipment_id, entry in own:
            apart = []
            for reading in held.readings:
                scan = reading.parcels.get(shipment_id)
                if scan is None or scan.content.get("tracking_number") != number:
                    apart.append((f"no parcel {shipment_id}", "its entry"))
                    continue
                due = scan.content.get("estimated_delivery")
                expected = {name: scan.content.get(name) for name in ("carrier", "status", "location")}
                apart.append(
                    difference(  # type: ignore[arg-type]
                        {**expected, "estimated_delivery": None if due is None else due.isoformat()}, entry
                    )
                )
            if all(apart):
                self._findings.at_rest("cache", held.order_id, key, *first_pair(apart))
        return parcels


def _as_item(key: bytes, event: Event) -> Item:
    """A derived event as it was read."""
    number, value = DERIVED.index(event.type), msgspec.json.encode(event.data)
    where = (number, event.partition, event.offset)
    said = (event.event_id, event.cause, event.trace, value, event.history)
    return (key, DERIVED_EVENT, *where, *said)


def _numbers(reading: Reading) -> set[tuple[str, str]]:
    """(key in Redis, shipment id) of each parcel with a tracking number."""
    numbers = (
        (shipment_id, scan.content.get("tracking_number")) for shipment_id, scan in reading.parcels.items()
    )
    return {(f"tracking:{number}", shipment_id) for shipment_id, number in numbers if number}


def _apart(expected: Sequence[bytes], got: Sequence[bytes]) -> int:
    """How many rows only one side has, or has once more."""
    if len(expected) == len(got) == 1:
        return expected[0] != got[0]
    return len(set(expected) ^ set(got)) + abs(len(got) - len(set(got)))


def summary_of(reading: Reading) -> dict[str, Any]:
    """What `order:{order_id}` must hold."""
    row = dict(zip(columns("orders_order"), reading.rows()["orders_order"][0], strict=True))
    names = ("user_id", "status", "currency", "total_amount", "created_at", "updated_at", "version")
    suborders = []
    for suborder in reading.suborders:
        last = reading.last_suborder(suborder)
        suborders.append(
            {name: last[name] for name in ("suborder_id", "seller_id", "status", "total_amount")}
        )
    shipments = []
    for shipment_id, scan in reading.parcels.items():
        content, due = scan.content, scan.content.get("estimated_delivery")
        optional = {name: content.get(name) for name in ("carrier", "tracking_number")}
        shipments.append(
            {
                "shipment_id": shipment_id,
                "seller_id": content["seller_id"],
                "status": content["status"],
                **optional,
                "estimated_delivery": None if due is None else due.isoformat(),
            }
        )
    return {
        "order_id": reading.order_id,
        **{name: row[name] for name in names},
        "suborders": suborders,
        "shipments": shipments,
    }


def _milliseconds(reading: Reading) -> int:
    # Not by timestamp(), whose float rounds the last microseconds of a far year up.
    return (min(fact.time for fact in reading.accepted) - _EPOCH) // timedelta(milliseconds=1)


def _version(value: bytes) -> int:
    try:
        return version_of(value)
    except ValueError:
        return -1


def _fact_behind(held: Held, table: str, row_id: str) -> RecordId | None:
    """The record whose fact makes this row what it is."""
    reading = held.reading
    if table == "orders_refund":
        refund_ids = [reading.made_id(f"refund:{decision.n}") for decision in reading.decisions]
        return dict(zip(refund_ids, held.decided, strict=True)).get(row_id)
    facts = {"orders_shipment": reading.parcels, "orders_return": reading.returns}
    if table == "orders_payment":
        facts[table] = payments_of(reading)
    fact = facts.get(table, {}).get(row_id, reading.created)
    return None if fact is None else held.record_of(fact)


# -- records -------------------------------------------------------------------------------------------------


def coordinates(headers: Iterable[Sequence[Any]], prefix: str) -> RecordId | None:
    """Return the record that the headers PREFIX_topic, PREFIX_partition and PREFIX_offset name."""
    texts = {
        name: (value or b"").decode("utf-8", "replace") for name, value in headers if name.startswith(prefix)
    }
    topic, partition, offset = (
        texts.get(f"{prefix}_{what}", "") for what in ("topic", "partition", "offset")
    )
    numbers = all(_NUMBER.fullmatch(text) for text in (partition, offset))
    return RecordId(topic, int(partition), int(offset)) if numbers else None


class _Unreadable(tuple[()]):
    """Headers of a record that no client can parse: none.
    Its value is the record's bytes, if they were to be had.
    """


def _as_read(item: Item) -> Item:
    """A FACT with its headers as they were read: on disk, all names are bytes where one may be no UTF-8,
    and None stands for _Unreadable.
    """
    headers = item[-1]
    if headers is None:
        return [*item[:-1], _Unreadable()]
    if headers and type(headers[0][0]) is bytes:
        return [*item[:-1], [(name.decode("utf-8", "surrogateescape"), text) for name, text in headers]]
    return item


def origin_of_copy(headers: Iterable[Sequence[Any]]) -> RecordId | None:
    """Where a record of orders.rekeyed came from; None if it doesn't say: then the
    pipeline didn't write it.
    """
    record_id = coordinates(headers, "rekeyed")
    return (
        None
        if record_id is None or record_id.topic not in INPUT or record_id.topic == CHECKOUT
        else record_id
    )


def own_headers(headers: Iterable[Sequence[Any]]) -> list[tuple[str, bytes | None]]:
    """Headers as they came, without those that the pipeline adds, and without any of such
    names that an upstream sent.
    """
    return [(name, value) for name, value in headers if not name.startswith(("dlq_", "rekeyed_"))]


def digest_of(value: bytes | None, headers: Iterable[Sequence[Any]]) -> bytes:
    """16 bytes that tell a value and headers (the record's own) from any others."""
    digest = hashlib.blake2b(digest_size=16)
    own = own_headers(headers)
    for part in (
        value,
        *(part for name, text in own for part in (name.encode("utf-8", "surrogateescape"), text)),
    ):
        digest.update(b"-" if part is None else b"%d:" % len(part))
        digest.update(part or b"")
    return digest.digest()


def _size(item: Item) -> int:
    """Bytes of a record as it came, with 10 more for each header, whatever an upstream calls its headers."""
    key, _, number, _, _, _, value, headers = item
    if LANE[number] == REKEYED:
        headers = [(name, text) for name, text in headers if name not in _REKEYED_FROM]
    texts = sum(
        len(name.encode("utf-8", "surrogateescape")) + len(text or b"") + 10 for name, text in headers
    )
    return len(key) + len(value or b"") + texts


def is_raw(letter: Letter, item: Item) -> bool:
    """Whether a dead letter holds a record as it came.
    Of a re-keyed copy the key is what its header says, if it has one.
    """
    key, _, number, _, _, _, value, headers = item
    if letter.digest != digest_of(value, headers):
        return False
    if LANE[number] == REKEYED:
        came = [text for name, text in headers if name == "rekeyed_key"]  # the last is ours
        return not came or letter.key == came[-1]
    return bool((letter.key or b"") == key)
