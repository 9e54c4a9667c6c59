"""Whatever bytes the brokers accept, on any topic: nothing ends a program or hides what follows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import AIOKafkaClient

from contracts import topics as names
from settings import Settings
from streams.partitioner import partition_of
from tests.fuzz.batches import ZSTD, Raw, batch_bytes, produce, record_bytes
from tests.fuzz.topics import everywhere, ids_of, run, sound, upstream, written
from tests.servers import kafka
from tests.unit.builders import ORDER, VALID, record
from tests.waiting import eventually
from tests.workers import audit, processed, rows, worker
from workload.producer import send


def seed_event(type_: str, order: str, **changes: Any) -> Raw:
    headers, value = record(type_, VALID[type_] | {"order_id": order}, **changes)
    return Raw(order.encode(), value, [(name.encode(), text) for name, text in headers])


async def put(settings: Settings, topic: str, key: str, *records: Raw, **options: Any) -> None:
    """Write one batch to a key's partition. The broker has to take it."""
    client = AIOKafkaClient(**kafka(settings.brokers))
    await client.bootstrap()
    try:
        batch = batch_bytes([record_bytes(each, number) for number, each in enumerate(records)], **options)
        assert await produce(client, topic, partition_of(key.encode(), settings.partitions), batch) == 0
    finally:
        await client.close()


def other(number: int) -> str:
    return f"{ORDER[:-2]}{number:02d}"


async def test_a_header_s_name_and_a_record_s_attributes_hide_nothing(
    fresh: Settings, tmp_path: Path
) -> None:
    odd_name, odd_attributes, refused = other(1), other(2), other(3)
    latin = (b"gr\xf6\xdfe", b"L")
    with worker(tmp_path):
        created = seed_event("order.created", odd_name)
        await put(
            fresh, names.CREATED, odd_name, created._replace(headers=[*created.headers, latin]), created
        )
        await put(
            fresh,
            names.CREATED,
            odd_attributes,
            seed_event("order.created", odd_attributes)._replace(attributes=0x80),
        )
        broken = seed_event("order.created", refused)
        # Under another key than its order's: passed on with all its headers, and refused in its lane.
        await put(
            fresh,
            names.CREATED,
            other(9),
            broken._replace(key=other(9).encode(), headers=[*broken.headers, latin]),
            codec=ZSTD,
        )
        paid = seed_event("order.paid", refused)
        await put(
            fresh,
            "order.paid",
            refused,
            paid._replace(value=b"{}", headers=[*paid.headers, latin, (b"n", None)]),
        )
        processed()
        report = audit()
        assert {str(key[0]) for key in (await rows(fresh))["orders_order"]} == {
            odd_name,
            odd_attributes,
            refused,
        }
        assert report["dead_letters"] == {"field_missing": 1}
    (letter,) = (await written(fresh, [names.DLQ]))[names.DLQ]
    assert latin in letter.headers
    assert (b"n", None) in letter.headers
    assert latin in (await written(fresh, [names.REKEYED]))[names.REKEYED][0].headers


async def test_a_record_of_orders_rekeyed_that_another_program_wrote_is_a_dead_letter(
    fresh: Settings, tmp_path: Path
) -> None:
    came: list[tuple[bytes, bytes | None]] = [
        (b"rekeyed_topic", b"order.created"),
        (b"rekeyed_partition", b"0"),
        (b"rekeyed_offset", b"0"),
    ]
    created = seed_event("order.created", ORDER)
    forms: list[list[tuple[bytes, bytes | None]]] = [
        came[:1],
        came[:2],
        [],
        [*came[:2], (b"rekeyed_offset", b"-1")],
        [(b"rekeyed_topic", None), *came[1:]],
    ]
    forms += [
        [(b"rekeyed_topic", b"orders.dlq"), *came[1:]],
        [came[0], (b"rekeyed_partition", "१".encode()), came[2]],
    ]
    with worker(tmp_path):
        foreign = [created._replace(headers=[*created.headers, *form]) for form in forms]
        await put(fresh, names.REKEYED, ORDER, *foreign)
        behind = sound(3, 8)
        await send(fresh, behind)
        processed()
        report = audit()
    assert report["dead_letters"] == {"origin_unknown": len(forms)}
    assert {str(key[0]) for key in (await rows(fresh))["orders_order"]} == set(ids_of(behind))


async def test_an_order_whose_id_is_a_key_of_the_local_store(fresh: Settings, tmp_path: Path) -> None:
    """The sixteen bytes under which Faust keeps the changelog's offset, and the first
    of the index of due times.
    """
    reserved = ["5f5f6661-7573-7400-6f66-667365745f5f", "6475653a-0000-0000-0000-000000000000"]
    for restart in range(2):
        with worker(tmp_path) as running:
            for order in reserved:
                await put(
                    fresh, names.CREATED, order, seed_event("order.created", order, id=f"created-{restart}")
                )
                await put(fresh, "order.paid", order, seed_event("order.paid", order))
            processed()
            audit()
            assert running.terminate() == 0
    assert {str(key[0]) for key in (await rows(fresh))["orders_order"]} == set(reserved)


async def test_a_record_without_key_and_value_on_every_topic_that_is_read(
    fresh: Settings, tmp_path: Path
) -> None:
    topics = [*names.LANE, *names.BULK]
    with worker(tmp_path):
        for topic in topics:
            await put(fresh, topic, ORDER, Raw(None, None), Raw(None, None, [(b"n", None)]))
        behind = sound(3, 8)
        await send(fresh, behind)
        processed()

        async def unpacked() -> bool:
            return len((await written(fresh, [names.DLQ]))[names.DLQ]) == 2 * len(topics)

        await eventually(unpacked, "every record is a dead letter")
        report = run("audit")
    assert report["dead_letters"] == {"tombstone": 2 * len(topics) - 2, "origin_unknown": 2}
    assert report["broken"] == {}
    assert {str(key[0]) for key in (await rows(fresh))["orders_order"]} == set(ids_of(behind))


@pytest.mark.parametrize("seed", [3])
async def test_odd_batches_on_every_topic(fresh: Settings, tmp_path: Path, seed: int) -> None:
    first = await upstream(fresh, tmp_path, seed, 150)
    assert first["said"]["taken"] > 50
    assert first["dead_letters"]
    second = await everywhere(fresh, tmp_path, seed, 150)
    assert second["said"]["taken"] > 20
