"""A worker's local state is deleted, broken, older than it should be, of another cluster: it is
only a copy of the changelog.
"""

from __future__ import annotations

import asyncio
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import rocksdict

from streams.transport.cluster import MARKER
from streams.transport.table import OFFSET
from tests.chaos.faults.base import fault, some_worker
from tests.chaos.workers import Supervised
from tests.chaos.world import World


@fault("state-deleted", "worker", (0.1, 1.0), what="a worker is killed and its local state deleted")
async def state_deleted(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    await worker.down()
    await asyncio.to_thread(shutil.rmtree, worker.data, ignore_errors=True)
    yield worker.name
    worker.start()


@fault(
    "state-corrupt",
    "worker",
    (0.1, 1.0),
    what="a worker is killed and garbage is written into its RocksDB files",
)
async def state_corrupt(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    await worker.down()
    kind = random.choice(("*.sst", "MANIFEST-*", "CURRENT", "*.log"))
    hit = 0
    for file in sorted(path for folder in databases(worker) for path in folder.glob(kind)):
        hit += await asyncio.to_thread(spoil, file, random)
    yield f"{worker.name}: {hit} files {kind}"
    worker.start()


@fault(
    "state-older",
    "worker",
    (6.0, 12.0),
    what="a copy of a worker's local state from some time ago is put back",
)
async def state_older(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    await worker.down(signal.SIGTERM)
    copy = worker.data.with_name(f"{worker.name}.older")
    await asyncio.to_thread(shutil.copytree, worker.data, copy, dirs_exist_ok=True)
    worker.start()
    yield worker.name
    await worker.down()
    await asyncio.to_thread(shutil.rmtree, worker.data, ignore_errors=True)
    copy.rename(worker.data)
    worker.start()


@fault(
    "state-foreign",
    "worker",
    (0.1, 1.0),
    what="a worker finds the local state of another cluster",
)
async def state_foreign(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    await worker.down()
    for folder in databases(worker):
        await asyncio.to_thread(_foreign, folder)
    for marker in worker.data.rglob(MARKER):
        marker.write_text("AnotherClustersIdentity\n")
    yield worker.name
    worker.start()


def databases(worker: Supervised) -> list[Path]:
    """The RocksDB folders of a worker."""
    return sorted(path for path in worker.data.rglob("*.db") if path.is_dir())


def spoil(file: Path, random: Random) -> bool:
    """Overwrite a stretch of a file with noise. False if it is empty."""
    size = file.stat().st_size
    if not size:
        return False
    with file.open("r+b") as opened:
        opened.seek(random.randrange(size) // 2)
        opened.write(random.randbytes(min(4096, size)))
    return True


def _foreign(folder: Path) -> None:
    options = rocksdict.Options(raw_mode=True)
    try:
        database = rocksdict.Rdict(str(folder), options)
    except (
        Exception
    ):  # all that rocksdict raises; another fault has spoiled it: then it is a foreign one without states
        shutil.rmtree(folder)
        database = rocksdict.Rdict(str(folder), options)
    database[OFFSET] = b"999999999"
    database.close()
