"""Suborders, payments and refunds as tables of their own; an order's cart; an index for lists of all orders.

The table orders_suborder takes the place of the view of that name. It has the view's columns, and whoever may
read the view may read the table. Workers fill the tables: `orders repair --rows` writes the rows of orders
that were there before.

Revision ID: 0006
Revises: 0005
"""

from __future__ import annotations

from alembic import context, op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None
replaces = "orders_suborder"

ENUMS = [
    "CREATE TYPE public.orders_suborder_status AS ENUM"
    " ('pending', 'confirmed', 'shipped', 'delivered', 'returned', 'closed')",
    "CREATE TYPE public.orders_closed_because AS ENUM"
    " ('cancelled', 'payment_overdue', 'stock_released', 'stock_rejected', 'stock_unanswered', 'not_shipped')",
    "CREATE TYPE public.orders_payment_status AS ENUM ('captured', 'failed')",
    "CREATE TYPE public.orders_refund_status AS ENUM ('requested', 'completed', 'failed')",
    "CREATE TYPE public.orders_refund_cause AS ENUM ('return', 'stock', 'closed', 'grant')",
]

# {by}: the partition column; {method}: HASH or LIST.
TABLES = {
    "orders_suborder": """
        CREATE TABLE public.orders_suborder (
            id                 uuid NOT NULL,
            order_id           uuid NOT NULL,
            user_id            uuid NOT NULL,
            region             text NOT NULL DEFAULT '',
            seller_id          uuid NOT NULL,
            status             public.orders_suborder_status NOT NULL,
            closed_because     public.orders_closed_because,
            currency           text NOT NULL,
            items_amount       numeric(20,4) NOT NULL,
            shipping_amount    numeric(20,4) NOT NULL,
            discount_amount    numeric(20,4) NOT NULL,
            tax_amount         numeric(20,4) NOT NULL,
            total_amount       numeric(20,4) NOT NULL,
            units_ordered      integer NOT NULL,
            units_live         integer NOT NULL,
            units_in_transit   integer NOT NULL,
            units_delivered    integer NOT NULL,
            units_returned     integer NOT NULL,
            ship_by            timestamptz,
            deliver_by         timestamptz,
            late_since         timestamptz,
            order_status       public.orders_order_status NOT NULL,
            items              integer NOT NULL,
            units              integer NOT NULL,
            parcels            integer NOT NULL,
            parcels_in_transit integer NOT NULL,
            parcels_delivered  integer NOT NULL,
            parcels_returned   integer NOT NULL,
            returns            integer NOT NULL,
            created_at         timestamptz NOT NULL,
            updated_at         timestamptz NOT NULL,
            version            integer NOT NULL,
            CONSTRAINT orders_suborder_pkey PRIMARY KEY (id, order_id, {by})
        ) PARTITION BY {method} ({by})""",
    "orders_payment": """
        CREATE TABLE public.orders_payment (
            id         uuid NOT NULL,
            order_id   uuid NOT NULL,
            user_id    uuid NOT NULL,
            region     text NOT NULL DEFAULT '',
            status     public.orders_payment_status NOT NULL,
            amount     numeric(20,4),
            currency   text,
            method     text,
            reason     text,
            created_at timestamptz NOT NULL,
            updated_at timestamptz NOT NULL,
            version    integer NOT NULL,
            CONSTRAINT orders_payment_pkey PRIMARY KEY (id, order_id, {by}),
            CONSTRAINT orders_payment_captured
                CHECK ((status = 'captured') = (amount IS NOT NULL AND currency IS NOT NULL))
        ) PARTITION BY {method} ({by})""",
    # All that an order's payments come to may leave at once: above what one amount of an event may be.
    "orders_refund": """
        CREATE TABLE public.orders_refund (
            id           uuid NOT NULL,
            order_id     uuid NOT NULL,
            user_id      uuid NOT NULL,
            region       text NOT NULL DEFAULT '',
            number       integer NOT NULL,
            status       public.orders_refund_status NOT NULL,
            amount       numeric(24,4) NOT NULL,
            tax_amount   numeric(20,4) NOT NULL,
            currency     text NOT NULL,
            cause        public.orders_refund_cause NOT NULL,
            cause_id     uuid NOT NULL,
            attempt      integer NOT NULL,
            reason       text,
            requested_at timestamptz NOT NULL,
            settled_at   timestamptz,
            created_at   timestamptz NOT NULL,
            updated_at   timestamptz NOT NULL,
            version      integer NOT NULL,
            CONSTRAINT orders_refund_pkey PRIMARY KEY (id, order_id, {by})
        ) PARTITION BY {method} ({by})""",
}
FILLFACTOR = {"orders_suborder": 50, "orders_payment": 80, "orders_refund": 60}

