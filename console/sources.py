"""Everything that pages show, from the servers. By the same library as the API and the command line."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
from aiokafka.errors import KafkaError

from console.live import Glance, Live
from console.stores_view import Compared, Store, compare, held_of, stores_of
from console.texts import text
from console.worklists import Worklist
from domain.asof import as_of
from domain.explain import explain
from domain.facts import Facts
from domain.order import Order
from errors import OrdersError
from operations.answers import refused
from operations.dead_letters import Found, NoSuchLetter, find, recent
from operations.postgres.compare import with_rows
from operations.postgres.ddl import connect
from operations.records import RawRecords, of_order
from queries.attention import attention_counts, open_attention
from queries.documents import Health, OrderDetails, Orders, Suborders, Tracked
from queries.errors import NotFound, Unavailable
from queries.keyset import Position, micros
from queries.reader import Reader
from queries.state import States
from queries.worklists import Filters, Page, Place, page
from settings import Settings
from sinks.bulk import BulkJobs

LETTERS: Final = 50_000
"""Dead letters that a page looks at."""
SERVER_SECONDS: Final = 3.0
LETTER_SECONDS: Final = 20.0
RECORD_SECONDS: Final = 5.0
COMPARE_SECONDS: Final = 5.0
CLOCKS: Final = timedelta(minutes=5)
"""By which senders' clocks may be ahead of the brokers' before an order costs a read of more."""
PAGE: Final = 50
"""Rows of a list."""
EXPORTED: Final = 10_000
"""Rows that are read at once for a file."""
MOST_EXPORTED: Final = 100_000
"""Rows of a file."""

_details: Final = msgspec.json.Decoder(OrderDetails).decode
_orders: Final = msgspec.json.Decoder(Orders).decode
_suborders: Final = msgspec.json.Decoder(Suborders).decode
_parcels: Final = msgspec.json.Decoder(list[Tracked]).decode


class Explained(NamedTuple):
    """An order's explanation as of a time (domain.explain), and the state that it is made of; `now`: the
    state as it is now; `facts`: of all of that, as the explanation has them.
    """

    document: dict[str, Any]
    order: Order
    now: Order
    facts: list[dict[str, Any]]


class Sources:
    """All that is read. Each method raises Unavailable when what it needs doesn't answer."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._reader = Reader(settings)
        self._states = States(settings)
        self._live = Live(settings)
        self._jobs = BulkJobs(settings, "orders-console")
        self._turn = asyncio.Lock()
        """The jobs' connection, which takes one statement at a time."""

    async def close(self) -> None:
        """Close all connections."""
        await self._live.close()
        await self._reader.close()
        self._jobs.drop()

    async def glance(self) -> Glance:
        """How everything does. Blocks as Live.glance."""
        return await self._live.glance()

    async def order(self, order_id: UUID, at: datetime | None) -> Explained:
        """An order as of a time. Blocks while the changelog is read that was written since the order changed
        last, or all of its partition. Raises NotFound.
        """
        order = await self.state(order_id)
        if order is None:
            raise NotFound(text("no_order", id=order_id))
        # Of an order of thousands of facts it takes longer than others should wait.
        return await asyncio.to_thread(explained, order_id, order, at)

    async def state(self, order_id: UUID) -> Order | None:
        """An order's state; None: no fact of it is known. Blocks as `order`."""
        changed = await self._reader.changed_at(order_id)
        # It was written once the last fact had come, which is seldom before that fact's own time.
        return await self._states.of(order_id, None if changed is None else changed - CLOCKS)

    async def stores(self, order_id: UUID, order: Order) -> list[Store]:
        """What state, rows and cache have of an order whose state is known. Blocks for round trips; what
        doesn't answer is said.
        """
        user_id = None if order.created is None else UUID(bytes=order.created.user_id)
        rows, cache = await asyncio.gather(
            self._reader.version_in_rows(order_id, user_id), self._reader.version_in_cache(order_id)
        )
        return stores_of(order, rows, cache)

    async def compared(self, order_id: UUID) -> Compared:
        """Compare an order's rows and its cache entry with its state, value by value. Blocks as `order`, and
        for round trips. Raises NotFound.
        """
        order = await self.state(order_id)
        if order is None:
            raise NotFound(text("no_order", id=order_id))
        held = await asyncio.to_thread(held_of, self.settings, order_id, order)
        try:
            async with asyncio.timeout(COMPARE_SECONDS), connect(self.settings) as connection:
                differences = await with_rows(connection, held.rows, [str(order_id)])
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            raise Unavailable(said_of("Postgres", error, text("postgres_away"))) from error
        return compare(held, differences, (await self._reader.cache.order(order_id))[0])

    async def rows(self, order_id: UUID) -> OrderDetails:
        """What cache and rows have of an order, for when its facts can't be read. Raises NotFound."""
        return _details((await self._reader.details(order_id)).body)

    async def records(self, order_id: UUID, since: int, until: int | None) -> RawRecords:
        """The records of an order of a time, ms since 1970. Blocks for RECORD_SECONDS and round trips."""
        async with _of_kafka(4 * RECORD_SECONDS):
            return await of_order(self.settings, order_id, since, until, RECORD_SECONDS)

    async def user(
        self,
        user_id: UUID,
        status: str | None,
        since: datetime | None,
        until: datetime | None,
        at: str | None,
    ) -> Orders:
        """A page of a user's orders. Raises ValueError for a cursor that is none."""
        after = None if at is None else Position.parse(at)
        if status is None and since is None and until is None and after is None:
            return _orders((await self._reader.recent(user_id, PAGE)).body)
        answer = await self._reader.history(
            user_id, PAGE, status=status, since=since, until=until, after=after
        )
        return _orders(answer.body)

    async def seller(self, seller_id: UUID, at: str | None) -> Suborders:
        """A page of a seller's suborders. Raises ValueError for a cursor that is none."""
        after = None if at is None else Position.parse(at)
        return _suborders((await self._reader.suborders(seller_id, PAGE, after=after)).body)

    async def waiting(self, of: Worklist, filters: Filters, at: str | None, most: int = PAGE) -> Page[Any]:
        """A page of a list of what waits. Raises ValueError for a cursor that is none."""
        if of.rows is None:
            shown = await open_attention(self._reader.databases, most, cursor=at, **filters)
            return Page(shown.rows, shown.next)
        after = None if at is None else Place.parse(at)
        rows = await self._reader.waiting(of.rows.query(filters, after, most + 1))
        return page([of.rows.row(row) for row in rows], most)

    async def attention(self) -> dict[str, int]:
        """Kind of what a person should look at -> how many orders it holds of, the most first."""
        return await attention_counts(self._reader.databases)

    async def all_waiting(self, of: Worklist, filters: Filters) -> list[Any] | None:
        """All of a list of what waits; None: it is longer than MOST_EXPORTED. Blocks for a while."""
        rows: list[Any] = []
        at: str | None = None
        while len(rows) <= MOST_EXPORTED:
            part = await self.waiting(of, filters, at, EXPORTED)
            rows += part.rows
            at = part.next
            if at is None:
                return rows
        return None

    async def letters(self, since: int) -> tuple[list[Found], int]:
        """The dead letters of a time (ms since 1970) or later, and how many more there are. Blocks."""
        async with _of_kafka(LETTER_SECONDS):
            return await recent(self.settings, since, LETTERS)

    async def letter(self, partition: int, offset: int) -> Found:
        """One dead letter. Raises NotFound."""
        try:
            async with _of_kafka(LETTER_SECONDS):
                return await find(self.settings, None, partition, offset)
        except NoSuchLetter as error:
            raise NotFound(error.message) from None

    async def jobs(self) -> list[dict[str, Any]]:
        """Bulk jobs, the newest first."""
        try:
            async with asyncio.timeout(SERVER_SECONDS), self._turn:
                return await self._jobs.jobs()
        except OrdersError as error:
            raise Unavailable(str(error)) from error
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self._jobs.drop()
            raise Unavailable(said_of("Postgres", error, text("postgres_away"))) from error

    async def health(self) -> Health:
        """Which sources of orders answer, as of the last second."""
        return await self._reader.health()

    async def found(self, id_: UUID) -> list[tuple[str, UUID]]:
        """What has this id: (kind, id of the order, user or seller that it leads to)."""
        return await self._reader.found(id_)

    async def beginning_with(self, digits: str) -> list[UUID]:
        """Orders whose id begins so."""
        return await self._reader.beginning_with(digits)

    async def tracked(self, number: str) -> list[Tracked]:
        """Parcels with this tracking number; none if there are none."""
        try:
            return _parcels((await self._reader.tracking(number)).body)
        except NotFound:
            return []


def said_of(server: str, error: BaseException, otherwise: str) -> str:
    """What a server that is there refuses, and the right that lacks; else `otherwise`. Never blocks."""
    how = refused(error)
    return text("server_refuses", server=server, how=how) if how else otherwise


def explained(order_id: UUID, order: Order, at: datetime | None) -> Explained:
    """An order explained as of a time. Pure."""
    then = order if at is None else as_of(order, order_id.bytes, micros(at))
    document = explain(order_id.bytes, then)
    document["as_of"] = None if at is None else at.isoformat().replace("+00:00", "Z")
    return Explained(document, then, order, document["facts"] if at is None else Facts(order).told)


@asynccontextmanager
async def _of_kafka(seconds: float) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except NoSuchLetter:
        raise
    except (KafkaError, OSError, TimeoutError) as error:
        away = text("kafka_away", why=type(error).__name__)
        raise Unavailable(said_of("Kafka", error, away)) from error
    except OrdersError as error:
        raise Unavailable(str(error)) from error
