"""`orders show`: one order's story."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any
from uuid import UUID

import typer
from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from cli.errors import UserError
from domain import story
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


def show_command(
    order_id: Annotated[str, typer.Argument(help="The order's id, a UUID, with or without dashes.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")] = False,
) -> None:
    """Tell an order's story: its facts in time order, what they amount to, and which of them make its status true.

    Example: orders show 3fa85f64-5717-4562-b3fc-2c963f66afa6
    """
    try:
        wanted = UUID(order_id)
    except ValueError:
        raise UserError(f"{order_id!r} is not a UUID: give an order_id such as 3fa85f64-5717-4562-b3fc-2c963f66afa6") from None
    settings = get_settings()
    try:
        order = asyncio.run(read_state(settings, wanted))
    except LookupError as error:
        raise UserError(str(error)) from None
    if order is None:
        raise UserError(f"no fact of order {wanted} is known: was it sent, and does `orders wait` say that all is processed?")
    told = story.tell(wanted.bytes, order)
    if as_json:
        print(json.dumps(told, indent=2))
    else:
        Console().print(render(told))


def render(told: dict[str, Any]) -> Group:
    """A story as something that rich prints."""
    status = told.get("status", "waiting")
    head = Text.assemble(
        ("order ", "dim"),
        told["order_id"],
        "  ",
        (status, f"bold {COLOURS.get(status, 'yellow')}"),
        (f"  version {told['version']}", "dim"),
    )
    why = Text("\n".join(f"because {line}" if n == 0 else f"    and {line}" for n, line in enumerate(told["why"])))
    parts: list[Any] = [Panel(Group(head, why), border_style=COLOURS.get(status, "yellow"))]
    columns = {"time": "time", "type": "type", "what": "what"}
    if any(fact["note"] for fact in told["facts"]):
        columns["note"] = "note"
    parts.append(_table("Facts", told["facts"], columns))
    if told["known"]:
        currency = told["currency"]
        sums = told["money"]
        parts.append(
            Text.assemble(
                ("Money  ", "bold"),
                f"total {sums['total']} {currency}, of live units {sums['live_total']}, captured {sums['captured']}, ",
                f"refunds decided {sums['refunds_decided']}",
            )
        )
        units = {
            "item_id": "item",
            "quantity": "units",
            "live": "live",
            "gone": "gone",
            "in_transit": "in transit",
            "delivered": "delivered",
            "returned": "returned",
            "price": "price",
        }
        parts.append(_table("Units (of each line: how many reached at least that)", told["lines"], units))
        parts.append(_table("Suborders", told["suborders"], {"seller_id": "seller", "status": "status", "total_amount": currency}))
        parts.append(
            _table(
                "Shipments",
                told["shipments"],
                {"shipment_id": "parcel", "status": "status", "carrier": "carrier", "tracking_number": "tracking"},
            )
        )
        parts.append(
            _table("Returns", told["returns"], {"return_id": "return", "item_id": "item", "quantity": "units", "status": "status"})
        )
        parts.append(_table("Refunds", told["refunds"], {"refund_id": "refund", "amount": currency, "cause": "cause"}))
        if told["anomalies"]:
            parts.append(Text("Anomalies\n  " + "\n  ".join(told["anomalies"]), style="yellow"))
    return Group(*(part for part in parts if part is not None))


def _table(title: str, found: list[dict[str, Any]], columns: dict[str, str]) -> Table | None:
    if not found:
        return None
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", expand=False)
    for name, heading in columns.items():
        numeric = isinstance(found[0].get(name), int)
        table.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for each in found:
        cells = []
        for name in columns:
            value = each.get(name)
            text = "" if value is None else str(value)
            cells.append(Text(text, style=COLOURS.get(text, "") if name == "status" else ""))
        table.add_row(*cells)
    return table
