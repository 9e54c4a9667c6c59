"""Rows as PostgreSQL takes them with the least work: each column as one array.

Where native.c is compiled, in the server's own binary format: it parses no text then, and nobody here looks
at each value in Python (docs/decisions/0065). Else as the text of an array. Values are what rows hold
(domain.rows): ids, amounts and times as text, None for NULL. Never blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

import asyncpg
import sqlalchemy as sa
from msgspec import Struct, structs

import compiled

UUID, TEXT, NUMERIC, INTEGER, TIME = b"utniz"
"""How a column's values are written; native.c knows them by these."""
_TYPES: Final = {
    UUID: ("uuid", 2951),
    TEXT: ("text", 1009),
    NUMERIC: ("numeric", 1231),
    INTEGER: ("int4", 1007),
    TIME: ("timestamptz", 1185),
}
"""Their type, and the number of its arrays, which is the same in every database."""
_native: Final = compiled.native


def kind_of(column: sa.Column[Any]) -> int:
    """How a column of ours is written: an enum as text."""
    for type_, kind in ((sa.Uuid, UUID), (sa.Numeric, NUMERIC), (sa.Integer, INTEGER), (sa.DateTime, TIME)):
        if isinstance(column.type, type_):
            return kind
    return TEXT


def type_of(kind: int) -> str:
    """The type of such values in SQL, before they are cast to the column's."""
    return _TYPES[kind][0]


def pack(rows: Sequence[tuple[Any, ...]] | Sequence[Struct], kinds: bytes) -> Sequence[bytes | str]:
    """Return one array for each column of the rows, at least one, of these kinds. Pure.

    `rows`: tuples, or structs of one class, whose fields are the columns. Raises ValueError or TypeError, if
    native.c is there, for a value that isn't of its column's kind.
    """
    if _native is not None:
        packed: list[bytes] = _native.pack_columns(list(rows), kinds)
        return packed
    return texts(rows, kinds)


def texts(rows: Sequence[tuple[Any, ...]] | Sequence[Struct], kinds: bytes) -> list[str]:
    """Return the same as the texts of arrays, which any connection takes as such. Pure."""
    values = [structs.astuple(row) if isinstance(row, Struct) else row for row in rows]
    return [_literal(*column) for column in zip(kinds, zip(*values, strict=True), strict=True)]


def _literal(kind: int, values: Iterable[Any]) -> str:
    write = _quoted if kind == TEXT else str
    return "{" + ",".join(["NULL" if value is None else write(value) for value in values]) + "}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def accept(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """Let statements that are prepared on a connection from now on take what pack() returns, where they
    take an array of one of its types. They still take a list there.
    """
    # asyncpg has a public way for an array's elements alone, at a call each.
    settings = connection._protocol.get_settings()  # type: ignore[attr-defined]
    form = "text" if _native is None else "binary"
    for kind, (name, number) in _TYPES.items():
        settings.add_python_codec(
            number, f"_{name}", "pg_catalog", [], "scalar", _encoder(kind), _unread, form
        )


def _encoder(kind: int) -> Callable[[bytes | str | Iterable[Any]], bytes | str]:
    def encode(value: bytes | str | Iterable[Any]) -> bytes | str:
        if isinstance(value, (bytes, str)):
            return value
        return pack([(str(each) if kind == UUID else each,) for each in value], bytes([kind]))[0]

    return encode


def _unread(value: object) -> None:
    raise NotImplementedError("arrays are written to these connections, and none is read")
