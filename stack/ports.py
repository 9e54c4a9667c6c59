"""Free ports on 127.0.0.1."""

from __future__ import annotations

import random
import socket
import ssl
from contextlib import ExitStack
from pathlib import Path

from stack.errors import StackError

LOWEST, HIGHEST = 20_000, 32_000
"""Below the range from which systems take the ports of outgoing connections, so that a stopped stack
finds its ports free again.
"""


def is_free(port: int) -> bool:
    """Tell whether a server could listen on the port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError:
            return False
        return True


def choose(taken: set[int]) -> int:
    """A free port that is not in `taken`, picked at random so that two stacks starting at once rarely meet.

    Raises StackError when there is none.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", LOWEST))  # sends nothing: only asks for the way
        except OSError as error:
            raise StackError(
                f"127.0.0.1 cannot be reached ({error.strerror})",
                "bring the loopback interface up: ip link set lo up",
            ) from error
    for port in random.SystemRandom().sample(range(LOWEST, HIGHEST), HIGHEST - LOWEST):
        if port not in taken and is_free(port):
            return port
    raise StackError(
        f"no port of 127.0.0.1 from {LOWEST} to {HIGHEST - 1} is free", "end some of what listens there"
    )


def _connected(port: int) -> socket.socket:
    connection = socket.socket()
    try:
        connection.settimeout(1)
        connection.connect(("127.0.0.1", port))
    except OSError:
        connection.close()
        raise
    return connection


def listens(port: int) -> bool:
    """Tell whether anybody takes connections on the port. Blocks a second at most."""
    try:
        with _connected(port):
            return True
    except OSError:
        return False


def answers(port: int, question: bytes, trusted: Path | None = None) -> bytes:
    """The first bytes that whoever listens on the port says to `question`; empty when nobody does.
    `trusted`: ask over TLS, and trust this authority alone. Blocks some seconds at most.
    """
    try:
        with ExitStack() as opened:
            asked = opened.enter_context(_connected(port))
            if trusted is not None:
                context = ssl.create_default_context(cafile=trusted)
                asked = opened.enter_context(context.wrap_socket(asked, server_hostname="127.0.0.1"))
            asked.sendall(question)
            return asked.recv(64)
    except OSError:
        return b""
