"""Pause and resume a lane, a topic or a type of event (docs/decisions/0068)."""

from __future__ import annotations

import difflib
import logging
from typing import NamedTuple

from aiokafka.errors import KafkaError

from contracts.incoming import EVENTS
from contracts.topics import BULK, CONTROL, LANE
from errors import OrdersError
from operations import journal
from settings import Settings
from streams.control import PARTITION, Kind, Note, Pause, encode, key_of, now, paused, topic_of
from streams.lanes import lanes
from streams.topics import require
from wire import clients
from wire.metadata import require_visible

log = logging.getLogger(__name__)


class Unpausable(OrdersError):
    """There is no such lane, topic or type."""


class Result(NamedTuple):
    """What a pause or its end came to. `pause`: as it stands now, or stood before it ended; None: nothing was
    paused. `changed`: False: it was so before.
    """

    pause: Pause | None
    changed: bool


async def named(settings: Settings, kind: Kind, name: str) -> str:
    """The name of a lane, a topic or a type as it is noted.

    Asks the brokers how many lanes there are. Raises Unpausable, KafkaError, PartitionMismatch.
    """
    if kind == "lane":
        number = (await lanes(settings)).number
        if not (name.isascii() and name.isdigit() and len(name) < 6 and int(name) < number):
            raise Unpausable(f"there is no lane {name}", f"lanes are 0 to {number - 1}")
        return str(int(name))
    known = (*LANE, *BULK) if kind == "topic" else tuple(EVENTS)
    if name not in known:
        near = difflib.get_close_matches(name, known, 1)
        meant = f"did you mean {near[0]}?" if near else f"one of {', '.join(known)}"
        what = "no lane reads a topic" if kind == "topic" else "no lane reads events of type"
        raise Unpausable(f"{what} {name}", meant)
    return name


async def pause(settings: Settings, kind: Kind, name: str, *, by: str, why: str) -> Result:
    """Pause it. One that is paused already stays as it is, with its time and its reason.

    Returns once the brokers have it; workers take it in within a second or two. Blocks. Raises Unpausable,
    TopicsMissing, KafkaError.
    """
    name = await named(settings, kind, name)
    before = await _of(settings, kind, name)
    if before is not None:
        return Result(before, False)
    note = Note(now(), by, why)
    await write(settings, key_of(kind, name), encode(note))
    return Result(Pause(kind, name, note.since, note.by, note.why), True)


async def resume(settings: Settings, kind: Kind, name: str) -> Result:
    """End a pause; what isn't paused stays so. See pause() for the rest."""
    # What is paused can be resumed, also if there is no such lane or topic any more.
    before = await _of(settings, kind, name)
    if before is None:
        name = await named(settings, kind, name)
        before = await _of(settings, kind, name)
    if before is None:
        return Result(None, False)
    await write(settings, key_of(kind, name), None)
    return Result(before, True)


async def hold(settings: Settings, by: str, topic: str, count: int) -> None:
    """Pause a topic of which a worker has refused so many records within a minute, and note it.

    Raises nothing: what goes wrong is in the log, and it is tried again when more are refused. Blocks.
    """
    why = f"{count:,} of its records were refused within a minute (ORDERS_DEAD_LETTER_HOLD)"
    log.error("%(topic)s is to be paused: %(why)s", {"topic": topic, "why": why})
    try:
        async with journal.noted(settings, "pause", by=by, arguments=["topic", topic], why=why):
            await pause(settings, "topic", topic, by=by, why=why)
    except (KafkaError, OrdersError, OSError) as error:
        log.error("%(topic)s can't be paused: %(error)r", {"topic": topic, "error": error})


def holds(kind: Kind, name: str) -> str:
    """What a pause holds back, in words. Pure."""
    if kind == "lane":
        return f"partition {name} of every topic that lanes read, and its deadlines"
    topic = topic_of(kind, name)
    specs = [spec for spec in EVENTS.values() if topic == (spec.topic or spec.type)]
    others = [spec.type for spec in specs if spec.type != name]
    with_them = f", with {', '.join(others)}" if kind == "type" and others else ""
    return f"topic {topic}{with_them}"


async def _of(settings: Settings, kind: Kind, name: str) -> Pause | None:
    return next((each for each in await paused(settings) if (each.kind, each.name) == (kind, name)), None)


async def write(settings: Settings, key: bytes, value: bytes | None) -> None:
    """Write a record of orders.control. Blocks. Raises TopicsMissing, KafkaError."""
    producer = clients.producer(settings, "orders-control", request_timeout_ms=15_000)
    try:
        await producer.start()
        cluster = await producer.client.fetch_all_metadata()
        if not cluster.partitions_for_topic(CONTROL):
            await require_visible(producer.client, [CONTROL])
            require(settings, [CONTROL], [])
        await producer.send_and_wait(CONTROL, value, key, partition=PARTITION.partition)
    finally:
        await producer.stop()
