"""Every registered aggregator through one suite: a new one joins by adding a row to ``CASES``."""

import math
import tomllib
from importlib import import_module
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fl_plugins.aggregation import Aggregator, DenseRows, Mean
from fl_plugins.aggregation.rows import BLOCK_COLUMNS
from fl_plugins.contracts import Access, Weighting
from fl_plugins.errors import ContractError, PreconditionError, ReplyError, StructureError
from fl_plugins.registry import Kind, load

from .aggregator_cases import CASES, Case, cases_that, cohort, every_case

robust_cases = cases_that(lambda case: case.tolerates and (case.selects or case.in_range))
translating_cases = cases_that(lambda case: case.translates)
scaling_cases = cases_that(lambda case: case.scales)
location_cases = cases_that(lambda case: case.keeps_one_row)
cohorts = st.tuples(st.integers(0, 3), st.integers(0, 4), st.integers(0, 10**6))
"""(f, rows beyond the least n, seed)."""

EPS = {np.dtype(np.float32): 2.0**-24, np.dtype(np.float64): 2.0**-53}


def close(found: np.ndarray, expected: np.ndarray, scale: float, slack: float = 0.0) -> None:
    """Within the rounding of a few float64 sums and one rounding to the result's dtype."""
    atol = (16 * EPS[np.dtype(np.float64)] + 2 * EPS[found.dtype] + slack) * scale
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=0, atol=atol)


class Chunked:
    """The same rows, read at most ``width`` columns at a time."""

    def __init__(self, values: np.ndarray, width: int) -> None:
        self.inner, self.width = DenseRows(values), width
        self.shape, self.dtype = self.inner.shape, self.inner.dtype

    def read_into(self, start: int, out: np.ndarray, rows: np.ndarray | None = None) -> None:
        for first in range(0, out.shape[1], self.width):
            part = out[:, first : first + self.width]
            self.inner.read_into(start + first, part, rows)


# -- The suite ------------------------------------------------------------------------------------------


def test_the_table_has_every_registered_aggregator():
    root = Path(__file__).parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    entry_points = project["entry-points"]["fl_plugins.aggregators"]
    assert set(CASES) == set(entry_points)
    for name, case in CASES.items():
        module, attribute = entry_points[name].split(":")
        rule = case.rule(1)
        assert type(rule) is getattr(import_module(module), attribute)
        assert isinstance(rule, Aggregator)
        assert rule.name == name
        plugin = load(Kind.AGGREGATOR, name)
        assert plugin.factory is type(rule)
        assert plugin.contract == rule.contract
        assert plugin.paper


@every_case
@given(cohorts, st.sampled_from(["float32", "float64"]))
def test_it_agrees_with_a_slow_loop_from_the_paper(case, size, dtype):
    f, more, seed = size
    rows = cohort(case, f, more, seed, dtype=dtype)
    found = case.rule(f)(rows).value
    close(found, np.array(case.oracle(rows.astype(float).tolist(), f)), np.abs(rows).max(), case.slack)
    np.testing.assert_array_equal(case.function(rows, f), found)


@every_case
@given(cohorts)
def test_the_order_of_the_rows_does_not_matter(case, size):
    f, more, seed = size
    rows = cohort(case, f, more, seed, d=40)
    order = np.random.default_rng(seed).permutation(len(rows))
    first, second = case.rule(f)(rows), case.rule(f)(rows[order])
    if case.bit_exact:
        assert first.value.tobytes() == second.value.tobytes()
    close(second.value, first.value, np.abs(rows).max())
    np.testing.assert_allclose(second.contribution, first.contribution[order], rtol=1e-14)


@translating_cases
@given(cohorts, st.integers(-100, 100))
def test_it_is_translation_equivariant(case, size, shift):
    f, more, seed = size
    # Quarters of small integers: the shifted rows are exact, so only the result is rounded.
    rows = np.round(cohort(case, f, more, seed) * 4).astype(np.float32) / 4
    shifted = case.rule(f)(rows + np.float32(shift)).value
    expected = case.rule(f)(rows).value.astype(float) + shift
    close(shifted, expected, np.abs(rows).max() + abs(shift), case.slack)


@scaling_cases
@given(cohorts, st.sampled_from([-60, -3, 1, 40]))
def test_it_is_scale_equivariant_bit_for_bit(case, size, exponent):
    f, more, seed = size
    rows = cohort(case, f, more, seed)
    factor = np.float32(2.0**exponent)  # a power of 2 changes no rounding
    np.testing.assert_array_equal(case.rule(f)(rows * factor).value, case.rule(f)(rows).value * factor)


