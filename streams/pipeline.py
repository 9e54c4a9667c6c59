"""The seven steps of a batch, in their order: effects before state, state before offset.

    1 decode   2 fold   3 publish   4 rows   5 state   6 cache   7 (returning) ack

A crash anywhere replays the batch from the older state, and the same effects leave under the same ids. A temporary failure makes the lane
call `handle` again with the same batch (streams.delivery): the work already done is kept on the batch, so a step that succeeded isn't
repeated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from time import perf_counter
from typing import Any, Final, Protocol

from domain import effects, events, ids, rows
from domain.deadlines import next_due, pending
from domain.errors import ORIGIN_UNKNOWN, RECORD_TOO_LARGE, UNREADABLE, Refused
from domain.events import Event
from domain.fold import fold
from domain.limits import RECORD_BYTES, record_size
from domain.order import DEADLINES, Created, Order, Origin, ReturnStage, Scan
from domain.sums import Sums
from domain.topics import CHECKOUT, DECISIONS, DLQ, INPUT, INTERNAL, REKEYED
from settings import Settings
from sinks.base import Sink
from sinks.redis import RedisSink
from sinks.rows import CacheEntry, RowBatch
from streams import metrics
from streams.cache import CacheKeeper
from streams.partitioner import partition_of
from streams.transport import LaneBatch, Moved, OutRecord
from tables import codec
from wire import raw_bytes, unreadable

_REKEYED_FROM: Final = ("rekeyed_topic", "rekeyed_partition", "rekeyed_offset", "rekeyed_key")
HELD_BYTES: Final = 16 << 20
"""Of states as they are stored, and of effects, each, that a batch holds before it is shortened. Objects take some times as much."""
_STATES_AT_ONCE: Final = 64
_REKEYED_TOPICS: Final = {topic.encode(): topic for topic in INPUT if topic != CHECKOUT}
_MOST_DIGITS: Final = 18
_REFUSED, _REKEY, _APPLIED, _DUPLICATE = "refused", "rekeyed", "applied", "duplicate"


class Record(Protocol):
    """What is used of a consumed record (aiokafka.ConsumerRecord). `timestamp_type` 1: `timestamp` is the broker's append time, ms."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]
    timestamp: int
    timestamp_type: int


class Touched:
    """One order's state while a batch is folded, and which of its rows have to be written."""

    __slots__ = ("changed", "created", "order", "repeated", "returns", "seen", "shipments", "sums")

    def __init__(self, order: Order) -> None:
        self.order = order
        self.sums = Sums(order)
        self.changed = False
        self.repeated = False
        """An event came again: perhaps since a worker died between writing the state and refreshing the cache."""
        self.created = False
        self.shipments: set[bytes] | None = None
        self.returns: set[bytes] | None = None
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
        if type(fact) is Scan:
            if self.shipments is None:
                self.shipments = set()
            self.shipments.add(fact.shipment_id)
        elif type(fact) is ReturnStage:
            if self.returns is None:
                self.returns = set()
            self.returns.add(fact.return_id)
        elif type(fact) is Created:
            self.created = True


class Work:
    """What a batch came to: everything that the steps 3 to 6 write. `done` counts the steps that succeeded, `size` the bytes of `out`, but
    for those that are made when they are sent."""

    def __init__(self) -> None:
        self.done = 0
        self.size = 0
        self.out: dict[str, list[OutRecord]] = {}
        self.rows = RowBatch()
        self.states: dict[bytes, bytes] = {}
        self.moved: list[Moved] = []
        self.cache: list[CacheEntry] = []
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.letters: Counter[str] = Counter()
        """Dead letters, by reason."""

    def publish(self, topic: str, record: OutRecord) -> None:
        if isinstance(record.value, bytes):
            self.size += len(record.value)
        known = self.out.get(topic)
        if known is None:
            known = self.out[topic] = []
        known.append(record)


