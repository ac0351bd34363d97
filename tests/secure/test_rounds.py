"""Secure rounds in one process: the result, who may drop out when, and what leaves a client."""

from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

from clients.mods import secure_aggregation as mod
from fl_plugins import wire
from fl_plugins.apps.client_app import app as ready_made
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import FINAL_MODEL, run_app
from fl_plugins.checkpoints import load_checkpoint
from fl_plugins.errors import QuorumError
from fl_plugins.records import to_named
from fl_plugins.registry import Kind
from fl_plugins.run_options import RunOptions
from fl_plugins.runlog.events import FIELDS, read_events
from fl_plugins.secagg import Stage
from fl_plugins.secagg.fixed_point import centered
from fl_plugins.spec import build
from strategies import FedAvg, SecureAggregation
from strategies.secure_attempt import SecureAttempt

from .federation import (
    EXAMPLES,
    LOSS,
    WatchedGrid,
    distance,
    plain_mean,
    run,
    secure,
    stage_of,
    stock_app,
    trainer,
)

STAGES = (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.UNMASK)
Events = list[dict[str, Any]]


def of(events: Events, kind: str) -> Events:
    return [event for event in events if event["event"] == kind]


# -- The result ----------------------------------------------------------------------------------------


def test_a_secure_round_gives_the_result_of_plain_averaging() -> None:
    events: Events = []
    result = run(secure(), WatchedGrid(), events=events)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6
    (event,) = of(events, "secure_aggregation")
    assert event["tier"] == "honest-but-curious"
    assert (event["cohort"], event["threshold"], event["survivors"]) == (5, 4, 5)
    assert event["dropped"] == {}
    assert [e["status"] for e in of(events, "reply")] == ["accepted"] * 5
    for kind in {e["event"] for e in events}:
        assert set(of(events, kind)[0]) >= FIELDS[kind] - {"client", "task", "attack"}


def test_uniform_weights_count_every_client_the_same() -> None:
    inner = FedAvg(weighting="uniform", quorum=0.4)
    result = run(SecureAggregation(inner, clip=0.6), WatchedGrid())
    assert distance(result, plain_mean(range(1, 6), uniform=True)) < 2e-6


def test_the_sum_is_exactly_that_of_what_the_clients_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[Any] = []
    original = mod.SecureAggregation._encode

    def keeping(*arguments: Any, **options: Any) -> Any:
        result = original(*arguments, **options)
        encoded.append(result.copy())
        return result

    sums: list[Any] = []
    decode = SecureAttempt._decode

    def watching(self: Any, total: Any) -> Any:
        sums.append(total.vector.copy())
        return decode(self, total)

    monkeypatch.setattr(mod.SecureAggregation, "_encode", keeping)
    monkeypatch.setattr(SecureAttempt, "_decode", watching)
    for num_bits in (16, 32):
        encoded.clear()
        run(secure(num_bits=num_bits), WatchedGrid())
        total = np.zeros_like(encoded[0])
        for words in encoded:
            total += words
        assert total.dtype == np.dtype(f"<u{num_bits // 8}")
        assert np.array_equal(sums[-1], total)
        assert np.abs(centered(total).astype(np.int64)).max() > 10, "there is something in it"


def test_several_rounds_and_a_server_optimizer_are_those_of_the_inner_strategy() -> None:
    import optax

    options: dict[str, Any] = {"server_optimizer": optax.adam(0.01), "quorum": 0.4}
    result = run(secure(FedAvg(**options)), WatchedGrid(), num_rounds=3)
    plain = run(FedAvg(**options, fraction_evaluate=0.0), WatchedGrid(stock_app(mod=False)), num_rounds=3)
    named = to_named(plain.arrays)
    # Adam divides by the root of the squared update, which makes 1e-8 in a small entry some 1e-5 in the step.
    assert distance(result, {key: value.astype(np.float64) for key, value in named.items()}) < 1e-4


