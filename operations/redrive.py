"""Send dead letters back to their topics, each with a note in orders.redriven in one transaction
(docs/decisions/0013).

So a record and its note become visible together or not at all. A letter that has a note is done. A redrive
that was killed is run again and goes on.
"""

from __future__ import annotations

import asyncio
import base64
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTransactionTimeout,
    InvalidTxnState,
    KafkaTimeoutError,
    ProducerFenced,
    TransactionalIdAuthorizationFailed,
)

from contracts.record_id import RecordId
from contracts.topics import LANE, REDRIVEN
from domain.limits import record_size
from errors import OrdersError
from operations.dead_letters import (
    REDRIVE_COUNT,
    REDRIVE_OF,
    DeadLetter,
    Filter,
    Letters,
    Redriven,
    State,
    state_of,
)
from settings import Settings
from streams import topics
from wire import clients

TRANSACTION_RECORDS: Final = 500
"""Letters in one transaction."""
TRANSACTION_BYTES: Final = 8 << 20
"""The same in bytes; a single larger letter goes alone."""
MOST_KEPT: Final = 256 << 10
"""Bytes of a value that is kept in the note of an edited redrive."""
BATCH_BYTES: Final = 512 << 10
REQUEST_BYTES: Final = 16 << 20
START_SECONDS: Final = 30.0
"""How long Kafka may take to shut an earlier redrive out. aiokafka itself asks for ever, silently."""

_ENDED: Final = (
    ProducerFenced,
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    IllegalOperation,
)
"""How it shows that the transaction is no longer ours: which one it is depends on the request
that is under way just then.
"""

_WHICHEVER: Final = Filter()
_REFUSED: Final = (TransactionalIdAuthorizationFailed, InvalidTransactionTimeout)


class TakenOver(OrdersError):
    """Another redrive was begun meanwhile, or the brokers ended a transaction that took too long.
    What was noted until then was sent.
    """

    remedy = "run this again when the other one has ended"


class TransactionsRefused(OrdersError):
    """The brokers don't let a redrive use transactions."""

    remedy = "docs/delivery.md says what they need"


@dataclass(frozen=True, slots=True)
class Selection:
    """A selection of letters: by reason, by topic of the record, by (partition, offset) in orders.dlq; None:
    all. At most `most`.
    """

    reasons: frozenset[str] | None = None
    topics: frozenset[str] | None = None
    ids: frozenset[tuple[int, int]] | None = None
    most: int | None = None
    since: str = ""
    until: str = ""
    """Refused at `since` or later and before `until`, RFC 3339 in UTC or its beginning; "": any time."""
    filter: Filter = _WHICHEVER
    """What else `orders dlq list` chooses by; of its state nothing is asked."""

    def takes(self, letter: DeadLetter) -> bool:
        """Tell whether a letter is selected, whatever became of it."""
        return (
            (self.reasons is None or letter.reason in self.reasons)
            and (self.topics is None or letter.record.topic in self.topics)
            and self.since <= letter.time
            and (not self.until or letter.time < self.until)
            and self.filter.takes(letter, "new")
        )


@dataclass(slots=True)
class RedriveResult:
    """The result of a redrive, done or tried. Counts are of letters."""

    sent: int = 0
    by_reason: Counter[str] = field(default_factory=Counter)
    """Of those sent."""
    states: Counter[State] = field(default_factory=Counter)
    """Of the others that were asked for: redriven before, parked, final."""
    too_large: list[str] = field(default_factory=list)
    """Their topic doesn't take them with the two headers more."""


