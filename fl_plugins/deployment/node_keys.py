"""The key pair by which the SuperLink knows a SuperNode: ECDSA on P-384, in OpenSSH's format.

flwr 1.41 reads the private key with ``load_ssh_private_key`` and refuses other than NIST curves; the public
key is what ``flwr supernode register`` (or ``fl-plugins deploy register``) is given.
"""

from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fl_plugins.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class NodeKey:
    """One node's key pair as the contents of two files; the private one is in no ``repr``."""

    public: bytes
    private: bytes = field(repr=False)


def make_node_key(comment: str) -> NodeKey:
    """Make a key pair; ``comment`` (one word) ends the public key's line, as OpenSSH has it."""
    key = ec.generate_private_key(ec.SECP384R1())
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    return NodeKey(public=line + b" " + comment.encode() + b"\n", private=private)


def public_key_for_flower(path: Path) -> bytes:
    """Return a public key file as Flower's register request wants it: SubjectPublicKeyInfo as PEM.

    Raises
    ------
    ConfigError
        If the file holds no public key on P-384 in OpenSSH's format.
    """
    try:
        key = serialization.load_ssh_public_key(path.read_bytes())
    except (ValueError, UnsupportedAlgorithm, OSError) as error:
        raise ConfigError(
            f"deploy: {path} holds no OpenSSH public key ({error}); give a node's .pub."
        ) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(
            f"deploy: {path} is no key on the curve P-384, which nodes have; give a node's .pub."
        )
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
