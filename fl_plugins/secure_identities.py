"""Identities for the malicious tier: a private key for each node, and the roster of all public ones.

The roster is what makes the tier: whoever can write it can invent nodes. It comes from the operators, by a
way that the server has no hand in, and is the same file on every node::

    [identities]
    hospital-a = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from .errors import ConfigError
from .secagg import Identity
from .secagg.keys import KEY_BYTES

PRIVATE_KEY = "secagg_identity.pem"
PUBLIC_KEY = "secagg_identity.pub"


def make_identity(folder: Path) -> bytes:
    """Write a fresh identity into ``folder`` and return its public key; the private one is its owner's alone.

    Raises
    ------
    ConfigError
        If there is one already: the peers' rosters name it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    identity = Identity.generate()
    pem = identity.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(folder / PRIVATE_KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"secagg identity: {folder / PRIVATE_KEY} exists, and rosters may name it; give another folder."
        ) from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    (folder / PUBLIC_KEY).write_text(identity.public.hex() + "\n", encoding="utf-8")
    return identity.public


def read_identity(path: Path) -> Identity:
    """Read a private key.

    Raises
    ------
    ConfigError
        If it cannot be read; the message does not show it.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"secagg identity {path}: cannot be read ({error.strerror}).") from None
    return Identity.from_pem(data)


def read_public_key(name: str, path: Path) -> bytes:
    """Read what :func:`make_identity` wrote as a node's public key.

    Raises
    ------
    ConfigError
        If it cannot be read or is none.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"secagg roster: {path} cannot be read ({error}).") from None
    return _checked(name, text)


def write_roster(path: Path, identities: Mapping[str, bytes], *, at_least: int = 2) -> None:
    """Write the public keys by the nodes' names.

    Raises
    ------
    ConfigError
        If a name or a key is none, two names have one key, or there are fewer than ``at_least``.
    """
    lines = [f'{name} = "{_checked(name, key.hex()).hex()}"' for name, key in identities.items()]
    if len(set(identities.values())) != len(identities) or len(identities) < at_least:
        raise ConfigError(
            f"secagg roster: {len(identities)} nodes, but it needs at least {at_least}, each with a key of "
            "its own; make an identity for each."
        )
    path.write_text("\n".join(["[identities]", *lines, ""]), encoding="utf-8")


def read_roster(path: Path, *, at_least: int = 2) -> dict[str, bytes]:
    """Read the public keys by the nodes' names.

    Raises
    ------
    ConfigError
        If the file is no roster of at least ``at_least`` nodes, each with a key of its own.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"secagg roster {path}: cannot be read ({error}); mend the file.") from None
    table = given.get("identities")
    if set(given) != {"identities"} or not isinstance(table, dict) or len(table) < at_least:
        raise ConfigError(
            f'secagg roster {path}: it has one table [identities] of at least {at_least} lines, name = "key".'
        )
    keys = {name: _checked(name, value) for name, value in table.items()}
    if len(set(keys.values())) != len(keys):
        raise ConfigError(f"secagg roster {path}: two nodes have one key; make an identity for each.")
    return keys


def _checked(name: str, value: object) -> bytes:
    """Return a public key from its hexadecimal digits."""
    plain = name.replace("-", "").replace("_", "").isalnum() and name.isascii()
    try:
        key = bytes.fromhex(value) if isinstance(value, str) else b""
    except ValueError:
        key = b""
    if not plain or len(key) != KEY_BYTES:
        raise ConfigError(
            f"secagg roster: {name!r} = {value!r}, but a name has letters, digits, - and _ only, and a key "
            f"is {2 * KEY_BYTES} hexadecimal digits; `fl-plugins secagg identity` writes them."
        )
    return key
