"""The root of every error that a person can meet.
It imports nothing, so every room may use it, the library of the transport too.
"""

from __future__ import annotations


class OrdersError(Exception):
    """Something went wrong that a person can put right. Not a defect of this program.

    `message` says what and where, `remedy` what to do about it: each is one line without a full stop. A class
    whose errors always have the same remedy has it as its attribute. `log`: last lines of a log that tells
    more. str() is what a person is told: message; remedy.
    """

    remedy: str = ""

    def __init__(self, message: str, remedy: str = "", *, log: str = "") -> None:
        super().__init__(message, remedy)
        self.message = message
        self.remedy = remedy or type(self).remedy
        self.log = log
        if log:
            self.add_note(log)  # for whoever sees a traceback instead

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}"


class TakenAway(OrdersError):
    """What a program works with was there as it started and is gone. A worker waits, as for a server."""


def named(error: BaseException) -> str:
    """The error's class and what it says, in one line. The class once: Kafka's errors say theirs. Of one that
    SQLAlchemy wraps the driver's alone, without the statement and its parameters. Pure.
    """
    driver: BaseException | None = getattr(error, "orig", None)
    if driver is not None:
        error = driver.__cause__ or driver
    name, text = type(error).__name__, " ".join(str(error).split())
    said = text.partition("] ")[2] if text.startswith("[Error ") else text
    if said == name or said.startswith(f"{name}: "):
        return text
    return f"{name}: {text}" if text else name
