"""The fold of a batch: records are decoded and folded into their orders, and the orders projected onto rows
and cache entries. Pure.

    decode ─► load the orders' states ─► fold each event into its order (domain.fold)
           ─► project: states, rows, cache entries

A batch is folded in slices of some records: what a slice needs stays in the processor's cache, and between
two of them the event loop serves others.

Workers write the output (streams.pipeline); operators replay a history with it (operations).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Final, Protocol

from contracts import ids
from contracts.errors import ORDER_TOO_LARGE, RECORD_TOO_LARGE, UNREADABLE, Refused
from contracts.outgoing import OrderAttention
from contracts.topics import CHECKOUT, DECISIONS, DLQ, INTERNAL, REKEYED
from domain import effects, events, parts, rows
from domain.attention import attention_rows
from domain.deadlines import next_due, pending
from domain.enums import DeadlineKind
from domain.fold import TOO_LARGE_TO_BEGIN, fold
from domain.limits import LIMITS, Limits, is_too_large, record_size
from domain.order import (
    Created,
    Lapse,
    Order,
    Payment,
    PaymentFailure,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
)
from domain.shapes import Derived, Event, LateRefusal, OrderRow, Summary
from domain.totals import RunningTotals
from settings import Settings
from sinks.rows import CacheEntry, NotedAttention, RowBatch
from streams.dead_letters import REKEYED_FROM, Record, dead_letter, letter_headers, record_id_of, rekeyed_from
from streams.partitioner import partition_of
from streams.transport.records import Moved, OutRecord, Slice
from tables import codec
from wire import unreadable

States = Callable[[Sequence[bytes]], list[bytes | None]]
"""Raw order ids -> their states, None where there is none."""
Timed = Callable[[str, float], object]
"""Is told how many seconds a step took."""

HELD_BYTES: Final = 16 << 20
"""Of states as they are stored, and of effects, each, that a batch holds before it is shortened.
As Python objects they take several times as much memory.
"""
SLICE_RECORDS: Final = 128
"""Records that are folded in one go: some milliseconds."""
_ABOVE: Final = (
    "the order's state would be above ORDERS_MESSAGE_BYTES, which was lowered since: raise it again, and"
    " redrive this (docs/decisions/0040)"
)
_STEPS: Final = ("decode", "load", "fold", "render")
_REFUSED, _REKEY, _APPLIED, _DUPLICATE = "refused", "rekeyed", "applied", "duplicate"


class OrderInBatch:
    """One order's state while a batch is folded, and which of its rows have to be written."""

    __slots__ = (
        "changed",
        "created",
        "order",
        "payments",
        "refunds",
        "repeated",
        "returns",
        "seen",
        "shipments",
        "suborders",
        "totals",
    )

    def __init__(self, order: Order, limits: Limits = LIMITS) -> None:
        self.order = order
        self.totals = RunningTotals(order, limits)
        self.changed = False
        self.repeated = False
        """An event came again: perhaps since a worker died between writing the state
        and refreshing the cache.
        """
        self.created = False
        self.shipments: set[bytes] | None = None
        self.returns: set[bytes] | None = None
        self.suborders = False
        """What changed it counts in the order's version or times, and so in those of its suborders."""
        self.payments: set[bytes] | None = None
        self.refunds: set[bytes] | None = None
        self.seen: set[bytes] = set()
        """Parcels of the scans that came again."""

    def repeat(self, event: Event) -> None:
        """`event` changed nothing."""
        self.repeated = True
        if type(event.fact) is Scan:
            self.seen.add(event.fact.shipment_id)

    def mark(self, event: Event) -> None:
        """`event` changed the order."""
        self.changed = True
        fact = event.fact
        if type(fact) is RefundDecision:
            self._mark_refund(ids.uuid5(event.order_id, f"refund:{fact.n}"))
            return
        self.suborders = True
        if type(fact) is Scan:
            if self.shipments is None:
                self.shipments = set()
            self.shipments.add(fact.shipment_id)
        elif type(fact) is ReturnStage:
            if self.returns is None:
                self.returns = set()
            self.returns.add(fact.return_id)
        elif type(fact) is Payment or type(fact) is PaymentFailure:
            if self.payments is None:
                self.payments = set()
            self.payments.add(fact.payment_id)
        elif type(fact) is RefundReply:
            self._mark_refund(fact.refund_id)
        elif type(fact) is Lapse and fact.what is DeadlineKind.REFUND_RETRY:
            self._mark_refund(fact.subject)
        elif type(fact) is Created:
            self.created = True

    def _mark_refund(self, refund_id: bytes) -> None:
        if self.refunds is None:
            self.refunds = set()
        self.refunds.add(refund_id)


