"""What an audit leaves for the next one, which then reads of the log only what came since.

A folder of mode 700 below ORDERS_DATA, of one group on one cluster: `checkpoint.json` says how far which
partition was read, and beside it lies a SQLite file for each lane. That holds, for each order that was found
clean, digests of its rows and cache entries, and what it takes to judge it again: the records of its facts as
they came, the ids of its derived events, its last notices, and its last state. Of an order that wasn't found
clean, because something of it is broken or a record about it isn't committed yet, it holds what was read
since it was: the next audit judges it again, whatever came meanwhile.

All of it carries the number of the audit that wrote it. An audit writes what it found to files of its own,
then `checkpoint.json`, and then puts those files in their places: if it is killed in between, the next one
does that. If anything isn't as it should be, the checkpoint isn't used.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import quote
from zlib import crc32

import cramjam
import msgspec
from aiokafka import TopicPartition

from audit.findings import Finding
from audit.judge import DERIVED_EVENT, ENTRY, FACT, LOCAL, LONGEST_TTL, MEMBER, ROW, STATE, Item, Known
from audit.log import Span
from errors import OrdersError

FORMAT: Final = 3
_SCHEMA: Final = """
CREATE TABLE audit (number, orders, whole);
CREATE TABLE entry (
    part INTEGER, key BLOB, rows BLOB, cached BLOB, state BLOB, placed, PRIMARY KEY (part, key)
) WITHOUT ROWID;
CREATE TABLE known (key BLOB PRIMARY KEY, packed BLOB);
CREATE TABLE held (key BLOB PRIMARY KEY, packed BLOB);
"""
_PARTS: Final = 1_024
"""By which the orders of a lane are sorted, so that those of a bucket lie together: as many as there may be
buckets, and like these a power of 2.
"""
_DIGEST: Final = 8
_AT_ONCE: Final = 500
_MANIFEST: Final = "checkpoint.json"
_OF_THE_LOG: Final = (FACT, DERIVED_EVENT, STATE)

_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(
    tuple[list[list[Any]], list[tuple[str, str]], list[list[Any]], tuple[int, bytes] | None]
).decode
_decode_held: Final = msgspec.msgpack.Decoder(list[list[Any]]).decode


class CheckpointUnusable(OrdersError):
    """The last audit's checkpoint can't be relied on. The message says why."""

    remedy = "everything is audited anew"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What holds for a whole checkpoint. `scope`: what it is a checkpoint of; another one isn't used.

    `positions`: partition ("topic/number") -> offset up to which it was read. `complete`: those of derived
    topics of which nothing had been deleted. What no order's part of the checkpoint has, and has to be looked
    at again: `checkouts` of which no order was made yet (order id, topic, partition, offset), `letters` whose
    records weren't judged (partition and offset in orders.dlq). `lasting`: what is broken in the log itself.
    """

    number: str
    at: str
    """When the audit began, UTC."""
    scope: Mapping[str, Any]
    positions: Mapping[str, int] = field(default_factory=dict)
    complete: Sequence[str] = ()
    checkouts: Sequence[tuple[str, str, int, int]] = ()
    letters: Sequence[tuple[int, int]] = ()
    lasting: Sequence[Finding] = ()
    broken: int | None = None
    """How many differences the audit found."""


_decode_manifest: Final = msgspec.json.Decoder(Manifest).decode


