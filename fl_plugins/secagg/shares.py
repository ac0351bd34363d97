"""The packet in which a node sends another its two shares through the server: AES-256-GCM.

Plaintext: share of the owner's own-mask seed ‖ share of its masking key, 66 bytes. The key is fresh for each
pair and attempt, and each direction has its own nonce, so no nonce is used twice. The associated data bind a
packet to the transcript, its sender and its receiver: a packet of another round, or turned round, does not
open.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import PacketError
from .shamir import SHARE_BYTES

PACKET_BYTES = 2 * SHARE_BYTES + 16


def seal(key: bytes, shares: tuple[bytes, bytes], *, sender: int, receiver: int, transcript: bytes) -> bytes:
    """Return the packet of (own-mask share, masking-key share)."""
    return AESGCM(key).encrypt(
        _nonce(sender, receiver), shares[0] + shares[1], _bound_to(transcript, sender, receiver)
    )


def open_packet(
    key: bytes, packet: bytes, *, sender: int, receiver: int, transcript: bytes
) -> tuple[bytes, bytes]:
    """Return (own-mask share, masking-key share).

    Raises
    ------
    PacketError
        If it is not what the sender sealed for the receiver under this transcript; names the sender.
    """
    try:
        plain = AESGCM(key).decrypt(_nonce(sender, receiver), packet, _bound_to(transcript, sender, receiver))
    except InvalidTag:
        raise PacketError(
            f"secagg: the shares of node {sender} for node {receiver} do not open: they were changed on the "
            "way, belong to another round, or the two nodes were shown different keys or parameters.",
            suspects=[sender],
        ) from None
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]


def _nonce(sender: int, receiver: int) -> bytes:
    return bytes(11) + bytes([sender > receiver])


def _bound_to(transcript: bytes, sender: int, receiver: int) -> bytes:
    return transcript + sender.to_bytes(8, "big") + receiver.to_bytes(8, "big")
