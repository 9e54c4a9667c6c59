"""What the console does: who may, with which reason, and what it says beforehand."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest

from api.binding import Record
from console.acts import event_of, selection_of
from console.doing import NotDone
from console.parameters import Invalid
from console.texts import EN
from console.whatif import WhatIf, what_if
from operations.dead_letters import Resolved
from operations.redrive import Selection
from settings import Settings
from tests.unit.builders import ANNA, BORIS, ORDER, USER, OrderBuilder, line, payment
from tests.unit.console_world import ESCAPED, HOSTILE, TIME, Done, Made, console, letter, new_key, token_in
from tests.unit.test_console import bearer, is_plain

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
REFUND = {"amount": "5.00", "currency": "EUR", "grant_id": USER, "why": "late  twice"}


async def post(browser: httpx.AsyncClient, path: str, **form: str) -> httpx.Response:
    token = (
        token_in((await browser.get(f"/repair/{ORDER}")).text) if "token" not in form else form.pop("token")
    )
    return await browser.post(path, data={"token": token, **form})


# -- who may -------------------------------------------------------------------------------------------------

OPERATORS = ("/redrive?reason=x", "/resolve?reason=x", f"/repair/{ORDER}")
SUPPORT = tuple(f"/orders/{ORDER}/{what}" for what in ("cancel", "grant", "whatif"))


@pytest.mark.parametrize(
    ("scopes", "may"),
    [
        (["view"], set()),
        (["view", "operate", "write"], set()),
        (["all"], {*SUPPORT}),
        (["all", "operate"], {*SUPPORT, *OPERATORS}),
    ],
)
async def test_pages_that_do_something_are_for_their_role(
    scopes: list[str], may: set[str], tmp_path: Path
) -> None:
    keys, does = tmp_path / "keys", Done()
    async with console(Made(), keys, doing=does) as browser:
        key = bearer(new_key(keys, *scopes))
        got = {path: await browser.get(path, headers=key) for path in (*SUPPORT, *OPERATORS)}
        form = {"why": "x", "step": "all", "reason": "x"}
        sent = [await browser.post(path.partition("?")[0], headers=key, data=form) for path in OPERATORS]
        order = (await browser.get(f"/orders/{ORDER}", headers=key)).text
    assert {path for path, answer in got.items() if answer.status_code == 200} == may
    assert {answer.status_code for answer in got.values()} <= {200, 403}
    assert {answer.status_code for answer in sent} == ({200} if set(OPERATORS) <= may else {403})
    assert bool([each for each in does.asked if each[-1]]) == (set(OPERATORS) <= may)
    assert (f'href="/repair/{ORDER}"' in order) == (f"/repair/{ORDER}" in may)
    assert (f'href="{SUPPORT[0]}"' in order) == (SUPPORT[0] in may)


@pytest.mark.parametrize(
    ("on", "scopes", "code"),
    [
        (True, ["all", "write"], 200),
        (True, ["all", "operate", "write"], 200),
        (True, ["all"], 403),
        (True, ["all", "operate"], 403),
        (True, ["view", "write"], 403),
        (False, ["all", "write"], 403),
    ],
)
async def test_events_are_sent_with_the_right_to_write(
    on: bool, scopes: list[str], code: int, tmp_path: Path
) -> None:
    keys, does = tmp_path / "keys", Done()
    async with console(Made(), keys, doing=does, api_write=on) as browser:
        key = bearer(new_key(keys, *scopes))
        form = {"why": "asked for", "step": "send"}
        answer = await browser.post(f"/orders/{ORDER}/cancel", headers=key, data=form)
    assert answer.status_code == code
    assert bool(does.asked) == (code == 200)


# -- with a reason -------------------------------------------------------------------------------------------


async def test_nothing_is_done_without_a_form_of_the_session_and_a_reason() -> None:
    does = Done()
    async with console(Made(), doing=does, api_write=True) as browser:
        paths = {
            "/redrive": {"reason": "x"},
            "/resolve": {"reason": "x"},
            f"/repair/{ORDER}": {"step": "rows"},
        }
        paths[f"/orders/{ORDER}/grant"] = {"step": "send", **REFUND}
        for path, form in paths.items():
            unreasoned = await post(browser, path, **(form | {"why": "  "}))
            long = await post(browser, path, **(form | {"why": "x" * 501}))
            forged = await post(browser, path, **(form | {"why": "good", "token": "0" * 64}))
            assert (unreasoned.status_code, long.status_code, forged.status_code) == (422, 422, 403), path
        assert [each for each in does.asked if each[0] not in ("operations", "states")] == []


async def test_what_is_sent_is_what_was_shown() -> None:
    does = Done()
    async with console(Made(), doing=does, api_write=True) as browser:
        shown = await post(browser, f"/orders/{ORDER}/grant", step="look", seller_id=ANNA, **REFUND)
        assert [each for each in does.asked if each[0] == "send"] == []
        fields = dict(re.findall(r'name="(event_id|grant_id|amount|why)" value="([^"]*)"', shown.text))
        sent = await post(
            browser, f"/orders/{ORDER}/grant", step="send", seller_id=ANNA, currency="EUR", **fields
        )
    assert EN["send_it"] in shown.text
    assert "refund.granted" in shown.text
    assert sent.status_code == 200
    _, record, order_id, _, why = does.asked[-1]
    assert (record.topic, record.key, record.id) == ("refund.granted", ORDER.encode(), fields["event_id"])
    assert json.loads(record.value) == {
        "order_id": ORDER,
        "reason": "late twice",
        "seller_id": ANNA,
        "amount": "5.00",
        "currency": "EUR",
        "grant_id": USER,
    }
    assert dict(record.headers)["ce_source"] == b"/orders/console"
    assert (order_id, why) == (UUID(ORDER), "late twice")


@pytest.mark.parametrize(
    ("what", "form", "said"),
    [
        ("grant", {**REFUND, "amount": "-1"}, "$.amount"),
        ("grant", {**REFUND, "amount": "5.001"}, "$.amount"),
        ("cancel", {"why": "x", "seller_id": "x"}, "seller_id"),
        ("whatif", {"type": "order.paid", "data": "{"}, "no JSON"),
        ("whatif", {"type": "order.paid", "data": "[" * 5000}, "no JSON"),
        ("whatif", {"type": "order.paid", "data": "1"}, "an object"),
        ("whatif", {"type": "refund.decided", "data": "{}"}, "refund.decided"),
        ("whatif", {"type": "order.paid", "data": "{}"}, "order_id"),
        ("whatif", {"type": "order.paid", "data": json.dumps({"order_id": USER, **REFUND})}, "payment_id"),
        ("whatif", {"type": "stock.reserved", "data": "{}", "time": "soon"}, "soon"),
    ],
)
async def test_a_form_that_is_wrong_is_shown_again_with_why(
    what: str, form: dict[str, str], said: str
) -> None:
    does = Done()
    async with console(Made(), doing=does, api_write=True) as browser:
        answer = await post(browser, f"/orders/{ORDER}/{what}", step="send", **form)
    assert answer.status_code == 422
    assert said in answer.text
    assert is_plain(answer.text)
    assert "<textarea" in answer.text or f'value="{form["why"]}"' in answer.text
    assert [each for each in does.asked if each[0] == "send"] == []


@pytest.mark.parametrize("path", ["/redrive", "/resolve", f"/repair/{ORDER}", f"/orders/{ORDER}/cancel"])
async def test_what_was_not_done_is_said(path: str) -> None:
    does = Done()
    async with console(Made(), doing=does, api_write=True) as browser:
        token = token_in((await browser.get(f"/repair/{ORDER}")).text)
        does.fails = NotDone(HOSTILE)
        form = {"reason": "x", "step": "send" if "cancel" in path else "all", "why": "y"}
        answer = await post(browser, path, token=token, **form)
    assert answer.status_code in (409, 422)
    assert ESCAPED in answer.text
    assert is_plain(answer.text)


async def test_repairs_look_first() -> None:
    does = Done()
    async with console(Made(), doing=does) as browser:
        looked = await post(browser, f"/repair/{ORDER}", step="look")
        rows = await post(browser, f"/repair/{ORDER}", step="rows", why="w")
        whole = await post(browser, f"/repair/{ORDER}", step="all", why="w")
        other = await post(browser, f"/repair/{ORDER}", step="more", why="w")
    done = [each for each in does.asked if each[0] != "operations"]
    assert [(each[0], each[-1]) for each in done] == [("repair", None), ("rows", "w"), ("repair", "w")]
    assert EN["repair_would"].format(stores="rows") in looked.text
    assert EN["repair_did"].format(stores="rows", version=4) in whole.text
    assert EN["repaired_rows"].format(compared=1, rows=5, remaining=0) in rows.text
    assert other.status_code == 422


async def test_what_is_paused_is_said_and_resumed(tmp_path: Path) -> None:
    keys, does = tmp_path / "keys", Done("orders")
    async with console(Made(), keys, doing=does) as browser:
        viewer, operator = bearer(new_key(keys, "view")), bearer(new_key(keys, "all", "operate"))
        form = {"kind": "lane", "name": "3", "why": "it is broken", "step": "pause"}
        seen = await browser.get("/pauses", headers=viewer)
        refused = await browser.post("/pauses", headers=viewer, data=form)
        paused = await browser.post("/pauses", headers=operator, data=form)
        again = await browser.post("/pauses", headers=operator, data=form | {"name": "7"})
        resumed = await browser.post("/pauses", headers=operator, data=form | {"step": "resume"})
        wrong = [
            await browser.post("/pauses", headers=operator, data=form | change)
            for change in ({"why": ""}, {"kind": "world"}, {"step": "stop"})
        ]
    assert "Since 2026-01-01 00:00:00 UTC, by orders:" in seen.text
    assert 'value="resume"' not in seen.text
    assert refused.status_code == 403
    done = [each for each in does.asked if each[0] != "paused"]
    lane = ("lane", "3", "it is broken")
    assert done == [("pause", *lane), ("pause", "lane", "7", "it is broken"), ("resume", *lane)]
    assert EN["pause_did"].format(name="Lane 3") in paused.text
    assert EN["pause_was"].format(name="Lane 7") in again.text
    assert EN["resume_did"].format(name="Lane 3") in resumed.text
    assert {each.status_code for each in wrong} == {422}


# -- dead letters --------------------------------------------------------------------------------------------


async def test_a_redrive_takes_what_its_preview_showed() -> None:
    does = Done()
    async with console(Made("mine"), doing=does) as browser:
        listed = (await browser.get("/dead-letters?reason=mine&hour=2027-01-15T07")).text
        link = re.findall(r'href="(/redrive[^"]*)"', listed)[0].replace("&amp;", "&")
        preview = await browser.get(link)
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', preview.text))
        sent = await browser.post("/redrive", data={**fields, "why": "mended"})
        one = (await browser.get("/dead-letters/1:7")).text
    (_, tried, _, _), (_, done, _, why) = does.asked[:2]
    assert tried == done == Selection(frozenset({"mine"}), since="2027-01-15T07", until="2027-01-15T08")
    assert why == "mended"
    assert EN["redrive_would"].format(n=3) in preview.text
    assert EN["redrive_did"].format(n=3) in sent.text
    assert 'href="/redrive' not in one  # its topic is none that a lane reads


async def test_letters_are_resolved_with_a_reason_and_opened_again() -> None:
    does, shows = Done("mine"), Made("mine")
    async with console(shows, doing=does) as browser:
        listed = (await browser.get("/dead-letters?reason=mine&hour=2027-01-15T07")).text
        link = re.findall(r'href="(/resolve[^"]*)"', listed)[0].replace("&amp;", "&")
        preview = await browser.get(link)
        fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', preview.text))
        sent = await browser.post("/resolve", data={**fields, "step": "resolve", "why": "sent anew"})
        several = await browser.post("/resolve", data={**fields, "step": "reopen", "why": "a mistake"})
        one = await post(browser, "/resolve", id="1:7", step="resolve", why="sent anew")
        resolved = Resolved(TIME, "anna", "sent anew", shows.letter_.record)
        shows.letter_ = shows.letter_._replace(resolved=resolved)
        shown = (await browser.get("/dead-letters/1:7")).text
        listed = (await browser.get("/dead-letters?state=resolved")).text
        again = await post(browser, "/resolve", id="1:7", step="reopen", why="a mistake")
    of_group = Selection(frozenset({"mine"}), since="2027-01-15T07", until="2027-01-15T08")
    done = [each[:2] + each[3:] for each in does.asked if each[0] in ("resolve", "reopen")]
    assert done[0] == ("resolve", of_group, "sent anew")
    assert [(each[0], each[1].ids, each[2]) for each in done[1:]] == [
        ("resolve", frozenset({(1, 7)}), "sent anew"),
        ("reopen", frozenset({(1, 7)}), "a mistake"),
    ]
    assert EN["resolve_are"].format(n=2, state=EN["state_new"]) in preview.text
    assert EN["resolve_did"].format(n=2) in sent.text
    assert EN["resolve_not"].format(n=1, state=EN["state_redriven"]) in sent.text
    assert (several.status_code, one.status_code) == (422, 200)
    assert "by anna: sent anew" in shown
    assert 'value="reopen"' in shown
    assert 'value="resolve"' not in shown
    assert "/dead-letters/1:7" in listed
    assert EN["reopen_did"].format(n=1) in again.text


async def test_a_letters_type_is_held_and_released_from_its_page(tmp_path: Path) -> None:
    keys, does, shows = tmp_path / "keys", Done("order.paid"), Made()
    shows.letter_ = letter(headers=(("ce_type", b"payment.failed"),))
    async with console(shows, keys, doing=does) as browser:
        support, operator = bearer(new_key(keys, "all")), bearer(new_key(keys, "all", "operate"))
        seen = (await browser.get("/dead-letters/1:7", headers=support)).text
        free = (await browser.get("/dead-letters/1:7", headers=operator)).text
        form = dict(re.findall(r'type="hidden" name="(kind|name|letter)" value="([^"]*)"', free))
        held = await browser.post("/pauses", headers=operator, data=form | {"step": "pause", "why": "w"})
        shows.letter_ = letter(headers=(("ce_type", b"order.paid"),))
        paused = (await browser.get("/dead-letters/1:7", headers=operator)).text
    assert 'action="/pauses"' not in seen
    assert form == {"kind": "type", "name": "payment.failed", "letter": "1:7"}
    assert ("pause", "type", "payment.failed", "w") in does.asked
    assert 'href="/dead-letters/1:7"' in held.text
    assert 'value="pause"' in free
    assert 'value="resume"' not in free
    assert 'value="resume"' in paused  # its topic is paused
    assert 'value="pause"' not in paused


@pytest.mark.parametrize("fields", [{}, {"id": "1"}, {"id": "1:2:3"}, {"id": "x:1"}, {"since": "2026"}])
def test_a_redrive_names_its_letters(fields: dict[str, str]) -> None:
    with pytest.raises(Invalid):
        selection_of(fields)


def test_letters_are_chosen_by_their_times() -> None:
    refused = letter("r", time="2027-01-15T07:30:00.000000+00:00")
    for since, until, taken in (
        ("", "", True),
        ("2027-01-15T07", "2027-01-15T08", True),
        ("2027-01-15T07:30:00", "", True),
        ("2027-01-15T07:31", "", False),
        ("", "2027-01-15T07:30", False),
        ("2027-01-15T08", "", False),
    ):
        assert Selection(since=since, until=until).takes(refused) is taken, (since, until)
    assert selection_of({"id": "1:7"}).ids == frozenset({(1, 7)})
    assert selection_of({"reason": "r"}).until > "2026"


# -- what if -------------------------------------------------------------------------------------------------


def tried(built: OrderBuilder | None, type_: str, **data: Any) -> WhatIf:
    event: Record = event_of(type_, {"order_id": ORDER, **data}, "e", NOW)
    return what_if(Settings(), UUID(ORDER), None if built is None else built.order, event)


def paid() -> OrderBuilder:
    built = OrderBuilder()
    built.create(line(1, quantity=2), line(2, seller=BORIS))
    built.pay("30.00")
    return built.settle()


def changes(outcome: WhatIf) -> dict[str, tuple[str, str]]:
    return {each.path: (each.before, each.after) for each in outcome.changes}


def test_a_payment_changes_status_and_money_and_sends_commands() -> None:
    built = OrderBuilder()
    built.create(line(1, quantity=2))
    version = built.order.version
    outcome = tried(built, "order.paid", payment_id=payment(1), amount="20.00", currency="EUR")
    assert (outcome.status, outcome.status_then) == ("pending", "confirmed")
    assert changes(outcome)["money.captured"] == ("0.00", "20.00")
    assert changes(outcome)["suborders[0].status"] == ("pending", "confirmed")
    assert [fact["type"] for fact in outcome.facts] == ["order.paid"]
    left = {each.type for each in outcome.leaves}
    assert {"order.status_changed", "suborder.updated", "shipping.label.create"} <= left
    assert outcome.whole
    assert built.order.version == version  # nothing was done


def test_decisions_that_follow_are_looked_at_too() -> None:
    outcome = tried(paid(), "stock.rejected", seller_id=BORIS, reservation_id=payment(3))
    assert [fact["type"] for fact in outcome.facts] == ["stock.rejected", "refund.decided"]
    assert [each.type for each in outcome.leaves].count("refund.request") == 1
    assert changes(outcome)["money.refunds_decided"] == ("0.00", "10.00")


def test_what_is_known_changes_nothing_and_what_is_refused_says_why() -> None:
    again = tried(paid(), "order.paid", payment_id=payment(1), amount="30.00", currency="EUR")
    other = tried(paid(), "order.paid", payment_id=payment(1), amount="31.00", currency="EUR")
    assert again.nothing or again.leaves == []
    assert [code for code, _ in other.refused] == ["key_conflict"]
    assert other.leaves == []


def test_an_order_that_is_not_known_may_begin() -> None:
    outcome = tried(None, "order.paid", payment_id=payment(1), amount="30.00", currency="EUR")
    assert (outcome.version, outcome.status, outcome.status_then) == (0, None, None)
    assert [fact["type"] for fact in outcome.facts] == ["order.paid"]
    assert outcome.leaves == []


async def test_what_would_be_is_a_page() -> None:
    does = Done()
    data = json.dumps({"order_id": ORDER, "payment_id": payment(5), "amount": "1.00", "currency": "EUR"})
    async with console(Made(HOSTILE), doing=does) as browser:
        form = {"type": "order.paid", "data": data, "time": "2026-01-01T12:00:00Z", "step": "send"}
        answer = await post(browser, f"/orders/{ORDER}/whatif", **form)
        unknown = await post(
            browser, f"/orders/{USER}/whatif", **(form | {"data": data.replace(ORDER, USER)})
        )
    assert (answer.status_code, unknown.status_code) == (200, 200)
    assert "money.captured" in answer.text
    assert is_plain(answer.text)
    assert "<script>alert" not in answer.text
    assert [each for each in does.asked if each[0] != "operations"] == []


async def test_operations_are_filtered_by_the_address() -> None:
    async with console(Made(), doing=Done("repair")) as browser:
        page = await browser.get("/operations?by=rep&command=repair&from=2026-01-01")
        none = await browser.get("/operations?command=rep")
    assert page.text.count('data-heading="By">repair</td>') == 2
    assert EN["under_way"] in page.text
    assert EN["no_operations"] in none.text
