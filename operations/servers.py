"""Are the servers there, with what a command needs on them? And putting it there."""

from __future__ import annotations

from settings import Settings
from streams import topics


async def create(settings: Settings, partition_by: str = "user_id") -> list[str]:
    """Create the topics, then the schema; returns the names of the topics created. Again is harmless.
    Blocks until they are there.

    Raises TopicMismatch, SchemaMismatch, or what the clients raise.
    """
    from sinks import migrate

    created = await topics.ensure(settings)
    await migrate.upgrade(settings, partition_by)
    return created


async def require(settings: Settings, *, schema: bool = False) -> None:
    """Ask Kafka for the pipeline's topics and, if `schema`, Postgres for its tables: what is missing is
    said at once, in one line.

    Tables of the version before or after this one will do as well, where this one can write them.

    A producer would wait half a minute for a topic that isn't there. Raises TopicsMissing, TopicMismatch
    where the changelog takes other batches than the settings say, SchemaMismatch, or what the clients raise
    when no server answers. Blocks for as long as they take.
    """
    await topics.require_all(settings)
    if schema:
        from sinks import (
            migrate,  # here: SQLAlchemy and Alembic take their time, and most commands ask for topics only
        )

        await migrate.fits(settings)
