"""What is paused: a lane, a topic or a type of event, as the topic orders.control says
(docs/decisions/0068). Workers read it as they start and follow it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from types import TracebackType
from typing import Final, Literal, NamedTuple, Self, get_args

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from contracts.incoming import EVENTS
from contracts.strict_json import read_foreign
from contracts.topics import CONTROL
from settings import Settings
from sinks.availability import Availability
from streams.levels import Level, Levels, level_of
from streams.reports import name_of
from wire.log import LogReader

log = logging.getLogger(__name__)

FOLLOW_SECONDS: Final = 1.0
PARTITION: Final = TopicPartition(CONTROL, 0)

Kind = Literal["lane", "topic", "type"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Note(msgspec.Struct, omit_defaults=True):
    """Value of a record of orders.control. Its key is KIND:NAME; a record without a value ends the pause."""

    since: str
    """RFC 3339 in UTC."""
    by: str
    """user@host, the name of a key, or a worker's name."""
    why: str


class Pause(NamedTuple):
    """One pause."""

    kind: Kind
    name: str
    """The lane's number, or the name of the topic or the type."""
    since: str
    by: str
    why: str

    def seconds(self, now: float) -> float:
        """For how long it has lasted at `now`, seconds since 1970. Pure."""
        try:
            return max(0.0, now - datetime.fromisoformat(self.since).timestamp())
        except (ValueError, OverflowError):
            return 0.0

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


def key_of(kind: Kind, name: str) -> bytes:
    """Key of a pause in orders.control. Pure."""
    return f"{kind}:{name}".encode()


def topic_of(kind: Kind, name: str) -> str | None:
    """The topic that a pause holds back; None: a lane. Each type of event has a topic of its own, but for the
    pipeline's decisions, which share one. Pure.
    """
    if kind == "lane":
        return None
    spec = EVENTS.get(name) if kind == "type" else None
    return name if spec is None else spec.topic or spec.type


def held_by(pauses: Collection[Pause]) -> tuple[frozenset[int], frozenset[str]]:
    """The lanes and the topics that these hold back. Pure."""
    lanes = frozenset(int(each.name) for each in pauses if each.kind == "lane")
    topics = {topic_of(each.kind, each.name) for each in pauses}
    return lanes, frozenset(topic for topic in topics if topic is not None)


_decode: Final = msgspec.json.Decoder(Note).decode
encode: Final = msgspec.json.Encoder().encode


def set_level(level: str | None) -> bool:
    """Change this process's log level, None: what the settings say; whether that changes anything.

    Only the command line replaces this, since it knows how the process logs.
    """
    return False


class Pauses:
    """What is paused, and which log levels are set, by the records that were applied so far. Pure."""

    def __init__(self) -> None:
        self._by_key: dict[bytes, Pause] = {}
        self.levels = Levels()

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in one record. What is neither a pause nor its end is left out: anybody may write there."""
        self.levels.apply(key, value)
        named = _parsed(key)
        if key is None or named is None:
            return
        if value is None:
            self._by_key.pop(key, None)
            return
        note = read_foreign(_decode, value)
        if note is not None:
            self._by_key[key] = Pause(*named, note.since, note.by, note.why)

    @property
    def now(self) -> tuple[Pause, ...]:
        """The pauses, the oldest first."""
        return tuple(sorted(self._by_key.values(), key=lambda each: each.since))


def _parsed(key: bytes | None) -> tuple[Kind, str] | None:
    kind, _, name = (key or b"").decode("utf-8", "replace").partition(":")
    for known in KINDS:
        digits = name.isascii() and name.isdigit() and len(name) < 6
        if kind == known and name and (known != "lane" or digits):
            return known, name
    return None


class ControlReader:
    """Reads orders.control, again and again over one connection. An async context manager; entering raises
    KafkaConnectionError when no broker answers.
    """

    def __init__(self, settings: Settings) -> None:
        self._log = LogReader(settings, "orders-control")
        self._pauses = Pauses()
        self._position = 0

    async def __aenter__(self) -> Self:
        await self._log.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._log.__aexit__(kind, error, trace)

    @property
    def levels(self) -> tuple[Level, ...]:
        """The log levels that were set when paused() was called last."""
        return self._pauses.levels.now

    async def paused(self) -> tuple[Pause, ...]:
        """What is paused now, the oldest first; nothing where the topic isn't there.

        Blocks for round trips. Raises KafkaError.
        """
        if not await self._log.partitions(CONTROL):
            return ()
        end = (await self._log.ends([PARTITION]))[PARTITION]
        if end < self._position:  # the topic was made anew
            self._pauses, self._position = Pauses(), 0
        async with aclosing(self._log.read(PARTITION, self._position, end)) as stretches:
            async for records, position in stretches:
                for record in records:
                    self._pauses.apply(record.key, record.value)
                self._position = position
        return self._pauses.now


async def paused(settings: Settings) -> tuple[Pause, ...]:
    """What is paused now, the oldest first. Blocks. Raises KafkaError."""
    async with ControlReader(settings) as reader:
        return await reader.paused()


class OwnLevel:
    """The level of this process's log, as far as it was set at run time."""

    def __init__(self, own: str) -> None:
        """`own`: what the process is called, w1@host."""
        self._own = own
        self._level: Level | None = None

    def take(self, levels: Collection[Level]) -> None:
        """Log from what is set now, and say so if that is another level. Never blocks."""
        level = level_of(levels, self._own)
        if level == self._level:
            return
        self._level = level
        if not set_level(None if level is None else level.level):
            return
        if level is None:
            log.warning("the log has the level of the settings again")
        else:
            values = {"level": level.level, "since": level.since, "by": level.by}
            log.warning("the log has the level %(level)s, since %(since)s by %(by)s", values)


