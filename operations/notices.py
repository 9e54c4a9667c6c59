"""Find what readers of suborder.updated, order.status_changed and order.attention should have been told and
weren't; tell it.

The last notice about each suborder, each order and each kind of its attention is compared with what the
facts in the order's state (in the changelog) amount to. Where they differ, the order's records are folded
again from its lane's log: they say which event the notice follows. The pipeline's own functions make it, from
what readers were told last to what is so; its id follows from the order's version, as always.

Notices are sent while the group is locked: a worker could publish a later one in between, and the last one
counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import asdict, dataclass, field
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from aiokafka import TopicPartition

from contracts import ids
from contracts.errors import Refused
from contracts.topics import DERIVED, REKEYED
from domain import effects, events
from domain.anomalies import KINDS
from domain.attention import holding, since_of, version_of
from domain.effects import Writer, fresh_suborders
from domain.enums import OrderStatus
from domain.order import Attention, Created, Order
from domain.shapes import Derived, Event
from domain.status import OrderView, Suborder, view_of
from domain.taken_over import is_history, is_known_live
from errors import OrdersError
from operations.changelog import producer_of, read_changelog, same
from operations.grouplock import GroupLock
from operations.history import FOLD_RECORDS, Positions, at_hand, fold
from operations.replay import LocalStates, Replay
from operations.servers import require
from operations.shares import Progress
from operations.whatif import (
    ATTENTION,
    NOTICES,
    attention_subject,
    attention_told,
    parse_event,
    status_text,
)
from settings import Settings
from streams.dead_letters import Record, rekeyed_from
from streams.lag import total
from streams.lanes import lanes, sources
from streams.retraction import NOTICE_FIELDS
from streams.transport.records import OutRecord
from tables import codec

STATUS_CHANGED: Final = "order.status_changed"
ORDERS_A_PASS: Final = 10_000
"""Orders of one lane whose records are held in memory at once. Each pass reads the lane's log again."""
STATES_AT_ONCE: Final = 2_000
EXAMPLES_UNSOUND: Final = 10
_WRITTEN, _CHANGED, _TOLD, _ATTENTION = b"w", b"c", b"n", b"a"
_PENDING: Final = msgspec.json.encode({"status": OrderStatus.PENDING.text})
_STATUS: Final[Mapping[str, OrderStatus]] = {each.text: each for each in OrderStatus}

Say = Callable[[str], None]


class Unfinished(OrdersError):
    """Records wait: what they come to is still to be published."""

    remedy = "let workers finish (orders wait), stop them, and run this again"


class Notice(NamedTuple):
    """What readers should have been told of an order, a suborder or a kind of attention, and were told last;
    both as JSON.
    """

    topic: str
    seller_id: bytes
    """The suborder's; empty for the order."""
    subject: bytes
    """Raw id of the order or suborder; of attention as operations.whatif.attention_subject() makes it."""
    actual: bytes
    expected: bytes
    never: bool
    """Of what is still in the topic, nothing is about it."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A notice that readers should have had. `actual` and `expected`: a status, with the reason of a closed
    suborder, and ", other amounts" where only these or the units differ; of attention a kind and whether it
    holds, and ", in other words" where only the detail differs.
    """

    topic: str
    order_id: str
    seller_id: str
    actual: str
    expected: str


@dataclass
class NoticesResult:
    """The result of a comparison, and what was sent."""

    compared: int = 0
    """Orders that were compared."""
    orders: int = 0
    """Orders of which readers should have been told something."""
    missing: Counter[str] = field(default_factory=Counter)
    """Topic -> how many notices."""
    sent: int = 0
    examples: list[Missing] = field(default_factory=list)
    unsound: int = 0
    """Orders whose state isn't what their log says: of these nothing is sent."""
    unsound_ids: list[str] = field(default_factory=list)
    """Some of them."""
    inconclusive: int = 0
    """Orders that differed, and changed meanwhile."""
    lag: int = 0
    """Records that wait, and that no worker takes in."""

    def document(self) -> dict[str, Any]:
        """Return the JSON document."""
        return {
            "compared": self.compared,
            "orders": self.orders,
            "missing": self.missing,
            "sent": self.sent,
            "examples": [asdict(each) for each in self.examples],
            "unsound": self.unsound,
            "unsound_ids": self.unsound_ids,
            "inconclusive": self.inconclusive,
            "lag": self.lag,
        }

    def add(self, order_id: bytes, notices: Sequence[Notice], examples: int) -> None:
        """Count an order's notices, and keep them as examples while there are fewer than `examples`."""
        self.orders += 1
        for each in notices:
            self.missing[each.topic] += 1
            if len(self.examples) < examples:
                actual, expected = map(status_text, map(msgspec.json.decode, (each.actual, each.expected)))
                only = "in other words" if each.topic == ATTENTION else "other amounts"
                self.examples.append(
                    Missing(
                        each.topic,
                        ids.text(order_id),
                        ids.text(each.seller_id) if each.seller_id else "",
                        actual,
                        expected if expected != actual else f"{expected}, {only}",
                    )
                )


