"""Certificates for this machine, made on the spot and signed by themselves or by an authority that was."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)

HERE = (x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1")))
"""What a certificate stands for by default: this machine."""


@dataclass(frozen=True, slots=True)
class Authority:
    """Whose word counts: its certificate, and the key by which it signs others."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def certificate(
    cert: Path,
    key: Path,
    *,
    name: str = "orders",
    days: float = 1,
    password: bytes | None = None,
    names: tuple[x509.GeneralName, ...] = HERE,
    by: Authority | None = None,
) -> Authority:
    """Write a certificate that ends in so many days, and its key, both as PEM. It stands for `names`.

    `by`: who signs it, by default it itself. `password` locks the key, which only its owner can read.
    """
    private = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(by.certificate.subject if by else subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=10))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None if by else 0), critical=True)
        .sign(by.key if by else private, SHA256())
    )
    lock = NoEncryption() if password is None else BestAvailableEncryption(password)
    cert.write_bytes(signed.public_bytes(Encoding.PEM))
    key.touch(mode=0o600)
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    return Authority(signed, private)
