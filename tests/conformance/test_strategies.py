"""Every registered strategy through one suite; a new one joins by adding its row."""

from collections.abc import Callable, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from fl_plugins.aggregation import SignMajority
from fl_plugins.errors import PreconditionError, QuorumError, StructureError
from fl_plugins.records import from_named, to_named
from fl_plugins.registry import Kind, available
from fl_plugins.spec import build
from fl_plugins.testing import InProcessGrid
from strategies import FederatedStrategy, RootTrust

LAYERS = {
    "dp_fedavg": "tests/strategies/test_dp_fedavg.py and its neighbours",
    "local_dp": "tests/clients/test_local_dp.py",
    "secure_aggregation": "tests/secure",
    "additive_aggregation": "tests/secure/test_additive_rounds.py and its neighbours",
    "ckks_aggregation": "tests/secure/test_ckks_rounds.py",
    "distributed_dp": "tests/secure/test_distributed_dp.py",
}
"""Layers, which add noise or have a part at the client: each has a suite of its own."""

ROWS = {
    "fedavg": "fedavg()",
    "krum": "krum(num_byzantine=2)",
    "multi_krum": "multi_krum(num_byzantine=2)",
    "trimmed_mean": "trimmed_mean(num_byzantine=2)",
    "median": "median()",
    "bulyan": "bulyan(num_byzantine=1)",
    "meamed": "meamed(num_byzantine=2)",
    "geometric_median": "geometric_median(num_byzantine=2)",
    "centered_clipping": "centered_clipping(max_norm=1000.0, num_byzantine=2)",
    "mda": "mda(num_byzantine=2)",
    "caf": "caf(num_byzantine=2)",
    "norm_bounded_mean": "norm_bounded_mean(max_norm=1000.0)",
    "sign_majority": "sign_majority(step=0.001, num_byzantine=2)",
    "robust": "robust(num_byzantine=2)",
    "root_trust": "root_trust(task=digits())",
}
NOT_A_LOCATION = frozenset({"sign_majority", "root_trust"})
"""Their result has a length of its own: it need not lie among the updates, nor equal them if they agree."""
NUM_CLIENTS = 9
MODEL: dict[str, NDArray[Any]] = {
    "params/z": np.full((4, 3), 1000.0, np.float32),
    "params/a": np.array([1.0, 2.0], np.float64),
    "params/half": np.ones((3,), np.float16),
    "params/brain": np.ones((2, 2), ml_dtypes.bfloat16),
    "params/scalar": np.array(0.5, np.float32),
    "state/count": np.array(2**60, np.int64),
    "state/mask": np.array([True, False, True]),
    "params/empty": np.zeros((0, 3), np.float32),
}


def test_every_registered_strategy_has_its_row() -> None:
    registered = {entry.name for entry in available(Kind.STRATEGY) if entry.owner == "fl-plugins"}
    assert registered == set(ROWS) | set(LAYERS)


@pytest.fixture(params=ROWS)
def strategy(request: pytest.FixtureRequest) -> FederatedStrategy:
    built = build(Kind.STRATEGY, ROWS[request.param])
    assert isinstance(built, FederatedStrategy)
    # This suite's model is no task's, so its server is given its training.
    return RootTrust(train=_train_at_root) if request.param == "root_trust" else built


@pytest.fixture(params=[name for name in ROWS if name not in NOT_A_LOCATION])
def location(request: pytest.FixtureRequest) -> FederatedStrategy:
    built: FederatedStrategy = build(Kind.STRATEGY, ROWS[request.param])
    return built


def _train_at_root(arrays: dict[str, NDArray[Any]], _: int) -> dict[str, NDArray[Any]]:
    """Return what the server trains to: as client 1 in this suite's model, one more in every other."""
    if set(arrays) == set(MODEL):
        return _client_parameters(1)
    return {key: value + 1 for key, value in arrays.items()}


def _client_parameters(client: int) -> dict[str, NDArray[Any]]:
    """Return what client number ``client`` trains to: close to its peers', not equal."""
    rng = np.random.default_rng(client)
    return {
        key: (value + rng.normal(0, 0.01, value.shape)).astype(value.dtype)
        if key.startswith("params")
        else (value + client if key == "state/count" else value)
        for key, value in MODEL.items()
    }


def _configure(strategy: Strategy, grid: InProcessGrid, number: int = 1) -> list[Message]:
    messages = list(strategy.configure_train(number, from_named(MODEL), ConfigRecord(), grid))
    grid.push_messages(messages)
    return messages