INDEXES = [
    "CREATE INDEX orders_suborder_order_id ON public.orders_suborder (order_id)",
    "CREATE INDEX orders_suborder_seller ON public.orders_suborder (seller_id, created_at DESC)",
    "CREATE INDEX orders_payment_order_id ON public.orders_payment (order_id)",
    "CREATE INDEX orders_refund_order_id ON public.orders_refund (order_id)",
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
            EXECUTE 'CREATE TABLE public.' || quote_ident('{table}' || substr(part.name, length('orders_order') + 1))
                || ' PARTITION OF public.{table} ' || part.bound || ' WITH (fillfactor = {fillfactor})';
        END LOOP;
    END $$"""

# Who may read the view reads the table: kept in a setting of this transaction, as the view goes first.
KEEP_READERS = """
    SELECT set_config('orders.readers', coalesce(
        (SELECT string_agg(DISTINCT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END, ', ')
         FROM pg_class, aclexplode(relacl)
         WHERE oid = 'public.orders_suborder'::regclass AND privilege_type = 'SELECT' AND grantee <> relowner),
        ''), true)"""
GRANT_READERS = """
    DO $$
    DECLARE
        readers text := current_setting('orders.readers');
    BEGIN
        IF readers <> '' THEN
            EXECUTE 'GRANT SELECT ON public.orders_suborder TO ' || readers;
        END IF;
    END $$"""

# The view of revision 0002, for the way back.
VIEW = """
    SELECT i.order_id, i.seller_id, i.user_id, i.region, o.status AS order_status, o.currency,
           i.items, i.units, i.items_amount, i.shipping_amount,
           p.parcels, p.parcels_in_transit, p.parcels_delivered, p.parcels_returned,
           r.returns, r.units_returned,
           i.created_at, greatest(i.updated_at, p.updated_at, r.updated_at) AS updated_at
    FROM (
        SELECT order_id, seller_id, user_id, region, created_at, max(updated_at) AS updated_at,
               count(*)::integer AS items, sum(quantity)::integer AS units,
               sum(price * quantity) AS items_amount, sum(shipping_amount) AS shipping_amount
        FROM public.orders_order_item
        GROUP BY order_id, seller_id, user_id, region, created_at
    ) i
    JOIN public.orders_order o ON o.id = i.order_id AND o.user_id = i.user_id AND o.region = i.region
    JOIN LATERAL (
        SELECT count(*)::integer AS parcels,
               (count(*) FILTER (WHERE status = 'in_transit'))::integer AS parcels_in_transit,
               (count(*) FILTER (WHERE status = 'delivered'))::integer AS parcels_delivered,
               (count(*) FILTER (WHERE status = 'returned'))::integer AS parcels_returned,
               max(updated_at) AS updated_at
        FROM public.orders_shipment s
        WHERE s.order_id = i.order_id AND s.user_id = i.user_id AND s.region = i.region AND s.seller_id = i.seller_id
    ) p ON true
    JOIN LATERAL (
        SELECT count(*)::integer AS returns,
               coalesce(sum(back.quantity) FILTER (WHERE back.status = 'processed'), 0)::integer AS units_returned,
               max(back.updated_at) AS updated_at
        FROM public.orders_return back
        JOIN public.orders_order_item line ON line.id = back.order_item_id AND line.order_id = back.order_id
             AND line.user_id = back.user_id AND line.region = back.region
        WHERE back.order_id = i.order_id AND back.user_id = i.user_id AND back.region = i.region AND line.seller_id = i.seller_id
    ) r ON true"""


def upgrade() -> None:
    by: str = context.config.attributes["partition_by"]
    method = "HASH" if by == "user_id" else "LIST"
    # First what lets readers go on and takes longest: writers alone wait for it.
    op.execute("CREATE INDEX orders_order_created ON public.orders_order (created_at DESC, id DESC)")
    for statement in ENUMS:
        op.execute(statement)
    op.execute(KEEP_READERS)
    op.execute("DROP VIEW public.orders_suborder")
    for name, statement in TABLES.items():
        op.execute(statement.format(by=by, method=method))
        op.execute(PARTITIONS.format(table=name, fillfactor=FILLFACTOR[name]))
    for statement in INDEXES:
        op.execute(statement)
    op.execute(GRANT_READERS)
    # As revision 0001 says: servers before 18 can't do without enforcing.
    if context.is_offline_mode() or (op.get_bind().dialect.server_version_info or (0,)) >= (18,):
        for name in TABLES:
            op.execute(
                f"ALTER TABLE public.{name} ADD CONSTRAINT {name}_order"
                f" FOREIGN KEY (order_id, {by}) REFERENCES public.orders_order (id, {by}) NOT ENFORCED"
            )
    op.execute(
        "ALTER TABLE public.orders_order ADD COLUMN cart_id uuid, ADD COLUMN cart_created_at timestamptz"
    )
    op.execute("CREATE INDEX orders_order_cart ON public.orders_order (cart_id) WHERE cart_id IS NOT NULL")


def downgrade() -> None:
    op.execute("DROP INDEX public.orders_order_cart")
    op.execute("ALTER TABLE public.orders_order DROP COLUMN cart_created_at, DROP COLUMN cart_id")
    for name in reversed(TABLES):
        op.execute(f"DROP TABLE public.{name}")
    op.execute(f"CREATE VIEW public.orders_suborder AS {VIEW}")
    for name in ("refund_cause", "refund_status", "payment_status", "closed_because", "suborder_status"):
        op.execute(f"DROP TYPE public.orders_{name}")
    op.execute("DROP INDEX public.orders_order_created")
