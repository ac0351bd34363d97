"""Server optimizers agree with the papers' formulas and, where it is right, with flwr's own strategies."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import optax
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as stock
from numpy.typing import NDArray

from fl_plugins.errors import StructureError
from fl_plugins.testing import InProcessGrid
from strategies import FedAvg
from strategies.server_optimizer import ServerOptimizer

RNG = np.random.default_rng(5)
START = {"w": RNG.normal(size=(4, 3)), "b": RNG.normal(size=(3,))}
TARGETS = [{key: value + RNG.normal(size=value.shape) for key, value in START.items()} for _ in range(5)]
EXAMPLES = [10, 20, 5, 1, 40]


def _pull(strategy: Any, rounds: int) -> dict[str, NDArray[Any]]:
    """Run rounds in which client i always replies with half the way to its own target."""

    def client(message: Message, context: Any) -> Message:
        partition = int(context.node_config["partition-id"])
        received = {k: v.numpy() for k, v in message.content.array_records["arrays"].items()}
        moved = {k: Array(v + (TARGETS[partition][k] - v) / 2) for k, v in received.items()}
        metrics = MetricRecord({"num-examples": EXAMPLES[partition]})
        return Message(RecordDict({"arrays": ArrayRecord(moved), "metrics": metrics}), reply_to=message)

    arrays = ArrayRecord({key: Array(value) for key, value in START.items()})
    with InProcessGrid(client, len(TARGETS)) as grid:
        for number in range(1, rounds + 1):
            messages: Iterable[Message] = strategy.configure_train(number, arrays, ConfigRecord(), grid)
            arrays, _ = strategy.aggregate_train(number, list(grid.send_and_receive(messages)))
    return {key: array.numpy() for key, array in arrays.items()}


def _assert_close(ours: dict[str, Any], theirs: dict[str, Any], rel: float) -> None:
    assert ours.keys() == theirs.keys()
    for key in ours:
        np.testing.assert_allclose(ours[key], theirs[key], rtol=rel)


def test_fedavg_without_optimizer_is_flwr_fedavg() -> None:
    # float64 throughout: only the order of summation differs.
    _assert_close(_pull(FedAvg(), 3), _pull(stock.FedAvg(), 3), 1e-12)


def test_sgd_with_momentum_is_flwr_fedavgm() -> None:
    theirs = stock.FedAvgM(server_learning_rate=0.7, server_momentum=0.9)
    ours = FedAvg(server_optimizer=optax.sgd(0.7, momentum=0.9))
    _assert_close(_pull(ours, 4), _pull(theirs, 4), 1e-12)


def test_adagrad_without_smoothing_is_flwr_fedadagrad() -> None:
    # tau -> 0 and no initial accumulator make the two write the same formula:
    # w + eta * delta / sqrt(sum delta²).
    theirs = stock.FedAdagrad(eta=0.3, eta_l=0.1, tau=1e-12)
    ours = FedAvg(server_optimizer=optax.adagrad(0.3, initial_accumulator_value=0.0, eps=1e-24))
    _assert_close(_pull(ours, 4), _pull(theirs, 4), 1e-9)


def _adam_loop(rounds: int, *, eta: float, b1: float, b2: float, tau: float) -> dict[str, NDArray[Any]]:
    """Adam with bias correction by the number of steps taken, written out (Kingma & Ba 2015, Algorithm 1)."""
    weights = np.array(EXAMPLES) / sum(EXAMPLES)
    result = {}
    for key, value in START.items():
        x, m, v = value.copy(), np.zeros_like(value), np.zeros_like(value)
        for t in range(1, rounds + 1):
            delta = sum(w * (target[key] - x) / 2 for w, target in zip(weights, TARGETS, strict=True))
            m = b1 * m + (1 - b1) * delta
            v = b2 * v + (1 - b2) * delta**2
            x = x + eta * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + tau)
        result[key] = x
    return result


def test_b10_adam_corrects_its_bias_by_the_steps_taken_not_by_one_more() -> None:
    ours = _pull(FedAvg(server_optimizer=optax.adam(0.1, b1=0.9, b2=0.99, eps=1e-3)), 3)
    _assert_close(ours, _adam_loop(3, eta=0.1, b1=0.9, b2=0.99, tau=1e-3), 1e-10)
    theirs = _pull(stock.FedAdam(eta=0.1, eta_l=0.1, beta_1=0.9, beta_2=0.99, tau=1e-3), 3)
    assert np.abs(theirs["w"] - ours["w"]).max() > 1e-3


def _yogi_loop(
    rounds: int, *, eta: float, b1: float, b2: float, tau: float, v0: float
) -> dict[str, NDArray[Any]]:
    """Yogi (Zaheer et al. 2018) with optax's bias correction of both moments."""
    weights = np.array(EXAMPLES) / sum(EXAMPLES)
    result = {}
    for key, value in START.items():
        x, m, v = value.copy(), np.full_like(value, v0), np.full_like(value, v0)
        for t in range(1, rounds + 1):
            delta = sum(w * (target[key] - x) / 2 for w, target in zip(weights, TARGETS, strict=True))
            gradient = -delta
            m = b1 * m + (1 - b1) * gradient
            v = v - (1 - b2) * gradient**2 * np.sign(v - gradient**2)
            x = x - eta * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + tau)
        result[key] = x
    return result


