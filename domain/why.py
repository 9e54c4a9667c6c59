"""Why an order is what it is: the rules that made its statuses, refunds and anomalies, each with the facts
that it rests on and its numbers. docs/rules.md has each rule under the same name. Pure.

    {"of": "order", "id": ORDER, "rule": "status_confirmed", "says": ..., "facts": [1, 2], "numbers": {...}}

`facts` are numbers of domain.facts. Numbers are units, but for those of MONEY: text in major units. Whoever
sees only some sellers' parts gets the rules about these parts, without money.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from contracts import ids, money
from domain.anomalies import Anomaly, found
from domain.enums import (
    ClosedBecause,
    DeadlineKind,
    OrderStatus,
    Rank,
    RefundCause,
    ReturnStatus,
    StockAnswer,
)
from domain.facts import Facts, Json, Sellers
from domain.order import Created, Fact, Order, fact_lists
from domain.status import OrderView, Suborder
from domain.taken_over import is_history
from domain.totals import RunningTotals, winning_scans, winning_stages

MONEY: Final = frozenset({"amount", "captured", "decided", "needed", "refunded", "total"})
"""The numbers that are amounts of the order's currency."""
WAITS: Final = "facts_wait"
"""The rule of an order whose order.created isn't known."""
SAYS: Final[Mapping[str, str]] = {
    WAITS: "order.created isn't known yet, and the facts wait for it",
    "status_pending": "captured money doesn't cover the total, and no live unit is in transit",
    "status_confirmed": "captured money covers the total, and no live unit is in transit",
    "status_shipped": "some live unit is in transit or further, and not every one delivered",
    "status_delivered": "every live unit is delivered or returned",
    "status_returned": "every live unit is returned",
    "live_units": "units that were rejected or released, or whose stock nobody answered for, don't count",
    "captured_money": "captured is the sum of the order's payments",
    "taken_over": "another system handled the order until live_from: no command follows from that",
    "closed_cancelled": "no unit is live: they were released, and a cancellation is known",
    "closed_payment_overdue": "no unit is live: they were released, and the payment didn't come in time",
    "closed_not_shipped": "no unit is live: they were released, asked back since nobody shipped them",
    "closed_stock_released": "no unit is live: they were released",
    "closed_stock_rejected": "no unit is live: they were rejected",
    "closed_stock_unanswered": "no unit is live: nobody answered for the stock",
    "refund_return": "a processed return is paid once: what its units cost less the discount, with their tax",
    "refund_stock": "a seller's units that aren't live are paid once, with the shipping of lines without one",
    "refund_closed": "no unit is live, so all captured money that isn't refunded yet is",
    "refund_grant": "goodwill is paid once, after refunds of units, and pays for no unit",
}
"""Rule -> what it says. That of an anomaly is its kind, and says its detail."""


def why(
    order: Order, order_id: bytes, now: OrderView | None, facts: Facts, sellers: Sellers | None
) -> list[Json]:
    """The rules: of the order, of each suborder, of each refund decision, of each anomaly. `now`: the order's
    view, None if its order.created isn't known. `sellers`: as in Facts.
    """
    if now is None or order.created is None:
        every = [fact["n"] for fact in facts.told]
        return [_entry("order", ids.text(order_id), WAITS, SAYS[WAITS], every, {})]
    return _Reasons(order, order_id, now, order.created, facts, sellers).all()


def _entry(of: str, id_: str, rule: str, says: str, facts: list[int], numbers: Json) -> Json:
    return {"of": of, "id": id_, "rule": rule, "says": says, "facts": facts, "numbers": numbers}


