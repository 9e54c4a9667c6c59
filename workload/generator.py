"""Synthetic orders as events: what a marketplace really sends, late, twice and broken where it is asked for.

Nothing here looks at a clock or at the machine's randomness: the same seed gives the same bytes.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from random import Random
from typing import Any, Final, NamedTuple
from uuid import UUID, uuid5

from contracts import money
from contracts.cloudevents import SourceEvent, binary, rfc3339, structured
from workload import poison

SOURCE: Final = "/generator"
EPOCH_US: Final = 1_767_225_600_000_000
"""When the first order is placed: 2026-01-01T00:00:00Z."""

ORDER_INTERVAL_US: Final = 300 * 1_000_000
"""Orders are placed about every five minutes, so that orders in all stages of their
lives lie beside each other.
"""

WINDOW: Final = 2000
"""A displaced or repeated event comes up to so many events later."""

_SECOND: Final = 1_000_000
_HOUR: Final = 3600 * _SECOND
_DAY: Final = 24 * _HOUR
_CURRENCIES: Final = (("EUR", 50), ("USD", 20), ("BRL", 15), ("JPY", 10), ("BHD", 3), ("KWD", 2))
_REGIONS: Final = ("", "BY", "BE", "SP", "RJ", "MG", "NRW", "HH")
_TAXES: Final[dict[str, tuple[bool, tuple[tuple[str, int], ...], bool]]] = {
    "EUR": (True, (("VAT", 2000),), True),
    "USD": (False, (("US-NY", 400), ("US-NY-NYC", 450), ("US-NY-MCTD", 38)), False),
    "BRL": (True, (("ICMS", 1800), ("IPI", 500)), False),
    "JPY": (True, (("JCT", 1000),), True),
    "BHD": (False, (("VAT", 1000),), True),
    "KWD": (False, (("MUNICIPAL", 125), ("SERVICE", 250)), True),
}
"""As a country of the currency has them: whether prices include them, codes with their rates (1/10,000), and
whether shipping is taxed.
"""
_CARRIERS: Final = ("Alba Post", "Borealis", "Corvo", "Danube Freight")
_ID_FIELDS: Final = frozenset(
    (
        *("order_id", "user_id", "item_id", "product_id", "seller_id", "warehouse_id"),
        *("payment_id", "reservation_id", "shipment_id", "return_id", "grant_id"),
    )
)


class Shares(NamedTuple):
    """Shares of the stream that are disturbed, each from 0 to 1."""

    duplicates: float = 0.02
    """Events that come once more, later; some as a new event with the same content."""

    shuffle: float = 0.05
    """Events that come later than those behind them."""

    poison: float = 0.0
    """Records beside the valid ones that have to be refused."""


class _Having(NamedTuple):
    """Shares of orders, 0 to 1, as in events()."""

    taxed: float
    promised: float
    granted: float
    taken_over: float


class _Draft(NamedTuple):
    time_us: int
    topic: str
    data: dict[str, Any]


@dataclass(slots=True)
class _Line:
    """One line of an order. `free`: units that no parcel, rejection or release has taken yet."""

    data: dict[str, Any]
    seller: str
    quantity: int
    free: int


def events(
    orders: int,
    seed: int = 0,
    shares: Shares | None = None,
    taxed: float = 0.4,
    promised: float = 0.3,
    granted: float = 0.06,
    taken_over: float = 0.1,
) -> Iterator[SourceEvent]:
    """The events of so many orders, roughly in the order of their times.
    Memory holds the orders that are still open, not all. `taxed`, `promised`, `granted`, `taken_over`: the
    shares of orders with taxes, of those whose sellers say until when they ship and deliver, of those with a
    refund.granted, of those that another system handled before, 0 to 1.

    The orders are the same whatever the shares: those only repeat, displace or add records.
    """
    shares = shares or Shares()
    drafts = _drafts(orders, seed, _Having(taxed, promised, granted, taken_over))
    disturbed = _disturb(_encoded(drafts, seed), Random(f"{seed}:disturb"), shares)
    return poison.sprinkle(disturbed, Random(f"{seed}:poison"), shares.poison) if shares.poison else disturbed


def _disturb(
    events: Iterator[tuple[SourceEvent, _Draft, str]], rng: Random, shares: Shares
) -> Iterator[SourceEvent]:
    held: list[tuple[int, int, SourceEvent]] = []
    serial = 0
    for place, (event, draft, order_id) in enumerate(events):
        position = place + rng.randrange(1, WINDOW) if rng.random() < shares.shuffle else place
        heapq.heappush(held, (position, serial, event))
        serial += 1
        if rng.random() < shares.duplicates:
            again = event
            # A scan's time is part of what it is, and a promise's, so only others can come again as a
            # later event with the same content.
            if rng.random() < 0.3 and draft.topic not in ("shipment.updated", "promise.updated"):
                later = draft._replace(time_us=draft.time_us + rng.randrange(1, 3600) * _SECOND)
                again = _encode(later, order_id, rng)
            heapq.heappush(held, (position + rng.randrange(1, WINDOW), serial, again))
            serial += 1
        while held and held[0][0] <= place:
            yield heapq.heappop(held)[2]
    while held:
        yield heapq.heappop(held)[2]


def _encoded(drafts: Iterator[tuple[_Draft, str]], seed: int) -> Iterator[tuple[SourceEvent, _Draft, str]]:
    rng = Random(f"{seed}:wire")
    for draft, order_id in drafts:
        yield _encode(draft, order_id, rng), draft, order_id


def _drafts(orders: int, seed: int, having: _Having) -> Iterator[tuple[_Draft, str]]:
    """Everything that happens, in the order of its times."""
    rng = Random(f"{seed}:orders")
    world = _World(rng, orders, having)
    held: list[tuple[int, int, _Draft, str]] = []
    serial = 0
    start = EPOCH_US
    for _ in range(orders):
        start += rng.randrange(ORDER_INTERVAL_US * 2)
        order_id = _uuid(rng)
        for draft in _Life(rng, world, order_id, start).drafts:
            heapq.heappush(held, (draft.time_us, serial, draft, order_id))
            serial += 1
        # No later order has an event before its own start.
        while held and held[0][0] < start:
            _, _, draft, whose = heapq.heappop(held)
            yield draft, whose
    while held:
        _, _, draft, whose = heapq.heappop(held)
        yield draft, whose


def _encode(draft: _Draft, order_id: str, rng: Random) -> SourceEvent:
    data = draft.data
    style = rng.random()
    if style < 0.06:  # upstreams write ids as they like
        data = _restyled(data, str.upper if style < 0.03 else _without_dashes)
    attributes = {
        "specversion": "1.0",
        "id": _uuid(rng),
        "source": SOURCE,
        "type": draft.topic,
        "time": rfc3339(draft.time_us),
    }
    chance = rng.random()
    if chance < 0.1:
        attributes["dataschema"] = f"urn:orders:{draft.topic}/v1"
    elif chance < 0.2:
        attributes["traceparent"] = f"00-{rng.getrandbits(128) | 1:032x}-{rng.getrandbits(64) | 1:016x}-01"
    key: bytes | None = order_id.encode()
    chance = rng.random()
    if chance < 0.03:  # an upstream that doesn't key by order
        key = (
            (data.get("user_id") or data.get("seller_id") or order_id.upper()).encode()
            if chance < 0.025
            else None
        )
    headers, value = (structured if rng.random() < 0.05 else binary)(attributes, data)
    return SourceEvent(draft.topic, key, value, headers, draft.time_us)


class _World:
    """The buyers and sellers."""

    def __init__(self, rng: Random, orders: int, having: _Having) -> None:
        self.having = having
        self.users = [_uuid(rng) for _ in range(max(5, min(orders // 3, 50_000)))]
        self.sellers = [_uuid(rng) for _ in range(60)]
        self.warehouses = [_uuid(rng) for _ in range(8)]
        self.products = [_uuid(rng) for _ in range(500)]


class _Life:
    """One order from its placing to its end; `drafts` is what upstream services tell about it."""

    def __init__(self, rng: Random, world: _World, order_id: str, start: int) -> None:
        self.rng = rng
        self.world = world
        self.order_id = order_id
        self.namespace = UUID(order_id)
        self.drafts: list[_Draft] = []
        self.currency = rng.choices([name for name, _ in _CURRENCIES], [weight for _, weight in _CURRENCIES])[
            0
        ]
        self.digits = money.DIGITS[self.currency]
        self.lines: list[_Line] = []
        self.total = self._create(start)
        self._answer_stock(start)
        paid_at = self._pay(start)
        self._cancel(start)
        for seller in self._sellers():
            self._ship(seller, paid_at)
        self._grant(paid_at)
        self._take_over()

    def _tell(self, time_us: int, topic: str, **data: Any) -> None:
        fields = {
            "order_id": self.order_id,
            **{name: value for name, value in data.items() if value is not None},
        }
        self.drafts.append(_Draft(time_us, topic, fields))

    def _money(self, amount: int) -> str:
        return money.text(amount, self.digits)

    def _amount(self, low: float, high: float) -> int:
        """An amount between so many major units (in euros' size), in minor units of the order's currency."""
        unit = 100 if self.digits == 0 else 1  # a yen is worth about a cent
        return int(self.rng.uniform(low, high) * unit * 10**self.digits)

    def _after(self, start: int, low: int, high: int) -> int:
        return start + self.rng.randrange(low, high)

    def _sellers(self) -> list[str]:
        return list(dict.fromkeys(line.seller for line in self.lines))

    def _create(self, start: int) -> int:
        rng = self.rng
        goods = shipping = 0
        for seller in rng.sample(self.world.sellers, rng.choices((1, 2, 3, 4), (62, 26, 9, 3))[0]):
            for _ in range(rng.choices((1, 2, 3), (70, 22, 8))[0]):
                quantity = rng.choices((1, 2, 3, 6), (74, 16, 7, 3))[0]
                price, postage = self._amount(2, 200), self._amount(0, 15) if rng.random() < 0.7 else None
                product = rng.randrange(len(self.world.products))
                item: dict[str, Any] = {
                    "item_id": _uuid(rng),
                    "product_id": self.world.products[product],
                    "seller_id": seller,
                    "sku": f"SKU-{product:05d}",
                    "quantity": quantity,
                    "price": self._money(price),
                }
                if postage is not None:
                    item["shipping_amount"] = self._money(postage)
                if rng.random() < 0.5:
                    item["warehouse_id"] = rng.choice(self.world.warehouses)
                goods += price * quantity
                shipping += postage or 0
                self.lines.append(_Line(item, seller, quantity, quantity))
        discount = rng.randrange(goods // 4 + 1) if rng.random() < 0.3 else 0
        included, tax = self._tax(discount)
        total = goods + shipping - discount + (0 if included else tax)
        promises = self._promise(start)
        self._tell(
            start,
            "order.created",
            user_id=rng.choice(self.world.users),
            region=rng.choice(_REGIONS) or None,
            currency=self.currency,
            total_amount=self._money(total),
            discount_amount=self._money(discount) if discount else None,
            prices_include_tax=included,
            items=[line.data for line in self.lines],
            **self._cart(start),
        )
        for at, promise in promises:
            self._tell(at, "promise.updated", **promise)
        return total

    def _cart(self, start: int) -> dict[str, str]:
        """Of half of the orders the cart that the customer began up to a day before."""
        rng = Random(f"{self.order_id}:cart")
        if rng.random() < 0.5:
            return {}
        return {"cart_id": _uuid(rng), "cart_created_at": rfc3339(start - rng.randrange(86_400_000_000))}

    def _promise(self, start: int) -> list[tuple[int, dict[str, Any]]]:
        """Let the sellers of some orders say until when they ship and deliver their lines: soon enough for
        some to be late. Return (when, what) of what some of them promise anew.
        """
        rng = Random(f"{self.order_id}:promise")
        if rng.random() >= self.world.having.promised:
            return []
        updates: list[tuple[int, dict[str, Any]]] = []
        for line in self.lines:
            line.data["ship_by"] = rfc3339(start + rng.randrange(_HOUR, 3 * _DAY))
            if rng.random() < 0.7:
                line.data["deliver_by"] = rfc3339(start + rng.randrange(2 * _DAY, 9 * _DAY))
        for seller in self._sellers():
            at = start
            while rng.random() < 0.2:
                at += rng.randrange(_HOUR, 2 * _DAY)
                promise = {"seller_id": seller, "ship_by": rfc3339(at + rng.randrange(_HOUR, 3 * _DAY))}
                if rng.random() < 0.5:
                    promise["deliver_by"] = rfc3339(at + rng.randrange(3 * _DAY, 9 * _DAY))
                updates.append((at, promise))
        return updates

    def _tax(self, discount: int) -> tuple[bool | None, int]:
        """Put taxes on the lines of some orders. Return whether prices include them (None: there are none),
        and all of them together.
        """
        if Random(f"{self.order_id}:tax").random() >= self.world.having.taxed:
            return None, 0
        included, rates, on_shipping = _TAXES[self.currency]
        by_id = sorted((line.data for line in self.lines), key=lambda item: str(item["item_id"]))
        prices = [self._minor(item["price"]) * item["quantity"] for item in by_id]
        whole = 0
        for item, price, share in zip(by_id, prices, money.allocate(discount, prices), strict=True):
            bases = {"taxes": price - share}
            if on_shipping and "shipping_amount" in item:
                bases["shipping_taxes"] = self._minor(item["shipping_amount"])
            for name, base in bases.items():
                over = 10_000 + sum(rate for _, rate in rates) if included else 10_000
                amounts = [base * rate // over for _, rate in rates]
                whole += sum(amounts)
                item[name] = [
                    {"code": code, "amount": self._money(amount)}
                    for (code, _), amount in zip(rates, amounts, strict=True)
                ]
        return included, whole

    def _take_over(self) -> None:
        """Let another system have handled some orders until a time: its reservations have ids of its own, and
        now and then it says what it paid back.
        """
        rng = Random(f"{self.order_id}:taken over")
        if rng.random() >= self.world.having.taken_over:
            return
        first, last = self.drafts[0].time_us, max(draft.time_us for draft in self.drafts)
        live_from = rng.randrange(first - _HOUR, last + _DAY)
        self.drafts[0].data["live_from"] = rfc3339(live_from)
        if rng.random() < 0.3:
            amount = rng.choice((0, self.total // 3, self.total))
            self.drafts[0].data["refunded_amount"] = self._money(amount)
        for draft in self.drafts:
            if "reservation_id" in draft.data and draft.time_us < live_from:
                draft.data["reservation_id"] = str(uuid5(self.namespace, f"theirs:{draft.data['seller_id']}"))

    def _minor(self, text: str) -> int:
        return money.parse_field(text, self.digits, "")

    def _answer_stock(self, start: int) -> None:
        rng = self.rng
        for seller in self._sellers():
            at = self._after(start, _SECOND, 120 * _SECOND)
            if rng.random() < 0.05:
                self._take_stock("stock.rejected", at, seller, reason="out_of_stock")
            elif rng.random() < 0.9:
                self._tell(at, "stock.reserved", seller_id=seller, reservation_id=self._reservation(seller))

    def _take_stock(self, topic: str, at: int, seller: str, reason: str) -> None:
        """Some or all of a seller's units are not to be had."""
        mine = [line for line in self.lines if line.seller == seller]
        items: list[dict[str, Any]] | None = None
        if sum(line.quantity for line in mine) > 1 and self.rng.random() < 0.5:
            line = self.rng.choice(mine)
            quantity = self.rng.randint(1, line.quantity)
            line.free = max(0, line.free - quantity)
            items = [{"item_id": line.data["item_id"], "quantity": quantity}]
        else:
            for line in mine:
                line.free = 0
        self._tell(
            at, topic, seller_id=seller, reservation_id=self._reservation(seller), reason=reason, items=items
        )

    def _reservation(self, seller: str) -> str:
        return str(uuid5(self.namespace, f"reservation:{seller}"))

    def _pay(self, start: int) -> int:
        rng = self.rng
        at = self._after(start, 30 * _SECOND, 6 * _HOUR)
        if rng.random() < 0.05:
            self._tell(at, "payment.failed", payment_id=_uuid(rng), reason="card_declined")
            at = self._after(at, 60 * _SECOND, 2 * _HOUR)
        outcome = rng.random()
        if outcome < 0.02 or self.total == 0:
            return at  # never paid
        due = self.total
        if outcome < 0.04:
            due = max(1, due - self._amount(1, 20))
        elif outcome < 0.06:
            due += self._amount(1, 20)
        parts = 1 if outcome < 0.86 else rng.randint(2, 3)
        for part in range(parts):
            amount = due if part == parts - 1 else rng.randrange(1, max(2, due - parts))
            due -= amount
            if amount > 0:
                method = rng.choice(("card", "transfer", "voucher"))
                self._tell(
                    at,
                    "order.paid",
                    payment_id=_uuid(rng),
                    amount=self._money(amount),
                    currency=self.currency,
                    method=method,
                )
            if part < parts - 1:
                at = self._after(at, 60 * _SECOND, 3 * _HOUR)
        return at

    def _cancel(self, start: int) -> None:
        rng = self.rng
        if rng.random() >= 0.07:
            return
        at = self._after(start, 60 * _SECOND, 8 * _HOUR)
        sellers = self._sellers()
        whom = rng.choice(sellers) if rng.random() < 0.5 else None
        self._tell(at, "order.cancel_requested", reason="changed_my_mind", seller_id=whom)
        for seller in [whom] if whom else sellers:
            if rng.random() < 0.85:  # else the parcel was faster
                self._take_stock(
                    "stock.released", self._after(at, _SECOND, 60 * _SECOND), seller, reason="cancelled"
                )

    def _ship(self, seller: str, paid_at: int) -> None:
        rng = self.rng
        open_lines = [line for line in self.lines if line.seller == seller and line.free]
        if not open_lines or rng.random() < 0.05:
            return
        complete = all(line.free == line.quantity for line in self.lines if line.seller == seller)
        if complete and rng.random() < 0.6:
            self._parcel(seller, None, paid_at)
            return
        parcels: list[list[dict[str, Any]]] = [[], []]
        for line in open_lines:
            first = rng.randint(0, line.free)
            for parcel, quantity in zip(parcels, (first, line.free - first), strict=True):
                if quantity:
                    parcel.append({"item_id": line.data["item_id"], "quantity": quantity})
        for parcel in parcels:
            if parcel and rng.random() < 0.97:
                self._parcel(seller, parcel, paid_at)

    def _parcel(self, seller: str, items: list[dict[str, Any]] | None, paid_at: int) -> None:
        rng = self.rng
        shipment = _uuid(rng)
        # Now and then a parcel leaves before its payment is known.
        at = self._after(paid_at, -2 * _HOUR, 2 * _DAY)
        at = max(at, self.drafts[0].time_us + _HOUR)
        carrier, tracking = rng.choice(_CARRIERS), f"{rng.choice('ABCD')}{rng.randrange(10**12):012d}"
        promised = rfc3339(at + 5 * _DAY)
        warehouse = rng.choice(self.world.warehouses) if rng.random() < 0.5 else None

        def scan(status: str, time_us: int, tracked: bool = True) -> None:
            self._tell(
                time_us,
                "shipment.updated",
                shipment_id=shipment,
                seller_id=seller,
                status=status,
                warehouse_id=warehouse,
                carrier=carrier if tracked else None,
                tracking_number=tracking if tracked else None,
                estimated_delivery=(promised[:10] if rng.random() < 0.5 else promised) if tracked else None,
                location=rng.choice(("depot", "hub north", "hub south")) if tracked else None,
                items=items,
            )

        if rng.random() < 0.4:
            scan("pending", at - 30 * 60 * _SECOND, tracked=rng.random() < 0.5)
        for _ in range(rng.randint(1, 2)):
            scan("in_transit", at)
            at = self._after(at, 4 * _HOUR, 30 * _HOUR)
        fate = rng.random()
        if fate < 0.93:
            scan("delivered", at)
            self._send_back(seller, items, at)
        elif fate < 0.96:
            scan("returned", at)

    def _send_back(self, seller: str, items: list[dict[str, Any]] | None, delivered_at: int) -> None:
        rng = self.rng
        if rng.random() >= 0.12:
            return
        if items is None:
            line = rng.choice([line for line in self.lines if line.seller == seller])
            item_id, most = line.data["item_id"], line.quantity
        else:
            chosen = rng.choice(items)
            item_id, most = chosen["item_id"], chosen["quantity"]
        quantity = rng.randint(1, most)
        at = self._after(delivered_at, _DAY, 4 * _DAY)
        data: dict[str, Any] = {
            "return_id": _uuid(rng),
            "item_id": item_id,
            "quantity": quantity,
            "reason": "too_small",
        }
        self._tell(at, "order.returned", status="requested", **data)
        outcome = rng.random()
        if outcome < 0.9:
            at = self._after(at, _DAY, 5 * _DAY)
            processed = outcome < 0.75
            restock = False if processed and rng.random() < 0.2 else None
            processed_at = rfc3339(at - _HOUR) if processed and rng.random() < 0.5 else None
            status = "processed" if processed else "rejected"
            self._tell(
                at, "order.returned", status=status, processed_at=processed_at, restock=restock, **data
            )

    def _grant(self, paid_at: int) -> None:
        """Goodwill: mostly a small part of the total, now and then all of it, for one or two reasons."""
        rng = Random(f"{self.order_id}:grant")
        if rng.random() >= self.world.having.granted or not self.total:
            return
        for _ in range(rng.choice((1, 1, 1, 2))):
            line = rng.choice(self.lines)
            named = rng.randrange(4)
            part = self.total if rng.random() < 0.1 else self.total * rng.randint(2, 30) // 100
            self._tell(
                paid_at + rng.randrange(12 * _DAY),
                "refund.granted",
                grant_id=_uuid(rng),
                amount=self._money(max(1, part)),
                currency=self.currency,
                reason=rng.choice(("delivered_late", "damaged_box", "complaint")),
                seller_id=line.seller if named & 1 else None,
                item_id=line.data["item_id"] if named & 2 else None,
            )


def _uuid(rng: Random) -> str:
    """A random UUID (version 4) as canonical text."""
    digits = f"{rng.getrandbits(128):032x}"
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"


def _without_dashes(text: str) -> str:
    return text.replace("-", "")


def _restyled(data: dict[str, Any], write: Callable[[str], str]) -> dict[str, Any]:
    written: dict[str, Any] = {}
    for name, value in data.items():
        if name in _ID_FIELDS:
            written[name] = write(value)
        elif name == "items":
            written[name] = [_restyled(item, write) for item in value]
        else:
            written[name] = value
    return written


_RETURNED: Final = 20  # of 256: 0.08 returns an order
_TWO_LINES: Final = 51  # of 256: 1.2 lines an order
_WORKLOAD_INTERVAL_US: Final = 20_000


def workload(orders: int, seed: int = 0, spread: int = 50_000) -> Iterator[SourceEvent]:
    """The benchmark's events: per order 1 created (1.2 lines), 1 paid, 2 scans, 0.08 returns, in
    euros, all valid and each once.

    `spread` orders lie between an order's events, so that a batch rarely meets an order twice.
    Nothing is kept in memory.
    """
    headers = {
        topic: _workload_headers(topic)
        for topic in ("order.created", "order.paid", "shipment.updated", "order.returned")
    }
    salt = seed.to_bytes(8, "big", signed=True)
    for place in range(orders + 4 * spread if orders else 0):
        for stage in range(5):
            n = place - stage * spread
            if not 0 <= n < orders:
                continue
            bits = blake2b(n.to_bytes(8, "big"), digest_size=64, salt=salt).hexdigest()
            if stage == 4 and int(bits[126:], 16) >= _RETURNED:
                continue
            topic, value = _STAGES[stage](bits)
            time_us = EPOCH_US + n * _WORKLOAD_INTERVAL_US + stage * _HOUR
            seconds, fraction = divmod(time_us, _SECOND)
            head, source, type_, content = headers[topic]
            event_id = f"{stage}{bits[:31]}".encode()
            time = _clock(seconds) + b".%06dZ" % fraction
            key = _dashed(bits).encode()
            yield SourceEvent(
                topic,
                key,
                value.encode(),
                [head, ("ce_id", event_id), source, type_, ("ce_time", time), content],
                time_us,
            )


def _workload_headers(topic: str) -> tuple[tuple[str, bytes], ...]:
    return (
        ("ce_specversion", b"1.0"),
        ("ce_source", b"/workload"),
        ("ce_type", topic.encode()),
        ("content-type", b"application/json"),
    )


_latest_second: tuple[int, bytes] = (-1, b"")


def _clock(seconds: int) -> bytes:
    # Neighbours share their second, and making its text costs more than all the rest of an event.
    global _latest_second
    if _latest_second[0] != seconds:
        _latest_second = seconds, rfc3339(seconds * _SECOND)[:19].encode()
    return _latest_second[1]


def _dashed(bits: str) -> str:
    return f"{bits[:8]}-{bits[8:12]}-{bits[12:16]}-{bits[16:20]}-{bits[20:32]}"


@cache
def _workload_id(kind: str, number: int) -> str:
    # Kept, as an id is used again and again; not made beforehand, as most who import this want none.
    return str(uuid5(UUID(int=0), f"{kind} {number}"))


def _price(bits: str) -> int:
    return int(bits[100:104], 16) + 100


def _workload_created(bits: str) -> tuple[str, str]:
    price = _price(bits)
    seller = _workload_id("seller", int(bits[104:108], 16) % 1000)
    user = _workload_id("user", int(bits[108:113], 16) % 20_000)
    product = f"00000000-0000-4000-8000-00000000{bits[113:117]}"
    paid = f"{price // 100}.{price % 100:02d}"
    goods = f'"product_id":"{product}","seller_id":"{seller}","sku":"SKU-{bits[113:117]}"'
    item = f'{goods},"quantity":1,"price":"{paid}","shipping_amount":"4.90"}}'
    items = f'{{"item_id":"{_dashed(bits[32:])}",{item}'
    total = price + 490
    if int(bits[124:126], 16) < _TWO_LINES:
        items = f'{items},{{"item_id":"{_dashed(bits[64:])}",{item}'
        total *= 2
    return "order.created", (
        f'{{"order_id":"{_dashed(bits)}","user_id":"{user}","region":"BY","currency":"EUR",'
        f'"total_amount":"{total // 100}.{total % 100:02d}","items":[{items}]}}'
    )


def _workload_paid(bits: str) -> tuple[str, str]:
    total = (_price(bits) + 490) * (2 if int(bits[124:126], 16) < _TWO_LINES else 1)
    return "order.paid", (
        f'{{"order_id":"{_dashed(bits)}","payment_id":"{_dashed(bits[8:])}",'
        f'"amount":"{total // 100}.{total % 100:02d}","currency":"EUR","method":"card"}}'
    )


def _workload_scan(status: str) -> Callable[[str], tuple[str, str]]:
    def scan(bits: str) -> tuple[str, str]:
        seller = _workload_id("seller", int(bits[104:108], 16) % 1000)
        return "shipment.updated", (
            f'{{"order_id":"{_dashed(bits)}","shipment_id":"{_dashed(bits[16:])}","seller_id":"{seller}","status":"{status}",'
            f'"carrier":"Corvo","tracking_number":"W{bits[64:78]}","estimated_delivery":"2026-02-01"}}'
        )

    return scan


def _workload_returned(bits: str) -> tuple[str, str]:
    return "order.returned", (
        f'{{"order_id":"{_dashed(bits)}","return_id":"{_dashed(bits[24:])}","item_id":"{_dashed(bits[32:])}",'
        f'"quantity":1,"reason":"too_small","status":"processed"}}'
    )


_STAGES: Final = (
    _workload_created,
    _workload_paid,
    _workload_scan("in_transit"),
    _workload_scan("delivered"),
    _workload_returned,
)