def test_yogi_is_the_papers_second_moment_rule() -> None:
    ours = _pull(FedAvg(server_optimizer=optax.yogi(0.1, b1=0.9, b2=0.99, eps=1e-3)), 3)
    _assert_close(ours, _yogi_loop(3, eta=0.1, b1=0.9, b2=0.99, tau=1e-3, v0=1e-6), 1e-10)


@pytest.mark.parametrize(
    "make", [lambda: optax.sgd(1.0, momentum=0.9), lambda: optax.adam(0.1), lambda: optax.yogi(0.1)]
)
def test_state_saved_and_restored_continues_bit_for_bit(make: Callable[[], Any]) -> None:
    parameters = {key: value.astype(np.float32) for key, value in START.items()}
    update = {key: np.full_like(value, 0.1) for key, value in parameters.items()}
    straight, first = ServerOptimizer(make()), ServerOptimizer(make())
    for _ in range(2):
        expected = straight.step(parameters, update)
    first.step(parameters, update)
    second = ServerOptimizer(make())
    second.restore(parameters, first.state())
    for key, value in second.step(parameters, update).items():
        assert value.tobytes() == expected[key].tobytes()


def test_state_of_another_model_is_refused() -> None:
    optimizer = ServerOptimizer(optax.adam(0.1))
    optimizer.step({"a": np.ones(2, np.float32)}, {"a": np.ones(2, np.float32)})
    other = ServerOptimizer(optax.adam(0.1))
    with pytest.raises(StructureError):
        other.restore({"b": np.ones(2, np.float32)}, optimizer.state())


def test_only_params_are_trained_where_a_model_names_them() -> None:
    ones = {"params/w": np.ones(1), "ema/v": np.ones(1)}
    stepped = ServerOptimizer(optax.sgd(5.0)).step(ones, ones)
    assert (stepped["params/w"], stepped["ema/v"]) == (6.0, 2.0)
    assert ServerOptimizer(optax.sgd(5.0)).step({"0": np.ones(1)}, {"0": np.ones(1)})["0"] == 6.0


def test_running_statistics_bypass_the_optimizer_so_that_variances_stay_positive() -> None:
    optimizer = ServerOptimizer(optax.sgd(1.0, momentum=0.9))
    variance = {"params/w": np.ones(2, np.float32), "batch_stats/bn/var": np.full(2, 0.5, np.float32)}
    shrink = {"params/w": np.zeros(2, np.float32), "batch_stats/bn/var": np.full(2, -0.3, np.float32)}
    grow = {**shrink, "batch_stats/bn/var": np.zeros(2, np.float32)}
    once = optimizer.step(variance, shrink)
    twice = optimizer.step(once, grow)
    np.testing.assert_allclose(twice["batch_stats/bn/var"], 0.2, rtol=1e-6)
