"""Trainer, task and attack together learn what the issue asks, in a plain loop without Flower."""

import numpy as np
import pytest

from clients.attacks.sign_flip import SignFlip
from clients.supervised import Supervised
from clients.tasks.digits import digits
from fl_plugins.seeds import derive_seed

CLIENTS, ROUNDS, HOSTILE = 10, 20, 2


@pytest.fixture(scope="module")
def task():
    return digits()


@pytest.fixture(scope="module")
def trainer(task):
    return Supervised(task)


def federate(task, trainer, aggregate, attack=None):
    """Return the final test accuracy of ``ROUNDS`` rounds with every client in each."""
    weights = trainer.init(seed=0)
    for number in range(ROUNDS):
        rows = []
        for client in range(CLIENTS):
            data = task.load_partition(client, CLIENTS).train
            result = trainer.train(weights, data, seed=derive_seed(0, "train", number, client))
            update = {name: result.arrays[name] - weights[name] for name in weights}
            if attack is not None and client < attack.num_byzantine:
                update = attack.poison_update(update, seed=number)
            rows.append(np.concatenate([update[name].ravel() for name in weights]).astype(np.float64))
        step, start = aggregate(np.stack(rows)), 0
        for name, array in weights.items():
            part = step[start : start + array.size].reshape(array.shape)
            weights[name], start = (array + part).astype(array.dtype), start + array.size
    return trainer.evaluate(weights, task.load_test())["accuracy"]


def mean(rows):
    return rows.mean(axis=0)


def krum(rows):
    """Blanchard et al. 2017, §4: the row nearest to its n - f - 2 nearest others."""
    gaps = np.square(rows[:, None] - rows[None]).sum(axis=-1)
    scores = [np.sort(np.delete(gaps[i], i))[: len(rows) - HOSTILE - 2].sum() for i in range(len(rows))]
    return rows[np.argmin(scores)]


def test_fedavg_learns_digits_in_twenty_rounds(task, trainer):
    assert federate(task, trainer, mean) >= 0.95


def test_two_sign_flipping_clients_of_ten_ruin_fedavg_but_not_krum(task, trainer):
    attack = SignFlip(num_byzantine=HOSTILE)
    assert federate(task, trainer, mean, attack) < 0.5
    assert federate(task, trainer, krum, attack) >= 0.9
