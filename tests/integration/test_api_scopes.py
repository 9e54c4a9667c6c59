"""What each scope sees of real stores: of an order, in lists, under a tracking number; and nothing of the
rest, not even whether it is there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx
import pytest
from redis.asyncio import Redis

from api.app import create_app
from api.keys import changing, made
from domain.order import Order
from settings import Settings
from sinks.migrate import upgrade
from tests.contract.places import drop_database, new_database
from tests.integration.api_world import World, entry, folded
from tests.servers import as_admin
from tests.stackfixture import Servers

SOME = folded(60)


class Caller(NamedTuple):
    """Somebody with a key."""

    client: httpx.AsyncClient
    key: str

    async def get(self, path: str, status: int = 200, method: str = "GET") -> httpx.Response:
        answer = await self.client.request(method, path, headers={"Authorization": f"Bearer {self.key}"})
        assert answer.status_code == status, answer.text
        return answer

    async def json(self, path: str) -> Any:
        return (await self.get(path)).json()


class Service(NamedTuple):
    """The API; `order_id`: an order of two sellers or more, each with parcels and returns."""

    client: httpx.AsyncClient
    world: World
    redis: Redis
    store: Path
    order_id: UUID

    def caller(self, *scopes: str) -> Caller:
        with changing(self.store) as keys:
            line, key = made(f"key-{len(keys)}", scopes)
            keys.append(line)
        return Caller(self.client, key)

    @property
    def order(self) -> Order:
        return self.world.orders[self.order_id]

    @property
    def user(self) -> UUID:
        return self.world.user_of(self.order_id)

    @property
    def sellers(self) -> list[UUID]:
        """Those of the order; one with parcels and a return first."""
        created = self.order.created
        assert created is not None
        of = {item.item_id: UUID(bytes=item.seller_id) for item in created.items}
        tracked = {UUID(bytes=scan.seller_id) for scan in self.order.scans if scan.tracking_number}
        first = min(tracked & {of[each.item_id] for each in self.order.returns})
        return [first, *sorted({seller for seller in of.values() if seller != first})]


def rich(order: Order) -> bool:
    """Whether it has parcels and returns of several sellers."""
    of = {item.item_id: item.seller_id for item in order.created.items} if order.created is not None else {}
    tracked = {scan.seller_id for scan in order.scans if scan.tracking_number}
    return min(len(tracked), len({of[each.item_id] for each in order.returns})) > 1


@pytest.fixture(scope="module")
def filled(stack: Servers) -> Iterator[Settings]:
    async def fill() -> Settings:
        settings = await new_database(stack)
        await upgrade(settings)
        async with World(settings, SOME) as world:
            await world.put_rows()
        return settings

    settings = asyncio.run(fill())
    yield settings
    asyncio.run(drop_database(stack, settings))


@pytest.fixture(params=["rows", "cache", "refilled"])
async def service(filled: Settings, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    """Answers come from rows; or from the lanes' cache; or from what readers have refilled."""
    async with opened(filled, tmp_path) as s:
        if request.param == "cache":
            await s.world.put_cache()
        if request.param == "refilled":
            everybody = s.caller("all")
            for path in (f"/orders/{s.order_id}", f"/users/{s.user}/orders", f"/tracking/{number(s)}"):
                await everybody.get(path)
        yield s


@asynccontextmanager
async def opened(filled: Settings, folder: Path, **changes: Any) -> AsyncIterator[Service]:
    store = folder / "keys"
    store.write_text("")
    app = create_app(Settings.model_validate(dict(filled) | {"api_key_store": store} | changes))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        Redis.from_url(as_admin(filled.redis)) as redis,
        World(filled, SOME) as world,
        httpx.AsyncClient(transport=transport, base_url="http://orders.example") as client,
    ):
        await redis.flushdb()
        try:
            yield Service(client, world, redis, store, next(i for i, o in SOME.items() if rich(o)))
        finally:
            await app.state.reader.close()


def number(s: Service) -> str:
    """A tracking number of the first seller."""
    return next(
        scan.tracking_number
        for scan in s.order.scans
        if scan.tracking_number and UUID(bytes=scan.seller_id) == s.sellers[0]
    )


