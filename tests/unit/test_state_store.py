"""The local store: what it finds broken or full in the middle of its work, and its states page by page."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import pytest

from domain.order import Order, PaymentFailure
from settings import Settings
from streams.transport import table
from streams.transport.batch import OpenLane
from streams.transport.errors import DiskFull, StateCorrupt
from streams.transport.records import DueState, Moved
from streams.transport.table import Page, StateStore
from tables import codec
from tests.integration.transport_app import make_app
from wire.log import Stretch

KEYS = [b"%04d" % number for number in range(2000)]


async def test_of_a_stretch_of_the_changelog_the_highest_version_counts() -> None:
    """A worker that had lost its lane may have written an older state behind its successor's."""
    older, newer = (
        codec.encode(Order(version=n, failures=[PaymentFailure(1, bytes(16), "x")] * n)) for n in (1, 2)
    )
    key, other = b"k" * 16, b"o" * 16
    written = [(key, newer), (other, older), (key, older), (key, b"no state")]
    records: list[Any] = [
        SimpleNamespace(key=key, value=value, offset=at) for at, (key, value) in enumerate(written)
    ]

    async def stretches(tp: object, since: int, end: int) -> AsyncGenerator[Stretch, None]:
        yield Stretch(records, end)

    table: Any = SimpleNamespace(
        changelog_topic_name="changelog", version_of=codec.version_of, is_state=codec.is_state
    )
    lane: Any = SimpleNamespace(partition=3, generation=1, note="", tracked_ends=())
    changes = [each async for each in OpenLane(lane, cast(Any, None), stretches).changes(table, 0, 4)]
    assert changes == [({key: newer, other: older}, 4)]


def opened(folder: Path) -> StateStore:
    """A store on the folder's files."""
    _, table = make_app(Settings(data=folder), ("in",), "out")
    return table.store


@pytest.fixture
def broken(tmp_path: Path) -> StateStore:
    """Opened, its index read, its blocks not: those are noise."""
    first = opened(tmp_path)
    random = Random(1)
    first.write(0, {key: random.randbytes(500) for key in KEYS}, 7)
    first._db_for_partition(0).flush()
    first._close(0)
    store = opened(tmp_path)
    assert store.states(0, KEYS[:1]) != [None]
    for path in store.partition_path(0).glob("*.sst"):
        with path.open("r+b") as file:
            file.seek(100_000)
            file.write(random.randbytes(os.path.getsize(path) - 200_000))
    return store


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda store: store.states(0, KEYS), id="read"),
        pytest.param(lambda store: store.recover(0, [], 3) or store.states(0, KEYS[::-1]), id="recover"),
    ],
)
def test_a_broken_file_is_deleted_and_ends_the_worker(
    broken: StateStore, use: Callable[[StateStore], object]
) -> None:
    with pytest.raises(StateCorrupt, match="partition 0 is corrupt and was deleted"):
        use(broken)
    assert not broken.partition_path(0).exists()
    assert broken.states(0, KEYS[:2]) == [None, None]


def test_a_store_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.write(0, {b"key": b"value"}, 1)
    with pytest.raises(Exception, match="lock"):
        second.states(0, [b"key"])
    assert first.states(0, [b"key"]) == [b"value"]


# -- keys that upstream chooses ------------------------------------------------------------------------------


def ordinary(folder: Path) -> StateStore:
    """A store of orders."""
    app = make_app(Settings(data=folder), ("in",), "out")[0]
    return app.state_table("orders", codec.version_of, codec.due_of, codec.is_state).store


def state(version: int = 1, due: int = 0) -> bytes:
    order = Order(version=version, due=due)
    order.failures = [PaymentFailure(1, n.to_bytes(16, "big"), "r") for n in range(version)]
    return codec.encode(order)


@pytest.mark.parametrize(
    "key", [b"__faust\x00offset__", b"due:" + bytes(12), b"changelog-offset", b"offset of the ch"]
)
def test_an_order_s_id_is_no_key_of_the_store_s_own(tmp_path: Path, key: bytes) -> None:
    assert len(key) == 16
    store = ordinary(tmp_path)
    store.write(0, {key: state(2, 50)}, 7, [Moved(key, 0, 50)])
    assert store.states(0, [key]) == [state(2, 50)]
    assert store.position(0) == 8
    assert store.first_due(0) == 50
    assert store.due(0, 60, 10) == [DueState(50, key, state(2, 50))]
    store.write(0, {key: state(3)}, 8, [Moved(key, 50, 0)])
    assert (store.first_due(0), store.due(0, 60, 10)) == (0, [])


