"""How `orders show` prints an explanation."""

from __future__ import annotations

import re
from io import StringIO

from rich.console import Console

from cli.show import render
from console import order_view
from domain import explain
from tests.unit.builders import ANNA, ORDER, OrderBuilder, line, raw


def printed(builder: OrderBuilder, *, states: bool = False) -> str:
    out = StringIO()
    explanation = explain.explain(raw(ORDER), builder.order)
    refunds = order_view.refunds(explanation, builder.order) if states else []
    answered = {each.refund_id: each for each in refunds}
    Console(file=out, width=200).print(render(explanation, states=answered))
    return out.getvalue()


def test_notes_have_a_column_when_there_are_some() -> None:
    builder = OrderBuilder()
    builder.pay("5.00")
    assert " note\n" in printed(builder)
    assert "waits for its order" in printed(builder)
    builder.create(line(1))
    assert " note\n" not in printed(builder)
    builder.pay("5.00", 2, currency="USD")
    assert "refused" in printed(builder)


def test_a_refund_says_what_became_of_it() -> None:
    builder = OrderBuilder()
    builder.create(line(1, quantity=2))
    builder.pay("20.00")
    builder.stock("rejected", ANNA)
    builder.settle()
    assert re.search(r"cause +state *\n.* closed +waits *\n", printed(builder, states=True))
    assert not re.search(r"cause +state", printed(builder))
