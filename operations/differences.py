"""Compare the rows that a replay of the log expects with the actual, live rows, while the pipeline goes on.

An order may differ only because workers have changed it since it was replayed. So orders that differ are
compared again after the replay has caught up. A difference counts when the live rows are still what they were
in the first comparison and the replay holds everything that was in the log by then, since live rows hold
nothing else. Orders whose live rows changed are compared once more, up to ROUNDS times. Memory doesn't grow
with the number of differences: the orders to be compared again are kept in a file.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import IO, Any, Final

import msgspec

from contracts import ids
from operations.postgres import ddl
from operations.postgres.compare import COLUMNS, Difference, order_column
from operations.replay import LocalStates, Progress, Replay
from sinks.schema import TABLES

ORDERS_AT_ONCE: Final = 2_000
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


async def compare(
    replay: Replay,
    states: LocalStates,
    connection: ddl.Connection,
    differ: Differ,
    *,
    examples: int,
    progress: Progress = lambda done, total: None,
    say: Callable[[str], None] = lambda what: None,
) -> Differences:
    """Compare all orders of the log and of the live tables, as this module's docstring says.

    It replays what is new in the log between two comparisons. Blocks; raises what the servers and
    Replay.catch_up raise.
    """
    result = Differences()
    suspects = _Suspects()
    try:
        say("comparing rows")
        total = await _estimate(connection)
        async for order_ids in _all_orders(states, connection):
            for order_id, fingerprint, _ in _by_order(await differ(order_ids)):
                suspects.add(order_id, fingerprint)
            result.compared += len(order_ids)
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


async def _all_orders(states: LocalStates, connection: ddl.Connection) -> AsyncIterator[list[str]]:
    """Yield the ids of all orders of the replay, then of those that only the live tables hold."""
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
                str(row[0]) for row, state in zip(rows, replayed_states, strict=True) if state is None
            ]
            if only_live:
                yield only_live
            last = rows[-1][0]


async def _estimate(connection: ddl.Connection) -> int:
    return int(
        await connection.fetchval(
            "SELECT coalesce(sum(n_live_tup), 0)::bigint FROM pg_stat_all_tables JOIN pg_inherits ON inhrelid"
            " = relid WHERE inhparent = 'public.orders_order'::regclass"
        )
    )
