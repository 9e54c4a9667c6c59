"""The console's pages from shows-up data: what is shown to whom, what is escaped, what goes wrong."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from string import Formatter
from typing import Final
from uuid import UUID

import httpx
import pytest
from markupsafe import Markup

from console import letter_view, order_view, pages
from console.access import Role, role_of
from console.pages import labelled
from console.plot import HEIGHT, plot
from console.sources import explained
from console.texts import EN
from console.worklists import WORKLISTS, as_csv
from contracts.printable import printable
from operations.flow import points
from queries.worklists import WaitingReturn
from tests.unit.builders import ANNA, ORDER, USER, OrderBuilder, line
from tests.unit.console_world import ESCAPED, HOSTILE, Made, console, letter, new_key, order

CONSOLE: Final = Path(pages.__file__).parent
PAGES: Final = (
    "/",
    "/?part=live",
    "/lanes",
    "/lanes?part=live",
    "/jobs",
    "/jobs?state=open&part=live",
    "/dead-letters",
    "/dead-letters?hours=0&state=final",
    "/dead-letters/1:7",
    f"/orders/{ORDER}",
    f"/orders/{ORDER}?as_of=2026-01-01T01:00:00Z",
    f"/orders/{ORDER}/records",
    f"/orders/{ORDER}/stores",
    f"/users/{USER}",
    f"/sellers/{ANNA}",
    "/operations",
    "/pauses",
    "/redrive?reason=x",
    "/resolve?reason=x",
    f"/repair/{ORDER}",
    f"/orders/{ORDER}/whatif",
    f"/orders/{ORDER}/cancel",
    f"/orders/{ORDER}/grant",
    "/work/attention?kind=overpaid&from=2026-01-01",
    "/work/late",
    "/work/refunds?status=failed&days=7",
    "/work/returns?region=eu&cursor=x",
)


def bearer(key: str) -> dict[str, str]:
    """The header in which a program shows its key."""
    return {"Authorization": f"Bearer {key}"}


class Tags(HTMLParser):
    """Start tags with their attributes, and the text outside of script and style."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def is_plain(html: str) -> bool:
    """No script but our file, no style of its own, no handler, no address elsewhere."""
    for tag, attributes in Tags(html).tags:
        if tag == "script" and attributes.get("src") != "/static/script.js":
            return False
        if tag in ("style", "img", "iframe", "object", "base") or "style" in attributes:
            return False
        if any(name.startswith("on") for name in attributes):
            return False
        for name in ("href", "src", "action", "data-live"):
            if not re.match(r"(/(?!/)|#)", attributes.get(name) or "/"):
                return False
    return True


@pytest.mark.parametrize("path", PAGES)
async def test_what_came_in_is_never_markup(path: str) -> None:
    async with console(Made(HOSTILE)) as browser:
        answer = await browser.get(path)
    assert answer.status_code == 200, answer.text
    assert is_plain(answer.text)
    assert "<script>alert" not in answer.text
    free_text = not re.search(r"/orders/[^?]*(\?|$)", path) and not re.match(
        r"/repair|/resolve|.*state=final", path
    )
    if free_text and not path.startswith("/users"):
        assert ESCAPED in answer.text


@pytest.mark.parametrize("path", [*PAGES, "/nothing", "/find?q=x", "/orders/x", "/jobs?state=x"])
async def test_every_answer_forbids_what_is_inline_and_head_has_no_body(path: str) -> None:
    async with console(Made()) as browser:
        got, head = await browser.get(path), await browser.head(path)
    assert is_plain(got.text)
    policy = got.headers["content-security-policy"]
    assert policy.startswith("default-src 'self'")
    assert "unsafe" not in policy
    assert got.headers["cache-control"] == "no-store"
    assert (head.status_code, head.content) == (got.status_code, b"")
    assert head.headers["content-security-policy"] == policy


@pytest.mark.parametrize("text", [HOSTILE, "javascript:alert(1)", "\x00"])
async def test_what_is_looked_for_is_escaped(text: str) -> None:
    async with console(Made()) as browser:
        answer = await browser.get("/find", params={"q": text})
        error = await browser.get("/orders/" + "%3Cscript%3Ealert(1)%3C%2Fscript%3E"[:40])
        choice = await browser.get("/dead-letters", params={"hours": text})
    assert answer.status_code == 404
    assert choice.status_code == 422
    for each in (answer, error, choice):
        assert is_plain(each.text)
        assert "<script>alert" not in each.text


