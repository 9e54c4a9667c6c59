"""Every setting of the pipeline, one environment variable each, prefixed ORDERS_.

`orders settings` prints this page as a table. A field's description holds its unit and the reason for its default.
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


class ServerUrl(SecretStr):
    """A server's URL, which may hold passwords: get_secret_value() is for the server's client and for nobody else.

    As text, in logs, in errors and dumped it is only where the server is: what stands before the @ or after the ? is never shown. One
    that can't be taken apart without doubt is refused with a ValueError that doesn't repeat it. Never blocks.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str] = ""

    def __init__(self, value: str) -> None:
        super().__init__(value)
        found = _PARTS.fullmatch(value) if value.isprintable() and " " not in value else None
        if found is None or found["scheme"] not in self.schemes or not self._usable(found["hosts"], found["path"] or ""):
            raise ValueError(self._refusal())
        if not _is_query(found["query"] or ""):
            raise ValueError(self._refusal())
        hidden = "***@" if found["user"] or found["password"] else ""
        query = "?***" if found["query"] else ""
        self._shown = f"{found['scheme']}://{hidden}{found['hosts']}{found['path'] or ''}{query}"

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(cls._taken, serialization=core_schema.to_string_ser_schema())

    @classmethod
    def _taken(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise ValueError(cls._refusal())
        return cls(value)

    @classmethod
    def _refusal(cls) -> str:
        return f"must look like {cls.example}; in a name or password, / ? # [ ] @ are written %2F %3F %23 %5B %5D %40"

    @classmethod
    def _usable(cls, hosts: str, path: str) -> bool:
        raise NotImplementedError


class PostgresUrl(ServerUrl):
    """What asyncpg takes: several hosts with commas, none for a socket."""

    schemes = ("postgresql", "postgres")
    example = "postgresql://user:password@host:port/database"

    @classmethod
    def _usable(cls, hosts: str, path: str) -> bool:
        return not hosts or all(map(_is_host, hosts.split(",")))


class RedisUrl(ServerUrl):
    """What redis-py takes."""

    schemes = ("redis", "rediss", "unix")
    example = "redis://user:password@host:port/db"

    @classmethod
    def _usable(cls, hosts: str, path: str) -> bool:
        return (not hosts and len(path) > 1) or (_is_host(hosts) and path[1:].isdecimal() >= bool(path[1:]))


def _is_host(text: str) -> bool:
    found = _HOST.fullmatch(text)
    return found is not None and int(found["port"] or 0) <= 65535


def _is_query(text: str) -> bool:
    try:
        return all(re.fullmatch(r"[A-Za-z_][\w.]*", name) for name, _ in parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text)))
    except ValueError:
        return False


