"""The services around the pipeline, simulated: inventory, payment, shipping, and customers.
Pure: command in, messages out, later.

Each remembers what it answered, as a real one does: the same command again gets the same
answer. What it answers depends on the seed and the command's id alone, and on whether stock is
left; whether it answers at all, also on how often it was asked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from decimal import ROUND_DOWN, Decimal
from functools import partial
from math import ceil
from random import Random
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from workload.stock import INITIAL, Stock

Data = dict[str, Any]

FAILURES = 2
"""How often a refund of `failed_refunds` fails."""


@dataclass(slots=True)
class Message:
    """An event to send: its type is its topic; `key` is its order's id (of a checkout, the checkout's).

    `time` and `id` are set when it is first sent: sent again, it is the same event.
    """

    type: str
    key: str
    data: Data
    time: str | None = None
    id: str = ""


class Later(NamedTuple):
    """An action that is due `seconds` from now."""

    seconds: float
    act: Callable[[], Iterable[Message | Later]]


Steps = Iterable[Message | Later]


def _only(message: Message) -> Steps:
    return [message]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """Shares of 0 to 1. `silence`: commands that are overlooked; `refusals`: answered with no; `duplicates`:
    answers sent twice. `cancellations` and `returns`: of orders and delivered lines; `grants`: of delivered
    parcels. `unshipped`: sellers' parts that are never shipped. `taxed`: orders with tax, by turns on top of
    the prices and in them. `failed_refunds`: refunds that fail twice before they are paid. `delay`: the mean
    time of an answer, in seconds. `stock`: units of each sku in the beginning.
    """

    silence: float = 0.0
    refusals: float = 0.05
    duplicates: float = 0.0
    cancellations: float = 0.03
    returns: float = 0.1
    grants: float = 0.03
    delay: float = 0.2
    seed: int = 0
    unshipped: float = 0.0
    taxed: float = 0.5
    failed_refunds: float = 0.0
    stock: int = INITIAL

    def luck(self, *what: object) -> Random:
        """Return a random source that is the same for the same names in every run of this seed."""
        return Random(f"{self.seed}:{':'.join(map(str, what))}")


@dataclass(slots=True)
class Reservation:
    """Units by item: held, picked for a parcel, given back. `answers` are repeated when the command is."""

    held: dict[str, int] = field(default_factory=dict)
    picked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    answers: list[Message] = field(default_factory=list)

    def free(self, item_id: str) -> int:
        return self.held.get(item_id, 0) - self.picked[item_id]


class Inventory:
    """Reserves, gives back, and hands units out to parcels.
    Whether a cancellation beat the parcel is decided here and nowhere else.
    """

    def __init__(self, behaviour: Behaviour, stock: Stock | None = None) -> None:
        """`stock`: what there is to reserve; without it as much as anybody asks for."""
        self._behaviour = behaviour
        self._stock = stock or Stock()
        self._reservations: dict[str, Reservation] = {}
        self.unheard: set[str] = set()
        """Reservations that were asked back when nobody listened, and not since."""

    def held(self, reservation_id: str) -> int:
        """Units that this reservation holds and no parcel took."""
        reservation = self._reservations.get(reservation_id)
        return sum(map(reservation.free, reservation.held)) if reservation else 0

    def total(self) -> int:
        """Units that are reserved and no parcel took."""
        return sum(map(self.held, self._reservations))

    def reserve(self, command: Data) -> Steps:
        """stock.reserve: all of it, or a part, or nothing."""
        reservation = self._reservations.get(command["reservation_id"])
        if reservation is None:
            reservation = self._reservations[command["reservation_id"]] = Reservation()
            luck = self._behaviour.luck("stock", command["reservation_id"])
            quantities = {item["item_id"]: item["quantity"] for item in command["items"]}
            refused: dict[str, int] = {}
            if luck.random() < self._behaviour.refusals:
                first = sorted(quantities.items())[:1]
                refused = (
                    quantities
                    if luck.random() < 0.5
                    else {item: luck.randint(1, count) for item, count in first}
                )
            for item, count in quantities.items():
                wanted = count - refused.get(item, 0)
                reservation.held[item] = self._stock.take(item, wanted)
                if reservation.held[item] < wanted:
                    refused[item] = count - reservation.held[item]
            if refused:
                reservation.answers.append(_stock("stock.rejected", command, refused, "out_of_stock"))
            if refused != quantities:
                reservation.answers.append(_stock("stock.reserved", command))
        elif not reservation.answers:
            # Made by a label that came first.
            reservation.answers.append(_stock("stock.reserved", command))
        return reservation.answers

    def release(self, command: Data) -> Steps:
        """stock.release: what has not been picked comes back.
        A reservation never heard of is as good as given back.
        """
        self.unheard.discard(command["reservation_id"])
        reservation = self._reservations.get(command["reservation_id"])
        if reservation is None:
            reservation = self._reservations[command["reservation_id"]] = Reservation()
            quantities = {item["item_id"]: item["quantity"] for item in command["items"]}
        else:
            quantities = {
                item["item_id"]: min(item["quantity"], reservation.free(item["item_id"]))
                for item in command["items"]
            }
            quantities = {item: count for item, count in quantities.items() if count > 0}
            for item, count in quantities.items():
                self._stock.put_back(item, count)
        if quantities:
            for item, count in quantities.items():
                reservation.held[item] = reservation.held.get(item, count) - count
            reservation.answers.append(_stock("stock.released", command, quantities, "cancelled"))
        return [answer for answer in reservation.answers if answer.type == "stock.released"]

    def expect(self, label: Data) -> Steps:
        """A label asks for units: a reservation never heard of is made now; what isn't there is rejected."""
        reservation_id = _reservation(label)
        if reservation_id in self._reservations:
            return []
        reservation = self._reservations[reservation_id] = Reservation()
        quantities = {item["item_id"]: item["quantity"] for item in label["items"]}
        reservation.held = {item: self._stock.take(item, count) for item, count in quantities.items()}
        missing = {
            item: count - reservation.held[item]
            for item, count in quantities.items()
            if reservation.held[item] < count
        }
        if missing:
            command = {**label, "reservation_id": reservation_id}
            reservation.answers.append(_stock("stock.rejected", command, missing, "out_of_stock"))
            if missing != quantities:
                reservation.answers.append(_stock("stock.reserved", command))
        return reservation.answers

    def pick(self, reservation_id: str, items: dict[str, int]) -> dict[str, int]:
        """Take units for a parcel: at most those still held."""
        reservation = self._reservations[reservation_id]
        taken = {item: min(count, reservation.free(item)) for item, count in items.items()}
        taken = {item: count for item, count in taken.items() if count > 0}
        for item, count in taken.items():
            reservation.picked[item] += count
        return taken


