"""Text files as rows: NDJSON, and CSV as people have it.

CSV is read as RFC 4180 has it, so that a quoted cell may hold line breaks, where the whole file can be read
so without contradiction. Where it can't (a quote that isn't closed, say), every line is a record by itself:
an open quote never takes in the lines behind it.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Collection, Iterator
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from contracts import errors
from contracts.bulk import EVENT_BYTES
from contracts.errors import Refused, SourceError
from operations.submit.files import Bounds, require_columns

_BOM: Final = b"\xef\xbb\xbf"
_LOOKED_AT: Final = 1 << 16
"""Characters of a line that is too long in which its order's id is looked for."""


class Row(NamedTuple):
    """One record of a file; `error` if it isn't one."""

    line: int
    values: dict[str, Any]
    error: Refused | None = None
    raw: bytes | None = None
    """Its JSON as it came."""
    order: bytes | None = None
    """Of orders that are a row an item: the order's 16 id bytes. None: that can't be told."""
    perhaps: tuple[bytes, ...] = ()
    """Then: the ids that stand where its order's should.
    It belongs to one of these, if one is an order of the file.
    """


class Record(NamedTuple):
    """A record of CSV. `why` it can't be read; `cells` is empty where not even they can be told apart;
    `text` as it stands there.
    """

    line: int
    cells: list[str]
    why: Refused | None
    text: str
    whole: bool = True


class _Torn(Exception):
    """The record that begins in this line has line breaks in it, and can't be meant so."""

    def __init__(self, line: int) -> None:
        self.line = line


def uuid_of(value: Any) -> bytes | None:
    """An id, however it is written (case, dashes, braces, blanks, quotes around it). Never raises."""
    try:
        return UUID(value.strip(" \t\r\n\xa0\ufeff\"'")).bytes
    except (ValueError, AttributeError):
        return None


def _uuids(text: str) -> Iterator[bytes]:
    """Every id that may be meant by a text, also one that something else is glued to."""
    for run in re.findall(r"[0-9a-f]{32,}", text.lower().replace("-", "")):
        yield from (bytes.fromhex(run[n : n + 32]) for n in range(min(len(run) - 31, 64)))


def twice(names: list[str]) -> str | None:
    """The first name that stands twice, but for case and blanks around it; a column without a name may."""
    seen: set[str] = set()
    for name in names:
        folded = name.strip().casefold()
        if folded and folded in seen:
            return name
        seen.add(folded)
    return None


def ndjson(content: io.BufferedReader) -> Iterator[Row]:
    """Rows of NDJSON. Blank lines are none."""
    for number, line, cut in _lines(content):
        values: Any = {}
        refused: Refused | None = None
        if not line.strip():
            continue
        try:
            values = {} if cut else msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeError) as error:
            refused = Refused(errors.NOT_JSON, str(error))
        except RecursionError:
            refused = Refused(errors.NOT_JSON, "nested too deep")
        if cut:
            refused = _too_long()
        elif not isinstance(values, dict):
            values, refused = {}, Refused(errors.FIELD_MALFORMED, "$: not an object")
        yield Row(number, values, refused, line)


