"""Read orders from the first source that can answer: the cache, the replica, the primary.

A source that is down is skipped, and so is a replica that is too far behind or lacks the version that the
caller has seen.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, nullcontext
from datetime import datetime
from functools import partial
from typing import Any, Final, Literal, NamedTuple, TypeVar
from uuid import UUID

import msgspec

from contracts.strict_json import read_foreign
from domain.explain import explain
from queries import statements
from queries.cache import RECENT, CacheReader, Recent, version_of
from queries.databases import Away, Database, Databases
from queries.documents import (
    Head,
    Health,
    OrderDetails,
    OrderPage,
    Orders,
    SourceHealth,
    Suborder,
    Suborders,
    Summary,
    Tracked,
)
from queries.errors import NotFound, NotYet, Unavailable
from queries.flight import SingleFlight
from queries.keyset import Position, bound_to, micros
from queries.state import States
from queries.visibility import EVERYTHING, Visibility
from settings import Settings

T = TypeVar("T")

Source = Literal["cache", "replica", "primary", "stale replica", "changelog"]

_CACHE: Final[Source] = "cache"
_NO_PARCEL: Final = "no parcel has this tracking number"
_NOTHING: Final = Visibility()
_PATIENCE: Final = 5.0
"""Seconds that a list of all orders waits for its turn."""

_encode: Final = msgspec.json.Encoder().encode
_head: Final = msgspec.json.Decoder(Head)
_heads: Final = msgspec.json.Decoder(list[Head])
_details: Final = msgspec.json.Decoder(OrderDetails)
_summary: Final = msgspec.json.Decoder(Summary)


class _Parties(msgspec.Struct):
    user_id: UUID
    suborders: list[Suborder]


_parties: Final = msgspec.json.Decoder(_Parties)


class _Parcel(msgspec.Struct):
    shipment_id: UUID
    seller_id: UUID
    tracking_number: str | None


class _Parcels(msgspec.Struct):
    user_id: UUID
    shipments: list[_Parcel]


_parcels: Final = msgspec.json.Decoder(_Parcels)
_tracked: Final = msgspec.json.Decoder(list[Tracked])


class Answer(NamedTuple):
    """An answer as JSON, its source (None: none was asked), and the version of the order that it is about (0
    if it is about several)."""

    body: bytes
    source: Source | None
    version: int = 0


class Filters(NamedTuple):
    """Of a list of orders; None: not filtered by it."""

    user: UUID | None = None
    seller: UUID | None = None
    status: str | None = None
    region: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    cart: UUID | None = None
    attention: str | None = None
    """A kind of what a person should look at."""


class Seen(NamedTuple):
    """An order, and the version that the caller has seen of it."""

    order_id: UUID
    version: int


class Reader:
    """All reads of orders. A process needs one; its methods may run at the same time.

    Each blocks for some ms, and at most for settings.redis_timeout and twice settings.read_timeout for each
    database. Each raises Unavailable when no source answers. `seen` is the version that the caller has seen;
    where no source that answers has it, NotYet is raised. `sees`: what the caller may see. The rest is to it
    as if it weren't there.
    """

    def __init__(self, settings: Settings) -> None:
        self.cache = CacheReader(settings)
        self.databases = Databases(settings)
        self._states = States(settings)
        self._scans = asyncio.Semaphore(1)
        self._flight = SingleFlight()
        self._last_health: tuple[float, Health] | None = None

    async def close(self) -> None:
        """Close all connections."""
        await self.cache.close()
        await self.databases.close()

    # -- one order -------------------------------------------------------------------------------------------

    async def order(self, order_id: UUID, seen: int = 0, sees: Visibility = EVERYTHING) -> Answer:
        """Return an order's summary. Raises NotFound."""
        summary, refilled = await self._cached(order_id, sees)
        version, refilled_version = version_of(summary), version_of(refilled)
        if summary is not None and version >= max(refilled_version, seen, 1):
            if sees.everything:
                return Answer(summary, "cache", version)
            known = read_foreign(_summary.decode, summary)
            if known is not None:
                return Answer(_encode(sees.summary(known)), "cache", version)
        refill = read_foreign(_details.decode, refilled) if refilled_version >= seen else None
        if refill is not None:
            return Answer(_encode(sees.summary(statements.as_summary(refill))), "cache", refilled_version)
        details, source = await self._rows_of(order_id, seen, summary, sees)
        return Answer(_encode(sees.summary(statements.as_summary(details))), source, details.version)

    async def details(self, order_id: UUID, seen: int = 0, sees: Visibility = EVERYTHING) -> Answer:
        """Return an order with everything that its rows hold. Raises NotFound."""
        summary, refilled = await self._cached(order_id, sees)
        refill = (
            read_foreign(_details.decode, refilled)
            if version_of(refilled) >= max(version_of(summary), seen)
            else None
        )
        details, source = (
            (refill, _CACHE) if refill is not None else await self._rows_of(order_id, seen, summary, sees)
        )
        return Answer(_encode(sees.details(details)), source, details.version)

    async def timeline(
        self, order_id: UUID, as_of: datetime | None = None, seen: int = 0, sees: Visibility = EVERYTHING
    ) -> Answer:
        """Return an order's facts in the order of their times, and why it is what it is: as of a time, or
        now. Raises NotFound.

        The facts are only in the changelog: its partition is read, which may take some seconds. Raises
        Unavailable too if Kafka doesn't answer.
        """
        known = await self.order(order_id, seen, sees)
        order = await self._states.of(order_id)
        if order is None or order.version < seen:
            raise _not_yet(Seen(order_id, max(seen, known.version)))
        created = order.created
        if created is None:
            raise _not_yet(Seen(order_id, max(seen, known.version)))
        time = None if as_of is None else micros(as_of)
        part = None
        if not sees.whole(UUID(bytes=created.user_id)):
            part = frozenset(seller.bytes for seller in sees.sellers)
        # Of an order of thousands of facts it takes longer than others should wait.
        document = await asyncio.to_thread(explain, order_id.bytes, order, time, part)
        return Answer(_encode(document), "changelog", order.version)

    async def version_in_rows(self, order_id: UUID, user_id: UUID | None) -> int | None:
        """The version that the primary's row of an order has, 0 if it has none; None: it doesn't answer."""
        try:
            rows = await self.databases.primary.rows(statements.version(order_id, user_id))
        except (Away, Unavailable):
            return None
        return rows[0][0] if rows else 0

    async def changed_at(self, order_id: UUID) -> datetime | None:
        """The event time of an order's last change, by its row; None: it has none, or no database answers."""
        try:
            rows, _ = await self._list(lambda database: database.rows(statements.changed_at(order_id)), None)
        except Unavailable:
            return None
        return rows[0][0] if rows else None

    async def version_in_cache(self, order_id: UUID) -> int | None:
        """The version of the lanes' cache entry of an order, 0 if there is none; None: Redis is away."""
        summary, _ = await self.cache.order(order_id)
        return None if summary is None and self.cache.away else version_of(summary)

    async def _cached(self, order_id: UUID, sees: Visibility) -> tuple[bytes | None, bytes | None]:
        """What the cache has of an order, unless the caller sees nothing of it: then the databases are asked
        as they are for an order that isn't there, so that neither its answer nor its time tells of it.
        """
        summary, refilled = await self.cache.order(order_id)
        if not sees.everything:
            parties = read_foreign(_parties.decode, summary) or read_foreign(_parties.decode, refilled)
            if parties is None or not sees.some(parties):
                return None, None
        return summary, refilled

    async def _rows_of(
        self, order_id: UUID, seen: int, summary: bytes | None, sees: Visibility
    ) -> tuple[OrderDetails, Source]:
        head = read_foreign(_head.decode, summary)
        user_id = None if head is None else head.user_id
        if head is not None:
            seen = max(seen, 1)  # the order exists, so a replica without it is behind
        answered = False
        async for database, fresh in self.databases.each():
            try:
                details = await self._flight.do(
                    (database.name, order_id), partial(self._refill, database, order_id, user_id)
                )
            except Away:
                continue
            answered = answered or fresh
            if details is None or not sees.some(details):
                # A fresh replica is believed, or anybody could keep the primary busy
                # with ids that don't exist.
                if fresh and not seen:
                    raise NotFound(f"no order {order_id}")
            elif details.version >= seen:
                return details, _source(database, fresh)
        if answered:
            raise _not_yet(Seen(order_id, seen))
        raise Unavailable("no database answers")

    async def _refill(self, database: Database, order_id: UUID, user_id: UUID | None) -> OrderDetails | None:
        rows = await database.rows(statements.details(order_id, user_id))
        if not rows:
            return None
        details = statements.as_details(rows[0])
        await self.cache.refill_order(order_id, details.version, _encode(details))
        return details

    # -- lists -----------------------------------------------------------------------------------------------

    async def recent(
        self, user_id: UUID, limit: int, seen: Seen | None = None, sees: Visibility = EVERYTHING
    ) -> Answer:
        """Return a user's newest orders, at most `limit` (up to RECENT)."""
        if not sees.whole(user_id):
            return _nothing(Orders([], None), seen)
        page, lately = await self.cache.recent(user_id, partial(read_foreign, _head.decode))
        # What the lanes have written since the page was read, or since the replica's last
        # transaction, is in the cache.
        newer = [each.summary for each in lately if each.summary is not None]
        refill = read_foreign(_heads.decode, page)
        if refill is not None and _covers(refill, lately) and _has(merged := _merged(refill, newer), seen):
            return Answer(_encode(_page(merged, limit)), "cache")

        async def read(database: Database) -> list[Head]:
            rows = await database.rows(statements.history(user_id, None, None, None, None, RECENT + 1))
            heads = [statements.as_head(row) for row in rows]
            await self.cache.refill(f"user:{user_id}", _encode(heads))
            return heads

        heads, source = await self._list(
            lambda database: self._flight.do((database.name, "user", user_id), partial(read, database)),
            None if _has(newer, seen) else seen,
            user_id=user_id,
        )
        return Answer(_encode(_page(_merged(heads, newer), limit)), source)

    async def history(
        self,
        user_id: UUID,
        limit: int,
        *,
        status: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        after: Position | None = None,
        seen: Seen | None = None,
        sees: Visibility = EVERYTHING,
    ) -> Answer:
        """Return a page of a user's orders, newest first: of one status, created at `since` or later and
        before `until`."""
        if not sees.whole(user_id):
            return _nothing(Orders([], None), seen)
        query = statements.history(user_id, status, since, until, after, limit + 1)
        rows, source = await self._list(lambda database: database.rows(query), seen, user_id=user_id)
        return Answer(_encode(_page([statements.as_head(row) for row in rows], limit)), source)

    async def orders(
        self, filters: Filters, limit: int, *, cursor: str | None = None, sees: Visibility = EVERYTHING
    ) -> Answer:
        """Return a page of orders, newest first. Raises ValueError for a cursor that isn't one of a list with
        these filters, of what `sees` sees.

        A list of neither users nor sellers that is filtered by a status or a region may read every order
        there is, so a process reads one at a time.
        """
        lists = sees.orders(filters.user, filters.seller, filters.region, filters.cart, filters.attention)
        # By which of a caller's lists it is made decides how it is sorted.
        bound = bound_to(filters._asdict() | {"of": lists and lists[:2]})
        after = None if cursor is None else Position.parse(cursor, bound)
        if lists is None:
            return _nothing(OrderPage([], None), None)
        query = statements.orders(
            lists,
            filters.status,
            filters.region,
            filters.since,
            filters.until,
            after,
            limit + 1,
            filters.cart,
            filters.attention,
        )
        rows: Sequence[Sequence[Any]]
        scanned = filters.status or filters.region
        indexed = lists.users or lists.sellers or filters.cart or filters.attention or not scanned
        async with nullcontext() if indexed else self._alone():
            rows, source = await self._list(lambda database: database.rows(query), None)
        shown = [statements.as_listed(row, sees.everything) for row in rows[:limit]]
        more = len(rows) > limit
        last = Position(rows[limit - 1][0], shown[-1].order_id).cursor(bound) if more else None
        return Answer(_encode(OrderPage(shown, last)), source)

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._scans.acquire()
        except TimeoutError:
            raise Unavailable("another list of all orders is being read") from None
        try:
            yield
        finally:
            self._scans.release()

    async def suborders(
        self,
        seller_id: UUID,
        limit: int,
        *,
        after: Position | None = None,
        seen: Seen | None = None,
        sees: Visibility = EVERYTHING,
    ) -> Answer:
        """Return a page of a seller's suborders, newest first."""
        if not sees.seller(seller_id):
            return _nothing(Suborders([], None), seen)
        query = statements.suborders(seller_id, after, limit + 1)
        rows: Sequence[Sequence[Any]]
        rows, source = await self._list(lambda database: database.rows(query), seen, seller_id=seller_id)
        sold = [statements.as_sold(row) for row in rows[:limit]]
        more = len(rows) > limit
        return Answer(
            _encode(
                Suborders(sold, Position(rows[limit - 1][1], sold[-1].order_id).cursor() if more else None)
            ),
            source,
        )

    async def tracking(self, number: str, sees: Visibility = EVERYTHING) -> Answer:
        """Return the parcels under a tracking number, 100 at most. Raises NotFound.

        The lanes' own list holds only orders that changed within half an hour, and another order may have a
        parcel of this number. So the answer is a page of rows, with what the lanes have written since in
        place of older parcels.
        """
        if sees == _NOTHING:
            raise NotFound(_NO_PARCEL)
        entry, refilled = await self.cache.tracking(number)
        lately, page = read_foreign(_tracked.decode, entry) or [], read_foreign(_tracked.decode, refilled)
        source: Source = "cache"
        unavailable: Unavailable | None = None
        if page is None:
            try:
                page, source = await self._tracked(number)
            except Unavailable as error:
                if not lately:
                    raise
                page, unavailable = [], error
        own = {(each.order_id, each.shipment_id) for each in lately}
        others = [each for each in page if (each.order_id, each.shipment_id) not in own]
        if source != "primary":
            others = await self._still(number, others)
        parcels = sorted([*lately, *others], key=lambda each: (each.shipment_id, each.order_id))[
            : statements.TRACKED
        ]
        shown: Sequence[Any] = parcels
        if not sees.everything:
            shown = sees.parcels(parcels, await self._owners(number, parcels, sees))
        if not shown:
            raise unavailable or NotFound(_NO_PARCEL)
        return Answer(_encode(shown), source)

    async def _owners(
        self, number: str, parcels: Sequence[Tracked], sees: Visibility
    ) -> dict[tuple[UUID, UUID], tuple[UUID, UUID]]:
        """Return (user, seller) of parcels by (order, parcel): of the cache's orders, else of the rows.
        Empty if it makes no difference to what the caller sees.
        """
        owners: dict[tuple[UUID, UUID], tuple[UUID, UUID]] = {}
        if not sees.users and not sees.sellers:
            return owners
        order_ids = list({each.order_id: None for each in parcels})
        for order_id, summary in zip(order_ids, await self._parcels_of(order_ids), strict=True):
            if summary is not None:
                for parcel in summary.shipments:
                    owners[order_id, parcel.shipment_id] = summary.user_id, parcel.seller_id
        if any((each.order_id, each.shipment_id) not in owners for each in parcels):
            query = statements.owners(number)
            rows: Sequence[Sequence[Any]]
            rows, _ = await self._list(lambda database: database.rows(query), None)
            owners |= {(order_id, parcel_id): (user, seller) for order_id, parcel_id, user, seller in rows}
        return owners

    async def _parcels_of(self, order_ids: Sequence[UUID]) -> list[_Parcels | None]:
        return await self.cache.summaries(order_ids, partial(read_foreign, _parcels.decode))

    async def _tracked(self, number: str) -> tuple[list[Tracked], Source]:
        query = statements.tracking(number)

        async def read(database: Database) -> list[Tracked]:
            parcels = [statements.as_tracked(row) for row in await database.rows(query)]
            if parcels:
                await self.cache.refill(f"tracking:{number}", _encode(parcels))
            return parcels

        return await self._list(
            lambda database: self._flight.do((database.name, "tracking", number), partial(read, database)),
            None,
        )

    async def _still(self, number: str, parcels: list[Tracked]) -> list[Tracked]:
        """Return the parcels without those that have another number by now, as far as the cache knows."""
        order_ids = list({each.order_id: None for each in parcels})
        numbers: dict[tuple[UUID, UUID], str | None] = {}
        for order_id, summary in zip(order_ids, await self._parcels_of(order_ids), strict=True):
            for parcel in () if summary is None else summary.shipments:
                numbers[order_id, parcel.shipment_id] = parcel.tracking_number
        return [each for each in parcels if numbers.get((each.order_id, each.shipment_id), number) == number]

    async def _list(
        self,
        read: Callable[[Database], Awaitable[T]],
        seen: Seen | None,
        *,
        user_id: UUID | None = None,
        seller_id: UUID | None = None,
    ) -> tuple[T, Source]:
        """Read from the first database that has `seen`, as an order of this user or of this seller."""
        answered = False
        async for database, fresh in self.databases.each():
            try:
                if seen is not None:
                    version = await database.rows(statements.version(seen.order_id, user_id, seller_id))
                    answered = True
                    if not version or version[0][0] < seen.version:
                        continue
                return await read(database), _source(database, fresh)
            except Away:
                continue
        if answered and seen is not None:
            raise _not_yet(seen)
        raise Unavailable("no database answers")

    async def waiting(self, query: statements.Query) -> Sequence[Sequence[Any]]:
        """Return rows of a list of queries.worklists. Only for those that see everything."""
        rows: Sequence[Sequence[Any]]
        rows, _ = await self._list(lambda database: database.rows(query), None)
        return rows

    # -- looking for something -------------------------------------------------------------------------------

    async def found(self, id_: UUID) -> list[tuple[str, UUID]]:
        """What has this id, as (order, checkout, cart, user, seller, parcel, return, item, payment or refund;
        the id of the order, user or seller that it leads to). Only for those that see everything.
        """
        summary, refilled = await self.cache.order(id_)
        if summary is not None or refilled is not None:
            return [("order", id_)]
        rows: Sequence[Sequence[Any]]
        rows, _ = await self._list(lambda database: database.rows(statements.found(id_)), None)
        return [(kind, leads_to) for kind, leads_to in rows]

    async def beginning_with(self, digits: str) -> list[UUID]:
        """The orders whose id begins with these hexadecimal digits, statements.FOUND at most. Only for those
        that see everything.
        """
        query = statements.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))
        rows: Sequence[Sequence[Any]]
        rows, _ = await self._list(lambda database: database.rows(query), None)
        return [row[0] for row in rows]

    # -- health ----------------------------------------------------------------------------------------------

    async def health(self) -> Health:
        """Return the health within the last second.

        It is kept that long because anybody may ask, without a key.
        """
        now = asyncio.get_running_loop().time()
        if self._last_health is None or now >= self._last_health[0] + 1.0:
            self._last_health = now, await self._flight.do("health", self._health)
        return self._last_health[1]

    async def _health(self) -> Health:
        sources = {"cache": SourceHealth(await self.cache.ping())}
        sources["cache"].used = sources["cache"].up
        replica = self.databases.replica
        if replica is not None:
            sources["replica"] = await _health_of(replica)
            sources["replica"].used = self.databases.fresh(sources["replica"].lag)
        sources["primary"] = await _health_of(self.databases.primary)
        sources["primary"].used = sources["primary"].up
        rows = any(each.up for name, each in sources.items() if name != "cache")
        return Health(
            "down" if not rows else "ok" if all(each.used for each in sources.values()) else "degraded",
            sources,
        )