def without_ids(answer: httpx.Response, *ids: object) -> str:
    """A body without the ids that were asked for."""
    text = answer.text
    for each in ids:
        text = text.replace(str(each), "ID")
    return text


# -- one order -----------------------------------------------------------------------------------------------


async def test_a_user_sees_its_orders_whole(service: Service) -> None:
    everybody, user = service.caller("all"), service.caller(f"user:{service.user}")
    for path in (f"/orders/{service.order_id}", f"/orders/{service.order_id}/explain"):
        assert (await user.get(path)).content == (await everybody.get(path)).content
        assert (await user.get(path, method="HEAD")).headers["etag"] == (await user.get(path)).headers["etag"]


async def test_a_seller_sees_its_part(service: Service) -> None:
    seller = service.sellers[0]
    everybody, caller = service.caller("all"), service.caller(f"seller:{seller}")
    path = f"/orders/{service.order_id}"
    whole, part = await everybody.json(path), await caller.json(path)
    assert (await caller.get(path)).headers["vary"] == "Authorization"
    assert set(part) == {
        *("order_id", "status", "currency", "created_at", "updated_at", "version", "suborders", "shipments")
    }
    own(whole, part, "suborders", seller)
    own(whole, part, "shipments", seller)
    whole, part = await everybody.json(f"{path}/explain"), await caller.json(f"{path}/explain")
    assert set(whole) - set(part) == {
        *("user_id", "region", "total_amount", "discount_amount", "tax_amount"),
        *("payments", "refunds", "cart_id", "cart_created_at", "attention"),
    }
    for what in ("items", "shipments", "suborders"):
        own(whole, part, what, seller)
    items = {each["item_id"] for each in part["items"]}
    assert 0 < len(part["returns"]) < len(whole["returns"])
    assert part["returns"] == [each for each in whole["returns"] if each["item_id"] in items]
    shown = {str(service.order_id), *(each["return_id"] for each in part["returns"])}
    shown |= {each["shipment_id"] for each in part["shipments"]}
    assert part["moments"] == [each for each in whole["moments"] if each["id"] in shown]
    text = json.dumps(part)
    assert not any(str(other) in text for other in (service.user, *service.sellers[1:]))


def own(whole: Any, part: Any, what: str, seller: UUID) -> None:
    """The part has the seller's rows and there are others."""
    assert part[what]
    assert part[what] == [each for each in whole[what] if each["seller_id"] == str(seller)]
    assert len(part[what]) < len(whole[what])


async def test_scopes_add_up(service: Service) -> None:
    first, second = service.sellers[:2]
    both = service.caller(f"seller:{first}", f"seller:{second}", "tracking")
    shown = await both.json(f"/orders/{service.order_id}")
    assert {each["seller_id"] for each in shown["suborders"]} == {str(first), str(second)}
    also = service.caller(f"seller:{first}", f"user:{service.user}")
    assert (await also.json(f"/orders/{service.order_id}"))["user_id"] == str(service.user)


async def test_another_ones_order_is_as_if_it_were_not_there(service: Service) -> None:
    for scopes in (
        [f"user:{uuid4()}"],
        [f"seller:{uuid4()}"],
        [f"user:{service.sellers[0]}", f"seller:{service.user}"],
        ["tracking"],
        ["write", "operate"],
    ):
        caller, nobody = service.caller(*scopes), uuid4()
        for path in ("/orders/{}", "/orders/{}/explain", "/orders/{}/story"):
            for query, status in (("", 404), ("?min_version=1", 503), ("?min_version=999", 503)):
                answers = [
                    await caller.get(path.format(each) + query, status) for each in (service.order_id, nobody)
                ]
                assert without_ids(answers[0], service.order_id) == without_ids(answers[1], nobody)
                assert set(answers[0].headers) == set(answers[1].headers)
            await caller.get(path.format(service.order_id), 404, method="HEAD")


# -- lists ---------------------------------------------------------------------------------------------------


