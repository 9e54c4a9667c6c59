"""Change what processes log while they run: a record in orders.control, which each follows."""

from __future__ import annotations

from operations.pause import write
from settings import Settings
from streams.control import now
from streams.levels import Level, LevelNote, LogLevel, encode, key_of


async def set_level(settings: Settings, worker: str, level: LogLevel, *, by: str, why: str | None) -> Level:
    """Have workers, APIs and consoles log from a level on. `worker`: `w1@host`, `w1` on any host (`api` and
    `console` are those), or `*`, all of them.

    Returns once the brokers have it; they take it in within a second or two. Blocks. Raises TopicsMissing,
    KafkaError.
    """
    note = LevelNote(now(), by, level, why)
    await write(settings, key_of(worker), encode(note))
    return Level(worker, level, note.since, by, why)


async def reset_level(settings: Settings, worker: str) -> None:
    """Have them log as their settings say. See set_level() for the rest."""
    await write(settings, key_of(worker), None)
