"""`orders keys` and its file: digests, scopes, locks, links, lines that can't be used."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from api import keys
from api.keys import KeyFileBroken, changing, digest_of, made, read_keys
from api.scopes import canonical, scopes
from cli import main
from settings import get_settings

USER = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
DIGEST = "0" * 64
pytestmark = pytest.mark.usefixtures("unnoted")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the file of keys is to be."""
    path = tmp_path / "keys"
    monkeypatch.setenv("ORDERS_API_KEY_STORE", str(path))
    return path


@pytest.fixture
def orders(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `orders keys ...` in this process -> exit code, stdout, stderr."""

    def run(*args: str) -> tuple[int, str, str]:
        get_settings.cache_clear()
        code = main.run(["keys", *args])
        get_settings.cache_clear()
        out, err = capsys.readouterr()
        return code, out, err

    return run


def line(**changes: object) -> str:
    whole: dict[str, object] = {"name": "shop", "sha256": DIGEST, "scopes": ["all"], "created": "x"}
    return json.dumps({name: value for name, value in (whole | changes).items() if value is not None})


def test_a_key_is_shown_once_and_only_its_digest_kept(store: Path, orders: Run) -> None:
    code, out, err = orders(
        "add",
        "shop",
        "--scope",
        f"seller:{USER.upper()}",
        "--scope",
        "tracking",
        "--expires",
        "90d",
        "--rate",
        "5",
    )
    key = out.removesuffix("\n")
    assert (code, err, len(key)) == (0, "", 50)
    assert stat.S_IMODE(store.stat().st_mode) == 0o600
    assert key not in store.read_text()
    [stored] = read_keys(store)
    assert bytes.fromhex(stored.sha256) == digest_of(key)
    assert (stored.name, stored.scopes, stored.rate) == ("shop", [f"seller:{USER}", "tracking"], 5)
    ends = datetime.fromtimestamp(stored.expires_at, UTC) - datetime.now(UTC)
    assert timedelta(days=89, hours=23) < ends <= timedelta(days=90)
    code, out, _ = orders("list", "--json")
    [listed] = json.loads(out)
    assert (listed["name"], listed["scopes"], listed["expired"]) == ("shop", stored.scopes, False)
    assert stored.sha256 not in out
    assert "shop" in orders("list")[1]
    assert orders("revoke", "shop") == (0, "", "")
    assert orders("list") == (0, "There are no keys.\n", "")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("add", "a b", "--scope", "all"), "can't be a key's name"),
        (("add", "shop", "--scope", "everything"), "everything is no scope"),
        (("add", "shop", "--scope", "user:me"), "user:me is no scope"),
        (("add", "shop"), "Missing option '--scope'"),
        (("add", "shop", "--scope", "all", "--expires", "soon"), "--expires soon is no time"),
        (("add", "shop", "--scope", "all", "--expires", "2027-01-01T00:00:00"), "is no time"),
        (("add", "shop", "--scope", "all", "--expires", "2020-01-01T00:00:00Z"), "is over"),
        (("add", "shop", "--scope", "all", "--rate", "0"), "'--rate'"),
        (("add", "shop", "--scope", "all", "--rate", "0.0009"), "'--rate'"),
        (("add", "shop", "--scope", "all", "--rate", "nan"), "'--rate'"),
        (("add", "known", "--scope", "all"), "there is a key known already"),
        (("revoke", "shop"), "there is no key shop"),
    ],
)
def test_what_cannot_be_done_is_one_line(store: Path, orders: Run, args: tuple[str, ...], says: str) -> None:
    assert orders("add", "known", "--scope", "all")[0] == 0
    before = store.read_bytes()
    code, out, err = orders(*args)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
    assert store.read_bytes() == before


def test_without_a_file_or_a_setting(store: Path, orders: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = orders("list")
    assert (code, err) == (
        2,
        f"orders: {store}: No such file or directory; make it with orders keys add, or set"
        " ORDERS_API_KEY_STORE to another\n",
    )
    monkeypatch.delenv("ORDERS_API_KEY_STORE")
    assert orders("add", "shop", "--scope", "all")[2].count("set ORDERS_API_KEY_STORE") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"# mine\n\n{line()}\nsecretsecret\n", "line 4: no JSON object of a key"),
        ("[]", "line 1: Expected `object`"),
        (line(name=None), "line 1: Object missing required field `name`"),
        (line(name="a b"), "line 1: `name` is"),
        (line(sha256="secret"), "line 1: `sha256` is not a digest"),
        (line(sha256=DIGEST.replace("0", "A")), "line 1: `sha256` is not a digest"),
        (line(scopes=[]), "line 1: `scopes` is empty"),
        (line(scopes=["all", "secret"]), "line 1: `scopes` holds what is no scope"),
        (line(scopes="all"), "line 1: Expected `array`, got `str`"),
        (line(expires="secret"), "line 1: `expires` is no time"),
        (line(expires="2027-01-01T00:00:00"), "line 1: `expires` has no offset"),
        (line(rate=0), "line 1: `rate` is below 0.001"),
        (line(rate=1e-310), "line 1: `rate` is below 0.001"),
        (line(rate=0.00099), "line 1: `rate` is below 0.001"),
        (line(rate="secret"), "line 1: Expected `float | null`"),
        (line(secret=1), "line 1: a field that there isn't"),
        (f"{line()}\n{line(sha256=DIGEST.replace('0', '1'))}", "line 2: the name shop stands in line 1"),
        (f"{line()}\n{line(name='other')}", "line 2: the key is that of line 1"),
    ],
)
def test_a_broken_line_is_named_and_not_repeated(store: Path, orders: Run, text: str, says: str) -> None:
    store.write_text(text)
    for args in (("list",), ("revoke", "shop"), ("add", "new", "--scope", "all")):
        code, out, err = orders(*args)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert f"{store}, {says}" in err
        assert "secret" not in err
    assert store.read_text() == text


def test_bytes_that_are_no_text(store: Path) -> None:
    store.write_bytes(f"{line()}\n".encode() + b"\xff")
    with pytest.raises(KeyFileBroken, match="line 2: not UTF-8"):
        read_keys(store)


def test_comments_and_order_stay(store: Path, orders: Run) -> None:
    one, two = line(name="one"), line(name="two", sha256="1" * 64)
    store.write_text(f"# of the shop\n{one}\n\n{two}")
    assert orders("revoke", "one")[0] == 0
    assert store.read_text() == f"# of the shop\n\n{two}\n"
    assert orders("add", "three", "--scope", "all")[0] == 0
    assert store.read_text().splitlines()[:3] == ["# of the shop", "", two]


def test_a_link_stays_and_what_it_leads_to_is_changed(store: Path, orders: Run, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.symlink_to("elsewhere/real")
    assert orders("add", "shop", "--scope", "all")[0] == 0
    assert orders("add", "other", "--scope", "all")[0] == 0
    assert store.is_symlink()
    assert [key.name for key in read_keys(tmp_path / "elsewhere" / "real")] == ["shop", "other"]
    assert [each.name for each in (tmp_path / "elsewhere").iterdir()] == ["real"], "nothing else is left"


@pytest.mark.parametrize("kind", ["folder", "pipe"])
def test_what_is_no_file_is_left_alone(store: Path, orders: Run, kind: str) -> None:
    store.mkdir() if kind == "folder" else os.mkfifo(store)
    for args in (("add", "shop", "--scope", "all"), ("list",)):
        code, _, err = orders(*args)
        assert (code, err.count("\n")) == (2, 1)
        assert "is no file" in err or "Is a directory" in err


def test_a_disk_that_is_full_leaves_the_keys(
    store: Path, orders: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert orders("add", "shop", "--scope", "all")[0] == 0
    before = store.read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    code, out, err = orders("add", "other", "--scope", "all")
    assert (code, out, "No space left" in err) == (2, "", True), "no key is shown that isn't kept"
    assert store.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["keys"]


def test_two_commands_at_a_time_lose_nothing(store: Path) -> None:
    def add(number: int) -> None:
        with changing(store) as there:
            there.append(made(f"key-{number}", ["all"])[0])

    threads = [threading.Thread(target=add, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key.name for key in read_keys(store)} == {f"key-{number}" for number in range(20)}


def test_a_lock_that_stays_is_told(store: Path, orders: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "LOCK_SECONDS", 0)
    handle = os.open(store.parent, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        assert "another command changes the keys" in orders("add", "shop", "--scope", "all")[2]
    finally:
        os.close(handle)


def test_scopes() -> None:
    assert canonical(f"user:{USER.replace('-', '').upper()}") == f"user:{USER}"
    for wrong in ("", "ALL", "user", "user:", f"user:{USER}x", f"customer:{USER}", f" user:{USER}", "openid"):
        assert canonical(wrong) is None
    granted = scopes(["openid", f"user:{USER}", "write", f"user:{USER}"])
    assert granted.names == (f"user:{USER}", "write")
    assert (granted.sees.everything, granted.sees.tracking, granted.sees.sellers) == (
        False,
        False,
        frozenset(),
    )
    assert {str(each) for each in granted.sees.users} == {USER}
