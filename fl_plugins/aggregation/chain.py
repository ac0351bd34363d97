"""Pre-aggregators and a rule, one after the other."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..contracts import Contract
from ..dtypes import DType
from ..errors import ConfigError, PreconditionError
from ..registry import Kind, PluginKind, register
from .combinations import as_shares
from .core import ROBUST, Aggregate, Aggregator, CohortRule, Stateful, call_rule, validate_unweighted
from .mixing import PreAggregator, call_preaggregator
from .rows import Rows

Stage = (
    Annotated[PreAggregator, PluginKind(Kind.PREAGGREGATOR)]
    | Annotated[Aggregator, PluginKind(Kind.AGGREGATOR)]
)


@register(
    Kind.AGGREGATOR,
    "chain",
    paper="Allouah et al. 2023, Fixing by Mixing: A Recipe for Optimal Byzantine ML under Heterogeneity",
    contract=ROBUST,
)
class Chain:
    """Any number of pre-aggregators and then a rule, each working on what the one before it gives.

    ``chain(arc(), nearest_neighbor_mixing(num_byzantine=2), trimmed_mean(num_byzantine=2))``

    Parameters
    ----------
    *stages : PreAggregator or Aggregator
        Pre-aggregators; the last one, and only that one, is a rule. A pre-aggregator without the
        ``num_byzantine`` that it needs takes the rule's.

    Guarantees
    ----------
    Nothing of size (n, d) is stored between stages. Every stage's precondition is checked against the number
    of rows that reaches it. ``contribution`` is the rule's, carried back through the mixing to the clients
    and scaled to sum 1. The state is that of every stage that has one, under ``"<position>/<name>"``.

    Raises
    ------
    ConfigError
        If the stages are not pre-aggregators followed by one rule, or one lacks a ``num_byzantine`` and the
        rule has none above 0.
    """

    name: ClassVar[str] = "chain"
    contract: ClassVar[Contract] = ROBUST

    def __init__(self, *stages: Stage) -> None:
        *before, last = stages or (None,)
        for stage in before:
            if not _is_preaggregator(stage):
                raise ConfigError(
                    f"chain: {stage!r} stands before the end, but only pre-aggregators (clip, arc, "
                    "nearest_neighbor_mixing, bucketing, ...) may; one rule comes last."
                )
        if last is None or _is_preaggregator(last) or not isinstance(last, Aggregator):
            raise ConfigError(
                f"chain: it ends with {last!r}, but the last stage must be a rule (median, krum, ...)."
            )
        self.preaggregators: tuple[PreAggregator, ...] = tuple(_completed(stage, last) for stage in before)
        self.rule: Aggregator = last

    def __repr__(self) -> str:
        return f"Chain({', '.join(map(repr, (*self.preaggregators, self.rule)))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and self._stages() == other._stages()

    def __hash__(self) -> int:
        return hash(self._stages())

    def check(self, n: int) -> None:
        """Raise ``PreconditionError`` unless every stage can work on what reaches it."""
        reaching = n
        for stage in self._stages():
            try:
                stage.check(reaching)
            except PreconditionError as error:
                raise PreconditionError(f"chain: n={n} updates but a stage needs more: {error}") from error
            if _is_preaggregator(stage):
                reaching = stage.num_outputs(reaching)

    def for_cohort(self, n: int) -> "Chain":
        """Return the chain whose last rule has its tolerance fixed for ``n`` sampled clients."""
        if not isinstance(self.rule, CohortRule):
            return self
        reaching = n
        for stage in self.preaggregators:
            reaching = stage.num_outputs(reaching)
        return Chain(*self.preaggregators, self.rule.for_cohort(reaching))

    def initial_state(self, d: int, dtype: DType) -> dict[str, NDArray[Any]]:
        """Return the initial states of all stages."""
        return {
            f"{position}/{key}": value
            for position, stage in enumerate(self._stages())
            if isinstance(stage, Stateful)
            for key, value in stage.initial_state(d, dtype).items()
        }

    def __call__(
        self,
        rows: Rows | NDArray[Any],
        weights: NDArray[Any] | None = None,
        *,
        state: Mapping[str, NDArray[Any]] | None = None,
    ) -> Aggregate:
        """Combine ``(n, d)`` updates; weights are refused."""
        current = validate_unweighted(rows, weights, rule=self.name)
        n = current.shape[0]
        self.check(n)
        mixing = np.eye(n)
        new_state: dict[str, NDArray[Any]] = {}
        for position, stage in enumerate(self.preaggregators):
            result = call_preaggregator(stage, current, state=_part(state, position))
            current, mixing = result.rows, result.mixing @ mixing
            new_state.update({f"{position}/{key}": value for key, value in result.state.items()})
        position = len(self.preaggregators)
        final = call_rule(self.rule, current, state=_part(state, position))
        new_state.update({f"{position}/{key}": value for key, value in final.state.items()})
        return Aggregate(final.value, as_shares(final.contribution @ mixing), new_state)

    def _stages(self) -> tuple[Any, ...]:
        """Return all stages."""
        return (*self.preaggregators, self.rule)


def chain(updates: Rows | NDArray[Any], *stages: Stage) -> NDArray[Any]:
    """Return the ``(d,)`` result of ``stages`` on ``(n, d)`` updates; see :class:`Chain`."""
    return Chain(*stages)(updates).value


def _completed(stage: Any, rule: Aggregator) -> PreAggregator:
    """Return ``stage`` with the rule's ``num_byzantine``, if it has none of its own.

    A rule that has none yet (a fraction) has one in the chain :meth:`Chain.for_cohort`. A 0 is not taken: for
    some rules it is the default, and the stage would do nothing.
    """
    if getattr(stage, "num_byzantine", 0) is not None:
        return stage  # type: ignore[no-any-return]  # checked by the caller
    tolerated = getattr(rule, "num_byzantine", 0)
    if tolerated == 0:
        raise ConfigError(
            f"chain: {stage.name} has no num_byzantine, and {rule.name} none above 0 that it could take; "
            f"write {stage.name}(num_byzantine=...)."
        )
    completed: PreAggregator = replace(stage, num_byzantine=tolerated)
    return completed


def _is_preaggregator(stage: object) -> bool:
    """Whether ``stage`` is one (a rule has no ``num_outputs``)."""
    return isinstance(stage, PreAggregator)


def _part(state: Mapping[str, NDArray[Any]] | None, position: int) -> dict[str, NDArray[Any]]:
    """Return one stage's part of the state."""
    return dict(_parts(state or {}, f"{position}/"))


def _parts(state: Mapping[str, NDArray[Any]], prefix: str) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield the entries whose keys begin with ``prefix``, without it."""
    for key, value in state.items():
        if key.startswith(prefix):
            yield key.removeprefix(prefix), value
