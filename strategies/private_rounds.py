"""The order of private rounds: who may be drawn, what a round is charged, and whose noise it continues.

With most samplings a round is a release of its own. Under ``min_separation`` rounds are parts of a *stream*:

==========  ==========================================================================================
stream      rounds one after the other, each released before the next; with correlated noise, T of them
block       b rounds of a stream: one release, charged before its first round's messages leave
resting     clients drawn in one of the last b − 1 rounds; they are not drawn
==========  ==========================================================================================

A stream is in the memory of its process only: noise on a disk can be subtracted by whoever reads it. It ends
with the process, however that ends, and with a round that was drawn and not released: whether somebody has
seen its result is not known, so neither its noise nor its clients' turn may be used again. The next round
begins another stream with fresh noise and is charged for it. The two are two mechanisms, whose costs add up
wherever the first one ended.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from fl_plugins.errors import ConfigError, PreconditionError
from fl_plugins.privacy import (
    BandedGaussian,
    BandedMatrix,
    CorrelatedNoise,
    Gaussian,
    MinSeparation,
    NoiseSource,
    Release,
)

from .noisy_mean import NoisyMean
from .privacy_budget import PrivacyBudget
from .roster import UNNAMED


@dataclass(kw_only=True)
class Stream:
    """Rounds whose noise belongs together; ``open`` while one is drawn and not released."""

    first: int
    noise: CorrelatedNoise | None
    done: int = 0
    open: bool = False
    latest: dict[str, int] = field(default_factory=dict)
    """Client → its latest round, counted from the stream's first as 0."""
    seen: set[str] = field(default_factory=set)


class PrivateRounds:
    """What the rounds of one run may do, in order.

    Parameters
    ----------
    owner : str
        The strategy's name.
    release : Release
        What one block makes public, with independent noise.
    matrix : BandedMatrix, optional
        Of the correlated noise.
    mean : NoisyMean
        What is released beside the updates, and with what noise.
    budget : PrivacyBudget
        What is charged.

    Guarantees
    ----------
    - A client is drawn at most once in any b rounds of a stream, whoever else is there or drops out. A node
      that appears in the midst of a stream rests first if it, or one that was in the stream, has no name: the
      two may be the same.
    - Every round that :meth:`draw` opens is charged by :meth:`charge`, or part of a block that is.
    - No row of noise is used twice, nor left out of a stream that goes on.
    """

    def __init__(
        self,
        owner: str,
        release: Release,
        *,
        matrix: BandedMatrix | None,
        mean: NoisyMean,
        budget: PrivacyBudget,
    ) -> None:
        self._owner, self._release, self._matrix = owner, release, matrix
        self._mean, self._budget = mean, budget
        sampling = release.sampling
        self._block = sampling.rounds if isinstance(sampling, MinSeparation) else 1
        self._stream: Stream | None = None

    def forget(self) -> None:
        """Let the next round begin a stream."""
        self._stream = None

    def noise_multiplier(self, number: int) -> float:
        """Return the noise multiplier of what round ``number`` is a part of, drawn or to be drawn."""
        stream = self._stream
        first = number if stream is None or number < stream.first else stream.first
        mechanism = self._block_of(first, number).mechanism
        assert isinstance(mechanism, Gaussian), "no other is planned"
        return mechanism.noise_multiplier

    def stop_reason(self, number: int) -> str | None:
        """Return why round ``number`` may not be run, or ``None``."""
        first = self._stream.first if self._stream is not None and self._goes_on(number) else number
        due = self._due(first, number)
        return None if due is None else self._budget.stop_reason(due)

    def rename(self, old: str, new: str) -> None:
        """Take ``new`` for the client that was known as ``old``: it rests for as long as it would have."""
        stream = self._stream
        if stream is None or old not in stream.seen:
            return
        stream.seen.remove(old)
        stream.seen.add(new)
        if (latest := stream.latest.pop(old, None)) is not None:
            stream.latest[new] = max(latest, stream.latest.get(new, latest))

    def draw(self, names: Sequence[str], number: int, source: NoiseSource) -> list[str]:
        """Open round ``number``; return who takes part.

        Raises
        ------
        PreconditionError
            If more clients were seen than the population that was accounted.
        """
        if self._stream is None or not self._goes_on(number):
            matrix = self._matrix_from(number)
            noise = None if matrix is None else CorrelatedNoise(matrix)
            self._stream = Stream(first=number, noise=noise)
        stream = self._stream
        stream.open = True
        sampling = self._release.sampling
        if not isinstance(sampling, MinSeparation):
            return sampling.draw(names, source)
        if len(known := {*names} | stream.latest.keys()) > sampling.population:
            raise PreconditionError(
                f"{self._owner}: {len(known)} clients were seen, but the accounting is for population="
                f"{sampling.population}: one that comes back under another name takes part too soon; give "
                "nodes stable names (partition-id, or a key of their own), or declare all that there may be."
            )
        now = number - stream.first
        nameless = any(client.startswith(UNNAMED) for client in stream.seen)
        for client in {*names} - stream.seen if now else ():
            # It may be one that was drawn the round before and has come back.
            if nameless or client.startswith(UNNAMED):
                stream.latest.setdefault(client, now - 1)
        stream.seen.update(names)
        resting = {client for client, latest in stream.latest.items() if now - latest < self._block}
        rested = [name for name in names if name not in resting]
        drawn = sampling.draw(rested, source)
        stream.latest.update((name, now) for name in drawn)
        return drawn

    def charge(self, number: int) -> None:
        """Charge the open round ``number``, unless its block is charged.

        Raises
        ------
        BudgetError
            If it would exceed the budget.
        """
        assert self._stream is not None, "draw() began one"
        due = self._due(self._stream.first, number)
        if due is None:
            self._budget.go_on(number)
        else:
            self._budget.reserve(number, due)

    def noise(self) -> CorrelatedNoise | None:
        """Return the noise that the open round continues; ``None`` if every round's is its own.

        Raises
        ------
        ConfigError
            If no round is open: its noise would belong to no stream.
        """
        if self._matrix is None:
            return None
        if self._stream is None or not self._stream.open:
            raise ConfigError(f"{self._owner}: no round is drawn; call configure_train before every release.")
        return self._stream.noise

    def close(self) -> None:
        """Note that the open round is released."""
        assert self._stream is not None, "draw() began one"
        self._stream.open = False
        self._stream.done += 1

    def _goes_on(self, number: int) -> bool:
        """Whether round ``number`` is the next of the stream."""
        stream = self._stream
        if stream is None or stream.open or number != stream.first + stream.done:
            return False
        return stream.noise is None or stream.done < stream.noise.matrix.rounds

    def _due(self, first: int, number: int) -> Release | None:
        """Return what round ``number`` is charged in a stream that began with ``first``, if it is."""
        return None if (number - first) % self._block else self._block_of(first, number)

    def _block_of(self, first: int, number: int) -> Release:
        """Return the release that round ``number`` is a part of in a stream that began with ``first``."""
        matrix = self._matrix_from(first)
        if matrix is None:
            return self._release
        weight = float(matrix.block_weights[(number - first) // self._block])
        mechanism = BandedGaussian(noise_multiplier=self._mean.noise_multiplier(weight), bands=matrix.bands)
        return replace(self._release, mechanism=mechanism)

    def _matrix_from(self, number: int) -> BandedMatrix | None:
        """Return the matrix of a stream that begins with round ``number``: it ends at a multiple of T."""
        if self._matrix is None:
            return None
        rounds = self._matrix.rounds
        return replace(self._matrix, rounds=rounds - (number - 1) % rounds)
