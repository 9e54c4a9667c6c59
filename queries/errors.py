"""Why a reader gets no answer."""

from __future__ import annotations


class NotFound(Exception):
    """Raised when there is nothing under this id, as far as the asked source knows."""


class NotYet(Exception):
    """The version that the caller has seen is in none of the places that answered: try again."""


class Unavailable(Exception):
    """Raised when no source answered: try again."""
