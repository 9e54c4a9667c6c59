"""FastStream and SQLAlchemy, in batches: a batch subscriber to all topics, four upserts in a transaction.

Settings that were chosen: uvloop; batches of up to 4,000 records from fetches of up to 4 MiB a partition that
wait for 10 ms at most; the records as they came (a parser and a decoder of our own, since FastStream's decode
each body to a dictionary); no types applied to the handler; AckPolicy.NACK_ON_ERROR, which commits offsets
after the handler; the range assignor and group.instance.id as the peer with aiokafka has them. Upserts are
SQLAlchemy Core's INSERT ... FROM SELECT of one JSON array a column, made once and compiled once: one with
a parameter for each value, or executemany, costs a multiple. asyncpg drives it.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Any, Final

import sqlalchemy as sa
import uvloop
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from faststream import AckPolicy, FastStream
from faststream.kafka import KafkaBroker, KafkaMessage
from faststream.kafka.message import KafkaAckableMessage
from sqlalchemy.dialects import postgresql as pg
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from benchmarks.peers.clients import merge

MOST_RECORDS: Final = 4000
FETCH_BYTES: Final = 4 << 20
FETCH_WAIT_MS: Final = 10
SESSION_MS: Final = 45_000
"""Kafka's own default. With group.instance.id nobody waits for its end but who never comes back."""
TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    "uuid": sa.Uuid(),
    "text": sa.Text(),
    "int": sa.Integer(),
    "timestamptz": sa.DateTime(timezone=True),
    "numeric(20,4)": sa.Numeric(20, 4),
}


def upsert(name: str, columns: tuple[merge.Column, ...], schema: str) -> sa.Executable:
    """The statement that merges rows into a table. Its parameters are JSON arrays, one a column. Pure."""
    table = sa.Table(
        name, sa.MetaData(schema=schema), *(sa.Column(each.name, TYPES[each.type]) for each in columns)
    )
    # Functions that return sets go on side by side in one SELECT: row by row, as their arrays are.
    arrays = {
        each: sa.cast(sa.bindparam(each.name, type_=sa.Text()), pg.JSON(none_as_null=True))
        for each in columns
    }
    rows = sa.select(
        *(
            sa.cast(sa.func.json_array_elements_text(array, type_=sa.Text()), TYPES[each.type])
            for each, array in arrays.items()
        )
    )
    insert = pg.insert(table).from_select([each.name for each in columns], rows)
    if name == "orders_order_item":
        return insert.on_conflict_do_nothing(index_elements=["id"])
    changes = {each.name: _merged(table, insert, each) for each in columns if each.merge != "key"}
    return insert.on_conflict_do_update(index_elements=["id"], set_=changes)


def _merged(table: sa.Table, insert: pg.Insert, column: merge.Column) -> sa.ColumnElement[Any]:
    """As merge.merged, in SQLAlchemy's words."""
    old, new = table.c[column.name], insert.excluded[column.name]
    match column.merge:
        case "keep":
            return sa.func.coalesce(old, new)
        case "wins":
            return sa.case((insert.excluded["rank"] > table.c["rank"], new), else_=old)
        case "either":
            return old.bitwise_or(new)
        case "least":
            return sa.func.least(old, new)
        case _:
            return sa.func.greatest(old, new)


async def as_it_came(records: tuple[Any, ...], original: Any) -> KafkaMessage:
    """FastStream's parser would decode every header, and its decoder every body."""
    return KafkaAckableMessage(
        body=b"",
        raw_message=records,
        message_id=f"{records[0].offset}",
        consumer=original.__self__._consumer,
    )


async def undecoded(message: KafkaMessage) -> tuple[Any, ...]:
    """The records themselves."""
    records: tuple[Any, ...] = message.raw_message
    return records


def build() -> FastStream:
    """The application, as the environment says. Raises KeyError where that says too little."""
    prefix, number, schema = (os.environ[f"PEER_{each}"] for each in ("PREFIX", "NUMBER", "SCHEMA"))
    name = f"peer-{number}"
    topics = {prefix + topic: topic for topic in merge.TOPICS}
    statements = [upsert(table, columns, schema) for table, columns in merge.COLUMNS.items()]
    names = [[column.name for column in columns] for columns in merge.COLUMNS.values()]
    engine = _engine(os.environ["PEER_POSTGRES"])
    broker = KafkaBroker(
        os.environ["PEER_KAFKA"], client_id=name, apply_types=False, logger=logging.getLogger("peer")
    )

    @broker.subscriber(  # type: ignore[untyped-decorator]
        *topics,
        batch=True,
        group_id=f"{prefix}peer",
        group_instance_id=name,
        auto_offset_reset="earliest",
        ack_policy=AckPolicy.NACK_ON_ERROR,
        partition_assignment_strategy=(RangePartitionAssignor,),
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        session_timeout_ms=SESSION_MS,
        batch_timeout_ms=1000,
        max_records=MOST_RECORDS,
        parser=as_it_came,
        decoder=undecoded,
    )
    async def handle(records: tuple[Any, ...]) -> None:
        batch = merge.Batch()
        for record in records:
            batch.add(topics[record.topic], record.value, dict(record.headers)["ce_time"].decode())
        async with engine.begin() as connection:
            for statement, columns, arrays in zip(statements, names, batch.columns(), strict=True):
                if arrays[0] != "[]":
                    await connection.execute(statement, dict(zip(columns, arrays, strict=True)))
        print(len(records), time.time(), flush=True)

    return FastStream(broker)


def _engine(url: str) -> AsyncEngine:
    return create_async_engine(
        sa.make_url(url).set(drivername="postgresql+asyncpg"),
        pool_size=1,
        pool_reset_on_return=None,
        hide_parameters=True,
        connect_args={"server_settings": {"jit": "off", "timezone": "UTC"}},
    )


if __name__ == "__main__":
    uvloop.run(build().run())
