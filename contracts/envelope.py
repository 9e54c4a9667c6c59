"""A CloudEvent in the structured binding: the wire form of its envelope."""

from __future__ import annotations

from msgspec import UNSET, Raw, Struct, UnsetType

Attribute = str | None | UnsetType


class Envelope(Struct, gc=False):
    """A whole CloudEvent as one JSON value; an attribute that is null is absent.
    What they say is checked as in the binary binding.
    """

    specversion: Attribute = UNSET
    id: Attribute = UNSET
    source: Attribute = UNSET
    type: Attribute = UNSET
    time: Attribute = UNSET
    dataschema: Attribute = UNSET
    traceparent: Raw | UnsetType = UNSET
    data: Raw | UnsetType = UNSET
    data_base64: Attribute = UNSET


class Marked(Struct, gc=False):
    """The member that tells an event in the structured binding from another JSON object."""

    specversion: Raw | UnsetType = UNSET
