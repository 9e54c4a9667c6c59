"""Probes of a worker, asked from another thread than its loop's, as HTTP does it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

import cli.probes
from cli.probes import serve
from settings import Settings
from streams import probes
from streams.probes import Health, Probes
from streams.transport.consumer import Consumer


def metrics(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    return [b"metrics of " + environ["PATH_INFO"].encode()]


def ask(asked: Probes, path: str) -> tuple[int, str]:
    """Status and text."""
    said: list[str] = []
    body = b"".join(asked({"PATH_INFO": path}, lambda status, headers: said.append(status)))
    return int(said[0][:3]), body.decode().strip()


@contextmanager
def looping() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that turns in a thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_a_worker_is_alive_before_it_is_ready() -> None:
    asked, waits = Probes(metrics), ["lanes aren't open yet"]
    assert ask(asked, "/live") == (200, "it starts")
    assert ask(asked, "/ready") == (503, "it starts")
    with looping() as loop:
        asked.watch(loop, lambda: Health(waits=waits[0] if waits else None))
        assert ask(asked, "/live") == (200, "lanes aren't open yet")
        assert ask(asked, "/ready") == (503, "lanes aren't open yet")
        waits.clear()
        assert ask(asked, "/live") == ask(asked, "/ready") == (200, "ready")
    assert ask(asked, "/live") == ask(asked, "/ready") == (503, "it ends")
    assert ask(asked, "/metrics") == (200, "metrics of /metrics")


def test_whoever_is_stuck_is_neither_alive_nor_ready() -> None:
    asked = Probes(metrics)
    with looping() as loop:
        asked.watch(loop, lambda: Health("lane 3 has stood still for 21 s", "redis hasn't answered for 2 s"))
        for path in ("/live", "/ready"):
            assert ask(asked, path) == (503, "lane 3 has stood still for 21 s")


def test_a_loop_that_stands_still_is_not_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "TURN_SECONDS", 0.01)
    asked, held = Probes(metrics), threading.Event()
    with looping() as loop:
        asked.watch(loop, Health)
        loop.call_soon_threadsafe(held.wait)
        for path in ("/live", "/ready"):
            code, text = ask(asked, path)
            assert (code, "hasn't turned" in text) == (503, True)
        held.set()
        monkeypatch.undo()
        assert ask(asked, "/live") == (200, "ready")


def test_they_are_served_beside_the_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = [metrics]

    class Server:
        get_app: Callable[[], Any] = staticmethod(lambda: served[-1])
        set_app: Callable[[Any], None] = staticmethod(served.append)

    monkeypatch.setattr(cli.probes, "start_http_server", lambda *_, **__: (Server, None))
    assert serve(Settings(metrics_port=0)) is None
    got = serve(Settings(metrics_port=1))
    assert got is not None
    assert served[1:] == [got]
    assert ask(got, "/other") == (200, "metrics of /other")


def standing(assigned: bool, claim: set[TP] | None, open_: set[TP]) -> bool:
    """What a consumer says of itself: `claim` is what the group has given it."""
    here = SimpleNamespace(
        _assigned=assigned,
        _thread=SimpleNamespace(claimed=lambda: None if claim is None else (SimpleNamespace(tps=claim), 1)),
        _app=SimpleNamespace(specs_by_topic={"order.paid": None}),
        trackers=dict.fromkeys(open_),
    )
    return bool(vars(Consumer)["standing"].fget(here))


def test_a_worker_is_ready_with_all_its_lanes_or_with_none() -> None:
    first, second = TP("order.paid", 0), TP("order.paid", 1)
    changelog = TP("orders-state-changelog", 0)
    assert standing(True, {first, second, changelog}, {first, second})
    assert standing(True, set(), set()), "it stands by"
    assert not standing(True, {first, second}, {first}), "a state is still being read"
    assert not standing(False, {first}, {first}), "the group shares out its partitions"
    assert not standing(True, None, set()), "nobody has told it yet"
