"""How a command fails in front of a person: one line that says what, where and what to do; exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: a wrong flag, a missing file, a server that isn't there. Printed as one line, exit code 2."""
