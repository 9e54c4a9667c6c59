"""The facts of an order in words: one vocabulary for `orders show`, the API and whoever shows an order next.

Free text (reason, location, a carrier's name) is in no sentence: it may be personal.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from typing import Any, Final

from contracts import ids, money, times
from contracts.incoming import FACT_FIELDS
from contracts.outgoing import SOURCE
from domain.enums import DeadlineKind, RefundCause, StockAnswer
from domain.order import (
    Cancellation,
    Created,
    Deadline,
    Fact,
    Grant,
    Lapse,
    Order,
    Payment,
    PaymentFailure,
    Promise,
    Quantities,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    SimpleFact,
    StockReply,
    type_of,
)
from domain.taken_over import is_history

Json = dict[str, Any]
Sellers = Container[bytes]
"""Raw ids of the sellers whose part of an order is looked at."""

HISTORY: Final = "history of another system"
"""The note of a fact that causes no command."""
_OURS: Final = SOURCE.decode()
_STOCK: Final = {
    StockAnswer.RESERVED: "reserved",
    StockAnswer.REJECTED: "can't be had",
    StockAnswer.RELEASED: "given back",
}
_AWAITED: Final = {
    DeadlineKind.PAYMENT: "the payment",
    DeadlineKind.STOCK: "the answer about the stock",
    DeadlineKind.RELEASE: "the answer that the stock was given back",
    DeadlineKind.LABEL: "the first scan",
    DeadlineKind.REFUND: "the answer about the refund",
}
_LAPSED: Final = {
    DeadlineKind.SHIP: "seller {} was to ship by {}",
    DeadlineKind.UNSHIPPED: "seller {} was to ship by {}, and had more time than that",
    DeadlineKind.DELIVER: "seller {}'s parcels were to be delivered by {}",
    DeadlineKind.RETURN: "return {} was requested long enough ago",
    DeadlineKind.REFUND_RETRY: "refund {} failed long enough ago, attempt {}",
}
_OWED: Final = {
    RefundCause.RETURN: "for return {}",
    RefundCause.STOCK: "for units of seller {} that are gone",
    RefundCause.CLOSED: "because no unit is live",
    RefundCause.GRANT: "for grant {}",
}


class Facts:
    """The facts of an order, numbered from 1 in the order of their times.

    `told`: an object for each: n, time, appended, type, what (a sentence), source (who sent it), cause, note.
    appended, source and cause are null where they aren't known: the state doesn't hold them for that fact.
    """

    def __init__(self, order: Order, sellers: Sellers | None = None) -> None:
        """`sellers`: only what these sellers may see of it: nothing about other sellers, nor about money."""
        self.told: list[Json] = []
        self._numbers: dict[int, int] = {}
        # Behind the words the natural key: facts that came in another order still have the same numbers.
        for n, (fact, line, _) in enumerate(sorted(_all(order, sellers), key=_rank), 1):
            if fact is not None:
                self._numbers[id(fact)] = n
            self.told.append({"n": n, **line})

    def numbers(self, *facts: Fact) -> list[int]:
        """The numbers of these facts of the order, in order; those that aren't told are left out."""
        return sorted({self._numbers[id(fact)] for fact in facts if id(fact) in self._numbers})


_Ranked = tuple[Fact | None, Json, tuple[Any, ...]]
"""None: what came before the order, and is no fact of its own."""


def _rank(each: _Ranked) -> tuple[Any, ...]:
    return each[2]


def _all(order: Order, sellers: Sellers | None) -> Iterator[_Ranked]:
    waiting = {(each.field, each.index) for each in order.waiting}
    created = order.created
    items = {} if created is None else {item.item_id: item.seller_id for item in created.items}
    items |= {stage.return_id: items[stage.item_id] for stage in order.returns if stage.item_id in items}
    if created is not None:
        if sellers is None:
            yield from _before(created)
        note = HISTORY if is_history(created, created) else ""
        line = _told(created, "order.created", describe_created(created, sellers), order.appended, note)
        yield created, line, (created.time, 0)
    for field in FACT_FIELDS:
        for index, fact in enumerate(getattr(order, field)):
            if sellers is not None and not concerns(fact, sellers, items):
                continue
            note = "refused" if fact.refused else "waits for its order" if (field, index) in waiting else ""
            if not note and created is not None and is_history(created, fact):
                note = HISTORY
            line = _told(fact, type_of(fact), describe(fact), getattr(fact, "appended", 0), note)
            yield fact, line, (fact.time, 1, line["type"], line["what"], repr(fact.key()))
    if sellers is None:
        currency = None if created is None else created.currency
        for decision in order.decisions:
            what = describe_decision(decision, currency)
            line = _told(decision, type_of(decision), what, decision.appended)
            yield decision, line, (decision.time, 2, decision.n)


def _before(created: Created) -> Iterator[_Ranked]:
    """What came before the order, as far as order.created says: the customer's cart, and its checkout."""
    if created.cart_id is not None or created.cart_created_at is not None:
        began = created.time if created.cart_created_at is None else created.cart_created_at
        named = "a cart" if created.cart_id is None else f"cart {ids.text(created.cart_id)}"
        line = _told(created, "cart", f"the customer began {named}", 0)
        yield None, line | {"time": times.text(began)}, (began, -2)
    if created.checkout_id is not None:
        what = f"the customer checked out, checkout {ids.text(created.checkout_id)}"
        yield None, _told(created, "checkout.completed", what, 0), (created.time, -1)