def test_metrics_that_are_asked_for_arrive_as_their_weighted_mean_and_no_others() -> None:
    result = run(secure(metrics=("loss",), max_metric=2.0), WatchedGrid())
    weights = np.array([EXAMPLES[node] for node in range(1, 6)], float)
    expected = np.average([LOSS * node for node in range(1, 6)], weights=weights)
    metrics = result.train_metrics_clientapp[1]
    assert list(metrics) == ["loss"]
    # 40 bits for a share of 0.01 to 0.05 of 2.0, five of them.
    assert metrics["loss"] == pytest.approx(expected, abs=1e-9)
    assert {n: dict(m) for n, m in run(secure(), WatchedGrid()).train_metrics_clientapp.items()} == {1: {}}


@pytest.mark.parametrize("num_nodes", [3, 5])
def test_two_bytes_or_four_a_parameter_travel_up(num_nodes: int) -> None:
    d = 200_000
    big = {"params/w": np.zeros(d, np.float32)}

    def train(message: Message, _: Any) -> Message:
        arrays = ArrayRecord({"params/w": Array(np.full(d, 0.25, np.float32))})
        metrics = MetricRecord({"num-examples": 10})
        return Message(RecordDict({"a": arrays, "m": metrics}), reply_to=message)

    from flwr.common.serde import message_to_proto

    for num_bits, size in ((16, 2), (32, 4)):
        grid = WatchedGrid(stock_app(train), num_nodes)
        with grid:
            arrays = ArrayRecord({key: Array(value) for key, value in big.items()})
            secure(num_bits=num_bits).run(grid, arrays, RunOptions(num_rounds=1, timeout_s=5.0))
        sent = sum(len(message_to_proto(reply).SerializeToString()) for reply in grid.replies)
        assert sent <= 1.05 * size * d * num_nodes
        masked = [reply for reply in grid.replies if reply.content.array_records]
        (record,) = masked[0].content.array_records.values()
        assert to_named(record)["vector"].dtype == np.dtype(f"<u{size}")


# -- Dropouts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_node_that_falls_silent_at_any_stage_costs_only_itself(stage: Stage) -> None:
    events: Events = []
    grid = WatchedGrid(num_nodes=6, silent_at={stage: [2]})
    result = run(secure(), grid, events=events)
    # Whoever sent a masked vector is in the sum.
    survivors = set(range(1, 7)) - (set() if stage is Stage.UNMASK else {2})
    assert distance(result, plain_mean(survivors)) < 2e-6
    (event,) = of(events, "secure_aggregation")
    assert event["dropped"] == {str(stage): ["node-2"]}
    assert (event["survivors"], event["reason"]) == (len(survivors), "")
    (missing,) = of(events, "missing")
    assert (missing["clients"], missing["stage"]) == (["node-2"], stage)
    asked = [s for node, s in grid.asked if node == 2]
    assert asked == list(STAGES[: STAGES.index(stage) + 1]), "who has dropped out is asked no more"


def test_nodes_may_fall_silent_at_every_stage_of_one_round() -> None:
    silent = {Stage.ADVERTISE: [9], Stage.SHARE: [8], Stage.MASK: [7], Stage.UNMASK: [1]}
    events: Events = []
    result = run(secure(), WatchedGrid(num_nodes=12, silent_at=silent), events=events)
    assert distance(result, plain_mean(set(range(1, 13)) - {7, 8, 9})) < 2e-6
    (event,) = of(events, "secure_aggregation")
    assert event["dropped"] == {
        str(stage): [f"node-{node}" for node in nodes] for stage, nodes in silent.items()
    }
    assert event["threshold"] == 8, "of the eleven that advertised"