@location_cases
def test_one_row_without_byzantine_clients_is_itself_or_refused(case):
    row = np.array([[1.5, -2.0]], np.float32)
    if case.needs(0) <= 1:
        found = case.rule(0)(row)
        np.testing.assert_array_equal(found.value, row[0])
        assert found.contribution.tolist() == [1]
    else:
        with pytest.raises(PreconditionError, match="n=1 updates"):
            case.rule(0)(row)


@every_case
@pytest.mark.parametrize("f", [0, 1, 3])
def test_b4_fewer_rows_than_the_precondition_are_refused_and_never_clamped(case, f):
    """B4: a rule that works on fewer updates than its guarantee needs defends nothing."""
    rule, n = case.rule(f), case.needs(f)
    rule.check(n)
    rule(np.random.default_rng(0).normal(size=(n, 2)))
    with pytest.raises(PreconditionError, match=rf"^{rule.name}: n={n - 1} updates but .*needs|n >= 1"):
        rule.check(n - 1)
    with pytest.raises(PreconditionError, match=f"n={n - 1}"):
        rule(np.ones((n - 1, 2)))


@every_case
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("column", [0, BLOCK_COLUMNS + 1])
def test_b7_a_non_finite_row_is_refused_by_its_index(case, bad, column):
    """B7: a single NaN client made Flower's median and trimmed mean NaN."""
    rows = cohort(case, 1, 1, 0, d=BLOCK_COLUMNS + 3)
    rows[len(rows) - 1, column] = bad
    with pytest.raises(ReplyError, match=rf"row {len(rows) - 1} of {len(rows)} is {bad} at column {column}"):
        case.rule(1)(rows)


@every_case
@pytest.mark.parametrize("f", [0, 2])
def test_b1_a_large_common_offset_in_float32_changes_nothing(case, f):
    """B1: an offset of 10⁴ times the spread; the oracle works on the same float32 numbers in float64."""
    rows = cohort(case, f, 2, 7, d=200) + np.float32(1e4)
    close(case.rule(f)(rows).value, np.array(case.oracle(rows.astype(float).tolist(), f)), 1e4, case.slack)


@every_case
def test_norms_of_1e20_in_float32_do_not_overflow(case):
    rows = cohort(case, 1, 3, 3, d=50)
    rows[0] *= np.float32(1e20)
    with np.errstate(all="raise", under="ignore"):
        close(
            case.rule(1)(rows).value, np.array(case.oracle(rows.astype(float).tolist(), 1)), 1e20, case.slack
        )
        huge = rows[1:] * np.float32(1e20)
        close(
            case.rule(0)(huge).value, np.array(case.oracle(huge.astype(float).tolist(), 0)), 1e21, case.slack
        )


@every_case
@pytest.mark.parametrize(
    ("dtype", "expected"),
    [("float32", "float32"), ("float64", "float64"), ("float16", "float32"), (ml_dtypes.bfloat16, "float32")],
)
def test_shape_and_dtype_are_kept_and_narrow_floats_widened(case, dtype, expected):
    rows = cohort(case, 1, 2, 0).astype(dtype)
    found = case.rule(1)(rows)
    assert (found.value.shape, found.value.dtype) == ((6,), expected)
    assert (found.contribution.shape, found.contribution.dtype) == ((len(rows),), np.float64)
    np.testing.assert_array_equal(found.value, case.rule(1)(rows.astype(expected)).value)


@every_case
@pytest.mark.parametrize("dtype", ["int8", "int64", "bool", "complex64"])
def test_b2_arrays_that_are_not_floats_are_refused(case, dtype):
    """B2: int8 distances wrapped around."""
    with pytest.raises(StructureError, match="floats are needed"):
        case.rule(1)(np.ones((9, 3), dtype))


@every_case
def test_no_updates_and_no_columns_are_refused(case):
    with pytest.raises(PreconditionError, match="n=0"):
        case.rule(0)(np.zeros((0, 3)))
    with pytest.raises(StructureError, match="d=0"):
        case.rule(0)(np.zeros((9, 0)))


@every_case
def test_the_input_is_left_alone_and_may_be_read_only(case):
    rows = cohort(case, 1, 2, 5)
    before = rows.tobytes()
    rows.flags.writeable = False
    found = case.rule(1)(rows)
    assert rows.tobytes() == before
    assert not np.shares_memory(found.value, rows)


@location_cases
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_identical_rows_give_that_row(case, dtype):
    row = np.random.default_rng(0).normal(size=BLOCK_COLUMNS + 5).astype(dtype)
    found = case.rule(2)(np.tile(row, (max(9, case.needs(2)), 1))).value
    if case.bit_exact:
        np.testing.assert_array_equal(found, row)
    close(found, row, np.abs(row).max())


