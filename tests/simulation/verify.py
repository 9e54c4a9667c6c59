"""What must hold when everything has come to rest, by the independent reference (audit.reference):
the contract, not the fold.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from typing import Any
from uuid import UUID

from aiokafka.structs import TopicPartition
from msgspec.structs import astuple

from audit.attention import TABLE as ATTENTION
from audit.reference import Decision, Fact, Order, Reading, RecordId, Refusal
from audit.stores import Row, comparable
from contracts import outgoing
from contracts.topics import CHECKOUT, CREATED, DECISIONS, DERIVED, DLQ, INPUT, REKEYED
from domain.anomalies import anomalies
from domain.deadlines import next_due
from sinks.schema import TABLES
from streams.partitioner import partition_of
from streams.transport.table import DUE, LATEST, due_entry
from tables import codec
from tests.simulation.accounts import coordinates, natural_keys
from tests.simulation.attention import left_alone, waits_for_everything, wrong_events, wrong_rows
from tests.simulation.kafka import Record
from tests.simulation.world import World

FOLLOW = tuple(table for table in TABLES if table != ATTENTION)
"""The tables of which nothing stays that was only seen."""
SAME = {
    spec.type: spec.id_field
    for spec in outgoing.DERIVED
    if spec.id_field is not None and spec.varies in ("never", "decided")
}
"""Derived events whose set and content don't depend on the order of arrival, and
the field that is their id.
"""


MOVED = ("in_transit", "delivered", "returned")


def _again(data: dict[str, Any]) -> str:
    """What the name of a refund.request has behind its refund's from the second attempt on."""
    return f":{data['attempt']}" if data.get("attempt", 1) > 1 else ""


