"""An index on disk: of dead letters and re-keyed copies by their records, and of findings that aren't judged
yet.

In SQLite, in a file of the audit's own: memory stays the same however many there are.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import quote

from audit.reference import RecordId

_READ: Final = """
CREATE TABLE letter (
    number INTEGER PRIMARY KEY, topic, partition, offset, code, detail, key, digest, value, lane, at
);
CREATE INDEX letter_place ON letter (topic, partition, offset);
CREATE TABLE open (letter INTEGER PRIMARY KEY);
CREATE TABLE copy (topic, partition, offset, PRIMARY KEY (topic, partition, offset)) WITHOUT ROWID;
CREATE TABLE note (letter, reason, topic, partition, offset, to_topic, to_partition, to_offset);
CREATE INDEX note_place ON note (topic, partition, offset);
"""
"""What is read before the lanes are, and is the same for all of them."""
_FOUND: Final = """
CREATE TABLE matched (letter INTEGER PRIMARY KEY);
CREATE TABLE sent (letter, topic, partition, offset);
CREATE INDEX sent_letter ON sent (letter);
CREATE TABLE checkout (order_id, topic, partition, offset);
CREATE TABLE placed (order_id PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE pending (order_id, check_, severity, record_id, expected, found, fact);
CREATE INDEX pending_order ON pending (order_id);
CREATE TABLE absent (key, order_id, shipment_id);
"""
"""What lanes find."""
_FOUND_TABLES: Final = ("matched", "sent", "checkout", "placed", "pending", "absent")


class Letter(NamedTuple):
    """A dead letter of the record `record_id`, at `lane` and `at` of orders.dlq.

    `value` is kept if it may be a normalised fact.
    """

    record_id: RecordId
    code: str
    detail: str
    key: bytes | None
    digest: bytes
    value: bytes | None
    lane: int
    at: int


class Note(NamedTuple):
    """What the ledger says of a dead letter (PARTITION:OFFSET in orders.dlq): its record, of `origin`, was
    sent back and is at `to`.
    """

    letter: str
    reason: str
    origin: RecordId
    to: RecordId


class Pending(NamedTuple):
    """A finding that only counts if nothing about its order is on its way."""

    order_id: str
    check: str
    severity: str
    where: str
    expected: str
    found: str
    fact: str


class Read(NamedTuple):
    """What an index at `path` has read: it can be sent to another process."""

    path: Path
    letters: int
    copies: int
    notes: int

    def branch(self, number: int) -> Index:
        """An index for one lane in this process: it has what was read, and takes what the lane finds until
        the other one takes it over.
        """
        branch = Index.__new__(Index)
        branch._path = _branch(self.path, number)
        branch._db = _opened(branch._path, _FOUND)
        branch._db.execute("COMMIT")
        branch._db.execute("ATTACH ? AS read", (f"file:{quote(str(self.path))}?mode=ro",))
        branch._db.execute("BEGIN")
        branch.letters, branch.copies, branch.notes = self[1:]
        branch.waiting = branch.absences = 0
        return branch


class Index:
    """See the module. Reads and writes the local disk; raises sqlite3.Error when it is full."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "index.sqlite"
        self._db = _opened(self._path, _READ + _FOUND)
        self.letters = self.copies = self.notes = self.waiting = self.absences = 0

    @property
    def read(self) -> Read:
        """What this one has read, for other processes. It must have been flushed."""
        return Read(self._path, self.letters, self.copies, self.notes)

    def flush(self) -> None:
        """Write what is still in memory, for other processes."""
        self._db.execute("COMMIT")
        self._db.execute("BEGIN")

    def take_over(self, number: int) -> None:
        """Take what the branch of a lane has found; that must be flushed and closed."""
        path = _branch(self._path, number)
        self._db.execute("COMMIT")
        self._db.execute("ATTACH ? AS branch", (str(path),))
        self._db.execute("BEGIN")
        before = self._db.execute("SELECT count(*) FROM branch.pending").fetchone()[0]
        for table in _FOUND_TABLES:
            order = "" if table == "placed" else " ORDER BY rowid"
            self._db.execute(f"INSERT OR IGNORE INTO {table} SELECT * FROM branch.{table}{order}")
        self.waiting += before
        self._db.execute("COMMIT")
        self._db.execute("DETACH branch")
        self._db.execute("BEGIN")
        path.unlink()

    def close(self) -> None:
        self._db.close()

    # -- dead letters and re-keyed copies --------------------------------------------------------------------

    def add_letters(
        self, letters: Iterable[Letter], judged: Callable[[Letter], bool] = lambda letter: False
    ) -> None:
        """`judged`: whether an earlier audit has found the record of a dead letter."""
        for letter in letters:
            self.letters += 1
            cursor = self._db.execute(
                "INSERT INTO letter (topic, partition, offset, code, detail, key, digest, value, lane, at)"
                " VALUES (?,?,?,?,?,?,?,?,?,?)",
                (*letter.record_id, *letter[1:]),
            )
            if not judged(letter):
                self._db.execute("INSERT INTO open VALUES (?)", (cursor.lastrowid,))

    def letters_of(self, record_ids: Iterable[RecordId]) -> list[Letter]:
        """The dead letters of some records; they count as matched from now on."""
        if not self.letters:
            return []
        letters: list[Letter] = []
        for record_id in record_ids:
            rows = self._db.execute(
                "SELECT number, code, detail, key, digest, value, lane, at FROM letter"
                " WHERE topic = ? AND partition = ? AND offset = ?",
                record_id,
            ).fetchall()
            for number, *row in rows:
                self._db.execute("INSERT OR IGNORE INTO matched VALUES (?)", (number,))
                letters.append(Letter(record_id, *row))
        return letters

    def unmatched_letters(self) -> Iterator[Letter]:
        """Dead letters that no refused record has asked for, in the order of their own record_ids, but for
        those of records that an earlier audit has found.
        """
        rows = self._db.execute(
            "SELECT topic, partition, offset, code, detail, key, digest, value, lane, at FROM open"
            " JOIN letter ON number = open.letter"
            " WHERE number NOT IN (SELECT letter FROM matched) ORDER BY lane, at"
        )
        for topic, partition, offset, *rest in rows:
            yield Letter(RecordId(topic, partition, offset), *rest)

    def add_copies(self, origins: Iterable[RecordId]) -> None:
        """RecordOf of records of which a re-keyed copy exists."""
        rows = list(origins)
        self.copies += len(rows)
        self._db.executemany("INSERT OR IGNORE INTO copy VALUES (?,?,?)", rows)

    def has_copy(self, record_id: RecordId) -> bool:
        if not self.copies:
            return False
        return (
            self._db.execute(
                "SELECT 1 FROM copy WHERE topic = ? AND partition = ? AND offset = ?", record_id
            ).fetchone()
            is not None
        )

    # -- records that went back ------------------------------------------------------------------------------

    def add_notes(self, notes: Iterable[Note]) -> None:
        rows = [(note.letter, note.reason, *note.origin, *note.to) for note in notes]
        self.notes += len(rows)
        self._db.executemany("INSERT INTO note VALUES (?,?,?,?,?,?,?,?)", rows)

    def reason_of_redriven(self, record_id: RecordId) -> str | None:
        """Why a record was refused that went back since; None if it didn't."""
        if not self.notes:
            return None
        row = self._db.execute(
            "SELECT reason FROM note WHERE topic = ? AND partition = ? AND offset = ?", record_id
        ).fetchone()
        return None if row is None else str(row[0])

    def add_sent(self, letter: str, record_id: RecordId) -> None:
        """A record in the log that says that it was made of this dead letter."""
        self._db.execute("INSERT INTO sent VALUES (?,?,?,?)", (letter, *record_id))

    def sent_without_note(self) -> Iterator[tuple[str, RecordId]]:
        """Redriven records, with their letters, of which the ledger doesn't know or
        says that they are elsewhere.
        """
        rows = self._db.execute(
            "SELECT * FROM sent WHERE NOT EXISTS (SELECT 1 FROM note WHERE note.letter = sent.letter AND"
            " to_topic = sent.topic AND to_partition = sent.partition AND to_offset IN (sent.offset, -1))"
        )
        for letter, *record_id in rows:
            yield letter, RecordId._make(record_id)

    def notes_without_sent(self) -> Iterator[Note]:
        """Notes whose record hasn't been seen."""
        for letter, reason, *record_ids in self._db.execute(
            "SELECT * FROM note WHERE letter NOT IN (SELECT letter FROM sent)"
        ):
            yield Note(letter, reason, RecordId._make(record_ids[:3]), RecordId._make(record_ids[3:]))

    def redriven_twice(self) -> Iterator[tuple[RecordId, int]]:
        """Refused records that went back more than once, and how often."""
        rows = self._db.execute(
            "SELECT topic, partition, offset, count(*) FROM note GROUP BY topic, partition, offset HAVING"
            " count(*) > 1"
        )
        for *record_id, count in rows:
            yield RecordId._make(record_id), count

    # -- checkouts and the orders that were made of them -----------------------------------------------------

    def add_checkout(self, order_id: str, record_id: RecordId) -> None:
        """An accepted checkout, and the order that it has to become."""
        self._db.execute("INSERT INTO checkout VALUES (?,?,?,?)", (order_id, *record_id))

    def add_placed(self, order_id: str) -> None:
        """An order.created that was made of a checkout."""
        self._db.execute("INSERT OR IGNORE INTO placed VALUES (?)", (order_id,))

    def unplaced_checkouts(self) -> Iterator[tuple[str, RecordId]]:
        """Checkouts of which no order was made."""
        rows = self._db.execute("SELECT * FROM checkout WHERE order_id NOT IN (SELECT order_id FROM placed)")
        for order_id, *record_id in rows:
            yield order_id, RecordId._make(record_id)

    # -- parcels that aren't under their numbers -------------------------------------------------------------

    def add_absent(self, key: str, order_id: str, shipment_id: str) -> None:
        """A parcel of an order in the cache that was not seen under its tracking number's key."""
        self.absences += 1
        self._db.execute("INSERT INTO absent VALUES (?,?,?)", (key, order_id, shipment_id))

    def absent(self) -> Iterator[tuple[str, list[tuple[str, str]]]]:
        """(key, (order id, shipment id) of each)."""
        for key, rows in groupby(
            self._db.execute("SELECT * FROM absent ORDER BY key"), key=lambda row: row[0]
        ):
            yield key, [(order_id, shipment_id) for _, order_id, shipment_id in rows]

    # -- findings that wait ----------------------------------------------------------------------------------

    def wait(self, pending: Pending) -> None:
        self.waiting += 1
        self._db.execute("INSERT INTO pending VALUES (?,?,?,?,?,?,?)", pending)

    def forget(self, order_ids: Iterable[str]) -> int:
        """Drop the findings of these orders; returns how many there were."""
        before = self._db.total_changes
        self._db.executemany(
            "DELETE FROM pending WHERE order_id = ?", [(order_id,) for order_id in order_ids]
        )
        dropped = self._db.total_changes - before
        self.waiting -= dropped
        return dropped

    def waiting_by_check(self) -> Counter[str]:
        return Counter(dict(self._db.execute("SELECT check_, count(*) FROM pending GROUP BY check_")))

    def waiting_orders(self) -> set[str]:
        """Orders of which findings wait."""
        return {order_id for (order_id,) in self._db.execute("SELECT DISTINCT order_id FROM pending")}

    def next_round(self) -> None:
        """What was found is told; what may be asked for later stays: letters that nobody asked for, checkouts
        without an order, notes.
        """
        self._db.execute("DELETE FROM open WHERE letter IN (SELECT letter FROM matched)")
        self._db.execute("DELETE FROM checkout WHERE order_id IN (SELECT order_id FROM placed)")
        for table in ("matched", "placed", "sent", "pending", "absent"):
            self._db.execute(f"DELETE FROM {table}")
        self.waiting = self.absences = 0
        self.flush()

    def pending(self) -> Iterator[Pending]:
        """Those that are left, in the order in which they were found."""
        return map(Pending._make, self._db.execute("SELECT * FROM pending ORDER BY rowid"))


def _branch(path: Path, number: int) -> Path:
    return path.with_name(f"lane-{number}.sqlite")


def _opened(path: Path, schema: str) -> sqlite3.Connection:
    db = sqlite3.connect(f"file:{quote(str(path))}", isolation_level=None, uri=True)
    db.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -32000;" + schema
    )
    db.execute("BEGIN")
    return db
