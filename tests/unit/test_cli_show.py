"""How `orders show` prints an explanation."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any

from rich.console import Console

from cli.show import _tell_asks, render
from console import order_view
from domain import explain
from domain.deadlines import pending
from domain.enums import DeadlineKind
from tests.unit.builders import ANNA, ORDER, OrderBuilder, line, raw
from tests.unit.test_deadlines import PATIENCE, Timed


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


def test_a_refund_says_when_it_is_asked_for_next() -> None:
    builder = Timed()
    builder.create(line(1, quantity=2))
    builder.pay("20.00")
    builder.stock("rejected", ANNA)
    builder.settle()

    def told() -> tuple[dict[str, Any], str]:
        explanation = explain.explain(raw(ORDER), builder.order)
        states = order_view.refunds(explanation, builder.order)
        _tell_asks(explanation, states, pending(builder.order, raw(ORDER), PATIENCE))
        out = StringIO()
        Console(file=out, width=200).print(
            render(explanation, states={each.refund_id: each for each in states})
        )
        return explanation["refunds"][0], out.getvalue()

    refund, text = told()
    assert (refund["state"], refund["asked_again"]) == ("waits", 0)
    assert refund["next_ask"].startswith("2026-01-01T00:00:00.4")
    assert "waits, next asked 2026-01-01" in text
    builder.let_pass(DeadlineKind.REFUND)
    refund, text = told()
    assert (refund["asked_again"], refund["next_ask"]) == (1, None), "the next deadline gives it up"
    assert "next asked" not in text
