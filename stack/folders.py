"""Folders outside a stack's own: what is fetched or copied once for all stacks of a user, or of a machine."""

from __future__ import annotations

import fcntl
import os
import pwd
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from stack.errors import StackError

NAME = "orders-stream"

MACHINE = Path("/var/cache")
"""Caches of programs that root runs: every user may enter it, only root writes to it,
and programs run from it.
"""


def caches() -> list[Path]:
    """Return the folders that may hold this user's downloads, best first; they needn't exist.

    A home of another user is left out.
    """
    machine = [MACHINE / NAME] if os.geteuid() == 0 else []
    return [*_own(), *machine, _temporary() / f"{NAME}-{os.geteuid()}"]


def cache() -> Path:
    """The first of `caches` that can be written to, made where it isn't there yet.
    Raises StackError when none can.
    """
    for folder in caches():
        if owned(folder):
            return folder
    raise StackError(
        f"there is no folder for what is fetched once: none of {', '.join(map(str, caches()))} can be"
        " written to",
        "set XDG_CACHE_HOME to a folder of yours",
    )


def shared() -> list[Path]:
    """Return the folders for what root installs and other users run, best first."""
    return list(dict.fromkeys([MACHINE, _temporary(), Path("/var/tmp"), Path("/tmp")]))


def owned(folder: Path, mode: int = 0o700) -> bool:
    """Whether the folder belongs to this user, who can write to it; it is made where it isn't there yet.

    Neither a folder nor a link that somebody else put there, in a place where everyone may, will do.
    """
    try:
        folder.mkdir(mode, parents=True, exist_ok=True)
        return {folder.lstat().st_uid, folder.stat().st_uid} == {os.geteuid()} and os.access(
            folder, os.W_OK | os.X_OK
        )
    except OSError:
        return False


def noexec(folder: Path) -> bool:
    """Tell whether the folder is mounted so that the system runs no programs and
    loads no libraries from it.
    """
    return bool(os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0))


def refused(folder: Path, error: OSError | None = None) -> StackError:
    """The error for a stack's folder that can't be used: it is another user's, or what the system says."""
    try:
        uid = folder.stat().st_uid
    except OSError:
        uid = os.geteuid()
    if uid != os.geteuid():
        return StackError(
            f"{folder} belongs to {_user(uid)}",
            "run this as that user, remove the folder, or choose another one with --dir",
        )
    why = error.strerror if error else "it belongs to another user"
    return StackError(f"{folder} cannot be used ({why})", "choose another folder with --dir")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder: whoever comes next waits.
    The system lets go of it when its holder dies. Raises OSError.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _own() -> list[Path]:
    try:
        folder = platformdirs.user_cache_path(NAME)
    except RuntimeError:  # neither $HOME nor /etc/passwd tells of a home
        return []
    # A home that isn't there was never meant to be.
    usable = folder.is_absolute() and os.path.isdir(folder.parent.parent) and not _of_another(folder)
    return [folder] if usable else []


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


def _of_another(folder: Path) -> bool:
    """Tell whether root has the home of another user, as with sudo: that user couldn't change what root
    leaves there."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    return os.geteuid() == 0 and there.stat().st_uid != 0


def _temporary() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError:  # not one that can be written to
        return Path("/tmp")
