"""The simulated services on Kafka: they read the pipeline's commands and send events back, until every order
has ended.

It reads from the end of the topics, without a consumer group. A command that it misses is sent again when its
deadline passes.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import msgspec
from aiokafka import TopicPartition

from contracts.cloudevents import binary
from contracts.strict_json import read_foreign
from errors import OrdersError
from operations.servers import require
from queries.state import read_state
from settings import Settings
from streams.lag import LagReader, total
from wire import AIOKafkaConsumer, AIOKafkaProducer, clients, partitions_of
from workload.services import Behaviour, Customers, Later, Message, SimulatedServices, Steps, order_of
from workload.stock import TOLD

ENDED = ("delivered", "returned", "closed")
NOTICES = ("suborder.created", "suborder.updated")
POLL_SECONDS = 0.2


@dataclass(slots=True)
class SimulationResult:
    """The result of a simulation.

    `ended` gives, by order id, how an order ended; `hanging` are the ids of the others. `unpaid`: ids of the
    refunds that were made to fail and weren't asked for until they were paid, and of those whose request was
    overlooked and that weren't asked for again. `stock`: Stock.report().
    """

    checkouts: int = 0
    ended: dict[str, str] = field(default_factory=dict)
    hanging: list[str] = field(default_factory=list)
    commands: Counter[str] = field(default_factory=Counter)
    sent: Counter[str] = field(default_factory=Counter)
    ignored: int = 0
    duplicated: int = 0
    seconds: float = 0.0
    unpaid: list[str] = field(default_factory=list)
    stock: dict[str, Any] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        """Whether every order has ended, every such refund is paid and the stock adds up."""
        return not (self.hanging or self.unpaid or self.stock["wrong"])


class Simulation:
    """One run of customers and services against the pipeline."""

    def __init__(self, settings: Settings, behaviour: Behaviour) -> None:
        self._settings = settings
        self._behaviour = behaviour
        self._services = SimulatedServices(behaviour)
        self._progress: Callable[[int, int], None] = lambda sent, ended: None
        self._outbox: asyncio.Queue[Message] = asyncio.Queue()
        self._scheduled = 0
        self._suborders: dict[str, dict[str, tuple[int, str]]] = {}
        self._open: set[str] = set()
        self._duplicates = behaviour.luck("duplicates")
        self.result = SimulationResult()

    async def run(
        self, checkouts: int, rate: float, timeout: float, progress: Callable[[int, int], None]
    ) -> SimulationResult:
        """Check out `checkouts` carts, `rate` a second, and answer commands until all orders have ended.

        It stops once nothing was answered and no order has ended for `timeout` seconds after the last
        checkout: workers that are behind are waited for. `progress` is called with (checked out, ended) now
        and then. Blocks meanwhile. Raises aiokafka's errors when the brokers aren't there.
        """
        started = time.monotonic()
        self._progress = progress
        producer = clients.producer(self._settings, "orders-simulate", linger_ms=5)
        consumer = clients.consumer(self._settings, "orders-simulate")
        tasks: list[asyncio.Task[None]] = []
        try:
            await producer.start()
            await consumer.start()
            partitions = await _partitions(consumer, (*self._services.commands, *TOLD, *NOTICES))
            consumer.assign(partitions)
            await consumer.seek_to_end(*partitions)
            tasks = [
                asyncio.ensure_future(self._serve(consumer)),
                asyncio.ensure_future(self._send(producer)),
            ]
            await self._check_out(tasks, checkouts, rate)
            await self._until_ended(tasks, timeout, producer, consumer)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await consumer.stop()
            await producer.stop()
        result = self.result
        result.ignored = self._services.ignored
        result.hanging = sorted(self._open)
        result.ended = {
            order_id: self._ended_as(order_id) for order_id in self._suborders if order_id not in self._open
        }
        result.unpaid = sorted(self._services.payments.waiting)
        reserved = self._services.inventory.total()
        result.stock = self._services.stock.report(reserved, self._reserved_of_ended())
        result.seconds = time.monotonic() - started
        return result

    async def _check_out(self, tasks: Sequence[asyncio.Task[None]], checkouts: int, rate: float) -> None:
        started = time.monotonic()
        for n, (checkout, later) in enumerate(self._services.customers.checkouts(checkouts)):
            pause = started + n / rate - time.monotonic()
            if pause > 0:
                self._report()
                await asyncio.sleep(pause)
            order_id = order_of(checkout.key)
            self._open.add(order_id)
            self._suborders[order_id] = {line["seller_id"]: (0, "pending") for line in checkout.data["items"]}
            self.result.checkouts += 1
            self._enqueue([checkout, *later])
            _raise(tasks)

    async def _until_ended(
        self,
        tasks: Sequence[asyncio.Task[None]],
        timeout: float,
        producer: AIOKafkaProducer,
        consumer: AIOKafkaConsumer,
    ) -> None:
        moved, since = -1, time.monotonic()
        async with LagReader(self._settings) as reader:
            while time.monotonic() < since + timeout:
                done = self.result.sent.total() + self.result.checkouts - len(self._open)
                if done > moved:
                    moved, since = done, time.monotonic()
                self._report()
                _raise(tasks)
                if not self._unfinished() and await self._is_at_rest(producer, consumer, reader):
                    break
                await asyncio.sleep(POLL_SECONDS)
        self._report()

    async def _is_at_rest(
        self, producer: AIOKafkaProducer, consumer: AIOKafkaConsumer, reader: LagReader
    ) -> bool:
        """Whether the workers have handled all that was sent, and every command that follows from it was
        read and answered: a refund may be asked for after its order's end.
        """
        await producer.flush()
        if total(await reader.lag()) or await reader.unseen():
            return False
        for partition, end in (await consumer.end_offsets(list(consumer.assignment()))).items():
            if await consumer.position(partition) < end:
                return False
        return not self._unfinished()

    def _unfinished(self) -> bool:
        """Whether something is still to come: the last commands may come after the last notice."""
        return bool(
            self._open
            or self._scheduled
            or not self._outbox.empty()
            or self._services.payments.waiting
            or self._services.stock.differs()
            or self._reserved_of_ended()
        )

    def _reserved_of_ended(self) -> dict[str, int]:
        """Order that has ended -> units that are still reserved for it, if any."""
        units = {
            order_id: sum(self._services.reserved(order_id, seller) for seller in sellers)
            for order_id, sellers in self._suborders.items()
            if order_id not in self._open
        }
        return {order_id: count for order_id, count in units.items() if count}

    def _report(self) -> None:
        self._progress(self.result.checkouts, self.result.checkouts - len(self._open))

    def _enqueue(self, steps: Steps) -> None:
        loop = asyncio.get_running_loop()
        for step in steps:
            if isinstance(step, Later):
                self._scheduled += 1
                loop.call_later(step.seconds, self._run_later, step)
            else:
                self._services.stock.sent(step.type, step.data)
                self._outbox.put_nowait(step)
                if self._duplicates.random() < self._behaviour.duplicates:
                    self._outbox.put_nowait(step)
                    self.result.duplicated += 1

    def _run_later(self, step: Later) -> None:
        self._scheduled -= 1
        self._enqueue(step.act())

    async def _send(self, producer: AIOKafkaProducer) -> None:
        while True:
            message = await self._outbox.get()
            if message.time is None:
                message.time, message.id = datetime.now(UTC).isoformat(), str(uuid4())
            attributes = {
                "specversion": "1.0",
                "id": message.id,
                "source": "/simulated",
                "type": message.type,
                "time": message.time,
            }
            headers, value = binary(attributes, message.data)
            await producer.send(message.type, value, key=message.key.encode(), headers=headers)
            self.result.sent[message.type] += 1

    async def _serve(self, consumer: AIOKafkaConsumer) -> None:
        async for record in consumer:
            data = _data(record.value)
            if data.get("order_id") not in self._suborders:
                continue  # from another run, or not from the pipeline
            if record.topic in NOTICES:
                self._on_notice(data)
                continue
            self.result.commands[record.topic] += 1
            if record.topic in TOLD:
                self._services.stock.told(record.topic, data)
                continue
            self._services.stock.learn(data.get("items", ()))
            self._enqueue(self._services.handle(record.topic, data))

    def _on_notice(self, data: dict[str, object]) -> None:
        order_id, seller = str(data["order_id"]), str(data["seller_id"])
        suborders = self._suborders[order_id]
        version = int(str(data["version"]))
        if suborders[seller][0] <= version:
            suborders[seller] = version, str(data["status"])
        if all(status in ENDED for _, status in suborders.values()):
            self._open.discard(order_id)

    def _ended_as(self, order_id: str) -> str:
        statuses = {status for _, status in self._suborders[order_id].values()} - {"closed"}
        if not statuses:
            return "closed"
        return statuses.pop() if len(statuses) == 1 else "delivered, some of it returned"


class SeedTaken(OrdersError):
    """Raised when the checkouts of this seed are there already."""

    remedy = "leave --seed out or take another one"


async def simulate(
    settings: Settings,
    behaviour: Behaviour,
    checkouts: int,
    rate: float,
    timeout: float,
    progress: Callable[[int, int], None],
) -> SimulationResult:
    """Run a simulation. Blocks.

    Raises TopicsMissing, and SeedTaken if the checkouts of this seed are there already.
    """
    await require(settings)
    [(checkout, _)] = Customers(behaviour).checkouts(1)
    first = order_of(checkout.key)
    if await read_state(settings, UUID(first)) is not None:
        raise SeedTaken(f"order {first}, the first one of seed {behaviour.seed}, is there already")
    return await Simulation(settings, behaviour).run(checkouts, rate, timeout, progress)


def _data(value: bytes | None) -> dict[str, Any]:
    """Decode a command or notice; empty for anything else, since anybody may write to a topic."""
    data = read_foreign(msgspec.json.decode, value)
    return data if isinstance(data, dict) and isinstance(data.get("order_id"), str) else {}


def _raise(tasks: Sequence[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


async def _partitions(consumer: AIOKafkaConsumer, topics: Sequence[str]) -> list[TopicPartition]:
    """Return all partitions of these topics. Raises LookupError if one doesn't exist."""
    numbers = await partitions_of(consumer, topics)
    if missing := [topic for topic in topics if topic not in numbers]:
        raise LookupError(missing[0])
    return [TopicPartition(topic, number) for topic in topics for number in sorted(numbers[topic])]
