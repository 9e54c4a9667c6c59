"""Where the local stack keeps what it fetches and copies, as whom it runs Postgres, and
what it says when it can't.
"""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from stack import Stack, StackError, folders, ports, postgres, processes
from stack.kafka import Broker
from stack.state import State


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of this test's own: its home, its temporary folder, and /var/cache."""
    for name in ("home", "tmp", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(folders, "MACHINE", tmp_path / "cache")
    return tmp_path


def fallback(machine: Path) -> Path:
    """Where downloads go without a home: a folder of the machine for root, a temporary one for others."""
    return (
        machine / "cache" / folders.NAME
        if os.geteuid() == 0
        else machine / "tmp" / f"{folders.NAME}-{os.geteuid()}"
    )


def test_downloads_go_into_the_users_cache(machine: Path) -> None:
    assert folders.cache().is_relative_to(machine / "home")
    assert list((machine / "tmp").iterdir()) == []


@pytest.mark.parametrize("home", ["/nonexistent", "file"])
def test_without_a_home_downloads_go_elsewhere(
    machine: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    (machine / "file").touch()
    monkeypatch.setenv("HOME", str(machine / "file") if home == "file" else home)
    monkeypatch.chdir(machine)
    assert folders.cache() == fallback(machine)
    assert not Path("/nonexistent").exists()


def test_a_user_whom_the_system_does_not_know_has_no_home(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.chdir(machine)
    assert folders.cache() == fallback(machine)
    assert not (machine / "~").exists()


def test_root_leaves_nothing_in_the_home_that_sudo_kept(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.stat
    home = machine / "home"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        Path, "stat", lambda path, **how: Owned(owner(path, **how), 4711 if path == home else 0)
    )
    monkeypatch.setattr(Path, "lstat", lambda path: Owned(owner(path, follow_symlinks=False), 0))
    assert folders.cache() == machine / "cache" / folders.NAME
    assert list(home.iterdir()) == []


class Owned:
    """A file's status with another owner."""

    def __init__(self, status: os.stat_result, uid: int) -> None:
        self.st_uid = uid
        self.st_mode = status.st_mode


def test_what_somebody_else_put_into_a_public_folder_is_not_used(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = machine / "tmp" / "known-name"
    (machine / "mine").mkdir()
    theirs.symlink_to(machine / "mine")
    assert folders.owned(theirs), "a link of one's own is one's own"
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    assert not folders.owned(theirs)
    assert not folders.owned(machine / "mine")


def test_nowhere_to_write_is_said_in_one_line(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "owned", lambda folder: False)
    with pytest.raises(StackError, match=r"none of .* can be written to; set XDG_CACHE_HOME"):
        folders.cache()


def test_no_temporary_folder_is_no_traceback(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", none)
    assert folders.cache().is_relative_to(machine / "home")


# -- Postgres: as whom, and from where -----------------------------------------------------------------------


def test_root_without_an_unprivileged_user_is_told_to_add_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", unknown)
    with pytest.raises(
        StackError, match=r"no user postgres or nobody; add one \(useradd --system postgres\)"
    ):
        postgres.account()


def test_a_user_without_a_name_is_told_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(StackError, match=r"none for uid 54321; add a line for it to /etc/passwd") as raised:
        postgres.tools(None)
    assert "\n" not in str(raised.value)


def unknown(_: object) -> pwd.struct_passwd:
    """The user database's answer for whom it doesn't have."""
    raise KeyError


def test_programs_that_cannot_be_run_where_they_are_are_run_from_a_copy(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As root with a real user who can't enter this folder; otherwise with a
    stand-in for the first attempt.
    """
    runner = postgres.account()
    installed = postgres.site_packages() / postgres.INSTALLED / "bin"
    public = public_folder(machine) if runner else machine / "cache"
    monkeypatch.setattr(folders, "shared", lambda: [machine / "home", public])
    monkeypatch.setattr(folders, "caches", lambda: [public])
    attempt = processes.attempt
    monkeypatch.setattr(
        postgres,
        "attempt",
        lambda argv, runner: (
            "Permission denied" if argv[0] == str(installed / "initdb") else attempt(argv, runner)
        ),
    )
    try:
        copy = postgres.tools(runner)
        assert copy.is_relative_to(public)
        for tool in ("postgres", "psql", "pg_basebackup"):
            assert processes.attempt([str(copy / tool), "--version"], runner) is None
        copied = (copy / "postgres").stat()
        assert postgres.tools(runner) == copy
        assert (copy / "postgres").stat().st_ino == copied.st_ino, "one copy for all"

        [library] = (copy.parents[2] / f"{postgres.PACKAGE}.libs").glob(
            "libpq-*.5.18"
        )  # what a cleaner took as nobody had used it
        library.unlink()
        assert postgres.tools(runner) == copy
        assert processes.attempt([str(copy / "psql"), "--version"], runner) is None
    finally:
        shutil.rmtree(public)


def test_nowhere_to_run_from_is_said_in_one_line(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "attempt", lambda argv, runner: "Permission denied")
    monkeypatch.setattr(folders, "caches", lambda: [machine / "cache"])
    with pytest.raises(
        StackError,
        match=r"neither from .*pginstall18/bin \(Permission denied\) nor from a copy in .*; set TMPDIR",
    ) as raised:
        postgres.tools(postgres.account())
    assert "\n" not in str(raised.value)


def public_folder(machine: Path) -> Path:
    """A folder that every user may enter: pytest's own is private."""
    path = Path(tempfile.mkdtemp(prefix="orders-test-public-", dir="/tmp"))
    path.chmod(0o755)
    return path


# -- Kafka ---------------------------------------------------------------------------------------------------


def test_kafkas_libraries_are_loaded_from_where_that_works(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker(1, machine, State(path=machine / "stack.json", brokers=1), print)
    broker.home.mkdir(parents=True)
    assert broker.scratch == broker.home / "tmp"
    monkeypatch.setattr(folders, "noexec", lambda folder: folder == broker.home)
    assert broker.scratch.is_relative_to(folders.cache())


# -- the stack's own folder ----------------------------------------------------------------------------------


def test_another_users_stack_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    State(path=tmp_path / "stack.json", brokers=1).save()
    me = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(
        StackError, match=f"{re.escape(str(tmp_path))} belongs to {me}; run this as that user"
    ):
        Stack.start(tmp_path)


def test_root_who_stops_a_stack_leaves_it_its_owners(tmp_path: Path) -> None:
    state = State(path=tmp_path / "stack.json", brokers=1)
    state.save()
    owner = 54321 if os.geteuid() == 0 else os.geteuid()
    os.chown(state.path, owner, -1)
    state.save()
    assert state.path.stat().st_uid == owner


def test_a_name_that_is_not_utf_8_is_said_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="gr�n is not UTF-8") as raised:
        Stack.start(Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn")))
    assert str(raised.value).encode()


def test_no_free_port_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "is_free", lambda port: False)
    with pytest.raises(StackError, match=r"no port of 127\.0\.0\.1 from 20000 to 31999 is free"):
        ports.choose(set())


def test_no_loopback_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(socket.socket, "connect", unreachable)
    with pytest.raises(StackError, match="ip link set lo up"):
        ports.choose(set())


def test_a_root_without_roots_rights_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(postgres, "account", lambda: pwd.getpwuid(os.geteuid()))
    monkeypatch.setattr(os, "chown", refused)
    with pytest.raises(
        StackError,
        match=r"may not hand its files over to .* \(Operation not permitted\); run this as another user",
    ):
        postgres.Primary(tmp_path, State(path=tmp_path / "stack.json", brokers=1)).prepare()
