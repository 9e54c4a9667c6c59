"""The pure parts of the read side."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from contracts import money
from queries import statements
from queries.circuit import Circuit
from queries.flight import SingleFlight
from queries.keyset import Position
from settings import Settings


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_leads_back(time: datetime, id_: UUID) -> None:
    position = Position(time, id_)
    assert Position.parse(position.cursor()) == position


@pytest.mark.parametrize(
    "cursor", ["", "AAAA", "=" * 32, "A" * 31, "A" * 33, "ä" * 32, "f" + "_" * 31, "A" * 31 + "\n"]
)
def test_what_is_no_cursor(cursor: str) -> None:
    with pytest.raises(ValueError, match=r"^not a cursor of this service$"):
        Position.parse(cursor)


@given(st.text(max_size=40) | st.text("ABYZabyz0189-_=", min_size=30, max_size=34))
def test_any_text_is_a_cursor_or_none(cursor: str) -> None:
    try:
        position = Position.parse(cursor)
    except ValueError:
        return
    assert position.cursor() == cursor


@given(st.integers(0, 10**15), st.sampled_from(sorted(money.DIGITS)))
def test_amounts_read_as_the_pipeline_writes_them(minor: int, currency: str) -> None:
    text = money.text(minor, money.DIGITS[currency])
    whole, _, fraction = text.partition(".")
    assert statements.as_amount(f"{whole}.{fraction.ljust(4, '0')}", currency) == text


@pytest.mark.parametrize("by_user", [True, False])
def test_an_order_is_looked_for_in_its_partition_where_that_is_known(by_user: bool) -> None:
    where = str(statements._details(by_user)).rpartition("WHERE orders_order.id")[2]
    assert ("orders_order.user_id = " in where) == by_user


async def test_an_open_circuit_lets_one_through_at_a_time() -> None:
    circuit = Circuit("some", pause=0)
    assert all(circuit.admits() for _ in range(3))
    circuit.failed(OSError("gone"))
    assert circuit.admits(), "a pause of 0 is over at once"
    circuit = Circuit("some", pause=3600)
    circuit.failed(OSError("gone"))
    assert not circuit.admits()
    circuit._until = 0
    assert [circuit.admits() for _ in range(3)] == [True, False, False]
    circuit.worked()
    assert all(circuit.admits() for _ in range(3))


async def test_a_failure_is_everybodys_who_waited_and_nobody_elses() -> None:
    flight = SingleFlight()
    calls = 0
    go = asyncio.Event()

    async def fail() -> int:
        nonlocal calls
        calls += 1
        await go.wait()
        raise LookupError(calls)

    waiting = [asyncio.ensure_future(flight.do("key", fail)) for _ in range(5)]
    other = asyncio.ensure_future(flight.do("another", fail))
    await asyncio.sleep(0)
    waiting[0].cancel()
    go.set()
    outcomes = await asyncio.gather(*waiting, other, return_exceptions=True)
    assert [type(each) for each in outcomes] == [asyncio.CancelledError, *[LookupError] * 5]
    assert calls == 2
    with pytest.raises(LookupError):
        await flight.do("key", fail)
    assert calls == 3


@pytest.mark.parametrize(
    ("keys", "parsed"),
    [
        ("", []),
        (" ", []),
        ("a" * 16, ["a" * 16]),
        (f"{'a' * 16}, {'B' * 20}==,", ["a" * 16, "B" * 20 + "=="]),
    ],
)
def test_keys(keys: str, parsed: list[str]) -> None:
    assert Settings.model_validate({"api_keys": keys}).bearer_keys == parsed


@pytest.mark.parametrize("keys", ["short", "a" * 16 + ",short", "a b" * 16, "ä" * 16])
def test_keys_that_nobody_could_give_or_anybody_guess(keys: str) -> None:
    with pytest.raises(ValidationError, match="at least 16"):
        Settings.model_validate({"api_keys": keys})