class Verifier:
    """Looks at one world at rest."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.orders: dict[str, Order] = {}
        self.readings: dict[str, list[Reading]] = {}
        self.refused: dict[RecordId, set[str]] = {}
        """Records that are refused whatever the order -> the codes that will do."""
        self.seen: dict[RecordId, RecordId] = {}

    def problems(self) -> Iterator[str]:
        """Everything that is wrong, in words."""
        self._fold()
        yield from self._committed()
        yield from self._checkouts()
        yield from self._states()
        yield from self._rows()
        yield from self._attention()
        yield from self._derived()
        yield from self._refunds()
        yield from self._deadlines()
        yield from self._left_alone()
        yield from self._letters()
        yield from self._cache()
        yield from self._notices()

    # -- the log ---------------------------------------------------------------------------------------------

    def _log(self, topic: str, partition: int) -> Sequence[Record]:
        log = self.world.broker.logs.get(TopicPartition(topic, partition))
        return () if log is None else log.records

    def _partitions(self) -> range:
        return range(self.world.plan.partitions)

    def _fold(self) -> None:
        parsed = self.world.accounts.parsed
        origins: set[RecordId] = set()
        for number in self._partitions():
            for record in self._log(REKEYED, number):
                origin = coordinates(record.headers, "rekeyed")
                assert origin is not None
                origins.add(origin)
                record_id = RecordId(REKEYED, number, record.offset)
                self._add_fact(parsed[record_id], record_id, origin)
        for topic in INPUT:
            for number in self._partitions():
                for record in self._log(topic, number):
                    record_id = RecordId(topic, number, record.offset)
                    if topic == CHECKOUT and isinstance(parsed[record_id], Fact):
                        continue  # it counts by the order.created that was made of it
                    if record_id not in origins:
                        self._add_fact(parsed[record_id], record_id, None)
        for number in self._partitions():
            for record in self._log(DECISIONS, number):
                record_id = RecordId(DECISIONS, number, record.offset)
                if record_id in parsed:  # a deadline that passed
                    self._add_fact(parsed[record_id], record_id, None)
                    continue
                decision = self.world.accounts.decisions[record_id]
                assert isinstance(decision, Decision), f"refund.decided: {decision}"
                if decision.order_id in self.orders:
                    self.orders[decision.order_id].decide(decision)
        for order_id in self.world.hidden:
            self.orders.pop(order_id, None)
        self.readings = {order_id: order.readings() for order_id, order in self.orders.items()}

    def _add_fact(self, fact: Fact | Refusal, record_id: RecordId, origin: RecordId | None) -> None:
        if isinstance(fact, Refusal):
            self.refused[origin or record_id] = {fact.code}
            return
        order = self.orders.setdefault(fact.order_id, Order(fact.order_id))
        order.add(fact, origin or record_id, rekeyed=origin is not None)

    # -- offsets ---------------------------------------------------------------------------------------------

    def _committed(self) -> Iterator[str]:
        for topic in self.world.lane_topics:
            for number in self._partitions():
                tp = TopicPartition(topic, number)
                end = self.world.broker.logs[tp].end
                if self.world.group.offsets.get(tp, 0) != end:
                    yield f"{topic}/{number}: committed {self.world.group.offsets.get(tp, 0)} of {end}"
                yield from self.world.accounts.unaccounted(
                    self.world.broker.logs[tp].records, 0, end, self.world.hidden
                )

    def _checkouts(self) -> Iterator[str]:
        """What was made of a checkout says what the checkout said, but for its type."""
        accounts = self.world.accounts
        checkouts = [arrival.parsed for arrival in accounts.arrivals.values() if arrival.topic == CHECKOUT]
        sent = {fact.order_id: fact for fact in checkouts if isinstance(fact, Fact)}
        for order_id in accounts.placed - sent.keys():
            yield f"order {order_id}: made of no checkout"
        for record_id, fact in accounts.parsed.items():
            if record_id.topic == CREATED and record_id not in accounts.arrivals and isinstance(fact, Fact):
                checkout = sent.get(fact.order_id)
                if checkout is not None and fact.content != checkout.content:
                    yield f"order {fact.order_id}: its order.created at {record_id} differs from its checkout"

    # -- states ----------------------------------------------------------------------------------------------

    def _states(self) -> Iterator[str]:
        world = self.world
        by_order: dict[str, bytes] = {}
        for number in self._partitions():
            newest: dict[bytes, bytes] = {}
            for record in self._log(world.settings.changelog_topic, number):
                assert record.key is not None
                assert record.value is not None
                if record.key not in newest or codec.version_of(record.value) >= codec.version_of(
                    newest[record.key]
                ):
                    newest[record.key] = record.value
            newest = {
                key: value for key, value in newest.items() if str(UUID(bytes=key)) not in self.world.hidden
            }
            for key, value in newest.items():
                by_order[str(UUID(bytes=key))] = value
            yield from self._local(number, newest)
        for order_id, readings in self.readings.items():
            raw = by_order.pop(order_id, None)
            if raw is None:
                yield f"order {order_id}: no state"
                continue
            order = codec.decode(raw)
            keys = set(self.orders[order_id].candidates)
            if natural_keys(order) != keys:
                lost, extra = keys - natural_keys(order), natural_keys(order) - keys
                yield (
                    f"order {order_id}: its state lacks {sorted(lost, key=repr)} and has"
                    f" {sorted(extra, key=repr)} too many"
                )
            if order.version != readings[0].version:
                yield f"order {order_id}: state of version {order.version}, {readings[0].version} facts"
            if len(order.decisions) != len(self.orders[order_id].decisions):
                yield (
                    f"order {order_id}: {len(order.decisions)} decisions in its state,"
                    f" {len(self.orders[order_id].decisions)} in the log"
                )
            elif readings[0].created is not None and codec.status_of(raw) not in {
                each.status() for each in readings
            }:
                yield f"order {order_id}: status {codec.status_of(raw)}, expected {readings[0].status()}"
        for order_id in by_order:
            yield f"order {order_id}: a state, but no facts"

    def _local(self, number: int, newest: Mapping[bytes, bytes]) -> Iterator[str]:
        """The owner's local store holds what the changelog holds."""
        for worker in self.world.running.values():
            if worker.app is not None and any(
                lane.partition == number for lane in worker.app.consumer.lanes.values()
            ):
                content = worker.files.partitions.get(number, {})
                index = {key for key in content if key.startswith(DUE) and key != LATEST}
                own = {
                    key: value
                    for key, value in content.items()
                    if key not in (worker.app.store.offset_key, LATEST) and key not in index
                }
                visible = {
                    key: value for key, value in own.items() if str(UUID(bytes=key)) not in self.world.hidden
                }
                wanted = {due_entry(due, key) for key, raw in newest.items() if (due := codec.due_of(raw))}
                if {
                    entry for entry in index if str(UUID(bytes=entry[-16:])) not in self.world.hidden
                } != wanted:
                    yield f"partition {number}: the index of due times is not that of the states"
                for key in sorted(visible.keys() | newest.keys()):
                    if visible.get(key) != newest.get(key):
                        versions = f"{_version(visible.get(key))} and {_version(newest.get(key))}"
                        yield (
                            f"partition {number}: local store and changelog differ in {key.hex()}: {versions}"
                        )

    # -- rows ------------------------------------------------------------------------------------------------

    def _rows(self) -> Iterator[str]:
        by_order: dict[str, dict[str, set[Row]]] = defaultdict(lambda: {table: set() for table in FOLLOW})
        for table in FOLLOW:
            for row in map(astuple, self.world.tables.rows[table].values()):
                by_order[str(row[0] if table == "orders_order" else row[1])][table].add(
                    comparable(table, row)
                )
        for order_id, readings in self.readings.items():
            there = by_order.pop(order_id, None) or {table: set() for table in FOLLOW}
            wanted = [
                {table: {comparable(table, row) for row in reading.rows()[table]} for table in FOLLOW}
                for reading in readings
            ]
            if len(readings) > 1:
                # The log doesn't tell which of two contents came first, so each worker that folded
                # them may have taken another.
                for table in FOLLOW:
                    strange = there[table].difference(*(each[table] for each in wanted))
                    counts = [len({row[0] for row in each[table]}) for each in wanted]
                    if strange or len({row[0] for row in there[table]}) not in counts:
                        yield f"order {order_id}: {table} has {_brief(strange)}, in no reading of the log"
            elif there not in wanted:
                for table in FOLLOW:
                    if there[table] != wanted[0][table]:
                        lacking, extra = wanted[0][table] - there[table], there[table] - wanted[0][table]
                        yield f"order {order_id}: {table} lacks {_brief(lacking)} and has {_brief(extra)}"
        for order_id in by_order.keys() - self.world.hidden:
            yield f"order {order_id}: rows, but no facts"

    def _attention(self) -> Iterator[str]:
        """Rows of orders_attention, and what order.attention told."""
        hidden = self.world.hidden
        rows: list[Any] = list(self.world.tables.rows[ATTENTION].values())
        yield from wrong_rows(self.readings, [row for row in rows if str(row.order_id) not in hidden])
        events = [
            (dict(record.headers)["ce_id"].decode(), _json(record.value))
            for number in self._partitions()
            for record in self._log("order.attention", number)
        ]
        shown = [each for each in events if each[1]["order_id"] not in hidden]
        yield from wrong_events(self.readings, shown, self.world.told_late)

    # -- derived events --------------------------------------------------------------------------------------

    def _derived(self) -> Iterator[str]:
        seen: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
        names: set[tuple[str, str]]
        for topic in DERIVED:
            for number in self._partitions():
                for record in self._log(topic, number):
                    headers = dict(record.headers)
                    data = _json(record.value)
                    order_id = data["order_id"]
                    if (
                        headers["ce_type"] != topic.encode()
                        or partition_of(order_id.encode(), len(self._partitions())) != number
                    ):
                        yield (
                            f"{topic}/{number}@{record.offset}: type {headers['ce_type']!r}, order {order_id}"
                        )
                    if topic in SAME:
                        name: tuple[str, str] = (topic, data[SAME[topic]] + _again(data))
                        if data not in seen[name]:
                            seen[name].append(data)
                        owners[order_id].add(name)
                        if order_id in self.readings:
                            event_id = self.readings[order_id][0].event_id(topic, name[1])
                            if headers["ce_id"].decode() != event_id:
                                yield f"{topic} {name[1]}: ce_id {headers['ce_id']!r}, expected {event_id}"
        for order_id, readings in self.readings.items():
            least = [reading.derived() for reading in readings]
            # What left before its event turned out to be history stays.
            expected = [reading.possible() for reading in readings]
            names = owners.pop(order_id, set())
            if not any(set(low) <= names <= set(high) for low, high in zip(least, expected, strict=True)):
                certain, possible = set.intersection(*map(set, least)), set.union(*map(set, expected))
                lacking, extra = certain - names, names - possible
                if lacking or extra:
                    yield (
                        f"order {order_id}: derived events lacking {sorted(lacking)}, too many"
                        f" {sorted(extra)}"
                    )
            for one in sorted(names):
                contents = [each[one] for each in expected if one in each]
                # Where the log doesn't tell which of two contents came first, a replay
                # may have taken the other.
                if len(seen[one]) > len(readings):
                    yield f"{one[0]} {one[1]}: several contents: {seen[one]}"
                for data in seen[one]:
                    if contents and not any(_holds(content, data) for content in contents):
                        yield f"{one[0]} {one[1]}: {data}, expected {contents[0]}"
        for order_id in owners.keys() - self.world.hidden:
            names = owners[order_id]
            yield f"order {order_id}: {sorted(names)}, but no facts"

    def _refunds(self) -> Iterator[str]:
        for order_id, readings in self.readings.items():
            reading = readings[0]
            if reading.created is None:
                if reading.decisions:
                    yield f"order {order_id}: decisions before order.created"
                continue
            amounts = [decision.amount for decision in reading.decisions]
            captured = max(each.captured for each in readings)
            elsewhere = min(each.known.get("refunded_amount", 0) for each in readings)
            if any(amount <= 0 for amount in amounts) or (amounts and sum(amounts) + elsewhere > captured):
                yield f"order {order_id}: refunds {amounts} and {elsewhere} before, captured {captured}"
            for what in ("units", "shipping"):
                paid = [each for decision in reading.decisions for each in getattr(decision, what)]
                if len(paid) != len(set(paid)):
                    yield f"order {order_id}: {what} paid for twice: {sorted(paid)}"
            for decision, amount in zip(reading.decisions, amounts, strict=True):
                if not any(each.may_pay(decision) for each in readings):
                    costs = {each.pays_for(decision) for each in readings}
                    yield f"order {order_id}: decision {decision.n} of {amount} for what costs {costs}"
                wrong = [each.misallocated(decision.n) for each in readings]
                if all(wrong):
                    yield f"order {order_id}: decision {decision.n} goes back to {wrong[0]}"
            if len(readings) == 1:
                yield from self._uncovered(order_id, reading)
            for owed in reading.owed():
                if owed.covered and all(owed in each.owed() for each in readings):
                    yield (
                        f"order {order_id}: {owed.amount} is owed for {owed.cause} {owed.cause_id} and was"
                        " not decided"
                    )

    def _uncovered(self, order_id: str, reading: Reading) -> Iterator[str]:
        """The anomaly is there exactly while something is owed that captured money doesn't cover: also
        of a refund that was begun.
        """
        key = UUID(order_id).bytes
        codes = {
            text.partition(":")[0] for text in anomalies(codec.decode(self.world.accounts.states[key]), key)
        }
        expected = [owed for owed in reading.owed() if not owed.covered]
        if ("refund_uncovered" in codes) != bool(expected):
            yield f"order {order_id}: anomalies {sorted(codes)}, not covered: {expected}"

    # -- deadlines -------------------------------------------------------------------------------------------

    def _deadlines(self) -> Iterator[str]:
        """None is due and left, none is lost, none has passed too early, and none although its
        answer lay in its lane before.
        """
        now = self.world.milliseconds()
        for key, raw in self.world.accounts.states.items():
            if str(UUID(bytes=key)) in self.world.hidden:
                continue
            due, wanted = (
                codec.due_of(raw),
                next_due(codec.decode(raw), key, self.world.settings.deadline_policy),
            )
            if 0 < due <= now:
                yield f"order {UUID(bytes=key)}: due {now - due} ms ago"
            if due != wanted:
                yield f"order {UUID(bytes=key)}: due at {due}, but what it waits for is due at {wanted}"
        if self.world.clock_went_back:
            return  # the brokers' times don't tell any more what came first
        arrived = self._arrived()
        for number in self._partitions():
            for record in self._log(DECISIONS, number):
                fact = self.world.accounts.parsed.get(RecordId(DECISIONS, number, record.offset))
                if not isinstance(fact, Fact) or fact.order_id not in self.readings:
                    continue
                at = round(fact.time.timestamp() * 1000)
                if record.timestamp < at:
                    yield (
                        f"order {fact.order_id}: {fact.key} was written {at - record.timestamp} ms before its"
                        " time"
                    )
                readings = self.readings[fact.order_id]
                if len(readings) > 1:
                    continue  # the log doesn't tell which content counts
                before = [
                    each
                    for each, when in arrived[fact.order_id]
                    if when < at and each.key not in readings[0].refused
                ]
                what = fact.content.get("deadline")
                if what in ("ship", "unshipped", "deliver") and not all(
                    _moves_all(each, what)
                    for each, _ in arrived[fact.order_id]
                    if each.type == "shipment.updated"
                ):
                    continue  # of a parcel's scans, another one may say where its units are, or which it has
                created = readings[0].created
                live_from = None if created is None else created.content.get("live_from")
                for each in before:
                    if each.type == "refund.failed" and live_from is not None and each.time < live_from:
                        continue  # of history, so it is no answer of ours
                    answers = _answers(each, fact) or _is_failure(each, fact, readings[0])
                    if answers and len(self.orders[fact.order_id].candidates[each.key]) == 1:
                        yield f"order {fact.order_id}: {fact.key}, but {each.key} came before {fact.time}"

    def _left_alone(self) -> Iterator[str]:
        """With every deadline above 0, no order is without an end and without somebody who is told."""
        settings = self.world.settings
        if self.world.clock_went_back or not waits_for_everything(settings):
            return
        hidden = self.world.hidden
        waiting = {
            str(UUID(bytes=key)) for key, raw in self.world.accounts.states.items() if codec.due_of(raw)
        }
        rows: list[Any] = list(self.world.tables.rows[ATTENTION].values())
        yield from left_alone(self.readings, rows, self._arrived(), settings, waiting | hidden)

    def _arrived(self) -> Mapping[str, list[tuple[Fact, int]]]:
        """Order -> facts, and when they came to its own lane, ms by the brokers' clock."""
        arrived: dict[str, list[tuple[Fact, int]]] = defaultdict(list)
        for topic in (*INPUT, REKEYED):
            for number in self._partitions():
                for record in self._log(topic, number):
                    fact = self.world.accounts.parsed[RecordId(topic, number, record.offset)]
                    if not isinstance(fact, Fact):
                        continue
                    key = fact.order_id.encode()
                    if record.key == key and partition_of(key, len(self._partitions())) == number:
                        arrived[fact.order_id].append((fact, record.timestamp))
        return arrived

    # -- dead letters ----------------------------------------------------------------------------------------

    def _letters(self) -> Iterator[str]:
        letters: dict[RecordId, set[str]] = defaultdict(set)
        for number in self._partitions():
            for record in self._log(DLQ, number):
                record_id = coordinates(record.headers, "dlq")
                headers = dict(record.headers)
                if record_id is None or not {"dlq_reason", "dlq_detail", "dlq_time"} <= headers.keys():
                    yield f"{DLQ}/{number}@{record.offset}: headers {sorted(headers)}"
                    continue
                code = headers["dlq_reason"].decode()
                letters[record_id].add(code)
                if not code.startswith("order_") or b"it waited for its order" not in headers["dlq_detail"]:
                    yield from self._raw(record_id, record)
        allowed = dict(self.refused)
        for record_id, codes in self.refused.items():
            if not codes & letters.get(record_id, set()):
                yield f"{record_id} ({', '.join(sorted(codes))}) is no dead letter"
        for order_id, order in self.orders.items():
            yield from self._refused_keys(order_id, order, letters, allowed)
        for record_id in letters.keys() - allowed.keys():
            fact = self.world.accounts.parsed.get(record_id)
            if isinstance(fact, Fact) and fact.order_id in self.world.hidden:
                continue
            yield f"{record_id} counts, but is a dead letter: {sorted(letters[record_id])}"

    def _raw(self, record_id: RecordId, letter: Record) -> Iterator[str]:
        arrival = self.world.accounts.arrivals.get(record_id)
        if arrival is None:
            yield f"dead letter of {record_id}: no such record"
            return
        headers = tuple(header for header in letter.headers if not header[0].startswith("dlq_"))
        if (letter.key, letter.value, headers) != (arrival.key, arrival.value, tuple(arrival.headers)):
            yield f"dead letter of {record_id}: not as it came"

    def _refused_keys(
        self,
        order_id: str,
        order: Order,
        letters: Mapping[RecordId, set[str]],
        allowed: dict[RecordId, set[str]],
    ) -> Iterator[str]:
        for key, candidates in order.candidates.items():
            codes = {
                reading.refused[key].code for reading in self.readings[order_id] if key in reading.refused
            }
            refused_by_all = all(key in reading.refused for reading in self.readings[order_id])
            winners = order.winners(key)
            losers = [each for each in candidates if len(winners) > 1 or each is not winners[0]]
            if losers:
                codes.add("key_conflict")
            may = candidates if any(key in reading.refused for reading in self.readings[order_id]) else losers
            for candidate in may:
                allowed.update(dict.fromkeys(candidate.records, codes))
            # Of each content that lost for certain, and of a key that is refused for the order's
            # sake, one letter at least.
            for candidate in losers if len(winners) == 1 else ():
                if not any(letters.get(record_id, set()) & codes for record_id in candidate.records):
                    yield (
                        f"order {order_id}: {key} with another content at {candidate.records[0]} is no dead"
                        " letter"
                    )
            if refused_by_all and not any(
                letters.get(record_id, set()) & codes for each in candidates for record_id in each.records
            ):
                yield f"order {order_id}: refused {key} ({', '.join(sorted(codes))}) is no dead letter"

    # -- cache -----------------------------------------------------------------------------------------------

    def _cache(self) -> Iterator[str]:
        values = self.world.keys.values
        for order_id, readings in self.readings.items():
            summary = values.get(f"order:{order_id}".encode())
            if summary is None:
                continue
            assert isinstance(summary, bytes)
            if readings[0].created is None:
                yield f"order {order_id}: a summary before order.created"
                continue
            cached = _json(summary)
            expected = []
            for reading in readings:
                row = reading.rows()["orders_order"][0]
                names = (
                    "order_id",
                    "user_id",
                    "status",
                    "currency",
                    "total_amount",
                    "created_at",
                    "updated_at",
                    "version",
                )
                expected.append(dict(zip(names, (row[0], row[1], *row[3:6], *row[10:]), strict=True)))
            if not any(_holds(each, cached) for each in expected):
                yield f"order {order_id}: cached {cached}, expected {expected[0]}"
            for shipment_id, scan in readings[0].parcels.items():
                number = scan.content.get("tracking_number")
                entry = values.get(f"tracking:{number}".encode()) if number else None
                if isinstance(entry, bytes):
                    own = [
                        each["status"]
                        for each in json.loads(entry)
                        if (each["order_id"], each["shipment_id"]) == (order_id, shipment_id)
                    ]
                    if len(readings) == 1 and not own:
                        yield f"tracking:{number}: nothing of order {order_id}, parcel {shipment_id}"
                    if any(status != scan.content["status"] for status in own):
                        yield f"tracking:{number}: {shipment_id} {own}, expected {scan.content['status']}"

    # -- notices ---------------------------------------------------------------------------------------------

    def _notices(self) -> Iterator[str]:
        """The last notice tells how it ended, unless one of a dead worker landed late."""
        last: dict[str, str] = {}
        for number in self._partitions():
            for record in self._log("order.status_changed", number):
                data = _json(record.value)
                last[data["order_id"]] = data["to"]
        for order_id, readings in self.readings.items():
            if order_id in self.world.told_late or readings[0].created is None:
                continue
            if last.get(order_id, "pending") not in {reading.status() for reading in readings}:
                yield f"order {order_id}: last notice {last.get(order_id)}, status {readings[0].status()}"


