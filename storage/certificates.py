"""Certificates that live no longer than a process: for the connections of a cluster that one user starts and nobody else may use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

# A clock that is put back must not end a job, and no job takes so long.
_BEFORE = timedelta(days=2)
_AFTER = timedelta(days=3650)


def make_certificate(name: str) -> tuple[str, str]:
    """Make a key and a certificate that it signs itself.

    Returns
    -------
    tuple of str
        The certificate and the private key, both PEM. Neither is written anywhere.

    Examples
    --------
    >>> certificate, key = make_certificate("worker")
    >>> certificate.splitlines()[0], key.splitlines()[0]
    ('-----BEGIN CERTIFICATE-----', '-----BEGIN PRIVATE KEY-----')
    """
    # An elliptic curve: a hundredth of the time that an RSA key takes to make, and to greet each connection with.
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BEFORE)
        .not_valid_after(now + _AFTER)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
