"""All settings. Each is an environment variable with the prefix ORDERS_, and `orders settings` prints them as
a table.

The description of a setting gives its unit and the reason for its default.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shlex
from collections.abc import Callable, Collection, Iterator
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from credentials import JwksPlace, Name, PostgresUrl, RedisUrl, Secret
from domain.limits import LEAST_MESSAGE_BYTES, MESSAGE_BYTES, Limits, limits_of
from domain.shapes import DeadlinePolicy
from errors import OrdersError

_BROKER: Final = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[\w.-]+):(?P<port>[0-9]{1,5})")
_EXTENSION: Final = re.compile(r"(?P<name>[A-Za-z]+)=[!-~]+")
"""RFC 7628, 3.1. A value with a comma can't be written: none is known that has one."""
_KEY: Final = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")
"""Characters that a header can carry (RFC 6750), and enough of them that nobody guesses a key."""
LEAST_SECRET: Final = 32
"""Characters of a secret that signs: nobody guesses it."""
LEAST_RATE: Final = 0.001
"""Requests a second of a key whose rate is bounded: one in a quarter of an hour."""


class SmallLetters(OrdersError):
    """A name in the environment is a setting's, but for its letters."""


class _Environment(PydanticBaseSettingsSource):
    """The variables of the environment, which are in capitals: pydantic's own source takes other letters too,
    and of two that differ in them the one that happens to come later.
    """

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return os.environ.get(f"ORDERS_{field_name.upper()}"), field_name, False

    def __call__(self) -> dict[str, Any]:
        """Field -> text. Raises SmallLetters: whoever wrote them so expects that they count."""
        fields = self.settings_cls.model_fields
        names = {f"ORDERS_{field.upper()}": field for field in fields}
        for name in sorted(os.environ):
            if name not in names and name.upper() in names:
                raise SmallLetters(
                    f"{name} in the environment isn't in capitals", f"write {name.upper()}, or unset it"
                )
        return {names[name]: value for name, value in os.environ.items() if name in names}


