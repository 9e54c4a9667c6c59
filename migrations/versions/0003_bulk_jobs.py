"""Bulk jobs: a row each, what was submitted and how far its unpacking is.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute(
        """
        CREATE TABLE public.orders_bulk_job (
            job_id       uuid NOT NULL,
            kind         text NOT NULL,
            parts        integer NOT NULL,
            parts_sent   integer NOT NULL DEFAULT 0,
            parts_done   integer NOT NULL DEFAULT 0,
            events       bigint NOT NULL DEFAULT 0,
            lines        bigint,
            refused      bigint,
            digest       text,
            created_at   timestamptz NOT NULL DEFAULT now(),
            updated_at   timestamptz NOT NULL DEFAULT now(),
            submitted_at timestamptz,
            completed_at timestamptz,
            announced    boolean NOT NULL DEFAULT false,
            done         int4multirange NOT NULL DEFAULT '{}'::int4multirange,
            version      integer NOT NULL DEFAULT 1,
            CONSTRAINT orders_bulk_job_pkey PRIMARY KEY (job_id),
            CONSTRAINT orders_bulk_job_kind CHECK (kind IN ('orders', 'shipments', 'returns'))
        )"""
    )
    op.execute("CREATE INDEX orders_bulk_job_created ON public.orders_bulk_job (created_at)")


def downgrade() -> None:
    op.execute("DROP TABLE public.orders_bulk_job")
