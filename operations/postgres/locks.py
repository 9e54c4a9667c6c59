"""Who holds up others in Postgres: sessions with a lock for which another one waits."""

from __future__ import annotations

from dataclasses import dataclass

from operations.postgres import ddl
from settings import Settings


@dataclass(frozen=True, slots=True)
class Holder:
    """One session that others wait for, and that waits for none of them."""

    pid: int
    """What `pg_terminate_backend` takes."""
    user: str | None
    application: str | None
    """As the client calls itself."""
    client: str | None
    """Its address; None: a socket on the server's machine."""
    state: str | None
    """`idle in transaction`: it does nothing, and holds its locks. None: this login may not see it."""
    seconds: float | None
    """For how long its transaction has lasted; None: this login may not see it, or it is a prepared one."""
    waiting: int
    """Sessions that wait for it, also behind one another."""
    longest: float | None
    """Seconds for which the first of them has waited."""


# pg_locks shows everybody's locks to every login; pg_stat_activity hides others' states from a plain one.
_HOLDERS = """
    WITH RECURSIVE waits AS (
        SELECT pid, min(waitstart) AS since FROM pg_locks WHERE NOT granted GROUP BY pid
    ), chain(waiter, holder) AS (
        SELECT pid, unnest(pg_blocking_pids(pid)) FROM waits
        UNION
        SELECT chain.waiter, unnest(pg_blocking_pids(waits.pid))
        FROM chain JOIN waits ON waits.pid = chain.holder
    )
    SELECT chain.holder, session.usename, session.application_name, host(session.client_addr), session.state,
           extract(epoch FROM now() - session.xact_start)::float8,
           count(DISTINCT chain.waiter)::int,
           extract(epoch FROM now() - min(waits.since))::float8
    FROM chain
    JOIN waits ON waits.pid = chain.waiter
    LEFT JOIN pg_stat_activity session ON session.pid = chain.holder
    WHERE chain.holder NOT IN (SELECT pid FROM waits)
    GROUP BY 1, 2, 3, 4, 5, 6 ORDER BY 7 DESC, 1
"""


async def holders(settings: Settings) -> list[Holder]:
    """The sessions that hold up others now, the one that holds up most of them first.

    Waits for no lock itself. Blocks for some milliseconds. Raises what asyncpg raises.
    """
    async with ddl.connect(settings) as connection:
        return [Holder(*row) for row in await connection.fetch(_HOLDERS)]
