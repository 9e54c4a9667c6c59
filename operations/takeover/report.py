"""What a takeover comes to, as numbers: of its files, its orders, what they wait for, and what is odd."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from contracts import money

STATUSES: Final = ("pending", "confirmed", "shipped", "delivered", "returned", "closed")
"""Of orders; closed: none of its units is live."""
SHOWN: Final = 1000
"""Most orders, and lines, that are named one by one."""


class File(NamedTuple):
    """A file: lines (orders, where a row is an item), how many are refused and how many are left out."""

    path: str
    kind: str
    lines: int
    refused: int
    left_out: int
    ignored: list[str]


class Refused(NamedTuple):
    """A line that can't be taken in, and why."""

    file: str
    line: int
    reason: str
    detail: str


class Untold(NamedTuple):
    """An order of which units came back or were taken away, and that doesn't say what was paid back.
    `computed`: what that would be, in major units.
    """

    order_id: str
    file: str
    line: int
    computed: str
    currency: str


class Oddity(NamedTuple):
    """An order's anomaly."""

    order_id: str
    kind: str
    detail: str


@dataclass(slots=True)
class Waits:
    """What orders wait for. `overdue`: how many at once have waited too long."""

    orders: int = 0
    overdue: int = 0


@dataclass(slots=True)
class Money:
    """Of the orders of one currency, minor units. `refunded`: what the other system paid back, told or
    computed."""

    total: int = 0
    captured: int = 0
    refunded: int = 0


@dataclass(slots=True)
class Report:
    """What was read, and what it comes to. Of orders with a refused line nothing is counted."""

    live_from: str | None = None
    files: list[File] = field(default_factory=list)
    refused: list[Refused] = field(default_factory=list)
    """The first SHOWN."""
    refusals: int = 0
    orders: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    open: int = 0
    waits: dict[str, Waits] = field(default_factory=dict)
    """Deadline (domain.enums.DeadlineKind) -> orders."""
    money: dict[str, Money] = field(default_factory=dict)
    commands: Counter[str] = field(default_factory=Counter)
    """Type -> commands that would leave. None, or the takeover is refused."""
    notices: int = 0
    anomalies: Counter[str] = field(default_factory=Counter)
    oddities: list[Oddity] = field(default_factory=list)
    """The first SHOWN."""
    untold: list[Untold] = field(default_factory=list)
    """The first SHOWN."""
    refunds_untold: int = 0
    refunds_computed: bool = False
    """What was paid back is told as computed where it isn't told."""

    @property
    def ready(self) -> bool:
        """Whether it can be taken in."""
        asks = self.refunds_untold and not self.refunds_computed
        return not self.refusals and not self.commands and not asks and self.orders > 0

    def wait(self, what: str, overdue: bool) -> None:
        """An order waits for something."""
        waits = self.waits.setdefault(what, Waits())
        waits.orders += 1
        waits.overdue += overdue

    def document(self) -> dict[str, Any]:
        """The report as JSON."""
        statuses = {status: self.statuses[status] for status in STATUSES if self.statuses[status]}
        return {
            "ready": self.ready,
            "live_from": self.live_from,
            "files": [file._asdict() for file in self.files],
            "refused": self.refusals,
            "refusals": [each._asdict() for each in self.refused],
            "orders": self.orders,
            "by_status": statuses,
            "open": self.open,
            "waits": {
                what: {"orders": each.orders, "overdue": each.overdue} for what, each in self.waits.items()
            },
            "money": {
                currency: {
                    name: money.text(getattr(each, name), money.DIGITS[currency])
                    for name in ("total", "captured", "refunded")
                }
                for currency, each in sorted(self.money.items())
            },
            "commands": dict(self.commands),
            "notices": self.notices,
            "anomalies": dict(sorted(self.anomalies.items())),
            "oddities": [each._asdict() for each in self.oddities],
            "refunds_untold": self.refunds_untold,
            "refunds_computed": self.refunds_computed,
            "untold": [each._asdict() for each in self.untold],
        }
