"""What sinks.base.Sink promises, kept by every sink against its real server, and by
the fakes of the simulation.
"""

from __future__ import annotations

import asyncio
import itertools

import pytest

from tests.contract.places import Order, Place

pytestmark = pytest.mark.asyncio(loop_scope="module")

HISTORY = [
    Order("a", 1),
    Order("a", 2, "confirmed", updated=30),
    Order("a", 4, "shipped", updated=50, parcels=(("pa", "in_transit"),)),
    Order("a", 6, "returned", updated=70, parcels=(("pa", "delivered"),)),
]
OTHER = Order("b", 3, "confirmed", updated=40)


async def test_the_same_batch_twice_is_the_same_as_once(place: Place) -> None:
    await place.write(HISTORY[2], OTHER)
    once = await place.content()
    assert once
    await place.write(HISTORY[2], OTHER)
    assert await place.content() == once


async def test_an_older_version_changes_nothing(place: Place) -> None:
    await place.write(HISTORY[3])
    newest = await place.content()
    for older in HISTORY[:3]:
        await place.write(older)
    assert await place.content() == newest


async def test_a_newer_version_replaces(place: Place) -> None:
    await place.write(HISTORY[0])
    before = await place.content()
    assert await place.write(HISTORY[1]) > 0
    assert await place.content() != before


async def test_any_order_of_batches_ends_the_same(place: Place) -> None:
    await place.write(HISTORY[3])
    expected = await place.content()
    for order in itertools.permutations(HISTORY):
        await place.empty()
        for each in order:
            await place.write(each)
        assert await place.content() == expected, order


async def test_one_batch_or_many_end_the_same(place: Place) -> None:
    orders = [
        Order(f"o{number}", 1 + number % 3, parcels=((f"p{number}", "pending"),)) for number in range(450)
    ]
    await place.write(*orders)
    together = await place.content()
    await place.empty()
    for some in (orders[300:], orders[:300]):
        await place.write(*some)
    assert await place.content() == together


async def test_two_workers_at_once_end_the_same(place: Place) -> None:
    await place.write(HISTORY[3], OTHER)
    expected = await place.content()
    await place.empty()
    stale = place.another()
    await stale.start()
    try:
        await asyncio.gather(
            *(sink.write(place.batch([each])) for each in [*HISTORY, OTHER] for sink in (place.sink, stale))
        )
    finally:
        await stale.close()
    assert await place.content() == expected


async def test_an_empty_batch_does_nothing(place: Place) -> None:
    before = await place.content()
    assert await place.write() == 0
    assert await place.content() == before


async def test_writes_go_on_after_the_server_died_and_came_back(place: Place) -> None:
    await place.write(HISTORY[0])
    await place.end_server()
    await place.start_server()
    # Connections that the dead server left behind may cost attempts.
    await place.write_with_retries(HISTORY[1])
    survived = await place.content()
    await place.empty()
    await place.write(HISTORY[1])
    assert survived == await place.content()
