"""A console of made-up data: what a test puts into `Made` is what the pages show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import httpx

from api.binding import Record
from api.keys import changing, made
from api.sending import Place
from console.app import create_app
from console.doing import Doing
from console.live import Glance
from console.sources import Explained, Sources, explained
from console.stores_view import Compared, Row, Store, stores_of
from console.whatif import Change
from console.worklists import Worklist
from contracts.record_id import RecordId
from domain.order import Order
from operations.dead_letters import DeadLetter, Found, State
from operations.flow import Point
from operations.journal import Operation
from operations.records import Raw, RawRecords
from operations.redrive import RedriveResult, Selection
from operations.repair import RepairResult
from operations.resolve import ResolveResult
from operations.rows import RowsResult
from operations.status import DeadLetters, LaneStatus, Status
from queries.attention import OpenAttention
from queries.documents import (
    Head,
    OrderDetails,
    Orders,
    Parcel,
    ParcelDetails,
    Return,
    Sold,
    Suborders,
    Tracked,
)
from queries.errors import NotFound, Unavailable
from queries.worklists import Filters, LateSuborder, Page, WaitingRefund, WaitingReturn
from settings import Settings
from streams.control import Kind, Pause
from streams.reports import LaneReport, WorkerReport
from tests.unit.builders import ANNA, ORDER, USER, OrderBuilder, at, item_id, line, parcel, payment, returned

NOW: Final = 1_800_000_000.0
HOSTILE: Final = "\"><script>alert(1)</script><img src=x onerror=alert(2)>&'{{ 7*7 }}"
ESCAPED: Final = "&lt;script&gt;alert(1)&lt;/script&gt;"
TIME: Final = "2026-01-01T00:00:00.000000+00:00"


def order(text: str = "plain") -> Order:
    """An order with every kind of fact, free text in each of them that has any."""
    built = OrderBuilder()
    built.create(line(1, quantity=3), line(2), region="eu")
    built.pay("40.00")
    built.send("payment.failed", 1, payment_id=payment(9), reason=text)
    built.scan("delivered", items={1: 3}, carrier=text[:60], tracking_number=text[:60], location=text[:60])
    built.give_back("processed", 1, 3, quantity=1, reason=text, processed_at=at(3), restock=True)
    return built.settle().order


def letter(text: str = "plain", **changes: Any) -> DeadLetter:
    """A dead letter whose every field is this text."""
    whole: dict[str, Any] = {
        "partition": 1,
        "offset": 7,
        "reason": text,
        "detail": f"$.items[0].price: {text}",
        "time": "2027-01-15T07:30:00.000000+00:00",
        "record": RecordId(text, 0, 5),
        "key": text.encode(),
        "value": b'{"items": [{"price": "x"}], "other": "y"}',
        "headers": ((text, text.encode()),),
    }
    return DeadLetter(**(whole | changes))


class Made(Sources):
    """Answers with `text` in every field that somebody else wrote. `away`: what doesn't answer."""

    def __init__(self, text: str = "plain") -> None:
        self.settings = Settings()
        self.text = text
        self.away: set[str] = set()
        self.made = order(text)
        self.letter_ = letter(text)
        self.hits: list[tuple[str, UUID]] = []
        self.too_many = False
        self.versions: tuple[int | None, int | None] = (self.made.version, None)
        self.asked: dict[str, Any] = {}

    def _need(self, server: str) -> None:
        if server in self.away:
            raise Unavailable(f"{server} doesn't answer")

    async def close(self) -> None:
        """Nothing is open."""

    async def glance(self) -> Glance:
        if "kafka" in self.away:
            return Glance(None, None, "Kafka doesn't answer")
        reports = [LaneReport("0", 3, None, None, 4.0, self.text)]
        worker = WorkerReport(int(NOW * 1000), self.text, 1, self.text, reports, {self.text: 2.0})
        worker.refused, worker.stuck = {self.text: self.text}, self.text
        lanes = [
            LaneStatus(0, self.text, 3, 2.0, 4.0, None, self.text),
            LaneStatus(1, None, 0, None, None, None, None),
        ]
        servers = {"kafka": None, "postgres": self.text, "redis": None}
        letters = DeadLetters(2, {self.text: 2}, {})
        status = Status(NOW, 1, [worker], lanes, servers, letters, [self._job()], self.text)
        return Glance(status, [Point(0, 1.0, 2.0), Point(120, 3.0, 0.0)], None)

    async def order(self, order_id: UUID, at: datetime | None) -> Explained:
        self._need("kafka")
        if str(order_id) != ORDER:
            raise NotFound(f"no fact of order {order_id} is known")
        return explained(order_id, self.made, at)

    async def state(self, order_id: UUID) -> Order | None:
        self._need("kafka")
        return self.made if str(order_id) == ORDER else None

    async def stores(self, order_id: UUID, order: Order) -> list[Store]:
        return stores_of(order, *self.versions)

    async def compared(self, order_id: UUID) -> Compared:
        self._need("postgres")
        change = Change("status", self.text, "pending")
        return Compared([Row("orders_order", ORDER, False, False, [change])], [change])

    async def rows(self, order_id: UUID) -> OrderDetails:
        self._need("postgres")
        parcels = [
            ParcelDetails(UUID(parcel(1)), UUID(ANNA), "delivered", self.text, self.text, None, TIME, TIME, 1)
        ]
        returns = [Return(UUID(returned(1)), UUID(item_id(1)), 1, "processed", None, TIME, TIME, 1)]
        head = self._head()
        fields: list[Any] = [getattr(head, name) for name in Head.__slots__]
        fields += [self.text, "0", "0", [], parcels, returns]
        fields += [[], [], [], None, None]
        return OrderDetails(*fields)

    async def records(self, order_id: UUID, since: int, until: int | None) -> RawRecords:
        self._need("kafka")
        text = self.text.encode()
        return RawRecords([Raw("order.paid", 0, 1, 1, ((self.text, text),), text)], 10, whole=False)

    async def user(self, user_id: UUID, *_: Any) -> Orders:
        self._need("postgres")
        return Orders([self._head()], self.text)

    async def seller(self, seller_id: UUID, at: str | None) -> Suborders:
        self._need("postgres")
        if at == "bad":
            raise ValueError
        parcels = [Parcel(UUID(parcel(1)), UUID(ANNA), "delivered", self.text, self.text, None)]
        live: list[Any] = ["shipped", "1.00", None, "0", "0"] + [1] * (len(Sold.__slots__) - 15)
        one = Sold(UUID(ANNA), UUID(ORDER), TIME, "shipped", "EUR", 1, "1.00", "0.00", 3, parcels, *live)
        return Suborders([one], self.text)

    async def letters(self, since: int) -> tuple[list[Found], int]:
        self._need("kafka")
        return [(self.letter_, None)], 3

    async def letter(self, partition: int, offset: int) -> Found:
        self._need("kafka")
        if offset != self.letter_.offset:
            raise NotFound(f"no dead letter at {partition}:{offset}")
        return self.letter_, None

    async def waiting(self, of: Worklist, filters: Filters, at: str | None, most: int = 50) -> Page[Any]:
        self._need("postgres")
        if at == "bad":
            raise ValueError
        self.asked = dict(filters)
        return Page([self.waits(of)], None if at else "more")

    async def attention(self) -> dict[str, int]:
        return {"overpaid": 2}

    async def all_waiting(self, of: Worklist, filters: Filters) -> list[Any] | None:
        self._need("postgres")
        return None if self.too_many else [self.waits(of)]

    def waits(self, of: Worklist) -> Any:
        """A row of a list of what waits."""
        if of.name == "attention":
            since = "2026-01-01T00:00:00Z"
            return OpenAttention(UUID(ORDER), UUID(USER), "overpaid", self.text, since)
        then, ids = datetime(2026, 1, 1, tzinfo=UTC), (UUID(ORDER), UUID(item_id(1)))
        if of.name == "late":
            units: list[Any] = [3, 1, 0, then, None, "40.00", "EUR"]
            return LateSuborder(then, *ids, UUID(ANNA), self.text, "confirmed", *units)
        if of.name == "refunds":
            cause: list[Any] = ["return", UUID(returned(1)), 2, "10.00", "EUR", self.text or None]
            return WaitingRefund(then, *ids, self.text, "failed", *cause)
        return WaitingReturn(then, *ids, self.text, UUID(item_id(1)), 2, self.text)

    async def jobs(self) -> list[dict[str, Any]]:
        self._need("postgres")
        return [self._job()]

    async def found(self, id_: UUID) -> list[tuple[str, UUID]]:
        self._need("postgres")
        return self.hits

    async def beginning_with(self, digits: str) -> list[UUID]:
        self._need("postgres")
        return [UUID(ORDER)] if ORDER.startswith(digits) else []

    async def tracked(self, number: str) -> list[Tracked]:
        self._need("postgres")
        return []

    def _head(self) -> Head:
        return Head(UUID(ORDER), UUID(USER), "shipped", "EUR", "40.00", TIME, TIME, 3)

    def _job(self) -> dict[str, Any]:
        then = datetime(2026, 1, 1, tzinfo=UTC)
        numbers = {"parts": 4, "parts_sent": 4, "parts_done": 1, "events": 7, "lines": None, "refused": None}
        return {"job_id": UUID(ORDER), "kind": self.text, "created_at": then, "completed_at": None, **numbers}