class Pipeline:
    """Handles the batches of every lane of this worker.

    `table` is the Faust table of the orders' states; `postgres` must be written for a batch to go on, `cache` never raises.
    `opened` is to be called when a lane opens.
    """

    def __init__(self, settings: Settings, table: Any, postgres: Sink[RowBatch], cache: RedisSink) -> None:
        self._table = table
        self._postgres = postgres
        self.cache = CacheKeeper(settings, table, cache, self._entry_of)
        self.opened = self.cache.opened
        self._partitions = settings.partitions
        self._ttl = (settings.cache_ttl_moving, settings.cache_ttl_settled)
        self._patience = settings.patience
        self._at_once = settings.batch_records
        self.held_bytes = HELD_BYTES
        self._steps: tuple[tuple[str, Callable[[LaneBatch, Work], Awaitable[None]]], ...] = (
            ("publish", self._publish),
            ("postgres", self._write_rows),
            ("state", self._write_states),
            ("redis", self._refresh_cache),
        )

    async def handle(self, batch: LaneBatch) -> None:
        """Take in one batch. Returning acknowledges it. Raises what the brokers and Postgres raise: streams.delivery decides what then."""
        work: Work | None = batch.work
        if work is None:
            work = batch.work = self.fold(batch) if batch.moment is None else self._let_pass(batch, batch.moment)
        for name, step in self._steps[work.done :]:
            started = perf_counter()
            await step(batch, work)
            work.done += 1
            _observe(name, started)
        for (topic, outcome), count in work.outcomes.items():
            metrics.RECORDS.labels(topic, outcome).inc(count)
        for code, count in work.letters.items():
            metrics.DEAD_LETTERS.labels(code).inc(count)
        metrics.LAST_BATCH.set_to_current_time()

    # -- steps 1 and 2: pure but for reading the local store ------------------------------------------------------

    def fold(self, batch: LaneBatch) -> Work:
        """Steps 1 and 2: what the batch comes to. Writes nothing. Blocks for the local disk at most. Raises Stale.

        A small record can make megabytes of commands, and name an order of megabytes. So a batch whose states or effects are more than
        HELD_BYTES is shortened to the records that come to so much, one of them at least.
        """
        work, stop = self._fold(batch)
        while stop is not None:
            # What was refused or passed on behind it would be so again: the records before it are folded by themselves.
            batch.shorten(_place(batch, stop))
            work, stop = self._fold(batch)
        metrics.BATCH_RECORDS.observe(len(batch))
        return work

    def _fold(self, batch: LaneBatch) -> tuple[Work, Record | None]:
        """What the batch comes to, up to the record before the one that is returned."""
        started = perf_counter()
        work = Work()
        accepted = self._decode(batch, work)
        started = _observe("decode", started)
        touched = self._load(batch, accepted)
        started = _observe("load", started)
        most = work.size + self.held_bytes
        for record, event, key in accepted:
            order = touched.get(event.order_id)
            if order is None or work.size > most:
                return work, record
            self._take(work, record, event, key, order, batch.partition)
        started = _observe("fold", started)
        self.render(work, touched)
        _observe("render", started)
        return work, None

    def _decode(self, batch: LaneBatch, work: Work) -> list[tuple[Record, Event, bytes]]:
        accepted: list[tuple[Record, Event, bytes]] = []
        for part in batch.slices:
            topic = part.topic
            internal, rekeyed = topic in INTERNAL, topic == REKEYED
            for record in part.records:
                try:
                    if record.value is None and (why := unreadable(record)) is not None:
                        raise Refused(UNREADABLE, why)
                    of = _rekeyed_from(record).topic if rekeyed else topic
                    event = events.decode(of, record.headers, record.value, record.timestamp if record.timestamp_type else 0)
                except Refused as refusal:
                    self._refuse(work, record, refusal.code, refusal.detail)
                    continue
                key = events.order_key(event)
                if topic == CHECKOUT:
                    self._place(work, event, key)
                elif internal or record.key == key:
                    accepted.append((record, event, key))
                else:
                    self._rekey(work, record, event)
        return accepted

    def _load(self, batch: LaneBatch, accepted: list[tuple[Record, Event, bytes]]) -> dict[bytes, Touched]:
        """The orders of the first records, as far as their states are no more than HELD_BYTES; of one record at least."""
        # In the order of their records, so that a batch is the same whatever the process's hash seed.
        wanted = list({event.order_id: None for _, event, _ in accepted})
        touched: dict[bytes, Touched] = {}
        size = 0
        for start in range(0, len(wanted), _STATES_AT_ONCE):
            some = wanted[start : start + _STATES_AT_ONCE]
            for order_id, raw in zip(some, batch.get_states(self._table, some), strict=True):
                if size > self.held_bytes:
                    return touched
                size += len(raw or b"")
                touched[order_id] = Touched(Order() if raw is None else codec.decode(raw))
        return touched

    def _take(self, work: Work, record: Record, event: Event, key: bytes, touched: Touched, lane: int) -> None:
        order = touched.order
        if order.version == 0 and partition_of(key, self._partitions) != lane:
            # The right key, but an upstream's partitioner isn't Kafka's default one: another lane has, or will have, this order.
            self._rekey(work, record, event)
            return
        folded = fold(order, event, None if order.created is not None else _origin(record), touched.sums)
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
                if type(effect) is effects.Derived:
                    headers = effects.attributes(effect, event.order_id, shared)
                    # One record can come to gigabytes: an order for which thousands of parcels have waited.
                    value = effects.encode_data(effect) if work.size <= most else partial(effects.encode_data, effect)
                    work.publish(effect.topic, OutRecord(key, value, headers))
                else:
                    self._refuse_late(work, event.order_id, effect)  # type: ignore[arg-type]

    def render(self, work: Work, touched: Mapping[bytes, Touched]) -> None:
        """Adds what is to be written of these orders, by raw id: states, rows, cache entries. Pure."""
        batch = work.rows
        for raw_id, each in touched.items():
            if not each.changed and not each.repeated:
                continue
            order = each.order
            if each.changed:
                self._await(work, raw_id, order, next_due(order, raw_id, self._patience))
                work.states[raw_id] = codec.encode(order)
            if order.created is None:
                continue
            order_id = ids.text(raw_id)
            parcels = None if each.created else each.seen if each.shipments is None else each.seen | each.shipments
            row, brief = rows.order_row_and_summary(order_id, raw_id, order, parcels)
            if each.changed:
                batch.orders.append(row)
            if each.created:
                batch.items += rows.item_rows(order_id, order)
                batch.shipments += rows.shipment_rows(order_id, order)
                batch.returns += rows.return_rows(order_id, order)
            else:
                if each.shipments:
                    batch.shipments += rows.shipment_rows(order_id, order, each.shipments)
                if each.returns:
                    batch.returns += rows.return_rows(order_id, order, each.returns)
            work.cache.append(self._entry(order_id, order, brief))

    def _entry(self, order_id: str, order: Order, brief: rows.Summary) -> CacheEntry:
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

    def _entry_of(self, raw_id: bytes, state: bytes) -> CacheEntry | None:
        """All that the cache shows of an order; None if its order.created isn't known yet."""
        order = codec.decode(state)
        if order.created is None:
            return None
        order_id = ids.text(raw_id)
        return self._entry(order_id, order, rows.order_row_and_summary(order_id, raw_id, order, None)[1])

    # -- deadlines -------------------------------------------------------------------------------------------------

    def _let_pass(self, batch: LaneBatch, moment: int) -> Work:
        """No record, but time: the deadlines that passed at `moment` become records of orders.decisions, which count once they are folded.

        Until then nothing more is waited for on their account: their orders' due times are those of the other deadlines. Dying in between
        writes such a record again, and the second one changes nothing.
        """
        work = Work()
        for at, order_id, raw in batch.due_states(self._table, moment, self._at_once):
            order = None if raw is None else codec.decode(raw)
            if order is None or order.due != at:  # never of what is written here, but an index may be older than its state
                work.moved.append(Moved(order_id, at, 0))
                continue
            waits = pending(order, order_id, self._patience)
            key = ids.text(order_id).encode()
            for due in waits:
                if due.at <= moment:
                    value, headers = effects.deadline_passed(due, order_id)
                    work.publish(DECISIONS, OutRecord(key, value, headers))
                    metrics.DEADLINES.labels(DEADLINES[due.what]).inc()
            self._await(work, order_id, order, min((due.at for due in waits if due.at > moment), default=0))
            work.states[order_id] = codec.encode(order)
        return work

    @staticmethod
    def _await(work: Work, order_id: bytes, order: Order, due: int) -> None:
        if due != order.due:
            work.moved.append(Moved(order_id, order.due, due))
            order.due = due

    # -- intake, refused and re-keyed records --------------------------------------------------------------------------

    def _place(self, work: Work, event: Event, key: bytes) -> None:
        """A checkout becomes its order's order.created, in that order's partition."""
        placed = effects.order_placed(event)
        value, headers = effects.encode(placed, event.order_id, effects.headers_of(event))
        work.publish(placed.topic, OutRecord(key, value, headers, partition_of(key, self._partitions)))
        work.outcomes[CHECKOUT, _APPLIED] += 1

    def _rekey(self, work: Work, record: Record, event: Event) -> None:
        if record.topic in INTERNAL:
            # It waited here while the topics were given more partitions (streams.growth): another lane has its order since.
            key = events.order_key(event)
            work.publish(record.topic, OutRecord(key, record.value, list(record.headers), partition_of(key, self._partitions)))
            work.outcomes[record.topic, _REKEY] += 1
            return
        if record_size(record.key, record.value, record.headers) > RECORD_BYTES:
            self._refuse(work, record, RECORD_TOO_LARGE, f"above {RECORD_BYTES:,} bytes uncompressed, and not under its order's key")
            return
        headers = [
            *(header for header in record.headers if header[0] not in _REKEYED_FROM),  # an upstream's own would be taken for ours
            ("rekeyed_topic", record.topic.encode()),
            ("rekeyed_partition", b"%d" % record.partition),
            ("rekeyed_offset", b"%d" % record.offset),
        ]
        if record.key is not None:
            headers.append(("rekeyed_key", record.key))
        key = events.order_key(event)
        work.publish(REKEYED, OutRecord(key, record.value, headers, partition_of(key, self._partitions)))
        work.outcomes[record.topic, _REKEY] += 1

    def _refuse(self, work: Work, record: Record, code: str, detail: str) -> None:
        origin, key, value, headers = _origin(record), record.key, raw_value(record), list(record.headers)
        if origin.topic != record.topic:
            key = dict(headers).get("rekeyed_key")
            headers = [header for header in headers if header[0] not in _REKEYED_FROM]
        if record_size(key, value, headers) > RECORD_BYTES:
            value = None
            if record_size(key, None, headers) > RECORD_BYTES:
                key, headers = None, []
            detail += f"; above {RECORD_BYTES:,} bytes uncompressed: the raw record is at the coordinates"
        work.publish(DLQ, OutRecord(key, value, headers + dlq_headers(origin, code, detail)))
        work.outcomes[record.topic, _REFUSED] += 1
        work.letters[code] += 1

    def _refuse_late(self, work: Work, order_id: bytes, late: effects.LateRefusal) -> None:
        detail = f"{late.detail}; it waited for its order: the value is the normalised fact, the raw record is at the coordinates"
        key = ids.text(order_id).encode()
        work.publish(DLQ, OutRecord(key, effects.normalised(late, order_id), dlq_headers(late.origin, late.code, detail)))
        work.letters[late.code] += 1

    # -- steps 3 to 6 -------------------------------------------------------------------------------------------

    async def _publish(self, batch: LaneBatch, work: Work) -> None:
        if work.out:
            await batch.publish(work.out)
            for topic, records in work.out.items():
                metrics.DERIVED.labels(topic).inc(len(records))

    async def _write_rows(self, batch: LaneBatch, work: Work) -> None:
        if work.rows.orders:
            batch.check()
            await self._postgres.write(work.rows)

    async def _write_states(self, batch: LaneBatch, work: Work) -> None:
        if work.states or work.moved:
            await batch.write_table(self._table, work.states, work.moved)

    async def _refresh_cache(self, batch: LaneBatch, work: Work) -> None:
        if work.cache:
            await self.cache.write(batch, work.cache)


