"""What an audit leaves for the next one: what it says comes back, and anything odd about it is told."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from aiokafka import TopicPartition

from audit.checkpoint import Checkpoint, CheckpointUnusable, Manifest, after, digests_of_cache
from audit.findings import Finding
from audit.judge import DERIVED_EVENT, ENTRY, FACT, LOCAL, MEMBER, ROW, STATE, Item, Known
from audit.log import Span

SCOPE = {"group": "g", "cluster": "c"}
KEY = b"0b5b3b4e-5f0e-4c1e-9d55-0f8a2f7f5c11"
ROWS: list[Item] = [(KEY, ROW, 0, b"line"), (KEY, ROW, 1, b"one"), (KEY, ROW, 1, b"two")]
CACHED: list[Item] = [(KEY, ENTRY, "order:1", 500, b"{}"), (KEY, MEMBER, "user:1:orders", 500, 5.0)]
STATE_BYTES = b"\x91\x01"
FACTS: list[Item] = [[KEY, FACT, 1, 0, 7, 0, b"{}", [["ce_id", b"e"], ["x", None]]]]
LAST: list[Item] = [[KEY, DERIVED_EVENT, 9, 0, 3, "id", "cause", None, b"{}"]]


def known(**changes: Any) -> Known:
    return Known(FACTS, [("stock.reserve", "r")], LAST, (9, STATE_BYTES), placed=False, waits=False)._replace(
        **changes
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With a checkpoint of two lanes and one order."""
    leave(tmp_path / "group", {KEY: [*ROWS, *CACHED]})
    return tmp_path / "group"


def leave(
    folder: Path,
    orders: dict[bytes, list[Item]],
    *,
    load: bool = False,
    held: dict[bytes, list[Item]] | None = None,
    **changes: Any,
) -> None:
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    if load:
        assert checkpoint.load(2)
    for lane in (0, 1):
        fresh = checkpoint.fresh(lane)
        for key, items in orders.items() if lane == 0 else ():
            fresh.add(key, items, known(**changes))
        for key, items in (held or {}).items() if lane == 0 else ():
            fresh.hold(key, items)
        fresh.close()
    checkpoint.leave(2, {"order.paid/0": 5}, ["stock.reserve/0"])
    checkpoint.close()


@pytest.fixture
def opened(folder: Path) -> Iterator[Checkpoint]:
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    yield checkpoint
    checkpoint.close()


def test_what_was_left_comes_back_and_only_its_owner_may_read_it(folder: Path, opened: Checkpoint) -> None:
    assert opened.manifest is not None
    assert (opened.manifest.positions, opened.manifest.complete) == ({"order.paid/0": 5}, ["stock.reserve/0"])
    lane = opened.lane(0)
    assert lane is not None
    assert lane.orders == 1
    entries = {bucket: lane.entries(bucket, 4) for bucket in range(4)}
    assert [bucket for bucket, there in entries.items() if there] == [crc32(KEY) % 4]
    entry = entries[crc32(KEY) % 4][KEY]
    assert lane.known(KEY, entry) == known()
    lane.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


@pytest.mark.parametrize(
    ("orders", "least", "buckets"), [(0, 1, 1), (8_000, 1, 2), (8_000, 5, 8), (10**9, 1, 1_024)]
)
def test_a_lane_comes_in_a_power_of_two_of_buckets(
    opened: Checkpoint, orders: int, least: int, buckets: int
) -> None:
    lane = opened.lane(1)
    assert lane is not None
    lane.orders = orders
    assert lane.buckets(least, 4_000) == buckets
    lane.close()


LOCAL_ITEM: Item = (KEY, LOCAL, 0, STATE_BYTES)


