"""All settings. Each is an environment variable with the prefix ORDERS_, and `orders settings` prints them as
a table.

The description of a setting gives its unit and the reason for its default.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self
from urllib.parse import parse_qsl

from pydantic import Field, GetCoreSchemaHandler, SecretStr, field_validator
from pydantic_core import CoreSchema, core_schema
from pydantic_settings import BaseSettings, SettingsConfigDict

from domain.deadlines import DeadlinePolicy

_PARTS: Final = re.compile(
    r"(?P<scheme>[a-z]+)://(?:(?P<user>[^:/?#\[\]@]*)(?::(?P<password>[^/?#\[\]@]*))?@)?(?P<hosts>[^/?#@]*)"
    r"(?P<path>/[^?#@:]*)?(?:\?(?P<query>[^#@]*))?"
)
_HOST: Final = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[\w.~%-]+)(?::(?P<port>[0-9]{1,5}))?")
_BROKER: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})")
_JWKS_URL: Final = re.compile(
    r"(?:https://[^/?#@\s]+|http://(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?)(?:[/?][^@#\s]*)?"
)


class ServerUrl(SecretStr):
    """A server's URL, which may hold passwords. Only the server's client may call get_secret_value().

    As text, in logs, in errors and in dumps it shows only where the server is, never what stands before the @
    or after the ?. Raises ValueError, without repeating the URL, if its parts are ambiguous. Never blocks.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str] = ""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        parts = _PARTS.fullmatch(value) if value.isprintable() and " " not in value else None
        if (
            parts is None
            or parts["scheme"] not in self.schemes
            or not self._usable(parts["hosts"], parts["path"] or "")
        ):
            raise ValueError(self._refusal())
        if not _is_query(parts["query"] or ""):
            raise ValueError(self._refusal())
        hidden = "***@" if parts["user"] or parts["password"] else ""
        query = "?***" if parts["query"] else ""
        self._shown = f"{parts['scheme']}://{hidden}{parts['hosts']}{parts['path'] or ''}{query}"

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _validated(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise ValueError(cls._refusal())
        return cls(value)

    @classmethod
    def _refusal(cls) -> str:
        return (
            f"must look like {cls.example}; in a name or password, / ? # [ ] @ are written %2F %3F %23 %5B"
            " %5D %40"
        )

    @classmethod
    def _usable(cls, hosts: str, path: str) -> bool:
        raise NotImplementedError


class PostgresUrl(ServerUrl):
    """A URL of PostgreSQL, as asyncpg reads it: several hosts with commas, none for a socket."""

    schemes = ("postgresql", "postgres")
    example = "postgresql://user:password@host:port/database"

    @classmethod
    def _usable(cls, hosts: str, path: str) -> bool:
        return not hosts or all(map(_is_host, hosts.split(",")))


class RedisUrl(ServerUrl):
    """A URL of Redis, as redis-py reads it."""

    schemes = ("redis", "rediss", "unix")
    example = "redis://user:password@host:port/db"

    @classmethod
    def _usable(cls, hosts: str, path: str) -> bool:
        return (not hosts and len(path) > 1) or (_is_host(hosts) and path[1:].isdecimal() >= bool(path[1:]))


def _is_host(text: str) -> bool:
    host = _HOST.fullmatch(text)
    return host is not None and int(host["port"] or 0) <= 65535


def _is_query(text: str) -> bool:
    try:
        return all(
            re.fullmatch(r"[A-Za-z_][\w.]*", name)
            for name, _ in parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
        )
    except ValueError:
        return False


class Settings(BaseSettings):
    """All settings. Raises pydantic.ValidationError for a value that cannot be used. Never blocks."""

    model_config = SettingsConfigDict(
        env_prefix="ORDERS_", extra="ignore", frozen=True, hide_input_in_errors=True
    )

    # -- servers ---------------------------------------------------------------------------------------------
    kafka: str = Field(
        "127.0.0.1:9092", description="Kafka brokers, host:port,... One of them is enough to find the others."
    )
    postgres: PostgresUrl = Field(
        PostgresUrl("postgresql://postgres@127.0.0.1:5432/orders"),
        description="The primary, postgresql://user:password@host:port/database.",
    )
    postgres_replica: PostgresUrl | None = Field(
        None, description="A read replica for queries, postgresql://... Unset: the primary is read."
    )
    redis: RedisUrl = Field(
        RedisUrl("redis://127.0.0.1:6379/0"),
        description="The cache, redis://host:port/db. It may be down at any time.",
    )
    data: Path = Field(
        Path(".orders-data"),
        description="Folder of the workers' local state (RocksDB). If it is deleted, workers rebuild it.",
    )

    # -- topology --------------------------------------------------------------------------------------------
    group: str = Field("orders", description="Consumer group, and the prefix of the table's changelog topic.")
    partitions: int = Field(
        4,
        ge=1,
        le=1024,
        description=(
            "Partitions that `orders init` gives every topic. This is the number of lanes, so at most so "
            "many workers share the work."
        ),
    )
    replication: int | None = Field(
        None,
        ge=1,
        le=9,
        description=(
            "Replicas that `orders init` gives every topic. Unset: min(3, brokers). min.insync.replicas is"
            " one less, at least 1."
        ),
    )
    postgres_partitions: int = Field(
        8, ge=1, le=1024, description="Hash partitions that `orders init` gives each Postgres table."
    )

    # -- delivery --------------------------------------------------------------------------------------------
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description=(
            "at_least_once: after a crash, readers of the derived topics get some events twice, with the "
            "same ce_id; it costs nothing. exactly_once: readers of committed records "
            "(isolation.level=read_committed) get each event once; each batch is a Kafka transaction. See "
            "docs/delivery.md."
        ),
    )
    transaction_timeout: float = Field(
        10.0,
        ge=1,
        le=900,
        description="Seconds after which the brokers abort a transaction that its worker left open, so that "
        "readers can go on. A worker that takes the lane over aborts it at once. Keep it longer than "
        "a broker's failover, which a transaction waits for.",
    )

    # -- batches ---------------------------------------------------------------------------------------------
    batch_records: int = Field(
        2000,
        ge=1,
        le=100_000,
        description=(
            "Most records of a batch. A larger batch is faster until its transaction takes long to commit."
        ),
    )
    pending_records: int = Field(
        8000,
        ge=1,
        description="Records of a topic partition in memory, above which fetching it pauses (backpressure).",
    )
    pending_bytes: int = Field(
        16 << 20,
        ge=1 << 20,
        description="Bytes of a topic partition in memory, above which fetching it pauses.",
    )
    commit_interval: float = Field(
        0.7,
        gt=0,
        le=60,
        description=(
            "Seconds between offset commits. After a crash, at most the records of that time are read "
            "again, as duplicates. With exactly_once each batch commits its own offsets."
        ),
    )
    producer_linger_ms: int = Field(
        0,
        ge=0,
        le=1000,
        description=(
            "Milliseconds that the producer waits for more records. 0, because the pipeline builds its"
            " batches itself."
        ),
    )

    # -- bulk (docs/bulk.md) ---------------------------------------------------------------------------------
    bulk_rate: float = Field(
        250.0,
        gt=0,
        le=1_000_000,
        description=(
            "Most events a second that a bulk worker unpacks. A lower rate delays other events less"
            " (docs/bulk.md)."
        ),
    )
    bulk_backlog: int = Field(
        5000,
        ge=0,
        description="Lag of the pipeline, in records, above which bulk workers pause. The lag is that of the "
        "committed offsets, so it includes what arrives within a commit_interval.",
    )

    # -- failure ---------------------------------------------------------------------------------------------
    session_timeout: float = Field(
        6.0,
        ge=6,
        le=300,
        description=(
            "Seconds without a heartbeat after which Kafka assigns a worker's partitions to others: how "
            "long they rest after kill -9."
        ),
    )
    heartbeat_interval: float = Field(
        1.0, gt=0, description="Seconds between heartbeats; at most a third of session_timeout."
    )
    retry_first: float = Field(
        0.05,
        gt=0,
        description=(
            "Seconds before the first retry after a temporary failure. The pause doubles with each retry."
        ),
    )
    retry_longest: float = Field(2.0, gt=0, description="The longest pause between retries, in seconds.")
    retry_limit: float = Field(
        300.0,
        gt=0,
        description=(
            "Seconds after which a batch that keeps failing ends the worker without acknowledgement. Its"
            " supervisor restarts it."
        ),
    )
    redrive_limit: int = Field(
        3,
        ge=1,
        le=100,
        description=(
            "How often `orders dlq redrive` sends a record back. If it is refused every time, it is parked."
        ),
    )
    drain_timeout: float = Field(
        10.0,
        gt=0,
        description="Seconds that a worker waits for batches in flight after SIGTERM or in a rebalance.",
    )
    stall_timeout: float = Field(
        120.0,
        gt=0,
        description="Seconds without progress after which a worker ends itself, so that it doesn't hang.",
    )
    redis_timeout: float = Field(
        0.5,
        gt=0,
        description=(
            "Seconds that Redis has for an answer before it counts as away. Short, because a cache must "
            "not delay anything. Time that this process spends on other work doesn't count."
        ),
    )

    # -- deadlines (docs/decisions/0009) ---------------------------------------------------------------------
    payment_deadline: float = Field(
        3600.0,
        ge=0,
        description=(
            "Seconds from order.created until its total must be captured. After that its stock is released."
            " 0: no deadline."
        ),
    )
    stock_deadline: float = Field(
        600.0,
        ge=0,
        description=(
            "Seconds until each stock.reserve must be answered. Minutes, because a customer waits. 0: no"
            " deadline."
        ),
    )
    stock_asks: int = Field(
        3,
        ge=1,
        le=100,
        description="How often stock.reserve is sent before the missing answer counts as a rejection.",
    )
    release_deadline: float = Field(
        600.0, ge=0, description="Seconds until each stock.release must be answered. 0: no deadline."
    )
    release_asks: int = Field(
        10,
        ge=1,
        le=100,
        description=(
            "How often stock.release is sent before an operator is told. Many times, because the order "
            "can't end without an answer."
        ),
    )
    label_deadline: float = Field(
        172_800.0,
        ge=0,
        description=(
            "Seconds from each shipping.label.create to the first scan. Two days, because sellers have to"
            " pack. 0: no deadline."
        ),
    )
    label_asks: int = Field(
        5, ge=1, le=100, description="How often shipping.label.create is sent before an operator is told."
    )
    refund_deadline: float = Field(
        86_400.0,
        ge=0,
        description=(
            "Seconds until each refund.request must be answered. A day, because banks take one. 0: no"
            " deadline."
        ),
    )
    refund_asks: int = Field(
        5, ge=1, le=100, description="How often refund.request is sent before an operator is told."
    )
    history_age: float = Field(
        3600.0,
        ge=0,
        description=(
            "Seconds. An order.created that was older than this when it reached Kafka is history and gets no"
            " deadlines."
        ),
    )

    # -- sinks -----------------------------------------------------------------------------------------------
    postgres_pool: int = Field(
        4,
        ge=1,
        le=64,
        description=(
            "Connections of a worker to Postgres, so the number of lanes that can write at the same time."
        ),
    )
    postgres_connect_timeout: float = Field(
        5.0, gt=0, description="Seconds after which connecting to Postgres is given up and tried again."
    )
    postgres_statement_timeout: float = Field(
        30.0,
        gt=0,
        description=(
            "Seconds after which a batch's transaction is given up and tried again. A full batch takes 0.1 s."
        ),
    )
    postgres_plan_cache_mode: Literal["force_generic_plan", "auto", "force_custom_plan"] = Field(
        "force_generic_plan",
        description=(
            "PostgreSQL's plan_cache_mode for the connections of workers and readers. Generic plans save "
            "the planning of each batch; Citus needs auto (docs/scaling.md)."
        ),
    )
    cache_ttl_moving: int = Field(
        600, ge=600, le=1800, description="Seconds that an order stays in Redis while a parcel is in transit."
    )
    cache_ttl_settled: int = Field(
        1800,
        ge=600,
        le=1800,
        description="Seconds that an order stays in Redis once nothing is expected to change.",
    )

    # -- reading (docs/api.md) -------------------------------------------------------------------------------
    api_keys: SecretStr = Field(
        SecretStr(""),
        description=(
            "Bearer keys that `orders api` accepts, separated by commas; each reads everything. Without keys,"
            " named keys or an issuer anybody may read, and only loopback is served."
        ),
    )
    api_key_store: Path | None = Field(
        None,
        description=(
            "File of named keys that `orders keys` writes and `orders api` reads, again whenever it changes."
            " It holds digests, no keys."
        ),
    )
    api_jwt_issuer: str = Field(
        "", description="Issuer (iss) of the tokens that `orders api` accepts. Empty: no tokens."
    )
    api_jwt_audience: str = Field(
        "", description="Audience (aud) that a token must name: what the issuer calls this service."
    )
    api_jwt_jwks: str = Field(
        "",
        description=(
            "The issuer's public keys (JWKS): a file, or an https URL that is asked again at most once a"
            " minute. RS256, ES256 and EdDSA."
        ),
    )
    api_rate: float = Field(
        0.0,
        ge=0,
        le=1_000_000,
        description=(
            "Requests a second that a key or a token's subject may send to one `orders api`, unless its own"
            " rate says otherwise. 0: no limit."
        ),
    )
    api_connections: int = Field(
        1000,
        ge=1,
        le=1_000_000,
        description=(
            "Connections of one `orders api`; fewer where the system allows fewer files. One more, and that"
            " which has waited longest for its client is closed."
        ),
    )
    api_request_timeout: float = Field(
        10.0,
        gt=0,
        le=300,
        description=(
            "Seconds that a client has to send a whole request, and to take in an answer. Clients need"
            " milliseconds; half-open ones would keep a connection."
        ),
    )
    api_access_log: bool = Field(
        True,
        description=(
            "Whether `orders api` logs each request: name of the key, method, route, status, milliseconds."
        ),
    )
    read_pool: int = Field(
        8,
        ge=1,
        le=64,
        description="Connections of one `orders api` to the replica, and as many to the primary.",
    )
    read_timeout: float = Field(
        2.0,
        gt=0,
        le=60,
        description=(
            "Seconds that a read may take in a database before the next one is asked. Reads take"
            " milliseconds."
        ),
    )
    replica_max_lag: float = Field(
        5.0,
        ge=0,
        le=300,
        description=(
            "Seconds that a replica may be behind and still be read. Less than the life of cache entries, "
            "which hold what it lacks."
        ),
    )
    cache_ttl_refill: int = Field(
        60,
        ge=1,
        le=300,
        description=(
            "Seconds that rows read from a database stay in Redis. If Redis loses a newer entry, readers see"
            " old rows for so long."
        ),
    )

    # -- seeing it -------------------------------------------------------------------------------------------
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="The lowest level that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Format of the log: console for people, json for machines."
    )
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the Prometheus metrics. 0: no metrics.")
    metrics_host: str = Field(
        "127.0.0.1",
        description=(
            "Address of the Prometheus metrics. Loopback, because they have no password; 0.0.0.0 in a"
            " container."
        ),
    )

    @field_validator("kafka")
    @classmethod
    def _brokers(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                "must be host:port,host:port without a scheme: a login or TLS for Kafka can't be set yet"
            )
        for number, broker in enumerate(value.split(","), 1):
            address = _BROKER.fullmatch(broker.strip())
            if address is None or int(address["port"]) > 65535:
                raise ValueError(f"broker {number} is not host:port; write ORDERS_KAFKA=host:port,host:port")
        return value

    @field_validator("api_keys")
    @classmethod
    def _api_keys(cls, value: SecretStr) -> SecretStr:
        # Characters that a header can carry (RFC 6750), and enough of them that nobody guesses a key.
        if any(
            not re.fullmatch(r"[A-Za-z0-9._~+/-]{16,}=*", key.strip())
            for key in value.get_secret_value().split(",")
            if key.strip()
        ):
            raise ValueError(
                "each key is at least 16 of A-Z a-z 0-9 . _ ~ + / -; make one with: openssl rand -hex 32"
            )
        return value

    @field_validator("api_jwt_jwks")
    @classmethod
    def _jwks(cls, value: str) -> str:
        # Over plain HTTP somebody on the way could put keys of their own in place of the issuer's.
        if "://" in value and not _JWKS_URL.fullmatch(value):
            raise ValueError("must be a file or an https URL (http only of loopback), without a password")
        return value

    @property
    def jwks_is_url(self) -> bool:
        """Whether api_jwt_jwks is a URL, not a file."""
        return "://" in self.api_jwt_jwks

    @property
    def bearer_keys(self) -> list[str]:
        """The keys of api_keys."""
        return [key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip()]

    @property
    def brokers(self) -> list[str]:
        """Brokers as a list of host:port."""
        return [broker.strip() for broker in self.kafka.split(",")]

    @property
    def deadline_policy(self) -> DeadlinePolicy:
        """How long answers may take, with times in ms."""

        def ms(seconds: float) -> int:
            return round(seconds * 1000)

        return DeadlinePolicy(
            payment=ms(self.payment_deadline),
            stock=ms(self.stock_deadline),
            stock_asks=self.stock_asks,
            release=ms(self.release_deadline),
            release_asks=self.release_asks,
            label=ms(self.label_deadline),
            label_asks=self.label_asks,
            refund=ms(self.refund_deadline),
            refund_asks=self.refund_asks,
            history=ms(self.history_age),
        )

    @property
    def bulk_group(self) -> str:
        """Consumer group of the bulk workers."""
        return f"{self.group}-bulk"

    @property
    def changelog_topic(self) -> str:
        """Name of the changelog topic of the orders table."""
        return f"{self.group}-state-changelog"


find_servers: Callable[[], dict[str, str]] = dict
"""Returns settings, by name, of servers that the environment doesn't name.

Only the command line replaces it: it looks for a local stack.
"""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read from the environment once.
    Raises pydantic.ValidationError.
    """
    return Settings.model_validate(find_servers())