def _observe(step: str, started: float) -> float:
    now = perf_counter()
    metrics.STEP_SECONDS.labels(step).observe(now - started)
    return now


def _place(batch: LaneBatch, record: Record) -> int:
    """How many of a batch's records are before this one."""
    return next(at for at, each in enumerate(each for part in batch.slices for each in part.records) if each is record)


def _origin(record: Record) -> Origin:
    """Where the record first was: a re-keyed one tells by its headers. Its own place where these say nothing."""
    if record.topic == REKEYED:
        try:
            return _rekeyed_from(record)
        except Refused:
            pass
    return Origin(record.topic, record.partition, record.offset)


def _rekeyed_from(record: Record) -> Origin:
    """Where a record of orders.rekeyed first was. Raises Refused when its headers don't say so: then none of us wrote it."""
    came = dict(record.headers)
    topic, *places = (came.get(name) or b"" for name in _REKEYED_FROM[:3])
    name = _REKEYED_TOPICS.get(topic)
    if name is None or not all(place.isdigit() and len(place) <= _MOST_DIGITS for place in places):
        raise Refused(ORIGIN_UNKNOWN, f"headers {', '.join(_REKEYED_FROM[:3])}: missing or malformed")
    return Origin(name, int(places[0]), int(places[1]))


def raw_value(record: Record) -> bytes | None:
    """A record's value as it came; of one that can't be parsed its bytes, if they are to be had. Pure."""
    return raw_bytes(record) if record.value is None else record.value


def dlq_headers(origin: Origin, code: str, detail: str) -> list[tuple[str, bytes]]:
    """What a dead letter says beside its record: where that was, why it was refused, and when."""
    return [
        ("dlq_topic", origin.topic.encode()),
        ("dlq_partition", b"%d" % origin.partition),
        ("dlq_offset", b"%d" % origin.offset),
        ("dlq_reason", code.encode()),
        ("dlq_detail", detail.encode("utf-8", "backslashreplace")),
        ("dlq_time", datetime.now(UTC).isoformat().encode()),
    ]