def rules() -> str:
    """A fingerprint of the auditor's own code: what other rules found clean isn't relied on."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def after(manifest: Manifest, partition: TopicPartition, span: Span) -> int:
    """The offset up to which a partition was read, of which `span` is there now. Raises CheckpointUnusable
    when that isn't the log that was read, or some of what came since is gone.
    """
    name = f"{partition.topic}/{partition.partition}"
    position = manifest.positions.get(name)
    if position is None:
        raise CheckpointUnusable(f"the last audit didn't read {name}")
    if span.end < position:
        raise CheckpointUnusable(f"{name} ends at {span.end} now, the last audit had read up to {position}")
    if span.start > position:
        raise CheckpointUnusable(
            f"{name} begins at {span.start} now, the last audit had read up to {position}"
        )
    return position


class Checkpoint:
    """The checkpoints of one group on one cluster, in `folder`. Every method reads or writes the local disk
    and may raise OSError or sqlite3.Error.
    """

    def __init__(self, folder: Path, scope: Mapping[str, Any]) -> None:
        self._folder = folder
        self._scope = {"format": FORMAT, "rules": rules(), **scope}
        self.manifest: Manifest | None = None
        """Of the checkpoint that is relied on."""
        self.number = self.at = ""
        """Of the audit that is going on."""
        self.begin()

    def prepare(self) -> None:
        """Make the folder, lock it for this audit, and put in its place what a killed one had found. Raises
        OSError when it can't be written, or another audit is at it.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise
        with contextlib.suppress(OSError, sqlite3.Error, msgspec.MsgspecError, UnicodeDecodeError):
            number = _decode_manifest((self._folder / _MANIFEST).read_bytes()).number
            for path in sorted(self._folder.glob("new-*.sqlite")):
                self._take(int(path.stem.removeprefix("new-")), number)
        self.clean_up()

    def load(self, lanes: int) -> bool:
        """Look for a checkpoint and rely on it from now on; False: there is none.
        Raises CheckpointUnusable.
        """
        try:
            text = (self._folder / _MANIFEST).read_bytes()
        except FileNotFoundError:
            return False
        try:
            manifest = _decode_manifest(text)
            if manifest.scope != self._scope:
                raise CheckpointUnusable(
                    f"the last audit's checkpoint is of other {_changed(manifest.scope, self._scope)}"
                )
            for lane in range(lanes):
                with LaneCheckpoint(self._lane(lane)) as opened:
                    if opened.number != manifest.number:
                        raise CheckpointUnusable("the last audit's checkpoint was not written to its end")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, sqlite3.Error, OSError) as error:
            raise CheckpointUnusable(f"the last audit's checkpoint is unreadable: {error}") from None
        self.manifest = manifest
        return True

    def lane(self, number: int) -> LaneCheckpoint | None:
        """A lane's part of the checkpoint that is relied on, to be closed."""
        return None if self.manifest is None else LaneCheckpoint(self._lane(number))

    def fresh(self, number: int) -> Fresh:
        """Takes what is found out of a lane now, to be closed."""
        return Fresh(self._fresh(number), self.number, whole=self.manifest is None)

    def knows_placed(self, order_id: str, lane: int) -> bool:
        """Whether this order was made of a checkout, or isn't judged yet, as far as the checkpoint tells."""
        if self.manifest is None:
            return False
        with LaneCheckpoint(self._lane(lane)) as opened:
            return opened.placed(order_id.encode())

    def leave(
        self,
        lanes: int,
        positions: Mapping[str, int],
        complete: Iterable[str],
        broken: int = 0,
        **more: Sequence[Any],
    ) -> None:
        """Put what was found out in the place of the checkpoint of before, and rely on that from now on.
        `more`: checkouts, letters and lasting of Manifest.
        """
        manifest = Manifest(
            self.number, self.at, self._scope, positions, sorted(complete), broken=broken, **more
        )
        written = self._folder / "new-manifest"
        with open(os.open(written, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(manifest)))
            file.flush()
            os.fsync(file.fileno())
        os.replace(written, self._folder / _MANIFEST)
        for lane in range(lanes):
            self._take(lane, manifest.number)
        self.manifest = manifest
        self.begin()

    def begin(self) -> None:
        """Another audit begins."""
        self.number = os.urandom(8).hex()
        self.at = datetime.now(UTC).isoformat(timespec="seconds")

    def has_scope(self, scope: Mapping[str, Any]) -> bool:
        """Whether this is a checkpoint of that."""
        return self._scope == {**self._scope, **scope}

    def _take(self, lane: int, number: str) -> None:
        """Put what the audit of this number found out of a lane in its place, if that is there."""
        fresh = self._fresh(lane)
        if not fresh.exists():
            return
        with LaneCheckpoint(fresh) as opened:
            if opened.number != number:
                return
        if opened.whole:
            os.replace(fresh, self._lane(lane))
        else:
            _merge(self._lane(lane), fresh, number)
            fresh.unlink()

    def clean_up(self) -> None:
        """Remove what an audit found out and didn't leave."""
        for path in self._folder.glob("new-*"):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have the folder."""
        self.clean_up()
        os.close(self._lock)

    def _lane(self, number: int) -> Path:
        return self._folder / f"lane-{number}.sqlite"

    def _fresh(self, number: int) -> Path:
        return self._folder / f"new-{number}.sqlite"


class Entry(NamedTuple):
    """What is looked at of an order to tell whether it is as it was."""

    rows: bytes
    cached: bytes
    state: bytes
    placed: int

    def agrees(self, items: Iterable[Item], tables: int, cached: bool) -> bool:
        """Whether an order's rows, cache entries and states in local tables are what they were when it was
        found clean; and no records came. `tables`: how many local tables there are.
        """
        local = 0
        for item in items:
            if item[1] == LOCAL:
                local += 1
                if digest(item[3]) != self.state:
                    return False
            elif item[1] in (ENTRY, MEMBER):
                if not 0 <= item[3] <= LONGEST_TTL:
                    return False
            elif item[1] != ROW:
                return False
        now = digests_of_cache(items)
        return (
            local == tables
            and (not cached or not now or now == self.cached)
            and digest_of_rows(items) == self.rows
        )


class LaneCheckpoint:
    """A lane's part of a checkpoint, for reading."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)
        try:
            row = self._db.execute("SELECT number, orders, whole FROM audit").fetchone()
        except sqlite3.Error:
            self._db.close()
            raise
        self.number: str = row[0] if row else ""
        self.orders: int = row[1] if row else 0
        self.whole = bool(row and row[2])
        """It is of all orders of the lane, not only of those that were judged again."""

    def __enter__(self) -> LaneCheckpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._db.close()

    def buckets(self, least: int, orders: int) -> int:
        """In how many buckets the lane comes, at least so many, or with about so many orders in each."""
        wanted = max(least, self.orders // orders)
        return min(_PARTS, 1 << (wanted - 1).bit_length())

    def entries(self, bucket: int, buckets: int) -> dict[bytes, Entry]:
        """The orders of a bucket: those of whose keys crc32 % `buckets` is `bucket`. Raises
        CheckpointUnusable.
        """
        entries: dict[bytes, Entry] = {}
        try:
            for part in range(bucket, _PARTS, buckets):
                for key, *rest in self._db.execute(
                    "SELECT key, rows, cached, state, placed FROM entry WHERE part = ?", (part,)
                ):
                    entries[key] = Entry(*rest)
        except sqlite3.Error as error:
            raise CheckpointUnusable(f"the last audit's checkpoint is unreadable: {error}") from None
        return entries

    def entry(self, key: bytes) -> Entry | None:
        """One order that was found clean. Raises CheckpointUnusable."""
        try:
            row = self._db.execute(
                "SELECT rows, cached, state, placed FROM entry WHERE part = ? AND key = ?",
                (crc32(key) % _PARTS, key),
            ).fetchone()
        except sqlite3.Error as error:
            raise CheckpointUnusable(f"the last audit's checkpoint is unreadable: {error}") from None
        return None if row is None else Entry(*row)

    def keys(self, after: bytes, count: int) -> list[bytes]:
        """The next orders that were found clean, by their ids: at most `count`. Raises CheckpointUnusable."""
        try:
            rows = self._db.execute(
                "SELECT key FROM known WHERE key > ? ORDER BY key LIMIT ?", (after, count)
            ).fetchall()
        except sqlite3.Error as error:
            raise CheckpointUnusable(f"the last audit's checkpoint is unreadable: {error}") from None
        return [key for (key,) in rows]

    def known(self, key: bytes, entry: Entry) -> Known:
        """What it takes to judge an order again. Raises CheckpointUnusable."""
        try:
            row = self._db.execute("SELECT packed FROM known WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise ValueError("an order's facts aren't there")
            facts, seen, last, state = _decode(_unpacked(row[0]))
        except (ValueError, cramjam.DecompressionError, msgspec.MsgspecError, sqlite3.Error) as error:
            raise CheckpointUnusable(f"the last audit's checkpoint is unreadable: {error}") from None
        return Known(facts, seen, last, state, bool(entry.placed), waits=False)

    def held(self) -> Iterator[tuple[bytes, list[list[Any]]]]:
        """Each order that wasn't found clean, with what was read of the log since it was. Raises
        CheckpointUnusable.
        """
        try:
            for key, packed in self._db.execute("SELECT key, packed FROM held"):
                yield key, _decode_held(_unpacked(packed))
        except (ValueError, cramjam.DecompressionError, msgspec.MsgspecError, sqlite3.Error) as error:
            raise CheckpointUnusable(f"the last audit's checkpoint is unreadable: {error}") from None

    def placed(self, key: bytes) -> bool:
        """Whether this order was made of a checkout, or isn't judged yet."""
        return (
            self._db.execute(
                "SELECT 1 FROM entry WHERE part = ? AND key = ? AND placed"
                " UNION SELECT 1 FROM held WHERE key = ?",
                (crc32(key) % _PARTS, key, key),
            ).fetchone()
            is not None
        )


class Fresh:
    """What is found out of one lane."""

    def __init__(self, path: Path, number: str, *, whole: bool) -> None:
        path.touch(0o600)
        self._whole = whole
        self._db = sqlite3.connect(path, isolation_level=None)
        self._db.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _SCHEMA)
        self._db.execute("BEGIN")
        self._number = number
        self._orders = 0
        self._entries: list[tuple[Any, ...]] = []
        self._known: list[tuple[bytes, bytes]] = []

    def add(self, key: bytes, items: Sequence[Item], known: Known) -> None:
        """An order that was judged, with what was read of it."""
        # One that waits is looked at each time: how long it waits is told.
        rows = b"" if known.waits else digest_of_rows(items)
        state = b"" if known.state is None else digest(known.state[1])
        cached = digests_of_cache(items)
        self._entries.append((crc32(key) % _PARTS, key, rows, cached, state, int(known.placed)))
        plain = _encode((known.facts, known.seen, known.last, known.state))
        self._known.append((key, _packed(plain)))
        if len(self._entries) >= _AT_ONCE:
            self._write()

    def hold(self, key: bytes, items: Iterable[Item]) -> None:
        """An order that isn't clean, with what was read of it."""
        of_the_log = [item for item in items if item[1] in _OF_THE_LOG]
        self._db.execute("INSERT INTO held VALUES (?,?)", (key, _packed(_encode(of_the_log))))

    def close(self) -> None:
        self._write()
        self._db.execute("INSERT INTO audit VALUES (?, ?, ?)", (self._number, self._orders, self._whole))
        self._db.execute("COMMIT")
        self._db.close()

    def _write(self) -> None:
        self._orders += len(self._entries)
        self._db.executemany("INSERT INTO entry VALUES (?,?,?,?,?,?)", self._entries)
        self._db.executemany("INSERT INTO known VALUES (?,?)", self._known)
        self._entries, self._known = [], []


def _changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What of a scope is another one now, with the names of topics. Pure."""
    if before.get("format") != now["format"]:
        return "format"
    changed: list[str] = []
    for name in sorted(now):
        was, value = before.get(name), now[name]
        if was == value:
            continue
        topics = ""
        if isinstance(value, dict) and isinstance(was, dict):
            topics = ", ".join(sorted(key for key in was | value if was.get(key) != value.get(key)))
        changed.append(f"{name} ({topics})" if topics else name)
    return ", ".join(changed)


def _merge(path: Path, fresh: Path, number: str) -> None:
    """Replace, in a lane's part of a checkpoint, the orders that were judged again."""
    db = sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, isolation_level=None)
    try:
        db.execute("ATTACH ? AS fresh", (str(fresh),))
        db.execute("BEGIN IMMEDIATE")
        db.execute("DELETE FROM held")  # all of them were judged again
        for table in ("entry", "known", "held"):
            db.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM fresh.{table}")
        db.execute("UPDATE audit SET number = ?, orders = (SELECT count(*) FROM entry)", (number,))
        db.execute("COMMIT")
    finally:
        db.close()