class Done(Doing):
    """Notes what is asked of it, and answers with `text` where somebody else wrote something. `fails`: what
    each raises.
    """

    def __init__(self, text: str = "plain") -> None:
        self.text = text
        self.asked: list[tuple[Any, ...]] = []
        self.fails: Exception | None = None

    def _ask(self, *what: Any) -> None:
        self.asked.append(what)
        if self.fails is not None:
            raise self.fails

    async def close(self) -> None:
        """Nothing is open."""

    async def operations(self, since: datetime | None) -> list[Operation]:
        self._ask("operations", since)
        begun: dict[str, Any] = {
            "id": ORDER,
            "began": TIME,
            "by": self.text,
            "command": self.text,
            "why": self.text,
        }
        ended = Operation(**begun, arguments=[self.text], ended=TIME, outcome="failed", detail=self.text)
        return [Operation(**begun), ended]

    async def redrive(self, selection: Selection, by: str, why: str | None) -> RedriveResult:
        self._ask("redrive", selection, by, why)
        states: Counter[State] = Counter({"final": 2})
        return RedriveResult(sent=3, states=states, too_large=[self.text])

    async def states(self, selection: Selection) -> Counter[State]:
        self._ask("states", selection, None)
        return Counter({"new": 2, "redriven": 1})

    async def resolve(self, selection: Selection, by: str, why: str) -> ResolveResult:
        self._ask("resolve", selection, by, why)
        return ResolveResult(2, Counter({"redriven": 1}))

    async def reopen(self, selection: Selection, by: str, why: str) -> int:
        self._ask("reopen", selection, by, why)
        return 1

    async def paused(self) -> list[Pause]:
        self._ask("paused", None)
        return [Pause("topic", self.text, TIME, self.text, self.text)]

    async def pause(self, kind: Kind, name: str, by: str, why: str) -> bool:
        self._ask("pause", kind, name, why)
        return name != "7"

    async def resume(self, kind: Kind, name: str, by: str, why: str) -> bool:
        self._ask("resume", kind, name, why)
        return True

    async def repair(self, order_id: UUID, by: str, why: str | None) -> RepairResult:
        self._ask("repair", order_id, by, why)
        return RepairResult(why is None, {ORDER: (["rows"], 4)}, remaining=Counter({self.text: 1}))

    async def repair_rows(self, order_id: UUID, by: str, why: str) -> RowsResult:
        self._ask("rows", order_id, by, why)
        return RowsResult(False, 1, 1, 5)

    async def send(self, record: Record, order_id: UUID, by: str, why: str) -> Place:
        self._ask("send", record, order_id, by, why)
        return Place(1, None)


@asynccontextmanager
async def console(
    sources: Made,
    keys: Path | None = None,
    at: str = "",
    client: str = "127.0.0.1",
    doing: Done | None = None,
    **changes: Any,
) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of the console; `keys`: an empty file of named keys. `at`: the console's address; `client`:
    the browser's; `changes`: of the settings.
    """
    settings = Settings.model_validate(changes)
    host = "http://localhost"
    if keys is not None:
        keys.write_text("")
        settings, host = settings.model_copy(update={"api_key_store": keys}), "https://orders.example"
    sources.settings = settings
    app = create_app(settings, sources, doing or Done(sources.text))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False, client=(client, 1))
    async with httpx.AsyncClient(transport=transport, base_url=at or host) as browser:
        yield browser


def token_in(html: str) -> str:
    """The token of a page's forms."""
    field = re.search(r'name="token" value="([0-9a-f]{64})"', html)
    assert field is not None, html
    return field[1]


def new_key(store: Path, *scopes: str) -> str:
    """A key with these scopes, added to the file."""
    with changing(store) as keys:
        line_, key = made(f"key-{len(keys)}", scopes)
        keys.append(line_)
    return key
