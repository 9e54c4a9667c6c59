"""`orders grants`: what each role needs on each server, in that server's own language."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from enum import StrEnum
from typing import Annotated

import typer

from cli.text import say
from operations.roles import PURPOSE
from settings import get_settings


class RoleName(StrEnum):
    """Who runs what."""

    owner = "owner"
    worker = "worker"
    reader = "reader"
    bulk = "bulk"
    audit = "audit"
    console = "console"


app = typer.Typer(
    help=(
        "Print what a role needs on Kafka, Postgres and Redis, and no more.\n\nEach role is for these"
        " commands:\n\n"
        + "\n".join(f"    {role:8}{what}" for role, what in PURPOSE.items())
        + "\n\nA user may have several roles, in Redis only one. It only prints: it asks no server, changes"
        " nothing, and neither takes nor prints a password. docs/how-to/give-the-least-rights.md has the"
        " steps.\n\nExample: [bold]orders grants postgres --role worker | psql -d orders[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Role = Annotated[
    RoleName,
    typer.Option("--role", metavar="ROLE", help=f"One of {', '.join(PURPOSE)}."),
]
User = Annotated[
    str | None, typer.Option("--user", help="The user's name. Default: orders-ROLE.", show_default=False)
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON array on stdout, an object for each right.")]


@app.command("kafka")
def kafka_command(
    role: Role,
    principal: Annotated[
        str | None,
        typer.Option(
            "--principal",
            "--user",
            help="The user's name, as the brokers know it. Default: orders-ROLE.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print ACLs as a shell script that calls kafka-acls.sh. The script passes its arguments on to each call.

    Topics and groups are those of ORDERS_GROUP; the transactional ids come with
    ORDERS_DELIVERY=exactly_once.

    Example: orders grants kafka --role worker --principal w1 | sh -s -- --bootstrap-server HOST:PORT
    """
    from operations.grants import acl_lines, acls

    settings, name = get_settings(), _name(principal, role)
    if as_json:
        _json(role, name, "kafka")
    else:
        _print(acl_lines(acls(settings, role.value), name))


@app.command("postgres")
def postgres_command(role: Role, user: User = None, as_json: AsJson = False) -> None:
    """Print GRANT statements for psql.

    Run them as the owner of the tables, after orders init; those of the role owner before it, as the owner of
    the database.

    Example: orders grants postgres --role worker --user w1 | psql -d orders
    """
    from operations.grants import grant_lines, grants

    name = _name(user, role)
    if as_json:
        _json(role, name, "postgres")
    else:
        _print(grant_lines(grants(role.value), name))


@app.command("redis")
def redis_command(role: Role, user: User = None, as_json: AsJson = False) -> None:
    """Print the ACL SETUSER command for redis-cli or valkey-cli. It keeps the user's password and takes away
    all other rights.

    Example: orders grants redis --role reader --user api | redis-cli
    """
    from operations.grants import acl_user, cache_rights

    name = _name(user, role)
    if as_json:
        _json(role, name, "redis")
        return
    rights = cache_rights(get_settings(), role.value)
    if rights is None:
        say(f"orders: the role {role.value} needs nothing in Redis", file=sys.stderr)
    else:
        _print([acl_user(rights, name)])


def _name(given: str | None, role: RoleName) -> str:
    return f"orders-{role.value}" if given is None else given


def _json(role: RoleName, name: str, server: str) -> None:
    from operations.grants import documents

    print(json.dumps(documents(role.value, get_settings(), name, server), indent=2))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        say(line)
