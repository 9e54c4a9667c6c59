"""`orders show`: explain one order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from cli.terminal import Rows, Wide, output
from cli.text import second
from console import order_view
from contracts import ids, times
from contracts.errors import Refused
from contracts.printable import printable
from domain.enums import DeadlineKind
from domain.shapes import Due
from errors import OrdersError
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
TAXES: Final = {"tax": "tax", "shipping_tax": "shipping tax"}
SHIPMENTS: Final = {
    "shipment_id": "parcel",
    "status": "status",
    "carrier": "carrier",
    "tracking_number": "tracking",
}
PROMISED: Final = {"ship_by": "ship by", "deliver_by": "deliver by", "late_since": "late since"}
ATTENTION: Final = {"kind": "kind", "since": "since", "detail": "what"}
MOST_FACTS: Final = 12
"""Facts that a reason names; all of them are in the JSON."""
RETURNS: Final = {"return_id": "return", "item_id": "item", "quantity": "units", "status": "status"}


def show_command(
    order_id: Annotated[
        str | None, typer.Argument(help="The order's id, a UUID, with or without dashes.")
    ] = None,
    cart: Annotated[
        str | None, typer.Option("--cart", metavar="ID", help="The order that this cart became.")
    ] = None,
    checkout: Annotated[
        str | None, typer.Option("--checkout", metavar="ID", help="The order that this checkout became.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            "--as-of", metavar="TIME", help="The order as of then (RFC 3339), by its events' times."
        ),
    ] = None,
    wide: Wide = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")
    ] = False,
) -> None:
    """Explain an order: its facts by time, its units, its money, and the rules and facts that make it so.

    Example: orders show 3fa85f64-5717-4562-b3fc-2c963f66afa6 --as-of 2026-03-10T12:00:00Z
    """
    from domain import explain
    from domain.deadlines import pending
    from queries.state import read_state

    given = [each for each in (order_id, cart, checkout) if each is not None]
    if len(given) != 1:
        raise OrdersError(
            "one order is shown at a time" if given else "no order is named",
            "give one of ORDER_ID, --cart and --checkout",
        )
    order_uuid = _uuid(given[0])
    if checkout is not None:
        order_uuid = UUID(bytes=ids.uuid5(order_uuid.bytes, "order"))
    elif cart is not None:
        order_uuid = _only(cart, _of_cart(order_uuid))
    time = None if at is None else _time(at)
    order = asyncio.run(read_state(get_settings(), order_uuid))
    if order is None:
        remedy = "see that it was sent, and that orders wait says that all is processed"
        raise OrdersError(f"no fact of order {order_uuid} is known", remedy)
    explanation = explain.explain(order_uuid.bytes, order, time)
    # Of an earlier time it isn't known which answers there were.
    answered = [] if time is not None else order_view.refunds(explanation, order)
    if answered:
        _tell_asks(explanation, answered, pending(order, order_uuid.bytes, get_settings().deadline_policy))
    if as_json:
        print(json.dumps(explanation, indent=2))
    else:
        output().print(render(explanation, wide, {each.refund_id: each for each in answered}))


def _tell_asks(
    explanation: dict[str, Any], answered: Sequence[order_view.Refund], due: Sequence[Due]
) -> None:
    """Add to each refund its state, how often it was asked for again, and when it is asked for next."""
    # A final deadline for an answer gives the refund up; one after a failure asks.
    next_ask = {
        ids.text(each.subject): times.text(each.at * 1000)
        for each in due
        if each.subject is not None
        and (each.what is DeadlineKind.REFUND_RETRY or (each.what is DeadlineKind.REFUND and not each.final))
    }
    states = {each.refund_id: each for each in answered}
    for refund in explanation["refunds"]:
        known = states[refund["refund_id"]]
        refund |= {
            "state": known.state,
            "asked_again": known.asked,
            "next_ask": next_ask.get(known.refund_id),
        }


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise OrdersError(
            f"{text!r} is not a UUID",
            "give a whole id such as 3fa85f64-5717-4562-b3fc-2c963f66afa6; of an order's id the find box of"
            " orders console takes the first 8 characters",
        ) from None


def _of_cart(cart_id: UUID) -> Sequence[UUID]:
    from queries.databases import orders_of_cart

    return asyncio.run(orders_of_cart(get_settings(), cart_id))


def _only(cart: str, order_ids: Sequence[UUID]) -> UUID:
    """The one order that a cart became. Raises OrdersError for none, or several."""
    if not order_ids:
        remedy = "see that its order was sent with cart_id, and that orders wait says that all is processed"
        raise OrdersError(f"no order of cart {cart} is known", remedy)
    if len(order_ids) > 1:
        raise OrdersError(
            f"cart {cart} became {len(order_ids)} orders: {', '.join(map(str, order_ids))}",
            "give the id of one of them",
        )
    return order_ids[0]


def _time(text: str) -> int:
    try:
        return times.parse(text, "--as-of")
    except Refused:
        raise OrdersError(
            f"--as-of: {text!r} is not an RFC 3339 time with its offset",
            "give one such as 2026-03-10T12:00:00Z",
        ) from None


def render(
    explanation: dict[str, Any], wide: bool = False, states: Mapping[str, order_view.Refund] | None = None
) -> Group:
    """Render an explanation for rich. `wide`: one line a row."""
    as_of = explanation["as_of"]
    status = explanation.get("status") or ("waiting" if explanation["facts"] else "not there yet")
    parts: list[RenderableType] = [
        Text.assemble(
            ("order ", "dim"),
            explanation["order_id"],
            "  ",
            (status, f"bold {COLOURS.get(status, 'yellow')}"),
            (f"  version {explanation['version']}", "dim"),
            ("" if as_of is None else f"  as of {as_of}", "dim"),
        ),
        *(
            Text(f"because {_reason(rule)}" if n == 0 else f"    and {_reason(rule)}")
            for n, rule in enumerate(explanation["why"])
            # What is said of the order and of each anomaly below, or follows from the suborders' table.
            if rule["of"] != "anomaly"
            and not (rule["of"] == "suborder" and rule["rule"].startswith("status_"))
        ),
    ]
    facts = {"n": "n", "time": "time", "type": "type", "what": "what"}
    if any(fact["note"] for fact in explanation["facts"]):
        facts["note"] = "note"
    parts += _table("Facts", explanation["facts"], facts, wide)
    if explanation["known"]:
        currency = explanation["currency"]
        money = explanation["money"]
        taxed = explanation["prices_include_tax"] is not None
        tax_column = {"tax_amount": "tax"} if taxed else {}
        parts += [
            Text(),
            Text.assemble(
                ("Money  ", "bold"),
                f"total {money['total']} {currency}"
                f"{_tax(explanation)}, of live units {money['live_total']}, captured"
                f" {money['captured']}, ",
                f"refunds decided {money['refunds_decided']}{_before(explanation)}",
            ),
        ]
        parts += _table(
            "Units (of each line: how many reached at least that)",
            explanation["lines"],
            UNITS | (TAXES if taxed else {}),
            wide,
        )
        parts += _table(
            "Suborders",
            explanation["suborders"],
            {"seller_id": "seller", "status": "status", "total_amount": currency}
            | tax_column
            | _promised(explanation),
            wide,
        )
        parts += _table("Shipments", explanation["shipments"], SHIPMENTS, wide)
        parts += _table("Returns", explanation["returns"], RETURNS, wide)
        parts += _refunds(explanation, states or {}, {"amount": currency} | tax_column, wide)
        parts += _table("Attention", explanation["attention"], ATTENTION, wide)
    return Group(*parts)


def _refunds(
    explanation: dict[str, Any], states: Mapping[str, order_view.Refund], amounts: dict[str, str], wide: bool
) -> list[RenderableType]:
    refunds = [
        {**each, **_answered(each["refund_id"], states, each.get("next_ask"))}
        for each in explanation["refunds"]
    ]
    columns = {"refund_id": "refund"} | amounts | {"cause": "cause"} | ({"state": "state"} if states else {})
    return _table("Refunds", refunds, columns, wide)


def _answered(
    refund_id: str, states: Mapping[str, order_view.Refund], next_ask: str | None
) -> dict[str, str]:
    """What became of a refund that was decided, in words."""
    refund = states.get(refund_id)
    if refund is None:
        return {}
    times_asked = {0: "", 1: ", asked again"}.get(refund.asked, f", asked again {refund.asked} times")
    due = f", next asked {second(next_ask)}" if next_ask else ""
    return {"state": refund.state.replace("_", " ") + times_asked + due}


def _reason(rule: dict[str, Any]) -> str:
    """A rule in a line: what it says, its numbers, the numbers of its facts."""
    numbers = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in rule["numbers"].items())
    whose = "" if rule["of"] == "order" else f"{rule['of']} {rule['id']}: "
    facts = rule["facts"]
    shown = ", ".join(str(n) for n in facts[:MOST_FACTS]) + (", ..." if len(facts) > MOST_FACTS else "")
    return printable(
        f"{whose}{rule['says']}{f' ({numbers})' if numbers else ''}"
        + (f" [{'fact' if len(facts) == 1 else 'facts'} {shown}]" if facts else "")
    )


def _promised(explanation: dict[str, Any]) -> dict[str, str]:
    """The columns of what was promised, where anything was."""
    parts = explanation["suborders"]
    return {name: label for name, label in PROMISED.items() if any(part[name] for part in parts)}


def _tax(explanation: dict[str, Any]) -> str:
    included = explanation["prices_include_tax"]
    if included is None:
        return ""
    return f" with {explanation['money']['tax']} of tax {'in' if included else 'on top of'} the prices"


def _before(explanation: dict[str, Any]) -> str:
    if explanation["live_from"] is None:
        return ""
    paid = explanation["money"]["refunded_before"]
    return f"; until {second(explanation['live_from'])} another system handled it, and paid back {paid}"


def _table(
    title: str, rows: list[dict[str, Any]], columns: dict[str, str], wide: bool
) -> list[RenderableType]:
    if not rows:
        return []
    numbers = [heading for name, heading in columns.items() if isinstance(rows[0].get(name), int)]
    table = Rows(
        *columns.values(),
        title=title,
        prose=("what", "note", "carrier", "tracking"),
        right=numbers,
        wide=wide,
    )
    for each in rows:
        cells = [(name, "" if each.get(name) is None else str(each[name])) for name in columns]
        cells = [(name, second(text) if name in ("time", "since") else text) for name, text in cells]
        table.add(*((text, COLOURS.get(text, "") if name == "status" else "") for name, text in cells))
    return [Text(), table]
