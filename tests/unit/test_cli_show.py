"""How `orders show` prints an explanation."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from cli.show import render
from domain import explain
from tests.unit.builders import ORDER, OrderBuilder, line, raw


def printed(builder: OrderBuilder) -> str:
    out = StringIO()
    Console(file=out, width=200).print(render(explain.explain(raw(ORDER), builder.order)))
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