@pytest.mark.parametrize(
    ("items", "agrees"),
    [
        ([*ROWS, *CACHED], True),
        (ROWS, True),  # what was cached has expired
        ([*reversed(ROWS), *CACHED, CACHED[0]], True),
        ([*ROWS, CACHED[0]], False),  # some of it only: the rest may have to be there
        ([*ROWS, *CACHED[:1], (KEY, MEMBER, "user:1:orders", 500, 6.0)], False),
        ([*ROWS, CACHED[1], (KEY, ENTRY, "order:1", 500, b"{ }")], False),
        ([*ROWS, CACHED[1], (KEY, ENTRY, "order:1", -1, b"{}")], False),
        ([*ROWS, CACHED[1], (KEY, ENTRY, "order:1", 1_800_001, b"{}")], False),
        (ROWS[1:], False),
        ([*ROWS, ROWS[0]], False),
        ([(KEY, ROW, 1, b"line"), *ROWS[1:]], False),
        ([], False),
        ([*ROWS, FACTS[0]], False),
        ([*ROWS, LAST[0]], False),
        ([*ROWS, (KEY, STATE, 9, STATE_BYTES)], False),
        ([*ROWS, LOCAL_ITEM], False),  # there is no local table
    ],
)
def test_an_order_is_trusted_if_nothing_of_it_changed(
    opened: Checkpoint, items: list[Item], agrees: bool
) -> None:
    lane = opened.lane(0)
    assert lane is not None
    entry = lane.entries(0, 1)[KEY]
    lane.close()
    assert entry.agrees(items, 0, cached=True) is agrees
    assert entry.agrees([*items, LOCAL_ITEM], 1, cached=True) is (agrees and LOCAL_ITEM not in items)
    assert not entry.agrees([*items, (KEY, LOCAL, 0, b"\x91\x02")], 1, cached=True)


def test_an_order_that_waits_is_never_trusted(folder: Path) -> None:
    leave(folder, {KEY: []}, load=True, waits=True)
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    lane = checkpoint.lane(0)
    assert lane is not None
    assert not lane.entries(0, 1)[KEY].agrees([], 0, cached=True)
    lane.close()
    checkpoint.close()


def test_what_was_judged_again_takes_the_place_of_before(folder: Path) -> None:
    other = KEY.replace(b"0b", b"0c")
    leave(folder, {other: []}, load=True, placed=True)
    leave(folder, {KEY: ROWS[:1]}, load=True, state=None)
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    lane = checkpoint.lane(0)
    assert lane is not None
    entries = lane.entries(0, 1)
    assert (sorted(entries), lane.orders) == ([KEY, other], 2)
    assert lane.known(KEY, entries[KEY]).state is None
    assert entries[KEY].agrees(ROWS[:1], 0, cached=True)
    assert entries[KEY].cached == digests_of_cache([])
    lane.close()
    assert checkpoint.knows_placed(other.decode(), 0)
    assert not checkpoint.knows_placed(KEY.decode(), 0)
    checkpoint.close()


def test_an_order_that_is_not_clean_comes_back_with_what_was_read_of_it(folder: Path) -> None:
    leave(folder, {}, load=True, held={KEY: [*FACTS, *ROWS, *CACHED, *LAST]})
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    lane = checkpoint.lane(0)
    assert lane is not None
    assert list(lane.held()) == [(KEY, [*FACTS, *LAST])]
    assert lane.entry(KEY) == lane.entries(0, 1)[KEY], "as it was when it was clean"
    assert lane.entry(KEY.replace(b"0b", b"0c")) is None
    assert (lane.keys(b"", 5), lane.keys(KEY, 5)) == ([KEY], [])
    lane.close()
    assert checkpoint.knows_placed(KEY.decode(), 0), "nobody knows yet"
    checkpoint.close()
    leave(folder, {KEY: ROWS}, load=True)
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    lane = checkpoint.lane(0)
    assert lane is not None
    assert list(lane.held()) == []
    lane.close()
    checkpoint.close()


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("at", [0, 1, 2])
def test_killed_at_any_moment_it_is_put_in_its_place_by_the_next(
    folder: Path, monkeypatch: pytest.MonkeyPatch, whole: bool, at: int
) -> None:
    """`at`: how many lanes were in their places."""

    class Killed(Exception):
        pass

    take = Checkpoint._take

    def killed(checkpoint: Checkpoint, lane: int, number: str) -> None:
        if lane == at:
            os.close(checkpoint._lock)
            raise Killed
        take(checkpoint, lane, number)

    other = KEY.replace(b"0b", b"0c")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "_take", killed)
        if at < 2:
            with pytest.raises(Killed):
                leave(folder, {other: ROWS}, load=not whole)
        else:
            leave(folder, {other: ROWS}, load=not whole)
    (folder / "new-manifest").touch()
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    lane = checkpoint.lane(0)
    assert lane is not None
    assert lane.keys(b"", 5) == ([other] if whole else [KEY, other])
    lane.close()
    assert not [*folder.glob("new-*")]
    checkpoint.close()


