"""The lanes that there are: by how many partitions an order is found now, and was found before."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from typing import Annotated, Final, NamedTuple

import msgspec
from aiokafka import TopicPartition

from contracts.strict_json import read_foreign
from contracts.topics import PARTITIONS
from settings import Settings
from streams.transport.errors import PartitionMismatch
from wire.log import LogReader


class Lanes(NamedTuple):
    """By how many partitions an order's lane is found, and was found before, the fewest first."""

    number: int
    former: Sequence[int] = ()


def sources(lane: int, former: Sequence[int]) -> list[int]:
    """Partitions that hold the history of a lane's orders, the oldest first. `former`: see Lanes. Pure."""
    return [*dict.fromkeys([*(lane % count for count in former), lane])]


async def noted(settings: Settings) -> Lanes | None:
    """What was noted when the topics were given more partitions; None: they never were. Reads one small topic. Raises KafkaError."""
    newest: Lanes | None = None
    async with LogReader(settings.brokers, "orders-lanes") as reader:
        partition = TopicPartition(PARTITIONS, 0)
        if not await reader.exists(PARTITIONS):
            return None
        end = (await reader.ends([partition]))[partition]
        async with aclosing(reader.stretch(partition, 0, end)) as stretches:
            async for records in stretches:
                for record in records:
                    newest = _note(record.value) or newest
    return newest


class _Note(msgspec.Struct):
    partitions: Annotated[int, msgspec.Meta(ge=1)]
    former: list[Annotated[int, msgspec.Meta(ge=1)]]


_decode: Final = msgspec.json.Decoder(_Note).decode


def _note(value: bytes | None) -> Lanes | None:
    """What a record of orders.partitions says; None if it is no note: anybody may write there."""
    note = read_foreign(_decode, value)
    return None if note is None else Lanes(note.partitions, sorted(note.former))


async def lanes(settings: Settings) -> Lanes:
    """The lanes that there are. Blocks as noted() does. Raises KafkaError, PartitionMismatch when ORDERS_PARTITIONS isn't their number."""
    found = await noted(settings) or Lanes(settings.partitions)
    if found.number != settings.partitions:
        raise PartitionMismatch(
            f"the orders are spread over {found.number} lanes, ORDERS_PARTITIONS is {settings.partitions}", f"set it to {found.number}"
        )
    return found
