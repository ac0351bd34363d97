"""The table of aggregators that the suites in ``test_aggregators`` run through."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from fl_plugins.aggregation import (
    Aggregator,
    Bulyan,
    Caf,
    CenteredClipping,
    Chain,
    GeometricMedian,
    Krum,
    Mda,
    MeaMed,
    Mean,
    Median,
    MultiKrum,
    NearestNeighborMixing,
    NormBoundedMean,
    SignMajority,
    TrimmedMean,
    bulyan,
    caf,
    centered_clipping,
    chain,
    geometric_median,
    krum,
    mda,
    meamed,
    mean,
    median,
    norm_bounded_mean,
    sign_majority,
    trimmed_mean,
)

from .aggregator_oracles import (
    TAU,
    bulyan_oracle,
    caf_oracle,
    centered_clipping_oracle,
    chain_oracle,
    geometric_median_oracle,
    krum_oracle,
    mda_oracle,
    meamed_oracle,
    mean_oracle,
    median_oracle,
    multi_krum_oracle,
    norm_bounded_oracle,
    sign_oracle,
    trimmed_oracle,
)


@dataclass(frozen=True, kw_only=True)
class Case:
    rule: Callable[[int], Aggregator]
    """From f to the rule."""
    function: Callable[..., np.ndarray]
    """The plain function, called with rows and f."""
    oracle: Callable[[list[list[float]], int], list[float]]
    needs: Callable[[int], int]
    """From f to the least n."""
    bit_exact: bool = True
    """Whether a permutation of the rows leaves every bit; a mean sums in order of arrival."""
    selects: bool = False
    """Whether whole rows are kept or dropped."""
    takes_weights: bool = False
    tolerates: Callable[[int, int], int] | None = lambda n, f: f
    """From (n, f) to the arbitrary rows that it bounds; ``None``: no defence."""
    translates: bool = True
    scales: bool = True
    """Whether it is equivariant; a rule with an absolute radius, centre or step is not."""
    in_range: bool = True
    """Whether the honest rows' range bounds it, coordinate by coordinate; else see ``test_resilience``."""
    keeps_one_row: bool = True
    """Whether a single row, and equal rows, are returned as they are."""
    linear: bool | None = None
    """Whether the value is ``contribution @ rows``; by default, whether it selects."""
    slack: float = 0.0
    """Relative tolerance beside rounding, for rules that iterate to a limit."""