class Settings(BaseSettings):
    """All settings. Raises pydantic.ValidationError for a value that cannot be used. Never blocks."""

    model_config = SettingsConfigDict(env_prefix="ORDERS_", extra="ignore", frozen=True, hide_input_in_errors=True)

    # -- servers -----------------------------------------------------------------------------------------------
    kafka: str = Field("127.0.0.1:9092", description="Kafka brokers, host:port,... Any one of them is enough to find the rest.")
    postgres: PostgresUrl = Field(
        PostgresUrl("postgresql://postgres@127.0.0.1:5432/orders"),
        description="The primary, postgresql://user:password@host:port/database.",
    )
    postgres_replica: PostgresUrl | None = Field(
        None, description="A read replica for queries, postgresql://... Unset: the primary is read."
    )
    redis: RedisUrl = Field(
        RedisUrl("redis://127.0.0.1:6379/0"), description="The cache, redis://host:port/db. It may be down at any time."
    )
    data: Path = Field(Path(".orders-data"), description="Folder of the workers' local state (RocksDB). Can be deleted: it is rebuilt.")

    # -- topology ----------------------------------------------------------------------------------------------
    group: str = Field("orders", description="Consumer group, and the prefix of the table's changelog topic.")
    partitions: int = Field(
        4, ge=1, le=1024, description="Partitions of every topic at `orders init`: the lanes, so the most workers that can share the work."
    )
    replication: int | None = Field(
        None,
        ge=1,
        le=9,
        description="Replicas of every topic at `orders init`. Unset: min(3, brokers); min.insync.replicas is one less, at least 1.",
    )
    postgres_partitions: int = Field(8, ge=1, le=1024, description="Hash partitions of each Postgres table at `orders init`.")

    # -- delivery ----------------------------------------------------------------------------------------------
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        "at_least_once",
        description="What readers of the derived topics get. at_least_once: after a crash some events again, under the same ce_id; costs "
        "nothing. exactly_once: each event once, for readers of committed records (isolation.level=read_committed); a Kafka transaction a "
        "batch. See docs/delivery.md.",
    )
    transaction_timeout: float = Field(
        10.0,
        ge=1,
        le=900,
        description="Seconds after which the brokers take back a transaction that nobody ended, so that its readers go on. A successor "
        "does so at once, so it counts only for a worker that has none. Longer than a broker's failover, which is waited for inside one.",
    )

    # -- batches -----------------------------------------------------------------------------------------------
    batch_records: int = Field(
        2000, ge=1, le=100_000, description="Records a lane takes at once. More is faster until a batch's transaction is slow to commit."
    )
    pending_records: int = Field(
        8000, ge=1, description="Records a topic partition holds in memory before its fetching rests: the backpressure."
    )
    pending_bytes: int = Field(16 << 20, ge=1 << 20, description="The same in bytes.")
    commit_interval: float = Field(
        0.7,
        gt=0,
        le=60,
        description="Seconds between offset commits. A crash replays that much at most; each replayed record is a duplicate. "
        "With exactly_once each batch commits its own.",
    )
    producer_linger_ms: int = Field(0, ge=0, le=1000, description="Milliseconds the producer waits for more. Batches are built by hand: 0.")

    # -- bulk (docs/bulk.md) -----------------------------------------------------------------------------------
    bulk_rate: float = Field(
        250.0,
        gt=0,
        le=1_000_000,
        description="Events a second that one bulk worker unpacks at most. The lower, the less what is interactive notices (docs/bulk.md).",
    )
    bulk_backlog: int = Field(
        5000,
        ge=0,
        description="Records that the pipeline may have before it while bulk goes on; above, unpacking rests. It sees commits, so what "
        "arrives in a commit_interval counts.",
    )

    # -- failure -----------------------------------------------------------------------------------------------
    session_timeout: float = Field(
        6.0,
        ge=6,
        le=300,
        description="Seconds without a heartbeat after which Kafka gives a worker's partitions away (its outage after kill -9).",
    )
    heartbeat_interval: float = Field(1.0, gt=0, description="Seconds between heartbeats; at most a third of session_timeout.")
    retry_first: float = Field(0.05, gt=0, description="Seconds before the first retry after a temporary failure; doubles each time.")
    retry_longest: float = Field(2.0, gt=0, description="The longest pause between retries, in seconds.")
    retry_limit: float = Field(
        300.0,
        gt=0,
        description="Seconds after which a batch that keeps failing ends the worker, unacknowledged, for its supervisor to restart.",
    )
    redrive_limit: int = Field(
        3,
        ge=1,
        le=100,
        description="Times that a record is redriven (`orders dlq redrive`). Refused each time, it is parked.",
    )
    drain_timeout: float = Field(10.0, gt=0, description="Seconds that SIGTERM or a rebalance waits for batches in flight.")
    stall_timeout: float = Field(120.0, gt=0, description="Seconds without progress after which a worker ends itself rather than hang.")
    redis_timeout: float = Field(
        0.5,
        gt=0,
        description="Seconds that Redis gets for an answer until it counts as away: a cache delays nothing. What this process is busy with"
        " meanwhile doesn't count.",
    )

    # -- deadlines (docs/decisions/0009) -----------------------------------------------------------------------
    payment_deadline: float = Field(
        3600.0, ge=0, description="Seconds after order.created until its total must be captured; then its stock is asked back. 0: for ever."
    )
    stock_deadline: float = Field(
        600.0,
        ge=0,
        description="Seconds until stock.reserve must be answered, each time it is asked: minutes, as a person waits. 0: for ever.",
    )
    stock_asks: int = Field(3, ge=1, le=100, description="How often stock is asked for before no answer counts as a rejection.")
    release_deadline: float = Field(600.0, ge=0, description="Seconds until stock.release must be answered, each time. 0: for ever.")
    release_asks: int = Field(
        10, ge=1, le=100, description="How often stock is asked back before an operator is told. Often: nobody else can end the order."
    )
    label_deadline: float = Field(
        172_800.0,
        ge=0,
        description="Seconds from shipping.label.create to the first scan, each time: two days, as sellers pack. 0: for ever.",
    )
    label_asks: int = Field(5, ge=1, le=100, description="How often a label is asked for before an operator is told.")
    refund_deadline: float = Field(
        86_400.0, ge=0, description="Seconds until refund.request must be answered, each time: a bank's working day. 0: for ever."
    )
    refund_asks: int = Field(5, ge=1, le=100, description="How often a refund is asked for before an operator is told.")
    history_age: float = Field(
        3600.0,
        ge=0,
        description="An order.created that was older than this (seconds) when Kafka took it is history: nothing is waited for.",
    )

    # -- sinks -------------------------------------------------------------------------------------------------
    postgres_pool: int = Field(4, ge=1, le=64, description="Connections of one worker to Postgres: lanes that can commit at the same time.")
    postgres_connect_timeout: float = Field(5.0, gt=0, description="Seconds until a connection to Postgres is given up and tried again.")
    postgres_statement_timeout: float = Field(
        30.0,
        gt=0,
        description="Seconds until a batch's transaction is given up and tried again. Far above the 0.1 s that a full batch takes.",
    )
    postgres_plan_cache_mode: Literal["force_generic_plan", "auto", "force_custom_plan"] = Field(
        "force_generic_plan",
        description="PostgreSQL's plan_cache_mode for the connections of workers and readers. Generic plans save planning each batch; "
        "Citus needs auto (docs/scaling.md).",
    )
    cache_ttl_moving: int = Field(600, ge=600, le=1800, description="Seconds an order stays in Redis while a parcel moves.")
    cache_ttl_settled: int = Field(1800, ge=600, le=1800, description="Seconds an order stays in Redis once nothing is expected to change.")

    # -- reading (docs/api.md) ---------------------------------------------------------------------------------
    api_keys: SecretStr = Field(
        SecretStr(""),
        description="Bearer keys that `orders api` accepts, separated by commas. None: everybody may read, and only loopback is served.",
    )
    read_pool: int = Field(8, ge=1, le=64, description="Connections of one `orders api` to the replica, and as many to the primary.")
    read_timeout: float = Field(
        2.0, gt=0, le=60, description="Seconds that a read may take in a database; then the next place is asked. Reads take milliseconds."
    )
    replica_max_lag: float = Field(
        5.0,
        ge=0,
        le=300,
        description="Seconds a replica may be behind before it is passed over. Less than entries live in Redis, which show what it lacks.",
    )
    cache_ttl_refill: int = Field(
        60,
        ge=1,
        le=300,
        description="Seconds that what a reader puts beside the cache stays there: how long it may be old if Redis lost the newer entry.",
    )

    # -- seeing it ---------------------------------------------------------------------------------------------
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe level that is logged.")
    log_format: Literal["console", "json"] = Field("console", description="console for people, json for machines.")
    metrics_port: int = Field(0, ge=0, le=65535, description="Port of the Prometheus metrics. 0: none.")
    metrics_host: str = Field(
        "127.0.0.1", description="Address that serves the metrics, which have no password: loopback. In a container 0.0.0.0."
    )

    @field_validator("kafka")
    @classmethod
    def _brokers(cls, value: str) -> str:
        if "://" in value:
            raise ValueError("must be host:port,host:port without a scheme: a login or TLS for Kafka can't be set yet")
        for number, broker in enumerate(value.split(","), 1):
            found = _BROKER.fullmatch(broker.strip())
            if found is None or int(found["port"]) > 65535:
                raise ValueError(f"broker {number} is not host:port; write ORDERS_KAFKA=host:port,host:port")
        return value

    @field_validator("api_keys")
    @classmethod
    def _api_keys(cls, value: SecretStr) -> SecretStr:
        # What a header can carry (RFC 6750), and nobody guesses.
        if any(not re.fullmatch(r"[A-Za-z0-9._~+/-]{16,}=*", key.strip()) for key in value.get_secret_value().split(",") if key.strip()):
            raise ValueError("each key is at least 16 of A-Z a-z 0-9 . _ ~ + / -; make one with: openssl rand -hex 32")
        return value

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
        """How long answers may take."""

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
        """The consumer group of the bulk workers."""
        return f"{self.group}-bulk"

    @property
    def changelog_topic(self) -> str:
        """Name of the changelog topic of the orders table."""
        return f"{self.group}-state-changelog"


find_servers: Callable[[], dict[str, str]] = dict
"""Settings, by name, of servers that the environment doesn't name. The command line looks for a local stack; nobody else looks anywhere."""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The settings of this process, read from the environment once. Raises pydantic.ValidationError."""
    return Settings(**find_servers())  # type: ignore[arg-type]