class Settings(BaseSettings):
    """All settings. Raises pydantic.ValidationError for a value that cannot be used, SmallLetters for a name.
    Never blocks.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """What is given in the call, then the environment."""
        return init_settings, _Environment(settings_cls)

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
        description=(
            "The cache, redis://host:port/db, or redis+sentinel://host:port,host:port/service/db. It may be"
            " down at any time."
        ),
    )
    redis_prefix: str = Field(
        "",
        description=(
            "What the names of all keys in Redis begin with, such as `staging:`, so that several systems can"
            " share one. It ends with a colon. All programs of a system need the same."
        ),
    )
    postgres_pooler: Literal["none", "transaction"] = Field(
        "none",
        description=(
            "transaction: ORDERS_POSTGRES and ORDERS_POSTGRES_REPLICA lead to a pooler that gives each"
            " transaction another session: PgBouncer 1.21 or later with pool_mode=transaction"
            " (docs/how-to/use-a-pooler.md)."
        ),
    )
    postgres_file: Path | None = Field(
        None,
        description=(
            "File that holds the URL of the primary, instead of ORDERS_POSTGRES: read again for each new "
            "connection, so a changed password needs no restart."
        ),
    )
    postgres_replica_file: Path | None = Field(
        None, description="File that holds the URL of the replica, instead of ORDERS_POSTGRES_REPLICA."
    )
    redis_file: Path | None = Field(
        None,
        description=(
            "File that holds the URL of the cache, instead of ORDERS_REDIS: read again for each new "
            "connection, but for its scheme, what stands after ?, and Sentinel's service and database."
        ),
    )
    data: Path = Field(
        Path(".orders-data"),
        description="Folder of the workers' local state (RocksDB). If it is deleted, workers rebuild it.",
    )

    # -- Kafka's security (docs/how-to/connect-kafka.md) -----------------------------------------------------
    kafka_security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        "PLAINTEXT",
        description=(
            "How Kafka is spoken to: SSL and SASL_SSL encrypt and check the brokers' certificates, SASL_... "
            "log in. SASL_PLAINTEXT is for networks that nobody else can listen to."
        ),
    )
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = Field(
        None, description="How to log in to Kafka, for SASL_PLAINTEXT and SASL_SSL."
    )
    kafka_sasl_username: Name = Field(
        Name(""), description="User for PLAIN and SCRAM; an API key is one too."
    )
    kafka_sasl_username_file: Path | None = Field(
        None,
        description=(
            "File that holds the user, instead of ORDERS_KAFKA_SASL_USERNAME: read again for each new "
            "connection, so that an API key can be changed with its password. Write it first."
        ),
    )
    kafka_sasl_password: Secret = Field(Secret(""), description="Password for PLAIN and SCRAM.")
    kafka_sasl_password_file: Path | None = Field(
        None,
        description=(
            "File that holds the password, instead of ORDERS_KAFKA_SASL_PASSWORD: read again for each new "
            "connection."
        ),
    )
    kafka_ssl_cafile: Path | None = Field(
        None,
        description=(
            "Certificates (PEM) of the authorities that sign the brokers' certificates. Unset: those that "
            "this machine trusts."
        ),
    )
    kafka_ssl_certfile: Path | None = Field(
        None,
        description=(
            "This client's certificate (PEM, with those in between), where the brokers ask for one. Read "
            "again, with its key, for new connections when it has changed."
        ),
    )
    kafka_ssl_keyfile: Path | None = Field(
        None, description="Key of the client's certificate (PEM). Unset: it is in the same file."
    )
    kafka_ssl_key_password: Secret = Field(Secret(""), description="Password of an encrypted key.")
    kafka_ssl_key_password_file: Path | None = Field(
        None, description="File that holds the key's password, instead of ORDERS_KAFKA_SSL_KEY_PASSWORD."
    )
    kafka_oauth_token_file: Path | None = Field(
        None,
        description=(
            "File that holds the token for OAUTHBEARER, kept fresh by something else: read for each new "
            "connection."
        ),
    )
    kafka_oauth_token_command: Secret = Field(
        Secret(""),
        description=(
            "Program with arguments (no shell) that prints a token for OAUTHBEARER, or JSON with an "
            "access_token. It runs for a new connection, unless the token before is one whose end is known "
            "and far enough away. It has 20 s."
        ),
    )
    kafka_oauth_extensions: str = Field(
        "",
        description=(
            "What is sent with the token for OAUTHBEARER, name=value,...; for Confluent Cloud logicalCluster"
            " and identityPoolId."
        ),
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
    message_bytes: int = Field(
        MESSAGE_BYTES,
        ge=LEAST_MESSAGE_BYTES,
        le=MESSAGE_BYTES,
        description=(
            "Largest batch that the changelog takes, bytes (its max.message.bytes): how much an order and a"
            " record may hold follows from it. Less is for a Kafka that takes no 24 MiB. All programs of a"
            " system need the same, and what an order holds already may be too much (docs/decisions/0040)."
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
            "Events a second that a bulk worker unpacks at least, while the pipeline keeps up. It goes faster"
            " by what interactive events leave (docs/bulk.md)."
        ),
    )
    bulk_rate_max: float = Field(
        1_000_000.0,
        gt=0,
        le=1_000_000,
        description=(
            "Events a second that a bulk worker unpacks at most. With ORDERS_BULK_RATE or less its pace is"
            " fixed."
        ),
    )
    bulk_backlog: int = Field(
        5000,
        ge=0,
        description="Lag of the pipeline, in records, above which bulk workers pause. What it does within a "
        "commit_interval comes on top, since the lag is that of the committed offsets.",
    )

    bulk_file_bytes: int = Field(
        4 << 30,
        ge=1,
        description=(
            "Most bytes of a file of `orders bulk submit`, unpacked. The command needs as much room, twice."
        ),
    )
    bulk_file_ratio: int = Field(
        100,
        ge=1,
        description=(
            "So many times its own size a file of gzip may unpack to, above 64 MiB. Text full of ids has"
            " about 10; a few kB that unpack to gigabytes are an attack."
        ),
    )
    bulk_file_columns: int = Field(
        1000, ge=1, description="Most columns of a file of CSV or Parquet. Events have twenty."
    )
    bulk_file_memory: int = Field(
        1 << 30,
        ge=256 << 20,
        description=(
            "Most bytes of memory that reading a file of Parquet may take. Ordinary ones take 200 MiB."
        ),
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
    dead_letter_hold: int = Field(
        0,
        ge=0,
        le=1_000_000,
        description=(
            "Refused records of one topic within a minute, above which a worker pauses that topic (`orders"
            " pause`), so that a defect upstream doesn't fill orders.dlq. Each worker counts its own lanes."
            " 0: never, since good records of that topic wait too."
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
            "Seconds from order.created until its total must be captured. After that its stock is asked back."
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
    ship_within: float = Field(
        604_800.0,
        ge=0,
        description=(
            "Seconds from an order's being confirmed until a seller that promised no time must have shipped."
            " A week; after that it is late. 0: never."
        ),
    )
    ship_cancel_after: float = Field(
        0.0,
        ge=0,
        description=(
            "Seconds after a seller is late to ship until its stock is asked back, so that the order ends"
            " without it. 0: never, because some ship late and still are expected to."
        ),
    )
    deliver_within: float = Field(
        2_592_000.0,
        ge=0,
        description=(
            "Seconds from a seller's last parcel's leaving until everything must be delivered where nobody"
            " promised a time. 30 days; after that it is late. 0: never."
        ),
    )
    return_within: float = Field(
        1_209_600.0,
        ge=0,
        description=(
            "Seconds until a return that was requested must be processed or rejected. Two weeks, because the"
            " parcel has to come back; after that an operator is told. 0: no deadline."
        ),
    )
    refund_retry_after: float = Field(
        86_400.0,
        ge=0,
        description=(
            "Seconds from a refund.failed until the refund is asked for again. A day, because what a bank"
            " refuses today it may do tomorrow. 0: never."
        ),
    )
    refund_attempts: int = Field(
        3, ge=1, le=100, description="How often a refund that fails is asked for, with the first time."
    )
    history_age: float = Field(
        3600.0,
        ge=0,
        description=(
            "Seconds. An order.created without live_from that was older than this when it reached Kafka gets"
            " no deadlines. orders bulk submit refuses files of such orders."
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
        600,
        ge=600,
        le=1800,
        description="Seconds that an order stays in Redis while something is still expected of it.",
    )
    cache_ttl_settled: int = Field(
        1800,
        ge=600,
        le=1800,
        description="Seconds that an order stays in Redis once nothing is expected to change.",
    )

    # -- reading (docs/api.md) -------------------------------------------------------------------------------
    api_keys: Secret = Field(
        Secret(""),
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
    api_jwt_jwks: JwksPlace = Field(
        JwksPlace(""),
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
    api_write: bool = Field(
        False,
        description=(
            "Whether `orders api` takes in events (POST /events), from keys with the scope `write`. Off,"
            " because a service that only reads needs no rights to write."
        ),
    )
    api_keys_file: Path | None = Field(
        None,
        description=(
            "File that holds the keys, instead of ORDERS_API_KEYS: read again whenever it changes. An empty"
            " one admits nobody."
        ),
    )

    # -- the console (docs/how-to/use-the-console.md) --------------------------------------------------------
    console_secret: Secret = Field(
        Secret(""),
        description=(
            "What `orders console` signs its sessions with: the same for all of its processes. Empty: each"
            " process makes one, and a restart ends all sessions."
        ),
    )
    console_secret_file: Path | None = Field(
        None, description="File that holds it, instead of ORDERS_CONSOLE_SECRET: read again for each request."
    )
    console_idle: int = Field(
        3600,
        ge=60,
        le=604_800,
        description="Seconds after which a session of the console ends that nobody uses.",
    )
    console_session: int = Field(
        43_200,
        ge=60,
        le=2_592_000,
        description="Seconds after which a session of the console ends, however much it is used.",
    )
    console_proxy_user: str = Field(
        "",
        description=(
            "Header in which a proxy that logs people in names them to the console, such as"
            " X-Forwarded-Email. Empty: no proxy is believed."
        ),
    )
    console_proxy_groups: str = Field(
        "X-Forwarded-Groups", description="Header in which it names their groups, separated by commas."
    )
    console_proxy_viewers: str = Field("", description="Groups, separated by commas, that are viewers.")
    console_proxy_support: str = Field("", description="Groups, separated by commas, that are support.")
    console_proxy_operators: str = Field("", description="Groups, separated by commas, that are operators.")
    console_proxy_addresses: str = Field(
        "",
        description=(
            "Addresses or networks, separated by commas, from which alone the proxy's headers are believed,"
            " such as 10.0.0.5,fd00::/64."
        ),
    )
    console_proxy_secret: Secret = Field(
        Secret(""),
        description=(
            "What the proxy shows in the header X-Orders-Proxy-Secret. This, the addresses or both must be"
            " set for a proxy to be believed."
        ),
    )
    console_proxy_secret_file: Path | None = Field(
        None,
        description=(
            "File that holds it, instead of ORDERS_CONSOLE_PROXY_SECRET: read again for each request."
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
        "info",
        description="The lowest level that is logged; orders log-level changes a worker's while it runs.",
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Format of the log: console for people, json for machines, with fields."
    )
    metrics_port: int = Field(
        0, ge=0, le=65535, description="Port of the Prometheus metrics, /live and /ready. 0: none of them."
    )
    metrics_host: str = Field(
        "127.0.0.1",
        description=(
            "Address of the Prometheus metrics. Loopback, because they have no password; 0.0.0.0 in a"
            " container."
        ),
    )

    @field_validator("data", mode="before")
    @classmethod
    def _folder(cls, value: Any) -> Any:
        if isinstance(value, str):
            if not value.strip():
                raise ValueError("must be a folder, not empty")
            if value != value.encode(errors="replace").decode():
                raise ValueError("must be written in UTF-8")
        return value

    @field_validator("kafka")
    @classmethod
    def _brokers(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                "must be host:port,host:port without a scheme: ORDERS_KAFKA_SECURITY_PROTOCOL and"
                " ORDERS_KAFKA_SASL_... say how to connect"
            )
        for number, broker in enumerate(value.split(","), 1):
            address = _BROKER.fullmatch(broker.strip())
            if address is None or int(address["port"]) > 65535:
                raise ValueError(f"broker {number} is not host:port; write ORDERS_KAFKA=host:port,host:port")
        return value

    @field_validator("api_keys")
    @classmethod
    def _api_keys(cls, value: Secret) -> Secret:
        _check_keys(value.get_secret_value())
        return value

    @field_validator("console_secret", "console_proxy_secret")
    @classmethod
    def _long(cls, value: Secret) -> Secret:
        _check_long(value.get_secret_value())
        return value

    @field_validator("console_proxy_user", "console_proxy_groups")
    @classmethod
    def _header(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z0-9-]{1,64}", value):
            raise ValueError("must be the name of a header: letters, digits and dashes")
        return value

    @field_validator("console_proxy_addresses")
    @classmethod
    def _addresses(cls, value: str) -> str:
        _networks(value)
        return value

    @field_validator("kafka_oauth_token_command")
    @classmethod
    def _token_command(cls, value: Secret) -> Secret:
        try:
            shlex.split(value.get_secret_value())
        except ValueError as error:
            raise ValueError(f"can't be split into words ({error}); quote it as for a shell") from None
        return value

    @field_validator("kafka_oauth_extensions")
    @classmethod
    def _oauth_extensions(cls, value: str) -> str:
        names = []
        for number, each in enumerate(value.split(",") if value else (), 1):
            extension = _EXTENSION.fullmatch(each.strip())
            if extension is None or extension["name"] == "auth":
                raise ValueError(
                    f"extension {number} is not name=value, with letters alone in the name; write"
                    " logicalCluster=lkc-...,identityPoolId=pool-..."
                )
            names.append(extension["name"])
        if len(names) != len(set(names)):
            raise ValueError("names an extension twice")
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_files(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Read the secrets that lie in files."""
        # An empty variable is as good as none, so that a compose file can pass them all on.
        values = {
            name: value
            for name, value in values.items()
            if value != "" or not name.startswith("kafka_") or name in SECRET_FILES
        }
        user = values.get("kafka_sasl_username_file")
        if user and not values.get("kafka_sasl_username"):
            values["kafka_sasl_username"] = Name.from_file("ORDERS_KAFKA_SASL_USERNAME_FILE", Path(user))
        elif user:
            raise ValueError("ORDERS_KAFKA_SASL_USERNAME and ORDERS_KAFKA_SASL_USERNAME_FILE are both set")
        for name, (kind, check) in SECRET_FILES.items():
            path = values.get(f"{name}_file")
            if not path:
                values.pop(f"{name}_file", None)
                continue
            variable = f"ORDERS_{name.upper()}"
            if values.get(name):
                raise ValueError(f"{variable} and {variable}_FILE are both set; set one of them")
            values[name] = kind.from_file(f"{variable}_FILE", Path(path), check)
        return values

    @model_validator(mode="after")
    def _kafka_security(self) -> Self:
        """What belongs together is set together."""
        for problem in _security_problems(self):
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _proxy(self) -> Self:
        """Whoever may send the headers of a proxy is known, and so is who comes in by them."""
        if not self.console_proxy_user:
            return self
        if not self.console_proxy_addresses and not self.console_proxy_secret.get_secret_value():
            raise ValueError(
                "ORDERS_CONSOLE_PROXY_USER is set, so ORDERS_CONSOLE_PROXY_ADDRESSES or"
                " ORDERS_CONSOLE_PROXY_SECRET must be: else anybody could send that header"
            )
        if not (self.console_proxy_viewers or self.console_proxy_support or self.console_proxy_operators):
            raise ValueError(
                "ORDERS_CONSOLE_PROXY_USER is set, so ORDERS_CONSOLE_PROXY_VIEWERS, _SUPPORT or _OPERATORS"
                " must name a group"
            )
        return self

    @field_validator("redis_prefix")
    @classmethod
    def _no_key_of_ours(cls, value: str) -> str:
        if not re.fullmatch(r"(?:[A-Za-z0-9_.-]{1,64}:){0,8}", value):
            raise ValueError("must be names of letters, digits and _.-, each with a colon behind it")
        # Else the keys of a system without a prefix could be those of one with it.
        ours = {"order", "user", "tracking", "rows", "cache"}.intersection(value.split(":"))
        if ours:
            raise ValueError(f"{min(ours)}: is how keys begin without a prefix; take another name")
        return value

    @field_validator("api_rate")
    @classmethod
    def _a_rate(cls, value: float) -> float:
        if 0 < value < LEAST_RATE:
            raise ValueError(f"must be 0, or {LEAST_RATE:g} or more")
        return value

    @property
    def pooled(self) -> bool:
        """Whether a pooler stands before Postgres."""
        return self.postgres_pooler != "none"

    @property
    def bearer_keys(self) -> list[str]:
        """The keys of api_keys."""
        return [key.strip() for key in self.api_keys.get_secret_value().split(",") if key.strip()]

    @property
    def proxy_networks(self) -> list[Network]:
        """Those of console_proxy_addresses."""
        return _networks(self.console_proxy_addresses)

    @property
    def brokers(self) -> list[str]:
        """Brokers as a list of host:port."""
        return [broker.strip() for broker in self.kafka.split(",")]

    @property
    def oauth_extensions(self) -> dict[str, str]:
        """kafka_oauth_extensions by name."""
        given = self.kafka_oauth_extensions
        pairs = [each.strip().partition("=") for each in given.split(",")] if given else []
        return {name: value for name, _, value in pairs}

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
            ship=ms(self.ship_within),
            deliver=ms(self.deliver_within),
            ship_cancel=ms(self.ship_cancel_after),
            return_=ms(self.return_within),
            refund_retry=ms(self.refund_retry_after),
            refund_attempts=self.refund_attempts,
        )

    @property
    def limits(self) -> Limits:
        """How much an order and a record may hold, by message_bytes."""
        return limits_of(self.message_bytes)

    @property
    def most_written_bytes(self) -> int:
        """The largest batch that every topic takes that a lane writes: the inputs take the least."""
        return self.limits.input

    @property
    def bulk_group(self) -> str:
        """Consumer group of the bulk workers."""
        return f"{self.group}-bulk"

    @property
    def changelog_topic(self) -> str:
        """Name of the changelog topic of the orders table."""
        return f"{self.group}-state-changelog"


Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _networks(text: str) -> list[Network]:
    try:
        return [ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip()]
    except ValueError:  # its text repeats what was given
        raise ValueError("must be addresses or networks, such as 10.0.0.5,fd00::/64") from None


