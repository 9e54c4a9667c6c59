"""Compare the rows that a replay of the log expects with the actual, live rows, while the pipeline goes on.

An order may differ only because workers have changed it since it was replayed. So orders that differ are
compared again after the replay has caught up. A difference counts when the live rows are still what they were
in the first comparison and the replay holds everything that was in the log by then, since live rows hold
nothing else. Orders whose live rows changed are compared once more, up to ROUNDS times. Memory doesn't grow
with the number of differences: the orders to be compared again are kept in a file.
"""

from __future__ import annotations

import hashlib
import heapq
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import attrgetter
from typing import IO, Any, Final, NamedTuple, Protocol
from uuid import UUID

import msgspec

from contracts import ids
from operations.postgres import ddl
from operations.postgres.compare import COLUMNS, Difference, between, order_column
from operations.replay import LocalStates, Parts, Replay
from operations.shares import Progress
from sinks.schema import TABLES
from streams.lag import Lag

ORDERS_AT_ONCE: Final = 2_000
_LAST: Final = (1 << 128) - 1
ROUNDS: Final = 10
"""Comparisons after which an order whose live rows still change is counted as inconclusive."""
VALUES: Final = 200
"""How many distinct pairs of values are counted for one column, so that times or ids don't fill the memory.
"""

Differ = Callable[[Sequence[str]], Awaitable[list[Difference]]]
"""Takes some thousands of order ids at most, and returns the rows of these orders that differ."""


@dataclass
class Changes:
    """The differences of one table.

    `columns` counts, for each column, the rows that differ in it. `values` counts the same rows by (actual,
    expected), for the first VALUES pairs of each column.
    """

    missing: int = 0
    """Rows that are expected and aren't there."""
    unexpected: int = 0
    """Rows that are there and aren't expected."""
    different: int = 0
    """Rows that are there and expected, with other values."""
    columns: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[tuple[str | None, str | None]]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.missing + self.unexpected + self.different

    def add(self, difference: Difference) -> None:
        if difference.actual is None:
            self.missing += 1
        elif difference.expected is None:
            self.unexpected += 1
        else:
            self.different += 1
        for column, actual, expected in difference.columns():
            self.columns[column] += 1
            values = self.values.setdefault(column, Counter())
            if (actual, expected) in values or len(values) < VALUES:
                values[actual, expected] += 1

    def take_over(self, other: Changes) -> None:
        """Count those of another share too."""
        self.missing += other.missing
        self.unexpected += other.unexpected
        self.different += other.different
        self.columns.update(other.columns)
        for column, of_column in other.values.items():
            values = self.values.setdefault(column, Counter())
            for pair, count in of_column.items():
                if pair in values or len(values) < VALUES:
                    values[pair] += count


@dataclass
class Differences:
    """The result of a comparison of all orders."""

    compared: int = 0
    """Orders that were compared."""
    orders: int = 0
    """Orders that differ."""
    inconclusive: int = 0
    """Orders that differed in every comparison and kept changing, or whose records no worker takes in."""
    tables: dict[str, Changes] = field(default_factory=lambda: {table: Changes() for table in TABLES})
    examples: list[Difference] = field(default_factory=list)
    lag: int = 0
    """Records that the group hadn't committed when it stopped making progress; 0 if it kept up."""

    @property
    def rows(self) -> int:
        return sum(changes.rows for changes in self.tables.values())

    def add(self, differences: Sequence[Difference], examples: int) -> None:
        """Count the differences of one order, and keep them as examples while there are fewer than
        `examples`."""
        self.orders += 1
        for difference in differences:
            self.tables[difference.table].add(difference)
        self.examples += differences[: max(0, examples - len(self.examples))]


def put_together(shares: Sequence[Differences], examples: int) -> Differences:
    """Return the differences of all shares as one, with `examples` of them, those of the lowest order ids
    first."""
    if len(shares) == 1:
        return shares[0]
    whole = Differences(
        compared=sum(each.compared for each in shares),
        orders=sum(each.orders for each in shares),
        inconclusive=sum(each.inconclusive for each in shares),
        lag=max(each.lag for each in shares),
    )
    for each in shares:
        for table, changes in each.tables.items():
            whole.tables[table].take_over(changes)
    in_order = heapq.merge(*(each.examples for each in shares), key=attrgetter("order_id"))
    whole.examples += islice(in_order, examples)
    return whole


class _Suspects:
    """Orders that differed, with fingerprints of their live rows, in a temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="orders-suspects-")  # noqa: SIM115 - closed in close()
        self.count = 0

    def add(self, order_id: str, fingerprint: str) -> None:
        self._file.write(f"{order_id} {fingerprint}\n".encode())
        self.count += 1

    def read(self, at_once: int) -> Iterable[dict[str, str]]:
        self._file.seek(0)
        fingerprints: dict[str, str] = {}
        for line in self._file:
            order_id, _, fingerprint = line.decode().rstrip("\n").partition(" ")
            fingerprints[order_id] = fingerprint
            if len(fingerprints) == at_once:
                yield fingerprints
                fingerprints = {}
        if fingerprints:
            yield fingerprints

    def close(self) -> None:
        self._file.close()


class Replayed(Protocol):
    """What a comparison asks of a replay: see operations.replay.Replay."""

    async def lag(self) -> Lag:
        """Return the group's lag now."""

    async def reached(self, lag: Lag) -> tuple[Lag, bool]:
        """Wait until the group has committed all that was in the logs at `lag`."""

    async def catch_up(self, lag: Lag) -> None:
        """Replay what is committed in `lag`, or more of what is committed."""


