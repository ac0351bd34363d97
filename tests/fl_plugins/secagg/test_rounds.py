"""The secure sum is the plain sum, whoever drops out where; below the threshold there is none."""

import random

import numpy as np
import pytest

from fl_plugins.errors import RoundAbortedError, SurvivorError
from fl_plugins.secagg import ClientPolicy, FixedPoint, Stage, Tier
from fl_plugins.secagg.messages import UnmaskRequest

from .federation import STAGES, Federation, parameters, until

POLICY = ClientPolicy(min_clients=2)


def _ids(rng: random.Random, count: int) -> tuple[int, ...]:
    """Return distinct node ids, from tiny to the largest."""
    return tuple(
        rng.sample([1, 2, 3, 2**63, 2**64 - 1, *(rng.randrange(4, 2**64 - 1) for _ in range(9))], count)
    )


def _predicted(
    federation: Federation, silent: dict[Stage, set[int]], malicious: bool
) -> tuple[set[int], int] | None:
    """Oracle: who survives and how many are needed on a complete graph, from the counts alone."""
    alive, least = set(federation.nodes), federation.parameters.min_clients
    survivors: set[int] = set()
    for stage in STAGES:
        if stage is Stage.CONFIRM and not malicious:
            continue
        alive = alive - silent.get(stage, set())
        if len(alive) < least:
            return None
        if stage is Stage.ADVERTISE:
            threshold = federation.parameters.topology(len(alive)).threshold
            least = max(least, threshold)
        if stage is Stage.MASK:
            survivors = set(alive)
            least = threshold  # whoever confirms and unmasks need not be min_clients
    return survivors, threshold


@pytest.mark.parametrize("seed", range(20))
def test_secure_sum_is_the_plain_sum_for_every_schedule_of_dropouts(seed: int) -> None:
    rng = random.Random(seed)
    sums = aborted = 0
    for _ in range(100):
        malicious = rng.random() < 0.25
        n = rng.randint(2, 6)
        federation = Federation(
            parameters(
                n,
                tier=Tier.MALICIOUS if malicious else Tier.HONEST_BUT_CURIOUS,
                num_bits=rng.choice([16, 32]),
                length=rng.randint(1, 9),
                min_clients=2,
            ),
            _ids(rng, n),
            POLICY,
        )
        silent = {stage: {node for node in federation.nodes if rng.random() < 0.08} for stage in STAGES}
        expected = _predicted(federation, silent, malicious)
        if expected is None:
            with pytest.raises(RoundAbortedError, match="are needed"):
                federation.run(silent)
            aborted += 1
            continue
        survivors, _ = expected
        result = federation.run(silent)
        assert set(result.survivors) == survivors
        np.testing.assert_array_equal(result.vector, federation.expected(survivors))
        sums += 1
    assert sums > 40
    assert aborted > 0


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("tier", Tier)
def test_one_dropout_in_any_stage_costs_nobody_elses_update(stage: Stage, tier: Tier) -> None:
    federation = Federation(parameters(5, tier=tier), (11, 12, 13, 14, 15))
    result = federation.run({stage: {13}})
    in_sum = {11, 12, 13, 14, 15} - ({13} if stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK) else set())
    assert set(result.survivors) == in_sum
    assert result.dropped == ((13,) if stage is Stage.MASK else ())
    np.testing.assert_array_equal(result.vector, federation.expected(in_sum))


@pytest.mark.parametrize(("num_clients", "num_bits"), [(68, 16), (75, 32), (100, 16)])
def test_sparse_graph_sums_exactly_with_dropouts_in_every_stage(num_clients: int, num_bits: int) -> None:
    rng = random.Random(num_clients)
    federation = Federation(
        parameters(num_clients, corrupt=0.05, dropout=0.1, num_bits=num_bits),
        tuple(range(1, num_clients + 1)),
    )
    gone = rng.sample(federation.nodes, 8)
    silent = dict(zip(STAGES, (gone[:2], gone[2:4], gone[4:6], [], gone[6:]), strict=True))
    result = federation.run(silent)
    assert not federation.server._topology.is_complete(num_clients - 2)
    assert set(result.survivors) == set(federation.nodes) - set(gone[:6])
    assert set(result.dropped) == set(gone[4:6])
    np.testing.assert_array_equal(result.vector, federation.expected(result.survivors))


def test_training_dropouts_lower_the_threshold_with_the_cohort() -> None:
    # Half of the cohort never comes back from training; ⌊2n/3⌋ + 1 of the cohort would be out of reach.
    federation = Federation(parameters(12), tuple(range(1, 13)))
    result = federation.run({Stage.ADVERTISE: range(7, 13)})
    assert result.survivors == (1, 2, 3, 4, 5, 6)