async def test_an_order_says_what_it_is_and_why() -> None:
    async with console(Made()) as browser:
        now = (await browser.get(f"/orders/{ORDER}")).text
        then = (await browser.get(f"/orders/{ORDER}", params={"as_of": "2026-01-01T00:30:00Z"})).text
        before = (await browser.get(f"/orders/{ORDER}", params={"as_of": "1999-01-01"})).text
    assert "every live unit is delivered" in now or "some live unit is in transit" in now
    assert "refund.decided" in now
    assert re.search(r'href="#fact-\d+"', now)
    assert f'href="/users/{USER}"' in now
    assert "shipment.updated" not in Tags(then).text
    assert "captured money doesn&#39;t cover the total" in then
    assert EN["not_there_then"] in before


def test_the_balance_adds_up_and_refunds_have_their_state() -> None:
    document, state, *_ = explained(UUID(ORDER), order(), None)
    of_refunds = order_view.refunds(document, state)
    assert [each.state for each in of_refunds] == ["waits"]
    for side in order_view.balance(document, of_refunds):
        signed = [Decimal(each.amount) * (-1 if each.sign == "-" else 1) for each in side[:-1]]
        assert sum(signed) == Decimal(side[-1].amount)
        assert side[-1].sign == "="
    for failed, said in ((True, "failed"), (False, "paid")):
        built = OrderBuilder()
        built.create(line(1, quantity=2))
        built.pay("20.00")
        built.stock("rejected", ANNA)
        built.settle()
        document, state, *_ = explained(UUID(ORDER), built.order, None)
        refund = document["refunds"][0]["refund_id"]
        more = {"reason": "x"} if failed else {}
        type_ = "refund.failed" if failed else "refund.completed"
        built.send(type_, 5, refund_id=refund, **more)
        document, state, *_ = explained(UUID(ORDER), built.order, None)
        assert [each.state for each in order_view.refunds(document, state)] == [said]


def test_a_bar_is_as_wide_as_its_line_has_units() -> None:
    counts = {"returned": 1, "delivered": 2, "in_transit": 4, "live": 5, "gone": 2}
    parts = order_view.bar(counts)
    assert [(each.name, each.units) for each in parts] == [
        ("returned", 1),
        ("delivered", 1),
        ("in_transit", 2),
        ("waiting", 1),
        ("gone", 2),
    ]
    assert [each.x + each.width for each in parts[:-1]] == [each.x for each in parts[1:]]
    assert parts[-1].x + parts[-1].width == order_view.WIDTH


@pytest.mark.parametrize(
    ("value", "detail", "marked"),
    [
        (b'{"items": [{"price": "x"}]}', "$.items[0].price: not money", ['"price": "x"']),
        (b'{"items": [{"sku": 1}]}', "$.items[0].price: missing", ["{"]),
        (b'{"id": "", "data": {"a": 1}}', "$.a: wrong", ['"a": 1']),
        (b'{"id": "", "data": {"a": 1}}', "ce_id: empty", ['"id": ""']),
        (b'{"a": 1}', "total_amount is not the sum", ["{"]),
        (b'{"items": [{}]}', "Object missing required field `sku` - at `$.items[0]`", ["{}"]),
        (b'{"a": 1}', "Object missing required field `order_id`", ["{"]),
        (b'{"id": "", "data": {"a": 1}}', "the amounts don't add up", ['"data": {']),
        (b'{"a": 1}', "ce_source: missing", []),
    ],
)
def test_a_reason_is_shown_at_its_place(value: bytes, detail: str, marked: list[str]) -> None:
    shown = letter_view.value_of(letter(value=value, detail=detail))
    assert shown.lines is not None
    assert [each.text.strip() for each in shown.lines if each.marked] == marked


@pytest.mark.parametrize("value", [b"", b"\xff", b"{", b"[" * 100_000, None])
def test_what_is_no_json_is_shown_as_bytes(value: bytes | None) -> None:
    assert letter_view.value_of(letter(value=value)).lines is None
    assert letter_view.in_hex(value or b"\x00A")[0].endswith("[" * 16 if value and value[:2] == b"[[" else "")


async def test_no_text_of_others_turns_a_page_around(monkeypatch: pytest.MonkeyPatch) -> None:
    async with console(Made()) as browser:
        page = (await browser.get("/find", params={"q": "a\x1b[2J\u202eb"})).text
    assert not {"\x1b", "\u202e"} & set(page)
    assert "a\\x1b[2J\\u202eb" in page


def test_cells_know_their_headings() -> None:
    rows = Markup('<tr class="bad"><td>1</td><td class="n">2</td></tr>\n<tr><td colspan="2">none</td></tr>')
    assert labelled(rows, ["a", 'b"']) == (
        '<tr class="bad"><td data-heading="a">1</td><td data-heading="b&#34;" class="n">2</td></tr>\n'
        '<tr><td colspan="2">none</td></tr>'
    )