def _told(fact: Fact, type_: str, what: str, appended: int, note: str = "") -> Json:
    return {
        "time": times.text(fact.time),
        "appended": times.text(appended * 1000) if appended else None,
        "type": type_,
        "what": what,
        "source": _OURS if isinstance(fact, (Deadline, Lapse, RefundDecision)) else None,
        "cause": _cause(fact),
        "note": note,
    }


def _cause(fact: Fact) -> Json | None:
    """Of a fact of our own: what it was decided for, or what was waited for."""
    if isinstance(fact, RefundDecision):
        return {"type": fact.cause.text, "id": ids.text(fact.cause_id)}
    if isinstance(fact, (Deadline, Lapse)):
        return {"type": fact.what.text, "id": None if fact.subject is None else ids.text(fact.subject)}
    return None


def concerns(fact: SimpleFact, sellers: Sellers, items: Mapping[bytes, bytes]) -> bool:
    """Whether a fact is about one of these sellers' part of the order. `items`: item, and return, -> its
    seller. Pure.
    """
    match fact:
        case StockReply() | Scan() | Promise():
            return fact.seller_id in sellers
        case Cancellation():
            return fact.seller_id is None or fact.seller_id in sellers
        case ReturnStage():
            return items.get(fact.item_id) in sellers
        case Deadline():
            # Why their stock is asked back, too; what the refunds are is none of theirs.
            return fact.what is DeadlineKind.PAYMENT or fact.subject in sellers
        case Lapse():
            return fact.subject in sellers or items.get(fact.subject) in sellers
    return False


def describe_created(created: Created, sellers: Sellers | None = None) -> str:
    """order.created as a sentence; of `sellers` their lines alone, without the total. Pure."""
    items = [item for item in created.items if sellers is None or item.seller_id in sellers]
    units = sum(item.quantity for item in items)
    if sellers is not None:
        return f"the customer ordered {_units(units)} in {_count(len(items), 'line')}"
    total = money.text(created.total, money.DIGITS[created.currency])
    of = _count(len({item.seller_id for item in items}), "seller")
    return (
        f"the customer ordered {_units(units)} in {_count(len(items), 'line')} of {of}"
        f" for {total} {created.currency}"
    )


def describe_decision(decision: RefundDecision, currency: str | None) -> str:
    """refund.decided as a sentence. `currency`: the order's, None if it isn't known yet. Pure."""
    amount = (
        f"{decision.amount} minor units"
        if currency is None
        else f"{money.text(decision.amount, money.DIGITS[currency])} {currency}"
    )
    why = _OWED[decision.cause].format(ids.text(decision.cause_id))
    return f"refund {decision.n} of {amount} was decided, {why}"


def describe(fact: SimpleFact) -> str:
    """Any other fact as a sentence. Pure."""
    match fact:
        case Payment():
            return (
                f"payment {ids.text(fact.payment_id)} captured"
                f" {money.text(fact.amount, money.DIGITS[fact.currency])} {fact.currency}"
            )
        case PaymentFailure():
            return f"payment {ids.text(fact.payment_id)} failed"
        case StockReply():
            return f"{quantities(fact.items)} of seller {ids.text(fact.seller_id)} {_STOCK[fact.type]}"
        case Cancellation():
            whose = "the order" if fact.seller_id is None else f"seller {ids.text(fact.seller_id)}'s part"
            return f"the customer asked to cancel {whose}"
        case Scan():
            return (
                f"parcel {ids.text(fact.shipment_id)} of seller {ids.text(fact.seller_id)} with"
                f" {quantities(fact.items)} was scanned {fact.rank.text}"
            )
        case ReturnStage():
            units = "the whole line" if fact.quantity is None else _units(fact.quantity)
            return (
                f"return {ids.text(fact.return_id)} of {units}, item {ids.text(fact.item_id)}, was"
                f" {fact.status.text}"
            )
        case RefundReply():
            again = "" if fact.attempt == 1 else f", attempt {fact.attempt}"
            return f"refund {ids.text(fact.refund_id)} {'failed' if fact.failed else 'was paid out'}{again}"
        case Promise():
            until = [("shipped", fact.ship_by), ("delivered", fact.deliver_by)]
            what = " and ".join(f"{done} by {times.text(by)}" for done, by in until if by is not None)
            return f"seller {ids.text(fact.seller_id)} promised to have its units {what or 'as before'}"
        case Lapse():
            which = fact.attempt if fact.due is None else times.text(fact.due)
            return _LAPSED[fact.what].format(ids.text(fact.subject), which)
        case Grant():
            about = "" if fact.seller_id is None else f" about seller {ids.text(fact.seller_id)}"
            if fact.item_id is not None:
                about += f" about item {ids.text(fact.item_id)}"
            return (
                f"{money.text(fact.amount, money.DIGITS[fact.currency])} {fact.currency} of goodwill"
                f"{about} was granted, grant {ids.text(fact.grant_id)}"
            )
        case Deadline():
            whose = "" if fact.subject is None else f" of {ids.text(fact.subject)}"
            return (
                f"{_AWAITED[fact.what]}{whose} didn't come in time, number {fact.attempt}"
                f"{', and is no longer waited for' if fact.final else ''}"
            )


def quantities(items: Quantities | None) -> str:
    """How many units a fact names. Pure."""
    return "all units" if items is None else _units(sum(quantity for _, quantity in items))


def _units(count: int) -> str:
    return _count(count, "unit")


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
