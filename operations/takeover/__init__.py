"""Taking over the orders of another system from its files (docs/how-to/take-over.md)."""
