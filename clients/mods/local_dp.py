"""Local differential privacy: a client clips and noises its own update, and keeps its own account.

=====  =================================================================================
Δ      reply − received over all trained float arrays, ``(d,)`` float64
C      ``clip_norm``
σ      noise on every coordinate; any two updates that were clipped lie at most 2C apart
T      ``max_rounds``: the rounds that ``epsilon`` is for, composed exactly: μ = 2C·√T/σ
=====  =================================================================================

The server is not trusted: it can announce a layer, but neither reset the account nor spend more than the
node's own limit.
"""

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MessageType, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from fl_plugins import wire
from fl_plugins._flower import CLIENT_APP_ERROR
from fl_plugins.checks import check_int, check_number
from fl_plugins.clipped_updates import ClippedUpdates, trained_keys
from fl_plugins.errors import BudgetError, PolicyError, ReplyError
from fl_plugins.local_privacy import local_release
from fl_plugins.node_account import NodeAccount
from fl_plugins.privacy import Gaussian, NoiseSource, Release
from fl_plugins.privacy.noise import add_gaussian
from fl_plugins.records import Layout, from_named, to_named
from fl_plugins.registry import Kind, register

logger = logging.getLogger("flwr.fl_plugins")

_FAILED = "local_dp: training failed; the node's own log says why"

_COUNTER = "fl-plugins.local-dp"
"""Record in the context's state: how many updates this run has had."""


@register(
    Kind.MOD, "local_dp", paper="Balle & Wang 2018, Improving the Gaussian Mechanism for Differential Privacy"
)
@dataclass(frozen=True, kw_only=True)
class LocalDp:
    """Clip the update, add Gaussian noise to it, withhold the metrics, and charge the node's own account.

    ``ClientApp(mods=[LocalDp(clip_norm=0.5, epsilon=8.0, delta=1e-5, max_rounds=20)])`` works in any app; in
    the ready-made one the server announces it (strategy ``local_dp``). Node config: ``privacy-ledger`` is the
    file of the account, ``max-epsilon`` and ``privacy-delta`` (1e-5) the limit over all runs.

    Parameters
    ----------
    clip_norm : float
        The largest norm of an update that is left as it is, > 0.
    epsilon, delta : float
        What ``max_rounds`` replies may tell, whatever they were (adjacency ``replace``, unit ``client``).
    max_rounds : int
        Training messages of one run that are answered.
    unprotected_metrics : bool
        Send metrics, the number of examples and evaluations as they are, without any protection.

    Guarantees
    ----------
    - An update leaves only with its noise, and only after it was charged on disk; a crash counts as spent.
    - Train messages beyond ``max_rounds`` or the node's limit are refused before the app sees them.
    - Arrays that are not trained go back as they came. Evaluations are answered without metrics, and are not
      run.
    """

    name: ClassVar[str] = "local_dp"

    clip_norm: float
    epsilon: float
    delta: float
    max_rounds: int
    unprotected_metrics: bool = False

    def __post_init__(self) -> None:
        check_number(self.name, "clip_norm", self.clip_norm, minimum=0.0, open_below=True)
        check_int(self.name, "max_rounds", self.max_rounds, minimum=1)
        _ = self.release  # the noise exists for this ε and δ

    @cached_property
    def release(self) -> Release:
        """What one reply tells."""
        return local_release(epsilon=self.epsilon, delta=self.delta, max_rounds=self.max_rounds)

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on every coordinate."""
        assert isinstance(self.release.mechanism, Gaussian)
        return self.release.mechanism.noise_multiplier * self.clip_norm

    def __call__(self, message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        """Run the app, and let out only what is protected.

        Raises
        ------
        PolicyError
            If this node hosts virtual clients, whose updates would share one account.
        BudgetError
            If the run's rounds, or the node's own limit, are spent.
        """
        kind = message.metadata.message_type.partition(".")[0]
        config = message.content.config_records.get(wire.CONFIG, ConfigRecord())
        if kind == MessageType.EVALUATE and not self.unprotected_metrics:
            return Message(RecordDict({wire.METRICS: _no_metrics()}), reply_to=message)
        if kind != MessageType.TRAIN or wire.STAGE in config:
            return call_next(message, context)
        if wire.CLIENTS in config:
            raise PolicyError(
                f"{self.name}: this node hosts virtual clients, but every client keeps its own account; "
                "give every client a node (virtual-clients=0)."
            )
        received = _only_arrays(message)
        account, charged = self._charge(context)
        try:
            reply = call_next(message, context)
            if not reply.has_error():
                protected = self._protected(received, reply, message)
                account.commit(charged)
                return protected
            logger.error("%s: training failed: %s", self.name, reply.error.reason)
        except Exception:
            logger.exception("%s: training failed", self.name)
        # Why it failed may depend on the data: that stays here.
        return Message(Error(CLIENT_APP_ERROR, _FAILED), reply_to=message)

    def _charge(self, context: Context) -> tuple[NodeAccount, int]:
        """Charge one reply to this run and to the node's account, or refuse."""
        counted = context.state.config_records.get(_COUNTER, ConfigRecord({"rounds": 0}))
        rounds = int(counted["rounds"])  # type: ignore[arg-type]
        if rounds >= self.max_rounds:
            raise BudgetError(
                f"{self.name}: this node has answered {rounds} training messages of this run, which is the "
                f"max_rounds={self.max_rounds} that epsilon={self.epsilon:g} is for; plan the run with "
                "more rounds."
            )
        account = NodeAccount(context)
        charged = account.charge(self.release, rounds + 1)
        context.state[_COUNTER] = ConfigRecord({"rounds": rounds + 1})
        return account, charged

    def _protected(self, received: ArrayRecord, reply: Message, message: Message) -> Message:
        """Return the reply with a clipped, noisy update, and without anything else."""
        base = to_named(received)
        layout = Layout.of(base)
        keys = trained_keys(self.name, layout, keep_others=True)
        updates = ClippedUpdates(layout, base, keys, clip_norm=self.clip_norm)
        arrays = to_named(_only_arrays(reply))
        layout.check(arrays, owner=self.name)
        noisy = add_gaussian(updates.read(arrays).arrays, self.noise_std, NoiseSource())
        metrics = reply.content.metric_records if self.unprotected_metrics else {wire.METRICS: _no_metrics()}
        content = RecordDict({wire.ARRAYS: from_named(updates.move(noisy)), **metrics})
        return Message(content, reply_to=message)


def _only_arrays(message: Message) -> ArrayRecord:
    """Return the only ArrayRecord."""
    records = list(message.content.array_records.values())
    if len(records) != 1:
        raise ReplyError(
            f"local_dp: a message has {len(records)} ArrayRecords, but exactly one can be protected; send "
            "the parameters in one record."
        )
    return records[0]


def _no_metrics() -> MetricRecord:
    """Return what stands for metrics: the number of examples tells something too, so all send the same."""
    return MetricRecord({wire.NUM_EXAMPLES: 1})
