"""A program that ends TLS before a server that can't: what comes to one port on 127.0.0.1 goes on to another.

It imports nothing of ours, and is run as a file: a start costs 0.1 s.

    python -P front.py LISTEN TARGET PEM postgres|redis MARK
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from contextlib import suppress
from pathlib import Path

COMM = "orders-tls"
"""What the system calls the process, where it can be told to."""

_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
"""How a client of Postgres asks for TLS; one that doesn't is sent away."""


async def _pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await source.read(1 << 18):
            target.write(data)
            await target.drain()
    target.close()


async def serve(listen: int, target: int, pem: str, protocol: str) -> None:
    """Forward until the process is ended. `pem` holds the certificate and its key. Raises OSError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if protocol == "postgres":
                if await reader.readexactly(len(_SSL_REQUEST)) != _SSL_REQUEST:
                    return
                writer.write(b"S")
                await writer.start_tls(context)
            up, down = await asyncio.open_connection("127.0.0.1", target, limit=1 << 18)
            await asyncio.gather(_pump(reader, down), _pump(up, writer))
        except (OSError, EOFError):  # a client that goes without a word, a server that isn't there
            pass
        finally:
            writer.close()

    first = context if protocol == "redis" else None
    with suppress(OSError):
        Path("/proc/self/comm").write_text(COMM)
    server = await asyncio.start_server(handle, "127.0.0.1", listen, limit=1 << 18, ssl=first)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