class Payments:
    """Collects, and pays back to the payments that a refund names, each up to what it captured."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour
        self._left: dict[str, Decimal] = {}
        """Payment -> what it captured and isn't paid back."""
        self._refunds: dict[str, str | None] = {}
        """Refund -> why it can't be paid, None if it was: asked for again it is answered the same."""
        self.unpaid: set[str] = set()
        """Refunds of `failed_refunds` that failed and aren't paid yet."""
        self.unheard: set[str] = set()
        """Refunds that were asked for when nobody listened, and not since."""

    @property
    def waiting(self) -> set[str]:
        """Refunds that have to be asked for again."""
        return self.unpaid | self.unheard

    def initiate(self, command: Data) -> Steps:
        """payment.initiate: captured, or declined; a declined customer often has another card."""
        order_id, request = command["order_id"], command["payment_request_id"]
        luck = self._behaviour.luck("payment", request)
        if luck.random() >= self._behaviour.refusals:
            yield self._paid(command, f"{request}:1")
            return
        yield Message(
            "payment.failed",
            order_id,
            {"order_id": order_id, "payment_id": _id(f"{request}:1"), "reason": "card_declined"},
        )
        if luck.random() < 0.5:
            yield Later(self._behaviour.delay, lambda: [self._paid(command, f"{request}:2")])

    def refund(self, command: Data) -> Steps:
        """refund.request: paid back, or not; asked again after that it may be."""
        order_id, refund_id, attempt = command["order_id"], command["refund_id"], command.get("attempt", 1)
        self.unheard.discard(refund_id)
        data = {"order_id": order_id, "refund_id": refund_id}
        which = refund_id
        if attempt != 1:
            data["attempt"] = attempt
            which = f"{refund_id}:{attempt}"
        if which not in self._refunds:
            self._refunds[which] = self._pay_back(command, which)
        reason = self._refunds[which]
        yield (
            Message("refund.completed", order_id, data)
            if reason is None
            else Message("refund.failed", order_id, data | {"reason": reason})
        )

    def has_answered(self, command: Data) -> bool:
        """Whether this request was answered before: then nobody waits for what it is answered now."""
        attempt = command.get("attempt", 1)
        refund_id = command["refund_id"]
        return (refund_id if attempt == 1 else f"{refund_id}:{attempt}") in self._refunds

    def _pay_back(self, command: Data, which: str) -> str | None:
        """Pay back to the payments that the command names; why not, otherwise: then nothing is paid."""
        refund_id = command["refund_id"]
        if self._behaviour.luck("failed refund", refund_id).random() < self._behaviour.failed_refunds:
            if command.get("attempt", 1) <= FAILURES:
                self.unpaid.add(refund_id)
                return "account_closed"
            self.unpaid.discard(refund_id)
        elif self._behaviour.luck("refund", which).random() < self._behaviour.refusals:
            return "account_closed"
        parts = {part["payment_id"]: Decimal(part["amount"]) for part in command.get("allocations", ())}
        for payment_id, amount in parts.items():
            # One that isn't known here was captured before this service began.
            if amount > self._left.get(payment_id, amount):
                return "more_than_captured"
        for payment_id, amount in parts.items():
            if payment_id in self._left:
                self._left[payment_id] -= amount
        return None

    def _paid(self, command: Data, payment: str) -> Message:
        self._left.setdefault(_id(payment), Decimal(command["amount"]))
        data = {
            "payment_id": _id(payment),
            "amount": command["amount"],
            "currency": command["currency"],
            "method": "card",
        }
        return Message("order.paid", command["order_id"], {"order_id": command["order_id"], **data})