@every_case
@given(cohorts, st.integers(1, 7))
def test_blocks_of_any_size_give_the_same_result(case, size, width):
    f, more, seed = size
    rows = cohort(case, f, more, seed)
    whole, chunked = case.rule(f)(rows), case.rule(f)(Chunked(rows, width))
    close(chunked.value, whole.value, np.abs(rows).max(), case.slack)
    np.testing.assert_allclose(chunked.contribution, whole.contribution, rtol=1e-14, atol=case.slack)


@every_case
def test_many_blocks_agree_with_the_oracle(case):
    rows = cohort(case, 1, 2, 11, d=2 * BLOCK_COLUMNS + 3)
    close(
        case.rule(1)(rows).value,
        np.array(case.oracle(rows.astype(float).tolist(), 1)),
        np.abs(rows).max(),
        case.slack,
    )


@every_case
@given(cohorts)
def test_contribution_is_a_share_of_each_row(case, size):
    f, more, seed = size
    rows = cohort(case, f, more, seed)
    found = case.rule(f)(rows)
    assert (found.contribution >= 0).all()
    assert found.contribution.sum() == pytest.approx(1, abs=1e-12)  # a sum of n <= 13 shares in float64
    if case.selects if case.linear is None else case.linear:
        close(found.value, found.contribution @ rows.astype(float), np.abs(rows).max())


@every_case
def test_b5_only_a_weighted_rule_takes_weights(case):
    """B5: in Flower's MultiKrum a client that claims 10¹² examples is the aggregate."""
    rows, weights = cohort(case, 1, 2, 0), np.ones(case.needs(1) + 2)
    contract = case.rule(1).contract
    if case.takes_weights:
        assert (contract.access, contract.weighting) == (Access.SUM, Weighting.EXAMPLES)
        close(case.rule(1)(rows, weights).value, case.rule(1)(rows).value.astype(float), np.abs(rows).max())
    else:
        assert (contract.access, contract.weighting) == (Access.EVERY_UPDATE, Weighting.UNIFORM)
        with pytest.raises(ContractError, match="counts every client the same"):
            case.rule(1)(rows, weights)


# -- Resilience -----------------------------------------------------------------------------------------


def attacked(case: Case, f: int, more: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return honest rows, and all rows in random order, with as many hostile rows as the rule tolerates."""
    rng = np.random.default_rng(seed)
    n = max(case.needs(f), 3) + more
    count = case.tolerates(n, f) if case.tolerates else 1
    honest = rng.normal(size=(n - count, 4)) * rng.choice([1e-6, 1.0, 1e6]) + rng.normal() * 10
    copied = honest[rng.integers(0, len(honest), count)]
    hostile = {
        0: rng.normal(size=(count, 4)) * 10.0 ** rng.integers(-3, 31),
        1: np.full((count, 4), rng.choice([-1e30, 1e30])),
        2: honest.mean(0) + honest.std(0) * rng.uniform(-3, 3) + np.zeros((count, 1)),  # ALIE
        3: np.tile(-rng.uniform(0, 10) * honest.mean(0), (count, 1)),  # inner-product manipulation
        4: copied + rng.normal(size=copied.shape) * 1e-3,  # close to somebody
    }[int(rng.integers(5))]
    return honest, rng.permutation(np.concatenate([honest, hostile]))


def stays_close(value: np.ndarray, honest: np.ndarray, rows: np.ndarray, f: int) -> bool:
    """Whether ``value`` is as near to the honest rows as Krum's scores imply.

    Every honest score is at most (n−f−2)·D², with D the honest diameter, and at least one of the n−f−2
    neighbours of any selected row is honest; so a selected row is within √(n−f−2)·D of an honest row.
    """
    diameter = max(np.linalg.norm(a - b) for a in honest for b in honest)
    distance = np.linalg.norm(value - honest.mean(axis=0))
    bound = (math.sqrt(len(rows) - f - 2) + 1) * diameter
    return bool(distance <= bound * (1 + 1e-9))


@robust_cases
@given(st.tuples(st.integers(1, 3), st.integers(0, 4), st.integers(0, 10**6)))
def test_arbitrary_rows_cannot_move_the_result_away_from_the_honest_ones(case, size):
    f, more, seed = size
    honest, rows = attacked(case, f, more, seed)
    found = case.rule(f)(rows).value
    if case.selects:
        assert stays_close(found, honest, rows, f)
    else:
        assert (honest.min(axis=0) <= found).all()
        assert (found <= honest.max(axis=0)).all()


def test_a_mean_does_leave_the_honest_range_under_the_same_attackers():
    """Negative control: the properties above are not true of every rule."""
    outside = far = 0
    for seed in range(30):
        honest, rows = attacked(CASES["trimmed_mean"], 2, 2, seed)
        found = Mean()(rows).value
        outside += not ((honest.min(axis=0) <= found) & (found <= honest.max(axis=0))).all()
        far += not stays_close(found, honest, rows, 2)
    assert outside > 10
    assert far > 5
