"""Virtual clients through the ready-made app: the same bits as one client per node, whoever hosts them."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray

from fl_plugins import wire
from fl_plugins.aggregation import streaming
from fl_plugins.apps import cohort_node
from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.apps.stack import client_stack
from fl_plugins.errors import CheckpointError, ConfigError, DataError, QuorumError
from fl_plugins.registry import Kind, register
from fl_plugins.testing import InProcessGrid
from fl_plugins.training import ClientData, CohortResult, Dataset, Model, NamedArrays, Task, TrainResult

N = 7
FAST: dict[str, Any] = {
    "task": "cohort_test_task",
    "client": "cohort_test_trainer",
    "num_rounds": 3,
    "evaluate_every": 3,
}


def _model(key: Any) -> dict[str, Any]:
    raise NotImplementedError("the test's trainer has no model")


@register(Kind.TASK, "cohort_test_task")
def cohort_test_task(*, poor: int = -1, counter: bool = False, wide: bool = False) -> Task:
    """Return a task whose client ``poor`` has no examples; its model may count steps, or be of float64."""

    def load(partition_id: int, num_partitions: int) -> ClientData:
        rng = np.random.default_rng([partition_id, num_partitions])
        n = 0 if partition_id == poor else int(rng.integers(3, 40))
        x = rng.normal(size=(n, 5)).astype(np.float32)
        data = Dataset(x, rng.integers(0, 3, n))
        return ClientData(data, data.take(np.arange(n)[: n // 2]))

    model = Model(init=_model, apply=_model)
    name = "counter" if counter else "wide" if wide else "plain"
    return Task(name=name, model=model, loss=_model, load_partition=load, num_classes=3)


class Plain:
    """Moves by numbers of many magnitudes that depend on data, seed and round."""

    def __init__(self, task: Task) -> None:
        self.counts = task.name == "counter"
        self.dtype = np.float64 if task.name == "wide" else np.float32

    def init(self, *, seed: int) -> NamedArrays:
        rng = np.random.default_rng(seed)
        arrays: NamedArrays = {
            "params/w": rng.normal(size=(5, 3)).astype(self.dtype),
            "params/b": rng.normal(size=(3,)).astype(self.dtype),
        }
        return {**arrays, "state/steps": np.array(0)} if self.counts else arrays

    def train(self, arrays: NamedArrays, data: Dataset, *, seed: int) -> TrainResult:
        if not len(data):
            raise DataError("test: the partition has no examples.")
        rng = np.random.default_rng(seed)
        step = rng.normal(size=(5, 3)) * 10.0 ** rng.integers(-6, 3, (5, 3)) * data.x.mean()
        new = {
            "params/w": arrays["params/w"] + step.astype(self.dtype),
            "params/b": arrays["params/b"] + self.dtype(data.x.mean()),
        }
        if self.counts:
            new["state/steps"] = arrays["state/steps"] + len(data)
        return TrainResult(arrays=new, num_examples=len(data), metrics={"loss": float(abs(data.x.sum()))})

    def evaluate(self, arrays: NamedArrays, data: Dataset) -> dict[str, float]:
        if not len(data):
            raise DataError("test: the partition has no examples.")
        return {"loss": float(np.abs(data.x @ arrays["params/w"]).mean())}


class Together(Plain):
    """The same for many clients in one call, which must not be asked for one."""

    calls: list[int] = []  # noqa: RUF012

    def train_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset], *, seeds: Sequence[int]
    ) -> CohortResult:
        results = [
            Plain.train(self, arrays, data, seed=seed) for data, seed in zip(datasets, seeds, strict=True)
        ]
        self.calls.append(len(results))
        return CohortResult(
            arrays={key: np.stack([result.arrays[key] for result in results]) for key in arrays},
            num_examples=np.array([result.num_examples for result in results]),
            metrics={"loss": np.array([result.metrics["loss"] for result in results])},
        )

    def evaluate_cohort(
        self, arrays: NamedArrays, datasets: Sequence[Dataset]
    ) -> dict[str, NDArray[np.float64]]:
        return {"loss": np.array([Plain.evaluate(self, arrays, data)["loss"] for data in datasets])}


@register(Kind.CLIENT, "cohort_test_trainer")
def cohort_test_trainer(task: Task, *, together: bool = True) -> Plain:
    """Return a trainer that learns nothing, quickly."""
    return Together(task) if together else Plain(task)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    Together.calls.clear()
    yield
    logger.setLevel(level)


def run(*, nodes: int, virtual: int = N, given: Mapping[str, Any] | None = None, **grid: Any) -> Result:
    config = {**FAST, "virtual_clients": virtual, **(given or {})}
    run_config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in config.items()}}
    with InProcessGrid(client_app, nodes, run_config=run_config, **grid) as grid_:
        return run_app(grid_, RunConfig(**config))


def bits(record: ArrayRecord) -> dict[str, bytes]:
    return {key: array.data for key, array in record.items()}


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize(
    "strategy",
    [
        "fedavg",
        "fedavg(weighting='uniform')",
        "fedavg(fraction_train=0.6, server_optimizer=adam(learning_rate=0.1))",
        "fedavg(fallback=median())",
        "krum(num_byzantine=2)",
        "trimmed_mean(fraction=0.2)",
        "centered_clipping(max_norm=1.0, num_byzantine=2)",
    ],
)
@pytest.mark.parametrize(
    ("attack", "together"),
    [
        ("", True),
        ("", False),
        ("sign_flip(num_byzantine=2, scale=1.5)", True),
        ("sybil(num_byzantine=2)", False),
        ("little_is_enough(num_byzantine=1)", True),
        ("free_rider(num_byzantine=2)", True),
    ],
)
def test_the_same_bits_however_clients_are_spread_over_nodes(
    strategy: str, attack: str, together: bool
) -> None:
    given = {"strategy": strategy, "attack": attack, "client": f"cohort_test_trainer(together={together})"}
    alone = run(nodes=N, virtual=0, given=given)
    for nodes in (1, 2, 3, N):
        shared = run(nodes=nodes, given=given)
        assert bits(alone.arrays) == bits(shared.arrays)
        assert dict(alone.train_metrics_clientapp[3]) == dict(shared.train_metrics_clientapp[3])
        assert dict(alone.evaluate_metrics_clientapp[3]) == dict(shared.evaluate_metrics_clientapp[3])
    assert bool(Together.calls) == together


def test_float64_models_have_the_same_bits_too_and_a_plain_sum_would_not_have_given_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = {"task": "cohort_test_task(wide=True)", "strategy": "fedavg"}
    alone = run(nodes=N, virtual=0, given=given)
    assert all(bits(alone.arrays) == bits(run(nodes=nodes, given=given).arrays) for nodes in (1, 2, 3, N))

    def plain(high: Any, low: Any, term: Any, scratch: Any) -> None:
        high += term

    monkeypatch.setattr(streaming, "_two_sum", plain)
    one, other = (run(nodes=nodes, given=given) for nodes in (1, 3))
    assert bits(one.arrays) != bits(other.arrays)


def test_a_model_with_integers_has_the_same_bits_too_and_sends_every_update() -> None:
    given = {"task": "cohort_test_task(counter=True)", "strategy": "fedavg"}
    alone, shared = run(nodes=N, virtual=0, given=given), run(nodes=2, given=given)
    assert bits(alone.arrays) == bits(shared.arrays)
    assert shared.arrays["state/steps"].numpy() > 0


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_supervised_learns_the_same_bits_on_two_nodes_as_on_five(strategy: str) -> None:
    given = {
        "task": "digits(model='mlp')",
        "client": "supervised(local_epochs=1)",
        "strategy": strategy,
        "num_rounds": 2,
    }
    alone, shared = run(nodes=5, virtual=0, given=given), run(nodes=2, virtual=5, given=given)
    assert bits(alone.arrays) == bits(shared.arrays)


def test_one_message_per_node_names_its_clients_and_the_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohort_node, "BLOCK_BYTES", 1)
    sent: list[Message] = []

    def watch(message: Message, context: Context) -> Message:
        sent.append(message)
        return client_app(message, context)

    run(nodes=2, given={"num_rounds": 1, "evaluate_every": 1}, overrides={1: watch, 2: watch})
    train = [message.content.config_records["config"] for message in sent if _is(message, "train")]
    assert sorted(config[wire.CLIENTS] for config in train) == [[0, 2, 4, 6], [1, 3, 5]]
    assert {config[wire.FORM] for config in train} == {wire.SUM}
    assert {config[wire.WEIGHTING] for config in train} == {"examples"}
    assert set(Together.calls) == {1}, "a block that is too large for its budget has one client"
    assert len([message for message in sent if _is(message, "evaluate")]) == 2


def test_the_size_of_a_sum_does_not_depend_on_the_cohort() -> None:
    sizes = []
    for virtual in (4, 40):
        replies: list[Message] = []

        def watch(message: Message, context: Context, kept: list[Message] = replies) -> Message:
            kept.append(client_app(message, context))
            return kept[-1]

        run(nodes=1, virtual=virtual, given={"num_rounds": 1}, overrides={1: watch})
        records = [r.content.array_records["arrays"] for r in replies if "arrays" in r.content]
        sizes.append([sum(len(array.data) for array in record.values()) for record in records])
    assert sizes[0] == sizes[1]
    assert len(sizes[0]) == 1


def _is(message: Message, kind: str) -> bool:
    return message.metadata.message_type == kind


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_a_client_without_data_fails_alone_and_the_others_count(strategy: str, tmp_path: Path) -> None:
    given = {"task": "cohort_test_task(poor=3)", "strategy": strategy}
    alone = run(nodes=N, virtual=0, given={**given, "run_dir": str(tmp_path / "alone")})
    shared = run(nodes=2, given={**given, "run_dir": str(tmp_path / "shared")})
    assert bits(alone.arrays) == bits(shared.arrays)
    told = [
        sorted(
            (e["client"], e["phase"], e["status"], e["reason"]) for e in events_of(tmp_path / name, "reply")
        )
        for name in ("alone", "shared")
    ]
    assert told[0] == told[1]
    assert ("3", "train", "failed", "the client failed: DataError: test: the partition has no examples.") in (
        told[1]
    )
    for mine, theirs in zip(
        events_of(tmp_path / "alone", "aggregated"), events_of(tmp_path / "shared", "aggregated"), strict=True
    ):
        assert {**mine, "time": 0} == {**theirs, "time": 0}


@pytest.mark.parametrize("strategy", ["fedavg", "median"])
def test_a_client_that_is_not_finite_is_quarantined_alone(strategy: str, tmp_path: Path) -> None:
    given = {"attack": "non_finite(num_byzantine=1)", "strategy": strategy}
    alone = run(nodes=N, virtual=0, given={**given, "run_dir": str(tmp_path / "alone")})
    shared = run(nodes=2, given={**given, "run_dir": str(tmp_path / "shared")})
    assert bits(alone.arrays) == bits(shared.arrays)
    for name in ("alone", "shared"):
        refused = {
            (e["client"], e["status"], "NaN" in e["reason"])
            for e in events_of(tmp_path / name, "reply")
            if e["status"] != "accepted"
        }
        assert refused == {("0", "quarantined", True)}


def test_a_node_that_does_not_answer_takes_all_its_clients_with_it(tmp_path: Path) -> None:
    given = {"strategy": "fedavg(quorum=0.4)", "round_timeout_s": 0.2, "client_evaluation": False}

    def only_roll_call(message: Message, context: Context) -> Message:
        if _is(message, "train"):
            raise RuntimeError("out of memory")
        return client_app(message, context)

    run(nodes=2, given={**given, "run_dir": str(tmp_path)}, overrides={1: only_roll_call})
    event = events_of(tmp_path, "aggregated")[0]
    assert (event["accepted"], event["failed"]) == (3, 4)
    with pytest.raises(QuorumError, match=r"3 of 7 .* needs 4"):
        run(nodes=2, given={**given, "strategy": "fedavg(quorum=0.5)"}, overrides={1: only_roll_call})


def test_resume_continues_to_the_same_bits_and_only_with_as_many_clients(tmp_path: Path) -> None:
    given = {"strategy": "fedavg(fraction_train=0.5, server_optimizer=sgd(learning_rate=1.0, momentum=0.9))"}
    whole = run(nodes=2, given={**given, "num_rounds": 4})
    run(nodes=2, given={**given, "num_rounds": 2, "run_dir": str(tmp_path)})
    with pytest.raises(CheckpointError, match="virtual-clients"):
        run(nodes=2, virtual=8, given={**given, "num_rounds": 4, "run_dir": str(tmp_path), "resume": True})
    resumed = run(nodes=3, given={**given, "num_rounds": 4, "run_dir": str(tmp_path), "resume": True})
    assert bits(whole.arrays) == bits(resumed.arrays)


def test_events_are_of_clients_and_not_of_nodes(tmp_path: Path) -> None:
    run(nodes=2, given={"run_dir": str(tmp_path)})
    assert events_of(tmp_path, "round_started")[0]["sampled"] == [str(i) for i in range(N)]
    assert events_of(tmp_path, "round_started")[0]["available"] == N
    replies = [e for e in events_of(tmp_path, "reply") if e["phase"] == "train" and e["round"] == 1]
    assert {e["client"]: e["node"] for e in replies} == {str(i): 1 + i % 2 for i in range(N)}
    contribution = events_of(tmp_path, "aggregated")[0]["contribution"]
    assert list(contribution) == [str(i) for i in range(N)]
    assert sum(contribution.values()) == pytest.approx(1.0)


def test_flowers_own_strategies_are_refused_for_they_know_no_cohort_nodes() -> None:
    @register(Kind.STRATEGY, "cohort_test_stock")
    def stock() -> Any:
        from flwr.serverapp.strategy import FedAvg

        return FedAvg()

    with pytest.raises(ConfigError, match="no cohort nodes"):
        run(nodes=2, given={"strategy": "cohort_test_stock"})


@pytest.mark.usefixtures("task_identity")
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "does not say which"),
        ({wire.CLIENTS: [1, 3]}, "client 1 is asked for, but this node hosts"),
        ({wire.CLIENTS: [0], wire.FORM: "average"}, "'each' or 'sum'"),
    ],
)
def test_a_message_that_a_cohort_node_cannot_serve_is_answered_with_an_error(
    config: dict[str, Any], reason: str
) -> None:
    from flwr.app import RecordDict

    from fl_plugins.records import from_named

    run_config = {
        **RunConfig.defaults(),
        "task": FAST["task"],
        "client": FAST["client"],
        "virtual-clients": N,
    }
    node: dict[str, Any] = {wire.PARTITION_ID: 0, wire.NUM_PARTITIONS: 2}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run_config)
    received = client_stack(RunConfig(task=FAST["task"], client=FAST["client"])).trainer.init(seed=0)
    content = RecordDict({wire.ARRAYS: from_named(received), wire.CONFIG: ConfigRecord(config)})
    reply = client_app(Message(content, 1, "train"), context)
    assert reply.has_error()
    assert reason in reply.error.reason
