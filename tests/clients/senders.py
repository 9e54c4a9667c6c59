"""The page's order, sent by clients in every way that the page's programs leave open: one order for each way,
by a name that says which.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from cloudevents.core.bindings import kafka as core_kafka
from cloudevents.core.v1.event import CloudEvent as CoreEvent
from cloudevents.v1 import http as v1_http
from cloudevents.v1 import kafka as v1_kafka
from confluent_kafka import KafkaException, Producer
from kafka import KafkaProducer

from tests.clients import debezium
from tests.clients.page import order

Event = dict[str, Any]
PARTITIONERS = (
    "random",
    "consistent",
    "consistent_random",
    "murmur2",
    "murmur2_random",
    "fnv1a",
    "fnv1a_random",
)


class Record(NamedTuple):
    """What a client is given to send."""

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]


Records = dict[str, list[Record]]
"""The name of an order -> its records."""


# -- the SDK for Python --------------------------------------------------------------------------------------


def core(event: Event, mode: str, data: Any = None) -> Record:
    """By the new interface, the key as its documentation has it: the attribute partitionkey, or none.
    mode: binary or structured.
    """
    attributes = {name: value for name, value in event.items() if name != "data"} | {
        "time": datetime.fromisoformat(event["time"])
    }
    encode = core_kafka.to_binary_event if mode == "binary" else core_kafka.to_structured_event
    return _record(event, encode(CoreEvent(attributes, event["data"] if data is None else data)))


def v1(event: Event, mode: str, data: Any = None) -> Record:
    """The same by the old interface."""
    attributes = {name: value for name, value in event.items() if name != "data"}
    if mode == "binary" and data is not None:
        message = v1_kafka.to_binary(
            v1_http.CloudEvent(attributes, data), data_marshaller=lambda bytes_: bytes_
        )
    else:
        encode = v1_kafka.to_binary if mode == "binary" else v1_kafka.to_structured
        message = encode(v1_http.CloudEvent(attributes, event["data"] if data is None else data))
    return _record(event, message)


def _record(event: Event, message: Any) -> Record:
    key = None if message.key is None else str(message.key).encode()
    return Record(event["type"], key, message.value, list(message.headers.items()))


INTERFACES: dict[str, Callable[..., Record]] = {"core": core, "v1": v1}
MODES = ("binary", "structured")


def sdk() -> Iterator[tuple[str, str, list[Record]]]:
    """(client, name of the order, its records) for each client, interface and binding."""
    for client in CLIENTS:
        for interface, encode in INTERFACES.items():
            for mode in MODES:
                name = f"{interface}-{mode}-{client}"
                yield (
                    client,
                    name,
                    [
                        encode(event | {"partitionkey": event["data"]["order_id"]}, mode)
                        for event in order(name)
                    ],
                )
    for interface, encode in INTERFACES.items():
        for mode in MODES:
            name = f"{interface}-{mode}-bytes"
            yield (
                "kafka-python",
                name,
                [encode(event, mode, json.dumps(event["data"]).encode()) for event in order(name)],
            )
            name = f"{interface}-{mode}-no-key"
            yield "confluent-kafka", name, [encode(event, mode) for event in order(name)]


# -- clients -------------------------------------------------------------------------------------------------


async def by_aiokafka(brokers: str, records: list[Record]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=brokers) as producer:
        sent = [
            await producer.send(topic, value, key, headers=headers) for topic, key, value, headers in records
        ]
        for each in sent:
            await each


async def by_kafka_python(brokers: str, records: list[Record]) -> None:
    producer = KafkaProducer(bootstrap_servers=brokers)
    sent = [producer.send(topic, value, key, headers) for topic, key, value, headers in records]
    producer.flush()
    for each in sent:
        each.get(30)
    producer.close()


async def by_confluent(brokers: str, records: list[Record], partitioner: str = "consistent_random") -> None:
    def delivered(error: Any, _: Any) -> None:
        if error is not None:
            raise KafkaException(error)

    producer = Producer({"bootstrap.servers": brokers, "partitioner": partitioner})
    for topic, key, value, headers in records:
        producer.produce(topic, value, key, headers=list(headers), on_delivery=delivered)
    assert producer.flush(30) == 0


CLIENTS = {"aiokafka": by_aiokafka, "kafka-python": by_kafka_python, "confluent-kafka": by_confluent}


# -- Debezium ------------------------------------------------------------------------------------------------


def recorded() -> dict[str, Any]:
    """What `python -m tests.clients.debezium` wrote."""
    document: dict[str, Any] = json.loads(debezium.RECORDED.read_text(encoding="utf-8"))
    return document


def outboxes() -> Iterator[tuple[str, list[Record]]]:
    """(name of the order, its records) for each configuration, the mistaken ones too."""
    for name, records in recorded()["records"].items():
        yield (
            name,
            [
                Record(each["topic"], each["key"].encode(), each["value"].encode(), _bytes(each["headers"]))
                for each in records
            ],
        )


def _bytes(headers: list[list[str]]) -> list[tuple[str, bytes]]:
    return [(name, text.encode()) for name, text in headers]