def _reply(message: Message, arrays: dict[str, Any], **metrics: Any) -> Message:
    record = MetricRecord({"num-examples": 10, **metrics})
    return Message(RecordDict({"arrays": from_named(arrays), "metrics": record}), reply_to=message)


def _aggregate(
    strategy: Strategy,
    *,
    change: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda _, arrays: arrays,
    order: Sequence[int] = range(NUM_CLIENTS),
) -> dict[str, NDArray[Any]]:
    """Run one exchange with NUM_CLIENTS clients whose replies arrive in ``order``."""
    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        messages = _configure(strategy, grid)
        replies = [
            _reply(messages[index], change(index, _client_parameters(messages[index].metadata.dst_node_id)))
            for index in order
        ]
        arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return to_named(arrays)


def _as_bytes(arrays: dict[str, NDArray[Any]]) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in arrays.items()}


def test_it_is_a_flower_strategy(strategy: FederatedStrategy) -> None:
    assert isinstance(strategy, Strategy)


def test_every_key_shape_and_dtype_is_kept_in_the_models_order(strategy: FederatedStrategy) -> None:
    new = _aggregate(strategy)
    assert list(new) == list(MODEL)
    for key, value in MODEL.items():
        assert (new[key].shape, new[key].dtype) == (value.shape, value.dtype), key


def test_b8_integers_stay_exact_and_are_one_that_a_client_sent(strategy: FederatedStrategy) -> None:
    count = _aggregate(strategy)["state/count"]
    assert int(count) - 2**60 in range(1, NUM_CLIENTS + 1)


def test_the_result_lies_within_the_clients_range_in_every_coordinate(location: FederatedStrategy) -> None:
    new = _aggregate(location)
    sent = [_client_parameters(client) for client in range(1, NUM_CLIENTS + 1)]
    for key in MODEL:
        if not key.startswith("params"):
            continue
        values = np.stack([arrays[key].astype(np.float64) for arrays in sent])
        # One unit in the last place: base + (reply - base) rounds twice.
        slack = np.abs(values).max(initial=0.0) * float(ml_dtypes.finfo(MODEL[key].dtype).eps)
        result = new[key].astype(np.float64)
        assert (result >= values.min(axis=0) - slack).all(), key
        assert (result <= values.max(axis=0) + slack).all(), key


def test_order_of_arrival_changes_no_bit(strategy: FederatedStrategy) -> None:
    expected = _as_bytes(_aggregate(strategy))
    assert _as_bytes(_aggregate(strategy, order=[4, 0, 8, 2, 6, 1, 7, 3, 5])) == expected


def test_b3_reordered_keys_change_no_bit(strategy: FederatedStrategy) -> None:
    def reorder(index: int, arrays: dict[str, Any]) -> dict[str, Any]:
        return dict(reversed(arrays.items())) if index % 2 else arrays

    assert _as_bytes(_aggregate(strategy, change=reorder)) == _as_bytes(_aggregate(strategy))


def test_b7_a_nan_reply_is_left_out(strategy: FederatedStrategy) -> None:
    def poison(index: int, arrays: dict[str, Any]) -> dict[str, Any]:
        return {**arrays, "params/z": np.full((4, 3), np.nan, np.float32)} if index == 3 else arrays

    new = _aggregate(strategy, change=poison)
    assert all(np.isfinite(value).all() for value in new.values())
    assert strategy.tally.quarantined == 1


def test_one_update_whose_square_overflows_float64_is_left_out_and_ends_no_round(
    strategy: FederatedStrategy,
) -> None:
    """Rules that take norms cannot work with it, and one hostile client must not be able to end a run."""

    def explode(index: int, arrays: dict[str, Any]) -> dict[str, Any]:
        return {**arrays, "params/a": np.array([1.0, -1e200])} if index == 0 else arrays

    new = _aggregate(strategy, change=explode)
    assert (strategy.tally.non_finite, strategy.tally.accepted) == (1, NUM_CLIENTS - 1)
    assert (np.abs(new["params/a"]) < 3).all()


def test_a_model_without_a_float_is_refused_before_messages_leave(strategy: FederatedStrategy) -> None:
    integers = from_named({"steps": np.arange(3), "params/empty": np.zeros((0, 3), np.float32)})
    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        with pytest.raises(StructureError, match=r"no float array .*steps"):
            list(strategy.configure_train(1, integers, ConfigRecord(), grid))
        assert grid.sent == []