class Control:
    """What is paused, for one worker: known before its first lane opens, and followed from then on."""

    def __init__(self, settings: Settings, hold: Callable[[Collection[int], Collection[str]], None]) -> None:
        """`hold` is called with the lanes and the topics to be held back, whenever they change."""
        self._settings = settings
        self._hold = hold
        self.paused: tuple[Pause, ...] = ()
        """As far as this worker knows: it is acted on."""
        self.availability = Availability()
        """Of Kafka, by whether it answers what follow() asks each second."""
        self._level = OwnLevel(name_of(settings))

    async def start(self) -> None:
        """Learn what is paused and how much is to be logged. Blocks. Raises KafkaError."""
        async with ControlReader(self._settings) as reader:
            self._take(await reader.paused())
            self._level.take(reader.levels)

    async def follow(self) -> None:
        """Keep what is paused up to date, until cancelled. While Kafka is away it stays as it was."""
        while True:
            try:
                async with ControlReader(self._settings) as reader:
                    while True:
                        with self.availability.asked():
                            now = await reader.paused()
                        self._take(now)
                        self._level.take(reader.levels)
                        await asyncio.sleep(FOLLOW_SECONDS)
            except (KafkaError, OSError) as error:
                log.debug("what is paused can't be read: %r", error)
            await asyncio.sleep(FOLLOW_SECONDS)

    def _take(self, now: tuple[Pause, ...]) -> None:
        if now == self.paused:
            return
        before, self.paused = _by_name(self.paused), now
        after = _by_name(now)
        for name in sorted(after.keys() - before.keys()):
            pause = after[name]
            log.warning(
                "%(paused)s is paused since %(since)s by %(by)s: %(why)s",
                {
                    "paused": name,
                    pause.kind: pause.name,
                    "since": pause.since,
                    "by": pause.by,
                    "why": pause.why,
                },
            )
        for name in sorted(before.keys() - after.keys()):
            pause = before[name]
            log.warning(
                "%(paused)s goes on; it was paused for %(seconds).0f s",
                {"paused": name, pause.kind: pause.name, "seconds": pause.seconds(time.time())},
            )
        self._hold(*held_by(now))


def span(seconds: float) -> str:
    """A time that has gone by, in the two largest units. Pure."""
    days, rest = divmod(int(seconds), 86400)
    hours, rest = divmod(rest, 3600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((number for number, (count, _) in enumerate(parts) if count), 3)
    return " ".join(f"{count} {unit}" for count, unit in parts[first : first + 2] if count) or "0 s"


def _by_name(pauses: Collection[Pause]) -> Mapping[str, Pause]:
    return {str(each): each for each in pauses}


def now() -> str:
    """The time of a pause that begins now. Never blocks."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
