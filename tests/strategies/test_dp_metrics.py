"""Metrics that are released: clipped to public ranges, noised, accounted; all others are withheld."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins import wire
from fl_plugins.errors import ConfigError, ConfigTypeError
from fl_plugins.node_policy import announcement
from fl_plugins.privacy import NoiseSource, joint_noise_multiplier
from fl_plugins.privacy.noise import grid_for
from fl_plugins.records import to_named
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import DpFedAvg
from strategies.dp_metrics import NoisedMetrics

from .dp_support import MODEL, make, plain

BOTH = "noised(names=('loss', 'accuracy'), upper=(4.0, 1.0))"
RANGES = {"loss": (0.0, 4.0), "accuracy": (0.0, 1.0)}
N = 6


def play(
    strategy: DpFedAvg, reported: dict[int, dict[str, Any] | None], *, number: int = 1
) -> dict[str, float]:
    """Return the metrics of a round in which client p reports ``reported[p]``; ``None``: it fails."""

    def app(message: Message, context: Context) -> Message:
        metrics = reported.get(int(context.node_config["partition-id"]), {})
        if metrics is None:
            raise ValueError("no data")
        arrays = to_named(next(iter(message.content.array_records.values())))
        record = ArrayRecord({key: Array(value) for key, value in arrays.items()})
        content = RecordDict({"a": record, "m": MetricRecord({"num-examples": 10, **metrics})})
        return Message(content, reply_to=message)

    if number == 1:
        strategy.begin(RunOptions(num_rounds=1), seed=0)
    record = ArrayRecord({key: Array(value) for key, value in MODEL.items()})
    with InProcessGrid(app, N) as grid:
        messages = list(strategy.configure_train(number, record, ConfigRecord(), grid))
        _, metrics = strategy.aggregate_train(number, grid.send_and_receive(messages))
    assert metrics is not None
    return {key: float(value) for key, value in metrics.items() if isinstance(value, float)}


def shift(one: dict[str, float], other: dict[str, float]) -> float:
    """Return by how much the sums differ, in half ranges."""
    moved = [(one[key] - other[key]) * N / ((high - low) / 2) for key, (low, high) in RANGES.items()]
    return math.hypot(*moved)


TOP, BOTTOM = {"loss": 4.0, "accuracy": 1.0}, {"loss": 0.0, "accuracy": 0.0}
FAR = {"loss": 1e300, "accuracy": -1e300}
ALL = {p: {"loss": 0.5 * p, "accuracy": 0.1 * p} for p in range(N)}


@pytest.mark.parametrize(
    ("adjacency", "one", "other", "most"),
    [
        ("zero_out", TOP, {}, 1),
        ("zero_out", FAR, None, 1),
        ("add_remove", BOTTOM, None, 1),
        ("replace", TOP, BOTTOM, 2),
        ("replace", FAR, {"loss": -1e300, "accuracy": 1e300}, 2),
        ("replace", {"loss": math.inf}, BOTTOM, 1),
        ("replace", {"loss": [4.0, 4.0], "accuracy": [1.0]}, TOP, 1),
    ],
)
def test_one_client_moves_the_metrics_by_what_the_accounting_assumes(
    adjacency: str, one: Any, other: Any, most: int
) -> None:
    """√2 for two metrics, twice that if its data are replaced; what is unusable is the middle."""
    strategies = [make(metrics=BOTH, adjacency=adjacency) for _ in range(2)]
    runs = [play(each, {**ALL, 0: mine}) for each, mine in zip(strategies, (one, other), strict=True)]
    assert shift(*runs) == pytest.approx(most * math.sqrt(2.0), rel=1e-3)
    assert most <= strategies[0].release.relation.adjacency.clip_norms


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["loss", "accuracy", "other"]),
            st.one_of(
                st.floats(allow_nan=True, allow_infinity=True),
                st.lists(st.floats(), max_size=3),
                st.integers(-(10**300), 10**300),
            ),
        ),
        min_size=2,
        max_size=2,
    ),
    st.floats(-1e300, 1e300),
    st.floats(1e-300, 1e300),
)
def test_no_contribution_is_longer_than_the_root_of_the_number_of_metrics(
    reports: list[dict[str, Any]], low: float, width: float
) -> None:
    if not low < low + width < math.inf:
        width = max(1.0, abs(low))
    metrics = NoisedMetrics(names=("loss", "accuracy"), lower=(low, 0.0), upper=(low + width, 1.0))
    one, other = (metrics.contribution(each) for each in reports)
    assert np.linalg.norm(one) <= math.sqrt(2.0) * (1 + 1e-15)
    assert np.linalg.norm(one - other) <= 2.0 * math.sqrt(2.0) * (1 + 1e-15)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, [1.0], None])
def test_what_is_no_finite_number_counts_as_the_middle(value: Any) -> None:
    metrics = NoisedMetrics(names=("loss", "accuracy"), upper=(4.0, 1.0))
    assert metrics.contribution({"loss": value, "accuracy": 1.0}).tolist() == [0.0, 1.0]
    assert metrics.contribution({"loss": 0.0, "accuracy": value}).tolist() == [-1.0, 0.0]


def test_claimed_examples_weigh_updates_and_no_metrics() -> None:
    strategies = [make(plain("examples"), max_examples=most, metrics=BOTH) for most in (10, 1000)]
    one, other = (play(each, ALL) for each in strategies)
    assert {key: one[key] for key in RANGES} == {key: other[key] for key in RANGES}


def test_what_is_released_is_the_mean_plus_noise_of_the_scale_that_is_accounted() -> None:
    """z_m = 5, two metrics: noise of 5·√2 half ranges on the sum; the seed tells which noise it is."""
    strategy = make(metrics=BOTH[:-1] + ", noise_multiplier=5.0)")
    told = play(strategy, ALL)
    source = strategy.noise_source("noise", 1)
    for value in MODEL.values():
        source.normal(value.size)
    noise = source.normal(2, std=5.0 * math.sqrt(2.0))
    for (name, (_, high)), each in zip(RANGES.items(), noise, strict=True):
        mean = np.mean([ALL[p][name] for p in range(N)])
        atol = grid_for(5.0 * math.sqrt(2.0)) * high / N
        assert told[name] == pytest.approx(mean + each / N * high / 2, abs=atol)


def test_the_noise_of_metrics_has_the_scale_that_is_accounted_and_less_is_caught() -> None:
    """The mean square of n normals has a standard error of √(2/n): five of them, against 10 % less noise."""
    metrics = NoisedMetrics(names=("a",), upper=(2.0,), noise_multiplier=3.0)
    source = NoiseSource(insecure_seed=3)
    for factor, good in ((1.0, True), (0.9, False)):
        draws = [metrics.release(np.zeros(1), 3.0 * factor, 1.0, source)["a"] - 1.0 for _ in range(4000)]
        scale = math.sqrt(np.mean(np.square(draws))) / 3.0
        assert (abs(scale - 1.0) < 5.0 * math.sqrt(0.5 / 4000)) == good


@pytest.mark.parametrize("clip", [{"clip_norm": 0.5}, {"clip": "adaptive(initial=0.5)"}])
@pytest.mark.parametrize("metrics", [BOTH, BOTH[:-1] + ", noise_multiplier=2.5)"])
def test_updates_count_and_metrics_together_are_the_one_release_that_is_accounted(
    clip: dict[str, Any], metrics: str
) -> None:
    mean = make(**clip, metrics=metrics, grid=True).mean
    assert mean.metric_noise is not None
    parts = [mean.update_noise, mean.metric_noise]
    if mean.count_noise is not None:
        parts.append(mean.count_noise / 0.5)
    assert joint_noise_multiplier(*parts) == pytest.approx(1.0, rel=1e-12)
    assert mean.noise_multiplier() == pytest.approx(1.0, rel=1e-12)
    if metrics == BOTH and mean.count_noise is None:
        assert mean.update_noise < 1.051


def test_blocks_of_correlated_noise_account_for_the_metrics_in_every_round_of_theirs() -> None:
    """A client moves a block's updates by √w clip norms and its metrics by one, under noise z_Δ and z_m."""
    matrix = "banded_matrix(rounds=8)"
    strategy = make(metrics=BOTH, sampling="min_separation(size=2, rounds=3)", noise=matrix, grid=True)
    assert strategy.matrix is not None
    mean = strategy.mean
    assert mean.metric_noise is not None
    total = 0.0
    for block, weight in enumerate(strategy.matrix.block_weights):
        expected = (weight / mean.update_noise**2 + 1 / mean.metric_noise**2) ** -0.5
        assert strategy.rounds._block_of(1, 1 + 3 * block).mechanism.noise_multiplier == pytest.approx(
            expected
        )
        total += expected**-2
    assert total == pytest.approx(3.0, rel=1e-9)


