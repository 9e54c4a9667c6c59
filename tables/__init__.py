"""An order's state as bytes."""

import compiled

__path__ = compiled.path(__name__, __path__)
