"""Accuracy at a given ε: single records, whole users, and ten silos. Part of ``benchmarks/privacy.py``.

δ = 1e-5. Step sizes of records and silos are chosen on held-out training records, for each ε and split (and
arm), which the ε does not cover; the users' and all clip norms are set by hand, the same for every ε. Nothing
is chosen by the test split. ε = ∞ clips all the same.
"""

from functools import cache
from typing import Any

import adaptive_clipping
import numpy as np
from sklearn.datasets import load_digits

from clients.dp_sgd import DPSupervised
from clients.tasks.digits import digits
from clients.tasks.mnist10k import load_images, mnist10k
from fl_plugins.errors import DataError
from fl_plugins.privacy import Budget, NeighborRelation, Poisson
from fl_plugins.privacy.calibration import plan
from fl_plugins.training import Dataset, Task

DELTA = 1e-5
EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0, np.inf)
NO_NOISE = 1e-6
RECORD = NeighborRelation.of(unit="record", adjacency="zero_out")


RECORD_STEP_SIZES = (0.25, 0.5, 1.0, 2.0, 4.0)


def records(quick: bool) -> list[str]:
    """Train a network with one hidden layer on all training records by ``dp_supervised``."""
    sizes = ", ".join(f"{size:g}" for size in RECORD_STEP_SIZES)
    lines = [
        "## Accuracy, one record protected: `dp_supervised`, zero_out",
        "",
        "One client with all training records, one hidden layer (64 for digits, 200 for MNIST-10k), clip",
        f"norm 1, plain SGD. Its step size, one of {sizes}, is",
        "what trained best on four fifths of the training records, tried on the fifth; for each ε and split.",
        "The second row has the step sizes that were chosen, smallest to largest over the splits; where 4",
        "is among them, a larger one might do better.",
        "",
        _header("data, records, batch, steps"),
        _rule(),
    ]
    settings = {
        "digits": (lambda seed: digits(model="mlp", seed=seed), 256, 150),
        "mnist10k": (lambda seed: mnist10k(model="mlp", seed=seed), 512, 200),
    }
    for name, (make, batch, steps) in settings.items():
        scores: list[list[float]] = [[] for _ in EPSILONS]
        chosen: list[list[float]] = [[] for _ in EPSILONS]
        for seed in range(1 if quick else 3):
            try:
                task = make(seed)
            except DataError:
                break
            data, test = task.load_partition(0, 1).train, task.load_test()
            order = np.random.default_rng(seed).permutation(len(data))
            tried_on, rest = data.take(order[: len(data) // 5]), data.take(order[len(data) // 5 :])
            for column, epsilon in enumerate(EPSILONS):
                best = max(
                    RECORD_STEP_SIZES,
                    key=lambda size: _train_records(task, rest, tried_on, epsilon, batch, steps, size, seed),
                )
                chosen[column].append(best)
                scores[column].append(_train_records(task, data, test, epsilon, batch, steps, best, seed))
        if scores[0]:
            lines.append(_row(f"{name}, {len(data)}, {batch}, {steps}", scores))
            ranges = ["–".join(f"{size:g}" for size in sorted({min(each), max(each)})) for each in chosen]
            lines.append("| step size | " + " | ".join(ranges) + " |")
        else:
            lines.append(f"| {name}: its files are not there |" + " |" * len(EPSILONS))
    return [*lines, *_spread(quick)]


def _train_records(
    task: Task, data: Dataset, test: Dataset, epsilon: float, batch: int, steps: int, size: float, seed: int
) -> float:
    """Return the accuracy on ``test`` of one private training on ``data``."""
    trainer = DPSupervised(
        task,
        clip_norm=1.0,
        noise_multiplier=_noise(epsilon, steps, batch / len(data), len(data)),
        expected_batch_size=batch,
        num_steps=steps,
        optimizer="sgd",
        learning_rate=size,
    )
    result = trainer.train(trainer.init(seed=seed), data, seed=seed)
    return trainer.evaluate(result.arrays, test)["accuracy"]


def users(quick: bool) -> list[str]:
    """Train a linear model over users with a few images each, by ``dp_fedavg`` with adaptive clipping."""
    lines = [
        "## Accuracy, one user protected: `dp_fedavg`, add_remove",
        "",
        "A linear model, five local steps of size 0.5, Poisson sampling at q = 0.2, 100 rounds, clip norm",
        "adaptive from 0.1.",
        "",
        _header("data, users × images"),
        _rule(),
    ]
    for name, (population, per_user) in {"digits": (479, 3), "mnist10k": (1600, 5)}.items():
        scores: list[list[float]] = [[] for _ in EPSILONS]
        for seed in range(1 if quick else 3):
            try:
                data = _users(name, population, per_user, seed)
            except DataError:
                break
            for column, epsilon in enumerate(EPSILONS):
                given: dict[str, Any] = {"target_epsilon": epsilon, "num_rounds": 100}
                if np.isinf(epsilon):
                    given = {"noise_multiplier": 1e-3}
                strategy = adaptive_clipping.private(
                    0.2, seed=seed, population=population, clip="adaptive(initial=0.1)", **given
                )
                *_, (accuracy, _) = adaptive_clipping.accuracies(strategy, seed, 100, given=data)
                scores[column].append(accuracy)
        if scores[0]:
            lines.append(_row(f"{name}, {population} × {per_user}", scores))
        else:
            lines.append(f"| {name}: its files are not there |" + " |" * len(EPSILONS))
    return [*lines, *_spread(quick)]


def _users(name: str, population: int, per_user: int, seed: int) -> adaptive_clipping.Users:
    """Return a data set dealt to users."""
    if name == "digits":
        images, labels = load_digits(return_X_y=True)
        images = images / 16.0
    else:
        from clients.tasks._folder import data_path

        data = load_images(data_path(None, "mnist10k", task="mnist10k"))
        images, labels = data.x.reshape(len(data.x), -1).astype(np.float64), data.y
    return adaptive_clipping.deal(images, labels, population, per_user, seed)


SILOS, STEPS, RATE, NORM = 10, 100, 0.2, 1.0
STEP_SIZES = (0.03, 0.06, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
ARMS = {
    "alone": "each silo trains alone",
    "own": "federated, each silo adds all of the noise",
    "shared": "federated, each adds a tenth of the variance",
}


def silos(quick: bool) -> list[str]:
    """Compare ten silos of digits: alone, together with all noise from each, together with shared noise.

    Every step each silo draws its records, clips their gradients and adds noise. With all of it, every silo's
    message has the ε; with shared noise only the sum has, and secure aggregation makes nothing else public.
    """
    lines = [
        "## Accuracy, ten silos of digits, one record protected, zero_out",
        "",
        f"A linear model, {STEPS} steps, records drawn with q = {RATE}. What each arm publishes has the ε;",
        "where that is every silo's own message, ten times the variance adds up.",
        "",
        _header("arm"),
        _rule(),
    ]
    for arm, title in ARMS.items():
        scores: list[list[float]] = [[] for _ in EPSILONS]
        for seed in range(2 if quick else 5):
            parts = _silo_data(seed)
            for column, epsilon in enumerate(EPSILONS):
                z = _noise(epsilon, STEPS, RATE, 1)
                tried = [_train_silos(arm, z, size, parts, seed) for size in STEP_SIZES]
                scores[column].append(max(tried)[1])
        lines.append(_row(title, scores))
    return [*lines, *_spread(quick, 2 if quick else 5)]


def _silo_data(seed: int) -> dict[str, np.ndarray]:
    """Return digits with a bias column: 1,000 records to train, 300 to choose by, the rest to test."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(labels))
    x = np.concatenate([images[order] / 16.0, np.ones((len(order), 1))], axis=1)
    y = np.eye(10)[labels[order]]
    cuts = {"train": slice(0, 1000), "choose": slice(1000, 1300), "test": slice(1300, None)}
    return {
        f"{name} {what}": array[cut] for name, cut in cuts.items() for what, array in (("x", x), ("y", y))
    }


def _train_silos(
    arm: str, z: float, step_size: float, data: dict[str, np.ndarray], seed: int
) -> tuple[float, float]:
    """Return accuracy on the held-out and on the test records; of silos alone, the mean over silos."""
    rng = np.random.default_rng(1000 + seed)
    together = arm != "alone"
    weights = np.zeros((1 if together else SILOS, data["train x"].shape[1], 10))
    silo = np.arange(len(data["train x"])) % SILOS
    members = [np.arange(len(silo))] if together else [np.flatnonzero(silo == each) for each in range(SILOS)]
    std = NORM * z * (np.sqrt(SILOS) if arm == "own" else 1.0)
    for _ in range(STEPS):
        for model, mine in zip(weights, members, strict=True):
            drawn = mine[rng.random(len(mine)) < RATE]
            x, error = data["train x"][drawn], -data["train y"][drawn]
            scores = x @ model
            shares = np.exp(scores - scores.max(axis=1, keepdims=True))
            error += shares / shares.sum(axis=1, keepdims=True)
            # A record's gradient is the outer product of x and the error: its norm is the product of theirs.
            norms = np.linalg.norm(x, axis=1) * np.linalg.norm(error, axis=1)
            error *= np.minimum(1.0, NORM / np.maximum(norms, 1e-12))[:, np.newaxis]
            total = x.T @ error + rng.normal(0.0, std, model.shape)
            model -= step_size * total / (RATE * len(mine))
    choose, test = (
        float(np.mean((data[f"{part} x"] @ weights).argmax(axis=-1) == data[f"{part} y"].argmax(axis=1)))
        for part in ("choose", "test")
    )
    return choose, test


@cache
def _noise(epsilon: float, steps: int, rate: float, population: int) -> float:
    """Return the noise multiplier with which so many Poisson-sampled steps have the ε."""
    if np.isinf(epsilon):
        return NO_NOISE
    sampling = Poisson(rate=rate, population=population, max_cohort=population)
    budget = Budget(epsilon=epsilon, delta=DELTA)
    return plan(budget, rounds=steps, sampling=sampling, relation=RECORD).noise_multiplier


def _header(first: str) -> str:
    """Return a table's head."""
    return (
        "| " + " | ".join([first, *(f"ε = {epsilon:g}" for epsilon in EPSILONS)]).replace("inf", "∞") + " |"
    )


def _rule() -> str:
    """Return the line below it."""
    return "|---|" + "---:|" * len(EPSILONS)


def _row(name: str, scores: list[list[float]]) -> str:
    """Return one row: mean accuracy in percent, and its spread over seeds if there are several."""
    cells = [
        f"{100 * np.mean(each):.1f}" + (f" ± {100 * np.std(each, ddof=1):.1f}" if len(each) > 1 else "")
        for each in scores
    ]
    return "| " + " | ".join([name, *cells]) + " |"


def _spread(quick: bool, seeds: int | None = None) -> list[str]:
    """Return what the numbers are."""
    seeds = seeds or (1 if quick else 3)
    several = f"mean ± standard deviation of {seeds} splits" if seeds > 1 else "one split"
    return ["", f"Test accuracy in percent, {several}."]
