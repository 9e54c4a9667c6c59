"""What differs between the rows that the history gives and those that are live, while the pipeline goes on.

An order that differs may only have moved on meanwhile, so it is looked at again after the history was folded further. It counts when its
live rows are as they were the first time, and everything that was in the log by then has been folded: live rows hold nothing else. Orders
that moved are looked at once more, and so on. Memory doesn't grow with what differs: suspects are kept in a file.
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
from operations.replay import LocalStates, Progress, Refold
from sinks.schema import TABLES

ORDERS_AT_ONCE: Final = 2_000
ROUNDS: Final = 10
"""After that, what still moves isn't judged."""
VALUES: Final = 200
"""Pairs of values that are counted of a column, so that a column of times or ids doesn't fill the memory."""

Differ = Callable[[Sequence[str]], Awaitable[list[Difference]]]
"""Order ids, some thousands at most -> where their live rows differ."""


@dataclass
class Changes:
    """Of one table. `columns`: rows that differ there; `values`: the same by (live, anew), the first so many pairs."""

    missing: int = 0
    """Rows that the history gives and that aren't live."""
    extra: int = 0
    """Rows that are live and that the history doesn't give."""
    changed: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    values: dict[str, Counter[tuple[str | None, str | None]]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return self.missing + self.extra + self.changed

    def add(self, difference: Difference) -> None:
        if difference.live is None:
            self.missing += 1
        elif difference.anew is None:
            self.extra += 1
        else:
            self.changed += 1
        for column, live, anew in difference.columns():
            self.columns[column] += 1
            values = self.values.setdefault(column, Counter())
            if (live, anew) in values or len(values) < VALUES:
                values[live, anew] += 1


@dataclass
class Differences:
    """What was found. `orders` that differ; `unjudged` ones that went on moving, or whose records nobody takes in."""

    compared: int = 0
    orders: int = 0
    unjudged: int = 0
    tables: dict[str, Changes] = field(default_factory=lambda: {table: Changes() for table in TABLES})
    examples: list[Difference] = field(default_factory=list)
    left: int = 0
    """Records that were not taken in when nobody went on with them."""

    @property
    def rows(self) -> int:
        return sum(changes.rows for changes in self.tables.values())

    def add(self, found: Sequence[Difference], examples: int) -> None:
        """One order's."""
        self.orders += 1
        for difference in found:
            self.tables[difference.table].add(difference)
        self.examples += found[: max(0, examples - len(self.examples))]


class _Suspects:
    """Orders and fingerprints of their live rows, in a temporary file."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(prefix="orders-suspects-")  # noqa: SIM115 - closed in close()
        self.count = 0

    def add(self, order_id: str, mark: str) -> None:
        self._file.write(f"{order_id} {mark}\n".encode())
        self.count += 1

    def read(self, at_once: int) -> Iterable[dict[str, str]]:
        self._file.seek(0)
        some: dict[str, str] = {}
        for line in self._file:
            order_id, _, mark = line.decode().rstrip("\n").partition(" ")
            some[order_id] = mark
            if len(some) == at_once:
                yield some
                some = {}
        if some:
            yield some

    def close(self) -> None:
        self._file.close()


async def compare(
    refold: Refold,
    states: LocalStates,
    connection: ddl.Connection,
    differ: Differ,
    *,
    examples: int,
    progress: Progress = lambda done, whole: None,
    say: Callable[[str], None] = lambda what: None,
) -> Differences:
    """Compare all orders, of the history and of the live tables, folding the history on in between. See above; blocks, and raises what the
    servers raise and catch_up does."""
    found = Differences()
    suspects = _Suspects()
    try:
        say("comparing rows")
        whole = await _estimate(connection)
        async for order_ids in _everybody(states, connection):
            for order_id, mark, _ in _by_order(await differ(order_ids)):
                suspects.add(order_id, mark)
            found.compared += len(order_ids)
            progress(found.compared, max(whole, found.compared))
        for _ in range(ROUNDS):
            if not suspects.count:
                break
            say(f"looking again at {suspects.count:,} orders")
            lag, all_of_it = await refold.reached(await refold.lag())
            await refold.catch_up(lag)
            found.left = sum(position.lag for position in lag.values()) if not all_of_it else 0
            again, suspects_before = _Suspects(), suspects
            try:
                for some in suspects_before.read(ORDERS_AT_ONCE):
                    for order_id, mark, differences in _by_order(await differ(list(some))):
                        if mark == some[order_id] and (all_of_it or not any(map(_ahead, differences))):
                            found.add(differences, examples)
                        else:
                            again.add(order_id, mark)
            finally:
                suspects = again
                suspects_before.close()
            if not all_of_it:
                break
        found.unjudged = suspects.count
    finally:
        suspects.close()
    return found


def _by_order(differences: Iterable[Difference]) -> Iterable[tuple[str, str, list[Difference]]]:
    """(order, fingerprint of the live rows that differ, differences)."""
    ordered = sorted(differences, key=lambda each: (each.order_id, each.key))
    for order_id, group in groupby(ordered, key=lambda each: each.order_id):
        of_order = list(group)
        live = msgspec.msgpack.encode([(each.key, each.live) for each in of_order])
        yield order_id, hashlib.blake2b(live, digest_size=16).hexdigest(), of_order


def _ahead(difference: Difference) -> bool:
    """Whether the live row may come from records that aren't committed: it is newer than what the history gives, or not in it."""
    if difference.live is None:
        return False
    if difference.anew is None:
        return True
    at = COLUMNS[difference.table].index("version")
    return int(difference.live[at] or 0) > int(difference.anew[at] or 0)


async def _everybody(states: LocalStates, connection: ddl.Connection) -> AsyncIterator[list[str]]:
    """Ids of all orders of the history, and of those that only the live tables know."""
    for some in states.states(ORDERS_AT_ONCE):
        yield [ids.text(raw_id) for raw_id in some]
    for table in TABLES:
        last: Any = "00000000-0000-0000-0000-000000000000"
        column = order_column(table)
        while True:
            rows = await connection.fetch(
                f"SELECT DISTINCT {column} FROM public.{table} WHERE {column} > $1 ORDER BY {column} LIMIT {ORDERS_AT_ONCE}", last
            )
            if not rows:
                break
            known = states.get([row[0].bytes for row in rows])
            strangers = [str(row[0]) for row, state in zip(rows, known, strict=True) if state is None]
            if strangers:
                yield strangers
            last = rows[-1][0]


async def _estimate(connection: ddl.Connection) -> int:
    return int(
        await connection.fetchval(
            "SELECT coalesce(sum(n_live_tup), 0)::bigint FROM pg_stat_all_tables JOIN pg_inherits ON inhrelid = relid"
            " WHERE inhparent = 'public.orders_order'::regclass"
        )
    )