@pytest.mark.parametrize("stage", STAGES)
def test_below_the_threshold_a_round_is_tried_again_with_fresh_keys(stage: Stage) -> None:
    events: Events = []
    grid = WatchedGrid(num_nodes=5, silent_at={stage: [1, 2, 3]}, attempts_cut=1)
    result = run(secure(FedAvg(quorum=0.4, max_attempts=2)), grid, events=events)
    assert distance(result, plain_mean(range(1, 6))) < 2e-6
    (retried,) = of(events, "round_retried")
    assert "fresh keys" in retried["reason"]
    first, second = of(events, "secure_aggregation")
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert first["reason"]
    assert first["survivors"] == 0
    bodies = [
        bytes(m.content.config_records[wire.SECAGG]["body"])  # type: ignore[arg-type]
        for m in grid.sent
        if m.metadata.message_type == "train" and wire.STAGE not in m.content.config_records["config"]
    ]
    assert len(set(bodies)) == 2, "one session id for each attempt"


def test_a_round_that_never_has_enough_ends_the_run_with_a_clear_error() -> None:
    grid = WatchedGrid(num_nodes=5, silent_at={Stage.MASK: [1, 2]})
    with pytest.raises(
        QuorumError, match=r"3 of 5 nodes sent a masked vector \(stage mask\), but 4 are needed"
    ):
        run(secure(), grid)
    with pytest.raises(QuorumError, match="a cohort of 2 clients, but min_clients=3"):
        run(secure(), WatchedGrid(num_nodes=2))


def test_the_quorum_of_the_inner_strategy_holds_too() -> None:
    grid = WatchedGrid(num_nodes=10, silent_at={Stage.ADVERTISE: [1]})
    with pytest.raises(QuorumError, match="9 of 10 nodes advertised keys"):
        run(secure(FedAvg(quorum=1.0, max_attempts=1)), grid)


# -- Malformed answers ---------------------------------------------------------------------------------


def _vector(reply: Message, change: Any) -> Message:
    """Return the reply with another masked vector."""
    [key] = reply.content.array_records
    values = to_named(reply.content.array_records[key])["vector"]
    reply.content[key] = ArrayRecord({"vector": Array(change(values))})
    return reply


MALFORMED = {
    "a vector that is too short": (Stage.MASK, lambda r: _vector(r, lambda v: v[:-1])),
    "a vector of another dtype": (Stage.MASK, lambda r: _vector(r, lambda v: v.astype(np.uint64))),
    "a matrix": (Stage.MASK, lambda r: _vector(r, lambda v: v.reshape(1, -1))),
    "no vector": (Stage.MASK, lambda r: _without(r, f"{wire.SECAGG}.vector")),
    "no bytes": (Stage.SHARE, lambda r: _without(r, wire.SECAGG)),
    "bytes cut off": (Stage.SHARE, lambda r: _body(r, lambda body: body[:-1])),
    "nonsense as keys": (Stage.ADVERTISE, lambda r: _body(r, lambda _: b"nonsense")),
    "metrics beside it": (Stage.ADVERTISE, lambda r: _with(r, "metrics", MetricRecord({"loss": 1.0}))),
    "nonsense as shares": (Stage.UNMASK, lambda r: _body(r, lambda body: body + b"!")),
}


def _without(reply: Message, key: str) -> Message:
    del reply.content[key]
    return reply


def _with(reply: Message, key: str, record: Any) -> Message:
    reply.content[key] = record
    return reply


def _body(reply: Message, change: Any) -> Message:
    record = reply.content.config_records[wire.SECAGG]
    record["body"] = change(record["body"])
    return reply