class Csv:
    """A file of CSV: its `columns`, and its rows as often as they are asked for.
    Blocks; what it reads stays where it is.
    """

    def __init__(
        self,
        path: str,
        content: io.BufferedReader,
        bounds: Bounds,
        *,
        delimiter: str = ",",
        foreign: bool = False,
        encoding: str = "UTF-8",
    ) -> None:
        """Read the whole file once. Raises SourceError if it has no header, or one with a name twice, or too
        many.

        `foreign`: the columns are somebody else's. Names may stand twice, empty cells beyond the header say
        nothing, and which lines a quote swallowed is told by their cells. `encoding` stands in errors: the
        content is UTF-8.
        """
        csv.field_size_limit(EVENT_BYTES)
        self._content, self._bounds = content, bounds
        self._delimiter, self._foreign, self._encoding = delimiter, foreign, encoding
        self.torn: int | None = None
        """The line for whose sake quoted line breaks aren't read."""
        self.columns: list[str] = []
        try:
            self._begin(path)
            for _ in self._records():
                pass
        except _Torn as torn:
            self.torn = torn.line
            self._begin(path)

    def _begin(self, path: str) -> None:
        header = next(self._records(), None)
        if header is not None and header.why is not None:
            raise SourceError(f"{path}: its first line is no header of CSV ({header.why.detail})")
        if header is None or not any(cell.strip() for cell in header.cells):
            raise SourceError(
                f"{path}: no header, the file or its first line is empty; nothing of it was sent",
                "give a file whose first line names its columns",
            )
        self.columns = [name.strip() for name in header.cells]
        require_columns(path, self.columns, self._bounds)
        repeated = None if self._foreign else twice(self.columns)
        if repeated is not None:
            raise SourceError(
                f"{path}: column {repeated!r} stands twice in its first line, which is the header; nothing of"
                " it was sent"
            )

    def rows(self, allowed: Collection[str], order_id: int | None = None) -> Iterator[Row]:
        """Every record but the header, with the cells of known columns that aren't empty.
        A record without any text is none.

        `order_id`: the column that says to which order a row belongs, where a row is an item.
        """
        records = self._records()
        next(records, None)
        for record in records:
            values: dict[str, Any] = {}
            refused = record.why
            try:
                if refused is None:
                    values = {
                        name: _cell(name, text)
                        for name, text in zip(self.columns, record.cells, strict=True)
                        if text and name in allowed
                    }  # fmt: skip
            except Refused as why:
                refused = why
            if order_id is None:
                yield Row(record.line, values, refused)
                continue
            order, perhaps = self._order_of(record, order_id)
            if order is None and refused is None:
                refused = without_order(record.cells[order_id])
            yield Row(record.line, values, refused, None, order, perhaps)

    def records(self) -> Iterator[Record]:
        """Every record but the header. A record without any text is none."""
        records = self._records()
        next(records, None)
        yield from records

    def _order_of(self, record: Record, at: int) -> tuple[bytes | None, tuple[bytes, ...]]:
        """Return the order of a record: certain if it has as many cells as the header, else only possible."""
        width = len(self.columns)
        if len(record.cells) == width:
            return uuid_of(record.cells[at]), ()
        pieces = record.cells or record.text[:_LOOKED_AT].split(",")
        if record.whole and not record.cells and len(pieces) == width:
            return uuid_of(pieces[at]), ()
        moved = len(pieces) - width if record.whole else 0
        if moved >= width - 1:  # two lines or more, and who knows of how many orders
            return None, ()
        return None, tuple(_uuids(",".join(pieces[max(0, at + min(0, moved)) : at + max(0, moved) + 1])))

    def _records(self) -> Iterator[Record]:
        """Every record, the header first. Raises _Torn if line breaks are read and one can't be meant so."""
        self._content.seek(0)
        lines = _lines(self._content)
        for number, line, cut in lines:
            if not line.strip():
                continue
            held = [_text(line)]
            if cut:
                yield Record(number, [], _too_long(), held[0], whole=False)
                continue
            record = self._record(number, held, lines)
            if len(held) > 1 and (record.why is not None or self._swallows(record.cells, held)):
                raise _Torn(number)
            if record.why is not None or any(cell.strip() for cell in record.cells):
                yield record

    def _swallows(self, cells: list[str], held: list[str]) -> bool:
        """Tell whether a cell with line breaks holds lines of the file, because its quotes don't belong
        together: an id stands by itself in it, or each line by itself has cells enough for a record.
        """
        if self._foreign:
            most = len(self.columns) - 1
            return most > 0 and all(line.count(self._delimiter) >= most for line in held if line.strip())
        return any(
            uuid_of(piece) is not None
            for cell in cells
            if "\n" in cell
            for piece in re.split(r"[,\r\n]", cell)
        )

    def _record(self, number: int, held: list[str], lines: Iterator[tuple[int, bytes, bool]]) -> Record:
        cells: list[str] = []
        why: Refused | None = None
        try:
            if self.torn is not None and held[0].count('"') % 2:
                more = (
                    ""
                    if number == self.torn
                    else f", and quoted line breaks aren't read because of line {self.torn}"
                )
                raise Refused(errors.FIELD_MALFORMED, f"a quote isn't closed in its line{more}")
            rest = lines if self.torn is None else iter(())
            cells = next(csv.reader(_joined(held, rest), delimiter=self._delimiter, strict=True))
            while self._foreign and len(cells) > len(self.columns) > 0 and not cells[-1].strip():
                del cells[-1]
            if self.columns and len(cells) != len(self.columns) and any(cell.strip() for cell in cells):
                why = Refused(errors.FIELD_MALFORMED, f"{len(cells)} cells, not {len(self.columns)}")
            if any(cell[:1] in (" ", "\t") and cell.lstrip().startswith('"') for cell in cells):
                why = Refused(errors.FIELD_MALFORMED, "a blank before the quote that a cell begins with")
        except Refused as refused:
            why = refused
        except csv.Error as error:
            why = Refused(errors.FIELD_MALFORMED, _told(error))
        text = held[0] if len(held) == 1 else "".join(held)
        if not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text):
            remedy = "save it as UTF-8, or name how it is written in a mapping ([file] encoding)"
            why = Refused(errors.FIELD_MALFORMED, f"not {self._encoding}: {remedy}")
        elif "\0" in text:
            why = Refused(errors.FIELD_MALFORMED, "it holds a NUL")
        return Record(number, cells, why, text)