def _moves_all(scan: Fact, what: str) -> bool:
    """Whether a scan says of whatever its parcel has that it is there: in transit, or delivered."""
    there = ("delivered", "returned") if what == "deliver" else MOVED
    return scan.content.get("items") is None and scan.content["status"] in there


def _answers(fact: Fact, deadline: Fact) -> bool:
    """Whether it is what the deadline waited for, by itself.
    (A payment may be one of several, and is left out.)
    """
    what, content = deadline.content["deadline"], fact.content
    if what in ("refund", "refund_retry"):
        return fact.type == "refund.completed" and content["refund_id"] == deadline.content["refund_id"]
    if what == "return":
        return (
            fact.type == "order.returned"
            and content["return_id"] == deadline.content["return_id"]
            and content["status"] != "requested"
        )
    if content.get("seller_id") != deadline.content.get("seller_id"):
        return False
    if what == "stock":
        return fact.type in ("stock.reserved", "stock.rejected", "stock.released", "shipment.updated")
    if what == "label":
        return fact.type == "shipment.updated" and content["status"] != "pending"
    if what in ("ship", "unshipped", "deliver"):
        return fact.type == "shipment.updated" and _moves_all(fact, what)
    return (
        what == "release"
        and fact.type in ("stock.rejected", "stock.released")
        and content.get("items") is None
    )


