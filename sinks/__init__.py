"""The stores that the pipeline writes: PostgreSQL and Redis."""
