"""Two views for readers: a seller's part of each order, and one row an order.

Written by hand like the tables; `sinks/schema.py` says the same to readers, and a test compares the two.
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

# Every join names user_id and region as well, so that only one partition of each table is read, whichever of
# them it is partitioned by. LATERAL, so that a page of orders costs a few index look-ups each instead of a
# pass over all parcels and returns.
VIEWS = {
    "orders_suborder": """
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
        ) r ON true""",
    "orders_summary": """
        SELECT o.id AS order_id, o.user_id, o.region, o.status, o.currency, o.total_amount, o.discount_amount,
               i.sellers, i.items, i.units,
               p.parcels, p.parcels_in_transit, p.parcels_delivered, p.parcels_returned,
               r.returns, r.units_returned,
               o.created_at, o.updated_at, o.version
        FROM public.orders_order o
        JOIN LATERAL (
            SELECT count(DISTINCT seller_id)::integer AS sellers, count(*)::integer AS items, coalesce(sum(quantity), 0)::integer AS units
            FROM public.orders_order_item line
            WHERE line.order_id = o.id AND line.user_id = o.user_id AND line.region = o.region
        ) i ON true
        JOIN LATERAL (
            SELECT count(*)::integer AS parcels,
                   (count(*) FILTER (WHERE status = 'in_transit'))::integer AS parcels_in_transit,
                   (count(*) FILTER (WHERE status = 'delivered'))::integer AS parcels_delivered,
                   (count(*) FILTER (WHERE status = 'returned'))::integer AS parcels_returned
            FROM public.orders_shipment s
            WHERE s.order_id = o.id AND s.user_id = o.user_id AND s.region = o.region
        ) p ON true
        JOIN LATERAL (
            SELECT count(*)::integer AS returns,
                   coalesce(sum(quantity) FILTER (WHERE status = 'processed'), 0)::integer AS units_returned
            FROM public.orders_return back
            WHERE back.order_id = o.id AND back.user_id = o.user_id AND back.region = o.region
        ) r ON true""",
}


def upgrade() -> None:
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW public.{name} AS {query}")


def downgrade() -> None:
    for name in reversed(VIEWS):
        op.execute(f"DROP VIEW public.{name}")