def _packed(plain: bytes) -> bytes:
    return digest(plain) + bytes(cramjam.lz4.compress_block(plain))


def _unpacked(packed: bytes) -> bytes:
    """Raises ValueError, cramjam.DecompressionError."""
    plain = bytes(cramjam.lz4.decompress_block(packed[_DIGEST:]))
    if digest(plain) != packed[:_DIGEST]:
        raise ValueError("an order's facts aren't what was written")
    return plain


def digest(value: bytes) -> bytes:
    """8 bytes that tell these from any others."""
    return hashlib.blake2b(value, digest_size=_DIGEST).digest()


def digest_of_rows(items: Iterable[Item]) -> bytes:
    """8 bytes that tell an order's rows from any others; their order doesn't matter."""
    lines = sorted(b"%d %s" % (item[2], item[3]) for item in items if item[1] == ROW)
    return digest(b"\n".join(lines))


def digests_of_cache(items: Iterable[Item]) -> bytes:
    """8 bytes for each of an order's cache entries, sorted; how long they stay doesn't matter."""
    return b"".join(
        sorted({digest(_encode((item[2], item[4]))) for item in items if item[1] in (ENTRY, MEMBER)})
    )


def last_audit(folder: Path) -> tuple[str | None, int]:
    """When the latest of the audits was that left their checkpoints in `folder`, a folder for each cluster
    (RFC 3339), and how many differences it found; (None, 0) where there is none that can be read. Reads the
    local disk.
    """
    audits: list[tuple[str, int]] = []
    for path in folder.glob(f"*/{_MANIFEST}"):
        with contextlib.suppress(OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            manifest = _decode_manifest(path.read_bytes())
            audits.append((manifest.at, manifest.broken or 0))
    return max(audits, default=(None, 0))
