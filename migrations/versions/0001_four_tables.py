"""The four tables, their enums, partitions and indexes.

Written by hand: this is what the database gets, word for word.
`sinks/schema.py` says the same to readers, and a test compares the two.
"""

from __future__ import annotations

from alembic import context, op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ENUMS = [
    "CREATE TYPE public.orders_order_status AS ENUM ('pending', 'confirmed', 'shipped', 'delivered', 'returned')",
    "CREATE TYPE public.orders_shipment_status AS ENUM ('pending', 'in_transit', 'delivered', 'returned')",
    "CREATE TYPE public.orders_return_status AS ENUM ('requested', 'processed', 'rejected')",
]

# {by}: the partition column; {method}: HASH or LIST.
TABLES = {
    "orders_order": """
        CREATE TABLE public.orders_order (
            id              uuid NOT NULL,
            user_id         uuid NOT NULL,
            region          text NOT NULL DEFAULT '',
            status          public.orders_order_status NOT NULL,
            currency        text NOT NULL,
            total_amount    numeric(20,4) NOT NULL,
            discount_amount numeric(20,4) NOT NULL,
            created_at      timestamptz NOT NULL,
            updated_at      timestamptz NOT NULL,
            version         integer NOT NULL,
            CONSTRAINT orders_order_pkey PRIMARY KEY (id, {by}),
            CONSTRAINT orders_order_amounts CHECK (total_amount >= 0 AND discount_amount >= 0)
        ) PARTITION BY {method} ({by})""",
    "orders_order_item": """
        CREATE TABLE public.orders_order_item (
            id              uuid NOT NULL,
            order_id        uuid NOT NULL,
            user_id         uuid NOT NULL,
            region          text NOT NULL DEFAULT '',
            product_id      uuid NOT NULL,
            seller_id       uuid NOT NULL,
            warehouse_id    uuid,
            sku             text NOT NULL,
            quantity        integer NOT NULL,
            price           numeric(20,4) NOT NULL,
            shipping_amount numeric(20,4) NOT NULL,
            created_at      timestamptz NOT NULL,
            updated_at      timestamptz NOT NULL,
            version         integer NOT NULL,
            CONSTRAINT orders_order_item_pkey PRIMARY KEY (id, order_id, {by}),
            CONSTRAINT orders_order_item_amounts CHECK (quantity > 0 AND price >= 0 AND shipping_amount >= 0)
        ) PARTITION BY {method} ({by})""",
    "orders_shipment": """
        CREATE TABLE public.orders_shipment (
            id                 uuid NOT NULL,
            order_id           uuid NOT NULL,
            user_id            uuid NOT NULL,
            region             text NOT NULL DEFAULT '',
            seller_id          uuid NOT NULL,
            warehouse_id       uuid,
            carrier            text,
            tracking_number    text,
            status             public.orders_shipment_status NOT NULL,
            estimated_delivery timestamptz,
            created_at         timestamptz NOT NULL,
            updated_at         timestamptz NOT NULL,
            version            integer NOT NULL,
            CONSTRAINT orders_shipment_pkey PRIMARY KEY (id, order_id, {by})
        ) PARTITION BY {method} ({by})""",
    "orders_return": """
        CREATE TABLE public.orders_return (
            id            uuid NOT NULL,
            order_id      uuid NOT NULL,
            user_id       uuid NOT NULL,
            region        text NOT NULL DEFAULT '',
            order_item_id uuid NOT NULL,
            quantity      integer NOT NULL,
            reason        text NOT NULL,
            status        public.orders_return_status NOT NULL,
            processed_at  timestamptz,
            created_at    timestamptz NOT NULL,
            updated_at    timestamptz NOT NULL,
            version       integer NOT NULL,
            CONSTRAINT orders_return_pkey PRIMARY KEY (id, order_id, {by}),
            CONSTRAINT orders_return_quantity CHECK (quantity > 0)
        ) PARTITION BY {method} ({by})""",
}

# None contains a column that changes as an order lives: every update stays a HOT update.
INDEXES = [
    "CREATE INDEX orders_order_user ON public.orders_order (user_id, created_at DESC)",
    "CREATE INDEX orders_order_item_order_id ON public.orders_order_item (order_id)",
    "CREATE INDEX orders_order_item_seller ON public.orders_order_item (seller_id, created_at DESC)",
    "CREATE INDEX orders_shipment_order_id ON public.orders_shipment (order_id)",
    "CREATE INDEX orders_shipment_tracking ON public.orders_shipment USING hash (tracking_number) WHERE tracking_number IS NOT NULL",
    "CREATE INDEX orders_return_order_id ON public.orders_return (order_id)",
]

FOREIGN_KEYS = [
    "ALTER TABLE public.orders_order_item ADD CONSTRAINT orders_order_item_order"
    " FOREIGN KEY (order_id, {by}) REFERENCES public.orders_order (id, {by}) NOT ENFORCED",
    "ALTER TABLE public.orders_shipment ADD CONSTRAINT orders_shipment_order"
    " FOREIGN KEY (order_id, {by}) REFERENCES public.orders_order (id, {by}) NOT ENFORCED",
    "ALTER TABLE public.orders_return ADD CONSTRAINT orders_return_order"
    " FOREIGN KEY (order_id, {by}) REFERENCES public.orders_order (id, {by}) NOT ENFORCED",
    "ALTER TABLE public.orders_return ADD CONSTRAINT orders_return_item"
    " FOREIGN KEY (order_item_id, order_id, {by}) REFERENCES public.orders_order_item (id, order_id, {by}) NOT ENFORCED",
]


# Room on each page for the next versions of its rows (sinks.schema says what it gives). Databases that were made
# before it was 50 and 60 have 80 in all partitions, and may keep it.
FILLFACTOR = {"orders_order": 50, "orders_order_item": 80, "orders_shipment": 60, "orders_return": 60}


def upgrade() -> None:
    by: str = context.config.attributes["partition_by"]
    count: int = context.config.attributes["partitions"]
    method = "HASH" if by == "user_id" else "LIST"
    for statement in ENUMS:
        op.execute(statement)
    for name, statement in TABLES.items():
        op.execute(statement.format(by=by, method=method))
        if by == "user_id":
            for remainder in range(count):
                op.execute(
                    f"CREATE TABLE public.{name}_p{remainder} PARTITION OF public.{name}"
                    f" FOR VALUES WITH (MODULUS {count}, REMAINDER {remainder}) WITH (fillfactor = {FILLFACTOR[name]})"
                )
        else:
            # Every region until it gets a partition of its own.
            op.execute(
                f"CREATE TABLE public.{name}_default PARTITION OF public.{name} DEFAULT"
                f" WITH (fillfactor = {FILLFACTOR[name]})"
            )
    for statement in INDEXES:
        op.execute(statement)
    # Declared for people and tools that read the schema.
    # Servers before 18 can't do without enforcing, which costs 2.5 times the write: none there.
    if context.is_offline_mode() or (op.get_bind().dialect.server_version_info or (0,)) >= (18,):
        for statement in FOREIGN_KEYS:
            op.execute(statement.format(by=by))


def downgrade() -> None:
    for name in reversed(TABLES):
        op.execute(f"DROP TABLE public.{name}")
    for name in ("orders_return_status", "orders_shipment_status", "orders_order_status"):
        op.execute(f"DROP TYPE public.{name}")