class BatchOutput:
    """What a batch comes to: everything that the steps 3 to 6 write.
    `size`: the bytes of `out`, but for those that are made when they are sent; `loaded`: of the states that
    were read for it.
    """

    def __init__(self) -> None:
        self.size = 0
        self.loaded = 0
        self.out: dict[str, list[OutRecord]] = {}
        self.rows = RowBatch()
        self.states: dict[bytes, bytes] = {}
        self.moved: list[Moved] = []
        self.cache: list[CacheEntry] = []
        self.orders: dict[bytes, set[bytes] | None] = {}
        """Raw ids of the orders in `cache` -> parcels whose entries change; None: all of them."""
        self.again = False
        """More than one slice has changed an order."""
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.letters: Counter[str] = Counter()
        """Dead letters, by reason."""
        self.deadlines: Counter[str] = Counter()
        """Deadlines that passed."""
        self.attention: Counter[tuple[str, str]] = Counter()
        """(kind, raised or cleared)."""

    def add(self, part: BatchOutput) -> None:
        """Add the output of the batch's next slice."""
        self.size += part.size
        self.loaded += part.loaded
        for topic, records in part.out.items():
            if topic in self.out:
                self.out[topic] += records
            else:
                self.out[topic] = records
        self.rows.add(part.rows)
        self.states.update(part.states)
        self.moved += part.moved
        self.cache += part.cache
        self.again = self.again or not self.orders.keys().isdisjoint(part.orders)
        self.orders.update(part.orders)
        self.outcomes.update(part.outcomes)
        self.letters.update(part.letters)
        self.deadlines.update(part.deadlines)
        self.attention.update(part.attention)

    def drop_replaced(self) -> None:
        """Keep of each row and each cache entry the last one."""
        if self.again:
            self.rows = self.rows.last_of_each()
            self.cache = list({entry.order_id: entry for entry in self.cache}.values())

    def publish(self, topic: str, record: OutRecord) -> None:
        """Add a record to what leaves."""
        if isinstance(record.value, bytes):
            self.size += len(record.value)
        records = self.out.get(topic)
        if records is None:
            records = self.out[topic] = []
        records.append(record)


class Batch(Protocol):
    """Records of one lane."""

    partition: int

    @property
    def slices(self) -> Sequence[Slice]:
        """The records of each topic, in the order in which they are folded."""

    def shorten(self, count: int) -> None:
        """End the batch after so many of its records."""


