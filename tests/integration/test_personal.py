"""`orders personal` on real servers: everything about one user in every store, and nothing of another."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer

from contracts import topics as names
from contracts.record_id import RecordId
from operations.dead_letters import Filter, Redriven
from operations.journal import noted
from operations.personal import SECTIONS, ids_in
from operations.resolve import resolve
from settings import Settings
from sinks.schema import TABLES
from streams.partitioner import partition_of
from tests.integration.test_bulk import ndjson, order_id, submit
from tests.servers import kafka
from tests.unit.builders import (
    STRUCTURED,
    USER,
    VALID,
    at,
    attributes,
    created,
    item_id,
    line,
    parcel,
    raw,
    record,
    returned,
)
from tests.workers import orders, processed, worker

OTHER = "0d0d0d0d-0000-4000-8000-000000000002"
MARK = "of-somebody-else"


def order(n: int, user: str, **more: Any) -> dict[str, Any]:
    return created(line(n), order_id=order_id(n), user_id=user, **more)


async def send(settings: Settings, type_: str, data: dict[str, Any], key: str, **changes: Any) -> None:
    headers, value = record(type_, data, **changes)
    await put(settings, type_, key, headers, value)


async def put(
    settings: Settings, topic: str, key: str, headers: list[tuple[str, bytes]], value: bytes
) -> None:
    async with AIOKafkaProducer(**kafka(settings.brokers)) as producer:
        lane = partition_of(key.encode(), settings.partitions)
        await producer.send_and_wait(topic, value, key=key.encode(), headers=headers, partition=lane)


async def fill(settings: Settings) -> None:
    """Orders 1 and 2 are the user's, 3 is another's; 4 is another's, and somebody claims it for the user."""
    await send(settings, "order.created", order(1, USER.upper(), region="MARKED-REGION"), order_id(1))
    await send(settings, "order.created", order(3, OTHER, region=MARK), order_id(3))
    await send(settings, "order.created", order(4, OTHER, region=MARK), order_id(4))
    for n, place in ((1, "MARKED-PLACE"), (3, MARK)):
        scan = VALID["shipment.updated"] | {
            "order_id": order_id(n),
            "shipment_id": parcel(n),
            "location": place,
        }
        scan |= {"items": [{"item_id": item_id(n), "quantity": 1}], "tracking_number": "SHARED"}
        await send(settings, "shipment.updated", scan, order_id(n))
    back = VALID["order.returned"] | {
        "order_id": order_id(1),
        "return_id": returned(1),
        "reason": "MARKED-REASON",
    }
    await send(settings, "order.returned", back, "another key")
    paid = json.dumps(VALID["order.paid"] | {"order_id": order_id(1), "method": "MARKED-METHOD"})
    encoded = json.dumps(
        {**attributes("order.paid"), "data_base64": base64.b64encode(paid.encode()).decode()}
    )
    await put(settings, "order.paid", "another key", STRUCTURED, encoded.encode())
    escaped = json.dumps(
        VALID["order.cancel_requested"] | {"order_id": order_id(1), "reason": "MARKED-CAUSE"}
    )
    headers, _ = record("order.cancel_requested", {})
    hidden = escaped.replace(order_id(1)[:2], "\\u0030\\u0065", 1)
    await put(settings, "order.cancel_requested", "another key", headers, hidden.encode())
    await send(
        settings,
        "payment.failed",
        VALID["payment.failed"] | {"order_id": order_id(4), "reason": MARK},
        order_id(4),
    )
    # Refused, and none of these makes an order the user's.
    await send(settings, "order.created", order(4, USER), order_id(4))
    await put(settings, "order.created", order_id(5), [], b"\xff no JSON, of " + USER.encode())


async def note(settings: Settings) -> None:
    """What operators leave: a value that was edited, a letter resolved, a command about an order."""
    for user in (USER, OTHER):
        encoded = base64.b64encode(b"\xff no JSON, of " + user.encode()).decode()
        at, record_id = "2026-01-01T00:00:00Z", RecordId("order.created", 0, 0)
        edited = Redriven(at, "MARKED-EDITOR", 1, "not_json", record_id, record_id, encoded, encoded)
        await put(settings, names.REDRIVEN, "9:9", [], msgspec.json.encode(edited))
    await resolve(settings, None, Filter(reason="key_conflict"), by="me", why="MARKED-RESOLVED")
    for n, mark in ((1, "MARKED-WHY"), (3, MARK)):
        async with noted(settings, "repair", by="me", arguments=[order_id(n)], why=mark):
            pass


def check_part(parts: list[dict[str, Any]]) -> None:
    (part,) = parts
    assert (part["count"], part["events"][0]["region"]) == (1, "MARKED-BULK")


