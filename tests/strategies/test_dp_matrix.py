"""Correlated noise in private rounds: who rests, what is charged, worst pairs, and what a restart does."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.errors import ConfigError, ConfigTypeError, PreconditionError
from fl_plugins.node_policy import announcement
from fl_plugins.privacy import BandedMatrix, NoiseSource, Release
from fl_plugins.privacy.noise import grid_for
from strategies import DpFedAvg

from .dp_support import MODEL, Behaviour, Round, failing, make, moving, play, still

C = 0.5
F64 = {key: value.astype(np.float64) for key, value in MODEL.items()}
HUGE, OPPOSITE = moving(1.0, norm=1e6), moving(-1.0, norm=1e6)
APART = {"sampling": "min_separation(size=2, rounds=3)", "noise": "banded_matrix(rounds=7)"}
"""Six clients, two a round, each in every third one; a stream of seven rounds: blocks of 3, 3 and 1."""


def train(strategy: DpFedAvg, clients: Mapping[int, Behaviour], rounds: int, **options: Any) -> list[Round]:
    """Return so many rounds, each from the parameters of the one before."""
    model: Mapping[str, NDArray[Any]] = options.pop("model", F64)
    played = []
    for number in range(1, rounds + 1):
        played.append(play(strategy, clients, model=model, number=number, **options))
        model = played[-1].arrays
    return played


def sums(played: list[Round], strategy: DpFedAvg, model: Mapping[str, NDArray[Any]] = F64) -> NDArray[Any]:
    """Return the released sum of every round, as one row."""
    rows, before = [], model
    for each in played:
        moved = [(each.arrays[key] - before[key]).ravel() for key in sorted(model)]
        rows.append(np.concatenate(moved) * strategy.expected_cohort)
        before = each.arrays
    return np.stack(rows)


def dense(matrix: BandedMatrix) -> NDArray[np.float64]:
    """Return C, entry by entry."""
    c = np.zeros((matrix.rounds, matrix.rounds))
    for t in range(matrix.rounds):
        for j in range(min(t + 1, matrix.rows.shape[1])):
            c[t, t - j] = matrix.rows[t, j]
    return c


def cost(strategy: DpFedAvg, counts: Mapping[Release, int]) -> float:
    """Return μ² of what was charged: (sensitivity over standard deviation)² summed."""
    return sum(count * release.effective_noise_multiplier**-2 for release, count in counts.items())


@pytest.mark.parametrize(
    ("adjacency", "other", "clip_norms"),
    [("zero_out", still, 1), ("zero_out", failing, 1), ("replace", OPPOSITE, 2)],
)
@pytest.mark.parametrize("others", [still, HUGE], ids=["zeros", "large"])
def test_one_client_moves_the_whole_run_by_what_was_charged_in_every_prefix(
    adjacency: str, other: Behaviour, clip_norms: int, others: Behaviour
) -> None:
    """The released sums are x + C⁻¹z: with the same z two runs differ by Δ, in units of z by C·Δ."""
    runs, charged = [], []
    for behaviour in (HUGE, other):
        strategy = make(**APART, adjacency=adjacency)
        model, clients = F64, {**dict.fromkeys(range(1, 6), others), 0: behaviour}
        played, costs = [], []
        for number in range(1, 8):
            played.append(play(strategy, clients, model=model, number=number))
            model = played[-1].arrays
            costs.append(cost(strategy, strategy.budget._account.counts))
        runs.append(sums(played, strategy))
        charged.append(costs)
    c = dense(BandedMatrix(rounds=7, bands=3))
    shifts = np.sum((c @ (runs[0] - runs[1])) ** 2, axis=1) / C**2
    assert charged[0] == charged[1]
    for upto in range(1, 8):
        assert np.sum(shifts[:upto]) <= charged[0][upto - 1] * (1 + 1e-6)
    taken = [number for number, nodes in enumerate(drawn_in(played)) if 1 in nodes]
    assert len(taken) >= 2
    weights = BandedMatrix(rounds=7, bands=3).block_weights[[number // 3 for number in taken]]
    assert np.sum(shifts) == pytest.approx(clip_norms**2 * np.sum(weights), rel=1e-6)


def test_the_noise_of_a_run_is_c_inverse_times_independent_noise_of_the_planned_size() -> None:
    strategy = make(**APART, noise_multiplier=1.5, grid=True)
    noise = sums(train(strategy, {}, 7), strategy)
    whitened = dense(BandedMatrix(rounds=7, bands=3)) @ noise
    for number in range(1, 8):
        fresh = strategy.noise_source("noise", number).normal(noise.shape[1], std=1.5 * C)
        np.testing.assert_allclose(whitened[number - 1], fresh, atol=3 * grid_for(1.5 * C))


def test_the_model_has_less_noise_than_with_independent_noise_by_the_gain_that_is_claimed() -> None:
    """16 rounds, 4 bands, 3,000 values: the ratio's standard error is near 2 %."""
    model, errors = {"params/w": np.zeros(3000)}, {}
    for noise in ("independent", "banded_matrix(rounds=16)"):
        sampling = "min_separation(size=1, rounds=4)"
        strategy = make(population=4, sampling=sampling, noise=noise, grid=True)
        played = train(strategy, {}, 16, model=model)
        errors[noise] = math.sqrt(np.mean([each.arrays["params/w"] ** 2 for each in played]))
        counted = strategy.budget._account.counts
        assert cost(strategy, counted) == pytest.approx(4.0, rel=1e-9)
    ratio = errors["independent"] / errors["banded_matrix(rounds=16)"]
    assert ratio == pytest.approx(BandedMatrix(rounds=16, bands=4).gain, rel=0.1)
    assert ratio > 1.4


