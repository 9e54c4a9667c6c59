"""Takes back what a killed run has told readers, where it isn't so.

A batch's notices are published before its states are written. A run that is killed in between has told what
came of the order in which it had read several topics. The next run may read them in another order, come to
something else, and find nothing that changed: then the killed run's notice would stay the last one. So where
the topics of notices end is committed beside the offsets. What lies behind as a lane opens was told by a run
that was killed; of each such order the last notices are compared with its state as soon as the lane has
folded it again, and what isn't so is told as it is (docs/decisions/0081).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec
from aiokafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

from contracts import ids, times
from contracts.errors import Refused
from contracts.strict_json import read_foreign
from domain.attention import holding, version_of
from domain.effects import Writer, attributes, encode_data
from domain.order import Attention, Created, Order
from domain.shapes import Derived
from domain.status import view_of
from streams.folder import BatchOutput
from streams.transport.batch import LaneBatch, OpenLane
from streams.transport.delivery import describe
from streams.transport.records import OutRecord
from tables import codec

log = logging.getLogger(__name__)

STATUS: Final = "order.status_changed"
SUBORDER: Final = "suborder.updated"
ATTENTION: Final = "order.attention"
NOTICE_TOPICS: Final = (STATUS, SUBORDER, ATTENTION)
"""The topics of notices of which the last one counts, in the order in which they are noted."""
MOST: Final = 100_000
"""Records of one topic that are looked at, the latest: some batches' notices are far fewer."""
ATTEMPTS: Final = 15
"""So often it is tried to read them to their ends, which takes a minute: a transaction that never ends would
stop the lane for good.
"""
NOTICE_FIELDS: Final = (
    *("status", "closed_because", "items_amount", "shipping_amount", "discount_amount", "tax_amount"),
    *("total_amount", "units"),
)
"""What suborder.updated tells that may change."""

Headers = Sequence[tuple[str, Any]]


class Notice(NamedTuple):
    """The last one about one subject."""

    topic: str
    data: dict[str, Any]
    headers: Headers


Notices = dict[bytes, dict[tuple[str, str], Notice]]
"""Raw id of an order -> (topic, seller or kind) -> the last notice about it."""


class _Lane:
    """What was told of the orders of an open lane, and isn't known to be so. `notices` None: not read yet."""

    def __init__(self, lane: OpenLane) -> None:
        self.lane = lane
        self.notices: Notices | None = None
        self.ends: tuple[int, ...] = ()
        self.attempts = 0

    def settle(self, order_ids: Sequence[bytes]) -> None:
        """Nothing is to be taken back of these orders any more."""
        if self.notices is None:
            return  # a batch of an earlier assignment
        for order_id in order_ids:
            self.notices.pop(order_id, None)
        if not self.notices:
            self.lane.track_from(self.ends)


class Retractions:
    """Those of a worker's lanes."""

    def __init__(self, table: Any) -> None:
        """`table` holds the states."""
        self._table = table
        self._lanes: dict[int, _Lane] = {}

    def opened(self, lane: OpenLane) -> None:
        """To be called before the lane's first batch. Never blocks."""
        self._lanes[lane.partition] = _Lane(lane)

    async def read(self, batch: LaneBatch) -> None:
        """Read what killed runs have told, before the first batch of a lane is folded; later nothing is done.

        Blocks for a round trip, and for what there is to read. Raises KafkaError and Stale.
        """
        known = self._lanes.get(batch.partition)
        if known is None or known.notices is not None:
            return
        lane = known.lane
        ends = await lane.ends(NOTICE_TOPICS)
        notices: Notices = {}
        try:
            for topic, since, end in zip(NOTICE_TOPICS, lane.tracked_ends or ends, ends, strict=True):
                await _read(lane, topic, max(since, end - MOST), end, notices)
        except (TopicAuthorizationFailedError, KafkaTimeoutError) as error:
            known.attempts += 1
            if isinstance(error, KafkaTimeoutError) and known.attempts < ATTEMPTS:
                raise
            log.warning(
                "what a killed run has told can't be looked at, and isn't taken back: %(error)s",
                {"error": describe(error)},
            )
            notices = {}
        known.notices, known.ends = notices, ends
        states = zip(notices, lane.get_states(self._table, list(notices)), strict=True)
        known.settle(
            [order_id for order_id, state in states if _wrong(order_id, state, notices[order_id]) == []]
        )

    def add(self, batch: LaneBatch, work: BatchOutput) -> list[bytes]:
        """Add to a batch's output what has to be taken back of its orders. Returns of which orders nothing is
        left to be, once the batch is done: settle() takes them. Reads the local disk. Raises Stale.
        """
        known = self._lanes.get(batch.partition)
        if known is None or not known.notices:
            return []
        touched = [order_id for order_id in work.orders if order_id in known.notices]
        for order_id, stored in zip(touched, batch.get_states(self._table, touched), strict=True):
            state = work.states.get(order_id, stored)
            for topic, record in _wrong(order_id, state, known.notices[order_id]) or ():
                work.publish(topic, record)
        return touched

    def settle(self, batch: LaneBatch, order_ids: Sequence[bytes]) -> None:
        """The batch is done."""
        if order_ids:
            self._lanes[batch.partition].settle(order_ids)