async def notices(
    settings: Settings, *, send: bool, examples: int, progress: Progress, say: Say
) -> NoticesResult:
    """Compare, and with `send` publish what is missing. `examples`: how many are kept.

    Without `send` workers may run. Needs space below $TMPDIR for a lane's states. Blocks as long as it takes
    to read the changelog, both topics, and the logs of lanes with differences. Raises LogIncomplete,
    NewerFormat, TopicsMissing, and what the servers raise; with `send` also GroupBusy and LockLost, and
    Unfinished before anything is sent. Run again, it goes on: what was sent isn't missing any more.
    """
    await require(settings)
    async with AsyncExitStack() as stack:
        lock = await stack.enter_async_context(GroupLock(settings)) if send else None
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="orders-notices-")))
        read = LocalStates(folder / "none")
        stack.callback(read.close)
        replay = await stack.enter_async_context(Replay(settings, read))
        lag = await replay.lag()
        if send and total(lag):
            raise Unfinished(f"{total(lag):,} records wait to be taken in")
        former = (await lanes(settings)).former
        result = NoticesResult()
        numbers = sorted({lane for _, lane in lag})
        for done, lane in enumerate(numbers):
            say(f"lane {lane}")
            progress(done, len(numbers))
            states = LocalStates(folder / str(lane))
            try:
                comparison = _Lane(settings, replay, lane, states, result)
                await comparison.read(former, locked=send)
                await comparison.compare(examples, lock)
            finally:
                states.close()
        progress(len(numbers), len(numbers))
        return result


