"""Who shares secrets and masks with whom: everyone, or k neighbors on a random k-regular graph.

Bell et al., "Secure single-server aggregation with (poly)logarithmic overhead" (CCS 2020): each node masks
against k neighbors only and shares its secrets among them, t of whom can give them back. The graph is a
Harary graph on a random order of the nodes, k-connected, and a public function of all adverts, which nobody
knew when making its own keys.

**How k and t are chosen.** γn nodes collude with the server, δn drop out, both at random places; a node's
neighbors are a uniform sample of the others, so the exact tails are hypergeometric, each times n (union
bound):

- privacy, at most 2⁻⁴⁰: some node has t or more colluding neighbors, or the nodes that neither collude nor
  drop are not connected, in which case the server would learn the sums of the parts;
- failure, at most 2⁻³⁰: of some node's neighbors fewer than t are left.

Removing nodes disconnects a Harary graph only if k of them are removed, in two runs of ⌊k/2⌋ next to each
other: hence at most n(n−1)/2 times the probability that 2⌊k/2⌋ given nodes are removed, and zero below k
removed.

==========  ====================================================================
n           nodes that advertised keys (U1)
k, t        degree and threshold; complete: k = n − 1
γ, δ        fractions that collude and drop out
==========  ====================================================================
"""

import bisect
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache

MAX_COMPLETE = 64
"""Up to this many nodes the graph is complete: a sparse one would hardly have fewer edges."""

PRIVACY_BITS = 40
FAILURE_BITS = 30


@dataclass(frozen=True, kw_only=True)
class Topology:
    """Degree of the graph, and how many shares give a secret; announced with the adverts."""

    degree: int
    threshold: int

    def is_complete(self, num_nodes: int) -> bool:
        """Whether every node is every other's neighbor."""
        return self.degree == num_nodes - 1


def count_of(fraction: float, num_nodes: int) -> int:
    """Return how many nodes a fraction of them is, rounded up.

    >>> count_of(0.05, 100), count_of(0.05, 101), count_of(0.0, 5)
    (5, 6, 0)
    """
    return math.ceil(fraction * num_nodes - 1e-9)


def complete(num_nodes: int, *, at_least: int = 2) -> Topology:
    """Return the complete graph with t = ⌊2n/3⌋ + 1, one less where no node could be missing.

    ``at_least`` is what t must not be below whatever else; the malicious tier has such a bound.
    """
    usual = min(2 * num_nodes // 3 + 1, num_nodes - 1)
    return Topology(degree=num_nodes - 1, threshold=max(usual, at_least))


@cache
def plan(num_nodes: int, *, corrupt: float, dropout: float, max_complete: int = MAX_COMPLETE) -> Topology:
    """Return the smallest k with the smallest t that keep both bounds.

    Up to ``max_complete`` nodes, or if no k does because too many collude or drop out, the graph is complete.
    """
    colluding, dropped = count_of(corrupt, num_nodes), count_of(dropout, num_nodes)
    for degree in range(4, num_nodes - 1) if num_nodes > max_complete else ():
        if num_nodes * degree % 2:
            continue  # there is no such graph
        if disconnection_bound(num_nodes, degree, colluding + dropped) > Fraction(1, 2**PRIVACY_BITS):
            continue
        threshold = _lowest_private_threshold(num_nodes, degree, colluding)
        failure = num_nodes * tail(num_nodes - 1, dropped, degree, degree - threshold + 1)
        if failure <= Fraction(1, 2**FAILURE_BITS):
            return Topology(degree=degree, threshold=threshold)
    return complete(num_nodes)


def collusion_bound(num_nodes: int, topology: Topology, colluding: int) -> Fraction:
    """Return n·P[t or more of a node's neighbors collude]."""
    return num_nodes * tail(num_nodes - 1, colluding, topology.degree, topology.threshold)


def disconnection_bound(num_nodes: int, degree: int, removed: int) -> Fraction:
    """Return a bound on the probability that the graph falls apart when random nodes are removed."""
    if removed < degree:
        return Fraction(0)
    given = degree // 2 * 2
    pairs = math.comb(num_nodes, 2)
    return Fraction(pairs * math.comb(num_nodes - given, removed - given), math.comb(num_nodes, removed))


def stays_connected(num_nodes: int, degree: int, removed: int) -> bool:
    """Say whether the graph falls apart with probability at most 2^-40; the complete one never does."""
    bound = Fraction(1, 2**PRIVACY_BITS)
    return degree == num_nodes - 1 or disconnection_bound(num_nodes, degree, removed) <= bound


def tail(population: int, marked: int, drawn: int, at_least: int) -> Fraction:
    """Return P[X >= at_least] for X marked ones in a sample without replacement, exactly.

    >>> tail(10, 3, 2, 1)
    Fraction(8, 15)
    """
    ways = sum(
        math.comb(marked, x) * math.comb(population - marked, drawn - x)
        for x in range(max(at_least, 0), min(drawn, marked) + 1)
    )
    return Fraction(ways, math.comb(population, drawn))


def _lowest_private_threshold(num_nodes: int, degree: int, colluding: int) -> int:
    """Return the least t whose :func:`collusion_bound` holds; t = k + 1 always does."""

    def holds(threshold: int) -> bool:
        topology = Topology(degree=degree, threshold=threshold)
        return collusion_bound(num_nodes, topology, colluding) <= Fraction(1, 2**PRIVACY_BITS)

    return bisect.bisect_left(range(degree + 2), True, lo=2, key=holds)


def neighbors(nodes: Sequence[int], node: int, topology: Topology, seed: bytes) -> tuple[int, ...]:
    """Return a node's neighbors in ascending order; the same function of public values for everyone.

    Parameters
    ----------
    nodes : Sequence[int]
        All nodes, in whatever order.
    node : int
        One of them.
    topology : Topology
        The graph's degree, which must be possible (n·k even).
    seed : bytes
        What orders the nodes: the hash of all adverts.
    """
    if topology.is_complete(len(nodes)):
        return tuple(sorted(other for other in nodes if other != node))
    return _all_neighbors(tuple(sorted(nodes)), topology.degree, seed)[node]


@lru_cache(maxsize=8)
def _all_neighbors(nodes: tuple[int, ...], degree: int, seed: bytes) -> dict[int, tuple[int, ...]]:
    """Return everyone's neighbors in the Harary graph on the nodes in random order."""
    # In the order of a hash of seed and id: a uniform permutation as far as anybody can tell.
    circle = sorted(nodes, key=lambda node: hashlib.sha256(seed + node.to_bytes(8, "big")).digest())
    n = len(circle)
    steps = {step for distance in range(1, degree // 2 + 1) for step in (distance, n - distance)}
    if degree % 2:
        steps.add(n // 2)
    return {node: tuple(sorted(circle[(at + step) % n] for step in steps)) for at, node in enumerate(circle)}
