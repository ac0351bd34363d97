"""What a broken or hostile cohort node can do: to its own clients at most."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fl_plugins import wire
from fl_plugins.errors import ConfigError, DivergenceError, QuorumError
from fl_plugins.run_options import RunOptions
from fl_plugins.testing import InProcessGrid
from strategies import FedAvg, FederatedStrategy, Median

N = 6
"""Virtual clients: node 1 hosts 0, 2, 4 and node 2 hosts 1, 3, 5."""

MODEL = {"w": np.zeros((2, 2), np.float32), "b": np.ones(3, np.float32)}

Client = Callable[[Message, Context], Message]
Records = dict[str, Any]


def records_of(message: Message, change: Callable[[Records], None] | None = None) -> Records:
    """Return a well-formed reply as plain values, changed: client i adds i + 1 to everything."""
    asked = message.content.config_records["config"]
    clients: Any = asked[wire.CLIENTS]
    form = asked.get(wire.FORM)
    d = sum(value.size for value in MODEL.values())
    arrays: dict[str, Any] = {}
    if form == wire.SUM:
        arrays = {
            wire.HIGH: np.full(d, float(sum(10 * (client + 1) for client in clients))),
            wire.LOW: np.zeros(d),
        }
    elif form == wire.EACH:
        steps = np.array(clients, np.float32) + 1
        arrays = {key: value + steps.reshape(-1, *[1] * value.ndim) for key, value in MODEL.items()}
    records: Records = {
        "arrays": arrays,
        "metrics": {"num-examples": [10] * len(clients), "loss": [float(client) for client in clients]},
        "config": {wire.CLIENTS: list(clients), **({wire.FORM: form} if form else {})},
    }
    if change is not None:
        change(records)
    return records


def host(change: Callable[[Records], None] | None = None, *, ids: list[int] | None = None) -> Client:
    """Return a cohort node."""

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == wire.ROLL_CALL:
            hosted = range(int(context.node_config["partition-id"]), N, 2) if ids is None else ids
            told = ConfigRecord({wire.CLIENT_IDS: list(hosted)})
            return Message(RecordDict({"config": told}), reply_to=message)
        records = records_of(message, change)
        content: dict[str, Any] = {
            "metrics": MetricRecord(records["metrics"]),
            "config": ConfigRecord(records["config"]),
        }
        if records["arrays"]:
            content["arrays"] = ArrayRecord({k: Array(np.asarray(v)) for k, v in records["arrays"].items()})
        return Message(RecordDict(content), reply_to=message)

    return client


def run(
    strategy: FederatedStrategy, *, hostile: Client | None = None, rounds: int = 1, **options: Any
) -> tuple[Any, list[dict[str, Any]]]:
    """Run with a good node 1 and a hostile node 2."""
    events: list[dict[str, Any]] = []

    def emit(event: str, /, **fields: Any) -> None:
        events.append({"event": event, **fields})

    given: dict[str, Any] = {"num_rounds": rounds, "timeout_s": 5.0, "seed": 1, "emit": emit, **options}
    initial = ArrayRecord({key: Array(value) for key, value in MODEL.items()})
    with InProcessGrid(host(), 2, overrides={2: hostile} if hostile else None) as grid:
        result = strategy.run(grid, initial, RunOptions(roll_call=True, virtual_clients=N, **given))
    return result, events


def refused(events: list[dict[str, Any]]) -> dict[str, str]:
    return {
        event["client"]: event["reason"]
        for event in events
        if event["event"] == "reply" and event["status"] != "accepted" and event["phase"] == "train"
    }


def set_in(record: str, key: str, value: Any) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        records[record][key] = value

    return change


def drop(record: str, key: str) -> Callable[[Records], None]:
    def change(records: Records) -> None:
        del records[record][key]

    return change


def make_nan(records: Records) -> None:
    if "w" in records["arrays"]:
        records["arrays"]["w"][1] = np.nan


FOR_ALL = {
    "another number of rows": (set_in("arrays", "w", np.zeros((2, 2, 2), np.float32)), "first axis"),
    "no client axis": (set_in("arrays", "b", np.array(1.0, np.float32)), "first axis"),
    "rows of another shape": (set_in("arrays", "w", np.zeros((3, 2, 5), np.float32)), "shape"),
    "integers for floats": (set_in("arrays", "w", np.zeros((3, 2, 2), np.int32)), "dtype"),
    "an array too few": (drop("arrays", "b"), "b"),
    "an array too many": (set_in("arrays", "c", np.zeros((3, 1), np.float32)), "c"),
    "a client twice": (set_in("config", wire.CLIENTS, [1, 3, 3]), "client 3 twice"),
    "another node's client": (set_in("config", wire.CLIENTS, [1, 3, 4]), "client 4, which this node was not"),
    "a client that does not exist": (set_in("config", wire.CLIENTS, [1, 3, 99]), "client 99"),
    "names that are no numbers": (set_in("config", wire.CLIENTS, ["1", "3", "5"]), "whole numbers"),
    "no names": (drop("config", wire.CLIENTS), "not a list of 0 numbers"),
    "metrics too short": (set_in("metrics", "loss", [1.0]), "'loss' is not a list of 3"),
    "metrics of one number": (set_in("metrics", "num-examples", 10), "'num-examples' is not a list of 3"),
    "reasons too few": (set_in("config", wire.FAILED, [1]), "not as many reasons"),
    "another form": (set_in("config", wire.FORM, "sum"), "'each' was asked for"),
}


@pytest.mark.parametrize("case", FOR_ALL)
def test_a_reply_in_which_clients_cannot_be_told_apart_is_refused_whole(case: str) -> None:
    change, reason = FOR_ALL[case]
    result, events = run(Median(fraction_evaluate=0.0), hostile=host(change))
    told = refused(events)
    assert set(told) == {"1", "3", "5"}
    assert all(reason in text for text in told.values()), told
    np.testing.assert_array_equal(
        result.arrays["b"].numpy(), [4, 4, 4]
    )  # the median of 1, 3, 5, and the base


FOR_ONE = {
    "NaN": (make_nan, "NaN"),
    "an absurd number of examples": (set_in("metrics", "num-examples", [10, 10**12, 10]), "num-examples"),
    "no examples": (set_in("metrics", "num-examples", [10, 0, 10]), "num-examples"),
    "a metric that is not finite": (set_in("metrics", "loss", [1.0, float("inf"), 1.0]), "loss"),
}


@pytest.mark.parametrize("case", FOR_ONE)
def test_a_fault_of_one_row_is_that_clients_alone(case: str) -> None:
    change, reason = FOR_ONE[case]
    _, events = run(Median(fraction_evaluate=0.0), hostile=host(change))
    told = refused(events)
    assert set(told) == {"3"}
    assert reason in told["3"]


def test_a_client_that_its_node_does_not_mention_is_refused_and_one_that_failed_is_failed() -> None:
    def change(records: Records) -> None:
        records["config"].update(
            {wire.CLIENTS: [1], wire.FAILED: [3], wire.REASONS: ["DataError: no examples"]}
        )
        records["arrays"] = {key: value[:1] for key, value in records["arrays"].items()}
        records["metrics"] = {key: value[:1] for key, value in records["metrics"].items()}

    _, events = run(Median(fraction_evaluate=0.0), hostile=host(change))
    told = refused(events)
    assert "says nothing of this client" in told["5"]
    assert told["3"] == "the client failed: DataError: no examples"
    statuses = {e["client"]: e["status"] for e in events if e["event"] == "reply"}
    assert (statuses["1"], statuses["3"], statuses["5"]) == ("accepted", "failed", "quarantined")


FOR_THE_SUM = {
    "too short": (set_in("arrays", wire.HIGH, np.zeros(3)), "weighted sum"),
    "of another model": (
        lambda records: records["arrays"].update({wire.HIGH: np.zeros(3), wire.LOW: np.zeros(3)}),
        "3 elements",
    ),
    "in float32": (set_in("arrays", wire.LOW, np.zeros(7, np.float32)), "float64"),
    "NaN": (set_in("arrays", wire.LOW, np.full(7, np.nan)), "NaN"),
    "half of it missing": (drop("arrays", wire.LOW), "came"),
    "an absurd number of examples": (set_in("metrics", "num-examples", [10, 10**12, 10]), "client 3"),
    "each instead": (set_in("config", wire.FORM, "each"), "'sum' was asked for"),
}


@pytest.mark.parametrize("case", FOR_THE_SUM)
def test_a_sum_is_used_whole_or_not_at_all(case: str) -> None:
    change, reason = FOR_THE_SUM[case]
    result, events = run(FedAvg(fraction_evaluate=0.0), hostile=host(change))
    told = refused(events)
    assert set(told) == {"1", "3", "5"}
    assert all(reason in text for text in told.values()), told
    np.testing.assert_array_equal(result.arrays["b"].numpy(), [4, 4, 4])


def test_a_good_sum_is_the_weighted_mean() -> None:
    result, events = run(FedAvg(), rounds=1)
    np.testing.assert_array_equal(result.arrays["w"].numpy(), np.full((2, 2), 3.5, np.float32))
    assert result.train_metrics_clientapp[1]["loss"] == 2.5
    assert refused(events) == {}


def test_clients_whose_updates_are_all_not_finite_are_a_model_that_has_diverged() -> None:
    def change(records: Records) -> None:
        clients = records["config"][wire.CLIENTS]
        records["config"].update(
            {
                wire.CLIENTS: [],
                wire.FAILED: clients,
                wire.REASONS: ["array 'w' has NaN"] * len(clients),
                wire.NON_FINITE: clients,
            }
        )
        records["metrics"] = {"num-examples": []}
        if wire.HIGH in records["arrays"]:
            records["arrays"] = {wire.HIGH: np.zeros(7), wire.LOW: np.zeros(7)}
        else:
            records["arrays"] = {key: value[:0] for key, value in records["arrays"].items()}

    initial = ArrayRecord({key: Array(value) for key, value in MODEL.items()})
    options = RunOptions(num_rounds=1, roll_call=True, virtual_clients=N)
    for strategy in (FedAvg(), Median()):
        with InProcessGrid(host(change), 2) as grid, pytest.raises(DivergenceError, match="6 of 6"):
            strategy.run(grid, initial, options)


@pytest.mark.parametrize(("quorum", "enough"), [(0.5, True), (0.6, False)])
def test_a_silent_nodes_clients_are_all_missing_and_count_for_the_quorum(quorum: float, enough: bool) -> None:
    events: list[dict[str, Any]] = []

    def emit(event: str, /, **fields: Any) -> None:
        events.append({"event": event, **fields})
        if event == "round_started":  # it has answered the roll call, and nothing from now on
            grid._silent = frozenset([2])

    options = RunOptions(
        num_rounds=1, roll_call=True, virtual_clients=N, timeout_s=0.2, emit=emit, client_evaluation=False
    )
    strategy = FedAvg(quorum=quorum, max_attempts=1)
    initial = ArrayRecord({key: Array(value) for key, value in MODEL.items()})
    with InProcessGrid(host(), 2) as grid:
        if enough:
            strategy.run(grid, initial, options)
        else:
            with pytest.raises(QuorumError, match="3 of 6"):
                strategy.run(grid, initial, options)
    [missing] = [event["clients"] for event in events if event["event"] == "missing"]
    assert missing == ["1", "3", "5"]


def test_two_nodes_that_claim_the_same_clients_at_the_start_end_the_run_before_a_message_leaves() -> None:
    with pytest.raises(ConfigError, match=r"nodes 1 and 2 both claim to host virtual client 0 \(of 2"):
        run(FedAvg(), hostile=host(ids=[0, 1, 4]))


@pytest.mark.parametrize("ids", [[1, 1], [-1], [1, N], list(range(1, 10**4, 2))])
def test_a_node_whose_announcement_cannot_be_true_is_left_out(ids: list[int]) -> None:
    _, events = run(FedAvg(), hostile=host(ids=ids))
    assert next(e["sampled"] for e in events if e["event"] == "round_started") == ["0", "2", "4"]
