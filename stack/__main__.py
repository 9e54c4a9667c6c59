"""Fetch Kafka's jars ahead of the first start, or lock them anew: see stack.jars."""

from __future__ import annotations

import sys

from stack import jars
from stack.errors import StackError


def main() -> None:
    """Fetch, or with --lock write the lock. Ends with one line and exit code 1 when that fails."""
    try:
        if "--lock" in sys.argv[1:]:
            jars.write_lock()
        else:
            jars.class_path(lambda message: print(message, file=sys.stderr))
    except StackError as error:
        sys.exit("\n".join(filter(None, (str(error), error.log))))


if __name__ == "__main__":
    main()