def test_b8_a_broadcastable_shape_is_refused(strategy: FederatedStrategy) -> None:
    def shrink(index: int, arrays: dict[str, Any]) -> dict[str, Any]:
        return {**arrays, "params/half": np.ones((1,), np.float16)} if index == 0 else arrays

    _aggregate(strategy, change=shrink)
    assert (strategy.tally.quarantined, strategy.tally.accepted) == (1, NUM_CLIENTS - 1)


def test_identical_replies_are_returned_exactly(location: FederatedStrategy) -> None:
    same = _client_parameters(1)
    new = _aggregate(location, change=lambda *_: same)
    for key, value in same.items():
        # base + (reply - base) is the reply up to one rounding of the difference.
        np.testing.assert_allclose(
            new[key].astype(np.float64), value.astype(np.float64), rtol=float(np.finfo(np.float32).eps)
        )


def test_replies_are_not_changed(strategy: FederatedStrategy) -> None:
    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        replies = [
            _reply(message, _client_parameters(i)) for i, message in enumerate(_configure(strategy, grid))
        ]
        before = [
            {key: array.data for key, array in reply.content.array_records["arrays"].items()}
            for reply in replies
        ]
        strategy.aggregate_train(1, replies)
    after = [
        {key: array.data for key, array in reply.content.array_records["arrays"].items()} for reply in replies
    ]
    assert before == after


def test_no_reply_at_all_is_an_error_with_numbers(strategy: FederatedStrategy) -> None:
    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        _configure(strategy, grid)
        with pytest.raises(QuorumError, match=f"0 of {NUM_CLIENTS}"):
            strategy.aggregate_train(1, [])


def test_a_second_reply_of_one_node_does_not_count(strategy: FederatedStrategy) -> None:
    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        messages = _configure(strategy, grid)
        replies = [_reply(message, _client_parameters(i)) for i, message in enumerate(messages)]
        expected, _ = strategy.aggregate_train(1, replies)
        other = {key: np.full_like(value, 7) for key, value in MODEL.items()}
        with_double, _ = strategy.aggregate_train(1, [*replies, _reply(messages[0], other)])
    assert expected is not None
    assert with_double is not None
    assert _as_bytes(to_named(expected)) == _as_bytes(to_named(with_double))


def test_b5_absurd_example_counts_do_not_reach_the_aggregate(strategy: FederatedStrategy) -> None:
    def lie(message: Message, client: int) -> Message:
        return _reply(message, _client_parameters(client), **{"num-examples": 10**12 if client == 1 else 10})

    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        messages = _configure(strategy, grid)
        strategy.aggregate_train(1, [lie(message, i + 1) for i, message in enumerate(messages)])
    assert strategy.tally.quarantined == 1


@pytest.mark.parametrize(
    "spec",
    [
        "krum(num_byzantine=4)",
        "multi_krum(num_byzantine=4)",
        "trimmed_mean(num_byzantine=5)",
        "robust(num_byzantine=5)",
    ],
)
def test_b4_too_many_byzantine_for_the_cohort_is_refused_before_messages_leave(spec: str) -> None:
    with InProcessGrid(lambda message, _: message, NUM_CLIENTS) as grid:
        with pytest.raises(PreconditionError, match=r"num_byzantine|lower"):
            _configure(build(Kind.STRATEGY, spec), grid)
        assert grid.sent == []


def test_stock_arrays_by_position_work_too(strategy: FederatedStrategy) -> None:
    model = ArrayRecord([np.ones((2, 2), np.float32), np.zeros(3, np.float32)])

    def client(message: Message, _: Any) -> Message:
        if message.metadata.message_type == "evaluate":
            return Message(RecordDict({"m": MetricRecord({"num-examples": 1, "acc": 0.5})}), reply_to=message)
        arrays = [array.numpy() + 1 for array in message.content.array_records["arrays"].values()]
        content = {"a": ArrayRecord(arrays), "m": MetricRecord({"num-examples": 4})}
        return Message(RecordDict(content), reply_to=message)

    with InProcessGrid(client, NUM_CLIENTS) as grid:
        result = strategy.start(grid, model, num_rounds=2)
    step = strategy.aggregator.step if isinstance(strategy.aggregator, SignMajority) else 1
    np.testing.assert_allclose(result.arrays["0"].numpy(), np.full((2, 2), 1 + 2 * step), rtol=1e-6)
    assert result.evaluate_metrics_clientapp[2]["acc"] == 0.5
