"""Everything that the console does, beside showing: each noted in the journal of operations, by the library
that the command line uses.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import asyncpg
from aiokafka.errors import KafkaError
from redis.exceptions import RedisError

from api.binding import Record
from api.sending import Place, Sender
from console.sources import said_of
from console.texts import text
from errors import OrdersError
from operations import journal
from operations.dead_letters import Filter, State, find, newest_of, state_of
from operations.pause import pause, resume
from operations.redrive import RedriveResult, Selection, redrive
from operations.repair import RepairResult, repair
from operations.resolve import ResolveResult, reopen, resolve
from operations.rows import RowsResult, repair_rows
from queries.errors import Unavailable
from settings import Settings
from streams.control import Kind, Pause, paused

FINDINGS: Final = 50
"""Of a repair, that are kept."""


class NotDone(Exception):
    """What was asked for wasn't done, or not whole. The message says why, and what to do."""


class Doing:
    """What changes something. `by`: who asks; `why`: their reason. Each method blocks for as long as it
    takes, and raises NotDone, or Unavailable where a server doesn't answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._sender = Sender(settings) if settings.api_write else None

    async def close(self) -> None:
        """Close all connections."""
        if self._sender is not None:
            await self._sender.close()

    async def operations(self, since: datetime | None) -> list[journal.Operation]:
        """Who did what since then, the newest last; None: all of it."""
        async with _told():
            return await journal.operations(self._settings, since)

    async def redrive(self, selection: Selection, by: str, why: str | None) -> RedriveResult:
        """Send dead letters back; `why` None: only count them."""
        async with _told():
            if why is None:
                return await redrive(self._settings, selection, by=by, dry_run=True)
            async with journal.noted(
                self._settings, "dlq redrive", by=by, arguments=_told_of(selection), why=why
            ):
                return await redrive(self._settings, selection, by=by)

    async def states(self, selection: Selection) -> Counter[State]:
        """How many letters are selected, by what became of them."""
        async with _told():
            if selection.ids is None:
                listing = await newest_of(self._settings, _filter_of(selection), 1)
                return Counter({state: n for state, n in listing.states.items() if n})  # type: ignore[misc]
            states: Counter[State] = Counter()
            for partition, offset in selection.ids:
                letter, note = await find(self._settings, None, partition, offset)
                states[state_of(self._settings, letter, note)] += 1
            return states

    async def resolve(self, selection: Selection, by: str, why: str) -> ResolveResult:
        """Note that dead letters need nothing more."""
        arguments = _told_of(selection)
        async with (
            _told(),
            journal.noted(self._settings, "dlq resolve", by=by, arguments=arguments, why=why),
        ):
            return await resolve(self._settings, selection.ids, _filter_of(selection), by=by, why=why)

    async def reopen(self, selection: Selection, by: str, why: str) -> int:
        """Take back that letters are resolved, by their ids -> how many were."""
        arguments = ["--undo", *_told_of(selection)]
        async with (
            _told(),
            journal.noted(self._settings, "dlq resolve", by=by, arguments=arguments, why=why),
        ):
            return await reopen(self._settings, selection.ids or frozenset())

    async def paused(self) -> list[Pause]:
        """What is paused, the oldest first."""
        async with _told():
            return list(await paused(self._settings))

    async def pause(self, kind: Kind, name: str, by: str, why: str) -> bool:
        """Pause a lane, a topic or a type -> whether it wasn't so before."""
        async with (
            _told(),
            journal.noted(self._settings, "pause", by=by, arguments=[kind, name], why=why),
        ):
            return (await pause(self._settings, kind, name, by=by, why=why)).changed

    async def resume(self, kind: Kind, name: str, by: str, why: str) -> bool:
        """End a pause -> whether there was one."""
        async with (
            _told(),
            journal.noted(self._settings, "resume", by=by, arguments=[kind, name], why=why),
        ):
            return (await resume(self._settings, kind, name)).changed

    async def repair(self, order_id: UUID, by: str, why: str | None) -> RepairResult:
        """Repair an order, by its log; `why` None: only say what is broken. All workers must have stopped."""

        async def work() -> RepairResult:
            only = frozenset({str(order_id)})
            return await repair(self._settings, only, dry_run=why is None, cache=True, max_findings=FINDINGS)

        async with _told():
            if why is None:
                return await asyncio.to_thread(asyncio.run, work())
            async with journal.noted(
                self._settings, "repair", by=by, arguments=["--ids", str(order_id)], why=why
            ):
                # Beside others: it reads and folds a lane's log.
                return await asyncio.to_thread(asyncio.run, work())

    async def repair_rows(self, order_id: UUID, by: str, why: str) -> RowsResult:
        """Write an order's rows from its state, beside running workers."""

        async def work() -> RowsResult:
            return await repair_rows(self._settings, frozenset({str(order_id)}), dry_run=False)

        arguments = ["--rows", "--ids", str(order_id)]
        async with (
            _told(),
            journal.noted(self._settings, "repair", by=by, arguments=arguments, why=why),
        ):
            return await asyncio.to_thread(asyncio.run, work())

    async def send(self, record: Record, order_id: UUID, by: str, why: str) -> Place:
        """Send an event."""
        async with _told():
            if self._sender is None:
                raise NotDone(text("no_writes"))
            arguments = [record.topic, str(order_id)]
            async with journal.noted(self._settings, "send", by=by, arguments=arguments, why=why):
                return (await self._sender.send([record]))[0]


def _filter_of(selection: Selection) -> Filter:
    """A selection as the commands' filters have it. Raises NotDone for a time that is none."""
    return Filter(
        reason=next(iter(selection.reasons or ()), None),
        topic=next(iter(selection.topics or ()), None),
        since=_time_of(selection.since),
        until=_time_of(selection.until),
    )


def _time_of(text_: str) -> datetime | None:
    if not text_:
        return None
    try:
        # To the hour, as the page of letters has it, is a time as well.
        time = datetime.fromisoformat(text_)
    except ValueError:
        raise NotDone(text("bad_time", value=text_)) from None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _told_of(selection: Selection) -> Sequence[str]:
    """A selection as the command line would name it."""
    words: list[str] = []
    for option, those in (("--reason", selection.reasons), ("--topic", selection.topics)):
        words += [word for each in sorted(those or ()) for word in (option, each)]
    words += [f"{partition}:{offset}" for partition, offset in sorted(selection.ids or ())]
    words += [
        f"{name}={time}" for name, time in (("since", selection.since), ("until", selection.until)) if time
    ]
    return words


@asynccontextmanager
async def _told() -> AsyncIterator[None]:
    """What goes wrong, as the pages tell it."""
    try:
        yield
    except OrdersError as error:
        raise NotDone(str(error)) from error
    except KafkaError as error:
        away = text("kafka_away", why=type(error).__name__)
        raise Unavailable(said_of("Kafka", error, away)) from error
    except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unavailable(said_of("Postgres", error, text("postgres_away"))) from error
    except (RedisError, OSError, TimeoutError) as error:
        broke = text("server_broke", why=type(error).__name__)
        raise Unavailable(
            said_of("Redis", error, broke) if isinstance(error, RedisError) else broke
        ) from error
