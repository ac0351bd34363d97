"""Every primitive gives its standard's published values, and the masks those of an independent prototype."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import ECB

from fl_plugins.errors import AdvertError
from fl_plugins.secagg import Identity
from fl_plugins.secagg.keys import agree, derive, own_key, pair_key, public_key, signature_holds
from fl_plugins.secagg.prg import MaskStream, apply_masks
from fl_plugins.secagg.shamir import combine, evaluate
from fl_plugins.secagg.shares import seal

from .masks import mask_words

VECTORS = json.loads((Path(__file__).parents[2] / "vectors" / "secagg_masks.json").read_text())


def _hex(text: str) -> bytes:
    return bytes.fromhex(text)


def test_x25519_is_that_of_rfc_7748_section_6_1() -> None:
    alice = _hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = _hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_key(alice).hex() == "8520f0098930a754748b7ddcb43ef75a0dbf3a0d26381af4eba4a98eaa9b4e6a"
    assert public_key(bob).hex() == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
    shared = "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    assert agree(alice, {2: public_key(bob)})[2].hex() == shared
    assert agree(bob, {1: public_key(alice)})[1].hex() == shared


# Points of order 1, 2, 4 and 8, and encodings of them that are not reduced modulo 2^255 - 19.
@pytest.mark.parametrize(
    "point",
    [
        "00" * 32,
        "01" + "00" * 31,
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
        "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    ],
)
def test_a_public_key_of_low_order_is_refused_and_its_node_named(point: str) -> None:
    with pytest.raises(AdvertError, match="node 9 advertised a public key of low order") as caught:
        agree(bytes(range(32)), {9: _hex(point)})
    assert caught.value.suspects == (9,)


def test_hkdf_is_that_of_rfc_5869_test_case_3() -> None:
    assert derive(b"\x0b" * 22, b"").hex() == (
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    )


def test_hkdf_with_info_is_rfc_5869s_formula() -> None:
    import hmac

    extracted = hmac.digest(bytes(32), b"secret", "sha256")
    assert derive(b"secret", b"info") == hmac.digest(extracted, b"info\x01", "sha256")


def test_ed25519_is_that_of_rfc_8032_test_1() -> None:
    secret = _hex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    identity = Identity(private=Ed25519PrivateKey.from_private_bytes(secret))
    assert identity.public.hex() == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    signature = identity.sign(b"")
    assert signature.hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46b"
        "d25bf5f0595bbe24655141438e7a100b"
    )
    assert signature_holds(identity.public, signature, b"")
    assert not signature_holds(identity.public, signature, b"x")
    assert not signature_holds(identity.public, bytes(64), b"")


def test_the_mask_stream_is_aes_256_of_the_counters() -> None:
    # ECB of SP 800-38A F.1.5, then counter mode written out by hand (section 6.5) as the oracle.
    key = _hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
    ecb = Cipher(AES(key), ECB()).encryptor()
    assert ecb.update(_hex("6bc1bee22e409f96e93d7e117393172a")).hex() == "f3eed1bdb5d2a03c064b5a7e3db181f8"
    blocks = b"".join(ecb.update(number.to_bytes(16, "big")) for number in range(20_000))
    for num_bits in (16, 32):
        words = mask_words(key, len(blocks) * 8 // num_bits, num_bits)
        assert words.tobytes() == blocks


def test_packets_are_sealed_with_gcm_test_case_14() -> None:
    packet = seal(bytes(32), (bytes(33), bytes(33)), sender=1, receiver=2, transcript=bytes(32))
    assert packet[:16].hex() == "cea7403d4d606b6e074ec5d3baf39d18"


def test_a_mask_key_that_is_no_aes_256_key_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        MaskStream(bytes(16))


def _clients() -> list[tuple[int, dict[str, Any]]]:
    return list(zip(VECTORS["ids"], VECTORS["clients"], strict=True))


def test_keys_and_masked_vectors_are_the_prototypes() -> None:
    sid, model, d = _hex(VECTORS["sid"]), _hex(VECTORS["model_hash"]), VECTORS["length"]
    total = np.zeros(d, "<u4")
    for position, (node, client) in enumerate(_clients()):
        secret = _hex(client["sk_mask"])
        assert public_key(secret).hex() == client["pk_mask"]
        own = own_key(_hex(client["b"]), sid, node, model)
        assert own.hex() == client["self_key"]
        added, subtracted = [own], []
        for other, peer in _clients():
            if other != node:
                shared = agree(secret, {other: _hex(peer["pk_mask"])})[other]
                key = pair_key(shared, b"mask", sid, (node, other), model)
                low, high = sorted((node, other))
                assert key.hex() == VECTORS["pair_keys"][f"{low}-{high}"]
                (added if node < other else subtracted).append(key)
        vector = ((np.arange(d) * (position + 1)) % 7 - 3).astype("<i4").view("<u4")
        total += vector
        apply_masks(vector, added, subtracted)
        assert vector[:4].tolist() == client["masked_first4"]
        assert hashlib.sha256(vector.tobytes()).hexdigest() == client["masked_sha256_le"]
    assert hashlib.sha256(total.tobytes()).hexdigest() == VECTORS["sum_sha256_le"]


def test_shares_are_the_prototypes() -> None:
    case = VECTORS["shamir"]
    holders = [int(holder) for holder in case["shares"]]
    polynomial = [int(case["secret"], 16), *case["coeffs"]]
    shares = evaluate(polynomial, holders)
    assert [share.hex() for share in shares] == list(case["shares"].values())
    assert combine(dict(zip(holders, shares, strict=True)), 3) == _hex(case["secret"])


def test_masks_that_cancel_leave_the_vector_whatever_its_length() -> None:
    keys = [bytes([i]) * 32 for i in range(3)]
    for length in (1, 3, 65_535, 65_536, 65_537, 200_000):
        vector = np.arange(length, dtype="<u4")
        apply_masks(vector, keys[:2], keys[2:])
        masks = [mask_words(key, length, 32) for key in keys]
        np.testing.assert_array_equal(vector, np.arange(length, dtype="<u4") + masks[0] + masks[1] - masks[2])
        apply_masks(vector, keys[2:], keys[:2])
        np.testing.assert_array_equal(vector, np.arange(length, dtype="<u4"))
