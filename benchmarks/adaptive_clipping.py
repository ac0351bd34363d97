"""Adaptive clipping against the best fixed clip norm: user-level DP-FedAvg on digits, ε = 4 (add/remove).

479 users with three images each, a linear model, five local steps; Poisson sampling. The server's part is the
strategy's own: clipped sum, split noise, quantile step. Prints mean test accuracy over seeds, and the spread.

    python benchmarks/adaptive_clipping.py [--seeds 5] [--rounds 100]
"""

import argparse
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.datasets import load_digits

from fl_plugins.records import Layout
from strategies import DpFedAvg, FedAvg
from strategies.clipped_sum import ClippedSum
from strategies.replies import ClientReply

USERS, PER_USER, LOCAL_STEPS, LEARNING_RATE = 479, 3, 5, 0.5
NORMS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


Users = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""The users' images and labels, ``(users, images of one, …)``, and the test set's."""


def data(seed: int) -> Users:
    """Return digits, dealt to users."""
    images, labels = load_digits(return_X_y=True)
    return deal(images / 16.0, labels, USERS, PER_USER, seed)


def deal(images: np.ndarray, labels: np.ndarray, users: int, per_user: int, seed: int) -> Users:
    """Return the images with a bias column, dealt to users; who is left is the test set."""
    order = np.random.default_rng(seed).permutation(len(labels))
    x, y = images[order], np.eye(10)[labels[order]]
    x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    n = users * per_user
    return x[:n].reshape(users, per_user, -1), y[:n].reshape(users, per_user, -1), x[n:], y[n:]


def train_locally(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return every user's weights after a few steps of gradient descent on its own images."""
    local = np.repeat(weights[np.newaxis], len(x), axis=0)
    for _ in range(LOCAL_STEPS):
        scores = x @ local
        scores -= scores.max(axis=-1, keepdims=True)
        shares = np.exp(scores)
        shares /= shares.sum(axis=-1, keepdims=True)
        local -= LEARNING_RATE * x.transpose(0, 2, 1) @ (shares - y) / x.shape[1]
    return local


def accuracies(
    strategy: DpFedAvg, seed: int, rounds: int, *, given: Users | None = None
) -> Iterator[tuple[float, float]]:
    """Yield test accuracy and clip norm after every round."""
    x, y, test_x, test_y = data(seed) if given is None else given
    base = {"params/w": np.zeros((x.shape[-1], 10))}
    layout = Layout.of(base)
    names = [str(user) for user in range(len(x))]
    for number in range(1, rounds + 1):
        source = strategy.noise_source("sample", number)
        drawn = [int(name) for name in strategy.rounds.draw(names, number, source)]
        total = ClippedSum(layout, base, keys=("params/w",), clip_norm=strategy.clip_norm)
        for user, weights in zip(drawn, train_locally(base["params/w"], x[drawn], y[drawn]), strict=True):
            total.add(ClientReply(str(user), user, {"params/w": weights}, None, {}))
        base = strategy.make_public(layout, base, total, strategy.noise_source("noise", number))
        strategy.rounds.close()
        right = (test_x @ base["params/w"]).argmax(axis=1) == test_y.argmax(axis=1)
        yield float(right.mean()), strategy.clip_norm


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--rate", type=float, default=0.2)
    args = parser.parse_args()
    plan = private(args.rate, seed=0, clip_norm=1.0, target_epsilon=4.0, num_rounds=args.rounds)
    cases = [(f"fixed {c:g}", {"clip_norm": c}, False) for c in NORMS]
    cases += [(f"adaptive from {c:g}", {"clip": f"adaptive(initial={c})"}, False) for c in NORMS]
    cases += [(f"paper's, from {c:g}", {"clip": f"adaptive(initial={c})"}, True) for c in (3.0, 10.0)]
    print(f"noise multiplier {plan.noise_multiplier:.3f}")
    print(f"{'clip norm':<20} accuracy   sd     last clip norm")
    for name, clip, steps_from_the_start in cases:
        reached = []
        for seed in range(args.seeds):
            strategy = private(args.rate, seed=seed, noise_multiplier=plan.noise_multiplier, **clip)
            if steps_from_the_start:
                strategy._clip_state = replace(strategy._clip_state, settled=True)
            *_, last = accuracies(strategy, seed, args.rounds)
            reached.append(last)
        scores = 100.0 * np.array([accuracy for accuracy, _ in reached])
        last_clip = np.mean([clip_norm for _, clip_norm in reached])
        print(f"{name:<20} {scores.mean():7.2f} {scores.std(ddof=1):6.2f} {last_clip:10.3f}", flush=True)


def private(rate: float, *, seed: int, population: int = USERS, **given: Any) -> DpFedAvg:
    """Return the strategy."""
    return DpFedAvg(
        FedAvg(weighting="uniform"),
        unit="client",
        adjacency="add_remove",
        population=population,
        sampling=f"poisson(rate={rate})",
        delta=1e-5,
        insecure_seed=seed,
        **given,
    )


if __name__ == "__main__":
    main()
