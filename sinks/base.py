"""The protocol of a sink."""

from __future__ import annotations

from typing import Protocol, TypeVar

Batch = TypeVar("Batch", contravariant=True)


class Sink(Protocol[Batch]):
    """A store that shows the state of orders, as a function of their versions and not of the order of writes.

    write() is idempotent: the same batch twice changes nothing. It only moves forward: a row or entry with a
    higher version stays. So a batch may be repeated, may come late, and may come from a worker that doesn't
    know yet that it was replaced.
    """

    async def start(self) -> None:
        """Prepare for writing. It is called once, in the event loop that will write.

        May block (the loop goes on) as long as connecting takes.
        """

    async def write(self, batch: Batch, /) -> int:
        """Write a batch, and return how many rows or entries it changed.

        A sink of record (Postgres) writes all of the batch or nothing, returns after the commit, and raises
        if it couldn't write; the caller repeats the batch if the error is temporary. A cache (Redis) never
        raises because its server is away and never takes longer than its timeout; what it couldn't write is
        refreshed later (streams/cache.py). Several writes may run at the same time.
        """

    async def close(self) -> None:
        """Close the connections. A write that is under way may fail. It doesn't raise when the server is
        away."""
