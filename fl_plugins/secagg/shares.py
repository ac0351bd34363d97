"""The packet in which a node sends another a secret through the server: AES-256-GCM.

Between clients the plaintext is: share of the owner's own-mask seed ‖ share of its masking key, 66 bytes. The
key is fresh for each pair and attempt, and each direction has its own nonce, so no nonce is used twice. The
associated data bind a packet to the transcript, its sender and its receiver: a packet of another round, or
turned round, does not open.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ..errors import PacketError
from .shamir import SHARE_BYTES

TAG_BYTES = 16
PACKET_BYTES = 2 * SHARE_BYTES + TAG_BYTES


def seal(key: bytes, shares: tuple[bytes, bytes], *, sender: int, receiver: int, transcript: bytes) -> bytes:
    """Return the packet of (own-mask share, masking-key share)."""
    return seal_secret(key, shares[0] + shares[1], sender=sender, receiver=receiver, transcript=transcript)


def open_packet(
    key: bytes, packet: bytes, *, sender: int, receiver: int, transcript: bytes
) -> tuple[bytes, bytes]:
    """Return (own-mask share, masking-key share).

    Raises
    ------
    PacketError
        If it is not what the sender sealed for the receiver under this transcript; names the sender.
    """
    plain = open_secret(key, packet, sender=sender, receiver=receiver, transcript=transcript)
    return plain[:SHARE_BYTES], plain[SHARE_BYTES:]


def seal_secret(key: bytes, secret: bytes, *, sender: int, receiver: int, transcript: bytes) -> bytes:
    """Return the secret, encrypted; a key seals one secret in each direction, ever."""
    return AESGCM(key).encrypt(_nonce(sender, receiver), secret, _bound_to(transcript, sender, receiver))


def open_secret(key: bytes, packet: bytes, *, sender: int, receiver: int, transcript: bytes) -> bytes:
    """Return what the sender sealed for the receiver under this transcript.

    Raises
    ------
    PacketError
        If it is anything else; names the sender.
    """
    try:
        return AESGCM(key).decrypt(_nonce(sender, receiver), packet, _bound_to(transcript, sender, receiver))
    except InvalidTag:
        raise PacketError(
            f"secagg: the secrets of node {sender} for node {receiver} do not open: they were changed on the "
            "way, belong to another round, or the two nodes were shown different keys or parameters.",
            suspects=[sender],
        ) from None


def _nonce(sender: int, receiver: int) -> bytes:
    return bytes(11) + bytes([sender > receiver])


def _bound_to(transcript: bytes, sender: int, receiver: int) -> bytes:
    return transcript + sender.to_bytes(8, "big") + receiver.to_bytes(8, "big")