def test_killed_before_it_left_one_the_one_of_before_counts(folder: Path) -> None:
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    checkpoint.fresh(0).close()
    os.close(checkpoint._lock)  # killed
    again = Checkpoint(folder, SCOPE)
    again.prepare()
    assert again.load(2)
    lane = again.lane(0)
    assert lane is not None
    assert lane.keys(b"", 5) == [KEY]
    lane.close()
    again.close()


def test_what_is_no_orders_comes_back_too(folder: Path) -> None:
    finding = Finding("letters", "broken", "", "where", "expected", "actual")
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    for lane in (0, 1):
        checkpoint.fresh(lane).close()
    more: dict[str, Any] = {"checkouts": [("o", "t", 0, 1)], "letters": [(0, 7)], "lasting": [finding]}
    checkpoint.leave(2, {}, [], **more)
    checkpoint.close()
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    manifest = checkpoint.manifest
    assert manifest is not None
    assert (manifest.checkouts, manifest.letters, manifest.lasting) == (
        more["checkouts"],
        more["letters"],
        more["lasting"],
    )
    assert checkpoint.has_scope(SCOPE)
    assert not checkpoint.has_scope(SCOPE | {"cluster": "d"})
    checkpoint.close()


def spoil_manifest(folder: Path) -> None:
    (folder / "checkpoint.json").write_bytes(b"{")


def other_rules(folder: Path) -> None:
    path = folder / "checkpoint.json"
    document = json.loads(path.read_text())
    document["scope"]["rules"] = "older"
    path.write_text(json.dumps(document))


def other_cluster(folder: Path) -> None:
    path = folder / "checkpoint.json"
    path.write_text(path.read_text().replace('"cluster": "c"', '"cluster": "d"'))


def torn(folder: Path) -> None:
    with sqlite3.connect(folder / "lane-1.sqlite") as db:
        db.execute("UPDATE audit SET number = 'other'")
    db.close()


def spoil_lane(folder: Path) -> None:
    (folder / "lane-0.sqlite").write_bytes(b"no database at all" * 300)


def lose_lane(folder: Path) -> None:
    (folder / "lane-0.sqlite").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_manifest, "unreadable"),
        (other_rules, "of other rules"),
        (other_cluster, "of other cluster"),
        (torn, "not written to its end"),
        (spoil_lane, "unreadable"),
        (lose_lane, "unreadable"),
    ],
)
def test_a_checkpoint_that_is_no_good_is_told(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder)
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    with pytest.raises(CheckpointUnusable, match=said):
        checkpoint.load(2)
    assert checkpoint.manifest is None
    checkpoint.close()


@pytest.mark.parametrize("packed", [b"", b"x" * 40, None])
def test_facts_that_are_not_what_was_written_are_told(folder: Path, packed: bytes | None) -> None:
    with sqlite3.connect(folder / "lane-0.sqlite") as db:
        if packed is None:
            db.execute("DELETE FROM known")
        else:
            db.execute("UPDATE known SET packed = ?", (packed,))
    db.close()
    checkpoint = Checkpoint(folder, SCOPE)
    checkpoint.prepare()
    assert checkpoint.load(2)
    lane = checkpoint.lane(0)
    assert lane is not None
    with pytest.raises(CheckpointUnusable, match="unreadable"):
        lane.known(KEY, lane.entries(0, 1)[KEY])
    lane.close()
    checkpoint.close()


def test_none_is_there_at_first_and_two_audits_do_not_share_one(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "new", SCOPE)
    checkpoint.prepare()
    assert not checkpoint.load(2)
    assert checkpoint.lane(0) is None
    with pytest.raises(BlockingIOError):
        Checkpoint(tmp_path / "new", SCOPE).prepare()
    checkpoint.fresh(0).close()
    checkpoint.close()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["lock"]


@pytest.mark.parametrize(
    ("topic", "start", "end", "said"),
    [
        ("order.paid", 0, 5, None),
        ("order.paid", 5, 9, None),
        ("order.paid", 0, 4, "order.paid/0 ends at 4 now"),
        ("order.paid", 6, 9, "order.paid/0 begins at 6 now"),
        ("order.created", 0, 9, "didn't read order.created/0"),
    ],
)
def test_it_holds_for_a_log_that_only_grew(topic: str, start: int, end: int, said: str | None) -> None:
    manifest = Manifest("n", "t", SCOPE, {"order.paid/0": 5})
    partition = TopicPartition(topic, 0)
    if said is None:
        assert after(manifest, partition, Span(start, end)) == 5
    else:
        with pytest.raises(CheckpointUnusable, match=said):
            after(manifest, partition, Span(start, end))
