"""An order's page: its slider over times, and whether rows and cache say what its state says."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec
import pytest

from console.order_view import MOST_MOMENTS, moments, place_of
from console.sources import explained
from console.stores_view import compare, held_of, stores_of
from console.texts import EN
from domain.order import Order
from operations.postgres.compare import COLUMNS, Difference
from settings import Settings
from tests.unit.builders import ORDER
from tests.unit.console_world import Made, console, new_key, order
from tests.unit.test_console import bearer

# -- as of a time --------------------------------------------------------------------------------------------


async def test_a_slider_leads_to_the_times_of_facts_without_script() -> None:
    shows = Made()
    of_it = moments(explained(UUID(ORDER), shows.made, None).facts)
    async with console(shows) as browser:
        now = (await browser.get(f"/orders/{ORDER}")).text
        first = await browser.get(f"/orders/{ORDER}", params={"step": 0})
        then = (await browser.get(first.headers["location"])).text
        last = await browser.get(f"/orders/{ORDER}", params={"step": len(of_it)})
        odd = await browser.get(f"/orders/{ORDER}", params={"step": "x"})
    assert f'type="range" min="0" max="{len(of_it)}" value="{len(of_it)}"' in now
    assert f'aria-valuetext="{EN["as_of_now"]}"' in now
    labels = re.findall(r'<option value="(\d+)" label="([^"]*)">', now)
    assert [int(n) for n, _ in labels] == list(range(len(of_it) + 1))
    assert labels[0][1].endswith(of_it[0].says)
    assert (first.status_code, last.status_code) == (303, 303)
    assert last.headers["location"] == f"/orders/{ORDER}"
    assert 'value="0" list="moments"' in then
    assert f"<output>{labels[0][1]}</output>" in then
    assert then.count("data-then") == now.count("data-then") == 2
    assert odd.status_code == 200


def test_moments_are_times_once_and_a_slider_stands_on_the_last_one_before() -> None:
    facts = [{"time": f"2026-01-01T00:0{n // 2}:00.000000Z", "type": f"t{n}"} for n in range(6)]
    of_it = moments([*facts, facts[-1]])
    assert [each.says for each in of_it] == ["t0, t1", "t2, t3", "t4, t5"]
    for minute, place in ((0, 0), (1, 1), (5, 2)):
        assert place_of(of_it, datetime(2026, 1, 1, 0, minute, tzinfo=UTC)) == place
    assert place_of(of_it, datetime(1999, 1, 1, tzinfo=UTC)) == 0
    assert place_of(of_it, None) == 3
    many = [{"time": str(n), "type": "t"} for n in range(2 * MOST_MOMENTS + 1)]
    assert len(moments(many)) <= MOST_MOMENTS
    assert moments(many)[-1].time == many[-1]["time"]
    assert moments([]) == []


# -- rows = state = cache ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rows", "cache", "says", "good"),
    [
        (0, 0, ("same", "same"), (True, True)),
        (-1, 1, ("behind", "ahead"), (False, False)),
        (None, None, ("away", "away"), (False, False)),
        ("none", "none", ("missing", "expired"), (False, True)),
    ],
)
def test_stores_are_marked_by_their_versions(
    rows: int | str | None, cache: int | str | None, says: tuple[str, str], good: tuple[bool, bool]
) -> None:
    state = order()
    there = [
        None if each is None else 0 if isinstance(each, str) else state.version + each
        for each in (rows, cache)
    ]
    _, in_rows, in_cache = stores_of(state, *there)
    assert (in_rows.says, in_cache.says) == says
    assert (in_rows.good, in_cache.good) == good


def test_an_order_that_waits_for_its_beginning_has_no_rows() -> None:
    assert [each.says for each in stores_of(Order(), 0, 0)] == ["same", "waits", "waits"]


def test_rows_and_cache_are_compared_value_by_value() -> None:
    held = held_of(Settings(), UUID(ORDER), order())
    entry = held.cache[0].summary
    assert compare(held, [], entry) == ([], [])
    assert compare(held, [], None).cache is None
    other = msgspec.json.decode(entry)
    other["suborders"][0]["status"] = "pending"
    changed = compare(held, [], msgspec.json.encode(other)).cache
    assert changed is not None
    assert [(each.path, each.after) for each in changed] == [("suborders[0].status", "pending")]
    assert compare(held, [], b"[]").cache
    columns = COLUMNS["orders_order"]
    should = tuple("x" for _ in columns)
    wrong = tuple("y" if name == "status" else "x" for name in columns)
    differences = [
        Difference("orders_order", ORDER, ORDER, wrong, should),
        Difference("orders_return", "1", ORDER, None, should),
        Difference("orders_return", "2", ORDER, should, None),
    ]
    of_order, missing, extra = compare(held, differences, None).rows
    assert [(each.path, each.before, each.after) for each in of_order.changes] == [("status", "x", "y")]
    assert (missing.missing, missing.extra, extra.missing, extra.extra) == (True, False, False, True)


async def test_a_page_marks_its_stores_and_compares_for_support(tmp_path: Path) -> None:
    keys, shows = tmp_path / "keys", Made()
    shows.versions = (shows.made.version - 1, 0)
    async with console(shows, keys) as browser:
        viewer, support = bearer(new_key(keys, "view")), bearer(new_key(keys, "all"))
        page = (await browser.get(f"/orders/{ORDER}", headers=viewer)).text
        refused = await browser.get(f"/orders/{ORDER}/stores", headers=viewer)
        compared = (await browser.get(f"/orders/{ORDER}/stores", headers=support)).text
        whole = (await browser.get(f"/orders/{ORDER}", headers=support)).text
    assert EN["store_is_behind"] in page
    assert EN["store_is_expired"].replace("'", "&#39;") in page
    assert "/stores" not in page
    assert refused.status_code == 403
    assert f'href="/orders/{ORDER}/stores"' in whole
    assert EN["stores_differ"] in compared
