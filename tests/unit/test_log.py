"""A partition is read from an offset to an end: all of it, in order, nothing
behind it, whatever lies in it.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from aiokafka import TopicPartition
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

import wire.log
from contracts.topics import DLQ, PARTITIONS
from domain.order import Order, PaymentFailure
from operations import dead_letters
from operations.changelog import read_changelog
from operations.history import HistoryReader
from operations.replay import LocalStates
from queries.state import read_state
from settings import Settings
from streams import topics
from streams.lanes import Lanes, noted
from streams.partitioner import partition_of
from streams.transport import changelog
from tables import codec
from wire import UnreadableRecord
from wire.log import LogReader, Stalled, Stretch

LOG = TopicPartition("log", 0)
SETTINGS = Settings()


class Broker:
    """What LogReader asks of a consumer: a log with holes in its offsets, of which it
    gives a few records at a time.
    """

    def __init__(
        self,
        records: Sequence[Any],
        end: int,
        *,
        begin: int = 0,
        readable: int | None = None,
        log: TopicPartition = LOG,
    ) -> None:
        """`readable`: records from this offset on can't be had yet."""
        self.records = records
        self.begin, self.end = begin, end
        self.readable = end if readable is None else readable
        self.log = log
        self.pieces: Callable[[], int] = lambda: 2
        """How many records it gives."""
        self.at = -1
        self.paused = self.stopped = False
        self._client = self

    # -- of its client ---------------------------------------------------------------------------------------

    _topics: frozenset[str] = frozenset()

    async def set_topics(self, topics: object) -> None:
        pass

    async def fetch_all_metadata(self) -> Any:
        return SimpleNamespace(partitions_for_topic={self.log.topic: {self.log.partition}}.get)

    # -- of the consumer -------------------------------------------------------------------------------------

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        self.stopped = True

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.begin)

    async def end_offsets(self, partitions: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(partitions, self.end)

    def assign(self, partitions: list[TopicPartition]) -> None:
        assert partitions == [self.log]
        self.at, self.paused = -1, False

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert offset >= self.begin
        self.at = offset

    def pause(self, partition: TopicPartition) -> None:
        self.paused = True

    async def position(self, partition: TopicPartition) -> int:
        return self.at

    async def getmany(
        self, partition: TopicPartition, *, timeout_ms: int
    ) -> Mapping[TopicPartition, list[Any]]:
        assert (partition, self.paused) == (self.log, False)
        await asyncio.sleep(0)
        there = [record for record in self.records if self.at <= record.offset < self.readable]
        if some := there[: self.pieces()]:
            self.at = some[-1].offset + 1
            return {partition: some}
        if not there:  # what is left are offsets without a record: markers, and what compaction took
            self.at = max(self.at, self.readable)
        return {}


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broker], Broker]:
    """Makes every reader read a log."""

    def use(broker: Broker) -> Broker:
        monkeypatch.setattr(wire.log, "consumer", lambda *_, **__: broker)
        return broker

    return use


def numbered(offsets: Sequence[int]) -> list[Any]:
    return [SimpleNamespace(offset=offset) for offset in offsets]


@given(
    offsets=st.sets(st.integers(0, 15)).map(sorted),
    behind=st.integers(0, 3),
    begin=st.integers(0, 6),
    start=st.integers(0, 8),
    less=st.integers(0, 8),
    dice=st.builds(random.Random, st.integers(0, 2**24 - 1)),
)
def test_any_pieces_are_the_records_between_start_and_end(
    offsets: list[int], behind: int, begin: int, start: int, less: int, dice: random.Random
) -> None:
    last = max(offsets, default=0) + 1 + behind
    end = max(0, last - less)
    broker = Broker(numbered(offsets), last, begin=begin)
    broker.pieces = lambda: dice.randint(0, 3)

    async def run() -> list[Stretch]:
        async with LogReader(SETTINGS, "test") as log:
            return [stretch async for stretch in log.read(LOG, start, end)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire.log, "consumer", lambda *_, **__: broker)
        stretches = asyncio.run(run())
    assert [record.offset for stretch in stretches for record in stretch.records] == [
        offset for offset in offsets if max(begin, start) <= offset < end
    ]
    positions = [stretch.position for stretch in stretches]
    assert positions == sorted(set(positions))
    assert positions[-1:] == ([end] if max(begin, start) < end else [])
    assert all(record.offset < stretch.position for stretch in stretches for record in stretch.records)
    assert broker.paused == bool(stretches), "a log that is read to its end is fetched no further"
    assert broker.stopped


