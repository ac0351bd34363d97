"""What each rule must give: loops over Python floats, from the papers."""

import itertools
import math

import numpy as np

TAU = 2.0
"""Clipping radius in the table: some rows of the suite lie within, others do not."""


def mean_oracle(rows: list[list[float]], f: int) -> list[float]:
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def trimmed_oracle(rows: list[list[float]], f: int) -> list[float]:
    n = len(rows)
    kept = [sorted(column)[f : n - f] for column in zip(*rows, strict=True)]
    return [math.fsum(values) / len(values) for values in kept]


def median_oracle(rows: list[list[float]], f: int) -> list[float]:
    return trimmed_oracle(rows, (len(rows) - 1) // 2)


def multi_krum_oracle(rows: list[list[float]], f: int, m: int | None = None) -> list[float]:
    n = len(rows)
    scores = []
    for i in range(n):
        others = [
            math.fsum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)) for j in range(n) if j != i
        ]
        scores.append((math.fsum(sorted(others)[: n - f - 2]), rows[i]))
    best = [row for _, row in sorted(scores)[: n - f - 2 if m is None else m]]
    return mean_oracle(best, 0)


def krum_oracle(rows: list[list[float]], f: int) -> list[float]:
    return multi_krum_oracle(rows, f, 1)


def nearest_median_oracle(rows: list[list[float]], kept: int) -> list[float]:
    value = []
    for column, middle in zip(zip(*rows, strict=True), median_oracle(rows, 0), strict=True):
        value.append(math.fsum(sorted(column, key=lambda x: (abs(x - middle), x))[:kept]) / kept)
    return value


def meamed_oracle(rows: list[list[float]], f: int) -> list[float]:
    return nearest_median_oracle(rows, len(rows) - f)


def bulyan_oracle(rows: list[list[float]], f: int) -> list[float]:
    """Krum takes out one row after the other; at least one neighbour counts, which the paper leaves open."""
    left, selected = list(rows), []
    while len(selected) < len(rows) - 2 * f:
        scores = []
        for i, row in enumerate(left):
            others = sorted(math.dist(row, other) ** 2 for j, other in enumerate(left) if j != i)
            scores.append((math.fsum(others[: max(len(left) - f - 2, 1)]), row, i))
        selected.append(left.pop(min(scores)[2]))
    return nearest_median_oracle(selected, len(rows) - 4 * f)


def weighted(rows: list[list[float]], shares: list[float]) -> list[float]:
    return [
        math.fsum(a * x for a, x in zip(shares, column, strict=True)) for column in zip(*rows, strict=True)
    ]


def geometric_median_oracle(rows: list[list[float]], f: int) -> list[float]:
    """Weiszfeld from the coordinate-wise median, to a standstill, with a smoothing that plays no part."""
    at = median_oracle(rows, f)
    spread = sorted(math.dist(at, row) for row in rows)[len(rows) // 2]
    for _ in range(3000):
        inverse = [1 / max(math.dist(at, row), 1e-9 * spread or 1.0) for row in rows]
        last, at = at, weighted(rows, [value / math.fsum(inverse) for value in inverse])
        if math.dist(at, last) <= 1e-12 * spread:
            break
    return at


def centered_clipping_oracle(rows: list[list[float]], f: int) -> list[float]:
    at = [0.0] * len(rows[0])
    for _ in range(2):
        moves = []
        for row in rows:
            factor = min(1.0, TAU / (math.dist(row, at) or TAU))
            moves.append([(x - v) * factor for x, v in zip(row, at, strict=True)])
        at = [v + step for v, step in zip(at, mean_oracle(moves, 0), strict=True)]
    return at


def norm_bounded_oracle(rows: list[list[float]], f: int) -> list[float]:
    factors = [min(1.0, TAU / (math.hypot(*row) or TAU)) for row in rows]
    return mean_oracle([[x * a for x in row] for row, a in zip(rows, factors, strict=True)], 0)


def sign_oracle(rows: list[list[float]], f: int) -> list[float]:
    votes = [sum((x > 0) - (x < 0) for x in column) for column in zip(*rows, strict=True)]
    return [0.25 * ((vote > 0) - (vote < 0)) for vote in votes]


def mda_oracle(rows: list[list[float]], f: int) -> list[float]:
    """All subsets of the sorted rows, the first of the least diameter."""
    subsets = itertools.combinations(sorted(rows), len(rows) - f)
    return mean_oracle(
        min(subsets, key=lambda s: max((math.dist(a, b) for a in s for b in s), default=0.0)), 0
    )


def caf_oracle(rows: list[list[float]], f: int) -> list[float]:
    """Singular vectors of the d columns, where the rule solves an isometric n × n problem."""
    points, n = np.array(rows), len(rows)
    kept, best, least = np.ones(n), mean_oracle(rows, 0), math.inf
    while f and kept.sum() > n - 2 * f:
        shares = kept / kept.sum()
        middle = weighted(rows, shares.tolist())
        off = points - middle
        # The right singular vectors are the d × d covariance's eigenvectors.
        _, deviations, directions = np.linalg.svd(np.sqrt(shares)[:, None] * off, full_matrices=False)
        if deviations[0] < least:
            best, least = middle, deviations[0]
        outlying = (off @ directions[0]) ** 2
        kept = kept * np.maximum(1 - outlying / outlying[kept > 0].max(), 0)
    return best


def chain_oracle(rows: list[list[float]], f: int) -> list[float]:
    """Nearest-neighbour mixing, then the trimmed mean."""
    mixed = [
        mean_oracle(sorted(sorted(rows), key=lambda other: math.dist(row, other))[: len(rows) - f], 0)
        for row in rows
    ]
    return trimmed_oracle(mixed, f)