def _joined(held: list[str], lines: Iterator[tuple[int, bytes, bool]]) -> Iterator[str]:
    """The text of a record's first line, and of as many more as are asked for, which `held` keeps."""
    yield held[0]
    size = len(held[0])
    for _, line, cut in lines:
        held.append(_text(line))
        size += len(line)
        if cut or size > EVENT_BYTES:
            raise csv.Error(f"above {EVENT_BYTES:,} bytes")
        yield held[-1]


def _lines(content: io.BufferedReader) -> Iterator[tuple[int, bytes, bool]]:
    """Number and bytes of each line, its end included; of one that is too long to be an
    event how it begins, and True.
    """
    number = 0
    while line := content.readline(EVENT_BYTES + 2):
        number += 1
        if number == 1:
            line = line.removeprefix(_BOM)
        cut = len(line) > EVENT_BYTES + 1 and not line.endswith(b"\n")
        rest = line
        while cut and rest and not rest.endswith(b"\n"):
            rest = content.readline(1 << 20)
        yield number, line, cut


def _text(line: bytes) -> str:
    """Decode a line; bytes that aren't UTF-8 become lone surrogates, so that the cells around them can be
    read."""
    return line.decode("utf-8", "surrogateescape")


def _told(error: csv.Error) -> str:
    """Return the library's message for somebody who doesn't write Python."""
    said = str(error)
    if said == "unexpected end of data":
        return "a quote isn't closed"
    if said.startswith("new-line character"):
        return "a carriage return that ends no line: save it with LF or CRLF"
    return f"not CSV: {said}"


def _too_long() -> Refused:
    return Refused(errors.RECORD_TOO_LARGE, f"a line above {EVENT_BYTES:,} bytes")


def without_order(text: Any) -> Refused:
    """Why a row is refused that doesn't say to which order it belongs."""
    if not text:
        return Refused(errors.FIELD_MISSING, "$.order_id: missing")
    return Refused(errors.FIELD_MALFORMED, "$.order_id: not a UUID")


def _cell(name: str, text: str) -> Any:
    """A cell as the type of its field. What is of no such type stays text, and is refused as such."""
    if name == "quantity" and text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    if name == "restock" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if name == "items":
        try:
            return msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError) as error:
            raise Refused(errors.FIELD_MALFORMED, f"$.items: not JSON ({error})") from None
        except RecursionError:
            raise Refused(errors.FIELD_MALFORMED, "$.items: nested too deep") from None
    return text
