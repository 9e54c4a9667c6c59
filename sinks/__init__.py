"""Where the pipeline writes: PostgreSQL and Redis."""
