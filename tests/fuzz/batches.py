"""Record batches as bytes: well formed, odd, and broken in every way that a seed tells."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterable, Sequence
from random import Random
from typing import Any, Final, NamedTuple

import cramjam
from aiokafka.client import AIOKafkaClient
from aiokafka.codec import snappy_encode
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
HEADER: Final = struct.Struct(">hiqqqhii")
"""Attributes, last offset's delta, base and highest timestamp, producer's id and epoch, base
sequence, number of records.
"""
ALL: Final = -1
NAMES: Final = (
    b"gr\xf6\xdfe",
    b"",
    b"\xff" * 30,
    b"\x00",
    b"ce_\xe9",
    b"\xed\xa0\x80",
    b"content-type\xff",
    "größe".encode(),
)


class Raw(NamedTuple):
    """A record before it is bytes.
    `attributes`, `offset` and `time` as they stand in it; `padding` lies behind its last header.
    """

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[bytes, bytes | None]] = ()
    attributes: int = 0
    offset: int | None = None
    time: int = 0
    padding: bytes = b""


def varint(number: int, length: int = 0, high: int = 0) -> bytes:
    """Zigzag, in at least `length` bytes: longer ones hold zeros.
    `high`: what to put into the bits of a fifth byte that don't count.
    """
    number = (number << 1) ^ (number >> 63)
    number &= (1 << 64) - 1
    out = bytearray()
    while number > 0x7F or len(out) + 1 < length:
        out.append(0x80 | (number & 0x7F))
        number >>= 7
    out.append(number)
    if len(out) == 5:
        out[4] |= high & 0x70
    return bytes(out)


def record_bytes(record: Raw, number: int, random: Random | None = None) -> bytes:
    """A record with its length. With `random` its numbers are now and then longer than they need be."""

    def n(value: int) -> bytes:
        if random is None or random.random() < 0.8:
            return varint(value)
        return varint(value, random.randint(1, 5), random.choice((0, 0, 0x70)))

    def maybe(value: bytes | None) -> bytes:
        return n(-1) if value is None else n(len(value)) + value

    body = (
        bytes([record.attributes])
        + varint(record.time)
        + n(number if record.offset is None else record.offset)
    )
    body += maybe(record.key) + maybe(record.value) + n(len(record.headers))
    body += b"".join(n(len(name)) + name + maybe(value) for name, value in record.headers) + record.padding
    return n(len(body)) + body


def batch_bytes(
    records: Iterable[bytes],
    *,
    codec: int = NONE,
    attributes: int = 0,
    count: int | None = None,
    delta: int | None = None,
    now: int = 1_760_000_000_000,
    packed: bytes | None = None,
    base: int = 0,
) -> bytes:
    """A batch with a right checksum, whatever else is wrong with it. `packed`: in place of the records."""
    body = list(records)
    number = len(body) if count is None else count
    content = pack(b"".join(body), codec) if packed is None else packed
    head = HEADER.pack(
        attributes | codec, number - 1 if delta is None else delta, now, now, -1, -1, -1, number
    )
    rest = struct.pack(">ibI", 0, 2, calc_crc32c(head + content)) + head + content
    return struct.pack(">qi", base, len(rest)) + rest


def pack(content: bytes, codec: int, random: Random | None = None) -> bytes:
    """As one of the codecs has it. With `random` in one of the forms in which other clients have it."""
    form = 0 if random is None else random.randrange(3)
    middle = len(content) // 2
    parts = (content,) if form == 0 else (content[:middle], content[middle:])
    if codec == GZIP:
        return b"".join(gzip.compress(part) for part in parts)
    if codec == SNAPPY:
        return (
            bytes(cramjam.snappy.compress_raw(content))
            if form == 2
            else b"".join(snappy_encode(part) for part in parts)
        )
    if codec == LZ4:
        return bytes(cramjam.lz4.compress(content))
    if codec == ZSTD:
        return b"".join(bytes(cramjam.zstd.compress(part)) for part in parts)
    return content


def odd(random: Random, wellformed: Sequence[Raw]) -> bytes:
    """A batch that some client might write, or none: of one to six records, most of them
    made of well-formed ones.
    """
    records = [_odd_record(random, random.choice(wellformed)) for _ in range(random.randint(1, 6))]
    body = [record_bytes(record, number, random) for number, record in enumerate(records)]
    codec = random.choice((NONE, NONE, GZIP, SNAPPY, LZ4, ZSTD, ZSTD))
    options: dict[str, Any] = {"codec": codec, "packed": pack(b"".join(body), codec, random)}
    what = random.random()
    if what < 0.06:
        options["attributes"] = random.choice((0x08, 0x10, 0x20, 0x40, 0x30, 0x80, 0x4000, -0x8000 + 8))
    elif what < 0.10:
        options["count"] = random.choice((0, -1, len(body) + 1, len(body) - 1, 1 << 30))
    elif what < 0.14:
        options["delta"] = random.choice((-1, 0, len(body), len(body) + 5, 1 << 30))
    elif what < 0.20:
        options["now"] = random.choice((-1, 0, -(1 << 63), 1, 1_000))
    elif what < 0.30:
        options["packed"] = _damaged(random, options["packed"])
    elif what < 0.35:
        options["packed"] = pack(_damaged(random, b"".join(body)), codec)
    elif what < 0.38:
        options["packed"] += random.randbytes(random.randint(1, 20))
    elif what < 0.40:
        options["codec"] = random.randrange(8)
    elif what < 0.42:
        options["packed"] = b""
    return batch_bytes(body, **options)


def _odd_record(random: Random, record: Raw) -> Raw:
    what = random.random()
    if what < 0.25:
        return record
    if what < 0.40:
        name = random.choice(NAMES)
        return record._replace(
            headers=[*record.headers, (name, random.choice((None, b"", b"\xff", b"x" * 300)))]
        )
    if what < 0.48:
        return record._replace(attributes=random.choice((1, 0x7F, 0x80, 0xFF)))
    if what < 0.54:
        return record._replace(time=random.choice((-1, 1 << 40, -(1 << 40), (1 << 63) - 1, -(1 << 63))))
    if what < 0.58:
        return record._replace(offset=random.choice((-1, 0, 3, 1 << 30)))
    if what < 0.62:
        return record._replace(padding=random.randbytes(random.randint(1, 4)))
    if what < 0.68:
        return record._replace(key=random.choice((None, b"", b"\xff" * 5, b"k" * 2_000)))
    if what < 0.76:
        return record._replace(
            value=random.choice((None, b"", b"null", b"[]", b"\xff" * 50, b"{" * 5_000, b"1" * 5_000))
        )
    if what < 0.84:
        return record._replace(value=_damaged(random, record.value or b"x"))
    if what < 0.90:
        return record._replace(
            headers=[(name, random.choice((None, b"", value, b"\xff"))) for name, value in record.headers]
        )
    if what < 0.95:
        return record._replace(headers=[*record.headers, *record.headers[: random.randint(0, 4)]])
    foreign = [
        (b"rekeyed_topic", b"order.created"),
        (b"dlq_topic", b"nowhere"),
        (b"dlq_partition", b"-5"),
        (b"dlq_offset", b"x"),
    ]
    return record._replace(headers=[*record.headers, *random.sample(foreign, random.randint(1, 4))])


def _damaged(random: Random, content: bytes) -> bytes:
    damaged = bytearray(content)
    for _ in range(random.choice((1, 1, 2, 5))):
        if damaged:
            at = random.randrange(len(damaged))
            match random.randrange(4):
                case 0:
                    damaged[at] = random.randrange(256)
                case 1:
                    del damaged[at : at + random.randint(1, 9)]
                case 2:
                    damaged[at:at] = random.randbytes(random.randint(1, 9))
                case _:
                    damaged[at] ^= 1 << random.randrange(8)
    return bytes(damaged)


async def produce(client: AIOKafkaClient, topic: str, partition: int, batch: bytes) -> int:
    """Write a batch as it is. Returns the broker's error code, 0 if it has taken it."""
    topics = [(topic, [(partition, batch)])]
    request = ProduceRequest(required_acks=ALL, timeout=10_000, topics=topics, transactional_id=None)
    await client._wait_on_metadata(topic)
    leader = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    response = await client.send(leader, request)
    code: int = response.topics[0][1][0][1]
    return code
