"""Evaluations whose numbers are summed like updates: what is told, what leaves a client, what is refused."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from clients.mods.secure_aggregation import secure_aggregation_mod
from fl_plugins import wire
from fl_plugins.errors import ConfigError
from fl_plugins.records import to_named
from fl_plugins.secagg import RoundParameters, Stage
from fl_plugins.secure_round import EVALUATIONS
from strategies import DistributedDp, FedAvg

from .additive import grid_of, helped
from .federation import (
    EXAMPLES,
    LOSS,
    WatchedGrid,
    config_of,
    distance,
    plain_mean,
    run,
    secure,
    stage_of,
    trainer,
)

BOTH = ("loss", "accuracy")
Events = list[dict[str, Any]]


def of_clients(result: Any, number: int = 1) -> dict[str, Any]:
    """Return what the clients' evaluation of a round gave."""
    return dict(result.evaluate_metrics_clientapp[number])


def mean_over(nodes: Any, value: Callable[[int], float], *, uniform: bool = False) -> float:
    weights = [1.0 if uniform else float(EXAMPLES[node]) for node in nodes]
    return sum(w * value(node) for w, node in zip(weights, nodes, strict=True)) / sum(weights)


def is_evaluation(message: Message) -> bool:
    return message.metadata.message_type == "evaluate"


# A metric's digits have 40 bits of max_metric=100, and weights as many of max_weight.
ROUNDING = 100 * 2.0**-32


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("num_bits", [16, 32])
def test_what_is_told_is_the_mean_that_plain_averaging_gives(num_bits: int, uniform: bool) -> None:
    weighting: Any = "uniform" if uniform else "examples"
    inner = FedAvg(weighting=weighting)
    options = {"max_weight": None} if uniform else {}
    events: Events = []
    strategy = secure(inner, evaluate=BOTH, num_bits=num_bits, **options)
    result = run(strategy, WatchedGrid(num_nodes=5), num_rounds=2, events=events)
    for number in (1, 2):
        told = of_clients(result, number)
        assert set(told) == set(BOTH)
        assert told["loss"] == pytest.approx(
            mean_over(range(1, 6), lambda n: LOSS * n, uniform=uniform), abs=ROUNDING
        )
        assert told["accuracy"] == pytest.approx(
            mean_over(range(1, 6), lambda n: n / 20, uniform=uniform), abs=ROUNDING
        )
    secure_events = [event for event in events if event["event"] == "secure_aggregation"]
    assert [event["phase"] for event in secure_events] == ["train", "evaluate"] * 2
    assert all(event["survivors"] == 5 for event in secure_events)
    evaluated = [event for event in events if event["event"] == "evaluated"]
    assert [event["where"] for event in evaluated] == ["clients"] * 2