@pytest.mark.parametrize("what", MALFORMED)
def test_a_malformed_answer_is_quarantined_with_its_reason_and_counts_as_dropped(what: str) -> None:
    at, falsify = MALFORMED[what]

    def on_reply(message: Message, reply: Message) -> Message:
        hit = message.metadata.dst_node_id == 4 and stage_of(message) is at
        return falsify(reply) if hit else reply

    events: Events = []
    result = run(secure(), WatchedGrid(num_nodes=6, on_reply=on_reply), events=events)
    survivors = set(range(1, 7)) - (set() if at is Stage.UNMASK else {4})
    assert distance(result, plain_mean(survivors)) < 2e-6
    (event,) = of(events, "secure_aggregation")
    assert event["dropped"] == {str(at): ["node-4"]}
    (quarantined,) = [e for e in of(events, "reply") if e["status"] == "quarantined"]
    assert quarantined["client"] == "node-4"
    assert quarantined["stage"] == at
    assert quarantined["reason"]
    assert of(events, "round_finished")[0]["quarantined"] == 1


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda a: {**a, "params/b": a["params/b"] * np.nan}, id="NaN"),
        pytest.param(lambda a: {**a, "params/w": a["params/w"] / np.float32(0)}, id="infinite"),
        pytest.param(lambda a: {**a, "params/b": a["params/b"][:3]}, id="another shape"),
        pytest.param(lambda a: {"params/w": a["params/w"]}, id="arrays missing"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_a_client_whose_update_cannot_be_encoded_sends_nothing_and_says_nothing_of_it(change: Any) -> None:
    app = stock_app(trainer(change=lambda node, arrays: change(arrays) if node == 3 else arrays))
    events: Events = []
    result = run(secure(), WatchedGrid(app, 6), events=events)
    assert distance(result, plain_mean([1, 2, 4, 5, 6])) < 2e-6
    (failed,) = [e for e in of(events, "reply") if e["status"] == "failed"]
    assert failed["client"] == "node-3"
    assert "does not fit the round's public bounds; the reason is in the node's own log" in failed["reason"]


def test_neither_an_apps_error_nor_a_weight_out_of_range_tells_the_server_a_number() -> None:
    secret = "my 4711 patients"

    def failing(message: Message, context: Any) -> Message:
        if context.node_id == 2:
            raise RuntimeError(secret)
        return trainer()(message, context)  # type: ignore[no-any-return]

    grid = WatchedGrid(stock_app(failing), 6)
    run(secure(max_weight=55.0), grid)
    errors = {reply.metadata.src_node_id: reply.error.reason for reply in grid.replies if reply.has_error()}
    assert sorted(errors) == [2, 6], "node 6 has 60 examples"
    assert "4711" not in str(errors)
    assert "60" not in errors[6].replace(" 60 ", "")
    assert not any(char.isdigit() for char in errors[6].partition(":")[2])


# -- By text, in the ready-made apps -------------------------------------------------------------------


def test_the_stack_is_built_from_text_and_runs_in_the_ready_made_apps(tmp_path: Any) -> None:
    text = "secure_aggregation(fedavg(quorum=0.5), max_weight=400, clip=2.0, metrics=['loss'])"
    built = build(Kind.STRATEGY, text)
    assert isinstance(built, SecureAggregation)
    assert "clip=2.0" in built.describe()
    task = "digits(model='mlp')"
    given = RunConfig.defaults() | {"task": task}
    results = {}
    for name, strategy in (("secure", text), ("plain", "fedavg()")):
        config = RunConfig(
            task=task, num_rounds=2, strategy=strategy, run_dir=str(tmp_path / name), client_evaluation=False
        )
        with WatchedGrid(ready_made, 4, run_config=given) as grid:
            results[name] = to_named(run_app(grid, config).arrays)
    for key, value in results["plain"].items():
        assert np.abs(results["secure"][key] - value).max() < 2e-6, key
    assert load_checkpoint(tmp_path / "secure" / FINAL_MODEL).round == 2
    events = read_events(tmp_path / "secure" / "events.jsonl")
    assert [e["survivors"] for e in events if e["event"] == "secure_aggregation"] == [4, 4]
    accuracy = {e["round"]: e["metrics"]["accuracy"] for e in events if e["event"] == "evaluated"}
    assert accuracy[2] > accuracy[0]