class _Lane:
    """The comparison of one lane's orders. `states`: an empty place for its states and notices."""

    def __init__(
        self, settings: Settings, replay: Replay, lane: int, states: LocalStates, result: NoticesResult
    ) -> None:
        self._settings = settings
        self._replay = replay
        self._lane = lane
        self._states = states
        self._result = result
        self._since: dict[str, float] = {}
        """Topic -> time of the first record that it still has (ms); 0 if it has all."""
        self._ends: Positions = {}
        """What the group has taken in of the lane's logs."""

    async def read(self, former: Sequence[int], *, locked: bool) -> None:
        """Read states and notices. What workers change meanwhile is noted, if the group isn't `locked`."""
        reader, changelog = self._replay.reader, TopicPartition(self._settings.changelog_topic, self._lane)
        end = await read_changelog(reader, changelog, 0, self._states)
        await self._note_writes(changelog, 0, end, _WRITTEN)
        for topic in NOTICES:
            for number in sources(self._lane, former):
                partition = TopicPartition(topic, number)
                start = (await reader.beginnings([partition]))[partition]
                to = (await reader.ends([partition]))[partition]
                since = inf if start else 0.0
                async with aclosing(reader.read(partition, start, to)) as stretches:
                    async for records, _ in stretches:
                        if records and since == inf:
                            since = records[0].timestamp
                        self._states.write(_told(topic, records))
                self._since[topic] = max(since, self._since.get(topic, 0.0))
        lag = await self._replay.lag()
        if not locked:
            # A batch that has published its notices, and not yet written its states, was in the logs by now.
            lag, complete = await self._replay.reached(lag)
            self._result.lag = 0 if complete else total(lag)
            to = (await reader.ends([changelog]))[changelog]
            await self._note_writes(changelog, end, to, _CHANGED)
        self._ends = self._replay.ends(lag)[self._lane]

    async def _note_writes(self, partition: TopicPartition, start: int, end: int, prefix: bytes) -> None:
        async with aclosing(self._replay.reader.read(partition, start, end)) as stretches:
            async for records, _ in stretches:
                self._states.write(
                    {
                        prefix + record.key: record.timestamp.to_bytes(8, "big")
                        for record in records
                        if record.key is not None
                    }
                )

    # -- which notices are missing ---------------------------------------------------------------------------

    async def compare(self, examples: int, lock: GroupLock | None) -> None:
        """Compare all orders, and send what is missing if the group is locked."""
        suspects: dict[bytes, bytes] = {}
        for states in self._states.states(STATES_AT_ONCE):
            for order_id, raw in states.items():
                order = codec.decode(raw)
                if order.created is None:
                    continue
                self._result.compared += 1
                differing = list(self._differing(order_id, order, order.created))
                if not differing or all(self._is_old(each, order_id) for each in differing):
                    continue
                if self._states.get([_CHANGED + order_id])[0] is not None:
                    self._result.inconclusive += 1
                    continue
                suspects[order_id] = raw
            if len(suspects) >= ORDERS_A_PASS:
                await self._fold(suspects, examples, lock)
                suspects = {}
        if suspects:
            await self._fold(suspects, examples, lock)

    def _is_old(self, notice: Notice, order_id: bytes) -> bool:
        """Whether the state was written before the first record that its topic still has."""
        (written,) = self._states.get([_WRITTEN + order_id])
        return (
            notice.never
            and written is not None
            and int.from_bytes(written, "big") < self._since.get(notice.topic, 0)
        )

    def _differing(self, order_id: bytes, order: Order, created: Created) -> Iterator[Notice]:
        view = view_of(order)
        fresh = fresh_suborders(created)
        suborders = [_content(created, order_id, each) for each in view.suborders]
        subjects = [order_id, *(subject for subject, _ in suborders)]
        published, *of_suborders = self._states.get([_TOLD + subject for subject in subjects])
        expected = msgspec.json.encode({"status": view.status.text})
        if (published or _PENDING) != expected:
            yield Notice(STATUS_CHANGED, b"", order_id, published or _PENDING, expected, published is None)
        for (subject, content), actual, suborder, ordered in zip(
            suborders, of_suborders, view.suborders, fresh, strict=True
        ):
            before = actual or _content(created, order_id, ordered)[1]
            if before != content:
                yield Notice("suborder.updated", suborder.seller_id, subject, before, content, actual is None)
        yield from self._attention(order_id, order, view)

    def _attention(self, order_id: bytes, order: Order, view: OrderView) -> Iterator[Notice]:
        held = holding(order, order_id, view, None)
        (any_notice,) = self._states.get([_ATTENTION + order_id])
        kinds = [*held] if any_notice is None else [*dict.fromkeys([*held, *KINDS])]
        subjects = [attention_subject(order_id, kind) for kind in kinds]
        shown = self._states.get([_TOLD + subject for subject in subjects])
        for kind, subject, last in zip(kinds, subjects, shown, strict=True):
            actual, expected = last or attention_told(kind), attention_told(kind, held.get(kind))
            if actual != expected:
                yield Notice(ATTENTION, b"", subject, actual, expected, last is None)

    # -- making and sending them -----------------------------------------------------------------------------

    async def _fold(self, suspects: Mapping[bytes, bytes], examples: int, lock: GroupLock | None) -> None:
        """Find what caused the missing notices of these orders, by raw id with their states; count them, and
        send them if the group is locked.
        """
        await self._replay.reader.require({}, {self._lane: self._ends})
        keys = {ids.text(order_id).encode(): order_id for order_id in suspects}
        records: list[Record] = []
        async with aclosing(self._replay.reader.lane({}, self._ends)) as stretches:
            async for stretch in stretches:
                records += [record for record in stretch if record.key in keys]
        states: dict[bytes, bytes] = {}
        causes: dict[bytes, str] = {}
        for start in range(0, len(records), FOLD_RECORDS):
            chunk = records[start : start + FOLD_RECORDS]
            for output in fold(self._replay.folder, self._lane, chunk, at_hand(states)):
                states.update(output.states)
                causes |= _causes(output.out)
        happened = {
            (record.key, event.id): (event, record.timestamp)
            for record in reversed(records)  # of repetitions the first one
            if (event := _event_of(record)) is not None
        }
        out: dict[str, list[OutRecord]] = {topic: [] for topic in sorted(NOTICES, reverse=True)}
        for key, order_id in keys.items():
            order, folded = codec.decode(suspects[order_id]), states.get(order_id)
            if order.created is None or folded is None or not same(order, codec.decode(folded)):
                self._result.unsound += 1
                if len(self._result.unsound_ids) < EXAMPLES_UNSOUND:
                    self._result.unsound_ids.append(ids.text(order_id))
                continue
            missing = []
            for each in self._differing(order_id, order, order.created):
                cause = causes.get(each.subject) or causes[order_id]
                event, at = happened[key, cause]
                if not each.never or at >= self._since.get(each.topic, 0):
                    missing.append(each)
                    out[each.topic].append(_record(order_id, order, order.created, each, event))
            if missing:
                self._result.add(order_id, missing, examples)
        if lock is not None:
            producer = producer_of(self._settings, lock)
            try:
                await producer.send(out, self._lane)
            finally:
                await producer.close()
            self._result.sent += sum(map(len, out.values()))


