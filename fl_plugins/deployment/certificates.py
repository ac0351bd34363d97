"""A certificate authority of this deployment alone, and the SuperLink's certificate signed by it.

X.509 v3 (RFC 5280) with ECDSA keys on P-384 and SHA-384. Nodes are given the authority's certificate and
trust no other, so that nobody but the holder of its key can stand in for the SuperLink. Nodes themselves
have no certificates: Flower authenticates them by their own keys (:mod:`fl_plugins.deployment.node_keys`).
"""

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fl_plugins.checks import check_int
from fl_plugins.errors import ConfigError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 365

CLOCK_SKEW = timedelta(hours=1)
"""Certificates are valid from so long before they were made: a node's clock may be behind."""

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Always among the server's names: the SuperLink starts ServerApps that connect to it on its own machine."""

_DNS_NAME = re.compile(
    r"(?=.{1,253}\Z)([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"
)


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A certificate and its private key; the key is in no ``repr``."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def certificate_pem(self) -> bytes:
        """Return the certificate as PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS #8 PEM: a service starts without anybody's password."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


def make_authority(*, days: int = AUTHORITY_DAYS, now: datetime | None = None) -> Issued:
    """Make an authority that can sign end entities only (path length 0).

    Raises
    ------
    ConfigError
        If ``days`` is not >= 1.
    """
    check_int("deploy", "authority days", days, minimum=1)
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-plugins deployment authority")])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(subject=name, issuer=name, key=key, authority_key=key, days=days, now=now)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return Issued(certificate=builder.sign(key, hashes.SHA384()), key=key)


def issue_server(
    authority: Issued, *, host: str, days: int = SERVER_DAYS, now: datetime | None = None
) -> Issued:
    """Make a key and a certificate for a TLS server on ``host`` and on the loopback addresses.

    Raises
    ------
    ConfigError
        If ``host`` is neither an IP address nor a DNS name, or ``days`` is not >= 1.
    """
    check_int("deploy", "days", days, minimum=1)
    names = dict.fromkeys(general_name(each) for each in (host, *LOOPBACK))
    key = ec.generate_private_key(ec.SECP384R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fl-plugins SuperLink")])
    builder = _builder(
        subject=subject,
        issuer=authority.certificate.subject,
        key=key,
        authority_key=authority.key,
        days=days,
        now=now,
    )
    builder = builder.add_extension(x509.SubjectAlternativeName(list(names)), critical=False)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_usage(digital_signature=True), critical=True)
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return Issued(certificate=builder.sign(authority.key, hashes.SHA384()), key=key)


def general_name(host: str) -> x509.GeneralName:
    """Return a host as the name that a certificate has for it.

    >>> general_name("10.0.0.7")
    <IPAddress(value=10.0.0.7)>
    >>> general_name("FL.example.org")
    <DNSName(value='fl.example.org')>

    Raises
    ------
    ConfigError
        If it is neither the IP address of one machine nor a DNS name.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.lower()
    else:
        if address.is_unspecified or address.is_multicast:
            raise ConfigError(
                f"deploy: host={host!r} is no address that a node could connect to; give the name or address "
                "under which nodes reach the SuperLink."
            )
        return x509.IPAddress(address)
    # A name of digits and dots is a mistyped address: no top-level domain is a number.
    if not _DNS_NAME.fullmatch(name) or name.rsplit(".", 1)[-1].isdigit():
        raise ConfigError(
            f"deploy: host={host!r} is neither an IP address nor a DNS name; give the name or address under "
            "which nodes reach the SuperLink, without a port."
        )
    return x509.DNSName(name)


def _builder(
    *,
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    authority_key: ec.EllipticCurvePrivateKey,
    days: int,
    now: datetime | None,
) -> x509.CertificateBuilder:
    """Return what both kinds of certificates have."""
    made = datetime.now(UTC) if now is None else now
    subject_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    issuer_id = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(made - CLOCK_SKEW)
        .not_valid_after(made + timedelta(days=days))
        .add_extension(subject_id, critical=False)
        .add_extension(issuer_id, critical=False)
    )


def _usage(**allowed: bool) -> x509.KeyUsage:
    """Return a key usage that allows only what is named."""
    every = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
        "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: allowed.get(name, False) for name in every})