def _check_keys(text: str) -> None:
    if any(not _KEY.fullmatch(key.strip()) for key in text.split(",") if key.strip()):
        raise ValueError(
            "each key is at least 16 of A-Z a-z 0-9 . _ ~ + / -; make one with: openssl rand -hex 32"
        )


def _check_long(text: str) -> None:
    if text and len(text) < LEAST_SECRET:
        raise ValueError(f"has fewer than {LEAST_SECRET} characters; make one with: openssl rand -hex 32")


SECRET_FILES: Final[dict[str, tuple[type[Secret], Callable[[str], object] | None]]] = {
    "kafka_sasl_password": (Secret, None),
    "kafka_ssl_key_password": (Secret, None),
    "postgres": (PostgresUrl, None),
    "postgres_replica": (PostgresUrl, None),
    "redis": (RedisUrl, None),
    "api_keys": (Secret, _check_keys),
    "console_secret": (Secret, _check_long),
    "console_proxy_secret": (Secret, _check_long),
}
"""Secrets that may lie in a file, which ORDERS_<NAME>_FILE names: how each is kept, and what it must be."""


def _security_problems(s: Settings) -> Iterator[str]:
    """What is wrong with the settings of Kafka's security, each in a line. Repeats no secret. Pure."""
    protocol = s.kafka_security_protocol
    sasl, tls = protocol.startswith("SASL_"), protocol.endswith("SSL")
    password, username = bool(s.kafka_sasl_password), bool(s.kafka_sasl_username)
    token = [
        name
        for name, given in (
            ("ORDERS_KAFKA_OAUTH_TOKEN_FILE", s.kafka_oauth_token_file),
            ("ORDERS_KAFKA_OAUTH_TOKEN_COMMAND", s.kafka_oauth_token_command),
        )
        if given
    ]
    if len(token) > 1:
        yield f"{' and '.join(token)} are both set; set one of them"
    token += ["ORDERS_KAFKA_OAUTH_EXTENSIONS"] * bool(s.kafka_oauth_extensions)
    if not sasl:
        login = [
            name
            for name, given in (
                ("ORDERS_KAFKA_SASL_MECHANISM", s.kafka_sasl_mechanism),
                ("ORDERS_KAFKA_SASL_USERNAME", username),
                ("ORDERS_KAFKA_SASL_PASSWORD", password),
            )
            if given
        ] + token
        if login:
            yield (
                f"{login[0]} is set, but ORDERS_KAFKA_SECURITY_PROTOCOL={protocol} doesn't log in; make it"
                f" {'SASL_SSL' if tls else 'SASL_SSL (or SASL_PLAINTEXT)'}"
            )
    elif s.kafka_sasl_mechanism is None:
        yield (
            f"ORDERS_KAFKA_SECURITY_PROTOCOL={protocol} needs ORDERS_KAFKA_SASL_MECHANISM: PLAIN,"
            " SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER"
        )
    elif s.kafka_sasl_mechanism == "OAUTHBEARER":
        if not (s.kafka_oauth_token_file or s.kafka_oauth_token_command):
            yield (
                "ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER needs ORDERS_KAFKA_OAUTH_TOKEN_FILE or"
                " ORDERS_KAFKA_OAUTH_TOKEN_COMMAND"
            )
        if username or password:
            yield (
                "ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER logs in by a token: take ORDERS_KAFKA_SASL_USERNAME"
                " and ORDERS_KAFKA_SASL_PASSWORD away"
            )
    else:
        if not (username and password):
            yield (
                f"ORDERS_KAFKA_SASL_MECHANISM={s.kafka_sasl_mechanism} needs ORDERS_KAFKA_SASL_USERNAME and"
                " ORDERS_KAFKA_SASL_PASSWORD (or ORDERS_KAFKA_SASL_PASSWORD_FILE)"
            )
        if token:
            yield f"{token[0]} is for ORDERS_KAFKA_SASL_MECHANISM=OAUTHBEARER; take it away"
    yield from _certificate_problems(s, protocol, tls)