async def test_a_list_shows_only_what_the_caller_sees(service: Service) -> None:
    seller = service.sellers[0]
    everybody = service.caller("all")
    user, shop = service.caller(f"user:{service.user}"), service.caller(f"seller:{seller}")
    version = service.order.version
    for path, key, sees, not_sees in (
        (f"/users/{service.user}/orders", "orders", user, shop),
        (f"/users/{service.user}/orders?from=2000-01-01T00:00:00Z", "orders", user, shop),
        (f"/sellers/{seller}/suborders", "suborders", shop, user),
    ):
        whole = await everybody.json(path)
        assert whole[key]
        assert await sees.json(path) == whole
        for caller in (not_sees, service.caller("tracking", "write"), service.caller(f"seller:{uuid4()}")):
            assert await caller.json(path) == {key: [], "next": None}
            seen = f"{path}{'&' if '?' in path else '?'}seen={service.order_id}:{version}"
            assert (await caller.get(seen, 503)).json()["type"] == "urn:orders:version-not-there-yet"
            await sees.get(seen)


async def test_a_seller_learns_no_version_of_an_order_that_it_has_no_part_in(
    filled: Settings, tmp_path: Path
) -> None:
    async with opened(filled, tmp_path) as s:
        seller = s.sellers[0]
        other = next(
            i
            for i, order in SOME.items()
            if order.created is not None
            and seller.bytes not in {item.seller_id for item in order.created.items}
        )
        caller = s.caller(f"seller:{seller}")
        path = f"/sellers/{seller}/suborders?seen="
        await caller.get(f"{path}{s.order_id}:1")
        nobody = uuid4()
        answers = [await caller.get(f"{path}{each}:1", 503) for each in (other, nobody)]
        assert without_ids(answers[0], other) == without_ids(answers[1], nobody)


# -- tracking ------------------------------------------------------------------------------------------------


async def test_tracking_numbers(service: Service) -> None:
    path = f"/tracking/{number(service)}"
    whole = await service.caller("all").json(path)
    assert {each["order_id"] for each in whole} == {str(service.order_id)}
    for own in (f"user:{service.user}", f"seller:{service.sellers[0]}"):
        assert await service.caller(own).json(path) == whole
        assert await service.caller(own, "tracking").json(path) == whole
    public = await service.caller("tracking", f"user:{uuid4()}").json(path)
    wanted = ("shipment_id", "carrier", "status", "estimated_delivery")
    assert public == [{name: each[name] for name in wanted} for each in whole]
    for scope in (f"user:{uuid4()}", f"seller:{service.sellers[1]}", "write"):
        caller = service.caller(scope)
        answers = [await caller.get(each, 404) for each in (path, "/tracking/nobodys")]
        assert answers[0].content == answers[1].content


async def test_of_a_number_that_two_have_each_sees_its_own(filled: Settings, tmp_path: Path) -> None:
    async with opened(filled, tmp_path) as s:
        one, two = [i for i, order in SOME.items() if any(scan.tracking_number for scan in order.scans)][:2]
        parcels = []
        for order_id in (one, two):
            [*_, (_, _, parcel)] = entry(order_id, SOME[order_id]).tracking
            parcels.append(json.loads(parcel))
        await s.redis.set("tracking:shared", json.dumps(parcels))
        await s.world.put_cache(one, two)
        for order_id, parcel in zip((one, two), parcels, strict=True):
            caller = s.caller(f"user:{s.world.user_of(order_id)}")
            assert await caller.json("/tracking/shared") == [parcel]
        both = await s.caller(f"user:{s.world.user_of(one)}", "tracking").json("/tracking/shared")
        assert sorted(len(each) for each in both) == [4, 6]


# -- without databases ---------------------------------------------------------------------------------------


async def test_an_outage_tells_no_more(filled: Settings, tmp_path: Path) -> None:
    async with opened(filled, tmp_path, postgres="postgresql://127.0.0.1:1/orders") as s:
        await s.world.put_cache()
        await s.caller(f"user:{s.user}").get(f"/orders/{s.order_id}")
        caller = s.caller(f"user:{uuid4()}")
        for path in (f"/orders/{s.order_id}", f"/orders/{uuid4()}", f"/tracking/{number(s)}", "/tracking/x"):
            await caller.get(path, 503)
