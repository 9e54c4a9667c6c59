"""Fetch Kafka's jars ahead of the first start and make that quick, or lock them anew: see stack.jars."""

from __future__ import annotations

import sys

from stack import jars, kafka
from stack.errors import StackError


def main() -> None:
    """Fetch, or with --lock write the lock. Ends with one line and exit code 1 when that fails."""
    try:
        if "--lock" in sys.argv[1:]:
            jars.write_lock()
        else:
            class_path = jars.class_path(_tell)
            try:
                kafka.make_class_cache(class_path, _tell)
            except (StackError, OSError) as error:
                _tell(_whole(error, "Kafka will start more slowly: "))
    except StackError as error:
        sys.exit(_whole(error))


def _whole(error: Exception, before: str = "") -> str:
    """What happened, and under it the last lines of what knows why, if there are any."""
    return "\n".join(filter(None, (f"{before}{error}", getattr(error, "log", ""))))


def _tell(message: str) -> None:
    print(message, file=sys.stderr)


if __name__ == "__main__":
    main()