async def _health_of(database: Database) -> SourceHealth:
    try:
        await database.rows(statements.ONE)
        lag = await database.lag()
    except (Away, Unavailable):
        return SourceHealth(False)
    return SourceHealth(True, None if database.name == "primary" or lag is None else round(lag, 3))


def _source(database: Database, fresh: bool) -> Source:
    return "primary" if database.name == "primary" else "replica" if fresh else "stale replica"


def _not_yet(seen: Seen) -> NotYet:
    return NotYet(f"version {seen.version} of order {seen.order_id} isn't there yet")


def _nothing(page: Orders | OrderPage | Suborders, seen: Seen | None) -> Answer:
    """The list of whoever has no orders. Raises NotYet where an order of it is to be there."""
    if seen is not None:
        raise _not_yet(seen)
    return Answer(_encode(page), None)


def _merged(heads: Sequence[Head], others: Sequence[Head]) -> list[Head]:
    """Merge two lists, keeping the newest version of each order, newest orders first."""
    newest: dict[UUID, Head] = {}
    for head in (*heads, *others):
        other = newest.get(head.order_id)
        if other is None or other.version <= head.version:
            newest[head.order_id] = head
    return sorted(newest.values(), key=_position, reverse=True)


def _position(head: Head) -> Any:
    return datetime.fromisoformat(head.created_at), head.order_id


def _covers(page: Sequence[Head], lately: Sequence[Recent[Head | None]]) -> bool:
    """Tell whether the page and the summaries cover all of these orders, or a full
    page has only newer ones.
    """
    on_page = {head.order_id for head in page}
    oldest = (
        datetime.fromisoformat(page[-1].created_at).timestamp() * 1000 if len(page) > RECENT else -math.inf
    )
    return all(
        each.summary is not None or each.order_id in on_page or each.created_ms < oldest for each in lately
    )


def _has(heads: Sequence[Head], seen: Seen | None) -> bool:
    return seen is None or any(
        head.order_id == seen.order_id and head.version >= seen.version for head in heads
    )


def _page(heads: Sequence[Head], limit: int) -> Orders:
    more = len(heads) > limit
    shown = list(heads[:limit])
    return Orders(shown, Position(*_position(shown[-1])).cursor() if more else None)
