"""Kafka's record batches as bytes: aiokafka's clients, which no record ends and to
which no record is unwritable.

aiokafka's parser raises at the first record that it can't take, and everything behind it in the partition
stays hidden. Its builder takes no header name that isn't UTF-8. Both are replaced here, and its
connection and its bare client, which tell why a broker refuses them, for every client of this process:
aiokafka has no other place for it. So clients are made in wire.clients, and nowhere else.
"""

from __future__ import annotations

from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, conn
from aiokafka.admin import client as admin
from aiokafka.consumer import consumer, fetcher
from aiokafka.producer import message_accumulator, producer

from wire.builder import BatchBuilder, SizeEstimate
from wire.client import Client
from wire.connection import Connection
from wire.metadata import learn_topics, partitions_of
from wire.names import name_bytes
from wire.reader import PartitionRecords, RecordBatches, UnreadableRecord

conn.AIOKafkaConnection = Connection
admin.AIOKafkaClient = consumer.AIOKafkaClient = producer.AIOKafkaClient = Client
fetcher.MemoryRecords = RecordBatches
fetcher.PartitionRecords = PartitionRecords
message_accumulator.BatchBuilder = BatchBuilder
producer.DefaultRecordBatchBuilder = SizeEstimate

__all__ = [
    "AIOKafkaConsumer",
    "AIOKafkaProducer",
    "PartitionRecords",
    "RecordBatches",
    "UnreadableRecord",
    "learn_topics",
    "name_bytes",
    "partitions_of",
    "raw_bytes",
    "unreadable",
]


def unreadable(record: Any) -> str | None:
    """Why no client can parse this record, or None: it is one.
    Such a record has neither key nor value nor headers. Pure.
    """
    why: str | None = getattr(record, "unreadable", None)
    return why


def raw_bytes(record: Any) -> bytes | None:
    """The bytes of a record that no client can parse, as they lie in its batch; None: they can't be
    had, or it is a record. Pure.
    """
    raw: bytes | None = getattr(record, "raw", None)
    return raw