class _Reasons:
    """The facts of one order by what they count for."""

    def __init__(
        self,
        order: Order,
        order_id: bytes,
        now: OrderView,
        created: Created,
        facts: Facts,
        sellers: Sellers | None,
    ) -> None:
        self._order = order
        self._order_id = order_id
        self._now = now
        self._facts = facts
        self._sellers = sellers
        self._created = created
        self._digits = money.DIGITS[created.currency]
        self._seller_of = {item.item_id: item.seller_id for item in created.items}
        self._payments = [each for each in order.payments if not each.refused]
        self._stages = winning_stages(order)
        self._processed = [each for each in self._stages.values() if each.status is ReturnStatus.PROCESSED]
        self._moved = [scan for scan in winning_scans(order).values() if scan.rank >= Rank.IN_TRANSIT]
        self._unanswered = [
            each for each in order.deadlines if each.what is DeadlineKind.STOCK and each.final
        ]

    def all(self) -> list[Json]:
        whole = self._whole() if self._sellers is None else []
        parts = [
            self._suborder(each)
            for each in self._now.suborders
            if self._sellers is None or each.seller_id in self._sellers
        ]
        return whole + parts + (self._refunds() + self._anomalies() if self._sellers is None else [])

    def _rule(
        self,
        of: str,
        id_: str,
        rule: str,
        facts: Iterable[Fact],
        numbers: Mapping[str, int],
        says: str | None = None,
    ) -> Json:
        shown = {
            name: money.text(number, self._digits) if name in MONEY else number
            for name, number in numbers.items()
            if self._sellers is None or name not in MONEY
        }
        says = SAYS[rule] if says is None else says
        return _entry(of, id_, rule, says, self._facts.numbers(*facts), shown)

    # -- statuses ----------------------------------------------------------------------------------------

    def _whole(self) -> list[Json]:
        now = self._now
        of, name, parts = "order", ids.text(self._order_id), now.suborders
        needed = sum(each.total for each in parts) if now.live else now.total
        paid = {"captured": now.captured, "needed": needed}
        ordered = sum(each.ordered for each in parts)
        if now.status > OrderStatus.CONFIRMED:
            rests: list[Fact] = [*self._moved, *self._processed]
        else:
            rests = [self._created, *self._payments]
        units = {
            "live": now.live,
            "in_transit": sum(each.in_transit for each in parts),
            "delivered": sum(each.delivered for each in parts),
            "returned": sum(each.returned for each in parts),
        }
        rules = [self._rule(of, name, f"status_{now.status.text}", rests, units | paid)]
        if now.live < ordered:
            gone = {"ordered": ordered, "live": now.live}
            rules.append(self._rule(of, name, "live_units", self._gone(), gone))
        if now.status > OrderStatus.CONFIRMED:
            rules.append(self._rule(of, name, "captured_money", self._payments, paid))
        history = RunningTotals(self._order).history
        if history is not None:
            before = {"captured": history.captured, "refunded": now.paid_back}
            rules.append(self._rule(of, name, "taken_over", self._history(), before))
        return rules

    def _history(self) -> list[Fact]:
        created = self._created
        facts: list[Fact] = [created] if is_history(created, created) else []
        for each in fact_lists(self._order):
            facts += [fact for fact in each if not fact.refused and is_history(created, fact)]
        return facts

    def _suborder(self, part: Suborder) -> Json:
        seller = part.seller_id
        name = ids.uuid5_text(self._order_id, f"suborder:{ids.text(seller)}")
        units = {
            "ordered": part.ordered,
            "live": part.live,
            "in_transit": part.in_transit,
            "delivered": part.delivered,
            "returned": part.returned,
        }
        if not part.live:
            rule = f"closed_{part.because.text}"
            return self._rule("suborder", name, rule, self._closers(seller, part.because), units)
        gone = self._gone(seller)
        if part.in_transit:
            rests: list[Fact] = [scan for scan in self._moved if scan.seller_id == seller]
            rests += [each for each in self._processed if self._seller_of[each.item_id] == seller]
        else:
            rests = [self._created, *self._payments]
            units |= {
                "captured": self._now.captured,
                "needed": sum(each.total for each in self._now.suborders),
            }
        return self._rule("suborder", name, f"status_{part.status.text}", [*rests, *gone], units)

    def _gone(self, seller_id: bytes | None = None, item_id: bytes | None = None) -> list[Fact]:
        """What made units gone: of all sellers, or of this one, or of this one's item."""
        replies: list[Fact] = [
            each
            for each in self._order.stock
            if not each.refused
            and each.type is not StockAnswer.RESERVED
            and seller_id in (None, each.seller_id)
            and (item_id is None or each.items is None or item_id in dict(each.items))
        ]
        return replies + [each for each in self._unanswered if seller_id in (None, each.subject)]

    def _closers(self, seller_id: bytes, because: ClosedBecause) -> list[Fact]:
        order, rests = self._order, self._gone(seller_id)
        if because is ClosedBecause.CANCELLED:
            rests += [
                each
                for each in order.cancellations
                if not each.refused and each.seller_id in (None, seller_id)
            ]
        elif because is ClosedBecause.PAYMENT_OVERDUE:
            rests += [each for each in order.deadlines if each.what is DeadlineKind.PAYMENT]
        elif because is ClosedBecause.NOT_SHIPPED:
            rests += self._lapses(DeadlineKind.UNSHIPPED, seller_id)
        return rests

    def _lapses(self, what: DeadlineKind, subject: bytes | int | None) -> list[Fact]:
        return [each for each in self._order.lapses if each.what is what and each.subject == subject]

    # -- refunds -----------------------------------------------------------------------------------------

    def _refunds(self) -> list[Json]:
        rules = []
        for decision in self._order.decisions:
            rests = [decision, *self._causes(decision.cause, decision.cause_id)]
            numbers = {"amount": decision.amount, "units": sum(count for _, _, count in decision.units)}
            name = ids.uuid5_text(self._order_id, f"refund:{decision.n}")
            rules.append(self._rule("refund", name, f"refund_{decision.cause.text}", rests, numbers))
        return rules

    def _causes(self, cause: RefundCause, cause_id: bytes) -> list[Fact]:
        if cause is RefundCause.RETURN:
            return [
                stage for stage in self._order.returns if stage.return_id == cause_id and not stage.refused
            ]
        if cause is RefundCause.GRANT:
            return [each for each in self._order.grants if each.grant_id == cause_id]
        return self._gone(cause_id) if cause is RefundCause.STOCK else [*self._gone(), *self._payments]

    # -- anomalies ---------------------------------------------------------------------------------------

    def _anomalies(self) -> list[Json]:
        by_text = {f"{each.kind}: {each.detail}": each for each in found(self._order, self._order_id)}
        return [
            self._rule(
                "anomaly", ids.text(self._order_id), each.kind, self._rests(each), each.numbers, each.detail
            )
            for _, each in sorted(by_text.items())
        ]

    def _rests(self, anomaly: Anomaly) -> list[Fact]:
        order, subject = self._order, anomaly.subject
        match anomaly.kind:
            case "overpaid":
                return [*self._payments]
            case "refunded_above_history":
                return [self._created, *(each for each in self._payments if is_history(self._created, each))]
            case "over_returned":
                return [each for each in self._processed if each.item_id == subject]
            case "moved_though_gone":
                assert isinstance(subject, bytes)
                return self._moved_and_gone(subject)
            case "reservation_unknown":
                return [each for each in order.stock if each.reservation_id == subject and not each.refused]
            case "came_back":
                return self._brought_back(subject)
            case "late_to_ship" | "late_to_deliver":
                return self._late(subject, anomaly.kind)
            case "return_overdue":
                stages: list[Fact] = [each for each in order.returns if each.return_id == subject]
                return stages + self._lapses(DeadlineKind.RETURN, subject)
            case "refund_failed":
                return [each for each in order.refunds if each.refund_id == subject and each.failed]
            case "refund_paid_twice":
                return [each for each in order.refunds if each.refund_id == subject and not each.failed]
            case "refund_unknown":
                return [each for each in order.refunds if each.refund_id == subject]
            case "refund_uncovered":
                owed: list[Fact] = [each for each in self._processed if each.return_id == subject]
                owed += [each for each in order.grants if each.grant_id == subject]
                assert isinstance(subject, bytes)
                return [*(owed or self._gone(subject)), *self._payments, *order.decisions]
            case "refund_above_captured":
                return [*self._payments, *order.decisions]
            case "refund_contradicted":
                assert isinstance(subject, int)
                return self._contradictors(subject)
        wanted = _GIVEN_UP[anomaly.kind]
        return [
            each for each in order.deadlines if each.what is wanted and each.subject == subject and each.final
        ]

    def _brought_back(self, item_id: bytes | int | None) -> list[Fact]:
        """The parcels that brought units of an item back, and its processed returns."""
        assert isinstance(item_id, bytes)
        seller = self._seller_of[item_id]
        parcels: list[Fact] = [
            scan
            for scan in self._moved
            if scan.rank is Rank.RETURNED
            and scan.seller_id == seller
            and (scan.items is None or item_id in dict(scan.items))
        ]
        return parcels + [each for each in self._processed if each.item_id == item_id]

    def _late(self, seller_id: bytes | int | None, kind: str) -> list[Fact]:
        """What a seller promised, when it passed, and its parcels."""
        what = DeadlineKind.SHIP if kind == "late_to_ship" else DeadlineKind.DELIVER
        promised: list[Fact] = [each for each in self._order.promises if each.seller_id == seller_id]
        parcels: list[Fact] = [scan for scan in self._moved if scan.seller_id == seller_id]
        return [self._created, *promised, *self._lapses(what, seller_id), *parcels]

    def _moved_and_gone(self, item_id: bytes) -> list[Fact]:
        seller = self._seller_of[item_id]
        parcels: list[Fact] = [
            scan
            for scan in self._moved
            if scan.seller_id == seller and (scan.items is None or item_id in dict(scan.items))
        ]
        return parcels + self._gone(seller, item_id)

    def _contradictors(self, number: int) -> list[Fact]:
        decision = self._order.decisions[number]
        rests: list[Fact] = [decision]
        if decision.cause is RefundCause.RETURN:
            return rests + self._causes(decision.cause, decision.cause_id)
        if decision.cause is RefundCause.STOCK:
            return rests + [scan for scan in self._moved if scan.seller_id == decision.cause_id]
        return [*rests, *self._moved]


_GIVEN_UP: Final = {
    "release_unanswered": DeadlineKind.RELEASE,
    "label_unscanned": DeadlineKind.LABEL,
    "refund_unconfirmed": DeadlineKind.REFUND,
}