class Shipping:
    """Packs one or two parcels a label, carries them, and rarely brings one back."""

    def __init__(
        self,
        behaviour: Behaviour,
        inventory: Inventory,
        delivered: Callable[[str, str, dict[str, int]], Steps],
    ) -> None:
        """`delivered`: told (order_id, shipment_id, items) of every parcel that arrived."""
        self._behaviour = behaviour
        self._inventory = inventory
        self._delivered = delivered
        self._scans: dict[str, list[Message]] = {}

    def label(self, command: Data) -> Steps:
        """shipping.label.create"""
        label = command["label_request_id"]
        if label in self._scans:
            yield from self._scans[label]
            return
        scans: list[Message] = []
        self._scans[label] = scans
        luck = self._behaviour.luck("label", label)
        items = {item["item_id"]: item["quantity"] for item in command["items"]}
        yield from self._inventory.expect(command)
        if self._behaviour.luck("unshipped", label).random() < self._behaviour.unshipped:
            return
        parcels = [items]
        if sum(items.values()) > 1 and luck.random() < 0.3:
            first = {item: count - count // 2 for item, count in items.items() if count - count // 2}
            rest = {item: count // 2 for item, count in items.items() if count // 2}
            parcels = [first, rest] if rest else [items]
        for n, parcel in enumerate(parcels):
            yield Later(
                luck.expovariate(1 / self._behaviour.delay) * (1 + n),
                partial(self._depart, command, n, parcel, scans),
            )

    def _depart(self, command: Data, n: int, items: dict[str, int], scans: list[Message]) -> Steps:
        taken = self._inventory.pick(_reservation(command), items)
        if not taken:
            return
        shipment_id = _id(f"{command['label_request_id']}:{n}")
        luck = self._behaviour.luck("parcel", shipment_id)
        scans.append(self._scan(command, shipment_id, taken, "in_transit"))
        yield scans[-1]
        back = luck.random() < self._behaviour.refusals / 5
        yield Later(
            luck.expovariate(1 / self._behaviour.delay),
            lambda: self._arrive(command, shipment_id, taken, scans, "returned" if back else "delivered"),
        )

    def _arrive(
        self, command: Data, shipment_id: str, items: dict[str, int], scans: list[Message], status: str
    ) -> Steps:
        scans.append(self._scan(command, shipment_id, items, status))
        yield scans[-1]
        if status == "delivered":
            yield from self._delivered(command["order_id"], shipment_id, items)

    @staticmethod
    def _scan(command: Data, shipment_id: str, items: dict[str, int], status: str) -> Message:
        data = {
            "shipment_id": shipment_id,
            "seller_id": command["seller_id"],
            "status": status,
            "carrier": "Corvo",
        }
        data |= {"tracking_number": f"S{shipment_id[:12].upper()}", "items": _items(items)}
        return Message("shipment.updated", command["order_id"], {"order_id": command["order_id"], **data})


class Customers:
    """Check out, sometimes cancel, and send some of it back. Some are granted a refund as goodwill."""

    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def checkouts(self, count: int) -> Iterator[tuple[Message, list[Later]]]:
        """`count` checkouts of one to three sellers, and what their customers do later."""
        for n in range(count):
            luck = self._behaviour.luck("checkout", n)
            checkout_id = _id(f"{self._behaviour.seed}:checkout:{n}")
            order_id = order_of(checkout_id)
            lines = [self._line(checkout_id, line, luck) for line in range(luck.choice((1, 1, 2, 3)))]
            goods = sum(Decimal(line["price"]) * line["quantity"] for line in lines)
            discount = (goods * luck.choice((0, 0, 0, 10)) / 100).quantize(Decimal("0.01"))
            total = goods + sum(Decimal(line["shipping_amount"]) for line in lines) - discount
            included = self._tax(lines, n)
            if included is False:
                total += sum(Decimal(tax["amount"]) for line in lines for tax in line["taxes"])
            data: Data = {
                "checkout_id": checkout_id,
                "cart_id": _id(f"{self._behaviour.seed}:cart:{n}"),
                "user_id": _id(f"user:{luck.randrange(count)}"),
                "region": luck.choice(("BE", "BY", "HH")),
                "currency": "EUR",
                "total_amount": str(total),
                "discount_amount": str(discount),
                "items": lines,
            }
            if included is not None:
                data["prices_include_tax"] = included
            later: list[Later] = []
            if luck.random() < self._behaviour.cancellations:
                cancel = Message(
                    "order.cancel_requested", order_id, {"order_id": order_id, "reason": "changed_my_mind"}
                )
                if luck.random() < 0.3:
                    cancel.data["seller_id"] = lines[0]["seller_id"]
                later.append(Later(luck.expovariate(1 / self._behaviour.delay) * 3, partial(_only, cancel)))
            yield Message("checkout.completed", checkout_id, data), later

    def delivered(self, order_id: str, shipment_id: str, items: dict[str, int]) -> Steps:
        """A parcel came; some of it goes back, and the returns desk says what becomes of it. Now and then
        customer service grants something.
        """
        luck = self._behaviour.luck("grant", shipment_id)
        if luck.random() < self._behaviour.grants:
            grant: Data = {
                "order_id": order_id,
                "grant_id": _id(f"grant:{shipment_id}"),
                "amount": f"{luck.randrange(50, 2_000) / 100:.2f}",
                "currency": "EUR",
                "reason": "damaged_box",
            }
            yield Later(
                luck.expovariate(1 / self._behaviour.delay),
                partial(_only, Message("refund.granted", order_id, grant)),
            )
        for item_id, count in items.items():
            luck = self._behaviour.luck("return", shipment_id, item_id)
            if luck.random() >= self._behaviour.returns:
                continue
            data: Data = {
                "order_id": order_id,
                "return_id": _id(f"{shipment_id}:{item_id}"),
                "item_id": item_id,
                "reason": "too_small",
            }
            data["quantity"] = luck.randint(1, count)
            verdict = "processed" if luck.random() >= self._behaviour.refusals else "rejected"
            yield Message("order.returned", order_id, data | {"status": "requested"})
            answer = Message(
                "order.returned", order_id, data | {"status": verdict, "restock": luck.random() < 0.8}
            )
            yield Later(luck.expovariate(1 / self._behaviour.delay), partial(_only, answer))

    def _tax(self, lines: list[Data], n: int) -> bool | None:
        """Put a tax on the lines of a share of the checkouts; whether it is in their prices, None without
        one.
        """
        taxed_before, taxed = (ceil(count * self._behaviour.taxed) for count in (n, n + 1))
        if taxed == taxed_before:
            return None
        included = taxed_before % 2 == 1
        for line in lines:
            share = Decimal(19) / (119 if included else 100)
            tax = (Decimal(line["price"]) * line["quantity"] * share).quantize(Decimal("0.01"), ROUND_DOWN)
            line["taxes"] = [{"code": "VAT", "amount": str(tax)}]
        return included

    @staticmethod
    def _line(checkout_id: str, n: int, luck: Random) -> Data:
        return {
            "item_id": _id(f"{checkout_id}:{n}"),
            "product_id": _id(f"product:{luck.randrange(500)}"),
            "seller_id": _id(f"seller:{luck.randrange(40)}"),
            "sku": f"SKU-{luck.randrange(500):03}",
            "quantity": luck.choice((1, 1, 1, 2, 3)),
            "price": f"{luck.randrange(100, 20_000) / 100:.2f}",
            "shipping_amount": luck.choice(("0.00", "4.90")),
        }


class SimulatedServices:
    """All simulated services together: they take commands and answer with messages."""

    def __init__(self, behaviour: Behaviour) -> None:
        self.behaviour = behaviour
        self.customers = Customers(behaviour)
        self.stock = Stock(behaviour.stock)
        self.inventory = Inventory(behaviour, self.stock)
        self.payments = payments = Payments(behaviour)
        shipping = Shipping(behaviour, self.inventory, self.customers.delivered)
        self.commands: dict[str, tuple[str, Callable[[Data], Steps]]] = {
            "stock.reserve": ("reservation_id", self.inventory.reserve),
            "stock.release": ("reservation_id", self.inventory.release),
            "payment.initiate": ("payment_request_id", payments.initiate),
            "refund.request": ("refund_id", payments.refund),
            "shipping.label.create": ("label_request_id", shipping.label),
        }
        """Command -> (field of its id, method that handles it)."""
        self.ignored = 0
        self._attempts: dict[tuple[str, str], int] = defaultdict(int)

    def handle(self, type_: str, data: Data) -> Steps:
        """Handle a command, and yield what follows from it: nothing if the service overlooks it this time."""
        field_, service = self.commands[type_]
        self._attempts[type_, data[field_]] += 1
        luck = self.behaviour.luck("silence", type_, data[field_], self._attempts[type_, data[field_]])
        if luck.random() < self.behaviour.silence:
            self.ignored += 1
            if type_ == "stock.release":
                self.inventory.unheard.add(data["reservation_id"])
            elif type_ == "refund.request" and not self.payments.has_answered(data):
                self.payments.unheard.add(data["refund_id"])
            return
        yield Later(luck.expovariate(1 / self.behaviour.delay), lambda: service(data))

    def reserved(self, order_id: str, seller_id: str) -> int:
        """Units that are still reserved for an order that ended, though the inventory heard of all that it
        was asked.
        """
        reservation = _reservation({"order_id": order_id, "seller_id": seller_id})
        return 0 if reservation in self.inventory.unheard else self.inventory.held(reservation)


def order_of(checkout_id: str) -> str:
    """The id of the order that a checkout becomes (docs/events.md)."""
    return str(uuid5(UUID(checkout_id), "order"))


def _stock(
    type_: str, command: Data, items: dict[str, int] | None = None, reason: str | None = None
) -> Message:
    data = {name: command[name] for name in ("order_id", "seller_id", "reservation_id")}
    if items is not None:
        data |= {"items": _items(items), "reason": reason}
    return Message(type_, command["order_id"], data)


def _reservation(command: Data) -> str:
    return str(uuid5(UUID(command["order_id"]), f"reservation:{command['seller_id']}"))


def _items(items: dict[str, int]) -> list[Data]:
    return [{"item_id": item_id, "quantity": count} for item_id, count in sorted(items.items())]


def _id(name: str) -> str:
    return str(uuid5(UUID(int=0), name))