def drawn_in(played: list[Round]) -> list[set[int]]:
    return [{message.metadata.dst_node_id for message in each.sent} for each in played]


def check_apart(rounds: list[Any], gap: int) -> None:
    """Check that nobody takes part again within ``gap`` rounds."""
    for first in range(len(rounds)):
        for later in range(first + 1, min(first + gap, len(rounds))):
            assert not set(rounds[first]) & set(rounds[later]), (first, later)


@pytest.mark.parametrize("noise", ["independent", "banded_matrix(rounds=9)"])
def test_no_client_returns_too_soon_and_every_cohort_is_full(noise: str) -> None:
    given = {"population": 7, "sampling": "min_separation(size=2, rounds=3)", "noise": noise}
    drawn = drawn_in(train(make(**given, insecure_seed=None), {2: failing}, 9))
    assert [len(each) for each in drawn] == [2] * 9
    check_apart(drawn, 3)
    assert set.union(*drawn) == set(range(1, 8))


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=20), st.integers(0, 100))
def test_no_client_returns_too_soon_whoever_is_there(present: list[set[int]], seed: int) -> None:
    strategy = make(population=8, sampling="min_separation(size=2, rounds=4)")
    drawn = []
    for number, there in enumerate(present, start=1):
        names = [str(client) for client in sorted(there)]
        source = NoiseSource(insecure_seed=seed + number)
        drawn.append(strategy.rounds.draw(names, number, source))
        assert set(drawn[-1]) <= set(names)
        assert len(drawn[-1]) <= 2
        strategy.rounds.close()
    check_apart(drawn, 4)


def test_a_client_that_comes_back_without_a_name_rests_first_or_is_one_too_many() -> None:
    strategy, source = make(population=4, sampling="min_separation(size=2, rounds=2)"), NoiseSource()
    first = strategy.rounds.draw(["0", "1"], 1, source)
    strategy.rounds.close()
    assert sorted(first) == ["0", "1"]
    assert strategy.rounds.draw(["0", "1", "2", "3"], 2, source) == ["2", "3"]
    strategy.rounds.close()
    with pytest.raises(PreconditionError, match=r"5 clients were seen.*population=4.*stable names"):
        strategy.rounds.draw(["0", "1", "2", "node-99"], 3, source)


def test_messages_promise_the_noise_of_their_block() -> None:
    strategy = make(**APART, noise_multiplier=4.0, insecure_seed=None, grid=True)
    weights = BandedMatrix(rounds=7, bands=3).block_weights
    for number, each in enumerate(train(strategy, {}, 7)):
        config = each.sent[0].content.config_records[wire.CONFIG]
        (promise,) = announcement(config, wire.PROMISES)
        told = dict(promise.kwargs)
        assert told["noise_multiplier"] == pytest.approx(4.0 / math.sqrt(weights[number // 3]))
        assert (told["expected_cohort"], told["population"]) == (2.0, 6)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"sampling": "everyone"}, r"rounds that are close; give sampling=min_separation"),
        ({"sampling": "poisson(rate=0.5)"}, r"noise=banded_matrix.*give sampling=min_separation"),
        ({"sampling": "fixed_size(size=2)", "adjacency": "replace"}, "give sampling=min_separation"),
        (
            {"adjacency": "add_remove"},
            "no accounting under adjacency='add_remove'",
        ),
        ({"clip": "adaptive(initial=1.0)"}, "clip norm, and so the noise, has changed since"),
        ({"sampling": "min_separation(size=3, rounds=3)"}, "more than population=6.*come back too soon"),
        ({"sampling": "min_separation(size=2, rounds=1)"}, "rounds=1, but it must be >= 2"),
        ({"sampling": "min_separation(size=2)"}, "rounds"),
        ({"noise": "banded_matrix"}, "give rounds"),
        ({"noise": "banded_matrix(rounds=0)"}, "rounds=0"),
        ({"noise": "banded_matrix(rounds=5000)"}, "at most 1024"),
        ({"noise": "banded_matrix(rounds=9, bands=3)"}, r"banded_matrix\(rounds=…\)"),
        ({"noise": "tree()"}, r"independent\(\), banded_matrix"),
        ({"noise": BandedMatrix(rounds=9, bands=2)}, "give bands=3"),
        (
            {
                "noise": "banded_matrix(rounds=4)",
                "noise_multiplier": None,
                "target_epsilon": 1.0,
                "num_rounds": 9,
            },
            "num_rounds=9 is no multiple of the noise's rounds=4",
        ),
    ],
)
def test_noise_over_the_rounds_is_refused_at_construction_where_it_does_not_hold(
    given: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(**{**APART, **given})


def test_what_is_no_noise_is_refused() -> None:
    with pytest.raises(ConfigTypeError, match="noise=3"):
        make(**{**APART, "noise": 3})
