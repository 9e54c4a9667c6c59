"""How a command fails in front of a person: one line that says what, where and what to do; exit code 2."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: a wrong flag, a missing file, a server that isn't there. Printed as one line, exit code 2.

    `log`: last lines of a log that tells more, printed below it.
    """

    def __init__(self, message: str, *, log: str = "") -> None:
        super().__init__(message)
        self.log = log

    @classmethod
    def with_log(cls, text: str) -> UserError:
        """Of a text whose first line is the message."""
        message, _, log = text.partition("\n")
        return cls(message, log=log)
