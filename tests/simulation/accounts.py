"""What became of each input record, by what lies in the logs alone: in a state of the changelog, in the
dead letters, or sent on.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

from aiokafka.structs import TopicPartition

from audit.reference import Decision, Fact, NaturalKey, RecordId, Refusal, parse, parse_decision
from contracts import ids
from contracts.topics import CHECKOUT, CREATED, DECISIONS, DLQ, INPUT, REKEYED
from domain.order import Deadline, Lapse, Order, type_of
from streams.partitioner import partition_of
from tables import codec
from tests.simulation.histories import Arrival
from tests.simulation.kafka import Headers, Record, Sent

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def coordinates(headers: Headers, prefix: str) -> RecordId | None:
    """The record_id that headers PREFIX_topic, PREFIX_partition and PREFIX_offset name."""
    texts = dict(headers)
    try:
        return RecordId(
            texts[f"{prefix}_topic"].decode(),
            int(texts[f"{prefix}_partition"]),
            int(texts[f"{prefix}_offset"]),
        )
    except (KeyError, ValueError):
        return None


def natural_keys(order: Order) -> set[NaturalKey]:
    """A state's facts by their natural keys, as the reference writes them."""
    text = ids.text

    def items(pairs: Sequence[tuple[bytes, int]] | None) -> tuple[tuple[str, int], ...] | None:
        return None if pairs is None else tuple((text(item_id), quantity) for item_id, quantity in pairs)

    keys: set[NaturalKey] = set()
    if order.created is not None:
        keys.add(("created",))
    keys.update(("order.paid", text(fact.payment_id)) for fact in order.payments)
    keys.update(("payment.failed", text(fact.payment_id)) for fact in order.failures)
    keys.update((type_of(fact), text(fact.seller_id), items(fact.items)) for fact in order.stock)
    keys.update(
        ("cancelled", None if fact.seller_id is None else text(fact.seller_id))
        for fact in order.cancellations
    )
    for scan in order.scans:
        keys.add(("scan", text(scan.shipment_id), scan.rank.text, _EPOCH + timedelta(microseconds=scan.time)))
    keys.update(("return", text(fact.return_id), fact.status.text) for fact in order.returns)
    keys.update((type_of(fact), text(fact.refund_id), fact.attempt) for fact in order.refunds)
    keys.update((type_of(fact), text(fact.grant_id)) for fact in order.grants)
    passed: list[Deadline | Lapse] = [*order.deadlines, *order.lapses]
    for fact in passed:
        due = fact.due if isinstance(fact, Lapse) else None
        keys.add(
            (
                type_of(fact),
                fact.what.text,
                None if fact.subject is None else text(fact.subject),
                fact.attempt if due is None else _EPOCH + timedelta(microseconds=due),
            )
        )
    keys.update(
        ("promise", text(fact.seller_id), _EPOCH + timedelta(microseconds=fact.time))
        for fact in order.promises
    )
    return keys


