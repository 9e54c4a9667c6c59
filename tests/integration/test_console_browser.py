"""The console in Chromium against real servers: what an operator and support do there, by mouse and by
keyboard, and the rules that hold on every page.
"""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio

from api.keys import changing
from console.texts import EN, text
from settings import Settings
from tests.chromium import chromium
from tests.integration import console_scene as known
from tests.integration.api_world import new_key
from tests.integration.console_scene import Scene, log_in, order_id, set_up
from tests.unit.builders import ANNA
from workload.producer import send

if TYPE_CHECKING:
    from playwright.async_api import Page

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WIDE: Final = {"width": 1600, "height": 1000}
NARROW: Final = {"width": 400, "height": 800}
WCAG: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(fresh_once: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with chromium() as browser, set_up(fresh_once, tmp_path_factory.mktemp("scene"), browser) as scene:
        yield scene


# -- the rules of every page ---------------------------------------------------------------------------------


async def broken_rules(page: Page, rules: dict[str, Any]) -> list[tuple[str, str]]:
    """axe-core's rules that the page breaks, and where."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not await page.evaluate("() => 'axe' in window"):
        await page.evaluate(AXE_SCRIPT)
    found = await page.evaluate(
        "(rules) => axe.run(document, {runOnly: rules, resultTypes: ['violations'], preload: false})", rules
    )
    return [
        (violation["id"], node["html"][:300])
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


async def is_well_made(page: Page) -> None:
    """The page breaks no rule of WCAG 2.1 A and AA, in light nor in dark, and doesn't scroll sideways."""
    assert await broken_rules(page, {"type": "tag", "values": WCAG}) == [], page.url
    await fits(page, 1600)
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size(NARROW)
    assert await broken_rules(page, {"type": "rule", "values": ["color-contrast"]}) == [], page.url
    await fits(page, 400)
    await page.emulate_media(color_scheme="light")
    await page.set_viewport_size(WIDE)


async def fits(page: Page, width: int) -> None:
    assert await page.evaluate("document.documentElement.scrollWidth") <= width, page.url


async def test_every_page_keeps_the_rules(scene: Scene) -> None:
    order = order_id(0)
    [[seller]] = await scene.fetch("SELECT seller_id FROM orders_suborder WHERE order_id = $1", order)
    async with scene.visit("operator", viewport=WIDE) as page:
        await page.goto("/dead-letters?hours=0&state=new")
        letter = await page.locator("a[href^='/dead-letters/']").first.get_attribute("href")
        assert letter is not None
        for path in (
            *("/", "/lanes", "/jobs", "/pauses", "/operations", "/find?q=nothing", "/find", "/nowhere"),
            *("/dead-letters?hours=0", letter),
            *("/redrive?reason=field_malformed", "/resolve?reason=field_malformed"),
            *("/work/attention", "/work/late", "/work/refunds", "/work/returns", "/work/late?days=x"),
            *(f"/orders/{order}", f"/orders/{order}?as_of=1999-01-01T00:00:00Z", f"/orders/{order}/records"),
            *(f"/orders/{order}/{what}" for what in ("whatif", "cancel", "grant")),
            *(
                f"/orders/{order}/stores",
                f"/repair/{order}",
                f"/users/{known.SOMEBODY}",
                f"/sellers/{seller}",
            ),
        ):
            await page.goto(path)
            await is_well_made(page)
    async with scene.visit(viewport=WIDE) as page:
        await page.goto("/login")
        await log_in(page, "none of the keys")
        assert EN["wrong_key"] in await page.get_by_role("alert").inner_text()
        await is_well_made(page)


# -- what an operator does -----------------------------------------------------------------------------------

SHIFTS: Final = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const each of list.getEntries()) window.shifted += each.value; })
  .observe({ type: "layout-shift", buffered: true });