async def redrive(
    settings: Settings,
    selection: Selection,
    *,
    by: str,
    dry_run: bool = False,
    edit: bytes | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RedriveResult:
    """Send the selected letters' records back to where they came from.

    `by` says who asks, for the note. `edit`: the value that the record gets in place of its own; for one
    letter (Selection.ids). The note then holds both. With `dry_run` nothing is sent. `progress` is called
    with the letters that were looked at and their number. Letters refused after the call are not looked at.
    Blocks. Raises TopicsMissing, TakenOver, NoSuchLetter, and what aiokafka raises.
    """
    if edit is not None and (selection.ids is None or len(selection.ids) != 1):
        raise ValueError("an edited value belongs to one letter")
    outcome, records_seen = RedriveResult(), set[RecordId]()
    batch: list[DeadLetter] = []
    size = 0
    async with AsyncExitStack() as stack:
        # First: from then on no earlier redrive can write, so the ledger that is read next is whole.
        sender = None if dry_run else await stack.enter_async_context(_Sender(settings, by, edit))
        letters = await stack.enter_async_context(Letters(settings))

        async def flush() -> None:
            too_large = set() if sender is None else await sender.send(batch)
            gone = [letter for letter in batch if letter.id not in too_large]
            outcome.sent += len(gone)
            outcome.by_reason.update(letter.reason for letter in gone)
            outcome.too_large += sorted(too_large)
            batch.clear()

        count = letters.count if selection.ids is None else len(selection.ids)
        chosen = await stack.enter_async_context(
            aclosing(letters.all() if selection.ids is None else letters.some(selection.ids))
        )
        seen = 0
        async for letter, note in chosen:
            seen += 1
            if progress is not None and seen % 100 == 0:
                progress(seen, count)
            if not selection.takes(letter):
                continue
            # A record that was refused twice, before and after a worker's crash, goes once.
            state = "redriven" if letter.record in records_seen else state_of(settings, letter, note)
            if state != "new":
                outcome.states[state] += 1
                continue
            if selection.most is not None and outcome.sent + len(batch) >= selection.most:
                await flush()
                if outcome.sent >= selection.most:
                    break
            if edit is not None and len(letter.value or b"") > MOST_KEPT:
                raise OrdersError(
                    f"the value of {letter.id} is too large to be kept beside an edited one",
                    "have the sender send it anew, corrected",
                )
            records_seen.add(letter.record)
            batch.append(letter)
            size += record_size(letter.key, letter.value, letter.headers)
            if len(batch) >= TRANSACTION_RECORDS or size >= TRANSACTION_BYTES:
                await flush()
                size = 0
        await flush()
    return outcome


class _Sender:
    """The way to Kafka: a transactional producer, whose id lets only the redrive begun last write.
    An async context manager.
    """

    def __init__(self, settings: Settings, by: str, edit: bytes | None) -> None:
        self._settings = settings
        self._edit = edit
        self._by = by
        self._limits: dict[str, int] = {}

    async def __aenter__(self) -> _Sender:
        described = await topics.describe(self._settings)
        topics.require(self._settings, (*LANE, REDRIVEN), described)
        self._limits = {name: int(state.configs["max.message.bytes"]) for name, state in described.items()}
        self._partitions = {name: state.partitions for name, state in described.items()}
        self._producer = clients.producer(
            self._settings,
            "orders-redrive",
            transactional_id=f"{self._settings.group}-redrive",
            transaction_timeout_ms=int(self._settings.transaction_timeout * 1000),
            linger_ms=0,
            max_batch_size=min([BATCH_BYTES, *self._limits.values()]),
            max_request_size=REQUEST_BYTES,
        )
        try:
            await asyncio.wait_for(self._producer.start(), START_SECONDS)
        except BaseException as error:
            await self._producer.stop()
            if isinstance(error, TimeoutError):
                raise KafkaTimeoutError("no transaction coordinator") from None
            if isinstance(error, _REFUSED):
                raise self._refused(error) from error
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._producer.stop()

    def _refused(self, error: BaseException) -> TransactionsRefused:
        return TransactionsRefused(f"Kafka at {self._settings.kafka} refuses the transaction ({error})")

    async def send(self, letters: Sequence[DeadLetter]) -> set[str]:
        """Send these letters' records and note it, in one transaction.
        Returns those that their topic doesn't take. Raises TakenOver.
        """
        batches, too_large = self._packed(letters)
        if not batches:
            return too_large
        try:
            async with self._producer.transaction():
                offsets = await self._deliver(
                    [(builder, topic, partition) for builder, topic, partition, _ in batches]
                )
                at, notes = (
                    datetime.now(UTC).isoformat(timespec="milliseconds"),
                    dict[int, list[tuple[bytes, bytes]]](),
                )
                for (_, topic, partition, mine), offset in zip(batches, offsets, strict=True):
                    for n, letter in enumerate(mine):
                        # -1: the broker recognized a repetition, but no longer remembers its offset.
                        to = RecordId(topic, partition, offset + n if offset >= 0 else -1)
                        note = Redriven(at, self._by, letter.redrives + 1, letter.reason, letter.record, to)
                        if self._edit is not None:
                            note.before, note.after = _text(letter.value or b""), _text(self._edit)
                        notes.setdefault(letter.partition, []).append(
                            (letter.id.encode(), msgspec.json.encode(note))
                        )
                await self._deliver(self._notes(notes))
        except Exception as error:
            if isinstance(error, _REFUSED):
                raise self._refused(error) from error
            if _ended(error):
                raise TakenOver(
                    "another redrive was begun meanwhile and has taken over (or Kafka was away for longer"
                    " than ORDERS_TRANSACTION_TIMEOUT)"
                ) from error
            raise
        return too_large

    def _packed(
        self, letters: Iterable[DeadLetter]
    ) -> tuple[list[tuple[Any, str, int, list[DeadLetter]]], set[str]]:
        """Batches with the letters in each, and the ids of those that are too large."""
        by_partition: dict[tuple[str, int], list[DeadLetter]] = {}
        for letter in letters:
            # Where there is no such partition any other one will do: from there it is
            # passed on to its order's lane.
            has_partition = 0 <= letter.record.partition < self._partitions[letter.record.topic]
            by_partition.setdefault(
                (letter.record.topic, letter.record.partition if has_partition else 0), []
            ).append(letter)
        batches: list[tuple[Any, str, int, list[DeadLetter]]] = []
        too_large: set[str] = set()
        now = int(time.time() * 1000)
        for (topic, partition), mine in by_partition.items():
            builder: Any = None
            for letter in mine:
                record = {
                    "timestamp": now,
                    "key": letter.key,
                    "value": letter.value if self._edit is None else self._edit,
                    "headers": redriven_headers(letter),
                }
                if builder is None or builder.append(**record) is None:
                    builder = self._producer.create_batch()
                    builder.append(**record)
                    if builder.size() > self._limits[topic]:
                        too_large.add(letter.id)
                        builder = None
                        continue
                    batches.append((builder, topic, partition, []))
                batches[-1][3].append(letter)
        return batches, too_large

    def _notes(self, notes: dict[int, list[tuple[bytes, bytes]]]) -> list[tuple[Any, str, int]]:
        batches = []
        for partition, records in notes.items():
            builder: Any = None
            for key, value in records:
                if builder is None or builder.append(timestamp=None, key=key, value=value) is None:
                    builder = self._producer.create_batch()
                    builder.append(timestamp=None, key=key, value=value)
                    batches.append((builder, REDRIVEN, partition))
        return batches

    async def _deliver(self, batches: Sequence[tuple[Any, str, int]]) -> list[int]:
        """The first offset of each batch, when all in-sync replicas have all of them."""
        sending: list[asyncio.Future[Any]] = []
        ended: BaseException | None = None
        try:
            for builder, topic, partition in batches:
                builder.close()
                sending.append(await self._producer.send_batch(builder, topic, partition=partition))
        except IllegalOperation as error:
            ended = error  # the transaction has failed meanwhile: the answers to what was sent say why
        results: list[Any] = await asyncio.gather(*sending, return_exceptions=True)
        for result in (*results, ended):
            if isinstance(result, BaseException):
                raise result
        return [result.offset for result in results]


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def redriven_headers(letter: DeadLetter) -> list[tuple[str, bytes | None]]:
    """Headers of a record that goes back: as they came, and that it is a redrive. Pure."""
    kept = [header for header in letter.headers if header[0] not in (REDRIVE_OF, REDRIVE_COUNT)]
    return [*kept, (REDRIVE_OF, letter.id.encode()), (REDRIVE_COUNT, b"%d" % (letter.redrives + 1))]


def _ended(error: BaseException | None) -> bool:
    """Tell whether the error, or one that caused it, says that the transaction isn't ours any more."""
    while error is not None:
        if isinstance(error, _ENDED):
            return True
        error = error.__cause__ or error.__context__
    return False