def _told(topic: str, records: Iterable[Any]) -> dict[bytes, bytes | None]:
    """What these records tell last, by subject."""
    last: dict[bytes, bytes | None] = {}
    for record in records:
        event = parse_event(topic, record.key, record.value, record.headers)
        if event is not None and event.notice is not None:
            last[_TOLD + event.subject] = event.notice
            if topic == ATTENTION:
                last[_ATTENTION + event.order_id] = b""
    return last


def _content(created: Created, order_id: bytes, suborder: Suborder) -> tuple[bytes, bytes]:
    """(raw id of the suborder, what a notice tells of it), the latter as parse_event() does."""
    data = msgspec.json.decode(effects.encode_data(_updated(created, order_id, suborder, 0)))
    content = msgspec.json.encode({name: data[name] for name in NOTICE_FIELDS if name in data})
    return UUID(data["suborder_id"]).bytes, content


def _updated(
    created: Created, order_id: bytes, suborder: Suborder, version: int, history: bool = False
) -> Derived:
    writer = Writer(order_id, created.currency, history)
    writer.suborder_updated(created, suborder, version)
    return _only(writer)


def _only(writer: Writer) -> Derived:
    (effect,) = writer.effects
    assert isinstance(effect, Derived)
    return effect


def _causes(out: Mapping[str, Sequence[OutRecord]]) -> dict[bytes, str]:
    """The id of the event that caused the last notice of each subject; of an order without a notice, that of
    another derived event.
    """
    causes: dict[bytes, str] = {}
    for topic in sorted(DERIVED, key=lambda name: name in NOTICES):
        for record in out.get(topic, ()):
            cause = dict(record.headers).get("ce_causeid")
            if cause is None or record.key is None:
                continue
            if topic in NOTICES:
                event = parse_event(topic, record.key, record.content(), record.headers)
                assert event is not None
                causes[event.subject] = cause.decode()
            else:
                causes.setdefault(UUID(record.key.decode()).bytes, cause.decode())
    return causes


def _event_of(record: Record) -> Event | None:
    """The event of a record of a lane; None for one that was refused."""
    try:
        topic = rekeyed_from(record).topic if record.topic == REKEYED else record.topic
        return events.decode(
            topic, record.headers, record.value, record.timestamp if record.timestamp_type else 0
        )
    except Refused:
        return None


def _record(order_id: bytes, order: Order, created: Created, notice: Notice, event: Event) -> OutRecord:
    """The notice as the pipeline would publish it."""
    view = view_of(order)
    history = is_history(created, event.fact)
    if history and type(event.fact) is Created:
        history = not is_known_live(order, created)
    if notice.topic == STATUS_CHANGED:
        before = _STATUS.get(msgspec.json.decode(notice.actual)["status"], OrderStatus.PENDING)
        writer = Writer(order_id, created.currency, history)
        writer.status_changed(created, before, view.status, event, order.version)
        effect = _only(writer)
    elif notice.topic == ATTENTION:
        expected = msgspec.json.decode(notice.expected)
        effect = _told_of(order_id, order, created, expected, event, history)
    else:
        (suborder,) = (each for each in view.suborders if each.seller_id == notice.seller_id)
        effect = _updated(created, order_id, suborder, order.version, history)
    value, headers = effects.encode(effect, order_id, effects.headers_of(event))
    return OutRecord(ids.text(order_id).encode(), value, headers)


def _told_of(
    order_id: bytes, order: Order, created: Created, expected: dict[str, str], event: Event, history: bool
) -> Derived:
    """The notice that a kind of attention holds, or no longer does."""
    kind, detail = expected["kind"], expected.get("detail")
    writer = Writer(order_id, created.currency, history)
    if detail is not None:
        noted = Attention(kind, detail, since_of(order, order_id)[kind])
    else:
        seen = [each for each in order.attention if each.kind == kind and each.cleared_at is not None]
        noted = seen[0] if seen else Attention(kind, "", event.time, event.time)
    writer.attention(created, noted, noted.detail if detail is None else detail, version_of(order))
    return _only(writer)
