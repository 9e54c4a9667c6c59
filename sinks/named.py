"""Files that the address of a server names."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Final

from credentials import read_file

_OF_AUTHORITIES: Final = frozenset({"sslrootcert", "ssl_ca_certs"})


def fault(parameter: str, path: Path) -> str:
    """Tell what is wrong with the file that an address names by this parameter; empty: nothing.

    It doesn't repeat the path. Reads the file, and never waits for one that isn't a file.
    """
    try:
        read_file(path, 0)
        if parameter in _OF_AUTHORITIES:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError as error:
        return f"{parameter} names a file that holds no certificates ({error.reason})"
    except (OSError, ValueError) as error:
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        return f"{parameter} names no file that can be read ({why})"
    return ""
