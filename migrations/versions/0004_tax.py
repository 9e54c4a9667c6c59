"""What of an order's amounts is tax.

Rows that are there have none: a constant default, so no table is rewritten.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("ALTER TABLE public.orders_order ADD COLUMN tax_amount numeric(20,4) NOT NULL DEFAULT 0")
    op.execute(
        "ALTER TABLE public.orders_order_item ADD COLUMN tax_amount numeric(20,4) NOT NULL DEFAULT 0,"
        " ADD COLUMN shipping_tax_amount numeric(20,4) NOT NULL DEFAULT 0"
    )


def downgrade() -> None:
    op.execute("ALTER TABLE public.orders_order_item DROP COLUMN shipping_tax_amount, DROP COLUMN tax_amount")
    op.execute("ALTER TABLE public.orders_order DROP COLUMN tax_amount")
