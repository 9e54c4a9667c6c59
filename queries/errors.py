"""Why a reader gets no answer."""

from __future__ import annotations


class NotFound(Exception):
    """There is nothing under this id, as far as the place knows that was asked."""


class NotYet(Exception):
    """The version that the caller has seen is in none of the places that answered: try again."""


class Unavailable(Exception):
    """No place answered that could be asked: try again."""
