"""A broker that asks for a login: listeners with TLS, SASL and client certificates, an authorizer, and
certificates made on the spot.

Nobody may do anything on it but its operator, who connects to the listener without a login, and those who
were given an ACL.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.protocol.admin import CreateAclsRequest, DeleteAclsRequest, DescribeAclsRequest
from cryptography.x509 import DNSName

from operations.secured import make_logins
from stack.certificates import HERE, certificate
from stack.kafka import Broker
from stack.state import State
from tests.servers import kafka_settings
from tests.waiting import eventually, until

USER: Final = "worker"
PASSWORD: Final = "MarkedSecret-of-the-worker"
DENY, ALLOW = 2, 3
LISTENERS: Final = {
    "LOGIN": "SASL_SSL",
    "CLEAR": "SASL_PLAINTEXT",
    "BRIEF": "SASL_SSL",
    "MUTUAL": "SSL",
    "EXPIRED": "SSL",
    "OTHER": "SSL",
}
"""BRIEF ends each session after two seconds, so that clients log in again and again. EXPIRED and OTHER have
certificates that are so, or are another host's.
"""
_JAAS: Final = {
    "plain": 'plain.PlainLoginModule required user_{user}="{password}"',
    "scram-sha-512": "scram.ScramLoginModule required",
    "oauthbearer": 'oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="broker"',
}


class SecureBroker(Broker):
    """One node. Its listeners are those of LISTENERS, and PLAINTEXT for its operator."""

    @property
    def purposes(self) -> frozenset[str]:
        return super().purposes | {name.lower() for name in LISTENERS}

    def at(self, listener: str) -> str:
        """host:port."""
        return f"127.0.0.1:{self.state.port(self.name, listener.lower())}"

    def _properties(self) -> str:
        properties = dict(line.split("=", 1) for line in super()._properties().splitlines())
        for name in ("listeners", "advertised.listeners"):
            properties[name] += "".join(f",{each}://{self.at(each)}" for each in LISTENERS)
        properties["listener.security.protocol.map"] += "".join(
            f",{each}:{protocol}" for each, protocol in LISTENERS.items()
        )
        properties |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
            "listener.name.brief.connections.max.reauth.ms": "2000",
        }
        folder = self.folder / "certificates"
        for listener, protocol in LISTENERS.items():
            here = f"listener.name.{listener.lower()}."
            if protocol.endswith("SSL"):
                own = listener.lower() if listener in ("EXPIRED", "OTHER") else "broker"
                properties |= {
                    f"{here}ssl.keystore.type": "PEM",
                    f"{here}ssl.keystore.location": str(folder / f"{own}.both.pem"),
                    f"{here}ssl.truststore.type": "PEM",
                    f"{here}ssl.truststore.location": str(folder / "ca.pem"),
                    f"{here}ssl.client.auth": "required" if listener == "MUTUAL" else "none",
                }
            if protocol.startswith("SASL"):
                properties[f"{here}sasl.enabled.mechanisms"] = "PLAIN,SCRAM-SHA-512,OAUTHBEARER"
                for mechanism, module in _JAAS.items():
                    properties[f"{here}{mechanism}.sasl.jaas.config"] = (
                        "org.apache.kafka.common.security."
                        + module.format(user=USER, password=PASSWORD)
                        + ";"
                    )
        return "".join(f"{name}={value}\n" for name, value in properties.items())


class Secure:
    """A running broker, the files of its certificates, and what its operator does."""

    def __init__(self, broker: SecureBroker) -> None:
        self.broker = broker
        self.folder = broker.folder / "certificates"

    def env(self, listener: str, **settings: str) -> dict[str, str]:
        """ORDERS_KAFKA... that lead to a listener; `settings` without their prefix."""
        protocol = LISTENERS[listener]
        values = {"SECURITY_PROTOCOL": protocol}
        if protocol.endswith("SSL"):
            values["SSL_CAFILE"] = str(self.folder / "ca.pem")
        named = {f"ORDERS_KAFKA_{name}": value for name, value in (values | settings).items()}
        return {"ORDERS_KAFKA": self.broker.at(listener), **named}

    def scram(self, listener: str = "LOGIN", password: str = PASSWORD) -> dict[str, str]:
        """The same, with a login by SCRAM-SHA-512."""
        login = {"SASL_MECHANISM": "SCRAM-SHA-512", "SASL_USERNAME": USER, "SASL_PASSWORD": password}
        return self.env(listener, **login)

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """A client that may do everything."""
        admin = AIOKafkaAdminClient(bootstrap_servers=f"127.0.0.1:{self.broker.port}")
        await admin.start()
        try:
            yield admin
        finally:
            await admin.close()

    async def set_password(self, password: str, user: str = USER) -> None:
        """Of SCRAM."""
        await make_logins(kafka_settings(f"127.0.0.1:{self.broker.port}"), {user: password})

    async def allow(
        self, rules: Iterable[tuple[str, str, str]], user: str = USER, permission: int = ALLOW
    ) -> None:
        """Add ACLs: (operation, kind of resource, name or * or prefix*), which allow it or DENY it."""
        async with self.operator() as admin:
            for operation, kind, name in rules:
                pattern = _PREFIXED if name.endswith("*") and name != "*" else _LITERAL
                response = await admin._send_request(
                    CreateAclsRequest(
                        _KINDS[kind],
                        name.removesuffix("*") if pattern is _PREFIXED else name,
                        pattern,
                        f"User:{user}",
                        "*",
                        _OPERATIONS[operation],
                        permission,
                    )
                )
                assert not response.to_object()["creation_responses"][0]["error_code"], response
            await self._settled(admin, user, permission, some=True)

    async def forget(self, permission: int = ALLOW, user: str = USER) -> None:
        """Take all ACLs of a user away that allow something, or those that DENY."""
        async with self.operator() as admin:
            await admin._send_request(DeleteAclsRequest(1, None, 1, f"User:{user}", None, 1, permission))
            await self._settled(admin, user, permission, some=False)

    @staticmethod
    async def _settled(admin: AIOKafkaAdminClient, user: str, permission: int, some: bool) -> None:
        """The broker, which hears of it later than its controller, knows such ACLs of the user, or none."""

        async def known() -> bool:
            response = await admin._send_request(
                DescribeAclsRequest(1, None, 1, f"User:{user}", None, 1, permission)
            )
            return bool(response.resources) is some

        await eventually(known, f"the broker knows {'ACLs' if some else 'no ACL'} of {user}")


_LITERAL, _PREFIXED = 3, 4
_KINDS: Final = {"Topic": 2, "Group": 3, "Cluster": 4, "TransactionalId": 5}
_OPERATIONS: Final = {
    name: number
    for number, name in enumerate(
        (
            "All",
            "Read",
            "Write",
            "Create",
            "Delete",
            "Alter",
            "Describe",
            "ClusterAction",
            "DescribeConfigs",
            "AlterConfigs",
            "IdempotentWrite",
        ),
        2,
    )
}


def certificates(folder: Path) -> None:
    """Make an authority (ca.pem) and what it signs: broker, expired, other, client, each as NAME.pem,
    NAME.key and both in one file; and another authority, stranger.pem.
    """
    folder.mkdir()
    ca, _ = (
        certificate(folder / f"{name}.pem", folder / f"{name}.key", name=name) for name in ("ca", "stranger")
    )
    for name, days, names in (
        ("broker", 2, HERE),
        ("expired", -1, HERE),
        ("other", 2, (DNSName("elsewhere.example"),)),
        ("client", 2, (DNSName("client.example"),)),
    ):
        own, key = folder / f"{name}.pem", folder / f"{name}.key"
        certificate(own, key, name=name, days=days, names=names, by=ca)
        (folder / f"{name}.both.pem").write_text(key.read_text() + own.read_text())


def token(subject: str = USER, seconds: float = 3600) -> str:
    """An unsecured JWS, as a broker without an issuer takes it."""
    now = time.time()
    parts = ({"alg": "none"}, {"sub": subject, "iat": now - 10, "exp": now + seconds})
    encoded = [base64.urlsafe_b64encode(json.dumps(each).encode()).decode().rstrip("=") for each in parts]
    return ".".join((*encoded, ""))


@contextmanager
def secure_broker(folder: Path) -> Iterator[Secure]:
    """A broker in `folder`, which is stopped at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates(folder / "certificates")
    state = State(path=folder / "stack.json", brokers=1)
    broker = SecureBroker(1, folder, state, lambda line: None)
    state.assign(broker.name, broker.purposes)
    broker.log.parent.mkdir(exist_ok=True)
    broker.prepare()
    process = broker.launch()
    try:

        def ready() -> bool:
            assert process.poll() is None, broker.log.read_text()[-3000:]
            return broker.ready()

        until(ready, "the broker with a login is ready", 90)
        yield Secure(broker)
    finally:
        process.kill()
        process.wait()


def settings_of(env: Mapping[str, str]) -> Any:
    """Settings of these variables alone."""
    from settings import Settings

    return Settings.model_validate(
        {name.removeprefix("ORDERS_").lower(): value for name, value in env.items()}
    )
