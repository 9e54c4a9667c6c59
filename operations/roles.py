"""The roles that rights are given to, and what each is for."""

from __future__ import annotations

from typing import Final, Literal, get_args

Role = Literal["owner", "worker", "reader", "bulk", "audit", "console"]
ROLES: Final[tuple[Role, ...]] = get_args(Role)
PURPOSE: Final[dict[Role, str]] = {
    "owner": "orders init, keys, partitions, db, repair, rebuild, pause, resume, log-level, dlq",
    "worker": "orders worker --role realtime",
    "reader": "orders api, show, wait, attention, dlq list, bulk status",
    "bulk": "orders worker --role bulk, orders bulk submit",
    "audit": "orders audit, personal, whatif",
    "console": "orders console, status, operations",
}
"""The commands that each role can run."""