def test_no_number_of_an_evaluation_leaves_a_client_but_inside_a_masked_vector() -> None:
    grid = WatchedGrid(num_nodes=5)
    kinds: list[Stage] = []
    vectors: list[Any] = []

    def on_reply(message: Message, reply: Message) -> Message:
        if is_evaluation(message) or len(grid.replies) >= 20:
            kinds.append(stage_of(message))
            assert not reply.content.metric_records
            assert list(reply.content.config_records) == [wire.SECAGG]
            vectors.extend(to_named(record)["vector"] for record in reply.content.array_records.values())
        return reply

    grid.on_reply = on_reply
    run(secure(evaluate=BOTH, metrics=("loss",)), grid)
    assert kinds == [s for s in (Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.UNMASK) for _ in range(5)]
    assert len(vectors) == 5
    # Twelve words a client: half of the bits of a mask are ones. What is not masked are mostly zeros.
    bits = np.unpackbits(np.concatenate(vectors).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 5 * 0.5 / math.sqrt(bits.size)
    assert all(state.state.config_records.get(wire.SECAGG) is None for state in grid._contexts.values())


@pytest.mark.parametrize("stage", [Stage.ADVERTISE, Stage.SHARE, Stage.MASK, Stage.UNMASK])
def test_a_node_that_falls_silent_while_evaluating_costs_only_itself(stage: Stage) -> None:
    def lose(grid: WatchedGrid) -> Any:
        plain = type(grid).push_messages

        def push(messages: Any) -> Any:
            identifiers = list(plain(grid, messages))
            evaluating = any(map(is_evaluation, grid.sent))
            for identifier in identifiers:
                message = grid._waiting[identifier]
                if evaluating and message.metadata.dst_node_id == 2 and stage_of(message) is stage:
                    del grid._waiting[identifier]
            return identifiers

        return push

    grid = WatchedGrid(num_nodes=6)
    grid.push_messages = lose(grid)  # type: ignore[method-assign]
    result = run(secure(evaluate=BOTH), grid)
    assert distance(result, plain_mean(range(1, 7))) < 2e-6
    there = [n for n in range(1, 7) if n != 2 or stage is Stage.UNMASK]
    assert of_clients(result)["loss"] == pytest.approx(mean_over(there, lambda n: LOSS * n), abs=ROUNDING)


def test_too_few_who_evaluate_cost_the_evaluation_and_not_the_run(caplog: pytest.LogCaptureFixture) -> None:
    app = ClientApp(mods=[secure_aggregation_mod])
    app.train()(trainer())

    @app.evaluate()
    def evaluate(message: Message, context: Any) -> Message:
        loss = math.nan if context.node_id > 2 else 4711.0
        record = MetricRecord({"num-examples": 10, "loss": loss})
        return Message(RecordDict({"metrics": record}), reply_to=message)

    grid = WatchedGrid(app, num_nodes=5)
    events: Events = []
    result = run(secure(evaluate=("loss",)), grid, num_rounds=2, events=events)
    assert result.evaluate_metrics_clientapp == {}
    assert caplog.text.count("is not evaluated by clients") == 2
    assert len([event for event in events if event["event"] == "round_finished"]) == 2
    reasons = [reply.error.reason for reply in grid.replies if reply.has_error()]
    assert len(reasons) == 6
    assert all("does not fit the round's public bounds" in reason for reason in reasons)
    assert "nan" not in "".join(reasons)


def test_a_metric_beyond_its_bound_counts_as_the_bound_and_the_node_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    result = run(secure(evaluate=("secret",)), WatchedGrid(num_nodes=4))
    assert of_clients(result)["secret"] == pytest.approx(100.0)
    assert "beyond max_metric=100: secret" in caplog.text


def test_helpers_open_the_sum_of_an_evaluation_too() -> None:
    result = run(helped(evaluate=BOTH), grid_of(), num_rounds=2)
    assert of_clients(result, 2)["loss"] == pytest.approx(
        mean_over(range(1, 6), lambda n: LOSS * n), abs=ROUNDING
    )


def test_an_encrypted_evaluation_gives_the_same_mean(tmp_path: Path) -> None:
    pytest.importorskip("tenseal", reason="the extra he is not installed")
    from fl_plugins.ckks_round import write_key
    from strategies import CkksAggregation

    write_key(tmp_path / "sum.key")
    own = {node: {"secagg-sum-key": str(tmp_path / "sum.key")} for node in range(1, 5)}
    strategy = CkksAggregation(FedAvg(), max_weight=1000.0, clip=0.6, evaluate=BOTH)
    result = run(strategy, WatchedGrid(num_nodes=4, node_configs=own))
    assert of_clients(result)["accuracy"] == pytest.approx(
        mean_over(range(1, 5), lambda n: n / 20), abs=ROUNDING
    )


# -- Lies ----------------------------------------------------------------------------------------------


def relabelled(kind: str) -> Callable[[Message], Message]:
    """Let a first message be of the other kind: its vector would hold something else."""

    def change(message: Message) -> Message:
        message.metadata.__dict__["_message_type"] = kind
        return message

    return change


def with_parameters(**changes: Any) -> Callable[[Message], Message]:
    def change(message: Message) -> Message:
        record = message.content.config_records[wire.SECAGG]
        values = vars(RoundParameters.from_bytes(record[wire.SECAGG_BODY]))  # type: ignore[arg-type]
        record[wire.SECAGG_BODY] = RoundParameters(**{**values, **changes}).to_bytes()
        return message

    return change


def not_announced(message: Message) -> Message:
    config_of(message)[wire.LAYERS] = secure().announce("evaluate", 1)[wire.LAYERS]
    return message


def without_layer(message: Message) -> Message:
    del config_of(message)[wire.LAYERS]
    return message


def as_a_stage(message: Message) -> Message:
    config_of(message)[wire.STAGE] = 1
    return message


LIES = {
    "training in an evaluation's sum": (relabelled("train"), "layout is not that of the message"),
    "metrics that are not announced": (not_announced, "name them, or evaluate at the server"),
    "no layer": (without_layer, "announces the layers []"),
    "a stage that is an evaluation": (as_a_stage, "name them, or evaluate at the server"),
    "fewer clients": (with_parameters(min_clients=2), "min_clients=2, but the message announces 3"),
    "the round's training again": (with_parameters(attempt=1), "an attempt is never repeated"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_an_evaluations_first_message_is_refused_before_anything_is_evaluated(lie: str) -> None:
    change, said = LIES[lie]
    replies: list[Message] = []
    lied: set[str] = set()

    def on_request(message: Message) -> Message:
        if is_evaluation(message) and message.metadata.dst_node_id == 1:
            lied.add(message.metadata.message_id)
            return change(message)
        return message

    def on_reply(message: Message, reply: Message) -> Message:
        if message.metadata.message_id in lied:
            replies.append(reply)
        return reply

    grid = WatchedGrid(num_nodes=5, on_request=on_request, on_reply=on_reply)
    result = run(secure(evaluate=BOTH), grid)
    (reply,) = replies
    assert reply.has_error()
    assert said in reply.error.reason
    assert wire.SECAGG not in grid._contexts[1].state
    assert of_clients(result)["loss"] == pytest.approx(
        mean_over(range(2, 6), lambda n: LOSS * n), abs=ROUNDING
    )


def test_an_evaluation_is_never_repeated_and_no_training_of_its_round_comes_after_it() -> None:
    grid = WatchedGrid(num_nodes=4)
    run(secure(evaluate=BOTH), grid)
    begun = [m for m in grid.sent if m.metadata.dst_node_id == 1 and wire.STAGE not in config_of(m)]
    assert [m.metadata.message_type for m in begun] == ["train", "evaluate"]
    attempts = [
        RoundParameters.from_bytes(m.content.config_records[wire.SECAGG]["body"]).attempt  # type: ignore[arg-type]
        for m in begun
    ]
    assert attempts == [1, EVALUATIONS + 1]
    for message in begun:
        reply = grid._apps[1](message, grid._contexts[1])
        assert "an attempt is never repeated" in reply.error.reason


@pytest.mark.parametrize("strategy", [secure, helped])
def test_without_a_list_of_metrics_nobody_is_asked_to_evaluate(strategy: Any) -> None:
    grid = WatchedGrid(num_nodes=4) if strategy is secure else grid_of()
    result = run(strategy(), grid)
    assert result.evaluate_metrics_clientapp == {}
    assert not any(map(is_evaluation, grid.sent))


def test_the_weight_is_no_metric_and_noise_covers_no_evaluation() -> None:
    with pytest.raises(ConfigError, match=r"evaluate=.* is the weight"):
        secure(evaluate=("loss", wire.NUM_EXAMPLES))
    with pytest.raises(ConfigError, match=r"evaluate=.* each is named once"):
        secure(evaluate=("loss", "loss"))
    with pytest.raises(TypeError):
        DistributedDp(FedAvg(weighting="uniform"), evaluate=("loss",))  # type: ignore[call-arg]