"""


async def test_the_overview_follows_what_happens(scene: Scene) -> None:
    """Numbers change by themselves, and nothing jumps while they do."""
    from playwright.async_api import expect

    async with scene.visit("operator", viewport=WIDE) as page:
        await page.add_init_script(SHIFTS)
        await page.goto("/")
        counted = page.locator("#letters small")
        before = int(re.sub(r"\D", "", await counted.inner_text()))
        for count in (1, 2, 3):
            await send(scene.settings, known.refused_events(1, 10 * count))
            await expect(counted).to_have_text(
                text("letters_lately", n=f"{before + count:,}"), timeout=30_000
            )
        await expect(page.locator("#flow polyline.in")).to_be_attached(timeout=30_000)
        await expect(page.locator("[data-lost]")).to_be_hidden()
        assert await page.evaluate("window.shifted") < 0.1


async def test_an_operator_finds_and_mends(scene: Scene) -> None:
    from playwright.async_api import expect

    order = order_id(0)
    async with scene.visit("operator", viewport=WIDE) as page:
        for looked_for in (order[:8], "TRACK-0"):
            await page.goto("/jobs")
            await page.get_by_role("searchbox").fill(looked_for)
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"**/orders/{order}")
        await expect(page.locator("h1")).to_contain_text(order)
        await page.get_by_role("link", name=EN["then"]).first.click()
        await expect(page.locator(".note").first).to_contain_text(EN["as_of_shown"].partition("{")[0])
        await page.get_by_role("link", name=EN["as_of_now"]).click()
        await _slide(page, order)
        await _repair(scene, page, order)
        await _resolve_and_hold(page)
        await _redrive(page)
        await _pause(page)
        operations = page.locator("tbody tr")
        await page.get_by_role("link", name=EN["operations"]).click()
        for words in (("pause", "the lane is hot"), ("resume", "it is cold"), ("repair", "gone by hand")):
            shown = operations.filter(has_text=words[0]).filter(has_text=words[1])
            await expect(shown).to_have_count(1)
            await expect(shown).to_contain_text(EN["outcome_done"])


async def _slide(page: Page, order: str) -> None:
    """By keyboard to the order's first fact, and back to what it is now; the slider keeps the focus."""
    from playwright.async_api import expect

    slider, head = page.get_by_role("slider"), page.locator("h1")
    now = await head.inner_text()
    await slider.press("Home")
    await page.wait_for_url("**as_of=**")
    await expect(page.locator(".note").first).to_contain_text(EN["as_of_shown"].partition("{")[0])
    await expect(slider).to_be_focused()
    assert await slider.get_attribute("aria-valuetext") == await page.locator(".slider output").inner_text()
    assert await page.get_by_label(EN["as_of"], exact=True).input_value() in page.url.replace("%3A", ":")
    await slider.press("End")
    await page.wait_for_url(f"**/orders/{order}")
    await expect(head).to_have_text(now)


async def _resolve_and_hold(page: Page) -> None:
    await page.goto("/dead-letters?hours=0&state=new")
    await page.locator("a[href^='/dead-letters/']").last.click()
    letter = page.url
    forms = page.locator("form.form")
    resolve = forms.filter(has=page.get_by_role("button", name=EN["resolve"], exact=True))
    await resolve.get_by_label(EN["why_ask"]).fill("sent anew")
    await resolve.get_by_role("button").click()
    assert text("resolve_did", n=1) in await page.get_by_role("status").inner_text()
    await page.goto(letter)
    assert EN["state_resolved"] in await page.locator("h1").inner_text()
    reopen = forms.filter(has=page.get_by_role("button", name=EN["reopen"]))
    await reopen.get_by_label(EN["why_ask"]).fill("a mistake")
    await reopen.get_by_role("button").click()
    await page.goto(letter)
    for button, said in ((EN["hold"], "pause_did"), (EN["release"], "resume_did")):
        form = forms.filter(has=page.get_by_role("button", name=button, exact=True))
        await form.get_by_label(EN["why_ask"]).fill("they are wrong")
        await form.get_by_role("button").click()
        assert text(said, name="").partition(":")[0] in await page.get_by_role("status").inner_text()
        await page.goto(letter)
        await is_well_made(page)


async def _repair(scene: Scene, page: Page, order: str) -> None:
    count = "SELECT count(*) FROM orders_order_item WHERE order_id = $1"
    await scene.fetch("DELETE FROM orders_order_item WHERE order_id = $1", order)
    await page.get_by_role("link", name=EN["repair"], exact=True).click()
    await page.get_by_label(EN["why_ask"]).fill("gone by hand")
    await page.get_by_role("button", name=EN["repair_rows"]).click()
    assert "1 rows written" in await page.get_by_role("status").inner_text()
    await is_well_made(page)
    assert (await scene.fetch(count, order))[0][0] == 1


