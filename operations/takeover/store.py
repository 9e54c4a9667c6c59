"""The events of a takeover on the local disk, brought together by order."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from decimal import Decimal
from itertools import groupby
from typing import Final, NamedTuple

from operations.submit.files import no_room

_TABLES: Final = (
    "CREATE TABLE events (order_id BLOB, kind INTEGER, file INTEGER, line INTEGER, value BLOB,"
    " sent INTEGER DEFAULT 1)",
    "CREATE TABLE orders (order_id BLOB PRIMARY KEY, status TEXT, version INTEGER, content TEXT,"
    " refunded TEXT) WITHOUT ROWID",
    "CREATE TABLE direct (topic TEXT, order_id BLOB, value BLOB)",
)
_AT_ONCE: Final = 1000


class Kept(NamedTuple):
    """A line as an event: data, id and time as JSON. `kind` and `file` are numbers."""

    row: int
    order_id: bytes
    kind: int
    file: int
    line: int
    value: bytes


class Expected(NamedTuple):
    """What an order is once it's taken in. `refunded`: what is to be told as paid back, None: nothing."""

    order_id: bytes
    status: str
    version: int
    content: str
    refunded: str | None = None


def content_of(user_id: bytes, currency: str, total: Decimal) -> str:
    """What an order that was told and its row have to agree in, however much happens to it. Pure."""
    return f"{user_id.hex()} {total.normalize():f} {currency}"


class Store:
    """Events, and what comes of them. Every call blocks for the local disk and raises SourceError when there
    is no room below $TMPDIR.
    """

    def __init__(self, stack: ExitStack) -> None:
        """Nameless, and gone when `stack` is closed."""
        self._db = stack.enter_context(closing(sqlite3.connect("", isolation_level=None)))
        with _room():
            for statement in (*_TABLES, "BEGIN"):
                self._db.execute(statement)

    def add(self, order_id: bytes, kind: int, file: int, line: int, value: bytes) -> None:
        """Keep a line."""
        with _room():
            self._db.execute(
                "INSERT INTO events (order_id, kind, file, line, value) VALUES (?, ?, ?, ?, ?)",
                (order_id, kind, file, line, value),
            )

    def by_order(self) -> Iterator[list[Kept]]:
        """Every order's lines, in the order in which they are sent."""
        with _room():
            self._db.execute("CREATE INDEX by_order ON events (order_id, kind, file, line)")
            rows = self._db.execute(
                "SELECT rowid, order_id, kind, file, line, value FROM events"
                " ORDER BY order_id, kind, file, line"
            )
            for _, lines in groupby(map(Kept._make, rows), key=lambda kept: kept.order_id):
                yield list(lines)

    def leave_out(self, rows: Iterable[int]) -> None:
        """Don't send these lines."""
        with _room():
            self._db.executemany("UPDATE events SET sent = 0 WHERE rowid = ?", [(row,) for row in rows])

    def left_out(self, file: int) -> Iterator[int]:
        """The lines of a file that aren't sent."""
        rows = self._db.execute("SELECT line FROM events WHERE file = ? AND NOT sent ORDER BY line", (file,))
        yield from (line for (line,) in rows)

    def expect(self, orders: Iterable[Expected]) -> None:
        """Keep what orders come to."""
        with _room():
            self._db.executemany("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", orders)

    def send_directly(self, events: Iterable[tuple[str, bytes, bytes]]) -> None:
        """Keep events that no bulk job brings: topic, order, value."""
        with _room():
            self._db.executemany("INSERT INTO direct VALUES (?, ?, ?)", events)

    def of_file(self, file: int) -> Iterator[tuple[bytes, bytes, str | None]]:
        """What a file sends, in its lines' order: order, value, and what its order paid back, where that is
        to be told."""
        with _room():
            yield from self._db.execute(
                "SELECT e.order_id, e.value, o.refunded FROM events e LEFT JOIN orders o USING (order_id)"
                " WHERE e.file = ? AND e.sent ORDER BY e.line",
                (file,),
            )

    def direct(self) -> Iterator[tuple[str, bytes, bytes]]:
        """Events that no bulk job brings, in the order in which they were kept."""
        yield from self._db.execute("SELECT topic, order_id, value FROM direct ORDER BY rowid")

    def expected(self) -> Iterator[list[Expected]]:
        """What orders come to, some at a time."""
        cursor = self._db.execute(
            "SELECT order_id, status, version, content, refunded FROM orders ORDER BY order_id"
        )
        while rows := cursor.fetchmany(_AT_ONCE):
            yield [Expected(*row) for row in rows]


@contextmanager
def _room() -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        raise no_room(error) from error
