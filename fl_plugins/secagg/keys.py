"""Keys: X25519 pairs, what HKDF-SHA256 makes of them, commitments, and Ed25519 identities.

Every derived key names its purpose and is bound to a *transcript*: a hash of the round's parameters (run,
round, attempt, session, digest of the model that the client was given) and of every public key advertised.
Whoever was told something else derives another key, and its masks cancel with nobody's.

X25519: RFC 7748. HKDF: RFC 5869. Ed25519: RFC 8032.
"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ..errors import AdvertError, ConfigError

LABEL = b"flwr-secagg/v1/"
"""Starts every string that is hashed, derived from or signed here; it changes with the protocol."""

KEY_BYTES = 32
SIGNATURE_BYTES = 64


def new_secret() -> bytes:
    """Return 32 bytes from the operating system: an X25519 private key, or the seed of a node's own mask."""
    return os.urandom(KEY_BYTES)


def public_key(secret: bytes) -> bytes:
    """Return the X25519 public key of a 32-byte secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def point_of(public: bytes) -> int:
    """Return the number that an X25519 public key stands for: some have several spellings (RFC 7748, 5)."""
    return (int.from_bytes(public, "little") & ((1 << 255) - 1)) % (2**255 - 19)


def agree(secret: bytes, publics: Mapping[int, bytes]) -> dict[int, bytes]:
    """Return the X25519 shared secret with each node's public key.

    It is never a key by itself, see :func:`pair_key`.

    Raises
    ------
    AdvertError
        If a public key is of low order: the shared secret would be all zeros, known to everyone.
    """
    private, shared = X25519PrivateKey.from_private_bytes(secret), {}
    for node, public in publics.items():
        try:
            shared[node] = private.exchange(X25519PublicKey.from_public_bytes(public))
        except ValueError:
            raise AdvertError(
                f"secagg: node {node} advertised a public key of low order, with which every shared "
                "secret is zero; leave it out.",
                suspects=[node],
            ) from None
    return shared


def derive(secret: bytes, info: bytes) -> bytes:
    """Return 32 bytes of HKDF-SHA256 without salt."""
    return HKDF(SHA256(), KEY_BYTES, None, info).derive(secret)


def pair_key(shared: bytes, purpose: bytes, sid: bytes, nodes: tuple[int, int], transcript: bytes) -> bytes:
    """Return the key that two nodes have for one purpose, the same whoever derives it."""
    low, high = sorted(nodes)
    return derive(shared, LABEL + purpose + sid + _id_bytes(low) + _id_bytes(high) + transcript)


def own_key(seed: bytes, sid: bytes, node: int, transcript: bytes) -> bytes:
    """Return the key of a node's own mask from the secret that it shares among its neighbors."""
    return derive(seed, LABEL + b"self" + sid + _id_bytes(node) + transcript)


def commitment(seed: bytes, context: bytes) -> bytes:
    """Return what a node advertises of its own mask's seed, so that a reconstruction can be checked."""
    return hashlib.sha256(LABEL + b"commit" + seed + context).digest()


def tagged_hash(purpose: bytes, *parts: bytes) -> bytes:
    """Return SHA-256 of the purpose and the parts, each with its length: no two inputs look the same."""
    digest = hashlib.sha256(LABEL + purpose)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.digest()


def _id_bytes(node: int) -> bytes:
    return node.to_bytes(8, "big")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A node's Ed25519 key pair, which outlives rounds; operators list the public halves in the roster."""

    private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh identity."""
        return cls(private=Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, data: bytes) -> Self:
        """Read an unencrypted PKCS #8 file, as ``openssl genpkey -algorithm ed25519`` writes it.

        Raises
        ------
        ConfigError
            If it holds no Ed25519 private key. The message does not show the file.
        """
        try:
            key = load_pem_private_key(data, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigError("secagg: the identity file holds no unencrypted Ed25519 private key in PEM.")
        return cls(private=key)

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return self.private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    def sign(self, message: bytes) -> bytes:
        """Return the 64-byte signature."""
        return self.private.sign(message)


def public_identity_from_pem(data: bytes) -> bytes:
    """Return the 32 bytes of an Ed25519 public key in PEM.

    Raises
    ------
    ConfigError
        If it holds none.
    """
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise ConfigError("secagg: a roster entry is no Ed25519 public key in PEM.")
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def signature_holds(public: bytes, signature: bytes, message: bytes) -> bool:
    """Say whether the owner of the Ed25519 key signed the message."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True