async def _redrive(page: Page) -> None:
    await page.goto("/dead-letters?hours=0&state=new")
    await page.locator("a[href^='/dead-letters/']").first.click()
    await page.get_by_role("link", name=EN["redrive"], exact=True).click()
    assert text("redrive_would", n=1) in await page.get_by_role("status").inner_text()
    await page.get_by_label(EN["why_ask"]).fill("mended")
    await page.get_by_role("button", name=EN["redrive"]).click()
    assert text("redrive_did", n=1) in await page.get_by_role("status").inner_text()


async def _pause(page: Page) -> None:
    await page.get_by_role("link", name=EN["lanes"], exact=True).click()
    await page.get_by_role("link", name=EN["pauses"]).click()
    await page.get_by_label(EN["kind"]).select_option("lane")
    await page.get_by_label(EN["name"]).fill("1")
    await page.get_by_label(EN["why_ask"]).fill("the lane is hot")
    await page.get_by_role("button", name=EN["pause"]).click()
    assert text("pause_did", name="Lane 1") in await page.get_by_role("status").inner_text()
    await is_well_made(page)
    paused = page.get_by_role("article")
    assert "the lane is hot" in await paused.inner_text()
    await paused.get_by_label(EN["why_ask"]).fill("it is cold")
    await paused.get_by_role("button", name=EN["resume"]).click()
    assert EN["nothing_paused"] in await page.locator("main").inner_text()


async def test_what_waits_is_filtered_and_exported(scene: Scene, tmp_path: Path) -> None:
    async with scene.visit("support", viewport=WIDE) as page:
        await page.goto("/")
        await page.get_by_role("link", name=EN["work"], exact=True).click()
        kind = await page.locator(".doing a").first.inner_text()
        await page.locator(".doing a").first.click()
        kinds = await page.locator("tbody tr").all_inner_texts()
        assert kinds
        assert all(kind.split()[0] in row.replace("_", " ") for row in kinds)
        await page.get_by_role("link", name=EN["work_returns"]).click()
        async with page.expect_download() as started:
            await page.get_by_role("link", name=EN["as_csv"]).click()
        download = await started.value
        assert download.suggested_filename.startswith("returns-")
        await download.save_as(tmp_path / "returns.csv")
    rows = list(csv.reader((tmp_path / "returns.csv").read_text().splitlines()))
    cells = [cell for row in rows for cell in row]
    assert f"'{known.RETURN_REASON}" in cells
    assert [cell for cell in cells if cell[:1] in ("=", "+", "-", "@")] == []


# -- what support does, and what a viewer doesn't ------------------------------------------------------------


async def test_support_cancels_and_grants(scene: Scene) -> None:
    order = order_id(1)
    async with scene.visit("support", viewport=WIDE) as page:
        await page.goto(f"/orders/{order}")
        assert await page.get_by_role("link", name=EN["repair"], exact=True).count() == 0
        await page.get_by_role("link", name=EN["grant"]).click()
        await page.get_by_label(EN["amount"]).fill("2.50")
        await page.get_by_label(EN["why_ask"]).fill("it was late")
        await _look_and_send(page)
        await page.get_by_role("link", name=EN["back_to_order"]).click()
        await page.get_by_role("link", name=EN["cancel"]).click()
        await page.get_by_label(EN["seller"]).select_option(ANNA)
        await page.get_by_label(EN["why_ask"]).fill("asked by phone")
        await _look_and_send(page)
        await page.get_by_role("link", name=EN["back_to_order"]).click()
        await _until_shown(page, "order.cancel_requested")
        await _until_shown(page, "refund.granted")
        await page.get_by_role("link", name=EN["whatif"]).click()
        await page.get_by_role("button", name=EN["look"]).click()
        assert "payment_id" in await page.get_by_role("alert").inner_text()
        await is_well_made(page)


async def _look_and_send(page: Page) -> None:
    await page.get_by_role("button", name=EN["look"]).click()
    await page.get_by_role("heading", name=EN["would_change"]).wait_for()
    await is_well_made(page)
    await page.get_by_role("button", name=EN["send_it"]).click()
    assert EN["sent_place"].partition("{")[0] in await page.get_by_role("status").inner_text()


