"""Worst pairs of neighbouring runs: with the same noise, the sums differ by exactly what was accounted.

Numbers D… are those of the list of defects found in other libraries (docs/privacy-fedavg.md).
"""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from fl_plugins.errors import ConfigError, ContractError
from fl_plugins.optimizers import adam, sgd
from fl_plugins.privacy.noise import grid_for
from strategies.clipped_sum import ClippedSum
from strategies.replies import ClientReply
from strategies.server_optimizer import ServerOptimizer

from .dp_support import MODEL, failing, make, moving, plain, play, shift, still

C = 0.5
F64 = {key: value.astype(np.float64) for key, value in MODEL.items()}
"""A float64 model: what is released is not rounded, so a shift is exact to 1e-9."""

HUGE = moving(1.0, norm=1e6)
OPPOSITE = moving(-1.0, norm=1e6)


@pytest.mark.parametrize(
    ("sampling", "adjacency", "one", "other", "clip_norms"),
    [
        ("everyone()", "zero_out", HUGE, still, 1),
        ("everyone()", "add_remove", HUGE, failing, 1),
        ("everyone()", "replace", HUGE, OPPOSITE, 2),
        ("poisson(rate=0.9)", "zero_out", HUGE, still, 1),
        ("poisson(rate=0.9)", "add_remove", HUGE, failing, 1),
        ("fixed_size(size=5)", "replace", HUGE, OPPOSITE, 2),
    ],
)
@pytest.mark.parametrize("others", [still, HUGE, moving(1.0, norm=0.1)], ids=["zeros", "large", "small"])
def test_one_client_moves_the_sum_by_what_the_accounting_assumes(
    sampling: str, adjacency: str, one: Any, other: Any, clip_norms: int, others: Any
) -> None:
    rest = dict.fromkeys(range(1, 6), others)
    for seed in range(50):  # until the client in question is drawn
        strategy = make(sampling=sampling, adjacency=adjacency, clip_norm=C, insecure_seed=seed)
        runs = [play(strategy, {**rest, 0: each}, model=F64) for each in (one, other)]
        if 1 in [message.metadata.dst_node_id for message in runs[0].sent]:
            break
    assert shift(*runs, strategy) == pytest.approx(clip_norms * C, rel=1e-6)
    assert shift(*runs, strategy) <= clip_norms * C * (1 + 1e-8)  # the grid
    assert strategy.release.relation.adjacency.clip_norms == clip_norms


def test_a_pair_one_clip_norm_apart_is_what_the_noise_multiplier_is_of() -> None:
    """The noise on the sum is z·C: two runs apart by C are 1/z standard deviations apart."""
    strategy = make(noise_multiplier=2.0, grid=True)
    zeros = play(strategy, {}, model=F64)
    source = strategy.noise_source("noise", 1)
    for key in sorted(F64):
        noise = (zeros.arrays[key] - F64[key]) * strategy.expected_cohort
        expected = source.normal(noise.size, std=2.0 * C).reshape(noise.shape)
        np.testing.assert_allclose(noise, expected, atol=grid_for(2.0 * C))


def test_d16_d25_a_fixed_cohort_is_accounted_with_two_clip_norms() -> None:
    """10 of 100, z = 2, one round: 1.685 exact, 2.275 by RDP; without the factor 2 RDP would say 0.596."""
    given = {"sampling": "fixed_size(size=10)", "adjacency": "replace", "population": 100}
    strategy = make(**given, noise_multiplier=2.0)
    strategy.budget.reserve(1)
    assert strategy.budget.report().epsilon == pytest.approx(1.685, abs=1e-3)


def test_d3_claimed_examples_change_nothing_without_a_public_bound_and_at_most_c_with_one() -> None:
    with pytest.raises(ContractError, match=r'weighting="examples".*max_examples'):
        make(plain("examples"))
    strategy = make(plain("examples"), max_examples=100)
    claims = [play(strategy, {0: HUGE}, model=F64, examples={0: n}) for n in (9_999_999, 50)]
    nothing = play(strategy, {}, model=F64)
    assert shift(claims[0], nothing, strategy) == pytest.approx(C, rel=1e-6)
    assert shift(claims[1], nothing, strategy) == pytest.approx(C / 2, rel=1e-6)
    uniform = make()
    lied = [play(uniform, {0: HUGE}, model=F64, examples={0: n}) for n in (9_999_999, 1)]
    assert shift(*lied, uniform) == 0.0