def test_the_states_that_were_written_last_are_known_and_never_due(tmp_path: Path) -> None:
    store = ordinary(tmp_path)
    assert store.latest(0) == []
    keys = [n.to_bytes(16, "big") for n in range(50)]
    store.write(0, {key: state() for key in keys}, 60)
    assert store.latest(0) == keys[-table.LATEST_KEYS :]
    store.write(0, {}, 61, [Moved(keys[0], 0, 50)])
    store.write(0, {keys[3]: state(2), keys[4]: None}, 62)
    assert store.latest(0) == [keys[3]]
    store.write(0, {}, 63, [Moved(keys[0], 50, 0)])
    assert (store.first_due(0), store.due(0, (1 << 64) - 1, 10)) == (0, [])
    records: list[Any] = [Foreign(64, keys[9], state(3))]
    store.recover(0, records, 65)
    assert store.latest(0) == [keys[9]]


def test_the_offset_is_found_where_it_was_before(tmp_path: Path) -> None:
    first = ordinary(tmp_path)
    first.write(0, {b"k" * 16: state()}, None)
    first._db_for_partition(0)[b"__faust\x00offset__"] = b"41"
    first._close(0)
    assert ordinary(tmp_path).position(0) == 42


class Foreign(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()
    topic: str = "changelog"
    partition: int = 0
    timestamp: int = 0
    timestamp_type: int = 0


def test_what_is_no_state_is_left_out_of_a_recovery(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    a, b = b"a" * 16, b"b" * 16
    rubbish = [
        b"",
        b"\x00",
        b"{}",
        b"\x91\x05",
        b"\x90",
        state()[:-3],
        state()[:1] + b"\x09" + state()[2:],
        b"\xdc\xff\xff\xcd",
        b"\xff" * 50,
    ]
    records = [Foreign(0, a, state(2, 9))]
    records += [Foreign(1 + n, a, value) for n, value in enumerate(rubbish)]
    records += [
        Foreign(20, None, state()),
        Foreign(21, b"short", state()),
        Foreign(22, b"offset of the changelog", b"9"),
        Foreign(23, b, state()),
    ]
    records += [Foreign(24, b"due:" + bytes(8) + a, b"")]
    store = ordinary(tmp_path)
    store.recover(0, cast("list[Any]", records), 25)
    assert store.states(0, [a, b]) == [state(2, 9), state()]
    assert store.position(0) == 25
    assert store.first_due(0) == 9
    assert caplog.text.count("is no state: left out") == len(rubbish) + 4


def test_due_states_come_a_few_at_a_time_where_they_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table, "DUE_BYTES", 20_000)
    store = ordinary(tmp_path)
    keys = [n.to_bytes(16, "big") for n in range(300)]
    store.write(0, {key: state(20, 5) for key in keys}, 1, [Moved(key, 0, 5) for key in keys])
    some = store.due(0, 9, 300)
    assert 0 < len(some) < 300
    assert sum(len(each.state or b"") for each in some) < 20_000 + 64 * len(state(20, 5))


def test_all_states_are_paged_through_in_the_order_of_their_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = opened(tmp_path)
    keys = [b"a" * 16, b"due:" + b"\xff" * 12, b"due:" + b"z" * 12, b"o" * 16, b"offset of the ch", b"z" * 16]
    moved = [Moved(key, 0, 1_000 + at) for at, key in enumerate(keys)]
    store.write(0, {key: b"v" + key for key in keys}, 7, moved)
    for most in ("PAGE_STATES", "PAGE_KEYS", "PAGE_BYTES"):
        with monkeypatch.context() as patch:
            patch.setattr(table, most, 2)
            paged: dict[bytes, bytes] = {}
            after: bytes | None = b""
            pages = 0
            while after is not None:
                page = store.after(0, after)
                assert len(page.states) <= 2
                paged |= page.states
                after = page.until
                pages += 1
            assert pages > 2
            assert list(paged) == sorted(keys)
            assert paged == {key: b"v" + key for key in keys}
    assert store.after(0, keys[-1]) == Page({}, None)


@pytest.mark.parametrize("why", ["No space left on device", "Disk quota exceeded"])
def test_a_full_disk_is_said_and_nothing_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    store = opened(tmp_path)
    store.write(0, {b"k" * 16: b"v"}, 7)

    def full(*_: object) -> None:
        raise Exception(f"IO error: {why}: While appending to file: 000009.log")

    monkeypatch.setattr(store, "_db_for_partition", lambda number: SimpleNamespace(write=full))
    with pytest.raises(DiskFull, match=rf"the disk of {tmp_path}.* is full.*{why}"):
        store.write(0, {b"k" * 16: b"w"}, 8)
    monkeypatch.undo()
    assert store.states(0, [b"k" * 16]) == [b"v"]
    store._close(0)
    monkeypatch.setattr(store, "_opened", full)
    with pytest.raises(DiskFull):
        store.states(0, [b"k" * 16])