async def _read(lane: OpenLane, topic: str, since: int, end: int, notices: Notices) -> None:
    read_to = since
    async with aclosing(lane.records(topic, since, end)) as stretches:
        async for records, position in stretches:
            read_to = position
            for record in records:
                data = read_foreign(msgspec.json.decode, record.value)
                if isinstance(data, dict) and record.key == str(data.get("order_id")).encode():
                    order_id = read_foreign(_raw, record.key)
                    subject = data.get("kind" if topic == ATTENTION else "seller_id", "")
                    if order_id is not None:
                        of_order = notices.setdefault(order_id, {})
                        of_order[topic, str(subject)] = Notice(topic, data, record.headers)
    if read_to < end:
        raise KafkaTimeoutError(f"{topic}/{lane.partition} was read up to {read_to} of {end}")


def _raw(key: bytes) -> bytes:
    return msgspec.convert(key.decode(), UUID).bytes


# -- what isn't so -------------------------------------------------------------------------------------------


def _wrong(
    order_id: bytes, state: bytes | None, notices: Mapping[tuple[str, str], Notice]
) -> list[tuple[str, OutRecord]] | None:
    """What takes back the notices that don't say what the order's state says, with its topic. None: the state
    says nothing yet.
    """
    try:
        order = Order() if state is None else codec.decode(state)
    except codec.NewerFormat:
        return None  # whoever folds it says so
    if order.created is None:
        return None
    return list(_corrections(order_id, order, order.created, notices))


def _corrections(
    order_id: bytes, order: Order, created: Created, notices: Mapping[tuple[str, str], Notice]
) -> Iterator[tuple[str, OutRecord]]:
    view = view_of(order)
    suborders = {ids.text(each.seller_id): each for each in view.suborders}
    since = {each.kind: each.since for each in order.attention}
    details = holding(order, order_id, view, None)
    for (topic, subject), notice in notices.items():
        data, writer = notice.data, Writer(order_id, created.currency, False)
        if topic == STATUS:
            if data.get("to") != view.status.text:
                yield topic, _status(order_id, order, view.status.text, notice)
        elif topic == SUBORDER and subject in suborders:
            writer.suborder_updated(created, suborders[subject], order.version)
            yield from _unless_told(order_id, writer, notice, NOTICE_FIELDS)
        elif topic == ATTENTION:
            began = _since(data)
            if subject in details:
                noted = Attention(subject, "", since.get(subject, began))
                writer.attention(created, noted, details[subject], version_of(order))
            else:  # as it was told
                noted = Attention(subject, "", began, began)
                writer.attention(created, noted, str(data.get("detail")), version_of(order))
            yield from _unless_told(order_id, writer, notice, ("state", "detail"))


def _unless_told(
    order_id: bytes, writer: Writer, notice: Notice, fields: Sequence[str]
) -> Iterator[tuple[str, OutRecord]]:
    (effect,) = writer.effects
    assert isinstance(effect, Derived)
    value = encode_data(effect)
    data = msgspec.to_builtins(effect.made if isinstance(effect.made, msgspec.Struct) else effect.made())
    if any(data.get(field) != notice.data.get(field) for field in fields):
        (ce_id,) = (text for name, text in attributes(effect, order_id, []) if name == "ce_id")
        yield notice.topic, _record(order_id, value, ce_id, notice)


def _status(order_id: bytes, order: Order, status: str, notice: Notice) -> OutRecord:
    data = notice.data | {"from": notice.data.get("to"), "to": status, "version": order.version}
    ce_id = ids.uuid5_text(order_id, f"{STATUS}:{order.version}").encode()
    return _record(order_id, msgspec.json.encode(data), ce_id, notice)


def _record(order_id: bytes, value: bytes, ce_id: bytes, notice: Notice) -> OutRecord:
    """As the killed run's: with its cause, time and trace."""
    headers = [(name, ce_id if name == "ce_id" else text) for name, text in notice.headers]
    return OutRecord(ids.text(order_id).encode(), value, headers)


def _since(data: Mapping[str, Any]) -> int:
    try:
        return times.parse(str(data.get("since")), "$.since")
    except Refused:
        return 0
