"""One-run audit of noise that clients add themselves: what the server sees is the sum of their ring words.

Masks cancel in that sum exactly, so nothing is masked here. The sum has the fewest clients that may be in
one, ``min_survivors``, of whom ``max_colluders`` tell the adversary their words; each of the others is a
canary, whose update has a direction of its own and is clipped to the clip norm. Heads: it sends its update;
tails: a zero update (``zero_out``), or the opposite (``replace``).

The adversary knows the rotation, which is public, and sees the sum before it is turned back. Two further sums
of zero updates tell whether the noise repeats itself, see :mod:`.canaries`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..checks import check_int
from ..errors import ContractError
from ..privacy import Accountant, Adjacency, Everyone, NeighborRelation, NoiseSource, Release
from ..secagg.distributed_noise import DistributedNoise, EncodedShare
from ..secagg.fixed_point import NUM_ONES
from .canaries import centered, repeats
from .findings import Finding

Floats = NDArray[np.float64]

_FAR = 1e3
"""Length of a canary's update in clip norms, before it is clipped."""


class SharesNoise(Protocol):
    """What an audit asks of an encoding: :class:`fl_plugins.distributed_privacy.NoisyMean` has it."""

    @property
    def noise(self) -> DistributedNoise:
        """What is accounted, and how words are read."""
        ...

    @property
    def rotation_seed(self) -> bytes:
        """The public rotation."""
        ...

    def encode(self, update: Iterable[NDArray[Any]]) -> EncodedShare:
        """Return a client's words, with its share of the noise."""
        ...


def audit_shares(
    make: Callable[[], SharesNoise],
    relation: NeighborRelation,
    *,
    delta: float,
    num_sums: int = 1,
    confidence: float = 0.95,
) -> Finding:
    """Return what the smallest sums tell an adversary with the most colluders, beside what is accounted.

    Parameters
    ----------
    make : callable
        Returns the encoding; the same rotation each time, so that noise that repeats itself can be seen.
    relation : NeighborRelation
        ``zero_out`` or ``replace``.
    delta : float
        δ of every ε.
    num_sums : int
        How many sums of the same updates are made.
    confidence : float
        With what probability the lower bound is true.

    Raises
    ------
    ContractError
        If the updates have fewer entries than there are canaries, or the adjacency is another.
    """
    check_int("audit", "num_sums", num_sums, minimum=1)
    encoding = make()
    noise = encoding.noise
    num_canaries = noise.num_noise_shares
    if noise.num_entries < num_canaries:
        raise ContractError(
            f"audit: updates of {noise.num_entries} entries, but {num_canaries} canaries need a direction "
            "each; audit with more entries, or fewer clients."
        )
    tails = {Adjacency.ZERO_OUT: 0.0, Adjacency.REPLACE: -1.0}
    if relation.adjacency not in tails:
        raise ContractError(
            f"audit: {relation}, but a client that is added or removed takes its share of the noise along; "
            "audit zero_out or replace."
        )
    coins = NoiseSource().bernoulli(0.5, num_canaries)
    seen = _sums(encoding, np.where(coins, 1.0, tails[relation.adjacency]), num_sums)
    first, second = (_sums(make(), np.zeros(num_canaries), num_sums) for _ in range(2))
    if repeats(first, second):
        seen = seen - first
    accountant = Accountant(relation)
    release = Release(mechanism=noise.mechanism, sampling=Everyone(), relation=relation)
    accountant.compose(release, num_sums)
    report = accountant.report(delta)
    return Finding.of(
        centered(seen.sum(axis=0)),
        coins,
        relation=relation,
        delta=delta,
        confidence=confidence,
        accounted=report.epsilon,
        account=str(report),
    )


def _sums(encoding: SharesNoise, does: Floats, num_sums: int) -> Floats:
    """Return the noisy sums without what colluders know, in clip norms, ``(sums, canaries)``."""
    noise = encoding.noise
    seen = np.empty((num_sums, len(does)))
    for row in seen:
        total = np.zeros(noise.length, encoding.encode([np.zeros(noise.num_entries)]).words.dtype)
        for client in range(noise.min_survivors):
            update = np.zeros(noise.num_entries)
            colludes = client >= len(does)
            if not colludes:
                update[client] = does[client] * _FAR * noise.clip_norm
            words = encoding.encode([update]).words.copy()
            if colludes:
                words[NUM_ONES:] = 0  # the adversary subtracts what it was told
            total += words
        read = noise.decode(total, noise.min_survivors, rotation_seed=encoding.rotation_seed)
        row[:] = read.update[: len(does)] / noise.clip_norm
    return seen
