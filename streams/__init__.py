"""What a worker runs."""

import compiled

__path__ = compiled.path(__name__, __path__)
