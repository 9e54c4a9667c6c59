"""The timeline of orders on real servers: what it tells, as `orders show` does, and to whom."""

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
from typer.testing import CliRunner

from cli.main import app as cli
from contracts import times
from domain.explain import explain
from domain.order import Order
from settings import Settings
from sinks.migrate import upgrade
from tests.contract.places import drop_database, new_database
from tests.integration.api_world import World, folded, new_key, served, with_kafka
from tests.integration.test_api_scopes import rich
from tests.stackfixture import Servers

SOME = folded(60)
LATER = "9999-01-01T00:00:00Z"


class Service(NamedTuple):
    client: httpx.AsyncClient
    settings: Settings
    store: Path
    order_id: UUID

    @property
    def order(self) -> Order:
        return SOME[self.order_id]

    def key(self, *scopes: str) -> str:
        return new_key(self.store, *scopes)

    async def get(self, key: str, code: int = 200, order: object = None, /, **query: Any) -> httpx.Response:
        answer = await self.client.get(
            f"/orders/{order or self.order_id}/timeline",
            params=query,
            headers={"Authorization": f"Bearer {key}"},
        )
        assert answer.status_code == code, answer.text[:500]
        return answer


@pytest.fixture(scope="module")
def filled(stack: Servers) -> Iterator[Settings]:
    async def fill() -> Settings:
        settings = with_kafka(stack, await new_database(stack))
        await upgrade(settings)
        async with World(settings, SOME) as world:
            await world.put_rows()
            await world.put_states()
        return settings

    settings = asyncio.run(fill())
    yield settings
    asyncio.run(drop_database(stack, settings))


@pytest.fixture
async def service(filled: Settings, tmp_path: Path) -> AsyncIterator[Service]:
    async with opened(filled, tmp_path) as opened_:
        yield opened_


@asynccontextmanager
async def opened(settings: Settings, folder: Path) -> AsyncIterator[Service]:
    store = folder / "keys"
    async with served(settings, store) as client:
        yield Service(client, settings, store, next(i for i, o in SOME.items() if rich(o)))


async def test_it_tells_what_the_rules_make_of_the_facts(service: Service) -> None:
    answer = await service.get(service.key("all"))
    assert answer.json() == json.loads(json.dumps(explain(service.order_id.bytes, service.order)))
    assert answer.headers["X-Source"] == "changelog"
    assert answer.headers["X-Order-Version"] == str(service.order.version)
    order_of_time = [fact["time"] for fact in answer.json()["facts"]]
    assert order_of_time == sorted(order_of_time)
    assert len(order_of_time) > 5


async def test_as_of_a_time_and_with_a_version(service: Service) -> None:
    everybody = service.key("all")
    created = service.order.created
    assert created is not None
    at = times.text(created.time)
    then = (await service.get(everybody, as_of=at)).json()
    assert then == json.loads(json.dumps(explain(service.order_id.bytes, service.order, created.time)))
    assert (then["as_of"], then["version"] < service.order.version) == (at, True)
    nothing = (await service.get(everybody, as_of="1999-01-01T00:00:00Z")).json()
    assert (nothing["known"], nothing["facts"], nothing["why"][0]["rule"]) == (False, [], "facts_wait")
    now = (await service.get(everybody)).json()
    assert (await service.get(everybody, as_of=LATER)).json() == now | {"as_of": "9999-01-01T00:00:00+00:00"}
    await service.get(everybody, 422, as_of="yesterday")
    await service.get(everybody, 503, min_version=service.order.version + 1)


async def test_orders_show_has_the_same_keys(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.show.get_settings", lambda: service.settings)
    everybody, at = (
        service.key("all"),
        times.text(service.order.decisions[0].time if service.order.decisions else 0),
    )
    for more, query in (([], {}), (["--as-of", at], {"as_of": at})):
        shown = await asyncio.to_thread(
            CliRunner().invoke, cli, ["show", str(service.order_id), "--json", *more]
        )
        assert json.loads(shown.stdout) == (await service.get(everybody, **query)).json()


async def test_who_sees_what(service: Service) -> None:
    created = service.order.created
    assert created is not None
    user, sellers = UUID(bytes=created.user_id), sorted({UUID(bytes=i.seller_id) for i in created.items})
    whole = (await service.get(service.key("all"))).json()
    assert (await service.get(service.key(f"user:{user}"))).json() == whole
    part = await service.get(service.key(f"seller:{sellers[0]}"))
    assert set(whole) - set(part.json()) == {
        "user_id",
        "region",
        "money",
        "refunds",
        "anomalies",
        "attention",
        "cart_id",
        "checkout_id",
    }
    assert not any(str(other) in part.text for other in (user, *sellers[1:]))
    assert "captured" not in part.text
    nobody = await service.get(service.key("all"), 404, uuid4())
    for scopes in ([f"user:{uuid4()}"], [f"seller:{uuid4()}"], ["tracking"], ["write"]):
        hidden = await service.get(service.key(*scopes), 404)
        assert hidden.json()["type"] == nobody.json()["type"] == "urn:orders:not-found"
        assert hidden.json()["detail"] == f"no order {service.order_id}"


async def test_without_kafka_it_is_unavailable_and_orders_are_not(filled: Settings, tmp_path: Path) -> None:
    async with opened(filled.model_copy(update={"kafka": "127.0.0.1:1"}), tmp_path) as service:
        key = service.key("all")
        answer = await service.get(key, 503)
        assert (answer.json()["type"], answer.headers["Retry-After"]) == ("urn:orders:unavailable", "1")
        order = await service.client.get(
            f"/orders/{service.order_id}", headers={"Authorization": f"Bearer {key}"}
        )
        assert order.status_code == 200


async def test_an_order_that_the_changelog_does_not_have_yet(filled: Settings, tmp_path: Path) -> None:
    async with opened(filled.model_copy(update={"group": f"{filled.group}-other"}), tmp_path) as service:
        # No topic: nothing was ever written for this group.
        await service.get(service.key("all"), 503)