def test_d4_dropouts_count_as_zeros_and_the_noise_stays() -> None:
    """Nobody answers, everybody fails, or everybody sends a zero update: the same bits are released."""
    everyone = range(6)
    zeros = play(make(grid=True), dict.fromkeys(everyone, still))
    errors = play(make(grid=True), dict.fromkeys(everyone, failing))
    nobody = play(make(grid=True), {}, silent=tuple(range(1, 7)))
    for key in MODEL:
        np.testing.assert_array_equal(zeros.arrays[key], errors.arrays[key])
        np.testing.assert_array_equal(zeros.arrays[key], nobody.arrays[key])
        assert (zeros.arrays[key] != MODEL[key]).all()
    assert zeros.metrics == errors.metrics == nobody.metrics


def test_d5_d23_one_dropout_or_other_numbers_of_examples_do_not_drop_the_round() -> None:
    strategy = make()
    full = play(strategy, dict.fromkeys(range(6), HUGE), model=F64, examples={0: 3, 1: 70})
    without = play(strategy, {**dict.fromkeys(range(1, 6), HUGE), 0: failing}, model=F64, silent=())
    assert shift(full, without, strategy) == pytest.approx(C, rel=1e-6)


@pytest.mark.parametrize("optimizer", [sgd(learning_rate=1.0, momentum=0.9), adam(learning_rate=0.1)])
def test_d12_noise_comes_before_the_server_optimizer(optimizer: Any) -> None:
    """Two rounds with the optimizer are the optimizer on two noisy means: it only sees what is public."""
    private = make(plain(server_optimizer=optimizer))
    base, expected, reference = dict(F64), dict(F64), ServerOptimizer(optimizer)
    for number in (1, 2):
        mean = play(make(), {0: HUGE}, model=base, number=number).arrays
        expected = reference.step(expected, {key: mean[key] - base[key] for key in base})
        base = play(private, {0: HUGE}, model=base, number=number).arrays
        for key in base:
            np.testing.assert_allclose(base[key], expected[key], rtol=1e-9, atol=1e-12)


def test_d7_arrays_without_axes_are_clipped_with_the_others() -> None:
    strategy = make()
    runs = [play(strategy, {0: each}, model=F64) for each in (moving({"params/scale": 1.0}, norm=1e9), still)]
    assert shift(*runs, strategy) == pytest.approx(C, rel=1e-6)
    assert runs[0].arrays["params/scale"] != runs[1].arrays["params/scale"]