class BatchFolder:
    """Folds batches, each of one lane."""

    def __init__(self, settings: Settings) -> None:
        self._partitions = settings.partitions
        self._ttl = (settings.cache_ttl_moving, settings.cache_ttl_settled)
        self._deadline_policy = settings.deadline_policy
        self._limits = settings.limits
        self.held_bytes = HELD_BYTES

    def fold(self, batch: Batch, states: States, timed: Timed = lambda step, seconds: None) -> BatchOutput:
        """Fold a batch, given the states. Writes nothing; blocks and raises as `states` does."""
        work = BatchOutput()
        for _ in self.slices(batch, states, work, timed):
            pass
        return work

    def slices(
        self, batch: Batch, states: States, work: BatchOutput, timed: Timed = lambda step, seconds: None
    ) -> Iterator[None]:
        """Fold a batch into `work` as fold() does, a slice at each step.

        A small record can cause megabytes of commands, and can name an order of megabytes. So a batch whose
        states or effects exceed HELD_BYTES is shortened to the records that stay below, at least one.
        """
        records = iter([(part.topic, record) for part in batch.slices for record in part.records])
        took: dict[str, float] = dict.fromkeys(_STEPS, 0.0)
        count = 0
        while some := list(islice(records, SLICE_RECORDS)):
            folded = self._fold_slice(work, some, batch.partition, states, took, frozenset())
            count += folded
            if folded < len(some):
                batch.shorten(count)
                break
            yield
        work.drop_replaced()
        for step, seconds in took.items():
            timed(step, seconds)

    def _fold_slice(
        self,
        work: BatchOutput,
        records: Sequence[tuple[str, Record]],
        lane: int,
        states: States,
        took: dict[str, float],
        full: frozenset[bytes],
    ) -> int:
        """Fold records, given with their topics, into `work`; return how many of them.
        `full`: orders whose state would exceed the limit; their events are refused.
        """
        part = BatchOutput()
        started = perf_counter()
        decoded = [self._decode(topic, record) for topic, record in records]
        loading = perf_counter()
        touched = self._load(work, part, states, records, decoded)
        folding = perf_counter()
        count = 0
        for (topic, record), event in zip(records, decoded, strict=True):
            if work.size + part.size > self.held_bytes or not self._take(
                part, topic, record, event, touched, full, lane
            ):
                break
            count += 1
        projecting = perf_counter()
        self.project(part, touched, work.orders)
        took["decode"] += loading - started
        took["load"] += folding - loading
        took["fold"] += projecting - folding
        took["render"] += perf_counter() - projecting
        most = self._limits.state
        if part.states and max(map(len, part.states.values())) > most:
            # From before the limits were lowered: what Kafka doesn't take would end every worker.
            above = [order_id for order_id, state in part.states.items() if len(state) > most]
            return self._fold_slice(work, records, lane, states, took, full.union(above))
        work.add(part)
        return count

    def _take(
        self,
        work: BatchOutput,
        topic: str,
        record: Record,
        event: Event | Refused,
        touched: Mapping[bytes, OrderInBatch],
        full: frozenset[bytes],
        lane: int,
    ) -> bool:
        """Take in one record. False, and nothing is done: its order was not loaded."""
        if isinstance(event, Refused):
            self._refuse(work, record, event.code, event.detail)
            return True
        key = events.order_key(event)
        if topic == CHECKOUT:
            self._place(work, record, event, key)
        elif topic not in INTERNAL and record.key != key:
            self._rekey(work, record, event)
        elif event.order_id in full:
            self._refuse(work, record, ORDER_TOO_LARGE, _ABOVE)
        else:
            order = touched.get(event.order_id)
            if order is None:
                return False
            self._fold_event(work, record, event, key, order, lane)
        return True

    @staticmethod
    def _decode(topic: str, record: Record) -> Event | Refused:
        try:
            if record.value is None and (why := unreadable(record)) is not None:
                raise Refused(UNREADABLE, why)
            of = rekeyed_from(record).topic if topic == REKEYED else topic
            return events.decode(
                of, record.headers, record.value, record.timestamp if record.timestamp_type else 0
            )
        except Refused as refusal:
            return refusal

    def _load(
        self,
        work: BatchOutput,
        part: BatchOutput,
        states: States,
        records: Sequence[tuple[str, Record]],
        decoded: Sequence[Event | Refused],
    ) -> dict[bytes, OrderInBatch]:
        """Load the orders that this slice's records name, until the batch's states exceed HELD_BYTES. The
        first order of a batch is always loaded.
        """
        first: dict[bytes, Record] = {}
        # In the order of their records, so that a batch is the same whatever the process's hash seed.
        for (_, record), event in zip(records, decoded, strict=True):
            if not isinstance(event, Refused) and event.order_id not in first:
                first[event.order_id] = record
        touched: dict[bytes, OrderInBatch] = {}
        for order_id, stored in zip(first, states(list(first)), strict=True):
            if work.loaded + part.loaded > self.held_bytes:
                break
            raw = work.states.get(order_id, stored)
            part.loaded += len(raw or b"")
            try:
                order = Order() if raw is None else codec.decode(raw)
            except codec.NewerFormat as newer:
                raise newer.of(ids.text(order_id), _place_of(first[order_id])) from None
            touched[order_id] = OrderInBatch(order, self._limits)
        return touched

    def _fold_event(
        self, work: BatchOutput, record: Record, event: Event, key: bytes, touched: OrderInBatch, lane: int
    ) -> None:
        order = touched.order
        if order.version == 0 and partition_of(key, self._partitions) != lane:
            # The right key, but an upstream's partitioner isn't Kafka's default one: another lane has,
            # or will have, this order.
            self._rekey(work, record, event)
            return
        folded = fold(
            order, event, None if order.created is not None else record_id_of(record), touched.totals
        )
        if folded.changed:
            touched.mark(event)
        else:
            touched.repeat(event)
        if folded.refused is not None:
            self._refuse(work, record, *folded.refused)
        else:
            work.outcomes[record.topic, _APPLIED if folded.changed else _DUPLICATE] += 1
        if folded.effects:
            shared = effects.headers_of(event)
            most = work.size + self.held_bytes
            for effect in folded.effects:
                if isinstance(effect, Derived):
                    headers = effects.attributes(effect, event.order_id, shared)
                    # One record can come to gigabytes: an order for which thousands of parcels have waited.
                    value = (
                        effects.encode_data(effect)
                        if work.size <= most
                        else partial(effects.encode_data, effect)
                    )
                    work.publish(effect.topic, OutRecord(key, value, headers))
                    if type(effect.made) is OrderAttention:
                        work.attention[effect.made.kind, effect.made.state] += 1
                else:
                    self._refuse_late(work, event.order_id, effect)

    def project(
        self,
        work: BatchOutput,
        touched: Mapping[bytes, OrderInBatch],
        earlier: Mapping[bytes, set[bytes] | None] | None = None,
    ) -> None:
        """Adds what is to be written of these orders, by raw id: states, rows, cache entries. Pure.

        `earlier`: BatchOutput.orders of the earlier slices of the batch.
        """
        batch = work.rows
        for raw_id, each in touched.items():
            if not each.changed and not each.repeated:
                continue
            order = each.order
            if each.changed:
                self._set_due(work, raw_id, order, next_due(order, raw_id, self._deadline_policy))
                work.states[raw_id] = codec.encode(order)
            if order.created is None:
                continue
            order_id = ids.text(raw_id)
            parcels = None if each.created else each.seen | each.shipments if each.shipments else each.seen
            if earlier is not None and raw_id in earlier:
                before = earlier[raw_id]
                parcels = None if parcels is None or before is None else parcels | before
            work.orders[raw_id] = parcels
            row, brief = rows.order_row_and_summary(order_id, raw_id, order, parcels, each.totals)
            if each.changed:
                batch.orders.append(row)
                _project_parts(batch, order_id, raw_id, each, row, brief)
            work.cache.append(self._entry(order_id, order, brief))

    def _entry(self, order_id: str, order: Order, brief: Summary) -> CacheEntry:
        moving, settled = self._ttl
        return CacheEntry(
            order_id,
            brief.user_id,
            brief.created_ms,
            order.version,
            settled if brief.settled else moving,
            brief.value,
            brief.tracking,
            brief.untracked,
        )

    def entry_of(self, raw_id: bytes, state: bytes) -> CacheEntry | None:
        """Return the cache entry of an order; None if its order.created isn't known yet, or its state is of a
        later format."""
        try:
            order = codec.decode(state)
        except codec.NewerFormat:
            return None
        if order.created is None:
            return None
        order_id = ids.text(raw_id)
        return self._entry(order_id, order, rows.order_row_and_summary(order_id, raw_id, order, None)[1])

    # -- deadlines -------------------------------------------------------------------------------------------

    def pass_deadlines(
        self, due_states: Iterable[tuple[int, bytes, bytes | None]], moment: int
    ) -> BatchOutput:
        """Make records of orders.decisions from the deadlines that passed at `moment`. They count once they
        are folded.

        Until then these deadlines no longer make an order due; its due time is that of its other deadlines.
        If the worker dies in between, such a record is written again, and the second one changes nothing.
        """
        work = BatchOutput()
        for at, order_id, raw in due_states:
            try:
                order = None if raw is None else codec.decode(raw)
            except codec.NewerFormat as newer:
                raise newer.of(ids.text(order_id), "a deadline that has passed") from None
            if raw is not None and len(raw) > self._limits.state:
                work.moved.append(Moved(order_id, at, 0))  # it can't be written
                continue
            if order is None or order.due != at:  # after a crash the index can be older than the state
                work.moved.append(Moved(order_id, at, 0))
                continue
            waits = pending(order, order_id, self._deadline_policy)
            key = ids.text(order_id).encode()
            for due in waits:
                if due.at <= moment:
                    value, headers = effects.deadline_passed(due, order_id)
                    work.publish(DECISIONS, OutRecord(key, value, headers))
                    work.deadlines[due.what.text] += 1
            self._set_due(work, order_id, order, min((due.at for due in waits if due.at > moment), default=0))
            work.states[order_id] = codec.encode(order)
        return work

    @staticmethod
    def _set_due(work: BatchOutput, order_id: bytes, order: Order, due: int) -> None:
        if due != order.due:
            work.moved.append(Moved(order_id, order.due, due))
            order.due = due

    # -- intake, refused and re-keyed records ----------------------------------------------------------------

    def _place(self, work: BatchOutput, record: Record, event: Event, key: bytes) -> None:
        """A checkout becomes its order's order.created, in that order's partition."""
        assert isinstance(event.fact, Created)
        if is_too_large(event.fact, self._limits):
            self._refuse(work, record, *TOO_LARGE_TO_BEGIN)
            return
        placed = effects.order_placed(event)
        value, headers = effects.encode(placed, event.order_id, effects.headers_of_placed(event))
        work.publish(placed.topic, OutRecord(key, value, headers, partition_of(key, self._partitions)))
        work.outcomes[CHECKOUT, _APPLIED] += 1

    def _rekey(self, work: BatchOutput, record: Record, event: Event) -> None:
        if record.topic in INTERNAL:
            # It waited here while the topics were given more partitions (operations.repartition): another
            # lane has its order since.
            key = events.order_key(event)
            work.publish(
                record.topic,
                OutRecord(key, record.value, list(record.headers), partition_of(key, self._partitions)),
            )
            work.outcomes[record.topic, _REKEY] += 1
            return
        if record_size(record.key, record.value, record.headers) > self._limits.record:
            self._refuse(
                work,
                record,
                RECORD_TOO_LARGE,
                f"above {self._limits.record:,} bytes uncompressed, and not under its order's key",
            )
            return
        headers = [
            *(
                header for header in record.headers if header[0] not in REKEYED_FROM
            ),  # an upstream's own would be taken for ours
            ("rekeyed_topic", record.topic.encode()),
            ("rekeyed_partition", b"%d" % record.partition),
            ("rekeyed_offset", b"%d" % record.offset),
        ]
        if record.key is not None:
            headers.append(("rekeyed_key", record.key))
        key = events.order_key(event)
        work.publish(REKEYED, OutRecord(key, record.value, headers, partition_of(key, self._partitions)))
        work.outcomes[record.topic, _REKEY] += 1

    def _refuse(self, work: BatchOutput, record: Record, code: str, detail: str) -> None:
        work.publish(DLQ, OutRecord(*dead_letter(record, code, detail, self._limits.record)))
        work.outcomes[record.topic, _REFUSED] += 1
        work.letters[code] += 1

    def _refuse_late(self, work: BatchOutput, order_id: bytes, late: LateRefusal) -> None:
        detail = (
            f"{late.detail}; it waited for its order: the value is the normalised fact, the raw record is at"
            " the coordinates"
        )
        key = ids.text(order_id).encode()
        work.publish(
            DLQ,
            OutRecord(
                key, effects.normalised(late, order_id), letter_headers(late.record, late.code, detail)
            ),
        )
        work.letters[late.code] += 1


