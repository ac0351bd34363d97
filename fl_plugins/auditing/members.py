"""Membership inference against a federated run: which records were trained on, told from the model alone.

Every record of every client has a secret fair coin; the clients train on those with heads. The adversary
knows all records and the final model. It scores a record by how much smaller its loss is than in *shadow*
models, trained alike with coins of the adversary's own (Watson et al. 2022, difficulty calibration); without
shadow models by the loss alone (Yeom et al. 2018).

That is a one-run audit for the unit *record* under *add_remove*; natural records are weak canaries, so that
its ε is far below what a strategy or a trainer accounts. To look for violations use :mod:`.canaries` and
:mod:`.records`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from numpy.typing import NDArray

from .. import wire
from ..apps.config import RunConfig
from ..apps.layers import layers_mod
from ..checks import check_int
from ..errors import ConfigError, ContractError, DataError, FLPluginsError
from ..privacy import Accountant, Adjacency, NeighborRelation, NoiseSource
from ..privacy.membership import auc, epsilon_lower_bound, roc
from ..pytrees import unflatten_named
from ..records import from_named, to_named
from ..run_options import ManagedStrategy, RunOptions
from ..seeds import derive_seed
from ..training import Dataset, NamedArrays, Task, Trainer
from ._grid import AuditGrid, quiet
from .canaries import PrivateStrategy, centered
from .findings import Finding

Floats = NDArray[np.float64]
Coins = NDArray[np.bool_]

_RECORDS = NeighborRelation.of(unit="record", adjacency="add_remove")
_BATCH = 1024


@runtime_checkable
class AccountsRecords(Protocol):
    """A trainer that promises an ε for records (``dp_supervised``)."""

    delta: float

    @property
    def adjacency(self) -> str:
        """What a neighbouring data set is."""
        ...

    def epsilon(self, num_examples: int, *, num_trainings: int = 1) -> float:
        """Return ε of so many trainings."""
        ...


@dataclass(frozen=True, kw_only=True)
class MembershipFinding:
    """How well members were told from others.

    Parameters
    ----------
    num_members, num_others : int
        Records that were trained on, and that were not.
    auc : float
        Area under the ROC curve: 0.5 is guessing.
    true_positive : Mapping
        True-positive rate at a false-positive rate of at most so much.
    epsilon_if_independent : float
        The Clopper-Pearson bound on ε, threshold chosen on a separate half. It holds if the records' scores
        are independent, which those from one model are not strictly.
    finding : Finding
        The one-run bound, which needs no such thing, beside what was accounted.
    """

    num_members: int
    num_others: int
    auc: float
    true_positive: dict[float, float]
    epsilon_if_independent: float
    finding: Finding

    def __str__(self) -> str:
        rates = ", ".join(f"{rate:.2%} at FPR {at:.1%}" for at, rate in self.true_positive.items())
        return (
            f"members      {self.num_members} of {self.num_members + self.num_others} records\n"
            f"AUC          {self.auc:.4f}\nTPR          {rates}\n{self.finding}\n"
            f"if independent  ε ≥ {self.epsilon_if_independent:.4g} (Clopper-Pearson on a half; scores of "
            "one model are not quite independent)"
        )


def infer_membership(
    make: Callable[[], Any],
    trainer: Trainer,
    task: Task,
    *,
    num_clients: int,
    num_rounds: int,
    shadow_models: int = 1,
    seed: int = 0,
    delta: float = 1e-5,
    confidence: float = 0.95,
) -> MembershipFinding:
    """Return how well membership in the data of a run is inferred.

    Parameters
    ----------
    make : callable
        Returns a new strategy each time; layers that ask something of clients work too.
    trainer, task
        What every client does, and on what.
    num_clients, num_rounds : int
        Of the run.
    shadow_models : int
        How many further runs the adversary trains.
    seed : int
        Of what is not secret: initial parameters, shuffling. Coins are the operating system's.
    delta, confidence : float
        Of the bounds; a trainer that accounts for records has a δ of its own, which is used then.

    Raises
    ------
    ContractError
        If the strategy is none of ours.
    ConfigError
        If a number is out of range, or no client could train.
    """
    for name, value, least in (("num_clients", num_clients, 1), ("shadow_models", shadow_models, 0)):
        check_int("membership", name, value, minimum=least)
    data = [task.load_partition(client, num_clients).train for client in range(num_clients)]
    coins = _toss(data)
    model, released = _trained(make(), trainer, data, coins, num_rounds, seed)
    losses = partial(_losses, task, data=data)
    loss = losses(model)
    easy = np.zeros_like(loss)
    if shadow_models:
        easy = _difficulty(
            [
                (losses(_trained(make(), trainer, data, shadow, num_rounds, derive_seed(seed, k))[0]), shadow)
                for k, shadow in enumerate([_toss(data) for _ in range(shadow_models)])
            ]
        )
    scores, heads = centered(easy - loss), np.concatenate(coins)
    members, others = scores[heads], scores[~heads]
    curve = roc(members, others)
    accounted, account, delta = _accounted(released, trainer, data, num_rounds, delta)
    return MembershipFinding(
        num_members=len(members),
        num_others=len(others),
        auc=auc(members, others),
        true_positive={rate: curve.true_positive_at(rate) for rate in (0.001, 0.01)},
        epsilon_if_independent=epsilon_lower_bound(members, others, delta=delta, confidence=confidence),
        finding=Finding.of(
            scores,
            heads,
            relation=_RECORDS,
            delta=delta,
            confidence=confidence,
            accounted=accounted,
            account=account,
        ),
    )


def _toss(data: Sequence[Dataset]) -> list[Coins]:
    """Return a coin for every record of every client."""
    source = NoiseSource()
    return [source.bernoulli(0.5, len(each)) for each in data]


def _trained(
    strategy: Any,
    trainer: Trainer,
    data: Sequence[Dataset],
    coins: Sequence[Coins],
    num_rounds: int,
    seed: int,
) -> tuple[NamedArrays, tuple[Any, int]]:
    """Return the final model of a run on the records with heads; the strategy, and its private rounds."""
    if not isinstance(strategy, ManagedStrategy):
        raise ContractError(
            f"membership: {type(strategy).__name__} is no fl-plugins strategy; give one, such as fedavg."
        )
    app, failures, rounds = ClientApp(mods=[layers_mod]), list[str](), list[int]()
    trainings = 0

    @app.train()
    def train(message: Message, context: Context) -> Message:
        nonlocal trainings
        client = int(context.node_config[wire.PARTITION_ID])
        number = int(message.content.config_records[wire.CONFIG][wire.SERVER_ROUND])  # type: ignore[arg-type]
        received = to_named(next(iter(message.content.array_records.values())))
        mine = data[client].take(np.flatnonzero(coins[client]))
        try:
            result = trainer.train(received, mine, seed=derive_seed(seed, "train", client, number))
        except FLPluginsError as error:
            failures.append(str(error))
            raise
        trainings += 1
        metrics = MetricRecord({wire.NUM_EXAMPLES: result.num_examples, **result.metrics})
        content = RecordDict({wire.ARRAYS: from_named(result.arrays), wire.METRICS: metrics})
        return Message(content, reply_to=message)

    def note(event: str, /, **_: Any) -> None:
        if event == "privacy":
            rounds.append(1)

    options = RunOptions(num_rounds=num_rounds, seed=seed, client_evaluation=False, emit=note)
    initial = from_named(trainer.init(seed=derive_seed(seed, "init")))
    config = RunConfig.defaults()
    with quiet(), AuditGrid(app, len(data), run_config=config) as grid:
        result = strategy.run(grid, initial, options)
    if not trainings:
        why = failures[0] if failures else "nobody was asked, or could do what the strategy needs"
        raise ConfigError(f"membership: no client has trained: {why}")
    return to_named(result.arrays), (strategy, len(rounds))


def _losses(task: Task, model: NamedArrays, *, data: Sequence[Dataset]) -> Floats:
    """Return the loss of every record; one that is not finite is the largest of the others."""
    variables = unflatten_named(model, jax.eval_shape(task.model.init, jax.random.key(0)))

    @jax.jit
    def loss(x: Any, y: Any) -> Any:
        outputs, _ = task.model.apply(variables, x, train=False, key=None)
        return task.loss(outputs, y)

    x, y = (np.concatenate([getattr(each, name) for each in data]) for name in ("x", "y"))
    if not len(x):
        raise DataError("membership: the clients have no records; use fewer clients.")
    parts = [loss(x[at : at + _BATCH], y[at : at + _BATCH]) for at in range(0, len(x), _BATCH)]
    values = np.concatenate([np.asarray(part, dtype=np.float64) for part in parts])
    finite = np.isfinite(values)
    return np.where(finite, values, values[finite].max(initial=0.0))


def _difficulty(shadows: Sequence[tuple[Floats, Sequence[Coins]]]) -> Floats:
    """Return every record's mean loss in the shadow models that were not trained on it, or in all of them."""
    losses = np.stack([loss for loss, _ in shadows])
    out = np.stack([~np.concatenate(coins) for _, coins in shadows])
    without: Floats = np.where(out, losses, 0.0).sum(axis=0) / np.maximum(out.sum(axis=0), 1)
    return np.asarray(np.where(out.any(axis=0), without, losses.mean(axis=0)), dtype=np.float64)


def _accounted(
    released: tuple[Any, int], trainer: Trainer, data: Sequence[Dataset], num_rounds: int, delta: float
) -> tuple[float | None, str, float]:
    """Return an ε for records that may be there or not, if anything promises one; how; and its δ."""
    strategy, rounds = released
    if isinstance(trainer, AccountsRecords) and trainer.adjacency == _RECORDS.adjacency.value:
        epsilon = max(trainer.epsilon(max(len(each), 1), num_trainings=num_rounds) for each in data)
        how = f"{_RECORDS}; as the trainer reports, {num_rounds} trainings"
        return epsilon, f"ε = {epsilon:.4g} at δ = {trainer.delta:g} ({how})", trainer.delta
    if isinstance(strategy, PrivateStrategy) and rounds:
        accountant = Accountant(strategy.release.relation)
        accountant.compose(strategy.release, rounds)
        report = accountant.report(delta)
        if strategy.release.relation.adjacency is Adjacency.REPLACE:
            return report.epsilon, f"{report}, which covers each of a client's records", delta
        why = "for records nothing: one may change an update by two clip norms"
        return None, f"{report}; {why}", delta
    return None, "nothing", delta
