"""The wire contracts: topics, events in and out, CloudEvents in both bindings, reason codes.
Pure, and below everything else.

The JSON Schemas of the events and the AsyncAPI document, made from this, lie beside it.
"""

import compiled

__path__ = compiled.path(__name__, __path__)
