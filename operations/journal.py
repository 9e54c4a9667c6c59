"""The journal of operations: who did what, when and why, in the topic orders.operations.

An operation is noted twice: before it begins and when it has ended. One that was killed stays without its
end. Nothing is done that could not be noted. Everything here asks the brokers, and blocks for as long as they
take.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import socket
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from datetime import UTC, datetime
from typing import Final, Literal

import msgspec
from aiokafka import TopicPartition

from contracts.strict_json import read_foreign
from contracts.topics import OPERATIONS
from errors import OrdersError, named
from settings import Settings
from streams.topics import require
from wire import clients
from wire.log import LogReader
from wire.metadata import require_visible

MOST_WORDS: Final = 50
"""Arguments that are noted of an operation."""
MOST_CHARACTERS: Final = 500
"""Of each argument, of the reason and of what is said of the end."""
REQUEST_MS: Final = 15_000
PARTITION: Final = TopicPartition(OPERATIONS, 0)
"""All of them, so that they stand in the order in which they were noted."""

Outcome = Literal["done", "failed", "interrupted"]
"""done: it did what it does, which may be to tell that something is wrong (`detail` has the exit code).
failed: it ended with an error. interrupted: somebody ended it by Ctrl-C.
"""


class Operation(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One operation. Times are RFC 3339 in UTC."""

    id: str
    """UUID."""
    began: str
    by: str
    """user@host, the name of a key, or a worker's name."""
    command: str
    """What was done: a command's words, such as `dlq redrive`."""
    arguments: list[str] = []
    why: str | None = None
    """What the person gave as the reason."""
    ended: str | None = None
    """None: it is under way, or it was killed."""
    outcome: Outcome | None = None
    detail: str | None = None
    """What went wrong, if something did."""


def somebody() -> str:
    """Who runs this process: user@host. A user without a name is told by number. Never blocks."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


_LOGIN: Final = re.compile(r"://[^/\s]*@")
_SECRET: Final = re.compile(r"(?i)((?:password|passwd|secret|token|api_?key)\w*\s*[=:]\s*)\S+")


def without_secrets(word: str) -> str:
    """A text with the logins of its URLs and the values of what is called a password, a secret, a token or a
    key left out, cut to MOST_CHARACTERS. Bytes that are no UTF-8 (an argument, a file's name) are escaped.
    Pure.
    """
    word = word.encode(errors="backslashreplace").decode()
    shown = _SECRET.sub(r"\1***", _LOGIN.sub("://***@", word))
    return shown if len(shown) <= MOST_CHARACTERS else f"{shown[: MOST_CHARACTERS - 1]}…"


async def begin(
    settings: Settings, command: str, *, by: str, arguments: Sequence[str] = (), why: str | None = None
) -> Operation:
    """Note that an operation begins; it may be done once this has returned.

    `arguments` are noted without what looks like a secret. Raises TopicsMissing, KafkaError.
    """
    words = [without_secrets(word) for word in arguments]
    more = [f"and {len(words) - MOST_WORDS:,} more"] if len(words) > MOST_WORDS else []
    operation = Operation(
        id=str(uuid.uuid4()),
        began=_now(),
        by=by,
        command=command,
        arguments=words[:MOST_WORDS] + more,
        why=None if why is None else without_secrets(why),
    )
    await _write(settings, operation)
    return operation


async def end(settings: Settings, operation: Operation, outcome: Outcome, detail: str | None = None) -> None:
    """Note that an operation has ended. Raises TopicsMissing, KafkaError."""
    shown = None if detail is None else without_secrets(detail)
    await _write(settings, msgspec.structs.replace(operation, ended=_now(), outcome=outcome, detail=shown))


@asynccontextmanager
async def noted(
    settings: Settings, command: str, *, by: str, arguments: Sequence[str] = (), why: str | None = None
) -> AsyncIterator[Operation]:
    """Note the beginning of what is done in the block, and its end: done, or failed by what it raised.

    Raises what begin() raises before the block runs, and what end() raises after it.
    """
    operation = await begin(settings, command, by=by, arguments=arguments, why=why)
    try:
        yield operation
    except asyncio.CancelledError:
        raise  # no end is known: it is listed without one
    except Exception as error:
        await end(settings, operation, "failed", describe(error))
        raise
    await end(settings, operation, "done")


def describe(error: BaseException) -> str:
    """An error in a line. Pure."""
    return " ".join(error.message.split()) if isinstance(error, OrdersError) else named(error)


async def operations(settings: Settings, since: datetime | None = None) -> list[Operation]:
    """All operations, or those that began at `since` or later, in the order in which they began.

    Blocks. Raises TopicsMissing, KafkaError.
    """
    by_id: dict[str, Operation] = {}
    async with LogReader(settings, "orders-operations") as log:
        require(settings, [OPERATIONS], [OPERATIONS] if await log.partitions(OPERATIONS) else [])
        end = (await log.ends([PARTITION]))[PARTITION]
        start = 0
        if since is not None:
            start = (await log.since([PARTITION], int(since.timestamp() * 1000)))[PARTITION]
        async with aclosing(log.read(PARTITION, start, end)) as stretches:
            async for records, _ in stretches:
                for record in records:
                    note = read_foreign(_decode, record.value)
                    # The note of the end holds that of the beginning, so a later one always counts.
                    if note is not None and (since is None or _time(note.began) >= since):
                        by_id[note.id] = note
    return sorted(by_id.values(), key=lambda each: each.began)


async def exists(settings: Settings) -> bool:
    """Whether there is a journal: not before the first `orders init`. Blocks. Raises KafkaError."""
    async with LogReader(settings, "orders-operations") as log:
        return bool(await log.partitions(OPERATIONS))


async def _write(settings: Settings, operation: Operation) -> None:
    producer = clients.producer(settings, "orders-journal", request_timeout_ms=REQUEST_MS)
    try:
        await producer.start()
        cluster = await producer.client.fetch_all_metadata()
        if not cluster.partitions_for_topic(OPERATIONS):
            await require_visible(producer.client, [OPERATIONS])
            require(settings, [OPERATIONS], [])
        value, key = _encode(operation), operation.id.encode()
        await producer.send_and_wait(OPERATIONS, value, key, partition=PARTITION.partition)
    finally:
        await producer.stop()


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(Operation).decode


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _time(text: str) -> datetime:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)
