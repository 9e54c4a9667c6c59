"""What leaves the pipeline: derived events, commands and their deterministic ids (docs/rules.md, Commands).

Each builder is pure. An id is uuid5 in the namespace of the order's UUID, so whoever receives a command twice
can tell; `ce_id` is uuid5 over the type and that id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import msgspec
from msgspec import UNSET, Struct, UnsetType

from contracts import ids, money, times
from contracts.incoming import DeadlinePassed, ItemData, OrderCreated, RefundDecided, TaxData
from contracts.outgoing import (
    DATA,
    NOTICES,
    SOURCE,
    VERSION,
    LabelItem,
    OrderAttention,
    OrderStatusChanged,
    PaymentInitiate,
    RefundAllocation,
    RefundLine,
    RefundRequest,
    ShippingLabelCreate,
    StatusCause,
    StockCommit,
    StockItem,
    StockRelease,
    StockReserve,
    StockRestock,
    SuborderCreated,
    SuborderItem,
    SuborderLate,
    SuborderUnits,
    SuborderUpdated,
)
from contracts.record_id import RecordId
from contracts.statuses import AttentionStateText, LatenessText
from contracts.topics import CREATED, DECISIONS
from domain.enums import ClosedBecause, DeadlineKind, OrderStatus
from domain.events import to_event_data
from domain.order import (
    Attention,
    Created,
    Item,
    Lapse,
    RefundDecision,
    ReturnStage,
    SimpleFact,
    Taxes,
)
from domain.shapes import Derived, Due, Effect, Event, LateRefusal
from domain.status import Line, Suborder, fresh_lines
from domain.tax import is_taxed


class Writer:
    """Builds the effects of one order while it takes in one event."""

    __slots__ = ("_lines", "digits", "effects", "history", "order_id", "order_text")

    def __init__(self, order_id: bytes, currency: str, history: bool = False) -> None:
        self._lines: dict[bytes, Line] = {}
        self.order_id = order_id
        self.history = history
        """Notices are of what another system did."""
        self.order_text = ids.text(order_id)
        self.digits = money.DIGITS[currency]
        self.effects: list[Effect] = []

    def id(self, name: str) -> str:
        return ids.uuid5_text(self.order_id, name)

    def _publish(self, type_: str, ce_id: str, data: Struct | Callable[[], Struct]) -> None:
        self.effects.append(
            Derived(type_, type_, f"{type_}:{ce_id}", data, self.history and type_ in NOTICES)
        )

    def _suborder(
        self, kind: type[SuborderCreated], created: Created, suborder: Suborder, version: int
    ) -> SuborderCreated:
        text, digits = ids.text, self.digits
        seller = text(suborder.seller_id)
        live = {line.item_id: line.live for line in suborder.lines}
        items = [
            SuborderItem(
                text(item.item_id),
                text(item.product_id),
                item.sku,
                item.quantity,
                live[item.item_id],
                money.text(item.price, digits),
                money.text(item.shipping or 0, digits),
                UNSET if item.warehouse_id is None else text(item.warehouse_id),
            )
            for item in created.items
            if item.item_id in live
        ]
        taxed = is_taxed(created)
        if taxed:
            _tell_taxes(items, suborder.lines, digits)
        return kind(
            self.id(f"suborder:{seller}"),
            self.order_text,
            seller,
            suborder.status.text,
            created.currency,
            items,
            money.text(suborder.items_amount, digits),
            money.text(suborder.shipping, digits),
            money.text(suborder.discount, digits),
            money.text(suborder.total, digits),
            SuborderUnits(
                suborder.ordered, suborder.live, suborder.in_transit, suborder.delivered, suborder.returned
            ),
            version,
            UNSET if suborder.because is ClosedBecause.NOT_CLOSED else suborder.because.text,
            money.text(suborder.tax, digits) if taxed else UNSET,
        )

    def suborder_created(self, created: Created, suborder: Suborder) -> None:
        data = self._suborder(SuborderCreated, created, suborder, 1)
        self._publish("suborder.created", data.suborder_id, data)

    def suborder_updated(self, created: Created, suborder: Suborder, version: int) -> None:
        data = self._suborder(SuborderUpdated, created, suborder, version)
        self._publish("suborder.updated", f"{version}:{data.seller_id}", data)

    def suborder_late(self, lapse: Lapse, units: int, version: int) -> None:
        """`lapse`: of what is shipped or delivered; `units`: how many of its seller are late."""
        assert lapse.due is not None
        seller, due = ids.text(lapse.subject), times.text(lapse.due)
        what: LatenessText = "ship" if lapse.what is DeadlineKind.SHIP else "deliver"
        data = SuborderLate(self.id(f"suborder:{seller}"), self.order_text, seller, what, due, units, version)
        self._publish("suborder.late", f"{what}:{seller}:{due}", data)

    def stock_reserve(self, seller_id: bytes, items: Iterable[tuple[Item, int]]) -> None:
        seller = ids.text(seller_id)
        data = StockReserve(self.id(f"reservation:{seller}"), self.order_text, seller, _stock_items(items))
        self._publish("stock.reserve", data.reservation_id, data)

    def stock_release(self, seller_id: bytes, items: Iterable[tuple[Item, int]]) -> None:
        seller = ids.text(seller_id)
        data = StockRelease(self.id(f"reservation:{seller}"), self.order_text, seller, _stock_items(items))
        self._publish("stock.release", data.reservation_id, data)

    def stock_commit(
        self, shipment_id: bytes, seller_id: bytes, items: Callable[[], Iterable[tuple[Item, int]]]
    ) -> None:
        seller, shipment = ids.text(seller_id), ids.text(shipment_id)
        commit = self.id(f"commit:{shipment}")
        reservation = self.id(f"reservation:{seller}")
        # This one may leave thousands of times for one event: for parcels that waited for their order.
        self._publish(
            "stock.commit",
            commit,
            partial(_stock_commit, commit, shipment, reservation, self.order_text, seller, items),
        )

    def stock_restock(self, item: Item, stage: ReturnStage) -> None:
        text = ids.text
        return_id = text(stage.return_id)
        restock = self.id(f"restock:{return_id}")
        quantity = min(stage.quantity or item.quantity, item.quantity)
        data = StockRestock(
            restock,
            self.order_text,
            text(item.seller_id),
            return_id,
            text(item.item_id),
            text(item.product_id),
            item.sku,
            quantity,
        )
        self._publish("stock.restock", restock, data)

    def payment_initiate(self, created: Created) -> None:
        data = PaymentInitiate(
            self.id("payment"),
            self.order_text,
            ids.text(created.user_id),
            money.text(created.total, self.digits),
            created.currency,
        )
        self._publish("payment.initiate", data.payment_request_id, data)

    def label_create(self, seller_id: bytes, items: Iterable[tuple[Item, int]]) -> None:
        text = ids.text
        seller = text(seller_id)
        lines = [
            LabelItem(
                text(i.item_id),
                text(i.product_id),
                i.sku,
                quantity,
                UNSET if i.warehouse_id is None else text(i.warehouse_id),
            )
            for i, quantity in items
        ]
        data = ShippingLabelCreate(
            self.id(f"label:{seller}"),
            self.order_text,
            self.id(f"suborder:{seller}"),
            seller,
            lines,
        )
        self._publish("shipping.label.create", data.label_request_id, data)

    def refund_id(self, decision: RefundDecision) -> bytes:
        return ids.uuid5(self.order_id, f"refund:{decision.n}")

    def refund_request(self, decision: RefundDecision, created: Created, attempt: int = 1) -> None:
        data = RefundRequest(
            self.id(f"refund:{decision.n}"),
            self.order_text,
            money.text(decision.amount, self.digits),
            created.currency,
            decision.cause.text,
            ids.text(decision.cause_id),
            UNSET if decision.tax is None else money.text(decision.tax, self.digits),
        )
        if decision.allocations is not None or attempt != 1:
            data.attempt = attempt
        if decision.allocations is not None:
            if not self._lines:
                self._lines = {line.item_id: line for line in fresh_lines(created)}
            _tell_what_it_pays(data, decision, self._lines, self.digits)
        again = "" if attempt == 1 else f":{attempt}"
        self._publish("refund.request", data.refund_id + again, data)

    def refund_decided(self, decision: RefundDecision) -> None:
        spans = [(ids.uuid(item_id), first, count) for item_id, first, count in decision.units]
        data = RefundDecided(
            ids.uuid(self.order_id),
            decision.n,
            decision.amount,
            decision.cause.text,
            ids.uuid(decision.cause_id),
            [(item_id, number) for item_id, first, count in spans for number in range(first, first + count)],
            [ids.uuid(item_id) for item_id in decision.shipping],
            UNSET if decision.tax is None else decision.tax,
            UNSET
            if decision.allocations is None
            else [(ids.uuid(payment_id), amount) for payment_id, amount in decision.allocations],
        )
        self.effects.append(Derived(DECISIONS, "refund.decided", f"refund.decided:{decision.n}", data))

    def status_changed(
        self, created: Created, before: OrderStatus, after: OrderStatus, event: Event, version: int
    ) -> None:
        data = OrderStatusChanged(
            self.order_text,
            ids.text(created.user_id),
            before.text,
            after.text,
            StatusCause(event.type, event.id),
            version,
        )
        self._publish("order.status_changed", str(version), data)

    def attention(self, created: Created, noted: Attention, detail: str, version: int) -> None:
        """`noted`: as the state has it; `detail`: the whole of what holds."""
        state: AttentionStateText = "raised" if noted.cleared_at is None else "cleared"
        user, since = ids.text(created.user_id), times.text(noted.since)
        data = OrderAttention(self.order_text, user, noted.kind, state, detail, since, version)
        self._publish("order.attention", f"{noted.kind}:{state}:{version}", data)

    def late_refusal(self, type_: str, fact: SimpleFact, code: str, detail: str, record: RecordId) -> None:
        self.effects.append(LateRefusal(type_, fact, code, detail, record))


def _tell_taxes(items: list[SuborderItem], lines: list[Line], digits: int) -> None:
    """The taxes of the lines of a suborder, over their live units and the shipping of those that have any."""
    amounts = {
        ids.text(line.item_id): (line.tax_of(0, line.live), line.postage_tax if line.live else 0)
        for line in lines
    }
    for item in items:
        goods, shipping = amounts[item.item_id]
        item.tax_amount = money.text(goods, digits)
        item.shipping_tax_amount = money.text(shipping, digits)


def _tell_what_it_pays(
    data: RefundRequest, decision: RefundDecision, lines: Mapping[bytes, Line], digits: int
) -> None:
    """What a refund pays for, by item, and which payments it goes back to. Units and lines that the order
    doesn't have, in a decision that isn't ours, are left out.
    """
    paid: dict[bytes, tuple[int, int, int]] = {}
    for item_id, first, count in decision.units:
        line = lines.get(item_id)
        if line is not None:
            end = min(first + count, line.quantity)
            if first < end:
                units, cost, tax = paid.get(item_id, (0, 0, 0))
                units += end - first
                paid[item_id] = units, cost + line.cost_of(first, end), tax + line.tax_of(first, end)
    data.lines = [
        RefundLine(
            ids.text(item_id),
            units,
            money.text(cost, digits),
            UNSET if decision.tax is None else money.text(tax, digits),
        )
        for item_id, (units, cost, tax) in paid.items()
    ]
    shipping = sum(lines[item_id].postage for item_id in decision.shipping if item_id in lines)
    data.shipping_amount = money.text(shipping, digits)
    data.allocations = [
        RefundAllocation(ids.text(payment_id), money.text(amount, digits))
        for payment_id, amount in decision.allocations or ()
    ]


def _stock_commit(
    commit: str,
    shipment: str,
    reservation: str,
    order: str,
    seller: str,
    items: Callable[[], Iterable[tuple[Item, int]]],
) -> StockCommit:
    return StockCommit(commit, shipment, reservation, order, seller, _stock_items(items()))


def _stock_items(items: Iterable[tuple[Item, int]]) -> list[StockItem]:
    text = ids.text
    return [
        StockItem(
            text(item.item_id),
            text(item.product_id),
            item.sku,
            quantity,
            UNSET if item.warehouse_id is None else text(item.warehouse_id),
        )
        for item, quantity in items
    ]


def order_placed(event: Event) -> Derived:
    """The order.created that a checkout.completed becomes: the same fields as sent, normalised.
    Twice is once: one id, one content.
    """
    created = event.fact
    assert isinstance(created, Created)
    digits = money.DIGITS[created.currency]
    items = [
        ItemData(
            ids.uuid(item.item_id),
            ids.uuid(item.product_id),
            ids.uuid(item.seller_id),
            item.sku,
            item.quantity,
            money.text(item.price, digits),
            UNSET if item.warehouse_id is None else ids.uuid(item.warehouse_id),
            UNSET if item.shipping is None else money.text(item.shipping, digits),
            _taxes_sent(item.taxes, digits),
            _taxes_sent(item.shipping_taxes, digits),
            UNSET if item.ship_by is None else times.text(item.ship_by),
            UNSET if item.deliver_by is None else times.text(item.deliver_by),
        )
        for item in created.items
    ]
    data = OrderCreated(
        ids.uuid(event.order_id),
        ids.uuid(created.user_id),
        created.currency,
        money.text(created.total, digits),
        items,
        UNSET if created.region is None else created.region,
        UNSET if created.discount is None else money.text(created.discount, digits),
        UNSET if created.prices_include_tax is None else created.prices_include_tax,
        UNSET if created.cart_id is None else ids.uuid(created.cart_id),
        UNSET if created.cart_created_at is None else times.text(created.cart_created_at),
        UNSET if created.live_from is None else times.text(created.live_from),
        UNSET if created.refunded_amount is None else money.text(created.refunded_amount, digits),
    )
    return Derived(CREATED, CREATED, f"{CREATED}:{ids.text(event.order_id)}", data)


def headers_of_placed(event: Event) -> list[tuple[str, bytes]]:
    """The headers of an order.created that a checkout.completed becomes: it names the checkout."""
    created = event.fact
    assert isinstance(created, Created)
    assert created.checkout_id is not None
    return [*headers_of(event), ("ce_checkoutid", ids.text(created.checkout_id).encode())]


def _taxes_sent(taxes: Taxes | None, digits: int) -> list[TaxData] | UnsetType:
    return UNSET if taxes is None else [TaxData(code, money.text(amount, digits)) for code, amount in taxes]


def fresh_suborders(created: Created) -> list[Suborder]:
    """Suborders by seller id, as ordered: everything live and pending."""
    by_seller: dict[bytes, Suborder] = {}
    for line in fresh_lines(created):
        known = by_seller.get(line.seller_id)
        if known is None:
            known = by_seller[line.seller_id] = Suborder(line.seller_id)
        known.add(line)
    return [by_seller[seller_id] for seller_id in sorted(by_seller)]


_encode = msgspec.json.Encoder().encode
_SPEC = ("ce_specversion", b"1.0")
_SOURCE_HEADER = ("ce_source", SOURCE)
_HISTORY_HEADER = (("ce_history", b"true"),)
_CONTENT = ("content-type", b"application/json")
_PUBLISHED = (*DATA, CREATED, "refund.decided", "deadline.passed")
_AROUND_ID = {
    name: (
        (_SPEC, ("ce_type", name.encode()), _SOURCE_HEADER),
        (("ce_dataschema", f"urn:orders:{name}/v{VERSION}".encode()), _CONTENT),
    )
    for name in _PUBLISHED
}
"""Type -> its headers before and after ce_id."""


def headers_of(event: Event) -> list[tuple[str, bytes]]:
    """The headers that all effects of one event share: when it happened, what caused them, its trace."""
    shared = [("ce_time", times.text(event.time).encode()), ("ce_causeid", event.id.encode())]
    if event.traceparent is not None:
        trace = event.traceparent.encode()
        shared += [("ce_traceparent", trace), ("traceparent", trace)]
    return shared


def encode(
    effect: Derived, order_id: bytes, shared: list[tuple[str, bytes]]
) -> tuple[bytes, list[tuple[str, bytes]]]:
    """-> (value, headers) of a derived event, CloudEvents in the binary Kafka binding.
    `shared`: headers_of its event.
    """
    return encode_data(effect), attributes(effect, order_id, shared)


def encode_data(effect: Derived) -> bytes:
    """The value alone."""
    data = effect.made
    return _encode(data if isinstance(data, Struct) else data())


def attributes(effect: Derived, order_id: bytes, shared: list[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """The headers alone."""
    before, after = _AROUND_ID[effect.type]
    ce_id = ids.uuid5_text(order_id, effect.ce_name).encode()
    headers = [*before, ("ce_id", ce_id), *after, *shared]
    if effect.history:
        headers += _HISTORY_HEADER
    return headers


_OF_REFUNDS = (DeadlineKind.REFUND, DeadlineKind.REFUND_RETRY)


def deadline_passed(due: Due, order_id: bytes) -> tuple[bytes, list[tuple[str, bytes]]]:
    """-> (value, headers) of the record for orders.decisions that says so.
    No event caused it; it has the time at which it passed.
    """
    subject = None if due.subject is None else ids.uuid(due.subject)
    data = DeadlinePassed(ids.uuid(order_id), due.what.text, due.attempt, due.final)
    if due.what in _OF_REFUNDS:
        data.refund_id = UNSET if subject is None else subject
    elif due.what is DeadlineKind.RETURN:
        data.return_id = UNSET if subject is None else subject
    else:
        data.seller_id = UNSET if subject is None else subject
    which = str(due.attempt)
    if due.due is not None:
        data.due = which = times.text(due.due)
    name = f"deadline.passed:{data.deadline}:{subject or ''}:{which}"
    at = ("ce_time", times.text(due.at * 1000).encode())
    return encode(Derived(DECISIONS, "deadline.passed", name, data), order_id, [at])


def normalised(late: LateRefusal, order_id: bytes) -> bytes:
    """A waiting fact as JSON, {"type", "time", "data"}: the value of its dead letter."""
    data = to_event_data(late.fact, order_id)
    return _encode({"type": late.type, "time": times.text(late.fact.time), "data": data})
