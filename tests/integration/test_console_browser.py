"""The console in Chromium against real servers: what an operator and support do there, by mouse and by
keyboard, and the rules that hold on every page.
"""

from __future__ import annotations

import csv
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

import pytest
import pytest_asyncio

from api.keys import changing
from console.texts import EN, text
from settings import Settings
from tests.chromium import chromium
from tests.integration import console_scene as known
from tests.integration.console_scene import Scene, log_in, order_id, picture, set_up
from tests.unit.builders import ANNA
from workload.producer import send

if TYPE_CHECKING:
    from playwright.async_api import Locator, Page, ViewportSize

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="module")]

WIDE: Final[ViewportSize] = {"width": 1600, "height": 1000}
NARROW: Final[ViewportSize] = {"width": 400, "height": 800}
WCAG: Final = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(fresh_once: Settings, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Scene]:
    async with chromium() as browser, set_up(fresh_once, tmp_path_factory.mktemp("scene"), browser) as scene:
        yield scene


async def says(place: Locator, words: str) -> None:
    """Wait until it has these words."""
    from playwright.async_api import expect

    await expect(place).to_contain_text(words, timeout=known.TIMEOUT_MS)


# -- the rules of every page ---------------------------------------------------------------------------------


async def broken_rules(page: Page, rules: dict[str, Any]) -> list[tuple[str, str]]:
    """axe-core's rules that the page breaks, and where."""
    from axe_playwright_python.base import AXE_SCRIPT

    if not await page.evaluate("() => 'axe' in window"):
        await page.evaluate(AXE_SCRIPT)
    results = await page.evaluate(
        "(rules) => axe.run(document, {runOnly: rules, resultTypes: ['violations'], preload: false})", rules
    )
    return [
        (violation["id"], node["html"][:300])
        for violation in results["violations"]
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
    if width == NARROW["width"]:
        wide = "[...document.querySelectorAll('.scroll')].filter(e => e.scrollWidth > e.clientWidth).length"
        assert await page.evaluate(wide) == 0, f"{page.url}: a table has columns out of sight"


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
        await says(page.get_by_role("alert"), EN["wrong_key"])
        await is_well_made(page)


# -- what an operator does -----------------------------------------------------------------------------------

SHIFTS: Final = """
window.shifted = 0;
new PerformanceObserver((list) => { for (const each of list.getEntries()) window.shifted += each.value; })
  .observe({ type: "layout-shift", buffered: true });
"""


async def test_the_overview_follows_what_happens(scene: Scene) -> None:
    """Numbers change by themselves, and nothing jumps while they do."""
    async with scene.visit("operator", viewport=WIDE) as page:
        await page.add_init_script(SHIFTS)
        await page.goto("/")
        counted = page.locator("#letters small")
        before = int(re.sub(r"\D", "", await counted.inner_text()))
        for count in (1, 2, 3):
            await send(scene.settings, known.refused_events(1, 10 * count))
            await says(counted, text("letters_lately", n=f"{before + count:,}"))
        await page.locator("#flow polyline.in").wait_for(state="attached")
        assert await page.locator("[data-lost]").is_hidden()
        assert await page.evaluate("window.shifted") < 0.1
        await picture(page, "overview")
        await page.emulate_media(color_scheme="dark")
        await picture(page, "overview-dark")


async def test_an_operator_finds_and_mends(scene: Scene) -> None:
    order = order_id(0)
    async with scene.visit("operator", viewport=WIDE) as page:
        for looked_for in (order[:8], "TRACK-0"):
            await page.goto("/jobs")
            await page.get_by_role("searchbox").fill(looked_for)
            await page.keyboard.press("Enter")
            await page.wait_for_url(f"**/orders/{order}")
        await says(page.locator("h1"), order)
        await page.get_by_role("link", name=EN["then"]).first.click()
        await says(page.locator(".note").first, EN["as_of_shown"].partition("{")[0])
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
            await says(shown, EN["outcome_done"])
        await picture(page, "operations")


async def _picture_order(page: Page) -> None:
    await picture(page, "order")
    await page.emulate_media(color_scheme="dark")
    await page.set_viewport_size(NARROW)
    await picture(page, "order-narrow")
    await page.set_viewport_size(WIDE)
    await page.emulate_media(color_scheme="light")


async def _slide(page: Page, order: str) -> None:
    """By keyboard to the order's first fact, and back to what it is now; the slider keeps the focus."""
    from playwright.async_api import expect

    slider, head = page.get_by_role("slider"), page.locator("h1")
    now = await head.inner_text()
    await slider.press("Home")
    await page.wait_for_url("**as_of=**")
    await says(page.locator(".note").first, EN["as_of_shown"].partition("{")[0])
    await expect(slider).to_be_focused(timeout=known.TIMEOUT_MS)
    assert await slider.get_attribute("aria-valuetext") == await page.locator(".slider output").inner_text()
    assert await page.get_by_label(EN["as_of"], exact=True).input_value() in unquote(page.url)
    await slider.press("End")
    await page.wait_for_url(f"**/orders/{order}")
    await says(head, now)


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
    await says(page.get_by_role("status"), "1 rows written")
    await is_well_made(page)
    assert (await scene.fetch(count, order))[0][0] == 1


async def _redrive(page: Page) -> None:
    await page.goto("/dead-letters?hours=0&state=new")
    await picture(page, "dead-letters")
    await page.locator("a[href^='/dead-letters/']").first.click()
    await page.get_by_role("link", name=EN["redrive"], exact=True).wait_for()
    await picture(page, "dead-letter")
    await page.get_by_role("link", name=EN["redrive"], exact=True).click()
    await says(page.get_by_role("status"), text("redrive_would", n=1))
    await page.get_by_label(EN["why_ask"]).fill("mended")
    await page.get_by_role("button", name=EN["redrive"]).click()
    await says(page.get_by_role("status"), text("redrive_did", n=1))


async def _pause(page: Page) -> None:
    await page.get_by_role("link", name=EN["lanes"], exact=True).click()
    await page.get_by_role("link", name=EN["pauses"]).click()
    await page.get_by_label(EN["kind"]).select_option("lane")
    await page.get_by_label(EN["name"]).fill("1")
    await page.get_by_label(EN["why_ask"]).fill("the lane is hot")
    await page.get_by_role("button", name=EN["pause"]).click()
    await says(page.get_by_role("status"), text("pause_did", name="Lane 1"))
    await is_well_made(page)
    paused = page.get_by_role("article")
    await says(paused, "the lane is hot")
    await paused.get_by_label(EN["why_ask"]).fill("it is cold")
    await paused.get_by_role("button", name=EN["resume"]).click()
    await says(page.locator("main"), EN["nothing_paused"])


async def test_what_waits_is_filtered_and_exported(scene: Scene, tmp_path: Path) -> None:
    async with scene.visit("support", viewport=WIDE) as page:
        await page.goto("/")
        await page.get_by_role("link", name=EN["work"], exact=True).click()
        await page.locator(".doing a").first.wait_for()
        await picture(page, "work")
        kind = await page.locator(".doing a").first.inner_text()
        await page.locator(".doing a").first.click()
        await page.wait_for_url("**/work/attention?kind=*")
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
        await _look(page)
        await _send(page)
        await page.get_by_role("link", name=EN["back_to_order"]).click()
        await page.get_by_role("link", name=EN["cancel"]).click()
        await page.get_by_label(EN["seller"]).select_option(ANNA)
        await page.get_by_label(EN["why_ask"]).fill("asked by phone")
        await _look(page)
        await is_well_made(page)
        await picture(page, "cancel")
        await _send(page)
        await page.get_by_role("link", name=EN["back_to_order"]).click()
        await page.wait_for_url(f"**/orders/{order}")
        await _until_there(page, fact(page, "order.cancel_requested"))
        await _until_there(page, fact(page, "refund.granted"))
        await _picture_order(page)
        await page.get_by_role("link", name=EN["whatif"]).click()
        await page.get_by_role("button", name=EN["look"]).click()
        await says(page.get_by_role("alert"), "payment_id")
        await is_well_made(page)


async def _look(page: Page) -> None:
    await page.get_by_role("button", name=EN["look"]).click()
    await page.get_by_role("heading", name=EN["would_change"]).wait_for()


async def _send(page: Page) -> None:
    await page.get_by_role("button", name=EN["send_it"]).click()
    await says(page.get_by_role("status"), EN["sent_place"].partition("{")[0])


async def _until_there(page: Page, what: Locator) -> None:
    """Reload until the page has it, once the worker took in what was sent."""
    for _ in range(300):
        if await what.count():
            return
        await page.reload()
    raise AssertionError(f"{what} isn't on {page.url}")


def fact(page: Page, type_: str) -> Locator:
    """The order's event of this type, in its timeline."""
    return page.locator(".timeline .type", has_text=type_)


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
        for path in (f"/users/{known.SOMEBODY}", f"/orders/{order}/cancel", f"/repair/{order}", "/redrive"):
            refused = await page.goto(path)
            assert refused is not None
            assert refused.status == 403
            assert await page.locator("h1").inner_text() == EN["status_403"]


async def test_a_session_that_is_over_leads_to_the_login_and_back(scene: Scene) -> None:
    key = known.new_key(scene.store, "dora", "all")
    async with scene.visit(viewport=WIDE) as page:
        await page.goto("/work/late?days=3")
        await log_in(page, key)
        await page.get_by_role("button", name=EN["log_out"]).wait_for()
        assert page.url.endswith("/work/late?days=3")
        with changing(scene.store) as keys:
            del keys[-1]
        await page.reload()
        await says(page.get_by_role("alert"), EN["key_gone"])
        await log_in(page, scene.keys["support"])
        await page.get_by_role("button", name=EN["log_out"]).wait_for()
        assert page.url.endswith("/work/late?days=3")
        await page.get_by_role("button", name=EN["log_out"]).click()
        await page.wait_for_url("**/login")
        await page.goto("/work/late?days=3")
        await says(page.get_by_role("alert"), EN["sign_in"])


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
        await page.wait_for_url(f"**/orders/{order}")
        await _until_there(page, fact(page, "order.cancel_requested"))
