"""The local store finds out in the middle of its work that its files are broken."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from settings import Settings
from streams.transport.errors import StateCorrupt
from streams.transport.table import StateStore
from tests.integration.transport_app import make_app

KEYS = [b"%04d" % number for number in range(2000)]


def opened(folder: Path) -> StateStore:
    """A store on the folder's files."""
    _, table = make_app(Settings(data=folder), ("in",), "out")
    return table.store


@pytest.fixture
def broken(tmp_path: Path) -> StateStore:
    """Opened, its index read, its blocks not: those are noise."""
    first = opened(tmp_path)
    random = Random(1)
    first.write(0, {key: random.randbytes(500) for key in KEYS}, 7)
    first._db_for_partition(0).flush()
    first._close(0)
    store = opened(tmp_path)
    assert store.states(0, KEYS[:1]) != [None]
    for path in store.partition_path(0).glob("*.sst"):
        with path.open("r+b") as file:
            file.seek(100_000)
            file.write(random.randbytes(os.path.getsize(path) - 200_000))
    return store


@pytest.mark.parametrize(
    "use",
    [
        pytest.param(lambda store: store.states(0, KEYS), id="read"),
        pytest.param(lambda store: store.recover(0, [], 3) or store.states(0, KEYS[::-1]), id="recover"),
    ],
)
def test_a_broken_file_is_deleted_and_ends_the_worker(broken: StateStore, use: Callable[[StateStore], object]) -> None:
    with pytest.raises(StateCorrupt, match="partition 0 is corrupt and was deleted"):
        use(broken)
    assert not broken.partition_path(0).exists()
    assert broken.states(0, KEYS[:2]) == [None, None]


def test_a_store_that_another_process_holds_is_left_alone(tmp_path: Path) -> None:
    first, second = opened(tmp_path), opened(tmp_path)
    first.write(0, {b"key": b"value"}, 1)
    with pytest.raises(Exception, match="lock"):
        second.states(0, [b"key"])
    assert first.states(0, [b"key"]) == [b"value"]