def test_dropouts_change_neither_the_noise_nor_the_denominator() -> None:
    middle = {"loss": 2.0, "accuracy": 0.5}
    runs = [play(make(metrics=BOTH), {**ALL, 3: each}) for each in (None, {}, middle)]
    for one, other in itertools.pairwise(runs):
        assert {key: one[key] for key in RANGES} == {key: other[key] for key in RANGES}


def test_d19_only_metrics_that_are_named_are_given_out() -> None:
    reported = {p: {"loss": 1.0, "accuracy": 0.5, "secret": 7.0} for p in range(N)}
    assert play(make(metrics=BOTH), reported).keys() == {*RANGES, "privacy-epsilon", "privacy-delta"}
    assert play(make(), reported).keys() == {"privacy-epsilon", "privacy-delta"}


def test_metrics_cost_nothing_beside_the_noise_multiplier_that_is_planned() -> None:
    for sampling in ("everyone()", "poisson(rate=0.5)"):
        costs = []
        for metrics in (None, BOTH):
            strategy = make(sampling=sampling, metrics=metrics)
            strategy.budget.reserve(1)
            costs.append(strategy.budget.report().epsilon)
        assert costs[0] == costs[1]


def test_messages_tell_that_metrics_are_given_out_and_that_they_are_noised() -> None:
    told = {}
    cases: tuple[dict[str, Any], ...] = ({}, {"metrics": BOTH}, {"unprotected_metrics": True})
    for case in cases:
        (promise,) = announcement(
            {wire.PROMISES: make(**case, insecure_seed=None).announce("train", 1)[wire.PROMISES]},
            wire.PROMISES,
        )
        arguments = dict(promise.kwargs)
        told[str(case)] = (arguments["metrics_withheld"], arguments["unprotected_metrics"])
    assert list(told.values()) == [(True, False), (False, False), (False, True)]


