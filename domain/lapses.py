"""The deadlines that give every order an end or say that it is late (domain.promises, docs/decisions/0059).

Pure, by the brokers' clock, as those of domain.deadlines, which waits for these beside its own.

    ship          units not in transit by ship_by          -> the seller is late
    unshipped     they still aren't, some time after that  -> their stock is asked back
    deliver       units in transit not delivered by then   -> the seller is late
    return        a return that was only requested         -> an anomaly
    refund_retry  a refund that failed                     -> it is asked for again
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final

from contracts import ids
from domain.enums import DeadlineKind, OrderStatus, ReturnStatus
from domain.order import Created, Lapse, Order
from domain.promises import OpenLine, Promises, has_promises
from domain.shapes import DeadlinePolicy, Due
from domain.status import view_of
from domain.taken_over import is_answer
from domain.totals import winning_stages

_SHIP, _UNSHIPPED, _DELIVER = DeadlineKind.SHIP, DeadlineKind.UNSHIPPED, DeadlineKind.DELIVER
_RETURN, _REFUND_RETRY = DeadlineKind.RETURN, DeadlineKind.REFUND_RETRY
_REFUND: Final = DeadlineKind.REFUND
_CONFIRMED: Final = OrderStatus.CONFIRMED
_REQUESTED: Final = ReturnStatus.REQUESTED


def pending_promises(
    order: Order, policy: DeadlinePolicy, sellers: Sequence[bytes], asked_back: Container[bytes | None]
) -> list[Due]:
    """The deadlines of what is shipped and delivered. `sellers`: the order's, in order; `asked_back`: those
    whose whole stock was asked back, None: everybody's.
    """
    lines = _Lines(order) if order.lapses or has_promises(order) else None
    if lines is None and not policy.ship and not policy.deliver:
        return []
    deadlines: list[Due] = []
    confirmed = order.labelled_at if order.status >= _CONFIRMED and None not in asked_back else 0
    for n, (seller_id, part) in enumerate(zip(sellers, order.suborders, strict=True)):
        if part.live > part.in_transit and confirmed and seller_id not in asked_back:
            otherwise = policy.ship and (confirmed + policy.ship) * 1000
            _wait(deadlines, lines, _SHIP, seller_id, confirmed, otherwise)
        if part.in_transit > part.delivered and (lines is not None or policy.deliver):
            left = max(order.appended, order.left[n]) if order.left else order.appended
            otherwise = policy.deliver and (left + policy.deliver) * 1000
            _wait(deadlines, lines, _DELIVER, seller_id, left, otherwise)
        if lines is not None and policy.ship_cancel and None not in asked_back:
            late = None if seller_id in asked_back else lines.to_ask_back(seller_id)
            if late is not None and late.due is not None:
                since = max(order.appended, late.appended)
                deadlines.append(Due(since + policy.ship_cancel, _UNSHIPPED, seller_id, 1, True, late.due))
    return deadlines


def _wait(
    deadlines: list[Due],
    lines: _Lines | None,
    what: DeadlineKind,
    seller_id: bytes,
    earliest: int,
    otherwise: int,
) -> None:
    """Wait for a seller's units to be shipped or delivered. `earliest`: the moment, ms, before which it
    doesn't pass; `otherwise`: when it is due without a promise, microseconds; 0: never.
    """
    due = (otherwise or None) if lines is None else lines.next(what, seller_id, otherwise)
    if due is not None:
        deadlines.append(Due(max(earliest, -(-due // 1000)), what, seller_id, 1, True, due))


def unshipped_since(order: Order, seller_id: bytes) -> int:
    """Since when units of a seller have been asked back because nobody shipped them, ms; 0: none are."""
    if not any(lapse.what is _UNSHIPPED and lapse.subject == seller_id for lapse in order.lapses):
        return 0
    lines = _Lines(order)
    return min(
        (
            max(order.appended, lapse.appended)
            for lapse in lines.promises.passed(_UNSHIPPED, seller_id)
            if lines.promises.late(lapse, lines.of(seller_id))
        ),
        default=0,
    )


class _Lines:
    """The open lines of an order, by seller: what is due differs among them, or has passed."""

    def __init__(self, order: Order) -> None:
        self._open = {part.seller_id: part.open_lines() for part in view_of(order).suborders}
        self.promises = Promises(order)

    def of(self, seller_id: bytes) -> list[OpenLine]:
        return self._open[seller_id]

    def next(self, what: DeadlineKind, seller_id: bytes, otherwise: int) -> int | None:
        """The earliest time, microseconds, at which an open line is due, unless the line is late by that
        already. `otherwise`: when a line without a promise is; 0: never.
        """
        passed = self.promises.passed(what, seller_id)
        while otherwise and otherwise in self.promises.ordered(seller_id)[what is _DELIVER]:
            otherwise += 1  # to be told from what was promised for another line
        first: int | None = None
        for item_id, to_ship, to_deliver in self._open[seller_id]:
            if what is _SHIP:
                if not to_ship or self.promises.asked_back(seller_id, item_id):
                    continue
            elif not to_deliver:
                continue
            due = self.promises.of(what, item_id)
            if due is None:
                due = otherwise or None
            if due is None or any(
                due <= (lapse.due or 0) and self.promises.covers(lapse, item_id) for lapse in passed
            ):
                continue
            if first is None or due < first:
                first = due
        return first

    def to_ask_back(self, seller_id: bytes) -> Lapse | None:
        """The first lapse that makes units late whose stock wasn't asked back yet."""
        first: Lapse | None = None
        for lapse in self.promises.passed(_SHIP, seller_id):
            if first is None or (lapse.due or 0) < (first.due or 0):
                late = self.promises.late(lapse, self._open[seller_id])
                if any(not self.promises.asked_back(seller_id, item_id) for item_id in late):
                    first = lapse
        return first


