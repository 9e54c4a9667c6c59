"""Columns of rows come to the server as they are, written by native.c and as text."""

from __future__ import annotations

from random import Random
from types import ModuleType
from typing import Any
from uuid import UUID

import asyncpg
import pytest

import compiled
from contracts import times
from sinks import arrays
from tests.contract.places import PostgresPlace

pytestmark = pytest.mark.asyncio(loop_scope="module")

READ = (
    "SELECT id::text, word, amount::text, number, moment::text FROM (SELECT unnest($1::uuid[]) AS id,"
    " unnest($2::text[]) AS word, unnest($3::numeric[]) AS amount, unnest($4::int4[]) AS number,"
    " unnest($5::timestamptz[]) AS moment) new"
)
AS_TEXT = "SELECT $1::text::numeric::text, $2::text::timestamptz::text"
KINDS = b"utniz"
WORDS = ["", "NULL", "null", " a ", 'say "so"', "back\\slash", "{a,b}", "é€😀", "line\nbreak", "'"]


def _amount(draw: Random) -> str:
    decimals = draw.choice([0, 2, 3, 4])
    whole = str(draw.choice([0, 7, 10_000, draw.randrange(10**20)]))
    return (
        draw.choice(["", "-"]) + whole + (f".{draw.randrange(10**decimals):0{decimals}}" if decimals else "")
    )


def _row(draw: Random) -> tuple[Any, ...]:
    micros = draw.randint(times._EARLIEST, times._LATEST)
    values = (
        str(UUID(int=draw.getrandbits(128))),
        draw.choice(WORDS),
        _amount(draw),
        draw.choice([0, 1, -1, 2**31 - 1, -(2**31)]),
        times._text(draw.choice([micros, micros // 1_000_000 * 1_000_000, 0, 946_684_800_000_000])),
    )
    return tuple(None if draw.random() < 0.1 else value for value in values)


@pytest.mark.parametrize(
    "native", [None, pytest.param(compiled.native, marks=pytest.mark.compiled)], ids=["text", "native"]
)
async def test_the_server_reads_what_was_given(
    postgres: PostgresPlace, monkeypatch: pytest.MonkeyPatch, native: ModuleType | None
) -> None:
    monkeypatch.setattr(arrays, "_native", native)
    draw = Random(1)
    rows = [(None,) * 5, *(_row(draw) for _ in range(500))]
    connection = await asyncpg.connect(postgres.url)
    try:
        arrays.accept(connection)
        many = await connection.fetchval("SELECT cardinality($1::uuid[])", [UUID(int=1), str(UUID(int=2))])
        assert many == 2
        for given, read in zip(rows, await connection.fetch(READ, *arrays.pack(rows, KINDS)), strict=True):
            text = await connection.fetchrow(AS_TEXT, given[2], given[4])
            assert text is not None
            amount, moment = text
            assert tuple(read) == (given[0], given[1], amount, given[3], moment)
    finally:
        await connection.close()
