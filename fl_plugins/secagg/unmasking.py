"""What the server does with the shares: reconstruct, check against the adverts, take the masks off.

Of a survivor the seed of its own mask is reconstructed, of a dropped node its masking key, from which follow
the masks that its surviving neighbors added against it. Each secret is checked against what its owner
advertised.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from ..errors import RoundAbortedError
from .keys import agree, commitment, own_key, pair_key, public_key
from .messages import Advert, UnmaskReply
from .parameters import RoundParameters
from .prg import apply_masks
from .shamir import recover


@dataclass(frozen=True, kw_only=True)
class Opened:
    """Secrets by owner: own-mask seeds of survivors, masking keys of the dropped; and who lied."""

    seeds: Mapping[int, bytes] = field(repr=False)
    keys: Mapping[int, bytes] = field(repr=False)
    wrong_shares: tuple[int, ...]


def open_secrets(
    replies: Mapping[int, UnmaskReply],
    *,
    alive: Sequence[int],
    dead: Sequence[int],
    threshold: int,
    adverts: Mapping[int, Advert],
    context: bytes,
) -> Opened:
    """Reconstruct and check every secret that the sum needs.

    A holder found to have sent one wrong share is left out of all later reconstructions where enough remain.

    Raises
    ------
    RoundAbortedError
        If of one secret fewer than t shares are there, or no subset of them gives what was advertised.
    """
    seed_shares: dict[int, dict[int, bytes]] = {owner: {} for owner in alive}
    key_shares: dict[int, dict[int, bytes]] = {owner: {} for owner in dead}
    for holder, reply in replies.items():
        for owner, share in reply.seed_shares.items():
            seed_shares[owner][holder] = share
        for owner, share in reply.key_shares.items():
            key_shares[owner][holder] = share
    liars: set[int] = set()

    def opened(owner: int, shares: dict[int, bytes], what: str) -> bytes:
        honest = {holder: share for holder, share in shares.items() if holder not in liars}
        usable = honest if len(honest) >= threshold else shares
        if len(usable) < threshold:
            raise RoundAbortedError(
                f"secagg: {len(usable)} shares of node {owner}'s {what}, but {threshold} are needed; "
                "too many of its neighbors dropped out. Begin again with fresh keys."
            )
        advert = adverts[owner]

        def is_right(secret: bytes) -> bool:
            if what == "masking key":
                return public_key(secret) == advert.mask_key
            return commitment(secret, context) == advert.commitment

        secret, wrong = recover(usable, threshold, is_right)
        if secret is None and usable is not shares:
            secret, wrong = recover(shares, threshold, is_right)
        if secret is None:
            raise RoundAbortedError(
                f"secagg: no {threshold} of {len(usable)} shares of node {owner}'s {what} give what it "
                f"advertised: it shared something else, or more holders than can be told sent wrong shares. "
                "Begin again with fresh keys, without the suspects.",
                suspects={owner, *liars},
            )
        liars.update(wrong)
        return secret

    return Opened(
        seeds={owner: opened(owner, shares, "own-mask seed") for owner, shares in seed_shares.items()},
        keys={owner: opened(owner, shares, "masking key") for owner, shares in key_shares.items()},
        wrong_shares=tuple(sorted(liars)),
    )


def take_masks_off(
    total: NDArray[Any],
    parameters: RoundParameters,
    opened: Opened,
    survivors: Sequence[int],
    graph: Mapping[int, Sequence[int]],
    adverts: Mapping[int, Advert],
    transcript: bytes,
) -> None:
    """Take from the masked sum, in place, what survivors added for themselves and against the dropped."""
    alive = set(survivors)
    added: list[bytes] = []
    subtracted = [own_key(seed, parameters.sid, node, transcript) for node, seed in opened.seeds.items()]
    for node, secret in opened.keys.items():
        mask_keys = {peer: adverts[peer].mask_key for peer in graph[node] if peer in alive}
        for peer, shared in agree(secret, mask_keys).items():
            key = pair_key(shared, b"mask", parameters.sid, (node, peer), transcript)
            # The survivor added the mask if its id is the lower one: take that back.
            (subtracted if peer < node else added).append(key)
    apply_masks(total, added, subtracted)