def pending_returns(order: Order, policy: DeadlinePolicy) -> list[Due]:
    """Those of returns that were only requested."""
    if not order.returns or not policy.return_:
        return []
    passed = {lapse.subject for lapse in order.lapses if lapse.what is _RETURN}
    return [
        Due(max(order.appended, stage.appended) + policy.return_, _RETURN, return_id, 1, True)
        for return_id, stage in winning_stages(order).items()
        if stage.status is _REQUESTED and return_id not in passed
    ]


def pending_retries(order: Order, created: Created, order_id: bytes, policy: DeadlinePolicy) -> list[Due]:
    """Those of refunds whose latest request failed: of which this version took in the answer."""
    if not order.refunds or not policy.refund_retry:
        return []
    failed: dict[tuple[bytes, int], int] = {}
    completed: set[bytes] = set()
    for reply in order.refunds:
        if not reply.failed:
            completed.add(reply.refund_id)
        elif reply.appended and is_answer(created, reply):
            failed[reply.refund_id, reply.attempt] = reply.appended
    deadlines: list[Due] = []
    for decision in order.decisions if failed else ():
        refund_id = ids.uuid5(order_id, f"refund:{decision.n}")
        attempt = latest_attempt(order, refund_id)
        at = failed.get((refund_id, attempt))
        if at is not None and refund_id not in completed and attempt < policy.refund_attempts:
            final = attempt + 1 >= policy.refund_attempts
            since = max(order.appended, at)
            deadlines.append(Due(since + policy.refund_retry, _REFUND_RETRY, refund_id, attempt, final))
    return deadlines


def pending_answers(order: Order, created: Created, order_id: bytes, policy: DeadlinePolicy) -> list[Due]:
    """Those of refunds that were asked for again because they failed, and whose latest request nobody
    answered: it is repeated, as the first one is. Their numbers go on.
    """
    asked: dict[bytes, Lapse] = {}
    for lapse in order.lapses:
        if lapse.what is _REFUND_RETRY:
            known = asked.get(lapse.subject)
            if known is None or known.attempt < lapse.attempt:
                asked[lapse.subject] = lapse
    if not asked or not policy.refund:
        return []
    replies = [reply for reply in order.refunds if is_answer(created, reply)]
    completed = {reply.refund_id for reply in replies if not reply.failed}
    failed = {reply.refund_id for reply in replies} - completed
    answered = {(reply.refund_id, reply.attempt) for reply in replies}
    deadlines: list[Due] = []
    for decision in order.decisions:
        refund_id = ids.uuid5(order_id, f"refund:{decision.n}")
        latest = asked.get(refund_id)
        if latest is None or refund_id not in failed or (refund_id, latest.attempt + 1) in answered:
            continue
        passed = [each for each in order.deadlines if each.what is _REFUND and each.subject == refund_id]
        # Those before were about earlier requests.
        since = [each for each in passed if each.appended > latest.appended]
        if not any(each.final for each in since):
            number = max((each.attempt for each in passed), default=0) + 1
            at = max(order.appended, latest.appended, *(each.appended for each in since))
            final = len(since) + 1 >= policy.refund_asks
            deadlines.append(Due(at + policy.refund, _REFUND, refund_id, number, final))
    return deadlines


def latest_attempt(order: Order, refund_id: bytes) -> int:
    """How often a refund was asked for, not counting repetitions because nobody answered."""
    asked = 1
    for lapse in order.lapses:
        if is_retry(lapse, refund_id):
            asked = max(asked, lapse.attempt + 1)
    return asked


def is_retry(lapse: Lapse, refund_id: bytes) -> bool:
    """Whether with this deadline the refund is asked for again."""
    return lapse.what is _REFUND_RETRY and lapse.subject == refund_id
