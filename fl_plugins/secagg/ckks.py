"""Exact sums of encrypted integer vectors: CKKS through TenSEAL, under one secret key of all clients.

Cheon, Kim, Kim & Song, "Homomorphic encryption for arithmetic of approximate numbers" (ASIACRYPT 2017).
Ciphertexts are symmetric, of ring dimension 4096 and a modulus of 109 bits, the most that the homomorphic
encryption standard gives 128-bit security for. Vectors hold the signed words of a ring Z/2^b.

**Rounding.** The decrypted sum is rounded to whole numbers, so the noise of decryption, which tells of the
key (Li & Micciancio, "On the security of homomorphic encryption on approximate numbers", EUROCRYPT 2021),
does not leave with it; more noise than a quarter is refused. That covers sums of ciphertexts; a server that
does anything else with them is not withstood.

TenSEAL is the extra ``he``.
"""

import hashlib
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, EncodingError, MessageFormatError
from .codec import Reader, Writer
from .fixed_point import centered, to_ring
from .keys import LABEL

_DEGREE = 4096
_SLOTS = _DEGREE // 2
_MODULI = [54, 55]
_SCALES = {16: 2.0**34, 32: 2.0**20}
"""By ring: the largest sum times the scale stays below half the first modulus."""

_BLOCK_BYTES = 66_000
"""More than a ciphertext takes: two polynomials of 4096 coefficients of 8 bytes, and a header."""

_MOST_WORDS = (2**31 - 1) // _BLOCK_BYTES * _SLOTS
"""The sum goes to who decrypts it in one record, and what Flower sends is smaller than 2 GiB."""

_MOST_NOISE = 0.25
"""From a whole number; more means that this is no sum of what was encrypted."""


def tenseal() -> Any:
    """Return the library.

    Raises
    ------
    ConfigError
        If it is not installed.
    """
    try:
        import tenseal as library
    except ImportError:
        raise ConfigError("ckks: TenSEAL is not installed; pip install 'fl-plugins[he]'.") from None
    return library


def _context() -> Any:
    """Return a context with a fresh key."""
    library = tenseal()
    return library.context(
        library.SCHEME_TYPE.CKKS,
        _DEGREE,
        coeff_mod_bit_sizes=_MODULI,
        encryption_type=library.ENCRYPTION_TYPE.SYMMETRIC,
    )


def _without_key(context: Any) -> Any:
    """Return the same parameters without the key: what a server adds with."""
    public = {"save_public_key": False, "save_galois_keys": False, "save_relin_keys": False}
    return tenseal().context_from(context.serialize(save_secret_key=False, **public))


class SumKey:
    """The clients' secret key; whoever has it reads every client's vector.

    Attributes
    ----------
    fingerprint : str
        64 hexadecimal digits that may be public: clients compare what they are told with their own.
    """

    def __init__(self, data: bytes) -> None:
        try:
            self._context = tenseal().context_from(data)
            private = self._context.has_secret_key()
        except (ValueError, RuntimeError, TypeError):
            private = False
        if not private:
            raise ConfigError("ckks: these bytes hold no secret key; `fl-plugins secagg key` makes one.")
        self._data = data
        self.fingerprint = hashlib.sha256(LABEL + b"ckks-key" + data).hexdigest()

    def __repr__(self) -> str:
        return f"SumKey({self.fingerprint[:16]}…)"

    @classmethod
    def generate(cls) -> Self:
        """Return a fresh key."""
        return cls(_context().serialize(save_secret_key=True))

    def to_bytes(self) -> bytes:
        """Return the key as bytes, the secret included."""
        return self._data

    def encrypt(self, words: NDArray[Any]) -> NDArray[np.uint8]:
        """Return ``(d,)`` ring words as the bytes of ciphertexts."""
        library, scale = tenseal(), _SCALES[8 * words.itemsize]
        signed = centered(words).astype(np.float64)
        blocks = [
            library.ckks_vector(self._context, signed[start : start + _SLOTS], scale).serialize()
            for start in range(0, signed.size, _SLOTS)
        ]
        writer = Writer()
        return np.frombuffer(writer.list(blocks, writer.sized).done(), np.uint8)

    def decrypt(self, data: bytes, length: int, num_bits: int) -> NDArray[Any]:
        """Return the ring words of a sum.

        Raises
        ------
        MessageFormatError
            If it is no ciphertext of that many words.
        EncodingError
            If what comes out is not close to whole numbers.
        """
        blocks = _read(self._context, data, length)
        values = np.concatenate([np.array(block.decrypt(), np.float64) for block in blocks])
        whole = np.rint(values)
        if not np.abs(values - whole).max(initial=0.0) < _MOST_NOISE:
            raise EncodingError(
                "ckks: the decrypted sum is not of whole numbers: a client has another key, or this is no "
                "sum of what clients encrypted."
            )
        return to_ring(whole.astype(np.int64), num_bits)


class EncryptedSum:
    """What the server adds up, without a key.

    Raises
    ------
    EncodingError
        If the ciphertexts of so many words would be larger than a message can be.
    """

    def __init__(self, length: int) -> None:
        if length > _MOST_WORDS:
            raise EncodingError(
                f"ckks: {length} words, but a message holds the ciphertexts of at most {_MOST_WORDS}; use "
                "secure_aggregation or additive_aggregation, whose vectors Flower sends in pieces."
            )
        self._context, self._length = _without_key(_context()), length
        self._blocks: list[Any] = []

    def add(self, data: bytes) -> None:
        """Add one client's ciphertexts.

        Raises
        ------
        MessageFormatError
            If they are none of this length and ring; nothing is added then.
        """
        blocks = _read(self._context, data, self._length)
        try:
            total = [a + b for a, b in zip(self._blocks, blocks, strict=True)] if self._blocks else blocks
        except (ValueError, RuntimeError) as error:  # another scale
            raise MessageFormatError(f"ckks: these ciphertexts cannot be added: {error}.") from None
        self._blocks = total

    def to_bytes(self) -> bytes:
        """Return the encrypted sum."""
        writer = Writer()
        return writer.list([block.serialize() for block in self._blocks], writer.sized).done()


def _read(context: Any, data: bytes, length: int) -> list[Any]:
    """Return the ciphertexts in a client's or the server's bytes."""
    reader = Reader(data, "encrypted words")
    parts = reader.list(reader.sized)
    reader.done()
    library = tenseal()
    try:
        blocks = [library.ckks_vector_from(context, part) for part in parts]
        sizes = [block.size() for block in blocks]
    except (ValueError, RuntimeError, TypeError) as error:
        raise MessageFormatError(
            f"ckks: these are no ciphertexts of the protocol's parameters: {error}."
        ) from None
    full, rest = divmod(length, _SLOTS)
    if sizes != [_SLOTS] * full + [rest] * bool(rest):
        raise MessageFormatError(f"ckks: ciphertexts of {sum(sizes)} words, but {length} were asked for.")
    return blocks
