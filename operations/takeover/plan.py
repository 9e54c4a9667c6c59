"""A takeover, from files to what the pipeline will make of them: read, checked and folded on this machine by
the pipeline's own fold. Nothing is sent, and no server is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from time import time
from typing import IO, Any, Final
from uuid import UUID

import msgspec
from msgspec import UNSET

from contracts import bulk, errors, ids, money, times
from contracts.bulk import EVENT
from contracts.topics import DLQ
from domain.anomalies import found
from domain.deadlines import pending
from domain.enums import OrderStatus, ReturnStatus
from domain.order import Order
from domain.paid_back import paid_back
from domain.status import OrderView, view_of
from domain.taken_over import is_history
from domain.totals import RunningTotals, winning_stages
from operations.history import FOLD_RECORDS, at_hand, fold
from operations.submit.cutover import CutOver
from operations.submit.files import Bounds
from operations.submit.jobs import Refusal
from operations.takeover.reading import (
    CANCELLATION,
    RELEASED,
    CancellationLine,
    Head,
    OrderLine,
    PaymentLine,
    Read,
    read,
)
from operations.takeover.report import SHOWN, File, Money, Oddity, Refused, Report, Untold
from operations.takeover.sources import KINDS, Source
from operations.takeover.store import Expected, Kept, Store, content_of
from settings import Settings
from streams.folder import BatchFolder
from tables import codec

_ORDERS, _PAYMENTS, _CANCELLATIONS = (KINDS.index(kind) for kind in ("orders", "payments", "cancellations"))
_LIVE: Final = (
    "its time is not before live_from: it would be live, and may cause commands. Send it after the takeover"
    " (orders bulk submit), or leave it out (--until-live-from)"
)
_NOTICES: Final = ("order.", "suborder.")
"""How the types of what we publish begin that tells what happened, and asks nobody for anything."""
_ENDED: Final = (OrderStatus.DELIVERED, OrderStatus.RETURNED)

_head = msgspec.json.Decoder(Head).decode
_order = msgspec.json.Decoder(OrderLine).decode
_payment = msgspec.json.Decoder(PaymentLine).decode
_cancellation = msgspec.json.Decoder(CancellationLine).decode


@dataclass(slots=True)
class OfflineRecord:
    """An event as the broker would have it. A streams.dead_letters.Record; `offset` is its number."""

    topic: str
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, Any]]
    timestamp: int
    partition: int = 0
    timestamp_type: int = 1


class Plan:
    """What is to be taken over. `report` tells what it comes to, `store` holds what is to be sent."""

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[Source],
        cut_over: CutOver,
        *,
        until_live_from: bool = False,
        refunds_computed: bool = False,
        refuse: Callable[[Refused], None] = lambda _: None,
    ) -> None:
        """`until_live_from`: leave out what happened from then on; otherwise it is refused.
        `refunds_computed`: tell what the other system paid back as computed, where a file doesn't.
        `refuse` gets each line that can't be taken in.
        """
        self.sources = sources
        self.report = Report(cut_over.live_from, refunds_computed=refunds_computed)
        self.reads: list[Read] = []
        self._settings = settings
        self._cut_over = cut_over
        self._until_live_from = until_live_from
        self._tell = refuse
        self._refused = [0] * len(sources)
        self._left_out = [0] * len(sources)
        # One lane: every order's events meet in it, whatever its key.
        self._folder = BatchFolder(settings.model_copy(update={"partitions": 1}))
        self._now = int(time() * 1000)
        self._broken: set[bytes] = set()

    def read(
        self,
        stack: ExitStack,
        *,
        stdin: IO[bytes],
        bounds: Bounds,
        progress: Callable[[str, int], None] = lambda what, done: None,
    ) -> None:
        """Read and check all files, and fold what they hold. Blocks; needs as much room below $TMPDIR as the
        files have, three times, until `stack` is closed.

        Raises SourceError for a file that can't be read as a whole.
        """
        self.store = Store(stack)
        for file, source in enumerate(self.sources):
            kind = KINDS.index(source.kind)

            def take(order_id: bytes, line: int, value: bytes, file: int = file, kind: int = kind) -> None:
                self.store.add(order_id, kind, file, line, value)

            def refuse(refusal: Refusal, file: int = file) -> None:
                self._refuse(file, refusal.line, refusal.reason, refusal.detail)

            def show(lines: int, path: str = source.path) -> None:
                progress(path, lines)

            self.reads.append(
                read(
                    source,
                    stack,
                    stdin=stdin,
                    bounds=bounds,
                    cut_over=self._cut_over,
                    take=take,
                    refuse=refuse,
                    progress=show,
                )
            )
        self._fold(progress)
        self.report.files = [
            File(source.path, source.kind, read.lines, self._refused[n], self._left_out[n], read.ignored)
            for n, (source, read) in enumerate(zip(self.sources, self.reads, strict=True))
        ]

    def digest(self, file: int) -> str:
        """What a file's job is made of, hex: as of a bulk job, unless not all of it is sent as it is."""
        read = self.reads[file]
        changed = hashlib.sha256()
        for line in self.store.left_out(file):
            changed.update(b"without %d;" % line)
        if self.sources[file].kind == "orders" and self.report.refunds_computed:
            for orders in self.store.expected():
                for order in orders:
                    if order.refunded is not None:
                        changed.update(order.order_id + order.refunded.encode())
        if changed.digest() == hashlib.sha256().digest():
            return read.digest
        return hashlib.sha256(f"{read.digest}:{changed.hexdigest()}".encode()).hexdigest()

    # -- checks ----------------------------------------------------------------------------------------------

    def _refuse(self, file: int, line: int, reason: str, detail: str) -> None:
        refused = Refused(self.sources[file].path, line, reason, detail)
        self._refused[file] += 1
        self.report.refusals += 1
        if len(self.report.refused) < SHOWN:
            self.report.refused.append(refused)
        self._tell(refused)

    def _refuse_kept(self, kept: Kept, reason: str, detail: str) -> None:
        self._broken.add(kept.order_id)
        self._refuse(kept.file, kept.line, reason, detail)

    def _checked(self, lines: list[Kept]) -> tuple[list[Kept], OrderLine | None]:
        """Return what is to be sent of an order's lines, and the order itself; None: nothing of it is."""
        created = [kept for kept in lines if kept.kind == _ORDERS]
        if not created:
            self._without_order(lines)
            return [], None
        first, *others = created
        for kept in others:
            self._refuse_kept(
                kept, errors.KEY_CONFLICT, f"$.order_id: an order of this id is in {self._at(first)}, too"
            )
        order = _order(first.value)
        live_from = self._live_from(first, order)
        if live_from is None:
            return [], None
        live = [kept for kept in lines if times.parse(_head(kept.value).time, "$.time") >= live_from]
        if self._until_live_from:
            if live and live[0] is first:
                live = lines  # an order that was never the other system's
            self._leave_out(live)
        else:
            for kept in live:
                self._refuse_kept(kept, errors.FIELD_MALFORMED, f"$.time: {_LIVE}")
        gone = {kept.row for kept in live}
        left = [kept for kept in lines if kept.row not in gone]
        self._once(left)
        return left, order if left else None

    def _live_from(self, first: Kept, order: OrderLine) -> int | None:
        """Return until when another system handled an order, microseconds. None: its line was refused."""
        if order.live_from is UNSET:
            self._refuse_kept(
                first,
                errors.FIELD_MISSING,
                "$.live_from: missing; --live-from says it for orders without one of their own",
            )
            return None
        live_from = times.parse(order.live_from, "$.live_from")
        if live_from > self._now * 1000:
            self._refuse_kept(first, errors.FIELD_MALFORMED, "$.live_from: it is still to come")
            return None
        return live_from

    def _without_order(self, lines: list[Kept]) -> None:
        live_from = self._cut_over.live_from
        for kept in lines:
            late = live_from is not None and _head(kept.value).time and self._is_live(kept, live_from)
            if self._until_live_from and late:
                self._leave_out([kept])
            else:
                self._refuse_kept(kept, errors.FIELD_MALFORMED, "$.order_id: no file has this order")

    @staticmethod
    def _is_live(kept: Kept, live_from: str) -> bool:
        return times.parse(_head(kept.value).time, "$.time") >= times.parse(live_from, "")

    def _leave_out(self, live: Sequence[Kept]) -> None:
        for kept in live:
            self._left_out[kept.file] += 1
        self.store.leave_out(kept.row for kept in live)

    def _once(self, lines: Sequence[Kept]) -> None:
        """Refuse a payment whose id stands in a line before."""
        seen: dict[UUID, Kept] = {}
        for kept in lines:
            if kept.kind != _PAYMENTS:
                continue
            payment_id = _payment(kept.value).payment_id
            if payment_id in seen:
                before = self._at(seen[payment_id])
                detail = f"$.payment_id: a payment of this id is in {before}, too"
                self._refuse_kept(kept, errors.KEY_CONFLICT, detail)
            seen.setdefault(payment_id, kept)

    def _at(self, kept: Kept) -> str:
        return f"{self.sources[kept.file].path}, line {kept.line}"

    # -- the fold --------------------------------------------------------------------------------------------

    def _fold(self, progress: Callable[[str, int], None]) -> None:
        records: list[OfflineRecord] = []
        origins: list[Kept] = []
        created: dict[bytes, Kept] = {}
        orders = 0
        for lines in self.store.by_order():
            left, order = self._checked(lines)
            if order is None:
                continue
            created[lines[0].order_id] = lines[0]
            for kept in left:
                for topic, value in self._events(kept, order):
                    records.append(self._record(topic, kept.order_id, value, len(records)))
                    origins.append(kept)
            orders += 1
            if len(records) >= FOLD_RECORDS:
                self._fold_some(records, origins, created)
                progress("orders", orders)
                records, origins, created = [], [], {}
        if records:
            self._fold_some(records, origins, created)

    def _events(self, kept: Kept, order: OrderLine) -> Iterator[tuple[str, bytes]]:
        """The events of a line, with their topics."""
        if kept.kind != _CANCELLATIONS:
            yield EVENT[KINDS[kept.kind]], kept.value  # type: ignore[index]
            return
        events = [*_of_cancellation(_cancellation(kept.value), kept.order_id, order)]
        self.store.send_directly((topic, kept.order_id, value) for topic, value in events)
        yield from events

    def _record(self, topic: str, order_id: bytes, value: bytes, number: int) -> OfflineRecord:
        return OfflineRecord(
            topic, number, ids.text(order_id).encode(), value, headers(topic, value), self._now
        )

    def _fold_some(
        self, records: list[OfflineRecord], origins: list[Kept], created: dict[bytes, Kept]
    ) -> None:
        states: dict[bytes, bytes] = {}
        for output in fold(self._folder, 0, records, at_hand(states)):
            states.update(output.states)
            for topic, out in output.out.items():
                if topic == DLQ:
                    for letter in out:
                        said = {name: (text or b"").decode() for name, text in letter.headers}
                        kept = origins[int(said["dlq_offset"])]
                        self._refuse_kept(kept, said["dlq_reason"], said["dlq_detail"])
                elif topic.startswith(_NOTICES):
                    self.report.notices += len(out)
                else:
                    self.report.commands[topic] += len(out)
        expected = []
        for order_id, state in states.items():
            order = codec.decode(state)
            if order_id in self._broken or order.created is None:
                continue
            expected.append(self._count(order_id, order, created[order_id]))
        self.store.expect(expected)

    # -- what it comes to ------------------------------------------------------------------------------------

    def _count(self, order_id: bytes, order: Order, line: Kept) -> Expected:
        """Count an order in the report."""
        assert order.created is not None
        report, totals, currency = self.report, RunningTotals(order), order.created.currency
        now = view_of(order, totals)
        status = "closed" if not now.live else now.status.text
        report.orders += 1
        report.statuses[status] += 1
        asked = any(stage.status is ReturnStatus.REQUESTED for stage in winning_stages(order).values())
        report.open += asked or (bool(now.live) and now.status not in _ENDED)
        soonest: dict[str, int] = {}
        for due in pending(order, order_id, self._settings.deadline_policy):
            soonest[due.what.text] = min(due.at, soonest.get(due.what.text, due.at))
        for what, at in soonest.items():
            report.wait(what, at <= self._now)
        refunded, digits = paid_back(now, totals).amount, money.DIGITS[currency]
        sums = report.money.setdefault(currency, Money())
        sums.total += now.total
        sums.captured += now.captured
        sums.refunded += refunded
        for oddity in found(order, order_id):
            report.anomalies[oddity.kind] += 1
            if len(report.oddities) < SHOWN:
                report.oddities.append(Oddity(ids.text(order_id), oddity.kind, oddity.detail))
        to_tell = self._untold(order_id, order, totals, now, refunded, line)
        created = order.created
        content = content_of(created.user_id, currency, Decimal(now.total).scaleb(-digits))
        return Expected(order_id, now.status.text, order.version, content, to_tell)

    def _untold(
        self,
        order_id: bytes,
        order: Order,
        totals: RunningTotals,
        now: OrderView,
        computed: int,
        line: Kept,
    ) -> str | None:
        """Return what is to be told as paid back, None: nothing. Ask for it, unless it is to be computed."""
        created = order.created
        assert created is not None
        if created.refunded_amount is not None:
            return None
        history = totals.history
        returned = any(
            stage.status is ReturnStatus.PROCESSED and is_history(created, stage)
            for stage in totals.returns.values()
        )
        if history is None or not (history.gone or returned):
            return None
        text = money.text(computed, money.DIGITS[created.currency])
        self.report.refunds_untold += 1
        if len(self.report.untold) < SHOWN:
            path = self.sources[line.file].path
            self.report.untold.append(Untold(ids.text(order_id), path, line.line, text, created.currency))
        return text if self.report.refunds_computed else None


