"""A web page for operators and support: how everything does, and where an order is."""
