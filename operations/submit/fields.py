"""Cells of a line of somebody's file as values of an event's fields, by a mapping (docs/mapping.md). Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar
from uuid import UUID

from contracts import errors, money, times
from contracts.errors import Refused
from operations.submit import cells
from operations.submit.cells import RFC3339, Numbers, Unclear, made_id, moment
from operations.submit.mapping import Choice, Id, Number, Text, Time, times_of

T = TypeVar("T")


class Source(Protocol):
    """What is the same for all cells of a file."""

    @property
    def how(self) -> Numbers:
        """How its numbers are written."""

    def namespace(self) -> bytes:
        """The namespace of made ids, 16 bytes."""


class Line(NamedTuple):
    """A record of the file: its line, and the cells of mapped columns that aren't empty."""

    number: int
    cells: dict[str, str]


class Unreadable(Exception):
    """Why a line, or an order, can't be read, and in which line that is."""

    def __init__(self, line: int, code: str, detail: str) -> None:
        super().__init__(detail)
        self.line, self.code, self.detail = line, code, detail


class Fields:
    """Reads cells as values. Its methods raise Unreadable, naming line, column and field."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self.digits = 0
        """Decimals of the currency."""

    def text(self, field: Text | Id, name: str, line: Line) -> str:
        """Return a text that has to be there."""
        text = self.maybe(field, line)
        if text is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"{where(field, name)}: empty")
        return text

    @staticmethod
    def maybe(field: Any, line: Line) -> str | None:
        """Return a text; None: its cells are empty."""
        if field.constant is not None:
            return str(field.constant)
        names = [field.column] if field.column is not None else getattr(field, "first_of", None) or []
        return next((line.cells[name] for name in names if name in line.cells), None)

    def id_of(self, field: Id, name: str, line: Line) -> str:
        """Return an id, as it stands there or made."""
        if field.columns is not None:
            missing = next((each for each in field.columns if each not in line.cells), None)
            if missing is not None:
                raise Unreadable(line.number, errors.FIELD_MISSING, f"column {missing!r} ($.{name}): empty")
            values = [line.cells[each] for each in field.columns]
        else:
            values = [self.text(field, name, line)]
        if any(value.startswith("=") for value in values):
            raise Unreadable(
                line.number,
                errors.FIELD_MALFORMED,
                f"{where(field, name)}: a spreadsheet's formula; export its value",
            )
        if field.uuid5 is not None:
            return made_id(self._source.namespace(), field.uuid5, values)
        try:
            return str(UUID(values[0]))
        except ValueError:
            raise Unreadable(
                line.number,
                errors.FIELD_MALFORMED,
                f"{where(field, name)}: not a UUID; with uuid5 in the mapping one is made of it",
            ) from None

    @staticmethod
    def given(field: Id, line: Line) -> bool:
        """Tell whether any cell of an id is there."""
        names = field.columns or field.first_of or [name for name in (field.column,) if name is not None]
        return field.constant is not None or any(name in line.cells for name in names)

    def currency(self, field: Text, line: Line) -> str:
        """Return the currency of the amounts that are read from here on. Raises Refused."""
        currency = self.text(field, "currency", line)
        digits = money.DIGITS.get(currency)
        if digits is None:
            raise Refused(errors.CURRENCY_UNKNOWN, f"{where(field, 'currency')}: not ISO 4217")
        self.digits = digits
        return currency

    def time(self, field: Time, line: Line, name: str = "time") -> str:
        """Return a time as RFC 3339."""
        if field.constant is not None:
            return field.constant
        text = self.text(Text(column=field.column), name, line)
        read = self.clear(line, field, name, lambda: moment(text, times_of(field), self._source.how))
        if field.format == RFC3339:
            try:
                times.parse(read, "")
            except Refused:
                detail = f"{where(field, name)}: {cells.shown(read)} is no RFC 3339 time with its offset"
                hint = "; the mapping says in which format and zone others are"
                raise Unreadable(line.number, errors.FIELD_MALFORMED, detail + hint) from None
        return read

    def clear(self, line: Line, field: Any, name: str, read: Callable[[], T]) -> T:
        """Return what `read` reads of a cell."""
        try:
            return read()
        except Unclear as error:
            raise Unreadable(line.number, errors.FIELD_MALFORMED, f"{where(field, name)}: {error}") from None

    def money(self, field: Any, name: str, line: Line) -> int | None:
        """Return an amount in minor units; None: its cell is empty."""
        if field.constant is not None:
            return self.clear(
                line, field, name, lambda: cells.amount(field.constant, cells.Numbers("."), self.digits)
            )
        text = line.cells.get(field.column)
        if text is None:
            return None
        return self.clear(line, field, name, lambda: cells.amount(text, self._source.how, self.digits))

    def column(self, column: str, name: str, line: Line) -> int:
        """Return an amount that has to be there."""
        amount = self.money(Number(column=column), name, line)
        if amount is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"column {column!r} ($.{name}): empty")
        return amount

    def choice(self, field: Choice, name: str, line: Line) -> bool:
        """Return yes or no."""
        if field.constant is not None:
            return field.constant
        text = line.cells.get(field.column or "")
        if text is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"column {field.column!r} ({name}): empty")
        for words, answer in ((field.yes, True), (field.no, False)):
            if text.casefold() in [word.casefold() for word in words]:
                return answer
        raise Unreadable(
            line.number,
            errors.FIELD_MALFORMED,
            f"column {field.column!r} ({name}): none of {', '.join([*field.yes, *field.no])}",
        )

    def amount(self, minor: int) -> str:
        """Return an amount as events have it."""
        return money.text(minor, self.digits)

    def quantity(self, field: Number, line: Line) -> int:
        """Return a number of units."""
        text = field.constant if field.constant is not None else line.cells.get(field.column or "")
        if text is None:
            raise Unreadable(line.number, errors.FIELD_MISSING, f"{where(field, 'quantity')}: empty")
        quantity = self.clear(line, field, "quantity", lambda: cells.whole(text, self._source.how))
        if not 1 <= quantity <= 100_000:
            raise Unreadable(
                line.number, errors.FIELD_MALFORMED, f"{where(field, 'quantity')}: not 1 to 100,000"
            )
        return quantity


def where(field: Any, name: str) -> str:
    """Return the column of a field, and the field."""
    names = [getattr(field, "column", None), *(getattr(field, "first_of", None) or [])]
    names += getattr(field, "columns", None) or []
    columns = ", ".join(repr(each) for each in names if each is not None)
    plural = "columns" if "', '" in columns else "column"
    return f"{plural} {columns} ($.{name})" if columns else f"$.{name}, a constant of the mapping"
