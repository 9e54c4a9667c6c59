"""Clients that this project didn't make: what they send ends as rows, and they can read what we publish.
docs/how-to/send-events.md.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from cloudevents.core.bindings import kafka as core_kafka
from cloudevents.v1 import kafka as v1_kafka
from kafka import KafkaConsumer, TopicPartition

from contracts.errors import Refused
from contracts.topics import DERIVED, DLQ
from domain import events
from settings import Settings
from tests.clients import debezium, java, page, senders
from tests.clients.page import EVENTS, FILES, order
from tests.clients.senders import CLIENTS, PARTITIONERS, Record
from tests.workers import audit, processed, worker

PROGRAMS = {
    "send.py": [[sys.executable, "send.py"], ["binary"], ["structured"]],
    "send_v1.py": [[sys.executable, "send_v1.py"], ["binary"], ["structured"]],
    "send_plain.py": [[sys.executable, "send_plain.py"], []],
    "Send.java": [[], ["BINARY"], ["STRUCTURED"]],
}
"""Program of the page -> how it is started (Java's: by java.command), and what it is told
after the file of events.
"""
ENDED = ("delivered", 4, "LÄMP-7", "delivered", "Corvo", "processed")
REFUSED = ("core-binary", "core-structured")


@cache
def schemas() -> Mapping[str, Any]:
    """Id of a JSON Schema of ours -> what validates with it. jsonschema takes a second to import."""
    from jsonschema import Draft202012Validator

    folder = page.PAGE.parents[2] / "contracts" / "schemas"
    documents = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return {document["$id"]: Draft202012Validator(document) for document in documents}


# -- the page ------------------------------------------------------------------------------------------------


def test_every_block_of_the_page_is_tested() -> None:
    run = {*PROGRAMS, "read.py", "Read.java", "events.json"}
    assert set(FILES) == run | {
        "send_http.sh",  # in tests/integration/test_api_events.py
        "java.coordinates",
        "outbox.sql",
        "outbox-binary.json",
        "outbox-structured.json",
    }
    assert page.PAGE.read_text().count("```") == 2 * len(FILES)


def test_the_events_of_the_page_are_what_the_schemas_say() -> None:
    for event in EVENTS:
        schemas()[f"urn:orders:{event['type']}/v1"].validate(event["data"])


def test_the_recording_is_of_the_configurations_on_the_page() -> None:
    recorded = {name: value for name, value in senders.recorded().items() if name != "records"}
    now = {
        "debezium": debezium.VERSION,
        "configurations": debezium.CONFIGURATIONS,
        "mistaken": debezium.MISTAKEN,
        "events": EVENTS,
    }
    assert recorded == now, "run: python -m tests.clients.debezium"


def test_the_configurations_that_the_page_warns_of_are_refused() -> None:
    reasons = {}
    for name, records in senders.outboxes():
        if name in debezium.MISTAKEN:
            (record,) = records
            with pytest.raises(Refused) as refusal:
                events.decode(record.topic, record.headers, record.value)
            reasons[name] = refusal.value.code
    assert reasons == {
        "outbox-string": "field_malformed",
        "outbox-quoted": "not_cloudevent",
        "outbox-inserted": "not_cloudevent",
        "outbox-schemas": "field_missing",
    }


def test_the_locks_are_of_the_coordinates() -> None:
    for jars in (java.JARS, debezium.JARS):
        assert f'coordinates = "{jars.endpoint}"' in jars.lock.read_text(), f"write {jars.lock.name} anew"


@pytest.mark.parametrize(
    "data", [json.dumps(EVENTS[1]["data"]), EVENTS[1]["data"] | {"method": None}], ids=["text", "null"]
)
def test_data_that_the_page_warns_of_is_refused(data: Any) -> None:
    record = senders.core(EVENTS[1], "structured", data)
    with pytest.raises(Refused) as refusal:
        events.decode(record.topic, record.headers, record.value)
    assert refusal.value.code == "field_malformed"


# -- in ------------------------------------------------------------------------------------------------------


async def test_what_clients_send_ends_as_rows_and_they_read_what_comes_of_it(
    fresh: Settings, tmp_path: Path
) -> None:
    page.write(tmp_path)
    java.compile(tmp_path, ["Send.java", "Read.java"])
    with worker(tmp_path):
        names = [*await _programs(tmp_path), *await _clients(fresh.kafka)]
        await _others(fresh.kafka)
        processed()
        assert audit()["dead_letters"] == {"field_malformed": len(REFUSED)}
    ended = await _ended(fresh)
    assert {name: ended.get(order(name)[0]["data"]["order_id"]) for name in names} == dict.fromkeys(
        names, ENDED
    )
    await _reads(fresh.kafka, tmp_path, names)


async def _programs(folder: Path) -> list[str]:
    """Run the page's programs, each with an order whose events have a datacontenttype and one without;
    returns the orders' names.
    """
    names, running = [], []
    for program, (start, *ways) in PROGRAMS.items():
        for way in ways:
            name = "-".join([program, *way])
            events = order(name)
            if name != "send_v1.py-binary":  # it needs one, says the page
                names.append(f"{name}-plain")
                events += [
                    {key: value for key, value in event.items() if key != "datacontenttype"}
                    for event in order(names[-1])
                ]
            names.append(name)
            (folder / f"{name}.json").write_text(json.dumps(events), encoding="utf-8")
            running.append(_run(folder, *(start or java.command("Send")), f"{name}.json", *way))
    await asyncio.gather(*running)
    return names


async def _run(folder: Path, *command: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, f"{command}:\n{errors.decode()[-3000:]}"
    return out.decode()


async def _clients(brokers: str) -> list[str]:
    """Every other way of the clients; returns the orders' names."""
    names = []
    batches: defaultdict[str, list[Record]] = defaultdict(list)
    for client, name, records in senders.sdk():
        names.append(name)
        batches[client] += records
    for name, records in senders.outboxes():
        if name in debezium.CONFIGURATIONS:
            names.append(name)
            batches["aiokafka"] += records
    for client, records in batches.items():
        await CLIENTS[client](brokers, records)
    for partitioner in PARTITIONERS:
        names.append(partitioner)
        records = [
            senders.core(event | {"partitionkey": event["data"]["order_id"]}, "binary")
            for event in order(partitioner)
        ]
        await senders.by_confluent(brokers, records, partitioner)
    return names


async def _others(brokers: str) -> None:
    """An order that waits for its parcel, one that is cancelled, and events that are refused:
    what else there is to read.
    """
    sent = [senders.core(event, "binary") for event in order("paid")[:2]]
    created = order("cancelled")[0]
    data = {"order_id": created["data"]["order_id"], "reason": "found one in the attic"}
    cancelled = created | {"id": "cancelled", "type": "order.cancel_requested", "data": data}
    sent += [senders.core(created, "binary"), senders.core(cancelled, "structured")]
    for name in REFUSED:
        paid = order(name)[1]
        sent.append(
            senders.core(paid | {"data": paid["data"] | {"amount": "-1"}}, name.removeprefix("core-"))
        )
    await senders.by_aiokafka(brokers, sent)


async def _ended(settings: Settings) -> dict[str, tuple[Any, ...]]:
    """Order -> its row and those of its line, its parcel and its return."""
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        rows = await connection.fetch(
            "SELECT o.id::text, o.status::text, o.version, i.sku, s.status::text, s.carrier, r.status::text"
            " FROM orders_order o LEFT JOIN orders_order_item i ON i.order_id = o.id LEFT JOIN"
            " orders_shipment s ON s.order_id = o.id LEFT JOIN orders_return r ON r.order_id = o.id"
        )
    finally:
        await connection.close()
    return {row[0]: tuple(row)[1:] for row in rows}


# -- out -----------------------------------------------------------------------------------------------------

Read = tuple[Any, ...]
"""topic, id, source, type, time, causeid, traceparent, data as JSON with sorted keys;
what isn't there is empty
"""


async def _reads(brokers: str, folder: Path, names: list[str]) -> None:
    raw = _raw(brokers)
    expected = sorted(_by_hand(record) for record in raw if record.topic != DLQ)
    # No seller is late here. What a person should look at may be seen while events come, and clears.
    silent = {"suborder.late", "order.attention"}
    assert {read[0] for read in expected} - {"order.attention"} == set(DERIVED) - silent
    for record in raw:
        if record.topic != DLQ:
            schemas()[dict(record.headers)["ce_dataschema"].decode()].validate(json.loads(record.value))
    refunded = [json.loads(read[-1]) for read in expected if read[0] == "refund.request"]
    assert sorted(each["order_id"] for each in refunded) == sorted(
        order(name)[0]["data"]["order_id"] for name in names
    )
    assert {each["amount"] for each in refunded} == {"19.95"}
    trace = EVENTS[0]["traceparent"]
    causes = {
        event["id"]
        for name in [*names, "paid", "cancelled"]
        if not name.startswith("outbox-")
        for event in order(name)
    }
    assert {read[6] for read in expected if read[0] == "suborder.created" and read[5] in causes} == {trace}
    assert len({read[5] for read in expected if read[0] == "suborder.created"} & causes) == len(
        names
    ) + 2 - len(debezium.CONFIGURATIONS)

    refused = [_refused(name) for name in REFUSED]
    assert sorted(map(_by_core, raw)) == sorted(expected + refused)
    assert sorted(map(_by_v1, raw)) == sorted(expected + refused)
    topics = (*DERIVED, DLQ)
    python, jvm = await asyncio.gather(
        _run(folder, sys.executable, "read.py", *topics), _run(folder, *java.command("Read"), *topics)
    )
    assert sorted(map(_of_read_py, python.splitlines())) == sorted(expected + refused)
    assert sorted(map(_of_read_java, jvm.splitlines())) == sorted(expected + refused)


def _raw(brokers: str) -> list[Record]:
    """Everything that was published."""
    consumer = KafkaConsumer(bootstrap_servers=brokers, isolation_level="read_committed")
    partitions = [
        TopicPartition(topic, number)
        for topic in (*DERIVED, DLQ)
        for number in consumer.partitions_for_topic(topic)
    ]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    published: list[Record] = []
    while any(consumer.position(partition) < end for partition, end in ends.items()):
        for records in consumer.poll(1000).values():
            published += [
                Record(record.topic, record.key, record.value, record.headers) for record in records
            ]
    consumer.close()
    return published


def _read(topic: str, attributes: Mapping[str, Any], data: Any) -> Read:
    time = attributes["time"]
    return (
        topic,
        *(attributes[name] for name in ("id", "source", "type")),
        time if isinstance(time, datetime) else datetime.fromisoformat(time),
        attributes.get("causeid") or "",
        attributes.get("traceparent") or "",
        json.dumps(data, sort_keys=True),
    )


def _by_hand(record: Record) -> Read:
    return _read(
        record.topic,
        {name.removeprefix("ce_"): value.decode() for name, value in record.headers},
        json.loads(record.value),
    )


def _by_core(record: Record) -> Read:
    event = core_kafka.from_kafka_event(
        core_kafka.KafkaMessage(dict(record.headers), record.key, record.value)
    )
    return _read(record.topic, event.get_attributes(), event.get_data())


def _by_v1(record: Record) -> Read:
    headers = dict(record.headers)
    decode = v1_kafka.from_binary if "ce_id" in headers else v1_kafka.from_structured
    event = decode(v1_kafka.KafkaMessage(headers, record.key, record.value))
    return _read(record.topic, event.get_attributes(), event.get_data())


def _of_read_py(line: str) -> Read:
    event = json.loads(line)
    return _read(event["topic"], event, event["data"])


def _of_read_java(line: str) -> Read:
    topic, *attributes, data = line.split("\t")
    names = ("id", "source", "type", "time", "causeid", "traceparent")
    return _read(
        topic,
        {name: None if text == "null" else text for name, text in zip(names, attributes, strict=True)},
        json.loads(data),
    )


def _refused(name: str) -> Read:
    """The dead letter of the event that `_others` sent."""
    return _read(DLQ, order(name)[1], order(name)[1]["data"] | {"amount": "-1"})
