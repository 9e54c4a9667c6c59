"""`python -m cli.access`: make the users of docker-compose.yml, and give each the rights of its role.

It isn't a command of `orders`: who has servers of his own gives rights by what `orders grants` prints.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from typing import Final

from cli.main import explain
from cli.text import say
from operations.secured import EVERYBODY, allow_kafka, kafka_rights, make_logins, make_roles
from settings import Settings, get_settings

PASSWORDS: Final = {
    "OWNER_PASSWORD": EVERYBODY,
    "WORKER_PASSWORD": "orders-worker",
    "BULK_PASSWORD": "orders-bulk",
    "READER_PASSWORD": "orders-reader",
    "CONSOLE_PASSWORD": "orders-console",
}
"""Variable -> whose password is in it, on Kafka and on Postgres. Who has none isn't made."""


async def give(admin: Settings, passwords: Mapping[str, str]) -> None:
    """Make users on Kafka and Postgres with these passwords, and give them their rights on what there is.
    Again is harmless.

    `admin` leads to the servers as somebody who may. Blocks for a second. Raises what clients raise.
    """
    await make_logins(admin, passwords)  # first: a broker that knows of the rights then knows of the users
    await allow_kafka(admin, {user: kafka_rights(admin, user) for user in passwords})
    await make_roles(admin, passwords)


def main() -> None:
    """Give. Ends with one line and exit code 2 when a person can mend what is wrong."""
    passwords = {user: os.environ[name] for name, user in PASSWORDS.items() if os.environ.get(name)}
    try:
        asyncio.run(give(get_settings(), passwords))
    except Exception as error:
        if (line := explain(error)) is None:
            raise
        say(f"orders: {line}", lines=True, file=sys.stderr)
        sys.exit(2)
    say(f"{', '.join(passwords)}: rights given on Kafka and PostgreSQL")


if __name__ == "__main__":
    main()
