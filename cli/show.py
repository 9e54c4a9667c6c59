"""`orders show`: one order's story."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cli.terminal import Rows, Wide, output
from cli.text import printable, second
from domain import explain
from errors import OrdersError
from queries.state import read_state
from settings import get_settings

COLOURS = {
    "pending": "yellow",
    "confirmed": "cyan",
    "shipped": "blue",
    "delivered": "green",
    "returned": "magenta",
    "closed": "red",
}

UNITS: Final = {
    "item_id": "item",
    "quantity": "units",
    "live": "live",
    "gone": "gone",
    "in_transit": "in transit",
    "delivered": "delivered",
    "returned": "returned",
    "price": "price",
}
SHIPMENTS: Final = {"shipment_id": "parcel", "status": "status", "carrier": "carrier", "tracking_number": "tracking"}
RETURNS: Final = {"return_id": "return", "item_id": "item", "quantity": "units", "status": "status"}


def show_command(
    order_id: Annotated[str, typer.Argument(help="The order's id, a UUID, with or without dashes.")],
    wide: Wide = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")] = False,
) -> None:
    """Tell an order's story: its facts in time order, what they amount to, and which of them make its status true.

    Example: orders show 3fa85f64-5717-4562-b3fc-2c963f66afa6
    """
    try:
        wanted = UUID(order_id)
    except ValueError:
        raise OrdersError(f"{order_id!r} is not a UUID", "give an order_id such as 3fa85f64-5717-4562-b3fc-2c963f66afa6") from None
    order = asyncio.run(read_state(get_settings(), wanted))
    if order is None:
        raise OrdersError(f"no fact of order {wanted} is known", "see that it was sent, and that orders wait says that all is processed")
    told = explain.tell(wanted.bytes, order)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        output().print(render(told, wide))


def render(told: dict[str, Any], wide: bool = False) -> Group:
    """A story as something that rich prints. `wide`: one line a row."""
    status = told.get("status", "waiting")
    parts: list[RenderableType] = [
        Text.assemble(
            ("order ", "dim"),
            told["order_id"],
            "  ",
            (status, f"bold {COLOURS.get(status, 'yellow')}"),
            (f"  version {told['version']}", "dim"),
        ),
        *(Text(f"because {printable(line)}" if n == 0 else f"    and {printable(line)}") for n, line in enumerate(told["why"])),
    ]
    facts = {"time": "time", "type": "type", "what": "what"}
    if any(fact["note"] for fact in told["facts"]):
        facts["note"] = "note"
    parts += _table("Facts", told["facts"], facts, wide)
    if told["known"]:
        currency = told["currency"]
        sums = told["money"]
        parts += [
            Text(),
            Text.assemble(
                ("Money  ", "bold"),
                f"total {sums['total']} {currency}, of live units {sums['live_total']}, captured {sums['captured']}, ",
                f"refunds decided {sums['refunds_decided']}",
            ),
        ]
        parts += _table("Units (of each line: how many reached at least that)", told["lines"], UNITS, wide)
        parts += _table("Suborders", told["suborders"], {"seller_id": "seller", "status": "status", "total_amount": currency}, wide)
        parts += _table("Shipments", told["shipments"], SHIPMENTS, wide)
        parts += _table("Returns", told["returns"], RETURNS, wide)
        parts += _table("Refunds", told["refunds"], {"refund_id": "refund", "amount": currency, "cause": "cause"}, wide)
        if told["anomalies"]:
            parts += [Text(), Text("Anomalies", "yellow"), *(Text(f"  {printable(line)}", "yellow") for line in told["anomalies"])]
    return Group(*parts)


def _table(title: str, found: list[dict[str, Any]], columns: dict[str, str], wide: bool) -> list[RenderableType]:
    if not found:
        return []
    numbers = [heading for name, heading in columns.items() if isinstance(found[0].get(name), int)]
    table = Rows(*columns.values(), title=title, prose=("what", "note", "carrier", "tracking"), right=numbers, wide=wide)
    for each in found:
        cells = [(name, "" if each.get(name) is None else str(each[name])) for name in columns]
        cells = [(name, second(text) if name == "time" else text) for name, text in cells]
        table.add(*((text, COLOURS.get(text, "") if name == "status" else "") for name, text in cells))
    return [Text(), table]
