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
    """The number of partitions that an order's lane follows from, and the earlier
    numbers, the fewest first.
    """

    number: int
    former: Sequence[int] = ()


def sources(lane: int, former: Sequence[int]) -> list[int]:
    """Partitions that hold the history of a lane's orders, the oldest first. `former`: see Lanes. Pure."""
    return [*dict.fromkeys([*(lane % count for count in former), lane])]


async def noted(settings: Settings) -> Lanes | None:
    """Read what was noted when the topics got more partitions; None if they never did.

    Blocks. Raises KafkaError.
    """
    newest: Lanes | None = None
    async with LogReader(settings, "orders-lanes") as reader:
        partition = TopicPartition(PARTITIONS, 0)
        if not await reader.partitions(PARTITIONS):
            return None
        end = (await reader.ends([partition]))[partition]
        async with aclosing(reader.read(partition, 0, end)) as stretches:
            async for records, _ in stretches:
                for record in records:
                    newest = _decode_note(record.value) or newest
    return newest


class _Note(msgspec.Struct):
    partitions: Annotated[int, msgspec.Meta(ge=1)]
    former: list[Annotated[int, msgspec.Meta(ge=1)]]


_decode: Final = msgspec.json.Decoder(_Note).decode


def _decode_note(value: bytes | None) -> Lanes | None:
    """Decode a record of orders.partitions; None if it is no note, since anybody may write there."""
    note = read_foreign(_decode, value)
    return None if note is None else Lanes(note.partitions, sorted(note.former))


async def lanes(settings: Settings) -> Lanes:
    """The lanes that there are. Blocks as noted() does.
    Raises KafkaError, PartitionMismatch when ORDERS_PARTITIONS isn't their number.
    """
    current = await noted(settings) or Lanes(settings.partitions)
    if current.number != settings.partitions:
        raise PartitionMismatch(
            f"the orders are spread over {current.number} lanes, ORDERS_PARTITIONS is {settings.partitions}",
            f"set it to {current.number}",
        )
    return current