def headers(topic: str, value: bytes) -> list[tuple[str, bytes]]:
    """An event's headers, from its id and its time."""
    head = _head(value)
    return bulk.headers_of(topic, head.id, head.time, "/takeover")


def _of_cancellation(
    line: CancellationLine, order_id: bytes, order: OrderLine
) -> Iterator[tuple[str, bytes]]:
    """What was called off as events: that it was asked for, unless single units were named, and that the
    units went back to stock."""
    common = {"order_id": ids.text(order_id), "time": line.time, "reason": line.reason}
    seller_of = {each.item_id: each.seller_id for each in order.items}
    units: dict[UUID, list[dict[str, Any]] | None] = {}
    if line.items is not UNSET:
        for each in line.items:
            # An item that the order doesn't have is refused as such, whoever is said to sell it.
            seller = seller_of.get(each.item_id, order.items[0].seller_id)
            listed = units.setdefault(seller, [])
            assert listed is not None
            listed.append({"item_id": str(each.item_id), "quantity": each.quantity})
    else:
        only = {} if line.seller_id is UNSET else {"seller_id": str(line.seller_id)}
        yield CANCELLATION, msgspec.json.encode({**common, **only, "id": line.id})
        for seller in [line.seller_id] if line.seller_id is not UNSET else seller_of.values():
            units[seller] = None
    for seller, items in units.items():
        more: dict[str, Any] = {} if items is None else {"items": items}
        seller_id = str(seller)
        # An id of its own: our reservation of this seller's units has another.
        reservation = ids.uuid5_text(order_id, f"theirs:{seller_id}")
        names = {"seller_id": seller_id, "reservation_id": reservation, "id": f"{line.id}:{seller_id}"[:1000]}
        yield RELEASED, msgspec.json.encode({**common, **names, **more})