def test_letters_are_grouped_by_hour_reason_and_topic() -> None:
    late = letter("late", time="2027-01-15T08:00:00Z")
    groups = letter_view.groups([letter("a"), letter("b"), letter("a"), late])
    assert [(each.hour, each.reason, each.letters) for each in groups] == [
        ("2027-01-15T08", "late", 1),
        ("2027-01-15T07", "a", 2),
        ("2027-01-15T07", "b", 1),
    ]


async def test_letters_are_filtered_by_the_address() -> None:
    async with console(Made("mine")) as browser:
        hit = await browser.get("/dead-letters?reason=mine&topic=mine&hour=2027-01-15T07")
        miss = await browser.get("/dead-letters?reason=other")
    assert "/dead-letters/1:7" in hit.text
    assert EN["no_letters"] in miss.text


# -- what waits for somebody ---------------------------------------------------------------------------------


async def test_a_row_may_lack_values_and_hides_what_others_wrote(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    shows = Made("written")
    async with console(shows, keys) as browser:
        for scope, shown in (("view", False), ("all", True)):
            page = await browser.get("/work/refunds", headers=bearer(new_key(keys, scope)))
            assert (page.text.count("written") == 2, EN["masked"] in page.text) == (shown, not shown)
        shows.text = ""
        empty = await browser.get("/work/refunds", headers=bearer(new_key(keys, "all")))
    assert empty.status_code == 200


async def test_filters_of_a_list_are_in_its_address_and_its_links() -> None:
    shows = Made()
    async with console(shows) as browser:
        given = {"seller_id": ANNA, "days": "3", "region": "a&b"}
        page = (await browser.get("/work/late", params=given)).text
        asked = shows.asked
        wrong = [
            await browser.get(f"/work/{path}")
            for path in ("late?seller_id=x", "refunds?status=new", "returns?days=2", "late?cursor=bad")
        ]
        missing = await browser.get("/work/other")
    assert asked["seller_id"] == UUID(ANNA)
    assert asked["region"] == "a&b"
    days = (datetime.now(UTC) - asked["before"]).total_seconds() / 86400
    assert 3 <= days < 3.01
    links = [tag[1]["href"] or "" for tag in Tags(page).tags if "cursor=" in (tag[1].get("href") or "")]
    assert links == [f"/work/late?days=3&seller_id={ANNA}&region=a%26b&cursor=more"]
    assert {each.status_code for each in wrong} == {422}
    assert missing.status_code == 404


@pytest.mark.parametrize("name", WORKLISTS)
async def test_a_list_is_a_file_too(name: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    shows = Made("=1+1")
    async with console(shows, keys) as browser:
        support, viewer = bearer(new_key(keys, "all")), bearer(new_key(keys, "view"))
        answer = await browser.get(f"/work/{name}?format=csv", headers=support)
        masked = await browser.get(f"/work/{name}?format=csv", headers=viewer)
        shows.too_many = True
        more = await browser.get(f"/work/{name}?format=csv", headers=support)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"].startswith(f'attachment; filename="{name}-')
    head, row = csv.reader(io.StringIO(answer.text))
    cells = dict(zip(head, row, strict=True))
    assert cells["order"] == ORDER
    assert cells["since"] == "2026-01-01T00:00:00Z"
    assert cells["detail" if name == "attention" else "region"] == "'=1+1"
    if "reason" in cells:
        assert cells["reason"] == "'=1+1"
        assert masked.text.count("=1+1") == 1
    assert more.status_code == 422


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", " =1", "\t=1", "\r=1", "\n1", "\ty"])
def test_cells_of_a_file_are_no_formulas(text: str) -> None:
    row = WaitingReturn(datetime(2026, 1, 1, tzinfo=UTC), UUID(ORDER), UUID(ANNA), text, UUID(ANNA), 1, "ok")
    head, cells = csv.reader(io.StringIO(as_csv(WORKLISTS["returns"], [row], personal=True), newline=""))
    shown = dict(zip(head, cells, strict=True))
    assert shown["region"] == printable(f"'{text}", lines=True)
    assert shown["reason"] == "ok"


def test_cells_of_a_file_steer_no_terminal() -> None:
    text = "a\x1b[2Jb\nc\u202ed"
    row = WaitingReturn(datetime(2026, 1, 1, tzinfo=UTC), UUID(ORDER), UUID(ANNA), "eu", UUID(ANNA), 1, text)
    file = as_csv(WORKLISTS["returns"], [row], personal=True)
    assert "a\\x1b[2Jb\nc\\u202ed" in file
    assert not {"\x1b", "\u202e"} & set(file)


async def test_what_needs_attention_is_counted_and_filtered() -> None:
    shows = Made()
    async with console(shows) as browser:
        aged = (await browser.get("/work/attention?days=7")).text
        before = shows.asked["before"]
        page = (await browser.get("/work/attention?kind=overpaid&from=2026-01-02T00:00:00Z")).text
        wrong = [
            await browser.get(f"/work/attention?{query}") for query in ("kind=x", "from=soon", "cursor=bad")
        ]
    assert 7 <= (datetime.now(UTC) - before).total_seconds() / 86400 < 7.01
    assert "days=7&amp;cursor=more" in aged
    assert shows.asked == {"kind": "overpaid", "since": datetime(2026, 1, 2, tzinfo=UTC)}
    assert 'href="/work/attention?kind=overpaid">overpaid</a> 2' in page
    assert "kind=overpaid&amp;from=2026-01-02T00%3A00%3A00Z&amp;cursor=more" in page
    assert {each.status_code for each in wrong} == {422}


# -- who sees what -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scopes", "role"),
    [
        (["view"], Role.VIEWER),
        (["all"], Role.SUPPORT),
        (["all", "operate"], Role.OPERATOR),
        (["view", "all"], Role.SUPPORT),
        (["operate"], None),
        (["tracking", "write"], None),
        ([f"user:{USER}"], None),
    ],
)
def test_a_role_follows_from_scopes(scopes: list[str], role: Role | None) -> None:
    assert role_of(scopes) is role


async def test_below_support_nothing_personal_is_shown(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    shows = Made("secret-text")
    shows.hits = [("user", UUID(USER))]
    async with console(shows, keys) as browser:
        viewer, support = bearer(new_key(keys, "view")), bearer(new_key(keys, "all"))
        for path in (f"/orders/{ORDER}", "/dead-letters", "/dead-letters/1:7"):
            answer = await browser.get(path, headers=viewer)
            assert answer.status_code == 200
            assert USER not in answer.text
            assert EN["masked"] in answer.text
        shown = (await browser.get("/dead-letters/1:7", headers=viewer)).text
        assert "&#34;price&#34;" not in shown
        shows.away.add("kafka")
        assert USER not in (await browser.get(f"/orders/{ORDER}", headers=viewer)).text
        shows.away.clear()
        for path in (f"/users/{USER}", f"/orders/{ORDER}/records"):
            assert (await browser.get(path, headers=viewer)).status_code == 403
            assert (await browser.get(path, headers=support)).status_code == 200
        assert USER in (await browser.get(f"/orders/{ORDER}", headers=support)).text
        assert (await browser.get("/find", params={"q": USER}, headers=viewer)).status_code == 404
        assert (await browser.get("/find", params={"q": USER}, headers=support)).status_code == 303


@pytest.mark.parametrize("path", [path for path in PAGES if "part" not in path] + ["/find?q=x"])
async def test_without_a_key_nobody_is_admitted(path: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    async with console(Made(), keys) as browser:
        answer = await browser.get(path)
        wrong = await browser.get(path, headers=bearer("ok_wrong"))
        seller = await browser.get(path, headers=bearer(new_key(keys, f"seller:{ANNA}")))
        style = await browser.get("/static/style.css")
    assert answer.status_code == wrong.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert "set-cookie" not in answer.headers
    assert EN["sign_in"] in answer.text
    assert EN["wrong_key"][:20] not in wrong.text
    assert seller.status_code == 403
    assert style.status_code == 200


async def test_without_keys_only_this_machine_is_answered() -> None:
    async with console(Made()) as browser:
        elsewhere = await browser.get("/", headers={"Host": "orders.example"})
    assert elsewhere.status_code == 403


# -- finding -------------------------------------------------------------------------------------------------


async def test_what_is_found_leads_there_and_what_is_not_is_said() -> None:
    shows = Made()
    async with console(shows) as browser:
        whole = await browser.get("/find", params={"q": f" {ORDER[:8]} "})
        shows.hits = [("parcel", UUID(ORDER))]
        by_parcel = await browser.get("/find", params={"q": USER})
        for kind in ("payment", "refund", "checkout", "cart", "return", "item"):
            shows.hits = [(kind, UUID(ORDER))]
            answer = await browser.get("/find", params={"q": USER})
            assert answer.headers["location"] == f"/orders/{ORDER}"
        shows.hits = [("user", UUID(USER)), ("seller", UUID(USER))]
        several = await browser.get("/find", params={"q": USER})
        shows.hits = []
        nothing = await browser.get("/find", params={"q": USER})
        empty = await browser.get("/find?q=")
    assert whole.headers["location"] == by_parcel.headers["location"] == f"/orders/{ORDER}"
    assert f'href="/users/{USER}"' in several.text
    assert f'href="/sellers/{USER}"' in several.text
    assert (nothing.status_code, empty.status_code) == (404, 404)
    assert f'href="/orders/{USER}"' in nothing.text
    assert EN["find_not"][:40] in nothing.text


# -- what goes wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["kafka", "postgres"])
async def test_an_outage_is_a_message(server: str) -> None:
    shows = Made()
    shows.away = {server}
    async with console(shows) as browser:
        answers = {path: await browser.get(path) for path in (*PAGES, "/find?q=0a0a0a0a")}
    assert answers["/"].status_code == 200
    for path, answer in answers.items():
        assert answer.status_code in (200, 303, 503), path
        if answer.status_code == 503:
            assert f"{server} doesn&#39;t answer" in answer.text
            assert answer.headers["retry-after"] == "1"
    if server == "kafka":
        assert "Kafka doesn&#39;t answer" in answers["/"].text
        assert EN["facts_away"][:24].replace("'", "&#39;") in answers[f"/orders/{ORDER}"].text


async def test_what_isnt_there_and_what_breaks_have_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    shows = Made()

    async def broken() -> None:
        raise RuntimeError("secret")

    async with console(shows) as browser:
        missing = [await browser.get(path) for path in ("/nothing", "/dead-letters/1:8", f"/orders/{USER}")]
        wrong = [
            await browser.get(path)
            for path in ("/orders/x", f"/orders/{ORDER}?as_of=soon", f"/sellers/{ANNA}?cursor=bad")
        ]
        post = await browser.post("/")
        monkeypatch.setattr(shows, "glance", broken)
        failed = await browser.get("/")
    assert {each.status_code for each in missing} == {404}
    assert {each.status_code for each in wrong} == {422}
    assert (post.status_code, failed.status_code) == (405, 500)
    assert "secret" not in failed.text
    assert EN["advice_500"] in failed.text
    for each in (*missing, *wrong, post, failed):
        assert is_plain(each.text)


# -- plots, texts --------------------------------------------------------------------------------------------


def test_flow_is_what_offsets_grew_by() -> None:
    grown = points({0: (10, 20), 120: (130, 20), 240: (130, 500)})
    assert [(each.taken_in, each.sent) for each in grown] == [(1.0, 0.0), (0.0, 4.0)]
    shown = plot([0.0, 3.0], [1.0, 0.0])
    assert shown.most == 5
    assert all(0 <= float(point.split(",")[1]) <= HEIGHT for point in shown.taken_in.split())


def source_of(name: str) -> str:
    return (CONSOLE / "templates" / name).read_text()


TEMPLATES: Final = sorted(path.name for path in (CONSOLE / "templates").iterdir())


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_hold_no_words(name: str) -> None:
    text = re.sub(r"{%.*?%}|{{.*?}}|{#.*?#}", "", source_of(name), flags=re.DOTALL)
    assert re.findall(r"[A-Za-z]{2,}", re.sub(r"<[^>]*>", "", text)) == []


def test_every_text_is_used_and_every_name_is_there() -> None:
    code = "\n".join(path.read_text() for path in CONSOLE.glob("*.py") if path.name != "texts.py")
    templates = "\n".join(map(source_of, TEMPLATES))
    named = set(re.findall(r'\b(?:t|text)\("(\w*[a-z\d])"', code + templates))
    assert named <= EN.keys()
    begun = (*re.findall(r'"(\w+_)" ~', templates), "hours_", "found_", "role_", "status_", "advice_")
    rest = {name for name in EN.keys() - named if not name.startswith(begun)}
    assert {name for name in rest if f'"{name}"' not in code + templates} == set()
    for name, said in EN.items():
        assert all(field is None or field.isidentifier() for _, field, _, _ in Formatter().parse(said)), name


def test_the_script_and_the_style_fetch_nothing() -> None:
    for name in ("script.js", "style.css"):
        assert not re.search(
            r"https?:|//\w|@import|url\(|eval|innerHTML", (CONSOLE / "static" / name).read_text()
        )


async def test_static_files_are_served() -> None:
    async with console(Made()) as browser:
        answers: list[httpx.Response] = [
            await browser.get(f"/static/{name}") for name in ("style.css", "script.js", "icon.svg")
        ]
    assert [each.status_code for each in answers] == [200] * 3
