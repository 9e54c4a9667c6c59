"""An audit that follows: what it tells of what its rounds find, how it waits, and what it looks at."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from audit import follow
from audit.auditor import _says_order
from audit.checkpoint import CheckpointUnusable, LaneCheckpoint
from audit.findings import Finding
from audit.follow import CannotFollow, Follower, Told
from audit.index import Index, Letter
from audit.judge import ENTRY, MEMBER, ROW
from audit.log import LogUnavailable
from audit.orders import OrderReader, items_of
from audit.reference import RecordId
from audit.round import Follow, Servers
from audit.scope import Target
from audit.stores import TABLES, Entry, StoreUnavailable, rows_between, rows_of, text_at

A, B, C = (f"{n}b5b3b4e-5f0e-4c1e-9d55-0f8a2f7f5c11".encode() for n in range(3))


def finding(order_id: str = "o", where: str = "w", check: str = "rows") -> Finding:
    return Finding(check, "broken", order_id, where, "expected", "actual")


class Rounds:
    """A follower whose rounds find what they are told to find. A round may be an error instead."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *rounds: Any) -> None:
        self.told: list[Told] = []
        self.said: list[str] = []
        self.advanced: list[bool] = []
        self.audits = 0
        self._rounds = list(rounds)
        self._stop = asyncio.Event()
        monkeypatch.setattr(follow, "Auditor", self._auditor)
        monkeypatch.setattr(Follower, "_open", self._open)
        monkeypatch.setattr(follow, "_RETRY", 0.0)
        self.follower = Follower(
            cast(Target, None), interval=0, rate=1, tell=self.told.append, say=self.said.append
        )

    async def run(self) -> bool:
        return await self.follower.run(self._stop)

    def _auditor(self, *_: object, on_finding: Any, follow: Follow | None = None, **__: object) -> Any:
        if not self._rounds:
            return SimpleNamespace(run=asyncio.Event().wait)  # until it is ended
        finds = self._rounds.pop(0)
        inconclusive: set[str] = set()

        async def run() -> Any:
            if follow is None:
                self.audits += 1
            else:
                self.advanced.append(follow.advance)
            if not self._rounds:
                self._stop.set()
            if isinstance(finds, Exception):
                raise finds
            for each in finds:
                if isinstance(each, str):
                    inconclusive.add(each)
                else:
                    on_finding(each)
            return SimpleNamespace(notices=["too much"])

        return SimpleNamespace(
            run=run, inconclusive=inconclusive, left=finds != ["not left"], positions={"t/0": 1}
        )

    async def _open(self, stack: object) -> Follow:
        servers = SimpleNamespace(index=SimpleNamespace(next_round=lambda: None))
        return Follow(cast(Servers, servers), cache_stall=30)

    @property
    def what(self) -> list[tuple[str, str]]:
        return [(news.what, news.finding.where) for news in self.told]


async def test_each_difference_is_told_once_and_once_that_it_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, [finding()], [finding(), finding(where="x")], [finding(where="x")], [])
    assert await rounds.run()
    assert rounds.what == [("broken", "w"), ("broken", "x"), ("mended", "w"), ("mended", "x")]
    assert set(rounds.follower.broken.values()) == {0}
    assert rounds.follower.positions == {"t/0": 1}


async def test_what_is_broken_at_the_end_is_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, [finding()], [finding(), finding(check="cache")])
    assert not await rounds.run()
    assert (rounds.follower.broken["rows"], rounds.follower.broken["cache"]) == (1, 1)


async def test_an_order_on_its_way_is_neither_broken_nor_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, ["o"], [finding()], ["o"], [finding()], ["other"])
    assert await rounds.run()
    assert rounds.what == [("broken", "w"), ("mended", "w")]


async def test_servers_that_are_away_are_waited_for_and_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    away, gone = LogUnavailable("no Kafka"), StoreUnavailable("no Postgres")
    rounds = Rounds(monkeypatch, [finding()], away, gone, away, [finding()], [])
    assert await rounds.run()
    assert rounds.said == ["no Kafka: waiting for it", "the servers are back"]
    assert rounds.what == [("broken", "w"), ("mended", "w")]


async def test_servers_that_were_never_there_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LogUnavailable, match="no Kafka"):
        await Rounds(monkeypatch, LogUnavailable("no Kafka"), []).run()


