"""The protocol of a sink."""

from __future__ import annotations

from typing import Protocol, TypeVar

Batch = TypeVar("Batch", contravariant=True)


class Sink(Protocol[Batch]):
    """A place where the state of orders is shown: a function of the orders' versions, never of the order of the writes.

    write() is idempotent: the same batch twice is the same as once. It only moves forward: whatever has a higher version stays. So
    batches may be
    repeated, come late, or come from a worker that doesn't know yet that it was replaced.
    """

    async def start(self) -> None:
        """Gets ready to write. Called once, inside the event loop that will write. May block (the loop goes on) as long as a connection
        takes.
        """

    async def write(self, batch: Batch, /) -> int:
        """Writes a batch and returns how many rows or entries it changed.

        A sink of record (Postgres) writes all of the batch or nothing, returns after the commit, and raises when it couldn't: the caller
        repeats the
        same batch when the error is temporary. A cache (Redis) never raises because the server is away, and never takes longer than its
        timeout: what it
        couldn't write is found out later (streams/cache.py). Several writes may be under way at once.
        """

    async def close(self) -> None:
        """Gives the connections back. A write that is under way may fail. Doesn't raise when the server is away."""
