"""Every sampler × weighting × server optimizer, among clients that do what clients do: worst pairs of runs.

Two runs differ in what client 0 does. Whatever the others do, and whatever the optimizer remembers, what goes
into the optimizer differs by no more than what is accounted, and for the worst pair by exactly that.
"""

import itertools
from typing import Any

import numpy as np
import optax
import pytest
from numpy.typing import NDArray

from strategies import DpFedAvg

from .dp_support import MODEL, Behaviour, Round, failing, make, moving, plain, play, still

C = 0.5
N = 6

WITH_STATE: dict[str, NDArray[Any]] = {
    **{key: value.astype(np.float64) for key, value in MODEL.items()},
    "batch_stats/mean": np.ones(3, np.float32),
    "state/steps": np.array(5, np.int64),
    "state/table": np.arange(4, dtype=np.int32),
}
"""Arrays without axes, integers and statistics among those that are trained."""


def lying(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """Move what is not trained as far as it goes, and nothing else."""
    sent = dict(received)
    sent["state/steps"] = np.array(2**62, np.int64)
    sent["state/table"] = np.full(4, 2**31 - 1, np.int32)
    sent["batch_stats/mean"] = np.full(3, 1e30, np.float32)
    return sent


def poisoned(value: float) -> Behaviour:
    """Return a client whose array without axes is not finite, beside a huge update."""

    def behave(received: dict[str, NDArray[Any]]) -> dict[str, Any]:
        return {**moving(1.0, norm=1e6)(received), "params/scale": np.array(value)}

    return behave


HUGE, OPPOSITE = moving(1.0, norm=1e6), moving(-1.0, norm=1e6)
SCALAR = moving({"params/scale": 1.0}, norm=1e6)
OTHERS = {1: failing, 2: still, 3: poisoned(np.nan), 4: moving(1.0, norm=0.1), 5: lying}
"""A dropout, a zero update, one that is not finite, a small one, and one that moves what it may not."""

BEHAVIOURS = {
    "huge": HUGE,
    "opposite": OPPOSITE,
    "scalar": SCALAR,
    "zero": still,
    "dropout": failing,
    "nan": poisoned(np.nan),
    "inf": poisoned(np.inf),
    "integers": lying,
}

SAMPLINGS = [
    ("everyone()", "zero_out", 1),
    ("everyone()", "add_remove", 1),
    ("everyone()", "replace", 2),
    ("poisson(rate=0.9)", "zero_out", 1),
    ("poisson(rate=0.9)", "add_remove", 1),
    ("fixed_size(size=5)", "replace", 2),
    ("min_separation(size=3, rounds=2)", "zero_out", 1),
    ("min_separation(size=3, rounds=2)", "replace", 2),
]
WORST = {"zero_out": ("huge", "zero"), "add_remove": ("huge", "dropout"), "replace": ("huge", "opposite")}
OPTIMIZERS = {
    "none": None,
    "momentum": optax.sgd(1.0, momentum=0.9),
    "adam": optax.adam(0.1),
    "yogi": optax.yogi(0.1),
}


class Recorder:
    """The first part of a server optimizer: remembers what the strategy gives to it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, NDArray[np.float64]]] = []

    def before(self, optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
        def update(gradients: Any, state: Any, params: Any = None) -> Any:
            if gradients.keys() != {"probe"}:  # of the strategy's fingerprint
                self.seen.append({key: np.asarray(value, np.float64) for key, value in gradients.items()})
            return gradients, state

        return optax.chain(optax.GradientTransformation(lambda _: optax.EmptyState(), update), optimizer)


def sums(
    given: dict[str, Any],
    optimizer: optax.GradientTransformation | None,
    behaviour: Behaviour,
    rounds: int = 2,
) -> tuple[DpFedAvg, list[dict[str, NDArray[np.float64]]], list[Round]]:
    """Return the strategy, the noisy sums that its optimizer sees, and what each round released."""
    recorder = Recorder()
    options = {} if optimizer is None else {"server_optimizer": recorder.before(optimizer)}
    weighting = "examples" if "max_examples" in given else "uniform"
    strategy = make(plain(weighting, **options), clip_norm=C, untrained_arrays="keep", population=N, **given)
    base, played = dict(WITH_STATE), []
    # Client 0 claims more than it may; the others half of what they may.
    claims = {0: 9_999_999, **dict.fromkeys(range(1, N), 50)}
    for number in range(1, rounds + 1):
        before = base
        played.append(play(strategy, {**OTHERS, 0: behaviour}, model=base, number=number, examples=claims))
        base = played[-1].arrays
        if optimizer is None:
            recorder.seen.append({key: base[key] - before[key] for key in base if key.startswith("params/")})
    denominator = strategy.expected_cohort * strategy.given.mean_weight
    return strategy, [{k: v * denominator for k, v in one.items()} for one in recorder.seen], played


def drawn(played: list[Round]) -> list[bool]:
    """Return in which rounds client 0, which is node 1, was asked."""
    return [any(message.metadata.dst_node_id == 1 for message in one.sent) for one in played]


def shifts(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> list[float]:
    return [
        float(np.sqrt(sum(((a[key] - b[key]) ** 2).sum() for key in a)))
        for a, b in zip(one, other, strict=True)
    ]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("weights", [{}, {"max_examples": 100}], ids=["uniform", "examples"])
@pytest.mark.parametrize(("sampling", "adjacency", "clip_norms"), SAMPLINGS)
def test_the_worst_pair_is_as_far_apart_as_is_accounted_in_every_round(
    sampling: str, adjacency: str, clip_norms: int, weights: dict[str, Any], optimizer: str
) -> None:
    one, other = (BEHAVIOURS[name] for name in WORST[adjacency])
    for seed in range(50):  # until client 0 is drawn at all
        given = {"sampling": sampling, "adjacency": adjacency, "insecure_seed": seed, **weights}
        strategy, first, played = sums(given, OPTIMIZERS[optimizer], one)
        if any(drawn(played)):
            break
    _, second, again = sums(given, OPTIMIZERS[optimizer], other)
    assert drawn(played) == drawn(again)
    assert len(first) == len(second) == 2
    for found, there in zip(shifts(first, second), drawn(played), strict=True):
        assert found == pytest.approx(clip_norms * C if there else 0.0, rel=1e-6, abs=1e-8)
        assert found <= clip_norms * C * (1 + 1e-7)
    assert strategy.release.relation.adjacency.clip_norms == clip_norms
    for key in ("state/steps", "state/table", "batch_stats/mean"):
        np.testing.assert_array_equal(played[-1].arrays[key], WITH_STATE[key])


@pytest.mark.parametrize("weights", [{}, {"max_examples": 100}], ids=["uniform", "examples"])
def test_no_other_pair_is_further_apart(weights: dict[str, Any]) -> None:
    """Replaced: two clip norms between any two; one clip norm if either adds nothing."""
    given = {"sampling": "everyone()", "adjacency": "replace", **weights}
    found = {name: sums(given, optax.adam(0.1), each, rounds=1)[1] for name, each in BEHAVIOURS.items()}
    nothing = {"zero", "dropout", "nan", "inf", "integers"}
    for one, other in itertools.combinations(BEHAVIOURS, 2):
        (apart,) = shifts(found[one], found[other])
        most = 0.0 if {one, other} <= nothing else C if {one, other} & nothing else 2 * C
        assert apart <= most * (1 + 1e-7) + 1e-8, (one, other)
    (worst,) = shifts(found["huge"], found["opposite"])
    assert worst == pytest.approx(2 * C, rel=1e-6)
