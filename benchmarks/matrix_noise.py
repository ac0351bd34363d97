"""Banded matrix factorisation against independent noise: error of running sums at equal cost, and accuracy.

The first table is computed, not sampled: the root mean square over all T running sums of what the noise adds,
independent noise over banded noise that costs as much. The second trains the linear model of
``adaptive_clipping.py`` on digits, 479 users, ε = 8 (zero_out), without amplification by sampling; and with
Poisson sampling of as many users for comparison, which needs cohorts that stay secret.

    python benchmarks/matrix_noise.py [--seeds 5]
"""

import argparse
from typing import Any

import numpy as np
from adaptive_clipping import USERS, accuracies

from fl_plugins.privacy import BandedMatrix
from strategies import DpFedAvg, FedAvg

SHAPES = ((64, 4), (64, 16), (64, 32), (128, 16), (256, 32), (512, 32), (1024, 16))
ROUNDS, GAP = 96, 16
COHORT = USERS // GAP
APART = f"min_separation(size={COHORT}, rounds={GAP})"
CASES = (
    ("independent noise", APART, "independent"),
    ("banded noise", APART, f"banded_matrix(rounds={ROUNDS})"),
    ("Poisson sampling", f"poisson(rate={COHORT / USERS})", "independent"),
)
NORMS = (0.1, 0.3, 1.0, 3.0)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    print("rounds  bands  error of independent noise / of banded noise")
    for rounds, bands in SHAPES:
        print(f"{rounds:6} {bands:6} {BandedMatrix(rounds=rounds, bands=bands).gain:8.2f}", flush=True)
    print(f"\n{ROUNDS} rounds of {COHORT} of {USERS} users; accuracy in % (sd of a seed) by clip norm")
    print(" " * 26 + "".join(f"{norm:>14g}" for norm in NORMS))
    for name, sampling, noise in CASES:
        planned = private(sampling, noise, seed=0, target_epsilon=8.0, num_rounds=ROUNDS)
        cells = []
        for norm in NORMS:
            scores = [
                reached(sampling, noise, norm, planned.noise_multiplier, seed) for seed in range(args.seeds)
            ]
            cells.append(f"{np.mean(scores):8.1f} ({np.std(scores, ddof=1):.1f})")
        print(
            f"{name:<18} z = {planned.noise_multiplier:.2f}" + "".join(f"{cell:>14}" for cell in cells),
            flush=True,
        )


def reached(sampling: str, noise: str, clip_norm: float, noise_multiplier: float, seed: int) -> float:
    """Return the last round's accuracy in %."""
    strategy = private(sampling, noise, seed=seed, clip_norm=clip_norm, noise_multiplier=noise_multiplier)
    *_, (accuracy, _) = accuracies(strategy, seed, ROUNDS)
    return 100.0 * accuracy


def private(sampling: str, noise: str, *, seed: int, clip_norm: float = 1.0, **given: Any) -> DpFedAvg:
    """Return the strategy."""
    return DpFedAvg(
        FedAvg(weighting="uniform"),
        unit="client",
        adjacency="zero_out",
        population=USERS,
        sampling=sampling,
        noise=noise,
        clip_norm=clip_norm,
        delta=1e-5,
        insecure_seed=seed,
        **given,
    )


if __name__ == "__main__":
    main()