class Accounts:
    """Follows everything that is appended.
    An order's state is the one of the highest version in the changelog, the later one of equals.
    """

    def __init__(self, changelog: str, partitions: int) -> None:
        self._changelog = changelog
        self._partitions = partitions
        self.parsed: dict[RecordId, Fact | Refusal] = {}
        """Input and re-keyed records; what re-keyed ones say is judged by the topic that they come from."""
        self.arrivals: dict[RecordId, Arrival] = {}
        self.decisions: dict[RecordId, Decision | Refusal] = {}
        self.letters: set[RecordId] = set()
        self.sent_on: set[RecordId] = set()
        self.placed: set[str] = set()
        """Orders whose order.created was made of a checkout."""
        self.passed = 0
        """Records that say that a deadline has passed."""
        self.states: dict[bytes, bytes] = {}
        self._keys: dict[bytes, set[NaturalKey]] = {}

    def arrived(self, tp: TopicPartition, offset: int, arrival: Arrival) -> None:
        """Upstream appended a record."""
        record_id = RecordId(tp.topic, tp.partition, offset)
        self.parsed[record_id] = arrival.parsed
        self.arrivals[record_id] = arrival

    def written(self, tp: TopicPartition, offset: int, records: Sequence[Sent]) -> None:
        """A worker appended records."""
        topic = tp.topic
        if topic == self._changelog:
            for record in records:
                assert record.key is not None
                assert record.value is not None
                old = self.states.get(record.key)
                if old is None or codec.version_of(record.value) >= codec.version_of(old):
                    self.states[record.key] = record.value
        elif topic == DLQ:
            self.letters.update(
                record_id
                for record in records
                if (record_id := coordinates(record.headers, "dlq")) is not None
            )
        elif topic == REKEYED:
            for at, record in enumerate(records, offset):
                origin = coordinates(record.headers, "rekeyed")
                if origin is not None:
                    self.sent_on.add(origin)
                    headers = [header for header in record.headers if not header[0].startswith("rekeyed_")]
                    self.parsed[RecordId(tp.topic, tp.partition, at)] = parse(
                        origin.topic, record.key, record.value, headers
                    )
        elif topic == CREATED:
            for at, record in enumerate(records, offset):
                created = self.parsed[RecordId(tp.topic, tp.partition, at)] = parse(
                    topic, record.key, record.value, record.headers
                )
                assert isinstance(created, Fact), f"an order.created of our own is refused: {created}"
                self.placed.add(created.order_id)
        elif topic == DECISIONS:
            for at, record in enumerate(records, offset):
                decision = parse_decision(record.value, record.headers)
                if isinstance(decision, Fact):
                    self.passed += 1
                    self.parsed[RecordId(tp.topic, tp.partition, at)] = decision
                else:
                    self.decisions[RecordId(tp.topic, tp.partition, at)] = decision

    def unaccounted(
        self, records: Iterable[Record], start: int, end: int, hidden: Container[str]
    ) -> Iterator[str]:
        """What is wrong with the records of [start, end) of one log, were they finished now.
        `hidden`: orders that are left out.
        """
        for record in records:
            if start <= record.offset < end:
                problem = self._unaccounted(record, hidden)
                if problem:
                    yield problem

    def _unaccounted(self, record: Record, hidden: Container[str]) -> str:
        record_id = RecordId(record.topic, record.partition, record.offset)
        if record_id in self.decisions:
            decision = self.decisions[record_id]
            if (
                isinstance(decision, Decision)
                and decision.order_id not in hidden
                and decision.n >= len(self._order(decision.order_id).decisions)
            ):
                return f"no state holds decision {decision.n} of {decision.order_id} ({record_id})"
            return ""
        fact = self.parsed[record_id]
        if isinstance(fact, Refusal):
            origin = coordinates(record.headers, "rekeyed") or record_id
            return "" if origin in self.letters else f"{record_id} ({fact.code}) is no dead letter"
        if record.topic == CHECKOUT:
            return "" if fact.order_id in self.placed else f"no order.created was made of {record_id}"
        key = fact.order_id.encode()
        home = partition_of(key, self._partitions)
        if record.topic in INPUT and (record.key != key or home != record.partition):
            return "" if record_id in self.sent_on else f"{record_id} was not sent on to its lane"
        if fact.order_id in hidden or fact.key in self._state_keys(fact.order_id):
            return ""
        return f"no state holds {fact.type} of {fact.order_id} ({record_id})"

    def _order(self, order_id: str) -> Order:
        raw = self.states.get(bytes.fromhex(order_id.replace("-", "")))
        return Order() if raw is None else codec.decode(raw)

    def _state_keys(self, order_id: str) -> set[NaturalKey]:
        raw = self.states.get(bytes.fromhex(order_id.replace("-", "")))
        if raw is None:
            return set()
        keys = self._keys.get(raw)
        if keys is None:
            keys = self._keys[raw] = natural_keys(codec.decode(raw))
        return keys

    # -- for people ------------------------------------------------------------------------------------------

    def line_of(self, arrival: Arrival) -> str:
        """One line on what arrived."""
        if isinstance(arrival.parsed, Refusal):
            return f"refused: {arrival.parsed.code} {arrival.parsed.detail}"
        return f"{arrival.parsed.order_id[-4:]} {arrival.parsed.key}"

    def read(self, tp: TopicPartition, records: Sequence[Sent]) -> Iterator[str]:
        """Lines on what was written."""
        for record in records:
            if tp.topic == self._changelog:
                assert record.key is not None
                order = codec.decode(record.value or b"")
                yield (
                    f"   {record.key[-2:].hex()}: version {order.version}, status {order.status},"
                    f" {len(order.decisions)} decisions"
                )
            elif tp.topic == DLQ:
                yield (
                    f"   {coordinates(record.headers, 'dlq')}:"
                    f" {dict(record.headers).get('dlq_reason', b'').decode()}"
                )
            else:
                headers = dict(record.headers)
                name = headers.get("ce_id", b"").decode()[:8]
                yield f"   {(record.key or b'')[-4:].decode()}: {name} {(record.value or b'')[:110].decode()}"