def test_other_metrics_are_another_configuration() -> None:
    texts = {make(metrics=each).describe() for each in (None, BOTH, BOTH.replace("4.0", "5.0"))}
    assert len(texts) == 3


@pytest.mark.parametrize(
    ("metrics", "reason"),
    [
        ("noised(names=(), upper=())", "one or more"),
        ("noised(names=('loss', 'loss'), upper=(1.0, 1.0))", "each a text and once"),
        ("noised(names=('loss', 3), upper=(1.0, 1.0))", "each a text and once"),
        ("noised(names=('loss',), upper=(1.0, 2.0))", "1 names, 2 upper and 1 lower"),
        ("noised(names=('loss',), upper=(1.0,), lower=(0.0, 0.0))", "1 names, 1 upper and 2 lower"),
        ("noised(names=('loss',), upper=(1.0,), lower=(1.0,))", "upper bound of loss=1.0"),
        ("noised(names=('loss',), upper=(-1.0,))", "upper bound of loss=-1.0"),
        ("noised(names=('loss',), upper=(1e400,))", "upper bound|finite"),
        ("noised(names=('privacy-epsilon',), upper=(1.0,))", "what the strategy reports"),
        ("noised(names=('num-examples',), upper=(1.0,))", "read as its weight"),
        ("noised(names=('loss',), upper=(1.0,), noise_multiplier=0.0)", "noise_multiplier"),
        ("noised(names=('loss',), upper=(1.0,), noise_multiplier=0.5)", "raise the noise"),
        ("noised(names=('loss',))", "upper"),
        ("mean(names=('loss',))", r"noised\(names=…"),
    ],
)
def test_metrics_that_cannot_be_protected_are_refused_at_construction(metrics: str, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        make(metrics=metrics)


@pytest.mark.parametrize(
    "metrics", ["noised(names='loss', upper=(1.0,))", "noised(names=('a',), upper=1.0)", 3]
)
def test_metrics_that_are_no_list_are_refused(metrics: Any) -> None:
    with pytest.raises(ConfigTypeError, match=r"is no list|give one of"):
        make(metrics=metrics)


def test_metrics_are_either_noised_or_unprotected() -> None:
    with pytest.raises(ConfigError, match="unprotected_metrics=True gives out all"):
        make(metrics=BOTH, unprotected_metrics=True)
