"""Kafka's jars: resolved once by their Maven coordinates into the user's cache, checked against kafka.lock.toml at each start.

The lock is the project's: a jar whose sha256 differs from it is never put on a class path, whoever served it.

    python -m stack            fetch them now (17 s), so that a later start needs no network
    python -m stack --lock     write the lock anew, after another version in ENDPOINT
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import platformdirs

from stack.errors import StackError

VERSION = "4.3.0"

# log4j's coordinates must not join these: their dependency management would pull kafka-clients back to 3.9.
ENDPOINT = f"org.apache.kafka:kafka_2.13:{VERSION}+org.slf4j:slf4j-simple:1.7.36"

LOCK = Path(__file__).with_name("kafka.lock.toml")

_RESOLVE = """
import sys, pathlib, jgo
for jar in jgo.build(endpoint=sys.argv[1], cache_dir=pathlib.Path(sys.argv[2])).all_jars:
    print(jar)
"""


def class_path(progress: Callable[[str], None] = lambda _: None) -> str:
    """The class path of the locked jars. Blocks: 0.1 s when they are in the cache, some 20 s of download when not.

    Raises StackError when a jar differs from the lock or cannot be fetched.
    """
    locked = read_lock()
    folder = cache_folder() / f"kafka-{VERSION}"
    if not all((folder / name).is_file() for name in locked):
        progress("fetching Kafka's jars (43 MB, once)")
        _fetch(folder, locked)
    verify(folder, locked)
    return os.pathsep.join(str(folder / name) for name in locked)


def read_lock() -> dict[str, str]:
    """File name -> sha256, in class path order."""
    jars: dict[str, str] = tomllib.loads(LOCK.read_text())["jars"]
    return jars


def verify(folder: Path, locked: dict[str, str]) -> None:
    """Compare every jar with the lock. Raises StackError that names the first one that differs."""
    for name, expected in locked.items():
        found = _sha256(folder / name)
        if found != expected:
            raise StackError(
                f"{folder / name} is not the jar that {LOCK.name} names: its sha256 is {found}, locked is {expected}; "
                f"delete {folder} to fetch it again, and be suspicious if it comes back"
            )


def cache_folder() -> Path:
    """The user's cache folder for this project; one in the system's temporary folder for a user who has none."""
    wanted = platformdirs.user_cache_path("orders-stream")
    with suppress(OSError):
        wanted.mkdir(parents=True, exist_ok=True)
    if os.access(wanted, os.W_OK | os.X_OK):
        return wanted
    fallback = Path(tempfile.gettempdir()) / f"orders-stream-{os.geteuid()}"
    fallback.mkdir(mode=0o700, exist_ok=True)
    if fallback.is_symlink() or fallback.stat().st_uid != os.geteuid():
        raise StackError(f"{fallback} belongs to somebody else; set XDG_CACHE_HOME to a folder that you can write to")
    return fallback


def _fetch(folder: Path, locked: dict[str, str]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two stacks' first starts at once: one downloads, the other waits
        if all((folder / name).is_file() for name in locked):
            return
        resolved = {jar.name: jar for jar in resolve(folder.parent)}
        missing = sorted(set(locked) - set(resolved))
        if missing:
            raise StackError(f"the coordinates {ENDPOINT} no longer lead to {', '.join(missing)}, which {LOCK.name} names")
        fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
        for name in locked:
            shutil.copyfile(resolved[name], fresh / name)
        verify(fresh, locked)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def resolve(cache: Path) -> list[Path]:
    """The jars that the coordinates lead to now, downloaded.

    In a process of its own, as jgo reads from the environment where to keep its files.
    """
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE, ENDPOINT, str(cache / "jgo")],
        env={**os.environ, "M2_REPO": os.environ.get("M2_REPO", str(cache / "m2"))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StackError(f"Kafka's jars ({ENDPOINT}) could not be fetched: {reason[:300]}; the first start needs the network once")
    return [Path(line) for line in done.stdout.splitlines() if line.endswith(".jar")]


def write_lock() -> None:
    """Write the lock from what the coordinates lead to now. For maintainers."""
    jars = resolve(cache_folder())
    lines = [
        "# sha256 of every jar of the local stack's Kafka, in class path order; written by `python -m stack --lock`.",
        f'coordinates = "{ENDPOINT}"',
        "",
        "[jars]",
        *(f'"{jar.name}" = "{_sha256(jar)}"' for jar in jars),
    ]
    LOCK.write_text("\n".join(lines) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
