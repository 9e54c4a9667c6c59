"""What goes into the input topics meanwhile: a marketplace at its worst, straight to the
brokers, not through the proxies.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterator
from random import Random

from aiokafka.errors import KafkaError

from contracts.cloudevents import SourceEvent, binary, rfc3339
from settings import Settings
from workload import generator, poison
from workload.producer import send

log = logging.getLogger(__name__)

HOSTILE = generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.01)
ENDLESS = 100_000_000


class Load:
    """An endless stream of events whose nature can be changed while it flows.
    The same seed gives the same orders.
    """

    def __init__(self, seed: int, shares: generator.Shares = HOSTILE) -> None:
        self._events = generator.events(ENDLESS, seed, shares)
        self._random = Random(f"{seed}:load")
        self._next: deque[SourceEvent] = deque()
        self._poisons = list(poison.POISONS.values())
        self._anchor: poison.Anchor | None = None
        self._finished = False
        self.copies = 1
        """How often each event is sent."""
        self.poison_only = False
        """Nothing but records that have to be refused."""
        self.taken = 0

    def __iter__(self) -> Iterator[SourceEvent]:
        return self

    def __next__(self) -> SourceEvent:
        if self._finished:
            raise StopIteration
        self.taken += 1
        if self._next:
            return self._next.popleft()
        if self.poison_only:
            return self._poison()
        event = next(self._events)
        if event.topic == "order.created" and self._anchor is None:
            self._anchor = _anchored(event)
        self._next.extend([event] * (self.copies - 1))
        return event

    def push(self, events: list[SourceEvent]) -> None:
        """Send these next."""
        self._next.extend(events)

    def finish(self) -> None:
        """End the stream. What was pushed and not yet sent is left out."""
        self._finished = True

    def _poison(self) -> SourceEvent:
        # The few that weigh megabytes or take the parser's time come as rarely as they would.
        kinds = [each for each in self._poisons if self._anchor is not None or not each.needs_order]
        chosen = self._random.choice(kinds)
        if chosen.heavy and self._random.random() < 0.99:
            chosen = poison.POISONS["truncated_json"]
        return chosen.make(self._random, self._anchor)


class Feeder:
    """Sends a load at a rate, and goes on through every outage of the brokers. `rate` is events a second."""

    def __init__(self, settings: Settings, load: Load, rate: float) -> None:
        self.load = load
        self.rate = rate
        self.sent = 0
        """Events acknowledged."""
        self.outages = 0
        """Times that a producer had to be given up.
        What it held may be in the log or not: the log is the truth.
        """
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="feeder")

    async def stop(self) -> None:
        """Send what is under way and end. Blocks while the brokers are away."""
        self.load.finish()
        if self._task is not None:
            await self._task

    async def _run(self) -> None:
        while not self.load._finished:
            before = self.sent

            def progress(delivered: int, before: int = before) -> None:
                self.sent = before + delivered

            try:
                await send(self._settings, self.load, rate=self.rate, progress=progress)
            except (KafkaError, OSError) as error:
                self.outages += 1
                log.warning("feeder: %r", error)
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.sleep(0.5)


def giant(seed: int, scans: int) -> list[SourceEvent]:
    """One order with so many events: its order.created, its payment, and scans of its parcel."""
    order = next(
        event
        for event in generator.events(50, seed, generator.Shares(0, 0, 0))
        if event.topic == "order.created" and _anchored(event)
    )
    anchor = _anchored(order)
    assert anchor is not None
    data, time_us = anchor.created, anchor.time_us
    random = Random(f"{seed}:giant")
    line = data["items"][0]
    shipment = poison.POISONS["no_status"].make(random).value or b""
    shipment_id = json.loads(shipment)["shipment_id"]

    def event(topic: str, number: int, **fields: object) -> SourceEvent:
        at = time_us + number * 1_000_000
        attributes = {
            "specversion": "1.0",
            "id": f"giant-{seed}-{topic}-{number}",
            "source": "/giant",
            "type": topic,
            "time": rfc3339(at),
        }
        headers, value = binary(attributes, {"order_id": data["order_id"], **fields})
        return SourceEvent(topic, data["order_id"].encode(), value, headers, at)

    events = [
        order,
        event(
            "order.paid", 1, payment_id=shipment_id, amount=data["total_amount"], currency=data["currency"]
        ),
    ]
    for number in range(2, scans):
        status = "in_transit" if number < scans - 1 else "delivered"
        fields = {
            "shipment_id": shipment_id,
            "seller_id": line["seller_id"],
            "status": status,
            "location": f"hub {number % 50}",
        }
        events.append(event("shipment.updated", number, **fields))
    return events


def _anchored(event: SourceEvent) -> poison.Anchor | None:
    if event.value is None or ("content-type", b"application/json") not in event.headers:
        return None
    data = json.loads(event.value)
    return poison.Anchor(data, event.time_us) if event.key == data["order_id"].encode() else None


Progress = Callable[[int], None]
