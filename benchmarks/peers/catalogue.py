"""Who is measured: what each peer runs, and what it leaves out of the job that orders-stream does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

OURS: Final = "orders-stream"

_STATELESS: Final = (
    "state, validation and refusals, refunds and deadlines, suborders, Redis; more than one payment, parcel"
    " or return of an order; user_id and region of parcels and returns"
)


@dataclass(frozen=True, slots=True)
class Peer:
    """A program that is measured.

    `module`: below benchmarks.peers.clients; empty for our own workers. `environment`: of
    benchmarks/peers/requirements. `event`: it publishes one event for each. `grouped`: it reads as a consumer
    group.
    """

    name: str
    leaves_out: str
    module: str = ""
    environment: str = ""
    event: bool = False
    grouped: bool = True
    processes: int = 2

    @property
    def prefix(self) -> str:
        """Of its topics."""
        return f"{self.name}." if self.module else ""

    @property
    def schema(self) -> str:
        """Where its tables are."""
        return f"peer_{self.name.replace('-', '_')}" if self.module else "public"


PEERS: Final = (
    Peer(OURS, "nothing"),
    Peer(
        "aiokafka-asyncpg",
        f"derived events, {_STATELESS}",
        module="aiokafka_asyncpg",
        environment="aiokafka-asyncpg",
    ),
    Peer(
        "aiokafka-asyncpg-event",
        f"all derived events but one an event, {_STATELESS}",
        module="aiokafka_asyncpg",
        environment="aiokafka-asyncpg",
        event=True,
    ),
    Peer(
        "faststream-sqlalchemy",
        f"derived events, {_STATELESS}",
        module="faststream_sqlalchemy",
        environment="faststream-sqlalchemy",
    ),
    Peer(
        "bytewax",
        f"derived events, {_STATELESS}",
        module="bytewax_psycopg",
        environment="bytewax",
        grouped=False,
        processes=1,
    ),
)
"""In the order in which they are measured and shown."""