def _certificate_problems(s: Settings, protocol: str, tls: bool) -> Iterator[str]:
    files = [
        name for name in ("cafile", "certfile", "keyfile", "key_password") if getattr(s, f"kafka_ssl_{name}")
    ]
    if files and not tls:
        yield (
            f"ORDERS_KAFKA_SSL_{files[0].upper()} is set, but ORDERS_KAFKA_SECURITY_PROTOCOL={protocol}"
            f" doesn't encrypt; make it {'SASL_SSL' if protocol.startswith('SASL_') else 'SSL'}"
        )
    if s.kafka_ssl_certfile is None and (s.kafka_ssl_keyfile or s.kafka_ssl_key_password):
        yield f"ORDERS_KAFKA_SSL_{files[-1].upper()} needs a certificate: set ORDERS_KAFKA_SSL_CERTFILE"


_OTHERS: Final = frozenset({"ORDERS_COMPILED", "ORDERS_OLIST"})
"""Names in the environment that are no settings: of compiled/, and of the tests."""
_SERVICE: Final = "_SERVICE_HOST"
"""How a name ends that Kubernetes gives to the address of a service, which may be called `orders`. Others
that begin alike come with it.
"""


def unknown(names: Collection[str]) -> Iterator[tuple[str, str | None]]:
    """Those of these names of the environment that begin as a setting's and are none, each with the name of
    the setting that is nearest to it, if one is near. Pure.
    """
    known = {f"ORDERS_{name}".upper() for name in Settings.model_fields} | _OTHERS
    services = tuple(
        f"{name.removesuffix(_SERVICE)}{kind}"
        for name in names
        if name.endswith(_SERVICE)
        for kind in ("_SERVICE_", "_PORT")
    )
    for name in sorted(names):
        upper = name.upper()
        if upper.startswith("ORDERS_") and upper not in known and not name.startswith(services):
            yield name, next(iter(get_close_matches(upper, sorted(known - _OTHERS), 1, 0.8)), None)


find_servers: Callable[[], dict[str, str]] = dict
"""Returns settings, by name, of servers that the environment doesn't name.

Only the command line replaces it: it looks for a local stack.
"""


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read from the environment once.
    Raises pydantic.ValidationError and SmallLetters.
    """
    return Settings.model_validate(find_servers())
