"""Pre-aggregators and chains: formulas against slow loops, state, contribution, and what they refuse."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import (
    Arc,
    Bucketing,
    Caf,
    CenteredClipping,
    Chain,
    Clip,
    DenseRows,
    GeometricMedian,
    Krum,
    Mda,
    Mean,
    Median,
    NearestNeighborMixing,
    NormBoundedMean,
    PreAggregator,
    Rows,
    SignMajority,
    Stateful,
    TrimmedMean,
)
from fl_plugins.aggregation.arc import arc
from fl_plugins.aggregation.bucketing import bucketing
from fl_plugins.aggregation.clipping import clip
from fl_plugins.aggregation.mixing import to_dense
from fl_plugins.aggregation.nearest_neighbor_mixing import nearest_neighbor_mixing
from fl_plugins.errors import (
    ConfigError,
    ConfigTypeError,
    PreconditionError,
    ReplyError,
    StructureError,
    UnknownPluginError,
)
from fl_plugins.registry import Kind
from fl_plugins.spec import build

from .updates import cohort

STAGES: list[PreAggregator] = [
    NearestNeighborMixing(num_byzantine=1),
    Bucketing(size=2),
    Clip(1.5),
    Arc(num_byzantine=2),
]
every_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
cases = st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 10**6))
"""(f, rows beyond 2f, seed)."""


# -- Formulas -------------------------------------------------------------------------------------------


@given(cases)
def test_nearest_neighbor_mixing_is_the_papers_loop(case):
    f, more, seed = case
    rows = cohort(2 * f + more, seed, dtype="float64")
    expected = []
    for row in sorted(rows.tolist()):
        near = sorted(rows.tolist(), key=lambda other: math.dist(row, other))[: len(rows) - f]
        expected.append([math.fsum(column) / len(near) for column in zip(*near, strict=True)])
    np.testing.assert_allclose(nearest_neighbor_mixing(rows, num_byzantine=f), expected, rtol=0, atol=1e-14)


@given(cases)
def test_arc_is_the_papers_loop(case):
    f, more, seed = case
    rows = cohort(2 * f + more, seed, dtype="float64")
    n = len(rows)
    norms = [math.hypot(*row) for row in rows]
    k = math.floor(2 * f * (n - f) / n)
    threshold = sorted(norms, reverse=True)[k]
    expected = [row * min(1, threshold / norm) for row, norm in zip(rows, norms, strict=True)]
    np.testing.assert_allclose(arc(rows, num_byzantine=f), expected, rtol=1e-14)


def test_clipping_leaves_rows_within_the_bound_alone():
    rows = cohort(20, 0)
    clipped, norms = clip(rows, max_norm=2.0), np.linalg.norm(rows, axis=1)
    assert 0 < (norms > 2).sum() < 20
    np.testing.assert_array_equal(clipped[norms <= 2], rows[norms <= 2])
    np.testing.assert_allclose(np.linalg.norm(clipped[norms > 2], axis=1), 2, rtol=1e-6)  # float32


@given(st.integers(1, 13), st.integers(1, 5), st.integers(0, 50))
def test_bucketing_uses_every_row_once_and_fills_its_buckets(n, size, number):
    stage = Bucketing(size=size, seed=4)
    mixed = stage(DenseRows(cohort(n, n)), state={"round": np.array(number)})
    counts = (mixed.mixing > 0).sum(axis=1)
    assert mixed.mixing.shape == (math.ceil(n / size), n) == (stage.num_outputs(n), n)
    assert ((mixed.mixing > 0).sum(axis=0) == 1).all()
    assert (counts[:-1] == size).all()
    np.testing.assert_allclose(mixed.mixing.sum(axis=1), 1)
    assert mixed.state["round"] == number + 1


def test_bucketing_shuffles_anew_every_round_and_for_every_seed_and_repeats_exactly():
    rows = cohort(12, 1)
    results = [bucketing(rows, size=3, seed=s, round_number=r).tobytes() for s in range(3) for r in range(3)]
    assert len(set(results)) == 9
    assert bucketing(rows, size=3, seed=1, round_number=2).tobytes() == results[5]


def test_bucketing_pairs_all_rows_equally_often():
    """A shuffle is uniform: each of 6 rows meets each other in 1/5 of 400, within 5 standard errors."""
    stage, meetings = Bucketing(size=2), np.zeros((6, 6))
    for number in range(400):
        together = stage(DenseRows(cohort(6, 0)), state={"round": np.array(number)}).mixing > 0
        meetings += together.T.astype(float) @ together
    others = meetings[~np.eye(6, dtype=bool)] / 400
    assert np.abs(others - 0.2).max() < 5 * math.sqrt(0.2 * 0.8 / 400)


@every_stage
@given(st.integers(5, 11), st.integers(0, 10**6))
def test_the_rows_are_the_mixing_times_the_rows_whatever_the_order(stage, n, seed):
    rows = cohort(n, seed)
    order = np.random.default_rng(seed).permutation(n)
    first, second = stage(DenseRows(rows)), stage(DenseRows(rows[order]))
    assert isinstance(first.rows, Rows)
    dense = to_dense(first.rows)
    np.testing.assert_allclose(dense, first.mixing @ rows.astype(float), rtol=0, atol=1e-6)  # float32
    assert sorted(dense.tolist()) == sorted(to_dense(second.rows).tolist())
    assert (first.mixing >= 0).all()


@every_stage
def test_some_rows_of_some_columns_are_read_as_all_are(stage):
    rows = np.random.default_rng(0).normal(size=(9, 140_000)).astype(np.float32) ** 3
    result = stage(rows)
    expected = result.mixing @ rows.astype(float)
    other = np.flatnonzero((result.mixing != result.mixing[0]).any(axis=1))[-1]
    chosen = np.array([other, 0])
    found = np.empty((2, 130_000), np.float32)
    result.rows.read_into(5_000, found, chosen)
    # One rounding to float32 of values up to 100.
    np.testing.assert_allclose(found, expected[chosen, 5_000:135_000], rtol=1e-6, atol=1e-6)
    assert (np.abs(found[0] - found[1]) > 0.1).any()


@every_stage
def test_a_preaggregator_refuses_what_a_rule_refuses(stage):
    with pytest.raises(PreconditionError, match="n=0"):
        stage(np.zeros((0, 3)))
    with pytest.raises(PreconditionError, match="n=0"):
        stage.check(0)
    with pytest.raises(StructureError, match="d=0"):
        stage(np.zeros((9, 0)))
    with pytest.raises(StructureError, match="floats are needed"):
        stage(np.ones((9, 3), np.int8))
    rows = cohort(9, 0)
    rows[4, 2] = np.nan
    with pytest.raises(ReplyError, match="row 4 of 9 is nan"):
        stage(rows)


@every_stage
def test_identical_rows_and_huge_rows_are_fine(stage):
    same = np.tile(cohort(1, 3, dtype="float64") * 0.1, (9, 1))
    np.testing.assert_array_equal(to_dense(stage(same).rows), same[: stage.num_outputs(9)])
    huge = cohort(9, 1)
    huge[0] *= np.float32(1e20)
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(to_dense(stage(huge).rows)).all()


@pytest.mark.parametrize("rule", [NearestNeighborMixing, Arc, Mda, Caf, GeometricMedian])
@pytest.mark.parametrize(
    ("f", "error"),
    [(-1, ConfigError), (True, ConfigTypeError), (1.0, ConfigTypeError), ("1", ConfigTypeError)],
)
def test_f_is_a_whole_number_of_clients(rule, f, error):
    with pytest.raises(error, match=f"num_byzantine={f!r}"):
        rule(num_byzantine=f)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda value: Clip(value), "max_norm"),
        (lambda value: NormBoundedMean(max_norm=value), "max_norm"),
        (lambda value: CenteredClipping(max_norm=value), "max_norm"),
        (lambda value: SignMajority(step=value), "step"),
        (lambda value: GeometricMedian(tolerance=value), "tolerance"),
        (lambda value: GeometricMedian(smoothing=value), "smoothing"),
    ],
)
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, True, "1"])
def test_lengths_and_tolerances_are_finite_and_positive(make, name, value):
    with pytest.raises(ConfigTypeError if value is True or value == "1" else ConfigError, match=f"{name}="):
        make(value)


# -- Chains ---------------------------------------------------------------------------------------------


DEFAULT = (
    "chain(arc(num_byzantine=2), nearest_neighbor_mixing(num_byzantine=2), trimmed_mean(num_byzantine=2))"
)


def test_a_chain_from_text_is_the_chain_from_python_and_the_stages_one_by_one():
    rows = cohort(9, 5) * np.linspace(0.2, 3, 9, dtype=np.float32)[:, None]
    chain = Chain(Arc(num_byzantine=2), NearestNeighborMixing(num_byzantine=2), TrimmedMean(num_byzantine=2))
    assert build(Kind.AGGREGATOR, DEFAULT) == chain
    assert hash(build(Kind.AGGREGATOR, DEFAULT)) == hash(chain)
    by_hand = nearest_neighbor_mixing(arc(rows, num_byzantine=2), num_byzantine=2)
    np.testing.assert_array_equal(chain(rows).value, TrimmedMean(num_byzantine=2)(by_hand).value)


@pytest.mark.parametrize(
    ("spec", "error", "reason"),
    [
        ("chain()", ConfigError, "ends with None"),
        ("chain(arc(num_byzantine=1))", ConfigError, "last stage must be a rule"),
        ("chain(median(), mean())", ConfigError, "stands before the end"),
        ("chain(median(), arc(num_byzantine=1))", ConfigError, "stands before the end"),
        ("chain(ark(num_byzantine=1), mean())", UnknownPluginError, "ark"),
        ("chain(arc(g=1), mean())", ConfigError, "no parameter 'g'"),
        ("chain(arc(f=1), clip(f=1), mean())", ConfigError, "no parameter 'f'"),
        ("chain(arc(f=1, num_byzantine=1), mean())", ConfigError, "given twice"),
        ("chain(1, mean())", ConfigTypeError, "preaggregator"),
    ],
)
def test_what_is_no_chain_is_refused(spec, error, reason):
    with pytest.raises(error, match=reason):
        build(Kind.AGGREGATOR, spec)


def test_a_chain_may_say_f_and_gives_it_to_arc():
    assert build(Kind.AGGREGATOR, "chain(arc(), nearest_neighbor_mixing(f=2), trimmed_mean(f=2))") == build(
        Kind.AGGREGATOR, DEFAULT
    )
    of_a_fraction = Chain(Arc(), TrimmedMean(fraction=0.2))
    assert of_a_fraction.for_cohort(10) == Chain(Arc(num_byzantine=2), TrimmedMean(num_byzantine=2))


@pytest.mark.parametrize(
    "rule", [Mean(), GeometricMedian(), CenteredClipping(max_norm=1.0)], ids=lambda r: r.name
)
def test_arc_never_stands_idle_because_the_rule_tolerates_nobody(rule):
    with pytest.raises(ConfigError, match=r"write arc\(num_byzantine=...\)"):
        Chain(Arc(), rule)
    with pytest.raises(ConfigError, match="num_byzantine is not given"):
        Arc()(np.ones((5, 2)))


def test_a_chain_checks_each_stage_against_what_reaches_it():
    chain = Chain(Bucketing(size=2), Krum(num_byzantine=1))  # Krum needs 5 buckets
    chain.check(9)
    with pytest.raises(PreconditionError, match=r"^chain: n=8 updates but .* krum: n=4 updates"):
        chain.check(8)


def test_contribution_goes_back_to_the_clients():
    rows = cohort(9, 8, dtype="float64")
    for stages in ([NearestNeighborMixing(num_byzantine=2)], [Bucketing(size=2), Clip(1e9)]):
        found = Chain(*stages, Mean())(rows)
        np.testing.assert_allclose(found.contribution @ rows, found.value, atol=1e-14)
        assert found.contribution.sum() == pytest.approx(1)
    outlier = rows.copy()
    outlier[3] = 1e6
    for spec in (DEFAULT, "chain(nearest_neighbor_mixing(num_byzantine=2), krum(num_byzantine=2))"):
        shares = build(Kind.AGGREGATOR, spec)(outlier).contribution
        assert shares[3] == shares.min() < 0.02
    down = Chain(Clip(1.0), Mean())(outlier).contribution
    assert down[3] == down.min() < 1e-5


def test_the_state_of_every_stage_is_kept_apart():
    chain = Chain(Bucketing(size=2), Bucketing(size=1, seed=1), CenteredClipping(max_norm=1.0))
    assert isinstance(chain, Stateful)
    initial = chain.initial_state(6, np.dtype(np.float32))
    assert sorted(initial) == ["0/round", "1/round", "2/center"]
    rows = cohort(8, 0)
    first = chain(rows)
    np.testing.assert_array_equal(first.value, chain(rows, state=initial).value)
    second = chain(rows, state=first.state)
    assert (int(second.state["0/round"]), int(second.state["1/round"])) == (2, 2)
    np.testing.assert_array_equal(second.state["2/center"], second.value)
    assert (second.value != first.value).any()


def test_centered_clipping_goes_on_from_its_centre_and_refuses_another_models():
    rule, rows = CenteredClipping(max_norm=0.5), np.full((4, 3), 10.0)
    first = rule(rows)
    assert np.linalg.norm(first.value) == pytest.approx(0.5)
    assert np.linalg.norm(rule(rows, state=first.state).value) == pytest.approx(1.0)
    with pytest.raises(StructureError, match="another model"):
        rule(rows, state={"center": np.zeros(2)})


@given(st.integers(1, 10**6))
def test_one_row_moves_centered_clipping_by_at_most_its_share(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(5, 3))
    changed = rows.copy()
    changed[2] = rng.normal(size=3) * 10.0 ** rng.integers(0, 20)
    first, second = (CenteredClipping(max_norm=0.7)(values).value for values in (rows, changed))
    assert np.linalg.norm(first - second) <= 2 * 0.7 / 5 + 1e-12


@pytest.mark.parametrize("rule", [Krum(num_byzantine=2), Median(), GeometricMedian()], ids=lambda r: r.name)
def test_mixing_stores_nothing_of_the_inputs_size(rule):
    rows = np.random.default_rng(0).normal(size=(16, 400_000)).astype(np.float32)
    chain = Chain(NearestNeighborMixing(num_byzantine=2), rule)
    chain(rows)  # what it imports and compiles is no copy of the input
    tracemalloc.start()
    try:
        chain(rows)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # Blocks of two threads, twice a few MB each whatever the input; a second copy of it would be 26 MB.
    assert peak < 0.6 * rows.nbytes


def test_an_infinite_row_in_a_bucket_is_refused_and_warns_of_nothing():
    rows = np.random.default_rng(0).normal(size=(4, 9_000))
    rows[2, -1] = np.inf
    with pytest.raises(ReplyError, match=r"of 2 is nan at column 8999|of 2 is inf at column 8999"):
        Chain(Bucketing(size=2), GeometricMedian())(rows)


def test_the_median_is_a_rule_and_no_preaggregator():
    assert not isinstance(Median(), PreAggregator)
    assert all(isinstance(stage, PreAggregator) for stage in STAGES)
