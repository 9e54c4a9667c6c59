"""Named keys in a file: one line of JSON a key, with the key's digest in the place of the key.

A digest of SHA-256 without salt or stretching is enough, since a key is 256 random bits: there is nothing to
guess, and a request finds its key by one look-up.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from api.scopes import canonical
from credentials import read_file
from errors import OrdersError
from settings import LEAST_RATE

LOCK_SECONDS: Final = 10.0
"""How long a command waits for another one that changes the file."""
MOST_BYTES: Final = 16 << 20
"""Of a file: some 50,000 keys."""

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_DIGEST: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)


class KeyFileBroken(OrdersError):
    """The file of keys can't be used: it isn't there, can't be read, or a line of it is none."""


class KeyUnknown(OrdersError):
    """No key has this name, or there is one already."""


class NamedKey(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A line of the file. `sha256`: the key's digest in hex; `rate`: requests a second; times in RFC 3339."""

    name: str
    sha256: str
    scopes: list[str]
    created: str
    expires: str | None = None
    rate: float | None = None

    @property
    def expires_at(self) -> float:
        """Seconds since 1970 from which on it isn't accepted; infinity if it always is."""
        return float("inf") if self.expires is None else datetime.fromisoformat(self.expires).timestamp()


_decode: Final = msgspec.json.Decoder(NamedKey).decode
_encode: Final = msgspec.json.Encoder().encode


def digest_of(key: str) -> bytes:
    """SHA-256 of a key's text."""
    return sha256(key.encode()).digest()


def new_key() -> str:
    """256 random bits as text. The word before them shows what it is to whoever finds it somewhere."""
    return f"orders_{secrets.token_urlsafe(32)}"


def is_name(text: str) -> bool:
    """Whether a key may be called that."""
    return _NAME.fullmatch(text) is not None


def read_keys(path: Path) -> list[NamedKey]:
    """Return the keys of a file. Raises KeyFileBroken, which names the line but never repeats it: it may hold
    a key. Blocks for one small file.
    """
    return _parsed(path, _text(path))


@contextmanager
def changing(path: Path) -> Iterator[list[NamedKey]]:
    """Yield the keys of a file, which may not be there yet; what the list holds at the end is written.

    A reader finds the file before or after, whole. One command changes it at a time. A symbolic link stays,
    and what it leads to is changed. Raises KeyFileBroken. Blocks up to LOCK_SECONDS while another command is
    at it.
    """
    real = Path(os.path.realpath(path))
    with _locked(real.parent):
        before = _text(path) if os.path.lexists(real) else ""
        keys = _parsed(path, before)
        old = {key.name: key for key in keys}
        yield keys
        names = {key.name for key in keys}
        # Comments and the order of lines stay.
        lines = [line for line in _lines(before) if _is_note(line) or _decode(line).name in names]
        lines += [_encode(key).decode() for key in keys if key.name not in old]
        try:
            _replace(real, "".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            raise _unusable(path, error) from None


def _parsed(path: Path, text: str) -> list[NamedKey]:
    keys: list[NamedKey] = []
    names: dict[str, int] = {}
    digests: dict[str, int] = {}
    for number, line in enumerate(_lines(text), 1):
        if _is_note(line):
            continue
        try:
            key = _decode(line)
            fault = _fault(key)
        except msgspec.DecodeError as error:
            fault = _harmless(error)
        else:
            if fault is None and names.setdefault(key.name, number) != number:
                fault = f"the name {key.name} stands in line {names[key.name]} already"
            if fault is None and digests.setdefault(key.sha256, number) != number:
                fault = f"the key is that of line {digests[key.sha256]}"
        if fault is not None:
            raise KeyFileBroken(f"{path}, line {number}: {fault}", "mend the line or take it out")
        keys.append(key)
    return keys


def _lines(text: str) -> list[str]:
    return text.removesuffix("\n").split("\n") if text else []


def _is_note(line: str) -> bool:
    return not line.strip() or line.lstrip().startswith("#")


def _harmless(error: msgspec.DecodeError) -> str:
    """What msgspec says of a line, without values of the line."""
    if isinstance(error, msgspec.ValidationError):
        # It names fields and types; an unknown field could be anything.
        return "a field that there isn't" if "unknown field" in str(error) else str(error)
    return "no JSON object of a key"


def _fault(key: NamedKey) -> str | None:
    if not is_name(key.name):
        return "`name` is 1 to 64 of A-Z a-z 0-9 . _ -"
    if not _DIGEST.fullmatch(key.sha256):
        return "`sha256` is not a digest in 64 hexadecimal digits"
    if not key.scopes:
        return "`scopes` is empty"
    for scope in key.scopes:
        if canonical(scope) is None:
            return "`scopes` holds what is no scope"
    if key.expires is not None:
        try:
            offset = datetime.fromisoformat(key.expires).tzinfo
        except ValueError:
            return "`expires` is no time"
        if offset is None:
            return "`expires` has no offset"
    if key.rate is not None and not LEAST_RATE <= key.rate < float("inf"):
        return f"`rate` is below {LEAST_RATE:g}"
    return None


def _text(path: Path) -> str:
    try:
        data = read_file(path, MOST_BYTES)
    except OSError as error:
        raise _unusable(path, error) from None
    if len(data) > MOST_BYTES:
        raise KeyFileBroken(
            f"{path} has more than {MOST_BYTES >> 20} MiB", "set ORDERS_API_KEY_STORE to a file"
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise KeyFileBroken(f"{path}, line {line}: not UTF-8", "mend the line or take it out") from None


def _unusable(path: Path, error: OSError) -> KeyFileBroken:
    remedy = (
        "make it with orders keys add, or set ORDERS_API_KEY_STORE to another"
        if isinstance(error, FileNotFoundError)
        else "check the path and who may read it"
    )
    return KeyFileBroken(f"{path}: {error.strerror}", remedy)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The folder, because the file itself is replaced.
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(folder, error) from None
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise KeyFileBroken(
                        f"another command changes the keys in {folder}", "run this again"
                    ) from None
                time.sleep(0.02)
        yield
    finally:
        os.close(handle)


def _replace(real: Path, data: bytes) -> None:
    """Write a file as a whole (0600), durably, in the place of what is there."""
    # Made under a new name, for nobody else to read; a link under that name isn't followed.
    handle, temporary = tempfile.mkstemp(prefix=f".{real.name}.", dir=real.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            with suppress(FileNotFoundError, PermissionError):
                # As root: the service's user must still be able to read it.
                owner = os.stat(real)
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, real)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def made(
    name: str, scopes: Sequence[str], *, expires: datetime | None = None, rate: float | None = None
) -> tuple[NamedKey, str]:
    """Make a new key -> (its line, its text). Scopes must be canonical."""
    key = new_key()
    now = datetime.now(UTC).isoformat(timespec="seconds")
    until = None if expires is None else expires.isoformat()
    return NamedKey(name, digest_of(key).hex(), list(scopes), now, until, rate), key
