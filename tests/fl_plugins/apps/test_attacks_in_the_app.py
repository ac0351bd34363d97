"""Attacks through the ready-made app: shared identities, virtual clients, and the success rate."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fl_plugins import wire
from fl_plugins.apps.client_app import app as client_app
from fl_plugins.apps.config import RunConfig
from fl_plugins.apps.server_app import run_app
from fl_plugins.apps.stack import client_stack, partition
from fl_plugins.attacks import free_rider
from fl_plugins.records import from_named, to_named
from fl_plugins.testing import InProcessGrid
from fl_plugins.training import NamedArrays

TASK = "digits(model='mlp')"


def answer(
    attack: str, partition_id: int, *, number: int = 1, seed: int = 1
) -> tuple[NamedArrays, NamedArrays, int]:
    """Return what was sent to the client, what it replied, and its claimed number of examples."""
    config = RunConfig(task=TASK, attack=attack)
    received = client_stack(config).trainer.init(seed=seed)
    record = ConfigRecord({wire.SERVER_ROUND: number, wire.SCHEMA: wire.SCHEMA_VERSION})
    content = RecordDict({wire.ARRAYS: from_named(received), wire.CONFIG: record})
    node: dict[str, Any] = {wire.PARTITION_ID: partition_id, wire.NUM_PARTITIONS: 5}
    run_config: dict[str, Any] = {**RunConfig.defaults(), "task": TASK, "attack": attack}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config=run_config)
    reply = client_app(Message(content, 1, "train"), context)
    assert not reply.has_error(), reply.error
    arrays = to_named(next(iter(reply.content.array_records.values())))
    claimed = next(iter(reply.content.metric_records.values()))[wire.NUM_EXAMPLES]
    assert isinstance(claimed, int)
    return received, arrays, claimed


@pytest.mark.usefixtures("task_identity")
def test_sybils_send_the_same_bits_and_honest_clients_do_not() -> None:
    attack = "sybil(num_byzantine=2)"
    (_, first, _), (_, second, _), (_, honest, _) = (answer(attack, number) for number in (0, 1, 2))
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name])
    assert any((first[name] != honest[name]).any() for name in first)


@pytest.mark.usefixtures("task_identity")
def test_mimics_send_the_targets_update_and_its_claim() -> None:
    attack = "mimic(num_byzantine=1, target=2)"
    (_, copied, claimed), (_, target, true), (_, other, _) = (answer(attack, number) for number in (0, 2, 3))
    assert claimed == true
    for name, array in target.items():
        # An attack's update is added to what was received: float32 sums with parameters of about 1.
        np.testing.assert_allclose(array, copied[name], rtol=0, atol=1e-6)
    assert any((np.abs(other[name] - copied[name]) > 1e-3).any() for name in other)


@pytest.mark.usefixtures("task_identity")
def test_little_is_enough_trains_on_parts_and_claims_all_its_examples() -> None:
    _, at_mean, claimed = answer("little_is_enough(num_byzantine=1, z=0.0)", 0)
    received, at_two, _ = answer("little_is_enough(num_byzantine=1, z=2.0)", 0)
    _, at_minus_two, _ = answer("little_is_enough(num_byzantine=1, z=-2.0)", 0)
    config = RunConfig(task=TASK)
    assert claimed == len(partition(config, 0, 5).train)
    for name, middle in at_mean.items():
        # mean ± 2σ lie on both sides of the mean; float32 sums with parameters of about 1
        np.testing.assert_allclose((at_two[name] + at_minus_two[name]) / 2, middle, atol=1e-6)
        assert (at_two[name] <= middle + 1e-6).all()
    assert any((at_two[name] < at_mean[name] - 1e-3).any() for name in received)


@pytest.mark.usefixtures("task_identity")
def test_a_free_rider_adds_the_change_since_the_round_before_to_what_it_receives() -> None:
    attack = "free_rider(num_byzantine=2, stddev=0.0)"
    first, returned, _ = answer(attack, 0, number=1, seed=1)
    for name, array in first.items():
        np.testing.assert_array_equal(returned[name], array)
    second, replied, _ = answer(attack, 0, number=2, seed=2)
    _, colluding, _ = answer(attack, 1, number=2, seed=2)
    for name, array in second.items():
        honest = np.zeros((1, array.size), array.dtype)
        change = (array.astype(np.float64) - first[name]).reshape(-1)
        sent = free_rider(honest, 1, previous=change)[0].reshape(array.shape)
        np.testing.assert_array_equal(replied[name], array + sent)
        np.testing.assert_array_equal(colluding[name], replied[name])
    assert any((replied[name] != array).any() for name, array in second.items())
    again, anew, _ = answer(attack, 0, number=1, seed=3)
    for name, array in again.items():
        np.testing.assert_array_equal(anew[name], array)


@pytest.mark.parametrize(("scale", "least", "most"), [(4.0, 0.5, 1.0), (None, 0.0, 0.2)])
def test_the_server_reports_the_backdoors_success(scale: float | None, least: float, most: float) -> None:
    hostile = 0 if scale is None else 1
    attack = f"backdoor(num_byzantine={hostile}, target=3, scale={scale or 1.0})"
    given: dict[str, Any] = {"task": TASK, "attack": attack, "num_rounds": 8, "client_evaluation": False}
    config = {**RunConfig.defaults(), **{key.replace("_", "-"): value for key, value in given.items()}}
    with InProcessGrid(client_app, 5, run_config=config) as grid:
        result = run_app(grid, RunConfig(**given))
    metrics = result.evaluate_metrics_serverapp[8]
    assert least <= float(metrics["attack_success_rate"]) <= most  # type: ignore[arg-type]
    assert float(metrics["accuracy"]) >= 0.6  # type: ignore[arg-type]
