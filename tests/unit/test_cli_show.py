"""How `orders show` prints a story."""

from __future__ import annotations

from io import StringIO

from rich.console import Console

from cli.show import render
from domain import explain
from tests.unit.wire import ORDER, Story, line, raw


def printed(told: Story) -> str:
    out = StringIO()
    Console(file=out, width=200).print(render(explain.tell(raw(ORDER), told.order)))
    return out.getvalue()


def test_notes_have_a_column_when_there_are_some() -> None:
    told = Story()
    told.pay("5.00")
    assert " note\n" in printed(told)
    assert "waits for its order" in printed(told)
    told.create(line(1))
    assert " note\n" not in printed(told)
    told.pay("5.00", 2, currency="USD")
    assert "refused" in printed(told)
