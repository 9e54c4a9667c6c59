"""The rules, pure: events to facts, facts to orders, orders to what leaves and to rows."""

import compiled

__path__ = compiled.path(__name__, __path__)