async def _until_shown(page: Page, type_: str) -> None:
    """Reload until the order has an event of this type, once the worker took it in."""
    shown = page.locator(".timeline .type", has_text=type_)
    for _ in range(300):
        if await shown.count():
            return
        await page.reload()
    raise AssertionError(f"no {type_} on {page.url}")


async def test_a_viewer_sees_nobody_and_changes_nothing(scene: Scene) -> None:
    order = order_id(2)
    forms = "form[method=post]:not([action='/logout'])"
    async with scene.visit("viewer", viewport=WIDE) as page:
        for path in (f"/orders/{order}", "/dead-letters?hours=0", "/work/returns", "/pauses", "/operations"):
            await page.goto(path)
            html = await page.content()
            assert known.SOMEBODY not in html
            assert "HYPERLINK" not in html
            assert await page.locator(forms).count() == 0
            await is_well_made(page)
        for path in (f"/users/{known.SOMEBODY}", f"/orders/{order}/cancel", f"/repair/{order}", "/redrive"):
            refused = await page.goto(path)
            assert refused is not None
            assert refused.status == 403
            assert await page.locator("h1").inner_text() == EN["status_403"]


async def test_a_session_that_is_over_leads_to_the_login_and_back(scene: Scene) -> None:
    key = new_key(scene.store, "all")
    async with scene.visit(viewport=WIDE) as page:
        await page.goto("/work/late?days=3")
        await log_in(page, key)
        await page.wait_for_url("**/work/late?days=3")
        with changing(scene.store) as keys:
            del keys[-1]
        await page.reload()
        assert EN["key_gone"] in await page.get_by_role("alert").inner_text()
        await log_in(page, scene.keys["support"])
        await page.wait_for_url("**/work/late?days=3")
        await page.get_by_role("button", name=EN["log_out"]).click()
        await page.wait_for_url("**/login")
        await page.goto("/work/late?days=3")
        assert EN["sign_in"] in await page.get_by_role("alert").inner_text()


# -- by keyboard alone ---------------------------------------------------------------------------------------

FOCUS: Final = """() => {
  const at = document.activeElement, style = getComputedStyle(at), box = at.getBoundingClientRect();
  return { name: at.tagName, text: (at.innerText || at.name || "").trim(), outline: style.outlineStyle,
    width: parseFloat(style.outlineWidth), inside: box.width > 0 && box.right > 0 && box.bottom > 0
      && box.top < innerHeight && box.left < innerWidth };
}"""


async def tab_to(page: Page, what: str) -> None:
    """Press Tab until the focus is on what has this text or name. Wherever it goes it shows."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        at = await page.evaluate(FOCUS)
        if at["name"] == "BODY":
            continue
        assert at["outline"] != "none", at
        assert at["width"] >= 2, at
        assert at["inside"], at
        if at["text"] == what:
            return
    raise AssertionError(f"no Tab leads to {what}")


async def test_an_order_is_cancelled_by_keyboard_alone(scene: Scene) -> None:
    order = order_id(3)
    async with scene.visit(viewport=WIDE) as page:
        press, write = page.keyboard.press, page.keyboard.type
        await page.goto("/login")
        await write(scene.keys["support"])
        await press("Enter")
        await page.wait_for_url(f"{scene.address}/")
        await press("Tab")
        assert (await page.evaluate(FOCUS))["text"] == EN["skip"]
        await press("Enter")
        assert await page.evaluate("document.activeElement.id") == "content"
        await press("/")
        await write(order[:8])
        await press("Enter")
        await page.wait_for_url(f"**/orders/{order}")
        await tab_to(page, EN["cancel"])
        await press("Enter")
        await page.wait_for_url("**/cancel")
        await tab_to(page, "why")
        await write("asked by phone")
        await tab_to(page, EN["look"])
        await press("Enter")
        await page.get_by_role("heading", name=EN["would_change"]).wait_for()
        await tab_to(page, EN["send_it"])
        await press("Enter")
        await page.get_by_role("status").wait_for()
        await tab_to(page, EN["back_to_order"])
        await press("Enter")
        await _until_shown(page, "order.cancel_requested")
