"""Kafka's jars: resolved once by their Maven coordinates into the user's cache, checked against
kafka.lock.toml at each start.

What is said here of Kafka's goes for other sets of jars too: tests/clients has two.

The lock is the project's: a jar whose sha256 differs from it is never put on a class path, whoever served it.

    python -m stack            fetch them now (17 s), so that a later start needs no network
    python -m stack --lock     write the lock anew, after another version in ENDPOINT
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from stack import folders
from stack.errors import StackError

VERSION = "4.3.0"

# log4j's coordinates must not join these: their dependency management would pull kafka-clients back to 3.9.
ENDPOINT = f"org.apache.kafka:kafka_2.13:{VERSION}+org.slf4j:slf4j-simple:1.7.36"


@dataclass(frozen=True)
class Jars:
    """Jars that are used and locked together."""

    name: str
    """What messages call them."""

    folder: str
    """Theirs in a folder of caches."""

    endpoint: str
    """The Maven coordinates that lead to them, joined by +."""

    lock: Path


KAFKA = Jars("Kafka's jars", f"kafka-{VERSION}", ENDPOINT, Path(__file__).with_name("kafka.lock.toml"))

_RESOLVE = """
import sys, pathlib, jgo
for jar in jgo.build(endpoint=sys.argv[1], cache_dir=pathlib.Path(sys.argv[2])).all_jars:
    print(jar)
"""


def class_path(progress: Callable[[str], None] = lambda _: None, jars: Jars = KAFKA) -> str:
    """The class path of the locked jars.
    Blocks: 0.1 s when they are in the cache, some 20 s of download when not.

    Raises StackError when a jar differs from the lock or cannot be fetched.
    """
    locked = read_lock(jars)
    folder = next(
        (cache / jars.folder for cache in folders.caches() if _complete(cache / jars.folder, locked)), None
    )
    if folder is None:
        folder = folders.cache() / jars.folder
        progress(f"fetching {jars.name} (some 40 MB, once) into {folder}")
        try:
            _fetch(jars, folder, locked)
        except OSError as error:
            raise StackError(
                f"{jars.name} cannot be kept in {folder} ({error.strerror or error})",
                "set XDG_CACHE_HOME to another folder",
            ) from error
    verify(folder, locked, jars)
    return os.pathsep.join(str(folder / name) for name in locked)


def _complete(folder: Path, locked: dict[str, str]) -> bool:
    try:
        return folder.stat().st_uid == os.geteuid() and all((folder / name).is_file() for name in locked)
    except OSError:  # it isn't there, or in a home that cannot be entered
        return False


def read_lock(jars: Jars = KAFKA) -> dict[str, str]:
    """File name -> sha256, in class path order."""
    locked: dict[str, str] = tomllib.loads(jars.lock.read_text())["jars"]
    return locked


def verify(folder: Path, locked: dict[str, str], jars: Jars = KAFKA) -> None:
    """Compare every jar with the lock. Raises StackError that names the first one that differs."""
    for name, expected in locked.items():
        digest = _sha256(folder / name)
        if digest != expected:
            raise StackError(
                f"{folder / name} is not the jar that {jars.lock.name} names: its sha256 is {digest}, locked"
                f" is {expected}",
                f"delete {folder} to fetch it again, and be suspicious if it comes back",
            )


def _fetch(jars: Jars, folder: Path, locked: dict[str, str]) -> None:
    with folders.locked(folder.parent):  # two stacks' first starts at once: one downloads, the other waits
        if _complete(folder, locked):
            return
        resolved = {jar.name: jar for jar in resolve(folder.parent, jars)}
        missing = sorted(set(locked) - set(resolved))
        if missing:
            raise StackError(
                f"the coordinates {jars.endpoint} no longer lead to {', '.join(missing)}, which"
                f" {jars.lock.name} names",
                "take a newer version of this program, or lock them anew (python -m stack --lock)",
            )
        fresh = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=folder.parent))
        for name in locked:
            shutil.copyfile(resolved[name], fresh / name)
        verify(fresh, locked, jars)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def resolve(cache: Path, jars: Jars = KAFKA) -> list[Path]:
    """The jars that the coordinates lead to now, downloaded.

    In a process of its own, as jgo reads from the environment where to keep its files.
    """
    homeless = (
        {"HOME": str(cache)} if os.path.expanduser("~") == "~" else {}
    )  # jgo looks for a file of settings there
    done = subprocess.run(
        [sys.executable, "-c", _RESOLVE, jars.endpoint, str(cache / "jgo")],
        env={**os.environ, **homeless, "M2_REPO": os.environ.get("M2_REPO", str(cache / "m2"))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise StackError(
            f"{jars.name} ({jars.endpoint}) could not be fetched: {reason[:300]}",
            "the first start needs the network once",
        )
    return [Path(line) for line in done.stdout.splitlines() if line.endswith(".jar")]


def write_lock(jars: Jars = KAFKA, written_by: str = "python -m stack --lock") -> None:
    """Write the lock from what the coordinates lead to now. For maintainers."""
    resolved = resolve(folders.cache(), jars)
    lines = [
        f"# sha256 of each of {jars.name}, in class path order; written by `{written_by}`.",
        f'coordinates = "{jars.endpoint}"',
        "",
        "[jars]",
        *(f'"{jar.name}" = "{_sha256(jar)}"' for jar in resolved),
    ]
    jars.lock.write_text("\n".join(lines) + "\n")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