class Compared(NamedTuple):
    """How many orders were compared, and their rows that differ, those of an order together."""

    orders: int
    differences: list[Difference]


async def compare(
    replay: Replayed,
    first: AsyncIterator[Compared],
    differ: Differ,
    *,
    total: int,
    examples: int,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda what: None,
) -> Differences:
    """Compare all orders as this module's docstring says. `first` is the first comparison, of about `total`
    orders.

    It replays what is new in the log between two comparisons. Blocks; raises what the servers and
    Replay.catch_up raise.
    """
    result = Differences()
    suspects = _Suspects()
    try:
        say("comparing rows")
        async for compared in first:
            for order_id, fingerprint, _ in _by_order(compared.differences):
                suspects.add(order_id, fingerprint)
            result.compared += compared.orders
            progress(result.compared, max(total, result.compared))
        for _ in range(ROUNDS):
            if not suspects.count:
                break
            say(f"comparing {suspects.count:,} orders again")
            lag, complete = await replay.reached(await replay.lag())
            await replay.catch_up(lag)
            result.lag = sum(position.lag for position in lag.values()) if not complete else 0
            again, before = _Suspects(), suspects
            try:
                for fingerprints in before.read(ORDERS_AT_ONCE):
                    for order_id, fingerprint, differences in _by_order(await differ(list(fingerprints))):
                        unchanged = fingerprint == fingerprints[order_id]
                        if unchanged and (complete or not any(map(_ahead, differences))):
                            result.add(differences, examples)
                        else:
                            again.add(order_id, fingerprint)
            finally:
                suspects = again
                before.close()
            if not complete:
                break
        result.inconclusive = suspects.count
    finally:
        suspects.close()
    return result


def _by_order(differences: Iterable[Difference]) -> Iterable[tuple[str, str, list[Difference]]]:
    """Group differences by order: (order, fingerprint of its live rows that differ, its differences)."""
    ordered = sorted(differences, key=lambda each: (each.order_id, each.key))
    for order_id, group in groupby(ordered, key=lambda each: each.order_id):
        of_order = list(group)
        rows = msgspec.msgpack.encode([(each.key, each.actual) for each in of_order])
        yield order_id, hashlib.blake2b(rows, digest_size=16).hexdigest(), of_order


def _ahead(difference: Difference) -> bool:
    """Tell whether the live row may come from records that aren't committed: it is newer than expected, or
    not expected."""
    if difference.actual is None:
        return False
    if difference.expected is None:
        return True
    version = COLUMNS[difference.table].index("version")
    return int(difference.actual[version] or 0) > int(difference.expected[version] or 0)


async def compared_by_id(
    replay: Replay, states: LocalStates, connection: ddl.Connection, differ: Differ
) -> AsyncGenerator[Compared]:
    """Compare all orders of a replay, then those of its share that only the live tables hold."""
    async for order_ids in _all_orders(replay, states, connection):
        yield Compared(len(order_ids), await differ(order_ids))


async def _all_orders(
    replay: Replay, states: LocalStates, connection: ddl.Connection
) -> AsyncIterator[list[str]]:
    """Yield the ids of all orders of the replay, then of those of its share that only the live tables
    hold."""
    for replayed in states.states(ORDERS_AT_ONCE):
        yield [ids.text(raw_id) for raw_id in replayed]
    for table in TABLES:
        last: Any = "00000000-0000-0000-0000-000000000000"
        column = order_column(table)
        while True:
            rows = await connection.fetch(
                f"SELECT DISTINCT {column} FROM public.{table} WHERE {column} > $1 ORDER BY {column} LIMIT"
                f" {ORDERS_AT_ONCE}",
                last,
            )
            if not rows:
                break
            replayed_states = states.get([row[0].bytes for row in rows])
            only_live = [
                str(row[0])
                for row, state in zip(rows, replayed_states, strict=True)
                if state is None and replay.owns(row[0].bytes)
            ]
            if only_live:
                yield only_live
            last = rows[-1][0]


async def compared_in_ranges(
    parts: Parts, connection: ddl.Connection, schema: str
) -> AsyncGenerator[Compared]:
    """Compare all orders in `schema`, whose states are in `parts`, and those that only the live tables hold:
    a range of ids at a time, each with about ORDERS_AT_ONCE orders."""
    parts.open()
    try:
        start = 0
        ids_in_order = parts.ids()
        while True:
            expected = set(islice(ids_in_order, ORDERS_AT_ONCE))
            end = int.from_bytes(max(expected)) if len(expected) == ORDERS_AT_ONCE else _LAST
            orders = len(expected)
            async for differences in between(connection, schema, UUID(int=start), UUID(int=end)):
                rows = {(each.table, each.order_id) for each in differences if each.expected is None}
                orders += sum(UUID(order_id).bytes not in expected for _, order_id in rows)
                yield Compared(orders, differences)
                orders = 0
            if end == _LAST:
                return
            start = end + 1
    finally:
        parts.close()


async def estimate(connection: ddl.Connection) -> int:
    """Return how many orders there are, by Postgres's statistics. Blocks."""
    return int(
        await connection.fetchval(
            "SELECT coalesce(sum(n_live_tup), 0)::bigint FROM pg_stat_all_tables JOIN pg_inherits ON inhrelid"
            " = relid WHERE inhparent = 'public.orders_order'::regclass"
        )
    )