def _is_failure(fact: Fact, deadline: Fact, reading: Reading) -> bool:
    """Whether it says that the request that a deadline waited for failed: the latest that had been asked for;
    of the first one, whatever attempt it names.
    """
    if deadline.content["deadline"] != "refund" or fact.type != "refund.failed":
        return False
    refund_id = deadline.content["refund_id"]
    before = reading.retries.get(refund_id, {})
    asked = [attempt for attempt, retry in before.items() if retry.time < deadline.time]
    attempt = fact.content.get("attempt", 1)
    return bool(fact.content["refund_id"] == refund_id and (not asked or attempt == max(asked)))


@lru_cache(maxsize=4096)
def _loads(text: bytes) -> Any:
    return json.loads(text)


def _json(text: bytes | None) -> Any:
    return _loads(text or b"null")


def _version(raw: bytes | None) -> str:
    return "nothing" if raw is None else f"version {codec.version_of(raw)}"


def _brief(rows: set[Row]) -> str:
    return (
        "nothing"
        if not rows
        else "; ".join(str([str(value) for value in row]) for row in sorted(rows, key=repr))
    )


def _holds(expected: Any, actual: Any) -> bool:
    """Everything that is expected is there; more may be.
    Amounts compare as numbers, times as times, lists of items by their ids.
    """
    if isinstance(expected, dict):
        return isinstance(actual, dict) and all(
            name in actual and _same(name, value, actual[name]) for name, value in expected.items()
        )
    return bool(expected == actual)


def _same(name: str, expected: Any, actual: Any) -> bool:
    if name == "items":
        by_id = {item["item_id"]: item for item in actual}
        return len(actual) == len(expected) and all(
            _holds(item, by_id.get(item["item_id"])) for item in expected
        )
    if name == "amount" or name.endswith("_amount"):
        return Decimal(expected) == Decimal(actual)
    if name.endswith("_at"):
        return datetime.fromisoformat(expected) == datetime.fromisoformat(actual)
    return bool(expected == actual)
