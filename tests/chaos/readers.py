"""Readers of `orders api` that remember which version of each order they have seen, and hold every
answer to it (docs/api.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer

from stack import ports
from tests.chaos.world import until, until_awaited
from tests.servers import kafka

REMEMBERED = 20_000
"""Orders that the readers know, the latest heard of."""
PAGE = 50
"""Orders in a list of recent ones at most."""


class Readers:
    """Some readers at once. `wrong` says what should not have been answered; `answers`
    counts (source or problem).
    """

    def __init__(self, url: str, brokers: list[str], seed: int) -> None:
        self.wrong: list[str] = []
        self.answers: Counter[str] = Counter()
        self.latencies: list[float] = []
        self._url = url
        self._brokers = brokers
        self._random = Random(f"{seed}:readers")
        self._seen: OrderedDict[str, tuple[str, int]] = OrderedDict()
        """Order id -> its user and the highest version seen of it, in an event or in an answer."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, readers: int, pause: float = 0.0) -> None:
        """Listen to order.status_changed, and read. Each reader pauses so many seconds after an answer."""
        self._tasks = [asyncio.create_task(self._listen())]
        await until(lambda: len(self._seen) > 20 or self._tasks[0].done(), "readers have heard of orders", 60)
        self._tasks += [asyncio.create_task(self._read(pause)) for _ in range(readers)]

    async def stop(self) -> None:
        """Stop reading. Raises what ended a reader."""
        for task in self._tasks:
            task.cancel()
        for result in await asyncio.gather(*self._tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    async def finish(self, orders: int) -> None:
        """Everything is handled: each of the latest orders has to be there in the version that was
        seen of it, or a later one.
        """
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            for order_id in list(self._seen)[-orders:]:
                if await self._ask(client, order_id, "") != 200:
                    self.wrong.append(
                        f"{order_id}: not there in version {self._seen[order_id][1]} after everything was"
                        " handled"
                    )

    async def _listen(self) -> None:
        async with AIOKafkaConsumer(
            "order.status_changed", **kafka(self._brokers), group_id=None
        ) as consumer:
            async for record in consumer:
                data = json.loads(record.value)
                self._remember(data["order_id"], data["user_id"], data["version"])

    def _remember(self, order_id: str, user_id: str, version: int) -> None:
        known = self._seen.pop(order_id, (user_id, 0))[1]
        self._seen[order_id] = user_id, max(known, version)
        if len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    async def _read(self, pause: float) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            while True:
                order_id = self._pick()
                await self._ask(client, order_id, self._random.choice(("", "", "/explain", "list")))
                await asyncio.sleep(pause)

    def _pick(self) -> str:
        """Mostly one of those heard of last."""
        names = list(self._seen)
        if self._random.random() < 0.2:
            return self._random.choice(names)
        return names[-1 - min(int(self._random.expovariate(1 / 50)), len(names) - 1)]

    async def _ask(self, client: httpx.AsyncClient, order_id: str, what: str) -> int:
        user_id, seen = self._seen[order_id]
        began = time.monotonic()
        if what == "list":
            path, headers = f"/users/{user_id}/orders?seen={order_id}:{seen}", {}
        else:
            path, headers = f"/orders/{order_id}{what}", {"X-Order-Version": str(seen)}
        answer = await client.get(path, headers=headers)
        self.latencies.append(time.monotonic() - began)
        if answer.status_code != 200:
            problem = answer.json()["type"]
            self.answers[problem] += 1
            if answer.status_code != 503:
                self.wrong.append(f"{path} with version {seen}: {answer.status_code} {problem}")
            return answer.status_code
        self.answers[answer.headers["X-Source"]] += 1
        if what == "list":
            listed = {each["order_id"]: each["version"] for each in answer.json()["orders"]}
            if order_id not in listed and len(listed) == PAGE:
                return 200  # it may be older than those
            version = listed.get(order_id)
        else:
            version = answer.json()["version"]
        if version is None or version < seen:
            self.wrong.append(
                f"{path} with version {seen}: answered with {version} from {answer.headers['X-Source']}"
            )
        else:
            self._remember(order_id, user_id, version)
        return 200


@asynccontextmanager
async def api(env: Mapping[str, str], log: Path) -> AsyncIterator[str]:
    """`orders api` in a process of its own; yields its URL once it answers."""
    port = ports.choose(set())
    async with AsyncExitStack() as stack:
        out = stack.enter_context(log.open("w"))
        command = (sys.executable, "-c", "from cli.main import main; main()", "api", "--port", str(port))
        process = await asyncio.create_subprocess_exec(*command, env=dict(env), stdout=out, stderr=out)
        try:
            url = f"http://127.0.0.1:{port}"
            async with httpx.AsyncClient(base_url=url) as client:

                async def answers() -> bool:
                    if process.returncode is not None:
                        raise RuntimeError(f"orders api ended:\n{log.read_text()[-2000:]}")
                    with contextlib.suppress(httpx.TransportError):
                        return (await client.get("/openapi.json")).status_code == 200
                    return False

                await until_awaited(answers, "orders api answers", 60)
            yield url
        finally:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
                await process.wait()


def percentile(values: list[float], share: float) -> float:
    """0 when there are none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """Of the service: the stack's, and nothing of the workers'."""
    return {**os.environ, **env, "ORDERS_LOG_LEVEL": "warning"}


def job_lines(orders: int, seed: int) -> Any:
    """Lines of a CSV of so many orders of two lines each, the header first."""
    random = Random(f"{seed}:job")
    yield "order_id,time,user_id,currency,total_amount,item_id,product_id,seller_id,sku,quantity,price"
    users, sellers = [_uuid(random) for _ in range(5_000)], [_uuid(random) for _ in range(200)]
    for number in range(orders):
        order_id, minute = _uuid(random), number // 60 % 60
        day, hour = 1 + number // 36_000 % 28, number // 3_600 % 10
        time_of = f"2026-01-{day:02d}T{hour:02d}:{minute:02d}:{number % 60:02d}Z"
        head = f"{order_id},{time_of},{random.choice(users)},EUR,30.00"
        yield f"{head},{_uuid(random)},{_uuid(random)},{random.choice(sellers)},job-1,1,10.00"
        yield f"{order_id},,,,,{_uuid(random)},{_uuid(random)},{random.choice(sellers)},job-2,2,10.00"


def _uuid(random: Random) -> str:
    bits = f"{random.getrandbits(128):032x}"
    return f"{bits[:8]}-{bits[8:12]}-4{bits[13:16]}-8{bits[17:20]}-{bits[20:]}"
