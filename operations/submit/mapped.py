"""Somebody's CSV as orders, by a mapping (docs/mapping.md).

Lines of one order are put together wherever they stand. An order is read with all of its lines or not at all.
"""

from __future__ import annotations

import codecs
import io
import re
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import groupby
from typing import Final

import msgspec

from contracts import errors
from contracts.bulk import EVENT_BYTES
from contracts.errors import Refused, SourceError
from contracts.incoming import MOST_ITEMS
from operations.submit.cells import BLANKS
from operations.submit.fields import Line, Unreadable
from operations.submit.files import Bounds, no_room, temporary, write
from operations.submit.mapping import FlatMapping, Mapping
from operations.submit.orders import order
from operations.submit.rows import Csv, Record, Row

_BLOCK: Final = 1 << 20
_BOMS: Final = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_COLUMNS_SHOWN: Final = 30


class MappedCsv:
    """A file of CSV that a mapping reads: the columns that it doesn't name, and its orders."""

    def __init__(
        self, path: str, content: io.BufferedReader, mapping: Mapping, bounds: Bounds, stack: ExitStack
    ) -> None:
        """Read all lines. Blocks; needs room below $TMPDIR for the mapped cells.

        Raises SourceError: the text isn't of its encoding, a column is missing or stands twice, there is no
        room.
        """
        self._mapping = mapping
        table, self._at, self.ignored = opened(path, content, mapping, bounds, stack)
        self._broken: list[Row] = []
        self._lost: int | None = None
        self._db = stack.enter_context(closing(sqlite3.connect("", isolation_level=None)))
        try:
            self._store(table)
        except sqlite3.OperationalError as error:
            raise no_room(error) from error

    def rows(self) -> Iterator[Row]:
        """An order each, in the order of their first lines; then lines that are of no order."""
        stored = self._db.execute(
            "SELECT o.first, l.line, l.cells, l.why FROM orders o JOIN lines l USING (number)"
            " ORDER BY o.first, l.line"
        )
        for first, lines in groupby(stored, key=lambda row: row[0]):
            yield self._row(first, lines)
        yield from self._broken

    def _store(self, table: Csv) -> None:
        run = self._db.execute
        run("CREATE TABLE orders (number BLOB PRIMARY KEY, first INTEGER) WITHOUT ROWID")
        run("CREATE TABLE lines (number BLOB, line INTEGER, cells BLOB, why TEXT)")
        run("BEGIN")
        keys = [self._at[name] for name in self._mapping.key_columns]
        for record in table.records():
            number = self._number(record, keys, len(table.columns))
            if number is None:
                continue
            cells = {
                name: text
                for name, at in self._at.items()
                if at < len(record.cells) and (text := record.cells[at].strip(BLANKS))
            }
            why = None if record.why is None else record.why.detail
            encoded = b"" if why is not None else msgspec.msgpack.encode(cells)
            run("INSERT OR IGNORE INTO orders VALUES (?, ?)", (number, record.line))
            run("INSERT INTO lines VALUES (?, ?, ?, ?)", (number, record.line, encoded, why))
        run("CREATE INDEX numbers ON lines (number, line)")

    def _number(self, record: Record, keys: list[int], width: int) -> bytes | None:
        """Return the number of a record's order; None: it can't be told, and the record is kept as broken."""
        why = record.why
        if len(record.cells) == width:  # none can have moved
            number = [record.cells[at].strip(BLANKS) for at in keys]
            clean = why is None or not re.search("[\0\ud800-\udfff]", "".join(number))
            if all(number) and clean:
                return msgspec.msgpack.encode(number)
            if clean:
                empty = self._mapping.key_columns[[bool(each) for each in number].index(False)]
                detail = f"column {empty!r}: empty, so its order can't be told"
                why = why or Refused(errors.FIELD_MISSING, detail)
        why = why or Refused(errors.FIELD_MALFORMED, "its order can't be told")
        self._broken.append(Row(record.line, {}, why))
        if self._mapping.lines == "item" and self._lost is None:
            self._lost = record.line
        return None

    def _row(self, first: int, stored: Iterator[tuple[int, int, bytes, str | None]]) -> Row:
        lines: list[Line] = []
        size = 0
        try:
            if self._lost is not None:
                raise Refused(
                    errors.FIELD_MALFORMED,
                    f"line {self._lost} may be of this order, too: its order can't be told",
                )
            for _, line, cells, why in stored:
                if why is not None:
                    raise Refused(errors.FIELD_MALFORMED, _in_line(why, line, first))
                size += len(cells)
                lines.append(Line(line, msgspec.msgpack.decode(cells)))
                if self._mapping.lines == "order" and len(lines) > 1:
                    raise Refused(errors.FIELD_MALFORMED, f"line {line} has the same order number")
                if len(lines) > MOST_ITEMS:
                    raise Refused(errors.FIELD_MALFORMED, f"more than {MOST_ITEMS} lines")
                if size > EVENT_BYTES:
                    raise Refused(errors.RECORD_TOO_LARGE, f"above {EVENT_BYTES:,} bytes as JSON")
            return Row(first, order(self._mapping, lines))
        except Unreadable as error:
            return Row(first, {}, Refused(error.code, _in_line(error.detail, error.line, first)))
        except Refused as refused:
            return Row(first, {}, refused)