async def test_a_log_that_stands_still_is_given_up_with_its_name(on: Callable[[Broker], Broker]) -> None:
    broker = on(Broker(numbered(range(9)), 9, readable=4))
    with pytest.raises(Stalled, match="log/0 stands still at 4, its end is 9"):
        async with asyncio.timeout(10), LogReader(Settings(), "test", stall_timeout=0) as log:
            assert [stretch.position async for stretch in log.read(LOG, 0, 9)]
    assert broker.stopped


async def test_beside_a_lane_it_ends_early_instead(
    on: Callable[[Broker], Broker], monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = on(Broker(numbered(range(9)), 9, readable=4))
    monkeypatch.setattr(changelog, "WAIT", 0)
    options = {"settings": Settings(), "client_id": "test"}
    async with asyncio.timeout(10):
        assert [stretch.position async for stretch in changelog.stretches(options, TP("log", 0), 0, 9)] == [
            2,
            4,
        ]
    assert broker.stopped


# -- a record that no client can parse, in front of one that can be ------------------------------------------

ORDER = UUID("0e0e0e0e-0000-4000-8000-000000000001")
LANE = partition_of(str(ORDER).encode(), SETTINGS.partitions)
STATE = codec.encode(Order(version=1, failures=[PaymentFailure(1, bytes(16), "x")]))


async def one_state(settings: Settings, folder: Path) -> object:
    state = await read_state(settings, ORDER)
    return None if state is None else state.version


async def all_states(settings: Settings, folder: Path) -> object:
    states = LocalStates(folder / "states")
    async with HistoryReader(settings) as log:
        end = await read_changelog(log, TopicPartition(settings.changelog_topic, LANE), 0, states)
    content = dict(states.items())
    states.close()
    return end, content


async def the_lanes(settings: Settings, folder: Path) -> object:
    return await noted(settings)


async def dead(settings: Settings, folder: Path) -> object:
    async with dead_letters.Reader(settings, (DLQ,)) as log:
        return [(record.offset, record.value) async for record in log.records(DLQ, 0)]


@pytest.mark.parametrize(
    ("reading", "log", "key", "value", "expected"),
    [
        (one_state, TopicPartition(Settings().changelog_topic, LANE), ORDER.bytes, STATE, 1),
        (
            all_states,
            TopicPartition(Settings().changelog_topic, LANE),
            ORDER.bytes,
            STATE,
            (3, {ORDER.bytes: STATE}),
        ),
        (
            the_lanes,
            TopicPartition(PARTITIONS, 0),
            b"",
            json.dumps({"partitions": 4, "former": [2]}).encode(),
            Lanes(4, [2]),
        ),
        (dead, TopicPartition(DLQ, 0), b"", b"refused", [(0, None), (1, b"refused")]),
    ],
    ids=["state of an order", "states", "lanes", "dead letters"],
)
async def test_a_record_that_no_client_can_parse_hides_nothing(
    on: Callable[[Broker], Broker],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    reading: Callable[[Settings, Path], Awaitable[object]],
    log: TopicPartition,
    key: bytes,
    value: bytes,
    expected: object,
) -> None:
    async def described(*_: object) -> dict[str, Any]:
        return {log.topic: SimpleNamespace(partitions=1)}

    monkeypatch.setattr(topics, "describe", described)
    broken = UnreadableRecord(*log, 0, 0, 0, None, None, None, -1, -1, (), "a length is odd", b"?")
    on(Broker([broken, SimpleNamespace(offset=1, key=key, value=value, headers=())], 3, log=log))
    assert await reading(Settings(), tmp_path) == expected