def test_a_later_attempt_with_fresh_keys_succeeds_after_an_abort() -> None:
    first = Federation(parameters(4), (1, 2, 3, 4))
    with pytest.raises(RoundAbortedError, match="2 of 4 nodes sent a masked vector"):
        first.run({Stage.MASK: {1, 2}})
    assert first.server.stage is Stage.CLOSED
    second = Federation(parameters(4, attempt=1), (1, 2, 3, 4))
    np.testing.assert_array_equal(second.run().vector, second.expected((1, 2, 3, 4)))


def test_what_the_server_sees_of_one_client_is_uniform_and_the_control_is_not() -> None:
    """χ² over the 256 values of a byte; 255 degrees of freedom, 5 standard deviations are 255 ± 113."""
    length = 200_000
    federation = Federation(
        parameters(3, length=length), (1, 2, 3), vectors={n: np.zeros(length, "<u4") for n in (1, 2, 3)}
    )
    seen = {}

    def look(node: int, reply: object) -> object:
        seen[node] = reply.vector.copy()  # type: ignore[attr-defined]
        return reply

    for stage in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK):
        federation.play_stage(tamper=look if stage is Stage.MASK else None)

    def chi2(data: bytes) -> float:
        counts = np.bincount(np.frombuffer(data, np.uint8), minlength=256)
        expected = len(data) / 256
        return float(((counts - expected) ** 2 / expected).sum())

    for vector in seen.values():
        assert abs(chi2(vector.tobytes()) - 255) < 113
        # The lowest bits alone, packed: what the linear attack on Mersenne Twister reads.
        assert abs(chi2(np.packbits(vector & 1).tobytes()) - 255) < 113
    # Control: the same masks in a range that leaves out the top value, as Flower's do at 8 bits.
    assert abs(chi2((np.frombuffer(seen[1].tobytes(), np.uint8) % 255).tobytes()) - 255) > 113


def test_a_sparse_graph_that_may_fall_apart_is_unmasked_by_nobody() -> None:
    n = 100
    federation = until(Federation(parameters(n), tuple(range(1, n + 1))), Stage.MASK)
    assert federation.server._topology.degree == 11
    requests = federation.server.requests()
    for node, body in requests.items():
        reply = federation.answer(node, Stage.MASK, body)
        if node > 6:  # with five colluders, eleven are gone: as many as a node has neighbors
            federation.server.receive(node, reply.body, reply.vector)
    with pytest.raises(RoundAbortedError, match=r"6 of 100 nodes dropped out, but with dropout=0\.05"):
        federation.server.advance()
    unmask = UnmaskRequest(survivors=tuple(range(7, n + 1))).to_bytes()
    with pytest.raises(SurvivorError, match="6 of 100 nodes dropped out"):
        federation.restore(50).answer(Stage.UNMASK, unmask)


@pytest.mark.parametrize("tier", Tier)
def test_a_secure_round_gives_the_weighted_mean_of_plain_averaging(tier: Tier) -> None:
    """At 32 bits within 2·10⁻⁶: one entry's standard deviation is √10·1/(2·2.1·10⁸)·64/Σw < 2·10⁻⁹."""
    rng = np.random.default_rng(3)
    nodes, d = tuple(range(1, 11)), 1_000
    updates = {node: rng.normal(0, 0.1, d).astype(np.float32) for node in nodes}
    weights = {node: float(rng.integers(1, 65)) for node in nodes}
    encoding = FixedPoint(
        num_bits=32, cohort=10, clip=1.0, max_weight=64.0, num_entries=d, metrics={"loss": 8.0}
    )
    vectors = {
        node: encoding.encode([updates[node]], weight=weights[node], metrics={"loss": float(node % 7)}).words
        for node in nodes
    }
    federation = Federation(parameters(10, tier=tier, length=encoding.length), nodes, vectors=vectors)
    result = federation.run({Stage.SHARE: {2}, Stage.MASK: {5}, Stage.UNMASK: {9}})
    alive = [node for node in nodes if node not in (2, 5)]
    decoded = encoding.decode(result.vector, len(result.survivors))
    share = [weights[node] for node in alive]
    mean = np.average([updates[node].astype(np.float64) for node in alive], axis=0, weights=share)
    assert np.abs(decoded.update - mean).max() < 2e-6
    assert decoded.weight == sum(share)
    assert decoded.metrics["loss"] == pytest.approx(
        np.average([n % 7 for n in alive], weights=share), abs=1e-8
    )