def _project_parts(
    batch: RowBatch, order_id: str, raw_id: bytes, changed: OrderInBatch, row: OrderRow, brief: Summary
) -> None:
    """Add the rows of an order's parts that have changed, all of them once it is created."""
    order = changed.order
    kinds = ""
    if order.attention:
        # Their version and times are the order's.
        batch.attention += attention_rows(order_id, raw_id, order, *rows.fact_times(order))
        kinds = ",".join([each.kind for each in order.attention])
    version = row.version + len(order.decisions)
    batch.noted.append(NotedAttention(order_id, row.user_id, row.region, kinds, row.updated_at, version))
    if changed.suborders or changed.created:
        batch.suborders += parts.suborder_rows(raw_id, order, row, changed.totals, brief.suborders)
    if changed.created:
        batch.items += rows.item_rows(order_id, order)
        batch.shipments += rows.shipment_rows(order_id, order, None, changed.totals)
        batch.returns += rows.return_rows(order_id, order)
        batch.payments += parts.payment_rows(order_id, order)
        batch.refunds += parts.refund_rows(order_id, raw_id, order)
        return
    if changed.shipments:
        batch.shipments += rows.shipment_rows(order_id, order, changed.shipments, changed.totals)
    if changed.returns:
        batch.returns += rows.return_rows(order_id, order, changed.returns)
    if changed.payments:
        batch.payments += parts.payment_rows(order_id, order, changed.payments)
    if changed.refunds:
        batch.refunds += parts.refund_rows(order_id, raw_id, order, changed.refunds)


def _place_of(record: Record) -> str:
    return f"{record.topic}/{record.partition}@{record.offset}"
