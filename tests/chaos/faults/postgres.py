"""Postgres ends sessions, stops, refuses, deadlocks, loses an answer; its replica stops, is promoted,
is taken for the primary.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import asyncpg

from tests.chaos.faults.base import WAITS, fault
from tests.chaos.world import World

WORKERS = "application_name = 'orders-worker'"
TERMINATE = f"SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE {WORKERS}"


@fault(
    "postgres-stop",
    "postgres",
    (3.0, 12.0),
    what="immediate stop of Postgres, then a start with recovery",
    sees=WAITS,
)
async def postgres_stop(world: World, random: Random) -> AsyncIterator[str]:
    await world.kill("postgres", signal.SIGQUIT)
    yield "postgres"
    await world.revive("postgres")


@fault(
    "postgres-terminate",
    "postgres",
    (2.0, 5.0),
    what="pg_terminate_backend of every worker's session, again and again",
)
async def postgres_terminate(world: World, random: Random) -> AsyncIterator[str]:
    ended = 0

    async def terminate() -> None:
        nonlocal ended
        async with world.sql() as connection:
            while True:
                ended += await connection.fetchval(TERMINATE)
                await asyncio.sleep(random.uniform(0.02, 0.3))

    async with _meanwhile(terminate()):
        yield "every session of a worker"
    world.notes.append(f"pg_terminate_backend ended {ended} sessions")


@fault(
    "postgres-reply-lost",
    "postgres",
    (2.0, 6.0),
    what="the answer to a committed batch never arrives",
    sees=WAITS,
)
async def postgres_reply_lost(world: World, random: Random) -> AsyncIterator[str]:
    before, wanted = world.replies.lost, random.randint(2, 8)
    world.replies.wanted = wanted
    yield f"{wanted} answers"
    world.replies.wanted = 0
    lost = world.replies.lost - before
    world.notes.append(f"{lost} answers to committed batches were lost")
    if not lost:
        world.problems.append("no answer of Postgres could be lost: nothing was written meanwhile")


@fault(
    "postgres-serialization",
    "postgres",
    (3.0, 8.0),
    what="half of all writes fail with SQLSTATE 40001",
    sees=WAITS,
)
async def postgres_serialization(world: World, random: Random) -> AsyncIterator[str]:
    async with world.sql() as connection:
        await connection.execute(
            """
            CREATE OR REPLACE FUNCTION chaos_serialization() RETURNS trigger LANGUAGE plpgsql AS $$
            BEGIN
                IF random() < 0.5 THEN
                    RAISE EXCEPTION 'could not serialize access' USING ERRCODE = '40001';
                END IF;
                RETURN NULL;
            END $$;
            CREATE OR REPLACE TRIGGER chaos_serialization AFTER INSERT OR UPDATE ON orders_order
            FOR EACH STATEMENT EXECUTE FUNCTION chaos_serialization();
            """
        )
    yield "orders_order"
    async with world.sql() as connection:
        await connection.execute("DROP FUNCTION chaos_serialization() CASCADE")


@fault(
    "postgres-deadlock",
    "postgres",
    (3.0, 8.0),
    what="another session locks the same rows in the opposite order",
)
async def postgres_deadlock(world: World, random: Random) -> AsyncIterator[str]:
    deadlocks = 0

    async def fight() -> None:
        nonlocal deadlocks
        async with world.sql() as mine, world.sql() as looking:
            pid = await mine.fetchval("SELECT pg_backend_pid()")
            before = await looking.fetchval(DEADLOCKS)
            while True:
                with contextlib.suppress(asyncpg.DeadlockDetectedError, asyncpg.QueryCanceledError):
                    async with mine.transaction():
                        # A worker writes orders first and parcels second. With the parcels in hand, wait for
                        # a worker that waits for them: it has orders in its hands. Whoever waits first looks
                        # for a deadlock first, and is its victim.
                        await mine.execute("SET LOCAL statement_timeout = '5s'")
                        await mine.execute("SELECT FROM orders_shipment FOR UPDATE")
                        for _ in range(60):
                            if await looking.fetchval(
                                f"SELECT count(*) FROM pg_stat_activity WHERE {pid} ="
                                " ANY(pg_blocking_pids(pid))"
                            ):
                                await mine.execute("SELECT FROM orders_order FOR UPDATE")
                                break
                            await asyncio.sleep(0.05)
                deadlocks = await looking.fetchval(DEADLOCKS) - before
                await asyncio.sleep(0.1)

    async with _meanwhile(fight()):
        yield "parcels, then orders"
    world.notes.append(f"{deadlocks} deadlocks counted by Postgres")


DEADLOCKS = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"


@fault(
    "postgres-full",
    "postgres",
    (3.0, 10.0),
    what="every connection slot is taken, and the workers' sessions are ended",
    sees=WAITS,
)
async def postgres_full(world: World, random: Random) -> AsyncIterator[str]:
    taken: list[Any] = []

    async def take() -> bool:
        """One slot, if there is one."""
        try:
            taken.append(await asyncpg.connect(world.settings.postgres.get_secret_value(), timeout=10))
        except asyncpg.TooManyConnectionsError:
            return False
        return True

    async def keep_full() -> None:
        while True:
            if not await take():
                await asyncio.sleep(0.2)

    while await take():
        pass
    await taken[0].fetchval(TERMINATE)
    try:
        async with _meanwhile(keep_full()):
            yield f"{len(taken)} slots"
    finally:
        await asyncio.gather(*(connection.close(timeout=5) for connection in taken), return_exceptions=True)


@fault("replica-stop", "postgres", (2.0, 6.0), what="the read replica stops; workers don't need it")
async def replica_stop(world: World, random: Random) -> AsyncIterator[str]:
    await world.kill("postgres-replica", signal.SIGINT)
    yield "postgres-replica"
    await world.revive("postgres-replica")


@fault(
    "replica-promoted",
    "postgres",
    (4.0, 8.0),
    what="the read replica is promoted by mistake; nobody may write to it; it is made anew afterwards",
    alone=True,
)
async def replica_promoted(world: World, random: Random) -> AsyncIterator[str]:
    url = world.settings.postgres_replica
    assert url is not None
    async with world.sql(url.get_secret_value()) as replica:
        # Its own word for its folder may be "where I stand": see stack/postgres.py.
        data = Path(f"/proc/{world.pid('postgres-replica')}/cwd").resolve()
        await replica.execute("SELECT pg_promote()")
        before = await replica.fetchval("SELECT sum(version) FROM orders_order")
        yield "postgres-replica"
        after = await replica.fetchval("SELECT sum(version) FROM orders_order")
        sessions = await replica.fetchval(f"SELECT count(*) FROM pg_stat_activity WHERE {WORKERS}")
    if before != after or sessions:
        world.problems.append(
            f"a promoted replica was written to: {before} -> {after}, {sessions} sessions of workers"
        )
    await world.kill("postgres-replica", signal.SIGINT)
    await asyncio.to_thread(shutil.rmtree, data)
    await world.revive("postgres-replica")


@fault(
    "postgres-misrouted",
    "postgres",
    (3.0, 8.0),
    what="the workers' address of Postgres leads to the read replica",
    sees=WAITS,
)
async def postgres_misrouted(world: World, random: Random) -> AsyncIterator[str]:
    proxy = world.proxies["postgres"]
    primary = proxy.target
    await proxy.retarget(world.port("postgres-replica"))
    yield "postgres-replica instead of postgres"
    await proxy.retarget(primary)


@contextlib.asynccontextmanager
async def _meanwhile(work: Any) -> AsyncIterator[None]:
    """Run something until the end of the block. What it fails with is raised there."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