CASES = {
    "mean": Case(
        rule=lambda f: Mean(),
        function=lambda rows, f: mean.mean(rows),
        oracle=mean_oracle,
        needs=lambda f: 1,
        selects=True,
        takes_weights=True,
        tolerates=None,
    ),
    "krum": Case(
        rule=lambda f: Krum(num_byzantine=f),
        function=lambda rows, f: krum.krum(rows, num_byzantine=f),
        oracle=krum_oracle,
        needs=lambda f: 2 * f + 3,
        selects=True,
    ),
    "multi_krum": Case(
        rule=lambda f: MultiKrum(num_byzantine=f),
        function=lambda rows, f: krum.multi_krum(rows, num_byzantine=f),
        oracle=multi_krum_oracle,
        needs=lambda f: 2 * f + 3,
        selects=True,
    ),
    "trimmed_mean": Case(
        rule=lambda f: TrimmedMean(num_byzantine=f),
        function=lambda rows, f: trimmed_mean.trimmed_mean(rows, num_byzantine=f),
        oracle=trimmed_oracle,
        needs=lambda f: 2 * f + 1,
    ),
    "median": Case(
        rule=lambda f: Median(),
        function=lambda rows, f: median.median(rows),
        oracle=median_oracle,
        needs=lambda f: 1,
        tolerates=lambda n, f: (n - 1) // 2,
    ),
    "meamed": Case(
        rule=lambda f: MeaMed(num_byzantine=f),
        function=lambda rows, f: meamed.meamed(rows, num_byzantine=f),
        oracle=meamed_oracle,
        needs=lambda f: 2 * f + 1,
        in_range=False,
    ),
    "bulyan": Case(
        rule=lambda f: Bulyan(num_byzantine=f),
        function=lambda rows, f: bulyan.bulyan(rows, num_byzantine=f),
        oracle=bulyan_oracle,
        needs=lambda f: 4 * f + 3,
        in_range=False,
    ),
    # Steps of 1e-9 of the spread, at a linear rate of convergence, end within 1e-6 of the limit.
    "geometric_median": Case(
        rule=lambda f: GeometricMedian(num_byzantine=f),
        function=lambda rows, f: geometric_median.geometric_median(rows, num_byzantine=f),
        oracle=geometric_median_oracle,
        needs=lambda f: 2 * f + 1,
        in_range=False,
        linear=True,
        slack=1e-6,
    ),
    # The second iteration's distances come from inner products: 1e-13 of the square, 1e-7 of a small one.
    "centered_clipping": Case(
        rule=lambda f: CenteredClipping(max_norm=TAU, num_byzantine=f, iterations=2),
        function=lambda rows, f: centered_clipping.centered_clipping(
            rows, max_norm=TAU, num_byzantine=f, iterations=2
        ),
        oracle=centered_clipping_oracle,
        needs=lambda f: 2 * f + 1,
        translates=False,
        scales=False,
        in_range=False,
        keeps_one_row=False,
        slack=1e-9,
    ),
    "norm_bounded_mean": Case(
        rule=lambda f: NormBoundedMean(max_norm=TAU),
        function=lambda rows, f: norm_bounded_mean.norm_bounded_mean(rows, max_norm=TAU),
        oracle=norm_bounded_oracle,
        needs=lambda f: 1,
        translates=False,
        scales=False,
        in_range=False,
        keeps_one_row=False,
        tolerates=None,
    ),
    "sign_majority": Case(
        rule=lambda f: SignMajority(step=0.25, num_byzantine=f),
        function=lambda rows, f: sign_majority.sign_majority(rows, step=0.25, num_byzantine=f),
        oracle=sign_oracle,
        needs=lambda f: 2 * f + 1,
        translates=False,
        scales=False,
        in_range=False,
        keeps_one_row=False,
    ),
    "mda": Case(
        rule=lambda f: Mda(num_byzantine=f),
        function=lambda rows, f: mda.mda(rows, num_byzantine=f),
        oracle=mda_oracle,
        needs=lambda f: 2 * f + 1,
        in_range=False,
        linear=True,
    ),
    # Eigenvectors of two different matrices: rounding over the gap between eigenvalues.
    "caf": Case(
        rule=lambda f: Caf(num_byzantine=f),
        function=lambda rows, f: caf.caf(rows, num_byzantine=f),
        oracle=caf_oracle,
        needs=lambda f: 2 * f + 1,
        in_range=False,
        linear=True,
        slack=1e-8,
    ),
    "chain": Case(
        rule=lambda f: Chain(NearestNeighborMixing(num_byzantine=f), TrimmedMean(num_byzantine=f)),
        function=lambda rows, f: chain.chain(
            rows, NearestNeighborMixing(num_byzantine=f), TrimmedMean(num_byzantine=f)
        ),
        oracle=chain_oracle,
        needs=lambda f: 2 * f + 1,
        in_range=False,
        slack=1e-7,  # the mixed rows are rounded to the dtype, float32, in between
    ),
}

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def cases_that(condition: Callable[[Case], object]) -> pytest.MarkDecorator:
    """Return the parametrization over the cases for which ``condition`` holds."""
    chosen = {name: case for name, case in CASES.items() if condition(case)}
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen)


def cohort(case: Case, f: int, more: int, seed: int, d: int = 6, dtype: str = "float32") -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(case.needs(f) + more, d)).astype(dtype)
