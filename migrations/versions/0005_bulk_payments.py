"""Bulk jobs of payments.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None
widens = "orders_bulk_job_kind"


def upgrade() -> None:
    op.execute(
        """
        ALTER TABLE public.orders_bulk_job
            DROP CONSTRAINT orders_bulk_job_kind,
            ADD CONSTRAINT orders_bulk_job_kind
                CHECK (kind IN ('orders', 'shipments', 'returns', 'payments'))"""
    )


def downgrade() -> None:
    op.execute(
        """
        ALTER TABLE public.orders_bulk_job
            DROP CONSTRAINT orders_bulk_job_kind,
            ADD CONSTRAINT orders_bulk_job_kind
                CHECK (kind IN ('orders', 'shipments', 'returns')) NOT VALID"""
    )
