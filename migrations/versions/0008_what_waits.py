"""Indexes for lists of what waits: late suborders, refunds that aren't paid, returns that are open.

Only what waits is in them, so that a page of a list reads a part of a small index. Writers wait while they
are made.

Revision ID: 0008
Revises: 0007
"""

from __future__ import annotations

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INDEXES = {
    "orders_suborder_late": "orders_suborder (late_since, order_id, id) WHERE late_since IS NOT NULL",
    "orders_refund_waiting": "orders_refund (requested_at, order_id, id) WHERE status <> 'completed'",
    "orders_return_waiting": "orders_return (created_at, order_id, id) WHERE status = 'requested'",
}


def upgrade() -> None:
    for name, index in INDEXES.items():
        op.execute(f"CREATE INDEX {name} ON public.{index}")


def downgrade() -> None:
    for name in reversed(INDEXES):
        op.execute(f"DROP INDEX public.{name}")
