"""Lists of what waits for a person: which there are, their columns and filters, and rows as cells. The same
cells make a page and a file. All pure.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, NamedTuple, get_args
from uuid import UUID

from fastapi import Request

from console.parameters import choice, moment_of, uuid_of
from contracts.printable import printable
from contracts.statuses import AttentionText, RefundCauseText, SuborderStatusText
from queries import worklists
from queries.statements import Query

Kind = Literal[
    "order", "seller", "id", "time", "status", "number", "money", "text", "prose", "personal", "masked"
]
"""How a page shows a cell. personal: free text of other services or customers, for the role support; masked:
the same for others.
"""

AGES: Final = ("1", "3", "7", "30")
"""Days."""


class Column(NamedTuple):
    """A column: its text's name, which is its heading in a file, too; the row's field; how it is shown."""

    name: str
    field: str
    kind: Kind


class Cell(NamedTuple):
    """A value of a row, and how it is shown."""

    kind: Kind
    value: Any


class Rows(NamedTuple):
    """How the rows of a list are found: their statement, and a row of it."""

    query: Callable[[worklists.Filters, worklists.Place | None, int], Query]
    row: Callable[[Sequence[Any]], Any]


class Worklist(NamedTuple):
    """A list. `rows` None: of queries.attention, which begins with the time of `from`. `choices`: filters of
    some values; `ids`: filters by an id.
    """

    name: str
    columns: tuple[Column, ...]
    rows: Rows | None
    choices: dict[str, tuple[str, ...]]
    ids: tuple[str, ...] = ()
    texts: tuple[str, ...] = ("region",)


WORKLISTS: Final = {
    each.name: each
    for each in (
        Worklist(
            "attention",
            (
                Column("since", "since", "time"),
                Column("order", "order_id", "order"),
                Column("kind", "kind", "text"),
                Column("detail", "detail", "prose"),
            ),
            None,
            {"kind": get_args(AttentionText)},
            texts=(),
        ),
        Worklist(
            "late",
            (
                Column("since", "since", "time"),
                Column("order", "order_id", "order"),
                Column("seller", "seller_id", "seller"),
                Column("status", "status", "status"),
                Column("units_live", "units_live", "number"),
                Column("units_in_transit", "units_in_transit", "number"),
                Column("units_delivered", "units_delivered", "number"),
                Column("ship_by", "ship_by", "time"),
                Column("deliver_by", "deliver_by", "time"),
                Column("amount", "amount", "money"),
                Column("currency", "currency", "text"),
                Column("region", "region", "text"),
                Column("suborder", "id", "id"),
            ),
            Rows(worklists.late_suborders, worklists.as_late),
            {"status": get_args(SuborderStatusText)},
            ("seller_id",),
        ),
        Worklist(
            "refunds",
            (
                Column("since", "since", "time"),
                Column("order", "order_id", "order"),
                Column("status", "status", "status"),
                Column("amount", "amount", "money"),
                Column("currency", "currency", "text"),
                Column("cause", "cause", "text"),
                Column("attempt", "attempt", "number"),
                Column("reason", "reason", "personal"),
                Column("region", "region", "text"),
                Column("refund", "id", "id"),
            ),
            Rows(worklists.waiting_refunds, worklists.as_refund),
            {"status": worklists.WAITING_REFUNDS, "cause": get_args(RefundCauseText)},
        ),
        Worklist(
            "returns",
            (
                Column("since", "since", "time"),
                Column("order", "order_id", "order"),
                Column("quantity", "quantity", "number"),
                Column("reason", "reason", "personal"),
                Column("region", "region", "text"),
                Column("item", "item_id", "id"),
                Column("return", "id", "id"),
            ),
            Rows(worklists.waiting_returns, worklists.as_return),
            {},
        ),
    )
}
"""In the order of their tabs."""


def asked_for(request: Request, of: Worklist, now: datetime) -> tuple[dict[str, str], worklists.Filters]:
    """The filters of an address: as it has them, and as the statement takes them. Raises Invalid."""
    given: dict[str, str] = {}
    for name, those in (*of.choices.items(), ("days", AGES)):
        value = choice(request, name, those)
        if value is not None:
            given[name] = value
    for name in (*of.ids, *of.texts):
        value = request.query_params.get(name, "").strip()
        if value:
            given[name] = value
    filters: dict[str, Any] = {name: value for name, value in given.items() if name != "days"}
    filters |= {name: uuid_of(given[name]) for name in of.ids if name in given}
    if "days" in given:
        # To the minute, so that the pages of a list have the same border.
        filters["before"] = now.replace(second=0, microsecond=0) - timedelta(days=int(given["days"]))
    if of.rows is None and (since := moment_of(request, "from")) is not None:
        given["from"], filters["since"] = request.query_params["from"], since
    return given, filters


def cells(of: Worklist, row: Any, *, personal: bool) -> list[Cell]:
    """A row's cells. Without `personal` those that are personal are masked."""
    return [
        Cell("masked", None)
        if column.kind == "personal" and not personal
        else Cell(column.kind, getattr(row, column.field))
        for column in of.columns
    ]


def as_csv(of: Worklist, rows: Iterable[Any], *, personal: bool) -> str:
    """Rows as CSV (RFC 4180) with a line of names. Cells that a spreadsheet would take for a formula have an
    apostrophe before them; what would steer a terminal is escaped (contracts.printable).
    """
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(column.name for column in of.columns)
    for row in rows:
        writer.writerow(_plain(cell.value) for cell in cells(of, row, personal=personal))
    return file.getvalue()


def _plain(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    text = str(value)
    # Also behind a space or a line's end, which some programs skip.
    harmful = not isinstance(value, (int, UUID)) and text.lstrip()[:1] in tuple("=+-@")
    return printable(f"'{text}" if harmful or text[:1] in ("\t", "\r", "\n") else text, lines=True)