def check_notes(notes: list[dict[str, Any]]) -> None:
    assert [each["topic"] for each in notes] == [names.REDRIVEN, names.RESOLVED, *[names.OPERATIONS] * 2]
    assert [each["value"].get("why") for each in notes[1:]] == ["MARKED-RESOLVED", "MARKED-WHY", "MARKED-WHY"]


def events(document: dict[str, Any], section: str = "events") -> list[tuple[str, str]]:
    return sorted((each["topic"], each["key"]) for each in document[section])


async def test_everything_of_one_user_and_nothing_of_another(fresh: Settings, tmp_path: Path) -> None:
    await fill(fresh)
    jobs = tmp_path / "jobs.ndjson"
    jobs.write_bytes(
        ndjson(*({**order(n, user, region=region), "time": at(1)} for n, user, region in
                 ((2, USER, "MARKED-BULK"), (6, OTHER, MARK))))
    )  # fmt: skip
    with worker(tmp_path):
        submit("orders", jobs)
        processed()
        await note(fresh)
        done = orders("personal", USER)
        assert done.returncode == 0, done.stderr
        compact = orders("personal", USER.replace("-", ""), "--json")
        nobody = orders("personal", OTHER.replace("2", "9"))
    document = json.loads(done.stdout)
    assert (list(document), document["user_id"]) == (["user_id", *SECTIONS], USER)
    assert document["orders"] == [order_id(1), order_id(2)]
    assert {each["id"] for each in document["orders_order"]} == {order_id(1), order_id(2)}
    assert [each["reason"] for each in document["orders_return"]] == ["MARKED-REASON"]
    assert [each["tracking_number"] for each in document["orders_shipment"]] == ["SHARED"]
    assert {each["user_id"] for table in TABLES for each in document[table]} == {USER}
    assert {each["key"] for each in document["cache"]} == {
        f"user:{USER}:orders", f"order:{order_id(1)}", f"order:{order_id(2)}", "tracking:SHARED"
    }  # fmt: skip
    newest = {each["order_id"]: each["facts"] for each in document["states"] if "facts" in each}
    assert {key: facts["created"]["user_id"] for key, facts in newest.items()} == {
        order_id(1): USER, order_id(2): USER
    }  # fmt: skip
    assert newest[order_id(1)]["scans"][0]["location"] == "MARKED-PLACE"
    assert newest[order_id(1)]["scans"][0]["time"].startswith("2026-01-01T00:00:00")
    assert events(document) == sorted(
        [
            ("order.created", order_id(1)),
            ("order.created", order_id(2)),
            ("order.created", order_id(4)),
            ("order.created", order_id(5)),
            ("shipment.updated", order_id(1)),
            *((topic, "another key") for topic in ("order.returned", "order.paid", "order.cancel_requested")),
            *[("orders.rekeyed", order_id(1))] * 3,
            *(
                (each["topic"], each["key"])
                for each in document["events"]
                if each["topic"] == "orders.decisions"
            ),
        ]
    )
    assert {topic for topic, _ in events(document, "published")} >= {
        "payment.initiate",
        "order.status_changed",
    }
    assert {key for _, key in events(document, "published")} == {order_id(1), order_id(2)}
    refused = [each["value"] for each in document["dead_letters"]]
    assert sorted(map(type, refused), key=str) == [dict, dict]
    assert {"base64": base64.b64encode(b"\xff no JSON, of " + USER.encode()).decode()} in refused
    check_part(document["bulk_parts"])
    check_notes(document["notes"])
    assert MARK not in done.stdout
    for mark in ("REGION", "PLACE", "REASON", "CAUSE", "BULK"):
        assert f"MARKED-{mark}" in done.stdout
    assert done.stdout.isascii()
    whole = json.loads(compact.stdout)
    for each in whole["cache"] + document["cache"]:
        del each["expires_ms"]
    assert whole == document
    assert nobody.returncode == 0
    assert json.loads(nobody.stdout) == {
        "user_id": OTHER.replace("2", "9"),
        **{name: [] for name in SECTIONS},
    }


def test_ids_are_found_however_they_are_written() -> None:
    for text in (
        USER,
        USER.upper(),
        USER.replace("-", ""),
        f"user{USER}.",
        json.dumps(USER).replace("0d", "\\u0030\\u0064"),
        json.dumps({"data_base64": base64.b64encode(USER.encode()).decode()}),
    ):
        assert list(ids_in(text.encode())) == [raw(USER)], text
    assert list(ids_in(b'{"data_base64": "no base64", "traceparent": "00-ab"}')) == []
