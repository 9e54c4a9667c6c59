"""What orders rebuild notices prints."""

from __future__ import annotations

import io

import msgspec

from cli.rebuild import show_notices
from cli.terminal import Terminal
from contracts.ids import text
from operations.notices import STATUS_CHANGED, Notice, NoticesResult
from tests.unit.builders import ANNA, ORDER, raw


def notice(topic: str, seller: bytes, actual: object, expected: object) -> Notice:
    return Notice(topic, seller, b"s" * 16, msgspec.json.encode(actual), msgspec.json.encode(expected), False)


def shown(result: NoticesResult) -> list[str]:
    file = io.StringIO()
    show_notices(result, Terminal(file=file))
    return file.getvalue().splitlines()


def test_what_is_missing_fits_a_terminal() -> None:
    result = NoticesResult(compared=12_345, sent=3, unsound=1, unsound_ids=[ORDER], inconclusive=2)
    status = notice(STATUS_CHANGED, b"", {"status": "pending"}, {"status": "confirmed"})
    same, other = {"status": "delivered", "total_amount": "1"}, {"status": "delivered", "total_amount": "2"}
    amounts = notice("suborder.updated", raw(ANNA), same, other)
    result.add(raw(ORDER), [status, amounts], 2)
    result.add(raw(ANNA), [status], 2)
    lines = shown(result)
    assert lines == [
        "12,345 orders compared; of 2 readers should have been told something",
        "order.status_changed: 2 sent",
        "suborder.updated: 1 sent",
        f"order {ORDER}",
        "  order.status_changed pending -> confirmed",
        f"  suborder.updated {text(raw(ANNA))} delivered, other amounts",
        "and 1 more; --examples shows more",
        "1 orders left out, their states aren't what the log says: orders repair first",
        f"  {ORDER}",
        "2 orders couldn't be compared: they changed",
    ]
    assert max(map(len, lines)) <= 80


def test_what_waits_is_told() -> None:
    lines = shown(NoticesResult(compared=1, lag=7))
    assert lines[1:] == [
        "0 orders couldn't be compared: 7 records wait, and no worker takes them in",
        "nothing is missing",
    ]