async def test_without_a_checkpoint_everything_is_audited(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch, [finding()], CheckpointUnusable("it is old"), [finding()], [])
    assert await rounds.run()
    assert (rounds.audits, rounds.what) == (1, [("broken", "w"), ("mended", "w")])
    assert rounds.said == ["it is old: everything is audited first"]


async def test_where_too_much_is_broken_nothing_new_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [finding(where=str(n)) for n in range(follow.MOST_BROKEN)]
    rounds = Rounds(monkeypatch, [], many, many, many[1:], [])
    assert await rounds.run()
    assert rounds.advanced == [True, True, False, False, True]
    assert rounds.said == ["1,000 differences: nothing new is read until some are mended"]


async def test_it_ends_where_no_checkpoint_can_be_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CannotFollow, match="too much"):
        await Rounds(monkeypatch, [], ["not left"], []).run()


async def test_it_ends_in_the_middle_of_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds = Rounds(monkeypatch)
    forgets = 1

    async def stands(follower: Follower, state: object) -> None:
        nonlocal forgets
        rounds._stop.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:  # as asyncio.wait_for does, where an answer comes with it
            forgets -= 1
            if forgets < 0:
                raise

    monkeypatch.setattr(Follower, "_round", stands)
    assert await asyncio.wait_for(rounds.run(), 20)


def test_a_cache_that_is_refreshed_is_not_compared_and_one_that_stands_still_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    state = Follow(cast(Servers, None), cache_stall=30)
    assert state.behind({1: 10, 2: 5}) == {1, 2}
    now = 29.0
    assert state.behind({1: 9, 2: 5}) == {1, 2}
    now = 31.0
    assert state.behind({1: 9, 2: 6}) == {1}
    assert state.behind({}) == set()
    assert state.behind({2: 6}) == {2}


# -- what is read of single orders ---------------------------------------------------------------------------


def line(table: str, key: bytes, user: str = "u", number: str = "\\N") -> bytes:
    cells = {"orders_order": [key.decode(), user], "orders_shipment": ["s", key.decode(), *".....", number]}
    return "\t".join([*cells.get(table, [key.decode()]), "x"]).encode()


class FakeRows:
    def __init__(self, rows: Iterable[tuple[str, bytes, bytes]]) -> None:
        self.rows = list(rows)
        self.asked: list[str] = []

    async def lines(self, table: str, take: Callable[[bytes, bytes], None], where: str) -> None:
        self.asked.append(where)
        for of, key, text in self.rows:
            if of == table:
                take(key, text)


class FakeCache:
    def __init__(self, *entries: Entry) -> None:
        self.entries = {entry.key.decode(): entry for entry in entries}
        self.asked: list[str] = []

    async def some(self, names: list[str]) -> list[Entry]:
        self.asked += names
        return [self.entries[name] for name in names if name in self.entries]


async def test_an_orders_rows_lead_to_its_cache_entries() -> None:
    shipment = line("orders_shipment", A, number=r"T\t1")
    rows = FakeRows([("orders_order", A, line("orders_order", A)), ("orders_shipment", A, shipment)])
    parcels = b'[{"order_id": "%s"}, {"order_id": "%s"}]' % (A, B)
    cache = FakeCache(
        Entry(b"user:u:orders", "zset", 5, [(A, 1.0), (B, 2.0)]),
        Entry(b"tracking:T\t1", "string", 5, parcels),
    )
    reader = OrderReader(cast(Any, rows), cast(Any, cache), (), lambda key: 0)
    items = await reader.items([A, b"no order"])
    assert [item[:3] for item in items] == [
        (A, ROW, TABLES.index("orders_order")),
        (A, ROW, TABLES.index("orders_shipment")),
        (A, ENTRY, "tracking:T\t1"),
        (A, MEMBER, "user:u:orders"),
    ]
    assert cache.asked == [f"order:{A.decode()}", "tracking:T\t1", "user:u:orders"]
    behind = OrderReader(cast(Any, rows), cast(Any, cache), [0], lambda key: 0)
    assert {item[1] for item in await behind.items([A])} == {ROW}
    assert (behind.cached(0), behind.cached(1), reader.cached(0)) == (False, True, True)
    assert {item[1] for item in await OrderReader(cast(Any, rows), None, (), lambda key: 0).items([A])} == {
        ROW
    }