def opened(
    path: str, content: io.BufferedReader, mapping: Mapping | FlatMapping, bounds: Bounds, stack: ExitStack
) -> tuple[Csv, dict[str, int], list[str]]:
    """A file of CSV as a mapping says it is written, where each column that the mapping names stands, and the
    columns that it doesn't name.

    Blocks. Raises SourceError: the text isn't of its encoding, a column is missing or stands twice, there is
    no room below $TMPDIR.
    """
    encoding = _encoding(path, content, mapping)
    table = Csv(
        path,
        content if encoding == "utf-8" else _as_utf8(path, content, encoding, stack),
        bounds,
        delimiter=mapping.file.delimiter,
        foreign=True,
        encoding=encoding.upper() if encoding.startswith("utf") else encoding,
    )
    at = _positions(path, table.columns, mapping)
    taken = {*at.values()}
    return table, at, [name for n, name in enumerate(table.columns) if name and n not in taken]


def _in_line(detail: str, line: int, first: int) -> str:
    return detail if line == first else f"in line {line}: {detail}"


def _encoding(path: str, content: io.BufferedReader, mapping: Mapping | FlatMapping) -> str:
    """Tell how a file is encoded: by its byte order mark, or as the mapping says. Raises SourceError."""
    start = content.peek(4)[:4]
    marked = next((name for mark, name in _BOMS if start.startswith(mark)), None)
    said = mapping.file.encoding
    if marked is not None and said is not None and said != marked:
        raise SourceError(
            f"{path}: its byte order mark says {marked}, the mapping {said}; nothing of it was sent",
            "correct encoding in [file], or leave it out",
        )
    if said == "utf-16" and marked is None:
        raise SourceError(f"{path}: UTF-16 without a byte order mark; nothing of it was sent")
    return marked or said or "utf-8"


def _as_utf8(path: str, content: io.BufferedReader, encoding: str, stack: ExitStack) -> io.BufferedReader:
    """Copy a file's text as UTF-8; a byte that cp1252 doesn't have stays, and is refused in its line."""
    decoder = codecs.getincrementaldecoder(encoding)("strict" if encoding == "utf-16" else "surrogateescape")
    copy, lines = temporary(stack), 1
    while True:
        block = content.read(_BLOCK)
        try:
            text = decoder.decode(block, final=not block)
            data = text.encode("utf-8", "surrogateescape")
        except UnicodeError:
            raise SourceError(
                f"{path}: not UTF-16 somewhere after line {lines}; nothing of it was sent"
            ) from None
        lines += text.count("\n")
        write(copy, data)
        if not block:
            break
    copy.seek(0)
    return stack.enter_context(io.BufferedReader(copy))


def _positions(path: str, columns: list[str], mapping: Mapping | FlatMapping) -> dict[str, int]:
    """Where each column that a mapping names stands. Raises SourceError: it is missing, or twice."""
    folded = [name.casefold() for name in columns]
    positions: dict[str, int] = {}
    needed = {*mapping.columns(optional=False)}
    for name in mapping.columns():
        count = folded.count(name.strip().casefold())
        if count == 1:
            positions[name] = folded.index(name.strip().casefold())
        elif count > 1:
            raise SourceError(
                f"{path}: column {name!r} stands {count} times in its first line, which is the header;"
                " nothing of it was sent",
                "rename or leave out all but one",
            )
        elif name in needed:
            raise _missing(path, name, columns, mapping)
    return positions


def _missing(path: str, name: str, columns: list[str], mapping: Mapping | FlatMapping) -> SourceError:
    if len(columns) == 1:
        other = next((mark for mark in ",;\t|" if mark in columns[0]), None)
        if other is not None and other != mapping.file.delimiter:
            return SourceError(
                f"{path}: one column only, with {other!r} in its name; nothing of it was sent",
                f"if cells are separated by it, say delimiter = {other!r} in [file] of the mapping",
            )
    there = ", ".join(repr(each) for each in columns[:_COLUMNS_SHOWN])
    more = f" and {len(columns) - _COLUMNS_SHOWN} more" if len(columns) > _COLUMNS_SHOWN else ""
    return SourceError(
        f"{path}: no column {name!r}, which {mapping.name} names; it has {there}{more};"
        " nothing of it was sent",
        "correct the mapping, or the file",
    )
