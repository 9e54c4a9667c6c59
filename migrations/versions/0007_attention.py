"""What a person should look at as a table of its own: a row for each kind that holds of an order, or did.

Workers fill it: `orders repair --rows` writes the rows of orders that were there before.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from alembic import context, op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

# {by}: the partition column; {method}: HASH or LIST.
TABLE = """
    CREATE TABLE public.orders_attention (
        order_id   uuid NOT NULL,
        user_id    uuid NOT NULL,
        region     text NOT NULL DEFAULT '',
        kind       text NOT NULL,
        detail     text NOT NULL,
        since      timestamptz NOT NULL,
        cleared_at timestamptz,
        created_at timestamptz NOT NULL,
        updated_at timestamptz NOT NULL,
        version    integer NOT NULL,
        CONSTRAINT orders_attention_pkey PRIMARY KEY (order_id, kind, {by})
    ) PARTITION BY {method} ({by})"""

INDEXES = [
    "CREATE INDEX orders_attention_since ON public.orders_attention (since, order_id, kind)"
    " WHERE cleared_at IS NULL",
    "CREATE INDEX orders_attention_kind ON public.orders_attention (kind, created_at DESC, order_id DESC)"
    " WHERE cleared_at IS NULL",
]

# The same partitions as orders_order has, with those of its regions.
PARTITIONS = """
    DO $$
    DECLARE
        part record;
    BEGIN
        FOR part IN
            SELECT c.relname AS name, pg_get_expr(c.relpartbound, c.oid) AS bound
            FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid
            WHERE inhparent = 'public.orders_order'::regclass
        LOOP
            EXECUTE 'CREATE TABLE public.'
                || quote_ident('orders_attention' || substr(part.name, length('orders_order') + 1))
                || ' PARTITION OF public.orders_attention ' || part.bound || ' WITH (fillfactor = 60)';
        END LOOP;
    END $$"""


def upgrade() -> None:
    by: str = context.config.attributes["partition_by"]
    op.execute(TABLE.format(by=by, method="HASH" if by == "user_id" else "LIST"))
    op.execute(PARTITIONS)
    for statement in INDEXES:
        op.execute(statement)
    # As revision 0001 says: servers before 18 can't do without enforcing.
    if context.is_offline_mode() or (op.get_bind().dialect.server_version_info or (0,)) >= (18,):
        op.execute(
            "ALTER TABLE public.orders_attention ADD CONSTRAINT orders_attention_order"
            f" FOREIGN KEY (order_id, {by}) REFERENCES public.orders_order (id, {by}) NOT ENFORCED"
        )


def downgrade() -> None:
    op.execute("DROP TABLE public.orders_attention")