class FakeLane:
    """A lane of a checkpoint: `agrees` by order."""

    def __init__(self, **agrees: bool) -> None:
        self.orders = {key.encode().replace(b"_", b"-")[1:]: each for key, each in agrees.items()}

    def keys(self, after: bytes, count: int) -> list[bytes]:
        return sorted(key for key in self.orders if key > after)[:count]

    def entry(self, key: bytes) -> Any:
        agrees = self.orders.get(key)
        return None if agrees is None else SimpleNamespace(agrees=lambda items, tables, cached: agrees)


def lane(**agrees: bool) -> LaneCheckpoint:
    return cast(LaneCheckpoint, FakeLane(**agrees))


def named(key: bytes) -> str:
    return "k" + key.decode().replace("-", "_")


async def test_it_looks_at_orders_by_their_ids_a_few_at_a_time_and_begins_again() -> None:
    rows = FakeRows([])
    reader = OrderReader(cast(Any, rows), None, (), lambda key: int(key != A))
    lanes = [lane(**{named(A): False}), lane(**{named(B): True, named(C): False})]
    after = await reader.look(lanes, b"", 2)
    assert (after, reader.suspects) == (B, {0: [A]})
    assert rows.asked[0] == rows_between(b"", B)
    assert await reader.look(lanes, after, 2) == b""
    assert reader.suspects == {0: [A], 1: [C]}
    assert rows.asked[-1] == rows_between(B, b"")


async def test_a_row_of_an_order_that_nobody_knows_is_suspect() -> None:
    reader = OrderReader(cast(Any, FakeRows([("orders_return", B, b"row")])), None, (), lambda key: 1)
    assert await reader.look([lane(), lane()], b"", 5) == b""
    assert reader.suspects == {1: [B]}


def test_rows_are_asked_for_by_their_ids() -> None:
    assert rows_of([A, B]) == f"? = ANY ('{{{A.decode()},{B.decode()}}}'::uuid[])"
    assert rows_between(A, B) == f"? > '{A.decode()}' AND ? <= '{B.decode()}'"
    assert rows_between(b"", B) == f"? <= '{B.decode()}'"
    assert rows_between(b"", b"") == ""
    assert (text_at(b"a\tb\\tc\t\\N", 1), text_at(b"a\tb\t\\N", 2)) == ("b\tc", None)


@pytest.mark.parametrize(
    ("entry", "items"),
    [
        (Entry(b"order:a", "string", 5, b"{}"), [(b"a", ENTRY, "order:a", 5, b"{}")]),
        (Entry(b"tracking:n", "string", 5, b"no"), [(b"", ENTRY, "tracking:n", 5, b"no")]),
        (Entry(b"user:u:orders", "string", 5, b"no"), None),
    ],
)
def test_what_an_entry_is_about(entry: Entry, items: list[Any] | None) -> None:
    assert items_of(entry) == items


@pytest.mark.parametrize(
    ("value", "order"),
    [
        (b'{"order_id": "a"}', b"a"),
        (b'{"data": {"order_id": "a"}}', b""),
        (b"{", b""),
        (None, b""),
        (b"1", b""),
    ],
)
def test_an_event_says_its_order(value: bytes | None, order: bytes) -> None:
    assert _says_order(value) == order


# -- what stays between two rounds ---------------------------------------------------------------------------


def test_between_two_rounds_stays_what_is_still_asked_for(tmp_path: Path) -> None:
    index = Index(tmp_path)
    places = [RecordId("order.paid", 0, at) for at in range(3)]
    letters = [Letter(each, "not_json", "d", None, b"1", None, 0, each.offset) for each in places]
    index.add_letters(letters, lambda letter: letter.at == 2)
    index.add_checkout("placed", places[0])
    index.add_checkout("not yet", places[1])
    index.add_placed("placed")
    assert index.letters_of(places[:1]) == letters[:1]
    for _ in range(2):
        assert list(index.unmatched_letters()) == letters[1:2]
        assert [order_id for order_id, _ in index.unplaced_checkouts()] == ["not yet"]
        index.next_round()
    assert index.letters_of(places) == letters
    assert list(index.unmatched_letters()) == []
    index.close()
