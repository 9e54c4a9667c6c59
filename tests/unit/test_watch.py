"""What the probes of the API and the console say by what their servers and the schema do."""

from __future__ import annotations

from typing import Final

import pytest

from api.watch import ServiceWatch
from errors import OrdersError
from queries.documents import Health, SourceHealth
from settings import Settings
from sinks import migrate

UP, DOWN = SourceHealth(True), SourceHealth(False)
SOURCES: Final = ("cache", "replica", "primary")


class Servers:
    """Says of each source whether it is up, and of the schema what is wrong."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sources = dict.fromkeys(SOURCES, UP)
        self.wrong: str | None = None
        monkeypatch.setattr(migrate, "fits", self.fits)

    async def fits(self, _: Settings) -> None:
        if self.wrong is not None:
            raise OrdersError(self.wrong, "run orders init")

    async def health(self) -> Health:
        rows = self.sources["primary"].up or self.sources["replica"].up
        return Health("ok" if rows else "down", self.sources)


async def test_ready_is_a_database_with_the_right_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    watch = ServiceWatch(Settings(), servers.health, "api")

    async def look(**changes: SourceHealth) -> tuple[str | None, str | None]:
        servers.sources |= changes
        await watch._look()
        health = watch.look()
        assert health.stuck is None, "no restart would mend it"
        return health.waits, health.tells

    assert watch.look().waits == "the servers haven't been looked at yet"
    servers.wrong = "the schema is at revision 0001"
    assert await look() == ("the schema is at revision 0001", None)
    servers.wrong = None
    assert await look() == (None, None)
    assert await look(cache=DOWN) == (None, "redis hasn't answered for 0 s")
    assert await look(cache=UP, primary=DOWN) == (None, "postgres hasn't answered for 0 s")
    waits, tells = await look(replica=DOWN)
    assert (waits, tells) == ("postgres hasn't answered for 0 s; replica hasn't answered for 0 s", None)
    assert await look(primary=UP, replica=UP) == (None, None)


async def test_a_replica_alone_is_enough_to_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    servers = Servers(monkeypatch)
    servers.sources["primary"] = DOWN
    watch = ServiceWatch(Settings(), servers.health, "api")
    await watch._look()
    assert (watch.look().waits, watch.look().tells) == (None, "postgres hasn't answered for 0 s")