def test_d7_integers_and_statistics_are_refused_or_kept_by_request() -> None:
    model = {
        **F64,
        "batch_stats/mean": np.ones(3, np.float32),
        "state/steps": np.array(5, np.int64),
    }

    def counting(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
        return {**HUGE(received), "state/steps": np.array(999, np.int64), "batch_stats/mean": np.zeros(3)}

    with pytest.raises(ConfigError, match=r"'batch_stats/mean' \(2 arrays.*untrained_arrays"):
        play(make(), {0: counting}, model=model)
    strategy = make(untrained_arrays="keep")
    runs = [play(strategy, {0: each}, model=model) for each in (counting, still)]
    assert shift(*runs, strategy) == pytest.approx(C, rel=1e-6)
    for key in ("state/steps", "batch_stats/mean"):
        np.testing.assert_array_equal(runs[0].arrays[key], model[key])
        assert runs[0].arrays[key].dtype == model[key].dtype


def test_d8_a_zero_update_stays_zero() -> None:
    strategy = make()
    runs = [play(strategy, {0: each, 1: HUGE}, model=F64) for each in (still, failing)]
    assert shift(*runs, strategy) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_d9_one_value_that_is_not_finite_makes_the_whole_reply_count_as_zero(bad: float) -> None:
    def poisoned(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
        sent = HUGE(received)
        sent["params/w"][1, 1] = bad
        return sent

    strategy = make()
    one, none = play(strategy, {0: poisoned}, model=F64), play(strategy, {0: still}, model=F64)
    assert shift(one, none, strategy) == 0.0


def test_d10_arrays_are_paired_by_name() -> None:
    def reordered(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
        return dict(reversed(moving({"params/b": 1.0}, norm=0.25)(received).items()))

    strategy = make()
    one, none = play(strategy, {0: reordered}, model=F64), play(strategy, {}, model=F64)
    moved = {key: one.arrays[key] - none.arrays[key] for key in F64}
    np.testing.assert_allclose(moved["params/b"] * 6, np.full(3, 0.25 / np.sqrt(3)), rtol=1e-7)
    assert not moved["params/w"].any()


def test_d17_the_noisy_sum_is_on_a_grid_so_that_its_low_bits_tell_nothing() -> None:
    """Without a grid the values that are possible depend on the sum; here they are the same for every sum."""
    model = {"params/w": np.zeros(500, np.float64)}
    grid = grid_for(C)
    for clients in ({}, {0: moving(1.0, norm=0.3)}):
        strategy = make(grid=True, insecure_seed=None)
        steps = play(strategy, clients, model=model).arrays["params/w"] * strategy.expected_cohort / grid
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9 * np.abs(steps).max())
        assert len(np.unique(np.rint(steps))) > 400


def test_d24_clipping_is_done_where_it_is_accounted_whatever_clients_send() -> None:
    """A bfloat16 model with values of 1e30: float32 norms overflow there, and would let everything pass."""
    model = {
        "params/w": np.zeros(64, np.float64),
        "params/h": np.zeros((2, 2), ml_dtypes.bfloat16),
        "params/empty": np.zeros((0, 3), np.float32),
    }
    strategy = make()
    runs = [play(strategy, {0: each}, model=model) for each in (moving(1.0, norm=1e30), still)]
    squares = float(((runs[0].arrays["params/w"] - runs[1].arrays["params/w"]) ** 2).sum())
    assert 0.9 * C < np.sqrt(squares) * 6 <= C


def _sum_of(*values: NDArray[np.float64], clip_norm: float = C) -> ClippedSum:
    from fl_plugins.records import Layout

    base = {"w": np.zeros_like(values[0])}
    total = ClippedSum(Layout.of(base), base, keys=("w",), clip_norm=clip_norm)
    for index, value in enumerate(values):
        total.add(ClientReply(str(index), index, {"w": value}, None, {}))
    return total


@pytest.mark.parametrize("size", [1e-200, 1e-20, 0.499, 0.5, 0.501, 1.0, 1e20, 1e160, 1e300])
def test_no_part_of_the_sum_is_longer_than_the_clip_norm_at_any_magnitude(size: float) -> None:
    rng = np.random.default_rng(3)
    direction = rng.normal(size=1000)
    value = direction / np.linalg.norm(direction) * size
    norm = float(np.linalg.norm(_sum_of(value).total["w"]))
    assert norm <= C
    assert norm == pytest.approx(min(size, C), rel=1e-6, abs=1e-190)


def test_the_sum_moves_by_one_clients_part_whatever_the_others_are() -> None:
    """A float64 running sum loses up to half an ulp of the *others'* size; this one does not."""
    others = [np.full(4, 2.0**40), np.full(4, -(2.0**40))]
    tiny = np.full(4, 1e-9)
    with_tiny, without = _sum_of(others[0], tiny, others[1], clip_norm=1e15), _sum_of(*others, clip_norm=1e15)
    np.testing.assert_allclose(with_tiny.total["w"] - without.total["w"], tiny, rtol=1e-6)


def test_d18_bits_are_centred_so_that_one_client_moves_their_sum_by_a_half() -> None:
    small, large = np.full(4, 0.01), np.full(4, 10.0)
    assert _sum_of(small, large, small).bits == 0.5
    assert abs(_sum_of(small, large).bits - _sum_of(small).bits) == 0.5
    # Replaced: twice as much, as with the updates.
    assert abs(_sum_of(small, small).bits - _sum_of(small, large).bits) == 1.0


def test_layers_that_are_clipped_one_by_one_move_the_sum_by_one_clip_norm_together() -> None:
    strategy = make(per_layer=True)
    zeros = play(strategy, {}, model=F64)
    one_layer = play(strategy, {0: moving({"params/w": 1.0}, norm=1e6)}, model=F64)
    assert shift(play(strategy, {0: HUGE}, model=F64), zeros, strategy) == pytest.approx(C, rel=1e-6)
    assert shift(one_layer, zeros, strategy) == pytest.approx(C / np.sqrt(3), rel=1e-6)
