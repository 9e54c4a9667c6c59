"""The OpenAPI document against the service, by schemathesis: whatever the document allows is answered as it
says, to every kind of caller, and what it forbids is refused.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import httpx
import pytest
import requests
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as profile
from hypothesis import strategies as st

from api.app import create_app
from api.binding import Record
from api.events import PATH as EVENTS
from api.keys import changing, made
from api.sending import Place
from contracts import ids
from settings import Settings
from sinks.migrate import upgrade
from tests.contract.places import drop_database, new_database
from tests.integration.api_world import World, folded, with_kafka
from tests.stackfixture import Servers

SOME = folded(20)
EXAMPLES = 12
"""Of each path, caller and mode."""
NOTHING_FORBIDDEN = {"/tracking/{number}", "/health"}
"""Paths with no parameter that has wrong values which can be sent."""
CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "positive_data_acceptance",
    "negative_data_rejection",
)

NOT_OF_EVENTS = ("positive_data_acceptance", "negative_data_rejection")
"""What an event may say is in the JSON Schema of its type, and in rules that no schema can hold. A body that
is no event is refused all the same: below.
"""


class Asked(NamedTuple):
    """The service, in a loop of its own, and ids that it knows, by the parameter's name."""

    loop: asyncio.Runner
    client: httpx.AsyncClient
    keys: dict[str, str]
    known: dict[str, list[str]]
    schema: Any

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.loop.run(self.client.get(path, **options))

    def call(self, case: Any, key: str) -> httpx.Response:
        """The answer to a generated request, as a client sends it."""
        options = case.as_transport_kwargs(base_url="http://orders.example")
        options["headers"] = {**options["headers"], "Authorization": f"Bearer {key}"}
        for name in ("cookies", "files") if case.method == "POST" else ("cookies", "json", "data", "files"):
            options.pop(name, None)
        sent = requests.Request(**options).prepare()
        assert sent.url is not None
        headers = {name: str(value) for name, value in sent.headers.items()}
        content: Any = sent.body.encode() if isinstance(sent.body, str) else sent.body
        return self.loop.run(
            self.client.request(str(sent.method), sent.url, headers=headers, content=content)
        )


@pytest.fixture(scope="module")
def asked(stack: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Asked]:
    store = tmp_path_factory.mktemp("access") / "keys"
    own, scan = next((i, scan) for i, order in SOME.items() for scan in order.scans if scan.tracking_number)
    created, number, seller = SOME[own].created, scan.tracking_number, UUID(bytes=scan.seller_id)
    assert created is not None
    assert number is not None
    user = UUID(ids.text(created.user_id))
    with asyncio.Runner() as loop:
        settings = with_kafka(stack, loop.run(new_database(stack)))
        loop.run(fill(settings))
        keys = {
            "all": add(store, "all"),
            "one user": add(store, f"user:{user}"),
            "one seller": add(store, f"seller:{seller}"),
            "tracking": add(store, "tracking"),
            "writer": add(store, "write"),
        }
        given = {"api_key_store": store, "api_write": True}
        app = create_app(settings.model_copy(update=given))
        app.state.sender.send = taken_in
        client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url="http://orders.example"
        )
        known = {
            # More often the one that every caller but `tracking` sees something of.
            "order_id": [*[str(own)] * 3, str(next(each for each in SOME if each != own))],
            "user_id": [str(user)],
            "seller_id": [str(seller)],
            "number": [number],
        }
        # Not at the top: each process that tests run in would import it, for a second.
        schema = import_module("schemathesis").openapi.from_dict(loop.run(client.get("/openapi.json")).json())
        # The key is the test's.
        schema.config.generation.update(with_security_parameters=False)
        yield Asked(loop, client, keys, known, schema)
        loop.run(client.aclose())
        loop.run(app.state.reader.close())
        loop.run(drop_database(stack, settings))


async def taken_in(records: Sequence[Record]) -> list[Place]:
    """What Kafka does is in test_api_events.py."""
    return [Place(0, number) for number, _ in enumerate(records)]


async def fill(settings: Settings) -> None:
    await upgrade(settings)
    async with World(settings, SOME) as world:
        await world.put_rows()
        await world.put_states()
        await world.put_cache(*list(SOME)[::2])


def add(store: Path, scope: str) -> str:
    with changing(store) as keys:
        line, key = made(scope.partition(":")[0], [scope])
        keys.append(line)
    return key


def statuses(asked: Asked, operation: Any, who: str, allowed: bool) -> set[int]:
    """Ask for a path in many ways, and check each answer -> the statuses that there were."""
    codes: set[int] = set()
    mode = import_module("schemathesis").GenerationMode["POSITIVE" if allowed else "NEGATIVE"]
    checks = import_module("schemathesis.specs.openapi.checks")

    @profile(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
    def ask(case: Any, data: st.DataObject) -> None:
        if allowed:
            # It is opaque: the document says no more of it than how long it is.
            case.query.pop("cursor", None)
            if data.draw(st.booleans()):  # or nearly every version is one that isn't there yet
                for name in ("min_version", "seen"):
                    case.query.pop(name, None)
                case.headers.pop("x-order-version", None)
            for name, values in asked.known.items():
                if name in case.path_parameters and data.draw(st.booleans()):
                    case.path_parameters[name] = data.draw(st.sampled_from(values))
        answer = asked.call(case, asked.keys[who])
        codes.add(answer.status_code)
        kept = [name for name in CHECKS if operation.path != EVENTS or name not in NOT_OF_EVENTS]
        case.validate_response(answer, checks=[getattr(checks, name) for name in kept])

    ask()
    return codes


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "not"])
@pytest.mark.parametrize("who", ["all", "one user", "one seller", "tracking"])
def test_the_service_does_what_its_document_says(asked: Asked, who: str, allowed: bool) -> None:
    for operation in asked.schema.get_all_operations():
        path = operation.ok().path
        if path == EVENTS:
            continue
        if allowed or path not in NOTHING_FORBIDDEN:
            codes = statuses(asked, operation.ok(), who, allowed)
            hidden = who == "tracking" and path.startswith("/orders/")
            wanted = 422 if not allowed else 404 if hidden else 200
            assert wanted in codes, path


@pytest.mark.parametrize("allowed", [True, False], ids=["allowed", "not"])
@pytest.mark.parametrize(("who", "codes"), [("writer", {202, 413, 415, 422}), ("all", {403, 422})])
def test_events_are_answered_as_the_document_says(
    asked: Asked, who: str, codes: set[int], allowed: bool
) -> None:
    [operation] = [each.ok() for each in asked.schema.get_all_operations() if each.ok().path == EVENTS]
    seen = statuses(asked, operation, who, allowed)
    assert seen <= codes
    assert (422 if who == "writer" else 403) in seen
